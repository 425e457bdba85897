/* Fields of metadata: values of every kind, readings, lists, and bytes that nobody checked, read up to a page that nobody may
 * touch. */
#include "check.h"
#include "data.h"
#include "metadata/metadata.h"
#include <math.h>
#ifndef _WIN32
#include <sys/mman.h>
#include <unistd.h>
#endif

enum { ROWS_MAX = 64, ENTRIES_MAX = 4096, BYTES_MAX = 1 << 14 };

/* Rows, and what was read of them. */
static struct {
    uint8_t bytes[BYTES_MAX];
    int64_t offsets[ROWS_MAX];
    int32_t sizes[ROWS_MAX];
    uint32_t n;
    uint64_t used;
} rows;
static struct {
    uint8_t present[ROWS_MAX], in_list[ENTRIES_MAX], kinds[ROWS_MAX + ENTRIES_MAX];
    double numbers[ROWS_MAX], list_numbers[ENTRIES_MAX];
    int32_t codes[ROWS_MAX], list_codes[ENTRIES_MAX];
    uint32_t list_rows[ENTRIES_MAX], sizes[ROWS_MAX + ENTRIES_MAX];
    uint64_t starts[ROWS_MAX + ENTRIES_MAX];
    uint8_t texts[BYTES_MAX];
    fvdb_cells cells;
} out;

/* Adds a row of CBOR; an empty one stands for a row without metadata. */
static void add_bytes(const void *bytes, size_t size) {
    memcpy(rows.bytes + rows.used, bytes, size);
    rows.offsets[rows.n] = (int64_t)rows.used;
    rows.sizes[rows.n++] = (int32_t)size;
    rows.used += size;
}
#define ADD(literal) add_bytes(literal, sizeof(literal) - 1)

static void clear_rows(void) { rows.n = 0, rows.used = 0; }

/* Paths by their steps: a path of one run, and one whose steps are all quoted. */
static const fvdb_step one_run[] = {{0, 1, 3}, {2, 3, 3}, {4, 5, 3}}, quoted[] = {{0, 1, 1}, {1, 2, 2}, {2, 3, 3}};

static fvdb_field field_of(uint32_t steps, bool is_quoted, fvdb_step *room) {
    memcpy(room, is_quoted ? quoted : one_run, steps * sizeof *room);
    for (uint32_t i = 0; i < steps && !is_quoted; i++) room[i].run_end = steps;
    return (fvdb_field){.bytes = rows.bytes,
                        .n_bytes = rows.used,
                        .offsets = rows.offsets,
                        .sizes = rows.sizes,
                        .n = rows.n,
                        .n_steps = steps,
                        .steps = room,
                        .text = (const uint8_t *)(is_quoted ? "abc" : "a.b.c"),
                        .text_size = is_quoted ? steps : 2 * steps - 1,
                        .seed = 7};
}

static void prepare_cells(uint32_t capacity) {
    memset(&out, 0xee, sizeof out);
    out.cells = (fvdb_cells){.present = out.present,
                             .numbers = out.numbers,
                             .codes = out.codes,
                             .capacity = capacity,
                             .list_rows = out.list_rows,
                             .list_numbers = out.list_numbers,
                             .list_codes = out.list_codes,
                             .in_list = out.in_list,
                             .value_starts = out.starts,
                             .value_sizes = out.sizes,
                             .value_kinds = out.kinds,
                             .texts_capacity = rows.used,
                             .texts = out.texts};
}

static fvdb_status read_path(uint32_t steps, bool is_quoted, uint32_t capacity, fvdb_diag *diag) {
    fvdb_step room[3];
    const fvdb_field field = field_of(steps, is_quoted, room);
    prepare_cells(capacity);
    return fvdb_read_field(&field, &out.cells, diag);
}

static bool is_value(int32_t code, uint8_t kind, const char *bytes, size_t size) {
    if (code < 0 || (uint32_t)code >= out.cells.n_values) return false;
    return out.kinds[code] == kind && out.sizes[code] == size &&
           memcmp(rows.bytes + out.starts[code], bytes, size) == 0;
}
#define IS_TEXT(code, literal) is_value(code, FVDB_VALUE_TEXT, literal, sizeof(literal) - 1)
#define IS_ITEM(code, literal) is_value(code, FVDB_VALUE_ITEM, literal, sizeof(literal) - 1)
#define IS_LARGE(code, literal) is_value(code, FVDB_VALUE_LARGE, literal, sizeof(literal) - 1)

