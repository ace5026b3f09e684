"""Shard files as the contest writes them: a header of 256 little-endian int32, then uint16 little-endian tokens."""

from pathlib import Path

import numpy as np

from ..files import replacing
from ..problem import Problem

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024


def write_shard(path, tokens):
    """Writes token ids [N] as one shard, atomically. Ids must fit uint16, the file format's own limit."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise ValueError(f"a shard takes a vector of integers, not {tokens.dtype} of shape {tokens.shape}")
    if tokens.dtype != np.uint16 and len(tokens) and (tokens.min() < 0 or tokens.max() > 65535):
        raise Problem(f"{path}: token ids {tokens.min()} to {tokens.max()} do not fit uint16; use at most 65,536 pieces")
    header = np.zeros(SHARD_HEADER_BYTES // 4, "<i4")
    header[:3] = SHARD_MAGIC, SHARD_VERSION, len(tokens)
    with replacing(path) as part, open(part, "wb") as out:
        out.write(header)
        out.write(np.ascontiguousarray(tokens, "<u2"))


def open_shard(path):
    """The shard's tokens [N], a read-only memory map of uint16. Raises Problem for a file that is not a whole shard."""
    try:
        size, header = Path(path).stat().st_size, np.fromfile(path, "<i4", 3).tolist()
    except OSError as error:
        raise Problem(f"cannot read shard {path}: {error.strerror}; build or download the data again") from error
    if header[:2] != [SHARD_MAGIC, SHARD_VERSION] or size != SHARD_HEADER_BYTES + 2 * header[2]:
        raise Problem(shard_fault(path, size, header))
    if size == SHARD_HEADER_BYTES:  # a file cannot be mapped from its very end
        return np.zeros(0, "<u2")
    return np.memmap(path, "<u2", mode="r", offset=SHARD_HEADER_BYTES)


def shard_fault(path, size, header):
    """What is wrong with a file of `size` bytes that begins with these int32."""
    if size < SHARD_HEADER_BYTES:
        return f"{path} has {size} bytes, less than a header of {SHARD_HEADER_BYTES}; fetch or build it again"
    magic, version, count = header
    if magic != SHARD_MAGIC:
        return f"{path} is not a token shard: its magic number is {magic}, not {SHARD_MAGIC}"
    if version != SHARD_VERSION:
        return f"{path} is a shard of version {version}; only version {SHARD_VERSION} is known"
    what = "truncated" if size < SHARD_HEADER_BYTES + 2 * count else "too long"
    return (
        f"{path} is {what}: its header promises {count} tokens, {SHARD_HEADER_BYTES + 2 * count} bytes, "
        f"but it has {size}; fetch or build it again"
    )


def joined_shards(paths):
    """The tokens of shards, one after the other: uint16 [N]."""
    return np.concatenate([open_shard(path) for path in paths])
