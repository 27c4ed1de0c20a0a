"""Closed forms against Bessel functions of mpmath, quadrature, finite differences and their own limits."""

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad

from dotlib.physics import green

# radius, mua, musp, frequency: the middle of the range, then its corners
CASES = [
    (28.0, 0.005, 1.0, 140e6),
    (20.0, 0.03, 3.0, 500e6),
    (32.0, 0.03, 3.0, 0.0),
    (20.0, 0.002, 0.5, 500e6),
    (32.0, 0.002, 3.0, 500e6),
    (25.0, 0.03, 0.5, 140e6),
]
HALF_SPACE = {"mua": 0.006, "musp": 1.1, "frequency": 140e6}


def medium(mua, musp, frequency, n=1.33):
    """D and k from their definitions."""
    d = 1 / (3 * (mua + musp))
    return d, np.sqrt((mua + 2j * np.pi * frequency * n / 2.998e11) / d)


def on_sphere(radius, separations, depth):
    """Points of the surface at these straight-line separations from the point above a source at this depth on +z."""
    angle = 2 * np.arcsin(np.asarray(separations) / (2 * radius))
    points = radius * np.stack([np.sin(angle) * 0.6, np.sin(angle) * 0.8, np.cos(angle)], 1)
    return np.array([0, 0, radius - depth]), points


def in_sphere(rng, radius, number):
    v = rng.standard_normal((number, 3))
    return radius * np.cbrt(rng.random((number, 1))) * v / np.linalg.norm(v, axis=1, keepdims=True)


def reflection(theta, n):
    """Fresnel's reflection of unpolarised light inside tissue, angle of incidence theta, by the laws in angles."""
    if n * np.sin(theta) >= 1:
        return 1.0
    out = np.arcsin(n * np.sin(theta))
    return (
        np.sin(theta - out) ** 2 / np.sin(theta + out) ** 2 + np.tan(theta - out) ** 2 / np.tan(theta + out) ** 2
    ) / 2


@pytest.mark.parametrize("n", [1.05, 1.33, 1.4, 1.5])
def test_boundary_parameter_integrates_fresnel(n):
    def moment(power):
        def integrand(t):
            return (power + 1) * np.sin(t) * np.cos(t) ** power * reflection(t, n)

        critical = np.arcsin(1 / n)
        return sum(
            quad(integrand, *part, epsabs=1e-12, limit=200)[0] for part in ((1e-9, critical), (critical, np.pi / 2))
        )

    r_phi, r_j = moment(1), moment(2)
    r_eff = (r_phi + r_j) / (2 - r_phi + r_j)
    assert green.boundary_parameter(n) == pytest.approx((1 + r_eff) / (1 - r_eff), rel=1e-7)


def test_boundary_parameter_has_the_published_values():
    assert green.boundary_parameter(1.33) == pytest.approx(2.5154, abs=5e-5)
    assert green.boundary_parameter(1.0) == pytest.approx(1, abs=1e-14)
    a = green.boundary_parameter([1.33, 1.40])
    assert (a - 1) / (a + 1) == pytest.approx([0.431, 0.493], abs=6e-4)  # R_eff of Haskell et al. 1994


@pytest.mark.parametrize("case", CASES)
def test_wave_number_obeys_the_dispersion_relation(case):
    _, mua, musp, frequency = case
    _, k = medium(mua, musp, frequency)
    got = green.wave_number(mua, musp, frequency)
    assert got == pytest.approx(k, rel=1e-14)
    assert got.real > 0 and got.imag >= 0  # decays, and lags behind with distance


def test_infinite_absorbs_what_is_emitted():
    r = np.polynomial.legendre.leggauss(200)
    for mua, musp in [(0.002, 0.5), (0.005, 1.0), (0.03, 3.0)]:
        reach = 40 / green.wave_number(mua, musp, 0).real
        x, weight = reach * (r[0] + 1) / 2, reach * r[1] / 2
        absorbed = (weight * mua * 4 * np.pi * x**2 * green.infinite(x, mua, musp, 0)).sum()
        assert absorbed == pytest.approx(1, abs=1e-12)


