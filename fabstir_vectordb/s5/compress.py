"""zstd compression in one thread, deterministic: the same bytes, level and libzstd version give the same frame.

``compression.zstd`` comes with Python from 3.14; ``backports.zstd`` is the same module for older versions.
"""

from __future__ import annotations

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from fabstir_vectordb.errors import IntegrityError

__all__ = ["compress", "decompress"]

# Levels 1 to 3 never write a larger window than this, unless the frame is a single segment of the content's size.
_WINDOW_LOG_MIN: Final = 22
_WINDOW_LOG_MAX: Final = 31


def compress(data: bytes | bytearray | memoryview, level: int = 1) -> bytes:
    """Return one zstd frame.

    Args:
        data: the bytes.
        level: zstd level; 1 to 3 are faster than the network.

    Returns:
        The frame, which may be larger than ``data``.
    """
    return zstd.compress(data, level)


def decompress(data: bytes | bytearray | memoryview, size: int) -> bytes:
    """Return the content of one zstd frame whose content size is known from a trusted source.

    Args:
        data: the frame.
        size: size of the content in bytes; at most one byte more is decompressed.

    Returns:
        Exactly ``size`` bytes.

    Raises:
        IntegrityError: the frame is damaged, has another size, or is followed by more bytes.
    """
    window_log = min(_WINDOW_LOG_MAX, max(_WINDOW_LOG_MIN, size.bit_length()))
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})
    try:
        content = decompressor.decompress(data, size + 1)
    except zstd.ZstdError as error:
        raise IntegrityError(f"Damaged zstd data: {error}", details={"expected": size}) from None
    if len(content) != size or not decompressor.eof or decompressor.unused_data:
        raise IntegrityError(
            f"zstd data does not hold exactly the expected {size} bytes",
            details={"expected": size, "actual": len(content)},
        )
    return content
