"""Steps: what each gives, and that a refused one changes nothing, by unary calls and by the stream alike."""

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import grpc
import pytest
from google.rpc import code_pb2

from mechanicd.service import ServiceError
from mechanicd.service._decoding import ManySteps
from mechanicd.service._engine import Engine
from mechanicd.service._grpc import TunerServicer
from mechanicd.service._metrics import Metrics
from mechanicd.tuner import CONVENTIONS, Reductions, TunerConfig
from mechanicd.v1 import errors_pb2, resources_pb2, tuner_service_pb2

TUNED, NON_FINITE, HELD = (
    resources_pb2.STEP_OUTCOME_TUNED,
    resources_pb2.STEP_OUTCOME_NON_FINITE,
    resources_pb2.STEP_OUTCOME_HELD,
)
THREE_GROUPS = TunerConfig(scale_groups=("embedding", "body", "head"))
Take = Callable[[Any], Any]


@pytest.fixture(params=["unary", "stream"])
def take(request: pytest.FixtureRequest, wire: Any) -> Iterator[Take]:
    """Sends one step and gives its result, which tells of a refusal in the same words however the step went."""
    if request.param == "stream":
        stream = wire.stream()
        yield lambda step: stream.take(step)[0]
        stream.close()
        return

    def unary(step: Any) -> Any:
        try:
            return wire.start("Step", step).result
        except grpc.RpcError as error_:
            refused = wire.refusal(error_)
        reason = errors_pb2.ErrorReason.Value(refused.reason)
        error = {"code": refused.code, "reason": reason, "message": refused.message, "metadata": refused.metadata}
        return tuner_service_pb2.StepResult(session=step.session, step=step.step, error=error)

    yield unary


def said(result: Any) -> tuple[str, str, dict[str, str]]:
    """The code, the reason and the facts of a refusal."""
    assert list(result.scale) == []
    assert result.outcome == resources_pb2.STEP_OUTCOME_UNSPECIFIED
    reason = errors_pb2.ErrorReason.Name(result.error.reason)
    return code_pb2.Code.Name(result.error.code), reason, dict(result.error.metadata)


def test_the_first_step_gives_the_first_scale(training: Any, take: Take) -> None:
    assert list(training.opened.scale) == [0.0]
    result = training.expect(take(training.request()))
    assert result.outcome == TUNED
    assert 0.0 < result.scale[0] < 1e-7


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_step_gives_the_bits_of_the_tuner(new_training: Callable[..., Any], take: Take, convention: str) -> None:
    training = new_training(config=TunerConfig(convention=convention, betas=(0.9, 0.999), s_init=1e-4))
    training.open()
    for _ in range(50):
        training.expect(take(training.request()))
    assert training.flush() == 50
    assert [tuple(record.scale) for record in training.series()] == [state.scale for state in training.states[1:]]


def test_the_last_step_again_gives_the_stored_reply_bit_for_bit(training: Any, take: Take) -> None:
    training.take(3)
    request = training.request()
    first = training.expect(take(request))
    training.flush()
    assert take(request).SerializeToString() == first.SerializeToString()
    assert take(request).SerializeToString() == first.SerializeToString()
    training.expect(take(training.request()))
    training.flush()
    assert [record.step for record in training.series()] == [1, 2, 3, 4, 5]


def test_the_last_step_again_with_other_reductions_is_a_conflict(training: Any, take: Take) -> None:
    training.take(4)
    last = training.request(step=4)
    others = [*training.reductions(4)]
    for field in Reductions._fields:
        changed = [others[0]._replace(**{field: math.nextafter(getattr(others[0], field), math.inf)})]
        result = take(training.request(changed, step=4))
        assert said(result) == ("FAILED_PRECONDITION", "STEP_CONFLICT", {"step": "4"})
        assert "other reductions" in result.error.message
    assert said(take(training.request(step=4, hold=True)))[1] == "STEP_CONFLICT", "a held step is another step"
    assert tuple(take(last).scale) == training.state.scale
    training.expect(take(training.request()))


@pytest.mark.parametrize("flushed", [False, True])
def test_a_step_taken_long_ago_gives_the_stored_reply_again_and_other_reductions_are_refused(
    training: Any, take: Take, flushed: bool
) -> None:
    requests, replies = [], []
    for _ in range(30):
        requests.append(training.request())
        replies.append(training.expect(take(requests[-1])))
    if flushed:
        training.flush()
    for step in (1, 7, 29, 1):
        again = take(requests[step - 1])
        assert (again.step, list(again.scale), again.outcome) == (step, list(replies[step - 1].scale), TUNED)
    requests[6].reductions.delta_dot_g[0] += 1.0
    assert said(take(requests[6])) == ("FAILED_PRECONDITION", "STEP_CONFLICT", {"step": "7"})
    training.expect(take(training.request()))
    assert training.flush() == 31
    assert [tuple(record.scale) for record in training.series()] == [state.scale for state in training.states[1:]]


