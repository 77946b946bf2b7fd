"""Who won: the best rate of a sweep, means and spreads, and wins, ties and losses by one rule. Pure.

The rate is selected by the mean over the seeds of the metric on the validation set; ties are decided by the loss there. The
report shows the metric on the test set.

The rule: the difference d of two means over n₁ and n₂ seeds is a tie if |d| ≤ √(t²·(s₁²/n₁ + s₂²/n₂) + 1.96²·q). The first
term is the noise of the seeds: s is the standard deviation over them, and t is Student's two-sided 95 % quantile for n₁+n₂−2
degrees of freedom. The second is the noise of a test set with N examples. For an accuracy, q is the variance over the examples
of (how often one method classifies an example correctly) − (how often the other does), divided by N. For a loss, q = 0. A run
that diverged loses to any that did not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from experiments._catalogue import Arm, Metric, Row, Training, start_of_sweep, sweep, widened
from experiments._results import Record, current, decode

Verdict = Literal["win", "tie", "loss", "unclear"]

_QUANTILES: Final = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


@dataclass(frozen=True)
class Outcome:
    """The outcome of an arm on a row.

    Attributes:
        arm: the arm; for a sweep, the one that was selected.
        values: the metric on the test set, one per seed; infinitely bad if the run diverged.
        scales: S (or d, or lr) at the end, one per seed.
        records: the results that it was computed from.
    """

    arm: Arm
    metric: Metric
    values: tuple[float, ...]
    scales: tuple[float, ...]
    records: tuple[Record, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; NaN if there is only one or one diverged."""
        finite = all(map(math.isfinite, self.values))
        return stdev(self.values) if finite and len(self.values) > 1 else math.nan

    @property
    def scale(self) -> float:
        """The geometric mean over the seeds; NaN if no S is above 0."""
        positive = [scale for scale in self.scales if scale > 0]
        return math.exp(fmean(map(math.log, positive))) if positive else math.nan


def outcome(row: Row, arm: Arm, seeds: Iterable[int], records: Mapping[str, Record]) -> Outcome | None:
    """The outcome of an arm over the seeds that have ended; None if none has."""
    found = [record for seed in seeds if (record := current(Training(row, arm, seed), records)) is not None]
    if not found:
        return None
    metric = row.task.metric
    values = tuple(_value(record, "test", metric) for record in found)
    scales = tuple(record["scale"] or 0.0 for record in found)
    return Outcome(arm, metric, values, scales, tuple(found))


def rates(row: Row, seeds: Sequence[int], records: Mapping[str, Record]) -> tuple[float, ...]:
    """The rates of the sweep: five, and more until the best one has a neighbor on either side.

    The sweep is extended only after all its rates have ended, so the last rate may not be trained yet.
    """
    tried = list(start_of_sweep(row))
    while all(_complete(row, rate, seeds, records) for rate in tried):
        best = selected(row, tried, seeds, records)
        following = None if best is None else widened(tried, best)
        if following is None:
            break
        tried.append(following)
    return tuple(sorted(tried))


def selected(row: Row, tried: Iterable[float], seeds: Sequence[int], records: Mapping[str, Record]) -> float | None:
    """The best rate on the validation set; None if none has ended."""
    scored: list[tuple[float, float, float]] = []
    for rate in tried:
        found = [record for seed in seeds if (record := current(Training(row, sweep(rate), seed), records)) is not None]
        if found:
            sign = _sign(row.task.metric)
            by_metric = fmean(sign * _value(record, "val", row.task.metric) for record in found)
            by_loss = fmean(-_value(record, "val", "loss") for record in found)
            scored.append((by_metric, by_loss, rate))
    return max(scored)[2] if scored else None


def best_of_sweep(row: Row, seeds: Sequence[int], records: Mapping[str, Record]) -> Outcome | None:
    """The outcome of the selected rate."""
    rate = selected(row, rates(row, seeds, records), seeds, records)
    return None if rate is None else outcome(row, sweep(rate), seeds, records)


def difference(one: Outcome, other: Outcome) -> float:
    """How much better `one` is than `other`: points of accuracy, or nats."""
    if one.mean == other.mean:
        return 0.0
    return _sign(one.metric) * (one.mean - other.mean)


def noise(one: Outcome, other: Outcome) -> float:
    """The largest difference that is a tie; NaN if a spread is not known."""
    freedom = len(one.values) + len(other.values) - 2
    quantile = _QUANTILES.get(freedom, 1.96) if freedom >= min(_QUANTILES) else math.nan
    seeds = one.spread**2 / len(one.values) + other.spread**2 / len(other.values)
    return math.sqrt(quantile**2 * seeds + 1.96**2 * _chance_of_test(one, other))


def _chance_of_test(one: Outcome, other: Outcome) -> float:
    """q, in points squared."""
    if one.metric == "loss":
        return 0.0
    apart = 100.0 * (_named(one) - _named(other))
    return float(apart.var() / len(apart))


def _named(outcome: Outcome) -> NDArray[np.float64]:
    """For each example of the test set, the share of the seeds that classify it correctly."""
    flags = [decode(record["right"], record["test"]["count"]) for record in outcome.records]
    share: NDArray[np.float64] = np.mean(flags, axis=0, dtype=np.float64)
    return share


def verdict(one: Outcome, other: Outcome) -> Verdict:
    """Whether `one` wins over, ties with or loses to `other`."""
    if not (math.isfinite(one.mean) and math.isfinite(other.mean)):
        if math.isfinite(one.mean) == math.isfinite(other.mean):
            return "tie"
        return "win" if math.isfinite(one.mean) else "loss"
    gap, within = difference(one, other), noise(one, other)
    if math.isnan(within):
        return "unclear"
    if abs(gap) <= within:
        return "tie"
    return "win" if gap > 0 else "loss"


def _complete(row: Row, rate: float, seeds: Sequence[int], records: Mapping[str, Record]) -> bool:
    return all(current(Training(row, sweep(rate), seed), records) is not None for seed in seeds)


def _sign(metric: Metric) -> float:
    return 1.0 if metric == "accuracy" else -1.0


def _value(record: Record, part: str, metric: Metric) -> float:
    value: Any = record[part][metric]
    if value is None or (record["diverged"] and metric == "loss"):
        return -_sign(metric) * math.inf
    return -math.inf if record["diverged"] else float(value)
