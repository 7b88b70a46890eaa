/* Looking up 4-bit codes with NEON: the table as four planes, one for each byte of its values. Only for aarch64. */
#ifndef QL_SRC_KERN_TABLE_NEON_H
#define QL_SRC_KERN_TABLE_NEON_H

#include <arm_neon.h>
#include <stddef.h>

typedef struct planes {
    uint8x16_t byte[4];
} planes;

/* Sixteen values. */
typedef struct quads {
    float32x4_t part[4];
} quads;

static inline planes load_planes(const float *table)
{
    uint8x16x4_t bytes = table ? vld4q_u8((const uint8_t *)table) : (uint8x16x4_t){0};
    return (planes){{bytes.val[0], bytes.val[1], bytes.val[2], bytes.val[3]}};
}

/* codes: 0 to 15 in every byte. */
static inline quads look_up(planes t, uint8x16_t codes)
{
    uint8x16_t b0 = vqtbl1q_u8(t.byte[0], codes), b1 = vqtbl1q_u8(t.byte[1], codes);
    uint8x16_t b2 = vqtbl1q_u8(t.byte[2], codes), b3 = vqtbl1q_u8(t.byte[3], codes);
    uint16x8_t low0 = vreinterpretq_u16_u8(vzip1q_u8(b0, b1)), low1 = vreinterpretq_u16_u8(vzip2q_u8(b0, b1));
    uint16x8_t high0 = vreinterpretq_u16_u8(vzip1q_u8(b2, b3)), high1 = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
    return (quads){{vreinterpretq_f32_u16(vzip1q_u16(low0, high0)), vreinterpretq_f32_u16(vzip2q_u16(low0, high0)),
                    vreinterpretq_f32_u16(vzip1q_u16(low1, high1)), vreinterpretq_f32_u16(vzip2q_u16(low1, high1))}};
}

static inline quads widen_int8(int8x16_t codes)
{
    int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_high_s8(codes);
    return (quads){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}

#endif
