"""A store that refuses, and a server with a bug: the client gets a stable answer, without hosts, files or classes."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mechanicd import store
from mechanicd.service import Engine, ServiceError
from mechanicd.service._grpc import RunServicer, TunerServicer
from mechanicd.service._run_service import RunService
from mechanicd.store import SQLiteStore, StoreConflict, StoreError
from mechanicd.v1 import run_service_pb2, run_service_pb2_grpc, tuner_service_pb2, tuner_service_pb2_grpc

New = Callable[..., Any]
SECRETS = re.compile(r"127\.0\.0\.1|localhost|postgres|psycopg|sqlite|/|\.db|<class|Error\b", re.IGNORECASE)


def make_read_only(postgres: Any, name: str, value: str) -> None:
    """For connections from now on; those of the server are cut."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")  # type: ignore[arg-type]
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))


def test_a_postgres_that_is_read_only_is_an_unavailable_store_and_training_goes_on(
    postgres: Any, project: str, new_server: New, new_training: New, wait_for: New
) -> None:
    name = f"readonly_{project}"
    server = new_server(store=postgres.create_database(name)).start()
    held, other = new_training("held", at=server), new_training("other", at=server)
    held.open()
    held.take(5)
    assert held.flush() == 5
    beside = new_training("beside", at=server)  # two runs in a commit: neither counts as what the store rejects
    beside.open()
    make_read_only(postgres, name, "on")
    for training, fields in [(held, {}), (other, {}), (held, {}), (other, {})]:  # the first finds its connection cut
        refused = training.wire.refused("OpenSession", name=training.name, config=training.config, **fields)
        assert (refused.code, refused.reason) == (14, "STORE_UNAVAILABLE")
        assert not SECRETS.search(refused.message), refused.message
        held.take(3)
        beside.take(3)
    health = health_pb2_grpc.HealthStub(held.wire.channel)

    def status() -> int:
        held.take()
        beside.take()
        return int(health.Check(health_pb2.HealthCheckRequest(), timeout=20).status)

    assert wait_for(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert [status() for _ in range(50)] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 50
    refused = held.wire.refused("Flush", session=held.session)
    assert (refused.reason, SECRETS.search(refused.message)) == ("STORE_UNAVAILABLE", None)
    assert held.wire.refused("DeleteRun", name=held.name, fence=True).reason == "STORE_UNAVAILABLE"

    make_read_only(postgres, name, "off")
    assert wait_for(lambda: _flushed(held) == held.state.step)
    assert wait_for(lambda: _flushed(beside) == beside.state.step)
    other.open()
    other.take()
    assert server.stop() == 0


def _flushed(training: Any) -> int:
    try:
        return int(training.flush())
    except grpc.RpcError:
        return -1


def test_a_sqlite_that_is_read_only_is_an_unavailable_store(tmp_path: Path) -> None:
    async def act() -> None:
        kept = SQLiteStore(str(tmp_path / "runs.db"))
        engine = Engine(kept, 0.001)
        engine.start()
        request = tuner_service_pb2.OpenSessionRequest(name="projects/p/runs/r")
        session = (await engine.open_session(request)).session
        kept._db.execute("PRAGMA query_only = ON")
        for name in ("r", "new"):
            with pytest.raises(ServiceError) as caught:
                await engine.open_session(tuner_service_pb2.OpenSessionRequest(name=f"projects/p/runs/{name}"))
            assert caught.value.reason == "STORE_UNAVAILABLE"
            assert not SECRETS.search(caught.value.message), caught.value.message
        with pytest.raises(ServiceError, match="right now"):
            await RunService(engine).delete_run(run_service_pb2.DeleteRunRequest(name=request.name, fence=True))
        assert (await engine.flush(tuner_service_pb2.FlushRequest(session=session))).durable_step == 0, "it still holds its run"
        kept._db.execute("PRAGMA query_only = OFF")
        assert (await engine.open_session(request)).run.session_count == 2
        await engine.stop()

    asyncio.run(act())


def test_a_bug_is_answered_with_a_fixed_text_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """grpcio's own answer is UNKNOWN with the exception's text, which may name hosts and files."""
    bug = RuntimeError("sqlite at /secret on 127.0.0.1")

    def broken(*_: Any) -> Any:
        raise bug

    async def act() -> None:
        engine = Engine(SQLiteStore(":memory:"), 0.001)
        engine.start()
        engine.step = engine.store.get = engine.store.pulse = broken  # type: ignore[method-assign]
        server = grpc.aio.server()
        tuner_service_pb2_grpc.add_TunerServiceServicer_to_server(TunerServicer(engine, settle=False), server)
        run_service_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(RunService(engine)), server)
        address = f"unix:{tmp_path}/server"
        server.add_insecure_port(address)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            tuner: Any = tuner_service_pb2_grpc.TunerServiceStub(channel)
            runs: Any = run_service_pb2_grpc.RunServiceStub(channel)
            stream = tuner.StreamSteps(iter([tuner_service_pb2.StreamStepsRequest(steps=[tuner_service_pb2.StepRequest()])]))
            calls = [
                tuner.OpenSession(tuner_service_pb2.OpenSessionRequest(name="projects/p/runs/r")),
                stream.read(),
                runs.WatchRuns(run_service_pb2.WatchRunsRequest(parent="projects/p")).read(),
            ]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.INTERNAL
                assert "its log has the details" in (caught.value.details() or "")
                assert not SECRETS.search(caught.value.details() or "")
            assert len([each for each in caplog.records if each.exc_info and each.exc_info[1] is bug]) == len(calls)
        await server.stop(0)
        await engine.stop()

    asyncio.run(act())


def test_each_error_of_a_store_that_is_raised_has_a_reason_of_its_own_and_a_base_has_none() -> None:
    errors = {
        value for name in store.__all__ if isinstance(value := getattr(store, name), type) and issubclass(value, StoreError)
    }
    bases = {StoreError, StoreConflict}
    assert {error for error in errors if error.__subclasses__()} == bases
    assert not [error for error in bases if hasattr(error, "reason")]
    reasons = [error.reason for error in errors - bases]
    assert len(reasons) == len(set(reasons)) == 13
