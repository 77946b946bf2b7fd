"""Verifies a store: reads every run and recomputes each of its steps with the tuner."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mechanicd.runs import EventKind, RunRow, StepOutcome, StepRow, pack, unpack
from mechanicd.store import _summary
from mechanicd.store._errors import StoreDamaged
from mechanicd.store._interface import Store, saved_records
from mechanicd.tuner import Reductions, ReductionsError, Tuner, TunerState

_PAGE = 10_000
_PORTION = 1024
_ALL = 2**62
_FIELDS = _summary.dtype(1).names or ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, or something worth knowing. `reason` is stable; see `check`."""

    run: str
    reason: str
    message: str
    harmless: bool = False


def check(store: Store, progress: Callable[[int, int], None] = lambda done, all_: None) -> Iterator[Finding]:
    """Every finding, run by run.

    Reasons: DATABASE_DAMAGED (the engine's own check), TOKEN_UNREADABLE, STATE_UNREADABLE, STATE_MISPLACED (the tuner's state
    is not that of the last step), ROW_DAMAGED (a row that does not have its checksum), HISTORY_DAMAGED (bytes of a run that
    can't be read), HISTORY_DISORDERED, HISTORY_ENDS_EARLY, SCALE_DIFFERS (a step taken again gives another S), SUMMARY_DIFFERS
    (a bucket of the pyramid is not what its steps say); and harmless: HISTORY_HAS_GAPS (steps that never came, or thinned out),
    and SCALE_DIFFERS and STATE_MISPLACED after a step at which a checkpoint's state took the place of the server's.

    Args:
        progress: called with (runs done, runs in all).
    """
    try:
        for text in store.integrity():
            yield Finding("", "DATABASE_DAMAGED", text)
        for token in store.damaged_tokens():
            yield Finding(
                "", "TOKEN_UNREADABLE", f"token {token} can't be read any more, so nobody gets in with it; make another"
            )
        damaged = set()
        for run, reason, text in store.damage():
            damaged.add(run)
            yield Finding(run, reason, text)
        ids = sorted(store.pulse())
        for done, id_ in enumerate(ids):
            progress(done, len(ids))
            with store.snapshot():  # a server may be writing
                for row in store.rows([id_]):
                    yield from _check_run(store, row, f"projects/{row.project}/runs/{row.run}" not in damaged)
        progress(len(ids), len(ids))
    except StoreDamaged as error:  # of the engine's own pages: what comes after them can't be checked
        yield Finding("", "DATABASE_DAMAGED", str(error))


def _check_run(store: Store, row: RunRow, whole: bool) -> Iterator[Finding]:
    """The findings of one run.

    Args:
        whole: all of its history can be read.
    """
    name = f"projects/{row.project}/runs/{row.run}"
    if row.damaged:
        return  # `Store.damage` tells of it
    try:
        state = TunerState.from_bytes(row.state, row.config)
    except ValueError as error:
        yield Finding(name, "STATE_UNREADABLE", str(error))
        return
    if state.step != row.last_step or state.scale != row.scale:
        yield Finding(name, "STATE_MISPLACED", f"the tuner state is at step {state.step}, but the run is at {row.last_step}")
    last = missing = 0
    brought = {event.step for event in store.events(row.id) if event.kind in (EventKind.ADOPTED, EventKind.REWOUND)}
    since: int | None = None  # the last step after which a checkpoint's state may have taken the place of the server's
    replayed: TunerState | None = TunerState.initial(row.config)
    tuner = Tuner(row.config)
    for page in _pages(store, row, 0):
        steps = [last, *(step.step for step in page)]
        if any(after <= before for before, after in pairwise(steps)):
            yield Finding(name, "HISTORY_DISORDERED", f"steps are out of order near step {steps[1]}")
            return
        missing += steps[-1] - steps[0] - len(page)
        last = steps[-1]
        for step in page:
            since = step.step - 1 if step.step - 1 in brought else since
            try:
                replayed = _take(tuner, replayed, step)
            except ReductionsError as error:
                yield Finding(name, "HISTORY_DAMAGED", f"step {step.step} holds what no tuner takes: {error.message}")
                replayed = None
            if replayed is not None and replayed.scale != step.scale:
                yield Finding(
                    name,
                    "SCALE_DIFFERS",
                    f"step {step.step} gives S = {replayed.scale[:3]}, but {step.scale[:3]} is stored{_from_elsewhere(since)}",
                    harmless=since is not None,
                )
                replayed = None
        yield from _check_summary(store, row, 0, page, name) if whole else ()
    if last != row.last_step and last:
        yield Finding(name, "HISTORY_ENDS_EARLY", f"the history ends at step {last}, but the run is at {row.last_step}")
    if replayed is not None and replayed.step == row.last_step and replayed.to_bytes() != row.state:
        since = row.last_step if row.last_step in brought else since
        why = f"replaying the history gives a different state than the stored one{_from_elsewhere(since)}"
        yield Finding(name, "STATE_MISPLACED", why, harmless=since is not None)
    if missing:
        yield Finding(name, "HISTORY_HAS_GAPS", f"{missing} of {last} steps are not stored exactly", harmless=True)
    yield from _check_zooms(store, row, 0, name)
    for branch in store.branches(row):  # not 1…rewinds: that number may be damaged, too
        if branch > row.rewinds:
            yield Finding(name, "HISTORY_DISORDERED", f"there are steps of branch {branch}, but {row.rewinds} rewinds")
        for page in _pages(store, row, branch):
            if any(after.step <= before.step for before, after in pairwise(page)):
                yield Finding(name, "HISTORY_DISORDERED", f"steps of branch {branch} are out of order near step {page[0].step}")
            yield from _check_summary(store, row, branch, page, name) if whole else ()
        yield from _check_zooms(store, row, branch, name)


