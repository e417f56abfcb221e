"""Experiments too long for a notebook; each writes its record to book/runs.

``make runs RUN=name`` runs ``experiments.name``, or for a corpus and a model, as in
``webnlg-gplinker``, the trainings of ``experiments.extraction``. A chapter reads the record; its
prose holds no figure that the record does not.
"""
