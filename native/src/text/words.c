/* Words of a text: runs of ASCII letters and digits, in lower case. */
#include "words.h"

static uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

static bool is_word_byte(uint8_t c) { return (lower(c) >= 'a' && lower(c) <= 'z') || (c >= '0' && c <= '9'); }

uint32_t words_fold(const uint8_t *word, size_t n, uint8_t *out) {
    uint32_t size = 0;
    for (size_t i = 0; i < n && size < WORD_BYTES_MAX; i++)
        if (word[i] < 128) out[size++] = lower(word[i]);
    return size;
}

void words_begin(fvdb_words *it, const uint8_t *text, size_t n) {
    it->text = text;
    it->size = n;
    it->at = it->segment_end = 0;
    it->position = 0;
    it->is_covered = false;
}

bool words_next(fvdb_words *it, fvdb_word *word) {
    size_t start = it->at;
    while (start < it->size && !is_word_byte(it->text[start])) start++;
    size_t end = start;
    while (end < it->size && is_word_byte(it->text[end])) end++;
    it->at = end;
    if (start == end) return false;
    *word = (fvdb_word){it->folded, words_fold(it->text + start, end - start, it->folded), it->position++, start, end};
    return true;
}
