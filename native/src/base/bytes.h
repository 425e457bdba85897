/* Little-endian cursors over byte buffers.  The reader is bounded: after the first read past the end every further read
 * gives zero and `ok` is false, so that a parser checks once per record and never reads outside. */
#ifndef FVDB_BYTES_H
#define FVDB_BYTES_H

#include "base.h"

typedef struct reader {
    const uint8_t *at;
    size_t left;
    bool ok;
} reader;

static inline reader reader_over(const uint8_t *bytes, size_t size) { return (reader){bytes, size, true}; }

/* The next n bytes, or NULL. */
static inline const uint8_t *read_bytes(reader *r, size_t n) {
    if (!r->ok || n > r->left) {
        r->ok = false;
        return NULL;
    }
    const uint8_t *p = r->at;
    r->at += n;
    r->left -= n;
    return p;
}

/* Integers of bytes, the lowest first.  A loop over bytes, which the compiler leaves a loop, takes ten times as long: on little-endian
 * machines the usual sizes are one load or store each. */
static inline uint64_t load_le(const uint8_t *p, size_t n) {
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_BIG_ENDIAN__
    uint32_t half;
    uint64_t whole;
    if (n == sizeof half) return memcpy(&half, p, sizeof half), half;
    if (n == sizeof whole) return memcpy(&whole, p, sizeof whole), whole;
#endif
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}
static inline void store_le(uint8_t *p, uint64_t v, size_t n) {
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_BIG_ENDIAN__
    const uint32_t half = (uint32_t)v;
    if (n == sizeof half) memcpy(p, &half, sizeof half);
    else if (n == sizeof v) memcpy(p, &v, sizeof v);
    else
#endif
        for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(v >> (8 * i));
}

static inline uint64_t read_le(reader *r, size_t n) {
    const uint8_t *p = read_bytes(r, n);
    return p ? load_le(p, n) : 0;
}
static inline uint8_t read_u8(reader *r) { return (uint8_t)read_le(r, 1); }
static inline uint16_t read_u16(reader *r) { return (uint16_t)read_le(r, 2); }
static inline uint32_t read_u32(reader *r) { return (uint32_t)read_le(r, 4); }
static inline uint64_t read_u64(reader *r) { return read_le(r, 8); }

/* The writer trusts its caller, who sized the buffer; assert catches a wrong size in tests. */
typedef struct writer {
    uint8_t *at;
    size_t left;
} writer;

static inline uint8_t *write_space(writer *w, size_t n) {
    assert(n <= w->left);
    uint8_t *p = w->at;
    w->at += n;
    w->left -= n;
    return p;
}
static inline void write_le(writer *w, uint64_t v, size_t n) { store_le(write_space(w, n), v, n); }
static inline void write_bytes(writer *w, const void *p, size_t n) {
    uint8_t *space = write_space(w, n);
    if (n) memcpy(space, p, n);
}

#endif
