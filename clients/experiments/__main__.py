"""The command `python -m experiments`."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from experiments import _catalogue, _data, _plan, _results
from experiments._catalogue import Experiment
from experiments._data import DataMissing
from experiments._runner import HEAVY, Progress, RunFailed, Setup, run
from mechanicd.demo.processes import DemoError, Server, Stopped, StopSignals

DEFAULT_WORK: Final = Path(".mechanicd", "experiments")
_SAY_SECONDS: Final = 15.0

_results_option = click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of results.  [default: results.jsonl in the work folder]",
)
_work_option = click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_WORK,
    show_default=True,
    help="The folder for results, checkpoints, the server's store and logs.",
)
_data_option = click.option(
    "--data",
    "data",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The folder of prepared data.  [default: ${_data.VARIABLE}, or the user's cache]",
)


def _to_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--to", "folder", type=kind, help=f"The folder to write to.  [default: {default}]")


_quick_option = click.option(
    "--quick", is_flag=True, help="Everything small: shows that it works, and says nothing about the methods."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The paper's experiments at small scale, on real data that ships inside packages, as a fleet of labeled runs."""


@main.command("list")
@_quick_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(quick: bool, as_json: bool) -> None:
    """List the experiments."""
    rows = [
        {
            "name": each.name,
            "about": each.about,
            "paper": each.paper,
            "rows": len(each.rows),
            "trainings": sum(1 for _ in each.trainings()),
        }
        for each in _experiments(quick)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['name']:<10} {row['trainings']:>5} runs on {row['rows']:>2} problems  {row['about']} ({row['paper']})"
        )
    click.echo("Runs that two experiments share are trained once.")


@main.command("data")
@click.argument("names", nargs=-1, metavar="[SET…]")
@_to_option("as of `run --data`")
def data_(names: Sequence[str], folder: Path | None) -> None:
    """Prepare the data: read it from packages, split it, convert it. The folder can be copied to another machine."""
    from experiments._sources import SETS, prepare

    if unknown := set(names) - set(SETS):
        message = f"unknown set {', '.join(sorted(unknown))}; choose from {', '.join(SETS)}"
        raise click.BadParameter(message, param_hint="SET")
    folder = folder or _data.default_folder()
    with _said_errors():
        prepare(folder, click.echo, names or tuple(SETS))
    size = sum(path.stat().st_size for path in folder.glob("*.npz"))
    click.echo(f"{folder}: complete, {size / 1e6:.1f} MB")


@main.command("run")
@click.argument("names", nargs=-1, required=True, metavar="NAME|all…")
@_quick_option
@click.option("--target", help="The server to use, or `none` for tuners inside the training processes.  [default: start one]")
@click.option(
    "--http",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT|off",
    help="The page's address, if a server is started.",
)
@click.option("--project", help="The project of the runs on the server.  [default: experiments]")
@click.option("--shard", metavar="I/N", default="1/1", help="Train only the I-th of N parts.")
@click.option(
    "--tasks",
    multiple=True,
    metavar="GLOB",
    help="Train only tasks that match, such as 'finetune/*'; may be repeated.",
)
@click.option("--time-limit", type=float, metavar="MINUTES", help="Stop after this time; the same command continues.")
@click.option("--workers", type=click.IntRange(1), help="Runs to train at once on the CPU.  [default: one per core]")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help=f"auto: train the models {', '.join(HEAVY)} on the GPU, if there is one, and the others on the CPU.",
)
@click.option("--cuda-workers", type=click.IntRange(1), default=4, show_default=True, help="Runs to train at once on the GPU.")
@_data_option
@_work_option
@_results_option
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON at the end; progress goes to stderr.")
def run_(
    names: Sequence[str],
    quick: bool,
    target: str | None,
    http: str,
    project: str | None,
    shard: str,
    tasks: Sequence[str],
    time_limit: float | None,
    workers: int | None,
    device: str,
    cuda_workers: int,
    data: Path | None,
    work: Path,
    results: Path | None,
    as_json: bool,
) -> None:
    """Train all runs that have no result yet. Stop it with Ctrl-C at any time; the same command continues."""
    work = work / "quick" if quick else work
    results = results or work / "results.jsonl"
    deadline = None if time_limit is None else time.monotonic() + 60.0 * time_limit
    project = project or ("experiments-quick" if quick else "experiments")
    with _said_errors(), StopSignals() as signals:
        chosen = _choose(names, quick)
        part = _parsed(shard, tasks)
        (work / "logs").mkdir(parents=True, exist_ok=True)
        _ensure_data(data or _data.default_folder(), chosen)
        with _server(target, http, work, signals.check) as (address, page, check):
            setup = Setup(data or _data.default_folder(), work, address, project, _workers(device, workers, cuda_workers))
            said = _Said(Console(stderr=True, highlight=False), address, project, page)
            reached = run(chosen, results, setup, part, deadline, check, said)
    left = reached.total - reached.done
    if as_json:
        document = {"results": str(results), "done": reached.done, "total": reached.total, "left_s": round(reached.left_s)}
        click.echo(json.dumps(document, indent=2))
    else:
        after = f"; {left} are left, about {_minutes(reached.left_s)}: run it again to continue" if left else ""
        click.echo(f"{reached.done} of {reached.total} runs have ended{after}. Results: {results}")


