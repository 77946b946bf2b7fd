"""`mechanicd runs …`: the group of commands over runs; they use the same gRPC contract as any client."""

from typing import Final

import click

from mechanicd.cli._main import LazyGroup

_COMMANDS: Final = {
    **{name: f"mechanicd.cli._change:{name}" for name in ("archive", "close", "delete", "fork", "label", "rename", "restore")},
    "export": "mechanicd.cli._export:export",
    "list": "mechanicd.cli._query:list_",
    "rewind": "mechanicd.cli._change:rewind",
    "show": "mechanicd.cli._query:show",
    "watch": "mechanicd.cli._query:watch",
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def runs() -> None:
    """List, inspect and export runs, and change them."""
