"""What it costs to list a large fleet: `mechanicd runs list`, the same with sketches, and `top --once`.

    python tests/benchmarks/cli_lists.py [--runs 5001] [--steps 300] [--times 3] [--json]

Each is a process of its own, started --times times at a server over a store that is filled first; the fastest counts.
Prints its wall time, its own CPU time and the server's, in seconds. The reference, measured in the same run, is a process that
asks for the same pages of ListRuns through the bare stubs and prints nothing. The aim is less than 1 s each on an idle machine.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from left_behind import served

FLEET = Path(__file__).with_name("fleet.py")
REFERENCE = """
import sys, grpc
from mechanicd.v1 import run_service_pb2, run_service_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub, token = run_service_pb2_grpc.RunServiceStub(channel), ""
    while True:
        page = stub.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/-", page_size=1000, page_token=token))
        token = page.next_page_token
        if not token:
            break
"""
COMMANDS = {"list": ["runs", "list"], "list_sketch": ["runs", "list", "--sketch"], "top_once": ["top", "--once"]}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds."""

    wall: float
    cpu: float
    server_cpu: float


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cost(server: psutil.Process, command: list[str]) -> Cost:
    before, spent, began = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_of(server), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, own, cpu_of(server) - spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5001)
    parser.add_argument("--steps", type=int, default=300, help="of each run (default 300)")
    parser.add_argument("--times", type=int, default=3, help="the fastest of so many counts (default 3)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder) / 'fleet.db'}"
        fleet = ["--direct", store, "--runs", str(given.runs), "--steps", str(given.steps), "--distinct", "50", "--json"]
        subprocess.run([sys.executable, str(FLEET), *fleet], check=True, stdout=subprocess.DEVNULL)
        with served(store) as (server, target):
            mechanicd = [sys.executable, "-m", "mechanicd.cli"]
            commands = {name: [*mechanicd, *command, "--target", target] for name, command in COMMANDS.items()}
            commands = {"reference": [sys.executable, "-c", REFERENCE, target], **commands}
            costs = {
                name: min((cost(server, command) for _ in range(given.times)), key=lambda each: each.wall)
                for name, command in commands.items()
            }
    ratios = {f"{name} to the reference": costs[name].wall / costs["reference"].wall for name in COMMANDS}
    if given.json:
        costs_ = {name: asdict(each) for name, each in costs.items()}
        print(json.dumps({"runs": given.runs, "steps": given.steps, "ratios": ratios, **costs_}, indent=2))
        return
    for name, each in costs.items():
        print(f"{name:12s} {each.wall:6.2f} s, of CPU {each.cpu:.2f} s and the server's {each.server_cpu:.2f} s")
    for name, ratio in ratios.items():
        print(f"ratio of the wall time of {name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
