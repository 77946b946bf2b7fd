"""For TensorBoard: S of each step, written by a hook of the optimizer."""

from typing import Any

from torch.utils.hooks import RemovableHandle
from torch.utils.tensorboard import SummaryWriter

from mechanicd.client import InvalidArgument
from mechanicd.integrations._scales import logged_values, unwrapped


def write_scale(writer: SummaryWriter, optimizer: Any, every: int = 1) -> RemovableHandle:
    """Writes S and the effective learning rates as scalars after each step of the optimizer.

    Args:
        writer: the destination; the caller closes it.
        optimizer: the mechanized optimizer, prepared or not.
        every: write at every such step of the run.

    Returns:
        A handle; its `remove()` stops the writing.

    Raises:
        InvalidArgument: NOT_MECHANIZED, or INVALID_SETTING (every).
    """
    if every < 1:
        raise InvalidArgument("INVALID_SETTING", f"every={every!r}; give a number of steps, at least 1")
    opt = unwrapped(optimizer)

    def write(*_: Any) -> None:
        step = opt.last_step
        if step % every == 0:
            for name, value in logged_values(opt).items():
                writer.add_scalar(name, value, step)

    return opt.register_step_post_hook(write)
