/* The encoders of all instruction sets: ties, and agreement to the bit. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "base/rng.h"
#include "quant/encode.h"
#include "support.h"

static unsigned encode_one(const ql_encoder *encoder, ql_code code, float x)
{
    float block[QL_BLOCK] = {0};
    uint8_t bytes[QL_BLOCK / 2];
    block[37] = x;
    encoder->encode4(bytes, block, ql_codebook_of(code));
    return bytes[5] >> 4;
}

/* Thresholds lie in the middle between values that follow each other; a tie goes to the lower value, in FP4 to
 * the one nearer to zero. */
START_TEST(ties)
{
    static const ql_code codes[] = {QL_CODE_NF4, QL_CODE_INT4, QL_CODE_FP4};
    const ql_encoder *encoder = ql_encoder_select(ql_cpu_features());
    for (int b = 0; b < 3; b++) {
        const ql_codebook *book = ql_codebook_of(codes[b]);
        for (int r = 0; r < 15; r++) {
            float t = book->thresholds[r];
            double low = book->table[book->codes[r]], high = book->table[book->codes[r + 1]];
            ck_assert(low < high || (low == 0 && high == 0));
            ck_assert_double_eq_tol(t, (low + high) / 2, 4e-8 + 4e-6 * fabs(t));
            ck_assert_uint_eq(encode_one(encoder, codes[b], t), book->codes[r]);
            ck_assert_uint_eq(encode_one(encoder, codes[b], nextafterf(t, 9)), book->codes[r + 1]);
        }
        ck_assert_uint_eq(encode_one(encoder, codes[b], 0), book->zero);
        ck_assert_uint_eq(encode_one(encoder, codes[b], -0.0f), book->zero);
    }
    ck_assert_uint_eq(encode_one(encoder, QL_CODE_FP4, .0859375f), 1);
    ck_assert_uint_eq(encode_one(encoder, QL_CODE_FP4, -.0859375f), 9);
    float halves[QL_BLOCK];
    int8_t bytes[QL_BLOCK];
    for (int i = 0; i < QL_BLOCK; i++)
        halves[i] = (float)(i - 32) + 0.5f;
    halves[63] = 127.6f;
    encoder->encode8(bytes, halves);
    for (int i = 0; i < 63; i++)
        ck_assert_int_eq(bytes[i], (int)rint(i - 32 + 0.5));
    ck_assert_int_eq(bytes[63], 127);
}
END_TEST

/* Every instruction set gives the bits of the first of the list. */
START_TEST(encoders_agree)
{
    const ql_encoder *plain = ql_encoders[0];
    ql_rng rng = {.seed = 5};
    float x[256], y[256];
    uint8_t a[32], b[32];
    int8_t c[64], d[64];
    for (size_t e = 1; e < ql_encoder_count; e++) {
        const ql_encoder *encoder = ql_encoders[e];
        if (encoder->cpu & ~ql_cpu_features()) {
            printf("skipped: encoder %s on this processor\n", encoder->name);
            continue;
        }
        for (uint32_t first = 0; first < 0x10000; first += 64) { /* every half there is */
            uint16_t halves[64];
            for (uint32_t i = 0; i < 64; i++)
                halves[i] = (uint16_t)(first + i);
            for (int t = 0; t < 2; t++) {
                plain->load(x, halves, t ? QL_BF16 : QL_F16, 61);
                encoder->load(y, halves, t ? QL_BF16 : QL_F16, 61);
                ck_assert_mem_eq(x, y, 61 * sizeof *x);
                ck_assert_uint_eq(plain->largest(x, 61), encoder->largest(x, 61));
            }
        }
        for (int turn = 0; turn < 4000; turn++) {
            float size = turn % 2 ? 1.2f : 140;
            for (int i = 0; i < 256; i++)
                x[i] = y[i] = size * (2 * ql_uniform(ql_rng_next(&rng)) - 1);
            for (int code = QL_CODE_INT4; code <= QL_CODE_FP4; code++) {
                x[turn % 64] = ql_codebook_of(code)->thresholds[turn % 15];
                plain->encode4(a, x, ql_codebook_of(code));
                encoder->encode4(b, x, ql_codebook_of(code));
                ck_assert_mem_eq(a, b, sizeof a);
                plain->decode4(x + 64, a, ql_codebook_of(code)->table);
                encoder->decode4(x + 128, a, ql_codebook_of(code)->table);
                ck_assert_mem_eq(x + 64, x + 128, 64 * sizeof *x);
            }
            plain->encode8(c, x);
            encoder->encode8(d, x);
            ck_assert_mem_eq(c, d, sizeof c);
            memcpy(x, y, sizeof x);
            ck_assert(plain->int4_scale(x, 256, 140) == encoder->int4_scale(x, 256, 140));
            ck_assert(plain->int4_scale(x, 32, size) == encoder->int4_scale(x, 32, size));
            plain->multiply(x, 77, 0.3f);
            encoder->multiply(y, 77, 0.3f);
            ck_assert_mem_eq(x, y, sizeof x);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant_encode");
    TCase *tests = tcase_create("quant_encode");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, ties);
    tcase_add_test(tests, encoders_agree);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
