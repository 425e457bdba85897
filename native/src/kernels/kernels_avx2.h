/* Kernels of AVX2 that AVX-512 has no better ones for: its table names them, too. */
#ifndef FVDB_KERNELS_AVX2_H
#define FVDB_KERNELS_AVX2_H

#include "kernels.h"

void exact_dot_avx2(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead, size_t dim16,
                    double *dot, double *norm2);
void code_prepare_avx2(const float *x, const float *lo, const float *step, size_t dim64, int8_t *q_lo, int8_t *q_hi,
                       float *base, float *scale);
void high_dot_avx2(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots, uint32_t n, float *out);
void high_l2_avx2(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots, uint32_t n, float *out);
void row_dot_avx2(const float *q, const uint16_t *high, const uint16_t *low, size_t dim16, const uint32_t *slots,
                  uint32_t n, float *out);
void row_l2_avx2(const float *q, const uint16_t *high, const uint16_t *low, const float *scales, size_t dim16,
                 const uint32_t *slots, uint32_t n, float *out);
uint32_t edge_nearest_avx2(const float *estimates, uint32_t lanes, uint32_t most);
uint32_t merge_avx2(candidate *pool, uint32_t size, const float *distances, const uint32_t *nodes, uint32_t n);
void edge_rotate_avx2(float *x, size_t dim64);
void edge_prepare_avx2(const float *x, size_t dim64, uint8_t *tables, float *scale, float *offset, float *error);

#endif
