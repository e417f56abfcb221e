"""Options that the modules of losses share."""

from torch import nn

from lib import _checks

__all__ = ["LossModule"]


class LossModule(nn.Module):
    """A loss as a module, with the options that every loss has."""

    def __init__(self, *, reduction: _checks.Reduction = "mean", validate: bool = True) -> None:
        super().__init__()
        _checks.check_reduction(reduction)
        self.reduction, self.validate = reduction, validate

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"reduction={self.reduction!r}" + ("" if self.validate else ", validate=False")
