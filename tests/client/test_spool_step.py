"""A step's bytes in a spool file are a StepRecord of the contract, whatever the step."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.client import Reductions
from mechanicd.client import _spool_step as spool_step
from mechanicd.v1 import resources_pb2

VALUES = st.floats(allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(
    step=st.integers(1, 2**62),
    outcome=st.integers(1, 3),
    groups=st.lists(st.builds(Reductions, VALUES, VALUES, VALUES, VALUES), min_size=1, max_size=20),
    lr=st.none() | VALUES,
    times=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    data=st.data(),
)
def test_the_bytes_are_the_message(
    step: int, outcome: int, groups: list[Reductions], lr: float | None, times: list[int], data: st.DataObject
) -> None:
    scale = data.draw(st.lists(VALUES, min_size=len(groups), max_size=len(groups)))
    writer = spool_step.StepWriter(len(groups))
    for time in times:
        read = resources_pb2.StepRecord.FromString(writer.message(step, outcome, groups, scale, lr, time))
        made = resources_pb2.StepRecord(step=step, outcome=outcome, scale=scale, base_lr=lr)  # type: ignore[arg-type]
        made.time.FromNanoseconds(time)
        for group in groups:
            for field, value in group._asdict().items():
                getattr(made.reductions, field).append(value)
        assert read == made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324])
def test_numbers_that_are_no_usual_ones_keep_their_bits(value: float) -> None:
    message = spool_step.StepWriter(1).message(1, 2, [Reductions(value, value, value, value)], (value,), value, -5)
    read = resources_pb2.StepRecord.FromString(message)
    found = [*read.reductions.delta_dot_g, *read.reductions.x_norm_sq, *read.scale, read.base_lr]
    assert [each.hex() for each in found] == [value.hex()] * 4
    assert read.time.ToNanoseconds() == 0, "a clock from before 1970"


@pytest.mark.parametrize("groups", [15, 16, 17, 2000, 65_536])
def test_many_scale_groups(groups: int) -> None:
    given_ = [Reductions(1.0 * at, 2.0 * at, 3.0 * at, 4.0 * at) for at in range(groups)]
    scale = [0.5 * at for at in range(groups)]
    read = resources_pb2.StepRecord.FromString(spool_step.StepWriter(groups).message(9, 1, given_, scale, None, 10**18))
    assert list(zip(*(getattr(read.reductions, field) for field in Reductions._fields), strict=True)) == given_
    assert list(read.scale) == scale
    assert not read.HasField("base_lr")
