"""Ranges of numbers for options: finite, and within what the contract and a clock can hold."""

import math
import re
from typing import Any, Final

import click


class WholeRange(click.IntRange):
    """A whole number in a range, in plain digits: not 1_000, and no digits of other scripts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, str) and not _WHOLE.fullmatch(value):
            self.fail(f"{value[:80]!r} is not a whole number.", param, ctx)
        number: int = super().convert(value, param, ctx)
        return number


class FiniteRange(click.FloatRange):
    """A number in a range. NaN is refused, which no comparison with a bound does; so are infinities."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str) and ("_" in value or not value.isascii()):
            self.fail(f"{value[:80]!r} is not a number.", param, ctx)
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,4000}")  # of more digits Python makes no int
MOST_STEPS: Final = 2**62
"""The largest step that the contract takes."""
STEP: Final = WholeRange(0, MOST_STEPS)
FIRST_STEP: Final = WholeRange(1, MOST_STEPS)
BRANCH: Final = WholeRange(0, 2**31)
DAYS: Final = FiniteRange(0.0, 36_500.0)
"""Up to a hundred years."""
