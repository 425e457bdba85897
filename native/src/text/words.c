/* Words of a text: segments (UAX #29, revision 41, "Word Boundaries"), words made of them, and their terms.
 *
 * Three ways lead to a word and give the same one.  ASCII takes the first, where a table says what each byte is.  A word that has
 * another byte, or one behind it, is begun again on the second way, which knows letters and digits that need no rule but WB5,
 * WB8, WB9 and WB10.  Where there is more, it is begun again on the third: the segment, then the words in it.
 *
 * Rules of UAX #29 are named as there.  Most look at two characters, those that other ones join (WB4) left out; where a rule
 * needs the character behind (WB6, WB7b, WB12), both are taken at once.  So every character is looked at a few times at most,
 * whatever the text. */
#include "words.h"
#include "../base/bytes.h"
#include "unicode.h"

/* ---- characters ---- */

typedef struct character {
    uint32_t code;
    uint32_t size;      /* its bytes */
    uint8_t class;      /* as unicode_class */
    uint8_t word_break; /* BREAK_* */
} character;

/* What stands for a byte that is part of no character: nothing joins it. */
static const character no_character = {UNICODE_END, 1, BREAK_NEWLINE, BREAK_NEWLINE};

static inline bool follows(uint8_t byte) { return (byte & 0xc0) == 0x80; }

