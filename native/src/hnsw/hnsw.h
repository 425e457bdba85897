/* Contract of hnsw/: one HNSW graph over the rows of a store (Malkov & Yashunin 2018, "Efficient and robust approximate
 * nearest neighbor search using Hierarchical Navigable Small World graphs").  Depends on store/.
 *
 * Level 0 is flat: row s has M0 = 2M link cells.  A row's links fill its cells from the left; the first FVDB_NO_SLOT
 * ends them.  Under memory="compact" cells are packed, two in link_bits / 4 bytes.
 * Rows on upper levels are numbered densely, in slot order, by an upper number u; links on levels >= 1 are upper
 * numbers, so a descent never looks a slot up.  Row u has level(u) blocks of M cells.
 * A "node" is a slot on level 0 and an upper number above.
 * Rows before `first` are in no graph, and take no memory here: other rows of the store, which a vacuum put in front. */
#ifndef FVDB_HNSW_H
#define FVDB_HNSW_H

#include "../store/store.h"

#define HNSW_LEVEL_MAX 15
#define HNSW_M0_MAX (2 * FVDB_M_MAX)

/* ---- hnsw_edges.c: a code for each link (memory="fast") ---- */

/* For each linked row a block: its links, then for every 32 of them their factors and codes (kernels.h, edge_near).  Blocks
 * follow from links and rows: they are in no version, and linking does not look at them. */
typedef struct edge_blocks {
    bool kept;
    uint32_t dim64, links, groups; /* a row's links, and groups of EDGE_LANES of them */
    size_t links_bytes, group_bytes;
    region blocks; /* rows x block */
    region stale;  /* rows x uint8: 0, or what of a block does not follow from its row any more */
    region origin; /* of codes: 2 x dim64 float32 */
    /* Rows of the highest levels, in groups like those of a block, as if they were neighbours of the origin. */
    uint32_t n_entries;
    region entries;      /* slots */
    region entry_groups; /* EDGE_ENTRIES_MAX / EDGE_LANES groups */
} edge_blocks;
#define EDGE_ENTRIES_MAX 512u
#define EDGE_STALE_LINKS 1u /* it is that of other links */
#define EDGE_STALE_BLOCK 2u /* it is that of none (with links or not: 2 or 3) */
static inline size_t blocks_block_bytes(const edge_blocks *e) { return e->links_bytes + e->groups * e->group_bytes; }

typedef struct hnsw {
    uint32_t M, M0, ef_construction;
    uint32_t first, n; /* rows linked: slots first .. n-1; none where they are equal */
    uint32_t entry;    /* upper number of the entry point; FVDB_NO_SLOT: no row is on an upper level, `first` is */
    uint32_t max_level;
    uint32_t link_bits; /* 32, or 16 .. 32 in steps of 4 when packed */
    bool packed;
    region links0; /* (n - first) x row_bytes0 */
    uint32_t upper_n;
    region upper_slot;  /* upper_n uint32, ascending */
    region upper_level; /* upper_n uint8, 1 .. HNSW_LEVEL_MAX */
    region upper_start; /* upper_n uint32: first block of a row in upper_links, in blocks of M cells */
    uint32_t upper_blocks;
    region upper_links; /* upper_blocks x M uint32 */
    edge_blocks edges;
} hnsw;

void blocks_init(edge_blocks *e, const fvdb_config *config);
void blocks_free(edge_blocks *e);
/* Room for the blocks of so many rows; shrinking cannot fail. */
bool blocks_resize(edge_blocks *e, uint32_t rows);
size_t blocks_resident(const edge_blocks *e);
/* Bytes of the blocks of so many rows, and those that coding all of them takes meanwhile; 0 where none are kept. */
uint64_t blocks_bytes(const fvdb_config *config, uint64_t rows);
uint64_t blocks_scratch(const fvdb_config *config, uint64_t rows);
/* Codes the links that changed since the last time.  Nothing where no blocks are kept.  False where it was cancelled: then
 * no walk may look at blocks before it was done again.  Fails for no other reason. */
