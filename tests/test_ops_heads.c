/* RoPE, norms of heads, SwiGLU, GEGLU and soft caps: each tier against double arithmetic and central
 * finite differences of it, at ragged widths against guard pages, on 1, 2 and 3 threads. */
#include "base/half.h"
#include "ops_support.h"

static const size_t widths[] = {1, 3, 4, 7, 8, 15, 16, 17, 33, 64, 80, 129, 576};
enum { WIDTHS = sizeof widths / sizeof *widths, TOKENS = 37, GAP = 5 };
static const double unit = 0x1p-24;

/* transformers' ROPE_INIT_FUNCTIONS["llama3"], in fp32, for Llama-3.2-1B: high frequencies stay, low ones slow
 * down by 32, numbers 15 to 17 blend. */
START_TEST(llama3_frequencies_blend)
{
    static const struct {
        int i;
        double want;
    } known[] = {
        {0, 1.0},
        {5, 0.12868738174438477},
        {14, 0.0032114461064338684},
        {15, 0.0012905480107292533},
        {16, 0.000429556705057621},
        {17, 9.708286233944818e-05},
        {18, 1.9461638657958247e-05},
        {31, 9.418306490260875e-08},
    };
    ql_rope_config config = {.head_dim = 64, .theta = 500000, .llama3 = true, .factor = 32, .low_freq_factor = 1,
                             .high_freq_factor = 4, .original_max_positions = 8192};
    double got[32], plain[32];
    ql_rope_frequencies(&config, got);
    config.llama3 = false;
    ql_rope_frequencies(&config, plain);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        ck_assert_double_eq_tol(got[known[i].i] / known[i].want, 1, 2e-6);
    for (int i = 0; i < 32; i++)
        ck_assert_double_eq_tol(plain[i], 1 / pow(500000, 2 * i / 64.0), 1e-15);
    config.linear = 8;
    ql_rope_frequencies(&config, got);
    for (int i = 0; i < 32; i++)
        ck_assert_double_eq_tol(got[i], plain[i] / 8, 1e-15);
}
END_TEST

START_TEST(rope_turns_pairs_and_back)
{
    if (!use_tier(_i))
        return;
    static const size_t dims[][2] = {{2, 2},   {8, 8},     {16, 16},   {64, 64}, {80, 80},
                                     {128, 128}, {256, 256}, {128, 96}, {80, 20}}; /* of a head, and those that turn */
    enum { HEADS = 3, POSITIONS = 300 };
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++) {
        size_t hd = dims[k][0], turned = dims[k][1], half = turned / 2, cols = HEADS * hd, ld = cols + GAP;
        ql_rope rope = {POSITIONS, half, hd, guarded(POSITIONS * half), guarded(POSITIONS * half)};
        ql_rope_config config = {.head_dim = turned, .theta = 10000};
        ql_workers *workers = make_workers(3, (ql_scratch){0});
        ql_rope_fill(&rope, &config, workers);
        uint32_t position[TOKENS];
        for (size_t t = 0; t < TOKENS; t++)
            position[t] = t % 2 ? POSITIONS - 1 - (uint32_t)t : (uint32_t)(t / 2);
        float *x = random_matrix(TOKENS, cols, ld), *y = empty_matrix(TOKENS, cols, ld);
        float *one = empty_matrix(TOKENS, cols, ld);
        size_t bytes = ((TOKENS - 1) * ld + cols) * sizeof *x;
        memcpy(y, x, bytes);
        memcpy(one, x, bytes);
        const ql_heads heads[] = {{.heads = HEADS, .x = y, .ld = ld}, {.heads = HEADS, .x = one, .ld = ld}};
        ql_heads_forward(&rope, hd, 0, TOKENS, position, &heads[0], 1, workers);
        ql_heads_forward(&rope, hd, 0, TOKENS, position, &heads[1], 1, NULL);
        ck_assert_mem_eq(y, one, bytes);
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t i = 0; i < cols; i++) {
                size_t pair = i % hd % half, base = t * ld + i / hd * hd;
                double angle = position[t] * pow(10000, -2.0 * (double)pair / (double)turned);
                double a = x[base + pair], b = x[base + half + pair];
                double want = i % hd < half ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
                if (i % hd >= turned)
                    want = x[t * ld + i];
                assert_near(y[t * ld + i], want, 8 * unit, "rope, head_dim %zu, token %zu, %zu", hd, t, i);
            }
        /* The turn is orthogonal, so its transpose, the backward pass, is its inverse. */
        ql_heads_backward(&rope, hd, TOKENS, position, heads, 1, workers);
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t i = 0; i < cols; i++)
                assert_near(y[t * ld + i], x[t * ld + i], 12 * unit, "rope back, head_dim %zu", hd);
        assert_gaps_untouched(y, TOKENS, cols, ld);
        ql_workers_destroy(workers);
    }
}
END_TEST

