"""The file with the local token: a server and its user's tools find the same one, and no two servers share one."""

import os
import socket
from pathlib import Path

import pytest

from mechanicd.v1 import local_token


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    return tmp_path


def test_every_spelling_of_this_machine_is_one_file(config: Path) -> None:
    spellings = ("localhost:50051", "127.0.0.1:50051", "[::1]:50051", "https://localhost:50051", "https://LOCALHOST:50051/")
    assert {local_token.path(each) for each in spellings} == {config / "mechanicd/local/node7/50051"}


def test_every_spelling_of_a_socket_is_one_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config / "run").mkdir()
    (config / "link").symlink_to(config / "run")
    monkeypatch.chdir(config)
    at = config / "run" / "m.sock"
    found = {local_token.path(f"unix:{each}") for each in (at, f"//{at}", "run/m.sock", f"{config}/link/m.sock")}
    assert found == {config / "mechanicd/local/node7" / str(at.resolve()).replace("/", "%2F")}


def test_other_servers_have_other_files() -> None:
    long = "ß" * 50  # percent-encoded, no name of a file can be so long
    addresses = ("127.0.0.1:1", "127.0.0.1:2", "unix:/a/b", "unix:/a%2Fb", "unix:/1", f"unix:/{long}a", f"unix:/{long}b")
    found = [local_token.path(each) for each in addresses]
    assert len(set(found)) == len(addresses)
    assert {each.parent for each in found} == {found[0].parent}
    assert all(len(os.fsencode(each.name)) <= 255 for each in found)


def test_another_machine_with_the_same_home_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    here = local_token.path("localhost:1")
    monkeypatch.setattr(socket, "gethostname", lambda: "../node8")
    there = local_token.path("localhost:1")
    assert (there.name, there.parents[1]) == (here.name, here.parents[1])
    assert there.parent.name == "..%2Fnode8"


@pytest.mark.parametrize("given", [None, "", "relative/folder"])
def test_the_folder_is_in_the_home_where_the_environment_names_no_other(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if given is None:
        monkeypatch.delenv("XDG_CONFIG_HOME")
    else:
        monkeypatch.setenv("XDG_CONFIG_HOME", given)
    assert local_token.path("localhost:1").parents[3] == tmp_path / "home" / ".config"


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(FileNotFoundError, match="XDG_CONFIG_HOME"):
        local_token.path("localhost:1")


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:port", "unix:", "unix:///"])
def test_what_is_no_place_has_no_file(address: str) -> None:
    with pytest.raises(ValueError, match="has no"):
        local_token.path(address)
