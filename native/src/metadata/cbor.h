/* Items of CBOR (RFC 8949) in a byte buffer: heads, and how to pass over what they begin.  Nothing is read past the end, and
 * nothing recurses: nested items are a count of items still to pass.  Indefinite lengths are refused, since metadata has
 * none; deep nesting costs nothing and is not limited here. */
#ifndef FVDB_CBOR_H
#define FVDB_CBOR_H

#include "../base/base.h"

enum { CBOR_UINT, CBOR_NEGATIVE, CBOR_BYTES, CBOR_TEXT, CBOR_ARRAY, CBOR_MAP, CBOR_TAG, CBOR_SIMPLE };
/* Simple values, and floats by their size. */
enum { CBOR_FALSE = 20, CBOR_TRUE = 21, CBOR_NULL = 22, CBOR_FLOAT16 = 25, CBOR_FLOAT32 = 26, CBOR_FLOAT64 = 27 };

typedef struct cbor {
    const uint8_t *at, *end;
} cbor;

typedef struct cbor_head {
    const uint8_t *start; /* the item's first byte */
    uint64_t argument;    /* number, size, count or tag; the bits of a float */
    uint8_t major, info;
} cbor_head;

static inline size_t cbor_left(const cbor *c) { return (size_t)(c->end - c->at); }

/* Reads an item's head; false: the bytes end, or the head is of no definite item. */
static inline bool cbor_read_head(cbor *c, cbor_head *h) {
    if (c->at == c->end) return false;
    h->start = c->at;
    h->major = *c->at >> 5;
    h->info = *c->at & 31;
    c->at++;
    h->argument = h->info;
    if (h->info < 24) return true;
    if (h->info > 27) return false;
    const size_t size = (size_t)1 << (h->info - 24);
    if (size > cbor_left(c)) return false;
    h->argument = 0;
    for (size_t i = 0; i < size; i++) h->argument = h->argument << 8 | c->at[i];
    c->at += size;
    return true;
}

/* Passes over the content of a text or a byte string, and gives it; NULL: the bytes end. */
static inline const uint8_t *cbor_content(cbor *c, const cbor_head *h) {
    if (h->argument > cbor_left(c)) return NULL;
    const uint8_t *content = c->at;
    c->at += h->argument;
    return content;
}

/* Items right behind a head that belong to its item.  A count past the end of the bytes gives UINT64_MAX: each item has at
 * least one byte, so it could not be passed. */
static inline uint64_t cbor_inner(const cbor *c, const cbor_head *h) {
    if (h->major == CBOR_TAG) return 1;
    if (h->major != CBOR_ARRAY && h->major != CBOR_MAP) return 0;
    const uint64_t each = h->major == CBOR_MAP ? 2 : 1;
    return h->argument <= cbor_left(c) / each ? each * h->argument : UINT64_MAX;
}

/* Passes over the rest of an item whose head was read. */
static inline bool cbor_skip_rest(cbor *c, cbor_head h) {
    for (uint64_t items = 0;; items--) {
        if (h.major == CBOR_BYTES || h.major == CBOR_TEXT) {
            if (!cbor_content(c, &h)) return false;
        } else {
            const uint64_t inner = cbor_inner(c, &h);
            /* `items` is at most the bytes passed times the bytes there are; both are less than 2^31. */
            if (inner == UINT64_MAX) return false;
            items += inner;
        }
        if (items == 0) return true;
        if (!cbor_read_head(c, &h)) return false;
    }
}

static inline bool cbor_skip(cbor *c) {
    cbor_head h;
    return cbor_read_head(c, &h) && cbor_skip_rest(c, h);
}

static inline double cbor_float(const cbor_head *h) {
    if (h->info == CBOR_FLOAT64) {
        double number;
        memcpy(&number, &h->argument, sizeof number);
        return number;
    }
    uint32_t bits = (uint32_t)h->argument;
    if (h->info == CBOR_FLOAT16) {
        const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
        if (exponent == 0) return (sign ? -1.0 : 1.0) * fraction * 0x1p-24; /* zero, or subnormal */
        bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    }
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

#endif
