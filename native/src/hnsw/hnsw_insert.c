/* Linking rows: Malkov & Yashunin's Alg. 1 and 4, in batches, deterministic for any number of threads; and a second pass.
 *
 * Rows are linked in batches of HNSW_BATCH.  Each row of a batch searches the graph as it was before the batch, in
 * parallel, compares itself with the earlier rows of its own batch by brute force, and writes its own links.  Then the
 * links back are merged, in parallel over their targets, each target's in slot order.  No per-node locks, and nothing
 * depends on who was first.
 *
 * Departs from the paper: the rows of a batch meet each other by brute force instead of through the graph (half a
 * million code distances a batch, about 1 % of its time), and a full target is re-selected once for all its new links.
 *
 * The second pass is that of Vamana (Subramanya et al. 2019, "DiskANN"): every row searches once more, now in the whole
 * graph, and takes up to 2M links by Alg. 4 with slack: a candidate is dropped only where a kept row is nearer to it by
 * more than the slack.  Walks then need a tenth fewer distances and a third fewer steps (docs/decisions/0012).
 *
 * Where codes say nothing and walks go by rows, rows hide each other: a few of them are nearer to most rows than
 * these are to each other, or clusters are far apart.  Alg. 4 then leaves rows that no link leads to.  So there it fills
 * the links that it leaves free with the nearest it dropped, as the paper's option "keepPrunedConnections" does, and
 * the second pass keeps some links of the first, which were made when the graph was small and lead far (docs/decisions/0039).
 * One link of a row leads to a row drawn by a hash: a walk that has filled its pool with the wrong cluster comes by rows of all
 * others (docs/decisions/0045). */
#include "hnsw.h"

#define SCORE_CHUNK 64u
/* Candidates that Alg. 4 looks at together. */
#define SELECT_WINDOW 64u
/* Room for the kept rows' queries, on the stack: 85 of 384 dimensions.  More of them are prepared again when needed. */
#define SELECT_QUERY_BYTES 32768u
/* Each batch has its targets choose their links anew: few large ones, as far as their memory (some 770 bytes a row, beside
 * some 1,900 of a row at 384 dimensions) goes. */
#define REFINE_BATCH_MIN 65536u
#define REFINE_BATCHES_MAX 8u
/* Slack of the second pass as a factor of lengths, hence squared for cosine and squared Euclidean distances; inner
 * products are no lengths.  1.05 to 1.15 are as good on sentence embeddings; DiskANN uses 1.2. */
#define REFINE_SLACK 1.1f
/* One in so many links of a row is kept from the first pass where links are filled. */
#define LONG_LINKS_SHARE 4u
/* Draws of a row that a far link may lead to. */
#define FAR_DRAWS 4u
/* The second pass looks for fewer candidates: half as many give the same links. */
#define REFINE_EF(ef_construction) ((ef_construction) / 2 + 1)

/* ---- undo ---- */

