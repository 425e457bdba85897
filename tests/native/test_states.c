/* Each entry of the ABI on an index in each state: answered where the manual says so, refused and without effect elsewhere. */
#include "check.h"
#include "data.h"
#include "index/index.h"
#include "saved.h"

enum { ROWS = 1200, DIM = 5, K = 3 };
enum { EMPTY = 1, WHOLE = 2, LOADING = 4, LAZY = 8, BROKEN = 16, STATES = 5 };

static saved stored;
static test_rows extra; /* ten rows that the stored index does not have */
static float query[DIM] = {1, 2, 3, 4, 5};

/* Room for whatever an entry writes. */
static struct {
    uint32_t slots[ROWS + 16], more[ROWS + 16], n;
    double distances[ROWS], scores[ROWS];
    uint64_t words[64], offsets[ROWS + 1], size;
    float vectors[ROWS * DIM];
    int64_t times[ROWS];
    uint8_t bytes[1 << 17];
    fvdb_part parts[PARTS_MAX];
    fvdb_stats stats;
} room;

static const fvdb_search_params wanted = {.k = K}, at_once = {.k = K, .nowait = 1}, exactly = {.k = K, .exact = 1};

/* A part of the stored index. */
static uint32_t part_of(uint32_t kind) {
    for (uint32_t i = 0; i < stored.n; i++)
        if (stored.kinds[i] == kind) return i;
    return 0;
}

static fvdb_status search(fvdb_index *index, const fvdb_search_params *params, fvdb_diag *diag) {
    return fvdb_search(index, query, 1, params, NULL, 0, room.slots, room.distances, &room.n, room.more, NULL, 0, NULL,
                       NULL, diag);
}

