#include "quant/scales.h"

#include <string.h>

static const uint16_t f16_infinity = 0x7c00;

/* The nearest fp16, but never zero: a group of tiny values keeps what its codes can express. */
static uint16_t f16_scale(float scale)
{
    uint16_t h = ql_f32_to_f16(scale);
    return h == 0 && scale > 0 ? 1 : h;
}

/* Of values that are not negative. */
static uint16_t f16_down(float x)
{
    uint16_t h = ql_f32_to_f16(x);
    return ql_f16_to_f32(h) > x ? (uint16_t)(h - 1) : h;
}

static uint16_t f16_up(float x)
{
    uint16_t h = ql_f32_to_f16(x);
    return ql_f16_to_f32(h) < x ? (uint16_t)(h + 1) : h;
}

static size_t store_f16(ql_wview *view, float *scales, size_t first, size_t count)
{
    uint16_t *stored = (uint16_t *)ql_writable(view->scales) + first;
    size_t bad = count;
    for (size_t i = 0; i < count; i++) {
        stored[i] = f16_scale(scales[first + i]);
        if (stored[i] >= f16_infinity && bad == count)
            bad = i;
        scales[first + i] = ql_f16_to_f32(stored[i]);
    }
    return bad;
}

/* One block of 256. Groups of zeros decode to zeros whatever their scale, so they do not count. The
 * offset is rounded down and the step up: the codes then reach from the smallest scale to the largest. */
static size_t store_dq(ql_wview *view, float *scales, size_t first, size_t count)
{
    uint8_t *codes = (uint8_t *)ql_writable(view->scales) + first;
    float low = INFINITY, high = 0;
    for (size_t i = first; i < first + count; i++) {
        if (scales[i] > 0 && scales[i] < low)
            low = scales[i];
        if (scales[i] > high)
            high = scales[i];
    }
    uint16_t offset = high > 0 ? f16_down(low) : 0;
    float base = ql_f16_to_f32(offset);
    uint16_t step = high > base ? f16_up((high - base) / 255.0f) : 0;
    float unit = ql_f16_to_f32(step);
    ((uint16_t *)ql_writable(view->offsets))[first / QL_DQ_GROUPS] = offset;
    ((uint16_t *)ql_writable(view->steps))[first / QL_DQ_GROUPS] = step;
    size_t bad = count;
    for (size_t i = 0; i < count; i++) {
        float scale = scales[first + i], code = unit > 0 && scale > 0 ? nearbyintf((scale - base) / unit) : 0;
        code = code < 0 ? 0 : code > 255 ? 255 : code;
        if (code == 0 && base == 0 && scale > 0)
            code = 1; /* zero would lose the group */
        if (step >= f16_infinity && bad == count && scale == high)
            bad = i;
        codes[i] = (uint8_t)code;
        scales[first + i] = scale > 0 ? ql_wview_scale(view, first + i) : 0;
    }
    return bad;
}

size_t ql_scales_store(ql_wview *view, float *scales, size_t first, size_t count)
{
    switch (view->format.scale) {
    case QL_SCALE_F16:
        return store_f16(view, scales, first, count);
    case QL_SCALE_DQ:
        return store_dq(view, scales, first, count);
    default:
        assert(view->format.scale == QL_SCALE_F32);
        memcpy((float *)ql_writable(view->scales) + first, scales + first, count * sizeof *scales);
        return count;
    }
}

/* torch.linspace(0.1, 1, count)[i] in fp32, as PyTorch's vector code rounds it: whole runs of 16 elements
 * in steps of 8 lanes, from both ends. */
static float linspace(int count, int i)
{
    const float step = 0.9f / (float)(count - 1);
    int lane = i < count / 16 * 16 ? i % 8 : 0, at = i - lane;
    float base = at < count / 2 ? fmaf(step, (float)at, 0.1f) : fmaf(-step, (float)(count - 1 - at), 1.0f);
    return base + step * (float)lane;
}

void ql_bnb_dynamic_map(float map[256])
{
    static const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    float *zero = map + 127;
    *zero = 0.0f;
    map[255] = 1.0f;
    for (int i = 0; i < 7; i++)
        for (int j = 0; j < 1 << i; j++) {
            float middle = (linspace((1 << i) + 1, j) + linspace((1 << i) + 1, j + 1)) / 2.0f;
            zero[(1 << i) + j] = powers[i] * middle;
            zero[-(1 << i) - j] = -zero[(1 << i) + j];
        }
}

/* The nearest entry; a tie goes to the lower one. */
static uint8_t map_code(const float map[256], float x)
{
    unsigned low = 0, high = 255;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (x > (map[middle] + map[middle + 1]) / 2.0f)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

void ql_scales_store_nested(ql_wview *view, const float *scales)
{
    size_t total = ql_wview_scales(view);
    float *map = ql_writable(view->map), *absmax2 = ql_writable(view->absmax2);
    uint8_t *codes = ql_writable(view->scales);
    double sum = 0;
    for (size_t i = 0; i < total; i++)
        sum += scales[i];
    float offset = (float)(sum / (double)total);
    view->nested_offset = offset;
    ql_bnb_dynamic_map(map);
    for (size_t first = 0; first < total; first += view->nested_block) {
        size_t left = total - first, end = first + (left < view->nested_block ? left : view->nested_block);
        float most = 0;
        for (size_t i = first; i < end; i++)
            most = fmaxf(most, fabsf(scales[i] - offset));
        absmax2[first / view->nested_block] = most;
        for (size_t i = first; i < end; i++)
            codes[i] = map_code(map, most > 0 ? (scales[i] - offset) / most : 0.0f);
    }
}
