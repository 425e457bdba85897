/* Search: exact, and of few of the postings.
 *
 * MaxScore (Turtle & Flood 1995) over windows of documents, with the maxima of blocks (Ding & Suel 2011): in a window each
 * list has a bound, the highest score that a block of it in the window can give.  The lists with the lowest bounds, which together
 * cannot bring a document among the k best, are looked into only for documents that another list has.  The others are
 * added up in an array of the window's documents.  Decisions 25 and 33 have what was measured.
 *
 * Scores are integers (text_query.c), so a sum is the same in any order, and a bound never below what it bounds. */
#include "text.h"
#include "words.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define WINDOW 8192u
#define WINDOW_FIRST 64u
#define WINDOW_WORDS (WINDOW / 64)
/* Room behind the documents of a window. */
#define SPARE POSTING_STEP

/* The postings of a term in one segment: in blocks, or few of them, unpacked and scored. */
typedef struct list {
    const query_term *term;
    posting_cursor *blocks; /* NULL: unpacked */
    uint32_t *docs, *scores;
    uint32_t n;           /* of unpacked ones */
    uint32_t at;          /* the next posting, of those unpacked, or of the block that is */
    uint32_t block;       /* the first block that reaches into the window */
    uint32_t end_block;   /* one past the last such block; 0 before the first window */
    uint32_t bound_block; /* the block whose bound is known, and that bound */
    uint32_t block_bound;
    uint32_t bound; /* in the window */
    bool is_high;   /* in the window: it may bring documents among the best */
} list;

typedef struct search {
    text_query *q;
    text_query room; /* memory for lists of one segment */
    const text_segment *s;
    const uint64_t *allow;
    uint64_t allow_words;
    uint64_t *mask; /* owned; allow points to it */
    list *lists;    /* in the order of the query's terms, the one of all that are unpacked last */
    uint32_t n_lists, *order;
    list *unpacked;
    uint32_t n_unpacked;
    uint64_t *best; /* keys of the best, the worst of them first once there are k */
    uint32_t k, found;
    uint32_t floor; /* so many documents have at least this score that no lower one comes among the best */
    uint32_t need;  /* the same for a window, by what was found before it */
    uint32_t scores[WINDOW];
    uint64_t touched[WINDOW_WORDS];
    uint8_t places[WINDOW]; /* of documents in a block; what is left of other blocks does no harm */
    uint32_t docs[WINDOW + SPARE], sums[WINDOW];
} search;

/* ---- scores ---- */

static uint32_t score_long(const text_query *q, const query_term *term, uint32_t freq, uint32_t length) {
    const float norm =
        length < TEXT_LENGTHS ? q->state->norms[length] : (float)text_norm(&q->t->config, q->state, length - 1);
    return score_of_part(term->times, term->lesser, term->factor, (float)freq / ((float)freq + norm));
}

/* What a term gives a document; length plus 1. */
static inline uint32_t score_of(const text_query *q, const query_term *term, uint32_t freq, uint32_t length) {
    if (freq <= term->tabled && length < TEXT_LENGTHS) return term->table[(size_t)(freq - 1) * TEXT_LENGTHS + length];
    return score_long(q, term, freq, length);
}

/* What a term gives the documents of an unpacked block: numbers that are the same as those of score_long, several at a time. */
static void score_postings(const text_query *q, const query_term *term, const posting_cursor *c,
                           uint32_t *restrict out) {
    float norms[TEXT_BLOCK_POSTINGS];
    uint32_t longest = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        const uint32_t length = segment_length(c->s, c->docs[i]);
        longest = max_u32(longest, length);
        norms[i] = q->state->norms[min_u32(length, TEXT_LENGTHS - 1)];
    }
    if (longest >= TEXT_LENGTHS) {
        for (uint32_t i = 0; i < c->count; i++)
            out[i] = score_long(q, term, c->freqs[i], segment_length(c->s, c->docs[i]));
        return;
    }
    const float factor = term->factor;
    const uint32_t times = term->times, lesser = term->lesser, n = c->count, *restrict freqs = c->freqs;
    for (uint32_t i = 0; i < n; i++) {
        const float freq = (float)freqs[i];
        out[i] = score_of_part(times, lesser, factor, freq / (freq + norms[i]));
    }
}

/* The highest score that blocks can give, by the least lengths of their classes and the highest frequency.  The last class is of
 * frequencies from SKIP_CLASSES on, so a lower highest one, which only damage gives, is none to look up. */
static uint32_t bound_of_classes(const text_query *q, const query_term *term, const uint8_t *least, uint32_t highest) {
    const uint32_t most = max_u32(highest, SKIP_CLASSES);
    const uint32_t *table = term->table;
    uint32_t bound = 0;
    if (term->tabled == SKIP_CLASSES && most == SKIP_CLASSES) {
#pragma GCC unroll 4
        for (uint32_t i = 0; i < SKIP_CLASSES; i++) bound = max_u32(bound, table[i * TEXT_LENGTHS + least[i]]);
        return bound;
    }
    for (uint32_t i = 0; i < SKIP_CLASSES; i++)
        if (least[i]) bound = max_u32(bound, score_of(q, term, i + 1 < SKIP_CLASSES ? i + 1 : most, least[i]));
    return bound;
}

/* ---- lists ---- */

/* Room for n unpacked postings, and one behind the last. */
static bool list_room(search *x, list *l, uint32_t n) {
    l->docs = query_alloc(&x->room, (size_t)n + 1, sizeof *l->docs);
    l->scores = query_alloc(&x->room, (size_t)n + 1, sizeof *l->scores);
    return l->docs && l->scores;
}

static void list_end(list *l, uint32_t n) {
    l->n = n;
    l->docs[n] = TEXT_NONE;
    l->scores[n] = 0;
}

/* Few postings: all at once. */
static bool unpack_list(search *x, list *l, const term_info *info) {
    posting_cursor c;
    if (!list_room(x, l, info->n)) return false;
    uint32_t n = 0;
    postings_open(&c, x->s, info);
    for (uint32_t block = 0; block < c.n_blocks && postings_load(&c, block); block++) {
        postings_freqs(&c);
        memcpy(l->docs + n, c.docs, c.count * sizeof *c.docs);
        score_postings(x->q, l->term, &c, l->scores + n);
        n += c.count;
    }
    list_end(l, n);
    return true;
}

