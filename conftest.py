"""What every test run shares: the ledger, one thread, and what nbval leaves out."""

import os

import pytest

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


def leave_to_the_device(items):
    """Do not compare what cells print that run on a GPU where there is one: those tagged device."""
    for item in items:
        if "device" in item.cell.metadata.get("tags", []):
            item.options["check"] = False


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    cells = [item for item in items if hasattr(item, "cell")]
    if cells:
        import torch

        if torch.cuda.is_available():
            leave_to_the_device(cells)
    needy = [item for item in items if item.get_closest_marker("cuda")]
    if not needy:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needy:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
