"""Stores to test, one kind after the other: an engine joins the conformance suite by one more line in `ENGINES`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mechanicd.store import Store, open_store

ENGINES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder / 'runs.db'}",
}


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database of this engine is."""
    return ENGINES[request.param](tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def reopen(url: str, store: Store) -> Iterator[Callable[[], Store]]:
    """Closes the store and opens the same database anew: what it gives was on disk."""
    opened = [store]

    def again() -> Store:
        opened[-1].close()
        opened.append(open_store(url))
        return opened[-1]

    yield again
    opened[-1].close()
