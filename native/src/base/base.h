/* Contract of base/: the few things every other folder uses.  base/ depends on nothing but libc and the platform.
 *
 * Errors: a function that can fail returns fvdb_status and takes the diag it fills.  FAIL fills it with file and line.
 * Sizes: products of sizes go through mul_size, so that a hostile count cannot wrap. */
#ifndef FVDB_BASE_H
#define FVDB_BASE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bitmap.h"
#include "fabstir_vectordb.h"
#include "topk.h"

#define FVDB_LIKELY(x) __builtin_expect(!!(x), 1)

/* Fills diag (may be NULL) and returns status; `message` must be static text. */
static inline fvdb_status diag_fill(fvdb_diag *diag, fvdb_status status, const char *file, uint32_t line,
                                    const char *message, uint64_t row, uint64_t expected, uint64_t actual) {
    if (diag) {
        diag->status = (uint32_t)status;
        diag->line = line;
        diag->file = file;
        diag->message = message;
        diag->row = row;
        diag->expected = expected;
        diag->actual = actual;
    }
    return status;
}
#define FAIL_AT(diag, status, message, row, expected, actual) \
    diag_fill(diag, status, __FILE__, (uint32_t)__LINE__, message, row, expected, actual)
#define FAIL(diag, status, message) FAIL_AT(diag, status, message, 0, 0, 0)
/* The one failure with nothing more to say. */
#define FAIL_MEMORY(diag) FAIL(diag, FVDB_ERR_MEMORY, "allocation failed")
/* ---- status.c ---- */

/* Static text for a status code; one for numbers that are none, too. */
const char *status_text(fvdb_status status);

/* Returns from the caller when `call` did not succeed; for functions that own nothing at that point. */
#define TRY(call)                                     \
    do {                                              \
        fvdb_status try_status = (call);              \
        if (try_status != FVDB_OK) return try_status; \
    } while (0)

static inline bool mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* ---- prefetch: asks for cache lines, without waiting ---- */

#define CACHE_LINE 64u
static inline const char *line_of(const void *p) { return (const char *)((uintptr_t)p & ~(uintptr_t)(CACHE_LINE - 1)); }
/* Into the second level alone, from where arithmetic hides the rest of the way.  What a walk asks for at once is more lines
 * than a core waits for on their way into the first one: there AMD's cores take twice as long for them, and those of Intel as long
 * (docs/decisions/0044). */
static inline void prefetch_line(const void *p) { __builtin_prefetch(p, 0, 2); }
/* The lines of `bytes` bytes. */
static inline void prefetch_bytes(const void *p, size_t bytes) {
    for (const char *line = line_of(p); line < (const char *)p + bytes; line += CACHE_LINE) prefetch_line(line);
}

/* ---- control word ---- */

static inline bool control_cancelled(const fvdb_control *c) {
    return c && __atomic_load_n(&c->cancel, __ATOMIC_RELAXED);
}
static inline void control_progress(fvdb_control *c, int64_t done, int64_t total) {
    if (!c) return;
    __atomic_store_n(&c->total, total, __ATOMIC_RELAXED);
    __atomic_store_n(&c->done, done, __ATOMIC_RELAXED);
}

/* The range of progress that one step of a long call covers: its `rows` rows take the progress from `from` to `to`, of `total`. */
typedef struct progress_range {
    fvdb_control *control;
    int64_t from, to, total;
    uint32_t rows;
} progress_range;
static inline void progress_report(const progress_range *p, uint32_t rows_done) {
    control_progress(p->control, p->from + (p->to - p->from) * rows_done / (p->rows ? p->rows : 1), p->total);
}

/* ---- alloc.c: memory ---- */

/* malloc, zeroed calloc and free behind one door, so that tests can make the nth allocation fail. */
void *mem_alloc(size_t bytes);
void *mem_alloc_array(size_t count, size_t size); /* zeroed; NULL on overflow */
void *mem_realloc(void *p, size_t bytes);
void mem_free(void *p);
/* Gives freed heap pages back to the system, where the allocator knows how.  mem_trim: the pages of all heaps, but for the end
 * of other threads' heaps.  mem_trim_thread: the end of this thread's heap. */
void mem_trim(void);
void mem_trim_thread(void);
/* Test hook: the nth allocation from now fails (0 = never).  Compiled in always, costs one predictable branch. */
void mem_fail_after(int64_t n);

/* A growable array of bytes that never pays for unused capacity: pages are mapped ahead of use but only touched pages
 * are resident.  64-byte aligned.  Growing keeps the content and may move it; new bytes are zero. */
typedef struct region {
    uint8_t *base;
    size_t used;    /* bytes asked for: what memory statistics count */
    size_t mapped;  /* bytes of address space */
    bool scattered; /* set by its owner: read here and there, so on huge pages where there are some */
} region;
bool region_resize(region *r, size_t bytes); /* false: out of memory, region unchanged; may also shrink */
void region_free(region *r);
size_t region_resident(const region *r); /* `used`, rounded up to pages */
/* Gives back the rest of a scattered region's last huge page: until then up to 2 MB more may be resident. */
void region_trim(const region *r);

/* ---- random numbers: seeded, the same everywhere ---- */

/* splitmix64 (Steele, Lea & Flood 2014): a strong 64-bit mix of a counter. */
static inline uint64_t mix64(uint64_t x) {
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* ---- threads.c: run one function on several threads for the length of a call ---- */

typedef struct thread_pool thread_pool;
/* Runs fn(context, worker, item) for item 0 .. items-1, items handed out one by one in order, worker in 0 .. threads-1.
 * The calling thread is worker 0.  Returns when all items are done.  fn must not fail; it notes errors in context. */
typedef void (*thread_pool_fn)(void *context, uint32_t worker, uint32_t item);
fvdb_status thread_pool_start(uint32_t threads, thread_pool **out, fvdb_diag *diag); /* 1 thread starts none */
void thread_pool_run(thread_pool *c, thread_pool_fn fn, void *context, uint32_t items);
/* The same in steps, for a caller that has other work to do in between: the other threads begin; the caller does the next
 * item, or finds that none is left; nobody begins another item; the caller waits until no other thread is at work, which it
 * does before any other run. */
void thread_pool_begin(thread_pool *c, thread_pool_fn fn, void *context, uint32_t items);
bool thread_pool_take(thread_pool *c);
void thread_pool_drop(thread_pool *c);
void thread_pool_wait(thread_pool *c);
uint32_t thread_pool_size(const thread_pool *c);
void thread_pool_stop(thread_pool *c);

typedef struct mutex {
    void *impl[8];
} mutex; /* room for pthread_mutex_t (40 bytes) or SRWLOCK */
bool mutex_init(mutex *m);
void mutex_lock(mutex *m);
void mutex_unlock(mutex *m);
void mutex_destroy(mutex *m);

/* Writers do not starve: once one waits, new readers queue behind it. */
typedef struct rwlock rwlock;
rwlock *rwlock_new(void);
void rwlock_free(rwlock *l);
void rwlock_read(rwlock *l);
bool rwlock_try_read(rwlock *l);
void rwlock_read_done(rwlock *l);
void rwlock_write(rwlock *l);
void rwlock_write_done(rwlock *l);

#endif
