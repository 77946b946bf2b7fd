"""The service: sessions, steps and queries over a store.

`_server` is the process, `_grpc` the thin adapter; under them, free of any transport, `_engine` (which session holds which
run), `_sessions` (where a session starts, a pure decision), `_events` (what is noted of it), `_open_run` (one run in memory;
the hot path), `_writer` (group commit and upkeep), `_runs`, `_table`, `_filter`, `_status` and `_needs` (looking at runs),
`_convert` (messages ↔ values) and `_errors`.
"""

from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._filter import Filter
from mechanicd.service._filter import parse as parse_filter
from mechanicd.service._needs import KINDS, Need, needs
from mechanicd.service._server import ServeError, ServerConfig, check_address, serve
from mechanicd.service._status import Silence, duration, judged
from mechanicd.service._writer import Retention

__all__ = [
    "KINDS",
    "Engine",
    "Filter",
    "Need",
    "Retention",
    "ServeError",
    "ServerConfig",
    "ServiceError",
    "Silence",
    "check_address",
    "duration",
    "judged",
    "needs",
    "parse_filter",
    "serve",
]
