/* Texts become words, words become terms, and terms a segment.
 *
 * A staged change has the number of each word of each text, in order: the place in that order is the position.  The table of distinct
 * words lives as long as the change: what a stemmer makes of a word is asked once a change, and nothing of it is kept. */
#include "text.h"
#include "words.h"

#include <stdlib.h>

/* Texts after which a stage looks at its control word. */
#define TEXTS_PER_POLL 256u

/* ---- vocabulary ---- */

#define VOCABULARY_MIN 64u

static uint64_t hash_bytes(const vocabulary *v, const uint8_t *bytes, uint32_t size) {
    uint64_t hash = mix64(v->seed ^ size);
    for (; size >= 8; bytes += 8, size -= 8) hash = mix64(hash ^ load_le(bytes, 8));
    uint64_t rest = 0;
    for (uint32_t i = 0; i < size; i++) rest = rest << 8 | bytes[i];
    return mix64(hash ^ rest);
}

const uint8_t *vocabulary_get(const vocabulary *v, uint32_t number, uint32_t *size) {
    const size_t *ends = (const size_t *)(const void *)v->ends.bytes;
    const size_t start = number ? ends[number - 1] : 0;
    *size = (uint32_t)(ends[number] - start);
    return v->bytes.bytes + start;
}

static bool grow_table(vocabulary *v) {
    const uint32_t size = v->table_size ? v->table_size * 2 : VOCABULARY_MIN, mask = size - 1;
    uint64_t *table = size ? mem_alloc_array(size, sizeof *table) : NULL;
    if (!table) return false;
    for (uint32_t number = 0; number < v->n; number++) {
        uint32_t length;
        const uint8_t *bytes = vocabulary_get(v, number, &length);
        const uint64_t hash = hash_bytes(v, bytes, length);
        uint32_t at = (uint32_t)hash & mask;
        while (table[at]) at = (at + 1) & mask;
        table[at] = (hash >> 32 << 32) | (number + 1);
    }
    mem_free(v->table);
    v->table = table;
    v->table_size = size;
    return true;
}

/* The number of a string, a new one where it is new; TEXT_NONE: out of memory. */
static uint32_t vocabulary_add(vocabulary *v, const uint8_t *bytes, uint32_t size) {
    if (v->n >= v->table_size / 2 && (v->n >= UINT32_MAX / 4 || !grow_table(v))) return TEXT_NONE;
    const uint64_t hash = hash_bytes(v, bytes, size);
    const uint32_t mask = v->table_size - 1;
    uint32_t at = (uint32_t)hash & mask;
    for (; v->table[at]; at = (at + 1) & mask) {
        if (v->table[at] >> 32 != hash >> 32) continue;
        const uint32_t number = (uint32_t)v->table[at] - 1;
        uint32_t other_size;
        const uint8_t *other = vocabulary_get(v, number, &other_size);
        if (other_size == size && memcmp(other, bytes, size) == 0) return number;
    }
    const size_t end = v->bytes.used + size;
    if (!buffer_add(&v->bytes, bytes, size) || !buffer_add(&v->ends, &end, sizeof end)) return TEXT_NONE;
    v->table[at] = (hash >> 32 << 32) | (v->n + 1);
    return v->n++;
}

static void vocabulary_free(vocabulary *v) {
    mem_free(v->bytes.bytes);
    mem_free(v->ends.bytes);
    mem_free(v->table);
    *v = (vocabulary){0};
}

/* ---- stage ---- */

/* Rows are texts that follow each other with one slot; their order by slot. */
static fvdb_status group_rows(staged_rows *out, const uint32_t *slots, fvdb_diag *diag) {
    uint32_t rows = 0;
    bool ascend = true;
    for (uint32_t i = 0; i < out->n_texts; i++) {
        if (slots[i] >= FVDB_ROWS_MAX)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a slot is out of range", i, FVDB_ROWS_MAX, slots[i]);
        if (i && slots[i] == slots[i - 1]) continue;
        ascend = ascend && (i == 0 || slots[i - 1] < slots[i]);
        out->slots[rows] = slots[i];
        out->order[rows] = rows;
        out->starts[rows++] = i;
    }
    out->starts[rows] = out->n_texts;
    out->n_rows = rows;
    if (ascend) return FVDB_OK;
    uint64_t *keys = mem_alloc((size_t)rows * 2 * sizeof *keys);
    if (!keys) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < rows; i++) keys[i] = (uint64_t)out->slots[i] << 32 | i;
    sort_u64(keys, keys + rows, rows);
    uint32_t twice = TEXT_NONE;
    for (uint32_t i = 0; i < rows; i++) {
        out->slots[i] = (uint32_t)(keys[i] >> 32);
        out->order[i] = (uint32_t)keys[i];
        if (i && out->slots[i] == out->slots[i - 1]) twice = out->starts[out->order[i]];
    }
    mem_free(keys);
    if (twice == TEXT_NONE) return FVDB_OK;
    return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a slot comes twice, but not in a row", twice, 0, 0);
}

