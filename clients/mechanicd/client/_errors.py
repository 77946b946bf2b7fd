"""The errors of the client.

    MechanicdError
    ├── InvalidArgument        an argument is not valid: a name, a setting, a number of groups (also a ValueError)
    │   └── ConfigError …      the tuner's own: ConfigError, ReductionsError and StateError of mechanicd.tuner
    ├── SessionError           this process's session is no longer usable
    │   ├── SessionFenced      a newer process holds the run; this one must stop
    │   ├── SessionClosed      the session was closed, or its run deleted
    │   └── StepConflict       the server has other reductions for this step, or computes another S
    ├── ConfigMismatch         the run exists with another config
    ├── ResumeError            the run cannot resume from where it was asked to
    ├── ServerUnavailable      no answer before the deadline, or no server at all
    │   └── NotTrusted         who the server is can't be told: its certificate, or the files to check it by
    ├── AccessDenied           this client may not do that at this server
    │   ├── Unauthenticated    the server does not know who asks: no token, or none that is good
    │   └── PermissionDenied   the token is good, but not for this
    ├── NotImplementedByServer the server is older than this client
    └── PackageMissing         a framework that an adapter needs is not installed (also an ImportError)

Each has a stable `reason`, the name of a value of mechanicd.v1.ErrorReason or one of the client's own (SERVER_UNREACHABLE,
DEADLINE_EXCEEDED, SCALE_MISMATCH, TORCH_MISSING …), and `metadata`, the facts as strings. The two at the root live in the
tuner, which everything imports, so that `except MechanicdError` also catches what `TunerConfig(s_init=-1)` raises.
"""

from collections.abc import Mapping

from mechanicd.tuner import InvalidArgument, MechanicdError
from mechanicd.v1.names import plain

__all__ = [
    "SURVIVED",
    "AccessDenied",
    "ConfigMismatch",
    "InvalidArgument",
    "MechanicdError",
    "NotImplementedByServer",
    "NotTrusted",
    "PackageMissing",
    "PermissionDenied",
    "ResumeError",
    "ServerUnavailable",
    "SessionClosed",
    "SessionError",
    "SessionFenced",
    "StepConflict",
    "Unauthenticated",
    "from_reason",
    "said",
]

_MOST_OF_A_REASON = 64


class SessionError(MechanicdError):
    """This process's session is no longer usable."""


class SessionFenced(SessionError):
    """A newer process holds the run. Stop: two trainers never feed one run."""


class SessionClosed(SessionError):
    """The session was closed, or its run was deleted."""


class StepConflict(SessionError):
    """The server has other reductions for this step, or computes another S from the same ones."""


class ConfigMismatch(MechanicdError):
    """The run exists with another config."""


class ResumeError(MechanicdError):
    """The run cannot resume from where it was asked to."""


class ServerUnavailable(MechanicdError):
    """The server did not answer before the deadline, or there is none."""


class NotTrusted(ServerUnavailable):
    """This client can't tell who the server is: its certificate is not valid here, or the files to check it by can't be read.

    Raised where a run is opened, whatever `on_outage` says. In the middle of a training it is an outage like any other.
    """


class AccessDenied(MechanicdError):
    """This client may not do that at this server. No outage: waiting does not help, another token does.

    Raised where a run is opened, whatever `on_outage` says. In the middle of a training it is logged once, the training goes on
    as in an outage, and it reconnects when there is a token that is good.
    """


class Unauthenticated(AccessDenied):
    """The server does not know who asks: there is no token, none that is good, or none that may be sent."""


class PermissionDenied(AccessDenied):
    """The token is good, but its role or its project does not allow this."""


class NotImplementedByServer(MechanicdError):
    """The server does not implement the method."""


class PackageMissing(MechanicdError, ImportError):
    """A framework that an adapter needs is not installed."""


SURVIVED = (ServerUnavailable, AccessDenied)
"""What a training that has begun lives through: its steps are kept, and it reconnects."""

_BY_REASON: dict[str, type[MechanicdError]] = {
    "MALFORMED_NAME": InvalidArgument,
    "INVALID_CONFIG": InvalidArgument,
    "INVALID_LABELS": InvalidArgument,
    "INVALID_STATUS": InvalidArgument,
    "INVALID_FILTER": InvalidArgument,
    "INVALID_PAGE_TOKEN": InvalidArgument,
    "INVALID_UPDATE_MASK": InvalidArgument,
    "INVALID_READ_MASK": InvalidArgument,
    "INVALID_RANGE": InvalidArgument,
    "GROUP_COUNT_MISMATCH": InvalidArgument,
    "NEGATIVE_SQUARE": InvalidArgument,
    "CONFIG_MISMATCH": ConfigMismatch,
    "RESUME_STEP_UNKNOWN": ResumeError,
    "INVALID_TUNER_STATE": ResumeError,
    "SESSION_FENCED": SessionFenced,
    "SESSION_UNKNOWN": SessionClosed,
    "STEP_CONFLICT": StepConflict,
    "STEP_OUT_OF_ORDER": SessionError,
    "RUN_NOT_FOUND": MechanicdError,
    "OWNERSHIP_LOST": ServerUnavailable,
    "STORE_UNAVAILABLE": ServerUnavailable,
    "SERVER_DRAINING": ServerUnavailable,
    "NOT_IMPLEMENTED": NotImplementedByServer,
    "RUN_HELD": SessionError,
    "RUN_EXISTS": InvalidArgument,
    "RUN_DELETED": SessionError,
    "RUN_RENAMED": ResumeError,
    "MALFORMED_REQUEST": InvalidArgument,
    "REQUEST_TOO_LARGE": InvalidArgument,
    "TOO_MANY_WATCHERS": MechanicdError,
    "STORE_DAMAGED": MechanicdError,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
}


def from_reason(reason: str, message: str, metadata: Mapping[str, str] | None = None) -> MechanicdError:
    """The error class for a reason that a server sent, with a message that a terminal and a log may have."""
    return _BY_REASON.get(reason, MechanicdError)(said(reason, _MOST_OF_A_REASON), said(message), metadata)


def said(text: str, most: int = 4096) -> str:
    """What a server says to people: on one line, without what a terminal would obey, and of bounded length."""
    shown = plain(text[:most])
    return shown if len(text) <= most else f"{shown}…"
