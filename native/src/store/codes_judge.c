/* How well codes tell a row's nearest from the rest: judged whenever the codebook is trained.
 *
 * Codes of 4 bits cut each dimension by the spread of all rows.  Where rows lie in clusters far narrower than that, or one
 * dimension outweighs the others, the neighbours of a row share one code, and a walk on codes finds any of them: 0.05 of
 * the ten nearest where 0.95 is wanted.  High halves fail likewise where rows lie far from the origin and near each other.
 * No number of candidates helps then: such an index links and walks by rows.  Bit codes say less; where they
 * say too little, a version is not searched before all of it is fetched.
 *
 * For rows spread over all, the ten nearest by exact distance are looked up by code.  A neighbour is lost when more farther
 * rows than a walk has candidates seem to be as near.  The verdicts depend on the rows and their order alone: they are the
 * same for any number of threads and any kernel. */
#include "store.h"

#include <float.h>

#define NEAR 10u
/* Candidates among which a neighbour is looked for.  A walk of default length has four times as many, but there can be eight
 * times as many rows until the next training: 1,024 rows of 50 tight clusters lose 0.37 of their neighbours, of 64 candidates
 * none, and 8,192 rows nearly all. */
#define CANDIDATES 16u
/* Lost neighbours, as a share of all, from which on walks by rows are worth their price: a walk that scores its candidates
 * exactly makes good for less (docs/decisions/0045: of 8,192 rows sentence embeddings lose none, zeros and ones 0.05 to 0.18, heavy tails
 * 0.34 to 0.96). */
#define LOST_SHARE_MAX 0.2
/* The same of bit codes, whose candidates stand for the parts they are in (sentence embeddings lose 0.01). */
#define BITS_CANDIDATES 64u
#define BITS_LOST_SHARE_MAX 0.05
#define JUDGED_ROWS 1024u
/* Rows that are asked for: judging takes some 2 % of the time of linking.  Half as many refused bit codes that lose 0.02 of
 * the nearest, since a few rows lose many. */
#define QUERIES_MAX 64u

/* The two distances that are judged. */
enum { BY_WALK, BY_BITS, WAYS };

typedef struct asked {
    uint32_t slot;
    hit near[NEAR]; /* nearest first */
    uint32_t n;
    float seem[WAYS][NEAR]; /* how far these seem to be */
} asked;

/* Bit codes of one block of rows, of each worker. */
typedef struct block_bits {
    bit_codes codes;
    uint8_t *bytes; /* as they are stored */
} block_bits;

typedef struct judge {
    const store *s;
    uint32_t n, n_asked, n_workers;
    scorer scorers[QUERIES_MAX];
    bit_query bits[QUERIES_MAX];
    asked asked[QUERIES_MAX];
    int8_t *room;     /* n_asked x dim64, of the bit queries */
    asked *found;     /* blocks x n_asked: the nearest of each block */
    uint32_t *before; /* blocks x n_asked x WAYS x NEAR: farther rows that seem to be as near */
    block_bits *workers;
} judge;

static uint32_t blocks_of(uint32_t n) { return (n + JUDGED_ROWS - 1) / JUDGED_ROWS; }

static void find_near(void *context, uint32_t worker, uint32_t block) {
    (void)worker;
    judge *j = context;
    const store *s = j->s;
    const uint32_t end = min_u32(j->n, (block + 1) * JUDGED_ROWS);
    asked *found = j->found + (size_t)block * j->n_asked;
    for (uint32_t slot = block * JUDGED_ROWS; slot < end; slot++) {
        if (store_is_vectorless(s, slot)) continue;
        for (uint32_t i = 0; i < j->n_asked; i++) {
            if (slot == j->asked[i].slot) continue;
            const hit h = {scorer_exact(&j->scorers[i], slot), slot};
            asked *a = &found[i];
            if (a->n < NEAR || h.distance <= a->near[0].distance) hits_offer(s, a->near, &a->n, NEAR, h);
        }
    }
}

/* How far rows first .. first + n - 1 seem to be, one way or the other; their bit codes are those of the worker. */
static void look(const judge *j, uint32_t way, uint32_t i, const block_bits *b, uint32_t first, uint32_t n,
                 float *out) {
    uint32_t numbers[JUDGED_ROWS];
    for (uint32_t row = 0; row < n; row++) numbers[row] = way == BY_WALK ? first + row : row;
    if (way == BY_WALK) scorer_approximate(&j->scorers[i], numbers, n, out);
    else bit_query_score(&j->bits[i], &b->codes, numbers, n, out);
}

static void code_block(const judge *j, block_bits *b, uint32_t first, uint32_t n) {
    bit_codes_write(j->s, first, n, b->bytes);
    bool sound = bit_codes_read(&b->codes, 0, n, b->bytes);
    assert(sound);
    (void)sound;
}

static void merge_near(judge *j) {
    block_bits *b = &j->workers[0];
    for (uint32_t i = 0; i < j->n_asked; i++) {
        asked *a = &j->asked[i];
        for (uint32_t block = 0; block < blocks_of(j->n); block++) {
            const asked *found = &j->found[(size_t)block * j->n_asked + i];
            for (uint32_t h = 0; h < found->n; h++) hits_offer(j->s, a->near, &a->n, NEAR, found->near[h]);
        }
        hits_sort(j->s, a->near, a->n);
        for (uint32_t h = 0; h < a->n; h++) {
            code_block(j, b, a->near[h].slot, 1);
            for (uint32_t way = 0; way < WAYS; way++) look(j, way, i, b, a->near[h].slot, 1, &a->seem[way][h]);
        }
    }
}

