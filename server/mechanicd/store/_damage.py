"""The rows beside the history, held to their checksums: what a reader would not notice. `_chunks` does it for the history."""

from collections.abc import Iterator
from typing import Any, Final

from mechanicd.store import _sums
from mechanicd.store._chunks import Damage
from mechanicd.store._sql import TABLES, Database

_TABLES: Final = {"sessions": "a session", "former_names": "a former name", "events": "an event", "tiers": "a summary"}


def of_rows(db: Database, run_id: int) -> Iterator[Damage]:
    """What is damaged of the rows of a run, its chunks aside."""
    at: dict[str, Any] = {"id": run_id}
    columns = TABLES["runs"]
    row = db.execute(f"SELECT {', '.join(columns)} FROM runs WHERE id = :id", at).fetchone()
    for name in _sums.wrong(dict(zip(columns, row, strict=True))) if row else ():
        covered = ", ".join(_sums.OF_ROW if name == "row_sum" else _sums.OF_STEPS)
        yield Damage("ROW_DAMAGED", f"its row does not have its checksum; one of these is damaged: {covered}")
    for table, what in _TABLES.items():
        columns = (*_sums.covered(table), "checksum")
        wrong = 0
        for *values, checksum in db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE run_id = :id", at).fetchall():
            wrong += checksum is not None and checksum != _sums.of(values)
        if wrong:
            reason = "SUMMARY_DIFFERS" if table == "tiers" else "ROW_DAMAGED"
            yield Damage(reason, f"{wrong} rows of {table} ({what} each) do not have their checksum")
