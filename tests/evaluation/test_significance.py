"""Values of the field, statsmodels and scipy as references, and limits that have known answers."""

import math
import warnings
from typing import Any, cast, get_args

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

from mllm_jax.evaluation.significance import (
    DRAWS,
    McNemar,
    confidence_interval,
    holm,
    mcnemar,
    paired_bootstrap,
    smallest_difference,
    standard_error,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("a_only", "b_only", "exact", "corrected"),
    [
        (5, 15, 0.041389, 0.044171),
        (0, 6, 0.03125, 0.041227),
        (10, 10, 1, 0.823063),
        (37, 58, 0.039608, 0.040174),
        (0, 0, 1, 1),
    ],
)
def test_mcnemar_gives_the_published_values(a_only, b_only, exact, corrected):
    assert mcnemar(a_only, b_only) == pytest.approx(exact, abs=5e-7)
    assert mcnemar(a_only, b_only, "chi_square_corrected") == pytest.approx(corrected, abs=5e-7)
    assert mcnemar(b_only, a_only) == mcnemar(a_only, b_only)


@pytest.mark.parametrize("pair", [(1, 0), (2, 9), (7, 7), (40, 90), (900, 1000), (3, 1200)])
@pytest.mark.parametrize("method", get_args(McNemar))
def test_mcnemar_agrees_with_statsmodels(pair, method):
    table = np.array([[5, pair[0]], [pair[1], 5]])
    statsmodels = cast(Any, reference_mcnemar)  # its own types are wrong
    reference = statsmodels(table, method == "exact", method == "chi_square_corrected")
    assert mcnemar(pair[0], pair[1], method) == pytest.approx(reference.pvalue, rel=1e-9)


def test_mcnemar_of_very_many_questions_is_quick_and_exact():
    reference = scipy.stats.binomtest(24_500, 50_000).pvalue
    assert mcnemar(24_500, 25_500) == pytest.approx(reference, rel=1e-9)


def test_holm_gives_the_published_values_and_agrees_with_statsmodels():
    assert holm([0.01, 0.04, 0.03, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.2])
    values = np.random.default_rng(3).random(25) ** 3
    assert holm(list(values)) == pytest.approx(multipletests(values, method="holm")[1])
    assert holm([]) == []


def test_standard_error_is_that_of_lm_eval():
    # XStoryCloze in Basque, 1,511 stories: 0.5546 +- 0.0128
    right = np.zeros(1511)
    right[:838] = 1
    assert f"{right.mean():.4f} {standard_error(right):.4f}" == "0.5546 0.0128"
    assert standard_error(right) == pytest.approx(scipy.stats.sem(right))
    assert standard_error(np.ones(1)) == 0
    assert standard_error(np.ones(9)) == 0


def test_clustered_error_agrees_with_statsmodels():
    import statsmodels.api as statsmodels

    generator = np.random.default_rng(0)
    members = generator.integers(0, 40, 300)
    values = generator.random(300) + generator.random(40)[members]
    fit = statsmodels.OLS(values, np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": members, "use_correction": False}
    )
    groups = [f"image {member}" for member in members]
    assert standard_error(values, groups) == pytest.approx(fit.bse[0])
    assert standard_error(values, groups) > 1.5 * standard_error(values)
    alone = standard_error(values, [str(i) for i in range(300)])
    assert alone == pytest.approx(values.std() / math.sqrt(300))
    assert standard_error(values, ["one"] * 300) == 0


def test_bootstrap_agrees_with_scipy():
    differences = np.random.default_rng(1).normal(0.05, 0.4, 200)
    ours = paired_bootstrap(differences)
    reference = scipy.stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=DRAWS, rng=5
    ).confidence_interval
    length = reference.high - reference.low
    assert ours.interval.low == pytest.approx(reference.low, abs=0.03 * length)
    assert ours.interval.high == pytest.approx(reference.high, abs=0.03 * length)
    # the normal test of the same mean
    normal = 2 * scipy.stats.norm.sf(abs(differences.mean()) / scipy.stats.sem(differences))
    assert ours.p == pytest.approx(normal, abs=0.02)


def test_bootstrap_is_repeatable_and_has_known_limits():
    scores = np.array([1.0, 0, 0, -1, 1, 1, 0, 0])
    assert paired_bootstrap(scores) == paired_bootstrap(scores)
    assert paired_bootstrap(scores) != paired_bootstrap(scores, seed=1)
    assert paired_bootstrap(np.zeros(10)) == ((0, 0), 1)
    certain = paired_bootstrap(np.ones(20))
    assert certain == ((1, 1), 1 / (DRAWS + 1))


def test_bootstrap_of_few_differences_is_not_surer_than_their_signs():
    assert paired_bootstrap(np.ones(1)).p == 1
    assert paired_bootstrap(np.ones(3)).p == mcnemar(3, 0) == 0.25
    assert paired_bootstrap(np.ones(6), ["a", "a", "b", "b", "c", "c"]).p == 0.25
    assert paired_bootstrap(np.ones(6), ["a"] * 6).p == 1


def test_bootstrap_of_groups_knows_that_they_are_alike():
    generator = np.random.default_rng(2)
    members = np.repeat(np.arange(50), 10)
    differences = generator.choice([-1.0, 1.0], 50)[members]  # ten questions, one answer
    groups = [str(member) for member in members]
    clustered = paired_bootstrap(differences, groups).interval
    single = paired_bootstrap(differences).interval
    assert (clustered.high - clustered.low) == pytest.approx(
        math.sqrt(10) * (single.high - single.low), rel=0.1
    )
    expected = confidence_interval(differences.mean(), standard_error(differences, groups))
    assert clustered.low == pytest.approx(expected.low, abs=0.03)
    assert clustered.high == pytest.approx(expected.high, abs=0.03)


def test_the_tests_hold_their_level():
    """Of two models that are alike, one in twenty comparisons is significant, not more."""
    generator = np.random.default_rng(4)
    bootstrap, exact = [], []
    for _ in range(300):
        first, second = generator.random((2, 200)) < 0.6
        difference = first.astype(float) - second
        bootstrap.append(paired_bootstrap(difference, draws=1000).p)
        exact.append(mcnemar(int((first & ~second).sum()), int((second & ~first).sum())))
    assert 0.02 <= np.mean(np.array(bootstrap) < 0.05) <= 0.09
    assert np.mean(np.array(exact) < 0.05) <= 0.07


def test_intervals_agree_with_statsmodels():
    assert confidence_interval(0.5, 0.1) == pytest.approx(scipy.stats.norm.interval(0.95, 0.5, 0.1))
    for right, count in ((0, 20), (13, 20), (20, 20), (838, 1511)):
        reference = proportion_confint(right, count, method="wilson")
        assert wilson_interval(float(right), count) == pytest.approx(reference, abs=1e-12)


def test_smallest_difference_is_found_with_that_power():
    assert smallest_difference(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-6)
    # statsmodels: a mean's difference from 0, in standard deviations, of 500 questions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = NormalIndPower(ddof=0).solve_power(None, 500, 0.05, 0.8, ratio=0)
    assert smallest_difference(1 / math.sqrt(500)) == pytest.approx(reference, rel=1e-4)
    # by trying: right with probability .6 and .6 + d
    generator, error = np.random.default_rng(6), math.sqrt(0.5 / 600)
    shift = smallest_difference(error)
    trials = generator.normal(shift, math.sqrt(0.5), (4000, 600))
    z = trials.mean(1) / (trials.std(1, ddof=1) / math.sqrt(600))
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=0.02)
