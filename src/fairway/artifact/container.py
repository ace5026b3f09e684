"""`model.bin`: quantised tensors in one self-contained, checksummed file; loading is a pure function of its bytes.

    magic 4 | version u8 | codec u8 | frame size u32 | content size u32 | crc32 | header frame
    then for each (role, part), in order of first appearance: frame size u32 | crc32 | frame

Integers are little-endian. The header is compact JSON: recipe digest, and per tensor name, scheme, role, shape; sizes
of sections follow from it. A section holds that part of all tensors of that role, so the ledger can name the owner of
every compressed byte. Types wider than a byte are stored plane by plane: high bytes of float16 compress, low ones do
not, and mixed they spoil each other's statistics.
"""

import json
import math
import struct
import zlib

import numpy as np
import torch

from ..codec.zstd import Zstd
from ..problem import Problem
from ..quantize.schemes import Coded, part_layout

CONTAINER_MAGIC = b"FWay"
CONTAINER_VERSION = 1
CONTAINER_CODECS = (Zstd,)
PREAMBLE = "<4sBBII"
# A hostile file of a few bytes may state any size. Above this much content neither side works.
CONTENT_LIMIT = 2**30
HEADER_LIMIT = 2**24


def write_container(codes, codec, recipe_digest):
    """(bytes, owners): the container, and [{owner, kind, bytes}] that sum exactly to its length."""
    table = [[name, coded.scheme, coded.role, coded.shape] for name, coded in codes.items()]
    header = json.dumps({"recipe": recipe_digest, "tensors": table}, separators=(",", ":")).encode()
    sections = _container_sections(table)
    content = sum(size for entries in sections.values() for *_, size in entries)
    if content > CONTENT_LIMIT or len(header) > HEADER_LIMIT:
        raise Problem(f"{content} bytes of codes are beyond what a container holds ({CONTENT_LIMIT}); take a smaller model")
    frame = codec.compress(header)
    preamble = struct.pack(PREAMBLE, CONTAINER_MAGIC, CONTAINER_VERSION, codec.container_id, len(frame), len(header))
    chunks = [preamble + struct.pack("<I", zlib.crc32(preamble + frame)) + frame]
    owners = [{"owner": "container", "kind": "header", "bytes": len(chunks[0])}]
    for (role, part), entries in sections.items():
        frame = codec.compress(b"".join(_to_planes(codes[name].parts[part]) for name, *_ in entries))
        size = struct.pack("<I", len(frame))
        chunks.append(size + struct.pack("<I", zlib.crc32(size + frame)) + frame)
        owners.append({"owner": role, "kind": part, "bytes": len(chunks[-1])})
    return b"".join(chunks), owners


def read_container(data):
    """(name -> Coded, recipe digest). Problem, naming the section, for any byte changed, missing or surplus."""
    codec, header, place = _read_header(data)
    try:
        table = [(str(name), str(scheme), str(role), tuple(shape)) for name, scheme, role, shape in header["tensors"]]
        digest = str(header["recipe"])
        sections = _container_sections(table)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"model file: header is not a fairway {CONTAINER_VERSION} table ({error!r})") from error
    if sum(size for entries in sections.values() for *_, size in entries) > CONTENT_LIMIT:
        raise Problem(f"model file: header states more than {CONTENT_LIMIT} bytes of codes; that is no honest model")
    codes = {name: Coded(scheme, role, shape, {}) for name, scheme, role, shape in table}
    for (role, part), entries in sections.items():
        total = sum(size for *_, size in entries)
        content, place = _read_section(data, place, codec, total, f"section {role}/{part}")
        start = 0
        for name, dtype, shape, size in entries:
            codes[name].parts[part] = _from_planes(content[start : start + size], dtype, shape)
            start += size
    if place != len(data):
        raise Problem(f"model file: {len(data) - place} surplus bytes after the last section; fetch the file again")
    return codes, digest


def _container_sections(table):
    # (role, part) -> [(name, dtype, shape, bytes)], in order of first appearance.
    sections, seen = {}, set()
    for name, scheme, role, shape in table:
        if name in seen or not all(type(length) is int and length > 0 for length in shape):
            raise ValueError(f"tensor {name!r} of shape {shape}")
        seen.add(name)
        for part, (dtype, part_shape) in part_layout(scheme, shape).items():
            entry = (name, dtype, part_shape, math.prod(part_shape) * dtype.itemsize)
            sections.setdefault((role, part), []).append(entry)
    return sections


def _read_header(data):
    fixed = struct.calcsize(PREAMBLE)
    if data[:4] != CONTAINER_MAGIC:
        raise Problem(f"model file: header begins with {data[:4]!r}, not {CONTAINER_MAGIC!r}; give a model.bin")
    if len(data) < fixed + 4:
        raise Problem(f"model file: cut in its header at {len(data)} bytes; fetch the file again")
    _, version, codec_id, frame_size, size = struct.unpack_from(PREAMBLE, data)
    if version != CONTAINER_VERSION:
        raise Problem(f"model file: header version {version}, this fairway reads {CONTAINER_VERSION}; pack again")
    frame = data[fixed + 4 : fixed + 4 + frame_size]
    if len(frame) < frame_size or zlib.crc32(data[:fixed] + frame) != struct.unpack_from("<I", data, fixed)[0]:
        raise Problem("model file: header is damaged or cut (checksum); fetch the file again")
    codec = next((kind for kind in CONTAINER_CODECS if kind.container_id == codec_id), None)
    if codec is None or size > HEADER_LIMIT:
        raise Problem(f"model file: header states codec {codec_id} and {size} bytes; another version of fairway wrote it")
    try:
        header = json.loads(codec.decompress(frame, size))
    except (ValueError, RecursionError) as error:
        raise Problem(f"model file: header is not JSON ({error!r})") from error
    return codec, header, fixed + 4 + frame_size


def _read_section(data, place, codec, total, section):
    if len(data) < place + 8:
        raise Problem(f"model file: {section} is missing; the file is cut at {len(data)} bytes, fetch it again")
    frame_size, checksum = struct.unpack_from("<II", data, place)
    frame = data[place + 8 : place + 8 + frame_size]
    if len(frame) < frame_size or zlib.crc32(data[place : place + 4] + frame) != checksum:
        raise Problem(f"model file: {section} is damaged or cut (checksum); fetch the file again")
    try:
        return codec.decompress(frame, total), place + 8 + frame_size
    except Problem as error:
        raise Problem(f"model file: {section}: {error}") from error


def _to_planes(tensor):
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.reshape(-1, tensor.dtype.itemsize).T.tobytes()


def _from_planes(content, dtype, shape):
    planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1)
    return torch.from_numpy(planes.T.copy()).reshape(-1).view(dtype).reshape(shape)