/* The character at a place before the end. */
static character read_character(const uint8_t *text, size_t n, size_t at) {
    const uint8_t *p = text + at;
    const size_t left = n - at;
    uint32_t code = p[0], size = 1;
    if (p[0] >= 0x80) {
        if (p[0] >= 0xc2 && p[0] < 0xe0 && left >= 2 && follows(p[1])) {
            code = (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
            size = 2;
        } else if (p[0] >= 0xe0 && p[0] < 0xf0 && left >= 3 && follows(p[1]) && follows(p[2])) {
            code = (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
            size = 3;
            if (code < 0x800 || (code >= 0xd800 && code < 0xe000)) return no_character;
        } else if (p[0] >= 0xf0 && p[0] < 0xf5 && left >= 4 && follows(p[1]) && follows(p[2]) && follows(p[3])) {
            code = (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
            size = 4;
            if (code < 0x10000 || code >= UNICODE_END) return no_character;
        } else {
            return no_character;
        }
    }
    const uint8_t class = unicode_class(code);
    return (character){code, size, class, (uint8_t)class_break(class)};
}

static uint32_t write_character(uint32_t code, uint8_t *out) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xc0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xe0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (code & 0x3f));
    return 4;
}

/* ---- segments ---- */

/* Sets of values of Word_Break. */
#define BIT(value) (1u << (value))
#define LETTERS (BIT(BREAK_LETTER) | BIT(BREAK_LETTER_PICTOGRAPH) | BIT(BREAK_HEBREW))
#define PICTOGRAPHS (BIT(BREAK_PICTOGRAPH) | BIT(BREAK_LETTER_PICTOGRAPH))
#define LINE_ENDS (BIT(BREAK_CR) | BIT(BREAK_LF) | BIT(BREAK_NEWLINE))
#define JOINED (BIT(BREAK_EXTEND) | BIT(BREAK_FORMAT) | BIT(BREAK_ZWJ))
#define MID_LETTERS (BIT(BREAK_MID_LETTER) | BIT(BREAK_MID_NUM_LET) | BIT(BREAK_SINGLE_QUOTE))
#define MID_NUMS (BIT(BREAK_MID_NUM) | BIT(BREAK_MID_NUM_LET) | BIT(BREAK_SINGLE_QUOTE))
#define WORDS (LETTERS | BIT(BREAK_NUMERIC) | BIT(BREAK_KATAKANA) | BIT(BREAK_EXTEND_NUM_LET))

static inline bool is_of(uint32_t word_break, uint32_t set) { return set >> word_break & 1; }

/* The end of what WB4 joins to the character before `at`. */
static size_t joined_end(const uint8_t *text, size_t n, size_t at) {
    while (at < n) {
        const character c = read_character(text, n, at);
        if (!is_of(c.word_break, JOINED)) break;
        at += c.size;
    }
    return at;
}

/* Values that join a value on their left without regard to anything else: WB5, WB8, WB9, WB10, WB13, WB13a and WB13b. */
static uint32_t joining(uint32_t left) {
    if (is_of(left, LETTERS) || left == BREAK_NUMERIC) return LETTERS | BIT(BREAK_NUMERIC) | BIT(BREAK_EXTEND_NUM_LET);
    if (left == BREAK_KATAKANA) return BIT(BREAK_KATAKANA) | BIT(BREAK_EXTEND_NUM_LET);
    return left == BREAK_EXTEND_NUM_LET ? WORDS : 0;
}

/* Values that follow a mark between letters or digits, so that it joins them; 0: this mark joins nothing here. */
static uint32_t joined_by(uint32_t left, uint32_t mark) {
    if (left == BREAK_HEBREW && mark == BREAK_DOUBLE_QUOTE) return BIT(BREAK_HEBREW); /* WB7b, WB7c */
    if (is_of(left, LETTERS) && is_of(mark, MID_LETTERS)) return LETTERS;             /* WB6, WB7 */
    return left == BREAK_NUMERIC && is_of(mark, MID_NUMS) ? BIT(BREAK_NUMERIC) : 0;   /* WB11, WB12 */
}

size_t words_segment_end(const uint8_t *text, size_t n, size_t at) {
    const character first = read_character(text, n, at);
    at += first.size;
    uint32_t before = first.word_break; /* of the character right before `at` */
    uint32_t left = before;             /* the same, but for what WB4 joins */
    bool is_odd = true;                 /* flags are pairs: as many regional indicators so far */
    if (is_of(before, LINE_ENDS))       /* WB3, WB3a */
        return at + (before == BREAK_CR && at < n && text[at] == '\n');
    while (at < n) {
        const character c = read_character(text, n, at);
        const uint32_t right = c.word_break;
        size_t end = at + c.size;
        if (is_of(right, JOINED)) { /* WB4 */
            at = end;
            before = right;
            continue;
        }
        bool is_joined = (before == BREAK_ZWJ && is_of(right, PICTOGRAPHS)) || /* WB3c */
                         (before == BREAK_SPACE && right == BREAK_SPACE) ||    /* WB3d */
                         is_of(right, joining(left));                          /* WB5 .. WB13b */
        uint32_t last = right;
        const uint32_t wanted = is_joined ? 0 : joined_by(left, right);
        if (wanted) {
            const size_t next_at = joined_end(text, n, end);
            if (next_at < n) {
                const character next = read_character(text, n, next_at);
                is_joined = is_of(next.word_break, wanted);
                if (is_joined) {
                    end = next_at + next.size;
                    last = next.word_break;
                }
            }
            is_joined |= left == BREAK_HEBREW && right == BREAK_SINGLE_QUOTE; /* WB7a */
        } else if (left == BREAK_REGIONAL && right == BREAK_REGIONAL) {       /* WB15, WB16 */
            is_joined = is_odd;
            is_odd = !is_odd;
        }
        if (!is_joined) break; /* WB999 */
        at = end;
        before = left = last;
    }
    return at;
}

/* ---- terms ---- */

uint32_t words_fold(const uint8_t *word, size_t n, uint8_t *out) {
    /* More characters than bytes of a term are of no use, but for marks that compose: those are cut where they are many. */
    uint32_t codes[UNICODE_DECOMPOSED_MAX * UNICODE_COMPOSE_MAX];
    uint32_t count = 0, size = 0;
    bool has_marks = false;
    for (size_t at = 0; at < n && count <= UNICODE_COMPOSE_MAX - UNICODE_FOLD_MAX;) {
        const character c = read_character(word, n, at);
        at += c.size;
        if (c.code == UNICODE_END) continue;
        has_marks |= class_is_mark(c.class);
        count += unicode_fold(c.code, codes + count);
    }
    if (has_marks) count = unicode_compose(codes, count);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t bytes[4];
        const uint32_t more = write_character(codes[i], bytes);
        if (size + more > WORD_BYTES_MAX) break;
        memcpy(out + size, bytes, more);
        size += more;
    }
    return size;
}

