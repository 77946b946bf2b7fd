"""What befalls a server beside its death: its clock is set, connections are dropped without a word, readers are slow."""

import random
import time
from typing import Any

from tests.client.fault_proxy import FaultProxy

KINDS = ("clock", "dropped connections", "slow reader")
CLOCKS = (-1.0, -3600.0, -1.5e9, 1.0, 3600.0, 3e9, 0.0)
"""Seconds ahead: by a second, by an hour, by decades."""
DROPPED = ("forgotten", "deaf", "mute", "black hole", "reset", "half-close")
SLOW = ("slow reader", "slow drip")


class Disturbed:
    """A server, and the network before it. Trainers reach it at `target`.

    Attributes:
        counts: how often each kind happened.
    """

    def __init__(self, server: Any, seed: int) -> None:
        self._server = server
        self._rng = random.Random(seed)
        self.counts = dict.fromkeys(KINDS, 0)
        server.set_clock(0.0)
        self.proxy = FaultProxy(server.target, seed)

    @property
    def target(self) -> str:
        return self.proxy.target

    def disturb(self, kind: str) -> None:
        """One of `KINDS`, for up to a second; the clock stays as it is set."""
        self.counts[kind] += 1
        if kind == "clock":
            self._server.set_clock(self._rng.choice(CLOCKS))
            return
        self.proxy.set(self._rng.choice(DROPPED if kind == "dropped connections" else SLOW))
        time.sleep(self._rng.uniform(0.2, 1.0))
        self.proxy.set(None)

    def close(self) -> None:
        """Ends the network."""
        self.proxy.close()
