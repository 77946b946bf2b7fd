"""For Lightning: `configure_optimizers` returns `mechanize(…)`; this callback logs S and closes the run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mechanicd.client.framework import error_text
from mechanicd.integrations._scales import logged_values, unwrapped


class MechanicCallback(Callback):
    """Logs S of every mechanized optimizer with each batch that the trainer logs, and closes the runs at the end.

    With several optimizers the names begin with "0/", "1/" …
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs through the module, so that loggers, the progress bar and checkpoint file names can use the values."""
        opts = trainer.optimizers
        for i, opt in enumerate(opts):
            prefix = f"{i}/" if len(opts) > 1 else ""
            pl_module.log_dict(
                {prefix + name: value for name, value in logged_values(opt).items()}, on_step=True, on_epoch=False
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the runs: finished, or preempted if the trainer was interrupted."""
        self._close(trainer, "preempted" if trainer.interrupted else "finished", "")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the runs: failed, or preempted on Ctrl-C."""
        interrupted = isinstance(exception, KeyboardInterrupt)
        message = "" if interrupted else error_text(exception)
        self._close(trainer, "preempted" if interrupted else "failed", message)

    def _close(self, trainer: Trainer, status: str, message: str) -> None:
        for opt in trainer.optimizers:
            unwrapped(opt).close(status, message)
