/* A tiny test harness: RUN names a test, CHECK counts and reports, check_done gives main's exit code. */
#ifndef FVDB_CHECK_H
#define FVDB_CHECK_H

#include <stdio.h>

static int check_failures, check_count;

/* Reports the first failures of a test program and counts the rest: one broken loop must not flood the log. */
#define CHECK(condition)                                                         \
    do {                                                                         \
        check_count++;                                                           \
        if (!(condition) && check_failures++ < 20)                               \
            printf("    %s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    } while (0)

#define RUN(test)                                                                      \
    do {                                                                               \
        int failures_before = check_failures;                                          \
        test();                                                                        \
        printf("%s %s\n", check_failures == failures_before ? "ok  " : "FAIL", #test); \
        fflush(stdout);                                                                \
    } while (0)

static inline int check_done(void) {
    printf("%d checks, %d failed\n", check_count, check_failures);
    return check_failures ? 1 : 0;
}

#endif
