"""`mechanicd runs …` and `mechanicd top`: runs from the command line, over the same contract as everybody else.

`_options` is what the commands share, `_text` runs as text, `_query` the commands that look, `_change` those that change
something, `_top` the live table.
"""

import click

from mechanicd.cli import _change, _query
from mechanicd.cli._top import top

__all__ = ["runs", "top"]


@click.group()
def runs() -> None:
    """Look at runs, export their history, take them back, fork and delete them."""


for command in (_query.list_, _query.show, _query.watch, _query.export, _change.rewind, _change.fork, _change.delete):
    runs.add_command(command)
