"""One optimizer step: the order of the sums, BASE, the tuner and the new parameters, and who waits for whom.

A step is one turn of Algorithm 1's loop, in four parts:

    launch, read    the four sums over Δ_t, g_t, x_t of each scale group: what h_t needs        line 10
    BASE            x_t → x_t + u_t
    tuner           h_t → S_{t+1}, by `TunerStep`, here and at the server                      lines 11–16
    apply           Δ_{t+1} = Δ_t + u_t;  x_{t+1} = x_t + S_{t+1}·Δ_{t+1} − S_t·Δ_t              line 8 and the last

h_t needs nothing that BASE computes, so the sums always come first, while x_t and g_t are still there, and BASE overlaps with
the rest. Only `apply` needs both BASE and S_{t+1}. There are three paths, one method each:

    _waiting_step   read, begin, BASE, finish, apply    any device, any BASE, closures, many processes; where BASE may use its
                                                        closure in ways of its own, `_closure_path` takes the step
    _guarded_step   BASE, read, begin, finish, apply    one CUDA device with a fused BASE: the GPU is busy while the host waits
    _async_step     BASE, tuner and apply on the device; the host follows up to two steps later
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from mechanicd.client import MechanicdError, Session
from mechanicd.client.framework import DeltaLayout, Run, deferred, exposed
from mechanicd.torch import _ascent, _asgd, _async_device, _base_guard, _closure, _closure_path, _global_hooks, _reference
from mechanicd.torch._async_device import AsyncDevice
from mechanicd.torch._checkpoint import Given
from mechanicd.torch._closure import Closure
from mechanicd.torch._distributed import TunerStep
from mechanicd.torch._groups import ScaleGroups
from mechanicd.torch._intact import Intact
from mechanicd.torch._membership import Membership, Together
from mechanicd.torch._memory import Memory
from mechanicd.torch._parameters import Parameters, Parts
from mechanicd.torch._passes import Passes
from mechanicd.torch._team import Team
from mechanicd.tuner import Reductions, TunerConfig, TunerState

logger = logging.getLogger("mechanicd.torch")

BaseStep = Callable[..., Any]
"""BASE's step, with the further arguments that the caller gave; takes the closure, if there is one."""


@dataclass(frozen=True)
class Step:
    """What one step works on.

    Attributes:
        active: per scale group, the parameters that take part: they have a gradient, and an lr other than 0.
        ascending: those of them whose gradient BASE ascends.
        cap: parameters are placed with no larger S.
        hold: S stays as it is; the step counts, but the tuner does not see it.
        known: a team's sums, which come with the launch: they say whether the run starts on any rank.
    """

    session: Session
    active: list[list[Tensor]]
    ascending: set[Tensor]
    cap: float
    hold: bool
    known: list[Reductions] | None = None

    def placed(self, scales: Sequence[float]) -> dict[Tensor, float]:
        """The S at which each parameter is placed."""
        return {p: min(S, self.cap) for group, S in zip(self.active, scales, strict=True) for p in group}


