#define _GNU_SOURCE
#include "cli/output.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/common.h"

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