@main.command("merge")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--into", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The results file to add to.")
def merge_(sources: Sequence[Path], into: Path) -> None:
    """Combine the results of several machines in one file."""
    with _said_errors():
        added = _results.merge(into, sources)
    click.echo(f"{added} records added to {into}")


@main.command("report")
@_quick_option
@_work_option
@_results_option
@_to_option("report in the work folder")
def report_(quick: bool, work: Path, results: Path | None, folder: Path | None) -> None:
    """Write the report (README.md and its plots) from the results file."""
    from experiments._report import write

    work = work / "quick" if quick else work
    results = results or work / "results.jsonl"
    with _said_errors():
        records = _results.read(results)
        page = write(folder or work / "report", records, _experiments(quick), quick)
    click.echo(page)


def _experiments(quick: bool) -> tuple[Experiment, ...]:
    return _catalogue.QUICK if quick else _catalogue.FULL


def _choose(names: Sequence[str], quick: bool) -> tuple[Experiment, ...]:
    try:
        return _catalogue.choose(names, _experiments(quick))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None


def _parsed(shard: str, tasks: Sequence[str]) -> _plan.Shard:
    try:
        return _plan.Shard.parse(shard, tasks)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shard") from None


def _ensure_data(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Prepares the data that is not there yet."""
    names = {row.task.data for experiment in experiments for row in experiment.rows}
    if any(row.task.model == "minilm" for experiment in experiments for row in experiment.rows):
        names.add("minilm")
    missing = sorted(name for name in names if not _data.path_of(folder, name).exists())
    if missing:
        from experiments._sources import prepare

        prepare(folder, lambda text: click.echo(text, err=True), missing)


def _workers(device: str, workers: int | None, cuda_workers: int) -> dict[str, int]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu":
        return {"cpu": workers or processors}
    import torch

    if not torch.cuda.is_available():
        if device == "cuda":
            raise click.BadParameter("torch finds no GPU; pass --device cpu", param_hint="--device")
        return {"cpu": workers or processors}
    if device == "cuda":
        return {"cuda": cuda_workers}
    return {"cpu": workers or max(1, processors - cuda_workers), "cuda": cuda_workers}


@contextmanager
def _server(
    target: str | None, http: str, work: Path, check: Callable[[], None]
) -> Iterator[tuple[str | None, str, Callable[[], None]]]:
    """The server's address, its page's address, and a check to call often. A server that is started here is stopped here."""
    if target is not None:
        yield (None if target == "none" else target), "", check
        return
    with Server(f"sqlite:///{(work / 'mechanicd.db').absolute()}", work / "logs", check, http) as server:

        def both() -> None:
            check()
            server.check()

        yield server.target, server.page, both


class _Said:
    """Shows the progress: one line that changes on a terminal, and a line now and then elsewhere."""

    def __init__(self, console: Console, target: str | None, project: str, page: str) -> None:
        self._console = console
        self._began = time.monotonic()
        self._said = -_SAY_SECONDS
        if page:
            console.print(f"S of every run: {page}", soft_wrap=True)
        if target is not None:
            console.print(f"S of every run: mechanicd runs watch --target {target} --project {project}", soft_wrap=True)

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        line = f"{progress.done}/{progress.total} runs, about {_minutes(progress.left_s)} left; {progress.last}"
        if self._console.is_terminal:
            self._console.print(line, end="\r" if progress.done < progress.total else "\n", overflow="ellipsis", no_wrap=True)
        elif now - self._said >= _SAY_SECONDS or progress.done == progress.total:
            self._said = now
            self._console.print(f"{now - self._began:6.0f} s  {line}", soft_wrap=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def _said_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise click.ClickException(f"{error.filename} does not exist; `python -m experiments run` creates it") from None
    except (DataMissing, DemoError, RunFailed, _results.ResultsUnreadable) as error:
        raise click.ClickException(str(error)) from None
    except Stopped as stopped:
        click.echo(f"{stopped}: stopped all training; the same command continues from here", err=True)
        sys.exit(128 + stopped.signum)


if __name__ == "__main__":
    main()
