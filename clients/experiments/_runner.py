"""Keeps a pool of processes training until everything has ended, the time is up, or somebody stops it."""

import logging
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from experiments import _plan, _results
from experiments._catalogue import Experiment, Training
from experiments._results import Record

logger = logging.getLogger("mechanicd.experiments")

HEAVY: Final = ("minilm", "translator", "decoder-128x4")  # `--device auto` puts these on the GPU; others gain nothing there
_TICK: Final = 0.2
_TELL_SECONDS: Final = 1.0
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RunFailed(Exception):
    """Trainings failed. The message says which, and why."""


@dataclass(frozen=True)
class Setup:
    """What all trainings share.

    Attributes:
        data: the folder of the prepared sets.
        work: the folder for checkpoints.
        target: the server, or None for tuners inside the training processes.
        project: the project of the runs on the server.
        workers: the number of processes by device.
    """

    data: Path
    work: Path
    target: str | None
    project: str
    workers: Mapping[str, int]

    def device(self, training: Training) -> str:
        """The device of a training."""
        if len(self.workers) == 1:
            return next(iter(self.workers))
        return "cuda" if training.row.task.model.startswith(HEAVY) else "cpu"


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        done: trainings that have ended, now and earlier.
        total: all trainings known so far; a sweep may still widen.
        left_s: an estimate of the remaining seconds.
        last: the training that has just ended.
    """

    done: int
    total: int
    left_s: float
    last: str = ""


def run(
    experiments: Sequence[Experiment],
    results: Path,
    setup: Setup,
    shard: _plan.Shard,
    deadline: float | None,
    check: Callable[[], None],
    tell: Callable[[Progress], None],
) -> Progress:
    """Trains what has no result yet.

    Args:
        experiments: what to train.
        results: the file of results; new ones are added to it.
        setup: where and how to train.
        shard: which part to train.
        deadline: a time of the monotonic clock at which to stop; unfinished trainings keep a checkpoint.
        check: called often; an exception that it raises stops the run in the same way.
        tell: called with the progress.

    Raises:
        RunFailed: some trainings failed and have no result; the others were trained.
    """
    records = _results.read(results) if results.exists() else {}
    every = {training.key: training for training in _plan.trainings(experiments, records, shard)}
    left = {training.key: training for training in _plan.pending(list(every.values()), records)}
    failures: list[str] = []
    told = 0.0
    with _results.Log(results) as log, _Pool(setup) as pool:
        pool.begin(_startable(left.values(), records))
        while pool.futures:
            check()
            if deadline is not None and time.monotonic() > deadline:
                break
            for training, result in pool.ended():
                if isinstance(result, Exception):
                    failures.append(f"{training.key}: {type(result).__name__}: {result}")
                    logger.warning(failures[-1])
                    continue
                record = {"key": training.key, "spec": training.spec, **result}
                log.add(record)
                records[training.key] = record
                del left[training.key]
                pool.begin(_startable((each for each in left.values() if each.source == training), records))
                if training.arm.method == "sweep":
                    wider = {
                        each.key: each for each in _plan.swept(experiments, training.row, records) if each.key not in every
                    }
                    every.update(wider)
                    left.update(wider)
                    pool.begin(wider.values())
                if time.monotonic() - told > _TELL_SECONDS or not left:
                    told = time.monotonic()
                    tell(_progress(len(every), left.values(), records, setup, training.key))
    if failures:
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise RunFailed(f"{failures[0]}{more}; finished results are kept, and the same command tries these again")
    return _progress(len(every), left.values(), records, setup)


def _startable(trainings: Iterable[Training], records: Mapping[str, Record]) -> list[Training]:
    """The trainings that don't have to wait for another, with what they need from it."""
    every = [_plan.started(training, records) for training in trainings]
    return [training for training in every if training is not None]


def _progress(total: int, left: Collection[Training], records: Mapping[str, Record], setup: Setup, last: str = "") -> Progress:
    guess = _plan.Guess(records)
    seconds = dict.fromkeys(setup.workers, 0.0)
    for training in left:
        device = setup.device(training)
        seconds[device] += guess(training) / setup.workers[device]
    return Progress(total - len(left), total, max(seconds.values()), last)


class _Pool:
    """Processes by device. Leaving the context stops unfinished trainings, which keep their checkpoints."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.futures: dict[Future[Any], Training] = {}

    def __enter__(self) -> "_Pool":
        context = multiprocessing.get_context("spawn")  # a fork would inherit grpc's threads, and crash
        self._stop = context.Event()
        (self.setup.work / "checkpoints").mkdir(parents=True, exist_ok=True)
        with _one_thread_each():
            self._executors = {
                device: ProcessPoolExecutor(count, context, _begin, (self.setup, device, self._stop))
                for device, count in self.setup.workers.items()
            }
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for executor in self._executors.values():
            executor.shutdown(wait=True, cancel_futures=True)

    def begin(self, trainings: Iterable[Training]) -> None:
        with _one_thread_each():
            for training in trainings:
                self.futures[self._executors[self.setup.device(training)].submit(_train, training)] = training

    def ended(self) -> list[tuple[Training, Record | Exception]]:
        """The trainings that have ended, with their results. Waits only a moment."""
        done, _ = wait(self.futures, _TICK, FIRST_COMPLETED)
        ended: list[tuple[Training, Record | Exception]] = []
        for future in done:
            training = self.futures.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                raise RunFailed(f"a process died during training ({training.key} or another); run again to continue") from None
            except Exception as error:
                result = error
            if result is not None:
                ended.append((training, result))
        return ended


class _one_thread_each:
    """Processes that start within the context use one thread each, because the pool itself is parallel."""

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- in a process of the pool

_here: dict[str, Any] = {}


def _begin(setup: Setup, device: str, stop: Event) -> None:
    """Prepares a process: it ignores Ctrl-C, which the runner handles, and it ends when the runner does."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    _here.update(setup=setup, device=device, stop=stop, sets={}, machine=machine(device))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _train(training: Training) -> Record | None:
    from experiments._arms import Where
    from experiments._train import train

    setup: Setup = _here["setup"]
    if _here["stop"].is_set():
        return None
    checkpoint = setup.work / "checkpoints" / f"{training.key.replace('/', '~')}.pt"
    where = Where(setup.target, setup.project)
    result = train(training, _load, _here["device"], where, checkpoint, _here["stop"].is_set)
    return None if result is None else {**result, "machine": _here["machine"], "when": time.strftime("%Y-%m-%d %H:%M")}


def _load(name: str) -> dict[str, Any]:
    from experiments._data import load

    sets = _here["sets"]
    if name not in sets:
        sets[name] = load(_here["setup"].data, name)
    return dict(sets[name])


def machine(device: str) -> str:
    """A description of the machine."""
    import torch

    if device == "cuda":
        return f"one {torch.cuda.get_device_name()}, TF32, torch {torch.__version__}"
    return f"one core of {_processor()} ({os.cpu_count()} in all), torch {torch.__version__}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
