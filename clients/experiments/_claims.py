"""The paper's qualitative claims, each confirmed, not confirmed or unclear here, by a rule that the report states. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final, Literal

from experiments import _judge
from experiments._catalogue import (
    ABLATIONS,
    BATCHES,
    DECAY_ARM,
    DEFAULTS,
    MECHANIC,
    PEER_ARMS,
    SIZES,
    Experiment,
    Row,
    Setting,
    ablated,
)
from experiments._comparison import Compared, count
from experiments._judge import Outcome
from experiments._results import Record

Mark = Literal["confirmed", "not confirmed", "unclear"]

_DADAPTATION: Final = PEER_ARMS[0]
_F: Final = {2: 39.0, 4: 9.60, 6: 5.82}  # two-sided 95 % quantile of F with as many degrees of freedom on either side
_T: Final = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}


@dataclass(frozen=True)
class Claim:
    """What the paper says, the result here, and the rule for the mark.

    Attributes:
        plot: the name of its figure in the report.
    """

    says: str
    mark: Mark
    seen: str
    rule: str
    plot: str


def judge(experiments: Sequence[Experiment], rows: Sequence[Compared], records: Mapping[str, Record]) -> list[Claim]:
    """All claims."""
    by_name = {experiment.name: experiment for experiment in experiments}
    scale, ablations = by_name["scale"], by_name["ablations"]
    return [
        _as_good(rows),
        _ahead_of_dadaptation(rows),
        _grows_with_batch(scale, records),
        _falls_with_size(scale, records),
        _insensitive(ablations, "base_lr", "the learning rate of BASE does not matter", records),
        _insensitive(ablations, "s_init", "s_init does not matter", records),
        _less_variance(ablations, records),
        _decay_on_vision(rows),
        _six_is_best(ablations, records),
        _worse_with_dropout(rows),
    ]


def _as_good(rows: Sequence[Compared]) -> Claim:
    found = count(rows, MECHANIC)
    mark: Mark = "unclear" if not found.judged else "confirmed" if found.as_good >= 80.0 else "not confirmed"
    seen = f"{found.win} wins, {found.tie} ties, {found.loss} losses" + (
        f": as good on {found.as_good:.0f} %" if found.judged else ""
    )
    rule = "as good as the best of the sweep on 80 % of the problems"
    return Claim("it comes close to, matches or improves on manual tuning", mark, seen, rule, "gaps")


def _ahead_of_dadaptation(rows: Sequence[Compared]) -> Claim:
    found = count(rows, MECHANIC, _DADAPTATION)
    ahead, behind = found.win > found.judged / 2, found.loss > found.judged / 2
    mark: Mark = "unclear" if not found.judged else "confirmed" if ahead else "not confirmed" if behind else "unclear"
    seen = f"against D-adaptation {found.win} wins, {found.tie} ties, {found.loss} losses"
    return Claim(
        "it is ahead of D-adaptation",
        mark,
        seen,
        "confirmed if it wins on most problems, not confirmed if it loses on most",
        "gaps",
    )


# ---- S


def cell(experiment: Experiment, size: str, batch: int, records: Mapping[str, Record]) -> Outcome | None:
    """MECHANIC on Brown with a model size and a batch size."""
    for row in experiment.rows:
        if row.task.model == f"decoder-{size}" and row.task.batch == batch:
            return _judge.outcome(row, MECHANIC, experiment.seeds, records)
    return None


def _grows_with_batch(experiment: Experiment, records: Mapping[str, Record]) -> Claim:
    low, high = BATCHES[0], BATCHES[-1]
    pairs = [
        (f"{size}: batch {low} → {high}", cell(experiment, size, low, records), cell(experiment, size, high, records))
        for size in SIZES
    ]
    return _trend("S falls with a smaller batch", "smallest and largest batch", pairs, 1.0)


def _falls_with_size(experiment: Experiment, records: Mapping[str, Record]) -> Claim:
    small, large = SIZES[0], SIZES[-1]
    pairs = [
        (f"batch {b}: {small} → {large}", cell(experiment, small, b, records), cell(experiment, large, b, records))
        for b in BATCHES
    ]
    return _trend("S falls with a larger model", "smallest and largest model", pairs, -1.0)


def _trend(says: str, ends: str, pairs: Sequence[tuple[str, Outcome | None, Outcome | None]], sign: float) -> Claim:
    """Whether log S changes in one direction from the first of each pair to the second, by more than its noise."""
    rule = f"for every row, log S of the {ends} differs in this direction, at 95 % over the seeds"
    signs, seen = [], []
    for name, first, second in pairs:
        if first is None or second is None or min(len(first.scales), len(second.scales)) < 2:
            continue
        one, two = ([math.log(max(scale, 1e-30)) for scale in each.scales] for each in (first, second))
        within = _T[min(7, len(one) + len(two) - 2)] * math.sqrt(stdev(one) ** 2 / len(one) + stdev(two) ** 2 / len(two))
        change = fmean(two) - fmean(one)
        signs.append(0 if abs(change) <= within else math.copysign(1.0, change * sign))
        seen.append(f"{name}: × {math.exp(change):.2f}")
    mark: Mark = "unclear"
    if len(signs) == len(pairs):
        mark = "confirmed" if min(signs) > 0 else "not confirmed" if max(signs) <= 0 else "unclear"
    return Claim(says, mark, "; ".join(seen) or "no results", rule, "scale")


# ---- settings


def ablation(experiment: Experiment, row: Row, setting: str, records: Mapping[str, Record]) -> dict[Setting, Outcome | None]:
    """The outcome of each value of a setting on a row."""
    return {
        value: _judge.outcome(row, ablated(setting, value), experiment.seeds, records) for value in ABLATIONS[setting]
    }  # fmt: skip


def _against_default(experiment: Experiment, setting: str, records: Mapping[str, Record]) -> tuple[list[str], str]:
    """The verdicts on all other values against the default, on all rows; and the same in words."""
    verdicts: list[str] = []
    seen: list[str] = []
    for row in experiment.rows:
        outcomes = ablation(experiment, row, setting, records)
        default = outcomes[DEFAULTS[setting]]
        for value, other in outcomes.items():
            if value != DEFAULTS[setting]:
                verdict = "missing" if default is None or other is None else _judge.verdict(other, default)
                verdicts.append(verdict)
                if verdict != "tie":
                    seen.append(f"{row.name} at {value:g}: {verdict}")
    return verdicts, "; ".join(seen) or "all values tie with the default"


def _insensitive(experiment: Experiment, setting: str, says: str, records: Mapping[str, Record]) -> Claim:
    verdicts, seen = _against_default(experiment, setting, records)
    mark: Mark = "confirmed"
    if "loss" in verdicts or "win" in verdicts:
        mark = "not confirmed"
    elif set(verdicts) - {"tie"}:
        mark = "unclear"
    return Claim(says, mark, seen, "every value ties with the default on both rows", "ablations")


def _six_is_best(experiment: Experiment, records: Mapping[str, Record]) -> Claim:
    verdicts, seen = _against_default(experiment, "n", records)
    mark: Mark = "unclear"
    if "win" in verdicts:
        mark = "not confirmed"
    elif "loss" in verdicts and not set(verdicts) - {"tie", "loss"}:
        mark = "confirmed"
    rule = "no other n wins over 6 on either row, and at least one loses; unclear if all tie"
    return Claim("n = 6 is best", mark, seen, rule, "ablations")


def _less_variance(experiment: Experiment, records: Mapping[str, Record]) -> Claim:
    without, with_it, freedom = 0.0, 0.0, 0
    for row in experiment.rows:
        outcomes = ablation(experiment, row, "s_decay", records)
        zero, default = outcomes[0.0], outcomes[DEFAULTS["s_decay"]]
        if zero is None or default is None or math.isnan(zero.spread) or math.isnan(default.spread):
            continue
        unit = abs(default.mean)  # so that rows of different metrics can be added
        without += (zero.spread / unit) ** 2
        with_it += (default.spread / unit) ** 2
        freedom += len(default.values) - 1
    rule = "the variance over the seeds, relative to the mean, summed over the rows, is smaller with λ = 0.01 than 0 (F, 95 %)"
    says = "λ reduces the variance of results"
    if not freedom or not with_it or not without:
        return Claim(says, "unclear", "no results", rule, "ablations")
    ratio, bound = without / with_it, _F.get(freedom, 39.0)
    mark: Mark = "confirmed" if ratio > bound else "not confirmed" if ratio < 1.0 / bound else "unclear"
    return Claim(says, mark, f"variance without ÷ with: {ratio:.2g}; confirmed above {bound:.3g}", rule, "ablations")


def _decay_on_vision(rows: Sequence[Compared]) -> Claim:
    found = count([row for row in rows if row.experiment == "vision"], DECAY_ARM, MECHANIC)
    mark: Mark = "unclear"
    if found.judged:
        mark = "confirmed" if found.win > found.loss else "not confirmed" if found.loss > found.win else "unclear"
    seen = f"λ = 0.1 against 0.01: {found.win} wins, {found.tie} ties, {found.loss} losses"
    return Claim("a larger λ helps on small vision data", mark, seen, "more wins than losses on the vision rows", "gaps")


# ---- dropout


def _worse_with_dropout(rows: Sequence[Compared]) -> Claim:
    gaps: dict[tuple[str, str], dict[float, float]] = {}
    for row in rows:
        gap = row.gap(MECHANIC)
        if row.experiment == "finetune" and gap is not None and math.isfinite(gap):
            gaps.setdefault((row.row.task.data, row.row.base), {})[row.row.task.dropout] = gap
    changes = {key: by[0.1] - by[0.0] for key, by in gaps.items() if {0.0, 0.1} <= set(by)}
    says = "it does worse with dropout"
    rule = "the mean gap to the sweep, over the pairs of rows, is worse with dropout 0.1 than with 0 (t, 95 %)"
    if len(changes) < 2:
        return Claim(says, "unclear", "no results", rule, "gaps")
    mean = fmean(changes.values())
    within = _T[len(changes) - 1] * stdev(changes.values()) / math.sqrt(len(changes))
    mark: Mark = "unclear" if abs(mean) <= within else "confirmed" if mean < 0 else "not confirmed"
    each = "; ".join(f"{data}/{base} {change:+.2f}" for (data, base), change in changes.items())
    return Claim(says, mark, f"the gap changes by {mean:+.2f} ± {within:.2f} points ({each})", rule, "gaps")
