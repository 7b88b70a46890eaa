/* qlora-bench-step: whole training steps of models of named shapes with random weights, through the public API.
 * Beside the tokens a second stands the share of the multiply-add rate that the same run measures. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "qlora/train.h"
#include "roof.h"

static const char help[] =
    "usage: qlora-bench-step [options]\n"
    "\n"
    "Times optimizer steps (forward, loss, backward, AdamW) on random tokens, all of them learned, and prints the\n"
    "median. The share counts what the mathematics asks for: two products forward and two backward with the frozen\n"
    "weights and the head, and attention's lower triangle.\n"
    "\n"
    "  --shape NAME     smollm2-135m, qwen2.5-0.5b, tinyllama-1.1b (default: smollm2-135m)\n"
    "  --tokens N       sequence length (default: 512)\n"
    "  --batch N        sequences a step (default: 1)\n"
    "  --rank N         LoRA rank on all linear layers (default: 16)\n"
    "  --format NAME    nf4, fp4, int4, int8, none (default: nf4, groups of 64, double-quantized)\n"
    "  --compute NAME   f32, bf16 (default: f32)\n"
    "  --recompute      keep only the inputs of the blocks\n"
    "  --threads N      (default: 1 a CPU)\n"
    "  --runs N         steps timed, after one that is not (default: 5)\n"
    "  --json           one JSON object instead of words\n";

static const struct shape {
    const char *name;
    ql_model_config config;
} shapes[] = {
    {"smollm2-135m",
     {.arch = QL_ARCH_LLAMA,
      .vocab_size = 49152,
      .hidden_size = 576,
      .intermediate_size = 1536,
      .layers = 30,
      .heads = 9,
      .kv_heads = 3,
      .head_dim = 64,
      .max_positions = 8192,
      .rms_norm_eps = 1e-5,
      .rope_theta = 1e4,
      .tied = true}},
    {"qwen2.5-0.5b",
     {.arch = QL_ARCH_QWEN2,
      .vocab_size = 151936,
      .hidden_size = 896,
      .intermediate_size = 4864,
      .layers = 24,
      .heads = 14,
      .kv_heads = 2,
      .head_dim = 64,
      .max_positions = 32768,
      .rms_norm_eps = 1e-6,
      .rope_theta = 1e6,
      .tied = true,
      .qkv_bias = true}},
    {"tinyllama-1.1b",
     {.arch = QL_ARCH_LLAMA,
      .vocab_size = 32000,
      .hidden_size = 2048,
      .intermediate_size = 5632,
      .layers = 22,
      .heads = 32,
      .kv_heads = 4,
      .head_dim = 64,
      .max_positions = 2048,
      .rms_norm_eps = 1e-5,
      .rope_theta = 1e4}},
};
enum { SHAPES = sizeof shapes / sizeof *shapes, MOST_RUNS = 101 };

typedef struct options {
    const struct shape *shape;
    const char *format;
    size_t tokens, batch, rank, threads, runs;
    bool bf16, recompute, json;
} options;

static void stop(const char *what)
{
    fprintf(stderr, "qlora-bench-step: %s\n", what);
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

static options parse(int argc, char **argv)
{
    static const struct option known[] = {{"shape", 1, 0, 's'},   {"tokens", 1, 0, 't'},    {"batch", 1, 0, 'b'},
                                          {"rank", 1, 0, 'r'},    {"format", 1, 0, 'f'},    {"compute", 1, 0, 'c'},
                                          {"threads", 1, 0, 'n'}, {"recompute", 0, 0, 'R'}, {"runs", 1, 0, 'N'},
                                          {"json", 0, 0, 'j'},    {"help", 0, 0, 'h'},      {0}};
    options o = {.shape = shapes, .format = "nf4", .tokens = 512, .batch = 1, .rank = 16, .runs = 5};
    for (int c; (c = getopt_long(argc, argv, "h", known, NULL)) != -1;) {
        switch (c) {
        case 's':
            o.shape = NULL;
            for (size_t i = 0; i < SHAPES; i++)
                if (strcmp(optarg, shapes[i].name) == 0)
                    o.shape = &shapes[i];
            if (!o.shape)
                stop("unknown shape; see --help");
            break;
        case 't':
            o.tokens = number(optarg, 1 << 20);
            break;
        case 'b':
            o.batch = number(optarg, 1 << 16);
            break;
        case 'r':
            o.rank = number(optarg, 4096);
            break;
        case 'f':
            o.format = optarg;
            break;
        case 'c':
            o.bf16 = strcmp(optarg, "bf16") == 0;
            break;
        case 'n':
            o.threads = number(optarg, 1024);
            break;
        case 'R':
            o.recompute = true;
            break;
        case 'N':
            o.runs = number(optarg, MOST_RUNS);
            break;
        case 'j':
            o.json = true;
            break;
        case 'h':
            fputs(help, stdout);
            exit(0);
        default:
            exit(2);
        }
    }
    return o;
}

/* Multiplications and additions of a step. */
static double operations(const options *o)
{
    const ql_model_config *c = &o->shape->config;
    double linear = 0, tokens = (double)o->tokens * (double)o->batch;
    for (int module = 0; module < QL_MODULES; module++)
        linear += (double)ql_module_inputs(c, module) * (double)ql_module_outputs(c, module);
    double head = (double)c->vocab_size * (double)c->hidden_size;
    double attention =
        7.0 / 2 * (double)o->tokens * (double)(c->heads * c->head_dim); /* 2 + 5 products, half of them */
    return tokens * (4 * ((double)c->layers * linear + head) + 2 * (double)c->layers * attention);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void burn(void *ctx, size_t index, size_t worker)
{
    (void)worker;
    ((double *)ctx)[index] = roof_for(ql_cpu_features() & ~(uint32_t)QL_CPU_AVX512_BF16)->work(20000000);
}

/* Multiply-adds a second of all threads at once, the median of five. */
static double measure_roof(ql_workers *workers)
{
    double rates[5], done[1024];
    for (int i = 0; i < 5; i++) {
        double start = now(), sum = 0;
        size_t threads = ql_workers_count(workers);
        ql_parallel(workers, threads, burn, done);
        for (size_t t = 0; t < threads; t++)
            sum += done[t];
        rates[i] = sum / (now() - start);
    }
    qsort(rates, 5, sizeof *rates, by_value);
    return rates[2];
}

static ql_dataset *random_data(const options *o)
{
    size_t length = o->tokens + 1, count = o->batch * (o->runs + 1);
    int32_t *ids = malloc(count * length * sizeof *ids);
    uint8_t *learn = malloc(length);
    ql_sample *samples = calloc(count, sizeof *samples);
    if (!ids || !learn || !samples)
        stop("out of memory");
    memset(learn, 1, length);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < length; j++)
            ids[i * length + j] = (int32_t)((i * length + j) * 2654435761u % o->shape->config.vocab_size);
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

static void print(const options *o, double seconds, double spread, double limit, const ql_trainer *trainer,
                  const ql_model *model, size_t threads)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double rate = operations(o) / seconds, tokens = (double)(o->tokens * o->batch) / seconds;
    ql_trainer_bytes t = ql_trainer_memory(trainer);
    ql_model_bytes m = ql_model_memory(model);
    const char *words =
        o->json
            ? "{\"shape\":\"%s\",\"tokens\":%zu,\"batch\":%zu,\"threads\":%zu,\"format\":\"%s\",\"compute\":\"%s\","
              "\"recompute\":%s,\"tokens_per_second\":%.2f,\"seconds\":%.4f,\"spread\":%.4f,\"gflops\":%.1f,"
              "\"roof_gflops\":%.1f,\"peak_resident\":%ld,\"weights\":%zu,\"adapters\":%zu,\"gradients\":%zu,"
              "\"optimizer\":%zu,\"activations\":%zu,\"workspace\":%zu}\n"
            : "%s, %zu tokens x %zu, %zu threads, %s, compute %s, recompute %s\n"
              "  %.1f tokens/s, %.3f s a step (middle half within %.3f)\n"
              "  %.0f of %.0f GFLOP/s that fp32 multiply-adds reach in this run\n"
              "  peak resident %ld bytes: weights %zu, adapters %zu, gradients %zu, optimizer %zu, activations %zu, "
              "workspace %zu\n";
    printf(words, o->shape->name, o->tokens, o->batch, threads, o->format, o->bf16 ? "bf16" : "f32",
           o->recompute ? "true" : "false", tokens, seconds, spread, rate * 1e-9, limit * 1e-9, usage.ru_maxrss * 1024,
           m.codes + m.scales + m.dense, t.adapters, t.gradients, t.optimizer, t.activations, t.workspace);
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    ql_error err = {0};
    ql_workers *workers;
    ql_model *model;
    ql_trainer *trainer;
    ql_format format;
    must(ql_format_parse(&format, o.format, 64, true, &err), &err);
    must(ql_workers_create(&workers, o.threads, &err), &err);
    must(ql_model_random(&model, &o.shape->config, format, 1, workers, &err), &err);
    ql_model_allow_bf16(model, o.bf16);
    ql_lora_options lora = ql_lora_options_defaults();
    lora.rank = o.rank;
    must(ql_model_attach(model, &lora, &err), &err);
    ql_dataset *data = random_data(&o);
    ql_train_options train = ql_train_options_defaults();
    train.batch_size = o.batch;
    train.recompute = o.recompute;
    must(ql_trainer_create(&trainer, model, data, &train, workers, &err), &err);
    double limit = measure_roof(workers), seconds[MOST_RUNS];
    ql_step_report report;
    must(ql_trainer_step(trainer, &report, &err), &err);
    for (size_t i = 0; i < o.runs; i++) {
        must(ql_trainer_step(trainer, &report, &err), &err);
        seconds[i] = report.seconds;
    }
    qsort(seconds, o.runs, sizeof *seconds, by_value);
    print(&o, seconds[o.runs / 2], seconds[o.runs * 3 / 4] - seconds[o.runs / 4], limit, trainer, model,
          ql_workers_count(workers));
    ql_trainer_destroy(trainer);
    ql_dataset_close(data);
    ql_model_destroy(model);
    ql_workers_destroy(workers);
    return 0;
}
