"""The results file survives kills, and results of several machines can be merged."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from experiments import _results


def line(key: str, **spec: int) -> dict[str, object]:
    return {"key": key, "spec": spec}


def test_a_torn_last_line_is_skipped_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    with _results.Log(path) as log:
        log.add(line("a"))
        log.add(line("b"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key":"c","sp')
    assert list(_results.read(path)) == ["a", "b"]
    with _results.Log(path) as log:
        log.add(line("d"))
    assert list(_results.read(path)) == ["a", "b", "d"]


def test_a_file_of_another_kind_is_rejected_with_the_line_number(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text('{"key":"a","spec":{}}\nhello\n')
    with pytest.raises(_results.ResultsUnreadable, match=r"notes\.txt, line 2: expected the record of a training, got 'hello"):
        _results.read(path)


def test_merging_adds_new_results_and_those_with_another_spec(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path, records in ((mine, [line("a", steps=1), line("b", steps=1)]), (other, [line("b", steps=2), line("c", steps=1)])):
        with _results.Log(path) as log:
            for record in records:
                log.add(record)
    assert _results.merge(mine, [other]) == 2
    assert _results.merge(mine, [other]) == 0
    merged = _results.read(mine)
    assert {key: record["spec"]["steps"] for key, record in merged.items()} == {"a": 1, "b": 2, "c": 1}
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress(mine.read_bytes()))
    assert _results.read(packed) == merged


def test_flags_survive_encoding() -> None:
    flags = np.random.default_rng(0).random(101) < 0.5
    assert (_results.decode(_results.encode(flags), 101) == flags).all()
