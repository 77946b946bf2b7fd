"""Processes: what they say arrives whole, and none outlives the demo."""

import os
import signal
import time
from pathlib import Path

import pytest

from mechanicd.demo import processes
from mechanicd.demo.processes import Crew, DemoError, Server, Stopped, StopSignals


def _hear_all(crew: Crew, seconds: float = 20.0) -> list[tuple[str, str | int]]:
    heard: list[tuple[str, str | int]] = []
    deadline = time.monotonic() + seconds
    while crew and time.monotonic() < deadline:
        heard += crew.listen(0.1)
    return heard


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_lines_arrive_whole_and_the_exit_status_last(tmp_path: Path):
    program = "import sys, time; print('a'*70000); print('b', end='', flush=True); time.sleep(.1); print('c'); sys.exit(3)"
    with Crew(tmp_path) as crew:
        crew.start("one", ["-c", program])
        assert _hear_all(crew) == [("one", "a" * 70000), ("one", "bc"), ("one", 3)]


def test_what_a_training_said_before_its_kill_still_comes(tmp_path: Path):
    with Crew(tmp_path) as crew:
        crew.start("one", ["-c", "import time; print('last words', flush=True); time.sleep(60)"])
        while not (heard := list(crew.listen(0.1))):
            pass
        crew.kill("one")
        assert heard + _hear_all(crew) == [("one", "last words"), ("one", -signal.SIGKILL)]


def test_standard_error_goes_to_a_log_of_that_name(tmp_path: Path):
    with Crew(tmp_path) as crew:
        crew.start("mnist/one", ["-c", "raise SystemExit('no such digit')"])
        _hear_all(crew)
        assert crew.log("mnist/one") == tmp_path / "mnist-one.log"
        assert processes.tail(crew.log("mnist/one")) == "no such digit"
    assert processes.tail(tmp_path / "missing.log") == ""


def test_no_process_outlives_its_crew_not_even_one_that_will_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 1.0)
    stubborn = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
    obedient = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    pids: list[int] = []
    with Crew(tmp_path) as crew:
        crew.start("stubborn", ["-c", stubborn])
        crew.start("obedient", ["-c", obedient])
        while len(pids) < 2:
            pids += [int(said) for _, said in crew.listen(0.1)]
    assert not any(_alive(pid) for pid in pids)


def test_signals_are_raised_where_they_are_checked_for_and_nowhere_else():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM") as stopped:
            signals.check()
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_cannot_start_is_an_error_that_shows_its_log(tmp_path: Path):
    with pytest.raises(DemoError, match=r"the server ended with exit status 1; see .*server.log"):
        Server("nosuch://store", tmp_path, lambda: None)


def test_a_server_stops_when_its_block_ends(tmp_path: Path):
    with Server(f"sqlite:///{tmp_path}/mechanicd.db", tmp_path, lambda: None) as server:
        assert server.target.startswith("127.0.0.1:")
        server.check()
    with pytest.raises(DemoError, match="exit status 0"):
        server.check()