/* All bits where a <= b, else none: by arithmetic, as compilers make a branch of a comparison before a load. */
static inline uint32_t mask_up_to(uint32_t a, uint32_t b) { return (uint32_t)(((int64_t)a - (int64_t)b - 1) >> 63); }

/* All bits where a == b, else none. */
static inline uint32_t mask_equal(uint32_t a, uint32_t b) { return (uint32_t)(((int64_t)(a ^ b) - 1) >> 63); }

/* One list of two, whose scores are sums.  No branch depends on which list comes next: nobody could foresee it. */
static bool join_two(search *x, const list *a, const list *b, list *out) {
    list l = {.bound_block = TEXT_NONE};
    if (!list_room(x, &l, a->n + b->n)) return false;
    const uint32_t *docs_a = a->docs, *docs_b = b->docs, *scores_a = a->scores, *scores_b = b->scores;
    uint32_t *restrict docs = l.docs, *restrict scores = l.scores;
    uint32_t n = 0;
    for (uint32_t i = 0, j = 0, end = a->n + b->n; i + j < end; n++) {
        const uint32_t doc_a = docs_a[i], doc_b = docs_b[j];
        const uint32_t has_a = mask_up_to(doc_a, doc_b), has_b = mask_up_to(doc_b, doc_a);
        docs[n] = (doc_a & has_a) | (doc_b & ~has_a);
        scores[n] = (scores_a[i] & has_a) + (scores_b[j] & has_b);
        i -= has_a; /* one more where it has the document */
        j -= has_b;
    }
    list_end(&l, n);
    *out = l;
    return true;
}

/* One list of all that are unpacked: so its best documents are known with what all rare words of the query give them. */
static bool join_unpacked(search *x) {
    list *lists = x->unpacked;
    uint32_t kept;
    for (uint32_t n = x->n_unpacked; n > 1; n = kept) {
        for (kept = 0; kept < n / 2; kept++)
            if (!join_two(x, &lists[2 * kept], &lists[2 * kept + 1], &lists[kept])) return false;
        if (n % 2) lists[kept++] = lists[n - 1];
    }
    if (x->n_unpacked) x->lists[x->n_lists++] = lists[0];
    return true;
}

/* Adds the list of a term where the segment has it. */
static bool add_list(search *x, const query_term *term, uint32_t segment) {
    const term_info *info = &term->infos[segment];
    if (info->n == 0) return true;
    list l = {.term = term, .bound_block = TEXT_NONE};
    if (info->n <= TEXT_UNPACKED) {
        if (!unpack_list(x, &l, info)) return false;
        x->unpacked[x->n_unpacked++] = l;
        return true;
    }
    l.blocks = query_alloc(&x->room, 1, sizeof *l.blocks);
    if (!l.blocks) return false;
    if (postings_open(l.blocks, x->s, info)) x->lists[x->n_lists++] = l;
    return true;
}

static bool load_block(list *l, uint32_t block) {
    l->at = 0;
    return postings_load(l->blocks, block);
}

/* Goes to the first document that is not below `base`; a lower bound of it, or TEXT_NONE at the end. */
static uint32_t advance(list *l, uint32_t base) {
    if (!l->blocks) {
        while (l->at < l->n && l->docs[l->at] < base) l->at++;
        return l->at < l->n ? l->docs[l->at] : TEXT_NONE;
    }
    const posting_cursor *c = l->blocks;
    /* All before the last one of the window before end before it. */
    if (l->end_block) l->block = max_u32(l->block, l->end_block - 1);
    while (l->block < c->n_blocks && skip_last(c, l->block) < base) l->block++;
    if (l->block == c->n_blocks) return TEXT_NONE;
    return l->block ? max_u32(base, skip_last(c, l->block - 1) + 1) : base;
}

static inline const uint8_t *skip_classes(const list *l, uint32_t block) {
    return l->blocks->skips + (size_t)block * SKIP_BYTES + SKIP_LENGTHS;
}

static inline uint32_t bound_of_block(const text_query *q, list *l, uint32_t block) {
    if (block != l->bound_block) {
        const uint8_t *classes = skip_classes(l, block);
        l->bound_block = block;
        l->block_bound = bound_of_classes(q, l->term, classes, (uint32_t)load_le(classes + SKIP_CLASSES, 4));
    }
    return l->block_bound;
}

/* The same for the blocks that reach below `end`, from l->block on: that of their least lengths and highest frequency, so that scores
 * are looked up once. */
static uint32_t bound_of_blocks(const text_query *q, list *l, uint32_t end) {
    const posting_cursor *c = l->blocks;
    uint8_t least[SKIP_CLASSES] = {0};
    uint32_t highest = 0, block = l->block;
    for (bool goes_on = true; goes_on; block++) {
        const uint8_t *classes = skip_classes(l, block);
        highest = max_u32(highest, (uint32_t)load_le(classes + SKIP_CLASSES, 4));
        /* 0, for none, is above all others when 1 is taken away. */
#pragma GCC unroll 4
        for (uint32_t i = 0; i < SKIP_CLASSES; i++) {
            const uint8_t a = (uint8_t)(least[i] - 1), b = (uint8_t)(classes[i] - 1);
            least[i] = (uint8_t)((a < b ? a : b) + 1);
        }
        goes_on = block + 1 < c->n_blocks && skip_last(c, block) + 1 < end;
    }
    l->end_block = block;
    return bound_of_classes(q, l->term, least, highest);
}

static uint32_t bound_within(const text_query *q, list *l, uint32_t end) {
    if (!l->blocks) {
        uint32_t bound = 0;
        for (uint32_t i = l->at; i < l->n && l->docs[i] < end; i++) bound = max_u32(bound, l->scores[i]);
        return bound;
    }
    const posting_cursor *c = l->blocks;
    if (l->block == c->n_blocks) return 0;
    if (l->block + 1 < c->n_blocks && skip_last(c, l->block) + 1 < end) return bound_of_blocks(q, l, end);
    l->end_block = l->block + 1;
    return bound_of_block(q, l, l->block);
}

