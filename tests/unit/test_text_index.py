"""The native index of words against a plain scorer in float64: changes, queries, save and load, lazy loads, damage."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import VectorDBError
from fabstir_vectordb._native.call import NativeCancelled
from fabstir_vectordb._native.handle import NO_SLOT, Control
from fabstir_vectordb._native.text import (
    CHUNK_BYTES_MIN,
    EXCLUDED,
    FIELD_GAP,
    PART_TEXT_DICTIONARY,
    PART_TEXT_HEAD,
    PART_TEXT_POSITIONS,
    PART_TEXT_POSTINGS,
    PART_TEXT_STREAMS,
    PHRASE,
    PREFIX,
    PREFIX_TERMS_MAX,
    QUERY_TERMS_MAX,
    REQUIRED,
    STEM_MARK,
    TERMS_BOTH,
    TERMS_STEMS,
    TERMS_WORDS,
    NativeText,
    TextClause,
    TextPart,
    TextQuery,
    TextTerm,
)
from fabstir_vectordb._native.words import words
from fabstir_vectordb.errors import IndexStateError, IntegrityError, InvalidInputError, NotFoundError

SEED = 20_261_126
K1, B = 1.2, 0.75
# Of the highest score; most of it is for queries whose prefixes stand for a hundred terms.
TOLERANCE = 5e-6
WORDS = [f"{first}{second}" for first in ("a", "ab", "abc", "b", "ca", "car", "zoo") for second in ("", "x", "xy", "q")]
KINDS = [TERMS_WORDS, TERMS_STEMS, TERMS_BOTH]


def stem(word: str) -> str:
    """A stemmer for tests: drops an x or y at the end; `zoo` is a stop word."""
    return "" if word == "zoo" else word.rstrip("xy") or word


class Model:
    """What an index should say: texts by slot, and sums over all of them for each question."""

    def __init__(self, terms: int) -> None:
        self.terms = terms
        self.rows: dict[int, list[str]] = {}

    def places(self, slot: int) -> list[tuple[int, list[str]]]:
        """The position and terms of each indexed word."""
        found, position = [], 0
        for text in self.rows[slot]:
            for word in text.split():
                if terms := self.terms_of(word):
                    found.append((position, terms))
                position += 1
            position += FIELD_GAP
        return found

    def terms_of(self, word: str) -> list[str]:
        if self.terms == TERMS_WORDS:
            return [word]
        if not stem(word):
            return []
        return [stem(word)] if self.terms == TERMS_STEMS else [word, STEM_MARK + stem(word)]

    def search(self, clauses: Sequence[TextClause]) -> dict[int, float]:
        places = {slot: self.places(slot) for slot in self.rows}
        counts: dict[int, dict[str, int]] = {slot: {} for slot in places}
        df: dict[str, int] = {}
        for slot, found in places.items():
            for _, terms in found:
                for term in terms:
                    counts[slot][term] = counts[slot].get(term, 0) + 1
            for term in counts[slot]:
                df[term] = df.get(term, 0) + 1
        n, length_sum = len(places), sum(map(len, places.values()))
        average = length_sum / n if n and length_sum else 1.0

        def score(slot: int, term: str) -> float:
            tf, rows = counts[slot].get(term, 0), df.get(term, 0)
            length = len(places[slot])
            idf = math.log(1 + (n - rows + 0.5) / (rows + 0.5))
            return idf * tf / (tf + K1 * (1 - B + B * length / average)) if tf else 0.0

        def expanded(clause: TextClause) -> list[tuple[str, float]]:
            if not clause.flags & PREFIX:
                return [(term, weight) for term, weight, _ in clause.terms]
            found = []
            for term, weight, _ in clause.terms:
                fitting = sorted((-rows, other.encode()) for other, rows in df.items() if other.startswith(term))
                found += [(other.decode(), weight) for _, other in fitting[:PREFIX_TERMS_MAX]]
            return found

        def matches(slot: int, clause: TextClause) -> bool:
            if not clause.flags & PHRASE:
                return any(term in counts[slot] for term, _ in expanded(clause))
            if any(term.startswith(STEM_MARK) for term, _, _ in clause.terms):
                return False  # a stem has no positions
            at = dict(places[slot])
            starts = {position - offset for position in at for _, _, offset in clause.terms[:1]}
            return any(all(term in at.get(p + offset, ()) for term, _, offset in clause.terms) for p in starts)

        answer: dict[int, float] = {}
        for slot in places:
            fits = [matches(slot, clause) for clause in clauses]
            flags = [clause.flags for clause in clauses]
            if any(fit and flag & EXCLUDED for fit, flag in zip(fits, flags, strict=True)):
                continue
            if any(not fit and flag & REQUIRED for fit, flag in zip(fits, flags, strict=True)):
                continue
            scored = [c for c, fit in zip(clauses, fits, strict=True) if fit and not c.flags & EXCLUDED]
            if scored:
                answer[slot] = sum(weight * score(slot, term) for c in scored for term, weight in expanded(c))
        return answer


def change(
    text: NativeText, model: Model, added: dict[int, list[str]], removed: Sequence[int] = (), *, commit: bool = True
) -> None:
    """Makes a change in both."""
    slots = [slot for slot, texts in added.items() for _ in texts]
    gone = [slot for slot in removed for _ in model.rows[slot]]
    staged = text.stage(
        np.array(slots, dtype=np.uint32),
        [one for texts in added.values() for one in texts],
        np.array(gone, dtype=np.uint32),
        [one for slot in removed for one in model.rows[slot]],
    )
    if model.terms != TERMS_WORDS:
        staged.set_terms([stem(word) for word in staged.words()])
    staged.prepare()
    expected = staged.bytes_after()
    if commit:
        staged.commit()
        assert text.stats().bytes_total == expected
        for slot in removed:
            del model.rows[slot]
        model.rows |= added
    staged.close()


def renumber(text: NativeText, model: Model, slot_map: Sequence[int]) -> None:
    staged = text.stage_map(np.array(slot_map, dtype=np.uint32))
    staged.commit()
    staged.close()
    model.rows = {slot_map[slot]: texts for slot, texts in model.rows.items() if slot_map[slot] != NO_SLOT}


def random_text(rng: random.Random, most: int = 12) -> list[str]:
    texts = [
        " ".join(WORDS[min(int(rng.expovariate(0.15)), len(WORDS) - 1)] for _ in range(rng.randint(0, most)))
        for _ in range(rng.choice((1, 1, 1, 2)))
    ]
    return texts


def random_query(rng: random.Random, model: Model) -> list[TextClause]:
    def term(offset: int = 0) -> TextTerm:
        word = rng.choice([*WORDS, "nowhere"])
        terms = model.terms_of(word) or [word]
        return TextTerm(rng.choice(terms), rng.choice((1.0, 1.0, 0.5, 3.0)), offset)

    clauses = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice((0, 0, 0, 0, PREFIX, PHRASE, PHRASE))
        flags = kind | rng.choice((0, 0, 0, REQUIRED, EXCLUDED))
        if kind == PHRASE:
            clauses.append(TextClause([term(rng.choice((i, i, i + 1))) for i in range(rng.randint(1, 3))], flags))
        elif kind == PREFIX:
            clauses.append(TextClause([TextTerm(rng.choice(WORDS)[: rng.randint(0, 2)])], flags))
        else:
            clauses.append(TextClause([term() for _ in range(rng.randint(1, 5))], flags))
    return clauses


def check_search(
    text: NativeText, expected: dict[int, float], query: TextQuery, k: int, allow: set[int] | None
) -> None:
    bitmap = None
    if allow is not None:
        bitmap = np.zeros(4, dtype=np.uint64)
        for slot in allow:
            if slot < 256:
                bitmap[slot // 64] |= np.uint64(1 << slot % 64)
        expected = {slot: score for slot, score in expected.items() if slot in allow and slot < 256}
    hits = text.search(query, k, bitmap, count=True)
    assert hits.matches == len(expected)
    assert len(hits.slots) == min(k, len(expected))
    assert len(set(hits.slots.tolist())) == len(hits.slots)
    highest = max(expected.values(), default=0)
    tolerance = TOLERANCE * highest + 1e-12
    got = dict(zip(hits.slots.tolist(), hits.scores.tolist(), strict=True))
    for slot, score in got.items():
        assert abs(score - expected[slot]) <= tolerance, (slot, score, expected[slot])
    best = sorted(expected.values(), reverse=True)[:k]
    assert np.allclose(hits.scores, best, rtol=0, atol=tolerance)
    order = [(-score, slot) for slot, score in got.items()]
    assert order == sorted(order)


def check(text: NativeText, model: Model, rng: random.Random, queries: int = 6) -> None:
    text.validate()
    stats = text.stats()
    assert stats.rows == len(model.rows)
    assert stats.words == sum(len(model.places(slot)) for slot in model.rows)
    for _ in range(queries):
        clauses = random_query(rng, model)
        query, expected = TextQuery(clauses), model.search(clauses)
        check_search(text, expected, query, rng.choice((1, 3, 10, 500)), None)
        check_search(text, expected, query, 5, {slot for slot in range(300) if rng.random() < 0.5})
        slots = np.array(rng.choices(range(400), k=20), dtype=np.uint32)
        scores = text.score_slots(query, slots)
        wanted = [expected.get(slot, 0.0) for slot in slots.tolist()]
        assert np.allclose(scores, wanted, rtol=0, atol=TOLERANCE * max(expected.values(), default=0) + 1e-12)


def parts_of(text: NativeText, chunk_bytes: int = CHUNK_BYTES_MIN) -> dict[tuple[int, int], bytes]:
    return {(part.kind, part.number): bytes(text.write_part(part, chunk_bytes)) for part in text.parts(chunk_bytes)}


def load_begin(parts: dict[tuple[int, int], bytes], terms: int, chunk_bytes: int = CHUNK_BYTES_MIN) -> NativeText:
    sizes = [sum(len(raw) for (of, _), raw in parts.items() if of == kind) for kind in PART_TEXT_STREAMS]
    return NativeText.load(sum(kind == PART_TEXT_HEAD for kind, _ in parts), chunk_bytes, sizes, terms=terms)


def with_heads(parts: dict[tuple[int, int], bytes], terms: int) -> NativeText:
    """A load under way, of which the heads have come."""
    lazy = load_begin(parts, terms)
    for (kind, number), raw in parts.items():
        if kind == PART_TEXT_HEAD:
            lazy.load_part(kind, number, raw)
    return lazy


def load(parts: dict[tuple[int, int], bytes], terms: int, chunk_bytes: int = CHUNK_BYTES_MIN) -> NativeText:
    text = load_begin(parts, terms, chunk_bytes)
    for (kind, number), data in sorted(parts.items()):
        text.load_part(kind, number, data)
    text.load_end()
    return text


@pytest.mark.parametrize("terms", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_every_change_is_seen_at_once(terms: int, seed: int) -> None:
    rng = random.Random(SEED + seed)
    text, model = NativeText(terms=terms), Model(terms)
    end = 0
    for _ in range(20):
        match rng.choice(("add", "add", "add", "remove", "replace", "mix", "map", "load", "drop")):
            case "add":
                n = rng.choice((1, 1, 3, 40))
                change(text, model, {slot: random_text(rng) for slot in range(end, end + n)})
                end += n
            case "remove":
                change(text, model, {}, rng.sample(sorted(model.rows), min(len(model.rows), rng.choice((1, 2, 30)))))
            case "replace":
                slots = rng.sample(sorted(model.rows), min(len(model.rows), rng.choice((1, 5))))
                change(text, model, {slot: random_text(rng) for slot in slots}, slots)
            case "mix":
                gone = rng.sample(sorted(model.rows), min(len(model.rows), 4))
                change(text, model, {s: random_text(rng) for s in [*gone[:2], end + 1]}, gone)
                end += 2
            case "map":
                kept = [slot for slot in sorted(model.rows) if rng.random() < 0.9]
                rng.shuffle(kept)
                slot_map = [NO_SLOT] * end
                for new, slot in enumerate(kept):
                    slot_map[slot] = new
                renumber(text, model, slot_map)
                end = len(kept)
                assert text.stats().segments <= 1
            case "load":
                parts = parts_of(text)
                text.close()
                text = load(parts, terms)
                assert parts_of(text) == parts
            case _:
                change(text, model, {end: ["dropped"]}, commit=False)
        check(text, model, rng, 2)
    check(text, model, rng, 10)
    text.close()


def numbered(n: int, seed: int = 0) -> tuple[NativeText, Model]:
    """Some thousand rows over many blocks, from several changes."""
    rng = random.Random(SEED + seed)
    text, model = NativeText(), Model(TERMS_WORDS)
    for start, end in ((0, n * 3 // 4), (n * 3 // 4, n - 20), (n - 20, n)):
        change(text, model, {s: [" ".join([*random_text(rng, 30)[:1], f"r{s % 977}"])] for s in range(start, end)})
    gone = rng.sample(range(n), n // 50)
    change(text, model, {}, gone)
    replaced = rng.sample(sorted(model.rows), 5)
    change(text, model, {slot: random_text(rng) for slot in replaced}, replaced)
    return text, model


def test_long_postings_over_many_blocks() -> None:
    text, model = numbered(3_000)
    rng = random.Random(SEED)
    text.validate()
    for _ in range(4):
        clauses = random_query(rng, model)
        query, expected = TextQuery(clauses), model.search(clauses)
        check_search(text, expected, query, rng.choice((1, 10, 100)), None)
        check_search(text, expected, query, 10, {slot for slot in range(256) if rng.random() < 0.7})
    text.close()


def test_all_ways_through_windows_give_the_scores_of_single_rows() -> None:
    """Lists of all densities, in several windows: each window takes and looks into them in its own way."""
    rng = np.random.default_rng(SEED)
    rows, shares = 28_000, {"all": 0.9, "many": 0.2, "some": 0.05, "few": 0.01, "rare": 0.001}
    counts = {word: rng.binomial(1, share, rows) * rng.geometric(0.6, rows) for word, share in shares.items()}
    counts["some"][:10_000] = counts["few"][18_000:] = 0  # of some windows alone
    counts["long"] = np.where(rng.random(rows) < 0.01, 300, 1)
    names = list(counts)
    of_rows = np.stack(list(counts.values())).T
    texts = [" ".join(f"{name} " * int(n) for name, n in zip(names, of, strict=True)) for of in of_rows]
    text, slots = NativeText(), np.arange(rows, dtype=np.uint32)
    staged = text.stage(slots, texts)
    staged.prepare()
    staged.commit()
    staged.close()
    for size in range(1, len(names) + 1):
        for chosen in combinations(names, size):
            check_windows(text, TextQuery.of_terms(chosen), slots)
    text.close()


def check_windows(text: NativeText, query: TextQuery, slots: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
    """The best of a search, which leaves out what it can, are those of the scores of all rows, which do not."""
    scores = text.score_slots(query, slots)
    best = np.lexsort((slots, -scores))[:10]
    hits = text.search(query, 10)
    assert hits.slots.tolist() == best[scores[best] > 0].tolist()
    assert hits.scores.tolist() == scores[hits.slots].tolist()


def test_words_beside_their_stems_go_the_same_ways() -> None:
    """Forms of stems in many rows and few: a word is gone through with its stem, looked into, or joined with others."""
    rng = np.random.default_rng(SEED)
    rows = 28_000
    shares = {"a": 0.5, "ax": 0.2, "by": 0.1, "byx": 0.1, "c": 0.06, "cx": 0.03, "d": 0.035, "dy": 0.005, "ex": 0.04}
    counts = {word: rng.binomial(1, share, rows) * rng.geometric(0.6, rows) for word, share in shares.items()}
    counts["c"][:10_000] = counts["dy"][:18_000] = 0  # their stems are in windows without them
    counts["long"] = np.where(rng.random(rows) < 0.3, 20, 1)
    of_rows = np.stack(list(counts.values())).T
    texts = [" ".join(f"{name} " * int(n) for name, n in zip(counts, of, strict=True)) for of in of_rows]
    text, slots = NativeText(terms=TERMS_BOTH), np.arange(rows, dtype=np.uint32)
    staged = text.stage(slots, texts)
    staged.set_terms([stem(word) for word in staged.words()])
    staged.prepare()
    staged.commit()
    staged.close()
    for size in range(1, 5):
        for chosen in combinations(shares, size):
            both = [term for word in chosen for term in (word, STEM_MARK + stem(word))]
            for weight in (0.5, 1.0, 3.0):
                check_windows(text, TextQuery.of_terms(both, weight), slots)
    text.close()


def test_a_query_of_terms_is_one_of_clauses() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    change(text, model, {1: ["a b b"], 2: ["b c"], 3: ["c d é"]})
    for terms in (["a"], ["b", "c", "b"], ["é", "nowhere"], ["a\0b", "c"], ["", "c"], ["c", ""], [""], ["\1b", "c"]):
        weights = [1.0 if term.startswith(STEM_MARK) else 0.75 for term in terms]
        clauses = TextQuery([TextClause(list(map(TextTerm, terms, weights)))])
        one, other = (text.search(query, 5, count=True) for query in (TextQuery.of_terms(terms, 0.75), clauses))
        assert one.slots.tolist() == other.slots.tolist(), terms
        assert one.scores.tolist() == other.scores.tolist()
        assert one.matches == other.matches
    assert len(text.search(TextQuery.of_terms(["a"] * QUERY_TERMS_MAX), 5).slots) == 1
    check_refused(lambda: text.search(TextQuery.of_terms(["a"] * (QUERY_TERMS_MAX + 1)), 5))
    check_refused(lambda: text.search(TextQuery.of_terms(["a"]), 0))
    check_refused(lambda: text.search(TextQuery.of_terms(["a"], 0.0), 5))
    text.close()


def test_the_words_of_a_text_are_a_query() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    change(text, model, {1: ["Don't panic, said A"], 2: ["panic a A"], 3: ["b"]})
    for asked in ("A panic a?", "", "nowhere", "B \ud800 b don't " * 400):
        one = text.search_words(asked, 5, count=True)
        terms = [word.term for word in words(asked)][:QUERY_TERMS_MAX]
        other = text.search(TextQuery.of_terms(terms) if terms else TextQuery([]), 5, count=True)
        assert one.slots.tolist() == other.slots.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        assert one.matches == other.matches
    text.close()
    stems = NativeText(terms=TERMS_STEMS)
    check_refused(lambda: stems.search_words("a", 1))
    stems.close()


def test_few_segments_whatever_the_changes() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    rng = random.Random(SEED)
    most = 0
    for slot in range(600):
        change(text, model, {slot: random_text(rng)}, [slot - 5] if slot % 3 == 0 and slot > 5 else [])
        most = max(most, text.stats().segments)
    assert most <= 8
    check(text, model, rng)
    text.close()


def test_scores_do_not_depend_on_how_rows_came() -> None:
    """The same bits from one change, from many, and after others were there."""
    rng = random.Random(SEED)
    rows = {slot: random_text(rng) for slot in range(300)}
    at_once, one_by_one, detour = NativeText(), NativeText(), NativeText()
    change(at_once, Model(TERMS_WORDS), rows)
    model = Model(TERMS_WORDS)
    for slot, texts in rows.items():
        change(one_by_one, model, {slot: texts})
    other = Model(TERMS_WORDS)
    change(detour, other, {slot: random_text(rng) for slot in range(350)})
    change(detour, other, rows, list(rows))
    change(detour, other, {}, list(range(300, 350)))
    assert one_by_one.stats().segments > 1
    for _ in range(50):
        query = TextQuery(random_query(rng, model))
        answers = [text.search(query, 20) for text in (at_once, one_by_one, detour)]
        for answer in answers[1:]:
            assert answer.slots.tobytes() == answers[0].slots.tobytes()
            assert answer.scores.tobytes() == answers[0].scores.tobytes()
    for text in (one_by_one, detour):
        renumber(text, model, list(range(350)))
        assert parts_of(text) == parts_of(at_once)
    for text in (at_once, one_by_one, detour):
        text.close()


def test_a_vacuum_leaves_nothing_of_rows_that_left() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    texts = {slot: [f"common word{slot}"] for slot in range(100)}
    change(text, model, texts | {100: ["secretivelyremoved common"], 101: ["common forgotten"]})
    change(text, model, {}, [100])
    assert text.stats().left_rows == 1
    assert b"ecretivelyremoved" in b"".join(parts_of(text).values())
    renumber(text, model, [*range(100), NO_SLOT, NO_SLOT])  # slot 101 goes, and nobody said what words it had
    raw = b"".join(parts_of(text).values())
    assert b"ecretivelyremoved" not in raw
    assert b"forgotten" not in raw
    assert text.stats().left_rows == 0
    check(text, model, random.Random(SEED))
    text.close()


def test_ties_go_by_slot() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    change(text, model, {slot: ["same text"] for slot in range(500)})
    change(text, model, {7: ["same text"]}, [7])
    for k in (1, 10, 499):
        assert text.search(TextQuery.of_terms(["same"]), k).slots.tolist() == list(range(k))
    text.close()


def test_the_best_prefix_terms_are_those_in_most_rows() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    n = PREFIX_TERMS_MAX + 20
    change(text, model, {slot: [" ".join(f"pre{j:03d}" for j in range(slot, n))] for slot in range(n)})
    clauses = [TextClause([TextTerm("pre")], PREFIX)]
    check_search(text, model.search(clauses), TextQuery(clauses), 10, None)
    assert len(text.search(TextQuery(clauses), n).slots) == n
    text.close()


def test_lengths_beyond_a_byte() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    rng = random.Random(SEED)
    long = {slot: [" ".join(random_text(rng, 40)[0] for _ in range(slot * 4))] for slot in range(12)}
    change(text, model, long)
    check(text, model, rng)
    change(text, model, {20: ["abc " * 70_000 + "b"], 21: [""], 22: ["b"]})
    check(text, model, rng)
    text.close()


@pytest.mark.parametrize("terms", KINDS)
def test_a_lazy_load_answers_from_the_parts_that_it_asks_for(terms: int) -> None:
    rng = random.Random(SEED)
    text, model = NativeText(terms=terms), Model(terms)
    change(text, model, {slot: [f"w{slot} {random_text(rng, 30)[0]} v{slot % 700}"] for slot in range(3_000)})
    change(text, model, {slot: random_text(rng) for slot in range(3_000, 3_010)})
    change(text, model, {}, [5, 3_004])
    parts = parts_of(text)
    kinds = [kind for kind, _ in parts]
    assert all(kinds.count(kind) > 1 for kind in (PART_TEXT_DICTIONARY, PART_TEXT_POSTINGS, PART_TEXT_POSITIONS))
    for _ in range(15):
        lazy = with_heads(parts, terms)
        fetched: set[tuple[int, int]] = set()
        clauses = random_query(rng, model)
        query = TextQuery(clauses)
        rounds = 0
        while wanted := lazy.missing(query):
            with pytest.raises(InvalidInputError, match="missing"):
                lazy.search(query, 10)
            rounds += 1
            for part in wanted:
                assert len(parts[part.kind, part.number]) == part.size
                assert (part.kind, part.number) not in fetched
                fetched.add((part.kind, part.number))
                lazy.load_part(part.kind, part.number, parts[part.kind, part.number])
        assert rounds <= 2
        if not any(clause.flags & PHRASE for clause in clauses):
            assert not any(kind == PART_TEXT_POSITIONS for kind, _ in fetched)
        one, other = lazy.search(query, 10, count=True), text.search(query, 10, count=True)
        assert one.slots.tobytes() == other.slots.tobytes()
        assert one.scores.tobytes() == other.scores.tobytes()
        assert one.matches == other.matches
        slots = np.arange(0, 3_010, 7, dtype=np.uint32)
        assert lazy.score_slots(query, slots).tobytes() == text.score_slots(query, slots).tobytes()
        lazy.close()
    text.close()


def test_lists_that_have_not_come_are_not_remembered_as_equal() -> None:
    text = NativeText()
    rows = 20_000  # each word has lists of the same size, long enough to be remembered
    staged = text.stage(np.arange(rows, dtype=np.uint32), ["odd" if row % 2 else "even" for row in range(rows)])
    staged.prepare()
    staged.commit()
    staged.close()
    parts, query = parts_of(text), TextQuery.of_terms(["even", "odd"])
    lazy = with_heads(parts, TERMS_WORDS)
    while wanted := lazy.missing(query):
        for part in wanted:
            lazy.load_part(part.kind, part.number, parts[part.kind, part.number])
    for _ in range(2):
        one, other = lazy.search(query, 10, count=True), text.search(query, 10, count=True)
        assert one.slots.tolist() == other.slots.tolist() == list(range(10))
        assert one.scores.tobytes() == other.scores.tobytes()
        assert one.matches == other.matches == rows
    lazy.close()
    text.close()


def test_a_change_leaves_the_parts_of_old_segments() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    rng = random.Random(SEED)
    change(text, model, {slot: [f"w{slot}", *random_text(rng, 30)] for slot in range(2_000)})
    before = parts_of(text)
    change(text, model, {slot: random_text(rng) for slot in range(2_000, 2_020)}, [3, 4])
    after = parts_of(text)
    new = [key for key in after if before.get(key) != after[key]]
    assert all(before[key] == after[key] for key in before)
    assert sum(len(after[key]) for key in new) < sum(map(len, after.values())) / 20
    text.close()


def test_changes_are_refused_whole() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    change(text, model, {1: ["one"], 2: ["two"]})
    before = parts_of(text)
    with pytest.raises(NotFoundError):
        change(text, Model(TERMS_WORDS), {}, []) or text.stage(
            np.zeros(0, dtype=np.uint32), [], np.array([9], dtype=np.uint32), ["nine"]
        ).prepare()
    with pytest.raises(InvalidInputError):
        text.stage(np.array([2], dtype=np.uint32), ["again"]).prepare()
    with pytest.raises(InvalidInputError, match="twice"):
        text.stage(np.array([3, 4, 3], dtype=np.uint32), ["a", "b", "c"])
    with pytest.raises(InvalidInputError):
        text.stage_map(np.array([0, 7, 7], dtype=np.uint32))
    first, second = (text.stage(np.array([slot], dtype=np.uint32), ["x"]) for slot in (5, 6))
    for staged in (first, second):
        staged.prepare()
    with pytest.raises(InvalidInputError):
        text.stage(np.array([8], dtype=np.uint32), ["x"]).commit()
    assert parts_of(text) == before
    first.commit()
    with pytest.raises(InvalidInputError, match="changed since"):
        second.commit()
    second.prepare()
    second.commit()
    assert text.stats().rows == 4
    text.close()


def test_a_cancelled_change_is_dropped() -> None:
    text, control = NativeText(), Control()
    control.cancel()
    with pytest.raises(NativeCancelled):
        text.stage(np.array([1], dtype=np.uint32), ["one"], control=control)
    staged = text.stage(np.array([1], dtype=np.uint32), ["one"])
    with pytest.raises(NativeCancelled):
        staged.prepare(control)
    staged.prepare()
    staged.commit()
    assert text.stats().rows == 1
    text.close()


def test_terms_are_asked_for_once_a_change() -> None:
    text = NativeText(terms=TERMS_BOTH)
    staged = text.stage(np.array([1, 2], dtype=np.uint32), ["running runs Running", "runs far"])
    assert staged.words() == ["running", "runs", "far"]
    with pytest.raises(InvalidInputError, match="missing"):
        staged.prepare()
    with pytest.raises(InvalidInputError):
        staged.set_terms(["run", "run"])
    with pytest.raises(InvalidInputError):
        staged.set_terms(["r" * 256, "run", ""])
    staged.set_terms(["run", "run", ""])
    staged.prepare()
    staged.commit()
    assert text.stats().words == 4
    assert text.search(TextQuery.of_terms([STEM_MARK + "run"]), 5).slots.tolist() == [1, 2]
    assert text.search(TextQuery.of_terms(["running"]), 5).slots.tolist() == [1]
    assert text.search(TextQuery.of_terms(["far"]), 5).slots.tolist() == []
    text.close()


@pytest.mark.parametrize("n", [100, 300, 700])
@pytest.mark.parametrize("weight", [1.0, 0.5, 2.0, 0.75])
def test_a_word_that_is_the_only_one_of_its_stem_counts_as_two_terms(n: int, weight: float) -> None:
    # Rows of w0 alone have a list of their stem that is their word's; "w1" and "w1x" share a stem.
    model, text = Model(TERMS_BOTH), NativeText(terms=TERMS_BOTH)
    texts = {slot: " ".join([f"w{slot % 2}"] + ["w1x"] * (slot % 3) + ["z"] * (slot % 5)) for slot in range(n)}
    change(text, model, {slot: [one] for slot, one in texts.items()})
    for terms in (["w0"], ["w1", "w1x"], ["w0", "w1"], ["w0", "w0", "z", "w1x"]):
        both = [term for word in terms for term in (word, STEM_MARK + stem(word))]
        weighed = [TextTerm(term, 1.0 if term.startswith(STEM_MARK) else weight) for term in both]
        clauses = [TextClause(weighed)]
        expected = model.search(clauses)
        # Not beside each other, the two lists count for themselves: the same bits.
        apart = text.search(TextQuery([TextClause(sorted(weighed))]), n)
        beside = text.search(TextQuery(clauses), n)
        assert (beside.slots.tolist(), beside.scores.tolist()) == (apart.slots.tolist(), apart.scores.tolist())
        for query in (TextQuery(clauses), TextQuery.of_terms(both, weight)):
            check_search(text, expected, query, 10, None)
            check_search(text, expected, query, n, set(range(0, n, 3)))
            scores = text.score_slots(query, np.arange(n, dtype=np.uint32))
            assert np.allclose(scores, [expected.get(slot, 0.0) for slot in range(n)], rtol=1e-5)
    text.close()


@pytest.mark.parametrize(
    "clauses",
    [
        [TextClause([])],
        [TextClause([TextTerm("a", 0.0)])],
        [TextClause([TextTerm("a", math.nan)])],
        [TextClause([TextTerm("a", math.inf)])],
        [TextClause([TextTerm("a")], PREFIX | PHRASE)],
        [TextClause([TextTerm("a")], REQUIRED | EXCLUDED)],
        [TextClause([TextTerm("a")], 64)],
        [TextClause([TextTerm("a")] * (QUERY_TERMS_MAX + 1))],
    ],
)
def test_malformed_queries_are_refused(clauses: list[TextClause]) -> None:
    text = NativeText()
    with pytest.raises(InvalidInputError):
        text.search(TextQuery(clauses), 1)
    with pytest.raises(InvalidInputError):
        text.score_slots(TextQuery(clauses), np.zeros(1, dtype=np.uint32))
    text.close()


@pytest.mark.parametrize("settings", [{"k1": -1.0}, {"k1": math.nan}, {"b": 1.5}, {"terms": 3}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        NativeText(**settings)


def test_an_empty_index_answers() -> None:
    text = NativeText()
    assert text.search(TextQuery.of_terms(["a"]), 3, count=True).matches == 0
    assert text.search(TextQuery([]), 3).slots.tolist() == []
    assert text.parts(CHUNK_BYTES_MIN) == []
    empty = load({}, TERMS_WORDS)
    assert empty.stats().rows == 0
    for one in (text, empty):
        change(one, Model(TERMS_WORDS), {})
        one.close()


def test_weights_from_tiny_to_huge() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    change(text, model, {1: ["a b"], 2: ["b"], 3: ["a"]})
    for weight in (1e-30, 1e-10, 1e20, 1e30):
        clauses = [TextClause([TextTerm("a", weight), TextTerm("b")])]
        check_search(text, model.search(clauses), TextQuery(clauses), 3, None)
    text.close()


# ---- Hostile bytes


@pytest.fixture(scope="module")
def good() -> Iterator[dict[tuple[int, int], bytes]]:
    text, _ = numbered(2_500, 1)
    yield parts_of(text)
    text.close()


def use(text: NativeText) -> None:
    """Asks everything of an index; whatever it answers, it does not crash."""
    rng = random.Random(SEED)
    for _ in range(10):
        query = TextQuery(random_query(rng, Model(TERMS_WORDS)))
        text.search(query, 10, count=True)
        text.score_slots(query, np.arange(0, 2_600, 5, dtype=np.uint32))


def damaged(parts: dict[tuple[int, int], bytes], rng: random.Random) -> dict[tuple[int, int], bytes]:
    out = dict(parts)
    for _ in range(rng.choice((1, 1, 3))):
        key = rng.choice(list(out))
        raw = bytearray(out[key])
        at = rng.randrange(min(len(raw), rng.choice((100, len(raw)))))
        match rng.randrange(3):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                raw[at] = rng.randrange(256)
            case _:
                numbers = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\xff" * 9 + b"\1")
                number = rng.choice(numbers)[: len(raw) - at]
                raw[at : at + len(number)] = number
        out[key] = bytes(raw)
    return out


@pytest.mark.parametrize("seed", range(8))
def test_damaged_parts_are_refused_or_sound(good: dict[tuple[int, int], bytes], seed: int) -> None:
    rng = random.Random(SEED + seed)
    refused = 0
    for _ in range(40):
        parts = damaged(good, rng)
        if parts == good:
            continue
        try:
            text = load(parts, TERMS_WORDS)
        except VectorDBError as error:
            refused += isinstance(error, (IntegrityError, InvalidInputError, IndexStateError))
            continue
        use(text)
        text.validate()
        assert parts_of(text) == parts
        change(text, Model(TERMS_WORDS), {9_000: ["more words"]})
        renumber(text, Model(TERMS_WORDS), list(range(10_000)))
        text.close()
    assert refused > 20


@pytest.mark.parametrize("seed", range(8))
def test_damaged_parts_are_searched_without_harm(good: dict[tuple[int, int], bytes], seed: int) -> None:
    """While loading, nobody has checked them as a whole."""
    rng = random.Random(SEED + 100 + seed)
    for _ in range(25):
        parts = damaged(good, rng)
        text = load_begin(parts, TERMS_WORDS)
        with suppress(VectorDBError):
            for (kind, number), data in sorted(parts.items()):
                text.load_part(kind, number, data)
            use(text)
        text.close()


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 128:
            return value, at


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def with_size(
    parts: dict[tuple[int, int], bytes], field: int, to: Callable[[int], int]
) -> dict[tuple[int, int], bytes]:
    """The second term's size of postings (0) or of positions (1) becomes what `to` makes of where they begin."""
    dictionary, out = parts[PART_TEXT_DICTIONARY, 0], b""
    at = place = 0
    for term in range(3):
        begin = at
        _, at = read_varint(dictionary, at)
        size, at = read_varint(dictionary, at)
        at += size
        for _ in range(2):
            _, at = read_varint(dictionary, at)
        sizes = []
        for _ in range(2):
            values_begin = at
            value, at = read_varint(dictionary, at)
            sizes.append((values_begin, value, at))
        start, value, end = sizes[field]
        changed = varint(to(place)) if term == 1 else dictionary[start:end]
        out += dictionary[begin:start] + changed + dictionary[end:at]
        place += value
    assert at == len(dictionary)
    head = bytearray(parts[PART_TEXT_HEAD, 0])
    head[56:60] = len(out).to_bytes(4, "little")
    return {**parts, (PART_TEXT_HEAD, 0): bytes(head), (PART_TEXT_DICTIONARY, 0): out}


