/* The bytes of a segment: its head, dictionary and postings, read as if nobody had checked them.
 *
 * segment_open checks all that later reads rely on to stay within the head; the cursors check what they read from streams,
 * so a segment whose streams came in part, or are hostile, is safe to search.  segment_validate checks everything.
 *
 * Head: "FVTX", uint16 version, uint8 bytes a length, uint8 dense; uint32 documents, first slot, rows, slots that left,
 * terms, blocks of terms; uint64 postings; int64 rows and words that it adds; uint32 sizes of dictionary, postings,
 * positions, first terms; uint64 zero; lengths; slots, uint32 each, unless dense; slots that left; for each block of terms uint32 where
 * its entries, postings, positions and first term begin; the first terms. */
#include "text.h"

#define BAD(message) FAIL(diag, FVDB_ERR_FORMAT, message)
#define REQUIRE(rule, message)            \
    do {                                  \
        if (!(rule)) return BAD(message); \
    } while (0)

#define TEXT_VERSION 1u
/* So that sums over FVDB_TEXT_SEGMENTS_MAX segments stay in range. */
#define TEXT_WORDS_MAX (INT64_C(1) << 58)

/* ---- head ---- */

static fvdb_status read_head(text_segment *s, fvdb_diag *diag) {
    reader r = reader_over(s->head, s->head_size);
    const uint8_t *magic = read_bytes(&r, 4);
    REQUIRE(magic && memcmp(magic, "FVTX", 4) == 0, "the head of words does not start with FVTX");
    REQUIRE(read_u16(&r) == TEXT_VERSION, "the head of words has an unknown version");
    s->length_width = read_u8(&r);
    const uint8_t dense = read_u8(&r);
    s->n_docs = read_u32(&r);
    s->first_slot = read_u32(&r);
    s->n_rows = read_u32(&r);
    s->n_left = read_u32(&r);
    s->n_terms = read_u32(&r);
    s->n_blocks = read_u32(&r);
    s->n_postings = read_u64(&r);
    s->rows = (int64_t)read_u64(&r);
    s->words = (int64_t)read_u64(&r);
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) s->streams[i].size = read_u32(&r);
    s->first_terms_size = read_u32(&r);
    const uint64_t zero = read_u64(&r);
    REQUIRE(r.ok, "the head of words is cut off");
    REQUIRE(zero == 0 && dense <= 1, "a field of the head of words is out of range");
    REQUIRE(s->length_width == 1 || s->length_width == 2 || s->length_width == 4, "lengths have an unknown width");
    s->is_dense = dense;
    REQUIRE(s->n_docs <= FVDB_ROWS_MAX && s->n_left <= FVDB_ROWS_MAX && s->n_rows <= s->n_docs,
            "the head of words has too many rows");
    REQUIRE(s->rows >= -(int64_t)FVDB_ROWS_MAX && s->rows <= (int64_t)FVDB_ROWS_MAX && s->words >= -TEXT_WORDS_MAX &&
                s->words <= TEXT_WORDS_MAX,
            "the rows or words of a segment are out of range");
    REQUIRE(s->n_blocks == (s->n_terms + (uint64_t)TEXT_BLOCK_TERMS - 1) / TEXT_BLOCK_TERMS,
            "the head of words has another number of blocks");
    s->lengths = read_bytes(&r, (size_t)s->n_docs * s->length_width);
    s->slots = read_bytes(&r, s->is_dense ? 0 : (size_t)s->n_docs * 4);
    s->left = read_bytes(&r, (size_t)s->n_left * 4);
    s->blocks = read_bytes(&r, (size_t)s->n_blocks * 16);
    s->first_terms = read_bytes(&r, s->first_terms_size);
    REQUIRE(r.ok && r.left == 0, "the head of words has another size");
    return FVDB_OK;
}

/* Slots ascend and are in range; all documents of a segment with a table of slots, and the first and last of a dense one,
 * have text.  The index of blocks ascends within the streams. */
