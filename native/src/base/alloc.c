/* Memory: malloc behind one door, and regions.
 *
 * A region is a growable array whose capacity costs nothing: it maps address space ahead of use and the kernel backs
 * only the pages that were written.  On Linux it grows by mremap, which moves page tables instead of bytes, so growing
 * a 150 MB plane needs no second copy.  Elsewhere it is a plain allocation grown by an eighth at a time.
 *
 * Invariants: bytes past `used` and below `mapped` are zero, so growing never has to clear; `base` is 64-byte aligned. */
#define _GNU_SOURCE /* mremap */
#include "base.h"

#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#define PAGE_BYTES 4096u

static int64_t fail_countdown;

void mem_fail_after(int64_t n) { __atomic_store_n(&fail_countdown, n, __ATOMIC_RELAXED); }

static bool injected_failure(void) {
    if (FVDB_LIKELY(__atomic_load_n(&fail_countdown, __ATOMIC_RELAXED) == 0)) return false;
    return __atomic_sub_fetch(&fail_countdown, 1, __ATOMIC_RELAXED) == 0;
}

void *mem_alloc(size_t bytes) { return injected_failure() ? NULL : malloc(bytes ? bytes : 1); }

void *mem_alloc_array(size_t count, size_t size) {
    if (injected_failure()) return NULL;
    return calloc(count ? count : 1, size ? size : 1);
}

void *mem_realloc(void *p, size_t bytes) { return injected_failure() ? NULL : realloc(p, bytes ? bytes : 1); }

void mem_free(void *p) { free(p); }

void mem_settle(void) {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

/* Address space to map for `bytes` of content: a quarter ahead, so that appending n rows costs O(n) page-table moves. */
static size_t mapped_for(size_t bytes) { return round_up(bytes + bytes / 4, PAGE_BYTES); }

#if defined(__linux__)

/* The bytes between used and the end of its page are resident, hence cleared here; whole pages past it go back. */
static void shrink_to(region *r, size_t bytes) {
    size_t keep = round_up(bytes, PAGE_BYTES), end = round_up(r->used, PAGE_BYTES);
    memset(r->base + bytes, 0, (r->used < keep ? r->used : keep) - bytes);
    if (end > keep) madvise(r->base + keep, end - keep, MADV_DONTNEED);
    r->used = bytes;
}

bool region_resize(region *r, size_t bytes) {
    if (bytes <= r->used) {
        if (bytes < r->used) shrink_to(r, bytes);
        return true;
    }
    if (bytes > r->mapped) {
        size_t mapped = mapped_for(bytes);
        if (mapped < bytes || injected_failure()) return false;
        void *p = r->base
                      ? mremap(r->base, r->mapped, mapped, MREMAP_MAYMOVE)
                      : mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return false;
        r->base = p;
        r->mapped = mapped;
    }
    r->used = bytes;
    return true;
}

void region_free(region *r) {
    if (r->base) munmap(r->base, r->mapped);
    *r = (region){0};
}

#else

static void *aligned_new(size_t bytes) {
#if defined(_WIN32)
    return _aligned_malloc(bytes, 64);
#else
    void *p = NULL;
    return posix_memalign(&p, 64, bytes) == 0 ? p : NULL;
#endif
}

static void aligned_delete(void *p) {
#if defined(_WIN32)
    _aligned_free(p);
#else
    free(p);
#endif
}

bool region_resize(region *r, size_t bytes) {
    if (bytes <= r->used) {
        memset(r->base + bytes, 0, r->used - bytes);
        r->used = bytes;
        return true;
    }
    if (bytes > r->mapped) {
        size_t mapped = mapped_for(bytes);
        void *p = mapped < bytes || injected_failure() ? NULL : aligned_new(mapped);
        if (!p) return false;
        if (r->used) memcpy(p, r->base, r->used);
        memset((uint8_t *)p + r->used, 0, mapped - r->used);
        aligned_delete(r->base);
        r->base = p;
        r->mapped = mapped;
    }
    r->used = bytes;
    return true;
}

void region_free(region *r) {
    aligned_delete(r->base);
    *r = (region){0};
}

#endif

size_t region_resident(const region *r) { return round_up(r->used, PAGE_BYTES); }
