/* Exact scan: the ground truth, the answer for small indexes and for few allowed rows.
 *
 * Where there are codes a row is looked at in up to three steps: its code, an eighth of its bytes; its high plane, half of them;
 * all of it.  After each step it is left out if it is surely farther than the k nearest so far: what a code or a high plane
 * lacks is bounded (Cauchy and Schwarz with the distance of a row from its decoded self, which is kept for each row), so no row
 * is missed.  Of 100,000 rows some 120 high planes and 40 exact rows are read.  Without codes the second step comes first.
 * Rows come from memory once for a few queries: each scores a bitmap word of them before the next word is read. */
#include "store.h"

#include <math.h>

#define WORD_ROWS 64u /* rows of one bitmap word */
/* Rows that are looked at together, their codes prefetched.  Of few allowed rows there is hardly one in a word: fetched one by
 * one, each would be waited for (1,000 of 100 K x 384: 81 ns a row). */
#define BATCH_ROWS 64u
/* Rows that wait for an exact distance.  The longer they wait, the nearer are the rows that are known by then, and the
 * fewer are left with a chance. */
#define WAITING_MAX 1024u
/* So many beyond k, the nearest by code, are scored before all others. */
#define FIRST_EXTRA 4u
/* Rows scored by high planes at once, while as many are prefetched. */
#define HIGH_ROWS 8u
/* Rows of one turn: what each finds rules out rows of the next. */
#define TURN_ROWS 32u
/* So many rows tell whether high planes are worth reading first. */
#define HIGH_TRIED 128u

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

/* The rows a scan may return, in slot order: a bitmap word at a time, or one by one where they are named so. */
typedef struct row_set {
    const uint64_t *live, *allow;
    uint64_t words;
    const uint32_t *slots; /* NULL: the bitmap says them */
    uint64_t n_slots;
    uint32_t rows; /* of the store */
} row_set;

static uint32_t rows_of_word(const row_set *set, uint64_t w, uint32_t *slots) {
    uint32_t n = 0;
    for (uint64_t bits = set->allow ? set->live[w] & set->allow[w] : set->live[w]; bits; bits &= bits - 1)
        slots[n++] = (uint32_t)(w * WORD_ROWS) + (uint32_t)__builtin_ctzll(bits);
    return n;
}

/* Rows that come one after the other, BATCH_ROWS of them and up to a word more, or those that are left. */
typedef struct batch {
    uint32_t slots[BATCH_ROWS + WORD_ROWS], n;
} batch;

/* Rows from word or place *at on. */
static void take_batch(batch *b, const row_set *set, uint64_t *at) {
    b->n = 0;
    if (!set->slots) {
        while (*at < set->words && b->n < BATCH_ROWS) b->n += rows_of_word(set, (*at)++, b->slots + b->n);
        return;
    }
    while (*at < set->n_slots && b->n < BATCH_ROWS) {
        const uint32_t slot = set->slots[(*at)++];
        if (slot < set->rows && bit_get(set->live, slot)) b->slots[b->n++] = slot;
    }
}

static void prefetch_batch(batch *b, const scorer *q, const row_set *set, uint64_t *at) {
    take_batch(b, set, at);
    for (uint32_t i = 0; i < b->n; i++) scorer_prefetch_by(q, store_approximate(q->s), b->slots[i]);
}

/* Scores rows exactly; returns how many of them were among the nearest at the time. */
static uint32_t offer_exact(scan *one, uint32_t k, const uint32_t *slots, uint32_t n) {
    const scorer *q = one->query;
    uint32_t offered = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i + EXACT_AHEAD < n) scorer_prefetch_exact(q, slots[i + EXACT_AHEAD]);
        hit h = {scorer_exact(q, slots[i]), slots[i]};
        if (one->found == k && h.distance > one->hits[0].distance) continue;
        hits_offer(q->s, one->hits, &one->found, k, h);
        offered++;
    }
    return offered;
}

