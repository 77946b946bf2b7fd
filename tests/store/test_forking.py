"""A fork in portions: nobody sees it before it is whole, the source trains on, and of one that ends early nothing is left."""

from collections.abc import Callable, Iterator

import pytest

from mechanicd.runs import RunRow
from mechanicd.store import OwnershipLost, RunExists, SQLiteStore, SQLStore, _forking, check, copy, every_run
from mechanicd.store._forking import Forking
from mechanicd.tuner import TunerConfig
from tests.store.test_lineage import (
    GROUPS,
    PLAIN,
    STEPS,
    claim,
    commit,
    fork,
    forked,
    got,
    history,
    rewind,
    same_summaries,
    steps,
    trained,
)

pytestmark = pytest.mark.parametrize("portion", [1, 150_000], ids=["a chunk at a time", "some at a time"])


@pytest.fixture(autouse=True)
def portions(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forking, "_PORTION", portion)


def portions_of(forking: Forking) -> Iterator[RunRow | None]:
    """What each portion gives, to the end."""
    while (made := forking.more()) is None:
        yield None
    yield made


def left(store: SQLStore) -> dict[str, int]:
    """How many rows there are of the runs and of their history."""
    with store.reading() as db:
        return {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("runs", "chunks", "tiers", "events")
        }


def seen(store: SQLStore) -> list[str]:
    """Whatever names any reader of the store is told, and what a copy has."""
    target = SQLiteStore(":memory:")
    copy(store, target)
    copied = sorted(row.run for row in every_run(target))
    assert left(target)["runs"] == len(copied)
    target.close()
    listed = [row.run for row in store.list_runs(None, None, 100)]
    pulse = [row.run for row in store.rows(store.pulse())]
    assert listed == copied == sorted(pulse)
    assert all(finding.run in ("", *(f"projects/p/runs/{run}" for run in listed)) for finding in check(store))
    return listed


@pytest.mark.parametrize(("config", "after_step"), [(PLAIN, STEPS), (PLAIN, 1500), (GROUPS, 2048), (PLAIN, 0)])
def test_a_fork_is_seen_once_it_is_whole_and_its_source_goes_on(store: SQLStore, config: TunerConfig, after_step: int) -> None:
    source = trained(store, config, closed=False)
    groups = len(config.scale_groups)
    taken = source.last_step
    for made in portions_of(store.forking(forked(source, after_step))):
        if made is None:
            assert seen(store) == ["r"]
            source = commit(store, source, 30)
            taken += 30
    assert made is not None
    assert made == got(store, "new")
    assert (made.last_step, made.state, made.labels) == (after_step, b"state %d" % after_step, source.labels)
    assert seen(store) == ["new", "r"]
    assert history(store, made) == steps(1, after_step, groups)
    assert history(store, source) == steps(1, taken, groups)
    whole = fork(store, source, after_step, "whole")
    assert same_summaries(store, made, whole, max(after_step, 1))
    store.delete(source.id)
    assert history(store, commit(store, claim(store, made), 100)) == steps(1, after_step + 100, groups)


def test_of_a_fork_that_ends_early_nothing_is_left(store: SQLStore, reopen: Callable[[], SQLStore]) -> None:
    source = trained(store)
    while store.fold():
        pass
    before = left(store)
    ends = len(list(portions_of(store.forking(forked(source, STEPS, "other")))))
    store.delete(got(store, "other").id)
    assert left(store) == before
    for end in range(ends):
        forking = store.forking(forked(source, STEPS))
        for _ in range(end):
            assert forking.more() is None
        while forking.undo():
            pass
        assert left(store) == before
    forking = store.forking(forked(source, STEPS))
    forking.more()
    store = reopen()
    assert left(store) == before
    assert history(store, fork(store, source, STEPS)) == steps(1, STEPS)


@pytest.mark.parametrize("act", [claim, lambda store, row: rewind(store, row, 100), lambda store, row: store.delete(row.id)])
def test_a_source_that_is_opened_rewound_or_deleted_meanwhile_ends_the_fork(
    store: SQLStore, portion: int, act: Callable[[SQLStore, RunRow], object]
) -> None:
    source = trained(store)
    forking = store.forking(forked(source, STEPS))
    if forking.more() is not None:
        pytest.skip("all at once")
    act(store, source)
    with pytest.raises(OwnershipLost):
        list(portions_of(forking))
    while forking.undo():
        pass
    assert store.get("p", "new") is None
    assert left(store)["runs"] == len(store.list_runs(None, None, 9))


def test_a_name_that_is_taken_meanwhile_is_refused(store: SQLStore) -> None:
    source = trained(store)
    first, second = store.forking(forked(source, STEPS)), store.forking(forked(source, 2400))
    second.more()
    made = list(portions_of(first))[-1]
    with pytest.raises(RunExists, match="projects/p/runs/new"):
        list(portions_of(second))
    while second.undo():
        pass
    assert (got(store, "new"), left(store)["runs"]) == (made, 2)
