"""Runs to look at from the command line."""

import io
import os
import random
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

from mechanicd.cli import main
from mechanicd.client import connect
from mechanicd.v1 import resources_pb2, run_service_pb2, tuner_service_pb2


@pytest.fixture
def train(server: Any, project: str) -> Callable[..., str]:
    """Makes a run of some steps in the test's project; gives its full name."""

    def make(
        run: str,
        steps: int = 0,
        *,
        groups: tuple[str, ...] = ("all",),
        labels: dict[str, str] | None = None,
        close: str | None = None,
        message: str = "",
        bad: dict[int, float] | None = None,
        after_step: int = 0,
        tuner_state: bytes = b"",
    ) -> str:
        """`bad` names steps whose ⟨Δ,g⟩ is to be something else; `close` is a name of RunStatus, None leaves the run open."""
        rng = random.Random(run)
        name = f"projects/{project}/runs/{run}"
        config = resources_pb2.TunerConfig(scale_groups=groups)
        with connect(server.target) as client:

            def call(method: str, **fields: Any) -> Any:
                return client.call(method, getattr(tuner_service_pb2, f"{method}Request")(**fields))

            start = {"tuner_state": tuner_state} if tuner_state else {"after_step": after_step}
            opened = call("OpenSession", name=name, config=config, labels=labels, **start)
            session, after = opened.session, opened.last_step
            for step in range(after + 1, after + steps + 1):
                g, x, gg, xx = ([rng.gauss(-0.1, 1.0) for _ in groups] for _ in range(4))
                g[0] = (bad or {}).get(step, g[0])
                squares = {"g_norm_sq": map(abs, gg), "x_norm_sq": map(abs, xx)}
                reductions = resources_pb2.Reductions(delta_dot_g=g, delta_dot_x=x, **squares)
                lr = {"base_lr": rng.random()} if step % 2 else {}
                call("Step", session=session, step=step, reductions=reductions, **lr)
            call("Flush", session=session)
            if close:
                call("CloseSession", session=session, status=close, message=message)
        return name

    return make


@pytest.fixture
def ask(server: Any) -> Callable[..., Any]:
    """Any unary method of RunService, beside the command line: `ask("GetRun", name=…)`."""

    def call(method: str, **fields: Any) -> Any:
        with connect(server.target) as client:
            return client.call(method, getattr(run_service_pb2, f"{method}Request")(**fields))

    return call


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_cli` without a process of its own, which takes most of the time: the same command line, in this process."""
    for name in [name for name in os.environ if name.startswith("MECHANICD_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as caught:
            main(arguments, prog_name="mechanicd")
        return subprocess.CompletedProcess(arguments, int(caught.value.code or 0), out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def runs(server: Any, project: str, here: Callable[..., Any]) -> Callable[..., Any]:
    """`mechanicd runs COMMAND …` against the shared server, in the test's project."""

    def run(command: str, *arguments: str) -> Any:
        return here("runs", command, "--target", server.target, "--project", project, *arguments)

    return run
