"""Triples as a model gives them: with their words, where these stand, and a confidence."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from lib.extraction.triples import Span, Triple

__all__ = ["Candidate", "FoundEntity", "FoundTriple"]


class Candidate(NamedTuple):
    """A triple that a model finds at the thresholds ``[low, score)``."""

    triple: Triple
    low: float
    """−inf where it is found at every threshold below its score."""
    score: float


@dataclass(frozen=True, slots=True)
class FoundEntity:
    """Words of a text: its characters ``[start, end)``.

    Examples
    --------
    >>> print(FoundEntity("Ada", 0, 3))
    Ada
    """

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        """Return the words."""
        return self.text


@dataclass(frozen=True, slots=True)
class FoundTriple:
    """A triple that a model found.

    Parameters
    ----------
    subject, object : FoundEntity
        The words and where they stand in the text.
    relation : str
        One of the model's relations.
    confidence : float
        A logistic function of the least score that had to exceed the threshold. Before a model is
        calibrated it is above 0.5 where the threshold is 0, and orders triples; only of a
        calibrated model it estimates the probability that the triple is right.

    Examples
    --------
    >>> found = FoundTriple.of("Ada wrote Notes", Triple(Span(0, 3), "wrote", Span(10, 15)), 0.75)
    >>> print(found)
    Ada | wrote | Notes (0.75)
    >>> found.object.start, found.triple() == Triple(Span(0, 3), "wrote", Span(10, 15))
    (10, True)
    """

    subject: FoundEntity
    relation: str
    object: FoundEntity
    confidence: float

    @classmethod
    def of(cls, text: str, triple: Triple, confidence: float) -> Self:
        """Look the words of a triple up in its text."""
        subject, object_ = (
            FoundEntity(span.of(text), span.start, span.end)
            for span in (triple.subject, triple.object)
        )
        return cls(subject, triple.relation, object_, confidence)

    def triple(self) -> Triple:
        """Return the triple by its spans, as corpora and metrics have it."""
        return Triple(
            Span(self.subject.start, self.subject.end),
            self.relation,
            Span(self.object.start, self.object.end),
        )

    def __str__(self) -> str:
        """Return subject, relation, object and confidence in a line."""
        return f"{self.subject} | {self.relation} | {self.object} ({self.confidence:.2f})"
