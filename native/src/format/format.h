/* Contract of format/: the bytes of a part, mirrored in docs/format.md.
 *
 * A part is a header of PART_HEADER_BYTES, then the payload of its kind.  Everything is little-endian and packed.
 *
 *   offset  size  field
 *        0     4  magic "FVDB"
 *        4     2  version, PART_VERSION
 *        6     2  kind, FVDB_PART_*
 *        8     4  number
 *       12     4  dim
 *       16     8  first row
 *       24     4  rows
 *       28     4  zero
 *       32     8  payload bytes
 *
 * Payloads, for n rows:
 *   VECTORS_HIGH, VECTORS_LOW  n x dim uint16 without padding, as byte planes: all low bytes, then all high bytes
 *   IDS          n uint16 sizes, then the ids' bytes
 *   TIMESTAMPS   int64 smallest value, uint8 width, 7 zero bytes, then `width` byte planes of n offsets from it
 *   TOMBSTONES   bitmap of all rows of the index, 1 = tombstone, unused bits zero
 *   GRAPH        of parts with rows of the graph: n uint8 link counts, none for a row before the graph's first; the links
 *                of all rows in link_width(rows of the index) bytes each; then uint32
 *                uint8 count and that many uint32 upper numbers
 *   GRAPH_HEAD   uint32 M, ef_construction, entry, max_level, upper rows, trained rows; then dim float32 lo, dim float32
 *                step of the codes
 *   LISTS        for each row of the index the number of its list plus 1, or 0, as link_width(lists + 1) byte planes
 *   LISTS_HEAD   uint32 lists, trained rows, rows in front, zero; uint64 rows since the training; float64 mean error then,
 *                sum of errors since; uint32 lists to look at for each k and recall; then dim float32 lo, dim float32 step
 *                and the codes of the centroids
 *
 * Writing trusts the index.  Reading trusts nothing: a part is checked on its own as it comes, and format_load_end
 * checks all of them against each other before the index is whole. */
#ifndef FVDB_FORMAT_H
#define FVDB_FORMAT_H

#include "../base/bytes.h"
#include "../index/index.h"

#define PART_MAGIC "FVDB"
#define PART_VERSION 0
#define PART_HEADER_BYTES 40u
#define PART_KINDS 10            /* FVDB_PART_* are 1 .. 9 */
#define TIMESTAMPS_HEAD_BYTES 16u
#define GRAPH_HEAD_FIELDS 6u
#define LISTS_HEAD_BYTES (4u * 4 + 8 + 2u * 8 + IVF_KS * IVF_RECALLS * 4)

/* Parts that cover `rows` rows. */
static inline uint32_t format_part_count(uint32_t rows, uint32_t rows_per_part) {
    return rows / rows_per_part + (rows % rows_per_part != 0);
}
/* Bytes of a level-0 link: what the largest slot needs; and of the number of a list. */
static inline uint32_t format_link_width(uint32_t rows) {
    return rows <= 1u << 8 ? 1 : rows <= 1u << 16 ? 2 : rows <= 1u << 24 ? 3 : 4;
}
/* Kinds of which there is one part over all rows. */
static inline bool format_is_whole(uint32_t kind) {
    return kind == FVDB_PART_TOMBSTONES || kind >= FVDB_PART_GRAPH_HEAD;
}
/* The numbers of the parts of a kind, `first` up to but not `end`; `settled` rows come before those of the graph. */
typedef struct part_numbers {
    uint32_t first, end;
} part_numbers;
static inline part_numbers format_numbers(uint32_t kind, uint32_t rows, uint32_t settled, uint32_t lists,
                                          uint32_t rows_per_part) {
    const bool of_lists = kind == FVDB_PART_LISTS || kind == FVDB_PART_LISTS_HEAD;
    if (rows == 0 || (kind == FVDB_PART_GRAPH && settled == rows) ||
        (kind == FVDB_PART_GRAPH_HEAD && rows < INDEX_GRAPH_ROWS_MIN) || (of_lists && lists == 0))
        return (part_numbers){0, 0};
    if (format_is_whole(kind)) return (part_numbers){0, 1};
    return (part_numbers){kind == FVDB_PART_GRAPH ? settled / rows_per_part : 0, format_part_count(rows, rows_per_part)};
}

/* ---- format_write.c: bodies of the public functions of the same name; the reader lock is held ---- */

fvdb_status format_parts(fvdb_index *index, uint32_t rows_per_part, fvdb_part *out, uint32_t capacity,
                         uint32_t *out_count, fvdb_diag *diag);
fvdb_status format_part_write(fvdb_index *index, uint32_t rows_per_part, uint32_t kind, uint32_t number, uint8_t *out,
                              uint64_t capacity, uint64_t *out_size, fvdb_diag *diag);

/* ---- format_read.c ---- */

fvdb_status format_load_begin(const fvdb_config *config, uint64_t rows, uint64_t graph_rows, uint64_t lists,
                              uint32_t rows_per_part, fvdb_index **out, fvdb_diag *diag);
fvdb_status format_load_part(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag);
fvdb_status format_load_end(fvdb_index *index, fvdb_control *control, fvdb_diag *diag);
/* Frees what a load left; nothing when none is under way. */
void format_load_abandon(fvdb_index *index);

#endif
