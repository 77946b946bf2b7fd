"""A training without a network: `target="file:///FOLDER"` gives the same S, and the file has every step that was flushed."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mechanicd.client import ConfigMismatch, LocalSession, MechanicdError, Reductions, ResumeError, TunerConfig, open_run
from mechanicd.client import _spool_history as spool_history
from tests.client.spools import history_of, open_bert, steps_of
from tests.client.test_outage import oracle, some_reductions


def test_it_gives_the_same_bits_as_a_tuner_in_the_process_and_records_them(target: str, file: Path) -> None:
    reductions = some_reductions(300)
    reductions[100] = Reductions(float("nan"), 0.0, 1.0, 1.0)
    alone = LocalSession(TunerConfig())
    expected = [alone.step(each) for each in reductions]
    with open_bert(target, labels={"batch": "256"}) as session:
        assert [session.step(each) for each in reductions] == expected
        assert session.flush() == 300
        assert session.name == "projects/default/runs/bert/seed0"
    assert steps_of(file) == list(enumerate(expected, 1))
    history = history_of(file)
    assert (history.name, history.last, history.torn) == (session.name, 300, 0)
    with file.open("rb") as reader:
        assert dict(spool_history.opened(reader, history.openings[0]).labels) == {"batch": "256"}


def test_it_needs_no_grpc_and_takes_its_target_from_the_environment(tmp_path: Path) -> None:
    program = (
        "import sys; from mechanicd.client import Reductions, open_run\n"
        "with open_run(None, 'seed0') as session: session.step(Reductions(0.0, 0.0, 1.0, 1.0))\n"
        "assert 'grpc' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MECHANICD_TARGET": f"file://{tmp_path}", "MECHANICD_PROJECT": "p"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [each.closed is not None for each in history_of(tmp_path / "p" / "seed0.spool").openings] == [True]


@pytest.mark.parametrize(("status", "number"), [("finished", 5), ("failed", 4), ("preempted", 3)])
def test_the_end_is_recorded(target: str, file: Path, status: str, number: int) -> None:
    open_bert(target).close(status, "as told")
    closed = history_of(file).openings[-1].closed
    assert closed is not None
    assert (closed.status, closed.message) == (number, "as told")


def test_several_runs_and_scale_groups_have_files_of_their_own(target: str, tmp_path: Path) -> None:
    config = TunerConfig(scale_groups=tuple(f"g{i}" for i in range(40)))
    with open_run(target, "one", project="p", config=config) as many, open_run(target, "two", project="p") as single:
        many.begin([Reductions(-1.0, 0.0, 1.0, 1.0)] * 40, base_lr=0.5, hold=True)
        many.finish()
        single.step(Reductions(-1.0, 0.0, 1.0, 1.0))
    assert [history_of(tmp_path / "spool" / "p" / f"{name}.spool").steps for name in ("one", "two")] == [1, 1]


def test_it_resumes_where_the_file_ends_at_a_checkpoint_and_from_scratch(
    target: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reductions = some_reductions(100)
    scales = oracle(reductions)
    with open_bert(target) as session:
        for each in reductions[:40]:
            session.step(each)
        checkpoint = session.state
        for each in reductions[40:60]:
            session.step(each)
    with open_bert(target, start=None) as session:
        assert (session.state.step, session.scale) == (60, scales[59])
    with open_bert(target, start=checkpoint) as session:
        assert [session.step(each) for each in reductions[40:]] == scales[40:]
    with open_bert(target, start=50) as session:
        assert session.scale == scales[49], "replayed from the file"
    with caplog.at_level(logging.WARNING), open_bert(target, start=0) as session:
        assert session.state.step == 0
    assert "training starts over: the run rewinds from step 50 to its start" in caplog.text
    assert [(each.after, each.last, each.stage) for each in history_of(file).openings] == [
        *[(0, 60, 0), (60, 60, 0), (40, 100, 1), (50, 50, 2), (0, 0, 3)]
    ]


def test_what_it_cannot_resume_is_refused_and_leaves_the_file_as_it_was(target: str, file: Path) -> None:
    with open_bert(target) as session:
        session.step(some_reductions(1)[0])
    before = file.read_bytes()
    with pytest.raises(ConfigMismatch) as mismatch:
        open_bert(target, config=TunerConfig(s_decay=0.5))
    assert (mismatch.value.reason, mismatch.value.metadata) == ("CONFIG_MISMATCH", {"s_decay": "0.01 ≠ 0.5"})
    with pytest.raises(ResumeError) as unknown:
        open_bert(target, start=2)
    assert unknown.value.reason == "RESUME_STEP_UNKNOWN"
    assert file.read_bytes() == before
    file.rename(file.with_name("seed1.spool"))
    with pytest.raises(MechanicdError) as foreign:
        open_run(target, "bert/seed1", start=0)
    assert foreign.value.reason == "SPOOL_FOREIGN"
