"""The embedded store: what it promises of its file, and what it refuses to touch."""

import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mechanicd.runs import RunRow, StepRow, pack, unpack
from mechanicd.store import (
    SCHEMA_VERSION,
    Claim,
    Commit,
    SchemaTooNew,
    SQLiteStore,
    StoreError,
    StoreInUse,
    StoreNotWritable,
    open_store,
)
from mechanicd.tuner import TunerConfig, TunerState

ALL = 2**62


def make(store: SQLiteStore, run: str = "r", session: int = 1) -> RunRow:
    """A new run, held by a session."""
    state = TunerState.initial(TunerConfig())
    row = store.create("p", run, TunerConfig(), state.to_bytes(), state.scale, 1)
    return claim(store, row, session)


def claim(store: SQLiteStore, row: RunRow, session: int) -> RunRow:
    return store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=session,
            after_step=row.last_step,
            state=row.state,
            scale=row.scale,
            labels={},
            time=1,
        )
    )


def commit_of(row: RunRow, after: int, last: int) -> Commit:
    records = b"".join(pack(1, step(number)) for number in range(after + 1, last + 1))
    return Commit(
        run_id=row.id,
        epoch=row.epoch,
        session=row.session,
        after_step=after,
        last_step=last,
        state=b"after %d" % last,
        scale=(float(last),),
        step_time=last,
        records=records,
    )


def step(number: int) -> StepRow:
    rng = random.Random(number)
    return StepRow(number, number, 1, *((rng.gauss(0.0, 1.0),) for _ in range(6)), rng.random())


def history(store: SQLiteStore, row: RunRow, branch: int = 0) -> list[StepRow]:
    return list(store.steps(row, branch, 1, ALL, ALL))


def got(store: SQLiteStore, run: str = "r") -> RunRow:
    row = store.get("p", run)
    assert row is not None
    return row


# --- a kill costs nothing that was committed ----------------------------------------------------------------------------


COMMITS_FOR_EVER = """
import itertools, random, sys
sys.path.insert(0, {here!r})
from mechanicd.runs import StepRow, pack
from mechanicd.store import Claim, Commit, SQLiteStore

store = SQLiteStore({path!r})
row = store.get("p", "r")
row = store.claim(Claim(run_id=row.id, expected_epoch=row.epoch, session={session}, after_step=row.last_step,
                        state=row.state, scale=row.scale, labels={{}}, time=1))
rng = random.Random({session})
after = row.last_step
while True:
    last = after + rng.randint(1, 40)
    steps = [StepRow(n, n, 1, *((rng.gauss(0.0, 1.0),) for _ in range(6)), rng.random()) for n in range(after + 1, last + 1)]
    records = b"".join(pack(1, step) for step in steps)
    kept = store.commit([Commit(run_id=row.id, epoch=row.epoch, session=row.session, after_step=after, last_step=last,
                                state=b"after %d" % last, scale=(float(last),), step_time=last, records=records)], [])
    assert kept == [True]
    print(last, records.hex(), flush=True)
    after = last
"""


def test_every_step_that_was_committed_before_a_kill_is_there_exactly(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(str(path))
    make(store)
    store.close()
    said: list[StepRow] = []
    for session in (100, 200, 300):
        program = COMMITS_FOR_EVER.format(here=str(tmp_path), path=str(path), session=session)
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(20 + session % 7)]
            child.kill()
            lines += [line for line in child.stdout if line.endswith("\n")]
        assert child.returncode == -signal.SIGKILL
        said += [row for line in lines for row in unpack(1, bytes.fromhex(line.split()[1]))]

        store = SQLiteStore(str(path))
        row, steps = got(store), history(store, got(store))
        store.close()
        assert steps[: len(said)] == said, "a commit that was told is there, bit for bit"
        assert [each.step for each in steps] == list(range(1, row.last_step + 1)), "and one that was not is whole or absent"
        assert (row.state, row.scale) == (b"after %d" % row.last_step, (float(row.last_step),))
        said = steps


# --- whose file it is ---------------------------------------------------------------------------------------------------


def everything(path: Path) -> bytes:
    """A database's bytes, and nothing beside it that would change what they mean."""
    assert not Path(f"{path}-wal").exists()
    assert not Path(f"{path}-journal").exists()
    return path.read_bytes()


