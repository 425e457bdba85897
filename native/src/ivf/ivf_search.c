/* Searching lists: the nearest centroids, then a scan of their rows.
 *
 * Rows that have codes relative to their centroid are estimated by these, 32 at a time, and the 4-bit codes of those that may be
 * near are fetched while the next 32 are estimated.  Of all other rows the 4-bit codes are read.
 * Rows are prefetched some ahead, also consecutive ones: hardware follows a stretch of memory only to the end of its page, and
 * a list has a few.  What a scan keeps is a buffer of keys, cut down to the nearest whenever it is
 * full: a row costs one comparison more than its distance. */
#include "ivf.h"

#include <float.h>
#include <math.h>

/* ---- the nearest rows ---- */

#define PREFETCH_ROWS 16u

/* What is farther than the farthest of the least `most` keys, which come to the front. */
static float select_nearest(uint64_t *keys, uint32_t n, uint32_t most) {
    uint64_t farthest = 0;
    keys_select(keys, n, most);
    for (uint32_t i = 0; i < most; i++) farthest = keys[i] > farthest ? keys[i] : farthest;
    return near_distance(farthest);
}

static void keep_nearest(nearest *near) {
    assert(near->n >= near->most && near->n <= nearest_room(near->most));
    near->cut = select_nearest(near->keys, near->n, near->most);
    near->n = near->most;
}

/* Before n more keys come, n <= IVF_CHUNK. */
static void make_room(nearest *near, uint32_t n) {
    if (near->n + n > nearest_room(near->most)) keep_nearest(near);
}

static bool returns(const nearest *near, uint32_t slot) {
    return row_passes(near->live, near->allow, near->allow_words, slot);
}

/* Rows to be scanned.  firsts, of second rows: those whose first list is among the `looked_at` are met there. */
typedef struct stretch {
    const uint32_t *slots, *firsts;
    const uint64_t *looked_at;
    uint32_t n;
} stretch;

static bool is_met_elsewhere(const stretch *rows, uint32_t i) {
    return rows->firsts && bit_get(rows->looked_at, rows->firsts[i]);
}

/* Rows at and on of a stretch, whose distances are known. */
static void offer(nearest *near, const stretch *rows, uint32_t at, const float *distances, uint32_t n) {
    make_room(near, n);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t slot = rows->slots[at + i];
        if (distances[i] <= near->cut && returns(near, slot) && !is_met_elsewhere(rows, at + i))
            near->keys[near->n++] = near_key(distances[i], slot);
    }
}

static void prefetch_rows(const nearest *near, const uint32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) scorer_prefetch(near->query, slots[i]);
}

/* The rows of a chunk that may be returned, before their distances are known: where most may not, that saves more. */
static uint32_t allowed_of(const nearest *near, const stretch *rows, uint32_t at, uint32_t n, uint32_t *out) {
    uint32_t kept = 0;
    for (uint32_t i = at; i < at + n; i++) {
        out[kept] = rows->slots[i];
        kept += returns(near, rows->slots[i]) && !is_met_elsewhere(rows, i);
    }
    return kept;
}

static void scan_allowed(nearest *near, const stretch *rows) {
    uint32_t allowed[IVF_CHUNK];
    float distances[IVF_CHUNK];
    for (uint32_t at = 0; at < rows->n; at += IVF_CHUNK) {
        const uint32_t m = allowed_of(near, rows, at, min_u32(IVF_CHUNK, rows->n - at), allowed);
        if (m == 0) continue;
        prefetch_rows(near, allowed, m);
        scorer_prefetched(near->query, allowed, m, distances);
        offer(near, &(stretch){.slots = allowed, .n = m}, 0, distances, m);
    }
}

static void scan_all(nearest *near, const stretch *rows) {
    float distances[PREFETCH_ROWS];
    for (uint32_t at = 0; at < rows->n; at += PREFETCH_ROWS) {
        const uint32_t n = min_u32(PREFETCH_ROWS, rows->n - at), ahead = at + PREFETCH_ROWS;
        if (ahead < rows->n) prefetch_rows(near, rows->slots + ahead, min_u32(PREFETCH_ROWS, rows->n - ahead));
        scorer_prefetched(near->query, rows->slots + at, n, distances);
        offer(near, rows, at, distances, n);
    }
}

