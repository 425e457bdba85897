/* A query: its terms once each, found in every segment, with their weights; prefixes become the terms that they stand for.
 *
 * The score of a row is a sum of integers, each the score of a term in steps of 2^-exponent, rounded up, so above 0: it does
 * not depend on the order in which a search meets the terms.  The exponent is such that the sum of all weights, which no score
 * reaches, is below 2^30. */
#include "text.h"

#define SCORE_BITS 30
/* Most rows and words of totals: sums of them are exact in double. */
#define TOTAL_MAX (UINT64_C(1) << 53)

/* ---- memory of a query: pieces that are freed together ---- */

#define ARENA_BYTES 16384u

struct arena_block {
    struct arena_block *next;
    size_t used, room;
    _Alignas(16) uint8_t bytes[];
};

void *query_alloc(text_query *q, size_t count, size_t size) {
    size_t bytes;
    if (!mul_size(count, size, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    bytes = round_up(bytes, 16);
    struct arena_block *block = q->arena;
    if (!block || block->room - block->used < bytes) {
        const size_t room = bytes > ARENA_BYTES ? bytes : ARENA_BYTES;
        block = mem_alloc(sizeof *block + room);
        if (!block) return NULL;
        *block = (struct arena_block){.next = q->arena, .room = room};
        q->arena = block;
    }
    void *p = block->bytes + block->used;
    block->used += bytes;
    return p;
}

void query_close(text_query *q) {
    while (q->arena) {
        struct arena_block *next = q->arena->next;
        mem_free(q->arena);
        q->arena = next;
    }
}

/* ---- checks ---- */

fvdb_status query_check(const fvdb_text_query *query, fvdb_diag *diag) {
    const uint32_t known = FVDB_TEXT_REQUIRED | FVDB_TEXT_EXCLUDED | FVDB_TEXT_PREFIX | FVDB_TEXT_PHRASE;
    if (query->n_terms > FVDB_TEXT_QUERY_TERMS_MAX || query->n_clauses > FVDB_TEXT_QUERY_TERMS_MAX)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the query has too many terms", 0, FVDB_TEXT_QUERY_TERMS_MAX,
                       query->n_terms);
    for (uint32_t i = 0; i < query->n_terms; i++) {
        const fvdb_text_term *term = &query->terms[i];
        if ((uint64_t)term->start + term->size > query->n_bytes)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a term lies outside the bytes", i, query->n_bytes, term->start);
        if (!(term->weight > 0 && term->weight <= 1e30f))
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a weight is out of range", i, 0, 0);
        if (query->totals && query->totals->counts[i] > query->totals->rows)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "more rows have a term than there are", i, query->totals->rows,
                           query->totals->counts[i]);
    }
    if (query->totals && (query->totals->rows > TOTAL_MAX || query->totals->words > TOTAL_MAX))
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the totals are out of range", 0, TOTAL_MAX, query->totals->rows);
    for (uint32_t i = 0; i < query->n_clauses; i++) {
        const fvdb_text_clause *c = &query->clauses[i];
        if (c->n == 0 || (uint64_t)c->first + c->n > query->n_terms)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a clause has no terms, or others than the query", i, 0, 0);
        const bool both = (c->flags & FVDB_TEXT_PREFIX) && (c->flags & FVDB_TEXT_PHRASE);
        const bool at_odds = (c->flags & FVDB_TEXT_REQUIRED) && (c->flags & FVDB_TEXT_EXCLUDED);
        if (c->flags & ~known || both || at_odds)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a clause has flags that exclude each other", i, known, c->flags);
        if (query->totals && (c->flags & FVDB_TEXT_PREFIX))
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a prefix has no totals", i, 0, c->flags);
    }
    return FVDB_OK;
}

/* ---- terms ---- */

