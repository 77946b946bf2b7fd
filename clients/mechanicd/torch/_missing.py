"""What `import mechanicd.torch` says where torch is not installed."""

from mechanicd.client import MechanicdError


class TorchMissing(MechanicdError, ImportError):
    """torch is not installed. `reason` is TORCH_MISSING."""


def require_torch() -> None:
    """Imports torch.

    Raises:
        TorchMissing: there is no torch; an error from inside a torch that is there passes through.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise TorchMissing(
            "TORCH_MISSING", "mechanicd.torch needs PyTorch, which is not installed: pip install 'mechanicd[torch]'"
        ) from error
