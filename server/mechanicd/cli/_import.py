"""`mechanicd import`: brings what trainings wrote without a network to a server."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mechanicd.cli import _options, _text
from mechanicd.cli._output import EXIT_FAILED, json_option, report, say, say_json
from mechanicd.client import MechanicdError, ServerUnavailable, Unauthenticated, connect
from mechanicd.client.spool import Imported, import_spool, spool_files
from mechanicd.v1.names import plain


@click.command("import")
@_options.target_option
@click.argument("paths", nargs=-1, required=True, metavar="FILE|FOLDER…")
@click.option("--as", "run", metavar="RUN", help="Import one file as this run. Default: the name that the training gave it.")
@json_option
@_options.reports_errors
def import_(target: str, paths: tuple[str, ...], run: str | None, as_json: bool) -> None:
    """Import the spool files of trainings with target="file:///FOLDER". What the server has already is not sent again.

    An import that was interrupted goes on where it stopped. A run that exists with other content is never changed.
    """
    files, done = dict[Path, None](), list[dict[str, Any]]()
    for path in paths:
        try:
            files |= dict.fromkeys(spool_files(path))
        except MechanicdError as error:
            if len(paths) == 1:
                raise
            done.append(_refused(path, error, as_json))
    if run is not None and len(files) != 1:
        raise click.UsageError(f"--as is for one file, but there are {len(files)}.")
    with connect(target) as client:
        for file in files:
            try:
                with _bar(file, wanted=not as_json) as progress:
                    imported = import_spool(client, file, run, progress)
            except MechanicdError as error:
                done.append(_refused(str(file), error, as_json))
                if isinstance(error, (ServerUnavailable, Unauthenticated)):
                    break
            else:
                done.append(_dict(imported))
                if not as_json:
                    say(_line(imported))
    if as_json:
        say_json(done, 2)
    if any("error" in each for each in done):
        sys.exit(EXIT_FAILED)


@contextmanager
def _bar(file: Path, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task(plain(file.name), total=None)
        yield lambda steps, of: bar.update(task, completed=steps, total=of)


def _refused(path: str, error: MechanicdError, as_json: bool) -> dict[str, Any]:
    """Reports it at once; returns what the list of --json has of it."""
    report(error.reason, error.message, as_json)
    return {"file": path, "error": {"reason": error.reason, "message": error.message}}


def _dict(imported: Imported) -> dict[str, Any]:
    return {
        "file": str(imported.file),
        "run": imported.run,
        "steps": imported.steps,
        "imported": imported.imported,
        "status": imported.status,
        "torn_bytes": imported.torn,
        "live": imported.live,
    }


def _line(imported: Imported) -> str:
    if not imported.run:
        return f"{imported.file}: no training has begun in it"
    had = imported.steps - imported.imported
    what = f"{imported.imported:,} steps imported" if imported.imported or not had else "nothing to import"
    parts = [what, *([f"the server had {had:,}"] if had else []), f"the run is {imported.status}"]
    if imported.live:
        parts.append("its trainer still writes more")
    elif imported.torn:
        parts.append(
            f"the file's last {imported.torn} bytes are no whole record: its trainer was killed as it wrote [SPOOL_TORN]"
        )
    return f"{_text.short(imported.run)}: {'; '.join(parts)}"
