"""The files of a SQLite database, taken away or changed under a store that uses it: nothing is called durable then."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from mechanicd.runs import RunRow
from mechanicd.store import SQLiteStore, StoreInUse, StoreMoved
from mechanicd.tuner import TunerConfig, TunerState


@contextmanager
def moved(path: Path) -> Iterator[None]:
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    yield
    away.rename(path)


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    with moved(path):
        shutil.copy(path.with_name(f"{path.name}.away"), path)  # the same content, and another file
        yield
        path.unlink()


@contextmanager
def folder_replaced(folder: Path) -> Iterator[None]:
    with moved(folder):
        folder.mkdir()
        yield
        shutil.rmtree(folder)


FAULTS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "the database moved": moved,
    "the database replaced": replaced,
    "the WAL moved": lambda path: moved(path.with_name(f"{path.name}-wal")),
    "the shared memory moved": lambda path: moved(path.with_name(f"{path.name}-shm")),
    "the folder renamed": lambda path: moved(path.parent),
    "the folder replaced by an empty one": lambda path: folder_replaced(path.parent),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data/runs.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    opened = SQLiteStore(str(path))
    yield opened
    opened.close()


def make(store: SQLiteStore, run: str = "r") -> RunRow:
    state = TunerState.initial(TunerConfig())
    return store.create("p", run, TunerConfig(), state.to_bytes(), state.scale, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_of_the_files_is_noticed_and_the_store_works_once_it_is_undone(
    fault: str, store: SQLiteStore, path: Path
) -> None:
    row = make(store)
    uses: list[Callable[[], object]] = [
        lambda: make(store, "other"),
        lambda: store.set_labels(row.id, {"lost": "yes"}),
        lambda: store.get("p", "r"),
        lambda: store.commit([], []),
        store.ping,
        store.fold,
    ]
    with FAULTS[fault](path):
        for use in uses:
            with pytest.raises(StoreMoved, match="while the server uses it"):
                use()
    assert store.get("p", "other") is None, "nothing of it was written"
    make(store, "other")


def test_a_file_that_goes_while_a_transaction_runs_takes_it_along(store: SQLiteStore, path: Path) -> None:
    make(store)

    def change() -> None:
        with store.transaction() as db:
            db.execute("UPDATE runs SET labels = '{}'")
            path.rename(path.with_name("away.db"))

    with pytest.raises(StoreMoved):
        change()


@pytest.mark.parametrize("content", ["another database", "a backup", "nothing", "other bytes"])
def test_a_database_that_is_written_over_in_place_is_noticed(
    content: str, store: SQLiteStore, path: Path, tmp_path: Path
) -> None:
    row, other = make(store), tmp_path / "other.db"
    if content == "another database":
        SQLiteStore(str(other)).close()
    elif content == "a backup":
        store.close()
        shutil.copy(path, other)
        store.__init__(str(path))  # type: ignore[misc]  # the next server
    else:
        other.write_bytes(b"" if content == "nothing" else os.urandom(8192))
    store.set_labels(row.id, {"a": "1"})
    shutil.copyfile(other, path)
    with pytest.raises(StoreMoved, match="was overwritten"):
        store.set_labels(row.id, {"a": "2"})


def test_a_link_that_points_elsewhere_now_is_noticed(path: Path, tmp_path: Path) -> None:
    SQLiteStore(str(path)).close()
    link = tmp_path / "link.db"
    link.symlink_to(path)
    store = SQLiteStore(str(link))
    row = make(store)
    link.unlink()
    link.symlink_to(tmp_path / "none.db")
    with pytest.raises(StoreMoved, match=r"link\.db was removed"):
        store.set_labels(row.id, {})
    link.unlink()
    link.symlink_to(path)
    store.set_labels(row.id, {})
    store.close()


def test_a_reader_notices_that_its_file_is_not_the_servers_any_more(store: SQLiteStore, path: Path) -> None:
    make(store)
    reader = SQLiteStore(str(path), readonly=True)
    assert reader.pulse()
    with replaced(path), pytest.raises(StoreMoved):
        reader.pulse()
    assert reader.pulse()
    reader.close()


def test_a_lock_that_was_tidied_away_is_taken_again(store: SQLiteStore, path: Path) -> None:
    row, lock = make(store), path.with_name(f"{path.name}.lock")
    lock.unlink()
    store.set_labels(row.id, {})
    with pytest.raises(StoreInUse):
        SQLiteStore(str(path))
    lock.unlink()
    other = SQLiteStore(str(path))  # before this one could look
    with pytest.raises(StoreMoved, match="opened by another server"):
        store.set_labels(row.id, {})
    other.set_labels(row.id, {})
    other.close()


def test_looking_leaves_sqlites_own_locks_alone(store: SQLiteStore, path: Path) -> None:
    """Closing any descriptor of the file would drop them, and another program could then tear the database."""
    row = make(store)
    for _ in range(3):
        store.set_labels(row.id, {})
    with store.transaction():
        program = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "database is locked" in done.stderr
