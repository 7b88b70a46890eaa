/* qlora-bench report: what the quantized products are to reach, in one run: every figure beside its roof, dense products
 * of other libraries and its goal. The rows are those of `matmul`. */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "baseline.h"
#include "commands.h"
#include "lists.h"
#include "row.h"

static const char help[] =
    "usage: qlora-bench report [options]\n"
    "\n"
    "Measures what the quantized products are to reach, the most telling first, within a budget of time: forward and\n"
    "transposed, 4 bits and 8, one token from cache and from memory, the tiers amx, avx512 and avx2, each by the kernel\n"
    "that the library would choose under that cap. A row whose roof moves by more than 15 % is measured up to three\n"
    "times; the steadiest counts. After each part stand geometric means over the shapes beside the goals; a ratio is the\n"
    "other's time by ours where their roofs were alike, of the fastest dense product (bf16, or fp32 for avx512 and\n"
    "avx2) and of the fastest other with 4 bits, both found at run time.\n"
    "\n"
    "  --shape LIST     NxK (default: issue, the five 2048x2048, 5632x2048, 2048x5632, 4096x4096, 11008x4096)\n"
    "  --threads N      (default: 2)\n"
    "  --part LIST      numbers of the parts to measure (default: all)\n"
    "  --budget S       seconds after which no row is begun (default: 280)\n"
    "  --runs N         runs of a row, at least 3 where it would take longer than 2 s (default: 5)\n"
    "  --no-baseline    no other libraries\n"
    "  --openblas FILE, --onednn FILE, --onnxruntime FILE\n"
    "                   where they are (default: as the system finds them)\n"
    "  --json FILE      also write one JSON object a line\n";

enum { FORWARD = 1, TRANSPOSED = 2 };

/* One part of the report. */
typedef struct part {
    const char *title, *format, *cap;
    int directions;
    bool cold;
    size_t m[5]; /* ends with 0; transposed only from 128 on */
    const baseline *beside[6];
} part;

#define FOUR_BITS &baseline_onednn_s4, &baseline_onnxruntime, &baseline_onnxruntime_bytes
#define BOTH (FORWARD | TRANSPOSED)
static const part parts[] = {
    {"4 bits", "nf4", "amx", BOTH, false, {512, 128, 2048, 32}, {&baseline_onednn, &baseline_sbgemm, FOUR_BITS}},
    {"4 bits, one token, from memory", "nf4", "amx", FORWARD, true, {1}, {&baseline_onednn}},
    {"4 bits, one token, from cache", "nf4", "amx", FORWARD, false, {1}, {&baseline_onednn, FOUR_BITS}},
    {"8 bits", "int8", "amx", BOTH, false, {512, 128, 2048}, {NULL}},
    {"4 bits", "nf4", "avx512", BOTH, false, {512, 128}, {&baseline_sgemm}},
    {"4 bits", "nf4", "avx2", BOTH, false, {512, 128}, {&baseline_haswell}},
    {"8 bits", "int8", "avx512", BOTH, false, {512, 128}, {NULL}},
    {"8 bits", "int8", "avx2", BOTH, false, {512, 128}, {NULL}},
    {"4 bits, one token, from memory", "nf4", "avx512", FORWARD, true, {1}, {NULL}},
    {"4 bits, one token, from memory", "nf4", "avx2", FORWARD, true, {1}, {NULL}},
    {"4 bits, many tokens", "nf4", "avx512", BOTH, false, {2048}, {&baseline_sgemm}},
    {"4 bits, many tokens", "nf4", "avx2", BOTH, false, {2048}, {&baseline_haswell}},
};
enum { PARTS = sizeof parts / sizeof *parts };

