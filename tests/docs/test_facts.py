"""What the code has is documented, and what is documented exists: flags, settings, routes, methods, reasons, environment."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from mechanicd.cli import main
from mechanicd.client._run_name import WORDS
from mechanicd.dashboard._app import make_app
from mechanicd.dashboard._request import SeriesRequest
from mechanicd.tuner import TunerConfig
from mechanicd.v1 import errors_pb2, run_service_pb2, tuner_service_pb2
from tests.docs.pages import DOCS, PAGES, ROOT

CLI, ERRORS, CONTRACT = (DOCS[f"docs/{name}.md"] for name in ("cli", "errors", "contract"))
SOURCES = [
    path
    for root in ("server", "clients/mechanicd", "clients/experiments", "proto")
    for path in sorted((ROOT / root).rglob("*.py"))
    if "node_modules" not in path.parts and not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


# ---- flags


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*path, name))


COMMANDS = {path: command for path, command in commands() if not isinstance(command, click.Group)}
SHARED = {"--json", "--target", "--project", "--store"}


def flags(command: click.Command) -> set[str]:
    return {
        word for option in command.params if isinstance(option, click.Option) for word in (*option.opts, *option.secondary_opts)
    }


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section {title!r}"
    return found[1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_command_has_a_section_with_all_its_flags(path: tuple[str, ...]) -> None:
    title = "mechanicd store" if path[0] == "store" else " ".join(("mechanicd", *path))
    text = section(CLI, title)
    assert {flag for flag in flags(COMMANDS[path]) - SHARED if f"`{flag}" not in text} == set()


def test_shared_flags_are_documented() -> None:
    assert {flag for flag in SHARED if f"`{flag}" not in CLI} == set()


def test_each_documented_flag_exists() -> None:
    known = {flag for command in COMMANDS.values() for flag in flags(command)} | {"--help", "--version"}
    elsewhere = {"docs/internals.md"}  # flags of the experiments
    elsewhere |= {page for page in DOCS if page.startswith("docs/deploy-")}  # of docker, helm, sbatch; ours: tests/deploy
    for page, text in DOCS.items():
        if page not in elsewhere:
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known, page


def test_each_documented_command_exists() -> None:
    known = {" ".join(path) for path in COMMANDS}
    groups = {path[0] for path in COMMANDS if len(path) > 1}
    for page, text in PAGES.items():
        for words in re.findall(r"`?mechanicd ((?:runs |store )?[a-z]+)\b(?=[` ])", "\n".join(re.findall(r"`[^`\n]+`", text))):
            assert words in known | groups, f"{page}: mechanicd {words}"


# ---- settings


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def documented_settings(page: str) -> set[str]:
    table = section(page, "Settings of `mechanize`").partition("\n### ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_settings_of_mechanize_for_pytorch() -> None:
    torch = pytest.importorskip("mechanicd.torch")
    assert documented_settings(DOCS["docs/pytorch.md"]) == set(parameters(torch.mechanize))


def test_settings_of_mechanize_for_jax() -> None:
    jax = pytest.importorskip("mechanicd.jax")
    page = DOCS["docs/jax.md"]
    named = section(page, "Settings of `mechanize`")
    assert {name for name in parameters(jax.mechanize) if f"`{name}`" not in named} == set()
    assert documented_settings(page) <= set(parameters(jax.mechanize))


def test_settings_of_the_tuner() -> None:
    conventions = DOCS["docs/pytorch.md"].partition("### Conventions")[2]
    assert {field.name for field in fields(TunerConfig) if f"`{field.name}`" not in conventions} == set()


# ---- routes and methods


def test_each_route_is_documented_and_each_documented_route_exists() -> None:
    app = make_app(cast(Any, SimpleNamespace(config=SimpleNamespace(guarded=False))))
    there = {
        f"{'POST' if 'POST' in (getattr(route, 'methods', None) or ()) else 'GET'} {getattr(route, 'path', '')}"
        for route in app.routes
    }
    named = re.findall(r"`((?:GET|POST) /[\w/.]*)", CONTRACT.partition("## The HTTP API")[2])
    assert {name.rstrip("/") for name in named} == {name.rstrip("/") for name in there}


def test_the_fields_of_a_request_for_curves_are_documented() -> None:
    (row,) = re.findall(r"^\| `POST /api/v1/series` .*$", CONTRACT, re.MULTILINE)
    assert {field.name for field in fields(SeriesRequest) if f"`{field.name}`" not in row} == set()


def test_each_method_is_documented() -> None:
    for module in (tuner_service_pb2, run_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert service.name in CONTRACT
            assert {method.name for method in service.methods if f"`{method.name}`" not in CONTRACT} == set()


# ---- reasons

REASON = re.compile(r"[A-Z]{2,}(_[A-Z]+)*")
NO_ERROR_CALLS = {
    *("option", "or_by_file", "BadParameter", "add_argument"),
    *("get", "setdefault", "basicConfig", "setLevel"),
    *("Request", "execute", "close", "convert"),
}
"""Calls whose words in capitals are no reasons: names of options, log levels, SQL and the like."""


def strings(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be: itself, or either side of a condition."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)


def raised(path: Path) -> Iterator[str]:
    """Each reason that a module may give: an argument of a call, a class's `reason`, an entry of a table of errors."""
    for node in ast.walk(ast.parse(path.read_text())):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [] if name in NO_ERROR_CALLS else [*node.args[:3], *(each.value for each in node.keywords)]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            given = [node.value] if "reason" in (getattr(target, "id", "") for target in targets) else []
        elif isinstance(node, ast.Dict) and path.name == "_errors.py":
            given = [part for part in (*node.keys, *node.values) if part is not None]
        for text in (text for part in given for text in strings(part)):
            yield text
            yield from re.findall(r"\[([A-Z_]+)\]$", text)  # the end of an error's line


