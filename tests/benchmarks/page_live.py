"""Does watching cost the trainers anything? Many running runs at a step a second, with and without viewers of the page.

    python tests/benchmarks/page_live.py [--runs 1000] [--rate 1] [--viewers 5] [--seconds 10] [--rounds 3] [--json]

A fleet trains (fleet.py, a process of its own); beside it one more trainer sends a step every 10 ms and waits for each answer.
Rounds without and with viewers take turns, so that both see the same machine. A viewer is what a browser is: it holds live
events open, and once a second asks for a chart of 20 runs and the sparklines of 40. Prints the answered steps' p50 and p99, the
ratio of each (aim: p99 at most 1.5), and how long after its step the lone trainer is seen in the events (aim: 1 s).
"""

import argparse
import http.client
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechanicd.client import Client
from mechanicd.client._address import Address
from mechanicd.client._transport import Link, Transport
from mechanicd.v1 import resources_pb2, run_service_pb2, tuner_service_pb2

FLEET = Path(__file__).parent / "fleet.py"
LONE = "projects/lone/runs/trainer"
STEP_SECONDS, CHART_RUNS, TABLE_ROWS = 0.01, 20, 40
AIMS = {"p99": 1.5, "seen_s": 1.0}


class Lone:
    """One trainer, whose answers are timed. `sent` is when each of its steps was, by the machine's clock."""

    def __init__(self, target: str) -> None:
        client = Client(target)
        opened = client.call("OpenSession", tuner_service_pb2.OpenSessionRequest(name=LONE, after_step=0), 60.0)
        self._session, self._step = opened.session, 0
        self._link: Link = Transport(Address(target)).link(())
        self.sent: dict[int, float] = {}

    def train(self, seconds: float) -> list[float]:
        """Steps for so long; what each answer took, in seconds."""
        took = []
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            self._step += 1
            reductions = resources_pb2.Reductions(
                delta_dot_g=[random.gauss(-0.1, 1.0)], delta_dot_x=[0.5], g_norm_sq=[1.5], x_norm_sq=[2.5]
            )
            self.sent[self._step] = time.time()
            self._link.send(tuner_service_pb2.StepRequest(session=self._session, step=self._step, reductions=reductions))
            result = self._link.receive(60.0)
            took.append(time.perf_counter() - begin)
            assert not result.HasField("error"), result.error.message
            time.sleep(max(0.0, begin + STEP_SECONDS - time.perf_counter()))
        return took


def view(address: str, names: list[str], stop: threading.Event, saw: Callable[[int], None], counts: dict[str, int]) -> None:
    """One viewer's requests, until it is told to stop."""
    place = address.removeprefix("http://")

    def follow() -> None:
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.request("GET", "/api/v1/events")
        response = connection.getresponse()
        while not stop.is_set():
            line = response.readline()
            counts["bytes"] += len(line)
            if line.startswith(b"data:") and LONE.encode() in line:
                found = [run for run in json.loads(line[5:])["runs"] if run["name"] == LONE and "step" in run]
                for run in found:
                    saw(run["step"])
        connection.close()

    threading.Thread(target=follow, daemon=True).start()
    connection = http.client.HTTPConnection(place, timeout=60)
    while not stop.is_set():
        shown = random.sample(names, min(CHART_RUNS, len(names)))
        body = json.dumps({"runs": shown, "series": "S", "x": "step", "columns": 1000})
        rows = "&".join(f"run={name}" for name in random.sample(names, min(TABLE_ROWS, len(names))))
        for method, path, data in (("POST", "/api/v1/series", body), ("GET", f"/api/v1/sparklines?{rows}", None)):
            connection.request(method, path, data, {"Content-Type": "application/json"})
            counts["bytes"] += len(connection.getresponse().read())
            counts["requests"] += 1
        stop.wait(1.0)
    connection.close()


