"""A ball of tissue with small spheres in it, read by a patch of optodes round +z: to be reconstructed."""

import dataclasses
import itertools
from functools import cache

import numpy as np
import torch
from scene import FREQUENCY, tissue

from dotlib.data.phantoms import CUBE
from dotlib.data.surface import Surface
from dotlib.physics import diffusion
from dotlib.physics.homogeneous import Scene
from dotlib.physics.rytov import Readings

VALUES = (0.006, 0.9)  # mua, musp, mm^-1
SD = 0.01  # of ln A and of the phase
RADIUS, CENTRE = 26.0, (0.4, -0.3, 0.7)  # mm
ROW = tissue(RADIUS, CENTRE, mua=VALUES[0], musp=VALUES[1])


def optodes(number=8, reach=0.75):
    """Sources and detectors (number, 3), in turns along a spiral round +z out to `reach` rad from it."""
    k = np.arange(2 * number)
    polar, azimuth = reach * np.sqrt((k + 0.5) / len(k)), k * np.pi * (3 - np.sqrt(5))
    directions = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], 1)
    return np.split(
        torch.as_tensor(Surface(ROW).along(directions)).unflatten(0, (number, 2)).transpose(0, 1).numpy(), 2
    )


def voxels(grid):
    """Centres (grid, grid, grid, 3) of the voxels, mm."""
    place = (torch.arange(grid, dtype=torch.float64) + 0.5 - grid / 2) * (CUBE / grid)
    return torch.stack(torch.meshgrid(place, place, place, indexing="ij"), -1)


def properties(grid, spheres=(), values=VALUES):
    """mua and musp (2, grid, grid, grid): `spheres` of (centre, radius, factor of mua, factor of musp)."""
    out = torch.tensor(values, dtype=torch.float64).view(2, 1, 1, 1).expand(2, grid, grid, grid).clone()
    for centre, radius, *factors in spheres:
        inside = (voxels(grid) - torch.tensor(centre, dtype=torch.float64)).norm(dim=-1) <= radius
        out[:, inside] *= torch.tensor(factors, dtype=torch.float64)[:, None]
    return out


@cache
def light(grid, spheres=(), values=VALUES, number=8):
    """Sources, detectors, pairs farther apart than 8 mm, and their readings by the finite-volume model."""
    sources, detectors = (part[0] for part in optodes(number))
    pairs = np.argwhere(np.linalg.norm(sources[:, None] - detectors, axis=-1) > 8)
    there = diffusion.Medium(*properties(grid, spheres, values), Surface(ROW), CUBE / grid)
    phi = diffusion.readings([there], sources[None], detectors[None], pairs[None], FREQUENCY, precise=True)[0]
    return tuple(map(torch.as_tensor, (sources, detectors, pairs, phi)))


def readings(grid, spheres=(), values=VALUES, gain="global", noise=None, sd=SD, number=8):
    """What the probe reads: exactly, or with normal noise from the seed `noise`."""
    sources, detectors, pairs, phi = light(grid, spheres, values, number)
    log_amplitude, phase = phi.abs().log(), -phi.angle()
    sigma = torch.full((len(pairs), 2), sd, dtype=torch.float64)
    if noise is not None:
        drawn = torch.randn(2, len(pairs), generator=torch.Generator().manual_seed(noise)).double()
        log_amplitude, phase = log_amplitude + sd * drawn[0], phase + sd * drawn[1]
    return Readings(sources, detectors, pairs, log_amplitude, phase, sigma, FREQUENCY, gain=gain)


def scene(grid, *spheres, **options):
    """The ball on `grid`^3 voxels, and its readings on the same."""
    return Scene.of(Surface(ROW), readings(grid, spheres, **options), grid, CUBE)


def changed(scene, **values):
    """The same with other readings."""
    return dataclasses.replace(scene, readings=dataclasses.replace(scene.readings, **values))


def dense(prior, tissue, voxel):
    """The covariance (2 V, 2 V), entry by entry: a Gaussian of the distance and a constant, times the channels'."""
    places = np.argwhere(tissue.numpy()) * voxel
    unknowns = list(itertools.product(range(2), range(len(places))))
    out = np.empty((len(unknowns), len(unknowns)))
    square = ((places[:, None] - places) ** 2).sum(-1)
    for i, (a, p) in enumerate(unknowns):
        between = prior.sd[a] * np.array(prior.sd) * np.where(np.arange(2) == a, 1, prior.correlation)
        near = np.exp(-square[p] / (2 * prior.length**2)) + prior.constant**2
        out[i] = np.outer(between, near).ravel()
    return out
