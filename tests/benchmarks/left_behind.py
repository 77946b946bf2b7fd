"""What trainings leave behind in a server once they are closed: memory, threads and file descriptors.

    python tests/benchmarks/left_behind.py [--runs 500] [--steps 10000] [--seed 0] [--store URL] [--json]

First --runs runs of one step each are trained and closed, then as many with --steps steps each; both times the server gets
--settle seconds to fold its journal. The second time must leave no more than the first: at most 10 MiB of memory, no thread and
no file descriptor. The exit code is 1 if it does. Steps go over StreamSteps, 64 of a run in a message and several runs at once.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from mechanicd.v1 import resources_pb2, tuner_service_pb2, tuner_service_pb2_grpc

AIM_MIB = 10.0
BATCH = 64
MESSAGES = 64
"""So many different messages are made; runs send them in turn."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    memory_mib: float
    threads: int
    descriptors: int

    @classmethod
    def by(cls, process: psutil.Process) -> "Held":
        with process.oneshot():
            return cls(process.memory_info().rss / 2**20, process.num_threads(), process.num_fds())


@contextmanager
def served(store: str) -> Iterator[tuple[psutil.Process, str]]:
    """A server, and its target."""
    command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0", "--http", "off", "--auth", "off"]
    command += ["--store", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), process.stdout.readline().split("grpc=")[1].split()[0]
        finally:
            process.terminate()


def batches(seed: int) -> list[list[resources_pb2.Reductions]]:
    """The reductions of messages, the same for the same seed."""
    rng = random.Random(seed)

    def one() -> resources_pb2.Reductions:
        g, x, gg, xx = rng.gauss(-0.1, 1.0), rng.gauss(0.0, 1.0), rng.random(), rng.random()
        return resources_pb2.Reductions(delta_dot_g=[g], delta_dot_x=[x], g_norm_sq=[gg], x_norm_sq=[xx])

    return [[one() for _ in range(BATCH)] for _ in range(MESSAGES)]


def train(target: str, runs: Sequence[str], steps: int, made: Sequence[Sequence[resources_pb2.Reductions]]) -> int:
    """Trains runs one after the other over one connection, and closes each. Returns how many steps the server took."""
    taken = 0
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = tuner_service_pb2_grpc.TunerServiceStub(channel)
        for run in runs:
            request = tuner_service_pb2.OpenSessionRequest(name=f"projects/bench/runs/{run}", after_step=0)
            session = _patiently(stub.OpenSession, request).session
            for response in stub.StreamSteps(_messages(session, steps, made), timeout=3600):
                assert not any(result.HasField("error") for result in response.results), response
                taken += len(response.results)
            closed = tuner_service_pb2.CloseSessionRequest(session=session, status=resources_pb2.RUN_STATUS_FINISHED)
            assert _patiently(stub.CloseSession, closed).run.durable_step == steps
    return taken


def _patiently(method: Callable[..., Any], request: Any) -> Any:
    """A call that is sent again while the store is busy, as a client does."""
    while True:
        try:
            return method(request, timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.5)


def _messages(
    session: int, steps: int, made: Sequence[Sequence[resources_pb2.Reductions]]
) -> Iterator[tuner_service_pb2.StreamStepsRequest]:
    for index, first in enumerate(range(1, steps + 1, BATCH)):
        batch = made[index % MESSAGES][: steps + 1 - first]
        yield tuner_service_pb2.StreamStepsRequest(
            steps=[
                tuner_service_pb2.StepRequest(session=session, step=first + at, reductions=reductions, base_lr=1.0)
                for at, reductions in enumerate(batch)
            ]
        )


def leave(process: psutil.Process, target: str, kind: str, given: argparse.Namespace, steps: int) -> tuple[Held, float]:
    """What the server holds after the trainings, once it has settled; and the steps a second that it took."""
    made, parts = (
        batches(given.seed),
        [[f"{kind}/{run}" for run in range(given.runs)][at :: given.streams] for at in range(given.streams)],
    )
    began = time.monotonic()
    with ThreadPoolExecutor(given.streams) as threads:
        taken = sum(threads.map(lambda runs: train(target, runs, steps, made), parts))
    assert taken == given.runs * steps
    speed = taken / (time.monotonic() - began)
    time.sleep(given.settle)
    return Held.by(process), speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10_000, help="of each run, the second time (default 10000)")
    parser.add_argument("--streams", type=int, default=4, help="connections, each with a run at a time (default 4)")
    parser.add_argument("--settle", type=float, default=35.0, help="seconds to fold the journal (default 35)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same steps (default 0)")
    parser.add_argument("--store", default="", help="URL of an empty store (default: a SQLite file, made for this)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(given.store or f"sqlite:///{Path(folder) / 'bench.db'}") as server:
        begun = Held.by(server[0])
        few, _ = leave(*server, "few", given, 1)
        many, speed = leave(*server, "many", given, given.steps)
    more = {"memory_mib": many.memory_mib - few.memory_mib, "threads": many.threads - few.threads}
    more["descriptors"] = many.descriptors - few.descriptors
    report: dict[str, Any] = {"begun": asdict(begun), "few": asdict(few), "many": asdict(many), "more": more}
    report |= {"runs": given.runs, "steps": given.steps, "seed": given.seed, "steps_per_s": speed}
    kept = more["memory_mib"] <= AIM_MIB and more["threads"] <= 0 and more["descriptors"] <= 0
    if given.json:
        print(json.dumps({**report, "kept": kept}, indent=2))
    else:
        lines = [
            ("at the start", begun),
            (f"{given.runs} runs × 1 step", few),
            (f"{given.runs} runs × {given.steps} steps", many),
        ]
        for what, held in lines:
            print(f"{what:28s} {held.memory_mib:7.1f} MiB  {held.threads:3d} threads  {held.descriptors:3d} file descriptors")
        print(f"left behind: {more['memory_mib']:+.1f} MiB (aim: at most {AIM_MIB:g}), {more['threads']:+d} threads, ", end="")
        print(f"{more['descriptors']:+d} file descriptors; {speed:,.0f} steps/s")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
