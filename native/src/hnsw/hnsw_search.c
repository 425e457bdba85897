/* The walk: greedy descent through the upper levels, then a best-first search with a linear pool.
 *
 * The pool is one sorted array (not two heaps as in the paper's Alg. 2): at the usual ef of 50 to 200 entries an insert
 * is one short memmove, and the next node to expand is found by a cursor.
 * Rows that a search may not return (tombstones, filtered rows) stay in the pool and guide it, but do not count: the
 * pool ends at the ef-th allowed row. */
#include "hnsw.h"

/* ---- memory ---- */

fvdb_status walk_init(walk *w, const store *s, const hnsw *g) {
    *w = (walk){.s = s, .g = g, .bytes = sizeof *w};
    TRY(scorer_init(&w->query, s));
    fvdb_status status = scorer_init(&w->pair, s);
    if (status != FVDB_OK) scorer_free(&w->query);
    return status;
}

void walk_free(walk *w) {
    scorer_free(&w->query);
    scorer_free(&w->pair);
    mem_free(w->visited);
    mem_free(w->pool);
}

fvdb_status walk_reserve(walk *w, uint32_t n, uint32_t pool_size) {
    if (n > w->visited_size) {
        uint32_t size = n + n / 8;
        uint8_t *visited = mem_alloc_array(size, 1);
        if (!visited) return FVDB_ERR_MEMORY;
        mem_free(w->visited);
        w->visited = visited;
        w->visited_size = size;
        w->epoch = 0;
    }
    if (pool_size > w->pool_size) {
        candidate *pool = mem_realloc(w->pool, pool_size * sizeof *pool);
        if (!pool) return FVDB_ERR_MEMORY;
        w->pool = pool;
        w->pool_size = pool_size;
    }
    w->bytes = sizeof *w + w->visited_size + w->pool_size * sizeof *w->pool;
    return FVDB_OK;
}

void walk_begin_marks(walk *w) {
    if (++w->epoch == 0) {
        memset(w->visited, 0, w->visited_size);
        w->epoch = 1;
    }
}

bool walk_mark(walk *w, uint32_t node) {
    if (w->visited[node] == w->epoch) return false;
    w->visited[node] = w->epoch;
    return true;
}

/* ---- pool ---- */

/* Where a distance belongs: after everything nearer or equal, so that equals keep their order of arrival. */
static uint32_t pool_position(const walk *w, float distance) {
    uint32_t low = 0, high = w->pool_n;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (w->pool[middle].distance <= distance) low = middle + 1;
        else high = middle;
    }
    return low;
}

static uint32_t pool_insert(walk *w, float distance, uint32_t node) {
    uint32_t at = pool_position(w, distance);
    memmove(w->pool + at + 1, w->pool + at, (w->pool_n - at) * sizeof *w->pool);
    w->pool[at] = (candidate){distance, node};
    w->pool_n++;
    return at;
}

void walk_offer(walk *w, float distance, uint32_t node, uint32_t capacity) {
    if (w->pool_n == capacity) {
        if (distance >= w->pool[capacity - 1].distance) return;
        w->pool_n--;
    }
    pool_insert(w, distance, node);
}

/* ---- descent ---- */

static void score_nodes(const walk *w, uint32_t level, const uint32_t *nodes, uint32_t n, float *out) {
    uint32_t slots[HNSW_M0_MAX];
    if (level == 0) {
        scorer_many(&w->query, nodes, n, out);
        return;
    }
    for (uint32_t i = 0; i < n; i++) slots[i] = hnsw_upper_slot(w->g, nodes[i]);
    scorer_many(&w->query, slots, n, out);
}

uint32_t hnsw_descend(walk *w, uint32_t level) {
    const hnsw *g = w->g;
    if (g->entry == FVDB_NO_SLOT) return 0;
    uint32_t node = g->entry, links[HNSW_M0_MAX];
    float nearest, distances[HNSW_M0_MAX];
    score_nodes(w, 1, &node, 1, &nearest);
    for (uint32_t at = g->max_level; at > level; at--) {
        for (uint32_t from = FVDB_NO_SLOT; from != node;) {
            from = node;
            uint32_t n = hnsw_links(g, at, from, links);
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

void hnsw_walk_level(walk *w, uint32_t level, uint32_t entry, uint32_t ef, const row_filter *filter) {
    const hnsw *g = w->g;
    uint32_t links[HNSW_M0_MAX], fresh[HNSW_M0_MAX];
    float distances[HNSW_M0_MAX];
    uint32_t capacity = filter ? w->pool_size - 1 : ef;
    walk_begin_marks(w);
    walk_mark(w, entry);
    score_nodes(w, level, &entry, 1, distances);
    w->pool_n = 0;
    pool_insert(w, distances[0], entry);
    uint32_t allowed = !filter || row_allowed(filter, hnsw_node_slot(g, level, entry));
    for (uint32_t cursor = 0; cursor < w->pool_n;) {
        if (w->pool[cursor].node & CANDIDATE_SEEN) {
            cursor++;
            continue;
        }
        uint32_t n = hnsw_links(g, level, w->pool[cursor].node, links), n_fresh = 0;
        w->pool[cursor].node |= CANDIDATE_SEEN;
        for (uint32_t i = 0; i < n; i++)
            if (walk_mark(w, links[i])) fresh[n_fresh++] = links[i];
        score_nodes(w, level, fresh, n_fresh, distances);
        for (uint32_t i = 0; i < n_fresh; i++) {
            bool full = allowed >= ef || w->pool_n >= capacity;
            if (full && distances[i] >= w->pool[w->pool_n - 1].distance) continue;
            uint32_t at = pool_insert(w, distances[i], fresh[i]);
            if (at < cursor) cursor = at;
            allowed += !filter || row_allowed(filter, hnsw_node_slot(g, level, fresh[i]));
            /* Cut behind the ef-th allowed row; without a filter that drops exactly the worst one. */
            while (w->pool_n > capacity || allowed > ef) {
                uint32_t last = w->pool[--w->pool_n].node & ~CANDIDATE_SEEN;
                allowed -= !filter || row_allowed(filter, hnsw_node_slot(g, level, last));
            }
        }
    }
    for (uint32_t i = 0; i < w->pool_n; i++) w->pool[i].node &= ~CANDIDATE_SEEN;
}
