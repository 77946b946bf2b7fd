"""Several processes that train one model: they add up their parts of the four sums, and one of them talks to the server.

Each rank reduces what it holds. Where several ranks hold replicas of the same values, one of them counts them: for a plain
parameter (as under DDP) the first rank, for a DTensor the ranks that are first along every mesh dimension where it is
replicated. One all_reduce of 4·G float64 gives every rank the same sums. The first rank, the leader, takes the step at the
server and broadcasts the result; each rank's own tuner takes the same step and must come to the same bits.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from mechanicd.client import Session, SessionError, StepConflict
from mechanicd.torch._memory import Memory
from mechanicd.tuner import Reductions

_TAKEN, _HELD, _FAILED = 0.0, 1.0, 2.0
"""How the leader's step went: the first value of its broadcast."""

LEADER: Final = 0


class Team:
    """The processes that train one model.

    Args:
        group: their process group; None is the default one.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.leads = self.rank == LEADER
        # NCCL moves only GPU tensors.
        nccl = "nccl" in str(dist.get_backend(group))
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def sum(self, parts: Sequence[Reductions]) -> list[Reductions]:
        """The sums over the whole model from each rank's part; the same bits on every rank."""
        sums = torch.tensor(parts, dtype=torch.float64, device=self._device)
        dist.all_reduce(sums, group=self._group)
        return [Reductions(*row) for row in sums.tolist()]

    def announce(self, scales: Sequence[float], held: bool) -> None:
        """For the leader: sends S_{t+1}, and whether the tuner did not see the step."""
        self._broadcast([_HELD if held else _TAKEN, *scales], len(scales))

    def announce_failure(self, groups: int) -> None:
        """For the leader: its step failed, so the others fail too instead of waiting forever."""
        self._broadcast([_FAILED, *[0.0] * groups], groups)

    def await_leader(self, groups: int) -> tuple[tuple[float, ...], bool]:
        """For the others: what the leader announced.

        Raises:
            SessionError: LEADER_FAILED.
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

    def _broadcast(self, values: Sequence[float] | None, groups: int) -> list[float]:
        message = torch.zeros(groups + 1, dtype=torch.float64, device=self._device)
        if values is not None:
            message.copy_(torch.tensor(values, dtype=torch.float64))
        leader = LEADER if self._group is None else dist.get_global_rank(self._group, LEADER)
        dist.broadcast(message, leader, group=self._group)
        found: list[float] = message.tolist()
        return found


class TunerStep:
    """The tuner's part of one step: at a server or in this process, and on the other ranks following the leader.

    `begin` and `finish` are the session's. Every rank calls both or neither: the other ranks wait for the leader in `finish`.
    """

    def __init__(
        self,
        session: Session,
        team: Team | None,
        reductions: Sequence[Reductions],
        base_lr: float | None,
        hold: bool,
    ) -> None:
        self._session = session
        self._team = team
        self._reductions = reductions
        self._base_lr = base_lr
        self._hold = hold
        self._held = False

    def begin(self) -> None:
        """Sends the reductions, from the rank that talks to the server."""
        team = self._team
        if team is not None and not team.leads:
            return
        try:
            seen = self._session.begin(self._reductions, base_lr=self._base_lr, hold=self._hold)
        except BaseException:
            if team is not None:
                team.announce_failure(len(self._reductions))
            raise
        self._held = not seen

    def finish(self) -> tuple[float, ...]:
        """S_{t+1}, one float per scale group; the same on every rank."""
        team, session = self._team, self._session
        if team is None:
            return session.finish(wait=False)
        if not team.leads:
            leaders, held = team.await_leader(len(self._reductions))
            # Only now: an outage may have made the leader hold S, and then this rank must hold it too.
            session.begin(self._reductions, hold=held)
            mine = session.finish()
            team.check(mine, leaders)
            return mine
        try:
            scales = session.finish(wait=False)
        except BaseException:
            team.announce_failure(len(self._reductions))
            raise
        team.announce(scales, self._held)
        return scales


def team(group: Any = None) -> Team | None:
    """The processes of a group, or None if this process trains alone."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return None
    return Team(group)


class Shards:
    """What this process holds of each parameter, with its gradient: the shard of a DTensor, else the parameter itself."""

    def __init__(self) -> None:
        self._shards: dict[Tensor, Tensor] = {}
        self._whole: dict[Tensor, Tensor] = {}

    def of(self, p: Tensor, memory: Memory) -> Tensor:
        """The shard. If it has moved (after resharding), what `memory` keeps moves with it."""
        shard = local(p)
        if shard is p:
            return p
        known = self._shards.get(p)
        if known is None or known.data_ptr() != shard.data_ptr():
            if known is not None:
                memory.move(known, shard)
                del self._whole[known]
            self._shards[p], self._whole[shard] = shard, p
            known = shard
        known.grad = local_grad(p)
        return known

    def counts(self, shard: Tensor, rank: int) -> bool:
        """Whether this rank counts what it holds of a parameter."""
        return counts(self._whole.get(shard, shard), rank)


def local(p: Tensor) -> Tensor:
    """What this rank holds of a tensor: the shard of a DTensor, not a copy."""
    shard = getattr(p, "_local_tensor", None)
    return p if shard is None else shard.detach()


def like(shard: Tensor, whole: Any) -> Tensor:
    """A tensor of which this rank holds `shard`, laid out over the ranks as a parameter is."""
    if not hasattr(whole, "_local_tensor"):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard,
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def local_grad(p: Tensor) -> Tensor | None:
    """What this rank holds of a parameter's gradient, laid out as the parameter is."""
    g: Any = p.grad
    if g is None or not hasattr(g, "_local_tensor"):
        return p.grad
    placements = p.placements  # type: ignore[attr-defined]
    if g.placements != placements:
        g = g.redistribute(placements=placements)
    found: Tensor = g._local_tensor
    return found


def counts(p: Tensor, rank: int) -> bool:
    """Whether this rank counts what it holds of a parameter."""
    mesh = getattr(p, "device_mesh", None)
    if mesh is None:
        return rank == LEADER
    placements = p.placements  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate() or [1] * len(placements)
    return all(place == 0 for place, placement in zip(coordinate, placements, strict=True) if placement.is_replicate())
