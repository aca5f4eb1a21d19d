"""zstd, from the standard library (Python 3.14 and later) or its backport; decompression is bounded.

Owns which module is used, and that no input makes more than it was announced to. Knows nothing of
what is compressed.
"""

from __future__ import annotations

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
    from compression.zstd import compress as _compress
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
    from backports.zstd import compress as _compress

from .errors import CorruptError

LEVEL: Final = 1
"""Level 1 compresses sessions as small as level 3 does, at twice the speed."""

SIZE_BYTES_MAX: Final = 32 << 20
"""Nothing larger than this is decompressed in one piece."""

WINDOW_LOG_MAX: Final = 25
"""Memory for a window that a frame may ask for: 2^25 bytes, as much as SIZE_BYTES_MAX."""


def compress(data: bytes | memoryview, level: int = LEVEL) -> bytes:
    """One zstd frame that holds `data`."""
    return _compress(data, level)


def decompress(data: bytes | memoryview, size_bytes: int) -> bytes:
    """What one zstd frame holds: exactly `size_bytes`, as announced.

    Raises CorruptError if `data` is anything but one whole frame of that size, or the size is over
    SIZE_BYTES_MAX. Memory stays within the announced size and the window, whatever `data` is.
    """
    if not 0 <= size_bytes <= SIZE_BYTES_MAX:
        raise CorruptError(f"{size_bytes} bytes are announced, more than {SIZE_BYTES_MAX} are never held")
    decompressor = ZstdDecompressor(options={DecompressionParameter.window_log_max: WINDOW_LOG_MAX})
    try:
        out = decompressor.decompress(data, max_length=size_bytes + 1)
    except ZstdError as error:
        raise CorruptError(f"compressed data do not decompress: {error}") from error
    if len(out) != size_bytes or not decompressor.eof or decompressor.unused_data:
        raise CorruptError(f"compressed data do not hold the {size_bytes} bytes that are announced")
    return out