/* A list's score of a document that is above all asked for before; *has: whether it has the document. */
static inline uint32_t seek(const text_query *q, list *l, uint32_t doc, bool *has) {
    posting_cursor *c = l->blocks;
    *has = false;
    if (!c) {
        while (l->at < l->n && l->docs[l->at] < doc) l->at++;
        *has = l->at < l->n && l->docs[l->at] == doc;
        return *has ? l->scores[l->at] : 0;
    }
    while (l->block < c->n_blocks && skip_last(c, l->block) < doc) l->block++;
    if (l->block == c->n_blocks) return 0;
    if (c->block != l->block && !load_block(l, l->block)) return 0;
    const uint32_t at = postings_from(c, doc);
    l->at = at;
    *has = at < c->count && c->docs[at] == doc;
    return *has ? score_of(q, l->term, postings_freq(c, at), segment_length(c->s, doc)) : 0;
}

/* ---- phrases ---- */

/* One place of a phrase: a term, and the positions of the document that it has reached. */
typedef struct phrase_term {
    list l;
    reader positions;
    uint32_t positions_block, positions_of; /* the posting that `positions` begins with */
    int32_t offset;
} phrase_term;

/* The places in a document from which a term stands at its offset: those of them that `starts` has, or all at first. */
static bool filter_starts(phrase_term *p, uint32_t doc, bool is_first, byte_buffer *starts) {
    posting_cursor *c = p->l.blocks;
    if (p->positions_block != c->block || p->positions_of > p->l.at) {
        p->positions = postings_positions(c);
        p->positions_block = c->block;
        p->positions_of = 0;
    }
    postings_freqs(c);
    for (; p->positions_of < p->l.at; p->positions_of++)
        for (uint32_t i = 0; i < c->freqs[p->positions_of] && p->positions.ok; i++) read_varint(&p->positions);
    assert(c->docs[p->l.at] == doc);
    (void)doc;
    int64_t position = 0, *kept = (int64_t *)(void *)starts->bytes;
    const size_t n = starts->used / sizeof *kept;
    size_t at = 0, n_kept = 0;
    for (uint32_t i = 0; i < c->freqs[p->l.at] && p->positions.ok; i++) {
        position += (int64_t)(read_varint(&p->positions) & UINT32_MAX);
        const int64_t start = position - p->offset;
        if (is_first) {
            if (!buffer_add(starts, &start, sizeof start)) return false;
            continue;
        }
        while (at < n && kept[at] < start) at++;
        if (at < n && kept[at] == start) kept[n_kept++] = start;
    }
    p->positions_of++;
    if (!is_first) starts->used = n_kept * sizeof *kept;
    return true;
}

/* The terms of a phrase in a segment, the one in fewest documents first; false: out of memory.  *n is 0 where one of them
 * is in none. */
static bool open_phrase(search *x, const query_clause *c, uint32_t segment, phrase_term **out, uint32_t *n) {
    phrase_term *terms = query_alloc(&x->room, c->n, sizeof *terms);
    *n = 0;
    if (!terms) return false;
    for (uint32_t i = 0; i < c->n; i++) {
        const query_term *term = &x->q->terms[c->terms[i]];
        posting_cursor *cursor = query_alloc(&x->room, 1, sizeof *cursor);
        if (!cursor) return false;
        const term_info *info = &term->infos[segment];
        if (info->n == 0 || info->positions_size == 0 || !postings_open(cursor, x->s, info)) return true;
        terms[i] =
            (phrase_term){.l = {.term = term, .blocks = cursor}, .offset = c->offsets[i], .positions_block = TEXT_NONE};
        if (cursor->n >= terms[0].l.blocks->n) continue;
        const phrase_term swap = terms[0];
        terms[0] = terms[i];
        terms[i] = swap;
    }
    *out = terms;
    *n = c->n;
    return true;
}

static bool is_repeated(const phrase_term *terms, uint32_t i) {
    for (uint32_t j = 0; j < i; j++)
        if (terms[j].l.term == terms[i].l.term) return true;
    return false;
}

/* Whether a document, which the first term has reached, has the phrase, and its score. */
static bool match_phrase(search *x, phrase_term *terms, uint32_t n, uint32_t doc, byte_buffer *starts, bool *matches,
                         uint32_t *score) {
    starts->used = 0;
    *matches = true;
    *score =
        score_of(x->q, terms[0].l.term, postings_freq(terms[0].l.blocks, terms[0].l.at), segment_length(x->s, doc));
    for (uint32_t i = 1; i < n && *matches; i++) {
        const uint32_t more = seek(x->q, &terms[i].l, doc, matches);
        if (!is_repeated(terms, i)) *score += more;
    }
    for (uint32_t i = 0; i < n && *matches; i++) {
        if (!filter_starts(&terms[i], doc, i == 0, starts)) return false;
        *matches = starts->used > 0;
    }
    return true;
}

/* The documents of a segment that have a phrase, as a list. */
static bool find_phrase(search *x, const query_clause *c, uint32_t segment, list *out) {
    phrase_term *terms;
    uint32_t n;
    byte_buffer starts = {0};
    if (!open_phrase(x, c, segment, &terms, &n)) return false;
    *out = (list){.bound_block = TEXT_NONE};
    bool had = list_room(x, out, n ? terms[0].l.blocks->n : 0);
    if (!had) return false;
    list_end(out, 0);
    if (n == 0) return true;
    list *first = &terms[0].l;
    for (uint32_t block = 0; block < first->blocks->n_blocks && had; block++) {
        if (!load_block(first, block)) break;
        for (first->at = 0; first->at < first->blocks->count && had; first->at++) {
            const uint32_t doc = first->blocks->docs[first->at];
            bool matches;
            uint32_t score;
            had = match_phrase(x, terms, n, doc, &starts, &matches, &score);
            if (!had || !matches) continue;
            out->docs[out->n] = doc;
            out->scores[out->n] = score;
            list_end(out, out->n + 1);
        }
    }
    mem_free(starts.bytes);
    return had;
}

/* ---- masks ---- */

static uint32_t slots_end(const text_state *state) {
    uint32_t end = 0;
    for (uint32_t i = 0; i < state->n; i++) end = max_u32(end, segment_slots_end(state->segments[i]));
    return end;
}

static void mark(const text_segment *s, uint32_t doc, uint64_t *slots) {
    if (bit_get(s->alive, doc)) bit_set(slots, segment_slot(s, doc));
}

