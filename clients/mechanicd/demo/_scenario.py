"""The course of the demo: the whole fleet at once, one kill, one resume, and the sweeps as processors become free."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mechanicd.demo import _reports
from mechanicd.demo._display import Board
from mechanicd.demo._fleet import Fleet, Recipe
from mechanicd.demo._progress import Progress
from mechanicd.demo.processes import Crew, DemoError, tail

_TRAIN = ("-m", "mechanicd.demo.train")
_SWEEP = "sweep of "


@dataclass(frozen=True)
class Folder:
    """The folder of a demo's store, logs and checkpoints."""

    path: Path

    @property
    def store_url(self) -> str:
        return f"sqlite:///{self.path / 'mechanicd.db'}"

    @property
    def digits(self) -> Path:
        return self.path / "digits.npz"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def check(self) -> None:
        """Raises DemoError if the folder is not empty: a demo never mixes its runs with another's."""
        with contextlib.suppress(FileNotFoundError):
            if any(self.path.iterdir()):
                raise DemoError(f"{self.path} is not empty; name an empty or a new folder, or leave out --dir")

    def make(self) -> None:
        """Creates the folder. Raises DemoError if it can't be created."""
        try:
            self.logs.mkdir(parents=True)
            self.checkpoints.mkdir()
        except OSError as error:
            raise DemoError(f"can't create {self.path}: {error.strerror}; name a folder that this user can write to") from None


class Conductor:
    """Starts the training processes, reads their reports, kills one and restarts it.

    Args:
        fleet: what to train.
        sweeps: whether to train the sweeps as well.
        folder: where checkpoints and logs go.
        target: the server.
        crew: the processes.
    """

    def __init__(self, fleet: Fleet, sweeps: bool, folder: Folder, target: str, crew: Crew) -> None:
        self._fleet = fleet
        self._folder = folder
        self._target = target
        self._crew = crew
        self._pending = sorted(fleet.recipes, key=lambda recipe: -recipe.cost) if sweeps else []
        self._sweeps = sweeps
        self._by_run = {recipe.run: Progress(recipe) for recipe in fleet.recipes}

    @property
    def runs(self) -> list[Progress]:
        """The progress of each recipe, in the fleet's order."""
        return list(self._by_run.values())

    def sweep_size(self, run: Progress) -> int:
        """How many learning rates the run's sweep has."""
        return len(self._fleet.learning_rates[run.recipe.base]) if self._sweeps else 0

    def conduct(self, board: Board, check: Callable[[], None]) -> None:
        """Trains everything to its end.

        Args:
            board: shows what happens.
            check: called often; may raise.

        Raises:
            DemoError: a training process failed.
        """
        for recipe in self._fleet.recipes:
            self._start(recipe)
        while self._crew or self._pending:
            check()
            while self._pending and len(self._crew) < _processors():
                self._start_sweep(self._pending.pop(0))
            for name, said in self._crew.listen(0.1):
                if isinstance(said, int):
                    self._ended(name, said, board)
                else:
                    self._heard(name, said, board)
            board.refresh()

    def _start(self, recipe: Recipe) -> None:
        checkpoint = self._folder.checkpoints / f"{recipe.run.replace('/', '-')}.pt"
        every = ("--checkpoint-every", str(self._fleet.checkpoint_every), "--report-every", str(self._fleet.report_every))
        self._crew.start(
            recipe.run, (*self._command(recipe), "--target", self._target, "--checkpoint", str(checkpoint), *every)
        )

    def _start_sweep(self, recipe: Recipe) -> None:
        rates = [argument for lr in self._fleet.learning_rates[recipe.base] for argument in ("--lr", str(lr))]
        self._crew.start(_SWEEP + recipe.run, (*self._command(recipe), *rates))

    def _command(self, recipe: Recipe) -> tuple[str, ...]:
        fields = {"model": recipe.model, "base": recipe.base, "batch": recipe.batch, "steps": recipe.steps, "seed": recipe.seed}
        options = [argument for name, value in fields.items() for argument in (f"--{name}", str(value))]
        return (*_TRAIN, "--digits", str(self._folder.digits), *options)

    def _heard(self, name: str, line: str, board: Board) -> None:
        run = self._by_run[name.removeprefix(_SWEEP)]
        try:
            run.hear(_reports.decode(line))
        except ValueError as error:
            raise DemoError(f"{name}: {error}") from None
        is_victim = name == self._fleet.victim.run and run.killed_at is None
        if is_victim and run.state == "training" and run.step >= self._fleet.kill_at:
            process = self._crew.kill(name)
            board.note(f"sent SIGKILL to {name} at step {run.step} (process {process}), as if its machine had failed")
            run.killed()

    def _ended(self, name: str, code: int, board: Board) -> None:
        run = self._by_run[name.removeprefix(_SWEEP)]
        if code != 0 and name == run.recipe.run and run.state == "killed":
            run.killed()  # its last reports came after the signal was sent
            self._start(run.recipe)
            board.note(f"restarting {name} from its last checkpoint")
            return
        finished = run.state == "done" if name == run.recipe.run else len(run.sweep) == self.sweep_size(run)
        if code != 0 or not finished:
            log = self._crew.log(name)
            raise DemoError(f"training {name} ended early, with exit status {code}; see {log}\n{tail(log)}")


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
