/* The walk of level 0 by edge codes (memory="fast"): the best-first search of SymphonyQG (Gou et al. 2025, Alg. 1), but that
 * estimates only choose which neighbours' 4-bit codes are fetched.
 *
 * A node's block is 28 cache lines at 384 dimensions, one after the other in one page; the neighbours' own codes would be 96
 * lines in 32 places.  Of 100 estimates some 20 call for a code.  The pool holds distances by code, as in the other
 * tiers, so filters, tombstones and rescoring mean the same; candidates that are passed over are not marked, as another
 * node may tell more of them.
 * Of what a block says is near enough the nearest are fetched at once; the others wait until nothing is left to expand, by when
 * most are no longer near enough.  Without the wait a walk of tight clusters, where all neighbours are as near, would end
 * in a wrong one (docs/decisions/0038).
 *
 * Departs from the descent of Malkov & Yashunin, too: a walk begins with the nearest, by estimate, of the some hundreds of
 * rows of the highest levels, which lie together, instead of passing through these levels one fetch after the other. */
#include "hnsw.h"

#include <math.h>

/* Expanded in a step; the blocks of the next step are on their way meanwhile.  From so many candidates on more blocks a step
 * wait for memory less often, and expand no more; before, they do. */
#define BLOCKS_A_STEP 2u
#define BLOCKS_A_WIDE_STEP 3u
#define WIDE_EF 32u
/* Neighbours in a group of a block whose codes are fetched at once.  The others wait until no candidate is left to expand: by
 * then nearer rows were found, and few of them are near enough.  6 or 8 leave more for the end, 12 fetch more in vain. */
#define CODES_AT_ONCE 10u
/* Groups of which neighbours wait; when there are more, a walk looks for so many rows that all of them may be of use. */
#define WAITING_MOST 64u
/* Rows of the highest levels that a walk begins with. */
#define ENTRIES_TAKEN 4u

/* ---- the walk ---- */

/* Rows to score, on their way from memory. */
#define FRONTIER_MOST (BLOCKS_A_WIDE_STEP * HNSW_M0_MAX)
typedef struct frontier {
    uint32_t n, slots[FRONTIER_MOST + MERGED_MOST];
} frontier;

/* Neighbours of a node at `distance` that were near enough by estimate, but not among the nearest. */
typedef struct waiting {
    const uint32_t *links;
    float distance;
    uint32_t lanes;
    float estimates[EDGE_LANES];
} waiting;

/* What a walk looks for, and how far it has come. */
typedef struct walk {
    search_scratch *w;
    const row_filter *filter;
    uint32_t ef, capacity, beam;
    uint32_t cursor;  /* all candidates before it were expanded */
    uint32_t allowed; /* candidates that may be returned */
    float limit;      /* only nearer rows are of use */
    frontier f;
    uint32_t n_waiting;
    waiting *waiting; /* WAITING_MOST */
} walk;

/* Of the first n lanes of a group those whose estimate is not `most` or more.  Where a huge query's estimates overflow, to
 * NaN, all lanes are near, even those without a link. */
static uint32_t estimate(const walk *k, const uint8_t *group, uint32_t n, float offset, float most, float *out) {
    const search_scratch *w = k->w;
    const uint32_t near = w->s->kernels->edge_near(w->edge.tables, group + EDGE_CODES_AT, (const uint16_t *)group,
                                                   w->s->dim64, w->edge.scale, offset, most, out);
    return n < EDGE_LANES ? near & ((1u << n) - 1) : near;
}

/* Asks for the codes of those lanes' rows that were not scored yet. */
static void ask_for(walk *k, const uint32_t *links, uint32_t lanes) {
    search_scratch *w = k->w;
    const uint32_t none = w->visited_size - 1;
    uint32_t n = k->f.n;
    /* No branch here: whether a row was met before cannot be predicted. */
    for (; lanes; lanes &= lanes - 1) {
        const uint32_t link = links[__builtin_ctz(lanes)], slot = link == FVDB_NO_SLOT ? none : link;
        k->f.slots[n] = slot;
        n += w->visited[slot] != w->epoch;
        w->visited[slot] = w->epoch;
    }
    for (; k->f.n < n; k->f.n++) scorer_prefetch(&w->query, k->f.slots[k->f.n]);
}

