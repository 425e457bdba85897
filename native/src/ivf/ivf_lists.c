/* The lists: which row is on which. */
#include "ivf.h"

/* Training is due again when the rows are so many times those it saw, or when the rows that came since, at least a tenth of
 * those, lie so much farther (squared) from their centroids. */
#define GROWTH_DUE 4u
#define DRIFT_DUE 1.25
#define DRIFT_ROWS_SHARE 10u

void ivf_init(ivf *v) { *v = (ivf){0}; }

static void free_lists(ivf_list *lists, uint32_t n) {
    for (uint32_t i = 0; lists && i < n; i++) mem_free(lists[i].slots);
    mem_free(lists);
}

void ivf_free(ivf *v) {
    free_lists(v->lists, v->centroids.nlist);
    region_free(&v->rows);
    ivf_centroids_free(&v->centroids);
    *v = (ivf){0};
}

size_t ivf_resident(const ivf *v, uint32_t dim64) {
    const ivf_centroids *c = &v->centroids;
    if (c->nlist == 0) return 0;
    return region_resident(&c->codes) + region_resident(&c->norm2) + (size_t)dim64 * 3 * sizeof(float) +
           region_resident(&v->rows) + (size_t)c->nlist * sizeof *v->lists + (size_t)v->n * sizeof(uint32_t);
}

/* ---- assign ---- */

typedef struct assign_job {
    const ivf_centroids *c;
    const store *s;
    const uint32_t *slots;
    uint32_t n;
    uint32_t *lists;
    float *errors;
} assign_job;

uint32_t ivf_nearest(const ivf_view *v, float *distance) {
    float distances[IVF_CHUNK];
    uint32_t best = 0, nlist = v->centroids->nlist;
    for (uint32_t first = 0; first < nlist; first += IVF_CHUNK) {
        uint32_t n = min_u32(IVF_CHUNK, nlist - first);
        ivf_distances(v, first, n, distances);
        if (first == 0) *distance = distances[0];
        for (uint32_t i = 0; i < n; i++) {
            if (!(distances[i] < *distance)) continue;
            *distance = distances[i];
            best = first + i;
        }
    }
    return best;
}

static void assign_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    const assign_job *job = context;
    const store *s = job->s;
    float x[FVDB_DIM_MAX] = {0}, nearest;
    ivf_view view;
    uint32_t end = min_u32(job->n, (item + 1) * IVF_ROWS_PER_ITEM);
    for (uint32_t i = item * IVF_ROWS_PER_ITEM; i < end; i++) {
        coded_row(s, job->slots[i], x);
        ivf_look(&view, job->c, s, x);
        job->lists[i] = ivf_nearest(&view, &nearest);
        if (!job->errors) continue;
        double norm2 = 0;
        for (uint32_t d = 0; d < s->dim; d++) norm2 += (double)x[d] * x[d];
        double error = norm2 + (double)nearest;
        job->errors[i] = error > 0 ? to_finite_float(error) : 0;
    }
}

void ivf_assign(const ivf_centroids *c, const store *s, const uint32_t *slots, uint32_t n, thread_pool *pool,
                uint32_t *lists, float *errors) {
    assign_job job = {c, s, slots, n, lists, errors};
    thread_pool_run(pool, assign_item, &job, (n + IVF_ROWS_PER_ITEM - 1) / IVF_ROWS_PER_ITEM);
}

/* ---- fill ---- */

static size_t bitmap_bytes(uint32_t rows) { return (rows + 63u) / 64 * sizeof(uint64_t); }

static bool make_room(ivf_list *list, uint32_t room) {
    if (room <= list->room) return true;
    uint32_t *slots = mem_realloc(list->slots, room * sizeof *slots);
    if (!slots) return false;
    list->slots = slots;
    list->room = room;
    return true;
}

fvdb_status ivf_fill(ivf *v, const uint32_t *slots, const uint32_t *lists, uint32_t n, uint32_t rows,
                     const uint64_t *live, fvdb_diag *diag) {
    uint32_t nlist = v->centroids.nlist, *sizes = mem_alloc_array(nlist, sizeof *sizes);
    v->lists = mem_alloc_array(nlist, sizeof *v->lists);
    bool room = sizes && v->lists && region_resize(&v->rows, bitmap_bytes(rows));
    for (uint32_t i = 0; i < n && room; i++) sizes[lists[i]]++;
    for (uint32_t list = 0; list < nlist && room; list++)
        room = sizes[list] == 0 || make_room(&v->lists[list], sizes[list]);
    mem_free(sizes);
    if (!room) {
        free_lists(v->lists, nlist);
        v->lists = NULL;
        region_free(&v->rows);
        return FAIL_MEMORY(diag);
    }
    v->n = n;
    v->live = 0;
    for (uint32_t i = 0; i < n; i++) {
        ivf_list *list = &v->lists[lists[i]];
        list->slots[list->n++] = slots[i];
        bit_set((uint64_t *)v->rows.base, slots[i]);
        v->live += bit_get(live, slots[i]);
    }
    return FVDB_OK;
}

/* ---- append ---- */

fvdb_status ivf_reserve(ivf *v, const uint32_t *lists, uint32_t n, uint32_t rows, fvdb_diag *diag) {
    uint32_t nlist = v->centroids.nlist, *more = mem_alloc_array(nlist, sizeof *more);
    bool room = more && (bitmap_bytes(rows) <= v->rows.used || region_resize(&v->rows, bitmap_bytes(rows)));
    for (uint32_t i = 0; i < n && room; i++) more[lists[i]]++;
    for (uint32_t at = 0; at < nlist && room; at++) {
        ivf_list *list = &v->lists[at];
        uint32_t needed = list->n + more[at];
        room = needed <= list->room || make_room(list, needed + needed / 8);
    }
    mem_free(more);
    return room ? FVDB_OK : FAIL_MEMORY(diag);
}

void ivf_put(ivf *v, uint32_t slot, uint32_t list, float error) {
    ivf_list *l = &v->lists[list];
    assert(l->n < l->room && !ivf_has(v, slot));
    uint32_t at = l->n++;
    for (; at && l->slots[at - 1] > slot; at--) l->slots[at] = l->slots[at - 1];
    l->slots[at] = slot;
    bit_set((uint64_t *)v->rows.base, slot);
    v->n++;
    v->live++;
    v->since_rows++;
    v->since_error += (double)error;
}

bool ivf_training_is_due(const ivf *v) {
    const ivf_centroids *c = &v->centroids;
    if (c->nlist == 0) return false;
    if (v->live / GROWTH_DUE >= c->trained_rows) return true;
    return v->since_rows > c->trained_rows / DRIFT_ROWS_SHARE &&
           v->since_error / (double)v->since_rows > DRIFT_DUE * c->trained_error;
}
