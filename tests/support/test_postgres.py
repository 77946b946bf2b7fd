"""The tests' PostgreSQL is set up as in production, and recovers from a kill."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import PostgresProcess


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresProcess]:
    process = PostgresProcess(tmp_path / "postgres").start()
    yield process
    process.remove()


def test_postgres_is_set_up_as_in_production(postgres: PostgresProcess) -> None:
    with psycopg.connect(postgres.create_database("one")) as connection:
        settings = connection.execute(
            "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes'), "
            "current_setting('server_encoding'), current_setting('max_connections'), datcollate, current_database()"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert settings == ("on", "on", "on", "UTF8", "50", "C", "one")
    assert postgres.stop() == 0


def test_a_killed_postgres_has_what_was_committed(
    postgres: PostgresProcess, wait_for: Callable[..., bool], tmp_path: Path
) -> None:
    url = postgres.create_database("kept")
    for kill in range(3):
        connect = partial(psycopg.connect, url, autocommit=True)
        with closing(connect()) as connection, closing(connect()) as busy:
            connection.execute("CREATE TABLE IF NOT EXISTS kills (kill int)")
            # A busy backend. If it survived, it would keep the server from starting again.
            busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")
            active = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            assert wait_for(lambda: connection.execute(active, [busy.info.backend_pid]).rowcount == 1)  # noqa: B023
            connection.execute("INSERT INTO kills VALUES (%s)", [kill])
            connection.execute("BEGIN; INSERT INTO kills VALUES (-1)")
            postgres.kill()
        postgres.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT kill FROM kills ORDER BY kill").fetchall() == [(n,) for n in range(kill + 1)]
    postgres.remove()
    assert list((tmp_path / "postgres").iterdir()) == [postgres.log]
    assert not postgres.data.exists()
