"""Packages beyond PyTorch: imported only where needed, and named by their extra when they lack.

The losses need PyTorch alone. What else ``lib`` imports stands in ``pyproject.toml`` as extras:
``extraction`` (the models, their training and commands), ``transport`` (exact transport in
`lib.emo`) and ``book`` (`lib.figures`).
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

__all__ = ["lazily", "needs"]


@contextmanager
def needs(extra: Literal["extraction", "transport", "book"]) -> Iterator[None]:
    """Say which extra brings a package that an import inside the block does not find.

    Raises
    ------
    ImportError
        In place of ModuleNotFoundError.

    Examples
    --------
    >>> with needs("transport"):
    ...     import no_such_solver
    Traceback (most recent call last):
    ImportError: no_such_solver is not installed: pip install "softmax-to-gplinker[transport]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{error.name} is not installed: pip install "softmax-to-gplinker[{extra}]"',
            name=error.name,
        ) from error


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``: names whose modules wait for their use.

    Parameters
    ----------
    package
        Its ``__name__``.
    homes
        The module of each name, relative to the package.

    Examples
    --------
    >>> get, names = lazily("lib", {"zlpr_loss": "zlpr"})
    >>> get("zlpr_loss").__name__, "zlpr_loss" in names()
    ('zlpr_loss', True)
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
