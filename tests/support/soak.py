"""Whether this is `make soak`, and the seed of a campaign. A whole test that is for soak alone has the marker `soak`."""

import os
import random
from typing import Final

SOAK: Final = os.environ.get("MECHANICD_SOAK") == "1"


def chosen_seed() -> int:
    """The seed of a campaign: MECHANICD_SEED, or a random one. The campaign prints it."""
    return int(os.environ.get("MECHANICD_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
