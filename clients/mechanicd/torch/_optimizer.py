"""The mechanized optimizer: a real `torch.optim.Optimizer` around another one."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.client import InvalidArgument, MechanicdError, ServerUnavailable, Session, make_config
from mechanicd.client._run import Run
from mechanicd.torch import _async_device, _checkpoint, _distributed, _groups, _legacy_checkpoints, _reference
from mechanicd.torch._async_device import Ahead
from mechanicd.torch._closure import evaluate
from mechanicd.torch._delegation import OfBase
from mechanicd.torch._distributed import Shards, Step
from mechanicd.torch._memory import Memory
from mechanicd.torch._passes import Passes
from mechanicd.tuner import TunerState

logger = logging.getLogger("mechanicd.torch")


class Mechanized(OfBase):
    """BASE with its updates scaled by MECHANIC's S; made by `mechanize`.

    `param_groups`, `state` and `defaults` are BASE's own, so a scheduler that sets the lr here sets BASE's.

    Attributes:
        base: BASE.
        max_scale: parameters are placed with no larger S; None for no cap. It may be set between two steps.
        frozen: while it is set, S stays as it is: steps count, and the tuner does not hear of them.
    """

    def __init__(
        self,
        base: Optimizer,
        settings: dict[str, Any],
        scale_groups: str,
        delta_layout: str,
        run: Run,
        max_scale: float | None = None,
        ahead: bool = True,
    ) -> None:
        _groups.check(scale_groups)
        self.base = base
        self._settings = settings
        self._scale_groups = scale_groups
        self._run = run
        self.max_scale = max_scale
        self.frozen = False
        self._may_go_ahead = ahead
        self._ahead: Ahead | None = None
        self._memory = Memory(delta_layout)
        self._passes = Passes(self._memory)
        self._shards = Shards()
        self._team = _distributed.team()
        if self._team is not None and not self._team.leads:
            run = replace(run, target=None)  # one process talks to the server
            self._run = run
        # Optimizer.__init__ would build param groups of its own; __setstate__ makes all the rest of an Optimizer.
        self.__setstate__({})
        self._refuse_complex()
        self._configure()

    # ---- the step

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of BASE and of the tuner (Algorithm 1, one turn of the loop).

        A parameter without a gradient, or whose param group has lr = 0, takes no part: it stays where it is and catches up when
        that is over. Where no parameter takes part, the tuner does not hear of the step; at the start of a run it does not even
        count. Where a reduction is NaN or infinite, the step counts and does nothing at all, and a warning is logged, once for
        steps in a row.

        Args:
            closure: evaluates the model and returns the loss. It is called once before the reductions; BASE gets that loss
                as its first evaluation, and may ask for more.

        Returns:
            What BASE returns; the loss of the first evaluation where the step did nothing.

        Raises:
            InvalidArgument: SPARSE_GRADIENT, COMPLEX_PARAMETER, GROUP_COUNT_MISMATCH, CUDA_GRAPH_CAPTURE; nothing has changed.
            SessionError, ServerUnavailable: as the session says; parameters and Δ are as before the step, though BASE's own
                state has moved on. An error that BASE raises leaves the same, and the step counts.
        """
        _refuse_capture()
        loss, replay = evaluate(closure)
        fresh = self._run.state is None
        if fresh:
            self._configure()  # BASE may have got param groups behind this optimizer's back
        present = self._present()
        still = self._still()
        active = [[p for p in group if p not in still] for group in present]
        if self._ahead is not None:
            if replay is None and not self.frozen and not still and self._ahead.fits(self._run.session, active, self._cap()):
                self._ahead.catch_up()
                self._passes.launch(active, to_host=False)
                flag = self._passes.guard(self.base)
                if flag is not None:
                    return self._step_ahead(self._ahead, flag)
            self._settle()
            self._ahead = None
        team = self._team
        session = self._open(team) if not fresh or any(active) else None
        scales = self._capped(self._tuner_state().scale if session is None else session.scales)
        for group, S in zip(present, scales, strict=True):
            for p in group:
                self._memory.join(p, S)
        if session is None:
            return self.base.step() if replay is None else self.base.step(replay)
        passes = self._passes
        passes.launch(active if team is None else self._counted(active, team))
        params = [p for group in active for p in group]
        # A BASE that can be told on the device to do nothing need not wait until the scalars are known here.
        flag = passes.guard(self.base) if replay is None and team is None else None
        taking_part = set(params)
        # A BASE that evaluates the closure may move parameters that had no gradient; they are put back.
        others = [] if replay is None else [p for p in self._here(self.param_groups) if p not in taking_part]
        saved = _reference.save(others)
        result: float | None = None
        begun = False
        try:
            if flag is not None:
                result = self._guarded_base_step(flag)
            reductions = passes.read()[: len(active)]
            if team is not None:
                reductions = team.sum(reductions)
            finite = all(group.is_finite() for group in reductions)
            step = Step(session, team, reductions, self._base_lr(), hold=self.frozen or not params)
            step.begin()
            begun = True
            if finite and flag is None:
                result = self.base.step() if replay is None else self.base.step(replay)
        except BaseException:
            passes.restore()
            _reference.restore(others, saved)
            if begun:
                self._finish_after_failure(step)
            raise
        _reference.restore(others, saved)
        if not finite:
            passes.drop()
            step.finish()
            return loss
        try:
            scales = self._capped(step.finish())
        except BaseException:
            passes.restore()
            raise
        passes.apply({p: S for group, S in zip(active, scales, strict=True) for p in group})
        if flag is not None and not still and not self.frozen and self._goes_ahead():
            self._ahead = Ahead(session, self._memory, active, self._cap())
        return result

    def _step_ahead(self, ahead: Ahead, flag: Tensor) -> float | None:
        """The rest of a step that the device takes alone."""
        try:
            return ahead.step(self._passes, lambda: self._guarded_base_step(flag), self._base_lr())
        except BaseException:
            self._ahead = None
            raise

    def _goes_ahead(self) -> bool:
        """Whether the device may have S before the host does: where nothing but the scalars decides it."""
        alone = self._run.target is None or self._run.on_outage == "local"
        return self._may_go_ahead and alone and self._config.convention in _async_device.CONVENTIONS

    def _settle(self) -> None:
        """The host takes the steps that so far only the device has taken."""
        if self._ahead is not None:
            try:
                self._ahead.settle()
            except BaseException:
                self._ahead = None
                raise

    def _settled(self) -> TunerState:
        """The tuner's state after the last step."""
        self._settle()
        return self._tuner_state()

    def _open(self, team: _distributed.Team | None) -> Session:
        """The session; where many processes train, nobody goes on unless the one that talks to the server could open it."""
        if team is None or self._run.session is not None:
            return self._run.open(self._config)
        if not team.leads:
            team.hear(0)
            return self._run.open(self._config)
        try:
            session = self._run.open(self._config)
        except BaseException:
            team.tell_failure(0)
            raise
        team.tell((), held=False)
        return session

    def _guarded_base_step(self, flag: Tensor) -> float | None:
        """BASE's step, which does nothing where the flag on the device is set; as GradScaler tells a fused optimizer."""
        base: Any = self.base
        base.grad_scale, base.found_inf = None, flag
        try:
            result: float | None = base.step()
        finally:
            del base.grad_scale, base.found_inf
        return result

    def _finish_after_failure(self, step: Step) -> None:
        try:
            step.finish()
        except MechanicdError as error:
            logger.warning("the step of %s in which BASE failed could not be finished either: %s", self._called(), error)

    def _present(self) -> list[list[Tensor]]:
        """Per scale group what this process holds of the parameters that have a gradient."""
        groups = _groups.members(self._scale_groups, self.param_groups)
        if len(groups) != len(self._config.scale_groups):
            raise _groups.too_many(self._scale_groups)
        self._refuse_complex()
        for group in groups:
            for p in group:
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise InvalidArgument(
                        "SPARSE_GRADIENT",
                        f"a parameter of shape {tuple(p.shape)} has a gradient of layout {p.grad.layout}; "
                        "use dense gradients (sparse=False for an embedding)",
                    )
        return [[self._shards.of(p, self._memory) for p in group if p.grad is not None] for group in groups]

    def _still(self) -> set[Tensor]:
        """What has lr = 0: the user froze it, and a new S must not move it."""
        return set(self._here([group for group in self.param_groups if _is_zero(group.get("lr"))]))

    def _cap(self) -> float:
        return math.inf if self.max_scale is None else self.max_scale

    def _capped(self, scales: Sequence[float]) -> tuple[float, ...]:
        cap = self._cap()
        return tuple(min(S, cap) for S in scales)

    def _counted(self, active: list[list[Tensor]], team: _distributed.Team) -> list[list[Tensor]]:
        """The same with one group more, for what other ranks count."""
        counted = [[p for p in group if self._counts(p, team)] for group in active]
        return [*counted, [p for group in active for p in group if not self._counts(p, team)]]

    def _counts(self, shard: Tensor, team: _distributed.Team) -> bool:
        return self._shards.counts(shard, team.rank)

    def _here(self, param_groups: list[dict[str, Any]]) -> list[Tensor]:
        return [self._shards.of(p, self._memory) for p in _groups.flat(param_groups)]

    def _refuse_complex(self) -> None:
        for p in _groups.flat(self.param_groups):
            if p.is_complex():
                raise InvalidArgument(
                    "COMPLEX_PARAMETER",
                    f"a parameter of shape {tuple(p.shape)} is {p.dtype}; keep it as a real one (torch.view_as_real)",
                )

    def _base_lr(self) -> float | None:
        lr = self.param_groups[0].get("lr")
        return None if lr is None else float(lr)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Gives BASE more parameters; they join with Δ = 0.

        Raises:
            InvalidArgument: GROUP_COUNT_MISMATCH where that would make more scale groups in a run that has begun;
                COMPLEX_PARAMETER, and the group is not added.
        """
        if self._scale_groups != "all" and self._run.state is not None:
            raise _groups.too_many(self._scale_groups)
        self.base.add_param_group(param_group)
        try:
            self._refuse_complex()
        except InvalidArgument:
            self.param_groups.pop()
            raise
        self._configure()

    # ---- the run

    @property
    def run(self) -> str:
        """The run's name."""
        return self._run.name

    @property
    def last_step(self) -> int:
        """t, the last step that the run has taken; 0 before the first."""
        return self._settled().step

    @property
    def scale(self) -> float | tuple[float, ...]:
        """S to use now; one float per scale group where there are several. 0 before the first step. On a CUDA device it waits
        for the steps that are on their way there."""
        scales = self._capped(self._settled().scale)
        return scales[0] if len(scales) == 1 else scales

    def effective_lr(self) -> list[float | tuple[float, ...]]:
        """S·lr of each param group, the learning rate with which BASE alone would move as far; one per tensor where each has
        an S of its own."""
        scales = self._capped(self._settled().scale)
        lrs = [float(group.get("lr", 1.0)) for group in self.param_groups]
        return _groups.per_param_group(self._scale_groups, self.param_groups, scales, lrs)

    def flush(self, timeout: float | None = None) -> int:
        """Waits until the server has committed every step; returns the last step that it has. 0 without a server.

        Raises:
            SessionError, ServerUnavailable: as the session says.
        """
        self._settle()
        return 0 if self._run.session is None else self._run.session.flush(timeout)

    def close(self, status: str | None = None, message: str = "") -> None:
        """Gives the run up and says why: "finished", "failed" or "preempted"; see `Session.close`. Twice does nothing."""
        try:
            self._settle()
        finally:
            self._ahead = None
            self._run.close(status, message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.close("failed", f"{kind.__name__}: {error}")

    def _configure(self) -> None:
        names = _groups.names(self._scale_groups, self.param_groups)
        self._config = make_config(**self._settings, scale_groups=names)

    def _tuner_state(self) -> TunerState:
        return self._run.state or TunerState.initial(self._config)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """BASE's, and the tuner's state and Δ, as `_checkpoint` says; enough, with the model's own, to resume bit for bit.

        It waits until the server has committed every step. Where the server is away that is logged, and the checkpoint is
        good without it.

        Raises:
            SessionError: this process no longer holds the run.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._settle()
        if self._run.target is not None and self._run.session is not None and not self._run.closed:
            try:
                self._run.session.flush(self._run.deadline)
            except ServerUnavailable as error:
                logger.warning("a checkpoint of %s is taken while its server is away: %s", self._called(), error)
        wholes, params = _groups.flat(self.param_groups), self._here(self.param_groups)
        state_dict = _checkpoint.pack(
            self.base.state_dict(), self._config, self._tuner_state(), self.frozen, self._memory, params, wholes
        )
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where `state_dict()` left off; the model's parameters are the caller's to load, before this.

        It also reads mechanic-pytorch's, into an optimizer with convention="pytorch". An open session is closed, and the next
        step opens one that starts at the checkpoint.

        Raises:
            ResumeError, ConfigMismatch: as `_checkpoint.unpack` says; nothing has changed.
            ValueError: BASE refuses its part; nothing has changed.
        """
        with contextlib.suppress(MechanicdError):  # what was refused matters no more
            self._settle()
        self._ahead = None
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        params = self._here(self.param_groups)
        layout = self._memory.layout
        today = _legacy_checkpoints.upgraded(state_dict, self._config, layout, params)
        state, frozen, memory = _checkpoint.unpack(today, self._config, layout, params)
        self.base.load_state_dict(_checkpoint.bare(today))
        self._memory, self.frozen = memory, frozen
        self._passes = Passes(memory)
        self._run.restart(state)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        names = ("base", "max_scale", "frozen", "_run", "_memory", "_scale_groups", "_settings", "_config", "_may_go_ahead")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_memory" in state:
            self._ahead = None
            self._passes = Passes(self._memory)
            self._shards = Shards()
            self._team = _distributed.team()

    def _called(self) -> str:
        return self.run or "a run without a name"

    def __repr__(self) -> str:
        state = self._settled()
        low, high = min(state.scale), max(state.scale)
        S = f"{low!r}" if len(state.scale) == 1 else f"{low!r}…{high!r} of {len(state.scale)} groups"
        where = f", target={self._run.target!r}" if self._run.target is not None else ""
        return f"Mechanized(run={self.run!r}{where}, step={state.step}, scale={S}, base={self.base!r})"


def _is_zero(lr: Any) -> bool:
    """Whether a learning rate is 0; one on a device is not asked, since that would mean to wait for it."""
    return lr is not None and not (isinstance(lr, Tensor) and lr.device.type != "cpu") and float(lr) == 0.0


def _refuse_capture() -> None:
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise InvalidArgument(
            "CUDA_GRAPH_CAPTURE",
            "step() was called while a CUDA graph is being captured; a step needs the host once, to ask for S. Capture forward "
            "and backward, and call step() after the replay",
        )
