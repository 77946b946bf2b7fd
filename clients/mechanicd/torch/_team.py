"""The processes that train one model together: who they are, what they add up, and what the leader tells the others.

A step has two collectives: all_reduce of the sums, and a broadcast of S from the first rank, the leader. With the sums travels
what shows that all ranks are still in the same training (`_Tail`), so a rank that has left it, or failed, is found at no cost.
"""

import contextlib
import json
import math
import time
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, Final, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mechanicd.client import InvalidArgument, SessionError, StepConflict
from mechanicd.torch import _fingerprint
from mechanicd.torch._fingerprint import Fingerprint
from mechanicd.torch._meeting import LEADER, Absent, Meetings, StoreLost
from mechanicd.tuner import Reductions

Distributed: TypeAlias = Literal["parts"] | Literal[False] | None
"""Who trains together: None, ranks that hold replicas or DTensor shards of one model; "parts", ranks that hold different parts
of one; False, nobody."""

_TAKEN, _HELD, _FAILED = 0.0, 1.0, 2.0
"""How the leader's step went: the first value of its broadcast."""

_NOTHING: Final = Reductions(0.0, 0.0, 0.0, 0.0)

_PATIENCE: Final = 2.0
"""Seconds after which a rank that waits says so in the store."""

_DRIFT: Final = 1e-3
"""Relative difference of ‖g‖² or ‖x‖² from which replicas count as different. Two devices' sums differ by less than 1e-5."""

_CHOICES: Final = (
    "Pass distributed=False if each rank trains a model of its own, process_group= to name the ranks that train together, or "
    'distributed="parts" if each rank holds a part of one model'
)


