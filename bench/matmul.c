/* qlora-bench matmul: the quantized products of every kernel, shape and format, beside the machine's roof. */
#define _GNU_SOURCE
#include <cblas.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "bench.h"
#include "commands.h"

static const char help[] =
    "usage: qlora-bench matmul [options]\n"
    "\n"
    "Times y = x W^T and dx = dy W straight from quantized weights, for every kernel that this processor\n"
    "has. Beside each time stand the operations a second and the share of the roof: the multiply-add rate\n"
    "of the kernel's instruction set, or for up to 8 tokens the rate at which weights of this size can be\n"
    "read. Roofs are measured in the same run. A kernel whose result is wrong gets no time.\n"
    "\n"
    "  --op LIST        forward, transposed (default: both)\n"
    "  --format LIST    nf4, fp4, int4, int8, f32, f16, bf16, q8_0, q4_0, q4_1, q4_K, q5_K, q6_K (default: nf4)\n"
    "  --group N        elements a scale: 32, 64, 128, 256 (default: 64)\n"
    "  --plain-scales   fp16 scales instead of double-quantized ones\n"
    "  --tier LIST      kernels by name (default: all but scalar; --list names them)\n"
    "  --shape LIST     NxK, or a model: llama-3.2-1b, qwen2.5-0.5b, tinyllama-1.1b, or issue\n"
    "                   (default: 2048x2048)\n"
    "  --m LIST         tokens (default: 1,16,128,512,2048)\n"
    "  --threads LIST   (default: 1)\n"
    "  --cold           weights from memory: several copies in turn, more than a cache holds\n"
    "  --runs N         runs of each; median and quartiles are shown (default: 9)\n"
    "  --seconds S      least length of a run (default: 0.02)\n"
    "  --no-baseline    leave out OpenBLAS sgemm on the same weights in dense fp32\n"
    "  --blas-core NAME OPENBLAS_CORETYPE for the baseline (default: what OpenBLAS detects)\n"
    "  --json FILE      also write one JSON object a line\n"
    "  --list           name kernels, processor features and roofs, then stop\n"
    "\n"
    "With one thread the clock is processor time, so other programs disturb it less; with more it is the\n"
    "time of day, so keep the machine quiet. Examples:\n"
    "  qlora-bench matmul --shape issue --m 128,512\n"
    "  qlora-bench matmul --shape llama-3.2-1b --m 1 --cold --threads 1,2\n";

static const struct {
    const char *name;
    shape shapes[8];
} models[] = {
    {"issue", {{2048, 2048}, {5632, 2048}, {2048, 5632}, {4096, 4096}, {11008, 4096}}},
    {"llama-3.2-1b", {{2048, 2048}, {512, 2048}, {8192, 2048}, {2048, 8192}}},
    {"qwen2.5-0.5b", {{896, 896}, {128, 896}, {4864, 896}, {896, 4864}}},
    {"tinyllama-1.1b", {{2048, 2048}, {256, 2048}, {5632, 2048}, {2048, 5632}}},
};

static void die(const char *what, const char *value)
{
    fprintf(stderr, "qlora-bench: %s: %s (--help shows the options)\n", what, value);
    exit(2);
}

static void add_shape(options *o, const char *text)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (strcmp(models[i].name, text) == 0) {
            for (size_t j = 0; j < 8 && models[i].shapes[j].n && o->shape_count < MOST; j++)
                o->shapes[o->shape_count++] = models[i].shapes[j];
            return;
        }
    shape s;
    char rest;
    if (sscanf(text, "%zux%zu%c", &s.n, &s.k, &rest) != 2 || !s.n || !s.k || o->shape_count == MOST)
        die("not a shape", text);
    o->shapes[o->shape_count++] = s;
}

static void add_number(size_t *list, size_t *count, const char *text)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || !value || value > 1u << 20 || *count == MOST)
        die("not a number that can be used", text);
    list[(*count)++] = value;
}

static void add_name(const char **list, size_t *count, const char *text)
{
    if (*count == MOST)
        die("too many names", text);
    list[(*count)++] = text;
}

