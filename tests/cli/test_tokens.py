"""`mechanicd tokens …`: made, listed and revoked on a store; a secret is shown once."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mechanicd.access import Role, parse
from mechanicd.cli import main
from mechanicd.store import open_store
from mechanicd.v1 import local_token

TOKEN = re.compile(r"mech_[a-z0-9]{12}_[A-Za-z0-9_-]{43}")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["tokens", *words])


def read(*words: str) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*words: str) -> tuple[str, str]:
    done = run(*words, "--json")
    assert done.exit_code == 1
    error = json.loads(done.stderr)["error"]
    return error["reason"], error["message"]


def test_a_token_is_made_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/m.db")
    done = run("create", *store, "--project", "p", "--role", "write", "--expires", "90d", "--note", "tab\there\x1b[2J")
    assert done.exit_code == 0, done.output
    text = done.stdout.strip()
    assert TOKEN.fullmatch(text), "the token alone is on stdout, for TOKEN=$(…)"
    assert "write in project p until" in done.stderr
    made = read("create", *store, "--project", "-", "--role", "admin")
    opened = open_store(store[1])
    first, second = opened.tokens()
    opened.close()
    id_, secret = parse(text) or ("", "")
    assert (first.id, first.project, first.role, first.note) == (id_, "p", Role.WRITE, "tab\there\x1b[2J")
    assert first.expire_time - first.create_time == 90 * 86_400 * 10**9
    assert (second.id, second.project, second.role, second.expire_time) == (made["id"], "", Role.ADMIN, 0)

    secrets = [secret, made["token"][-43:]]
    for listed in (
        run("list", *store).output,
        json.dumps(read("list", *store)),
        (tmp_path / "m.db").read_bytes().decode("latin1"),
    ):
        assert id_ in listed
        assert made["id"] in listed
        assert not any(each in listed for each in secrets)
    assert "\x1b" not in run("list", *store).output
    assert [(each["project"], each["state"]) for each in read("list", *store)] == [("p", "good"), ("-", "good")]

    assert refused("revoke", *store, id_, "aaaaaaaaaaaa")[0] == "TOKEN_NOT_FOUND"
    assert read("list", *store)[0]["state"] == "good", "nothing was revoked"
    reason, message = refused("revoke", *store, text)
    assert reason == "TOKEN_NOT_FOUND"
    assert secret not in message
    assert read("revoke", *store, id_)[0]["state"] == "revoked"
    assert [each["state"] for each in read("list", *store)] == ["revoked", "good"]


def test_a_store_that_is_made_for_a_token_is_named_since_its_server_may_have_another(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/m.db")
    reason, message = refused("revoke", *store, "aaaaaaaaaaaa")
    assert (reason, "no such file" in message) == ("STORE_NOT_WRITABLE", True)
    assert not (tmp_path / "m.db").exists()
    first, second = (run("create", *store, "--project", "p", "--role", "read") for _ in range(2))
    assert f"{tmp_path}/m.db is a new store" in first.stderr
    assert "--store" in first.stderr
    assert "new store" not in second.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--project", "a/b"], "MALFORMED_NAME"),
        (["--project", ""], "MALFORMED_NAME"),
        (["--note", "x" * 201], "INVALID_SETTING"),
        (["--store", "sqlite:///:memory:"], "STORE_IN_MEMORY"),
        (["--store", "sqlite:////nowhere/at/all.db"], "STORE_NOT_WRITABLE"),
    ],
)
def test_what_makes_no_token_is_refused_by_name(options: list[str], reason: str, tmp_path: Path) -> None:
    given = ["create", "--store", f"sqlite:///{tmp_path}/m.db", "--project", "p", "--role", "read"]
    assert refused(*given, *options)[0] == reason


@pytest.mark.parametrize("period", ["0d", "90", "-1d", "1y", "3651d", "99999999d", "1.5d", "٣d", ""])
def test_a_period_is_a_number_and_a_unit(period: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/m.db"
    done = run("create", "--store", store, "--project", "p", "--role", "read", "--expires", period)
    assert done.exit_code == 2
    assert "90d" in done.output


def test_a_damaged_token_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/m.db")
    lost, kept = (read("create", *store, "--project", "p", "--role", "read")["id"] for _ in range(2))
    with sqlite3.connect(tmp_path / "m.db") as db:
        db.execute("UPDATE tokens SET checksum = 0 WHERE id = ?", (lost.encode(),))
    db.close()
    done = run("list", *store)
    assert f"token {lost} can't be read" in done.stderr
    assert kept in done.stdout


def test_the_local_token_is_printed_where_the_server_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    assert refused("local", "--target", "127.0.0.1:50051")[0] == "TOKEN_NOT_FOUND"
    assert refused("local", "--target", "nonsense")[0] == "TOKEN_NOT_FOUND"
    path = local_token.path("localhost:50051")
    path.parent.mkdir(parents=True)
    path.write_text("mech_x\n")
    assert run("local", "--target", "https://127.0.0.1:50051").output == "mech_x\n"
    assert read("local", "--target", "127.0.0.1:50051") == {"token": "mech_x"}
    local_token.path("127.0.0.1:8080").write_text("mech_y\n")
    assert run("local", "--page").output == "http://127.0.0.1:8080/#token=mech_y\n"
    assert run("local", "--page", "https://localhost:8080/").output == "https://localhost:8080/#token=mech_y\n"
    assert run("local", "--page", "http://[::]:8080").output == "http://[::1]:8080/#token=mech_y\n"
    assert run("local", "--page", "http://10.0.0.0:8080").output == "http://10.0.0.0:8080/#token=mech_y\n"
    assert read("local", "--page", "localhost:8080") == {"token": "mech_y", "link": "http://localhost:8080/#token=mech_y"}
    assert refused("local", "--page", "http://127.0.0.1:8081")[0] == "TOKEN_NOT_FOUND"
