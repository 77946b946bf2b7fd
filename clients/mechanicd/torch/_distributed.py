"""What several processes that train one model add up, and how their tuners take one step.

Each rank reduces what it holds. Where several ranks hold replicas of the same values, one of them counts them: for a plain
parameter (as under DDP) the first rank, for a DTensor the ranks that are first along every mesh dimension where it is
replicated. One all_reduce of 4·G float64 gives every rank the same sums. The first rank, the leader, takes the step at the
server and broadcasts the result; each rank's own tuner takes the same step and must come to the same bits. `_team` has the
ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from mechanicd.client import Session
from mechanicd.torch._memory import Memory
from mechanicd.torch._team import Team
from mechanicd.tuner import Reductions


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

    def keep_only(self, params: Iterable[Tensor]) -> None:
        """Forgets every other parameter."""
        kept = set(params)
        self._shards = {p: shard for p, shard in self._shards.items() if p in kept}
        self._whole = {shard: p for p, shard in self._shards.items()}

    def counts(self, shard: Tensor, team: Team) -> bool:
        """Whether this rank counts what it holds of a parameter."""
        return team.counts(self._whole.get(shard, shard))


def local(p: Tensor) -> Tensor:
    """What this rank holds of a tensor: the shard of a DTensor, not a copy."""
    if type(p) is Parameter:  # the most common case, and looking for an attribute that is not there is slow
        return p
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
