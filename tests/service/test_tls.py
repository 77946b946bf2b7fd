"""TLS with real certificates, on gRPC and the page: who is trusted, who is let in, and a certificate that is replaced while
trainings run."""

import logging
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from mechanicd.client import MechanicdError, NotTrusted, Reductions, ServerUnavailable, connect, open_run
from mechanicd.tuner import Tuner
from mechanicd.v1 import run_service_pb2
from tests.support.logs import about
from tests.support.servers import ServerProcess

TAKEN = Reductions(-1.0, 0.5, 1.0, 2.0)


class Files:
    """One server's PEM files, and those that its clients name in the environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.certificate, self.key, self.ca = folder / "server.pem", folder / "server.key", folder / "ca.pem"
        self._monkeypatch = monkeypatch
        self.issue()
        self.trust(self.authority)

    @property
    def options(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.certificate), "--tls-key", str(self.key)

    def issue(self, *names: str, authority: trustme.CA | None = None, **fields: Any) -> None:
        """A new certificate for the server."""
        issued = (authority or self.authority).issue_cert(*(names or ("localhost", "127.0.0.1")), **fields)
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))

    def trust(self, authority: trustme.CA) -> None:
        """What clients trust from now on."""
        authority.cert_pem.write_to_path(self.ca)
        self._monkeypatch.setenv("MECHANICD_CA", str(self.ca))

    def show(self, authority: trustme.CA) -> None:
        """The certificate that clients show from now on."""
        issued = authority.issue_cert("trainer.example")
        for variable, name, pem in (
            ("MECHANICD_CERT", "client.pem", issued.cert_chain_pems[0]),
            ("MECHANICD_KEY", "client.key", issued.private_key_pem),
        ):
            pem.write_to_path(self.folder / name)
            self._monkeypatch.setenv(variable, str(self.folder / name))

    def context(self) -> ssl.SSLContext:
        """A browser that trusts the authority, and shows the client's certificate if there is one."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if (self.folder / "client.pem").exists():
            context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return context

    def page(self, server: ServerProcess, path: str) -> str:
        """What the page answers."""
        with urllib.request.urlopen(server.page + path, context=self.context(), timeout=10) as reply:
            return str(reply.read().decode())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def runs(target: str) -> list[str]:
    with connect(target) as client:
        reply = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent="projects/default"))
    return [run.name.rpartition("/")[2] for run in reply.runs]


def refused(target: str, reason: str) -> str:
    """The message with which a call is refused."""
    with pytest.raises(MechanicdError) as caught:
        runs(target)
    assert caught.value.reason == reason, caught.value
    return caught.value.message


