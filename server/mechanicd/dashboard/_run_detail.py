"""One run in full: its config, its events, and how to resume it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mechanicd.dashboard._curves import Curves
from mechanicd.dashboard._run_json import Item
from mechanicd.runs import RunRow
from mechanicd.store import Store


def detail(store: Store, curves: Curves, row: RunRow, item: Item, targets: Sequence[str]) -> dict[str, Any]:
    """The answer to GET /run. Runs on the store's thread.

    Args:
        targets: the addresses for trainers.
    """
    config = asdict(row.config)
    groups = config.pop("scale_groups")
    return {
        "run": item,
        "config": config,
        "group_names": groups,
        "events": [
            {"time": event.time // 10**6, "step": event.step, "kind": event.kind, "message": event.message}
            for event in store.events(row.id)
        ],
        "branches": curves.branches(store, row),
        "command": row.command,
        "resume": resume(row, targets),
    }


def resume(row: RunRow, targets: Sequence[str]) -> str:
    """How to resume a run: the command of its trainer, or the call for its program."""
    if row.command:
        return row.command
    target = ",".join(target for target in targets if not target.startswith(("0.0.0.0:", "[::]:")))  # any of its addresses
    where = f", target={target!r}" if target else ""
    return f"mechanize(…, run={row.run!r}, project={row.project!r}{where})  # and load_state_dict() of its checkpoint"
