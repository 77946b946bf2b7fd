"""A training without a network: `target="file:///FOLDER"` gives the same S, and the file has every step that was flushed."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechanicd.client import (
    ConfigMismatch,
    InvalidArgument,
    LocalSession,
    MechanicdError,
    Reductions,
    ResumeError,
    ServerUnavailable,
    Session,
    SessionClosed,
    SessionFenced,
    TunerConfig,
    connect,
    open_run,
)
from mechanicd.client import _spool_file as spool_file
from mechanicd.client import _spool_history as spool_history
from mechanicd.client import _spool_session as spool_session
from mechanicd.client import _spool_target as spool_target
from tests.client.test_outage import oracle, some_reductions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"file://{tmp_path}/spool"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of the run that the tests train."""
    return tmp_path / "spool" / "default" / "bert" / "seed0.spool"


def open_bert(target: str, **settings: Any) -> Session:
    return open_run(target, "bert/seed0", **{"start": 0, **settings})


def history_of(file: Path) -> spool_history.History:
    with file.open("rb") as reader:
        return spool_history.read_history(reader, file)


def steps_of(file: Path) -> list[tuple[int, float]]:
    """(step, S) of each step of each session."""
    history = history_of(file)
    with file.open("rb") as reader:
        found = [list(spool_history.steps(reader, opening)) for opening in history.openings]
    return [(step.step, step.scale[0]) for session in found for step in session]


# ---- the target


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("file:///data/spool", "/data/spool"),
        ("file://localhost/data/spool", "/data/spool"),
        ("FILE:///data/my%20spool", "/data/my spool"),
        ("file:///data/a%2Cb%3Fc%23d", "/data/a,b?c#d"),
    ],
)
def test_a_target_names_a_folder(target: str, folder: str) -> None:
    assert spool_target.folder(target) == Path(folder)


def test_a_relative_target_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert spool_target.folder("file:spool") == tmp_path / "spool"


