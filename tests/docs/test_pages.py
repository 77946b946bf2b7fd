"""The pages themselves: the README is short, links and paths resolve, the site builds and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].split()) <= 900


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path = target.partition("#")[0]
        if path and "://" not in path:
            assert (folder / path).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    """Those by their path, and those by their name alone, which must be somewhere."""
    for name in re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|ts|tsx|proto|yml|yaml|conf|css))`", PAGES[page]):
        there = (ROOT / name).exists() if "/" in name and (ROOT / name.partition("/")[0]).exists() else _somewhere(name)
        assert there, f"{page} names {name}"


def _somewhere(name: str) -> bool:
    return any(
        found for root in ("server", "clients", "tests", "proto", "deploy") for found in (ROOT / root).glob(f"**/{name}")
    )


@pytest.mark.parametrize("page", PAGES)
def test_folders_of_the_maps_exist(page: str) -> None:
    for name in re.findall(r"`((?:server|clients|tests|proto|deploy|docs)/[\w/]+)/?`", PAGES[page]):
        assert (ROOT / name).is_dir(), f"{page} names {name}"


def test_the_map_has_every_folder_of_tests() -> None:
    folders = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {folder for folder in folders if f"`{folder}`" not in PAGES["CONTRIBUTING.md"]} == set()


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mechanicd[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert loaded == [], page
