"""gRPC's health service. Anybody may ask it, so nobody who asks may hold up the others, or the end of the server.

grpc_health's own one writes to each watcher under a lock that a change of the status needs: one watcher who reads nothing would
keep the status as it is, and the drain from ending.
"""

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse
_LONGEST_NAME: Final = 256
"""A watch keeps the name that it came with."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers for each service that `set` was told of. Use it inside one event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._ending = False

    def set(self, service: str, serving: bool) -> None:
        """Says from now on whether a service serves; after `end`, none does."""
        self._statuses[service] = _Status.SERVING if serving and not self._ending else _Status.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end(self) -> None:
        """Says of all services that they don't serve, whatever `set` is told later."""
        self._ending = True
        for service in self._statuses:
            self.set(service, False)

    async def Check(self, request: Any, context: Any) -> Any:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Status(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        if len(request.service) > _LONGEST_NAME:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT)
        said = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != said:
                said = status
                await context.write(_Status(status=status))
            else:
                await changed.wait()