def test_who_is_trusted(new_server: Callable[..., ServerProcess], files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    server = new_server(*files.options, "--http", "127.0.0.1:0").start()
    by_name, by_ip, clear = f"https://localhost:{server.port}", f"https://127.0.0.1:{server.port}", f"127.0.0.1:{server.port}"
    session = open_run(by_name, "first", start=0)
    assert session.step(TAKEN) == Tuner().update(Tuner().init(), TAKEN).scale[0]
    session.flush()
    session.close()
    assert runs(by_name) == runs(by_ip) == ["first"]
    assert server.page.startswith("https://127.0.0.1:")
    assert '"first"' in files.page(server, "/api/v1/runs")
    assert f"https://{clear}" in refused(clear, "SERVER_UNREACHABLE")
    # A certificate that nobody vouches for is no outage: training must not begin without a word to the user.
    files.trust(trustme.CA())
    assert "MECHANICD_CA" in refused(by_name, "CERTIFICATE_NOT_TRUSTED")
    with pytest.raises(NotTrusted):
        open_run(by_name, "second", start=0, on_outage="local")
    monkeypatch.delenv("MECHANICD_CA")
    refused(by_name, "CERTIFICATE_NOT_TRUSTED")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        files.page(server, "/api/v1/runs")


@pytest.mark.parametrize("kind", ["another name", "expired", "no TLS"])
def test_a_server_that_is_not_what_it_should_be(new_server: Callable[..., ServerProcess], files: Files, kind: str) -> None:
    if kind == "another name":
        files.issue("other.example")
    elif kind == "expired":
        files.issue(not_after=datetime.now(UTC) - timedelta(days=1), not_before=datetime.now(UTC) - timedelta(days=2))
    server = new_server(*(() if kind == "no TLS" else files.options)).start()
    said = refused(f"https://localhost:{server.port}", "TLS_NOT_SPOKEN" if kind == "no TLS" else "CERTIFICATE_NOT_TRUSTED")
    assert {"another name": "for another name", "expired": "expired", "no TLS": "--tls-cert"}[kind] in said
    if kind == "expired":
        assert "the certificate expired on" in server.log.read_text()


def test_only_clients_with_a_certificate(new_server: Callable[..., ServerProcess], files: Files) -> None:
    """That is enough to serve other machines without --insecure."""
    server = new_server(*files.options, "--tls-client-ca", str(files.ca), "--http", "0.0.0.0:0").start()
    target = f"https://localhost:{server.port}"
    assert "MECHANICD_CERT" in refused(target, "SERVER_UNREACHABLE")
    server.page = server.page.replace("0.0.0.0", "127.0.0.1")
    with pytest.raises((urllib.error.URLError, OSError)):
        files.page(server, "/api/v1/runs")
    files.show(trustme.CA())
    refused(target, "SERVER_UNREACHABLE")
    files.show(files.authority)
    assert runs(target) == []
    assert '"runs"' in files.page(server, "/api/v1/runs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.key.unlink(), "No such file"),
        (lambda files: files.certificate.write_text("no PEM"), "no PEM"),
        (
            lambda files: files.key.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes()),
            "not the certificate's",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(
    files: Files, run_cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, change: Any, said: str
) -> None:
    change(files)
    done = run_cli("serve", "--grpc", "127.0.0.1:0", "--http", "off", "--store", f"sqlite:///{tmp_path}/m.db", *files.options)
    assert done.returncode == 1
    assert "TLS_FILE_UNUSABLE" in done.stderr
    assert said in done.stderr


def test_what_the_environment_names_is_read_before_training(
    files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, value in (
        ("MECHANICD_CA", str(tmp_path / "nowhere.pem")),
        ("MECHANICD_CA", __file__),
        ("MECHANICD_CERT", str(files.certificate)),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            with pytest.raises(NotTrusted, match=variable) as caught:
                open_run("https://localhost:1", "never", start=0)
            assert caught.value.reason == "TLS_FILE_UNUSABLE"


def test_a_certificate_is_replaced_under_a_living_stream(
    new_server: Callable[..., ServerProcess],
    files: Files,
    wait_for: Callable[..., bool],
    history: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = new_server(*files.options, "--http", "127.0.0.1:0").start()
    target = f"https://localhost:{server.port}"
    session = open_run(target, "lives", start=0)
    scales = [session.step(TAKEN) for _ in range(5)]

    def expires() -> float:
        line = next(line for line in files.page(server, "/metrics").splitlines() if line.startswith("mechanicd_certificate_ex"))
        return float(line.split()[1])

    assert wait_for(lambda: "mechanicd_certificate_ex" in files.page(server, "/metrics"))
    before = expires()
    # The certificate is there and its key is not yet: the old pair stays.
    successor = trustme.CA()
    issued = successor.issue_cert("localhost", "127.0.0.1", not_after=datetime.now(UTC) + timedelta(days=3))
    files.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    assert runs(target) == ["lives"]
    assert wait_for(lambda: "the key is not the certificate's" in server.log.read_text())
    scales += [session.step(TAKEN) for _ in range(5)]
    # Now the pair is whole. Who connects from now on must trust the successor; the stream goes on.
    issued.private_key_pem.write_to_path(files.key)
    assert wait_for(lambda: _reason(target) == "CERTIFICATE_NOT_TRUSTED")
    files.trust(successor)
    assert runs(target) == ["lives"]
    assert wait_for(lambda: _reads(files, server))
    assert wait_for(lambda: expires() < before)
    with caplog.at_level(logging.WARNING, "mechanicd.client"):
        scales += [session.step(TAKEN) for _ in range(5)]
        session.flush()
    assert not about(caplog, "lives"), "no outage"
    # A new connection of the same training takes the new authority from the file.
    server.stop()
    server.start()
    scales += [session.step(TAKEN) for _ in range(5)]
    session.flush(20)
    session.close()
    assert [record.scale[0] for record in history(target, "lives")] == scales


def _reason(target: str) -> str:
    try:
        runs(target)
    except ServerUnavailable as error:
        return error.reason
    return ""


def _reads(files: Files, server: ServerProcess) -> bool:
    try:
        files.page(server, "/healthz")
    except OSError:
        time.sleep(0.05)
        return False
    return True
