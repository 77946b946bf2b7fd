"""Steps that a CUDA device takes before the host has their sums, so that the host can keep enqueueing while the device works.

The device runs the tuner itself (`_triton_tuner`) and places the parameters with its S. A report of each step follows to the
host, which takes the same step with its session, at most `MAX_IN_FLIGHT` steps later or when somebody asks for S. Both tuners
must give the same bits; `_step.Stepper._async_step` takes such a step.
"""

import atexit
import contextlib
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mechanicd.client import MechanicdError, Session, StepConflict
from mechanicd.client.framework import do_later
from mechanicd.torch._distributed import TunerStep
from mechanicd.torch._memory import Memory
from mechanicd.tuner import Reductions

MAX_IN_FLIGHT: Final = 2
"""Steps by which the host may lag behind the device."""
CONVENTIONS: Final = ("paper", "pytorch")
"""The conventions that `_triton_tuner` implements."""
NOT_SUPPORTED: Final = ("optax", "theory")
"""Those that it does not; their steps wait for the host's tuner."""


@dataclass
class _Report:
    """A step that the device has taken, or will take: its sums and S_{t+1} on the way to the host.

    Attributes:
        values: float64 (G, 5) in pinned memory; valid once `arrived`, a CUDA event, has completed.
        base_lr: BASE's learning rate at that step.
    """

    values: Tensor
    arrived: Any
    base_lr: float | None


class AsyncDevice:
    """A stretch of steps that are alike: the same parameters take part, and all of them are placed at the session's S.

    Args:
        session: takes each step on the host; the device starts at its tuner's state.
        active: per scale group, the parameters that take part.
        cap: parameters are placed with no larger S.

    Attributes:
        tuner: the device's.
    """

    def __init__(self, session: Session, memory: Memory, active: Sequence[Sequence[Tensor]], cap: float) -> None:
        from mechanicd.torch._triton_tuner import DeviceTuner

        self._session = session
        self._memory = memory
        self._active = active
        self._cap = cap
        self._key = [list(map(id, group)) for group in active]
        self.tuner = DeviceTuner(next(p.device for group in active for p in group), session.config, cap)
        self.tuner.load(session.state)
        self._in_flight: deque[_Report] = deque()
        self._free_buffers: list[Tensor] = []
        _devices.add(self)

    def __del__(self) -> None:
        """Nobody closed the optimizer: its last steps still reach the session, which is closed after that."""
        if getattr(self, "_in_flight", None):
            do_later(self.settle)

    def fits(self, session: Session | None, active: Sequence[Sequence[Tensor]], cap: float) -> bool:
        """Whether a step belongs to this stretch."""
        return session is self._session and cap == self._cap and [list(map(id, group)) for group in active] == self._key

    def send_report(self, base_lr: float | None) -> None:
        """Enqueues the copy of the last step's report to the host, after `tuner.advance`. Does not wait."""
        report = self.tuner.report
        if self._free_buffers:
            host = self._free_buffers.pop()
        else:
            host = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        host.copy_(report, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(report.device))
        self._in_flight.append(_Report(host, arrived, base_lr))

    def catch_up(self) -> None:
        """Takes the steps whose reports have arrived, and waits for those that are too far behind.

        Raises:
            SessionError: the session refuses a step, or the device computes other bits; later reports are dropped.
        """
        while self._in_flight and (len(self._in_flight) >= MAX_IN_FLIGHT or self._in_flight[0].arrived.query()):
            self._take_oldest()

    def settle(self) -> None:
        """Takes all steps in flight: afterwards the host knows what the device knows. Raises as `catch_up`."""
        if not self._in_flight:
            return
        while self._in_flight:
            self._take_oldest()
        # During the stretch only the device knew S. The other paths need to know where each parameter was placed.
        placed = self._memory.placed
        for S, group in zip(self._session.scales, self._active, strict=True):
            placed.update(dict.fromkeys(group, min(S, self._cap)))

    def take(self, sums: list[Reductions], base_lr: float | None) -> tuple[float, ...]:
        """Takes one step on the host; S_{t+1} before the cap."""
        step = TunerStep(self._session, None, sums, base_lr, hold=False)
        step.begin()
        return tuple(step.finish())

    def _take_oldest(self) -> None:
        report = self._in_flight.popleft()
        try:
            report.arrived.synchronize()
            rows = report.values.tolist()
            self._free_buffers.append(report.values)
            host = self.take([Reductions(*row[:4]) for row in rows], report.base_lr)
            device = tuple(row[4] for row in rows)
            if device != host:
                raise StepConflict(
                    "SCALE_MISMATCH",
                    f"the device computes S = {list(device[:3])}, but the host {list(host[:3])}; they must have equal bits. "
                    "Pass ahead=False to mechanize(), so that only the host runs the tuner, and report this device",
                )
        except BaseException:
            self._in_flight.clear()
            raise


_devices: weakref.WeakSet[AsyncDevice] = weakref.WeakSet()


@atexit.register
def _settle_all() -> None:
    """For a program that ends without close(): its sessions are closed after this, and should have every step."""
    for device in list(_devices):
        with contextlib.suppress(MechanicdError, RuntimeError):
            device.settle()
