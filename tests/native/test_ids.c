/* Ids and timestamps against plain arrays. */
#include "check.h"
#include "data.h"
#include "store/store.h"

static size_t id_of(uint32_t i, char *out) { return (size_t)sprintf(out, "id-%u-%u", i * 7919u % 1000u, i); }

static void test_ids_against_a_list(void) {
    enum { N = 5000 };
    id_map m;
    char id[40];
    bool linked[N] = {false};
    id_map_init(&m, 99);
    for (uint32_t i = 0; i < N; i++) {
        size_t size = id_of(i, id);
        if (i % 100 == 0) CHECK(id_map_reserve(&m, 100, 100 * 40, NULL) == FVDB_OK);
        CHECK(id_map_find(&m, (const uint8_t *)id, size) == FVDB_NO_SLOT);
        id_map_append(&m, (const uint8_t *)id, size);
        id_map_link(&m, i);
        linked[i] = true;
        uint32_t gone = (uint32_t)(mix64(i) % (i + 1));
        if (i % 3 == 0) {
            id_map_unlink(&m, gone);
            id_map_unlink(&m, gone); /* twice is once */
            linked[gone] = false;
        }
    }
    uint32_t map[N], order[N], kept = 0;
    uint64_t live[N / 64 + 1] = {0};
    region bytes, offsets;
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < N; i++) {
            size_t size = id_of(i, id);
            uint32_t want = round ? map[i] : linked[i] ? i : FVDB_NO_SLOT;
            CHECK(id_map_find(&m, (const uint8_t *)id, size) == want);
            if (round == 0) map[i] = FVDB_NO_SLOT;
        }
        if (round) break;
        for (uint32_t i = N; i-- > 0;) { /* the last one first */
            if (!linked[i]) continue;
            map[i] = kept;
            bit_set(live, kept);
            order[kept++] = i;
        }
        CHECK(m.linked == kept);
        CHECK(id_map_reordered(&m, order, kept, &bytes, &offsets, NULL) == FVDB_OK);
        id_map_exchange(&m, &bytes, &offsets, kept, live);
    }
    CHECK(m.linked == kept);
    region_free(&bytes);
    region_free(&offsets);
    CHECK(m.n == kept);
    id_map_free(&m);
}

static void test_ids_take_little_memory(void) {
    enum { N = 100000 };
    id_map m;
    char id[40];
    id_map_init(&m, 1);
    CHECK(id_map_reserve(&m, N, 16 * N, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < N; i++) {
        id_map_append(&m, (const uint8_t *)id, (size_t)sprintf(id, "row-%012u", i));
        id_map_link(&m, i);
    }
    CHECK(id_map_resident(&m) <= 27 * N);
    id_map_free(&m);
}

static void test_well_formed_utf8_only(void) {
    static const char *good[] = {"a",
                                 "\x7f",
                                 "\xc2\x80",
                                 "\xdf\xbf",
                                 "\xe0\xa0\x80",
                                 "\xed\x9f\xbf",
                                 "\xee\x80\x80",
                                 "\xef\xbf\xbf",
                                 "\xf0\x90\x80\x80",
                                 "\xf4\x8f\xbf\xbf"};
    static const char *bad[] = {"",
                                "\x80",
                                "\xc0\x80",
                                "\xc1\xbf",
                                "\xc2",
                                "\xe0\x9f\xbf",
                                "\xed\xa0\x80",
                                "\xf0\x8f\xbf\xbf",
                                "\xf4\x90\x80\x80",
                                "\xf5\x80\x80\x80",
                                "a\xff",
                                "\xe2\x82",
                                "\xe2\x28\xa1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(id_valid((const uint8_t *)good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!id_valid((const uint8_t *)bad[i], strlen(bad[i])));
    uint8_t zero[2] = {'a', 0}, long_id[FVDB_ID_BYTES_MAX + 1];
    memset(long_id, 'x', sizeof long_id);
    CHECK(id_valid(zero, 2));
    CHECK(id_valid(long_id, FVDB_ID_BYTES_MAX) && !id_valid(long_id, FVDB_ID_BYTES_MAX + 1));
}

static int64_t time_of(uint32_t i) {
    switch (i / 3000 % 4) {
    case 0: return 1700000000000000;
    case 1: return 1700000000000000 + i;
    case 2: return (int64_t)mix64(i);
    default: return i % 2 ? INT64_MIN : INT64_MAX;
    }
}

static void test_timestamps_against_a_list(void) {
    enum { N = 14000 };
    timestamps t, kept;
    int64_t chunk[777];
    uint32_t *map = malloc(N * sizeof *map);
    timestamps_init(&t);
    for (uint32_t first = 0; first < N;) {
        uint32_t n = min_u32(777, N - first);
        for (uint32_t i = 0; i < n; i++) chunk[i] = time_of(first + i);
        CHECK(timestamps_append(&t, chunk, n, NULL) == FVDB_OK);
        first += n;
        if (first == 7770) { /* back over block borders, then on again */
            timestamps_truncate(&t, 5000);
            CHECK(t.n == 5000);
            first = 5000;
            for (uint32_t i = 5000; i < 7770; i++) {
                chunk[0] = time_of(i);
                CHECK(timestamps_append(&t, chunk, 1, NULL) == FVDB_OK);
            }
            first = 7770;
        }
    }
    for (uint32_t i = 0; i < N; i++) CHECK(timestamps_get(&t, i) == time_of(i));
    uint32_t n = 0;
    for (uint32_t i = 0; i < N; i++)
        if (i % 5) map[n++] = N - 1 - i;
    CHECK(timestamps_reordered(&t, map, n, &kept, NULL) == FVDB_OK && kept.n == n);
    for (uint32_t i = 0; i < n; i++) CHECK(timestamps_get(&kept, i) == time_of(map[i]));
    CHECK(timestamps_resident(&t) < N * sizeof(int64_t));
    free(map);
    timestamps_free(&t);
    timestamps_free(&kept);
}

int main(void) {
    RUN(test_ids_against_a_list);
    RUN(test_ids_take_little_memory);
    RUN(test_well_formed_utf8_only);
    RUN(test_timestamps_against_a_list);
    return check_done();
}
