"""Other systems, as far as a test on this one can show: processes that lack what Windows and macOS lack train with the same
bits, alone and with a server; what needs more says so by name.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.client.programs.train_elsewhere import FRAMEWORKS, train
from tests.support.soak import SOAK

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.client.programs.train_elsewhere"


def test_trainings_on_windows_and_macos_have_the_same_bits_alone_and_with_a_server(
    server: Any, project: str, run_cli: Callable[..., Any]
) -> None:
    trained = {"win32": [*FRAMEWORKS], "darwin": [*FRAMEWORKS] if SOAK else ["client"]}  # each import of JAX takes seconds
    environment = {**os.environ, "MECHANICD_PROJECT": project, "OMP_NUM_THREADS": "1"}
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", PROGRAM, platform, server.target, *frameworks],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for platform, frameworks in trained.items()
    ]
    bits = {name: train(name, None, "") for name in FRAMEWORKS}
    expected = [("".join(f"{name} {bits[name]} {bits[name]}\n" for name in names), "", 0) for names in trained.values()]
    assert [(*program.communicate(timeout=60), program.returncode) for program in programs] == expected
    listed = run_cli("runs", "list", "--target", server.target, "--project", project, "--json")
    assert [(run["status"], run["step"]) for run in json.loads(listed.stdout)] == [("finished", 20)] * sum(
        map(len, trained.values())
    )


def run_cli_elsewhere(platform: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line, imported where that system's modules are missing."""
    program = (
        "import sys, grpc, click, rich.console, rich.table, rich.progress, numpy, asyncio, multiprocessing, subprocess\n"
        "from tests.client.programs import elsewhere\n"
        f"elsewhere.become({platform!r})\n"
        "from mechanicd.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environment)


def test_a_server_on_windows_says_what_it_needs_and_leaves_no_file(tmp_path: Path) -> None:
    done = run_cli_elsewhere("win32", "serve", "--store", r"sqlite:///C:\data\m.db", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: `mechanicd serve` needs Unix signals and file locks, which win32 does not have; run it"
    )
    assert done.stderr.endswith("[PLATFORM_NOT_SUPPORTED]\n")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_works_on_windows(server: Any, project: str, tmp_path: Path) -> None:
    done = run_cli_elsewhere("win32", "runs", "list", "--target", server.target, "--project", project, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no runs at ")
