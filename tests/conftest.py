"""Real servers for tests: own processes, own stores, free ports."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import connect  # before any grpc: it turns off the fork handlers that crash programs started here
from mechanicd.v1 import run_service_pb2

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a job in the background; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


class ServerProcess:
    """A `mechanicd serve` of its own. It can be killed, and started again on the same port and store.

    It has a page only where the options say so (`--http`); `page` is its URL then.
    """

    def __init__(self, folder: Path, *options: str, store: str = "") -> None:
        self.folder = folder
        self.database = folder / "mechanicd.db"
        self.store = store or f"sqlite:///{self.database}"
        self.options = options if "--http" in options else ("--http", "off", *options)
        self.page = ""
        self.port = free_port()
        self.log = folder / "server.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "ServerProcess":
        command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", self.target]
        command += ["--store", self.store, *self.options]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        found = re.match(r"mechanicd ready: grpc=\S+ store=\S+ pid=\d+(?: http=(\S+))?\n", ready)
        assert found, self.log.read_text()
        self.page = found[1] or ""
        return self

    def kill(self) -> None:
        """SIGKILL: no drain, no goodbye."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it is there, and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on as if nothing had been."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM: drain. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        code = process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()
        return code


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    """One server for all tests that leave it alive; use `project` to stay out of each other's way."""
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


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


@pytest.fixture
def history() -> Callable[..., list[Any]]:
    """Every step that a server has of a run, as StepRecords: `history(target, "run", project="default", branch=0)`."""

    def read(target: str, run: str, project: str = "default", **fields: Any) -> list[Any]:
        name, token, records = f"projects/{project}/runs/{run}", "", []
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
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One PostgreSQL for all tests that leave it alive; `create_database(name)` gives a URL."""
    process = load("postgres").PostgresProcess(tmp_path_factory.mktemp("postgres")).start()
    yield process
    process.remove()


@pytest.fixture
def new_postgres(tmp_path: Path) -> Iterator[Any]:
    """A PostgreSQL of its own that this test may kill, started."""
    process = load("postgres").PostgresProcess(tmp_path / "postgres").start()
    yield process
    process.remove()


@pytest.fixture(name="load", scope="session")
def load_fixture() -> Callable[[str], Any]:
    """`load("envoy")`."""
    return load


def load(name: str) -> Any:
    """A module of this folder, by its path from here without `.py`."""
    spec = importlib.util.spec_from_file_location(f"tests_{name.replace('/', '_')}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    if spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]
