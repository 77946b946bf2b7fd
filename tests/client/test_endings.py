"""How trainings end: each program here is a real process that trains against a server and closes nothing.

They all run before the first test looks, a few at a time. Each has taken 20 steps that it did not wait for, and every history
has them.
"""

import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import connect
from mechanicd.v1 import resources_pb2, run_service_pb2

BEFORE = """
import asyncio, atexit, functools, gc, multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from mechanicd.client import Reductions, open_run

def train(run="{run}", steps=20):
    session = open_run("{target}", run, start=0)
    for _ in range(steps):
        session.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
        session.finish(wait=False)
    return session

def main(error=None):
    session = train()
    if error is not None:
        raise error

def child(start, target):
    process = multiprocessing.get_context(start).Process(target=target)
    process.start()
    process.join()

def leave():
    global kept
    kept = train()
    sys.exit(3)
"""
DROPPED, ENDED = "garbage-collected without close()", "the process ended"
FINISHED = {
    "dropped by main": ("main()", DROPPED),
    "dropped, and the exit code is 0": ("main()\nsys.exit(0)", DROPPED),
    "a global": ("session = train()", ENDED),
    "a class attribute": ("class Trainer:\n    session = train()", ENDED),
    "in a partial and a closure": ("def of(s): return lambda: s\nf = functools.partial(of(train()))", ENDED),
    "in a cycle that nobody collects": ("gc.disable(); held = [train()]; held.append(held); del held", ENDED),
    "held by an error that was handled": ("try: main(ValueError())\nexcept ValueError as e: kept = e", ENDED),
    "with another cell's error": ("try: modle\nexcept NameError as e: sys.last_value = sys.last_exc = e\nmain()", DROPPED),
    "on a daemon thread": (
        "up = threading.Event()\ndef work():\n    s = train(); up.set(); time.sleep(60)\n"
        "threading.Thread(target=work, daemon=True).start(); up.wait()",
        ENDED,
    ),
    "in a forked child": ("def work():\n    global kept\n    kept = train()\nchild('fork', work)", ENDED),
    "told to hang up, and it does not mind": (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\ns = train()\nos.kill(os.getpid(), signal.SIGHUP)",
        ENDED,
    ),
}
FAILED = {
    "an error in main": ("main(RuntimeError('boom'))", "RuntimeError: boom"),
    "an error after main": ("main()\nraise RuntimeError('no disk')", "RuntimeError: no disk"),
    "an exit in main": ("main(SystemExit('CUDA out of memory'))", "SystemExit, or another exception, ended the program"),
    "sys.exit in main": ("def f():\n    s = train()\n    sys.exit('out of memory')\nf()", "the process exited: out of memory"),
    "sys.exit after main": ("main()\nsys.exit(1)", "the process exited with status 1"),
    "an error in a task": ("async def work(): main(ValueError('in a task'))\nasyncio.run(work())", "ValueError: in a task"),
    "an error in a worker": (
        "with ThreadPoolExecutor(1) as pool: pool.submit(main, ValueError('in a worker')).result()",
        "ValueError: in a worker",
    ),
    "an error in a thread alone": (
        "t = threading.Thread(target=main, args=(ValueError('in a thread'),)); t.start(); t.join()",
        "ValueError: in a thread",
    ),
    "Ctrl-C": ("main(KeyboardInterrupt())", "KeyboardInterrupt: "),
    "in a forked child, an error": ("child('fork', lambda: main(ValueError('of a child')))", "ValueError: of a child"),
    "in a forked child, an exit": ("child('fork', leave)", "the process exited with status 3"),
    "in a spawned child": ("if __name__ == '__main__': child('spawn', leave)", "the process exited with status 3"),
    "after os.fork": ("if os.fork() == 0: leave()\nos.wait()", "the process exited with status 3"),
}
PREEMPTED = {
    f"{name}{how}": (
        f"s = train()\n{do}signal.raise_signal(signal.{name}); time.sleep(60)",
        f"{name} told the process to stop",
    )
    for name in ("SIGTERM", "SIGHUP")
    for how, do in {"": "", ", and the run is dropped": "del s\n"}.items()
}
ALL = {**FINISHED, **FAILED, **PREEMPTED}


@pytest.fixture(scope="module")
def ended(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs by the names above, after every program has ended."""
    folder, project = tmp_path_factory.mktemp("programs"), f"p{uuid.uuid4().hex[:12]}"
    names = {name: f"run{number}" for number, name in enumerate(ALL)}

    def train(name: str) -> None:
        program = folder / f"{names[name]}.py"
        program.write_text(BEFORE.format(run=names[name], target=server.target) + ALL[name][0])
        end(program, project)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(train, ALL))
    found = runs(server, project)
    assert set(found) == set(names.values()), "and no other"
    return {name: found[run] for name, run in names.items()}


def end(program: Path, project: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    command = [sys.executable, str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


def runs(server: Any, project: str) -> dict[str, Any]:
    with connect(server.target) as client:
        reply = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent=f"projects/{project}", page_size=200))
    return {run.name.rpartition("/")[2]: run for run in reply.runs}


@pytest.mark.parametrize("name", ALL)
def test_its_run_tells_how_it_ended_and_has_every_step(name: str, ended: dict[str, Any]) -> None:
    run, (_, message) = ended[name], ALL[name]
    status = "FINISHED" if name in FINISHED else "FAILED" if name in FAILED else "PREEMPTED"
    told = resources_pb2.RunStatus.Name(run.status).removeprefix("RUN_STATUS_")
    assert (told, run.status_message, run.durable_step) == (status, message, 20)
    assert not run.needs, "it needs nobody"


def test_of_several_trials_the_one_that_failed_has_failed(server: Any, project: str, tmp_path: Path) -> None:
    program = tmp_path / "trials.py"
    program.write_text(
        BEFORE.format(run="", target=server.target)
        + "for trial in range(3): train(f'dropped{trial}')\n"
        + "kept = [train('kept')]\ndef last():\n    s = train('last')\n    1 / 0\nlast()"
    )
    assert end(program, project).returncode == 1
    names = {"dropped0": "FINISHED", "dropped1": "FINISHED", "dropped2": "FINISHED", "kept": "FAILED", "last": "FAILED"}
    found = runs(server, project)
    assert {name: resources_pb2.RunStatus.Name(run.status)[11:] for name, run in found.items()} == names
