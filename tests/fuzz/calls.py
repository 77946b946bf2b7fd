"""The target of every method of gRPC: an engine over a store in memory, and calls as a stranger may make them.

An input is one call. Calls come in sequences of hundreds, in one world, because what matters is often what the one before left:
open, step, rewind, fork. Beside them a well-behaved trainer takes its steps. Each must be answered with the bits of a tuner of
its own, and in the end its history must be whole, and `store check` must find nothing in the store.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from random import Random
from time import process_time
from types import SimpleNamespace
from typing import Any, Final

import grpc
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from mechanicd import access
from mechanicd.service import Engine, _limits, _permissions
from mechanicd.service._decoding import Decoding
from mechanicd.service._door import Door, run_of
from mechanicd.service._grpc import RunServicer, TunerServicer
from mechanicd.service._keys import Access
from mechanicd.service._run_service import RunService
from mechanicd.store import SQLiteStore, check
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState
from mechanicd.v1 import (
    errors_pb2,
    resources_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    tuner_service_pb2,
    tuner_service_pb2_grpc,
)
from tests.fuzz import mutation, stored
from tests.fuzz.harness import AtFault, Meter, Target, run
from tests.fuzz.parsers import FILTER_WORDS, FILTERS

SERVICES: Final = (
    tuner_service_pb2.DESCRIPTOR.services_by_name["TunerService"],
    run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
)
METHODS: Final = {method.name: method for service in SERVICES for method in service.methods}
REASONS: Final = frozenset(errors_pb2.ErrorReason.keys())
MOST_TRAILER: Final = 8 * 1024
"""gRPC rejects trailers above this."""
CALLS: Final = 200
"""In one sequence."""
GOOD: Final = "projects/good/runs/trainer"
RUNS: Final = ("projects/p/runs/a", "projects/p/runs/b", "projects/p/runs/a/b", "projects/q/runs/a", "projects/p/runs/new")
_KEPT: Final = 200


class Refused(Exception):
    """A call that was refused by name."""

    def __init__(self, reason: str, code: Any, details: str) -> None:
        super().__init__(f"{reason}: {details}")
        self.reason = reason
        self.code = code


class _Context:
    """What grpcio gives a method, as far as the methods use it."""

    def __init__(self, requests: list[Any]) -> None:
        self._requests = iter(requests)
        self.written: list[Any] = []

    def auth_context(self) -> dict[str, Any]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def send_initial_metadata(self, metadata: Any) -> None:
        assert all(isinstance(value, str) for _, value in metadata)

    async def read(self) -> Any:
        return next(self._requests, grpc.aio.EOF)  # type: ignore[attr-defined]

    async def write(self, response: Any) -> None:
        self.written.append(response)

    async def abort(self, code: Any, details: str, trailing_metadata: Any = ()) -> None:
        trailer = dict(trailing_metadata).get("grpc-status-details-bin")
        if trailer is None:
            raise AtFault(f"refused without a reason: {code}: {details}")
        status, info = status_pb2.Status.FromString(trailer), error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason in REASONS, info.reason
        assert (status.code, status.message) == (code.value[0], details)
        assert code is not grpc.StatusCode.INTERNAL
        assert len(trailer) + len(details.encode()) < MOST_TRAILER, len(trailer)
        raise Refused(info.reason, code, details)


class _Handlers:
    """In the place of a server: it keeps the methods, with their decoders."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same once more."""

    def add_registered_method_handlers(self, _: str, handlers: Mapping[str, Any]) -> None:
        self.by_name |= handlers


_MADE: Final = {
    "admin": access.create("", access.Role.ADMIN, 1),
    "write": access.create("p", access.Role.WRITE, 1),
    "read": access.create("p", access.Role.READ, 1),
    "expired": access.create("", access.Role.ADMIN, 1, expire_time=2),
}
TOKENS: Final = {kind: text for kind, (text, _) in _MADE.items()} | {"forged": _MADE["admin"][0][:-43] + "A" * 43}
_NO_GOOD: Final = ("expired", "forged")


