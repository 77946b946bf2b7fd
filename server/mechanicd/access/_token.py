"""Tokens: `mech_<id>_<secret>`. The text is shown once, when a token is made; what is kept tells whether a text is right."""

import base64
import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass
from typing import Final

from mechanicd.access._principal import Principal, Role

_ID_LENGTH: Final = 12
_ID_ALPHABET: Final = string.ascii_lowercase + string.digits
_SECRET_BYTES: Final = 32
_TEXT: Final = re.compile(rf"mech_([a-z0-9]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})", re.ASCII)
_BEARER: Final = re.compile(r"\s*bearer\s+(\S+)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token.

    Attributes:
        id: what it is called, in lists and logs: 12 lower-case letters and digits.
        digest: SHA-256 of its secret's 43 characters. The secret has 256 random bits, so that nothing slower is needed.
        project: where it is good; "" means in all projects.
        role: what it allows.
        create_time, expire_time, revoke_time: ns since 1970; 0 means never.
        note: its owner's words.
    """

    id: str
    digest: bytes
    project: str
    role: Role
    create_time: int
    expire_time: int = 0
    revoke_time: int = 0
    note: str = ""

    @property
    def principal(self) -> Principal:
        """Who shows it."""
        return Principal(self.id, self.role, self.project)

    def has(self, secret: str) -> bool:
        """Whether this is its secret, compared in constant time."""
        return hmac.compare_digest(self.digest, digest(secret))


def create(project: str, role: Role, now: int, expire_time: int = 0, note: str = "") -> tuple[str, Token]:
    """A new token.

    Args:
        project: where it is good; "" means in all projects.
        role: what it allows.
        now: ns since 1970.
        expire_time: ns since 1970; 0 means never.
        note: the owner's words.

    Returns:
        Its text, which is not kept anywhere, and what is kept of it.
    """
    id_ = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()
    return f"mech_{id_}_{secret}", Token(id_, digest(secret), project, role, now, expire_time, 0, note)


def parse(text: str) -> tuple[str, str] | None:
    """The id and the secret in a token's text; None if it is no such text."""
    found = _TEXT.fullmatch(text)
    return None if found is None else (found[1], found[2])


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def bearer(header: str | None) -> str | None:
    """The token's text in an `authorization` header, `Bearer TEXT`; None without a header. Another header is given as it is."""
    if header is None:
        return None
    found = _BEARER.fullmatch(header)
    return header if found is None else found[1]