/* Terms of a phrase have their own weights: they count only where the phrase is. */
static uint32_t find_term(const text_query *q, uint32_t from, bool of_phrase, const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = from; i < q->n_terms; i++) {
        const query_term *term = &q->terms[i];
        if (term->of_phrase == of_phrase && term->size == size && memcmp(term->bytes, bytes, size) == 0) return i;
    }
    return TEXT_NONE;
}

/* Whether a cursor that was to find a term, or all with a prefix, met a malformed entry in a block that has them.  Where an
 * index loads, a block after those may not have come, and its zeros are no entries. */
static bool is_damaged(const term_cursor *c, const uint8_t *term, uint32_t size, bool is_prefix) {
    if (!c->is_bad) return false;
    uint32_t first_size;
    const uint8_t *first = block_first_term(c->s, c->number / TEXT_BLOCK_TERMS, &first_size);
    if (compare_bytes(first, first_size, term, size) <= 0) return true;
    return is_prefix && first_size >= size && (size == 0 || memcmp(first, term, size) == 0);
}

/* A term's place in every segment, and the number of its rows. */
static void look_up(text_query *q, query_term *term) {
    term_cursor c;
    term->df = 0;
    for (uint32_t i = 0; i < q->state->n; i++) {
        const text_segment *s = q->state->segments[i];
        term->infos[i] = (term_info){0};
        if (!terms_seek(&c, s, term->bytes, term->size)) {
            q->is_damaged = q->is_damaged || is_damaged(&c, term->bytes, term->size, false);
            continue;
        }
        if (compare_bytes(c.term, c.size, term->bytes, term->size)) continue;
        term->infos[i] = c.info;
        term->df += (int64_t)c.info.n - c.info.left;
    }
}

/* The number of a term in q->terms, where there is room; TEXT_NONE: out of memory.  from: first term of a phrase. */
static uint32_t add_term(text_query *q, uint32_t from, bool of_phrase, const uint8_t *bytes, uint32_t size) {
    const uint32_t found = find_term(q, from, of_phrase, bytes, size);
    if (found != TEXT_NONE) return found;
    query_term *term = &q->terms[q->n_terms];
    *term = (query_term){.size = size,
                         .of_phrase = of_phrase,
                         .times = 1,
                         .lesser = TEXT_ALONE,
                         .infos = query_alloc(q, (size_t)q->state->n + 1, sizeof *term->infos)};
    uint8_t *copy = query_alloc(q, size, 1);
    if (!copy || !term->infos) return TEXT_NONE;
    if (size) memcpy(copy, bytes, size);
    term->bytes = copy;
    look_up(q, term);
    return q->n_terms++;
}

/* ---- prefixes ---- */

typedef struct expansion {
    const uint8_t *bytes;
    uint32_t size;
    int64_t df;
} expansion;

/* In more rows, then first in byte order. */
static bool comes_first(const expansion *a, const expansion *b) {
    if (a->df != b->df) return a->df > b->df;
    return compare_bytes(a->bytes, a->size, b->bytes, b->size) < 0;
}

/* Walks over the terms that begin with a prefix: all segments' dictionaries side by side, in byte order. */
typedef struct prefix_walk {
    text_query *q;
    const uint8_t *prefix;
    uint32_t size;
    term_cursor *cursors;
    bool *has;
    expansion term; /* in some row */
    uint8_t bytes[FVDB_TEXT_TERM_BYTES_MAX];
} prefix_walk;

static bool walk_begin(prefix_walk *w, text_query *q, const uint8_t *prefix, uint32_t size) {
    const uint32_t segments = q->state->n;
    *w = (prefix_walk){.q = q, .prefix = prefix, .size = size};
    w->cursors = mem_alloc_array(segments, sizeof *w->cursors);
    w->has = mem_alloc_array(segments, sizeof *w->has);
    if (!w->cursors || !w->has) return false;
    for (uint32_t i = 0; i < segments; i++) w->has[i] = terms_seek(&w->cursors[i], q->state->segments[i], prefix, size);
    return true;
}