def robin_half_space(separation, depth, mua, musp, frequency):
    """Exact surface fluence of the half-space with the Robin condition: a point image and a line of sinks above it."""
    d, k = medium(mua, musp, frequency)
    length = 2 * green.boundary_parameter(1.33) * d

    def kernel(t):
        r = np.hypot(separation, depth + t)
        return np.exp(-k * r) / (4 * np.pi * d * r)

    def sinks(part):
        return quad(lambda t: part(kernel(t)) * np.exp(-t / length), 0, 60 * length, epsabs=0, epsrel=1e-12)[0]

    return 2 * kernel(0) - 2 / length * (sinks(np.real) + 1j * sinks(np.imag))


@pytest.mark.parametrize("separation", [10.0, 20.0, 40.0])
def test_semi_infinite_approximates_robin(separation):
    exact = robin_half_space(separation, 1 / HALF_SPACE["musp"], **HALF_SPACE)
    ratio = green.semi_infinite(separation, **HALF_SPACE) / exact
    assert abs(np.log(abs(ratio))) < 0.8 / separation and abs(np.degrees(np.angle(ratio))) < 0.4


def test_semi_infinite_is_a_dipole_far_away():
    d, k = medium(**HALF_SPACE)
    depth, length, rho = 1 / HALF_SPACE["musp"], 2 * 2.51536 * d, 4000.0
    dipole = np.exp(-k * rho) / (4 * np.pi * d * rho) * (1 / rho + k) / rho * 2 * length * (depth + length)
    assert green.semi_infinite(rho, **HALF_SPACE) == pytest.approx(dipole, rel=1e-3)
    given = green.semi_infinite(rho, **HALF_SPACE, depth=depth)
    assert given == green.semi_infinite(rho, **HALF_SPACE)


def bessel_i(z, orders):
    """Modified spherical Bessel functions of the first kind, downwards from far above, and their derivatives."""
    f = [mpmath.mpf(0), mpmath.mpf(10) ** -50]
    for order in range(orders + 100, 0, -1):
        f.append(f[-2] + (2 * order + 1) / z * f[-1])
    f = [x / f[-1] * mpmath.sinh(z) / z for x in f[: -orders - 2 : -1]]
    return f, [f[order + 1] + order / z * f[order] for order in range(orders)]


def bessel_k(z, orders):
    """The same of the second kind, upwards."""
    f = [mpmath.pi / 2 * mpmath.exp(-z) / z]
    f.append(f[0] * (1 + 1 / z))
    for order in range(1, orders):
        f.append(f[-2] + (2 * order + 1) / z * f[-1])
    return f, [order / z * f[order] - f[order + 1] for order in range(orders)]


def series(depth, separations, radius, mua, musp, frequency):
    """Fluence on the surface as direct wave plus reflection, Robin's condition solved order by order, to 60 digits."""
    orders = int(np.log(1e-30) / np.log1p(float(-depth / radius))) + 20
    d = 1 / (3 * (mpmath.mpf(mua) + mpmath.mpf(musp)))
    k = mpmath.sqrt((mua + 2j * mpmath.pi * frequency * mpmath.mpf(1.33) / mpmath.mpf(2.998e11)) / d)
    length = 2 * d * mpmath.mpf(float(green.boundary_parameter(1.33)))
    i0, _ = bessel_i(k * (mpmath.mpf(radius) - depth), orders)
    (i, di), (h, dh) = bessel_i(k * radius, orders), bessel_k(k * radius, orders)
    cosines = np.array([1 - mpmath.mpf(x) ** 2 / (2 * mpmath.mpf(radius) ** 2) for x in separations])
    total, before, p = 0 * cosines, 0 * cosines, 0 * cosines + 1
    for order in range(orders):
        reflected = -(h[order] + length * k * dh[order]) / (i[order] + length * k * di[order])
        total = total + p * ((2 * order + 1) * i0[order] * (h[order] + reflected * i[order]))
        before, p = p, ((2 * order + 1) * cosines * p - order * before) / (order + 1)
    return (total * (k / (2 * mpmath.pi**2 * d))).astype(complex)


@pytest.mark.parametrize("case", CASES)
def test_sphere_agrees_with_sixty_digits(case):
    separations = [0.5, 3, 10, 15, 25, 39.9]
    source, points = on_sphere(case[0], separations, 1 / case[2])
    with mpmath.workdps(60):
        expected = series(mpmath.mpf(case[0]) - mpmath.mpf(float(source[2])), separations, *case)
    assert abs(green.sphere(source, points, *case) / expected - 1).max() < 1e-11


