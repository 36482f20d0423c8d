"""Compressed files: read to their end, or refused."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from zstandard import ZstdDecompressor, ZstdError

_READ_BYTES = 256 * 1024
# As large as Zstandard's own --long=31 makes it.
_ZSTD_WINDOW_BYTES = 2**31

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),
    ".deflate": zlib.decompressobj,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".lzma": lzma.LZMADecompressor,
    ".zst": lambda: ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj(),
    ".zstd": lambda: ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj(),
}
SUFFIXES = tuple(_DECOMPRESSORS)

# What a damaged file makes the decompressors raise.
DAMAGE = (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, ZstdError)


def is_compressed(path: str) -> bool:
    """Whether a file's name says so."""
    return path.lower().endswith(SUFFIXES)


def decompressed(file: BinaryIO, path: str, read: Callable[[int], None]) -> Iterator[bytes]:
    """The contents of a compressed file, of whatever kind its name says, in blocks.

    `read` is told how many of the file's bytes have been read, each time.
    Several compressed streams, one after the other, are one file. Raises one of DAMAGE for a file that is not
    whole: a library's own reader takes an early end for the end.
    """
    new = _DECOMPRESSORS[next(suffix for suffix in SUFFIXES if path.lower().endswith(suffix))]
    decompressor = new()
    while data := file.read(_READ_BYTES):
        read(len(data))
        while data:
            if decompressor.eof:
                # Tapes and block devices are filled up with zeros.
                data = data.lstrip(b"\0")
                if not data:
                    break
                decompressor = new()
            yield decompressor.decompress(data)
            data = decompressor.unused_data
    if not decompressor.eof:
        raise EOFError
