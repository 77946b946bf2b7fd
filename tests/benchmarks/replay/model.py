"""Reductions that look like trainings': a closed loop with the tuner, over the columns of many runs at once.

A column is one scale group of one run. Its ⟨Δ,g⟩ is noise around a pull: below the S that the column is to have the gradients
say "go on" (h < 0), above it "back". What S it is to have, and when, is the run's fate. No tuner is in here: whoever drives
this hands it the S that the tuner gave, so the S of the history is the tuner's own.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from replay.plans import Plan

Array = NDArray[np.float64]
_SPIKES: Final = 2e-5


class Model:
    """The columns of some runs that have the same number of scale groups G: C = runs · G of them, a run's side by side.

    Args:
        plans: the runs.
        seed: with it and the plans' own seeds, the numbers are the same again, where the blocks asked for are.
    """

    def __init__(self, plans: Sequence[Plan], seed: int = 0) -> None:
        self.plans = plans
        self.groups = len(plans[0].scale_groups)
        self._rng = np.random.default_rng([seed, *(plan.seed for plan in plans[:64])])
        own = [np.random.default_rng(plan.seed) for plan in plans]

        def per_column(draw: Any) -> Array:
            return np.concatenate([np.asarray(draw(rng), dtype=np.float64) for rng in own])

        count = self.groups
        self._steps = np.repeat([float(plan.steps) for plan in plans], count)
        self._plateau = per_column(lambda rng: rng.normal(-2.3, 0.7) + rng.normal(0.0, 0.35, count))
        self._noise = per_column(lambda rng: np.full(count, np.exp(rng.normal(0.5, 0.3))))
        self._phase = per_column(lambda rng: rng.uniform(0.0, 2 * np.pi, count))
        self._gradient = per_column(lambda rng: np.exp(rng.normal(0.0, 0.8, count)))
        self._weights = per_column(lambda rng: np.exp(rng.normal(4.0, 0.5, count)))
        self._peak_lr = np.array([10 ** rng.uniform(-0.3, 0.0) for rng in own])
        self._without_lr = np.array([rng.random() < 0.1 for rng in own])
        fates = np.repeat([plan.fate for plan in plans], count)
        self._is = {fate: fates == fate for fate in set(fates.tolist())}
        self.may_be_bad = "non_finite" in self._is

    def wanted(self, step: Array) -> Array:
        """log10 of the S that each column is drawn to, shape (C,).

        Args:
            step: t of each column, shape (C,).
        """
        part = step / self._steps
        target = self._plateau - 0.5 * np.log10(1.0 + 9.0 * part) + 0.08 * np.sin(2 * np.pi * 3.0 * part + self._phase)
        for fate, mask in self._is.items():
            if fate == "stuck":
                target = np.where(mask, -30.0, target)
            elif fate == "collapsed":
                target = np.where(mask & (part > 0.7), -30.0, target)
            elif fate == "running_away":
                target = np.where(mask & (part > 0.8), target + 60.0 * (part - 0.8), target)
            elif fate == "oscillating":
                high = np.sin(2 * np.pi * 15.0 * part + self._phase) > 0.0
                target = np.where(mask & (part > 0.2), target + np.where(high, 1.0, -1.0), target)
        return target

    def noise(self, steps: int) -> Array:
        """What `reductions` needs of chance for this many steps, shape (steps, 3, C)."""
        return self._rng.standard_normal((steps, 3, len(self._steps)), dtype=np.float32).astype(np.float64)

    def reductions(self, step: Array, wanted: Array, S: Array, noise: Array) -> Array:
        """⟨Δ,g⟩, ⟨Δ,x⟩, ‖g‖², ‖x‖² of each column, shape (4, C).

        Args:
            step: t of each column, shape (C,).
            wanted: of `wanted`; it may be some steps old.
            S: S_t that the tuner gave, shape (C,).
            noise: one step of `noise`, shape (3, C).
        """
        pull = np.tanh(2.0 * (np.log10(np.maximum(S, 1e-30)) - wanted))
        size = self._gradient * (1.0 + step / 50.0) ** -0.2
        norm = size * np.exp(0.15 * noise[1])
        if self._rng.random() < _SPIKES * len(step):
            norm[self._rng.integers(len(step))] *= 50.0
        distance = np.sqrt(step - 1.0)
        delta_dot_g = np.where(step > 1.0, size * (pull + self._noise * noise[0]), 0.0)
        delta_dot_x = distance * (0.3 + 0.05 * noise[2])
        length = self._weights * (1.0 + 0.2 * step / self._steps)
        if "running_away" in self._is:
            length = np.where(self._is["running_away"], length * (1.0 + np.minimum(S, 1e12)), length)
        out = np.stack((delta_dot_g, delta_dot_x, norm * norm, length * length))
        if self.may_be_bad:
            bad = self._is["non_finite"] & (np.abs(noise[2]) > np.where(step > 0.97 * self._steps, 1.0, 3.3))
            out[0, bad] = np.nan
            out[2, bad] = np.inf
        return out

    def base_lr(self, step: Array) -> Array:
        """BASE's learning rate of each run: warm-up and cosine, NaN where the trainer sends none. All of shape (runs,)."""
        part = np.clip(step / self._steps[:: self.groups], 0.0, 1.0)
        lr = self._peak_lr * np.minimum(part / 0.03, 1.0) * (0.05 + 0.95 * 0.5 * (1.0 + np.cos(np.pi * part)))
        return np.where(self._without_lr, np.nan, lr)