static fvdb_status stage_texts(staged_rows *out, vocabulary *v, const fvdb_text_rows *rows, fvdb_control *control,
                               fvdb_diag *diag) {
    fvdb_words words;
    fvdb_word word;
    for (uint32_t i = 0; i < rows->n; i++) {
        if (i % TEXTS_PER_POLL == 0 && control_cancelled(control)) return FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
        words_begin(&words, rows->bytes + rows->offsets[i], (size_t)(rows->offsets[i + 1] - rows->offsets[i]));
        while (words_next(&words, &word)) {
            const uint32_t number = vocabulary_add(v, word.term, word.size);
            if (number == TEXT_NONE || !buffer_add(&out->tokens, &number, sizeof number)) return FAIL_MEMORY(diag);
        }
        const size_t end = out->tokens.used / sizeof(uint32_t);
        if (end >= TEXT_NONE)
            return FAIL_AT(diag, FVDB_ERR_TOO_MANY, "too many words in one change", i, TEXT_NONE, end);
        out->ends[i] = (uint32_t)end;
    }
    return FVDB_OK;
}

static fvdb_status stage_rows(staged_rows *out, vocabulary *v, const fvdb_text_rows *rows, fvdb_control *control,
                              fvdb_diag *diag) {
    if (!rows || rows->n == 0) return FVDB_OK;
    for (uint32_t i = 0; i < rows->n; i++)
        if (rows->offsets[i + 1] < rows->offsets[i])
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "offsets of texts do not ascend", i, 0, 0);
    out->n_texts = rows->n;
    out->ends = mem_alloc_array(rows->n, sizeof *out->ends);
    out->starts = mem_alloc_array((size_t)rows->n + 1, sizeof *out->starts);
    out->slots = mem_alloc_array(rows->n, sizeof *out->slots);
    out->order = mem_alloc_array(rows->n, sizeof *out->order);
    if (!out->ends || !out->starts || !out->slots || !out->order) return FAIL_MEMORY(diag);
    TRY(group_rows(out, rows->slots, diag));
    return stage_texts(out, v, rows, control, diag);
}

static void staged_free(staged_rows *r) {
    mem_free(r->ends);
    mem_free(r->starts);
    mem_free(r->slots);
    mem_free(r->order);
    mem_free(r->tokens.bytes);
    *r = (staged_rows){0};
}

void change_free(fvdb_text_change *c) {
    if (!c) return;
    vocabulary_free(&c->words);
    vocabulary_free(&c->terms);
    staged_free(&c->removed);
    staged_free(&c->added);
    mem_free(c->first);
    mem_free(c->second);
    state_drop(&c->next);
    mem_free(c);
}

fvdb_status text_stage(const fvdb_text *t, const fvdb_text_rows *removed, const fvdb_text_rows *added,
                       fvdb_control *control, fvdb_text_change **out, fvdb_diag *diag) {
    fvdb_text_change *c = mem_alloc_array(1, sizeof *c);
    if (!c) return FAIL_MEMORY(diag);
    c->terms_kind = t->config.terms;
    c->is_staged = true;
    /* An address, so that nobody can choose words that pile up in one place of the table. */
    c->words.seed = c->terms.seed = mix64((uint64_t)(uintptr_t)c);
    fvdb_status status = stage_rows(&c->removed, &c->words, removed, control, diag);
    if (status == FVDB_OK) status = stage_rows(&c->added, &c->words, added, control, diag);
    if (status != FVDB_OK) {
        change_free(c);
        return status;
    }
    *out = c;
    return FVDB_OK;
}

/* ---- terms ---- */

/* A word's stem, and under FVDB_TEXT_BOTH the word, among the terms. */
static bool add_terms(fvdb_text_change *c, uint32_t number, const uint8_t *term, uint32_t size) {
    uint8_t marked[FVDB_TEXT_TERM_BYTES_MAX];
    if (c->terms_kind == FVDB_TEXT_STEMS)
        return (c->first[number] = vocabulary_add(&c->terms, term, size)) != TEXT_NONE;
    uint32_t word_size;
    const uint8_t *word = vocabulary_get(&c->words, number, &word_size);
    marked[0] = FVDB_TEXT_STEM_MARK;
    memcpy(marked + 1, term, size);
    c->first[number] = vocabulary_add(&c->terms, word, word_size);
    c->second[number] = vocabulary_add(&c->terms, marked, size + 1);
    return c->first[number] != TEXT_NONE && c->second[number] != TEXT_NONE;
}

