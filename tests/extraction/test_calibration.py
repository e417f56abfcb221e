"""Thresholds chosen on made-up scores whose right answer is known."""

import math

import pytest
import torch

from lib.extraction.calibration import (
    Candidates,
    Gain,
    best_threshold,
    calibrate,
    counts_at,
    cross_validated_thresholds,
    fit_confidence,
    gain_interval,
    precision_recall_table,
    reliability,
    sweep,
)
from lib.extraction.metrics import Counts


def made_up(sentences, *, seed, scale=1.0, offset=0.0, each=3):
    """Make candidates that are right with the probability σ(scale · score + offset)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(sentences, each, generator=generator) * 8 - 4
    right = torch.rand(sentences, each, generator=generator) < torch.sigmoid(
        scale * scores + offset
    )
    return [
        Candidates(tuple(s), tuple(r), sum(r))
        for s, r in zip(scores.tolist(), right.tolist(), strict=True)
    ]


def test_sweep_counts_at_each_threshold_what_counting_one_by_one_does():
    sentences = [
        *made_up(20, seed=0),
        Candidates((), (), 4),
        Candidates((1.0, 1.0), (True,) * 2, 2),
    ]
    points = sweep(sentences, floor=-5.0)
    thresholds = [point.threshold for point in points]
    assert thresholds == sorted(set(thresholds))
    assert thresholds[0] == -5.0
    assert 0.0 in thresholds
    assert len(points) == 62  # 61 different scores: 60 middles, floor and 0
    for point in points:
        assert point.counts == counts_at(sentences, point.threshold)


def test_equal_scores_are_kept_or_left_together():
    sentences = [Candidates((1.0, 1.0), (True, False), 1), Candidates((1.0,), (False,), 0)]
    assert [(p.threshold, p.counts.predicted) for p in sweep(sentences, floor=-1.0)] == [
        (-1.0, 3),
        (0.0, 3),
    ]
    close = math.nextafter(1.0, 2.0)
    points = sweep([Candidates((1.0, close), (False, True), 1)], floor=-1.0)
    assert points[-1].counts == Counts(1, 1, 1)


def test_of_equal_thresholds_the_one_nearest_to_0_is_chosen():
    assert best_threshold([Candidates((2.0, 3.0), (True, True), 2)], floor=-3.0) == 0.0
    assert best_threshold([Candidates((-2.0, 3.0, 2.0), (False, True, True), 2)], floor=-3.0) == 0.0


@pytest.mark.parametrize(
    "sentence",
    [Candidates((), (), 2), Candidates((), (), 0), Candidates((1.0, 2.0), (False, False), 0)],
    ids=["nothing found", "nothing at all", "nothing to find"],
)
def test_without_anything_to_gain_the_threshold_stays_at_0(sentence):
    decided = calibrate([sentence] * 10, floor=-4.0, repeats=50)
    assert (decided.threshold, decided.best) == (0.0, 0.0)
    assert decided.gain == Gain(0.0, 0.0, 0.0)
    assert "–" in precision_recall_table(sweep([sentence], floor=-4.0))


def test_noise_is_not_chosen():
    # Scores that say nothing, all above 0: whatever threshold looks best does so by chance.
    stayed = gained = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(60, 2, generator=generator) + 0.1
        right = torch.rand(60, 2, generator=generator) < 0.6
        sentences = [
            Candidates(tuple(s), tuple(r), sum(r) + 1)
            for s, r in zip(scores.tolist(), right.tolist(), strict=True)
        ]
        decided = calibrate(sentences, floor=-4.0, repeats=300)
        stayed += decided.threshold == 0
        gained += decided.at_best.f1 > decided.at_zero.f1
    assert gained >= 5  # so there is a temptation: the sentences that choose are flattered
    assert stayed >= 19


def test_a_true_gain_is_chosen_near_the_best_threshold():
    # Right with probability σ(2 s + 4): also what stands well below 0.
    decided = calibrate(made_up(500, seed=1, scale=2.0, offset=4.0), floor=-4.0, repeats=300)
    fresh = made_up(5000, seed=2, scale=2.0, offset=4.0)
    at = {point.threshold: point.counts.f1 for point in sweep(fresh, floor=-4.0)}
    assert decided.threshold == decided.best < -1
    assert 0 < decided.gain.low < decided.gain.gain < decided.gain.high
    assert counts_at(fresh, decided.threshold).f1 > max(at.values()) - 0.01
    assert counts_at(fresh, decided.threshold).f1 > at[0.0] + 0.05


def test_folds_hold_out_the_sentence_and_follow_the_seed():
    # One sentence would move the threshold for itself alone.
    odd = Candidates((3.0, 2.0), (False, True), 1)
    sentences = [Candidates((1.0, 2.0), (False, True), 1)] * 9 + [odd]
    chosen = cross_validated_thresholds(sentences, floor=-1.0, folds=10)
    assert chosen[-1] == 1.5 == best_threshold(sentences[:-1], floor=-1.0)
    many = made_up(30, seed=3)
    state = torch.get_rng_state()
    first, again, other = (
        cross_validated_thresholds(many, floor=-4.0, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(first)) <= 5


def test_the_interval_covers_the_true_gain():
    everything = made_up(20_000, seed=4, scale=1.5, offset=1.5)
    true = counts_at(everything, -1.0).f1 - counts_at(everything, 0.0).f1
    covered = 0
    for seed in range(100):
        sample = made_up(100, seed=1000 + seed, scale=1.5, offset=1.5)
        found = gain_interval(sample, [-1.0] * 100, repeats=200, seed=seed)
        assert found.low <= found.gain <= found.high
        covered += found.low <= true <= found.high
    assert 88 <= covered <= 100  # 95 is meant; below 88 is less likely than one in 300


def test_the_comparison_is_paired():
    sentences = made_up(50, seed=5)
    assert gain_interval(sentences, [0.0] * 50, repeats=50) == Gain(0.0, 0.0, 0.0)


def test_the_fit_of_confidence_is_the_one_that_made_the_scores():
    sentences = made_up(4000, seed=6, scale=0.5, offset=-1.0)
    scale, offset = fit_confidence(sentences)
    assert scale == pytest.approx(0.5, abs=0.05)
    assert offset == pytest.approx(-1.0, abs=0.1)

    def error(**fit):
        bins = reliability(sentences, **fit)
        total = sum(held.count for held in bins)
        assert total == 12_000
        return sum(held.count * abs(held.confidence - held.right) for held in bins) / total

    assert error(scale=scale, offset=offset) < 0.03 < error()
    with pytest.raises(ValueError, match="targets must not be all the same"):
        fit_confidence([Candidates((1.0, 2.0), (True, True), 2)])


def test_the_table_is_short_and_has_both_ends_and_0():
    points = sweep(made_up(200, seed=7), floor=-4.5)
    lines = precision_recall_table(points).splitlines()
    assert lines[0].split() == ["threshold", "precision", "recall", "F1"]
    shown = [float(line.split()[0]) for line in lines[1:]]
    assert len(shown) in (11, 12)
    assert shown[0] == -4.5
    assert 0.0 in shown
    assert shown[-1] == round(points[-1].threshold, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Candidates((1.0,), (), 1), "right must have one entry per score, 1, got 0"),
        (lambda: Candidates((math.nan,), (True,), 1), "scores must be finite"),
        (lambda: Candidates((1.0,), (True,), 0), "gold must be at least the 1 right, got 0"),
        (lambda: sweep([], floor=1.0), "floor must be a finite number and at most 0, got 1.0"),
        (lambda: sweep([Candidates((-2.0,), (True,), 1)], floor=-1.0), "must be above floor"),
        (lambda: calibrate([], floor=0.0), "folds must be from 2 to the number of sentences, 0"),
        (lambda: gain_interval([], []), "thresholds must be one per sentence"),
        (lambda: gain_interval([Candidates((), (), 0)], [0.0], repeats=0), "repeats must be"),
        (lambda: gain_interval([Candidates((), (), 0)], [0.0], level=1.0), "level must be"),
        (lambda: reliability([], bins=0), "bins must be at least 1, got 0"),
        (lambda: precision_recall_table([], rows=2), "rows must be at least 3, got 2"),
        (lambda: counts_at([], math.nan), "threshold must be a finite number, got nan"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
