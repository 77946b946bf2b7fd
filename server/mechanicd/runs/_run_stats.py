"""Statistics of a run's steps, a few numbers stored with its row, so that judging a run reads no history. Pure.

S here is the largest of the scale groups.
"""

import json
import math
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mechanicd.runs import _records
from mechanicd.runs._values import StepOutcome
from mechanicd.tuner import CONVENTIONS, TunerConfig

LEFT: Final = 30.0
"""S has left its first scale once it is this many times as large."""
SWING: Final = 10.0
"""S has turned once it is this factor away from its last extreme."""
TURNS: Final = 8
MARK_STEPS: Final = 64
RETURNS: Final = 8


class Mark(NamedTuple):
    """A snapshot of a run at a step: S, ‖x‖ (of all groups together), and the number of non-finite steps so far."""

    step: int
    scale: float
    x_norm: float
    non_finite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStats:
    """The statistics of a run after its last step.

    Attributes:
        since: they cover the steps after this one; a rewind or an adopted state starts them over.
        base_lr: BASE's learning rate, the last that was sent.
        tuned, non_finite, held: how many steps there were of each outcome.
        non_finite_step: the last non-finite step; 0: none.
        non_finite_streak, held_streak: how many steps in a row, up to the last one, had this outcome.
        left_step: the first step at which S was above `LEFT` times its first scale; 0: none.
        peak, peak_step: the largest S, and where.
        trough, trough_step: the smallest positive S since then, and where.
        turns: the last `TURNS` steps at which S was at an extreme, and then went `SWING` times away from it.
        heading: 1 while S rises from the last turn, −1 while it falls, 0 before it moved by `SWING`.
        pivot, pivot_step: the extreme of S since the last turn, and where.
        marks: the run at the last two multiples of `MARK_STEPS`, and at the first step.
        away: when the trainer's connection ended without the session being closed (ns since 1970); 0 while it is there.
        returns: when the session came back (ns since 1970), the last `RETURNS` times.
        seen: when its server last noted that the trainer is there although no step comes (ns since 1970); 0: never.
    """

    since: int = 0
    base_lr: float | None = None
    tuned: int = 0
    non_finite: int = 0
    held: int = 0
    non_finite_step: int = 0
    non_finite_streak: int = 0
    held_streak: int = 0
    left_step: int = 0
    peak: float = 0.0
    peak_step: int = 0
    trough: float = 0.0
    trough_step: int = 0
    turns: tuple[int, ...] = ()
    heading: int = 0
    pivot: float = 0.0
    pivot_step: int = 0
    marks: tuple[Mark, ...] = ()
    away: int = 0
    returns: tuple[int, ...] = ()
    seen: int = 0

    def after(self, groups: int, first_scale: float, records: bytes) -> "RunStats":
        """The statistics after the next steps, given as packed records in order.

        Args:
            first_scale: see `first_scale`.
        """
        rows = np.frombuffer(records, _records.dtype(groups))
        if not len(rows):
            return self
        steps, outcome, values = rows["step"], rows["outcome"], rows["values"]
        scale = values[:, 5, :].max(axis=1)
        lr = np.flatnonzero(rows["has_lr"])
        non_finite, held = outcome == StepOutcome.NON_FINITE, outcome == StepOutcome.HELD
        count, bad = len(rows), np.flatnonzero(non_finite)
        new: dict[str, Any] = {
            "tuned": self.tuned + int(np.count_nonzero(outcome == StepOutcome.TUNED)),
            "non_finite": self.non_finite + len(bad),
            "held": self.held + int(np.count_nonzero(held)),
            "non_finite_streak": _streak(self.non_finite_streak, non_finite),
            "held_streak": _streak(self.held_streak, held),
        }
        if len(lr):
            new["base_lr"] = float(rows["base_lr"][lr[-1]])
        if len(bad):
            new["non_finite_step"] = int(steps[bad[-1]])
        if not self.left_step:
            left = np.flatnonzero(scale > LEFT * first_scale)
            if len(left):
                new["left_step"] = int(steps[left[0]])
        top = int(scale.argmax())
        begin = 0
        if scale[top] > self.peak:
            new.update(peak=float(scale[top]), peak_step=int(steps[top]), trough=float(scale[top]), trough_step=int(steps[top]))
            begin = top
        tail = scale[begin:]
        low = begin + int(np.where(tail > 0, tail, np.inf).argmin())
        trough = new.get("trough", self.trough)
        if 0 < scale[low] < trough or (scale[low] > 0 and not trough):
            new.update(trough=float(scale[low]), trough_step=int(steps[low]))
        new["marks"] = self._marked(steps, scale, values, non_finite)
        return replace(self, **new, **self._turned(steps[:count], scale))

    def came_back(self, time: int) -> "RunStats":
        """The session reconnected at `time` (ns since 1970)."""
        return replace(self, away=0, returns=(*self.returns, time)[-RETURNS:])

    def _marked(self, steps: NDArray[Any], scale: NDArray[Any], values: NDArray[Any], bad: NDArray[Any]) -> tuple[Mark, ...]:
        marked = np.flatnonzero(steps % MARK_STEPS == 0)[-2:].tolist()
        if not self.marks and (not marked or marked[0]):
            marked.insert(0, 0)
        if not marked:
            return self.marks
        total = self.non_finite + np.cumsum(bad)
        new = [
            Mark(int(steps[i]), float(scale[i]), math.sqrt(max(0.0, float(values[i, 3, :].sum()))), int(total[i]))
            for i in marked
        ]
        return (*self.marks, *new)[-2:]

    def _turned(self, steps: NDArray[Any], scale: NDArray[Any]) -> dict[str, Any]:
        """The turning points of S. Only local extremes within a flush can matter."""
        if len(scale) > 2:
            slope = np.subtract(scale[1:] > scale[:-1], scale[1:] < scale[:-1], dtype=np.int8)
            chosen = np.concatenate(([True], slope[1:] != slope[:-1], [True]))
            steps, scale = steps[chosen], scale[chosen]
        turns, heading, pivot, pivot_step = self.turns, self.heading, self.pivot, self.pivot_step
        for step, value in zip(steps.tolist(), scale.tolist(), strict=True):
            if value <= 0:
                continue
            if not pivot:
                pivot, pivot_step = value, step
            elif heading >= 0 and value * SWING < pivot:
                turns = (*turns, pivot_step)[-TURNS:] if heading else turns
                heading, pivot, pivot_step = -1, value, step
            elif heading <= 0 and value > pivot * SWING:
                turns = (*turns, pivot_step)[-TURNS:] if heading else turns
                heading, pivot, pivot_step = 1, value, step
            elif (heading > 0 and value > pivot) or (heading < 0 and value < pivot):
                pivot, pivot_step = value, step
        return {"turns": turns, "heading": heading, "pivot": pivot, "pivot_step": pivot_step}

    def to_text(self) -> str:
        """JSON with only the fields that differ from their defaults."""
        return json.dumps({name: value for name, new in _NEW.items() if (value := getattr(self, name)) != new})

    @classmethod
    def from_text(cls, text: str) -> "RunStats":
        """The inverse of `to_text`. Fields from a newer mechanicd are ignored.

        Raises:
            ValueError: the text is damaged.
        """
        if not text:
            return cls()
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("the statistics are nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("the statistics are no JSON object")
        if not values.keys() <= _NEW.keys():
            values = {name: value for name, value in values.items() if name in _NEW}
        try:
            for name in _TUPLES & values.keys():
                values[name] = tuple(values[name])
            if "marks" in values:
                values["marks"] = tuple(map(Mark._make, values["marks"]))
            wrong = [name for name, value in values.items() if not _is_possible(name, value)]
        except TypeError:
            raise ValueError("a list of the statistics is none") from None
        if wrong:
            raise ValueError(f"{wrong[0]} is nothing that steps have")
        return cls(**values)


def _plausible(name: str, value: object) -> bool:
    """Whether a value that was read has the type of its field: readers must not meet anything else."""
    if isinstance(value, Mark):
        return all(type(count) is int and count >= 0 for count in (value.step, value.non_finite)) and all(
            type(number) in (int, float) for number in (value.scale, value.x_norm)
        )
    if isinstance(value, tuple):
        return all(_plausible(name, each) for each in value)
    if isinstance(_NEW[name], int | tuple):
        return type(value) is int and (value >= 0 or name == "heading")
    return type(value) in (int, float)


def first_scale(config: TunerConfig) -> float:
    """Roughly the S at which a run begins; 0 if that depends on the data."""
    return CONVENTIONS[config.convention].first_scale(config)


_TUPLES: Final = {"turns", "returns"}
_NEW: Final = {each.name: each.default for each in fields(RunStats)}


def _is_possible(name: str, value: Any) -> bool:
    """Whether a value of this name can have been written by `to_text`."""
    match _NEW[name]:
        case int():
            return _is_count(value) or (name == "heading" and value == -1)
        case float():
            return _is_number(value)
        case None:
            return value is None or _is_number(value)
    if name != "marks":
        return all(map(_is_count, value))
    counts, numbers = (mark[::3] for mark in value), (mark[1:3] for mark in value)
    return all(map(_is_count, chain.from_iterable(counts))) and all(map(_is_number, chain.from_iterable(numbers)))


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _streak(before: int, which: NDArray[Any]) -> int:
    """The length of the streak at the end."""
    others = np.flatnonzero(~which)
    return len(which) - 1 - int(others[-1]) if len(others) else before + len(which)
