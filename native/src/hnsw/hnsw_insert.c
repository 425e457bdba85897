/* Linking new rows: Malkov & Yashunin's Alg. 1 and 4, in batches, deterministic for any number of threads.
 *
 * Rows are linked in batches of HNSW_BATCH.  Each row of a batch searches the graph as it was before the batch, in
 * parallel, compares itself with the earlier rows of its own batch by brute force, and writes its own links.  Then the
 * links back are merged, in parallel over their targets, each target's in slot order.  No per-node locks, and nothing
 * depends on who was first.
 *
 * Departs from the paper: the rows of a batch meet each other by brute force instead of through the graph (half a
 * million code distances a batch, about 1 % of its time), and a full target is re-selected once for all its new links. */
#include "hnsw.h"

#include <stdlib.h>

#define HNSW_BATCH 1024u
#define SCORE_CHUNK 64u

/* ---- undo ---- */

fvdb_status hnsw_undo_begin(hnsw_undo *u, const hnsw *g, fvdb_diag *diag) {
    *u = (hnsw_undo){.n = g->n, .upper_n = g->upper_n, .entry = g->entry, .max_level = g->max_level};
    u->touched0 = mem_alloc_array(g->n / 64 + 1, sizeof(uint64_t));
    u->touched_upper = mem_alloc_array(g->upper_n / 64 + 1, sizeof(uint64_t));
    if (u->touched0 && u->touched_upper) return FVDB_OK;
    hnsw_undo_free(u);
    return FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
}

void hnsw_undo_free(hnsw_undo *u) {
    mem_free(u->touched0);
    mem_free(u->touched_upper);
    region_free(&u->saved0);
    region_free(&u->saved_upper);
    *u = (hnsw_undo){0};
}

/* A record is: node, level, count, links. */
static bool save_links(region *saved, const hnsw *g, uint32_t level, uint32_t node) {
    uint32_t record[3 + HNSW_M0_MAX] = {node, level};
    record[2] = hnsw_links(g, level, node, record + 3);
    size_t at = saved->used, size = (3 + record[2]) * sizeof(uint32_t);
    if (!region_resize(saved, at + size)) return false;
    memcpy(saved->base + at, record, size);
    return true;
}

static bool undo_save(hnsw_undo *u, const hnsw *g, uint32_t level, uint32_t node) {
    if (level == 0) {
        if (node >= u->n || bit_get(u->touched0, node)) return true;
        bit_set(u->touched0, node);
        return save_links(&u->saved0, g, 0, node);
    }
    if (node >= u->upper_n || bit_get(u->touched_upper, node)) return true;
    bit_set(u->touched_upper, node);
    for (uint32_t l = 1; l <= hnsw_upper_level(g, node); l++)
        if (!save_links(&u->saved_upper, g, l, node)) return false;
    return true;
}

static void restore_links(const region *saved, hnsw *g) {
    const uint32_t *record = (const uint32_t *)saved->base, *end = record + saved->used / sizeof *record;
    for (; record < end; record += 3 + record[2]) hnsw_set_links(g, record[1], record[0], record + 3, record[2]);
}

void hnsw_undo_apply(hnsw_undo *u, hnsw *g) {
    restore_links(&u->saved0, g);
    restore_links(&u->saved_upper, g);
    hnsw_truncate(g, u->n, u->upper_n);
    g->entry = u->entry;
    g->max_level = u->max_level;
}

/* ---- Alg. 4 ---- */

/* Takes the nearest candidate, then drops all that are nearer to it than to the query, until M are taken: the same rows
 * as testing each candidate against all kept ones, but one batch of distances for each kept row. */
uint32_t hnsw_select(walk *w, uint32_t level, uint32_t M, uint32_t *out) {
    candidate *pool = w->pool;
    uint32_t left = w->pool_n, n = 0;
    while (left && n < M) {
        out[n++] = pool[0].node;
        if (n == M) break;
        scorer_set_slot(&w->pair, hnsw_node_slot(w->g, level, pool[0].node));
        uint32_t kept = 0;
        for (uint32_t at = 1; at < left; at += SCORE_CHUNK) {
            uint32_t chunk = min_u32(SCORE_CHUNK, left - at), slots[SCORE_CHUNK];
            float distances[SCORE_CHUNK];
            for (uint32_t i = 0; i < chunk; i++) slots[i] = hnsw_node_slot(w->g, level, pool[at + i].node);
            scorer_many(&w->pair, slots, chunk, distances);
            for (uint32_t i = 0; i < chunk; i++)
                if (distances[i] >= pool[at + i].distance) pool[kept++] = pool[at + i];
        }
        left = kept;
    }
    w->pool_n = 0;
    return n;
}

