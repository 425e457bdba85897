/* Taking rows out of the graph.
 *
 * Every row that stays and loses a neighbour is linked anew: candidates are its remaining neighbours and, through each
 * lost one, that one's neighbours (and so on while lost ones lead to lost ones), then Alg. 4 picks.  A row that finds
 * too few this way searches the old graph, which is whole, for rows that stay.
 * All rows read the old graph and write the new one: any number of threads gives the same graph, and until the last
 * step nothing has changed. */
#include "hnsw.h"

#define ROWS_PER_ITEM 64u

typedef struct repair {
    const hnsw *g;
    const store *s;
    const uint32_t *map;       /* old slot -> new slot */
    const uint32_t *upper_map; /* old upper number -> new */
    row_filter stays;
    hnsw *out;
    search_scratch *const *scratch;
    fvdb_control *control;
    uint32_t *nodes; /* level 0: unused; above: old upper numbers that stay and reach `level` */
    uint32_t n_nodes, level;
} repair;

static bool goes(const repair *r, uint32_t level, uint32_t node) {
    return r->map[hnsw_node_slot(r->g, level, node)] == FVDB_NO_SLOT;
}

/* Gathers into w->pool the rows that stay around a node, nearest first. Returns false when the node lost no link. */
static bool gather(repair *r, search_scratch *w, uint32_t level, uint32_t node) {
    uint32_t links[HNSW_M0_MAX], lost[HNSW_EXPAND_MAX], n_lost = 0;
    uint32_t n = hnsw_links(r->g, level, node, links);
    for (uint32_t i = 0; i < n && n_lost < HNSW_EXPAND_MAX; i++)
        if (goes(r, level, links[i])) lost[n_lost++] = links[i];
    if (n_lost == 0) return false;

    uint32_t fresh[HNSW_M0_MAX], slots[HNSW_M0_MAX];
    float distances[HNSW_M0_MAX];
    scorer_set_slot(&w->query, hnsw_node_slot(r->g, level, node));
    w->pool_n = 0;
    scratch_begin_marks(w);
    scratch_mark(w, node);
    for (uint32_t at = 0;; at++) {
        uint32_t n_fresh = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (!scratch_mark(w, links[i])) continue;
            if (!goes(r, level, links[i])) {
                slots[n_fresh] = hnsw_node_slot(r->g, level, links[i]);
                fresh[n_fresh++] = links[i];
            } else if (at > 0 && n_lost < HNSW_EXPAND_MAX) {
                lost[n_lost++] = links[i];
            }
        }
        scorer_many(&w->query, slots, n_fresh, distances);
        for (uint32_t i = 0; i < n_fresh; i++) scratch_offer(w, distances[i], fresh[i], r->stays.pool_most);
        if (at == n_lost) return true;
        n = hnsw_links(r->g, level, lost[at], links);
    }
}

static void repair_node(repair *r, search_scratch *w, uint32_t level, uint32_t node) {
    const hnsw *g = r->g;
    uint32_t links[HNSW_M0_MAX], room = level ? g->M : g->M0, n;
    if (gather(r, w, level, node)) {
        if (w->pool_n < g->M && level == 0) {
            hnsw_walk_level(w, 0, hnsw_descend(w, 0), g->ef_construction, &r->stays);
            uint32_t kept = 0;
            for (uint32_t i = 0; i < w->pool_n; i++)
                if (w->pool[i].node != node && !goes(r, 0, w->pool[i].node)) w->pool[kept++] = w->pool[i];
            w->pool_n = kept;
        }
        n = hnsw_select(w, level, hnsw_node_slot(g, level, node), room - hnsw_far_links(r->s, level), 1, links);
        if (level == 0) n = hnsw_add_far(g, r->s, node, hnsw_rows(g), r->map, links, n);
    } else {
        n = hnsw_links(g, level, node, links);
    }
    const uint32_t *map = level ? r->upper_map : r->map;
    for (uint32_t i = 0; i < n; i++) links[i] = map[links[i]];
    hnsw_set_links(r->out, level, map[node], links, n);
}

static void repair_item(void *context, uint32_t worker, uint32_t item) {
    repair *r = context;
    if (control_cancelled(r->control)) return;
    uint32_t end = min_u32(r->n_nodes, (item + 1) * ROWS_PER_ITEM);
    for (uint32_t i = item * ROWS_PER_ITEM; i < end; i++) {
        uint32_t node = r->level ? r->nodes[i] : i;
        if (!goes(r, r->level, node)) repair_node(r, r->scratch[worker], r->level, node);
    }
}

static void repair_level(repair *r, uint32_t level, thread_pool *c) {
    r->level = level;
    r->n_nodes = r->g->n;
    if (level) {
        r->n_nodes = 0;
        for (uint32_t u = 0; u < r->g->upper_n; u++)
            if (hnsw_upper_level(r->g, u) >= level && r->upper_map[u] != FVDB_NO_SLOT) r->nodes[r->n_nodes++] = u;
    }
    thread_pool_run(c, repair_item, r, (r->n_nodes + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
}

static fvdb_status without(repair *r, uint32_t n, uint32_t *upper_map, uint64_t *stays, thread_pool *c,
                           fvdb_diag *diag) {
    const hnsw *g = r->g;
    for (uint32_t slot = 0; slot < g->n; slot++)
        if (r->map[slot] != FVDB_NO_SLOT) bit_set(stays, slot);
    TRY(hnsw_reserve(r->out, n, diag));
    for (uint32_t u = 0; u < g->upper_n; u++) {
        uint32_t slot = r->map[hnsw_upper_slot(g, u)];
        upper_map[u] = slot == FVDB_NO_SLOT ? FVDB_NO_SLOT : r->out->upper_n;
        if (slot != FVDB_NO_SLOT) TRY(hnsw_append_upper(r->out, slot, hnsw_upper_level(g, u), diag));
    }
    for (uint32_t i = 0; i < thread_pool_size(c); i++)
        if (scratch_reserve(r->scratch[i], g->n, r->stays.pool_most + 1) != FVDB_OK) return FAIL_MEMORY(diag);
    for (uint32_t level = 0; level <= g->max_level; level++) {
        repair_level(r, level, c);
        if (control_cancelled(r->control)) return FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
    }
    r->out->n = n;
    hnsw_elect_entry(r->out);
    return FVDB_OK;
}

fvdb_status hnsw_without(const hnsw *g, const store *s, const uint32_t *map, uint32_t n, search_scratch *const *scratch,
                         thread_pool *c, fvdb_control *control, hnsw *out, fvdb_diag *diag) {
    uint32_t *upper_map = mem_alloc_array(g->upper_n, sizeof *upper_map);
    uint32_t *nodes = mem_alloc_array(g->upper_n, sizeof *nodes);
    uint64_t *stays = mem_alloc_array(g->n / 64 + 1, sizeof *stays);
    fvdb_status status;
    if (upper_map && nodes && stays) {
        repair r = {.g = g,
                    .s = s,
                    .map = map,
                    .upper_map = upper_map,
                    .stays = {.live = stays, .pool_most = max_u32(2 * g->ef_construction, HNSW_REPAIR_CANDIDATES)},
                    .out = out,
                    .scratch = scratch,
                    .control = control,
                    .nodes = nodes};
        status = without(&r, n, upper_map, stays, c, diag);
    } else {
        status = FAIL_MEMORY(diag);
    }
    if (status != FVDB_OK) hnsw_free(out);
    mem_free(upper_map);
    mem_free(nodes);
    mem_free(stays);
    return status;
}
