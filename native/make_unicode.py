"""Writes the tables of Unicode properties that native/src/text/ uses, from the files of the Unicode Character Database.

    python native/make_unicode.py FOLDER

FOLDER has the files of one version as the Unicode Consortium publishes them, below
https://www.unicode.org/Public/<version>/ucd/ (15.0.0, say): UnicodeData.txt, PropList.txt, Scripts.txt, LineBreak.txt,
DerivedCoreProperties.txt, DerivedNormalizationProps.txt, emoji/emoji-data.txt, auxiliary/WordBreakProperty.txt and
auxiliary/WordBreakTest.txt. It writes native/src/text/unicode_tables.c and tests/data/word_break.txt, the cases that
prove the segmentation. Both are committed: a build needs neither this script nor the network.

Another version of Unicode gives other terms, so texts have to be indexed anew: docs/decisions/0024-words.md.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "native" / "src" / "text" / "unicode_tables.c"
CASES = ROOT / "tests" / "data" / "word_break.txt"

CODES = 0x110000

#: Values of Word_Break in the order of the enum in unicode.h; the last two stand for pictographs, which have a rule of
#: their own (WB3c) beside that of their value.
BREAKS = [
    *("Other", "CR", "LF", "Newline", "Extend", "ZWJ", "Format", "Katakana", "Hebrew_Letter", "ALetter"),
    *("Single_Quote", "Double_Quote", "MidNumLet", "MidLetter", "MidNum", "Numeric", "ExtendNumLet"),
    *("Regional_Indicator", "WSegSpace", "Pictograph", "ALetter_Pictograph"),
]
JOINED = ("Extend", "Format", "ZWJ")

#: What a character is to a search, as the enum in unicode.h: of no word, of a word, or a word with each neighbour.
NONE, WORD, EAST, SOUTHEAST = range(4)
KIND_SHIFT, MARK_SHIFT = 5, 7

#: Scripts beside the ideographs that are written without spaces, or, as Hangul, with words of several parts.
EAST_SCRIPTS = {"Han", "Hiragana", "Katakana", "Hangul", "Tangut", "Nushu", "Khitan_Small_Script"}
#: Below the first one there are signs as © alone, and arrows begin there.
PICTOGRAPHS_FROM = 0x2190
#: Marks between the letters of a word that people type in several ways; NFKC_Casefold leaves them as they are.
QUOTES = {0x2018: 0x27, 0x2019: 0x27, 0x201B: 0x27, 0x05F3: 0x27, 0x05F4: 0x22}

#: Jamo that follow others within a syllable: they compose, by arithmetic (Unicode, section 3.12).
FOLLOWING_JAMO = [range(0x1161, 0x1176), range(0x11A8, 0x11C3)]


class Database:
    """The properties of one version, each a dict from a character to its value, or a set of characters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = ""
        self.word_break = dict(self._values("auxiliary/WordBreakProperty.txt"))
        self.script = dict(self._values("Scripts.txt"))
        self.line_break = dict(self._values("LineBreak.txt"))
        self.ideographic = self._having("PropList.txt", "Ideographic")
        self.alphabetic = self._having("DerivedCoreProperties.txt", "Alphabetic")
        self.never_composed = self._having("DerivedNormalizationProps.txt", "Full_Composition_Exclusion")
        self.emoji = self._having("emoji/emoji-data.txt", "Emoji")
        self.pictographs = self._having("emoji/emoji-data.txt", "Extended_Pictographic")
        self.folded = {}
        for code, fields in self._lines("DerivedNormalizationProps.txt"):
            if fields[0] == "NFKC_CF":
                self.folded[code] = tuple(int(part, 16) for part in fields[1].split())
        self.folded.update({code: (other,) for code, other in QUOTES.items()})
        self._read_unicode_data()

    def _lines(self, name: str) -> Iterator[tuple[int, list[str]]]:
        """Every character of a file with the fields behind it."""
        with (self.folder / name).open(encoding="utf-8") as file:
            head = "".join(itertools.islice(file, 12))
            found = re.search(r"-(\d+\.\d+\.\d+)\.txt|Emoji Version (\d+\.\d+)\b", head)
            if not found:
                raise SystemExit(f"{name} does not say which version it is of")
            self.version = self.version or found[1]
            if not self.version.startswith(found[1] or found[2]):
                raise SystemExit(f"{name} is of version {found[1] or found[2]}, other files are of {self.version}")
            for line in itertools.chain(head.splitlines(), file):
                first, *fields = (part.strip() for part in line.partition("#")[0].split(";"))
                if fields:
                    low, _, high = first.partition("..")
                    for code in range(int(low, 16), int(high or low, 16) + 1):
                        yield code, fields

    def _values(self, name: str) -> Iterator[tuple[int, str]]:
        return ((code, fields[0]) for code, fields in self._lines(name))

    def _having(self, name: str, value: str) -> set[int]:
        return {code for code, found in self._values(name) if found == value}

    def _read_unicode_data(self) -> None:
        self.category: dict[int, str] = {}
        self.combining: dict[int, int] = {}
        decomposed: dict[int, tuple[int, ...]] = {}
        first = 0
        for line in (self.folder / "UnicodeData.txt").read_text(encoding="utf-8").splitlines():
            number, name, category, combining, _, mapping, *_ = line.split(";")
            code = int(number, 16)
            if name.endswith(", First>"):
                first = code
                continue
            for each in range(first if name.endswith(", Last>") else code, code + 1):
                self.category[each] = category
            if combining != "0":
                self.combining[code] = int(combining)
            if mapping and not mapping.startswith("<"):
                decomposed[code] = tuple(int(part, 16) for part in mapping.split())
        #: The pairs that compose (Unicode, definition D114), without those whose characters folding replaces.
        self.composed = {
            pair: code
            for code, pair in decomposed.items()
            if code not in self.never_composed and not any(part in self.folded for part in pair)
        }
        left = {code for pair in self.composed.items() for code in (*pair[0], pair[1])} & self.folded.keys()
        assert not left, f"folding replaces what composition gives: {sorted(left)}"
        self.seconds = {second for _, second in self.composed}

    def break_of(self, code: int) -> str:
        """Word_Break, told apart by whether the character is a pictograph."""
        value = self.word_break.get(code, "Other")
        if code in self.pictographs:
            return {"Other": "Pictograph", "ALetter": "ALetter_Pictograph"}[value]
        return value

    def _is_alphanumeric(self, code: int) -> bool:
        return self.category.get(code, "Cn")[0] in "LN" or code in self.alphabetic

    def _own_kind(self, code: int) -> int:
        if self.word_break.get(code) in JOINED:
            return NONE
        if self._is_alphanumeric(code):
            if (
                code in self.ideographic
                or self.script.get(code) in EAST_SCRIPTS
                or self.word_break.get(code) == "Katakana"
            ):
                return EAST
            return SOUTHEAST if self.line_break.get(code) == "SA" else WORD
        if self.word_break.get(code) == "Regional_Indicator":
            return WORD
        is_picture = code in self.emoji and code in self.pictographs and self.category.get(code) == "So"
        return WORD if is_picture and code >= PICTOGRAPHS_FROM else NONE

    def kind_of(self, code: int) -> int:
        """NONE, WORD, EAST or SOUTHEAST; a sign that folding makes letters of, as ㎏, is of the kind of the letters."""
        kind = self._own_kind(code)
        if kind == NONE and self.word_break.get(code, "Other") == "Other":
            kinds = {self._own_kind(part) for part in self.folded.get(code, ())}
            kind = EAST if kinds == {EAST} else WORD if kinds - {NONE} else NONE
        return kind

    def is_mark(self, code: int) -> bool:
        """Whether the character folded may change its place, or compose with what stands before it."""
        return any(
            part in self.combining or part in self.seconds or any(part in jamo for jamo in FOLLOWING_JAMO)
            for part in self.folded.get(code, (code,))
        )

    def class_of(self, code: int) -> int:
        """The byte of a character: Word_Break, kind and mark."""
        return BREAKS.index(self.break_of(code)) | self.kind_of(code) << KIND_SHIFT | self.is_mark(code) << MARK_SHIFT


