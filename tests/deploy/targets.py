"""The files of deploy/ as their targets read them: what each runs as its server, as its probes and before its end."""

import functools
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
CHART: Final = DEPLOY / "helm/mechanicd"
HOST: Final = "MECHANICD_HOST"
"""The variable of compose.yaml."""
SQLITE: Final = {"tls": {"secret": "certificate"}}
POSTGRES: Final = {
    "tls": {"certManager": {"enabled": True, "issuer": {"name": "ca"}}, "clientCA": "clients", "names": ["m.example.org"]},
    "store": {"postgres": {"secret": "database"}},
    "pageHosts": ["page.example.org"],
    "serviceMonitor": {"enabled": True, "tokenSecret": {"name": "metrics"}},
    "prometheusRule": {"enabled": True},
}


@dataclass(frozen=True, slots=True)
class Target:
    """How a target runs a server.

    Attributes:
        serve: its command.
        probes: commands that tell whether it serves.
        pre_stop: what is run before it is told to stop; empty: nothing.
        stop_seconds: how long it may take to end after that.
    """

    serve: list[str]
    probes: list[list[str]]
    pre_stop: list[str]
    stop_seconds: float

    @property
    def store(self) -> list[str]:
        """The flags that name the store, for other commands."""
        (at,) = [index for index, word in enumerate(self.serve) if word.startswith("--store")]
        return self.serve[at : at + 1] if "=" in self.serve[at] else self.serve[at : at + 2]


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the image's file, in order: their names, and the rest of their lines."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "docker/Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def stage(name: str) -> dict[str, str]:
    """The last of each instruction in a stage of the image's file."""
    found: dict[str, str] = {}
    inside = False
    for instruction, rest in dockerfile():
        if instruction == "FROM":
            inside = rest.split()[-1] == name
        elif inside:
            found[instruction] = rest
    return found


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text()))


@functools.cache
def _rendered(values: str) -> dict[str, str]:
    from helm_python import Chart  # only Linux has it

    with Chart.load(CHART) as chart:
        return chart.render(values=json.loads(values), name="mechanicd", namespace="ml")


def manifests(values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What `helm template` makes of these values, by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, text in _rendered(json.dumps(values)).items():
        if not name.endswith(".txt"):
            for manifest in filter(None, yaml.safe_load_all(text)):
                found.setdefault(manifest["kind"], []).append(manifest)
    return found


def unit() -> list[tuple[str, str]]:
    """The settings of the systemd unit, in order."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "systemd/mechanicd.service").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines if "=" in line]


def image() -> Target:
    """The image as it is, and compose.yaml's time to stop it."""
    found = stage("server")
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    return Target(json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"]), [check], [], 30.0)


def composed() -> Target:
    found = compose()["services"]["mechanicd"]
    serve = [word.replace(f"${{{HOST}:-localhost}}", "localhost") for word in found["command"]]
    return Target(["mechanicd", *serve], image().probes, [], _seconds(found["stop_grace_period"]))


def charted(values: dict[str, Any]) -> Target:
    (server,) = [each for kind in ("Deployment", "StatefulSet") for each in manifests(values).get(kind, [])]
    pod = server["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = [container[f"{name}Probe"]["exec"]["command"] for name in ("startup", "readiness", "liveness")]
    pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    entry = json.loads(stage("server")["ENTRYPOINT"])
    return Target(entry + container["args"], probes, pre_stop, float(pod["terminationGracePeriodSeconds"]))


def unit_target() -> Target:
    found = dict(unit())
    serve = [word.replace("%H", "localhost") for word in shlex.split(found["ExecStart"])]
    return Target(serve, [shlex.split(found["ExecStartPost"])], [], float(found["TimeoutStopSec"]))


def secrets_and_mounts() -> Iterator[tuple[str, str]]:
    """Where each target puts a file, and which of a test's files that is."""
    for folder in ("/etc/mechanicd/tls", "/run/secrets", "${CREDENTIALS_DIRECTORY}"):
        yield f"{folder}/tls.crt", "tls.crt"
        yield f"{folder}/tls.key", "tls.key"
    yield "/etc/mechanicd/client-ca/ca.crt", "ca.crt"
    yield "/etc/mechanicd/store/url", "store"
    yield "/run/secrets/store", "store"


def _seconds(text: str) -> float:
    number, unit_ = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit_]
