"""The tuner's state after any step of a run, by replaying its history: each step must give the same S as it did then.

A history may have millions of steps, and other trainers wait for the event loop and for the store's thread. So the steps are
read a page at a time, and taken in slices, between which all else goes on.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

from mechanicd.runs import RunRow, StepOutcome, record_layout, unpack
from mechanicd.service._slices import sliced
from mechanicd.store import Store, StoreDamaged
from mechanicd.tuner import Reductions, ReductionsError, Tuner, TunerState

_PAGE_BYTES: Final = 2**19


async def replayed(call: Callable[..., Awaitable[Any]], store: Store, row: RunRow, after_step: int) -> TunerState | None:
    """The state after a step of the run's history; None where steps are missing, or follow an adopted state.

    The history up to that step may change meanwhile, by a rewind or a new session. Then the run has another epoch than `row`,
    and whatever is made of this state must be conditional on that.

    Args:
        call: runs a method of the store on its thread.

    Raises:
        StoreDamaged, or what `call` makes of it: a step holds what no tuner takes.
    """
    width = len(row.config.scale_groups)
    most = max(1, _PAGE_BYTES // record_layout(width).size)
    tuner = Tuner(row.config)
    state = tuner.init()
    while state.step < after_step:
        page = await call(store.records, row, 0, state.step + 1, after_step, most)
        if not page:
            return None
        async for taken in sliced(unpack(width, page)):
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
                await call(_tell, StoreDamaged(told, 0, taken.step, taken.step))
            if state.scale != taken.scale:  # the recorded step started from an adopted state
                return None
    return state


def _tell(error: StoreDamaged) -> NoReturn:
    raise error
