/* The index of words: numbers, memory that runs out, states, and changes beside searches.  What it finds is compared with a
 * plain scorer in tests/unit/test_text_index.py. */
#include "check.h"
#include "data.h"
#include "text/text.h"
#include <math.h>
#include <pthread.h>

enum { ROWS = 900, WORDS = 300, TEXT_BYTES = 200 };

/* Texts of words by rank, the first ones in most rows. */
typedef struct texts {
    uint32_t slots[ROWS];
    uint64_t offsets[ROWS + 1];
    uint8_t bytes[ROWS * TEXT_BYTES];
    fvdb_text_rows rows;
} texts;

static texts *make_texts(uint32_t first, uint32_t n, uint64_t seed) {
    texts *t = calloc(1, sizeof *t);
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        t->slots[i] = first + i;
        t->offsets[i] = at;
        for (uint32_t j = 0; j < 12; j++) {
            seed = mix64(seed);
            const uint32_t range = 1 + (uint32_t)(seed >> 32) % WORDS;
            at += (size_t)sprintf((char *)t->bytes + at, "w%ux ", (uint32_t)seed % range);
        }
    }
    t->offsets[n] = at;
    t->rows = (fvdb_text_rows){n, t->slots, t->bytes, t->offsets};
    return t;
}

static fvdb_text *make_index(uint32_t terms) {
    fvdb_text *text = NULL;
    const fvdb_text_config config = {1.2, 0.75, terms, 0};
    CHECK(fvdb_text_create(&config, &text, NULL) == FVDB_OK);
    return text;
}

static fvdb_status give_terms(fvdb_text_change *change) {
    uint32_t n;
    uint64_t bytes;
    fvdb_status status = fvdb_text_change_size(change, &n, &bytes, NULL);
    if (status != FVDB_OK || n == 0) return status;
    uint8_t *words = malloc(bytes + 1);
    uint64_t *offsets = malloc((n + 1) * sizeof *offsets);
    CHECK(fvdb_text_change_words(change, words, bytes - 1, offsets, n, NULL) == FVDB_ERR_BUFFER);
    CHECK(fvdb_text_change_words(change, words, bytes, offsets, n, NULL) == FVDB_OK);
    status = fvdb_text_set_terms(change, words, offsets, n, NULL);
    free(words);
    free(offsets);
    return status;
}

static fvdb_status change(fvdb_text *text, const fvdb_text_rows *removed, const fvdb_text_rows *added) {
    fvdb_text_change *c = NULL;
    fvdb_status status = fvdb_text_stage(text, removed, added, NULL, &c, NULL);
    if (status == FVDB_OK) status = give_terms(c);
    if (status == FVDB_OK) status = fvdb_text_prepare(text, c, NULL, NULL);
    if (status == FVDB_OK) status = fvdb_text_commit(text, c, NULL);
    fvdb_text_change_free(c);
    return status;
}

/* A query for some words, a phrase among them. */
static const fvdb_text_term terms[] = {{0, 3, 0, 1}, {3, 3, 0, 1}, {6, 4, 0, 2},
                                       {0, 3, 0, 1}, {3, 3, 1, 1}, {0, 2, 0, 1}};
static const fvdb_text_clause clauses[] = {{0, 3, 0, 0}, {3, 2, FVDB_TEXT_PHRASE, 0}, {5, 1, FVDB_TEXT_PREFIX, 0}};
static const fvdb_text_query some_query = {(const uint8_t *)"w1xw2xw17x", 10, terms, clauses, NULL, 6, 3};
static const fvdb_text_clause strict[] = {{0, 2, FVDB_TEXT_REQUIRED, 0}, {2, 1, FVDB_TEXT_EXCLUDED, 0}};
static const fvdb_text_query strict_query = {(const uint8_t *)"w1xw2xw17x", 10, terms, strict, NULL, 3, 2};

/* A digest of what an index answers. */
static uint64_t answers(fvdb_text *text) {
    uint64_t digest = 0, matches;
    uint32_t slots[50], found;
    double scores[50];
    for (uint32_t i = 0; i < 2; i++) {
        const fvdb_text_query *query = i ? &strict_query : &some_query;
        CHECK(fvdb_text_search(text, query, 50, NULL, 0, slots, scores, &found, &matches, NULL) == FVDB_OK);
        digest = mix64(digest ^ matches ^ (uint64_t)found << 32);
        for (uint32_t j = 0; j < found; j++) {
            uint64_t bits;
            memcpy(&bits, &scores[j], sizeof bits);
            digest = mix64(digest ^ bits ^ slots[j]);
        }
    }
    return digest;
}

