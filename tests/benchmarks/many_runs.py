"""What a thousand runs cost the store, and what it costs to look at them.

    python tests/benchmarks/many_runs.py [--runs 1000] [--seconds 50] [--steps 1000000] [--json]

Prints, each with a reference measured in the same run:
  the commits of --runs runs at one step a second, with their vitals and the folding as a server does it, in milliseconds of the
  store's thread for each second of training, against folding every second;
  a look at all runs when nothing changed (Store.pulse), against reading all their rows;
  100 columns of each of 100 runs (Store.summaries), the journal in part unfolded, against a new reader for each of them, which
  has the whole journal to read;
  1,000 columns of a run of --steps steps, against reading the summaries of all its chunks.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mechanicd.runs import RunRow, RunStats, StepRow, first_scale, pack, record_dtype
from mechanicd.service._writer import FOLD_BYTES, FOLD_SECONDS
from mechanicd.store import Claim, Commit, SQLiteStore, SummaryRequest
from mechanicd.tuner import TunerConfig, TunerState

CONFIG = TunerConfig()
ALL = 2**62
FLUSHES = 50


def claimed(store: SQLiteStore, run: str, session: int) -> RunRow:
    state = TunerState.initial(CONFIG)
    row = store.create("bench", run, CONFIG, state.to_bytes(), state.scale, 1)
    return store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=session,
            after_step=0,
            state=row.state,
            scale=row.scale,
            labels={},
            time=1,
        )
    )


def commits(store: SQLiteStore, runs: int, seconds: int, fold_seconds: float) -> tuple[float, float]:
    """Milliseconds of commits, and of folding, for a second of training."""
    rows = [claimed(store, f"run{index}", index + 1) for index in range(runs)]
    stats = [RunStats()] * runs
    committing = folding = 0.0
    folded = 0
    for second in range(1, seconds + 1):
        one = (0.1,)
        records = pack(1, StepRow(second, second * 10**9, 1, one, one, one, one, one, (1e-3,), 1.0))
        for flush in range(FLUSHES):
            began = time.perf_counter()
            batch = []
            for index in range(flush, runs, FLUSHES):
                stats[index] = stats[index].after(1, first_scale(CONFIG), records)
                row = rows[index]
                batch.append(
                    Commit(
                        run_id=row.id,
                        epoch=row.epoch,
                        session=row.session,
                        after_step=second - 1,
                        last_step=second,
                        state=row.state,
                        scale=(1e-3,),
                        step_time=second * 10**9,
                        stats=stats[index],
                        records=records,
                    )
                )
            assert all(store.commit(batch, []))
            committing += time.perf_counter() - began
        if second - folded >= fold_seconds or store.unfolded > FOLD_BYTES:
            folded = second
            began = time.perf_counter()
            while store.fold():
                pass
            folding += time.perf_counter() - began
    return committing * 1e3 / seconds, folding * 1e3 / seconds


def train(store: SQLiteStore, steps: int) -> RunRow:
    """A long run."""
    row = claimed(store, "long", 10**6)
    portion = 8192
    for first in range(1, steps + 1, portion):
        last = min(first + portion - 1, steps)
        rows = np.zeros(last - first + 1, record_dtype(1))
        rows["step"] = np.arange(first, last + 1)
        rows["outcome"] = 1
        rows["values"] = np.random.default_rng(first).random(rows["values"].shape)
        done = Commit(
            run_id=row.id,
            epoch=row.epoch,
            session=row.session,
            after_step=first - 1,
            last_step=last,
            state=row.state,
            scale=row.scale,
            step_time=last,
            records=rows.tobytes(),
        )
        assert store.commit([done], []) == [True]
        while store.fold():
            pass
    return row


def milliseconds(look: Callable[[], Any], times: int = 10) -> float:
    look()  # once to begin with
    began = time.perf_counter()
    for _ in range(times):
        look()
    return (time.perf_counter() - began) / times * 1e3


def looked_at_anew(path: str, requests: list[SummaryRequest]) -> None:
    for request in requests:
        reader = SQLiteStore(path, readonly=True)
        reader.summary(*request)
        reader.close()


def all_chunks(store: SQLiteStore, row: RunRow) -> int:
    with store.reading() as db:
        found = db.execute("SELECT coarse FROM chunks WHERE run_id = :id AND branch = 0 ORDER BY number", {"id": row.id})
        return sum(len(np.frombuffer(coarse, np.uint8)) for (coarse,) in found.fetchall())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        eager = SQLiteStore(str(Path(folder) / "eager.db"))
        commit_eager, fold_eager = commits(eager, arguments.runs, arguments.seconds, 1)
        eager.close()
        store = SQLiteStore(str(Path(folder) / "lazy.db"))
        commit, fold = commits(store, arguments.runs, arguments.seconds, FOLD_SECONDS)
        pulse = milliseconds(store.pulse)
        rows = milliseconds(lambda: store.list_runs(None, None, 10**6))
        some = [SummaryRequest(row, 0, 1, ALL, 100) for row in store.list_runs(None, None, 100)]
        together = milliseconds(lambda: store.summaries(some))
        alone = milliseconds(lambda: looked_at_anew(store.path, some[:10])) * 10
        long = train(store, arguments.steps)
        zoom = milliseconds(lambda: store.summary(replace(long), 0, 1, ALL, 1000))
        chunks = milliseconds(lambda: all_chunks(store, long))
        store.close()
    figures = {
        "commit_ms_a_second": commit,
        "fold_ms_a_second": fold,
        "fold_every_second_ms_a_second": fold_eager,
        "pulse_ms": pulse,
        "all_rows_ms": rows,
        "hundred_summaries_ms": together,
        "by_new_readers_ms": alone,
        "whole_run_ms": zoom,
        "all_chunks_ms": chunks,
    }
    ratios = {
        "commits and folding to folding every second": (commit + fold) / (commit_eager + fold_eager),
        "a look at all runs to reading their rows": pulse / rows,
        "100 summaries to new readers": together / alone,
        "1,000 columns of a long run to reading its chunks": zoom / chunks,
    }
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "steps": arguments.steps, "ratios": ratios, **figures}, indent=2))
        return
    for name, value in figures.items():
        print(f"{value:8.2f}  {name}")
    for name, ratio in ratios.items():
        print(f"ratio of {name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
