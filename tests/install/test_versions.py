"""The documentation states the lowest versions that pyproject.toml does."""

import re
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
