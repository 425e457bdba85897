/* ABI entry points of the index of words: check the arguments and the state, take the lock, delegate. */
#include "text/text.h"

/* ---- the states of an index ---- */

#define WHOLE (1u << TEXT_WHOLE)
#define LOADING (1u << TEXT_LOADING)

/* Caller holds the lock. */
static fvdb_status check_state(const fvdb_text *text, uint32_t states, fvdb_diag *diag) {
    static const char *const refusals[] = {
        [TEXT_WHOLE] = "the index of words is not being loaded",
        [TEXT_LOADING] = "the index of words is still being loaded",
        [TEXT_BROKEN] = "the index of words was left unusable by a load that failed",
    };
    return states >> text->state & 1 ? FVDB_OK : FAIL(diag, FVDB_ERR_ARGUMENT, refusals[text->state]);
}

static fvdb_status enter_read(fvdb_text *text, uint32_t states, fvdb_diag *diag) {
    if (!text) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no index of words");
    rwlock_read(text->lock);
    fvdb_status status = check_state(text, states, diag);
    if (status != FVDB_OK) rwlock_read_done(text->lock);
    return status;
}

static fvdb_status enter_write(fvdb_text *text, uint32_t states, fvdb_diag *diag) {
    if (!text) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no index of words");
    rwlock_write(text->lock);
    fvdb_status status = check_state(text, states, diag);
    if (status != FVDB_OK) rwlock_write_done(text->lock);
    return status;
}

/* ---- create and free ---- */

#define K1_MAX 1000

static fvdb_status check_config(const fvdb_text_config *c, fvdb_diag *diag) {
    if (!(c->k1 >= 0 && c->k1 <= K1_MAX)) return FAIL(diag, FVDB_ERR_ARGUMENT, "k1 is out of range");
    if (!(c->b >= 0 && c->b <= 1)) return FAIL(diag, FVDB_ERR_ARGUMENT, "b is out of range");
    if (c->terms > FVDB_TEXT_BOTH || c->zero)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "unknown kind of terms", 0, FVDB_TEXT_BOTH, c->terms);
    return FVDB_OK;
}

fvdb_status fvdb_text_create(const fvdb_text_config *config, fvdb_text **out, fvdb_diag *diag) {
    TRY(check_config(config, diag));
    return text_create(config, out, diag);
}

void fvdb_text_free(fvdb_text *text) { text_free(text); }

uint64_t fvdb_text_estimate_bytes(uint64_t rows, uint64_t text_bytes) { return text_estimate(rows, text_bytes); }

uint64_t fvdb_text_estimate_change(uint32_t terms, uint64_t index_bytes, uint64_t rows, uint64_t words,
                                   uint64_t distinct) {
    return text_estimate_change(terms, index_bytes, rows, words, distinct);
}

fvdb_status fvdb_text_get_stats(fvdb_text *text, fvdb_text_stats *out, fvdb_diag *diag) {
    TRY(enter_read(text, WHOLE | LOADING, diag));
    text_stats(text, out);
    rwlock_read_done(text->lock);
    return FVDB_OK;
}

fvdb_status fvdb_text_validate(fvdb_text *text, fvdb_diag *diag) {
    TRY(enter_read(text, WHOLE, diag));
    fvdb_status status = text_validate(text, diag);
    rwlock_read_done(text->lock);
    return status;
}

/* ---- changes ---- */

static fvdb_status check_rows(const fvdb_text_rows *rows, fvdb_diag *diag) {
    if (rows && rows->n > FVDB_ROWS_MAX)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "too many rows", 0, FVDB_ROWS_MAX, rows->n);
    return FVDB_OK;
}

fvdb_status fvdb_text_stage(fvdb_text *text, const fvdb_text_rows *removed, const fvdb_text_rows *added,
                            fvdb_control *control, fvdb_text_change **out, fvdb_diag *diag) {
    TRY(check_rows(removed, diag));
    TRY(check_rows(added, diag));
    TRY(enter_read(text, WHOLE, diag));
    rwlock_read_done(text->lock); /* only what never changes is read from here on */
    return text_stage(text, removed, added, control, out, diag);
}

void fvdb_text_change_free(fvdb_text_change *change) { change_free(change); }

/* A change has words to give where they are not terms themselves. */
static uint32_t words_to_give(const fvdb_text_change *change) {
    return change->terms_kind == FVDB_TEXT_WORDS ? 0 : change->words.n;
}

fvdb_status fvdb_text_change_size(const fvdb_text_change *change, uint32_t *out_words, uint64_t *out_bytes,
                                  fvdb_diag *diag) {
    if (!change) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no change");
    *out_words = words_to_give(change);
    *out_bytes = *out_words ? change->words.bytes.used : 0;
    return FVDB_OK;
}

