"""A session or an optimizer that nobody closed and nobody holds any more: its run ends, and so do its threads."""

import copy
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import Reductions, ServerUnavailable, connect, open_run
from mechanicd.v1 import resources_pb2, run_service_pb2

FINISHED = resources_pb2.RUN_STATUS_FINISHED


def statuses(server: Any, project: str) -> dict[str, Any]:
    with connect(server.target) as client:
        reply = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent=f"projects/{project}", page_size=200))
    return {run.name.rpartition("/")[2]: run.status for run in reply.runs}


def step(session: Any) -> None:
    session.step(Reductions(-1.0, 0.5, 1.0, 2.0))


def threads() -> int:
    """All of this process, grpc's too."""
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def ends(server: Any, project: str, wait_for: Callable[..., bool]) -> Callable[..., None]:
    def check(count: int) -> None:
        assert wait_for(lambda: list(statuses(server, project).values()) == [FINISHED] * count), statuses(server, project)

    return check


def test_a_session_that_is_dropped_closes_its_run(server: Any, project: str, ends: Any, history: Any) -> None:
    session = open_run(server.target, "dropped", project=project, start=0)
    for _ in range(5):
        step(session)
    del session
    ends(1)
    assert len(history(server.target, "dropped", project)) == 5, "with every step"
    with connect(server.target) as client:
        run = client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/{project}/runs/dropped")).run
    assert run.status_message == "garbage-collected without close()"


def test_sixty_one_trials_leave_no_run_and_no_thread(server: Any, project: str, ends: Any, wait_for: Any) -> None:
    step(open_run(server.target, "trial", project=project, start=0))
    ends(1)
    before = threads()
    most = 0
    for trial in range(1, 61):
        step(open_run(server.target, f"trial{trial}", project=project, start=0))
        most = max(most, threads())
    ends(61)
    assert wait_for(lambda: threads() <= before)
    assert most < before + 61, "they did not pile up"


class Holder:
    """As trainers hold their optimizer, and the optimizer its trainer: only the garbage collector finds it."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.itself = self


def test_one_in_a_cycle_closes_when_the_cycle_is_collected(server: Any, project: str, ends: Any) -> None:
    holder = Holder(open_run(server.target, "cycle", project=project, start=0))
    step(holder.session)
    del holder
    gc.collect()
    ends(1)


def test_one_that_an_error_kept_alive_closes_with_the_error(server: Any, project: str, ends: Any) -> None:
    def trial() -> None:
        session = open_run(server.target, "failed", project=project, start=0)
        step(session)
        raise ValueError("of the trial")

    kept: list[BaseException] = []
    try:
        trial()
    except ValueError as error:
        kept.append(error)
    time.sleep(0.3)
    assert statuses(server, project)["failed"] == resources_pb2.RUN_STATUS_RUNNING, "its frame is still there"
    kept.clear()
    ends(1)


def test_one_dropped_while_the_server_is_away_brings_its_steps_when_it_is_back(
    new_server: Callable[..., Any], wait_for: Callable[..., bool], history: Any
) -> None:
    server = new_server().start()
    session = open_run(server.target, "away", start=0)
    step(session)
    server.kill()
    for _ in range(4):
        step(session)
    del session
    server.start()

    def finished() -> bool:
        try:
            return statuses(server, "default") == {"away": FINISHED}
        except ServerUnavailable:  # grpc has not tried again yet
            return False

    assert wait_for(finished, 20.0)
    assert len(history(server.target, "away")) == 5


PROGRAM = """
import gc, os, sys, threading, time
from mechanicd.client import Reductions, open_run

