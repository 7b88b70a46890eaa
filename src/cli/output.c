#define _GNU_SOURCE
#include "cli/output.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/common.h"
#include "cli/interrupt.h"

/* mkdir -p */
static bool make_all(char *path)
{
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        bool made = mkdir(path, 0777) == 0 || errno == EEXIST;
        *at = '/';
        if (!made)
            return false;
    }
    return mkdir(path, 0777) == 0 || errno == EEXIST;
}

int cli_output_make(const char *dir, bool *made)
{
    char path[4096];
    struct stat info;
    *made = false;
    if (!*dir || (size_t)snprintf(path, sizeof path, "%s", dir) >= sizeof path - 16)
        return cli_failed_with("--output '%.60s': no such name for a folder", dir);
    if (stat(dir, &info) == 0) {
        if (!S_ISDIR(info.st_mode))
            return cli_failed_with("--output %s: this is a file, not a folder", dir);
    } else if (make_all(path)) {
        *made = true;
        cli_interrupt_remove(dir);
    } else {
        return cli_failed_with("--output %s: cannot make the folder (%m)", dir);
    }
    strcat(path, "/.try-XXXXXX"); /* access() does not tell for root, nor on a network */
    int file = mkstemp(path);
    if (file < 0)
        return cli_failed_with("--output %s: cannot write there (%m)", dir);
    close(file);
    unlink(path);
    return CLI_OK;
}

/* Temporary files are called NAME.tmp-PROCESS-NUMBER: those of processes that live are somebody's. */
void cli_output_sweep(const char *dir)
{
    static const char *const names[] = {"checkpoint.safetensors", "adapter_model.safetensors", "adapter_config.json",
                                        "run.yaml"};
    DIR *folder = opendir(dir);
    for (struct dirent *entry; folder && (entry = readdir(folder)) != NULL;) {
        const char *mark = strstr(entry->d_name, ".tmp-");
        size_t length = mark ? (size_t)(mark - entry->d_name) : 0;
        bool ours = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            ours |= strlen(names[i]) == length && memcmp(entry->d_name, names[i], length) == 0;
        int process, number, end = 0;
        if (ours && sscanf(mark, ".tmp-%d-%d%n", &process, &number, &end) == 2 && !mark[end] && process > 0 &&
            kill(process, 0) != 0 && errno == ESRCH)
            unlinkat(dirfd(folder), entry->d_name, 0);
        if (strlen(entry->d_name) == 11 && strncmp(entry->d_name, ".try-", 5) == 0) /* of cli_output_make */
            unlinkat(dirfd(folder), entry->d_name, 0);
    }
    if (folder)
        closedir(folder);
}