/* Of 4 bits; 8 bits are to be no slower, from 128 tokens on. */
static const struct goal {
    const char *cap;
    bool transposed;
    size_t m;
    double share, ratio; /* of the roof, to the dense product; 0: none */
} goals[] = {
    {"amx", false, 512, 0.60, 1.5}, {"amx", false, 2048, 0.60, 1.5}, {"amx", false, 128, 0.45, 0},
    {"amx", false, 32, 0.20, 0},    {"amx", true, 512, 0.55, 0},     {"amx", true, 2048, 0.55, 0},
    {"amx", true, 128, 0.40, 0},    {"amx", false, 1, 0.85, 0},      {"avx512", false, 128, 0.75, 1},
    {"avx512", false, 512, 0.75, 1}, {"avx512", false, 2048, 0.75, 1}, {"avx512", true, 128, 0.75, 1},
    {"avx512", true, 512, 0.75, 1}, {"avx512", true, 2048, 0.75, 1}, {"avx2", false, 128, 0.75, 1},
    {"avx2", false, 512, 0.75, 1},  {"avx2", false, 2048, 0.75, 1},  {"avx2", true, 128, 0.75, 1},
    {"avx2", true, 512, 0.75, 1},   {"avx2", true, 2048, 0.75, 1},
};

static const double MOST_ROOF_RATIO = 1.25;

/* Means over shapes of one number of tokens in one direction. */
typedef struct means {
    size_t shapes, dense_shapes, quantized_shapes;
    double share, dense, quantized; /* sums of logarithms */
} means;

typedef struct report {
    options o;
    const baseline *found[MOST];
    bool wanted[PARTS + 1]; /* by number, from 1 */
    double started, budget;
    size_t left_out; /* rows that the budget had no time for */
    means means[PARTS][2][5];
} report;

static bool over(report *r)
{
    return ql_seconds() - r->started > r->budget;
}

static bool time_row(report *r, bench_case *c, row *line, contender who)
{
    if (over(r)) {
        r->left_out++;
        return false;
    }
    if (!case_time(&line->t, c, who, &r->o))
        return false;
    row_show(line, c, r->o.json);
    return true;
}

/* The fastest of the part's other libraries, dense or not; 0: none. */
typedef struct fastest {
    double dense, quantized;
} fastest;

/* Whether two rows were timed on the same machine, so to speak: neighbours may have taken most of the tiles in one. */
static bool like_ours(const timing *a, const timing *b)
{
    double ratio = a->roof_figure / b->roof_figure;
    return strcmp(a->roof_name, b->roof_name) != 0 || (ratio > 1 / MOST_ROOF_RATIO && ratio < MOST_ROOF_RATIO);
}

static fastest time_others(report *r, bench_case *c, const part *p, const timing *ours)
{
    fastest best = {0};
    for (size_t i = 0; p->beside[i]; i++)
        for (size_t j = 0; r->found[j]; j++) {
            const baseline *b = p->beside[i];
            row line = {.weights = b->weights, .tier = b->name};
            double *kind = b->bits < 16 ? &best.quantized : &best.dense;
            if (r->found[j] == b && time_row(r, c, &line, (contender){.baseline = b}) && like_ours(&line.t, ours) &&
                (*kind == 0 || line.t.seconds.median < *kind))
                *kind = line.t.seconds.median;
        }
    return best;
}

static void time_product(report *r, bench_case *c, const part *p, means *mean)
{
    const ql_matmul_kernel *kernel =
        ql_matmul_select(&c->weights[0]->view, ql_cpu_cap(ql_cpu_features(), p->cap), QL_ROUND_BF16);
    row ours = {.weights = p->format, .tier = kernel->name};
    if (!time_row(r, c, &ours, (contender){.kernel = kernel}))
        return;
    double each = ours.t.seconds.median;
    mean->shapes++;
    mean->share += log(ours.t.roof);
    fastest best = time_others(r, c, p, &ours.t);
    if (best.dense > 0) {
        mean->dense_shapes++;
        mean->dense += log(best.dense / each);
    }
    if (best.quantized > 0) {
        mean->quantized_shapes++;
        mean->quantized += log(best.quantized / each);
    }
}

