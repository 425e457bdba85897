/* Preparing and committing changes, and merging segments.
 *
 * A prepared state shares the old segments that it keeps.  What is alive in these is written at the commit, bit by bit, so
 * that a preparation that is dropped leaves no trace. */
#include "text.h"

#define TERMS_PER_POLL 1024u

/* ---- sorting ---- */

/* By bytes, the lowest first (LSD radix sort); bytes that are the same in all keys are passed over. */
void sort_u64(uint64_t *keys, uint64_t *room, size_t n) {
    uint64_t all = 0, none = UINT64_MAX;
    uint64_t *const home = keys;
    for (size_t i = 0; i < n; i++) {
        all |= keys[i];
        none &= keys[i];
    }
    for (uint32_t shift = 0; shift < 64; shift += 8) {
        size_t starts[256] = {0}, at = 0;
        if (((all ^ none) >> shift & 255) == 0) continue;
        for (size_t i = 0; i < n; i++) starts[keys[i] >> shift & 255]++;
        for (uint32_t digit = 0; digit < 256; digit++) {
            const size_t count = starts[digit];
            starts[digit] = at;
            at += count;
        }
        for (size_t i = 0; i < n; i++) room[starts[keys[i] >> shift & 255]++] = keys[i];
        uint64_t *const swap = keys;
        keys = room;
        room = swap;
    }
    if (keys != home) memcpy(home, keys, n * sizeof *keys);
}

static bool has_slot(const uint32_t *slots, uint32_t n, uint32_t slot) {
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (slots[middle] < slot) low = middle + 1;
        else high = middle;
    }
    return low < n && slots[low] == slot;
}

/* ---- merge ---- */

typedef struct posting {
    uint32_t doc, freq;
    const uint8_t *positions;
    size_t size;
} posting;

typedef struct merging {
    text_segment *const *segments;
    uint32_t n;
    bool is_all;
    uint32_t **docs; /* of each segment: the new document of each, TEXT_NONE for a row that is not there */
    term_cursor *terms;
    bool *has_term;
    uint32_t *slots, n_rows; /* of the new segment, ascending */
    uint32_t *lengths;
    uint32_t *left;
    posting *postings, *sorted;
    uint64_t *keys;
    size_t postings_room;
    segment_builder b;
} merging;

static void merging_free(merging *m) {
    for (uint32_t i = 0; m->docs && i < m->n; i++) mem_free(m->docs[i]);
    mem_free(m->docs);
    mem_free(m->terms);
    mem_free(m->has_term);
    mem_free(m->slots);
    mem_free(m->lengths);
    mem_free(m->left);
    mem_free(m->postings);
    mem_free(m->sorted);
    mem_free(m->keys);
    builder_free(&m->b);
}

/* The new slots of all rows that stay: at first in docs, by document. */
static fvdb_status new_slots(merging *m, const uint32_t *left, uint32_t n_left, const uint32_t *map, uint32_t n_map,
                             fvdb_diag *diag) {
    size_t rows = 0, at = 0;
    for (uint32_t i = 0; i < m->n; i++) rows += m->segments[i]->alive_rows;
    uint64_t *keys = mem_alloc(rows * 2 * sizeof *keys);
    m->slots = mem_alloc(rows * sizeof *m->slots);
    if (!keys || !m->slots) {
        mem_free(keys);
        return FAIL_MEMORY(diag);
    }
    for (uint32_t i = 0; i < m->n; i++) {
        const text_segment *s = m->segments[i];
        /* What the newest segment has comes after what left with it. */
        const bool is_newest = n_left && i + 1 == m->n;
        for (uint32_t doc = 0; doc < s->n_docs; doc++) {
            uint32_t slot = bit_get(s->alive, doc) ? segment_slot(s, doc) : TEXT_NONE;
            if (slot != TEXT_NONE && !is_newest && n_left && has_slot(left, n_left, slot)) slot = TEXT_NONE;
            if (slot != TEXT_NONE && map) slot = slot < n_map ? map[slot] : TEXT_NONE;
            m->docs[i][doc] = slot;
            if (slot != TEXT_NONE) keys[at++] = slot;
        }
    }
    sort_u64(keys, keys + rows, at);
    bool is_sound = at <= FVDB_ROWS_MAX;
    for (size_t i = 0; i < at; i++) {
        is_sound = is_sound && keys[i] < FVDB_ROWS_MAX && (i == 0 || keys[i - 1] != keys[i]);
        m->slots[i] = (uint32_t)keys[i];
    }
    mem_free(keys);
    m->n_rows = (uint32_t)at;
    return is_sound ? FVDB_OK : FAIL(diag, FVDB_ERR_ARGUMENT, "two rows get one slot, or a slot is out of range");
}

