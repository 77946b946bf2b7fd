"""Two processes train one model: S is the same on both and that of one process; one run at the server, one step a step."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mechanicd.torch import mechanize

SCRIPT = Path(__file__).with_name("distributed_training.py")


def train(kind: str, world: int, target: str, run: str, project: str, folder: Path) -> list[dict[str, Any]]:
    """Trains with so many processes; what each of them left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MECHANICD_PROJECT": project, "OMP_NUM_THREADS": "1"}
    out = folder / f"{kind}{world}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, str(rank), str(world), str(port), target, run, str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=110)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(said)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training by one process, without a server."""
    return train("single", 1, "none", "", "single", tmp_path_factory.mktemp("single"))[0]


@pytest.mark.parametrize("kind", ["ddp", "zero", "fsdp", "tp", "single_resume", "ddp_resume", "fsdp_resume", "tp_resume"])
def test_two_processes_find_the_s_of_one(
    kind: str, server: Any, project: str, tmp_path: Path, single: dict[str, Any], history: Any
) -> None:
    template = f"{kind}/{{rank}}-{{random}}"
    ranks = train(kind, 1 if kind == "single_resume" else 2, server.target, template, project, tmp_path)
    (run,) = {rank["run"] for rank in ranks}
    assert re.fullmatch(rf"{kind}/0-[0-9a-f]{{8}}", run), "the leader's, also after a checkpoint"
    assert ranks[0]["scales"] == ranks[-1]["scales"], "bit for bit"
    assert ranks[0]["scales"] == pytest.approx(single["scales"], rel=1e-6)
    for rank in ranks:
        for p, q in zip(rank["params"], single["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    kept = history(server.target, run, project)
    assert [record.scale[0] for record in kept] == ranks[0]["scales"], "one run, one step a step"
    assert [record.step for record in kept if record.outcome == 2] == [21], "a NaN on one rank is one skipped step of all"


def test_all_fail_by_name_where_the_server_refuses_the_run(server: Any, project: str, tmp_path: Path) -> None:
    """Nobody is left waiting for the others."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with mechanize(torch.optim.SGD([p], lr=1.0), run="taken", target=server.target, project=project, s_init=1e-3) as opt:
        opt.step()
    with pytest.raises(AssertionError) as caught:
        train("ddp", 2, server.target, "taken", project, tmp_path)
    assert "CONFIG_MISMATCH" in str(caught.value)
    assert "LEADER_FAILED" in str(caught.value)
