/* The plain tier, and the choice among tiers. */
#include "lora/thin.h"

#include <string.h>

#include "base/cpu.h"
#include "base/half.h"

enum { LANES = QL_THIN_LANES };

static void project(size_t m, size_t k, size_t r, const float *x, size_t ldx, const float *panel, float factor,
                    float *h)
{
    for (size_t i = 0; i < r; i += LANES, panel += k * LANES)
        for (size_t t = 0; t < m; t++) {
            float sum[LANES] = {0};
            for (size_t j = 0; j < k; j++)
                for (size_t l = 0; l < LANES; l++)
                    sum[l] += x[t * ldx + j] * panel[j * LANES + l];
            for (size_t l = 0; l < LANES && i + l < r; l++)
                h[t * r + i + l] = factor * sum[l];
        }
}

static void expand(size_t m, size_t r, size_t cols, const float *h, const float *panel, float *y, size_t ldy)
{
    for (size_t j = 0; j < cols; j += LANES, panel += r * LANES) {
        size_t lanes = cols - j < LANES ? cols - j : LANES;
        for (size_t t = 0; t < m; t++) {
            float sum[LANES] = {0};
            memcpy(sum, y + t * ldy + j, lanes * sizeof *sum);
            for (size_t i = 0; i < r; i++)
                for (size_t l = 0; l < LANES; l++)
                    sum[l] += h[t * r + i] * panel[i * LANES + l];
            memcpy(y + t * ldy + j, sum, lanes * sizeof *sum);
        }
    }
}

static void widen(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t l = 0; l < LANES; l++)
            panel[i * LANES + l] = l < cols ? ql_f16_to_f32(src[i * ld + l]) : 0;
}

static void turn(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel)
{
    for (size_t j = 0; j < cols; j++)
        for (size_t l = 0; l < LANES; l++)
            panel[j * LANES + l] = l < rows ? ql_f16_to_f32(src[l * ld + j]) : 0;
}

static const ql_thin_kernels plain = {"plain", 0, project, expand, widen, turn};

const ql_thin_kernels *const ql_thin_tiers[] = {
    &plain,
#ifdef __x86_64__
    &ql_thin_avx2,
    &ql_thin_avx512,
#endif
    NULL,
};

const ql_thin_kernels *ql_thin_select(uint32_t features)
{
    const ql_thin_kernels *best = ql_thin_tiers[0];
    for (size_t i = 0; ql_thin_tiers[i]; i++)
        if (!(ql_thin_tiers[i]->cpu & ~features))
            best = ql_thin_tiers[i];
    return best;
}
