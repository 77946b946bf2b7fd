"""A checkpoint is enough to resume, bit for bit; what does not fit is refused by name."""

import base64
import copy
import io
import logging
import pickle

import pytest
import torch

from mechanicd.client import ConfigMismatch, LocalSession, ResumeError, ServerUnavailable, SessionFenced, _run
from mechanicd.torch import mechanize
from mechanicd.tuner import TunerState

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0),
}


def train(problem, opt, steps, start=0):
    """Each parameter sits out every fifth step."""
    for t in range(start, start + steps):
        problem.backward(without=[i for i in range(4) if t % 5 == i + 1])
        opt.step()


def mechanic(state_dict):
    """The tuner's part of a checkpoint."""
    return state_dict["param_groups"][0]["mechanic"]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load_x(problem, params):
    with torch.no_grad():
        for p, saved in zip(problem.params, params, strict=True):
            p.copy_(saved)


class Recorded(LocalSession):
    """Stands for a server's session, and writes down what is asked of it."""

    def __init__(self, name, config, start):
        super().__init__(config, start if isinstance(start, TunerState) else None)
        self.name = name
        self.events = []
        self.away = None

    def flush(self, timeout=None):
        self.events.append("flush")
        if self.away is not None:
            raise self.away
        return self.state.step

    def _close(self, status, message):
        self.events.append((status, message))


@pytest.fixture
def opened(monkeypatch):
    """What open_run was called with, and the session it gave, each time."""
    calls = []

    def open_run(target, run, **options):
        calls.append(({"target": target, "run": run, **options}, Recorded(run, options["config"], options["start"])))
        return calls[-1][1]

    monkeypatch.setattr(_run, "open_run", open_run)
    return calls


# ---- resume


@pytest.mark.parametrize("name", sorted(BASES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_groups", ["all", "tensor"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name, dtype, scale_groups, new_problem):
    whole = new_problem(dtype)
    opt = mechanize(BASES[name](whole.params), scale_groups=scale_groups)
    train(whole, opt, 23)
    saved = through_a_file({"x": whole.params, "opt": opt.state_dict()})
    train(whole, opt, 20, start=23)

    again = new_problem(dtype)
    resumed = mechanize(BASES[name](again.params), scale_groups=scale_groups)
    load_x(again, saved["x"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 20, start=23)
    assert resumed.scales == opt.scales
    for p, q in zip(whole.params, again.params, strict=True):
        assert torch.equal(p, q)
    one, other = opt.state_dict(), resumed.state_dict()
    assert mechanic(one) == mechanic(other)
    assert {i: set(entry) for i, entry in one["state"].items()} == {i: set(entry) for i, entry in other["state"].items()}
    for i, entry in one["state"].items():
        assert {"mechanic_delta", "mechanic_placed"} <= set(entry)
        for key, value in entry.items():
            assert (
                torch.equal(value, other["state"][i][key])
                if isinstance(value, torch.Tensor)
                else value == other["state"][i][key]
            )


def test_loading_into_the_optimizer_that_saved_goes_back(problem):
    opt = mechanize(BASES["adamw"](problem.params))
    train(problem, opt, 20)
    saved = copy.deepcopy({"x": problem.params, "opt": opt.state_dict()})
    ends = []
    for _ in range(2):
        train(problem, opt, 15, start=20)
        ends.append([opt.scale, *(p.detach().clone() for p in problem.params)])
        load_x(problem, saved["x"])
        opt.load_state_dict(saved["opt"])
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(p, q) for p, q in zip(ends[0][1:], ends[1][1:], strict=True))


def test_a_loaded_delta_is_a_copy(problem):
    opt = mechanize(BASES["sgd"](problem.params))
    train(problem, opt, 5)
    saved = copy.deepcopy(opt.state_dict())
    before = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    train(problem, opt, 5)
    for i, entry in before["state"].items():
        assert torch.equal(saved["state"][i]["mechanic_delta"], entry["mechanic_delta"])


def test_a_checkpoint_before_the_first_step_loads(new_problem):
    first, second = new_problem(), new_problem()
    saved = through_a_file(mechanize(BASES["sgd"](first.params)).state_dict())
    opt = mechanize(BASES["sgd"](second.params))
    opt.load_state_dict(saved)
    train(second, opt, 3)
    assert "step=3" in repr(opt)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_a_copied_optimizer_goes_on_by_itself(copied, problem):
    """Also as torch.save(optimizer) does it."""
    opt = mechanize(BASES["adamw"](problem.params), run="r")
    train(problem, opt, 20)
    twin, twin_opt = copied((problem, opt))
    train(problem, opt, 10)
    train(twin, twin_opt, 10)
    assert twin_opt.run == "r"
    assert twin_opt.base is not opt.base
    assert twin_opt.param_groups[0]["params"][0] is twin.params[0]
    assert twin_opt.scale == opt.scale
    assert all(torch.equal(p, q) for p, q in zip(problem.params, twin.params, strict=True))


# ---- what does not fit


def test_a_plain_optimizers_state_dict_is_refused(problem):
    opt = mechanize(BASES["sgd"](problem.params))
    with pytest.raises(ResumeError, match=r"opt\.base\.load_state_dict") as caught:
        opt.load_state_dict(torch.optim.SGD(problem.params, lr=0.5).state_dict())
    assert caught.value.reason == "NOT_MECHANIZED"
    assert opt.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("s_decay", {"s_decay": 0.0}),
        ("betas", {"betas": (0.9, 0.99)}),
        ("s_init", {"s_init": 1e-6}),
        ("eps", {"eps": 1e-6}),
        ("convention", {"convention": "optax"}),
        ("scale_groups", {"scale_groups": "tensor"}),
    ],
)
def test_another_config_is_refused_and_the_field_named(field, settings, new_problem):
    problem, other = new_problem(), new_problem()
    opt = mechanize(BASES["sgd"](problem.params))
    train(problem, opt, 3)
    different = mechanize(BASES["sgd"](other.params), **settings)
    with pytest.raises(ConfigMismatch, match=field) as caught:
        different.load_state_dict(opt.state_dict())
    assert caught.value.reason == "CONFIG_MISMATCH"
    assert caught.value.metadata == {"field": field}