fvdb_status hnsw_undo_begin(hnsw_undo *u, const hnsw *g, fvdb_diag *diag) {
    *u = (hnsw_undo){.n = g->n, .upper_n = g->upper_n, .entry = g->entry, .max_level = g->max_level};
    u->touched0 = mem_alloc_array(g->n / 64 + 1, sizeof(uint64_t));
    u->touched_upper = mem_alloc_array(g->upper_n / 64 + 1, sizeof(uint64_t));
    if (u->touched0 && u->touched_upper) return FVDB_OK;
    hnsw_undo_free(u);
    return FAIL_MEMORY(diag);
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

/* Takes the copies of a row, those with its high halves, out of its pool.  The nearest by slot get up to half of the M
 * links, so that any number of copies is a chain of overlapping stretches. */
static uint32_t take_copies(search_scratch *w, uint32_t level, uint32_t slot, uint32_t M, uint32_t *out) {
    const store *s = w->s;
    candidate *pool = w->pool;
    uint32_t left = 0, n = 0, away[HNSW_M0_MAX / 2];
    float own;
    scorer_many(&w->query, &slot, 1, &own);
    for (uint32_t i = 0; i < w->pool_n; i++) {
        const uint32_t copy = hnsw_node_slot(w->g, level, pool[i].node), gap = copy < slot ? slot - copy : copy - slot;
        if (pool[i].distance != own ||
            memcmp(store_high(s, copy), store_high(s, slot), s->dim16 * sizeof(uint16_t)) != 0) {
            pool[left++] = pool[i];
            continue;
        }
        if (n == M / 2 && gap >= away[n - 1]) continue;
        uint32_t at = n < M / 2 ? n++ : n - 1;
        for (; at && away[at - 1] > gap; at--) {
            away[at] = away[at - 1];
            out[at] = out[at - 1];
        }
        away[at] = gap;
        out[at] = pool[i].node;
    }
    w->pool_n = left;
    return n;
}

/* The rows kept by Alg. 4, each prepared for distances to it. */
typedef struct kept_rows {
    scorer rows[HNSW_M0_MAX]; /* all share what w->pair has, but for their int8 queries */
    uint32_t slots[HNSW_M0_MAX];
    uint32_t n, prepared; /* the first `prepared` stay so */
    int8_t queries[SELECT_QUERY_BYTES];
} kept_rows;

static void keep(kept_rows *kept, const search_scratch *w, uint32_t slot) {
    scorer *q = &kept->rows[kept->n];
    const uint32_t dim64 = w->s->dim64;
    *q = w->pair;
    if (store_walks_by(w->s) == WALK_BY_CODE && (kept->n + 1) * dim64 <= SELECT_QUERY_BYTES) {
        q->q_lo = kept->queries + kept->n * dim64;
        q->q_hi = q->q_lo + dim64 / 2;
        kept->prepared = kept->n + 1;
    }
    kept->slots[kept->n++] = slot;
    scorer_set_slot(q, slot);
}

/* The nearest of the rows that Alg. 4 dropped, ascending. */
typedef struct dropped_rows {
    uint32_t n, most;
    candidate rows[HNSW_M0_MAX];
} dropped_rows;

static void dropped_offer(dropped_rows *d, candidate c) {
    if (d->n == d->most && c.distance >= d->rows[d->n - 1].distance) return;
    uint32_t at = d->n < d->most ? d->n++ : d->n - 1;
    for (; at && d->rows[at - 1].distance > c.distance; at--) d->rows[at] = d->rows[at - 1];
    d->rows[at] = c;
}

/* Drops candidates that are nearer to a kept row than to the query; returns how many are left, in their order.  `dropped`
 * may be NULL. */
static uint32_t drop_nearer(const search_scratch *w, uint32_t level, const scorer *kept, float slack, candidate *from,
                            uint32_t n, dropped_rows *dropped) {
    uint32_t slots[SELECT_WINDOW], left = 0;
    float distances[SELECT_WINDOW];
    for (uint32_t i = 0; i < n; i++) slots[i] = hnsw_node_slot(w->g, level, from[i].node);
    scorer_many(kept, slots, n, distances);
    for (uint32_t i = 0; i < n; i++) {
        const bool stays = slack * distances[i] >= from[i].distance;
        if (dropped && !stays) dropped_offer(dropped, from[i]);
        from[left] = from[i];
        left += stays;
    }
    return left;
}

/* Whether rows get as many links as they have room for, and the second pass keeps links of the first. */
static bool links_are_filled(const store *s) { return store_walks_by(s) == WALK_BY_ROW; }

/* Takes the nearest candidate, then drops all that are nearer to it than to the query, until M are taken: the same rows
 * as testing each candidate against all kept ones, but one batch of distances for each kept row.  Candidates come in
 * windows, since the last of M links is found half way: those behind it are never scored.
 * Departs from the paper, which knows no equal rows: a copy of the query is as far from all others as the query is, so
 * that it would drop each of them or none as rounding has it, and a few dozen copies fell apart into islands. */
uint32_t hnsw_select(search_scratch *w, uint32_t level, uint32_t slot, uint32_t M, float slack, uint32_t *out) {
    uint32_t n = take_copies(w, level, slot, M, out);
    kept_rows kept;
    kept.n = kept.prepared = 0;
    dropped_rows nearest = {.most = M}, *dropped = links_are_filled(w->s) ? &nearest : NULL;
    for (uint32_t at = 0; at < w->pool_n && n < M; at += SELECT_WINDOW) {
        candidate *window = w->pool + at;
        uint32_t left = min_u32(SELECT_WINDOW, w->pool_n - at);
        for (uint32_t i = 0; i < kept.n && left; i++) {
            if (i >= kept.prepared) scorer_set_slot(&kept.rows[i], kept.slots[i]);
            left = drop_nearer(w, level, &kept.rows[i], slack, window, left, dropped);
        }
        while (left && n < M) {
            const uint32_t node = window->node;
            out[n++] = node;
            if (n == M) break;
            keep(&kept, w, hnsw_node_slot(w->g, level, node));
            left = drop_nearer(w, level, &kept.rows[kept.n - 1], slack, ++window, left - 1, dropped);
        }
    }
    for (uint32_t i = 0; i < nearest.n && n < M; i++) out[n++] = nearest.rows[i].node;
    w->pool_n = 0;
    return n;
}

/* ---- far links ---- */

static bool has_link(const uint32_t *links, uint32_t n, uint32_t link) {
    bool found = false;
    for (uint32_t i = 0; i < n; i++) found |= links[i] == link;
    return found;
}

uint32_t hnsw_add_far(const hnsw *g, const store *s, uint32_t slot, uint32_t linked, const uint32_t *map,
                      uint32_t *links, uint32_t n) {
    if (linked == 0 || hnsw_far_links(s, 0) == 0) return n;
    for (uint32_t draw = 0; draw < FAR_DRAWS; draw++) {
        const uint32_t far = g->first + (uint32_t)(mix64((uint64_t)slot * FAR_DRAWS + draw) % linked);
        const bool goes = map && map[far] == FVDB_NO_SLOT;
        if (far == slot || goes || store_is_vectorless(s, far) || has_link(links, n, far)) continue;
        links[n++] = far;
        break;
    }
    return n;
}

/* ---- a batch ---- */

typedef struct batch {
    hnsw *g;
    store *s;
    search_scratch *const *scratch;
    uint32_t first, end;
    uint32_t *upper; /* per row of the batch: its upper number or FVDB_NO_SLOT */
    /* Regions, since what is freed to the heap by a worker thread may stay with the process. */
    region edges; /* uint64 target << 32 | source, by target, then source; as much again to sort them */
    uint32_t n_edges;
    region groups; /* uint32: where each target's edges start; n_groups + 1 entries */
    uint32_t n_groups;
    uint32_t level;      /* of the edges being merged */
    float slack;         /* of Alg. 4 where they do not fit */
    uint32_t long_links; /* of a row's last links so many are kept where they do not fit */
} batch;

static uint64_t *edges_of(const batch *b) { return (uint64_t *)b->edges.base; }
static uint32_t *groups_of(const batch *b) { return (uint32_t *)b->groups.base; }

static bool reserve_edges(batch *b, size_t n) {
    return region_resize(&b->edges, 2 * n * sizeof(uint64_t)) && region_resize(&b->groups, (n + 1) * sizeof(uint32_t));
}

static uint64_t edges_bytes(uint64_t n) { return 2 * n * sizeof(uint64_t) + (n + 1) * sizeof(uint32_t); }

static void free_edges(batch *b) {
    region_free(&b->edges);
    region_free(&b->groups);
}

/* Offers the earlier rows of the batch that reach `level`, scored in slot order. */
static void offer_peers(batch *b, search_scratch *w, uint32_t level, uint32_t row) {
    uint32_t slots[SCORE_CHUNK], nodes[SCORE_CHUNK], n = 0, capacity = b->g->ef_construction;
    float distances[SCORE_CHUNK];
    for (uint32_t peer = b->first; peer <= row; peer++) {
        if (peer == row || n == SCORE_CHUNK) {
            scorer_many(&w->query, slots, n, distances);
            for (uint32_t i = 0; i < n; i++) scratch_offer(w, distances[i], nodes[i], capacity);
            n = 0;
        }
        uint32_t u = b->upper[peer - b->first];
        if (peer == row || store_is_vectorless(b->s, peer)) continue;
        if (level && (u == FVDB_NO_SLOT || hnsw_upper_level(b->g, u) < level)) continue;
        slots[n] = peer;
        nodes[n++] = level ? u : peer;
    }
}

/* Alg. 1 for one row, but for the links back. */
static void link_row(void *context, uint32_t worker, uint32_t item) {
    batch *b = context;
    search_scratch *w = b->scratch[worker];
    hnsw *g = b->g;
    uint32_t row = b->first + item, u = b->upper[item];
    if (store_is_vectorless(b->s, row)) return; /* a node without links: no walk comes there */
    uint32_t top = u == FVDB_NO_SLOT ? 0 : hnsw_upper_level(g, u), entry = FVDB_NO_SLOT, links[HNSW_M0_MAX];
    float x[FVDB_DIM_MAX];
    store_get(b->s, row, x);
    scorer_set_vector(&w->query, x);
    for (uint32_t level = top + 1; level-- > 0;) {
        w->pool_n = 0;
        if (b->first > g->first && level <= g->max_level) {
            if (entry == FVDB_NO_SLOT) entry = hnsw_descend(w, level);
            else if (level == 0) entry = hnsw_upper_slot(g, entry);
            if (entry != FVDB_NO_SLOT) {
                hnsw_walk_level(w, level, entry, g->ef_construction, NULL);
                entry = w->pool[0].node;
            }
        }
        offer_peers(b, w, level, row);
        uint32_t n = hnsw_select(w, level, row, g->M, 1, links);
        if (level == 0) n = hnsw_add_far(g, b->s, row, b->first - g->first, NULL, links, n);
        hnsw_set_links(g, level, level ? u : row, links, n);
    }
}

/* Drops the edges whose source is among the links already; returns how many are left. */
static uint32_t drop_present(uint64_t *edges, uint32_t n, const uint32_t *links, uint32_t n_links) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        edges[kept] = edges[i];
        kept += !has_link(links, n_links, (uint32_t)edges[i]);
    }
    return kept;
}

