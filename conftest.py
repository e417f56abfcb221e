"""What every test run shares: the ledger, one thread, and what nbval leaves out."""

import os

pytest_plugins = ("tools.ledger.plugin",)

# Timings, and sums in float32, then do not vary with the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collectstart(collector):
    """Compare what cells print and typeset, not pictures: fonts and versions redraw those."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("image/svg+xml",)
        # What covers the library is its tests. Where coverage is measured, nbval would start it in
        # each kernel too, and wait there for an answer that does not come.
        collector.config.option.cov_source = None
