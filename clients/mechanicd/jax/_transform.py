"""The step as an optax transformation: reduce, tuner, BASE, apply, all in one program on the device.

The device computes S_{t+1} with the same bits as the server, so no part of the step waits for the host. The scalars reach the
host through a callback; only the next callback depends on its result. It uses `pure_callback` although it has side effects:
with any other kind, JAX takes a slow dispatch path (10 ms a step for a model of 150 tensors). `report="loop"` has no callback:
the state keeps the last steps until the training loop calls `report` (`_ring`). Where an outage may change S (`on_outage`
"hold" or "raise"), the tuner runs on the host instead, and the step waits for it.
"""

import atexit
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechanicd.client import InvalidArgument
from mechanicd.client.framework import DeltaLayout, Run, Settings, check_status, only_scale
from mechanicd.jax import _reduce, _ring, _tuner
from mechanicd.jax._float64 import BITS, Exact, from_bits, host_bits, host_values, to_bits, x64
from mechanicd.jax._groups import Groups, Labels, group
from mechanicd.jax._report import Reporter, bits_of, pack
from mechanicd.tuner import TunerConfig, TunerState

LOW_PRECISION: Final = (jnp.bfloat16, jnp.float16)


class MechanicState(NamedTuple):
    """Everything a run needs to resume, as plain arrays.

    Attributes:
        base_state: BASE's.
        step: int32, shape (): t, the steps taken.
        tuner: uint32, shape (5, n, G, 2): m, v, r, s, q of each β and scale group, as the bits of float64.
        delta: Δ, a tree like the parameters, float32 for low precision; () if it is not kept.
        ref: x_ref, likewise.
        told: int32, shape (): how many steps were reported to the host; each callback depends on it, which keeps them in order.
        recent: uint32, shape (at most 256, words): the last steps with `report="loop"`, else ().
    """

    base_state: Any
    step: jax.Array
    tuner: jax.Array
    delta: Any
    ref: Any
    told: jax.Array
    recent: Any