static void ask_for_block(const hnsw *g, uint32_t slot) {
    prefetch_bytes(blocks_links(g, slot), blocks_block_bytes(&g->edges));
}

static void find_entries(walk *k) {
    const edge_blocks *e = &k->w->g->edges;
    const uint32_t *slots = (const uint32_t *)e->entries.base;
    float distances[ENTRIES_TAKEN], estimates[EDGE_LANES];
    uint32_t nearest[ENTRIES_TAKEN], n = 0;
    for (uint32_t first = 0; first < e->n_entries; first += EDGE_LANES) {
        const uint8_t *group = e->entry_groups.base + first / EDGE_LANES * e->group_bytes;
        const float most = n == ENTRIES_TAKEN ? distances[ENTRIES_TAKEN - 1] : INFINITY;
        uint32_t near = estimate(k, group, e->n_entries - first, k->w->edge.offset, most, estimates);
        for (; near; near &= near - 1) {
            const uint32_t lane = (uint32_t)__builtin_ctz(near);
            if (n == ENTRIES_TAKEN && !(estimates[lane] < distances[ENTRIES_TAKEN - 1])) continue;
            uint32_t at = n < ENTRIES_TAKEN ? n++ : ENTRIES_TAKEN - 1;
            for (; at && distances[at - 1] > estimates[lane]; at--) {
                distances[at] = distances[at - 1];
                nearest[at] = nearest[at - 1];
            }
            distances[at] = estimates[lane];
            nearest[at] = slots[first + lane];
        }
    }
    ask_for(k, nearest, (1u << n) - 1);
    /* They will all be expanded first. */
    for (uint32_t i = 0; i < n; i++) ask_for_block(k->w->g, nearest[i]);
}

static inline bool returns(const walk *k, uint32_t slot) { return !k->filter || row_allowed(k->filter, slot); }

static float limit(const walk *k) {
    const bool full = k->allowed >= k->ef || k->w->pool_n >= k->capacity;
    return full ? k->w->pool[k->w->pool_n - 1].distance : INFINITY;
}

/* Drops the rows that are not near enough.  Of a distance that overflowed, to NaN, nothing is known: it counts as near. */
static void keep_near(walk *k, float *distances) {
    frontier *f = &k->f;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f->n; i++) {
        const float distance = distances[i];
        distances[kept] = distance == distance ? distance : -INFINITY;
        f->slots[kept] = f->slots[i];
        kept += !(distance >= k->limit);
    }
    f->n = kept;
}

/* Takes them into the pool, where all rows may be returned. */
static void merge_near(walk *k, float *distances) {
    search_scratch *w = k->w;
    keep_near(k, distances);
    k->cursor = min_u32(k->cursor, scratch_merge(w, distances, k->f.slots, k->f.n, k->ef));
    k->allowed = w->pool_n;
    k->limit = limit(k);
}

/* The same row after row, for large pools, and where rows only guide. */
static void insert_near(walk *k, const float *distances) {
    search_scratch *w = k->w;
    for (uint32_t i = 0; i < k->f.n; i++) {
        if (distances[i] >= k->limit) continue;
        k->cursor = min_u32(k->cursor, scratch_insert(w, distances[i], k->f.slots[i]));
        k->allowed += returns(k, k->f.slots[i]);
        /* Cut behind the ef-th allowed row; without a filter that drops exactly the worst one. */
        while (w->pool_n > k->capacity || k->allowed > k->ef)
            k->allowed -= returns(k, w->pool[--w->pool_n].node & ~CANDIDATE_SEEN);
        k->limit = limit(k);
    }
}

/* Scores the rows that were asked for, and takes what is near enough into the pool. */
static void take_near(walk *k) {
    float distances[FRONTIER_MOST + MERGED_MOST];
    scorer_prefetched(&k->w->query, k->f.slots, k->f.n, distances);
    if (k->filter || k->ef > MERGED_POOL_MOST) insert_near(k, distances);
    else merge_near(k, distances);
    k->f.n = 0;
}