bool hnsw_code_edges(hnsw *g, const store *s, thread_pool *c, const fvdb_control *control);
/* Neighbours are passed over that would have to be nearer than estimated by this many spreads.  Fewer lose neighbours and
 * take more expansions, more fetch codes in vain: 0.25 .. 0.75 are equally good at recall 0.95 and 0.99. */
#define EDGE_SPREADS 0.5f
/* The links of a row in its block; then group g of its codes. */
static inline const uint32_t *blocks_links(const hnsw *g, uint32_t slot) {
    return (const uint32_t *)(g->edges.blocks.base + (size_t)(slot - g->first) * blocks_block_bytes(&g->edges));
}

/* ---- hnsw_graph.c: nodes, links, levels ---- */

void hnsw_init(hnsw *g, const fvdb_config *config);
void hnsw_free(hnsw *g);
/* Gives back memory of links and blocks that no row uses. */
void hnsw_trim(const hnsw *g);
static inline uint32_t hnsw_rows(const hnsw *g) { return g->n - g->first; }
/* Room for links of rows up to n; new rows have none.  Widens packed links when slots need more bits. */
fvdb_status hnsw_reserve(hnsw *g, uint32_t n, fvdb_diag *diag);
/* Level of a row, drawn from its slot: geometric with ratio 1/M, as the paper's floor(-ln(u) / ln(M)). */
uint32_t hnsw_draw_level(uint32_t M, uint32_t slot);
/* Gives `slot` (above all earlier ones) an upper number with empty links. */
fvdb_status hnsw_append_upper(hnsw *g, uint32_t slot, uint32_t level, fvdb_diag *diag);
/* Drops rows >= n and upper numbers >= upper_n. */
void hnsw_truncate(hnsw *g, uint32_t n, uint32_t upper_n);
/* The same graph of rows with other slots: order is new slot -> old slot, map the reverse; rows before the first stay. */
fvdb_status hnsw_renumbered(const hnsw *g, const uint32_t *order, const uint32_t *map, hnsw *out, fvdb_diag *diag);
/* Makes the lowest row of the highest level the entry point. */
void hnsw_elect_entry(hnsw *g);
size_t hnsw_resident(const hnsw *g);
size_t hnsw_row_bytes0(uint32_t M0, uint32_t link_bits);
/* Bits a packed link needs when slots reach n - 1. */
uint32_t hnsw_link_bits(uint32_t n);

/* Writes the level-0 links of a row; n <= M0. */
void hnsw_set_links0(hnsw *g, uint32_t slot, const uint32_t *links, uint32_t n);
static inline uint32_t hnsw_upper_slot(const hnsw *g, uint32_t u) { return ((const uint32_t *)g->upper_slot.base)[u]; }
static inline uint8_t hnsw_upper_level(const hnsw *g, uint32_t u) { return g->upper_level.base[u]; }
/* Cells of upper row u on `level` (1 .. its level); M entries, FVDB_NO_SLOT ends them. */
static inline uint32_t *hnsw_upper_links(const hnsw *g, uint32_t u, uint32_t level) {
    const uint32_t *start = (const uint32_t *)g->upper_start.base;
    return (uint32_t *)g->upper_links.base + ((size_t)start[u] + level - 1) * g->M;
}
/* All M0 cells of a packed row. */
void hnsw_unpack0(const hnsw *g, uint32_t slot, uint32_t *out);
/* The links of a node, without a copy where they are not packed: up to n cells, of which those that are free, at the
 * end, hold FVDB_NO_SLOT.  `room` takes M0 entries. */
static inline const uint32_t *hnsw_cells(const hnsw *g, uint32_t level, uint32_t node, uint32_t *room, uint32_t *n) {
    *n = level ? g->M : g->M0;
    assert(level ? node < g->upper_n : node >= g->first);
    if (level) return hnsw_upper_links(g, node, level);
    if (g->link_bits == 32) return (const uint32_t *)g->links0.base + (size_t)(node - g->first) * g->M0;
    hnsw_unpack0(g, node, room);
    return room;
}
/* Brings the links of a node near. */
static inline void hnsw_prefetch(const hnsw *g, uint32_t level, uint32_t node) {
    if (level) return; /* small enough to be near */
    size_t bytes = (size_t)g->M0 * g->link_bits / 8;
    prefetch_bytes(g->links0.base + (node - g->first) * bytes, bytes);
}
/* Links of a node into out (M0 entries of room); returns how many. */
uint32_t hnsw_links(const hnsw *g, uint32_t level, uint32_t node, uint32_t *out);
void hnsw_set_links(hnsw *g, uint32_t level, uint32_t node, const uint32_t *links, uint32_t n);
static inline uint32_t hnsw_node_slot(const hnsw *g, uint32_t level, uint32_t node) {
    return level ? hnsw_upper_slot(g, node) : node;
}

