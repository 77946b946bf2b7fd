"""The tuner on the device has the bits of `mechanicd.tuner`, in programs with and without x64."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechanicd.jax import _tuner
from mechanicd.jax._float64 import Exact, from_bits, host_bits, to_bits, x64
from mechanicd.jax._report import bits_of, same, state_of
from mechanicd.tuner import CONVENTIONS, Reductions, Tuner, TunerConfig, TunerState


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64_flag(request: pytest.FixtureRequest) -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield
    jax.config.update("jax_enable_x64", before)


def on_device(config: TunerConfig):
    @jax.jit
    def advance(step, bits, sums):
        with x64():
            table, finite = _tuner.advance(config, _tuner.Table(*from_bits(bits)), _tuner.Sums(*from_bits(sums)), Exact(step))
            return to_bits(jnp.stack(table)), finite

    return advance


def random_sums(make: np.random.Generator, step: int, groups: int, orders: float) -> np.ndarray:
    """Four scalars a group, over so many orders of magnitude; now and then 0, an infinity or a NaN."""
    sums = make.standard_normal((4, groups)) * 10.0 ** make.uniform(-orders, orders, (4, groups))
    if step % 17 == 5:
        sums[make.integers(4), make.integers(groups)] = make.choice([0.0, np.inf, np.nan, -np.inf])
    if step % 13 == 2:
        sums[:, make.integers(groups)] = 0.0
    sums[2:] = np.abs(sums[2:])
    return sums


@pytest.mark.parametrize("groups", [1, 40])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_bit_of_every_state_is_the_hosts(convention, groups, x64_flag):
    config = TunerConfig(convention=convention, s_init=1e-6, scale_groups=tuple(f"g{i}" for i in range(groups)))
    tuner, advance = Tuner(config), on_device(config)
    state, make = tuner.init(), np.random.default_rng(0)
    device, skipped, largest = jnp.asarray(bits_of(state)), 0, 0.0
    for step in range(300):
        sums = random_sums(make, step, groups, orders=(0, 3, 100)[step // 100])
        device, finite = advance(jnp.int32(step), device, jnp.asarray(host_bits(sums)))
        state = tuner.update(state, [Reductions(*column) for column in sums.T.tolist()])
        assert np.asarray(device).tobytes() == bits_of(state).tobytes(), f"step {step}"
        assert bool(finite) == bool(np.isfinite(sums).all())
        skipped += not finite
        largest = max(largest, *state.scale)
    assert skipped > 0
    assert largest > 0


def test_a_rounding_in_the_last_bit_is_told_apart():
    """What `Exact` prevents, done by hand: whether a compiler would fuse depends on the compiler."""
    config = TunerConfig()
    tuner, state, make = Tuner(config), TunerState.initial(config), np.random.default_rng(0)

    class Off(Exact):
        def __call__(self, value):
            exact = super().__call__(value)
            return jnp.nextafter(exact, jnp.inf * jnp.sign(exact))

    @jax.jit
    def advance(step, bits, sums):
        with x64():
            table, _ = _tuner.advance(config, _tuner.Table(*from_bits(bits)), _tuner.Sums(*from_bits(sums)), Off(step))
            return to_bits(jnp.stack(table))

    differ = 0
    for step in range(50):
        sums = random_sums(make, step, 1, 1)
        device = advance(jnp.int32(step), jnp.asarray(bits_of(state)), jnp.asarray(host_bits(sums)))
        state = tuner.update(state, [Reductions(*column) for column in sums.T.tolist()])
        differ += np.asarray(device).tobytes() != bits_of(state).tobytes()
    assert differ > 40


def test_a_state_comes_back_from_its_bits():
    config = TunerConfig(scale_groups=("a", "b"))
    state = Tuner(config).update(TunerState.initial(config), [Reductions(1.0, 2.0, 3.0, 4.0), Reductions(-1.0, 2.0, 3.0, 4.0)])
    assert state_of(state.step, bits_of(state)) == state


def test_a_device_without_denormals_has_the_same_state():
    values = np.array([1.0, 3e-310, -3e-310, 0.0])
    assert same(host_bits(values), host_bits([1.0, 0.0, 0.0, 0.0]))
    assert not same(host_bits(values), host_bits([1.0, 0.0, 1e-300, 0.0]))
    assert not same(host_bits(values), host_bits([np.nextafter(1.0, 2.0), 0.0, 0.0, 0.0]))
