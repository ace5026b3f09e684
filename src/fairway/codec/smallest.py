"""The codec that a section deserves: each is tried, the shortest frame stays."""

from dataclasses import dataclass

from ..problem import Problem
from ..sites import CodecSite


@dataclass(frozen=True)
class Smallest(CodecSite):
    """The shortest frame of `codecs`, led by its codec's tag. Reads frames of these codecs and no others."""

    codecs: tuple[CodecSite, ...]

    tag = 5

    def __post_init__(self):
        if not self.codecs:
            raise Problem("Smallest.codecs is empty: give it one codec or more, as ColumnRans()")

    def encode(self, arrays, trellis=False):
        return min((bytes([codec.tag]) + codec.encode(arrays, trellis) for codec in self.codecs), key=len)

    def decode(self, frame, layouts, trellis=False):
        for codec in self.codecs:
            if frame[:1] == bytes([codec.tag]):
                return codec.decode(frame[1:], layouts, trellis)
        raise Problem(
            f"a frame of codec {frame[:1].hex() or 'none'}, not one of {self}; read it with the recipe that wrote it"
        )

    def measure(self, arrays, trellis=False):
        return min((codec.measure(arrays, trellis) for codec in self.codecs), key=sum)