static void mark_term(search *x, const term_info *info, uint64_t *slots) {
    posting_cursor cursor;
    if (!postings_open(&cursor, x->s, info)) return;
    for (uint32_t block = 0; block < cursor.n_blocks; block++) {
        postings_load(&cursor, block);
        for (uint32_t at = 0; at < cursor.count; at++) mark(x->s, cursor.docs[at], slots);
    }
}

/* All words with the prefixes of a clause, not only those that are scored: of -pre* no row may have any. */
static void mark_prefixes(search *x, const query_clause *c, uint64_t *slots) {
    const fvdb_text_query *query = x->q->query;
    for (uint32_t i = 0; i < c->given->n; i++) {
        const fvdb_text_term *term = &query->terms[c->given->first + i];
        const uint8_t *prefix = query->bytes + term->start;
        term_cursor at;
        for (bool has = terms_seek(&at, x->s, prefix, term->size); has && terms_has_prefix(&at, prefix, term->size);
             has = terms_next(&at))
            mark_term(x, &at.info, slots);
    }
}

/* Marks the slots of rows that match a clause. */
static bool mark_clause(search *x, const query_clause *c, uint64_t *slots) {
    bool had = true;
    for (uint32_t i = 0; i < x->q->state->n && had; i++) {
        x->s = x->q->state->segments[i];
        if (c->flags & FVDB_TEXT_PHRASE) {
            list l;
            had = find_phrase(x, c, i, &l);
            for (uint32_t j = 0; had && j < l.n; j++) mark(x->s, l.docs[j], slots);
        }
        const bool is_signed = c->flags & (FVDB_TEXT_REQUIRED | FVDB_TEXT_EXCLUDED);
        if (is_signed && (c->flags & FVDB_TEXT_PREFIX)) mark_prefixes(x, c, slots);
        else
            for (uint32_t j = 0; j < c->n && !(c->flags & FVDB_TEXT_PHRASE); j++)
                mark_term(x, &x->q->terms[c->terms[j]].infos[i], slots);
        query_close(&x->room);
    }
    return had;
}

/* Puts required and excluded clauses into the bitmap of allowed rows, a copy of the caller's. */
static fvdb_status make_mask(search *x, fvdb_diag *diag) {
    if (!x->q->has_mask) return FVDB_OK;
    const size_t words = (slots_end(x->q->state) + 63u) / 64;
    uint64_t *mask = mem_alloc_array(words, sizeof *mask), *marked = mem_alloc_array(words, sizeof *marked);
    bool had = mask && marked;
    for (size_t w = 0; had && w < words; w++) mask[w] = x->allow ? w < x->allow_words ? x->allow[w] : 0 : UINT64_MAX;
    for (uint32_t i = 0; i < x->q->n_clauses && had; i++) {
        const query_clause *c = &x->q->clauses[i];
        if (!(c->flags & (FVDB_TEXT_REQUIRED | FVDB_TEXT_EXCLUDED))) continue;
        memset(marked, 0, words * sizeof *marked);
        had = mark_clause(x, c, marked);
        for (size_t w = 0; w < words; w++) mask[w] &= c->flags & FVDB_TEXT_REQUIRED ? marked[w] : ~marked[w];
    }
    mem_free(marked);
    x->mask = mask;
    if (!had) return FAIL_MEMORY(diag);
    x->allow = mask;
    x->allow_words = words;
    return FVDB_OK;
}

/* ---- the best ---- */

#define KEY_IS_HIGHER(context, a, b) ((a) > (b))
DEFINE_HEAP(best, const void *, uint64_t, KEY_IS_HIGHER)

/* Score and slot in one word: a higher one is better. */
static inline uint64_t key_of(uint32_t score, uint32_t slot) { return (uint64_t)score << 32 | (UINT32_MAX - slot); }
static inline uint32_t key_slot(uint64_t key) { return UINT32_MAX - (uint32_t)key; }

/* The lowest score with which rows of slots from `slot` on come among the best. */
static uint32_t score_needed(const search *x, uint32_t slot) {
    if (x->found < x->k) return x->floor;
    return max_u32(x->floor, (uint32_t)(x->best[0] >> 32) + (slot > key_slot(x->best[0])));
}

static void offer(search *x, uint32_t score, uint32_t slot) {
    const uint64_t key = key_of(score, slot);
    if (x->found < x->k) {
        x->best[x->found++] = key;
        for (uint32_t i = x->found / 2; x->found == x->k && i-- > 0;) best_sink(NULL, x->best, x->k, i);
    } else if (key > x->best[0]) {
        x->best[0] = key;
        best_sink(NULL, x->best, x->k, 0);
    }
}

static bool is_candidate(const search *x, uint32_t doc) {
    return bit_get(x->s->alive, doc) && (!x->allow || bit_within(x->allow, x->allow_words, segment_slot(x->s, doc)));
}

/* Most documents asked for with a floor. */
#define FLOOR_K 128u

/* The k-th best score of one list is a floor, as no document has less than some of its terms give.  Rare words, whose lists are
 * unpacked and joined, give much; without a floor, lists could be left out only once k documents are found. */
static void raise_floor(search *x) {
    uint32_t best[FLOOR_K];
    for (uint32_t i = 0; i < x->n_lists; i++) {
        const list *l = &x->lists[i];
        uint32_t n = 0;
        if (l->blocks || l->n < x->k || x->k > FLOOR_K) continue;
        for (uint32_t j = 0; j < l->n; j++) {
            const uint32_t score = l->scores[j];
            if (n == x->k && score <= best[n - 1]) continue;
            if (score <= x->floor || !is_candidate(x, l->docs[j])) continue;
            n += n < x->k;
            uint32_t at = n - 1;
            for (; at && best[at - 1] < score; at--) best[at] = best[at - 1];
            best[at] = score;
        }
        if (n == x->k) x->floor = best[n - 1];
    }
}

/* ---- windows ---- */

/* The lists by their bounds, the lowest first; gives how many of them cannot bring a document among the best, and the sum of
 * their bounds. */
static uint32_t order_lists(search *x, uint32_t *sum) {
    uint32_t *order = x->order, n = 0;
    for (uint32_t i = 1; i < x->n_lists; i++) {
        const uint32_t moved = order[i];
        uint32_t at = i;
        for (; at && x->lists[order[at - 1]].bound > x->lists[moved].bound; at--) order[at] = order[at - 1];
        order[at] = moved;
    }
    *sum = 0;
    for (; n < x->n_lists; n++) {
        const uint32_t more = *sum + x->lists[order[n]].bound;
        if (more >= x->need) break;
        *sum = more;
    }
    return n;
}

