"""Generates the protobuf and gRPC stubs beside their .proto files; the build hook calls it. Needs grpcio-tools."""

import sys
from pathlib import Path

PROTO = Path(__file__).parent
SOURCES = sorted((PROTO / "mechanicd" / "v1").glob("*.proto"))


def is_fresh() -> bool:
    """Whether every stub is newer than every .proto."""
    stubs = [path.with_name(path.stem + end) for path in SOURCES for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]
    if not all(stub.is_file() for stub in stubs):
        return False
    return max(path.stat().st_mtime for path in SOURCES) <= min(stub.stat().st_mtime for stub in stubs)


def build() -> None:
    """Runs protoc. Exits where it fails."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    options = [f"-I{PROTO}", f"-I{well_known}", *(f"--{kind}_out={PROTO}" for kind in ("python", "pyi", "grpc_python"))]
    if protoc.main(["protoc", *options, *map(str, SOURCES)]) != 0:
        sys.exit("protoc failed: see its message above")


if __name__ == "__main__":
    build()
