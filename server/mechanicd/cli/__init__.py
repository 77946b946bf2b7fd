"""The command line: `mechanicd serve | demo | runs … | store … | top`.

`_main` is the program and `_serve` the server that it starts. `_runs` names the commands over runs: `_query` and `_export` have
those that read, `_change` those that change something, `_top` the live table. They share `_options`, `_output` (how results and
errors are printed) and `_text` (runs as text). `_store` is database maintenance.
"""

from mechanicd.cli._main import main

__all__ = ["main"]
