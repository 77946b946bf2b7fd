"""Where runs, their tuner states and the history of their steps are kept.

`open_store(url)` returns a `Store` (`_interface`); `_url` reads the URL. Two engines, `_sqlite` and `_postgres`, share what
`_store` does over SQL (`_sql`, `_rows`); `_history` folds the journal (`_journal`) into chunks of packed steps with their
buckets (`_summary`, and `_pyramid` above the chunks); `_zoom` reads those of many runs at once, `_forking` copies them.
`_chunks` and `_damage` find what is damaged by the checksums of `_sums`. `_clock` is the time of day that all who use a store
share, `_model` has the changes that a store can make, `_errors` its errors. `_migrations` updates old files, `_files` watches
those of SQLite. `_check`, `_copy` and `_salvage`, which reads what `_wreck` can still get out of a damaged database, are for
maintenance. What a run is, and how it is judged, is in `mechanicd.runs`.
"""

from mechanicd.store._check import Finding, check
from mechanicd.store._clock import Clock, steady_ns
from mechanicd.store._copy import copy
from mechanicd.store._errors import (
    OwnershipLost,
    RunExists,
    SchemaTooNew,
    SchemaTooOld,
    StoreConflict,
    StoreDamaged,
    StoreError,
    StoreInUse,
    StoreMoved,
    StoreNotPortable,
    StoreNotWritable,
    StorePackageMissing,
    StorePooled,
    StoreRejected,
    StoreUnavailable,
)
from mechanicd.store._interface import Store, changes, every_run, saved_records
from mechanicd.store._migrations import SCHEMA_VERSION
from mechanicd.store._model import Claim, Commit, Fork, Release, Rename, Rewind, SummaryRequest
from mechanicd.store._open import file_of, open_beside, open_store
from mechanicd.store._salvage import Left, salvage
from mechanicd.store._sqlite import SQLiteStore
from mechanicd.store._store import SQLStore
from mechanicd.store._summary import SERIES, Buckets
from mechanicd.store._url import without_password

__all__ = [
    "SCHEMA_VERSION",
    "SERIES",
    "Buckets",
    "Claim",
    "Clock",
    "Commit",
    "Finding",
    "Fork",
    "Left",
    "OwnershipLost",
    "Release",
    "Rename",
    "Rewind",
    "RunExists",
    "SQLStore",
    "SQLiteStore",
    "SchemaTooNew",
    "SchemaTooOld",
    "Store",
    "StoreConflict",
    "StoreDamaged",
    "StoreError",
    "StoreInUse",
    "StoreMoved",
    "StoreNotPortable",
    "StoreNotWritable",
    "StorePackageMissing",
    "StorePooled",
    "StoreRejected",
    "StoreUnavailable",
    "SummaryRequest",
    "changes",
    "check",
    "copy",
    "every_run",
    "file_of",
    "open_beside",
    "open_store",
    "salvage",
    "saved_records",
    "steady_ns",
    "without_password",
]
