/* Searching lists: the nearest centroids, then a scan of their rows by code.
 *
 * Rows are prefetched some ahead, also consecutive ones: hardware follows a stretch of memory only to the end of its page, and
 * a list has a few.  What a scan keeps is a buffer of keys, cut down to the nearest whenever it is
 * full: a row costs one comparison more than its distance. */
#include "ivf.h"

#include <float.h>
#include <math.h>

/* ---- the nearest rows ---- */

#define PREFETCH_ROWS 16u

static void keep_nearest(nearest *near) {
    assert(near->n >= near->most && near->n <= nearest_room(near->most));
    keys_select(near->keys, near->n, near->most);
    near->n = near->most;
    uint64_t farthest = 0;
    for (uint32_t i = 0; i < near->n; i++) farthest = near->keys[i] > farthest ? near->keys[i] : farthest;
    near->cut = near_distance(farthest);
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
    if (near->n > nearest_room(near->most) - IVF_CHUNK) keep_nearest(near);
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

/* The same by copies of their codes, of which theirs are `first` and on. */
static void scan_copies(nearest *near, const uint8_t *codes, uint32_t first, const stretch *rows) {
    const size_t bytes = near->query->s->code_bytes;
    uint32_t copies[PREFETCH_ROWS];
    float distances[PREFETCH_ROWS];
    for (uint32_t at = 0; at < rows->n; at += PREFETCH_ROWS) {
        const uint32_t n = min_u32(PREFETCH_ROWS, rows->n - at), ahead = at + PREFETCH_ROWS;
        if (ahead < rows->n)
            prefetch_bytes(codes + (first + ahead) * bytes, min_u32(PREFETCH_ROWS, rows->n - ahead) * bytes);
        for (uint32_t i = 0; i < n; i++) copies[i] = first + at + i;
        scorer_copies(near->query, codes, copies, rows->slots + at, n, distances);
        offer(near, rows, at, distances, n);
    }
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

/* Second rows of a list that are scored by copies of their codes.  Under a filter the codes of those that may be returned are
 * fetched from where they are. */
static uint32_t copied(const ivf *v, const nearest *near, uint32_t list) {
    const uint32_t *starts = v->copies.starts;
    return starts && !near->allow && near->query->by == WALK_BY_CODE ? starts[list + 1] - starts[list] : 0;
}

static void prefetch_copies(const ivf *v, const nearest *near, uint32_t list) {
    const size_t bytes = near->query->s->code_bytes, n = min_u32(copied(v, near, list), PREFETCH_ROWS);
    if (n) prefetch_bytes(v->copies.codes.base + v->copies.starts[list] * bytes, n * bytes);
}

static void scan_seconds(const ivf *v, nearest *near, uint32_t number, const uint64_t *looked_at) {
    const ivf_list *list = &v->seconds[number];
    const uint32_t n = copied(v, near, number);
    if (n)
        scan_copies(near, v->copies.codes.base, v->copies.starts[number],
                    &(stretch){list->slots, list->firsts, looked_at, n});
    if (n < list->n) scan_rows(near, &(stretch){list->slots + n, list->firsts + n, looked_at, list->n - n});
}

void ivf_scan(const ivf *v, nearest *near, uint32_t nprobe, uint64_t *room) {
    const uint32_t nlist = v->centroids.nlist;
    uint64_t *lists = room, *looked_at = room + nlist;
    ivf_list_keys(&v->centroids, near->query->s, near->query->x, lists);
    keys_select(lists, nlist, nprobe);
    keys_select(lists, nprobe, nprobe / 4); /* the nearest first: they hold what cuts off the rest */
    memset(looked_at, 0, (nlist + 63u) / 64 * sizeof *looked_at);
    for (uint32_t i = 0; i < nprobe; i++) bit_set(looked_at, near_number(lists[i]));
    for (uint32_t i = 0; i < nprobe; i++) {
        const uint32_t number = near_number(lists[i]);
        const ivf_list *list = &v->lists[number];
        if (i + 1 < nprobe) {
            const ivf_list *next = &v->lists[near_number(lists[i + 1])];
            prefetch_rows(near, next->slots, min_u32(next->n, PREFETCH_ROWS));
        }
        prefetch_copies(v, near, number);
        nearest_scan(near, list->slots, list->n);
        scan_seconds(v, near, number, looked_at);
    }
}
