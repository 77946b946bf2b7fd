"""`mechanicd demo`: a small fleet of real training runs on one real server, each compared with the sweep that it replaces.

`_fleet` lists what is trained, from `_data`, `models`, `_bases` and `lion`; `train` is one training process, which
reports through `_reports`. `processes` starts and stops processes, `_scenario` runs the demo (a kill, a resume, the sweeps),
`_progress` and `_outcome` collect the results, `_display` shows them, and `_command` is the command. The modules without an
underscore are for other programs too: the experiments use them.
"""

from mechanicd.demo._command import demo

__all__ = ["demo"]
