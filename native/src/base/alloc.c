/* Memory: malloc behind one door, and regions.
 *
 * A region is a growable array whose capacity costs nothing: it maps address space ahead of use and the kernel backs
 * only the pages that were written.  On Linux it grows by mremap, which moves page tables instead of bytes, so growing
 * a 150 MB plane needs no second copy.  Elsewhere it is a plain allocation grown by an eighth at a time.
 *
 * A region whose rows are read here and there asks for huge pages, once it is large: else the walk of page tables costs as much
 * as the row that it finds.  Of the last of them region_trim gives back what is not used.
 *
 * Invariants: bytes past `used` and below `mapped` are zero, so growing never has to clear; `base` is 64-byte aligned. */
#define _GNU_SOURCE /* mremap */
#include "base.h"

#include <stdlib.h>
#include <string.h>

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

/* In debug builds fresh memory and freed memory hold bytes that make a use of them show: no count, pointer or float that is
 * plausible.  `region` needs neither: it is zero by contract, and unmapped when freed. */
#if !defined(NDEBUG)
#define FRESH_BYTE 0xCD
#define FREED_BYTE 0xDD
#endif

void *mem_alloc(size_t bytes) {
    void *p = injected_failure() ? NULL : malloc(bytes ? bytes : 1);
#if defined(FRESH_BYTE)
    if (p) memset(p, FRESH_BYTE, bytes);
#endif
    return p;
}

void *mem_alloc_array(size_t count, size_t size) {
    if (injected_failure()) return NULL;
    return calloc(count ? count : 1, size ? size : 1);
}

void *mem_realloc(void *p, size_t bytes) { return injected_failure() ? NULL : realloc(p, bytes ? bytes : 1); }

void mem_free(void *p) {
#if defined(FREED_BYTE) && defined(__GLIBC__)
    if (p) memset(p, FREED_BYTE, malloc_usable_size(p)); /* elsewhere the size of a block is not known */
#endif
    free(p);
}

#if defined(__GLIBC__)

/* malloc_trim gives back what lies free within every heap, but the end of the main one only: that of a thread's own heap
 * stays with the process up to a threshold which rises with the largest block that was ever freed, to 64 MB.  So the end is
 * taken, a block at a time, its pages are given back, and it is freed.  Large blocks, as the page where each begins stays. */
#define END_BLOCK_BYTES ((size_t)1 << 20)
/* As many as a thread's heap has room for: holes that malloc_trim made come before the end. */
#define END_BLOCKS 64u

static void give_back(void *block) {
    const uintptr_t from = round_up((uintptr_t)block, PAGE_BYTES);
    const uintptr_t end = ((uintptr_t)block + END_BLOCK_BYTES) / PAGE_BYTES * PAGE_BYTES;
    madvise((void *)from, end - from, MADV_DONTNEED);
}

void mem_trim_thread(void) {
    void *blocks[END_BLOCKS];
    uint32_t n = 0;
    /* Blocks up to the size of one that was mapped and freed are not mapped any more. */
    free(malloc(END_BLOCK_BYTES));
    for (; n < END_BLOCKS && (blocks[n] = malloc(END_BLOCK_BYTES)); n++) give_back(blocks[n]);
    while (n) free(blocks[--n]);
}

void mem_trim(void) {
    malloc_trim(0);
    mem_trim_thread();
}

#else

void mem_trim_thread(void) {}
void mem_trim(void) {}

#endif

/* Address space to map for `bytes` of content: a quarter ahead, so that appending n rows costs O(n) page-table moves. */
static size_t mapped_for(size_t bytes) { return round_up(bytes + bytes / 4, PAGE_BYTES); }

#if defined(__linux__)

#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define HUGE_BYTES_MIN ((size_t)4 << 20)

static bool wants_huge_pages(const region *r) { return r->scattered && r->mapped >= HUGE_BYTES_MIN; }

/* Of the whole mapping, as the kernel moves no two kinds of pages at once.  Advice: where it is not taken nothing changes. */
static void ask_for_huge_pages(const region *r) {
    if (wants_huge_pages(r)) madvise(r->base, r->mapped, MADV_HUGEPAGE);
}

void region_trim(const region *r) {
    if (!wants_huge_pages(r)) return;
    const uintptr_t base = (uintptr_t)r->base, used = round_up(base + r->used, PAGE_BYTES);
    uintptr_t end = round_up(base + r->used, HUGE_PAGE_BYTES);
    if (end > base + r->mapped) end = base + r->mapped;
    if (end > used) madvise((void *)used, end - used, MADV_DONTNEED);
}

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
        ask_for_huge_pages(r);
    }
    r->used = bytes;
    return true;
}

void region_free(region *r) {
    if (r->base) munmap(r->base, r->mapped);
    *r = (region){.scattered = r->scattered};
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
    *r = (region){.scattered = r->scattered};
}

void region_trim(const region *r) { (void)r; }

#endif

size_t region_resident(const region *r) { return round_up(r->used, PAGE_BYTES); }