static uint32_t doc_of(const merging *m, uint32_t slot) {
    if (m->b.is_dense) return slot - m->b.first_slot;
    uint32_t low = 0, high = m->n_rows;
    while (low + 1 < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (m->slots[middle] <= slot) low = middle;
        else high = middle;
    }
    return low;
}

static fvdb_status new_docs(merging *m, fvdb_diag *diag) {
    segment_builder *b = &m->b;
    const uint32_t rows = m->n_rows;
    const uint64_t span = rows ? (uint64_t)m->slots[rows - 1] - m->slots[0] + 1 : 0;
    b->is_dense = span <= (uint64_t)rows * TEXT_DENSE_SPAN;
    b->n_docs = b->is_dense ? (uint32_t)span : rows;
    b->first_slot = rows && b->is_dense ? m->slots[0] : 0;
    b->n_rows = rows;
    b->slots = m->slots;
    b->lengths = m->lengths = mem_alloc_array(b->n_docs, sizeof *m->lengths);
    if (!m->lengths) return FAIL_MEMORY(diag);
    int64_t words = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        const text_segment *s = m->segments[i];
        for (uint32_t doc = 0; doc < s->n_docs; doc++) {
            uint32_t *number = &m->docs[i][doc];
            if (*number == TEXT_NONE) continue;
            *number = doc_of(m, *number);
            m->lengths[*number] = segment_length(s, doc);
            words += segment_length(s, doc) - 1;
        }
        b->rows += s->rows;
        b->words += s->words;
    }
    /* The sums of all segments are those of the rows that are there: so they are, whatever was told of rows that left. */
    if (m->is_all) b->rows = rows, b->words = words;
    return FVDB_OK;
}

/* Slots that left: of no use where no segment is older. */
static fvdb_status new_left(merging *m, fvdb_diag *diag) {
    size_t n = 0, at = 0;
    if (m->is_all) return FVDB_OK;
    for (uint32_t i = 0; i < m->n; i++) n += m->segments[i]->n_left;
    uint64_t *keys = mem_alloc(n * 2 * sizeof *keys);
    m->left = mem_alloc(n * sizeof *m->left);
    if (!keys || !m->left) {
        mem_free(keys);
        return FAIL_MEMORY(diag);
    }
    for (uint32_t i = 0; i < m->n; i++)
        for (uint32_t j = 0; j < m->segments[i]->n_left; j++) keys[at++] = segment_left(m->segments[i], j);
    sort_u64(keys, keys + n, n);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || keys[i] != keys[i - 1]) m->left[m->b.n_left++] = (uint32_t)keys[i];
    m->b.left = m->left;
    mem_free(keys);
    return FVDB_OK;
}

static bool postings_room(merging *m, size_t n) {
    if (n <= m->postings_room) return true;
    const size_t room = n + n / 2;
    mem_free(m->postings);
    mem_free(m->sorted);
    mem_free(m->keys);
    m->postings = mem_alloc(room * sizeof *m->postings);
    m->sorted = mem_alloc(room * sizeof *m->sorted);
    m->keys = mem_alloc(room * 2 * sizeof *m->keys);
    m->postings_room = m->postings && m->sorted && m->keys ? room : 0;
    return m->postings_room > 0;
}

/* The postings of one segment's term whose rows stay, with their positions; false for malformed ones. */
static bool take_postings(merging *m, uint32_t segment, size_t *n) {
    posting_cursor c;
    if (!postings_open(&c, m->segments[segment], &m->terms[segment].info)) return false;
    const uint32_t *docs = m->docs[segment];
    for (uint32_t block = 0; block < c.n_blocks; block++) {
        if (!postings_load(&c, block)) return false;
        postings_freqs(&c);
        reader r = postings_positions(&c);
        for (uint32_t i = 0; i < c.count; i++) {
            const uint8_t *positions = r.at;
            for (uint32_t left = c.freqs[i]; left && r.left; r.left--) left -= *r.at++ < 128;
            if (docs[c.docs[i]] == TEXT_NONE) continue;
            m->postings[(*n)++] = (posting){docs[c.docs[i]], c.freqs[i], positions, (size_t)(r.at - positions)};
        }
    }
    return true;
}

static void sort_postings(merging *m, size_t n) {
    for (size_t i = 0; i < n; i++) m->keys[i] = (uint64_t)m->postings[i].doc << 32 | i;
    sort_u64(m->keys, m->keys + n, n);
    for (size_t i = 0; i < n; i++) m->sorted[i] = m->postings[(uint32_t)m->keys[i]];
    posting *const swap = m->postings;
    m->postings = m->sorted;
    m->sorted = swap;
}

