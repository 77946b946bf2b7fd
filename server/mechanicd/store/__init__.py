"""Where runs, their tuner states and the history of their steps are kept.

`open_store(url)` gives a `Store` (`_interface`). Two engines, `_sqlite` and `_postgres`, share what `_store` does over SQL
(`_sql`); `_history` folds the journal (`_journal`) into chunks of packed steps (`_records`) with their pyramid (`_summary`, and
`_tiers` above the chunks). `_model` is what a store keeps, `_vitals` what the steps of a run amount to; `_status`, `_needs` and
`_filter` judge runs. `_errors` is what can be refused, `_migrations` how old files are brought up to date, `_check` and `_copy`
a store's care, `_export` is a history as text.
"""

from mechanicd.store._check import Finding, check
from mechanicd.store._copy import copy
from mechanicd.store._errors import (
    OwnershipLost,
    RunExists,
    SchemaTooNew,
    SchemaTooOld,
    StoreError,
    StoreInUse,
    StoreNotWritable,
    StorePackageMissing,
)
from mechanicd.store._export import COLUMNS as EXPORT_COLUMNS
from mechanicd.store._export import FORMATS as EXPORT_FORMATS
from mechanicd.store._export import rows as export_rows
from mechanicd.store._filter import Filter, FilterError, parse_filter
from mechanicd.store._interface import Store, changes
from mechanicd.store._migrations import SCHEMA_VERSION
from mechanicd.store._model import (
    ADOPTED,
    CLOSED,
    FAILED,
    FENCED,
    FINISHED,
    FORKED,
    HELD,
    NON_FINITE,
    OPENED,
    OUTAGE,
    PREEMPTED,
    REATTACHED,
    RESUMED,
    REWOUND,
    REWOUND_BY_HAND,
    RUNNING,
    SILENT,
    TUNED,
    Claim,
    Commit,
    EventRow,
    Fork,
    Release,
    Rewind,
    RunRow,
    SessionRow,
    SummaryRequest,
)
from mechanicd.store._needs import KINDS as NEED_KINDS
from mechanicd.store._needs import Need, needs, same_needs
from mechanicd.store._open import open_store, without_password
from mechanicd.store._records import StepRow, outcomes, pack, unpack
from mechanicd.store._sqlite import SQLiteStore
from mechanicd.store._status import Silence, duration, judged
from mechanicd.store._store import SQLStore
from mechanicd.store._summary import SERIES, Buckets
from mechanicd.store._vitals import LEFT, SWING, Mark, Vitals, first_scale

__all__ = [
    "ADOPTED",
    "CLOSED",
    "EXPORT_COLUMNS",
    "EXPORT_FORMATS",
    "FAILED",
    "FENCED",
    "FINISHED",
    "FORKED",
    "HELD",
    "LEFT",
    "NEED_KINDS",
    "NON_FINITE",
    "OPENED",
    "OUTAGE",
    "PREEMPTED",
    "REATTACHED",
    "RESUMED",
    "REWOUND",
    "REWOUND_BY_HAND",
    "RUNNING",
    "SCHEMA_VERSION",
    "SERIES",
    "SILENT",
    "SWING",
    "TUNED",
    "Buckets",
    "Claim",
    "Commit",
    "EventRow",
    "Filter",
    "FilterError",
    "Finding",
    "Fork",
    "Mark",
    "Need",
    "OwnershipLost",
    "Release",
    "Rewind",
    "RunExists",
    "RunRow",
    "SQLStore",
    "SQLiteStore",
    "SchemaTooNew",
    "SchemaTooOld",
    "SessionRow",
    "Silence",
    "StepRow",
    "Store",
    "StoreError",
    "StoreInUse",
    "StoreNotWritable",
    "StorePackageMissing",
    "SummaryRequest",
    "Vitals",
    "changes",
    "check",
    "copy",
    "duration",
    "export_rows",
    "first_scale",
    "judged",
    "needs",
    "open_store",
    "outcomes",
    "pack",
    "parse_filter",
    "same_needs",
    "unpack",
    "without_password",
]
