"""The tuner's state after any step of a run, by replaying its history: each step must give the same S as it did then."""

from typing import Final

from mechanicd.runs import RunRow, StepOutcome
from mechanicd.store import Store, StoreDamaged
from mechanicd.tuner import Reductions, ReductionsError, Tuner, TunerState

_PAGE: Final = 10_000


def replayed(store: Store, row: RunRow, after_step: int) -> TunerState | None:
    """The state after a step of the run's history; None where steps are missing, or follow an adopted state.

    Raises:
        StoreDamaged: a step holds what no tuner takes.

    Blocking: call it on the store's thread.
    """
    tuner = Tuner(row.config)
    state = tuner.init()
    while state.step < after_step:
        page = store.steps(row, 0, state.step + 1, after_step, _PAGE)
        if not page:
            return None
        for taken in page:
            if taken.step != state.step + 1:
                return None
            if taken.outcome in (StepOutcome.HELD, StepOutcome.NON_FINITE):
                state = tuner.hold(state)
                continue
            groups = list(map(Reductions, taken.delta_dot_g, taken.delta_dot_x, taken.g_norm_sq, taken.x_norm_sq))
            try:
                state = tuner.update(state, groups)
            except ReductionsError:
                told = f"step {taken.step} of the history can't be replayed: its stored scalars are damaged"
                raise StoreDamaged(told, 0, taken.step, taken.step) from None
            if state.scale != taken.scale:  # the recorded step started from an adopted state
                return None
    return state
