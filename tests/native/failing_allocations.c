/* Every allocation in the life of an index fails once: each call then ends in a status, nothing has changed, the index still
 * writes parts that load, and in the end nothing is left.
 *
 * It is linked with --wrap for malloc and its kin and for the mappings of regions, so it counts what the core allocates by
 * any way, and needs no sanitiser to find a leak; it also runs under one.  It prints how many failures the core survived. */
#define _GNU_SOURCE
#include "check.h"
#include "data.h"
#include "saved.h"

#include <stdbool.h>
#include <sys/mman.h>

/* ---- The counting allocator ---- */

static int64_t countdown, live_blocks, mapped_bytes;

static bool fails(void) {
    if (__atomic_load_n(&countdown, __ATOMIC_RELAXED) <= 0) return false;
    return __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED) == 0;
}

static void *counted(void *p) {
    if (p) __atomic_add_fetch(&live_blocks, 1, __ATOMIC_RELAXED);
    return p;
}

static void map_more(int64_t bytes) { __atomic_add_fetch(&mapped_bytes, bytes, __ATOMIC_RELAXED); }

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void __real_free(void *p);
void *__real_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);
void *__real_mremap(void *p, size_t old_size, size_t size, int flags, ...);
int __real_munmap(void *p, size_t size);

void *__wrap_malloc(size_t size) { return fails() ? NULL : counted(__real_malloc(size)); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : counted(__real_calloc(n, size)); }
void *__wrap_realloc(void *p, size_t size) {
    if (fails()) return NULL;
    void *q = __real_realloc(p, size);
    return p ? q : counted(q);
}
void __wrap_free(void *p) {
    if (p) __atomic_sub_fetch(&live_blocks, 1, __ATOMIC_RELAXED);
    __real_free(p);
}
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    if (fails()) return MAP_FAILED;
    void *p = __real_mmap(at, size, protection, flags, file, offset);
    if (p != MAP_FAILED) map_more((int64_t)size);
    return p;
}
void *__wrap_mremap(void *p, size_t old_size, size_t size, int flags) {
    if (fails()) return MAP_FAILED;
    void *q = __real_mremap(p, old_size, size, flags);
    if (q != MAP_FAILED) map_more((int64_t)size - (int64_t)old_size);
    return q;
}
int __wrap_munmap(void *p, size_t size) {
    map_more(-(int64_t)size);
    return __real_munmap(p, size);
}

/* ---- The index, and what must not change ---- */

enum { ROWS = 1400, DIM = 6, K = 5, CHUNK = FVDB_TEXT_CHUNK_BYTES_MIN };

static fvdb_config config;
static fvdb_index *the_index;
static fvdb_text *the_text;
static test_rows some, more;
static saved stored;
static uint32_t survived, slots[2 * ROWS], others[2 * ROWS], count;
static double distances[ROWS], scores[ROWS];
static uint64_t offsets[ROWS + 1], words[64];
static uint8_t bytes[1 << 18];
static float query[DIM] = {1, -2, 3, -4, 5, -6};

static uint64_t hash_of(uint64_t hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) hash = mix64(hash ^ ((const uint8_t *)data)[i]);
    return hash;
}

