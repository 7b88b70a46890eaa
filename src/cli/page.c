#define _GNU_SOURCE
#include "cli/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/chart.h"
#include "cli/common.h"
#include "cli/page_parts.h"

enum { MOST_POINTS = 1000, MOST_DOTS = 40 };

/* The steps as arrays, several of them to a point where there are many. */
typedef struct curves {
    size_t count, steps_a_point;
    double *step, *loss, *smooth, *lr, *grad_norm, *speed; /* one allocation, at step */
    double *eval_step, *eval_loss;                         /* another one */
} curves;

typedef struct mean {
    double sum, count;
} mean;

static void take(mean *m, double x)
{
    if (isfinite(x))
        m->sum += x, m->count++;
}

static double of(const mean *m)
{
    return m->count > 0 ? m->sum / m->count : NAN;
}

/* The mean of the points about each one, which lags behind neither rise nor fall. */
static void smooth(curves *c)
{
    size_t half = c->count / 50 + (c->count > 5);
    for (size_t i = 0; i < c->count; i++) {
        mean m = {0};
        for (size_t j = i > half ? i - half : 0; j < c->count && j <= i + half; j++)
            take(&m, c->loss[j]);
        c->smooth[i] = of(&m);
    }
}

static bool draw(curves *c, const cli_history *h)
{
    c->steps_a_point = (h->step_count + MOST_POINTS - 1) / MOST_POINTS;
    c->steps_a_point += c->steps_a_point == 0;
    c->count = (h->step_count + c->steps_a_point - 1) / c->steps_a_point;
    c->step = calloc(6 * c->count + 1, sizeof *c->step);
    c->eval_step = calloc(2 * h->eval_count + 1, sizeof *c->eval_step);
    if (!c->step || !c->eval_step)
        return false;
    c->loss = c->step + c->count, c->smooth = c->loss + c->count, c->lr = c->smooth + c->count;
    c->grad_norm = c->lr + c->count, c->speed = c->grad_norm + c->count;
    c->eval_loss = c->eval_step + h->eval_count;
    for (size_t i = 0; i < c->count; i++) {
        mean loss = {0}, lr = {0}, norm = {0}, tokens = {0}, seconds = {0};
        size_t end = (i + 1) * c->steps_a_point < h->step_count ? (i + 1) * c->steps_a_point : h->step_count;
        for (size_t j = i * c->steps_a_point; j < end; j++) {
            const cli_history_step *s = &h->steps[j];
            c->step[i] = s->step;
            take(&loss, s->loss), take(&lr, s->lr), take(&norm, s->grad_norm);
            take(&tokens, s->tokens), take(&seconds, s->seconds);
        }
        c->loss[i] = of(&loss), c->lr[i] = of(&lr), c->grad_norm[i] = of(&norm);
        c->speed[i] = seconds.sum > 0 ? tokens.sum / seconds.sum : NAN;
    }
    for (size_t i = 0; i < h->eval_count; i++)
        c->eval_step[i] = h->evals[i].step, c->eval_loss[i] = h->evals[i].loss;
    smooth(c);
    return true;
}

static void put_charts(FILE *out, const cli_history *h, const curves *c)
{
    char note[96];
    const cli_series loss[] = {{"each step", "raw", c->step, c->loss, c->count, false},
                               {"smoothed", "train", c->step, c->smooth, c->count, false},
                               {"held out", "valid", c->eval_step, c->eval_loss, h->eval_count,
                                h->eval_count <= MOST_DOTS}},
                     lr = {"learning rate", "train", c->step, c->lr, c->count, false},
                     norm = {"norm", "train", c->step, c->grad_norm, c->count, false},
                     speed = {"tokens/s", "train", c->step, c->speed, c->count, false};
    snprintf(note, sizeof note, "Each point is the mean of %zu steps.", c->steps_a_point);
    const char *bundled = c->steps_a_point > 1 ? note : NULL;
    const cli_chart charts[] = {
        {"Loss, nats a token", bundled, "step", 5, false, true, loss, h->eval_count ? 3 : 2},
        {"Learning rate", NULL, "step", 4, true, false, &lr, 1},
        {"Gradient norm, before clipping", NULL, "step", 4, true, false, &norm, 1},
        {"Tokens a second", NULL, "step", 4, true, false, &speed, 1},
    };
    fputs("<section class=\"charts\">\n", out);
    for (size_t i = 0; i < sizeof charts / sizeof *charts; i++)
        cli_chart_put(out, &charts[i]);
    fputs("</section>\n", out);
}

