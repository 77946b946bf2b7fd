"""The types that users see: every package is marked as typed, and strict checkers find nothing unknown in a user's program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mechanicd

CLIENT = """
from mechanicd.client import MechanicdError, Reductions, ServerUnavailable, TunerConfig, connect

with connect("127.0.0.1:50051") as client:
    with client.open_run("digits/seed0", config=TunerConfig(s_init=1e-6), labels={"batch": "32"}, on_outage="hold") as session:
        try:
            S: float = session.step(Reductions(delta_dot_g=0.0, delta_dot_x=0.0, g_norm_sq=1.3, x_norm_sq=40.0))
            one: float = session.scale
            every: tuple[float, ...] = session.scales
            print(S, one, every, session.flush(), session.state.step, session.config.convention)
        except (ServerUnavailable, MechanicdError) as error:
            print(error.reason, error.message, error.metadata)
"""

TUNER = """
from mechanicd.tuner import ConfigError, Reductions, Tuner, TunerConfig

try:
    tuner = Tuner(TunerConfig(convention="paper", s_init=1e-6))
except ConfigError as error:
    raise SystemExit(error.field) from error
state = tuner.update(tuner.init(), Reductions(0.0, 0.0, 1.0, 2.0))
scale: tuple[float, ...] = state.scale
print(scale, state.to_bytes())
"""

TORCH = """
import torch

from mechanicd.torch import Mechanized, mechanize

model = torch.nn.Linear(4, 2)
base = torch.optim.AdamW(model.parameters(), lr=1.0)
opt: Mechanized = mechanize(base, run="digits/seed0", target="127.0.0.1:50051", on_outage="local", delta_layout="delta+ref")
opt.zero_grad()
print(opt.scale, opt.run, opt.flush(), opt.effective_lr())
opt.close("finished")
"""

MISTAKES = """
from mechanicd.client import Reductions, TunerConfig, open_run

session = open_run("127.0.0.1:50051", "digits/seed0", on_outage="wait")
S: str = session.step(Reductions(0.0, 0.0, 1.0, 2.0))
TunerConfig(s_init="small")
"""


def folders() -> list[Path]:
    """Every package of the distribution, in all three roots."""
    return [module for root in mechanicd.__path__ for module in Path(root).iterdir() if any(module.glob("*.py"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that mypy's cache is used twice."""
    return tmp_path_factory.mktemp("user")


def outside(folder: Path, **programs: str) -> dict[str, str]:
    """Writes the programs into a folder outside the repository; the environment of a user, who has no paths set."""
    for old in folder.glob("*.py"):
        old.unlink()
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    return {key: value for key, value in os.environ.items() if key not in ("MYPYPATH", "PYTHONPATH")}


def mypy(folder: Path, **programs: str) -> str:
    """What mypy says of the programs."""
    env = outside(folder, **programs)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--disallow-any-expr",
        "--config-file",
        "",
        *(f"{name}.py" for name in programs),
    ]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


def pyright(folder: Path, **programs: str) -> list[str]:
    """The rules that pyright's strict mode finds broken."""
    env = outside(folder, **programs)
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    return [f"{each['file']}: {each['message']} ({each.get('rule')})" for each in json.loads(done.stdout)["generalDiagnostics"]]


def test_every_package_says_that_it_is_typed() -> None:
    assert len(folders()) >= 12
    assert [package.name for package in folders() if not (package / "py.typed").exists()] == []


@pytest.mark.timeout(400)
def test_pyright_strict_finds_nothing_unknown_in_a_users_program(folder: Path) -> None:
    pytest.importorskip("basedpyright")
    assert pyright(folder, client=CLIENT, tuner=TUNER, torch_program=TORCH) == []


@pytest.mark.timeout(400)
def test_mypy_strict_finds_no_any_in_a_users_program(folder: Path) -> None:
    said = mypy(folder, client=CLIENT, tuner=TUNER)  # the torch adapter is left to pyright: mypy takes a minute for torch
    assert said == "Success: no issues found in 2 source files\n"


@pytest.mark.timeout(400)
def test_a_users_mistakes_are_found(folder: Path) -> None:
    """Else the types would be there and say nothing."""
    said = mypy(folder, mistakes=MISTAKES)
    assert 'Argument "on_outage" to "open_run" has incompatible type "Literal[\'wait\']"' in said
    assert 'Incompatible types in assignment (expression has type "float", variable has type "str")' in said
    assert 'Argument "s_init" to "TunerConfig" has incompatible type "str"; expected "float"' in said
