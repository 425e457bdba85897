/* How well walk distances tell a row's nearest from the rest: judged whenever the codebook is trained.
 *
 * Codes of 4 bits cut each dimension by the spread of all rows.  Where rows lie in clusters far narrower than that, or one
 * dimension outweighs the others, the neighbours of a row share one code, and a walk on codes finds any of them: 0.05 of
 * the ten nearest where 0.95 is wanted.  High halves fail likewise where rows lie far from the origin and near each other.
 * No number of candidates helps then: such an index links and walks by exact distances.
 *
 * For rows spread over all, the ten nearest by exact distance are looked up by walk distance.  A neighbour is lost when
 * more farther rows than a walk has candidates seem to be as near.  The verdict depends on the rows and their order alone:
 * it is the same for any number of threads and any kernel. */
#include "store.h"

#include <float.h>

#define NEAR 10u
/* Candidates of a walk of default length. */
#define CANDIDATES 64u
/* Lost neighbours, as a share of all, from which on exact walks are worth their price: a walk that scores all candidates
 * exactly makes good for less (sentence embeddings lose none; LSA 0.02, tight clusters 0.9). */
#define LOST_SHARE_MAX 0.1
#define BLOCK_ROWS 1024u
#define QUERIES_MAX 64u

/* Rows that are asked for: fewer of many rows, so that judging takes some 2 % of the time of linking them. */
static uint32_t queries_for(uint32_t n) {
    return n <= 8192 ? QUERIES_MAX : n <= 65536 ? QUERIES_MAX / 2 : QUERIES_MAX / 4;
}

typedef struct asked {
    uint32_t slot;
    hit near[NEAR]; /* nearest first */
    uint32_t n;
    float walk[NEAR]; /* walk distances of these */
} asked;

typedef struct judge {
    const store *s;
    uint32_t n, n_asked;
    scorer scorers[QUERIES_MAX];
    asked asked[QUERIES_MAX];
    asked *found;     /* blocks x n_asked: the nearest of each block */
    uint32_t *before; /* blocks x n_asked x NEAR: farther rows that seem to be as near */
} judge;

static uint32_t blocks_of(uint32_t n) { return (n + BLOCK_ROWS - 1) / BLOCK_ROWS; }

static void find_near(void *context, uint32_t worker, uint32_t block) {
    (void)worker;
    judge *j = context;
    const store *s = j->s;
    const uint32_t end = min_u32(j->n, (block + 1) * BLOCK_ROWS);
    asked *found = j->found + (size_t)block * j->n_asked;
    for (uint32_t slot = block * BLOCK_ROWS; slot < end; slot++) {
        if (store_is_bare(s, slot)) continue;
        for (uint32_t i = 0; i < j->n_asked; i++) {
            if (slot == j->asked[i].slot) continue;
            const hit h = {scorer_exact(&j->scorers[i], slot), slot};
            asked *a = &found[i];
            if (a->n < NEAR || h.distance <= a->near[0].distance) hits_offer(s, a->near, &a->n, NEAR, h);
        }
    }
}

static void merge_near(judge *j) {
    for (uint32_t i = 0; i < j->n_asked; i++) {
        asked *a = &j->asked[i];
        uint32_t slots[NEAR];
        for (uint32_t block = 0; block < blocks_of(j->n); block++) {
            const asked *found = &j->found[(size_t)block * j->n_asked + i];
            for (uint32_t h = 0; h < found->n; h++) hits_offer(j->s, a->near, &a->n, NEAR, found->near[h]);
        }
        hits_sort(j->s, a->near, a->n);
        for (uint32_t h = 0; h < a->n; h++) slots[h] = a->near[h].slot;
        scorer_approximate(&j->scorers[i], slots, a->n, a->walk);
    }
}