/* ---- hnsw_search.c: the walk ---- */

/* The top bit of a candidate's node: its links were followed.  The pool is kept sorted by distance, first come first among
 * equals, and has room for what kernels.h merges into it. */
#define CANDIDATE_SEEN 0x80000000u

/* Scratch memory of one search or of linking one row, pooled by index/ and used by one thread at a time. */
typedef struct search_scratch {
    const store *s;
    const hnsw *g;
    scorer query;
    scorer pair;      /* distances between stored rows, while linking */
    edge_query edge;  /* of w->query, for edge blocks and codes of lists */
    uint8_t *visited; /* epoch marks by node: one byte, so 100 K rows stay in L2 */
    uint32_t visited_size;
    uint8_t epoch;
    candidate *pool;
    uint32_t pool_size, pool_n;
    hit *hits; /* room for what one query returns */
    uint32_t hits_size;
    void *room; /* for what is done beside the walk */
    size_t room_size;
    size_t bytes; /* all memory of this scratch */
} search_scratch;

fvdb_status scratch_init(search_scratch *w, const store *s, const hnsw *g);
void scratch_free(search_scratch *w);
/* Room to walk n nodes with a pool of pool_size. */
fvdb_status scratch_reserve(search_scratch *w, uint32_t n, uint32_t pool_size);
/* Room for the hits of a query. */
fvdb_status scratch_reserve_hits(search_scratch *w, uint32_t hits);
/* w->room of so many bytes. */
fvdb_status scratch_reserve_room(search_scratch *w, size_t bytes);

/* Starts a new set of marked nodes; scratch_mark is false for a node marked already. */
void scratch_begin_marks(search_scratch *w);
static inline bool scratch_mark(search_scratch *w, uint32_t node) {
    if (w->visited[node] == w->epoch) return false;
    w->visited[node] = w->epoch;
    return true;
}

/* Rows a search may return; the others still guide it. */
typedef struct row_filter {
    const uint64_t *live, *allow; /* either may be NULL */
    uint64_t allow_words;
    const uint64_t *moved; /* rows that are elsewhere now; may be NULL */
    uint64_t moved_words;
    uint32_t pool_most; /* candidates of a walk, those that only guide it included */
} row_filter;
static inline bool row_allowed(const row_filter *f, uint32_t slot) {
    return row_passes(f->live, f->allow, f->allow_words, slot) &&
           !(f->moved && bit_within(f->moved, f->moved_words, slot));
}

/* Nearest node to w->query on the levels above `level`: the greedy descent of Alg. 5.  An upper number, or a slot when
 * level is 0. */
uint32_t hnsw_descend(search_scratch *w, uint32_t level);
/* Search of one level from `entry` (Alg. 2): afterwards w->pool holds the nearest found, with up to ef allowed ones.
 * filter: NULL allows all. */
void hnsw_walk_level(search_scratch *w, uint32_t level, uint32_t entry, uint32_t ef, const row_filter *filter);
/* ---- hnsw_edge_walk.c ---- */

/* Search of level 0 by edge codes, where hnsw_has_edges: as hnsw_walk_level, from the nearest rows of the highest levels. */
void hnsw_walk_edges(search_scratch *w, uint32_t ef, const row_filter *filter);
static inline bool hnsw_has_edges(const hnsw *g) { return g->edges.kept && g->edges.n_entries; }
/* Puts a node into the pool, behind all that are as near; returns where. */
uint32_t scratch_insert(search_scratch *w, float distance, uint32_t node);
/* Merges nodes into the pool, and cuts it to `capacity`: as if they were put into it one after the other.  Returns the place
 * of the nearest.  distances: no NaN, and room for MERGED_MOST more, as in nodes. */