class Trie:
    """A table of a value for each character in three stages; equal blocks are stored once."""

    def __init__(self, values: Sequence[int], value_bytes: int) -> None:
        def built(low: int, middle: int) -> tuple[int, list[list[int]]]:
            index, leaves = self._shared(values, 1 << low)
            top, blocks = self._shared(index, 1 << middle)
            sizes = [len(top) * self._width(top), len(blocks) * self._width(blocks), len(leaves) * value_bytes]
            return sum(sizes), [top, blocks, leaves]

        tried = {(low, middle): built(low, middle) for low in range(3, 7) for middle in range(3, 8)}
        (self.low_bits, self.middle_bits), (self.size, self.stages) = min(tried.items(), key=lambda item: item[1][0])
        self.value_bytes = value_bytes

    @staticmethod
    def _shared(values: Sequence[int], size: int) -> tuple[list[int], list[int]]:
        """The number of each block of values, and the blocks one after the other."""
        places: dict[tuple[int, ...], int] = {}
        index = [
            places.setdefault(tuple(values[start : start + size]), len(places)) for start in range(0, len(values), size)
        ]
        return index, [value for block in places for value in block]

    @staticmethod
    def _width(values: Iterable[int]) -> int:
        return 1 if max(values) < 256 else 2

    def check(self, name: str) -> str:
        """Fails to compile where unicode.h takes other blocks for granted."""
        tests = f"UNICODE_{name}_LOW == {self.low_bits} && UNICODE_{name}_MIDDLE == {self.middle_bits}"
        return f'_Static_assert({tests}, "other blocks are smaller now: change unicode.h");\n\n'

    def write(self, name: str) -> str:
        """The definitions of the stages."""
        types = [f"uint{8 * self._width(stage)}_t" for stage in self.stages[:2]] + [f"uint{8 * self.value_bytes}_t"]
        return "".join(
            array(f"unicode_{name}_{stage}", ctype, values)
            for stage, ctype, values in zip(("top", "middle", "leaves"), types, self.stages, strict=True)
        )


