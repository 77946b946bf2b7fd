"""Ages in `runs list` and `top` are by the server's clock, not by that of the machine on which the command runs."""

import re
import time
from datetime import datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from mechanicd.cli import main
from mechanicd.client import Reductions, open_run


@pytest.mark.parametrize("seconds", [-7200, 7200])
@pytest.mark.parametrize("command", [("runs", "list", "--no-sketch"), ("top", "--once")], ids=["list", "top"])
def test_ages_are_right_on_a_machine_whose_clock_is_hours_off(
    command: tuple[str, ...], seconds: int, server: Any, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=seconds)

    with open_run(server.target, "run", project=project, start=0) as session:
        session.step(Reductions(-0.1, 0.0, 1.0, 4.0))
    monkeypatch.setattr("mechanicd.cli._text.datetime", Off)
    clock = SimpleNamespace(time_ns=lambda: time.time_ns() + seconds * 10**9, monotonic=time.monotonic)
    monkeypatch.setattr("mechanicd.client._transport.time", clock)
    done = CliRunner().invoke(main, [*command, "--target", server.target, "--project", project])
    assert done.exit_code == 0, done.output
    assert re.search(r"\b\d+ s ago", done.output), done.output