static fvdb_status merge_term(merging *m, const term_cursor *term, fvdb_diag *diag) {
    size_t n = 0, old = 0;
    int64_t left = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        if (!m->has_term[i] || compare_bytes(m->terms[i].term, m->terms[i].size, term->term, term->size)) continue;
        old += m->terms[i].info.n;
        left += m->terms[i].info.left;
    }
    if (!postings_room(m, old + 1)) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < m->n; i++) {
        if (!m->has_term[i] || compare_bytes(m->terms[i].term, m->terms[i].size, term->term, term->size)) continue;
        if (!take_postings(m, i, &n)) return FAIL(diag, FVDB_ERR_FORMAT, "postings are malformed");
    }
    const bool is_stem = term_is_stem(term->term, term->size);
    bool ascend = true;
    for (size_t i = 1; i < n; i++) ascend = ascend && m->postings[i - 1].doc < m->postings[i].doc;
    if (!ascend) sort_postings(m, n);
    for (size_t i = 0; i < n; i++) {
        const posting *p = &m->postings[i];
        /* Earlier releases wrote positions of stems. */
        builder_posting(&m->b, p->doc, p->freq, p->positions, is_stem ? 0 : p->size);
    }
    /* Rows whose postings are dropped here need no counting down any more. */
    builder_term(&m->b, term->term, term->size, m->is_all ? 0 : left - (int64_t)(old - n));
    return FVDB_OK;
}

static fvdb_status merge_terms(merging *m, fvdb_control *control, fvdb_diag *diag) {
    term_cursor least;
    for (uint32_t i = 0; i < m->n; i++) {
        terms_begin(&m->terms[i], m->segments[i]);
        m->has_term[i] = terms_next(&m->terms[i]);
    }
    for (uint32_t round = 0;; round++) {
        const term_cursor *first = NULL;
        for (uint32_t i = 0; i < m->n; i++)
            if (m->has_term[i] &&
                (!first || compare_bytes(m->terms[i].term, m->terms[i].size, first->term, first->size) < 0))
                first = &m->terms[i];
        if (!first) return FVDB_OK;
        if (round % TERMS_PER_POLL == 0 && control_cancelled(control))
            return FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
        memcpy(least.term, first->term, first->size);
        least.size = first->size;
        TRY(merge_term(m, &least, diag));
        for (uint32_t i = 0; i < m->n; i++)
            if (m->has_term[i] && !compare_bytes(m->terms[i].term, m->terms[i].size, least.term, least.size))
                m->has_term[i] = terms_next(&m->terms[i]);
    }
}

static fvdb_status merge(merging *m, const uint32_t *left, uint32_t n_left, const uint32_t *map, uint32_t n_map,
                         fvdb_control *control, fvdb_diag *diag) {
    m->docs = mem_alloc_array(m->n, sizeof *m->docs);
    m->terms = mem_alloc_array(m->n, sizeof *m->terms);
    m->has_term = mem_alloc_array(m->n, sizeof *m->has_term);
    if (!m->docs || !m->terms || !m->has_term) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < m->n; i++)
        if (!(m->docs[i] = mem_alloc(m->segments[i]->n_docs * sizeof **m->docs))) return FAIL_MEMORY(diag);
    TRY(new_slots(m, left, n_left, map, n_map, diag));
    TRY(new_docs(m, diag));
    TRY(new_left(m, diag));
    return merge_terms(m, control, diag);
}

fvdb_status segments_merge(text_segment *const *segments, uint32_t n, bool is_all, const uint32_t *left,
                           uint32_t n_left, const uint32_t *map, uint32_t n_map, fvdb_control *control,
                           text_segment **out, fvdb_diag *diag) {
    merging m = {.segments = segments, .n = n, .is_all = is_all};
    fvdb_status status = merge(&m, left, n_left, map, n_map, control, diag);
    if (status == FVDB_OK) status = builder_finish(&m.b, out, diag);
    merging_free(&m);
    return status;
}

/* ---- prepare ---- */

/* Rows that leave are there, those that come are not, or leave too.  The lengths of the rows that leave, in all. */
static fvdb_status check_rows(const fvdb_text *t, const fvdb_text_change *c, int64_t *left_words, fvdb_diag *diag) {
    const staged_rows *removed = &c->removed, *added = &c->added;
    uint32_t doc;
    *left_words = 0;
    for (uint32_t i = 0; i < removed->n_rows; i++) {
        const text_segment *s = state_find(&t->now, removed->slots[i], &doc);
        if (!s)
            return FAIL_AT(diag, FVDB_ERR_NOT_FOUND, "the row has no text in the index",
                           removed->starts[removed->order[i]], 0, removed->slots[i]);
        *left_words += segment_length(s, doc) - 1;
    }
    for (uint32_t i = 0; i < added->n_rows; i++)
        if (state_find(&t->now, added->slots[i], &doc) && !has_slot(removed->slots, removed->n_rows, added->slots[i]))
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the row has a text in the index already",
                           added->starts[added->order[i]], 0, added->slots[i]);
    return FVDB_OK;
}

