"""Steps are packed into bytes and come back bit for bit."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.runs import StepRow, pack, unpack

FLOATS = st.one_of(
    st.floats(),
    st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),  # any NaN as well
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[StepRow]]:
    groups = draw(st.integers(1, 4))
    values = st.tuples(*[FLOATS] * groups)
    rows = st.builds(
        StepRow,
        step=st.integers(0, 2**64 - 1),
        time=st.integers(-(2**63), 2**63 - 1),
        outcome=st.integers(0, 255),
        delta_dot_g=values,
        delta_dot_x=values,
        g_norm_sq=values,
        x_norm_sq=values,
        h=values,
        scale=values,
        base_lr=st.none() | FLOATS,
    )
    return groups, draw(st.lists(rows, max_size=5))


def bits(row: StepRow) -> list[object]:
    """A row in which NaN equals itself, and −0.0 is not 0.0."""
    numbers = [field if isinstance(field, tuple) else (field,) for field in row]
    return [struct.pack("<d", value) if isinstance(value, float) else value for values in numbers for value in values]


@settings(deadline=None)
@given(histories(), st.integers(0, 9))
def test_steps_come_back_bit_for_bit_in_their_order(history: tuple[int, list[StepRow]], branch: int) -> None:
    groups, rows = history
    blob = b"".join(pack(groups, row) for row in rows)
    back = list(unpack(groups, blob, branch))
    assert [bits(row) for row in back] == [bits(row._replace(branch=branch)) for row in rows]
    assert b"".join(pack(groups, row) for row in back) == blob


@pytest.mark.parametrize("groups", [1, 3, 100])
def test_a_step_takes_the_same_room_whatever_it_holds(groups: int) -> None:
    values = (0.0,) * groups
    for lr in (None, 0.1):
        assert len(pack(groups, StepRow(1, 0, 1, values, values, values, values, values, values, lr))) == 32 + 48 * groups


def test_a_learning_rate_of_zero_is_not_the_same_as_none() -> None:
    rows = [StepRow(1, 0, 1, (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), lr) for lr in (None, 0.0)]
    assert [row.base_lr for row in unpack(1, b"".join(pack(1, row) for row in rows))] == [None, 0.0]


def test_a_step_of_another_number_of_groups_is_no_record() -> None:
    with pytest.raises(struct.error):
        pack(2, StepRow(1, 0, 1, (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), None))


def test_a_blob_that_was_cut_off_is_refused() -> None:
    blob = pack(1, StepRow(1, 0, 1, (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), None))
    with pytest.raises(struct.error):
        list(unpack(1, blob[:-1]))
