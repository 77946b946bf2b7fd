"""Stores on Windows, and Windows' paths elsewhere, as far as a test on this system can show."""

import sys
from pathlib import Path

import pytest

from mechanicd.store import SQLiteStore, StoreNotPortable, StoreNotWritable, open_store


@pytest.mark.parametrize(
    "url", [r"sqlite:///C:\data\m.db", "sqlite:///C:/data/m.db", r"sqlite:////C:\m.db", r"sqlite:///data\m.db"]
)
def test_a_path_of_windows_is_refused_where_it_would_name_a_file_in_this_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreNotWritable, match="is a path of Windows, and this is linux"):
        open_store(url)
    assert list(tmp_path.iterdir()) == []


def test_a_store_on_windows_is_refused_by_name_unless_it_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SQLiteStore(str(tmp_path / "m.db")).close()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(StoreNotPortable, match="which linux does not have; open it on Linux") as refused:
        SQLiteStore(str(tmp_path / "m.db"))
    assert refused.value.reason == "PLATFORM_NOT_SUPPORTED"
    SQLiteStore(str(tmp_path / "m.db"), readonly=True).close()


@pytest.mark.parametrize(
    ("url", "file"),
    [(r"sqlite:///C:\data\m.db", r"C:\data\m.db"), ("sqlite:////C:/m.db", "C:/m.db"), ("sqlite:///m.db", "m.db")],
)
def test_windows_has_its_own_paths(url: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("mechanicd.store._open.SQLiteStore", lambda path, *, readonly: opened.append(path))
    open_store(url)
    assert opened == [file]
