"""The contract spoken directly, without the client: what it sends, what it gets, and a tuner of its own to compare with."""

import asyncio
import queue
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.rpc import error_details_pb2, status_pb2

from mechanicd.tuner import CONVENTIONS, Reductions, Tuner, TunerConfig, TunerState
from mechanicd.v1 import errors_pb2, names, resources_pb2, run_service_pb2, tuner_service_pb2
from tests.service.engine_bench import Bench, Play

DEADLINE = 20.0
SERVICES = [
    tuner_service_pb2.DESCRIPTOR.services_by_name["TunerService"],
    run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
]
METHODS = {method.name: method for service in SERVICES for method in service.methods}
REASONS = set(errors_pb2.ErrorReason.keys())


@dataclass(frozen=True)
class Refusal:
    """What a refused call carries: a google.rpc.Code, and the facts of ErrorInfo and BadRequest."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str]
    fields: list[str]


def refusal(error: Any) -> Refusal:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    unpacked = [detail.Unpack(target) for detail, target in zip(status.details, (info, bad), strict=False)]
    assert all(unpacked)
    assert info.domain == names.DOMAIN
    assert info.reason in REASONS
    fields = [violation.field for violation in bad.field_violations]
    return Refusal(status.code, info.reason, status.message, dict(info.metadata), fields)


class Wire:
    """One connection. Methods are called by name, requests are given by their fields."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target)

    def start(self, method: str, request: Any) -> Any:
        """The bare call, of whatever kind the method is."""
        described = METHODS[method]
        shape = f"{'stream' if described.client_streaming else 'unary'}_{'stream' if described.server_streaming else 'unary'}"
        return getattr(self.channel, shape)(
            f"/{described.containing_service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(described.output_type).FromString,
        )(request, timeout=DEADLINE)

    def call(self, method: str, **fields: Any) -> Any:
        """A call that succeeds; the iterator of responses where the method streams."""
        return self.start(method, message_factory.GetMessageClass(METHODS[method].input_type)(**fields))

    @staticmethod
    def refusal(error: grpc.RpcError) -> Refusal:
        """What an error carries."""
        return refusal(error)

    def refused(self, method: str, **fields: Any) -> Refusal:
        """A call that must not succeed."""
        streams = METHODS[method].server_streaming
        with pytest.raises(grpc.RpcError) as caught:
            next(self.call(method, **fields)) if streams else self.call(method, **fields)
        return refusal(caught.value)

    def stream(self) -> "Stream":
        """A new stream of steps; close it."""
        return Stream(self)

    def close(self) -> None:
        self.channel.close()


class Stream:
    """An open StreamSteps."""

    def __init__(self, wire: Wire) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._responses = wire.start("StreamSteps", iter(self._requests.get, None))

    def send(self, *steps: Any) -> None:
        self._requests.put(tuner_service_pb2.StreamStepsRequest(steps=steps))

    def receive(self) -> list[Any]:
        """The results of one message."""
        return list(next(self._responses).results)

    def take(self, *steps: Any) -> list[Any]:
        self.send(*steps)
        return self.receive()

    def close(self) -> None:
        """Half-closes, and waits for the server's end of it."""
        self._requests.put(None)
        assert list(self._responses) == []