fvdb_status fvdb_text_change_counts(const fvdb_text_change *change, uint64_t *out_words, uint32_t *out_distinct,
                                    fvdb_diag *diag) {
    if (!change) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no change");
    *out_words = (change->removed.tokens.used + change->added.tokens.used) / sizeof(uint32_t);
    *out_distinct = change->words.n;
    return FVDB_OK;
}

fvdb_status fvdb_text_change_words(const fvdb_text_change *change, uint8_t *out_bytes, uint64_t capacity,
                                   uint64_t *out_offsets, uint32_t words, fvdb_diag *diag) {
    if (!change) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no change");
    const uint32_t n = words_to_give(change);
    const uint64_t bytes = n ? change->words.bytes.used : 0;
    if (words < n || capacity < bytes)
        return FAIL_AT(diag, FVDB_ERR_BUFFER, "the words do not fit", 0, bytes, capacity);
    if (bytes) memcpy(out_bytes, change->words.bytes.bytes, bytes);
    out_offsets[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t size;
        vocabulary_get(&change->words, i, &size);
        out_offsets[i + 1] = out_offsets[i] + size;
    }
    return FVDB_OK;
}

fvdb_status fvdb_text_set_terms(fvdb_text_change *change, const uint8_t *bytes, const uint64_t *offsets, uint32_t n,
                                fvdb_diag *diag) {
    if (!change) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no change");
    return change_set_terms(change, bytes, offsets, n, diag);
}