/* ---- ASCII ---- */

/* What ASCII bytes are: letters and digits in lower case and '_' for themselves, every other byte 0. */
static const uint8_t word_bytes[256] = {
    ['0'] = '0', ['1'] = '1', ['2'] = '2', ['3'] = '3', ['4'] = '4', ['5'] = '5', ['6'] = '6', ['7'] = '7', ['8'] = '8',
    ['9'] = '9', ['A'] = 'a', ['B'] = 'b', ['C'] = 'c', ['D'] = 'd', ['E'] = 'e', ['F'] = 'f', ['G'] = 'g', ['H'] = 'h',
    ['I'] = 'i', ['J'] = 'j', ['K'] = 'k', ['L'] = 'l', ['M'] = 'm', ['N'] = 'n', ['O'] = 'o', ['P'] = 'p', ['Q'] = 'q',
    ['R'] = 'r', ['S'] = 's', ['T'] = 't', ['U'] = 'u', ['V'] = 'v', ['W'] = 'w', ['X'] = 'x', ['Y'] = 'y', ['Z'] = 'z',
    ['_'] = '_', ['a'] = 'a', ['b'] = 'b', ['c'] = 'c', ['d'] = 'd', ['e'] = 'e', ['f'] = 'f', ['g'] = 'g', ['h'] = 'h',
    ['i'] = 'i', ['j'] = 'j', ['k'] = 'k', ['l'] = 'l', ['m'] = 'm', ['n'] = 'n', ['o'] = 'o', ['p'] = 'p', ['q'] = 'q',
    ['r'] = 'r', ['s'] = 's', ['t'] = 't', ['u'] = 'u', ['v'] = 'v', ['w'] = 'w', ['x'] = 'x', ['y'] = 'y', ['z'] = 'z',
};

static inline bool is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }
static inline bool is_lower(uint8_t byte) { return byte >= 'a' && byte <= 'z'; }

/* Whether a byte joins what stands before and behind it, where these are of the right kind. */
static const bool is_joining[128] = {['.'] = true, ['\''] = true, [':'] = true, [','] = true, [';'] = true};

/* Whether a mark between two bytes of words joins them: WB6, WB7, WB11 and WB12 for ASCII.  left and right are in lower case. */
static bool joins(uint8_t left, uint8_t mark, uint8_t right) {
    if (mark == '.' || mark == '\'') return (is_lower(left) && is_lower(right)) || (is_digit(left) && is_digit(right));
    if (mark == ':') return is_lower(left) && is_lower(right);
    return (mark == ',' || mark == ';') && is_digit(left) && is_digit(right);
}

#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

/* How many of the eight bytes from p on are word bytes, up to the first other one; all eight in lower case go to `out`.
 * Arithmetic within each byte, without branches: most words end here, wherever that is, and a branch for each byte would be
 * mispredicted once a word. */
static inline uint32_t fold_eight(const uint8_t *p, uint8_t *out) {
    const uint64_t bytes = load_le(p, 8), low = bytes & EACH(0x7f), lower = low | EACH(0x20);
    /* The upper bit of a byte of x + (0x80 - c) says that the byte of x, below 0x80, is at least c. */
    const uint64_t letters = (lower + EACH(0x80 - 'a')) & ~(lower + EACH(0x80 - 'z' - 1));
    const uint64_t digits = (low + EACH(0x80 - '0')) & ~(low + EACH(0x80 - '9' - 1));
    const uint64_t underscores = EACH(0x80) - (low ^ EACH('_'));
    const uint64_t is_word = (letters | digits | underscores) & ~bytes & EACH(0x80);
    store_le(out, bytes | (letters & EACH(0x80)) >> 2, 8);
    const uint64_t others = is_word ^ EACH(0x80);
    return others ? (uint32_t)__builtin_ctzll(others) / 8 : 8;
}

