"""What an outage leaves beyond the backlog's memory goes to the disk, and from there to the server: nothing is missing."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import InvalidArgument, Reductions, ServerUnavailable, _backlog, _connection, connect, open_run
from mechanicd.client import _spill as spill_module
from mechanicd.client import _spool_file as spool_file
from mechanicd.client.spool import import_spool, spool_files
from tests.client.test_outage import oracle, some_reductions, told

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least bound there is, 100 steps; and no long wait for a server that is back."""
    monkeypatch.setattr(_backlog, "BACKLOG_BYTES", 1)
    monkeypatch.setattr(_connection, "_BACKOFF_MOST", 0.2)


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_outage_beyond_the_memory_is_replayed_whole(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], tmp_path: Path
) -> None:
    reductions = some_reductions(1000)
    reductions[300] = Reductions(float("nan"), 0.0, 1.0, 1.0)
    spill = tmp_path / "spill"
    server = new_server().start()
    session = open_run(server.target, "a/long", start=0, spill=spill)
    scales = [session.step(each) for each in reductions[:50]]
    session.flush()
    assert left_in(spill) == []
    for first, last in ((50, 450), (450, 800)):  # two outages: the second one finds an empty disk again
        server.kill()
        for each in reductions[first:last]:
            session.begin(each, base_lr=0.5)
            scales += session.finish()
        (file,) = left_in(spill)
        assert session.backlog == last - first  # type: ignore[attr-defined]
        server.start()
        assert session.flush(30) == last
        assert not file.exists()
    scales += [session.step(each) for each in reductions[800:]]
    session.close()
    expected, heard = [], iter(oracle([*reductions[:300], *reductions[301:]]))
    for number in range(1000):
        expected.append(expected[-1] if number == 300 else next(heard))
    assert scales == expected
    records = history(server.target, "a/long")
    assert told(records) == list(enumerate(scales, 1))
    assert {each.base_lr for each in records[50:800]} == {0.5}
    assert left_in(spill) == []


def test_what_a_training_could_not_send_until_its_end_is_imported(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reductions = some_reductions(400)
    server = new_server().start()
    runs = {"few": 60, "many": 400}
    for run, last in runs.items():
        session = open_run(server.target, run, start=0, deadline=0.1, spill=tmp_path)
        for each in reductions[:50]:
            session.step(each)
        session.flush()
        server.kill()
        for each in reductions[50:last]:
            session.step(each)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mechanicd.client._close_time.CLOSE_SECONDS", 0.1)
            session.close("failed", "as told")
        assert "bring them with `mechanicd import" in caplog.text
        server.start()
    for file in spool_files(tmp_path):
        with connect(server.target) as client:
            imported = import_spool(client, file)
            assert (imported.imported, imported.status) == (imported.steps, "failed")
            assert import_spool(client, file).imported == 0
    for run, last in runs.items():
        assert told(history(server.target, run)) == list(enumerate(oracle(reductions[:last]), 1))


def test_kill_9_in_an_outage_leaves_what_was_on_the_disk(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_server().start()
    program = (
        "import os, sys; from tests.client.test_spill import *; from mechanicd.client import _backlog\n"
        "_backlog.BACKLOG_BYTES = 1\n"
        "session = open_run(sys.argv[1], 'killed', start=0)\n"
        "for each in some_reductions(50): session.step(each)\n"
        "session.flush(); os.kill(int(sys.argv[2]), 9)\n"
        "for each in some_reductions(400)[50:]: session.step(each)\n"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, server.target, str(server.pid)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "MECHANICD_SPILL": str(tmp_path / "s")}, check=False)
    assert done.returncode == -9
    server.kill()
    server.start()
    (file,) = spool_files(tmp_path / "s")
    with connect(server.target) as client:
        imported = import_spool(client, file)
    assert imported.imported >= 250
    assert imported.status == "preempted"
    assert told(history(server.target, "killed")) == list(enumerate(oracle(some_reductions(400)), 1))[: 50 + imported.imported]
    with caplog.at_level(logging.WARNING):
        open_run(server.target, "killed", spill=tmp_path / "s").close()
    assert f"an earlier process left steps in {file}" in caplog.text


@pytest.mark.parametrize("why", ["bound", "disk"])
def test_past_the_bound_of_the_spill_the_oldest_steps_are_lost_by_name(
    why: str, new_server: Callable[..., Any], history: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    if why == "bound":
        monkeypatch.setattr(spill_module, "SPILL_BYTES", 10_000)
    reductions = some_reductions(700)
    server = new_server().start()
    session = open_run(server.target, "bound", start=0, spill=tmp_path)
    scales = [session.step(each) for each in reductions[:50]]
    session.flush()
    server.kill()
    scales += [session.step(each) for each in reductions[50:400]]
    if why == "disk":
        with monkeypatch.context() as patch:
            patch.setattr(spool_file.SpoolFile, "_write", lambda self, last=b"": _full(self))
            scales += [session.step(each) for each in reductions[400:500]]
    scales += [session.step(each) for each in reductions[len(scales) : 650]]
    server.start()
    assert session.flush(30) == 650
    scales += [session.step(each) for each in reductions[650:]]
    session.close()
    assert scales == oracle(reductions)
    kept = told(history(server.target, "bound"))
    lost = set(range(1, 701)) - {step for step, _ in kept}
    assert kept == [pair for pair in enumerate(scales, 1) if pair[0] not in lost]
    assert lost == set(range(51, max(lost) + 1)), "the oldest ones"
    assert f"steps up to step {max(lost)} are lost" in caplog.text or why == "disk"
    assert "steps can't be spilled" in caplog.text or why == "bound"
    assert left_in(tmp_path) == [each for each in left_in(tmp_path) if "mechanicd.db" in each.name or each.name == "server.log"]


def _full(file: Any) -> bool:
    file.failure = OSError(28, "No space left on device")
    return False


def test_a_spill_that_can_not_be_read_again_is_a_gap_and_no_hang(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reductions = some_reductions(400)
    server = new_server().start()
    session = open_run(server.target, "unreadable", start=0, spill=tmp_path / "s")
    scales = [session.step(each) for each in reductions[:50]]
    session.flush()
    server.kill()
    scales += [session.step(each) for each in reductions[50:]]
    (file,) = left_in(tmp_path / "s")
    os.truncate(file, 2000)
    server.start()
    assert session.flush(30) == 400
    session.close()
    assert scales == oracle(reductions)
    kept = told(history(server.target, "unreadable"))
    assert kept == [pair for pair in enumerate(scales, 1) if pair in set(kept)]
    assert kept[-100:] == list(enumerate(scales, 1))[-100:]
    assert "are lost" in caplog.text


def test_a_folder_that_cannot_be_used_is_refused_when_the_run_is_opened(new_server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServerUnavailable, match="SPOOL_UNWRITABLE"):
        open_run("127.0.0.1:1", "r", start=0, spill=tmp_path / "file")
    for spill in (b"s", 3, "a\0b"):
        with pytest.raises(InvalidArgument) as caught:
            open_run("127.0.0.1:1", "r", start=0, spill=spill)  # type: ignore[arg-type]
        assert caught.value.reason == "INVALID_SETTING"
