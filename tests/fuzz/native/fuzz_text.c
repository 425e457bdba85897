/* Hostile parts of an index of words: searched as they come, then checked as a whole, changed and saved again; and queries of
 * any numbers. */
#include "harness.h"

enum { TEXTS = 320, CHUNK = FVDB_TEXT_CHUNK_BYTES_MIN, SLOTS = 400, CONFIGS = 2 };

typedef struct saved {
    fvdb_text_config config;
    uint32_t segments;
    uint64_t announced[3];
    stored_set parts;
} saved;

typedef struct texts {
    uint32_t slots[TEXTS];
    uint64_t offsets[TEXTS + 1];
    uint8_t bytes[TEXTS * 64];
    fvdb_text_rows rows;
} texts;

/* Texts of ten words by rank, the first ones in most rows; some rows have two texts. */
static void make_texts(texts *t, uint32_t first, uint32_t n, uint32_t seed) {
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        t->slots[i] = first + i;
        t->offsets[i] = at;
        for (uint32_t j = 0; j < 10; j++) {
            seed = seed * 1664525u + 1013904223u;
            const uint32_t range = 1 + (seed >> 8) % 90;
            at += (size_t)sprintf((char *)t->bytes + at, "w%ux ", (seed >> 16) % range);
        }
    }
    t->offsets[n] = at;
    t->rows = (fvdb_text_rows){n, t->slots, t->bytes, t->offsets};
}

/* Stages, gives words as their stems, prepares and commits. */
static fvdb_status change(fvdb_text *text, const fvdb_text_rows *removed, const fvdb_text_rows *added) {
    fvdb_text_change *c = NULL;
    uint32_t n;
    uint64_t bytes;
    fvdb_status status = fvdb_text_stage(text, removed, added, NULL, &c, NULL);
    if (status != FVDB_OK) return status;
    MUST(fvdb_text_change_size(c, &n, &bytes, NULL) == FVDB_OK);
    uint8_t *words = room(bytes, 1);
    uint64_t *offsets = room((size_t)n + 1, sizeof *offsets);
    MUST(fvdb_text_change_words(c, words, bytes, offsets, n, NULL) == FVDB_OK);
    MUST(n == 0 || fvdb_text_set_terms(c, words, offsets, n, NULL) == FVDB_OK);
    status = fvdb_text_prepare(text, c, NULL, NULL);
    if (status == FVDB_OK) MUST(fvdb_text_commit(text, c, NULL) == FVDB_OK);
    fvdb_text_change_free(c);
    free(words);
    free(offsets);
    return status;
}

static void write_parts(fvdb_text *text, stored_set *out) {
    static fvdb_part parts[4096];
    MUST(fvdb_text_parts(text, CHUNK, parts, 4096, &out->n, NULL) == FVDB_OK && out->n <= STORED_MAX);
    for (uint32_t i = 0; i < out->n; i++) {
        stored *s = &out->at[i];
        uint64_t size;
        *s = (stored){parts[i].kind, parts[i].number, room(parts[i].size, 1), parts[i].size, 1};
        MUST(fvdb_text_part_write(text, CHUNK, s->kind, s->number, s->bytes, s->size, &size, NULL) == FVDB_OK);
        MUST(size == s->size);
    }
}

/* Three segments: texts, a few more, and texts that replace some. */
static const saved *saved_text(uint32_t terms) {
    static saved made[CONFIGS];
    static texts first, second, third, old;
    saved *s = &made[terms];
    if (s->parts.n) return s;
    fvdb_text *text;
    fvdb_text_stats stats;
    s->config = (fvdb_text_config){1.2, 0.75, terms ? FVDB_TEXT_BOTH : FVDB_TEXT_WORDS, 0};
    MUST(fvdb_text_create(&s->config, &text, NULL) == FVDB_OK);
    make_texts(&first, 0, 300, 1);
    make_texts(&second, 305, 15, 2);
    make_texts(&third, 7, 2, 3);
    make_texts(&old, 0, 300, 1);
    MUST(change(text, NULL, &first.rows) == FVDB_OK && change(text, NULL, &second.rows) == FVDB_OK);
    const fvdb_text_rows two = {2, old.slots + 7, old.bytes, old.offsets + 7};
    MUST(change(text, &two, &third.rows) == FVDB_OK);
    MUST(fvdb_text_get_stats(text, &stats, NULL) == FVDB_OK && fvdb_text_validate(text, NULL) == FVDB_OK);
    s->segments = (uint32_t)stats.segments;
    write_parts(text, &s->parts);
    fvdb_text_free(text);
    return s;
}

