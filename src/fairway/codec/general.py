"""General compressors over byte planes: what the public systems used, for comparison and for small tensors."""

import importlib
import lzma
from dataclasses import dataclass

import numpy as np

from ..problem import Problem
from ..sites import CodecSite
from .planes import byte_planes, from_planes, order0_bits, plane_sizes


@dataclass(frozen=True)
class ByteCodec(CodecSite):
    """Base of codecs that are `compress(content)` and `expand(frame, size)` of bytes; each array's planes, one by one.

    `expand` gives `size` bytes or raises Problem, and never holds much more. Nothing here sees a trellis.
    `levels`: the field that says how hard it works, its least and its greatest value.
    """

    levels = ("", 0, 0)

    def __post_init__(self):
        field, least, most = self.levels
        if not least <= (value := getattr(self, field)) <= most:
            raise Problem(f"{type(self).__name__}.{field} is {value}: take {least} to {most}")

    def encode(self, arrays, trellis=False):
        return self.compress(b"".join(byte_planes(array).tobytes() for array in arrays))

    def decode(self, frame, layouts, trellis=False):
        sizes, arrays, place = plane_sizes(layouts), [], 0
        content = np.frombuffer(self.expand(frame, sum(wide * count for wide, count in sizes)), np.uint8)
        for (dtype, shape), (wide, count) in zip(layouts, sizes, strict=True):
            arrays.append(from_planes(content[place : place + wide * count].reshape(wide, count), dtype, shape))
            place += wide * count
        return arrays

    def measure(self, arrays, trellis=False):
        """By compressing, for there is no short way; an array's share is that of its order-0 entropy."""
        bits = np.array([order0_bits(byte_planes(array)) + 1 for array in arrays])
        return [float(share) for share in len(self.encode(arrays)) * bits / bits.sum()]


def checked_size(content, size, codec):
    """`content`, or Problem when it has not `size` bytes."""
    if content is None or len(content) != size:
        raise Problem(f"not one whole {codec} frame of {size} bytes; fetch the file again")
    return content


def package_of(codec, name):
    """The package `name`, imported only when it is used: few recipes need it. Problem where it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Problem(f"{codec} needs the package {name}: pip install {name}, or take another codec") from error


@dataclass(frozen=True)
class Lzma(ByteCodec):
    """Raw LZMA2 at `preset` (0 to 9, extreme), its dictionary as long as the content."""

    preset: int = 9

    tag = 3
    levels = ("preset", 0, 9)

    def _filters(self, size):
        window = min(max(size, 4096), 1 << 26)
        return [{"id": lzma.FILTER_LZMA2, "preset": self.preset | lzma.PRESET_EXTREME, "dict_size": window}]

    def compress(self, content):
        return lzma.compress(content, lzma.FORMAT_RAW, filters=self._filters(len(content)))

    def expand(self, frame, size):
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=self._filters(size))
        try:
            content = decoder.decompress(frame, size + 1)
        except lzma.LZMAError as error:
            raise Problem(f"not an lzma frame ({error}); fetch the file again") from error
        return checked_size(content if decoder.eof and not decoder.unused_data else None, size, "lzma")


@dataclass(frozen=True)
class Brotli(ByteCodec):
    """Brotli at `quality` (0 to 11). Needs the package brotli, 1.2 or later: earlier ones cannot bound what they write."""

    quality: int = 11

    tag = 2
    levels = ("quality", 0, 11)

    def compress(self, content):
        return package_of("Brotli", "brotli").compress(content, quality=self.quality, lgwin=24)

    def expand(self, frame, size):
        module = package_of("Brotli", "brotli")
        decoder, parts, left = module.Decompressor(), [], size
        try:
            while left >= 0 and not decoder.is_finished():
                parts.append(decoder.process(b"" if parts else frame, output_buffer_limit=left + 1))
                left -= len(parts[-1])
                if not parts[-1]:
                    break
        except module.error as error:
            raise Problem(f"not a brotli frame ({error}); fetch the file again") from error
        return checked_size(b"".join(parts) if decoder.is_finished() else None, size, "brotli")
