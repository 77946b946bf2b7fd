"""The state as bytes, as pickle, and what is refused."""

import copy
import math
import pickle
import struct
import zlib

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mechanicd.tuner import CONVENTIONS, Reductions, Row, StateError, Tuner, TunerConfig, TunerState

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=60, phases=[Phase.generate])

TWO_BETAS = TunerConfig(betas=(0.5, 1.0))
FIXED = TunerState.from_rows(
    258, (Row(m=(3.0, 4.0), v=(18.25, 25.0), r=(2.0, 0.1), s=(1e-8, 0.8), q=(-7.0, 0.0)),)
)  # fmt: skip
VERSION_1 = bytes.fromhex(
    "4d544e52 01 00 0200 01000000 0201000000000000"  # MTNR, version 1, n = 2, one group, step 258
    "0000000000000840 0000000000001040"  # m
    "0000000000403240 0000000000003940"  # v
    "0000000000000040 9a9999999999b93f"  # r
    "3a8c30e28e79453e 9a9999999999e93f"  # s
    "0000000000001cc0 0000000000000000"  # q
    "5b8f67e8"  # CRC-32
)


@repeatable
@given(data=st.data(), convention=st.sampled_from(sorted(CONVENTIONS)), groups=st.sampled_from([1, 2, 33]))
def test_bytes_bring_back_the_state_exactly(data, convention, groups):
    config, state = grown(data, convention, groups)
    back = TunerState.from_bytes(state.to_bytes(), config)
    assert back == state
    assert hash(back) == hash(state)
    assert (back.step, back.scale, back.rows) == (state.step, state.scale, state.rows)
    step = [Reductions(-0.3, 0.2, 0.1, 0.4)] * groups
    assert Tuner(config).update(back, step) == Tuner(config).update(state, step)


@repeatable
@given(data=st.data(), convention=st.sampled_from(sorted(CONVENTIONS)), groups=st.sampled_from([1, 2, 33]))
def test_pickle_and_copies_bring_back_the_state_exactly(data, convention, groups):
    _, state = grown(data, convention, groups)
    for back in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state), copy.copy(state)):
        assert back == state
        assert (back.scale, back.rows) == (state.scale, state.rows)


def test_a_state_is_equal_in_either_form_and_to_no_other_state(numpy_from):
    row = FIXED.rows[0]
    with numpy_from(1):
        arrays = TunerState.from_rows(258, (row,))
    assert type(arrays.table) is not type(FIXED.table)
    assert arrays == FIXED
    assert hash(arrays) == hash(FIXED)
    assert TunerState.from_rows(259, (row,)) != FIXED
    assert TunerState.from_rows(258, (row._replace(q=(-7.0, 5e-324)),)) != FIXED
    assert FIXED.to_bytes() != FIXED


def test_a_state_can_not_be_changed():
    with pytest.raises(AttributeError):
        FIXED.step = 3


def test_version_1_of_the_binary_form_stays_what_it_is():
    """A checkpoint of today must load for ever; if this fails, make a version 2 and keep reading version 1."""
    assert FIXED.to_bytes() == VERSION_1
    assert TunerState.from_bytes(VERSION_1, TWO_BETAS).rows == FIXED.rows


def test_no_flipped_bit_gets_through():
    data = FIXED.to_bytes()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(StateError):
                TunerState.from_bytes(bytes(damaged), TWO_BETAS)


def test_no_missing_or_added_byte_gets_through():
    data = FIXED.to_bytes()
    for length in range(len(data)):
        with pytest.raises(StateError):
            TunerState.from_bytes(data[:length], TWO_BETAS)
    for damaged in (data + b"\0", b"\0" + data, data + data, data[:40] + data[48:]):
        with pytest.raises(StateError):
            TunerState.from_bytes(damaged, TWO_BETAS)


@pytest.mark.parametrize("data", [b"", b"MTNR", pickle.dumps({"step": 1}), b"\x80" * 200, bytes(200)])
def test_foreign_bytes_are_called_so(data):
    with pytest.raises(StateError, match="not a tuner state") as refusal:
        TunerState.from_bytes(data, TWO_BETAS)
    assert refusal.value.reason == "INVALID_TUNER_STATE"