static bool walk_next(prefix_walk *w) {
    const uint32_t segments = w->q->state->n;
    do {
        const term_cursor *first = NULL;
        for (uint32_t i = 0; i < segments; i++) {
            const term_cursor *c = &w->cursors[i];
            if (w->has[i] && (!first || compare_bytes(c->term, c->size, first->term, first->size) < 0)) first = c;
        }
        if (!first || !terms_has_prefix(first, w->prefix, w->size)) return false;
        w->term = (expansion){w->bytes, first->size, 0};
        memcpy(w->bytes, first->term, first->size);
        for (uint32_t i = 0; i < segments; i++) {
            term_cursor *c = &w->cursors[i];
            if (!w->has[i] || compare_bytes(c->term, c->size, w->bytes, w->term.size)) continue;
            w->term.df += (int64_t)c->info.n - c->info.left;
            w->has[i] = terms_next(c);
        }
    } while (w->term.df <= 0);
    return true;
}

static void walk_end(prefix_walk *w) {
    for (uint32_t i = 0; w->cursors && w->has && i < w->q->state->n; i++)
        w->q->is_damaged = w->q->is_damaged || is_damaged(&w->cursors[i], w->prefix, w->size, true);
    mem_free(w->cursors);
    mem_free(w->has);
}

/* The terms of a prefix that are in most rows, in `out`; a new one takes the place of the last. */
static bool expand(text_query *q, const uint8_t *prefix, uint32_t size, expansion *out, uint32_t *n) {
    prefix_walk w;
    bool had = walk_begin(&w, q, prefix, size);
    while (had && walk_next(&w)) {
        expansion e = w.term;
        uint32_t at = *n;
        while (at > 0 && comes_first(&e, &out[at - 1])) at--;
        if (at == FVDB_TEXT_PREFIX_TERMS_MAX) continue;
        uint8_t *copy = query_alloc(q, e.size, 1);
        had = copy != NULL;
        if (!had) break;
        memcpy(copy, e.bytes, e.size);
        e.bytes = copy;
        const uint32_t last = *n < FVDB_TEXT_PREFIX_TERMS_MAX ? (*n)++ : *n - 1;
        for (uint32_t i = last; i > at; i--) out[i] = out[i - 1];
        out[at] = e;
    }
    walk_end(&w);
    return had;
}

/* ---- clauses ---- */

static bool is_scored(const query_clause *c) { return !(c->flags & (FVDB_TEXT_EXCLUDED | FVDB_TEXT_PHRASE)); }

/* Puts a term among those of a clause, once unless the clause is a phrase. */
static void put_term(text_query *q, query_clause *c, uint32_t term, float weight) {
    if (!(c->flags & FVDB_TEXT_EXCLUDED)) q->terms[term].weight += (double)weight;
    if (!(c->flags & FVDB_TEXT_PHRASE))
        for (uint32_t i = 0; i < c->n; i++)
            if (c->terms[i] == term) return;
    c->terms[c->n++] = term;
}

static fvdb_status add_prefix(text_query *q, query_clause *c, const fvdb_text_query *query, const fvdb_text_term *term,
                              fvdb_diag *diag) {
    expansion found[FVDB_TEXT_PREFIX_TERMS_MAX];
    uint32_t n = 0;
    if (!expand(q, query->bytes + term->start, term->size, found, &n)) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < n; i++) {
        if (q->n_terms == FVDB_TEXT_QUERY_TERMS_MAX) break;
        const uint32_t number = add_term(q, 0, false, found[i].bytes, found[i].size);
        if (number == TEXT_NONE) return FAIL_MEMORY(diag);
        put_term(q, c, number, term->weight);
    }
    return FVDB_OK;
}

