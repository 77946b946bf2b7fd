"""Stdout of any encoding, with a reader that leaves, on a full disk, or closed: all is printed, or the command says why not."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

from mechanicd.cli import main

New = Callable[..., Any]
ENCODINGS = ["ascii", "cp1252", "cp437", "latin-1", "utf-8"]
HOSTILE = "\x1b[2J\x9b1m café ∞ → 温 \r\n\x07"


def printed(encoding: str, *arguments: str) -> tuple[int, str, str]:
    """A command line in this process, with strict streams of an encoding: its code, and the text that a reader decodes."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, "strict", newline="") for _ in "oe")
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main(arguments, prog_name="mechanicd")
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    return int(caught.value.code or 0), *texts


@pytest.fixture
def where(server: Any, project: str, train: New, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A run of two groups that steps, with hostile texts; the options that lead to it."""
    for name in [name for name in os.environ if name.startswith("MECHANICD_")]:
        monkeypatch.delenv(name)
    labels = {"constructor": HOSTILE, "size": "größer"}
    train("a", 40, groups=("Köpfe", "温\x1b[31m"), labels=labels, close="RUN_STATUS_FAILED", message=f"E: {HOSTILE}")
    return ("--target", server.target, "--project", project)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_in_every_encoding(encoding: str, where: tuple[str, ...]) -> None:
    for command in (
        *(
            ("runs", "list"),
            ("runs", "list", "--json"),
            ("runs", "list", "--format", "csv"),
            ("runs", "list", "--format", "jsonl"),
        ),
        *(("runs", "show", "a"), ("runs", "show", "a", "--json"), ("runs", "export", "a"), ("runs", "export", "a", "--json")),
        *(("top", "--once"), ("runs", "fork", "a", f"b{encoding}"), ("runs", "rewind", f"b{encoding}", "20", "--yes")),
        *(("runs", "delete", f"b{encoding}", "--yes"),),
    ):
        code, out, err = printed(encoding, *command, *where)
        assert (code, err) == (0, ""), command
        assert out, command
        if command == ("runs", "list"):
            assert (" ... " if encoding in ("ascii", "cp437", "latin-1") else " … ") in out
    for command in (
        ("--help",),
        ("runs", "list", "--help"),
        ("serve", "--help"),
        ("demo", "--help"),
        ("store", "check", "--help"),
    ):
        assert printed(encoding, *command)[0] == 0
    for command in (("show", "none"), ("show", "größer"), ("list", "--filter", "温"), ("list", "--filter", "caf\udce9")):
        code, out, err = printed(encoding, "runs", *command, *where)
        assert (code, out) == (1, ""), command
        assert err.startswith("error: "), command
        assert err.count("\n") == 1


def test_what_a_terminal_would_obey_is_escaped(where: tuple[str, ...]) -> None:
    for command in (("runs", "list"), ("runs", "show", "a"), ("top", "--once")):
        out = printed("utf-8", *command, *where)[1]
        assert r"\x1b[2J\x9b1m café ∞ → 温" in out
        assert not set(out) & {"\x1b", "\x9b", "\r", "\x07"}


def test_exports_are_exact_where_the_encoding_has_the_names(where: tuple[str, ...]) -> None:
    rows = [json.loads(line) for line in printed("ascii", "runs", "export", "a", "--json", *where)[1].splitlines()]
    assert {row["scale_group"] for row in rows} == {"Köpfe", "温\x1b[31m"}
    assert "Köpfe" in printed("cp1252", "runs", "export", "a", *where)[1]
    assert "温\x1b[31m" in printed("utf-8", "runs", "export", "a", *where)[1]


def shell(line: str, **environment: str) -> tuple[int, bytes, bytes]:
    """A line for bash, with `mechanicd` in it; the exit code of its first command."""
    mechanicd = f"{shlex.quote(sys.executable)} -m mechanicd.cli"
    line = line.replace("mechanicd", mechanicd, 1) + '; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_a_reader_that_leaves_ends_a_command_quietly(where: tuple[str, ...]) -> None:
    there = shlex.join(where)
    assert shell(f"mechanicd runs list {there} | true") == (141, b"", b"")
    code, out, err = shell(f"mechanicd runs export a {there} | head -1")
    assert (code, err) in [(141, b""), (0, b"")]  # 40 steps may fit into the pipe before `head` ends
    assert out.startswith(b"step,time,")
    assert shell("mechanicd runs list --help | true") == (141, b"", b"")


def test_a_full_disk_is_said_and_closed_streams_are_no_error(where: tuple[str, ...]) -> None:
    there = shlex.join(where)
    code, _, err = shell(f"mechanicd runs export a {there} > /dev/full")
    assert code == 1
    assert err.endswith(b"[OUTPUT_FAILED]\n")
    assert err.count(b"\n") == 1
    assert shell(f"mechanicd runs list {there} <&- >&-") == (0, b"", b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["PYTHONIOENCODING", "LC_ALL"],
)
def test_a_process_with_an_ascii_stdout_prints_its_table(environment: dict[str, str], where: tuple[str, ...]) -> None:
    code, out, err = shell(f"mechanicd runs list {shlex.join(where)}", **environment)
    assert (code, err) == (0, b"")
    assert b"failed" in out.decode("ascii").encode()


def test_an_answer_that_is_no_text_is_no_yes(where: tuple[str, ...]) -> None:
    code, _, err = shell(f"mechanicd runs delete a --json {shlex.join(where)} < <(printf '\\xff\\n')")
    assert code == 1
    assert b'"NOT_CONFIRMED"' in err
