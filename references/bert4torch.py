"""The losses of bert4torch, where it is installed."""

import importlib.util
from types import ModuleType

__all__ = ["bert4torch_losses"]


def bert4torch_losses() -> ModuleType | None:
    """Return bert4torch's file of losses, if bert4torch is installed.

    The file alone: the package's own import asks for libraries that it does not declare.
    """
    package = importlib.util.find_spec("bert4torch")
    if package is None or not package.submodule_search_locations:
        return None
    path = f"{package.submodule_search_locations[0]}/losses.py"
    spec = importlib.util.spec_from_file_location("bert4torch_losses", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
