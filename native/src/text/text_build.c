/* Writes a segment: postings come term by term, in byte order, and document by document. */
#include "text.h"

/* ---- buffers ---- */

bool buffer_room(byte_buffer *b, size_t more) {
    if (more <= b->room - b->used) return true;
    size_t room = b->used + more;
    room += room / 2 + 64;
    uint8_t *bytes = mem_realloc(b->bytes, room);
    if (!bytes) return false;
    b->bytes = bytes;
    b->room = room;
    return true;
}

bool buffer_add(byte_buffer *b, const void *bytes, size_t size) {
    if (!buffer_room(b, size)) return false;
    if (size) memcpy(b->bytes + b->used, bytes, size);
    b->used += size;
    return true;
}

bool buffer_varint(byte_buffer *b, uint64_t value) {
    if (!buffer_room(b, 10)) return false;
    for (; value >= 128; value >>= 7) b->bytes[b->used++] = (uint8_t)(value | 128);
    b->bytes[b->used++] = (uint8_t)value;
    return true;
}

static bool buffer_number(byte_buffer *b, uint64_t value, size_t size) {
    if (!buffer_room(b, size)) return false;
    store_le(b->bytes + b->used, value, size);
    b->used += size;
    return true;
}

static void buffer_free(byte_buffer *b) {
    mem_free(b->bytes);
    *b = (byte_buffer){0};
}

/* ---- postings ---- */

static uint32_t bits_of(uint32_t x) { return x ? 32u - (uint32_t)__builtin_clz(x) : 0; }

/* A full block: four streams side by side, words of one after those of another. */
static void pack_lanes(byte_buffer *b, const uint32_t *numbers, uint32_t width) {
    uint8_t *at = b->bytes + b->used;
    for (uint32_t lane = 0; lane < 4; lane++) {
        uint64_t word = 0;
        uint32_t bits = 0, words = 0;
        for (uint32_t i = lane; i < TEXT_BLOCK_POSTINGS; i += 4) {
            word |= (uint64_t)numbers[i] << bits;
            bits += width;
            if (bits < 32) continue;
            store_le(at + (size_t)16 * words++ + (size_t)4 * lane, word & UINT32_MAX, 4);
            word >>= 32;
            bits -= 32;
        }
    }
    b->used += (size_t)16 * width;
}

static void pack(byte_buffer *b, const uint32_t *numbers, uint32_t n, uint32_t width) {
    if (n == TEXT_BLOCK_POSTINGS) {
        pack_lanes(b, numbers, width);
        return;
    }
    uint8_t *at = b->bytes + b->used;
    uint64_t word = 0;
    uint32_t bits = 0;
    for (uint32_t i = 0; i < n; i++) {
        word |= (uint64_t)numbers[i] << bits;
        for (bits += width; bits >= 8; bits -= 8, word >>= 8) *at++ = (uint8_t)word;
    }
    if (bits) *at++ = (uint8_t)word;
    b->used = (size_t)(at - b->bytes);
}

/* Room for a block of any widths. */
#define BLOCK_BYTES_MAX (2u + 2u * 4u * TEXT_BLOCK_POSTINGS)

static bool add_skip(segment_builder *b) {
    uint8_t skip[SKIP_BYTES] = {0};
    uint32_t most = 0;
    for (uint32_t i = 0; i < b->pending; i++) {
        uint8_t *least = &skip[SKIP_LENGTHS + min_u32(b->freqs[i], SKIP_CLASSES) - 1];
        const uint8_t length = (uint8_t)min_u32(b->lengths[b->docs[i]], 255);
        if (*least == 0 || length < *least) *least = length;
        most = max_u32(most, b->freqs[i]);
    }
    store_le(skip, b->docs[b->pending - 1], 4);
    store_le(skip + 4, b->term_blocks.used, 4);
    store_le(skip + 8, b->streams[TEXT_POSITIONS].used - b->positions_start, 4);
    store_le(skip + 16, most, 4);
    return buffer_add(&b->term_skips, skip, sizeof skip);
}