static fvdb_status add_clause(text_query *q, const fvdb_text_query *query, const fvdb_text_clause *given,
                              fvdb_diag *diag) {
    query_clause *c = &q->clauses[q->n_clauses++];
    const bool is_prefix = given->flags & FVDB_TEXT_PREFIX, is_phrase = given->flags & FVDB_TEXT_PHRASE;
    const uint32_t from = q->n_terms;
    const uint32_t room = is_prefix ? FVDB_TEXT_QUERY_TERMS_MAX : given->n;
    *c = (query_clause){.flags = given->flags,
                        .given = given,
                        .terms = query_alloc(q, room, sizeof *c->terms),
                        .offsets = query_alloc(q, given->n, sizeof *c->offsets)};
    if (!c->terms || !c->offsets) return FAIL_MEMORY(diag);
    q->has_phrases = q->has_phrases || (given->flags & FVDB_TEXT_PHRASE);
    q->has_mask = q->has_mask || (given->flags & (FVDB_TEXT_REQUIRED | FVDB_TEXT_EXCLUDED));
    for (uint32_t i = 0; i < given->n; i++) {
        const fvdb_text_term *term = &query->terms[given->first + i];
        c->offsets[i] = term->offset;
        if (is_prefix) {
            TRY(add_prefix(q, c, query, term, diag));
            continue;
        }
        if (q->n_terms == FVDB_TEXT_QUERY_TERMS_MAX)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the query has too many terms", 0, FVDB_TEXT_QUERY_TERMS_MAX, 0);
        const uint32_t number = add_term(q, is_phrase ? from : 0, is_phrase, query->bytes + term->start, term->size);
        if (number == TEXT_NONE) return FAIL_MEMORY(diag);
        if (query->totals) q->terms[number].df = (int64_t)query->totals->counts[given->first + i];
        put_term(q, c, number, term->weight);
    }
    return FVDB_OK;
}

/* ---- weights ---- */

static double idf(const text_query *q, const query_term *term) {
    const double rows = q->state->rows > 0 ? (double)q->state->rows : 0;
    double df = term->df > 0 ? (double)term->df : 0;
    if (df > rows) df = rows; /* only where a caller counted down what it never had */
    return text_log(1 + (rows - df + 0.5) / (df + 0.5));
}

/* 2^exponent, for exponents that scales have. */
double text_power(int exponent) {
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* The sum of all weights below 2^SCORE_BITS, whatever order the caller gave: the largest first would need a sort, so the
 * terms are summed in the order of the query, and the exponent leaves room for rounding.  A term whose rows all left is in no
 * sum, so it gets no factor: its own weight may be far above that of the others. */
static void weigh(text_query *q) {
    double sum = 0;
    for (uint32_t i = 0; i < q->n_terms; i++) {
        q->terms[i].weight *= idf(q, &q->terms[i]);
        if (q->terms[i].df > 0) sum += q->terms[i].weight;
    }
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    q->exponent = sum > 0 ? SCORE_BITS - 1 - ((int)(bits >> 52) - 1022) : 0;
    const double scale = text_power(q->exponent);
    for (uint32_t i = 0; i < q->n_terms; i++)
        q->terms[i].factor = q->terms[i].df > 0 ? (float)(q->terms[i].weight * scale) : 0;
}

static bool is_unpacked(const text_query *q, const query_term *term) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < q->state->n; i++) most = max_u32(most, term->infos[i].n);
    return most <= TEXT_UNPACKED;
}

/* A table of scores, unless all of the term's lists are unpacked at once. */
static bool fill_table(text_query *q, query_term *term) {
    if (!term->times || is_unpacked(q, term)) return true;
    term->tabled = TEXT_FREQS;
    term->table = query_alloc(q, (size_t)TEXT_LENGTHS * term->tabled, sizeof *term->table);
    if (!term->table) return false;
    const float *norms = q->state->norms;
    const uint32_t end = min_u32(q->state->longest + 1, TEXT_LENGTHS);
    for (uint32_t i = 0; i < term->tabled; i++) {
        const float freq = (float)(i + 1);
        uint32_t *scores = term->table + (size_t)i * TEXT_LENGTHS;
        scores[0] = 0; /* no document has it and no word */
        for (uint32_t j = 1; j < end; j++)
            scores[j] = score_of_part(term->times, term->lesser, term->factor, freq / (freq + norms[j]));
        for (uint32_t j = end; j < TEXT_LENGTHS; j++) scores[j] = scores[end - 1]; /* of no document */
    }
    return true;
}

