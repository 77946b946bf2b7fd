"""What is an address of a server, and when an HTTP proxy may stand before it."""

import pytest
import torch

from mechanicd.client import InvalidArgument, ServerUnavailable, _address, connect
from mechanicd.torch import mechanize

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")


@pytest.mark.parametrize(
    "target",
    [
        ",", "http://127.0.0.1:50051", "https://host", "https://unix:/m.sock", "https://host:50051/api", "grpc://host:50051",
        "tcp://h:1", "host", "127.0.0.1", ":50051",
        "host:", "host:port", "host:0", "host:99999", "host:65536", "host:-1", "host:5٣", "::1", "::1:50051", "fe80::1:50051",
        "host/path:50051", "user@host:50051", "a b:50051", "unix:", "dns:///", "good:50051,bad", "127.0.0.1:8080/",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_at_once(target: str) -> None:
    p = torch.nn.Parameter(torch.ones(1))
    for use in (connect, lambda target: mechanize(torch.optim.SGD([p], lr=1.0), run="r", target=target)):
        with pytest.raises(InvalidArgument) as caught:
            use(target)
        assert caught.value.reason == "INVALID_TARGET"


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:50051", "localhost:1", "[::1]:65535", "replica-a:50051, replica-b:50051", "unix:/tmp/m.sock",
        "unix:///tmp/m.sock", "dns:///host:50051", "ipv4:10.0.0.1:50051", "xn--bcher-kva.example:50051", "my_host:50051",
    ],
)  # fmt: skip
def test_an_address_is_taken(target: str) -> None:
    connect(target).close()
    assert _address.parse(target) == target.split(", ")


@pytest.mark.parametrize(
    ("environment", "host", "proxied"),
    [
        ({}, "server", False),
        ({"http_proxy": "http://p:1"}, "server", True),
        ({"https_proxy": "http://p:1"}, "10.0.0.1", True),
        ({"http_proxy": "http://p:1"}, "localhost", False),
        ({"http_proxy": "http://p:1"}, "127.0.0.1", False),
        ({"http_proxy": "http://p:1"}, "127.9.9.9", False),
        ({"http_proxy": "http://p:1"}, "::1", False),
        ({"http_proxy": "http://p:1", "no_proxy": "server"}, "server", False),
        ({"http_proxy": "http://p:1", "NO_PROXY": "server"}, "server", False),
        ({"http_proxy": "http://p:1", "NO_PROXY": ".cluster.local, other"}, "m.cluster.local", False),
        ({"http_proxy": "http://p:1", "NO_PROXY": "*"}, "server", False),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "10.1.2.3", False),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "11.1.2.3", True),
        ({"http_proxy": "http://p:1", "NO_PROXY": "fd00::/8"}, "fd12::1", False),
        ({"http_proxy": "http://p:1", "NO_PROXY": "elsewhere"}, "server", True),
        ({"ftp_proxy": "http://p:1"}, "server", False),
    ],
)
def test_a_proxy_stands_only_before_hosts_that_no_proxy_does_not_name(
    environment: dict[str, str], host: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _address.may_proxy(f"[{host}]:1" if ":" in host else f"{host}:1") is proxied


def test_a_server_on_this_machine_is_reached_whatever_the_proxy_variables_say(
    server: object, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechanicd.client import Reductions, open_run

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with open_run(server.target, "proxied", project=project, start=0) as session:  # type: ignore[attr-defined]
        session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
        assert session.flush() == 1


def test_an_error_behind_a_proxy_says_that_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanicd.client import ServerUnavailable, connect
    from mechanicd.v1 import run_service_pb2

    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for host, told in (("192.0.2.1", True), ("127.0.0.1", False)):
        with connect(f"{host}:9") as client, pytest.raises(ServerUnavailable) as refused:
            client.call("GetRun", run_service_pb2.GetRunRequest(name="projects/default/runs/a"), 2.0)
        assert ("NO_PROXY" in refused.value.message) is told, refused.value.message


def test_a_host_behind_a_proxy_is_left_to_the_proxy_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanicd.client._targets import Targets

    def resolve(*_: object, **__: object) -> list[object]:
        raise AssertionError("resolved here")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert list(map(str, Targets("mechanicd.example:50051").addresses())) == ["mechanicd.example:50051"]


def test_a_host_that_no_proxy_names_is_reached_without_one_whatever_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanicd.client._targets import Targets

    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.1", 50051))])
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "mechanicd.example")
    targets = Targets("mechanicd.example:50051,192.0.2.2:50051")
    assert list(map(str, targets.addresses())) == ["192.0.2.1:50051", "192.0.2.2:50051"]
    assert [targets.transport(address).proxied for address in targets.addresses()] == [False, True]
    first = targets.transport(targets.addresses()[0])
    renewed = targets.renewed(first, ServerUnavailable("DEADLINE_EXCEEDED", "nobody answered"))
    assert renewed is not first
    assert (renewed.target, renewed.proxied) == ("192.0.2.1:50051", False)
    targets.close()


def test_a_certificate_is_checked_against_the_name_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanicd.client._targets import Targets

    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.1", 50051))])
    addresses = Targets("HTTPS://mechanicd.example:50051/, plain.example:50051, https://192.0.2.7:50051").addresses()
    assert [(str(address), address.name) for address in addresses] == [
        ("https://192.0.2.1:50051", "mechanicd.example"),
        ("192.0.2.1:50051", ""),
        ("https://192.0.2.7:50051", "192.0.2.7"),
    ]
