"""For the Trainer of Hugging Face's transformers.

    trainer = Trainer(…, optimizer_cls_and_kwargs=mechanized(torch.optim.AdamW, run="bert/seed0", target="127.0.0.1:50051"))

is the only line that changes. The Trainer's `learning_rate` has no effect any more; its schedule does. `log_scale(trainer)`, or
`callbacks=[MechanicCallback()]`, adds S to the Trainer's logs and closes the run when the training ends.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mechanicd.client import InvalidArgument
from mechanicd.integrations._scales import logged_values, unwrapped
from mechanicd.torch import Mechanized, mechanize


def mechanized(
    base: Callable[..., torch.optim.Optimizer],
    *,
    base_kwargs: dict[str, Any] | None = None,
    run: str = "",
    target: str | None = None,
    **settings: Any,
) -> tuple[type, dict[str, Any]]:
    """The value for `Trainer(optimizer_cls_and_kwargs=…)`: makes the optimizer from the Trainer's own parameter groups.

    Args:
        base: BASE's class, or a function of the parameter groups that makes one.
        base_kwargs: its arguments; lr is 1.0 unless it says otherwise.
        run, target, settings: as for `mechanize`.
    """

    class Mechanize(Mechanized):
        """A class, not a function, since the Trainer checks what it inherits from."""

        def __new__(cls, params: Any, **kwargs: Any) -> Mechanized:  # type: ignore[misc]
            return mechanize(base(params, **kwargs), run, target, **settings)

    return Mechanize, {"lr": 1.0, **(base_kwargs or {})}


class MechanicCallback(TrainerCallback):
    """Adds S to what the Trainer logs, and closes the run as finished when the training ends.

    The Trainer's built-in callbacks (TensorBoard, …) run before a user's, so they see S only with `log_scale`.

    Args:
        close: whether to close the run; False lets training continue with the optimizer in the same process.
    """

    def __init__(self, close: bool = True) -> None:
        self._close = close

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Adds S and the effective learning rates to the logs, and to the Trainer's log history."""
        if logs is None or optimizer is None or "loss" not in logs:
            return
        found = logged_values(optimizer)
        logs.update(found)
        if state.log_history:
            state.log_history[-1].update(found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Closes the run."""
        if self._close and optimizer is not None:
            unwrapped(optimizer).close()


def log_scale(trainer: Trainer, close: bool = True) -> MechanicCallback:
    """Adds the callback before all others, so that every reporter of the Trainer (TensorBoard, …) gets S.

    Raises:
        InvalidArgument: INVALID_SETTING; the trainer already has one.
    """
    callbacks = trainer.callback_handler.callbacks
    if any(isinstance(callback, MechanicCallback) for callback in callbacks):
        raise InvalidArgument("INVALID_SETTING", "the trainer already has a MechanicCallback; add it once")
    callback = MechanicCallback(close)
    callbacks.insert(0, callback)
    return callback
