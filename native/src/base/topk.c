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
    while (m > from && m < to && to - from > 1) {
        uint64_t pivot = keys[from + (to - from - 1) / 2]; /* never the last, or nothing may move */
        uint32_t low = from, high = to - 1;
        for (;;) {
            while (keys[low] < pivot) low++;
            while (keys[high] > pivot) high--;
            if (low >= high) break;
            uint64_t swap = keys[low];
            keys[low++] = keys[high];
            keys[high--] = swap;
        }
        if (m <= high + 1) to = high + 1;
        else from = high + 1;
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
