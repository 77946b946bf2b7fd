"""What `import mechanicd.jax` says where jax or optax is not installed."""

from mechanicd.client import MechanicdError


class JaxMissing(MechanicdError, ImportError):
    """jax or optax is not installed. `reason` is JAX_MISSING."""


def require_jax() -> None:
    """Imports jax and optax.

    Raises:
        JaxMissing: one is not there; an error from inside one that is there passes through.
    """
    try:
        import optax  # noqa: F401

        import jax  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "optax"):
            raise
        raise JaxMissing(
            "JAX_MISSING", f"mechanicd.jax needs {error.name}, which is not installed: pip install 'mechanicd[jax]'"
        ) from error
