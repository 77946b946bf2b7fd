"""A place where the commands of deploy/ run as they are written, but for their paths, ports and host names."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trustme

from tests.deploy.targets import Target, secrets_and_mounts
from tests.support.servers import free_port

SCRIPT = '#!/bin/sh\nexec "{python}" -m mechanicd.cli "$@"\n'


class Place:
    """The files and the names that a target gives its server.

    Attributes:
        folder: the files of its mounts: tls.crt, tls.key, ca.crt, store.
        grpc, http: the addresses where its ports are, as HOST:PORT.
    """

    def __init__(self, store: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mechanicd-"))  # a short path: that of a socket may have 107 bytes
        for name in ("bin", "run", "lib"):
            (self.folder / name).mkdir(mode=0o700)
        self.program("mechanicd", SCRIPT.format(python=sys.executable))
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(self.folder / "ca.crt")
        self.new_certificate()
        (self.folder / "store").write_text(f"{store}\n")
        self.grpc, self.http = f"localhost:{free_port()}", f"localhost:{free_port()}"
        self._replaced = [
            *((path, str(self.folder / name)) for path, name in secrets_and_mounts()),
            ("/opt/mechanicd/bin/mechanicd", "mechanicd"),
            ("/run/mechanicd", str(self.folder / "run")),
            ("/var/lib/mechanicd", str(self.folder / "lib")),
            ("0.0.0.0:50051", "0.0.0.0:" + self.grpc.rpartition(":")[2]),
            ("0.0.0.0:8080", "0.0.0.0:" + self.http.rpartition(":")[2]),
        ]

    def new_certificate(self) -> None:
        """Replaces the certificate and its key by new ones of the same authority."""
        issued = self.authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(self.folder / "tls.key")
        issued.cert_chain_pems[0].write_to_path(self.folder / "tls.crt")

    def program(self, name: str, text: str) -> None:
        """Puts a program in the PATH of this place's commands."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """Of a container: no home, no folder for temporary files; and of a trainer: whom it trusts."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MECHANICD_")}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        nowhere = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"}
        return {**kept, **nowhere, "PATH": path, "MECHANICD_CA": str(self.folder / "ca.crt")}

    def here(self, command: Sequence[str]) -> list[str]:
        """The command with this place's paths and ports."""
        words = list(command)
        for path, actual in self._replaced:
            words = [word.replace(path, actual) for word in words]
        return words

    def start(self, command: Sequence[str], **settings: str) -> "subprocess.Popen[str]":
        environment = {**self.environment, **settings}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                self.here(command), stdout=log, stderr=log, text=True, env=environment, cwd=self.folder / "lib"
            )

    def run(self, *command: str, timeout: float = 60.0, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.here(command),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**self.environment, **settings},
            cwd=self.folder / "lib",
        )

    def new_token(self, target: Target, role: str) -> str:
        """A token of the target's store."""
        done = self.run("mechanicd", "tokens", "create", *target.store, "--project", "default", "--role", role)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().split()[-1]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