#define ENTRY(name) static fvdb_status call_##name(fvdb_index *index, fvdb_diag *diag)
ENTRY(fvdb_add) { return fvdb_add(index, &extra.rows, 0, room.slots, room.more, NULL, diag); }
ENTRY(fvdb_search) { return search(index, &wanted, diag); }
ENTRY(fvdb_search_nowait) { return search(index, &at_once, diag); }
ENTRY(fvdb_search_exact) { return search(index, &exactly, diag); }
ENTRY(fvdb_search_start) {
    fvdb_batch *batch = NULL;
    fvdb_status status = fvdb_search_start(index, query, 1, &wanted, NULL, 0, room.slots, room.distances, &room.n,
                                           room.more, NULL, &batch, diag);
    fvdb_search_end(batch);
    return status;
}
ENTRY(fvdb_search_one) {
    fvdb_answer a = {.slots = room.slots,
                     .distances = room.distances,
                     .scores = room.scores,
                     .id_ends = room.offsets,
                     .id_bytes = room.bytes,
                     .id_capacity = sizeof room.bytes};
    fvdb_status status = fvdb_search_one(index, query, &wanted, &a);
    *diag = a.diag;
    return status;
}
ENTRY(fvdb_find) { return fvdb_find(index, extra.ids, extra.offsets, 1, room.slots, diag); }
ENTRY(fvdb_get_vectors) { return fvdb_get_vectors(index, room.slots, 0, room.vectors, diag); }
ENTRY(fvdb_get_vectors_of_a_row) {
    room.slots[0] = 7;
    return fvdb_get_vectors(index, room.slots, 1, room.vectors, diag);
}
ENTRY(fvdb_with_dim) {
    fvdb_index *copy = NULL;
    fvdb_status status = fvdb_with_dim(index, DIM + 1, &copy, diag);
    fvdb_free(copy);
    return status;
}
ENTRY(fvdb_are_vectorless) { return fvdb_are_vectorless(index, room.slots, 0, room.bytes, diag); }
ENTRY(fvdb_get_timestamps) { return fvdb_get_timestamps(index, room.slots, 0, room.times, diag); }
ENTRY(fvdb_get_ids) { return fvdb_get_ids(index, room.slots, 0, room.bytes, sizeof room.bytes, room.offsets, diag); }
ENTRY(fvdb_live_slots) { return fvdb_live_slots(index, 0, room.slots, ROWS, &room.n, diag); }
ENTRY(fvdb_live_bitmap) { return fvdb_live_bitmap(index, room.words, 64, diag); }
ENTRY(fvdb_set_memory) { return fvdb_set_memory(index, FVDB_MEMORY_DEFAULT, diag); }
ENTRY(fvdb_train) { return fvdb_train(index, INT64_MAX, NULL, diag); }
ENTRY(fvdb_migrate) {
    uint32_t next = 0;
    return fvdb_migrate(index, INT64_MAX, 100, &next, &room.n, diag);
}
ENTRY(fvdb_historical) { return fvdb_historical(index, room.words, 64, diag); }
ENTRY(fvdb_probes) { return fvdb_probes(index, 10, 0.9, &room.n, diag); }
ENTRY(fvdb_delete) { return fvdb_delete(index, extra.ids, extra.offsets, 1, 1, room.slots, diag); }
ENTRY(fvdb_vacuum_order) { return fvdb_vacuum_order(index, room.slots, ROWS, diag); }
ENTRY(fvdb_vacuum) { return fvdb_vacuum(index, room.slots, ROWS, NULL, diag); }
ENTRY(fvdb_locality_order) { return fvdb_locality_order(index, room.slots, ROWS, NULL, diag); }
ENTRY(fvdb_renumber) {
    for (uint32_t i = 0; i < ROWS; i++) room.slots[i] = i;
    return fvdb_renumber(index, room.slots, index && index->state == INDEX_WHOLE ? index->store.n : ROWS, diag);
}
ENTRY(fvdb_get_stats) { return fvdb_get_stats(index, &room.stats, diag); }
ENTRY(fvdb_parts) { return fvdb_parts(index, PER_PART, PER_GROUP, room.parts, PARTS_MAX, &room.n, diag); }
ENTRY(fvdb_part_write) {
    return fvdb_part_write(index, PER_PART, PER_GROUP, FVDB_PART_VECTORS, 0, room.bytes, sizeof room.bytes, &room.size,
                           diag);
}
ENTRY(fvdb_graph_stored) { return fvdb_graph_stored(index, diag); }
ENTRY(fvdb_graph_steps) { return fvdb_graph_steps(index, &room.n, room.slots, room.more, diag); }
ENTRY(fvdb_load_part) {
    const uint32_t last = part_of(FVDB_PART_TOMBSTONES); /* the one that a loading index still lacks */
    return fvdb_load_part(index, stored.bytes[last], stored.size[last], diag);
}
ENTRY(fvdb_load_end) { return fvdb_load_end(index, NULL, 0, NULL, diag); }
ENTRY(fvdb_load_lazy) { return fvdb_load_lazy(index, diag); }
ENTRY(fvdb_candidates) { return fvdb_candidates(index, query, K, NULL, 0, room.slots, room.distances, &room.n, diag); }
ENTRY(fvdb_part_check) { return fvdb_part_check(index, stored.bytes[0], stored.size[0], diag); }
ENTRY(fvdb_part_search) {
    return fvdb_part_search(index, stored.bytes[0], stored.size[0], query, K, NULL, 0, room.slots, room.distances,
                            &room.n, diag);
}
ENTRY(fvdb_part_vectors) {
    room.slots[0] = 7;
    return fvdb_part_vectors(index, stored.bytes[0], stored.size[0], room.slots, 1, room.vectors, diag);
}

