"""`model.bin`: quantised tensors in one self-contained, checksummed file; loading is a pure function of its bytes.

    magic and version 5 | block: header | for each section, in order of first appearance: block

A block is size u32 | crc32 u32 | content, little-endian, the checksum over size and content. The header is deflated JSON:
recipe digest, and name, scheme, role, shape of every tensor; which sections there are, and how much each holds, follows
from it. A section holds one part of all tensors of one role and scheme, coded together by the recipe's codec.
"""

import json
import math
import struct
import zlib

import numpy as np
import torch

from ..problem import Problem
from ..quantize.schemes import Coded, part_layout

CONTAINER_MAGIC = b"FWay\x02"
# A hostile file of a few bytes may state any size. Above this much content neither side works.
CONTENT_LIMIT = 2**30
HEADER_LIMIT = 2**24
BLOCK_HEAD = struct.Struct("<II")


def write_container(codes, codec, recipe_digest):
    """(bytes, owners): the container, and [{owner, kind, bytes}] of every tensor's part, of tables and headers; they sum
    exactly to its length. A section's bytes are the tensors' as `codec.measure` shares them out; the rest are `tables`."""
    chunks, sections = _header_chunks(codes, recipe_digest)
    owners = [{"owner": "container", "kind": "header", "bytes": len(chunks[0])}]
    for (role, _, part), entries in sections.items():
        arrays, trellis = _arrays(codes, part, entries), part == "path"
        frame = codec.encode(arrays, trellis)
        chunks.append(_block(frame))
        shares = [int(share) for share in codec.measure(arrays, trellis)]
        excess = max(0, sum(shares) - len(frame))
        for (name, *_), share in zip(entries, shares, strict=True):
            taken = min(excess, share)  # measured a little more than was written: the first tensors give it back
            excess -= taken
            owners.append({"owner": name, "kind": part, "bytes": share - taken})
        rest = len(chunks[-1]) - sum(one["bytes"] for one in owners[-len(entries) :])
        owners.append({"owner": f"{role}/{part}", "kind": "tables", "bytes": rest})
    return b"".join(chunks), owners


def measure_container(codes, codec, recipe_digest):
    """(bytes of the whole, bytes of every tensor by name) as `codec.measure` puts them: fast, and near to the truth."""
    chunks, sections = _header_chunks(codes, recipe_digest)
    by_name = dict.fromkeys(codes, 0.0)
    for (_, _, part), entries in sections.items():
        measured = codec.measure(_arrays(codes, part, entries), part == "path")
        for (name, *_), share in zip(entries, measured, strict=True):
            by_name[name] += share
    return len(chunks[0]) + BLOCK_HEAD.size * len(sections) + sum(by_name.values()), by_name


def read_container(data, codec, check=None):
    """(name -> Coded, recipe digest), by the recipe's codec. Problem, naming the section, for any byte changed, missing or
    surplus. `check(digest, name -> shape)` may raise one before any section is decoded."""
    if data[: len(CONTAINER_MAGIC)] != CONTAINER_MAGIC:
        raise Problem(
            f"model file: header begins with {data[:5]!r}, not {CONTAINER_MAGIC!r}; give a model.bin of this version"
        )
    header, place = _read_block(data, len(CONTAINER_MAGIC), "header")
    try:
        header = json.loads(zlib.decompressobj().decompress(header, HEADER_LIMIT))
        table = [(str(name), str(scheme), str(role), tuple(shape)) for name, scheme, role, shape in header["tensors"]]
        digest = str(header["recipe"])
        sections = _container_sections(table)
    except (KeyError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise Problem(f"model file: header is no table of tensors ({error!r}); fetch the file again") from error
    _refuse_excess(sections, "model file: header states")
    if check:
        check(digest, {name: shape for name, _, _, shape in table})
    codes = {name: Coded(scheme, role, shape, {}) for name, scheme, role, shape in table}
    for (role, scheme, part), entries in sections.items():
        what = f"section {role}/{scheme}/{part}"
        frame, place = _read_block(data, place, what)
        layouts = [(np.dtype(str(dtype).removeprefix("torch.")), shape) for _, dtype, shape in entries]
        try:
            arrays = codec.decode(frame, layouts, part == "path")
        except Problem as error:
            raise Problem(f"model file: {what}: {error}") from error
        for (name, *_), array in zip(entries, arrays, strict=True):
            codes[name].parts[part] = torch.tensor(array)  # a copy: some codecs give views of the file
    if place != len(data):
        raise Problem(f"model file: {len(data) - place} surplus bytes after the last section; fetch the file again")
    return codes, digest


def _header_chunks(codes, recipe_digest):
    table = [[name, coded.scheme, coded.role, coded.shape] for name, coded in codes.items()]
    header = json.dumps({"recipe": recipe_digest, "tensors": table}, separators=(",", ":")).encode()
    sections = _container_sections(table)
    _refuse_excess(sections, "the recipe's weights take")
    return [CONTAINER_MAGIC + _block(zlib.compress(header, 9))], sections


def _container_sections(table):
    # (role, scheme, part) -> [(name, dtype, shape)], in order of first appearance.
    sections, seen = {}, set()
    for name, scheme, role, shape in table:
        if name in seen or not all(type(length) is int and length > 0 for length in shape):
            raise ValueError(f"tensor {name!r} of shape {shape}")
        seen.add(name)
        for part, (dtype, part_shape) in part_layout(scheme, tuple(shape)).items():
            sections.setdefault((role, scheme, part), []).append((name, dtype, part_shape))
    return sections


def _refuse_excess(sections, what):
    content = sum(math.prod(shape) * dtype.itemsize for entries in sections.values() for _, dtype, shape in entries)
    if content > CONTENT_LIMIT:
        raise Problem(f"{what} {content} bytes of codes, more than {CONTENT_LIMIT}; take a smaller model")


def _arrays(codes, part, entries):
    return [codes[name].parts[part].numpy() for name, *_ in entries]


def _block(content):
    size = struct.pack("<I", len(content))
    return size + struct.pack("<I", zlib.crc32(size + content)) + content


def _read_block(data, place, what):
    begin = place + BLOCK_HEAD.size
    size, checksum = BLOCK_HEAD.unpack(data[place:begin].ljust(BLOCK_HEAD.size, b"\0"))
    content = data[begin : begin + size]
    if len(data) < begin or len(content) < size or zlib.crc32(data[place : place + 4] + content) != checksum:
        raise Problem(f"model file: {what} is damaged or cut (checksum); fetch the file again")
    return content, begin + size