/* ---- a batch ---- */

typedef struct batch {
    hnsw *g;
    store *s;
    walk *const *walks;
    uint32_t first, end;
    uint32_t *upper;             /* per row of the batch: its upper number or FVDB_NO_SLOT */
    uint64_t *edges;             /* target << 32 | source, sorted */
    uint32_t n_edges;
    uint32_t *groups;            /* where each target's edges start; n_groups + 1 entries */
    uint32_t n_groups;
    uint32_t level;              /* of the edges being merged */
} batch;

/* Offers the earlier rows of the batch that reach `level`, scored in slot order. */
static void offer_peers(batch *b, walk *w, uint32_t level, uint32_t row) {
    uint32_t slots[SCORE_CHUNK], nodes[SCORE_CHUNK], n = 0, capacity = b->g->ef_construction;
    float distances[SCORE_CHUNK];
    for (uint32_t peer = b->first; peer <= row; peer++) {
        if (peer == row || n == SCORE_CHUNK) {
            scorer_many(&w->query, slots, n, distances);
            for (uint32_t i = 0; i < n; i++) walk_offer(w, distances[i], nodes[i], capacity);
            n = 0;
        }
        uint32_t u = b->upper[peer - b->first];
        if (peer == row || (level && (u == FVDB_NO_SLOT || hnsw_upper_level(b->g, u) < level))) continue;
        slots[n] = peer;
        nodes[n++] = level ? u : peer;
    }
}

/* Alg. 1 for one row, but for the links back. */
static void link_row(void *context, uint32_t worker, uint32_t item) {
    batch *b = context;
    walk *w = b->walks[worker];
    hnsw *g = b->g;
    uint32_t row = b->first + item, u = b->upper[item];
    uint32_t top = u == FVDB_NO_SLOT ? 0 : hnsw_upper_level(g, u), entry = FVDB_NO_SLOT, links[HNSW_M0_MAX];
    float x[FVDB_DIM_MAX];
    store_get(b->s, row, x);
    scorer_set_vector(&w->query, x);
    for (uint32_t level = top + 1; level-- > 0;) {
        w->pool_n = 0;
        if (b->first > 0 && level <= g->max_level) {
            if (entry == FVDB_NO_SLOT) entry = hnsw_descend(w, level);
            else if (level == 0) entry = hnsw_upper_slot(g, entry);
            hnsw_walk_level(w, level, entry, g->ef_construction, NULL);
            entry = w->pool[0].node;
        }
        offer_peers(b, w, level, row);
        uint32_t n = hnsw_select(w, level, g->M, links);
        hnsw_set_links(g, level, level ? u : row, links, n);
    }
}

/* Adds one target's new links; where they do not fit, the best of all by Alg. 4. */
static void merge_target(void *context, uint32_t worker, uint32_t item) {
    batch *b = context;
    walk *w = b->walks[worker];
    hnsw *g = b->g;
    uint32_t level = b->level, first = b->groups[item], added = b->groups[item + 1] - first;
    uint32_t target = (uint32_t)(b->edges[first] >> 32), room = level ? g->M : g->M0, links[HNSW_M0_MAX];
    uint32_t n = hnsw_links(g, level, target, links);
    if (n + added <= room) {
        for (uint32_t i = 0; i < added; i++) links[n++] = (uint32_t)b->edges[first + i];
        hnsw_set_links(g, level, target, links, n);
        return;
    }
    scorer_set_slot(&w->query, hnsw_node_slot(g, level, target));
    w->pool_n = 0;
    for (uint32_t at = 0; at < n + added; at += SCORE_CHUNK) {
        uint32_t chunk = min_u32(SCORE_CHUNK, n + added - at), nodes[SCORE_CHUNK], slots[SCORE_CHUNK];
        float distances[SCORE_CHUNK];
        for (uint32_t i = 0; i < chunk; i++) {
            nodes[i] = at + i < n ? links[at + i] : (uint32_t)b->edges[first + at + i - n];
            slots[i] = hnsw_node_slot(g, level, nodes[i]);
        }
        scorer_many(&w->query, slots, chunk, distances);
        for (uint32_t i = 0; i < chunk; i++) walk_offer(w, distances[i], nodes[i], HNSW_M0_MAX + HNSW_BATCH);
    }
    n = hnsw_select(w, level, room, links);
    hnsw_set_links(g, level, target, links, n);
}

