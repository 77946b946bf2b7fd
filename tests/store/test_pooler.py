"""A pooler before PostgreSQL: in session mode it serves, in transaction mode it is refused by name when a server starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mechanicd.client import Reductions, open_run
from mechanicd.store import StorePooled, StoreUnavailable, open_store
from tests.support import pooler
from tests.support.servers import free_port

needs_pgbouncer = pytest.mark.skipif(pooler.PGBOUNCER is None, reason="pgbouncer is not installed")


def test_a_backend_that_two_connections_share_is_refused(postgres: Any, run_cli: Callable[..., Any]) -> None:
    with pooler.shared_backend(postgres.lend_database()) as url:
        for readonly in (False, True):
            with pytest.raises(StorePooled, match="set its pool_mode to session"):
                open_store(url, readonly=readonly)
        serve = run_cli("serve", "--store", url, "--grpc", "127.0.0.1:0", "--http", "off", "--json")
        assert (serve.returncode, json.loads(serve.stderr)["error"]["reason"]) == (1, "STORE_POOLED")


def test_a_database_without_a_pooler_is_asked_by_one_connection(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.lend_database()
    made: list[Any] = []
    connect = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda **given: made.append(given) or connect(**given))
    open_store(url).close()
    assert len(made) == 1


@needs_pgbouncer
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_pgbouncer_is_refused_where_a_session_is_not_one(mode: str, size: int, postgres: Any, tmp_path: Path) -> None:
    with (
        pooler.pgbouncer(tmp_path, postgres.lend_database(), mode, size) as url,
        pytest.raises(StorePooled, match="is a pooler that changes"),
    ):
        open_store(url)


@needs_pgbouncer
def test_pgbouncer_in_session_mode_serves(
    postgres: Any, tmp_path: Path, new_server: Callable[..., Any], history: Callable[..., list[Any]]
) -> None:
    with pooler.pgbouncer(tmp_path, postgres.lend_database(), "session", 5) as url:
        server = new_server(store=url).start()
        session = open_run(server.target, "r", start=0)
        for _ in range(100):
            session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
        session.close()
        assert len(history(server.target, "r")) == 100
        assert server.stop() == 0


@needs_pgbouncer
def test_a_pooler_whose_mode_changes_under_a_store_is_refused_until_it_is_back(postgres: Any, tmp_path: Path) -> None:
    url, port = postgres.lend_database(), free_port()
    with pooler.pgbouncer(tmp_path, url, "session", 5, port) as through:
        store = open_store(through)
    with pooler.pgbouncer(tmp_path, url, "transaction", 5, port):
        with pytest.raises(StoreUnavailable):
            store.ping()  # the old connection
        for _ in range(2):
            with pytest.raises(StorePooled):
                store.ping()
    with pooler.pgbouncer(tmp_path, url, "session", 5, port):
        store.ping()
    store.close()
