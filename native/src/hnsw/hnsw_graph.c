/* The graph's memory: level-0 links in one flat array, upper levels in dense arrays of their own.
 *
 * Links of a level-0 row are plain uint32 (128 bytes at M = 16: two cache lines), or packed where memory counts: two
 * links in w / 4 bytes, w the bits a slot needs rounded up to 4.  At 100 K rows that is 80 bytes.
 *
 * Departs from the paper: levels are drawn from a hash of the slot, by integer comparison, so that a graph is a function
 * of its rows and no libm rounds it. */
#include "hnsw.h"

#include "../base/bytes.h"

#define LINK_BITS_MIN 16

void hnsw_init(hnsw *g, const fvdb_config *config) {
    *g = (hnsw){.M = config->M, .M0 = 2 * config->M, .ef_construction = config->ef_construction, .entry = FVDB_NO_SLOT};
    g->packed = config->memory == FVDB_MEMORY_COMPACT;
    g->link_bits = g->packed ? LINK_BITS_MIN : 32;
    g->links0.scattered = true;
    blocks_init(&g->edges, config);
}

void hnsw_trim(const hnsw *g) {
    region_trim(&g->links0);
    region_trim(&g->edges.blocks);
}

void hnsw_free(hnsw *g) {
    region_free(&g->links0);
    region_free(&g->upper_slot);
    region_free(&g->upper_level);
    region_free(&g->upper_start);
    region_free(&g->upper_links);
    blocks_free(&g->edges);
    g->first = g->n = g->upper_n = g->upper_blocks = g->max_level = 0;
    g->entry = FVDB_NO_SLOT;
}

size_t hnsw_resident(const hnsw *g) {
    return region_resident(&g->links0) + region_resident(&g->upper_slot) + region_resident(&g->upper_level) +
           region_resident(&g->upper_start) + region_resident(&g->upper_links) + blocks_resident(&g->edges);
}

/* ---- packed cells ---- */

uint32_t hnsw_link_bits(uint32_t n) {
    /* All ones marks a free cell, so slots need to stay below it. */
    uint32_t bits = LINK_BITS_MIN;
    while (bits < 32 && n > (UINT32_C(1) << bits) - 1) bits += 4;
    return bits;
}

size_t hnsw_row_bytes0(uint32_t M0, uint32_t link_bits) { return (size_t)M0 * link_bits / 8; }

static uint8_t *row0(const hnsw *g, uint32_t slot) {
    return g->links0.base + (size_t)(slot - g->first) * hnsw_row_bytes0(g->M0, g->link_bits);
}

/* Bits of a pair of cells; the two loads meet or overlap, and none reaches past the pair. */
static uint64_t load_pair(const uint8_t *pair, uint32_t bytes) {
    return load_le(pair, 4) | load_le(pair + bytes - 4, 4) << (8 * (bytes - 4));
}

/* All M0 cells; no branch depends on what they hold. */
static void unpack(const uint8_t *row, uint32_t bits, uint32_t M0, uint32_t *out) {
    uint32_t bytes = bits / 4, free = bits == 32 ? FVDB_NO_SLOT : (UINT32_C(1) << bits) - 1;
    for (uint32_t i = 0; i < M0; i += 2, row += bytes) {
        uint64_t pair = load_pair(row, bytes);
        uint32_t first = (uint32_t)pair & free, second = (uint32_t)(pair >> bits) & free;
        out[i] = first == free ? FVDB_NO_SLOT : first;
        out[i + 1] = second == free ? FVDB_NO_SLOT : second;
    }
}

static uint32_t count_links(const uint32_t *cells, uint32_t most) {
    uint32_t n = 0;
    while (n < most && cells[n] != FVDB_NO_SLOT) n++;
    return n;
}

static void pack(uint8_t *row, uint32_t bits, uint32_t M0, const uint32_t *links, uint32_t n) {
    uint32_t bytes = bits / 4, free = bits == 32 ? FVDB_NO_SLOT : (UINT32_C(1) << bits) - 1;
    for (uint32_t i = 0; i < M0; i += 2, row += bytes) {
        uint64_t pair = (i < n ? links[i] : free) | (uint64_t)(i + 1 < n ? links[i + 1] : free) << bits;
        for (uint32_t b = 0; b < bytes; b++) row[b] = (uint8_t)(pair >> (8 * b));
    }
}