/* How many of the oldest segments stay: the newer ones are merged with a new one. */
static uint32_t segments_kept(const text_state *state, const text_segment *fresh) {
    uint64_t size = segment_size(fresh);
    uint32_t kept = state->n;
    for (; kept > 0; kept--) {
        const uint64_t older = segment_size(state->segments[kept - 1]);
        if (size * TEXT_MERGE_FACTOR < older && kept < FVDB_TEXT_SEGMENTS_MAX) break;
        size += older;
    }
    return kept;
}

/* The list of `kept` old segments and `last`, which it owns from then on, and leaves out where it has nothing. */
static fvdb_status make_state(const fvdb_text *t, uint32_t kept, text_segment *last, text_state *out, fvdb_diag *diag) {
    text_state next = {.n = kept};
    next.segments = mem_alloc_array((size_t)kept + 1, sizeof *next.segments);
    if (!next.segments) {
        segment_drop(last);
        return FAIL_MEMORY(diag);
    }
    if (segment_size(last) > 1) next.segments[next.n++] = last;
    else segment_drop(last);
    for (uint32_t i = 0; i < kept; i++) {
        next.segments[i] = t->now.segments[i];
        __atomic_add_fetch(&next.segments[i]->uses, 1, __ATOMIC_RELAXED);
    }
    state_sum(&next, &t->config);
    state_drop(out);
    *out = next;
    return FVDB_OK;
}

static fvdb_status set_prepared(const fvdb_text *t, fvdb_text_change *c, uint32_t kept, text_segment *last,
                                fvdb_diag *diag) {
    TRY(make_state(t, kept, last, &c->next, diag));
    c->kept = kept;
    c->generation = t->generation;
    c->is_prepared = true;
    return FVDB_OK;
}

fvdb_status text_prepare(const fvdb_text *t, fvdb_text_change *c, fvdb_control *control, fvdb_diag *diag) {
    if (!c->is_staged || c->terms_kind != t->config.terms)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "the change was not staged by this index");
    if (c->terms_kind != FVDB_TEXT_WORDS && !c->has_terms && c->words.n)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "the terms of the words are missing");
    int64_t left_words;
    text_segment *fresh, *last;
    c->is_prepared = false;
    TRY(check_rows(t, c, &left_words, diag));
    TRY(change_segment(c, left_words, control, &fresh, diag));
    const bool is_empty = segment_size(fresh) == 1;
    const uint32_t kept = is_empty ? t->now.n : segments_kept(&t->now, fresh);
    if (kept == t->now.n) return set_prepared(t, c, kept, fresh, diag);
    const uint32_t merged = t->now.n - kept;
    text_segment *segments[FVDB_TEXT_SEGMENTS_MAX + 1];
    memcpy(segments, t->now.segments + kept, merged * sizeof *segments);
    segments[merged] = fresh;
    fvdb_status status = segments_merge(segments, merged + 1, kept == 0, c->removed.slots, c->removed.n_rows, NULL, 0,
                                        control, &last, diag);
    segment_drop(fresh);
    return status == FVDB_OK ? set_prepared(t, c, kept, last, diag) : status;
}

fvdb_status text_stage_map(const fvdb_text *t, const uint32_t *map, uint32_t n, fvdb_control *control,
                           fvdb_text_change **out, fvdb_diag *diag) {
    static const uint32_t none;
    fvdb_text_change *c = mem_alloc_array(1, sizeof *c);
    text_segment *last;
    if (!c) return FAIL_MEMORY(diag);
    fvdb_status status =
        segments_merge(t->now.segments, t->now.n, true, NULL, 0, map ? map : &none, n, control, &last, diag);
    if (status == FVDB_OK) status = set_prepared(t, c, 0, last, diag);
    if (status != FVDB_OK) change_free(c);
    else *out = c;
    return status;
}

/* ---- commit ---- */

fvdb_status text_commit(fvdb_text *t, fvdb_text_change *c, fvdb_diag *diag) {
    if (!c->is_prepared || c->generation != t->generation)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "the change is not prepared, or the index was changed since");
    for (uint32_t i = 0; i < c->removed.n_rows; i++)
        for (uint32_t j = 0; j < c->kept; j++) {
            text_segment *s = t->now.segments[j];
            const uint32_t doc = segment_find(s, c->removed.slots[i]);
            if (doc == TEXT_NONE) continue;
            bit_clear(s->alive, doc);
            s->alive_rows--;
        }
    const text_state old = t->now;
    t->now = c->next;
    c->next = old; /* freed with the change, outside of the lock */
    c->is_prepared = false;
    t->generation++;
    return FVDB_OK;
}