/* A query of a scan at work. */
typedef struct seeker {
    scan *scan;
    bounds bounds;
    reach by_code;              /* of the k-th nearest so far */
    double cut;                 /* a row whose code puts it farther is surely not among the nearest */
    uint64_t rows[WAITING_MAX]; /* keys of those that wait for an exact distance */
    uint32_t n;
    uint64_t high_seen, high_vain; /* rows scored by high planes, and those scored exactly after it for nothing */
} seeker;

static bool found_k(const seeker *s, uint32_t k) { return s->scan->found == k; }

static double kth_distance(const seeker *s) { return s->scan->hits[0].distance; }

static void seeker_init(seeker *s, scan *one) {
    s->scan = one;
    s->n = 0;
    s->high_seen = s->high_vain = 0;
    s->cut = (double)INFINITY;
    bounds_init(&s->bounds, one->query);
}

/* Keeps those of n keys whose own coding error leaves their row a chance.  The largest error of any row rules out most
 * of them without a look at their own. */
static uint32_t keep_within(const seeker *s, uint64_t *keys, uint32_t n) {
    const store *rows = s->scan->query->s;
    uint32_t near = 0, kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t key = keys[i];
        keys[near] = key;
        near += !beyond(near_distance(key), s->cut);
    }
    for (uint32_t i = 0; i < near; i++) {
        const uint64_t key = keys[i];
        const double most = reach_of(&s->by_code, store_code_error(rows, near_number(key)));
        keys[kept] = key;
        kept += !beyond(near_distance(key), most);
    }
    return kept;
}

/* Lets those of some rows wait that may be among the nearest.  In most batches there is none, which the largest error of any
 * row is enough to say. */
static void add_waiting(seeker *s, const float *near, const uint32_t *slots, uint32_t n) {
    uint64_t *out = s->rows + s->n;
    uint32_t gone = 0;
    for (uint32_t i = 0; i < n; i++) gone += beyond(near[i], s->cut);
    if (gone == n) return;
    for (uint32_t i = 0; i < n; i++) out[i] = near_key(near[i], slots[i]);
    s->n += s->cut < (double)INFINITY ? keep_within(s, out, n) : n;
}

/* Scores rows by their high planes; leaves those that may be among the nearest in place and returns how many they are. */
static uint32_t keep_by_high(const seeker *s, uint32_t *slots, uint32_t n) {
    const scorer *q = s->scan->query;
    const reach r = bounds_by_high(&s->bounds, kth_distance(s));
    const size_t plane = q->s->dim16 * sizeof(uint16_t);
    float near[HIGH_ROWS];
    uint32_t kept = 0, ahead = 0;
    for (uint32_t at = 0; at < n; at += HIGH_ROWS) {
        const uint32_t m = min_u32(HIGH_ROWS, n - at);
        for (; ahead < min_u32(n, at + 2 * HIGH_ROWS); ahead++) prefetch_bytes(store_high(q->s, slots[ahead]), plane);
        scorer_high(q, slots + at, m, near);
        for (uint32_t i = at; i < at + m; i++) {
            if (beyond(near[i - at], reach_of(&r, high_error(&s->bounds, slots[i])))) continue;
            prefetch_bytes(store_low(q->s, slots[i]), plane);
            slots[kept++] = slots[i];
        }
    }
    return kept;
}

/* A high plane costs a third of an exact distance: it pays where it rules out a third of the rows that are not wanted.  Rows that
 * lie as near each other as high planes are precise gain nothing by being scored twice. */
static bool high_helps(const seeker *s) {
    return s->bounds.high_serves && (3 * s->high_vain <= 2 * s->high_seen || s->high_seen < HIGH_TRIED);
}

/* Scores rows exactly, once k are known those alone that their high planes leave a chance: a turn of rows at a time, so that
 * each profits from what the one before found. */
static void score_rows(seeker *s, uint32_t k, uint32_t *slots, uint32_t n) {
    if (!found_k(s, k)) {
        offer_exact(s->scan, k, slots, n);
        return;
    }
    for (uint32_t at = 0; at < n; at += TURN_ROWS) {
        const uint32_t m = min_u32(TURN_ROWS, n - at);
        if (!high_helps(s)) {
            offer_exact(s->scan, k, slots + at, m);
            continue;
        }
        const uint32_t kept = keep_by_high(s, slots + at, m);
        s->high_seen += m;
        s->high_vain += kept - offer_exact(s->scan, k, slots + at, kept);
    }
}

