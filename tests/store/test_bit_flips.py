"""A flipped bit anywhere in a store: either nobody reads anything else than before, or `store check` finds it."""

import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechanicd.runs import EventKind, EventRow, RunRow
from mechanicd.store import Claim, Rename, StoreError, check, every_run, open_store
from mechanicd.store._sql import TABLES
from tests.store.test_history import ALL, TWO, Training, fold_all
from tests.support.soak import SOAK, chosen_seed

FLIPS = 1000 if SOAK else 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with something in every table: branches, thinned steps, tiers, a journal, events, labels, a former name."""
    path = tmp_path_factory.mktemp("whole") / "m.db"
    store = open_store(f"sqlite:///{path}")
    long = Training(store, 1, replace(TWO, betas=(0.9, 0.99)))
    long.train(3000)
    fold_all(store)
    store.retain(1500, None)
    rewound = Training(store, 2)
    rewound.train(1100)
    fold_all(store)
    rewound.claim(1050)
    rewound.train(40)
    fold_all(store)
    _claim(store, rewound)
    renamed = store.rename(Rename(run_id=long.row.id, expected_epoch=long.row.epoch, project="p", run="new", session=99))
    store.set_labels(renamed.id, {"batch": "256", "größe": "groß"})
    for training in (rewound,):
        training.train(30)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert [table for table in TABLES if not db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]] == []
    assert found(path) == []
    return path


def _claim(store: Any, training: Training) -> None:
    state = training.states[-1]
    training.row = store.claim(
        Claim(
            run_id=training.row.id,
            expected_epoch=training.row.epoch,
            session=2**62 + 1,
            after_step=training.row.last_step,
            state=state.to_bytes(),
            scale=state.scale,
            labels={"seed": "1"},
            time=10**18,
            command="python train.py",
            events=(EventRow(10**18, 1, EventKind.RESUMED, "again"),),
        )
    )


def found(path: Path) -> list[str]:
    """What the check finds; that the store can't be opened is found, too."""
    try:
        store = open_store(f"sqlite:///{path}", readonly=True)
        try:
            return [finding.reason for finding in check(store) if not finding.harmless]
        finally:
            store.close()
    except StoreError as error:
        return [error.reason]


def read(path: Path) -> Any:
    """All that anybody can read."""
    store = open_store(f"sqlite:///{path}", readonly=True)
    try:
        told = []
        for row in every_run(store):
            found = [row, *(store.by_session(row.session) or ()), store.renamed("p", "r0")]
            # The revision only tells caches that something else has changed.
            told += [repr(replace(each, revision=0) if isinstance(each, RunRow) else each) for each in found]
            told.append(store.events(row.id))
            for branch in (0, *store.branches(row)):
                told.append(store.records(row, branch, 1, ALL, ALL))
                told += [store.summary(row, branch, 1, row.last_step, most).tobytes() for most in (1, 8, 60, 4000)]
        return told
    finally:
        store.close()


def flip_in_a_cell(path: Path, rng: random.Random) -> str:
    """Flips a bit of one value, whose table and column are drawn first, so that each kind has its turn; what was flipped."""
    with sqlite3.connect(path) as db:
        db.text_factory = bytes
        table = rng.choice(list(TABLES))
        column = rng.choice(TABLES[table])
        rows = [row[0] for row in db.execute(f"SELECT rowid FROM {table}").fetchall()]
        row = rng.choice(rows)
        (value,) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()
        kind = db.execute(f"SELECT typeof({column}) FROM {table} WHERE rowid = ?", (row,)).fetchone()[0].decode()
        if value is None or (not value and kind != "integer"):
            return "nothing"
        if kind == "integer":
            bits = rng.randrange(63)
            new: Any = value ^ (1 << bits)
        else:
            at = rng.randrange(len(value))
            new = value[:at] + bytes([value[at] ^ (1 << rng.randrange(8))]) + value[at + 1 :]
        as_text = "CAST(? AS TEXT)" if kind == "text" else "?"
        try:
            db.execute(f"UPDATE {table} SET {column} = {as_text} WHERE rowid = ?", (new, row))
        except sqlite3.IntegrityError:
            return "nothing"
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return f"{table}.{column} of row {row}"


def flip_in_the_file(path: Path, rng: random.Random) -> str:
    """Flips a bit of the file, wherever it is."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"byte {at}"


@pytest.mark.timeout(1800 if SOAK else 120)
def test_every_flipped_bit_that_matters_is_found(whole: Path, tmp_path: Path) -> None:
    """Half of them in the file, half in values."""
    number = chosen_seed()
    before = read(whole)
    silent = []
    for flip in range(FLIPS):
        rng = random.Random(f"{number} {flip}")
        path = tmp_path / "m.db"
        for old in tmp_path.glob("m.db*"):
            old.unlink()
        shutil.copy(whole, path)
        where = (flip_in_a_cell if flip % 2 else flip_in_the_file)(path, rng)
        try:
            if read(path) == before:
                continue
        except StoreError:
            pass
        if not found(path):
            silent.append((flip, where))
    assert silent == [], f"MECHANICD_SEED={number}"
