"""What is still to be trained, and in which order. Pure."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from experiments import _judge
from experiments._catalogue import Experiment, Row, Training, sweep
from experiments._results import Record, current

_STEP_SECONDS: Final = {"logistic": 4e-4, "vision": 5e-3, "language": 2e-2, "translation": 6e-2, "finetune": 4e-1}
"""A guess of the time for a step on one core, used until a step is measured."""


@dataclass(frozen=True)
class Shard:
    """The i-th of n parts of the rows. A row is never split, because its sweep is widened by its own results.

    Attributes:
        i: which part, from 1.
        n: the number of parts.
        tasks: patterns; only rows whose task name matches one of them. Empty: all rows.
    """

    i: int = 1
    n: int = 1
    tasks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, tasks: Iterable[str] = ()) -> "Shard":
        """Raises ValueError if the text is not i/n with 1 ≤ i ≤ n."""
        i, slash, n = text.partition("/")
        if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
            raise ValueError(f"got {text!r}; expected i/n, such as 1/4 for the first of four parts")
        return cls(int(i), int(n), tuple(tasks))

    def has(self, row: Row) -> bool:
        named = not self.tasks or any(fnmatchcase(row.task.name, pattern) for pattern in self.tasks)
        return named and zlib.crc32(row.name.encode()) % self.n == self.i - 1


def trainings(experiments: Iterable[Experiment], records: Mapping[str, Record], shard: Shard = Shard()) -> list[Training]:
    """All trainings, each once, ended or not. The records decide how wide the sweeps are."""
    every: dict[str, Training] = {}
    for experiment in experiments:
        every.update((training.key, training) for training in experiment.trainings())
        for row in experiment.rows if experiment.sweep else ():
            every.update((training.key, training) for training in swept([experiment], row, records))
    return [training for training in every.values() if shard.has(training.row)]


def swept(experiments: Iterable[Experiment], row: Row, records: Mapping[str, Record]) -> Iterator[Training]:
    """The trainings of a row's sweep. The records decide how wide it is."""
    for experiment in experiments:
        if experiment.sweep and row in experiment.rows:
            for rate in _judge.rates(row, experiment.sweep_seeds, records):
                yield from (Training(row, sweep(rate), seed) for seed in experiment.sweep_seeds)


def pending(every: Sequence[Training], records: Mapping[str, Record]) -> list[Training]:
    """The trainings without a record, in order of seed, so that an interrupted run covers all problems; long ones first."""
    left = [training for training in every if current(training, records) is None]
    seconds = Guess(records)
    return sorted(left, key=lambda training: (training.seed, -seconds(training), training.key))


def started(training: Training, records: Mapping[str, Record]) -> Training | None:
    """The training with what it needs from others, or None while that is missing."""
    if training.source is None:
        return training
    record = current(training.source, records)
    return None if record is None else replace(training, start=record["scale"] or None)


class Guess:
    """How many seconds a training will take: as those of its row took, else by its family."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._by_row: dict[tuple[str, str], list[float]] = {}
        for record in records.values():
            spec = record["spec"]
            self._by_row.setdefault((spec["name"], spec["base"]), []).append(record["wall"])

    def __call__(self, training: Training) -> float:
        task = training.row.task
        measured = self._by_row.get((task.name, training.row.base))
        return sum(measured) / len(measured) if measured else _STEP_SECONDS[task.family] * task.steps