/* Where there are no codes. */
static void scan_rows(scan *scans, uint32_t n, uint32_t k, const row_set *set, const fvdb_control *control) {
    seeker seekers[SCAN_QUERIES_MAX];
    batch rows, left;
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) seeker_init(&seekers[i], &scans[i]);
    for (take_batch(&rows, set, &at); rows.n && !control_cancelled(control); take_batch(&rows, set, &at)) {
        for (uint32_t i = 0; i < n; i++) {
            left = rows;
            score_rows(&seekers[i], k, left.slots, left.n);
        }
    }
}

/* Scores the `first` nearest by code of those that wait, and drops what is then out of reach. */
static void score_waiting(seeker *s, uint32_t k, uint32_t first) {
    uint32_t slots[WAITING_MAX];
    keys_select(s->rows, s->n, first);
    for (uint32_t i = 0; i < first; i++) slots[i] = near_number(s->rows[i]);
    score_rows(s, k, slots, first);
    s->n -= first;
    memmove(s->rows, s->rows + first, s->n * sizeof *s->rows);
    if (!found_k(s, k)) return;
    s->by_code = bounds_by_code(&s->bounds, kth_distance(s));
    s->cut = reach_of(&s->by_code, s->scan->query->s->code_error_max);
    s->n = keep_within(s, s->rows, s->n);
}

/* Where many are still left, codes say little: all that wait are scored. */
static void make_room(seeker *s, uint32_t k) {
    score_waiting(s, k, min_u32(s->n, k + FIRST_EXTRA));
    if (s->n > WAITING_MAX / 2) score_waiting(s, k, s->n);
}

static void finish(seeker *s, uint32_t k) {
    score_waiting(s, k, min_u32(s->n, k + FIRST_EXTRA));
    score_waiting(s, k, s->n);
    assert(s->scan->found <= k && s->n == 0);
}

static void scan_codes(scan *scans, uint32_t n, uint32_t k, const row_set *set, const fvdb_control *control) {
    batch batches[2]; /* one is scored while the next is prefetched */
    float near[BATCH_ROWS + WORD_ROWS];
    seeker seekers[SCAN_QUERIES_MAX];
    for (uint32_t i = 0; i < n; i++) seeker_init(&seekers[i], &scans[i]);
    uint64_t at = 0;
    uint32_t turn = 0;
    prefetch_batch(&batches[0], scans[0].query, set, &at);
    for (; batches[turn].n && !control_cancelled(control); turn ^= 1) {
        const batch *b = &batches[turn];
        prefetch_batch(&batches[turn ^ 1], scans[0].query, set, &at);
        for (seeker *s = seekers; s < seekers + n; s++) {
            scorer_approximate(s->scan->query, b->slots, b->n, near);
            add_waiting(s, near, b->slots, b->n);
            if (s->n > WAITING_MAX - BATCH_ROWS - WORD_ROWS) make_room(s, k);
        }
    }
    for (seeker *s = seekers; s < seekers + n; s++) finish(s, k);
}

void flat_search(scan *scans, uint32_t n, uint32_t k, const fvdb_allowed *allowed, const fvdb_control *control) {
    assert(n >= 1 && n <= SCAN_QUERIES_MAX && k >= 1);
    const store *s = scans[0].query->s;
    row_set set = {.live = store_found(s), .words = (s->n + WORD_ROWS - 1) / WORD_ROWS, .rows = s->n};
    if (allowed) {
        set.allow = allowed->words;
        if (allowed->n_words < set.words) set.words = allowed->n_words;
        set.slots = allowed->slots;
        set.n_slots = allowed->n_slots;
    }
    for (uint32_t i = 0; i < n; i++) scans[i].found = 0;
    if (store_has_codes(s)) scan_codes(scans, n, k, &set, control);
    else scan_rows(scans, n, k, &set, control);
    for (uint32_t i = 0; i < n; i++) hits_sort(s, scans[i].hits, scans[i].found);
}