/* Adds the last of a row's old links that it has no more; returns how many it has then. */
static uint32_t add_last(uint32_t *links, uint32_t n, const uint32_t *old, uint32_t n_old, uint32_t most) {
    for (uint32_t i = n_old, end = n + most; i-- > 0 && n < end;) {
        links[n] = old[i];
        n += !has_link(links, n, old[i]);
    }
    return n;
}

/* Adds one target's new links; where they do not fit, the best of all by Alg. 4. */
static void merge_target(void *context, uint32_t worker, uint32_t item) {
    batch *b = context;
    search_scratch *w = b->scratch[worker];
    hnsw *g = b->g;
    uint32_t level = b->level, first = groups_of(b)[item], added = groups_of(b)[item + 1] - first;
    uint64_t *edges = edges_of(b) + first;
    uint32_t target = (uint32_t)(edges[0] >> 32), room = level ? g->M : g->M0, links[HNSW_M0_MAX];
    uint32_t n = hnsw_links(g, level, target, links);
    added = drop_present(edges, added, links, n);
    if (n + added <= room) {
        for (uint32_t i = 0; i < added; i++) links[n++] = (uint32_t)edges[i];
        hnsw_set_links(g, level, target, links, n);
        return;
    }
    uint32_t slot = hnsw_node_slot(g, level, target);
    scorer_set_slot(&w->query, slot);
    w->pool_n = 0;
    for (uint32_t at = 0; at < n + added; at += SCORE_CHUNK) {
        uint32_t chunk = min_u32(SCORE_CHUNK, n + added - at), nodes[SCORE_CHUNK], slots[SCORE_CHUNK];
        float distances[SCORE_CHUNK];
        for (uint32_t i = 0; i < chunk; i++) {
            nodes[i] = at + i < n ? links[at + i] : (uint32_t)edges[at + i - n];
            slots[i] = hnsw_node_slot(g, level, nodes[i]);
        }
        scorer_many(&w->query, slots, chunk, distances);
        for (uint32_t i = 0; i < chunk; i++) scratch_offer(w, distances[i], nodes[i], HNSW_MERGED_MAX);
    }
    uint32_t old[HNSW_M0_MAX], n_old = n;
    memcpy(old, links, n_old * sizeof *old);
    n = hnsw_select(w, level, slot, room - b->long_links - hnsw_far_links(b->s, level), b->slack, links);
    n = add_last(links, n, old, n_old, b->long_links);
    if (level == 0) n = hnsw_add_far(g, b->s, slot, hnsw_rows(g), NULL, links, n);
    hnsw_set_links(g, level, target, links, n);
}

