"""Build hook: generates the protobuf and gRPC stubs beside their .proto files, and the page. None is committed."""

import runpy
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GeneratedHook(BuildHookInterface):
    """Runs protoc over proto/mechanicd/v1 before a wheel (editable or not) is assembled; an sdist has the page too."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        runpy.run_path(str(Path(self.root) / "server" / "web" / "build_page.py"))["build"]()
        if self.target_name != "wheel":
            return
        import grpc_tools
        from grpc_tools import protoc

        root = Path(self.root) / "proto"
        sources = sorted(str(p) for p in (root / "mechanicd" / "v1").glob("*.proto"))
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        command = [
            "protoc",
            f"-I{root}",
            f"-I{well_known}",
            f"--python_out={root}",
            f"--pyi_out={root}",
            f"--grpc_python_out={root}",
            *sources,
        ]
        if protoc.main(command) != 0:
            sys.exit("protoc failed: see its message above")
