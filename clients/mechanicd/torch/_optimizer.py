"""The mechanized optimizer's public face: a real `torch.optim.Optimizer` around another one. `_step` takes its steps."""

import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.client import AccessDenied, InvalidArgument, MechanicdError, ServerUnavailable
from mechanicd.client.framework import DeltaLayout, Run, check_cap, check_flag, check_status, deferred, failure_of
from mechanicd.torch import _bases, _checkpoint, _groups, _legacy_checkpoints
from mechanicd.torch._delegation import DelegatingOptimizer
from mechanicd.torch._groups import ScaleGroups
from mechanicd.torch._membership import Together
from mechanicd.torch._step import Stepper
from mechanicd.tuner import TunerConfig, TunerState

logger = logging.getLogger("mechanicd.torch")


class Mechanized(DelegatingOptimizer):
    """BASE with its updates scaled by MECHANIC's S; made by `mechanize`.

    `param_groups`, `state` and `defaults` are BASE's own, so a scheduler that sets the lr here sets BASE's.

    Attributes:
        base: BASE.
    """

    def __init__(
        self,
        base: Optimizer,
        config: TunerConfig,
        scale_groups: ScaleGroups,
        delta_layout: DeltaLayout,
        run: Run,
        max_scale: float | None = None,
        ahead: bool = True,
        together: Together | None = None,
    ) -> None:
        self.base = base
        self.max_scale = max_scale
        self.frozen = False
        self._scale_groups = scale_groups
        self._config = config
        self._stepper = Stepper(base, run, scale_groups, delta_layout, ahead, together or Together())
        self._run = self._stepper.run
        # Optimizer.__init__ would build param groups of its own; __setstate__ sets up the rest of an Optimizer.
        self.__setstate__({})
        _groups.refuse_complex(self.param_groups)
        self._name_scale_groups()

    @property
    def max_scale(self) -> float | None:
        """Parameters are placed with no larger S; None for no cap. You may set it between two steps.

        Raises:
            InvalidArgument: INVALID_SETTING, when it is set.
        """
        cap: float | None = self.__dict__["max_scale"]
        return cap

    @max_scale.setter
    def max_scale(self, value: float | None) -> None:
        self.__dict__["max_scale"] = check_cap(value, 0.0)  # 0 puts the parameters back at x_ref

    @property
    def frozen(self) -> bool:
        """While True, S stays as it is: steps count, but the tuner does not see them. You may set it between two steps.

        Raises:
            InvalidArgument: INVALID_SETTING, when it is set.
        """
        frozen: bool = self.__dict__["frozen"]
        return frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self.__dict__["frozen"] = check_flag("frozen", value)

    # ---- the step

    @overload
    def step(self, closure: None = None, *args: Any, **kwargs: Any) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *args: Any, **kwargs: Any) -> float: ...

    def step(self, closure: Callable[[], float] | None = None, *args: Any, **kwargs: Any) -> float | None:
        """Takes one step of BASE and of the tuner (one turn of Algorithm 1's loop).

        A parameter without a gradient, or whose param group has lr = 0, sits the step out and catches up afterwards. If every
        parameter sits out, the tuner does not see the step; before the first real step, such a step does not even count. If a
        reduction is NaN or infinite, the step counts but changes nothing, and a warning is logged once for steps in a row.

        A signal whose handler is Python's, such as Ctrl-C's, waits for the end of the step; while BASE runs, a second one gets
        through, with the effect of an error that BASE raises.

        Args:
            closure: evaluates the model and returns the loss. BASE calls it as often as it likes, with the parameters where
                it likes; h needs one gradient at x_t, which is that of the first call or, if BASE has moved x before it (as
                SAM does), the one that was there when the step began.
            args, kwargs: BASE's further arguments.

        Returns:
            What BASE returns; the loss of the first evaluation if the step changed nothing.

        Raises:
            InvalidArgument: SPARSE_GRADIENT, COMPLEX_PARAMETER, META_PARAMETER, PARAMETER_RESHAPED, GRADIENT_RESHAPED,
                SHARED_STORAGE, GROUP_COUNT_MISMATCH, SCALE_GROUP_MOVED, CUDA_GRAPH_CAPTURE; nothing has changed.
            SessionError, ServerUnavailable: from the session; parameters and Δ are as before the step, but BASE's own state
                has advanced. An error that BASE raises leaves the same, and the step counts.
            SessionError: STEP_BROKEN; an error stopped the update of an earlier step halfway.
        """
        _refuse_capture()
        base_step = self.base.step if not args and not kwargs else partial(_step_with, self.base, args, kwargs)
        if self._run.session is None:
            _bases.check_hooks(self.base)  # it may have got hooks since
        if self._run.state is None or _groups.count(self._scale_groups, self.param_groups) != len(self._config.scale_groups):
            self._name_scale_groups()  # BASE may have got param groups without this optimizer being called
        result: float | None = self._stepper.step(self._config, self.max_scale, self.frozen, closure, base_step)
        return result

    def start_again(self, params: Iterable[Tensor] | Tensor | None = None) -> None:
        """Trains on from the weights as they are: x_ref := x and Δ := 0.

        What MECHANIC has learned as a direction, Δ, belongs to the weights it was learned for. Call this after a change that
        puts others in their place: a merged and reset adapter (ReLoRA), weights of another training, a new shape. A change
        that training should simply go on from, such as clipping, pruning or averaging, needs no call. S and BASE's own state
        stay as they are; `opt.state.clear()` resets the latter.

        Args:
            params: the parameters, each one of this optimizer; None for all of them.

        Raises:
            InvalidArgument: PARAMETER_UNKNOWN; nothing has changed.
            SessionError: from the session; on a CUDA device this waits for the steps that are still in flight.
        """
        chosen = None if params is None else [params] if isinstance(params, Tensor) else list(params)
        known = set(_groups.flat(self.param_groups))
        for p in chosen or ():
            if not isinstance(p, Tensor) or p not in known:
                what = f"a tensor of shape {tuple(p.shape)}" if isinstance(p, Tensor) else repr(p)
                raise InvalidArgument(
                    "PARAMETER_UNKNOWN", f"{what} is no parameter of this optimizer; pass some of opt.param_groups, or nothing"
                )
        self._stepper.start_again(chosen)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Gives BASE more parameters; they join with Δ = 0. Unless all parameters share one S, they get an S of their own.

        The scale groups of a run are fixed at the server. So a run that gets one there goes on under another name from then on:
        "bert/seed0" with three groups as "bert/seed0/3-groups". Without a server nothing but `scales` shows it.

        Raises:
            InvalidArgument: COMPLEX_PARAMETER or BASE_DIFFERENTIABLE, and the group is not added.
        """
        self.base.add_param_group(param_group)
        try:
            _bases.check_groups(self.base)
            _groups.refuse_complex(self.param_groups)
        except InvalidArgument:
            self.param_groups.pop()
            raise
        self._name_scale_groups()

    def _name_scale_groups(self) -> None:
        before, now = self._config, replace(self._config, scale_groups=_groups.names(self._scale_groups, self.param_groups))
        if self._run.state is not None and now != before:
            if not set(now.scale_groups) > set(before.scale_groups):
                raise _groups.lost(self._scale_groups, before.scale_groups, now.scale_groups)
            self._stepper.grow(before, now)
        self._config = now

    # ---- the run

    @property
    def run(self) -> str:
        """The run's name."""
        return self._run.called

    @property
    def last_step(self) -> int:
        """t, the last step that the run has taken; 0 before the first."""
        return self._settled().step

    @property
    def scale(self) -> float:
        """S to use now; 0.0 before the first step. On a CUDA device this waits for the steps that are still in flight.

        Raises:
            InvalidArgument: SEVERAL_SCALES; the optimizer has several scale groups, see `scales`.
        """
        scales = self.scales
        if len(scales) != 1:
            raise InvalidArgument(
                "SEVERAL_SCALES",
                f"this optimizer has {len(scales)} scale groups, each with its own S; use opt.scales, a tuple with one S each",
            )
        return scales[0]

    @property
    def scales(self) -> tuple[float, ...]:
        """S to use now, one float per scale group; 0.0 before the first step. It waits as `scale` does."""
        cap = self.max_scale
        return tuple(S if cap is None else min(S, cap) for S in self._settled().scale)

    def effective_lr(self) -> list[float]:
        """S·lr of each param group: the learning rate with which BASE alone would move as far.

        Raises:
            InvalidArgument: SEVERAL_SCALES; a param group has several S (scale_groups="tensor"), see `effective_lrs`.
        """
        lrs = self.effective_lrs()
        if any(len(group) > 1 for group in lrs):
            raise InvalidArgument(
                "SEVERAL_SCALES",
                f'with scale_groups="{self._scale_groups}" each tensor of a param group has its own S; '
                "use opt.effective_lrs(), a list of tuples",
            )
        return [lr for group in lrs for lr in group]

    def effective_lrs(self) -> list[tuple[float, ...]]:
        """S·lr, one tuple per param group: of one float, or of one per tensor with scale_groups="tensor". An lr of None, which
        tells BASE to choose its own, counts as 1.0."""
        lrs = [_lr(group) for group in self.param_groups]
        return _groups.per_param_group(self._scale_groups, self.param_groups, self.scales, lrs)

    def flush(self, timeout: float | None = None) -> int:
        """Waits until the server has committed every step; returns its last committed step. 0 without a server.

        Raises:
            SessionError, ServerUnavailable: from the session.
        """
        self._stepper.settle()
        return 0 if self._run.session is None else self._run.session.flush(timeout)

    def close(self, status: str | None = None, message: str = "") -> None:
        """Ends the session and records why: "finished", "failed" or "preempted"; see `Session.close`. A second call does
        nothing.

        Raises:
            InvalidArgument: INVALID_STATUS; nothing has changed.
        """
        check_status(status)
        try:
            self._stepper.settle()
        finally:
            self._stepper.async_device = None
            self._run.close(status, message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        failed = failure_of(error)
        self.close(None if failed is None else "failed", failed or "")

    def _settled(self) -> TunerState:
        """The tuner's state after the last step, on whatever device it was taken."""
        self._stepper.settle()
        return self._stepper.tuner_state(self._config)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """BASE's state_dict with the tuner's state and Δ in it, as `_checkpoint` describes; with the model's own it is enough
        to resume bit for bit.

        It waits until the server has committed every step. If the server is unreachable, or denies access, that is logged, and
        the checkpoint is good without it.

        Raises:
            SessionError: this process no longer holds the run.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._stepper.intact.check()
        self._stepper.settle()
        if self._run.target is not None and self._run.session is not None and not self._run.closed:
            try:
                self._run.session.flush(self._run.deadline)
            except (ServerUnavailable, AccessDenied) as error:
                called = self._stepper.called()
                logger.warning("saving a checkpoint of %s that its server may not have in full: %s", called, str(error))
        wholes, params = _groups.flat(self.param_groups), self._stepper.parameters.local(self.param_groups)
        state = self._stepper.tuner_state(self._config)
        run, memory = self._run, self._stepper.memory
        state_dict = _checkpoint.pack(
            self.base.state_dict(), self._config, state, self.frozen, run.grown, memory, params, wholes, run.random
        )
        self._stepper.given.note(state_dict, state.step)
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from `state_dict()`; load the model's own parameters before this.

        It also reads mechanic-pytorch's state_dict, into an optimizer with convention="pytorch". An open session is closed,
        and the next step opens one that starts at the checkpoint.

        Raises:
            ResumeError, ConfigMismatch: as `_checkpoint.unpack` says, or STATE_DICT_NOT_COPIED; nothing has changed.
            InvalidArgument: INVALID_SETTING; it is no dict.
            ValueError: BASE refuses its part; nothing has changed.
        """
        if not isinstance(state_dict, dict):
            raise InvalidArgument("INVALID_SETTING", f"state_dict={state_dict!r}; give what state_dict() returned")
        with contextlib.suppress(MechanicdError):  # what the server refused no longer matters
            self._stepper.settle()
        self._stepper.given.check(state_dict, self._stepper.tuner_state(self._config).step)
        self._stepper.async_device = None
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        params = self._stepper.parameters.local(self.param_groups)
        layout = self._stepper.memory.layout
        upgraded = _legacy_checkpoints.upgraded(state_dict, self._config, layout, params)
        with torch.inference_mode(False):
            state, frozen, grown, memory = _checkpoint.unpack(upgraded, self._config, layout, params)
        with deferred, torch.inference_mode(False):
            self.base.load_state_dict(_checkpoint.bare(upgraded))
            self.frozen = frozen
            self._run.resume_as(_checkpoint.random_of(upgraded))
            self._stepper.restart(memory, state, grown)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        self._stepper.settle()
        names = ("base", "max_scale", "frozen", "_run", "_scale_groups", "_config", "_stepper")
        return {name: self.__dict__[name] for name in names}

    def __repr__(self) -> str:
        state = self._settled()
        low, high = min(state.scale), max(state.scale)
        S = f"{low!r}" if len(state.scale) == 1 else f"{low!r}…{high!r} of {len(state.scale)} groups"
        where = f", target={self._run.target!r}" if self._run.target is not None else ""
        return f"Mechanized(run={self.run!r}{where}, step={state.step}, scale={S}, base={self.base!r})"


def _step_with(base: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any] | None = None) -> Any:
    """BASE's step with further arguments."""
    result: Any = base.step(**kwargs) if closure is None and not args else base.step(closure, *args, **kwargs)
    return result


def _lr(param_group: dict[str, Any]) -> float:
    lr = param_group.get("lr")
    return 1.0 if lr is None else float(lr)


def _refuse_capture() -> None:
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise InvalidArgument(
            "CUDA_GRAPH_CAPTURE",
            "step() was called while a CUDA graph is being captured; a step needs the host, to ask for S. Capture forward and "
            "backward only, and call step() after the replay",
        )
