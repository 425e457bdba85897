/* What the harnesses share.  Each file fuzz_<name>.c has one function over an input of any bytes, FUZZ(name); with libFuzzer it is
 * LLVMFuzzerTestOneInput, and without one replay.c calls those of all files.  They know the public header alone, so they link
 * with the built library as well as with its sources under sanitisers.
 *
 * An input is read as a list of choices: after its end every choice is 0.  Those about stored bytes are edits of good
 * ones, which get right headers and sizes afterwards: so a few bytes reach what lies behind the first checks. */
#ifndef FVDB_FUZZ_HARNESS_H
#define FVDB_FUZZ_HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fabstir_vectordb.h"

#ifdef FUZZ_REPLAY
#define FUZZ(name) void fuzz_##name(const uint8_t *data, size_t size)
#else
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
#define FUZZ(name)                                                 \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { \
        fuzz_##name(data, size);                                   \
        return 0;                                                  \
    }                                                              \
    void fuzz_##name(const uint8_t *data, size_t size)
#endif
void fuzz_fields(const uint8_t *data, size_t size);
void fuzz_lazy(const uint8_t *data, size_t size);
void fuzz_parts(const uint8_t *data, size_t size);
void fuzz_text(const uint8_t *data, size_t size);
void fuzz_words(const uint8_t *data, size_t size);

/* A finding, as a crash is one. */
#define MUST(condition)                                                                        \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "finding: %s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                           \
        }                                                                                      \
    } while (0)

/* Of the exact size, so that one byte past the end is seen; for 0 bytes no pointer to read from. */
static inline void *room(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    MUST(p);
    return p;
}

typedef struct input {
    const uint8_t *at;
    size_t left;
} input;

static inline uint64_t pick(input *in, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && in->left; i++, in->at++, in->left--) value |= (uint64_t)*in->at << (8 * i);
    return value;
}
static inline uint32_t pick_below(input *in, uint32_t end) { return (uint32_t)(pick(in, end > 256 ? 4 : 1) % end); }

/* ---- stored bytes ---- */

enum { STORED_MAX = 96, EDITS_MAX = 8, EDIT_BYTES_MAX = 64 };

typedef struct stored {
    uint32_t kind, number;
    uint8_t *bytes;
    size_t size;
    uint32_t times; /* how often it is given to the reader: once, if no edit says otherwise */
} stored;

typedef struct stored_set {
    uint32_t n;
    stored at[STORED_MAX];
} stored_set;

static inline void stored_free(stored_set *set) {
    for (uint32_t i = 0; i < set->n; i++) free(set->at[i].bytes);
    set->n = 0;
}

/* A part that was written anew is the one that was read. */
static inline void must_have(const stored_set *set, const stored *now) {
    const stored *was = NULL;
    for (uint32_t i = 0; i < set->n && !was; i++)
        if (set->at[i].kind == now->kind && set->at[i].number == now->number) was = &set->at[i];
    MUST(was && was->size == now->size && memcmp(was->bytes, now->bytes, was->size) == 0);
}

static inline void stored_copy(stored_set *to, const stored_set *from) {
    *to = *from;
    for (uint32_t i = 0; i < to->n; i++) {
        to->at[i].bytes = room(from->at[i].size, 1);
        memcpy(to->at[i].bytes, from->at[i].bytes, from->at[i].size);
    }
}

/* Replaces `old` bytes at a place by `size` others. */
static inline void stored_splice(stored *s, size_t at, size_t old, const uint8_t *bytes, size_t size) {
    uint8_t *fresh = room(s->size - old + size, 1);
    memcpy(fresh, s->bytes, at);
    if (size) memcpy(fresh + at, bytes, size);
    memcpy(fresh + at + size, s->bytes + at + old, s->size - at - old);
    free(s->bytes);
    s->bytes = fresh;
    s->size = s->size - old + size;
}

/* One edit: which part, what, where, and with which bytes.  Places count from behind the header, which the caller makes
 * right again; true: the edit was one of the header, which is to stay as it is. */
static inline bool stored_edit(stored_set *set, input *in, size_t header) {
    uint8_t bytes[EDIT_BYTES_MAX];
    stored *s = &set->at[pick_below(in, set->n)];
    const uint32_t what = pick_below(in, 10);
    const size_t body = s->size > header ? s->size - header : 0, begin = s->size - body;
    const size_t place = begin + (size_t)(pick(in, 2) % (body + 1)), rest = s->size - place;
    const size_t n = pick_below(in, EDIT_BYTES_MAX) + 1, less = n < rest ? n : rest;
    switch (what) {
    case 0: /* other bytes */
        for (size_t i = 0; i < less; i++) s->bytes[place + i] = (uint8_t)pick(in, 1);
        break;
    case 1: /* more bytes */
        for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)pick(in, 1);
        stored_splice(s, place, 0, bytes, n);
        break;
    case 2: stored_splice(s, place, less, NULL, 0); break;
    case 3: stored_splice(s, place, rest, NULL, 0); break;
    case 4: /* one byte many times */
        if (less) memset(s->bytes + place, (int)pick(in, 1), less);
        break;
    case 5: /* a number that is a little larger or smaller */
        for (uint32_t i = 0, sum = (uint32_t)(int32_t)(int8_t)pick(in, 1), carry = 0; i < 4 && i < rest; i++) {
            carry += s->bytes[place + i] + (sum >> (8 * i) & 255u);
            s->bytes[place + i] = (uint8_t)carry;
            carry >>= 8;
        }
        break;
    case 6: { /* the body of another part */
        const stored *other = &set->at[pick_below(in, set->n)];
        if (other == s || other->size < header) break;
        stored_splice(s, begin, body, other->bytes + header, other->size - header);
        break;
    }
    case 7: s->times = (uint32_t)pick(in, 1) % 3; break;
    case 8: /* bits */
        for (size_t i = 0; i < less; i++) s->bytes[place + i] ^= (uint8_t)(1u << (pick(in, 1) % 8));
        break;
    default: /* the header */
        if (begin == 0) break;
        s->bytes[place % begin] = (uint8_t)pick(in, 1);
        return true;
    }
    return false;
}

#endif
