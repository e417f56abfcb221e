"""Our losses and the published ones, measured in turn; one command per module.

``make bench``, which is ``python -m benchmarks``, runs them all; ``python -m benchmarks.NAME`` runs
one. Each writes ``book/runs/performance-NAME.json``, which the book's performance page reads. The
published losses are measured if they are installed (``pip install --no-deps bert4torch==0.6.2``);
nothing else needs them.
"""
