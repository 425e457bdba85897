/* Save and load: the bytes of segments, cut into parts, and back.
 *
 * A loading index has its heads, and streams of zeros into which chunks come one by one.  Where all that a query needs has
 * come, it is searched like a whole one: what it reads from a stream is checked as it is read.  text_load_end checks all. */
#include "text.h"

static const uint32_t part_kinds[TEXT_STREAMS] = {FVDB_PART_TEXT_DICTIONARY, FVDB_PART_TEXT_POSTINGS,
                                                  FVDB_PART_TEXT_POSITIONS};

static uint32_t chunks_of(const text_stream *stream, uint32_t chunk_bytes) {
    return (uint32_t)(((uint64_t)stream->size + chunk_bytes - 1) / chunk_bytes);
}

static uint32_t chunk_size(const text_stream *stream, uint32_t chunk_bytes, uint32_t chunk) {
    return min_u32(chunk_bytes, stream->size - chunk * chunk_bytes);
}

static uint32_t stream_of(uint32_t kind) { return kind - FVDB_PART_TEXT_DICTIONARY; }

/* The segment and the chunk in it that a number stands for; NULL: there is none. */
static text_segment *find_chunk(const text_state *state, uint32_t chunk_bytes, uint32_t kind, uint32_t number,
                                uint32_t *chunk) {
    for (uint32_t i = 0; i < state->n; i++) {
        const uint32_t chunks = chunks_of(&state->segments[i]->streams[stream_of(kind)], chunk_bytes);
        *chunk = number;
        if (number < chunks) return state->segments[i];
        number -= chunks;
    }
    return NULL;
}

static bool is_stream(uint32_t kind) { return kind >= FVDB_PART_TEXT_DICTIONARY && kind <= FVDB_PART_TEXT_POSITIONS; }

/* ---- save ---- */

fvdb_status text_parts(const fvdb_text *t, uint32_t chunk_bytes, fvdb_part *out, uint32_t capacity, uint32_t *out_count,
                       fvdb_diag *diag) {
    const text_state *state = &t->now;
    uint32_t n = 0;
    for (uint32_t i = 0; i < state->n; i++, n++)
        if (n < capacity) out[n] = (fvdb_part){FVDB_PART_TEXT_HEAD, i, state->segments[i]->head_size};
    for (uint32_t stream = 0; stream < TEXT_STREAMS; stream++) {
        uint32_t number = 0;
        for (uint32_t i = 0; i < state->n; i++) {
            const text_stream *bytes = &state->segments[i]->streams[stream];
            for (uint32_t chunk = 0; chunk < chunks_of(bytes, chunk_bytes); chunk++, n++, number++)
                if (n < capacity)
                    out[n] = (fvdb_part){part_kinds[stream], number, chunk_size(bytes, chunk_bytes, chunk)};
        }
    }
    *out_count = n;
    return n <= capacity ? FVDB_OK : FAIL_AT(diag, FVDB_ERR_BUFFER, "there are more parts", 0, n, capacity);
}

fvdb_status text_part_write(const fvdb_text *t, uint32_t chunk_bytes, uint32_t kind, uint32_t number, uint8_t *out,
                            uint64_t capacity, uint64_t *out_size, fvdb_diag *diag) {
    const text_state *state = &t->now;
    const uint8_t *bytes = NULL;
    uint32_t size = 0, chunk;
    if (kind == FVDB_PART_TEXT_HEAD && number < state->n) {
        bytes = state->segments[number]->head;
        size = state->segments[number]->head_size;
    } else if (is_stream(kind)) {
        const text_segment *s = find_chunk(state, chunk_bytes, kind, number, &chunk);
        if (s) {
            const text_stream *stream = &s->streams[stream_of(kind)];
            bytes = stream->bytes + (size_t)chunk * chunk_bytes;
            size = chunk_size(stream, chunk_bytes, chunk);
        }
    }
    if (!bytes) return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "there is no such part", 0, 0, number);
    if (size > capacity) return FAIL_AT(diag, FVDB_ERR_BUFFER, "the part does not fit", 0, size, capacity);
    memcpy(out, bytes, size);
    *out_size = size;
    return FVDB_OK;
}

