"""A package's `_modules` are its own: whoever needs something of another package imports it by a public name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mechanicd

ROOTS = sorted({Path(folder).parent for folder in mechanicd.__path__})


def imported(source: str) -> Iterator[str]:
    """Every module that a source may import, wherever in it; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def trespasses(module: str, source: str) -> set[str]:
    """The private modules of other packages that a module imports. A package's owner is what comes before the first `_name`."""
    found = set()
    for name in imported(source):
        parts = name.split(".")
        private = next((at for at, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")), None)
        if private is None or parts[0] not in ("mechanicd", "experiments"):
            continue
        owner = ".".join(parts[:private])
        if module != owner and not module.startswith(f"{owner}."):
            found.add(f"{module} imports {'.'.join(parts[: private + 1])}")
    return found


def test_no_package_imports_a_private_module_of_another() -> None:
    found: set[str] = set()
    for root in ROOTS:
        for file in root.rglob("*.py"):
            module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            found |= trespasses(module, file.read_text())
    assert found == set()


def test_it_sees_what_it_forbids() -> None:
    other = "mechanicd.torch._step"
    assert trespasses(other, "from mechanicd.client._run import Run") == {f"{other} imports mechanicd.client._run"}
    assert trespasses(other, "from mechanicd.client import _signals") == {f"{other} imports mechanicd.client._signals"}
    assert trespasses(other, "def late():\n    import mechanicd.client._run") == {f"{other} imports mechanicd.client._run"}
    assert trespasses("experiments._arms", "from mechanicd.demo._lion import Lion") != set()
    assert trespasses(other, "from mechanicd.torch._memory import Memory\nfrom mechanicd.client.framework import Run") == set()
    assert trespasses("mechanicd.torch", "from mechanicd.torch._memory import Memory") == set()
