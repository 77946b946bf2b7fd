"""The page over a large store: how long a browser waits for the table, a chart and a zoom, and how much memory that takes.

    python tests/benchmarks/page.py [--json]                                  a small store, made for this
    python tests/benchmarks/fleet.py --direct sqlite:///big.db --runs 1000 --steps 1000000 --keep-steps 5000 --distinct 100
    python tests/benchmarks/page.py --store sqlite:///big.db                  the size that the aims are for: 21 GB

Each line has its aim beside it. Times are from the request's first byte to the answer's last, over one connection on this
machine; "first" is the first request of its kind after the server said that it is ready, the table's until it is there.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

FLEET = Path(__file__).parent / "fleet.py"
CHART_RUNS, TABLE_ROWS, PIXELS, REPEATS = 50, 40, 1000, 10
AIMS = {"first table": 1.0, "chart of 50 runs": 1.0, "zoom": 0.3}
MEMORY_AIM = 2**30


class Page:
    """The page's JSON over one connection; what each request took is in `took`, by its kind."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
        self.took: dict[str, list[float]] = {}
        self.bytes: dict[str, int] = {}

    def ask(self, kind: str, path: str, body: Any = None) -> Any:
        method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": "application/json"})
        data = None if body is None else json.dumps(body)
        began = time.perf_counter()
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        answer = response.read()
        self.took.setdefault(kind, []).append(time.perf_counter() - began)
        self.bytes[kind] = len(answer)
        assert response.status == 200, answer[:1000]
        return json.loads(answer)

    def first_table(self) -> list[Any]:
        """All runs, asked for until the page's process has read the store."""
        began = time.perf_counter()
        while (answer := self.ask("first table", "/api/v1/runs"))["server"]["trouble"]:
            time.sleep(0.02)
        self.took["first table"] = [time.perf_counter() - began]
        return list(answer["runs"])


@contextmanager
def served(url: str) -> Iterator[tuple[psutil.Process, str]]:
    """A server over the store, and its page's address."""
    command = [
        sys.executable,
        "-m",
        "mechanicd.cli",
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--auth",
        "off",
    ]
    server = subprocess.Popen(
        [*command, "--store", url, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        yield psutil.Process(server.pid), json.loads(server.stdout.readline())["ready"]["http"]
    finally:
        server.terminate()
        server.wait(timeout=60)


def look(page: Page, seed: int) -> dict[str, int]:
    """What somebody does who opens the page, and looks around. How many runs and steps there were."""
    rng = random.Random(seed)
    items = page.first_table()
    names = [item["name"] for item in items]
    long = [item["name"] for item in sorted(items, key=lambda item: -item["step"])]
    steps = max(item["step"] for item in items)

    def chart(kind: str, x0: float | None, x1: float | None, runs: list[str], **more: Any) -> Any:
        body = {"runs": runs, "series": "S", "x": "step", "x0": x0, "x1": x1, "columns": PIXELS, **more}
        found = page.ask(kind, "/api/v1/series", body)["runs"]
        assert len(found) == len(runs)
        return found

    shown = rng.sample(long[: max(CHART_RUNS, len(long) * 9 // 10)], min(CHART_RUNS, len(long)))
    chart("chart of 50 runs", None, None, shown)
    for _ in range(REPEATS):
        width = steps * 10 ** rng.uniform(-3.0, -0.5)
        begin = rng.uniform(1, steps - width)
        chart("zoom", begin, begin + width, shown)
    for _ in range(REPEATS):
        page.ask("table again", "/api/v1/runs")
        chart("chart again", None, None, rng.sample(long, len(shown)))
        rows = rng.sample(names, min(TABLE_ROWS, len(names)))
        page.ask("sparklines of 40 rows", "/api/v1/sparklines?" + "&".join(f"run={name}" for name in rows))
        chart("exact end of one run", steps - 1000, steps, [rng.choice(long)])
    by_batch: dict[str, list[str]] = {}
    for item in items:
        by_batch.setdefault(item["labels"].get("batch", ""), []).append(item["name"])
    groups = [{"label": label, "runs": runs[:50]} for label, runs in sorted(by_batch.items())]
    for _ in range(3):
        page.ask("bands of 4 groups", "/api/v1/bands", {"groups": groups, "series": "S", "x": "step"})
        page.ask("run page", f"/api/v1/run?name={rng.choice(names)}")
    many = [item["name"] for item in items if item["groups"] > 1]
    for name in many[:3]:
        page.ask("heat map", f"/api/v1/heatmap?run={name}")
    return {"runs": len(items), "steps": sum(item["step"] for item in items)}


def measure(url: str, seed: int) -> dict[str, Any]:
    with served(url) as (server, address):
        page = Page(address)
        size = look(page, seed)
        processes = [server, *server.children(recursive=True)]
        memory = sum(process.memory_info().rss for process in processes)
        apart = {("server" if process is server else "page"): process.memory_info().rss for process in processes}
    seconds = {
        kind: {"first": took[0], "p50": statistics.median(took), "worst": max(took), "bytes": page.bytes[kind]}
        for kind, took in page.took.items()
    }
    return {**size, "seconds": seconds, "memory": memory, "memory_of": apart, "load": os.getloadavg()}


def report(found: dict[str, Any], tell: Callable[[str], None] = print) -> None:
    tell(f"{found['runs']:,} runs, {found['steps']:,} steps; load average {found['load'][0]:.1f} on {os.cpu_count()} cores")
    for kind, took in found["seconds"].items():
        aim = AIMS.get(kind)
        judged = f"   aim {aim * 1e3:.0f} ms: {took['worst'] / aim:.2f} of it" if aim else ""
        tell(
            f"{kind:24s} first {took['first'] * 1e3:7.1f} ms, p50 {took['p50'] * 1e3:7.1f}, worst {took['worst'] * 1e3:7.1f}"
            f", {took['bytes'] / 1024:8.0f} KiB{judged}"
        )
    parts = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in found["memory_of"].items())
    tell(f"memory {found['memory'] / 2**20:.0f} MiB ({parts})   aim 1024 MiB: {found['memory'] / MEMORY_AIM:.2f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", metavar="URL", help="a store that fleet.py filled; default: one of 100 runs is made for this"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.store
        if url is None:
            url = f"sqlite:///{Path(folder) / 'page.db'}"
            fill = [sys.executable, str(FLEET), "--direct", url, "--runs", "100", "--steps", "50000", "--distinct", "20"]
            subprocess.run([*fill, "--keep-steps", "2000", "--json"], check=True, stdout=subprocess.DEVNULL)
        found = measure(url, given.seed)
    if given.json:
        print(json.dumps({**found, "aims": {**AIMS, "memory": MEMORY_AIM}}, indent=2))
    else:
        report(found)


if __name__ == "__main__":
    main()
