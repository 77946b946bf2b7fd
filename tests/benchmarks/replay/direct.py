"""A fleet's history straight into a store: no server, no protocol, many runs' tuners at once by the tuner's numpy rules.

Workers compute whole chunks with their part of the pyramid; one process writes them. What is in the store afterwards is what a
server with `--keep-steps` would have left there: of every step its buckets, of the last steps the exact records too.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from time import time_ns
from typing import Any, Final

import numpy as np
from replay.model import Array, Model
from replay.plans import ENDS, Plan

from mechanicd.runs import EventKind, EventRow, RunRow, RunStats, first_scale, record_dtype
from mechanicd.store import Claim, Release, SQLiteStore, SQLStore, open_store
from mechanicd.store import _history as history
from mechanicd.store import _pyramid as tiers
from mechanicd.store import _sql as sql
from mechanicd.store import _summary as summary
from mechanicd.store import _sums as sums
from mechanicd.tuner import CONVENTIONS, TunerConfig, TunerState
from mechanicd.tuner import _rules_numpy as rules

_COLUMNS: Final = 512
_SLAB: Final = 64
_WANTED_EVERY: Final = 16
_PORTION: Final = 2048


@dataclass(frozen=True, slots=True)
class _Run:
    """Runs of one history, which a worker makes by the plan of the first; and where its clock begins (ns since 1970)."""

    ids: tuple[int, ...]
    plan: Plan
    start: int


@dataclass(frozen=True, slots=True)
class _End:
    """Where a run is after its last step."""

    ids: tuple[int, ...]
    state: bytes
    scale: tuple[float, ...]
    step_time: int
    stats: RunStats


def fill(
    url: str,
    project: str,
    plans: Sequence[Plan],
    keep_steps: int | None,
    distinct: int,
    processes: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    """Writes the whole fleet.

    Args:
        distinct: so many histories are computed, and shared; as of the plans.
        keep_steps: exact steps are kept of the last so many steps of each run; None keeps all.
        progress: called with (steps done, steps in all).

    Raises:
        StoreError: the store can't be used.
        RunExists: a run of this name is there already; name another project, or a new store.
    """
    store = open_store(url)
    try:
        _hurry(store)
        now = time_ns()
        rows = {}
        made: list[_Run] = []
        for index, plan in enumerate(plans):
            if index < distinct:
                ago = 2 * 3_600 * 10**9 if plan.fate in (*ENDS, "silent") else 10**9
                made.append(_Run((), plan, now - _duration(plan) - ago))
            of = made[index % distinct]
            row = _begin(store, project, plan, of.start)
            rows[row.id] = row, plan
            made[index % distinct] = replace(of, ids=(*of.ids, row.id))
        _write(store, rows, list(_blocks(made, processes)), keep_steps, processes, seed, progress)
    finally:
        store.close()


def _hurry(store: SQLStore) -> None:
    """A SQLite file that is being filled needs no journal: killed now, it is of no use anyway."""
    if isinstance(store, SQLiteStore):
        if store._files is not None:  # it would miss the WAL that is gone
            store._files.close()
            store._files = None
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            store._db.execute(f"PRAGMA {pragma}")


def _begin(store: SQLStore, project: str, plan: Plan, start: int) -> RunRow:
    config = TunerConfig(scale_groups=plan.scale_groups)
    state = TunerState.initial(config)
    row = store.create(project, plan.run, config, state.to_bytes(), state.scale, start)
    return store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=plan.seed + 1,
            after_step=0,
            state=state.to_bytes(),
            scale=state.scale,
            labels=plan.labels,
            time=start,
            command=plan.command,
            events=(EventRow(start, 0, EventKind.OPENED, "a new run"),),
        )
    )


def _end(store: SQLStore, row: RunRow, plan: Plan, end: _End) -> None:
    with store.transaction() as db:
        sealing = sums.before(db, row.id)
        tiers.rise(db, row.id, len(plan.scale_groups), 0)
        db.execute(
            "UPDATE runs SET last_step = :last_step, folded_step = :last_step, state = :state, scale = :scale,"
            " step_time = :step_time, step_interval = :step_interval, vitals = :vitals, revision = revision + 1 WHERE id = :id",
            {
                "id": row.id,
                "last_step": plan.steps,
                "state": end.state,
                "scale": sql.floats_out(end.scale),
                "step_time": end.step_time,
                "step_interval": int(plan.interval * 1e9),
                "vitals": end.stats.to_text(),
            },
        )
        sums.after(db, row.id, sealing)
    if plan.fate in ENDS:
        message = ENDS[plan.fate]
        closed = EventRow(end.step_time, plan.steps, EventKind.CLOSED, f"closed as {plan.fate}: {message}")
        held = {"run_id": row.id, "epoch": row.epoch, "session": row.session}
        store.commit([], [Release(**held, status=plan.fate, message=message, events=(closed,))])


def _blocks(made: list[_Run], processes: int) -> Iterator[list[_Run]]:
    """Runs that go through the rules together: of one number of groups and of steps."""

    def shape(run: _Run) -> tuple[int, int]:
        return len(run.plan.scale_groups), run.plan.steps

    for (groups, _), alike in groupby(sorted(made, key=shape), key=shape):
        runs = list(alike)
        most = max(1, min(_COLUMNS // groups, -(-len(runs) // processes)))
        for begin in range(0, len(runs), most):
            yield runs[begin : begin + most]


def _write(
    store: SQLStore,
    rows: dict[int, tuple[RunRow, Plan]],
    blocks: list[list[_Run]],
    keep_steps: int | None,
    processes: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(plan.steps for _, plan in rows.values())
    done = 0
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue(2 * processes)  # tasks may be more than a pipe holds before anybody reads
    for block in blocks:
        tasks.put(block)
    workers = [context.Process(target=_work, args=(tasks, results, keep_steps, seed), daemon=True) for _ in range(processes)]
    for worker in workers:
        tasks.put(None)
        worker.start()
    try:
        left = len(blocks)
        while left:
            try:
                made, steps = results.get(timeout=5.0)
            except queue.Empty:
                if any(worker.exitcode for worker in workers):
                    raise SystemExit("a worker failed; its error is above") from None
                continue
            if isinstance(made, list) and made and isinstance(made[0], _End):
                for end in made:
                    for run_id in end.ids:
                        _end(store, *rows[run_id], end)
                left -= 1
                continue
            with store.transaction() as db:
                db.executemany(sql.insert("chunks"), [{**row, "run_id": run_id} for ids, row in made for run_id in ids])
            done += steps
            progress(done, total)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(tasks: Any, results: Any, keep_steps: int | None, seed: int) -> None:
    while (block := tasks.get()) is not None:
        for made in _computed(block, keep_steps, seed):
            results.put(made)


def _computed(block: list[_Run], keep_steps: int | None, seed: int) -> Iterator[tuple[list[Any], int]]:
    """The rows of the chunks of a block, a portion at a time, with the steps in them; at last where its runs ended."""
    plans = [run.plan for run in block]
    groups, last = len(plans[0].scale_groups), plans[0].steps
    model = Model(plans, seed)
    config = TunerConfig(scale_groups=tuple(str(column) for column in range(len(block) * groups)))
    table = rules.from_rows(TunerState.initial(config).rows)
    span = summary.chunk_steps(groups)
    rows: list[Any] = []
    steps = 0
    stats, begun = [RunStats()] * len(block), first_scale(TunerConfig())
    packed = np.empty((len(block), 0), record_dtype(groups))
    for first in range(1, last + 1, span):
        count = min(span, last - first + 1)
        values, table = _steps(model, config, table, first, count)
        packed = _packed(block, model, values, first)
        thinned = keep_steps is not None and first + count - 1 <= last - keep_steps
        whole = count == span
        for begin in range(0, len(block), _SLAB if whole else 1):
            part = packed[begin : begin + (_SLAB if whole else 1)]
            fine = summary.of_steps(groups, part.tobytes())  # buckets of two runs meet at a chunk's end, so none is shared
            each = len(fine) // len(part)
            for index, run in enumerate(block[begin : begin + len(part)]):
                exact = part[index].tobytes()
                stats[begin + index] = stats[begin + index].after(groups, begun, exact)
                number = (first - 1) // span
                own = fine[index * each : (index + 1) * each]
                rows.append(
                    (run.ids, history.chunk_values(0, groups, 0, number, own, b"" if thinned else exact, thinned=thinned))
                )
        steps += count * sum(len(run.ids) for run in block)
        if len(rows) >= _PORTION:
            yield rows, steps
            rows, steps = [], 0
    yield rows, steps
    yield list(_ends(block, groups, table, packed, stats)), 0


def _steps(model: Model, config: TunerConfig, table: rules.Table, first: int, count: int) -> tuple[Array, rules.Table]:
    """`count` steps of all columns: the reductions, h and S of each, shape (count, 6, C); and the tuners after them."""
    S = rules.scale(table.s)
    values = np.empty((count, 6, len(S)))
    noise = model.noise(count)
    rule = CONVENTIONS[config.convention].array_rule()
    wanted = S
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for index in range(count):
            step = np.full(len(S), float(first + index))
            if index % _WANTED_EVERY == 0:
                wanted = model.wanted(step)
            reductions = model.reductions(step, wanted, S, noise[index])
            bad = ~np.isfinite(reductions).all(axis=0) if model.may_be_bad else np.zeros(len(S), bool)
            bad = bad.reshape(-1, model.groups).any(axis=1).repeat(model.groups)
            h = rules.h(config, S, np.where(bad, 0.0, reductions))
            assert h is not None
            following = rule(config, table, h)
            if bad.any():
                following = rules.Table(*(np.where(bad, old, new) for old, new in zip(table, following, strict=True)))
                h[bad] = np.nan
            table = following
            S = rules.scale(table.s)
            values[index, :4], values[index, 4], values[index, 5] = reductions, h, S
    return values, table


def _packed(block: list[_Run], model: Model, values: Array, first: int) -> "np.ndarray[Any, Any]":
    """The records of a chunk, shape (runs, steps)."""
    count, groups = len(values), model.groups
    packed = np.zeros((len(block), count), record_dtype(groups))
    step = np.arange(first, first + count)
    packed["step"] = step
    packed["values"] = values.reshape(count, 6, len(block), groups).transpose(2, 0, 1, 3)
    packed["outcome"] = np.where(np.isnan(packed["values"][:, :, 4, 0]), 2, 1)
    lr = np.stack([model.base_lr(np.full(len(block), float(each))) for each in step], axis=1)
    packed["has_lr"] = ~np.isnan(lr)
    packed["base_lr"] = np.nan_to_num(lr)
    for index, run in enumerate(block):
        packed["time"][index] = run.start + _elapsed(run.plan, step)
    return packed


def _elapsed(plan: Plan, step: Any) -> Any:
    """ns from the run's start to a step: an even beat with some jitter, and seven pauses as of evaluations."""
    jitter = 0.3 * ((step * 2654435761) % 1024) / 1024
    return ((step + jitter) * plan.interval * 1e9).astype(np.int64) + step * 7 // (plan.steps + 1) * (300 * 10**9)


def _duration(plan: Plan) -> int:
    return int(_elapsed(plan, np.array([plan.steps]))[0])


def _ends(
    block: list[_Run], groups: int, table: rules.Table, packed: "np.ndarray[Any, Any]", stats: list[RunStats]
) -> Iterator[_End]:
    rows = rules.to_rows(table)
    for index, run in enumerate(block):
        state = TunerState.from_rows(run.plan.steps, rows[index * groups : (index + 1) * groups])
        yield _End(run.ids, state.to_bytes(), state.scale, int(packed["time"][index, -1]), stats[index])


def cores() -> int:
    """How many processes this machine has room for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
