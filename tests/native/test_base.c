/* Regions, crews and the lock. */
#include "check.h"
#include "data.h"

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

static void test_a_crew_does_each_item_once(void) {
    for (uint32_t threads = 1; threads <= 8; threads++) {
        crew *c;
        CHECK(crew_start(threads, &c, NULL) == FVDB_OK && crew_size(c) == threads);
        for (uint32_t run = 0; run < 20; run++) {
            tally *t = calloc(1, sizeof *t);
            uint32_t done = 0;
            crew_run(c, count, t, 5000);
            for (uint32_t i = 0; i < 5000; i++) CHECK(t->seen[i] == 1);
            for (uint32_t w = 0; w < 8; w++) done += t->workers[w];
            CHECK(done == 5000);
            free(t);
        }
        crew_stop(c);
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
    crew *c;
    shared s = {.lock = rwlock_new()};
    CHECK(s.lock != NULL);
    CHECK(crew_start(4, &c, NULL) == FVDB_OK);
    crew_run(c, read_or_write, &s, 20000);
    CHECK(s.torn == 0);
    crew_stop(c);
    rwlock_free(s.lock);
}

int main(void) {
    RUN(test_a_region_grows_with_zeros_and_keeps_its_content);
    RUN(test_a_region_that_cannot_grow_stays);
    RUN(test_a_crew_does_each_item_once);
    RUN(test_readers_never_see_half_a_write);
    return check_done();
}
