/* Edge blocks (memory="fast"): beside a row's links a code of one bit a dimension for each neighbour, so that a walk which
 * expands the row knows roughly how far its neighbours are before it fetches anything of theirs.
 *
 * This is the graph of SymphonyQG (Gou et al. 2025) with the codes of RaBitQ (Gao & Long 2024), edge_codes.c.
 * Departs from the paper: there estimates order the pool and every expanded row is scored exactly.  Here they only say which
 * neighbours are worth their 4-bit code, by which the pool is ordered as in the other tiers: half the expansions, and no
 * exact row during the walk (docs/decisions/0031).
 *
 * Blocks are kept as bfloat16 factors and bits, 1.17 x the raw row at M = 16 for any dimension, and are coded anew where
 * links changed, once for all changes of a call. */
#include "hnsw.h"

#define ROWS_PER_ITEM 16u

/* ---- memory ---- */

void blocks_init(edge_blocks *e, const fvdb_config *config) {
    *e = (edge_blocks){.kept = config->memory == FVDB_MEMORY_FAST};
    e->dim64 = (uint32_t)round_up(config->dim, CODE_DIMS);
    e->links = 2 * config->M;
    e->groups = (e->links + EDGE_LANES - 1) / EDGE_LANES;
    e->links_bytes = round_up(e->links * sizeof(uint32_t), CACHE_LINE);
    e->group_bytes = edge_group_bytes(e->dim64);
    e->blocks.scattered = true;
}

void blocks_free(edge_blocks *e) {
    region_free(&e->blocks);
    region_free(&e->stale);
    region_free(&e->origin);
    region_free(&e->entries);
    region_free(&e->entry_groups);
    e->n_entries = 0;
}

static size_t entry_groups_bytes(const edge_blocks *e) { return EDGE_ENTRIES_MAX / EDGE_LANES * e->group_bytes; }

bool blocks_resize(edge_blocks *e, uint32_t rows) {
    if (!e->kept) return true;
    const size_t before = e->stale.used;
    if (!region_resize(&e->origin, 2 * e->dim64 * sizeof(float)) ||
        !region_resize(&e->entries, EDGE_ENTRIES_MAX * sizeof(uint32_t)) ||
        !region_resize(&e->entry_groups, entry_groups_bytes(e)) ||
        !region_resize(&e->blocks, rows * blocks_block_bytes(e)) || !region_resize(&e->stale, rows))
        return false;
    if (rows > before) memset(e->stale.base + before, EDGE_STALE_BLOCK, rows - before);
    return true;
}

size_t blocks_resident(const edge_blocks *e) {
    return region_resident(&e->blocks) + region_resident(&e->stale) + region_resident(&e->origin) +
           region_resident(&e->entries) + region_resident(&e->entry_groups);
}

uint64_t blocks_bytes(const fvdb_config *config, uint64_t rows) {
    edge_blocks e;
    blocks_init(&e, config);
    if (!e.kept || rows == 0) return 0;
    return rows * (blocks_block_bytes(&e) + 1) + entry_groups_bytes(&e) + EDGE_ENTRIES_MAX * sizeof(uint32_t) +
           2 * e.dim64 * sizeof(float);
}

/* ---- coding ---- */

/* Each row is a neighbour of some M others.  Where many blocks are coded, rows are rotated once, a slice of all at a time,
 * and each block takes the links that lead into the slice: 9 rotations a row instead of 33, for an eighth of their memory.
 * Where few are, or that memory is not to be had, blocks keep the codes of neighbours that they had before, and the others are
 * rotated one by one, to the same bits, but for the new rows, which are most of them. */
#define SLICES 8u

typedef struct coding {
    hnsw *g;
    const store *s;
    uint32_t from, end; /* the slots whose rotated rows are in `rotated` */
    float *rotated;
    bool sliced; /* only links into that slice are coded */
    const fvdb_control *control;
} coding;

static float *origin_of(const hnsw *g) { return (float *)g->edges.origin.base; }

static bool in_slice(const coding *k, uint32_t slot) { return slot >= k->from && slot < k->end; }

static void prefetch_neighbour(const coding *k, uint32_t slot) {
    const store *s = k->s;
    if (in_slice(k, slot)) {
        prefetch_bytes(k->rotated + (size_t)(slot - k->from) * s->dim64, s->dim64 * sizeof(float));
    } else {
        prefetch_bytes(store_high(s, slot), s->dim16 * sizeof(uint16_t));
        prefetch_bytes(store_low(s, slot), s->dim16 * sizeof(uint16_t));
    }
}

