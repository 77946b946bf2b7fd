"""Ranges of numbers for options: finite, and within what the contract and a clock can hold."""

import math
from typing import Any, Final

import click


class FiniteRange(click.FloatRange):
    """A number in a range. NaN is refused, which no comparison with a bound does; so are infinities."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


MOST_STEPS: Final = 2**62
"""The largest step that the contract takes."""
STEP: Final = click.IntRange(0, MOST_STEPS)
FIRST_STEP: Final = click.IntRange(1, MOST_STEPS)
BRANCH: Final = click.IntRange(0, 2**31)
DAYS: Final = FiniteRange(0.0, 36_500.0)
"""Up to a hundred years."""
