"""Damaged bytes in a store: what is lost is named, what is not is still read, and no other run is harmed."""

import asyncio
import http.client
import json
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mechanicd.cli import main
from mechanicd.runs import RunRow, Silence, StepOutcome, StepRow, alerts, export_rows, pack, record_layout, unpack_columns
from mechanicd.service._replay import replayed
from mechanicd.store import Store, StoreDamaged, check, copy, open_store, saved_records
from tests.store.test_history import ALL, TWO, Training, fold_all

WIDTH = record_layout(2).size
STEPS = 3000  # three chunks of 1,024 steps: 1, 1,025 and 2,049


def cut(blob: bytes) -> bytes:
    return blob[: 100 * WIDTH + 7]


def without_end(blob: bytes) -> bytes:
    return blob[: 1000 * WIDTH]


def without_middle(blob: bytes) -> bytes:
    return blob[: 100 * WIDTH] + blob[100 * WIDTH + 11 :]


def one_step(blob: bytes) -> bytes:
    return blob[: 100 * WIDTH] + struct.pack("<Q", 2**63 + 5) + blob[100 * WIDTH + 8 :]


def empty(blob: bytes) -> bytes:
    return b""


def noise(blob: bytes) -> bytes:
    return np.random.default_rng(1).bytes(777)


LOST = {cut: (1125, 2048), without_end: (2025, 2048), without_middle: (1125, 2048), one_step: (1125, 1125)}
LOST |= {empty: (1025, 2048), noise: (1025, 2048)}
Damage = Callable[[bytes], bytes]


def spoil(store: Any, run: RunRow, column: str, damage: Damage, number: int = 1, table: str = "chunks") -> bytes:
    """Damages a blob of a run, whose row has no checksum, as before schema 5; what it was."""
    at = {"id": run.id, "number": number}
    with store.transaction() as db:
        where = "WHERE run_id = :id AND branch = 0 AND number = :number"
        (blob,) = db.execute(f"SELECT {column} FROM {table} {where}", at).fetchone()
        checksum = "sums" if table == "chunks" else "checksum"
        db.execute(f"UPDATE {table} SET {column} = :blob, {checksum} = NULL {where}", {**at, "blob": damage(bytes(blob))})
        return bytes(blob)


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """A store with two runs of 3,000 steps, folded."""
    store = open_store(f"sqlite:///{tmp_path}/m.db")
    trainings = Training(store, 1, TWO), Training(store, 2, TWO)
    for training in trainings:
        training.train(STEPS)
    fold_all(store)
    yield store, *trainings
    store.close()


def saved(store: Store, run: RunRow, limit: int = 700) -> tuple[list[bytes], StoreDamaged | None]:
    """All steps that are read, packed, and the error after them."""
    found = b""
    error: StoreDamaged | None = None
    try:
        for portion in saved_records(store, run, 0, 1, ALL, limit):
            found += portion
    except StoreDamaged as damage:
        error = damage
    return [found[at : at + WIDTH] for at in range(0, len(found), WIDTH)], error


def packed(steps: Iterable[StepRow], without: range = range(0)) -> list[bytes]:
    return [pack(2, step) for step in steps if step.step not in without]


def test_all_steps_but_the_lost_ones_are_read(made: Any) -> None:
    store, training, other = made
    for damage, (first, last) in LOST.items():
        before = spoil(store, training.row, "records", damage)
        found, error = saved(store, training.row)
        assert error is not None
        assert (error.first_step, error.last_step, error.branch) == (first, last, 0), damage
        assert f"steps {first} to {last}" in str(error)
        assert found == packed(training.steps, range(first, last + 1)), damage
        spoil(store, training.row, "records", lambda _, blob=before: blob)  # type: ignore[misc]
    assert saved(store, training.row) == (packed(training.steps), None)
    spoil(store, training.row, "records", cut)
    assert saved(store, other.row) == (packed(other.steps), None)
    reasons = {(finding.run, finding.reason) for finding in check(store) if not finding.harmless}
    assert reasons == {(f"projects/p/runs/{training.row.run}", "HISTORY_DAMAGED")}


