#include "io/path.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/error.h"

char *ql_path_join(const char *dir, const char *name)
{
    size_t left = strlen(dir), right = strlen(name);
    size_t slash = left > 0 && dir[left - 1] != '/';
    char *path = malloc(left + slash + right + 1);
    if (!path)
        return NULL;
    memcpy(path, dir, left);
    if (slash)
        path[left] = '/';
    memcpy(path + left + slash, name, right + 1);
    return path;
}

bool ql_path_ends_in(const char *path, const char *ending)
{
    size_t length = strlen(path), size = strlen(ending);
    return length >= size && strcasecmp(path + length - size, ending) == 0;
}

bool ql_path_is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool ql_path_is_file(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

ql_status ql_path_make_folder(const char *path, ql_error *err)
{
    char *part = strdup(path);
    if (!part)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    for (char *at = part; *at; at++) { /* the folders above; what is wrong with one shows in the last mkdir */
        if (*at == '/' && at != part) {
            *at = '\0';
            mkdir(part, 0777);
            *at = '/';
        }
    }
    free(part);
    if (mkdir(path, 0777) && !(errno == EEXIST && ql_path_is_folder(path)))
        return ql_fail(err, QL_ERR_IO, "cannot make the folder %s: %s", path, strerror(errno));
    return QL_OK;
}
