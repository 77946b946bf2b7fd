"""The root of the package's errors. It lives here because client, server and tuner all import the tuner."""

from collections.abc import Mapping


class MechanicdError(Exception):
    """Base of all errors of mechanicd. Its text says what happened, what was expected and what to do.

    Attributes:
        reason: stable, for programs: a value of mechanicd.v1.ErrorReason, or one of the client's own.
        message: the text without the reason.
        metadata: the facts, as strings.
    """

    reason: str

    def __init__(self, reason: str, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{message} [{reason}]")
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.message, self.metadata))


class InvalidArgument(MechanicdError, ValueError):
    """An argument is not valid: a name, a setting, a number of scale groups."""
