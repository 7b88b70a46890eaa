/* Names of files and folders. */
#ifndef QL_SRC_IO_PATH_H
#define QL_SRC_IO_PATH_H

#include "qlora/base.h"

/* "dir/name" with one slash between; free() it. NULL when out of memory. */
char *ql_path_join(const char *dir, const char *name);

bool ql_path_ends_in(const char *path, const char *ending); /* in letters of either case */
bool ql_path_is_folder(const char *path);
bool ql_path_is_file(const char *path); /* a regular file, or a link to one */

/* Makes the folder and those above it; one that is there already is fine. */
ql_status ql_path_make_folder(const char *path, ql_error *err);

#endif
