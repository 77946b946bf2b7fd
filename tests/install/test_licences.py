"""docs/licences.md names everything that an installation brings, with the licence that its own metadata states."""

import json
import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = ("server", "postgres")
SPDX = {"MIT License": "MIT", "3-Clause BSD License": "BSD-3-Clause", "Apache Software License": "Apache-2.0"}
PERMITTED = {
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "Apache-2.0",
    "PSF-2.0",
    "MPL-2.0",
    "LGPL-3.0-only",
    "Zlib",
    "CC0-1.0",
}


def tables() -> dict[str, str]:
    """Licences by package, as the page has them."""
    page = (ROOT / "docs" / "licences.md").read_text().partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", page, re.MULTILINE))


def installed() -> dict[str, Distribution]:
    """What the client, a server and PostgreSQL need, with what that needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    waiting, found = [Requirement(each) for each in needed], dict[str, Distribution]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", "binary"))
        if name == "mechanicd" or (name in found and not requirement.extras) or not wanted:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of another system, or of an extra that nobody asked for
        extras = {"", *requirement.extras}
        for text in found[name].requires or ():
            each = Requirement(text)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(each)
    return found


def licence(of: Distribution) -> str:
    if expression := of.metadata.get("License-Expression"):
        return str(expression)
    stated = str(of.metadata.get("License") or "").splitlines()
    classifiers = [each.rpartition(" :: ")[2] for each in of.metadata.get_all("Classifier") or [] if each.startswith("License")]
    known = [SPDX.get(each, each) for each in (*stated[:1], *classifiers)]
    return next((each for each in known if each in PERMITTED), " / ".join(known))


def test_everything_that_is_installed_is_named_with_its_licence() -> None:
    found = {name: licence(of) for name, of in installed().items()}
    assert {"grpcio", "starlette", "h11", "cryptography", "psycopg", "anyio"} <= set(found)
    named = tables()
    assert {name: named.get(name) for name in found} == found


def test_everything_in_the_bundle_of_the_page_is_named_with_its_licence() -> None:
    packages = json.loads((ROOT / "server" / "web" / "package-lock.json").read_text())["packages"]
    bundled = {
        path.rpartition("node_modules/")[2]: each["license"]
        for path, each in packages.items()
        if path and not each.get("dev") and not each.get("optional") and not each.get("peer")
    }
    assert {"preact", "uplot"} <= set(bundled)
    named = tables()
    assert {name: named.get(name) for name in bundled} == bundled
    notices = (ROOT / "server" / "web" / "LICENSES.txt").read_text()
    assert set(re.findall(r"^(\S+)\n    Copyright", notices, re.MULTILINE)) == set(bundled)
    assert "server/web/LICENSES.txt" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]


def test_what_is_named_is_used_and_its_licence_allows_that() -> None:
    lock = json.loads((ROOT / "server" / "web" / "package-lock.json").read_text())["packages"]
    bundled = {path.rpartition("node_modules/")[2] for path in lock}
    for name, text in tables().items():
        assert name in installed() or name in bundled, f"{name} is named, and nothing needs it"
        assert set(re.split(r" (?:AND|OR) |[()]", text)) - {""} <= PERMITTED, f"{name}: {text}"


@pytest.mark.parametrize(
    ("package", "first_good"),
    [
        ("h11", "0.16"),
        ("starlette", "1.3.1"),
        ("orjson", "3.11.6"),
        ("protobuf", "5.29.6"),
        ("cryptography", "50"),
        ("click", "8.3.3"),
    ],
)
def test_no_floor_lets_a_known_hole_in(package: str, first_good: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(each) for each in (*project["dependencies"], *project["optional-dependencies"]["server"])]
    (of_it,) = [each for each in needed if each.name == package]

    def as_numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    (floor,) = [each.version for each in of_it.specifier if each.operator == ">="]
    assert as_numbers(floor) >= as_numbers(first_good)