/* Splits `text` at commas, in place, and adds every part. */
static void add_all(options *o, int option, char *text)
{
    for (char *part = strtok(text, ","); part; part = strtok(NULL, ",")) {
        if (option == 'o') {
            o->forward |= strcmp(part, "forward") == 0;
            o->transposed |= strcmp(part, "transposed") == 0;
            if (strcmp(part, "forward") && strcmp(part, "transposed"))
                die("not an operation", part);
        } else if (option == 's') {
            add_shape(o, part);
        } else if (option == 'f') {
            add_name(o->formats, &o->format_count, part);
        } else if (option == 't') {
            add_name(o->tiers, &o->tier_count, part);
        } else {
            add_number(option == 'm' ? o->m : o->threads, option == 'm' ? &o->m_count : &o->thread_count, part);
        }
    }
}

static void list_all(void)
{
    printf("processor: %s\nkernels, slowest first:\n", ql_cpu_describe());
    for (size_t i = 0; i < ql_matmul_kernel_count; i++) {
        const ql_matmul_kernel *kernel = ql_matmul_kernels[i];
        bool here = (kernel->cpu & ~ql_cpu_features()) == 0;
        printf("  %-14s %s", kernel->name, here ? "" : "not on this processor\n");
        if (here) {
            const roof *r = roof_for(kernel->cpu);
            printf("roof: %s\n", r->name);
        }
    }
}

/* OpenBLAS chooses its kernels when it is loaded: start again with the wanted environment. */
static void choose_blas(char **argv, const char *core)
{
    const char *now = getenv("OPENBLAS_CORETYPE");
    if ((!core && !now) || (core && now && strcmp(core, now) == 0))
        return;
    if (core)
        setenv("OPENBLAS_CORETYPE", core, 1);
    else
        unsetenv("OPENBLAS_CORETYPE");
    execv("/proc/self/exe", argv);
}

static void parse(options *o, int argc, char **argv)
{
    enum { CORE = 256, JSON, LIST, RUNS, SECONDS };
    static const struct option known[] = {
        {"op", 1, 0, 'o'}, {"format", 1, 0, 'f'}, {"group", 1, 0, 'g'}, {"plain-scales", 0, 0, 'p'},
        {"tier", 1, 0, 't'}, {"shape", 1, 0, 's'}, {"m", 1, 0, 'm'}, {"threads", 1, 0, 'n'}, {"cold", 0, 0, 'c'},
        {"runs", 1, 0, RUNS}, {"seconds", 1, 0, SECONDS}, {"no-baseline", 0, 0, 'b'}, {"blas-core", 1, 0, CORE},
        {"json", 1, 0, JSON}, {"list", 0, 0, LIST}, {"help", 0, 0, 'h'}, {0}};
    const char *core = NULL;
    size_t number = 0, count = 0;
    for (int c; (c = getopt_long(argc, argv, "h", known, NULL)) != -1;) {
        switch (c) {
        case 'o': case 'f': case 't': case 's': case 'm': case 'n':
            add_all(o, c, strdup(optarg));
            break;
        case 'g': case RUNS:
            count = 0;
            add_number(&number, &count, optarg);
            if (c == 'g')
                o->group = (uint32_t)number;
            else
                o->runs = number < 101 ? number : 101;
            break;
        case 'p': o->double_quant = false; break;
        case 'c': o->cold = true; break;
        case 'b': o->baseline = false; break;
        case SECONDS: o->seconds = atof(optarg); break;
        case CORE: core = optarg; break;
        case JSON:
            if (!(o->json = fopen(optarg, "w")))
                die("cannot write", optarg);
            break;
        case LIST: list_all(); exit(0);
        case 'h': fputs(help, stdout); exit(0);
        default: exit(2);
        }
    }
    if (optind < argc)
        die("not an option", argv[optind]);
    choose_blas(argv, core);
}

static void defaults(options *o)
{
    if (!o->forward && !o->transposed)
        o->forward = o->transposed = true;
    if (!o->format_count)
        o->formats[o->format_count++] = "nf4";
    if (!o->shape_count)
        o->shapes[o->shape_count++] = (shape){2048, 2048};
    static const size_t m[] = {1, 16, 128, 512, 2048};
    for (size_t i = 0; i < 5 && (!o->m_count || i); i++)
        if (o->m_count == i)
            o->m[o->m_count++] = m[i];
    if (!o->thread_count)
        o->threads[o->thread_count++] = 1;
}

