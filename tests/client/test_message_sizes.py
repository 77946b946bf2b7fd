"""Steps of any number of scale groups travel in messages that everything on the way takes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from mechanicd.client._address import Address
from mechanicd.client._transport import Transport
from mechanicd.v1 import tuner_service_pb2, tuner_service_pb2_grpc


class Recorder(tuner_service_pb2_grpc.TunerServiceServicer):
    """Answers every step, and keeps how many came in each message. Has gRPC's usual limit, as a proxy may."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def StreamSteps(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in request_iterator:
            self.counts.append(len(request.steps))
            yield tuner_service_pb2.StreamStepsResponse(
                results=[tuner_service_pb2.StepResult(step=step.step) for step in request.steps]
            )


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    made = Recorder()
    server = grpc.server(ThreadPoolExecutor(2))
    tuner_service_pb2_grpc.add_TunerServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(("groups", "steps", "most"), [(1, 256, 256), (16_000, 20, 6), (65_536, 5, 1)])
def test_a_replay_and_the_steps_after_it_arrive_in_order(
    recorder: tuple[Recorder, str], groups: int, steps: int, most: int
) -> None:
    """A replay sends up to 256 steps at once: at 65,536 groups half a gigabyte, which would never get through."""
    service, target = recorder
    values = [0.5] * groups
    fields = {"delta_dot_g": values, "delta_dot_x": values, "g_norm_sq": values, "x_norm_sq": values}
    requests = [tuner_service_pb2.StepRequest(step=step, reductions=fields) for step in range(1, steps + 4)]
    transport = Transport(Address(target))
    link = transport.link(())
    link.send(*requests[:steps])
    for request in requests[steps:]:
        link.send(request)
    assert [link.receive(20.0).step for _ in requests] == [request.step for request in requests]
    assert max(service.counts) == most
    link.close()
    transport.close()
