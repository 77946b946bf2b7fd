"""MECHANIC around any optax optimizer; its tuner's steps are kept by a server, or by nobody.

    from mechanicd.jax import mechanize

    tx = mechanize(optax.adamw(1.0), run="bert/seed0", target="127.0.0.1:50051")
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)    # inside jit

`_transform` is the step, `_reduce` and `_tuner` its parts on the device, `_report` what the host does meanwhile, `_ring` how
it hears of steps without a callback, `_groups` says which parameters share one S, and `_float64` how float64 is had in a
program that has none.
"""

from mechanicd.jax._missing import require_jax

require_jax()

from mechanicd.jax._mechanize import mechanize  # noqa: E402  # only once jax is known to be there
from mechanicd.jax._transform import MechanicState, Mechanized, scale  # noqa: E402

__all__ = ["MechanicState", "Mechanized", "mechanize", "scale"]
