/* Parts: what was written comes back; whatever else comes is refused or gives an index that works. */
#include "check.h"
#include "data.h"
#include "index/index.h"
#include "saved.h"

enum { ROWS = 1500, DIM = 5 };

/* Loads with part `at` replaced; NULL when it was refused. */
static fvdb_index *load(const saved *s, uint32_t at, const uint8_t *bytes, uint64_t size, fvdb_status *status) {
    fvdb_index *index = NULL;
    const fvdb_load load = what_to_load(s);
    *status = fvdb_load_begin(&s->config, &load, &index, NULL);
    if (*status != FVDB_OK) return NULL;
    for (uint32_t i = 0; i < s->n && *status == FVDB_OK; i++)
        *status =
            i == at ? fvdb_load_part(index, bytes, size, NULL) : fvdb_load_part(index, s->bytes[i], s->size[i], NULL);
    if (*status == FVDB_OK) *status = fvdb_load_end(index, NULL, 0, NULL, NULL);
    if (*status == FVDB_OK) return index;
    fvdb_free(index);
    return NULL;
}

static saved make(uint32_t memory, uint32_t rows) {
    saved s = {.config = {DIM, FVDB_METRIC_COSINE, memory, 4, 30, 1, 1}};
    fvdb_index *index;
    test_rows t = make_rows(rows, DIM, "row", 0, 3);
    uint32_t slot;
    CHECK(fvdb_create(&s.config, &index, NULL) == FVDB_OK);
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < rows; i += 9)
        CHECK(fvdb_delete(index, t.ids, t.offsets + i, 1, 0, &slot, NULL) == FVDB_OK);
    save(index, &s);
    fvdb_free(index);
    free_rows(&t);
    return s;
}

static void exercise(fvdb_index *index) {
    float query[DIM] = {1, 2, 3, 4, 5};
    uint32_t slots[20], count, plan, *map;
    double distances[20];
    fvdb_search_params params = {.k = 20};
    fvdb_stats stats;
    CHECK(fvdb_search(index, query, 1, &params, NULL, 0, slots, distances, &count, &plan, NULL, 0, NULL, NULL, NULL) ==
          FVDB_OK);
    fvdb_get_stats(index, &stats, NULL);
    CHECK(count == (stats.live < 20 ? stats.live : 20));
    map = malloc((stats.rows + 1) * sizeof *map);
    CHECK(fvdb_vacuum(index, map, (uint32_t)stats.rows, NULL, NULL) == FVDB_OK);
    free(map);
}

static void test_a_loaded_index_writes_the_same_parts(void) {
    for (uint32_t from = 0; from < 2; from++) {
        for (uint32_t to = 0; to < 2; to++) {
            for (uint32_t rows = 300; rows <= ROWS; rows += 1200) {
                saved s = make(from, rows), again = {0};
                fvdb_status status;
                s.config.memory = to;
                fvdb_index *index = load(&s, UINT32_MAX, NULL, 0, &status);
                CHECK(index != NULL);
                save(index, &again);
                CHECK(again.n == s.n);
                for (uint32_t i = 0; i < s.n; i++)
                    CHECK(again.size[i] == s.size[i] && memcmp(again.bytes[i], s.bytes[i], s.size[i]) == 0);
                exercise(index);
                fvdb_free(index);
                free_saved(&s);
                free_saved(&again);
            }
        }
    }
}

/* Each third row has no vector. */
static saved make_vectorless(uint32_t memory, uint32_t rows) {
    saved s = {.config = {DIM, FVDB_METRIC_COSINE, memory, 4, 30, 1, 1}};
    fvdb_index *index;
    test_rows t = make_rows(rows, DIM, "row", 0, 3);
    take_vectors(&t, DIM, 3);
    CHECK(fvdb_create(&s.config, &index, NULL) == FVDB_OK);
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    save(index, &s);
    fvdb_free(index);
    free_rows(&t);
    return s;
}

