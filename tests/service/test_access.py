"""How a server knows who calls: by its own token in a file, tokens of the store, certificates; and which addresses it binds."""

import asyncio
import errno
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner

from mechanicd.access import Denied, Role, Token, create
from mechanicd.cli import main
from mechanicd.client import Reductions, connect, open_run
from mechanicd.service import Access, ServerConfig, ServiceError
from mechanicd.service._keys import Keys
from mechanicd.service._local_files import LocalFiles
from mechanicd.store import open_beside
from mechanicd.tls import TlsFiles
from mechanicd.tuner import Tuner
from mechanicd.v1 import local_token, run_service_pb2
from tests.support.servers import ServerProcess, wait_for

NewServer = Callable[..., ServerProcess]
TAKEN = Reductions(-1.0, 0.5, 1.0, 2.0)
NOW = 1_800_000_000 * 10**9


def runs_in(target: str, project: str) -> list[str]:
    with connect(target) as client:
        listed = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent=f"projects/{project}"))
    return [run.name for run in listed.runs]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Exception, match=r".") as caught:
        call()
    return str(getattr(caught.value, "reason", caught.value))


# ---- the server's own token


def test_the_programs_of_the_servers_user_come_in_as_typed(
    new_server: NewServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    server = new_server("--auth", "auto").start()
    path = local_token.path(server.target)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in path.parents[:3]} == {0o700}
    session = open_run(f"localhost:{server.port}", "mine", start=0)
    session.step(TAKEN)
    session.close()
    assert runs_in(server.target, "default") == ["projects/default/runs/mine"]
    text = path.read_text()
    path.unlink()
    assert refused(lambda: runs_in(server.target, "default")) == "UNAUTHENTICATED", "another user has no such file"
    path.write_text(text)
    assert server.stop() == 0
    assert not path.exists(), "it ends with its server"


