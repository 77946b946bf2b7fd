"""A run as the page sees it: plain JSON values. Pure."""

from typing import Any, Final

from mechanicd.store import RunRow
from mechanicd.v1 import names

MOST_SCALES: Final = 16

Item = dict[str, Any]


def item(row: RunRow) -> Item:
    """A judged row as JSON: times in ms since 1970, durations in seconds."""
    scale = max(row.scale)
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
        "base_lr": None,
        "effective_lr": None,
        "labels": row.labels,
        "create_time": row.create_time // 10**6,
        "step_time": row.step_time // 10**6 if row.step_time else None,
        "interval": row.interval / 1e9 if row.interval else None,
        "sessions": row.session_count,
        "rewinds": row.rewinds,
        "needs": [],
    }
