"""Where the raw data comes from: packages of the ordinary registries, found where they are installed, else fetched by name.

Python's packages have to be installed. npm's and Debian's are only unpacked, into the user's cache: that
needs no root, and brings nothing else along.
"""

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from experiments._data import DataMissing, default_folder

EXTRA: Final = "pip install 'mechanicd[experiments]'"
_SECONDS: Final = 300


def of_python(name: str, file: str, how: str = EXTRA) -> Path:
    """A file of an installed Python distribution.

    Raises:
        DataMissing: it is not installed.
    """
    try:
        path = Path(str(distribution(name).locate_file(file)))
    except PackageNotFoundError:
        path = Path()
    if not path.exists() or path == Path():
        raise DataMissing(f"the package {name} is not installed, or lacks {file}; {how}")
    return path


def of_npm(name: str) -> Path:
    """The folder of an npm package, unpacked.

    Raises:
        DataMissing: it can't be fetched.
    """

    def unpack(archive: Path, to: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(to, filter="data")

    return _unpacked(f"the npm package {name}", name, f"{name}-*.tgz", ["npm", "pack", name], unpack) / "package"


def of_debian(name: str, file: str) -> Path:
    """A file of a Debian package, installed or unpacked.

    Raises:
        DataMissing: it can't be fetched.
    """
    if (installed := Path("/") / file).exists():
        return installed

    def unpack(archive: Path, to: Path) -> None:
        _run(["dpkg", "-x", archive.name, to.name], archive.parent, f"the Debian package {name}", f"apt-get install {name}")

    return _unpacked(f"the Debian package {name}", name, f"{name}_*.deb", ["apt-get", "download", name], unpack) / file


def _unpacked(what: str, name: str, archives: str, fetch: list[str], unpack: Callable[[Path, Path], None]) -> Path:
    """The folder of a package in the user's cache, which is complete if it exists."""
    packed = default_folder() / "packages"
    place = packed / name
    if not place.exists():
        packed.mkdir(parents=True, exist_ok=True)
        if not list(packed.glob(archives)):
            _run(fetch, packed, what, f"put the output of `{' '.join(fetch)}` into {packed}")
        (archive,) = packed.glob(archives)
        unfinished = packed / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unpack(archive, unfinished)
        unfinished.replace(place)
        archive.unlink()
    return place


def _run(command: list[str], folder: Path, what: str, how: str) -> None:
    said = f"{what} is not installed, and `{' '.join(command)}` failed"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise DataMissing(f"{said}: {error}; {how}") from None
    if done.returncode != 0:
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise DataMissing(f"{said}: {last or 'no output'}; {how}")