/* Radix sort by the upper half, a byte at a time from the lowest: stable, so that sources keep their order. */
static void sort_edges(uint64_t *edges, uint64_t *spare, uint32_t n) {
    for (uint32_t shift = 32; shift < 64; shift += 8) {
        uint32_t starts[257] = {0};
        for (uint32_t i = 0; i < n; i++) starts[(edges[i] >> shift & 255) + 1]++;
        for (uint32_t byte = 0; byte < 256; byte++) starts[byte + 1] += starts[byte];
        for (uint32_t i = 0; i < n; i++) spare[starts[edges[i] >> shift & 255]++] = edges[i];
        uint64_t *sorted = spare;
        spare = edges;
        edges = sorted;
    }
}

/* The links back that the batch's links on a level ask for, grouped by target. */
static void collect_edges(batch *b, uint32_t level) {
    uint32_t links[HNSW_M0_MAX], *groups = groups_of(b);
    uint64_t *edges = edges_of(b);
    b->level = level;
    b->n_edges = b->n_groups = 0;
    for (uint32_t i = 0; i < b->end - b->first; i++) {
        uint32_t node = level ? b->upper[i] : b->first + i;
        if (level && (node == FVDB_NO_SLOT || hnsw_upper_level(b->g, node) < level)) continue;
        uint32_t n = hnsw_links(b->g, level, node, links);
        for (uint32_t j = 0; j < n; j++) edges[b->n_edges++] = (uint64_t)links[j] << 32 | node;
    }
    sort_edges(edges, edges + b->n_edges, b->n_edges);
    for (uint32_t i = 0; i < b->n_edges; i++)
        if (i == 0 || edges[i] >> 32 != edges[i - 1] >> 32) groups[b->n_groups++] = i;
    groups[b->n_groups] = b->n_edges;
}