/* What the manifest would say: bytes of the parts of each stream. */
static void announce(saved *s) {
    for (uint32_t i = 0; i < s->parts.n; i++)
        if (s->parts.at[i].kind != FVDB_PART_TEXT_HEAD)
            s->announced[s->parts.at[i].kind - FVDB_PART_TEXT_DICTIONARY] += s->parts.at[i].size;
}

static const fvdb_text_term good_terms[] = {{0, 3, 0, 1}, {3, 3, 0, 1}, {6, 4, 0, 2},
                                            {0, 3, 0, 1}, {3, 3, 1, 1}, {0, 2, 0, 1}};
static const fvdb_text_clause good_clauses[] = {{0, 3, 0, 0},
                                                {3, 2, FVDB_TEXT_PHRASE, 0},
                                                {5, 1, FVDB_TEXT_PREFIX, 0},
                                                {0, 1, FVDB_TEXT_REQUIRED, 0},
                                                {2, 1, FVDB_TEXT_EXCLUDED | FVDB_TEXT_PREFIX, 0}};
static const uint8_t good_bytes[] = "w1xw2xw17x";

/* Clauses and terms of any numbers, or of good ones. */
typedef struct any_query {
    fvdb_text_query query;
    fvdb_text_term terms[6];
    fvdb_text_clause clauses[4];
    fvdb_text_totals totals;
} any_query;

static void pick_query(any_query *q, input *in) {
    const uint32_t form = pick_below(in, 4);
    if (form < 3) { /* the words, the phrase and the prefix; these, required and excluded; all */
        const uint32_t first = form == 1 ? 3 : 0, n = form == 0 ? 3 : form == 1 ? 2 : 5;
        q->query = (fvdb_text_query){good_bytes, sizeof good_bytes - 1, good_terms, good_clauses + first, NULL, 6, n};
        return;
    }
    static const float weights[] = {1, 0.5f, 3e38f, 1e-38f, 0, -1, __builtin_inff(), __builtin_nanf("")};
    for (uint32_t i = 0; i < 6; i++)
        q->terms[i] =
            (fvdb_text_term){pick_below(in, 12), pick_below(in, 12), (int8_t)pick(in, 1), weights[pick_below(in, 8)]};
    for (uint32_t i = 0; i < 4; i++)
        q->clauses[i] = (fvdb_text_clause){pick_below(in, 8), pick_below(in, 8), (uint32_t)pick(in, 1), 0};
    q->query = (fvdb_text_query){good_bytes, sizeof good_bytes - 1, q->terms,         q->clauses,
                                 NULL,       pick_below(in, 7),     pick_below(in, 5)};
    static const uint64_t numbers[] = {0,          1, 300, UINT32_MAX, (uint64_t)1 << 53, ((uint64_t)1 << 53) + 1,
                                       UINT64_MAX, 40};
    q->totals = (fvdb_text_totals){numbers[pick_below(in, 8)], numbers[pick_below(in, 8)], numbers + pick_below(in, 3)};
    if (pick_below(in, 2)) q->query.totals = &q->totals;
}

static void search(fvdb_text *text, const fvdb_text_query *query) {
    enum { K = 20 };
    uint32_t *slots = room(K, sizeof *slots), n = 0;
    uint64_t matches, *mask = room((SLOTS + 63) / 64, sizeof *mask);
    double *scores = room(K, sizeof *scores), *again = room(K, sizeof *again);
    const fvdb_status status = fvdb_text_search(text, query, K, NULL, 0, slots, scores, &n, &matches, NULL);
    if (status == FVDB_OK) {
        MUST(n <= K && n <= matches);
        for (uint32_t i = 0; i < n; i++) MUST(scores[i] > 0 && (i == 0 || scores[i] <= scores[i - 1]));
        MUST(fvdb_text_score_slots(text, query, slots, n, again, NULL) == FVDB_OK);
        MUST(memcmp(scores, again, n * sizeof *scores) == 0);
        MUST(fvdb_text_mask(text, query, SLOTS, mask, NULL) == FVDB_OK);
    }
    free(slots);
    free(mask);
    free(scores);
    free(again);
}

