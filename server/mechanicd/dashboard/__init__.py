"""The page's server: a process beside the tuner's, so that viewers never take its time. It reads the same store by itself.

`_supervisor` is what the serving process does: it binds the socket, starts the child (`__main__`), and starts it again when it
ends. In the child, `_watch` keeps the table of runs (`_table`, `_item`) up to date from the store (`_reader`); `_app` answers
requests (`_request`) from it, with curves (`_curves`: `_zoom`, `_series`, `_bands`); `_live` streams what changes; `_guard`,
`_errors` and `_files` are HTTP's own matters.
"""

from mechanicd.dashboard._config import PageConfig
from mechanicd.dashboard._supervisor import DEFAULT, Page, PageError

__all__ = ["DEFAULT", "Page", "PageConfig", "PageError"]