fvdb_status change_set_terms(fvdb_text_change *c, const uint8_t *bytes, const uint64_t *offsets, uint32_t n,
                             fvdb_diag *diag) {
    if (!c->is_staged || c->terms_kind == FVDB_TEXT_WORDS || n != c->words.n)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the change has another number of words", 0, c->words.n, n);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t size = offsets[i + 1] - offsets[i];
        if (offsets[i + 1] < offsets[i] || size >= FVDB_TEXT_TERM_BYTES_MAX)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a term is too long", i, FVDB_TEXT_TERM_BYTES_MAX - 1, size);
    }
    vocabulary_free(&c->terms);
    c->terms.seed = c->words.seed;
    c->has_terms = c->is_prepared = false;
    mem_free(c->first);
    mem_free(c->second);
    c->second = NULL;
    c->first = mem_alloc_array(n, sizeof *c->first);
    if (c->terms_kind == FVDB_TEXT_BOTH) c->second = mem_alloc_array(n, sizeof *c->second);
    if (!c->first || (c->terms_kind == FVDB_TEXT_BOTH && !c->second)) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t size = (uint32_t)(offsets[i + 1] - offsets[i]);
        c->first[i] = TEXT_NONE;
        if (c->second) c->second[i] = TEXT_NONE;
        if (size && !add_terms(c, i, bytes + offsets[i], size)) return FAIL_MEMORY(diag);
    }
    c->has_terms = true;
    return FVDB_OK;
}

/* ---- a segment ---- */

typedef struct sorted_term {
    uint64_t prefix; /* its first eight bytes, big-endian */
    const uint8_t *bytes;
    uint32_t size, number;
} sorted_term;

static int compare_terms(const void *left, const void *right) {
    const sorted_term *a = left, *b = right;
    if (a->prefix != b->prefix) return a->prefix < b->prefix ? -1 : 1;
    return compare_bytes(a->bytes, a->size, b->bytes, b->size);
}

/* What the sort of a change's words by term works on. */
typedef struct inversion {
    const fvdb_text_change *c;
    const vocabulary *v;
    const uint32_t *doc_slots; /* of the rows, ascending */
    sorted_term *terms;
    size_t *starts;    /* n of terms + 1: where the entries of each term begin; by number */
    uint32_t *left;    /* rows that leave and have the term */
    uint32_t *seen;    /* the last such row, plus 1 */
    uint64_t *entries; /* document and position */
    uint32_t *lengths; /* of documents, plus 1 */
    segment_builder b;
} inversion;

static void inversion_free(inversion *v) {
    mem_free(v->terms);
    mem_free(v->starts);
    mem_free(v->left);
    mem_free(v->seen);
    mem_free(v->entries);
    mem_free(v->lengths);
}

static inline uint32_t first_term(const fvdb_text_change *c, uint32_t word) { return c->first ? c->first[word] : word; }

static void count_term(inversion *v, uint32_t term) { v->starts[term + 1]++; }

static void count_left(inversion *v, uint32_t term, uint32_t row) {
    if (v->seen[term] == row + 1) return;
    v->seen[term] = row + 1;
    v->left[term]++;
}

static const uint32_t *tokens_of(const staged_rows *r) { return (const uint32_t *)(const void *)r->tokens.bytes; }

/* Bounds of a text in tokens. */
static uint32_t text_start(const staged_rows *r, uint32_t text) { return text ? r->ends[text - 1] : 0; }

static void count_terms(inversion *v) {
    const fvdb_text_change *c = v->c;
    const uint32_t *tokens = tokens_of(&c->added);
    for (size_t i = 0; i < c->added.tokens.used / sizeof *tokens; i++) {
        const uint32_t first = first_term(c, tokens[i]);
        if (first == TEXT_NONE) continue;
        count_term(v, first);
        if (c->second) count_term(v, c->second[tokens[i]]);
    }
    const staged_rows *removed = &c->removed;
    tokens = tokens_of(removed);
    for (uint32_t row = 0; row < removed->n_rows; row++) {
        const uint32_t end = removed->ends[removed->starts[row + 1] - 1];
        for (uint32_t i = text_start(removed, removed->starts[row]); i < end; i++) {
            const uint32_t first = first_term(c, tokens[i]);
            if (first == TEXT_NONE) continue;
            count_left(v, first, row);
            if (c->second) count_left(v, c->second[tokens[i]], row);
        }
    }
    for (uint32_t term = 0; term < v->v->n; term++) v->starts[term + 1] += v->starts[term];
}

