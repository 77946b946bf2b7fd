"""deploy/envoy.yaml and deploy/nginx.conf with TLS on both sides: tokens go through, and certificates are replaced while a
training runs, without an outage and without a lost step."""

import logging
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner

from mechanicd.cli import main
from mechanicd.client import MechanicdError, Reductions, Unauthenticated, connect, open_run
from mechanicd.tuner import Tuner
from mechanicd.v1 import run_service_pb2
from tests.support.envoy import EnvoyProcess
from tests.support.logs import about
from tests.support.servers import ServerProcess

TAKEN = Reductions(-1.0, 0.5, 1.0, 2.0)
LIST = run_service_pb2.ListRunsRequest(parent="projects/default")


class Certificates:
    """The PEM files of a proxy, of a replica, and of the authorities that either side trusts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.of_replicas, self.of_proxies = trustme.CA(), trustme.CA()
        self._write("trainers-ca.pem", self.of_proxies.cert_pem)
        self._write("ca.pem", self.of_replicas.cert_pem)
        self.issue("server", self.of_replicas)
        self.issue("proxy", self.of_proxies)

    @property
    def options(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.folder / "server.pem"), "--tls-key", str(self.folder / "server.key")

    def issue(self, name: str, authority: trustme.CA) -> None:
        """A new certificate with its key, put in place by moves."""
        issued = authority.issue_cert("localhost", "127.0.0.1")
        self._write(f"{name}.key", issued.private_key_pem)
        self._write(f"{name}.pem", issued.cert_chain_pems[0])

    def _write(self, name: str, pem: trustme.Blob) -> None:
        new = self.folder / f"{name}.new"
        pem.write_to_path(new)
        new.replace(self.folder / name)


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    certificates = Certificates(tmp_path / "tls")
    monkeypatch.setenv("MECHANICD_CA", str(certificates.folder / "trainers-ca.pem"))
    monkeypatch.delenv("MECHANICD_TOKEN", raising=False)
    return certificates


@pytest.fixture
def server(new_server: Callable[..., ServerProcess], certificates: Certificates) -> ServerProcess:
    return new_server(*certificates.options, "--auth", "tokens").start()


@pytest.fixture
def token(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the trainers' token, which the environment names."""
    file = tmp_path / "token"
    monkeypatch.setenv("MECHANICD_TOKEN_FILE", str(file))
    arguments = ["tokens", "create", "--project", "default", "--role", "write", "--store", server.store]
    file.write_text(CliRunner().invoke(main, arguments).stdout)
    return file


@pytest.fixture(params=["envoy", pytest.param("nginx", marks=pytest.mark.soak)])
def proxy(request: pytest.FixtureRequest, tmp_path: Path, server: ServerProcess, certificates: Certificates) -> Iterator[Any]:
    upstreams = [f"localhost:{server.port}"] if request.param == "nginx" else [server.target]
    process: Any
    if request.param == "envoy":
        process = EnvoyProcess(tmp_path, upstreams, certificates.folder)
    else:
        process = pytest.importorskip("tests.support.nginx").NginxProcess(tmp_path, upstreams, certificates.folder)
    yield process.start()
    assert process.stop() == 0, process.log.read_text()


def asked(target: str) -> str:
    """What a list of the runs says: "" or the reason why it is refused."""
    with connect(target) as client:
        try:
            client.call("ListRuns", LIST)
        except MechanicdError as error:
            return error.reason
    return ""


def test_a_training_goes_on_while_the_certificates_are_replaced(
    proxy: Any, server: ServerProcess, certificates: Certificates, token: Path, wait_for: Callable[..., bool],
    history: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target = f"https://localhost:{proxy.port}"
    name = f"behind-{type(proxy).__name__}"
    session = open_run(target, name, start=0)

    def train() -> None:
        scales.extend(session.step(TAKEN) for _ in range(20))
        session.flush()

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", proxy.port))

    scales: list[float] = []
    with caplog.at_level(logging.WARNING, "mechanicd.client"):
        train()
        for _ in range(2):
            old = shown()
            certificates.issue("proxy", certificates.of_proxies)
            if hasattr(proxy, "reload"):
                proxy.reload()
            assert wait_for(lambda old=old: shown() != old)
            train()
            assert asked(target) == ""
        # The replica's.
        certificates.issue("server", certificates.of_replicas)
        train()
        assert asked(target) == ""
    assert not about(caplog, name), "no outage"
    # A token that is not good is the server's word, through the proxy.
    good = token.read_text()
    for bad in (f"mech_{'a' * 12}_{'x' * 43}", good[:-8] + "xxxxxxx"):
        token.write_text(bad)
        with pytest.raises(Unauthenticated) as refused:
            open_run(target, "refused", start=0)
        assert refused.value.reason == "UNAUTHENTICATED"
    token.write_text(good)
    # And a server that starts again gets every step.
    server.stop()
    scales.extend(session.step(TAKEN) for _ in range(20))
    server.start()
    train()
    session.close()
    tuner = Tuner()
    state, expected = tuner.init(), list[float]()
    for _ in scales:
        state = tuner.update(state, TAKEN)
        expected.append(state.scale[0])
    assert scales == expected
    assert [(record.step, record.scale[0]) for record in history(target, name)] == list(enumerate(scales, 1))


@pytest.mark.soak
def test_a_replica_that_nobody_vouches_for_gets_nothing(
    proxy: Any, server: ServerProcess, certificates: Certificates, token: Path
) -> None:
    target = f"https://localhost:{proxy.port}"
    assert asked(target) == ""
    server.stop()
    certificates.issue("server", trustme.CA())
    server.start()
    assert asked(target) in ("SERVER_UNREACHABLE", "RPC_FAILED")
