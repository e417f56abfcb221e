"""The library behind the book *From Softmax to GPLinker*.

One package per chapter, of the chapter's name: ``lib.softmax``, ``lib.zlpr``, ``lib.soft_zlpr``,
``lib.global_pointer``, ``lib.divergence``, ``lib.exact``, ``lib.emo``, ``lib.casrel``,
``lib.gplinker``. What the last two share is ``lib.extraction``; ``lib.check`` answers to the
book's exercises, and ``lib.figures`` draws its figures. Import the package you need:
``from lib.zlpr import zlpr_loss``.
The losses need PyTorch alone; what needs more says which extra of the package brings it.
"""

__all__ = ["__version__"]

__version__ = "0.4.0"
