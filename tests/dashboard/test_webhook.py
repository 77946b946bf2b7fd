"""The webhook: a real receiver hears once when a run begins to need somebody, and once when it no longer does."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from mechanicd.dashboard._webhook import SETTLE_SECONDS, settled

New = Callable[..., Any]


class Receiver:
    """An HTTP server that keeps what is POSTed to it.

    Attributes:
        heard: the bodies it accepted.
        tries: how many requests came in all.
        answers: statuses for the next requests, before 204 for all others.
        open: while it is not set, no answer is given.
    """

    def __init__(self, port: int = 0) -> None:
        self.heard: list[dict[str, Any]] = []
        self.tries = 0
        self.answers: list[int] = []
        self.open = threading.Event()
        self.open.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.tries += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                receiver.open.wait(60)
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status == 204:
                    receiver.heard.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def of(self, name: str) -> list[tuple[str, str]]:
        """(began or ended, kind) of a run, in the order in which they came."""
        return [(event["event"], event["need"]["kind"]) for event in self.heard if event["run"] == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def new_receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(port: int = 0) -> Receiver:
        made.append(Receiver(port))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def hooked(new_server: New) -> New:
    """A server that tells a receiver."""

    def start(url: str) -> Any:
        return new_server("--http", "127.0.0.1:0", "--webhook", url).start()

    return start


BEGAN, ENDED = ("began", "non_finite"), ("ended", "non_finite")


def test_a_need_is_told_once_when_it_begins_and_once_when_it_ends(
    hooked: New, new_receiver: New, new_trainer: New, wait_for: New
) -> None:
    receiver = new_receiver()
    trainer = new_trainer(hooked(receiver.url), "a", labels={"who": "me"}).take(5)
    trainer.take(30, bad=True)
    assert wait_for(lambda: BEGAN in receiver.of(trainer.name))
    (event,) = [event for event in receiver.heard if event["run"] == trainer.name]
    assert event["labels"] == {"who": "me"}
    assert event["status"] == "running"
    assert "NaN or infinite" in event["need"]["message"]
    assert event["need"]["step"] == 6
    trainer.take(10, bad=True)
    trainer.take(2000)
    assert wait_for(lambda: ENDED in receiver.of(trainer.name))
    assert receiver.of(trainer.name) == [BEGAN, ENDED]


def test_a_new_page_process_does_not_tell_it_again(hooked: New, new_receiver: New, new_trainer: New, wait_for: New) -> None:
    receiver = new_receiver()
    server = hooked(receiver.url)
    first, second = new_trainer(server, "a"), new_trainer(server, "b")
    first.take(30, bad=True)
    assert wait_for(lambda: receiver.of(first.name) == [BEGAN])
    psutil.Process(server.pid).children()[0].kill()
    second.take(30, bad=True)
    assert wait_for(lambda: receiver.of(second.name) == [BEGAN]), "the new one works"
    assert receiver.of(first.name) == [BEGAN]


def test_a_receiver_that_fails_is_tried_again(hooked: New, new_receiver: New, new_trainer: New, wait_for: New) -> None:
    receiver = new_receiver()
    receiver.answers = [500, 302]
    trainer = new_trainer(hooked(receiver.url), "a").take(30, bad=True)
    assert wait_for(lambda: receiver.of(trainer.name) == [BEGAN])
    assert receiver.tries == 3


def test_a_receiver_that_is_away_hears_it_when_it_is_back(
    hooked: New, new_receiver: New, new_trainer: New, new_http: New, wait_for: New
) -> None:
    receiver = new_receiver()
    receiver.close()
    server = hooked(receiver.url)
    trainer = new_trainer(server, "a").take(30, bad=True)
    assert wait_for(lambda: "webhook: the receiver can't be reached" in server.log.read_text())
    assert new_http(server).get("/healthz").status_code == 200
    back = new_receiver(receiver.port)
    assert wait_for(lambda: back.of(trainer.name) == [BEGAN], 30)


def test_a_slow_receiver_holds_up_nothing(
    hooked: New, new_receiver: New, new_trainer: New, new_http: New, seen: New, wait_for: New
) -> None:
    receiver = new_receiver()
    receiver.open.clear()
    server = hooked(receiver.url)
    http, trainer = new_http(server), new_trainer(server, "a").take(30, bad=True)
    assert wait_for(lambda: receiver.tries == 1)
    trainer.take(3)
    seen(http, trainer.name, step=33)
    assert http.post("/api/v1/series", json={"runs": [trainer.name]}).status_code == 200
    assert server.stop() == 0
    assert not receiver.heard, "all this was while it had not answered"
    receiver.open.set()


def test_after_a_start_runs_have_a_while_to_come_back_before_they_are_called_silent() -> None:
    needs = [{"kind": kind, "message": "", "step": 1} for kind in ("silent", "collapsed", "outage")]
    items = [{"name": "a", "needs": needs}, {"name": "b", "needs": []}]
    early, later = settled(items, SETTLE_SECONDS * 10**9 - 1), settled(items, SETTLE_SECONDS * 10**9)
    assert [[need["kind"] for need in item["needs"]] for item in early] == [["collapsed"], []]
    assert later == items
