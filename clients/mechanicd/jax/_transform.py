"""The step as an optax transformation: reduce, tuner, BASE, apply, all in one program on the device.

The device computes S_{t+1} with the same bits as the server, so no part of the step waits for the host. The scalars reach the
host through a callback; only the next callback depends on its result. It uses `pure_callback` although it has side effects:
with any other kind, JAX takes a slow dispatch path (10 ms a step for a model of 150 tensors). `report="loop"` has no callback:
the state keeps the last steps until the training loop calls `report` (`_ring`). Where an outage may change S (`on_outage`
"hold" or "raise"), the tuner runs on the host instead, and the step waits for it.
"""

import atexit
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mechanicd.client import InvalidArgument
from mechanicd.client.framework import DeltaLayout, Run, Settings, check_status, failure_of
from mechanicd.jax import _axes, _bases, _outside, _ring, _tuner
from mechanicd.jax._float64 import BITS, Exact, from_bits, to_bits, x64
from mechanicd.jax._groups import Groups, Labels, group
from mechanicd.jax._leaves import Leaves, dtype_of, gradients, kept, leaves_of
from mechanicd.jax._reduce import split_by_type
from mechanicd.jax._report import Reporter, bits_of, pack, told_of
from mechanicd.jax._state import LOW_PRECISION, MechanicState, find, wide
from mechanicd.tuner import TunerConfig, TunerState


def settle() -> None:
    """Waits for all programs, and so for their callbacks. What a callback raised is kept by its reporter."""
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # the program failed, or the array was deleted meanwhile
            array.block_until_ready()


@atexit.register
def _finish() -> None:
    settle()
    _ring.finish_all()


