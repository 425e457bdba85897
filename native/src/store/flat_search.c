/* Exact scan: the ground truth, the answer for small indexes and for few allowed rows.
 *
 * Where there are codes the scan reads them, an eighth of the bytes, and computes an exact distance only for a row whose
 * code leaves it a chance: what coding lost is bounded (Cauchy and Schwarz with the largest distance of any row from its
 * decoded self), so no row is missed.  Of 100,000 rows some five hundred remain. */
#include "store.h"

#define WORD_ROWS 64u            /* rows of one bitmap word */
#define WORDS_PER_POLL 64u

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

/* The rows a scan may return, in slot order, a bitmap word at a time. */
typedef struct row_set {
    const uint64_t *live, *allow;
    uint64_t words;
} row_set;

static uint32_t rows_of_word(const row_set *set, uint64_t w, uint32_t *slots) {
    uint32_t n = 0;
    for (uint64_t bits = set->allow ? set->live[w] & set->allow[w] : set->live[w]; bits; bits &= bits - 1)
        slots[n++] = (uint32_t)(w * WORD_ROWS) + (uint32_t)__builtin_ctzll(bits);
    return n;
}

static bool stopped(const fvdb_control *control, uint64_t word) {
    return word % WORDS_PER_POLL == 0 && control_cancelled(control);
}

static void offer_exact(const scorer *q, uint32_t k, const uint32_t *slots, uint32_t n, hit *hits, uint32_t *found) {
    for (uint32_t i = 0; i < n; i++) {
        if (i + EXACT_AHEAD < n) scorer_fetch_exact(q, slots[i + EXACT_AHEAD]);
        hit h = {scorer_exact(q, slots[i]), slots[i]};
        if (*found < k || h.distance <= hits[0].distance) hits_offer(q->s, hits, found, k, h);
    }
}

static uint32_t scan_rows(const scorer *q, uint32_t k, const row_set *set, const fvdb_control *control, hit *hits) {
    uint32_t slots[WORD_ROWS], found = 0;
    for (uint64_t w = 0; w < set->words && !stopped(control, w); w++)
        offer_exact(q, k, slots, rows_of_word(set, w, slots), hits, &found);
    return found;
}

/* Puts the k rows whose codes are nearest into hits, with their place in `near`; returns how many there are. */
static uint32_t nearest_codes(const scorer *q, uint32_t k, const row_set *set, const fvdb_control *control, float *near,
                              hit *hits) {
    uint32_t slots[WORD_ROWS], found = 0, place = 0;
    for (uint64_t w = 0; w < set->words && !stopped(control, w); w++) {
        uint32_t n = rows_of_word(set, w, slots);
        scorer_many(q, slots, n, near + place);
        for (uint32_t i = 0; i < n; i++, place++)
            if (found < k || near[place] < hits[0].distance)
                hits_offer(q->s, hits, &found, k, (hit){near[place], slots[i]});
    }
    return found;
}

/* First the codes of all rows, then exact distances of the k nearest by code, which bound the answer, then of every
 * row that its code does not put beyond that bound. */
static uint32_t scan_codes(const scorer *q, uint32_t k, const row_set *set, const fvdb_control *control, float *near,
                           hit *hits) {
    uint32_t slots[WORD_ROWS], passed[2 * WORD_ROWS], found = nearest_codes(q, k, set, control, near, hits), place = 0, n = 0;
    if (found < k || control_cancelled(control)) return scan_rows(q, k, set, control, hits);
    reach r;
    reach_init(&r, q);
    double bound = 0;
    for (uint32_t i = 0; i < k; i++) {
        double exact = scorer_exact(q, hits[i].slot);
        bound = exact > bound || i == 0 ? exact : bound;
    }
    double cut = reach_of(&r, bound);
    found = 0;
    for (uint64_t w = 0; w < set->words && !stopped(control, w); w++) {
        uint32_t rows = rows_of_word(set, w, slots);
        for (uint32_t i = 0; i < rows; i++, place++) {
            /* Kept unless surely farther: a bound that is not a number rules nothing out. */
            passed[n] = slots[i];
            n += !((double)near[place] > cut);
        }
        if (n < WORD_ROWS && w + 1 < set->words) continue;
        offer_exact(q, k, passed, n, hits, &found);
        if (found == k) cut = reach_of(&r, hits[0].distance);
        n = 0;
    }
    return found;
}

uint32_t flat_search(const scorer *q, uint32_t k, const uint64_t *allow, uint64_t allow_words,
                     const fvdb_control *control, float *near, hit *out) {
    const store *s = q->s;
    row_set set = {store_live(s), allow, (s->n + WORD_ROWS - 1) / WORD_ROWS};
    if (allow && allow_words < set.words) set.words = allow_words;
    uint32_t found = store_has_codes(s) && near ? scan_codes(q, k, &set, control, near, out) : scan_rows(q, k, &set, control, out);
    hits_sort(s, out, found);
    return found;
}
