"""SIGTERM: a trainer that is told to stop leaves its runs as preempted, and ends as it would have without this package."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import Reductions, connect, open_run
from mechanicd.v1 import resources_pb2, run_service_pb2

TRAINER = """
import os, signal, sys, threading, time
from mechanicd.client import Reductions, open_run

{before}
sessions = [open_run(sys.argv[1], run, start=0) for run in ("one", "two")]
trained = threading.Event()
{after}
def train():
    while True:
        for session in sessions:
            session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
        time.sleep(0.001)

def main():
    for _ in range(50):
        for session in sessions:
            session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    print("trained", flush=True)
    trained.set()
    train()

{main}
"""
HANDLER = """
def stop(number, frame):
    print("my own handler", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
"""


def ended(server: Any, project: str, number: int, **parts: str) -> tuple[int, str]:
    """Trains until the signal comes, 0 for none from here; the exit code and what was said."""
    program = TRAINER.format(**{"before": "", "after": "", "main": "main()"} | parts)
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    command = [sys.executable, "-c", program, server.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        too_long = threading.Timer(60.0, process.kill)
        too_long.start()
        assert process.stdout.readline() == "trained\n"
        process.send_signal(number)
        said = process.stdout.read()
        too_long.cancel()
        return process.wait(30), said


def runs(server: Any, project: str) -> dict[str, Any]:
    with connect(server.target) as client:
        reply = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent=f"projects/{project}"))
    return {run.name.rpartition("/")[2]: run for run in reply.runs}


PREEMPTED = resources_pb2.RUN_STATUS_PREEMPTED


def test_without_a_handler_of_its_own_it_dies_of_the_signal_and_its_runs_are_preempted(server: Any, project: str) -> None:
    assert ended(server, project, signal.SIGTERM) == (-signal.SIGTERM, "")
    for run in runs(server, project).values():
        assert (run.status, run.status_message) == (PREEMPTED, "SIGTERM told the process to stop")
        assert run.durable_step >= 50


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_handler_of_its_own_is_called_as_ever(server: Any, project: str, where: str) -> None:
    """One that comes after ours takes its place: then the exit status of the process is all that is known."""
    assert ended(server, project, signal.SIGTERM, **{where: HANDLER}) == (5, "my own handler\n")
    expected = PREEMPTED if where == "before" else resources_pb2.RUN_STATUS_FAILED
    assert {run.status for run in runs(server, project).values()} == {expected}


def test_a_trainer_that_ignores_the_signal_goes_on(server: Any, project: str) -> None:
    """It is then killed, as whoever sends SIGTERM does in the end; nothing closed the runs."""
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    main = """
def kill():
    trained.wait()
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill).start()
main()
"""
    assert ended(server, project, signal.SIGTERM, before=ignoring, main=main) == (-signal.SIGKILL, "")
    assert {run.status for run in runs(server, project).values()} == {resources_pb2.RUN_STATUS_RUNNING}


def test_a_container_s_first_process_ends_although_the_signal_has_no_default_action_there(server: Any, project: str) -> None:
    """The kernel ignores it there. Here nothing arrives, which is the same."""
    assert ended(server, project, signal.SIGTERM, after="os.kill = lambda pid, number: None") == (128 + signal.SIGTERM, "")
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


AMID_A_STEP = """
class Rate:
    def __float__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.1

def main():
    for session in sessions:
        session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    print("trained", flush=True)
    for session in sessions:
        session.begin(Reductions(-1.0, 0.5, 1.0, 2.0), base_lr=Rate())
        session.finish(wait=False)
    train()

main()
"""


def test_a_signal_amid_a_step_closes_the_runs_as_well(server: Any, project: str) -> None:
    assert ended(server, project, 0, main=AMID_A_STEP) == (-signal.SIGTERM, "")
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


def test_a_handler_of_its_own_may_close_amid_a_step(server: Any, project: str) -> None:
    handler = HANDLER.replace("    sys.exit(5)", "    for session in sessions: session.close()\n    sys.exit(5)")
    assert ended(server, project, 0, before=handler, main=AMID_A_STEP) == (5, "my own handler\n")
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


def test_a_process_whose_main_thread_waits_for_one_that_trains_ends_too(server: Any, project: str) -> None:
    """It waits in C, where no handler of Python's runs any more: as a main thread of JAX's does for a callback."""
    main = """
import ctypes
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
threading.Thread(target=main, daemon=True).start()
trained.wait()
signal.raise_signal(signal.SIGTERM)
lock(mutex), lock(mutex)  # for ever
"""
    assert ended(server, project, 0, main=main)[0] == -signal.SIGTERM
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


def test_a_training_on_another_thread_is_preempted_too(server: Any, project: str) -> None:
    main = "threading.Thread(target=main, daemon=True).start(); time.sleep(60)"
    assert ended(server, project, signal.SIGTERM, main=main)[0] == -signal.SIGTERM
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


def test_a_with_block_that_a_handler_leaves_is_preempted_not_failed(server: Any, project: str) -> None:
    main = "\nwith sessions[0], sessions[1]:\n    main()"
    assert ended(server, project, signal.SIGTERM, before=HANDLER, main=main)[0] == 5
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


def test_a_forked_child_that_is_told_to_stop_leaves_its_parents_runs_alone(server: Any, project: str) -> None:
    main = """
up, told = os.pipe()
child = os.fork()
if child == 0:
    os.write(told, b"!")  # a signal that comes while Python still sets the child up is lost, whatever is installed
    time.sleep(60)
    os._exit(1)
os.read(up, 1)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status), flush=True)
for _ in range(10):
    sessions[0].step(Reductions(-1.0, 0.5, 1.0, 2.0))
main()
"""
    program = TRAINER.format(before="", after="", main=main)
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    command = [sys.executable, "-c", program, server.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"child {-signal.SIGTERM}\n"
        assert process.stdout.readline() == "trained\n"
        assert {run.status for run in runs(server, project).values()} == {resources_pb2.RUN_STATUS_RUNNING}
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    assert {run.status for run in runs(server, project).values()} == {PREEMPTED}


def test_a_run_that_no_step_comes_for_is_silent_until_the_next(
    new_server: Callable[..., Any], wait_for: Callable[..., bool]
) -> None:
    server = new_server("--silent-after", "20", "0.5").start()
    session = open_run(server.target, "quiet", start=0)

    def status() -> Any:
        return runs(server, "default")["quiet"]

    for _ in range(100):
        session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    session.flush()
    assert status().status == resources_pb2.RUN_STATUS_RUNNING
    assert wait_for(lambda: status().status == resources_pb2.RUN_STATUS_SILENT)
    assert status().status_message.startswith("no step for ")
    assert "usually one every " in status().status_message
    with connect(server.target) as client:
        request = run_service_pb2.ListRunsRequest(parent="projects/-", filter="status = SILENT")
        assert len(client.call("ListRuns", request).runs) == 1
    session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    session.flush()
    assert status().status == resources_pb2.RUN_STATUS_RUNNING
    session.close()
    assert status().status == resources_pb2.RUN_STATUS_FINISHED
