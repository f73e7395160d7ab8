"""How far image vectors are from text vectors, and languages from each other: pure numbers.

One vector per image and one per text: the mean over its sequence.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_TOGETHER = 1024  # vectors compared with all others at a time
Vectors = Float[np.ndarray, "n d"]


class Gap(NamedTuple):
    """Two sets of vectors, row by row about the same record."""

    count: int
    centroid_distance: float  # between the means of both sets
    relative_distance: float  # the same, in root mean squares of the vectors around their means
    centroid_cosine: float  # of the two means; 1: the same direction from the origin
    pair_cosine: float  # mean over the records
    # share of vectors that are nearer to the mean of their own set than to the other one's, means
    # taken from the other half of the records: 0.5 is no gap, 1 are two sets without overlap
    separability: float
    # share of the second set's vectors whose partner is the nearest of the first, by cosine after
    # both means are taken off: the alignment that is left when the gap is removed
    retrieval: float


def gap(first: Vectors, second: Vectors) -> Gap:
    """Compares two sets.

    Args:
        first, second: at least two different records; row n of both is of the same record.
    """
    means = first.mean(0), second.mean(0)
    centred = first - means[0], second - means[1]
    distance = float(np.linalg.norm(means[0] - means[1]))
    scale = math.sqrt(sum(float((x**2).sum(1).mean()) for x in centred) / 2)
    return Gap(
        len(first),
        distance,
        distance / scale,
        _cosine(means[0], means[1]),
        float(np.mean(_cosines(first, second))),
        _separability(first, second),
        _retrieval(*centred),
    )


def _cosine(a: Float[np.ndarray, "d"], b: Float[np.ndarray, "d"]) -> float:
    return float(_cosines(a[None], b[None])[0])


def _cosines(a: Vectors, b: Vectors) -> Float[np.ndarray, "n"]:
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.maximum(scale, 1e-30)


def _separability(first: Vectors, second: Vectors) -> float:
    """Nearest mean, each half of the records judged by the means of the other half."""
    even = np.arange(len(first)) % 2 == 0
    right = 0
    for tested, known in ((even, ~even), (~even, even)):
        a, b = first[known].mean(0), second[known].mean(0)
        direction, middle = a - b, (a + b) / 2
        right += int((((first[tested] - middle) @ direction) > 0).sum())
        right += int((((second[tested] - middle) @ direction) < 0).sum())
    return right / (2 * len(first))


def _retrieval(first: Vectors, second: Vectors) -> float:
    a, b = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (first, second)
    )
    right = 0
    for start in range(0, len(b), _TOGETHER):
        own = a[start : start + _TOGETHER]
        nearest = a[(b[start : start + _TOGETHER] @ a.T).argmax(1)]
        right += int((nearest == own).all(1).sum())  # several records may have one image
    return right / len(b)


class Projection(NamedTuple):
    """Vectors in the plane that holds most of their variance."""

    points: dict[str, Float[np.ndarray, "_ 2"]]
    shares: tuple[float, float]  # of the variance, along both axes


def project(sets: Mapping[str, Float[np.ndarray, "_ d"]]) -> Projection:
    """Principal components of all sets together; every axis points to its largest value."""
    every = np.concatenate(list(sets.values()))
    centre = every.mean(0)
    _, lengths, axes = np.linalg.svd(every - centre, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(1)].diagonal())[:, None]
    total = float((lengths**2).sum()) or 1.0
    shares = [float(length**2) / total for length in lengths[:2]]
    points = {name: (x - centre) @ axes.T for name, x in sets.items()}
    return Projection(points, (shares[0], shares[1]))