@pytest.mark.parametrize("damage", [cut, one_step, empty], ids=lambda damage: damage.__name__)
def test_a_run_trains_on_and_folds_after_damage(damage: Damage, made: Any) -> None:
    store, training, other = made
    spoil(store, training.row, "records", damage, number=2)
    spoil(store, training.row, "fine", noise, number=2)
    spoil(store, training.row, "fine", damage, number=0)
    for each in (training, other):
        each.train(10)
        each.train(200)
    fold_all(store)
    found, _ = saved(store, training.row)
    whole = packed(training.steps)
    assert found[:2048] == whole[:2048]
    assert found[-210:] == whole[-210:]
    assert saved(store, other.row) == (packed(other.steps), None)
    assert [finding for finding in check(store) if finding.run.endswith(f"/{other.row.run}")] == []
    training.claim(40)
    training.train(5)
    fold_all(store)
    assert saved(store, training.row) == (packed(training.steps), None)


def test_a_curve_shows_all_that_is_left(made: Any) -> None:
    store, training, other = made
    for most in (1, 60, 300, 4000):
        whole = store.summary(training.row, 0, 1, STEPS, most)
        for column in ("fine", "coarse", "records"):
            for damage in (cut, empty, noise, without_middle):
                before = spoil(store, training.row, column, damage)
                drawn = store.summary(training.row, 0, 1, STEPS, most)
                assert (drawn["first_step"][0], drawn["last_step"][-1]) == (1, STEPS)
                assert column == "records" or same(drawn, whole), (most, column, damage)
                spoil(store, training.row, column, lambda _, blob=before: blob)  # type: ignore[misc]
    assert len(store.summary(other.row, 0, 1, STEPS, 60))


def same(left: Any, right: Any) -> bool:
    return len(left) == len(right) and left.tobytes() == right.tobytes()


