"""Detector noise: its moments against the law, the laws of the complex plane, hand-computable cases and recordings."""

import numpy as np
import pytest
from scipy import stats

from dotlib.config import Noise
from dotlib.data.noise import STREAM, measure

QUIET = Noise(relative=0, jitter=0)
OPTIONS = {"jitter": 2.0, "coupling": 0.2, "coupling_phase": 3.0, "dropout": 0.3, "dark": 0.02, "saturation": 0.3}
DEGREE = np.pi / 180
N = 40_000


def rng(seed=0):
    return np.random.default_rng([STREAM, seed, 0])


def apart(amplitude, noise, seed=0, phase=0.7):
    """A recording of pairs that share no optode: errors of ln A and of the phase, and their sd."""
    pairs = np.repeat(np.arange(len(amplitude))[:, None], 2, axis=1)
    clean = np.full(len(amplitude), phase)
    log_amplitude, found, sigma = measure(amplitude * np.exp(-1j * clean), clean, pairs, noise, rng(seed))
    return log_amplitude - np.log(amplitude), found - clean, sigma


def groups(amplitudes, noise, n=N):
    """The same by amplitude, `n` pairs each; the first is 1 and so the reference amplitude."""
    assert amplitudes[0] == 1 and max(amplitudes) == 1
    found = apart(np.repeat(np.asarray(amplitudes, dtype=float), n), noise)
    return [v.reshape(len(amplitudes), n, *v.shape[1:]) for v in found]


def lattice(sources, detectors):
    return np.stack(np.meshgrid(np.arange(sources), np.arange(detectors), indexing="ij"), -1).reshape(-1, 2)


def law(a, reference=1.0, relative=0.005, floor=1e-4):
    """Relative sd of one component of noise whose variance is relative^2 (A Aref + floor Aref^2)."""
    return np.sqrt(relative**2 * (a * reference + floor * reference**2)) / a


def test_sd_follows_the_law():
    amplitudes = [1, 0.5, 0.1, 0.03, 0.01, 0.005]
    log_amplitude, phase, sigma = groups(amplitudes, Noise())
    for a, x, y, s in zip(amplitudes, log_amplitude, phase, sigma, strict=True):
        expected = law(a), np.hypot(law(a), 0.41 * DEGREE)
        np.testing.assert_allclose(s, np.broadcast_to(expected, s.shape), rtol=1e-9)
        assert (x.std(), y.std()) == pytest.approx(expected, rel=4 / np.sqrt(2 * N) + law(a) ** 2)


def test_brightest_pair_has_half_a_percent_and_half_a_degree():
    log_amplitude, phase, sigma = groups([1, 0.1], Noise())
    assert sigma[0, 0] == pytest.approx((0.005, 0.5 * DEGREE), rel=1e-3)
    assert (log_amplitude[0].std(), phase[0].std()) == pytest.approx((0.005, 0.5 * DEGREE), rel=4 / np.sqrt(2 * N))


def test_reference_is_the_quantile_of_the_amplitudes():
    a = np.exp(rng(3).uniform(-8, 0, 1000))
    sigma = apart(a, Noise())[2]
    low, high = np.sort(a)[994:996]
    np.testing.assert_allclose(sigma[:, 0], law(a, low + 0.005 * (high - low)), rtol=1e-9)


def test_relative_noise_rises_as_the_amplitude_falls():
    noise = Noise(relative=1e-6, jitter=0)
    amplitudes = [1, *np.geomspace(1e-1, 1e-2, 4), *np.geomspace(1e-6, 1e-7, 4)]
    spread = groups(amplitudes, noise)[0].std(1)
    assert (np.diff(spread) > 0).all()
    shot, floor = (np.polyfit(np.log(amplitudes[k]), np.log(spread[k]), 1)[0] for k in (slice(1, 5), slice(5, 9)))
    assert shot == pytest.approx(-0.5, abs=0.02)  # counting statistics
    assert floor == pytest.approx(-1, abs=0.02)  # a dark level that does not depend on the light


def test_noise_is_circular_in_the_complex_plane():
    log_amplitude, phase, _ = groups([1, 0.01, 1e-4], Noise(jitter=0))
    for a, x, y in zip((1, 0.01, 1e-4), log_amplitude, phase, strict=True):
        error = np.exp(x - 1j * y) - 1  # any size: here up to 0.7 of the signal
        assert stats.kstest(np.angle(error), "uniform", (-np.pi, 2 * np.pi)).pvalue > 0.003
        assert stats.kstest(np.abs(error) ** 2 / (2 * law(a) ** 2), "expon").pvalue > 0.003
        assert abs(stats.spearmanr(np.abs(error), np.angle(error)).statistic) < 4 / np.sqrt(N)