static void test_log_is_within_its_bound(void) {
    for (uint32_t i = 0; i < 400000; i++) {
        const double x = i < 200000 ? 1 + i * 1e-5 : exp(i * 1e-4);
        const double want = log(x), got = text_log(x);
        CHECK(fabs(got - want) <= 1e-15 * fabs(want) + 2e-16);
    }
    CHECK(text_log(1) == 0);
}

static void test_keys_are_sorted(void) {
    enum { N = 3000 };
    static uint64_t keys[N], room[N];
    for (uint32_t shift = 0; shift < 64; shift += 9) {
        for (uint32_t i = 0; i < N; i++) keys[i] = mix64(i) >> shift;
        sort_u64(keys, room, N);
        for (uint32_t i = 1; i < N; i++) CHECK(keys[i - 1] <= keys[i]);
    }
    sort_u64(keys, room, 0);
}

/* Every width of the numbers of a block, full or not. */
static void test_blocks_of_every_width(void) {
    for (uint32_t width = 1; width < 31; width++)
        for (uint32_t n = 1; n <= 300; n += 37) {
            const uint32_t step = width < 12 ? (1u << width) - 1 : 40, docs = 300 * step + 2;
            uint32_t *lengths = calloc(docs, sizeof *lengths);
            segment_builder b = {.is_dense = true, .n_docs = docs, .lengths = lengths};
            uint8_t varint = 0;
            lengths[0] = lengths[docs - 1] = UINT32_MAX / 2;
            b.n_rows = 2;
            for (uint32_t i = 0; i < n; i++)
                builder_posting(&b, i * step, 1 + (i % 7 == 3 ? (1u << width) - 1 : i % 3), &varint, 0);
            builder_term(&b, (const uint8_t *)"t", 1, -5);
            text_segment *s = NULL;
            CHECK(builder_finish(&b, &s, NULL) == FVDB_OK);
            term_cursor t;
            static posting_cursor c;
            terms_begin(&t, s);
            CHECK(terms_next(&t) && t.info.n == n && t.info.left == -5 && t.size == 1);
            CHECK(postings_open(&c, s, &t.info));
            for (uint32_t i = 0; i < n; i++) {
                if (i % TEXT_BLOCK_POSTINGS == 0) CHECK(postings_load(&c, i / TEXT_BLOCK_POSTINGS));
                const uint32_t at = i % TEXT_BLOCK_POSTINGS, freq = 1 + (i % 7 == 3 ? (1u << width) - 1 : i % 3);
                CHECK(postings_freq(&c, at) == freq);
                if (at % 50 == 49) postings_freqs(&c);
                CHECK(!c.has_freqs || c.freqs[at] == freq);
                CHECK(c.docs[at] == i * step);
            }
            CHECK(!terms_next(&t));
            segment_drop(s);
            free(lengths);
        }
}

/* Whatever allocation fails, the call fails and nothing has changed. */
static void test_failed_allocations_leave_no_trace(void) {
    for (uint32_t kind = FVDB_TEXT_WORDS; kind <= FVDB_TEXT_BOTH; kind++) {
        fvdb_text *text = make_index(kind);
        texts *first = make_texts(0, 300, 1), *second = make_texts(300, 60, 2);
        fvdb_text_rows gone = first->rows;
        gone.n = 20;
        CHECK(change(text, NULL, &first->rows) == FVDB_OK);
        const uint64_t before = answers(text);
        fvdb_text_stats stats, after;
        fvdb_text_get_stats(text, &stats, NULL);
        fvdb_status status = FVDB_ERR_MEMORY;
        for (int64_t nth = 1; status == FVDB_ERR_MEMORY; nth++) {
            CHECK(answers(text) == before);
            mem_fail_after(nth);
            status = change(text, &gone, &second->rows);
            mem_fail_after(0);
            CHECK(status == FVDB_OK || status == FVDB_ERR_MEMORY);
            fvdb_text_get_stats(text, &after, NULL);
            if (status != FVDB_OK) CHECK(memcmp(&stats, &after, sizeof stats) == 0);
        }
        CHECK(after.rows == 340 && answers(text) != before);
        CHECK(fvdb_text_validate(text, NULL) == FVDB_OK);
        fvdb_text_free(text);
        free(first);
        free(second);
    }
}

