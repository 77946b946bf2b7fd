"""Who may come in over gRPC: with a token, which the store has, or with a certificate."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from mechanicd import access as tokens
from mechanicd.access import Denied, Keyring, Principal, Role, Token
from mechanicd.service._errors import ServiceError


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


class Keys(tokens.Keys):
    """The tokens of the store, and the names in certificates.

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
        keyring = Keyring(access.local and access.local[1], everyone=access.everyone)
        super().__init__(keyring, read, now, ServiceError, on_look)
        self._everyone = access.everyone
        self._roles = {subject: (role, project) for subject, role, project in access.client_roles}
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the tokens, and follows them from then on."""
        if not self._everyone:
            await self.look()
            self._following = asyncio.create_task(self.follow(), name="mechanicd-keys")

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