static const struct {
    const char *name;
    fvdb_status (*call)(fvdb_index *index, fvdb_diag *diag);
    uint32_t answered; /* states */
} entries[] = {
#define ROW(name, states) {#name, call_##name, states}
    ROW(fvdb_add, EMPTY | WHOLE),
    ROW(fvdb_search, EMPTY | WHOLE),
    ROW(fvdb_search_nowait, EMPTY | WHOLE),
    ROW(fvdb_search_exact, EMPTY | WHOLE),
    ROW(fvdb_search_start, EMPTY | WHOLE),
    ROW(fvdb_search_one, EMPTY | WHOLE),
    ROW(fvdb_find, EMPTY | WHOLE | LAZY),
    ROW(fvdb_get_vectors, EMPTY | WHOLE),
    ROW(fvdb_get_vectors_of_a_row, EMPTY | WHOLE),
    ROW(fvdb_with_dim, EMPTY), /* rows with a vector fix the dimension */
    ROW(fvdb_are_vectorless, EMPTY | WHOLE | LAZY),
    ROW(fvdb_get_timestamps, EMPTY | WHOLE | LAZY),
    ROW(fvdb_get_ids, EMPTY | WHOLE | LAZY),
    ROW(fvdb_live_slots, EMPTY | WHOLE | LAZY),
    ROW(fvdb_live_bitmap, EMPTY | WHOLE | LAZY),
    ROW(fvdb_set_memory, EMPTY | WHOLE),
    ROW(fvdb_train, EMPTY | WHOLE),
    ROW(fvdb_migrate, EMPTY | WHOLE),
    ROW(fvdb_historical, EMPTY | WHOLE),
    ROW(fvdb_probes, EMPTY | WHOLE),
    ROW(fvdb_delete, EMPTY | WHOLE),
    ROW(fvdb_vacuum_order, EMPTY | WHOLE),
    ROW(fvdb_vacuum, EMPTY | WHOLE),
    ROW(fvdb_locality_order, EMPTY | WHOLE),
    ROW(fvdb_renumber, EMPTY | WHOLE),
    ROW(fvdb_get_stats, EMPTY | WHOLE | LAZY),
    ROW(fvdb_parts, EMPTY | WHOLE),
    ROW(fvdb_part_write, WHOLE), /* an empty index has no parts */
    ROW(fvdb_graph_stored, EMPTY | WHOLE),
    ROW(fvdb_graph_steps, EMPTY | WHOLE),
    ROW(fvdb_load_part, LOADING),
    ROW(fvdb_load_end, LOADING),
    ROW(fvdb_load_lazy, LOADING),
    ROW(fvdb_candidates, LAZY),
    ROW(fvdb_part_check, LAZY),
    ROW(fvdb_part_search, LAZY),
    ROW(fvdb_part_vectors, LAZY),
};
#define ENTRIES (sizeof entries / sizeof *entries)

static void give_parts(fvdb_index *index, bool all) {
    for (uint32_t i = 0; i < stored.n; i++)
        if (all || stored.kinds[i] != FVDB_PART_TOMBSTONES)
            CHECK(fvdb_load_part(index, stored.bytes[i], stored.size[i], NULL) == FVDB_OK);
}

static fvdb_index *make(uint32_t state) {
    fvdb_index *index = NULL;
    const fvdb_load load = what_to_load(&stored);
    if (state == EMPTY) {
        CHECK(fvdb_create(&stored.config, &index, NULL) == FVDB_OK);
        return index;
    }
    CHECK(fvdb_load_begin(&stored.config, &load, &index, NULL) == FVDB_OK);
    give_parts(index, state == WHOLE || state == LAZY);
    if (state == WHOLE) CHECK(fvdb_load_end(index, NULL, 0, NULL, NULL) == FVDB_OK);
    if (state == LAZY) CHECK(fvdb_load_lazy(index, NULL) == FVDB_OK);
    if (state == BROKEN) CHECK(fvdb_load_end(index, NULL, 0, NULL, NULL) == FVDB_ERR_FORMAT);
    return index;
}

static void test_each_entry_answers_in_its_states_only(void) {
    for (uint32_t e = 0; e < ENTRIES; e++) {
        for (uint32_t state = EMPTY; state < 1u << STATES; state *= 2) {
            fvdb_index *index = make(state);
            fvdb_diag diag = {0};
            const fvdb_status status = entries[e].call(index, &diag);
            const bool refused = status == FVDB_ERR_ARGUMENT;
            if (refused == ((entries[e].answered & state) != 0)) printf("    %s, %u\n", entries[e].name, state);
            CHECK(refused == !(entries[e].answered & state));
            CHECK(!refused || (diag.status == FVDB_ERR_ARGUMENT && diag.message));
            fvdb_free(index);
        }
    }
}

static void test_no_index_is_refused(void) {
    for (uint32_t e = 0; e < ENTRIES; e++) {
        fvdb_diag diag = {0};
        CHECK(entries[e].call(NULL, &diag) == FVDB_ERR_ARGUMENT);
    }
    fvdb_free(NULL);
}

static void test_a_load_goes_on_after_refused_calls(void) {
    fvdb_index *index = make(LOADING);
    saved again = {0};
    for (uint32_t e = 0; e < ENTRIES; e++) {
        fvdb_diag diag = {0};
        if (!(entries[e].answered & LOADING)) CHECK(entries[e].call(index, &diag) == FVDB_ERR_ARGUMENT);
    }
    CHECK(call_fvdb_load_part(index, NULL) == FVDB_OK);
    CHECK(fvdb_load_end(index, NULL, 0, NULL, NULL) == FVDB_OK);
    save(index, &again);
    CHECK(again.n == stored.n);
    for (uint32_t i = 0; i < stored.n && i < again.n; i++)
        CHECK(again.size[i] == stored.size[i] && memcmp(again.bytes[i], stored.bytes[i], stored.size[i]) == 0);
    free_saved(&again);
    fvdb_free(index);
}

