#define _GNU_SOURCE
#include "cli/interrupt.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "qlora/io.h"

static const int asking[] = {SIGINT, SIGTERM, SIGHUP};

static volatile sig_atomic_t caught;
static const char *volatile made_folder;

static void handle(void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags}, now;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof asking / sizeof *asking; i++)
        if (sigaction(asking[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN) /* nohup keeps its meaning */
            sigaction(asking[i], &action, NULL);
}

static void tidy(int number)
{
    ql_outputs_discard();
    if (made_folder)
        rmdir(made_folder);
    raise(number); /* its usual effect: the handler was for one time */
}

static void remember(int number)
{
    static const char note[] = "\nStopping after this step; once more to quit at once without saving.\n";
    caught = number;
    cli_interrupt_tidy();
    ssize_t ignored = write(STDERR_FILENO, note, sizeof note - 1);
    (void)ignored;
}

void cli_interrupt_tidy(void)
{
    handle(tidy, SA_RESETHAND | SA_NODEFER);
}

void cli_interrupt_remove(const char *folder)
{
    made_folder = folder;
}

void cli_interrupt_catch(void)
{
    handle(remember, SA_RESTART);
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of a write, not the end of the run */
}

bool cli_interrupted(void)
{
    return caught != 0;
}