/* Whether one list alone, the last in order, can give anything that those before place `low` do not. */
static bool is_alone(const search *x, uint32_t low) {
    return low + 1 == x->n_lists || x->lists[x->order[x->n_lists - 2]].bound == 0;
}

/* Puts words behind place `low` whose stems are there, and takes their bounds from the sum; gives the new place.  A word counts less
 * than its stem, so its list is seldom among those that bring documents.  But it has no other documents than its stem: where that
 * list is gone through, the word's costs little, and most of its blocks are looked into anyway.  What it could give is then not
 * left for documents that do not even have the stem, so fewer of them are candidates. */
static uint32_t raise_words(search *x, uint32_t low, uint32_t *sum) {
    uint32_t *order = x->order;
    for (uint32_t i = 0; i < x->n_lists; i++) x->lists[order[i]].is_high = i >= low;
    for (uint32_t i = low; i-- > 0;) {
        const uint32_t word = order[i];
        const list *l = &x->lists[word];
        if (l->bound == 0) break;
        if (!l->blocks || !l->term->stem || word + 1 == x->n_lists) continue;
        if (l->term->stem != x->lists[word + 1].term || !x->lists[word + 1].is_high) continue;
        *sum -= l->bound;
        memmove(order + i, order + i + 1, (--low - i) * sizeof *order);
        order[low] = word;
    }
    return low;
}

/* Whether all scores of an unpacked block stand in the term's table, by lengths of one byte. */
static inline bool are_tabled(const posting_cursor *c, const query_term *term) {
    return term->tabled && c->s->length_width == 1 && 1u << c->freq_width <= TEXT_FREQS;
}

/* What the list gives the documents of the postings at .. stop - 1 of the block that is unpacked. */
static void score_block(const text_query *q, list *l, uint32_t at, uint32_t stop, uint32_t *restrict out) {
    posting_cursor *c = l->blocks;
    const uint32_t n = stop - at, *docs = c->docs + at, *freqs = c->freqs + at;
    const uint32_t *table = l->term->table;
    const uint8_t *lengths = c->s->lengths;
    postings_freqs(c);
    if (are_tabled(c, l->term))
        for (uint32_t i = 0; i < n; i++) out[i] = table[(size_t)(freqs[i] - 1) * TEXT_LENGTHS + lengths[docs[i]]];
    else
        for (uint32_t i = 0; i < n; i++) out[i] = score_of(q, l->term, freqs[i], segment_length(c->s, docs[i]));
}

static inline void touch(search *x, uint32_t place, uint32_t score) {
    x->scores[place] += score;
    x->touched[place / 64] |= UINT64_C(1) << (place % 64);
}

/* Adds up what a list gives the documents of a window.  Which ones these are is noted unless there are many: words of bits that
 * are written again and again cost more then than a look at all of the window. */
static void add_up(search *x, list *l, uint32_t base, uint32_t end, bool are_many) {
    posting_cursor *c = l->blocks;
    if (!c) {
        for (; l->at < l->n && l->docs[l->at] < end; l->at++) touch(x, l->docs[l->at] - base, l->scores[l->at]);
        return;
    }
    uint32_t scores[TEXT_BLOCK_POSTINGS];
    for (uint32_t block = l->block; block < c->n_blocks; block++) {
        if (block > l->block && skip_last(c, block - 1) + 1 >= end) break;
        if (c->block != block && !load_block(l, block)) continue;
        const uint32_t at = postings_from(c, base), n = postings_from(c, end) - at;
        const uint32_t *docs = c->docs + at;
        score_block(x->q, l, at, at + n, scores);
        if (are_many)
            for (uint32_t i = 0; i < n; i++) x->scores[docs[i] - base] += scores[i];
        else
            for (uint32_t i = 0; i < n; i++) touch(x, docs[i] - base, scores[i]);
    }
}

/* Bits of a word that are taken without a look at how many there are: a branch for each could not be foreseen.  The pragma is
 * needed here and below, as loops are left loops otherwise (build_native.py). */
#define BITS_AT_ONCE 4u

/* The places of the bits of a word, from `first` on, put to `to`; up to BITS_AT_ONCE behind them are written, too.  Gives their
 * number. */
static inline uint32_t put_bits(uint64_t word, uint32_t first, uint32_t *to) {
    const uint32_t n = (uint32_t)__builtin_popcountll(word);
    uint32_t done = 0;
    do {
#pragma GCC unroll 4
        for (uint32_t i = 0; i < BITS_AT_ONCE; i++, word &= word - 1)
            to[done + i] = first + (uint32_t)__builtin_ctzll(word | UINT64_C(1) << 63);
        done += BITS_AT_ONCE;
    } while (done < n);
    return n;
}

/* Documents of the window with a score of at least `least`, which is above 0; all scores become 0. */
static uint32_t take_noted(search *x, uint32_t base, uint32_t least) {
    uint32_t noted = 0, n = 0;
    for (uint32_t w = 0; w < WINDOW_WORDS; w++) {
        noted += put_bits(x->touched[w], w * 64, x->docs + noted);
        x->touched[w] = 0;
    }
    for (uint32_t i = 0; i < noted; i++) {
        const uint32_t place = x->docs[i], sum = x->scores[place];
        x->scores[place] = 0;
        x->docs[n] = base + place;
        x->sums[n] = sum;
        n += sum >= least;
    }
    return n;
}

/* A bit for each of 64 scores: whether it is at least `least`. */
static inline uint64_t bits_of_scores(const uint32_t *scores, uint32_t least) {
    uint64_t bits = 0;
#if defined(__SSE2__)
    const __m128i below = _mm_set1_epi32((int32_t)least - 1);
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 64; i += 16) {
        __m128i above[4];
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++)
            above[j] = _mm_cmpgt_epi32(_mm_loadu_si128((const __m128i *)(const void *)(scores + i + 4 * j)), below);
        const __m128i pairs[] = {_mm_packs_epi32(above[0], above[1]), _mm_packs_epi32(above[2], above[3])};
        bits |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_packs_epi16(pairs[0], pairs[1])) << i;
    }
#else
    for (uint32_t i = 0; i < 64; i++) bits |= (uint64_t)(scores[i] >= least) << i;
