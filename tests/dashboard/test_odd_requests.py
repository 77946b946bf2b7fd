"""Page tokens, cursors, Accept headers and parameters that nobody sends: each is answered or refused, never a traceback."""

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from mechanicd.client import InvalidArgument, connect
from mechanicd.v1 import run_service_pb2

New = Callable[..., Any]

ODD = (
    *(b"", b"\x00", b"%", b"%zz", b"\xff\xfe", b"\xed\xa0\x80", b"\r\nX: y", b"'", b'"', b"=", b"AAAA", b"{}", b"[", b"null"),
    *("١٢", "∞", "‮", "É" * 300, "\u2028"),
    *(b"-1", b"1e999", b"NaN", b"-0", b"9" * 5000, b"0x10", b"1_0", b" 1", b"1.5", b"2147483649", b"-9223372036854775809"),
    *(b"0.0", b"x.1", b"." * 50, b"1" * 400 + b".1", b"a=b&a=c", b"*/*;q=", b"application/openmetrics-text;version=x;q=\xb2"),
    *(b"text/plain;version=1.0.0;escaping=\xff", b",,,;;;", b"a/b;q=1e9;version=0.0.1" * 50),
)
ODD_BYTES = [each.encode() if isinstance(each, str) else each for each in ODD]
PARAMETERS = {
    "runs": ("filter", "project"),
    "events": ("filter",),
    "run": ("name",),
    "sparklines": ("runs",),
    "heatmap": ("run", "branch", "x0", "x1", "columns"),
    "export": ("run", "format", "branch", "x0", "x1"),
}


def ask(page: str, path: bytes, *headers: bytes) -> int:
    """The status of a GET whose bytes are sent as they are; 0 where the connection is closed without one."""
    host, _, port = page.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = [b"GET " + path + b" HTTP/1.1", b"Host: 127.0.0.1", b"Connection: close", *headers]
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n")
        answer = connection.recv(12)
    return int(answer[9:12]) if len(answer) == 12 else 0


def test_the_page_answers_or_refuses_whatever_is_asked(shared: Any, new_trainer: New) -> None:
    run = quote_from_bytes(new_trainer(shared, "odd").take(3).name.encode()).encode()
    before = len(shared.log.read_text())
    headers = (b"Accept-Encoding", b"Cookie", b"Range", b"If-None-Match", b"Authorization", b"Content-Length")
    for i, odd in enumerate(ODD_BYTES):
        value = quote_from_bytes(odd).encode()
        for route, parameters in PARAMETERS.items():
            if route == "events" and not odd:
                continue  # a live stream
            parameter = parameters[i % len(parameters)]
            fixed = b"&run=" + run if route in ("heatmap", "export") and parameter != "run" else b""
            path = f"/api/v1/{route}?{parameter}=".encode() + value + fixed
            assert ask(shared.page, path) in (200, 400, 404, 429), path
        plain = odd.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
        assert ask(shared.page, b"/metrics", b"Accept: " + plain) in (200, 400), plain
        assert ask(shared.page, b"/api/v1/events", b"Last-Event-ID: " + plain) in (200, 400), plain
        header = headers[i % len(headers)]
        assert ask(shared.page, b"/api/v1/runs", header + b": " + plain) in (0, 200, 400, 401, 413), (header, plain)
    log = shared.log.read_text()[before:]
    assert "Traceback" not in log
    assert log.replace("\n", "").isprintable()


@pytest.mark.parametrize("method", ["ListRuns", "QuerySeries"])
def test_a_page_token_of_anybody_is_refused_by_name(method: str, shared: Any, new_trainer: New, project: str) -> None:
    trainer = new_trainer(shared, "tokens").take(3)
    request = getattr(run_service_pb2, f"{method}Request")
    fields = {"parent": f"projects/{project}"} if method == "ListRuns" else {"name": trainer.name}
    before = len(shared.log.read_text())
    with connect(shared.target) as client:
        for odd in ODD_BYTES:
            token = odd.decode(errors="replace")
            if not token:
                continue
            with pytest.raises(InvalidArgument) as caught:
                client.call(method, request(**fields, page_token=token, page_size=1))
            assert caught.value.reason == "INVALID_PAGE_TOKEN", token
            assert str(caught.value).isprintable()
    assert "Traceback" not in shared.log.read_text()[before:]
