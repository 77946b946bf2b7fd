"""What a convention is: one record for each named reading of the algorithm, and nowhere else.

To add a convention:

1. write its rule in `_rules.py`, and the same operations over arrays in `_rules_numpy.py`;
2. add its name to `Convention`, its record to `CONVENTIONS`, and its number to the contract's enum;
3. say in each device twin (`mechanicd.jax._tuner`, `mechanicd.torch._async_device`) whether it runs there.

`tests/tuner/test_conventions.py` fails for every place that was forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from mechanicd.tuner import _rules
from mechanicd.tuner._rules import Row, Settings

Convention: TypeAlias = Literal["paper", "pytorch", "optax", "theory"]
"""The names of the conventions; see `TunerConfig.convention`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConventionSpec:
    """All that sets one convention apart. No field but the last has a default, so a new convention has to state each.

    Attributes:
        name: as users write it.
        summary: what it computes, in one line.
        wire: its number in the contract's enum `TunerConfig.Convention`.
        rule: one step of one scale group, on plain floats.
        rule_numpy: the name of the same rule in `_rules_numpy`, which is imported only where numpy is installed.
        initial_row: the state of one scale group before the first step.
        first_scale: roughly the S at which a run begins, which alerts measure growth from; 0 where it depends on the data.
        needs_delta: whether S stays 0 until h ≠ 0. Then Δ has to be kept: (x − x_ref)/S can't start from S = 0.
    """

    name: Convention
    summary: str
    wire: int
    rule: Callable[[Settings, Row, float], Row]
    rule_numpy: str
    initial_row: Callable[[Settings], Row]
    first_scale: Callable[[Settings], float]
    needs_delta: bool

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by name: rules are functions, and every process has its own records."""
        return (_named, (self.name,))

    def array_rule(self) -> Callable[[Settings, Any, Any], Any]:
        """The rule over arrays of scale groups. Needs numpy."""
        from mechanicd.tuner import _rules_numpy

        rule: Callable[[Settings, Any, Any], Any] = getattr(_rules_numpy, self.rule_numpy)
        return rule


def _named(name: str) -> ConventionSpec:
    return CONVENTIONS[name]


CONVENTIONS: Final[dict[str, ConventionSpec]] = {
    spec.name: spec
    for spec in (
        ConventionSpec(
            name="paper",
            summary="Algorithm 1, read as its theory needs it",
            wire=1,
            rule=_rules.paper,
            rule_numpy="paper",
            initial_row=_rules.zero_row,
            first_scale=lambda config: config.s_init,
            needs_delta=True,
        ),
        ConventionSpec(
            name="pytorch",
            summary="the package mechanic-pytorch 0.0.1: m starts at 1e-6",
            wire=2,
            rule=_rules.paper,
            rule_numpy="paper",
            initial_row=_rules.pytorch_row,
            first_scale=lambda config: config.s_init,
            needs_delta=False,
        ),
        ConventionSpec(
            name="optax",
            summary="optax.contrib.mechanize: s starts at s_init per β, m takes |h| + ε, the reward h clipped to ±m_{t−1}",
            wire=3,
            rule=_rules.optax,
            rule_numpy="optax",
            initial_row=_rules.optax_row,
            first_scale=lambda config: config.s_init * len(config.betas),
            needs_delta=False,
        ),
        ConventionSpec(
            name="theory",
            summary="Algorithm 2 (appendix D), with its initial wealth W_0 and its clipping",
            wire=4,
            rule=_rules.theory,
            rule_numpy="theory",
            initial_row=_rules.zero_row,
            first_scale=lambda config: 0.0,  # its first bet depends on the size of h
            needs_delta=True,
        ),
    )
}
"""Every convention, by name."""
