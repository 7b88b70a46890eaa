#define _GNU_SOURCE
#include "cli/progress.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/common.h"

enum { PLAIN_LINES = 20, PLAIN_SECONDS = 60 };

void cli_progress_start(cli_progress *progress, FILE *out, size_t steps)
{
    *progress = (cli_progress){.out = out, .steps = steps, .printed = cli_now()};
    progress->terminal = out && isatty(fileno(out));
}

double cli_progress_loss(const cli_progress *progress)
{
    return progress->weight > 0 ? progress->loss / progress->weight : 0;
}

double cli_progress_tokens_per_second(const cli_progress *progress)
{
    return progress->seconds > 0 ? (double)progress->tokens / progress->seconds : 0;
}

static size_t terminal_width(FILE *out)
{
    struct winsize size;
    return ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

static void print_line(cli_progress *p, const ql_step_report *r)
{
    char line[256];
    cli_text left, speed;
    double rate = cli_progress_tokens_per_second(p);
    cli_time((double)(p->steps - r->step) * p->seconds / (double)p->done, left);
    cli_count((size_t)(rate + 0.5), speed);
    snprintf(line, sizeof line, "step %zu/%zu  loss %.4f (mean %.4f)  lr %.2e  %s tokens/s  ETA %s", r->step, p->steps,
             r->loss, cli_progress_loss(p), r->lr, speed, left);
    if (!p->terminal) {
        fprintf(p->out, "%s\n", line);
        p->printed = cli_now();
        return;
    }
    size_t width = terminal_width(p->out) - 1;
    fprintf(p->out, "\r%.*s\x1b[K", (int)width, line);
    fflush(p->out);
    p->line_open = true;
}

void cli_progress_step(cli_progress *progress, const ql_step_report *report)
{
    const double decay = 0.95;
    if (progress->weight <= 0 && !report->skipped)
        progress->first_loss = report->loss;
    progress->done++;
    progress->tokens += report->tokens;
    progress->learned += report->learned;
    progress->seconds += report->seconds;
    if (!report->skipped) {
        progress->loss = decay * progress->loss + (1 - decay) * report->loss;
        progress->weight = decay * progress->weight + (1 - decay);
    }
    if (!progress->out)
        return;
    size_t every = progress->steps / PLAIN_LINES ? progress->steps / PLAIN_LINES : 1;
    bool ends = progress->done == 1 || report->step == progress->steps;
    if (progress->terminal || ends || report->step % every == 0 || cli_now() - progress->printed > PLAIN_SECONDS)
        print_line(progress, report);
}

void cli_progress_break(cli_progress *progress)
{
    if (progress->line_open)
        fputc('\n', progress->out);
    progress->line_open = false;
}