static void scan_rows(nearest *near, const stretch *rows) {
    if (near->allow) scan_allowed(near, rows);
    else scan_all(near, rows);
}

void nearest_scan(nearest *near, const uint32_t *slots, uint32_t n) {
    scan_rows(near, &(stretch){.slots = slots, .n = n});
}

void nearest_finish(nearest *near) {
    if (near->n > near->most) keep_nearest(near);
    keys_sort(near->keys, near->n);
}

/* ---- lists ---- */

uint32_t ivf_probes_at(const ivf_centroids *c, const uint32_t *probes, uint32_t recall) {
    for (uint32_t i = 0; i < IVF_RECALLS; i++)
        if (ivf_recalls[i] >= recall) return probes[i];
    return c->nlist;
}

/* Between the k that were measured on a line, beyond the last in proportion.  Where rows have gone since, those k that are
 * left were more of all then. */
uint32_t ivf_probes(const ivf *v, uint32_t k, uint32_t recall) {
    const ivf_centroids *c = &v->centroids;
    if (c->nlist == 0) return 0;
    uint64_t then = (uint64_t)k * max_u32(c->trained_rows, v->live) / max_u32(v->live, 1);
    uint64_t few = ivf_probes_at(c, c->probes[0], recall), many = ivf_probes_at(c, c->probes[1], recall), probes = few;
    if (many < few) many = few;
    if (then > ivf_ks[1]) probes = many * then / ivf_ks[1];
    else if (then > ivf_ks[0]) probes = few + (many - few) * (then - ivf_ks[0]) / (ivf_ks[1] - ivf_ks[0]);
    return probes < c->nlist ? (uint32_t)probes : c->nlist;
}

void ivf_list_keys(const ivf_centroids *c, const store *s, const float *x, uint64_t *keys) {
    ivf_view view;
    float distances[IVF_CHUNK];
    ivf_look(&view, c, s, x);
    view.by_product = s->metric == FVDB_METRIC_DOT;
    for (uint32_t first = 0; first < c->nlist; first += IVF_CHUNK) {
        uint32_t n = min_u32(IVF_CHUNK, c->nlist - first);
        ivf_distances(&view, first, n, distances);
        for (uint32_t i = 0; i < n; i++) keys[first + i] = near_key(distances[i], first + i);
    }
}

/* ---- scan ---- */

/* Rows of a list are passed over that would have to be nearer than estimated by this many spreads, and so are centroids.  A row is
 * met once or twice, where a walk meets it from many sides and can do with fewer (EDGE_SPREADS): with one, rows without
 * structure lose .008 of recall, with two nothing (docs/decisions/0051). */
#define LIST_SPREADS 2.0f
/* Rows whose codes are asked for before any of them is scored. */
#define ASKED_MOST (2 * EDGE_LANES)

/* Where codes of four bits a dimension are too coarse, those of one bit say nothing. */
static bool uses_codes(const ivf *v, const nearest *near) { return v->codes.lists && near->query->by == WALK_BY_CODE; }

/* The walk distance of a centroid, from |c|^2 - 2 x.c, or from -x.c. */
static float centroid_distance(const scorer *q, float distance) {
    if (q->s->metric == FVDB_METRIC_DOT) return distance;
    return q->s->metric == FVDB_METRIC_COSINE ? 0.5f * (distance + 1) : distance + q->norm2;
}

/* What quantising a query makes walk distances by 4-bit codes be off by, as a spread: each weight is off by up to half a step, and
 * codes are about the middle of their levels.  It is next to nothing but on rows far from the origin. */
static float quantising_spread(const store *s, float scale) {
    const float spread = scale * 7.5f * sqrtf((float)s->dim / 12);
    return s->metric == FVDB_METRIC_L2 ? 2 * spread : spread;
}