@pytest.mark.parametrize("clause", [TextClause([TextTerm("beta")]), TextClause([TextTerm("be")], PREFIX)])
@pytest.mark.parametrize("field", [0, 1])
@pytest.mark.parametrize("to", [lambda at: 2**64 - at, lambda at: 2**64 - 1, lambda at: 2**32 - at, lambda at: 10_000])
def test_a_size_that_wraps_is_refused_before_all_has_come(
    field: int, to: Callable[[int], int], clause: TextClause
) -> None:
    text = NativeText()
    change(text, Model(TERMS_WORDS), {0: ["alpha beta"], 1: ["beta gamma"], 2: ["alpha beta gamma"]})
    parts = with_size(parts_of(text), field, to)
    text.close()
    text, query = load_begin(parts, TERMS_WORDS), TextQuery([clause])
    for key in ((PART_TEXT_HEAD, 0), (PART_TEXT_DICTIONARY, 0)):
        text.load_part(*key, parts[key])
    for function in (
        lambda: text.missing(query),
        lambda: text.search(query, 10),
        lambda: text.score_slots(query, np.arange(3, dtype=np.uint32)),
    ):
        with pytest.raises(IntegrityError, match="dictionary"):
            function()
    assert text.missing(TextQuery([TextClause([TextTerm("alpha")])])), "a term before the damage is found"
    text.close()


