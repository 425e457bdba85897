/* The index: its segments, what is known of them together, and numbers about it. */
#include "text.h"

fvdb_status text_create(const fvdb_text_config *config, fvdb_text **out, fvdb_diag *diag) {
    fvdb_text *t = mem_alloc_array(1, sizeof *t);
    if (!t) return FAIL_MEMORY(diag);
    t->config = *config;
    t->lock = rwlock_new();
    if (!t->lock) {
        mem_free(t);
        return FAIL(diag, FVDB_ERR_THREAD, "a lock could not be created");
    }
    state_sum(&t->now, config);
    *out = t;
    return FVDB_OK;
}

void text_free(fvdb_text *t) {
    if (!t) return;
    state_drop(&t->now);
    rwlock_free(t->lock);
    mem_free(t);
}

void state_drop(text_state *state) {
    for (uint32_t i = 0; i < state->n; i++) segment_drop(state->segments[i]);
    mem_free(state->segments);
    *state = (text_state){0};
}

/* ---- sums ---- */

double text_norm(const fvdb_text_config *config, const text_state *state, uint32_t length) {
    const double average = state->rows > 0 && state->words > 0 ? (double)state->words / (double)state->rows : 1;
    return config->k1 * (1 - config->b + config->b * ((double)length / average));
}

void state_sum(text_state *state, const fvdb_text_config *config) {
    state->rows = state->words = 0;
    state->longest = 0;
    for (uint32_t i = 0; i < state->n; i++) {
        state->rows += state->segments[i]->rows;
        state->words += state->segments[i]->words;
        state->longest = max_u32(state->longest, state->segments[i]->longest);
    }
    state_norms(state, config);
}

void state_norms(text_state *state, const fvdb_text_config *config) {
    for (uint32_t i = 0; i < TEXT_LENGTHS; i++) state->norms[i] = (float)text_norm(config, state, i ? i - 1 : 0);
}

const text_segment *state_find(const text_state *state, uint32_t slot, uint32_t *doc) {
    for (uint32_t i = state->n; i-- > 0;)
        if ((*doc = segment_find(state->segments[i], slot)) != TEXT_NONE) return state->segments[i];
    return NULL;
}

/* By series: with m in [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m + 1), log m = 2 (s + s^3 / 3 + s^5 / 5 + ...), of which
 * the term with s^23 is below 2^-60. */
double text_log(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1023) << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m /= 2;
        exponent++;
    }
    const double s = (m - 1) / (m + 1), s2 = s * s;
    double sum = 0;
    for (int i = 21; i >= 3; i -= 2) sum = (sum + 1.0 / i) * s2;
    /* log 2 in two pieces, the first of few bits, so that its product with the exponent is exact. */
    return exponent * 0.693147180369123816490 + (2 * s + (2 * s * sum + exponent * 1.90821492927058770002e-10));
}

/* ---- numbers ---- */

void state_stats(const text_state *state, uint32_t chunk_bytes, fvdb_text_stats *out) {
    *out = (fvdb_text_stats){.rows = (uint64_t)state->rows, .words = (uint64_t)state->words, .segments = state->n};
    uint64_t *const bytes[] = {&out->bytes_dictionary, &out->bytes_postings, &out->bytes_positions};
    out->bytes_heads = sizeof(fvdb_text) + state->n * sizeof *state->segments;
    for (uint32_t i = 0; i < state->n; i++) {
        const text_segment *s = state->segments[i];
        if (!s) continue; /* its head did not come yet */
        out->terms += s->n_terms;
        out->postings += s->n_postings;
        out->left_rows += s->n_rows - s->alive_rows;
        out->bytes_heads += segment_resident(s);
        for (uint32_t j = 0; j < TEXT_STREAMS; j++) {
            const text_stream *stream = &s->streams[j];
            *bytes[j] += stream->came ? (uint64_t)stream->chunks_came * chunk_bytes : stream->size;
        }
    }
    out->bytes_total = out->bytes_heads + out->bytes_dictionary + out->bytes_postings + out->bytes_positions;
}

