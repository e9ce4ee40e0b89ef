"""FID, IS and intervals against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from npusim.training.metrics.statistics import frechet_distance, inception_score, paired_bootstrap


def test_the_distance_of_diagonal_gaussians_has_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (200_000, 3)), rng.normal([1, 0, 0], [1, 2, 3], (200_000, 3))
    expected = 1 + (2 - 1) ** 2 + (3 - 1) ** 2  # |mean|^2 + sum (sigma_a - sigma_b)^2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.02)


def test_a_set_is_at_no_distance_from_itself_and_rotations_change_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 4)), rng.normal(1, 2, (500, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b))


def test_a_perfect_ten_class_set_scores_ten_and_a_constant_one() -> None:
    assert inception_score([np.eye(10)]) == pytest.approx(10)
    assert inception_score([np.full((7, 10), 0.1)]) == pytest.approx(1)


def test_independent_heads_multiply() -> None:
    heads = [np.eye(2)[np.arange(12) % 2], np.eye(3)[np.arange(12) % 3]]
    assert inception_score(heads) == pytest.approx(6)


def test_a_constant_difference_has_no_width_and_a_noisy_one_covers_its_mean() -> None:
    a = np.linspace(0, 1, 100)
    assert paired_bootstrap(a + 0.25, a) == pytest.approx((0.25, 0.25, 0.25))
    mean, low, high = paired_bootstrap(a + np.random.default_rng(1).normal(0.1, 1, 100), a)
    assert low < mean < high


def test_few_pictures_of_many_features_are_measured_by_their_products_and_by_their_covariances_alike() -> (
    None
):
    from scipy import linalg

    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(12, 20)), rng.normal(0.5, 2, (15, 20))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(linalg.sqrtm(cov_a).real @ cov_b @ linalg.sqrtm(cov_a).real).real
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_many_pictures_agree_with_the_root_of_the_product_of_covariances() -> None:
    from scipy import linalg

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(1, 2, (200, 6))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected)