class World:
    """A server without a network, the well-behaved trainer, and what a stranger has learned so far."""

    def __init__(self) -> None:
        self.store = SQLiteStore(":memory:")
        self.engine = Engine(self.store, 0.001)
        handlers: Any = _Handlers()
        tuner_service_pb2_grpc.add_TunerServiceServicer_to_server(
            TunerServicer(self.engine, False), Decoding(handlers, SERVICES[0])
        )
        run_service_pb2_grpc.add_RunServiceServicer_to_server(
            RunServicer(RunService(self.engine)), Decoding(handlers, SERVICES[1])
        )
        self.handlers: dict[str, Any] = handlers.by_name
        for _, kept in _MADE.values():
            self.store.add_token(kept)
        tokens = partial(self.engine.writer.call, self.store.tokens)
        self.door = Door(Access(), tokens, self.store.clock.now, partial(run_of, self.engine))
        self.sessions: list[int] = [1]
        self.steps: Counter[int] = Counter()  # the last step of a session, as far as is known
        self.groups: dict[int, int] = {}
        self.states: list[bytes] = [TunerState.initial(TunerConfig()).to_bytes()]
        self.tokens: list[str] = ["x"]
        self.calls: list[str] = []
        self._good: list[TunerState] = [Tuner().init()]
        self._good_session = 0

    async def call(self, method: str, *messages: bytes, token: str = "admin") -> list[Any]:
        """The responses to messages, as they are on the wire, with one of `TOKENS`.

        Raises:
            Refused: by name.
        """

        async def plain(_: Any) -> Any:
            return self.handlers[method]

        shown = (("authorization", f"Bearer {TOKENS[token]}"),)
        handler = await self.door.intercept_service(plain, SimpleNamespace(method=_full(method), invocation_metadata=shown))
        decode = handler.request_deserializer or bytes
        requests = [decode(message) for message in messages]
        context = _Context(requests)
        if handler.request_streaming:
            await handler.stream_stream(None, context)
            responses = context.written
        elif handler.response_streaming:
            responses = []
            watching = handler.unary_stream(requests[0], context)
            if asyncio.iscoroutine(watching):  # grpcio takes both forms; this one refuses
                await watching
            async for response in watching:
                responses.append(response)
                if not response.more:
                    break
            await watching.aclose()
        else:
            responses = [await handler.unary_unary(requests[0], context)]
        for response in responses:
            assert len(handler.response_serializer(response)) <= _limits.MOST_LARGE_BYTES
        return responses

    # --- the well-behaved trainer --------------------------------------------------------------------------------------

    async def ask(self, method: str, **fields: Any) -> Any:
        """A call that succeeds."""
        request = GetMessageClass(METHODS[method].input_type)(**fields)
        (response,) = await self.call(method, request.SerializeToString())
        return response

    async def begin(self) -> None:
        self.engine.start()
        await self.door.keys.start()
        self._good_session = (await self.ask("OpenSession", name=GOOD)).session

    async def step(self) -> None:
        """The trainer's next step."""
        before = self._good[-1]
        rng = Random(before.step)
        groups = [Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0.0, 1.0), rng.random(), rng.random())]
        after = Tuner().update(before, groups)
        reductions = {name: [value] for name, value in groups[0]._asdict().items()}
        fields = {"session": self._good_session, "step": after.step, "reductions": reductions}
        if after.step % 2:
            result = (await self.ask("Step", **fields)).result
        else:
            (result,) = (await self.ask("StreamSteps", steps=[fields])).results
        assert not result.HasField("error"), result.error.message
        assert tuple(result.scale) == after.scale, "another S than that of a tuner of its own"
        self._good.append(after)

    async def end(self) -> None:
        """Stops the engine, and looks at what it has left."""
        flushed = await self.ask("Flush", session=self._good_session, with_tuner_state=True)
        assert flushed.durable_step == self._good[-1].step
        assert flushed.tuner_state == self._good[-1].to_bytes()
        records = (await self.ask("QuerySeries", name=GOOD, page_size=10_000)).records
        assert [tuple(each.scale) for each in records] == [each.scale for each in self._good[1:]]
        await self.door.keys.stop()
        await self.engine.writer.stop(5.0)
        harmful = [finding for finding in check(self.store) if not finding.harmless]
        self.store.close()
        assert not harmful, harmful[:3]

    # --- what a stranger sends -------------------------------------------------------------------------------------------

    def hints(self) -> mutation.Hints:
        """What fits the fields, by what was learned."""
        name = lambda rng: rng.choice(RUNS)  # noqa: E731
        session = lambda rng: rng.choice(self.sessions)  # noqa: E731
        return {
            **dict.fromkeys(("name", "source", "new_name"), name),
            "names": lambda rng: rng.choices(RUNS, k=rng.choice((1, 3, 300))),
            "parent": lambda rng: rng.choice(("projects/-", "projects/p", "projects/good")),
            "filter": lambda rng: mutation.unicode(mutation.text(rng, FILTERS, FILTER_WORDS)),
            "session": session,
            "trainer": lambda rng: rng.choice((0, 7, 8)),
            "attempt": lambda rng: rng.randrange(4),
            **dict.fromkeys(("step", "after_step", "first_step", "last_step"), lambda rng: rng.randrange(12)),
            "branch": lambda rng: rng.randrange(3),
            "page_size": lambda rng: rng.choice((0, 1, 2, 10_000)),
            "points": lambda rng: rng.choice((0, 1, 60)),
            "max_buckets": lambda rng: rng.choice((0, 1, 100)),
            "page_token": lambda rng: mutation.unicode(mutation.text(rng, self.tokens)),
            "tuner_state": lambda rng: stored.summed(rng, mutation.data(rng, self.states)),
            "labels": lambda rng: {rng.choice("abc"): mutation.unicode(mutation.text(rng, ("1", "x"))) for _ in range(2)},
            "paths": lambda rng: rng.choices(
                ("labels", "labels.a", "session", "run", "labels.", "x"), k=rng.choice((1, 1, 2, 200))
            ),
            "betas": lambda rng: rng.choice(([], [], [0.9], [1.0, 0.5])),
            "scale_groups": _groups,
            "convention": lambda rng: rng.randrange(6),
            **dict.fromkeys(("s_decay", "s_init", "eps", "initial_wealth"), lambda rng: rng.choice((1e-8, 0.01))),
            **dict.fromkeys(("delta_dot_g", "delta_dot_x"), lambda rng: [mutation.real(rng)]),
            **dict.fromkeys(("g_norm_sq", "x_norm_sq"), lambda rng: [abs(mutation.real(rng))]),
            "base_lr": mutation.real,
            "status": lambda rng: rng.randrange(7),
        }

    def drawn(self, rng: Random, method: str) -> bytes:
        """A message of a method, fitting or not."""
        kind = rng.random()
        if kind < 0.35 and method in _FITTING:
            return bytes(_FITTING[method](self, rng).SerializeToString())
        made = mutation.message(rng, METHODS[method].input_type, self.hints()).SerializeToString()
        return mutation.data(rng, (made,)) if kind > 0.9 else made

    def learn(self, method: str, responses: list[Any]) -> None:
        """Keeps what answers tell."""
        for response in responses:
            if method == "OpenSession" and response.session:
                self.sessions = [*self.sessions, response.session][-8:]
                self.steps[response.session] = response.last_step
                self.groups[response.session] = max(1, len(response.scale))
            elif method == "Flush" and response.tuner_state:
                self.states = [*self.states, response.tuner_state][-8:]
            elif method in ("ListRuns", "QuerySeries") and response.next_page_token:
                self.tokens = [*self.tokens, response.next_page_token][-8:]

    def next_step(self, rng: Random) -> Any:
        """The next step of a session, as far as is known."""
        session = rng.choice(self.sessions)
        self.steps[session] += 1
        groups = self.groups.get(session, 1)
        values = {name: [abs(mutation.real(rng)) for _ in range(groups)] for name in Reductions._fields}
        values["delta_dot_g"] = [mutation.real(rng) for _ in range(groups)]
        return tuner_service_pb2.StepRequest(
            session=session, step=self.steps[session], reductions=resources_pb2.Reductions(**values), hold=rng.random() < 0.1
        )


