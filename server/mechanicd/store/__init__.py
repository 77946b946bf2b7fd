"""Where runs, their tuner states and the history of their steps are kept.

`open_store(url)` gives a `Store` (`_interface`); `_sqlite` is the embedded one; `_model` is what a store keeps, `_records`
how steps are packed, `_errors` what a store can refuse.
"""

from mechanicd.store._errors import (
    OwnershipLost,
    RunExists,
    SchemaTooNew,
    StoreError,
    StoreInUse,
    StoreNotWritable,
)
from mechanicd.store._interface import Store
from mechanicd.store._model import (
    FAILED,
    FINISHED,
    HELD,
    NON_FINITE,
    PREEMPTED,
    RUNNING,
    TUNED,
    Claim,
    Commit,
    Release,
    RunRow,
    StepRow,
)
from mechanicd.store._records import pack, unpack
from mechanicd.store._sqlite import SCHEMA_VERSION, SQLiteStore

__all__ = [
    "FAILED",
    "FINISHED",
    "HELD",
    "NON_FINITE",
    "PREEMPTED",
    "RUNNING",
    "SCHEMA_VERSION",
    "TUNED",
    "Claim",
    "Commit",
    "OwnershipLost",
    "Release",
    "RunExists",
    "RunRow",
    "SQLiteStore",
    "SchemaTooNew",
    "StepRow",
    "Store",
    "StoreError",
    "StoreInUse",
    "StoreNotWritable",
    "open_store",
    "pack",
    "unpack",
]


def open_store(url: str) -> Store:
    """Opens the store that a URL names: `sqlite:///FILE` (`sqlite:////FILE` from the root, `sqlite:///:memory:` keeps nothing).

    Raises:
        StoreError: the URL is of no known kind, or the place can't be used; its text says what to do.
    """
    scheme, _, place = url.partition("://")
    path = place.removeprefix("/")
    if scheme == "sqlite" and path != place and path:
        return SQLiteStore(path)
    if scheme in ("postgresql", "postgres"):  # the rest of the URL may hold a password
        raise StoreNotWritable(f"{scheme}://…: PostgreSQL is planned and not built yet; use sqlite:///FILE")
    raise StoreNotWritable(f"{url}: expected sqlite:///FILE")