/* The next document that the block could have begun with is one past the last of the block before. */
static void end_block(segment_builder *b) {
    uint32_t steps[TEXT_BLOCK_POSTINGS], less[TEXT_BLOCK_POSTINGS], all = 0, all_less = 0;
    if (b->pending == 0) return;
    uint32_t next = b->last_doc + 1; /* 0 at first */
    for (uint32_t i = 0; i < b->pending; i++) {
        all |= steps[i] = b->docs[i] - next;
        all_less |= less[i] = b->freqs[i] - 1;
        next = b->docs[i] + 1;
    }
    byte_buffer *out = &b->term_blocks;
    if (!buffer_room(out, BLOCK_BYTES_MAX)) {
        b->has_failed = true;
        return;
    }
    const uint32_t width = bits_of(all), freq_width = bits_of(all_less);
    out->bytes[out->used++] = (uint8_t)width;
    out->bytes[out->used++] = (uint8_t)freq_width;
    pack(out, steps, b->pending, width);
    pack(out, less, b->pending, freq_width);
    b->has_failed = !add_skip(b);
    b->last_doc = b->docs[b->pending - 1];
    b->pending = 0;
}

void builder_posting(segment_builder *b, uint32_t doc, uint32_t freq, const uint8_t *positions, size_t size) {
    if (b->has_failed) return;
    if (b->n == 0) b->last_doc = UINT32_MAX;
    if (b->n == 0) b->positions_start = (uint32_t)b->streams[TEXT_POSITIONS].used;
    assert(freq > 0 && doc < b->n_docs);
    b->docs[b->pending] = doc;
    b->freqs[b->pending++] = freq;
    b->n++;
    b->has_failed = !buffer_add(&b->streams[TEXT_POSITIONS], positions, size);
    if (!b->has_failed && b->pending == TEXT_BLOCK_POSTINGS) end_block(b);
}

/* ---- dictionary ---- */

static bool begin_terms(segment_builder *b, const uint8_t *term, uint32_t size, size_t positions_at) {
    bool had = buffer_number(&b->blocks, b->streams[TEXT_DICTIONARY].used, 4);
    had = had && buffer_number(&b->blocks, b->streams[TEXT_POSTINGS].used, 4);
    had = had && buffer_number(&b->blocks, positions_at, 4) && buffer_number(&b->blocks, b->first_terms.used, 4);
    b->n_blocks++;
    return had && buffer_add(&b->first_terms, term, size);
}

static uint32_t shared_bytes(const segment_builder *b, const uint8_t *term, uint32_t size) {
    uint32_t n = 0;
    while (n < size && n < b->last_size && b->last_term[n] == term[n]) n++;
    return n;
}

void builder_term(segment_builder *b, const uint8_t *term, uint32_t size, int64_t left) {
    if (!b->has_failed) end_block(b);
    const uint32_t n = b->n;
    b->n = 0;
    if (b->has_failed || (n == 0 && left == 0)) return;
    byte_buffer *dictionary = &b->streams[TEXT_DICTIONARY], *postings = &b->streams[TEXT_POSTINGS];
    const size_t positions_at = n ? b->positions_start : b->streams[TEXT_POSITIONS].used;
    const size_t table = n > TEXT_BLOCK_POSTINGS ? b->term_skips.used : 0;
    bool had = true;
    /* The first term of a block stands in the index, and is repeated from there. */
    if (b->n_terms % TEXT_BLOCK_TERMS == 0) {
        had = begin_terms(b, term, size, positions_at);
        memcpy(b->last_term, term, size);
        b->last_size = size;
    }
    const uint32_t shared = shared_bytes(b, term, size);
    had = had && buffer_varint(dictionary, shared) && buffer_varint(dictionary, size - shared);
    had = had && buffer_add(dictionary, term + shared, size - shared) && buffer_varint(dictionary, n);
    had = had && buffer_varint(dictionary, (uint64_t)left << 1 ^ (uint64_t)(left >> 63));
    had = had && buffer_varint(dictionary, table + b->term_blocks.used);
    had = had && buffer_varint(dictionary, b->streams[TEXT_POSITIONS].used - positions_at);
    had = had && buffer_add(postings, b->term_skips.bytes, table);
    had = had && buffer_add(postings, b->term_blocks.bytes, b->term_blocks.used);
    b->has_failed = !had;
    memcpy(b->last_term, term, size);
    b->last_size = size;
    b->term_skips.used = b->term_blocks.used = 0;
    b->n_postings += n;
    b->n_terms++;
}