def test_a_damaged_tier_is_read_from_the_chunks_and_made_anew(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/m.db")
    training = Training(store, 1, TWO)
    training.train(6000)
    fold_all(store)
    for damage in (cut, empty, noise):
        last = len(training.steps)
        whole = store.summary(training.row, 0, 1, last, 10)
        spoil(store, training.row, "fine", damage, 0, "tiers")
        assert same(store.summary(training.row, 0, 1, last, 10), whole)
        training.train(1100)
        fold_all(store)
        assert [finding for finding in check(store) if not finding.harmless] == []
    store.close()


@pytest.mark.parametrize("damage", [lambda blob: blob[:-9], lambda blob: blob[:20], lambda blob: b"\xff" * len(blob)])
def test_a_damaged_row_of_the_journal_stays_and_harms_nobody_else(damage: Damage, made: Any) -> None:
    store, training, other = made
    training.train(5)
    with store.transaction() as db:
        (blob,) = db.execute("SELECT data FROM journal").fetchone()
        db.execute("UPDATE journal SET data = :blob", {"blob": damage(bytes(blob))})
    store._journal = type(store._journal)()  # as after a restart
    other.train(5)
    fold_all(store)
    assert saved(store, other.row) == (packed(other.steps), None)
    assert saved(store, training.row)[0] == packed(training.steps[:STEPS])
    with store.reading() as db:
        assert [bytes(row[0]) for row in db.execute("SELECT data FROM journal").fetchall()] == [damage(bytes(blob))]
    assert "DATABASE_DAMAGED" in [finding.reason for finding in check(store)]


@pytest.mark.parametrize(
    "change",
    [
        "labels = '{'",
        "labels = '[1]'",
        "config = 'x'",
        "config = '{\"betas\": 7}'",
        "status = 'asleep'",
        "scale = x'00'",
        "vitals = '{'",
    ],
)
def test_a_damaged_row_hides_no_other_run(change: str, made: Any) -> None:
    store, training, other = made
    with store.transaction() as db:
        db.execute(f"UPDATE runs SET {change} WHERE id = :id", {"id": training.row.id})
    for listed in (store.list_runs(None, None, 10), store.rows([training.row.id, other.row.id])):
        assert [(row.id, bool(row.damaged)) for row in listed] == [(training.row.id, True), (other.row.id, False)]
        assert [need.kind for need in alerts(listed[0], 10**18, Silence()) if need.kind == "damaged"] == ["damaged"]
        assert len(listed[0].scale) == len(listed[0].config.scale_groups) > 0
    with pytest.raises(StoreDamaged, match=f"projects/p/runs/{training.row.run} can't be read"):
        store.get("p", training.row.run)
    assert (f"projects/p/runs/{training.row.run}", "HISTORY_DAMAGED") in [(each.run, each.reason) for each in check(store)]
    other.train(3)
    with suppress(StoreDamaged):  # after the commit; its scale and its vitals are whole then
        training.train(3)
    fold_all(store)
    assert saved(store, other.row) == (packed(other.steps), None), "and everything else goes on"
    healed = "scale" in change or "vitals" in change
    assert [row.id for row in store.list_runs(None, None, 10) if row.damaged] == [] if healed else [training.row.id]


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@pytest.mark.parametrize("epoch", [2, 2**41])
def test_a_check_ends_whatever_the_number_of_rewinds(epoch: int, made: Any) -> None:
    store, training, other = made
    training.claim(2900)
    training.train(5)
    fold_all(store)
    assert store.branches(training.row) == [1]
    assert [finding for finding in check(store) if not finding.harmless] == []
    name = f"projects/p/runs/{training.row.run}"
    for rewinds in (2**40, 2**31, -1, 0):  # a flipped bit
        with store.transaction() as db:
            db.execute(
                "UPDATE runs SET rewinds = :rewinds, epoch = :epoch WHERE id = :id",
                {"rewinds": rewinds, "epoch": epoch, "id": training.row.id},
            )
        found = {(finding.run, finding.reason) for finding in check(store) if not finding.harmless}
        damaged = not 0 <= rewinds <= min(epoch, 2**31 - 1)
        seen = [row.id for row in store.list_runs(None, None, 10) if not row.damaged]
        assert seen == ([other.row.id] if damaged else [training.row.id, other.row.id])
        assert (name, "ROW_DAMAGED") in found
        if damaged:
            assert found == {(name, "HISTORY_DAMAGED"), (name, "ROW_DAMAGED")}
        elif rewinds == 0:
            assert (name, "HISTORY_DISORDERED") in found


class Disordered:
    """A store, or a database, whose index leads back to where a reader was before."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        with self._inner.reading() as db:
            yield Disordered(db)

    def execute(self, statement: str, parameters: Any = MappingProxyType({})) -> Any:
        return self._inner.execute(statement, {**parameters} | ({"after": -1} if "after" in parameters else {}))


def test_an_index_that_leads_back_ends_a_check_and_a_backup(made: Any, tmp_path: Path) -> None:
    disordered: Any = Disordered(made[0])
    assert list(check(disordered)) == [], "it goes by the numbers of the runs, and ends"
    target: Any = open_store(f"sqlite:///{tmp_path}/copy.db")
    with pytest.raises(StoreDamaged, match="out of order"):
        copy(disordered, target)
    assert target.list_runs(None, None, 10) == []
    target.close()


def test_a_schema_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/m.db").close()
    whole = (tmp_path / "m.db").read_bytes()
    for before, after in ((b"CREATE TABLE events", b"CREATE \xa0ABLE events"), (b"run_id  ", b"r\xffn_id  ")):
        assert before in whole
        (tmp_path / "m.db").write_bytes(whole.replace(before, after))
        done = CliRunner().invoke(main, ["store", "check", "--store", f"sqlite:///{tmp_path}/m.db"])
        assert (done.exit_code, "[STORE_" in done.stderr) == (1, True), done.stderr


def test_scalars_that_no_tuner_takes_are_damage(made: Any) -> None:
    store, training, _ = made
    negative = struct.pack("<d", -1.0)
    at = 100 * WIDTH + 32 + 4 * 8  # ‖g‖² of the first group, after two reductions of two groups
    spoil(store, training.row, "records", lambda blob: blob[:at] + negative + blob[at + 8 :])
    assert "HISTORY_DAMAGED" in [finding.reason for finding in check(store)]
    with pytest.raises(StoreDamaged, match="step 1125 of the history can't be replayed"):
        asyncio.run(replayed(at_once, store, training.row, 2000))


def test_an_outcome_of_a_newer_mechanicd_is_no_damage(made: Any) -> None:
    store, training, _ = made
    spoil(store, training.row, "records", lambda blob: blob[:16] + b"\x2a" + blob[17:])
    steps = store.steps(training.row, 0, 1, ALL, ALL)
    assert [step.outcome for step in steps if step.outcome not in list(StepOutcome)] == [42]
    assert "42" in {row[2] for row in export_rows([unpack_columns(2, b"".join(packed(steps)))], TWO.scale_groups)}


def test_every_reader_of_a_server_names_the_lost_steps_and_gives_the_others(
    new_server: Callable[..., Any], wait_for: Callable[..., bool]
) -> None:
    server = new_server("--http", "127.0.0.1:0")
    store = open_store(server.store)
    training, other = Training(store, 1, TWO, "a"), Training(store, 2, TWO, "b")
    for each in (training, other):
        each.train(STEPS)
    fold_all(store)
    spoil(store, training.row, "records", cut)
    spoil(store, training.row, "fine", noise)
    store.close()
    server.start()
    there = ("--project", "p", "--target", server.target)

    def cli(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["runs", arguments[0], *there, *arguments[1:]])

    for format_, parse in (("json", json.loads), ("jsonl", lambda text: [json.loads(line) for line in text.splitlines()])):
        done = cli("export", "a", "--format", format_)
        steps = {row["step"] for row in parse(done.stdout)}
        assert (done.exit_code, steps) == (1, {*range(1, 1125), *range(2049, STEPS + 1)})
        assert "steps 1125 to 2048" in done.stderr
        assert done.stderr.endswith("[STORE_DAMAGED]\n")
    assert cli("export", "a", "--first", "2049").exit_code == 0
    assert cli("show", "a").exit_code == 0
    assert cli("list").stdout.count("silent") >= 2
    for command in (("rewind", "a", "1500", "--yes", "--fence"), ("fork", "a", "c", "--step", "2500")):
        done = cli(*command)
        assert (done.exit_code, "[STORE_DAMAGED]" in done.stderr) == (1, True), done.stderr
    assert cli("fork", "a", "d").exit_code == 0, "its last state is whole"
    assert cli("rewind", "a", "1000", "--yes", "--fence").exit_code == 0

    def page(path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"{server.page}/api/v1/{path}", body, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    asked = json.dumps({"runs": ["projects/p/runs/d", "projects/p/runs/b"], "columns": 500}).encode()

    def last_steps() -> list[int]:
        status, answer = page("series", asked)
        assert status == 200
        return [run["last_step"] for run in json.loads(answer)["runs"]]

    assert wait_for(lambda: last_steps() == [STEPS, STEPS]), "the page has heard of the fork"
    assert page("run?name=projects/p/runs/d")[0] == 200
    with pytest.raises(http.client.IncompleteRead):
        page("export?run=projects/p/runs/d&format=csv")
    assert page("export?run=projects/p/runs/b&format=csv")[0] == 200
    assert server.stop() == 0
