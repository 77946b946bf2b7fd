"""How commands report: --json, errors on stderr, exit codes."""

import json
import sys
from contextlib import suppress
from typing import Any, Final, NoReturn

import click

from mechanicd.v1.names import plain

EXIT_FAILED: Final = 1

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def say(*lines: str, err: bool = False) -> None:
    """Prints lines of text. Each is one line, and no terminal obeys what a run, a server or a file has put into it."""
    click.echo("\n".join(map(plain, lines)), err=err)


def say_json(value: Any, indent: int | None = None) -> None:
    """Prints a JSON value, in ASCII; a reader gets its texts exactly."""
    click.echo(json_text(value, indent))


def json_text(value: Any, indent: int | None = None) -> str:
    """A JSON value without any control character but the ends of its lines."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def report(reason: str, message: str, as_json: bool = False) -> None:
    """Reports an error on stderr, as text or as JSON.

    Args:
        reason: a stable name, for programs.
        message: for people: what happened, what was expected, what to do.
    """
    with suppress(OSError):  # nobody reads it
        say(
            json_text({"error": {"reason": reason, "message": message}}) if as_json else f"error: {message} [{reason}]",
            err=True,
        )


def fail(reason: str, message: str, as_json: bool = False) -> NoReturn:
    """Reports an error as `report` does, and exits with 1."""
    report(reason, message, as_json)
    sys.exit(EXIT_FAILED)


def confirm(question: str, as_json: bool) -> None:
    """Goes on only if the answer is yes. With --json a program reads the output, so it is asked only at a terminal."""
    if not as_json or sys.stdin.isatty():
        click.confirm(plain(question), abort=True, err=True)
    elif sys.stdin.readline().strip().lower() not in ("y", "yes"):
        fail("NOT_CONFIRMED", f"{question} Nothing was changed; pass --yes to confirm", as_json)