/* ---- the end ---- */

void builder_free(segment_builder *b) {
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) buffer_free(&b->streams[i]);
    byte_buffer *const buffers[] = {&b->blocks, &b->first_terms, &b->term_skips, &b->term_blocks};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) buffer_free(buffers[i]);
}

static void write_head(const segment_builder *b, uint8_t width, writer *w) {
    write_bytes(w, "FVTX", 4);
    write_le(w, 1, 2);
    write_le(w, width, 1);
    write_le(w, b->is_dense, 1);
    const uint32_t counts[] = {b->n_docs, b->first_slot, b->n_rows, b->n_left, b->n_terms, b->n_blocks};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) write_le(w, counts[i], 4);
    write_le(w, b->n_postings, 8);
    write_le(w, (uint64_t)b->rows, 8);
    write_le(w, (uint64_t)b->words, 8);
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) write_le(w, b->streams[i].used, 4);
    write_le(w, b->first_terms.used, 4);
    write_le(w, 0, 8);
    for (uint32_t doc = 0; doc < b->n_docs; doc++) write_le(w, b->lengths[doc], width);
    for (uint32_t doc = 0; doc < b->n_docs && !b->is_dense; doc++) write_le(w, b->slots[doc], 4);
    for (uint32_t i = 0; i < b->n_left; i++) write_le(w, b->left[i], 4);
    write_bytes(w, b->blocks.bytes, b->blocks.used);
    write_bytes(w, b->first_terms.bytes, b->first_terms.used);
}

/* Gives a buffer's bytes to a stream, without room to spare. */
static bool give(byte_buffer *b, text_stream *stream) {
    if (!buffer_room(b, TEXT_SLACK)) return false;
    memset(b->bytes + b->used, 0, TEXT_SLACK);
    uint8_t *bytes = mem_realloc(b->bytes, b->used + TEXT_SLACK);
    if (!bytes) return false;
    *stream = (text_stream){.bytes = bytes, .size = (uint32_t)b->used};
    *b = (byte_buffer){0};
    return true;
}

static fvdb_status finish(segment_builder *b, text_segment **out, fvdb_diag *diag) {
    if (b->has_failed) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < TEXT_STREAMS; i++)
        if (b->streams[i].used > UINT32_MAX - 2 * TEXT_SLACK)
            return FAIL_AT(diag, FVDB_ERR_TOO_MANY, "the words pass 4 GiB", 0, UINT32_MAX, b->streams[i].used);
    uint32_t longest = 0;
    for (uint32_t doc = 0; doc < b->n_docs; doc++) longest = max_u32(longest, b->lengths[doc]);
    const uint8_t width = longest < 256 ? 1 : longest < 65536 ? 2 : 4;
    const size_t size = TEXT_HEAD_BYTES + (size_t)b->n_docs * (width + (b->is_dense ? 0u : 4u)) +
                        (size_t)b->n_left * 4 + b->blocks.used + b->first_terms.used;
    if (size > UINT32_MAX) return FAIL_AT(diag, FVDB_ERR_TOO_MANY, "the words pass 4 GiB", 0, UINT32_MAX, size);
    uint8_t *head = mem_alloc(size);
    if (!head) return FAIL_MEMORY(diag);
    writer w = {head, size};
    write_head(b, width, &w);
    assert(w.left == 0);
    text_segment *s;
    TRY(segment_open(head, size, &s, diag));
    for (uint32_t i = 0; i < TEXT_STREAMS; i++)
        if (!give(&b->streams[i], &s->streams[i])) {
            segment_drop(s);
            return FAIL_MEMORY(diag);
        }
    *out = s;
    return FVDB_OK;
}

fvdb_status builder_finish(segment_builder *b, text_segment **out, fvdb_diag *diag) {
    fvdb_status status = finish(b, out, diag);
    builder_free(b);
    return status;
}