#endif
    return bits;
}

static uint32_t take_many(search *x, uint32_t base, uint32_t size, uint32_t least) {
    uint32_t n = 0;
    for (uint32_t place = 0; place < size; place += 64)
        n += put_bits(bits_of_scores(x->scores + place, least), place, x->docs + n);
    for (uint32_t i = 0; i < n; i++) {
        x->sums[i] = x->scores[x->docs[i]];
        x->docs[i] += base;
    }
    memset(x->scores, 0, sizeof x->scores);
    memset(x->touched, 0, sizeof x->touched); /* by unpacked lists */
    return n;
}

static inline uint32_t put(search *x, uint32_t n, uint32_t doc, uint32_t score, uint32_t least) {
    x->docs[n] = doc;
    x->sums[n] = score;
    return n + (score >= least);
}

/* The documents of a window where one list alone can bring any: they need no adding up. */
static uint32_t take_list(search *x, list *l, uint32_t base, uint32_t end, uint32_t least) {
    posting_cursor *c = l->blocks;
    uint32_t scores[TEXT_BLOCK_POSTINGS], n = 0;
    if (!c) {
        for (; l->docs[l->at] < end; l->at++) n = put(x, n, l->docs[l->at], l->scores[l->at], least);
        return n;
    }
    for (uint32_t block = l->block; block < c->n_blocks; block++) {
        if (block > l->block && skip_last(c, block - 1) + 1 >= end) break;
        if (bound_of_block(x->q, l, block) < least || (c->block != block && !load_block(l, block))) continue;
        const uint32_t at = postings_from(c, base), stop = postings_from(c, end);
        if (n && at < stop && c->docs[at] <= x->docs[n - 1]) break; /* the table of skips is damaged */
        score_block(x->q, l, at, stop, scores);
        for (uint32_t i = at; i < stop; i++) n = put(x, n, c->docs[i], scores[i - at], least);
    }
    return n;
}

/* Leaves those that are there and allowed. */
static uint32_t keep_allowed(search *x, uint32_t n) {
    uint32_t kept = 0;
    if (!x->allow && x->s->alive_rows == x->s->n_docs) return n;
    for (uint32_t i = 0; i < n; i++) {
        if (!is_candidate(x, x->docs[i])) continue;
        x->docs[kept] = x->docs[i];
        x->sums[kept++] = x->sums[i];
    }
    return kept;
}

/* Whether a list may have more postings in a window than it pays to note. */
#define MANY_BLOCKS 2u
static bool has_many(const list *l, uint32_t end) {
    const uint32_t block = l->block + MANY_BLOCKS;
    return l->blocks && block < l->blocks->n_blocks && skip_last(l->blocks, block) < end;
}

/* The documents of a window whose sums of the lists from place `low` on are at least `least`. */
static uint32_t take_lists(search *x, uint32_t low, uint32_t base, uint32_t end, uint32_t least) {
    bool are_many = false;
    for (uint32_t i = low; i < x->n_lists; i++) are_many = are_many || has_many(&x->lists[x->order[i]], end);
    for (uint32_t i = low; i < x->n_lists; i++)
        if (x->lists[x->order[i]].bound) add_up(x, &x->lists[x->order[i]], base, end, are_many);
    return are_many ? take_many(x, base, end - base, least) : take_noted(x, base, least);
}

/* ---- candidates ---- */

/* Those of the candidates i .. n - 1 that come to `need` with `more`, put to `to`; gives the end of them.  Without a branch that
 * nobody could foresee. */
static inline uint32_t keep_reaching(search *x, uint32_t i, uint32_t n, uint32_t to, uint32_t more) {
    for (; i < n; i++) {
        const uint32_t doc = x->docs[i], sum = x->sums[i];
        x->docs[to] = doc;
        x->sums[to] = sum;
        to += sum + more >= x->need;
    }
    return to;
}

/* What the list's block gives the candidates i .. n - 1, all of which are in its range: its postings between the first and the
 * last of them leave their places by document, so that none is searched for. */
static void add_block(search *x, list *l, uint32_t base, uint32_t i, uint32_t n) {
    posting_cursor *c = l->blocks;
    const query_term *term = l->term;
    const uint32_t stop = postings_from(c, x->docs[n - 1] + 1);
    for (uint32_t at = postings_from(c, x->docs[i]); at < stop; at++) x->places[c->docs[at] - base] = (uint8_t)at;
    postings_freqs(c);
    const uint8_t *lengths = x->s->lengths;
    const uint32_t *table = term->table;
    /* Where the list does not have the document, its place is that of another one, or of none. */
    if (are_tabled(c, term))
        for (; i < n; i++) {
            const uint32_t doc = x->docs[i], place = x->places[doc - base];
            const uint32_t score = table[(size_t)(c->freqs[place] - 1) * TEXT_LENGTHS + lengths[doc]];
            x->sums[i] += score & mask_equal(c->docs[place], doc);
        }
    else
        for (; i < n; i++) {
            const uint32_t doc = x->docs[i], place = x->places[doc - base];
            const uint32_t has = mask_equal(c->docs[place], doc);
            x->sums[i] += score_of(x->q, term, c->freqs[place], segment_length(x->s, doc) & has) & has;
        }
}

/* Candidates of a block from which on all of its postings are gone through. */
#define CANDIDATES 4u

/* Adds a list in blocks to the sums of the n candidates; `rest` is what the lists after it can give.  Leaves those that may still
 * come to `need`, and gives their number.  The bound of a block says which ones may, before it is unpacked. */
static uint32_t add_list_to(search *x, list *l, uint32_t base, uint32_t n, uint32_t rest) {
    const posting_cursor *c = l->blocks;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < POSTING_STEP; i++) x->docs[n + i] = INT32_MAX;
    for (uint32_t i = 0; i < n;) {
        while (l->block < c->n_blocks && skip_last(c, l->block) < x->docs[i]) l->block++;
        if (l->block == c->n_blocks) return keep_reaching(x, i, n, kept, rest);
        const uint32_t first = i, bound = bound_of_block(x->q, l, l->block);
        i = docs_from(x->docs, i,
                      min_u32(skip_last(c, l->block), INT32_MAX - 1) + 1); /* a damaged one may be any number */
        /* All may where the block's bound is that of the window. */
        const uint32_t may = bound < l->bound ? keep_reaching(x, first, i, first, rest + bound) : i;
        if (may == first) continue;
        if (c->block != l->block) load_block(l, l->block);
        if (may - first >= CANDIDATES) add_block(x, l, base, first, may);
        else
            for (uint32_t j = first; j < may; j++) {
                bool has;
                x->sums[j] += seek(x->q, l, x->docs[j], &has);
            }
        kept = keep_reaching(x, first, may, kept, rest);
    }
    return kept;
}

