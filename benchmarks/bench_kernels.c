/* Times the kernels of every table this CPU can run, and the machine's own copy and read speed beside them.
 *
 *     bench_kernels ROWS DIM MILLISECONDS
 *
 * prints one JSON object.  Each case runs for at least MILLISECONDS; `ns` is per row.  Rows come from the cache (so
 * few that they fit the first level), from memory in order, or from memory in random order, in calls of CALL_ROWS rows,
 * about what a step of a walk scores.
 *
 *     bench_kernels ROWS DIM TABLE KERNEL PASSES
 *
 * calls one kernel on all rows PASSES times and prints nothing, for a tool that counts instructions.
 * Compiled and run by bench_kernels.py. */
#if defined(__x86_64__)
#define KERNEL_TARGET __attribute__((target("avx2")))
#else
#define KERNEL_TARGET
#endif
#include "kernels/kernels_generic.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CACHED_ROWS 16u
#define CALL_ROWS 32u

/* The compiler's own loops: with AVX2 on x86-64, with what every CPU has elsewhere. */
static KERNEL_TABLE(plain, code_dot, edge_near);
#define TABLES_MAX 5

typedef struct rows {
    size_t n, dim, dim16, dim64, code_bytes;
    float *x, *query, *lo, *step, *inv_step;
    double *query64;
    int8_t *q_lo, *q_hi;
    uint16_t *high, *low;
    uint8_t *codes;
    uint32_t *in_order, *shuffled;
    float *floats; /* outputs nobody reads */
    int32_t *integers;
} rows;