fvdb_status fvdb_text_prepare(fvdb_text *text, fvdb_text_change *change, fvdb_control *control, fvdb_diag *diag) {
    if (!change) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no change");
    TRY(enter_read(text, WHOLE, diag));
    fvdb_status status = text_prepare(text, change, control, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_commit(fvdb_text *text, fvdb_text_change *change, fvdb_diag *diag) {
    if (!change) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no change");
    TRY(enter_write(text, WHOLE, diag));
    fvdb_status status = text_commit(text, change, diag);
    rwlock_write_done(text->lock);
    return status;
}

fvdb_status fvdb_text_change_bytes(const fvdb_text_change *change, uint64_t *out_bytes, fvdb_diag *diag) {
    if (!change || !change->is_prepared) return FAIL(diag, FVDB_ERR_ARGUMENT, "the change is not prepared");
    fvdb_text_stats stats;
    state_stats(&change->next, 0, &stats);
    *out_bytes = stats.bytes_total;
    return FVDB_OK;
}

fvdb_status fvdb_text_stage_map(fvdb_text *text, const uint32_t *map, uint32_t n, fvdb_control *control,
                                fvdb_text_change **out, fvdb_diag *diag) {
    TRY(enter_read(text, WHOLE, diag));
    fvdb_status status = text_stage_map(text, map, n, control, out, diag);
    rwlock_read_done(text->lock);
    return status;
}

/* ---- search ---- */

static fvdb_status enter_search(fvdb_text *text, uint32_t k, fvdb_diag *diag) {
    if (k < 1 || k > FVDB_K_MAX) return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "k is out of range", 0, FVDB_K_MAX, k);
    return enter_read(text, WHOLE | LOADING, diag);
}

fvdb_status fvdb_text_search(fvdb_text *text, const fvdb_text_query *query, uint32_t k, const uint64_t *allow,
                             uint64_t allow_words, uint32_t *out_slots, double *out_scores, uint32_t *out_count,
                             uint64_t *out_matches, fvdb_diag *diag) {
    const text_wanted wanted = {k, allow, allow_words, out_slots, out_scores, out_count, out_matches};
    TRY(enter_search(text, k, diag));
    fvdb_status status = text_search(text, query, &wanted, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_search_terms(fvdb_text *text, const uint8_t *bytes, uint64_t n_bytes, float word_weight,
                                   uint32_t k, const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots,
                                   double *out_scores, uint32_t *out_count, uint64_t *out_matches, fvdb_diag *diag) {
    const text_wanted wanted = {k, allow, allow_words, out_slots, out_scores, out_count, out_matches};
    TRY(enter_search(text, k, diag));
    fvdb_status status = text_search_terms(text, bytes, (size_t)n_bytes, word_weight, &wanted, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_search_words(fvdb_text *text, const uint8_t *bytes, uint64_t n_bytes, uint32_t k,
                                   const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_scores,
                                   uint32_t *out_count, uint64_t *out_matches, fvdb_diag *diag) {
    const text_wanted wanted = {k, allow, allow_words, out_slots, out_scores, out_count, out_matches};
    TRY(enter_search(text, k, diag));
    fvdb_status status = text_search_words(text, bytes, (size_t)n_bytes, &wanted, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_score_slots(fvdb_text *text, const fvdb_text_query *query, const uint32_t *slots, uint32_t n,
                                  double *out_scores, fvdb_diag *diag) {
    TRY(enter_read(text, WHOLE | LOADING, diag));
    fvdb_status status = text_score_slots(text, query, slots, n, out_scores, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_mask(fvdb_text *text, const fvdb_text_query *query, uint32_t n_slots, uint64_t *out,
                           fvdb_diag *diag) {
    if (n_slots > FVDB_ROWS_MAX) return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "too many rows", 0, FVDB_ROWS_MAX, n_slots);
    TRY(enter_read(text, WHOLE | LOADING, diag));
    fvdb_status status = text_mask(text, query, n_slots, out, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_terms(fvdb_text *text, const fvdb_text_query *query, uint8_t *out_bytes, uint64_t byte_capacity,
                            uint64_t *out_offsets, uint64_t *out_counts, uint32_t capacity, uint32_t *out_n,
                            uint64_t *out_size, fvdb_diag *diag) {
    TRY(enter_read(text, WHOLE | LOADING, diag));
    term_counts counts = {0};
    fvdb_status status = text_terms(text, query, &counts, diag);
    rwlock_read_done(text->lock);
    if (status == FVDB_OK) {
        *out_n = counts.n;
        *out_size = counts.bytes.used;
        if (counts.n > capacity || counts.bytes.used > byte_capacity)
            status = FAIL_AT(diag, FVDB_ERR_BUFFER, "the terms do not fit", 0, counts.n, capacity);
    }
    if (status == FVDB_OK) {
        out_offsets[0] = 0;
        if (counts.bytes.used) memcpy(out_bytes, counts.bytes.bytes, counts.bytes.used);
        if (counts.n) memcpy(out_offsets + 1, counts.ends.bytes, counts.ends.used);
        if (counts.n) memcpy(out_counts, counts.rows.bytes, counts.rows.used);
    }
    mem_free(counts.bytes.bytes);
    mem_free(counts.ends.bytes);
    mem_free(counts.rows.bytes);
    return status;
}

/* ---- save and load ---- */

static fvdb_status check_chunk(uint32_t chunk_bytes, fvdb_diag *diag) {
    if (chunk_bytes >= FVDB_TEXT_CHUNK_BYTES_MIN && chunk_bytes <= FVDB_ROWS_MAX) return FVDB_OK;
    return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "chunk_bytes is out of range", 0, FVDB_TEXT_CHUNK_BYTES_MIN, chunk_bytes);
}

fvdb_status fvdb_text_parts(fvdb_text *text, uint32_t chunk_bytes, fvdb_part *out, uint32_t capacity,
                            uint32_t *out_count, fvdb_diag *diag) {
    TRY(check_chunk(chunk_bytes, diag));
    TRY(enter_read(text, WHOLE, diag));
    fvdb_status status = text_parts(text, chunk_bytes, out, capacity, out_count, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_part_write(fvdb_text *text, uint32_t chunk_bytes, uint32_t kind, uint32_t number, uint8_t *out,
                                 uint64_t capacity, uint64_t *out_size, fvdb_diag *diag) {
    TRY(check_chunk(chunk_bytes, diag));
    TRY(enter_read(text, WHOLE, diag));
    fvdb_status status = text_part_write(text, chunk_bytes, kind, number, out, capacity, out_size, diag);
    rwlock_read_done(text->lock);
    return status;
}

fvdb_status fvdb_text_load(const fvdb_text_config *config, uint32_t segments, uint32_t chunk_bytes,
                           const uint64_t *stream_bytes, fvdb_text **out, fvdb_diag *diag) {
    TRY(check_config(config, diag));
    TRY(check_chunk(chunk_bytes, diag));
    if (segments > FVDB_TEXT_SEGMENTS_MAX)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "too many segments", 0, FVDB_TEXT_SEGMENTS_MAX, segments);
    return text_load(config, segments, chunk_bytes, stream_bytes, out, diag);
}

fvdb_status fvdb_text_load_part(fvdb_text *text, uint32_t kind, uint32_t number, const uint8_t *bytes, uint64_t size,
                                fvdb_diag *diag) {
    TRY(enter_write(text, LOADING, diag));
    fvdb_status status = text_load_part(text, kind, number, bytes, size, diag);
    rwlock_write_done(text->lock);
    return status;
}

fvdb_status fvdb_text_load_end(fvdb_text *text, fvdb_diag *diag) {
    TRY(enter_write(text, LOADING, diag));
    fvdb_status status = text_load_end(text, diag);
    rwlock_write_done(text->lock);
    return status;
}

fvdb_status fvdb_text_missing(fvdb_text *text, const fvdb_text_query *query, fvdb_part *out, uint32_t capacity,
                              uint32_t *out_count, fvdb_diag *diag) {
    TRY(enter_read(text, LOADING, diag));
    fvdb_status status = text_missing(text, query, out, capacity, out_count, diag);
    rwlock_read_done(text->lock);
    return status;
}
