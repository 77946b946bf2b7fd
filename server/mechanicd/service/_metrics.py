"""Counters of one server process: plain numbers that are cheap to update, and one dict to read them all.

Only `step_seconds` is updated per message and nothing per step: outcomes of steps are counted per commit.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from mechanicd.runs import outcomes
from mechanicd.store import Commit

STEP_SECONDS: Final = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0)
COMMIT_SECONDS: Final = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Histogram:
    """How many values fell under each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def as_dict(self) -> dict[str, Any]:
        """`counts` has one more entry than `bounds`, for values above all of them."""
        return {"bounds": self.bounds, "counts": self.counts, "sum": self.sum}


class Metrics:
    """Counts since the start of the process.

    Attributes:
        step_seconds: tuner time for one message of steps.
        commit_seconds: store time for one group commit.
        opened: sessions, by how they were opened.
        commits_failed: group commits that failed; each is retried.
        lost: runs that another server took over.
    """

    def __init__(self) -> None:
        self.step_seconds = Histogram(STEP_SECONDS)
        self.commit_seconds = Histogram(COMMIT_SECONDS)
        self.opened: Counter[str] = Counter(created=0, resumed=0, rewound=0, adopted=0, reattached=0)
        self.commits_failed = 0
        self.lost = 0
        self._outcomes = [0, 0, 0, 0]

    def committed(self, commits: Iterable[Commit], seconds: float) -> None:
        """Counts a group commit that succeeded."""
        self.commit_seconds.add(seconds)
        for commit in commits:
            found = outcomes(len(commit.scale), commit.records)
            for outcome in (2, 3):
                self._outcomes[outcome] += found.count(outcome)
            self._outcomes[0] += len(found)

    def as_dict(self) -> dict[str, Any]:
        """All of them as plain JSON values."""
        total, _, non_finite, held = self._outcomes
        return {
            "steps": {"tuned": total - non_finite - held, "non_finite": non_finite, "held": held},
            "step_seconds": self.step_seconds.as_dict(),
            "commit_seconds": self.commit_seconds.as_dict(),
            "opened": self.opened,
            "commits_failed": self.commits_failed,
            "lost": self.lost,
        }
