/* The walk: greedy descent through the upper levels, then a best-first search with a linear pool.
 *
 * The pool is one sorted array (not two heaps as in the paper's Alg. 2): at the usual ef of 50 to 200 entries an insert
 * is one short memmove, and the next node to expand is found by a cursor.
 * A walk waits for memory, not for arithmetic: with everything in the cache it takes a quarter of its time.  So it is a
 * pipeline: each step expands the BEAM nearest candidates and asks for the codes of their unseen neighbours, and while
 * those are on their way scores the neighbours of the step before; a candidate's links are fetched when it enters the
 * pool.  That is up to 2 x BEAM expansions that the paper, which takes one at a time, might not have made: some 5 % more
 * rows, in half the time (docs/decisions/0010).
 * Rows that a search may not return (tombstones, filtered rows) stay in the pool and guide it, but do not count: the
 * pool ends at the ef-th allowed row. */
#include "hnsw.h"

#include <math.h>

#define BEAM 2u
/* High halves are four times as long as codes, rows eight times: with half as many on their way the memory is busy, and expansions too many
 * cost more (33 us instead of 36 at recall 0.954, 100 K x 384, memory="compact"). */
#define BEAM_PLANES 1u
/* Candidates of the pool that are counted, not halved, for the place of a new one: all of them at the usual ef. */
#define COUNTED_MOST 64u

/* ---- memory ---- */

fvdb_status scratch_init(search_scratch *w, const store *s, const hnsw *g) {
    *w = (search_scratch){.s = s, .g = g, .bytes = sizeof *w};
    TRY(scorer_init(&w->query, s));
    fvdb_status status = scorer_init(&w->pair, s);
    if (status == FVDB_OK && s->memory != FVDB_MEMORY_COMPACT) status = edge_query_init(&w->edge, s);
    if (status == FVDB_OK) return FVDB_OK;
    scorer_free(&w->query);
    scorer_free(&w->pair);
    return status;
}

void scratch_free(search_scratch *w) {
    scorer_free(&w->query);
    scorer_free(&w->pair);
    edge_query_free(&w->edge);
    mem_free(w->visited);
    mem_free(w->pool);
    mem_free(w->hits);
    mem_free(w->room);
}

static void count_bytes(search_scratch *w) {
    w->bytes = sizeof *w + w->visited_size + (w->pool_size + MERGED_MOST) * sizeof *w->pool +
               w->hits_size * sizeof *w->hits + w->room_size;
}

fvdb_status scratch_reserve(search_scratch *w, uint32_t n, uint32_t pool_size) {
    if (n >= w->visited_size) {
        uint32_t size = n + n / 8 + 1; /* the last one stands for no node */
        uint8_t *visited = mem_alloc_array(size, 1);
        if (!visited) return FVDB_ERR_MEMORY;
        mem_free(w->visited);
        w->visited = visited;
        w->visited_size = size;
        w->epoch = 0;
    }
    if (pool_size > w->pool_size) {
        candidate *pool = mem_realloc(w->pool, (pool_size + MERGED_MOST) * sizeof *pool);
        if (!pool) return FVDB_ERR_MEMORY;
        w->pool = pool;
        w->pool_size = pool_size;
    }
    count_bytes(w);
    return FVDB_OK;
}

fvdb_status scratch_reserve_hits(search_scratch *w, uint32_t hits) {
    if (hits <= w->hits_size) return FVDB_OK;
    hit *room = mem_realloc(w->hits, hits * sizeof *room);
    if (!room) return FVDB_ERR_MEMORY;
    w->hits = room;
    w->hits_size = hits;
    count_bytes(w);
    return FVDB_OK;
}

fvdb_status scratch_reserve_room(search_scratch *w, size_t bytes) {
    if (bytes <= w->room_size) return FVDB_OK;
    void *room = mem_realloc(w->room, bytes);
    if (!room) return FVDB_ERR_MEMORY;
    w->room = room;
    w->room_size = bytes;
    count_bytes(w);
    return FVDB_OK;
}

void scratch_begin_marks(search_scratch *w) {
    if (++w->epoch == 0) {
        memset(w->visited, 0, w->visited_size);
        w->epoch = 1;
    }
    w->visited[w->visited_size - 1] = w->epoch;
}

/* ---- pool ---- */

/* Where a distance belongs: after everything nearer or equal, so that equals keep their order of arrival.  No branch
 * depends on a distance: none could be predicted.  Each step of halving waits for the one before, so the last candidates
 * are counted instead, some at a time (docs/decisions/0037). */
