/* Contract of hnsw/: one HNSW graph over the rows of a store (Malkov & Yashunin 2018).  Depends on store/.
 *
 * Level 0 is flat: row s has M0 = 2M link cells.  A row's links fill its cells from the left; the first FVDB_NO_SLOT
 * ends them.  Under memory="compact" cells are packed, two in link_bits / 4 bytes.
 * Rows on upper levels are numbered densely, in slot order, by an upper number u; links on levels >= 1 are upper
 * numbers, so a descent never looks a slot up.  Row u has level(u) blocks of M cells. */
#ifndef FVDB_HNSW_H
#define FVDB_HNSW_H

#include "../store/store.h"

#define HNSW_LEVEL_MAX 15

typedef struct hnsw {
    uint32_t M, M0, ef_construction;
    uint32_t n;                  /* rows linked: slots 0 .. n-1; 0 or the store's n outside of an add */
    uint32_t entry;              /* upper number of the entry point, FVDB_NO_SLOT while no row is on an upper level */
    uint32_t max_level;
    uint32_t link_bits;          /* 32, or 16 .. 32 in steps of 4 when packed */
    region links0;               /* n x row_bytes0 */
    uint32_t upper_n;
    region upper_slot;           /* upper_n uint32, ascending */
    region upper_level;          /* upper_n uint8, 1 .. HNSW_LEVEL_MAX */
    region upper_start;          /* upper_n uint32: first block of a row in upper_links, in blocks of M cells */
    uint32_t upper_blocks;
    region upper_links;          /* upper_blocks x M uint32 */
} hnsw;

/* Level-0 links of a row into out (M0 entries of room); returns how many. */
uint32_t hnsw_links0(const hnsw *g, uint32_t slot, uint32_t *out);
/* Writes them; n <= M0. */
void hnsw_set_links0(hnsw *g, uint32_t slot, const uint32_t *links, uint32_t n);
/* Cells of upper row u on `level` (1 .. its level); M entries, FVDB_NO_SLOT ends them. */
static inline uint32_t *hnsw_upper_links(const hnsw *g, uint32_t u, uint32_t level) {
    const uint32_t *start = (const uint32_t *)g->upper_start.base;
    return (uint32_t *)g->upper_links.base + ((size_t)start[u] + level - 1) * g->M;
}
static inline uint32_t hnsw_upper_slot(const hnsw *g, uint32_t u) { return ((const uint32_t *)g->upper_slot.base)[u]; }
static inline uint8_t hnsw_upper_level(const hnsw *g, uint32_t u) { return g->upper_level.base[u]; }

#endif