/* Norm and turn in one, of two arrays at once, as the operations one by one, forward and back. */
START_TEST(heads_are_normed_and_turned)
{
    if (!use_tier(_i))
        return;
    enum { HD = 20, HEADS = 3, LD = HEADS * HD + GAP, N = (TOKENS - 1) * LD + HEADS * HD };
    ql_rope rope = {TOKENS, HD / 2, HD, guarded(TOKENS * HD / 2), guarded(TOKENS * HD / 2)};
    ql_workers *workers = make_workers(3, (ql_scratch){0});
    ql_rope_fill(&rope, &(ql_rope_config){.head_dim = HD, .theta = 10000}, workers);
    uint32_t position[TOKENS];
    for (size_t t = 0; t < TOKENS; t++)
        position[t] = (uint32_t)(t * 7 % TOKENS);
    float *raw = random_matrix(TOKENS, HEADS * HD, LD), *w = random_matrix(1, HD, HD);
    float *x[2] = {empty_matrix(TOKENS, HEADS * HD, LD), random_matrix(TOKENS, HEADS * HD, LD)};
    float *want[2] = {empty_matrix(TOKENS, HEADS * HD, LD), empty_matrix(TOKENS, HEADS * HD, LD)};
    float *rstd = guarded(TOKENS * HEADS), *want_rstd = guarded(TOKENS * HEADS);
    ql_rmsnorm norm = {HEADS, HD, w, 1e-5f};
    memcpy(want[1], x[1], N * sizeof(float));
    const ql_heads turns[] = {{.heads = HEADS, .x = want[0], .ld = LD}, {.heads = HEADS, .x = want[1], .ld = LD}};
    const ql_heads heads[] = {{HEADS, x[0], LD, raw, w, rstd}, {.heads = HEADS, .x = x[1], .ld = LD}};
    ql_rmsnorm_forward(&norm, TOKENS, raw, LD, want[0], LD, want_rstd, NULL);
    for (int i = 0; i < 2; i++)
        ql_heads_forward(&rope, HD, 0, TOKENS, position, &turns[i], 1, NULL);
    ql_heads_forward(&rope, HD, 1e-5f, TOKENS, position, heads, 2, workers);
    for (int back = 0; back < 2; back++) {
        for (size_t i = 0; i < N; i++)
            for (int k = 0; k < 2; k++)
                ck_assert(i % LD >= HEADS * HD || x[k][i] == want[k][i]);
        ck_assert_mem_eq(rstd, want_rstd, TOKENS * HEADS * sizeof *rstd);
        if (back)
            break;
        for (int i = 0; i < 2; i++)
            ql_heads_backward(&rope, HD, TOKENS, position, &turns[i], 1, NULL);
        ql_rmsnorm_backward(&norm, TOKENS, raw, LD, rstd, want[0], LD, want[0], LD, false, NULL);
        ql_heads_backward(&rope, HD, TOKENS, position, heads, 2, workers);
    }
    ql_workers_destroy(workers);
}
END_TEST

static double glu_value(ql_glu glu, double gate, double up)
{
    double u = sqrt(2 / acos(-1)) * (gate + 0.044715 * gate * gate * gate);
    return up * (glu == QL_SWIGLU ? gate / (1 + exp(-gate)) : gate * (1 + tanh(u)) / 2);
}

/* Rounded to bf16, after what may be off by 3e-6 of itself already. */
static void assert_rounded(uint16_t got, double want)
{
    assert_near(ql_bf16_to_f32(got), want, fabs(want) * (0x1p-8 + 4e-6) + 4e-6, "in bf16");
}

