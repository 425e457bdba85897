/* Properties of characters, from one version of Unicode.  native/make_unicode.py writes the tables, unicode_tables.c.
 *
 * A table has three stages: the upper bits of a character choose a block of the second one, that and the next bits a block of
 * the third one, which has the values.  Equal blocks are stored once. */
#ifndef FVDB_UNICODE_H
#define FVDB_UNICODE_H

#include "../base/base.h"

#define UNICODE_END 0x110000u /* one past the last character */

/* Word_Break of UAX #29.  The last two are Other and ALetter that are Extended_Pictographic, too. */
enum {
    BREAK_OTHER,
    BREAK_CR,
    BREAK_LF,
    BREAK_NEWLINE,
    BREAK_EXTEND,
    BREAK_ZWJ,
    BREAK_FORMAT,
    BREAK_KATAKANA,
    BREAK_HEBREW,
    BREAK_LETTER,
    BREAK_SINGLE_QUOTE,
    BREAK_DOUBLE_QUOTE,
    BREAK_MID_NUM_LET,
    BREAK_MID_LETTER,
    BREAK_MID_NUM,
    BREAK_NUMERIC,
    BREAK_EXTEND_NUM_LET,
    BREAK_REGIONAL,
    BREAK_SPACE,
    BREAK_PICTOGRAPH,
    BREAK_LETTER_PICTOGRAPH,
};

/* What a character is to a search: part of no word, of a word, or a word with each neighbour of the same kind. */
enum { KIND_NONE, KIND_WORD, KIND_EAST, KIND_SOUTHEAST };

/* The class of a character: Word_Break in 5 bits, its kind in 2, and a bit for marks: those that, folded, may change their
 * place or compose with what stands before them. */
static inline uint32_t class_break(uint8_t class) { return class & 31; }
static inline uint32_t class_kind(uint8_t class) { return class >> 5 & 3; }
static inline bool class_is_mark(uint8_t class) { return class >> 7; }

/* ---- unicode_tables.c ---- */

extern const char unicode_version[];

#define UNICODE_CLASS_LOW 4
#define UNICODE_CLASS_MIDDLE 5
extern const uint8_t unicode_class_top[], unicode_class_leaves[];
extern const uint16_t unicode_class_middle[];

#define UNICODE_FOLD_LOW 4
#define UNICODE_FOLD_MIDDLE 5
extern const uint8_t unicode_fold_top[];
extern const uint16_t unicode_fold_middle[], unicode_fold_leaves[], unicode_fold_pool[];

extern const uint32_t unicode_n_pairs, unicode_pairs[]; /* first, second and what they compose to, in this order */
extern const uint16_t unicode_by_composed[];            /* places of pairs in the order of what they compose to */

/* Runs of characters of equal Canonical_Combining_Class: start << 8 | class, and the length without the first one. */
extern const uint32_t unicode_n_runs, unicode_run_starts[];
extern const uint8_t unicode_run_lengths[];

/* The class of a character below UNICODE_END. */
static inline uint8_t unicode_class(uint32_t code) {
    const uint32_t block = unicode_class_top[code >> (UNICODE_CLASS_LOW + UNICODE_CLASS_MIDDLE)]
                           << UNICODE_CLASS_MIDDLE;
    const uint32_t middle = block | (code >> UNICODE_CLASS_LOW & ((1u << UNICODE_CLASS_MIDDLE) - 1));
    return unicode_class_leaves[(uint32_t)unicode_class_middle[middle] << UNICODE_CLASS_LOW |
                                (code & ((1u << UNICODE_CLASS_LOW) - 1))];
}

/* ---- unicode.c ---- */

#define UNICODE_FOLD_MAX 18u      /* most characters of one folded (U+FDFA) */
#define UNICODE_DECOMPOSED_MAX 3u /* most characters that a folded one decomposes to */
#define UNICODE_COMPOSE_MAX 280u  /* most characters of one call of unicode_compose */

/* Writes what NFKC_Casefold makes of a character, room for UNICODE_FOLD_MAX; returns how many there are, perhaps none. */
uint32_t unicode_fold(uint32_t code, uint32_t *out);

/* Brings n <= UNICODE_COMPOSE_MAX folded characters into Normalization Form C; returns how many there are then.  codes: room
 * for UNICODE_DECOMPOSED_MAX x n. */
uint32_t unicode_compose(uint32_t *codes, uint32_t n);

#endif
