"""The words of texts: Unicode's own cases, a second segmenter, slow and plain, and the folding of unicodedata."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb._native import words as native
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.words import Word, segments, words

CASES = Path(__file__).resolve().parents[1] / "data" / "word_break.txt"


def terms(text: str) -> list[str]:
    return [word.term for word in words(text)]


# ---- a second segmenter, rule by rule

#: Characters of every value of Word_Break and every kind, with both: N of no word, W of one, E and S of pairs.
ALPHABET = {
    **{
        "\r": ("CR", "N"),
        "\n": ("LF", "N"),
        "\x0b": ("Newline", "N"),
        "\u2028": ("Newline", "N"),
        "\x85": ("Newline", "N"),
    },
    **{"\u0308": ("Extend", "N"), "\u0301": ("Extend", "N"), "\ufe0f": ("Extend", "N"), "\U0001f3fb": ("Extend", "N")},
    **{"\u200d": ("ZWJ", "N"), "\u00ad": ("Format", "N"), "\u2060": ("Format", "N")},
    **{"a": ("ALetter", "W"), "B": ("ALetter", "W"), "\u00e9": ("ALetter", "W"), "\u0416": ("ALetter", "W")},
    **{"\u0905": ("ALetter", "W"), "\u02c2": ("ALetter", "N"), "\ud55c": ("ALetter", "E"), "\uac00": ("ALetter", "E")},
    **{"\u05d0": ("Hebrew", "W"), "\u05e6": ("Hebrew", "W"), "'": ("Single", "N"), '"': ("Double", "N")},
    **{".": ("MidNumLet", "N"), "\u2019": ("MidNumLet", "N"), ":": ("MidLetter", "N"), "\u00b7": ("MidLetter", "N")},
    **{",": ("MidNum", "N"), ";": ("MidNum", "N"), "7": ("Numeric", "W"), "\u0663": ("Numeric", "W")},
    **{"_": ("ExtendNumLet", "N"), "\u203f": ("ExtendNumLet", "N"), "\u202f": ("ExtendNumLet", "N")},
    **{"\u30ab": ("Katakana", "E"), "\u30fc": ("Katakana", "E"), "\u4e00": ("Other", "E"), "\u3042": ("Other", "E")},
    **{"\u0e01": ("Other", "S"), "\u1000": ("Other", "S"), "\u00bd": ("Other", "W"), "\u338f": ("Other", "W")},
    **{"\U0001f1e9": ("RI", "W"), "\U0001f1ea": ("RI", "W"), " ": ("Space", "N"), "\u3000": ("Space", "N")},
    **{"\u00a0": ("Other", "N"), "*": ("Other", "N"), "-": ("Other", "N"), "\u3001": ("Other", "N")},
    **{"\U0001f600": ("Pictograph", "W"), "\u00a9": ("Pictograph", "N"), "\u24c2": ("ALetter+Pictograph", "W")},
}
LETTERS = {"ALetter", "ALetter+Pictograph", "Hebrew"}
JOINED = {"Extend", "Format", "ZWJ"}
LINE_ENDS = {"CR", "LF", "Newline"}
MIDDLE_OF_LETTERS, MIDDLE_OF_DIGITS = {"MidLetter", "MidNumLet", "Single"}, {"MidNum", "MidNumLet", "Single"}
BEGINS = LETTERS | {"Numeric", "Katakana", "ExtendNumLet"}


def is_boundary(values: list[str], at: int) -> bool:
    """Whether UAX #29 has a boundary before a character, by the values of all characters: its rules in their order."""
    left, right = values[at - 1], values[at]
    if left == "CR" and right == "LF":  # WB3
        return False
    if left in LINE_ENDS or right in LINE_ENDS:  # WB3a, WB3b
        return True
    if left == "ZWJ" and "Pictograph" in right:  # WB3c
        return False
    if left == right == "Space":  # WB3d
        return False
    if right in JOINED:  # WB4
        return False
    # WB4: what joins counts with the character before it; after the start of a line there is none.
    before: list[str] = []
    for value in values[:at]:
        if value not in JOINED or not before or before[-1] in LINE_ENDS:
            before.append(value)
    after = [value for value in values[at + 1 :] if value not in JOINED]
    one, two = before[-1], before[-2] if len(before) > 1 else ""
    following = after[0] if after else ""
    joins = (
        (one in LETTERS and right in LETTERS)  # WB5
        or (one in LETTERS and right in MIDDLE_OF_LETTERS and following in LETTERS)  # WB6
        or (two in LETTERS and one in MIDDLE_OF_LETTERS and right in LETTERS)  # WB7
        or (one == "Hebrew" and right == "Single")  # WB7a
        or (one == "Hebrew" and right == "Double" and following == "Hebrew")  # WB7b
        or (two == "Hebrew" and one == "Double" and right == "Hebrew")  # WB7c
        or (one == "Numeric" and right == "Numeric")  # WB8
        or (one in LETTERS and right == "Numeric")  # WB9
        or (one == "Numeric" and right in LETTERS)  # WB10
        or (two == "Numeric" and one in MIDDLE_OF_DIGITS and right == "Numeric")  # WB11
        or (one == "Numeric" and right in MIDDLE_OF_DIGITS and following == "Numeric")  # WB12
        or (one == "Katakana" and right == "Katakana")  # WB13
        or (one in BEGINS and right == "ExtendNumLet")  # WB13a
        or (one == "ExtendNumLet" and right in BEGINS - {"ExtendNumLet"})  # WB13b
    )
    if one == right == "RI":  # WB15, WB16
        flags = 0
        while flags < len(before) and before[-1 - flags] == "RI":
            flags += 1
        joins = flags % 2 == 1
    return not joins  # WB999


