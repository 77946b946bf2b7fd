"""Tries every optimizer of torch.optim and of the package pytorch_optimizer as BASE, and writes the tables of docs/bases.md.

    python -m tests.torch.bases           # try all, write the page; some minutes
    python -m tests.torch.bases NAME …    # try these, print what was found

Each learns a small problem, and is resumed from a checkpoint: alone, and as BASE. As BASE it is right if S leaves s_init,
if the loss falls at least half as far as it does alone with the best of some learning rates, and if it resumes bit for bit
wherever it does so alone. Or it is refused by name before the first step.
"""

import inspect
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mechanicd.client import InvalidArgument
from mechanicd.torch import mechanize
from tests.support.findings import Finding

PAGE: Final = Path(__file__).parents[2] / "docs" / "bases.md"
PACKAGE: Final = "pytorch_optimizer"
BEGIN: Final = "<!-- made by python -m tests.torch.bases -->\n"
STEPS, HALFWAY, REST = 120, 8, 8
LONGER = 600
S_INIT = 1e-4
RATES = (None, 1.0, 0.1)
"""Learning rates that BASE is tried with alone; None is its own default."""

Make = Callable[[torch.nn.Module, float | None], torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    """One optimizer to try.

    Attributes:
        make: makes it for a model, with a learning rate or its default.
        loop: "plain"; "graph" if BASE needs the graph of the gradients; "closure"; "sam": a closure, and gradients before it.
        biases: whether the model has any; some optimizers take matrices only.
        maximize: whether BASE ascends.
        learns_as: what it learns as alone; cases that differ in their kernels only share it.
    """

    name: str
    make: Make
    loop: str = "plain"
    biases: bool = True
    maximize: bool = False
    learns_as: str = ""


# ---- the problem


def network(biases: bool) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16, bias=biases), torch.nn.Tanh(), torch.nn.Linear(16, 4, bias=biases))


def problem() -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=make)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3].sin(), x[:, 4] - x[:, 5]], 1)


def seed(number: int) -> None:
    """Of every generator that an optimizer draws from: one of them takes numpy's."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


class Training:
    """One training; its steps use random numbers that depend on their number alone."""

    def __init__(self, case: Case, lr: float | None, mechanized: bool) -> None:
        self.case, self.done = case, 0
        self.sign = -1.0 if case.maximize else 1.0
        self.model = network(case.biases)
        seed(0)
        base = case.make(self.model, lr)
        self.opt: Any = mechanize(base, s_init=S_INIT) if mechanized else base
        self.x, self.y = problem()

    def loss(self) -> Tensor:
        return torch.nn.functional.mse_loss(self.model(self.x), self.y)

    def backward(self) -> Tensor:
        with torch.enable_grad():
            self.opt.zero_grad()
            loss = self.loss()
            (self.sign * loss).backward(create_graph=self.case.loop == "graph")
        return loss.detach()

    def run(self, steps: int) -> float:
        for _ in range(steps):
            seed(self.done)
            if self.case.loop != "closure":
                self.backward()
            if self.case.loop in ("closure", "sam"):
                gsam = self.case.name == "GSAM"  # its closure returns the outputs as well
                self.opt.step((lambda: (None, self.backward())) if gsam else self.backward)
            else:
                self.opt.step()
            for p in self.model.parameters():
                if self.case.loop == "graph":
                    p.grad = None  # or the graph of the gradients is never freed
            self.done += 1
        with torch.no_grad():
            return self.loss().item()

    def saved(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "opt": self.opt.state_dict()}, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO, done: int) -> None:
        saved = torch.load(file, weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.opt.load_state_dict(saved["opt"])
        self.done = done


def resumes(case: Case, mechanized: bool) -> str:
    """ "yes" if a training that is loaded from a checkpoint goes on with the bits of the one that saved it; else why not."""
    try:
        first, second = (Training(case, 1.0, mechanized) for _ in range(2))
        first.run(HALFWAY)
        second.load(first.saved(), HALFWAY)
        first.run(REST)
        second.run(REST)
    except Exception as error:
        return f"no, {_said(error)}"
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return "yes" if all(torch.equal(p, q) for p, q in pairs) else "no"


# ---- the judgement


def tried(case: Case) -> Finding:
    """Tries one optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            training = Training(case, 1.0, mechanized=True)
        except InvalidArgument as error:
            return Finding(case.name, f"refused: `{error.reason}`", error.message.split(", but ")[0].split(": the weights")[0])
        except Exception as error:
            return Finding(case.name, "untried", _said(error))
        start = training.run(0)
        best = alone(case)
        if not math.isfinite(best):
            return Finding(case.name, "untried", _failure(case))
        try:
            end = training.run(STEPS)
            if start - end < 0.5 * (start - best):
                end = training.run(LONGER)  # where S has a long way to go
            S = training.opt.scale
        except InvalidArgument as error:
            return Finding(case.name, f"refused: `{error.reason}`", "at the first step")
        except Exception as error:
            return Finding(case.name, "wrong", _said(error), (start, best, math.nan))
        losses, here, there = (start, best, end), resumes(case, True), resumes(case, False)
        why = ""
        if there == "yes" and here != "yes":
            why = f"resumes alone, but not as BASE: {here}"
        elif best > 0.95 * start:
            return Finding(case.name, "untried", "does not learn this problem alone", losses, here)
        elif not S > 2.0 * S_INIT:
            why = f"S stays at {S:.1e}"
        elif start - end < 0.5 * (start - best):
            why = "learns far less than alone"
        if here != "yes" and not why:
            return Finding(case.name, "right", "does not resume alone either", losses, "no")
        return Finding(case.name, "wrong" if why else "right", why, losses, here)


