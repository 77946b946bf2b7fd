"""The fixtures that tests of every folder use: real servers, a real PostgreSQL, the real command line."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import stubs, warm

stubs.refresh()  # before anything imports them
from mechanicd.client import connect  # noqa: E402  # before any grpc: it turns off fork handlers that crash programs started here
from mechanicd.v1 import run_service_pb2  # noqa: E402
from tests.support.servers import ServerProcess, wait_for  # noqa: E402
from tests.support.soak import SOAK  # noqa: E402

if TYPE_CHECKING:
    from tests.support.postgres import PostgresProcess

# Threads that wait for each other are slow where others work too: in this process and in every program that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_config = tempfile.mkdtemp(prefix="mechanicd-config-")
os.environ["XDG_CONFIG_HOME"] = _config  # servers write their own tokens there

for name in ("COLUMNS", "LINES"):  # a worker of xdist has them, and programs would believe them rather than their terminal
    os.environ.pop(name, None)

# A shell's background job ignores the one and nohup's the other, and so would our subprocesses.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is for `make soak` alone."""
    if not SOAK:
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="a long one: make soak"))


def pytest_sessionfinish() -> None:
    warm.close()
    shutil.rmtree(_config, ignore_errors=True)


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Makes servers that this test may kill: `new_server("--option", …, store=URL)`, not started yet."""
    made: list[ServerProcess] = []

    def make(*options: str, store: str = "") -> ServerProcess:
        folder = tmp_path / f"server{len(made)}"
        folder.mkdir()
        made.append(ServerProcess(folder, *options, store=store))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that leave it alive; `project` keeps them apart."""
    process = ServerProcess(tmp_path_factory.mktemp("shared-server")).start()
    yield process
    assert process.stop() == 0


@pytest.fixture
def project() -> str:
    """A project that only this test uses."""
    return f"p{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command line: `run_cli("runs", "list")`."""

    def run(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mechanicd.cli", *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MECHANICD_")}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)

    return run


@pytest.fixture
def history() -> Callable[..., list[Any]]:
    """Every step that a server has of a run, as StepRecords: `history(target, "run", project="default", branch=0)`."""

    def read(target: str, run: str, project: str = "default", **fields: Any) -> list[Any]:
        name, token = f"projects/{project}/runs/{run}", ""
        records: list[Any] = []
        with connect(target) as client:
            while True:
                request = run_service_pb2.QuerySeriesRequest(name=name, page_token=token, page_size=10_000, **fields)
                page = client.call("QuerySeries", request)
                records += page.records
                token = page.next_page_token
                if not token:
                    return records

    return read


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Callable[..., bool]:
    """`wait_for(condition, seconds=10)`."""
    return wait_for


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator["PostgresProcess"]:
    """One PostgreSQL for all tests that leave it alive; `create_database(name)` gives a URL."""
    from tests.support.postgres import PostgresProcess

    process = PostgresProcess(tmp_path_factory.mktemp("postgres")).start()
    yield process
    process.remove()


@pytest.fixture
def new_postgres(tmp_path: Path) -> Iterator["PostgresProcess"]:
    """A PostgreSQL of its own that this test may kill, started."""
    from tests.support.postgres import PostgresProcess

    process = PostgresProcess(tmp_path / "postgres").start()
    yield process
    process.remove()