uint32_t scratch_merge(search_scratch *w, float *distances, const uint32_t *nodes, uint32_t n, uint32_t capacity);
/* Pools up to this size have what is found merged into them; into larger ones a row at a time is less to move. */
#define MERGED_POOL_MOST 128u
/* Puts a node into the pool as a walk would; `capacity` bounds the pool. */
void scratch_offer(search_scratch *w, float distance, uint32_t node, uint32_t capacity);

/* ---- hnsw_insert.c: linking new rows ---- */

/* Rows that are linked at a time. */
#define HNSW_BATCH 1024u
/* Candidates of a target: its links and the nearest of the rows that want to be linked. */
#define HNSW_MERGED_MAX (HNSW_M0_MAX + HNSW_BATCH)

/* What hnsw_link changed in rows that were there before, to take it back. */
typedef struct hnsw_undo {
    uint32_t n, upper_n, entry, max_level;
    uint64_t *touched0, *touched_upper; /* bitmaps over n and upper_n */
    region saved0;                      /* records of slot, count, links */
    region saved_upper;                 /* records of upper number, level, count, links */
} hnsw_undo;

fvdb_status hnsw_undo_begin(hnsw_undo *u, const hnsw *g, fvdb_diag *diag);
void hnsw_undo_apply(hnsw_undo *u, hnsw *g);
void hnsw_undo_free(hnsw_undo *u);

/* Links rows g->n .. end-1, whose vectors and codes are in the store.  scratch: one per thread of the pool.  On failure the caller
 * applies the undo. */
fvdb_status hnsw_link(hnsw *g, store *s, uint32_t end, search_scratch *const *scratch, thread_pool *c, hnsw_undo *undo,
                      const progress_range *range, fvdb_diag *diag);
/* Links all rows anew on level 0, knowing the whole graph. */
fvdb_status hnsw_refine(hnsw *g, store *s, search_scratch *const *scratch, thread_pool *c, hnsw_undo *undo,
                        const progress_range *range, fvdb_diag *diag);
/* Where walks go by rows: adds a link of a row (on level 0) to one drawn from a hash of its slot among the first `linked` rows
 * of the graph, which leads anywhere; HNSW_FAR_LINKS of the cells are kept free for it.  map: rows that it sends to
 * FVDB_NO_SLOT are not drawn; NULL for none.  Returns how many links there are then. */
uint32_t hnsw_add_far(const hnsw *g, const store *s, uint32_t slot, uint32_t linked, const uint32_t *map,
                      uint32_t *links, uint32_t n);
#define HNSW_FAR_LINKS 1u
static inline uint32_t hnsw_far_links(const store *s, uint32_t level) {
    return level == 0 && store_walks_by(s) == WALK_BY_ROW ? HNSW_FAR_LINKS : 0;
}
/* Most bytes that linking so many rows, and linking all rows anew, take beside the graph, scratch and undo. */
uint64_t hnsw_link_scratch(uint32_t M, uint64_t rows);
uint64_t hnsw_refine_scratch(uint32_t M, uint32_t linked);
/* The diversity heuristic (Alg. 4) for the row that w->query was set to: from the pool, nearest first, keeps those nearer to
 * it than `slack` times their distance to any kept one; at most M, into out.  Returns how many. */
uint32_t hnsw_select(search_scratch *w, uint32_t level, uint32_t slot, uint32_t M, float slack, uint32_t *out);

/* ---- hnsw_repair.c: taking rows out ---- */

/* Lost rows followed from one row; past some hundreds of candidates recall gains nothing more. */
#define HNSW_EXPAND_MAX 64u
#define HNSW_REPAIR_CANDIDATES (HNSW_M0_MAX * (HNSW_EXPAND_MAX + 2))

/* New links for every row that stays, as a fresh graph numbered by map (old slot -> new slot, FVDB_NO_SLOT = goes).
 * `g` and its store are read only; `out` replaces g once the store is compacted. */
fvdb_status hnsw_without(const hnsw *g, const store *s, const uint32_t *map, uint32_t n, search_scratch *const *scratch,
                         thread_pool *c, fvdb_control *control, hnsw *out, fvdb_diag *diag);

#endif
