"""Build hook: generates the protobuf and gRPC stubs beside their .proto files, and the page. None is committed."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GeneratedHook(BuildHookInterface):
    """Makes the page, and before a wheel (editable or not) is assembled the stubs; an sdist has the page alone."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        runpy.run_path(str(root / "server" / "web" / "build_page.py"))["build"]()
        if self.target_name == "wheel":
            runpy.run_path(str(root / "proto" / "build_stubs.py"))["build"]()
