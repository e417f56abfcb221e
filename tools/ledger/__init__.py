"""The derivation ledger: which numbered equation of the book is checked by what, and how it ended.

Plain Python: the book's sources, the library's docstrings and the tests' markers are read from
text, the outcomes from the file that the pytest plugin writes. Nothing here knows of Sphinx.
"""
