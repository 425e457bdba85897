/* ABI entry points for texts: check the arguments, delegate, copy out. */
#include "text/unicode.h"
#include "text/words.h"

/* ---- words ---- */

const char *fvdb_unicode_version(void) { return unicode_version; }

static fvdb_status check_text(uint64_t n, fvdb_diag *diag) {
    if (n <= FVDB_TEXT_BYTES_MAX) return FVDB_OK;
    return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the text is too long", 0, FVDB_TEXT_BYTES_MAX, n);
}

fvdb_status fvdb_text_words(const uint8_t *text, uint64_t n, uint32_t capacity, uint64_t term_capacity,
                            uint8_t *out_terms, uint64_t *out_term_ends, uint32_t *out_starts, uint32_t *out_ends,
                            uint32_t *out_count, uint64_t *out_term_bytes, fvdb_diag *diag) {
    TRY(check_text(n, diag));
    fvdb_words it;
    fvdb_word word;
    uint32_t count = 0;
    uint64_t bytes = 0;
    words_begin(&it, text, (size_t)n);
    for (; words_next(&it, &word); count++) {
        const uint64_t end = bytes + word.size;
        if (count < capacity && end <= term_capacity) {
            memcpy(out_terms + bytes, word.term, word.size);
            out_term_ends[count] = end;
            out_starts[count] = (uint32_t)word.start;
            out_ends[count] = (uint32_t)word.end;
        }
        bytes = end;
    }
    *out_count = count;
    *out_term_bytes = bytes;
    if (count > capacity) return FAIL_AT(diag, FVDB_ERR_BUFFER, "more words than entries", 0, count, capacity);
    if (bytes <= term_capacity) return FVDB_OK;
    return FAIL_AT(diag, FVDB_ERR_BUFFER, "the terms take more bytes than there are", 0, bytes, term_capacity);
}

fvdb_status fvdb_text_segments(const uint8_t *text, uint64_t n, uint32_t capacity, uint32_t *out_ends,
                               uint32_t *out_count, fvdb_diag *diag) {
    TRY(check_text(n, diag));
    uint32_t count = 0;
    for (size_t at = 0; at < n; count++) {
        at = words_segment_end(text, (size_t)n, at);
        if (count < capacity) out_ends[count] = (uint32_t)at;
    }
    *out_count = count;
    if (count <= capacity) return FVDB_OK;
    return FAIL_AT(diag, FVDB_ERR_BUFFER, "more segments than entries", 0, count, capacity);
}
