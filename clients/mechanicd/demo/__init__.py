"""`mechanicd demo`: a small fleet of real trainings, tuned by a real server, beside the sweeps that it saves.

`_fleet` says what is trained; `_data`, `_models`, `_bases` and `_lion` are what it takes, and `train` is one training, in a
process of its own that tells what it does by `_reports`. `_launch` keeps the processes, `_conduct` the course of events,
`_progress` and `_outcome` what came of them, `_show` shows it, and `_command` is the command.
"""

from mechanicd.demo._command import demo

__all__ = ["demo"]
