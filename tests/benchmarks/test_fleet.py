"""The synthetic fleet of fleet.py: through a server or written straight to a store, each run meets its fate."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mechanicd.runs import RunRow
from mechanicd.store import open_store

FLEET = Path(__file__).with_name("fleet.py")
CLOSED = {"finished", "preempted", "failed"}


def fleet(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(FLEET), *arguments, "--json"], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def rows(url: str) -> list[RunRow]:
    store = open_store(url, readonly=True)
    try:
        return list(store.list_runs(None, None, 1000))
    finally:
        store.close()


def test_a_fleet_written_directly_passes_the_store_check(tmp_path: Path, run_cli: Any) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    report = fleet(
        "--direct", url, "--runs", "30", "--steps", "3000", "--grouped", "2", "--groups", "3", "--keep-steps", "1000"
    )
    checked = run_cli("store", "check", "--store", url, "--json")
    assert checked.returncode == 0, checked.stdout
    found = rows(url)
    assert (len(found), sum(row.last_step for row in found)) == (30, report["steps"])
    assert sorted({len(row.config.scale_groups) for row in found}) == [1, 3]
    store = open_store(url, readonly=True)
    for row in found:
        groups = len(row.config.scale_groups)
        exact = store.steps(row, 0, 1, row.last_step, 2**62)
        assert row.last_step - 1000 - 1024 <= exact[0].step - 1 <= max(0, row.last_step - 1000)
        buckets = store.summary(row, 0, 1, row.last_step, 100)
        assert int(buckets["count"].sum()) == row.last_step, "the buckets of thinned steps remain"
        assert buckets["max"][-1, 5 * groups] >= exact[-1].scale[0]
    store.close()


@pytest.mark.parametrize(
    ("fate", "steps", "low", "high"),
    [
        ("healthy", 8000, 1e-5, 1.0),
        ("stuck", 8000, 0.0, 1e-7),
        ("collapsed", 20000, 0.0, 1e-7),
        ("running_away", 8000, 1e3, 1e31),
    ],
)
def test_each_fate_drives_the_scale_where_it_says(tmp_path: Path, fate: str, steps: int, low: float, high: float) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    fleet("--direct", url, "--runs", "5", "--steps", str(steps), "--fates", fate, "--keep-steps", "0", "--seed", "3")
    assert [row.run for row in rows(url) if not low <= row.scale[0] <= high] == []


def test_the_same_seed_makes_the_same_fleet(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / name}" for name in ("a.db", "b.db")]
    for url in urls:
        fleet("--direct", url, "--runs", "6", "--steps", "200", "--seed", "7")
    first, second = ([(row.run, row.labels, row.state) for row in rows(url)] for url in urls)
    assert first == second


def test_a_fleet_at_a_server_steps_and_ends_by_its_fates(server: Any, project: str, ask_runs: Any) -> None:
    given = (
        "--target",
        server.target,
        "--project",
        project,
        "--runs",
        "40",
        "--steps",
        "60",
        "--grouped",
        "2",
        "--groups",
        "3",
    )
    report = fleet(*given)
    found = ask_runs(project)
    assert sum(run["step"] for run in found) == report["steps"]
    statuses = [run["status"] for run in found]
    assert {status: statuses.count(status) for status in CLOSED} == {fate: report["fates"][fate] for fate in CLOSED}
    again = fleet(*given)
    assert again["steps"] == 0, "runs resume where they are, and these are done"


def test_the_step_rate_holds_until_the_time_is_up(server: Any, project: str, ask_runs: Any) -> None:
    report = fleet(
        *("--target", server.target, "--project", project, "--runs", "4", "--steps", "100000"),
        *("--rate", "5", "--seconds", "2", "--fates", "healthy"),
    )
    assert 4 <= report["steps"] <= 4 * 5 * 3
    assert {run["status"] for run in ask_runs(project)} == {"running"}


@pytest.fixture
def ask_runs(server: Any, run_cli: Any) -> Any:
    """The runs of a project, as the command line lists them."""

    def ask(project: str) -> list[dict[str, Any]]:
        done = run_cli("runs", "list", "--target", server.target, "--project", project, "--json")
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    return ask
