"""The examples do what their first lines say."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EPOCHS = 3
FOLDER = Path(__file__).parents[2] / "clients" / "examples"
EXAMPLE, LANGUAGE = FOLDER / "mnist.py", FOLDER / "language_flax.py"


def run(*arguments: str, of: Path = EXAMPLE) -> str:
    command = [sys.executable, "-W", "error", str(of), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout


def epochs(printed: str) -> list[str]:
    return re.findall(r"^epoch .*$", printed, re.MULTILINE)


def reports(printed: str) -> list[str]:
    return re.findall(r"^step .*$", printed, re.MULTILINE)


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
    assert printed.startswith("resumed after epoch ")
    resumed = epochs(printed)
    assert lines[: EPOCHS - len(resumed)] + resumed == whole, "loss, accuracy and S, epoch by epoch"


@pytest.mark.soak
@pytest.mark.parametrize("base", ["adamw", "lion"])
def test_language_in_flax_killed_and_started_again_ends_where_the_uninterrupted_training_ends(
    base: str, server: Any, project: str, tmp_path: Path, monkeypatch: Any, history: Any
) -> None:
    monkeypatch.setenv("MECHANICD_PROJECT", project)
    steps = ["--base", base, "--steps", "60", "--every", "20"]
    whole = reports(run("--checkpoint", str(tmp_path / "whole"), *steps, of=LANGUAGE))
    assert len(whole) == 3
    assert float(re.search(r"test (\S+) bits", whole[-1])[1]) < 6.5  # type: ignore[index]  # 8 bits say nothing

    arguments = ["--target", server.target, "--run", base, "--checkpoint", str(tmp_path / "killed"), *steps]
    process = subprocess.Popen([sys.executable, str(LANGUAGE), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().rstrip("\n") for _ in range(2)]
    process.kill()
    process.wait()
    lines += reports(process.stdout.read())
    process.stdout.close()

    printed = run(*arguments, of=LANGUAGE)
    assert printed.startswith("resumed after step ")
    resumed = reports(printed)
    assert lines[: 3 - len(resumed)] + resumed == whole, "loss and S, report by report"
    assert [record.step for record in history(server.target, base, project)] == list(range(1, 61))
