"""Alerts: why a run needs attention. Each is judged from the run's row at a given time, with its reason as text. Pure.

They read the statistics stored with the row, never the history. Each threshold says why it has its value. A healthy run gives
no alert: `tests/runs/test_alerts.py` holds the thresholds to real tuner sequences.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mechanicd.runs._model import RunRow
from mechanicd.runs._run_stats import LEFT, SWING, first_scale
from mechanicd.runs._status import Silence, duration, judged
from mechanicd.runs._values import AlertKind, RunStatus

STUCK_STEPS: Final = 1000
"""S grows exponentially while ⟨Δ,g⟩ is negative on average (the paper, section 3): a factor e takes about 1/(signal-to-noise
ratio of h) steps, so the scale that S seeks is log(1/s_init) times that away, and `LEFT` a sixth of it at s_init = 1e-8. With a
batch of one sample S leaves by step 50; pure noise moves it by a factor of 12 at most."""
STUCK_BELOW: Final = 1e-5
"""s_init is meant to be an underestimate. Above this it may be the right scale already, and S has no reason to leave."""
COLLAPSE: Final = 1e-3
"""S may overshoot and come back by a factor of ten or thirty; a thousand leaves a learning rate that trains nothing."""
COLLAPSE_OF: Final = 100.0
"""An S that never reached this many times its first scale had found nothing to lose."""
AWAY_GROWTH: Final = 10.0
"""Growth of both S and ‖x‖ between the last two marks (64 steps). During warm-up S grows this fast, but ‖x‖ hardly moves."""
AWAY_LR: Final = 1.0
"""During the warm-up of a model that starts at x = 0, ‖x‖ grows with S, but S·lr is usually far below this."""
AWAY_DECAY: Final = 0.5
"""If the loss falls along Δ without end, only the decay term of h limits S, at about 1/λ. A BASE with a learning rate so small
that S has to get near 1/λ is limited there too, so it gets this alert as well."""
BOUND: Final = 1e20
"""Far above any learning rate, and far below where the tuner saturates (1e30 for each β)."""
NON_FINITE_SHARE: Final = 0.2
NON_FINITE_STEPS: Final = 60
"""Loss scaling in half precision skips about one step in 2,000, and up to a dozen at its start."""
NON_FINITE_STREAK: Final = 20
OSCILLATIONS: Final = 8
OSCILLATING_STEPS: Final = 2000
"""Small batches and restarts of a schedule turn S by a factor of 3 now and then; a batch of four samples turned it by `SWING`
six times at its start, in pairs, and was calm after. A direction that keeps turning does it at each turn."""
GONE_SECONDS: Final = 10.0
RETURNS: Final = 3
RETURNS_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Alert:
    """A reason why a run needs attention. `step`: when it was, or began to be, observed; None if not tied to a step."""

    kind: AlertKind
    message: str
    step: int | None = None


def alerts(row: RunRow, now: int, silence: Silence) -> list[Alert]:
    """The alerts of a run, in the order of `AlertKind`. A run that has ended keeps the alerts of its last steps; one that is
    archived has none.

    Args:
        row: as stored, or as `judged`.
        now: ns since 1970.
        silence: when a run counts as silent.
    """
    if row.archive_time:
        return []
    seen = judged(row, now, silence)
    found = (detect(seen, now) for detect in _DETECTORS)
    return [alert for alert in found if alert is not None]


def same_alerts(before: Iterable[Alert], now: Iterable[Alert]) -> bool:
    """Whether two lists of alerts are the same news: messages that only count elapsed time are ignored."""
    return [(alert.kind, alert.step) for alert in before] == [(alert.kind, alert.step) for alert in now]


def _silent(row: RunRow, now: int) -> Alert | None:
    if row.status != RunStatus.SILENT:
        return None
    why = "the trainer was killed, hangs, is cut off, or runs a long evaluation"
    return Alert(AlertKind.SILENT, f"{row.status_message}: {why}", row.last_step)


def _stuck(row: RunRow, _: int) -> Alert | None:
    stats, begun = row.stats, first_scale(row.config)
    if stats.left_step or stats.tuned < STUCK_STEPS or begun > STUCK_BELOW or stats.base_lr == 0:
        return None
    scale = max(row.scale)
    if scale > LEFT * begun:
        return None
    why = (
        "no update moves the parameters (is the learning rate or the gradient 0?)"
        if scale == 0
        else "Δ does not point downhill"
    )
    return Alert(
        AlertKind.STUCK,
        f"S is {scale:.3g} after {stats.tuned} steps and never left the scale of s_init = {row.config.s_init:.3g}: {why}; "
        "⟨Δ,g⟩ must be negative more often than not",
        stats.since + 1,
    )


def _collapsed(row: RunRow, _: int) -> Alert | None:
    stats, scale = row.stats, max(row.scale)
    marked = stats.marks[-1].scale if stats.marks else scale
    if not stats.peak or stats.peak < COLLAPSE_OF * first_scale(row.config) or max(scale, marked) > COLLAPSE * stats.peak:
        return None
    return Alert(
        AlertKind.COLLAPSED,
        f"S is {scale:.3g}, down from {stats.peak:.3g} at step {stats.peak_step}: since then the updates no longer reduce the "
        "loss, or the loss itself has changed",
        stats.peak_step,
    )


def _running_away(row: RunRow, _: int) -> Alert | None:
    stats, scale, decay = row.stats, max(row.scale), row.config.s_decay
    if scale > BOUND:
        return Alert(
            AlertKind.RUNNING_AWAY,
            f"S is {scale:.3g}: it is growing without bound, far beyond any plausible learning rate",
            stats.left_step or None,
        )
    if len(stats.marks) < 2:
        return None
    before, after = stats.marks
    if decay and min(scale, after.scale) > AWAY_DECAY / decay:
        return Alert(
            AlertKind.RUNNING_AWAY,
            f"S is {scale:.3g}, limited only by s_decay = {decay:g}: the loss keeps falling along Δ, or BASE's "
            "learning rate is far too small (use 1.0 times a schedule)",
            after.step,
        )
    lr = 1.0 if stats.base_lr is None else stats.base_lr
    if scale * lr < AWAY_LR or after.scale < AWAY_GROWTH * before.scale or after.x_norm < AWAY_GROWTH * before.x_norm:
        return None
    return Alert(
        AlertKind.RUNNING_AWAY,
        f"from step {before.step} to {after.step} S grew from {before.scale:.3g} to {after.scale:.3g}, and ‖x‖ from "
        f"{before.x_norm:.3g} to {after.x_norm:.3g}: the loss keeps falling along Δ, or its gradient has the wrong sign",
        before.step,
    )


def _non_finite(row: RunRow, _: int) -> Alert | None:
    stats = row.stats
    streak = stats.non_finite_streak
    if streak >= NON_FINITE_STREAK:
        first = row.last_step - streak + 1
        return Alert(
            AlertKind.NON_FINITE,
            f"the last {streak} steps, from step {first}, had NaN or infinite scalars: the tuner skips them, and the "
            "parameters or the gradients are no longer finite",
            first,
        )
    if not stats.marks:
        return None
    since = stats.marks[0]
    steps, bad = row.last_step - since.step, stats.non_finite - since.non_finite
    if steps < NON_FINITE_STEPS or bad < NON_FINITE_SHARE * steps:
        return None
    return Alert(
        AlertKind.NON_FINITE,
        f"{bad} of the last {steps} steps had NaN or infinite scalars, most recently step {stats.non_finite_step}: the tuner "
        "skips those steps",
        stats.non_finite_step,
    )


def _oscillating(row: RunRow, _: int) -> Alert | None:
    turns = row.stats.turns[-OSCILLATIONS:]
    if not row.stats.left_step:
        return None  # noise around the first scale: that is STUCK
    if len(turns) < OSCILLATIONS or row.last_step - turns[0] > OSCILLATING_STEPS:
        return None
    if row.last_step - turns[-1] > turns[-1] - turns[0]:
        return None  # calm for longer than it oscillated
    return Alert(
        AlertKind.OSCILLATING,
        f"S has reversed direction {len(turns)} times since step {turns[0]}, by a factor of {SWING:g} or more each time: it "
        "does not settle; try a larger batch or a gentler schedule",
        turns[0],
    )


def _outage(row: RunRow, now: int) -> Alert | None:
    stats = row.stats
    if not row.session or row.status not in (RunStatus.RUNNING, RunStatus.SILENT):
        return None
    if stats.away and (now - stats.away) / 1e9 > GONE_SECONDS:
        quiet = duration((now - stats.away) / 1e9)
        return Alert(
            AlertKind.OUTAGE,
            f"the trainer's connection ended {quiet} ago, but its session is still open: the trainer is cut off and goes on "
            "without the server, or it was killed; the server can't tell which",
            row.last_step,
        )
    recent = [time for time in stats.returns if (now - time) / 1e9 < RETURNS_SECONDS]
    if len(recent) < RETURNS:
        return None
    return Alert(
        AlertKind.OUTAGE,
        f"the session was cut off and came back {len(recent)} times in the last {duration(RETURNS_SECONDS)}: the network or "
        "the server is unstable; no step is lost",
        row.last_step,
    )


def _damaged(row: RunRow, _: int) -> Alert | None:
    return Alert(AlertKind.DAMAGED, row.damaged) if row.damaged else None


_DETECTORS: Final[Iterable[Callable[[RunRow, int], Alert | None]]] = (
    _silent,
    _stuck,
    _collapsed,
    _running_away,
    _non_finite,
    _oscillating,
    _outage,
    _damaged,
)
