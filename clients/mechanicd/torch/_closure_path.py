"""A step whose BASE may call the closure when and where it likes: BASE starts first, and the sums are taken when it calls.

    BASE starts; at its first call of the closure: launch, read, begin; BASE ends; finish, apply

`_closure.FirstCall` says which gradient is h's. Where a sum is not finite, BASE is unwound from within that call.
"""

from typing import TYPE_CHECKING, Any

from mechanicd.client.framework import deferred
from mechanicd.torch import _reference
from mechanicd.torch._closure import Closure, FirstCall, NotFinite
from mechanicd.torch._distributed import TunerStep
from mechanicd.tuner import TunerConfig

if TYPE_CHECKING:
    from mechanicd.torch._step import BaseStep, Step, Stepper


class _Begun:
    """The step's part at the tuner, once it has begun."""

    def __init__(self, stepper: "Stepper") -> None:
        self._stepper = stepper
        self.step: Step | None = None
        self.tuner_step: TunerStep | None = None

    def begin(self, step: "Step | None", loss: Any) -> None:
        """Sends the sums of a step that is launched.

        Raises:
            NotFinite: one of them is not finite.
        """
        if step is None:  # the run does not start yet
            return
        stepper = self._stepper
        with deferred:  # the second Ctrl-C, which may get through to BASE, stays out of here
            sums = stepper.sums(step)
            tuner_step = TunerStep(step.session, stepper.team, sums, stepper.base_lr(), step.hold)
            tuner_step.begin()
            self.step, self.tuner_step = step, tuner_step
        if not all(group.is_finite() for group in sums):
            raise NotFinite(loss)


def step(stepper: "Stepper", config: TunerConfig, cap: float, frozen: bool, closure: Closure, base_step: "BaseStep") -> Any:
    """Takes one step; as `Stepper.step`."""
    stepper.leave_async()
    passes, params = stepper.passes, stepper.parameters.all()
    begun = _Begun(stepper)
    had_gradients = stepper.any(config, cap, frozen, any(p.grad is not None for p in params))
    at_start = stepper.begin(config, cap, frozen) if had_gradients else None

    def fresh(loss: Any) -> None:
        passes.drop()
        begun.begin(stepper.begin(config, cap, frozen), loss)

    call = FirstCall(
        closure,
        params,
        at_start=(lambda loss: begun.begin(at_start, loss)) if had_gradients else None,
        fresh=fresh,
        agree=lambda moved: stepper.any(config, cap, frozen, moved),
    )
    try:
        result = stepper.run_base(base_step, call)
        if not call.called:
            begun.begin(at_start if had_gradients else stepper.begin(config, cap, frozen), result)
    except BaseException as error:
        with stepper.intact:
            _reference.restore(params, call.x)
        passes.drop()
        if isinstance(error, NotFinite) and begun.tuner_step is not None:
            begun.tuner_step.finish()
            return error.loss
        if begun.tuner_step is not None:
            stepper.finish_after_failure(begun.tuner_step)  # on a team the others wait for it
        raise
    if begun.step is None or begun.tuner_step is None:
        return result
    taking_part = {p for group in begun.step.active for p in group}
    others = [(p, x) for p, x in zip(params, call.x, strict=True) if p not in taking_part]
    with stepper.intact:
        _reference.restore([p for p, _ in others], [x for _, x in others])
    try:
        scales = begun.tuner_step.finish()
    except BaseException:
        with stepper.intact:
            _reference.restore(params, call.x)
        passes.drop()
        raise
    with stepper.intact:
        passes.apply(begun.step.placed(scales))
    return result
