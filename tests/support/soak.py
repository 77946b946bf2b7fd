"""Whether this is `make soak`, whose tests take long. A whole test that is for it alone has the marker `soak`."""

import os
from typing import Final

SOAK: Final = os.environ.get("MECHANICD_SOAK") == "1"
