"""Checksums: how a flipped bit in a store is found. CRC-32 finds each single flipped bit, and each burst of up to 32.

Every row has one, or several where parts of it are read or written alone:

- a chunk (`sums`): its two summaries, its head, and each 16 of its records, so that a flipped bit costs 16 steps and not 1,024.
  Not its run and its branch: a fork copies chunks as they are, and a rewind moves them;
- a run: `step_sum` over what each commit writes, `row_sum` over the rest. The tuner's state has a checksum of its own;
- a segment of the journal, in its header (`_journal`);
- every other row (`checksum`): all of it but its `id`.

NULL stands for a row that was written before schema 5: nothing is known of it.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mechanicd.runs import record_layout
from mechanicd.store._sql import TABLES, Database

OF_STEPS: Final = ("last_step", "scale", "step_time", "step_interval", "vitals")
"""The columns of a run under `step_sum`: a commit writes them, and `state`."""
OF_ROW: Final = tuple(
    column for column in TABLES["runs"] if column not in {*OF_STEPS, "id", "revision", "state", "row_sum", "step_sum"}
)
"""The columns of a run under `row_sum`."""
BLOCK: Final = 16
"""So many records of a chunk have a checksum together."""
_HEAD: Final = struct.Struct("<qqqq")


def of(values: Iterable[Any]) -> int:
    """The checksum of some columns' values, in order: integers, texts and bytes."""
    return zlib.crc32(
        b"\0".join([each if type(each) is bytes else str(each).encode("utf-8", "surrogatepass") for each in values])
    )


def sealed(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A new row with its `checksum`."""
    return {**values, "checksum": of(values[column] for column in covered(table))}


def covered(table: str) -> tuple[str, ...]:
    """The columns under a table's `checksum`."""
    return tuple(column for column in TABLES[table] if column not in ("id", "checksum"))


class Sealing(NamedTuple):
    """Which sums of a run's row were right before a change; only those are made anew after it, so that no damage is blessed."""

    row: bool
    steps: bool


def before(db: Database, run_id: int) -> Sealing:
    """Call it before an UPDATE of a run's row, and `after` after it."""
    found = _row(db, run_id)
    if found is None:
        return Sealing(row=False, steps=False)
    return Sealing(*(found[name] in (None, of(found[each] for each in columns)) for name, columns in _SUMS.items()))


def after(db: Database, run_id: int, sealing: Sealing) -> None:
    """Makes the sums of a run's row anew."""
    found = _row(db, run_id)
    if found is not None:
        new = {
            name: of(found[each] for each in columns) if right else found[name]
            for (name, columns), right in zip(_SUMS.items(), sealing, strict=True)
        }
        db.execute("UPDATE runs SET row_sum = :row_sum, step_sum = :step_sum WHERE id = :id", {"id": run_id, **new})


_SUMS: Final = {"row_sum": OF_ROW, "step_sum": OF_STEPS}


def sealed_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """A new row of a run with its sums."""
    return {**values, **{name: of(values[each] for each in columns) for name, columns in _SUMS.items()}}


def wrong(run: Mapping[str, Any]) -> list[str]:
    """The names of the sums that a run's row does not have."""
    return [name for name, columns in _SUMS.items() if run[name] is not None and run[name] != of(run[each] for each in columns)]


def _row(db: Database, run_id: int) -> dict[str, Any] | None:
    columns = (*OF_ROW, *OF_STEPS, *_SUMS)
    row = db.execute(f"SELECT {', '.join(columns)} FROM runs WHERE id = :id{db.for_update}", {"id": run_id}).fetchone()
    return None if row is None else dict(zip(columns, row, strict=True))


# --- chunks ------------------------------------------------------------------------------------------------------------


class ChunkSums(NamedTuple):
    """The checksums of a chunk."""

    coarse: int
    fine: int
    head: int
    blocks: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """As stored: words of 32 bits, little-endian."""
        return struct.pack(f"<{3 + len(self.blocks)}I", *self[:3], *self.blocks)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ChunkSums | None":
        """The inverse; None if these are none."""
        if len(data) < 12 or len(data) % 4:
            return None
        coarse, fine, head, *blocks = struct.unpack(f"<{len(data) // 4}I", data)
        return cls(coarse, fine, head, tuple(blocks))


def of_chunk(groups: int, head: Sequence[int], coarse: bytes, fine: bytes, records: bytes) -> ChunkSums:
    """The checksums of a chunk.

    Args:
        head: number, first_step, last_step, thinned.
    """
    return ChunkSums(zlib.crc32(coarse), zlib.crc32(fine), zlib.crc32(_HEAD.pack(*head)), tuple(blocks(groups, records)))


def thinned(head: Sequence[int], data: bytes | None) -> bytes | None:
    """The sums of a chunk once its records are dropped; None if it had none.

    Args:
        head: number, first_step, last_step.
        data: the sums before, as stored. Those that don't fit the head stay wrong.
    """
    sums = None if data is None else ChunkSums.from_bytes(data)
    if sums is None:
        return data
    right = sums.head == of_head((*head, 0))
    return sums._replace(head=of_head((*head, 1)) if right else sums.head, blocks=()).to_bytes()


def of_head(head: Sequence[int]) -> int:
    """The checksum of a chunk's number, first_step, last_step and thinned."""
    return zlib.crc32(_HEAD.pack(*head))


def blocks(groups: int, records: bytes) -> Iterable[int]:
    """The checksum of each 16 records, and of what is left."""
    size, view = BLOCK * record_layout(groups).size, memoryview(records)
    return (zlib.crc32(view[at : at + size]) for at in range(0, len(records), size))
