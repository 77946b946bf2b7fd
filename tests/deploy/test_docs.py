"""The pages about deployment: each of our commands there can be typed so, and each page has what an operator looks for."""

import re
import shlex
from pathlib import Path

import click
import pytest

from mechanicd.cli import main
from tests.deploy.targets import CHART, DEPLOY, POSTGRES, SQLITE, charted, composed, image, unit_target

PAGES = {path.stem: path.read_text() for path in sorted((DEPLOY.parent / "docs").glob("deploy-*.md"))}
SCRIPTS = {path.name: path.read_text() for path in [*(DEPLOY / "slurm").iterdir(), CHART / "templates/NOTES.txt"]}
WORDS = "health|import|runs|serve|store|tokens"


def commands(text: str) -> list[list[str]]:
    """What stands after the word mechanicd, in examples and in inline code, where that begins with one of our commands."""
    joined = re.sub(r"\{\{.*?\}\}", "", text.replace("\\\n", " "))
    found = re.findall(rf"(?<![\w.-])mechanicd ((?:{WORDS})\b[^`\n|;]*)", joined)
    return [shlex.split(re.sub(r" &$|>.*| \\$", "", each.strip().rstrip(".:,)")), comments=True) for each in found]


def parse(words: list[str]) -> None:
    """Raises click.UsageError for what the program would refuse."""
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *words = words
        below = command.get_command(click.Context(command), name)
        assert below is not None, name
        command = below
    command.make_context(command.name, list(words)).close()


@pytest.mark.parametrize("name", [*PAGES, *SCRIPTS])
def test_each_command_can_be_typed(name: str) -> None:
    found = [words for words in commands({**PAGES, **SCRIPTS}[name]) if len(words) > 1 and "…" not in words]
    assert found or name == "train.sbatch"
    for words in found:
        if words[0] in ("tokens", "store", "runs") and len(words) < 3:
            continue  # `mechanicd tokens list`, named in passing
        parse(words)


@pytest.mark.parametrize("target", [image, composed, lambda: charted(SQLITE), lambda: charted(POSTGRES), unit_target])
def test_each_server_s_command_can_be_typed(target: object, tmp_path: Path) -> None:
    assert callable(target)
    parse(target().serve[1:])


@pytest.mark.parametrize("page", PAGES)
def test_each_page_says_what_an_operator_needs(page: str) -> None:
    titles = "\n".join(re.findall(r"^## (.*)$", PAGES[page], re.MULTILINE)).lower()
    for word in ("install", "rotate certificates and tokens", "back up", "restore", "upgrade", "watch"):
        assert word in titles, f"{page}: {word}"
