/* qlora-bench step: whole training steps of models of named shapes with random weights. Each timed step stands
 * between two runs of the roof of the kernel that multiplies, so that a busy or throttled machine slows both. */
#include "step.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/workers.h"
#include "commands.h"
#include "lists.h"
#include "model/model.h"
#include "quant/weight.h"

static const double roof_seconds = 0.05;

static const char help[] =
    "usage: qlora-bench step [options]\n"
    "\n"
    "Times optimizer steps (forward, loss, backward, AdamW) on random tokens, all of them learned, and prints tokens a\n"
    "second, the share of the roof, the time by part, and the peak of resident memory beside what was planned. The\n"
    "share (model FLOPs utilization) counts what the mathematics asks for: a product forward and a transposed one with\n"
    "each frozen weight and the head, three with A and B of each adapter, and attention's lower triangle, 2 products\n"
    "forward and 5 backward; what recomputation does again is not counted there, but in the rates of the parts it is.\n"
    "The roof is the multiply-add rate of the instructions that the kernel in use is made of, of all threads at once.\n"
    "\n"
    "  --shape NAME     stories260k, smollm2-135m, qwen2.5-0.5b, tinyllama-1.1b (default: smollm2-135m)\n"
    "  --seq LIST       tokens of a sequence (default: 512)\n"
    "  --batch N        sequences a step (default: 1)\n"
    "  --rank N         LoRA rank on all linear layers (default: 16)\n"
    "  --format NAME    nf4, fp4, int4, int8, none (default: nf4, groups of 64, double-quantized)\n"
    "  --head-format NAME  of the LM head (default: none, BF16)\n"
    "  --compute NAME   f32, bf16 (default: f32)\n"
    "  --optim NAME     adamw, adamw8bit (default: adamw)\n"
    "  --activations N  how they wait for the backward pass: f32, bf16 (default: bf16)\n"
    "  --recompute[=N]  keep only the inputs of N blocks (alone: of all but the last)\n"
    "  --threads LIST   (default: 1 a CPU); of several, how many times as fast as the first\n"
    "  --runs N         steps timed, after one that is not (default: 5)\n"
    "  --json           one JSON object a line instead of words\n"
    "\n"
    "QLORA_ISA=avx2 (avx512, ...) caps the instruction set.\n";

static void stop(const char *what)
{
    fprintf(stderr, "qlora-bench: %s\n", what);
    exit(2);
}

static void must(ql_status status, const ql_error *err)
{
    if (status)
        stop(err->message);
}

static size_t number(const char *text, size_t most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || !value || value > most)
        stop("a number is out of range; see --help");
    return value;
}

static bool is_bf16(const char *name)
{
    if (strcmp(name, "f32") != 0 && strcmp(name, "bf16") != 0)
        stop("--compute and --activations are f32 or bf16");
    return strcmp(name, "bf16") == 0;
}

/* What several steps are measured with, one after the other. */
typedef struct step_lists {
    size_t seq[MOST], seqs, threads[MOST], thread_counts;
} step_lists;

static step_options parse(step_lists *lists, int argc, char **argv)
{
    static const struct option known[] = {{"shape", 1, 0, 's'},   {"seq", 1, 0, 't'},       {"batch", 1, 0, 'b'},
                                          {"rank", 1, 0, 'r'},    {"format", 1, 0, 'f'},    {"compute", 1, 0, 'c'},
                                          {"threads", 1, 0, 'n'}, {"recompute", 2, 0, 'R'}, {"runs", 1, 0, 'N'},
                                          {"optim", 1, 0, 'o'},   {"json", 0, 0, 'j'},      {"help", 0, 0, 'h'},
                                          {"activations", 1, 0, 'a'}, {"head-format", 1, 0, 'H'}, {0}};
    ql_error err = {0};
    step_options o = {.shape = "smollm2-135m", .format = "nf4", .head_format = "none", .bf16_activations = true,
                      .batch = 1, .rank = 16, .runs = 5};
    for (int c; (c = getopt_long(argc, argv, "h", known, NULL)) != -1;) {
        switch (c) {
        case 's': o.shape = optarg; break;
        case 't': list_numbers(lists->seq, &lists->seqs, 1 << 20, optarg); break;
        case 'b': o.batch = number(optarg, 1 << 16); break;
        case 'r': o.rank = number(optarg, 4096); break;
        case 'f': o.format = optarg; break;
        case 'H': o.head_format = optarg; break;
        case 'c': o.bf16 = is_bf16(optarg); break;
        case 'a': o.bf16_activations = is_bf16(optarg); break;
        case 'n': list_numbers(lists->threads, &lists->thread_counts, 1024, optarg); break;
        case 'o': must(ql_optim_parse(&o.optim, optarg, &err), &err); break;
        case 'R': o.recompute = optarg ? number(optarg, 1 << 20) : SIZE_MAX; break;
        case 'N': o.runs = number(optarg, MOST_RUNS); break;
        case 'j': o.json = true; break;
        case 'h': fputs(help, stdout); exit(0);
        default: exit(2);
        }
    }
    if (optind < argc)
        stop("an argument is not an option; see --help");
    if (!step_shape(&o.config, o.shape))
        stop("unknown shape; see --help");
    if (o.recompute >= o.config.layers)
        o.recompute = o.config.layers - 1;
    if (!lists->seqs)
        lists->seq[lists->seqs++] = 512;
    if (!lists->thread_counts)
        lists->threads[lists->thread_counts++] = ql_usable_cpus();
    return o;
}

