/* The lists: which row is on which, first and second. */
#include "ivf.h"

#include <math.h>

/* Training is due again when the rows are so many times those it saw, or when the rows that came since, at least a tenth of
 * those, lie so much farther (squared) from their centroids. */
#define GROWTH_DUE 4u
#define DRIFT_DUE 1.25
#define DRIFT_ROWS_SHARE 10u

void ivf_init(ivf *v) { *v = (ivf){0}; }

static void free_lists(ivf_list *lists, uint32_t n) {
    for (uint32_t i = 0; lists && i < n; i++) {
        mem_free(lists[i].slots);
        mem_free(lists[i].firsts);
    }
    mem_free(lists);
}

void ivf_free(ivf *v) {
    free_lists(v->lists, v->centroids.nlist);
    free_lists(v->seconds, v->centroids.nlist);
    ivf_codes_free(&v->codes);
    region_free(&v->rows);
    ivf_centroids_free(&v->centroids);
    *v = (ivf){0};
}

size_t ivf_resident(const ivf *v, uint32_t dim64) {
    const ivf_centroids *c = &v->centroids;
    if (c->nlist == 0) return 0;
    const size_t codes = v->codes.lists ? region_resident(&v->codes.groups) + region_resident(&v->codes.centroids) +
                                              region_resident(&v->codes.origin) + c->nlist * sizeof *v->codes.lists
                                        : 0;
    return region_resident(&c->codes) + region_resident(&c->norm2) + (size_t)dim64 * 3 * sizeof(float) +
           region_resident(&v->rows) + (size_t)c->nlist * 2 * sizeof *v->lists +
           ((size_t)v->n + 2 * (size_t)v->n_second) * sizeof(uint32_t) + codes;
}

/* ---- assign ---- */

typedef struct assign_job {
    const ivf_centroids *c;
    const store *s;
    const uint32_t *slots;
    uint32_t n;
    const ivf_places *out;
} assign_job;

float ivf_least(const float *distances, uint32_t n) {
    float least[16];
    const uint32_t whole = n - n % 16;
    for (uint32_t l = 0; l < 16; l++) least[l] = INFINITY;
    for (uint32_t i = 0; i < whole; i += 16)
        for (uint32_t l = 0; l < 16; l++) least[l] = distances[i + l] < least[l] ? distances[i + l] : least[l];
    for (uint32_t i = whole; i < n; i++) least[0] = distances[i] < least[0] ? distances[i] : least[0];
    for (uint32_t l = 1; l < 16; l++) least[0] = least[l] < least[0] ? least[l] : least[0];
    return least[0];
}

uint32_t ivf_nearest(const ivf_view *v, float *distance) {
    float distances[IVF_CHUNK];
    uint32_t best = 0, nlist = v->centroids->nlist;
    for (uint32_t first = 0; first < nlist; first += IVF_CHUNK) {
        uint32_t n = min_u32(IVF_CHUNK, nlist - first);
        ivf_distances(v, first, n, distances);
        if (first == 0) *distance = distances[0];
        if (!(ivf_least(distances, n) < *distance)) continue;
        for (uint32_t i = 0; i < n; i++) {
            if (!(distances[i] < *distance)) continue;
            *distance = distances[i];
            best = first + i;
        }
    }
    return best;
}

/* Of rows whose second lists nobody asks for, as in training. */
static ivf_place nearest_alone(const ivf_centroids *c, const store *s, const float *x) {
    ivf_place place = {.second = IVF_NO_LIST};
    ivf_view view;
    float nearest;
    ivf_look(&view, c, s, x);
    place.list = ivf_nearest(&view, &nearest);
    double norm2 = 0;
    for (uint32_t d = 0; d < s->dim; d++) norm2 += (double)x[d] * x[d];
    const double error = norm2 + (double)nearest;
    place.error = error > 0 ? to_finite_float(error) : 0;
    return place;
}

static void assign_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    const assign_job *job = context;
    const store *s = job->s;
    const ivf_places *out = job->out;
    const bool seconds = out->seconds && job->c->second_limit > 0;
    float x[FVDB_DIM_MAX] = {0};
    uint32_t end = min_u32(job->n, (item + 1) * IVF_ROWS_PER_ITEM);
    for (uint32_t i = item * IVF_ROWS_PER_ITEM; i < end; i++) {
        coded_row(s, job->slots[i], x);
        const ivf_place place = seconds ? ivf_place_of(job->c, s, x) : nearest_alone(job->c, s, x);
        out->lists[i] = place.list;
        if (out->seconds) out->seconds[i] = place.second;
        if (out->errors) out->errors[i] = place.error;
    }
}

void ivf_assign(const ivf_centroids *c, const store *s, const uint32_t *slots, uint32_t n, thread_pool *pool,
                const ivf_places *out) {
    assign_job job = {c, s, slots, n, out};
    thread_pool_run(pool, assign_item, &job, (n + IVF_ROWS_PER_ITEM - 1) / IVF_ROWS_PER_ITEM);
}

/* ---- fill ---- */

static size_t bitmap_bytes(uint32_t rows) { return (rows + 63u) / 64 * sizeof(uint64_t); }

static bool make_longer(uint32_t **array, uint32_t room) {
    uint32_t *longer = mem_realloc(*array, room * sizeof *longer);
    if (longer) *array = longer;
    return longer != NULL;
}

