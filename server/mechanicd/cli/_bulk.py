"""Commands that change one run, several, or all that match a filter: which ones, whether to go on, and what became of each."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import click

from mechanicd.cli import _options
from mechanicd.cli._output import EXIT_FAILED, confirm, json_option, say, say_json
from mechanicd.client import Client, MechanicdError, ServerUnavailable, Unauthenticated, connect
from mechanicd.v1 import resources_pb2

_NAMED: Final = 3
"""So many of the chosen runs are named in a question."""
_PROGRESS_FROM: Final = 20
"""A bar for fewer runs would be gone before it is read."""

runs_argument = click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=_options.known_runs)
filter_option = click.option(
    "--filter", "filter_", default="", metavar="EXPRESSION", help="Instead of names: all runs that match, as in runs list."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print which runs would be changed, and change nothing.")


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every such command: the server, the runs, --dry-run, --yes and --json."""
    for option in (
        json_option,
        _options.yes_option,
        dry_run_option,
        filter_option,
        _options.any_project_option,
        _options.target_option,
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a command does to each run.

    Attributes:
        verb, done: as in "archive" and "archived".
        call: changes one run, by its full name. Raises MechanicdError.
        ask_one: whether to ask before one run that was named, too.
        what: what is lost, for the question.
        check: whether `call` would take the run as it is. Raises MechanicdError where it would not.
        shown: what --json prints after one run that was named; None: its name, under `done`.
    """

    verb: str
    done: str
    call: Callable[[Client, str], Any]
    ask_one: bool = False
    what: str = ""
    check: Callable[[resources_pb2.Run], None] = lambda run: None
    shown: Callable[[Any], Any] | None = None


def run(
    change: Change,
    target: str,
    project: str | None,
    runs: Sequence[str],
    filter_: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Makes a change to the runs that are named, or to those that match the filter.

    Raises:
        UsageError: neither names nor a filter are given, or both.
        MechanicdError: the filter is wrong, or the one run that is named can't be changed.
        MalformedName: MALFORMED_NAME.
    """
    if bool(runs) == bool(filter_):
        raise click.UsageError("name the runs, or choose them with --filter EXPRESSION; not both")
    with connect(target) as client:
        if filter_:
            found = {run.name: run for run in _options.all_runs(client, project, filter_)}
            names = list(found)
        else:
            found, names = {}, list(dict.fromkeys(_options.full_name(project or "default", each) for each in runs))
        one = len(names) == 1 and not filter_
        if dry_run:
            _list(change, *_foreseen(change, client, names, found), as_json)
        elif not names and as_json:
            _report(change, [], [], as_json)
        elif not names:
            say(f"no runs match the filter; nothing was changed{_options.no_match(filter_)}")
        else:
            if not yes and (change.ask_one or not one):
                confirm(_question(change, names), as_json)
            if one:
                _change_one(change, client, names[0], as_json)
            else:
                _change_all(change, client, names, as_json)


def _question(change: Change, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{change.verb.capitalize()} {names[0]}{change.what and f' and its {change.what}'}?"
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    lost = change.what and f" and their {change.what}"
    return f"{change.verb.capitalize()} {len(names):,} runs{lost}: {', '.join(names[:_NAMED])}{more}?"


def _foreseen(
    change: Change, client: Client, names: Sequence[str], found: Mapping[str, resources_pb2.Run]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Which runs would be changed, and which refused, as far as the runs themselves tell."""
    taken, refused = list[str](), list[dict[str, Any]]()
    for name in names:
        try:
            change.check(found[name] if name in found else _options.get_run(client, name))
        except (ServerUnavailable, Unauthenticated):
            raise
        except MechanicdError as error:
            refused.append(_refusal(name, error))
        else:
            taken.append(name)
    return taken, refused


def _refusal(name: str, error: MechanicdError) -> dict[str, Any]:
    return {"name": name, "reason": error.reason, "message": error.message}


def _list(change: Change, names: Sequence[str], refused: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        say_json({"dry_run": True, change.done: list(names), **({"refused": list(refused)} if refused else {})})
    else:
        for name in names:
            say(f"would {change.verb} {name}")
        _say(refused)
        would = f"; {len(refused):,} would be refused" if refused else ""
        say(f"{_count(names)} would be {change.done}{would}; nothing was changed")
    if refused:
        sys.exit(EXIT_FAILED)


def _say(refused: Sequence[dict[str, Any]]) -> None:
    for error in refused:
        say(f"error: {error['name']}: {error['message']} [{error['reason']}]", err=True)


def _change_one(change: Change, client: Client, name: str, as_json: bool) -> None:
    answer = change.call(client, name)
    if not as_json:
        say(f"{change.done} {name}")
    else:
        say_json({change.done: name} if change.shown is None else change.shown(answer))


def _change_all(change: Change, client: Client, names: Sequence[str], as_json: bool) -> None:
    done: list[str] = []
    refused: list[dict[str, Any]] = []
    try:
        with _bar(names) as each:
            for name in each:
                try:
                    change.call(client, name)
                except (ServerUnavailable, Unauthenticated):
                    raise
                except MechanicdError as error:
                    refused.append(_refusal(name, error))
                else:
                    done.append(name)
    except (ServerUnavailable, Unauthenticated, KeyboardInterrupt):
        tried = len(done) + len(refused)
        left = max(0, len(names) - tried - 1)
        also = f"; {names[tried]} may be {change.done}, too" if tried < len(names) else ""
        say(f"{change.done} {_count(done)} before this{also}; {left:,} are as they were", err=True)
        raise
    _report(change, done, refused, as_json)


def _report(change: Change, done: Sequence[str], refused: Sequence[dict[str, Any]], as_json: bool) -> None:
    """What became of each run. The exit code is 1 if a run was refused."""
    if as_json:
        say_json({change.done: list(done), "refused": list(refused)})
    else:
        for name in done:
            say(f"{change.done} {name}")
        _say(refused)
        say(f"{change.done} {_count(done)}" + (f"; {len(refused):,} refused" if refused else ""))
    if refused:
        sys.exit(EXIT_FAILED)


@contextmanager
def _bar(names: Sequence[str]) -> Iterator[Iterator[str]]:
    """The names, with a progress bar on stderr where that is a terminal."""
    if len(names) < _PROGRESS_FROM or not sys.stderr.isatty():
        yield iter(names)
        return
    with click.progressbar(names, label="runs", show_pos=True, file=sys.stderr) as bar:
        yield iter(bar)


def _count(names: Sequence[str]) -> str:
    return "1 run" if len(names) == 1 else f"{len(names):,} runs"
