"""`mechanicd import`: what a training wrote without a network is at the server afterwards, exactly, and once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from mechanicd.cli import main
from mechanicd.client import Reductions, TunerConfig, _spool_format, _spool_session, connect, open_run
from mechanicd.client import _spool_import as spool_import
from mechanicd.client.spool import import_spool
from mechanicd.v1 import resources_pb2, run_service_pb2
from tests.client.test_outage import oracle, some_reductions, told
from tests.support.servers import free_port


class World:
    """A spool folder and a server, of one project."""

    def __init__(self, server: Any, project: str, folder: Path, history: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.target = server.target
        self.project = project
        self.spool = f"file://{folder}/spool"
        self.folder = folder / "spool"
        self._history = history
        self._capsys = capsys

    def file(self, run: str) -> Path:
        return self.folder / self.project / f"{run}.spool"

    def train(self, run: str, reductions: list[Reductions], status: str | None = None, **settings: Any) -> list[float]:
        """S after each step of one session; with status "none" its trainer dies."""
        session = open_run(settings.pop("target", self.spool), run, project=self.project, **{"start": 0, **settings})
        scales = [session.step(each) for each in reductions]
        session.flush()
        if status == "none":
            session._file.close()  # type: ignore[attr-defined]
            session._closed = True
        else:
            session.close(status)
        return scales

    def run_import(self, *arguments: str, target: str = "") -> tuple[int, str, str]:
        """The exit code, stdout and stderr of the command."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["import", *arguments, "--target", target or self.target])
        return (int(ended.value.code or 0), *self._capsys.readouterr())

    def bring(self, name: str, **settings: Any) -> Any:
        with connect(self.target) as client:
            return import_spool(client, self.file(name), **settings)

    def get(self, run: str) -> Any:
        with connect(self.target) as client:
            request = run_service_pb2.GetRunRequest(name=f"projects/{self.project}/runs/{run}")
            return client.call("GetRun", request)

    def told(self, run: str, branch: int = 0) -> list[tuple[int, float]]:
        return told(self._history(self.target, run, self.project, branch=branch))

    def times(self, run: str) -> list[int]:
        """When each step was taken, ns since 1970."""
        return [step.time.ToNanoseconds() for step in self._history(self.target, run, self.project)]

    def everything(self, run: str) -> Any:
        """All that an import might change."""
        found = self.get(run)
        return found.run, list(found.events), [self.told(run, branch) for branch in range(found.run.rewind_count + 1)]


@pytest.fixture
def world(server: Any, project: str, tmp_path: Path, history: Any, capsys: pytest.CaptureFixture[str]) -> World:
    return World(server, project, tmp_path, history, capsys)


def test_a_folder_of_runs_is_imported_exactly_and_a_second_time_changes_nothing(
    world: World, run_cli: Callable[..., Any]
) -> None:
    reductions = some_reductions(700)
    reductions[300] = Reductions(float("inf"), 0.0, 1.0, 1.0)
    scales = world.train("bert/seed0", reductions, "failed", labels={"batch": "256"})
    many = TunerConfig(scale_groups=tuple(f"g{i}" for i in range(40)), convention="optax")
    with open_run(world.spool, "groups", project=world.project, config=many, start=0) as session:
        session.begin([Reductions(-1.0, 0.1 * i, 1.0, 1.0) for i in range(40)], base_lr=0.5)
        session.finish()
        session.begin([Reductions(-1.0, 0.0, 1.0, 1.0)] * 40, hold=True)
        session.finish()
        expected = session.scales
    code, out, err = world.run_import(str(world.folder), "--json")
    assert (code, err) == (0, "")
    names = [f"projects/{world.project}/runs/{run}" for run in ("bert/seed0", "groups")]
    assert [(each["run"], each["steps"], each["imported"]) for each in json.loads(out)] == [
        *((names[0], 700, 700), (names[1], 2, 2))
    ]
    assert world.told("bert/seed0") == list(enumerate(scales, 1))
    run = world.get("bert/seed0").run
    assert (dict(run.labels), run.status, run.session_count) == ({"batch": "256"}, resources_pb2.RUN_STATUS_FAILED, 1)
    groups = world._history(world.target, "groups", world.project)
    assert [(each.outcome, each.base_lr if each.HasField("base_lr") else None) for each in groups] == [(1, 0.5), (3, None)]
    assert tuple(groups[-1].scale) == expected
    before = [world.everything(run) for run in ("bert/seed0", "groups")]
    again = run_cli("import", str(world.file("bert/seed0")), world.spool, "--target", world.target)
    assert (again.returncode, again.stderr) == (0, "")
    assert "bert/seed0: nothing to import; the server had 700; the run is failed" in again.stdout
    assert [world.everything(run) for run in ("bert/seed0", "groups")] == before


