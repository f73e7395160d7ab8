"""Numbers of sets whose gap is known."""

import numpy as np
import pytest

from mllm_jax.evaluation.modality_gap import gap, project


def test_two_sets_of_four_by_hand():
    first = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    second = first + np.array([3, 4])
    measured = gap(first, second)
    assert measured.count == 4
    assert measured.centroid_distance == pytest.approx(5)
    assert measured.relative_distance == pytest.approx(5)  # both sets have a spread of 1
    assert measured.centroid_cosine == 0  # the first mean is the origin
    cosines = [(4 * 1 + 0) / np.hypot(4, 4), -2 / np.hypot(2, 4), 5 / np.hypot(3, 5)]
    assert measured.pair_cosine == pytest.approx(np.mean([*cosines, -3 / np.hypot(3, 3)]))
    assert measured.separability == 1
    assert measured.retrieval == 1  # without the shift both sets are equal


def test_no_gap_and_no_alignment():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 2000, 8))
    measured = gap(first, second)
    assert measured.relative_distance < 0.1
    assert measured.separability == pytest.approx(0.5, abs=0.03)
    assert measured.retrieval < 0.01
    moved = gap(first, second + 10 / np.sqrt(8))
    assert moved.centroid_distance == pytest.approx(10, rel=0.01)
    assert moved.separability > 0.99
    assert moved.retrieval == measured.retrieval


def test_separability_is_measured_on_other_records():
    """20 vectors in 500 dimensions are always separable from 20 others by their own means."""
    generator = np.random.default_rng(4)
    shares = [gap(*generator.normal(size=(2, 20, 500))).separability for _ in range(20)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)


def test_distances_scale_and_ratios_do_not():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(2, 50, 6)) + np.array([1.0, 0, 0, 0, 0, 0])
    small, large = gap(first, second), gap(7 * first, 7 * second)
    assert large.centroid_distance == pytest.approx(7 * small.centroid_distance)
    assert large.relative_distance == pytest.approx(small.relative_distance)
    assert large.pair_cosine == pytest.approx(small.pair_cosine)
    assert large[5:] == small[5:]


def test_several_texts_of_one_image_are_all_its_own():
    images = np.repeat(np.eye(4), 3, 0)
    assert gap(images, images + 0.01 * np.random.default_rng(2).normal(size=(12, 4))).retrieval == 1


def test_the_plane_holds_most_of_the_variance():
    generator = np.random.default_rng(3)
    flat = generator.normal(size=(200, 2)) @ np.array([[5.0, 0, 0, 0], [0, 2, 0, 0]])
    sets = {"a": flat[:100] + 1e-3, "b": flat[100:]}
    plane = project(sets)
    assert sum(plane.shares) == pytest.approx(1, abs=1e-4)
    assert plane.shares[0] == pytest.approx(25 / 29, abs=0.05)
    between = np.linalg.norm(flat[3] - flat[7])
    assert np.linalg.norm(plane.points["a"][3] - plane.points["a"][7]) == pytest.approx(between)
    again = project({"a": sets["a"], "b": sets["b"]})
    assert np.array_equal(plane.points["b"], again.points["b"])