static void test_failed_allocations_of_searches_and_maps(void) {
    fvdb_text *text = make_index(FVDB_TEXT_WORDS);
    texts *rows = make_texts(0, ROWS, 3);
    uint32_t slots[10], found, map[ROWS];
    double scores[10];
    uint64_t matches;
    CHECK(change(text, NULL, &rows->rows) == FVDB_OK);
    const uint64_t before = answers(text);
    for (uint32_t i = 0; i < ROWS; i++) map[i] = ROWS - 1 - i;
    for (uint32_t kind = 0; kind < 4; kind++) {
        fvdb_status status = FVDB_ERR_MEMORY;
        const fvdb_text_query *query = kind % 2 ? &strict_query : &some_query;
        for (int64_t nth = 1; status == FVDB_ERR_MEMORY; nth++) {
            fvdb_text_change *c = NULL;
            mem_fail_after(nth);
            if (kind < 2) status = fvdb_text_search(text, query, 10, NULL, 0, slots, scores, &found, &matches, NULL);
            else if (kind == 2) status = fvdb_text_score_slots(text, query, rows->slots, 10, scores, NULL);
            else status = fvdb_text_stage_map(text, map, ROWS, NULL, &c, NULL);
            mem_fail_after(0);
            CHECK(status == FVDB_OK || status == FVDB_ERR_MEMORY);
            CHECK(answers(text) == before);
            fvdb_text_change_free(c);
        }
    }
    fvdb_text_free(text);
    free(rows);
}

/* The parts of an index, loaded again. */
static fvdb_text *reload(fvdb_text *text, int64_t fail_after, fvdb_status *status) {
    enum { PARTS = 200 };
    static fvdb_part parts[PARTS];
    uint32_t n, heads = 0;
    fvdb_text *loaded = NULL;
    const fvdb_text_config config = {1.2, 0.75, FVDB_TEXT_WORDS, 0};
    CHECK(fvdb_text_parts(text, FVDB_TEXT_CHUNK_BYTES_MIN, parts, PARTS, &n, NULL) == FVDB_OK);
    uint64_t sizes[4] = {0};
    for (uint32_t i = 0; i < n; i++) sizes[parts[i].kind - FVDB_PART_TEXT_HEAD] += parts[i].size;
    for (uint32_t i = 0; i < n; i++) heads += parts[i].kind == FVDB_PART_TEXT_HEAD;
    mem_fail_after(fail_after);
    *status = fvdb_text_load(&config, heads, FVDB_TEXT_CHUNK_BYTES_MIN, sizes + 1, &loaded, NULL);
    for (uint32_t i = 0; i < n && *status == FVDB_OK; i++) {
        uint64_t size;
        uint8_t *bytes = malloc(parts[i].size);
        CHECK(fvdb_text_part_write(text, FVDB_TEXT_CHUNK_BYTES_MIN, parts[i].kind, parts[i].number, bytes,
                                   parts[i].size, &size, NULL) == FVDB_OK);
        *status = fvdb_text_load_part(loaded, parts[i].kind, parts[i].number, bytes, size, NULL);
        free(bytes);
    }
    if (*status == FVDB_OK) *status = fvdb_text_load_end(loaded, NULL);
    mem_fail_after(0);
    if (*status == FVDB_OK) return loaded;
    fvdb_text_free(loaded);
    return NULL;
}

static void test_loads_give_the_index_or_fail(void) {
    fvdb_text *text = make_index(FVDB_TEXT_WORDS);
    texts *rows = make_texts(0, ROWS, 4), *more = make_texts(ROWS, 50, 5);
    CHECK(change(text, NULL, &rows->rows) == FVDB_OK && change(text, NULL, &more->rows) == FVDB_OK);
    fvdb_status status = FVDB_ERR_MEMORY;
    for (int64_t nth = 1; status != FVDB_OK && nth < 1000; nth++) {
        fvdb_text *loaded = reload(text, nth, &status);
        CHECK(status == FVDB_OK || status == FVDB_ERR_MEMORY || status == FVDB_ERR_THREAD);
        if (!loaded) continue;
        CHECK(answers(loaded) == answers(text));
        fvdb_text_free(loaded);
    }
    CHECK(status == FVDB_OK);
    fvdb_text_free(text);
    free(rows);
    free(more);
}

