"""The parameters of one optimizer as this process holds them, and what the next step does to each.

Between two steps parameters join and leave the optimizer, change their form, are frozen, or have no gradient. `sort` finds
that out before the step's sums, so what is kept of them always fits what they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from mechanicd.torch import _ascent, _changes, _groups, _overlap
from mechanicd.torch._distributed import Shards, local
from mechanicd.torch._groups import ScaleGroups
from mechanicd.torch._memory import Memory
from mechanicd.torch._team import Team


@dataclass(frozen=True)
class Parts:
    """The parameters of one step.

    Attributes:
        with_gradient: per scale group, those that have a gradient.
        active: those of them that take part; `ascending`: those whose gradient BASE ascends.
        alike: whether all take part and descend.
        news: whether any with a gradient is new, or has another form than before.
    """

    with_gradient: list[list[Tensor]]
    active: list[list[Tensor]]
    ascending: set[Tensor]
    alike: bool
    news: bool


class Parameters:
    """The parameters of one optimizer.

    The methods that take `before_change` call it before what is kept of a parameter changes: nothing may be under way on a
    device then, and no plan may be made for parameters as they were.

    Args:
        base: BASE.
        memory: what is kept of each parameter between two steps.
        shards: the tensors that are the keys in `memory`, of sharded parameters.

    Attributes:
        shards: what this process holds of each parameter.
    """

    def __init__(self, base: Optimizer, scale_groups: ScaleGroups, memory: Memory, shards: Shards | None = None) -> None:
        self._base = base
        self._scale_groups = scale_groups
        self._memory = memory
        self._ascends = _ascent.ascends_everywhere(base)
        self._known: list[Tensor] = []
        self._sharded = False
        self._named: dict[str, list[Tensor]] = {}
        self.shards = shards or Shards()

    def all(self) -> list[Tensor]:
        """What this process holds of every parameter."""
        return self.local(self._base.param_groups)

    def local(self, param_groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        """What this process holds of each parameter of some param groups."""
        return [self.shards.of(p, self._memory) for p in _groups.flat(param_groups)]

    def others(self, active: list[list[Tensor]]) -> list[Tensor]:
        """Those that take no part in the step."""
        taking_part = {p for group in active for p in group}
        return [p for p in self.all() if p not in taking_part]

    def counted(self, active: list[list[Tensor]], team: Team) -> list[list[Tensor]]:
        """The scale groups, each without what other ranks count, and that in one more group: `apply` needs it as well."""
        counted = [[p for p in group if self.shards.counts(p, team)] for group in active]
        return [*counted, [p for group in active for p in group if not self.shards.counts(p, team)]]

    def sort(self, before_change: Callable[[], None]) -> Parts:
        """Sorts the parameters by what the next step does to them; forgets those that left, and follows those that changed.

        Raises:
            InvalidArgument: SPARSE_GRADIENT, SCALE_GROUP_MOVED and the like; a parameter can't take part as it is. Nothing has
                changed then.
        """
        param_groups = self._base.param_groups
        groups = _groups.members(self._scale_groups, param_groups)
        with_gradient = [_groups.with_gradient(group) for group in groups]
        self._forget_those_that_left(groups, before_change)
        if self._sharded:
            with_gradient = [[self.shards.of(p, self._memory) for p in group] for group in with_gradient]
        news = self._follow_changes(with_gradient, before_change)
        # lr = 0: the user froze these parameters, and a new S must not move them.
        still = set(self.local([group for group in param_groups if _is_still(group)]))
        ascending = set(self.local([group for group in param_groups if group.get("maximize", self._ascends)]))
        active = [[p for p in group if p not in still] for group in with_gradient] if still else with_gradient
        return Parts(with_gradient, active, ascending, alike=not still and not ascending, news=news)

    def join(self, parts: Parts, scales: Sequence[float], cap: float) -> None:
        """Keeps what is needed of those that are new, as of the S of their scale group, and no larger than `cap`."""
        if not parts.news:
            return
        for group, S in zip(parts.with_gradient, scales, strict=True):
            for p in group:
                self._memory.join(p, min(S, cap))

    def start_again(self, params: Sequence[Tensor] | None, before_change: Callable[[], None]) -> None:
        """x_ref becomes x, and Δ 0: they join anew with the next step in which they take part. None means all."""
        before_change()
        for p in self.all() if params is None else [self.shards.of(p, self._memory) for p in params]:
            self._memory.drop(p)

    def _forget_those_that_left(self, groups: list[list[Tensor]], before_change: Callable[[], None]) -> None:
        params = _groups.flat(self._base.param_groups)
        if len(params) == len(self._known) and all(map(is_, params, self._known)):
            return
        _changes.refuse_meta(params)
        named = dict(zip(_groups.names(self._scale_groups, self._base.param_groups), groups, strict=True))
        _groups.refuse_moved(self._named, named)
        gone = self._memory.placed.keys() - set(self.all())
        if gone:
            before_change()
            for p in gone:
                self._memory.drop(p)
        self.shards.keep_only(params)
        self._known, self._named = params, named
        self._sharded = any(local(p) is not p for p in params)

    def _follow_changes(self, groups: list[list[Tensor]], before_change: Callable[[], None]) -> bool:
        """What is kept of a parameter follows its dtype and device; returns whether any parameter is new or has changed so."""
        memory, params = self._memory, [p for group in groups for p in group]
        # A form changes only with the shape or the address, which are quicker to compare.
        places = list(map(id, params)), list(map(Tensor.data_ptr, params)), [p.shape for p in params]
        if places == memory.places:
            return False
        changed = [p for p in params if not memory.fits(p)]
        _changes.check(memory, changed)
        _overlap.refuse(params)
        if not changed:
            memory.places = places
            return False
        before_change()
        for p in changed:
            if p in memory.placed:
                _changes.follow(memory, p)
        return True


def _is_still(group: dict[str, Any]) -> bool:
    """Whether a param group's learning rate is 0. One on a device counts as not 0: reading it would wait for the device. Nor
    does it say anything of an Adafactor that computes its own."""
    lr = group.get("lr")
    if group.get("relative_step"):
        return False
    return lr is not None and not (isinstance(lr, Tensor) and lr.device.type != "cpu") and float(lr) == 0.0
