"""The URL of a store: every file can be named, an option is refused by its name, and no password is ever shown."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from mechanicd.cli import main
from mechanicd.store import SQLiteStore, StoreError, StoreNotWritable, open_store, without_password

FILES = [
    "m.db",
    "with space.db",
    "100%.db",
    "a%20b.db",
    "run#1.db",
    "m.db#x",
    "ü.db",
    "a&b=c.db",
    "why?.db",
    "m.db?",
    "a?b",
    "'\".db",
    "x:memory:",
    "a:b.db",
]


@pytest.mark.parametrize("name", FILES)
def test_a_path_is_taken_as_it_is_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"sqlite:///{name}", f"sqlite:///{tmp_path / name}"):
        open_store(url).close()
        assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.lock"}
        readonly = open_store(url, readonly=True)
        assert readonly.list_runs(None, None, 1) == []
        readonly.close()


@pytest.mark.parametrize("options", ["timeout=30", "mode=ro&cache=shared", "vfs=unix", "timeout="])
@pytest.mark.parametrize("readonly", [False, True])
def test_options_of_sqlite_are_refused_by_name_and_make_no_file(options: str, readonly: bool, tmp_path: Path) -> None:
    with pytest.raises(StoreNotWritable, match="take no options") as caught:
        open_store(f"sqlite:///{tmp_path}/m.db?{options}", readonly=readonly)
    assert f"{tmp_path}/m.db: " in str(caught.value)
    for option in options.split("&"):
        assert option.partition("=")[0] in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_an_earlier_version_named_after_its_options_still_opens(tmp_path: Path) -> None:
    path = f"{tmp_path}/m.db?timeout=30"
    SQLiteStore(path).close()
    open_store(f"sqlite:///{path}").close()


def test_the_commands_refuse_options_of_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/m.db?timeout=30"
    for command in (["serve", "--grpc", "127.0.0.1:0", "--http", "off"], ["store", "check"], ["store", "vacuum"]):
        done = CliRunner().invoke(main, [*command, "--store", url, "--json"])
        assert (done.exit_code, done.stdout) == (1, "")
        assert json.loads(done.stderr)["error"]["reason"] == "STORE_NOT_WRITABLE"
        assert "timeout" in done.stderr
    done = CliRunner().invoke(main, ["store", "backup", "--store", "sqlite:///:memory:", f"{tmp_path}/copy.db?mode=rwc"])
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == []


SECRET = [
    "postgresql://me:{}@127.0.0.1:1/db",
    "postgres://me:{}@127.0.0.1:1/db",
    "postgresql://me:{}@127.0.0.1:1,127.0.0.1:2/db?sslmode=disable",
    "postgresql://me:{}@[::1]:1/db",
    "postgresql://:{}@127.0.0.1:1/db",
    "postgresql://me:{}@",
    "postgresql://me:{}@127.0.0.1:1/db?nonsense=1",
    "postgresql://127.0.0.1:1/db?user=me&password={}",
    "postgresql://me:{}",
    "POSTGRESQL://me:{}@127.0.0.1:1/db",
    "postgresql:/me:{}@127.0.0.1:1/db",
    "postgresqll://me:{}@127.0.0.1:1/db",
    "mysql://me:{}@127.0.0.1/db",
    "sqlite://me:{}@127.0.0.1/db",
    "me:{}@127.0.0.1/db",
    "host=127.0.0.1 port=1 user=me password={}",
    "password='{}' host=127.0.0.1 port=1",
    "postgresql://host=127.0.0.1 password={}",
    "postgresql://me%3A{}@127.0.0.1:1/db",
    "postgresql://127.0.0.1:1/db&password={}",
    "postgresql://127.0.0.1:1/db;password={}",
    "postgresql://127.0.0.1:1/db#password={}",
    "postgresql://127.0.0.1:1/db%3Fpassword%3D{}",
    "postgresql://127.0.0.1:1/db?dbname=postgresql%3A%2F%2Fme%3A{}%40127.0.0.1%3A1%2Fdb",
    "postgresql://127.0.0.1:1,me:{}@127.0.0.1:2/db",
    "postgresql%3A//me%3A{}%40127.0.0.1/db",
    "postgresql%3A%2F%2Fme%3A{}%40127.0.0.1%2Fdb",
    "jdbc:postgresql://127.0.0.1:1/db?user=me&password={}",
]
PASSWORDS = [
    "alphaomega",
    *(f"alpha{mark}omega" for mark in "#@%/?:&=; '[]\\+$,"),
    "alpha%00omega",
    "alpha/12?omega",
    "älphaomega",
]


@pytest.mark.parametrize("form", SECRET)
def test_no_part_of_a_password_is_shown(form: str) -> None:
    for password in PASSWORDS:
        url = form.format(password)
        if url == "postgresql://me:alpha@omega":
            continue  # a host of that name
        with pytest.raises(StoreError) as caught:
            open_store(url).close()
        told = f"{without_password(url)} {caught.value}"
        assert "lpha" not in told, url
        assert "omega" not in told, url


def test_an_option_of_sqlite_that_sounds_secret_is_not_shown() -> None:
    for password in PASSWORDS:
        for url in (f"sqlite:///m.db?password={password}", f"sqlite:///m.db?mode=ro&key={password}"):
            assert without_password(url) == url.removesuffix(password) + "…"


def test_digits_that_are_no_port_are_not_shown() -> None:
    for url in ("postgresql://me:98765432", "postgresql://me:98765/db"):
        with pytest.raises(StoreNotWritable) as caught:
            open_store(url)
        assert "98765" not in f"{without_password(url)} {caught.value}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:p#w@db.example:5432/runs?sslmode=require", "postgresql://me@db.example:5432/runs"),
        ("postgresql://me:p?w@db.example/runs", "postgresql://me@db.example/runs"),
        ("postgresql:///runs?host=/tmp&password=x", "postgresql:///runs"),
        ("postgresql://?service=team", "postgresql://"),
        ("sqlite:////var/lib/m.db", "sqlite:////var/lib/m.db"),
        (f"sqlite:///{os.fsdecode(bytes([0x63, 0xE9]))}\n.db", r"sqlite:///c\udce9\n.db"),
    ],
)
def test_what_is_shown_names_the_store(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_an_unknown_option_of_postgresql_is_named() -> None:
    with pytest.raises(StoreNotWritable, match=r"postgresql://127.0.0.1/db: libpq has no option timeout, color"):
        open_store("postgresql://me:secret@127.0.0.1/db?timeout=3&color=red&connect_timeout=1".replace("me:secret@", ""))


@pytest.mark.parametrize("about", ["PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE"])
def test_a_password_of_libpqs_own_is_not_shown(about: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pass").write_text("*:*:*:*:alphaomega\n")
    (tmp_path / "pass").chmod(0o600)
    (tmp_path / "service").write_text("[team]\nhost=127.0.0.1\nport=1\npassword=alphaomega\n")
    given = {"PGPASSWORD": "alphaomega", "PGPASSFILE": str(tmp_path / "pass"), "PGSERVICEFILE": str(tmp_path / "service")}
    monkeypatch.setenv(about, given[about])
    url = "postgresql://?service=team" if about == "PGSERVICEFILE" else "postgresql://me@127.0.0.1:1/db"
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert "alphaomega" not in str(caught.value)


def test_what_postgresql_quotes_of_a_user_or_a_database_has_no_password(postgres: Any) -> None:
    url = postgres.create_database("quoted")
    place, _, database = url.rpartition("/")
    for wrong in (url.replace("postgres@", "postgres%3Aalphaomega@"), f"{place}/{database}%3Aalphaomega"):
        with pytest.raises(StoreError) as caught:
            open_store(wrong)
        assert "not exist" in str(caught.value) or "failed" in str(caught.value)
        assert "omega" not in str(caught.value)


def test_a_server_whose_password_has_a_hash_shows_none_of_it(postgres: Any, new_server: Callable[..., Any]) -> None:
    url = postgres.create_database("hash").replace("postgres@", "postgres:alpha#omega@")
    server = new_server("--http", "127.0.0.1:0", "--log-level", "debug", "--metrics-per-run", store=url).start()
    shown = [urlopen(f"{server.page}{path}", timeout=10).read().decode() for path in ("/api/v1/runs", "/metrics", "/healthz")]
    assert server.stop() == 0
    checked = CliRunner().invoke(main, ["store", "check", "--store", url])
    assert checked.exit_code == 0
    assert "postgresql://postgres@127.0.0.1" in shown[0]
    for text in (*shown, server.log.read_text(), checked.output):
        assert "alpha" not in text
        assert "omega" not in text