def foreign(path: Path, version: int = 0) -> bytes:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE treasure (gold INTEGER)")
    database.execute("INSERT INTO treasure VALUES (7)")
    database.execute(f"PRAGMA user_version = {version}")
    database.commit()
    database.close()
    return everything(path)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION, -1])
def test_another_programs_database_is_refused_and_stays_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "treasure.db"
    before = foreign(path, version)
    with pytest.raises(StoreNotWritable, match="another program's database; name another file"):
        SQLiteStore(str(path))
    assert everything(path) == before


def test_a_database_of_a_newer_schema_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(str(path))
    store.commit([commit_of(make(store), 0, 9)], [])
    store.close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = everything(path)
    with pytest.raises(SchemaTooNew) as caught:
        SQLiteStore(str(path))
    assert caught.value.reason == "STORE_SCHEMA_TOO_NEW"
    assert f"schema version {SCHEMA_VERSION + 1}" in str(caught.value)
    assert f"reads only up to {SCHEMA_VERSION}" in str(caught.value)
    assert everything(path) == before


@pytest.mark.parametrize("content", [b"step,scale\n1,0.5\n", b"x" * 100_000, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StoreNotWritable, match=re.escape(f"{path} can't be used as a database")):
        SQLiteStore(str(path))
    assert path.read_bytes() == content


def test_a_cut_off_database_is_refused_with_the_way_to_what_is_left_of_it(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    SQLiteStore(str(path)).close()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StoreNotWritable, match=r"malformed.*restore a backup, or .*store salvage"):
        SQLiteStore(str(path))


def test_a_database_of_another_user_is_refused_with_who_may_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"x" * 100_000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreNotWritable, match="another user's: do this as the user who runs its server"):
        SQLiteStore(str(path), readonly=True)


def test_a_file_named_lock_beside_the_database_keeps_what_it_holds(tmp_path: Path) -> None:
    lock = tmp_path / "runs.db.lock"
    lock.write_text("precious")
    SQLiteStore(str(tmp_path / "runs.db")).close()
    assert lock.read_text() == "precious"


@pytest.mark.parametrize(
    "path", ["{folder}", "{folder}/missing/runs.db", "/proc/runs.db", "/proc/self/runs.db", "{file}/runs.db"]
)
def test_a_place_that_can_not_hold_a_database_is_refused_by_its_name(tmp_path: Path, path: str) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("a file is no folder")
    place = path.format(folder=folder, file=file)
    with pytest.raises(StoreNotWritable, match=re.escape(place)) as caught:
        SQLiteStore(place)
    assert caught.value.reason == "STORE_NOT_WRITABLE"
    assert "name a file in a folder" in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_file_that_takes_no_database_is_refused_when_the_store_is_opened_not_at_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "runs.db").symlink_to("/dev/null")
    with pytest.raises(StoreNotWritable, match=r"runs\.db can't be used as a database"):
        SQLiteStore(str(tmp_path / "runs.db"))


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.touch()
    store = SQLiteStore(str(path))
    assert make(store).epoch == 1
    store.close()


# --- one server at a time -----------------------------------------------------------------------------------------------


def test_a_second_opener_is_told_so_and_the_first_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    first = SQLiteStore(path)
    row = make(first)
    with pytest.raises(StoreInUse, match="in use by another mechanicd") as caught:
        SQLiteStore(path)
    assert caught.value.reason == "STORE_IN_USE"
    assert first.commit([commit_of(row, 0, 3)], []) == [True]
    first.close()
    second = SQLiteStore(path)
    assert got(second).last_step == 3
    second.close()


def test_who_was_refused_leaves_the_file_free_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"not yet a database")
    with pytest.raises(StoreNotWritable):
        SQLiteStore(str(path))
    path.unlink()
    SQLiteStore(str(path)).close()
    assert path.exists()


def test_a_killed_holder_holds_it_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    program = f"from mechanicd.store import SQLiteStore as S; s = S({str(path)!r}); print('open', flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreInUse):
            SQLiteStore(str(path))
        child.kill()
    SQLiteStore(str(path)).close()
    assert path.exists()


