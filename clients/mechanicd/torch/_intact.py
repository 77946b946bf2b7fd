"""Whether weights and Δ belong to one step. They do, unless an error stopped their update halfway."""

from typing import Any

from mechanicd.client import SessionError
from mechanicd.client.framework import error_text


class Intact:
    """`with intact:` around an update of weights and Δ. After one that an error has stopped, `check` raises.

    Signals wait for the end of a step, and the updates are made in place, so what is left is such as a lost device or no memory
    for a buffer. Then half of the tensors are of the next step, and a training that went on would be silently wrong.
    """

    def __init__(self) -> None:
        self._stopped_by = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if error is not None:
            self._stopped_by = error_text(error)

    def check(self) -> None:
        """Raises if an update has stopped halfway.

        Raises:
            SessionError: STEP_BROKEN.
        """
        if self._stopped_by:
            raise SessionError(
                "STEP_BROKEN",
                f"an earlier step stopped amid its update ({self._stopped_by}), so weights and Δ are of different steps; load "
                "a checkpoint of the model and of the optimizer",
            )
