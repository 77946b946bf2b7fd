"""The tokens as this server knows them: the store's table, read every two seconds."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from mechanicd.access import Denied, Keyring, Principal, Role, Token
from mechanicd.service._errors import ServiceError

log = logging.getLogger("mechanicd.service")

LOOK_SECONDS: Final = 2.0
"""A token that is revoked is good for so long."""
AGAIN_SECONDS: Final = 0.2
"""A token that is not known may be new: the table is read at once, but not more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may come in, besides those with a token of the store.

    Attributes:
        everyone: nobody has to show who they are.
        local: the server's own token: its text and what is kept of it.
        client_roles: what clients with a certificate may do: (subject, role, project).
    """

    everyone: bool = False
    local: tuple[str, Token] | None = field(default=None, repr=False)
    client_roles: tuple[tuple[str, Role, str], ...] = ()


class Keys:
    """A keyring that follows the store.

    Args:
        read: the store's tokens. Raises ServiceError where the store can't be read.
        now: the store's time, ns since 1970.
        on_look: called after each look at the store: who was let in may have to leave.
    """

    def __init__(
        self,
        access: Access,
        read: Callable[[], Awaitable[Iterable[Token]]],
        now: Callable[[], int],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._everyone = access.everyone
        self._keyring = Keyring(access.local and access.local[1], everyone=access.everyone)
        self._roles = {subject: (role, project) for subject, role, project in access.client_roles}
        self._read = read
        self._now = now
        self._on_look = on_look
        self._began = -AGAIN_SECONDS  # the latest look
        self._failure: ServiceError | None = None
        self._looking = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the tokens, and follows them from then on."""
        if not self._everyone:
            await self._look()
            self._following = asyncio.create_task(self._follow(), name="mechanicd-keys")

    async def stop(self) -> None:
        """Follows them no more."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    @property
    def asks_certificates(self) -> bool:
        """Whether a client's certificate may say what it may do."""
        return bool(self._roles) and not self._everyone

    async def check(self, text: str | None) -> Principal:
        """As `check_known`, after another look if the token may be a new one.

        Raises:
            Denied: UNAUTHENTICATED.
            ServiceError: STORE_UNAVAILABLE: it may be a good token, but the store can't be asked.
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

    def of_certificate(self, subjects: Iterable[str]) -> Principal:
        """Who shows a certificate with these names. Raises Denied UNAUTHENTICATED."""
        for subject in subjects:
            if subject in self._roles:
                return Principal(f"cert:{subject}", *self._roles[subject])
        raise Denied(
            "UNAUTHENTICATED",
            "neither a token came, nor a certificate whose name has a role here: set MECHANICD_TOKEN or MECHANICD_TOKEN_FILE, "
            "or start the server with --client-role NAME=ROLE",
        )

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with self._looking:
                await self._look()

    async def _look(self) -> None:
        """While the store can't be read, what was known stays good."""
        self._began = monotonic()
        try:
            tokens = await self._read()
        except ServiceError as error:  # the log has it already
            self._failure = error
        else:
            self._failure = None
            self._keyring.take(tokens)
        self._on_look()