def plain_segments(values: list[str]) -> list[int]:
    return [at for at in range(1, len(values)) if is_boundary(values, at)] + [len(values)] * bool(values)


def plain_words(text: str) -> Iterator[tuple[int, int]]:
    """Where the words are, by characters with what is joined to them: pairs of neighbours, or the rest of a segment."""
    values = [ALPHABET[character][0] for character in text]
    ends = plain_segments(values)
    segment = [sum(end <= at for end in ends) for at in range(len(text))]
    units: list[list[int]] = []
    for at, value in enumerate(values):
        if value in JOINED and units and segment[at] == segment[at - 1]:
            units[-1][1] = at + 1
        else:
            units.append([at, at + 1])
    kinds = [ALPHABET[text[start]][1] for start, _ in units]
    at = 0
    while at < len(units):
        kind, first, last = kinds[at], at, at + 1
        if kind in "ES":
            while last < len(units) and kinds[last] == kind:
                last += 1
            for one in range(first, max(last - 1, first + 1)):
                yield units[one][0], units[min(one + 1, last - 1)][1]
        else:
            here = segment[units[at][0]]
            while last < len(units) and kinds[last] not in "ES" and segment[units[last][0]] == here:
                last += 1
            at, chosen = last, list(range(first, last))
            begins = first == 0 or segment[units[first - 1][0]] != here
            while chosen and kinds[chosen[0]] == "N" and not (begins and values[units[chosen[0]][0]] in BEGINS):
                del chosen[0]
            if last < len(units) and segment[units[last][0]] == here:
                while chosen and kinds[chosen[-1]] == "N":
                    del chosen[-1]
            if any(kinds[unit] == "W" for unit in chosen):
                yield units[chosen[0]][0], units[chosen[-1]][1]
        at = last