def _from_elsewhere(step: int | None) -> str:
    """Why a replay may rightly differ: what a checkpoint brought along does not follow from the steps here."""
    return "" if step is None else f"; a checkpoint's state may have been taken over after step {step}"


def _take(tuner: Tuner, state: TunerState | None, step: StepRow) -> TunerState | None:
    """The state after one more step of the history; None once a step is missing."""
    if state is None or step.step != state.step + 1:
        return None
    if step.outcome != StepOutcome.TUNED:
        return tuner.hold(state)
    groups = list(map(Reductions, step.delta_dot_g, step.delta_dot_x, step.g_norm_sq, step.x_norm_sq))
    return tuner.update(state, groups)


def _check_summary(store: Store, row: RunRow, branch: int, page: list[StepRow], name: str) -> Iterator[Finding]:
    """Compares the stored buckets that lie entirely within a page with those recomputed from its exact steps."""
    groups = len(row.config.scale_groups)
    exact = _summary.of_steps(groups, b"".join(pack(groups, step) for step in page))
    exact = exact[1:-1]  # the first and last bucket may include steps of other pages
    if not len(exact):
        return
    first, last = int(exact["first_step"][0]), int(exact["last_step"][-1])
    if first == last:
        return  # the store would return single steps here, not buckets
    kept = store.summary(row, branch, first, last, max(1, (last - first + 1) // _summary.FINEST + 1))
    # Of a bucket whose exact steps are not all there, the others may have been thinned out.
    exact = exact[exact["count"] == exact["size"]]
    kept = kept[np.isin(kept["first_step"], exact["first_step"])]
    if not _same(kept, exact):
        where = f"steps {first} to {last}, branch {branch}"
        yield Finding(name, "SUMMARY_DIFFERS", f"the buckets of {where}, do not match their steps")


def _check_zooms(store: Store, row: RunRow, branch: int, name: str) -> Iterator[Finding]:
    """Compares each level of the pyramid with the level below it, a portion at a time, and the lowest with the steps."""
    end = store.summary(row, branch, 1, _ALL, 1)
    if not len(end):
        return
    last, size = int(end["last_step"][-1]), _summary.FINEST
    spans = store.spans(row, branch)
    while size < last:
        above = size * _summary.FACTOR
        width = above * _PORTION
        # Only where there are steps: a run may begin at step 10¹⁰.
        pieces = {piece for low, high in spans for piece in range((low - 1) // width, (min(high, last) - 1) // width + 1)}
        for first in (piece * width + 1 for piece in sorted(pieces)):
            until = min(first + width - 1, last)
            span = until - first + 1
            fine = store.summary(row, branch, first, until, -(-span // size))
            coarse = store.summary(row, branch, first, until, -(-span // above))
            if not _same(_summary.merge(fine, above), _summary.merge(coarse, above)):
                where = f"of {above} steps, from step {first} to {until}, branch {branch}"
                yield Finding(name, "SUMMARY_DIFFERS", f"the buckets {where}, do not match the level below")
                return
        size = above


def _same(left: _summary.Buckets, right: _summary.Buckets) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(left[field], right[field], equal_nan=field in ("min", "max", "last")) for field in _FIELDS
    )


def _pages(store: Store, row: RunRow, branch: int) -> Iterator[list[StepRow]]:
    with suppress(StoreDamaged):  # `Store.damage` tells of it
        for portion in saved_records(store, row, branch, 1, _ALL, _PAGE):
            yield list(unpack(len(row.config.scale_groups), portion, branch))
