"""The processes that train one model together: who they are, what they add up, and what the leader tells the others.

A step has two collectives: all_reduce of the sums, and a broadcast of S from the first rank, the leader. With the sums travels
what shows that all ranks are still in the same training (`Stand`), so a rank that has left it, or failed, is found at no cost.
"""

import contextlib
import json
import math
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mechanicd.client import InvalidArgument, SessionError, StepConflict
from mechanicd.torch import _fingerprint
from mechanicd.torch._collectives import CHOICES, LEADER, Collectives
from mechanicd.torch._fingerprint import Fingerprint
from mechanicd.tuner import Reductions

_TAKEN, _HELD, _FAILED = 0.0, 1.0, 2.0
"""How the leader's step went: the first value of its broadcast."""

_NOTHING: Final = Reductions(0.0, 0.0, 0.0, 0.0)

_DRIFT: Final = 1e-3
"""Relative difference of ‖g‖² or ‖x‖² from which replicas count as different. Two devices' sums differ by less than 1e-5."""


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
        lrs: of replicas and shards the lr of each param group; () where parts may have their own.
    """

    step: int
    scales: tuple[float, ...]
    opening: bool
    frozen: bool
    cap: float
    failures: int
    lrs: tuple[float, ...]

    def mark(self, asks: bool) -> int:
        """20 bits: the sum of the squares of 8,000 ranks' is still exact in float64."""
        numbers = array("d", [self.step, self.opening, self.frozen, self.cap, self.failures, asks, *self.lrs])
        if self.opening:
            numbers.extend(self.scales)
        return zlib.crc32(numbers.tobytes()) >> 12

    def told(self) -> dict[str, object]:
        """For people."""
        opening = f"one starts at S = {list(self.scales[:3])}" if self.opening else "open"
        names = ("step", "session", "frozen", "max_scale", "lr", "steps in which BASE failed")
        return dict(zip(names, (self.step, opening, self.frozen, self.cap, list(self.lrs), self.failures), strict=True))


