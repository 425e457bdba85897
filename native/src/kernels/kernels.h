/* Contract of kernels/: the arithmetic, one table of function pointers per instruction set.
 *
 * Every table gives the same bits for the same input; the scalar one defines the answer.  Two rules make that cheap:
 *   - Exact distances are float64 sums of float32 values.  A product of two float32 values is exact in float64, so it
 *     does not matter whether a CPU fuses it; squares of differences are rounded once, then added, never fused.
 *   - Sums run in 16 lanes, element i in lane i % 16, and the lanes are added as a tree: l and l+8, then l and l+4,
 *     l and l+2, l and l+1.
 * Walk distances on codes are integers.  -ffp-contract=off keeps the compiler from fusing on its own.
 *
 * Planes: a float32 with bits b is kept as high = (b + 0x8000) >> 16 (nearest bfloat16, ties away from zero) and
 * low = b - (high << 16) as int16: the pair is exact.
 * Codes: 4 bits a dimension; 64 dimensions make a block of 32 bytes, byte i of block j holding dimension 64j + i in its
 * low and 64j + 32 + i in its high half.  A query for codes is int8, split the same way: lo[32j + i] is dimension
 * 64j + i, hi[32j + i] dimension 64j + 32 + i. */
#ifndef FVDB_KERNELS_H
#define FVDB_KERNELS_H

#include "../base/base.h"

/* Elements are padded with zeros to these multiples: no kernel has a tail loop. */
#define PLANE_LANES 16
#define CODE_DIMS 64
#define CODE_BLOCK_BYTES 32
/* A query whose largest weight is outside of this range has an infinite or zero scale: it quantises to zeros. */
#define CODE_WEIGHT_MIN 1e-30f
#define CODE_WEIGHT_MAX 3e38f
/* Codes of links, 32 to a group: byte 32j + i holds dimensions 8j .. 8j + 7 of link i, the first in the lowest bit.  A query
 * for them is 16 bytes for every 4 dimensions: the sum of its weights, -7 .. 7, whose bit is set, plus EDGE_TABLE_ZERO. */
#define EDGE_LANES 32
#define EDGE_TABLE_BYTES 16
#define EDGE_TABLE_ZERO 28
#define EDGE_WEIGHT_MAX 7

/* A candidate of a walk, and how many are merged into others at a time. */
typedef struct candidate {
    float distance;
    uint32_t node;
} candidate;
#define MERGED_MOST 16u

