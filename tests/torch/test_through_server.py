"""A training through the server equals the same training without one, bit for bit, whatever happens to either process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from mechanicd.client import ServerUnavailable, SessionFenced
from mechanicd.torch import mechanize

STEPS = 120
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1.0),
}


class Digits:
    """A small network on scikit-learn's real digits: model, mechanized optimizer and schedule."""

    def __init__(self, base: str, **where: Any) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        self.opt = mechanize(BASES[base](self.model.parameters()), **where)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.opt, 1.0, 0.1, STEPS)
        digits = load_digits()
        self.x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
        self.y = torch.tensor(digits.target)
        self.scales: list[tuple[float, ...]] = []

    def train(self, steps: range) -> "Digits":
        for step in steps:
            rows = torch.arange(step * 64, (step + 1) * 64) % len(self.x)
            loss = torch.nn.functional.cross_entropy(self.model(self.x[rows]), self.y[rows])
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.schedule.step()
            self.scales.append(self.opt.scales)
        return self

    def bits(self) -> list[bytes]:
        return [p.detach().numpy().tobytes() for p in self.model.parameters()]

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "schedule": self.schedule.state_dict()}
        torch.save(state, path)

    def load(self, path: Path) -> "Digits":
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.schedule.load_state_dict(state["schedule"])
        return self


@pytest.mark.parametrize("base", BASES)
def test_it_equals_the_training_without_a_server(base: str, server: Any, history: Any, project: str) -> None:
    alone = Digits(base).train(range(STEPS))
    served = Digits(base, run="digits", target=server.target, project=project).train(range(STEPS))
    assert served.opt.flush() == STEPS
    served.opt.close()
    assert served.scales == alone.scales
    assert served.bits() == alone.bits()
    kept = history(server.target, "digits", project)
    assert [tuple(record.scale) for record in kept] == alone.scales
    assert [record.base_lr for record in kept][:1] == [1.0]
    assert kept[-1].base_lr == pytest.approx(1.0 - 0.9 * (STEPS - 1) / STEPS)
    assert alone.opt.scale > 1e-4, "S left s_init"


def test_it_equals_it_when_the_server_is_killed_in_the_middle(new_server: Any, history: Any) -> None:
    server = new_server().start()
    alone = Digits("adamw").train(range(STEPS))
    served = Digits("adamw", run="killed", target=server.target).train(range(30))
    server.kill()
    served.train(range(30, 80))
    server.start()
    served.train(range(80, STEPS))
    assert served.opt.flush(30) == STEPS
    served.opt.close()
    assert served.scales == alone.scales
    assert served.bits() == alone.bits()
    assert [tuple(record.scale) for record in history(server.target, "killed")] == alone.scales


def test_a_resumed_training_equals_the_uninterrupted_one_and_the_given_up_steps_are_kept(
    server: Any, history: Any, project: str, tmp_path: Path
) -> None:
    alone = Digits("sgd").train(range(STEPS))
    where = {"run": "digits", "target": server.target, "project": project}
    first = Digits("sgd", **where).train(range(50))
    first.save(tmp_path / "checkpoint.pt")
    first.train(range(50, 70))
    assert first.opt.flush() == 70
    # The first process is lost here without a word; a new one comes with the checkpoint.
    second = Digits("sgd", **where).load(tmp_path / "checkpoint.pt").train(range(50, STEPS))
    second.opt.flush()
    assert first.scales[:50] + second.scales == alone.scales
    assert second.bits() == alone.bits()
    assert [tuple(record.scale) for record in history(server.target, "digits", project)] == alone.scales
    given_up = history(server.target, "digits", project, branch=1)
    assert [(record.step, tuple(record.scale)) for record in given_up] == list(enumerate(alone.scales, 1))[50:70]
    first.train(range(70, 71))  # its reply is still in flight
    time.sleep(0.5)
    before = [p.detach().clone() for p in first.model.parameters()]
    with pytest.raises(SessionFenced):
        first.train(range(71, 72))
    assert all(torch.equal(p, kept) for p, kept in zip(first.model.parameters(), before, strict=True)), "x is back at x_t"
    second.opt.close()


def test_a_run_with_several_scale_groups_goes_through_the_server(server: Any, history: Any, project: str) -> None:
    alone = Digits("adamw", scale_groups="tensor").train(range(40))
    served = Digits("adamw", scale_groups="tensor", run="digits", target=server.target, project=project).train(range(40))
    served.opt.flush()
    served.opt.close()
    assert len(served.opt.scales) == 4
    assert served.scales == alone.scales
    assert served.bits() == alone.bits()
    assert tuple(history(server.target, "digits", project)[-1].scale) == alone.scales[-1]


def test_closing_an_optimizer_that_never_stepped_leaves_its_run_alone(server: Any, history: Any, project: str) -> None:
    where = {"run": "digits", "target": server.target, "project": project}
    trained = Digits("sgd", **where).train(range(5))
    trained.opt.close()
    Digits("sgd", **where).opt.close()
    assert [record.step for record in history(server.target, "digits", project)] == [1, 2, 3, 4, 5]


def test_raise_leaves_the_parameters_where_they_were(new_server: Any) -> None:
    server = new_server().start()
    training = Digits("adamw", run="raises", target=server.target, on_outage="raise").train(range(5))
    before = training.bits()
    server.kill()
    with pytest.raises(ServerUnavailable):
        training.train(range(5, 6))
    assert training.bits() == before
    training.opt.close()