/* ---- words and their stems ---- */

static bool is_stem(const query_term *term) { return term_is_stem(term->bytes, term->size); }

/* Bytes of postings from which on it is worth remembering that they are equal. */
#define REMEMBERED_BYTES 1024u

/* Blocks of postings that are equal have equal tables of skips before them, but for the places of positions. */
static bool have_equal_blocks(text_segment *s, const term_info *a, const term_info *b) {
    const uint32_t blocks = (a->n + TEXT_BLOCK_POSTINGS - 1) / TEXT_BLOCK_POSTINGS;
    const uint64_t table = blocks > 1 ? (uint64_t)blocks * SKIP_BYTES : 0;
    const uint8_t *postings = s->streams[TEXT_POSTINGS].bytes;
    if (a->n != b->n || a->postings_size != b->postings_size || table > a->postings_size) return false;
    if (a->n == 0) return true;
    /* Of a segment that is whole, two lists that were equal are; where parts may come yet, places that are to come are compared as
     * zeros, to learn what a query wants.  Two lists are never both at 0. */
    const bool is_whole = !s->streams[TEXT_POSTINGS].came;
    const uint64_t pair = (uint64_t)a->postings_at << 32 | b->postings_at;
    uint64_t *known = &s->equal[mix64(pair) % TEXT_EQUAL];
    if (is_whole && pair && __atomic_load_n(known, __ATOMIC_RELAXED) == pair) return true;
    if (memcmp(postings + a->postings_at + table, postings + b->postings_at + table, a->postings_size - table))
        return false;
    if (is_whole && a->postings_size >= REMEMBERED_BYTES) __atomic_store_n(known, pair, __ATOMIC_RELAXED);
    return true;
}

static bool have_equal_postings(const text_query *q, const query_term *a, const query_term *b) {
    for (uint32_t i = 0; i < q->state->n; i++)
        if (!have_equal_blocks(q->state->segments[i], &a->infos[i], &b->infos[i])) return false;
    return true;
}

/* Whether one list can count for two terms: their factors are equal, or one is twice the other. */
static bool join_terms(const text_query *q, query_term *a, query_term *b) {
    const float most = a->factor < b->factor ? b->factor : a->factor,
                least = a->factor < b->factor ? a->factor : b->factor;
    if (a->times != 1 || (most != least && most != 2 * least) || !have_equal_postings(q, a, b)) return false;
    a->factor = most;
    a->lesser = most != least;
    a->times = 2;
    b->times = 0;
    return true;
}

/* A word's stem comes next to it in a query.  Where the word is the only one of its stem, both have the same postings, and one list
 * is enough for them.  Common words are of that kind, and comparing bytes takes a hundredth of the time of going through their
 * lists. */
static void join_stems(text_query *q) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < q->n_scored; i++) {
        query_term *term = &q->terms[q->scored[i]];
        query_term *before = n ? &q->terms[q->scored[n - 1]] : NULL;
        if (before && join_terms(q, before, term)) continue;
        if (before && is_stem(term) && !is_stem(before)) before->stem = term;
        q->scored[n++] = q->scored[i];
    }
    q->n_scored = n;
}

/* ---- open ---- */

