"""Learning curves: known ones are recovered, limits against scipy's regression and simulations, symmetries."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from scipy import stats as reference
from statsmodels.formula.api import ols

from dotlib import power_law

SIZES = np.array([256.0, 512, 1024, 2048, 4096])


def truth(sizes, b, c):
    """An error of 1 at 1,024 phantoms, of which c is the floor."""
    return c + (1 - c) * (np.asarray(sizes) / 1024) ** -b


def runs(rng, seeds, b=0.5, c=0.3, seed=0.04, rest=0.03):
    """Errors (R, N) whose logarithms spread between seeds, and besides."""
    noise = rng.normal(0, seed, (seeds, 1)) + rng.normal(0, rest, (seeds, len(SIZES)))
    return truth(SIZES, b, c) * np.exp(noise)


def covered(flags):
    return reference.binomtest(int(sum(flags)), len(flags)).proportion_ci(method="exact")


def t_interval(values):
    return reference.t.interval(0.95, len(values) - 1, np.mean(values), reference.sem(values))


@pytest.mark.parametrize(
    ("a", "b", "c", "floor"), [(2, 0.4, 0.1, True), (50, 1.2, 0.02, True), (3, 0.15, 0, False), (3, 1.0, 0, False)]
)
def test_exact_curves_are_recovered(a, b, c, floor):
    law = power_law.fit(np.tile(c + a * SIZES**-b, (3, 1)), SIZES, floor)
    for interval, true in zip((law.a, law.b, law.c), (a, b, c), strict=True):
        assert interval == pytest.approx((true, true, true, 3), rel=1e-5)
    assert law.identified
    further = [100, 16384, 10**6]
    for n, interval in zip(further, power_law.curve(law, further), strict=True):
        assert interval[:3] == pytest.approx([c + a * n**-b] * 3, rel=1e-5)


def test_without_a_floor_it_is_the_regression_of_every_seed():
    errors = runs(np.random.default_rng(0), 4)
    lines = [reference.linregress(np.log(SIZES), np.log(row)) for row in errors]
    law = power_law.fit(errors, SIZES, floor=False)
    assert law.b[1:3] == pytest.approx(t_interval([-line.slope for line in lines]), rel=1e-5)
    assert np.log(law.a[1:3]) == pytest.approx(t_interval([line.intercept for line in lines]), rel=1e-5)
    at = [line.intercept + line.slope * np.log(8192) for line in lines]
    assert np.log(power_law.curve(law, [8192])[0][1:3]) == pytest.approx(t_interval(at), rel=1e-5)
    doubled = [line.slope * np.log(2) for line in lines]
    assert np.log1p(np.array(power_law.change(law, 512, 1024)[1:3]) / 100) == pytest.approx(t_interval(doubled))


def test_with_a_floor_small_noise_moves_it_as_it_moves_fits_of_every_seed():
    errors = runs(np.random.default_rng(1), 4, seed=1e-3, rest=1e-4)

    def log_error(sizes, log_a, b, c):
        return np.log(c + np.exp(log_a) * (sizes / 1024) ** -b)

    fits = [optimize.curve_fit(log_error, SIZES, np.log(row), (-0.3, 0.5, 0.3), xtol=1e-12)[0] for row in errors]
    law = power_law.fit(errors, SIZES)
    assert np.array(law.b[1:3]) - law.b.estimate == pytest.approx(np.array([-1, 1]) * half(fits, 1), rel=0.02)
    assert np.array(law.c[1:3]) - law.c.estimate == pytest.approx(np.array([-1, 1]) * half(fits, 2), rel=0.02)
    assert (law.b.estimate, law.c.estimate) == pytest.approx(np.mean(fits, axis=0)[1:], rel=1e-3)


def half(fits, parameter):
    return np.diff(t_interval(np.array(fits)[:, parameter])).item() / 2


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("b", "c", "floor"), [(0.2, 0.0, False), (0.5, 0.3, True), (0.5, 0.6, True)])
def test_limits_cover_the_truth(seeds, b, c, floor):
    """b, and the change to four times the largest size."""
    rng, true = np.random.default_rng([2, seeds]), 100 * (truth(16384, b, c) / truth(4096, b, c) - 1)
    laws = [power_law.fit(runs(rng, seeds, b, c), SIZES, floor) for _ in range(300)]
    assert covered([law.b.low <= b <= law.b.high for law in laws]).low >= 0.85
    changes = [power_law.change(law, 4096, 16384) for law in laws]
    assert covered([x.low <= true <= x.high for x in changes]).low >= 0.85


@pytest.mark.parametrize(("seeds", "expected"), [(3, 0.74), (5, 0.83), (10, 0.91)])
def test_percentiles_of_resampled_seeds_would_cover_less(seeds, expected):
    """Without a floor the fit to resampled seeds is the mean of their slopes."""
    rng, x = np.random.default_rng([3, seeds]), np.log(SIZES / 1024)
    noise = rng.normal(0, 0.03, (3000, seeds, len(SIZES)))
    slopes = 0.2 - noise @ x / (x @ x)
    resampled = slopes[:, rng.integers(seeds, size=(1000, seeds))].mean(axis=2)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    found = covered((low <= 0.2) & (high >= 0.2))
    assert found.low < 0.92 and (found.low + found.high) / 2 == pytest.approx(expected, abs=0.02)


def test_the_error_of_seeds_in_common_does_not_widen_b():
    rng = np.random.default_rng(4)
    errors, levels = runs(rng, 4, seed=0), np.exp(rng.normal(0, 0.3, (4, 1)))
    levels /= np.exp(np.log(levels).mean())
    alone, shifted = power_law.fit(errors, SIZES), power_law.fit(errors * levels, SIZES)
    assert shifted.b == pytest.approx(alone.b, rel=1e-5) and shifted.aicc == pytest.approx(alone.aicc)
    assert power_law.change(shifted, 256, 512) == pytest.approx(power_law.change(alone, 256, 512), rel=1e-5)
    narrow, wide = (power_law.curve(law, [1024])[0] for law in (alone, shifted))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


@pytest.mark.parametrize("floor", [True, False])
def test_units_of_error_and_size_and_the_order_do_not_matter(floor):
    errors = runs(np.random.default_rng(5), 5)
    law, louder = power_law.fit(errors, SIZES, floor), power_law.fit(7 * errors, SIZES, floor)
    assert louder.b == pytest.approx(law.b, rel=1e-4)
    assert louder.a[:3] == pytest.approx(7 * np.array(law.a[:3]), rel=1e-4)
    assert louder.c[:3] == pytest.approx(7 * np.array(law.c[:3]), rel=1e-4)
    dozens = power_law.fit(errors, SIZES / 12, floor)
    assert (dozens.b, dozens.c) == (pytest.approx(law.b, rel=1e-4), pytest.approx(law.c, rel=1e-4))
    assert dozens.a.estimate == pytest.approx(law.a.estimate * 12**-law.b.estimate, rel=1e-4)
    assert power_law.change(dozens, 100, 200) == pytest.approx(power_law.change(law, 1200, 2400), rel=1e-4)
    order = np.array([3, 0, 4, 1, 2])
    other = power_law.fit(errors[order][:, order], SIZES[order], floor)
    assert other.b == pytest.approx(law.b, rel=1e-4) and other.aicc == pytest.approx(law.aicc)


def test_a_change_is_that_of_the_curve():
    law = power_law.fit(runs(np.random.default_rng(6), 5), SIZES)
    before, after = (interval.estimate for interval in power_law.curve(law, [512, 9000]))
    there, back = power_law.change(law, 512, 9000), power_law.change(law, 9000, 512)
    assert there.estimate == pytest.approx(100 * (after / before - 1))
    turned = [100 / (1 + x / 100) - 100 for x in (there.estimate, there.high, there.low)]
    assert back[:3] == pytest.approx(turned)
    assert power_law.change(law, 512, 512)[:3] == pytest.approx((0, 0, 0))


@pytest.mark.parametrize(("b", "c"), [(0.0, 0.0), (20.0, 0.5)])
def test_what_does_not_fall_or_falls_at_once_has_no_exponent(b, c):
    rng = np.random.default_rng(7)
    laws = [power_law.fit(runs(rng, 3, b, c), SIZES) for _ in range(20)]
    assert sum(law.identified for law in laws) <= 3


def test_a_clear_curve_has_an_exponent_and_one_seed_has_none():
    errors = runs(np.random.default_rng(8), 5, b=1.0)
    law, one = power_law.fit(errors, SIZES), power_law.fit(errors[:1], SIZES)
    assert law.identified and law.b.low > 0 and law.c.low > 0
    assert not one.identified and one.b[1:] == (-np.inf, np.inf, 1) and one.c.low == 0


def test_akaikes_criterion_is_that_of_a_regression_with_a_level_for_every_seed():
    errors = runs(np.random.default_rng(9), 4)
    seeds, sizes = np.indices(errors.shape)
    frame = pd.DataFrame({"y": np.log(errors).ravel(), "seed": seeds.ravel(), "x": np.log(SIZES)[sizes.ravel()]})
    squares, n = ols("y ~ C(seed) + x", frame).fit().ssr, 16
    expected = n * np.log(squares / n) + 2 * 2 + 2 * 2 * 3 / (n - 3)
    assert power_law.fit(errors, SIZES, floor=False).aicc == pytest.approx(expected)


def test_akaikes_criterion_finds_a_floor_where_there_is_one():
    rng = np.random.default_rng(10)
    for c, expected in ((0.5, True), (0.0, False)):
        tables = [runs(rng, 5, 1.0, c) for _ in range(10)]
        found = [power_law.fit(x, SIZES).aicc < power_law.fit(x, SIZES, floor=False).aicc for x in tables]
        assert found.count(expected) >= 8


@pytest.mark.parametrize(
    ("errors", "sizes", "floor", "message"),
    [
        (np.ones((3, 3)), SIZES[:3], True, "4 sizes"),
        (np.ones((3, 2)), SIZES[:2], False, "3 sizes"),
        (np.ones((3, 4)), [256, 256, 512, 1024], True, "4 sizes"),
        (np.ones((3, 4)), SIZES, True, "seeds, sizes"),
        (np.ones(5), SIZES, True, "seeds, sizes"),
        (np.ones((3, 5)), SIZES - 256, True, "sizes > 0"),
        (np.zeros((3, 5)), SIZES, True, "positive and finite"),
        (np.full((3, 5), np.nan), SIZES, True, "positive and finite"),
    ],
)
def test_bad_input_is_one_line(errors, sizes, floor, message):
    with pytest.raises(ValueError, match=message) as found:
        power_law.fit(errors, sizes, floor)
    assert "\n" not in str(found.value)
