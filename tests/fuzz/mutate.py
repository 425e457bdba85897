"""Damage to bytes, the same for the same seed: bits, bytes, numbers, cuts, copies, and pieces of other inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence

SEED = 20_261_123

# Where sizes, counts and signs go wrong, little-endian and big-endian.
_NUMBERS = [
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1)
    for order in ("little", "big")
]
# Initial bytes of CBOR items: every major type, each length of argument, indefinite, simple values, tags.
_CBOR = [bytes([major << 5 | low]) for major in range(8) for low in (0, 1, 23, 24, 25, 26, 27, 28, 31)]


def mutated(raw: bytes, others: Sequence[bytes], random_: random.Random) -> bytes:
    """`raw` with one to four kinds of damage, mostly small."""
    out = bytearray(raw)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        at = _place(len(out), random_)
        match random_.randrange(9):
            case 0 | 1:
                if out:
                    out[min(at, len(out) - 1)] ^= 1 << random_.randrange(8)
            case 2:
                if out:
                    out[min(at, len(out) - 1)] = random_.randrange(256)
            case 3:
                number = random_.choice(_NUMBERS)
                out[at : at + len(number)] = number
            case 4:
                out[at : at + random_.choice((0, 1))] = random_.choice(_CBOR)
            case 5:
                del out[at:]
            case 6:
                del out[at : at + random_.randint(1, 16)]
            case 7:
                out[at:at] = out[at : at + random_.randint(1, 64)]
            case _:
                other = random_.choice(others)
                start = _place(len(other), random_)
                piece = other[start : start + random_.randint(1, 64)]
                out[at : at + random_.choice((0, len(piece)))] = piece
    return bytes(out)


def _place(size: int, random_: random.Random) -> int:
    # Heads are where the decisions are.
    return random_.randint(0, min(size, 64) if random_.random() < 0.5 else size)