static fvdb_status check_head(const text_segment *s, fvdb_diag *diag) {
    uint32_t rows = 0;
    REQUIRE(!s->is_dense || (uint64_t)s->first_slot + s->n_docs <= FVDB_ROWS_MAX, "a slot is out of range");
    for (uint32_t doc = 0; doc < s->n_docs; doc++) {
        rows += segment_length(s, doc) != 0;
        if (s->is_dense) continue;
        const uint32_t slot = segment_slot(s, doc);
        REQUIRE(slot < FVDB_ROWS_MAX && (doc == 0 || segment_slot(s, doc - 1) < slot), "slots do not ascend");
    }
    REQUIRE(rows == s->n_rows, "the number of rows is not that of lengths");
    REQUIRE(s->n_docs == 0 || (segment_length(s, 0) && segment_length(s, s->n_docs - 1)),
            "the first or last document has no text");
    REQUIRE(s->is_dense || s->n_rows == s->n_docs, "a document has no text");
    for (uint32_t i = 0; i < s->n_left; i++) {
        const uint32_t slot = segment_left(s, i);
        REQUIRE(slot < FVDB_ROWS_MAX && (i == 0 || segment_left(s, i - 1) < slot), "slots that left do not ascend");
    }
    static const char *const message = "the index of the dictionary does not ascend";
    for (uint32_t field = 0; field < 4; field++) {
        const uint32_t end = field < TEXT_STREAMS ? s->streams[field].size : s->first_terms_size;
        uint32_t last = 0;
        for (uint32_t i = 0; i < s->n_blocks; i++) {
            const uint32_t at = block_field(s, i, field);
            REQUIRE(at >= last && at <= end && (i || at == 0), message);
            last = at;
        }
    }
    for (uint32_t i = 0; i < s->n_blocks; i++) {
        uint32_t size, before_size = 0;
        const uint8_t *term = block_first_term(s, i, &size);
        const uint8_t *before = i ? block_first_term(s, i - 1, &before_size) : term;
        REQUIRE(size > 0 && size <= FVDB_TEXT_TERM_BYTES_MAX, "a first term is empty or too long");
        REQUIRE(i == 0 || compare_bytes(before, before_size, term, size) < 0, "first terms do not ascend");
    }
    return FVDB_OK;
}

fvdb_status segment_open(uint8_t *head, uint64_t size, text_segment **out, fvdb_diag *diag) {
    text_segment *s = size <= UINT32_MAX ? mem_alloc_array(1, sizeof *s) : NULL;
    if (!s) {
        mem_free(head);
        return FAIL_MEMORY(diag);
    }
    s->uses = 1;
    s->head = head;
    s->head_size = (uint32_t)size;
    fvdb_status status = read_head(s, diag);
    if (status == FVDB_OK) status = check_head(s, diag);
    if (status == FVDB_OK) {
        s->alive = mem_alloc_array((s->n_docs + 63u) / 64, sizeof *s->alive);
        if (!s->alive) status = FAIL_MEMORY(diag);
    }
    if (status != FVDB_OK) {
        segment_drop(s);
        return status;
    }
    for (uint32_t doc = 0; doc < s->n_docs; doc++) {
        const uint32_t length = segment_length(s, doc);
        s->longest = max_u32(s->longest, length);
        if (length) bit_set(s->alive, doc);
    }
    s->alive_rows = s->n_rows;
    *out = s;
    return FVDB_OK;
}

void segment_drop(text_segment *s) {
    if (!s || __atomic_sub_fetch(&s->uses, 1, __ATOMIC_ACQ_REL)) return;
    for (uint32_t i = 0; i < TEXT_STREAMS; i++) {
        mem_free(s->streams[i].bytes);
        mem_free(s->streams[i].came);
    }
    mem_free(s->head);
    mem_free(s->alive);
    mem_free(s);
}

uint64_t segment_resident(const text_segment *s) {
    return sizeof *s + s->head_size + (s->n_docs + 63u) / 64 * sizeof *s->alive;
}