static void count_before(void *context, uint32_t worker, uint32_t block) {
    judge *j = context;
    const store *s = j->s;
    const uint32_t first = block * JUDGED_ROWS, n = min_u32(j->n - first, JUDGED_ROWS);
    float seem[JUDGED_ROWS];
    code_block(j, &j->workers[worker], first, n);
    for (uint32_t i = 0; i < j->n_asked; i++) {
        const asked *a = &j->asked[i];
        for (uint32_t way = 0; way < WAYS && a->n; way++) {
            uint32_t *before = j->before + (((size_t)block * j->n_asked + i) * WAYS + way) * NEAR;
            float farthest = -FLT_MAX;
            for (uint32_t h = 0; h < a->n; h++) farthest = a->seem[way][h] > farthest ? a->seem[way][h] : farthest;
            look(j, way, i, &j->workers[worker], first, n, seem);
            for (uint32_t row = 0; row < n; row++) {
                const uint32_t slot = first + row;
                if (seem[row] > farthest || slot == a->slot || store_is_vectorless(s, slot)) continue;
                /* Rows as near as the last are as good an answer. */
                if (scorer_exact(&j->scorers[i], slot) <= a->near[a->n - 1].distance) continue;
                for (uint32_t h = 0; h < a->n; h++) before[h] += seem[row] <= a->seem[way][h];
            }
        }
    }
}

/* The share of the nearest that so many candidates by code would lose. */
static double lost_share(const judge *j, uint32_t way, uint32_t candidates) {
    uint32_t lost = 0, all = 0;
    for (uint32_t i = 0; i < j->n_asked; i++) {
        for (uint32_t h = 0; h < j->asked[i].n; h++, all++) {
            uint64_t before = 0;
            for (uint32_t block = 0; block < blocks_of(j->n); block++)
                before += j->before[(((size_t)block * j->n_asked + i) * WAYS + way) * NEAR + h];
            lost += before + NEAR > candidates;
        }
    }
    return all ? (double)lost / all : 0;
}

/* Every so many-th row that has a vector. */
static fvdb_status choose(judge *j) {
    const uint32_t wanted = min_u32(QUERIES_MAX, j->n);
    float x[FVDB_DIM_MAX];
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t slot = (uint32_t)(((uint64_t)2 * i + 1) * j->n / (2 * wanted));
        while (slot < j->n && store_is_vectorless(j->s, slot)) slot++;
        if (slot == j->n) continue;
        if (scorer_init(&j->scorers[j->n_asked], j->s) != FVDB_OK) return FVDB_ERR_MEMORY;
        store_get(j->s, slot, x);
        scorer_set_vector(&j->scorers[j->n_asked], x);
        j->asked[j->n_asked++].slot = slot;
    }
    return FVDB_OK;
}

static size_t block_bytes(const store *s) { return JUDGED_ROWS * bit_codes_row_bytes(s); }

static fvdb_status reserve(judge *j, fvdb_diag *diag) {
    const size_t cells = (size_t)blocks_of(j->n) * max_u32(j->n_asked, 1);
    j->found = mem_alloc_array(cells, sizeof *j->found);
    j->before = mem_alloc_array(cells * WAYS * NEAR, sizeof *j->before);
    j->room = mem_alloc_array(QUERIES_MAX, j->s->dim64);
    j->workers = mem_alloc_array(j->n_workers, sizeof *j->workers);
    if (!j->found || !j->before || !j->room || !j->workers) return FVDB_ERR_MEMORY;
    for (uint32_t w = 0; w < j->n_workers; w++) {
        TRY(bit_codes_init(&j->workers[w].codes, j->s, JUDGED_ROWS, diag));
        j->workers[w].bytes = mem_alloc_array(1, block_bytes(j->s));
        if (!j->workers[w].bytes) return FVDB_ERR_MEMORY;
    }
    for (uint32_t i = 0; i < j->n_asked; i++)
        bit_query_init(&j->bits[i], &j->workers[0].codes, &j->scorers[i], j->room + (size_t)i * j->s->dim64);
    return FVDB_OK;
}

static void release(judge *j) {
    for (uint32_t i = 0; i < j->n_asked; i++) scorer_free(&j->scorers[i]);
    for (uint32_t w = 0; j->workers && w < j->n_workers; w++) {
        bit_codes_free(&j->workers[w].codes);
        mem_free(j->workers[w].bytes);
    }
    mem_free(j->workers);
    mem_free(j->room);
    mem_free(j->found);
    mem_free(j->before);
    mem_free(j);
}

uint64_t codes_judge_scratch(uint32_t dim, uint32_t n, uint32_t threads) {
    const uint64_t cell = sizeof(asked) + WAYS * NEAR * sizeof(uint32_t);
    return sizeof(judge) + (uint64_t)QUERIES_MAX * (dim * 21u + blocks_of(n) * cell) +
           (uint64_t)threads * JUDGED_ROWS * (dim + 16u);
}

fvdb_status codes_judge(store *s, uint32_t n, thread_pool *c, fvdb_diag *diag) {
    judge *j = mem_alloc_array(1, sizeof *j);
    if (!j) return FAIL_MEMORY(diag);
    *j = (judge){.s = s, .n = n, .n_workers = thread_pool_size(c)};
    fvdb_status status = choose(j);
    if (status == FVDB_OK) status = reserve(j, diag);
    if (status == FVDB_OK) {
        thread_pool_run(c, find_near, j, blocks_of(n));
        merge_near(j);
        thread_pool_run(c, count_before, j, blocks_of(n));
        s->book.coarse = lost_share(j, BY_WALK, CANDIDATES) > LOST_SHARE_MAX;
        s->book.bits_serve = lost_share(j, BY_BITS, BITS_CANDIDATES) <= BITS_LOST_SHARE_MAX;
    }
    release(j);
    return status == FVDB_OK ? FVDB_OK : FAIL_MEMORY(diag);
}
