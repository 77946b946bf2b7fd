"""The tokens as the page's process knows them: the store's table, read every two seconds."""

import asyncio
from time import monotonic
from typing import Final

from mechanicd.access import Keyring, Principal
from mechanicd.dashboard._reader import Reader
from mechanicd.store import Clock, StoreError, StoreUnavailable

LOOK_SECONDS: Final = 2.0
"""A token that is revoked is good for so long."""
AGAIN_SECONDS: Final = 0.2
"""A token that is not known may be new: the table is read at once, but not more often."""


class Keys:
    """A keyring that follows the store.

    Args:
        keyring: what it gives the store's tokens to.
        clock: the store's clock.
    """

    def __init__(self, reader: Reader, keyring: Keyring, clock: Clock) -> None:
        self._reader = reader
        self._keyring = keyring
        self._clock = clock
        self._began = -AGAIN_SECONDS  # the latest look
        self._failed = True
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Follows the store until it is cancelled. While the store can't be read, what was known stays good."""
        while True:
            async with self._looking:
                await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def check(self, text: str | None) -> Principal:
        """As `check_known`, after another look if the token may be a new one.

        Raises:
            StoreUnavailable: it may be a good token, but the store can't be asked.
        """
        if not self._keyring.knows(text):
            came = monotonic()
            async with self._looking:
                if self._began <= came and not self._keyring.knows(text):
                    await asyncio.sleep(self._began + AGAIN_SECONDS - monotonic())
                    await self._look()
            if self._failed and not self._keyring.knows(text):
                raise StoreUnavailable("the tokens can't be read")
        return self.check_known(text)

    def check_known(self, text: str | None) -> Principal:
        """Who shows this token's text; None: none came. Raises Denied."""
        return self._keyring.check(text, self._clock.now())

    async def _look(self) -> None:
        self._began = monotonic()
        try:
            tokens = await self._reader.call(lambda store: store.tokens())
        except StoreError:  # the log says why, for the table of runs is read there too
            self._failed = True
        else:
            self._failed = False
            self._keyring.take(tokens)
