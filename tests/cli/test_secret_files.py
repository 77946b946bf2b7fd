"""A store's or a webhook's URL given by a file: no process list, no output and no error shows it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mechanicd.cli._secret_files import MOST_BYTES

Here = Callable[..., Any]


@pytest.fixture
def url_file(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Writes a file with this content; gives its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "url"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_every_command_on_a_store_takes_a_file(end: str, url_file: Any, here: Here, tmp_path: Path) -> None:
    file = url_file(f"sqlite:///{tmp_path}/a.db{end}")
    assert here("store", "vacuum", "--store-file", file, "--json").returncode == 0
    assert json.loads(here("store", "check", "--store-file", file, "--json").stdout)["ok"]
    (tmp_path / "to").write_text(f"{tmp_path}/b.db\n")
    done = here("store", "backup", "--store-file", file, "--to-file", str(tmp_path / "to"), "--json")
    assert json.loads(done.stdout)["to"] == f"sqlite:///{tmp_path}/b.db"
    assert here("tokens", "list", "--store-file", file).returncode == 0


def test_the_environment_names_the_file_and_the_command_line_comes_first(
    url_file: Any, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHANICD_STORE_FILE", url_file(f"sqlite:///{tmp_path}/env.db"))
    assert here("store", "vacuum").returncode == 0
    assert (tmp_path / "env.db").exists()
    assert here("store", "vacuum", "--store", f"sqlite:///{tmp_path}/given.db").returncode == 0
    assert (tmp_path / "given.db").exists()
    both = here("store", "check", "--store", "sqlite:///x", "--store-file", os.devnull)
    assert (both.returncode, "not both" in both.stderr) == (2, True)
    assert here("store", "backup").returncode == here("store", "backup", "a", "--to-file", "b").returncode == 2


BAD = ["", "\n", "a-secret\nanother", "a-secret\r\nanother", b"a-secret\xff", b"a-secret" * MOST_BYTES]


def test_a_file_that_holds_no_url_is_refused_by_name_and_not_shown(url_file: Any, here: Here, tmp_path: Path) -> None:
    def refused(*command: str) -> None:
        done = here(*command, "--json")
        assert json.loads(done.stderr)["error"]["reason"] == "SECRET_FILE_UNUSABLE", command
        assert "secret" not in json.loads(done.stderr)["error"]["message"]

    for content in BAD:
        refused("store", "check", "--store-file", url_file(content))
    refused("serve", "--webhook-file", url_file(BAD[2]))
    refused("serve", "--store-file", str(tmp_path / "missing"))
    refused("store", "check", "--store-file", str(tmp_path))
    for url in ("https://me:a-secret@x/", "ftp://a-secret", "a-secret"):
        done = here("serve", "--webhook-file", url_file(url))
        assert (done.returncode, "a-secret" in done.stderr) == (2, False)
    for url in ("mysql://me:a-secret@db/x", "host=db password=a-secret", "postgresql://me:a-secret@127.0.0.1:1/db"):
        done = here("store", "check", "--store-file", url_file(url), "--json")
        assert (done.returncode, "a-secret" in done.stderr + done.stdout) == (1, False)


def test_a_server_and_its_page_show_neither_url(new_server: Any, tmp_path: Path) -> None:
    (tmp_path / "store").write_text(f"sqlite:///{tmp_path}/a-secret.db\n")
    (tmp_path / "webhook").write_text("http://127.0.0.1:1/a-secret?key=a-secret\n")
    server = new_server("--http", "127.0.0.1:0", "--webhook-file", str(tmp_path / "webhook")).start()
    process = psutil.Process(server.pid)
    lines = [each.cmdline() for each in (process, *process.children(recursive=True))]
    assert len(lines) >= 2
    assert "a-secret" not in str(lines)
    assert str(tmp_path / "webhook") in lines[0]
    assert server.stop() == 0
    assert "a-secret" not in server.log.read_text()
