"""Shared by the commands on runs: the options that find the server and the run, and error reporting."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
from google.protobuf.message import DecodeError

from mechanicd.cli._output import fail
from mechanicd.cli._text import SORTS
from mechanicd.client import Client, MechanicdError, connect
from mechanicd.v1 import names, resources_pb2, run_service_pb2

_COMPLETION_SECONDS: Final = 1.0
_MOST_OF_AN_ERROR: Final = 300
_SHORT_NAME: Final = re.compile(r'(?:^|\sAND)\s*name\s*=(?!\s*"?projects/)')
_NOT_UNICODE: Final = {
    "target": "INVALID_TARGET",
    "filter_": "INVALID_FILTER",
    "runs_and_labels": "INVALID_LABELS",
    "remove": "INVALID_LABELS",
}
_WORDS: Final = {"filter_": "filter", "runs": "run", "runs_and_labels": "run or label", "remove": "label key"}

target_option = click.option(
    "--target",
    envvar="MECHANICD_TARGET",
    default="127.0.0.1:50051",
    show_default=True,
    metavar="HOST:PORT",
    help="The server. [env: MECHANICD_TARGET]",
)
project_option = click.option(
    "--project",
    envvar="MECHANICD_PROJECT",
    default="default",
    show_default=True,
    help="The run's project. [env: MECHANICD_PROJECT]",
)
any_project_option = click.option(
    "--project", envvar="MECHANICD_PROJECT", default=None, help="Only this project. Default: all projects."
)
filter_option = click.option(
    "--filter", "filter_", default="", metavar="EXPRESSION", help="For example: status = RUNNING AND scale < 1e-6"
)


def sort_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--sort, with its default."""
    return click.option(
        "--sort",
        type=click.Choice([sign + name for name in SORTS for sign in ("", "-")]),
        default=default,
        show_default=True,
        metavar="[-]FIELD",
        help=f"One of {', '.join(SORTS)}, ascending (needs: most alerts first); a leading - reverses the order.",
    )


yes_option = click.option("--yes", is_flag=True, help="Don't ask for confirmation.")


def known_runs(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Run names for shell completion; none if no server answers quickly."""
    try:
        with connect(context.params.get("target")) as client:
            parent = parent_of(context.params.get("project"))
            request = run_service_pb2.ListRunsRequest(parent=parent, page_size=1000)
            found = client.call("ListRuns", request, _COMPLETION_SECONDS).runs
        given = [run.name if begun.startswith("projects/") else names.parse_run(run.name).run for run in found]
    except (MechanicdError, ValueError):
        return []
    return [name for name in given if name.startswith(begun) and name.isprintable()]


run_argument = click.argument("run", shell_complete=known_runs)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command so that each error becomes one line on stderr and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        for option, value in kwargs.items():
            for word in value if isinstance(value, tuple) else (value,):
                if isinstance(word, str) and option != "paths" and not names.is_text(word):
                    reason = _NOT_UNICODE.get(option, "MALFORMED_NAME")
                    fail(reason, f"{_WORDS.get(option, option)} {word!r} is not Unicode text", kwargs.get("as_json", False))
        try:
            command(*args, **kwargs)
        except MechanicdError as error:
            fail(error.reason, error.message, kwargs.get("as_json", False))
        except names.MalformedName as error:
            fail(error.reason, str(error), kwargs.get("as_json", False))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, DecodeError) as error:
            what = f"{type(error).__name__}: {error}"[:_MOST_OF_AN_ERROR]
            advice = (
                "either what answers is no mechanicd of a version that fits, or this is a fault of mechanicd: please report it"
            )
            fail("COMMAND_FAILED", f"this can't be done with what came ({what}); {advice}", kwargs.get("as_json", False))

    return wrapper


def full_name(project: str, run: str) -> str:
    """The full name of a run, `projects/{project}/runs/{run}`, from the options.

    Raises:
        MalformedName: MALFORMED_NAME.
    """
    return run if run.startswith("projects/") else str(names.run_name(project, run))


def parent_of(project: str | None) -> str:
    """The parent that ListRuns takes; None means all projects."""
    return f"projects/{project or names.ALL_PROJECTS}"


def no_match(filter_: str) -> str:
    """Why a filter may match nothing, to be added to a message; "" where nothing is known."""
    return "; `name =` compares full names, projects/PROJECT/runs/RUN" if _SHORT_NAME.search(filter_) else ""


def get_run(client: Client, name: str) -> resources_pb2.Run:
    """One run. Raises MechanicdError."""
    run: resources_pb2.Run = client.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run
    return run


def all_runs(client: Client, project: str | None, filter_: str) -> Iterator[resources_pb2.Run]:
    """Every matching run, ordered by name. Raises MechanicdError."""
    token = ""
    while True:
        page = client.call(
            "ListRuns",
            run_service_pb2.ListRunsRequest(parent=parent_of(project), filter=filter_, page_token=token, page_size=1000),
        )
        yield from page.runs
        token = page.next_page_token
        if not token:
            return
