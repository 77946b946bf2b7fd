"""Servers with a page, runs to look at, and an HTTP client."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from mechanicd.client import connect
from mechanicd.v1 import resources_pb2, tuner_service_pb2
from tests.support.servers import ServerProcess


class Trainer:
    """Takes steps of one run over gRPC, with reductions that are random and known."""

    def __init__(
        self,
        target: str,
        name: str,
        labels: dict[str, str] | None = None,
        groups: tuple[str, ...] = ("all",),
        after_step: int | None = None,
    ) -> None:
        self.name = name
        self.groups = groups
        self.step = 0
        self.taken: list[Any] = []
        """(step, S of each group)"""
        # By the run's name alone: the project's is another one each time the tests run.
        self._rng = random.Random(name.rpartition("/")[2])
        self._client = connect(target)
        config = resources_pb2.TunerConfig(scale_groups=groups)
        start = {} if after_step is None else {"after_step": after_step}
        opened = self._call("OpenSession", name=name, config=config, labels=labels or {}, **start)
        self.session, self.step = opened.session, opened.last_step

    def take(
        self, steps: int, *, lr: float | None = None, bad: bool = False, spike: float = 1.0, flush: bool = True
    ) -> "Trainer":
        """So many steps; `bad` ones are not finite, `spike` makes ⟨Δ,g⟩ so much larger, `flush` waits until they are kept."""
        for _ in range(steps):
            self.step += 1
            g = [float("nan") if bad else self._rng.gauss(-0.3, 1.0) * spike for _ in self.groups]
            x, gg, xx = ([abs(self._rng.gauss(0.0, 1.0)) for _ in self.groups] for _ in range(3))
            reductions = resources_pb2.Reductions(delta_dot_g=g, delta_dot_x=x, g_norm_sq=gg, x_norm_sq=xx)
            result = self._call(
                "Step", session=self.session, step=self.step, reductions=reductions, **({} if lr is None else {"base_lr": lr})
            ).result
            self.taken.append((self.step, tuple(result.scale)))
        if flush:
            self._call("Flush", session=self.session)
        return self

    def end(self, status: str, message: str = "") -> None:
        """Closes the session: RUN_STATUS_…"""
        self._call("CloseSession", session=self.session, status=status, message=message)

    def close(self) -> None:
        """Hangs up; the session stays."""
        self._client.close()

    def _call(self, method: str, **fields: Any) -> Any:
        return self._client.call(method, getattr(tuner_service_pb2, f"{method}Request")(**fields))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server with a page for all tests that leave it alive; use `project` to stay out of each other's way."""
    server = ServerProcess(tmp_path_factory.mktemp("page"), "--http", "127.0.0.1:0").start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def new_trainer(project: str) -> Iterator[Callable[..., Trainer]]:
    """`new_trainer(server, "run", labels=…)`: a run in the test's project."""
    made: list[Trainer] = []

    def make(server: Any, run: str, **options: Any) -> Trainer:
        made.append(Trainer(server.target, f"projects/{project}/runs/{run}", **options))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


@pytest.fixture
def new_http() -> Iterator[Callable[..., httpx.Client]]:
    """`new_http(server)`: a client whose addresses begin at the server's page."""
    made: list[httpx.Client] = []

    def make(server: Any, **options: Any) -> httpx.Client:
        made.append(httpx.Client(base_url=server.page, timeout=20.0, trust_env=False, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def http(shared: Any, new_http: Callable[..., httpx.Client]) -> httpx.Client:
    """A client of the shared server's page."""
    return new_http(shared)


@pytest.fixture
def seen(wait_for: Callable[..., bool]) -> Callable[..., dict[str, Any]]:
    """`seen(http, name, step=…)`: the run as the page has it, once its fields are so."""

    def look(client: httpx.Client, name: str, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def arrived() -> bool:
            items = {item["name"]: item for item in client.get("/api/v1/runs").json()["runs"]}
            found.clear()
            found.update(items.get(name, {}))
            return bool(found) and all(found[key] == value for key, value in fields.items())

        assert wait_for(arrived, 30), (name, fields, found)
        return found

    return look