/* ---- load ---- */

fvdb_status text_load(const fvdb_text_config *config, uint32_t segments, uint32_t chunk_bytes,
                      const uint64_t *stream_bytes, fvdb_text **out, fvdb_diag *diag) {
    fvdb_text *t;
    TRY(text_create(config, &t, diag));
    t->now.segments = mem_alloc_array(segments, sizeof *t->now.segments);
    if (!t->now.segments) {
        text_free(t);
        return FAIL_MEMORY(diag);
    }
    t->now.n = segments;
    t->chunk_bytes = chunk_bytes;
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) t->announced[i] = stream_bytes[i];
    t->state = TEXT_LOADING;
    *out = t;
    return FVDB_OK;
}

static bool has_heads(const fvdb_text *t) {
    for (uint32_t i = 0; i < t->now.n; i++)
        if (!t->now.segments[i]) return false;
    return true;
}

/* Before a head gets memory for its streams: three sizes of 32 bits would ask for 12 GB. */
static bool claim_streams(fvdb_text *t, const text_segment *s) {
    for (uint32_t i = 0; i < TEXT_STREAMS; i++)
        if (s->streams[i].size > t->announced[i]) return false;
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) t->announced[i] -= s->streams[i].size;
    return true;
}

static bool make_streams(text_segment *s, uint32_t chunk_bytes) {
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) {
        text_stream *stream = &s->streams[i];
        stream->chunks = chunks_of(stream, chunk_bytes);
        stream->came = mem_alloc_array((stream->chunks + 63u) / 64, sizeof *stream->came);
        stream->bytes = mem_alloc_array((size_t)stream->size + TEXT_SLACK, 1);
        if (!stream->came || !stream->bytes) return false;
    }
    return true;
}

static fvdb_status load_head(fvdb_text *t, uint32_t number, const uint8_t *bytes, uint64_t size, fvdb_diag *diag) {
    text_segment *s;
    if (number >= t->now.n) return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "there is no such part", 0, t->now.n, number);
    if (t->now.segments[number]) return FVDB_OK;
    if (size < TEXT_HEAD_BYTES) return FAIL(diag, FVDB_ERR_FORMAT, "the head of words is cut off");
    uint8_t *head = mem_alloc((size_t)size);
    if (!head) return FAIL_MEMORY(diag);
    memcpy(head, bytes, (size_t)size);
    TRY(segment_open(head, size, &s, diag));
    if (!claim_streams(t, s)) {
        segment_drop(s);
        return FAIL(diag, FVDB_ERR_FORMAT, "the head of words announces more bytes than the version has parts for");
    }
    if (!make_streams(s, t->chunk_bytes)) {
        segment_drop(s);
        return FAIL_MEMORY(diag);
    }
    t->now.segments[number] = s;
    if (!has_heads(t)) return FVDB_OK;
    fvdb_status status = text_derive(t, diag);
    if (status != FVDB_OK) t->state = TEXT_BROKEN;
    return status;
}

fvdb_status text_load_part(fvdb_text *t, uint32_t kind, uint32_t number, const uint8_t *bytes, uint64_t size,
                           fvdb_diag *diag) {
    uint32_t chunk;
    if (kind == FVDB_PART_TEXT_HEAD) return load_head(t, number, bytes, size, diag);
    if (!has_heads(t)) return FAIL(diag, FVDB_ERR_ARGUMENT, "a head of words is missing");
    text_segment *s = is_stream(kind) ? find_chunk(&t->now, t->chunk_bytes, kind, number, &chunk) : NULL;
    if (!s) return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "there is no such part", 0, 0, number);
    text_stream *stream = &s->streams[stream_of(kind)];
    if (bit_get(stream->came, chunk)) return FVDB_OK;
    const uint32_t expected = chunk_size(stream, t->chunk_bytes, chunk);
    if (size != expected) return FAIL_AT(diag, FVDB_ERR_FORMAT, "a part of words has another size", 0, expected, size);
    memcpy(stream->bytes + (size_t)chunk * t->chunk_bytes, bytes, expected);
    bit_set(stream->came, chunk);
    stream->chunks_came++;
    return FVDB_OK;
}