static void test_single_values(void) {
    clear_rows();
    ADD("\xa1\x61"
        "a\x62hi");
    ADD(""); /* no metadata */
    ADD("\xa2\x61z\x61y\x61"
        "a\x62hi");
    ADD("\xa1\x61z\x62hi");
    ADD("\xa1\x61"
        "a\x17");
    ADD("\xa1\x61"
        "a\x38\x18");
    ADD("\xa1\x61"
        "a\xf5");
    ADD("\xa1\x61"
        "a\xf6");
    ADD("\xa1\x61"
        "a\xd9\x03\xec\x6a"
        "2024-01-31");
    ADD("\xa1\x61"
        "a\xa1\x61"
        "b\x01"); /* a map: there, and nothing to compare */
    ADD("\xa1\x61"
        "a\x41\x00"); /* bytes */
    ADD("\x18\x64");
    ADD("\xa2\x01\x02\x61"
        "a\x78\x02hi"); /* a key that is no text; a head that is not the shortest */
    CHECK(read_path(1, false, 0, NULL) == FVDB_OK);
    CHECK(out.cells.n_listed == 0 && out.cells.n_values == 4);
    static const uint8_t present[] = {1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1};
    CHECK(memcmp(out.present, present, sizeof present) == 0);
    CHECK(IS_TEXT(out.codes[0], "hi") && out.codes[2] == out.codes[0] && out.codes[12] == out.codes[0]);
    CHECK(out.cells.texts_size == 3 && memcmp(out.texts, "hi", 3) == 0);
    CHECK(out.numbers[4] == 23 && out.numbers[5] == -25);
    CHECK(IS_ITEM(out.codes[6], "\xf5") && IS_ITEM(out.codes[7], "\xf6"));
    CHECK(IS_ITEM(out.codes[8], "\xd9\x03\xec\x6a"
                                "2024-01-31"));
    for (uint32_t row = 0; row < rows.n; row++) {
        CHECK(isnan(out.numbers[row]) == (row != 4 && row != 5));
        CHECK((out.codes[row] == -1) == !(row == 0 || row == 2 || (row >= 6 && row <= 8) || row == 12));
    }
}

