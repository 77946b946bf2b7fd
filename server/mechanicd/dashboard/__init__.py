"""The page's server: a process of its own that reads the same store, so that viewers take no time from the tuner.

`_supervisor` runs in the serving process: it binds the socket, starts the child (`__main__`) and restarts it when it dies. In
the child, `_poller` keeps the table of runs (`_table`, `_run_json`) current from the store (`_reader`). `_app` answers requests
(`_request`) with it, with curves (`_curves`: `_bucket_range`, `_series`, `_bands`) and with single runs (`_run_detail`); `_sse`
streams changes; `_export`, `_metrics` and `_webhook` are for programs. `_origin_check`, `_errors` and `_static_files` are plain
HTTP.
"""

from mechanicd.dashboard._config import PageConfig
from mechanicd.dashboard._supervisor import DEFAULT, Page, PageError

__all__ = ["DEFAULT", "Page", "PageConfig", "PageError"]
