/* What a timed step looked like: words, or one JSON object. */
#include <stdio.h>

#include "base/cpu.h"
#include "step.h"

static size_t planned(const step_result *r)
{
    return r->model.codes + r->model.scales + r->model.dense + r->model.mapped + r->trainer.adapters +
           r->trainer.gradients + r->trainer.optimizer + r->trainer.activations + r->trainer.workspace;
}

static double beyond(const step_result *r)
{
    return ((double)r->peak / (double)planned(r) - 1) * 100;
}

void step_print(const step_options *o, const step_result *r)
{
    char again[48] = "";
    step_count count = step_operations(o);
    if (o->recompute)
        snprintf(again, sizeof again, ", recomputing %zu blocks", o->recompute);
    const double m = (double)(o->seq * o->batch), giga = 1e-9, mega = 1e-6;
    printf("%s, %zu x %zu tokens, rank %zu, %s, head %s, compute %s, %s%s%s, %zu threads, kernel %s\n", o->shape,
           o->batch, o->seq, o->rank, o->format, o->head_format, o->bf16 ? "bf16" : "f32", ql_optim_name(o->optim),
           o->bf16_activations ? ", activations bf16" : "", again, r->threads, r->kernel);
    printf("  %.1f tokens/s: %.3f s a step (middle half %.3f to %.3f), median of %zu", m / r->seconds, r->seconds, r->low,
           r->high, o->runs);
    if (r->speedup != 1)
        printf(", %.2f times the first", r->speedup);
    printf("\n  %.1f GFLOP/s, %.1f %% of %.1f (%s, the same threads in the same run)", count.wanted / r->seconds * giga,
           r->share * 100, r->roof * giga, r->roof_name);
    if (r->roof_width > ROOF_MOVES)
        printf(", which moved by %.0f %%", r->roof_width * 100);
    printf("\n");
    double sum = 0;
    for (int part = 0; part < QL_PARTS; part++)
        sum += r->parts.seconds[part];
    printf("  %-16s %9s %7s %9s %12s\n", "part", "seconds", "", "GFLOP/s", "of the roof");
    for (int i = 1; i <= QL_PARTS; i++) { /* the rest last */
        ql_part part = (ql_part)(i % QL_PARTS);
        double seconds = r->parts.seconds[part], rate = seconds > 0 ? count.done[part] / seconds : 0;
        printf("  %-16s %9.4f %5.1f %%", ql_part_name(part), seconds, 100 * seconds / sum);
        if (rate > 0)
            printf(" %9.1f %10.1f %%", rate * giga, 100 * rate / r->roof);
        printf("\n");
    }
    printf("  memory, MB: weights %.1f, adapters %.1f, gradients %.1f, optimizer %.1f, activations %.1f, workspace %.1f\n",
           (double)(r->model.codes + r->model.scales + r->model.dense + r->model.mapped) * mega,
           (double)r->trainer.adapters * mega, (double)r->trainer.gradients * mega, (double)r->trainer.optimizer * mega,
           (double)r->trainer.activations * mega, (double)r->trainer.workspace * mega);
    printf("  peak resident %.1f MB, planned %.1f MB (%+.1f %%)\n", (double)r->peak * mega, (double)planned(r) * mega,
           beyond(r));
}

void step_print_json(const step_options *o, const step_result *r)
{
    step_count count = step_operations(o);
    printf("{\"shape\":\"%s\",\"seq\":%zu,\"batch\":%zu,\"rank\":%zu,\"format\":\"%s\",\"head_format\":\"%s\","
           "\"compute\":\"%s\",\"optim\":\"%s\",\"activations\":\"%s\",\"recompute\":%zu,\"threads\":%zu,\"kernel\":\"%s\","
           "\"processor\":\"%s\",\"tokens_per_second\":%.2f,"
           "\"seconds\":%.5f,\"low_s\":%.5f,\"high_s\":%.5f,\"runs\":%zu,\"operations\":%.0f,\"gflops\":%.2f,"
           "\"roof\":\"%s\",\"roof_gflops\":%.2f,\"roof_width\":%.4f,\"share\":%.4f,\"speedup\":%.4f,\"parts\":{",
           o->shape, o->seq, o->batch, o->rank, o->format, o->head_format, o->bf16 ? "bf16" : "f32",
           ql_optim_name(o->optim), o->bf16_activations ? "bf16" : "f32", o->recompute, r->threads,
           r->kernel, ql_cpu_describe(), (double)(o->seq * o->batch) / r->seconds, r->seconds, r->low,
           r->high, o->runs, count.wanted, count.wanted / r->seconds * 1e-9, r->roof_name, r->roof * 1e-9,
           r->roof_width, r->share, r->speedup);
    for (int part = 0; part < QL_PARTS; part++)
        printf("%s\"%s\":{\"seconds\":%.5f,\"operations\":%.0f}", part ? "," : "", ql_part_name((ql_part)part),
               r->parts.seconds[part], count.done[part]);
    printf("},\"weights\":%zu,\"adapters\":%zu,\"gradients\":%zu,\"optimizer\":%zu,\"activations\":%zu,"
           "\"workspace\":%zu,\"planned\":%zu,\"peak_resident\":%zu}\n",
           r->model.codes + r->model.scales + r->model.dense + r->model.mapped, r->trainer.adapters,
           r->trainer.gradients, r->trainer.optimizer, r->trainer.activations, r->trainer.workspace, planned(r),
           r->peak);
}