def alone(case: Case) -> float:
    """The smallest loss that it reaches alone."""
    if case.learns_as not in _ALONE or not case.learns_as:
        _ALONE[case.learns_as] = min(_alone(case, lr) for lr in RATES)
    return _ALONE[case.learns_as]


_ALONE: dict[str, float] = {}


def _alone(case: Case, lr: float | None) -> float:
    try:
        loss = Training(case, lr, mechanized=False).run(STEPS)
    except Exception:
        return math.inf
    return loss if math.isfinite(loss) else math.inf


def _failure(case: Case) -> str:
    try:
        Training(case, 1.0, mechanized=False).run(2)
    except Exception as error:
        return f"alone: {_said(error)}"
    return "alone: diverges"


def _said(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text.splitlines()[0][:100]}" if text else type(error).__name__


# ---- torch.optim


def torch_cases() -> Iterator[Case]:
    """Every optimizer of torch.optim with each option set of torch's own tests."""
    from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs, optim_db

    for info in optim_db:
        cls = info.optim_cls
        loop = "closure" if info.step_requires_closure else "plain"
        for options in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info):
            kwargs = {name: value for name, value in options.kwargs.items() if name != "lr"}
            given = options.kwargs.get("lr")

            def make(model: torch.nn.Module, lr: float | None, cls: Any = cls, kwargs: Any = kwargs, given: Any = given) -> Any:
                own = {} if lr is None else {"lr": torch.tensor(lr) if isinstance(given, Tensor) else lr}
                return cls(model.parameters(), **own, **kwargs)

            shown = [f"{k}={v!r}" for k, v in kwargs.items()] + (["lr a tensor"] if isinstance(given, Tensor) else [])
            essential = {k: v for k, v in kwargs.items() if k not in ("foreach", "fused", "capturable", "differentiable")}
            yield Case(
                f"{cls.__name__}({', '.join(shown)})",
                make,
                loop,
                biases=cls.__name__ != "Muon",
                maximize=bool(kwargs.get("maximize")),
                learns_as=f"{cls.__name__} {essential}",
            )


def torch_rows(findings: list[Finding]) -> Iterator[str]:
    """One line a class: how many option sets are right, which are refused, and which are neither."""
    by_class: dict[str, list[Finding]] = {}
    for finding in findings:
        by_class.setdefault(finding.name.partition("(")[0], []).append(finding)
    for name, found in by_class.items():
        right = [f for f in found if f.verdict == "right"]
        refused = sorted({f.verdict.removeprefix("refused: ") for f in found if f.verdict.startswith("refused")})
        others = [f"{f.name}: {f.why}" for f in found if f.verdict != "right" and not f.verdict.startswith("refused")]
        verdict = f"right: {len(right)} of {len(found)} option sets" if right else "refused"
        if refused:
            verdict += f"; {', '.join(refused)}: {sum(f.verdict.startswith('refused') for f in found)}"
        yield f"| {name} | {verdict} | {'; '.join(others)} |"


# ---- pytorch_optimizer

FLAGGED: Final = ("AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon")
"""Those whose param groups say use_muon."""
MATRICES: Final = ("SpectralSphere",)
GRAPH: Final = ("AdaHessian", "SophiaH")
CLOSURE: Final = ("AliG",)
SAMS: Final = ("BSAM", "FriendlySAM", "GSAM", "LookSAM", "SAM", "WSAM")
WRAPPERS: Final = ("Lookahead", "OrthoGrad", "PCGrad", "ScheduleFreeWrapper", "TRAC")
NOT_BY_PARAMETERS: Final = {"DynamicLossScaler", "RotoGrad"}
"""Those in its list of optimizers that are none."""


