/* Regions, thread pools and the lock, sets and keys. */
#define _GNU_SOURCE /* mincore */
#include "check.h"
#include "data.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

static void test_a_region_grows_with_zeros_and_keeps_its_content(void) {
    region r = {0};
    size_t filled = 0;
    for (size_t step = 1; step < 40; step++) {
        size_t size = step % 7 == 0 ? filled / 3 : filled + step * 9973;
        CHECK(region_resize(&r, size));
        for (size_t i = filled; i < size; i++) {
            CHECK(r.base[i] == 0);
            r.base[i] = (uint8_t)(mix64(i) | 1);
        }
        filled = size;
        for (size_t i = 0; i < filled; i += 97) CHECK(r.base[i] == (uint8_t)(mix64(i) | 1));
        CHECK(((uintptr_t)r.base & 63) == 0);
    }
    CHECK(region_resident(&r) >= filled && region_resident(&r) < filled + 4096);
    region_free(&r);
    CHECK(r.base == NULL && r.used == 0);
}

/* Bytes of a region's pages that are in memory, as the kernel counts them. */
#if defined(__linux__)
static size_t in_memory(const region *r) {
    const size_t pages = r->mapped / 4096;
    unsigned char *is_in = malloc(pages);
    CHECK(is_in && mincore(r->base, pages * 4096, is_in) == 0);
    size_t n = 0;
    for (size_t i = 0; i < pages; i++) n += is_in[i] & 1;
    free(is_in);
    return n * 4096;
}
#endif

/* Grown, moved, shrunk and grown again beyond the size from which on huge pages are asked for. */
static void test_a_scattered_region_takes_no_more_than_it_uses(void) {
#if defined(__linux__)
    region r = {.scattered = true};
    const size_t sizes[] = {5000000, 23000001, 6000000, 12345678, 90000000, 4200000, 1000, 9000000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t before = r.used;
        CHECK(region_resize(&r, sizes[i]));
        for (size_t at = before; at < r.used; at += 4096) CHECK(r.base[at] == 0);
        memset(r.base, (int)i + 1, r.used);
        region_trim(&r);
        CHECK(in_memory(&r) == region_resident(&r));
        if (i) CHECK(r.base[0] == i + 1 && r.base[r.used - 1] == i + 1);
    }
    region_free(&r);
#endif
}

static void test_a_region_that_cannot_grow_stays(void) {
    region r = {0};
    CHECK(region_resize(&r, 100));
    memset(r.base, 7, 100);
    mem_fail_after(1);
    CHECK(!region_resize(&r, 1 << 20));
    mem_fail_after(0);
    CHECK(r.used == 100 && r.base[99] == 7);
    region_free(&r);
}

typedef struct tally {
    uint32_t seen[5000];
    uint32_t workers[8];
} tally;

static void count(void *context, uint32_t worker, uint32_t item) {
    tally *t = context;
    t->seen[item]++; /* each item is one worker's: no atomics, TSan checks the claim */
    t->workers[worker]++;
}

static void test_a_thread_pool_does_each_item_once(void) {
    for (uint32_t threads = 1; threads <= 8; threads++) {
        thread_pool *c;
        CHECK(thread_pool_start(threads, &c, NULL) == FVDB_OK && thread_pool_size(c) == threads);
        for (uint32_t run = 0; run < 20; run++) {
            tally *t = calloc(1, sizeof *t);
            uint32_t done = 0;
            thread_pool_run(c, count, t, 5000);
            for (uint32_t i = 0; i < 5000; i++) CHECK(t->seen[i] == 1);
            for (uint32_t w = 0; w < 8; w++) done += t->workers[w];
            CHECK(done == 5000);
            free(t);
        }
        thread_pool_stop(c);
    }
}

typedef struct shared {
    rwlock *lock;
    uint64_t a, b;
    uint32_t torn;
} shared;

static void read_or_write(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    shared *s = context;
    if (item % 10 == 0) {
        rwlock_write(s->lock);
        s->a = s->b = item;
        rwlock_write_done(s->lock);
        return;
    }
    if (item % 3 == 0) rwlock_read(s->lock);
    else if (!rwlock_try_read(s->lock)) return;
    if (s->a != s->b) __atomic_fetch_add(&s->torn, 1, __ATOMIC_RELAXED);
    rwlock_read_done(s->lock);
}

static void test_readers_never_see_half_a_write(void) {
    thread_pool *c;
    shared s = {.lock = rwlock_new()};
    CHECK(s.lock != NULL);
    CHECK(thread_pool_start(4, &c, NULL) == FVDB_OK);
    thread_pool_run(c, read_or_write, &s, 20000);
    CHECK(s.torn == 0);
    thread_pool_stop(c);
    rwlock_free(s.lock);
}

static void test_debug_builds_fill_fresh_memory(void) {
    uint8_t *bytes = mem_alloc(100);
    for (uint32_t i = 0; i < 100; i++) CHECK(bytes[i] == 0xCD);
    mem_free(bytes);
    uint8_t *zeros = mem_alloc_array(100, 1);
    for (uint32_t i = 0; i < 100; i++) CHECK(zeros[i] == 0);
    mem_free(zeros);
}

static void test_keys_put_nan_last(void) {
    CHECK(near_key(-2, 9) < near_key(-1, 0) && near_key(-1, 0) < near_key(0, 0) && near_key(0, 0) < near_key(0, 1));
    CHECK(near_key(1e30f, 0) < near_key(__builtin_nanf(""), 0) && near_distance(near_key(-2.5f, 7)) == -2.5f);
}

static void test_classes_are_sorted_in_order(void) {
    const uint32_t classes[] = {2, 0, 2, 1, 0, 4}, want[] = {1, 4, 3, 0, 2, 5}, want_starts[] = {0, 2, 3, 5, 5, 6};
    uint32_t starts[6], out[6];
    counting_sort(classes, 6, 5, starts, out);
    CHECK(memcmp(out, want, sizeof want) == 0 && memcmp(starts, want_starts, sizeof starts) == 0);
}

static void test_bits_past_a_set_are_not_in_it(void) {
    const uint64_t words[] = {UINT64_MAX, 1};
    CHECK(bit_within(words, 2, 64) && !bit_within(words, 2, 65) && !bit_within(words, 1, 64));
    CHECK(row_passes(NULL, NULL, 0, 7) && row_passes(words, NULL, 0, 64) && !row_passes(words, words, 1, 64));
    uint8_t bytes[2] = {0};
    byte_bit_set(bytes, 9);
    CHECK(byte_bit_get(bytes, 9) && !byte_bit_get(bytes, 8) && byte_bits_size(10) == 2);
    CHECK(byte_bits_padded(bytes, 10) && !byte_bits_padded(bytes, 9) && byte_bits_padded(bytes, 8));
}

int main(void) {
    RUN(test_debug_builds_fill_fresh_memory);
    RUN(test_keys_put_nan_last);
    RUN(test_classes_are_sorted_in_order);
    RUN(test_bits_past_a_set_are_not_in_it);
    RUN(test_a_region_grows_with_zeros_and_keeps_its_content);
    RUN(test_a_scattered_region_takes_no_more_than_it_uses);
    RUN(test_a_region_that_cannot_grow_stays);
    RUN(test_a_thread_pool_does_each_item_once);
    RUN(test_readers_never_see_half_a_write);
    return check_done();
}
