"""Where a session starts: a pure decision, case by case and for all."""

from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.runs import RunRow, RunStatus
from mechanicd.service import ServiceError
from mechanicd.service._session_start import (
    ADOPTED,
    CREATED,
    RESUMED,
    REWOUND,
    Start,
    check_config,
    check_new,
    decide,
)
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState

CONFIG = TunerConfig(betas=(0.9, 0.99))


@cache
def state(step: int, other: bool = False) -> TunerState:
    """The state after a step of one training, or of another one."""
    if step == 0 and not other:
        return Tuner(CONFIG).init()
    tuner = Tuner(CONFIG)
    before = tuner.init() if step <= 1 else state(step - 1, other)
    after = tuner.update(before, Reductions(-3.0 if other else -1.0, 0.5, 1.0, 1.0))
    return TunerState.from_rows(step, after.rows)


def row(last_step: int) -> RunRow:
    return RunRow(
        id=1,
        project="p",
        run="r",
        labels={},
        config=CONFIG,
        status=RunStatus.RUNNING,
        status_message="",
        epoch=3,
        session=5,
        last_step=last_step,
        state=state(last_step).to_bytes(),
        scale=state(last_step).scale,
        create_time=1,
        open_time=1,
        interval=0,
        session_count=1,
        step_time=2,
        rewinds=0,
    )


