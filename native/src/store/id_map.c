/* Ids: bytes in one arena, found through a table of slots.
 *
 * At 100 K ids of 16 bytes this takes 25.3 bytes a row: 16 of id, 4 of offset, 5.3 of table.  A dict of Python strings
 * takes over 150.  The table holds slots only; a probe that meets a taken cell compares bytes in the arena.
 *
 * Invariants: the table is at most 7/8 full, so a probe always ends; linked ids are distinct. */
#include "store.h"

#define TABLE_MIN 64u

void id_map_init(id_map *m, uint64_t seed) { *m = (id_map){.seed = seed}; }

void id_map_free(id_map *m) {
    region_free(&m->bytes);
    region_free(&m->offsets);
    mem_free(m->table);
    *m = (id_map){.seed = m->seed};
}

static uint32_t *offsets_of(const id_map *m) { return (uint32_t *)m->offsets.base; }

static uint32_t bytes_used(const id_map *m) { return m->n ? offsets_of(m)[m->n] : 0; }

/* Eight bytes at a time through mix64; the seed keeps chosen ids from piling up in one place. */
static uint64_t hash_id(const id_map *m, const uint8_t *id, size_t size) {
    uint64_t hash = mix64(m->seed ^ size);
    for (; size >= 8; id += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, id, 8);
        hash = mix64(hash ^ word);
    }
    uint64_t rest = 0;
    for (size_t i = 0; i < size; i++) rest = rest << 8 | id[i];
    return mix64(hash ^ rest);
}

static uint32_t home_of(const id_map *m, uint32_t slot) {
    size_t size;
    const uint8_t *id = id_map_get(m, slot, &size);
    return (uint32_t)hash_id(m, id, size) & (m->table_size - 1);
}

/* ---- table ---- */

static void insert(id_map *m, uint32_t slot) {
    uint32_t mask = m->table_size - 1, at = home_of(m, slot);
    while (m->table[at] != FVDB_NO_SLOT) at = (at + 1) & mask;
    m->table[at] = slot;
    m->linked++;
}

static uint32_t table_size_for(uint64_t ids) {
    uint64_t size = TABLE_MIN;
    while (size * 7 / 8 < ids) size *= 2;
    return size <= UINT32_MAX ? (uint32_t)size : 0;
}

static bool grow_table(id_map *m, uint32_t size) {
    uint32_t *table = size ? mem_alloc((size_t)size * sizeof *table) : NULL, *old = m->table, old_size = m->table_size;
    if (!table) return false;
    memset(table, 0xff, (size_t)size * sizeof *table);
    m->table = table;
    m->table_size = size;
    m->linked = 0;
    for (uint32_t i = 0; i < old_size; i++)
        if (old[i] != FVDB_NO_SLOT) insert(m, old[i]);
    mem_free(old);
    return true;
}

fvdb_status id_map_reserve(id_map *m, uint32_t rows, uint64_t id_bytes, fvdb_diag *diag) {
    uint64_t bytes = bytes_used(m) + id_bytes;
    if (bytes > UINT32_MAX) return FAIL_AT(diag, FVDB_ERR_TOO_MANY, "the ids' bytes pass 4 GiB", 0, UINT32_MAX, bytes);
    size_t old_bytes = m->bytes.used, old_offsets = m->offsets.used;
    if (!region_resize(&m->bytes, max_u32((uint32_t)bytes, (uint32_t)old_bytes)) ||
        !region_resize(&m->offsets, ((size_t)m->n + rows + 1) * sizeof(uint32_t))) {
        region_resize(&m->bytes, old_bytes);
        region_resize(&m->offsets, old_offsets);
        return FAIL_MEMORY(diag);
    }
    uint64_t size = table_size_for((uint64_t)m->linked + rows);
    if (size <= m->table_size && size) return FVDB_OK;
    return grow_table(m, (uint32_t)size) ? FVDB_OK : FAIL_MEMORY(diag);
}

uint32_t id_map_find(const id_map *m, const uint8_t *id, size_t size) {
    if (m->table_size == 0) return FVDB_NO_SLOT;
    uint32_t mask = m->table_size - 1;
    for (uint32_t at = (uint32_t)hash_id(m, id, size) & mask; m->table[at] != FVDB_NO_SLOT; at = (at + 1) & mask) {
        size_t other_size;
        const uint8_t *other = id_map_get(m, m->table[at], &other_size);
        if (other_size == size && memcmp(other, id, size) == 0) return m->table[at];
    }
    return FVDB_NO_SLOT;
}

void id_map_link(id_map *m, uint32_t slot) {
    assert(m->linked < m->table_size);
    insert(m, slot);
}

