"""The script that counts what trainings leave behind, at a small size: closed runs leave no thread and no file descriptor."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("left_behind.py")


def test_closed_runs_leave_no_thread_and_no_file_descriptor() -> None:
    command = [sys.executable, str(SCRIPT), "--runs", "6", "--steps", "200", "--streams", "2", "--settle", "0.5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)
    assert (report["more"]["threads"], report["more"]["descriptors"]) == (0, 0), report
    assert (done.returncode, report["kept"]) == (0, True), report