static bool wanted(const options *o, const ql_matmul_kernel *kernel)
{
    if (kernel->cpu & ~ql_cpu_features())
        return false;
    for (size_t i = 0; i < o->tier_count; i++)
        if (strcmp(o->tiers[i], kernel->name) == 0)
            return true;
    return !o->tier_count && kernel != ql_matmul_kernels[0];
}

static void show(const options *o, const bench_case *c, const char *format, const char *tier, const timing *t)
{
    double work = 2.0 * (double)c->m * (double)c->shape.n * (double)c->shape.k, each = t->seconds.median;
    const char *op = c->transposed ? "transposed" : "forward";
    printf("%-10s %-5s %5zu %5zu %5zu  %-12s %2zu %9.3f %7.3f %9.1f  %5.1f %% of %.1f %s\n", op, format, c->shape.n,
           c->shape.k, c->m, tier, c->threads, each * 1e3, (t->seconds.high - t->seconds.low) * 1e3, work / each * 1e-9,
           t->roof * 100, t->roof_figure * 1e-9, t->roof_name);
    fflush(stdout);
    if (o->json)
        fprintf(o->json,
                "{\"op\":\"%s\",\"format\":\"%s\",\"n\":%zu,\"k\":%zu,\"m\":%zu,\"tier\":\"%s\",\"threads\":%zu,"
                "\"cold\":%s,\"median_s\":%.9g,\"low_s\":%.9g,\"high_s\":%.9g,\"gflops\":%.6g,\"roof\":\"%s\","
                "\"roof_per_s\":%.6g,\"share\":%.4f}\n",
                op, format, c->shape.n, c->shape.k, c->m, tier, c->threads, o->cold ? "true" : "false", each,
                t->seconds.low, t->seconds.high, work / each * 1e-9, t->roof_name, t->roof_figure, t->roof);
}

static void time_all(const options *o, bench_case *c, const char *format, bool transposed, size_t m, size_t threads)
{
    timing t;
    ql_error err = {0};
    if (!case_inputs(c, transposed, m, threads, &err))
        die("inputs", err.message);
    for (size_t i = 0; i < ql_matmul_kernel_count; i++) {
        const ql_matmul_kernel *kernel = ql_matmul_kernels[i];
        if (wanted(o, kernel) && kernel->accepts(&c->weights[0]->view) && case_time(&t, c, kernel, o))
            show(o, c, format, kernel->name, &t);
    }
    if (o->baseline && case_time(&t, c, NULL, o))
        show(o, c, "dense", "openblas", &t);
    case_free_inputs(c);
}

static void run(const options *o)
{
    for (size_t f = 0; f < o->format_count; f++)
        for (size_t s = 0; s < o->shape_count; s++) {
            bench_case c;
            ql_error err = {0};
            if (!case_weights(&c, o, o->formats[f], o->shapes[s], &err))
                die("weights", err.message);
            for (size_t t = 0; t < o->thread_count; t++)
                for (size_t m = 0; m < o->m_count; m++) {
                    if (o->forward)
                        time_all(o, &c, o->formats[f], false, o->m[m], o->threads[t]);
                    if (o->transposed)
                        time_all(o, &c, o->formats[f], true, o->m[m], o->threads[t]);
                }
            case_free_weights(&c);
        }
}

int bench_matmul(int argc, char **argv)
{
    options o = {.group = 64, .double_quant = true, .runs = 9, .seconds = 0.02, .baseline = true};
    parse(&o, argc, argv);
    defaults(&o);
    printf("OpenBLAS: %s kernels. Weights %s. Medians of %zu runs; \"+-\" is the middle half's width.\n",
           openblas_get_corename(), o.cold ? "from memory" : "warm", o.runs);
    printf("%-10s %-5s %5s %5s %5s  %-12s %2s %9s %7s %9s  share of the roof (G/s)\n", "op", "", "n", "k", "m", "tier",
           "th", "ms", "+-", "GFLOP/s");
    run(&o);
    if (o.json && fclose(o.json) != 0)
        die("json", "could not be written");
    return 0;
}