fvdb_status text_load_end(fvdb_text *t, fvdb_diag *diag) {
    text_state *state = &t->now;
    if (!has_heads(t)) return FAIL(diag, FVDB_ERR_ARGUMENT, "a head of words is missing");
    for (uint32_t i = 0; i < state->n; i++)
        for (uint32_t j = 0; j < TEXT_STREAMS; j++)
            if (state->segments[i]->streams[j].chunks_came != state->segments[i]->streams[j].chunks)
                return FAIL(diag, FVDB_ERR_ARGUMENT, "a part of words is missing");
    fvdb_status status = text_validate(t, diag);
    t->state = status == FVDB_OK ? TEXT_WHOLE : TEXT_BROKEN;
    for (uint32_t i = 0; i < state->n; i++)
        for (uint32_t j = 0; j < TEXT_STREAMS; j++) {
            mem_free(state->segments[i]->streams[j].came);
            state->segments[i]->streams[j].came = NULL;
        }
    return status;
}

/* ---- what a query needs ---- */

/* Parts, as kind and number in one word each. */
typedef struct wanted {
    const fvdb_text *t;
    byte_buffer keys;
    bool has_failed; /* memory ran out */
} wanted;

static void want(wanted *w, uint32_t segment, uint32_t stream, uint32_t at, uint32_t size) {
    const text_state *state = &w->t->now;
    const text_stream *bytes = &state->segments[segment]->streams[stream];
    if (size == 0) return;
    uint32_t before = 0;
    for (uint32_t i = 0; i < segment; i++) before += state->segments[i]->streams[stream].chunks;
    const uint32_t end = (uint32_t)(((uint64_t)at + size - 1) / w->t->chunk_bytes);
    for (uint32_t chunk = at / w->t->chunk_bytes; chunk <= end; chunk++) {
        const uint64_t key = (uint64_t)part_kinds[stream] << 32 | (before + chunk);
        if (bit_get(bytes->came, chunk)) continue;
        w->has_failed = w->has_failed || !buffer_add(&w->keys, &key, sizeof key);
    }
}

static void want_block(wanted *w, uint32_t segment, uint32_t block) {
    const text_segment *s = w->t->now.segments[segment];
    const uint32_t at = block_field(s, block, 0);
    const uint32_t end = block + 1 < s->n_blocks ? block_field(s, block + 1, 0) : s->streams[TEXT_DICTIONARY].size;
    want(w, segment, TEXT_DICTIONARY, at, end - at);
}

/* The block that has a term if there is one; or all blocks that have terms with a prefix.  A search for a term may read on
 * to the next block, and finds zeros there, which are no entry, where it did not come. */
static void want_terms(wanted *w, uint32_t segment, const uint8_t *term, uint32_t size, bool is_prefix) {
    const text_segment *s = w->t->now.segments[segment];
    const uint32_t first = terms_block(s, term, size);
    if (first != TEXT_NONE) want_block(w, segment, first);
    for (uint32_t block = first + 1; is_prefix && block < s->n_blocks; block++) { /* 0 after TEXT_NONE */
        uint32_t first_size;
        const uint8_t *begin = block_first_term(s, block, &first_size);
        if (first_size < size || memcmp(begin, term, size)) break;
        want_block(w, segment, block);
    }
}

/* The postings of all words with a prefix, which a sign needs. */
static void want_prefix(wanted *w, const fvdb_text_query *query, const fvdb_text_term *term) {
    const text_state *state = &w->t->now;
    const uint8_t *prefix = query->bytes + term->start;
    for (uint32_t i = 0; i < state->n; i++) {
        term_cursor c;
        for (bool has = terms_seek(&c, state->segments[i], prefix, term->size);
             has && terms_has_prefix(&c, prefix, term->size); has = terms_next(&c))
            want(w, i, TEXT_POSTINGS, c.info.postings_at, c.info.postings_size);
    }
}

