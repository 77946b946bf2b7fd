"""What the tests of the tuner share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from mechanicd.tuner import _state


@pytest.fixture(scope="session")
def numpy_from() -> Callable[[int], AbstractContextManager[None]]:
    """`with numpy_from(groups):` new states take the form of arrays from that many scale groups on."""

    @contextmanager
    def patched(groups: int) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_state, "NUMPY_FROM", groups)
            yield

    return patched
