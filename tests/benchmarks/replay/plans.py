"""What a made-up fleet is: each run's name, labels, scale groups, and the fate that its S is to meet."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

FATES: Final = {
    "healthy": 55.0,
    "finished": 14.0,
    "preempted": 6.0,
    "failed": 4.0,
    "silent": 4.0,
    "stuck": 4.0,
    "collapsed": 4.0,
    "running_away": 3.0,
    "non_finite": 3.0,
    "oscillating": 3.0,
}
"""Every fate, and how many of a hundred runs meet it where nothing else is asked for.

healthy: a ramp to a plateau, still running. finished, preempted, failed: the same, and closed so. silent: the same, its session
open, and no more steps. stuck: S stays at s_init's scale. collapsed: a plateau, then S falls. running_away: S and ‖x‖ grow for
ever at the end. non_finite: NaN steps now and then, many at the end. oscillating: S swings by decades."""

ENDS: Final = {
    "finished": "all steps done",
    "preempted": "SIGTERM: the node is drained",
    "failed": "RuntimeError: CUDA out of memory",
}
"""How a session of this fate is closed: its message. Others leave it open."""

_MODELS: Final = ("bert-base", "gpt2-124m", "resnet50", "vit-b16", "llama-1b", "t5-small")
_BASES: Final = ("adamw", "lion", "sgd", "adafactor")
_BATCHES: Final = ("128", "256", "512", "1024")
_TENSORS: Final = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")


@dataclass(frozen=True, slots=True)
class Plan:
    """One run to be. `steps` is where it ends, `seed` makes all its numbers, `interval` is seconds between two steps."""

    run: str
    fate: str
    labels: dict[str, str]
    scale_groups: tuple[str, ...]
    steps: int
    seed: int
    interval: float

    @property
    def command(self) -> str:
        """How its trainer could have been started."""
        return " ".join(["python train.py", *(f"--{key} {value}" for key, value in self.labels.items()), "--resume"])


def parse_fates(text: str) -> dict[str, float]:
    """`healthy:8,stuck:1` as weights; a fate without a number weighs 1.

    Raises:
        ValueError: a fate that there is not, or a weight that is none.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        fate, _, weight = part.strip().partition(":")
        if fate not in FATES:
            raise ValueError(f"no fate {fate!r}; there are {', '.join(FATES)}")
        weights[fate] = float(weight or 1.0)
    if not sum(weights.values()) > 0.0:
        raise ValueError("the weights of the fates must add up to more than 0")
    return weights


def make(
    runs: int,
    steps: int,
    weights: dict[str, float],
    grouped: int,
    groups: int,
    seed: int,
    *,
    even: bool,
    distinct: int | None = None,
) -> list[Plan]:
    """Plans of `runs` runs, of which `grouped` have `groups` scale groups each. The same arguments give the same plans.

    Args:
        even: every run has all `steps`, those with many groups steps/groups; else those that end do so at places of their own.
        distinct: so many plans differ in more than name, labels and seed; the run after them is as the first again, and so on.
    """
    rng = np.random.default_rng(seed)
    kinds = min(distinct or runs, runs)
    grouped = -(-grouped * kinds // runs)
    fates = list(weights)
    shares = np.array([weights[fate] for fate in fates])
    # As many of each fate as its share says, not about as many; then in any order.
    quotas = np.searchsorted(np.cumsum(shares) / shares.sum(), (np.arange(kinds) + 0.5) / kinds)
    chosen = rng.permutation(quotas)
    names = tuple(f"layer{index // len(_TENSORS)}.{_TENSORS[index % len(_TENSORS)]}" for index in range(groups))
    plans: list[Plan] = []
    for index in range(runs):
        model, base, batch = (str(rng.choice(names)) for names in (_MODELS, _BASES, _BATCHES))
        own = {
            "run": f"{model}/{base}-b{batch}/seed{index}",
            "labels": {"model": model, "base": base, "batch": batch, "seed": str(index)},
            "seed": int(rng.integers(2**62)),
        }
        if index >= kinds:
            plans.append(replace(plans[index % kinds], **own))
            continue
        fate, many = fates[int(chosen[index])], index < grouped
        early = not even and fate in (*ENDS, "silent")
        last = int(steps * rng.uniform(0.4, 0.95)) if early else steps // groups if even and many else steps
        interval = float(np.exp(rng.normal(-1.0, 0.7)))
        plans.append(Plan(**own, fate=fate, scale_groups=names if many else ("all",), steps=max(1, last), interval=interval))
    return plans