@pytest.mark.parametrize("version", [2, 255])
def test_a_newer_version_asks_for_an_upgrade(version):
    with pytest.raises(StateError, match=f"version {version}.*upgrade"):
        TunerState.from_bytes(sealed(version=version), TWO_BETAS)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TunerConfig(), "1 scale groups × 2 betas, but the config has 1 × 6"),
        (TunerConfig(betas=(0.5,)), "the config has 1 × 1"),
        (TunerConfig(betas=(0.5, 1.0), scale_groups=("a", "b")), "the config has 2 × 2"),
    ],
)
def test_a_state_of_another_shape_names_both_shapes(config, words):
    with pytest.raises(StateError, match=words):
        TunerState.from_bytes(FIXED.to_bytes(), config)


@pytest.mark.parametrize("count", [0, 9, 11, 20])
def test_a_length_that_does_not_fit_the_shape_is_refused(count):
    with pytest.raises(StateError, match="does not fit its shape"):
        TunerState.from_bytes(sealed(values=[1.0] * count), TWO_BETAS)


@pytest.mark.parametrize("field", Row._fields)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1e-300])
@pytest.mark.parametrize("arrays", [False, True])
def test_values_that_no_tuner_makes_are_refused_with_their_field(field, value, arrays, numpy_from):
    values = [1.0] * 10
    values[2 * Row._fields.index(field) + 1] = value
    with numpy_from(1 if arrays else 100):
        if value == -1e-300 and field in ("r", "q"):  # these two may go below zero
            assert getattr(TunerState.from_bytes(sealed(values=values), TWO_BETAS).rows[0], field) == (1.0, value)
            return
        with pytest.raises(StateError, match=f"has {field} = "):
            TunerState.from_bytes(sealed(values=values), TWO_BETAS)


def test_without_a_config_a_state_of_any_shape_is_read_but_a_damaged_one_is_not():
    assert TunerState.from_bytes(FIXED.to_bytes(), None) == FIXED
    with pytest.raises(StateError, match="checksum"):
        TunerState.from_bytes(FIXED.to_bytes()[:-1] + b"\0", None)
    empty = struct.pack("<4sBxHIQ", b"MTNR", 1, 0, 3, 7)
    with pytest.raises(StateError, match="3 scale groups × 0 betas"):
        TunerState.from_bytes(empty + struct.pack("<I", zlib.crc32(empty)), None)


def grown(data: st.DataObject, convention: str, groups: int) -> tuple[TunerConfig, TunerState]:
    """A state after some steps of any h."""
    config = TunerConfig(convention=convention, s_init=0.1, initial_wealth=1.0, scale_groups=tuple(map(str, range(groups))))
    tuner = Tuner(config)
    state = tuner.init()
    for h in data.draw(st.lists(st.floats(-1e9, 1e9), max_size=8)):
        state = tuner.advance(state, [h / (1 + group) for group in range(groups)])
    return config, state


def sealed(version: int = 1, values: list[float] | None = None) -> bytes:
    """Bytes of one group and two βs whose checksum is right, whatever they hold."""
    values = [1.0] * 10 if values is None else values
    body = struct.pack("<4sBxHIQ", b"MTNR", version, 2, 1, 7) + struct.pack(f"<{len(values)}d", *values)
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("groups", [2, 40])
def test_a_grown_state_keeps_the_old_groups_and_begins_the_new_ones(convention, groups):
    """Also across the number from which on states are arrays."""
    names = tuple(f"g{i}" for i in range(groups))
    config = TunerConfig(convention=convention, scale_groups=names)
    larger = TunerConfig(convention=convention, scale_groups=("first", *names, "last"))
    tuner, state = Tuner(config), TunerState.initial(config)
    for step in range(5):
        state = tuner.update(state, [Reductions(-1.0 - i - step, 0.1, 1.0, 2.0) for i in range(groups)])
    grown = state.grown(config, larger)
    begin = TunerState.initial(larger)
    assert grown.step == state.step
    assert grown.rows == (begin.rows[0], *state.rows, begin.rows[-1])
    assert grown.scale == (begin.scale[0], *state.scale, begin.scale[-1])
    assert TunerState.from_bytes(grown.to_bytes(), larger) == grown


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_scalar_of_many_groups_that_is_not_finite_holds_the_step(value: float) -> None:
    tuner = Tuner(TunerConfig(scale_groups=tuple(str(i) for i in range(40))))
    good = [Reductions(-1.0, 0.5, 1.0, 2.0)] * 40
    assert tuner.init().to_bytes() == TunerState.from_rows(0, tuner.init().rows).to_bytes()
    state = tuner.update(tuner.init(), good)
    after = tuner.update(state, [*good[:39], good[0]._replace(delta_dot_x=value)])
    assert (after.step, after.rows) == (2, state.rows)
