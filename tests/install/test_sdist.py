"""The source distribution carries the built page: a wheel made from it needs no Node, and has the page and the stubs."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]


def hatch(folder: Path, tools: Path, kind: str, out: Path, path: str) -> tuple[Path, str]:
    """Builds a distribution; the file and what was said. `path` is the PATH that it finds programs on."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tools), "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = out.iterdir()
    return file, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_wheel_from_the_source_distribution_has_the_page_and_the_stubs_without_node(tmp_path: Path) -> None:
    if not (ROOT / "server/mechanicd/dashboard/static/sources.sha256").is_file():
        pytest.skip("the page is not built here: it needs Node, and `make test` builds it")
    tools, nowhere = tmp_path / "tools", tmp_path / "nowhere"
    nowhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(tools), *BUILD]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    archive, _ = hatch(ROOT, tools, "sdist", tmp_path / "sdist", os.environ["PATH"])
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert not list(unpacked.rglob("*_pb2*.py"))
    wheel, said = hatch(unpacked, tools, "wheel", tmp_path / "wheel", str(nowhere))
    assert "page was not built" not in said
    with zipfile.ZipFile(wheel) as built:
        names = set(built.namelist())
        page = built.read("mechanicd/dashboard/static/index.html")
    assert page == (ROOT / "server/mechanicd/dashboard/static/index.html").read_bytes()
    assert any(name.startswith("mechanicd/dashboard/static/assets/index-") for name in names)
    for stub in ("errors", "resources", "run_service", "tuner_service"):
        assert {f"mechanicd/v1/{stub}_pb2.py", f"mechanicd/v1/{stub}_pb2.pyi", f"mechanicd/v1/{stub}_pb2_grpc.py"} <= names


def test_a_page_of_other_sources_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what is in the files: an archive gives all of them one time, a checkout any."""
    import runpy

    folder = tmp_path / "server" / "web"
    (folder / "src").mkdir(parents=True)
    source = ROOT / "server" / "web"
    for name in ("build_page.py", "index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "src" / "main.tsx").write_text("1;\n")
    static = tmp_path / "server" / "mechanicd" / "dashboard" / "static"
    static.mkdir(parents=True)
    (static / "index.html").write_text("<html>")
    module = runpy.run_path(str(folder / "build_page.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not module["build"](), "nobody knows what this page was built from, and there is no Node"
    (static / "sources.sha256").write_text(module["digest"]())
    os.utime(static / "index.html", (0, 0))
    assert module["build"]()
    (folder / "src" / "main.tsx").rename(folder / "src" / "other.tsx")
    assert not module["build"]()
    (folder / "src" / "other.tsx").rename(folder / "src" / "main.tsx")
    assert module["build"]()
    (folder / "src" / "main.tsx").write_text("2;\n")
    assert not module["build"]()
