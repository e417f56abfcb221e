"""The library behind the book *From Softmax to GPLinker*.

One module per chapter, of the chapter's name: ``lib.softmax``, ``lib.zlpr``, ``lib.soft_zlpr``,
``lib.global_pointer``, ``lib.divergence``, ``lib.exact``, ``lib.emo``, ``lib.gplinker``. Import the
module you need: ``from lib.zlpr import zlpr_loss``.
"""