static fvdb_status merge_edges(batch *b, thread_pool *c, hnsw_undo *undo, fvdb_diag *diag) {
    for (uint32_t i = 0; i < b->n_groups; i++)
        if (!undo_save(undo, b->g, b->level, (uint32_t)(edges_of(b)[groups_of(b)[i]] >> 32))) return FAIL_MEMORY(diag);
    thread_pool_run(c, merge_target, b, b->n_groups);
    return FVDB_OK;
}

static fvdb_status append_batch_nodes(batch *b, fvdb_diag *diag) {
    TRY(hnsw_reserve(b->g, b->end, diag));
    for (uint32_t slot = b->first; slot < b->end; slot++) {
        uint32_t level = store_is_vectorless(b->s, slot) ? 0 : hnsw_draw_level(b->g->M, slot);
        b->upper[slot - b->first] = level ? b->g->upper_n : FVDB_NO_SLOT;
        if (level) TRY(hnsw_append_upper(b->g, slot, level, diag));
    }
    return FVDB_OK;
}

static fvdb_status link_batch(batch *b, thread_pool *c, hnsw_undo *undo, fvdb_diag *diag) {
    hnsw *g = b->g;
    uint32_t first_upper = g->upper_n, top = 0;
    TRY(append_batch_nodes(b, diag));
    thread_pool_run(c, link_row, b, b->end - b->first);
    for (uint32_t u = first_upper; u < g->upper_n; u++) top = max_u32(top, hnsw_upper_level(g, u));
    for (uint32_t level = 0; level <= top; level++) {
        collect_edges(b, level);
        TRY(merge_edges(b, c, undo, diag));
    }
    for (uint32_t u = first_upper; u < g->upper_n; u++) {
        if (hnsw_upper_level(g, u) <= g->max_level) continue;
        g->max_level = hnsw_upper_level(g, u);
        g->entry = u;
    }
    g->n = b->end;
    return FVDB_OK;
}