class Stepper:
    """Takes the steps of one optimizer.

    Args:
        base: BASE.
        run: the run; its session is opened by the first step that needs it.
        may_run_async: whether a CUDA device may take steps before the host has their sums.
        together: who trains together.

    Attributes:
        run: the run as this process sees it: where many processes train, only the leader has a target.
        memory: what is kept of each parameter between two steps.
        passes: the two passes over the parameters.
        parameters: the parameters as this process holds them.
        membership: who trains with this process.
        intact: whether weights and Δ belong to one step.
        given: the state_dicts that were given away.
        stepping: whether BASE steps now.
    """

    def __init__(
        self,
        base: Optimizer,
        run: Run,
        scale_groups: ScaleGroups,
        delta_layout: DeltaLayout,
        may_run_async: bool,
        together: Together,
    ) -> None:
        self._base = base
        self._scale_groups = scale_groups
        self._may_run_async = may_run_async
        self._together = together
        self._target = run.target
        self.run = run
        self.memory = Memory(delta_layout)
        self.intact = Intact()
        self._connect_parts()

    def _connect_parts(self) -> None:
        """Creates what a copy of an optimizer can't share with the original."""
        self.passes = Passes(self.memory)
        self.parameters = Parameters(self._base, self._scale_groups, self.memory)
        self.membership = Membership(self._base, self.run, self._together, self._target)
        self.async_device: AsyncDevice | None = None
        self.given = Given()
        self.stepping = False
        self._one_at_a_time = threading.RLock()
        _base_guard.guard(self._base, self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_base", "_scale_groups", "_may_run_async", "_together", "_target", "memory", "intact", "run")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect_parts()

    @property
    def team(self) -> Team | None:
        """The processes that train the model together; None before the first step, and for one alone."""
        return self.membership.team

    # ---- the step and its three paths

    @_disable_dynamo  # a graph would take the session's part of the step for constants
    def step(
        self, config: TunerConfig, max_scale: float | None, frozen: bool, closure: Closure | None, base_step: BaseStep
    ) -> Any:
        """Takes one step on the fastest path that fits it.

        Args:
            config: the tuner's settings; a session is opened with them if none is open.
            frozen: whether S stays as it is.
            closure: the user's.

        Returns:
            What BASE returns; the closure's first loss if the step did nothing.
        """
        if torch.is_inference_mode_enabled():  # what a step keeps then can't be changed outside that mode
            with torch.inference_mode(False):
                return self.step(config, max_scale, frozen, closure, base_step)
        self.intact.check()
        cap = _cap(max_scale)
        loss, replay = None, None
        if closure is not None and _closure.evaluates_first(self._base):
            loss, replay = _closure.evaluate(closure)
            closure = None
        self.membership.meet(config, self.memory.layout)
        with deferred, self._one_at_a_time:  # signals wait from here on, and so does another thread's step
            if closure is not None:
                return _closure_path.step(self, config, cap, frozen, closure, base_step)
            return self._step(config, cap, frozen, loss, replay, base_step)

    def _step(
        self, config: TunerConfig, cap: float, frozen: bool, loss: Any, replay: Closure | None, base_step: BaseStep
    ) -> Any:
        base, parts = self._base, self._sort(config)
        if self.async_device is not None:
            alike = replay is None and not frozen and parts.alike
            if alike and self.async_device.fits(self.run.session, parts.active, cap):
                self.async_device.catch_up()
                flag = self.passes.guard(base) if self.passes.launch(parts.active, to_host=False) else None
                if flag is not None:
                    return self._async_step(self.async_device, flag, base_step)
            # Something has changed. The other paths need the host's tuner to be where the device's is.
            self.leave_async()

        step = self._launch(config, cap, frozen, parts)
        if step is None:
            return self.run_base(base_step, replay)
        if replay is None and self.team is None:
            flag = self.passes.guard(base)
            if flag is not None:
                next_async = parts.alike and not frozen and self._can_run_async(config)
                return self._guarded_step(step, flag, base_step, next_async)
        return self._waiting_step(step, loss, replay, base_step)

    def begin(self, config: TunerConfig, cap: float, frozen: bool) -> Step | None:
        """Decides what the next step works on, and launches its sums; None if the run does not start yet."""
        return self._launch(config, cap, frozen, self._sort(config))

    def _launch(self, config: TunerConfig, cap: float, frozen: bool, parts: Parts) -> Step | None:
        if self.team is not None:
            return self._launch_together(self.team, config, cap, frozen, parts)
        # A run starts with the first step in which a parameter takes part: a warm-up from lr = 0 leaves no steps in it.
        session = self.run.open(config) if self.run.state is not None or any(parts.active) else None
        state = self.tuner_state(config) if session is None else session.state
        self.parameters.join(parts, state.scale, cap)
        if session is None:
            return None
        step = Step(session, parts.active, parts.ascending, cap, hold=frozen or not any(parts.active))
        self.passes.launch(_ascent.split(parts.active, parts.ascending) if parts.ascending else parts.active)
        return step

    def _launch_together(self, team: Team, config: TunerConfig, cap: float, frozen: bool, parts: Parts) -> Step | None:
        """`_launch` of ranks that train together. Each of them takes part, even if none of its parameters does."""
        passes = self.passes
        state = self.tuner_state(config)
        stand = self.membership.stand(state, cap, frozen)
        try:
            self.parameters.join(parts, state.scale, cap)
            groups = _ascent.split(parts.active, parts.ascending) if parts.ascending else parts.active
            passes.launch(self.parameters.counted(groups, team))
            *mine, others = passes.read()
        except Exception:
            team.report_failure(stand)
            passes.drop()
            raise
        try:
            sums, anyone = team.sum(_ascent.signed(mine) if parts.ascending else mine, others, stand, any(parts.active))
            # As for one process, but with the first step in which a parameter takes part on any rank.
            session = self.membership.open(config, team) if anyone or self.run.state is not None else None
        except BaseException:
            passes.drop()
            raise
        if session is None:
            passes.drop()
            return None
        return Step(session, parts.active, parts.ascending, cap, frozen or not anyone, sums)

    def sums(self, step: Step) -> list[Reductions]:
        """The scalars of each scale group, over the whole team; waits for the launch."""
        if step.known is not None:
            return step.known
        found = self.passes.read()
        return _ascent.signed(found) if step.ascending else found

    def _waiting_step(self, step: Step, loss: Any, replay: Closure | None, base_step: BaseStep) -> Any:
        """The host waits for the sums before BASE runs, so it can skip BASE if they are not finite."""
        passes = self.passes
        # 1. The sums leave for the server before BASE starts: the round trip takes place while BASE works.
        try:
            sums = self.sums(step)
            tuner_step = TunerStep(step.session, self.team, sums, self.base_lr(), step.hold)
            tuner_step.begin()
        except BaseException:
            passes.drop()
            raise
        # 2. A NaN or an infinity: the step counts, and neither BASE nor Δ nor x sees it. On a team every rank has the same
        #    sums, so all of them turn off here.
        if not all(group.is_finite() for group in sums):
            passes.drop()
            tuner_step.finish()
            return loss
        # 3. BASE. One that evaluates the closure again may move parameters that take no part; they are put back.
        others: list[Tensor] = []
        saved: list[Tensor] = []
        take_average = _asgd.keep(self._base)
        try:
            if replay is not None:
                others = self.parameters.others(step.active)
                saved = _reference.save(others)
            result = self.run_base(base_step, replay)
        except BaseException:
            try:
                self._restore(others, saved)
            finally:
                self.finish_after_failure(tuner_step)  # it was begun, so it counts, and on a team the others wait for it
            raise
        if others:
            with self.intact:
                _reference.restore(others, saved)
        # 4. S_{t+1}. If there is none, x_t is restored; Δ has not changed yet.
        try:
            scales = tuner_step.finish()
        except BaseException:
            self._restore()
            raise
        with self.intact:
            passes.apply(step.placed(scales))
            take_average()
        return result

    def _guarded_step(self, step: Step, flag: Tensor, base_step: BaseStep, next_async: bool) -> Any:
        """BASE is enqueued before the host has the sums; a flag on the device tells it to do nothing if they are not finite.

        Args:
            flag: on the device; not 0 if a sum is not finite.
            next_async: whether the next step may leave the tuner to the device as well.
        """
        passes = self.passes
        # 1. BASE first: the GPU goes from the sums straight to BASE, and the host's wait and the round trip cost it nothing.
        try:
            result = self._run_base_unless(flag, base_step)
        except BaseException:
            self._restore()
            tuner_step = TunerStep(step.session, None, self.sums(step), self.base_lr(), step.hold)
            self.finish_after_failure(tuner_step, begun=False)  # it counts, as on the other paths
            raise
        try:
            sums = self.sums(step)
            tuner_step = TunerStep(step.session, None, sums, self.base_lr(), step.hold)
            tuner_step.begin()
        except BaseException:
            self._restore()
            raise
        # 2. Now the host sees what the flag told BASE: it has done nothing, so there is nothing to take back.
        if not all(group.is_finite() for group in sums):
            passes.drop()
            tuner_step.finish()
            return None
        # 3. As in `_waiting_step`.
        try:
            scales = tuner_step.finish()
        except BaseException:
            self._restore()
            raise
        with self.intact:
            passes.apply(step.placed(scales))
        if next_async:
            self.async_device = AsyncDevice(step.session, self.memory, step.active, step.cap)
        return result

    def _async_step(self, device: AsyncDevice, flag: Tensor, base_step: BaseStep) -> Any:
        """The device takes the whole step; the host only enqueues, and takes the same step again once the report is there.

        `launch` and `guard` are enqueued already.
        """
        passes = self.passes
        try:
            base_lr = self.base_lr()  # as BASE sees it now: the host takes the step when a scheduler may have moved it
            try:
                result = self._run_base_unless(flag, base_step)
            except BaseException:
                # The step counts, without BASE. The host must catch up first: `restore` needs the S at which x was placed.
                with self.intact:
                    device.settle()
                    passes.restore()
                device.take(passes.read(), base_lr)
                raise
            with self.intact:
                passes.advance(device.tuner)  # lines 10–16; where the flag is set, the state stays as it is
                device.send_report(base_lr)  # before `apply`, so that the host need not wait for that too
                passes.apply_async(device.tuner)
        except BaseException:
            self.async_device = None
            raise
        return result

    # ---- what the paths share

    def run_base(self, base_step: BaseStep, closure: Closure | None = None) -> Any:
        """BASE's step. The hooks for every optimizer's step are for the mechanized optimizer's, which calls them itself.

        It may hang, in a closure for one, and it can be undone: so a second Ctrl-C gets through.
        """
        with _global_hooks.held(), exposed:
            self.stepping = True
            try:
                return base_step() if closure is None else base_step(closure)
            finally:
                self.stepping = False

    def _run_base_unless(self, flag: Tensor, base_step: BaseStep) -> Any:
        """BASE's step. It does nothing if the flag on the device is set; GradScaler tells a fused optimizer in the same way."""
        base: Any = self._base
        base.grad_scale, base.found_inf = None, flag
        try:
            return self.run_base(base_step)
        finally:
            del base.grad_scale, base.found_inf

    def _restore(self, others: Sequence[Tensor] = (), saved: Sequence[Tensor] = ()) -> None:
        """Undoes BASE's update, of the parameters that take part and of others."""
        with self.intact:
            self.passes.restore()
            _reference.restore(others, saved)

    def finish_after_failure(self, step: TunerStep, begun: bool = True) -> None:
        """Finishes a step in which BASE failed: it counts, and if it was begun, the others of a team wait for it."""
        self.membership.failures += 1
        try:
            if not begun:
                step.begin()
            step.finish()
        except MechanicdError as error:
            called = self.called()
            logger.warning("BASE failed in a step of %s, and the step could not be finished either: %s", called, str(error))

    def base_lr(self) -> float | None:
        lr = self._base.param_groups[0].get("lr")
        return None if lr is None else float(lr)

    def called(self) -> str:
        """The run's name, for log lines."""
        return self.run.called or "an unnamed run"

    # ---- the tuner

    def tuner_state(self, config: TunerConfig) -> TunerState:
        """The tuner's state after the last step that the host has taken."""
        return self.run.state or TunerState.initial(config)

    def settle(self) -> None:
        """The host takes the steps that so far only the device has taken."""
        if self.async_device is not None:
            with deferred:
                try:
                    self.async_device.settle()
                except BaseException:
                    self.async_device = None
                    raise

    def restart(self, memory: Memory, state: TunerState, grown: int) -> None:
        """Continues from a checkpoint: closes the session; the next step opens one at `state`."""
        self.memory = memory
        self.intact = Intact()
        self.passes = Passes(memory)
        self.parameters = Parameters(self._base, self._scale_groups, memory, self.parameters.shards)
        self.membership.restart()
        self.run.restart(state, grown)

    def grow(self, config: TunerConfig, larger: TunerConfig) -> None:
        """Goes on with the scale groups of `larger`, which are those of `config` and new ones."""
        self.leave_async()
        self.run.grow(self.tuner_state(config).grown(config, larger), len(larger.scale_groups))

    def _can_run_async(self, config: TunerConfig) -> bool:
        """Whether S depends on the sums alone, so that the device can know it before the host does."""
        always_local = self.run.target is None or self.run.on_outage == "local"
        return self._may_run_async and always_local and config.convention in _async_device.CONVENTIONS

    def any(self, config: TunerConfig, cap: float, frozen: bool, fact: bool) -> bool:
        """Whether it is so for any process of the team."""
        return fact if self.team is None else self.team.any(fact, self.membership.stand(self.tuner_state(config), cap, frozen))

    # ---- the parameters

    def start_again(self, params: Sequence[Tensor] | None) -> None:
        """x_ref becomes x, and Δ 0: the parameters join anew with the next step in which they take part."""
        self.parameters.start_again(params, self._before_change)

    def leave_async(self) -> None:
        """The host's tuner comes to where the device's is, and takes the next step."""
        self.settle()
        self.async_device = None

    def _before_change(self) -> None:
        self.leave_async()
        self.passes.forget()

    def _sort(self, config: TunerConfig) -> Parts:
        try:
            return self.parameters.sort(self._before_change)
        except Exception:
            if self.team is not None:
                self.team.report_failure(self.membership.stand(self.tuner_state(config)))
            raise


def _cap(max_scale: float | None) -> float:
    return math.inf if max_scale is None else max_scale
