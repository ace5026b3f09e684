"""Zstandard as the general compressor: small, everywhere, and close to order-0 entropy on integer codes."""

from dataclasses import dataclass

from ..problem import Problem
from .general import ByteCodec, checked_size, package_of

GREATEST_RATIO = 2**15  # a block of 4 bytes repeats one byte 128 KiB long; nothing in the format is denser


@dataclass(frozen=True)
class Zstd(ByteCodec):
    """Zstandard frames at `level` (1 to 22). The same bytes and library version give the same frame."""

    level: int = 22

    tag = 1  # untyped, so no field
    levels = ("level", 1, 22)

    def compress(self, content):
        """One frame that states its content's size."""
        compressor = package_of("Zstd", "zstandard").ZstdCompressor(level=self.level, write_content_size=True)
        return compressor.compress(content)

    def expand(self, frame, size):
        """The frame states its own size, which the library believes and allocates: it must be `size`, and possible."""
        module = package_of("Zstd", "zstandard")
        try:
            stated = module.get_frame_parameters(frame).content_size
            if stated != size or size > GREATEST_RATIO * len(frame):
                raise Problem(f"a frame of {len(frame)} bytes states {stated} where {size} are due; fetch the file again")
            content = module.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
        except module.ZstdError as error:
            raise Problem(f"not a whole zstd frame ({error}); fetch the file again") from error
        return checked_size(content, size, "zstd")
