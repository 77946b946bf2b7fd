"""Real servers that ask who comes: a user's own server lets them in without a word; a revoked token costs no step."""

import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mechanicd.cli import main
from mechanicd.client import PermissionDenied, Reductions, Unauthenticated, connect, open_run
from mechanicd.v1 import local_token, run_service_pb2
from tests.client.test_outage import oracle, some_reductions
from tests.support.logs import about
from tests.support.servers import ServerProcess

LIST = run_service_pb2.ListRunsRequest(parent="projects/-")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MECHANICD_TOKEN", "MECHANICD_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_users_own_server_needs_no_token_of_theirs(
    new_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server("--auth", "auto").start()
    file = local_token.path(server.target)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for target in (server.target, f"localhost:{server.port}", f"ipv4:{server.target}"):
        session = open_run(target, f"of-{target.partition(':')[0]}", start=0)
        session.step(Reductions(-0.1, 0.0, 1.0, 4.0))
        assert session.flush() == 1
        with connect(target) as client:
            client.call("ListRuns", LIST)
        if target == server.target:  # it starts again with another token, under the eyes of a training
            before = file.read_text()
            server.stop()
            assert not file.exists()
            session.step(Reductions(-0.1, 0.0, 1.0, 4.0))
            server.start()
            assert file.read_text() != before
            assert session.flush(20) == 2
        session.close()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of another user"))
    with pytest.raises(Unauthenticated) as refused:
        open_run(server.target, "theirs", start=0)
    assert refused.value.reason == "UNAUTHENTICATED"


def test_a_token_that_is_revoked_costs_no_step(
    new_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., bool],
    history: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server = new_server("--auth", "tokens").start()

    def tokens(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["tokens", *arguments, "--store", server.store])
        assert done.exit_code == 0, done.output
        return done.stdout

    def new_token(role: str, project: str = "default") -> str:
        return tokens("create", "--project", project, "--role", role)

    file, old = tmp_path / "token", new_token("write")
    monkeypatch.setenv("MECHANICD_TOKEN_FILE", str(file))
    taken = some_reductions(60)
    file.write_text(old)
    session = open_run(server.target, "revoked", start=0)
    for each in taken[:20]:
        session.step(each)
    session.flush()
    tokens("revoke", old.split("_")[1])
    while session.connected and session.state.step < 58:  # the server ends the stream within two seconds
        time.sleep(0.2)
        session.step(taken[session.state.step])
    assert not session.connected
    for each in taken[session.state.step :]:
        session.step(each)
    with pytest.raises(Unauthenticated):
        session.flush(0.3)
    assert sum("UNAUTHENTICATED" in line for line in about(caplog, "revoked")) == 1, about(caplog, "revoked")
    for role, project in (("read", "default"), ("write", "other")):  # a token that is good, but not for this
        file.write_text(new_token(role, project))
        with pytest.raises(PermissionDenied):
            open_run(server.target, "another", start=0)
    assert wait_for(lambda: any("PERMISSION_DENIED" in line for line in about(caplog, "revoked")))
    file.write_text(new_token("write"))
    assert session.flush(20) == 60
    session.close()
    file.write_text(new_token("read"))
    records = history(server.target, "revoked")
    assert [record.step for record in records] == list(range(1, 61))
    assert [record.scale[0] for record in records] == oracle(taken)