def test_jitter_is_normal_and_leaves_the_amplitude():
    log_amplitude, phase, _ = groups([1, 1e-3], Noise(relative=0, jitter=0.41))
    np.testing.assert_array_equal(log_amplitude, groups([1, 1e-3], QUIET)[0])
    for y in phase:
        assert stats.kstest(y / (0.41 * DEGREE), "norm").pvalue > 0.003


def test_pairs_are_independent_even_where_they_share_an_optode():
    pairs = lattice(4, 2)
    clean = np.geomspace(1, 0.1, len(pairs))
    generator = rng()
    draws = np.array([measure(clean, 0 * clean, pairs, Noise(), generator)[:2] for _ in range(20_000)])
    correlation = np.corrcoef(draws.reshape(len(draws), -1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 4.5 / np.sqrt(len(draws))


def test_mean_is_the_clean_value():
    n, a = 200_000, 0.01
    log_amplitude, phase, sigma = groups([1, a], Noise(), n)
    bound = 4 * sigma[1, 0] / np.sqrt(n)
    assert bound[0] < law(a) ** 2 / 2 / 2  # the bias that noise of the amplitude alone would have
    assert (np.abs([log_amplitude[1].mean(), phase[1].mean()]) < bound).all()


def test_no_noise_returns_the_clean_values():
    pairs, generator = lattice(10, 8), rng(1)
    clean = np.exp(generator.uniform(-9, 0, 80) - 1j * generator.uniform(0, 7, 80))
    phase = generator.uniform(0, 7, 80)
    found, angle, sigma = measure(clean, phase, pairs, QUIET, generator)
    np.testing.assert_array_equal(found, np.log(np.abs(clean)))
    np.testing.assert_array_equal(angle, phase)
    assert (sigma == 0).all()


def test_phase_stays_unwrapped():
    for phase in (0.0, 3.14159, 9.0):
        assert np.abs(apart(np.ones(1000), Noise(), phase=phase)[1]).max() < 5 * DEGREE


def test_gain_of_the_recording_changes_no_error():
    a = np.exp(rng(3).uniform(-6, 0, 1000))
    for x, y in zip(apart(a, Noise()), apart(1e-7 * a, Noise()), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


@pytest.mark.parametrize(("option", "value"), [("coupling", 0.2), ("coupling_phase", 3.0)])
def test_coupling_is_one_term_of_each_optode(option, value):
    sources, detectors = 12, 9
    pairs = lattice(sources, detectors)
    clean = np.geomspace(1, 0.1, len(pairs))
    order = rng(2).permutation(len(pairs))  # optodes are known by number, not by place
    plain, coupled = (
        np.array(measure(clean[order], clean[order], pairs[order], noise, rng())[:2])
        for noise in (Noise(), Noise(**{option: value}))
    )
    table = np.empty((2, len(pairs)))
    table[:, order] = coupled - plain
    table = table.reshape(2, sources, detectors)
    touched, other = (table[0], table[1]) if option == "coupling" else (table[1], table[0])
    assert (other == 0).all()
    interaction = touched - touched.mean(0) - touched.mean(1, keepdims=True) + touched.mean()
    assert np.abs(interaction).max() < 1e-12
    assert touched.std(0).min() > 1e-3 and touched.std(1).min() > 1e-3  # sources and detectors both


def test_coupling_has_its_sd_on_either_side():
    for column in (0, 1):
        pairs = np.zeros((N, 2), dtype=int)
        pairs[:, column] = np.arange(N)
        noise = Noise(relative=0, jitter=0, coupling=0.2, coupling_phase=3.0)
        log_amplitude, phase, _ = measure(np.ones(N), np.zeros(N), pairs, noise, rng())
        for found, sd in ((log_amplitude, 0.2), (phase, 3 * DEGREE)):
            assert stats.kstest((found - found.mean()) / sd, "norm").pvalue > 0.003
    log_amplitude, phase, sigma = apart(np.ones(N), noise)
    assert (log_amplitude.std(), phase.std()) == pytest.approx(
        (np.sqrt(2) * 0.2, np.sqrt(2) * 3 * DEGREE), rel=4 / np.sqrt(2 * N)
    )
    assert abs(stats.spearmanr(log_amplitude, phase).statistic) < 4 / np.sqrt(N)
    assert (sigma == 0).all()  # shared by pairs, it is no noise of a pair


@pytest.mark.parametrize("base", [{}, OPTIONS], ids=["others off", "others on"])
@pytest.mark.parametrize("option", OPTIONS)
def test_option_shifts_no_other_draw(option, base):
    a = np.geomspace(1, 0.001, 500)
    others = {k: v for k, v in base.items() if k != option}
    (x, y, _), (x1, y1, _) = apart(a, Noise(**others)), apart(a, Noise(**others, **{option: OPTIONS[option]}))
    kept, kept1 = np.isfinite(x), np.isfinite(x1)
    assert kept1.sum() > 0 and (kept1 <= kept).all() and (np.isfinite(y1) == kept1).all()
    assert (kept1 == kept).all() != (option in ("dropout", "dark", "saturation"))
    if option != "coupling":
        np.testing.assert_array_equal(x1[kept1], x[kept1])
    if option not in ("coupling_phase", "jitter"):
        np.testing.assert_array_equal(y1[kept1], y[kept1])


def test_dropout_has_its_rate_whatever_the_amplitude():
    log_amplitude, phase, sigma = groups([1, 0.1, 0.001], Noise(dropout=0.1))
    lost = np.isnan(log_amplitude)
    assert (lost == np.isnan(phase)).all() and np.isfinite(sigma).all()
    for count in lost.sum(1):
        assert stats.binomtest(int(count), N, 0.1).pvalue > 0.003


def test_dark_and_saturated_pairs_are_lost():
    a = np.array([1.0] * 10 + [0.5, 0.3, 0.1, 0.02, 0.01, 0.005]) * 1e-5
    for noise, lost in (
        (Noise(dark=0.015), [14, 15]),
        (Noise(saturation=0.4), list(range(11))),
        (Noise(dark=0.2, saturation=0.4), [*range(11), 12, 13, 14, 15]),
        (Noise(), []),
    ):
        for values in apart(a, noise)[:2]:
            assert np.flatnonzero(np.isnan(values)).tolist() == lost
        assert np.isfinite(apart(a, noise)[2]).all()


def test_same_seed_gives_the_same_recording():
    a = np.geomspace(1, 0.001, 500)
    noise = Noise(coupling=0.1, coupling_phase=1, dropout=0.1)
    np.random.seed(1)  # noqa: NPY002 the global generator is not used
    first = apart(a, noise, seed=4)
    np.random.seed(2)  # noqa: NPY002
    for x, y in zip(first, apart(a, noise, seed=4), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(first[:2], apart(a, noise, seed=5)[:2], strict=True):
        assert not np.isin(x[np.isfinite(x)], y).any()


@pytest.mark.parametrize(
    ("percent", "radian", "share"),
    [(1.4, 0.015, 0.1), (10.7, 0.116, 0.1), (0.7, 0.45 * DEGREE, 0.3)],  # two pairs, and the best ones
)
def test_phase_noise_is_that_of_recordings_with_the_same_amplitude_noise(percent, radian, share):
    dimness = (np.sqrt(1 + 4e-4 * (percent / 0.5) ** 2) - 1) / 2e-4  # Aref / A: solves the law for A
    log_amplitude, phase, _ = groups([1, 1 / dimness], Noise())
    assert log_amplitude[1].std() == pytest.approx(percent / 100, rel=0.03)
    assert phase[1].std() == pytest.approx(radian, rel=share)


@pytest.mark.parametrize(
    ("phi", "phase", "pairs", "message"),
    [
        ([1, 0, 1], [0, 0, 0], lattice(3, 1), r"pair 1 has fluence 0j, phase 0; accepted: finite numbers, .* not 0"),
        ([1, 1, np.nan], [0, 0, 0], lattice(3, 1), r"pair 2 has fluence \(?nan.*"),
        ([1, 1, 1], [np.inf, 0, 0], lattice(3, 1), r"pair 0 has .* phase inf; .*"),
        ([1, 1, 1], [0, 0], lattice(3, 1), r".* shapes \(3,\), \(2,\), \(3, 2\); accepted: \(M,\), \(M,\), \(M, 2\)"),
        ([1, 1, 1], [0, 0, 0], lattice(2, 1), r".* shapes \(3,\), \(3,\), \(2, 2\); .*"),
        ([], [], np.zeros((0, 2), int), r".* shapes \(0,\), \(0,\), \(0, 2\); .*"),
    ],
)
def test_unusable_reading_is_one_line(phi, phase, pairs, message):
    with pytest.raises(ValueError, match=rf"^noise: {message}$"):
        measure(phi, phase, pairs, Noise(), rng())
