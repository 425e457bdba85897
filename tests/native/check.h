/* A tiny test harness: RUN names a test, CHECK counts and reports, check_done gives main's exit code. The environment's
 * FVDB_TEST names the one test to run; without it, or empty, all run. */
#ifndef FVDB_CHECK_H
#define FVDB_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_failures, check_count;

/* Reports the first failures of a test program and counts the rest: one broken loop must not flood the log. */
#define CHECK(condition)                                                         \
    do {                                                                         \
        check_count++;                                                           \
        if (!(condition) && check_failures++ < 20)                               \
            printf("    %s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    } while (0)

static inline int check_wanted(const char *test) {
    const char *only = getenv("FVDB_TEST");
    return !only || !*only || strcmp(only, test) == 0;
}

#define RUN(test)                                                                      \
    do {                                                                               \
        int failures_before = check_failures;                                          \
        if (!check_wanted(#test)) break;                                               \
        test();                                                                        \
        printf("%s %s\n", check_failures == failures_before ? "ok  " : "FAIL", #test); \
        fflush(stdout);                                                                \
    } while (0)

/* The same for a test that takes long: tests/test_native_c.py marks it. */
#define RUN_LONG(test) RUN(test)

static inline int check_done(void) {
    printf("%d checks, %d failed\n", check_count, check_failures);
    return check_failures ? 1 : 0;
}

#endif
