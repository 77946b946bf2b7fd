"""The course of the demo, with processes that only pretend."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from mechanicd.demo import _fleet, _reports, _scenario
from mechanicd.demo._display import Board
from mechanicd.demo._reports import Finished, Started, Stepped
from mechanicd.demo._scenario import Conductor, Folder
from mechanicd.demo.processes import DemoError


class PretendedCrew:
    """Each training does ten steps a turn, and checkpoints as it is told to."""

    def __init__(self, failing: str = "", silent: str = "") -> None:
        self.started: list[tuple[str, Sequence[str]]] = []
        self.most_beside_a_new_sweep = 0
        self.failing, self.silent = failing, silent
        self._checkpoints: dict[str, int] = {}
        self._working: dict[str, Iterator[str | int]] = {}
        self._killed: set[str] = set()

    def __len__(self) -> int:
        return len(self._working)

    def log(self, name: str) -> Path:
        return Path("/nowhere") / f"{name}.log"

    def start(self, name: str, command: Sequence[str]) -> None:
        assert name not in self._working
        self.started.append((name, command))
        self._working[name] = self._sweep(command) if "--lr" in command else self._train(name, command)
        if "--lr" in command:
            self.most_beside_a_new_sweep = max(self.most_beside_a_new_sweep, len(self._working) - 1)

    def kill(self, name: str) -> int:
        self._killed.add(name)
        return 4711

    def listen(self, seconds: float) -> Iterator[tuple[str, str | int]]:
        for name, working in list(self._working.items()):
            if name in self._killed:
                self._killed.remove(name)
                del self._working[name]
                yield name, -9
                continue
            said = 1 if name == self.failing else next(working)
            if isinstance(said, int):
                del self._working[name]
            yield name, said

    def _train(self, name: str, command: Sequence[str]) -> Iterator[str | int]:
        option = dict(zip(command[2::2], command[3::2], strict=True))
        step, steps, every = self._checkpoints.get(name, 0), int(option["--steps"]), int(option["--checkpoint-every"])
        yield _reports.encode(Started(step))
        while step < steps:
            step += 5
            if step % every == 0:
                self._checkpoints[name] = step
            yield _reports.encode(Stepped(step, 1.0 / step, 0.01, math.nan))
        if name != self.silent:
            yield _reports.encode(Finished(None, 90.0, 0.1, 0.01, 1.0))
        yield 0

    def _sweep(self, command: Sequence[str]) -> Iterator[str | int]:
        for option, value in zip(command[2::2], command[3::2], strict=True):
            if option == "--lr":
                yield _reports.encode(Finished(float(value), 80.0, 0.1, float(value), 1.0))
        yield 0


def _conduct_quick(crew: PretendedCrew, *, sweeps: bool = True) -> tuple[Conductor, str]:
    conductor = Conductor(_fleet.quick(), sweeps, Folder(Path("/nowhere")), "127.0.0.1:1", crew)  # type: ignore[arg-type]
    file = io.StringIO()
    with Board(Console(file=file, width=200), conductor.runs, conductor.sweep_size) as board:
        conductor.conduct(board, lambda: None)
    return conductor, file.getvalue()


def test_the_whole_fleet_starts_at_once_and_the_sweeps_as_processors_come_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_scenario, "_processors", lambda: 2)
    crew, fleet = PretendedCrew(), _fleet.quick()
    conductor, _ = _conduct_quick(crew)
    names = [name for name, _ in crew.started]
    assert names[:3] == [recipe.run for recipe in fleet.recipes]
    assert sorted(names[4:]) == sorted(f"sweep of {recipe.run}" for recipe in fleet.recipes)
    assert crew.most_beside_a_new_sweep == 1
    for run in conductor.runs:
        assert run.state == "done"
        assert [one.lr for one in run.sweep] == list(fleet.learning_rates[run.recipe.base])


def test_the_victim_is_killed_once_and_goes_on_from_its_checkpoint():
    crew, fleet = PretendedCrew(), _fleet.quick()
    conductor, text = _conduct_quick(crew, sweeps=False)
    names = [name for name, _ in crew.started]
    assert names == [*(recipe.run for recipe in fleet.recipes), fleet.victim.run]
    assert crew.started[-1][1] == crew.started[names.index(fleet.victim.run)][1]
    (victim,) = (run for run in conductor.runs if run.killed_at is not None)
    assert victim.recipe == fleet.victim
    assert victim.resumed_from is not None
    assert victim.resumed_from % fleet.checkpoint_every == 0
    assert 0 < victim.resumed_from < victim.killed_at < victim.recipe.steps
    assert (victim.state, victim.differing) == ("done", 0)
    assert victim.repeated > 0
    assert f"SIGKILL to {fleet.victim.run} at step {victim.killed_at} (process 4711)" in text


def test_a_mechanized_run_and_its_sweep_share_all_but_the_learning_rate():
    crew = PretendedCrew()
    _conduct_quick(crew)
    commands = dict(crew.started)
    for recipe in _fleet.quick().recipes:
        shared = ["--model", recipe.model, "--base", recipe.base, "--batch", str(recipe.batch), "--steps", "200", "--seed", "0"]
        for command in (commands[recipe.run], commands[f"sweep of {recipe.run}"]):
            assert list(command[4:14]) == shared
        assert "--lr" not in commands[recipe.run]


def test_a_failed_training_ends_the_demo_and_is_named():
    with pytest.raises(DemoError, match=r"training mnist/mlp-adamw-b32 ended early, with exit status 1; see /nowhere"):
        _conduct_quick(PretendedCrew(failing="mnist/mlp-adamw-b32"))


def test_a_training_that_ends_without_a_result_has_failed():
    with pytest.raises(DemoError, match="ended early, with exit status 0"):
        _conduct_quick(PretendedCrew(silent="mnist/mlp-sgd-b128"))


def test_a_failed_sweep_ends_the_demo():
    with pytest.raises(DemoError, match="training sweep of mnist/mlp-sgd-b128 ended early"):
        _conduct_quick(PretendedCrew(failing="sweep of mnist/mlp-sgd-b128"))


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path):
    (tmp_path / "mechanicd.db").touch()
    with pytest.raises(DemoError, match="is not empty"):
        Folder(tmp_path).check()


def test_a_folder_is_made_with_its_parents(tmp_path: Path):
    folder = Folder(tmp_path / "a" / "b")
    folder.check()
    folder.make()
    assert folder.logs.is_dir()
    assert folder.checkpoints.is_dir()
    assert folder.store_url == f"sqlite:///{tmp_path}/a/b/mechanicd.db"