/* What is in lane from[i] of a block goes to lane i, where from[i] is a lane. */
static void move_lanes(const edge_blocks *e, uint8_t *groups, const uint32_t *from, uint32_t n) {
    uint16_t factors[2][HNSW_M0_MAX + EDGE_LANES];
    uint8_t column[HNSW_M0_MAX + EDGE_LANES];
    for (uint32_t g = 0; g < e->groups; g++)
        for (uint32_t half = 0; half < 2; half++)
            memcpy(factors[half] + g * EDGE_LANES, groups + g * e->group_bytes + half * EDGE_LANES * sizeof(uint16_t),
                   EDGE_LANES * sizeof(uint16_t));
    for (uint32_t i = 0; i < n; i++) {
        uint16_t *out = (uint16_t *)(groups + i / EDGE_LANES * e->group_bytes);
        if (from[i] == FVDB_NO_SLOT) continue;
        out[i % EDGE_LANES] = factors[0][from[i]];
        out[EDGE_LANES + i % EDGE_LANES] = factors[1][from[i]];
    }
    for (uint32_t byte = 0; byte < e->dim64 / 8; byte++) {
        uint8_t *codes = groups + EDGE_CODES_AT + byte * EDGE_LANES;
        for (uint32_t g = 0; g < e->groups; g++)
            memcpy(column + g * EDGE_LANES, codes + g * e->group_bytes, EDGE_LANES);
        for (uint32_t i = 0; i < n; i++)
            if (from[i] != FVDB_NO_SLOT) codes[i / EDGE_LANES * e->group_bytes + i % EDGE_LANES] = column[from[i]];
    }
}

/* Keeps the codes of links that a row had before, in their new places; those without one into `here`.  Returns how many. */
static uint32_t keep_links(const edge_blocks *e, uint32_t *block, const uint32_t *links, uint32_t n, uint32_t *here) {
    uint32_t from[HNSW_M0_MAX], n_here = 0;
    bool moved = false;
    for (uint32_t i = 0; i < n; i++) {
        from[i] = FVDB_NO_SLOT;
        for (uint32_t j = 0; j < e->links && block[j] != FVDB_NO_SLOT; j++)
            if (block[j] == links[i]) from[i] = j;
        if (from[i] == FVDB_NO_SLOT) here[n_here++] = i;
        else moved |= from[i] != i;
    }
    if (moved) move_lanes(e, (uint8_t *)block + e->links_bytes, from, n);
    return n_here;
}

static void code_row(const coding *k, uint32_t slot) {
    const edge_blocks *e = &k->g->edges;
    float node[FVDB_DIM_MAX], room[FVDB_DIM_MAX];
    uint32_t *block = (uint32_t *)blocks_links(k->g, slot), links[HNSW_M0_MAX], here[HNSW_M0_MAX], n_here = 0;
    const uint32_t n = hnsw_links(k->g, 0, slot, links);
    uint8_t *groups = (uint8_t *)block + e->links_bytes;
    if (!k->sliced && e->stale.base[slot - k->g->first] == EDGE_STALE_LINKS) {
        n_here = keep_links(e, block, links, n, here);
    } else {
        for (uint32_t i = 0; i < n; i++)
            if (!k->sliced || in_slice(k, links[i])) here[n_here++] = i;
    }
    for (uint32_t i = 0; i < e->links; i++) block[i] = i < n ? links[i] : FVDB_NO_SLOT;
    for (uint32_t i = n; i < e->groups * EDGE_LANES; i++)
        edge_code_nothing(groups + i / EDGE_LANES * e->group_bytes, i % EDGE_LANES);
    if (n_here == 0) return;
    prefetch_neighbour(k, links[here[0]]);
    edge_rotated_row(k->s, slot, node);
    for (uint32_t i = 0; i < n_here; i++) {
        const uint32_t link = here[i];
        const float *neighbour = room;
        if (i + 1 < n_here) prefetch_neighbour(k, links[here[i + 1]]);
        if (in_slice(k, links[link])) neighbour = k->rotated + (size_t)(links[link] - k->from) * e->dim64;
        else edge_rotated_row(k->s, links[link], room);
        edge_code_row(k->s, origin_of(k->g), neighbour, node, groups + link / EDGE_LANES * e->group_bytes,
                      link % EDGE_LANES);
    }
}

static void code_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    const coding *k = context;
    const uint8_t *stale = k->g->edges.stale.base;
    const uint32_t rows = hnsw_rows(k->g), end = min_u32(rows, (item + 1) * ROWS_PER_ITEM);
    if (control_cancelled(k->control)) return;
    for (uint32_t row = item * ROWS_PER_ITEM; row < end; row++)
        if (stale[row]) code_row(k, k->g->first + row);
}