def test_a_damaged_or_foreign_checkpoint_is_refused_and_nothing_changes(new_problem):
    problem = new_problem()
    opt = mechanize(BASES["sgd"](problem.params))
    train(problem, opt, 20)
    good = copy.deepcopy(opt.state_dict())

    newer = copy.deepcopy(good)
    mechanic(newer)["version"] = 99
    damaged = copy.deepcopy(good)
    flipped = bytearray(base64.b64decode(mechanic(good)["tuner_state"]))
    flipped[30] += 1
    mechanic(damaged)["tuner_state"] = base64.b64encode(flipped).decode()
    cut = copy.deepcopy(good)
    mechanic(cut)["tuner_state"] = "no base64!"
    reshaped = copy.deepcopy(good)
    reshaped["state"][1]["mechanic_delta"] = torch.zeros(3)
    stranger = copy.deepcopy(good)
    stranger["state"][7] = good["state"][1]
    S = opt.scale
    for state, reason in [
        (newer, "CHECKPOINT_VERSION"),
        (damaged, "INVALID_TUNER_STATE"),
        (cut, "INVALID_TUNER_STATE"),
        (reshaped, "DELTA_MISMATCH"),
        (stranger, "DELTA_MISMATCH"),
    ]:
        with pytest.raises(ResumeError) as caught:
            opt.load_state_dict(state)
        assert caught.value.reason == reason
    more = copy.deepcopy(good)
    more["param_groups"].append({"lr": 1.0, "params": []})
    with pytest.raises(ValueError, match="number of parameter groups"):  # torch's own check
        opt.load_state_dict(more)
    assert opt.scale == S
    twin = new_problem()
    plain = mechanize(BASES["sgd"](twin.params))
    train(twin, plain, 20)
    train(problem, opt, 5)
    train(twin, plain, 5)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, twin.params, strict=True))


