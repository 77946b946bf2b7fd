"""An interrupt at any line of a step: the optimizer is then as before the step or as after it, and training goes on right.

A trace function counts the lines that a step runs, in every module, and at the n-th sends this process a real signal, whose
handler raises. MECHANICD_SOAK=1 tries every n, every instruction of a few layouts, and more lines through a server; else a
sample, whose seed MECHANICD_SEED sets.
"""

import copy
import random
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch

from mechanicd.client import SessionError
from mechanicd.client.framework import close_on_sigterm
from mechanicd.torch import mechanize
from tests.support.interrupts import At
from tests.support.soak import SOAK, chosen_seed

SEED = chosen_seed()
STEPS, BEFORE = 6, 3
THROUGH_SERVER = 400 if SOAK else 15
pytestmark = pytest.mark.timeout(3600 if SOAK else 120)


class Stopped(Exception):
    """What a handler of the program's own raises."""


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, the others an error of the program's."""
    close_on_sigterm()  # else the first session of this process would wrap the handlers below
    former = {number: signal.signal(number, stop) for number in (signal.SIGHUP, signal.SIGUSR1)}
    former[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = {number: signal.getsignal(number) for number in former}
    yield
    assert {number: signal.getsignal(number) for number in former} == wanted, "the handlers are the program's again"
    for number, handler in former.items():
        signal.signal(number, handler)


RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGHUP: Stopped, signal.SIGUSR1: Stopped}


class SAM(torch.optim.SGD):
    """Looks for the gradient elsewhere first, in a closure of its own."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        here = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad, alpha=0.05)
        with torch.enable_grad():
            loss = closure()
        for p, x in zip(params, here, strict=True):
            p.copy_(x)
        super().step()
        return loss


class Training:
    """A small training whose every batch is known by its number."""

    def __init__(self, base: str, dtype: torch.dtype, layout: str, closure: bool, **where: Any) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).to(dtype)
        parameters = self.model.parameters()
        made: torch.optim.Optimizer
        match base:
            case "adamw":
                made = torch.optim.AdamW(parameters, lr=1.0)
            case "sam":
                made = SAM(parameters, lr=1.0, momentum=0.9)
            case _:
                made = torch.optim.SGD(parameters, lr=1.0, momentum=0.9)
        self.opt = mechanize(made, s_init=1e-3, delta_layout=layout, **where)
        self.dtype, self.closure = dtype, closure

    def evaluate(self, t: int) -> Any:
        make = torch.Generator().manual_seed(t)
        x = torch.randn(8, 4, generator=make).to(self.dtype)
        self.opt.zero_grad()
        loss = (self.model(x) - x.sum(1, keepdim=True).sin()).pow(2).mean()
        loss.backward()
        return loss

    def step(self, t: int, at: At | None = None) -> None:
        closure = (lambda: self.evaluate(t)) if self.closure else None
        if closure is None:
            self.evaluate(t)
        with at or At(0):
            self.opt.step(closure)

    def train(self, steps: range) -> "Training":
        for t in steps:
            self.step(t)
        return self

    def bits(self) -> Any:
        """Everything that a step changes: weights, Δ, x_ref, where they are placed, BASE's state, the tuner's."""
        return plain([list(self.model.parameters()), self.opt.state_dict()])


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), bytes(value.detach().contiguous().view(-1).view(torch.uint8).tolist())
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


CASES = {
    "sgd": ("sgd", torch.float32, "delta", False),
    "adamw": ("adamw", torch.float32, "delta", False),
    "delta+ref": ("adamw", torch.float32, "delta+ref", False),
    "ref": ("sgd", torch.float32, "ref", False),
    "bfloat16": ("sgd", torch.bfloat16, "delta", False),
    "closure": ("adamw", torch.float32, "delta", True),
    "sam": ("sam", torch.float32, "delta", True),
    "sam with x_ref": ("sam", torch.bfloat16, "delta", True),
}


def sample(lines: int, most: int, every_one: bool = SOAK) -> list[int]:
    every = list(range(1, lines + 1))
    return every if every_one or lines <= most else sorted(random.Random(SEED).sample(every, most))


def copies(case: str) -> Callable[[], Training]:
    """Makes trainings that have come as far as the step that is interrupted."""
    start = Training(*CASES[case]).train(range(BEFORE))
    return lambda: copy.deepcopy(start)


def states(new: Callable[[], Training]) -> tuple[Any, Any, Any, int, int]:
    """The bits before a step, after it and at the end of an undisturbed training; the step's lines, and instructions."""
    before, counts = new().bits(), []
    for opcodes in (False, True):
        twin = new()
        counter = At(0, opcodes=opcodes)
        twin.step(BEFORE, counter)
        counts.append(counter.count)
    after = twin.bits()
    return before, after, twin.train(range(BEFORE + 1, STEPS)).bits(), *counts


