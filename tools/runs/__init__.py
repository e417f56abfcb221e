"""Experiments too long for a notebook: one module per chapter, each writes a record to book/runs.

``make runs RUN=name`` runs ``tools.runs.name``. A chapter reads the record; its prose holds no
figure that the record does not.
"""
