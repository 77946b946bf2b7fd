"""Resource names, and what the contract calls well-formed. See Run.name and Run.labels in resources.proto."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

DOMAIN: Final = "mechanicd"
"""The domain of every google.rpc.ErrorInfo."""

TIME_HEADER: Final = "x-mechanicd-time"
"""The header of an answer to ListRuns and WatchRuns that has the server's time, ns since 1970."""

ALL_PROJECTS: Final = "-"

_SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_PROJECT: Final = re.compile(_SEGMENT)
_RUN_ID: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,7}}")
_ALPHABET: Final = "1 to 63 characters of A–Z a–z 0–9 . _ - each, beginning with a letter or a digit"

MAX_LABELS: Final = 64
MAX_LABEL_VALUE: Final = 256


class MalformedName(ValueError):
    """A name or a label is not well-formed. `reason` is a name of mechanicd.v1.ErrorReason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RunName(NamedTuple):
    """The two parts of `projects/{project}/runs/{run}`."""

    project: str
    run: str

    def __str__(self) -> str:
        return f"projects/{self.project}/runs/{self.run}"


def run_name(project: str, run: str) -> RunName:
    """A run's name from its parts, checked.

    Raises:
        MalformedName: MALFORMED_NAME.
    """
    if not isinstance(project, str) or not _PROJECT.fullmatch(project):
        raise MalformedName("MALFORMED_NAME", f"project {project!r}: a project is one segment of {_ALPHABET}")
    if not isinstance(run, str) or not _RUN_ID.fullmatch(run):
        raise MalformedName("MALFORMED_NAME", f"run {run!r}: a run is one to eight segments joined by '/', {_ALPHABET}")
    return RunName(project, run)


def parse_run(name: str) -> RunName:
    """Reads `projects/{project}/runs/{run}`.

    Raises:
        MalformedName: MALFORMED_NAME.
    """
    parts = name.split("/", 3)
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != "runs":
        raise MalformedName("MALFORMED_NAME", f"{name!r}: expected projects/{{project}}/runs/{{run}}")
    return run_name(parts[1], parts[3])


def parse_project(parent: str) -> str | None:
    """Reads `projects/{project}`; None for `projects/-`, all of them.

    Raises:
        MalformedName: MALFORMED_NAME.
    """
    head, _, project = parent.partition("/")
    if head == "projects" and project == ALL_PROJECTS:
        return None
    if head != "projects" or not _PROJECT.fullmatch(project):
        raise MalformedName("MALFORMED_NAME", f"{parent!r}: expected projects/{{project}}, or projects/- for all of them")
    return project


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels as a dict, checked against the limits of Run.labels.

    Raises:
        MalformedName: INVALID_LABELS.
    """
    if not isinstance(labels, Mapping):
        raise MalformedName("INVALID_LABELS", f"labels {labels!r}: expected a mapping such as {{'model': 'bert'}}")
    if len(labels) > MAX_LABELS:
        raise MalformedName("INVALID_LABELS", f"{len(labels)} labels; a run has at most {MAX_LABELS}")
    for key, value in labels.items():
        if not isinstance(key, str) or not _PROJECT.fullmatch(key):
            raise MalformedName("INVALID_LABELS", f"label key {key!r}: a key is {_ALPHABET}")
        if not isinstance(value, str) or len(value) > MAX_LABEL_VALUE:
            raise MalformedName(
                "INVALID_LABELS", f"label {key}={value!r}: a value is a string of up to {MAX_LABEL_VALUE} characters"
            )
        if not is_text(value):
            raise MalformedName("INVALID_LABELS", f"label {key}={value!r}: a value is Unicode text, without surrogates")
    return dict(labels)


def is_text(value: str) -> bool:
    """Whether a string is Unicode text, which can be sent. Bytes that were no UTF-8, as in a command line, are surrogates."""
    return value.isprintable() or not any("\ud800" <= character <= "\udfff" for character in value)


def plain(text: str, keep: str = "") -> str:
    """The text as a terminal and a log may have it: what is not printable is escaped, but for the characters to keep.

    Not printable are control characters, so an escape sequence and the end of a line too, and what changes the direction of
    text, has no width or is no character. Whatever comes from another process goes through here before people see it.
    """
    return (
        text
        if text.isprintable()
        else "".join([each if each.isprintable() or each in keep else _escaped(each) for each in text])
    )


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]
