/* Codes of the rows of lists, relative to their centroids (store/edge_codes.c): a list is read by them one place after another,
 * and what a scan fetches of a row elsewhere it fetches of those alone that may be near.
 *
 * This is how RaBitQ searches lists (Gao & Long 2024, section 4), by groups of 32 rows as in the "fast scan" of André et al.
 * (VLDB 2015).  Departs from the paper: rows that their bounds leave are scored by their 4-bit codes, as elsewhere in this
 * index, before any is scored exactly; and all lists share the tables of one query, since estimates are of the products of
 * the query with rows less centroids, not of the query less a centroid (docs/decisions/0051). */
#include "ivf.h"

void ivf_codes_free(ivf_codes *codes) {
    mem_free(codes->lists);
    region_free(&codes->groups);
    region_free(&codes->centroids);
    region_free(&codes->origin);
    *codes = (ivf_codes){0};
}

static uint32_t rows_before(const ivf_list *list, uint32_t end) {
    uint32_t n = 0;
    while (n < list->n && list->slots[n] < end) n++;
    return n;
}

static uint32_t groups_of(const coded_list *list) {
    return (list->firsts + list->seconds + EDGE_LANES - 1) / EDGE_LANES;
}

fvdb_status ivf_codes_reserve(ivf *v, const store *s, uint32_t end, fvdb_diag *diag) {
    const uint32_t nlist = v->centroids.nlist;
    ivf_codes codes = {.lists = NULL};
    uint32_t groups = 0;
    ivf_codes_free(&v->codes);
    if (nlist == 0 || !ivf_keeps_codes(s->memory, s->dim)) return FVDB_OK;
    codes.lists = mem_alloc_array(nlist, sizeof *codes.lists);
    for (uint32_t number = 0; codes.lists && number < nlist; number++) {
        coded_list *list = &codes.lists[number];
        *list = (coded_list){groups, rows_before(&v->lists[number], end), rows_before(&v->seconds[number], end)};
        groups += groups_of(list);
    }
    if (codes.lists && groups == 0) {
        ivf_codes_free(&codes);
        return FVDB_OK;
    }
    codes.groups.scattered = true;
    if (!codes.lists || !region_resize(&codes.origin, 2 * s->dim64 * sizeof(float)) ||
        !region_resize(&codes.groups, groups * edge_group_bytes(s->dim64)) ||
        !region_resize(&codes.centroids, round_up(nlist, EDGE_LANES) / EDGE_LANES * edge_group_bytes(s->dim64))) {
        ivf_codes_free(&codes);
        return FAIL_MEMORY(diag);
    }
    v->codes = codes;
    return FVDB_OK;
}

typedef struct coding {
    const ivf *v;
    const store *s;
} coding;

static void code_list(void *context, uint32_t worker, uint32_t number) {
    (void)worker;
    const coding *k = context;
    const store *s = k->s;
    const coded_list *list = &k->v->codes.lists[number];
    const uint32_t *firsts = k->v->lists[number].slots, *seconds = k->v->seconds[number].slots;
    const float *origin = (const float *)k->v->codes.origin.base;
    float centroid[FVDB_DIM_MAX], row[FVDB_DIM_MAX];
    ivf_centroid(&k->v->centroids, s, number, centroid);
    s->kernels->edge_rotate(centroid, s->dim64);
    edge_code_row(s, origin, centroid, origin + s->dim64, ivf_centroid_group(k->v, s, number), number % EDGE_LANES);
    for (uint32_t i = 0; i < groups_of(list) * EDGE_LANES; i++) {
        uint8_t *group = ivf_code_groups(k->v, s, number) + i / EDGE_LANES * edge_group_bytes(s->dim64);
        if (i >= list->firsts + list->seconds) {
            edge_code_nothing(group, i % EDGE_LANES);
            continue;
        }
        edge_rotated_row(s, i < list->firsts ? firsts[i] : seconds[i - list->firsts], row);
        edge_code_row(s, origin, row, centroid, group, i % EDGE_LANES);
    }
}

void ivf_codes_fill(ivf *v, const store *s, thread_pool *pool) {
    coding k = {v, s};
    if (!v->codes.lists) return;
    edge_set_origin(s, &v->centroids.book, (float *)v->codes.origin.base);
    for (uint32_t lane = v->centroids.nlist; lane % EDGE_LANES; lane++)
        edge_code_nothing(ivf_centroid_group(v, s, lane), lane % EDGE_LANES);
    thread_pool_run(pool, code_list, &k, v->centroids.nlist);
    region_trim(&v->codes.groups);
}
