"""/metrics, and the files for Prometheus and Grafana that go with it, checked by Prometheus's own tool."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers import ServerProcess

New = Callable[..., Any]
DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool in deploy/prometheus."""
    found = shutil.which("promtool", path=str(Path(sys.executable).parent)) or shutil.which("promtool")
    if found is None:
        pytest.fail("promtool is missing; `make test` fetches it, or install Prometheus (Debian: apt-get install prometheus)")

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [found, *arguments]
        return subprocess.run(
            command, cwd=DEPLOY / "prometheus", input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def samples(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """(name, label values…) → value."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that tells of each run."""
    folder = tmp_path_factory.mktemp("told")
    server = ServerProcess(folder, "--http", "127.0.0.1:0", "--metrics-per-run").start()
    yield server
    server.kill()


def test_it_counts_what_happened(told: Any, new_http: New, new_trainer: New, project: str, wait_for: New) -> None:
    http = new_http(told)
    assert wait_for(lambda: ("mechanicd_sessions_open",) in samples(http))
    before = samples(http)
    first = new_trainer(told, "a").take(30, lr=0.5).take(25, bad=True)
    again = new_trainer(told, "a", after_step=50).take(5, lr=0.5)
    new_trainer(told, "b").take(7).end("RUN_STATUS_FINISHED")

    def grew(*key: str) -> float:
        return now.get(key, 0.0) - before.get(key, 0.0)

    def counted() -> bool:
        nonlocal now
        now = samples(http)
        ended = grew("mechanicd_runs", "finished") == 1  # the page reads steps and ends one after the other
        return grew("mechanicd_steps_total", "tuned") == 42 and ("mechanicd_run_step", project, "b") in now and ended

    now = before
    assert wait_for(counted), now
    assert grew("mechanicd_steps_total", "non_finite") == 25
    assert grew("mechanicd_steps_total", "held") == 0
    assert grew("mechanicd_sessions_opened_total", "created") == 2
    assert grew("mechanicd_sessions_opened_total", "rewound") == 1
    assert grew("mechanicd_sessions_open") == 1
    assert grew("mechanicd_step_seconds_count") == 67
    assert grew("mechanicd_commit_seconds_count") >= 4
    assert grew("mechanicd_commit_seconds_bucket", "+Inf") == grew("mechanicd_commit_seconds_count")
    assert grew("mechanicd_runs", "running") == 1
    assert grew("mechanicd_runs", "finished") == 1
    assert now["mechanicd_store_up",] == now["mechanicd_store_readable",] == 1
    assert now["mechanicd_run_scale", project, "a"] == again.taken[-1][1][0]
    assert now["mechanicd_run_effective_lr", project, "a"] == again.taken[-1][1][0] * 0.5
    assert now["mechanicd_run_step", project, "a"] == 55
    assert first.name == again.name


def test_a_session_that_comes_back_is_counted(new_server: New, new_http: New, wait_for: New, tmp_path: Path) -> None:
    """As after an outage: the server is killed and started again, the trainer goes on."""
    from mechanicd.client import Reductions, connect

    server = new_server("--http", "127.0.0.1:0").start()
    with connect(server.target) as client, client.open_run("a") as session:
        session.step(Reductions(1.0, 0.0, 1.0, 1.0))
        session.flush()
        server.kill()
        server.start()
        http = new_http(server)

        def back() -> bool:
            session.step(Reductions(1.0, 0.0, 1.0, 1.0))
            try:
                return samples(http).get(("mechanicd_sessions_opened_total", "reattached")) == 1
            except httpx.TransportError:
                return False

        assert wait_for(back, 30)


def test_what_runs_need_is_told_by_kind(told: Any, new_http: New, new_trainer: New, wait_for: New) -> None:
    http = new_http(told)
    before = samples(http)["mechanicd_needs", "non_finite"]
    new_trainer(told, "a").take(30, bad=True)
    assert wait_for(lambda: samples(http)["mechanicd_needs", "non_finite"] == before + 1)


def test_runs_are_not_told_by_name_unless_asked_for(http: httpx.Client, shared: Any, new_trainer: New, seen: New) -> None:
    trainer = new_trainer(shared, "a").take(1)
    seen(http, trainer.name, step=1)
    assert "mechanicd_run_" not in http.get("/metrics").text


def test_the_text_is_as_prometheus_wants_it(told: Any, new_http: New, new_trainer: New, seen: New, promtool: New) -> None:
    http = new_http(told)
    trainer = new_trainer(told, "a").take(1, lr=1.0)
    seen(http, trainer.name, step=1)
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    done = promtool("check", "metrics", stdin=answer.text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    modern = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


def test_the_files_for_prometheus_are_valid_and_wake_when_they_should(promtool: New) -> None:
    for arguments in (["check", "config", "--syntax-only", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_the_dashboard_ask_for_what_there_is(told: Any, new_http: New, new_trainer: New, seen: New) -> None:
    http = new_http(told)
    trainer = new_trainer(told, "a").take(1, lr=1.0)
    seen(http, trainer.name, step=1)
    there = {key[0] for key in samples(http)}
    dashboard = json.loads((DEPLOY / "grafana/mechanicd.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked += (DEPLOY / "prometheus/alerts.yml").read_text().replace("mechanicd runs", "")
    names = set(re.findall(r"\bmechanicd_\w+", asked))
    assert len(names) > 12
    assert names - there == {"mechanicd_certificate_expires_timestamp_seconds"}  # with TLS: tests/deploy/test_servers.py
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
