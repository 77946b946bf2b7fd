"""The report's plots: matplotlib, saved as PNG with few colors, so that they stay small."""

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from experiments import _claims
from experiments._catalogue import ABLATIONS, BATCHES, DEFAULTS, GROUP_ARMS, MECHANIC, PEER_ARMS, SIZES, Arm, Experiment
from experiments._comparison import TITLES, Compared, ramp
from experiments._results import Record

matplotlib.use("Agg")

_DPI: Final = 100
_COLOURS: Final = 128
_FAMILIES: Final = {"logistic": "C0", "vision": "C1", "language": "C2", "translation": "C4", "finetune": "C3"}
_BASES: Final = {"sgd": "o", "adamw": "s", "lion": "^"}
_ARMS: Final = {MECHANIC: "C3", **{arm: f"C{i}" for arm, i in zip(PEER_ARMS, (0, 2, 4, 5), strict=True)}}


def _save(figure: Figure, path: Path) -> None:
    """Saves a PNG with few colors; the same figure always gives the same bytes."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=_DPI, bbox_inches="tight", format="png")
    picture = Image.open(drawn).convert("RGB").quantize(_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _legend(axes: Any, **style: Any) -> None:
    """Adds a legend if anything has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**style)


def scales(rows: Sequence[Compared], path: Path) -> None:
    """The S that MECHANIC found, against the best rate of the sweep."""
    figure, (axes,) = _figure(1, 1, 6.4, 5.2)
    points = [(row, row.best.scale, row.arms[MECHANIC].scale) for row in rows if row.best is not None and MECHANIC in row.arms]
    for row, best, found in points:
        family = row.row.task.family
        axes.plot(best, found, _BASES[row.row.base], color=_FAMILIES[family], alpha=0.75, markersize=6)
    ends = [value for _, *both in points for value in both if value > 0] or [1e-3, 1.0]
    line = [min(ends) / 2, max(ends) * 2]
    axes.plot(line, line, color="0.6", linewidth=1, zorder=0)
    axes.fill_between(line, [x / 10**0.5 for x in line], [x * 10**0.5 for x in line], color="0.92", zorder=-1)
    axes.set(xscale="log", yscale="log", xlabel="best learning rate of the sweep", ylabel="S at the end of training")
    for family, colour in _FAMILIES.items():
        axes.plot([], [], "o", color=colour, label=family)
    for base, marker in _BASES.items():
        axes.plot([], [], marker, color="0.4", label=base)
    _legend(axes, fontsize=8, ncols=2)
    axes.set_title("What MECHANIC finds, and what a sweep finds (band: within half a decade)", fontsize=10)
    _save(figure, path)


def gaps(rows: Sequence[Compared], path: Path) -> None:
    """How far each method is from the best of the sweep, row by row; one panel per experiment and metric."""
    panels: dict[str, list[Compared]] = {}
    for row in rows:
        unit = "points of accuracy" if row.row.task.metric == "accuracy" else "nats"
        panels.setdefault(f"{row.experiment} ({unit})", []).append(row)
    heights = [max(1.2, 0.17 * len(panel) + 0.6) for panel in panels.values()]
    figure = Figure(figsize=(8.5, sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).flat
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        names = [row.row.name.partition("/")[2] for row in panel]
        for arm, colour in _ARMS.items():
            pairs = [(row.gap(arm), place) for place, row in enumerate(panel)]
            shown = [(gap, place) for gap, place in pairs if gap is not None and math.isfinite(gap)]
            axes.plot(
                [gap for gap, _ in shown],
                [place for _, place in shown],
                "D" if arm == MECHANIC else "o",
                color=colour,
                markersize=5 if arm == MECHANIC else 3.5,
                alpha=0.8,
                label=TITLES[arm.name],
            )
        axes.axvline(0.0, color="0.5", linewidth=1)
        axes.set_xscale("symlog", linthresh=1.0 if "accuracy" in title else 0.05)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(f"{title}: better than the best of the sweep →", fontsize=8)
        axes.grid(axis="x", color="0.9")
    _legend(figure.axes[0], fontsize=7, loc="lower left")
    _save(figure, path)


def curves(rows: Sequence[Compared], path: Path) -> None:
    """Training loss over the steps, one seed each: all rows but the logistic regressions, and some of those."""
    chosen = [row for row in rows if row.experiment != "logistic"] + [row for row in rows if row.experiment == "logistic"][:6]
    columns = 4
    lines = max(1, math.ceil(len(chosen) / columns))
    figure, all_axes = _figure(lines, columns, 11.0, 1.9 * lines)
    for axes in all_axes[len(chosen) :]:
        axes.set_axis_off()
    for axes, row in zip(all_axes, chosen, strict=False):
        drawn = [(row.best, "0.5"), *((row.arms.get(arm), colour) for arm, colour in _ARMS.items())]
        for outcome, colour in drawn:
            if outcome is not None:
                points = [(step, loss) for step, _, loss in outcome.records[0]["curve"] if loss is not None]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1)
        axes.set_title(row.row.name, fontsize=7)
        axes.set_yscale("log")
        axes.tick_params(labelsize=6, which="both")
    for arm, colour in _ARMS.items():
        all_axes[0].plot([], [], color=colour, label=TITLES[arm.name])
    all_axes[0].plot([], [], color="0.5", label="best of sweep")
    _legend(all_axes[0], fontsize=5)
    figure.suptitle("Training loss over the steps (seed 0)", fontsize=9)
    _save(figure, path)


