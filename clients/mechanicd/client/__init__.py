"""The framework-free client: connect to mechanicd, open a run, send four scalars a step, get S back.

    from mechanicd.client import Reductions, connect

    with connect("127.0.0.1:50051") as client, client.open_run("bert/seed0") as session:
        S = session.step(Reductions(delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq))

`_errors` draws the tree of errors, `_session` is what a training loop sees, `_local` the session without a server, `_remote`
the one with a server and what becomes of it in an outage, `_backlog` the steps it keeps, `_scale_of` what another run may start
with, `_transport` the wire.
"""

import os

# grpc's own fork handlers crash a forked child when the parent's threads were at work, and write a line to stderr at each fork.
# No child uses grpc here, so they serve nobody. grpc reads this when it is imported, which may be long before _transport does.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from mechanicd.client._client import Client, connect, make_config, open_run, scale_of
from mechanicd.client._errors import (
    ConfigMismatch,
    InvalidArgument,
    MechanicdError,
    NotImplementedByServer,
    PackageMissing,
    ResumeError,
    ServerUnavailable,
    SessionClosed,
    SessionError,
    SessionFenced,
    StepConflict,
)
from mechanicd.client._local import LocalSession
from mechanicd.client._session import OnOutage, Session
from mechanicd.tuner import Reductions, TunerConfig, TunerState

__all__ = [
    "Client",
    "ConfigMismatch",
    "InvalidArgument",
    "LocalSession",
    "MechanicdError",
    "NotImplementedByServer",
    "OnOutage",
    "PackageMissing",
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
    "connect",
    "make_config",
    "open_run",
    "scale_of",
]
