"""A signal at any line of the host's part of a jitted step: the history stays whole, and the training goes on right.

On a CPU, JAX runs the callback of a small program on the main thread, where Python runs signal handlers too.
"""

import os
import random
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import optax
import pytest

from mechanicd.client import _deferred
from mechanicd.jax import _report, mechanize
from tests.support.interrupts import At
from tests.support.soak import SOAK, chosen_seed

SEED = chosen_seed()
BEFORE = 3
pytestmark = pytest.mark.timeout(3600 if SOAK else 120)
CLIENT = os.path.dirname(_deferred.__file__)


def anywhere(frame: FrameType) -> bool:
    return True


def in_the_section(frame: FrameType) -> bool:
    """In what the callback does between the entry of its section and the end."""
    code = frame.f_code
    if code.co_filename == _report.__file__:
        return code.co_name not in ("follow", "lead", "_once")
    return code.co_filename.startswith(CLIENT) and code.co_filename != _deferred.__file__


def trained(
    digits: Any, tx: Any, lines: list[int], counts: Callable[[FrameType], bool], **options: Any
) -> tuple[Any, list[At]]:
    """The parameters of a training that is interrupted in each step, and goes on from what it has then."""
    step, params = digits.step(tx, **options), digits.params()
    state, ats = tx.init(params), [At(n, counts=counts) for n in lines]
    while (t := int(state.step)) < BEFORE + len(lines):
        at = ats[t - BEFORE] if t >= BEFORE else At()
        at = At() if at.sent else at
        error: BaseException | None = None
        try:
            with at:
                params, state, _ = jax.block_until_ready(step(params, state, digits.batch(t)))
            if at.sent:
                time.sleep(5.0)  # the handler is called a moment after the callback
        except (KeyboardInterrupt, ValueError, jax.errors.JaxRuntimeError) as raised:
            error = raised
        assert (error is not None) == at.sent, f"seed {SEED}: line {at.n}"
        assert not options or error is None or type(error) is KeyboardInterrupt, "the program was not hurt"
    return params, ats


@pytest.mark.parametrize(
    ("counts", "options"), [(anywhere, {}), (in_the_section, {"donate_argnums": (0, 1)})], ids=["anywhere", "donated"]
)
@pytest.mark.parametrize("how", [{}, {"on_outage": "hold"}], ids=["local", "hold"])
def test_a_step_is_taken_whole_or_not_at_all(
    how: Any, counts: Any, options: Any, monkeypatch: Any, digits: Any, bits: Any, server: Any, project: str, history: Any
) -> None:
    if options:  # its buffers are lost if the handler is called before the result is in its place
        monkeypatch.setattr(_deferred, "_MOMENT", 0.1)
    where = {"target": server.target, "project": project, "s_init": 1e-4, **how}
    with mechanize(optax.sgd(1.0), "lines", **where) as tx:
        _, (_, counter) = trained(digits, tx, [0, 0], counts, **options)
    assert counter.count > 20, "the callback runs on the main thread"
    every = list(range(1, counter.count + 1))
    most = 400 if SOAK else 20
    lines = every if len(every) <= most else sorted(random.Random(SEED).sample(every, most))
    wanted, _ = trained(digits, mechanize(optax.sgd(1.0), s_init=1e-4), [0] * len(lines), counts)
    with mechanize(optax.sgd(1.0), "interrupted", **where) as tx:
        params, _ = trained(digits, tx, lines, counts, **options)
    assert bits(params) == bits(wanted), f"seed {SEED}"
    assert [record.step for record in history(server.target, "interrupted", project)] == list(range(1, BEFORE + len(lines) + 1))
