"""`mechanicd runs rewind | fork | rename | close | delete | archive | restore | label`: commands that change runs.

They ask first if the change can't be undone, or is made to many runs.
"""

from typing import Any

import click
from google.protobuf import field_mask_pb2

from mechanicd.cli import _bulk, _options, _text
from mechanicd.cli._output import confirm, json_option, json_text, say, say_json
from mechanicd.cli._ranges import STEP
from mechanicd.client import Client, MechanicdError, connect
from mechanicd.v1 import names, resources_pb2, run_service_pb2


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@click.argument("step", type=STEP)
@click.option(
    "--fence",
    is_flag=True,
    help="Rewind even if a session still holds the run, for example after kill -9; that session is fenced.",
)
@_options.yes_option
@json_option
@_options.reports_errors
def rewind(target: str, project: str, run: str, step: int, fence: bool, yes: bool, as_json: bool) -> None:
    """Rewind a run to STEP. Later steps stay in its history as a branch. Fails if a session holds the run, unless --fence."""
    name = _options.full_name(project, run)
    with connect(target) as client:
        found = _options.get_run(client, name)
        if not yes and step < found.durable_step:
            question = f"Rewind {name} from step {found.durable_step} to {step}? The steps in between become a branch."
            confirm(question, as_json)
        now = client.call("RewindRun", run_service_pb2.RewindRunRequest(name=name, after_step=step, fence=fence), 60.0).run
    if as_json:
        say_json(_text.run_dict(now))
    else:
        say(f"{name} is at step {now.durable_step}; S {_text.scale(now)}")


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@click.argument("new")
@click.option("--step", type=STEP, help="Fork after this step. Default: the last durable step.")
@json_option
@_options.reports_errors
def fork(target: str, project: str, run: str, new: str, step: int | None, as_json: bool) -> None:
    """Create the run NEW with the history of RUN up to a step. RUN doesn't change, and may be training."""
    source, name = _options.full_name(project, run), _options.full_name(project, new)
    with connect(target) as client:
        after_step = _options.get_run(client, source).durable_step if step is None else step
        request = run_service_pb2.ForkRunRequest(source=source, after_step=after_step, name=name)
        made = client.call("ForkRun", request, 60.0).run
    if as_json:
        say_json(_text.run_dict(made))
    else:
        say(f"{name} starts from {source} at step {made.durable_step}; S {_text.scale(made)}")


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@click.argument("new")
@click.option(
    "--fence",
    is_flag=True,
    help="Rename even if a session still holds the run, for example after kill -9; that session is fenced.",
)
@json_option
@_options.reports_errors
def rename(target: str, project: str, run: str, new: str, fence: bool, as_json: bool) -> None:
    """Give RUN the name NEW. Fails if a session holds the run, unless --fence.

    NEW is in RUN's project, or a full name: projects/PROJECT/runs/RUN.
    """
    name = names.parse_run(_options.full_name(project, run))
    request = run_service_pb2.RenameRunRequest(name=str(name), new_name=_options.full_name(name.project, new), fence=fence)
    with connect(target) as client:
        now = client.call("RenameRun", request, 60.0).run
    say(json_text(_text.run_dict(now)) if as_json else f"{name} is now {now.name}")


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@click.option("--status", type=click.Choice(["finished", "failed", "preempted"]), required=True, help="How the run ended.")
@click.option("--message", default="", metavar="TEXT", help="Why, for people.")
@click.option("--fence", is_flag=True, help="Close even if the trainer is connected; it stops with an error at its next step.")
@json_option
@_options.reports_errors
def close(target: str, project: str, run: str, status: str, message: str, fence: bool, as_json: bool) -> None:
    """Record how a run ended whose trainer is gone, for example after kill -9, or correct it. Fails if its trainer is still
    connected, unless --fence. A trainer that returns after all goes on with the run."""
    name = _options.full_name(project, run)
    request = run_service_pb2.CloseRunRequest(name=name, status=f"RUN_STATUS_{status.upper()}", message=message, fence=fence)
    with connect(target) as client:
        now = client.call("CloseRun", request, 60.0).run
    if as_json:
        say_json(_text.run_dict(now))
    else:
        say(f"{name} is {status} at step {now.durable_step}")