static void count_before(void *context, uint32_t worker, uint32_t block) {
    (void)worker;
    judge *j = context;
    const store *s = j->s;
    const uint32_t first = block * BLOCK_ROWS, n = min_u32(j->n - first, BLOCK_ROWS);
    uint32_t slots[BLOCK_ROWS];
    float walk[BLOCK_ROWS];
    for (uint32_t row = 0; row < n; row++) slots[row] = first + row;
    for (uint32_t i = 0; i < j->n_asked; i++) {
        const asked *a = &j->asked[i];
        uint32_t *before = j->before + ((size_t)block * j->n_asked + i) * NEAR;
        float farthest = -FLT_MAX;
        for (uint32_t h = 0; h < a->n; h++) farthest = a->walk[h] > farthest ? a->walk[h] : farthest;
        scorer_approximate(&j->scorers[i], slots, n, walk);
        for (uint32_t row = 0; row < n; row++) {
            if (walk[row] > farthest || slots[row] == a->slot || store_is_bare(s, slots[row])) continue;
            /* Rows as near as the tenth are as good an answer. */
            if (scorer_exact(&j->scorers[i], slots[row]) <= a->near[a->n - 1].distance) continue;
            for (uint32_t h = 0; h < a->n; h++) before[h] += walk[row] <= a->walk[h];
        }
    }
}

/* The share of the nearest that a walk on approximate distances would lose. */
static double lost_share(const judge *j) {
    uint32_t lost = 0, all = 0;
    for (uint32_t i = 0; i < j->n_asked; i++) {
        for (uint32_t h = 0; h < j->asked[i].n; h++, all++) {
            uint64_t before = 0;
            for (uint32_t block = 0; block < blocks_of(j->n); block++)
                before += j->before[((size_t)block * j->n_asked + i) * NEAR + h];
            lost += before + NEAR > CANDIDATES;
        }
    }
    return all ? (double)lost / all : 0;
}

/* Every so many-th row that has a vector. */
static fvdb_status choose(judge *j) {
    const uint32_t wanted = min_u32(queries_for(j->n), j->n);
    float x[FVDB_DIM_MAX];
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t slot = (uint32_t)(((uint64_t)2 * i + 1) * j->n / (2 * wanted));
        while (slot < j->n && store_is_bare(j->s, slot)) slot++;
        if (slot == j->n) continue;
        if (scorer_init(&j->scorers[j->n_asked], j->s) != FVDB_OK) return FVDB_ERR_MEMORY;
        store_get(j->s, slot, x);
        scorer_set_vector(&j->scorers[j->n_asked], x);
        j->asked[j->n_asked++].slot = slot;
    }
    return FVDB_OK;
}

uint64_t codes_judge_scratch(uint32_t dim, uint32_t n) {
    return sizeof(judge) +
           (uint64_t)queries_for(n) * (dim * 20u + blocks_of(n) * (sizeof(asked) + NEAR * sizeof(uint32_t)));
}

fvdb_status codes_judge(store *s, uint32_t n, crew *c, fvdb_diag *diag) {
    judge *j = mem_alloc_array(1, sizeof *j);
    fvdb_status status = FVDB_ERR_MEMORY;
    if (j) {
        *j = (judge){.s = s, .n = n};
        status = choose(j);
        const size_t cells = (size_t)blocks_of(n) * max_u32(j->n_asked, 1);
        j->found = mem_alloc_array(cells, sizeof *j->found);
        j->before = mem_alloc_array(cells * NEAR, sizeof *j->before);
        if (!j->found || !j->before) status = FVDB_ERR_MEMORY;
        if (status == FVDB_OK) {
            crew_run(c, find_near, j, blocks_of(n));
            merge_near(j);
            crew_run(c, count_before, j, blocks_of(n));
            s->book.coarse = lost_share(j) > LOST_SHARE_MAX;
        }
        for (uint32_t i = 0; i < j->n_asked; i++) scorer_free(&j->scorers[i]);
        mem_free(j->found);
        mem_free(j->before);
        mem_free(j);
    }
    return status == FVDB_OK ? FVDB_OK : FAIL(diag, status, "allocation failed");
}
