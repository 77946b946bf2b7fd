"""Every example in the documentation runs as typed, against a real server."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from mechanicd.client import Reductions, open_run
from tests.docs.pages import COMMANDS, EXAMPLES, PROGRAMS, ROOT, Command
from tests.support.warm import warm

TORCH, JAX = (
    next(example.text for example in PROGRAMS if example.page == page and "import mechanize" in example.text)
    for page in ("README.md", "docs/jax.md")
)
CONTINUES_THE_FIRST = [example for example in PROGRAMS if "scale_of(" in example.text]
"""Uses the model of the page's first example: see `test_the_warm_start_…`."""
ENDLESS = {
    "mechanicd serve": "serves until Ctrl-C; here it must print that it is ready",
    "mechanicd runs watch": "watches until Ctrl-C; here it must print the run",
}
SPOOL = "/data/spool"
"""The folder of the trainings without a network."""
NEEDS_A_NETWORK_OF_ITS_OWN = {
    "mechanicd tokens create --store postgresql://mechanicd@db/mechanicd --project default --role write --note alice"
}
"""Names a database host of the reader's: its flags are checked in test_facts."""


@pytest.mark.parametrize(
    "text",
    [example.text for example in PROGRAMS if example not in CONTINUES_THE_FIRST and example.text not in (TORCH, JAX)],
    ids=[
        f"{example.page}-{i}"
        for i, example in enumerate(PROGRAMS)
        if example not in CONTINUES_THE_FIRST and example.text not in (TORCH, JAX)
    ],
)
def test_a_program_works_as_typed(text: str, server: Any, project: str, tmp_path: Path) -> None:
    assert "127.0.0.1:50051" in text or SPOOL in text
    done = run_program(text, server, project, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_no_program_leaves_its_run_open() -> None:
    for example in PROGRAMS:
        assert re.search(r"\.close\(\)|with |scale_of\(", example.text), example


@pytest.mark.parametrize(("text", "run"), [(TORCH, "sine/seed0"), (JAX, "sine/jax")], ids=["torch", "jax"])
def test_a_program_learns_a_scale_and_the_server_shows_it(
    text: str, run: str, server: Any, project: str, tmp_path: Path, run_cli: Any
) -> None:
    done = run_program(text, server, project, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = done.stdout
    loss, scale = re.fullmatch(r"loss (\S+), S (\S+)\n", printed).groups()  # type: ignore[union-attr]
    assert float(loss) < 0.05, "sin(2x) has a variance near 0.5"
    assert 1e-5 < float(scale) < 1.0
    shown = run_cli("runs", "list", "--target", server.target, "--project", project, "--filter", f'name : "{run}"')
    assert "finished" in shown.stdout
    assert "1,000" in shown.stdout


def test_the_warm_start_replaces_the_optimizer_of_the_first_example(
    server: Any, project: str, tmp_path: Path, run_cli: Any
) -> None:
    (warm,) = CONTINUES_THE_FIRST
    (optimizer,) = re.findall(r"^opt = .*\n", TORCH, re.MULTILINE)
    for text in (TORCH, TORCH.replace(optimizer, warm.text)):
        assert run_program(text, server, project, tmp_path).returncode == 0
    options = ("--target", server.target, "--project", project, "--json")
    cold, started = (json.loads(run_cli("runs", "show", f"sine/seed{i}", *options).stdout) for i in (0, 1))
    assert started["config"]["s_init"] == cold["scale"][0] > cold["config"]["s_init"]


def run_program(text: str, server: Any, project: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "example.py"
    program.write_text(text.replace("127.0.0.1:50051", server.target).replace(SPOOL, f"{folder}/spool"))
    python = warm("mechanicd.jax" if "jax" in text else "mechanicd.torch", options=("-W", "error"))
    return python.start(str(program), folder=folder, environment={"MECHANICD_PROJECT": project}).end()


# ---- commands


def make_certificates(folder: Path) -> None:
    """The files that the examples of TLS name."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    authority.cert_pem.write_to_path(folder / "clients-ca.pem")


@pytest.fixture
def shell(new_server: Any, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A shell beside a server with a page, in the folder of its database, where the run sine/seed0 has taken 1,000 steps, and
    sine/offline one without the server."""
    server = new_server("--http", "127.0.0.1:0", "--auth", "auto").start()
    with open_run(server.target, "sine/seed0", start=0) as session:
        for t in range(1000):
            session.begin(Reductions(-1e-3, 0.0, 1.0 + t % 3, 1.0))
            session.finish(wait=False)

    with open_run(f"file://{server.folder}/spool", "sine/offline", start=0) as session:
        session.step(Reductions(-1e-3, 0.0, 1.0, 1.0))

    def run(line: str) -> subprocess.CompletedProcess[str]:
        typed = line.replace("http://127.0.0.1:8080", server.page.rstrip("/")).replace(SPOOL, f"{server.folder}/spool")
        if "--tls-cert" in line:
            make_certificates(server.folder)
            typed = f"{typed.replace(':50051', ':0').replace(':8080', ':0')} --store sqlite:///other.db"
        if " serve" in line and "--grpc" not in line:
            typed += " --grpc 127.0.0.1:0 --http 127.0.0.1:0 --store sqlite:///other.db"
        environment = {**os.environ, "MECHANICD_TARGET": server.target, "MECHANICD_PROJECT": "default"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        if any(line.startswith(start) for start in ENDLESS):
            typed = f"timeout --signal=INT 8 {typed}"
        return subprocess.run(
            ["bash", "-c", typed], capture_output=True, text=True, timeout=60, check=False, cwd=server.folder, env=environment
        )

    return run


def commands_of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.program == program]


@pytest.mark.parametrize("page", sorted({command.page for command in commands_of("mechanicd") + commands_of("curl")}))
def test_commands_work_as_typed_in_the_order_of_the_page(page: str, shell: Any) -> None:
    for _, line in [c for c in COMMANDS if c.page == page and c.program in ("mechanicd", "curl")]:
        if line in NEEDS_A_NETWORK_OF_ITS_OWN:
            continue
        if "store vacuum" in line:
            continue  # needs the server stopped: tests/cli/test_store.py has it
        done = shell(line)
        if line.startswith("mechanicd serve"):
            assert "mechanicd ready" in done.stdout, (line, done.stderr)
        elif line.startswith("mechanicd runs watch"):
            assert "sine/seed0" in done.stdout, (line, done.stderr)
        else:
            assert done.returncode == 0, (line, done.stderr)


def test_installs_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [command.line for command in commands_of("pip")]
    assert lines
    for line in lines:
        for word in shlex.split(line)[2:]:
            assert set(re.findall(r"\w+", word.partition("[")[2])) <= set(extras), line


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {word for command in commands_of("make") for word in command.line.split()[1:2]}
    named |= {word for _, _, text in EXAMPLES for word in re.findall(r"^make ([a-z]+)", text, re.MULTILINE)}
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"`make {target}`"
