"""The program: its commands, each imported only when it is used."""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

try:
    import click
except ModuleNotFoundError:  # the base install is the client alone
    sys.exit("error: the command line needs the server's packages; pip install 'mechanicd[server]' [PACKAGE_MISSING]")

from mechanicd.cli._output import fail
from mechanicd.cli._streams import any_streams
from mechanicd.v1.names import plain

_COMMANDS: Final = {
    "demo": "mechanicd.demo:demo",
    "health": "mechanicd.cli._health:health",
    "import": "mechanicd.cli._import:import_",
    "runs": "mechanicd.cli._runs:runs",
    "serve": "mechanicd.cli._serve:serve",
    "store": "mechanicd.cli._store:store",
    "tokens": "mechanicd.cli._tokens:tokens",
    "top": "mechanicd.cli._top:top",
}


@contextmanager
def _plain_usage_errors() -> Iterator[None]:
    """click quotes what it was given, which may be the name or the label of a run: no terminal is to obey it."""
    try:
        yield
    except click.ClickException as error:
        error.message = plain(error.message, "\n")  # type: ignore[misc]  # it is final by its annotation alone
        raise


class LazyGroup(click.Group):
    """A group that imports a command only when it is used: `serve` needs neither torch nor a client.

    Args:
        lazy: `module:attribute` of each command, by its name.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.lazy = lazy

    def main(self, *args: Any, **settings: Any) -> Any:
        with any_streams():
            return super().main(*args, **settings)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _plain_usage_errors():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _plain_usage_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = error.name or "a package"
            message = f"`{ctx.command_path} {cmd_name}` needs {missing}, which is not installed; pip install 'mechanicd[demo]'"

            @click.command(cmd_name, help=f"Not available: {message}.", context_settings={"ignore_unknown_options": True})
            @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
            def unavailable(rest: tuple[str, ...]) -> None:
                fail("PACKAGE_MISSING", message)

            return unavailable
        return command


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mechanicd")
def main() -> None:
    """MECHANIC, the learning-rate tuner, as a service: it computes the scale S of every run, and keeps each run's state.

    Exit codes: 0, success (also when Ctrl-C ends `watch` or `top`); 1, an error, with its reason on stderr, or a question
    answered with no; 2, a usage error; 141, whoever read the output left before its end, as in `| head`.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # silences grpc's own lines on stderr; ours report the same events
