"""Who changed what: one line in the log for each change, on the logger `mechanicd.audit`."""

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mechanicd.access import Principal

log = logging.getLogger("mechanicd.audit")

_MOST: Final = 400
"""The longest name of a run in a line; well-formed ones are within it, but for the longest of all."""


class SessionCheck(Protocol):
    """Checks each session of a stream once, when it is first named."""

    def is_new(self, request: Any) -> bool:
        """Whether a message names a session that has not been checked."""

    async def look(self, request: Any) -> None:
        """Checks the sessions of a message. Raises ServiceError PERMISSION_DENIED."""


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        method: its path, `/mechanicd.v1.RunService/GetRun`.
        principal: who makes it; None as long as that is not known.
        runs: the names of the runs that it is about.
        result: "ok", or the reason of a refusal.
        sessions: for a stream of steps: what checks its sessions; None if they need no check.
    """

    method: str
    principal: Principal | None = None
    runs: Sequence[str] = ()
    result: str = "ok"
    sessions: "SessionCheck | None" = None


CALL: Final = ContextVar[Call]("call")
"""The call that this task answers."""


def note(call: Call) -> None:
    """Writes the line of a change."""
    log.info(
        "token=%s method=%s run=%s result=%s",
        _word(call.principal.id if call.principal else "-"),
        call.method.rpartition("/")[2],
        ",".join(_word(name) for name in call.runs) or "-",
        call.result,
    )


def _word(text: str) -> str:
    """A text that a client gave, as one word that can't look like the next field."""
    text = text if len(text) <= _MOST else f"{text[:_MOST]}…"
    plain = text.isprintable() and text and not any(each in text for each in ' ",=')
    return text if plain else ascii(text).replace(" ", "\\x20").replace(",", "\\x2c").replace("=", "\\x3d")
