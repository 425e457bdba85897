"""Updates of metadata by filter and by id: replace, merge, merge deeply, remove fields; all or nothing."""

from __future__ import annotations

import copy
import uuid
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from saving import rows, session_on

from fabstir_vectordb import F, InvalidInputError, MemoryBudgetExceededError, NotFoundError, UpdateResult, sync

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def blocking(**fields: Any) -> sync.VectorDBSession:
    settings = {"s5_portal": "memory:", "user_seed_phrase": "x", "session_id": "x", **fields}
    return sync.VectorDBSession.create(**settings)


# ---- against a dictionary

KEYS = st.sampled_from(["a", "b", "c", "a.b"])
VALUES = st.recursive(
    st.integers(0, 3) | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
DICTS = st.dictionaries(KEYS, VALUES, max_size=3)
ROWS = st.lists(st.none() | DICTS, min_size=1, max_size=6)
#: Each with the key sequences that it may mean.
FIELDS: dict[str, list[list[str]]] = {
    "a": [["a"]],
    "a.b": [["a.b"], ["a", "b"]],
    '"a.b"': [["a.b"]],
    '"a"."b"': [["a", "b"]],
    "b.c.a": [["b", "c", "a"]],
    "a.b.c": [["a.b", "c"], ["a", "b", "c"]],
}


def merged(old: Any, new: Any, deep: bool) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {
        **{key: value for key, value in old.items() if key not in new},
        **{key: merged(old.get(key), value, deep) if deep else value for key, value in new.items()},
    }


def drop(value: Any, keys: list[str]) -> None:
    if isinstance(value, dict) and len(keys) == 1:
        value.pop(keys[0], None)
    elif isinstance(value, dict):
        drop(value.get(keys[0]), keys[1:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                drop(item, keys)


@settings(max_examples=60)
@given(
    ROWS,
    st.lists(
        st.tuples(
            st.booleans(),
            st.none() | DICTS,
            st.sampled_from([False, True, "deep"]),
            st.lists(st.sampled_from(sorted(FIELDS)), max_size=2),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_updates_do_what_a_dictionary_would(given_rows: list[Any], updates: list[Any]) -> None:
    with blocking() as session:
        table = {f"r{number}": copy.deepcopy(row) for number, row in enumerate(given_rows)}
        session.add_batch(list(table), None, list(table.values()))
        for odd, value, merge, fields in updates:
            wanted = {"$id": {"$in": [id for id in table if int(id[1:]) % 2 == odd]}}
            matched = [id for id in table if int(id[1:]) % 2 == odd]
            refused = (merge is False and fields and value is not None) or (merge and value is None and not fields)
            if refused:
                with pytest.raises(InvalidInputError):
                    session.update_by_metadata(wanted, value, merge=merge, remove=fields)
                continue
            before = copy.deepcopy(table)
            for id in matched:
                if merge is False and not fields:
                    table[id] = copy.deepcopy(value)
                    continue
                for field in fields:
                    for keys in FIELDS[field]:
                        drop(table[id], keys)
                if value is not None:
                    table[id] = merged({} if table[id] is None else table[id], copy.deepcopy(value), merge == "deep")
            result = session.update_by_metadata(wanted, value, merge=merge, remove=fields)
            assert result.matched_count == len(matched)
            assert result.updated_count == len(result.updated_ids)
            assert {id for id in table if table[id] != before[id]} <= set(result.updated_ids) <= set(matched)
            assert {row.id: row.metadata for row in session.scan()} == table
            for field in fields:
                kept = [id for id in matched if value is None or not merge]
                assert session.count((F(field).exists()) & F.id.is_in(kept)) == 0
        session.clear()


# ---- what is changed, and what is not


async def test_one_call_updates_many_rows_and_filters_follow() -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri) as session:
        values = [{"n": n, "draft": True, "source": {"name": "wiki", "page": n}} for n in range(200)]
        await session.add_batch([str(n) for n in range(200)], rows(200), values)
        assert await session.count({"draft": True}) == 200
        news = {"source": {"name": "news"}}
        done = await session.update_by_metadata(F("n") < 50, news, merge="deep", remove=["draft"])
        assert (done.matched_count, done.updated_count) == (50, 50)
        assert sorted(done.updated_ids, key=int) == [str(n) for n in range(50)]
        assert await session.count({"draft": True}) == 150
        assert await session.count({"source.name": "news", "source.page": {"$exists": True}}) == 50
        again = await session.update_by_metadata(F("n") < 60, news, merge="deep")
        assert (again.matched_count, again.updated_count) == (60, 10)
        await session.save_to_s5()
        before = (await session.get_stats()).dirty
        assert await session.update_by_metadata(F("n") < 60, {"n": 3}, remove=["none"]) != UpdateResult(60, 0, [])
        assert await session.update_by_metadata({"n": "unknown"}, {"n": 3}) == UpdateResult(0, 0, [])
        assert not before
        assert (await session.get_stats()).dirty
        await session.update_metadata("0", {"source": {"page": -1}}, merge="deep", remove=["n"])
        await session.update_metadata("1", remove=["source.page", "n"])
        await session.update_metadata({"2": {"source": {"x": 1}}, "3": {}}, merge="deep", remove=["n"])
        await session.update_by_metadata({}, {"seen": 1})
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        got = [row.metadata for row in await session.get(["0", "1", "2", "3"]) if row is not None]
    assert got == [
        {"source": {"name": "news", "page": -1}, "seen": 1},
        {"source": {"name": "news"}, "seen": 1},
        {"source": {"name": "news", "page": 2, "x": 1}, "seen": 1},
        {"source": {"name": "news", "page": 3}, "seen": 1},
    ]


def test_rows_that_stay_the_same_are_no_change() -> None:
    with blocking() as session:
        session.add_batch(["a", "b"], None, [{"n": 1}, {"n": 2}])
        session.save_to_s5()
        assert session.update_by_metadata(F("n") >= 1, {}, remove=["x"]) == UpdateResult(2, 0, [])
        assert session.update_by_metadata(F("n") == 1, {"n": 1}) == UpdateResult(1, 0, [])
        assert not session.get_stats().dirty


def test_it_is_all_rows_or_none() -> None:
    with blocking(memory_budget_mb=8) as session:
        session.add_batch([str(n) for n in range(100)], None, [{"n": n} for n in range(99)] + [["n"]])
        before = list(session.scan())
        everything = F.id.is_in([str(n) for n in range(100)])
        for error, call in [
            (InvalidInputError, lambda: session.update_by_metadata(everything, {"a": 1})),  # the last is a list
            (InvalidInputError, lambda: session.update_by_metadata(everything, "a text")),
            (InvalidInputError, lambda: session.update_by_metadata(F("n") == 1, {"a": object()})),
            (InvalidInputError, lambda: session.update_by_metadata(F("n") == 1, {"a": "x" * (1 << 20)})),
            (MemoryBudgetExceededError, lambda: session.update_by_metadata(F("n").exists(), {"a": "x" * 100_000})),
            (NotFoundError, lambda: session.update_metadata({"0": {}, "unknown": {}}, merge="deep", remove=["n"])),
            (InvalidInputError, lambda: session.update_metadata({"0": {"a": 1}, "99": {}}, merge=True)),
        ]:
            with pytest.raises(error):
                call()  # type: ignore[no-untyped-call]
            assert list(session.scan()) == before
        with pytest.raises(InvalidInputError, match="needs a dict to merge into a dict") as caught:
            session.update_by_metadata(everything, {"a": 1})
        assert caught.value.details["id"] == "99"
        session.delete_vector("99")
        session.set_schema({"n": {"type": "Number", "required": True}})
        for update in ({"metadata": {"n": "no number"}}, {"remove": ["n"]}):
            with pytest.raises(InvalidInputError, match="row 0 "):
                session.update_by_metadata({"n": {"$gte": 0}}, **update)
            assert list(session.scan()) == before[:99]
        session.clear()


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def endless() -> Any:
    while True:
        yield "a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter": []}, "must be a dict of fields"),
        ({"filter": {}, "metadata": None, "merge": False}, "would replace the metadata of every row"),
        ({"filter": {}, "merge": "no"}, "merge must be True or False, or 'deep'"),
        ({"filter": {}, "merge": 1}, "merge must be True or False, or 'deep'"),
        ({"filter": {}}, "needs a dict"),
        ({"filter": {}, "metadata": [1]}, "needs a dict"),
        ({"filter": {}, "metadata": {1: 2}}, "key of type int"),
        ({"filter": {}, "metadata": deep(5_000)}, "nested more than"),
        ({"filter": {}, "remove": "a"}, "remove must be a list of fields"),
        ({"filter": {}, "remove": None}, "remove must be a list of fields"),
        ({"filter": {}, "remove": [1]}, "a field must be a string"),
        ({"filter": {}, "remove": ["a..b"]}, "a step of the path is empty"),
        ({"filter": {}, "remove": ["$id"]}, r"remove takes fields of metadata, and \$id is one of the row itself"),
        ({"filter": {}, "remove": ["a", "$timestamp"]}, r"remove takes fields of metadata, and \$timestamp"),
        ({"filter": {}, "remove": endless()}, "more than 1000 fields"),
        ({"filter": {}, "remove": (1 // 0 for _ in "a")}, "could not be read"),
        ({"filter": {"a": 1}, "metadata": {}, "merge": False, "remove": ["a"]}, "pass merge=True"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_changes(arguments: dict[str, Any], message: str) -> None:
    with blocking() as session:
        session.add_batch(["a"], None, [{"a": {"b": 1}}])
        with pytest.raises(InvalidInputError, match=message):
            session.update_by_metadata(**arguments)
        assert session.get(["a"])[0].metadata == {"a": {"b": 1}}
        session.clear()
