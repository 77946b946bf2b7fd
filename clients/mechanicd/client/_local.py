"""A session without a server: the tuner runs in this process, and no history is kept."""

from collections.abc import Sequence

from mechanicd.client._session import Session
from mechanicd.tuner import Reductions, TunerConfig, TunerState


class LocalSession(Session):
    """The session for `target=None`: the same steps and the same bits, without server and history."""

    def __init__(self, config: TunerConfig, state: TunerState | None = None) -> None:
        super().__init__("", config, state or TunerState.initial(config))

    def flush(self, timeout: float | None = None) -> int:
        """Returns 0: without a server nothing is durable but what the caller saves."""
        return 0

    def _send(self, step: int, groups: Sequence[Reductions], base_lr: float | None, hold: bool) -> bool:
        return hold

    def _receive(self, following: TunerState, wait: bool) -> TunerState:
        return following

    def _close(self, status: str, message: str) -> None:
        pass
