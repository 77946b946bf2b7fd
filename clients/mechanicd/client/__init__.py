"""The client, free of any framework: connect to mechanicd, open a run, send four scalars a step, get S back.

    from mechanicd.client import Reductions, connect

    with connect("127.0.0.1:50051") as client, client.open_run("bert/seed0") as session:
        S = session.step(Reductions(delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq))

`_errors` has the tree of errors. `_session` is what a training loop uses, `_local` the session without a server and `_remote`
the one with a server: `_opening` opens it, `_connection` takes it through outages, and `_backlog` holds the steps that are not
durable yet. `_spool_session` is the session that writes to a file instead, and `spool` brings such files to a server.
`_scale_of` gives the S of a finished run, `_targets` picks a server, `_transport` is the wire, `_token` says who calls, and
`_signals` handles SIGTERM.
`framework` is the entry point for adapters such as `mechanicd.torch`.
"""

import os

# grpc's fork handlers can crash a forked child while the parent's threads are busy, and log a line to stderr at each fork. No
# forked child uses grpc here, so nothing needs them. grpc reads this on import, which may happen long before _transport's.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from mechanicd.client._client import Client, connect, make_config, open_run, scale_of
from mechanicd.client._errors import (
    AccessDenied,
    ConfigMismatch,
    InvalidArgument,
    MechanicdError,
    NotImplementedByServer,
    NotTrusted,
    PackageMissing,
    PermissionDenied,
    ResumeError,
    ServerUnavailable,
    SessionClosed,
    SessionError,
    SessionFenced,
    StepConflict,
    Unauthenticated,
)
from mechanicd.client._local import LocalSession
from mechanicd.client._session import OnOutage, Session
from mechanicd.tuner import Reductions, TunerConfig, TunerState

__all__ = [
    "AccessDenied",
    "Client",
    "ConfigMismatch",
    "InvalidArgument",
    "LocalSession",
    "MechanicdError",
    "NotImplementedByServer",
    "NotTrusted",
    "OnOutage",
    "PackageMissing",
    "PermissionDenied",
    "Reductions",
    "ResumeError",
    "ServerUnavailable",
    "Session",
    "SessionClosed",
    "SessionError",
    "SessionFenced",
    "StepConflict",
    "TunerConfig",
    "TunerState",
    "Unauthenticated",
    "connect",
    "make_config",
    "open_run",
    "scale_of",
]
