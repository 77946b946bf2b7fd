"""What the tests of spool files share: they train one run, `bert/seed0`, and read its file."""

from pathlib import Path
from typing import Any

from mechanicd.client import Session, open_run
from mechanicd.client import _spool_history as spool_history

ROOT = Path(__file__).parents[2]


def open_bert(target: str, **settings: Any) -> Session:
    return open_run(target, "bert/seed0", **{"start": 0, **settings})


def history_of(file: Path) -> spool_history.History:
    with file.open("rb") as reader:
        return spool_history.read_history(reader, file)


def steps_of(file: Path) -> list[tuple[int, float]]:
    """(step, S) of each step of each session."""
    history = history_of(file)
    with file.open("rb") as reader:
        found = [list(spool_history.steps(reader, opening)) for opening in history.openings]
    return [(step.step, step.scale[0]) for session in found for step in session]