static void search_window(search *x, uint32_t base, uint32_t end) {
    uint32_t rest, low = order_lists(x, &rest);
    if (low == x->n_lists) return;
    const bool alone = is_alone(x, low);
    if (!alone) low = raise_words(x, low, &rest);
    const uint32_t least = x->need > rest + 1 ? x->need - rest : 1;
    uint32_t n = alone ? take_list(x, &x->lists[x->order[x->n_lists - 1]], base, end, least)
                       : take_lists(x, low, base, end, least);
    n = keep_allowed(x, n);
    for (uint32_t i = low; i-- > 0 && n;) {
        list *l = &x->lists[x->order[i]];
        if (l->bound == 0) break;
        rest -= l->bound;
        if (l->blocks) {
            n = add_list_to(x, l, base, n, rest);
            continue;
        }
        for (uint32_t j = 0; j < n; j++) {
            bool has;
            x->sums[j] += seek(x->q, l, x->docs[j], &has);
        }
        n = keep_reaching(x, 0, n, 0, rest);
    }
    for (uint32_t i = 0; i < n; i++) offer(x, x->sums[i], segment_slot(x->s, x->docs[i]));
}

/* Windows grow: until k documents are known, no list can be left out. */
static void search_lists(search *x) {
    uint32_t size = x->found < x->k && !x->floor ? WINDOW_FIRST : WINDOW;
    for (uint32_t base = 0;; size = min_u32(size * 2, WINDOW)) {
        uint32_t next = TEXT_NONE;
        for (uint32_t i = 0; i < x->n_lists; i++) {
            const uint32_t doc = advance(&x->lists[i], base);
            next = doc < next ? doc : next;
        }
        if (next >= x->s->n_docs) return;
        base = next;
        const uint32_t end = min_u32(base + size, x->s->n_docs);
        for (uint32_t i = 0; i < x->n_lists; i++) x->lists[i].bound = bound_within(x->q, &x->lists[i], end);
        x->need = score_needed(x, segment_slot(x->s, base));
        search_window(x, base, end);
        base = end;
    }
}

/* The lists of a segment. */
static bool open_lists(search *x, uint32_t segment) {
    x->s = x->q->state->segments[segment];
    x->n_lists = x->n_unpacked = 0;
    bool had = true;
    for (uint32_t i = 0; i < x->q->n_scored && had; i++) had = add_list(x, &x->q->terms[x->q->scored[i]], segment);
    for (uint32_t i = 0; i < x->q->n_clauses && had; i++) {
        const query_clause *c = &x->q->clauses[i];
        if (!(c->flags & FVDB_TEXT_PHRASE) || (c->flags & FVDB_TEXT_EXCLUDED)) continue;
        had = find_phrase(x, c, segment, &x->unpacked[x->n_unpacked]);
        x->n_unpacked += had;
    }
    had = had && join_unpacked(x);
    for (uint32_t i = 0; i < x->n_lists; i++) x->order[i] = i;
    return had;
}

/* `scores` and `touched` must be zero at the beginning of a window, and are at its end. */
static search *search_alloc(void) {
    search *x = mem_alloc(sizeof *x);
    if (x) memset(x, 0, offsetof(search, docs));
    return x;
}

static fvdb_status open_search(search *x, text_query *q, const uint64_t *allow, uint64_t allow_words, fvdb_diag *diag) {
    const size_t lists = (size_t)q->n_scored + q->n_clauses;
    x->q = q;
    x->allow = allow;
    x->allow_words = allow_words;
    x->lists = query_alloc(q, lists, sizeof *x->lists);
    x->order = query_alloc(q, lists, sizeof *x->order);
    x->unpacked = query_alloc(q, lists, sizeof *x->unpacked);
    if (!x->lists || !x->order || !x->unpacked) return FAIL_MEMORY(diag);
    return make_mask(x, diag);
}

/* ---- entries ---- */

static fvdb_status count_matches(search *x, uint64_t *out, fvdb_diag *diag) {
    const size_t words = (slots_end(x->q->state) + 63u) / 64;
    uint64_t *marked = mem_alloc_array(words, sizeof *marked);
    if (!marked) return FAIL_MEMORY(diag);
    bool had = true;
    for (uint32_t i = 0; i < x->q->n_clauses && had; i++)
        if (!(x->q->clauses[i].flags & FVDB_TEXT_EXCLUDED)) had = mark_clause(x, &x->q->clauses[i], marked);
    *out = 0;
    for (size_t w = 0; w < words; w++)
        *out += (uint64_t)__builtin_popcountll(marked[w] & (!x->allow            ? UINT64_MAX
                                                            : w < x->allow_words ? x->allow[w]
                                                                                 : 0));
    mem_free(marked);
    return had ? FVDB_OK : FAIL_MEMORY(diag);
}

static fvdb_status search_query(search *x, uint32_t k, uint64_t *out_matches, fvdb_diag *diag) {
    x->k = k;
    x->best = query_alloc(x->q, k, sizeof *x->best);
    if (!x->best) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < x->q->state->n; i++) {
        const bool had = open_lists(x, i);
        if (had) {
            raise_floor(x);
            search_lists(x);
        }
        query_close(&x->room);
        if (!had) return FAIL_MEMORY(diag);
    }
    best_heap_sort(NULL, x->best, x->found);
    return out_matches ? count_matches(x, out_matches, diag) : FVDB_OK;
}

static void search_free(search *x, text_query *q) {
    query_close(&x->room);
    query_close(q);
    mem_free(x->mask);
    mem_free(x);
}