def reasons() -> set[str]:
    found = {word for path in SOURCES for word in raised(path) if REASON.fullmatch(word)}
    return found | set(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


def test_each_reason_is_explained_and_each_explained_one_exists() -> None:
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", ERRORS, re.MULTILINE)) == reasons()


def test_no_page_names_a_reason_that_is_not_there() -> None:
    of_schedulers = {variable for variables in WORDS.values() for variable in variables}
    of_others = {"GRPC_ENABLE_FORK_SUPPORT", "NOT_SERVING", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"}
    known = reasons() | environment(SOURCES + TESTS) | of_schedulers | of_others
    for page, text in DOCS.items():
        named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text))
        assert named <= known, page


# ---- the environment


def environment(files: list[Path]) -> set[str]:
    """Names of environment variables, as the code writes them, in Python and for the page's development server."""
    pattern = re.compile(r"[\"']((?:MECHANICD|GRPC|XDG)_[A-Z_]+|CHROMIUM|[A-Z]+_NUM_THREADS)[\"']")
    found = {name for path in files for name in pattern.findall(path.read_text())}
    return found | set(re.findall(r"process\.env\.([A-Z_]+)", (ROOT / "server/web/vite.config.ts").read_text()))


def test_each_environment_variable_is_documented_and_each_documented_one_exists() -> None:
    internal = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"}  # set for our own children
    table = set(re.findall(r"`([A-Z][A-Z_]+)`", section(DOCS["docs/operations.md"], "Environment variables")))
    assert environment(SOURCES) - internal - table == set()
    assert {name for name in table if name.startswith(("MECHANICD", "GRPC", "XDG", "CHROMIUM"))} <= environment(SOURCES + TESTS)
    everywhere = {name for text in PAGES.values() for name in re.findall(r"(?<![A-Z_])MECHANICD_[A-Z_]+", text)}
    assert everywhere <= table
