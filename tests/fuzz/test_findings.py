"""Inputs that were at fault once, and what they are refused with now."""

import contextlib
import math
import sqlite3
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from mechanicd.client import ServerUnavailable, _spool_format, _transport
from mechanicd.runs import RunStats, StepRow, pack, record_layout
from mechanicd.store import SQLiteStore, StoreDamaged, _chunks, _rows, _sums, check, salvage, without_password
from mechanicd.v1 import resources_pb2
from tests.fuzz import stored
from tests.fuzz.harness import Meter
from tests.fuzz.parsers import _RpcError
from tests.fuzz.targets import TARGETS


def refused(target: str, given: Any) -> str:
    """The reason with which an input is refused, "" if it is taken."""
    try:
        TARGETS[target].take(given)
    except TARGETS[target].refused as error:
        return str(getattr(error, "reason", type(error).__name__))
    return ""


@pytest.mark.parametrize("host", ["]", "[", "[]", "[[::1]]", "a]", "[a:b"])
def test_a_host_with_loose_brackets_is_none(host: str) -> None:
    assert refused("target", f"{host}:50051") == "INVALID_TARGET"


def test_a_port_of_thousands_of_digits_is_none() -> None:
    assert refused("target", f"h:{'0' * 5_000}") == "INVALID_TARGET"


@pytest.mark.parametrize("number", ["9" * 9_000 + "x", "." + "9" * 9_000 + "x", "9" * 9_000 + "e"])
def test_a_long_number_takes_time_in_proportion_to_its_length(number: str) -> None:
    """In proportion to its square it was: one request of 60,000 digits froze the page for seconds."""
    meter = Meter()
    for name, given in (("filter", f"scale > {number}"), ("query", {"run": "r", "x0": number * 7})):
        fixed = replace(TARGETS[name], make=lambda rng, given=given: given)
        fixed.one(1, 1, meter)
    assert sorted(meter.said) == ["FilterError", "MALFORMED_REQUEST"]


@pytest.mark.parametrize("version", ["ersion=1.0.0", "1.x", "", "1.0.0é", "a.b.c"])
def test_an_accept_header_with_a_version_that_is_none_is_answered(version: str) -> None:
    assert refused("accept", f"application/openmetrics-text; version={version}") == ""


def test_a_password_that_goes_on_after_its_at_and_a_question_mark_is_not_shown() -> None:
    assert "s3cr3t" not in without_password("postgresql://me:@s3cr3t?@host:5432/runs")


def test_a_scale_that_stays_infinite_turns_nowhere() -> None:
    records = b"".join(
        pack(1, StepRow(step, step, 1, (1.0,), (1.0,), (1.0,), (1.0,), (1.0,), (math.inf,), None)) for step in range(1, 6)
    )
    assert RunStats().after(1, 1e-8, records).turns == ()


@pytest.mark.parametrize("trailer", [b"\x08", b"\x1a\xff", b"\x1a\x03\x12\x01\xff", struct.pack("<Q", 2**64 - 1)])
def test_details_that_cannot_be_read_are_those_of_no_server_of_ours(trailer: bytes) -> None:
    error = _transport.translate(_RpcError(grpc.StatusCode.UNAVAILABLE, "Socket closed", trailer), "127.0.0.1:1")
    assert type(error) is ServerUnavailable
    assert error.reason == "SERVER_UNREACHABLE"


@pytest.mark.parametrize(
    "text", ["null", "[]", "7", '{"tuned": "x"}', '{"tuned": -1}', '{"turns": 7}', '{"marks": [[1, 2, 3, null]]}']
)
def test_damaged_statistics_of_a_run_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"statistic|steps have"):
        RunStats.from_text(text)


DAMAGE: dict[str, Any] = {
    "labels": ['{"a": "\\ud800"}', "[" * 5_000],
    "vitals": ["null", '{"peak": "high"}', '{"non_finite_step": -3}'],
    **{column: [-1, -(2**63)] for column in ("last_step", "create_time", "step_time", "archive_time")},
    "session_count": [-1, 2**32],
    "rewinds": [2**40],
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in DAMAGE.items() for value in values])
def test_a_row_of_a_run_that_no_reader_could_show_is_damaged(column: str, value: Any) -> None:
    row = stored.run_row()
    assert _rows.run_in(tuple(row.values())).last_step == 5
    row |= {"epoch": 2**62, column: value}
    with pytest.raises(StoreDamaged):
        _rows.run_in(tuple(row.values()))


def test_statistics_that_training_can_have_are_taken_again() -> None:
    stats = RunStats(tuned=3, peak=float("inf"), heading=-1, base_lr=1, turns=(1, 2), marks=((64, 1.0, float("inf"), 0),))  # type: ignore[arg-type]
    assert RunStats.from_text(stats.to_text()) == stats


OPENED, STEP, CLOSED = _spool_format.OPENED, _spool_format.STEP, _spool_format.CLOSED
UNEVEN = resources_pb2.StepRecord(step=1, reductions={"delta_dot_g": [1.0], "g_norm_sq": [1.0, 2.0]}, scale=[1.0])


@pytest.mark.parametrize(
    "record",
    [(OPENED, b"\xff" * 9), (STEP, b"\x0a\x7fabc"), (CLOSED, b"\x0b"), (STEP, UNEVEN.SerializeToString())],
    ids=["no opening", "no step", "no end", "uneven scalars"],
)
def test_a_whole_record_of_a_spool_that_is_no_message_of_its_kind_is_damage(record: tuple[int, bytes]) -> None:
    records = list(stored.SPOOL)
    at = next(at for at, (kind, _) in enumerate(records) if kind == record[0])
    records[at] = record
    assert refused("spool", stored.written(records)) == "SPOOL_DAMAGED"


@pytest.mark.parametrize("last", [2**40, 2**62, 2**63 - 1])
def test_curves_are_drawn_beside_a_chunk_with_a_last_step_that_cannot_be(last: int, tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    path.write_bytes(stored.template())
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE chunks SET last_step = ? WHERE run_id = 1 AND branch = 0 AND number = 2", (last,))
        database.commit()
    store = SQLiteStore(str(path), readonly=True)
    row = store.get("p", "r1")
    assert row is not None
    for most in (1, 100):
        assert len(store.summary(row, 0, 1, 2**62, most)) >= 1
    assert any(not finding.harmless for finding in check(store))
    store.close()


def test_a_part_of_a_record_is_damage_although_its_checksum_is_right() -> None:
    groups, values = stored.chunk_row()
    records = values["records"][:-7]
    head = (values["number"], values["first_step"], values["last_step"], values["thinned"])
    sums = _sums.of_chunk(groups, head, values["coarse"], values["fine"], records).to_bytes()
    chunk = _chunks.chunk_in(1, groups, {**values, "records": records, "sums": sums})
    assert chunk is not None
    assert len(chunk.records) % record_layout(groups).size == 0


def test_salvage_leaves_a_row_whose_values_are_of_no_type_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    path.write_bytes(stored.template())
    for change in (
        "UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name = 'chunks'",
        "UPDATE chunks SET number = 'x' WHERE run_id = 1 AND number = 1",
    ):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA writable_schema = ON")
            database.execute(change)
            database.commit()
    target, left = SQLiteStore(":memory:"), list[str]()
    assert salvage(f"sqlite:///{path}", target, lambda each: left.append(each.message)) == 2
    assert any("chunks" in message for message in left), left
    target.close()
