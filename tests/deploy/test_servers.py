"""The very commands of each target: its server starts, its probes tell how it is, a trainer with a token trains over TLS and
another one doesn't, and on SIGTERM it ends in time and has every step."""

import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import MechanicdError, Reductions, open_run
from mechanicd.store import check, open_store
from tests.deploy import targets
from tests.deploy.place import Place
from tests.deploy.targets import POSTGRES, SQLITE, Target
from tests.support.servers import wait_for

TARGETS: dict[str, Callable[[], Target]] = {
    "image": targets.image,
    "compose": targets.composed,
    "chart over SQLite": lambda: targets.charted(SQLITE),
    "chart over PostgreSQL": lambda: targets.charted({**POSTGRES, "tls": {"secret": "certificate"}}),
    "systemd": targets.unit_target,
}


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made: list[Place] = []
    name = request.node.callspec.params["name"]
    if "--store-file" in str(TARGETS[name]().store):
        made.append(Place(request.getfixturevalue("lent")))
    else:
        made.append(Place())
    if name == "compose":
        make_secrets(made[0])
    yield made[0]
    made[0].remove()


@pytest.fixture
def lent(postgres: Any) -> Iterator[str]:
    """The URL of an empty database."""
    url = postgres.lend_database()
    yield url
    postgres.take_back(url)


def make_secrets(place: Place, *names: str) -> Path:
    """Lets Compose's script make the certificate of this place. The folder of what it made."""
    script = place.folder / "make-secrets.sh"
    shutil.copy(targets.DEPLOY / "compose/make-secrets.sh", script)
    done = place.run(str(script), "localhost", *names)
    assert done.returncode == 0, done.stderr
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (place.folder / name).write_bytes((place.folder / "secrets" / name).read_bytes())
    return place.folder / "secrets"