/* Backward-shift deletion (Knuth, The Art of Computer Programming 3, 6.4, Algorithm R): entries behind the hole move up
 * where that brings them no further from home than they may be; no markers are left behind. */
void id_map_unlink(id_map *m, uint32_t slot) {
    if (m->table_size == 0) return;
    uint32_t mask = m->table_size - 1, hole = home_of(m, slot);
    while (m->table[hole] != slot) {
        if (m->table[hole] == FVDB_NO_SLOT) return;
        hole = (hole + 1) & mask;
    }
    for (uint32_t at = (hole + 1) & mask; m->table[at] != FVDB_NO_SLOT; at = (at + 1) & mask) {
        uint32_t home = home_of(m, m->table[at]);
        if (((at - home) & mask) < ((at - hole) & mask)) continue;
        m->table[hole] = m->table[at];
        hole = at;
    }
    m->table[hole] = FVDB_NO_SLOT;
    m->linked--;
}

/* ---- arena ---- */

void id_map_append(id_map *m, const uint8_t *id, size_t size) {
    uint32_t at = bytes_used(m);
    assert(size <= m->bytes.used - at && (m->n + 2) * sizeof(uint32_t) <= m->offsets.used); /* was reserved */
    memcpy(m->bytes.base + at, id, size);
    offsets_of(m)[m->n] = at;
    offsets_of(m)[++m->n] = at + (uint32_t)size;
}

const uint8_t *id_map_get(const id_map *m, uint32_t slot, size_t *size) {
    const uint32_t *offsets = offsets_of(m);
    *size = offsets[slot + 1] - offsets[slot];
    return m->bytes.base + offsets[slot];
}

int id_map_compare(const id_map *m, uint32_t a, uint32_t b) {
    size_t a_size, b_size;
    const uint8_t *a_id = id_map_get(m, a, &a_size), *b_id = id_map_get(m, b, &b_size);
    int order = memcmp(a_id, b_id, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

void id_map_truncate(id_map *m, uint32_t n) {
    m->n = n;
    region_resize(&m->bytes, bytes_used(m));
    region_resize(&m->offsets, n ? ((size_t)n + 1) * sizeof(uint32_t) : 0);
}

fvdb_status id_map_reordered(const id_map *m, const uint32_t *order, uint32_t n, region *bytes, region *offsets,
                             fvdb_diag *diag) {
    size_t total = 0, size;
    for (uint32_t i = 0; i < n; i++) {
        id_map_get(m, order[i], &size);
        total += size;
    }
    *bytes = *offsets = (region){0};
    if (!region_resize(bytes, total) || !region_resize(offsets, n ? ((size_t)n + 1) * sizeof(uint32_t) : 0)) {
        region_free(bytes);
        return FAIL_MEMORY(diag);
    }
    uint32_t *starts = (uint32_t *)offsets->base;
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++, at += size) {
        const uint8_t *id = id_map_get(m, order[i], &size);
        memcpy(bytes->base + at, id, size);
        starts[i] = (uint32_t)at;
    }
    if (n) starts[n] = (uint32_t)at;
    return FVDB_OK;
}

static void exchange_regions(region *a, region *b) {
    region swap = *a;
    *a = *b;
    *b = swap;
}

void id_map_exchange(id_map *m, region *bytes, region *offsets, uint32_t n, const uint64_t *live) {
    exchange_regions(&m->bytes, bytes);
    exchange_regions(&m->offsets, offsets);
    m->n = n;
    /* Every slot has a new number: the table is filled anew, at its old size, which is large enough. */
    if (m->table) memset(m->table, 0xff, (size_t)m->table_size * sizeof *m->table);
    m->linked = 0;
    for (uint32_t slot = 0; slot < n; slot++)
        if (bit_get(live, slot)) insert(m, slot);
}

size_t id_map_resident(const id_map *m) {
    return region_resident(&m->bytes) + region_resident(&m->offsets) + (size_t)m->table_size * sizeof *m->table;
}

/* ---- well-formed ids ---- */

/* Length of the UTF-8 sequence at p, or 0: the table of well-formed sequences of RFC 3629, section 4. */
static size_t sequence(const uint8_t *p, size_t left) {
    uint8_t c = p[0];
    size_t size = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    if (size == 0 || size > left) return 0;
    uint8_t low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < size; i++, low = 0x80, high = 0xbf)
        if (p[i] < low || p[i] > high) return 0;
    return size;
}

bool id_valid(const uint8_t *id, size_t size) {
    if (size == 0 || size > FVDB_ID_BYTES_MAX) return false;
    for (size_t at = 0, step; at < size; at += step)
        if ((step = sequence(id + at, size - at)) == 0) return false;
    return true;
}
