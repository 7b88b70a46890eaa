#include "row.h"

void row_header(void)
{
    printf("%-10s %-5s %5s %5s %5s  %-14s %2s %9s %7s %9s  share of the roof (G/s)\n", "op", "", "n", "k", "m", "tier",
           "th", "ms", "+-", "GFLOP/s");
}

static void write_json(const row *r, const bench_case *c, const char *op, FILE *json)
{
    const timing *t = &r->t;
    fprintf(json,
            "{\"op\":\"%s\",\"format\":\"%s\",\"n\":%zu,\"k\":%zu,\"m\":%zu,\"tier\":\"%s\",\"threads\":%zu,"
            "\"cold\":%s,\"median_s\":%.9g,\"low_s\":%.9g,\"high_s\":%.9g,\"runs\":%zu,\"tries\":%zu,\"gflops\":%.6g,"
            "\"roof\":\"%s\",\"roof_per_s\":%.6g,\"roof_width\":%.4f,\"share\":%.4f",
            op, r->weights, c->shape.n, c->shape.k, c->m, r->tier, c->threads, c->cold ? "true" : "false",
            t->seconds.median, t->seconds.low, t->seconds.high, t->runs, t->tries,
            case_operations(c) / t->seconds.median * 1e-9, t->roof_name, t->roof_figure, t->roof_width, t->roof);
    if (r->speedup > 0)
        fprintf(json, ",\"speedup\":%.4f", r->speedup);
    fprintf(json, "}\n");
    fflush(json);
}

void row_show(const row *r, const bench_case *c, FILE *json)
{
    const timing *t = &r->t;
    const char *op = c->transposed ? "transposed" : "forward";
    printf("%-10s %-5s %5zu %5zu %5zu  %-14s %2zu %9.3f %7.3f %9.1f  %5.1f %% of %.1f %s", op, r->weights, c->shape.n,
           c->shape.k, c->m, r->tier, c->threads, t->seconds.median * 1e3, (t->seconds.high - t->seconds.low) * 1e3,
           case_operations(c) / t->seconds.median * 1e-9, t->roof * 100, t->roof_figure * 1e-9, t->roof_name);
    if (r->speedup > 0)
        printf(", %.2f times the first", r->speedup);
    if (t->roof_width > ROOF_MOVES)
        printf(", roof moved by %.0f %%%s", t->roof_width * 100, t->tries > 1 ? " each time" : "");
    printf("\n");
    fflush(stdout);
    if (json)
        write_json(r, c, op, json);
}
