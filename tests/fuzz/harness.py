"""What all fuzz targets share: inputs that follow from a seed, their bounds, and what is told of one that is at fault.

Plain `random`: with millions of inputs of microseconds each, what makes them must take microseconds, too.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import process_time
from typing import Any, Final

from mechanicd.service._memory import trim

SECONDS: Final = 1.0
"""Of CPU time: the most that one input may take."""
MEBIBYTES: Final = 20.0
"""The most memory that a target may leave behind, measured from its first tenth on, when caches are full."""
KEPT: Final = Path(".mechanicd/fuzz")
"""Where inputs at fault are written."""


class AtFault(AssertionError):
    """An input that does what no input may do."""


@dataclass
class Meter:
    """Counts inputs, and holds each to its time.

    Attributes:
        count: of inputs.
        worst: CPU seconds of the slowest.
        said: how often each outcome came: "" for one that was taken, else the reason or class of the refusal.
    """

    count: int = 0
    worst: float = 0.0
    said: Counter[str] = field(default_factory=Counter)

    def add(self, seconds: float, said: str = "") -> None:
        """One more input."""
        self.count += 1
        self.said[said] += 1
        if seconds > self.worst:
            self.worst = seconds
            if seconds > SECONDS:
                raise AtFault(f"it takes {seconds:.2f} s of CPU; the bound is {SECONDS:g} s")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that takes what comes from outside.

    Attributes:
        name: for reproductions.
        make: an input. What it draws decides all.
        take: takes it; other exceptions than `refused` are findings.
        refused: the errors that may come of it.
        covers: the functions that it is about.
        rounds: how many `make soak` draws.
        quick: how many `make test` draws.
        inputs: of how many a round consists; where there are several, `take` adds each to the meter.
    """

    name: str
    make: Callable[[Random], Any]
    take: Callable[..., Any]
    refused: tuple[type[BaseException], ...] = ()
    covers: tuple[Callable[..., Any], ...] = ()
    rounds: int = 40_000
    quick: int = 60
    inputs: int = 1

    def one(self, seed: int, number: int, meter: Meter) -> None:
        """The input of this number.

        Raises:
            AtFault: with a line that repeats it.
        """
        rng = Random(seed * 2**32 + number)
        made = self.make(rng)
        try:
            if self.inputs > 1:
                self.take(made, meter)
                return
            said, begun = "", process_time()
            try:
                self.take(made)
            except self.refused as error:
                said = getattr(error, "reason", type(error).__name__)
                str(error).encode("utf-8", "backslashreplace")
            meter.add(process_time() - begun, said)
        except Exception as error:
            raise self._at_fault(seed, number, made, error) from error

    def _at_fault(self, seed: int, number: int, made: Any, error: Exception) -> AtFault:
        line = f"MECHANICD_SEED={seed} .venv/bin/python -m tests.fuzz {self.name} {number}"
        text = f"{line}\n{type(error).__name__}: {error}\n\n{made!r}\n"
        KEPT.mkdir(parents=True, exist_ok=True)
        kept = KEPT / f"{self.name}-{seed}-{number}.txt"
        kept.write_text(text, "utf-8", "backslashreplace")
        shown = repr(made)
        return AtFault(f"{type(error).__name__}: {error}; again: {line}; input ({kept}): {shown[:600]}")


@dataclass(frozen=True)
class Report:
    """What a campaign of one target found."""

    name: str
    meter: Meter
    cpu: float
    before: float
    after: float

    def __str__(self) -> str:
        said = ", ".join(f"{reason or 'taken'} {count:,}" for reason, count in self.meter.said.most_common())
        each = 1e6 * self.cpu / max(1, self.meter.count)
        return (
            f"{self.name}: {self.meter.count:,} inputs, {self.cpu:.1f} s of CPU ({each:.0f} µs each), worst "
            f"{1000 * self.meter.worst:.1f} ms, memory {self.before:.1f} → {self.after:.1f} MiB; {said}"
        )


def campaign(target: Target, seed: int, rounds: int, *, weighed: bool = True) -> Report:
    """So many inputs of a target.

    Args:
        weighed: whether memory is looked at, which takes longer than a thousand inputs.

    Raises:
        AtFault: by the first that is at fault.
    """
    meter, begun, before = Meter(), process_time(), 0.0
    with quiet() as errors:
        for number in range(rounds):
            if weighed and number == rounds // 10:
                before = memory()
            target.one(seed, number, meter)
            if errors:
                raise AtFault(
                    f"{errors[0]}; again: MECHANICD_SEED={seed} .venv/bin/python -m tests.fuzz {target.name} {number}"
                )
    return Report(target.name, meter, process_time() - begun, before, memory() if weighed else 0.0)


def memory() -> float:
    """What this process has in memory, in MiB, without what is free."""
    gc.collect()
    trim()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no Linux: the highest so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Nothing is logged; what would have been logged with a traceback is a finding, and is gathered."""
    found: list[str] = []
    handler = _Tracebacks(found)
    loggers = [logging.getLogger(name) for name in ("mechanicd", "asyncio", "uvicorn")]
    before = [(each, each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
        each.propagate = False
        each.addHandler(handler)
    try:
        yield found
    finally:
        for each, level, propagate in before:
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate


class _Tracebacks(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            self._found.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


def seed() -> int:
    """The seed of a reproduction."""
    return int(os.environ.get("MECHANICD_SEED", "1"))


def run(scene: Any) -> Any:
    """The result of a coroutine in an event loop of its own, whose forgotten exceptions are logged, so found."""
    return asyncio.run(scene)
