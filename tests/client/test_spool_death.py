"""What a death leaves in a spool file: whole steps and a torn tail, which is told from damage; and the bytes themselves."""

import logging
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mechanicd.client import MechanicdError, Reductions
from tests.client.spools import ROOT, history_of, open_bert, steps_of
from tests.client.test_outage import oracle, some_reductions


def test_kill_9_loses_no_finished_step_and_the_next_trainer_goes_on(target: str, file: Path) -> None:
    program = (
        "import os, sys; from mechanicd.client import open_run\n"
        "from tests.client.test_outage import some_reductions\n"
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
        "import os, signal, sys, time; from mechanicd.client import open_run\n"
        "from tests.client.test_outage import some_reductions\n"
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


def test_the_bytes_are_those_that_the_format_documents(target: str, file: Path) -> None:
    with open_bert(target) as session:
        session.begin(Reductions(-1.0, 0.5, 2.0, 3.0), base_lr=0.25)
        session.finish()
        session.flush()
    data, at, kinds = file.read_bytes(), 8, []
    assert data[:8] == b"MSPL\1\0\0\0"
    while at < len(data):
        kind, length, crc = struct.unpack_from("<BII", data, at)
        message = data[at + 9 : at + 9 + length]
        assert crc == zlib.crc32(struct.pack("<QBI", at, kind, length) + message)
        kinds.append(kind)
        at += 9 + length
    assert (kinds, at) == ([1, 2, 4, 3, 4], len(data))
