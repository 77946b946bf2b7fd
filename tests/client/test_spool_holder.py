"""A spool file has one trainer at a time: others are refused by name, a newer session fences an older."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechanicd.client import ConfigMismatch, SessionClosed, SessionFenced, TunerConfig
from mechanicd.client import _spool_file as spool_file
from tests.client.spools import history_of, open_bert
from tests.client.test_outage import oracle, some_reductions


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
