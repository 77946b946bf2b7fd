"""One run in full: its config, what happened to it, and how it is resumed."""

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
        targets: where trainers connect.
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
    """What to type to go on with a run: its trainer's own command, or what its program has to say."""
    if row.command:
        return row.command
    target = ",".join(target for target in targets if not target.startswith(("0.0.0.0:", "[::]:")))  # any of its addresses
    where = f", target={target!r}" if target else ""
    return f"mechanize(…, run={row.run!r}, project={row.project!r}{where})  # and load_state_dict() of its checkpoint"