@dataclass(frozen=True)
class Together:
    """What `mechanize` was told about who trains together.

    Attributes:
        distributed: see `Distributed`.
        group: the process group; None is the default one.
        timeout: seconds to wait for the other ranks.
    """

    distributed: Distributed = None
    group: Any = None
    timeout: float = 60.0

    def check(self) -> None:
        """Checks the settings.

        Raises:
            InvalidArgument: INVALID_SETTING.
        """
        wrong = None
        if self.distributed not in (None, False, "parts") or (isinstance(self.distributed, int) and self.distributed):
            wrong = f'distributed={self.distributed!r}; choose None, False or "parts"'
        elif self.group is not None and self.distributed is False:
            wrong = "distributed=False trains alone, and process_group= names others; pass one of them"
        elif self.group is not None and (not isinstance(self.group, dist.ProcessGroup) or dist.get_rank(self.group) < 0):
            wrong = f"process_group={self.group!r} is not a process group of which this process is a member"
        elif not self.timeout > 0.0:
            wrong = f"rank_timeout={self.timeout!r}; give seconds, a number above 0"
        if wrong is not None:
            raise InvalidArgument("INVALID_SETTING", wrong)

    def team(self) -> "Team | None":
        """The processes that train together now, or None if this one trains alone."""
        if self.distributed is False or not dist.is_available() or not dist.is_initialized():
            return None
        return None if dist.get_world_size(self.group) == 1 else Team(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Together":
        return self  # a copy of an optimizer trains with the same processes


@dataclass(frozen=True)
class Stand:
    """Where a rank stands before a step; equal on all ranks.

    Attributes:
        step: t − 1.
        scales: S of each scale group. In a session S is compared at the end of each step, so they count where one opens.
        opening: whether the rank opens a session with this step.
        frozen: whether S is frozen.
        cap: the largest S with which parameters are placed.
        failures: steps in which BASE failed.
    """

    step: int
    scales: tuple[float, ...]
    opening: bool
    frozen: bool
    cap: float
    failures: int

    def mark(self, asks: bool) -> int:
        """20 bits: the sum of the squares of 8,000 ranks' is still exact in float64."""
        numbers = array("d", [self.step, self.opening, self.frozen, self.cap, self.failures, asks])
        if self.opening:
            numbers.extend(self.scales)
        return zlib.crc32(numbers.tobytes()) >> 12

    def told(self) -> dict[str, object]:
        """For people."""
        opening = f"one starts at S = {list(self.scales[:3])}" if self.opening else "open"
        names = ("step", "session", "frozen", "max_scale", "steps in which BASE failed")
        return dict(zip(names, (self.step, opening, self.frozen, self.cap, self.failures), strict=True))


class Team:
    """The processes that train one model.

    Attributes:
        rank: this process's rank in the group.
        leads: whether it is the leader, which talks to the server.
        met: whether the ranks have found that they train one model.
    """

    def __init__(self, together: Together) -> None:
        group = together.group
        self._group = group
        self._parts = together.distributed == "parts"
        self._timeout = together.timeout
        self._there: Any = dist.group.WORLD if group is None else group
        self.rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self.leads = self.rank == LEADER
        self.met = False
        # NCCL moves only GPU tensors.
        nccl = "nccl" in str(dist.get_backend(group))
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self._can_time_out = not nccl
        self._meetings = Meetings(group, together.timeout)
        self._collectives = 0
        self._replicas = False
        self._held_before = WeakTensorKeyDictionary()
        self._broken: SessionError | None = None

    # ---- who is there

    def is_current(self) -> bool:
        """Whether the process group is still there."""
        if not dist.is_initialized():
            return False
        return self._there is dist.group.WORLD if self._group is None else self._there in dist.distributed_c10d._world.pg_map

    def meet(self, params: Sequence[Tensor], settings: Mapping[str, object]) -> None:
        """Before the first step: the ranks compare what they hold. Nothing has changed yet.

        While all gradients are 0 they can't be compared, and the ranks meet again at the next step.

        Args:
            params: the parameters, in BASE's order.
            settings: what all ranks must share.

        Raises:
            InvalidArgument: RANKS_DIFFER, on every rank.
            SessionError: RANKS_MISSING.
        """
        meshes = self._foreign_mesh(params)
        mine = _fingerprint.take(params, {**settings, "meshes": meshes or "of the group's ranks"}, self._parts)

        def decide(said: list[str]) -> tuple[str, bool]:
            ranks = [Fingerprint.loads(text) for text in said]
            differ = _fingerprint.other_settings(ranks) if self._parts else _fingerprint.differences(ranks)
            if meshes and not self._parts:
                differ = [meshes]
            held = _fingerprint.held_before(ranks) if self._parts else []
            return _answer(differ, met=_fingerprint.tells(ranks), held=held), bool(differ)

        answer = self._meeting(mine.dumps(), decide, "the first step")
        if answer["differ"]:
            raise InvalidArgument(
                "RANKS_DIFFER",
                f"the ranks of the process group do not hold replicas or shards of one model: {_few(answer['differ'])}. "
                f"{_CHOICES}; average the gradients over the ranks before step() if they hold replicas"
                if not self._parts
                else f"the ranks that hold parts of one model must share their settings: {_few(answer['differ'])}",
            )
        self.met = answer["met"]
        self._replicas = not self._parts and not any(hasattr(p, "device_mesh") for p in params)
        if self._parts:
            self._held_before = WeakTensorKeyDictionary({params[i]: True for i in answer["held"][self.rank]})

    def counts(self, p: Any) -> bool:
        """Whether this rank counts what it holds of a parameter, a whole one."""
        if p in self._held_before:
            return False
        mesh = getattr(p, "device_mesh", None)
        if mesh is None:
            return self._parts or self.leads
        coordinate = mesh.get_coordinate() or [1] * len(p.placements)
        return all(at == 0 for at, placement in zip(coordinate, p.placements, strict=True) if placement.is_replicate())

    def _foreign_mesh(self, params: Sequence[Any]) -> str:
        """What is wrong with the DTensors' meshes, unless the ranks hold parts."""
        mine = set(dist.get_process_group_ranks(self._there))
        for p in params:
            mesh = getattr(p, "device_mesh", None)
            ranks = mine if mesh is None else set(mesh.mesh.flatten().tolist())
            if ranks != mine and not self._parts:
                return (
                    f"a parameter of shape {tuple(p.shape)} is spread over the ranks {sorted(ranks)}, and the process group "
                    f"has the ranks {sorted(mine)}"
                )
        return ""

    # ---- the step

    def sum(self, mine: Sequence[Reductions], others: Reductions, stand: Stand, active: bool) -> tuple[list[Reductions], bool]:
        """The sums over the whole model from each rank's part; the same bits on every rank.

        Args:
            mine: what this rank counts of each scale group.
            others: of all that it holds, what other ranks count.
            active: whether a parameter takes part on this rank.

        Returns:
            The sums of each scale group, and whether a parameter takes part on any rank.

        Raises:
            SessionError: RANK_FAILED, RANKS_DIFFER, RANKS_MISSING; on every rank that comes.
        """
        g, x = (others[field] + sum(part[field] for part in mine) for field in (2, 3))
        return self._agree(mine, stand, active, g, x)

    def any(self, fact: bool, stand: Stand) -> bool:
        """Whether it is so on any rank; raises as `sum`."""
        return self._agree([_NOTHING] * len(stand.scales), stand, fact)[1]

    def report_failure(self, stand: Stand) -> None:
        """Instead of `sum`, for a rank whose step fails before: the others fail too instead of waiting."""
        tail = [0.0, 1.0, self.rank + 1.0, *[0.0] * 6]
        with contextlib.suppress(Exception):  # the rank's own error is the one to see
            self._all_reduce([*[0.0] * (4 * len(stand.scales)), *tail], stand.step)

    def _agree(
        self, mine: Sequence[Reductions], stand: Stand, fact: bool, g: float | None = None, x: float = 0.0
    ) -> tuple[list[Reductions], bool]:
        """Sums, whether a fact holds on any rank, and checks that all ranks stand at the same place; one all_reduce."""
        mark = float(stand.mark(asks=g is None))
        g = g or 0.0
        found = self._all_reduce(
            [*chain.from_iterable(mine), float(fact), 0.0, 0.0, mark, mark * mark, g, g * g, x, x * x], stand.step
        )
        end = 4 * len(mine)
        anyone, failed, whose, marks, squares, *norms = found[end:]
        if failed:
            who = f"rank {int(whose) - 1}" if failed == 1 else f"{int(failed)} ranks"
            raise SessionError("RANK_FAILED", f"step {stand.step + 1} failed at {who} before BASE ran; see the error there")
        differ = self._world * int(squares) != int(marks) ** 2
        drifted = self._replicas and not (_alike(norms[0], norms[1], self._world) and _alike(norms[2], norms[3], self._world))
        if differ or drifted:
            sizes = {"‖g‖": f"{math.sqrt(g):.4g}", "‖x‖": f"{math.sqrt(x):.6g}"} if drifted else {}
            self._say_who_differs({**stand.told(), **sizes})
        return [Reductions(*found[i : i + 4]) for i in range(0, end, 4)], anyone > 0.0

    def announce(self, scales: Sequence[float], held: bool) -> None:
        """For the leader: sends S_{t+1}, and whether the tuner did not see the step."""
        self._broadcast([_HELD if held else _TAKEN, *scales], len(scales))

    def announce_failure(self, groups: int) -> None:
        """For the leader: its step failed, so the others fail too instead of waiting."""
        with contextlib.suppress(Exception):  # the leader's own error is the one to see
            self._broadcast([_FAILED, *[0.0] * groups], groups)

    def await_leader(self, groups: int) -> tuple[tuple[float, ...], bool]:
        """For the others: what the leader announced.

        Raises:
            SessionError: LEADER_FAILED, RANKS_MISSING.
        """
        status, *scales = self._broadcast(None, groups)
        if status == _FAILED:
            raise SessionError("LEADER_FAILED", f"the step failed at rank {LEADER}, which talks to the server; see its error")
        return tuple(scales), status == _HELD

    def check(self, mine: tuple[float, ...], leaders: tuple[float, ...]) -> None:
        """Checks that this rank's S equals the leader's, bit for bit.

        Raises:
            StepConflict: SCALE_MISMATCH.
        """
        if mine != leaders:
            raise StepConflict(
                "SCALE_MISMATCH",
                f"rank {self.rank} computes S = {list(mine[:3])}, but rank {LEADER} {list(leaders[:3])}; they must be equal "
                "bit for bit. Check that all ranks start from the same checkpoint",
            )

    # ---- the collectives, and what ends them

    def _all_reduce(self, values: Sequence[float], step: int) -> list[float]:
        self._check()
        message = torch.tensor(values, dtype=torch.float64, device=self._device)
        work = self._there.allreduce([message], self._bounded(dist.AllreduceOptions()))  # whose default is a sum
        return self._wait(work, message, f"step {step + 1}")

    def _broadcast(self, values: Sequence[float] | None, groups: int) -> list[float]:
        self._check()
        message = torch.zeros(groups + 1, dtype=torch.float64, device=self._device)
        if values is not None:
            message.copy_(torch.tensor(values, dtype=torch.float64))
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = LEADER, 0
        return self._wait(self._there.broadcast([message], self._bounded(options)), message, "the end of a step")

    def _bounded(self, options: Any) -> Any:
        """The collective with a time-out of its own. In gloo a pending one holds up even the end of the process."""
        if self._can_time_out:
            options.timeout = timedelta(seconds=self._timeout)
        return options

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken
        if not self.is_current():
            raise SessionError(
                "PROCESS_GROUP_LOST",
                "the process group in which this training began was destroyed; load a checkpoint to continue in a new one",
            )

    def _wait(self, work: Any, message: Tensor, where: str) -> list[float]:
        """What a collective brings. It waits for `rank_timeout` at most, but with NCCL for the group's own time-out."""
        self._collectives += 1
        if not self._can_time_out:
            work.wait()
        elif not self._comes(work, _PATIENCE):
            place, began = f"{self._collectives}", time.monotonic()
            with contextlib.suppress(RuntimeError, StoreLost):
                self._meetings.wait_for(place)
            try:
                work.wait(timedelta(seconds=self._timeout + _PATIENCE))
            except RuntimeError as error:
                late = time.monotonic() - began + 2 * _PATIENCE > self._timeout
                why = f" within {self._timeout:g} s" if late else f"; a connection broke: {str(error).partition('. ')[0]}"
                self._say_who_is_missing(where, place, why)
        found: list[float] = message.tolist()
        return found

    def _comes(self, work: Any, seconds: float) -> bool:
        """Whether a collective ends well within so many seconds."""
        try:
            work.wait(timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return True

    def _say_who_is_missing(self, where: str, place: str, why: str) -> None:
        try:
            self._meetings.wait_for(place)
            missing = self._meetings.missing_at(place, _PATIENCE)
        except (RuntimeError, StoreLost):
            missing = []
        self._broken = self._missing(missing, where, why)
        raise self._broken

    def _missing(self, ranks: Sequence[int], where: str, why: str) -> SessionError:
        names = [rank if self._group is None else dist.get_global_rank(self._group, rank) for rank in ranks]
        who = f"rank{'s' * (len(names) > 1)} {', '.join(map(str, names[:8]))}{' …' * (len(names) > 8)}" if names else "a rank"
        return SessionError(
            "RANKS_MISSING",
            f"{who} did not come to {where}{why}. Every rank of the process group must call step() equally often, also where "
            f"none of its parameters take part. {_CHOICES}; rank_timeout= if a rank may be slower",
            {"ranks": ",".join(map(str, names))},
        )

    def _say_who_differs(self, facts: Mapping[str, object]) -> None:
        mine = Fingerprint({name: str(value) for name, value in facts.items()}, "", {}, [])

        def decide(said: list[str]) -> tuple[str, bool]:
            return _answer(_fingerprint.differences([Fingerprint.loads(text) for text in said]), met=True), True

        differ = self._meeting(mine.dumps(), decide, "the comparison of the ranks")["differ"]
        self._broken = SessionError(
            "RANKS_DIFFER",
            f"the ranks no longer train one model: {_few(differ)}. Load checkpoints, set `frozen` and `max_scale` and change "
            "weights on all ranks alike; then start again from a checkpoint",
        )
        raise self._broken

    def _meeting(self, said: str, decide: Any, where: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._meetings.hold(said, decide))
        except Absent as absent:
            raise self._missing(absent.ranks, where, f" within {self._timeout:g} s") from None
        except StoreLost as lost:
            raise self._missing([], where, f"; the process that holds the group's store has ended: {lost}") from None
        return answer


def _answer(differ: Sequence[str], *, met: bool, held: Sequence[Sequence[int]] = ()) -> str:
    return json.dumps({"differ": list(differ), "met": met, "held": list(held)})


def _few(lines: Sequence[str]) -> str:
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


def _alike(total: float, squares: float, world: int) -> bool:
    """Whether numbers are equal but for rounding, from their sum and that of their squares. NaN and infinity are for later."""
    if not math.isfinite(total) or not math.isfinite(squares):
        return True
    return world * squares <= total * total * (1.0 + _DRIFT * _DRIFT / world)
