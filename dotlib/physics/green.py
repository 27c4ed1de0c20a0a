"""Closed forms of diffuse light in the frequency domain: infinite medium, half-space, homogeneous sphere.

Fluence phi (mm^-2) of a unit isotropic point source, time convention exp(+i omega t), of the equation
-div(D grad phi) + (mua + i omega n / c) phi = q with D = 1 / (3 (mua + musp)). On a surface phi + 2 A D dphi/dnu = 0.
Lengths in mm, mua and musp in mm^-1, frequency in Hz.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np

C = 2.998e11  # mm/s
POWERS = range(0, 15, 2)  # of 1 - cos(angle), by which the sphere's surface series is multiplied
MAX_TERMS = 20_000
SHORT = 512  # terms: enough for most points
SKIN = 1e-7  # of the radius: points this near the surface, such as those rounded to float32, count as on it
ROUNDING = 4 * np.finfo(float).eps  # of each term of a series


def boundary_parameter(n):
    """A = (1 + R_eff) / (1 - R_eff) of tissue of index n in air: the ratio of fluence to twice the exitance.

    R_eff = (R_phi + R_j) / (2 - R_phi + R_j), the moments of Fresnel's reflection (Haskell et al. 1994; integrated
    here, no polynomial fit), hence A = (1 + R_j) / (1 - R_phi). Broadcasts. Raises ValueError unless n >= 1.
    """
    n = _valid("n", n, 1.0, inclusive=True)[..., None]
    x, weight = _gauss(200)
    outside, weight = (x + 1) / 2, weight / 2  # cosine in air: the integrand in it is smooth up to the critical angle
    inside, critical = np.sqrt(1 - (1 - outside**2) / n**2), np.sqrt(1 - 1 / n**2)
    s = (n * inside - outside) / (n * inside + outside)
    p = (n * outside - inside) / (n * outside + inside)
    measure = weight * outside / n**2 * (s**2 + p**2) / 2
    r_phi = critical[..., 0] ** 2 + (2 * measure).sum(-1)
    r_j = critical[..., 0] ** 3 + (3 * inside * measure).sum(-1)
    return (1 + r_j) / (1 - r_phi)


def wave_number(mua, musp, frequency, n=1.33):
    """Complex wave number k = sqrt((mua + i omega n / c) / D) of the photon density wave, mm^-1, real part > 0.

    Broadcasts. Raises ValueError for mua or musp <= 0, frequency < 0, n < 1 or a value that is not finite.
    """
    return np.sqrt(_coefficients(mua, musp, frequency, n)[1])


def infinite(r, mua, musp, frequency, n=1.33):
    """Fluence at distance r > 0 in an infinite medium, exp(-k r) / (4 pi D r) (Haskell et al. 1994). Broadcasts."""
    r = _valid("r", r)
    d, k2 = _coefficients(mua, musp, frequency, n)
    return np.exp(-np.sqrt(k2) * r) / (4 * np.pi * d * r)


def semi_infinite(separation, mua, musp, frequency, n=1.33, depth=None):
    """Fluence on the surface of a half-space, by a negative image above the extrapolated boundary at 2 A D.

    An approximation of the Robin condition; depth of the source 1/musp unless given (Haskell et al. 1994; Kienle and
    Patterson 1997). Broadcasts; separation >= 0 along the surface.
    """
    separation = _valid("separation", separation, inclusive=True)
    d, _ = _coefficients(mua, musp, frequency, n)
    depth = 1 / np.asarray(musp, dtype=float) if depth is None else _valid("depth", depth)
    image = depth + 4 * boundary_parameter(n) * d
    near, far = np.hypot(separation, depth), np.hypot(separation, image)
    return infinite(near, mua, musp, frequency, n) - infinite(far, mua, musp, frequency, n)


def sphere(source, points, radius, mua, musp, frequency, n=1.33, tol=1e-10):
    """Fluence `(N,)` in a homogeneous sphere round the origin with the Robin boundary, source `(3,)` strictly inside.

    Points `(N, 3)` inside, or on the surface to 1e-7 of the radius; one medium. Series of modified spherical Bessel
    functions and Legendre polynomials; the bound of its error, truncation and rounding, is at most tol |phi|, else
    ArithmeticError: inside (not on the surface) that happens far from the source in strongly absorbing tissue.
    ValueError for bad input.
    """
    d, k2 = _coefficients(mua, musp, frequency, n)
    if np.ndim(k2) or np.ndim(radius) or np.ndim(tol):
        raise ValueError("green: the sphere has one medium: accepted: numbers, not arrays")
    a, radius, tol = boundary_parameter(n).item(), _valid("radius", radius).item(), _valid("tol", tol).item()
    medium = (radius, d.item(), k2.item(), 2 * a * d.item())
    source, points = np.asarray(source, dtype=float), np.asarray(points, dtype=float)
    r0, r = _radii(source, points, radius)
    # Half the squared chord on the unit sphere: 1 - cos(angle) without cancellation.
    u = ((points / np.where(r, r, 1)[:, None] - source / (r0 or 1)) ** 2).sum(1) / 2
    distance = np.linalg.norm(points - source, axis=1)
    surface = abs(r - radius) <= SKIN * radius
    phi, error = np.empty(len(r), dtype=complex), np.empty(len(r))
    for rows in _blocks(surface):
        phi[rows], error[rows] = _on_surface(u[rows], r[rows], r0, *medium, tol)
    for rows in _blocks(~surface):
        phi[rows], error[rows] = _inside(u[rows], r[rows], distance[rows], r0, *medium)
    bad = np.flatnonzero(~(error <= tol * abs(phi)))
    if bad.size:
        raise ArithmeticError(f"green: point {bad[0]}: the series does not reach the relative error {tol:g}")
    return phi


@lru_cache
def _gauss(points):
    return np.polynomial.legendre.leggauss(points)


def _valid(name, value, least=0.0, inclusive=False):
    """The value as an array of float64, checked against its least."""
    value = np.asarray(value, dtype=float)
    good = np.isfinite(value) & ((value >= least) if inclusive else (value > least))
    if not good.all():
        wrong = value[~good].flat[0]
        raise ValueError(f"green: {name} = {wrong:g}; accepted: finite and {'>=' if inclusive else '>'} {least:g}")
    return value


def _coefficients(mua, musp, frequency, n):
    """Diffusion coefficient D, mm, and squared wave number k^2, mm^-2."""
    mua, musp, n = _valid("mua", mua), _valid("musp", musp), _valid("n", n, 1.0, inclusive=True)
    omega = 2 * np.pi * _valid("frequency", frequency, inclusive=True)
    d = 1 / (3 * (mua + musp))
    return d, (mua + 1j * omega * n / C) / d


def _radii(source, points, radius):
    """Distances of source and points from the centre; the source's to 1e-12 mm, so that sources share a series."""
    if source.shape != (3,) or points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"green: source {source.shape}, points {points.shape}; accepted: (3,), (N, 3)")
    r0, r = round(float(np.linalg.norm(source)), 12), np.linalg.norm(points, axis=1)
    if not r0 < radius:
        raise ValueError(f"green: source {r0:g} mm from the centre; accepted: less than the radius, {radius:g} mm")
    bad = np.flatnonzero(~(r <= radius * (1 + SKIN)))
    if bad.size:
        raise ValueError(f"green: point {bad[0]}, {r[bad[0]]:g} mm from the centre; accepted: up to {radius:g} mm")
    same = np.flatnonzero((points == source).all(1))
    if same.size:
        raise ValueError(f"green: point {same[0]} is the source, where the fluence is infinite")
    return r0, r


