"""The steps that the server has not announced durable yet: this process keeps them, and sends them again after an outage."""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from mechanicd.client._errors import ServerUnavailable
from mechanicd.tuner import TunerState
from mechanicd.v1 import tuner_service_pb2

if TYPE_CHECKING:
    from mechanicd.client._spill import Spill

BACKLOG_BYTES: Final = 64 * 2**20
"""About how much memory a backlog may take. Past it the oldest steps go to the disk if there is a spill. Without one they are
dropped, and the history shows a gap."""


class Taken(Protocol):
    """What is known of a step that was taken: a `TunerState`, or what the disk has of it."""

    @property
    def step(self) -> int:
        """Its number."""

    @property
    def scale(self) -> tuple[float, ...]:
        """S after it, one per scale group."""


class Entry(NamedTuple):
    """A step as it was sent, and what the tuner made of it; None while it is not finished."""

    request: tuner_service_pb2.StepRequest
    state: Taken | None


class Backlog:
    """Consecutive steps, and the state before the first of them. The oldest may be on the disk.

    Args:
        spill: where steps go that are too many for the memory; None drops them.

    Attributes:
        anchor: the tuner's state before the first step kept; a server that lacks earlier steps can adopt it.
        limit: at most this many steps are kept in memory.
        answered: the last step that a server has taken, in memory at least.
    """

    def __init__(self, anchor: TunerState, spill: "Spill | None" = None) -> None:
        self.anchor = anchor
        self.limit = max(100, BACKLOG_BYTES // (512 + 5 * len(anchor.to_bytes())))
        self._entries: deque[tuple[tuner_service_pb2.StepRequest, TunerState | None]] = deque()
        self._spill = spill
        self.answered = 0

    def __len__(self) -> int:
        return len(self._entries) + (self._spill.steps if self._spill is not None else 0)

    @property
    def last_step(self) -> int:
        """The last step kept, or the one before the first that will be."""
        if self._entries:
            return self._entries[-1][0].step
        return self._spill.end.step if self._spill is not None and self._spill.steps else self.anchor.step

    def append(self, request: tuner_service_pb2.StepRequest) -> None:
        """Adds a step that was begun; `complete` adds its state."""
        self._entries.append((request, None))
        if len(self._entries) > self.limit:
            if self._spill is not None:
                self.spill(len(self._entries) - self.limit + self.limit // 64)
            if len(self._entries) > self.limit:
                self._drop_first()

    def complete(self, state: TunerState) -> None:
        """Adds the state after the last step, which can be replayed from now on."""
        if self._entries and self._entries[-1][0].step == state.step:
            self._entries[-1] = (self._entries[-1][0], state)

    def drop_unfinished(self) -> None:
        """Drops a step that was begun, and will never be finished."""
        if self._entries and self._entries[-1][1] is None:
            self._entries.pop()

    def durable(self, step: int) -> None:
        """Drops the steps up to this one: the server has committed them."""
        if self._spill is not None and self._spill.steps:
            if step < self._spill.end.step:
                return  # the file is dropped as a whole
            self.anchor = self._spill.end
            self._spill.clear()
        while self._entries and self._entries[0][0].step <= step and self._entries[0][1] is not None:
            self._drop_first()

    def after(self, step: int, most: int | None = None) -> Sequence[Entry]:
        """The complete entries above a step, in order, and at most so many; not always all that are there.

        Raises:
            ServerUnavailable: SPOOL_UNREADABLE: they are lost, and `anchor` is the state after them.
        """
        if self._spill is not None and self._spill.steps and step < self._spill.end.step:
            kept = self._spill.after(step, most)
            if not kept:
                self.anchor = self._spill.lose()
                raise ServerUnavailable(
                    "SPOOL_UNREADABLE", f"{self._spill.path} can't be read; a server adopts the state after it"
                )
            return kept
        found = (Entry(*entry) for entry in self._entries if entry[0].step > step and entry[1] is not None)
        return list(islice(found, most))

    def spill(self, most: int | None = None) -> bool:
        """Moves the oldest finished steps to the disk; None moves all. Returns whether that worked, or there is no spill."""
        finished = [(request, state) for request, state in islice(self._entries, most) if state is not None]
        if self._spill is None or not finished:
            return self._spill is None or bool(self._spill.steps)
        if not self._spill.push(self.anchor, finished):
            if not self._spill.steps:
                return False
            # Too much for the disk as well: what is there are the oldest steps.
            self.anchor = self._spill.lose()
            if not self._spill.push(self.anchor, finished):
                return False
        for _ in finished:
            self._entries.popleft()
        return True

    def clear_spill(self) -> None:
        """The server has all that is on the disk."""
        if self._spill is not None:
            self._spill.clear()

    def keep(self, status: str, message: str) -> str:
        """Leaves all steps on the disk, with the run's end. Returns the file's path; "" where there is none, or it failed."""
        if self._spill is None or not len(self):
            return ""
        kept = self.spill() and self._spill.keep(status, message)
        return str(self._spill.path) if kept else ""

    def forget(self) -> None:
        """In a forked child: what is on the disk is the parent's."""
        if self._spill is not None:
            self._spill.forget()

    def _drop_first(self) -> None:
        state = self._entries.popleft()[1]
        if state is not None:
            self.anchor = state
