"""Every command and every option says what it is for."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mechanicd.cli import main


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The command and all below it, with the words that call them."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, (*path, name))


COMMANDS = dict(walk(main))


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path, command in COMMANDS.items() if not isinstance(command, click.Group)} == {
        "serve",
        "demo",
        "health",
        "import",
        "runs list",
        "runs show",
        "runs watch",
        "runs export",
        "runs rewind",
        "runs fork",
        "runs rename",
        "runs delete",
        "runs archive",
        "runs close",
        "runs restore",
        "runs label",
        "store check",
        "store backup",
        "store salvage",
        "store vacuum",
        "tokens create",
        "tokens list",
        "tokens local",
        "tokens revoke",
        "top",
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_each_command_tells_its_purpose_and_all_its_options(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    done = CliRunner().invoke(main, [*path, "--help"])
    assert done.exit_code == 0
    assert command.help
    assert command.help.split("\n")[0].split(".")[0][:40] in done.output
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts[0]} has no help"
            assert parameter.opts[0] in done.output
    below = [words[-1] for words in COMMANDS if words[:-1] == path and words]
    assert [name for name in below if name not in done.output] == []


@pytest.mark.parametrize(
    "path", [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)], ids=" ".join
)
def test_every_command_takes_json(path: tuple[str, ...]) -> None:
    assert "--json" in {option for parameter in COMMANDS[path].params for option in parameter.opts}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_unknown_option_is_a_mistake_in_use_not_a_failure(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*path, "--no-such-option"])
    assert done.exit_code == 2
    assert "No such option" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--flush-interval", "-1"],
        ["serve", "--grace", "many"],
        ["serve", "--log-level", "loud"],
        ["runs", "export", "r", "--format", "xml"],
        ["runs", "show"],
        ["runs", "dance"],
    ],
    ids=" ".join,
)
def test_a_value_out_of_range_is_a_mistake_in_use(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.output


def test_the_version_is_that_of_the_package(run_cli: Any) -> None:
    import importlib.metadata

    done = run_cli("--version")
    assert done.returncode == 0
    assert importlib.metadata.version("mechanicd") in done.stdout


@pytest.mark.parametrize("module", ["mechanicd", "mechanicd.cli"])
def test_python_m_is_the_same_program_under_its_own_name(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: mechanicd [OPTIONS] COMMAND")