/* Last row first: a wider row starts at or after the narrow one, so no row is overwritten before it was read. */
static void widen(hnsw *g, uint32_t rows, uint32_t bits) {
    uint32_t links[HNSW_M0_MAX];
    for (uint32_t row = rows; row-- > 0;) {
        unpack(row0(g, g->first + row), g->link_bits, g->M0, links);
        uint32_t n = count_links(links, g->M0);
        pack(g->links0.base + (size_t)row * hnsw_row_bytes0(g->M0, bits), bits, g->M0, links, n);
    }
    g->link_bits = bits;
}

fvdb_status hnsw_reserve(hnsw *g, uint32_t n, fvdb_diag *diag) {
    uint32_t bits = g->packed ? max_u32(g->link_bits, hnsw_link_bits(n)) : 32, rows = n - g->first;
    size_t old_rows = g->links0.used / hnsw_row_bytes0(g->M0, g->link_bits);
    if (rows <= old_rows && bits == g->link_bits) return FVDB_OK;
    if (!blocks_resize(&g->edges, max_u32(rows, (uint32_t)old_rows))) return FAIL_MEMORY(diag);
    if (!region_resize(&g->links0, max_u32(rows, (uint32_t)old_rows) * hnsw_row_bytes0(g->M0, bits)))
        return FAIL_MEMORY(diag);
    if (bits != g->link_bits) widen(g, (uint32_t)old_rows, bits);
    if (rows > old_rows)
        memset(row0(g, g->first + (uint32_t)old_rows), 0xff, (rows - old_rows) * hnsw_row_bytes0(g->M0, bits));
    return FVDB_OK;
}

void hnsw_unpack0(const hnsw *g, uint32_t slot, uint32_t *out) { unpack(row0(g, slot), g->link_bits, g->M0, out); }

void hnsw_set_links0(hnsw *g, uint32_t slot, const uint32_t *links, uint32_t n) {
    assert(n <= g->M0);
    pack(row0(g, slot), g->link_bits, g->M0, links, n);
    if (g->edges.kept) g->edges.stale.base[slot - g->first] |= EDGE_STALE_LINKS;
}

uint32_t hnsw_links(const hnsw *g, uint32_t level, uint32_t node, uint32_t *out) {
    uint32_t room[HNSW_M0_MAX], n;
    const uint32_t *cells = hnsw_cells(g, level, node, room, &n);
    n = count_links(cells, n);
    memcpy(out, cells, n * sizeof *out);
    return n;
}

void hnsw_set_links(hnsw *g, uint32_t level, uint32_t node, const uint32_t *links, uint32_t n) {
    if (level == 0) {
        hnsw_set_links0(g, node, links, n);
        return;
    }
    assert(n <= g->M);
    uint32_t *cells = hnsw_upper_links(g, node, level);
    for (uint32_t i = 0; i < g->M; i++) cells[i] = i < n ? links[i] : FVDB_NO_SLOT;
}

/* ---- levels ---- */

uint32_t hnsw_draw_level(uint32_t M, uint32_t slot) {
    uint64_t u = mix64(slot), bound = UINT64_MAX / M;
    uint32_t level = 0;
    for (; u < bound && level < HNSW_LEVEL_MAX; bound /= M) level++;
    return level;
}

fvdb_status hnsw_append_upper(hnsw *g, uint32_t slot, uint32_t level, fvdb_diag *diag) {
    uint32_t u = g->upper_n;
    size_t blocks = (size_t)g->upper_blocks + level, cells = (size_t)level * g->M;
    if (!region_resize(&g->upper_slot, (size_t)(u + 1) * sizeof(uint32_t)) || !region_resize(&g->upper_level, u + 1) ||
        !region_resize(&g->upper_start, (size_t)(u + 1) * sizeof(uint32_t)) ||
        !region_resize(&g->upper_links, blocks * g->M * sizeof(uint32_t)))
        return FAIL_MEMORY(diag);
    ((uint32_t *)g->upper_slot.base)[u] = slot;
    g->upper_level.base[u] = (uint8_t)level;
    ((uint32_t *)g->upper_start.base)[u] = g->upper_blocks;
    memset(g->upper_links.base + (size_t)g->upper_blocks * g->M * sizeof(uint32_t), 0xff, cells * sizeof(uint32_t));
    g->upper_blocks = (uint32_t)blocks;
    g->upper_n = u + 1;
    return FVDB_OK;
}

