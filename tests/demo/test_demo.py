"""`mechanicd demo` as a user runs it: real processes, a real server, a real SIGKILL."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mechanicd.demo import _fleet
from mechanicd.v1 import local_token

DEMO = [sys.executable, "-m", "mechanicd.cli", "demo"]
PROC = Path("/proc")


def processes_that_name(folder: Path) -> list[str]:
    """The command lines of all living processes with this folder in them: the demo's server and trainings."""
    found = []
    for command_line in PROC.glob("[0-9]*/cmdline"):
        try:
            words = command_line.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "quick"


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    """One quick demo, for all tests of what it leaves."""
    done = subprocess.run([*DEMO, "--quick", "--json", "--dir", str(folder)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def document(finished: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(finished.stdout)


@pytest.mark.timeout(300)
def test_it_trains_the_quick_fleet_and_its_sweeps(document: dict):
    fleet = _fleet.quick()
    assert [run["run"] for run in document["runs"]] == [recipe.run for recipe in fleet.recipes]
    for run in document["runs"]:
        assert [one["lr"] for one in run["sweep"]] == list(fleet.learning_rates[run["base"]])
        assert 0.0 < run["scale"] <= run["scale_peak"] < 1.0
        assert run["accuracy"] > 50.0  # ten classes: chance is 10
        assert run["within"] is (run["points_from_best"] >= -1.5)


@pytest.mark.timeout(300)
def test_the_killed_training_goes_on_from_its_checkpoint_bit_for_bit(
    document: dict, finished: subprocess.CompletedProcess[str]
):
    fleet = _fleet.quick()
    (run,) = (run for run in document["runs"] if run["kill"] is not None)
    kill = run["kill"]
    assert run["run"] == fleet.victim.run
    assert fleet.kill_at <= kill["killed_at"] < fleet.victim.steps
    assert kill["resumed_from"] > 0
    assert kill["resumed_from"] % fleet.checkpoint_every == 0
    assert kill["resumed_from"] <= kill["killed_at"]
    assert kill["repeated_reports"] == (kill["killed_at"] - kill["resumed_from"]) // fleet.report_every
    assert kill["differing_reports"] == 0
    assert f"SIGKILL to {run['run']}" in finished.stderr
    assert "\x1b" not in finished.stderr


@pytest.mark.timeout(300)
def test_the_store_is_left_with_every_step_and_can_be_served_again(
    folder: Path, document: dict, new_server: Callable, run_cli: Callable
):
    server = new_server(store=f"sqlite:///{folder / 'mechanicd.db'}").start()
    listed = run_cli("runs", "list", "--target", server.target, "--project", _fleet.PROJECT, "--json")
    assert listed.returncode == 0, listed.stderr
    runs = {run["name"]: run for run in json.loads(listed.stdout)}
    assert len(runs) == len(document["runs"])
    for run in document["runs"]:
        kept = runs[f"projects/{_fleet.PROJECT}/runs/{run['run']}"]
        assert kept["step"] == run["steps"]
        assert kept["scale"] == [run["scale"]]
        assert kept["status"] == "finished"
        assert kept["labels"] == {"model": run["model"], "base": run["base"], "batch": str(run["batch"]), "seed": "0"}
        assert kept["rewinds"] == (1 if run["kill"] else 0)
    assert server.stop() == 0


@pytest.mark.timeout(300)
def test_the_page_stays_after_the_table_until_ctrl_c(tmp_path: Path):
    command = [*DEMO, "--quick", "--no-sweep", "--dir", str(tmp_path / "demo")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = next(match[1] for line in process.stdout if (match := re.search(r"The page is open: (http://\S+)", line)))
        token = local_token.path(address).read_text().strip()
        asked = urllib.request.Request(f"{address}/api/v1/runs", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked, timeout=30) as reply:
            runs = json.load(reply)["runs"]
        assert {run["run"] for run in runs} == {recipe.run for recipe in _fleet.quick().recipes}
        assert {run["status"] for run in runs} == {"finished"}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert processes_that_name(tmp_path) == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(300)
def test_the_commands_that_it_names_are_real(document: dict, folder: Path, run_cli: Callable):
    serve, listing, showing = document["look_again"]
    assert serve.endswith(f"--store sqlite:///{folder}/mechanicd.db")
    for command in (serve, listing, showing):
        program, *words = command.split()
        assert program == "mechanicd"
        usage = run_cli(*[word for word in words[:2] if not word.startswith("-")], "--help")
        assert usage.returncode == 0, usage.stderr
        for option in re.findall(r"--[a-z]+", command):
            assert option in usage.stdout


def test_a_folder_with_another_demo_in_it_is_refused(tmp_path: Path):
    (tmp_path / "mechanicd.db").touch()
    refused = subprocess.run([*DEMO, "--quick", "--dir", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "is not empty" in refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mechanicd.db"]


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose trainings are at work."""
    process = subprocess.Popen(
        [*DEMO, "--quick", "--dir", str(tmp_path / "demo")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        if " training " in line:
            break
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.skipif(not PROC.is_dir(), reason="looks for orphans in /proc")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_everything(begun: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals, code: int):
    assert begun.stderr is not None
    at_work = processes_that_name(tmp_path)
    assert any(" serve " in command for command in at_work)
    assert sum("mechanicd.demo.train" in command for command in at_work) == len(_fleet.quick().recipes)
    os.kill(begun.pid, signum)
    rest = begun.stderr.read()
    assert begun.wait(timeout=30) == code, rest
    assert processes_that_name(tmp_path) == []
    assert signum.name in rest
    assert "Traceback" not in rest