def test_where_tokens_are_asked_for_there_is_no_token_of_the_server(
    new_server: NewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server("--auth", "tokens").start()
    assert not local_token.path(server.target).exists()
    assert refused(lambda: runs_in(server.target, "p")) == "UNAUTHENTICATED"
    store = open_beside(server.store)
    text, token = create("p", Role.READ, store.clock.now())
    store.add_token(token)
    store.close()
    monkeypatch.setenv("MECHANICD_TOKEN", text)
    assert runs_in(server.target, "p") == []
    assert refused(lambda: runs_in(server.target, "q")) == "PERMISSION_DENIED"
    assert server.stop() == 0


def test_a_folder_that_cannot_be_written_keeps_no_server_from_serving(
    new_server: NewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    server = new_server("--auth", "auto").start()
    assert server.stop() == 0
    assert "the local token can't be left" in server.log.read_text()
    assert "MECHANICD_TOKEN" in server.log.read_text()


def test_the_file_is_there_for_each_address_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    here = ["127.0.0.1:1", "https://[::1]:2", "http://localhost:3", "0.0.0.0:4", "https://[::]:5", f"unix:{tmp_path}/socket"]
    away = ["10.0.0.1:6", "https://mechanicd.example.org:7", "[2001:db8::1]:8"]
    with LocalFiles("mech_x", here + away):
        assert [local_token.path(address).read_text() for address in here] == ["mech_x\n"] * len(here)
        assert not any(local_token.path(address).exists() for address in away)
        assert not list(local_token.path(here[0]).parent.glob(".*")), "no draft is left"
        with LocalFiles("mech_successor", here[-1:]):
            assert local_token.path(here[-1]).read_text() == "mech_successor\n"
        assert not local_token.path(here[-1]).exists()
        local_token.path(here[-1]).write_text("mech_of_another\n")
    assert local_token.path(here[-1]).read_text() == "mech_of_another\n", "a server removes its own token alone"
    assert not any(local_token.path(address).exists() for address in here[:-1])


@pytest.mark.parametrize(("mine", "other"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_nobody_else_is_where_localhost_leads_and_is_shown_the_token(
    mine: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other address of `localhost` has a port of its own, which another user could have."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def listener(host: str, port: int = 0) -> socket.socket:
        try:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                pytest.skip("no IPv6 here")
            raise

    with listener(mine) as server:
        port = server.getsockname()[1]
        written, twin = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in (mine, other)]
        with LocalFiles("mech_x", [written]):
            assert local_token.path(written).exists()
            with pytest.raises(OSError, match="in use"):
                listener(other, port).close()
        with listener(other, port):
            with LocalFiles("mech_x", [written]):
                assert not local_token.path(written).exists(), "somebody is there already"
            with LocalFiles("mech_x", [written, twin]):
                assert local_token.path(written).exists(), "that is this server itself"
        with listener(other, port):  # it is free again
            pass
    assert "choose another port" in caplog.text


def test_a_folder_is_closed_to_others_and_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = local_token.path("127.0.0.1:1")
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o777)
    with LocalFiles("mech_x", ["127.0.0.1:1"]):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.rmdir()
    (tmp_path / "elsewhere").mkdir()
    path.parent.symlink_to(tmp_path / "elsewhere")
    with LocalFiles("mech_x", ["127.0.0.1:1"]):
        assert not list((tmp_path / "elsewhere").iterdir())


def test_a_training_whose_token_is_revoked_goes_on_and_catches_up_with_the_next_one(
    new_server: NewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_server("--auth", "tokens").start()
    store = open_beside(server.store)
    (first, token), (second, successor) = (create("p", Role.WRITE, store.clock.now()) for _ in range(2))
    store.add_token(token)
    file = tmp_path / "token"
    file.write_text(first)
    monkeypatch.setenv("MECHANICD_TOKEN_FILE", str(file))
    session, tuner = open_run(server.target, "r", project="p", start=0), Tuner()
    state, scales = tuner.init(), []

    def take(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state = tuner.update(state, [TAKEN])
            assert session.step(TAKEN) == state.scale[0]
            scales.append(state.scale)

    take(20)
    store.revoke_token(token.id, store.clock.now())
    assert wait_for(lambda: take(1) or "was revoked" in caplog.text)
    take(20)
    store.add_token(successor)
    file.write_text(second)
    assert wait_for(lambda: take(1) or "reconnected" in caplog.text)
    assert session.flush() == len(scales)
    session.close()
    row = store.get("p", "r")
    assert row is not None
    assert [step.scale for step in store.steps(row, 0, 1, 2**62, 2**62)] == scales, "no step is lost"
    assert row.rewinds == 0
    assert caplog.text.count("was revoked") == 1, "said once"
    store.close()
    assert server.stop() == 0
    assert not any(text[-43:] in server.log.read_text() + caplog.text for text in (first, second))


# ---- certificates


def test_a_certificates_name_has_a_role(new_server: NewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    for name in ("trainer.example", "reader@example.org", "nobody.example"):
        mine = authority.issue_cert(name, common_name="the CN=one, of it" if "@" in name else None)
        mine.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        mine.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    options = [
        f"--tls-{name}={tmp_path}/{file}"
        for name, file in (("cert", "server.pem"), ("key", "server.key"), ("client-ca", "ca.pem"))
    ]
    roles = ["--client-role", "trainer.example=write:mine", "--client-role", "the CN=one, of it=read"]
    server = new_server("--auth", "tokens", *options, *roles).start()
    target = f"https://localhost:{server.port}"
    monkeypatch.setenv("MECHANICD_CA", str(tmp_path / "ca.pem"))

    def show(name: str) -> None:
        monkeypatch.setenv("MECHANICD_CERT", str(tmp_path / f"{name}.pem"))
        monkeypatch.setenv("MECHANICD_KEY", str(tmp_path / f"{name}.key"))

    show("trainer.example")
    session = open_run(target, "r", project="mine", start=0)
    session.step(TAKEN)
    session.flush()
    session.close()
    assert refused(lambda: runs_in(target, "other")) == "PERMISSION_DENIED"
    show("reader@example.org")
    assert runs_in(target, "-") == ["projects/mine/runs/r"]
    assert refused(lambda: open_run(target, "r", project="mine", start=0)) == "PERMISSION_DENIED"
    show("nobody.example")
    assert refused(lambda: runs_in(target, "mine")) == "UNAUTHENTICATED"
    monkeypatch.setenv("MECHANICD_TOKEN", create("", Role.ADMIN, NOW)[0])
    show("trainer.example")
    assert refused(lambda: runs_in(target, "mine")) == "UNAUTHENTICATED", "a token that is shown counts, good or not"
    assert server.stop() == 0
    assert "token=cert:trainer.example method=OpenSession run=projects/mine/runs/r result=ok" in server.log.read_text()


@pytest.mark.parametrize("given", ["x", "=read", "x=root", "x=read:a/b", "x=", "x=read:"])
def test_what_is_no_role_of_a_certificate_is_a_usage_error(given: str) -> None:
    done = CliRunner().invoke(
        main, ["serve", "--client-role", given, "--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"]
    )
    assert done.exit_code == 2
    assert "expected" in done.output


def test_a_role_of_certificates_needs_certificates() -> None:
    done = CliRunner().invoke(main, ["serve", "--client-role", "x=read"])
    assert done.exit_code == 2
    assert "--tls-client-ca" in done.output


# ---- addresses


@pytest.mark.parametrize("everyone", [True, False])
@pytest.mark.parametrize("tls", [None, TlsFiles("c", "k"), TlsFiles("c", "k", "ca")])
@pytest.mark.parametrize("insecure", [True, False])
def test_other_machines_reach_it_by_tls_and_tokens_or_certificates_else_insecure(
    everyone: bool, tls: TlsFiles | None, insecure: bool
) -> None:
    config = ServerConfig(access=Access(everyone=everyone), tls=tls, insecure=insecure)
    asked = tls is not None and (not everyone or bool(tls.client_ca))
    assert config.open_to_others == (insecure or asked)


def test_insecure_without_tls_means_everyone_as_ever(new_server: NewServer) -> None:
    server = new_server("--auth", "auto", "--insecure").start()
    assert not local_token.path(server.target).exists()
    assert runs_in(server.target, "-") == []
    assert server.stop() == 0
    assert "everyone who reaches it may read, change and delete every run" in server.log.read_text()


# ---- the store's tokens


class Table:
    """The store's tokens, as `Keys` reads them."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.away = False
        self.looks = 0

    async def read(self) -> list[Token]:
        self.looks += 1
        if self.away:
            raise ServiceError("STORE_UNAVAILABLE", "away")
        return self.tokens


def test_a_token_is_looked_for_at_once_and_a_store_that_is_away_is_no_refusal() -> None:
    table = Table()
    (first, token), (later, new), (unknown, _) = (create("p", Role.READ, NOW) for _ in range(3))

    async def play() -> None:
        keys = Keys(Access(), table.read, lambda: NOW)
        table.tokens = [token]
        await keys.start()
        assert (await keys.check(first)).id == token.id
        assert table.looks == 1, "one that is known costs no look"
        table.tokens = [token, new]
        found = await asyncio.gather(*(keys.check(later) for _ in range(50)))
        assert {principal.id for principal in found} == {new.id}
        assert table.looks == 2, "one look for all"
        answers = await asyncio.gather(*(keys.check(unknown) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(answer, Denied) for answer in answers)
        assert table.looks == 3
        for _ in range(3):
            assert refused_by(await gathered(keys.check("mech_x"), keys.check(None))) == ["UNAUTHENTICATED"] * 2
        assert table.looks == 3, "what is no token costs no look"
        table.away = True
        assert refused_by(await gathered(keys.check(unknown))) == ["STORE_UNAVAILABLE"], "it may be a good one"
        assert (await keys.check(first)).id == token.id, "what was known stays good"
        table.away, table.tokens = False, [replace(token, revoke_time=NOW), new]
        assert refused_by(await gathered(keys.check(unknown))) == ["UNAUTHENTICATED"]
        assert refused_by(await gathered(keys.check(first))) == ["UNAUTHENTICATED"], "each look takes all that it finds"
        await keys.stop()

    async def gathered(*calls: Any) -> list[Any]:
        return list(await asyncio.gather(*calls, return_exceptions=True))

    def refused_by(answers: list[Any]) -> list[str]:
        return [answer.reason for answer in answers]

    asyncio.run(play())