/* Puts each word's place behind those of its term, in the order of documents; starts become ends. */
static void place_terms(inversion *v) {
    const fvdb_text_change *c = v->c;
    const staged_rows *added = &c->added;
    const uint32_t *tokens = tokens_of(added);
    for (uint32_t i = 0; i < added->n_rows; i++) {
        const uint32_t row = added->order[i];
        const uint32_t doc = v->b.is_dense ? added->slots[i] - v->b.first_slot : i;
        uint32_t position = 0, length = 0;
        for (uint32_t text = added->starts[row]; text < added->starts[row + 1]; text++) {
            for (uint32_t at = text_start(added, text); at < added->ends[text]; at++, position++) {
                const uint32_t first = first_term(c, tokens[at]);
                if (first == TEXT_NONE) continue;
                const uint64_t entry = (uint64_t)doc << 32 | position;
                length++;
                v->entries[v->starts[first]++] = entry;
                if (c->second) v->entries[v->starts[c->second[tokens[at]]]++] = entry;
            }
            position += FVDB_TEXT_FIELD_GAP;
        }
        v->lengths[doc] = length + 1;
        v->b.words += length;
    }
}

/* The postings of one term: entries from .. to - 1. */
static void write_term(inversion *v, const sorted_term *term, size_t from, size_t to, byte_buffer *positions) {
    const bool is_stem = term_is_stem(term->bytes, term->size);
    while (from < to) {
        const uint32_t doc = (uint32_t)(v->entries[from] >> 32);
        uint32_t freq = 0, last = 0;
        positions->used = 0;
        for (; from < to && v->entries[from] >> 32 == doc; from++, freq++) {
            const uint32_t position = (uint32_t)v->entries[from];
            if (!is_stem) v->b.has_failed = v->b.has_failed || !buffer_varint(positions, position - last);
            last = position;
        }
        builder_posting(&v->b, doc, freq, positions->bytes, positions->used);
    }
}

static fvdb_status invert(inversion *v, fvdb_control *control, fvdb_diag *diag) {
    const uint32_t n = v->v->n;
    v->terms = mem_alloc_array(n, sizeof *v->terms);
    v->starts = mem_alloc_array((size_t)n + 1, sizeof *v->starts);
    v->left = mem_alloc_array(n, sizeof *v->left);
    v->seen = mem_alloc_array(n, sizeof *v->seen);
    v->lengths = mem_alloc_array(v->b.n_docs, sizeof *v->lengths);
    if (!v->terms || !v->starts || !v->left || !v->seen || !v->lengths) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < n; i++) {
        sorted_term *term = &v->terms[i];
        term->number = i;
        term->bytes = vocabulary_get(v->v, i, &term->size);
        for (uint32_t j = 0; j < 8; j++) term->prefix = term->prefix << 8 | (j < term->size ? term->bytes[j] : 0);
    }
    qsort(v->terms, n, sizeof *v->terms, compare_terms);
    count_terms(v);
    v->entries = mem_alloc(v->starts[n] * sizeof *v->entries);
    if (!v->entries) return FAIL_MEMORY(diag);
    place_terms(v);
    v->b.lengths = v->lengths;
    byte_buffer positions = {0};
    fvdb_status status = FVDB_OK;
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++) {
        const sorted_term *term = &v->terms[i];
        /* starts[t] is now where term t ends, and so where term t + 1 begins. */
        write_term(v, term, term->number ? v->starts[term->number - 1] : 0, v->starts[term->number], &positions);
        builder_term(&v->b, term->bytes, term->size, v->left[term->number]);
        if (i % TEXTS_PER_POLL == 0 && control_cancelled(control)) status = FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
    }
    mem_free(positions.bytes);
    return status;
}

fvdb_status change_segment(const fvdb_text_change *c, int64_t left_words, fvdb_control *control, text_segment **out,
                           fvdb_diag *diag) {
    const staged_rows *added = &c->added;
    const uint32_t rows = added->n_rows;
    const uint64_t span = rows ? (uint64_t)added->slots[rows - 1] - added->slots[0] + 1 : 0;
    inversion v = {.c = c, .v = c->first ? &c->terms : &c->words};
    segment_builder *b = &v.b;
    b->is_dense = span <= (uint64_t)rows * TEXT_DENSE_SPAN;
    b->n_docs = b->is_dense ? (uint32_t)span : rows;
    b->first_slot = rows && b->is_dense ? added->slots[0] : 0;
    b->n_rows = rows;
    b->slots = added->slots;
    b->left = c->removed.slots;
    b->n_left = c->removed.n_rows;
    b->rows = (int64_t)rows - c->removed.n_rows;
    b->words = -left_words;
    fvdb_status status = invert(&v, control, diag);
    if (status == FVDB_OK) status = builder_finish(b, out, diag);
    else builder_free(b);
    inversion_free(&v);
    return status;
}