static void measure_shape(report *r, size_t index, shape s)
{
    const part *p = &parts[index];
    ql_error err = {0};
    bench_case c;
    r->o.cold = p->cold;
    if (!case_weights(&c, &r->o, p->format, s, &err))
        refuse("weights", err.message);
    for (size_t i = 0; p->m[i]; i++)
        for (int transposed = 0; transposed < 2; transposed++) {
            if (!(p->directions & (transposed ? TRANSPOSED : FORWARD)) || (transposed && p->m[i] < 128))
                continue;
            if (!case_inputs(&c, transposed, p->m[i], r->o.threads[0], &err))
                refuse("inputs", err.message);
            time_product(r, &c, p, &r->means[index][transposed][i]);
            case_free_inputs(&c);
        }
    case_free_weights(&c);
}

static double mean_of(double logarithms, size_t count)
{
    return count ? exp(logarithms / (double)count) : 0;
}

static struct goal goal_of(const part *p, size_t m, bool transposed)
{
    bool tiles = ql_cpu_features() & QL_CPU_AMX_BF16;
    if (strcmp(p->format, "nf4") != 0 || (m > 1 && strcmp(p->cap, "amx") == 0 && !tiles))
        return (struct goal){0};
    for (size_t i = 0; i < sizeof goals / sizeof *goals; i++)
        if (!strcmp(goals[i].cap, p->cap) && goals[i].m == m && goals[i].transposed == transposed)
            return goals[i];
    return (struct goal){0};
}

static void show_figure(const char *what, double value, double goal, double unit, const char *after)
{
    if (value > 0)
        printf("   %s %6.2f%s", what, value * unit, after);
    if (value > 0 && goal > 0)
        printf(" (goal %.*f%s: %s)", unit > 1 ? 0 : 1, goal * unit, after, value >= goal ? "met" : "missed");
}

/* The same means of 4 bits, when this part has 8 and those were measured. */
static double of_four_bits(const report *r, size_t index, size_t m, int transposed)
{
    for (size_t i = 0; i < PARTS && strcmp(parts[index].format, "int8") == 0; i++)
        for (size_t j = 0; parts[i].m[j] && !strcmp(parts[i].cap, parts[index].cap) && !strcmp(parts[i].format, "nf4"); j++)
            if (parts[i].m[j] == m)
                return mean_of(r->means[i][transposed][j].share, r->means[i][transposed][j].shapes);
    return 0;
}

static void show_mean(const report *r, size_t index, size_t i, int transposed)
{
    const part *p = &parts[index];
    const means *m = &r->means[index][transposed][i];
    if (!m->shapes)
        return;
    struct goal goal = goal_of(p, p->m[i], transposed);
    double share = mean_of(m->share, m->shapes), dense = mean_of(m->dense, m->dense_shapes);
    double quantized = mean_of(m->quantized, m->quantized_shapes), four = of_four_bits(r, index, p->m[i], transposed);
    const char *op = transposed ? "transposed" : "forward";
    printf("  mean of %zu: m %4zu %-10s", m->shapes, p->m[i], op);
    show_figure("share", share, goal.share, 100, " %");
    show_figure("to dense", dense, goal.ratio, 1, "");
    show_figure("to 4 bits of others", quantized, 0, 1, "");
    show_figure("to our 4 bits, by shares", four > 0 ? share / four : 0, 1, 1, "");
    printf("\n");
    if (r->o.json)
        fprintf(r->o.json,
                "{\"mean_of\":%zu,\"part\":%zu,\"format\":\"%s\",\"cap\":\"%s\",\"cold\":%s,\"m\":%zu,\"op\":\"%s\","
                "\"share\":%.4f,\"share_goal\":%.2f,\"to_dense\":%.4f,\"to_dense_goal\":%.2f,\"to_quantized\":%.4f}\n",
                m->shapes, index + 1, p->format, p->cap, p->cold ? "true" : "false", p->m[i], op, share, goal.share,
                dense, goal.ratio, quantized);
}

