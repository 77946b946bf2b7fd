"""What each method of the contract takes: a role, and where. No server starts with a method that has no rule."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mechanicd.access import Principal, Role
from mechanicd.service._sketches import MOST_RUNS
from mechanicd.v1 import names, run_service_pb2, tuner_service_pb2

READ, WRITE, ADMIN = Role


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method takes.

    Attributes:
        role: the role.
        by: what in its request says the project: the names of runs, a parent, or a session. A "stream" has sessions in each
            message.
        runs: the names of runs in a request.
        admin: requests that take the role admin, whatever `role` is.
        change: whether it is worth a line in the audit.
    """

    role: Role
    by: Literal["run", "parent", "session", "stream"] = "run"
    runs: Callable[[Any], Sequence[str]] = lambda request: (request.name,)
    admin: Callable[[Any], bool] = lambda request: False
    change: bool = False


def _fences(request: Any) -> bool:
    return bool(request.fence)


def _no_runs(request: Any) -> Sequence[str]:
    return ()


RULES: Final = {
    "TunerService": {
        "OpenSession": Rule(WRITE, change=True),
        "Step": Rule(WRITE, "session", _no_runs),
        "StreamSteps": Rule(WRITE, "stream", _no_runs),
        "Flush": Rule(WRITE, "session", _no_runs),
        "CloseSession": Rule(WRITE, "session", _no_runs, change=True),
    },
    "RunService": {
        "GetRun": Rule(READ),
        "ListRuns": Rule(READ, "parent", _no_runs),
        "WatchRuns": Rule(READ, "parent", _no_runs),
        "SketchRuns": Rule(READ, runs=lambda request: request.names[:MOST_RUNS]),  # the method refuses more
        "QuerySeries": Rule(READ),
        "UpdateRun": Rule(WRITE, runs=lambda request: (request.run.name,), change=True),
        "CloseRun": Rule(WRITE, admin=_fences, change=True),
        "RewindRun": Rule(WRITE, admin=_fences, change=True),
        # To take a run out of its project, or to bring it into another one, is not for those who work in one.
        "ForkRun": Rule(
            WRITE,
            runs=lambda request: (request.source, request.name),
            admin=lambda request: _leaves(request.source, request.name),
            change=True,
        ),
        "RenameRun": Rule(
            WRITE,
            runs=lambda request: (request.name, request.new_name),
            admin=lambda request: _fences(request) or _leaves(request.name, request.new_name),
            change=True,
        ),
        "ArchiveRun": Rule(ADMIN, change=True),
        "RestoreRun": Rule(ADMIN, change=True),
        "DeleteRun": Rule(ADMIN, change=True),
    },
}
"""By service and method."""

_PACKAGE: Final = tuner_service_pb2.DESCRIPTOR.package
_OPEN: Final = ("grpc.health.v1.", "grpc.reflection.")
"""What anybody may ask: whether the server is well, and what the public contract says."""


def rule_of(path: str) -> Rule | None:
    """The rule of a method by its path, `/mechanicd.v1.RunService/GetRun`; None if it is open to everyone.

    Raises:
        KeyError: there is none.
    """
    service, _, method = path.lstrip("/").partition("/")
    if service.startswith(_OPEN):
        return None
    package, _, name = service.rpartition(".")
    if package != _PACKAGE:
        raise KeyError(path)
    return RULES[name][method]


def check_complete() -> None:
    """Raises KeyError if a method of the contract has no rule."""
    for file in (tuner_service_pb2, run_service_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule_of(f"/{service.full_name}/{method.name}")


def require(principal: Principal, rule: Rule, request: Any) -> None:
    """Checks what a request itself says; what its session says, if `rule.by` is one, comes on top.

    Names that are not well-formed say nothing: the method refuses them.

    Raises:
        Denied: PERMISSION_DENIED.
    """
    role = ADMIN if rule.admin(request) else rule.role
    if principal.allows(role, None):
        return
    for project in _projects(rule, request) or {principal.project or None}:
        principal.require(role, project)


def narrow(principal: Principal, rule: Rule, request: Any) -> None:
    """Lets who works in one project, and asks for the runs of all, have those of this project."""
    if rule.by == "parent" and principal.project and request.parent == f"projects/{names.ALL_PROJECTS}":
        request.parent = f"projects/{principal.project}"


def _projects(rule: Rule, request: Any) -> set[str | None]:
    if rule.by == "parent":
        return set(_parsed((request.parent,), names.parse_project))
    return set(_parsed(rule.runs(request), lambda name: names.parse_run(name).project))


def _parsed(texts: Iterable[str], parse: Callable[[str], str | None]) -> Iterable[str | None]:
    for text in texts:
        try:
            yield parse(text)
        except names.MalformedName:
            continue


def _leaves(source: str, target: str) -> bool:
    """Whether two runs are in different projects."""
    return len(set(_parsed((source, target), lambda name: names.parse_run(name).project))) > 1
