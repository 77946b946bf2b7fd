"""What a run is, apart from where it is stored: rows, steps, status, alerts, filters, export.

Pure: nothing here knows a store, a transport or a page. `_values` has the enums, `_model` the rows, `_records` packed steps.
`_run_stats` summarizes the steps of a run; `_status` and `_alerts` judge a run at a given time; `_filter` selects runs, and
`_export` writes a history as text.
"""

from mechanicd.runs._alerts import Alert, alerts, same_alerts
from mechanicd.runs._export import COLUMNS as EXPORT_COLUMNS
from mechanicd.runs._export import FORMATS as EXPORT_FORMATS
from mechanicd.runs._export import cell
from mechanicd.runs._export import rows as export_rows
from mechanicd.runs._filter import Filter, FilterError, parse_filter
from mechanicd.runs._model import EventRow, RunRow, SessionRow, session_key
from mechanicd.runs._records import StepColumns, StepRow, outcomes, pack, unpack, unpack_columns
from mechanicd.runs._records import dtype as record_dtype
from mechanicd.runs._records import layout as record_layout
from mechanicd.runs._run_stats import LEFT, SWING, Mark, RunStats, first_scale
from mechanicd.runs._status import Silence, duration, judged, not_ahead
from mechanicd.runs._values import AlertKind, EventKind, RunStatus, StepOutcome

__all__ = [
    "EXPORT_COLUMNS",
    "EXPORT_FORMATS",
    "LEFT",
    "SWING",
    "Alert",
    "AlertKind",
    "EventKind",
    "EventRow",
    "Filter",
    "FilterError",
    "Mark",
    "RunRow",
    "RunStats",
    "RunStatus",
    "SessionRow",
    "Silence",
    "StepColumns",
    "StepOutcome",
    "StepRow",
    "alerts",
    "cell",
    "duration",
    "export_rows",
    "first_scale",
    "judged",
    "not_ahead",
    "outcomes",
    "pack",
    "parse_filter",
    "record_dtype",
    "record_layout",
    "same_alerts",
    "session_key",
    "unpack",
    "unpack_columns",
]