static void put_tile(FILE *out, const char *name, const char *value, const char *more)
{
    fprintf(out, "<div class=\"tile\"><dt>%s</dt><dd>%s", name, value);
    if (more)
        fprintf(out, "<small>%s</small>", more);
    fputs("</dd></div>\n", out);
}

static void put_tiles(FILE *out, const cli_history *h, const curves *c)
{
    char value[64], more[64];
    cli_text text;
    mean seconds = {0}, tokens = {0};
    double steps = cli_page_number(h->start, "steps");
    for (size_t i = 0; i < h->step_count; i++)
        take(&seconds, h->steps[i].seconds), take(&tokens, h->steps[i].tokens);
    fputs("<dl class=\"tiles\">\n", out);
    if (h->eval_count) {
        const cli_history_eval *first = &h->evals[0], *last = &h->evals[h->eval_count - 1];
        snprintf(value, sizeof value, "%.4f", last->loss);
        snprintf(more, sizeof more, "perplexity %.4g", last->perplexity);
        if (h->eval_count > 1)
            snprintf(more, sizeof more, "from %.4f; perplexity %.4g", first->loss, last->perplexity);
        put_tile(out, "Held-out loss", value, more);
    }
    if (c->count) {
        snprintf(value, sizeof value, "%.4f", c->smooth[c->count - 1]);
        snprintf(more, sizeof more, "from %.4f", c->loss[0]);
        put_tile(out, "Training loss", value, more);
        snprintf(more, sizeof more, "of %.0f", steps);
        put_tile(out, "Steps", cli_count(cli_page_whole(h->steps[h->step_count - 1].step), text),
                 steps > 0 ? more : NULL);
        snprintf(more, sizeof more, "%s tokens", cli_count(cli_page_whole(tokens.sum), text));
        put_tile(out, "Time", cli_time(seconds.sum, text), more);
        snprintf(value, sizeof value, "%.0f", seconds.sum > 0 ? tokens.sum / seconds.sum : 0);
        put_tile(out, "Tokens a second", value, NULL);
    }
    double peak = cli_page_number(cli_page_object(h->end, "memory"), "peak");
    double total = cli_page_number(cli_page_object(h->start, "memory"), "total");
    if (peak > 0) {
        snprintf(more, sizeof more, "planned %s", cli_bytes(cli_page_whole(total), text));
        put_tile(out, "Peak memory", cli_bytes(cli_page_whole(peak), text), total > 0 ? more : NULL);
    }
    fputs("</dl>\n", out);
}

static void put_head(FILE *out, const cli_history *h)
{
    const json_t *model = json_object_get(h->start, "model");
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
          "<meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\"><title>",
          out);
    cli_page_text(out, model);
    fprintf(out, " \xe2\x80\x93 qlora finetune</title>\n<style>\n%s</style></head>\n<body><main>\n<header><h1>",
            cli_page_css);
    cli_page_text(out, model);
    fputs("</h1><p>qlora finetune", out);
    const char *const words[] = {"architecture", "format", "time"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (json_is_string(json_object_get(h->start, words[i]))) {
            fputs(" \xc2\xb7 ", out);
            cli_page_text(out, json_object_get(h->start, words[i]));
        }
    fputs("</p>", out);
    if (!h->end)
        fputs("<p class=\"state\">This run has not ended, or did not come to its end.</p>", out);
    else if (json_is_true(json_object_get(h->end, "interrupted")))
        fputs("<p class=\"state\">This run was stopped before its last step.</p>", out);
    fputs("</header>\n", out);
}

static void put_page(FILE *out, const cli_history *h, const curves *c)
{
    put_head(out, h);
    put_tiles(out, h, c);
    put_charts(out, h, c);
    cli_page_put_samples(out, h);
    cli_page_put_memory(out, h);
    cli_page_put_settings(out, h);
    fprintf(out, "</main>\n<script>\n%s</script></body></html>\n", cli_page_js);
}

ql_status cli_page_write(const char *path, FILE *log, const char *name, ql_error *err)
{
    cli_history h;
    curves c = {0};
    char *text = NULL;
    size_t length = 0;
    ql_status status = cli_history_read(&h, log, name, err);
    if (status)
        return status;
    FILE *out = open_memstream(&text, &length);
    bool drawn = draw(&c, &h) && out;
    if (drawn)
        put_page(out, &h, &c);
    if (!drawn || fclose(out) != 0) {
        snprintf(err->message, sizeof err->message, "%s: out of memory", path);
        status = err->status = QL_ERR_MEMORY;
    } else {
        status = ql_file_write(path, text, length, err);
    }
    free(text);
    free(c.step);
    free(c.eval_step);
    cli_history_free(&h);
    return status;
}
