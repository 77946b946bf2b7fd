"""The service: sessions, steps and queries over a store.

`_server` is the process, `_grpc` the thin adapter; under them, free of any transport, `_engine` (which session holds which
run), `_sessions` (where a session starts, a pure decision), `_events` (what is noted of it), `_open_run` (one run in memory;
the hot path), `_writer` (group commit and upkeep), `_runs` and `_table` (looking at runs), `_metrics` (what
is counted), `_convert` (messages ↔ values) and `_errors`.
"""

from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._server import ServeError, ServerConfig, check_address, serve
from mechanicd.service._writer import Retention

__all__ = ["Engine", "Retention", "ServeError", "ServerConfig", "ServiceError", "check_address", "serve"]
