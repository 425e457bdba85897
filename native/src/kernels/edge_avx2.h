/* edge_near for AVX2: a byte shuffle looks up 32 links at once in the table of four dimensions (the "fast scan" of André
 * et al., VLDB 2015). */
static inline KERNEL_TARGET __m256i table_at(const uint8_t *tables, size_t number) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(tables + number * EDGE_TABLE_BYTES)));
}

static inline KERNEL_TARGET __m256i look_up(const uint8_t *tables, size_t number, __m256i codes) {
    const __m256i low_half = _mm256_set1_epi8(0x0f);
    __m256i low = _mm256_and_si256(codes, low_half), high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_half);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table_at(tables, number), low),
                           _mm256_shuffle_epi8(table_at(tables, number + 1), high));
}

/* Eight links from `at` on: bits of those whose estimate is not `most` or more. */
static inline KERNEL_TARGET uint32_t eight_below(__m128i sums, const uint16_t *factors, uint32_t at, __m256 scale,
                                                 __m256 offset, __m256 most, float *out) {
    const __m128i *factor = (const __m128i *)(factors + at), *addend = (const __m128i *)(factors + EDGE_LANES + at);
    __m256i slope = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(factor)), 16);
    __m256i base = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(addend)), 16);
    __m256 weight = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sums)), scale), offset);
    __m256 estimate = _mm256_add_ps(_mm256_mul_ps(_mm256_castsi256_ps(slope), weight), _mm256_castsi256_ps(base));
    _mm256_storeu_ps(out + at, estimate);
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(estimate, most, _CMP_NGE_UQ));
}

/* Sums of four entries, at most 4 x 56, fit a byte: only then they are widened, by adding odd bytes on their own and with
 * the even ones. */
static KERNEL_TARGET uint32_t edge_near_avx2(const uint8_t *tables, const uint8_t *codes, const uint16_t *factors,
                                             size_t dim64, float scale, float offset, float most, float *out) {
    __m256i both = _mm256_setzero_si256(), odd = both;
    for (size_t i = 0; i < dim64 / 8; i += 2) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(codes + i * EDGE_LANES));
        __m256i b = _mm256_loadu_si256((const __m256i *)(codes + (i + 1) * EDGE_LANES));
        __m256i four = _mm256_add_epi8(look_up(tables, 2 * i, a), look_up(tables, 2 * i + 2, b));
        both = _mm256_add_epi16(both, four);
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(four, 8));
    }
    __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
    __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    __m256 s = _mm256_set1_ps(scale), o = _mm256_set1_ps(offset), m = _mm256_set1_ps(most);
    return eight_below(_mm256_castsi256_si128(low), factors, 0, s, o, m, out) |
           eight_below(_mm256_castsi256_si128(high), factors, 8, s, o, m, out) << 8 |
           eight_below(_mm256_extracti128_si256(low, 1), factors, 16, s, o, m, out) << 16 |
           eight_below(_mm256_extracti128_si256(high, 1), factors, 24, s, o, m, out) << 24;
}

/* Every lane counts those that are nearer: no order is made, and no branch depends on an estimate. */
KERNEL_TARGET uint32_t edge_nearest_avx2(const float *estimates, uint32_t lanes, uint32_t most) {
    __m256 e[EDGE_LANES / 8];
    __m256i nearer[EDGE_LANES / 8];
    uint32_t nearest = 0;
    if ((uint32_t)__builtin_popcount(lanes) <= most) return lanes;
    for (uint32_t v = 0; v < EDGE_LANES / 8; v++) {
        e[v] = _mm256_loadu_ps(estimates + 8 * v);
        nearer[v] = _mm256_setzero_si256();
    }
    for (uint32_t left = lanes; left; left &= left - 1) {
        const __m256 estimate = _mm256_set1_ps(estimates[__builtin_ctz(left)]);
        for (uint32_t v = 0; v < EDGE_LANES / 8; v++)
            nearer[v] = _mm256_sub_epi32(nearer[v], _mm256_castps_si256(_mm256_cmp_ps(estimate, e[v], _CMP_LT_OQ)));
    }
    for (uint32_t v = 0; v < EDGE_LANES / 8; v++) {
        const __m256i few = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)most), nearer[v]);
        nearest |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(few)) << 8 * v;
    }
    return nearest & lanes;
}