/* gate and up go to bf16 beside what is made of them, and both passes read them from there; on any threads. */
START_TEST(glu_waits_in_bf16)
{
    if (!use_tier(_i % TIERS))
        return;
    enum { D = 37, LD = D + GAP, N = (TOKENS - 1) * LD + D };
    ql_glu glu = (ql_glu)(_i / TIERS);
    static uint16_t narrow[2][TOKENS * LD];
    float *gate = random_matrix(TOKENS, D, LD), *up = random_matrix(TOKENS, D, LD);
    float *act = empty_matrix(TOKENS, D, LD), *again = empty_matrix(TOKENS, D, LD);
    float *dact = random_matrix(TOKENS, D, LD);
    float *dgate = empty_matrix(TOKENS, D, LD), *dup = empty_matrix(TOKENS, D, LD);
    ql_workers *workers = make_workers(2, (ql_scratch){0});
    ql_glu_in in = {gate, up, LD, LD, {0}};
    ql_glu_forward(glu, TOKENS, D, &in, (ql_either){.wide = act}, LD, &(ql_glu_waiting){narrow[0], narrow[1]}, NULL);
    in = (ql_glu_in){NULL, NULL, LD, LD, {narrow[0], narrow[1]}};
    ql_glu_forward(glu, TOKENS, D, &in, (ql_either){.wide = again}, LD, NULL, workers);
    ql_glu_backward(glu, TOKENS, D, &in, dact, LD, &(ql_glu_out){{.wide = dgate}, {.wide = dup}, {0}, LD}, workers);
    for (size_t i = 0; i < N; i++) {
        if (i % LD >= D) {
            ck_assert(narrow[0][i] == 0 && narrow[1][i] == 0 && isnan(act[i]) && isnan(again[i]));
            continue;
        }
        ck_assert_uint_eq(narrow[0][i], ql_f32_to_bf16(gate[i]));
        ck_assert_uint_eq(narrow[1][i], ql_f32_to_bf16(up[i]));
        double g = ql_bf16_to_f32(narrow[0][i]), u = ql_bf16_to_f32(narrow[1][i]), step = 1e-5;
        assert_near(act[i], glu_value(glu, gate[i], up[i]), 1e-6, "act(%g)", (double)gate[i]);
        assert_near(again[i], glu_value(glu, g, u), 1e-6, "act(%g)", g);
        assert_near(dgate[i], (glu_value(glu, g + step, u) - glu_value(glu, g - step, u)) / (2 * step) * dact[i], 2e-6,
                    "dgate(%g)", g);
        assert_near(dup[i], glu_value(glu, g, 1) * dact[i], 1e-6, "dup(%g)", g);
    }
    /* What is made goes to bf16 too, the gradients to where gate and up waited. */
    static uint16_t made[2][TOKENS * LD];
    ql_glu_forward(glu, TOKENS, D, &in, (ql_either){.narrow = made[0]}, LD, NULL, workers);
    ql_glu_forward(glu, TOKENS, D, &(ql_glu_in){gate, up, LD, LD, {0}}, (ql_either){.narrow = made[1]}, LD,
                   &(ql_glu_waiting){narrow[0], narrow[1]}, NULL);
    static uint16_t once_more[TOKENS * D];
    ql_glu_backward(glu, TOKENS, D, &in, dact, LD,
                    &(ql_glu_out){{.narrow = narrow[0]}, {.narrow = narrow[1]}, {.narrow = once_more}, LD}, workers);
    for (size_t i = 0; i < TOKENS * D; i++)
        ck_assert_uint_eq(once_more[i], made[0][i / D * LD + i % D]);
    for (size_t i = 0; i < N; i++) {
        bool gap = i % LD >= D;
        assert_rounded(made[0][i], gap ? 0 : again[i]);
        assert_rounded(made[1][i], gap ? 0 : act[i]);
        assert_rounded(narrow[0][i], gap ? 0 : dgate[i]);
        assert_rounded(narrow[1][i], gap ? 0 : dup[i]);
    }
    ql_workers_destroy(workers);
}
END_TEST

