"""Finds the buckets of the store for a range of the x axis."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mechanicd.dashboard._series import Axis
from mechanicd.runs import RunRow
from mechanicd.store import SERIES, Buckets, Store, SummaryRequest

END: Final = 2**62
_ROUNDS: Final = 12
_BYTES: Final = 64 * 2**20
"""The most bytes of buckets in memory at once; they become columns before the next ones are read."""


@dataclass(slots=True)
class Zoom:
    """One run's part of a request.

    Attributes:
        x0, x1: bounds on the axis; None: no bound.
        columns: the most columns wanted.
        end: the last step of the branch.
        first, last: the steps to read next.
        buckets: the buckets found; None before, and after they were used.
    """

    run: RunRow
    branch: int
    axis: Axis
    x0: float | None
    x1: float | None
    columns: int
    end: int
    first: int = 1
    last: int = END
    buckets: Buckets | None = None
    done: bool = False

    def __post_init__(self) -> None:
        if self.axis.kind == "step":
            if self.x0 is not None:
                self.first = max(1, min(math.ceil(self.x0), END))
            if self.x1 is not None:
                self.last = max(0, min(math.floor(self.x1), END))

    @property
    def most(self) -> int:
        """How many buckets to ask for, so that whole buckets give between half of the columns and all of them.

        Each level of the pyramid is 4 times as wide as the one below; the lowest is 16 steps wide.
        """
        fine = 8 * self.columns
        wanted = fine if min(self.last, self.end) - self.first < fine else 2 * self.columns
        return max(16, min(wanted, _BYTES // bucket_bytes(self.run)))

    def take(self, buckets: Buckets) -> None:
        """Takes what the store has for first…last, and finishes or narrows the range."""
        met = self.axis.meets(buckets, self.x0, self.x1)
        self.buckets = buckets = buckets if met.all() else buckets[met]
        if not len(buckets):
            self.done = True
            return
        first, last = int(buckets["first_step"][0]), int(buckets["last_step"][-1])
        nearer = last - first < min(self.last, self.end) - self.first
        self.done = self.axis.kind == "step" or not nearer or int(buckets["size"].max()) == 1
        self.first, self.last = first, last


def bucket_bytes(run: RunRow) -> int:
    """The size of one bucket of a run in memory."""
    return 64 + 24 * (len(SERIES) * len(run.config.scale_groups) + 1)


def fill(store: Store, zooms: Sequence[Zoom]) -> Iterator[Zoom]:
    """Reads the buckets of each run, some runs at a time, and yields the finished ones in order."""
    for batch in _batches(zooms):
        for _ in range(_ROUNDS):
            left = [zoom for zoom in batch if not zoom.done]
            if not left:
                break
            asked = [SummaryRequest(zoom.run, zoom.branch, zoom.first, zoom.last, zoom.most) for zoom in left]
            for zoom, buckets in zip(left, store.summaries(asked), strict=True):
                zoom.take(buckets)
        yield from batch
        for zoom in batch:
            zoom.buckets = None


def _batches(zooms: Sequence[Zoom]) -> Iterator[list[Zoom]]:
    batch: list[Zoom] = []
    size = 0
    for zoom in zooms:
        bytes_ = zoom.most * bucket_bytes(zoom.run)
        if batch and size + bytes_ > _BYTES:
            yield batch
            batch, size = [], 0
        batch.append(zoom)
        size += bytes_
    if batch:
        yield batch
