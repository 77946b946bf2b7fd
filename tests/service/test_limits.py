"""The limits of docs/operations.md, each from outside: what is above it is refused by name, what is at it is answered, and the
trainer beside it goes on."""

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanicd.service import _convert, _limits
from mechanicd.store import _forking
from mechanicd.tuner import Tuner, TunerConfig, TunerState
from mechanicd.v1 import names, tuner_service_pb2
from tests.docs.pages import DOCS
from tests.service.conftest import refusal

New = Callable[..., Any]


def limits(what: str) -> list[int]:
    """The numbers of a row of the documentation's table."""
    found = re.search(rf"^\| {re.escape(what)}[^|]*\| ([^|]+) \|", DOCS["docs/operations.md"], re.MULTILINE)
    assert found is not None
    numbers = re.findall(r"([0-9,]+)( MiB)?", found[1])
    return [int(number.replace(",", "")) * (2**20 if unit else 1) for number, unit in numbers]


def limit(what: str) -> int:
    """The first of them."""
    return limits(what)[0]


def raw(wire: Any, method: str, data: bytes) -> list[bytes]:
    """The answers to bytes that are sent as they are."""
    if method == "StreamSteps":
        return list(wire.channel.stream_stream(f"/mechanicd.v1.TunerService/{method}")(iter([data]), timeout=20))
    service = "TunerService" if method == "Step" else "RunService"
    return [wire.channel.unary_unary(f"/mechanicd.v1.{service}/{method}")(data, timeout=20)]


def refused(wire: Any, method: str, data: bytes) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        raw(wire, method, data)
    return refusal(caught.value)


STEPS = {
    "empty": b"\x0a\x00",
    "of a number": b"\x0a\x02\x10\x01",
    "after a field that nobody knows": b"\x92\x3e\x01x\x0a\x00",
    "after a group": b"\x1b\x1c\x0a\x00",
    "after a number": b"\xf9\x3e12345678\x0a\x00",
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("count", [1, 2, 100, 1000])
def test_a_message_of_too_many_steps_is_refused_before_any_is_taken(training: Any, step: bytes, count: int) -> None:
    most = limit("steps in one message of `StreamSteps`")
    data = step * (most + 1) * count
    error = refused(training.wire, "StreamSteps", data)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "REQUEST_TOO_LARGE")
    assert error.metadata == {"allowed": str(most), "unit": "steps"}
    assert "several messages" in error.message
    training.take()


