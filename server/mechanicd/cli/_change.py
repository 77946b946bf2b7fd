"""`mechanicd runs rewind | fork | delete`: commands that change runs. They ask first if the change can't be undone."""

import json

import click

from mechanicd.cli import _options, _text
from mechanicd.cli._output import confirm, json_option
from mechanicd.cli._ranges import STEP
from mechanicd.client import connect
from mechanicd.v1 import run_service_pb2


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
        click.echo(json.dumps(_text.run_dict(now)))
    else:
        click.echo(f"{name} is at step {now.durable_step}; S {_text.scale(now)}")


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
        click.echo(json.dumps(_text.run_dict(made)))
    else:
        click.echo(f"{name} starts from {source} at step {made.durable_step}; S {_text.scale(made)}")


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@_options.yes_option
@json_option
@_options.reports_errors
def delete(target: str, project: str, run: str, yes: bool, as_json: bool) -> None:
    """Delete a run and its whole history."""
    name = _options.full_name(project, run)
    if not yes:
        confirm(f"Delete {name} and its whole history?", as_json)
    with connect(target) as client:
        client.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=name))
    click.echo(json.dumps({"deleted": name}) if as_json else f"deleted {name}")