#: Default_Ignorable_Code_Point, which unicodedata lacks.
IGNORED = [
    *((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    *((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
]
QUOTES = str.maketrans("\u2018\u2019\u201b\u05f3\u05f4", "'''" + "'" + '"')


@cache
def is_ignored(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in IGNORED)


def plain_fold(text: str) -> str:
    """NFKC_Casefold by its definition (Unicode, R5, and the derivation of NFKC_CF), and one form of each quotation."""
    before = None
    while text != before:
        before = text
        text = "".join(c for c in unicodedata.normalize("NFKC", text.casefold()) if not is_ignored(c))
    return text.translate(QUOTES)


def cut(term: str) -> str:
    return term.encode()[: native.WORD_BYTES_MAX].decode(errors="ignore")


def check_against_plain(text: str) -> None:
    """The same boundaries, words and terms as the slow segmenter has."""
    assert segments(text) == plain_segments([ALPHABET[character][0] for character in text])
    expected = [
        Word(term, start, end) for start, end in plain_words(text) if (term := cut(plain_fold(text[start:end])))
    ]
    assert words(text) == expected


# ---- boundaries


def cases() -> list[list[str]]:
    lines = CASES.read_text(encoding="utf-8").splitlines()
    return [
        ["".join(chr(int(code, 16)) for code in part.split()) for part in line.split("|")]
        for line in lines
        if not line.startswith("#")
    ]


def test_every_case_of_unicode_is_segmented_as_it_says() -> None:
    assert native.UNICODE_VERSION in CASES.read_text(encoding="utf-8").partition("\n")[0]
    assert len(cases()) == 1823
    for parts in cases():
        ends = [len("".join(parts[: at + 1])) for at in range(len(parts))]
        assert segments("".join(parts)) == ends, parts


def test_the_slow_segmenter_knows_the_cases_of_unicode() -> None:
    known = [parts for parts in cases() if set("".join(parts)) <= ALPHABET.keys()]
    assert len(known) > 150
    for parts in known:
        text = "".join(parts)
        ends = [len("".join(parts[: at + 1])) for at in range(len(parts))]
        assert plain_segments([ALPHABET[character][0] for character in text]) == ends
        check_against_plain(text)


@settings(max_examples=1000, deadline=None)
@given(st.text(st.sampled_from(sorted(ALPHABET)), max_size=24))
def test_words_are_those_of_the_slow_segmenter(text: str) -> None:
    check_against_plain(text)


def test_every_three_characters_are_segmented_as_the_slow_segmenter_does() -> None:
    first_of = {value: character for character, (value, _) in reversed(ALPHABET.items())}
    lines = ["".join(three) + "\n" for three in product(first_of.values(), repeat=3)]
    expected, start = [], 0
    for line in lines:
        expected += [start + end for end in plain_segments([ALPHABET[character][0] for character in line])]
        start += len(line)
    assert segments("".join(lines)) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_its_words_in_order_and_folding_a_term_changes_nothing(text: str) -> None:
    found = words(text)
    assert all(0 <= word.start < word.end <= len(text) for word in found)
    assert all(a.start < b.start and a.end <= b.end for a, b in pairwise(found))
    for word in found:
        assert 1 <= len(word.term.encode()) <= native.WORD_BYTES_MAX
        again = terms(word.term)
        assert len(again) != 1 or again == [word.term] or word.term.strip(again[0]) != word.term


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_have_words_within_them(data: bytes) -> None:
    room, diag = len(data) + 1, ffi.new("fvdb_diag *")
    term_bytes, ends, starts = ffi.new("uint8_t[]", 40 * room), ffi.new("uint32_t[]", room), ffi.new("uint32_t[]", room)
    term_ends, count, used = ffi.new("uint64_t[]", room), ffi.new("uint32_t *"), ffi.new("uint64_t *")
    arguments = (term_bytes, term_ends, starts, ends, count, used, diag)
    assert lib.fvdb_text_words(data, len(data), room, 40 * room, *arguments) == lib.FVDB_OK
    assert count[0] <= len(data)
    for at in range(count[0]):
        assert starts[at] < ends[at] <= len(data)
        data[starts[at] : ends[at]].decode()  # words are whole characters
    bytes(ffi.buffer(term_bytes, used[0])).decode()


# ---- folding


def is_newer_here() -> bool:
    ours, theirs = (tuple(map(int, v.split("."))) for v in (native.UNICODE_VERSION, unicodedata.unidata_version))
    return theirs > ours


def test_every_character_is_folded_as_unicodedata_does() -> None:
    """Characters that the running Python's version of Unicode has, too, and that are of a word alone."""
    known = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    text = "\n".join(known)
    found = words(text)
    assert len(found) > 120_000
    wrong = [
        (ascii(text[word.start : word.end]), ascii(word.term))
        for word in found
        if word.term != plain_fold(text[word.start : word.end])
    ]
    # Characters of a newer version may have foldings that the tables lack.
    assert len(wrong) <= (50 if is_newer_here() else 0), wrong[:10]


def test_marks_are_ordered_and_composed_as_unicodedata_does() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    pick = random.Random(seed)
    marks = [chr(c) for c in range(0x300, 0x370) if c != 0x34F] + list(
        "\u0591\u05b0\u05bc\u05c1\u064b\u0651\u0653\u3099\u0e38"
    )
    bases = "aeiouAEIOUyYsScCdDnN\u00e9\u1e9b\u0439\u03b1\u03c9\u0622\u1ea5\u0105\u01d7"
    for _ in range(2000):
        text = pick.choice(bases) + "".join(pick.choices(marks, k=pick.randrange(6)))
        if "\u0345" in text or "\u0e38" in text[:1]:
            continue  # an iota below is a letter once folded: then the order of the other marks depends on the text
        assert terms(text) == [plain_fold(text)], ascii(text)


def test_hangul_composes() -> None:
    syllables = "".join(chr(code) for code in range(0xAC00, 0xD7A4))
    decomposed = unicodedata.normalize("NFD", syllables)
    assert terms(decomposed) == terms(syllables)
    assert terms(decomposed)[:2] == ["가각", "각갂"]


def test_a_long_word_is_cut_between_two_characters() -> None:
    for letter, size in (("a", 255), ("é", 254), ("अ", 255), ("\U00010428", 252)):
        for length in range(size // len(letter.encode()) - 2, 400):
            [word] = words(letter * length)
            assert word == Word(cut(letter * length), 0, length)
            assert len(word.term.encode()) <= size


# ---- what is a word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick (“brown”) fox can't jump 32.3 feet, right?", "the quick brown fox can't jump 32.3 feet right"),
        ("can’t CAN'T", "can't can't"),
        ("snake_case kebab-case a/b user@example.com v1.2.3", "snake_case kebab case a b user example.com v1.2.3"),
        ("1,000.5 3:4 10% #tag $5", "1,000.5 3 4 10 tag 5"),
        ("Straße STRASSE ﬁnal ﬃ ＡＢＣ ㎏ Ⅳ", "strasse strasse final ffi abc kg iv"),
        ("Ελλάς ΕΛΛΆΣ Москва", "ελλάσ ελλάσ москва"),
        ("日本語", "日本 本語"),
        ("日", "日"),
        ("東京2024年、カメラ", "東京 2024 年 カメ メラ"),
        ("한국어 2024년", "한국 국어 2024 년"),
        ("ภาษาไทย", "ภา าษ ษา าไ ไท ทย"),
        ("ພາສາ", "ພາ າສ ສາ"),
        ("မြန်မာ", "မြန် န်မာ"),
        ("ខ្មែរ", "ខ្មែ មែរ"),
        ('צה״ל צה"ל', 'צה"ל צה"ל'),
        ("👍🏽 ❤️ 👩‍👩‍👧 🇩🇪🇫🇷", "👍🏽 ❤ 👩👩👧 🇩🇪 🇫🇷"),
        ("— … © ™ _ __ '", "tm"),
    ],
)
def test_texts_of_many_kinds(text: str, expected: str) -> None:
    assert terms(text) == expected.split()


def test_no_script_is_without_words() -> None:
    """Each letter and digit that this Python knows, alone, is a word."""
    every = map(chr, range(sys.maxunicode + 1))
    known = [c for c in every if unicodedata.category(c)[0] in "LN" and plain_fold(c)]
    text = "\n".join(known)
    missing = set(known) - {text[word.start] for word in words(text)} - set("ﾞﾟ")  # marks that join a narrow Kana
    assert len(missing) <= (20_000 if is_newer_here() else 0), sorted(missing)[:10]


def test_places_count_characters() -> None:
    text = "é \U0001f600 日本 \ud800x"
    assert words(text) == [
        Word("é", 0, 1),
        Word("\U0001f600", 2, 3),
        Word("日本", 4, 6),
        Word("x", 8, 9),
    ]
    assert [text[word.start : word.end] for word in words(text)] == ["é", "\U0001f600", "日本", "x"]


def test_texts_of_many_words_and_long_terms_take_another_try() -> None:
    assert terms("a " * 10_000) == ["a"] * 10_000
    assert terms("ﷺ " * 100) == ["صلى الله عليه وسلم"] * 100
    assert terms("ﷺ " * 1_000) == ["صلى الله عليه وسلم"] * 1_000
    assert terms("日本" * 2_000)[-1] == "日本"
    assert words("") == segments("") == []


def test_threads_do_not_share_what_they_find() -> None:
    texts = [f"{letter * 5} " * 50 for letter in "abcdé"] * 40
    with ThreadPoolExecutor(5) as workers:
        assert list(workers.map(terms, texts)) == [text.split() for text in texts]


def test_a_text_that_is_too_long_is_refused() -> None:
    diag, count, used = ffi.new("fvdb_diag *"), ffi.new("uint32_t *"), ffi.new("uint64_t *")
    none = [ffi.NULL] * 4
    status = lib.fvdb_text_words(b"", native.TEXT_BYTES_MAX + 1, 0, 0, *none, count, used, diag)
    assert status == lib.FVDB_ERR_ARGUMENT
    with pytest.raises(InvalidInputError, match="the text is too long"):
        native.raise_status(status, diag)
