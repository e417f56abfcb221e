"""The book's Sphinx extensions as modules: they are no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

EXTENSIONS = Path(__file__).resolve().parents[1] / "book" / "_ext"


def load(name: str) -> ModuleType:
    """Return the extension of that name."""
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
