"""`make floors`: whether the versions that pyproject.toml states are true.

For each Python and each extra, uv makes two throw-away environments: with the lowest versions that the extra states, and with
the newest there are. In each, `smoke.py` trains through a real server. Only wheels are installed, so on a Python that an old
version has no wheel for, the lowest one that has is taken, and the table says which.

    python tests/install/floors.py [--only torch,jax] [--json] [python3.11 python3.14 …]

uv's own variables say where packages come from: UV_TORCH_BACKEND=cpu takes PyTorch's small CPU builds from its own index, and
UV_FIND_LINKS names a folder of wheels.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.support.postgres import PostgresProcess  # noqa: E402
from tests.support.servers import ServerProcess  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMOKES = ("client", "server", "postgres", "torch", "jax", "huggingface", "lightning", "tensorboard", "demo")
ENDS = {"lowest": "lowest-direct", "newest": "highest"}
UV = shutil.which("uv") or Path(sys.executable).with_name("uv")


@dataclass(frozen=True)
class Row:
    """A line of the table: one package of one extra on one Python."""

    extra: str
    package: str
    stated: str
    lowest: str
    newest: str
    python: str
    result: str


def stated(extra: str, nested: bool = True) -> dict[str, str]:
    """The packages that an extra names, with the versions it states; `nested` adds those of the extras in it. The base install
    is "client"."""
    found: dict[str, str] = {}
    for requirement in PROJECT["dependencies"] if extra == "client" else PROJECT["optional-dependencies"][extra]:
        match = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?([^;]*).*", requirement)
        assert match, requirement
        name, extras, versions = match.groups()
        if name != "mechanicd":
            found[name] = versions
        elif nested:
            for other in extras.split(","):
                found |= stated(other)
    return found


def run(*command: str | Path, timeout: float = 1800, **environment: str) -> str:
    """A command's output. Raises RuntimeError with the last lines of what it said."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError("\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:]))
    return done.stdout


def versions(python: str, extra: str, end: str) -> str:
    """Every package with its version, as uv resolves them."""
    chosen = () if extra == "client" else ("--extra", extra)
    options = ("--resolution", ENDS[end], "--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet")
    return run(UV, "pip", "compile", "pyproject.toml", "--python", python, *chosen, *options)


def attempt(python: str, extra: str, end: str, wheel: Path, target: str, postgres: str) -> tuple[str, dict[str, str]]:
    """Resolves, installs and trains. Returns what failed ("" if nothing did), and the versions."""
    with tempfile.TemporaryDirectory(prefix="mechanicd-floors-") as temporary:
        folder = Path(temporary)
        inside = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        found: dict[str, str] = {}
        try:
            resolved = versions(python, extra, end)
            found = dict(re.findall(r"^([\w.-]+)==(\S+)", resolved, re.MULTILINE))
            (folder / "requirements.txt").write_text(resolved)
            run(UV, "venv", "--quiet", "--python", python, folder / "venv")
            run(
                UV,
                "pip",
                "install",
                "--quiet",
                "--python",
                inside,
                "--only-binary",
                ":all:",
                "-r",
                folder / "requirements.txt",
            )
            run(UV, "pip", "install", "--quiet", "--python", inside, "--no-deps", wheel)
            smoke = Path(__file__).with_name("smoke.py")
            run(
                inside,
                smoke,
                extra,
                target,
                folder,
                timeout=900,
                FLOORS_POSTGRES=postgres,
                PYTHONPATH="",
                MECHANICD_PROJECT="default",
            )
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return str(error), found
    return "", found


def rows(python: str, extra: str, wheel: Path, target: str, new_database: Callable[[], str]) -> Iterator[Row]:
    """Both ends of one extra on one Python, as lines of the table; tells of each on stderr as it comes."""
    number = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    ends = {}
    for end in ENDS:
        postgres = new_database() if extra == "postgres" else ""
        failed, found = ends[end] = attempt(python, extra, end, wheel, target, postgres)
        shown = " ".join(f"{name} {found.get(name, '?')}" for name in stated(extra))
        sys.stderr.write(f"Python {number}, {extra}, {end}: {'FAILED' if failed else 'ok'}: {shown}\n")
        if failed:
            sys.stderr.write("    " + failed.replace("\n", "\n    ") + "\n")
    result = ", ".join(f"{end} fails" for end, (failed, _) in ends.items() if failed) or "ok"
    for name, floor in stated(extra, nested=False).items():
        lowest, newest = (ends[end][1].get(name, "?") for end in ENDS)
        yield Row(extra, name, floor, lowest, newest, number, result)


def table(pythons: list[str], extras: list[str]) -> Iterator[Row]:
    """Every line, beside a server and a PostgreSQL that are there meanwhile."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mechanicd-floors-")))
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        server = ServerProcess(folder).start()
        stack.callback(server.kill)
        databases: Iterator[str] = iter(())
        if "postgres" in extras:
            postgres = PostgresProcess(folder / "postgres").start()
            stack.callback(postgres.remove)
            databases = (postgres.create_database(f"floors{number}") for number in itertools.count())
        for python, extra in itertools.product(pythons, extras):
            yield from rows(python, extra, wheel, server.target, lambda: next(databases))


def main() -> int:
    """Prints the table. Returns 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters; default: this one")
    parser.add_argument("--only", default=",".join(SMOKES), help="which extras, joined by commas")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args()
    there = [python for python in options.pythons if shutil.which(python)]
    absent = [python for python in options.pythons if python not in there]
    found = list(table(there, options.only.split(","))) if there else []
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in found], "not_run": absent}, indent=2))
    else:
        lines = [[field.name for field in fields(Row)], *([*asdict(row).values()] for row in found)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        for python in absent:
            print(f"not run: {python} is not installed here")
    return 1 if any(row.result != "ok" for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