static uint32_t pool_position(const search_scratch *w, float distance) {
    const candidate *from = w->pool;
    uint32_t n = w->pool_n, nearer = 0;
    while (n > COUNTED_MOST) {
        uint32_t half = n / 2;
        from += half & -(uint32_t)(from[half - 1].distance <= distance); /* a mask: compilers make a branch of ?: */
        n -= half;
    }
    for (uint32_t i = 0; i < n; i++) nearer += from[i].distance <= distance;
    return (uint32_t)(from - w->pool) + nearer;
}

static inline uint32_t pool_insert(search_scratch *w, float distance, uint32_t node) {
    uint32_t at = pool_position(w, distance);
    memmove(w->pool + at + 1, w->pool + at, (w->pool_n - at) * sizeof *w->pool);
    w->pool[at] = (candidate){distance, node};
    w->pool_n++;
    return at;
}

uint32_t scratch_insert(search_scratch *w, float distance, uint32_t node) { return pool_insert(w, distance, node); }

uint32_t scratch_merge(search_scratch *w, float *distances, const uint32_t *nodes, uint32_t n, uint32_t capacity) {
    uint32_t first = UINT32_MAX;
    for (uint32_t i = 0; i < MERGED_MOST; i++) distances[n + i] = INFINITY;
    for (uint32_t i = 0; i < n; i += MERGED_MOST) {
        const uint32_t some = min_u32(n - i, MERGED_MOST);
        first = min_u32(first, w->s->kernels->merge(w->pool, w->pool_n, distances + i, nodes + i, some));
        w->pool_n = min_u32(w->pool_n + some, capacity);
    }
    return first;
}

void scratch_offer(search_scratch *w, float distance, uint32_t node, uint32_t capacity) {
    if (w->pool_n == capacity) {
        if (distance >= w->pool[capacity - 1].distance) return;
        w->pool_n--;
    }
    pool_insert(w, distance, node);
}

/* ---- descent ---- */

static void score_nodes(const search_scratch *w, uint32_t level, const uint32_t *nodes, uint32_t n, float *out) {
    uint32_t slots[HNSW_M0_MAX];
    if (level == 0) {
        scorer_many(&w->query, nodes, n, out);
        return;
    }
    for (uint32_t i = 0; i < n; i++) slots[i] = hnsw_upper_slot(w->g, nodes[i]);
    scorer_many(&w->query, slots, n, out);
}

/* Without upper rows walks begin at the first row that may have links. */
static uint32_t first_with_vector(const search_scratch *w) {
    for (uint32_t slot = w->g->first; slot < w->g->n; slot++)
        if (!store_is_vectorless(w->s, slot)) return slot;
    return FVDB_NO_SLOT;
}

uint32_t hnsw_descend(search_scratch *w, uint32_t level) {
    const hnsw *g = w->g;
    if (g->entry == FVDB_NO_SLOT) return first_with_vector(w);
    uint32_t node = g->entry;
    float nearest, distances[HNSW_M0_MAX];
    score_nodes(w, 1, &node, 1, &nearest);
    for (uint32_t at = g->max_level; at > level; at--) {
        for (uint32_t from = FVDB_NO_SLOT; from != node;) {
            from = node;
            const uint32_t *links = hnsw_upper_links(g, from, at);
            uint32_t n = 0;
            while (n < g->M && links[n] != FVDB_NO_SLOT) n++;
            score_nodes(w, at, links, n, distances);
            for (uint32_t i = 0; i < n; i++) {
                if (distances[i] >= nearest) continue;
                nearest = distances[i];
                node = links[i];
            }
        }
    }
    return level ? node : hnsw_upper_slot(g, node);
}

/* ---- one level ---- */

/* Rows to score, on their way from memory. */
typedef struct frontier {
    uint32_t n, nodes[BEAM * HNSW_M0_MAX + MERGED_MOST], slots[BEAM * HNSW_M0_MAX + 1];
} frontier;

