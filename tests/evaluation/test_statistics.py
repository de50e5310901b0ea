"""Intervals against theory and hand-worked values; pairing, clusters and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from polyptych.evaluation.statistics import bootstrap_interval, paired_bootstrap, ratio


def rows(values: object) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=1)


def test_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    low, high = bootstrap_interval(rows(values), resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_of_two_items_is_exact() -> None:
    # Resampled means of (0, 1) are 0, 0.5, 1 with probabilities 1/4, 1/2, 1/4.
    assert bootstrap_interval(rows([0, 1]), confidence=0.95) == (0.0, 1.0)
    assert bootstrap_interval(rows([0, 1]), confidence=0.4) == (0.5, 0.5)


def test_coverage_of_the_interval_is_near_its_confidence() -> None:
    generator = np.random.default_rng(7)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_interval(rows(generator.random(60) < 0.3), resamples=400, seed=trial)
        inside += low <= 0.3 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_items_without_weight_do_not_count() -> None:
    statistics = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    assert ratio(statistics.sum(0)) == 0.5
    assert np.isnan(ratio(np.zeros(2)))


def test_equal_seeds_draw_equal_items_and_memory_steps_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statistics = rows(np.arange(50))
    whole = bootstrap_interval(statistics, seed=3)
    assert whole == bootstrap_interval(statistics, seed=3)
    assert whole != bootstrap_interval(statistics, seed=4)
    monkeypatch.setattr("polyptych.evaluation.statistics._ROWS_AT_ONCE", 170)
    assert whole == bootstrap_interval(statistics, seed=3)


def test_equal_rows_drawn_together_give_the_same_intervals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(5)
    first, second = rows(generator.random(12_000) < 0.3), rows(generator.random(12_000) < 0.31)
    first[:9], second[:9] = 0, 0  # items without weight

    def both(seed: int) -> tuple:
        return (
            bootstrap_interval(first, seed=seed),
            paired_bootstrap(first, second, seed=seed, resamples=6000),
        )

    together = both(0)
    monkeypatch.setattr("polyptych.evaluation.statistics._MANY", 1 << 30)
    apart = both(1)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 12_000)
    assert together[0] == pytest.approx(apart[0], abs=0.1 * half)
    assert together[1].value == apart[1].value
    assert together[1].interval == pytest.approx(apart[1].interval, abs=0.15 * half)
    assert together[1].p_value == pytest.approx(apart[1].p_value, abs=0.02)


def test_corpus_metric_is_recomputed_from_summed_counts() -> None:
    # F1 from (true positives, false positives, false negatives); no mean of items would give it.
    def f1(sums: np.ndarray) -> np.ndarray:
        tp, fp, fn = np.moveaxis(sums, -1, 0)
        return 2 * tp / (2 * tp + fp + fn)

    counts = np.eye(3)[[0] * 60 + [1] * 20 + [2] * 20]
    low, high = bootstrap_interval(counts, f1)
    assert low < f1(counts.sum(0)) == 0.75 < high
    assert high - low == pytest.approx(0.16, abs=0.05)


def test_clusters_widen_the_interval_of_repeated_items() -> None:
    values = np.repeat(np.random.default_rng(0).random(40), 25)
    single = bootstrap_interval(rows(values))
    whole = bootstrap_interval(rows(values), clusters=np.repeat(np.arange(40), 25).tolist())
    ratio_of_widths = (whole.high - whole.low) / (single.high - single.low)
    assert ratio_of_widths == pytest.approx(5.0, rel=0.15)  # sqrt(25)


def test_pairing_sees_a_difference_that_separate_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(200)
    first, second = rows(hard + 0.02 + 0.01 * generator.normal(size=200)), rows(hard)
    apart_first, apart_second = bootstrap_interval(first), bootstrap_interval(second)
    assert apart_first.low < apart_second.high
    difference = paired_bootstrap(first, second)
    assert difference.value == pytest.approx(0.02, abs=0.003)
    assert difference.interval.low > 0
    assert difference.p_value == pytest.approx(1 / 2001)


def test_equal_systems_have_p_value_one() -> None:
    difference = paired_bootstrap(rows([0, 1, 1]), rows([0, 1, 1]))
    assert difference.value == 0
    assert difference.interval == (0, 0)
    assert difference.p_value == 1


def test_p_value_is_symmetric_and_uniform_enough_without_effect() -> None:
    generator = np.random.default_rng(5)
    pairs = [(rows(generator.random(50)), rows(generator.random(50))) for _ in range(100)]
    values = [paired_bootstrap(a, b, resamples=400).p_value for a, b in pairs]
    assert 0.01 <= np.mean(np.array(values) < 0.1) <= 0.22
    for a, b in pairs[:5]:
        assert paired_bootstrap(a, b).p_value == pytest.approx(
            paired_bootstrap(b, a).p_value, abs=0.002
        )


def test_no_items_and_unequal_pairs() -> None:
    assert np.isnan(bootstrap_interval(np.zeros((0, 2))).low)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
        paired_bootstrap(rows([0, 1]), rows([0, 1, 1]))
