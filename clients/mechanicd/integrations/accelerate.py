"""For Hugging Face's Accelerate: `accelerator.prepare(mechanize(…))` needs no adapter; this logs S to its trackers."""

from typing import Any

from accelerate import Accelerator

from mechanicd.integrations._scales import logged_values


def log_scale(accelerator: Accelerator, optimizer: Any, step: int | None = None) -> dict[str, float]:
    """Logs S and the effective learning rates to the accelerator's trackers; returns what was logged.

    Args:
        optimizer: the mechanized optimizer, prepared or not.
        step: the step to log the values for.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    found = logged_values(optimizer)
    accelerator.log(found, step=step)
    return found
