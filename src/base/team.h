/* Threads that share the tasks of one caller: what ql_workers_create() runs. */
#ifndef QL_SRC_BASE_TEAM_H
#define QL_SRC_BASE_TEAM_H

#include "qlora/base.h"

/* The calling thread and threads - 1 others, which start at the first use, in a forked child too; where the system
 * gives fewer, those do all. Between calls they watch for new tasks, at most as long as it takes to wake a thread, and
 * then sleep. NULL when memory is short. */
typedef struct ql_team ql_team;
ql_team *ql_team_create(size_t threads);
void ql_team_destroy(ql_team *team); /* NULL is fine */

/* self is the team. Each thread has a part of the indices, the same part of each loop of as many, and goes on with what
 * others have left. Not from within a task. */
ql_parallel_for ql_team_run;

#endif