uint32_t segment_find(const text_segment *s, uint32_t slot) {
    uint32_t doc;
    if (s->n_docs == 0 || slot < segment_slot(s, 0) || slot >= segment_slots_end(s)) return TEXT_NONE;
    if (s->is_dense) {
        doc = slot - s->first_slot;
    } else {
        uint32_t low = 0, high = s->n_docs;
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (segment_slot(s, middle) < slot) low = middle + 1;
            else high = middle;
        }
        if (segment_slot(s, low) != slot) return TEXT_NONE;
        doc = low;
    }
    return bit_get(s->alive, doc) ? doc : TEXT_NONE;
}

/* ---- dictionary ---- */

int compare_bytes(const uint8_t *a, uint32_t a_size, const uint8_t *b, uint32_t b_size) {
    const int order = memcmp(a, b, min_u32(a_size, b_size));
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

const uint8_t *block_first_term(const text_segment *s, uint32_t block, uint32_t *size) {
    const uint32_t at = block_field(s, block, 3);
    *size = (block + 1 < s->n_blocks ? block_field(s, block + 1, 3) : s->first_terms_size) - at;
    return s->first_terms + at;
}

static void enter_block(term_cursor *c, uint32_t block) {
    const text_segment *s = c->s;
    const text_stream *dictionary = &s->streams[TEXT_DICTIONARY];
    const uint32_t at = block_field(s, block, 0);
    const uint32_t end = block + 1 < s->n_blocks ? block_field(s, block + 1, 0) : dictionary->size;
    const uint8_t *first = block_first_term(s, block, &c->size);
    memcpy(c->term, first, c->size);
    c->r = reader_over(dictionary->bytes + at, end - at);
    c->info = (term_info){.postings_at = block_field(s, block, 1), .positions_at = block_field(s, block, 2)};
}

/* An entry of the dictionary as it is written. */
typedef struct dictionary_entry {
    uint64_t shared, more; /* bytes of the term that are those of the one before, and others, `suffix` */
    const uint8_t *suffix;
    uint64_t n, left, postings, positions;
} dictionary_entry;

/* One whose numbers have one byte each, as most have; false, and nothing read, for others. */
static inline bool read_short_entry(reader *r, dictionary_entry *e) {
    const uint8_t *p = r->at;
    if (!r->ok || r->left < 6 || (p[0] | p[1]) >= 128 || r->left < 6u + p[1]) return false;
    const uint32_t size = 6u + p[1], numbers = (uint32_t)load_le(p + size - 4, 4);
    if (numbers & 0x80808080u) return false;
    *e = (dictionary_entry){p[0], p[1], p + 2, numbers & 127, numbers >> 8 & 127, numbers >> 16 & 127, numbers >> 24};
    r->at += size;
    r->left -= size;
    return true;
}

static bool read_any_entry(reader *r, dictionary_entry *e) {
    e->shared = read_varint(r);
    e->more = read_varint(r);
    e->suffix = e->more <= FVDB_TEXT_TERM_BYTES_MAX ? read_bytes(r, (size_t)e->more) : NULL;
    e->n = read_varint(r);
    e->left = read_varint(r);
    e->postings = read_varint(r);
    e->positions = read_varint(r);
    return e->suffix && r->ok;
}

/* The entry at the reader: after the one before it. */
static bool read_entry(term_cursor *c) {
    const text_segment *s = c->s;
    dictionary_entry e;
    if (!read_short_entry(&c->r, &e) && !read_any_entry(&c->r, &e)) return false;
    term_info *info = &c->info;
    const uint64_t postings_at = (uint64_t)info->postings_at + info->postings_size;
    const uint64_t positions_at = (uint64_t)info->positions_at + info->positions_size;
    if (e.shared > c->size || e.shared + e.more > FVDB_TEXT_TERM_BYTES_MAX || e.shared + e.more == 0) return false;
    /* All bytes that they share, since terms_seek compares no others. */
    if (e.shared < c->size && e.more && e.suffix[0] == c->term[e.shared]) return false;
    /* Compared with what is left: a sum with a number of 64 bits may wrap. */
    const uint32_t postings_end = s->streams[TEXT_POSTINGS].size, positions_end = s->streams[TEXT_POSITIONS].size;
    if (e.n > s->n_docs || postings_at > postings_end || e.postings > postings_end - postings_at) return false;
    if (positions_at > positions_end || e.positions > positions_end - positions_at) return false;
    /* Most suffixes are short: a copy of one size takes no call. */
    if (e.more <= TEXT_SLACK) memcpy(c->term + e.shared, e.suffix, TEXT_SLACK);
    else memcpy(c->term + e.shared, e.suffix, (size_t)e.more);
    c->shared = (uint32_t)e.shared;
    c->size = (uint32_t)(e.shared + e.more);
    *info = (term_info){.n = (uint32_t)e.n,
                        .left = (int64_t)(e.left >> 1) ^ -(int64_t)(e.left & 1),
                        .postings_at = (uint32_t)postings_at,
                        .postings_size = (uint32_t)e.postings,
                        .positions_at = (uint32_t)positions_at,
                        .positions_size = (uint32_t)e.positions};
    return info->left > -(int64_t)FVDB_ROWS_MAX && info->left < (int64_t)FVDB_ROWS_MAX;
}

void terms_begin(term_cursor *c, const text_segment *s) {
    c->s = s;
    c->number = TEXT_NONE;
    c->is_bad = false;
}

bool terms_next(term_cursor *c) {
    const uint32_t next = c->number + 1; /* 0 at first */
    if (c->is_bad || next >= c->s->n_terms) return false;
    c->number = next;
    if (next % TEXT_BLOCK_TERMS == 0) enter_block(c, next / TEXT_BLOCK_TERMS);
    c->is_bad = !read_entry(c);
    return !c->is_bad;
}

uint32_t terms_block(const text_segment *s, const uint8_t *term, uint32_t size) {
    uint32_t low = 0, high = s->n_blocks;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        uint32_t first_size;
        const uint8_t *first = block_first_term(s, middle, &first_size);
        if (compare_bytes(first, first_size, term, size) <= 0) low = middle + 1;
        else high = middle;
    }
    return low ? low - 1 : TEXT_NONE;
}

