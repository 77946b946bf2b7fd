"""An optimizer's place among the processes that train together: whom it was told to train with, and where it stands."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mechanicd.client import InvalidArgument, Session, SessionError
from mechanicd.client.framework import Run
from mechanicd.torch import _groups, _sharding
from mechanicd.torch._fingerprint import ANY
from mechanicd.torch._team import Stand, Team
from mechanicd.tuner import TunerConfig, TunerState

Distributed: TypeAlias = Literal["parts"] | Literal[False] | None
"""Who trains together: None, ranks that hold replicas or DTensor shards of one model; "parts", ranks that hold different parts
of one; False, nobody."""


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

    def team(self) -> Team | None:
        """The processes that train together now, or None if this one trains alone."""
        if self.distributed is False or not dist.is_available() or not dist.is_initialized():
            return None
        return None if dist.get_world_size(self.group) == 1 else Team(self.group, self.distributed == "parts", self.timeout)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Together":
        return self  # a copy of an optimizer trains with the same processes


class Membership:
    """Finds an optimizer's team by the first step: then the process group is there, and the parameters are sharded.

    Args:
        base: BASE.
        run: the run; its target is taken away where another rank talks to the server.
        target: the target that `mechanize` was given.

    Attributes:
        team: the processes that train the model together; None before the first step, and for one alone.
        failures: the steps in which BASE failed, on this rank.
    """

    def __init__(self, base: Optimizer, run: Run, together: Together, target: str | None) -> None:
        self._base = base
        self._run = run
        self._together = together
        self._target = target
        self._alone = False
        self._world: object = None
        self._groups = 0
        self.team: Team | None = None
        self.failures = 0

    def meet(self, config: TunerConfig, delta_layout: str) -> None:
        """Finds the team, and out whether it trains one model; at most steps there is nothing to do.

        Raises:
            InvalidArgument: SHARDING_NOT_SUPPORTED, UNEVEN_INPUTS, RANKS_DIFFER; nothing has changed.
            SessionError: RANKS_MISSING, PROCESS_GROUP_CHANGED.
        """
        if self._alone:
            if self._together.distributed is not False and _world() is not self._world:
                self._refuse_late_group()
            return
        if self.team is None:
            _sharding.refuse(self._base, _groups.flat(self._base.param_groups), self._together.distributed)
            self.team = self._together.team()
            self._alone, self._world = self.team is None, _world()
            self._run.target = self._target if self.team is None or self.team.leads else None
        if self.team is not None and len(config.scale_groups) != self._groups:
            self.team.met = False  # sums of another number don't fit those of a rank that has not grown
        self._groups = len(config.scale_groups)
        if self.team is not None and not self.team.met:
            params = _groups.flat(self._base.param_groups)
            _refuse_uneven_inputs(params)
            # {host}, {rank} and {random} in a run's name are other words on each rank.
            self._run.share(*self.team.meet(params, self._shared_settings(self.team, config, delta_layout), self._run.identity))

    def restart(self) -> None:
        """After a checkpoint was loaded: a team that can't go on is found anew."""
        self._alone, self.failures = False, 0
        if self.team is not None and not self.team.is_current():
            self.team = None

    def stand(self, state: TunerState, cap: float = 0.0, frozen: bool = False) -> Stand:
        """Where this rank stands before a step."""
        lrs = () if self._together.distributed == "parts" else tuple(map(_lr, self._base.param_groups))
        return Stand(state.step, state.scale, self._run.session is None, frozen, cap, self.failures, lrs)

    def open(self, config: TunerConfig, team: Team) -> Session:
        """The session. The other ranks open theirs only after the leader has opened it at the server."""
        if self._run.session is not None:
            return self._run.open(config)
        if not team.leads:
            team.await_leader(0)
            return self._run.open(config)
        try:
            session = self._run.open(config)
        except BaseException:
            team.announce_failure(0)
            raise
        team.announce((), held=False)
        return session

    def _refuse_late_group(self) -> None:
        if self._together.team() is None:
            self._world = _world()
            return
        raise SessionError(
            "PROCESS_GROUP_CHANGED",
            "the training began before torch.distributed had this process group, so S is this rank's own. Initialize the group "
            "first, or load one checkpoint on all ranks to go on together; pass distributed=False to go on alone",
        )

    def _shared_settings(self, team: Team, config: TunerConfig, delta_layout: str) -> dict[str, object]:
        """What all ranks must share beside the parameters."""
        # A rank may leave the target to the leader, but not the other way round: nobody would talk to the server.
        target = "a server" if self._target is not None else "none" if team.leads else ANY
        shared: dict[str, object] = {**asdict(config), "target": target}
        if self._together.distributed != "parts":
            shared["delta_layout"] = delta_layout
            shared["BASE"] = type(self._base).__qualname__
            shared["lr"] = list(map(_lr, self._base.param_groups))
        return shared


def _refuse_uneven_inputs(params: Sequence[Tensor]) -> None:
    """Checks that no rank may leave early. DDP's join() stands in for DDP's own collectives then, and for nobody else's."""
    mine = set(map(id, params))
    for found in gc.get_objects():  # nothing leads from a parameter to its DDP
        if not issubclass(type(found), DistributedDataParallel):
            continue
        join: Any = getattr(found, "_join_config", None)
        if join is None or not join.enable or join.throw_on_early_termination:
            continue
        if any(id(p) in mine for p in found.parameters()):
            raise InvalidArgument(
                "UNEVEN_INPUTS",
                "with DDP's join() a rank without further inputs takes no more steps, but each step needs all ranks. Give all "
                "of them the same number of batches (drop_last=True), or use join(throw_on_early_termination=True)",
            )


def _world() -> object:
    """The default process group, or None."""
    return dist.group.WORLD if dist.is_available() else None


def _lr(group: dict[str, Any]) -> float:
    """A param group's learning rate; -1.0 for one on a device, which would have to be waited for, and for none."""
    lr = group.get("lr")
    return -1.0 if lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") else float(lr)
