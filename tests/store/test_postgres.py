"""What only PostgreSQL can show: many writers, lost connections, its own death."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mechanicd.runs import RunRow, StepRow, pack
from mechanicd.store import Claim, Commit, OwnershipLost, SchemaTooNew, SQLStore, StoreError, StoreNotWritable
from mechanicd.store import open_store as open_any
from mechanicd.tuner import TunerConfig, TunerState

CONFIG = TunerConfig()
_count = itertools.count()


@pytest.fixture
def url(postgres: Any) -> str:
    return str(postgres.create_database(f"only{next(_count)}"))


@pytest.fixture
def open_store(url: str) -> Iterator[Callable[..., SQLStore]]:
    """Opens one store after the other on one database."""
    opened: list[SQLStore] = []

    def make(**options: Any) -> SQLStore:
        opened.append(open_any(url, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def make(store: SQLStore, run: str = "r") -> RunRow:
    state = TunerState.initial(CONFIG)
    return store.create("p", run, CONFIG, state.to_bytes(), state.scale, 1_000)


def claim_of(row: RunRow, session: int) -> Claim:
    return Claim(
        run_id=row.id,
        expected_epoch=row.epoch,
        session=session,
        after_step=row.last_step,
        state=b"state",
        scale=(0.5,),
        labels={},
        time=2_000,
    )


def commit_of(row: RunRow, last: int) -> Commit:
    """Steps above the run's last one."""
    steps = [StepRow(step, step, 1, *((0.5,) for _ in range(6)), None) for step in range(row.last_step + 1, last + 1)]
    return Commit(
        run_id=row.id,
        epoch=row.epoch,
        session=row.session,
        after_step=row.last_step,
        last_step=last,
        state=b"state",
        scale=(0.5,),
        step_time=last,
        records=b"".join(pack(1, step) for step in steps),
    )


def test_of_many_claims_at_once_one_wins_and_the_others_are_told(open_store: Callable[..., SQLStore]) -> None:
    stores = [open_store() for _ in range(6)]
    row = make(stores[0])
    for round_ in range(20):
        won: list[RunRow] = []
        lost: list[str] = []
        barrier = threading.Barrier(len(stores))

        def claim(
            store: SQLStore, session: int, row: RunRow = row, won: Any = won, lost: Any = lost, all_: Any = barrier
        ) -> None:
            all_.wait()
            try:
                won.append(store.claim(claim_of(row, session)))
            except OwnershipLost as error:
                lost.append(str(error))

        threads = [threading.Thread(target=claim, args=(store, round_ * 10 + index)) for index, store in enumerate(stores, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, len(stores) - 1)
        assert all("is at epoch" in text for text in lost)
        row = won[0]
        assert stores[round_ % len(stores)].get("p", "r") == row


def test_of_a_commit_and_a_takeover_at_once_never_both_count(open_store: Callable[..., SQLStore]) -> None:
    old, new = open_store(), open_store()
    row = old.claim(claim_of(make(old), 1))
    counted = {True: 0, False: 0}
    for _ in range(100):
        kept: list[bool] = []
        thread = threading.Thread(
            target=lambda row=row, kept=kept: kept.extend(old.commit([commit_of(row, row.last_step + 1)], []))
        )
        thread.start()
        taken = new.take_over(row.id, row.epoch, 1)
        thread.join()
        counted[kept[0]] += 1
        assert taken.last_step == row.last_step + int(kept[0]), "the takeover saw the commit, or the commit wrote nothing"
        assert taken.epoch == row.epoch + 1
        row = taken
    assert sum(counted.values()) == 100


def test_two_servers_that_start_at_once_make_one_schema(url: str) -> None:
    opened: list[SQLStore] = []
    threads = [threading.Thread(target=lambda: opened.append(open_any(url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    make(opened[0])
    assert all(len(store.list_runs(None, None, 10)) == 1 for store in opened)
    for store in opened:
        store.close()


def test_one_server_folds_at_a_time_and_the_next_when_it_is_done(open_store: Callable[..., SQLStore]) -> None:
    one, two = open_store(), open_store()
    rows = [one.claim(claim_of(make(one, f"r{index}"), index + 1)) for index in range(3)]
    assert one.commit([commit_of(row, 1) for row in rows], []) == [True] * 3
    assert one.fold(1) is True
    assert two.fold(1) is False, "the other is at it"
    while one.fold(1):
        pass
    assert two.fold(1) is False, "nothing is left"
    assert two.commit([], []) == []


def test_a_lost_connection_is_made_anew_and_nothing_is_lost(new_postgres: Any) -> None:
    store = open_any(new_postgres.create_database("kept"))
    row = store.claim(claim_of(make(store), 1))
    assert store.commit([commit_of(row, 5)], []) == [True]
    new_postgres.kill()
    for _ in range(2):
        with pytest.raises(StoreError, match="could not be") as caught:
            store.get("p", "r")
        assert caught.value.reason == "STORE_UNAVAILABLE"
    new_postgres.start()
    after = store.get("p", "r")
    assert after is not None
    assert after.last_step == 5
    assert store.commit([commit_of(after, 9)], []) == [True]
    store.close()


def test_nobody_listens_is_told_without_the_password() -> None:
    with pytest.raises(StoreError, match=r"PostgreSQL at 127\.0\.0\.1:1/runs could not be written") as caught:
        open_any("postgresql://me:secret@127.0.0.1:1/runs")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://host:port:x/", "postgresql://h/?nonsense=1"])
def test_a_url_that_libpq_does_not_read_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"this URL can.t be read|libpq has no option"):
        open_any(url)


def test_a_newer_schema_is_refused_and_stays_as_it_is(url: str, open_store: Callable[..., SQLStore]) -> None:
    make(open_store())
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE mechanicd.meta SET schema_version = 99")
    with pytest.raises(SchemaTooNew, match="schema version 99"):
        open_any(url)


def test_a_store_opened_to_look_at_writes_nothing(url: str, open_store: Callable[..., SQLStore]) -> None:
    row = make(open_store())
    readonly = open_store(readonly=True)
    assert readonly.get("p", "r") == row


def test_a_user_who_may_only_read_is_told_so(url: str, open_store: Callable[..., SQLStore], tmp_path: Path) -> None:
    make(open_store())
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE " + url.rpartition("/")[2] + " SET default_transaction_read_only = on")
    with pytest.raises(StoreNotWritable, match="use the primary"):
        open_store().set_labels(1, {"a": "b"})
