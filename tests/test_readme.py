"""The README's examples work as typed, and name only what exists."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from mechanicd.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


TORCH, JAX, ANY_FRAMEWORK, WARM = EXAMPLES


@pytest.mark.parametrize("example", [TORCH, JAX, ANY_FRAMEWORK], ids=["torch", "jax", "any framework"])
def test_an_example_works_as_typed(example: str, server: Any, tmp_path: Path) -> None:
    assert "127.0.0.1:50051" in example
    program = tmp_path / "example.py"
    program.write_text(example.replace("127.0.0.1:50051", server.target))
    done = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(("example", "run"), [(TORCH, "sine/seed0"), (JAX, "sine/jax")], ids=["torch", "jax"])
def test_an_example_learns_a_scale_and_the_server_shows_it(
    example: str, run: str, server: Any, tmp_path: Path, run_cli: Any
) -> None:
    program = tmp_path / "example.py"
    program.write_text(example.replace("127.0.0.1:50051", server.target))
    printed = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=100, check=True).stdout
    loss, scale = re.fullmatch(r"loss (\S+), S (\S+)\n", printed).groups()  # type: ignore[union-attr]
    assert float(loss) < 0.05, "sin(2x) has a variance near 0.5"
    assert 1e-5 < float(scale) < 1.0
    shown = run_cli("runs", "list", "--target", server.target, "--filter", f'name : "{run}"')
    assert "finished" in shown.stdout
    assert "1,000" in shown.stdout


def test_the_warm_start_takes_the_place_of_the_first_examples_optimizer(server: Any, tmp_path: Path, run_cli: Any) -> None:
    (optimizer,) = re.findall(r"^opt = .*\n", TORCH, re.MULTILINE)
    for example in (TORCH, TORCH.replace(optimizer, WARM)):
        program = tmp_path / "example.py"
        program.write_text(example.replace("127.0.0.1:50051", server.target))
        subprocess.run([sys.executable, program], timeout=100, check=True)
    cold, warm = (
        json.loads(run_cli("runs", "show", f"sine/seed{i}", "--target", server.target, "--json").stdout) for i in (0, 1)
    )
    assert warm["config"]["s_init"] == cold["scale"][0] > cold["config"]["s_init"]


def test_every_command_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`?mechanicd ((?:runs )?[a-z]+)", README)) - {"runs"}
    context = click.Context(main)
    for words in named:
        command: click.Command | None = main
        for word in words.split():
            assert isinstance(command, click.Group), words
            command = command.get_command(context, word)
            assert command is not None, f"README names `mechanicd {words}`"


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README names `make {target}`"
