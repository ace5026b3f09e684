"""Zstandard as the general compressor: small, everywhere, and close to order-0 entropy on integer codes."""

from dataclasses import dataclass

import zstandard

from ..problem import Problem
from ..sites import CodecSite

GREATEST_RATIO = 2**15  # a block of 4 bytes repeats one byte 128 KiB long; nothing in the format is denser


@dataclass(frozen=True)
class Zstd(CodecSite):
    """Zstandard frames at `level` (1 to 22). The same bytes and library version give the same frame."""

    level: int = 22

    container_id = 1  # untyped, so no field: the byte by which a container knows its codec

    def __post_init__(self):
        if not 1 <= self.level <= 22:
            raise Problem(f"Zstd.level is {self.level}: take 1 to 22")

    def compress(self, data):
        """One frame that states its content's size."""
        return zstandard.ZstdCompressor(level=self.level, write_content_size=True).compress(data)

    @staticmethod
    def decompress(data, size):
        """The frame's `size` bytes. Problem when it is broken, holds another size, or is followed by anything.

        The frame states its own size, which the library believes and allocates: it must be `size`, and possible.
        """
        try:
            stated = zstandard.get_frame_parameters(data).content_size
            if stated != size or size > GREATEST_RATIO * len(data):
                raise Problem(f"a frame of {len(data)} bytes states {stated} where {size} are due; fetch the file again")
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Problem(f"not a whole zstd frame ({error}); fetch the file again") from error