/* The nearest candidates that were not expanded yet; returns how many. */
static uint32_t choose(walk *k, candidate *out) {
    uint32_t n = 0;
    for (; k->cursor < k->w->pool_n && n < k->beam; k->cursor++) {
        candidate *c = k->w->pool + k->cursor;
        if (c->node & CANDIDATE_SEEN) continue;
        out[n++] = *c;
        c->node |= CANDIDATE_SEEN;
    }
    return n;
}

/* Of a group's lanes that are near enough those whose codes are fetched at once; the others wait. */
static uint32_t fetched_at_once(walk *k, const uint32_t *links, float distance, uint32_t near, const float *estimates) {
    const uint32_t nearest = k->w->s->kernels->edge_nearest(estimates, near, CODES_AT_ONCE);
    if (nearest == near) return near;
    if (k->n_waiting == WAITING_MOST) return near;
    waiting *rest = k->waiting + k->n_waiting++;
    rest->links = links;
    rest->distance = distance;
    rest->lanes = near & ~nearest;
    memcpy(rest->estimates, estimates, sizeof rest->estimates);
    return nearest;
}

/* Asks for the rows that waited and are still near enough, as many as there is room for. */
static void ask_for_waiting(walk *k) {
    while (k->n_waiting && k->f.n + EDGE_LANES <= FRONTIER_MOST) {
        const waiting *rest = k->waiting + --k->n_waiting;
        const float most = k->limit - rest->distance;
        uint32_t near = 0;
        for (uint32_t left = rest->lanes; left; left &= left - 1)
            if (!(rest->estimates[__builtin_ctz(left)] >= most)) near |= left & -left;
        ask_for(k, rest->links, near);
    }
}

/* Asks for the neighbours of a candidate that by estimate may belong into the pool. */
static void expand(walk *k, candidate from) {
    const edge_blocks *e = &k->w->g->edges;
    const uint32_t *links = blocks_links(k->w->g, from.node);
    const uint8_t *group = (const uint8_t *)links + e->links_bytes;
    const float offset = edge_offset(&k->w->edge, &k->w->query, from.distance, EDGE_SPREADS);
    const float most = k->limit - from.distance;
    float estimates[EDGE_LANES];
    for (uint32_t first = 0; first < e->links; first += EDGE_LANES, group += e->group_bytes) {
        const uint32_t near = estimate(k, group, e->links - first, offset, most, estimates);
        ask_for(k, links + first, fetched_at_once(k, links + first, from.distance, near, estimates));
    }
}

void hnsw_walk_edges(search_scratch *w, uint32_t ef, const row_filter *filter) {
    candidate expanded[2][BLOCKS_A_WIDE_STEP], *now = expanded[0], *next = expanded[1];
    waiting rest[WAITING_MOST];
    walk k = {.w = w, .filter = filter, .ef = ef, .limit = INFINITY, .waiting = rest};
    k.capacity = filter ? filter->pool_most : ef;
    k.beam = ef < WIDE_EF ? BLOCKS_A_STEP : BLOCKS_A_WIDE_STEP;
    scratch_begin_marks(w);
    w->pool_n = 0;
    edge_query_set(&w->edge, &w->query, (const float *)w->g->edges.origin.base);
    find_entries(&k);
    for (uint32_t n_now = 0, n_next;; n_now = n_next) {
        take_near(&k);
        n_next = choose(&k, next);
        if (n_now + n_next + k.n_waiting == 0) break;
        for (uint32_t i = 0; i < n_now; i++) expand(&k, now[i]);
        if (n_next == 0) ask_for_waiting(&k);
        /* Codes are asked for first, as they are waited for first. */
        for (uint32_t i = 0; i < n_next; i++) ask_for_block(w->g, next[i].node);
        candidate *done = now;
        now = next;
        next = done;
    }
    for (uint32_t i = 0; i < w->pool_n; i++) w->pool[i].node &= ~CANDIDATE_SEEN;
}