class Training:
    """A trainer at the wire. Every step it takes is held to a tuner of its own, bit for bit.

    Attributes:
        states: the tuner's state after each step, from the start on; `rewind` shortens it.
    """

    def __init__(self, wire: Wire, name: str, config: TunerConfig | None = None, seed: int = 0) -> None:
        self.wire, self.name, self.seed = wire, name, seed
        self.tuner = Tuner(config)
        self.states = [self.tuner.init()]
        self.session = 0
        self.opened: Any = None

    @property
    def state(self) -> TunerState:
        return self.states[-1]

    @property
    def config(self) -> resources_pb2.TunerConfig:
        config = self.tuner.config
        fields = {name: getattr(config, name) for name in ("betas", "s_decay", "s_init", "eps", "initial_wealth")}
        convention = CONVENTIONS[config.convention].wire
        return resources_pb2.TunerConfig(convention=convention, scale_groups=config.scale_groups, **fields)

    def open(self, **fields: Any) -> Any:
        """OpenSession; the response."""
        self.opened = self.wire.call("OpenSession", **{"name": self.name, "config": self.config} | fields)
        self.session = self.opened.session
        return self.opened

    def rewind(self, step: int) -> None:
        """What the trainer does when it goes back to a checkpoint."""
        del self.states[step + 1 :]

    def reductions(self, step: int) -> list[Reductions]:
        """Each step has its own, whoever asks."""
        rng = random.Random(f"{self.seed} {step}")
        groups = len(self.tuner.config.scale_groups)
        return [Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0.0, 1.0), rng.random(), rng.random()) for _ in range(groups)]

    def request(self, reductions: list[Reductions] | None = None, **fields: Any) -> Any:
        """The next step as a message, with the scalars that are its own or others."""
        step = fields.setdefault("step", self.state.step + 1)
        by_field = zip(*(reductions or self.reductions(step)), strict=True)
        message = resources_pb2.Reductions(**dict(zip(Reductions._fields, by_field, strict=True)))
        return tuner_service_pb2.StepRequest(**{"session": self.session, "reductions": message} | fields)

    def expect(self, result: Any, reductions: list[Reductions] | None = None, hold: bool = False) -> Any:
        """Holds the result of the next step to the tuner here."""
        assert not result.HasField("error"), result.error.message
        step = self.state.step + 1
        after = self.tuner.hold(self.state) if hold else self.tuner.update(self.state, reductions or self.reductions(step))
        self.states.append(after)
        assert (result.session, result.step) == (self.session, step)
        assert tuple(result.scale) == after.scale
        return result

    def take(self, count: int = 1) -> Any:
        """The next steps, by unary calls; the last result."""
        for _ in range(count):
            result = self.wire.start("Step", self.request()).result
            self.expect(result)
        return result

    def flush(self) -> int:
        return int(self.wire.call("Flush", session=self.session).durable_step)

    def close(self, status: str = "RUN_STATUS_FINISHED", message: str = "") -> Any:
        return self.wire.call("CloseSession", session=self.session, status=status, message=message).run

    def series(self, **fields: Any) -> list[Any]:
        """The steps that the server kept, flushed before."""
        return list(self.wire.call("QuerySeries", **{"name": self.name} | fields).records)

    def run(self) -> Any:
        return self.wire.call("GetRun", name=self.name).run


@pytest.fixture
def new_wire() -> Iterator[Callable[[str], Wire]]:
    """Connections to servers of the test's own: `new_wire(target)`."""
    made: list[Wire] = []

    def make(target: str) -> Wire:
        made.append(Wire(target))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.fixture
def wire(server: Any, new_wire: Callable[[str], Wire]) -> Wire:
    """A connection to the shared server."""
    return new_wire(server.target)


@pytest.fixture
def new_training(server: Any, new_wire: Callable[[str], Wire], project: str) -> Callable[..., Training]:
    """Trainings, not opened yet: `new_training("run", config, seed=1)`, or at another server, `new_training(at=mine)`."""

    def make(run: str = "run", config: TunerConfig | None = None, seed: int = 0, at: Any = server) -> Training:
        return Training(new_wire(at.target), f"projects/{project}/runs/{run}", config, seed)

    return make


@pytest.fixture
def training(new_training: Callable[..., Training]) -> Training:
    """A training with an open session at the shared server, before its first step."""
    made = new_training()
    made.open()
    return made


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Bench]:
    """Runs a coroutine on a bench inside an event loop, and stops the engine; gives the bench, to look at what it left."""

    def run(act: Play, flush_interval: float = 0.001) -> Bench:
        async def scene() -> Bench:
            bench = Bench(tmp_path / "runs.db", flush_interval)
            await act(bench)
            await bench.engine.stop()
            return bench

        return asyncio.run(asyncio.wait_for(scene(), 30))

    return run