static ql_dataset *random_data(const step_options *o)
{
    size_t length = o->seq + 1, count = o->batch * (o->runs + 1);
    int32_t *ids = malloc(count * length * sizeof *ids);
    uint8_t *learn = malloc(length);
    ql_sample *samples = calloc(count, sizeof *samples);
    if (!ids || !learn || !samples)
        stop("out of memory");
    memset(learn, 1, length);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < length; j++)
            ids[i * length + j] = (int32_t)((i * length + j) * 2654435761u % o->config.vocab_size);
        samples[i] = (ql_sample){ids + i * length, learn, length};
    }
    ql_error err = {0};
    ql_dataset *data;
    must(ql_dataset_from_samples(&data, samples, count, &err), &err);
    free(ids);
    free(learn);
    free(samples);
    return data;
}

typedef struct timed {
    double seconds, roof;
    ql_part_times parts;
} timed;

static int by_seconds(const void *a, const void *b)
{
    double x = ((const timed *)a)->seconds, y = ((const timed *)b)->seconds;
    return (x > y) - (x < y);
}

static timed time_step(ql_trainer *trainer, ql_workers *workers)
{
    timed t = {0};
    ql_step_report report;
    ql_error err = {0};
    ql_workers_time(workers, &t.parts);
    must(ql_trainer_step(trainer, &report, &err), &err);
    ql_workers_time(workers, NULL);
    t.seconds = report.seconds;
    return t;
}

static void time_steps(step_result *r, const step_options *o, ql_trainer *trainer, const ql_model *model,
                       ql_workers *workers)
{
    const ql_matmul_kernel *kernel = model->blocks[0].weight[QL_GATE]->kernel;
    const roof *top = roof_for(kernel->cpu);
    timed runs[MOST_RUNS];
    double shares[MOST_RUNS], roofs[MOST_RUNS + 1], wanted = step_operations(o).wanted;
    time_step(trainer, workers);
    roofs[0] = roof_rate(top, workers, ql_seconds, roof_seconds);
    for (size_t i = 0; i < o->runs; i++) {
        runs[i] = time_step(trainer, workers);
        roofs[i + 1] = roof_rate(top, workers, ql_seconds, roof_seconds);
        shares[i] = wanted / runs[i].seconds / ((roofs[i] + roofs[i + 1]) / 2);
    }
    qsort(runs, o->runs, sizeof *runs, by_seconds);
    spread reached = summarize(roofs, o->runs + 1);
    const timed *median = &runs[o->runs / 2];
    r->seconds = median->seconds;
    r->parts = median->parts;
    r->low = runs[o->runs / 4].seconds;
    r->high = runs[o->runs - 1 - o->runs / 4].seconds;
    r->share = summarize(shares, o->runs).median;
    r->roof = reached.median;
    r->roof_width = (reached.high - reached.low) / reached.median;
    r->roof_name = top->name;
    r->kernel = kernel->name;
}

static void measure(step_result *r, const step_options *o, ql_model *model, const ql_dataset *data, ql_workers *workers)
{
    ql_error err = {0};
    ql_trainer *trainer;
    ql_train_options train = ql_train_options_defaults();
    train.batch_size = o->batch;
    train.recompute_blocks = o->recompute;
    train.optim = o->optim;
    train.bf16_activations = o->bf16_activations;
    must(ql_trainer_create(&trainer, model, data, &train, workers, &err), &err);
    time_steps(r, o, trainer, model, workers);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    r->peak = (size_t)usage.ru_maxrss * 1024;
    r->threads = ql_workers_count(workers);
    r->model = ql_model_memory(model);
    r->trainer = ql_trainer_memory(trainer);
    ql_trainer_destroy(trainer);
}

/* One line of the lists. `first` is the time with the first number of threads: it is set, or compared with. */
static void measure_one(step_options o, double *first)
{
    ql_error err = {0};
    ql_workers *workers;
    ql_model *model;
    ql_format format, head;
    if (o.seq > o.config.max_positions) /* random weights do not mind */
        o.config.max_positions = o.seq;
    must(ql_format_parse(&format, o.format, 64, true, &err), &err);
    must(ql_format_parse(&head, o.head_format, 64, true, &err), &err);
    must(ql_workers_create(&workers, o.threads, &err), &err);
    must(ql_model_random(&model, &o.config, format, 1, workers, &err), &err);
    must(ql_model_quantize_head(model, head, workers, &err), &err);
    ql_model_allow_bf16(model, o.bf16);
    ql_lora_options lora = ql_lora_options_defaults();
    lora.rank = o.rank;
    must(ql_model_attach(model, &lora, &err), &err);
    ql_dataset *data = random_data(&o);
    step_result r = {0};
    measure(&r, &o, model, data, workers);
    if (*first == 0)
        *first = r.seconds;
    r.speedup = *first / r.seconds;
    if (o.json)
        step_print_json(&o, &r);
    else
        step_print(&o, &r);
    fflush(stdout);
    ql_dataset_close(data);
    ql_model_destroy(model);
    ql_workers_destroy(workers);
}

/* In a process of its own, whose peak of memory is that of this step alone. */
static void measure_apart(const step_options *o, double *first)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        measure_one(*o, first);
        exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        stop("a step could not be measured");
}

int bench_step(int argc, char **argv)
{
    step_lists lists = {0};
    step_options o = parse(&lists, argc, argv);
    double *first = mmap(NULL, sizeof *first, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (first == MAP_FAILED)
        stop("out of memory");
    for (size_t i = 0; i < lists.seqs; i++) {
        *first = 0;
        for (size_t j = 0; j < lists.thread_counts; j++) {
            o.seq = lists.seq[i];
            o.threads = lists.threads[j];
            measure_apart(&o, first);
        }
    }
    munmap(first, sizeof *first);
    return 0;
}
