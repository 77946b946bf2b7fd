"""`store salvage`: all that is whole comes out of a damaged store, to the last bit, and what does not is named."""

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mechanicd.access import Role, create
from mechanicd.store import Left, StoreDamaged, StoreNotWritable, check, every_run, open_store, salvage
from mechanicd.tuner import TunerState
from tests.store import world
from tests.store.test_checksums import flip
from tests.store.test_damage import TWO, WIDTH, packed, saved
from tests.store.test_history import Training, fold_all

PAGE = 4096


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    """The URL of a store with three runs, the last of them also in the journal, and their trainings."""
    url = f"sqlite:///{tmp_path}/m.db"
    store = open_store(url)
    trainings = [Training(store, seed, TWO) for seed in (1, 2, 3)]
    for training in trainings:
        training.train(1300)
    fold_all(store)
    for training in trainings:
        training.train(5)
    yield url, store, trainings
    store.close()


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Callable[[str], tuple[Any, list[Left]]]]:
    """Salvages a store into a new one, which is given with what was left."""
    opened: list[Any] = []

    def salvaged(url: str) -> tuple[Any, list[Left]]:
        left: list[Left] = []
        target = open_store(f"sqlite:///{tmp_path}/out{len(opened)}.db")
        opened.append(target)
        assert salvage(url, target, left.append) == len(list(every_run(target)))
        return target, left

    yield salvaged
    for store in opened:
        store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/world.db"
    return str(request.getfixturevalue("postgres").lend_database())


def test_a_whole_store_comes_out_whole(url: str, out: Callable[[str], tuple[Any, list[Left]]]) -> None:
    store = open_store(url)
    world.write(store)
    store.fold(1)
    store.close()
    target, left = out(url)
    world.check(target)
    world.check_noted(target)
    assert {each.message for each in left} == {"the tuner's state; its trainer needs a checkpoint to go on"}, "they are words"
    largest = max(row.id for row in every_run(target))
    assert target.create("zoo", "later", world.PLAIN, b"", (0.0,), 1).id > largest
    with pytest.raises(StoreNotWritable, match="already has runs"):
        salvage(url, target, left.append)


def test_tokens_come_out_but_for_damaged_ones(made: Any, out: Callable[[str], tuple[Any, list[Left]]], tmp_path: Path) -> None:
    url, store, _ = made
    whole, flipped, foreign = (create("p", Role.READ, number)[1] for number in range(1, 4))
    for token in (whole, flipped, foreign):
        store.add_token(token)
    with sqlite3.connect(tmp_path / "m.db") as db:
        db.execute("UPDATE tokens SET data = x'00' WHERE id = ?", (flipped.id.encode(),))
        db.execute("UPDATE tokens SET id = 1000000000000 WHERE id = ?", (foreign.id.encode(),))
    db.close()
    assert store.tokens() == [whole]
    target, left = out(url)
    assert target.tokens() == [whole]
    assert sorted(each.message.partition(",")[0] for each in left) == ["token ", f"token {flipped.id}"]


def test_damaged_values_are_left_and_named_and_the_rest_comes_out(
    made: Any, out: Callable[[str], tuple[Any, list[Left]]]
) -> None:
    url, store, (first, second, third) = made
    flip(store, "chunks", "records", 100 * WIDTH + 40, f"run_id = {first.row.id} AND number = 1")
    with store.transaction() as db:
        db.execute("UPDATE runs SET labels = '{', status = 'asleep' WHERE id = :id", {"id": second.row.id})
        db.execute("UPDATE runs SET state = :state WHERE id = :id", {"id": third.row.id, "state": b"?" + third.row.state[1:]})
        db.execute("UPDATE sessions SET after_step = 7 WHERE run_id = :id", {"id": third.row.id})
    target, left = out(url)
    told = {(each.run.rpartition("/")[2], each.message.partition(",")[0]) for each in left}
    assert {run for run, _ in told} == {first.row.run, second.row.run, third.row.run}
    assert any("steps 1121 to 1136" in message for _, message in told)
    assert any("labels" in each.message and "status" in each.message for each in left)
    assert any("the tuner's state, which was replayed" in each.message for each in left)
    assert any("1 sessions" in message for _, message in told)
    rows = {row.id: row for row in every_run(target)}
    assert [row.damaged for row in rows.values()] == [""] * 3
    assert TunerState.from_bytes(rows[third.row.id].state, TWO).to_bytes() == third.states[-1].to_bytes()
    assert saved(target, rows[first.row.id])[0] == packed(first.steps, range(1121, 1137))
    assert [saved(target, rows[each.row.id])[0] for each in (second, third)] == [packed(second.steps), packed(third.steps)]
    fold_all(target)
    assert {finding.reason for finding in check(target) if not finding.harmless} == set()


def test_a_run_without_its_config_is_left(made: Any, out: Callable[[str], tuple[Any, list[Left]]]) -> None:
    url, store, (first, *others) = made
    with store.transaction() as db:
        db.execute("UPDATE runs SET config = 'x' WHERE id = :id", {"id": first.row.id})
    target, left = out(url)
    assert [row.id for row in every_run(target)] == [each.row.id for each in others]
    assert len(left) < 6, "once for each thing, and not for each row"
    assert any("without its config" in each.message for each in left)


def test_pages_that_the_database_calls_malformed_cost_what_they_held(
    made: Any, out: Callable[[str], tuple[Any, list[Left]]], tmp_path: Path
) -> None:
    _, store, trainings = made
    store.close()
    path = tmp_path / "m.db"
    whole = path.read_bytes()
    rng = random.Random(1)
    pages = len(whole) // PAGE
    lost_none = 0
    for page in [2, *rng.sample(range(3, pages), 5), pages]:
        data = bytearray(whole)
        data[(page - 1) * PAGE : page * PAGE] = rng.randbytes(PAGE)
        path.write_bytes(data)
        target, left = out(f"sqlite:///{path}")
        rows = {row.id: row for row in every_run(target)}
        for training in trainings:
            if training.row.id in rows and not rows[training.row.id].damaged:
                found = saved(target, rows[training.row.id])[0]
                assert set(found) <= set(packed(training.steps)), "what comes out is what was put in"
                lost_none += found == packed(training.steps)
        assert {finding.reason for finding in check(target) if not finding.harmless} <= {
            "HISTORY_ENDS_EARLY",
            "STATE_MISPLACED",
        }
        assert left or len(rows) == 3
    assert lost_none > 7
    path.write_bytes(rng.randbytes(len(whole)))
    with pytest.raises(StoreDamaged, match="not even its first page"):
        out(f"sqlite:///{path}")


def test_the_command_says_what_it_left(made: Any, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    url, _, (first, *_) = made
    done = run_cli("store", "salvage", "--store", url, "--to", str(tmp_path / "a.db"))
    assert (done.returncode, done.stdout) == (0, f"3 runs brought to sqlite:///{tmp_path}/a.db, 0 things left\n"), done.stderr
    with sqlite3.connect(tmp_path / "m.db") as db:
        db.execute("UPDATE runs SET labels = '{' WHERE id = ?", (first.row.id,))
    done = run_cli("store", "salvage", "--store", url, "--to", f"sqlite:///{tmp_path}/b.db", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["runs"], [each["run"] for each in told["left"]]) == (
        1,
        3,
        [f"projects/p/runs/{first.row.run}"],
    )
    done = run_cli("store", "salvage", "--store", f"sqlite:///{tmp_path}/none.db", "--to", str(tmp_path / "c.db"))
    assert (done.returncode, "there is no such file" in done.stderr) == (1, True)
