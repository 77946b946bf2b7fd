"""Checksums in a store: what they find, what a reader gets then, and that nothing they find is blessed by later writing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mechanicd.store import Claim, StoreDamaged, check, open_store
from mechanicd.tuner import TunerState
from tests.store.test_damage import TWO, WIDTH, packed, saved
from tests.store.test_history import Training, fold_all

STEPS = 1300


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    """A store with two runs of 1,300 steps, folded: two chunks each."""
    store = open_store(f"sqlite:///{tmp_path}/m.db")
    trainings = Training(store, 1, TWO), Training(store, 2, TWO)
    for training in trainings:
        training.train(STEPS)
    fold_all(store)
    yield store, *trainings
    store.close()


def flip(store: Any, table: str, column: str, at: int, where: str = "1 = 1") -> None:
    """Flips a bit of a blob or of a text."""
    with store.transaction() as db:
        (value,) = db.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
        data = bytearray(value.encode() if isinstance(value, str) else value)
        data[at] ^= 1
        new = data.decode() if isinstance(value, str) else bytes(data)
        db.execute(f"UPDATE {table} SET {column} = :new WHERE {where}", {"new": new})


def reasons(store: Any) -> set[str]:
    return {finding.reason for finding in check(store) if not finding.harmless}


def test_a_flipped_bit_of_a_scalar_costs_sixteen_steps_and_no_reader_is_told_a_wrong_one(made: Any) -> None:
    store, training, other = made
    here = f"run_id = {training.row.id} AND number = 1"
    flip(store, "chunks", "records", 100 * WIDTH + 40, here)  # of step 1,125: its form is as it was
    found, error = saved(store, training.row)
    assert error is not None
    assert (error.first_step, error.last_step) == (1121, 1136)
    assert found == packed(training.steps, range(1121, 1137))
    assert reasons(store) == {"HISTORY_DAMAGED"}
    training.train(200)
    fold_all(store)
    assert (saved(store, training.row)[0], saved(store, other.row)) == (
        packed(training.steps, range(1121, 1137)),
        (packed(other.steps), None),
    )
    training.claim(1200)  # cuts the damaged chunk in two
    training.train(10)
    fold_all(store)
    found, error = saved(store, training.row)
    assert (found, error is not None) == (packed(training.steps, range(1121, 1137)), False), "which are then as thinned out"


def test_the_head_and_the_summaries_of_a_chunk_are_held_to_their_checksums(made: Any) -> None:
    store, training, _ = made
    here = f"run_id = {training.row.id} AND number = 1"
    curve = store.summary(training.row, 0, 1, STEPS, 200).tobytes()
    for column, reason in (("coarse", "SUMMARY_DIFFERS"), ("fine", "SUMMARY_DIFFERS")):
        flip(store, "chunks", column, 200, here)
        assert reason in reasons(store)
        flip(store, "chunks", column, 200, here)
    with store.transaction() as db:
        db.execute(f"UPDATE chunks SET first_step = first_step + 1 WHERE {here}")
    assert reasons(store) == {"ROW_DAMAGED"}
    assert saved(store, training.row) == (packed(training.steps), None), "the records are whole all the same"
    with store.transaction() as db:
        db.execute(f"UPDATE chunks SET first_step = first_step - 1 WHERE {here}")
    assert reasons(store) == set()
    assert store.summary(training.row, 0, 1, STEPS, 200).tobytes() == curve
    store.retain(200, None)
    assert reasons(store) == set(), "a chunk whose records were given up has the checksums of what it keeps"


def test_a_damaged_segment_of_the_journal_costs_no_other_run_a_step(made: Any) -> None:
    """One commit of a server is one row, with the steps of all its runs."""
    store, *trainings = made
    trainings.append(Training(store, 3, TWO))
    for training in trainings:
        training.train(7)
    with store.transaction() as db:
        rows = db.execute("SELECT id, data FROM journal ORDER BY id").fetchall()
        db.execute("DELETE FROM journal WHERE id > :id", {"id": rows[0][0]})
        at = len(rows[0][1]) + 48 + 2 * WIDTH + 40  # in the third step of the second run
        data = bytearray(b"".join(data for _, data in rows))
        data[at] ^= 4
        db.execute("UPDATE journal SET data = :data", {"data": bytes(data)})
    store._journal = type(store._journal)()  # as after a restart
    assert "DATABASE_DAMAGED" in reasons(store)
    for _ in range(2):
        assert [saved(store, each.row)[0] for each in trainings] == [
            packed(trainings[0].steps),
            packed(trainings[1].steps[:STEPS]),
            packed(trainings[2].steps),
        ]
        fold_all(store)
    with store.transaction() as db:  # a header alone: what follows it is found again
        data[len(rows[0][1]) + 3] ^= 4
        db.execute("UPDATE journal SET data = :data", {"data": bytes(data)})
    store._journal = type(store._journal)()
    assert [segment.run_id for segment in _read(store)] == [trainings[0].row.id, trainings[2].row.id]


def _read(store: Any) -> list[Any]:
    with store.reading() as db:
        store._journal.refresh(db)
    return [segment for run_id in store._journal.runs for segment in store._journal.of(run_id)]


def test_a_flipped_digit_of_a_config_is_no_other_config(made: Any) -> None:
    store, training, other = made
    with store.transaction() as db:
        db.execute(
            "UPDATE runs SET config = replace(config, '0.01', '0.11') WHERE id = :id", {"id": training.row.id}
        )  # s_decay, a number as good as any
    with pytest.raises(StoreDamaged, match="its row is damaged \\(config\\)"):
        store.get("p", training.row.run)
    assert store.get("p", other.row.run) == other.row


def test_damage_of_a_row_is_not_blessed_by_what_is_written_after_it(made: Any) -> None:
    store, training, other = made
    store.set_labels(training.row.id, {"batch": "256"})
    assert reasons(store) == set()
    with store.transaction() as db:
        db.execute("UPDATE runs SET labels = replace(labels, '256', '266') WHERE id = :id", {"id": training.row.id})
    training.train(5)
    fold_all(store)
    training.claim(1000)
    training.train(5)
    assert [(each.run, each.reason) for each in check(store) if not each.harmless] == [
        (f"projects/p/runs/{training.row.run}", "ROW_DAMAGED")
    ]
    other.claim(500)
    assert not [each for each in check(store) if each.run.endswith(f"/{other.row.run}")]


def test_what_was_written_before_there_were_checksums_is_unknown_and_not_wrong(made: Any) -> None:
    store, training, _ = made
    with store.transaction() as db:
        db.execute("UPDATE chunks SET sums = NULL")
        db.execute("UPDATE runs SET row_sum = NULL, step_sum = NULL")
        for table in ("sessions", "former_names", "events", "tiers"):
            db.execute(f"UPDATE {table} SET checksum = NULL")
    assert reasons(store) == set()
    training.claim(1200)
    training.train(100)
    fold_all(store)
    assert reasons(store) == set()
    assert saved(store, training.row) == (packed(training.steps), None)
    with store.reading() as db:
        (known,) = db.execute("SELECT count(*) FROM runs WHERE row_sum IS NOT NULL").fetchone()
        (summed,) = db.execute("SELECT count(*) FROM chunks WHERE sums IS NOT NULL").fetchone()
    assert known == 1, "what is written again has them"
    assert summed > 0


def test_a_check_of_a_run_that_begins_at_step_10_to_the_10_ends(tmp_path: Path) -> None:
    """Its trainer adopted the state of a checkpoint. The check went through all the steps that there might be before."""
    store: Any = open_store(f"sqlite:///{tmp_path}/m.db")
    training = Training(store, 1)
    for far in (10**10, 2**40 - 100):
        state = TunerState.from_rows(far, training.tuner.init().rows)
        row = store.claim(
            Claim(
                run_id=training.row.id,
                expected_epoch=training.row.epoch,
                session=far,
                after_step=far,
                state=state.to_bytes(),
                scale=state.scale,
                labels={},
                time=1,
            )
        )
        training.row, training.states, training.steps = row, [state], []
        training.train(40)
        training.row = training.now()
        assert reasons(store) == set()
        fold_all(store)
        assert reasons(store) == set()
        assert [step.step for step in store.steps(training.row, 0, far + 1, 2**62, 100)] == list(range(far + 1, far + 41))
    store.close()


def test_a_check_beside_a_server_that_writes_finds_nothing_wrong(tmp_path: Path) -> None:
    """The run's row, its journal and its chunks are read as of one moment."""
    url = f"sqlite:///{tmp_path}/m.db"
    store: Any = open_store(url)
    trainings = [Training(store, seed) for seed in range(3)]
    ended = threading.Event()

    def write() -> None:
        count = 0
        while not ended.is_set():
            for training in trainings:
                training.train(20)
            count += 1
            if count % 5 == 0:
                while store.fold(1) and not ended.is_set():
                    pass
            if count % 20 == 0:
                trainings[0].claim(len(trainings[0].steps) // 2)

    writer = threading.Thread(target=write)
    writer.start()
    checks = 0
    try:
        while checks < 5 or (len(trainings[1].steps) < 300 and checks < 100):
            checks += 1
            reader = open_store(url, readonly=True)
            assert [finding for finding in check(reader) if not finding.harmless] == []
            reader.close()
    finally:
        ended.set()
        writer.join()
    assert len(trainings[1].steps) > 200
    store.close()
