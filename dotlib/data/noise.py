"""Detector noise of a frequency-domain recording: relative noise that grows as the amplitude falls, and lost pairs."""

from __future__ import annotations

import numpy as np

from ..config import Noise

STREAM = 5  # of random numbers
QUANTILE = 0.995  # of a probe's amplitudes: the reference amplitude


def measure(
    phi_clean: np.ndarray, phase_clean: np.ndarray, pairs: np.ndarray, noise: Noise, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One noisy recording of a whole probe: log-amplitude and phase `(M,)`, and their sd `(M, 2)`, all float64.

    Takes the clean fluence `(M,)` complex, its unwrapped phase `(M,)` in rad and the pairs `(M, 2)`. To the fluence is
    added circular complex noise whose variance per component is relative^2 (A Aref + floor Aref^2), A = |phi| and Aref
    its 99.5 % quantile; to the phase its jitter. The sd are of first order in the noise and hold neither the coupling
    nor lost pairs, whose values are NaN. The phase stays unwrapped. ValueError for a fluence of 0, NaN or infinity.
    """
    amplitude = np.abs(_checked(phi_clean, phase_clean, pairs))
    count = len(amplitude)
    # each option has its own draws, made whether or not it is on, so that none shifts another's
    shot, jitter, lottery = rng.standard_normal((2, count)), rng.standard_normal(count), rng.random(count)
    reference = np.quantile(amplitude, QUANTILE)
    sigma = sd(amplitude, noise)
    # |1 + e| and its angle: nothing is added, bit for bit, where there is no noise
    error = sigma[:, 0] * (shot[0] + 1j * shot[1])
    gain, offset = _coupling(np.asarray(pairs), noise, rng)
    log_amplitude = np.log(amplitude) + np.log(np.abs(1 + error)) + gain
    # phi = |phi| exp(-i phase): an angle added to phi is taken from the phase
    phase = phase_clean - np.angle(1 + error) + np.deg2rad(noise.jitter) * jitter + offset
    lost = (lottery < noise.dropout) | (amplitude < noise.dark * reference)
    if noise.saturation is not None:
        lost |= amplitude > noise.saturation * reference
    log_amplitude[lost] = phase[lost] = np.nan
    return log_amplitude, phase, sigma


def _checked(phi: np.ndarray, phase: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    phi = np.asarray(phi, dtype=np.complex128)
    if not (phi.shape == np.shape(phase) == np.shape(pairs)[:-1] and np.shape(pairs) == (phi.size, 2) and phi.size):
        shapes = f"{phi.shape}, {np.shape(phase)}, {np.shape(pairs)}"
        raise ValueError(f"noise: fluence, phase and pairs have shapes {shapes}; accepted: (M,), (M,), (M, 2)")
    wrong = np.flatnonzero(~(np.isfinite(phi) & np.isfinite(phase) & (phi != 0)))
    if wrong.size:
        found = f"fluence {phi[wrong[0]]}, phase {phase[wrong[0]]}"
        raise ValueError(f"noise: pair {wrong[0]} has {found}; accepted: finite numbers, fluence not 0")
    return phi


def sd(amplitude: np.ndarray, noise: Noise) -> np.ndarray:
    """Standard deviations of ln A and of the phase (rad), `(M, 2)`, to first order in the noise."""
    brightness = amplitude / np.quantile(amplitude, QUANTILE)
    relative = noise.relative * np.sqrt(brightness + noise.floor) / brightness
    return np.stack([relative, np.hypot(relative, np.deg2rad(noise.jitter))], -1)


def _coupling(pairs: np.ndarray, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """What the coupling of its two optodes adds to each pair's log-amplitude and phase (rad), `(2, M)`."""
    scale = np.array([[noise.coupling], [np.deg2rad(noise.coupling_phase)]])
    return sum(scale * rng.standard_normal((2, column.max() + 1))[:, column] for column in pairs.T)