def train(run):
    session = open_run(sys.argv[1], run, start=0)
    for _ in range(20):
        session.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
        session.finish(wait=False)
    return session
{main}
"""


def ended(server: Any, project: str, main: str) -> str:
    command = [sys.executable, "-c", PROGRAM.format(main=main), server.target]
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "main",
    [
        "train('one')",  # dropped by the last line
        "cycle = [train('one')]; cycle.append(cycle); gc.disable(); del cycle",  # found by the interpreter's end, or by no one
        "cycle = [train('one')]; cycle.append(cycle); del cycle; gc.collect()",
        "sessions = [train('one')]; threading.Thread(target=sessions.pop).start()",
    ],
)
def test_a_process_that_ends_right_after_waits_for_it(main: str, server: Any, project: str, history: Any) -> None:
    ended(server, project, main)
    assert statuses(server, project) == {"one": FINISHED}
    assert len(history(server.target, "one", project)) == 20


def test_a_forked_child_that_drops_its_parents_session_leaves_it_alone(server: Any, project: str) -> None:
    main = """
session = train("one")
dropped = train("two")
cycle = [dropped]; cycle.append(cycle); gc.disable(); del dropped, cycle
child = os.fork()
if child == 0:
    del session
    gc.collect()
    time.sleep(0.5)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
print(session.flush())
"""
    assert ended(server, project, main) == "21\n"
    assert statuses(server, project) == {"one": FINISHED, "two": FINISHED}


def test_finalizers_may_run_wherever_threads_are_started(server: Any, project: str, ends: Any) -> None:
    """Starting a thread takes a lock of `threading`; a finalizer that runs just then must not need it."""
    session = open_run(server.target, "locked", project=project, start=0)
    step(session)
    lock: Any = threading._active_limbo_lock  # type: ignore[attr-defined]
    with lock:
        del session
    ends(1)


def test_a_copy_of_an_optimizer_has_a_session_of_its_own(server: Any, project: str, ends: Any) -> None:
    torch = pytest.importorskip("torch")
    from mechanicd.torch import mechanize

    def trained(opt: Any, p: Any) -> None:
        p.sum().backward()
        opt.step()

    p = torch.nn.Parameter(torch.ones(3))
    opt = mechanize(torch.optim.SGD([p], lr=1.0), run="original", target=server.target, project=project)
    trained(opt, p)
    _, other = copy.deepcopy((p, opt))
    del other
    trained(opt, p)
    opt.flush()
    assert statuses(server, project) == {"original": resources_pb2.RUN_STATUS_RUNNING}
    del opt
    ends(1)


@pytest.mark.parametrize("held", ["plainly", "in a cycle", "by a scheduler"])
def test_sixty_one_optimizers_that_nobody_closed(held: str, server: Any, project: str, ends: Any, wait_for: Any) -> None:
    torch = pytest.importorskip("torch")
    from mechanicd.torch import mechanize

    count = 61 if held == "plainly" else 3
    before = 0
    for trial in range(count):
        model = torch.nn.Linear(8, 1)
        opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0), f"trial{trial}", server.target, project=project)
        if held == "in a cycle":
            model.opt, opt.model = opt, model
        elif held == "by a scheduler":
            schedule = torch.optim.lr_scheduler.LinearLR(opt)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(4, 8)).pow(2).mean().backward()
            opt.step()
        if held == "by a scheduler":
            schedule.step()
            del schedule
        del model, opt
        if held == "in a cycle":
            gc.collect()
        if trial == 0:
            ends(1)
            before = threads()
    ends(count)
    assert wait_for(lambda: threads() <= before)


FREES_SLOWLY = """
import time
from mechanicd.client.framework import do_later

class Buffer:
    def __del__(self):
        time.sleep(0.2)
        print("freed")

class Optimizer:
    def __init__(self):
        self.buffer = Buffer()

    def settle(self):
        pass

do_later(Optimizer().settle)
"""


def test_what_a_dropped_optimizer_held_is_freed_before_python_ends() -> None:
    """A thread that frees a tensor of a GPU while Python ends aborts the process."""
    done = subprocess.run([sys.executable, "-c", FREES_SLOWLY], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "freed\n"), done.stderr
