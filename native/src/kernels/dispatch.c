/* Choosing the kernel table: what the CPU can do, what the operating system saves, what FVDB_KERNELS asks for.
 *
 * CPUID and XCR0 are read here: __builtin_cpu_supports answers no to everything under zig cc, whose runtime lacks its
 * initialiser. */
#include "kernels.h"

#include <stdlib.h>

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* XCR0 bits the system must save: SSE and AVX state; for AVX-512 also masks and both register extensions. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

#define OSXSAVE (1u << 27)
#define FMA (1u << 12)

/* What leaf 1 says in ecx: all of `needed`; and what the system saves. */
static bool cpu_and_system_have(uint32_t needed, uint64_t saved) {
    uint32_t a, b, c, d;
    needed |= OSXSAVE;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & needed) == needed && (xcr0() & saved) == saved;
}

/* All but a few CPUs with AVX2 have FMA; a virtual one may hide it. */
static bool cpu_has_avx2(void) {
    uint32_t a, b, c, d;
    const uint32_t avx2 = 1u << 5;
    return cpu_and_system_have(FMA, XCR0_AVX) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & avx2);
}

static bool cpu_has_avx512(void) {
    uint32_t a, b, c, d;
    const uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, in_ebx = f | dq | bw | vl,
                   vnni = 1u << 11;
    return cpu_and_system_have(FMA, XCR0_AVX512) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & in_ebx) == in_ebx &&
           (c & vnni);
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static bool cpu_has_dot_product(void) {
    const unsigned long asimddp = 1ul << 20; /* HWCAP_ASIMDDP of the Linux ABI */
    return (getauxval(AT_HWCAP) & asimddp) != 0;
}

#elif defined(__aarch64__) && defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

/* Windows 10 runs on CPUs without the dot product instructions, such as Snapdragon 835. */
static bool cpu_has_dot_product(void) { return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE) != 0; }

#elif defined(__aarch64__)
/* Every 64-bit Apple CPU since M1 has the dot product instructions. */
static bool cpu_has_dot_product(void) { return true; }
#endif

size_t kernels_available(const kernel_table *out[4]) {
    size_t n = 0;
    out[n++] = &kernels_scalar;
#if defined(__x86_64__)
    if (cpu_has_avx2()) out[n++] = &kernels_avx2;
    if (cpu_has_avx512()) out[n++] = &kernels_avx512;
#elif defined(__aarch64__)
    if (cpu_has_dot_product()) out[n++] = &kernels_neon;
#endif
    return n;
}

static const kernel_table *choose(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    const char *wanted = getenv("FVDB_KERNELS");
    if (!wanted || !*wanted) return tables[n - 1];
    for (size_t i = 0; i < n; i++)
        if (strcmp(tables[i]->name, wanted) == 0) return tables[i];
    return NULL;
}

/* Threads that race here choose the same, so whoever stores last changes nothing. */
const kernel_table *kernels_get(void) {
    static const kernel_table *chosen;
    const kernel_table *table = __atomic_load_n(&chosen, __ATOMIC_ACQUIRE);
    if (table) return table;
    table = choose();
    __atomic_store_n(&chosen, table, __ATOMIC_RELEASE);
    return table;
}