def _blocks(chosen, size=1000):
    """The chosen rows, at most `size` at a time: bounds the memory."""
    rows = np.flatnonzero(chosen)
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _terms(ratio, z):
    """Number of terms after which ratio^l is below 1e-20, and all orders that |z| touches."""
    if ratio**MAX_TERMS > 1e-20:
        raise ArithmeticError(f"green: source too near the surface: the series needs more than {MAX_TERMS} terms")
    return 200 + int(2 * abs(z)) + (int(np.log(1e-20) / np.log(ratio)) if ratio else 0)


def _bessel(z2, terms):
    """V_l = 2 l + 1 + z i_{l+1}(z) / i_l(z) for l < terms, from z^2 (complex, an array or Precise).

    The continued fraction V_l = 2 l + 1 + z^2 / V_{l+1}, started 100 orders above, forgets its start. With
    it z i_l'(z) / i_l(z) = V_l - l - 1, and nothing can overflow.
    """
    v = [z2 * 0 + (2 * terms + 201)]
    for order in reversed(range(terms + 100)):
        v.append(z2 / v[-1] + (2 * order + 1))
    return v[: -terms - 1 : -1]


def _lowest(r, radius, k):
    """i_0(k r) / i_0(k radius)."""
    z = k * np.maximum(r, 1e-9 * radius)
    za = k * radius
    return np.exp(z - za) * (np.expm1(-2 * z) / z) / (np.expm1(-2 * za) / za)