fvdb_status text_search(const fvdb_text *t, const fvdb_text_query *query, const text_wanted *wanted, fvdb_diag *diag) {
    text_query q;
    TRY(text_check_present(t, query, diag));
    TRY(query_open(&q, t, query, diag));
    search *x = search_alloc();
    if (!x) {
        query_close(&q);
        return FAIL_MEMORY(diag);
    }
    fvdb_status status = open_search(x, &q, wanted->allow, wanted->allow_words, diag);
    if (status == FVDB_OK) status = search_query(x, wanted->k, wanted->out_matches, diag);
    const double step = text_power(-q.exponent);
    for (uint32_t i = 0; status == FVDB_OK && i < x->found; i++) {
        wanted->out_slots[i] = key_slot(x->best[i]);
        wanted->out_scores[i] = (double)(x->best[i] >> 32) * step;
    }
    if (status == FVDB_OK) *wanted->out_count = x->found;
    search_free(x, &q);
    return status;
}

/* A query of terms alone. */
static fvdb_status search_some(const fvdb_text *t, const uint8_t *bytes, size_t size, const fvdb_text_term *terms,
                               uint32_t n, const text_wanted *wanted, fvdb_diag *diag) {
    const fvdb_text_clause clause = {.n = n};
    const fvdb_text_query query = {bytes, size, terms, &clause, NULL, n, n > 0};
    return text_search(t, &query, wanted, diag);
}

fvdb_status text_search_terms(const fvdb_text *t, const uint8_t *bytes, size_t size, float word_weight,
                              const text_wanted *wanted, fvdb_diag *diag) {
    fvdb_text_term terms[FVDB_TEXT_QUERY_TERMS_MAX];
    uint32_t n = 0;
    for (size_t start = 0, end; start < size; start = end + 1) {
        const uint8_t *zero = memchr(bytes + start, 0, size - start);
        end = zero ? (size_t)(zero - bytes) : size;
        if (n == FVDB_TEXT_QUERY_TERMS_MAX || end > UINT32_MAX)
            return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the query has too many terms", 0, FVDB_TEXT_QUERY_TERMS_MAX, 0);
        const bool is_stem = bytes[start] == FVDB_TEXT_STEM_MARK;
        terms[n++] = (fvdb_text_term){
            .start = (uint32_t)start, .size = (uint32_t)(end - start), .weight = is_stem ? 1 : word_weight};
    }
    return search_some(t, bytes, size, terms, n, wanted, diag);
}

fvdb_status text_search_words(const fvdb_text *t, const uint8_t *bytes, size_t size, const text_wanted *wanted,
                              fvdb_diag *diag) {
    fvdb_text_term terms[FVDB_TEXT_QUERY_TERMS_MAX];
    fvdb_words words;
    fvdb_word word;
    byte_buffer folded = {0};
    uint32_t n = 0;
    bool had = true;
    if (t->config.terms != FVDB_TEXT_WORDS)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "the terms of the index are not words");
    words_begin(&words, bytes, size);
    while (n < FVDB_TEXT_QUERY_TERMS_MAX && had && words_next(&words, &word)) {
        terms[n++] = (fvdb_text_term){.start = (uint32_t)folded.used, .size = word.size, .weight = 1};
        had = buffer_add(&folded, word.term, word.size);
    }
    fvdb_status status = had ? search_some(t, folded.bytes, folded.used, terms, n, wanted, diag) : FAIL_MEMORY(diag);
    mem_free(folded.bytes);
    return status;
}

/* Scores in the order of slots; `keys` has slot and place of each. */
static fvdb_status score_keys(search *x, const uint64_t *keys, uint32_t n, double *out_scores, fvdb_diag *diag) {
    const double step = text_power(-x->q->exponent);
    for (uint32_t i = 0; i < x->q->state->n; i++) {
        const bool had = open_lists(x, i);
        for (uint32_t j = 0; had && j < n; j++) {
            const uint32_t slot = (uint32_t)(keys[j] >> 32), place = (uint32_t)keys[j];
            const uint32_t doc = segment_find(x->s, slot);
            if (doc == TEXT_NONE || (x->allow && !bit_within(x->allow, x->allow_words, slot))) continue;
            uint32_t sum = 0;
            for (uint32_t at = 0; at < x->n_lists; at++) {
                bool has;
                sum += seek(x->q, &x->lists[at], doc, &has);
            }
            out_scores[place] = (double)sum * step;
        }
        query_close(&x->room);
        if (!had) return FAIL_MEMORY(diag);
    }
    return FVDB_OK;
}

fvdb_status text_score_slots(const fvdb_text *t, const fvdb_text_query *query, const uint32_t *slots, uint32_t n,
                             double *out_scores, fvdb_diag *diag) {
    text_query q;
    TRY(text_check_present(t, query, diag));
    TRY(query_open(&q, t, query, diag));
    search *x = search_alloc();
    uint64_t *keys = mem_alloc((size_t)n * 2 * sizeof *keys);
    if (!x || !keys) {
        mem_free(x);
        mem_free(keys);
        query_close(&q);
        return FAIL_MEMORY(diag);
    }
    for (uint32_t i = 0; i < n; i++) {
        keys[i] = (uint64_t)slots[i] << 32 | i;
        out_scores[i] = 0;
    }
    sort_u64(keys, keys + n, n);
    fvdb_status status = open_search(x, &q, NULL, 0, diag);
    if (status == FVDB_OK) status = score_keys(x, keys, n, out_scores, diag);
    mem_free(keys);
    search_free(x, &q);
    return status;
}

fvdb_status text_mask(const fvdb_text *t, const fvdb_text_query *query, uint32_t n_slots, uint64_t *out,
                      fvdb_diag *diag) {
    text_query q;
    TRY(text_check_present(t, query, diag));
    TRY(query_open(&q, t, query, diag));
    search *x = search_alloc();
    if (!x) {
        query_close(&q);
        return FAIL_MEMORY(diag);
    }
    fvdb_status status = open_search(x, &q, NULL, 0, diag);
    if (status == FVDB_OK) {
        bool is_required = false;
        for (uint32_t i = 0; i < q.n_clauses; i++) is_required = is_required || q.clauses[i].flags & FVDB_TEXT_REQUIRED;
        const size_t words = (n_slots + 63u) / 64;
        /* Rows past those of the index of words have no word. */
        for (size_t w = 0; w < words; w++)
            out[w] = x->mask && w < x->allow_words ? x->mask[w] : is_required ? 0 : UINT64_MAX;
        if (n_slots % 64) out[words - 1] &= (UINT64_C(1) << n_slots % 64) - 1;
    }
    search_free(x, &q);
    return status;
}
