"""Spools by their address: `file:///FOLDER` or `file:FOLDER` names a folder, and each run has one file in it. Pure."""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from mechanicd.client._arguments import without_secrets
from mechanicd.client._errors import InvalidArgument
from mechanicd.v1 import names

SUFFIX: Final = ".spool"
_SCHEME: Final = "file:"


def is_spool(target: str) -> bool:
    """Whether a target is a folder of spool files rather than a server."""
    return target[: len(_SCHEME)].lower() == _SCHEME


def folder(target: str) -> Path:
    """The folder that a target names, absolute.

    Args:
        target: `file:///ABSOLUTE/FOLDER`, or `file:FOLDER` relative to the working directory; `%20` is a space, and so on.

    Raises:
        InvalidArgument: INVALID_TARGET.
    """
    if not names.is_text(target):
        raise _invalid(target, "is not Unicode text")
    path = target[len(_SCHEME) :]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise _invalid(target, "names a host; a spool is on this machine")
        path = slash + path
        if os.name == "nt" and re.match(r"/[A-Za-z]:", path):
            path = path[1:]
    for sign, code, why in (("?", "%3F", "a query"), ("#", "%23", "a fragment"), (",", "%2C", "a list")):
        if sign in path:
            raise _invalid(target, f"has {why}, which a spool has not; a {sign} in the folder's name is {code}")
    decoded = unquote_to_bytes(path)
    if not decoded or b"\0" in decoded:
        raise _invalid(target, "names no folder")
    try:
        return Path(decoded.decode()).absolute()
    except UnicodeDecodeError:
        raise _invalid(target, "is not UTF-8 where it has % codes") from None


def file_of(spools: Path, run: str) -> Path:
    """The file of a run: `projects/p/runs/bert/seed0` is `p/bert/seed0.spool`.

    Args:
        spools: the folder.
        run: `projects/{project}/runs/{run}`.
    """
    project, name = names.parse_run(run)
    *parents, last = (project, *name.split("/"))
    # No run can be called `a.spool%`, so the folder of run a.spool/b is not in the way of the file of run a.
    return spools.joinpath(*(f"{part}%" if part.endswith(SUFFIX) else part for part in parents), last + SUFFIX)


def _invalid(target: str, what: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_TARGET", f"target {without_secrets(repr(target))} {what}; expected a folder, as in file:///data/spool"
    )
