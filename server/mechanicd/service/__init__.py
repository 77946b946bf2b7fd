"""The service: sessions, steps and queries over a store.

`_server` is the process, and `_grpc` the thin adapter to the transport. Below them, nothing knows the transport:

- `_engine` answers TunerService. `_registry` knows who holds which run, `_session_start` decides where a session starts,
  `_replay` recomputes a tuner's state from the history, `_events` creates the events of sessions.
- `_active_run` is one run in memory: the hot path. `_writer` does the group commits and the store's maintenance, and
  `_memory` returns what that has used.
- `_run_service` answers RunService. `_run_cache` holds all runs' rows, `_lineage` rewinds, renames and forks runs, `_sketches`
  draws them.
- `_door` lets calls in or refuses them: `_keys` knows the tokens, `_permissions` what each method takes. `_audit` notes who
  changes what, `_refusal` is how a call is refused, `_local_files` are for programs of the server's own user.
- `_convert` maps messages to values and back, `_errors` has the errors, `_metrics` the counters.
"""

from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._keys import Access
from mechanicd.service._listening import ServeError, check_address
from mechanicd.service._server import ServerConfig, serve
from mechanicd.service._writer import Retention

__all__ = ["Access", "Engine", "Retention", "ServeError", "ServerConfig", "ServiceError", "check_address", "serve"]
