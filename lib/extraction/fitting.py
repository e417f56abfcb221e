"""From candidates to the decoding of a model, with all that a reader needs to judge it."""

from collections.abc import Sequence

from lib.extraction.calibration import (
    Calibration,
    Candidates,
    calibrate,
    fit_confidence,
    precision_recall_table,
    reliability,
    sweep,
)
from lib.extraction.thresholds import Decoding

__all__ = ["FEW", "fit_decoding"]

FEW = 20
"""Least number of right and of wrong triples from which confidences are fitted."""


def fit_decoding(
    sentences: Sequence[Candidates], *, floor: float, seed: int = 0
) -> tuple[Decoding, str]:
    """Choose threshold and confidence on held-out sentences, and report on both.

    Parameters
    ----------
    sentences : sequence of Candidates
        At least five.
    floor : float
        The threshold at which they were found; at most 0.
    seed : int
        Of folds and draws.

    Returns
    -------
    decoding : Decoding
        The threshold of `lib.extraction.calibration.calibrate`, for both kinds of tables. The
        confidence is fitted to what is found at it; if fewer than 20 of that are right or wrong, or
        nothing fits best, it stays the logistic function of the score.
    report : str
        The precision–recall curve, the gain with its interval, the decision, and the reliability of
        the confidences before and after.

    Raises
    ------
    ValueError
        As of `lib.extraction.calibration.calibrate`.
    """
    decided = calibrate(sentences, floor=floor, seed=seed)
    threshold = decided.threshold
    lines = [precision_recall_table(sweep(sentences, floor=floor)), "", *_decision(decided)]
    scale, offset = 1.0, 0.0
    found = [found for s in sentences for found in s.ranges() if found[0] <= threshold < found[1]]
    right = sum(is_right for _, _, is_right in found)
    if min(right, len(found) - right) < FEW:
        lines.append(
            f"confidence: not fitted, of the {len(found)} triples found {right} are right; it "
            f"needs {FEW} of either kind"
        )
    else:
        try:
            scale, offset = fit_confidence(sentences, threshold=threshold)
        except ValueError as error:
            lines.append(f"confidence: not fitted: {error}")
        else:
            lines.append(f"confidence: the logistic function of {scale:.3f} · score {offset:+.3f}")
    for name, pair in {"as trained": (1.0, 0.0), "fitted": (scale, offset)}.items():
        bins = reliability(sentences, scale=pair[0], offset=pair[1], threshold=threshold)
        if bins and (name == "as trained" or pair != (1.0, 0.0)):
            lines += ["", f"{name:<12}   said   right  triples"]
            lines += [f"{'':12}{b.confidence:>7.3f}{b.right:>8.3f}{b.count:>9}" for b in bins]
    return Decoding(threshold=threshold, scale=scale, offset=offset), "\n".join(lines)


def _decision(decided: Calibration) -> list[str]:
    """Say what was decided and why."""
    at_zero, at_best = decided.at_zero, decided.at_best
    gain = decided.gain
    lines = [
        f"at 0: precision {at_zero.precision:.4f} recall {at_zero.recall:.4f} F1 {at_zero.f1:.4f}",
        f"best on these sentences, {decided.best:.3f}: precision {at_best.precision:.4f} recall "
        f"{at_best.recall:.4f} F1 {at_best.f1:.4f}",
        f"gain in F1 on sentences that did not choose: {gain.gain:+.4f}, 95 % of draws within "
        f"{gain.low:+.4f} and {gain.high:+.4f}",
    ]
    if decided.threshold:
        lines.append(f"threshold: {decided.threshold:.3f}")
    elif gain.low > 0:  # the best one on all sentences is 0
        lines.append("threshold: 0, which is the best one on all sentences")
    else:
        lines.append("threshold: 0, as the gain may be noise")
    return lines
