/* qlora-bench matmul: the quantized products of every kernel, shape and format, beside the machine's roof. */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "baseline.h"
#include "commands.h"
#include "lists.h"
#include "row.h"

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
    "  --threads LIST   (default: 1); of several, how many times as fast as the first\n"
    "  --cold           weights from memory: several copies in turn, more than a cache holds\n"
    "  --runs N         runs of each; median and quartiles are shown (default: 9)\n"
    "  --seconds S      least length of a run (default: 0.02)\n"
    "  --no-baseline    leave out other libraries on the same weights: OpenBLAS, oneDNN, onnxruntime\n"
    "  --openblas FILE, --onednn FILE, --onnxruntime FILE\n"
    "                   where they are (default: as the system finds them)\n"
    "  --json FILE      also write one JSON object a line\n"
    "  --list           name kernels, processor features and roofs, then stop\n"
    "\n"
    "With one thread the clock is processor time, so other programs disturb it less; with more it is the\n"
    "time of day, so keep the machine quiet. Examples:\n"
    "  qlora-bench matmul --shape issue --m 128,512\n"
    "  qlora-bench matmul --shape llama-3.2-1b --m 1 --cold --threads 1,2\n";

static void add_name(const char **list, size_t *count, const char *text)
{
    if (*count == MOST)
        refuse("too many names", text);
    list[(*count)++] = text;
}

static void add_operation(options *o, const char *text)
{
    bool forward = strcmp(text, "forward") == 0;
    if (!forward && strcmp(text, "transposed") != 0)
        refuse("not an operation", text);
    o->forward |= forward;
    o->transposed |= !forward;
}

/* Splits `text` at commas, in place, and adds every part. */
static void add_names(options *o, int option, char *text)
{
    for (char *part = strtok(text, ","); part; part = strtok(NULL, ",")) {
        if (option == 'o')
            add_operation(o, part);
        else if (option == 'f')
            add_name(o->formats, &o->format_count, part);
        else
            add_name(o->tiers, &o->tier_count, part);
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

static void parse(options *o, int argc, char **argv)
{
    enum { BLAS = 256, ONEDNN, ORT, JSON, LIST, RUNS, SECONDS };
    static const struct option known[] = {
        {"op", 1, 0, 'o'}, {"format", 1, 0, 'f'}, {"group", 1, 0, 'g'}, {"plain-scales", 0, 0, 'p'},
        {"tier", 1, 0, 't'}, {"shape", 1, 0, 's'}, {"m", 1, 0, 'm'}, {"threads", 1, 0, 'n'}, {"cold", 0, 0, 'c'},
        {"runs", 1, 0, RUNS}, {"seconds", 1, 0, SECONDS}, {"no-baseline", 0, 0, 'b'},
        {"openblas", 1, 0, BLAS}, {"onednn", 1, 0, ONEDNN}, {"onnxruntime", 1, 0, ORT}, {"json", 1, 0, JSON}, {"list", 0, 0, LIST}, {"help", 0, 0, 'h'}, {0}};
    for (int c; (c = getopt_long(argc, argv, "h", known, NULL)) != -1;) {
        switch (c) {
        case 'o': case 'f': case 't': add_names(o, c, optarg); break;
        case 's': list_shapes(o, optarg); break;
        case 'm': list_numbers(o->m, &o->m_count, 1 << 20, optarg); break;
        case 'n': list_numbers(o->threads, &o->thread_count, 1024, optarg); break;
        case 'g': o->group = (uint32_t)one_number(1 << 20, optarg); break;
        case RUNS: o->runs = one_number(MOST_RUNS, optarg); break;
        case 'p': o->double_quant = false; break;
        case 'c': o->cold = true; break;
        case 'b': o->baseline = false; break;
        case SECONDS: o->seconds = atof(optarg); break;
        case BLAS: o->libraries.openblas = optarg; break;
        case ONEDNN: o->libraries.onednn = optarg; break;
        case ORT: o->libraries.onnxruntime = optarg; break;
        case JSON:
            if (!(o->json = fopen(optarg, "w")))
                refuse("cannot write", optarg);
            break;
        case LIST: list_all(); exit(0);
        case 'h': fputs(help, stdout); exit(0);
        default: exit(2);
        }
    }
    if (optind < argc)
        refuse("not an option", argv[optind]);
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

/* What is timed, and its time with the first number of threads, by direction and place in the list of m. */
typedef struct line {
    contender who;
    double first[2][MOST];
} line;

typedef struct lines {
    line *all;
    size_t count;
} lines;

static lines contenders(const options *o)
{
    const baseline *found[MOST] = {NULL};
    lines l = {.all = calloc(ql_matmul_kernel_count + MOST, sizeof *l.all)};
    if (!l.all)
        refuse("contenders", "out of memory");
    for (size_t i = 0; i < ql_matmul_kernel_count; i++)
        if (wanted(o, ql_matmul_kernels[i]))
            l.all[l.count++].who.kernel = ql_matmul_kernels[i];
    if (o->baseline)
        baselines_find(&o->libraries, found);
    for (size_t i = 0; found[i]; i++)
        l.all[l.count++].who.baseline = found[i];
    return l;
}

static void time_line(const options *o, bench_case *c, const char *format, line *l, size_t m)
{
    const ql_matmul_kernel *kernel = l->who.kernel;
    const baseline *b = l->who.baseline;
    row r = {.weights = kernel ? format : b->weights, .tier = kernel ? kernel->name : b->name};
    if ((kernel && !kernel->accepts(&c->weights[0]->view)) || !case_time(&r.t, c, l->who, o))
        return;
    double *first = &l->first[c->transposed][m];
    if (c->threads == o->threads[0])
        *first = r.t.seconds.median;
    r.speedup = o->thread_count > 1 ? *first / r.t.seconds.median : 0;
    row_show(&r, c, o->json);
}

static void time_all(const options *o, bench_case *c, const char *format, lines *l, size_t m, size_t threads)
{
    for (int transposed = 0; transposed < 2; transposed++) {
        ql_error err = {0};
        if (!(transposed ? o->transposed : o->forward))
            continue;
        if (!case_inputs(c, transposed, o->m[m], threads, &err))
            refuse("inputs", err.message);
        for (size_t i = 0; i < l->count; i++)
            time_line(o, c, format, &l->all[i], m);
        case_free_inputs(c);
    }
}

static void run(const options *o)
{
    lines l = contenders(o);
    row_header();
    for (size_t f = 0; f < o->format_count; f++)
        for (size_t s = 0; s < o->shape_count; s++) {
            bench_case c;
            ql_error err = {0};
            if (!case_weights(&c, o, o->formats[f], o->shapes[s], &err))
                refuse("weights", err.message);
            for (size_t m = 0; m < o->m_count; m++)
                for (size_t t = 0; t < o->thread_count; t++)
                    time_all(o, &c, o->formats[f], &l, m, o->threads[t]);
            case_free_weights(&c);
        }
    free(l.all);
}

int bench_matmul(int argc, char **argv)
{
    options o = {.group = 64, .double_quant = true, .runs = 9, .tries = 1, .seconds = 0.02, .baseline = true};
    parse(&o, argc, argv);
    defaults(&o);
    printf("%s. Weights %s. Medians of %zu runs; \"+-\" is the middle half's width.\n", ql_cpu_describe(),
           o.cold ? "from memory" : "warm", o.runs);
    run(&o);
    if (o.json && fclose(o.json) != 0)
        refuse("json", "could not be written");
    return 0;
}