def test_an_entry_that_shares_more_bytes_than_it_says_is_refused() -> None:
    """A search passes over entries by the number of shared bytes alone: a lower one would hide the terms behind it."""
    text = NativeText()
    change(text, Model(TERMS_WORDS), {0: ["alpha alphabet alphas"]})
    parts = parts_of(text)
    text.close()
    dictionary = parts[PART_TEXT_DICTIONARY, 0]
    assert dictionary.count(b"\5\3bet") == 1
    dictionary = dictionary.replace(b"\5\3bet", b"\4\4abet")
    head = bytearray(parts[PART_TEXT_HEAD, 0])
    head[56:60] = len(dictionary).to_bytes(4, "little")
    text = load_begin({**parts, (PART_TEXT_HEAD, 0): bytes(head), (PART_TEXT_DICTIONARY, 0): dictionary}, TERMS_WORDS)
    text.load_part(PART_TEXT_HEAD, 0, bytes(head))
    text.load_part(PART_TEXT_DICTIONARY, 0, dictionary)
    for word in ("alphabet", "alphas"):
        with pytest.raises(IntegrityError, match="dictionary"):
            text.missing(TextQuery.of_terms([word]))
    assert text.missing(TextQuery.of_terms(["alpha"])), "a term before the damage is found"
    for kind in (PART_TEXT_POSTINGS, PART_TEXT_POSITIONS):
        text.load_part(kind, 0, parts[kind, 0])
    with pytest.raises(IntegrityError):
        text.load_end()
    text.close()


