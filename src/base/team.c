#define _GNU_SOURCE
#include "base/team.h"

#include <assert.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"

/* Two cache lines, which processors fetch in pairs. */
enum { APART = 128, GLANCES = 32 };

/* Seconds. Waking a thread takes 5 to 60 us: who watches longer than that wastes more than sleeping costs. */
static const double most_patience = 100e-6, least_patience = 2e-6, waking = 100e-6, preempted = 50e-6;

/* A number that threads wait to see changed. */
typedef struct gate {
    _Alignas(APART) atomic_uint value;
    atomic_uint sleepers;
} gate;

/* A worker's share of a loop, which others help with when theirs is done: the same part of each loop, as what one loop
 * left in a processor's cache the next may read. The share's end in the upper half, the next index in the lower. Who
 * draws an index below the end has a task, and the loop cannot end before that is done: so the team's fields are those
 * of the same loop. */
typedef struct worker {
    _Alignas(APART) atomic_uint_least64_t tickets;
    ql_team *team;
    size_t number;
    pthread_t thread;
} worker;

struct ql_team {
    gate start; /* another loop, or the end */
    gate done;  /* finished tasks of this loop */
    _Alignas(APART) ql_task *task;
    void *ctx;
    size_t first;
    unsigned count;
    bool watches; /* there is a CPU for each thread */
    atomic_bool ended;
    double patience; /* the caller's */
    pid_t owner;     /* the process that the helpers belong to, 0: none yet */
    size_t threads, cpus, started; /* started: besides the caller */
    worker workers[];              /* the caller is the first */
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* True when the value changed within `patience`. *off: this thread lost its CPU meanwhile. */
static bool watch(const gate *g, unsigned seen, double begin, double patience, bool *off)
{
    for (double now = begin, last; now - begin <= patience; *off |= now - last > preempted) {
        for (int i = 0; i < GLANCES; i++) {
            if (atomic_load_explicit(&g->value, memory_order_acquire) != seen)
                return true;
            relax();
        }
        last = now;
        now = ql_seconds();
    }
    return false;
}

/* Patience doubles with each wait that it was or would have been enough for, and halves with each that took longer.
 * Whose CPU was taken meanwhile has others waiting for it, and watches no more than a moment. */
static void await(gate *g, unsigned seen, bool watches, double *patience)
{
    bool off = false;
    double begin = ql_seconds();
    bool soon = watches && watch(g, seen, begin, *patience, &off);
    if (!soon) {
        atomic_fetch_add(&g->sleepers, 1);
        syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        atomic_fetch_sub(&g->sleepers, 1);
        soon = ql_seconds() - begin < most_patience + waking;
    }
    *patience = soon ? fmin(2 * *patience, most_patience) : fmax(*patience / 2, least_patience);
    if (off)
        *patience = least_patience;
}

/* After the value changed. Who counts itself among the sleepers later than this looks sees the new value. */
static void wake(gate *g, size_t threads)
{
    if (threads && atomic_load(&g->sleepers))
        syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, (int)threads, NULL, NULL, 0);
}

static bool draw(worker *from, unsigned *index)
{
    uint64_t ticket = atomic_load(&from->tickets);
    if ((unsigned)ticket >= ticket >> 32)
        return false;
    ticket = atomic_fetch_add(&from->tickets, 1);
    *index = (unsigned)ticket;
    return *index < ticket >> 32;
}

static void take_tasks(ql_team *team, size_t self)
{
    unsigned done = 0, index;
    for (size_t i = 0, from = self; i < team->threads; i++, from = from + 1 < team->threads ? from + 1 : 0)
        for (; draw(&team->workers[from], &index); done++)
            team->task(team->ctx, team->first + index, self);
    if (!done)
        return;
    unsigned count = team->count;
    if (atomic_fetch_add(&team->done.value, done) + done == count)
        wake(&team->done, 1);
}

static void *help(void *self)
{
    worker *own = self;
    ql_team *team = own->team;
    double patience = most_patience;
    for (;;) {
        unsigned seen = atomic_load(&team->start.value);
        if (atomic_load(&team->ended))
            return NULL;
        take_tasks(team, own->number);
        await(&team->start, seen, team->watches, &patience);
    }
}

/* Signals are for the caller's threads. */
static void start(ql_team *team)
{
    sigset_t all, old;
    team->start = team->done = (gate){0};
    for (size_t i = 0; i < team->threads; i++)
        team->workers[i] = (worker){.team = team, .number = i};
    team->cpus = ql_usable_cpus();
    team->watches = team->threads <= team->cpus;
    team->patience = most_patience;
    team->owner = getpid();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (team->started = 0; team->started + 1 < team->threads; team->started++) {
        worker *next = &team->workers[team->started + 1];
        if (pthread_create(&next->thread, NULL, help, next) != 0)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void run_part(ql_team *team, size_t first, unsigned count, ql_task *task, void *ctx)
{
    team->first = first;
    team->task = task;
    team->ctx = ctx;
    team->count = count;
    atomic_store(&team->done.value, 0);
    for (size_t i = 0; i < team->threads; i++) {
        uint64_t begin = (uint64_t)count * i / team->threads, end = (uint64_t)count * (i + 1) / team->threads;
        atomic_store(&team->workers[i].tickets, end << 32 | begin);
    }
    atomic_fetch_add(&team->start.value, 1);
    wake(&team->start, (count < team->cpus ? count : team->cpus) - 1);
    take_tasks(team, 0);
    for (unsigned done; (done = atomic_load(&team->done.value)) != count;)
        await(&team->done, done, team->watches, &team->patience);
}

void ql_team_run(void *self, size_t count, ql_task *task, void *ctx)
{
    ql_team *team = self;
    if (team->owner != getpid())
        start(team);
    for (size_t first = 0, part; first < count; first += part) {
        part = count - first < UINT32_MAX ? count - first : UINT32_MAX;
        run_part(team, first, (unsigned)part, task, ctx);
    }
}

ql_team *ql_team_create(size_t threads)
{
    assert(threads > 0);
    size_t bytes = sizeof(ql_team) + threads * sizeof(worker);
    ql_team *team = aligned_alloc(APART, (bytes + APART - 1) / APART * APART);
    if (!team)
        return NULL;
    *team = (ql_team){.threads = threads};
    return team;
}

void ql_team_destroy(ql_team *team)
{
    if (team && team->owner == getpid()) {
        atomic_store(&team->ended, true);
        atomic_fetch_add(&team->start.value, 1);
        wake(&team->start, team->started);
        for (size_t i = 0; i < team->started; i++)
            pthread_join(team->workers[i + 1].thread, NULL);
    }
    free(team);
}
