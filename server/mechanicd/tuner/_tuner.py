"""The tuner: a config and the pure functions from one state to the next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechanicd.tuner import _reductions, _rules
from mechanicd.tuner._config import TunerConfig
from mechanicd.tuner._conventions import CONVENTIONS
from mechanicd.tuner._reductions import Reductions
from mechanicd.tuner._rules import Row
from mechanicd.tuner._state import TunerState

if TYPE_CHECKING:
    from mechanicd.tuner._rules_numpy import Array, Table


class Tuner:
    """MECHANIC's tuner for one run. It is stateless: each call takes a state and returns the next.

    Args:
        config: the settings; `TunerConfig()` is the paper's.

    Source: the paper's Algorithm 1 and, for the convention `theory`, Algorithm 2.
    """

    def __init__(self, config: TunerConfig | None = None) -> None:
        self.config = config or TunerConfig()
        self._convention = CONVENTIONS[self.config.convention]
        self._rule = self._convention.rule

    def init(self) -> TunerState:
        """The state before the first step."""
        return TunerState.initial(self.config)

    def update(self, state: TunerState, reductions: Reductions | Sequence[Reductions]) -> TunerState:
        """One step: the reductions of x_t, g_t, Δ_t in, S_{t+1} out (`.scale` of the result).

        NaN and infinities never enter the tuner: such a step counts, and changes nothing else.

        Args:
            state: after t − 1 steps.
            reductions: one `Reductions` per scale group, in the order of `config.scale_groups`; for one group, it alone.

        Raises:
            ReductionsError: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE or INVALID_REDUCTIONS; the state is unchanged.
        """
        groups = self.groups(reductions)
        h = self.h(state, groups)
        return self.hold(state) if h is None else self.advance(state, h)

    def groups(self, reductions: Reductions | Sequence[Reductions]) -> Sequence[Reductions]:
        """The reductions as one per scale group, checked, of Python floats: float32 and other numbers are converted.

        Raises:
            ReductionsError: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE or INVALID_REDUCTIONS.
        """
        return _reductions.checked(reductions, len(self.config.scale_groups))

    def h(self, state: TunerState, groups: "Sequence[Reductions] | Array") -> tuple[float, ...] | None:
        """h_t per scale group, or None where a scalar is NaN or infinite, and the step must be held.

        Args:
            groups: what `groups` returns; or, if the state `is_wide`, the four checked scalars as an array of shape (4, G).
        """
        if isinstance(state.table[0], Row):
            for group in groups:
                if not group.is_finite():
                    return None
            return tuple(
                [_rules.h(self.config, S, group) for S, group in zip(state.scale, groups, strict=True)],
            )
        import numpy as np

        from mechanicd.tuner import _rules_numpy

        with np.errstate(over="ignore", under="ignore"):
            columns = groups if isinstance(groups, np.ndarray) else _rules_numpy.columns(groups)
            found = _rules_numpy.h(self.config, np.array(state.scale), columns)
            return None if found is None else tuple(found.tolist())

    def advance(self, state: TunerState, h: Sequence[float]) -> TunerState:
        """The state after a step with h_t, one finite float per scale group (Algorithm 1, lines 11–16)."""
        table = state.table
        if isinstance(table[0], Row):
            rows = tuple([self._rule(self.config, row, value) for row, value in zip(table, h, strict=True)])
            return TunerState(state.step + 1, tuple([_rules.scale(row.s) for row in rows]), rows)
        return self._advance_table(state.step, table, h)

    def _advance_table(self, step: int, table: "Table", h: Sequence[float]) -> TunerState:
        import numpy as np

        from mechanicd.tuner import _rules_numpy

        with np.errstate(over="ignore", under="ignore"):
            table = self._convention.array_rule()(self.config, table, np.array(h))
            return TunerState(step + 1, tuple(_rules_numpy.scale(table.s).tolist()), table)

    def hold(self, state: TunerState) -> TunerState:
        """The state after a held step: the step counter advances, everything else stays."""
        return TunerState(state.step + 1, state.scale, state.table)