def long_postings(skip_field: int, value: int) -> NativeText:
    """One word in 1,000 rows, so eight blocks; a field of every skip is another. All parts are here, unchecked."""
    text = NativeText()
    change(text, Model(TERMS_WORDS), {slot: ["b b b b b"] for slot in range(1_000)})
    parts = parts_of(text, 65_536)
    text.close()
    raw = bytearray(parts[PART_TEXT_POSTINGS, 0])
    for block in range(8):
        at = block * 20 + skip_field
        raw[at : at + 4] = value.to_bytes(4, "little")
    parts[PART_TEXT_POSTINGS, 0] = bytes(raw)
    text = load_begin(parts, TERMS_WORDS, 65_536)
    for key, data in sorted(parts.items()):
        text.load_part(*key, data)
    return text


@pytest.mark.parametrize("value", [0, 1, 3, 2**32 - 1])
def test_a_highest_frequency_that_is_wrong_is_no_place_in_a_table(value: int) -> None:
    text = long_postings(16, value)
    hits = text.search(TextQuery([TextClause([TextTerm("b")])]), 10)
    assert hits.slots.tolist() == list(range(10))
    with pytest.raises(IntegrityError, match="frequency"):
        text.load_end()
    text.close()


@pytest.mark.parametrize(
    "clause", [TextClause([TextTerm("b"), TextTerm("b", offset=1)], PHRASE), TextClause([TextTerm("b")])]
)
@pytest.mark.parametrize("value", [0, 10, 127, 600, 2**32 - 1])
def test_blocks_that_overlap_are_left_out(value: int, clause: TextClause) -> None:
    """Documents of a list that go down would be written before the window that adds them up."""
    text, slots = long_postings(0, value), np.arange(1_000, dtype=np.uint32)
    for k in (10, 1_000):
        found = text.search(TextQuery([clause]), k).slots.tolist()
        assert len(found) == len(set(found)) <= 128, "at most the one block whose last document is the one named"
    assert np.count_nonzero(text.score_slots(TextQuery([clause]), slots)) <= 128
    with pytest.raises(IntegrityError):
        text.load_end()
    text.close()


