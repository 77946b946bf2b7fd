"""`mechanicd runs list | show | watch`: read-only commands, over the same gRPC contract as any client."""

import csv
import json
import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechanicd.cli import _options, _text
from mechanicd.cli._output import json_option, json_text, say, say_json
from mechanicd.client import AccessDenied, Client, MechanicdError, NotImplementedByServer, connect
from mechanicd.v1 import resources_pb2, run_service_pb2
from mechanicd.v1.names import plain

_SKETCHED_RUNS = 100
_COLORED_RUNS = 200
_SKETCH_WIDTH = 24
_SKETCHED_AT_ONCE = 1000
_WIDE = 10_000


@click.command("list")
@_options.target_option
@_options.any_project_option
@_options.filter_option
@_options.sort_option("name")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="jsonl: one object per line. csv: the common columns, then one per label.",
)
@click.option("--sketch/--no-sketch", default=None, help="Draw a sparkline of S for each run. Default: only up to 100 runs.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@_options.reports_errors
def list_(target: str, project: str | None, filter_: str, sort: str, format_: str, sketch: bool | None, as_json: bool) -> None:
    """List runs with their status, step, S, and alerts."""
    with connect(target) as client:
        found = _text.ordered(_options.all_runs(client, project, filter_), sort)
        if as_json or format_ != "table":
            _print(found, "json" if as_json else format_)
            return
        if not found:
            if filter_:
                say(f"no runs that match the filter at {target}{_options.no_match(filter_)}")
            else:
                say(f"no runs at {target}; a training script creates one with mechanize(…, target='{target}')")
            return
        wanted = len(found) <= _SKETCHED_RUNS if sketch is None else sketch
        sketches = sketches_of(client, [run.name for run in found], _SKETCH_WIDTH) if wanted else None
    out = console()
    if out.is_terminal and len(found) <= _COLORED_RUNS:
        out.print(_text.table(found, sketches, client.clock_ahead))
    else:
        say(*_text.lines(found, sketches, client.clock_ahead))


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@json_option
@_options.reports_errors
def show(target: str, project: str, run: str, as_json: bool) -> None:
    """Show one run: its alerts, its events, and a sketch of S over its steps."""
    name = _options.full_name(project, run)
    with connect(target) as client:
        response = client.call("GetRun", run_service_pb2.GetRunRequest(name=name))
        found, events = response.run, [_text.event_dict(event) for event in response.events]
        shown = {**_text.run_dict(found), "command": found.command, "events": events}
        buckets = [] if as_json else _buckets(client, name, 200)
    if as_json:
        say_json(shown, 2)
        return
    out = console()
    grid = Table.grid(padding=(0, 2))
    for key, value in shown.items():
        if key == "events":
            continue
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else "" if value is None else str(value)
        grid.add_row(Text(key, style="dim"), Text(plain(text, "\n")))
    out.print(grid)
    if events:
        happened = Table.grid(padding=(0, 2))
        for event in events[-20:]:
            happened.add_row(event["time"], f"step {event['step']}", event["kind"], Text(plain(event["message"], "\n")))
        out.print("\nevents:" if len(events) <= 20 else f"\nthe last 20 of {len(events)} events:")
        out.print(happened)
    for need in found.needs:
        out.print(Text(f"\nneeds attention: {plain(need.message)} [{_text.kind(need)}]", style="bold yellow"))
    if buckets:
        scales = [max(bucket.scale.max) for bucket in buckets]
        least = min(min(bucket.scale.min) for bucket in buckets)
        steps = f"steps {buckets[0].first_step} to {buckets[-1].last_step}"
        out.print(f"\nS, log scale, {steps}:  {least:.3g} … {max(scales):.3g}", highlight=False)
        out.print(_text.sparkline(scales, 100 if out.width == _WIDE else min(100, out.width - 2)))


@click.command()
@_options.target_option
@_options.any_project_option
@_options.filter_option
@json_option
@_options.reports_errors
def watch(target: str, project: str | None, filter_: str, as_json: bool) -> None:
    """Print the runs, and each one again whenever it changes, until Ctrl-C. An outage of the server does not end it."""
    request = run_service_pb2.WatchRunsRequest(parent=_options.parent_of(project), filter=filter_)
    with connect(target) as client:
        try:
            for response in client.watch(request, lost_server):
                for run in response.runs:
                    say(json_text(_text.run_dict(run)) if as_json else _change(run))
                for name in response.gone:
                    say(json_text({"gone": name}) if as_json else f"{name}  {_why_gone(client, name)}")
        except KeyboardInterrupt:
            return


def lost_server(error: MechanicdError | None) -> None:
    """Says on stderr that a watch has lost its server, or, without an error, that it goes on."""
    if error is None:
        say("the server answers again", err=True)
        return
    what = "another token" if isinstance(error, AccessDenied) else "it"
    say(f"{error.message} [{error.reason}]; waiting for {what}", err=True)


def console() -> Console:
    """Stdout, as wide as the terminal; in a pipe, as wide as the text."""
    out = _Console()
    return out if out.is_terminal else _Console(width=_WIDE)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # not rich's exit code 1: `_streams` ends the program


def sketches_of(client: Client, names: Sequence[str], width: int) -> dict[str, str]:
    """Sparklines of the largest S over all steps, by run name; without runs that are gone. Raises MechanicdError."""
    drawn: dict[str, str] = {}
    for begin in range(0, len(names), _SKETCHED_AT_ONCE):
        some = names[begin : begin + _SKETCHED_AT_ONCE]
        try:
            request = run_service_pb2.SketchRunsRequest(names=some, points=4 * width)
            sketches = {sketch.name: list(sketch.scale) for sketch in client.call("SketchRuns", request, 60.0).sketches}
        except NotImplementedByServer:  # of version 0.1
            sketches = {name: [max(bucket.scale.max) for bucket in _buckets(client, name, 4 * width)] for name in some}
        drawn |= {name: _text.sparkline(scales, width) for name, scales in sketches.items()}
    return drawn


def _buckets(client: Client, name: str, most: int) -> list[run_service_pb2.SeriesBucket]:
    request = run_service_pb2.QuerySeriesRequest(name=name, max_buckets=most)
    return list(client.call("QuerySeries", request).buckets)


def _print(found: list[resources_pb2.Run], format_: str) -> None:
    runs = [_text.run_dict(run) for run in found]
    if format_ == "json":
        say_json(runs, 2)
    elif format_ == "jsonl":
        sys.stdout.write("".join(f"{json_text(run)}\n" for run in runs))
    else:
        labels = sorted({key for run in found for key in run.labels})
        common = ("name", "status", "step", "scale_min", "scale_max", "base_lr", "create_time", "step_time", "needs")
        from mechanicd.runs import cell  # numpy comes with it, which is slow to import

        writer = csv.writer(sys.stdout)
        writer.writerow(map(cell, [*common, *(f"labels.{key}" for key in labels)]))
        for run, shown in zip(found, runs, strict=True):
            values = {**shown, "scale_min": min(run.scale, default=None), "scale_max": max(run.scale, default=None)}
            values["needs"] = " ".join(need["kind"] for need in shown["needs"])
            writer.writerow(map(cell, [*(values[key] for key in common), *(run.labels.get(key, "") for key in labels)]))


def _change(run: resources_pb2.Run) -> str:
    needs = "".join(f"  needs attention: {need.message}" for need in run.needs)
    return f"{_text.short(run.name)}  {_text.status(run)}  step {run.durable_step}  S {_text.scale(run)}{needs}"


def _why_gone(client: Client, name: str) -> str:
    """Why a watcher no longer sees a run, as one or a few words."""
    try:
        run = _options.get_run(client, name)
    except MechanicdError:
        return "deleted"
    return "archived" if run.HasField("archive_time") else "no longer matches"