class Mechanized(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """What `mechanize` returns: an optax transformation that also owns its run."""

    run: Run
    _reporters: dict[TunerConfig, Reporter]
    _readers: dict[TunerConfig, _ring.Reader]

    def report(self, state: Any) -> None:
        """With `report="loop"`: reports the steps up to this state to the server. Call it after each step; it never blocks.
        Without a server it does nothing.

        The first call in a process reports the last step; each later call reports all steps since, at most 256 (fewer with more
        than about 60 scale groups). If one program takes many steps, call it once before that program as well.

        Args:
            state: the optimizer state that the step returned; its buffers may be donated to the next step.

        Raises:
            InvalidArgument: NOT_MECHANIZED, INVALID_SETTING.
            MechanicdError: what the server rejected since the last call, such as SESSION_FENCED.
        """
        if self.run.target is None:
            return
        ours = find(state)
        if isinstance(ours.recent, tuple):
            raise InvalidArgument("INVALID_SETTING", 'report() works only with mechanize(…, report="loop"); pass that')
        self._raise()
        if jax.process_index() == 0:
            for config, reporter in self._reporters.items():
                self._readers.setdefault(config, _ring.Reader(reporter)).look(ours.recent, ours.step)

    def _raise(self) -> None:
        for reporter in self._reporters.values():
            if reporter.error is not None:
                raise reporter.error

    def _settle(self) -> None:
        """Waits until the host has every step of every program that was started."""
        settle()
        for reader in self._readers.values():
            reader.finish()

    def flush(self, timeout: float | None = None) -> int:
        """Waits until the server has committed every step, and returns the last committed step; 0 without a server.

        Raises:
            SessionError, ServerUnavailable: from the session, including the error of a rejected step.
        """
        self._settle()
        self._raise()
        return 0 if self.run.session is None else self.run.session.flush(timeout)

    def close(self, status: str | None = None, message: str = "") -> None:
        """Closes the run as "finished", "failed" or "preempted". A second call does nothing.

        Raises:
            InvalidArgument: INVALID_STATUS; nothing has changed.
        """
        check_status(status)
        self._settle()
        for reader in self._readers.values():
            reader.end()
        self.run.close(status, message)

    def __del__(self, process_ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if process_ends():
            return
        for reader in getattr(self, "_readers", {}).values():
            reader.leave()

    def __enter__(self) -> "Mechanized":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        failed = failure_of(error)
        self.close(None if failed is None else "failed", failed or "")


def transform(
    base: Any, settings: Settings, labels: Labels, cap: float, *, loop: bool, axis_name: _axes.AxisName, distributed: bool
) -> Mechanized:
    """The transformation; see `mechanize`."""
    run, layout, plain = settings.run, settings.delta_layout, base
    base = optax.with_extra_args_support(base)
    reporters: dict[TunerConfig, Reporter] = {}
    keeps = [_keeps((), layout)]

    def configured(params: Any) -> tuple[Groups, TunerConfig]:
        groups = group(labels, params)
        return groups, replace(settings.config, scale_groups=groups.names)

    def init(params: Any) -> MechanicState:
        leaves = leaves_of(params)
        if leaves.x:  # optax.map_params calls init with a tree that has none, and expects the state of the real ones
            keeps[0] = _keeps(leaves.x, layout)
        keeps_delta, keeps_ref = keeps[0]
        _, config = configured(params)
        base_state = base.init(params)
        if leaves.x:
            _bases.check_state(plain, base_state, params)
        return MechanicState(
            base_state=base_state,
            step=jnp.zeros((), jnp.int32),
            tuner=jnp.asarray(bits_of(TunerState.initial(config))),
            delta=jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide(dtype_of(x))), params) if keeps_delta else (),
            ref=jax.tree.map(_copy, params) if keeps_ref else (),
            told=jnp.full((), told_of(run), jnp.int32),
            recent=_ring.empty(config) if loop else (),
        )

    def update(grads: Any, state: MechanicState, params: Any = None, **extra: Any) -> tuple[Any, MechanicState]:
        if params is None:
            raise InvalidArgument("PARAMS_MISSING", "mechanize needs the parameters: tx.update(grads, state, params)")
        leaves = leaves_of(params)
        if not leaves.x:  # nothing to tune, as under a label of optax.partition that no parameter has
            updates, base_state = base.update(grads, state.base_state, params, **extra)
            told = state.told + 1 if run.has_random else state.told
            return updates, state._replace(base_state=base_state, step=state.step + 1, told=told)
        keeps[0] = _keeps(leaves.x, layout)
        groups, config = configured(params)
        x, g = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves.x], gradients(leaves, grads)
        recomputes = layout == "ref" and not jax.tree.leaves(state.delta)
        delta = None if recomputes else kept(leaves, "Δ", state.delta)
        axes = _axes.plan(axis_name, distributed, params, leaves.names, x, g, delta, state.tuner)
        x, g, delta = _underivable((x, g, delta))
        with x64():
            table = _tuner.Table(*from_bits(state.tuner.astype(BITS)))
            S = jnp.minimum(_tuner.scale(table.s), cap)
            before = [S.astype(wide(p.dtype))[i] for p, i in zip(x, groups.index, strict=True)]
        ref: list[jax.Array] = []
        _check_master_copy(leaves, state.ref)
        if layout == "ref" or jax.tree.leaves(state.ref):
            first = state.step == 0
            ref = kept(leaves, "x_ref", state.ref)
            ref = [jnp.where(first, p.astype(r.dtype), r) for p, r in zip(x, ref, strict=True)]
        if delta is None:
            delta = [(p - r) / (s + jnp.asarray(config.eps, p.dtype)) for p, r, s in zip(x, ref, before, strict=True)]
        with x64():  # h_t's scalars: Δ_t, g_t, x_t, all from before BASE runs
            sums, squares = _axes.reduce(groups, axes, delta, g, x)
            sums, alike = _axes.agree(axes, sums)
            sizes = _outside.typical(x, g, squares)
        if ref and not recomputes:
            ref = [_outside.follow(*each) for each in zip(x, ref, before, delta, sizes, strict=True)]
        following, finite, told, recent = _tuned(config, state, table, sums)
        with x64():
            if alike is not None:
                following = _tuner.Table(*(jnp.where(alike, field, jnp.nan) for field in following))
            S_next = jnp.minimum(_tuner.scale(following.s), cap)
            change = [(S_next - S).astype(wide(p.dtype))[i] for p, i in zip(x, groups.index, strict=True)]
            after = [S_next.astype(wide(p.dtype))[i] for p, i in zip(x, groups.index, strict=True)]
            tuner = to_bits(jnp.stack(following))
        u_tree, base_state = _only_if(
            finite,
            lambda: base.update(grads, state.base_state, params, **extra),
            jax.tree.map(jnp.zeros_like, grads),
            state.base_state,
        )
        u = [
            None if step is None else step.astype(D.dtype)
            for step, D in zip(leaves.tree.flatten_up_to(u_tree), delta, strict=True)
        ]
        # Δ_{t+1} = Δ_t + u_t (Algorithm 1, line 7)
        delta = [D if step is None else D + step for D, step in zip(delta, u, strict=True)]
        moves: list[Any]
        if ref:  # x_{t+1} = x_ref + S_{t+1}·Δ_{t+1}, as the update that optax adds to x_t
            places = [r.astype(D.dtype) + s * D for r, s, D in zip(ref, after, delta, strict=True)]
            moves = [_move(place, p, gradient) for place, p, gradient in zip(places, x, g, strict=True)]
        else:  # the same without x_ref: S_{t+1}·Δ_{t+1} − S_t·Δ_t = S_t·u + (S_{t+1} − S_t)·Δ_{t+1}
            moves = [None if step is None else s * step + d * D for s, step, d, D in zip(before, u, change, delta, strict=True)]
        return leaves.tree.unflatten(moves), MechanicState(
            base_state=base_state,
            step=state.step + 1,
            tuner=tuner,
            delta=() if recomputes else leaves.tree.unflatten(delta),
            ref=leaves.tree.unflatten(ref) if ref else (),
            told=told,
            recent=recent,
        )

    def _tuned(
        config: TunerConfig, state: MechanicState, table: _tuner.Table, sums: _tuner.Sums
    ) -> tuple[_tuner.Table, jax.Array, jax.Array, Any]:
        """The tuner's next state, whether the step counts, the new `told`, and the new `recent`."""
        if run.target is None:
            told = state.told + 1 if run.has_random else state.told
            with x64():
                return *_tuner.advance(config, table, sums, Exact(state.step)), told, state.recent
        reporter = reporters.setdefault(config, Reporter(run, config))
        follow, lead = _callbacks(reporter, distributed)
        with x64():
            bits = to_bits(jnp.stack(sums))
        if run.on_outage == "local":
            with x64():
                following, finite = _tuner.advance(config, table, sums, Exact(state.step))
                S_bits = to_bits(_tuner.scale(following.s))
            packed = _unbatched(pack(state.step, state.told, state.tuner, bits, S_bits))
            if loop:
                return following, finite, state.told + 1, _ring.push(state.recent, state.step, packed)
            return following, finite, jax.pure_callback(follow, jax.ShapeDtypeStruct((), jnp.int32), packed), ()
        packed = _unbatched(pack(state.step, state.told, state.tuner, bits, bits[0]))
        tuner = jax.pure_callback(lead, jax.ShapeDtypeStruct(state.tuner.shape, BITS), packed)
        with x64():
            finite = jnp.all(jnp.isfinite(jnp.stack(sums)))
            return _tuner.Table(*from_bits(tuner)), finite, state.told + 1, ()

    made = Mechanized(init, update)
    made.run, made._reporters, made._readers = run, reporters, {}
    return made