@pytest.mark.parametrize(
    "target",
    [
        *(
            "file:",
            "file://",
            "file://spool",
            "file://host/spool",
            "file:///a?timeout=30",
            "file:///a#b",
            "file:///a,file:///b",
        ),
        *("file:///a%00b", "file:///a%ff", "file:///\udcff", "127.0.0.1:50051,file:///a"),
    ],
)
def test_a_target_that_names_no_folder_is_refused_at_once(target: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        connect(target)
    assert caught.value.reason == "INVALID_TARGET"


def test_no_two_runs_share_a_file_or_stand_in_each_others_way() -> None:
    runs = ["a", "a.spool/b", "a/b", "a.spool", "a.spool.spool/b", "b/a.spool/c", "b/a"]
    files = [spool_target.file_of(Path("/s"), f"projects/{project}/runs/{run}") for project in ("p", "q.spool") for run in runs]
    assert len(set(files)) == len(files)
    assert not {parent for each in files for parent in each.parents} & set(files)


def test_a_folder_of_files_answers_no_question(target: str) -> None:
    with connect(target) as client, pytest.raises(InvalidArgument, match="mechanicd import"):
        client.scale_of("bert/seed0")


# ---- a training


def test_it_gives_the_same_bits_as_a_tuner_in_the_process_and_records_them(target: str, file: Path) -> None:
    reductions = some_reductions(300)
    reductions[100] = Reductions(float("nan"), 0.0, 1.0, 1.0)
    alone = LocalSession(TunerConfig())
    expected = [alone.step(each) for each in reductions]
    with open_bert(target, labels={"batch": "256"}) as session:
        assert [session.step(each) for each in reductions] == expected
        assert session.flush() == 300
        assert session.name == "projects/default/runs/bert/seed0"
    assert steps_of(file) == list(enumerate(expected, 1))
    history = history_of(file)
    assert (history.name, history.last, history.torn) == (session.name, 300, 0)
    with file.open("rb") as reader:
        assert dict(spool_history.opened(reader, history.openings[0]).labels) == {"batch": "256"}


def test_it_needs_no_grpc_and_takes_its_target_from_the_environment(tmp_path: Path) -> None:
    program = (
        "import sys; from mechanicd.client import Reductions, open_run\n"
        "with open_run(None, 'seed0') as session: session.step(Reductions(0.0, 0.0, 1.0, 1.0))\n"
        "assert 'grpc' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MECHANICD_TARGET": f"file://{tmp_path}", "MECHANICD_PROJECT": "p"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [each.closed is not None for each in history_of(tmp_path / "p" / "seed0.spool").openings] == [True]


@pytest.mark.parametrize(("status", "number"), [("finished", 5), ("failed", 4), ("preempted", 3)])
def test_the_end_is_recorded(target: str, file: Path, status: str, number: int) -> None:
    open_bert(target).close(status, "as told")
    closed = history_of(file).openings[-1].closed
    assert closed is not None
    assert (closed.status, closed.message) == (number, "as told")


def test_several_runs_and_scale_groups_have_files_of_their_own(target: str, tmp_path: Path) -> None:
    config = TunerConfig(scale_groups=tuple(f"g{i}" for i in range(40)))
    with open_run(target, "one", project="p", config=config) as many, open_run(target, "two", project="p") as single:
        many.begin([Reductions(-1.0, 0.0, 1.0, 1.0)] * 40, base_lr=0.5, hold=True)
        many.finish()
        single.step(Reductions(-1.0, 0.0, 1.0, 1.0))
    assert [history_of(tmp_path / "spool" / "p" / f"{name}.spool").steps for name in ("one", "two")] == [1, 1]


# ---- resuming


def test_it_resumes_where_the_file_ends_at_a_checkpoint_and_from_scratch(
    target: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reductions = some_reductions(100)
    scales = oracle(reductions)
    with open_bert(target) as session:
        for each in reductions[:40]:
            session.step(each)
        checkpoint = session.state
        for each in reductions[40:60]:
            session.step(each)
    with open_bert(target, start=None) as session:
        assert (session.state.step, session.scale) == (60, scales[59])
    with open_bert(target, start=checkpoint) as session:
        assert [session.step(each) for each in reductions[40:]] == scales[40:]
    with open_bert(target, start=50) as session:
        assert session.scale == scales[49], "replayed from the file"
    with caplog.at_level(logging.WARNING), open_bert(target, start=0) as session:
        assert session.state.step == 0
    assert "training starts over: the run rewinds from step 50 to its start" in caplog.text
    assert [(each.after, each.last, each.stage) for each in history_of(file).openings] == [
        *[(0, 60, 0), (60, 60, 0), (40, 100, 1), (50, 50, 2), (0, 0, 3)]
    ]


def test_what_it_cannot_resume_is_refused_and_leaves_the_file_as_it_was(target: str, file: Path) -> None:
    with open_bert(target) as session:
        session.step(some_reductions(1)[0])
    before = file.read_bytes()
    with pytest.raises(ConfigMismatch) as mismatch:
        open_bert(target, config=TunerConfig(s_decay=0.5))
    assert (mismatch.value.reason, mismatch.value.metadata) == ("CONFIG_MISMATCH", {"s_decay": "0.01 ≠ 0.5"})
    with pytest.raises(ResumeError) as unknown:
        open_bert(target, start=2)
    assert unknown.value.reason == "RESUME_STEP_UNKNOWN"
    assert file.read_bytes() == before
    file.rename(file.with_name("seed1.spool"))
    with pytest.raises(MechanicdError) as foreign:
        open_run(target, "bert/seed1", start=0)
    assert foreign.value.reason == "SPOOL_FOREIGN"


# ---- two trainers


def test_a_second_process_on_one_file_is_refused_by_name(target: str, file: Path) -> None:
    with open_bert(target) as session:
        program = "import sys; from mechanicd.client import open_run; open_run(sys.argv[1], 'bert/seed0', start=0)"
        done = subprocess.run([sys.executable, "-c", program, target], capture_output=True, text=True, check=False)
        assert "SPOOL_LOCKED" in done.stderr
        assert f"process {os.getpid()}" in done.stderr, "it says who has it"
        session.step(some_reductions(1)[0])
    assert history_of(file).steps == 1
    open_bert(target).close()


def test_a_newer_session_of_the_same_process_fences_the_older(target: str, file: Path) -> None:
    reductions = some_reductions(20)
    old = open_bert(target)
    scales = [old.step(each) for each in reductions[:10]]
    with pytest.raises(ConfigMismatch):
        open_bert(target, config=TunerConfig(s_decay=0.5))
    scales.append(old.step(reductions[10]))
    new = open_bert(target, start=None)
    for use in (lambda: old.step(reductions[11]), old.flush):
        with pytest.raises(SessionFenced) as caught:
            use()
        assert caught.value.reason == "SESSION_FENCED"
    scales += [new.step(each) for each in reductions[11:]]
    old.close()
    new.close()
    assert scales == oracle(reductions)
    assert [(each.last, each.closed is not None) for each in history_of(file).openings] == [(11, False), (20, True)]


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX warns if other tests have imported it
def test_a_forked_child_leaves_the_file_alone(target: str, file: Path) -> None:
    with open_bert(target) as session:
        session.step(some_reductions(1)[0])
        child = os.fork()
        if not child:
            try:
                session.flush()
            except SessionClosed as error:
                os._exit(0 if error.reason == "FORKED_PROCESS" else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert spool_file.is_held(file)
        session.step(some_reductions(1)[0])
    assert history_of(file).last == 2


def test_a_file_is_locked_on_windows_too(target: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a test here can show: msvcrt's lock of one byte, by another process."""
    taken: list[int] = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        if taken or size != 1:
            raise PermissionError
        taken.append(os.lseek(descriptor, 0, os.SEEK_CUR))

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with open_bert(target) as session:
        assert spool_file.is_held(file)
        session.step(some_reductions(1)[0])
    assert taken == [2**40]
    assert history_of(file).steps == 1


# ---- deaths


def test_kill_9_loses_no_finished_step_and_the_next_trainer_goes_on(target: str, file: Path) -> None:
    program = (
        "import os, sys; from tests.client.test_spool import *\n"
        "session = open_run(sys.argv[1], 'bert/seed0', start=0)\n"
        "for each in some_reductions(50): session.step(each)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, target], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert steps_of(file) == list(enumerate(oracle(some_reductions(50)), 1))
    with open_bert(target, start=None) as session:
        assert session.state.step == 50


def test_a_trainer_that_is_told_to_stop_closes_its_file_as_preempted(target: str, file: Path) -> None:
    program = (
        "import os, signal, sys, time; from tests.client.test_spool import *\n"
        "session = open_run(sys.argv[1], 'bert/seed0', start=0)\n"
        "for each in some_reductions(50): session.step(each)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "while True: time.sleep(0.01); session.step(some_reductions(1)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, target], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGTERM
    (opening,) = history_of(file).openings
    assert opening.last >= 50
    assert opening.closed is not None
    assert opening.closed.status == 3


@pytest.mark.parametrize("left", [0, 3, 8, 12, 40])
def test_a_torn_tail_is_cut_off_and_named(target: str, file: Path, left: int, caplog: pytest.LogCaptureFixture) -> None:
    """As a power loss leaves it: the file ends anywhere after what was flushed, or with zeros or noise there."""
    reductions = some_reductions(20)
    with open_bert(target) as session:
        for each in reductions[:10]:
            session.step(each)
        session.flush()
        size = file.stat().st_size
        for each in reductions[10:]:
            session.step(each)
    flushed, rest = file.read_bytes()[:size], file.read_bytes()[size:]
    for number, tail in enumerate([rest[:left], rest[:left] + bytes(500), rest[:left] + os.urandom(300), rest[:-1]]):
        file.write_bytes(flushed + tail)
        torn = history_of(file).torn
        caplog.clear()
        with caplog.at_level(logging.WARNING), open_bert(target, start=None) as session:
            expected = 20 if number == 3 else 10
            assert session.state.step == expected
            assert session.scale == oracle(reductions)[expected - 1]
        assert ("SPOOL_TORN" in caplog.text) == bool(torn)
        assert history_of(file).torn == 0


@pytest.mark.parametrize("tail", [b"", b"MS", b"MSPL\1", bytes(400)])
def test_a_trainer_that_died_as_it_began_leaves_a_file_that_the_next_takes(target: str, file: Path, tail: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(tail)
    with open_bert(target) as session:
        session.step(some_reductions(1)[0])
    assert history_of(file).steps == 1


def test_damage_to_what_was_on_the_disk_is_no_torn_tail(target: str, file: Path) -> None:
    with open_bert(target) as session:
        for each in some_reductions(30):
            session.step(each)
            if session.state.step % 10 == 0:
                session.flush()
    whole = file.read_bytes()
    for damaged in (
        bytes([*whole[:400], whole[400] ^ 1, *whole[401:]]),
        whole[:300] + whole[301:],
        whole[:8] + bytes(8) + whole[16:],
    ):
        file.write_bytes(damaged)
        with pytest.raises(MechanicdError) as caught:
            open_bert(target, start=None)
        assert caught.value.reason == "SPOOL_DAMAGED"
        assert file.read_bytes() == damaged


@pytest.mark.parametrize(("content", "reason"), [(b"SQLite format 3\0", "SPOOL_FOREIGN"), (b"MSPL\2\0\0\0", "SPOOL_VERSION")])
def test_a_file_of_another_kind_is_never_touched(target: str, file: Path, content: bytes, reason: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(MechanicdError) as caught:
        open_bert(target)
    assert caught.value.reason == reason
    assert file.read_bytes() == content


# ---- a disk that is full


class Disk:
    """What the file's own writes and syncs meet."""

    def __init__(self) -> None:
        self.room = 10**9
        self.sync_fails = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()

    class File(spool_file.io.FileIO):
        def write(self, data: Any) -> int:
            written = min(len(data), made.room)
            if data and not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            made.room -= written
            return super().write(bytes(data)[:written])

    def fsync(descriptor: int) -> None:
        if made.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(spool_file.io, "FileIO", File)
    monkeypatch.setattr(spool_file.os, "fsync", fsync)
    return made


def test_a_full_disk_is_named_and_nothing_is_lost_where_it_has_room_again(
    target: str, file: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    reductions = some_reductions(60)
    session = open_bert(target)
    with caplog.at_level(logging.WARNING):
        scales = [session.step(each) for each in reductions[:20]]
        assert session.flush() == 20
        disk.room = 100  # one record, and a part of the next
        scales += [session.step(each) for each in reductions[20:40]]
        with pytest.raises(ServerUnavailable) as caught:
            session.flush()
        assert caught.value.reason == "SPOOL_UNWRITABLE"
        assert "No space left" in str(caught.value)
        assert [step for step, _ in steps_of(file)][:20] == list(range(1, 21)), "what was flushed is there"
        disk.room = 10**9
        scales += [session.step(each) for each in reductions[40:]]
        assert session.flush() == 60
    session.close()
    assert scales == oracle(reductions)
    assert steps_of(file) == list(enumerate(scales, 1))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"], "once when it begins, once when it ends"


def test_a_disk_that_fails_to_sync_gets_all_since_the_last_sync_again(target: str, file: Path, disk: Disk) -> None:
    reductions = some_reductions(30)
    session = open_bert(target)
    for each in reductions[:10]:
        session.step(each)
    session.flush()
    size = file.stat().st_size
    for each in reductions[10:20]:
        session.step(each)
    disk.sync_fails = True
    with pytest.raises(ServerUnavailable, match="SPOOL_UNWRITABLE"):
        session.flush()
    os.truncate(file, size)  # as a network's file system drops what it could not write
    disk.sync_fails = False
    for each in reductions[20:]:
        session.step(each)
    session.close()
    assert steps_of(file) == list(enumerate(oracle(reductions), 1))


def test_what_is_too_much_to_keep_is_a_gap_that_is_named(
    target: str, file: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_session, "KEPT_BYTES", 500)
    reductions = some_reductions(60)
    session = open_bert(target)
    scales = [session.step(each) for each in reductions[:20]]
    disk.room = 0
    scales += [session.step(each) for each in reductions[20:40]]
    disk.room = 10**9
    scales += [session.step(each) for each in reductions[40:]]
    session.close()
    assert scales == oracle(reductions), "the training itself goes on"
    kept = [step for step, _ in steps_of(file)]
    lost = sorted(set(range(1, 61)) - set(kept))
    assert kept == sorted(kept)
    assert lost[-1] == 40
    assert f"the {len(lost)} steps up to step 40 are lost" in caplog.text
    assert [each.after for each in history_of(file).openings] == [0, 40]


def test_the_policies_for_an_outage_are_those_for_a_full_disk(target: str, file: Path, disk: Disk) -> None:
    reductions = some_reductions(30)
    with open_bert(target, on_outage="hold") as session:
        scales = [session.step(each) for each in reductions[:10]]
        disk.room = 0
        noticed = session.step(reductions[10])
        assert {session.step(each) for each in reductions[11:20]} == {noticed}
        disk.room = 10**9
        session.step(reductions[20])
        assert session.step(reductions[21]) != noticed
    assert [step for step, _ in steps_of(file)] == list(range(1, 23))
    assert steps_of(file)[9] == (10, scales[-1])
    session = open_bert(target, on_outage="raise", start=None)
    disk.room = 0
    for _ in range(2):
        with pytest.raises(ServerUnavailable, match="SPOOL_UNWRITABLE"):
            session.step(reductions[22])
    session.close()


def test_a_folder_that_cannot_be_written_is_named_at_the_first_moment(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServerUnavailable, match="SPOOL_UNWRITABLE"):
        open_bert(f"file://{tmp_path}/file/spool")
    disk.room = 20
    with pytest.raises(ServerUnavailable, match="SPOOL_UNWRITABLE"):
        open_bert(f"file://{tmp_path}/spool")


def test_a_close_that_cannot_write_says_what_is_missing(target: str, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    session = open_bert(target)
    for each in some_reductions(5):
        session.step(each)
    disk.room = 0
    session.close()
    assert "the file may lack the last 5 steps" in caplog.text
    assert "SPOOL_UNWRITABLE" in caplog.text


def test_a_file_that_is_removed_or_replaced_under_a_training_is_noticed(target: str, file: Path) -> None:
    session = open_bert(target)
    session.step(some_reductions(1)[0])
    assert session.flush() == 1
    file.unlink()
    session.step(some_reductions(1)[0])
    with pytest.raises(ServerUnavailable, match="removed or replaced"):
        session.flush()
    session.close()


def test_much_that_nobody_flushes_is_synced_all_the_same(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_file, "SYNC_BYTES", 2000)
    synced = []
    monkeypatch.setattr(spool_file.os, "fsync", synced.append)
    with open_bert(target) as session:
        opened = len(synced)
        for each in some_reductions(200):
            session.step(each)
        assert len(synced) - opened >= 5


# ---- the format, byte by byte


def test_the_bytes_are_those_that_the_format_documents(target: str, file: Path) -> None:
    with open_bert(target) as session:
        session.begin(Reductions(-1.0, 0.5, 2.0, 3.0), base_lr=0.25)
        session.finish()
        session.flush()
    import struct
    import zlib

    data, at, kinds = file.read_bytes(), 8, []
    assert data[:8] == b"MSPL\1\0\0\0"
    while at < len(data):
        kind, length, crc = struct.unpack_from("<BII", data, at)
        message = data[at + 9 : at + 9 + length]
        assert crc == zlib.crc32(struct.pack("<QBI", at, kind, length) + message)
        kinds.append(kind)
        at += 9 + length
    assert (kinds, at) == ([1, 2, 4, 3, 4], len(data))
    assert json.dumps(kinds)
