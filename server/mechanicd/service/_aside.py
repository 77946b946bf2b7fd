"""Work on the states of runs with very many scale groups, on another thread: numpy does it, and trainers take their steps."""

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from mechanicd.tuner import TunerConfig

P = ParamSpec("P")
T = TypeVar("T")

_MANY_CELLS: Final = 2**15
"""Betas times scale groups from which on a state takes milliseconds to read or write."""


async def aside(config: TunerConfig, function: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """What a function returns, run by another thread if states of this config are large."""
    if len(config.betas) * len(config.scale_groups) < _MANY_CELLS:
        return function(*arguments, **settings)
    return await asyncio.to_thread(function, *arguments, **settings)