def test_rewinds_and_restarts_give_the_history_that_a_server_would_have(world: World) -> None:
    """The same training twice, once with the server and once without: the server can't tell them apart."""
    reductions = some_reductions(120)
    for run, target in (("online", world.target), ("offline", world.spool)):
        world.train(run, reductions[:40], target=target)
        with open_run(target, run, project=world.project) as session:
            early = session.state
        world.train(run, reductions[40:60], "preempted", start=early, target=target)
        world.train(run, reductions[60:90], "failed", start=early, target=target)
        world.train(run, reductions[90:100], start=50, target=target)
        world.train(run, [], target=target)
        world.train(run, reductions[100:], start=0, target=target)
    assert world.bring("offline").imported == 120
    online, offline = world.everything("online"), world.everything("offline")
    assert online[2] == offline[2]
    assert online[0].rewind_count == offline[0].rewind_count == 3
    assert (online[0].status, online[0].session_count) == (offline[0].status, offline[0].session_count)
    assert [(each.kind, each.step) for each in online[1]] == [(each.kind, each.step) for each in offline[1]]
    assert world.bring("offline").imported == 0
    assert world.everything("offline") == offline


def test_an_import_that_stops_anywhere_goes_on_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by Ctrl-C and by kill -9 after every so many steps, in a training with restarts, rewinds and a gap."""
    reductions = some_reductions(60)
    monkeypatch.setattr(spool_import, "_BATCH", 3)
    for death in (KeyboardInterrupt, SystemExit):
        run = death.__name__.lower()
        world.train(run, reductions[:20], "none")
        with open_run(world.spool, run, project=world.project) as session:
            session.step(reductions[20])
            early = session.state
        world.train(run, reductions[21:40], start=early)
        world.train(run, reductions[40:50], start=early, status="failed")
        later = TunerConfig()
        with open_run(world.spool, f"{run}-other", project=world.project, config=later, start=0) as session:
            for each in reductions[:45]:
                session.step(each)
            ahead = session.state
        world.train(run, reductions[50:], start=ahead)
        stopped = 0

        class Stop:
            def __init__(self, after: int, death: type[BaseException]) -> None:
                self.after, self.death, self.begun = after, death, None

            def __call__(self, done: int, of: int) -> None:
                self.begun = done if self.begun is None else self.begun
                if done >= self.begun + self.after:
                    raise self.death

        after = 1
        while True:
            try:
                world.bring(run, progress=Stop(after, death))
            except death:
                stopped += 1
                after = 1 + after % 7
            else:
                break
        assert stopped >= 5
        found = world.get(run).run
        assert (found.status, found.rewind_count) == (resources_pb2.RUN_STATUS_FINISHED, 1)
        whole = world.bring(run, run=f"{run}-whole")
        assert whole.imported == 60
        assert world.everything(run)[2] == world.everything(f"{run}-whole")[2]
        before = world.everything(run)
        assert world.bring(run).imported == 0
        assert world.everything(run) == before


def test_kill_9_amid_an_import_costs_nothing(world: World) -> None:
    scales = world.train("killed", some_reductions(2000))
    program = (
        "import os, sys; from pathlib import Path; from mechanicd.client import connect\n"
        "from mechanicd.client.spool import import_spool\n"
        "with connect(sys.argv[1]) as client:\n"
        "    import_spool(client, Path(sys.argv[2]), progress=lambda done, of: done < 600 or os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", program, world.target, world.file("killed")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert 0 < world.bring("killed").imported < 2000
    assert world.told("killed") == list(enumerate(scales, 1))


def test_a_run_that_exists_with_other_content_is_refused_and_left_alone(world: World) -> None:
    reductions = some_reductions(30)
    others = {
        "another-step": [*reductions[:10], *some_reductions(10, seed=1)],
        "another-first-step": some_reductions(5, seed=2),
        "longer-and-other": [*reductions[:29], *some_reductions(9, seed=3)],
    }
    for run, steps in others.items():
        world.train(run, steps, target=world.target)
        world.train(run, reductions)
        before = world.everything(run)
        code, out, err = world.run_import(str(world.file(run)), "--json")
        assert code == 1
        assert json.loads(err)["error"]["reason"] == "RUN_DIFFERS"
        assert json.loads(out)[0]["error"]["reason"] == "RUN_DIFFERS"
        assert world.everything(run) == before
    assert world.run_import(str(world.file("another-step")), "--as", "another/name")[0] == 0
    assert world.told("another/name") == list(enumerate(oracle(reductions), 1))
    world.train("config", reductions, target=world.target, config=TunerConfig(s_decay=0.5))
    world.train("config", reductions)
    assert "[CONFIG_MISMATCH]" in world.run_import(str(world.file("config")))[2]


def test_a_run_that_a_trainer_holds_is_not_taken_from_it(world: World) -> None:
    reductions = some_reductions(30)
    world.train("held", reductions)
    with open_run(world.target, "held", project=world.project, start=0) as trainer:
        trainer.step(reductions[0])
        code, _, err = world.run_import(str(world.folder))
        assert code == 1
        assert "[RUN_HELD]" in err
        trainer.step(reductions[1])
    assert world.bring("held").imported == 28


def test_a_training_that_goes_on_at_the_server_is_never_taken_back(world: World) -> None:
    reductions = some_reductions(90)
    world.train("on", reductions[:50], "preempted")
    with open_run(world.spool, "on", project=world.project) as session:
        checkpoint = session.state
    assert world.bring("on").imported == 50
    scales = world.train("on", reductions[50:70], target=world.target, start=checkpoint, status="preempted")
    assert scales == oracle(reductions)[50:70]
    before = world.everything("on")
    assert before[0].rewind_count == 0
    assert world.bring("on").imported == 0
    world.train("on", reductions[70:], target=world.target, start=40)  # back into what was imported
    world.train("on", reductions[:5], target=world.target, start=0)
    before = world.everything("on")
    assert world.bring("on").imported == 0
    assert world.everything("on") == before


def test_a_training_that_began_at_the_server_and_lost_its_network_is_joined_to_it(world: World) -> None:
    reductions = some_reductions(90)
    world.train("off", reductions[:30], target=world.target)
    with open_run(world.target, "off", project=world.project) as session:
        checkpoint = session.state
    world.train("off", reductions[30:60], start=checkpoint)
    world.train("off", reductions[60:], start=45)
    assert world.bring("off").imported == 60
    assert world.bring("off").imported == 0
    found = world.everything("off")
    assert found[0].rewind_count == 1
    assert found[2][0][:45] == list(enumerate(oracle(reductions[:60]), 1))[:45]
    assert [step for step, _ in found[2][1]] == list(range(46, 61))
    # Elsewhere the run has gone on since the checkpoint: that is other content.
    world.train("taken", reductions[:30], target=world.target)
    with open_run(world.target, "taken", project=world.project) as session:
        checkpoint = session.state
        session.step(reductions[0])
    world.train("taken", reductions[30:60], start=checkpoint)
    assert "[RUN_DIFFERS]" in world.run_import(str(world.file("taken")))[2]
    # The server never had the steps before the checkpoint.
    world.train("later", reductions[60:], start=checkpoint)
    assert world.bring("later").imported == 30


def test_a_file_without_an_end_is_imported_as_far_as_it_goes_and_again_when_it_has_more(world: World) -> None:
    reductions = some_reductions(60)
    scales = world.train("torn", reductions[:40], "none")
    with world.file("torn").open("ab") as file:
        file.write(b"\2\xff\0\0\0torn")
    code, out, err = world.run_import(str(world.folder))
    assert (code, err) == (0, "")
    assert "40 steps imported; the run is preempted" in out
    assert "[SPOOL_TORN]" in out
    assert "without the run's end" in world.get("torn").run.status_message
    session = open_run(world.spool, "torn", project=world.project)
    scales += [session.step(each) for each in reductions[40:]]
    session.flush()
    live = world.bring("torn")
    assert (live.imported, live.live, live.status) == (20, True, "preempted")
    before = world.everything("torn")
    assert world.bring("torn").imported == 0
    assert world.everything("torn") == before
    session.close()
    ended = world.bring("torn")
    assert (ended.imported, ended.live, ended.status) == (0, False, "finished")
    assert world.told("torn") == list(enumerate(scales, 1)) == list(enumerate(oracle(reductions), 1))


def test_an_end_that_was_corrected_by_hand_stands(world: World) -> None:
    reductions = some_reductions(10)
    for name in ("right", "cut"):
        world.train(name, reductions, "none" if name == "cut" else None)
        world.bring(name)
        full = f"projects/{world.project}/runs/{name}"
        with connect(world.target) as client:
            client.call("CloseRun", run_service_pb2.CloseRunRequest(name=full, status="RUN_STATUS_FAILED", message="no use"))
        before = world.everything(name)
        assert world.bring(name).status == "failed"
        assert world.everything(name) == before


def test_a_path_with_nothing_in_it_does_not_keep_the_others(world: World, tmp_path: Path) -> None:
    world.train("here", some_reductions(5))
    code, out, err = world.run_import(str(tmp_path / "no"), str(world.folder))
    assert (code, err.count("\n"), err.endswith("[SPOOL_MISSING]\n")) == (1, 1, True)
    assert "here: 5 steps imported" in out
    code, out, _ = world.run_import(str(world.folder), str(tmp_path / "no"), "--json")
    assert (code, [each.get("error", {}).get("reason") for each in json.loads(out)]) == (1, ["SPOOL_MISSING", None])


def test_a_run_that_was_renamed_or_archived_is_found_again(world: World) -> None:
    reductions = some_reductions(60)
    world.train("first", reductions[:40], "preempted")
    assert world.bring("first").imported == 40
    with connect(world.target) as client:
        now = f"projects/{world.project}/runs/second"
        client.call("RenameRun", run_service_pb2.RenameRunRequest(name=now.replace("second", "first"), new_name=now))
        client.call("ArchiveRun", run_service_pb2.ArchiveRunRequest(name=now))
    before = world.everything("second")
    again = world.bring("first")
    assert (again.run, again.imported) == (now, 0)
    assert world.everything("second") == before
    world.train("first", reductions[40:], start=None)
    assert world.bring("first").imported == 20
    assert world.told("second") == list(enumerate(oracle(reductions), 1))


def test_another_s_than_the_trainers_is_a_conflict_and_not_a_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanicd.client import _spool_session as spool_session

    true = spool_session.SpoolSession._receive

    def wrong(self: Any, following: Any, wait: bool) -> Any:  # as by a CPU whose last bit is another
        if following.step == 20:
            following = following.from_bytes(following.to_bytes(), None)
            object.__setattr__(following, "scale", (following.scale[0] * (1 + 2**-52),))
        return true(self, following, wait)

    with monkeypatch.context() as patch:
        patch.setattr(spool_session.SpoolSession, "_receive", wrong)
        world.train("wrong", some_reductions(30))
    code, _, err = world.run_import(str(world.file("wrong")))
    assert code == 1
    assert "[SCALE_MISMATCH]" in err
    assert "at step 20 the trainer had S" in err
    assert world.told("wrong") == [], "nothing of the batch was sent"
    assert world.get("wrong").run.status == resources_pb2.RUN_STATUS_PREEMPTED


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "SPOOL_MISSING"), (b"SQLite", "SPOOL_FOREIGN"), (b"MSPL\2\0\0\0", "SPOOL_VERSION")]
)
def test_what_is_no_spool_file_is_named(world: World, content: bytes | None, reason: str) -> None:
    path = world.folder / "some.spool"
    world.folder.mkdir()
    if content is not None:
        path.write_bytes(content)
    for argument in (path, world.folder):
        code, out, err = world.run_import(str(argument))
        assert (code, out) == (1, "")
        assert f"[{reason}]" in err


def test_one_bad_file_does_not_keep_the_others_from_being_imported(world: World) -> None:
    world.train("bad", some_reductions(20))
    world.train("good", some_reductions(20))
    data = bytearray(world.file("bad").read_bytes())
    data[400] ^= 1
    world.file("bad").write_bytes(data)
    (world.folder / os.fsdecode(b"\xff.spool")).write_bytes(b"")
    code, out, err = world.run_import(str(world.folder))
    assert code == 1
    assert "[SPOOL_DAMAGED]" in err
    assert "good: 20 steps imported" in out
    assert "\\udcff.spool: no training has begun in it" in out


def test_an_unreachable_server_is_named_and_a_folder_is_no_server(world: World) -> None:
    world.train("one", some_reductions(2))
    for target, reason in ((f"127.0.0.1:{free_port()}", "SERVER_UNREACHABLE"), (world.spool, "INVALID_TARGET")):
        code, out, err = world.run_import(str(world.folder), target=target)
        assert (code, out) == (1, "")
        assert f"[{reason}]" in err


def test_steps_that_the_server_keeps_in_a_summary_alone_are_known_all_the_same(
    world: World, new_server: Callable[..., Any]
) -> None:
    reductions = some_reductions(4200)
    world.train("thinned", reductions)
    server = new_server().start()
    world.target = server.target
    assert world.bring("thinned").imported == 4200
    server.stop()
    with pytest.raises(SystemExit) as ended:
        main(["store", "vacuum", "--keep-steps", "50", "--yes", "--store", server.store])
    assert ended.value.code == 0
    server.start()
    assert len(world.told("thinned")) < 4200
    assert world.bring("thinned").imported == 0
    world.file("thinned").unlink()
    world.train("thinned", [reductions[1], *reductions[1:]])
    assert "[RUN_DIFFERS]" in world.run_import(str(world.file("thinned")))[2]


@pytest.mark.parametrize("name", ["x" * 300, "caf\udce9", "a\nb", "\x1b[2J", ".", "/dev/null"])
def test_a_name_that_no_spool_has_is_one_line(
    name: str, here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("import", name, "--target", "127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.endswith("[SPOOL_MISSING]\n")
    assert "\x1b" not in done.stderr


def test_imported_steps_keep_the_times_at_which_they_were_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    times = [10**18, 10**18 + 60 * 10**9, 10**18 + 30 * 10**9, now + 3600 * 10**9]  # set back once, and then far ahead
    clock = iter(times)
    monkeypatch.setattr(_spool_session, "time_ns", lambda: next(clock))
    world.train("times", some_reductions(4))
    world.bring("times")
    kept = world.times("times")
    assert kept[:3] == times[:3]
    assert now <= kept[3] <= time.time_ns(), "no step is from the future"
    run = world.get("times").run
    assert run.step_time.ToNanoseconds() >= now, "the run's own time is that of the import"
    assert world.bring("times").imported == 0


@pytest.mark.parametrize("stamp", [None, Timestamp(seconds=-5), Timestamp(seconds=2**40), Timestamp(seconds=5, nanos=-1)])
def test_a_file_without_usable_times_is_imported_with_the_time_of_the_import(world: World, stamp: Timestamp | None) -> None:
    scales = world.train("old", some_reductions(5))
    file = world.file("old")
    with file.open("rb") as reader:
        records = list(_spool_format.records(reader))
    data = _spool_format.HEADER
    for record in records:
        message = record.message
        if record.kind == _spool_format.STEP:
            step = resources_pb2.StepRecord.FromString(message)
            step.ClearField("time")
            if stamp is not None:
                step.time.CopyFrom(stamp)
            message = step.SerializeToString()
        elif record.kind == _spool_format.SYNCED:
            continue
        data += _spool_format.framed(len(data), record.kind, message)
    file.write_bytes(data)
    before = time.time_ns()
    assert world.bring("old").imported == 5
    assert world.told("old") == list(enumerate(scales, 1))
    assert all(before <= each <= time.time_ns() for each in world.times("old"))
