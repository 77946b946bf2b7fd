"""How commands report: --json, errors on stderr, exit codes."""

import json
import sys
from contextlib import suppress
from typing import Final, NoReturn

import click

EXIT_FAILED: Final = 1

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def report(reason: str, message: str, as_json: bool = False) -> None:
    """Reports an error on stderr, as text or as JSON.

    Args:
        reason: a stable name, for programs.
        message: for people: what happened, what was expected, what to do.
    """
    text = json.dumps({"error": {"reason": reason, "message": message}}) if as_json else f"error: {message} [{reason}]"
    with suppress(OSError):  # nobody reads it
        click.echo(printable(text), err=True)


def fail(reason: str, message: str, as_json: bool = False) -> NoReturn:
    """Reports an error as `report` does, and exits with 1."""
    report(reason, message, as_json)
    sys.exit(EXIT_FAILED)


def printable(text: str, keep: str = "") -> str:
    """The text without control characters, which a terminal would obey: they are escaped, but for those to keep."""
    return text if text.isprintable() else "".join(_shown(each, keep) for each in text)


def _shown(character: str, keep: str) -> str:
    return character if character.isprintable() or character in keep else ascii(character)[1:-1]


def confirm(question: str, as_json: bool) -> None:
    """Goes on only if the answer is yes. With --json a program reads the output, so it is asked only at a terminal."""
    if not as_json or sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)
    elif sys.stdin.readline().strip().lower() not in ("y", "yes"):
        fail("NOT_CONFIRMED", f"{question} Nothing was changed; pass --yes to confirm", as_json)