def test_sixty_digits_are_those_of_mpmath():
    with mpmath.workdps(60):
        z = mpmath.mpc(11, 2)
        (i, di), (k, dk) = bessel_i(z, 200), bessel_k(z, 200)
        for order in (0, 7, 150):
            nu, factor = order + mpmath.mpf(1) / 2, mpmath.sqrt(mpmath.pi / 2 / z)
            assert abs(i[order] / (factor * mpmath.besseli(nu, z)) - 1) < 1e-50
            assert abs(k[order] / (factor * mpmath.besselk(nu, z)) - 1) < 1e-50
            assert abs((i[order] * dk[order] - di[order] * k[order]) * z**2 * 2 / mpmath.pi + 1) < 1e-50


@pytest.mark.parametrize("case", CASES[:1] + CASES[3:4] + CASES[5:])
def test_sphere_meets_robin_by_differences(case):
    radius, mua, musp, frequency = case
    source, surface = on_sphere(radius, [3, 10, 17, 25], 1 / musp)
    length, h = 2 * green.boundary_parameter(1.33) * medium(mua, musp, frequency)[0], 0.04
    weights = np.array([49 / 20, -6, 15 / 2, -20 / 3, 15 / 4, -6 / 5, 1 / 6]) / h
    below = np.concatenate([surface * (1 - j * h / radius) for j in range(7)])
    phi = green.sphere(source, below, *case, tol=1e-8).reshape(7, -1)
    assert abs(1 + length * (weights @ phi) / phi[0]).max() < 1e-7


@pytest.mark.parametrize("case", CASES[:1] + CASES[3:4] + CASES[5:])
def test_sphere_solves_the_diffusion_equation(case):
    radius, mua, musp, frequency = case
    rng, h = np.random.default_rng(1), 0.25
    source = np.array([2.0, -3.0, radius - 6])
    centres = in_sphere(rng, radius - 1, 300)
    distance = np.linalg.norm(centres - source, axis=1)
    centres = centres[(distance > 8) & (distance < 25)][:40]
    steps = np.concatenate([h * j * np.eye(3) for j in (-3, -2, -1, 1, 2, 3)])
    weights = np.repeat([1 / 90, -3 / 20, 3 / 2, 3 / 2, -3 / 20, 1 / 90], 3)
    phi = green.sphere(source, centres, *case, tol=1e-8)
    around = green.sphere(source, (centres + steps[:, None]).reshape(-1, 3), *case, tol=1e-8).reshape(18, -1)
    laplacian = (weights @ around - 3 * 49 / 18 * phi) / h**2
    assert len(phi) == 40 and abs(laplacian / (medium(mua, musp, frequency)[1] ** 2 * phi) - 1).max() < 1e-5


