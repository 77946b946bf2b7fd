"""Tries everything that optax makes as BASE, alone or in a chain before `optax.sgd`, and writes the table of docs/bases.md.

    python -m tests.jax.bases           # try all, write the page; some minutes
    python -m tests.jax.bases NAME …    # try these, print what was found

Each learns a small problem, and goes on from a saved state: alone, and as BASE. As BASE it is right if the loss falls at
least half as far as it does alone with the best of some learning rates, with an S that has left s_init or beats all of these
rates, and if it goes on bit for bit wherever it does so alone. Or it is refused by name before the first step.
"""

import contextlib
import inspect
import math
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize, scale
from tests.support.findings import Finding

PAGE: Final = Path(__file__).parents[2] / "docs" / "bases.md"
BEGIN: Final = "<!-- made by python -m tests.jax.bases -->\n"
END: Final = "<!-- made by python -m tests.torch.bases -->\n"
STEPS, LONGER, LEG = 120, 600, 8
S_INIT = 1e-4
RATES = (1.0, 0.1)
OWN: Final = -1.0
"""Stands for the optimizer's own learning rate, where it has one."""

Make = Callable[[float], Any]


# ---- the problem


def problem() -> tuple[jax.Array, jax.Array]:
    x = np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32)
    return jnp.asarray(x), jnp.stack([x[:, 0] * x[:, 1], x[:, 2], jnp.sin(x[:, 3]), x[:, 4] - x[:, 5]], 1)


def network() -> Any:
    make = np.random.default_rng(0)
    sizes = {"first": (6, 16), "second": (16, 4)}
    return {
        name: {"w": jnp.asarray(make.standard_normal(size) / np.sqrt(size[0]), jnp.float32), "b": jnp.zeros(size[1])}
        for name, size in sizes.items()
    }


def loss(params: Any) -> jax.Array:
    x, y = problem()
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"])
    return jnp.mean((hidden @ params["second"]["w"] + params["second"]["b"] - y) ** 2)


class Training:
    """One training, with everything an update may ask for. It goes in legs of eight steps, one program."""

    def __init__(self, tx: Any) -> None:
        self.tx = optax.with_extra_args_support(tx)
        self.params = network()
        self.state = tx.init(self.params)
        self.sam = "SAMState" in str(jax.tree.structure(self.state))  # takes grad_fn, and nothing else
        self._leg = jax.jit(lambda params, state: jax.lax.scan(self._step, (params, state), None, LEG)[0])

    def _step(self, carry: Any, _: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss}
        if self.sam:
            extra = {"grad_fn": lambda p, _: jax.grad(loss)(p)}
        updates, state = self.tx.update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    def run(self, steps: int) -> float:
        for _ in range(steps // LEG):
            self.params, self.state = self._leg(self.params, self.state)
        return float(jax.jit(loss)(self.params))

    def resumes(self) -> str:
        """ "yes" if it goes on with the same bits from a state that was saved."""
        saved = pickle.dumps(jax.tree.map(_saved, (self.params, self.state)))
        self.run(LEG)
        went = jax.tree.leaves(self.params)
        self.params, self.state = jax.tree.map(_loaded, pickle.loads(saved), is_leaf=lambda leaf: isinstance(leaf, _Key))
        self.run(LEG)
        pairs = zip(went, jax.tree.leaves(self.params), strict=True)
        return "yes" if all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in pairs) else "no"


class _Key(NamedTuple):
    """The data of a random key, which has no bytes of its own."""

    data: Any