def over_scale(experiment: Experiment, records: Mapping[str, Record], path: Path) -> None:
    """S over the steps, by batch for each size and by size for each batch."""
    figure, all_axes = _figure(2, 4, 11.0, 4.6)
    by_size = [(f"model {size}", [(f"batch {b}", size, b) for b in BATCHES]) for size in SIZES]
    by_batch = [(f"batch {b}", [(size, size, b) for size in SIZES]) for b in BATCHES]
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (title, cells) in zip([*all_axes[:3], *all_axes[4:]], [*by_size, *by_batch], strict=True):
        axes.set_axis_on()
        for number, (label, size, batch) in enumerate(cells):
            outcome = _claims.cell(experiment, size, batch, records)
            if outcome is not None:
                axes.plot(
                    *_mean_scale(outcome.records), color=matplotlib.colormaps["viridis"](number / len(cells)), label=label
                )
        axes.set(yscale="log")
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6, which="both")
        _legend(axes, fontsize=6)
    figure.suptitle("S over the steps, mean over the seeds: by batch size (top), by model size (bottom)", fontsize=9)
    _save(figure, path)


def _mean_scale(records: Iterable[Record]) -> tuple[list[int], list[float]]:
    every = [record["curve"] for record in records]
    steps = [step for step, *_ in every[0]]
    return steps, [fmean(curve[i][1] or 0.0 for curve in every) for i in range(min(map(len, every)))]


def ablations(experiment: Experiment, records: Mapping[str, Record], path: Path) -> None:
    """The metric over the values of each setting: one line per row, with error bars."""
    figure, all_axes = _figure(len(experiment.rows), len(ABLATIONS), 11.0, 2.2 * len(experiment.rows))
    pairs = [(row, setting) for row in experiment.rows for setting in ABLATIONS]
    for axes, (row, setting) in zip(all_axes, pairs, strict=True):
        found = [(v, o) for v, o in _claims.ablation(experiment, row, setting, records).items() if o is not None]
        shown = [(place, outcome) for place, (_, outcome) in enumerate(found) if math.isfinite(outcome.mean)]
        spreads = [0.0 if math.isnan(outcome.spread) else outcome.spread for _, outcome in shown]
        axes.errorbar([place for place, _ in shown], [o.mean for _, o in shown], spreads, fmt="o-", color="C3", capsize=3)
        axes.set_xticks(range(len(found)), [f"{value:g}" + ("*" if value == DEFAULTS[setting] else "") for value, _ in found])
        axes.set_title(f"{row.name}: {setting}", fontsize=8)
        axes.tick_params(labelsize=6)
    figure.suptitle("Test metric over each setting of MECHANIC (* the default; bars: spread over the seeds)", fontsize=9)
    _save(figure, path)


def ramps(rows: Sequence[Compared], path: Path) -> None:
    """Whether MECHANIC loses where S rises slowly, and what one S per tensor changes."""
    figure, (left, right) = _figure(1, 2, 10.0, 3.8)
    for row in rows:
        outcome, gap = row.arms.get(MECHANIC), row.gap(MECHANIC)
        share = None if outcome is None else ramp(outcome)
        colour = _FAMILIES[row.row.task.family]
        if gap is None or not math.isfinite(gap):
            continue
        if share is not None:
            left.plot(100.0 * share, gap, _BASES[row.row.base], color=colour, alpha=0.75)
        other = row.gap(GROUP_ARMS[-1])
        if other is not None and math.isfinite(other):
            right.plot(gap, other, _BASES[row.row.base], color=colour, alpha=0.75)
    left.set_xlabel("% of the steps until S reaches half of its later value", fontsize=8)
    left.set_ylabel("MECHANIC − best of sweep", fontsize=8)
    right.set_xlabel("one S: MECHANIC − best of sweep", fontsize=8)
    right.set_ylabel("one S per tensor: MECHANIC − best of sweep", fontsize=8)
    right.axline((0.0, 0.0), slope=1.0, color="0.6", linewidth=1)
    for axes in (left, right):
        axes.set_yscale("symlog", linthresh=1.0)
        axes.axhline(0.0, color="0.6", linewidth=1)
        axes.tick_params(labelsize=7)
    right.set_xscale("symlog", linthresh=1.0)
    for family, colour in _FAMILIES.items():
        left.plot([], [], "o", color=colour, label=family)
    _legend(left, fontsize=7)
    _save(figure, path)


def bars(counts: Sequence[tuple[Arm, tuple[int, int, int]]], path: Path) -> None:
    """Wins, ties and losses of each arm against the best of the sweep."""
    figure, (axes,) = _figure(1, 1, 7.5, 0.32 * len(counts) + 0.9)
    for place, (_, (wins, ties, losses)) in enumerate(counts):
        total = max(1, wins + ties + losses)
        start = 0.0
        for number, colour in ((wins, "C2"), (ties, "0.75"), (losses, "C3")):
            axes.barh(place, 100.0 * number / total, left=start, color=colour)
            if number:
                axes.text(start + 50.0 * number / total, place, str(number), ha="center", va="center", fontsize=7)
            start += 100.0 * number / total
    axes.axvline(80.0, color="k", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(counts)), [TITLES[arm.name] for arm, _ in counts], fontsize=7)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlabel("% of problems: wins, ties, losses against the best of a sweep", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    _save(figure, path)
