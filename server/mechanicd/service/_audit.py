"""Who changed what: one line in the log for each change, on the logger `mechanicd.audit`."""

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from mechanicd.access import Principal

log = logging.getLogger("mechanicd.audit")

MOST_OF_STRANGERS: Final = 10
"""Lines in a second about calls of nobody known."""
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
        refused: the id of a token that is no longer good.
        runs: the names of the runs that it is about.
        result: "ok", or the reason of a refusal.
        sessions: for a stream of steps: what checks its sessions; None if they need no check.
    """

    method: str
    principal: Principal | None = None
    refused: str = ""
    runs: Sequence[str] = ()
    result: str = "ok"
    sessions: "SessionCheck | None" = None


CALL: Final = ContextVar[Call]("call")
"""The call that this task answers."""


class Audit:
    """Writes the lines.

    Strangers can call as often as they like: of the calls by nobody known, `MOST_OF_STRANGERS` have a line in a second, and the
    others are counted.
    """

    def __init__(self) -> None:
        self._second = 0
        self._lines = self._left_out = 0

    def note(self, call: Call) -> None:
        """The line of a change."""
        who = call.principal.id if call.principal else call.refused
        if not who and not self._has_room():
            return
        log.info(
            "token=%s method=%s run=%s result=%s",
            _word(who or "-"),
            call.method.rpartition("/")[2],
            ",".join(map(_word, call.runs)) or "-",
            call.result,
        )

    def _has_room(self) -> bool:
        second = int(monotonic())
        if second != self._second:
            if self._left_out:
                log.warning("%d more calls without a good token were refused", self._left_out)
            self._second, self._lines, self._left_out = second, 0, 0
        self._lines += 1
        self._left_out += self._lines > MOST_OF_STRANGERS
        return self._lines <= MOST_OF_STRANGERS


def _word(text: str) -> str:
    """A text that a client gave, as one word that can't look like the next field."""
    text = text if len(text) <= _MOST else f"{text[:_MOST]}…"
    plain = text.isprintable() and text and not any(each in text for each in ' ",=')
    return text if plain else ascii(text).replace(" ", "\\x20").replace(",", "\\x2c").replace("=", "\\x3d")