static void test_rows_without_a_vector_are_never_found(void) {
    for (uint32_t memory = 0; memory < 2; memory++) {
        for (uint32_t rows = 60; rows <= 3000; rows += 2940) {
            saved s = make_vectorless(memory, rows), again = {0};
            fvdb_status status;
            fvdb_index *index = load(&s, UINT32_MAX, NULL, 0, &status);
            CHECK(index != NULL);
            save(index, &again);
            CHECK(again.n == s.n);
            for (uint32_t i = 0; i < s.n; i++)
                CHECK(again.size[i] == s.size[i] && memcmp(again.bytes[i], s.bytes[i], s.size[i]) == 0);
            float query[DIM] = {1, 2, 3, 4, 5};
            uint32_t slots[3000], count, plan, map[3000];
            double distances[3000];
            for (uint32_t exact = 0; exact < 2; exact++) {
                fvdb_search_params params = {.k = rows, .exact = exact};
                CHECK(fvdb_search(index, query, 1, &params, NULL, 0, slots, distances, &count, &plan, NULL, 0, NULL,
                                  NULL, NULL) == FVDB_OK);
                CHECK(count == rows - rows / 3);
                for (uint32_t i = 0; i < count; i++) CHECK(slots[i] % 3 != 0);
            }
            fvdb_stats stats;
            fvdb_get_stats(index, &stats, NULL);
            CHECK(stats.vectorless == rows / 3 && stats.live == rows);
            CHECK(fvdb_vacuum(index, map, rows, NULL, NULL) == FVDB_OK);
            fvdb_free(index);
            free_saved(&s);
            free_saved(&again);
        }
    }
}

static void test_missing_and_doubled_parts_are_refused(void) {
    saved s = make(FVDB_MEMORY_DEFAULT, ROWS);
    for (uint32_t skip = 0; skip < s.n; skip++) {
        fvdb_index *index;
        const fvdb_load load = what_to_load(&s);
        CHECK(fvdb_load_begin(&s.config, &load, &index, NULL) == FVDB_OK);
        for (uint32_t i = 0; i < s.n; i++)
            if (i != skip) CHECK(fvdb_load_part(index, s.bytes[i], s.size[i], NULL) == FVDB_OK);
        CHECK(fvdb_load_part(index, s.bytes[(skip + 1) % s.n], s.size[(skip + 1) % s.n], NULL) == FVDB_ERR_FORMAT);
        const bool needed = s.kinds[skip] != FVDB_PART_BIT_CODES;
        CHECK(fvdb_load_end(index, NULL, 0, NULL, NULL) == (needed ? FVDB_ERR_FORMAT : FVDB_OK));
        fvdb_free(index);
    }
    free_saved(&s);
}

static void test_every_truncation_is_refused(void) {
    saved s = make(FVDB_MEMORY_COMPACT, ROWS);
    for (uint32_t at = 0; at < s.n; at++) {
        for (uint64_t size = 0; size < s.size[at]; size += 1 + size / 16) {
            fvdb_status status;
            uint8_t *cut = malloc(size + 1); /* a heap copy, so that a read past the end is seen */
            memcpy(cut, s.bytes[at], size);
            CHECK(load(&s, at, cut, size, &status) == NULL && status == FVDB_ERR_FORMAT);
            free(cut);
        }
    }
    free_saved(&s);
}

/* Flipped bits: headers are all checked; payloads may hold other valid values (a vector, a tombstone), and then the index
 * must work. */
static void test_flipped_bits_never_break_anything(void) {
    saved s = make(FVDB_MEMORY_DEFAULT, ROWS);
    uint32_t refused = 0, taken = 0;
    for (uint32_t at = 0; at < s.n; at++) {
        for (uint32_t trial = 0; trial < 60; trial++) {
            uint64_t where = trial < 40 ? trial : mix64(at * 1000 + trial) % s.size[at];
            fvdb_status status;
            uint8_t *bytes = malloc(s.size[at]);
            memcpy(bytes, s.bytes[at], s.size[at]);
            bytes[where] ^= (uint8_t)(1u << (mix64(trial) % 8));
            fvdb_index *index = load(&s, at, bytes, s.size[at], &status);
            CHECK(where >= 40 || index == NULL);
            CHECK(index != NULL || status == FVDB_ERR_FORMAT);
            if (index) exercise(index);
            refused += index == NULL;
            taken += index != NULL;
            fvdb_free(index);
            free(bytes);
        }
    }
    CHECK(refused > taken);
    free_saved(&s);
}

static void test_failed_allocations_end_a_load_cleanly(void) {
    saved s = make(FVDB_MEMORY_COMPACT, ROWS);
    for (int64_t nth = 1;; nth++) {
        fvdb_status status;
        mem_fail_after(nth);
        fvdb_index *index = load(&s, UINT32_MAX, NULL, 0, &status);
        mem_fail_after(0);
        fvdb_free(index);
        if (status == FVDB_OK) break;
        CHECK(status == FVDB_ERR_MEMORY);
    }
    free_saved(&s);
}

int main(void) {
    RUN(test_a_loaded_index_writes_the_same_parts);
    RUN(test_rows_without_a_vector_are_never_found);
    RUN(test_missing_and_doubled_parts_are_refused);
    RUN(test_every_truncation_is_refused);
    RUN(test_flipped_bits_never_break_anything);
    RUN(test_failed_allocations_end_a_load_cleanly);
    return check_done();
}
