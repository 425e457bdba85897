"""Reading one field of the metadata of many rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.call import (
    Float64Array,
    Int64Array,
    UInt8Array,
    UInt32Array,
    UInt64Array,
    expect,
    pointer,
    raise_status,
)
from fabstir_vectordb._native.library import ffi, lib

__all__ = ["VALUE_ITEM", "VALUE_LARGE", "VALUE_TEXT", "FieldCells", "read_field"]

VALUE_TEXT = int(lib.FVDB_VALUE_TEXT)
VALUE_ITEM = int(lib.FVDB_VALUE_ITEM)
VALUE_LARGE = int(lib.FVDB_VALUE_LARGE)

Int32Array = npt.NDArray[np.int32]


class FieldCells(NamedTuple):
    """One field of n rows. A value is a number, or has a code: its place in the table of values.

    Attributes:
        present: n bool, whether the path leads to a value.
        numbers: n float64, the only value of a row if it is a float or an integer below 2^53 in magnitude, else NaN.
        codes: n int32, the code of the only value of a row, else -1.
        list_rows, list_numbers, list_codes: the values of lists, and of rows with several values.
        in_list: whether each of them is an item of a list.
        value_starts, value_sizes, value_kinds: the table of values: where each is in the bytes, and VALUE_*: its UTF-8,
            or its CBOR item, or the CBOR item of an integer of 2^53 or more in magnitude.
        texts: the texts of the table in one piece, each with a 0 byte behind it.
    """

    present: UInt8Array
    numbers: Float64Array
    codes: Int32Array
    list_rows: UInt32Array
    list_numbers: Float64Array
    list_codes: Int32Array
    in_list: UInt8Array
    value_starts: UInt64Array
    value_sizes: UInt32Array
    value_kinds: UInt8Array
    texts: UInt8Array


def read_field(
    data: bytearray, offsets: Int64Array, sizes: Int32Array, text: bytes, steps: UInt32Array, seed: int, room: int = 0
) -> FieldCells:
    """The values at a path in the metadata of n rows.

    Args:
        data: CBOR of the rows. It must not change its size meanwhile.
        offsets, sizes: n; where the CBOR of each row is, size 0 for a row without metadata.
        text: the steps of the path; those of a run are joined by dots.
        steps: (m, 3) uint32; of each step its start and end in `text`, and the step behind its run.
        seed: seed of the table of values; it does not affect the result.
        room: expected number of values of lists; more than that cost a second call.

    Raises:
        IntegrityError: the CBOR of a row is damaged.
        InvalidInputError: there are too many steps or rows.
        IndexStateError: there was not enough memory.
    """
    n = len(offsets)
    expect("offsets", offsets, np.int64, (n,))
    expect("sizes", sizes, np.int32, (n,))
    expect("steps", steps, np.uint32, (len(steps), 3))
    # Released at once: an export that outlived the call, in a traceback perhaps, would keep the bytearray from growing.
    with ffi.from_buffer("uint8_t[]", data) as raw:
        field = ffi.new("fvdb_field *")
        named = pointer("int64_t[]", offsets), pointer("int32_t[]", sizes), ffi.from_buffer("uint8_t[]", text)
        field.bytes, field.n_bytes, field.n, field.seed = raw, len(data), n, seed
        field.offsets, field.sizes, field.text = named
        field.text_size, field.n_steps = len(text), len(steps)
        field.steps = ffi.cast("fvdb_step *", pointer("uint32_t[]", steps))
        text_room = int(sizes.sum(dtype=np.int64))
        while True:
            found = FieldCells(
                present=np.empty(n, dtype=np.uint8),
                numbers=np.empty(n),
                codes=np.empty(n, dtype=np.int32),
                list_rows=np.empty(room, dtype=np.uint32),
                list_numbers=np.empty(room),
                list_codes=np.empty(room, dtype=np.int32),
                in_list=np.empty(room, dtype=np.uint8),
                value_starts=np.empty(n + room, dtype=np.uint64),
                value_sizes=np.empty(n + room, dtype=np.uint32),
                value_kinds=np.empty(n + room, dtype=np.uint8),
                texts=np.empty(text_room, dtype=np.uint8),
            )
            addresses = {name: pointer(_C_TYPES[name], array) for name, array in found._asdict().items()}
            cells = ffi.new("fvdb_cells *", {"capacity": room, "texts_capacity": text_room, **addresses})
            diag = ffi.new("fvdb_diag *")
            status = lib.fvdb_read_field(field, cells, diag)
            if not status:
                break
            if status != lib.FVDB_ERR_BUFFER:
                raise_status(status, diag)
            room = int(diag.expected)
    listed, values = int(cells.n_listed), int(cells.n_values)
    arrays: tuple[Any, ...] = found
    ends = [n] * 3 + [listed] * 4 + [values] * 3 + [int(cells.texts_size)]
    return FieldCells._make(array[:end] for array, end in zip(arrays, ends, strict=True))


_C_TYPES = {
    "present": "uint8_t[]",
    "numbers": "double[]",
    "codes": "int32_t[]",
    "list_rows": "uint32_t[]",
    "list_numbers": "double[]",
    "list_codes": "int32_t[]",
    "in_list": "uint8_t[]",
    "value_starts": "uint64_t[]",
    "value_sizes": "uint32_t[]",
    "value_kinds": "uint8_t[]",
    "texts": "uint8_t[]",
}
