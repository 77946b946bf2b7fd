"""Builds the page into `server/mechanicd/dashboard/static/`; the build hook calls it, and so does `make`.

It does nothing if the page was built from these sources: `static/sources.sha256` names the sources, so the page in a source
distribution needs no Node. Without Node, or if npm fails, the page is not built, and a message on stderr says so. The rest of
mechanicd works without the page, and `/` says what to do.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WEB = Path(__file__).parent
STATIC = WEB.parent / "mechanicd" / "dashboard" / "static"
BUILT_FROM = STATIC / "sources.sha256"
NODE = (20, 19)


def sources() -> Iterator[Path]:
    """The sources of the page, in a fixed order."""
    yield from (WEB / name for name in ("index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"))
    yield from sorted(path for path in (WEB / "src").rglob("*") if path.is_file())


def digest() -> str:
    """A hash of the names and contents of the sources. Their times don't count: archives and checkouts change them."""
    found = hashlib.sha256()
    for path in sources():
        content = path.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"{path.relative_to(WEB).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def is_fresh() -> bool:
    """Whether the page there was built from these sources."""
    return (STATIC / "index.html").is_file() and BUILT_FROM.is_file() and BUILT_FROM.read_text().strip() == digest()


def missing() -> str:
    """What the build needs but can't find; "" if nothing is missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return f"Node {NODE[0]}.{NODE[1]} or newer, with npm, is not installed"
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    numbers = tuple(int(part) for part in said.lstrip("v").split(".")[:2] if part.isdigit())
    return "" if numbers >= NODE else f"found Node {said or 'of unknown version'}, expected {NODE[0]}.{NODE[1]} or newer"


def npm(*arguments: str) -> str:
    """Runs npm in the page's folder. Returns its output if it failed, and "" otherwise."""
    windows = sys.platform == "win32"  # npm is a script there
    command = ["npm", *arguments]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=False, shell=windows)
    return "" if done.returncode == 0 else f"`npm {' '.join(arguments)}` failed:\n{(done.stdout + done.stderr).strip()}"


def install() -> str:
    """Installs the packages of the lock file into node_modules, if they are not there yet. Returns what failed."""
    lock, installed = WEB / "package-lock.json", WEB / "node_modules" / ".package-lock.json"
    if installed.is_file() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return ""
    return npm("ci", "--ignore-scripts")


def build() -> bool:
    """Builds the page unless it was built from these sources. Returns whether it is there and current."""
    if is_fresh():
        (STATIC / "index.html").touch()  # for make, which goes by times
        return True
    failed = missing() or install() or npm("run", "--silent", "build")
    if failed:
        sys.stderr.write(f"mechanicd: the page was not built. {failed}\n")
        sys.stderr.write("Everything else works without it. To get the page, fix this and install again.\n")
        return False
    BUILT_FROM.write_text(digest() + "\n")
    return True


if __name__ == "__main__":
    build()
