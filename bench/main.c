/* qlora-bench: products, the other operations of a block, and whole training steps, beside the machine's roof. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"

static const char help[] =
    "usage: qlora-bench [matmul|report|ops|lora|step|regions] [options]\n"
    "\n"
    "  matmul   products with quantized weights, for every kernel, shape and format (also without a name)\n"
    "  report   products at the shapes that count, beside other libraries and the goals, in five minutes\n"
    "  ops      attention, norms, rotation and activation of named models\n"
    "  lora     the thin products of adapters; tokens (512) and rank (16) may follow\n"
    "  step     whole training steps of named models with random weights: tokens a second, time by part, memory\n"
    "  regions  what it costs to hand tasks to threads and wait for them; numbers of threads may follow\n"
    "\n"
    "qlora-bench NAME --help shows the options.\n";

/* Before main, from the environment, OpenBLAS chooses its kernels, which are to be those that it finds best, and OpenMP,
 * which other libraries use, how long its threads watch for work: past the pause between two products, not through what
 * is measured after them. */
static void settle(char **argv)
{
    bool again = getenv("OPENBLAS_CORETYPE") != NULL;
    unsetenv("OPENBLAS_CORETYPE");
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) {
        setenv("GOMP_SPINCOUNT", "10000", 1);
        again = true;
    }
    if (again)
        execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"matmul", bench_matmul},
                    {"report", bench_report},
                    {"ops", bench_ops},
                    {"lora", bench_lora},
                    {"step", bench_step},
                    {"regions", bench_regions}};
    settle(argv);
    if (argc < 2 || (argv[1][0] == '-' && strcmp(argv[1], "--help") != 0))
        return bench_matmul(argc, argv);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    bool asked = strcmp(argv[1], "--help") == 0;
    fputs(help, asked ? stdout : stderr);
    return asked ? 0 : 2;
}
