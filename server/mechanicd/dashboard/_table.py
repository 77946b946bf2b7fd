"""All runs as the page sees them, and when each of their fields last changed.

Any earlier state of this table has a number, so the table can give whoever saw that state what changed since then. No state is
kept per viewer, and a viewer that was away for a while gets one answer. No I/O, no clock.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mechanicd.dashboard._run_json import Item, item
from mechanicd.runs import Alert, RunRow, RunStatus, Silence, alerts, judged, not_ahead, same_alerts

MOST_GONE: Final = 1000
_AGAIN: Final = 10**9
"""A running run is judged again after this many ns; a silent one when its silence has grown by a tenth."""
_SAID: Final = 10**10
"""A text in which only an elapsed time changes is sent again after this many ns."""


@dataclass(slots=True)
class _Entry:
    row: RunRow
    seen: RunRow
    needs: list[Alert]
    item: Item
    changed: dict[str, int]
    latest: int
    judge_at: int
    said_at: int


@dataclass(slots=True)
class Table:
    """Runs by id.

    Attributes:
        silence: when a running run counts as silent.
        now: the number of the current state; it grows with each change.
        oldest: the earliest state since which all changes are known.
    """

    silence: Silence
    now: int = 0
    oldest: int = 0
    _entries: dict[int, _Entry] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)
    _gone: deque[tuple[int, str]] = field(default_factory=deque)

    def revisions(self) -> dict[int, int]:
        """The revision of each run when it was read."""
        return {id_: entry.row.revision for id_, entry in self._entries.items()}

    def row(self, name: str) -> RunRow | None:
        """The run with this full name, judged."""
        id_ = self._ids.get(name)
        return None if id_ is None else self._entries[id_].seen

    def seen(self) -> list[tuple[RunRow, list[Alert], Item]]:
        """All runs, judged, in the order of their names."""
        entries = sorted(self._entries.values(), key=lambda entry: (entry.row.project, entry.row.run))
        return [(entry.seen, entry.needs, entry.item) for entry in entries]

    def item(self, id_: int) -> Item:
        """One run."""
        return self._entries[id_].item

    def items(self) -> list[Item]:
        """All runs, in no particular order."""
        return [entry.item for entry in self._entries.values()]

    def update(self, rows: Iterable[RunRow], gone: Iterable[int], time: int) -> bool:
        """Takes changed rows and deleted ids, and judges the runs that are due. Returns whether anything changed.

        Args:
            time: ns since 1970.
        """
        moment = self.now + 1
        for id_ in gone:
            entry = self._entries.pop(id_, None)
            if entry is not None:
                self._forget(moment, entry)
        for row in rows:
            self._take(moment, row, time)
        for entry in self._entries.values():
            if entry.judge_at <= time:
                self._judge(moment, entry, entry.row, time)
        changed = any(entry.latest == moment for entry in self._entries.values()) or bool(
            self._gone and self._gone[-1][0] == moment
        )
        if changed:
            self.now = moment
        return changed

    def since(self, moment: int) -> dict[str, list[Any]]:
        """What changed since `moment`: {"runs": items with the changed fields, "gone": names}. Apply `gone` first."""
        runs = []
        for entry in self._entries.values():
            if entry.latest > moment:
                fields = {key: entry.item[key] for key, at in entry.changed.items() if at > moment}
                runs.append({"name": entry.item["name"], **fields})
        return {"runs": runs, "gone": [name for at, name in self._gone if at > moment]}

    def _take(self, moment: int, row: RunRow, time: int) -> None:
        row = not_ahead(row, time)
        entry = self._entries.get(row.id)
        if entry is not None and (entry.row.project, entry.row.run) == (row.project, row.run):
            self._judge(moment, entry, row, time)
            return
        if entry is not None:  # it was renamed: to a viewer, the old name is gone and a new run is there
            self._forget(moment, entry)
        seen = judged(row, time, self.silence)
        found = alerts(seen, time, self.silence)
        new = item(seen, found)
        changed = dict.fromkeys(new, moment)
        self._entries[row.id] = _Entry(row, seen, found, new, changed, moment, _judge_at(seen, time), time)
        self._ids[new["name"]] = row.id

    def _judge(self, moment: int, entry: _Entry, row: RunRow, time: int) -> None:
        seen = judged(row, time, self.silence)
        found = alerts(seen, time, self.silence)
        news = row is not entry.row or seen.status != entry.seen.status or not same_alerts(entry.needs, found)
        if not news and time - entry.said_at < _SAID:
            entry.judge_at = _judge_at(seen, time)
            return
        new = item(seen, found)
        for key, value in new.items():
            if entry.item[key] != value:
                entry.changed[key] = entry.latest = moment
        entry.row, entry.seen, entry.needs, entry.item = row, seen, found, new
        entry.judge_at, entry.said_at = _judge_at(seen, time), time

    def _forget(self, moment: int, entry: _Entry) -> None:
        name = entry.item["name"]
        if self._ids.get(name) == entry.row.id:
            del self._ids[name]
        self._gone.append((moment, name))
        while len(self._gone) > MOST_GONE:
            self.oldest, _ = self._gone.popleft()


def _judge_at(row: RunRow, time: int) -> int:
    if row.status == RunStatus.RUNNING:
        return time + _AGAIN
    if row.status == RunStatus.SILENT:
        return time + max(_AGAIN, (time - max(row.step_time, row.open_time, row.create_time)) // 10)
    return 2**63