def test_a_step_of_an_earlier_session_is_not_this_sessions_to_send_again(training: Any, take: Take) -> None:
    old = training.request()
    training.expect(take(old))
    training.take(3)
    training.open()
    old.session = training.session
    assert said(take(old)) == ("OUT_OF_RANGE", "STEP_OUT_OF_ORDER", {"expected": "5", "received": "1"})
    training.expect(take(training.request()))


@pytest.mark.parametrize("step", [0, 6, 7, 2**64 - 1])
def test_a_step_that_is_neither_the_next_nor_one_taken_is_out_of_order(training: Any, take: Take, step: int) -> None:
    training.take(4)
    result = take(training.request(step=step))
    assert said(result) == ("OUT_OF_RANGE", "STEP_OUT_OF_ORDER", {"expected": "5", "received": str(step)})
    assert f"got step {step}, expected step 5" in result.error.message
    training.expect(take(training.request()))


@pytest.mark.parametrize("step", [0, 2])
def test_before_the_first_step_only_the_first_is_taken(training: Any, take: Take, step: int) -> None:
    assert said(take(training.request(step=step)))[2] == {"expected": "1", "received": str(step)}
    training.expect(take(training.request()))


@pytest.mark.parametrize("field", Reductions._fields)
@pytest.mark.parametrize("values", [[], [1.0, 1.0]])
def test_a_wrong_number_of_groups_in_any_field_is_refused(training: Any, take: Take, field: str, values: list[float]) -> None:
    training.take(2)
    request = training.request()
    del getattr(request.reductions, field)[:]
    getattr(request.reductions, field).extend(values)
    result = take(request)
    assert said(result)[:2] == ("INVALID_ARGUMENT", "GROUP_COUNT_MISMATCH")
    assert result.error.metadata["expected"] == "1"
    assert "the run has 1 scale group; send one value per group" in result.error.message
    training.expect(take(training.request()))


def test_a_missing_group_of_several_is_refused_with_both_numbers(new_training: Callable[..., Any], take: Take) -> None:
    training = new_training(config=THREE_GROUPS)
    training.open()
    result = take(training.request(training.reductions(1)[:2]))
    assert said(result) == ("INVALID_ARGUMENT", "GROUP_COUNT_MISMATCH", {"expected": "3", "received": "2"})
    training.expect(take(training.request()))


@pytest.mark.parametrize("value", [-1.0, -5e-324, -math.inf])
@pytest.mark.parametrize("field", ["g_norm_sq", "x_norm_sq"])
def test_a_negative_square_is_refused_with_the_field_and_its_value(training: Any, take: Take, field: str, value: float) -> None:
    training.take(2)
    bad = [training.reductions(3)[0]._replace(**{field: value})]
    result = take(training.request(bad))
    assert said(result) == ("INVALID_ARGUMENT", "NEGATIVE_SQUARE", {"field": field, "value": repr(value)})
    assert f"{field} of scale group 0 is {value!r}" in result.error.message
    training.expect(take(training.request()))


@pytest.mark.parametrize(
    "reductions",
    [
        Reductions(math.nan, 0.0, 1.0, 1.0),
        Reductions(math.inf, 0.0, 1.0, 1.0),
        Reductions(-math.inf, 0.0, 1.0, 1.0),
        Reductions(0.0, math.nan, 1.0, 1.0),
        Reductions(0.0, 0.0, math.inf, 1.0),
        Reductions(0.0, 0.0, 1.0, math.nan),
    ],
    ids=str,
)
def test_a_scalar_that_is_not_finite_counts_as_a_step_and_leaves_the_scale(
    training: Any, take: Take, reductions: Reductions
) -> None:
    training.take(3)
    request = training.request([reductions])
    result = training.expect(take(request), [reductions])
    assert result.outcome == NON_FINITE
    assert tuple(result.scale) == training.states[3].scale
    assert take(request).SerializeToString() == result.SerializeToString(), "NaN or not, the same step again is the same"
    training.expect(take(training.request()))
    training.flush()
    record = training.series(first_step=4, last_step=4)[0]
    assert record.outcome == NON_FINITE
    assert record.reductions.SerializeToString() == request.reductions.SerializeToString()
    assert math.isnan(record.h[0])
    assert tuple(record.scale) == training.states[3].scale


