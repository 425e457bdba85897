/* Folding of characters and Normalization Form C (UAX #15), by the tables of unicode_tables.c.
 *
 * unicode_compose takes folded characters only.  So it needs no decompositions but those of the pairs that compose, and of
 * these only the pairs that folding leaves: compatibility forms and characters that never appear in the form were replaced. */
#include "unicode.h"

/* Hangul syllables compose by arithmetic: Unicode, section 3.12. */
enum {
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11a7,
    HANGUL_S = 0xac00,
    HANGUL_N_L = 19,
    HANGUL_N_V = 21,
    HANGUL_N_T = 28,
    HANGUL_N_S = HANGUL_N_L * HANGUL_N_V * HANGUL_N_T,
};

static uint32_t fold_code(uint32_t code) {
    const uint32_t block = unicode_fold_top[code >> (UNICODE_FOLD_LOW + UNICODE_FOLD_MIDDLE)] << UNICODE_FOLD_MIDDLE;
    const uint32_t middle = block | (code >> UNICODE_FOLD_LOW & ((1u << UNICODE_FOLD_MIDDLE) - 1));
    return unicode_fold_leaves[(uint32_t)unicode_fold_middle[middle] << UNICODE_FOLD_LOW |
                               (code & ((1u << UNICODE_FOLD_LOW) - 1))];
}

uint32_t unicode_fold(uint32_t code, uint32_t *out) {
    const uint32_t found = fold_code(code);
    if (found == 0) {
        *out = code;
        return 1;
    }
    const uint16_t *unit = unicode_fold_pool + (found & 0x1fff);
    uint32_t units = found >> 13, n = 0;
    if (units == 7) units = *unit++;
    for (const uint16_t *end = unit + units; unit < end; unit++) {
        const bool is_pair = *unit >= 0xd800 && *unit < 0xdc00;
        out[n++] = is_pair ? 0x10000 + ((unit[0] & 0x3ffu) << 10 | (unit[1] & 0x3ffu)) : *unit;
        unit += is_pair;
    }
    return n;
}

/* Canonical_Combining_Class. */
static uint8_t combining_class(uint32_t code) {
    uint32_t low = 0, high = unicode_n_runs; /* the last run that begins at or before the character is in [low, high) */
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        *(unicode_run_starts[middle] >> 8 <= code ? &low : &high) = middle;
    }
    const uint32_t start = unicode_run_starts[low] >> 8;
    return code >= start && code - start <= unicode_run_lengths[low] ? (uint8_t)unicode_run_starts[low] : 0;
}

/* Writes the full decomposition of a character, at most UNICODE_DECOMPOSED_MAX; Hangul syllables stay as they are. */
static uint32_t decompose(uint32_t code, uint32_t *out) {
    uint32_t low = 0, high = unicode_n_pairs;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        const uint32_t *pair = unicode_pairs + 3 * unicode_by_composed[middle];
        if (pair[2] == code) {
            const uint32_t n = decompose(pair[0], out);
            out[n] = pair[1];
            return n + 1;
        }
        *(pair[2] < code ? &low : &high) = middle + (pair[2] < code);
    }
    *out = code;
    return 1;
}

/* What two characters compose to; 0 where they do not. */
static uint32_t compose_pair(uint32_t first, uint32_t second) {
    if (first - HANGUL_L < HANGUL_N_L && second - HANGUL_V < HANGUL_N_V)
        return HANGUL_S + ((first - HANGUL_L) * HANGUL_N_V + (second - HANGUL_V)) * HANGUL_N_T;
    if (first - HANGUL_S < HANGUL_N_S && (first - HANGUL_S) % HANGUL_N_T == 0 && second - HANGUL_T - 1 < HANGUL_N_T - 1)
        return first + (second - HANGUL_T);
    uint32_t low = 0, high = unicode_n_pairs;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        const uint32_t *pair = unicode_pairs + 3 * middle;
        if (pair[0] == first && pair[1] == second) return pair[2];
        const bool is_below = pair[0] < first || (pair[0] == first && pair[1] < second);
        *(is_below ? &low : &high) = middle + is_below;
    }
    return 0;
}

/* Sorts each run of marks by class, marks of one class in their order (Unicode, definition D109). */
static void order_marks(uint32_t *codes, uint8_t *classes, uint32_t n) {
    for (uint32_t i = 1; i < n; i++) {
        const uint32_t code = codes[i];
        const uint8_t class = classes[i];
        if (class == 0) continue;
        uint32_t at = i;
        for (; at > 0 && classes[at - 1] > class; at--) codes[at] = codes[at - 1], classes[at] = classes[at - 1];
        codes[at] = code, classes[at] = class;
    }
}

uint32_t unicode_compose(uint32_t *codes, uint32_t n) {
    assert(n <= UNICODE_COMPOSE_MAX);
    uint8_t classes[UNICODE_DECOMPOSED_MAX * UNICODE_COMPOSE_MAX];
    uint32_t parts[UNICODE_DECOMPOSED_MAX];
    /* From the end, so that decompositions never run into what was not read yet. */
    uint32_t at = UNICODE_DECOMPOSED_MAX * n, size = 0;
    for (uint32_t i = n; i-- > 0;) {
        const uint32_t count = decompose(codes[i], parts);
        at -= count;
        size += count;
        memcpy(codes + at, parts, count * sizeof *codes);
    }
    memmove(codes, codes + at, size * sizeof *codes);
    for (uint32_t i = 0; i < size; i++) classes[i] = combining_class(codes[i]);
    order_marks(codes, classes, size);

    /* Unicode, definition D117: a character composes with the last starter unless what stands between them blocks it. */
    uint32_t starter = UINT32_MAX, kept = 0;
    uint8_t last_class = 0;
    for (uint32_t i = 0; i < size; i++) {
        const bool is_next = starter != UINT32_MAX && kept == starter + 1;
        const bool is_reached = starter != UINT32_MAX && last_class != 0 && last_class < classes[i];
        if (is_next || is_reached) {
            const uint32_t composed = compose_pair(codes[starter], codes[i]);
            if (composed) {
                codes[starter] = composed;
                continue;
            }
        }
        if (classes[i] == 0) starter = kept;
        last_class = classes[i];
        codes[kept++] = codes[i];
    }
    return kept;
}
