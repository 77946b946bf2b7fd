"""The page's pure parts, under Node's own test runner."""

import subprocess
from pathlib import Path

WEB = Path(__file__).parents[2] / "server" / "web"


def test_the_pages_own_tests() -> None:
    done = subprocess.run(["npm", "--prefix", str(WEB), "test"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
