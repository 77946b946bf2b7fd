"""`mechanicd runs …`: the group of commands over runs; they use the same gRPC contract as any client."""

import click

from mechanicd.cli import _change, _query
from mechanicd.cli._top import top

__all__ = ["runs", "top"]


@click.group()
def runs() -> None:
    """List, inspect and export runs, and change them."""


for command in (
    *(_query.list_, _query.show, _query.watch, _query.export),
    *(_change.rewind, _change.fork, _change.rename, _change.close, _change.delete),
    *(_change.archive, _change.restore, _change.label),
):
    runs.add_command(command)