/* Of n codes, at most EDGE_LANES, relative to a point at a walk distance, those that may be nearer than `most`. */
static uint32_t near_lanes(const nearest *near, const uint8_t *group, uint32_t n, float distance, float offset,
                           float most) {
    float estimates[EDGE_LANES];
    const store *s = near->query->s;
    const uint32_t lanes = s->kernels->edge_near(near->edge->tables, group + EDGE_CODES_AT, (const uint16_t *)group,
                                                 s->dim64, near->edge->scale, offset, most - distance, estimates);
    return n < EDGE_LANES ? lanes & ((1u << n) - 1) : lanes;
}

/* Numbers of the next IVF_CHUNK centroids that may be nearer than `most`, a number; returns how many. */
static uint32_t near_centroids(const ivf *v, const nearest *near, uint32_t first, float most, uint32_t *out) {
    const store *s = near->query->s;
    const float distance = edge_origin_distance(near->edge, near->query);
    const float offset = edge_offset(near->edge, near->query, distance, LIST_SPREADS);
    const uint32_t end = min_u32(first + IVF_CHUNK, v->centroids.nlist);
    uint32_t n = 0;
    for (uint32_t at = first; at < end; at += EDGE_LANES) {
        uint32_t lanes = near_lanes(near, ivf_centroid_group(v, s, at), end - at, distance, offset, most);
        for (; lanes; lanes &= lanes - 1) out[n++] = at + (uint32_t)__builtin_ctz(lanes);
    }
    return n;
}

/* Keys of the `most` nearest lists, in no order; room for all lists.  By codes a few others may be among them. */
static void nearest_lists(const ivf *v, const nearest *near, const ivf_view *view, uint32_t most, uint64_t *keys) {
    const ivf_centroids *c = &v->centroids;
    const bool coded = uses_codes(v, near);
    const float margin = LIST_SPREADS * quantising_spread(view->s, view->scale);
    float distances[IVF_CHUNK], cut = INFINITY;
    uint32_t numbers[IVF_CHUNK], kept = 0;
    for (uint32_t first = 0; first < c->nlist; first += IVF_CHUNK) {
        uint32_t n = min_u32(IVF_CHUNK, c->nlist - first);
        if (coded && cut < INFINITY)
            n = near_centroids(v, near, first, centroid_distance(near->query, cut) + margin, numbers);
        else
            for (uint32_t i = 0; i < n; i++) numbers[i] = first + i;
        ivf_distances_of(view, numbers, n, distances);
        for (uint32_t i = 0; i < n; i++) {
            keys[kept] = near_key(distances[i], numbers[i]);
            kept += !(distances[i] > cut);
        }
        if (kept < 2 * most + IVF_CHUNK) continue;
        cut = select_nearest(keys, kept, most);
        kept = most;
    }
    keys_select(keys, kept, most);
}

/* A scan, and the rows that it has asked for. */
typedef struct list_scan {
    const ivf *v;
    nearest *near;
    const uint64_t *looked_at;
    float margin; /* what distances by 4-bit codes, of rows and of centroids, are off by */
    uint32_t asked, slots[ASKED_MOST];
} list_scan;

/* Scores the first n rows that were asked for. */
static void take_asked(list_scan *scan, uint32_t n) {
    float distances[ASKED_MOST];
    nearest *near = scan->near;
    if (n == 0) return;
    make_room(near, n);
    scorer_prefetched(near->query, scan->slots, n, distances);
    for (uint32_t i = 0; i < n; i++)
        if (distances[i] <= near->cut) near->keys[near->n++] = near_key(distances[i], scan->slots[i]);
    if (near->n >= near->most + near->most / 4) keep_nearest(near);
    scan->asked -= n;
    memmove(scan->slots, scan->slots + n, scan->asked * sizeof *scan->slots);
}

/* Asks for the rows of a group that are near by estimate and may be returned. */
static void ask_for_near(list_scan *scan, uint32_t number, uint32_t first, uint32_t lanes) {
    const coded_list *coded = &scan->v->codes.lists[number];
    const ivf_list *list = &scan->v->lists[number], *seconds = &scan->v->seconds[number];
    for (; lanes; lanes &= lanes - 1) {
        const uint32_t at = first + (uint32_t)__builtin_ctz(lanes);
        const bool second = at >= coded->firsts;
        const uint32_t slot = second ? seconds->slots[at - coded->firsts] : list->slots[at];
        if (!returns(scan->near, slot)) continue;
        if (second && bit_get(scan->looked_at, seconds->firsts[at - coded->firsts])) continue; /* it is met there */
        scorer_prefetch(scan->near->query, slot);
        scan->slots[scan->asked++] = slot;
    }
}

