"""`mechanicd runs …` and `mechanicd top`: runs from the command line, over the same contract as everybody else.

`_options` is what the commands share, `_text` runs as text, `_look` the commands that look, `_change` those that change
something, `_top` the live table.
"""

import click

from mechanicd.cli_runs import _change, _look
from mechanicd.cli_runs._text import run_dict, sparkline
from mechanicd.cli_runs._top import top

__all__ = ["run_dict", "runs", "sparkline", "top"]


@click.group()
def runs() -> None:
    """Look at runs, export their history, take them back, fork and delete them."""


for command in (_look.list_, _look.show, _look.watch, _look.export, _change.rewind, _change.fork, _change.delete):
    runs.add_command(command)
