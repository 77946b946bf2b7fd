"""Runs of very many scale groups: their steps go through arrays, and give what the plain form gives, bit for bit."""

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mechanicd.runs import StepRow, pack, unpack
from mechanicd.runs import _records as records
from mechanicd.service import ServiceError, _convert
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2
from tests.service.engine_bench import Bench

GROUPS = 300
UNKNOWN = [b"", b"\x08\x01", b"\x92\x3e\x01x", b"\x0b\x12\x08" + bytes(8) + b"\x0c", b"\x0d1234" * 700]
"""Fields that nobody knows; also with the numbers of others, as they are kept where their kind is wrong."""


def reductions(rng: random.Random, **changed: list[float]) -> resources_pb2.Reductions:
    def some(low: float) -> list[float]:
        return [rng.choice([0.0, -0.0 if low else 0.0, 1e-300, 1e300, rng.uniform(low, 1.0)]) for _ in range(GROUPS)]

    fields = {"delta_dot_g": some(-1.0), "delta_dot_x": some(-1.0), "g_norm_sq": some(0.0), "x_norm_sq": some(0.0)}
    return resources_pb2.Reductions(**(fields | changed))


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_the_arrays_are_the_scalars_that_were_sent(unknown: bytes) -> None:
    rng = random.Random(len(unknown))
    sent = resources_pb2.Reductions.FromString(reductions(rng).SerializeToString() + unknown)
    columns = _convert.columns_in(sent, GROUPS)
    assert columns.tobytes() == np.array(_convert.reductions_in(sent, GROUPS)).T.tobytes()
    sent = resources_pb2.Reductions.FromString(unknown + reductions(rng, g_norm_sq=[math.nan] * GROUPS).SerializeToString())
    assert _convert.columns_in(sent, GROUPS).tobytes() == np.array(_convert.reductions_in(sent, GROUPS)).T.tobytes()


@pytest.mark.parametrize("changed", [{"delta_dot_x": [1.0]}, {"g_norm_sq": []}, {"x_norm_sq": [1.0] * 299 + [-1e-300]}])
def test_they_are_refused_in_the_same_words(changed: dict[str, Any]) -> None:
    message = reductions(random.Random(0), **changed)
    with pytest.raises(ServiceError) as refused:
        _convert.columns_in(message, GROUPS)
    told = _convert.reductions_refused(message, GROUPS)
    assert (refused.value.reason, refused.value.message) == (told.reason, told.message)
    assert refused.value.bad_fields == told.bad_fields


@pytest.mark.parametrize("convention", ["paper", "optax", "theory"])
def test_the_tuner_takes_them_as_it_takes_reductions(convention: str) -> None:
    rng = random.Random(1)
    config = TunerConfig(convention=convention, scale_groups=tuple(map(str, range(GROUPS))))
    tuner = Tuner(config)
    state = tuner.init()
    assert state.is_wide
    for _ in range(20):
        message = reductions(rng)
        groups = tuner.groups(_convert.reductions_in(message, GROUPS))
        h = tuner.h(state, _convert.columns_in(message, GROUPS))
        assert h == tuner.h(state, groups)
        assert h is not None
        state = tuner.advance(state, h)
    message = reductions(rng, delta_dot_x=[math.inf] * GROUPS)
    assert tuner.h(state, _convert.columns_in(message, GROUPS)) is None
    assert not TunerState.initial(TunerConfig()).is_wide


def test_a_session_of_many_groups_is_opened_while_others_take_their_steps(play: Callable[..., Bench]) -> None:
    answered: list[int] = []

    async def act(bench: Bench) -> None:
        await bench.open()
        message = resources_pb2.TunerConfig(scale_groups=map(str, range(2**14)), betas=[0.5] * 8)
        request = tuner_service_pb2.OpenSessionRequest(name="projects/p/runs/wide", config=message, after_step=0)
        opening = asyncio.create_task(bench.engine.open_session(request))
        while not opening.done():
            bench.step()
            await asyncio.sleep(0.001)
            answered.append(len(bench.states))
        opened = await opening
        state = Tuner(_convert.config_in(message)).init()
        assert (opened.tuner_state, tuple(opened.scale)) == (state.to_bytes(), state.scale)
        state = Tuner(_convert.config_in(message)).hold(state)
        step = tuner_service_pb2.StepRequest(session=opened.session, step=1, reductions=_ones(2**14), hold=True)
        assert tuple(bench.engine.step(step).scale) == state.scale
        flush = tuner_service_pb2.FlushRequest(session=opened.session, with_tuner_state=True)
        flushed = await bench.engine.flush(flush)
        assert (flushed.durable_step, flushed.tuner_state) == (1, state.to_bytes())

    play(act)
    assert len(answered) > 4


def _ones(groups: int) -> resources_pb2.Reductions:
    return resources_pb2.Reductions(**{field: [1.0] * groups for field in Reductions._fields})


@pytest.mark.parametrize("lr", [None, 0.5])
def test_a_record_has_the_same_bytes_however_it_is_packed(lr: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    values = [tuple(rng.uniform(-1, 1) for _ in range(GROUPS)) for _ in range(6)]
    row = StepRow(7, 8, 1, *values, lr)
    wide = pack(GROUPS, row._replace(delta_dot_g=np.array(values[0])))
    assert [each._replace(branch=0) for each in unpack(GROUPS, wide)] == [row]
    monkeypatch.setattr(records, "_WIDE", 1000)
    assert pack(GROUPS, row) == wide
    assert Reductions._fields == tuple(resources_pb2.Reductions.DESCRIPTOR.fields_by_name)
