/* Selecting and sorting keys, and a counting sort. */
#include "topk.h"

#include <assert.h>
#include <stddef.h>

#define SAMPLE_KEYS 64u

/* The `place`-th least, from 0, of a sample of n keys. */
static uint64_t of_sample(const uint64_t *keys, uint32_t n, uint32_t place) {
    uint64_t least[SAMPLE_KEYS];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < SAMPLE_KEYS; i++) {
        const uint64_t key = keys[(uint64_t)n * i / SAMPLE_KEYS];
        if (kept > place && key >= least[place]) continue;
        uint32_t at = kept > place ? place : kept++;
        for (; at && least[at - 1] > key; at--) least[at] = least[at - 1];
        least[at] = key;
    }
    return least[place];
}

/* Brings the keys that are at most `bound` to the front; returns how many.  Without a branch, of which none could be predicted. */
static uint32_t bring_forward(uint64_t *keys, uint32_t n, uint64_t bound) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t key = keys[i];
        keys[i] = keys[kept];
        keys[kept] = key;
        kept += key <= bound;
    }
    return kept;
}

/* The second of three of n keys, at least two; of two the lesser.  Not of the ends, where sorted runs that meet have extremes. */
static uint64_t middle_of(const uint64_t *keys, uint32_t n) {
    const uint64_t a = keys[n / 4], b = keys[n / 2], c = keys[n - 1 - n / 4];
    const uint64_t least = a < b ? a : b, most = a < b ? b : a;
    return n == 2 || c < least ? least : c < most ? c : most;
}

/* Where all keys are at most the one that was to divide them, equal ones: they get out of the way one by one. */
static uint32_t put_largest_last(uint64_t *keys, uint32_t from, uint32_t to) {
    uint32_t at = from;
    for (uint32_t i = from; i < to; i++)
        if (keys[i] > keys[at]) at = i;
    const uint64_t largest = keys[at];
    keys[at] = keys[to - 1];
    keys[to - 1] = largest;
    return to - 1;
}

void keys_select(uint64_t *keys, uint32_t n, uint32_t m) {
    assert(m <= n);
    uint32_t from = 0, to = n;
    /* A sample says about where the m-th is; a few places more, and it is hardly ever missed. */
    const uint64_t place = (uint64_t)m * SAMPLE_KEYS * 3 / 2 / (n ? n : 1) + 4;
    if (n >= 2 * SAMPLE_KEYS && place < SAMPLE_KEYS / 2) {
        const uint32_t kept = bring_forward(keys, n, of_sample(keys, n, (uint32_t)place));
        if (kept >= m) to = kept;
        else from = kept;
    }
    while (from < m && m < to) {
        const uint32_t kept = bring_forward(keys + from, to - from, middle_of(keys + from, to - from));
        if (kept == to - from) to = put_largest_last(keys, from, to);
        else if (m <= from + kept) to = from + kept;
        else from += kept;
    }
}

#define KEY_BEFORE(context, a, b) ((a) < (b))
DEFINE_HEAP(keys, const void *, uint64_t, KEY_BEFORE)

void keys_sort(uint64_t *keys, uint32_t n) { keys_heap_sort(NULL, keys, n); }

void counting_sort(const uint32_t *classes, uint32_t n, uint32_t n_classes, uint32_t *starts, uint32_t *out) {
    memset(starts, 0, ((size_t)n_classes + 1) * sizeof *starts);
    for (uint32_t i = 0; i < n; i++) starts[classes[i] + 1]++;
    for (uint32_t c = 0; c < n_classes; c++) starts[c + 1] += starts[c];
    for (uint32_t i = 0; i < n; i++) out[starts[classes[i]]++] = i;
    /* Each start has become the end of its class, which is the start of the next. */
    for (uint32_t c = n_classes; c > 0; c--) starts[c] = starts[c - 1];
    starts[0] = 0;
    assert(starts[n_classes] == n);
}
