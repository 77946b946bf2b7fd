"""The tuner of MECHANIC (Cutkosky, Defazio, Mehta 2023): from one scalar h a step to the scale S of the next.

    config = TunerConfig()                         # Algorithm 1, six βs, one scale group
    tuner = Tuner(config)
    state = tuner.init()
    state = tuner.update(state, Reductions(...))   # once a step
    state.scale                                    # S_{t+1}, one float per scale group

A state is immutable and `update` is pure: no I/O, no clock, no framework. Only + − × / √ max run, in a fixed order in
float64, so the same reductions give the same bits on every machine; server, client and replay agree exactly.

`_config` holds the settings and their checks, `_state` the state and its binary form, `_rules` one step of each named
convention on plain floats, `_rules_numpy` the same rules over arrays of groups, and `_tuner` ties them together.
"""

from mechanicd.tuner._bounds import H_MAX, R_MAX, S_MAX, V_MAX
from mechanicd.tuner._config import ConfigError, TunerConfig
from mechanicd.tuner._conventions import CONVENTIONS, Convention, ConventionSpec
from mechanicd.tuner._errors import InvalidArgument, MechanicdError
from mechanicd.tuner._reductions import Reductions, ReductionsError
from mechanicd.tuner._rules import Row
from mechanicd.tuner._state import StateError, TunerState
from mechanicd.tuner._tuner import Tuner

__all__ = [
    "CONVENTIONS",
    "H_MAX",
    "R_MAX",
    "S_MAX",
    "V_MAX",
    "ConfigError",
    "Convention",
    "ConventionSpec",
    "InvalidArgument",
    "MechanicdError",
    "Reductions",
    "ReductionsError",
    "Row",
    "StateError",
    "Tuner",
    "TunerConfig",
    "TunerState",
]
