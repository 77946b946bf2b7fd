"""Steps through one server process, against a bare echo handler of the same messages on the same gRPC server.

    python tests/benchmarks/step_stream.py [--seconds 3] [--connections 8] [--json]

Prints steps/s over many connections and p50/p99 of a lone step, for both, and the ratios. The reference is named in the
output: grpcio's asyncio server on uvloop, a bidirectional stream, an answer of the same size, no tuner and no store.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from mechanicd.v1 import resources_pb2, tuner_service_pb2, tuner_service_pb2_grpc

REFERENCE = "grpcio asyncio echo on uvloop"


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


async def drive(target: str, connections: int, seconds: float) -> dict[str, float]:
    """Closed-loop load: each connection sends its next step when the last was answered."""
    latencies: list[float] = []
    end = 0.0

    async def one(index: int) -> int:
        async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = tuner_service_pb2_grpc.TunerServiceStub(channel)
            name = f"projects/bench/runs/c{connections}/{index}"
            opened = await stub.OpenSession(tuner_service_pb2.OpenSessionRequest(name=name, after_step=0), timeout=30)
            call = stub.StreamSteps()
            step = 0
            while time.perf_counter() < end:
                step += 1
                began = time.perf_counter()
                await call.write(request(opened.session, step))
                response = await call.read()
                latencies.append(time.perf_counter() - began)
                assert response.results[0].scale, response
            await call.done_writing()
            call.cancel()
            return step

    end = time.perf_counter() + seconds
    began = time.perf_counter()
    steps = sum(await asyncio.gather(*(one(index) for index in range(connections))))
    wall = time.perf_counter() - began
    quantiles = statistics.quantiles(latencies, n=100)
    return {"steps_per_s": steps / wall, "p50_us": quantiles[49] * 1e6, "p99_us": quantiles[98] * 1e6}


def measure(command: list[str], connections: int, seconds: float) -> dict[str, dict[str, float]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        target = process.stdout.readline().split("grpc=")[1].split()[0]
        asyncio.run(drive(target, 1, 0.5))  # warm-up
        return {
            "lone": asyncio.run(drive(target, 1, seconds)),
            "many": asyncio.run(drive(target, connections, seconds)),
        }
    finally:
        process.terminate()
        process.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_echo:
        serve_echo()
        return
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder) / 'bench.db'}"
        serve = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0", "--http", "off", "--store", store]
        ours = measure(serve, arguments.connections, arguments.seconds)
    echo = measure([sys.executable, __file__, "--serve-echo"], arguments.connections, arguments.seconds)
    ratios = {
        "steps_per_s, many connections": ours["many"]["steps_per_s"] / echo["many"]["steps_per_s"],
        "p50 of a lone step": ours["lone"]["p50_us"] / echo["lone"]["p50_us"],
        "p99 of a lone step": ours["lone"]["p99_us"] / echo["lone"]["p99_us"],
    }
    if arguments.json:
        print(json.dumps({"reference": REFERENCE, "ratios": ratios, "mechanicd": ours, "echo": echo}, indent=2))
        return
    for name, result in (("mechanicd, durability on", ours), (REFERENCE, echo)):
        print(
            f"{name:32s} {result['many']['steps_per_s']:8.0f} steps/s over {arguments.connections} connections;"
            f" a lone step p50 {result['lone']['p50_us']:4.0f} µs, p99 {result['lone']['p99_us']:4.0f} µs"
        )
    for name, ratio in ratios.items():
        print(f"ratio to {REFERENCE}, {name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
