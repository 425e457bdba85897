/* Timestamps, packed: rows come in calls, and the rows of a call often share one moment.
 *
 * Full blocks of 1024 rows keep their smallest value and, in as few whole bytes as the spread needs, each row's distance
 * from it (frame of reference).  The last block stays plain until it is full. */
#include "store.h"

#define BLOCK_ROWS 1024u

struct timestamp_block {
    int64_t base;
    uint32_t width;   /* bytes a row, 0 .. 8 */
    uint8_t *offsets; /* BLOCK_ROWS x width, NULL for width 0 */
};

void timestamps_init(timestamps *t) { *t = (timestamps){0}; }

void timestamps_free(timestamps *t) {
    for (uint32_t i = 0; i < t->n_blocks; i++) mem_free(t->blocks[i].offsets);
    mem_free(t->blocks);
    *t = (timestamps){0};
}

/* Unsigned differences: INT64_MIN .. INT64_MAX spans 64 bits. */
static bool pack_block(const int64_t *us, struct timestamp_block *out, size_t *bytes) {
    int64_t low = us[0], high = us[0];
    for (uint32_t i = 1; i < BLOCK_ROWS; i++) {
        if (us[i] < low) low = us[i];
        if (us[i] > high) high = us[i];
    }
    uint64_t spread = (uint64_t)high - (uint64_t)low;
    *out = (struct timestamp_block){.base = low};
    for (; spread; spread >>= 8) out->width++;
    if (out->width == 0) return true;
    out->offsets = mem_alloc((size_t)BLOCK_ROWS * out->width);
    if (!out->offsets) return false;
    for (uint32_t i = 0; i < BLOCK_ROWS; i++) {
        uint64_t offset = (uint64_t)us[i] - (uint64_t)low;
        for (uint32_t b = 0; b < out->width; b++) out->offsets[i * out->width + b] = (uint8_t)(offset >> (8 * b));
    }
    *bytes += (size_t)BLOCK_ROWS * out->width;
    return true;
}

static bool reserve_blocks(timestamps *t, uint32_t blocks) {
    if (blocks <= t->cap_blocks) return true;
    uint32_t cap = blocks + blocks / 8 + 4;
    struct timestamp_block *grown = mem_realloc(t->blocks, cap * sizeof *grown);
    if (!grown) return false;
    t->blocks = grown;
    t->cap_blocks = cap;
    return true;
}

fvdb_status timestamps_append(timestamps *t, const int64_t *us, uint32_t n, fvdb_diag *diag) {
    uint32_t before = t->n, blocks = (uint32_t)(((uint64_t)t->n + n) / BLOCK_ROWS);
    if (!reserve_blocks(t, blocks)) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < n; i++) {
        t->open[t->n % BLOCK_ROWS] = us[i];
        t->n++;
        if (t->n % BLOCK_ROWS) continue;
        if (!pack_block(t->open, &t->blocks[t->n_blocks], &t->packed_bytes)) {
            /* The block that could not be packed is still in `open`. */
            t->n--;
            timestamps_truncate(t, before);
            return FAIL_MEMORY(diag);
        }
        t->n_blocks++;
    }
    return FVDB_OK;
}

static int64_t get_packed(const struct timestamp_block *block, uint32_t row) {
    uint64_t offset = 0;
    for (uint32_t b = 0; b < block->width; b++) offset |= (uint64_t)block->offsets[row * block->width + b] << (8 * b);
    return (int64_t)((uint64_t)block->base + offset);
}

int64_t timestamps_get(const timestamps *t, uint32_t slot) {
    uint32_t block = slot / BLOCK_ROWS, row = slot % BLOCK_ROWS;
    return block < t->n_blocks ? get_packed(&t->blocks[block], row) : t->open[row];
}

void timestamps_truncate(timestamps *t, uint32_t n) {
    uint32_t blocks = n / BLOCK_ROWS;
    if (blocks < t->n_blocks) {
        for (uint32_t row = 0; row < n % BLOCK_ROWS; row++) t->open[row] = get_packed(&t->blocks[blocks], row);
        for (uint32_t i = blocks; i < t->n_blocks; i++) {
            t->packed_bytes -= (size_t)BLOCK_ROWS * t->blocks[i].width;
            mem_free(t->blocks[i].offsets);
        }
        t->n_blocks = blocks;
    }
    t->n = n;
}

fvdb_status timestamps_reordered(const timestamps *t, const uint32_t *order, uint32_t n, timestamps *out,
                                 fvdb_diag *diag) {
    int64_t chunk[BLOCK_ROWS];
    timestamps_init(out);
    for (uint32_t at = 0; at < n; at += BLOCK_ROWS) {
        uint32_t rows = min_u32(BLOCK_ROWS, n - at);
        for (uint32_t i = 0; i < rows; i++) chunk[i] = timestamps_get(t, order[at + i]);
        fvdb_status status = timestamps_append(out, chunk, rows, diag);
        if (status == FVDB_OK) continue;
        timestamps_free(out);
        return status;
    }
    return FVDB_OK;
}

size_t timestamps_resident(const timestamps *t) { return t->packed_bytes + t->cap_blocks * sizeof *t->blocks; }
