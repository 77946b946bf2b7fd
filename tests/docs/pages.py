"""The documentation as tests read it: pages by their path in the repository, their fenced examples, their commands."""

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
_ELSEWHERE: Final = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "proto/README.md")
PAGES: Final = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*map(ROOT.joinpath, _ELSEWHERE), *sorted((ROOT / "docs").glob("*.md")))
}
DOCS: Final = {path: text for path, text in PAGES.items() if path.startswith("docs/")}
_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A fenced block."""

    page: str
    language: str
    text: str


EXAMPLES: Final = [Example(page, *found) for page, text in PAGES.items() for found in _FENCE.findall(text)]
PROGRAMS: Final = list({example.text: example for example in reversed(EXAMPLES) if example.language == "python"}.values())[::-1]


class Command(NamedTuple):
    """A line that a reader types into a shell, without its comment."""

    page: str
    line: str

    @property
    def program(self) -> str:
        """Its first word."""
        return self.line.split()[0]


COMMANDS: Final = [
    Command(example.page, re.sub(r"\s{2,}#.*", "", line))
    for example in EXAMPLES
    if example.language in ("", "sh")
    for line in example.text.splitlines()
    if re.match(r"(mechanicd|make|pip|curl) \S", line)
]
