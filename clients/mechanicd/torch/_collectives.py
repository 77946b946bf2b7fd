"""Collectives of a few numbers that end in bounded time, with an error that names the ranks that did not come.

A process group alone waits for as long as its time-out, often half an hour. With gloo each collective gets its own time-out,
in connections of their own: in the user's group a rank that skips a step would bring DDP's gradients to our sums, and gloo ends
a process where sizes differ. With NCCL both go through the user's group: a second communicator costs memory on the device, and
where the kernels of two meet in another order on two ranks, they block each other. There the wait is on the device, and NCCL's
watchdog ends the process after the group's time-out.
"""

import contextlib
import json
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from mechanicd.client import SessionError
from mechanicd.torch._meeting import LEADER, Absent, Meetings, StoreLost

__all__ = ["CHOICES", "LEADER", "Collectives"]

CHOICES: Final = (
    "Pass distributed=False if each rank trains a model of its own, process_group= to name the ranks that train together, or "
    'distributed="parts" if each rank holds a part of one model'
)
"""What a user may have meant."""

_PATIENCE: Final = 1.0
"""Seconds after which a rank that waits says so in the store, and again looks for an interrupt."""

_GRACE: Final = 2.0
"""Seconds for the other ranks to say that they wait too."""


class Collectives:
    """The collectives of one group.

    Args:
        group: the process group; None is the default one.
        timeout: seconds to wait for the other ranks.

    Attributes:
        rank: this process's rank in the group.
        ranks: the global ranks of the group.
        broken: what every further collective raises; None while all is well.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self._group = group
        self._timeout = timeout
        self._there: Any = dist.group.WORLD if group is None else group
        self.rank, self.ranks = dist.get_rank(group), dist.get_process_group_ranks(self._there)
        backend = str(dist.get_backend(group))
        # NCCL moves only GPU tensors.
        self._nccl = "nccl" in backend
        self._gloo = not self._nccl and ("gloo" in backend or backend == "undefined") and dist.is_gloo_available()
        self._own: list[Any] = []
        weakref.finalize(self, self._own.clear)  # gloo's threads end before Python does
        self._device = torch.device("cuda", torch.cuda.current_device()) if self._nccl else torch.device("cpu")
        self._meetings = Meetings(group, timeout)
        self._count = 0
        self.broken: SessionError | None = None

    def has_group(self) -> bool:
        """Whether the process group is still there."""
        if not dist.is_initialized():
            return False
        return self._there is dist.group.WORLD if self._group is None else self._there in dist.distributed_c10d._world.pg_map

    def connect(self) -> None:
        """Connects the ranks by themselves, with gloo; once, after they have met.

        This is no `new_group`, which all ranks of the default group have to call, and in the same order.

        Raises:
            SessionError: RANKS_MISSING.
        """
        if self._own or not self._gloo:
            return
        try:
            store = self._meetings.private_store()
            if store is not None:
                timeout = timedelta(seconds=self._timeout)
                self._own.append(dist.ProcessGroupGloo(store, self.rank, len(self.ranks), timeout))
        except RuntimeError as error:
            raise self._missing([], "the first step", f"; they can't be connected: {str(error).partition('. ')[0]}") from None

    @property
    def _connections(self) -> Any:
        return self._own[0] if self._own else self._there

    def all_reduce(self, values: Sequence[float], step: int) -> list[float]:
        """The sums of so many float64 over the ranks, the same bits on all of them.

        Args:
            step: t − 1, for the error.

        Raises:
            SessionError: RANKS_MISSING, PROCESS_GROUP_CHANGED.
        """
        self._check()
        message = torch.tensor(values, dtype=torch.float64, device=self._device)
        if self._nccl:
            dist.all_reduce(message, group=self._group)
            return _listed(message)
        options = dist.AllreduceOptions()  # whose default is a sum
        options.timeout = timedelta(seconds=self._timeout)
        return self._wait(self._connections.allreduce([message], options), message, f"step {step + 1}")

    def broadcast(self, values: Sequence[float] | None, size: int) -> list[float]:
        """What the leader gives, so many float64; the others give None. Raises as `all_reduce`."""
        self._check()
        message = torch.zeros(size, dtype=torch.float64, device=self._device)
        if values is not None:
            message.copy_(torch.tensor(values, dtype=torch.float64))
        if self._nccl:
            dist.broadcast(message, self.ranks[LEADER], self._group)
            return _listed(message)
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = LEADER, 0, timedelta(seconds=self._timeout)
        return self._wait(self._connections.broadcast([message], options), message, "the end of a step")

    def meet(self, said: str, decide: Callable[[list[str]], tuple[str, bool]], where: str) -> dict[str, Any]:
        """The answer to what all ranks say; see `Meetings.hold`.

        Raises:
            SessionError: RANKS_MISSING.
        """
        try:
            answer: dict[str, Any] = json.loads(self._meetings.hold(said, decide))
        except Absent as absent:
            raise self._missing(absent.ranks, where, f" within {self._timeout:g} s") from None
        except StoreLost as lost:
            raise self._missing([], where, f"; the process that holds the group's store has ended: {lost}") from None
        return answer

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken
        if not self.has_group():
            raise SessionError(
                "PROCESS_GROUP_CHANGED",
                "the process group in which this training began was destroyed; load a checkpoint to continue in a new one",
            )

    def _wait(self, work: Any, message: Tensor, where: str) -> list[float]:
        """What a collective brings, which has a time-out of its own: in gloo a pending one holds up the end of the process."""
        self._count += 1
        began, place = time.monotonic(), f"{self._count}"
        while (error := _error(work)) is not None:
            with contextlib.suppress(RuntimeError, StoreLost):
                self._meetings.wait_for(place)
            if work.is_completed():
                late = time.monotonic() - began > 0.9 * self._timeout
                why = f" within {self._timeout:g} s" if late else f"; a connection broke: {str(error).partition('. ')[0]}"
                self._say_who_is_missing(where, place, why)
        return _listed(message)

    def _say_who_is_missing(self, where: str, place: str, why: str) -> None:
        try:
            self._meetings.wait_for(place)
            missing = self._meetings.missing_at(place, _GRACE)
        except (RuntimeError, StoreLost):
            missing = []
        self.broken = self._missing(missing, where, why)
        raise self.broken

    def _missing(self, ranks: Sequence[int], where: str, why: str) -> SessionError:
        names = [self.ranks[rank] for rank in ranks]
        who = f"rank{'s' * (len(names) > 1)} {', '.join(map(str, names[:8]))}{' …' * (len(names) > 8)}" if names else "a rank"
        return SessionError(
            "RANKS_MISSING",
            f"{who} did not come to {where}{why}. Every rank of the process group must call step() equally often, also where "
            f"none of its parameters take part. {CHOICES}; rank_timeout= if a rank may be slower",
            {"ranks": ",".join(map(str, names))},
        )


def _error(work: Any) -> RuntimeError | None:
    """Waits for a collective for a short while, since nothing interrupts that: what ended the wait, or None for success."""
    try:
        work.wait(timedelta(seconds=_PATIENCE))
    except RuntimeError as error:
        return error
    return None


def _listed(message: Tensor) -> list[float]:
    found: list[float] = message.tolist()
    return found