@pytest.mark.parametrize("at", [40, 48])
@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_sums_of_heads_stay_in_range(good: dict[tuple[int, int], bytes], at: int, number: int) -> None:
    head = bytearray(good[PART_TEXT_HEAD, 0])
    head[at : at + 8] = number.to_bytes(8, "little", signed=True)
    text = load_begin(good, TERMS_WORDS)
    with pytest.raises(IntegrityError, match="out of range"):
        text.load_part(PART_TEXT_HEAD, 0, bytes(head))
    text.close()


@pytest.mark.parametrize("at", [56, 60, 64])
def test_a_head_that_announces_more_than_there_are_parts_for_gets_no_memory(
    good: dict[tuple[int, int], bytes], at: int
) -> None:
    for number in (int.from_bytes(good[PART_TEXT_HEAD, 0][at : at + 4], "little") * 2, 2**32 - 1):
        head = bytearray(good[PART_TEXT_HEAD, 0])
        head[at : at + 4] = number.to_bytes(4, "little")
        text = load_begin(good, TERMS_WORDS)
        with pytest.raises(IntegrityError, match="announces more bytes"):
            text.load_part(PART_TEXT_HEAD, 0, bytes(head))
        text.close()


def test_words_whose_rows_all_left_weigh_nothing() -> None:
    text, model = NativeText(), Model(TERMS_WORDS)
    change(text, model, {slot: ["alpha"] for slot in range(2_000)})
    change(text, model, {2_000: ["zed yod xi"]})
    change(text, model, {}, [2_000])
    alpha = text.search(TextQuery([TextClause([TextTerm("alpha")])]), 10)
    more = text.search(TextQuery([TextClause([TextTerm(word)]) for word in ("alpha", "zed", "yod", "xi")]), 10)
    assert more.slots.tolist() == alpha.slots.tolist()
    assert more.scores.tolist() == alpha.scores.tolist()
    text.close()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_parts_that_come_one_by_one_do_no_harm(seed: int) -> None:
    """Queries of a loading index fetch what they need, and search before anybody has checked the parts as a whole."""
    rng, words_ = random.Random(SEED + 200 + seed), [f"w{i}" for i in range(60)]
    text, model = NativeText(), Model(TERMS_WORDS)
    for start, end in ((0, 1_500), (1_500, 1_600)):
        change(text, model, {slot: [" ".join(rng.choices(words_, k=6))] for slot in range(start, end)})
    good = parts_of(text, 65_536)
    text.close()
    queries = [
        TextQuery([TextClause([TextTerm("w1"), TextTerm("w5")])]),
        TextQuery([TextClause([TextTerm("w1"), TextTerm("w2", offset=1)], PHRASE)]),
        TextQuery([TextClause([TextTerm("w")], PREFIX)]),
        TextQuery([TextClause([TextTerm("w1")], REQUIRED), TextClause([TextTerm("w2")], EXCLUDED | PREFIX)]),
    ]
    slots = np.arange(1_600, dtype=np.uint32)
    for _ in range(60):
        parts = damaged(good, rng)
        text = load_begin(parts, TERMS_WORDS, 65_536)
        with suppress(IntegrityError):
            for key, data in sorted(parts.items()):
                if key[0] == PART_TEXT_HEAD:
                    text.load_part(*key, data)
            for query in queries:
                while missing := text.missing(query):
                    for part in missing:
                        text.load_part(part.kind, part.number, parts[part.kind, part.number])
                text.search(query, 10)
                assert len(text.mask(query, 1_600)) == 25
                scores = text.score_slots(query, slots)
                assert np.isfinite(scores).all()
                assert (scores >= 0).all()
        text.close()


