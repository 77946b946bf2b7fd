"""Who signed in to the page. A session is a random name for a token that was shown once; it is known in this process alone, so
a copy of the store lets nobody in, and it is worth nothing once its token is. Pure: no I/O, no clock."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

SECONDS: Final = 7 * 86400
"""How long a session lasts at most."""
MOST_OF_TOKEN: Final = 256
"""A team may share a token for reading. A further session ends the oldest one."""


@dataclass(frozen=True, slots=True)
class _Session:
    token: str
    owner: str
    end: float


class Sessions:
    """The sessions of a process, by the digest of their names."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, _Session] = {}

    def begin(self, token: str, owner: str, now: float) -> str:
        """Returns the new session's name: 256 random bits, for a cookie.

        Args:
            token: the token's text, which has been checked.
            owner: its id.
            now: s; any clock, but one.
        """
        self._sessions = {key: one for key, one in self._sessions.items() if now < one.end}
        mine = [key for key, one in self._sessions.items() if one.owner == owner]
        for key in mine[: max(0, len(mine) + 1 - MOST_OF_TOKEN)]:  # a dict keeps the order in which they began
            del self._sessions[key]
        name = secrets.token_urlsafe(32)
        self._sessions[_digest(name)] = _Session(token, owner, now + SECONDS)
        return name

    def token(self, name: str, now: float) -> str | None:
        """The text of a session's token, to be checked again; None if there is no such session."""
        session = self._sessions.get(_digest(name))
        return session.token if session is not None and now < session.end else None

    def end(self, name: str) -> str | None:
        """Ends a session. Returns its token's id; None if there was none."""
        session = self._sessions.pop(_digest(name), None)
        return None if session is None else session.owner


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