static fvdb_status reserve_scratch(search_scratch *const *scratch, const thread_pool *c, uint32_t n,
                                   uint32_t candidates, fvdb_diag *diag) {
    for (uint32_t i = 0; i < thread_pool_size(c); i++)
        if (scratch_reserve(scratch[i], n, max_u32(candidates, HNSW_MERGED_MAX) + 1) != FVDB_OK)
            return FAIL_MEMORY(diag);
    return FVDB_OK;
}

uint64_t hnsw_link_scratch(uint32_t M, uint64_t rows) {
    if (rows > HNSW_BATCH) rows = HNSW_BATCH;
    return rows * sizeof(uint32_t) + edges_bytes(rows * (M + HNSW_FAR_LINKS));
}

fvdb_status hnsw_link(hnsw *g, store *s, uint32_t end, search_scratch *const *scratch, thread_pool *c, hnsw_undo *undo,
                      const progress_range *range, fvdb_diag *diag) {
    uint32_t start = g->n, rows = min_u32(HNSW_BATCH, end - start);
    batch b = {.g = g, .s = s, .scratch = scratch, .slack = 1};
    b.upper = mem_alloc_array(rows, sizeof *b.upper);
    fvdb_status status =
        b.upper && reserve_edges(&b, (size_t)rows * (g->M + HNSW_FAR_LINKS)) ? FVDB_OK : FAIL_MEMORY(diag);
    if (status == FVDB_OK) status = reserve_scratch(scratch, c, end, g->ef_construction, diag);
    while (status == FVDB_OK && g->n < end) {
        if (control_cancelled(range->control)) {
            status = FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
            break;
        }
        b.first = g->n;
        b.end = g->n + min_u32(rows, end - g->n);
        status = link_batch(&b, c, undo, diag);
        progress_report(range, g->n - start);
    }
    mem_free(b.upper);
    free_edges(&b);
    return status;
}

/* ---- the second pass ---- */

typedef struct refining {
    batch b;
    const progress_range *range;
    uint32_t done; /* rows whose links were looked for, by all workers */
    region links;  /* uint32, of the rows of the batch: their number, then M0 cells each */
} refining;

static uint32_t *links_of(const refining *r, uint32_t item) {
    return (uint32_t *)r->links.base + (size_t)item * (1 + r->b.g->M0);
}

static void ask_for_row(const refining *r, search_scratch *w, uint32_t row) {
    float x[FVDB_DIM_MAX];
    store_get(r->b.s, row, x);
    scorer_set_vector(&w->query, x);
}

/* Where a row of the batch lies: the row nearest to it on level 2 and above. */
static void find_place(void *context, uint32_t worker, uint32_t item) {
    const refining *r = context;
    search_scratch *w = r->b.scratch[worker];
    edges_of(&r->b)[item] = item;
    if (store_is_vectorless(r->b.s, r->b.first + item)) return;
    ask_for_row(r, w, r->b.first + item);
    edges_of(&r->b)[item] = (uint64_t)hnsw_descend(w, 1) << 32 | item;
}

