"""The target of the command line: every option and argument of every command, found by walking through the commands."""

import os
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any, Final

import click

from mechanicd.cli import main
from mechanicd.cli._ranges import FiniteRange, WholeRange
from tests.fuzz import mutation
from tests.fuzz.harness import Target

VALUES: Final = (
    *("0", "1", "-1", "1e3", "0.5", "nan", "inf", "1_0", "١", "9" * 5_000, "0x10", " 1 ", "+1", "1.", ".5", "true", "no"),
    *("127.0.0.1:0", "sqlite:///x.db", "name", "-scale", "csv", "a=b", "=", "1:2", "1-2", "/tmp", "", "projects/p/runs/r"),
)
WORDS: Final = ("e", "-", "+", ".", ":", "=", "/", "%", "inf")


@cache
def parameters() -> tuple[tuple[click.Context, click.Parameter], ...]:
    """Each option and argument that takes a value. `demo` needs torch to be listed, and takes no value from outside."""
    return tuple(_found(main, click.Context(main, info_name="mechanicd")))


def _found(command: click.Command, context: click.Context) -> Iterator[tuple[click.Context, click.Parameter]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if name != "demo":
                each = command.get_command(context, name)
                assert each is not None
                yield from _found(each, click.Context(each, info_name=name, parent=context))
    for parameter in command.params:
        if not (isinstance(parameter, click.Option) and parameter.is_flag):
            yield context, parameter


class Given:
    """A value, or several, for a parameter."""

    def __init__(self, context: click.Context, parameter: click.Parameter, value: Any) -> None:
        self.context, self.parameter, self.value = context, parameter, value

    def __repr__(self) -> str:
        return f"{self.context.command_path} {self.parameter.opts[0]} {self.value!r}"


def _make(rng: Random) -> Given:
    context, parameter = rng.choice(parameters())
    values = [mutation.text(rng, VALUES, WORDS) for _ in range(abs(parameter.nargs))]
    value: Any = values[0] if parameter.nargs == 1 else tuple(values)
    if parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs == -1:
        value = (value,) if parameter.nargs == 1 else value
    return Given(context, parameter, value)


def _take(given: Given) -> None:
    try:
        given.parameter.process_value(given.context, given.value)
    except click.UsageError as error:
        os.fsencode(error.format_message())
        raise


TARGETS = (
    Target(
        name="options",
        make=_make,
        take=_take,
        refused=(click.UsageError, SystemExit),
        covers=(WholeRange.convert, FiniteRange.convert),
    ),
)
