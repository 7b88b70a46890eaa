#define _GNU_SOURCE
#include "cli/history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ql_status fail(ql_error *err, ql_status status, const char *name, size_t line, const char *what)
{
    err->status = status;
    snprintf(err->message, sizeof err->message, "%s:%zu: %s", name, line, what);
    return status;
}

static double number(const json_t *event, const char *key)
{
    const json_t *value = json_object_get(event, key);
    double x = json_is_number(value) ? json_number_value(value) : NAN;
    return fabs(x) < 1e100 ? x : NAN; /* no run has such numbers, and no chart room for them */
}

/* Room for one more; false when memory is out. */
static bool grow(void **items, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return true;
    size_t more = *capacity ? 2 * *capacity : 256;
    void *grown = realloc(*items, more * size);
    if (!grown)
        return false;
    *items = grown;
    *capacity = more;
    return true;
}

/* Forgets what came after step `last`. */
static void go_back(cli_history *h, double last)
{
    while (h->step_count && h->steps[h->step_count - 1].step > last)
        h->step_count--;
    while (h->eval_count && h->evals[h->eval_count - 1].step > last)
        h->eval_count--;
    for (size_t i = json_array_size(h->samples); i-- > 0 && number(json_array_get(h->samples, i), "step") > last;)
        json_array_remove(h->samples, i);
    json_decref(h->end);
    h->end = NULL;
}

static bool take_start(cli_history *h, json_t *event)
{
    double resumed = number(event, "resumed_at");
    go_back(h, resumed > 0 ? resumed : -1);
    json_decref(h->start);
    h->start = json_incref(event);
    return true;
}

static bool take_step(cli_history *h, json_t *event)
{
    cli_history_step step = {number(event, "step"),
                             number(event, "loss"),
                             number(event, "lr"),
                             number(event, "grad_norm"),
                             number(event, "seconds"),
                             number(event, "tokens"),
                             number(event, "tokens_per_second")};
    if (!(step.step >= 1 && step.step < 1e15))
        return true;
    if (h->step_count && h->steps[h->step_count - 1].step >= step.step)
        go_back(h, step.step - 1);
    if (!grow((void **)&h->steps, h->step_count, &h->step_capacity, sizeof *h->steps))
        return false;
    h->steps[h->step_count++] = step;
    return true;
}

static bool take_eval(cli_history *h, json_t *event)
{
    cli_history_eval eval = {number(event, "step"), number(event, "loss"), number(event, "perplexity")};
    if (h->eval_count && h->evals[h->eval_count - 1].step == eval.step)
        h->eval_count--; /* measured again where the run went on */
    if (!(eval.step >= 0 && eval.step < 1e15))
        return true;
    if (!grow((void **)&h->evals, h->eval_count, &h->eval_capacity, sizeof *h->evals))
        return false;
    h->evals[h->eval_count++] = eval;
    return true;
}

static bool take_sample(cli_history *h, json_t *event)
{
    return json_array_append(h->samples, event) == 0;
}

static bool take_end(cli_history *h, json_t *event)
{
    json_decref(h->end);
    h->end = json_incref(event);
    return true;
}

static const struct {
    const char *name;
    bool (*take)(cli_history *history, json_t *event);
} events[] = {
    {"start", take_start}, {"step", take_step}, {"eval", take_eval}, {"sample", take_sample}, {"end", take_end}};

static ql_status take(cli_history *h, json_t *event, const char *name, size_t line, ql_error *err)
{
    const char *kind = json_string_value(json_object_get(event, "event"));
    if (!kind)
        return fail(err, QL_ERR_FORMAT, name, line,
                    "not the log of a run: lines like {\"event\": \"step\", ...} are needed, as --log writes them");
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (strcmp(kind, events[i].name) == 0 && !events[i].take(h, event))
            return fail(err, QL_ERR_MEMORY, name, line, "out of memory");
    return QL_OK;
}

ql_status cli_history_read(cli_history *h, FILE *file, const char *name, ql_error *err)
{
    char *text = NULL;
    size_t capacity = 0, line = 0;
    ssize_t length;
    *h = (cli_history){.samples = json_array()};
    ql_status status = h->samples ? QL_OK : fail(err, QL_ERR_MEMORY, name, 0, "out of memory");
    while (!status && (length = getline(&text, &capacity, file)) > 0) {
        line++;
        json_t *event = json_loadb(text, (size_t)length, JSON_ALLOW_NUL, NULL);
        if (event || text[length - 1] == '\n')
            status = take(h, event, name, line, err);
        json_decref(event);
    }
    if (!status && ferror(file))
        status = fail(err, QL_ERR_IO, name, line, "cannot read on");
    if (!status && !h->start && !h->step_count)
        status = fail(err, QL_ERR_FORMAT, name, line, "no run is in this log");
    free(text);
    if (status)
        cli_history_free(h);
    return status;
}

void cli_history_free(cli_history *h)
{
    json_decref(h->start);
    json_decref(h->end);
    json_decref(h->samples);
    free(h->steps);
    free(h->evals);
    *h = (cli_history){0};
}
