"""The documentation states the lowest versions that pyproject.toml does, and `make floors` says what it could not try."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def stated() -> dict[str, str]:
    """The lowest version of each package that users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {"experiments", "docs", "dev"}
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in ours]
    found = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", name) for name in sum(extras, project["dependencies"])]
    return {match[1]: match[2] for match in found if match}


def test_the_table_of_versions_has_the_floors_of_pyproject() -> None:
    table = (ROOT / "docs" / "index.md").read_text().partition("### Versions")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", table, re.MULTILINE))
    assert {"grpcio", "protobuf", "torch", "jax", "optax", "transformers", "accelerate", "lightning", "tensorboard"} <= set(
        rows
    )
    assert rows == {package: stated()[package] for package in rows}


def test_an_interpreter_that_is_not_here_is_named() -> None:
    script = str(Path(__file__).with_name("floors.py"))
    done = subprocess.run([sys.executable, script, "python9.9"], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines()[-1] == "not run: python9.9 is not installed here"
    done = subprocess.run(
        [sys.executable, script, "--json", "python9.9"], capture_output=True, text=True, timeout=100, check=True
    )
    assert json.loads(done.stdout) == {"rows": [], "not_run": ["python9.9"]}


def test_every_extra_for_users_has_a_smoke_test() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    smokes = set(re.findall(r"^def (\w+)\(target", Path(__file__).with_name("smoke.py").read_text(), re.MULTILINE))
    assert smokes == extras - {"experiments", "docs", "dev"} | {"client"}
