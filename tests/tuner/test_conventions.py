"""A convention is one record; each place that has to follow it is held to it here."""

import asyncio
import math
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from mechanicd.client._wire import config_out as client_config_out
from mechanicd.runs import first_scale
from mechanicd.service import Engine, _convert
from mechanicd.store import SQLiteStore
from mechanicd.torch import _async_device
from mechanicd.tuner import CONVENTIONS, Convention, ConventionSpec, Reductions, Row, Tuner, TunerConfig
from mechanicd.tuner._rules import Settings, paper, zero_row
from mechanicd.v1 import resources_pb2, tuner_service_pb2

ROOT = Path(__file__).parents[2]
ENUM = resources_pb2.TunerConfig.Convention
each = pytest.mark.parametrize("name", CONVENTIONS)


def test_the_literal_type_names_each_convention() -> None:
    assert get_args(Convention) == tuple(CONVENTIONS)
    assert [spec.name for spec in CONVENTIONS.values()] == list(CONVENTIONS)


def test_the_contracts_enum_has_each_convention_and_no_other() -> None:
    ours = {f"CONVENTION_{name.upper()}": spec.wire for name, spec in CONVENTIONS.items()}
    assert {name: value for name, value in ENUM.items() if value} == ours


@each
def test_the_settings_docstring_names_it(name: str) -> None:
    assert f"`{name}`" in (TunerConfig.__doc__ or "")


@each
def test_the_documentation_names_it(name: str) -> None:
    pages = list((ROOT / "docs").glob("**/*.md"))
    if not pages:
        pytest.skip("there is no docs/ yet")
    assert any(f"`{name}`" in page.read_text("utf-8") for page in pages)


@each
def test_the_array_rule_gives_the_bits_of_the_rule(name: str, numpy_from: Any) -> None:
    config = TunerConfig(convention=name, s_init=1e-3, scale_groups=("a", "b"))  # type: ignore[arg-type]
    tuner = Tuner(config)
    floats = tuner.init()
    with numpy_from(1):
        arrays = tuner.init()
    assert type(arrays.table) is not type(floats.table)
    for step in steps(200, groups=2):
        floats, arrays = tuner.update(floats, step), tuner.update(arrays, step)
        assert arrays.to_bytes() == floats.to_bytes()


@each
def test_a_run_begins_near_its_first_scale(name: str) -> None:
    config = TunerConfig(convention=name, s_init=1e-3, s_decay=0.0)  # type: ignore[arg-type]
    tuner = Tuner(config)
    begin = [tuner.update(tuner.init(), Reductions(h, 0.0, 1.0, 1.0)).scale[0] for h in (-1.0, -1000.0)]
    expected = first_scale(config)
    assert begin == pytest.approx([expected] * 2, rel=1.0), "0 says: it depends on the data"


@each
def test_needs_delta_is_what_the_rule_does(name: str) -> None:
    tuner = Tuner(TunerConfig(convention=name))  # type: ignore[arg-type]
    state = tuner.init()
    for _ in range(5):
        state = tuner.update(state, Reductions(0.0, 0.0, 1.0, 1.0))
    assert (state.scale == (0.0,)) == CONVENTIONS[name].needs_delta


def test_the_device_twins_implement_each_convention_or_say_that_they_do_not() -> None:
    twin = pytest.importorskip("mechanicd.jax._tuner", reason="jax is not installed")
    assert sorted([*twin.RULES, *twin.NOT_SUPPORTED]) == sorted(CONVENTIONS)
    assert sorted([*_async_device.CONVENTIONS, *_async_device.NOT_SUPPORTED]) == sorted(CONVENTIONS)


# A fifth convention, as a test adds it.


def doubled(config: Settings, row: Row, h: float) -> Row:
    return paper(config, row, 2.0 * h)


@pytest.fixture
def fifth(monkeypatch: pytest.MonkeyPatch) -> str:
    spec = ConventionSpec(
        name="doubled",  # type: ignore[arg-type]
        summary="as paper, of twice h",
        wire=77,
        rule=doubled,
        rule_numpy="paper",
        initial_row=zero_row,
        first_scale=lambda config: 3.0 * config.s_init,
        needs_delta=True,
    )
    monkeypatch.setitem(CONVENTIONS, spec.name, spec)
    return spec.name


def test_a_new_record_is_all_that_the_tuner_the_wire_and_the_alerts_need(fifth: str) -> None:
    config = TunerConfig(convention=fifth, s_init=1e-3)  # type: ignore[arg-type]
    assert _convert.config_in(_convert.config_out(config)) == config
    assert _convert.config_in(client_config_out(config)) == config
    assert first_scale(config) == 3e-3
    new, paper_tuner = Tuner(config), Tuner(replace(config, convention="paper"))
    state, other = new.init(), paper_tuner.init()
    for step in steps(20, groups=1):
        state = new.update(state, step)
        other = paper_tuner.update(other, [step[0]._replace(delta_dot_g=2.0 * step[0].delta_dot_g, delta_dot_x=0.0)])
    assert state == other


def test_a_new_record_takes_a_server_round_trip(fifth: str, tmp_path: Path) -> None:
    """A session, 20 steps, and a resume from the store; over the contract's bytes, whose enum is open (proto3)."""
    config = TunerConfig(convention=fifth, s_init=1e-3)  # type: ignore[arg-type]
    sent = client_config_out(config).SerializeToString()
    opening = tuner_service_pb2.OpenSessionRequest(name="projects/p/runs/r", config=resources_pb2.TunerConfig.FromString(sent))
    tuner = Tuner(config)

    async def act() -> None:
        state = tuner.init()
        for first in (0, 20):  # the second engine has nothing but the store
            engine = Engine(SQLiteStore(str(tmp_path / "runs.db")), 0.001)
            engine.start()
            opened = await engine.open_session(opening)
            assert opened.run.config == client_config_out(config)
            assert (opened.last_step, opened.tuner_state) == (first, state.to_bytes())
            for index, step in enumerate(steps(20, groups=1), first + 1):
                scalars = resources_pb2.Reductions(**{name: [value] for name, value in step[0]._asdict().items()})
                request = tuner_service_pb2.StepRequest(session=opened.session, step=index, reductions=scalars)
                state = tuner.update(state, step)
                assert tuple(engine.step(request).scale) == state.scale
            await engine.stop()

    asyncio.run(act())


def test_a_number_without_a_record_is_refused() -> None:
    with pytest.raises(_convert.ServiceError, match="this server does not know convention 77"):
        _convert.config_in(resources_pb2.TunerConfig(convention=77))  # type: ignore[arg-type]


def steps(count: int, groups: int) -> Iterator[list[Reductions]]:
    random_ = random.Random(7)
    for _ in range(count):
        h = [random_.gauss(-0.5, 1.0) * math.exp(random_.gauss(0.0, 2.0)) for _ in range(groups)]
        yield [Reductions(value, 0.0, value * value, 1.0) for value in h]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_tuner_can_be_sent_to_another_process(name: str) -> None:
    tuner = Tuner(TunerConfig(convention=name))
    again = pickle.loads(pickle.dumps(tuner))
    state, reductions = tuner.init(), Reductions(-1.0, 0.5, 2.0, 3.0)
    assert again.update(state, reductions) == tuner.update(state, reductions)
    assert pickle.loads(pickle.dumps(CONVENTIONS[name])) is CONVENTIONS[name]