void text_stats(const fvdb_text *t, fvdb_text_stats *out) { state_stats(&t->now, t->chunk_bytes, out); }

/* A posting takes two to three bytes, a position one, a new word about 20; English has a word in six bytes, and a new one
 * in two hundred.  Short texts have the largest share of new words. */
#define BYTES_PER_ROW 8u
#define BYTES_PER_INDEX 8192u
uint64_t text_estimate(uint64_t rows, uint64_t text_bytes) {
    return BYTES_PER_INDEX + rows * BYTES_PER_ROW + text_bytes;
}

/* A word: up to 6 bytes staged, 8 sorted by each of its terms, and up to 8 in the new segment for each.
 * A distinct word: 100; where terms are not the words, theirs is a second table, and both are strings of the caller.
 * With a merge the whole index is there again, with 28 bytes for each posting of one term. */
uint64_t text_estimate_change(uint32_t terms, uint64_t index_bytes, uint64_t rows, uint64_t words, uint64_t distinct) {
    const uint64_t per_word = terms == FVDB_TEXT_BOTH ? 38 : 22, per_distinct = terms == FVDB_TEXT_WORDS ? 100 : 400;
    return BYTES_PER_INDEX + 2 * index_bytes + rows * 64 + words * per_word + distinct * per_distinct;
}

/* ---- the segments together ---- */

fvdb_status text_derive(fvdb_text *t, fvdb_diag *diag) {
    text_state *state = &t->now;
    for (uint32_t i = 1; i < state->n; i++) {
        const text_segment *s = state->segments[i];
        for (uint32_t j = 0; j < s->n_left; j++) {
            uint32_t doc = TEXT_NONE;
            for (uint32_t older = i; older-- > 0 && doc == TEXT_NONE;) {
                text_segment *o = state->segments[older];
                doc = segment_find(o, segment_left(s, j));
                if (doc == TEXT_NONE) continue;
                bit_clear(o->alive, doc);
                o->alive_rows--;
            }
        }
    }
    state_sum(state, &t->config);
    int64_t rows = 0, words = 0;
    for (uint32_t i = 0; i < state->n; i++) {
        const text_segment *s = state->segments[i];
        rows += s->alive_rows;
        for (uint32_t doc = 0; doc < s->n_docs; doc++)
            if (bit_get(s->alive, doc)) words += segment_length(s, doc) - 1;
        for (uint32_t j = 0; j < i; j++) {
            const text_segment *o = state->segments[j];
            for (uint32_t doc = 0; doc < s->n_docs; doc++)
                if (bit_get(s->alive, doc) && segment_find(o, segment_slot(s, doc)) != TEXT_NONE)
                    return FAIL_AT(diag, FVDB_ERR_FORMAT, "two texts of words have one slot", segment_slot(s, doc), 0,
                                   0);
        }
    }
    if (rows != state->rows || words != state->words)
        return FAIL(diag, FVDB_ERR_FORMAT, "the number of rows or words is not that of the segments");
    return FVDB_OK;
}

fvdb_status text_validate(const fvdb_text *t, fvdb_diag *diag) {
    int64_t rows = 0;
    for (uint32_t i = 0; i < t->now.n; i++) {
        const text_segment *s = t->now.segments[i];
        uint32_t alive = 0;
        TRY(segment_validate(s, diag));
        for (uint32_t doc = 0; doc < s->n_docs; doc++) {
            if (!bit_get(s->alive, doc)) continue;
            alive++;
            if (segment_length(s, doc) == 0) return FAIL(diag, FVDB_ERR_FORMAT, "a row without text is alive");
        }
        if (alive != s->alive_rows) return FAIL(diag, FVDB_ERR_FORMAT, "another number of rows is alive");
        rows += alive;
    }
    return rows == t->now.rows ? FVDB_OK
                               : FAIL(diag, FVDB_ERR_FORMAT, "the number of rows is not that of the segments");
}
