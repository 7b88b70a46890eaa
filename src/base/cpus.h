/* How many threads may really run at once. */
#ifndef QL_SRC_BASE_CPUS_H
#define QL_SRC_BASE_CPUS_H

#include <stddef.h>

/* The CPUs that this process may run on, no more than the quota of its control group is worth; at least 1. */
size_t ql_usable_cpus(void);

/* The least quota of `group` ("/a/b") and those above it, rounded up to whole CPUs, as version 2 of the kernel's control
 * groups keeps them below `mount` (cpu.max: microseconds of all CPUs, of what period); SIZE_MAX: none. */
size_t ql_quota_cpus(const char *mount, const char *group);

#endif
