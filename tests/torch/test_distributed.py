"""Two processes train one model: S is the same on both and that of one process; one run at the server, one step a step."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from mechanicd.torch import mechanize
from tests.support.warm import warm

SCRIPT = Path(__file__).with_name("distributed_training.py")


def train(kind: str, world: int, target: str, run: str, project: str, folder: Path) -> list[dict[str, Any]]:
    """Trains with so many processes; what each of them left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / f"{kind}{world}"
    python = warm("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.optim", "mechanicd.torch")
    programs = []
    for rank in range(world):
        words = map(str, (SCRIPT, kind, rank, world, port, target, run, out))
        programs.append(python.start(*words, folder=folder, environment={"MECHANICD_PROJECT": project, "RANK": str(rank)}))
    ended = [program.end(110) for program in programs]
    assert [rank.returncode for rank in ended] == [0] * world, "\n".join(rank.stdout + rank.stderr for rank in ended)
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
