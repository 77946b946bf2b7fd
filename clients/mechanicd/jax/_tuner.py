"""The tuner on the device: `mechanicd.tuner` operation by operation, in float64, with the same bits.

Arrays have shape (n, G): one row per β, one column per scale group. Everything here is called inside `x64()`. `exact` is put
around every operation that a compiler might fuse or rewrite.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp

from mechanicd.jax._float64 import Exact
from mechanicd.tuner import H_MAX, R_MAX, S_MAX, V_MAX, TunerConfig


class Table(NamedTuple):
    """The tuner's state of G scale groups; every field has shape (n, G), dtype float64."""

    m: jax.Array
    v: jax.Array
    r: jax.Array
    s: jax.Array
    q: jax.Array


class Sums(NamedTuple):
    """⟨Δ,g⟩, ⟨Δ,x⟩, ‖g‖², ‖x‖² of each scale group; every field has shape (G,), dtype float64."""

    delta_dot_g: jax.Array
    delta_dot_x: jax.Array
    g_norm_sq: jax.Array
    x_norm_sq: jax.Array


def scale(s: jax.Array) -> jax.Array:
    """S per group, shape (G,), added from the first β to the last."""
    total = jnp.zeros(s.shape[1:], s.dtype)
    for values in s:
        total = total + values
    return total


def advance(config: TunerConfig, table: Table, sums: Sums, exact: Exact) -> tuple[Table, jax.Array]:
    """The next state, and whether all scalars were finite; else the state stays as it is (Algorithm 1, lines 10–16)."""
    # Line 10 is h; a rule is lines 11–16. A step with a NaN or infinite scalar still counts, but changes nothing.
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(value)) for value in sums]))
    following = RULES[config.convention](config, table, _h(config, scale(table.s), sums, exact), exact)
    return Table(*(jnp.where(finite, after, before) for after, before in zip(following, table, strict=True))), finite


def _h(config: TunerConfig, S: jax.Array, sums: Sums, exact: Exact) -> jax.Array:
    """h_t = ⟨Δ_t, g_t⟩ + λ·S_t·‖g_t‖·⟨Δ_t, x_t⟩/(‖x_t‖ + ε) (Algorithm 1, line 10)."""
    decay = exact(exact(config.s_decay * S) * exact(jnp.sqrt(sums.g_norm_sq)))
    decay = exact(decay * sums.delta_dot_x)
    decay = exact(decay / (exact(jnp.sqrt(sums.x_norm_sq)) + config.eps))
    return _within(-H_MAX, sums.delta_dot_g + decay, H_MAX)


def _paper(config: TunerConfig, table: Table, h: jax.Array, exact: Exact) -> Table:
    """Algorithm 1, lines 11–16, as `mechanicd.tuner._rules.paper` reads them."""
    n = exact.each(float(len(config.betas)), table.m[0])
    size, square = jnp.abs(h), exact(h * h)
    rows = []
    for beta, m, v, r, s, q in zip(config.betas, *table, strict=True):
        m = jnp.maximum(exact(beta * m), size)  # line 11, with |h| for the printed h
        v = jnp.minimum(exact(beta * beta * v) + square, V_MAX)  # line 12
        r = _within(0.0, exact(beta * r) - exact(s * h), R_MAX)  # lines 13–14, with the bet just played, s_t
        W = exact(exact(config.s_init * m) / n) + r  # line 15; the next s = W/(√v + ε) is line 16
        rows.append((m, v, r, jnp.minimum(exact(W / (exact(jnp.sqrt(v)) + config.eps)), S_MAX), q))
    return _table(rows)


def _optax(config: TunerConfig, table: Table, h: jax.Array, exact: Exact) -> Table:
    """As optax.contrib.mechanize; see `mechanicd.tuner._rules.optax`."""
    n = exact.each(float(len(config.betas)), table.m[0])
    size, square = jnp.abs(h) + config.eps, exact(h * h)
    rows = []
    for beta, m, v, r, s, q in zip(config.betas, *table, strict=True):
        clipped = _within(-m, h, m)  # by m_{t−1}, so before m moves
        m = jnp.maximum(exact(beta * m), size)
        v = jnp.minimum(exact(beta * beta * v) + square, V_MAX)
        r = _within(-R_MAX, exact(beta * r) - exact(s * clipped), R_MAX)
        W = exact(exact(config.s_init * m) / n) + _within(0.0, r, R_MAX)
        rows.append((m, v, r, jnp.minimum(exact(W / (exact(jnp.sqrt(v)) + config.eps)), S_MAX), q))
    return _table(rows)


def _theory(config: TunerConfig, table: Table, h: jax.Array, exact: Exact) -> Table:
    """Algorithm 2 (appendix D); see `mechanicd.tuner._rules.theory`."""
    n = len(config.betas)
    size = jnp.abs(h)
    rows = []
    for beta, m, v, r, s, q in zip(config.betas, *table, strict=True):
        clipped = _within(-m, h, m)
        m = jnp.maximum(exact(beta * m), size)
        q = _within(-R_MAX, exact(beta * q) + clipped, R_MAX)
        r = _within(-R_MAX, exact(beta * r) - exact(s * clipped), R_MAX)
        v = jnp.minimum(exact(beta * beta * v) + exact(clipped * clipped), V_MAX)
        W = config.initial_wealth / n + r
        spread = exact(4.0 * exact(m * m)) + v
        # spread is 0 until the first h ≠ 0; the inner select keeps 0/0 out of the branch that is not taken
        root = exact(jnp.sqrt(jnp.where(spread == 0.0, 1.0, spread)))
        fraction = jnp.where(spread == 0.0, 0.0, _within(0.0, exact(-q / root), 1.0))  # line 12, with −q for the printed q
        bet = _within(0.0, exact(W / exact(jnp.sqrt(spread + config.eps))), S_MAX)
        rows.append((m, v, r, exact(bet * fraction), q))
    return _table(rows)


RULES: Final[dict[str, Callable[[TunerConfig, Table, jax.Array, Exact], Table]]] = {
    "paper": _paper,
    "pytorch": _paper,
    "optax": _optax,
    "theory": _theory,
}
NOT_SUPPORTED: Final[frozenset[str]] = frozenset()
"""Conventions of `mechanicd.tuner` that have no rule here; `mechanize` rejects them."""


def _within(low: jax.Array | float, value: jax.Array, high: jax.Array | float) -> jax.Array:
    return jnp.minimum(jnp.maximum(value, low), high) + 0.0


def _table(rows: Sequence[tuple[jax.Array, ...]]) -> Table:
    return Table(*(jnp.stack(field) for field in zip(*rows, strict=True)))
