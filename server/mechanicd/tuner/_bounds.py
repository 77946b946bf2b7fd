"""Where the tuner saturates, so that any finite input gives a finite S.

While h keeps its sign r grows exponentially (the wealth is reinvested), and h may be as large as float64 allows. The bounds
lie far outside anything that trains, and they are chosen so that no intermediate of a rule can overflow to NaN:
h² ≤ 1e280, β²v + h² ≤ 2e300, s·h ≤ 1e170, W ≤ 1e200 + 1e146, λ·S·‖g‖ ≤ 1e6 · 64e30 · 1.4e154.
"""

from typing import Final

H_MAX: Final = 1e140
"""|h| never counts for more than this."""
V_MAX: Final = 1e300
"""v stays at most this."""
R_MAX: Final = 1e200
"""|r| stays at most this."""
S_MAX: Final = 1e30
"""Each s stays at most this, so S ≤ n · 1e30."""
