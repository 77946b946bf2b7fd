"""BASEs as people write them, and what the tests of several modules do with them."""

import itertools

import torch


def copies(params):
    return [p.detach().clone() for p in params]


def same(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


class SAM(torch.optim.Optimizer):
    """Its step begins with the gradients that are there, moves x, and calls the closure for a second one."""

    def __init__(self, params, lr=1.0, through_data=False, own_first=False):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)
        self.through_data, self.own_first = through_data, own_first

    def first_step(self):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = sum(float(p.grad.pow(2).sum()) for p in params) ** 0.5 + 1e-12
        for p in params:
            self.state[p]["before"] = p.detach().clone()
            (p.data if self.through_data else p).add_(p.grad, alpha=0.05 / norm)

    def second_step(self):
        for p, entry in self.state.items():
            if "before" in entry:
                p.copy_(entry["before"])
        self.inner.step()

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure() if self.own_first else None
        self.first_step()
        self.zero_grad()
        with torch.enable_grad():
            second = closure()
        self.second_step()
        return second if loss is None else loss


class Wrapper(torch.optim.Optimizer):
    """Keeps its state_dict in a form of its own."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0
        super().__init__([p for group in inner.param_groups for p in group["params"]], inner.defaults)
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        self.count += 1
        if self.count % 3 == 0:
            for p in itertools.chain(*(group["params"] for group in self.param_groups)):
                p.grad.mul_(2.0)
        return self.inner.step(closure)

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        self.count = state_dict["count"]


def adding(problem, calls):
    """A closure that does not zero the gradients, as SAM's own examples have it."""

    def closure():
        loss = problem.loss(problem.params)
        loss.backward()
        calls.append(loss.item())
        return loss

    return closure
