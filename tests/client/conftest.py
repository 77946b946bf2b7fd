"""The spool that a test trains into."""

from pathlib import Path

import pytest


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"file://{tmp_path}/spool"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of the run that the tests train."""
    return tmp_path / "spool" / "default" / "bert" / "seed0.spool"