def test_a_held_step_counts_and_leaves_the_scale(training: Any, take: Take) -> None:
    training.take(3)
    held = training.expect(take(training.request(hold=True)), hold=True)
    assert held.outcome == HELD
    assert take(training.request(step=4, hold=True)).SerializeToString() == held.SerializeToString()
    assert training.expect(take(training.request())).outcome == TUNED
    training.flush()
    records = training.series(first_step=4)
    assert [record.outcome for record in records] == [HELD, TUNED]
    assert math.isnan(records[0].h[0])
    assert records[0].reductions == training.request(step=4).reductions, "what was not used is still on record"


def test_the_learning_rate_of_base_is_kept_as_it_came(training: Any, take: Take) -> None:
    rates = [0.1, None, 0.0, 5e-324]
    for rate in rates:
        training.expect(take(training.request(**({} if rate is None else {"base_lr": rate}))))
    training.flush()
    records = training.series()
    assert [record.base_lr if record.HasField("base_lr") else None for record in records] == rates


def test_each_scale_group_has_a_scale_of_its_own(new_training: Callable[..., Any], take: Take) -> None:
    training = new_training(config=THREE_GROUPS)
    training.open()
    for _ in range(30):
        result = training.expect(take(training.request()))
    assert len(set(result.scale)) == 3
    reductions = training.reductions(31)
    reductions[1] = reductions[1]._replace(delta_dot_g=math.nan)
    result = training.expect(take(training.request(reductions)), reductions)
    assert result.outcome == NON_FINITE, "one bad group holds all: a step is taken whole or not at all"
    training.expect(take(training.request()))


def test_a_thousand_scale_groups_give_the_bits_of_the_tuner(new_training: Callable[..., Any], take: Take) -> None:
    training = new_training(config=TunerConfig(scale_groups=tuple(f"tensor{i}" for i in range(1000))))
    training.open()
    for _ in range(3):
        training.expect(take(training.request()))


def test_a_step_of_nobodys_session_is_refused(training: Any, take: Take) -> None:
    result = take(training.request(session=12345))
    assert said(result) == ("NOT_FOUND", "SESSION_UNKNOWN", {"session": "12345"})
    assert "open the run again" in result.error.message


def test_the_durable_step_follows_and_never_passes_the_step(training: Any, take: Take) -> None:
    durable = 0
    for step in range(1, 101):
        result = training.expect(take(training.request()))
        assert durable <= result.durable_step < step
        durable = result.durable_step
    assert training.flush() == 100
    assert training.expect(take(training.request())).durable_step == 100


def test_numbers_at_the_edge_of_what_a_double_holds_never_give_an_infinite_scale(training: Any, take: Take) -> None:
    rng = random.Random(0)
    edges = [0.0, -0.0, 5e-324, 1.7e308, -1.7e308, 1e-300, 1.0]
    for _ in range(200):
        reductions = [Reductions(rng.choice(edges), rng.choice(edges), abs(rng.choice(edges)), abs(rng.choice(edges)))]
        result = training.expect(take(training.request(reductions)), reductions)
        assert math.isfinite(result.scale[0])
        assert result.scale[0] >= 0.0


# --- only by a unary call -------------------------------------------------------------------------------------------


def test_a_refused_unary_step_names_the_field_at_fault(training: Any, wire: Any) -> None:
    bad = training.reductions(1)[0]._replace(g_norm_sq=-1.0)
    refused = wire.refused("Step", session=training.session, step=1, reductions=training.request([bad]).reductions)
    assert (refused.reason, refused.fields) == ("NEGATIVE_SQUARE", ["reductions.g_norm_sq"])
    refused = wire.refused("Step", session=training.session, step=1)
    assert refused.reason == "GROUP_COUNT_MISMATCH"
    assert refused.fields == [f"reductions.{field}" for field in Reductions._fields]


# --- only by a stream -----------------------------------------------------------------------------------------------


@pytest.fixture
def stream(wire: Any) -> Iterator[Any]:
    opened = wire.stream()
    yield opened
    opened.close()


def test_a_stream_goes_on_after_each_kind_of_refusal(training: Any, stream: Any) -> None:
    training.take(2)
    bad = training.reductions(3)[0]._replace(x_norm_sq=-1.0)
    refused = stream.take(
        training.request(step=9),
        training.request([bad]),
        training.request(hold=True, step=2),
        training.request(session=1),
        tuner_service_pb2.StepRequest(session=training.session, step=3),
        training.request(),
        training.request(step=0),
    )
    training.expect(refused.pop(5))
    assert [errors_pb2.ErrorReason.Name(result.error.reason) for result in refused] == [
        "STEP_OUT_OF_ORDER",
        "NEGATIVE_SQUARE",
        "STEP_CONFLICT",
        "SESSION_UNKNOWN",
        "GROUP_COUNT_MISMATCH",
        "STEP_OUT_OF_ORDER",
    ]
    assert [(result.session, result.step) for result in refused] == [
        (training.session, 9),
        (training.session, 3),
        (training.session, 2),
        (1, 3),
        (training.session, 3),
        (training.session, 0),
    ]
    training.expect(stream.take(training.request())[0])


