"""Published forms, as their authors wrote the formula, and definitions as loops.

Tests and benchmarks compare the library with them. Nothing here is fast or careful.
"""
