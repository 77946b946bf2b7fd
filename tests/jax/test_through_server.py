"""A JAX training through the server equals the same training without one, bit for bit, whatever happens to either process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from mechanicd.client import InvalidArgument, MechanicdError, SessionFenced, StepConflict
from mechanicd.jax import mechanize, scale
from mechanicd.jax import scales as scales_of

STEPS = 60
RAISED = (jax.errors.JaxRuntimeError, ValueError)
"""What JAX makes of an error in a callback, by where it meets it."""
SCRIPT = Path(__file__).with_name("training.py")


def base() -> optax.GradientTransformation:
    return optax.adamw(optax.linear_schedule(1.0, 0.1, STEPS))


def scales(records: Any) -> list[Any]:
    return [record.scale[0] if len(record.scale) == 1 else tuple(record.scale) for record in records]


def alike(found):
    """S as the history has it: a float for one scale group, else a tuple."""
    return found[0] if len(found) == 1 else tuple(found)


HOWS = {"local": {}, "hold": {"on_outage": "hold"}, "raise": {"on_outage": "raise"}, "loop": {"report": "loop"}}


@pytest.mark.parametrize(
    ("groups", "how"),
    [
        *(("all", how) for how in HOWS),
        ("tensor", "loop"),
        *(pytest.param("tensor", how, marks=pytest.mark.soak) for how in HOWS if how != "loop"),
    ],
)
def test_it_equals_the_training_without_a_server(groups, how, digits, bits, server, project, history):
    alone = mechanize(base(), s_init=1e-4, scale_groups=groups)
    params, state = digits.params(), alone.init(digits.params())
    step, wanted = digits.step(alone), []
    for t in range(STEPS):
        params, state, _ = step(params, state, digits.batch(t))
        wanted.append(alike(scales_of(state)))
    where = {"run": "r", "target": server.target, "project": project, **HOWS[how]}
    with mechanize(base(), s_init=1e-4, scale_groups=groups, **where) as tx:
        other, other_state, _ = digits.train(tx, STEPS)
        assert tx.flush() == STEPS
    assert bits(other) == bits(params)
    assert scales_of(other_state) == scales_of(state)
    records = history(server.target, "r", project)
    assert [record.step for record in records] == list(range(1, STEPS + 1))
    assert scales(records) == wanted


def test_the_loop_tells_the_server_while_all_buffers_are_donated(digits, bits, server, project, history):
    """Every step, also where the loop reports seldom; then an older state of the same process is a rewind."""
    alone = mechanize(base(), s_init=1e-4)
    wanted, wanted_state, _ = digits.train(alone, STEPS)
    tx = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4, report="loop")
    step = digits.step(tx, donate_argnums=(0, 1))
    params = digits.params()
    state = jax.jit(tx.init)(params)
    tx.report(state)
    for t in range(STEPS):
        params, state, _ = step(params, state, digits.batch(t))
        if t % 7 == 0:
            tx.report(state)
        if t == 30:
            kept = jax.tree.map(jnp.array, (params, state))
    tx.report(state)
    assert tx.flush() == STEPS
    assert bits(params) == bits(wanted)
    assert scale(state) == scale(wanted_state)
    assert [r.step for r in history(server.target, "r", project)] == list(range(1, STEPS + 1))

    params, state = kept  # after step 31
    other = [digits.batch(500 + t) for t in range(5)]
    for batch in other:
        params, state, _ = step(params, state, batch)
        tx.report(state)
    assert tx.flush() == 36
    tx.close()
    records = history(server.target, "r", project)
    assert [r.step for r in records] == list(range(1, 37))
    assert records[-1].scale[0] == scale(state)


def test_a_loop_that_reports_too_seldom_leaves_a_gap_and_the_right_s(digits, server, project, history):
    tx = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4, report="loop")
    step, params = digits.step(tx), digits.params()
    state = tx.init(params)
    for t in range(400):
        params, state, _ = step(params, state, digits.batch(t))
        if t < 20 or t >= 390:
            tx.report(state)
        if t == 19:
            assert tx.flush() == 20
    assert tx.flush() == 400
    tx.close()
    records = history(server.target, "r", project)
    steps = [r.step for r in records]
    assert steps[:20] == list(range(1, 21))
    assert steps[20] > 21
    assert steps[20:] == list(range(steps[20], 401))
    assert records[-1].scale[0] == scale(state)


def test_what_the_server_refuses_is_raised_at_a_later_report(digits, server, project):
    where = {"run": "r", "target": server.target, "project": project, "s_init": 1e-4, "report": "loop"}
    older = mechanize(base(), **where)
    params, state, _ = digits.train(older, 10)
    older.flush()
    newer = mechanize(base(), **where)
    digits.train(newer, 3, params, state, 10)
    newer.flush()

    def go_on():
        for _ in range(5):
            digits.train(older, 2, params, state, 10)
            older.flush()

    with pytest.raises(SessionFenced):
        go_on()
    newer.close()


def test_scan_and_accumulation_tell_the_server_each_step_once(digits, server, project, history):
    tx = mechanize(optax.MultiSteps(base(), 1), run="scan", target=server.target, project=project, s_init=1e-4)
    step = digits.step(tx)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *[digits.batch(t) for t in range(25)])
    params = digits.params()
    carry = (params, tx.init(params))
    carry, _ = jax.jit(lambda c: jax.lax.scan(lambda c, b: (step(*c, b)[:2], None), c, stacked))(carry)
    assert tx.flush() == 25
    tx.close()
    assert [r.step for r in history(server.target, "scan", project)] == list(range(1, 26))

    inner = mechanize(base(), run="parts", target=server.target, project=project, s_init=1e-4)
    digits.train(optax.MultiSteps(inner, 4), 40)
    assert inner.flush() == 10
    inner.close()
    assert [r.step for r in history(server.target, "parts", project)] == list(range(1, 11))


@pytest.mark.parametrize("outer", [lambda tx: tx, lambda tx: optax.apply_if_finite(tx, 5)], ids=["alone", "apply_if_finite"])
def test_a_gradient_that_is_not_finite_is_one_step_that_does_not_count(outer, digits, server, project, history):
    inner = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4)
    tx = outer(inner)
    params, step = digits.params(), digits.step(tx)
    state = tx.init(params)
    for t in range(30):
        x, y = digits.batch(t)
        params, state, _ = step(params, state, (x * (jnp.inf if t in (11, 12) else 1.0), y))
    inner.close()
    records = history(server.target, "r", project)
    assert [r.step for r in records] == list(range(1, len(records) + 1))
    assert len(records) == (30 if tx is inner else 28), "apply_if_finite does not even ask"
    assert [r.step for r in records if r.outcome == 2] == ([12, 13] if tx is inner else [])
    assert records[-1].scale[0] == scale(state)


@pytest.mark.parametrize(
    ("format", "report"),
    [
        ("flax", "callback"),
        ("orbax", "loop"),
        pytest.param("flax", "loop", marks=pytest.mark.soak),
        pytest.param("orbax", "callback", marks=pytest.mark.soak),
    ],
)
def test_the_checkpoint_alone_resumes_bit_for_bit(format, report, digits, bits, server, project, history, run_cli, tmp_path):
    """Also where the server has gone on since: the checkpoint wins."""
    uncut = mechanize(base(), s_init=1e-4)
    wanted, wanted_state, _ = digits.train(uncut, STEPS)
    first = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4, report=report)
    params, state, _ = digits.train(first, 25)
    target = {"params": params, "state": state}
    if format == "flax":
        (tmp_path / "saved").write_bytes(flax.serialization.to_bytes(target))
    else:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "saved", target)
    digits.train(first, 10, params, state, 25)
    assert first.flush() == 35
    del first  # a process that dies says no goodbye

    again = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4, report=report)
    fresh = {"params": digits.params(), "state": again.init(digits.params())}
    if format == "flax":
        loaded = flax.serialization.from_bytes(fresh, (tmp_path / "saved").read_bytes())
    else:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            loaded = checkpointer.restore(tmp_path / "saved", fresh)
    loaded = jax.tree.map(jnp.asarray, loaded)
    params, state, _ = digits.train(again, STEPS - 25, loaded["params"], loaded["state"], 25)
    assert again.flush() == STEPS
    again.close()
    assert bits(params) == bits(wanted)
    assert scale(state) == scale(wanted_state)
    assert [r.step for r in history(server.target, "r", project)] == list(range(1, STEPS + 1))
    assert [r.step for r in history(server.target, "r", project, branch=1)] == list(range(26, 36)), "what was abandoned is kept"
    shown = json.loads(run_cli("runs", "show", "r", "--project", project, "--target", server.target, "--json").stdout)
    assert (shown["sessions"], shown["rewinds"]) == (2, 1)


def test_an_older_state_of_the_same_process_rewinds_the_run(digits, bits, server, project, history):
    """As a sweep does that goes back to its best state, or a training that fell into a NaN."""
    tx = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4)
    kept = digits.train(tx, 20)[:2]
    once = digits.train(tx, 15, *kept, 20)
    twice = digits.train(tx, 15, *kept, 20)
    assert bits(once[0]) == bits(twice[0])
    assert tx.flush() == 35
    tx.close()
    assert [r.step for r in history(server.target, "r", project)] == list(range(1, 36))


@pytest.mark.parametrize("on_outage", ["local", "hold"])
def test_the_server_is_killed_in_the_middle(on_outage, digits, bits, new_server, history):
    wanted, wanted_state, _ = digits.train(mechanize(base(), s_init=1e-4), STEPS)
    server = new_server().start()
    tx = mechanize(base(), run="r", target=server.target, s_init=1e-4, on_outage=on_outage, deadline=1.0)
    params, state, _ = digits.train(tx, 20)
    assert tx.flush() == 20
    server.kill()
    params, state, _ = digits.train(tx, 15, params, state, 20)
    if on_outage == "hold":
        assert scale(state) != scale(wanted_state)
    server.start()
    time.sleep(0.5)
    params, state, _ = digits.train(tx, STEPS - 35, params, state, 35)
    assert tx.flush(30) == STEPS
    tx.close()
    kept = history(server.target, "r")
    assert [r.step for r in kept] == list(range(1, STEPS + 1))
    if on_outage == "local":
        assert bits(params) == bits(wanted)
        assert kept[-1].scale[0] == scale(state) == scale(wanted_state)


def test_raise_says_that_the_server_is_away(digits, new_server):
    server = new_server().start()
    tx = mechanize(base(), run="r", target=server.target, on_outage="raise", deadline=0.5)
    params, state, _ = digits.train(tx, 3)
    server.kill()
    with pytest.raises(RAISED, match="SERVER_UNREACHABLE"):
        digits.train(tx, 3, params, state, 3)
    with pytest.raises(MechanicdError) as caught:
        tx.flush()
    assert caught.value.reason == "SERVER_UNREACHABLE"
    tx.close()


@pytest.mark.parametrize("on_outage", ["local", "hold"])
def test_the_older_of_two_trainers_is_told_by_name(on_outage, digits, server, project):
    where = {"run": "r", "target": server.target, "project": project, "on_outage": on_outage}
    older = mechanize(base(), **where)
    params, state, _ = digits.train(older, 10)
    older.flush()
    newer = mechanize(base(), **where)
    digits.train(newer, 10, params, state, 10)
    with contextlib.suppress(*RAISED):  # the callback's error comes when jax looks, or at the next step
        digits.train(older, 2, params, state, 10)
    with pytest.raises(SessionFenced):
        older.flush()
    older.close()
    assert newer.flush() == 20
    newer.close()


def test_a_device_with_another_s_is_told_by_name(digits, server, project, monkeypatch):
    from mechanicd.jax import _tuner

    right = _tuner.scale
    monkeypatch.setattr(_tuner, "scale", lambda s: right(s) * 1.0000001)
    tx = mechanize(base(), run="r", target=server.target, project=project, s_init=1e-4)
    with contextlib.suppress(*RAISED):
        digits.train(tx, 5)
    with pytest.raises(StepConflict) as caught:
        tx.flush()
    assert caught.value.reason == "SCALE_MISMATCH"
    tx.close()


def test_vmap_of_a_run_is_refused_by_name(digits, server, project):
    tx = mechanize(base(), run="r", target=server.target, project=project)
    params = jax.tree.map(lambda p: jnp.stack([p, p]), digits.params())
    state = jax.vmap(tx.init)(params)
    with pytest.raises(InvalidArgument) as caught:
        jax.vmap(tx.update)(params, state, params)
    assert caught.value.reason == "VMAP"


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (ValueError("no more data"), "FAILED")])
def test_the_run_says_how_it_ended(error, status, digits, server, project, run_cli):
    try:
        with mechanize(base(), run="r", target=server.target, project=project, labels={"kind": "jax"}) as tx:
            digits.train(tx, 3)
            if error:
                raise error
    except ValueError:
        pass
    shown = run_cli("runs", "show", "r", "--project", project, "--target", server.target, "--json")
    assert f'"{status.lower()}"' in shown.stdout.lower(), shown.stdout + shown.stderr
    assert '"kind": "jax"' in shown.stdout


def test_sigterm_in_a_training_leaves_the_run_preempted_and_sigkill_resumes(
    server, project, history, tmp_path, run_cli, wait_for
):
    """A real process: killed hard, then started again, then told to stop, then again to its end; S as if nothing had been."""
    command = [sys.executable, str(SCRIPT), server.target, "r", "80", str(tmp_path / "checkpoint")]
    environment = {**os.environ, "MECHANICD_PROJECT": project}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def until(process: subprocess.Popen[str], step: int) -> None:
        for line in process.stdout:
            if int(line) >= step:
                return
        raise AssertionError(f"it ended with {process.wait()} before step {step}")

    process = start()
    until(process, 30)
    process.kill()
    process.communicate()
    process = start()
    until(process, 50)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    shown = run_cli("runs", "show", "r", "--project", project, "--target", server.target, "--json")
    assert '"preempted"' in shown.stdout.lower(), shown.stdout
    process = start()
    assert process.communicate(timeout=60)
    assert process.returncode == 0
    alone = subprocess.run(
        [sys.executable, str(SCRIPT), "none", "r", "80", str(tmp_path / "alone")], capture_output=True, check=True, timeout=60
    )
    assert alone.returncode == 0
    records = history(server.target, "r", project)
    assert [r.step for r in records] == list(range(1, 81))
    one, other = ((tmp_path / name).read_bytes() for name in ("checkpoint", "alone"))
    assert one == other, "parameters, BASE's state, tuner and all"
    assert np.isfinite(records[-1].scale[0])
