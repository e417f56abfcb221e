"""What the whole test run shares: the ledger, one thread, and what nbval leaves out when it compares."""

import os

pytest_plugins = ("tools.ledger.plugin",)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # timings and float32 sums then do not vary with cores


def pytest_collectstart(collector):
    """Compare what cells print and typeset, not pictures: fonts and versions redraw those."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("image/svg+xml",)