# --- when the disk refuses ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_changes_nothing_and_is_got_over(tmp_path: Path) -> None:
    """The largest size of a file stands for the size of the disk."""
    store = SQLiteStore(str(tmp_path / "runs.db"))
    row = make(store)
    assert store.commit([commit_of(row, 0, 100)], []) == [True]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(tmp_path / "runs.db-wal") + 20_000, hard))
    try:
        with pytest.raises(StoreError, match=r"runs\.db could not be written: (database or disk is full|disk I/O error)"):
            store.commit([commit_of(row, 100, 5_000)], [])
        assert got(store).last_step == 100
        assert history(store, row) == [step(number) for number in range(1, 101)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.commit([commit_of(row, 100, 5_000)], []) == [True]
    assert history(store, row) == [step(number) for number in range(1, 5_001)]
    store.close()


def test_a_store_that_was_closed_says_so_as_its_own_error(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "runs.db"))
    row = make(store)
    store.close()
    uses: list[Callable[[], object]] = [
        lambda: store.get("p", "r"),
        lambda: store.list_runs(None, None, 1),
        lambda: history(store, row),
        lambda: store.commit([commit_of(row, 0, 1)], []),
        lambda: store.delete(row.id),
    ]
    for use in uses:
        with pytest.raises(StoreError, match=r"runs\.db could not be (read|written)"):
            use()


# --- readers beside it --------------------------------------------------------------------------------------------------


def test_another_program_may_read_while_steps_are_committed(tmp_path: Path) -> None:
    """sqlite3, a backup or a dashboard: a reader neither blocks a commit nor is blocked by one."""
    path = tmp_path / "runs.db"
    store = SQLiteStore(str(path))
    row = make(store)
    store.commit([commit_of(row, 0, 5)], [])
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT last_step FROM runs").fetchall() == [(5,)]
    assert store.commit([commit_of(row, 5, 9)], []) == [True]
    assert reader.execute("SELECT last_step FROM runs").fetchall() == [(5,)], "what the reader saw when it began"
    reader.execute("COMMIT")
    assert reader.execute("SELECT last_step FROM runs").fetchall() == [(9,)]
    reader.close()
    store.close()


def test_a_copy_of_the_closed_file_is_a_backup(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "runs.db"))
    row = make(store)
    store.commit([commit_of(row, 0, 50)], [])
    store.close()
    shutil.copy(tmp_path / "runs.db", tmp_path / "backup.db")
    backup = SQLiteStore(str(tmp_path / "backup.db"))
    assert history(backup, got(backup)) == [step(number) for number in range(1, 51)]
    backup.close()


def test_a_store_made_on_one_thread_works_on_another(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "runs.db"))
    made: list[RunRow] = []
    thread = threading.Thread(target=lambda: made.append(make(store)))
    thread.start()
    thread.join()
    assert made == [got(store)]
    store.close()


# --- URLs ---------------------------------------------------------------------------------------------------------------


def test_a_url_names_a_file_from_here_from_the_root_or_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, file in [
        ("sqlite:///here.db", tmp_path / "here.db"),
        (f"sqlite:///{tmp_path}/root.db", tmp_path / "root.db"),
        ("sqlite:///a b%20c?.db", tmp_path / "a b%20c?.db"),
    ]:
        open_store(url).close()
        assert file.is_file(), url
    before = set(tmp_path.iterdir())
    memory = open_store("sqlite:///:memory:")
    assert memory.list_runs(None, None, 1) == []
    memory.close()
    assert set(tmp_path.iterdir()) == before


def test_each_store_in_memory_is_one_of_its_own() -> None:
    one, other = open_store("sqlite:///:memory:"), open_store("sqlite:///:memory:")
    assert isinstance(one, SQLiteStore)
    make(one)
    assert other.get("p", "r") is None
    one.close()
    other.close()


@pytest.mark.parametrize(
    "url", ["", "runs.db", "/tmp/runs.db", "sqlite:", "sqlite://runs.db", "sqlite:///", "mysql:///x", "file:///x"]
)
def test_a_url_of_no_known_kind_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(StoreNotWritable, match="expected sqlite:///FILE") as caught:
        open_store(url)
    assert str(caught.value).startswith(f"{url}: ")