bool terms_seek(term_cursor *c, const text_segment *s, const uint8_t *term, uint32_t size) {
    const uint32_t block = terms_block(s, term, size);
    uint32_t same = 0; /* bytes that the entry before, which is below the term, shares with it */
    terms_begin(c, s);
    c->number = block == TEXT_NONE ? TEXT_NONE : block * TEXT_BLOCK_TERMS - 1;
    while (terms_next(c)) {
        if (c->number % TEXT_BLOCK_TERMS == 0) same = 0;
        else if (c->shared > same) continue; /* it differs from the term where the one before does */
        else if (c->shared < same) return true;
        while (same < c->size && same < size && c->term[same] == term[same]) same++;
        if (same == size || (same < c->size && c->term[same] > term[same])) return true;
    }
    return false;
}

/* ---- postings ---- */

bool postings_open(posting_cursor *c, const text_segment *s, const term_info *info) {
    c->s = s;
    c->n = info->n;
    c->n_blocks = (info->n + TEXT_BLOCK_POSTINGS - 1) / TEXT_BLOCK_POSTINGS;
    c->block = TEXT_NONE;
    c->count = 0;
    c->positions_at = info->positions_at;
    c->positions_size = info->positions_size;
    const uint64_t table = c->n_blocks > 1 ? (uint64_t)c->n_blocks * SKIP_BYTES : 0;
    if (table > info->postings_size) {
        c->n = c->n_blocks = 0;
        return false;
    }
    c->skips = s->streams[TEXT_POSTINGS].bytes + info->postings_at;
    c->bytes = c->skips + table;
    c->size = info->postings_size - (uint32_t)table;
    return true;
}

