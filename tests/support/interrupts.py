"""A signal at a chosen line of a program."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def in_finalizer(frame: FrameType | None) -> bool:
    """Where Python swallows what a handler raises."""
    while frame is not None and frame.f_code.co_name not in ("__del__", "_remove"):
        frame = frame.f_back
    return frame is not None


class At:
    """`with At(n):` sends a signal at the n-th line (or instruction) that runs in it; none at 0. `count` says how many ran.

    Args:
        number: the signal.
        opcodes: whether instructions are counted instead of lines.
        counts: which frames count; all by default.
    """

    def __init__(
        self,
        n: int = 0,
        number: int = signal.SIGINT,
        opcodes: bool = False,
        counts: Callable[[FrameType], bool] = lambda frame: True,
    ) -> None:
        self.n, self.number, self.counts, self.count, self.sent = n, number, counts, 0, False
        self.event = "opcode" if opcodes else "line"

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = self.event == "opcode"
        if event == self.event and self.counts(frame):
            self.count += 1
            if self.count >= self.n > 0 and not self.sent and not in_finalizer(frame):
                self.sent = True
                signal.raise_signal(self.number)
        return self

    def __enter__(self) -> "At":
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