static void test_states(void) {
    fvdb_text *loading = NULL, *whole = make_index(FVDB_TEXT_WORDS);
    const fvdb_text_config config = {1.2, 0.75, FVDB_TEXT_WORDS, 0};
    const uint64_t sizes[3] = {0};
    CHECK(fvdb_text_load(&config, 1, FVDB_TEXT_CHUNK_BYTES_MIN, sizes, &loading, NULL) == FVDB_OK);
    fvdb_text_change *c = NULL;
    fvdb_text_stats stats;
    fvdb_part part;
    uint32_t n, slots[1];
    uint64_t size;
    uint8_t byte = 0;
    double scores[1];
    fvdb_text *const refused[] = {NULL, loading};
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(fvdb_text_stage(refused[i], NULL, NULL, NULL, &c, NULL) == FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_stage_map(refused[i], NULL, 0, NULL, &c, NULL) == FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_validate(refused[i], NULL) == FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_parts(refused[i], FVDB_TEXT_CHUNK_BYTES_MIN, &part, 1, &n, NULL) == FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_part_write(refused[i], FVDB_TEXT_CHUNK_BYTES_MIN, 21, 0, &byte, 1, &size, NULL) ==
              FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_search(refused[i], &some_query, 1, NULL, 0, slots, scores, &n, NULL, NULL) ==
              FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_score_slots(refused[i], &some_query, slots, 0, scores, NULL) == FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_missing(refused[i], &some_query, &part, 1, &n, NULL) == FVDB_ERR_ARGUMENT);
        CHECK(fvdb_text_load_end(refused[i], NULL) == FVDB_ERR_ARGUMENT);
    }
    CHECK(fvdb_text_get_stats(NULL, &stats, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_get_stats(loading, &stats, NULL) == FVDB_OK);
    CHECK(fvdb_text_load_part(NULL, 21, 0, &byte, 1, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_load_part(whole, 21, 0, &byte, 1, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_missing(whole, &some_query, &part, 1, &n, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_load_end(whole, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_prepare(whole, NULL, NULL, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_commit(whole, NULL, NULL) == FVDB_ERR_ARGUMENT);
    fvdb_text_change_free(NULL);
    fvdb_text_free(NULL);
    fvdb_text_free(loading);
    fvdb_text_free(whole);
}

static void test_estimates_are_not_passed(void) {
    texts *rows = make_texts(0, ROWS, 6);
    const uint64_t bytes = rows->offsets[ROWS];
    fvdb_text *text = make_index(FVDB_TEXT_WORDS);
    fvdb_text_stats stats;
    CHECK(change(text, NULL, &rows->rows) == FVDB_OK);
    fvdb_text_get_stats(text, &stats, NULL);
    CHECK(stats.bytes_total < fvdb_text_estimate_bytes(ROWS, bytes));
    CHECK(fvdb_text_estimate_change(FVDB_TEXT_WORDS, stats.bytes_total, ROWS, bytes / 2, bytes / 5) >
          stats.bytes_total);
    fvdb_text_free(text);
    free(rows);
}

/* Searches see the index before a change or after it. */
static fvdb_text *shared;
static uint64_t seen[2];
static int stop;

static void *search_on(void *other) {
    uint64_t *strange = other;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        uint32_t slots[50], found;
        double scores[50];
        uint64_t matches;
        if (fvdb_text_search(shared, &some_query, 50, NULL, 0, slots, scores, &found, &matches, NULL)) (*strange)++;
        *strange += matches != seen[0] && matches != seen[1];
    }
    return NULL;
}

static void test_searches_beside_changes(void) {
    texts *first = make_texts(0, 400, 7), *second = make_texts(400, 400, 8);
    uint32_t slots[50], found;
    double scores[50];
    uint64_t strange = 0;
    pthread_t thread;
    shared = make_index(FVDB_TEXT_WORDS);
    stop = 0;
    CHECK(change(shared, NULL, &first->rows) == FVDB_OK);
    for (uint32_t i = 0; i < 2; i++) {
        fvdb_text_search(shared, &some_query, 50, NULL, 0, slots, scores, &found, &seen[i], NULL);
        if (i == 0) CHECK(change(shared, NULL, &second->rows) == FVDB_OK);
    }
    CHECK(seen[0] != seen[1]);
    CHECK(pthread_create(&thread, NULL, search_on, &strange) == 0);
    for (uint32_t i = 0; i < 6; i++)
        CHECK(change(shared, i % 2 ? NULL : &second->rows, i % 2 ? &second->rows : NULL) == FVDB_OK);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    CHECK(strange == 0);
    fvdb_text_free(shared);
    free(first);
    free(second);
}

/* The numbers of rows that have the terms of a query, added to some. */
static uint32_t add_terms(fvdb_text *text, const fvdb_text_query *query, uint64_t *sums, uint32_t capacity) {
    static uint8_t bytes[1 << 16];
    static uint64_t offsets[ROWS + 1], counts[ROWS];
    uint64_t size;
    uint32_t n;
    CHECK(fvdb_text_terms(text, query, bytes, 0, offsets, counts, 0, &n, &size, NULL) == FVDB_ERR_BUFFER);
    CHECK(n <= capacity && offsets[0] == 0);
    CHECK(fvdb_text_terms(text, query, bytes, size, offsets, counts, n, &n, &size, NULL) == FVDB_OK);
    CHECK(offsets[0] == 0 && offsets[n] == size);
    for (uint32_t i = 0; i < n; i++) sums[i] += counts[i];
    return n;
}

/* Of rows in two indexes: scores by the totals of both are those of one index with all rows, to the bit. */
static void test_totals_score_as_one_index(void) {
    texts *halves[] = {make_texts(0, ROWS / 2, 3), make_texts(ROWS / 2, ROWS / 2, 4)};
    fvdb_text *whole = make_index(FVDB_TEXT_WORDS),
              *parts[] = {make_index(FVDB_TEXT_WORDS), make_index(FVDB_TEXT_WORDS)};
    fvdb_text_query query = some_query;
    uint64_t counts[ROWS] = {0};
    fvdb_text_totals totals = {0, 0, counts};
    fvdb_text_stats stats;
    query.n_terms = 5, query.n_clauses = 2; /* without the prefix */
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(change(whole, NULL, &halves[i]->rows) == FVDB_OK);
        CHECK(change(parts[i], NULL, &halves[i]->rows) == FVDB_OK);
        CHECK(add_terms(parts[i], &query, counts, 5) == 5);
        CHECK(fvdb_text_get_stats(parts[i], &stats, NULL) == FVDB_OK);
        totals.rows += stats.rows;
        totals.words += stats.words;
    }
    for (uint32_t i = 0; i < 2; i++) {
        double want[ROWS / 2], alone[ROWS / 2], found[ROWS / 2];
        query.totals = NULL;
        CHECK(fvdb_text_score_slots(whole, &query, halves[i]->slots, ROWS / 2, want, NULL) == FVDB_OK);
        CHECK(fvdb_text_score_slots(parts[i], &query, halves[i]->slots, ROWS / 2, alone, NULL) == FVDB_OK);
        query.totals = &totals;
        CHECK(fvdb_text_score_slots(parts[i], &query, halves[i]->slots, ROWS / 2, found, NULL) == FVDB_OK);
        CHECK(memcmp(want, found, sizeof want) == 0 && memcmp(want, alone, sizeof want) != 0);
    }
    uint64_t all[ROWS] = {0};
    CHECK(add_terms(whole, &some_query, all, ROWS) > 6); /* the prefix stands for many */
    CHECK(memcmp(all, counts, 5 * sizeof *all) == 0);
    double score;
    for (uint32_t i = 0; i < 3; i++) {
        fvdb_text_query wrong = i ? query : some_query;
        fvdb_text_totals other = totals;
        wrong.totals = &other;
        if (i) *(i == 1 ? &other.rows : &other.words) = i == 1 ? counts[0] - 1 : UINT64_MAX;
        CHECK(fvdb_text_score_slots(whole, &wrong, halves[0]->slots, 1, &score, NULL) == FVDB_ERR_ARGUMENT);
    }
    for (int64_t nth = 1, failed = 1; failed; nth++) {
        static uint8_t bytes[1 << 16];
        static uint64_t offsets[ROWS + 1];
        uint64_t size;
        uint32_t n;
        mem_fail_after(nth);
        const fvdb_status status =
            fvdb_text_terms(whole, &some_query, bytes, sizeof bytes, offsets, all, ROWS, &n, &size, NULL);
        mem_fail_after(0);
        failed = status == FVDB_ERR_MEMORY;
        CHECK(failed || status == FVDB_OK);
    }
    fvdb_text_free(whole);
    for (uint32_t i = 0; i < 2; i++) {
        fvdb_text_free(parts[i]);
        free(halves[i]);
    }
}

int main(void) {
    RUN(test_log_is_within_its_bound);
    RUN(test_keys_are_sorted);
    RUN(test_blocks_of_every_width);
    RUN(test_failed_allocations_leave_no_trace);
    RUN(test_failed_allocations_of_searches_and_maps);
    RUN(test_loads_give_the_index_or_fail);
    RUN(test_states);
    RUN(test_estimates_are_not_passed);
    RUN(test_searches_beside_changes);
    RUN(test_totals_score_as_one_index);
    return check_done();
}
