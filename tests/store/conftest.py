"""Stores to test, one kind after the other: an engine joins the conformance suite by one more line in `ENGINES`.

Each kind runs twice: as it is, and with the journal folded into chunks after every commit.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mechanicd.store import Commit, Release, Store, open_store


def _sqlite(folder: Path, request: pytest.FixtureRequest) -> str:
    return f"sqlite:///{folder / 'runs.db'}"


def _postgres(folder: Path, request: pytest.FixtureRequest) -> str:
    process = request.getfixturevalue("postgres")
    url = str(process.lend_database())
    request.addfinalizer(lambda: process.take_back(url))
    return url


ENGINES: dict[str, Callable[[Path, pytest.FixtureRequest], str]] = {"sqlite": _sqlite, "postgres": _postgres}
FOLDING = ["in the journal", "folded"]


@pytest.fixture(params=list(itertools.product(ENGINES, FOLDING)), ids=lambda pair: ", ".join(pair))
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An engine, and where its steps are."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def url(kind: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database of this engine is."""
    return ENGINES[kind[0]](tmp_path, request)


@pytest.fixture
def open_kind(kind: tuple[str, str]) -> Callable[[str], Store]:
    """Opens a store so that it folds as this kind does."""

    def opened(url: str) -> Store:
        store = open_store(url)
        if kind[1] == "folded":
            _fold_at_once(store)
        return store

    return opened


@pytest.fixture
def store(url: str, open_kind: Callable[[str], Store]) -> Iterator[Store]:
    opened = open_kind(url)
    yield opened
    opened.close()


@pytest.fixture
def reopen(url: str, store: Store, open_kind: Callable[[str], Store]) -> Iterator[Callable[[], Store]]:
    """Closes the store and opens the same database anew: what it gives was on disk."""
    opened = [store]

    def again() -> Store:
        opened[-1].close()
        opened.append(open_kind(url))
        return opened[-1]

    yield again
    opened[-1].close()


def _fold_at_once(store: Any) -> None:
    commit = store.commit

    def committed(commits: Sequence[Commit], releases: Sequence[Release]) -> list[bool]:
        kept: list[bool] = commit(commits, releases)
        while store.fold(1):
            pass
        return kept

    store.commit = committed
