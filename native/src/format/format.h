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
 *   VECTORS      both planes, high ones first: n x dim uint16 without padding, as byte planes: low bytes, then high bytes
 *   BIT_CODES    n x (dim + 7) / 8 bytes of sign bits, n uint16 factors, under L2 n float32 squared norms (bit_codes.c)
 *   IDS          n uint16 sizes, then the ids' bytes
 *   TIMESTAMPS   int64 smallest value, uint8 width, 7 zero bytes, then `width` byte planes of n offsets from it
 *   TOMBSTONES   bitmap of all rows of the index, 1 = tombstone, unused bits zero
 *   GRAPH        of parts with rows of the graph: n uint8 link counts, 0 for a row before the graph's first; the links of
 *                all rows in link_width(rows whose links are stored) bytes each; then uint32 number of upper rows, and for
 *                each of them uint32 row counted from the part's first, uint8 level, and for each level from 1 on a uint8
 *                count and that many uint32 upper numbers
 *   GRAPH_HEAD   uint32 M, ef_construction, entry, max_level, upper rows, trained rows with COARSE_BIT set where codes
 *                were judged too coarse to link by, BITS_SERVE_BIT where bit codes find the nearest; then dim float32 lo,
 *                dim float32 step of the codes
 *   LISTS        for each row of the index the number of its list plus 1, or 0, as link_width(lists + 1) byte planes
 *   LISTS_HEAD   uint32 lists, trained rows, rows in front; float32 limit of second lists; uint64 rows since the training;
 *                float64 mean error then,
 *                sum of errors since; uint32 lists to look at for each k and recall; then dim float32 lo, dim float32 step
 *                and the codes of the centroids
 *   SECOND_LISTS for each row of the index the number of its second list plus 1, or 0, as LISTS has those of the first
 *   VECTORLESS         bitmap of all rows of the index, 1 = no vector: all zeros in its planes and codes; unused bits zero
 *
 * Rows that came to the graph after its parts were stored may be left out of these: a reader links them again, in the same
 * steps, and gets the same graph.
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
#define PART_KINDS 12 /* FVDB_PART_* are 1 .. 11 */
#define TIMESTAMPS_HEAD_BYTES 16u
#define GRAPH_HEAD_FIELDS 6u
/* Beside the trained rows, which are fewer. */
#define COARSE_BIT (1u << 31)
#define BITS_SERVE_BIT (1u << 30)
#define LISTS_HEAD_BYTES (4u * 4 + 8 + 2u * 8 + IVF_KS * IVF_RECALLS * 4)

/* How an index is cut into parts.  Vectors, most of the bytes, have parts of their own size: few rows of one are wanted. */
typedef struct part_layout {
    uint32_t rows;  /* of a part with vectors */
    uint32_t group; /* of a part of another kind */
} part_layout;
/* Rows of an index, and which of them are where. */
typedef struct part_shape {
    uint32_t rows;
    uint32_t settled; /* rows before those of the graph; all of them where there is none */
    uint32_t stored;  /* rows before the first whose links are not stored; `rows` where there is no graph */
    uint32_t lists;
    bool coded;          /* enough rows have a vector for codes */
    bool has_vectorless; /* rows without a vector */
    bool has_seconds;    /* rows may be on a second list */
} part_shape;
static inline uint32_t format_rows_per_part(part_layout layout, uint32_t kind) {
    return kind == FVDB_PART_VECTORS ? layout.rows : layout.group;
}
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
/* The rows that a part covers. */
typedef struct part_span {
    uint32_t first, n;
} part_span;
static inline part_span format_span(part_shape shape, part_layout layout, uint32_t kind, uint32_t number) {
    if (kind == FVDB_PART_GRAPH_HEAD) return (part_span){0, shape.stored};
    if (format_is_whole(kind)) return (part_span){0, shape.rows};
    const uint32_t end = kind == FVDB_PART_GRAPH ? shape.stored : shape.rows, most = format_rows_per_part(layout, kind);
    return (part_span){number * most, min_u32(most, end - number * most)};
}
/* The numbers of the parts of a kind, `first` up to but not `end`. */
typedef struct part_numbers {
    uint32_t first, end;
} part_numbers;
static inline part_numbers format_numbers(part_shape shape, part_layout layout, uint32_t kind) {
    const bool of_lists = kind == FVDB_PART_LISTS || kind == FVDB_PART_LISTS_HEAD;
    const bool of_seconds = kind == FVDB_PART_SECOND_LISTS;
    const bool of_codes = kind == FVDB_PART_GRAPH_HEAD || kind == FVDB_PART_BIT_CODES;
    if (shape.rows == 0 || (kind == FVDB_PART_VECTORLESS && !shape.has_vectorless) || (of_lists && shape.lists == 0) ||
        (of_seconds && !shape.has_seconds) || (of_codes && !shape.coded) ||
        (kind == FVDB_PART_GRAPH && shape.settled == shape.rows))
        return (part_numbers){0, 0};
    if (format_is_whole(kind)) return (part_numbers){0, 1};
    const uint32_t most = format_rows_per_part(layout, kind);
    if (kind == FVDB_PART_GRAPH) return (part_numbers){shape.settled / most, format_part_count(shape.stored, most)};
    return (part_numbers){0, format_part_count(shape.rows, most)};
}