static void rotate_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    const coding *k = context;
    const uint32_t first = k->from + item * ROWS_PER_ITEM, end = min_u32(k->end, first + ROWS_PER_ITEM);
    for (uint32_t slot = first; slot < end; slot++)
        edge_rotated_row(k->s, slot, k->rotated + (size_t)(slot - k->from) * k->s->dim64);
}

static uint32_t items(uint32_t rows) { return (rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM; }
static uint32_t slice_rows(uint32_t rows) { return (rows + SLICES - 1) / SLICES; }

uint64_t blocks_scratch(const fvdb_config *config, uint64_t rows) {
    if (config->memory != FVDB_MEMORY_FAST) return 0;
    return (rows / SLICES + 1) * round_up(config->dim, CODE_DIMS) * sizeof(float);
}

/* n_new: the last rows, to which many links lead that are coded now. */
static void code_blocks(coding *k, bool sliced, uint32_t n_new, thread_pool *c) {
    const uint32_t rows = hnsw_rows(k->g), step = sliced ? slice_rows(rows) : n_new;
    region rotated = {0};
    const bool room = region_resize(&rotated, (size_t)step * k->s->dim64 * sizeof(float));
    k->rotated = (float *)rotated.base;
    k->sliced = sliced && room;
    for (k->from = k->sliced ? k->g->first : k->g->n - n_new; room && k->from < k->g->n; k->from = k->end) {
        k->end = k->from + min_u32(step, k->g->n - k->from);
        thread_pool_run(c, rotate_item, k, items(k->end - k->from));
        if (!k->sliced) break;
        thread_pool_run(c, code_item, k, items(rows));
    }
    if (!k->sliced) thread_pool_run(c, code_item, k, items(rows));
    region_free(&rotated);
}

/* Rows of the highest levels, as many as fit; of the lowest of these the first by slot. */
static uint32_t find_entries(const hnsw *g, uint32_t *slots) {
    uint32_t n = 0;
    for (uint32_t level = g->max_level; level > 0 && n < EDGE_ENTRIES_MAX; level--)
        for (uint32_t u = 0; u < g->upper_n && n < EDGE_ENTRIES_MAX; u++)
            if (hnsw_upper_level(g, u) == level) slots[n++] = hnsw_upper_slot(g, u);
    return n;
}

/* `before` of the entries are coded already, where they are still the same rows. */
static void code_entries(const coding *k, uint32_t before) {
    const hnsw *g = k->g;
    edge_blocks *e = &k->g->edges;
    uint32_t *slots = (uint32_t *)e->entries.base, now[EDGE_ENTRIES_MAX];
    float x[FVDB_DIM_MAX];
    e->n_entries = find_entries(g, now);
    for (uint32_t i = 0; i < round_up(e->n_entries, EDGE_LANES); i++) {
        uint8_t *group = e->entry_groups.base + i / EDGE_LANES * e->group_bytes;
        if (i >= e->n_entries) {
            edge_code_nothing(group, i % EDGE_LANES);
        } else if (i >= before || slots[i] != now[i]) {
            edge_rotated_row(k->s, now[i], x);
            edge_code_row(k->s, origin_of(g), x, origin_of(g) + e->dim64, group, i % EDGE_LANES);
            slots[i] = now[i];
        }
    }
}

bool hnsw_code_edges(hnsw *g, const store *s, thread_pool *c, const fvdb_control *control) {
    const uint32_t rows = hnsw_rows(g);
    uint8_t *stale = g->edges.stale.base;
    uint32_t n_stale = 0, n_new = 0, entries = g->edges.n_entries;
    coding k = {.g = g, .s = s, .control = control};
    if (!g->edges.kept) return true;
    g->edges.n_entries = 0;
    if (rows == 0) return true;
    if (edge_set_origin(s, &s->book, origin_of(g))) { /* then no code holds */
        memset(stale, EDGE_STALE_BLOCK, rows);
        entries = 0;
    }
    for (uint32_t row = 0; row < rows; row++) {
        n_stale += stale[row] != 0;
        n_new += stale[row] >= EDGE_STALE_BLOCK;
    }
    if (n_stale) code_blocks(&k, n_new > rows / SLICES || n_stale > rows / 2, n_new, c);
    if (control_cancelled(control)) {
        /* Which links of which blocks were coded is not known any more. */
        for (uint32_t row = 0; row < rows; row++) stale[row] = stale[row] ? EDGE_STALE_BLOCK : 0;
        return false;
    }
    memset(stale, 0, rows);
    code_entries(&k, entries);
    return true;
}
