/* The nearest of many: keys, selection, heaps, and a counting sort. */
#ifndef FVDB_TOPK_H
#define FVDB_TOPK_H

#include <stdint.h>
#include <string.h>

/* ---- keys: distance and number in one word; they order as the pairs do, NaN last ---- */

static inline uint64_t near_key(float distance, uint32_t number) {
    uint32_t bits;
    memcpy(&bits, &distance, sizeof bits);
    bits ^= (0u - (bits >> 31)) | 0x80000000u; /* all bits of a negative number, else the sign alone */
    return (uint64_t)bits << 32 | number;
}
static inline float near_distance(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    bits ^= ((bits >> 31) - 1) | 0x80000000u;
    float distance;
    memcpy(&distance, &bits, sizeof distance);
    return distance;
}
static inline uint32_t near_number(uint64_t key) { return (uint32_t)key; }

/* ---- topk.c ---- */

/* Brings the m least keys to the front, in no order (quickselect: Hoare 1961, with a division that has no branch). */
void keys_select(uint64_t *keys, uint32_t n, uint32_t m);
void keys_sort(uint64_t *keys, uint32_t n);
/* Puts 0 .. n - 1 into `out` by their class, in order within one; classes[i] < n_classes.  Afterwards class c is
 * out[starts[c]] .. out[starts[c + 1] - 1].  starts: n_classes + 1 entries. */
void counting_sort(const uint32_t *classes, uint32_t n, uint32_t n_classes, uint32_t *starts, uint32_t *out);

/* ---- heaps ---- */

/* Defines for items ordered by before(context, a, b), a total order: name_sink, which restores a binary heap below `at`, the
 * last item on top; and name_sort, a heap sort: in place, no allocation, the same result from any order of the input.
 * A macro, as `before` must be inlined: these run for every candidate of a search. */
#define DEFINE_HEAP(name, context_type, item, before)                                    \
    static void name##_sink(context_type context, item *heap, uint32_t n, uint32_t at) { \
        const item moved = heap[at];                                                     \
        (void)context;                                                                   \
        for (uint32_t child; (child = 2 * at + 1) < n; at = child) {                     \
            child += child + 1 < n && before(context, heap[child], heap[child + 1]);     \
            if (!before(context, moved, heap[child])) break;                             \
            heap[at] = heap[child];                                                      \
        }                                                                                \
        heap[at] = moved;                                                                \
    }                                                                                    \
    static void name##_heap_sort(context_type context, item *items, uint32_t n) {        \
        for (uint32_t i = n / 2; i-- > 0;) name##_sink(context, items, n, i);            \
        for (uint32_t end = n; end > 1; end--) {                                         \
            const item last = items[0];                                                  \
            items[0] = items[end - 1];                                                   \
            items[end - 1] = last;                                                       \
            name##_sink(context, items, end - 1, 0);                                     \
        }                                                                                \
    }

#endif
