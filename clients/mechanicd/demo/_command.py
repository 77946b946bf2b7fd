"""The command `mechanicd demo`."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from mechanicd.demo import _data, _display, _fleet
from mechanicd.demo._outcome import Outcome
from mechanicd.demo._scenario import Conductor, Folder
from mechanicd.demo.processes import Crew, DemoError, Server, Stopped, StopSignals


@click.command(short_help="Train a small fleet on real digits, and compare with sweeps.")
@click.option(
    "--dir",
    "path",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Keep the store, logs and checkpoints here, in an empty or a new folder.  [default: a new one in .mechanicd]",
)
@click.option(
    "--quick", is_flag=True, help="Train three runs of 200 steps: shows that it works, and says nothing about accuracy."
)
@click.option("--no-sweep", is_flag=True, help="Train the mechanized runs only.")
@click.option("--once", is_flag=True, help="Exit after the table. Default: the server and its page stay until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout and exit; progress goes to stderr.")
def demo(path: Path | None, quick: bool, no_sweep: bool, once: bool, as_json: bool) -> None:
    """Train a small fleet of real models with MECHANIC, and compare each with a sweep of the learning rate.

    Starts a server with an embedded store, and trains two models of handwritten digits with AdamW, SGD and Lion and several
    batch sizes, all at once. One training process is killed midway and resumes from its checkpoint. Then the same models train
    with the bare optimizers at five learning rates each, and a table compares their test accuracy. Takes 2 to 3 minutes on two
    cores. A page shows S of all runs from the start, and stays after the table until Ctrl-C.
    """
    if os.name != "posix":
        raise click.ClickException(
            "the demo starts a server, which needs Linux, macOS, WSL or a container; trainings alone work here "
            "[PLATFORM_NOT_SUPPORTED]"
        )
    path = (path or Path(".mechanicd", time.strftime("demo-%Y%m%d-%H%M%S"))).absolute()
    folder = Folder(path)
    fleet = _fleet.quick() if quick else _fleet.full()
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    try:
        with StopSignals() as signals:
            _prepare(folder)
            with Server(folder.store_url, folder.logs, signals.check, http="") as server:
                outcomes = _train(folder, fleet, not no_sweep, console, signals, server)
                _tell(folder, outcomes, time.monotonic() - began, quick, as_json)
                if not (once or as_json):
                    _stay(server, signals)
    except DemoError as error:
        raise click.ClickException(str(error)) from None
    except Stopped as stopped:
        console.print(f"{stopped}: stopped the training processes and the server; their files are in {path}", soft_wrap=True)
        sys.exit(128 + stopped.signum)


def _tell(folder: Folder, outcomes: list[Outcome], seconds: float, quick: bool, as_json: bool) -> None:
    """Prints the table, and the commands that show the runs again."""
    if as_json:
        click.echo(json.dumps(_document(folder, outcomes, seconds), indent=2, allow_nan=False))
        return
    table = Console(highlight=False)
    if not table.is_terminal:
        table.width = max(table.width, 100)
    table.print(_display.summary(outcomes, table.width))
    if quick:
        table.print("200 steps are too few to judge accuracy; run without --quick for that.")
    table.print(f"\nThis took {seconds:.0f} seconds. The runs are kept; to see them again later:\n")
    for command in look_again(folder, outcomes):
        table.print(f"    {command}", markup=False, soft_wrap=True)


def _stay(server: Server, signals: StopSignals) -> None:
    """Keeps the page open until Ctrl-C."""
    click.echo(f"\nThe page is open: {server.page}")
    if server.link != server.page:
        how = server.link if sys.stdout.isatty() else f"`mechanicd tokens local --page {server.page}` prints it"
        click.echo(f"This link signs you in: {how}")
    click.echo("Ctrl-C stops the server.")
    try:
        while True:
            signals.check()
            server.check()
            time.sleep(0.2)
    except Stopped:
        click.echo()


def _train(
    folder: Folder, fleet: _fleet.Fleet, sweeps: bool, console: Console, signals: StopSignals, server: Server
) -> list[Outcome]:
    with Crew(folder.logs) as crew:
        conductor = Conductor(fleet, sweeps, folder, server.target, crew)

        def check() -> None:
            signals.check()
            server.check()

        with _display.Board(console, conductor.runs, conductor.sweep_size) as board:
            board.note(f"server at {server.target}, store {folder.store_url}")
            board.note(f"meanwhile, in a browser: {server.link if console.is_terminal else server.page}")
            board.note(f"or in another terminal: mechanicd runs list --target {server.target}")
            conductor.conduct(board, check)
    return [Outcome(run) for run in conductor.runs]


def _prepare(folder: Folder) -> None:
    """Creates the folder, with the digits in it."""
    folder.check()
    try:
        digits = _data.read()
    except ModuleNotFoundError as error:
        raise DemoError(f"the demo needs {error.name}, which is not installed; pip install 'mechanicd[demo]'") from None
    folder.make()
    _data.save(digits, folder.digits)


def look_again(folder: Folder, outcomes: list[Outcome]) -> list[str]:
    """The commands that show the runs once the demo's server is gone."""
    target = "127.0.0.1:50051"
    return [
        f"mechanicd serve --grpc {target} --store {shlex.quote(folder.store_url)}",
        f"mechanicd runs list --target {target} --project {_fleet.PROJECT}",
        f"mechanicd runs show {outcomes[0].progress.recipe.run} --target {target} --project {_fleet.PROJECT}",
    ]


def _document(folder: Folder, outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    return {
        "store": folder.store_url,
        "seconds": round(seconds, 1),
        "runs": [outcome.to_json() for outcome in outcomes],
        "look_again": look_again(folder, outcomes),
    }