def _saved(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return _Key(np.asarray(jax.random.key_data(leaf))) if is_key else np.asarray(leaf)


def _loaded(leaf: Any) -> Any:
    return jax.random.wrap_key_data(leaf.data) if isinstance(leaf, _Key) else leaf


# ---- the judgement


def tried(name: str, make: Make) -> Finding:
    """Tries one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            training = Training(mechanize(make(1.0), s_init=S_INIT))
        except InvalidArgument as error:
            return Finding(name, f"refused: `{error.reason}`", error.message.split(", but ")[0])
        start = training.run(0)
        best, rate = alone(make)
        if not best < 0.95 * start:
            return Finding(name, "untried", "does not learn this problem alone")
        try:
            end = training.run(STEPS)
            if start - end < 0.5 * (start - best):
                end = training.run(LONGER)  # where S has a long way to go
            S = scale(training.state)
            here = training.resumes()
            there = here == "yes" or Training(make(rate)).resumes() == "yes"
        except InvalidArgument as error:
            return Finding(name, f"refused: `{error.reason}`", "at the first step")
        except Exception as error:
            return Finding(name, "wrong", f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
        why = ""
        if there and here != "yes":
            why = "resumes alone, but not as BASE"
        elif not S > 2.0 * S_INIT and end > best:
            why = f"S stays at {S:.1e}"
        elif not start - end >= 0.5 * (start - best):
            why = "learns far less than alone"
        return Finding(name, "wrong" if why else "right", why, (start, best, end), here)


def alone(make: Make) -> tuple[float, float]:
    """The smallest loss that it reaches alone, and the learning rate."""
    found = [(math.inf, OWN)]
    for lr in (OWN, *RATES):
        with contextlib.suppress(Exception):
            end = Training(make(lr)).run(STEPS)
            found.append((end if math.isfinite(end) else math.inf, lr))
    return min(found)


# ---- what optax makes

NONE: Final = {
    "differentially_private_aggregate": "takes gradients of each example",
    "dpsgd": "takes gradients of each example",
    "hutchinson_estimator_diag_hessian": "is a part of sophia",
    "identity": "is none",
    "measure_with_ema": "measures, and changes nothing",
    "monitor": "measures, and changes nothing",
    "set_to_zero": "is none",
    "split_real_and_imaginary": "is for complex parameters",
    "freeze": "is none",
    "per_example_global_norm_clip": "takes gradients of each example",
    "per_example_layer_norm_clip": "takes gradients of each example",
    "stateless": "makes one of any function",
    "stateless_with_tree_map": "makes one of any function",
    "with_extra_args_support": "is none",
}
"""What is no optimizer, and no part of one that learns."""
ALL: Final[Any] = {"first": True, "second": True}
MATRICES: Final[Any] = {name: {"w": True, "b": False} for name in ("first", "second")}
LABELS: Final[Any] = {"first": "a", "second": "b"}


def _sgd(lr: float) -> Any:
    return optax.sgd(0.1 if lr == OWN else lr)


def _sam(lr: float, opaque: bool) -> Any:
    return contrib.sam(_sgd(lr), optax.chain(contrib.normalize(), optax.sgd(0.02)), opaque_mode=opaque)


SPECIAL: Final[dict[str, Make]] = {
    "adaptive_grad_clip": lambda lr: optax.chain(optax.adaptive_grad_clip(0.1), _sgd(lr)),
    "add_noise": lambda lr: optax.chain(optax.add_noise(1e-4, 0.55, 0), _sgd(lr)),
    "apply_every": lambda lr: optax.chain(_sgd(lr), optax.apply_every(2)),
    "apply_if_finite": lambda lr: optax.apply_if_finite(_sgd(lr), 3),
    "chain": lambda lr: optax.chain(optax.clip(1.0), optax.scale_by_adam(), _sgd(lr)),
    "clip": lambda lr: optax.chain(optax.clip(0.1), _sgd(lr)),
    "clip_by_block_rms": lambda lr: optax.chain(optax.clip_by_block_rms(0.1), _sgd(lr)),
    "clip_by_global_norm": lambda lr: optax.chain(optax.clip_by_global_norm(0.1), _sgd(lr)),
    "conditionally_mask": lambda lr: optax.conditionally_mask(_sgd(lr), lambda step: step % 3 != 2),
    "conditionally_transform": lambda lr: optax.chain(
        optax.conditionally_transform(optax.clip(0.1), lambda step: step % 3 != 2), _sgd(lr)
    ),
    "ema": lambda lr: optax.chain(optax.ema(0.9), _sgd(lr)),
    "flatten": lambda lr: optax.flatten(optax.chain(optax.scale_by_adam(), _sgd(lr))),
    "galore": lambda lr: contrib.galore(0.1 if lr == OWN else lr, rank=4, update_proj_gap=20),
    "inject_hyperparams": lambda lr: optax.inject_hyperparams(optax.adam)(learning_rate=0.1 if lr == OWN else lr),
    "inject_stateful_hyperparams": lambda lr: optax.inject_stateful_hyperparams(optax.adam)(
        learning_rate=0.1 if lr == OWN else lr
    ),
    "keep_params_nonnegative": lambda lr: optax.chain(_sgd(lr), optax.keep_params_nonnegative()),
    "lbfgs": lambda lr: optax.lbfgs(None if lr == OWN else lr),
    "lbfgs, linesearch=None": lambda lr: optax.lbfgs(0.1 if lr == OWN else lr, linesearch=None),
    "lookahead": lambda lr: optax.lookahead(_sgd(lr), 5, 0.5),
    "masked": lambda lr: optax.masked(_sgd(lr), ALL),
    "mechanize": lambda lr: contrib.mechanize(_sgd(lr)),
    "multi_transform": lambda lr: optax.multi_transform({"a": _sgd(lr), "b": optax.adam(0.1)}, LABELS),
    "MultiSteps": lambda lr: optax.MultiSteps(_sgd(lr), 2).gradient_transformation(),
    "named_chain": lambda lr: optax.named_chain(("clip", optax.clip(1.0)), ("sgd", _sgd(lr))),
    "noisy_sgd": lambda lr: optax.noisy_sgd(0.1 if lr == OWN else lr, eta=1e-4, key=0),
    "optimistic_adam": lambda lr: optax.optimistic_adam(0.1 if lr == OWN else lr),
    "partition": lambda lr: optax.partition({"a": _sgd(lr), "b": optax.adam(0.1)}, LABELS),
    "polyak_sgd": lambda lr: optax.polyak_sgd(1.0 if lr == OWN else lr),
    "reduce_on_plateau": lambda lr: optax.chain(_sgd(lr), contrib.reduce_on_plateau(patience=20)),
    "sam": lambda lr: _sam(lr, opaque=False),
    "sam, opaque_mode=True": lambda lr: _sam(lr, opaque=True),
    "scale": lambda lr: optax.chain(optax.scale(0.5), _sgd(lr)),
    "scale_by_backtracking_linesearch": lambda lr: optax.chain(_sgd(lr), optax.scale_by_backtracking_linesearch(10)),
    "scale_by_galore": lambda lr: optax.chain(contrib.scale_by_galore(rank=4), _sgd(lr)),
    "scale_by_madgrad": lambda lr: contrib.scale_by_madgrad(0.1 if lr == OWN else lr),
    "scale_by_learning_rate": lambda lr: optax.scale_by_learning_rate(0.1 if lr == OWN else lr),
    "scale_by_muon": lambda lr: optax.chain(optax.masked(contrib.scale_by_muon(), MATRICES), _sgd(lr)),
    "scale_by_rprop": lambda lr: optax.chain(optax.scale_by_rprop(0.1 if lr == OWN else lr), optax.scale(-1.0)),
    "scale_by_polyak": lambda lr: optax.chain(optax.scale_by_polyak(), _sgd(1.0 if lr == OWN else lr)),
    "scale_by_schedule": lambda lr: optax.chain(optax.scale_by_schedule(optax.linear_schedule(1.0, 0.1, 100)), _sgd(lr)),
    "scale_by_zoom_linesearch": lambda lr: optax.chain(_sgd(lr), optax.scale_by_zoom_linesearch(10)),
    "schedule_free": lambda lr: contrib.schedule_free(_sgd(lr), 1.0),
    "selective_transform": lambda lr: optax.selective_transform(_sgd(lr), freeze_mask={"first": False, "second": False}),
    "snapshot": lambda lr: optax.chain(optax.snapshot("norm", optax.global_norm), _sgd(lr)),
    "trace": lambda lr: optax.chain(optax.trace(0.9), _sgd(lr)),
}
"""Those that need more than a learning rate, or nothing."""
UNSAID: Final = ("dog", "dowg", "scale_by_factored_rms")
"""Those whose signature does not say that they make one."""


def cases() -> Iterator[tuple[str, Make]]:
    """Every function of optax and optax.contrib that makes a transformation."""
    found: dict[str, Make] = {}
    for module in (optax, contrib):
        for name, function in vars(module).items():
            returned = str(inspect.signature(function).return_annotation) if inspect.isfunction(function) else ""
            makes = "GradientTransformation" in returned or name in UNSAID
            if makes and not name.startswith("_") and name not in NONE:
                found[name] = SPECIAL.get(name) or _maker(function)
    yield from sorted((found | SPECIAL).items(), key=lambda case: case[0].lower())


def _maker(function: Any) -> Make:
    takes_lr = next(iter(inspect.signature(function).parameters), "") == "learning_rate"
    needs = inspect.signature(function).parameters.values()
    has_own = all(parameter.default is not inspect.Parameter.empty for parameter in needs)

    def make(lr: float) -> Any:
        if not takes_lr:
            return optax.chain(function(), _sgd(lr))
        return function() if has_own and lr == OWN else function(0.1 if lr == OWN else lr)

    return make


# ---- the page


def main() -> None:
    """Tries those that are named, or all."""
    names = sys.argv[1:]
    found = [_shown(tried(name, make)) for name, make in cases() if not names or name in names]
    if not names:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = (END + rest.partition(END)[2]) if END in rest else END + before.partition(END)[2]
        PAGE.write_text(before.partition(END)[0] + BEGIN + page(found) + "\n" + after)
    wrong = [finding.name for finding in found if finding.verdict == "wrong"]
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def _shown(finding: Finding) -> Finding:
    print(finding.row(), flush=True)
    return finding


def page(found: list[Finding]) -> str:
    """The table."""
    right, refused = (sum(f.verdict.startswith(word) for f in found) for word in ("right", "refused"))
    start = next(f.losses[0] for f in found if f.verdict == "right")
    return "\n".join(
        [
            "",
            f"## optax {optax.__version__}",
            "",
            f"{right} are right, {refused} are refused, {len(found) - right - refused} could not be tried, of {len(found)}.",
            "What only changes gradients or updates stands in a chain with `optax.sgd`.",
            f"Loss, from {start:.2g}: alone after {STEPS} steps with the best of some learning rates · as BASE after as many,",
            f"or after {STEPS + LONGER} if S has a long way to go.",
            "Resumes: whether a training that starts from a saved state continues bit for bit.",
            "",
            "| BASE | verdict | loss | resumes | |",
            "|---|---|---|---|---|",
            *(finding.row() for finding in found),
            "",
        ]
    )


if __name__ == "__main__":
    main()
