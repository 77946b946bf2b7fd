"""The tokens that a process knows, and the check of one: a look-up and a hash."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from mechanicd.access._principal import ANYONE, Denied, Principal
from mechanicd.access._token import Token, digest, parse

_NOBODY: Final = digest("nobody's secret")


class Keyring:
    """What a process knows of tokens. Whoever has it gives it the store's, again and again (`take`). Use it from one thread.

    Args:
        local: the server's own token, which is in a file for the user who started it. Its principal is called "local".
        everyone: nobody has to show who they are: every check passes, as `ANYONE`.
    """

    def __init__(self, local: Token | None = None, *, everyone: bool = False) -> None:
        self._everyone = everyone
        self._local = local
        self._tokens: dict[str, Token] = {}

    def take(self, tokens: Iterable[Token]) -> None:
        """Replaces the tokens of the store that it knows."""
        self._tokens = {token.id: token for token in tokens}

    def knows(self, text: str | None) -> bool:
        """Whether a check of this text needs no newer look at the store: it is no token's, or that of one known here."""
        named = parse(text or "")
        return self._everyone or named is None or self._find(named[0]) is not None

    def check(self, text: str | None, now: int) -> Principal:
        """Who shows this text.

        Args:
            text: of a token; None where none came.
            now: ns since 1970, by the store's clock.

        Raises:
            Denied: UNAUTHENTICATED. Whether a token is unknown or its secret wrong, the message does not tell.
        """
        if self._everyone:
            return ANYONE
        if text is None:
            raise Denied(
                "UNAUTHENTICATED",
                "this server asks for a token, and none came: set MECHANICD_TOKEN or MECHANICD_TOKEN_FILE; "
                "`mechanicd tokens create` makes one, where the server's store can be opened. A client that has one "
                f"and sends none is too old for tokens: upgrade it{_AT_HOME if self._local else ''}",
            )
        named = parse(text)
        if named is None:
            raise Denied("UNAUTHENTICATED", "what came is no token: expected mech_ID_SECRET; copy the whole text of one")
        id_, secret = named
        token = self._find(id_) or Token(id_, _NOBODY, "", ANYONE.role, 0)  # so that both take the same time
        if not token.has(secret) or token.digest is _NOBODY:
            replaced = _REPLACED if self._local else ""
            raise Denied("UNAUTHENTICATED", f"no such token: copy the whole text of one that this server's store has{replaced}")
        if token.revoke_time:
            raise Denied("UNAUTHENTICATED", f"token {id_} was revoked on {_day(token.revoke_time)}: {_ANOTHER}", id_)
        if token.expire_time and token.expire_time <= now:
            raise Denied("UNAUTHENTICATED", f"token {id_} expired on {_day(token.expire_time)}: {_ANOTHER}", id_)
        if token is self._local:
            return Principal("local", token.role, token.project)
        return token.principal

    def _find(self, id_: str) -> Token | None:
        local = self._local
        return local if local is not None and local.id == id_ else self._tokens.get(id_)


_AT_HOME: Final = (
    ". Programs of the server's own user on its machine need none: they find the server's where HOME and XDG_CONFIG_HOME are "
    "those that it has"
)
_REPLACED: Final = (
    ". If you have set none, the file with this server's own token has another server's, with the same port number: give each "
    "a port of its own, and start this one again"
)
_ANOTHER: Final = "make another with `mechanicd tokens create`"


def _day(time: int) -> str:
    return datetime.fromtimestamp(time / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
