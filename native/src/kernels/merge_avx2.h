/* merge for AVX2.  Every candidate of the pool moves by how many of the new ones are nearer, every new one comes behind how many
 * of the pool and of its own are: no order is made first, no branch depends on a distance, and nothing that was stored a
 * moment ago is loaded again, as each insertion after another would. */
KERNEL_PART uint32_t merge_vectors(const uint32_t vectors, candidate *pool, uint32_t size, const float *distances,
                                   const uint32_t *nodes) {
    __m256 d[MERGED_MOST / 8];
    __m256i behind[MERGED_MOST / 8];
    uint32_t moved[MERGED_MOST], first = UINT32_MAX;
    for (uint32_t v = 0; v < vectors; v++) {
        d[v] = _mm256_loadu_ps(distances + 8 * v);
        behind[v] = _mm256_setzero_si256();
    }
    for (uint32_t i = size; i--;) {
        const __m256 distance = _mm256_set1_ps(pool[i].distance);
        uint32_t nearer = 0;
        for (uint32_t v = 0; v < vectors; v++) {
            const __m256 farther = _mm256_cmp_ps(distance, d[v], _CMP_GT_OQ);
            behind[v] = _mm256_sub_epi32(behind[v], _mm256_castps_si256(farther));
            nearer += (uint32_t)__builtin_popcount((uint32_t)_mm256_movemask_ps(farther));
        }
        if (!nearer) break;
        pool[i + nearer] = pool[i];
    }
    for (uint32_t v = 0; v < vectors; v++) _mm256_storeu_si256((__m256i *)(moved + 8 * v), behind[v]);
    /* The padding, too, as its number cannot be predicted: it ends up behind all others. */
    for (uint32_t i = 0; i < 8 * vectors; i++) {
        const __m256 distance = _mm256_set1_ps(distances[i]);
        uint32_t before = 0;
        for (uint32_t v = 0; v < vectors; v++) {
            before |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(d[v], distance, _CMP_LT_OQ)) << 8 * v;
            const uint32_t equal = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(d[v], distance, _CMP_EQ_OQ)) << 8 * v;
            before |= equal & ((1u << i) - 1);
        }
        const uint32_t at = size - moved[i] + (uint32_t)__builtin_popcount(before);
        pool[at] = (candidate){distances[i], nodes[i]};
        first = first < at ? first : at;
    }
    return first;
}

KERNEL_TARGET uint32_t merge_avx2(candidate *pool, uint32_t size, const float *distances, const uint32_t *nodes,
                                  uint32_t n) {
    return n <= 8 ? merge_vectors(1, pool, size, distances, nodes) : merge_vectors(2, pool, size, distances, nodes);
}
