"""What the extraction models share: triples, corpora, alignment, metrics, training, records.

Import from the modules: ``from lib.extraction.triples import Span, Triple, Example``.
"""
