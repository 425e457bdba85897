"""What a shared library exports and needs: of ELF (Linux), Mach-O (macOS) and PE (Windows), all of 64 bits."""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from
from typing import NamedTuple


class Library(NamedTuple):
    """Names that a library exports, and libraries that it needs."""

    exports: set[str]
    needs: set[str]


def read(path: Path) -> Library:
    raw = path.read_bytes()
    if raw.startswith(b"\x7fELF"):
        return _elf(raw)
    return _mach_o(raw) if raw.startswith(b"\xcf\xfa\xed\xfe") else _pe(raw)


def _text(raw: bytes, at: int) -> str:
    return raw[at : raw.index(b"\0", at)].decode()


def _elf(raw: bytes) -> Library:
    (table,) = unpack_from("<Q", raw, 0x28)
    size, count = unpack_from("<HH", raw, 0x3A)
    sections = [unpack_from("<4xI16xQQI", raw, table + size * i) for i in range(count)]
    exports, needs = set(), set()
    for kind, start, length, link in sections:
        names = sections[link][1]
        if kind == 11:  # dynamic symbols: name, binding and type, section (0: undefined)
            for name, info, section in (unpack_from("<IBxH", raw, at) for at in range(start, start + length, 24)):
                if section and info >> 4:
                    exports.add(_text(raw, names + name))
        if kind == 6:  # the dynamic section: pairs of a tag and a value
            for tag, value in (unpack_from("<QQ", raw, at) for at in range(start, start + length, 16)):
                if tag == 1:
                    needs.add(_text(raw, names + value))
    return Library(exports, needs)


def _mach_o(raw: bytes) -> Library:
    (count,) = unpack_from("<I", raw, 16)
    exports, needs = set(), set()
    at = 32
    for _ in range(count):
        command, size = unpack_from("<II", raw, at)
        if command == 0x2:  # the symbol table; names begin with an underscore
            symbols, symbols_n, names = unpack_from("<III", raw, at + 8)
            for name, kind in (unpack_from("<IB", raw, symbols + 16 * i) for i in range(symbols_n)):
                defined, private, external = kind & 0x0E, kind & 0x10, kind & 0x01
                if defined and external and not private:
                    exports.add(_text(raw, names + name).removeprefix("_"))
        if command == 0xC:  # a library to load
            needs.add(_text(raw, at + unpack_from("<I", raw, at + 8)[0]))
        at += size
    return Library(exports, needs)


def _pe(raw: bytes) -> Library:
    (pe,) = unpack_from("<I", raw, 0x3C)
    sections_n, optional_bytes = unpack_from("<H12xH", raw, pe + 6)
    exported, imported = unpack_from("<I4xI", raw, pe + 24 + 112)
    sections = [unpack_from("<8xIIII", raw, pe + 24 + optional_bytes + 40 * i) for i in range(sections_n)]

    def at(address: int) -> int:
        return next(address - start + file for size, start, _, file in sections if start <= address < start + size)

    names_n, _, names = unpack_from("<III", raw, at(exported) + 24)
    exports = {_text(raw, at(name)) for name in unpack_from(f"<{names_n}I", raw, at(names))}
    needs = set()
    descriptor = at(imported)
    while name := unpack_from("<I", raw, descriptor + 12)[0]:
        needs.add(_text(raw, at(name)))
        descriptor += 20
    return Library(exports, needs)