def test_as_many_steps_as_a_message_may_have_are_taken_in_their_order(new_training: New) -> None:
    most = limit("steps in one message of `StreamSteps`")
    one, wide = new_training("one"), new_training("wide")
    one.open()
    wide.open()
    stream = one.wire.stream()
    requests, states = [], []
    for training in (one, wide):
        for step in range(1, most // 2 + 1):
            reductions = training.reductions(step)
            requests.append(training.request(reductions, step=step))
            states.append((training, reductions))
    for (training, reductions), result in zip(states, stream.take(*requests), strict=True):
        training.expect(result, reductions)
    stream.close()
    assert (one.flush(), wide.flush()) == (most // 2, most // 2)


@pytest.mark.parametrize("method", ["ListRuns", "GetRun", "Step", "SketchRuns", "UpdateRun"])
def test_a_request_of_too_many_bytes_is_refused_by_name(training: Any, method: str) -> None:
    most = limit("bytes of any other request")
    error = refused(training.wire, method, b"\x92\x3e" + bytes([0x80 | most & 0x7F, *_rest(most)]) + b"x" * most)
    assert error.reason == "REQUEST_TOO_LARGE"
    assert error.metadata == {"allowed": str(most), "unit": "bytes"}
    training.take()


def test_an_opening_may_have_so_many_bytes_beside_its_state(training: Any) -> None:
    most = limit("bytes of `OpenSession`, its tuner state aside")
    state = Tuner().init().to_bytes()
    wide = tuner_service_pb2.OpenSessionRequest(name=training.name, tuner_state=state + bytes(2 * most))
    assert training.wire.refused("OpenSession", name=wide.name, tuner_state=wide.tuner_state).reason == "INVALID_TUNER_STATE"
    for fields in ({"client": "x" * most}, {"config": {"scale_groups": [""] * (most // 2)}}, {"labels": {"k": "v" * most}}):
        error = training.wire.refused("OpenSession", name=training.name, **fields)
        assert (error.reason, error.metadata) == ("REQUEST_TOO_LARGE", {"allowed": str(most), "unit": "bytes"})
    training.take()


def _rest(length: int) -> list[int]:
    length, found = length >> 7, []
    while length > 0x7F:
        found.append(0x80 | length & 0x7F)
        length >>= 7
    return [*found, length]


@given(st.lists(st.sampled_from([*STEPS.values(), b"\x0a\x0a\x10\x01\x1a\x00\x92\x3e\x03abc"])), st.integers(0, 30))
def test_steps_are_counted_without_decoding_them(parts: list[bytes], most: int) -> None:
    data = b"".join(parts)
    steps = len(tuner_service_pb2.StreamStepsRequest.FromString(data).steps)
    fields = steps + sum(data.count(other) for other in (b"\x92\x3e\x01x", b"\x1b", b"\x1c", b"\xf9\x3e"))
    assert _limits.has_more(data, most) == (fields > most)


@given(st.binary(max_size=100))
def test_any_bytes_can_be_counted(data: bytes) -> None:
    assert _limits.has_more(data, 100) is False


def test_what_is_no_message_is_still_told_from_what_is_too_large(wire: Any) -> None:
    assert refused(wire, "StreamSteps", b"\xff" * 100_000).reason == "MALFORMED_REQUEST"
    assert refused(wire, "StreamSteps", b"\x0a\x00" * 900 + b"\x0a\xff\xff\x7f" + b"x" * 20_000).reason == "MALFORMED_REQUEST"


def test_a_connection_may_have_so_many_streams(server: Any) -> None:
    host, port = server.target.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection, connection.makefile("rb") as frames:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))  # and empty settings
        length, kind = struct.unpack(">I", b"\0" + frames.read(3))[0], frames.read(6)[0]
        settings = dict(struct.iter_unpack(">HI", frames.read(length)))
    assert kind == 4, "settings come first"
    assert settings[3] == limit("streams of one connection")


@pytest.mark.soak
def test_a_connection_that_does_not_begin_is_closed(server: Any) -> None:
    host, port = server.target.split(":")
    seconds = limit("seconds for a connection to begin")
    begun = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=2 * seconds) as connection:
        while connection.recv(2**16):  # the server's settings come first
            pass
    assert seconds - 2 < time.monotonic() - begun < seconds + 10


def test_a_host_may_watch_so_often_and_again_once_a_watch_has_ended(wire: Any, training: Any) -> None:
    most = limit("watches")
    watching = [wire.call("WatchRuns", parent="projects/nobody") for _ in range(most)]
    for each in watching:
        next(each)
    error = wire.refused("WatchRuns", parent="projects/nobody")
    assert (error.reason, error.metadata) == ("TOO_MANY_WATCHERS", {"allowed": str(most)})
    training.take()
    for each in watching:
        each.cancel()

    def again() -> bool:
        with contextlib.suppress(grpc.RpcError):
            next(wire.call("WatchRuns", parent="projects/nobody"))
            return True
        return False

    deadline = time.monotonic() + 20
    while not again():
        assert time.monotonic() < deadline


def test_the_most_scale_groups_fit_with_the_default_betas() -> None:
    groups, _, cells = limits("scale groups · betas of a run · their product")
    assert len(TunerConfig(scale_groups=[str(i) for i in range(groups)]).scale_groups) == groups
    assert groups * len(TunerConfig().betas) <= cells == _convert.MOST_CELLS


def test_a_checkpoint_may_be_at_the_largest_step_and_not_after_it(training: Any) -> None:
    most = limit("the step of a checkpoint")
    rows = Tuner().init().rows
    late = training.wire.refused("OpenSession", name=training.name, tuner_state=TunerState.from_rows(most + 1, rows).to_bytes())
    assert (late.reason, late.fields) == ("INVALID_TUNER_STATE", ["tuner_state"])
    opened = training.open(tuner_state=TunerState.from_rows(most, rows).to_bytes())
    assert opened.last_step == most
    training.states = [TunerState.from_rows(most, rows)]
    training.take(3)
    training.flush()
    assert [record.step for record in training.series(first_step=most)] == [most + 1, most + 2, most + 3]


def test_the_limits_of_names_and_labels_are_those_of_the_contract() -> None:
    assert limit("seconds for a connection to begin") == _limits.HANDSHAKE_SECONDS
    assert limit("seconds of a connection without a call") == _limits.IDLE_SECONDS
    assert limit("bytes of a fork") == _forking._PORTION
    assert limit("labels of a run") == names.MAX_LABELS
