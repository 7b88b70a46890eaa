#define _GNU_SOURCE
#include "base/cpus.h"

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MOST_PATH = 4096 };

static size_t read_quota(const char *path)
{
    unsigned long long quota, period;
    FILE *file = fopen(path, "re");
    if (!file)
        return SIZE_MAX;
    bool limited = fscanf(file, "%llu %llu", &quota, &period) == 2 && quota && period; /* "max 100000": not */
    fclose(file);
    return limited ? (size_t)(quota / period + (quota % period != 0)) : SIZE_MAX;
}

size_t ql_quota_cpus(const char *mount, const char *group)
{
    size_t least = SIZE_MAX;
    for (size_t length = strlen(group);; length--) {
        char path[MOST_PATH];
        while (length && group[length - 1] == '/')
            length--;
        if (snprintf(path, sizeof path, "%s%.*s/cpu.max", mount, (int)length, group) < (int)sizeof path) {
            size_t quota = read_quota(path);
            least = quota < least ? quota : least;
        }
        while (length && group[length - 1] != '/')
            length--;
        if (!length)
            return least;
    }
}

/* In version 2 the process's only group is the line "0::/a/b". */
static size_t own_quota(void)
{
    char line[MOST_PATH];
    size_t quota = SIZE_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "0::/", 4) == 0) {
            line[strcspn(line, "\n")] = 0;
            quota = ql_quota_cpus("/sys/fs/cgroup", line + 3);
        }
    if (file)
        fclose(file);
    return quota;
}

size_t ql_usable_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    size_t allowed = (size_t)CPU_COUNT(&set), quota = own_quota();
    size_t least = quota < allowed ? quota : allowed;
    return least > 0 ? least : 1;
}
