"""The tokens as a process knows them: the store's table, read every two seconds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Final

from mechanicd.access._keyring import Keyring
from mechanicd.access._principal import Principal
from mechanicd.access._token import Token

LOOK_SECONDS: Final = 2.0
"""A token that is revoked is good for so long."""
AGAIN_SECONDS: Final = 0.2
"""A token that is not known may be new: the table is read at once, but not more often."""


class Keys:
    """A keyring that follows the store. Use it inside one event loop.

    Args:
        keyring: what it gives the store's tokens to.
        read: the store's tokens; it raises `away` where the store can't be read.
        now: the store's time, ns since 1970.
        away: the exception.
        on_look: called after each look at the store: who was let in may have to leave.
    """

    def __init__(
        self,
        keyring: Keyring,
        read: Callable[[], Awaitable[Iterable[Token]]],
        now: Callable[[], int],
        away: type[Exception],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._keyring = keyring
        self._read = read
        self._now = now
        self._away = away
        self._on_look = on_look
        self._began = -AGAIN_SECONDS  # the latest look
        self._failure: Exception | None = None
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Reads the tokens. While the store can't be read, what was known stays good."""
        async with self._looking:
            await self._look()

    async def follow(self) -> None:
        """Looks every two seconds until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def check(self, text: str | None) -> Principal:
        """As `check_known`, after another look if the token may be a new one.

        Raises:
            Denied: UNAUTHENTICATED.
            Exception: `away`: it may be a good token, but the store can't be asked.
        """
        if not self._keyring.knows(text):
            came = monotonic()
            async with self._looking:
                if self._began <= came and not self._keyring.knows(text):
                    await asyncio.sleep(self._began + AGAIN_SECONDS - monotonic())
                    await self._look()
            if self._failure is not None and not self._keyring.knows(text):
                raise self._failure
        return self.check_known(text)

    def check_known(self, text: str | None) -> Principal:
        """Who shows this token's text; None: none came. Raises Denied UNAUTHENTICATED."""
        return self._keyring.check(text, self._now())

    async def _look(self) -> None:
        self._began = monotonic()
        try:
            tokens = await self._read()
        except self._away as error:  # the log has it already
            self._failure = error
        else:
            self._failure = None
            self._keyring.take(tokens)
        self._on_look()
