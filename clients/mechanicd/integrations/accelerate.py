"""For Hugging Face's Accelerate: `accelerator.prepare(mechanize(…))` works as it is; this puts S into its trackers."""

from typing import Any

from accelerate import Accelerator

from mechanicd.integrations._scales import told


def log_scale(accelerator: Accelerator, optimizer: Any, step: int | None = None) -> dict[str, float]:
    """Logs S and the effective learning rates to the accelerator's trackers; returns what was logged.

    Args:
        optimizer: the mechanized optimizer, prepared or not.
        step: the step that the values are logged for.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    found = told(optimizer)
    accelerator.log(found, step=step)
    return found
