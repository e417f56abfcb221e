"""A generator of sentences with known triples: fictional names, dials for all patterns."""

from lib.extraction.synthetic.generator import synthetic_corpus

__all__ = ["synthetic_corpus"]