def package_cases() -> Iterator[Case]:
    """Every optimizer of pytorch_optimizer that is not torch's own."""
    import pytorch_optimizer

    names = [name for name in pytorch_optimizer.optimizer.__all__ if name not in NOT_BY_PARAMETERS]
    for name in sorted(names, key=str.lower):
        cls = getattr(pytorch_optimizer, name, None)
        if not inspect.isclass(cls) or not issubclass(cls, torch.optim.Optimizer) or cls.__module__.startswith("torch."):
            continue
        loop = "graph" if name in GRAPH else "closure" if name in CLOSURE else "sam" if name in SAMS else "plain"
        yield Case(name, _maker(name, cls), loop, biases=name not in MATRICES)


def _maker(name: str, cls: Any) -> Make:
    takes_lr = "lr" in inspect.signature(cls).parameters

    def make(model: torch.nn.Module, lr: float | None) -> Any:
        own = {"lr": lr} if takes_lr and lr is not None else {}
        params: Any = list(model.parameters())
        if name in FLAGGED:
            matrices, rest = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
            groups = [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}]
            return cls(groups, **own)
        if name in WRAPPERS:
            wrapped = cls(torch.optim.SGD(params, lr=0.1 if lr is None else lr))
            if name == "ScheduleFreeWrapper":
                wrapped.train()
            return wrapped
        return _special(name, cls, model, params, own)

    return make


def _special(name: str, cls: Any, model: torch.nn.Module, params: Any, own: dict[str, Any]) -> Any:
    rate = own.get("lr", 0.1)
    if name == "GSAM":
        from pytorch_optimizer.lr_scheduler import ProportionScheduler

        base = torch.optim.SGD(params, lr=rate)
        constant = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
        return cls(params, base, model, ProportionScheduler(constant, rate, rate, 0.05, 0.05))
    if name == "WSAM":
        return cls(model, params, torch.optim.SGD, lr=rate)
    if name in SAMS and name != "BSAM":
        return cls(params, torch.optim.SGD, lr=rate)
    if name == "BSAM":
        return cls(params, num_data=10**6, foreach=False, **own)
    if name in ("LOMO", "AdaLOMO", "AdamMini"):
        return cls(model, **own)
    if name == "Ranger21":
        return cls(params, STEPS, **own)
    if name == "SaRA":
        return cls(params, threshold=10.0, **own)  # it trains the weights below
    if name == "SafeFP16Optimizer":
        return cls(torch.optim.SGD(params, lr=rate))
    return cls(params, **own)


# ---- the page


def main() -> None:
    """Tries the optimizers that are named, or all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # some take no step without
    names = sys.argv[1:]
    ours = [_shown(tried(case)) for case in torch_cases() if not names or case.name.partition("(")[0] in names]
    theirs = [_shown(tried(case)) for case in package_cases() if not names or case.name in names]
    if not names:
        text = PAGE.read_text().partition(BEGIN)[0].rstrip() + "\n\n"
        PAGE.write_text(text + BEGIN + page(ours, theirs))
    wrong = [finding.name for finding in ours + theirs if finding.verdict == "wrong"]
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def _shown(finding: Finding) -> Finding:
    print(finding.row(), flush=True)
    return finding


def page(ours: list[Finding], theirs: list[Finding]) -> str:
    """The tables."""
    right, refused = (sum(f.verdict.startswith(word) for f in theirs) for word in ("right", "refused"))
    start = next(f.losses[0] for f in ours if f.verdict == "right")
    return "\n".join(
        [
            "",
            f"## torch.optim {torch.__version__.partition('+')[0]}",
            "",
            "Each optimizer with the option sets of PyTorch's own tests, on the CPU.",
            "",
            "| BASE | verdict | |",
            "|---|---|---|",
            *torch_rows(ours),
            "",
            f"## pytorch_optimizer {version(PACKAGE)}",
            "",
            f"{right} are right, {refused} are refused, {len(theirs) - right - refused} could not be tried, of {len(theirs)}.",
            f"Loss, from {start:.2g}: alone after {STEPS} steps with the best of some learning rates · as BASE after as many,",
            f"or after {STEPS + LONGER} if S has a long way to go.",
            "Resumes: whether a training loaded from a checkpoint continues bit for bit.",
            "",
            "| BASE | verdict | loss | resumes | |",
            "|---|---|---|---|---|",
            *(finding.row() for finding in theirs),
            "",
        ]
    )


if __name__ == "__main__":
    main()
