"""Power loss, as far as one machine can show it: the files as they are at a random moment open clean, and hold every step that
was announced durable before.

The server is stopped while its files are copied, so that they are of one moment. What the disk had not got yet by then is more
than a copy can show; so each copy's write-ahead log is cut off at random places as well, and followed by rubbish: whatever is
left must be an earlier state, whole. What SQLite has moved from the log into the main file was synced before, and is not cut.
"""

import random
import shutil
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import Reductions, TunerState, open_run
from mechanicd.store import SQLiteStore, check
from mechanicd.tuner import Tuner
from tests.support.soak import SOAK, chosen_seed

MOMENTS, CUTS = (100, 6) if SOAK else (15, 3)
RUNS = 2
AT_FULL_SPEED = 5000  # steps of each run: enough for its log to be moved into the main file now and then


class Trainer:
    """Trains on a thread of its own; knows what S each step must have. In the end it takes its time: copies are read whole."""

    def __init__(self, target: str, index: int, seed: int) -> None:
        self.run = f"power/{index}"
        self._rng = random.Random(seed + index)
        self._session = open_run(target, self.run, start=0, deadline=10.0)
        self.scales: list[float] = []
        self.states: list[bytes] = []
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    @property
    def durable(self) -> int:
        """The last step that the server has announced durable."""
        return int(self._session._connection.backlog.anchor.step)

    def end(self) -> None:
        self.ended.set()
        self._thread.join(30)
        assert self.error is None, self.error
        self._session.close()

    def _train(self) -> None:
        tuner, rng = Tuner(), self._rng
        state = tuner.init()
        try:
            while not self.ended.wait(0.0 if len(self.scales) < AT_FULL_SPEED else 0.01):
                taken = Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0, 1), rng.random(), rng.random())
                state = tuner.update(state, taken)
                self.states.append(state.to_bytes())
                self.scales.append(state.scale[0])
                assert self._session.step(taken) == state.scale[0]
        except BaseException as error:
            self.error = error


def in_main_file(wal_index: Path) -> int:
    """How many bytes of the log SQLite has moved into the main file, or was about to. It has synced them before, so no power
    loss can take them away. (SQLite, "WAL-mode File Format", section 2: nBackfill and nBackfillAttempted.)"""
    if not wal_index.exists():
        return 0
    found = wal_index.read_bytes()[:136]
    frames = max(struct.unpack_from("=I", found, 96)[0], struct.unpack_from("=I", found, 128)[0])
    (page_size,) = struct.unpack_from("=H", found, 14)
    return 32 + frames * (24 + page_size) if frames else 0


def held(path: Path, trainers: list[Trainer]) -> list[int]:
    """The last step of each run in a copy, after everything about the copy was checked."""
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()
    store = SQLiteStore(str(path))
    last = []
    for trainer in trainers:
        row = store.get("default", trainer.run)
        last.append(0 if row is None else row.last_step)
        if row is None:
            continue
        kept = [(step.step, step.scale[0]) for step in store.steps(row, 0, 1, 2**62, 2**62)]
        assert kept == list(enumerate(trainer.scales[: row.last_step], 1)), "no step missing, every bit right"
        if row.last_step:
            assert row.state == trainer.states[row.last_step - 1]
            assert TunerState.from_bytes(row.state, row.config).step == row.last_step
    assert [finding for finding in check(store) if not finding.harmless] == []
    store.close()
    return last


@pytest.mark.timeout(1200 if SOAK else 120)
def test_the_files_of_any_moment_hold_every_step_announced_durable(
    new_server: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = chosen_seed()
    rng = random.Random(seed)
    server = new_server("--flush-interval", "0.002").start()
    trainers = [Trainer(server.target, index, seed) for index in range(RUNS)]
    copies: list[tuple[Path, list[int], int]] = []
    sizes = set[int]()
    for moment in range(4 * MOMENTS):
        if moment >= MOMENTS and len(sizes) > 1:  # on a busy machine the log is moved into the main file later
            break
        time.sleep(rng.uniform(0.0, 0.4))
        announced = [trainer.durable for trainer in trainers]
        server.freeze()
        folder = tmp_path / f"moment{moment}"
        folder.mkdir()
        for name in ("mechanicd.db", "mechanicd.db-wal"):
            if (server.folder / name).exists():
                shutil.copy(server.folder / name, folder / name)
        safe = in_main_file(server.folder / "mechanicd.db-shm")
        server.thaw()
        copies.append((folder / "mechanicd.db", announced, safe))
        sizes.add(copies[-1][0].stat().st_size)
    for trainer in trainers:
        trainer.end()
    server.stop()
    torn = 0
    for path, announced, safe in copies:
        cuts = []
        for number in range(CUTS):
            cut = path.parent / f"cut{number}" / path.name
            cut.parent.mkdir()
            shutil.copy(path, cut)
            log = (path.parent / f"{path.name}-wal").read_bytes()
            rubbish = rng.randbytes(rng.choice([0, 1, 100, 5000]))
            cut.with_name(f"{path.name}-wal").write_bytes(log[: rng.randint(min(safe, len(log)), len(log))] + rubbish)
            cuts.append(cut)
        last = held(path, trainers)
        assert all(have >= told for have, told in zip(last, announced, strict=True)), f"seed {seed}: {last} < {announced}"
        for cut in cuts:
            assert all(have <= whole for have, whole in zip(held(cut, trainers), last, strict=True)), f"seed {seed}"
            torn += 1
        shutil.rmtree(path.parent)
    assert len(sizes) > 1, "the log was moved into the main file meanwhile, so that copies of both kinds were seen"
    with capsys.disabled():
        steps = sum(len(trainer.scales) for trainer in trainers)
        print(
            f"\npower loss: seed {seed}, {steps} steps of {RUNS} runs, {len(copies)} moments and {torn} torn logs, "
            "every step announced durable is there, all bits equal"
        )
