"""`{random}` in a run's name is the same after a resume, through the checkpoint."""

import copy
import re
from typing import Any

import torch

from mechanicd.torch import Mechanized, mechanize


def training(target: str | None, project: str, run: str = "trial/{random}", base: Any = torch.optim.SGD) -> Mechanized:
    p = torch.nn.Parameter(torch.ones(3))
    return mechanize(base([p], lr=1.0), run=run, target=target, project=project)


def take(opt: Mechanized, steps: int) -> None:
    for _ in range(steps):
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.step()


def test_a_resumed_training_has_the_name_that_it_began_with(server: Any, project: str, history: Any) -> None:
    first = training(server.target, project)
    take(first, 5)
    checkpoint = copy.deepcopy(first.state_dict())
    take(first, 3)
    first.close("preempted")
    assert re.fullmatch(r"trial/[0-9a-f]{8}", first.run)

    second = training(server.target, project)
    assert second.run != first.run
    second.load_state_dict(checkpoint)
    assert second.run == first.run
    take(second, 2)
    second.close()
    assert [record.step for record in history(server.target, first.run, project)] == list(range(1, 8))


def test_a_checkpoint_from_before_or_for_another_name_changes_no_name(server: Any, project: str) -> None:
    named, trial = training(server.target, project, "bert/seed0"), training(server.target, project)
    take(named, 1)
    checkpoint = copy.deepcopy(named.state_dict())
    for _ in range(2):
        before = trial.run
        named.load_state_dict(checkpoint)
        assert named.run == "bert/seed0"
        del checkpoint["param_groups"][0]["mechanic"]["random"]  # as the version before wrote it
        trial.load_state_dict(checkpoint)
        assert trial.run == before
        checkpoint = copy.deepcopy(trial.state_dict())
    named.close()
    trial.close()


def test_a_training_that_began_without_a_server_keeps_its_random_once_there_is_one(server: Any, project: str) -> None:
    alone = training(None, project)
    take(alone, 2)
    names = []
    for _ in range(2):
        there = training(server.target, project)
        there.load_state_dict(copy.deepcopy(alone.state_dict()))
        take(there, 1)
        there.close()
        names.append(there.run)
    assert names[0] == names[1]
