"""A training may begin with the S that another one found, and begins with the same one when it comes back."""

import random
from typing import Any

import pytest
import torch

from mechanicd.client import InvalidArgument, MechanicdError, Reductions, TunerConfig, open_run, scale_of
from mechanicd.torch import Mechanized, mechanize


def trained(target: str, project: str, run: str, steps: int, seed: int, **settings: Any) -> tuple[Mechanized, torch.nn.Linear]:
    """A regression after some steps, still open."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(8, 1)
    optimizer = mechanize(torch.optim.SGD(model.parameters(), lr=1.0), run=run, target=target, project=project, **settings)
    return optimizer, go_on(optimizer, model, steps)


def go_on(optimizer: Mechanized, model: torch.nn.Linear, steps: int) -> torch.nn.Linear:
    for _ in range(steps):
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        ((model(x) - x.sum(dim=1, keepdim=True)) ** 2).mean().backward()
        optimizer.step()
    return model


def test_a_warm_start_begins_where_the_other_run_ended(server: Any, project: str) -> None:
    cold, _ = trained(server.target, project, "seed0", 200, seed=0)
    found = cold.scale
    assert isinstance(found, float)
    cold.close("finished")
    s_init = scale_of(server.target, "seed0", project=project)
    assert s_init == found, "to the bit"
    warm, _ = trained(server.target, project, "seed1", 10, seed=1, s_init=s_init)
    colder, _ = trained(server.target, project, "seed2", 10, seed=1)
    assert isinstance(warm.scale, float)
    assert isinstance(colder.scale, float)
    assert warm.scale > found / 10 > 10 * colder.scale
    warm.close("finished")
    colder.close("finished")


def test_a_warm_training_that_comes_back_has_the_same_run(server: Any, project: str) -> None:
    cold, _ = trained(server.target, project, "seed0", 100, seed=0)
    cold.close("finished")
    warm, model = trained(server.target, project, "seed1", 20, 1, s_init=scale_of(server.target, "seed0", project=project))
    saved, parameters = warm.state_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    warm.close("preempted")
    again, model = trained(server.target, project, "seed1", 0, 1, s_init=scale_of(server.target, "seed0", project=project))
    model.load_state_dict(parameters)
    again.load_state_dict(saved)
    assert again.scale == warm.scale
    go_on(again, model, 5)
    again.close("finished")
    assert scale_of(server.target, "seed1", project=project) == again.scale


@pytest.mark.parametrize("status", ["preempted", "failed"])
def test_a_run_that_may_go_on_is_refused(server: Any, project: str, status: str) -> None:
    session = open_run(server.target, "moving", project=project, start=0)
    session.step(Reductions(-1.0, 0.0, 1.0, 1.0))
    session.flush(10)
    with pytest.raises(InvalidArgument, match=r"is running, at step 1.*s_init as a number") as refused:
        scale_of(server.target, "moving", project=project)
    assert refused.value.reason == "RUN_NOT_FINISHED"
    session.close(status)
    with pytest.raises(InvalidArgument, match=f"is {status}"):
        scale_of(server.target, "moving", project=project)


def test_a_group_is_named_where_there_are_several(server: Any, project: str) -> None:
    config, rng = TunerConfig(scale_groups=("body", "head")), random.Random(0)
    session = open_run(server.target, "groups", project=project, config=config, start=0)
    for _ in range(50):
        session.begin([Reductions(rng.gauss(-1.0, 1.0), 0.0, 1.0, 1.0) for _ in range(2)])
        scales = session.finish()
    session.close("finished")
    for group in (None, "neck"):
        with pytest.raises(InvalidArgument, match=r"2 scale groups.*body, head") as refused:
            scale_of(server.target, "groups", project=project, group=group)
        assert refused.value.reason == "SEVERAL_SCALES"
    assert scales[0] != scales[1]
    found = [scale_of(server.target, "groups", project=project, group=group) for group in ("body", "head")]
    assert found == list(scales)


def test_what_has_no_scale_is_refused(server: Any, project: str) -> None:
    open_run(server.target, "empty", project=project, start=0).close("finished")
    with pytest.raises(InvalidArgument, match="still has S = 0 after 0 steps") as refused:
        scale_of(server.target, "empty", project=project)
    assert refused.value.reason == "NO_SCALE"
    with pytest.raises(MechanicdError, match="no such run") as missing:
        scale_of(server.target, "missing", project=project)
    assert missing.value.reason == "RUN_NOT_FOUND"
