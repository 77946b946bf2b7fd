"""Steps that a CUDA device takes before the host has their scalars, so that the host can go on enqueueing while it works.

The device has the tuner (`_triton_tuner`) and places the parameters by itself. The scalars follow to the host, which takes
each step again with its session and holds the device's S to its own bits, at most `AHEAD` steps later, or when somebody asks.
"""

import atexit
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mechanicd.client import MechanicdError, Session, StepConflict
from mechanicd.torch._distributed import Step
from mechanicd.torch._memory import Memory
from mechanicd.torch._passes import Passes
from mechanicd.tuner import Reductions

AHEAD: Final = 2
CONVENTIONS: Final = ("paper", "pytorch")
"""Those that `_triton_tuner` implements."""
NOT_SUPPORTED: Final = ("optax", "theory")
"""Those that it does not; their steps wait for the host."""


@dataclass
class _Taken:
    """A step that the device has taken: its report on the way to the host."""

    report: Tensor
    arrived: Any
    base_lr: float | None


class Ahead:
    """A stretch of steps that are alike: the same parameters take part, all of them placed at the session's S.

    Args:
        session: takes each step on the host; its tuner's state is where the device begins.
        active: per scale group the parameters that take part.
        cap: they are placed with no larger S.
    """

    def __init__(self, session: Session, memory: Memory, active: Sequence[Sequence[Tensor]], cap: float) -> None:
        from mechanicd.torch._triton_tuner import DeviceTuner

        self.session = session
        self._memory = memory
        self._active = active
        self._cap = cap
        self._key = [list(map(id, group)) for group in active]
        self._tuner = DeviceTuner(next(p.device for group in active for p in group), session.config, cap)
        self._tuner.load(session.state)
        self._taken: deque[_Taken] = deque()
        self._room: list[Tensor] = []

    def fits(self, session: Session | None, active: Sequence[Sequence[Tensor]], cap: float) -> bool:
        """Whether a step is of this stretch."""
        return session is self.session and cap == self._cap and [list(map(id, group)) for group in active] == self._key

    def step(self, passes: Passes, guarded: Callable[[], float | None], base_lr: float | None) -> float | None:
        """BASE, the tuner and apply, all on the device, after `launch` and `guard`. Returns what BASE returns.

        Args:
            guarded: BASE's step.

        Raises:
            BaseException: BASE's own; the parameters are as before the step, which counts.
        """
        try:
            result = guarded()
        except BaseException:
            self.settle()
            passes.restore()
            self._take(passes.read(), base_lr)
            raise
        passes.advance(self._tuner)
        self._send(base_lr)
        passes.apply_ahead(self._tuner)
        return result

    def catch_up(self) -> None:
        """Takes the steps that have arrived, and waits for those that are too far back.

        Raises:
            SessionError: the session refuses a step, or the device has other bits; the later steps are given up.
        """
        while self._taken and (len(self._taken) >= AHEAD or self._taken[0].arrived.query()):
            self._take_first()

    def settle(self) -> None:
        """Takes all steps: the host knows what the device knows then. Raises as `catch_up`."""
        if not self._taken:
            return
        while self._taken:
            self._take_first()
        placed = self._memory.placed
        for S, group in zip(self.session.scales, self._active, strict=True):
            placed.update(dict.fromkeys(group, min(S, self._cap)))

    def _send(self, base_lr: float | None) -> None:
        report = self._tuner.report
        host = self._room.pop() if self._room else torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        host.copy_(report, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(report.device))
        self._taken.append(_Taken(host, arrived, base_lr))
        _behind.add(self)

    def _take_first(self) -> None:
        taken = self._taken.popleft()
        if not self._taken:
            _behind.discard(self)
        try:
            taken.arrived.synchronize()
            rows = taken.report.tolist()
            self._room.append(taken.report)
            here = self._take([Reductions(*row[:4]) for row in rows], taken.base_lr)
            there = tuple(row[4] for row in rows)
            if there != here:
                raise StepConflict(
                    "SCALE_MISMATCH",
                    f"the device computes S = {list(there[:3])}, the host {list(here[:3])}; they must be equal bit for bit: "
                    "pass ahead=False to mechanize(), so that the tuner runs on the host alone, and report this device",
                )
        except BaseException:
            self._taken.clear()
            _behind.discard(self)
            raise

    def _take(self, reductions: list[Reductions], base_lr: float | None) -> tuple[float, ...]:
        step = Step(self.session, None, reductions, base_lr, hold=False)
        step.begin()
        return tuple(step.finish())


_behind: set[Ahead] = set()


@atexit.register
def _finish() -> None:
    """A program that ends without close(): its sessions are closed after this, and should have every step."""
    for ahead in list(_behind):
        with contextlib.suppress(MechanicdError, RuntimeError):
            ahead.settle()
