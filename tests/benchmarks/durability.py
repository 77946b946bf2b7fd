"""What durability costs, and how fast an outage is made up for.

    python tests/benchmarks/durability.py [--seconds 3] [--steps 10000] [--store URL] [--json]

Prints, each with a reference measured in the same run:
  commits/s, where every step waits for its own (--durability=step), against bare sqlite3 commits of a blob of the same size
  (WAL, synchronous=FULL);
  the replay of a backlog after an outage, from the server's first breath until all of it is durable, against the same number
  of steps sent live, one by one.
"""

import argparse
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mechanicd.client import Reductions, open_run

SQLITE, LIVE = "bare sqlite3 commits", "the same steps sent live, one by one"
SCALARS = Reductions(-0.1, 0.5, 1.5, 2.5)


class Server:
    """A server process that can be killed and started again."""

    def __init__(self, store: str, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.target = f"127.0.0.1:{probe.getsockname()[1]}"
        self._command = [
            sys.executable,
            "-m",
            "mechanicd.cli",
            "serve",
            "--grpc",
            self.target,
            "--http",
            "off",
            "--store",
            store,
            *options,
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert "ready" in self.process.stdout.readline()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def bare_commits(folder: Path, seconds: float) -> float:
    """Commits/s of one row of about the size of a lone step's flush."""
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE journal (id INTEGER PRIMARY KEY, data BLOB)")
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        db.execute("INSERT INTO journal (data) VALUES (?)", (b"x" * 120,))
        count += 1
    rate = count / (time.perf_counter() - began)
    db.close()
    return rate


def committed_steps(store: str, seconds: float) -> float:
    """Steps/s of one trainer, each answered when it is committed."""
    server = Server(store, "--durability", "step", "--flush-interval", "0")
    session = open_run(server.target, "commits", start=0)
    session.step(SCALARS)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        session.step(SCALARS)
        count += 1
    rate = count / (time.perf_counter() - began)
    session.close()
    server.end()
    return rate


def replay(store: str, steps: int) -> tuple[float, float]:
    """Seconds that the steps took live, and seconds that a backlog of as many took."""
    server = Server(store)
    session = open_run(server.target, "replay", start=0, deadline=10.0)
    began = time.perf_counter()
    for _ in range(steps):
        session.step(SCALARS)
    session.flush(60)
    live = time.perf_counter() - began
    server.end(signal.SIGKILL)
    for _ in range(steps):
        session.step(SCALARS)
    server.start()
    began = time.perf_counter()
    assert session.flush(60) == 2 * steps
    replayed = time.perf_counter() - began
    session.close()
    server.end()
    return live, replayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--store", default="", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or f"sqlite:///{Path(folder) / 'bench.db'}"
        bare = bare_commits(Path(folder), arguments.seconds)
        ours = committed_steps(store, arguments.seconds)
        live, replayed = replay(store, arguments.steps)
    ratios = {f"commits/s to {SQLITE}": ours / bare, f"replay time to {LIVE}": replayed / live}
    if arguments.json:
        figures = {"commits_per_s": ours, "bare_commits_per_s": bare, "live_s": live, "replay_s": replayed}
        print(json.dumps({"steps": arguments.steps, "ratios": ratios, **figures}, indent=2))
        return
    print(f"{ours:8.0f} steps/s, each with its own commit; {bare:.0f} {SQLITE}/s")
    print(f"{arguments.steps} steps: live {live:.2f} s; backlog replayed and durable in {replayed:.2f} s, with the way back")
    for name, ratio in ratios.items():
        print(f"ratio of {name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
