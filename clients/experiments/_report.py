"""The report: one Markdown file and its plots, made only from the results. A missing result appears as a dash."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from experiments import _claims, _judge, _paper, _plan, _plots
from experiments._catalogue import (
    ABLATIONS,
    BATCHES,
    DECAY_ARM,
    DEFAULTS,
    GROUP_ARMS,
    MECHANIC,
    OPTION_ARMS,
    PEER_ARMS,
    SIZES,
    START_ARMS,
    WARMUP,
    Arm,
    Experiment,
)
from experiments._comparison import TITLES, Compared, Count, compare, count, ramp
from experiments._judge import Outcome
from experiments._results import Record, current

_SIGNS: Final = {"win": "▲", "tie": "=", "loss": "▼", "unclear": "?"}
_TABLE_ARMS: Final = (MECHANIC, *PEER_ARMS)
_OTHER_ARMS: Final = (*GROUP_ARMS, *OPTION_ARMS, *START_ARMS)
_MENDING_ARMS: Final = _OTHER_ARMS[1:]  # one S per param group changes little, because there are only two groups
_SHORT: Final = {arm: TITLES[arm.name].removeprefix("MECHANIC, ") for arm in _OTHER_ARMS}

Lines = list[str]

_RULES: Final = f"""\
- **Methods.** Every method has the same data, model, batches, steps, clipping, weight decay and schedule: a linear warm-up
  over the first {100 * WARMUP:.0f} % of the steps, then a linear decay to 0. MECHANIC, mechanic-pytorch, D-adaptation and
  Prodigy run at learning rate 1 with their defaults (Prodigy with `safeguard_warmup` and bias correction, as its authors advise
  for a warm-up). Schedule-free has only the warm-up, and its package's default learning rate; before it is tested, batch norms
  see 50 batches with its averaged parameters.
- **Sweeps.** A sweep has five rates, half a decade apart. It is extended at an edge until the best rate has a neighbor on
  either side. The rate is selected by the mean metric on the validation set; ties are decided by the validation loss. The
  report shows the metric on the test set at the last step.
- **Win, tie, loss.** The difference d of two means over n₁ and n₂ seeds is a tie if
  |d| ≤ √(t²·(s₁²/n₁ + s₂²/n₂) + 1.96²·q). The first term is the noise of the seeds: s is the standard deviation over them,
  and t is Student's 95 % quantile for n₁+n₂−2 degrees of freedom. The second term is the noise of a test set with N examples.
  For an accuracy, q is the variance over the examples of (how often one method classifies an example correctly) − (how often
  the other does), divided by N; for a loss, q = 0. A run that diverged loses.
- **Signs.** ▲ is a win, = a tie, ▼ a loss, ? can't be judged (a single seed), all against the best of the sweep."""