static fvdb_status want_postings(wanted *w, const fvdb_text_query *query, fvdb_diag *diag) {
    text_query q;
    TRY(query_open(&q, w->t, query, diag));
    for (uint32_t i = 0; i < q.n_terms; i++)
        for (uint32_t j = 0; j < q.state->n; j++) {
            const term_info *info = &q.terms[i].infos[j];
            want(w, j, TEXT_POSTINGS, info->postings_at, info->postings_size);
            if (q.terms[i].of_phrase) want(w, j, TEXT_POSITIONS, info->positions_at, info->positions_size);
        }
    for (uint32_t i = 0; i < q.n_clauses; i++) {
        const query_clause *c = &q.clauses[i];
        if (!(c->flags & FVDB_TEXT_PREFIX) || !(c->flags & (FVDB_TEXT_REQUIRED | FVDB_TEXT_EXCLUDED))) continue;
        for (uint32_t j = 0; j < c->given->n; j++) want_prefix(w, query, &query->terms[c->given->first + j]);
    }
    query_close(&q);
    return FVDB_OK;
}

static fvdb_status find_wanted(wanted *w, const fvdb_text_query *query, fvdb_diag *diag) {
    TRY(query_check(query, diag));
    if (!has_heads(w->t)) return FAIL(diag, FVDB_ERR_ARGUMENT, "a head of words is missing");
    for (uint32_t i = 0; i < query->n_clauses; i++) {
        const fvdb_text_clause *c = &query->clauses[i];
        for (uint32_t j = 0; j < c->n; j++) {
            const fvdb_text_term *term = &query->terms[c->first + j];
            for (uint32_t segment = 0; segment < w->t->now.n; segment++)
                want_terms(w, segment, query->bytes + term->start, term->size, c->flags & FVDB_TEXT_PREFIX);
        }
    }
    if (w->keys.used == 0 && !w->has_failed) TRY(want_postings(w, query, diag));
    return w->has_failed ? FAIL_MEMORY(diag) : FVDB_OK;
}

/* Each key once, in order; gives how many. */
static fvdb_status sort_wanted(wanted *w, uint32_t *out, fvdb_diag *diag) {
    const size_t n = w->keys.used / sizeof(uint64_t);
    if (!buffer_room(&w->keys, w->keys.used)) return FAIL_MEMORY(diag);
    uint64_t *keys = (uint64_t *)(void *)w->keys.bytes;
    size_t kept = 0;
    if (n) sort_u64(keys, keys + n, n);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || keys[i] != keys[kept - 1]) keys[kept++] = keys[i];
    *out = (uint32_t)kept;
    return FVDB_OK;
}

fvdb_status text_missing(const fvdb_text *t, const fvdb_text_query *query, fvdb_part *out, uint32_t capacity,
                         uint32_t *out_count, fvdb_diag *diag) {
    wanted w = {.t = t};
    fvdb_status status = find_wanted(&w, query, diag);
    if (status == FVDB_OK) status = sort_wanted(&w, out_count, diag);
    const uint64_t *keys = (const uint64_t *)(const void *)w.keys.bytes;
    for (uint32_t i = 0; status == FVDB_OK && i < min_u32(*out_count, capacity); i++) {
        const uint32_t kind = (uint32_t)(keys[i] >> 32), number = (uint32_t)keys[i];
        uint32_t chunk;
        const text_segment *s = find_chunk(&t->now, t->chunk_bytes, kind, number, &chunk);
        out[i] = (fvdb_part){kind, number, chunk_size(&s->streams[stream_of(kind)], t->chunk_bytes, chunk)};
    }
    mem_free(w.keys.bytes);
    if (status != FVDB_OK || *out_count <= capacity) return status;
    return FAIL_AT(diag, FVDB_ERR_BUFFER, "more parts are missing", 0, *out_count, capacity);
}

fvdb_status text_check_present(const fvdb_text *t, const fvdb_text_query *query, fvdb_diag *diag) {
    if (t->state != TEXT_LOADING) return query_check(query, diag);
    wanted w = {.t = t};
    fvdb_status status = find_wanted(&w, query, diag);
    const bool is_missing = w.keys.used > 0;
    mem_free(w.keys.bytes);
    if (status != FVDB_OK || !is_missing) return status;
    return FAIL(diag, FVDB_ERR_ARGUMENT, "parts that the query needs are missing");
}