/* All bytes that a save would write, and all counts. */
static uint64_t fingerprint(fvdb_index *index) {
    static fvdb_part parts[PARTS_MAX];
    fvdb_stats stats;
    uint32_t n = 0;
    if (!index) return 0;
    CHECK(fvdb_get_stats(index, &stats, NULL) == FVDB_OK);
    uint64_t hash = hash_of(0, &stats, offsetof(fvdb_stats, bytes_vectors)), size;
    CHECK(fvdb_parts(index, PER_PART, PER_GROUP, parts, PARTS_MAX, &n, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(fvdb_part_write(index, PER_PART, PER_GROUP, parts[i].kind, parts[i].number, bytes, sizeof bytes, &size,
                              NULL) == FVDB_OK);
        hash = hash_of(hash, bytes, size);
    }
    return hash;
}

static fvdb_index *loaded(fvdb_status *status, bool lazily) {
    const fvdb_load load = what_to_load(&stored);
    fvdb_index *index = NULL;
    *status = fvdb_load_begin(&stored.config, &load, &index, NULL);
    for (uint32_t i = 0; i < stored.n && *status == FVDB_OK; i++) {
        const bool later = stored.kinds[i] == FVDB_PART_VECTORS || stored.kinds[i] == FVDB_PART_GRAPH;
        if (lazily ? !later : stored.kinds[i] != FVDB_PART_BIT_CODES)
            *status = fvdb_load_part(index, stored.bytes[i], stored.size[i], NULL);
    }
    if (*status == FVDB_OK) *status = lazily ? fvdb_load_lazy(index, NULL) : fvdb_load_end(index, NULL, 0, NULL, NULL);
    if (*status == FVDB_OK) return index;
    fvdb_free(index);
    return NULL;
}

/* What the index writes loads, with every check of the reader, and is the same index. */
static void validate(void) {
    fvdb_status status;
    memset(&stored, 0, sizeof stored);
    save(the_index, &stored);
    stored.config = config;
    fvdb_index *again = loaded(&status, false);
    CHECK(status == FVDB_OK && fingerprint(again) == fingerprint(the_index));
    fvdb_free(again);
    free_saved(&stored);
}

/* Fails each allocation of a call in turn, until the call is made without a failure; or with one that it can do without, where
 * it changed the index, as it cannot be made again then. */
static void fail_each(const char *name, fvdb_status (*call)(void)) {
    const uint64_t before = fingerprint(the_index);
    uint32_t failures = 0;
    for (int64_t nth = 1;; nth++) {
        countdown = nth;
        const fvdb_status status = call();
        const bool has_failed = countdown <= 0;
        countdown = 0;
        const bool has_changed = fingerprint(the_index) != before;
        CHECK(status == FVDB_OK || (has_failed && (status == FVDB_ERR_MEMORY || status == FVDB_ERR_THREAD)));
        CHECK(status == FVDB_OK || !has_changed);
        failures += has_failed;
        if (!has_failed || has_changed) break;
        if (the_text) CHECK(fvdb_text_validate(the_text, NULL) == FVDB_OK);
    }
    printf("    %s: %u\n", name, failures);
    survived += failures;
}
#define FAIL_EACH(call) fail_each(#call, call)

/* ---- Calls on rows ---- */

static fvdb_status create(void) {
    fvdb_free(the_index);
    the_index = NULL;
    return fvdb_create(&config, &the_index, NULL);
}
static fvdb_status add_some(void) { return fvdb_add(the_index, &some.rows, 0, slots, others, NULL, NULL); }
static fvdb_status add_more(void) {
    return fvdb_add(the_index, &more.rows, FVDB_ON_CONFLICT_REPLACE, slots, others, NULL, NULL);
}
static fvdb_status delete_some(void) {
    return fvdb_delete(the_index, some.ids, some.offsets, some.rows.n / 4, 1, slots, NULL);
}
static fvdb_status search_with(fvdb_search_params params, const uint64_t *allow) {
    return fvdb_search(the_index, query, 1, &params, allow, allow ? 4 : 0, slots, distances, &count, others, bytes,
                       sizeof bytes, offsets, NULL, NULL);
}
static fvdb_status search(void) { return search_with((fvdb_search_params){.k = K}, NULL); }
static fvdb_status search_widely(void) {
    return search_with((fvdb_search_params){.k = 300, .ef_search = 900, .nprobe = 1}, NULL);
}
static fvdb_status search_exactly(void) { return search_with((fvdb_search_params){.k = K, .exact = 1}, NULL); }
static fvdb_status search_few(void) { return search_with((fvdb_search_params){.k = K}, words); }
static fvdb_status search_in_steps(void) {
    const fvdb_search_params params = {.k = K};
    fvdb_batch *batch = NULL;
    uint32_t n;
    fvdb_status status =
        fvdb_search_start(the_index, query, 1, &params, NULL, 0, slots, distances, &count, others, NULL, &batch, NULL);
    if (status != FVDB_OK) return status;
    status = fvdb_search_next(batch, bytes, sizeof bytes, offsets, &n, NULL);
    fvdb_search_end(batch);
    return status;
}
static fvdb_status search_one(void) {
    const fvdb_search_params params = {.k = K};
    fvdb_answer answer = {.slots = slots,
                          .distances = distances,
                          .scores = scores,
                          .id_ends = offsets,
                          .id_bytes = bytes,
                          .id_capacity = sizeof bytes};
    return fvdb_search_one(the_index, query, &params, &answer);
}
static fvdb_status find(void) { return fvdb_find(the_index, some.ids, some.offsets, some.rows.n, slots, NULL); }
static fvdb_status train(void) { return fvdb_train(the_index, INT64_MAX, NULL, NULL); }
static fvdb_status migrate(void) {
    uint32_t next = 0;
    return fvdb_migrate(the_index, INT64_MAX, 2 * ROWS, &next, &count, NULL);
}
static fvdb_status vacuum_order(void) { return fvdb_vacuum_order(the_index, slots, 2 * ROWS, NULL); }
static fvdb_status vacuum(void) { return fvdb_vacuum(the_index, slots, 2 * ROWS, NULL, NULL); }
static fvdb_status locality_order(void) { return fvdb_locality_order(the_index, others, 2 * ROWS, NULL, NULL); }
static fvdb_status renumber(void) {
    fvdb_stats stats;
    fvdb_get_stats(the_index, &stats, NULL);
    return fvdb_renumber(the_index, others, (uint32_t)stats.rows, NULL);
}
static fvdb_status load_whole(void) {
    fvdb_status status;
    fvdb_free(loaded(&status, false));
    return status;
}
static fvdb_status load_lazily(void) {
    fvdb_status status;
    fvdb_index *lazy = loaded(&status, true);
    if (lazy) status = fvdb_candidates(lazy, query, K, NULL, 0, slots, distances, &count, NULL);
    for (uint32_t i = 0; i < stored.n && status == FVDB_OK; i++)
        if (stored.kinds[i] == FVDB_PART_VECTORS) {
            status = fvdb_part_check(lazy, stored.bytes[i], stored.size[i], NULL);
            if (status == FVDB_OK)
                status = fvdb_part_search(lazy, stored.bytes[i], stored.size[i], query, K, NULL, 0, slots, distances,
                                          &count, NULL);
        }
    fvdb_free(lazy);
    return status;
}

static void searches(void) {
    FAIL_EACH(search);
    FAIL_EACH(search_widely);
    FAIL_EACH(search_exactly);
    FAIL_EACH(search_few);
    FAIL_EACH(search_in_steps);
    FAIL_EACH(search_one);
    FAIL_EACH(find);
}

static void loads(void) {
    memset(&stored, 0, sizeof stored);
    save(the_index, &stored);
    stored.config = config;
    FAIL_EACH(load_whole);
    FAIL_EACH(load_lazily);
    free_saved(&stored);
}

static void live(uint32_t metric, uint32_t memory, uint32_t threads) {
    printf("  metric %u, memory %u, %u threads\n", metric, memory, threads);
    config = (fvdb_config){DIM, metric, memory, 8, 40, threads, 7};
    some = make_rows(ROWS - 300, DIM, "row", 0, 1);
    more = make_rows(300, DIM, "row", ROWS - 350, 2);
    take_vectors(&some, DIM, 50);
    words[0] = 0xf0f0;
    FAIL_EACH(create);
    FAIL_EACH(add_some);
    FAIL_EACH(add_more);
    searches();
    FAIL_EACH(locality_order);
    FAIL_EACH(renumber);
    validate();
    loads();
    FAIL_EACH(delete_some);
    FAIL_EACH(vacuum_order);
    FAIL_EACH(vacuum);
    validate();
    FAIL_EACH(train);
    FAIL_EACH(migrate);
    searches();
    validate();
    FAIL_EACH(vacuum);
    validate();
    searches();
    loads();
    fvdb_free(the_index);
    the_index = NULL;
    free_rows(&some);
    free_rows(&more);
}

static void test_an_index_survives_each_failed_allocation(void) {
    const int64_t blocks = live_blocks, mapped = mapped_bytes;
    for (uint32_t metric = 0; metric <= FVDB_METRIC_DOT; metric++)
        for (uint32_t memory = 0; memory <= FVDB_MEMORY_COMPACT; memory++) live(metric, memory, 1 + metric % 2);
    CHECK(live_blocks == blocks && mapped_bytes == mapped);
}

/* ---- Calls on texts ---- */

enum { TEXTS = 400 };

static struct {
    uint32_t slots[TEXTS], n_parts;
    uint64_t offsets[TEXTS + 1], sizes[PARTS_MAX];
    uint8_t text[TEXTS * 80], *bytes[PARTS_MAX];
    fvdb_part parts[PARTS_MAX];
} t;
static fvdb_text_rows first, second;
static const fvdb_text_config of_text = {1.2, 0.75, FVDB_TEXT_WORDS, 0};

static fvdb_status commit(fvdb_text_change *change, fvdb_status status) {
    if (status == FVDB_OK) status = fvdb_text_commit(the_text, change, NULL);
    fvdb_text_change_free(change);
    return status;
}
static fvdb_status change_texts(const fvdb_text_rows *removed, const fvdb_text_rows *added) {
    fvdb_text_change *change = NULL;
    fvdb_status status = fvdb_text_stage(the_text, removed, added, NULL, &change, NULL);
    if (status == FVDB_OK) status = fvdb_text_prepare(the_text, change, NULL, NULL);
    return commit(change, status);
}
static fvdb_status create_text(void) { return fvdb_text_create(&of_text, &the_text, NULL); }
static fvdb_status add_texts(void) { return change_texts(NULL, &first); }
static fvdb_status exchange_texts(void) {
    fvdb_text_rows gone = first;
    gone.n = 30;
    return change_texts(&gone, &second);
}
static fvdb_status search_texts(void) {
    uint64_t matches;
    return fvdb_text_search_words(the_text, (const uint8_t *)"w1 w2 w7", 8, K, NULL, 0, slots, scores, &count, &matches,
                                  NULL);
}
static fvdb_status vacuum_texts(void) {
    fvdb_text_change *change = NULL;
    for (uint32_t i = 0; i < TEXTS; i++) slots[i] = i < 30 ? FVDB_NO_SLOT : i - 30;
    const fvdb_status status = fvdb_text_stage_map(the_text, slots, TEXTS, NULL, &change, NULL);
    return commit(change, status);
}
static fvdb_status load_texts(void) {
    fvdb_text *again = NULL;
    uint32_t heads = 0;
    uint64_t stream_bytes[4] = {0}; /* that of the heads is not asked for */
    for (uint32_t i = 0; i < t.n_parts; i++) {
        heads += t.parts[i].kind == FVDB_PART_TEXT_HEAD;
        stream_bytes[t.parts[i].kind - FVDB_PART_TEXT_HEAD] += t.sizes[i];
    }
    fvdb_status status = fvdb_text_load(&of_text, heads, CHUNK, stream_bytes + 1, &again, NULL);
    for (uint32_t i = 0; i < t.n_parts && status == FVDB_OK; i++)
        status = fvdb_text_load_part(again, t.parts[i].kind, t.parts[i].number, t.bytes[i], t.sizes[i], NULL);
    if (status == FVDB_OK) status = fvdb_text_load_end(again, NULL);
    if (status == FVDB_OK) CHECK(fvdb_text_validate(again, NULL) == FVDB_OK);
    fvdb_text_free(again);
    return status;
}

static void test_an_index_of_words_survives_each_failed_allocation(void) {
    const int64_t blocks = live_blocks, mapped = mapped_bytes;
    uint64_t at = 0, seed = 3;
    for (uint32_t i = 0; i < TEXTS; i++) {
        t.slots[i] = i;
        t.offsets[i] = at;
        for (uint32_t j = 0; j < 10; j++) {
            seed = mix64(seed);
            at += (uint64_t)sprintf((char *)t.text + at, "w%u ", (uint32_t)(seed % (3 + 40 * j)));
        }
    }
    t.offsets[TEXTS] = at;
    first = (fvdb_text_rows){TEXTS - 50, t.slots, t.text, t.offsets};
    second = (fvdb_text_rows){50, t.slots + TEXTS - 50, t.text, t.offsets + TEXTS - 50};
    FAIL_EACH(create_text);
    FAIL_EACH(add_texts);
    FAIL_EACH(search_texts);
    FAIL_EACH(exchange_texts);
    FAIL_EACH(search_texts);
    FAIL_EACH(vacuum_texts);
    CHECK(fvdb_text_parts(the_text, CHUNK, t.parts, PARTS_MAX, &t.n_parts, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < t.n_parts; i++) {
        t.bytes[i] = malloc(t.parts[i].size);
        CHECK(fvdb_text_part_write(the_text, CHUNK, t.parts[i].kind, t.parts[i].number, t.bytes[i], t.parts[i].size,
                                   &t.sizes[i], NULL) == FVDB_OK);
    }
    FAIL_EACH(load_texts);
    for (uint32_t i = 0; i < t.n_parts; i++) free(t.bytes[i]);
    fvdb_text_free(the_text);
    the_text = NULL;
    CHECK(live_blocks == blocks && mapped_bytes == mapped);
}

int main(void) {
    RUN(test_an_index_survives_each_failed_allocation);
    RUN(test_an_index_of_words_survives_each_failed_allocation);
    printf("%u failed allocations survived\n", survived);
    return check_done();
}