def write(folder: Path, records: Mapping[str, Record], experiments: Sequence[Experiment], quick: bool) -> Path:
    """Writes README.md and its plots into a folder. Returns the path of README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {experiment.name: experiment for experiment in experiments}
    rows = compare(experiments, records)
    claims = _claims.judge(experiments, rows, records)
    counts = [(arm, count(rows, arm)) for arm in (*_TABLE_ARMS, *_OTHER_ARMS)]
    _plots.bars([(arm, (each.win, each.tie, each.loss)) for arm, each in counts], folder / "counts.png")
    _plots.scales(rows, folder / "scales.png")
    _plots.gaps(rows, folder / "gaps.png")
    _plots.curves(rows, folder / "curves.png")
    _plots.over_scale(by_name["scale"], records, folder / "scale.png")
    _plots.ablations(by_name["ablations"], records, folder / "ablations.png")
    _plots.ramps(rows, folder / "ramps.png")
    lines = [
        *_head(rows, claims, quick),
        *_conditions(records, experiments),
        *_first_table(rows, by_name),
        *_counted(rows),
        *_said_claims(claims),
        *_scale_table(by_name["scale"], records),
        *_ablation_tables(by_name["ablations"], records),
        *_groups(rows),
        *_why(rows),
        *_missing(experiments, records),
    ]
    page = folder / "README.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


# ---- parts


def _head(rows: Sequence[Compared], claims: Sequence[_claims.Claim], quick: bool) -> Lines:
    found = count(rows, MECHANIC)
    against = count(rows, MECHANIC, PEER_ARMS[0])
    marks = Counter(claim.mark for claim in claims)
    lines = ["# Is it worth having?", ""]
    if quick:
        lines += [
            "**Made with `--quick`: one seed, few steps. It shows that everything works, and says nothing about the methods.**",
            "",
        ]
    return [
        *lines,
        f"The experiments of {_paper.SOURCE}, at small scale,",
        "on real data that ships inside packages, because the paper's own data is not available offline. The paper's figures",
        "are shown for orientation only: data, models and budgets differ.",
        "",
        f"- Against the best of a sweep, MECHANIC wins on {found.win}, ties on {found.tie} and loses on {found.loss} of "
        f"{len(rows)} problems" + (f" ({found.unclear} can't be judged)" if found.unclear else "") + f". It is as good on "
        f"{_number(found.as_good, '.0f')} % (aim: 80 %).",
        f"- Against D-adaptation it wins on {against.win}, ties on {against.tie} and loses on {against.loss}.",
        "- With other settings it is as good as the best of the sweep on the shares below. A warm start sets s_init to the",
        "  final S of the same problem with another seed. The last two settings were added after the results of the others had",
        "  been seen; the first of these two was not used for fine-tuning.",
        *_options_counted(rows),
        f"- Of the paper's {len(claims)} claims, {marks['confirmed']} are confirmed here, {marks['not confirmed']} are not, "
        f"and {marks['unclear']} are unclear.",
        "",
        "![wins, ties, losses](counts.png)",
        "",
        "![S against the best rate](scales.png)",
        "",
    ]


def _options_counted(rows: Sequence[Compared]) -> Lines:
    """For each option, how often it is as good as the best of the sweep."""
    counts = [(arm, count(rows, arm)) for arm in _OTHER_ARMS]
    return [
        f"  - {_SHORT[arm]}: {_number(found.as_good, '.0f')} % of {found.judged} ({found.win} wins, {found.loss} losses)"
        for arm, found in counts
    ]


def _conditions(records: Mapping[str, Record], experiments: Sequence[Experiment]) -> Lines:
    every = _plan.trainings(experiments, records)
    ended = [(training.row.name, record) for training in every if (record := current(training, records)) is not None]
    machines = Counter(record.get("machine", "unknown") for _, record in ended)
    machines_of = Counter(problem for problem, _ in {(problem, record.get("machine", "unknown")) for problem, record in ended})
    hours = sum(record["wall"] for _, record in ended) / 3600.0
    days = sorted({record["when"][:10] for _, record in ended if "when" in record})
    seeds = sorted({training.seed for training in every})
    each = {experiment.name: len({training.key for training in experiment.trainings()}) for experiment in experiments}
    return [
        "## Conditions",
        "",
        f"- {len(ended)} of {len(every)} training runs have ended, after {hours:.1f} hours of training in all"
        + (f" ({', '.join(days)})." if days else "."),
        f"- Seeds {', '.join(map(str, seeds))} determine the model's initialization and the order of the batches.",
        "- Each run had one thread:",
        *(f"  - {number} on {machine}" for machine, number in machines.most_common()),
        f"- Of {len(machines_of)} problems, including the scale experiment's, {sum(n > 1 for n in machines_of.values())} were "
        "trained on more than one of these machines, whose sums differ in the last bits.",
        *_RULES.splitlines(),
        "- Runs by experiment (a run that several experiments share is trained once): "
        + ", ".join(f"{name} {number}" for name, number in each.items()),
        "",
    ]


def _first_table(rows: Sequence[Compared], by_name: Mapping[str, Experiment]) -> Lines:
    headings = ["problem / BASE", "best of sweep", "at rate", *(TITLES[arm.name] for arm in _TABLE_ARMS), "S ÷ best rate"]
    lines = [
        "## All problems",
        "",
        "Test accuracy in percent (higher is better) or test loss in nats per token (lower is better), as mean ± standard "
        "deviation over the seeds.",
        "",
    ]
    for name in dict.fromkeys(row.experiment for row in rows):
        experiment = by_name[name]
        lines += [f"### {experiment.about} ({experiment.paper})", "", f"*The paper:* {_paper.FIGURES[name]}", ""]
        extra = [DECAY_ARM] if name == "vision" else []
        titles = [*headings, *(TITLES[arm.name] for arm in extra)]
        lines += [_row(titles), _row(["---"] * len(titles))]
        for row in rows:
            if row.experiment == name:
                lines.append(_row([*_compared(row), *(_cell(row, arm) for arm in extra)]))
        lines.append("")
    return [*lines, "![gaps](gaps.png)", "", "![training loss](curves.png)", ""]


def _compared(row: Compared) -> list[str]:
    best = "–" if row.best is None else _value(row.best)
    rate = "–" if row.best is None else f"{row.best.scale:g}"
    found = "–" if row.found is None else _number(row.found, ".2g")
    return [row.row.name, best, rate, *(_cell(row, arm) for arm in _TABLE_ARMS), found]


def _cell(row: Compared, arm: Arm) -> str:
    if not arm.applies(row.row.base):
        return "no such BASE"
    outcome = row.arms.get(arm)
    verdict = row.verdict(arm)
    return "–" if outcome is None else f"{_value(outcome)} {_SIGNS.get(verdict or '', '')}".rstrip()


def _counted(rows: Sequence[Compared]) -> Lines:
    arms = (*_TABLE_ARMS, *_OTHER_ARMS, DECAY_ARM)
    lines = ["## Counts", "", "Against the best of the sweep, by the rule above:", ""]
    lines += [_row(["method", "wins", "ties", "losses", "can't be judged", "as good on"]), _row(["---"] * 6)]
    for arm in arms:
        found = count(rows, arm)
        lines.append(_row([TITLES[arm.name], *map(str, _four(found)), f"{_number(found.as_good, '.0f')} %"]))
    lines += ["", "MECHANIC against each peer:", ""]
    lines += [_row(["peer", "wins", "ties", "losses", "can't be judged"]), _row(["---"] * 5)]
    for arm in PEER_ARMS:
        lines.append(_row([TITLES[arm.name], *map(str, _four(count(rows, MECHANIC, arm)))]))
    lines += ["", "MECHANIC against the best of the sweep, by experiment:", ""]
    lines += [_row(["experiment", "wins", "ties", "losses", "can't be judged"]), _row(["---"] * 5)]
    for name in dict.fromkeys(row.experiment for row in rows):
        of_it = [row for row in rows if row.experiment == name]
        lines.append(_row([name, *map(str, _four(count(of_it, MECHANIC)))]))
    return [*lines, ""]


def _four(found: Count) -> tuple[int, int, int, int]:
    return found.win, found.tie, found.loss, found.unclear


def _said_claims(claims: Sequence[_claims.Claim]) -> Lines:
    lines = [
        "## The paper's claims",
        "",
        _row(["the paper says", "here", "result", "rule", "figure"]),
        _row(["---"] * 5),
    ]
    lines += [
        _row([claim.says, f"**{claim.mark}**", claim.seen, claim.rule, f"[{claim.plot}]({claim.plot}.png)"]) for claim in claims
    ]
    return [*lines, ""]


def _scale_table(experiment: Experiment, records: Mapping[str, Record]) -> Lines:
    lines = [
        "## S against batch size and model size",
        "",
        f"*The paper:* {_paper.FIGURES['scale']}",
        "",
        "S at the end (geometric mean over the seeds; in parentheses the best rate of a sweep with one seed):",
        "",
        _row(["model", *(f"batch {batch}" for batch in BATCHES)]),
        _row(["---"] * (1 + len(BATCHES))),
    ]
    for size in SIZES:
        cells = []
        for batch in BATCHES:
            found = _claims.cell(experiment, size, batch, records)
            rows = [row for row in experiment.rows if row.task.model == f"decoder-{size}" and row.task.batch == batch]
            best = _judge.best_of_sweep(rows[0], experiment.sweep_seeds, records) if rows else None
            cells.append("–" if found is None else f"{found.scale:.2e}" + ("" if best is None else f" ({best.scale:g})"))
        lines.append(_row([f"width×depth {size}", *cells]))
    return [*lines, "", "![S over the steps](scale.png)", ""]


def _ablation_tables(experiment: Experiment, records: Mapping[str, Record]) -> Lines:
    lines = ["## Settings (Tables 3 to 6)", ""]
    for setting, values in ABLATIONS.items():
        table, what, figures = _paper.ABLATIONS[setting]
        lines += [
            f"### {setting} ({table})",
            "",
            _row(["", *(f"{value:g}" + (" *" if value == DEFAULTS[setting] else "") for value in map(float, values))]),
            _row(["---"] * (1 + len(values))),
            _row([f"paper: {what}", *(figures[float(value)] for value in values)]),
        ]
        for row in experiment.rows:
            outcomes = _claims.ablation(experiment, row, setting, records)
            default = outcomes[DEFAULTS[setting]]
            cells = []
            for value, outcome in outcomes.items():
                compared = outcome is not None and default is not None and value != DEFAULTS[setting]
                sign = _SIGNS[_judge.verdict(outcome, default)] if compared and outcome and default else ""
                cells.append("–" if outcome is None else f"{_value(outcome)} {sign}".rstrip())
            lines.append(_row([row.name, *cells]))
        lines.append("")
    return [*lines, "Signs are against the default (*).", "", "![settings](ablations.png)", ""]


def _groups(rows: Sequence[Compared]) -> Lines:
    arms = (MECHANIC, *_OTHER_ARMS)
    lines = [
        "## One S per group, and other options",
        "",
        f"*The paper:* {_paper.FIGURES['groups']}",
        "",
        _row(["problem / BASE", *(TITLES[arm.name] for arm in arms)]),
        _row(["---"] * (1 + len(arms))),
    ]
    for row in rows:
        cells = [_cell(row, MECHANIC)]
        for arm in arms[1:]:
            outcome, verdict = row.arms.get(arm), row.verdict(arm, MECHANIC)
            cells.append("–" if outcome is None else f"{_value(outcome)} {_SIGNS.get(verdict or '', '')}".rstrip())
        lines.append(_row([row.row.name, *cells]))
    lines += ["", "The signs of the first column are against the best of the sweep, those of the others against MECHANIC with"]
    lines += ["one S:", "", _row(["", "wins", "ties", "losses", "can't be judged"]), _row(["---"] * 5)]
    for arm in arms[1:]:
        lines.append(_row([TITLES[arm.name], *map(str, _four(count(rows, arm, MECHANIC)))]))
    return [*lines, ""]


def _why(rows: Sequence[Compared]) -> Lines:
    lines = [
        "## Where it loses, and why",
        "",
        "Ramp: the share of the steps until S reaches half of its median over the second half of the training.",
        "",
        _row(
            [
                "problem / BASE",
                "behind by",
                "ramp",
                "S ÷ best rate",
                "training loss ÷ sweep's",
                *(TITLES[a.name] for a in _MENDING_ARMS),
            ]
        ),
        _row(["---"] * (5 + len(_MENDING_ARMS))),
    ]
    losses = [row for row in rows if row.verdict(MECHANIC) == "loss"]
    for row in sorted(losses, key=lambda row: (row.row.task.metric, row.gap(MECHANIC) or 0.0)):
        assert row.best is not None
        mechanic = row.arms[MECHANIC]
        share = ramp(mechanic)
        unit = "points" if row.row.task.metric == "accuracy" else "nats"
        lines.append(
            _row(
                [
                    row.row.name,
                    f"{_number(-(row.gap(MECHANIC) or 0.0), '.3g')} {unit}",
                    "–" if share is None else f"{100 * share:.0f} %",
                    "–" if row.found is None else _number(row.found, ".2g"),
                    _number(_train_loss(mechanic) / _train_loss(row.best), ".2f"),
                    *(_SIGNS.get(row.verdict(arm) or "", "–") for arm in _MENDING_ARMS),
                ]
            )
        )
    mended = [(arm, Counter(row.verdict(arm) for row in losses)) for arm in _OTHER_ARMS]
    kept = [f"{_SHORT[arm]} {found['tie'] + found['win']}" for arm, found in mended]
    lines += ["", f"Of these {len(losses)}, each option wins or ties on: {'; '.join(kept)}."]
    families = dict.fromkeys(row.row.task.family for row in rows)
    summary = [_row(["family", "median ramp", "median S ÷ best rate", "problems"]), _row(["---"] * 4)]
    for family in families:
        of_it = [row for row in rows if row.row.task.family == family and MECHANIC in row.arms]
        shares = [share for row in of_it if (share := ramp(row.arms[MECHANIC])) is not None]
        ratios = [row.found for row in of_it if row.found is not None]
        summary.append(
            _row(
                [family, _median(shares, lambda x: f"{100 * x:.0f} %"), _median(ratios, lambda x: f"{x:.2g}"), str(len(of_it))]
            )
        )
    return [*lines, "", "The options' signs are against the best of the sweep.", "", *summary, "", "![ramps](ramps.png)", ""]


def _train_loss(outcome: Outcome) -> float:
    losses = [math.nan if record["train_loss"] is None else record["train_loss"] for record in outcome.records]
    return sum(losses) / len(losses) or math.nan


def _missing(experiments: Sequence[Experiment], records: Mapping[str, Record]) -> Lines:
    every = _plan.trainings(experiments, records)
    missing = Counter(training.row.name for training in every if current(training, records) is None)
    diverged = Counter(
        f"{training.row.name} {training.arm.name}"
        for training in every
        if (record := current(training, records)) is not None and record["diverged"] and training.arm.method != "sweep"
    )
    lines = ["## What is missing", ""]
    if missing:
        lines += [f"- {sum(missing.values())} runs have no result yet: " + _list(missing)]
    else:
        lines += ["- Every run of the list has a result."]
    lines += ["- Runs that diverged, other than in sweeps: " + (_list(diverged) if diverged else "none")]
    return lines


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in sorted(counts.items()))


# ---- numbers


def _value(outcome: Outcome) -> str:
    digits = 1 if outcome.metric == "accuracy" else 3
    if not math.isfinite(outcome.mean):
        return "diverged"
    spread = "" if math.isnan(outcome.spread) else f" ± {outcome.spread:.{digits}f}"
    return f"{outcome.mean:.{digits}f}{spread}"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _median(values: Iterable[float], form: Callable[[float], str]) -> str:
    ordered = sorted(value for value in values if math.isfinite(value))
    return form(ordered[len(ordered) // 2]) if ordered else "–"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