/* The word at it->at, a byte of a word that begins a segment.  false: another character may be part of it, and it->at is as
 * before, or it is no word, '_' alone, and it->at is behind it. */
static bool next_ascii(fvdb_words *it, fvdb_word *word) {
    const uint8_t *text = it->text;
    const size_t start = it->at, n = it->size;
    size_t at = start;
    uint32_t size = 0;
    for (;;) {
        uint32_t taken = 8;
        while (taken == 8 && n - at >= 8 && size < WORD_BYTES_MAX - 8) {
            taken = fold_eight(text + at, it->folded + size);
            at += taken;
            size += taken;
        }
        if (taken == 8) {
            for (; at < n && word_bytes[text[at]]; at++)
                if (size < WORD_BYTES_MAX) it->folded[size++] = word_bytes[text[at]];
            if (at == n) break;
        }
        if (text[at] < 0x80 && !is_joining[text[at]]) break;
        const uint8_t next = at + 1 < n ? text[at + 1] : 0;
        if (!joins(word_bytes[text[at - 1]], text[at], word_bytes[next])) {
            if (text[at] >= 0x80 || next >= 0x80) return false;
            break;
        }
        if (size < WORD_BYTES_MAX) it->folded[size++] = text[at];
        at++;
    }
    it->at = it->segment_end = at;
    if (text[start] == '_') {
        size_t underscores = start;
        while (underscores < at && text[underscores] == '_') underscores++;
        if (underscores == at) return false;
    }
    *word = (fvdb_word){it->folded, size, it->position++, start, at};
    return true;
}

/* ---- letters and digits of any script ---- */

#define SIMPLE (BIT(BREAK_LETTER) | BIT(BREAK_HEBREW) | BIT(BREAK_NUMERIC))
#define APART (BIT(BREAK_OTHER) | BIT(BREAK_SPACE) | LINE_ENDS)  /* what no word goes on with */
#define MARKS (MID_LETTERS | MID_NUMS | BIT(BREAK_DOUBLE_QUOTE)) /* what needs a letter or a digit behind it to join */

/* The word at it->at, which begins a segment, if it has letters and digits alone, of which none composes; false: there may be
 * one of another kind, and the iterator is as before. */
__attribute__((noinline)) static bool next_simple(fvdb_words *it, fvdb_word *word) {
    size_t at = it->at;
    uint32_t size = 0;
    bool is_full = false, is_hebrew = false;
    character c = no_character;
    for (; at < it->size; at += c.size) {
        c = read_character(it->text, it->size, at);
        if (!is_of(c.word_break, SIMPLE) || class_kind(c.class) != KIND_WORD || class_is_mark(c.class)) break;
        is_hebrew = c.word_break == BREAK_HEBREW;
        uint32_t codes[UNICODE_FOLD_MAX];
        const uint32_t n = unicode_fold(c.code, codes);
        for (uint32_t i = 0; i < n && !is_full; i++) {
            uint8_t bytes[4];
            const uint32_t more = write_character(codes[i], bytes);
            is_full = size + more > WORD_BYTES_MAX;
            if (!is_full) memcpy(it->folded + size, bytes, 4);
            size += is_full ? 0 : more;
        }
    }
    if (at < it->size && !is_of(c.word_break, APART)) {
        if (!is_of(c.word_break, MARKS) || is_hebrew) return false;
        const size_t next = at + c.size;
        if (next < it->size && !is_of(read_character(it->text, it->size, next).word_break, APART)) return false;
    }
    if (size == 0) return false;
    *word = (fvdb_word){it->folded, size, it->position++, it->at, at};
    it->at = it->segment_end = at;
    return true;
}

/* ---- words ---- */

/* The end of a character of a writing system without spaces, with what WB4 joins to it, and for Hangul the jamo that follow
 * in the syllable: text may have syllables decomposed. */
static size_t unit_end(const uint8_t *text, size_t n, size_t at) {
    const character first = read_character(text, n, at);
    at = joined_end(text, n, at + first.size);
    while (first.word_break == BREAK_LETTER && at < n) {
        const character c = read_character(text, n, at);
        const bool is_following = (c.code >= 0x1160 && c.code < 0x1200) || (c.code >= 0xd7b0 && c.code < 0xd800);
        if (!is_following) break;
        at = joined_end(text, n, at + c.size);
    }
    return at;
}

