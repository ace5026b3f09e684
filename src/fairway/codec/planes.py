"""Arrays as byte planes: high bytes of float16 compress, low ones do not, and mixed they spoil each other."""

import math

import numpy as np


def byte_planes(array):
    """uint8 [bytes an element, N], lowest byte first."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize).T


def from_planes(planes, dtype, shape):
    """The array of which `byte_planes` made `planes`."""
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(shape)


def plane_sizes(layouts):
    """[(bytes an element, elements)] of each array that `layouts` states."""
    return [(np.dtype(dtype).itemsize, math.prod(shape)) for dtype, shape in layouts]


def order0_bits(values):
    """Empirical entropy of all `values` together."""
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * np.log2(max(1, counts.sum()) / counts)).sum())