def _callbacks(reporter: Reporter, distributed: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What the program calls to report a step, and to have the host take one.

    Raises:
        InvalidArgument: VMAP, INVALID_SETTING.
    """
    if not _axes.bound():
        return reporter.follow, reporter.lead
    if not distributed:
        raise InvalidArgument(
            "VMAP",
            "a mechanized optimizer with a target is one run, but with distributed=False each device trains a model of its "
            "own; use target=None, or one process with a run for each training",
        )
    reporter.keep_replies(8)  # each device calls; one may lag behind
    if jax.process_count() == 1 or (jax.process_index() == 0 and reporter.run.on_outage == "local"):
        return reporter.follow, reporter.lead
    if reporter.run.on_outage != "local":
        raise InvalidArgument(
            "INVALID_SETTING",
            f"on_outage={reporter.run.on_outage!r} takes the step on process 0 alone, but inside shard_map or pmap every "
            'process needs it: use on_outage="local"',
        )
    return reporter.count, reporter.lead


def _only_if(finite: jax.Array, update: Callable[[], tuple[Any, Any]], *otherwise: Any) -> Any:
    """BASE's update and its next state, or `otherwise` if the step does not count.

    On a CPU this is a branch, since selecting element by element is expensive there; on other devices it is a select, since a
    branch would wait for the host.
    """

    def select() -> Any:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, _as(old, new.dtype)), update(), otherwise)

    def avals(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), dtype_of(leaf), _axes.varying(leaf)), tree)

    if any(map(split_by_type, jax.tree.leaves(otherwise))):  # in a branch, jnp.where doesn't find zeros_like's sharding
        return select()
    if _axes.varying(finite) or avals(jax.eval_shape(update)) != avals(otherwise):  # both sides of a branch need the same types
        return select()
    return jax.lax.platform_dependent(cpu=lambda: jax.lax.cond(finite, update, lambda: otherwise), default=select)


def _as(array: jax.Array, dtype: Any) -> jax.Array:
    return array if array.dtype == dtype else array.astype(dtype)  # random keys have no astype


@jax.custom_batching.custom_vmap
def _unbatched(values: jax.Array) -> jax.Array:
    """The identity, but it raises under vmap, because one run can't be many copies of a training."""
    return values


@_unbatched.def_vmap
def _refuse(*_: Any) -> Any:
    raise InvalidArgument(
        "VMAP",
        "a mechanized optimizer with a target is one run, but vmap trains many copies of it; use target=None under vmap, or "
        "a mechanize(…, run=…) for each training",
    )


@jax.custom_jvp
def _underivable(arrays: Any) -> Any:
    """The identity, but it raises where something is differentiated: S would count as a constant, though it depends on all."""
    return arrays


@_underivable.defjvp
def _refuse_derivative(*_: Any) -> Any:
    raise InvalidArgument(
        "NOT_DIFFERENTIABLE",
        "jax.grad (or jvp, hessian, …) goes through a mechanized optimizer's update, but S has no derivative here, and without "
        "it the result would be wrong. Differentiate the loss alone; pass jax.lax.stop_gradient(…) of what update gets, "
        "or use BASE without mechanize() where you need gradients through training",
    )


def _move(place: jax.Array, x: jax.Array, g: jax.Array | None) -> jax.Array | None:
    """The update that takes a parameter to its place; None if it has no gradient.

    Its dtype is x's, as with any other optimizer of optax: then `place` is rounded first, and adding lands on it exactly, but
    where x shrinks to less than half. A wider gradient gets a wider update.

    Args:
        place, x, g: of one shape; `place` in Δ's dtype.
    """
    if g is None:
        return None
    if x.dtype == place.dtype or g.dtype != x.dtype:
        return place - x.astype(place.dtype)
    return (place.astype(x.dtype).astype(place.dtype) - x.astype(place.dtype)).astype(x.dtype)


def _check_master_copy(leaves: Leaves, ref: Any) -> None:
    """Checks that parameters in low precision have one: the state may have been made before they were cast.

    Raises:
        InvalidArgument: DELTA_MISMATCH.
    """
    if jax.tree.leaves(ref):
        return
    for name, x in zip(leaves.names, leaves.x, strict=True):
        if dtype_of(x) in LOW_PRECISION:
            raise InvalidArgument(
                "DELTA_MISMATCH",
                f"the parameter {name!r} is {dtype_of(x)}, but the state was made for wider ones and has no x_ref: small "
                "updates would be rounded away. Make the state with tx.init of these parameters, or keep them in float32",
            )


def _copy(x: Any) -> jax.Array:
    """A buffer of its own, since the parameters' may be donated; zeros for an abstract one, until the first step."""
    return jnp.zeros_like(x) if isinstance(x, jax.ShapeDtypeStruct) else jnp.array(x)


def _keeps(x: Sequence[Any], layout: DeltaLayout) -> tuple[bool, bool]:
    """Whether Δ and x_ref are kept. In low precision both are, together the master copy."""
    low = any(dtype_of(leaf) in LOW_PRECISION for leaf in x)
    return layout != "ref" or low, layout != "delta" or low


__all__ = ["Mechanized", "transform"]