def array(name: str, ctype: str, values: Sequence[int]) -> str:
    """The definition of an array, in lines of 120 characters."""
    lines, line = [], "   "
    for value in values:
        if len(line) + len(str(value)) + 2 > 120:
            lines.append(line)
            line = "   "
        line += f" {value},"
    return f"const {ctype} {name}[{len(values)}] = {{\n" + "\n".join([*lines, line]) + "\n};\n\n"


def pool_of(sequences: Iterable[tuple[int, ...]]) -> tuple[list[int], dict[tuple[int, ...], int]]:
    """All sequences in UTF-16, one after the other or within another, and the code of each: length and place.

    A code is ``length << 13 | place`` for a length of up to 6 units, and ``7 << 13 | place`` if the unit at the place
    is the length. Code 0 stands for a character that folding leaves as it is. So the pool begins with two units of no
    sequence, and the code of the empty sequence is 1.
    """
    units = {seq: b"".join(chr(code).encode("utf-16-le") for code in seq) for seq in sequences}
    pool = b"\0\0\0\0"
    codes: dict[tuple[int, ...], int] = {(): 1}
    for seq in sorted(units, key=lambda seq: (-len(units[seq]), seq)):
        if not seq:
            continue
        length = len(units[seq]) // 2
        wanted = units[seq] if length < 7 else length.to_bytes(2, "little") + units[seq]
        place = pool.find(wanted)
        while place > 0 and place % 2:
            place = pool.find(wanted, place + 1)
        if place < 0:
            place = len(pool)
            pool += wanted
        codes[seq] = min(length, 7) << 13 | place // 2
    assert len(pool) // 2 < 1 << 13, "the pool of foldings is too large for its codes"
    return [int.from_bytes(pool[at : at + 2], "little") for at in range(0, len(pool), 2)], codes


def combining_ranges(combining: dict[int, int]) -> list[tuple[int, int, int]]:
    """First and last character of each run of equal classes, and the class."""
    runs: list[tuple[int, int, int]] = []
    for code, value in sorted(combining.items()):
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], code, value)
        else:
            runs.append((code, code, value))
    return runs


def tables(db: Database) -> str:
    """The text of unicode_tables.c."""
    classes = Trie([db.class_of(code) for code in range(CODES)], 1)
    pool, codes = pool_of(set(db.folded.values()))
    foldings = Trie([codes[db.folded[code]] if code in db.folded else 0 for code in range(CODES)], 2)
    pairs = sorted((first, second, code) for (first, second), code in db.composed.items())
    by_composed = sorted(range(len(pairs)), key=lambda place: pairs[place][2])
    runs = combining_ranges(db.combining)
    assert all(last - first < 256 for first, last, _ in runs)
    size = classes.size + foldings.size + 2 * len(pool) + 14 * len(pairs) + 5 * len(runs)
    print(f"Unicode {db.version}: {size:,} bytes")
    parts = [
        f"""/* Properties of characters, Unicode {db.version}: {size:,} bytes.  native/make_unicode.py wrote them.
 * The data is of the Unicode Consortium: LICENSE.Unicode.txt. */
#include "unicode.h"

const char unicode_version[] = "{db.version}";

/* clang-format off */

""",
        classes.check("CLASS"),
        foldings.check("FOLD"),
        classes.write("class"),
        foldings.write("fold"),
        array("unicode_fold_pool", "uint16_t", pool),
        f"const uint32_t unicode_n_pairs = {len(pairs)};\n",
        array("unicode_pairs", "uint32_t", [part for pair in pairs for part in pair]),
        array("unicode_by_composed", "uint16_t", by_composed),
        f"const uint32_t unicode_n_runs = {len(runs)};\n",
        array("unicode_run_starts", "uint32_t", [first << 8 | value for first, _, value in runs]),
        array("unicode_run_lengths", "uint8_t", [last - first for first, last, _ in runs]),
    ]
    return "".join(parts).rstrip() + "\n"


def cases(db: Database) -> str:
    """The cases of WordBreakTest.txt without its comments: the characters of each segment, and a bar between two."""
    text = (db.folder / "auxiliary" / "WordBreakTest.txt").read_text(encoding="utf-8")
    if f"-{db.version}.txt" not in text.partition("\n")[0]:
        raise SystemExit(f"WordBreakTest.txt is not of version {db.version}")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    kept = [line.strip("÷ ").replace(" × ", " ").replace("÷", "|") for line in lines if line]
    head = f"# WordBreakTest-{db.version}.txt of the Unicode Consortium, shortened by native/make_unicode.py.\n"
    return head + "# Its licence: LICENSE.Unicode.txt.\n" + "\n".join(kept) + "\n"


def main(arguments: list[str]) -> None:
    """Command line entry point."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise SystemExit(__doc__)
    db = Database(Path(arguments[0]))
    TABLES.write_text(tables(db), encoding="utf-8")
    CASES.write_text(cases(db), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
