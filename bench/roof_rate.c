/* Roofs of several threads. They begin together, so that waking them does not count. */
#include <math.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/workers.h"
#include "roof.h"

enum { MOST_WORKERS = 1024 };

typedef struct race {
    const roof *roof;
    const roof_streams *streams; /* NULL: operations */
    bench_clock *clock;
    double seconds;
    size_t workers;
    atomic_size_t here;
    struct {
        double done, begin, end;
    } each[MOST_WORKERS];
} race;

/* Until every worker has a piece. Where there are fewer CPUs than workers one may wait for another's end: not for long. */
static void wait_for_all(race *all)
{
    const double patience = 0.01;
    atomic_fetch_add(&all->here, 1);
    for (double begin = ql_seconds(); atomic_load(&all->here) < all->workers && ql_seconds() - begin < patience;)
        sched_yield();
}

static double multiply(const race *all)
{
    double done = 0, begin = all->clock();
    for (size_t rounds = 1000; all->clock() - begin < all->seconds; rounds += rounds < 100000 ? rounds / 2 : 0)
        done += all->roof->work(rounds);
    return done;
}

static double read(const race *all, size_t index)
{
    const roof_streams *s = all->streams;
    size_t part = s->bytes / all->workers / 1024 * 1024, passes = 0;
    uint64_t sum = 0;
    for (double begin = all->clock(); all->clock() - begin < all->seconds || passes < s->copies; passes++)
        sum += all->roof->read(s->data + passes % s->copies * s->bytes + index * part, part);
    __asm__ volatile("" : : "r"(sum));
    return (double)(part * passes);
}

static void run(void *ctx, size_t index, size_t worker)
{
    race *all = ctx;
    (void)worker;
    if (!all->streams)
        all->roof->work(1); /* what it makes once is made now */
    wait_for_all(all);
    all->each[index].begin = all->clock();
    all->each[index].done = all->streams ? read(all, index) : multiply(all);
    all->each[index].end = all->clock();
}

static double rate(race *all, ql_workers *workers)
{
    all->workers = ql_workers_count(workers);
    ql_parallel(workers, all->workers, run, all);
    double done = 0, begin = all->each[0].begin, end = all->each[0].end;
    for (size_t i = 0; i < all->workers; i++) {
        done += all->each[i].done;
        begin = fmin(begin, all->each[i].begin);
        end = fmax(end, all->each[i].end);
    }
    return done / (end - begin);
}

double roof_rate(const roof *r, ql_workers *workers, bench_clock *clock, double seconds)
{
    return rate(&(race){.roof = r, .clock = clock, .seconds = seconds}, workers);
}

double roof_read_rate(const roof *r, const roof_streams *s, ql_workers *workers, bench_clock *clock, double seconds)
{
    return rate(&(race){.roof = r, .streams = s, .clock = clock, .seconds = seconds}, workers);
}