/* The rows of a list that have codes. */
static void scan_coded(list_scan *scan, uint64_t key) {
    const nearest *near = scan->near;
    const store *s = near->query->s;
    const uint32_t number = near_number(key);
    const coded_list *list = &scan->v->codes.lists[number];
    const uint8_t *group = ivf_code_groups(scan->v, s, number);
    const uint32_t rows = list->firsts + list->seconds;
    const size_t bytes = edge_group_bytes(s->dim64);
    const float distance = centroid_distance(near->query, near_distance(key));
    const float offset = edge_offset(near->edge, near->query, distance, LIST_SPREADS);
    for (uint32_t first = 0; first < rows; first += EDGE_LANES, group += bytes) {
        const uint32_t before = scan->asked;
        if (rows - first > EDGE_LANES) prefetch_bytes(group + bytes, bytes);
        ask_for_near(scan, number, first,
                     near_lanes(near, group, rows - first, distance, offset, near->cut + scan->margin));
        take_asked(scan, before); /* theirs have come meanwhile */
    }
}

static void prefetch_list(const ivf *v, const nearest *near, uint32_t number) {
    const ivf_list *list = &v->lists[number], *seconds = &v->seconds[number];
    if (!uses_codes(v, near)) {
        prefetch_rows(near, list->slots, min_u32(list->n, PREFETCH_ROWS));
        return;
    }
    if (list->n) prefetch_bytes(list->slots, list->n * sizeof(uint32_t));
    if (seconds->n) {
        prefetch_bytes(seconds->slots, seconds->n * sizeof(uint32_t));
        prefetch_bytes(seconds->firsts, seconds->n * sizeof(uint32_t));
    }
    if (v->codes.lists[number].firsts + v->codes.lists[number].seconds)
        prefetch_bytes(ivf_code_groups(v, near->query->s, number), edge_group_bytes(near->query->s->dim64));
}

void ivf_scan(const ivf *v, nearest *near, uint32_t nprobe, uint64_t *room) {
    const uint32_t nlist = v->centroids.nlist;
    uint64_t *lists = room, *looked_at = room + nlist;
    const store *s = near->query->s;
    list_scan scan = {.v = v, .near = near, .looked_at = looked_at};
    ivf_view view;
    ivf_look(&view, &v->centroids, s, near->query->x);
    view.by_product = s->metric == FVDB_METRIC_DOT;
    const bool coded = uses_codes(v, near);
    if (coded) edge_query_set(near->edge, near->query, (const float *)v->codes.origin.base);
    scan.margin = LIST_SPREADS * (quantising_spread(s, near->query->scale) + quantising_spread(s, view.scale));
    nearest_lists(v, near, &view, nprobe, lists);
    keys_select(lists, nprobe, nprobe / 4); /* the nearest first: they hold what cuts off the rest */
    memset(looked_at, 0, (nlist + 63u) / 64 * sizeof *looked_at);
    for (uint32_t i = 0; i < nprobe; i++) bit_set(looked_at, near_number(lists[i]));
    for (uint32_t i = 0; i < nprobe; i++) {
        const uint32_t number = near_number(lists[i]);
        const ivf_list *list = &v->lists[number], *seconds = &v->seconds[number];
        const coded_list rows = coded ? v->codes.lists[number] : (coded_list){0};
        if (i + 1 < nprobe) prefetch_list(v, near, near_number(lists[i + 1]));
        if (rows.firsts + rows.seconds) scan_coded(&scan, lists[i]);
        if (list->n > rows.firsts) nearest_scan(near, list->slots + rows.firsts, list->n - rows.firsts);
        if (seconds->n > rows.seconds)
            scan_rows(near, &(stretch){seconds->slots + rows.seconds, seconds->firsts + rows.seconds, looked_at,
                                       seconds->n - rows.seconds});
    }
    take_asked(&scan, scan.asked);
}
