/* Contract of words.c: the words of a text, as the index of words and its queries see them.  It depends on base alone.
 *
 * A text is UTF-8 bytes that nobody checked: a byte that is part of no character separates words, and is never an error.
 *
 * Words are the segments of UAX #29 that have a letter, a digit or a pictograph.  Where a writing system puts no spaces between
 * words, each two neighbouring characters are a word, overlapping: Han, Kana and Hangul, and Thai, Lao, Khmer, Myanmar and the
 * other scripts of line break class SA; a character that stands alone is a word.  docs/decisions/0024-words.md has the reasons.
 *
 * A term is a word folded: NFKC_Casefold of UAX #15 and #44 (full case folding, compatibility forms, NFC), and one form for
 * each quotation mark within words.  Folding a term gives the same term.  Terms are UTF-8, never empty, of at most
 * WORD_BYTES_MAX bytes; of a longer word the term is its beginning, cut between two characters.
 *
 * Nothing is allocated; the same bytes give the same words everywhere. */
#ifndef FVDB_WORDS_H
#define FVDB_WORDS_H

#include "../base/base.h"

#define WORD_BYTES_MAX FVDB_WORD_BYTES_MAX

/* One word.  It is valid until the next call with the same iterator. */
typedef struct fvdb_word {
    const uint8_t *term; /* the folded bytes, in the iterator or in the text */
    uint32_t size;       /* 1 .. WORD_BYTES_MAX */
    uint32_t position;   /* 0, 1, 2 ... in the order of the text; words next to each other differ by 1 */
    size_t start, end;   /* bytes of the text that the word covers; both rise from word to word, or stay */
} fvdb_word;

/* Words of one text, in order.  On the caller's stack; its content is private to words.c. */
typedef struct fvdb_words {
    const uint8_t *text;
    size_t size;        /* bytes of the text */
    size_t at;          /* where the next word is looked for */
    size_t segment_end; /* end of the segment of UAX #29 that `at` is in; `at` where it is between two */
    size_t covered_end; /* end of the character at `at` where the last word had it as its second one; else 0 */
    uint32_t position;  /* of the next word */
    uint8_t folded[WORD_BYTES_MAX + 1 + 8]; /* the term, and room behind it to write eight bytes at once */
} fvdb_words;

/* Begins with a text of n bytes, which stay where they are until the last word was read.  text may be NULL for n = 0. */
void words_begin(fvdb_words *it, const uint8_t *text, size_t n);

/* The next word; false after the last one.  A text of n bytes has at most n words. */
bool words_next(fvdb_words *it, fvdb_word *word);

/* End of the segment of UAX #29 that begins at `at` < n, a boundary. */
size_t words_segment_end(const uint8_t *text, size_t n, size_t at);

/* Folds n bytes of one word into `out`, room for WORD_BYTES_MAX bytes; gives the term's size, 0 where nothing is left.  Bytes
 * that are not UTF-8 are left out. */
uint32_t words_fold(const uint8_t *word, size_t n, uint8_t *out);

#endif