/* Appends the neighbours of a node that have no mark yet, and marks them. */
static void gather(search_scratch *w, uint32_t level, uint32_t node, frontier *f) {
    uint32_t unpacked[HNSW_M0_MAX], cells, n = f->n, none = w->visited_size - 1;
    const uint32_t *links = hnsw_cells(w->g, level, node, unpacked, &cells);
    uint8_t *visited = w->visited, epoch = w->epoch;
    /* No branch here: whether a row was met before, and where the links end, cannot be predicted. */
    for (uint32_t i = 0; i < cells; i++) {
        uint32_t link = links[i] == FVDB_NO_SLOT ? none : links[i];
        f->nodes[n] = link;
        n += visited[link] != epoch;
        visited[link] = epoch;
    }
    for (; f->n < n; f->n++) {
        f->slots[f->n] = hnsw_node_slot(w->g, level, f->nodes[f->n]);
        scorer_prefetch(&w->query, f->slots[f->n]);
    }
}

/* Expands the `beam` nearest candidates from *cursor on that were not yet. */
static void expand(search_scratch *w, uint32_t level, uint32_t beam, uint32_t *cursor, frontier *f) {
    f->n = 0;
    for (uint32_t expanded = 0; *cursor < w->pool_n && expanded < beam; ++*cursor) {
        candidate *c = w->pool + *cursor;
        if (c->node & CANDIDATE_SEEN) continue;
        gather(w, level, c->node, f);
        c->node |= CANDIDATE_SEEN;
        expanded++;
    }
}

/* Drops the rows that are not nearer than the pool's last, which only moves nearer.  Most are not, which ones cannot be
 * predicted: without a branch a row. */
static void keep_nearer(const search_scratch *w, frontier *f, float *distances) {
    const float last = w->pool[w->pool_n - 1].distance;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f->n; i++) {
        const float distance = distances[i];
        distances[kept] = distance;
        f->nodes[kept] = f->nodes[i];
        kept += !(distance >= last);
    }
    f->n = kept;
}

/* Distances that overflowed have no place among others, but that of insertion. */
static bool has_nan(const float *distances, uint32_t n) {
    bool found = false;
    for (uint32_t i = 0; i < n; i++) found |= distances[i] != distances[i];
    return found;
}

static inline bool returns(const search_scratch *w, uint32_t level, const row_filter *filter, uint32_t node) {
    return !filter || row_allowed(filter, hnsw_node_slot(w->g, level, node));
}

void hnsw_walk_level(search_scratch *w, uint32_t level, uint32_t entry, uint32_t ef, const row_filter *filter) {
    const hnsw *g = w->g;
    frontier frontiers[2], *scored = &frontiers[0], *next = &frontiers[1];
    float distances[BEAM * HNSW_M0_MAX + MERGED_MOST];
    uint32_t capacity = filter ? filter->pool_most : ef, allowed = 0, cursor = 0;
    uint32_t beam = store_walks_by(w->s) == WALK_BY_CODE ? BEAM : BEAM_PLANES;
    scratch_begin_marks(w);
    scratch_mark(w, entry);
    w->pool_n = 0;
    scored->n = 1;
    scored->nodes[0] = entry;
    scored->slots[0] = hnsw_node_slot(g, level, entry);
    for (;;) {
        expand(w, level, beam, &cursor, next);
        if (scored->n == 0 && next->n == 0) break;
        scorer_prefetched(&w->query, scored->slots, scored->n, distances);
        if (allowed >= ef || w->pool_n >= capacity) keep_nearer(w, scored, distances);
        if (!filter && ef <= MERGED_POOL_MOST && !has_nan(distances, scored->n)) {
            for (uint32_t i = 0; i < scored->n; i++) hnsw_prefetch(g, level, scored->nodes[i]);
            cursor = min_u32(cursor, scratch_merge(w, distances, scored->nodes, scored->n, ef));
            allowed = w->pool_n;
        } else {
            for (uint32_t i = 0; i < scored->n; i++) {
                bool full = allowed >= ef || w->pool_n >= capacity;
                if (full && distances[i] >= w->pool[w->pool_n - 1].distance) continue;
                hnsw_prefetch(g, level, scored->nodes[i]);
                cursor = min_u32(cursor, pool_insert(w, distances[i], scored->nodes[i]));
                allowed += returns(w, level, filter, scored->nodes[i]);
                /* Cut behind the ef-th allowed row; without a filter that drops exactly the worst one. */
                while (w->pool_n > capacity || allowed > ef) {
                    uint32_t last = w->pool[--w->pool_n].node & ~CANDIDATE_SEEN;
                    allowed -= returns(w, level, filter, last);
                }
            }
        }
        frontier *free = scored;
        scored = next;
        next = free;
    }
    for (uint32_t i = 0; i < w->pool_n; i++) w->pool[i].node &= ~CANDIDATE_SEEN;
}
