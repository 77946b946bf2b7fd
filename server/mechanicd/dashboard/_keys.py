"""The tokens as the page's process knows them."""

from collections.abc import Iterable

from mechanicd import access
from mechanicd.access import Keyring, Token
from mechanicd.dashboard._reader import Reader
from mechanicd.store import Clock, StoreError, StoreUnavailable


class Keys(access.Keys):
    """A keyring that follows the store.

    Args:
        keyring: what it gives the store's tokens to.
        clock: the store's clock.
    """

    def __init__(self, reader: Reader, keyring: Keyring, clock: Clock) -> None:
        super().__init__(keyring, self._tokens, clock.now, StoreUnavailable)
        self._reader = reader

    async def run(self) -> None:
        """Follows the store until it is cancelled."""
        await self.look()
        await self.follow()

    async def _tokens(self) -> Iterable[Token]:
        try:
            return await self._reader.call(lambda store: store.tokens())
        except StoreError as error:  # the log says why, for the table of runs is read there too
            raise StoreUnavailable("the tokens can't be read") from error
