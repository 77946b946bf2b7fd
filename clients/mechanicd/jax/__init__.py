"""MECHANIC around any optax optimizer; with a server that keeps its tuner's steps, or with none.

    from mechanicd.jax import mechanize

    tx = mechanize(optax.adamw(1.0), run="bert/seed0", target="127.0.0.1:50051")
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)    # inside jit

`_mechanize` checks the settings, `_transform` is the step, `_reduce`, `_tuner` and `_outside` are its parts on the device.
`_state` is what is kept between steps, `_leaves` checks the trees, `_groups` says which parameters share one S, `_axes` over
which devices a sum runs. `_report` is the host's side of a step, `_ring` gets steps to the host without a callback, and
`_float64` gives a program float64 when JAX has it switched off.
"""

from mechanicd.client.framework import PackageMissing, require_package


class JaxMissing(PackageMissing):
    """jax or optax is not installed. `reason` is JAX_MISSING."""


require_package("jax", "optax", extra="jax", reason="JAX_MISSING", error=JaxMissing)

from mechanicd.jax._mechanize import mechanize  # noqa: E402  # needs jax
from mechanicd.jax._state import MechanicState, scale, scales, start_again  # noqa: E402
from mechanicd.jax._transform import Mechanized  # noqa: E402

__all__ = ["JaxMissing", "MechanicState", "Mechanized", "mechanize", "scale", "scales", "start_again"]
