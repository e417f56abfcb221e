"""Import all of an installed ``lib`` beside PyTorch alone, and run the examples of what imports.

A program, for environments that hold nothing else: ``python tests/torch_alone.py``. It fails if an
example does, and prints as JSON

- ``used``: the names whose examples ran,
- ``public``: the functions and classes of each package that imports, tuples left out, with the
  name under which their examples stand,
- ``refused``: the modules, names and examples that lack a package, with the extra that they ask
  for.
"""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import sys

import lib

LACKING = re.compile(r'\w+ is not installed: pip install "softmax-to-gplinker\[(\w+)\]"')


class Runner(doctest.DocTestRunner):
    """A runner for which an error that asks for an extra is no failure."""

    def __init__(self):
        super().__init__(optionflags=doctest.NORMALIZE_WHITESPACE)
        self.refused = {}

    def report_unexpected_exception(self, out, test, example, exc_info):
        if lacking := LACKING.fullmatch(str(exc_info[1])):
            self.refused[test.name] = lacking[1]
            self.failures -= 1
        else:
            super().report_unexpected_exception(out, test, example, exc_info)


def found(load, arguments, name, refused):
    """Return what `load` gives, or None if it lacks an extra, which `refused` then holds."""
    try:
        return load(*arguments)
    except ImportError as error:
        if not (lacking := LACKING.fullmatch(str(error))):
            raise
        refused[name] = lacking[1]


def main():
    used, public, refused, failures = set(), {}, {}, 0
    for _, name, is_package in pkgutil.walk_packages(lib.__path__, "lib."):
        module = found(importlib.import_module, (name,), name, refused)
        if module is None or name.endswith("__main__"):
            continue
        runner = Runner()
        for test in doctest.DocTestFinder().find(module):
            runner.run(test)
            if test.examples:
                used.add(test.name)
        failures += runner.failures
        refused |= runner.refused
        for attribute in module.__all__ if is_package and hasattr(module, "__all__") else ():
            full = f"{name}.{attribute}"
            value = found(getattr, (module, attribute), full, refused)
            is_tuple = inspect.isclass(value) and issubclass(value, tuple)
            if inspect.isroutine(value) or (inspect.isclass(value) and not is_tuple):
                public[full] = f"{value.__module__}.{value.__name__}"
    print(json.dumps({"used": sorted(used), "public": public, "refused": refused}))
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
