"""Every reader of outside bytes, on damaged and on arbitrary input: the right answer or a VectorDBError."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st
from mutate import SEED, mutated
from readers import OTHERS, TARGETS, TEXTS, attempt

from fabstir_vectordb.s5 import cbor


def campaign(name: str, rounds: int) -> None:
    target = TARGETS[name]
    random_ = random.Random(f"{SEED} {name}")
    for raw in target.corpus:
        for cut in range(0, len(raw), max(1, len(raw) // 100)):
            attempt(target.read, raw[:cut])
    for _ in range(rounds):
        raw = mutated(random_.choice(target.corpus), OTHERS, random_)
        found = attempt(target.read, raw)
        assert found is None or target.holds(found), raw


@pytest.mark.parametrize("name", TARGETS)
def test_good_input_is_read(name: str) -> None:
    target = TARGETS[name]
    # Whatever the damage is compared with must itself be right, or the campaign would test nothing.
    read = [attempt(target.read, raw) for raw in target.corpus]
    if name not in ("encrypted blob id", "share"):
        assert read[0] is not None
        assert target.holds(read[0])


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes(name: str) -> None:
    campaign(name, 300)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes_for_long(name: str) -> None:
    campaign(name, 200_000)


@pytest.mark.parametrize("name", TARGETS)
@given(raw=st.binary(max_size=300))
@example(raw=b"")
@settings(max_examples=25)
def test_arbitrary_bytes(name: str, raw: bytes) -> None:
    attempt(TARGETS[name].read, raw)


@pytest.mark.parametrize("name", TEXTS)
@given(text=st.text(max_size=200))
@settings(max_examples=25)
def test_arbitrary_texts(name: str, text: str) -> None:
    attempt(TEXTS[name][0], text)


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_texts(name: str) -> None:
    read, corpus = TEXTS[name]
    random_ = random.Random(f"{SEED} {name}")
    for text in corpus:
        assert attempt(read, text) is not None
        for _ in range(200):
            damaged = list(text)
            at = random_.randrange(len(damaged))
            damaged[at : at + random_.randint(0, 2)] = random_.choice(["", "0", "z", "é", " ", "\0", "Z9", "\ud800"])
            attempt(read, "".join(damaged))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=12) | st.integers(-(2**64), 2**64 - 1), inner, max_size=5)
    ),
    max_leaves=20,
)
KEYS = ["version", "entries", "names", "parts", "config", "rows", "cid", "saved", "revision", "refused"]


@pytest.mark.parametrize("name", ["manifest", "history", "catalogue", "directory"])
@given(value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8) | VALUES)
@settings(max_examples=40)
def test_other_cbor_in_place_of_what_is_expected(name: str, value: Any) -> None:
    """Right CBOR, wrong meaning: wrong types and missing keys on every level."""
    raw = cbor.encode(value)
    assert attempt(TARGETS["cbor"].read, raw) == value
    attempt(TARGETS[name].read, raw)
    attempt(TARGETS[name].read, b"\x5f\x5d" + raw)


@pytest.mark.parametrize("name", ["manifest", "history", "directory"])
@given(data=st.data())
@settings(max_examples=40)
def test_one_value_replaced(name: str, data: st.DataObject) -> None:
    """The good value but for one place in it."""
    raw = TARGETS[name].corpus[0]
    magic = b"\x5f\x5d" if name == "directory" else b""
    value = cbor.decode(raw.removeprefix(magic), max_bytes=1 << 20, what="value")
    at: Any = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        inner = at[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        at = inner
    if data.draw(st.booleans()):
        at[key] = data.draw(VALUES)
    else:
        del at[key]
    attempt(TARGETS[name].read, magic + cbor.encode(value))


def test_deep_nesting_stops_at_the_limit_on_a_small_stack() -> None:
    """A parser that recursed on outside bytes would overflow a thread's stack, not raise."""
    deep = [bytes([head]) * 1_000_000 for head in (0x81, 0xC0, 0xC1, 0xD8, 0x9F, 0xBF)]
    deep += [b"\xa1\x61a" * 300_000, b"\xa1\x81" * 300_000, b"\x82\x00" * 300_000]
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for raw in deep:
                for target in TARGETS.values():
                    attempt(target.read, raw)
                    attempt(target.read, b"\x5f\x5d" + raw)
        except BaseException as error:
            failures.append(error)

    old = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(old)
    assert not failures