static void measure_part(report *r, size_t index)
{
    const part *p = &parts[index];
    if (over(r)) {
        printf("\npart %zu, %s, %s: no time left\n", index + 1, p->title, p->cap);
        return;
    }
    fprintf(stderr, "part %zu of %d, %s, %s: %.0f s spent\n", index + 1, PARTS, p->title, p->cap,
            ql_seconds() - r->started);
    printf("\npart %zu, %s, the best up to %s\n", index + 1, p->title, p->cap);
    row_header();
    for (size_t i = 0; i < r->o.shape_count; i++)
        measure_shape(r, index, r->o.shapes[i]);
    for (size_t i = 0; p->m[i]; i++)
        for (int transposed = 0; transposed < 2; transposed++)
            show_mean(r, index, i, transposed);
    fflush(stdout);
}

static void parse(report *r, int argc, char **argv)
{
    static const struct option known[] = {
        {"shape", 1, 0, 's'}, {"threads", 1, 0, 'n'}, {"part", 1, 0, 'p'}, {"budget", 1, 0, 'S'}, {"runs", 1, 0, 'N'},
        {"no-baseline", 0, 0, 'b'}, {"openblas", 1, 0, 'B'}, {"onednn", 1, 0, 'D'}, {"onnxruntime", 1, 0, 'O'}, {"json", 1, 0, 'j'},
        {"help", 0, 0, 'h'}, {0}};
    options *o = &r->o;
    size_t numbers[MOST], count = 0;
    for (int c; (c = getopt_long(argc, argv, "h", known, NULL)) != -1;) {
        switch (c) {
        case 's': list_shapes(o, optarg); break;
        case 'n': o->threads[0] = one_number(1024, optarg); break;
        case 'p': list_numbers(numbers, &count, PARTS, optarg); break;
        case 'S': r->budget = (double)one_number(1 << 20, optarg); break;
        case 'N': o->runs = one_number(MOST_RUNS, optarg); break;
        case 'b': o->baseline = false; break;
        case 'B': o->libraries.openblas = optarg; break;
        case 'D': o->libraries.onednn = optarg; break;
        case 'O': o->libraries.onnxruntime = optarg; break;
        case 'j':
            if (!(o->json = fopen(optarg, "w")))
                refuse("cannot write", optarg);
            break;
        case 'h': fputs(help, stdout); exit(0);
        default: exit(2);
        }
    }
    if (optind < argc)
        refuse("not an option", argv[optind]);
    for (size_t i = 1; i <= PARTS; i++)
        r->wanted[i] = !count;
    for (size_t i = 0; i < count; i++)
        r->wanted[numbers[i]] = true;
    if (!o->shape_count)
        list_shapes(o, (char[]){"issue"});
}

int bench_report(int argc, char **argv)
{
    report r = {.budget = 280, .started = ql_seconds(),
                .o = {.group = 64, .double_quant = true, .runs = 5, .tries = 3, .seconds = 0.02, .row_seconds = 2,
                      .baseline = true, .threads = {2}, .thread_count = 1}};
    parse(&r, argc, argv);
    printf("%s, %zu threads, groups of 64, double-quantized. Medians of up to %zu runs; \"+-\" is the middle half's width.\n",
           ql_cpu_describe(), r.o.threads[0], r.o.runs);
    if (r.o.baseline)
        baselines_find(&r.o.libraries, r.found);
    for (size_t i = 0; i < PARTS; i++)
        if (r.wanted[i + 1])
            measure_part(&r, i);
    printf("\n%.0f s; %zu rows left out for want of time\n", ql_seconds() - r.started, r.left_out);
    if (r.o.json && fclose(r.o.json) != 0)
        refuse("json", "could not be written");
    return 0;
}