static void test_numbers_of_every_size(void) {
    static const struct {
        const char *cbor;
        size_t size;
        double number; /* NaN: a large integer */
    } cases[] = {
#define CASE(literal, number) {literal, sizeof(literal) - 1, number}
        CASE("\x00", 0),
        CASE("\x19\x01\x00", 256),
        CASE("\x1a\x00\x01\x00\x00", 65536),
        CASE("\x1b\x00\x1f\xff\xff\xff\xff\xff\xff", 9007199254740991.0),
        CASE("\x1b\x00\x20\x00\x00\x00\x00\x00\x00", NAN),
        CASE("\x1b\xff\xff\xff\xff\xff\xff\xff\xff", NAN),
        CASE("\x3b\x00\x1f\xff\xff\xff\xff\xff\xfe", -9007199254740991.0),
        CASE("\x3b\x00\x1f\xff\xff\xff\xff\xff\xff", NAN),
        CASE("\x3b\xff\xff\xff\xff\xff\xff\xff\xff", NAN),
        CASE("\xf9\x3c\x00", 1),
        CASE("\xf9\xc5\x00", -5),
        CASE("\xf9\x00\x01", 0x1p-24),
        CASE("\xf9\x83\xff", -1023 * 0x1p-24),
        CASE("\xf9\x7b\xff", 65504),
        CASE("\xf9\x7c\x00", INFINITY),
        CASE("\xf9\xfc\x00", -INFINITY),
        CASE("\xfa\x3f\x80\x00\x01", 1 + 0x1p-23),
        CASE("\xfa\x00\x00\x00\x01", 0x1p-149),
        CASE("\xfb\x3f\xb9\x99\x99\x99\x99\x99\x9a", 0.1),
        CASE("\xfb\x00\x00\x00\x00\x00\x00\x00\x01", 0x1p-1074),
    };
    enum { CASES = sizeof cases / sizeof *cases };
    clear_rows();
    for (uint32_t i = 0; i < CASES; i++) {
        uint8_t row[16] = "\xa1\x61"
                          "a";
        memcpy(row + 3, cases[i].cbor, cases[i].size);
        add_bytes(row, 3 + cases[i].size);
    }
    ADD("\xa1\x61"
        "a\xf9\x7e\x00"); /* not a number, which compares with nothing */
    CHECK(read_path(1, true, 0, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < CASES; i++) {
        CHECK(out.present[i] == 1);
        if (isnan(cases[i].number))
            CHECK(isnan(out.numbers[i]) && is_value(out.codes[i], FVDB_VALUE_LARGE, cases[i].cbor, cases[i].size));
        else CHECK(out.numbers[i] == cases[i].number && out.codes[i] == -1);
    }
    CHECK(out.present[CASES] == 1 && isnan(out.numbers[CASES]) && out.codes[CASES] == -1);
    CHECK(out.cells.n_values == 4);
}

static void test_each_reading_counts(void) {
    clear_rows();
    ADD("\xa1\x63"
        "a.b\x01");
    ADD("\xa1\x61"
        "a\xa1\x61"
        "b\x02");
    ADD("\xa2\x61"
        "a\xa1\x61"
        "b\x03\x63"
        "a.b\x04");
    ADD("\xa1\x61"
        "a\x05"); /* the path goes on */
    ADD("\xa1\x64"
        "a.bc\x06");
    CHECK(read_path(2, false, 8, NULL) == FVDB_OK);
    static const uint8_t present[] = {1, 1, 1, 0, 0};
    CHECK(memcmp(out.present, present, sizeof present) == 0);
    CHECK(out.numbers[0] == 1 && out.numbers[1] == 2 && isnan(out.numbers[2]));
    CHECK(out.cells.n_listed == 2 && out.list_rows[0] == 2 && out.list_rows[1] == 2);
    CHECK(out.list_numbers[0] == 3 && out.list_numbers[1] == 4);
    CHECK(out.in_list[0] == 0 && out.in_list[1] == 0);
    CHECK(read_path(2, true, 8, NULL) == FVDB_OK);
    CHECK(out.cells.n_listed == 0 && isnan(out.numbers[0]) && out.numbers[1] == 2 && out.numbers[2] == 3);
}

static void test_lists(void) {
    clear_rows();
    ADD("\xa1\x61"
        "a\x83\x61x\x07\x81\x08"); /* a text, a number, a list in a list */
    ADD("\xa1\x61"
        "a\x80");
    ADD("\x82\xa1\x61"
        "a\x01\xa1\x61"
        "a\x02"); /* a list of maps: both are values of one reading */
    ADD("\x82\xa1\x61"
        "a\x03\xa1\x61"
        "b\x04"); /* one value, so no list */
    ADD("\x82\xa1\x61"
        "a\xa0\xa1\x61"
        "a\x05"); /* a value that does not compare counts */
    ADD("\x81\x81\xa1\x61"
        "a\x06"); /* a list in a list is not entered */
    CHECK(read_path(1, false, 8, NULL) == FVDB_OK);
    static const uint8_t present[] = {1, 1, 1, 1, 1, 0}, in_list[] = {1, 1, 1, 1, 1};
    static const uint32_t of_rows[] = {0, 0, 2, 2, 4};
    CHECK(memcmp(out.present, present, sizeof present) == 0);
    CHECK(out.cells.n_listed == 5 && memcmp(out.list_rows, of_rows, sizeof of_rows) == 0);
    CHECK(memcmp(out.in_list, in_list, sizeof in_list) == 0);
    CHECK(IS_TEXT(out.list_codes[0], "x") && isnan(out.list_numbers[0]));
    CHECK(out.list_numbers[1] == 7 && out.list_numbers[2] == 1 && out.list_numbers[3] == 2 && out.list_numbers[4] == 5);
    CHECK(out.numbers[3] == 3);
    for (uint32_t row = 0; row < rows.n; row++) CHECK(out.codes[row] == -1 && isnan(out.numbers[row]) == (row != 3));
}

static void test_readings_that_alternate_below_a_list(void) {
    /* [{"a.b": 1}, {"a": {"b": 2}}, {"a.b": 3}]: "a.b" has two values, "a" and "b" one. */
    clear_rows();
    ADD("\x83\xa1\x63"
        "a.b\x01\xa1\x61"
        "a\xa1\x61"
        "b\x02\xa1\x63"
        "a.b\x03");
    CHECK(read_path(2, false, 8, NULL) == FVDB_OK);
    CHECK(out.cells.n_listed == 3);
    for (uint32_t i = 0; i < 3; i++) CHECK(out.list_numbers[i] == i + 1 && out.in_list[i] == (i != 1));
}

static void test_many_values_fill_the_table(void) {
    clear_rows();
    for (uint32_t row = 0; row < ROWS_MAX; row++) { /* 64 rows of 60 texts, each of which another row has as well */
        uint8_t bytes[5 + 60 * 4] = "\xa1\x61"
                                    "a\x98\x3c";
        for (uint32_t i = 0; i < 60; i++) {
            const uint32_t value = (row / 2) * 60 + i;
            const uint8_t text[4] = {0x63, (uint8_t)('A' + value % 50), (uint8_t)('A' + value / 50 % 50), 'x'};
            memcpy(bytes + 5 + 4 * i, text, 4);
        }
        add_bytes(bytes, sizeof bytes);
    }
    fvdb_diag diag = {0};
    CHECK(read_path(1, false, 0, &diag) == FVDB_ERR_BUFFER && diag.expected == 60 * ROWS_MAX);
    CHECK(read_path(1, false, 60 * ROWS_MAX - 1, &diag) == FVDB_ERR_BUFFER && diag.expected == 60 * ROWS_MAX);
    CHECK(read_path(1, false, 60 * ROWS_MAX, NULL) == FVDB_OK);
    CHECK(out.cells.n_listed == 60 * ROWS_MAX && out.cells.n_values == 60 * ROWS_MAX / 2);
    CHECK(out.cells.texts_size == 4 * out.cells.n_values);
    for (uint32_t i = 0; i < out.cells.n_values; i++)
        CHECK(memcmp(out.texts + 4 * i, rows.bytes + out.starts[i], 3) == 0 && out.texts[4 * i + 3] == 0);
    for (uint32_t i = 0; i < out.cells.n_listed; i++) {
        CHECK(out.list_rows[i] == i / 60 && out.in_list[i] == 1);
        CHECK(out.list_codes[i] == (int32_t)(i / 120 * 60 + i % 60));
    }
}

static void test_a_failed_allocation_is_a_status(void) {
    test_many_values_fill_the_table();
    uint32_t failures = 0;
    for (int64_t n = 1;; n++) {
        mem_fail_after(n);
        const fvdb_status status = read_path(1, false, ENTRIES_MAX, NULL);
        mem_fail_after(0);
        if (status == FVDB_OK) break;
        CHECK(status == FVDB_ERR_MEMORY);
        failures++;
    }
    CHECK(failures >= 5);
}

static void test_arguments_are_checked(void) {
    clear_rows();
    ADD("\xa1\x61"
        "a\x01");
    fvdb_step steps[FVDB_PATH_STEPS_MAX + 1] = {{0, 1, 2}, {2, 3, 2}};
    fvdb_step step[3];
    fvdb_field field = field_of(2, false, steps), field_a = field_of(1, false, step), other;
    prepare_cells(4);
    CHECK(fvdb_read_field(&field, &out.cells, NULL) == FVDB_OK);
    const fvdb_step wrong[][2] = {
        {{0, 1, 3}, {2, 3, 3}}, {{0, 1, 0}, {2, 3, 2}}, {{0, 1, 1}, {2, 3, 1}}, {{1, 0, 2}, {2, 3, 2}},
        {{0, 1, 2}, {2, 4, 2}}, {{0, 2, 2}, {1, 3, 2}}, {{0, 4, 1}, {2, 3, 2}},
    };
    for (uint32_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(steps, wrong[i], sizeof wrong[i]);
        CHECK(fvdb_read_field(&field, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    }
    field = field_of(2, false, steps);
    for (uint32_t n = 0; n <= FVDB_PATH_STEPS_MAX + 1; n += FVDB_PATH_STEPS_MAX + 1) {
        other = field, other.n_steps = n;
        CHECK(fvdb_read_field(&other, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    }
    rows.bytes[3] = 0x60; /* an empty text needs a byte, too */
    out.cells.texts_capacity = 0;
    CHECK(fvdb_read_field(&field_a, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    out.cells.texts_capacity = 1;
    CHECK(fvdb_read_field(&field_a, &out.cells, NULL) == FVDB_OK && out.cells.texts_size == 1);
    other = field, other.n = FVDB_ROWS_MAX + 1u;
    CHECK(fvdb_read_field(&other, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    out.cells.capacity = FVDB_ROWS_MAX;
    CHECK(fvdb_read_field(&field, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    out.cells.capacity = 4;
    const int64_t offsets[] = {-1, 1, 4, INT64_MAX, INT64_MIN};
    for (uint32_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        rows.offsets[0] = offsets[i];
        CHECK(fvdb_read_field(&field, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    }
    rows.offsets[0] = 0;
    for (int32_t size = -1; size <= 5; size += 6) {
        rows.sizes[0] = size;
        CHECK(fvdb_read_field(&field, &out.cells, NULL) == FVDB_ERR_ARGUMENT);
    }
}

/* ---- untrusted bytes ---- */

/* Bytes that end where a page begins that cannot be read. */
static uint8_t *fence(size_t room) {
#ifdef _WIN32
    static uint8_t plain[1 << 16];
    return plain + (room <= sizeof plain ? sizeof plain : 0);
#else
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = round_up(room, page);
    uint8_t *base = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (base == MAP_FAILED || mprotect(base + size, page, PROT_NONE) != 0) exit(2);
    return base + size;
#endif
}

/* Reads one row of bytes that end at the fence; what it gives must stay within them. */
static fvdb_status read_row_at(const uint8_t *end, size_t size, uint32_t steps, bool is_quoted, uint32_t capacity) {
    static const int64_t offset = 0;
    const int32_t size_of_row = (int32_t)size;
    fvdb_step room[3];
    fvdb_field field = field_of(steps, is_quoted, room);
    field.bytes = end - size, field.n_bytes = size, field.n = 1;
    field.offsets = &offset, field.sizes = &size_of_row;
    prepare_cells(capacity);
    out.cells.texts_capacity = size < BYTES_MAX ? size : BYTES_MAX;
    const fvdb_status status = fvdb_read_field(&field, &out.cells, NULL);
    CHECK(status == FVDB_OK || status == FVDB_ERR_FORMAT || status == FVDB_ERR_BUFFER);
    if (status != FVDB_OK) return status;
    CHECK(out.present[0] <= 1 && out.cells.n_listed <= capacity && out.cells.n_values <= 1 + capacity);
    CHECK(out.codes[0] >= -1 && out.codes[0] < (int32_t)out.cells.n_values);
    CHECK(out.cells.texts_size <= out.cells.texts_capacity);
    for (uint32_t i = 0; i < out.cells.n_listed; i++) {
        CHECK(out.list_rows[i] == 0 && out.in_list[i] <= 1);
        CHECK(out.list_codes[i] >= -1 && out.list_codes[i] < (int32_t)out.cells.n_values);
        CHECK(isnan(out.list_numbers[i]) != (out.list_codes[i] == -1));
    }
    for (uint32_t i = 0; i < out.cells.n_values; i++)
        CHECK(out.kinds[i] <= FVDB_VALUE_LARGE && out.starts[i] <= size && out.sizes[i] <= size - out.starts[i]);
    return status;
}

/* {"a.b.c": [1, "x", 2.5], "a": [{"b": {"c": null}}, {"b": [{"c": -1}, {"c": 2^64 - 1}]}], "a.b": {"c": 0("2024…")}} */
static const uint8_t seeded[] = "\xa3\x65"
                                "a.b.c\x83\x01\x61x\xf9\x41\x00\x61"
                                "a\x82\xa1\x61"
                                "b\xa1\x61"
                                "c\xf6\xa1\x61"
                                "b\x82\xa1\x61"
                                "c\x20\xa1\x61"
                                "c\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x63"
                                "a.b\xa1\x61"
                                "c\xc0\x74"
                                "2024-01-31T00:00:00Z";

static void test_bytes_that_end_early(void) {
    uint8_t *end = fence(1 << 16);
    const size_t size = sizeof seeded - 1;
    memcpy(end - size, seeded, size);
    CHECK(read_row_at(end, size, 3, false, ENTRIES_MAX) == FVDB_OK);
    CHECK(out.present[0] == 1 && out.cells.n_listed == 7 && out.cells.n_values == 4);
    for (size_t cut = 1; cut < size; cut++) {
        memcpy(end - cut, seeded, cut);
        CHECK(read_row_at(end, cut, 3, false, ENTRIES_MAX) == FVDB_ERR_FORMAT);
        read_row_at(end, cut, 3, true, ENTRIES_MAX);
        read_row_at(end, cut, 1, false, ENTRIES_MAX);
    }
}

static void test_counts_and_sizes_that_lie(void) {
    uint8_t *end = fence(1 << 16);
    static const uint8_t majors[] = {0x40, 0x60, 0x80, 0xa0};
    for (uint32_t m = 0; m < 4; m++)
        for (uint8_t info = 24; info < 32; info++)
            for (uint32_t where = 0; where < 3; where++) { /* at the top, as a value, as an item */
                uint8_t row[16] = "\xa1\x61"
                                  "a\x81";
                const size_t at = where == 0 ? 0 : where + 2;
                memset(row + at, 0xff, 9);
                row[at] = majors[m] | info;
                const size_t size = at + 1 + (info < 28 ? (size_t)1 << (info - 24) : 0);
                memcpy(end - size, row, size);
                CHECK(read_row_at(end, size, 1, false, ENTRIES_MAX) == FVDB_ERR_FORMAT);
            }
}

static void test_deep_nesting_needs_no_stack(void) {
    enum { SIZE = 3 << 20 };
    uint8_t *end = fence(SIZE);
    static const char *const units[] = {"\x81", "\xc0",
                                        "\xa1\x61"
                                        "a",
                                        "\xa1\x61"
                                        "a\x81",
                                        "\x82\x00"};
    for (uint32_t u = 0; u < sizeof units / sizeof *units; u++) {
        const size_t n = u == 4 ? 2 : strlen(units[u]), size = SIZE / n * n;
        for (size_t i = 0; i < size; i += n) memcpy(end - size + i, units[u], n);
        CHECK(read_row_at(end, size, 3, u % 2, ENTRIES_MAX) == FVDB_ERR_FORMAT);
    }
}

static void test_damaged_rows(void) {
    uint8_t *end = fence(1 << 16);
    uint64_t state = 20261126;
    uint32_t read = 0, refused = 0;
    printf("    seed %llu\n", (unsigned long long)state);
    for (uint32_t round = 0; round < 300000; round++) {
        uint8_t row[256];
        size_t size = sizeof seeded - 1;
        memcpy(row, seeded, size);
        for (uint32_t damage = 0; damage <= round % 3; damage++) {
            const uint64_t dice = state = mix64(state);
            const size_t at = (dice >> 8) % size, n = 1 + (dice >> 32) % 8;
            switch (dice % 5) {
            case 0: row[at] ^= (uint8_t)(1u << (dice >> 40) % 8); break;
            case 1: row[at] = (uint8_t)(dice >> 40); break;
            case 2: size = at + 1; break;
            case 3: /* a piece once more */
                if (at + n > size || size + n > sizeof row) break;
                memmove(row + at + n, row + at, size - at);
                size += n;
                break;
            default: /* a piece lost */
                if (at + n >= size) break;
                memmove(row + at, row + at + n, size - at - n);
                size -= n;
            }
        }
        memcpy(end - size, row, size);
        const fvdb_status status = read_row_at(end, size, 1 + round % 3, round & 4, round & 8 ? 2 : ENTRIES_MAX);
        if (status == FVDB_ERR_FORMAT) refused++;
        else read++;
    }
    CHECK(read > 10000 && refused > 10000);
}

static void test_a_list_with_many_readings_is_sorted_once(void) {
    /* Each map of the list has another reading than the one before: [{"a.b": {"c": 1}}, {"a": {"b.c": 1}}, …]. */
    enum { PAIRS = 700, UNIT = 9 + 9 };
    uint8_t *end = fence(1 << 16);
    static const char unit[] = "\xa1\x63"
                               "a.b\xa1\x61"
                               "c\x01\xa1\x61"
                               "a\xa1\x63"
                               "b.c\x02";
    const size_t size = 3 + PAIRS * UNIT;
    CHECK(sizeof unit - 1 == UNIT);
    uint8_t *row = end - size;
    row[0] = 0x99, row[1] = (2 * PAIRS) >> 8, row[2] = (2 * PAIRS) & 255;
    for (uint32_t i = 0; i < PAIRS; i++) memcpy(row + 3 + i * UNIT, unit, UNIT);
    CHECK(read_row_at(end, size, 3, false, ENTRIES_MAX) == FVDB_OK);
    CHECK(out.cells.n_listed == 2 * PAIRS);
    for (uint32_t i = 0; i < 2 * PAIRS; i++) CHECK(out.in_list[i] == 1 && out.list_numbers[i] == 1 + i % 2);
}

int main(void) {
    RUN(test_single_values);
    RUN(test_numbers_of_every_size);
    RUN(test_each_reading_counts);
    RUN(test_lists);
    RUN(test_readings_that_alternate_below_a_list);
    RUN(test_many_values_fill_the_table);
    RUN(test_a_failed_allocation_is_a_status);
    RUN(test_arguments_are_checked);
    RUN(test_bytes_that_end_early);
    RUN(test_counts_and_sizes_that_lie);
    RUN(test_deep_nesting_needs_no_stack);
    RUN(test_damaged_rows);
    RUN(test_a_list_with_many_readings_is_sorted_once);
    return check_done();
}
