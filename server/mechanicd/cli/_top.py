"""`mechanicd top`: a live full-screen table of runs."""

import contextlib
import os
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mechanicd.cli import _options, _query, _text
from mechanicd.cli._output import json_option, say, say_json
from mechanicd.cli._ranges import FiniteRange
from mechanicd.client import Client, MechanicdError, connect
from mechanicd.v1 import resources_pb2, run_service_pb2

_SKETCH_WIDTH: Final = 24
_SKETCHED_RUNS: Final = 1000
_CHROME: Final = 4
"""Screen lines that don't show runs."""
_LEAST_WIDTHS: Final = {
    "run": 24,
    "status": 9,
    "step": 9,
    "S": 8,
    "S over the steps": _SKETCH_WIDTH,
    "last step": 10,
    "needs": 8,
}


class _Fleet:
    """The runs as last reported by the server; a background thread keeps them current.

    Attributes:
        lost: why the server can't be heard now; None while it can.
    """

    def __init__(self, client: Client, request: run_service_pb2.WatchRunsRequest, live: bool) -> None:
        self.error: MechanicdError | None = None
        self.lost: MechanicdError | None = None
        self._live = live
        self._runs: dict[str, resources_pb2.Run] = {}
        self._lock = threading.Lock()
        self._first = threading.Event()
        threading.Thread(target=self._follow, args=(client, request), name="mechanicd-top", daemon=True).start()

    def _follow(self, client: Client, request: run_service_pb2.WatchRunsRequest) -> None:
        try:
            for response in client.watch(request, self._lose):
                with self._lock:
                    for name in response.gone:  # first: a run may have taken the name of another one
                        self._runs.pop(name, None)
                    self._runs.update({run.name: run for run in response.runs})
                if not response.more:
                    self._first.set()
        except MechanicdError as error:
            self.error = error
        finally:
            self._first.set()

    def _lose(self, error: MechanicdError | None) -> None:
        self.lost = error
        if not self._live:
            _query.lost_server(error)

    def runs(self) -> list[resources_pb2.Run]:
        """A snapshot of all runs. Blocks until the server's first answer.

        Raises:
            MechanicdError: the connection ended, or the server rejected the filter.
        """
        self._first.wait()
        if self.error is not None:
            raise self.error
        with self._lock:
            return list(self._runs.values())


class _Sketches:
    """Sparklines of the runs on screen, fetched again once a run has advanced enough to change its picture."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._made: dict[str, tuple[int, str]] = {}

    def of(self, runs: list[resources_pb2.Run], *, fetch: bool = True) -> dict[str, str]:
        """Sparklines by run name; without fetching, those that are known."""
        stale = {}
        for run in runs if fetch else ():
            drawn = self._made.get(run.name, (-1, ""))[0]
            if not drawn <= run.durable_step <= drawn + drawn // (2 * _SKETCH_WIDTH):
                stale[run.name] = run.durable_step
        with contextlib.suppress(MechanicdError):  # a lost server is reported elsewhere
            sketches = _query.sketches_of(self._client, list(stale), _SKETCH_WIDTH)
            self._made |= {name: (stale[name], sketch) for name, sketch in sketches.items()}
        return {run.name: self._made[run.name][1] for run in runs if run.name in self._made}


@click.command()
@_options.target_option
@_options.any_project_option
@_options.filter_option
@_options.sort_option("needs")
@click.option(
    "--interval",
    type=FiniteRange(0.1, 3600.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between refreshes.",
)
@click.option("--once", is_flag=True, help="Print the table once and exit. The default when stdout is not a terminal.")
@json_option
@_options.reports_errors
def top(target: str, project: str | None, filter_: str, sort: str, interval: float, once: bool, as_json: bool) -> None:
    """Show runs in a live full-screen table, those that need attention first.

    Keys: q quits, s changes the sort order, up and down (or k and j) scroll. With --json, prints one line per refresh: all
    runs as in `mechanicd runs list --json`.
    """
    request = run_service_pb2.WatchRunsRequest(parent=_options.parent_of(project), filter=filter_)
    with connect(target) as client:
        live = not (as_json or once) and sys.stdout.isatty()
        fleet = _Fleet(client, request, live)
        try:
            if as_json:
                _print_json(fleet, sort, interval, once)
            elif not live:
                found = _text.ordered(fleet.runs(), sort)
                sketches = _Sketches(client).of(found[:_SKETCHED_RUNS])
                say(_tallies(found), f"by {sort}", "", *_text.lines(found, sketches, client.clock_ahead))
            else:
                _live(fleet, client, sort, interval)
        except KeyboardInterrupt:
            return


def _print_json(fleet: _Fleet, sort: str, interval: float, once: bool) -> None:
    while True:
        say_json([_text.run_dict(run) for run in _text.ordered(fleet.runs(), sort)])
        if once:
            return
        time.sleep(interval)


def _live(fleet: _Fleet, client: Client, sort: str, interval: float) -> None:
    sketches = _Sketches(client)
    console = Console()
    orders, first = list(_text.SORTS), 0
    with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            found = _text.ordered(fleet.runs(), sort)
            room = max(1, console.height - _CHROME)
            first = max(0, min(first, len(found) - room))
            shown = found[first : first + room]
            lost = fleet.lost is not None
            drawn = sketches.of(shown, fetch=not lost)
            live.update(_screen(shown, drawn, sort, found, client.clock_ahead, lost=lost), refresh=True)
            end = time.monotonic() + interval
            while (left := end - time.monotonic()) > 0:
                pressed = key(left)
                if pressed == "q":
                    return
                if pressed == "s":
                    sort = orders[(orders.index(sort.removeprefix("-")) + 1) % len(orders)]
                elif pressed in ("j", "k"):
                    first += 1 if pressed == "j" else -1
                if pressed:
                    break


def _screen(
    shown: list[resources_pb2.Run],
    sketches: dict[str, str],
    sort: str,
    found: list[resources_pb2.Run],
    ahead: float,
    *,
    lost: bool,
) -> Group:
    table = _text.table(shown, sketches, ahead)
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
        column.min_width = _LEAST_WIDTHS.get(str(column.header), 1)
    needy = any(run.needs for run in found)
    heading = Text(_tallies(found), style="bold yellow" if needy else "bold")
    if lost:
        heading = Text("the server does not answer; these are its runs as last heard", style="bold red")
    return Group(heading, Text(f"by {sort}   q quit   s sort   ↑↓ move", style="dim"), Text(""), table)


def _tallies(found: list[resources_pb2.Run]) -> str:
    counts = Counter(map(_text.status, found))
    parts = [f"{len(found)} runs", *(f"{count} {status}" for status, count in counts.most_common())]
    needy = sum(bool(run.needs) for run in found)
    return f"{', '.join(parts)}   {needy} need attention" if needy else f"{', '.join(parts)}   none needs attention"


@contextlib.contextmanager
def _keys() -> Iterator["_Keys"]:
    """Reads single keys from the terminal, without Enter or echo. If stdin is no terminal, no key is ever pressed."""
    if os.name != "posix" or not sys.stdin.isatty():
        yield _Keys(None)
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Keys:
    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, seconds: float) -> str:
        """The key pressed within this time, with arrows as j and k; "" if none was."""
        if self._fd is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._fd], [], [], seconds)[0]:
            return ""
        pressed = os.read(self._fd, 16).decode(errors="ignore")
        return {"\x1b[A": "k", "\x1b[B": "j"}.get(pressed, pressed[:1])
