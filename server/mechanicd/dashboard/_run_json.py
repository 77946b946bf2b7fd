"""A run as the page sees it: plain JSON values. Pure."""

from collections.abc import Sequence
from typing import Any, Final

from mechanicd.runs import Alert, RunRow
from mechanicd.v1 import names

MOST_SCALES: Final = 16

Item = dict[str, Any]


def item(row: RunRow, needs: Sequence[Alert]) -> Item:
    """A row and its alerts as JSON: times in ms since 1970, durations in seconds."""
    scale, lr = max(row.scale), row.stats.base_lr
    return {
        "name": str(names.RunName(row.project, row.run)),
        "project": row.project,
        "run": row.run,
        "status": row.status,
        "status_message": row.status_message,
        "step": row.last_step,
        "S": scale,
        "scale": list(row.scale[:MOST_SCALES]),
        "groups": len(row.scale),
        "base_lr": lr,
        "effective_lr": None if lr is None else scale * lr,
        "labels": row.labels,
        "create_time": row.create_time // 10**6,
        "step_time": row.step_time // 10**6 if row.step_time else None,
        "archive_time": row.archive_time // 10**6 if row.archive_time else None,
        "interval": row.interval / 1e9 if row.interval else None,
        "sessions": row.session_count,
        "rewinds": row.rewinds,
        "needs": [{"kind": need.kind, "message": need.message, "step": need.step} for need in needs],
    }
