"""A spool file on a disk that is full, that fails, or whose file is removed: it is said, and nothing is lost silently."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import ServerUnavailable
from mechanicd.client import _spool_file as spool_file
from mechanicd.client import _spool_session as spool_session
from tests.client.spools import history_of, open_bert, steps_of
from tests.client.test_outage import oracle, some_reductions
from tests.support.logs import about


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
    assert len(about(caplog, "bert/seed0")) == 2, "once when it begins, once when it ends"


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
