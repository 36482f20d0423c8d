"""Reads compressed files to their end, or refuses them."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from zstandard import ZstdDecompressor, ZstdError

_READ_BYTES = 256 * 1024
# The window of Zstandard's --long=31.
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

# What the decompressors raise for a damaged file.
DAMAGE = (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, ZstdError)


def is_compressed(path: str) -> bool:
    """Whether the file name has the suffix of a compressed file."""
    return path.lower().endswith(SUFFIXES)


def decompressed(file: BinaryIO, path: str, read: Callable[[int], None]) -> Iterator[bytes]:
    """Yields the decompressed contents of a file in blocks; its suffix states the format.

    Calls `read` with the number of bytes of each read. A file may consist of several compressed streams.
    Raises one of DAMAGE for a truncated or damaged file; Beam's own reader accepts an early end.
    """
    new = _DECOMPRESSORS[next(suffix for suffix in SUFFIXES if path.lower().endswith(suffix))]
    decompressor = new()
    while data := file.read(_READ_BYTES):
        read(len(data))
        while data:
            if decompressor.eof:
                # Tapes and block devices pad files with zeros.
                data = data.lstrip(b"\0")
                if not data:
                    break
                decompressor = new()
            yield decompressor.decompress(data)
            data = decompressor.unused_data
    if not decompressor.eof:
        raise EOFError
