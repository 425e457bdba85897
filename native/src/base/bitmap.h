/* Bit sets.  Slot sets are words of 64 bits: bit s % 64 of word s / 64.  Stored bitmaps are bytes: bit s % 8 of byte s / 8. */
#ifndef FVDB_BITMAP_H
#define FVDB_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool bit_get(const uint64_t *words, uint32_t s) { return words[s >> 6] >> (s & 63) & 1; }
static inline void bit_set(uint64_t *words, uint32_t s) { words[s >> 6] |= UINT64_C(1) << (s & 63); }
static inline void bit_clear(uint64_t *words, uint32_t s) { words[s >> 6] &= ~(UINT64_C(1) << (s & 63)); }
/* Of a set of n words; a slot past its end is not in it. */
static inline bool bit_within(const uint64_t *words, uint64_t n, uint32_t s) { return s / 64 < n && bit_get(words, s); }
/* Whether a row is in both sets, each of which may be NULL and takes all rows then.  `live` reaches over all slots. */
static inline bool row_passes(const uint64_t *live, const uint64_t *allow, uint64_t allow_words, uint32_t slot) {
    return (!live || bit_get(live, slot)) && (!allow || bit_within(allow, allow_words, slot));
}

static inline size_t byte_bits_size(uint32_t n) { return (n + 7u) / 8; }
static inline bool byte_bit_get(const uint8_t *bytes, uint32_t i) { return bytes[i / 8] >> (i % 8) & 1; }
static inline void byte_bit_set(uint8_t *bytes, uint32_t i) { bytes[i / 8] |= (uint8_t)(1u << (i % 8)); }
/* No bit of the last byte lies past the n-th: equal sets have equal bytes. */
static inline bool byte_bits_padded(const uint8_t *bytes, uint32_t n) {
    return n % 8 == 0 || bytes[n / 8] >> (n % 8) == 0;
}

#endif
