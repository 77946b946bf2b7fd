"""The rows of the main experiments, with every method that was compared on them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experiments import _judge
from experiments._catalogue import DECAY_ARM, GROUP_ARMS, MECHANIC, OPTION_ARMS, PEER_ARMS, START_ARMS, Arm, Experiment, Row
from experiments._judge import Outcome, Verdict
from experiments._results import Record

COMPARED: Final = (MECHANIC, *PEER_ARMS, *GROUP_ARMS, *OPTION_ARMS, *START_ARMS, DECAY_ARM)
TITLES: Final[Mapping[str, str]] = {
    "mechanic": "MECHANIC",
    "dadaptation": "D-adaptation",
    "prodigy": "Prodigy",
    "schedulefree": "schedule-free",
    "mechanic-pytorch": "mechanic-pytorch",
    "mechanic--scale_groups-param_group": "MECHANIC, one S per param group",
    "mechanic--scale_groups-tensor": "MECHANIC, one S per tensor",
    "mechanic--convention-optax": "MECHANIC, convention optax",
    "mechanic--s_init-0.0001": "MECHANIC, s_init = 1e-4",
    "mechanic--scale_groups-tensor--s_init-0.0001": "MECHANIC, one S per tensor, s_init = 1e-4",
    "mechanic--warm_start-next-seed": "MECHANIC, warm start",
    "mechanic--s_decay-0.1": "MECHANIC, λ = 0.1",
}


@dataclass(frozen=True)
class Compared:
    """A row, the best of its sweep, and the arms that have results; each should have `expected` seeds."""

    experiment: str
    row: Row
    best: Outcome | None
    arms: Mapping[Arm, Outcome]
    expected: int

    def verdict(self, arm: Arm, other: Arm | None = None) -> Verdict | None:
        """The verdict on an arm against the best of the sweep, or against another arm; None if one of them has no result."""
        one, two = self.arms.get(arm), self.best if other is None else self.arms.get(other)
        return None if one is None or two is None else _judge.verdict(one, two)

    def gap(self, arm: Arm) -> float | None:
        """How much better than the best of the sweep, in points or nats."""
        one = self.arms.get(arm)
        return None if one is None or self.best is None else _judge.difference(one, self.best)

    @property
    def found(self) -> float | None:
        """S that MECHANIC found ÷ the best rate of the sweep."""
        one = self.arms.get(MECHANIC)
        return None if one is None or self.best is None else one.scale / self.best.scale


@dataclass(frozen=True)
class Count:
    """Wins, ties, losses, and comparisons that can't be judged."""

    win: int = 0
    tie: int = 0
    loss: int = 0
    unclear: int = 0

    @property
    def judged(self) -> int:
        return self.win + self.tie + self.loss

    @property
    def as_good(self) -> float:
        """The share of wins and ties in percent; NaN if nothing was judged."""
        return 100.0 * (self.win + self.tie) / self.judged if self.judged else float("nan")


def compare(experiments: Sequence[Experiment], records: Mapping[str, Record]) -> list[Compared]:
    """All rows of the experiments that sweep all seeds, with or without results."""
    rows = []
    for experiment in experiments:
        if experiment.sweep and experiment.name != "scale":
            for row in experiment.rows:
                best = _judge.best_of_sweep(row, experiment.sweep_seeds, records)
                found = {arm: _judge.outcome(row, arm, experiment.seeds, records) for arm in COMPARED if arm.applies(row.base)}
                arms = {arm: outcome for arm, outcome in found.items() if outcome is not None}
                rows.append(Compared(experiment.name, row, best, arms, len(experiment.seeds)))
    return rows


def count(rows: Sequence[Compared], arm: Arm, other: Arm | None = None) -> Count:
    """How an arm does against the best of the sweep, or another arm, over rows."""
    verdicts = [row.verdict(arm, other) for row in rows]
    return Count(*(verdicts.count(kind) for kind in ("win", "tie", "loss", "unclear")))


def ramp(outcome: Outcome) -> float | None:
    """The share of the steps until S reached half of its median over the second half of the training; the mean over seeds."""
    shares = []
    for record in outcome.records:
        points = [(step, scale or 0.0) for step, scale, _ in record["curve"]]
        later = sorted(scale for _, scale in points[len(points) // 2 :])
        if not later or later[len(later) // 2] <= 0.0:
            return None
        half = later[len(later) // 2] / 2.0
        shares.append(next(step for step, scale in points if scale >= half) / record["spec"]["steps"])
    return sum(shares) / len(shares) if shares else None
