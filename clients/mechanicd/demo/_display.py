"""What the demo shows: the runs while they train, and the table at the end."""

import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mechanicd.demo._outcome import TOLERANCE, Outcome
from mechanicd.demo._progress import Progress

_STYLES = {"starting": "dim", "training": "cyan", "killed": "bold red", "resumed": "yellow", "done": "green"}


class Board:
    """The runs while they train: bars on a terminal, elsewhere a line now and then.

    Args:
        console: where to draw.
        runs: what to draw, read anew at each `refresh`.
        sweep_size: how many learning rates each run's sweep has; 0 without sweeps.
    """

    def __init__(self, console: Console, runs: Sequence[Progress], sweep_size: Callable[[Progress], int]) -> None:
        self._console = console
        self._runs = runs
        self._sweep_size = sweep_size
        self._began = time.monotonic()
        self._said: dict[str, str] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Prints a line that stays on the screen."""
        self._console.print(f"{self._clock()} {text}", highlight=False, soft_wrap=True, markup=False)

    def refresh(self) -> None:
        """Draws the current state."""
        if self._live is None:
            for run in self._runs:
                self._say(run)
        elif time.monotonic() - self._drawn >= 0.1:
            self._live.update(self._table(), refresh=True)
            self._drawn = time.monotonic()

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes}:{seconds:02d}"

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("run", "", "", "step", "S", "loss", "test", "sweep"):
            table.add_column(heading, justify="left" if heading in ("run", "") else "right", header_style="dim", no_wrap=True)
        for run in self._runs:
            size = self._sweep_size(run)
            table.add_row(
                run.recipe.run,
                Text(run.state, _STYLES[run.state]),
                ProgressBar(total=run.recipe.steps, completed=run.step, width=24),
                f"{run.step}/{run.recipe.steps}",
                _number(run.scale),
                _loss(run.loss),
                _percent(run.accuracy),
                f"{len(run.sweep)}/{size}" if size else "",
            )
        return Group(table, Text(f"{self._clock()} elapsed, Ctrl-C stops everything", "dim"))

    def _say(self, run: Progress) -> None:
        """A line for each quarter of a run, each change of its state, and the end of its sweep."""
        size = self._sweep_size(run)
        swept = bool(size) and len(run.sweep) == size
        now = f"{run.state} {4 * run.step // run.recipe.steps} {swept}"
        if run.state == "starting" or self._said.get(run.recipe.run) == now:
            return
        self._said[run.recipe.run] = now
        parts = [
            f"{run.recipe.run:<22} {run.state:<8} {run.step:>5}/{run.recipe.steps}",
            f"S {_number(run.scale):<8} loss {_loss(run.loss)}  test {_percent(run.accuracy)}",
        ]
        if swept:
            parts.append(f"sweep {size}/{size}")
        self.note("  ".join(parts))


def summary(outcomes: Sequence[Outcome], width: int) -> Group:
    """The table at the end, and a summary in words. On a narrow terminal the peak of S is left out."""
    wide = width >= 92
    compared = [outcome for outcome in outcomes if outcome.best is not None]
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("\nrun", no_wrap=True)
    headings = [*(["peak\nS"] if wide else []), "S at\nend", "\nMECHANIC"]
    if compared:
        headings += ["best of sweep\n@ lr", "worst\n@ lr", "from\nbest", f"within\n{TOLERANCE}"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(*_row(outcome, wide))
    lines = ["", "Test accuracy in percent, on 1,000 digits: one point is ten digits."]
    if compared:
        within = sum(outcome.within is True for outcome in compared)
        trainings = sum(len(outcome.progress.sweep) for outcome in compared)
        lines.append(
            f"{within} of {len(compared)} runs come within {TOLERANCE} points of the best of their sweep. "
            f"The sweeps took {trainings} training runs, MECHANIC {len(compared)}."
        )
    lines += [kill_in_words(outcome.progress) for outcome in outcomes if outcome.progress.resumed_from is not None]
    return Group(table, *(Text(line) for line in lines))


def kill_in_words(run: Progress) -> str:
    """What happened to the run that was killed."""
    text = f"{run.recipe.run} was killed at step {run.killed_at} and resumed from its checkpoint of step {run.resumed_from}"
    if run.repeated == 0:
        return f"{text}."
    if run.differing == 0:
        return f"{text}; it repeated the {run.repeated} reports in between, equal to the last bit."
    return f"{text}; it repeated the {run.repeated} reports in between, but {run.differing} of them differ."


def _row(outcome: Outcome, wide: bool) -> list[str | Text]:
    run, best, worst, points = outcome.progress, outcome.best, outcome.worst, outcome.points_from_best
    row: list[str | Text] = [run.recipe.run, _number(run.scale), Text(f"{run.accuracy:.1f}", "bold")]
    if wide:
        row.insert(1, _number(run.peak))
    if best is not None and worst is not None and points is not None:
        row += [
            f"{best.accuracy:.1f} @ {best.lr:g}",
            f"{worst.accuracy:.1f} @ {worst.lr:g}",
            f"{points:+.1f}",
            Text("yes", "green") if outcome.within else Text("no", "red"),
        ]
    return row


def _number(value: float) -> str:
    return f"{value:.2g}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f} %"


def _loss(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