def _full(method: str) -> str:
    return f"/{METHODS[method].containing_service.full_name}/{method}"


def _groups(rng: Random) -> list[str]:
    if rng.randrange(300) == 0:
        return [f"g{number}" for number in range(rng.choice((100, 2_000, 65_537)))]
    return rng.choice(([], [], ["a"], ["a", "b"]))


_FITTING: Final[dict[str, Callable[[World, Random], Any]]] = {
    "OpenSession": lambda world, rng: tuner_service_pb2.OpenSessionRequest(name=rng.choice(RUNS)),
    "Step": lambda world, rng: world.next_step(rng),
    "StreamSteps": lambda world, rng: tuner_service_pb2.StreamStepsRequest(
        steps=[world.next_step(rng) for _ in range(rng.choice((1, 5, 30)))]
    ),
    "Flush": lambda world, rng: tuner_service_pb2.FlushRequest(session=rng.choice(world.sessions), with_tuner_state=True),
    "RewindRun": lambda world, rng: run_service_pb2.RewindRunRequest(
        name=rng.choice(RUNS), after_step=rng.randrange(4), fence=True
    ),
}


class Sequence:
    """A sequence of calls that follows from a number."""

    def __init__(self, draw: int) -> None:
        self.draw = draw
        self.calls: list[str] = []

    def __repr__(self) -> str:
        return "\n".join(reversed(self.calls[-_KEPT:]))

    async def play(self, meter: Meter) -> None:
        """Plays it in a world of its own."""
        rng, world = Random(self.draw), World()
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        await world.begin()
        for number in range(CALLS):
            if number % 10 == 0:
                await world.step()
            method = rng.choice((*METHODS, "Step", "StreamSteps", "StreamSteps"))
            messages = [world.drawn(rng, method) for _ in range(rng.choice((1, 1, 3)) if method == "StreamSteps" else 1)]
            token = rng.choice(("admin",) * 6 + ("write",) * 4 + tuple(TOKENS))
            self.calls.append(f"{token} {method} {[message[:200] for message in messages]}")
            begun, said = process_time(), ""
            try:
                world.learn(method, await world.call(method, *messages, token=token))
                assert token not in _NO_GOOD, "a stranger was let in"
                assert token != "read" or not _permissions.rule_of(_full(method)).change, "who may read has changed something"
            except Refused as error:
                said = error.reason
                assert token not in _NO_GOOD or said == "UNAUTHENTICATED", said
            meter.add(process_time() - begun, said)
            if failures:
                raise AtFault(f"forgotten: {failures[0]}")
        await world.end()


def _take(sequence: Sequence, meter: Meter) -> None:
    run(sequence.play(meter))


TARGETS = (
    Target(
        name="calls",
        make=lambda rng: Sequence(rng.getrandbits(60)),
        take=_take,
        covers=(Decoding,),
        rounds=500,
        quick=1,
        inputs=CALLS,
    ),
)
Play = Callable[[Meter], Coroutine[Any, Any, None]]
__all__ = ["METHODS", "TARGETS", "Iterator"]
