"""An input read as a list of choices, and edits of good bytes by them: the same as native/harness.h does in C.

So a few bytes of input reach what lies behind checksums, keys and sizes, which are made right after the edits.
"""

from __future__ import annotations

from collections.abc import Sequence

EDIT_BYTES_MAX = 64
EDITS_MAX = 8


class Choices:
    """Reads an input from the left; after its end every choice is 0."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def number(self, size: int = 1) -> int:
        """A little-endian number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, end: int) -> int:
        return self.number(1 if end <= 256 else 4) % end

    def take(self, size: int) -> bytes:
        """At most `size` bytes."""
        taken = self._raw[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(self.left)


def edited(raw: bytes, choices: Choices, others: Sequence[bytes], header: int = 0) -> bytes:
    """`raw` with one edit behind its header."""
    begin = min(header, len(raw))
    what, at = choices.below(8), begin + choices.number(2) % (len(raw) - begin + 1)
    n = choices.below(EDIT_BYTES_MAX) + 1
    end = min(at + n, len(raw))
    match what:
        case 0:  # other bytes
            return raw[:at] + choices.take(end - at).ljust(end - at, b"\0") + raw[end:]
        case 1:  # more bytes
            return raw[:at] + choices.take(n) + raw[at:]
        case 2:
            return raw[:at] + raw[end:]
        case 3:
            return raw[:at]
        case 4:  # one byte many times
            return raw[:at] + choices.take(1) * (end - at) + raw[end:]
        case 5:  # a number that is a little larger or smaller
            size = min(4, len(raw) - at)
            step = (choices.number() + 128) % 256 - 128
            number = (int.from_bytes(raw[at : at + size], "little") + step) % 256**size
            return raw[:at] + number.to_bytes(size, "little") + raw[at + size :]
        case 6:  # the body of another
            return raw[:begin] + others[choices.below(len(others))][header:]
        case _:  # bits
            bits = bytes(1 << bit % 8 for bit in choices.take(end - at).ljust(end - at, b"\0"))
            return raw[:at] + bytes(one ^ bit for one, bit in zip(raw[at:end], bits, strict=True)) + raw[end:]
