"""Decompression of what strangers packed: piece by piece, so that a bomb costs seconds and no memory."""

import bz2
import io
import lzma
import zipfile
import zlib

import zstandard

PIECE = 1 << 20  # bytes that are unpacked at a time
GIGABYTE = 1 << 30
LARGEST_WINDOW = 128 << 20  # bytes that a decoder may ask for before it has read anything
LONGEST_LIST = 8 << 20  # bytes of a ZIP archive's list of members
MAGICS = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
ARCHIVE_ERRORS = (
    OSError, ValueError, EOFError, RuntimeError, MemoryError, NotImplementedError, KeyError,
    lzma.LZMAError, zlib.error, zipfile.BadZipFile, zstandard.ZstdError,
)  # fmt: skip


class Oversize(Exception):
    """What was packed is larger than it may be: one line that says how large. `bomb`: a gigabyte and more."""

    def __init__(self, text, bomb=False):
        super().__init__(text)
        self.bomb = bomb


def bounded(pieces, most):
    """The pieces as one, of `most` bytes at most. Larger ones are counted to a gigabyte, thrown away, and are Oversize."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size <= most:
            kept.append(piece)
        else:
            kept = []
        if size > GIGABYTE:
            raise Oversize(f"unpacks to more than {GIGABYTE:,} bytes", bomb=True)
    if size > most:
        raise Oversize(f"unpacks to {size:,} bytes, of which no more than {most:,} are looked at")
    return b"".join(kept)


def xz_pieces(chunks, form=lzma.FORMAT_AUTO, filters=None):
    """Pieces of LZMA data (.xz, .lzma or raw with its filters), one stream after the other as `lzma.decompress` reads it."""
    if any(one.get("dict_size", 0) > LARGEST_WINDOW for one in filters or ()):
        raise Oversize(f"asks for a dictionary of more than {LARGEST_WINDOW:,} bytes")

    def engine():
        if form == lzma.FORMAT_RAW:
            return lzma.LZMADecompressor(form, filters=filters)
        return lzma.LZMADecompressor(form, memlimit=2 * LARGEST_WINDOW)

    return streams(engine, chunks, lzma.LZMAError)


def bz2_pieces(chunks):
    """Pieces of bzip2 data."""
    return streams(bz2.BZ2Decompressor, chunks, OSError)


def streams(engine, chunks, error):
    """Pieces by decoders of the standard library's kind; what follows the first whole stream and is none is left alone."""
    reader, ended = engine(), False
    for chunk in chunks:
        while chunk or not reader.needs_input:
            try:
                yield reader.decompress(chunk, PIECE)
            except error:
                if ended:
                    return
                raise
            chunk = b""
            if reader.eof:
                ended, chunk, reader = True, reader.unused_data, engine()
                if not chunk:
                    break
    if not ended:
        raise EOFError("the packed data ends before its end")


def zlib_pieces(chunks, wbits=zlib.MAX_WBITS):
    """Pieces of deflated data: zlib's form, raw deflate (negative wbits), or gzip (wbits over 15)."""
    reader, ended = zlib.decompressobj(wbits), False
    for chunk in chunks:
        while True:
            try:
                piece = reader.decompress(chunk, PIECE)
            except zlib.error:
                if ended:
                    return
                raise
            yield piece
            chunk = reader.unconsumed_tail
            if reader.eof:
                ended, chunk, reader = True, reader.unused_data, zlib.decompressobj(wbits)
                if wbits <= zlib.MAX_WBITS or not chunk:
                    return
            elif not chunk and len(piece) < PIECE:
                break
    if not ended:
        raise EOFError("the packed data ends before its end")


def zstd_pieces(chunks):
    """Pieces of Zstandard data, frame after frame."""
    engine = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    reader = engine.stream_reader(Chunks(chunks), read_across_frames=True)
    while piece := reader.read(PIECE):
        yield piece


class Chunks:
    """An iterator of bytes as a file that can be read and nothing else."""

    def __init__(self, chunks):
        self.chunks, self.rest = iter(chunks), b""

    def read(self, size=-1):
        self.rest = self.rest or next(self.chunks, b"")
        piece, self.rest = self.rest[:size], self.rest[size:]
        return piece


def brotli_pieces(chunks):
    """Pieces of Brotli data; NotImplementedError where the installed brotli cannot stop at a limit."""
    try:
        from brotli import Decompressor, error
    except ImportError as missing:
        raise NotImplementedError("brotli is not installed") from missing
    reader = Decompressor()
    try:
        for chunk in chunks:
            yield reader.process(chunk, output_buffer_limit=PIECE)
            while not reader.can_accept_more_data():
                yield reader.process(b"", output_buffer_limit=PIECE)
    except TypeError as old:
        raise NotImplementedError("the installed brotli cannot stop at a limit") from old
    except error as broken:
        raise ValueError(str(broken)) from broken
    if not reader.is_finished():
        raise EOFError("the packed data ends before its end")


def archive_kind(head):
    """What the first bytes of a file say: "xz", "gzip", "bz2", "zstd", "zip", or None."""
    return next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), None)


def unpacked_pieces(kind, chunks):
    """Pieces of a packed stream of that kind."""
    if kind == "gzip":
        return zlib_pieces(chunks, 31)
    return {"xz": xz_pieces, "bz2": bz2_pieces, "zstd": zstd_pieces, "brotli": brotli_pieces}[kind](chunks)


def unpacked_size(file, most, depth=6):
    """How many bytes the archive in an open file unpacks to, archives inside it too; counting stops beyond `most`."""
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    kind = archive_kind(head)
    if kind is None:
        return 0
    if kind == "zip":
        return zip_size(file, most, depth)
    size = 0
    for piece in unpacked_pieces(kind, iter(lambda: file.read(PIECE), b"")):
        size += len(piece)
        if size > most:
            break
    return size


def zip_size(file, most, depth):
    """The sizes that a ZIP archive states, and those of small archives inside it."""
    refuse_long_list(file)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size = sum(one.file_size for one in members)
        for one in members[:1000]:
            if size > most or not depth:
                break
            with archive.open(one) as member:
                inner = archive_kind(member.read(8))
            if inner and one.file_size <= PIECE << 4:
                with archive.open(one) as member:
                    size += unpacked_size(member, most - size, depth - 1)
    return size


def refuse_long_list(file):
    """Oversize for a ZIP archive whose list of members would cost much memory; leaves the file at its start."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end >= 0 and int.from_bytes(tail[end + 12 : end + 16], "little") > LONGEST_LIST:
        raise Oversize(f"has a list of members of more than {LONGEST_LIST:,} bytes, which is not read")
    file.seek(0)


def zip_members(data, most, wanted):
    """{name: bytes} of the members whose names `wanted` accepts, `most` bytes of them in all."""
    refuse_long_list(io.BytesIO(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [one for one in archive.infolist()[:10_000] if wanted(one.filename)]
        if sum(one.file_size for one in names) > most:
            raise Oversize(f"unpacks to more than {most:,} bytes", bomb=sum(one.file_size for one in names) > GIGABYTE)
        return {one.filename: archive.read(one) for one in names}