def disturbed(do: Callable[[], object], at: At) -> None:
    """Does it, and expects what the handler raises; nothing if this time there were fewer lines."""
    raised: type[BaseException] | None = None
    try:
        do()
    except (KeyboardInterrupt, Stopped) as error:
        raised = type(error)
    assert raised is (RAISED[at.number] if at.sent else None), f"seed {SEED}: {at.event} {at.n} of a step"


def interrupted(training: Training, at: At, before: Any, after: Any) -> bool:
    """Takes a step that a signal interrupts, and says whether it was taken."""
    disturbed(lambda: training.step(BEFORE, at), at)
    found = training.bits()
    assert found in (before, after), f"seed {SEED}: {at.event} {at.n} of a step"
    return bool(found == after)


@pytest.mark.parametrize("number", RAISED)
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_taken_whole_or_not_at_all_and_what_follows_is_right(case: str, number: int) -> None:
    new = copies(case)
    before, after, end, lines, _ = states(new)
    taken = 0
    for n in sample(lines, 15, every_one=SOAK and number == signal.SIGINT):
        training = new()
        done = interrupted(training, At(n, number), before, after)
        taken += done
        assert training.train(range(BEFORE + done, STEPS)).bits() == end, f"seed {SEED}: line {n}"
    assert taken > 0


@pytest.mark.parametrize("case", ["sgd", "delta+ref", "bfloat16"])
def test_so_it_is_between_any_two_instructions(case: str) -> None:
    new = copies(case)
    before, after, end, _, instructions = states(new)
    for n in sample(instructions, 30):
        training = new()
        done = interrupted(training, At(n, opcodes=True), before, after)
        assert training.train(range(BEFORE + done, STEPS)).bits() == end, f"seed {SEED}: instruction {n}"


def test_the_first_step_too(server: Any, project: str, history: Any) -> None:
    """It opens the session, and makes BASE's state and Δ."""
    whole = Training(*CASES["adamw"]).train(range(STEPS))
    for run in ("first", "second"):  # the first also imports
        counter = At(0)
        Training(*CASES["adamw"], run=run, target=server.target, project=project).step(0, counter)
    for n in sample(counter.count, THROUGH_SERVER, every_one=False):
        training = Training(*CASES["adamw"], run=f"r{n}", target=server.target, project=project)
        at = At(n)
        disturbed(lambda: training.step(0, at), at)  # noqa: B023
        training.train(range(training.opt.last_step, STEPS))
        assert training.bits()[0] == whole.bits()[0], f"seed {SEED}: line {n}"
        training.opt.close()
        assert len(history(server.target, f"r{n}", project)) == STEPS


@pytest.mark.parametrize("case", ["sgd", "closure"])
def test_through_a_server_its_history_is_whole_as_well(case: str, server: Any, project: str, history: Any) -> None:
    whole = Training(*CASES[case])
    scales = []
    for t in range(STEPS):
        whole.step(t)
        scales.append(whole.opt.scales)
    counter = At(0)
    Training(*CASES[case], run="lines", target=server.target, project=project).train(range(BEFORE)).step(BEFORE, counter)
    for n in sample(counter.count, THROUGH_SERVER, every_one=False):
        training = Training(*CASES[case], run=f"r{n}", target=server.target, project=project).train(range(BEFORE))
        at = At(n)
        disturbed(lambda: training.step(BEFORE, at), at)  # noqa: B023
        training.train(range(training.opt.last_step, STEPS))
        assert training.bits()[0] == whole.bits()[0], f"seed {SEED}: line {n}"
        training.opt.close()
        kept = history(server.target, f"r{n}", project)
        assert [(record.step, tuple(record.scale)) for record in kept] == list(enumerate(scales, 1)), f"seed {SEED}: line {n}"


class Hanging(torch.optim.SGD):
    """Moves the parameters, and then takes its time over a closure, in which signals come."""

    signals: tuple[int, ...] = ()
    pause = 0.0

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for number in self.signals:
            signal.raise_signal(number)
            time.sleep(self.pause)
        return result


