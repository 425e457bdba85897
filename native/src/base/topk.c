/* Selecting and sorting keys, and a counting sort. */
#include "topk.h"

#include <assert.h>
#include <stddef.h>

void keys_select(uint64_t *keys, uint32_t n, uint32_t m) {
    assert(m <= n);
    uint32_t from = 0, to = n;
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