static void test_a_lazy_index_stays_as_it_is(void) {
    fvdb_index *index = make(LAZY);
    uint32_t before[K], n;
    CHECK(fvdb_candidates(index, query, K, NULL, 0, before, room.distances, &n, NULL) == FVDB_OK && n == K);
    for (uint32_t e = 0; e < ENTRIES; e++) {
        fvdb_diag diag = {0};
        if (!(entries[e].answered & LAZY)) CHECK(entries[e].call(index, &diag) == FVDB_ERR_ARGUMENT);
    }
    CHECK(fvdb_get_stats(index, &room.stats, NULL) == FVDB_OK);
    CHECK(room.stats.rows == ROWS && room.stats.live == ROWS);
    CHECK(call_fvdb_candidates(index, NULL) == FVDB_OK && memcmp(before, room.slots, sizeof before) == 0);
    fvdb_free(index);
}

static void test_few_rows_cannot_be_loaded_lazily_but_whole(void) {
    fvdb_config config = {DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 4, 30, 1, 1};
    fvdb_index *index;
    saved few = {.config = config};
    CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
    CHECK(call_fvdb_add(index, NULL) == FVDB_OK);
    save(index, &few);
    fvdb_free(index);
    const fvdb_load load = what_to_load(&few);
    CHECK(fvdb_load_begin(&config, &load, &index, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < few.n; i++) CHECK(fvdb_load_part(index, few.bytes[i], few.size[i], NULL) == FVDB_OK);
    CHECK(fvdb_load_lazy(index, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_load_end(index, NULL, 0, NULL, NULL) == FVDB_OK);
    CHECK(search(index, &wanted, NULL) == FVDB_OK && room.n == K);
    free_saved(&few);
    fvdb_free(index);
}

static void test_falling_offsets_are_refused(void) {
    fvdb_index *index = make(WHOLE);
    const uint64_t falling[] = {0, 5, 3};
    CHECK(fvdb_find(index, extra.ids, falling, 2, room.slots, NULL) == FVDB_ERR_ID);
    CHECK(fvdb_delete(index, extra.ids, falling, 2, 1, room.slots, NULL) == FVDB_ERR_ID);
    fvdb_free(index);
}

static void test_live_rows_as_a_bitmap(void) {
    fvdb_index *index = make(WHOLE);
    uint32_t slot;
    CHECK(fvdb_add(index, &extra.rows, 0, room.slots, room.more, NULL, NULL) == FVDB_OK);
    CHECK(fvdb_delete(index, extra.ids, extra.offsets, 4, 0, room.slots, NULL) == FVDB_OK);
    CHECK(fvdb_live_bitmap(index, room.words, 2, NULL) == FVDB_ERR_BUFFER);
    CHECK(fvdb_live_bitmap(index, room.words, 64, NULL) == FVDB_OK);
    for (slot = 0; slot < ROWS + 10; slot++) CHECK(bit_get(room.words, slot) == (slot < ROWS || slot >= ROWS + 4));
    fvdb_free(index);
}

int main(void) {
    stored = (saved){.config = {DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 4, 30, 1, 1}};
    test_rows t = make_rows(ROWS, DIM, "row", 0, 3);
    fvdb_index *index;
    CHECK(fvdb_create(&stored.config, &index, NULL) == FVDB_OK);
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    save(index, &stored);
    fvdb_free(index);
    free_rows(&t);
    extra = make_rows(10, DIM, "extra", 0, 5);
    RUN(test_each_entry_answers_in_its_states_only);
    RUN(test_no_index_is_refused);
    RUN(test_a_load_goes_on_after_refused_calls);
    RUN(test_a_lazy_index_stays_as_it_is);
    RUN(test_few_rows_cannot_be_loaded_lazily_but_whole);
    RUN(test_falling_offsets_are_refused);
    RUN(test_live_rows_as_a_bitmap);
    free_saved(&stored);
    free_rows(&extra);
    return check_done();
}
