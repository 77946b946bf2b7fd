"""The log, as far as it is about one run."""

import pytest


def about(caplog: pytest.LogCaptureFixture, run: str) -> list[str]:
    """The messages about a run. Others may come at any time: a session that an earlier test left open is closed when Python
    collects it, and says so if its server has gone."""
    return [message for message in caplog.messages if f"/runs/{run}:" in message]