@pytest.mark.parametrize("case", CASES[:1] + CASES[3:4] + CASES[5:])
def test_sphere_is_reciprocal(case):
    a, b = in_sphere(np.random.default_rng(2), case[0], 2 * 8).reshape(2, 8, 3)
    forth = [green.sphere(x, y[None], *case, tol=1e-7)[0] for x, y in zip(a, b, strict=True)]
    back = [green.sphere(y, x[None], *case, tol=1e-7)[0] for x, y in zip(a, b, strict=True)]
    assert forth == pytest.approx(back, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_sphere_turns_with_source_and_points(case):
    source, points = on_sphere(case[0], [1, 12, 33], 1 / case[2])
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    got = green.sphere(turn @ source, points @ turn.T, *case)
    assert got == pytest.approx(green.sphere(source, points, *case), rel=1e-9)


@pytest.mark.parametrize(("radius", "mua", "musp"), [(20, 0.02, 0.6), (25, 0.005, 1.0), (32, 0.002, 0.5)])
def test_sphere_conserves_light(radius, mua, musp):
    source = np.array([0, 0, radius - 1.5])
    x, weight = np.polynomial.legendre.leggauss(24)
    x, weight = (x + 1) / 2, weight / 2

    def panels(edges):
        """Composite Gauss-Legendre nodes and weights."""
        width = np.diff(edges)[:, None]
        return (edges[:-1, None] + width * x).ravel(), (width * weight).ravel()

    # Outgoing: polar angle on the surface, fine above the source.
    angle, w = panels(np.pi * np.r_[0, 2.0 ** -np.arange(6, -1, -1)])
    points = radius * np.stack([np.sin(angle), 0 * angle, np.cos(angle)], 1)
    phi = green.sphere(source, points, radius, mua, musp, 0.0, tol=1e-9)
    outgoing = (w * 2 * np.pi * radius**2 * np.sin(angle) * phi.real).sum() / (2 * green.boundary_parameter(1.33))
    # Absorbed: rays from the source to the surface, where distance squared removes the singularity.
    angle, w = panels(np.pi * np.r_[0, 0.25, 0.4, 0.45, 0.5, 0.55, 0.65, 1])
    z, c = source[2], np.cos(angle)
    ray = -z * c + np.sqrt((z * c) ** 2 + radius**2 - z**2)
    s = ray[:, None] * x
    points = source + s[..., None] * np.stack([np.sin(angle), 0 * angle, c], 1)[:, None]
    phi = green.sphere(source, points.reshape(-1, 3), radius, mua, musp, 0.0, tol=1e-6).real.reshape(s.shape)
    absorbed = mua * (2 * np.pi * w * np.sin(angle) * ray * ((s**2 * phi) @ weight)).sum()
    assert 0.05 < absorbed < 0.95 and absorbed + outgoing == pytest.approx(1, abs=1e-6)


def test_sphere_of_matched_wall_is_infinite():
    """With D, n = 1 and mua such that 2 D = 1 / (k + 1 / a), the wall takes what a wave from the centre brings."""
    radius, d = 20.0, 0.5
    mua = d * (1 / (2 * d) - 1 / radius) ** 2
    musp = 1 / (3 * d) - mua
    points = np.array([[0, 0, 1.0], [0, 12.0, 0], [19.0, 0, 0], [0, 0, radius]])
    got = green.sphere(np.zeros(3), points, radius, mua, musp, 0.0, n=1.0, tol=1e-7)
    assert got == pytest.approx(green.infinite(np.linalg.norm(points, axis=1), mua, musp, 0.0), rel=1e-8)


def test_sphere_of_wide_wall_is_infinite():
    source, points = np.array([3.0, 0, 1]), in_sphere(np.random.default_rng(4), 12, 20)
    distance = np.linalg.norm(points - source, axis=1)
    got = green.sphere(source, points, 150.0, 0.01, 1.0, 140e6)
    assert got == pytest.approx(green.infinite(distance, 0.01, 1.0, 140e6), rel=1e-9)


@pytest.mark.parametrize("separation", [10.0, 20.0, 35.0])
def test_sphere_of_large_radius_is_a_half_space(separation):
    depth = 1 / HALF_SPACE["musp"]
    phi = [green.sphere(*on_sphere(a, [separation], depth), a, **HALF_SPACE)[0] for a in (95.0, 190.0, 380.0)]
    exact = robin_half_space(separation, depth, **HALF_SPACE)
    errors = np.abs(np.array(phi) / exact - 1)
    assert errors[-1] < 0.12 and errors[:-1] / errors[1:] == pytest.approx([2, 2], abs=0.2)  # first order in 1 / radius
    assert abs((phi[0] - 6 * phi[1] + 8 * phi[2]) / 3 / exact - 1) < 1e-3  # extrapolated to a flat surface


def test_sphere_takes_points_rounded_to_float32():
    source, points = on_sphere(28.0, np.linspace(10, 40, 50), 1.0)
    rounded = points.astype(np.float32).astype(float)
    exact = np.linalg.norm(rounded, axis=1)
    assert (exact > 28).any() and (exact < 28).any()
    got = green.sphere(source, rounded, *CASES[0])
    below = exact < 28
    inside = green.sphere(source, rounded[below] * (1 - 2e-7), *CASES[0])  # off the surface's series
    k = 1 / (2 * green.boundary_parameter(1.33) * medium(*CASES[0][1:])[0])
    assert got[below] * (1 + 2e-7 * 28 * k) == pytest.approx(inside, rel=1e-9)
    assert got == pytest.approx(green.sphere(source, points, *CASES[0]), rel=1e-5)


def test_sphere_has_no_seam_between_its_series():
    source, points = on_sphere(28.0, [0.5, 5, 15, 30], 1.0)
    above, below = (green.sphere(source, points * (1 - x), *CASES[0]) for x in (0.999e-7, 1.001e-7))
    assert above == pytest.approx(below, rel=1e-8)


def test_sphere_of_no_points_is_empty():
    assert green.sphere(np.zeros(3), np.zeros((0, 3)), *CASES[0]).shape == (0,)


def test_sphere_refuses_what_it_cannot_reach():
    with pytest.raises(ArithmeticError, match="green: source too near the surface"):
        green.sphere([0, 0, 31.99], [[0, 32.0, 0]], 32.0, 0.005, 1.0, 0.0)
    with pytest.raises(ArithmeticError, match="green: point 1: the series does not reach the relative error 1e-10"):
        green.sphere([0, 0, 19.5], [[0, 0, 15.0], [0, 0, -19.0]], 20.0, 0.03, 3.0, 0.0)
    phi = green.sphere([0, 0, 19.5], [[0, 0, -20.0]], 20.0, 0.03, 3.0, 0.0)  # on the surface it can
    assert phi.real[0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mua": 0.0}, r"green: mua = 0; accepted: finite and > 0"),
        ({"musp": -1.0}, r"green: musp = -1; accepted: finite and > 0"),
        ({"mua": np.nan}, r"green: mua = nan; accepted: finite and > 0"),
        ({"frequency": -1.0}, r"green: frequency = -1; accepted: finite and >= 0"),
        ({"n": 0.9}, r"green: n = 0.9; accepted: finite and >= 1"),
        ({"radius": np.inf}, r"green: radius = inf; accepted: finite and > 0"),
        ({"tol": 0.0}, r"green: tol = 0; accepted: finite and > 0"),
        ({"mua": [0.01, 0.02]}, r"green: the sphere has one medium: accepted: numbers, not arrays"),
        ({"source": [0, 0, 28.0]}, r"green: source 28 mm from the centre; accepted: less than the radius, 28 mm"),
        ({"source": [0, np.nan, 0]}, r"green: source nan mm from the centre"),
        ({"source": [0, 0]}, r"green: source \(2,\), points \(2, 3\); accepted: \(3,\), \(N, 3\)"),
        ({"points": [0, 0, 28.0]}, r"green: source \(3,\), points \(3,\)"),
        ({"points": [[0, 0, 0], [0, 0, 28.1]]}, r"green: point 1, 28.1 mm from the centre; accepted: up to 28 mm"),
        ({"points": [[0, 0, np.nan]]}, r"green: point 0, nan mm from the centre"),
        ({"points": [[0, 0, 1], [0, 0, 27.0]]}, r"green: point 1 is the source"),
    ],
)
def test_sphere_names_bad_input(change, message):
    good = {
        "source": [0, 0, 27.0],
        "points": [[0, 0, -28.0], [0, 28.0, 0]],
        "radius": 28.0,
        "mua": 0.005,
        "musp": 1.0,
        "frequency": 0,
    }
    with pytest.raises(ValueError, match="^" + message) as caught:
        green.sphere(**(good | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: green.boundary_parameter([1.33, 0.5]), r"green: n = 0.5; accepted: finite and >= 1"),
        (lambda: green.wave_number([0.01, -0.01], 1.0, 0), r"green: mua = -0.01; accepted: finite and > 0"),
        (lambda: green.infinite([1.0, 0.0], 0.01, 1.0, 0), r"green: r = 0; accepted: finite and > 0"),
        (lambda: green.semi_infinite(-1.0, 0.01, 1.0, 0), r"green: separation = -1; accepted: finite and >= 0"),
        (lambda: green.semi_infinite(1.0, 0.01, 1.0, 0, depth=0), r"green: depth = 0; accepted: finite and > 0"),
        (lambda: green.semi_infinite(1.0, 0.01, 1.0, np.nan), r"green: frequency = nan; accepted: finite and >= 0"),
    ],
)
def test_closed_forms_name_bad_input(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call()


def test_closed_forms_broadcast():
    r, mua = np.array([[10.0], [20.0]]), np.array([0.004, 0.006, 0.01])
    for form in (green.infinite, green.semi_infinite):
        got = form(r, mua, 1.0, 140e6)
        assert got.shape == (2, 3) and got[1, 2] == form(20.0, 0.01, 1.0, 140e6)
    assert green.wave_number(mua, 1.0, np.zeros((2, 1))).shape == (2, 3)
