"""The server answers each RPC of the contract, and reflection describes them."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mechanicd.v1 import names, run_service_pb2, tuner_service_pb2

SERVICES = [
    tuner_service_pb2.DESCRIPTOR.services_by_name["TunerService"],
    run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
]
METHODS = {method.name: method for service in SERVICES for method in service.methods}
EMPTY_REQUEST_GETS = {
    "OpenSession": "MALFORMED_NAME",
    "Step": "SESSION_UNKNOWN",
    "StreamSteps": None,
    "Flush": "SESSION_UNKNOWN",
    "CloseSession": "INVALID_STATUS",
    "GetRun": "MALFORMED_NAME",
    "ListRuns": "MALFORMED_NAME",
    "WatchRuns": "MALFORMED_NAME",
    "UpdateRun": "MALFORMED_NAME",
    "DeleteRun": "MALFORMED_NAME",
    "ForkRun": "MALFORMED_NAME",
    "RewindRun": "MALFORMED_NAME",
    "RenameRun": "MALFORMED_NAME",
    "ArchiveRun": "MALFORMED_NAME",
    "RestoreRun": "MALFORMED_NAME",
    "SketchRuns": None,
    "CloseRun": "MALFORMED_NAME",
    "QuerySeries": "MALFORMED_NAME",
}


@pytest.fixture
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def call(channel: grpc.Channel, method: MethodDescriptor) -> Any:
    """Calls the method with an empty request, whatever its kind. Returns the response, or the first of a stream."""
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    request = message_factory.GetMessageClass(method.input_type)()
    invoke = getattr(channel, shape)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    answer = invoke(iter([request]) if method.client_streaming else request, timeout=10.0)
    return next(answer) if method.server_streaming else answer


def error_info(error: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.domain == names.DOMAIN
    return error.code(), info


def test_the_table_here_has_every_rpc_of_the_contract() -> None:
    assert EMPTY_REQUEST_GETS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", [name for name, reason in EMPTY_REQUEST_GETS.items() if reason])
def test_an_empty_request_is_rejected_with_a_reason(channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, METHODS[name])
    code, info = error_info(caught.value)
    assert info.reason == EMPTY_REQUEST_GETS[name]
    assert code is not grpc.StatusCode.UNIMPLEMENTED


def test_an_empty_message_in_a_stream_gets_an_empty_answer(channel: grpc.Channel) -> None:
    assert call(channel, METHODS["StreamSteps"]) == tuner_service_pb2.StreamStepsResponse()


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    response = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=10.0)))
    listed = {service.name for service in response.list_services_response.service}
    assert {service.full_name for service in SERVICES} < listed
    assert "grpc.health.v1.Health" in listed


def test_reflection_describes_the_contract_this_client_was_built_with(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    for service in SERVICES:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.full_name)
        response = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=10.0)))
        files = response.file_descriptor_response.file_descriptor_proto
        assert service.file.serialized_pb in files
