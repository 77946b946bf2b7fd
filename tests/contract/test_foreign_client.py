"""A client in another language, written from proto/ alone (`tests/contract/node`), does all that a trainer needs."""

import json
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mechanicd.client import Reductions, TunerConfig, TunerState, open_run
from mechanicd.tuner import Tuner
from mechanicd.v1 import run_service_pb2, run_service_pb2_grpc

FOLDER = Path(__file__).parent / "node"
README = Path(__file__).parents[2] / "proto" / "README.md"
MANY = 16_000
NewClient = Callable[..., "NodeTrainer"]


class NodeTrainer:
    """`node trainer.mjs`, which minimizes ½‖x‖² by gradient descent, as this test tells it line by line."""

    def __init__(self, target: str, run: str, groups: int = 1, **options: int) -> None:
        assert (FOLDER / "node_modules").is_dir(), "the packages of tests/contract/node are not installed: `make test` does it"
        command = ["node", str(FOLDER / "trainer.mjs"), target, run, str(groups), json.dumps(options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, do: str, **given: Any) -> Any:
        """One command, and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline() or '"it ended"')

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def node(project: str) -> Iterator[NewClient]:
    """Trainers in Node, ended with the test: `node(target, groups=3)`, all on the run `{project}/r`."""
    made: list[NodeTrainer] = []

    def make(target: str, groups: int = 1, **options: int) -> NodeTrainer:
        made.append(NodeTrainer(target, f"projects/{project}/runs/r", groups, **options))
        return made[-1]

    yield make
    for trainer in made:
        trainer.kill()


def expected(steps: int, groups: int = 1) -> list[TunerState]:
    """The tuner's state after each step of that training, by the tuner of Python."""
    tuner = Tuner(TunerConfig(scale_groups=tuple(f"layer.{i}.weight" for i in range(groups))))
    states = [tuner.init()]
    x_ref, delta = [5 + i / 7 for i in range(groups)], [0.0] * groups
    for _ in range(steps):
        g = [x + S * d for x, S, d in zip(x_ref, states[-1].scale, delta, strict=True)]
        states.append(tuner.update(states[-1], [Reductions(d * v, d * v, v * v, v * v) for d, v in zip(delta, g, strict=True)]))
        delta = [d - v for d, v in zip(delta, g, strict=True)]
    return states


def scales(states: list[TunerState]) -> list[list[float]]:
    return [list(state.scale) for state in states]


def test_it_trains_checkpoints_is_killed_and_resumes_with_the_bits_of_this_tuner(
    server: Any, project: str, node: NewClient, tmp_path: Path, history: Callable[..., list[Any]]
) -> None:
    states, file = expected(20, groups=3), str(tmp_path / "checkpoint")
    first = node(server.target, groups=3)
    assert first.ask("open")["outcome"] == "OPEN_OUTCOME_CREATED"
    assert first.ask("step", count=8)["scales"] == scales(states[1:9])
    saved = first.ask("checkpoint", file=file)
    assert bytes.fromhex(saved["state"]) == bytes.fromhex(saved["own"]) == states[8].to_bytes()
    assert first.ask("step", count=4)["scales"] == scales(states[9:13])
    first.kill()

    second = node(server.target, groups=3)
    assert second.ask("resume", file=file) == {"outcome": "OPEN_OUTCOME_REWOUND", "step": 8, "scale": list(states[8].scale)}
    assert second.ask("step", count=12)["scales"] == scales(states[9:])
    assert second.ask("close", status="RUN_STATUS_FINISHED") == {"status": "RUN_STATUS_FINISHED", "durable_step": 20}
    kept = history(server.target, "r", project)
    assert [list(record.scale) for record in kept] == scales(states[1:])
    assert {record.base_lr for record in kept} == {1.0}


def test_it_stops_when_a_successor_takes_its_run(server: Any, project: str, node: NewClient) -> None:
    trainer = node(server.target)
    trainer.ask("open")
    trainer.ask("step", count=3)
    config = TunerConfig(scale_groups=("layer.0.weight",))
    with open_run(server.target, "r", project=project, config=config) as successor:
        assert successor.state.step == 3
        answer = trainer.ask("step")
        assert answer["refused"] == "SESSION_FENCED"
        assert int(answer["metadata"]["successor"]) > 2**32
        assert trainer.process.wait(timeout=10) == 3
        successor.step(Reductions(0.0, 0.0, 1.0, 1.0))


def test_it_trains_on_through_an_outage_and_a_lost_store_and_replays(
    new_server: Callable[..., Any], project: str, node: NewClient, history: Callable[..., list[Any]], tmp_path: Path
) -> None:
    server, states = new_server().start(), expected(14)
    trainer = node(server.target)
    trainer.ask("open")
    assert trainer.ask("step", count=4)["connected"]
    server.kill()
    away = trainer.ask("step", count=3)
    assert (away["connected"], away["scales"]) == (False, scales(states[5:8])), "its own tuner's bits"
    server.start()
    back = trainer.ask("step", count=3)
    assert (back["connected"], back["scales"]) == (True, scales(states[8:11]))
    saved = trainer.ask("checkpoint", file=str(tmp_path / "checkpoint"))
    assert saved["state"] == saved["own"] == states[10].to_bytes().hex()
    assert [list(record.scale) for record in history(server.target, "r", project)] == scales(states[1:11])

    server.kill()
    for file in server.folder.glob("mechanicd.db*"):
        file.unlink()
    server.start()
    lost = trainer.ask("step", count=4)
    assert (lost["connected"], lost["scales"]) == (True, scales(states[11:]))
    assert trainer.ask("close", status="RUN_STATUS_FINISHED")["durable_step"] == 14


def test_a_refusal_names_its_reason_and_every_bad_field(server: Any, node: NewClient) -> None:
    config = {"betas": [7.0], "s_init": -1.0}
    answer = node(server.target).ask("open", config=config, start={"tuner_state": "AAAA"}, read_mask="session,state")
    assert answer["refused"] == "INVALID_CONFIG"
    assert answer["fields"] == {
        "config.betas": "INVALID_CONFIG",
        "config.s_init": "INVALID_CONFIG",
        "tuner_state": "INVALID_TUNER_STATE",
        "read_mask": "INVALID_READ_MASK",
    }


def test_sixteen_thousand_groups_open_as_the_readme_says(server: Any, node: NewClient) -> None:
    (mask,) = re.findall(r"`(session,[\w,]+)`", README.read_text())
    states = expected(1, MANY)
    slim = node(server.target, MANY)
    answer = slim.ask("open")
    assert "RESOURCE_EXHAUSTED" in answer["message"], "the usual limit is 4 MiB; if this opens now, the README is wrong"
    answer = slim.ask("open", read_mask=mask)
    assert (answer["state_bytes"], answer["run"], len(answer["scale"])) == (0, None, MANY)
    assert slim.ask("step")["scales"] == scales(states[1:])
    slim.ask("close", status="RUN_STATUS_PREEMPTED")
    (limit,) = re.findall(r"`grpc\.max_receive_message_length`[^.]*?(\d{8,})", README.read_text(), re.DOTALL)
    whole = node(server.target, MANY, **{"grpc.max_receive_message_length": int(limit)})
    answer = whole.ask("open")
    assert (answer["last_step"], answer["state_bytes"]) == ("1", 24 + 40 * 6 * MANY)


def test_lists_fit_into_the_usual_limit(server: Any, project: str) -> None:
    """gRPC refuses more than 4 MiB unless told otherwise; our client tells it so, and this one asks as a stranger would."""
    long = TunerConfig(scale_groups=tuple(f"{i:0256}" for i in range(8_000)), betas=(0.9,))
    wide = TunerConfig(scale_groups=tuple(f"{i}" for i in range(1_000)), betas=(0.9,))
    runs = [f"r{i}" for i in range(3)]
    for run in runs:
        open_run(server.target, run, project=project, config=long, start=0).close()
    with open_run(server.target, "steps", project=project, config=wide, start=0) as session:
        for _ in range(90):
            session.begin([Reductions(-1.0, 0.0, 1.0, 1.0)] * 1_000)
            session.finish(wait=False)
        session.flush()
    with grpc.insecure_channel(server.target) as channel:
        stub = run_service_pb2_grpc.RunServiceStub(channel)

        def pages(method: Any, request: Any) -> Iterator[Any]:
            while True:
                page = method(request, timeout=20)
                yield page
                request.page_token = page.next_page_token
                if not request.page_token:
                    return

        parent = f"projects/{project}"
        listed = list(pages(stub.ListRuns, run_service_pb2.ListRunsRequest(parent=parent)))
        assert [run.name.rpartition("/")[2] for page in listed for run in page.runs] == [*runs, "steps"]
        query = run_service_pb2.QuerySeriesRequest(name=f"projects/{project}/runs/steps")
        series = list(pages(stub.QuerySeries, query))
        assert [record.step for page in series for record in page.records] == list(range(1, 91))
        watched: list[str] = []
        for response in stub.WatchRuns(run_service_pb2.WatchRunsRequest(parent=parent), timeout=20):
            watched += [run.name.rpartition("/")[2] for run in response.runs]
            if len(watched) == 4:
                break
        assert watched == [*runs, "steps"]
        assert min(len(listed), len(series)) > 1, "else this shows nothing"


def test_the_steps_and_the_bytes_that_the_readme_gives_are_right() -> None:
    text = README.read_text()
    rows = re.findall(r"^\| (\d) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    tuner = Tuner()
    state = tuner.init()
    for step, *scalars, S in rows:
        state = tuner.update(state, Reductions(*map(float, scalars)))
        assert (state.step, state.scale[0]) == (int(step), float(S))
    assert state.step == 4
    (crc,) = re.findall(r"CRC-32 ([0-9a-f]{8})\.", text)
    assert zlib.crc32(state.to_bytes()[:-4]) == int(crc, 16) == int.from_bytes(state.to_bytes()[-4:], "little")
