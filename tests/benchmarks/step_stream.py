"""Steps through one server process, with and without tokens and TLS, against a bare echo handler on the same gRPC server.

    python tests/benchmarks/step_stream.py [--seconds 1] [--turns 5] [--connections 8] [--json]

Prints steps/s over many connections, p50/p99 of a lone step and the server's CPU time for one, for each server, and the ratios.
They take turns, and the best of each counts. The reference is named in the output: grpcio's asyncio server on uvloop, a
bidirectional stream, an answer of the same size, no tuner and no store.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import trustme

from mechanicd.v1 import resources_pb2, tuner_service_pb2, tuner_service_pb2_grpc

REFERENCE = "grpcio asyncio echo on uvloop"
PLAIN, TOKENS, TLS = "mechanicd, durability on", "with a token", "with a token and TLS"


class Server(NamedTuple):
    """A server that runs.

    Attributes:
        target: its address.
        process: its process id.
        authority: of its certificate, PEM; None for clear text.
        token: that it asks for; "" for none.
    """

    target: str
    process: int
    authority: bytes | None = None
    token: str = ""

    def channel(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.authority is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, grpc.ssl_channel_credentials(self.authority), options=options)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []


def request(session: int, step: int) -> tuner_service_pb2.StreamStepsRequest:
    reductions = resources_pb2.Reductions(delta_dot_g=[-0.1 * step], delta_dot_x=[0.5], g_norm_sq=[1.5], x_norm_sq=[2.5])
    return tuner_service_pb2.StreamStepsRequest(
        steps=[tuner_service_pb2.StepRequest(session=session, step=step, reductions=reductions)]
    )


class Echo(tuner_service_pb2_grpc.TunerServiceServicer):
    """Answers without thinking."""

    async def OpenSession(self, message: Any, context: Any) -> Any:
        return tuner_service_pb2.OpenSessionResponse(session=1)

    async def StreamSteps(self, _: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            results = [
                tuner_service_pb2.StepResult(
                    session=step.session, step=step.step, scale=[1.0], durable_step=step.step, outcome=1
                )
                for step in message.steps
            ]
            await context.write(tuner_service_pb2.StreamStepsResponse(results=results))


def serve_echo() -> None:
    import uvloop

    async def main() -> None:
        server = grpc.aio.server()
        tuner_service_pb2_grpc.add_TunerServiceServicer_to_server(Echo(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"ready: grpc=127.0.0.1:{port} ", flush=True)
        await server.wait_for_termination()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def drive(server: Server, label: str, connections: int, seconds: float) -> dict[str, float]:
    """Closed-loop load: each connection sends its next step when the last was answered."""
    latencies: list[float] = []
    opened = asyncio.Barrier(connections)
    program = psutil.Process(server.process)

    async def one(index: int) -> tuple[int, float]:
        async with server.channel() as channel:
            stub = tuner_service_pb2_grpc.TunerServiceStub(channel)
            name = f"projects/bench/runs/{label}/c{connections}/{index}"
            message = tuner_service_pb2.OpenSessionRequest(name=name, after_step=0)
            session = (await stub.OpenSession(message, timeout=30, metadata=server.metadata)).session
            call = stub.StreamSteps(metadata=server.metadata)
            step = 0
            await opened.wait()
            end, cpu = time.perf_counter() + seconds, sum(program.cpu_times()[:2])
            while step < 2 or time.perf_counter() < end:
                step += 1
                began = time.perf_counter()
                await call.write(request(session, step))
                response = await call.read()
                latencies.append(time.perf_counter() - began)
                assert response.results[0].scale, response
            used = sum(program.cpu_times()[:2]) - cpu
            await call.done_writing()
            call.cancel()
            return step, used

    taken = await asyncio.gather(*(one(index) for index in range(connections)))
    steps, used = sum(each[0] for each in taken), max(each[1] for each in taken)
    quantiles = statistics.quantiles(latencies, n=100)
    p50, p99 = quantiles[49] * 1e6, quantiles[98] * 1e6
    return {"steps_per_s": steps / seconds, "p50_us": p50, "p99_us": p99, "cpu_us": used / steps * 1e6}


@contextmanager
def running(command: Sequence[str]) -> Iterator[Server]:
    """A server process."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield Server(process.stdout.readline().split("grpc=")[1].split()[0].removeprefix("https://"), process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    """Each kind of server, by its name."""
    program = [sys.executable, "-m", "mechanicd.cli"]
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")

    def serve(number: int, *options: str) -> list[str]:
        return [*program, "serve", "--grpc", "127.0.0.1:0", "--http", "off", "--store", store(number), *options]

    def store(number: int) -> str:
        return f"sqlite:///{folder / f'{number}.db'}"

    def token(number: int) -> str:
        create = [*program, "tokens", "create", "--project", "bench", "--role", "write", "--store", store(number)]
        return subprocess.run(create, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()

    tls = ("--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"))
    with ExitStack() as stack:
        commands = {
            PLAIN: serve(0, "--auth", "off"),
            TOKENS: serve(1, "--auth", "tokens"),
            TLS: serve(2, "--auth", "tokens", *tls),
            REFERENCE: [sys.executable, __file__, "--serve-echo"],
        }
        found = {name: stack.enter_context(running(command)) for name, command in commands.items()}
        found[TOKENS] = found[TOKENS]._replace(token=token(1))
        found[TLS] = found[TLS]._replace(token=token(2), authority=authority.cert_pem.bytes())
        yield found


def measure(found: dict[str, Server], turns: int, connections: int, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """The best of each server's turns: a lone step, and many connections."""
    results: dict[str, dict[str, dict[str, float]]] = {name: {"lone": {}, "many": {}} for name in found}
    for server in found.values():
        asyncio.run(drive(server, "warm-up", 1, 0.5))
    for turn in range(turns):
        for name, server in found.items():
            for load, number in (("lone", 1), ("many", connections)):
                best = results[name][load]
                for key, value in asyncio.run(drive(server, f"t{turn}", number, seconds)).items():
                    better = max if key == "steps_per_s" else min
                    best[key] = better(best.get(key, value), value)
    return results


def compared(results: dict[str, dict[str, dict[str, float]]], name: str, other: str) -> dict[str, float]:
    """Ratios of one server to another."""
    mine, its = results[name], results[other]
    return {
        "steps_per_s, many connections": mine["many"]["steps_per_s"] / its["many"]["steps_per_s"],
        "p50 of a lone step": mine["lone"]["p50_us"] / its["lone"]["p50_us"],
        "p99 of a lone step": mine["lone"]["p99_us"] / its["lone"]["p99_us"],
        "CPU of a lone step": mine["lone"]["cpu_us"] / its["lone"]["cpu_us"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_echo:
        serve_echo()
        return
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as found:
        results = measure(found, arguments.turns, arguments.connections, arguments.seconds)
    pairs = [(PLAIN, REFERENCE), (TOKENS, PLAIN), (TLS, PLAIN)]
    ratios = {f"{name} / {other}": compared(results, name, other) for name, other in pairs}
    if arguments.json:
        print(json.dumps({"reference": REFERENCE, "ratios": ratios, "servers": results}, indent=2))
        return
    for name, result in results.items():
        print(
            f"{name:32s} {result['many']['steps_per_s']:8.0f} steps/s over {arguments.connections} connections;"
            f" a lone step p50 {result['lone']['p50_us']:4.0f} µs, p99 {result['lone']['p99_us']:4.0f} µs,"
            f" CPU {result['lone']['cpu_us']:3.0f} µs"
        )
    for pair, each in ratios.items():
        print(f"{pair}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in each.items()))


if __name__ == "__main__":
    main()