/* Fills in the word of bytes [start, end); false: folding leaves nothing of it. */
static bool make_word(fvdb_words *it, size_t start, size_t end, fvdb_word *word) {
    const uint32_t size = words_fold(it->text + start, end - start, it->folded);
    if (size == 0) return false;
    *word = (fvdb_word){it->folded, size, it->position++, start, end};
    return true;
}

/* The word of the character at it->at and its right neighbour, both of a kind; without one, of the character alone, unless the
 * last word had it.  it->at goes behind the character. */
static bool next_pair(fvdb_words *it, uint32_t kind, fvdb_word *word) {
    const size_t start = it->at, n = it->size;
    const bool was_covered = it->covered_end != 0;
    const size_t middle = was_covered ? it->covered_end : unit_end(it->text, n, start);
    const bool has_neighbour = middle < n && class_kind(read_character(it->text, n, middle).class) == kind;
    const size_t end = has_neighbour ? unit_end(it->text, n, middle) : middle;
    it->covered_end = has_neighbour ? end : 0;
    it->at = middle;
    if (it->segment_end < middle) it->segment_end = middle;
    return (has_neighbour || !was_covered) && make_word(it, start, end, word);
}

/* The word from it->at to the end of the segment, or to a character of a writing system without spaces; false where there is
 * none.  it->at goes to its end. */
static bool next_plain(fvdb_words *it, bool begins_segment, fvdb_word *word) {
    /* What is part of no word is left out at the beginning, but for '_' and signs that UAX #29 takes for letters, and where
     * the segment is cut. */
    const uint32_t begins = begins_segment ? WORDS : 0;
    size_t start = it->at, at = it->at, end = it->at;
    bool has_begun = false, has_word = false, is_cut = false;
    while (at < it->segment_end) {
        const character c = read_character(it->text, it->size, at);
        const uint32_t kind = class_kind(c.class);
        is_cut = kind > KIND_WORD;
        if (is_cut) break;
        if (!has_begun) {
            has_begun = kind == KIND_WORD || is_of(c.word_break, begins);
            start = has_begun ? at : at + c.size;
        }
        if (kind == KIND_WORD || (end == at && is_of(c.word_break, JOINED))) end = at + c.size;
        has_word |= kind == KIND_WORD;
        at += c.size;
    }
    it->at = at;
    return has_word && make_word(it, start, is_cut ? end : at, word);
}

void words_begin(fvdb_words *it, const uint8_t *text, size_t n) {
    it->text = text;
    it->size = n;
    it->at = it->segment_end = 0;
    it->covered_end = 0;
    it->position = 0;
}

bool words_next(fvdb_words *it, fvdb_word *word) {
    while (it->at < it->size) {
        const bool begins_segment = it->at == it->segment_end;
        if (begins_segment) {
            while (it->at < it->size && it->text[it->at] < 0x80 && !word_bytes[it->text[it->at]]) it->at++;
            const size_t start = it->segment_end = it->at;
            if (start == it->size) return false;
            if (it->text[start] < 0x80 && next_ascii(it, word)) return true;
            if (it->at != start) continue;
        }
        const character c = read_character(it->text, it->size, it->at);
        const uint32_t kind = class_kind(c.class);
        if (begins_segment) {
            if (kind <= KIND_WORD && next_simple(it, word)) return true;
            /* A character that is a segment alone, but for what WB4 joins; so are those without spaces, but for Kana and
             * Hangul.  A pictograph that WB3c joins is a word of its own either way. */
            const bool is_alone = kind > KIND_WORD && c.word_break == BREAK_OTHER;
            it->segment_end = is_alone ? it->at + c.size : words_segment_end(it->text, it->size, it->at);
        }
        if (kind > KIND_WORD ? next_pair(it, kind, word) : next_plain(it, begins_segment, word)) return true;
    }
    return false;
}
