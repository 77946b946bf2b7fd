"""The examples do what their first lines say."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

EPOCHS = 4
EXAMPLE = Path(__file__).parent.parent / "clients" / "examples" / "mnist.py"


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout


def epochs(printed: str) -> list[str]:
    return re.findall(r"^epoch .*$", printed, re.MULTILINE)


def test_mnist_killed_and_started_again_ends_where_the_uninterrupted_training_ends(
    server: Any, project: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MECHANICD_PROJECT", project)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads that wait for each other are slow on a busy machine
    whole = epochs(run("--checkpoint", str(tmp_path / "whole.pt"), "--epochs", str(EPOCHS)))
    assert len(whole) == EPOCHS
    assert float(re.search(r"accuracy (\S+)", whole[-1])[1]) > 0.85  # type: ignore[index]

    arguments = ["--target", server.target, "--checkpoint", str(tmp_path / "killed.pt"), "--epochs", str(EPOCHS)]
    process = subprocess.Popen([sys.executable, str(EXAMPLE), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().rstrip("\n") for _ in range(2)]
    process.kill()
    process.wait()
    lines += epochs(process.stdout.read())
    process.stdout.close()

    printed = run(*arguments)
    assert printed.startswith("goes on after epoch ")
    resumed = epochs(printed)
    assert lines[: EPOCHS - len(resumed)] + resumed == whole, "loss, accuracy and S, epoch by epoch"
