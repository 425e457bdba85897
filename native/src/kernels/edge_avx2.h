/* Codes of links for AVX2.  In edge_near a byte shuffle looks up 32 links at once in the table of four dimensions (the "fast
 * scan" of André et al., VLDB 2015).  A query is turned and put into tables in registers: compilers leave the shuffles out. */
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

/* One step of a Walsh-Hadamard transform: of each pair the sum, and what the first is more than the second.  swapped: x with
 * the elements of each pair exchanged; second: -0.0 in the second of each. */
KERNEL_PART __m256 mix_pairs(__m256 x, __m256 swapped, __m256 second) {
    return _mm256_add_ps(swapped, _mm256_xor_ps(x, second));
}

KERNEL_PART __m256 mix_eight(__m256 x) {
    const float o = 0.0f, m = -0.0f;
    x = mix_pairs(x, _mm256_permute2f128_ps(x, x, 1), _mm256_setr_ps(o, o, o, o, m, m, m, m));
    x = mix_pairs(x, _mm256_permute_ps(x, 0x4e), _mm256_setr_ps(o, o, m, m, o, o, m, m));
    x = mix_pairs(x, _mm256_permute_ps(x, 0xb1), _mm256_setr_ps(o, m, o, m, o, m, o, m));
    return _mm256_mul_ps(x, _mm256_set1_ps(0.25f));
}

KERNEL_TARGET void edge_rotate_avx2(float *x, size_t dim64) {
    rotate_rows(x, dim64);
    for (size_t i = 0; i < dim64; i += EDGE_COLUMNS) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        _mm256_storeu_ps(x + i, mix_eight(_mm256_add_ps(a, b)));
        _mm256_storeu_ps(x + i + 8, mix_eight(_mm256_sub_ps(a, b)));
    }
}

/* Tables of 8 weights, two at once.  A shuffle takes a weight to the entries whose bit is set, and zero to the others. */
KERNEL_PART void fill_two_tables(const int8_t *q, uint8_t *tables) {
    int64_t eight;
    memcpy(&eight, q, sizeof eight);
    const __m256i weights = _mm256_set1_epi64x(eight);
    const __m256i entry =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m256i table = _mm256_setr_epi64x(0, 0, 0x0404040404040404, 0x0404040404040404);
    __m256i sums = _mm256_set1_epi8(EDGE_TABLE_ZERO);
    for (int bit = 0; bit < 4; bit++) {
        const __m256i mask = _mm256_set1_epi8((char)(1 << bit)),
                      is_set = _mm256_cmpeq_epi8(_mm256_and_si256(entry, mask), mask);
        const __m256i from = _mm256_or_si256(_mm256_add_epi8(table, _mm256_set1_epi8((char)bit)),
                                             _mm256_andnot_si256(is_set, _mm256_set1_epi8(-128)));
        sums = _mm256_add_epi8(sums, _mm256_shuffle_epi8(weights, from));
    }
    _mm256_storeu_si256((__m256i *)tables, sums);
}

/* Eight weights as integers, rounded half away from zero. */
KERNEL_PART __m256i rounded_eight(__m256 w) {
    const __m256 most = _mm256_set1_ps(EDGE_WEIGHT_MAX), sign = _mm256_set1_ps(-0.0f), half = _mm256_set1_ps(0.5f);
    /* The largest of no number and another is the second. */
    w = _mm256_min_ps(_mm256_max_ps(w, _mm256_set1_ps(-EDGE_WEIGHT_MAX)), most);
    return _mm256_cvttps_epi32(_mm256_add_ps(w, _mm256_or_ps(_mm256_and_ps(w, sign), half)));
}

KERNEL_TARGET void edge_prepare_avx2(const float *x, size_t dim64, uint8_t *tables, float *scale, float *offset,
                                     float *error) {
    int8_t q[FVDB_DIM_MAX];
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 sizes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, losses[2] = {sizes[0], sizes[0]};
    __m256i totals = _mm256_setzero_si256();
    for (size_t i = 0; i < dim64; i += PLANE_LANES)
        for (size_t h = 0; h < 2; h++)
            sizes[h] = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i + 8 * h)), sizes[h]);
    const float largest = largest_avx2(_mm256_max_ps(sizes[0], sizes[1]));
    const bool usable = largest >= CODE_WEIGHT_MIN && largest <= CODE_WEIGHT_MAX;
    const float step = usable ? largest / EDGE_WEIGHT_MAX : 0.0f;
    const __m256 inverse = _mm256_set1_ps(usable ? EDGE_WEIGHT_MAX / largest : 0.0f), steps = _mm256_set1_ps(step);
    const __m256 known = _mm256_castsi256_ps(_mm256_set1_epi32(usable ? -1 : 0));
    for (size_t i = 0; i < dim64; i += 4 * 8) {
        __m256i w[4];
        for (size_t v = 0; v < 4; v++) {
            const __m256 component = _mm256_loadu_ps(x + i + 8 * v);
            w[v] = rounded_eight(_mm256_and_ps(_mm256_mul_ps(component, inverse), known));
            const __m256 lost = _mm256_sub_ps(component, _mm256_mul_ps(steps, _mm256_cvtepi32_ps(w[v])));
            losses[v % 2] = _mm256_add_ps(losses[v % 2], _mm256_mul_ps(lost, lost));
            totals = _mm256_add_epi32(totals, w[v]);
        }
        _mm256_storeu_si256((__m256i *)(q + i), as_bytes(w));
    }
    for (size_t i = 0; i < dim64; i += 8) fill_two_tables(q + i, tables + i * 4);
    const int32_t zeros = 2 * EDGE_TABLE_ZERO * (int32_t)(dim64 / 4);
    *scale = 2 * step;
    *offset = -step * (float)(zeros + total_avx2(totals));
    *error = add_lanes_avx2(losses[0], losses[1]);
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
