"""A live stream beside whatever people fork: the parent trains on, the child is told by name that the session is not its own.

Each test is a real program, most of them in the folder `programs`, with a time limit: a hang is a failure. Those with a seed
print it and their counts; MECHANICD_SEED repeats one.
"""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.soak import chosen_seed

PROGRAMS = Path(__file__).with_name("programs")
LIMIT = 200  # seconds; under 20 on an idle machine
pytestmark = pytest.mark.timeout(LIMIT + 40)

PROGRAM = """
    import os, subprocess, sys
    from mechanicd.client import Reductions, SessionClosed, open_run

    target = sys.argv[1]
    session = open_run(target, "forks", start=0, on_outage="raise")
    reductions = Reductions(-1.0, 0.5, 1.0, 2.0)
    for step in range(40):
        session.begin(reductions)
        child = os.fork()
        if child == 0:
            try:
                session.begin(reductions)
            except SessionClosed as error:
                # Ends through atexit, as a child that forgot os._exit does: the parent's session must live on.
                sys.exit(7 if error.reason == "FORKED_PROCESS" else 8)
            sys.exit(9)
        session.finish()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert subprocess.run(["true"]).returncode == 0
    assert session.flush() == 40
    session.close()
    print("trained", session.state.step)
"""


class Program:
    """One of the programs: it gets a server, a seed and a folder, where it leaves the scales of the runs that it trained."""

    def __init__(
        self, history: Callable[..., list[Any]], project: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.seed = chosen_seed()
        self._history, self._project, self._folder, self._capsys = history, project, folder, capsys
        self._errors = folder / "stderr"
        (folder / "runs").mkdir()

    def start(self, name: str, target: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAMS / name), target, str(self.seed), str(self._folder / "runs"), *arguments]
        environment = {**os.environ, "MECHANICD_PROJECT": self._project}
        with self._errors.open("w") as errors:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)

    def end(self, process: subprocess.Popen[str], target: str, runs: int) -> None:
        """The program must end well, and the server must have every step of its runs, with the S that the program had."""
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"seed {self.seed}: hangs\n{self._tail()}") from None
        assert process.returncode == 0, f"seed {self.seed}\n{self._tail()}"
        trained = [json.loads(file.read_text()) for file in sorted((self._folder / "runs").glob("*.json"))]
        assert len(trained) == runs
        for each in trained:
            kept = [(record.step, record.scale[0]) for record in self._history(target, each["run"], self._project)]
            assert kept == list(enumerate(each["scales"], 1)), f"seed {self.seed}: {each['run']}"
        with self._capsys.disabled():
            counts = json.loads(output.splitlines()[-1])
            print(f"\n{Path(process.args[1]).stem}: seed {self.seed}, {counts}, {runs} histories, all bits equal")

    def run(self, name: str, target: str, *arguments: str, runs: int) -> None:
        self.end(self.start(name, target, *arguments), target, runs)

    def _tail(self) -> str:
        return self._errors.read_text()[-4000:]


@pytest.fixture
def program(history: Callable[..., list[Any]], project: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(history, project, tmp_path, capsys)


def test_forks_and_subprocesses_beside_a_live_stream(server: Any, project: str, tmp_path: Path) -> None:
    program = tmp_path / "forks.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(program), server.target]
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained 40\n"


def test_two_hundred_children_of_all_kinds_cost_no_step_and_no_bit(program: Program, server: Any) -> None:
    program.run("forks.py", server.target, runs=1)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_workers_of_a_data_loader_come_and_go_beside_a_mechanized_optimizer(
    context: str, program: Program, server: Any
) -> None:
    program.run("loader.py", server.target, context, runs=2)


def test_threads_that_start_programs_in_every_way_leave_the_stream_alone(program: Program, server: Any) -> None:
    program.run("subprocesses.py", server.target, runs=1)


def test_threads_with_a_run_each_share_one_client(program: Program, server: Any) -> None:
    program.run("threads.py", server.target, runs=7)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_that_is_not_forked_opens_a_run_of_its_own(method: str, program: Program, server: Any) -> None:
    program.run("own_runs.py", server.target, method, runs=4)


def test_a_child_forked_before_the_first_call_opens_a_run_of_its_own(program: Program, server: Any) -> None:
    program.run("own_runs.py", server.target, "fork", runs=4)


def test_forks_while_the_server_is_away_cost_no_step_when_it_is_back(program: Program, new_server: Callable[..., Any]) -> None:
    server = new_server().start()
    process = program.start("outage.py", server.target, str(server.pid))
    watchdog = threading.Timer(LIMIT, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        away = process.stdout.readline()
        server.kill()
        server.start()
    finally:
        watchdog.cancel()
    program.end(process, server.target, runs=1)
    assert away == "away\n"