static bool make_room(ivf_list *list, uint32_t room, bool second) {
    if (room <= list->room) return true;
    if (!make_longer(&list->slots, room) || (second && !make_longer(&list->firsts, room))) return false;
    list->room = room;
    return true;
}

/* New lists with room for the rows that are to be on each. */
static ivf_list *lists_for(const uint32_t *numbers, uint32_t n, uint32_t nlist, bool second) {
    uint32_t *sizes = mem_alloc_array(nlist, sizeof *sizes);
    ivf_list *lists = mem_alloc_array(nlist, sizeof *lists);
    bool room = sizes && lists;
    for (uint32_t i = 0; i < n && room; i++)
        if (numbers[i] != IVF_NO_LIST) sizes[numbers[i]]++;
    for (uint32_t list = 0; list < nlist && room; list++)
        room = sizes[list] == 0 || make_room(&lists[list], sizes[list], second);
    mem_free(sizes);
    if (room) return lists;
    free_lists(lists, nlist);
    return NULL;
}

/* Puts a slot in its place.  first: of a second list, the list that the row is on first. */
static void insert(ivf_list *list, uint32_t slot, uint32_t first) {
    assert(list->n < list->room);
    uint32_t at = list->n++;
    for (; at && list->slots[at - 1] > slot; at--) {
        list->slots[at] = list->slots[at - 1];
        if (list->firsts) list->firsts[at] = list->firsts[at - 1];
    }
    list->slots[at] = slot;
    if (list->firsts) list->firsts[at] = first;
}

static void put(ivf *v, uint32_t slot, uint32_t list, uint32_t second) {
    assert(list != second);
    insert(&v->lists[list], slot, IVF_NO_LIST);
    if (second != IVF_NO_LIST) {
        insert(&v->seconds[second], slot, list);
        v->n_second++;
    }
    bit_set((uint64_t *)v->rows.base, slot);
}

fvdb_status ivf_fill(ivf *v, const uint32_t *slots, const ivf_places *places, uint32_t n, uint32_t rows,
                     const uint64_t *live, fvdb_diag *diag) {
    const uint32_t nlist = v->centroids.nlist;
    assert(!v->lists && !v->seconds);
    v->lists = lists_for(places->lists, n, nlist, false);
    v->seconds = v->lists ? lists_for(places->seconds, n, nlist, true) : NULL;
    if (!v->seconds || !region_resize(&v->rows, bitmap_bytes(rows))) {
        free_lists(v->lists, nlist);
        free_lists(v->seconds, nlist);
        v->lists = v->seconds = NULL;
        region_free(&v->rows);
        return FAIL_MEMORY(diag);
    }
    v->n = n;
    v->live = v->n_second = 0;
    for (uint32_t i = 0; i < n; i++) {
        put(v, slots[i], places->lists[i], places->seconds[i]);
        v->live += bit_get(live, slots[i]);
    }
    return FVDB_OK;
}

static void note_lists(const ivf_list *lists, uint32_t nlist, uint32_t rows, uint32_t *out) {
    for (uint32_t slot = 0; slot < rows; slot++) out[slot] = IVF_NO_LIST;
    for (uint32_t list = 0; list < nlist; list++)
        for (uint32_t i = 0; i < lists[list].n; i++) out[lists[list].slots[i]] = list;
}

void ivf_places_of(const ivf *v, uint32_t rows, const ivf_places *out) {
    note_lists(v->lists, v->centroids.nlist, rows, out->lists);
    note_lists(v->seconds, v->centroids.nlist, rows, out->seconds);
}

void ivf_exchange_rows(ivf *v, ivf *from) {
    const ivf old = *v;
    assert(from->centroids.nlist == old.centroids.nlist);
    *v = *from;
    v->centroids = old.centroids;
    v->since_rows = old.since_rows;
    v->since_error = old.since_error;
    *from = old;
    from->centroids = (ivf_centroids){.nlist = old.centroids.nlist};
}

/* ---- append ---- */

/* Of each list in `numbers`: an eighth more than it needs, as more rows will come. */
static bool grow(ivf_list *lists, uint32_t nlist, const uint32_t *numbers, uint32_t n, bool second) {
    uint32_t *more = mem_alloc_array(nlist, sizeof *more);
    bool room = more != NULL;
    for (uint32_t i = 0; i < n && room; i++)
        if (numbers[i] != IVF_NO_LIST) more[numbers[i]]++;
    for (uint32_t at = 0; at < nlist && room; at++) {
        const uint32_t needed = lists[at].n + more[at];
        room = needed <= lists[at].room || make_room(&lists[at], needed + needed / 8, second);
    }
    mem_free(more);
    return room;
}

fvdb_status ivf_reserve(ivf *v, const ivf_places *places, uint32_t n, uint32_t rows, fvdb_diag *diag) {
    const uint32_t nlist = v->centroids.nlist;
    const bool room = (bitmap_bytes(rows) <= v->rows.used || region_resize(&v->rows, bitmap_bytes(rows))) &&
                      grow(v->lists, nlist, places->lists, n, false) &&
                      grow(v->seconds, nlist, places->seconds, n, true);
    return room ? FVDB_OK : FAIL_MEMORY(diag);
}

/* Its slot is behind those of rows with codes, which a vacuum put in front: those rows stay the first of their list. */
void ivf_put(ivf *v, uint32_t slot, uint32_t list, uint32_t second, float error) {
    assert(!ivf_has(v, slot));
    put(v, slot, list, second);
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