def test_parts_are_checked_as_they_come(good: dict[tuple[int, int], bytes]) -> None:
    heads = [key for key in good if key[0] == PART_TEXT_HEAD]
    text = load_begin(good, TERMS_WORDS)
    with pytest.raises(InvalidInputError, match="head"):
        text.load_part(PART_TEXT_POSTINGS, 0, good[PART_TEXT_POSTINGS, 0])
    with pytest.raises(InvalidInputError, match="no such part"):
        text.load_part(PART_TEXT_HEAD, len(heads), good[heads[0]])
    for kind, number in heads:
        text.load_part(kind, number, good[kind, number])
    with pytest.raises(IntegrityError, match="another size"):
        text.load_part(PART_TEXT_POSTINGS, 0, good[PART_TEXT_POSTINGS, 0][:-1])
    for kind, number in ((PART_TEXT_POSTINGS, 10_000), (99, 0)):
        with pytest.raises(InvalidInputError, match="no such part"):
            text.load_part(kind, number, b"x")
    with pytest.raises(InvalidInputError, match="missing"):
        text.load_end()
    for refused in (
        lambda: text.stage(np.zeros(0, dtype=np.uint32), []),
        lambda: text.parts(CHUNK_BYTES_MIN),
        text.validate,
        lambda: text.stage_map(np.zeros(0, dtype=np.uint32)),
    ):
        check_refused(refused)
    for key, data in good.items():
        text.load_part(*key, data)
        text.load_part(*key, data)  # twice does no harm
    text.load_end()
    assert parts_of(text) == good
    check_refused(text.load_end)
    check_refused(lambda: text.write_part(TextPart(PART_TEXT_HEAD, 77, 1), CHUNK_BYTES_MIN))
    check_refused(lambda: text.parts(CHUNK_BYTES_MIN - 1))
    text.close()


def check_refused(function: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError):
        function()


def test_stems_have_no_positions_and_no_phrase() -> None:
    text, model = NativeText(terms=TERMS_BOTH), Model(TERMS_BOTH)
    change(text, model, {slot: ["runs runs far"] for slot in range(300)})
    words, postings = NativeText(), Model(TERMS_WORDS)
    change(words, postings, {slot: ["runs runs far"] for slot in range(300)})
    assert text.stats().bytes_positions == words.stats().bytes_positions
    text.validate()
    stems = [TextTerm(STEM_MARK + stem(word), 1.0, at) for at, word in enumerate(("runs", "far"))]
    assert len(text.search(TextQuery([TextClause(stems, PHRASE)]), 5).slots) == 0
    assert len(text.search(TextQuery([TextClause(stems)]), 5).slots) == 5
