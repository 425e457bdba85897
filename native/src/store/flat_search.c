/* Exact scan: the ground truth, the answer for small indexes and for few allowed rows. */
#include "store.h"

#define ROWS_PER_POLL 4096u

bool hit_before(const store *s, hit a, hit b) {
    if (a.distance != b.distance) return a.distance < b.distance;
    return id_map_compare(&s->ids, a.slot, b.slot) < 0;
}

/* Binary max-heap by hit_before: the worst hit is at 0. */
static void sift_down(const store *s, hit *heap, uint32_t n, uint32_t at) {
    for (;;) {
        uint32_t worst = at, left = 2 * at + 1;
        for (uint32_t child = left; child < n && child < left + 2; child++)
            if (hit_before(s, heap[worst], heap[child])) worst = child;
        if (worst == at) return;
        hit swap = heap[at];
        heap[at] = heap[worst];
        heap[worst] = swap;
        at = worst;
    }
}

void hits_offer(const store *s, hit *heap, uint32_t *n, uint32_t k, hit h) {
    if (*n == k) {
        if (!hit_before(s, h, heap[0])) return;
        heap[0] = h;
        sift_down(s, heap, k, 0);
        return;
    }
    uint32_t at = (*n)++;
    for (; at && hit_before(s, heap[(at - 1) / 2], h); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = h;
}

/* Heap sort in place: no allocation, and the order of hit_before is total, so the result does not depend on it. */
void hits_sort(const store *s, hit *hits, uint32_t n) {
    for (uint32_t i = n / 2; i-- > 0;) sift_down(s, hits, n, i);
    for (uint32_t end = n; end > 1; end--) {
        hit worst = hits[0];
        hits[0] = hits[end - 1];
        hits[end - 1] = worst;
        sift_down(s, hits, end - 1, 0);
    }
}

uint32_t flat_search(const scorer *q, uint32_t k, const uint64_t *allow, uint64_t allow_words,
                     const fvdb_control *control, hit *out) {
    const store *s = q->s;
    const uint64_t *live = store_live(s);
    uint32_t found = 0, scored = 0;
    uint64_t words = (s->n + 63u) / 64;
    if (allow && allow_words < words) words = allow_words;
    for (uint64_t w = 0; w < words; w++) {
        uint64_t bits = allow ? live[w] & allow[w] : live[w];
        for (; bits; bits &= bits - 1) {
            uint32_t slot = (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(bits);
            hit h = {scorer_exact(q, slot), slot};
            if (found < k || h.distance <= out[0].distance) hits_offer(s, out, &found, k, h);
            if (++scored % ROWS_PER_POLL == 0 && control_cancelled(control)) return found;
        }
    }
    hits_sort(s, out, found);
    return found;
}