def scales(state: Any) -> tuple[float, ...]:
    """S of each scale group, in the order of the groups, from an optimizer state that holds one `MechanicState`.

    The state has to be concrete, so call this outside jit.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    s = host_values(jax.device_get(_ours(state).tuner))[3]
    total = np.zeros(s.shape[1])
    for values in s:
        total = total + values
    return tuple(total.tolist())


def scale(state: Any) -> float:
    """The one S of a run with one scale group; see `scales`.

    Raises:
        InvalidArgument: NOT_MECHANIZED, SEVERAL_SCALES.
    """
    return only_scale(scales(state))


def _ours(state: Any) -> MechanicState:
    found = [leaf for leaf in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(leaf)]
    if len(found) != 1:
        raise InvalidArgument("NOT_MECHANIZED", f"expected exactly one state of mechanize() in the state, got {len(found)}")
    ours: MechanicState = found[0]
    return ours


@atexit.register
def settle() -> None:
    """Waits for all programs, and so for their callbacks. What a callback raised is kept by its reporter."""
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # the program failed, or the array was deleted meanwhile
            array.block_until_ready()


class Mechanized(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """What `mechanize` returns: an optax transformation that also owns its run."""

    run: Run
    _reporters: dict[TunerConfig, Reporter]
    _readers: dict[TunerConfig, _ring.Reader]
    _last: MechanicState | None

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
        ours = _ours(state)
        if isinstance(ours.recent, tuple):
            raise InvalidArgument("INVALID_SETTING", 'report() works only with mechanize(…, report="loop"); pass that')
        self._raise()
        self._last = ours
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
            if self._last is not None and not self._last.recent.is_deleted():
                reader.look(self._last.recent, self._last.step, now=True)
            reader.settle()

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
        self.run.close(status, message)

    def __del__(self) -> None:
        last = getattr(self, "_last", None)
        for reader in getattr(self, "_readers", {}).values():
            if last is not None and not last.recent.is_deleted():
                reader.leave(last.recent, last.step)

    def __enter__(self) -> "Mechanized":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.close("failed", f"{kind.__name__}: {error}")


def transform(base: Any, settings: Settings, labels: Labels, cap: float, *, loop: bool) -> Mechanized:
    """The transformation; see `mechanize`."""
    run, layout = settings.run, settings.delta_layout
    base = optax.with_extra_args_support(base)
    reporters: dict[TunerConfig, Reporter] = {}

    def configured(params: Any) -> tuple[Groups, TunerConfig]:
        groups = group(labels, params)
        return groups, replace(settings.config, scale_groups=groups.names)

    def init(params: Any) -> MechanicState:
        _check(params)
        _, config = configured(params)
        return MechanicState(
            base_state=base.init(params),
            step=jnp.zeros((), jnp.int32),
            tuner=jnp.asarray(bits_of(TunerState.initial(config))),
            delta=() if layout == "ref" else jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x)), params),
            ref=jax.tree.map(jnp.array, params) if _keeps_ref(params, layout) else (),
            told=jnp.zeros((), jnp.int32),
            recent=_ring.empty(config) if loop else (),
        )

    def update(grads: Any, state: MechanicState, params: Any = None, **extra: Any) -> tuple[Any, MechanicState]:
        if params is None:
            raise InvalidArgument("PARAMS_MISSING", "mechanize needs the parameters: tx.update(grads, state, params)")
        _check(params)
        groups, config = configured(params)
        x: list[jax.Array]
        tree: Any
        x, tree = jax.tree.flatten(params)
        g = tree.flatten_up_to(grads)
        first = state.step == 0
        ref = [jnp.where(first, p, r) for p, r in zip(x, tree.flatten_up_to(state.ref), strict=True)] if state.ref != () else []
        with x64():
            table = _tuner.Table(*from_bits(state.tuner))
            S = jnp.minimum(_tuner.scale(table.s), cap)
            before = [S.astype(_wide(p))[i] for p, i in zip(x, groups.index, strict=True)]
        if layout == "ref":
            delta = [(p - r) / (s + jnp.asarray(config.eps, p.dtype)) for p, r, s in zip(x, ref, before, strict=True)]
        else:
            delta = tree.flatten_up_to(state.delta)
        with x64():  # h_t's scalars: Δ_t, g_t, x_t, all from before BASE runs
            sums = _reduce.reduce(groups, delta, g, x)
        following, finite, told, recent = _tuned(config, state, table, sums)
        with x64():
            S_next = jnp.minimum(_tuner.scale(following.s), cap)
            change = [(S_next - S).astype(_wide(p))[i] for p, i in zip(x, groups.index, strict=True)]
            after = [S_next.astype(_wide(p))[i] for p, i in zip(x, groups.index, strict=True)]
            tuner = to_bits(jnp.stack(following))
        u_tree, base_state = _only_if(
            finite,
            lambda: base.update(grads, state.base_state, params, **extra),
            jax.tree.map(jnp.zeros_like, grads),
            state.base_state,
        )
        u = [leaf.astype(_wide(p)) for leaf, p in zip(tree.flatten_up_to(u_tree), x, strict=True)]
        # Δ_{t+1} = Δ_t + u_t (Algorithm 1, line 7)
        delta = [D + step for D, step in zip(delta, u, strict=True)]
        if ref:  # x_{t+1} = x_ref + S_{t+1}·Δ_{t+1}, as the update that optax adds to x_t
            wide = [r.astype(_wide(p)) + s * D for r, p, s, D in zip(ref, x, after, delta, strict=True)]
            moves = [w - p.astype(_wide(p)) for w, p in zip(wide, x, strict=True)]
        else:  # the same without x_ref: S_{t+1}·Δ_{t+1} − S_t·Δ_t = S_t·u + (S_{t+1} − S_t)·Δ_{t+1}
            moves = [s * step + d * D for s, step, d, D in zip(before, u, change, delta, strict=True)]
        return tree.unflatten(moves), MechanicState(
            base_state=base_state,
            step=state.step + 1,
            tuner=tuner,
            delta=() if layout == "ref" else tree.unflatten(delta),
            ref=tree.unflatten(ref) if ref else (),
            told=told,
            recent=recent,
        )

    def _tuned(
        config: TunerConfig, state: MechanicState, table: _tuner.Table, sums: _tuner.Sums
    ) -> tuple[_tuner.Table, jax.Array, jax.Array, Any]:
        """The tuner's next state, whether the step counts, the new `told`, and the new `recent`."""
        if run.target is None:
            with x64():
                return *_tuner.advance(config, table, sums, Exact(state.step)), state.told, state.recent
        reporter = reporters.setdefault(config, Reporter(run, config))
        with x64():
            bits = to_bits(jnp.stack(sums))
        if run.on_outage == "local":
            with x64():
                following, finite = _tuner.advance(config, table, sums, Exact(state.step))
                S_bits = to_bits(_tuner.scale(following.s))
            packed = _unbatched(pack(state.step, state.told, state.tuner, bits, S_bits))
            if loop:
                return following, finite, state.told + 1, _ring.push(state.recent, state.step, packed)
            return following, finite, jax.pure_callback(reporter.follow, jax.ShapeDtypeStruct((), jnp.int32), packed), ()
        packed = _unbatched(pack(state.step, state.told, state.tuner, bits, bits[0]))
        tuner = jax.pure_callback(reporter.lead, jax.ShapeDtypeStruct(state.tuner.shape, BITS), packed)
        with x64():
            finite = jnp.all(jnp.isfinite(jnp.stack(sums)))
            return _tuner.Table(*from_bits(tuner)), finite, state.told + 1, ()

    made = Mechanized(init, update)
    made.run, made._reporters, made._readers, made._last = run, reporters, {}, None
    return made


def _only_if(finite: jax.Array, update: Callable[[], tuple[Any, Any]], *otherwise: Any) -> Any:
    """BASE's update and its next state, or `otherwise` if the step does not count.

    On a CPU this is a branch, since selecting element by element is expensive there; on other devices it is a select, since a
    branch would wait for the host.
    """

    def select() -> Any:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old.astype(new.dtype)), update(), otherwise)

    def avals(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    if avals(jax.eval_shape(update)) != avals(otherwise):  # both sides of a branch need the same types
        return select()
    return jax.lax.platform_dependent(cpu=lambda: jax.lax.cond(finite, update, lambda: otherwise), default=select)


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


def _is_ours(node: Any) -> bool:
    return isinstance(node, MechanicState)


def _wide(x: Any) -> Any:
    """The dtype of Δ for a parameter."""
    return jnp.float32 if x.dtype in LOW_PRECISION else x.dtype


def _keeps_ref(params: Any, layout: DeltaLayout) -> bool:
    return layout != "delta" or any(x.dtype in LOW_PRECISION for x in jax.tree.leaves(params))


def _check(params: Any) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InvalidArgument(
                "COMPLEX_PARAMETER" if jnp.iscomplexobj(x) else "INVALID_SETTING",
                f"parameter {jax.tree_util.keystr(path)} is {x.dtype}; mechanize takes real floating-point parameters: store "
                "complex ones as two real ones, and exclude others with optax.masked",
            )


__all__ = ["MechanicState", "Mechanized", "host_bits", "scale", "scales", "transform"]
