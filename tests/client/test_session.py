"""What a session gives: one S as a float, all of them as a tuple."""

from typing import Any

import pytest

from mechanicd.client import InvalidArgument, LocalSession, Reductions, SessionClosed, TunerConfig, open_run
from mechanicd.tuner import Tuner

SCALARS = Reductions(-1.0, 0.5, 1.0, 2.0)


def test_one_group_has_one_scale_and_a_step_returns_it() -> None:
    session = LocalSession(TunerConfig())
    assert (session.scale, session.scales) == (0.0, (0.0,))
    scale = session.step(SCALARS)
    tuner = Tuner()
    assert type(scale) is float
    assert (scale,) == (session.scale,) == session.scales == tuner.update(tuner.init(), SCALARS).scale


def test_several_groups_have_scales_and_asking_for_the_one_is_a_named_error() -> None:
    session = LocalSession(TunerConfig(scale_groups=("a", "b")))
    session.begin([SCALARS, SCALARS])
    assert session.finish() == session.scales
    assert len(session.scales) == 2
    with pytest.raises(InvalidArgument, match=r"2 scale groups.*use `scales`") as caught:
        _ = session.scale
    assert caught.value.reason == "SEVERAL_SCALES"


def test_after_close_a_session_is_readable_and_nothing_else(server: Any, project: str) -> None:
    session = open_run(server.target, "closed", project=project, start=0)
    scale = session.step(SCALARS)
    session.close()
    assert (session.scale, session.connected) == (scale, False)  # type: ignore[attr-defined]  # a RemoteSession
    for use in (lambda: session.step(SCALARS), session.flush):
        with pytest.raises(SessionClosed) as caught:
            use()
        assert caught.value.reason == "SESSION_CLOSED"
