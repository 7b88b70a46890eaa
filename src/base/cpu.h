/* What the processor and the operating system let this process use. */
#ifndef QL_SRC_BASE_CPU_H
#define QL_SRC_BASE_CPU_H

#include <stdint.h>

enum {
    QL_CPU_AVX2 = 1u << 0,        /* AVX2, FMA and F16C */
    QL_CPU_AVX512 = 1u << 1,      /* AVX-512 F, BW, DQ and VL, on top of AVX2 */
    QL_CPU_AVX512_BF16 = 1u << 2, /* vdpbf16ps */
    QL_CPU_AVX512_VNNI = 1u << 3, /* vpdpbusd on ZMM */
    QL_CPU_AVX512_VBMI = 1u << 4, /* VBMI and VBMI2: vpermb, vpshldd */
    QL_CPU_AMX_BF16 = 1u << 5,    /* tiles, with the kernel's permission to use them */
    QL_CPU_AMX_INT8 = 1u << 6,
    QL_CPU_NEON = 1u << 7,
};

/* Feature bits after the cap of QLORA_ISA; found once. */
uint32_t ql_cpu_features(void);

/* The bits that remain of `features` under a cap by name; the whole of it for an unknown name. */
uint32_t ql_cpu_cap(uint32_t features, const char *cap);

#endif