START_TEST(glu_matches_double_and_its_differences)
{
    if (!use_tier(_i % TIERS))
        return;
    ql_glu glu = (ql_glu)(_i / TIERS);
    ql_workers *workers = make_workers(3, (ql_scratch){0});
    for (size_t k = 0; k < WIDTHS; k++) {
        size_t d = widths[k], ld = d + GAP, bytes = ((TOKENS - 1) * ld + d) * sizeof(float);
        float *gate = random_matrix(TOKENS, d, ld), *up = random_matrix(TOKENS, d, ld);
        float *dact = random_matrix(TOKENS, d, ld), *act = empty_matrix(TOKENS, d, ld);
        float *dgate = empty_matrix(TOKENS, d, ld), *dup = empty_matrix(TOKENS, d, ld);
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t i = 0; i < d; i++)
                gate[t * ld + i] *= t % 2 ? 20 : 4;
        gate[0] = -120; /* exp(120) is beyond fp32 */
        ql_glu_in in = {gate, up, ld, ld, {0}};
        ql_glu_forward(glu, TOKENS, d, &in, (ql_either){.wide = act}, ld, NULL, NULL);
        float *again = empty_matrix(TOKENS, d, d);
        ql_glu_backward(glu, TOKENS, d, &in, dact, ld,
                        &(ql_glu_out){{.wide = dgate}, {.wide = dup}, {.wide = again}, ld}, NULL);
        for (size_t t = 0; t < TOKENS; t++)
            ck_assert_mem_eq(again + t * d, act + t * ld, d * sizeof *act);
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t i = 0; i < d; i++) {
                size_t at = t * ld + i;
                double g = gate[at], u = up[at], step = 1e-5, bound = (fabs(g) + 1) * 10 * unit + 1e-9;
                assert_near(act[at], glu_value(glu, g, u), bound, "act(%g)", g);
                assert_near(dgate[at], (glu_value(glu, g + step, u) - glu_value(glu, g - step, u)) / (2 * step) * dact[at], bound,
                            "dgate(%g)", g);
                assert_near(dup[at], (glu_value(glu, g, u + step) - glu_value(glu, g, u - step)) / (2 * step) * dact[at], bound,
                            "dup(%g)", g);
            }
        assert_gaps_untouched(act, TOKENS, d, ld);
        assert_gaps_untouched(dgate, TOKENS, d, ld);
        /* In place, on three threads. */
        float *act2 = random_matrix(TOKENS, d, ld), *up2 = random_matrix(TOKENS, d, ld);
        memcpy(act2, gate, bytes);
        memcpy(up2, up, bytes);
        in.gate = act2;
        ql_glu_forward(glu, TOKENS, d, &in, (ql_either){.wide = act2}, ld, NULL, workers);
        ck_assert_mem_eq(act, act2, bytes);
        in = (ql_glu_in){gate, up2, ld, ld, {0}};
        ql_glu_backward(glu, TOKENS, d, &in, dact, ld, &(ql_glu_out){{.wide = dact}, {.wide = up2}, {0}, ld}, workers);
        ck_assert_mem_eq(dgate, dact, bytes);
        ck_assert_mem_eq(dup, up2, bytes);
    }
    ql_workers_destroy(workers);
}
END_TEST

START_TEST(soft_caps_match_double)
{
    if (!use_tier(_i))
        return;
    const ql_row_kernels *rows = ql_ops_select(ql_cpu_features())->rows;
    double worst = 0;
    for (int step = -6000; step < 6000; step++) {
        float x[3] = {(float)step * 1e-3f, (float)step * 1e-6f, (float)step * 0.02f}, y[3];
        memcpy(y, x, sizeof x);
        rows->softcap(3, y, 1);
        for (int i = 0; i < 3; i++) {
            double want = tanh((double)x[i]), error = fabs(y[i] - want) / (fabs(want) * 0x1p-23 + 1e-30);
            worst = error > worst ? error : worst;
        }
    }
    printf("tanh %s: %.3f * 2^-23 of it at most\n", tier_names[_i], worst);
    ck_assert_double_le(worst, 4);
    float x[5] = {-40, -3, 0, 7, 60}, y[5];
    memcpy(y, x, sizeof x);
    rows->softcap(5, y, 30);
    for (int i = 0; i < 5; i++)
        assert_near(y[i], 30 * tanh(x[i] / 30), 4e-6, "softcap(%g)", (double)x[i]);
    memcpy(x, y, sizeof x);
    rows->softcap_exp_slope(5, y, 30, 25);
    for (int i = 0; i < 5; i++)
        assert_near(y[i], exp((double)x[i] - 25) * (1 - (double)x[i] * x[i] / 900), 1e-5 * exp((double)x[i] - 25),
                    "softcap_exp_slope(%g)", (double)x[i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops_heads");
    TCase *tests = tcase_create("rows");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, glu_waits_in_bf16, 0, TIERS * QL_GLUS);
    tcase_add_test(tests, llama3_frequencies_blend);
    tcase_add_loop_test(tests, heads_are_normed_and_turned, 0, TIERS);
    tcase_add_loop_test(tests, rope_turns_pairs_and_back, 0, TIERS);
    tcase_add_loop_test(tests, glu_matches_double_and_its_differences, 0, QL_GLUS * TIERS);
    tcase_add_loop_test(tests, soft_caps_match_double, 0, TIERS);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