static void give(fvdb_text *text, const saved *s, uint32_t kind, uint32_t number) {
    for (uint32_t i = 0; i < s->parts.n; i++) {
        const stored *part = &s->parts.at[i];
        if (part->kind != kind || part->number != number) continue;
        for (uint32_t times = part->times; times; times--)
            (void)fvdb_text_load_part(text, kind, number, part->bytes, part->size, NULL);
    }
}

/* As a lazily loaded index does: the parts that a query needs, then the query. */
static void search_while_loading(fvdb_text *text, const saved *s, const fvdb_text_query *query) {
    fvdb_part parts[STORED_MAX];
    uint32_t n = 0;
    for (uint32_t round = 0; round < 4; round++) {
        if (fvdb_text_missing(text, query, parts, STORED_MAX, &n, NULL) != FVDB_OK) return;
        if (n == 0) break;
        for (uint32_t i = 0; i < n; i++) give(text, s, parts[i].kind, parts[i].number);
    }
    search(text, query);
}

/* Changes of an index that was checked: texts that other texts replace, and slots that move. */
static void use(fvdb_text *text, const saved *s, input *in) {
    static texts fresh, old;
    stored_set now;
    write_parts(text, &now);
    for (uint32_t i = 0; i < now.n; i++) must_have(&s->parts, &now.at[i]);
    stored_free(&now);
    make_texts(&fresh, 390, 5, (uint32_t)pick(in, 1));
    make_texts(&old, 0, 300, 1);
    const fvdb_text_rows some = {3, old.slots + 20, old.bytes, old.offsets + 20};
    (void)change(text, NULL, &fresh.rows);
    /* Hostile segments may have other words than the texts of the rows: this may be refused, or count too few rows. */
    (void)change(text, &some, NULL);
    search(text, &(fvdb_text_query){good_bytes, sizeof good_bytes - 1, good_terms, good_clauses, NULL, 6, 3});
    uint32_t map[SLOTS];
    fvdb_text_change *moved = NULL;
    for (uint32_t i = 0; i < SLOTS; i++) map[i] = i % 7 ? SLOTS - 1 - i : FVDB_NO_SLOT;
    if (fvdb_text_stage_map(text, map, SLOTS, NULL, &moved, NULL) == FVDB_OK) {
        MUST(fvdb_text_commit(text, moved, NULL) == FVDB_OK);
        search(text, &(fvdb_text_query){good_bytes, sizeof good_bytes - 1, good_terms, good_clauses, NULL, 6, 3});
    }
    fvdb_text_change_free(moved);
}

FUZZ(text) {
    input in = {data, size};
    const saved *good = saved_text(pick_below(&in, CONFIGS));
    saved s = *good;
    fvdb_text *text;
    any_query query;
    pick_query(&query, &in);
    stored_copy(&s.parts, &good->parts);
    for (uint32_t edits = 0; in.left > 1 && edits < EDITS_MAX; edits++) (void)stored_edit(&s.parts, &in, 0);
    announce(&s);
    MUST(fvdb_text_load(&s.config, s.segments, CHUNK, s.announced, &text, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < s.segments; i++) give(text, &s, FVDB_PART_TEXT_HEAD, i);
    search_while_loading(text, &s, &query.query);
    for (uint32_t i = 0; i < s.parts.n; i++) give(text, &s, s.parts.at[i].kind, s.parts.at[i].number);
    if (fvdb_text_load_end(text, NULL) == FVDB_OK) {
        MUST(fvdb_text_validate(text, NULL) == FVDB_OK);
        search(text, &query.query);
        use(text, &s, &in);
    }
    fvdb_text_free(text);
    stored_free(&s.parts);
}
