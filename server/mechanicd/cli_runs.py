"""`mechanicd runs …`: looking at runs from the command line, over the same contract as everybody else."""

import csv
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechanicd.cli import fail, json_option
from mechanicd.client import Client, MechanicdError, connect
from mechanicd.v1 import names, resources_pb2, run_service_pb2

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_REDUCTIONS: Final = ("delta_dot_g", "delta_dot_x", "g_norm_sq", "x_norm_sq")
_COLUMNS: Final = ("step", "time", "outcome", "scale_group", "scale", "h", *_REDUCTIONS, "base_lr")
_STYLES: Final = {"running": "green", "finished": "cyan", "preempted": "yellow", "failed": "red", "silent": "magenta"}

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
filter_option = click.option(
    "--filter", "filter_", default="", metavar="EXPRESSION", help="As in: status = RUNNING AND scale < 1e-6"
)


def _reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except MechanicdError as error:
            fail(error.reason, error.message, kwargs.get("as_json", False))
        except names.MalformedName as error:
            fail(error.reason, str(error), kwargs.get("as_json", False))

    return wrapper


@click.group()
def runs() -> None:
    """Look at runs, export their history, delete them."""


@runs.command("list")
@target_option
@click.option("--project", envvar="MECHANICD_PROJECT", default=None, help="Only this project. Default: all of them.")
@filter_option
@json_option
@_reports_errors
def list_(target: str, project: str | None, filter_: str, as_json: bool) -> None:
    """The runs, with their status, step and S."""
    with connect(target) as client:
        found = list(_all_runs(client, project, filter_))
    if as_json:
        click.echo(json.dumps([run_dict(run) for run in found], indent=2))
        return
    if not found:
        matching = " that match the filter" if filter_ else ""
        click.echo(f"no runs{matching} at {target}; a training that calls mechanize(…, target='{target}') makes one")
        return
    Console().print(_table(found))


@runs.command()
@target_option
@project_option
@click.argument("run")
@json_option
@_reports_errors
def show(target: str, project: str, run: str, as_json: bool) -> None:
    """One run, with a sketch of its S over the steps."""
    name = _name(project, run)
    with connect(target) as client:
        found = client.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run
        request = run_service_pb2.QuerySeriesRequest(name=name, max_buckets=200)
        buckets = [] if as_json else client.call("QuerySeries", request).buckets
    if as_json:
        click.echo(json.dumps(run_dict(found), indent=2))
        return
    console = Console()
    grid = Table.grid(padding=(0, 2))
    for key, value in run_dict(found).items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
        grid.add_row(Text(key, style="dim"), Text(text))
    console.print(grid)
    if buckets:
        scales = [max(bucket.scale.max) for bucket in buckets]
        least = min(min(bucket.scale.min) for bucket in buckets)
        steps = f"steps {buckets[0].first_step} to {buckets[-1].last_step}"
        console.print(f"\nS, log scale, {steps}:  {least:.3g} … {max(scales):.3g}", highlight=False)
        console.print(sparkline(scales, min(100, console.width - 2)))


@runs.command()
@target_option
@click.option("--project", envvar="MECHANICD_PROJECT", default=None, help="Only this project. Default: all of them.")
@filter_option
@json_option
@_reports_errors
def watch(target: str, project: str | None, filter_: str, as_json: bool) -> None:
    """The runs, again whenever one changes, until Ctrl-C."""
    request = run_service_pb2.WatchRunsRequest(parent=_parent(project), filter=filter_)
    with connect(target) as client:
        try:
            for response in client.watch(request):
                for run in response.runs:
                    _print_change(run, as_json)
                for name in response.gone:
                    click.echo(json.dumps({"gone": name}) if as_json else f"{name}  gone")
        except KeyboardInterrupt:
            return


@runs.command()
@target_option
@project_option
@click.argument("run")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help='jsonl: an object a line; a number that is not finite is a string there, such as "NaN".',
)
@click.option("--branch", default=0, show_default=True, help="0: the run's own history; n: steps given up at the n-th rewind.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
@_reports_errors
def export(target: str, project: str, run: str, format_: str, branch: int, as_json: bool) -> None:
    """Every step of a run, exact, to stdout: one row per step and scale group."""
    name = _name(project, run)
    with connect(target) as client:
        found = client.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run
        rows = _rows(_records(client, name, branch), list(found.config.scale_groups))
        if as_json or format_ == "jsonl":
            for row in rows:
                click.echo(json.dumps({key: _json_value(value) for key, value in row.items()}, allow_nan=False))
            return
        first = list(islice(rows, 1))  # an error comes before the heading
        writer = csv.DictWriter(sys.stdout, _COLUMNS)
        writer.writeheader()
        writer.writerows(chain(first, rows))


@runs.command()
@target_option
@project_option
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@_reports_errors
def delete(target: str, project: str, run: str, yes: bool, as_json: bool) -> None:
    """Delete a run with its whole history."""
    name = _name(project, run)
    if not yes:
        click.confirm(f"Delete {name} with its whole history?", abort=True, err=True)
    with connect(target) as client:
        client.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=name))
    click.echo(json.dumps({"deleted": name}) if as_json else f"deleted {name}")


