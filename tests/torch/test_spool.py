"""A PyTorch training without a network: the same weights, resumed exactly, imported, and gone on with at the server."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mechanicd.client import InvalidArgument, connect
from mechanicd.client.spool import import_spool, spool_files
from mechanicd.torch import mechanize


def train(opt: torch.optim.Optimizer, weights: torch.Tensor, first: int, last: int) -> None:
    for t in range(first, last):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(t))
        opt.zero_grad()
        ((x @ weights - 1.0) ** 2).mean().backward()
        opt.step()


def made(**where: Any) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    weights = torch.nn.Parameter(torch.zeros(8))
    return weights, mechanize(torch.optim.AdamW([weights], lr=1.0), s_init=1e-4, **where)


def test_it_equals_the_training_with_a_server_and_goes_on_there(
    tmp_path: Path, server: Any, project: str, history: Any
) -> None:
    wanted, alone = made(run="r", target=server.target, project=project)
    train(alone, wanted, 0, 90)
    alone.close()
    where = {"run": "offline/seed0", "target": f"file://{tmp_path}/spool", "project": project}
    weights, opt = made(**where)
    train(opt, weights, 0, 40)
    saved = copy.deepcopy((weights.detach(), opt.state_dict()))
    train(opt, weights, 40, 50)  # after the checkpoint: the next training abandons these
    opt.close("preempted")
    for target, first, last in ((where["target"], 40, 70), (server.target, 70, 90)):
        weights, opt = made(**{**where, "target": target})
        with torch.no_grad():
            weights.copy_(saved[0])
        opt.load_state_dict(saved[1])
        train(opt, weights, first, last)
        saved = copy.deepcopy((weights.detach(), opt.state_dict()))
        opt.close()
        if last == 70:
            with connect(server.target) as client:
                (file,) = spool_files(where["target"])
                assert import_spool(client, file).imported == 80
    assert weights.detach().equal(wanted.detach())
    online, offline = (history(server.target, run, project) for run in ("r", "offline/seed0"))
    same = [each.SerializeToString() for each in online if not each.ClearField("time")]
    assert [each.SerializeToString() for each in offline if not each.ClearField("time")] == same
    assert [each.step for each in history(server.target, "offline/seed0", project, branch=1)] == list(range(41, 51))


def test_a_bad_folder_is_refused_by_mechanize_itself() -> None:
    with pytest.raises(InvalidArgument) as caught:
        made(run="r", target="file://host/spool")
    assert caught.value.reason == "INVALID_TARGET"
    with pytest.raises(InvalidArgument) as caught:
        made(target="file:///data/spool")
    assert caught.value.reason == "RUN_NAME_MISSING"
