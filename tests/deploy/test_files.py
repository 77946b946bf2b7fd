"""The files of deploy/ are what their tools take: linted, rendered, held to the schemas of Kubernetes and Compose."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy import targets
from tests.deploy.targets import CHART, DEPLOY, POSTGRES, SQLITE, manifests, stage

ROOT = DEPLOY.parent
KUBERNETES = ["1.25", "1.31", kubernetes_validate.latest_version()]
OF_OPERATORS = {"Certificate", "ServiceMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself doesn't have."""


def tool(name: str) -> str:
    """A program of the development extra."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is missing: pip install 'mechanicd[dev]'"
    return found


def test_the_image_s_file_is_clean() -> None:
    done = subprocess.run(
        [tool("hadolint"), "--no-color", DEPLOY / "docker/Dockerfile"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_copies_what_is_there_and_runs_as_nobody_who_may_anything() -> None:
    patterns = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().split()
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    for instruction, rest in targets.dockerfile():
        if instruction == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.partition("/")[0] in kept, f"{source} is not sent to the build"
                left_out = [each for each in patterns if each[0] not in "*!" and fnmatch.fnmatch(source, each)]
                assert left_out == []
    for name in ("server", "trainer"):
        assert stage(name)["USER"] == "65532:65532"
    assert [rest.split()[-1] for instruction, rest in targets.dockerfile() if instruction == "FROM"][-1] == "server"
    assert json.loads(stage("server")["ENTRYPOINT"]) == ["mechanicd"]


def test_the_scripts_are_clean() -> None:
    scripts = [*(DEPLOY / "slurm").glob("*.sbatch"), *(DEPLOY / "compose").glob("*.sh")]
    assert len(scripts) == 3
    done = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert all(os.access(script, os.X_OK) for script in scripts)


def test_the_settings_of_the_scripts_are_these() -> None:
    texts = [path.read_text() for path in (*(DEPLOY / "slurm").iterdir(), DEPLOY / "compose/compose.yaml")]
    found = {name for text in texts for name in re.findall(r"\$\{(MECHANICD_[A-Z]+):-", text)}
    ours = {"MECHANICD_HOME", "MECHANICD_PORT", "MECHANICD_WAIT", targets.HOST}
    assert found == ours | {"MECHANICD_PROJECT", "MECHANICD_SPILL"}


def test_compose_takes_its_file() -> None:
    found = PyCompose.from_yaml(yaml.safe_dump(targets.compose()))
    found.validate()
    assert set(found.service_names()) == {"postgres", "mechanicd", "trainer"}
    for name in ("mechanicd", "trainer"):
        service = targets.compose()["services"][name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert (ROOT / "deploy/compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        stage(service["build"]["target"])
    assert "password" not in str(targets.compose()["services"]["mechanicd"]["command"])


# ---- Kubernetes


@pytest.mark.parametrize("values", [SQLITE, POSTGRES], ids=["sqlite", "postgres"])
def test_the_chart_is_clean_and_kubernetes_takes_what_it_makes(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, values=values, strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    made = manifests(values)
    for kind, each in made.items():
        for manifest in each:
            for version in KUBERNETES:
                if kind not in OF_OPERATORS:
                    kubernetes_validate.validate(manifest, version, strict=True)
    names = [(kind, manifest["metadata"]["name"]) for kind, each in made.items() for manifest in each]
    assert len(set(names)) == len(names)


def test_one_server_over_sqlite_has_a_volume_that_stays() -> None:
    made = manifests(SQLITE)
    assert set(made) == {"StatefulSet", "Service", "NetworkPolicy"}
    (server,) = made["StatefulSet"]
    assert server["spec"]["replicas"] == 1
    assert server["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert server["spec"]["serviceName"] in {service["metadata"]["name"] for service in made["Service"]}


def test_several_servers_over_postgresql_come_before_others_go() -> None:
    made = manifests(POSTGRES)
    assert set(made) == {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", *OF_OPERATORS}
    (server,) = made["Deployment"]
    assert server["spec"]["replicas"] == 2
    assert server["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    (budget,) = made["PodDisruptionBudget"]
    assert budget["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("values", [SQLITE, POSTGRES], ids=["sqlite", "postgres"])
def test_all_of_a_release_fits_together(values: dict[str, Any]) -> None:
    made = manifests(values)
    (server,) = [each for kind in ("Deployment", "StatefulSet") for each in made.get(kind, [])]
    template = server["spec"]["template"]
    labels, (container,) = template["metadata"]["labels"], template["spec"]["containers"]
    selectors = [
        server["spec"]["selector"]["matchLabels"],
        *(service["spec"]["selector"] for service in made["Service"]),
        *(policy["spec"]["podSelector"]["matchLabels"] for policy in made["NetworkPolicy"]),
        *(budget["spec"]["selector"]["matchLabels"] for budget in made.get("PodDisruptionBudget", [])),
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for service in made["Service"] for port in service["spec"]["ports"]} == ports
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in server["spec"].get("volumeClaimTemplates", [])}
    assert mounted == claims | {volume["name"] for volume in template["spec"]["volumes"]}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["automountServiceAccountToken"] is False


def test_what_the_operators_get() -> None:
    made = manifests(POSTGRES)
    (certificate,), (monitor,), (rule,) = (made[kind] for kind in ("Certificate", "ServiceMonitor", "PrometheusRule"))
    names = certificate["spec"]["dnsNames"]
    assert {"mechanicd.ml.svc", "mechanicd-trainers.ml.svc", "m.example.org", "page.example.org"} <= set(names)
    assert len(set(names)) == len(names)
    (volume,) = [each for each in made["Deployment"][0]["spec"]["template"]["spec"]["volumes"] if each["name"] == "tls"]
    assert certificate["spec"]["secretName"] == volume["secret"]["secretName"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["path"]) == ("https", "/metrics")
    assert endpoint["tlsConfig"]["serverName"] in names
    assert endpoint["authorization"]["credentials"] == {"name": "metrics", "key": "token"}
    selected = [
        service
        for service in made["Service"]
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert [endpoint["port"] in {port["name"] for port in service["spec"]["ports"]} for service in selected] == [True]
    assert selected[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "mechanicd"  # the job by which the alerts ask
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "a certificate is needed"),
        ({"tls": {"certManager": {"enabled": True}}}, "issuer.name is needed"),
        ({**SQLITE, "replicas": "two"}, "replicas"),
        ({**SQLITE, "replicaCount": 3}, "replicaCount"),
        ({**SQLITE, "auth": "off"}, "auth"),
        ({**SQLITE, "serviceMonitor": {"enabled": True}}, "a token of the role read"),
    ],
)
def test_the_chart_refuses_by_name_what_it_can_t_serve(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError, match=said):
        manifests(values)


def test_kubernetes_takes_the_training_job_and_a_disruption_is_no_failure() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/training-job.yaml").read_text()))
    for document in documents:
        for version in KUBERNETES[1:]:  # podReplacementPolicy is not in 1.25
            kubernetes_validate.validate(document, version, strict=True)
    (job,) = [document for document in documents if document["kind"] == "Job"]
    assert job["spec"]["podFailurePolicy"]["rules"][0]["action"] == "Ignore"
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    services = {service["metadata"]["name"] for service in manifests(POSTGRES)["Service"]}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    target = {each["name"]: each["value"] for each in container["env"]}["MECHANICD_TARGET"]
    assert target.removeprefix("https://").partition(".")[0] in services


# ---- systemd


def test_the_unit_holds_its_service_tight() -> None:
    settings = dict(targets.unit())
    for name, value in {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "MemoryDenyWriteExecute": "yes",
        "RestrictNamespaces": "yes",
        "UMask": "0077",
    }.items():
        assert settings[name] == value, name


@pytest.mark.soak
def test_systemd_finds_the_unit_correct_and_little_exposed(tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing: install systemd"
    text = (DEPLOY / "systemd/mechanicd.service").read_text()
    installed = tmp_path / "mechanicd.service"
    installed.write_text(text.replace("/opt/mechanicd/bin/mechanicd", sys.executable))
    for arguments in (["verify", installed], ["security", "--offline=true", "--threshold=15", "--no-pager", installed]):
        done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