void hnsw_truncate(hnsw *g, uint32_t n, uint32_t upper_n) {
    if (upper_n < g->upper_n) g->upper_blocks = ((const uint32_t *)g->upper_start.base)[upper_n];
    g->n = n;
    g->upper_n = upper_n;
    /* Shrinking a region cannot fail. */
    region_resize(&g->links0, (n - g->first) * hnsw_row_bytes0(g->M0, g->link_bits));
    blocks_resize(&g->edges, n - g->first);
    region_resize(&g->upper_slot, (size_t)upper_n * sizeof(uint32_t));
    region_resize(&g->upper_level, upper_n);
    region_resize(&g->upper_start, (size_t)upper_n * sizeof(uint32_t));
    region_resize(&g->upper_links, (size_t)g->upper_blocks * g->M * sizeof(uint32_t));
}

void hnsw_elect_entry(hnsw *g) {
    g->entry = FVDB_NO_SLOT;
    g->max_level = 0;
    for (uint32_t u = 0; u < g->upper_n; u++) {
        if (hnsw_upper_level(g, u) <= g->max_level) continue;
        g->max_level = hnsw_upper_level(g, u);
        g->entry = u;
    }
}

/* ---- renumber ---- */

/* Upper numbers follow the slots: upper_map says which one each gets. */
static fvdb_status renumber_upper(const hnsw *g, const uint32_t *order, uint32_t *upper_of, uint32_t *upper_map,
                                  hnsw *out, fvdb_diag *diag) {
    for (uint32_t u = 0; u < g->upper_n; u++) upper_of[hnsw_upper_slot(g, u) - g->first] = u + 1;
    for (uint32_t slot = g->first; slot < g->n; slot++) {
        const uint32_t u = upper_of[order[slot] - g->first];
        if (u == 0) continue;
        upper_map[u - 1] = out->upper_n;
        TRY(hnsw_append_upper(out, slot, hnsw_upper_level(g, u - 1), diag));
    }
    return FVDB_OK;
}

static void renumber_links(const hnsw *g, uint32_t level, uint32_t node, const uint32_t *map, uint32_t to, hnsw *out) {
    uint32_t links[HNSW_M0_MAX], n = hnsw_links(g, level, node, links);
    for (uint32_t i = 0; i < n; i++) links[i] = map[links[i]];
    hnsw_set_links(out, level, to, links, n);
}

fvdb_status hnsw_renumbered(const hnsw *g, const uint32_t *order, const uint32_t *map, hnsw *out, fvdb_diag *diag) {
    out->first = out->n = g->first;
    if (hnsw_rows(g) == 0) return FVDB_OK;
    uint32_t *upper_of = mem_alloc_array(hnsw_rows(g), sizeof *upper_of);
    uint32_t *upper_map = mem_alloc_array(g->upper_n, sizeof *upper_map);
    fvdb_status status = upper_of && upper_map ? hnsw_reserve(out, g->n, diag) : FAIL_MEMORY(diag);
    if (status == FVDB_OK) status = renumber_upper(g, order, upper_of, upper_map, out, diag);
    if (status == FVDB_OK) {
        for (uint32_t slot = g->first; slot < g->n; slot++) renumber_links(g, 0, order[slot], map, slot, out);
        for (uint32_t u = 0; u < g->upper_n; u++)
            for (uint32_t level = 1; level <= hnsw_upper_level(g, u); level++)
                renumber_links(g, level, u, upper_map, upper_map[u], out);
        out->n = g->n;
        out->max_level = g->max_level;
        out->entry = g->entry == FVDB_NO_SLOT ? FVDB_NO_SLOT : upper_map[g->entry];
    }
    mem_free(upper_of);
    mem_free(upper_map);
    return status;
}
