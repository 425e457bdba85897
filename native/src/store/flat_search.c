/* Exact scan: the ground truth, the answer for small indexes and for few allowed rows.
 *
 * Where there are codes the scan reads them, an eighth of the bytes, and computes an exact distance only for a row whose
 * code leaves it a chance: what coding lost is bounded (Cauchy and Schwarz with the largest distance of any row from its
 * decoded self), so no row is missed.  Of 100,000 rows some thousand remain.
 * Rows come from memory once for a few queries: each scores a bitmap word of them before the next word is read. */
#include "store.h"

#include <float.h>
#include <math.h>

#define WORD_ROWS 64u /* rows of one bitmap word */
#define WORDS_PER_POLL 64u
/* Codes that are prefetched at once.  Of few allowed rows there is hardly one in a word: fetched one by one, each would be
 * waited for (1,000 of 100 K x 384: 81 ns a row). */
#define BATCH_ROWS 64u
/* Rows that wait for an exact distance.  The longer they wait, the nearer are the rows that are known by then, and the
 * fewer are left with a chance. */
#define WAITING_MAX 1024u
/* So many beyond k, the nearest by code, are scored before all others. */
#define FIRST_EXTRA 16u

bool hit_before(const store *s, hit a, hit b) {
    if (a.distance != b.distance) return a.distance < b.distance;
    return id_map_compare(&s->ids, a.slot, b.slot) < 0;
}

DEFINE_HEAP(hits, const store *, hit, hit_before)

void hits_offer(const store *s, hit *heap, uint32_t *n, uint32_t k, hit h) {
    if (*n == k) {
        if (!hit_before(s, h, heap[0])) return;
        heap[0] = h;
        hits_sink(s, heap, k, 0);
        return;
    }
    uint32_t at = (*n)++;
    for (; at && hit_before(s, heap[(at - 1) / 2], h); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = h;
}

void hits_sort(const store *s, hit *hits, uint32_t n) { hits_heap_sort(s, hits, n); }

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

/* Rows whose codes are on their way. */
typedef struct batch {
    uint32_t slots[BATCH_ROWS + WORD_ROWS], n;
} batch;

/* Prefetches rows of the words from *w on, BATCH_ROWS of them and up to a word more, or those that are left. */
static void prefetch_batch(batch *b, const scorer *q, const row_set *set, uint64_t *w) {
    b->n = 0;
    while (*w < set->words && b->n < BATCH_ROWS) b->n += rows_of_word(set, (*w)++, b->slots + b->n);
    for (uint32_t i = 0; i < b->n; i++) scorer_prefetch_by(q, store_approximate(q->s), b->slots[i]);
}

static bool stopped(const fvdb_control *control, uint64_t word) {
    return word % WORDS_PER_POLL == 0 && control_cancelled(control);
}

static void offer_exact(scan *one, uint32_t k, const uint32_t *slots, uint32_t n) {
    const scorer *q = one->query;
    for (uint32_t i = 0; i < n; i++) {
        if (i + EXACT_AHEAD < n) scorer_prefetch_exact(q, slots[i + EXACT_AHEAD]);
        hit h = {scorer_exact(q, slots[i]), slots[i]};
        if (one->found < k || h.distance <= one->hits[0].distance) hits_offer(q->s, one->hits, &one->found, k, h);
    }
}

static void scan_rows(scan *scans, uint32_t n, uint32_t k, const row_set *set, const fvdb_control *control) {
    uint32_t slots[WORD_ROWS];
    for (uint64_t w = 0; w < set->words && !stopped(control, w); w++) {
        uint32_t rows = rows_of_word(set, w, slots);
        for (uint32_t i = 0; i < n; i++) offer_exact(&scans[i], k, slots, rows);
    }
}

/* A query of a scan at work. */
typedef struct seeker {
    scan *scan;
    reach reach;
    double cut;                 /* a row whose code puts it farther is surely not among the nearest */
    uint64_t rows[WAITING_MAX]; /* keys of those that wait for an exact distance */
    uint32_t n;
} seeker;

/* A distance by code that may have overflowed on its way rules nothing out. */
static bool beyond(float near, double cut) { return (double)near > cut && near < FLT_MAX / 2; }

/* Rows that may be among the nearest. */
static uint32_t within(double cut, const float *near, const uint32_t *slots, uint32_t n, uint64_t *out) {
    uint32_t gone = 0, kept = 0;
    for (uint32_t i = 0; i < n; i++) gone += beyond(near[i], cut);
    if (gone == n) return 0; /* as in most words */
    for (uint32_t i = 0; i < n; i++) {
        out[kept] = near_key(near[i], slots[i]);
        kept += !beyond(near[i], cut);
    }
    return kept;
}

static void score_waiting(seeker *s, uint32_t k) {
    uint32_t slots[WAITING_MAX], first = min_u32(s->n, k + FIRST_EXTRA), n = 0;
    keys_select(s->rows, s->n, first);
    for (; n < first; n++) slots[n] = near_number(s->rows[n]);
    offer_exact(s->scan, k, slots, n);
    if (s->scan->found == k) s->cut = reach_of(&s->reach, s->scan->hits[0].distance);
    n = 0;
    for (uint32_t i = first; i < s->n; i++) {
        slots[n] = near_number(s->rows[i]);
        n += !beyond(near_distance(s->rows[i]), s->cut);
    }
    offer_exact(s->scan, k, slots, n);
    if (s->scan->found == k) s->cut = reach_of(&s->reach, s->scan->hits[0].distance);
    assert(s->scan->found <= k);
    s->n = 0;
}

static void scan_codes(scan *scans, uint32_t n, uint32_t k, const row_set *set, const fvdb_control *control) {
    batch batches[2]; /* one is scored while the next is prefetched */
    float near[BATCH_ROWS + WORD_ROWS];
    seeker seekers[SCAN_QUERIES_MAX];
    for (uint32_t i = 0; i < n; i++) {
        seekers[i].scan = &scans[i];
        seekers[i].cut = (double)INFINITY;
        seekers[i].n = 0;
        reach_init(&seekers[i].reach, scans[i].query);
    }
    uint64_t w = 0;
    uint32_t turn = 0;
    prefetch_batch(&batches[0], scans[0].query, set, &w);
    for (; batches[turn].n && !control_cancelled(control); turn ^= 1) {
        const batch *b = &batches[turn];
        prefetch_batch(&batches[turn ^ 1], scans[0].query, set, &w);
        for (seeker *s = seekers; s < seekers + n; s++) {
            scorer_approximate(s->scan->query, b->slots, b->n, near);
            s->n += within(s->cut, near, b->slots, b->n, s->rows + s->n);
            if (s->n > WAITING_MAX - BATCH_ROWS - WORD_ROWS) score_waiting(s, k);
        }
    }
    for (seeker *s = seekers; s < seekers + n; s++) score_waiting(s, k);
}

void flat_search(scan *scans, uint32_t n, uint32_t k, const uint64_t *allow, uint64_t allow_words,
                 const fvdb_control *control) {
    assert(n >= 1 && n <= SCAN_QUERIES_MAX && k >= 1);
    const store *s = scans[0].query->s;
    row_set set = {store_found(s), allow, (s->n + WORD_ROWS - 1) / WORD_ROWS};
    if (allow && allow_words < set.words) set.words = allow_words;
    for (uint32_t i = 0; i < n; i++) scans[i].found = 0;
    if (store_has_codes(s)) scan_codes(scans, n, k, &set, control);
    else scan_rows(scans, n, k, &set, control);
    for (uint32_t i = 0; i < n; i++) hits_sort(s, scans[i].hits, scans[i].found);
}