def test_one_message_holds_the_steps_of_many_sessions_and_the_results_keep_their_order(
    new_training: Callable[..., Any], stream: Any
) -> None:
    trainings = [new_training(f"sweep/{i}", TunerConfig(s_decay=0.1 * i), seed=i) for i in range(20)]
    for training in trainings:
        training.open()
    rng = random.Random(0)
    for _ in range(10):
        order = rng.sample(trainings, len(trainings))
        results = stream.take(*(training.request() for training in order))
        assert [result.session for result in results] == [training.session for training in order]
        for training, result in zip(order, results, strict=True):
            training.expect(result)
    assert len({training.state.scale for training in trainings}) == 20


def test_several_steps_of_one_session_may_share_a_message(training: Any, stream: Any) -> None:
    for result in stream.take(*(training.request(step=step) for step in range(1, 101))):
        training.expect(result)


def test_a_message_of_very_many_steps_is_answered_in_order_and_others_step_meanwhile(
    training: Any, new_training: Callable[..., Any], stream: Any
) -> None:
    other = new_training("other", seed=1)
    other.open()
    unknown = tuner_service_pb2.StepRequest(session=5, step=1)
    stream.send(*(unknown for _ in range(400)), *(training.request(step=step) for step in range(1, 601)), unknown)
    other.take(3)
    results = stream.receive()
    assert [result.session for result in results] == [*[5] * 400, *[training.session] * 600, 5]
    assert {said(result)[1] for result in results if result.session == 5} == {"SESSION_UNKNOWN"}
    for result in results[400:-1]:
        training.expect(result)


async def ticks() -> int:
    """How often the event loop runs others while a servicer answers one message of 1,024 steps."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    class Engine:
        metrics = Metrics()

        def steps(self, request: Any) -> Any:
            return tuner_service_pb2.StreamStepsResponse(), []

        def disconnected(self, sessions: set[int]) -> None:
            return

    class Context:
        read_once = False

        async def read(self) -> Any:
            if self.read_once:
                return grpc.aio.EOF
            self.read_once = True
            return ManySteps(tuner_service_pb2.StreamStepsRequest(steps=[tuner_service_pb2.StepRequest()] * 1024))

        async def write(self, _: Any) -> None:
            return

    counting = asyncio.create_task(count())
    await TunerServicer(Engine(), settle=False).StreamSteps(None, Context())  # type: ignore[arg-type]
    counting.cancel()
    return turns


class Unknown:
    """An engine that holds no session, and says so after one question to its store."""

    _held: ClassVar[dict[int, Any]] = {}

    async def explain(self, session: int) -> ServiceError:
        return ServiceError("SESSION_UNKNOWN", "no such session")


def test_refusing_many_steps_of_unknown_sessions_lets_others_step_in_between() -> None:
    request = tuner_service_pb2.StreamStepsRequest(steps=[tuner_service_pb2.StepRequest(session=5, step=1)] * 2600)
    response = tuner_service_pb2.StreamStepsResponse(results=[tuner_service_pb2.StepResult()] * 2600)
    turns = 0

    async def answer() -> None:
        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await Engine.recall(Unknown(), request, response, list(range(2600)))  # type: ignore[arg-type]
        counting.cancel()

    asyncio.run(answer())
    assert turns >= 2600 // 300
    assert all(result.HasField("error") for result in response.results)


def test_no_message_holds_the_event_loop_for_more_than_a_few_hundred_steps() -> None:
    assert asyncio.run(ticks()) >= 1024 // 300


def test_messages_may_be_sent_ahead_of_the_answers(training: Any, stream: Any) -> None:
    for step in range(1, 301):
        stream.send(training.request(step=step))
    for _ in range(300):
        (result,) = stream.receive()
        training.expect(result)


def test_one_session_may_step_by_streams_and_unary_calls_by_turns(training: Any, wire: Any, stream: Any) -> None:
    other = wire.stream()
    for _ in range(5):
        training.expect(stream.take(training.request())[0])
        training.expect(other.take(training.request())[0])
        training.take()
    other.close()


def test_a_stream_that_is_cancelled_leaves_the_session_open(training: Any, wire: Any) -> None:
    request = tuner_service_pb2.StreamStepsRequest(steps=[training.request()])
    call = wire.start("StreamSteps", iter([request]))
    training.expect(next(call).results[0])
    call.cancel()
    training.take(3)