static inline uint64_t load_word(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

/* n numbers of `width` bits, the lowest bits first; reads up to 7 bytes past them. */
static void unpack_few(const uint8_t *p, uint32_t n, uint32_t width, uint32_t *out) {
    const uint64_t mask = (UINT64_C(1) << width) - 1;
    for (uint32_t i = 0, bit = 0; i < n; i++, bit += width)
        out[i] = (uint32_t)(load_word(p + bit / 8) >> bit % 8 & mask);
}

/* Four numbers side by side, which compilers make one register of. */
typedef uint32_t lanes __attribute__((vector_size(16)));

static inline lanes load_lanes(const uint8_t *p) {
    lanes v;
    memcpy(&v, p, sizeof v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (uint32_t i = 0; i < 4; i++) v[i] = __builtin_bswap32(v[i]);
#endif
    return v;
}

static inline void store_lanes(uint32_t *p, lanes v) { memcpy(p, &v, sizeof v); }

/* The numbers of a full block: four streams of `width` bits a number, side by side (Lemire & Boytsov 2015).  Inlined for each
 * width, so that shifts and places are constants. */
static inline __attribute__((always_inline)) void unpack_width(const uint8_t *p, uint32_t width, uint32_t *out) {
    const uint32_t bits = width == 32 ? UINT32_MAX : (1u << width) - 1;
    const lanes mask = {bits, bits, bits, bits};
#pragma GCC unroll 32
    for (uint32_t i = 0; i < TEXT_BLOCK_POSTINGS / 4; i++) {
        const uint32_t word = i * width / 32, shift = i * width % 32;
        lanes v = load_lanes(p + (size_t)16 * word) >> shift;
        if (shift + width > 32) v |= load_lanes(p + (size_t)16 * (word + 1)) << (32 - shift);
        store_lanes(out + (size_t)4 * i, v & mask);
    }
}

static void unpack(const uint8_t *p, uint32_t n, uint32_t width, uint32_t *out) {
    if (width == 0) {
        memset(out, 0, n * sizeof *out);
        return;
    }
    if (n < TEXT_BLOCK_POSTINGS) {
        unpack_few(p, n, width, out);
        return;
    }
#define WIDTH(w) \
    case w: unpack_width(p, w, out); break
    switch (width) {
        WIDTH(1);
        WIDTH(2);
        WIDTH(3);
        WIDTH(4);
        WIDTH(5);
        WIDTH(6);
        WIDTH(7);
        WIDTH(8);
        WIDTH(9);
        WIDTH(10);
        WIDTH(11);
        WIDTH(12);
    default: unpack_width(p, width, out);
    }
#undef WIDTH
}

static uint32_t skip_field(const posting_cursor *c, uint32_t block, uint32_t field) {
    return (uint32_t)load_le(c->skips + (size_t)block * SKIP_BYTES + (size_t)field * 4, 4);
}

/* Steps to documents, from `first` on; false: past the last one. */
static bool add_steps(uint32_t *docs, uint32_t n, uint32_t first, uint32_t width, uint32_t end) {
    if (width > 24) {
        uint64_t doc = first;
        for (uint32_t i = 0; i < n; i++) {
            doc += docs[i];
            docs[i] = (uint32_t)doc++;
        }
        return doc <= end;
    }
    /* Below 2^31 + 128 * 2^24: nothing wraps.  Each is one more than the step from the one before, the first one less. */
    const lanes zero = {0}, one = {1, 1, 1, 1};
    lanes last = {first - 1, first - 1, first - 1, first - 1};
    uint32_t i = 0;
#pragma GCC unroll 8
    for (; i < n / 4 * 4; i += 4) {
        lanes v;
        memcpy(&v, docs + i, sizeof v);
        v += one;
        v += __builtin_shufflevector(zero, v, 0, 4, 5, 6);
        v += __builtin_shufflevector(zero, v, 0, 1, 4, 5);
        v += last;
        last = __builtin_shufflevector(v, v, 3, 3, 3, 3);
        store_lanes(docs + i, v);
    }
    for (; i < n; i++) docs[i] += (i ? docs[i - 1] : first - 1) + 1;
    return docs[n - 1] < end;
}

static bool load_docs(posting_cursor *c, uint32_t block) {
    const uint32_t begin = block ? skip_field(c, block - 1, 1) : 0;
    const uint32_t end = c->n_blocks > 1 ? skip_field(c, block, 1) : c->size;
    const uint32_t n = block + 1 < c->n_blocks ? TEXT_BLOCK_POSTINGS : c->n - block * TEXT_BLOCK_POSTINGS;
    if (begin > end || end > c->size || end - begin < 2) return false;
    const uint8_t *p = c->bytes + begin;
    const uint32_t width = p[0], freq_width = p[1];
    const uint32_t docs_size = (n * width + 7) / 8, freqs_size = (n * freq_width + 7) / 8;
    if (width > 32 || freq_width > 31 || end - begin != 2 + docs_size + freqs_size) return false;
    unpack(p + 2, n, width, c->docs);
    c->freq_at = p + 2 + docs_size;
    c->freq_width = freq_width;
    const uint32_t first = block ? skip_field(c, block - 1, 0) + 1 : 0;
    if (first > c->s->n_docs || n == 0) return false;
    if (!add_steps(c->docs, n, first, width, c->s->n_docs)) return false;
    /* Documents ascend from block to block only where the table of skips tells the truth. */
    if (c->n_blocks > 1 && c->docs[n - 1] != skip_field(c, block, 0)) return false;
    c->count = n;
    return true;
}

bool postings_load(posting_cursor *c, uint32_t block) {
    c->block = block;
    c->count = c->freq_width = 0;
    c->has_freqs = false;
    const bool is_sound = load_docs(c, block);
    for (uint32_t i = c->count; i < TEXT_BLOCK_POSTINGS + POSTING_STEP; i++) c->docs[i] = INT32_MAX;
    return is_sound;
}

void postings_freqs(posting_cursor *c) {
    if (c->has_freqs) return;
    unpack(c->freq_at, c->count, c->freq_width, c->freqs);
    memset(c->freqs + c->count, 0, (TEXT_BLOCK_POSTINGS - c->count) * sizeof *c->freqs);
#pragma GCC unroll 32
    for (uint32_t i = 0; i < TEXT_BLOCK_POSTINGS; i++) c->freqs[i]++;
    c->has_freqs = true;
}

uint32_t postings_freq(const posting_cursor *c, uint32_t at) {
    const uint32_t width = c->freq_width;
    if (width == 0) return 1;
    if (c->has_freqs) return c->freqs[at];
    const uint64_t mask = (UINT64_C(1) << width) - 1;
    if (c->count < TEXT_BLOCK_POSTINGS)
        return 1 + (uint32_t)(load_word(c->freq_at + (size_t)at * width / 8) >> at * width % 8 & mask);
    const uint32_t bit = at / 4 * width;
    const uint8_t *p = c->freq_at + (size_t)16 * (bit / 32) + (size_t)4 * (at % 4);
    uint64_t word = load_le(p, 4);
    if (bit % 32 + width > 32) word |= load_le(p + 16, 4) << 32;
    return 1 + (uint32_t)(word >> bit % 32 & mask);
}

reader postings_positions(const posting_cursor *c) {
    const uint32_t begin = c->block ? skip_field(c, c->block - 1, 2) : 0;
    const uint32_t end = c->n_blocks > 1 ? skip_field(c, c->block, 2) : c->positions_size;
    if (begin > end || end > c->positions_size) return reader_over(NULL, 0);
    return reader_over(c->s->streams[TEXT_POSITIONS].bytes + c->positions_at + begin, end - begin);
}

/* ---- validate ---- */

static fvdb_status validate_block(const posting_cursor *c, uint32_t block, fvdb_diag *diag) {
    const text_segment *s = c->s;
    uint32_t least[SKIP_CLASSES] = {0}, most = 0, last = 0;
    reader positions = postings_positions(c);
    for (uint32_t i = 0; i < c->count; i++) {
        const uint32_t doc = c->docs[i], freq = c->freqs[i], length = segment_length(s, doc);
        REQUIRE(length > freq, "a document has a word more often than words");
        const uint32_t at = min_u32(freq, SKIP_CLASSES) - 1, capped = min_u32(length, 255);
        least[at] = least[at] ? min_u32(least[at], capped) : capped;
        most = max_u32(most, freq);
        last = doc;
        uint64_t position = 0;
        for (uint32_t j = 0; j < freq && c->positions_size; j++) {
            const uint64_t step = read_varint(&positions);
            REQUIRE(positions.ok && (j == 0 || step > 0), "positions are cut off or do not ascend");
            position += step;
            REQUIRE(position <= UINT32_MAX, "a position is out of range");
        }
    }
    REQUIRE(positions.left == 0, "bytes follow the positions");
    if (c->n_blocks == 1) return FVDB_OK;
    const uint8_t *skip = c->skips + (size_t)block * SKIP_BYTES;
    REQUIRE(load_le(skip, 4) == last, "a skip names another document");
    REQUIRE(c->positions_size || load_le(skip + SKIP_POSITIONS, 4) == 0, "a skip has positions of a stem");
    for (uint32_t i = 0; i < SKIP_CLASSES; i++)
        REQUIRE(skip[SKIP_LENGTHS + i] == least[i], "a skip has another length");
    REQUIRE(load_le(skip + 16, 4) == most, "a skip has another frequency");
    return FVDB_OK;
}

static fvdb_status validate_postings(const term_cursor *t, posting_cursor *c, fvdb_diag *diag) {
    REQUIRE(postings_open(c, t->s, &t->info), "a table of skips is cut off");
    uint32_t end = 0;
    for (uint32_t block = 0; block < c->n_blocks; block++) {
        REQUIRE(postings_load(c, block), "a block of postings is malformed");
        postings_freqs(c);
        end = c->n_blocks > 1 ? skip_field(c, block, 1) : c->size;
        TRY(validate_block(c, block, diag));
    }
    REQUIRE(end == c->size, "bytes follow the postings");
    REQUIRE(c->n_blocks < 2 || skip_field(c, c->n_blocks - 1, 2) == c->positions_size, "bytes follow the positions");
    REQUIRE(c->n_blocks > 0 || t->info.positions_size == 0, "there are positions without postings");
    REQUIRE(c->n_blocks == 0 || c->positions_size || term_is_stem(t->term, t->size), "a word has no positions");
    return FVDB_OK;
}

fvdb_status segment_validate(const text_segment *s, fvdb_diag *diag) {
    uint8_t before[FVDB_TEXT_TERM_BYTES_MAX];
    uint32_t before_size = 0, terms = 0;
    uint64_t postings = 0;
    term_cursor t;
    posting_cursor c;
    terms_begin(&t, s);
    for (; terms_next(&t); terms++) {
        REQUIRE(terms == 0 || compare_bytes(before, before_size, t.term, t.size) < 0, "terms do not ascend");
        if (terms % TEXT_BLOCK_TERMS == 0) {
            const uint32_t block = terms / TEXT_BLOCK_TERMS;
            uint32_t size;
            const uint8_t *first = block_first_term(s, block, &size);
            REQUIRE(compare_bytes(first, size, t.term, t.size) == 0, "a block begins with another term");
            if (block) REQUIRE(block_field(s, block, 1) == t.info.postings_at, "postings of a block begin elsewhere");
            if (block) REQUIRE(block_field(s, block, 2) == t.info.positions_at, "positions of a block begin elsewhere");
        }
        REQUIRE(t.info.n || t.info.left, "a term stands for nothing");
        TRY(validate_postings(&t, &c, diag));
        if ((terms + 1) % TEXT_BLOCK_TERMS == 0 || terms + 1 == s->n_terms) {
            REQUIRE(t.r.left == 0, "bytes follow a block of terms");
            const uint32_t block = terms / TEXT_BLOCK_TERMS + 1;
            const bool is_last = block == s->n_blocks;
            const uint32_t end = is_last ? s->streams[TEXT_POSTINGS].size : block_field(s, block, 1);
            const uint32_t positions = is_last ? s->streams[TEXT_POSITIONS].size : block_field(s, block, 2);
            REQUIRE(end == t.info.postings_at + t.info.postings_size, "postings of a block end elsewhere");
            REQUIRE(positions == t.info.positions_at + t.info.positions_size, "positions of a block end elsewhere");
        }
        postings += t.info.n;
        memcpy(before, t.term, t.size);
        before_size = t.size;
    }
    REQUIRE(!t.is_bad && terms == s->n_terms, "an entry of the dictionary is malformed");
    REQUIRE(postings == s->n_postings, "there is another number of postings");
    REQUIRE(s->n_terms || !(s->streams[0].size || s->streams[1].size || s->streams[2].size), "bytes without terms");
    return FVDB_OK;
}