typedef struct kernel_table {
    const char *name;

    /* x: dim float32; fills dim16 = round_up(dim, 16) elements of each plane, the padding with zeros. */
    void (*split_planes)(const float *x, size_t dim, uint16_t *high, uint16_t *low);
    void (*join_planes)(const uint16_t *high, const uint16_t *low, size_t dim, float *out);

    /* One query (dim16 float64, zero-padded) against one exact row: inner product and the row's squared norm.
     * ahead: how many elements behind this row another one begins, in both planes, whose lines are asked for meanwhile; 0
     * for none. */
    void (*exact_dot)(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead, size_t dim16,
                      double *dot, double *norm2);
    /* Squared Euclidean distance. */
    double (*exact_l2)(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead, size_t dim16);

    /* Inner products of an int8 query with the codes of n slots: sum of q x code as int32.  Row s starts at
     * codes + s * code_bytes; code_bytes is a multiple of CODE_BLOCK_BYTES.  The caller has fetched the rows. */
    void (*code_dot)(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                     const uint32_t *slots, uint32_t n, int32_t *out);

    /* Quantises a query for code_dot.  x, lo, step: dim64 = round_up(dim, 64) float32, zero-padded.
     * w = x * step, scale = max|w| / 127, q = w / scale rounded half away from zero (127 / max|w| is multiplied in; all
     * zero when max|w| is 0 or not normal); *base = sum of x * lo in 16 float32 lanes, product rounded, then added.
     * So x . decode(code) is about base + scale * code_dot. */
    void (*code_prepare)(const float *x, const float *lo, const float *step, size_t dim64, int8_t *q_lo, int8_t *q_hi,
                         float *base, float *scale);
    /* code = clamp(trunc((x - lo) * inv_step + 0.5), 0, 15) per dimension; each float32 operation rounded. */
    void (*code_encode)(const float *x, const float *lo, const float *inv_step, size_t dim64, uint8_t *code);
    /* x = lo + step * code, product rounded, then added. */
    void (*code_decode)(const uint8_t *code, const float *lo, const float *step, size_t dim64, float *out);

    /* One query against the high planes of n slots, float32 in 16 lanes, product rounded, then added (no fused
     * operations, no bfloat16 dot instructions: they flush and round differently).  q: dim16 float32.  Row s starts at
     * high + s * dim16.  The caller has fetched the rows. */
    void (*high_dot)(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots, uint32_t n, float *out);
    void (*high_l2)(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots, uint32_t n, float *out);
    /* The same with both planes, joined.  scales: one factor for each slot, with which a row's elements are multiplied first, each
     * product rounded; NULL for none. */
    void (*row_dot)(const float *q, const uint16_t *high, const uint16_t *low, size_t dim16, const uint32_t *slots,
                    uint32_t n, float *out);
    void (*row_l2)(const float *q, const uint16_t *high, const uint16_t *low, const float *scales, size_t dim16,
                   const uint32_t *slots, uint32_t n, float *out);

    /* Turns x, dim64 float32, by a rotation that is the same for all: signs from a hash, and Walsh-Hadamard transforms. */
    void (*edge_rotate)(float *x, size_t dim64);
    /* Codes the rotated difference of a neighbour to a node as link `lane` of a group of codes.  With s the signs of the
     * difference, +1 for 0: its squared norm, its product with s (the sum of sizes), and the product of node and s. */
    void (*edge_code)(const float *difference, const float *node, size_t dim64, uint32_t lane, uint8_t *codes,
                      float *norm2, float *sizes, float *product);
    /* A rotated query for edge_near.  x is quantised to weights of 1 / 7 of its largest component, and the product of the
     * weights with a link's signs is scale x sum + offset, sum that of the link's table entries.  error: the squared norm of
     * what quantising lost.  tables: dim64 / 4 x EDGE_TABLE_BYTES. */
    void (*edge_prepare)(const float *x, size_t dim64, uint8_t *tables, float *scale, float *offset, float *error);
    /* Estimates of the links of a group, factor x (scale x sum + offset) + addend, each operation rounded, into out
     * (EDGE_LANES).  Returns the bits of those that are not `most` or more: NaN counts as near.  factors: the high halves of
     * EDGE_LANES factors, then of as many addends. */
    uint32_t (*edge_near)(const uint8_t *tables, const uint8_t *codes, const uint16_t *factors, size_t dim64,
                          float scale, float offset, float most, float *out);
    /* Of these lanes, bits as of edge_near, those that fewer than `most` others of them are nearer than: `most` lanes, more
     * where estimates are equal, all where there are no more.  NaN counts as nearest. */
    uint32_t (*edge_nearest)(const float *estimates, uint32_t lanes, uint32_t most);

    /* Merges n candidates, 1 .. MERGED_MOST, into `size` sorted ones: each behind all that are as near, first come first.
     * Returns the place of the nearest.  distances: no NaN; after the n-th +inf up to MERGED_MOST; as many nodes, of which
     * only n matter.  The pool has room for MERGED_MOST more, and what is in it behind the last candidate is lost. */
    uint32_t (*merge)(candidate *pool, uint32_t size, const float *distances, const uint32_t *nodes, uint32_t n);
} kernel_table;

extern const kernel_table kernels_scalar;
#if defined(__x86_64__)
extern const kernel_table kernels_avx2;   /* AVX2 and FMA */
extern const kernel_table kernels_avx512; /* AVX-512 F, BW, DQ, VL, VNNI, and FMA */
#elif defined(__aarch64__)
extern const kernel_table kernels_neon; /* Advanced SIMD with dot product */
#endif

/* The table for this CPU: the best one, or the one FVDB_KERNELS names.  Chosen once, on first use, from CPUID and XCR0
 * (x86) or the auxiliary vector (aarch64).  NULL when FVDB_KERNELS names one this CPU cannot run or nobody knows. */
const kernel_table *kernels_get(void);
/* All tables this CPU can run, scalar first; returns how many (for tests). */
size_t kernels_available(const kernel_table *out[4]);

#endif