def viewers(address: str, count: int) -> None:
    """Views until stdin ends; then tells, in JSON, when each step of the lone trainer was seen."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("GET", "/api/v1/runs?project=fleet")
    names = [run["name"] for run in json.loads(connection.getresponse().read())["runs"]]
    stop, seen, counts = threading.Event(), dict[int, float](), {"requests": 0, "bytes": 0}

    def saw(step: int) -> None:
        seen.setdefault(step, time.time())

    threads = [threading.Thread(target=view, args=(address, names, stop, saw, counts), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    print("viewing", flush=True)
    sys.stdin.read()
    stop.set()
    print(json.dumps({"seen": seen, **counts}))


def with_viewers(address: str, count: int, work: Callable[[], list[float]]) -> tuple[list[float], dict[str, Any]]:
    command = [sys.executable, __file__, "--view", address, "--viewers", str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "viewing\n"
    took = work()
    told, _ = process.communicate(timeout=60)
    return took, json.loads(told)


def measure(given: argparse.Namespace, folder: str) -> dict[str, Any]:
    serve = [
        sys.executable,
        "-m",
        "mechanicd.cli",
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--json",
        "--auth",
        "off",
    ]
    log = (Path(folder) / "server.log").open("w")
    store = f"sqlite:///{Path(folder) / 'live.db'}"
    server = subprocess.Popen([*serve, "--store", store], stdout=subprocess.PIPE, stderr=log, text=True)
    fleet: subprocess.Popen[str] | None = None
    try:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())["ready"]
        target, address = ready["grpc"][0], ready["http"]
        train = [
            sys.executable,
            str(FLEET),
            "--target",
            target,
            "--runs",
            str(given.runs),
            "--steps",
            "1000000",
            "--grouped",
            "0",
        ]
        train += ["--rate", str(given.rate), "--fates", "healthy:9,oscillating,stuck", "--json"]
        fleet = subprocess.Popen(train, stdout=subprocess.DEVNULL, text=True)
        _wait_for(target, given.runs)
        lone = Lone(target)
        lone.train(2.0)
        without, watched, delays = list[float](), list[float](), list[float]()
        counts = {"requests": 0, "bytes": 0}
        for _ in range(given.rounds):
            without += lone.train(given.seconds)
            took, told = with_viewers(address, given.viewers, lambda: lone.train(given.seconds))
            watched += took
            delays += _delays(lone.sent, {int(step): at for step, at in told["seen"].items()})
            counts = {key: counts[key] + told[key] for key in counts}
        assert fleet.poll() is None, "the fleet ended"
        steps = _steps(target)
        time.sleep(5.0)
        rate = (_steps(target) - steps) / 5.0
    finally:
        for process in (fleet, server):
            if process is not None:
                process.terminate()
                process.wait(timeout=60)
        log.close()
    return {
        "runs": given.runs,
        "rate": rate,
        "viewers": given.viewers,
        **counts,
        "load": os.getloadavg(),
        "without": _quantiles(without),
        "with": _quantiles(watched),
        "ratio": {key: value / _quantiles(without)[key] for key, value in _quantiles(watched).items()},
        "seen_s": {"p50": statistics.median(delays), "worst": max(delays)},
        "aims": AIMS,
    }


def _delays(sent: dict[int, float], seen: dict[int, float]) -> list[float]:
    """How long after each step an event first told of it or of a later one, for the steps from the first such event on."""
    told = sorted(seen)
    return [seen[step] - sent[earlier] for before, step in itertools.pairwise(told) for earlier in range(before + 1, step + 1)]


def _steps(target: str) -> int:
    client = Client(target)
    listed = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent="projects/fleet", page_size=1000), 60.0)
    client.close()
    return sum(run.durable_step for run in listed.runs)


def _wait_for(target: str, runs: int) -> None:
    """Until every run of the fleet has taken a step, and then until the store has folded what the start left."""
    end = time.monotonic() + 300.0
    while time.monotonic() < end:
        client = Client(target)
        request = run_service_pb2.ListRunsRequest(parent="projects/fleet", filter="step >= 1", page_size=1000)
        if len(client.call("ListRuns", request, 60.0).runs) >= min(runs, 1000):
            time.sleep(2.0)
            return
        client.close()
        time.sleep(0.5)
    raise SystemExit(f"the fleet of {runs} runs did not start in 300 s")


def _quantiles(took: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="at most 1000 (default)")
    parser.add_argument("--rate", type=float, default=1.0, help="steps/s of each (default 1)")
    parser.add_argument("--viewers", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="without, and as many with viewers (default 3)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--view", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.view:
        viewers(given.view, given.viewers)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, folder)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"{found['runs']} runs, {found['rate']:.0f} steps/s in all, {found['viewers']} viewers ({found['requests']} requests, "
        f"{found['bytes'] / 2**20:.0f} MiB); load average {found['load'][0]:.1f} on {os.cpu_count()} cores"
    )
    for key in ("without", "with"):
        print(f"{key + ' viewers':16s} p50 {found[key]['p50'] * 1e3:6.2f} ms, p99 {found[key]['p99'] * 1e3:6.2f} ms")
    print(f"ratio of p50 {found['ratio']['p50']:.2f}, of p99 {found['ratio']['p99']:.2f}   aim {AIMS['p99']}")
    seen = found["seen_s"]
    print(f"a step is seen after p50 {seen['p50']:.2f} s, worst {seen['worst']:.2f} s   aim {AIMS['seen_s']} s")


if __name__ == "__main__":
    main()