static fvdb_status open_query(text_query *q, const fvdb_text_query *query, fvdb_diag *diag) {
    uint32_t room = query->n_terms;
    for (uint32_t i = 0; i < query->n_clauses; i++)
        if (query->clauses[i].flags & FVDB_TEXT_PREFIX) room = FVDB_TEXT_QUERY_TERMS_MAX;
    q->terms = query_alloc(q, room, sizeof *q->terms);
    q->clauses = query_alloc(q, query->n_clauses, sizeof *q->clauses);
    if (!q->terms || !q->clauses) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < query->n_clauses; i++) TRY(add_clause(q, query, &query->clauses[i], diag));
    if (q->is_damaged) return FAIL(diag, FVDB_ERR_FORMAT, "an entry of the dictionary is malformed");
    weigh(q);
    q->scored = query_alloc(q, q->n_terms, sizeof *q->scored);
    if (!q->scored) return FAIL_MEMORY(diag);
    for (uint32_t term = 0; term < q->n_terms; term++) {
        bool scored = false;
        for (uint32_t i = 0; i < q->n_clauses && !scored; i++)
            for (uint32_t j = 0; is_scored(&q->clauses[i]) && j < q->clauses[i].n; j++)
                scored = scored || q->clauses[i].terms[j] == term;
        if (scored) q->scored[q->n_scored++] = term;
    }
    join_stems(q);
    for (uint32_t i = 0; i < q->n_terms; i++)
        if (!fill_table(q, &q->terms[i])) return FAIL_MEMORY(diag);
    return FVDB_OK;
}

fvdb_status query_open(text_query *q, const fvdb_text *t, const fvdb_text_query *query, fvdb_diag *diag) {
    *q = (text_query){.t = t, .query = query, .state = &t->now};
    if (query->totals) {
        q->of_all = t->now;
        q->of_all.rows = (int64_t)query->totals->rows;
        q->of_all.words = (int64_t)query->totals->words;
        state_norms(&q->of_all, &t->config);
        q->state = &q->of_all;
    }
    fvdb_status status = open_query(q, query, diag);
    if (status != FVDB_OK) query_close(q);
    return status;
}

/* ---- terms and their numbers of rows ---- */

static bool count_term(term_counts *out, const expansion *term) {
    const uint64_t df = (uint64_t)term->df;
    if (!buffer_add(&out->bytes, term->bytes, term->size)) return false;
    const uint64_t end = out->bytes.used;
    out->n++;
    return buffer_add(&out->ends, &end, sizeof end) && buffer_add(&out->rows, &df, sizeof df);
}

static bool count_prefix(text_query *q, term_counts *out, const uint8_t *prefix, uint32_t size) {
    prefix_walk w;
    bool had = walk_begin(&w, q, prefix, size);
    while (had && walk_next(&w)) had = count_term(out, &w.term);
    walk_end(&w);
    return had;
}

static bool count_exact(text_query *q, term_counts *out, const uint8_t *bytes, uint32_t size) {
    query_term term = {.bytes = bytes, .size = size};
    term.infos = query_alloc(q, (size_t)q->state->n + 1, sizeof *term.infos);
    if (!term.infos) return false;
    look_up(q, &term);
    return count_term(out, &(expansion){bytes, size, term.df > 0 ? term.df : 0});
}

fvdb_status text_terms(const fvdb_text *t, const fvdb_text_query *query, term_counts *out, fvdb_diag *diag) {
    text_query q = {.t = t, .query = query, .state = &t->now};
    TRY(text_check_present(t, query, diag));
    bool had = true;
    for (uint32_t i = 0; i < query->n_clauses; i++) {
        const fvdb_text_clause *c = &query->clauses[i];
        for (uint32_t j = 0; j < c->n && had; j++) {
            const fvdb_text_term *term = &query->terms[c->first + j];
            const uint8_t *bytes = query->bytes + term->start;
            had = c->flags & FVDB_TEXT_PREFIX ? count_prefix(&q, out, bytes, term->size)
                                              : count_exact(&q, out, bytes, term->size);
        }
    }
    query_close(&q);
    if (!had) return FAIL_MEMORY(diag);
    return q.is_damaged ? FAIL(diag, FVDB_ERR_FORMAT, "an entry of the dictionary is malformed") : FVDB_OK;
}