class Team:
    """The processes that train one model.

    Args:
        group: their process group; None is the default one.
        parts: whether they hold different parts of it.
        timeout: seconds to wait for the other ranks.

    Attributes:
        rank: this process's rank in the group.
        leads: whether it is the leader, which talks to the server.
        met: whether the ranks have found that they train one model.
    """

    def __init__(self, group: Any, parts: bool, timeout: float) -> None:
        self._parts = parts
        self._collectives = Collectives(group, timeout)
        self.rank = self._collectives.rank
        self.leads = self.rank == LEADER
        self.met = False
        self._replicas = False
        self._held_before = WeakTensorKeyDictionary()

    # ---- who is there

    def is_current(self) -> bool:
        """Whether it can go on: the process group is still there, and all ranks are still in one training."""
        return self._collectives.broken is None and self._collectives.has_group()

    def meet(self, params: Sequence[Tensor], settings: Mapping[str, object], run: Sequence[str]) -> list[str]:
        """Before the first step: the ranks compare what they hold. Nothing has changed yet.

        While all gradients are 0 they can't be compared, and the ranks meet again at the next step.

        Args:
            params: the parameters, in BASE's order.
            settings: what all ranks must share.
            run: the run's name, and what else tells which it is; the leader's hold for all.

        Returns:
            The leader's `run`.

        Raises:
            InvalidArgument: RANKS_DIFFER, on every rank.
            SessionError: RANKS_MISSING.
        """
        meshes = self._foreign_mesh(params)
        told = {"meshes": meshes or "of the group's ranks", "run": json.dumps(run) if self.leads else _fingerprint.ANY}
        mine = _fingerprint.take(params, {**settings, **told}, self._parts)

        compare = _fingerprint.other_settings if self._parts else _fingerprint.differences

        def decide(said: list[str]) -> tuple[str, bool]:
            ranks = [Fingerprint.loads(text) for text in said]
            differ = compare(ranks, self._collectives.ranks)
            if meshes and not self._parts:
                differ = [meshes]
            held = _fingerprint.held_before(ranks) if self._parts else []
            leaders = json.loads(ranks[LEADER].settings["run"])
            return _answer(differ, met=_fingerprint.tells(ranks), held=held, run=leaders), bool(differ)

        answer = self._collectives.meet(mine.dumps(), decide, "the first step, or the first after a new scale group,")
        if answer["differ"]:
            raise InvalidArgument(
                "RANKS_DIFFER",
                f"the ranks of the process group do not hold replicas or shards of one model: {_few(answer['differ'])}. "
                f"{CHOICES}; average the gradients over the ranks before step() if they hold replicas"
                if not self._parts
                else f"the ranks that hold parts of one model must share their settings: {_few(answer['differ'])}",
            )
        self._collectives.connect()
        self.met = answer["met"]
        self._replicas = not self._parts and not any(hasattr(p, "device_mesh") for p in params)
        if self._parts:
            self._held_before = WeakTensorKeyDictionary({params[i]: True for i in answer["held"][self.rank]})
        leaders: list[str] = answer["run"]
        return leaders

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
        mine = set(self._collectives.ranks)
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
            self._collectives.all_reduce([*[0.0] * (4 * len(stand.scales)), *tail], stand.step)

    def _agree(
        self, mine: Sequence[Reductions], stand: Stand, fact: bool, g: float | None = None, x: float = 0.0
    ) -> tuple[list[Reductions], bool]:
        """Sums, whether a fact holds on any rank, and checks that all ranks stand at the same place; one all_reduce."""
        mark = float(stand.mark(asks=g is None))
        g = g or 0.0
        found = self._collectives.all_reduce(
            [*chain.from_iterable(mine), float(fact), 0.0, 0.0, mark, mark * mark, g, g * g, x, x * x], stand.step
        )
        end, ranks = 4 * len(mine), self._collectives.ranks
        anyone, failed, whose, marks, squares, *norms = found[end:]
        if failed:
            raise failure(failed, whose, ranks, stand.step + 1)
        differ = len(ranks) * int(squares) != int(marks) ** 2
        drifted = self._replicas and not (_alike(norms[0], norms[1], len(ranks)) and _alike(norms[2], norms[3], len(ranks)))
        if differ or drifted:
            sizes = {"‖g‖": f"{math.sqrt(g):.4g}", "‖x‖": f"{math.sqrt(x):.6g}"} if drifted else {}
            self._say_who_differs({**stand.told(), **sizes})
        return [Reductions(*found[i : i + 4]) for i in range(0, end, 4)], anyone > 0.0

    def announce(self, scales: Sequence[float], held: bool) -> None:
        """For the leader: sends S_{t+1}, and whether the tuner did not see the step."""
        self._collectives.broadcast([_HELD if held else _TAKEN, *scales], 1 + len(scales))

    def announce_failure(self, groups: int) -> None:
        """For the leader: its step failed, so the others fail too instead of waiting."""
        with contextlib.suppress(Exception):  # the leader's own error is the one to see
            self._collectives.broadcast([_FAILED, *[0.0] * groups], 1 + groups)

    def await_leader(self, groups: int) -> tuple[tuple[float, ...], bool]:
        """For the others: what the leader announced.

        Raises:
            SessionError: LEADER_FAILED, RANKS_MISSING.
        """
        status, *scales = self._collectives.broadcast(None, 1 + groups)
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

    def _say_who_differs(self, facts: Mapping[str, object]) -> None:
        mine = Fingerprint({name: str(value) for name, value in facts.items()}, "", {}, [])

        def decide(said: list[str]) -> tuple[str, bool]:
            ranks = [Fingerprint.loads(text) for text in said]
            return _answer(_fingerprint.differences(ranks, self._collectives.ranks), met=True), True

        differ = self._collectives.meet(mine.dumps(), decide, "the comparison of the ranks")["differ"]
        self._collectives.broken = SessionError(
            "RANKS_DIFFER",
            f"the ranks no longer train one model: {_few(differ)}. Load checkpoints, set lr, `frozen` and `max_scale` and "
            "change weights on all ranks alike. To continue, load one checkpoint on all of them",
        )
        raise self._collectives.broken


def _answer(differ: Sequence[str], *, met: bool, held: Sequence[Sequence[int]] = (), run: Sequence[str] = ()) -> str:
    return json.dumps({"differ": list(differ), "met": met, "held": list(held), "run": list(run)})


def _few(lines: Sequence[str]) -> str:
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


def _alike(total: float, squares: float, world: int) -> bool:
    """Whether numbers are equal but for rounding, from their sum and that of their squares. NaN and infinity are for later."""
    if not math.isfinite(total) or not math.isfinite(squares):
        return True
    return world * squares <= total * total * (1.0 + _DRIFT * _DRIFT / world)


def failure(failed: float, whose: float, ranks: Sequence[int], step: int) -> SessionError:
    """Why a step can't be taken: ranks failed in it, or what came is no step of theirs.

    With NCCL our collectives share the trainer's process group. Where a rank has skipped a step, they meet another, say of
    gradients, and what both get is noise.

    Args:
        failed: how many ranks say that they failed.
        whose: the sum of their ranks in the group, counted from 1.
    """
    there = range(1, len(ranks) + 1)
    if failed not in there or (failed == 1 and whose not in there):
        return SessionError(
            "RANKS_MISSING",
            f"step {step}: what came from the other ranks is no step of theirs. A rank has skipped a step, or calls "
            "collectives that the others don't; call step() equally often on every rank, and load a checkpoint",
        )
    who = f"rank {ranks[int(whose) - 1]}" if failed == 1 else f"{int(failed)} ranks"
    return SessionError("RANK_FAILED", f"step {step} failed at {who} before BASE ran; see the error there")
