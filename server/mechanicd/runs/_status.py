"""A run's status at a given time: a running run that has gone quiet is silent. Pure."""

from dataclasses import dataclass, replace

from mechanicd.runs._model import RunRow
from mechanicd.runs._values import RunStatus


@dataclass(frozen=True, slots=True)
class Silence:
    """When a running run counts as silent: after `factor` times its usual step interval, but never before `seconds`."""

    factor: float = 20.0
    seconds: float = 30.0


def judged(row: RunRow, now: int, silence: Silence) -> RunRow:
    """The run with its status at `now` (ns since 1970): RUNNING becomes SILENT if no step has arrived for too long."""
    if row.status != RunStatus.RUNNING:
        return row
    quiet = (now - max(row.step_time, row.open_time, row.create_time)) / 1e9
    usual = row.interval / 1e9
    if quiet <= max(silence.seconds, silence.factor * usual):
        return row
    rhythm = f"usually one every {duration(usual)}" if usual else "no usual interval known yet"
    return replace(row, status=RunStatus.SILENT, status_message=f"no step for {duration(quiet)}; {rhythm}")


def not_ahead(row: RunRow, now: int) -> RunRow:
    """The run as it was read at `now` (ns since 1970): whatever clock wrote its times, nothing happened after it was read."""
    stats = row.stats
    if max(row.step_time, row.open_time, row.create_time, stats.away, *stats.returns) <= now:
        return row
    return replace(
        row,
        step_time=min(row.step_time, now),
        open_time=min(row.open_time, now),
        create_time=min(row.create_time, now),
        stats=replace(stats, away=min(stats.away, now), returns=tuple(min(time, now) for time in stats.returns)),
    )


def duration(seconds: float) -> str:
    """A duration for people, such as 3.2 min."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"
