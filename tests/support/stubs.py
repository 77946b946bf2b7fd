"""Stubs that fit the contract: pytest may be run by hand after a pull that changed a .proto, without make."""

import os
import runpy
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "proto" / "build_stubs.py"


def refresh() -> None:
    """Generates the stubs anew where a .proto is newer. Call it before the first import of them."""
    if "PYTEST_XDIST_WORKER" in os.environ or runpy.run_path(str(BUILD))["is_fresh"]():
        return
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as tools:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", tools, *needed]
        subprocess.run(install, check=True, capture_output=True, timeout=300)
        subprocess.run([sys.executable, str(BUILD)], check=True, env={**os.environ, "PYTHONPATH": tools}, timeout=100)