CASES: list[tuple[str, int, bool, Start, Any, int, TunerState | None, str]] = [
    # what happens, the server's last step, is the run new, start → outcome, after step, state, a word of the explanation
    ("a run that nobody knew", 0, True, None, CREATED, 0, state(0), "new"),
    ("a training that begins", 0, True, 0, CREATED, 0, state(0), "new"),
    ("a checkpoint from before the first step", 0, True, state(0), CREATED, 0, state(0), "both have"),
    ("a checkpoint, and a server that lost its store", 0, True, state(7), ADOPTED, 7, state(7), "did not know the run"),
    ("whatever the server has", 7, False, None, RESUMED, 7, state(7), "continues after step 7"),
    ("a run that never stepped", 0, False, 0, RESUMED, 0, state(0), "continues after step 0"),
    ("the step that the server has", 7, False, 7, RESUMED, 7, state(7), "continues after step 7"),
    ("the checkpoint of the last step", 7, False, state(7), RESUMED, 7, state(7), "both have"),
    (
        "an older checkpoint",
        7,
        False,
        state(4),
        REWOUND,
        4,
        state(4),
        "the checkpoint is at step 4 and the server was at step 7",
    ),
    ("an older checkpoint of another training", 7, False, state(4, True), REWOUND, 4, state(4, True), "rewinds"),
    ("an older step", 7, False, 4, REWOUND, 4, None, "after step 4 and the server was at step 7: the run rewinds"),
    ("a training that begins anew", 7, False, 0, REWOUND, 0, state(0), "training starts over"),
    (
        "a newer checkpoint",
        7,
        False,
        state(9),
        ADOPTED,
        9,
        state(9),
        "the server was at step 7: the checkpoint's state is adopted",
    ),
    ("a checkpoint of another training", 7, False, state(7, True), ADOPTED, 7, state(7, True), "adopted"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_session_starts_where_the_trainer_is(case: tuple[Any, ...]) -> None:
    _, last, fresh, start, outcome, after_step, after_state, explanation = case
    decision = decide(row(last), fresh, start)
    assert (decision.outcome, decision.after_step) == (outcome, after_step)
    assert decision.state == after_state
    assert explanation in decision.explanation


@pytest.mark.parametrize(("last", "start"), [(0, 1), (7, 8), (7, 2**64 - 1)])
def test_a_step_that_the_server_has_not_got_is_refused_with_both_numbers(last: int, start: int) -> None:
    with pytest.raises(ServiceError) as caught:
        decide(row(last), False, start)
    assert caught.value.reason == "RESUME_STEP_UNKNOWN"
    assert caught.value.metadata == {"requested": str(start), "last_step": str(last)}
    assert [bad.field for bad in caught.value.bad_fields] == ["after_step"]
    assert "send your checkpoint's tuner state" in caught.value.message


STARTS = st.one_of(st.none(), st.integers(0, 12), st.builds(state, st.integers(0, 12), st.booleans()))


@settings(deadline=None, max_examples=500)
@given(st.integers(0, 10), st.booleans(), STARTS)
def test_the_outcome_fits_the_steps_whatever_is_asked(last: int, fresh: bool, start: Start) -> None:
    fresh = fresh and last == 0
    asked = start.step if isinstance(start, TunerState) else start
    if isinstance(start, int) and start > last:
        with pytest.raises(ServiceError, match="but the server only has steps up to"):
            decide(row(last), fresh, start)
        return
    decision = decide(row(last), fresh, start)
    assert decision.after_step == (last if asked is None else asked)
    assert (decision.outcome == REWOUND) == (decision.after_step < last)
    assert decision.after_step <= last or decision.outcome == ADOPTED
    assert fresh == (decision.outcome == CREATED) or decision.outcome == ADOPTED
    if isinstance(start, TunerState):
        assert decision.state == start, "a checkpoint's state is taken as it is"
    elif decision.state is not None:
        assert decision.state == state(decision.after_step), "and without one it is the server's own"
    else:
        assert 0 < decision.after_step < last, "only steps in the middle are replayed"
    assert str(decision.after_step) in decision.explanation or decision.after_step == 0


@pytest.mark.parametrize("start", [None, 0, state(0), state(5)])
def test_a_new_run_may_start_at_its_beginning_or_from_a_checkpoint(start: Start) -> None:
    check_new(start)
    assert decide(row(0), True, start).outcome in (CREATED, ADOPTED)


def test_no_new_run_starts_after_a_step_that_nobody_has() -> None:
    with pytest.raises(ServiceError) as caught:
        check_new(5)
    assert (caught.value.reason, caught.value.metadata) == ("RESUME_STEP_UNKNOWN", {"requested": "5", "last_step": "0"})


OTHERS: dict[str, Any] = {
    "convention": "optax",
    "betas": (0.9,),
    "s_decay": 0.0,
    "s_init": 1e-6,
    "eps": 1e-4,
    "initial_wealth": 1.0,
    "scale_groups": ("a", "b"),
}


def test_the_same_config_is_no_difference() -> None:
    check_config(CONFIG, TunerConfig(betas=[0.9, 0.99]))  # type: ignore[arg-type]
    assert asdict(CONFIG).keys() == OTHERS.keys(), "the next test tries each field"


@settings(deadline=None)
@given(st.sets(st.sampled_from(sorted(OTHERS)), min_size=1))
def test_each_difference_of_a_config_is_named_with_both_values_and_no_other(fields: set[str]) -> None:
    given_config = replace(CONFIG, **{field: OTHERS[field] for field in fields})
    with pytest.raises(ServiceError) as caught:
        check_config(CONFIG, given_config)
    error = caught.value
    assert error.reason == "CONFIG_MISMATCH"
    assert error.metadata == {field: f"{getattr(CONFIG, field)} ≠ {OTHERS[field]}" for field in fields}
    for field, text in error.metadata.items():
        assert f"{field}: {text}" in error.message
    assert "use the stored config or another run name" in error.message


def test_a_difference_too_long_to_print_is_shortened_and_the_advice_stays() -> None:
    wide = replace(CONFIG, scale_groups=tuple(f"transformer.h.{i}.attn.c_attn.weight" for i in range(148)))
    with pytest.raises(ServiceError) as caught:
        check_config(wide, CONFIG)
    for text in (caught.value.message, caught.value.metadata["scale_groups"]):
        assert "transformer.h.0.attn" in text
        assert " … " in text
        assert "≠ ('all',)" in text
        assert len(text.encode()) <= 800
    assert caught.value.message.endswith("use the stored config or another run name")
