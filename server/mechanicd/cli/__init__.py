"""The command line: `mechanicd serve | demo | runs … | store … | top`.

`_main` has the program and `serve`. `_runs` gathers the commands over runs: `_query` those that look, `_change` those that
change something, `_top` the live table; they share `_options`, and `_text`, runs as text. `_store` is the care of a database.
"""

from mechanicd.cli._main import main

__all__ = ["main"]