static double now_ns(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void *room(size_t bytes) {
    void *p = calloc(1, bytes + 64);
    if (!p) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return (uint8_t *)p + (64 - (uintptr_t)p % 64) % 64; /* lives until the program ends */
}

static uint64_t random_state = UINT64_C(20261123);
static uint64_t next_random(void) { return mix64(random_state++); }

static void fill(rows *r, size_t n, size_t dim, const kernel_table *k) {
    *r = (rows){.n = n, .dim = dim, .dim16 = round_up(dim, PLANE_LANES), .dim64 = round_up(dim, CODE_DIMS)};
    r->code_bytes = r->dim64 / 2;
    r->x = room(n * r->dim64 * sizeof *r->x);
    r->query = room(r->dim64 * sizeof *r->query);
    r->query64 = room(r->dim64 * sizeof *r->query64);
    r->lo = room(r->dim64 * sizeof *r->lo);
    r->step = room(r->dim64 * sizeof *r->step);
    r->inv_step = room(r->dim64 * sizeof *r->inv_step);
    r->q_lo = room(r->dim64);
    r->q_hi = room(r->dim64);
    r->high = room(n * r->dim16 * sizeof *r->high);
    r->low = room(n * r->dim16 * sizeof *r->low);
    r->codes = room(n * r->code_bytes);
    r->in_order = room(n * sizeof *r->in_order);
    r->shuffled = room(n * sizeof *r->shuffled);
    r->floats = room((CALL_ROWS + r->dim64) * sizeof *r->floats);
    r->integers = room(CALL_ROWS * sizeof *r->integers);
    for (size_t d = 0; d < dim; d++) {
        r->query[d] = (float)(next_random() % 2001) / 1000.0f - 1.0f;
        r->query64[d] = (double)r->query[d];
        r->lo[d] = -1.0f;
        r->step[d] = 2.0f / 15.0f;
        r->inv_step[d] = 7.5f;
    }
    for (size_t i = 0; i < n; i++) {
        float *x = r->x + i * r->dim64;
        for (size_t d = 0; d < dim; d++) x[d] = (float)(next_random() % 2001) / 1000.0f - 1.0f;
        k->split_planes(x, dim, r->high + i * r->dim16, r->low + i * r->dim16);
        k->code_encode(x, r->lo, r->inv_step, r->dim64, r->codes + i * r->code_bytes);
        r->in_order[i] = r->shuffled[i] = (uint32_t)i;
    }
    for (size_t i = n - 1; i > 0; i--) {
        size_t other = next_random() % (i + 1);
        uint32_t swap = r->shuffled[i];
        r->shuffled[i] = r->shuffled[other];
        r->shuffled[other] = swap;
    }
    float base, scale;
    k->code_prepare(r->query, r->lo, r->step, r->dim64, r->q_lo, r->q_hi, &base, &scale);
}

/* ---- one call of each kernel: rows `slots`, of which there are n ---- */

typedef void (*kernel_call)(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n);

static void call_code_dot(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    k->code_dot(r->q_lo, r->q_hi, r->codes, r->code_bytes, slots, n, r->integers);
}
static void call_high_dot(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    k->high_dot(r->query, r->high, r->dim16, slots, n, r->floats);
}
static void call_high_l2(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    k->high_l2(r->query, r->high, r->dim16, slots, n, r->floats);
}
static void call_row_dot(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    k->row_dot(r->query, r->high, r->low, r->dim16, slots, n, r->floats);
}
static void call_row_l2(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    k->row_l2(r->query, r->high, r->low, NULL, r->dim16, slots, n, r->floats);
}
static void call_exact_dot(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    double dot, norm2;
    for (uint32_t i = 0; i < n; i++)
        k->exact_dot(r->query64, r->high + slots[i] * r->dim16, r->low + slots[i] * r->dim16, 0, r->dim16, &dot,
                     &norm2);
}
static void call_exact_l2(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        k->exact_l2(r->query64, r->high + slots[i] * r->dim16, r->low + slots[i] * r->dim16, 0, r->dim16);
}
static void call_split_planes(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        k->split_planes(r->x + slots[i] * r->dim64, r->dim, r->high + slots[i] * r->dim16,
                        r->low + slots[i] * r->dim16);
}
static void call_join_planes(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        k->join_planes(r->high + slots[i] * r->dim16, r->low + slots[i] * r->dim16, r->dim, r->floats);
}
static void call_code_prepare(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    float base, scale;
    for (uint32_t i = 0; i < n; i++)
        k->code_prepare(r->x + slots[i] * r->dim64, r->lo, r->step, r->dim64, r->q_lo, r->q_hi, &base, &scale);
}
static void call_code_decode(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        k->code_decode(r->codes + slots[i] * r->code_bytes, r->lo, r->step, r->dim64, r->floats);
}
static void call_code_encode(const kernel_table *k, rows *r, const uint32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        k->code_encode(r->x + slots[i] * r->dim64, r->lo, r->inv_step, r->dim64, r->codes + slots[i] * r->code_bytes);
}

static const struct {
    const char *name;
    kernel_call call;
    size_t bytes_a_dim16, bytes_a_dim64, halves_a_dim64; /* read and written a row */
} KERNELS[] = {
    {"code_dot", call_code_dot, 0, 0, 1},       {"high_dot", call_high_dot, 2, 0, 0},
    {"high_l2", call_high_l2, 2, 0, 0},         {"row_dot", call_row_dot, 4, 0, 0},
    {"row_l2", call_row_l2, 4, 0, 0},           {"exact_dot", call_exact_dot, 4, 0, 0},
    {"exact_l2", call_exact_l2, 4, 0, 0},       {"split_planes", call_split_planes, 8, 0, 0},
    {"join_planes", call_join_planes, 4, 0, 0}, {"code_prepare", call_code_prepare, 0, 4, 0},
    {"code_encode", call_code_encode, 0, 4, 1}, {"code_decode", call_code_decode, 0, 0, 1},
};
#define N_KERNELS (sizeof KERNELS / sizeof *KERNELS)

static void pass(kernel_call call, const kernel_table *k, rows *r, const uint32_t *slots, size_t n) {
    for (size_t at = 0; at < n; at += CALL_ROWS)
        call(k, r, slots + at, (uint32_t)(n - at < CALL_ROWS ? n - at : CALL_ROWS));
}

/* Nanoseconds a row, over passes that take at least min_ns together. */
static double time_rows(kernel_call call, const kernel_table *k, rows *r, const uint32_t *slots, size_t n,
                        double min_ns) {
    double started, taken;
    size_t done = 0;
    pass(call, k, r, slots, n < 4096 ? n : 4096); /* wakes caches and clocks */
    started = now_ns();
    do {
        pass(call, k, r, slots, n);
        done += n;
        taken = now_ns() - started;
    } while (taken < min_ns);
    return taken / (double)done;
}

/* ---- the machine ---- */

static double copy_gb_s(uint8_t *to, const uint8_t *from, size_t bytes, double min_ns) {
    memcpy(to, from, bytes);
    double started = now_ns(), taken;
    size_t done = 0;
    do {
        memcpy(to, from, bytes);
        done += bytes;
        taken = now_ns() - started;
    } while (taken < min_ns);
    return (double)done / taken;
}

static volatile uint64_t sink;

static double read_gb_s(const uint64_t *words, size_t bytes, double min_ns) {
    double started = now_ns(), taken;
    size_t done = 0, n = bytes / sizeof *words / 8 * 8;
    do {
        uint64_t sums[8] = {0};
        for (size_t i = 0; i < n; i += 8)
            for (size_t lane = 0; lane < 8; lane++) sums[lane] += words[i + lane];
        for (size_t lane = 0; lane < 8; lane++) sink += sums[lane];
        done += bytes;
        taken = now_ns() - started;
    } while (taken < min_ns);
    return (double)done / taken;
}

/* All that this CPU can run, the compiler's own loops last. */
static size_t tables_here(const kernel_table *out[TABLES_MAX]) {
    size_t n = kernels_available(out);
#if defined(__x86_64__)
    if (n == 1) return n;
#endif
    out[n] = &kernels_plain;
    return n + 1;
}

static int count(rows *r, const char *table, const char *kernel, unsigned long passes) {
    const kernel_table *tables[TABLES_MAX];
    size_t n_tables = tables_here(tables);
    for (size_t t = 0; t < n_tables; t++)
        for (size_t i = 0; i < N_KERNELS; i++) {
            if (strcmp(tables[t]->name, table) != 0 || strcmp(KERNELS[i].name, kernel) != 0) continue;
            for (; passes; passes--) pass(KERNELS[i].call, tables[t], r, r->in_order, r->n);
            return 0;
        }
    fputs("no such table or kernel on this CPU\n", stderr);
    return 1;
}

static void time_all(rows *r, double min_ns) {
    const kernel_table *tables[TABLES_MAX];
    size_t n_tables = tables_here(tables), floats = r->n * r->dim64 * sizeof *r->x;
    double copied = copy_gb_s(room(floats), (const uint8_t *)r->x, floats, min_ns);
    printf("{\"copy_gb_s\": %.4g, \"read_gb_s\": %.4g, \"cases\": [", copied,
           read_gb_s((const uint64_t *)(const void *)r->x, floats, min_ns));
    const struct {
        const char *name;
        const uint32_t *slots;
        size_t n;
    } sources[] = {{"cache", r->in_order, CACHED_ROWS}, {"memory", r->in_order, r->n}, {"random", r->shuffled, r->n}};
    const char *separator = "";
    for (size_t t = 0; t < n_tables; t++)
        for (size_t i = 0; i < N_KERNELS; i++)
            for (size_t s = 0; s < sizeof sources / sizeof *sources; s++) {
                double ns = time_rows(KERNELS[i].call, tables[t], r, sources[s].slots, sources[s].n, min_ns);
                size_t bytes = KERNELS[i].bytes_a_dim16 * r->dim16 + KERNELS[i].bytes_a_dim64 * r->dim64 +
                               KERNELS[i].halves_a_dim64 * r->dim64 / 2;
                printf("%s{\"table\": \"%s\", \"kernel\": \"%s\", \"rows\": \"%s\", \"ns\": %.4g, \"bytes\": %zu}",
                       separator, tables[t]->name, KERNELS[i].name, sources[s].name, ns, bytes);
                separator = ", ";
            }
    puts("]}");
}

int main(int argc, char **argv) {
    if (argc != 4 && argc != 6) {
        fputs("usage: bench_kernels ROWS DIM MILLISECONDS\n       bench_kernels ROWS DIM TABLE KERNEL PASSES\n",
              stderr);
        return 1;
    }
    size_t n = strtoull(argv[1], NULL, 10), dim = strtoull(argv[2], NULL, 10);
    if (n < CALL_ROWS || dim < 1 || dim > FVDB_DIM_MAX) {
        fputs("ROWS is below 32, or DIM is out of range\n", stderr);
        return 1;
    }
    const kernel_table *tables[TABLES_MAX];
    rows r;
    fill(&r, n, dim, tables[kernels_available(tables) - 1]);
    if (argc == 6) return count(&r, argv[3], argv[4], strtoul(argv[5], NULL, 10));
    time_all(&r, strtod(argv[3], NULL) * 1e6);
    return 0;
}