def run_dict(run: resources_pb2.Run) -> dict[str, Any]:
    """A run as plain JSON values: the form that --json prints."""
    config = run.config
    return {
        "name": run.name,
        "status": _status(run),
        "status_message": run.status_message,
        "needs": [_need_dict(need) for need in run.needs],
        "step": run.durable_step,
        "scale": list(run.scale),
        "labels": dict(run.labels),
        "create_time": _iso(run.create_time),
        "step_time": _iso(run.step_time) if run.HasField("step_time") else None,
        "sessions": run.session_count,
        "rewinds": run.rewind_count,
        "config": {
            "convention": resources_pb2.TunerConfig.Convention.Name(config.convention).removeprefix("CONVENTION_").lower(),
            "betas": list(config.betas),
            "s_decay": config.s_decay,
            "s_init": config.s_init,
            "eps": config.eps,
            "initial_wealth": config.initial_wealth,
            "scale_groups": list(config.scale_groups),
        },
    }


def _need_dict(need: resources_pb2.Need) -> dict[str, Any]:
    kind = resources_pb2.NeedKind.Name(need.kind).removeprefix("NEED_KIND_").lower()
    return {"kind": kind, "message": need.message, "step": need.step if need.HasField("step") else None}


def sparkline(values: list[float], width: int) -> str:
    """Positive values on a log scale in at most `width` columns; a column shows its largest value, so no spike is hidden."""
    width = min(width, len(values))
    columns = [max(values[len(values) * i // width : len(values) * (i + 1) // width]) for i in range(width)]
    logs = [math.log10(value) if value > 0 else None for value in columns]
    present = [value for value in logs if value is not None]
    if not present:
        return " " * width
    low, span = min(present), max(present) - min(present) or 1.0
    top = len(_SPARKS) - 1
    return "".join(" " if value is None else _SPARKS[round((value - low) / span * top)] for value in logs)


def _table(found: list[resources_pb2.Run]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "status", "step", "S", "last step", "needs", "labels"):
        table.add_column(heading, justify="right" if heading in ("step", "S") else "left", overflow="fold")
    now = datetime.now(UTC)
    for run in found:
        status = _status(run)
        table.add_row(
            _short(run.name),
            f"[{_STYLES[status]}]{status}[/]",
            f"{run.durable_step:,}",
            _scale(run),
            _ago(now - run.step_time.ToDatetime(tzinfo=UTC)) if run.HasField("step_time") else "–",
            Text(" ".join(need["kind"] for need in map(_need_dict, run.needs)), style="bold red"),
            Text(" ".join(f"{key}={value}" for key, value in sorted(run.labels.items()))),
        )
    return table


def _print_change(run: resources_pb2.Run, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(run_dict(run)))
    else:
        click.echo(f"{_short(run.name)}  {_status(run)}  step {run.durable_step}  S {_scale(run)}")


def _all_runs(client: Client, project: str | None, filter_: str) -> Iterator[resources_pb2.Run]:
    token = ""
    while True:
        page = client.call(
            "ListRuns",
            run_service_pb2.ListRunsRequest(parent=_parent(project), filter=filter_, page_token=token, page_size=1000),
        )
        yield from page.runs
        token = page.next_page_token
        if not token:
            return


def _records(client: Client, name: str, branch: int) -> Iterator[resources_pb2.StepRecord]:
    token = ""
    while True:
        page = client.call(
            "QuerySeries",
            run_service_pb2.QuerySeriesRequest(name=name, branch=branch, page_token=token, page_size=10_000),
        )
        yield from page.records
        token = page.next_page_token
        if not token:
            return


def _rows(records: Iterator[resources_pb2.StepRecord], groups: list[str]) -> Iterator[dict[str, Any]]:
    for record in records:
        for index, group in enumerate(groups):
            yield {
                "step": record.step,
                "time": _iso(record.time),
                "outcome": resources_pb2.StepOutcome.Name(record.outcome).removeprefix("STEP_OUTCOME_").lower(),
                "scale_group": group,
                "scale": record.scale[index],
                "h": record.h[index],
                **{field: getattr(record.reductions, field)[index] for field in _REDUCTIONS},
                "base_lr": record.base_lr if record.HasField("base_lr") else None,
            }


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are strings, as in protobuf's JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _name(project: str, run: str) -> str:
    return run if run.startswith("projects/") else str(names.run_name(project, run))


def _parent(project: str | None) -> str:
    return f"projects/{project or names.ALL_PROJECTS}"


def _short(name: str) -> str:
    project, run = names.parse_run(name)
    return run if project == "default" else f"{project}: {run}"


def _status(run: resources_pb2.Run) -> str:
    return resources_pb2.RunStatus.Name(run.status).removeprefix("RUN_STATUS_").lower()


def _scale(run: resources_pb2.Run) -> str:
    low, high = min(run.scale), max(run.scale)
    return f"{high:.3g}" if low == high else f"{low:.3g} … {high:.3g}"


def _iso(stamp: Any) -> str:
    return str(stamp.ToDatetime(tzinfo=UTC).isoformat(timespec="milliseconds"))


def _ago(age: Any) -> str:
    seconds = max(0, int(age.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
