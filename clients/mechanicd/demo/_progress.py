"""What the demo knows about each run from the reports of its training processes."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mechanicd.demo._fleet import Recipe
from mechanicd.demo._reports import Finished, Report, Started, Stepped

State = Literal["starting", "training", "killed", "resumed", "done"]


@dataclass
class Progress:
    """A mechanized run, and its sweep.

    Attributes:
        peak: the largest S that was reported.
        accuracy: the last measured accuracy on the test digits, in percent.
        killed_at: the last step reported before the kill.
        resumed_from: the checkpoint's step.
        repeated: how many reports came a second time, for steps between the checkpoint and the kill.
        differing: how many of those were not the same to the last bit.
        sweep: the result of each learning rate, in the order in which they ended.
    """

    recipe: Recipe
    state: State = "starting"
    step: int = 0
    scale: float = 0.0
    peak: float = 0.0
    loss: float = math.nan
    accuracy: float = math.nan
    seconds: float = 0.0
    killed_at: int | None = None
    resumed_from: int | None = None
    repeated: int = 0
    differing: int = 0
    sweep: list[Finished] = field(default_factory=list)
    _heard: dict[int, Stepped] = field(default_factory=dict, repr=False)

    def killed(self) -> None:
        """Records that its process was killed."""
        self.state = "killed"
        self.killed_at = self.step

    def hear(self, report: Report) -> None:
        """Takes a report of the mechanized process, or (a `Finished` with a learning rate) of the sweep's."""
        match report:
            case Started():
                self.step = report.step
                self.state = "training"
                if self.killed_at is not None:
                    self.resumed_from = report.step
                    self.state = "resumed"
            case Stepped():
                self._hear_step(report)
            case Finished(lr=None):
                self.state = "done"
                self.step = self.recipe.steps
                self.loss, self.scale, self.accuracy = report.loss, report.scale, report.accuracy
                self.seconds = report.seconds
            case Finished():
                self.sweep.append(report)

    def _hear_step(self, report: Stepped) -> None:
        before = self._heard.get(report.step)
        if before is not None:
            self.repeated += 1
            self.differing += (before.loss, before.scale) != (report.loss, report.scale)
        self._heard[report.step] = report
        self.step, self.loss, self.scale = report.step, report.loss, report.scale
        self.peak = max(self.peak, report.scale)
        if not math.isnan(report.accuracy):
            self.accuracy = report.accuracy
