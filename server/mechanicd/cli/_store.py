"""`mechanicd store …`: database maintenance, without a server."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mechanicd import store as stores
from mechanicd.cli._output import confirm, fail, json_option, json_text, say, say_json
from mechanicd.cli._ranges import DAYS, STEP
from mechanicd.cli._secret_files import or_by_file, read
from mechanicd.service import Retention
from mechanicd.store import StoreError

store_option = or_by_file(
    "--store",
    "url",
    "MECHANICD_STORE_FILE",
    default="sqlite:///mechanicd.db",
    show_default=True,
    metavar="URL",
    help="The store: sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
)


@click.group()
def store() -> None:
    """Check, back up or shrink a store."""


@store.command()
@store_option
@json_option
def check(url: str, as_json: bool) -> None:
    """Read every run and recompute each of its steps. A server may be running. Exits with 1 if anything is wrong."""
    with _opened(url, as_json, readonly=True) as opened, _progress("runs", as_json) as progress:
        findings = list(stores.check(opened, progress))
        runs = sum(1 for _ in stores.every_run(opened))
    wrong = [finding for finding in findings if not finding.harmless]
    if as_json:
        say_json({"runs": runs, "ok": not wrong, "findings": [asdict(finding) for finding in findings]}, 2)
    else:
        for finding in findings:
            mark = "note " if finding.harmless else "wrong"
            say(f"{mark}  {finding.run or stores.without_password(url)}: {finding.message} [{finding.reason}]")
        say(f"{runs} runs checked, {len(wrong)} problems")
    sys.exit(1 if wrong else 0)


@store.command()
@store_option
@click.argument("to", required=False)
@click.option("--to-file", metavar="FILE", help="A file that holds TO, which no process list shows then.")
@json_option
def backup(url: str, to: str | None, to_file: str | None, as_json: bool) -> None:
    """Copy a snapshot of every run to TO: a new file, or the URL of an empty store of either engine.

    A server may be running. Use the same command to restore a backup, and to move runs from SQLite to PostgreSQL.
    """
    if (to is None) == (to_file is None):
        raise click.UsageError("name the place of the backup: TO, or --to-file FILE")
    to = read(to_file, "--to-file", as_json) if to_file is not None else str(to)
    target_url = to if "://" in to else f"sqlite:///{to}"
    with (
        _opened(url, as_json, readonly=True) as source,
        _opened(target_url, as_json) as target,
        _progress("rows", as_json) as progress,
    ):
        rows = stores.copy(source, target, progress)
        runs = sum(1 for _ in stores.every_run(target))
    shown = stores.without_password(target_url)
    say(json_text({"to": shown, "runs": runs, "rows": rows}) if as_json else f"{runs} runs copied to {shown}")


@store.command()
@store_option
@click.option("--to", metavar="URL", help="A new file, or the URL of an empty store of either engine.")
@click.option("--to-file", metavar="FILE", help="A file that holds the URL, which no process list shows then.")
@json_option
def salvage(url: str, to: str | None, to_file: str | None, as_json: bool) -> None:
    """Bring all that is whole out of a damaged store into a new one, and say what was left.

    Stop the server first. Exits with 1 if anything was left.
    """
    if (to is None) == (to_file is None):
        raise click.UsageError("name the new store: --to URL, or --to-file FILE")
    to = read(to_file, "--to-file", as_json) if to_file is not None else str(to)
    target_url = to if "://" in to else f"sqlite:///{to}"
    left: list[stores.Left] = []
    with _opened(target_url, as_json) as target, _progress("rows", as_json) as progress:
        runs = stores.salvage(url, target, left.append, progress)
    shown = stores.without_password(target_url)
    if as_json:
        say_json({"to": shown, "runs": runs, "left": [each._asdict() for each in left]}, 2)
    else:
        for each in left:
            say(f"left  {each.run or stores.without_password(url)}: {each.message}")
        say(f"{runs} runs brought to {shown}, {len(left)} things left")
    sys.exit(1 if left else 0)


@store.command()
@store_option
@click.option("--keep-steps", type=STEP, metavar="N", help="As in `mechanicd serve`. Default: keep all.")
@click.option("--keep-days", type=DAYS, metavar="DAYS", help="As in `mechanicd serve`. Default: keep all.")
@click.option("--yes", is_flag=True, help="Don't ask before deleting anything.")
@json_option
def vacuum(url: str, keep_steps: int | None, keep_days: float | None, yes: bool, as_json: bool) -> None:
    """Fold the journal, delete what is too old, and return unused space to the disk."""
    giving_up = keep_steps is not None or keep_days is not None
    if giving_up and not yes:
        confirm("This deletes older steps or runs for good. Continue?", as_json)
    with _opened(url, as_json) as opened:
        before = sum(1 for _ in stores.every_run(opened))
        while opened.fold():
            pass
        oldest = Retention(keep_steps, keep_days).oldest(opened.clock.now())
        while giving_up and opened.retain(keep_steps, oldest):
            pass
        opened.vacuum()
        after = sum(1 for _ in stores.every_run(opened))
    report = {"runs": after, "runs_deleted": before - after}
    say(json_text(report) if as_json else f"{after} runs kept, {before - after} deleted")


@contextmanager
def _opened(url: str, as_json: bool, *, readonly: bool = False) -> Iterator[stores.SQLStore]:
    try:
        opened = stores.open_store(url, readonly=readonly)
        try:
            yield opened
        finally:
            opened.close()
    except StoreError as error:
        fail(error.reason, str(error), as_json)


@contextmanager
def _progress(unit: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield lambda done, all_: None
        return
    columns: tuple[Any, ...] = (BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=1, unit=unit)
        yield lambda done, all_: bar.update(task, completed=done, total=max(all_, 1))