@click.command()
@_bulk.runs_argument
@click.option(
    "--fence",
    is_flag=True,
    help="Delete even if a session still holds a run, for example after kill -9; that session is fenced.",
)
@_bulk.options
@_options.reports_errors
def delete(
    target: str,
    project: str | None,
    runs: tuple[str, ...],
    fence: bool,
    filter_: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete runs and their whole history: those that are named, or all that match --filter.

    Refuses a run that a session holds, unless --fence.
    """

    def call(client: Client, name: str) -> Any:
        return client.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=name, fence=fence), 60.0)

    def check(run: resources_pb2.Run) -> None:
        if not fence and run.status in (resources_pb2.RUN_STATUS_RUNNING, resources_pb2.RUN_STATUS_SILENT):
            raise MechanicdError("RUN_HELD", "a session holds this run; stop its trainer first, or pass --fence if it is gone")

    change = _bulk.Change(verb="delete", done="deleted", call=call, ask_one=True, what="whole history", check=check)
    _bulk.run(change, target, project, runs, filter_, dry_run, yes, as_json)


@click.command()
@_bulk.runs_argument
@_bulk.options
@_options.reports_errors
def archive(
    target: str, project: str | None, runs: tuple[str, ...], filter_: str, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Archive runs: they keep their history, need nobody, and leave the lists, unless a filter names `archived`."""

    def call(client: Client, name: str) -> Any:
        return client.call("ArchiveRun", run_service_pb2.ArchiveRunRequest(name=name)).run

    change = _bulk.Change(verb="archive", done="archived", call=call, shown=_text.run_dict)
    _bulk.run(change, target, project, runs, filter_, dry_run, yes, as_json)


@click.command()
@_bulk.runs_argument
@_bulk.options
@_options.reports_errors
def restore(
    target: str, project: str | None, runs: tuple[str, ...], filter_: str, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Restore archived runs: those that are named, or all archived ones that match --filter."""

    def call(client: Client, name: str) -> Any:
        return client.call("RestoreRun", run_service_pb2.RestoreRunRequest(name=name)).run

    change = _bulk.Change(verb="restore", done="restored", call=call, shown=_text.run_dict)
    archived = f"archived = true AND {filter_}" if filter_ else ""
    _bulk.run(change, target, project, runs, archived, dry_run, yes, as_json)


@click.command()
@click.argument("runs_and_labels", nargs=-1, metavar="[RUN]... [KEY=VALUE]...", shell_complete=_options.known_runs)
@click.option("--remove", multiple=True, metavar="KEY", help="Remove this label; may be repeated.")
@_bulk.options
@_options.reports_errors
def label(
    target: str,
    project: str | None,
    runs_and_labels: tuple[str, ...],
    remove: tuple[str, ...],
    filter_: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Set labels of runs with KEY=VALUE, or --remove them. Other labels stay as they are."""
    runs = tuple(word for word in runs_and_labels if "=" not in word)
    labels = dict(word.split("=", 1) for word in runs_and_labels if "=" in word)
    if not labels and not remove:
        raise click.UsageError("name a label to set, as in batch=256, or to remove, as in --remove batch")
    if both := labels.keys() & set(remove):
        raise click.UsageError(f"label {min(both)} is both set and removed")
    mask = field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in (*labels, *remove)])

    def call(client: Client, name: str) -> Any:
        run = resources_pb2.Run(name=name, labels=labels)
        return client.call("UpdateRun", run_service_pb2.UpdateRunRequest(run=run, update_mask=mask)).run

    change = _bulk.Change(verb="label", done="labelled", call=call, shown=_text.run_dict)
    _bulk.run(change, target, project, runs, filter_, dry_run, yes, as_json)
