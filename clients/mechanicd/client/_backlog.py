"""The steps that the server has not announced durable yet: this process keeps them, and sends them again after an outage."""

from collections import deque
from typing import Final, NamedTuple

from mechanicd.tuner import TunerState
from mechanicd.v1 import tuner_service_pb2

BACKLOG_BYTES: Final = 64 * 2**20
"""About how much memory a backlog may take. Past it the oldest steps are dropped, and the history shows a gap."""


class Entry(NamedTuple):
    """A step as it was sent, and the tuner's state after it."""

    request: tuner_service_pb2.StepRequest
    state: TunerState | None


class Backlog:
    """Consecutive steps, and the state before the first of them.

    Attributes:
        anchor: the tuner's state before the first step kept; a server that lacks earlier steps can adopt it.
        limit: at most this many steps are kept.
    """

    def __init__(self, anchor: TunerState) -> None:
        self.anchor = anchor
        self.limit = max(100, BACKLOG_BYTES // (512 + 5 * len(anchor.to_bytes())))
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_step(self) -> int:
        """The last step kept, or the one before the first that will be."""
        return self._entries[-1].request.step if self._entries else self.anchor.step

    def append(self, request: tuner_service_pb2.StepRequest) -> None:
        """Adds a step that was begun; `complete` adds its state."""
        self._entries.append(Entry(request, None))
        if len(self._entries) > self.limit:
            self._drop_first()

    def complete(self, state: TunerState) -> None:
        """Adds the state after the last step, which can be replayed from now on."""
        if self._entries and self._entries[-1].request.step == state.step:
            self._entries[-1] = Entry(self._entries[-1].request, state)

    def durable(self, step: int) -> None:
        """Drops the steps up to this one: the server has committed them."""
        while self._entries and self._entries[0].request.step <= step and self._entries[0].state is not None:
            self._drop_first()

    def after(self, step: int) -> list[Entry]:
        """The complete entries above a step, in order."""
        return [entry for entry in self._entries if entry.request.step > step and entry.state is not None]

    def _drop_first(self) -> None:
        state = self._entries.popleft().state
        if state is not None:
            self.anchor = state
