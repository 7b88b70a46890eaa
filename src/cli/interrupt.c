#define _GNU_SOURCE
#include "cli/interrupt.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static const int asking[] = {SIGINT, SIGTERM, SIGHUP};

static volatile sig_atomic_t caught;

static void remember(int number)
{
    static const char note[] = "\nStopping after this step; once more to quit at once without saving.\n";
    caught = number;
    for (size_t i = 0; i < sizeof asking / sizeof *asking; i++)
        signal(asking[i], SIG_DFL);
    ssize_t ignored = write(STDERR_FILENO, note, sizeof note - 1);
    (void)ignored;
}

void cli_interrupt_catch(void)
{
    struct sigaction action = {.sa_handler = remember, .sa_flags = SA_RESTART}, now;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof asking / sizeof *asking; i++)
        if (sigaction(asking[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN) /* nohup keeps its meaning */
            sigaction(asking[i], &action, NULL);
    /* A closed pipe is an error of a write, not the end of the run. */
    signal(SIGPIPE, SIG_IGN);
}

bool cli_interrupted(void)
{
    return caught != 0;
}
