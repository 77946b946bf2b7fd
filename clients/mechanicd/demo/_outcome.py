"""How each mechanized run did, compared with the sweep that a person would have made."""

from dataclasses import dataclass
from typing import Any, Final

from mechanicd.demo._progress import Progress
from mechanicd.demo._reports import Finished, finite

TOLERANCE: Final = 1.5
"""Points of test accuracy that a mechanized run may fall short of the best of its sweep."""


@dataclass(frozen=True)
class Outcome:
    """A run at its end. Without a sweep, the properties that compare with it are None."""

    progress: Progress

    @property
    def best(self) -> Finished | None:
        """The learning rate with the highest test accuracy; the smaller one of two equal ones."""
        return max(self._by_rate(), key=lambda one: one.accuracy, default=None)

    @property
    def worst(self) -> Finished | None:
        """The learning rate with the lowest test accuracy."""
        return min(self._by_rate(), key=lambda one: one.accuracy, default=None)

    @property
    def points_from_best(self) -> float | None:
        """The mechanized run's test accuracy minus the best of its sweep, in points."""
        return None if self.best is None else self.progress.accuracy - self.best.accuracy

    @property
    def within(self) -> bool | None:
        """Whether the mechanized run comes within `TOLERANCE` of the best of its sweep."""
        points = self.points_from_best
        return None if points is None else points >= -TOLERANCE - 1e-9

    def _by_rate(self) -> list[Finished]:
        return sorted(self.progress.sweep, key=lambda one: one.lr or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        progress, recipe = self.progress, self.progress.recipe
        return {
            "run": recipe.run,
            "model": recipe.model,
            "base": recipe.base,
            "batch": recipe.batch,
            "steps": recipe.steps,
            "seed": recipe.seed,
            "accuracy": progress.accuracy,
            "loss": finite(progress.loss),
            "scale": progress.scale,
            "scale_peak": progress.peak,
            "seconds": round(progress.seconds, 2),
            "kill": self._kill(),
            "sweep": [_bare(one) for one in self._by_rate()],
            "best": _bare(self.best),
            "worst": _bare(self.worst),
            "points_from_best": None if self.points_from_best is None else round(self.points_from_best, 6),
            "within": self.within,
        }

    def _kill(self) -> dict[str, Any] | None:
        if self.progress.resumed_from is None:
            return None
        return {
            "killed_at": self.progress.killed_at,
            "resumed_from": self.progress.resumed_from,
            "repeated_reports": self.progress.repeated,
            "differing_reports": self.progress.differing,
        }


def _bare(one: Finished | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"lr": one.lr, "accuracy": one.accuracy, "loss": finite(one.loss), "seconds": round(one.seconds, 2)}
