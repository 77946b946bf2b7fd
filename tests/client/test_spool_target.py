"""The target of a training without a network: `file:///FOLDER` names a folder, and each run has a file in it."""

from pathlib import Path

import pytest

from mechanicd.client import InvalidArgument, connect
from mechanicd.client import _spool_target as spool_target


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("file:///data/spool", "/data/spool"),
        ("file://localhost/data/spool", "/data/spool"),
        ("FILE:///data/my%20spool", "/data/my spool"),
        ("file:///data/a%2Cb%3Fc%23d", "/data/a,b?c#d"),
    ],
)
def test_a_target_names_a_folder(target: str, folder: str) -> None:
    assert spool_target.folder(target) == Path(folder)


def test_a_relative_target_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert spool_target.folder("file:spool") == tmp_path / "spool"


@pytest.mark.parametrize(
    "target",
    [
        *(
            "file:",
            "file://",
            "file://spool",
            "file://host/spool",
            "file:///a?timeout=30",
            "file:///a#b",
            "file:///a,file:///b",
        ),
        *("file:///a%00b", "file:///a%ff", "file:///\udcff", "127.0.0.1:50051,file:///a"),
    ],
)
def test_a_target_that_names_no_folder_is_refused_at_once(target: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        connect(target)
    assert caught.value.reason == "INVALID_TARGET"


def test_no_two_runs_share_a_file_or_stand_in_each_others_way() -> None:
    runs = ["a", "a.spool/b", "a/b", "a.spool", "a.spool.spool/b", "b/a.spool/c", "b/a"]
    files = [spool_target.file_of(Path("/s"), f"projects/{project}/runs/{run}") for project in ("p", "q.spool") for run in runs]
    assert len(set(files)) == len(files)
    assert not {parent for each in files for parent in each.parents} & set(files)


def test_a_folder_of_files_answers_no_question(target: str) -> None:
    with connect(target) as client, pytest.raises(InvalidArgument, match="mechanicd import"):
        client.scale_of("bert/seed0")
