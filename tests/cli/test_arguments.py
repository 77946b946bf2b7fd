"""Options as people and programs get them wrong: one line, never a traceback, and nothing has changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mechanicd.cli import main

New = Callable[..., Any]
HUGE = "9" * 23
NOT_UTF_8 = os.fsdecode(b"caf\xe9")


def refused(*arguments: str) -> str:
    """The text of a command that must fail with a usage error."""
    done = CliRunner().invoke(main, list(arguments))
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert "ready" not in done.output
    return done.output


@pytest.mark.parametrize(
    "options",
    [
        *[("--flush-interval", value) for value in ("nan", "inf", "-1", "11", "x")],
        *[("--grace", value) for value in ("nan", "inf", "1e300")],
        *[("--keep-days", value) for value in ("nan", "inf", "1e300", "36501", "-1")],
        *[("--keep-steps", value) for value in (HUGE, "-1", "1.5", "nan")],
        *[("--silent-after", *values) for values in (("nan", "nan"), ("20", "nan"), ("inf", "30"), ("20", "inf"), ("0", "30"))],
    ],
    ids=" ".join,
)
def test_serve_refuses_at_its_start(options: tuple[str, ...], tmp_path: Path) -> None:
    store = tmp_path / "x.db"
    text = refused("serve", "--grpc", "127.0.0.1:0", "--http", "off", "--store", f"sqlite:///{store}", *options)
    assert options[0] in text
    assert not store.exists()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:٣", "127.0.0.1:65536", "127.0.0.1:" + "9" * 5000, "127.0.0.1:+1", "127.0.0.1:1_0"]
)
def test_serve_refuses_a_port_that_is_none(address: str, tmp_path: Path) -> None:
    options = ["--http", "off", "--store", f"sqlite:///{tmp_path / 'x.db'}", "--json"]
    done = CliRunner().invoke(main, ["serve", "--grpc", address, *options])
    assert (done.exit_code, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["reason"] == "MALFORMED_ADDRESS"
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "r", "--first", HUGE),
        ("export", "r", "--last", HUGE),
        ("export", "r", "--first", "0"),
        ("export", "r", "--branch", HUGE),
        ("export", "r", "--branch", "-1"),
        ("rewind", "r", HUGE, "--yes"),
        ("fork", "r", "n", "--step", HUGE),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_step_beyond_all_steps_is_a_usage_error(arguments: tuple[str, ...], as_json: bool) -> None:
    assert "is not in the range" in refused("runs", *arguments, *["--json"] * as_json)


@pytest.mark.parametrize(
    "url",
    [
        *("hooks.example/secret", "ftp://h/secret", "http://", "http:///secret", "http://h:99999/secret", "http://h:secret/"),
        *(
            "https://me:secret@h/",
            "http://h/sec ret",
            "http://h/secret\n",
            f"http://h/secret{NOT_UTF_8}",
            "http://[secret/",
            "secret",
        ),
    ],
)
def test_a_webhook_that_is_no_address_is_refused_and_not_shown(url: str) -> None:
    text = refused("serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--webhook", url)
    assert "--webhook" in text
    assert "sec" not in text


@pytest.mark.parametrize("address", [f"unix:/tmp/{NOT_UTF_8}", f"{NOT_UTF_8}:0"])
def test_an_address_that_is_no_text_is_refused_by_name(address: str, tmp_path: Path) -> None:
    options = ["--grpc", address, "--http", "off", "--store", f"sqlite:///{tmp_path / 'x.db'}", "--json"]
    done = CliRunner().invoke(main, ["serve", *options])
    assert (done.exit_code, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["reason"] == "MALFORMED_ADDRESS"


@pytest.mark.parametrize("step", ["١٢", "1_000", "0x10", "1e3", "nan", " 5", "5 ", "+-5", "9" * 5000, "²", ""])
def test_a_step_in_no_plain_digits_is_a_usage_error(step: str) -> None:
    assert "is not" in refused("runs", "export", "r", "--first", step)
    assert "is not" in refused("runs", "rewind", "r", step, "--yes")
    assert "is not" in refused("serve", "--keep-steps", step, "--grpc", "127.0.0.1:0", "--http", "off")


@pytest.mark.parametrize("seconds", ["١", "1_0", "0x1", "1e400", "-inf", "1,5"])
def test_seconds_in_no_plain_digits_are_a_usage_error(seconds: str) -> None:
    assert "is not" in refused("serve", "--grace", seconds, "--grpc", "127.0.0.1:0", "--http", "off")
    assert "is not" in refused("top", "--interval", seconds)


@pytest.mark.parametrize("days", ["nan", "inf", "1e300", "-1"])
def test_vacuum_refuses_what_is_no_number_of_days(days: str, tmp_path: Path) -> None:
    assert "--keep-days" in refused(
        "store", "vacuum", "--store", f"sqlite:///{tmp_path / 'x.db'}", "--keep-days", days, "--yes"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("list", "--filter", NOT_UTF_8), "INVALID_FILTER"),
        (("list", "--target", f"{NOT_UTF_8}:1"), "INVALID_TARGET"),
        (("list", "--project", NOT_UTF_8), "MALFORMED_NAME"),
        (("watch", "--filter", NOT_UTF_8), "INVALID_FILTER"),
        (("show", f"projects/{NOT_UTF_8}/runs/a"), "MALFORMED_NAME"),
        (("fork", "a", f"projects/p/runs/{NOT_UTF_8}"), "MALFORMED_NAME"),
        (("delete", "a", NOT_UTF_8, "--yes"), "MALFORMED_NAME"),
        (("label", "a", f"{NOT_UTF_8}=1"), "INVALID_LABELS"),
        (("label", "a", f"note={NOT_UTF_8}"), "INVALID_LABELS"),
        (("label", "a", "--remove", NOT_UTF_8), "INVALID_LABELS"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_no_unicode_text_is_refused_by_name(arguments: tuple[str, ...], reason: str, as_json: bool) -> None:
    done = CliRunner().invoke(main, ["runs", *arguments, *["--json"] * as_json])
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    if as_json:
        assert json.loads(done.stderr)["error"]["reason"] == reason
    else:
        assert done.stderr.endswith(f"[{reason}]\n")


def test_a_byte_of_the_real_command_line_that_is_no_utf_8() -> None:
    command = [sys.executable.encode(), b"-m", b"mechanicd.cli", b"runs", b"list", b"--filter", b"\xff"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.endswith(b"[INVALID_FILTER]\n")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("answer", "done"), [("", False), ("n\n", False), ("\n", False), ("y\n", True), ("YES\n", True)])
def test_json_without_yes_takes_an_answer_and_prints_only_json(
    train: New, server: Any, project: str, answer: str, done: bool
) -> None:
    train("a", 5, close="RUN_STATUS_FINISHED")
    where = ("--target", server.target, "--project", project)
    for arguments in (("rewind", *where, "a", "2"), ("delete", *where, "a")):
        told = CliRunner().invoke(main, ["runs", *arguments, "--json"], input=answer)
        assert told.exit_code == (0 if done else 1)
        if done:
            assert json.loads(told.stdout)
            assert told.stderr == ""
        else:
            assert told.stdout == ""
            assert json.loads(told.stderr)["error"]["reason"] == "NOT_CONFIRMED"


def test_json_without_yes_vacuums_nothing(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'x.db'}"
    told = CliRunner().invoke(main, ["store", "vacuum", "--store", store, "--keep-days", "1", "--json"], input="")
    assert (told.exit_code, told.stdout) == (1, "")
    assert json.loads(told.stderr)["error"]["reason"] == "NOT_CONFIRMED"
    assert not (tmp_path / "x.db").exists()
