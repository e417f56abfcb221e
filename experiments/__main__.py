"""``python -m experiments NAME``: the module of that name, or a trained model's runs.

``NAME`` is a module beside this file (``exact``), or a corpus and a model joined by ``-``
(``webnlg-gplinker``): see ``experiments/extraction.py``.
"""

import runpy
import sys

from experiments import extraction

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in extraction.names():
        sys.exit(extraction.main(sys.argv[1:]))
    if len(sys.argv) < 2 or not sys.argv[1].isidentifier():
        sys.exit(
            f"python -m experiments NAME: expected a module of experiments or one of "
            f"{', '.join(extraction.names())}"
        )
    name = sys.argv.pop(1)
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