def train(place: Place, token: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Takes three steps and waits until they are durable. How many are."""
    monkeypatch.setenv("MECHANICD_CA", str(place.folder / "ca.crt"))
    monkeypatch.setenv("MECHANICD_TOKEN", token)
    with open_run(f"https://{place.grpc}", "deployed", start=0, on_outage="raise", deadline=20.0) as session:
        for _ in range(3):
            session.step(Reductions(-1e-3, 0.0, 1.0, 1.0))
        return session.flush(20.0)


def get(place: Place, path: str, token: str = "") -> tuple[int, str]:
    """The status and the text of a page's answer."""
    context = ssl.create_default_context(cafile=str(place.folder / "ca.crt"))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"https://{place.http}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def ready(place: Place, server: "subprocess.Popen[str]") -> None:
    """Waits until the server serves."""
    assert wait_for(lambda: (place.folder / "run/grpc.sock").exists() or server.poll() is not None, 60.0)
    assert server.poll() is None, place.log()
    waited = place.run("mechanicd", "health", "--target", "unix:/run/mechanicd/grpc.sock", "--wait", "20")
    assert waited.returncode == 0, waited.stderr + place.log()


FOR_SOAK = ("compose", "chart over SQLite", "systemd")
"""They show more of what the others show."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name in FOR_SOAK)) for name in TARGETS])
def test_the_commands_of_a_target(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]()
    token = place.new_token(target, "write")
    server = place.start(target.serve)
    try:
        ready(place, server)
        for probe in target.probes:
            assert place.run(*probe).returncode == 0
        assert train(place, token, monkeypatch) == 3
        with pytest.raises(MechanicdError) as refused:
            train(place, "", monkeypatch)
        assert refused.value.reason == "UNAUTHENTICATED"
        assert [get(place, "/healthz")[0], get(place, "/metrics")[0]] == [200, 401]
        reader = place.new_token(target, "read")  # beside the running server
        assert "mechanicd_certificate_expires_timestamp_seconds" in get(place, "/metrics", reader)[1]
        assert token not in place.log()
        if target.pre_stop:
            assert float(target.pre_stop[1]) < target.stop_seconds
            assert place.run(*target.pre_stop[:1], "0.1").returncode == 0  # its own time is for the Services to notice
            assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(target.stop_seconds) == 0, place.log()
        grace = next(float(word.partition("=")[2] or 10) for word in target.serve if word.startswith("--grace"))
        assert grace + float(target.pre_stop[1] if target.pre_stop else 0) < target.stop_seconds
        gone = place.run(*(word for word in target.probes[-1] if word not in ("--wait", "60")))
        assert (gone.returncode, gone.stdout) == (1, "")
    finally:
        _end(server)
    assert "every answered step is committed" in place.log()


@pytest.mark.soak
def test_two_servers_over_postgresql_take_a_rolling_update_and_lose_no_step(lent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Deployment does it: a new server is ready before the old one gets its signal. (Kills, freezes and clocks:
    tests/crash/test_takeover.py.)"""
    target = targets.charted({**POSTGRES, "tls": {"secret": "certificate"}})
    old, new = Place(lent), Place(lent)
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (new.folder / name).write_bytes((old.folder / name).read_bytes())
    token = old.new_token(target, "write")
    monkeypatch.setenv("MECHANICD_CA", str(old.folder / "ca.crt"))
    monkeypatch.setenv("MECHANICD_TOKEN", token)
    servers = [old.start(target.serve)]
    try:
        ready(old, servers[0])
        with open_run(f"https://{old.grpc},https://{new.grpc}", "rolled", start=0, deadline=20.0) as session:
            scales = [session.step(Reductions(-1e-3, 0.0, 1.0 + t % 3, 1.0)) for t in range(50)]
            servers.append(new.start(target.serve))
            ready(new, servers[1])
            servers[0].send_signal(signal.SIGTERM)
            scales += [session.step(Reductions(-1e-3, 0.0, 1.0 + t % 3, 1.0)) for t in range(50, 500)]
            assert servers[0].wait(target.stop_seconds) == 0
            assert session.flush(30.0) == 500
        servers[1].send_signal(signal.SIGTERM)
        assert servers[1].wait(target.stop_seconds) == 0
        with closing(open_store(lent, readonly=True)) as store:
            assert list(check(store)) == []  # replays every step
            row = store.get("default", "rolled")
            assert row is not None
            assert (row.last_step, row.scale) == (500, (scales[-1],))
    finally:
        for server in servers:
            _end(server)
        old.remove()
        new.remove()


def test_compose_s_script_renews_the_certificate_in_place_and_keeps_the_rest() -> None:
    from cryptography.x509 import DNSName, SubjectAlternativeName, load_pem_x509_certificate

    from mechanicd.tls import Keeper, TlsFiles

    place = Place()
    try:
        made = make_secrets(place, "m.example.org")
        keeper = Keeper(TlsFiles(str(made / "tls.crt"), str(made / "tls.key")))
        stays = {name: (made / name).read_bytes() for name in ("ca.crt", "ca.key", "postgres-password", "store")}
        assert stays["postgres-password"].strip() in stays["store"]
        there = {name: (made / name).stat().st_ino for name in ("tls.crt", "tls.key")}
        make_secrets(place, "n.example.org")
        renewed = keeper.renewed()
        assert renewed is not None
        certificate = load_pem_x509_certificate(renewed.certificate)
        certificate.verify_directly_issued_by(load_pem_x509_certificate(stays["ca.crt"]))
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value.get_values_for_type(DNSName)
        assert names == ["localhost", "n.example.org", "mechanicd", "localhost"]
        assert {name: (made / name).read_bytes() for name in stays} == stays
        assert {name: (made / name).stat().st_ino for name in there} == there, "a container has the file, not its folder"
        assert [path.name for path in made.iterdir() if path.stat().st_mode & 0o077] == ["ca.crt"], "the others are secrets"
        assert place.run(str(place.folder / "make-secrets.sh")).returncode == 2
    finally:
        place.remove()


def test_kubernetes_rotates_a_secret_and_the_next_handshake_has_the_new_certificate(tmp_path: Path) -> None:
    """It replaces a link, ..data, to a folder with all files; the files' own links stay."""
    from mechanicd.tls import Keeper, TlsFiles

    place = Place()
    try:
        mount = tmp_path / "tls"
        mount.mkdir()

        def project(version: str) -> None:
            folder = mount / f"..{version}"
            folder.mkdir()
            for name in ("tls.crt", "tls.key"):
                (folder / name).write_bytes((place.folder / name).read_bytes())
            (mount / "..new").symlink_to(folder.name)
            (mount / "..new").rename(mount / "..data")

        project("one")
        for name in ("tls.crt", "tls.key"):
            (mount / name).symlink_to(f"..data/{name}")
        keeper = Keeper(TlsFiles(str(mount / "tls.crt"), str(mount / "tls.key")))
        first = keeper.pair.certificate
        assert keeper.renewed() is None
        place.new_certificate()
        project("two")
        renewed = keeper.renewed()
        assert renewed is not None
        assert renewed.certificate != first
    finally:
        place.remove()


def _end(server: "subprocess.Popen[str]") -> None:
    if server.poll() is None:
        server.kill()
        server.wait()
