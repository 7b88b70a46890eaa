#define _GNU_SOURCE
#include "base/cpu.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qlora/base.h"

static const struct {
    uint32_t bit;
    const char *name;
} names[] = {
    {QL_CPU_AVX2, "avx2"},
    {QL_CPU_AVX512, "avx512"},
    {QL_CPU_AVX512_BF16, "avx512-bf16"},
    {QL_CPU_AVX512_VNNI, "avx512-vnni"},
    {QL_CPU_AVX512_VBMI, "avx512-vbmi"},
    {QL_CPU_AMX_BF16, "amx-bf16"},
    {QL_CPU_AMX_INT8, "amx-int8"},
    {QL_CPU_NEON, "neon"},
};

static const struct {
    const char *name;
    uint32_t keep;
} caps[] = {
    {"scalar", 0},
    {"avx2", QL_CPU_AVX2},
    {"avx512", QL_CPU_AVX2 | QL_CPU_AVX512},
    {"avx512-bf16", QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_VBMI},
    {"amx", ~0u},
    {"neon", QL_CPU_NEON},
};

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t enabled_states(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux hands out the AMX tile data state (feature 18) only on request. */
static int request_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static uint32_t detect(void)
{
    uint32_t a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1))
        return 0;
    uint32_t fma = c >> 12 & 1, f16c = c >> 29 & 1;
    uint64_t state = enabled_states();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if ((state & 0x6) == 0x6 && fma && f16c && (b >> 5 & 1))
        found |= QL_CPU_AVX2;
    uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    if ((found & QL_CPU_AVX2) && (state & 0xe6) == 0xe6 && (b & f_dq_bw_vl) == f_dq_bw_vl)
        found |= QL_CPU_AVX512;
    uint32_t amx = d, sub_a = 0, ignored;
    if (found & QL_CPU_AVX512) {
        found |= c >> 11 & 1 ? QL_CPU_AVX512_VNNI : 0;
        found |= (c >> 1 & 1) && (c >> 6 & 1) ? QL_CPU_AVX512_VBMI : 0;
        if (__get_cpuid_count(7, 1, &sub_a, &ignored, &ignored, &ignored) && (sub_a >> 5 & 1))
            found |= QL_CPU_AVX512_BF16;
    }
    if ((found & QL_CPU_AVX512) && (state & 0x60000) == 0x60000 && (amx >> 24 & 1) && request_amx()) {
        found |= amx >> 22 & 1 ? QL_CPU_AMX_BF16 : 0;
        found |= amx >> 25 & 1 ? QL_CPU_AMX_INT8 : 0;
    }
    return found;
}
#elif defined(__aarch64__)
static uint32_t detect(void)
{
    return QL_CPU_NEON;
}
#else
static uint32_t detect(void)
{
    return 0;
}
#endif

uint32_t ql_cpu_cap(uint32_t features, const char *cap)
{
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++)
        if (strcmp(cap, caps[i].name) == 0)
            return features & caps[i].keep;
    return features;
}

static uint32_t features;
static char text[160];

static void find_features(void)
{
    const char *cap = getenv("QLORA_ISA");
    features = detect();
    if (cap)
        features = ql_cpu_cap(features, cap);
    size_t used = (size_t)snprintf(text, sizeof text, "scalar");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (features & names[i].bit)
            used += (size_t)snprintf(text + used, sizeof text - used, " %s", names[i].name);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

uint32_t ql_cpu_features(void)
{
    pthread_once(&once, find_features);
    return features;
}

const char *ql_cpu_describe(void)
{
    pthread_once(&once, find_features);
    return text;
}
