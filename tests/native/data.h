/* Seeded synthetic rows for the native tests: clustered, like embeddings, and the same on every machine. */
#ifndef FVDB_TEST_DATA_H
#define FVDB_TEST_DATA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "fabstir_vectordb.h"

/* Uniform in [-1, 1). */
static inline float noise(uint64_t *state) {
    *state = mix64(*state);
    return (float)((double)(int32_t)(*state >> 32) / 2147483648.0);
}

/* n x dim rows around `clusters` centres; the sum of four uniforms is near enough to normal. */
static inline float *make_vectors(uint32_t n, uint32_t dim, uint32_t clusters, uint64_t seed) {
    float *x = malloc((size_t)n * dim * sizeof *x), *centres = malloc((size_t)clusters * dim * sizeof *centres);
    uint64_t state = 42; /* the centres do not depend on the seed: queries come from the same clusters */
    for (size_t i = 0; i < (size_t)clusters * dim; i++) centres[i] = noise(&state);
    state = seed;
    for (uint32_t row = 0; row < n; row++) {
        const float *centre = centres + (mix64(seed ^ row) % clusters) * dim;
        for (uint32_t d = 0; d < dim; d++)
            x[(size_t)row * dim + d] =
                centre[d] + 0.5f * (noise(&state) + noise(&state) + noise(&state) + noise(&state));
    }
    free(centres);
    return x;
}

typedef struct test_rows {
    fvdb_rows rows;
    float *vectors;
    uint8_t *ids;
    uint64_t *offsets;
    int64_t *times;
    uint8_t *vectorless; /* NULL: none */
    uint32_t *slots, *replaced;
} test_rows;

/* Rows "<prefix><first + i>" with vectors of make_vectors. */
static inline test_rows make_rows(uint32_t n, uint32_t dim, const char *prefix, uint32_t first, uint64_t seed) {
    test_rows t = {.vectors = make_vectors(n, dim, 20, seed)};
    t.ids = malloc((size_t)n * 40 + 1);
    t.offsets = malloc((n + 1) * sizeof *t.offsets);
    t.times = malloc(n * sizeof *t.times);
    t.slots = malloc(n * sizeof *t.slots);
    t.replaced = malloc(n * sizeof *t.replaced);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        t.offsets[i] = at;
        at += (uint64_t)sprintf((char *)t.ids + at, "%s%u", prefix, first + i);
        t.times[i] = 1700000000000000 + i / 100;
    }
    t.offsets[n] = at;
    t.rows = (fvdb_rows){n, t.vectors, t.ids, t.offsets, t.times, NULL, 0};
    return t;
}

/* Each nth row becomes one without a vector. */
static inline void take_vectors(test_rows *t, uint32_t dim, uint32_t nth) {
    t->rows.vectorless = t->vectorless = calloc(t->rows.n, 1);
    for (uint32_t i = 0; i < t->rows.n; i += nth) {
        t->vectorless[i] = 1;
        memset(t->vectors + (size_t)i * dim, 0, dim * sizeof(float));
    }
}

static inline void free_rows(test_rows *t) {
    free(t->vectorless);
    free(t->vectors);
    free(t->ids);
    free(t->offsets);
    free(t->times);
    free(t->slots);
    free(t->replaced);
}

#endif
