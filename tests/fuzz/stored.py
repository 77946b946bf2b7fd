"""Targets of what lies on a disk: tuner states, records, journals, chunks, rows of runs, spool files, whole stores."""

import contextlib
import io
import json
import random
import shutil
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from mechanicd import access
from mechanicd.client import MechanicdError, _spool_format, _spool_history, _wire
from mechanicd.runs import (
    RunStats,
    Silence,
    StepColumns,
    StepOutcome,
    StepRow,
    alerts,
    judged,
    pack,
    parse_filter,
    unpack,
    unpack_columns,
)
from mechanicd.service import ServiceError, _convert
from mechanicd.store import (
    Claim,
    Commit,
    Rewind,
    SQLiteStore,
    StoreDamaged,
    StoreError,
    _chunks,
    _journal,
    _rows,
    _sql,
    _sums,
    _tokens,
    check,
    salvage,
)
from mechanicd.store import _summary as summary
from mechanicd.tuner import CONVENTIONS, ConfigError, Reductions, StateError, Tuner, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2
from tests.fuzz import mutation
from tests.fuzz.harness import Target

NAME = "projects/p/runs/r"
CONFIGS = (
    TunerConfig(),
    TunerConfig(betas=(0.9,), scale_groups=("a", "b", "c")),
    TunerConfig(convention="optax", scale_groups=tuple(f"g{n}" for n in range(20))),
)


def trained(config: TunerConfig, steps: int) -> tuple[list[StepRow], TunerState]:
    """Steps of a run, and the state after them."""
    rng, tuner, state, rows = random.Random(steps), Tuner(config), TunerState.initial(config), []
    for step in range(1, steps + 1):
        groups = [
            Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0.0, 1.0), rng.random(), rng.random()) for _ in config.scale_groups
        ]
        h = tuner.h(state, groups)
        assert h is not None
        state = tuner.advance(state, h)
        g, x, gg, xx = zip(*groups, strict=True)
        rows.append(StepRow(step, 10**18 + step, StepOutcome.TUNED, g, x, gg, xx, h, state.scale, 1.0 if step % 2 else None))
    return rows, state


# --- states ----------------------------------------------------------------------------------------------------------------

_STATES: Final = tuple((config, trained(config, 5)[1].to_bytes()) for config in CONFIGS)


