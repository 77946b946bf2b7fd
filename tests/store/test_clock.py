"""The store's clock: durations stay right wherever the clock is set that it stands for."""

import random
import time
from typing import Any

import pytest

from mechanicd.store import Clock, open_store, steady_ns

S = 10**9
LATEST = 2**63 - 1


@pytest.mark.parametrize("ahead", [-S, S, -3600 * S, 3600 * S, -(10**18), 10**18, 2**62, -(2**62)])
def test_a_clock_that_is_set_is_followed_by_a_tenth_of_the_time_that_passes(ahead: int) -> None:
    clock, begun = Clock(0), steady_ns()
    rng, at, before = random.Random(ahead), begun, clock.at(begun)
    for _ in range(200):
        clock.follow(at + ahead, at)
        for _ in range(5):  # between two looks, too, it never goes back and never jumps
            passed = rng.randrange(S)
            at += passed
            now = clock.at(at)
            assert 0.89 * passed <= now - before <= 1.11 * passed or now in (1, LATEST)
            before = now
    if abs(ahead) < 20 * S:
        assert clock.at(at) == at + ahead, "and in the end it is right"


def test_it_stays_within_what_the_store_can_hold() -> None:
    for offset in (-(2**70), -(2**63), 2**63, 2**70):
        assert 1 <= Clock(offset).now() <= LATEST


def test_another_process_of_this_machine_can_have_the_same_clock() -> None:
    clock = Clock(12345 * S)
    clock.follow(clock.now() + 3600 * S, steady_ns())
    other = Clock(clock.offset)
    at = steady_ns()
    assert abs(other.at(at) - clock.at(at)) < S // 10


@pytest.mark.parametrize("off", [-600, 600, 10**8])
def test_a_postgres_store_has_the_database_s_clock_whatever_this_machine_says(
    off: int, postgres: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    url = postgres.lend_database()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + off * S)
    store = open_store(url)
    assert abs(store.clock.now() - real()) < 10 * S
    store.ping()
    assert abs(store.clock.ahead) < S
    store.close()
    postgres.take_back(url)


def test_a_sqlite_store_has_this_machine_s_clock(tmp_path: Any) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'm.db'}")
    assert abs(store.clock.now() - time.time_ns()) < 10 * S
    store.ping()
    assert abs(store.clock.ahead) < S
    store.close()