def hanging(*signals: int, pause: float) -> tuple[Training, Any]:
    training = Training(*CASES["sgd"])
    base = Hanging(training.model.parameters(), lr=1.0)
    training.opt = mechanize(base, s_init=1e-3)
    training.train(range(BEFORE))
    before = plain(list(training.model.parameters()))
    base.signals, base.pause = signals, pause
    return training, before


def test_a_second_ctrl_c_leaves_a_base_that_hangs_and_the_weights_are_as_before() -> None:
    training, before = hanging(signal.SIGINT, signal.SIGINT, signal.SIGUSR1, pause=0.3)
    with pytest.raises(KeyboardInterrupt):
        training.step(BEFORE)
    assert plain(list(training.model.parameters())) == before
    assert training.opt.last_step == BEFORE + 1, "the step counts"
    training.opt.base.signals = ()
    training.train(range(BEFORE + 1, STEPS))


def test_a_ctrl_c_that_comes_twice_at_once_is_one() -> None:
    """A terminal sends it to every process of a job, and a launcher once more to its workers."""
    training, before = hanging(signal.SIGINT, signal.SIGINT, pause=0.0)
    with pytest.raises(KeyboardInterrupt):
        training.step(BEFORE)
    assert plain(list(training.model.parameters())) != before
    assert training.opt.last_step == BEFORE + 1


def test_a_timer_that_rings_all_the_time_never_breaks_a_step() -> None:
    training, before = hanging(*[signal.SIGUSR1] * 3, pause=0.3)
    with pytest.raises(Stopped):
        training.step(BEFORE)
    assert plain(list(training.model.parameters())) != before


def test_two_signals_that_wait_are_both_handled() -> None:
    heard = []
    signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    training, _ = hanging(signal.SIGINT, signal.SIGHUP, pause=0.0)
    with pytest.raises(KeyboardInterrupt):
        training.step(BEFORE)
    assert heard == [signal.SIGHUP]
    signal.signal(signal.SIGHUP, stop)


def test_a_handler_that_base_installs_stays() -> None:
    class Installs(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            signal.signal(signal.SIGINT, stop)
            return super().step(closure)

    training = Training(*CASES["sgd"])
    training.opt = mechanize(Installs(training.model.parameters(), lr=1.0))
    training.train(range(2))
    assert signal.getsignal(signal.SIGINT) is stop
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_handler_may_look_at_the_optimizer_and_save_it() -> None:
    """As Lightning's does on SLURM's signal: what it saves is a whole step."""
    training = Training(*CASES["adamw"]).train(range(BEFORE))
    twin = copy.deepcopy(training)
    saved: list[Any] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: saved.append(training.bits()))
    counter = At(0)
    copy.deepcopy(training).step(BEFORE, counter)
    training.step(BEFORE, At(counter.count // 2, signal.SIGUSR1))
    twin.step(BEFORE)
    assert saved == [training.bits()] == [twin.bits()]
    signal.signal(signal.SIGUSR1, stop)


def test_an_interrupt_while_a_checkpoint_is_loaded_leaves_the_one_or_the_other() -> None:
    new = copies("adamw")
    before, other = new().bits(), new().train(range(BEFORE, STEPS))
    saved = copy.deepcopy(other.opt.state_dict())
    counter, twin = At(0), new()
    with counter:
        twin.opt.load_state_dict(saved)
    for n in sample(counter.count, 40):
        training, part, at = new(), copy.deepcopy(saved), At(n)
        try:
            with at:
                training.opt.load_state_dict(part)
        except KeyboardInterrupt:
            pass
        found = training.bits()[1]
        assert found in (before[1], other.bits()[1]), f"seed {SEED}: line {n}"


def test_an_update_that_an_error_stops_halfway_is_refused_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(*CASES["adamw"]).train(range(BEFORE))
    saved = copy.deepcopy([training.model.state_dict(), training.opt.state_dict()])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_mul_", _no_memory)  # after Δ has moved, before x has
        with pytest.raises(MemoryError):
            training.step(BEFORE)
    for use in (lambda: training.step(BEFORE), training.opt.state_dict, lambda: copy.deepcopy(training).step(BEFORE)):
        with pytest.raises(SessionError, match="MemoryError") as caught:
            use()
        assert caught.value.reason == "STEP_BROKEN"
    training.model.load_state_dict(saved[0])
    training.opt.load_state_dict(saved[1])
    training.train(range(BEFORE, STEPS))
    assert training.bits() == Training(*CASES["adamw"]).train(range(STEPS)).bits()


def _no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError
