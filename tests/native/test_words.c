/* Words of texts: the short way of ASCII and the long one, folding, long words, and bytes that nobody checked, read up to a page
 * that nobody may touch. */
#include "check.h"
#include "data.h"
#include "text/unicode.h"
#include "text/words.h"
#ifndef _WIN32
#include <sys/mman.h>
#include <unistd.h>
#endif

/* The terms of a text, each with a bar behind it. */
static const char *terms_of(const char *text, size_t n) {
    static char out[1 << 16];
    size_t size = 0;
    fvdb_words it;
    fvdb_word word;
    uint32_t position = 0;
    for (words_begin(&it, (const uint8_t *)text, n); words_next(&it, &word); size += word.size + 1) {
        CHECK(word.position == position++);
        memcpy(out + size, word.term, word.size);
        out[size + word.size] = '|';
    }
    out[size] = 0;
    return out;
}
#define TERMS(literal, expected) CHECK(strcmp(terms_of(literal, sizeof(literal) - 1), expected) == 0)

static void test_ascii(void) {
    TERMS("", "");
    TERMS(" \t\r\n.,;:'!", "");
    TERMS("The quick (\"brown\") fox can't jump 32.3 feet, right?", "the|quick|brown|fox|can't|jump|32.3|feet|right|");
    TERMS("1,000;5 a,b a:b 1:2 a.b.c e.g. x.1 .5 5. 'tis dogs' a''b",
          "1,000;5|a|b|a:b|1|2|a.b.c|e.g|x|1|5|5|tis|dogs|a|b|");
    TERMS("foo_bar _x x_ _ __ _1 a_.b", "foo_bar|_x|x_|_1|a_|b|");
    TERMS("user@example.com C++ -1 abcdefgh ABCDEFGHIJKLMNOP 0123456789",
          "user|example.com|c|1|abcdefgh|abcdefghijklmnop|0123456789|");
    TERMS("a\0b", "a|b|");
}

