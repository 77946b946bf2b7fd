"""The results: one JSON object per line, added when a training ends, so that an interruption loses no finished one."""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from experiments._catalogue import Training

Record = dict[str, Any]


class ResultsUnreadable(Exception):
    """A results file contains something else. The message says where."""


def read(path: Path) -> dict[str, Record]:
    """The records by key, the last one of each. The file may be gzipped. A last line that was cut off by a kill is ignored.

    Raises:
        ResultsUnreadable: a line is no record.
    """
    records: dict[str, Record] = {}
    for number, line, whole in _lines(path):
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (ValueError, KeyError, TypeError):
            if whole:
                raise ResultsUnreadable(
                    f"{path}, line {number}: expected the record of a training, got {line[:60]!r}"
                ) from None
    return records


class Log:
    """A results file to add to. A last line that was cut off by a kill is removed first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def add(self, record: Record) -> None:
        """Adds a record; it is on disk when this returns."""
        self._file.write(json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def merge(into: Path, sources: Iterable[Path]) -> int:
    """Adds to `into` what it lacks of the sources. Returns the number of records added.

    Raises:
        ResultsUnreadable: a file is none of results.
    """
    known = read(into) if into.exists() else {}
    new: dict[str, Record] = {}
    for source in sources:
        records = read(source)
        new.update({key: record for key, record in records.items() if known.get(key, {}).get("spec") != record["spec"]})
    with Log(into) as log:
        for record in new.values():
            log.add(record)
    return len(new)


def encode(flags: NDArray[np.bool_]) -> str:
    """Flags as hexadecimal digits, four flags per digit."""
    return np.packbits(flags).tobytes().hex()


def decode(digits: str, count: int) -> NDArray[np.bool_]:
    """The flags that `encode` was given."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=count).astype(np.bool_)


def current(training: Training, records: Mapping[str, Record]) -> Record | None:
    """The training's record, if it has the training's current spec."""
    record = records.get(training.key)
    return record if record is not None and record["spec"] == training.spec else None


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Each line's number, its text, and whether it ends with a newline."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line, line.endswith("\n")