/* New links of one row of the batch, beside the graph, which others still walk. */
static void find_links(void *context, uint32_t worker, uint32_t place) {
    refining *r = context;
    const hnsw *g = r->b.g;
    search_scratch *w = r->b.scratch[worker];
    uint32_t item = (uint32_t)edges_of(&r->b)[place], row = r->b.first + item, links[HNSW_M0_MAX], kept = 0;
    float distances[HNSW_M0_MAX];
    if (control_cancelled(r->range->control)) return;
    if (store_is_vectorless(r->b.s, row)) {
        links_of(r, item)[0] = 0;
        return;
    }
    uint32_t done = __atomic_add_fetch(&r->done, 1, __ATOMIC_RELAXED);
    if (worker == 0) progress_report(r->range, done); /* one of them alone, so that it never goes back */
    ask_for_row(r, w, row);
    hnsw_walk_level(w, 0, hnsw_descend(w, 0), REFINE_EF(g->ef_construction), NULL);
    scratch_begin_marks(w);
    scratch_mark(w, row);
    for (uint32_t i = 0; i < w->pool_n; i++)
        if (scratch_mark(w, w->pool[i].node)) w->pool[kept++] = w->pool[i];
    w->pool_n = kept;
    uint32_t n = hnsw_links(g, 0, row, links);
    scorer_many(&w->query, links, n, distances);
    for (uint32_t i = 0; i < n; i++)
        if (scratch_mark(w, links[i])) scratch_offer(w, distances[i], links[i], REFINE_EF(g->ef_construction) + g->M0);
    uint32_t *out = links_of(r, item), long_links = r->b.long_links;
    out[0] = hnsw_select(w, 0, row, g->M0 - long_links - hnsw_far_links(r->b.s, 0), r->b.slack, out + 1);
    out[0] = add_last(out + 1, out[0], links, n, long_links);
    out[0] = hnsw_add_far(g, r->b.s, row, hnsw_rows(g), NULL, out + 1, out[0]);
}

static fvdb_status refine_batch(refining *r, thread_pool *c, hnsw_undo *undo, fvdb_diag *diag) {
    batch *b = &r->b;
    uint32_t rows = b->end - b->first;
    /* Neighbours one after the other: they find in the cache what the one before them read.  What is found does not
     * depend on the order. */
    thread_pool_run(c, find_place, r, rows);
    sort_edges(edges_of(b), edges_of(b) + rows, rows);
    thread_pool_run(c, find_links, r, rows);
    if (control_cancelled(r->range->control)) return FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
    for (uint32_t row = b->first; row < b->end; row++)
        if (!undo_save(undo, b->g, 0, row)) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < rows; i++) hnsw_set_links0(b->g, b->first + i, links_of(r, i) + 1, links_of(r, i)[0]);
    collect_edges(b, 0);
    return merge_edges(b, c, undo, diag);
}

/* As many as their edges can be counted. */
static uint32_t rows_a_batch(uint32_t M0, uint32_t linked) {
    return min_u32(min_u32(max_u32(REFINE_BATCH_MIN, linked / REFINE_BATCHES_MAX), linked), UINT32_MAX / M0);
}

uint64_t hnsw_refine_scratch(uint32_t M, uint32_t linked) {
    const uint64_t rows = rows_a_batch(2 * M, linked), M0 = 2 * M;
    return rows * (1 + M0) * sizeof(uint32_t) + edges_bytes(rows * M0);
}

fvdb_status hnsw_refine(hnsw *g, store *s, search_scratch *const *scratch, thread_pool *c, hnsw_undo *undo,
                        const progress_range *range, fvdb_diag *diag) {
    const uint32_t linked = hnsw_rows(g), rows = rows_a_batch(g->M0, linked);
    bool lengths = s->metric != FVDB_METRIC_DOT;
    refining r = {.b = {.g = g,
                        .s = s,
                        .scratch = scratch,
                        .slack = lengths ? REFINE_SLACK * REFINE_SLACK : 1,
                        .long_links = links_are_filled(s) ? g->M0 / LONG_LINKS_SHARE : 0},
                  .range = range};
    bool room = region_resize(&r.links, (size_t)rows * (1 + g->M0) * sizeof(uint32_t)) &&
                reserve_edges(&r.b, (size_t)rows * g->M0);
    fvdb_status status =
        room ? reserve_scratch(scratch, c, g->n, REFINE_EF(g->ef_construction) + g->M0, diag) : FAIL_MEMORY(diag);
    for (uint32_t first = g->first; first < g->n && status == FVDB_OK; first = r.b.end) {
        r.b.first = first;
        r.b.end = first + min_u32(rows, g->n - first);
        status = refine_batch(&r, c, undo, diag);
    }
    if (status == FVDB_OK) progress_report(range, linked);
    region_free(&r.links);
    free_edges(&r.b);
    return status;
}