/* ---- format_write.c: bodies of the public functions of the same name; the reader lock is held ---- */

fvdb_status format_parts(fvdb_index *index, part_layout layout, fvdb_part *out, uint32_t capacity, uint32_t *out_count,
                         fvdb_diag *diag);
fvdb_status format_part_write(fvdb_index *index, part_layout layout, uint32_t kind, uint32_t number, uint8_t *out,
                              uint64_t capacity, uint64_t *out_size, fvdb_diag *diag);

/* ---- format_read.c ---- */

typedef struct part_blob {
    uint8_t *bytes; /* payload, owned */
    size_t size;
    bool came;
} part_blob;
struct loading {
    mutex lock;
    part_shape shape;
    part_layout layout;
    part_numbers numbers[PART_KINDS]; /* parts expected of a kind */
    part_blob *parts[PART_KINDS];     /* vectors: only `came` is used */
};
typedef struct part_header {
    uint32_t kind, number;
    part_span span;
} part_header;
/* Checks a header against what is being loaded; the reader is at the payload then. */
fvdb_status format_read_header(const fvdb_index *index, reader *r, part_header *h, fvdb_diag *diag);
/* Ids, timestamps, tombstones and which rows are vectorless, of parts that all came. */
fvdb_status format_read_rows(fvdb_index *index, fvdb_diag *diag);
/* The code parameters alone. */
fvdb_status format_read_book(fvdb_index *index, fvdb_diag *diag);
/* All parts of a kind. */
fvdb_status format_check_came(const struct loading *l, uint32_t kind, fvdb_diag *diag);
/* Finite, not zero under cosine, and split the one way that rows are split: a second pair of halves for the same value
 * would make two CIDs of one index.  x, high2, low2: room. */
bool format_row_is_sound(const store *s, bool vectorless, const uint16_t *high, const uint16_t *low, float *x,
                         uint16_t *high2, uint16_t *low2);

fvdb_status format_load_begin(const fvdb_config *config, const fvdb_load *load, fvdb_index **out, fvdb_diag *diag);
fvdb_status format_load_part(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag);
fvdb_status format_load_end(fvdb_index *index, const uint32_t *steps, uint32_t n_steps, fvdb_control *control,
                            fvdb_diag *diag);
/* Frees what a load left; nothing when none is under way. */
void format_load_abandon(fvdb_index *index);

/* ---- format_lazy.c: ending a load without vectors and links, and parts with vectors that come later ---- */

fvdb_status format_load_lazy(fvdb_index *index, fvdb_diag *diag);
/* Finds the rows of a part with vectors that the caller keeps; they are in its bytes. */
fvdb_status format_part_open(const fvdb_index *index, const uint8_t *bytes, uint64_t size, part_rows *out,
                             fvdb_diag *diag);
/* Opens it and checks every row. */
fvdb_status format_part_check(const fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag);

#endif