/* Around the end of the eight bytes that are read at once, every byte at every place. */
static void test_every_byte_after_ascii(void) {
    for (size_t before = 1; before < 20; before++) {
        for (uint32_t byte = 1; byte < 256; byte++) {
            char text[32], want[64];
            memset(text, 'q', sizeof text);
            text[before] = (char)byte;
            const bool is_word = byte < 128 && (strchr("_'.:", (int)byte) || (byte >= '0' && byte <= '9') ||
                                                (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z'));
            size_t at = 0;
            for (size_t i = 0; i < 24; i++) {
                char c = text[i];
                if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
                want[at++] = i != before || is_word ? c : '|';
            }
            memcpy(want + at, "|", 2);
            CHECK(strcmp(terms_of(text, 24), want) == 0);
        }
    }
}

static void test_other_scripts(void) {
    TERMS("na\u00efve Stra\u00dfe \ufb01ne \u338f", "na\u00efve|strasse|fine|kg|");
    TERMS("can\u2019t caf\u00e9 cafe\u0301", "can't|caf\u00e9|caf\u00e9|");
    TERMS("\u65e5\u672c\u8a9e", "\u65e5\u672c|\u672c\u8a9e|");
    TERMS("\u65e5, \u672c", "\u65e5|\u672c|");
    TERMS("\u6771\u4eac2024\u5e74 2024\ub144abc", "\u6771\u4eac|2024|\u5e74|2024|\ub144|abc|");
    TERMS("\ud55c\uad6d\uc5b4", "\ud55c\uad6d|\uad6d\uc5b4|");
    TERMS("\u1112\u1161\u11ab\u1100\u116e\u11a8", "\ud55c\uad6d|"); /* the same, decomposed */
    TERMS("\u0e44\u0e17\u0e22", "\u0e44\u0e17|\u0e17\u0e22|");
    TERMS("\uff76\uff9e\uff77\uff9e", "\u30ac\u30ae|"); /* narrow forms with their marks apart */
    TERMS("\u05e6\u05d4\u05f4\u05dc \u05e6\u05d4\"\u05dc", "\u05e6\u05d4\"\u05dc|\u05e6\u05d4\"\u05dc|");
    TERMS("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "\U0001f1e9\U0001f1ea|\U0001f1eb\U0001f1f7|");
    TERMS("*\u200d\U0001f600 \u00a9 \u2192", "\U0001f600|");
    TERMS("_\u0308a \u0308 \u3164 \u3164x", "_\u0308a|x|");
    TERMS("abc\u00ad\u200bdef\u00add", "abc|defd|");
}

static void test_long_words(void) {
    enum { SIZE = 5000 };
    static char text[3 * SIZE];
    const struct {
        const char *unit;
        uint32_t size;
    } units[] = {{"a", 255}, {"\u00e9", 254}, {"\u0435", 254}, {"\u0905", 255}, {"\U00010400", 252}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const size_t width = strlen(units[i].unit);
        for (size_t at = 0; at + width <= SIZE; at += width) memcpy(text + at, units[i].unit, width);
        const size_t n = SIZE / width * width;
        fvdb_words it;
        fvdb_word word;
        words_begin(&it, (const uint8_t *)text, n);
        CHECK(words_next(&it, &word) && word.size == units[i].size && word.start == 0 && word.end == n);
        CHECK(!words_next(&it, &word));
    }
    /* Marks, of which many stand for one letter: what is kept is bounded all the same. */
    text[0] = 'a';
    for (size_t at = 1; at + 2 <= SIZE; at += 2) memcpy(text + at, at % 4 == 1 ? "\u0323" : "\u0301", 2);
    fvdb_words it;
    fvdb_word word;
    words_begin(&it, (const uint8_t *)text, SIZE - 1);
    CHECK(words_next(&it, &word) && word.size <= WORD_BYTES_MAX && word.end == SIZE - 1);
}

static uint32_t encode(uint32_t code, uint8_t *out) {
    if (code < 0x80) return out[0] = (uint8_t)code, 1;
    const uint32_t more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    for (uint32_t i = more; i > 0; i--, code >>= 6) out[i] = 0x80 | (code & 0x3f);
    out[0] = (uint8_t)(0xf00u >> more | code);
    return more + 1;
}

static void test_folding_again_changes_nothing(void) {
    for (uint32_t code = 0; code < UNICODE_END; code++) {
        if (code >= 0xd800 && code < 0xe000) continue;
        uint8_t bytes[16] = "a", once[WORD_BYTES_MAX], twice[WORD_BYTES_MAX];
        for (uint32_t with_others = 0; with_others < 2; with_others++) {
            uint32_t n = with_others;
            n += encode(code, bytes + n);
            if (with_others) n += encode(0x301, bytes + n);
            const uint32_t size = words_fold(bytes, n, once);
            CHECK(words_fold(once, size, twice) == size && memcmp(once, twice, size) == 0);
        }
    }
    CHECK(words_fold((const uint8_t *)"A\xff"
                                      "B\xe2\x82",
                     5, (uint8_t[WORD_BYTES_MAX]){0}) == 2);
}

/* Every property is defined, and no folding is longer than the room for it. */
static void test_tables(void) {
    for (uint32_t code = 0; code < UNICODE_END; code++) {
        uint32_t out[UNICODE_FOLD_MAX];
        const uint8_t class = unicode_class(code);
        CHECK(class_break(class) <= BREAK_LETTER_PICTOGRAPH);
        const uint32_t n = unicode_fold(code, out);
        CHECK(n <= UNICODE_FOLD_MAX);
        for (uint32_t i = 0; i < n; i++) CHECK(out[i] < UNICODE_END);
    }
    CHECK(strcmp(fvdb_unicode_version(), "15.0.0") == 0);
}

/* ---- untrusted bytes ---- */

/* Bytes that end where a page begins that cannot be read. */
static uint8_t *fence(size_t room) {
#ifdef _WIN32
    static uint8_t plain[1 << 12];
    return plain + (room <= sizeof plain ? sizeof plain : 0);
#else
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = round_up(room, page);
    uint8_t *base = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (base == MAP_FAILED || mprotect(base + size, page, PROT_NONE) != 0) exit(2);
    return base + size;
#endif
}

/* Words lie in the text and in order, terms are UTF-8 that folding leaves alone, and segments cover the text. */
static void check_words(const uint8_t *text, size_t n) {
    fvdb_words it;
    fvdb_word word;
    size_t start = 0, end = 0;
    uint32_t count = 0;
    for (words_begin(&it, text, n); words_next(&it, &word); count++) {
        uint8_t again[WORD_BYTES_MAX];
        CHECK(word.start >= start && word.end >= end && word.start < word.end && word.end <= n);
        CHECK(word.size >= 1 && word.size <= WORD_BYTES_MAX && word.position == count);
        CHECK(words_fold(word.term, word.size, again) == word.size && memcmp(again, word.term, word.size) == 0);
        start = word.start, end = word.end;
    }
    CHECK(count <= n && !words_next(&it, &word));
    for (size_t at = 0; at < n;) {
        const size_t next = words_segment_end(text, n, at);
        CHECK(next > at && next <= n);
        at = next > at ? next : n;
    }
}

static void test_random_bytes(void) {
    static const char *const pieces[] = {"a",
                                         "B",
                                         "7",
                                         "_",
                                         "'",
                                         ".",
                                         " ",
                                         "\r\n",
                                         "\u00e9",
                                         "\u0301",
                                         "\u200d",
                                         "\u05d0",
                                         "\u05f4",
                                         "\"",
                                         "\u4e00",
                                         "\u30ab",
                                         "\uff9e",
                                         "\u1100",
                                         "\u1161",
                                         "\uac00",
                                         "\u0e01",
                                         "\u0e33",
                                         "\u00ad",
                                         "\ufdfa",
                                         "\U0001f600",
                                         "\U0001f1e9",
                                         "\xff",
                                         "\xe2\x80",
                                         "\xed\xa0\x80",
                                         "\xf0\x9f"};
    uint8_t *end = fence(4096);
    uint64_t state = 7;
    for (uint32_t round = 0; round < 20000; round++) {
        state = mix64(state);
        const size_t wanted = state % 40;
        size_t n = 0;
        uint8_t text[256];
        while (n < wanted) {
            state = mix64(state);
            if (round % 2) {
                text[n++] = (uint8_t)(state >> 40);
            } else {
                const char *piece = pieces[(state >> 40) % (sizeof pieces / sizeof *pieces)];
                memcpy(text + n, piece, strlen(piece));
                n += strlen(piece);
            }
        }
        memcpy(end - n, text, n);
        check_words(end - n, n);
    }
    check_words(NULL, 0);
}

/* ---- entries ---- */

static void test_entries(void) {
    const uint8_t *text = (const uint8_t *)"One \u4e8c\u4e09\u56db, five";
    const uint64_t n = strlen((const char *)text);
    uint8_t terms[64];
    uint64_t term_ends[8], bytes;
    uint32_t starts[8], ends[8], count;
    fvdb_diag diag = {0};
    CHECK(fvdb_text_words(text, n, 4, 19, terms, term_ends, starts, ends, &count, &bytes, &diag) == FVDB_OK);
    CHECK(count == 4 && bytes == 19 && term_ends[0] == 3 && term_ends[3] == 19 && memcmp(terms + 15, "five", 4) == 0);
    CHECK(starts[1] == 4 && ends[1] == 10 && starts[2] == 7 && ends[2] == 13 && ends[3] == n);
    CHECK(fvdb_text_words(text, n, 3, 19, terms, term_ends, starts, ends, &count, &bytes, &diag) == FVDB_ERR_BUFFER);
    CHECK(count == 4 && bytes == 19 && diag.expected == 4);
    CHECK(fvdb_text_words(text, n, 4, 18, terms, term_ends, starts, ends, &count, &bytes, &diag) == FVDB_ERR_BUFFER);
    CHECK(diag.expected == 19);
    CHECK(fvdb_text_words(text, n, 0, 0, NULL, NULL, NULL, NULL, &count, &bytes, NULL) == FVDB_ERR_BUFFER);
    CHECK(fvdb_text_words(NULL, 0, 0, 0, NULL, NULL, NULL, NULL, &count, &bytes, NULL) == FVDB_OK && count == 0);
    const uint64_t too_many = (uint64_t)FVDB_TEXT_BYTES_MAX + 1;
    CHECK(fvdb_text_words(text, too_many, 0, 0, NULL, NULL, NULL, NULL, &count, &bytes, &diag) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_segments(text, too_many, 0, NULL, &count, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_text_segments(text, n, 8, ends, &count, NULL) == FVDB_OK && count == 8 && ends[0] == 3 && ends[7] == n);
    CHECK(fvdb_text_segments(text, n, 7, ends, &count, &diag) == FVDB_ERR_BUFFER && diag.expected == 8);
}

int main(void) {
    RUN(test_ascii);
    RUN(test_every_byte_after_ascii);
    RUN(test_other_scripts);
    RUN(test_long_words);
    RUN(test_folding_again_changes_nothing);
    RUN(test_tables);
    RUN(test_random_bytes);
    RUN(test_entries);
    return check_done();
}