static int compare_edges(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The links back that the batch's links on a level ask for, grouped by target. */
static void collect_edges(batch *b, uint32_t level) {
    uint32_t links[HNSW_M0_MAX];
    b->level = level;
    b->n_edges = b->n_groups = 0;
    for (uint32_t i = 0; i < b->end - b->first; i++) {
        uint32_t node = level ? b->upper[i] : b->first + i;
        if (level && (node == FVDB_NO_SLOT || hnsw_upper_level(b->g, node) < level)) continue;
        uint32_t n = hnsw_links(b->g, level, node, links);
        for (uint32_t j = 0; j < n; j++) b->edges[b->n_edges++] = (uint64_t)links[j] << 32 | node;
    }
    qsort(b->edges, b->n_edges, sizeof *b->edges, compare_edges);
    for (uint32_t i = 0; i < b->n_edges; i++)
        if (i == 0 || b->edges[i] >> 32 != b->edges[i - 1] >> 32) b->groups[b->n_groups++] = i;
    b->groups[b->n_groups] = b->n_edges;
}

static fvdb_status append_batch_nodes(batch *b, fvdb_diag *diag) {
    TRY(hnsw_reserve(b->g, b->end, diag));
    for (uint32_t slot = b->first; slot < b->end; slot++) {
        uint32_t level = hnsw_draw_level(b->g->M, slot);
        b->upper[slot - b->first] = level ? b->g->upper_n : FVDB_NO_SLOT;
        if (level) TRY(hnsw_append_upper(b->g, slot, level, diag));
    }
    return FVDB_OK;
}

static fvdb_status link_batch(batch *b, crew *c, hnsw_undo *undo, fvdb_diag *diag) {
    hnsw *g = b->g;
    uint32_t first_upper = g->upper_n, top = 0;
    TRY(append_batch_nodes(b, diag));
    crew_run(c, link_row, b, b->end - b->first);
    for (uint32_t u = first_upper; u < g->upper_n; u++) top = max_u32(top, hnsw_upper_level(g, u));
    for (uint32_t level = 0; level <= top; level++) {
        collect_edges(b, level);
        for (uint32_t i = 0; i < b->n_groups; i++)
            if (!undo_save(undo, g, level, (uint32_t)(b->edges[b->groups[i]] >> 32)))
                return FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
        crew_run(c, merge_target, b, b->n_groups);
    }
    for (uint32_t u = first_upper; u < g->upper_n; u++) {
        if (hnsw_upper_level(g, u) <= g->max_level) continue;
        g->max_level = hnsw_upper_level(g, u);
        g->entry = u;
    }
    g->n = b->end;
    return FVDB_OK;
}

fvdb_status hnsw_link(hnsw *g, store *s, uint32_t end, walk *const *walks, crew *c, hnsw_undo *undo,
                      fvdb_control *control, int64_t progress_base, int64_t progress_total, fvdb_diag *diag) {
    uint32_t start = g->n, rows = min_u32(HNSW_BATCH, end - start);
    batch b = {.g = g, .s = s, .walks = walks};
    b.upper = mem_alloc_array(rows, sizeof *b.upper);
    b.edges = mem_alloc_array((size_t)rows * g->M, sizeof *b.edges);
    b.groups = mem_alloc_array((size_t)rows * g->M + 1, sizeof *b.groups);
    fvdb_status status = b.upper && b.edges && b.groups ? FVDB_OK : FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
    for (uint32_t i = 0; i < crew_size(c) && status == FVDB_OK; i++)
        if (walk_reserve(walks[i], end, max_u32(g->ef_construction, HNSW_M0_MAX + HNSW_BATCH) + 1) != FVDB_OK)
            status = FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
    while (status == FVDB_OK && g->n < end) {
        if (control_cancelled(control)) {
            status = FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
            break;
        }
        b.first = g->n;
        b.end = g->n + min_u32(rows, end - g->n);
        status = link_batch(&b, c, undo, diag);
        control_progress(control, progress_base + (int64_t)(g->n - start), progress_total);
    }
    mem_free(b.upper);
    mem_free(b.edges);
    mem_free(b.groups);
    return status;
}