def test_hooks_of_state_dict_run(problem):
    opt = mechanize(BASES["sgd"](problem.params))
    seen = []
    opt.register_state_dict_pre_hook(lambda o: seen.append("before save"))
    opt.register_state_dict_post_hook(lambda o, d: {**d, "extra": 1})
    opt.register_load_state_dict_pre_hook(lambda o, d: seen.append(d.pop("extra")))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("after load"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before save", 1, "after load"]


# ---- the session


def test_the_session_is_opened_at_the_first_step(problem, opened):
    opt = mechanize(
        BASES["sgd"](problem.params),
        run="bert/seed0",
        target="127.0.0.1:1",
        project="p",
        labels={"batch": "256"},
        s_decay=0.5,
        on_outage="hold",
        deadline=3.0,
    )
    assert opened == []
    assert opt.scale == 0.0
    assert opt.flush() == 0
    train(problem, opt, 2)
    ((options, session),) = opened
    config = options.pop("config")
    assert options == {
        "target": "127.0.0.1:1",
        "run": "bert/seed0",
        "project": "p",
        "labels": {"batch": "256"},
        "start": 0,
        "on_outage": "hold",
        "deadline": 3.0,
        "spill": None,
    }
    assert (config.s_decay, config.scale_groups) == (0.5, ("all",))
    assert opt.scale == session.scales[0] > 0
    assert opt.flush() == 2


def test_a_loaded_checkpoint_is_where_the_session_starts(new_problem, opened):
    problem, again = new_problem(), new_problem()
    opt = mechanize(BASES["sgd"](problem.params), run="r", target="t:1")
    train(problem, opt, 5)
    saved = opt.state_dict()
    resumed = mechanize(BASES["sgd"](again.params), run="r", target="t:1")
    resumed.load_state_dict(saved)
    assert resumed.scales == opt.scales
    assert len(opened) == 1
    train(again, resumed, 1)
    assert opened[1][0]["start"] == TunerState.from_bytes(
        base64.b64decode(mechanic(saved)["tuner_state"]), opened[0][0]["config"]
    )


def test_loading_while_the_session_is_open_closes_it_and_says_why(problem, opened):
    opt = mechanize(BASES["sgd"](problem.params), run="r", target="t:1")
    train(problem, opt, 5)
    saved = copy.deepcopy(opt.state_dict())
    train(problem, opt, 5)
    opt.load_state_dict(saved)
    status, message = opened[0][1].events[-1]
    assert status == "preempted"
    assert "step 5" in message
    train(problem, opt, 1)
    assert opened[1][0]["start"].step == 5
    assert opened[1][1].state.step == 6


def test_a_checkpoint_of_no_step_starts_the_run_anew(problem, opened):
    """As wrappers do, which save and load before the training begins."""
    opt = mechanize(BASES["sgd"](problem.params), run="r", target="t:1")
    opt.load_state_dict(opt.state_dict())
    train(problem, opt, 1)
    assert opened[0][0]["start"] == 0


def test_state_dict_flushes_and_does_without_a_server_that_is_away(problem, opened, caplog):
    opt = mechanize(BASES["sgd"](problem.params), run="r", target="t:1")
    opt.state_dict()
    train(problem, opt, 5)
    session = opened[0][1]
    opt.state_dict()
    assert session.events == ["flush"]
    session.away = ServerUnavailable("SERVER_UNREACHABLE", "nobody is there")
    with caplog.at_level(logging.WARNING, "mechanicd.torch"):
        saved = opt.state_dict()
    assert "SERVER_UNREACHABLE" in caplog.text
    assert base64.b64decode(mechanic(saved)["tuner_state"]) == session.state.to_bytes()
    session.away = SessionFenced("SESSION_FENCED", "a newer process holds the run")
    with pytest.raises(SessionFenced):  # a zombie writes no checkpoint over its successor's
        opt.state_dict()


def test_close_and_the_context_manager_say_how_it_ended(new_problem, opened):
    for error, end in [(None, ("finished", "")), (ZeroDivisionError("by zero"), ("failed", "ZeroDivisionError: by zero"))]:
        problem = new_problem()
        try:
            with mechanize(BASES["sgd"](problem.params), run="r", target="t:1") as opt:
                train(problem, opt, 1)
                if error:
                    raise error
        except ZeroDivisionError:
            pass
        assert opened[-1][1].events == [end]
    opt.state_dict()  # of a closed run, from what this process knows
    assert opened[-1][1].events == [end]


def test_closing_before_the_first_step_asks_nothing_of_the_server(problem, opened):
    mechanize(BASES["sgd"](problem.params), run="r", target="t:1").close()
    assert opened == []
