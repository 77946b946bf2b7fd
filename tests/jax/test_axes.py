"""Inside `shard_map` and `pmap` S is that of one device, or the step is refused by name: it never differs between devices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize
from tests.support.warm import warm

SCRIPT = Path(__file__).with_name("training_by_axes.py")
Found = dict[str, Any]


def run(*words: str, **environment: str) -> Found:
    """S of each training, or the reason it was refused for."""
    program = warm("mechanicd.jax").start(str(SCRIPT), *words, folder=SCRIPT.parent, environment=environment)
    done = program.end(300)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {line["name"]: line.get("reason") or line["scales"] for line in lines}


@pytest.fixture(scope="module")
def jit() -> Found:
    return run("jit")


@pytest.fixture(scope="module")
def right(jit: Found) -> Callable[[Any], bool]:
    """Whether S is that of one device that has it all."""
    wanted = {len(jit[name]): jit[name] for name in ("alone", "alone, tensor")}

    def is_right(found: Any) -> bool:
        assert isinstance(found, list), found
        return found == pytest.approx(wanted[len(found)], rel=1e-5)

    return is_right


def test_under_jit_alone_nothing_is_needed_however_the_parameters_are_sharded(jit, right):
    assert jit["alone"][0] > 2e-3
    for name in ("sharded", "sharded explicitly", "()"):
        assert right(jit[name]), name
    assert jit["unbound name"] == "AXIS_MISMATCH", "a name that is not there may be a slip"


def test_where_jax_tracks_what_differs_nothing_has_to_be_said(right):
    found = run("tracked")
    for name in (
        "data",
        "data, tensor",
        "split",
        "split, ref",
        "split, named",
        "split, and data",
        "fully sharded",
        "all inside",
    ):
        assert right(found[name]), name
    assert found["data, not averaged"] == "AXIS_MISMATCH"
    assert found["split, named otherwise"] == "AXIS_MISMATCH"
    assert found["split, Δ whole"] == "DELTA_MISMATCH"
    assert found["a state of each device"] == "AXIS_NAME_MISSING", "split, replicated, or each its own: nobody can know"


def test_where_it_does_not_a_choice_is_asked_for_and_checked(right):
    found = run("untracked")
    assert found["data"] == found["split"] == "AXIS_NAME_MISSING"
    for name in ("data, ()", "split, named", "split, specs, tensor"):
        assert right(found[name]), name
    assert found["data, (), not averaged"] == found["split, ()"] == "SCALE_MISMATCH", "what was said is not true"


def test_pmap(right):
    found = run("pmap")
    assert found["data"] == "AXIS_NAME_MISSING"
    assert right(found["data, ()"])
    assert found["data, (), not averaged"] == "SCALE_MISMATCH"
    assert found["data, (), one device NaN"] == pytest.approx(found["alone, one step less"], rel=1e-5), "a NaN on one is on all"
    assert found["each its own"] == pytest.approx(found["alone, each"], rel=1e-5)


def test_each_step_reaches_the_server_once_though_every_device_reports_it(server, project, history, right):
    found = run("served", server.target, MECHANICD_PROJECT=project)
    for name in ("pmap", "loop", "hold", "data"):
        assert right(found[name]), name
        kept = history(server.target, name, project)
        assert [record.step for record in kept] == list(range(1, 13)), name
        assert list(kept[-1].scale) == pytest.approx(found[name], rel=1e-12)
    assert found["each"] == "VMAP", "many trainings are not one run"


def test_a_choice_between_one_model_and_many_is_made_once():
    import optax

    with pytest.raises(InvalidArgument) as caught:
        mechanize(optax.sgd(1.0), axis_name="d", distributed=False)
    assert caught.value.reason == "INVALID_SETTING"
