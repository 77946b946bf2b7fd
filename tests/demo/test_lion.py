"""Lion's update is its paper's."""

import pytest
import torch

from mechanicd.demo.lion import Lion


def test_two_steps_by_hand():
    # Chen et al. 2023, Algorithm 2, with β = (0.9, 0.99), lr = 0.1, weight decay 0.5.
    x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    lion = Lion([x], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)

    x.grad = torch.tensor([0.4, -0.1, 0.0], dtype=torch.float64)
    lion.step()
    # c = 0.1 g = (0.04, −0.01, 0): x ← x − 0.1·(sign c + 0.5 x);  m = 0.01 g = (0.004, −0.001, 0)
    assert x.tolist() == pytest.approx([0.85, -1.8, 2.85])
    assert lion.state[x]["m"].tolist() == pytest.approx([0.004, -0.001, 0.0])

    x.grad = torch.tensor([-0.03, 0.02, -5.0], dtype=torch.float64)
    lion.step()
    # c = 0.9 m + 0.1 g = (0.0036 − 0.003, −0.0009 + 0.002, −0.5) = (0.0006, 0.0011, −0.5): the first keeps its old sign
    assert x.tolist() == pytest.approx([0.85 - 0.1 * (1 + 0.425), -1.8 - 0.1 * (1 - 0.9), 2.85 - 0.1 * (-1 + 1.425)])
    # m = 0.99 m + 0.01 g
    assert lion.state[x]["m"].tolist() == pytest.approx([0.00396 - 0.0003, -0.00099 + 0.0002, -0.05])


def test_parameters_without_a_gradient_stay():
    x, y = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    lion = Lion([x, y], lr=0.1, weight_decay=0.1)
    x.grad = torch.ones(2)
    lion.step()
    assert y.tolist() == [1.0, 1.0]
    assert y not in lion.state


def test_it_evaluates_a_closure_and_saves_its_state():
    x = torch.nn.Parameter(torch.ones(2))
    lion = Lion([x])

    def closure() -> torch.Tensor:
        lion.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss.detach()

    assert float(lion.step(closure)) == 2.0
    other = Lion([torch.nn.Parameter(x.detach().clone())])
    other.load_state_dict(lion.state_dict())
    (state,) = other.state.values()
    assert torch.equal(state["m"], lion.state[x]["m"])


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}])
def test_settings_out_of_range_are_refused(settings: dict):
    with pytest.raises(ValueError, match="expected"):
        Lion([torch.nn.Parameter(torch.ones(1))], **settings)