def summed(rng: Random, data: bytes) -> bytes:
    """Half of the time with the checksum that its bytes have."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])) if rng.random() < 0.6 and len(data) > 4 else data


def _make_state(rng: Random) -> tuple[TunerConfig | None, bytes]:
    config, _ = rng.choice(_STATES)
    return rng.choice((config, None)), summed(rng, mutation.data(rng, [data for _, data in _STATES]))


def _take_state(given: tuple[TunerConfig | None, bytes]) -> None:
    config, data = given
    state = TunerState.from_bytes(data, config)
    again = state.to_bytes()
    assert TunerState.from_bytes(again, config).to_bytes() == again
    if config is not None:
        tuner = Tuner(config)
        following = tuner.update(state, [Reductions(-1.0, 0.5, 1.0, 2.0)] * len(config.scale_groups))
        assert all(0.0 <= each < float("inf") for each in following.scale), following.scale


def _make_config(rng: Random) -> Any:
    groups = {
        "scale_groups": lambda rng: rng.choice(
            ([], ["a"], ["a"], ["a"], ["b", "c"], ["a", "a"], ["é" * 300], [f"g{n}" for n in range(70)])
        )
    }
    betas = {"betas": lambda rng: rng.choice(([], [0.9], [0.9], [1.0, 0.5], [mutation.real(rng)], [0.5] * 65))}
    scalars = {name: lambda rng: rng.choice((1e-8, 0.01, 1.0, mutation.real(rng))) for name in ("s_decay", "s_init", "eps")}
    wealth = {"initial_wealth": lambda rng: rng.choice((1e-8, 1e-8, mutation.real(rng)))}
    return mutation.message(rng, resources_pb2.TunerConfig.DESCRIPTOR, groups | betas | scalars | wealth)


def _take_config(given: Any) -> None:
    _wire.config_in(_convert.config_out(_convert.config_in(given)))
    assert CONVENTIONS


def _make_reductions(rng: Random) -> Any:
    dots = {name: lambda rng: [mutation.real(rng)] for name in ("delta_dot_g", "delta_dot_x")}
    squares = {name: lambda rng: [abs(mutation.real(rng)) * rng.choice((1, 1, 1, -1))] for name in ("g_norm_sq", "x_norm_sq")}
    if rng.random() < 0.8:
        return resources_pb2.Reductions(**{name: draw(rng) for name, draw in (dots | squares).items()})
    return mutation.message(rng, resources_pb2.Reductions.DESCRIPTOR, dots | squares)


def _take_reductions(given: Any) -> None:
    tuner, state = Tuner(TunerConfig()), TunerState.initial(TunerConfig())
    try:
        groups = tuner.groups(_convert.reductions_in(given, 1))
    except ValueError:
        raise _convert.reductions_refused(given, 1) from None
    h = tuner.h(state, groups)
    after = state if h is None else tuner.advance(state, h)
    assert all(0.0 <= each < float("inf") for each in after.scale), after.scale


def _make_columns(rng: Random) -> tuple[int, bytes]:
    groups = rng.choice((1, 2, 3, 130))
    columns = {name: [abs(mutation.real(rng)) for _ in range(groups)] for name in Reductions._fields}
    return groups, mutation.data(rng, (resources_pb2.Reductions(**columns).SerializeToString(),))


def _take_columns(given: tuple[int, bytes]) -> None:
    groups, data = given
    try:
        message = resources_pb2.Reductions.FromString(data)
    except DecodeError:
        return
    columns = _convert.columns_in(message, groups)
    expected = np.array([getattr(message, name) for name in Reductions._fields])
    assert columns.tobytes() == expected.tobytes()


# --- history ---------------------------------------------------------------------------------------------------------------

_GROUPS: Final = (1, 3)
_RECORDS: Final = {
    len(c.scale_groups): b"".join(pack(len(c.scale_groups), row) for row in trained(c, 40)[0]) for c in CONFIGS[:2]
}
_BUCKETS: Final = {groups: summary.of_steps(groups, data).tobytes() for groups, data in _RECORDS.items()}


def _make_records(rng: Random) -> tuple[int, int, int, bytes]:
    groups = rng.choice(_GROUPS)
    low = rng.choice((1, 1, 0, 5, 2**62))
    return groups, low, low + rng.choice((39, 39, 0, 100)), mutation.data(rng, (_RECORDS[groups],))


def _take_records(given: tuple[int, int, int, bytes]) -> None:
    groups, low, high, data = given
    whole, gaps = _chunks.readable(groups, data, low, high)
    steps = [row.step for row in unpack(groups, whole)]
    assert steps == sorted(set(steps))
    assert all(low <= step <= high for step in steps)
    assert all(low <= gap.first <= gap.last <= high for gap in gaps)
    columns = unpack_columns(groups, whole)
    assert isinstance(columns, StepColumns)
    assert list(columns.step) == steps
    if steps:
        RunStats().after(groups, 1e-8, whole).to_text()
        summary.of_steps(groups, whole)


def _make_buckets(rng: Random) -> tuple[int, bytes]:
    groups = rng.choice(_GROUPS)
    return groups, mutation.data(rng, (_BUCKETS[groups],))


def _take_buckets(given: tuple[int, bytes]) -> None:
    groups, data = given
    found = _chunks.buckets(groups, data, 1, 1024)
    if found is not None and len(found):
        assert found["first_step"].min() >= 1
        summary.merge(found, 64)


def chunk_row(groups: int = 1) -> tuple[int, dict[str, Any]]:
    """A row of `chunks`, without its checksums."""
    blobs = {"records": _RECORDS[groups], "fine": _BUCKETS[groups], "coarse": _BUCKETS[groups]}
    return groups, {"branch": 0, "number": 0, "first_step": 1, "last_step": 40, "thinned": 0, **blobs}


def _make_chunk(rng: Random) -> tuple[int, dict[str, Any]]:
    """A row of `chunks` whose checksums are those of its bytes, or were."""
    groups, whole = chunk_row(rng.choice(_GROUPS))
    values = dict(whole)
    for name, value in whole.items():
        if isinstance(value, bytes):
            values[name] = mutation.data(rng, (value,)) if rng.random() < 0.4 else value
        elif rng.random() < 0.1:
            values[name] = mutation.whole(rng, 64, signed=True)
    of = values if rng.random() < 0.3 else whole
    head = (of["number"], of["first_step"], of["last_step"], of["thinned"])
    sums = _sums.of_chunk(groups, head, of["coarse"], of["fine"], of["records"]).to_bytes()
    return groups, {**values, "sums": rng.choice((sums, sums, None, mutation.data(rng, (sums,))))}


def _take_chunk(given: tuple[int, dict[str, Any]]) -> None:
    groups, values = given
    chunk = _chunks.chunk_in(1, groups, values)
    if chunk is not None:
        list(unpack(groups, chunk.records))
        summary.merge(chunk.fine, 64)


_SEGMENTS: Final = (
    _journal.pack([_journal.Segment(1, 1, 1, 40, _RECORDS[1]), _journal.Segment(2, 3, 1, 40, _RECORDS[3])]),
    _journal.pack([_journal.Segment(7, 1, 5, 5, b"x" * 80)] * 3),
)


def _take_journal(given: bytes) -> None:
    for segment in _journal.unpack(given):
        assert 0 < segment.first_step <= segment.last_step


_STATS: Final = tuple(RunStats().after(groups, 1e-8, data).to_text() for groups, data in _RECORDS.items())


def _take_stats(given: str) -> None:
    RunStats.from_text(given).to_text()


def _take_row(given: tuple[Any, ...]) -> None:
    row = _rows.listed_in(given)
    needs = alerts(row, 10**18, Silence())
    _convert.run_out(judged(row, 10**18, Silence()), needs, command=True).SerializeToString()
    assert isinstance(parse_filter("scale > 1 AND step < 7 AND name : r AND labels.a = b AND archived : *")(row, needs), bool)
    _rows.run_in(given)


_COLUMNS: Final = tuple(column.removeprefix("runs.") for column in _rows.RUN.split(", "))


def run_row(config: TunerConfig = CONFIGS[0], stats: str = "") -> dict[str, Any]:
    """A row of `runs` as it is read, by column."""
    state = trained(config, 5)[1]
    row: dict[str, Any] = {
        "id": 1,
        "revision": 1,
        "project": "p",
        "run": "r",
        "labels": '{"a": "b"}',
        "status": "running",
        "status_message": "",
        "config": json.dumps({"betas": config.betas, "scale_groups": config.scale_groups, "convention": config.convention}),
        "epoch": 1,
        "session": 1,
        "last_step": 5,
        "state": state.to_bytes(),
        "scale": _sql.floats_out(state.scale),
        "create_time": 1,
        "open_time": 1,
        "step_time": 1,
        "step_interval": 1,
        "session_count": 1,
        "rewinds": 0,
        "command": "",
        "vitals": stats,
        "archive_time": 0,
    }
    return {column: row.get(column, 0) for column in _COLUMNS}


_ROWS: Final = tuple(run_row(config, stats) for config in CONFIGS for stats in _STATS)


def _make_row(rng: Random) -> tuple[Any, ...]:
    row = dict(rng.choice(_ROWS))
    for _ in range(rng.randrange(3)):
        column = rng.choice(_COLUMNS)
        value = row[column]
        if isinstance(value, int):
            row[column] = mutation.whole(rng, 64, signed=True)
        elif isinstance(value, bytes):
            row[column] = mutation.data(rng, (value,))
        else:
            words = ('"', "{", "}", "[", "]", "null", "1e999", "NaN", "9" * 5_000, "[" * 999, "\\ud800", "-1")
            row[column] = mutation.unicode(mutation.text(rng, (value,), words))
    return tuple(row[column] for column in _COLUMNS)


_TOKEN: Final = _tokens.row_of(access.create("p", access.Role.READ, 1, note="of a test")[1])


def _make_token(rng: Random) -> dict[str, Any]:
    data = mutation.data(rng, (_TOKEN["data"], b"null", b"{}", b"[" * 999))
    checksum = zlib.crc32(data) if rng.random() < 0.8 else rng.choice((_TOKEN["checksum"], None, 0))
    return {"id": rng.choice((_TOKEN["id"], mutation.data(rng, (_TOKEN["id"],)), None, 7)), "checksum": checksum, "data": data}


def _take_token(given: dict[str, Any]) -> None:
    token = _tokens.token_in(given)
    assert token is None or token.role in access.Role
    _tokens.id_in(given).encode()


# --- spool files -----------------------------------------------------------------------------------------------------------


def _spool() -> list[tuple[int, bytes]]:
    config = CONFIGS[1]
    rows, state = trained(config, 6)
    opened = tuner_service_pb2.OpenSessionRequest(name=NAME, config=_wire.config_out(config), client="x")
    steps = [
        resources_pb2.StepRecord(
            step=row.step,
            outcome=resources_pb2.STEP_OUTCOME_TUNED,
            reductions=resources_pb2.Reductions(**{name: getattr(row, name) for name in Reductions._fields}),
            scale=row.scale,
        )
        for row in rows
    ]
    again = tuner_service_pb2.OpenSessionRequest(name=NAME, config=_wire.config_out(config), tuner_state=state.to_bytes())
    closed = tuner_service_pb2.CloseSessionRequest(status=resources_pb2.RUN_STATUS_FINISHED, message="done")
    return [
        (_spool_format.OPENED, opened.SerializeToString()),
        *((_spool_format.STEP, step.SerializeToString()) for step in steps),
        (_spool_format.SYNCED, b""),
        (_spool_format.OPENED, again.SerializeToString()),
        (_spool_format.CLOSED, closed.SerializeToString()),
    ]


SPOOL: Final = _spool()


def written(records: Iterable[tuple[int, bytes]]) -> bytes:
    """A spool file of these records."""
    made = bytearray(_spool_format.HEADER)
    for kind, message in records:
        synced = kind == _spool_format.SYNCED and not message
        made += _spool_format.synced(len(made)) if synced else _spool_format.framed(len(made), kind, message)
    return bytes(made)


_WHOLE_SPOOL: Final = written(SPOOL)


def _make_spool(rng: Random) -> bytes:
    """Records that are damaged before they are written with their checksums, or a file that is damaged after."""
    if rng.random() < 0.3:
        return mutation.data(rng, (_WHOLE_SPOOL, b"", b"MSPL\x02\0\0\0"))
    records = list(SPOOL)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(records))
        kind, message = records[at]
        match rng.randrange(5):
            case 0 | 1 if message:
                records[at] = (kind, mutation.data(rng, (message,)))
            case 2 if len(records) > 1:
                del records[at]
            case 3:
                records[at] = (rng.randrange(6), message)
            case _:
                records.insert(at, rng.choice(SPOOL))
    return written(records)


class _File(io.BytesIO):
    name = "x.spool"


def _take_spool(given: bytes) -> None:
    file = _File(given)
    history = _spool_history.read_history(file, Path(file.name))
    for opening in history.openings:
        request = _spool_history.opened(file, opening)
        tuner, state = Tuner(history.config), _spool_history.start_of(request, history.config)
        for step in _spool_history.steps(file, opening):
            state = _spool_history.advanced(tuner, state, step)
    _spool_history.state_after(file, history, history.last)


# --- stores ----------------------------------------------------------------------------------------------------------------


@cache
def folder() -> Path:
    """A folder in memory where there is one: thousands of files are written."""
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def template() -> bytes:
    """A store with runs, branches, chunks, tiers and a journal."""
    path = folder() / "template.db"
    store = SQLiteStore(str(path))
    for number, config in enumerate(CONFIGS[:2], 1):
        first = TunerState.initial(config)
        row = store.create("p", f"r{number}", config, first.to_bytes(), first.scale, 10**18)
        steps, _ = trained(config, 2_200 if number == 1 else 60)
        tuner, state, session = Tuner(config), first, number
        row = _claimed(store, row, session, first)
        for begin in range(0, len(steps), 50):
            batch, before = steps[begin : begin + 50], state
            for step in batch:
                state = tuner.advance(state, step.h)
            row = store.get("p", f"r{number}") or row
            stats = row.stats.after(len(config.scale_groups), 1e-8, b"".join(pack(len(config.scale_groups), s) for s in batch))
            commit = Commit(
                run_id=row.id,
                epoch=row.epoch,
                session=session,
                after_step=before.step,
                stats=stats,
                last_step=state.step,
                state=state.to_bytes(),
                scale=state.scale,
                step_time=10**18,
                records=b"".join(pack(len(config.scale_groups), step) for step in batch),
            )
            assert store.commit([commit], []) == [True]
        if number == 1:
            store.fold()
    back = TunerState.initial(CONFIGS[1])
    row = store.get("p", "r2") or row
    store.fold()
    store.rewind(
        Rewind(
            run_id=row.id,
            expected_epoch=row.epoch,
            after_step=0,
            session=9,
            state=back.to_bytes(),
            scale=back.scale,
            message="back",
        )
    )
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("VACUUM")
    return path.read_bytes()


def _claimed(store: SQLiteStore, row: Any, session: int, state: TunerState) -> Any:
    return store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=session,
            after_step=0,
            state=state.to_bytes(),
            scale=state.scale,
            labels={"batch": "256"},
            time=10**18,
        )
    )


def _make_store(rng: Random) -> tuple[bytes, list[tuple[str, str, Any]]]:
    """The bytes of a file, and values that are put into cells of it."""
    if rng.random() < 0.4:
        return mutation.data(rng, (template(),)), []
    cells: list[tuple[str, str, Any]] = []
    for _ in range(rng.randrange(1, 3)):
        table = rng.choice(("runs", "chunks", "tiers", "journal", "sessions", "events"))
        cells.append((table, rng.choice(_sql.TABLES[table]), rng.getrandbits(32)))
    return template(), cells


def _changed(database: sqlite3.Connection, table: str, column: str, draw: int) -> None:
    rng = Random(draw)
    ids = [id_ for (id_,) in database.execute(f"SELECT rowid FROM {table}").fetchall()]
    if not ids:
        return
    id_ = rng.choice(ids)
    (value,) = database.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (id_,)).fetchone()
    new: Any
    if isinstance(value, int):
        new = rng.choice((mutation.whole(rng, 64, signed=True), value + 1, 10**10, value ^ 1 << rng.randrange(62)))
    elif isinstance(value, bytes):
        new = mutation.data(rng, (value,))
    else:
        new = mutation.unicode(mutation.text(rng, (value,), ('"', "{", "}", "null", "1e999")))
    with contextlib.suppress(sqlite3.Error, OverflowError):
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, id_))


def _take_store(given: tuple[bytes, list[tuple[str, str, Any]]]) -> None:
    data, cells = given
    path = folder() / "store.db"
    path.write_bytes(data)
    if cells:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("PRAGMA journal_mode = MEMORY")
            for cell in cells:
                _changed(database, *cell)
    store = SQLiteStore(str(path), readonly=True)
    try:
        for finding in check(store):
            assert finding.reason
            finding.message.encode()
        for row in store.list_runs(None, None, 100):
            for branch in range(min(row.rewinds, 3) + 1):
                with contextlib.suppress(StoreDamaged):
                    records = store.records(row, branch, 1, 2**62, 100)
                    list(unpack(len(row.config.scale_groups), records))
                with contextlib.suppress(StoreDamaged):
                    store.summary(row, branch, 1, 2**62, 10)
            store.events(row.id)
    finally:
        store.close()
    target = SQLiteStore(":memory:")
    try:
        salvage(f"sqlite:///{path}", target, lambda left: None)
    finally:
        target.close()


TARGETS = (
    Target(
        name="tuner-state",
        make=_make_state,
        take=_take_state,
        refused=(StateError,),
        covers=(TunerState.from_bytes, _convert.state_in),
    ),
    Target(
        name="tuner-config",
        make=_make_config,
        take=_take_config,
        refused=(ServiceError, ConfigError),
        covers=(_convert.config_in, _wire.config_in),
        rounds=20_000,
    ),
    Target(
        name="reductions",
        make=_make_reductions,
        take=_take_reductions,
        refused=(ServiceError,),
        covers=(_convert.reductions_in,),
        rounds=20_000,
    ),
    Target(
        name="columns",
        make=_make_columns,
        take=_take_columns,
        refused=(ServiceError,),
        covers=(_convert.columns_in,),
        rounds=30_000,
    ),
    Target(
        name="records",
        make=_make_records,
        take=_take_records,
        covers=(unpack, unpack_columns, _chunks.readable),
        rounds=20_000,
        quick=30,
    ),
    Target(name="buckets", make=_make_buckets, take=_take_buckets, covers=(_chunks.buckets,), rounds=20_000, quick=30),
    Target(
        name="chunk",
        make=_make_chunk,
        take=_take_chunk,
        covers=(_chunks.chunk_in, _sums.ChunkSums.from_bytes),
        rounds=10_000,
        quick=20,
    ),
    Target(
        name="journal",
        make=lambda rng: mutation.data(rng, _SEGMENTS),
        take=_take_journal,
        refused=(StoreDamaged,),
        covers=(_journal.unpack,),
    ),
    Target(
        name="run-stats",
        make=lambda rng: mutation.text(rng, _STATS, ('"', "{", "}", "null", "1e999", "[", "]", ":", "9" * 5_000)),
        take=_take_stats,
        refused=(ValueError, TypeError),
        covers=(RunStats.from_text,),
    ),
    Target(
        name="run-row",
        make=_make_row,
        take=_take_row,
        refused=(StoreDamaged,),
        covers=(_rows.run_in, _rows.listed_in, _rows.config_in, _sql.floats_in),
        rounds=30_000,
    ),
    Target(name="token-row", make=_make_token, take=_take_token, covers=(_tokens.token_in, _tokens.id_in), rounds=20_000),
    Target(
        name="spool",
        make=_make_spool,
        take=_take_spool,
        refused=(MechanicdError,),
        covers=(_spool_history.read_history, _spool_format.check_header, _spool_format.records, _spool_history.start_of),
        rounds=20_000,
        quick=20,
    ),
    Target(
        name="store",
        make=_make_store,
        take=_take_store,
        refused=(StoreError,),
        covers=(check, salvage),
        rounds=1_500,
        quick=2,
    ),
)
