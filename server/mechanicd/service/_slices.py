"""Long work on the event loop is done in slices of a millisecond, between which the steps of all trainers are answered."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from time import perf_counter
from typing import Final, TypeVar

T = TypeVar("T")

SLICE_SECONDS: Final = 0.001


async def sliced(items: Iterable[T]) -> AsyncIterator[T]:
    """The items in their order, each made when it is asked for. Others run in between, and may change what is not copied."""
    end = perf_counter() + SLICE_SECONDS
    for item in items:
        yield item
        if perf_counter() >= end:
            await asyncio.sleep(0)
            end = perf_counter() + SLICE_SECONDS
