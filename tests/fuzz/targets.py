"""All targets, and how a parser without one is found: by the names that parsers have in this code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import mechanicd
from tests.fuzz import calls, commands, connections, page, parsers, stored
from tests.fuzz.harness import Target

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (*parsers.TARGETS, *stored.TARGETS, *commands.TARGETS, *calls.TARGETS, *connections.TARGETS, *page.TARGETS)
}

_PARSER: Final = re.compile(r"parse\w*|from_\w+|unpack\w*|[a-z]\w*_in|convert|filled|translate")
_PACKAGES: Final = ("access", "cli", "client", "dashboard", "runs", "service", "store", "tls", "tuner", "v1")
NOTHING_FROM_OUTSIDE: Final = {
    "mechanicd.client._spool_history.start_in": "reads a spool file by read_history",
    "mechanicd.dashboard._config.PageConfig.from_line": "what the serving process wrote",
    "mechanicd.dashboard._login.Login.sign_in": "a route of the page",
    "mechanicd.service._convert.error_in": "what error_out made",
    "mechanicd.service._session_start.from_scratch": "a question",
    "mechanicd.tuner._rules_numpy.from_bytes": "a part of TunerState.from_bytes",
    "mechanicd.tuner._rules_numpy.from_rows": "what is in memory",
    "mechanicd.tuner._state.TunerState.from_rows": "what is in memory",
}
"""Functions that are called as parsers are, and why they need no target."""


def covered() -> set[str]:
    """The functions that targets say they are about."""
    return {f"{each.__module__}.{each.__qualname__}" for target in TARGETS.values() for each in target.covers}


def parser_names() -> set[str]:
    """Every function that is called as parsers are, wherever it is."""
    return {
        f"mechanicd.{package}.{name}" if file.stem == "__init__" else f"mechanicd.{package}.{file.stem}.{name}"
        for root in map(Path, mechanicd.__path__)
        for package in _PACKAGES
        for file in sorted((root / package).glob("*.py"))
        if not file.stem.endswith(("_pb2", "_pb2_grpc"))
        for name in _parsers(ast.parse(file.read_text()).body)
    }


def _parsers(body: list[ast.stmt], inside: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _parsers(node.body, f"{inside}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            request = node.name == "of" and inside.endswith("Request.")
            if _PARSER.fullmatch(node.name) or request:
                yield f"{inside}{node.name}"