def _inside(u, r, distance, r0, radius, d, k2, length):
    """Fluence and bound of its error at points below the surface: infinite medium plus the surface's reflection."""
    k = np.sqrt(k2)
    terms = _terms(r0 * r.max() / radius**2, k * radius)
    outer, first, second = (_bessel(k2 * x**2, terms + 1) for x in (radius, r0, r))
    phi = np.exp(-k * distance) / (4 * np.pi * d * distance)
    error, q = ROUNDING * abs(phi), _lowest(r0, radius, k) * _lowest(r, radius, k)
    p, step, w = np.ones(len(r)), np.zeros(len(r)), 1 + k * radius  # w = z k_{l+1} / k_l at the surface
    for order in range(terms):
        # On the surface: the whole field of this order, and the part of it that an infinite medium has.
        whole = length / (d * radius * (radius + length * (outer[order] - order - 1)))
        direct = 1 / (d * radius * (w + outer[order] - 2 * order - 1))
        factor = (2 * order + 1) / (4 * np.pi) * q
        phi = phi + (whole - direct) * factor * p
        error = error + ROUNDING * (abs(whole) + abs(direct)) * abs(factor * p)
        step = (order * step - (2 * order + 1) * u * p) / (order + 1)
        p, w = p + step, k2 * radius**2 / w + 2 * order + 3
        q = q * (r0 * r / radius**2) * outer[order + 1] ** 2 / (first[order + 1] * second[order + 1])
    ratio = r0 * r / radius**2
    return phi, error + abs((whole - direct) * factor) * ratio / (1 - ratio)


def _on_surface(u, r, r0, radius, d, k2, length, tol):
    """Fluence and bound of its error at points on the surface; each point takes the power that serves it best."""
    k = np.sqrt(k2)
    scale = length / (4 * np.pi * d * radius**2) * _lowest(r0, radius, k)
    terms = _terms(r0 / radius, k * radius)
    phi, error = np.zeros(len(u), dtype=complex), np.full(len(u), np.inf)
    for number in dict.fromkeys((min(SHORT, terms), terms)):
        todo = np.flatnonzero(~(error <= tol * abs(phi)))
        if todo.size:
            phi[todo], error[todo] = _best(u[todo], _surface_series(r0, radius, k2, length, number), r0 / radius)
    # A point beside the surface: Robin's gradient.
    return phi * scale * (1 - (r - radius) / length), error * abs(scale)


def _best(u, series, ratio):
    """Sum of the reduced series of every power at once; of the power with the least bound, and this bound."""
    terms = series.shape[1]
    p = np.empty((terms + 1, len(u)))
    p[0], step = 1, 0
    for order in range(terms):  # Legendre polynomials by their differences, exact near u = 0
        step = (order * step - (2 * order + 1) * u * p[order]) / (order + 1)
        p[order + 1] = p[order] + step
    power = np.maximum(u, 1e-12) ** np.array(POWERS)[:, None]
    phi = (series.real @ p[:-1] + 1j * (series.imag @ p[:-1])) / power
    rest = abs(series[:, -1:]) * ratio / (1 - ratio)
    error = (ROUNDING * abs(series) @ abs(p[:-1]) + rest) / power
    best = error.argmin(0), np.arange(len(u))
    return phi[best], error[best]


class _Precise:
    """Complex number of two decimals."""

    def __init__(self, re, im=0):
        self.re, self.im = Decimal(re), Decimal(im)

    def __add__(self, real):
        return _Precise(self.re + real, self.im)

    def __mul__(self, real):
        return _Precise(self.re * real, self.im * real)

    def __truediv__(self, other):
        a, b, norm = other.re, other.im, other.re**2 + other.im**2
        return _Precise((self.re * a + self.im * b) / norm, (self.im * a - self.re * b) / norm)


@lru_cache(maxsize=64)
def _surface_series(r0, radius, k2, length, terms):
    """Coefficients (powers, terms) of the Legendre series of (1 - cos)^power phi on the surface.

    Order l of phi is f_l = i_l(k r0) / (i_l(k a) + 2 A D k i_l'(k a)), by the Wronskian. Far from the source the series
    cancels down to exp(-k separation), which fp64 cannot resolve; multiplied by a power of 1 - cos, which removes the
    peak above the source (Yennie et al. 1954), it neither cancels nor needs many terms. The coefficients
    of the product are themselves differences, hence decimals.
    """
    with localcontext(prec=40):
        top = terms + POWERS[-1] + 1
        exact, ratio = _Precise(k2.real, k2.imag) * Decimal(radius) ** 2, Decimal(r0) / Decimal(radius)
        outer, inner = _bessel(exact, top + 1), _bessel(exact * ratio**2, top + 1)
        q, f = _Precise(1), []
        for order in range(top):
            f.append(q / ((outer[order] + (-order - 1)) * (Decimal(length) / Decimal(radius)) + 1))
            q = q / (inner[order + 1] / outer[order + 1]) * ratio
        f, series = np.array([[x.re for x in f], [x.im for x in f]]), []
        for power in range(POWERS[-1] + 1):
            order = np.arange(f.shape[1] - 1)
            series += [((2 * order + 1) * f[:, :-1])[:, :terms].astype(float)] if power in POWERS else []
            below = np.insert(f[:, :-2], 0, 0, axis=1)
            f = f[:, :-1] - (order * below + (order + 1) * f[:, 1:]) / (2 * order + 1)
    re, im = np.stack(series, 1)
    return re + 1j * im
