#include "io/map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static ql_status map_descriptor(ql_map *map, int fd, const char *path, ql_error *err)
{
    struct stat info;
    if (fstat(fd, &info))
        return ql_fail(err, QL_ERR_IO, "%s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        return ql_fail(err, QL_ERR_IO, "%s: %s", path, strerror(EISDIR));
    if (!S_ISREG(info.st_mode))
        return ql_fail(err, QL_ERR_IO, "%s: not a regular file", path);
    if ((uintmax_t)info.st_size > SIZE_MAX / 2)
        return ql_fail(err, QL_ERR_IO, "%s: %s", path, strerror(EFBIG));
    if (info.st_size == 0) {
        map->data = (const unsigned char *)"";
        return QL_OK;
    }
    void *mapped = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED)
        return ql_fail(err, QL_ERR_IO, "%s: cannot map %ju bytes: %s", path, (uintmax_t)info.st_size, strerror(errno));
    *map = (ql_map){mapped, (size_t)info.st_size, mapped};
    return QL_OK;
}

ql_status ql_map_open(ql_map *map, const char *path, ql_error *err)
{
    *map = (ql_map){0};
    /* O_NONBLOCK: a FIFO is to be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return ql_fail(err, QL_ERR_IO, "%s: %s", path, strerror(errno));
    ql_status status = map_descriptor(map, fd, path, err);
    close(fd);
    return status;
}

void ql_map_close(ql_map *map)
{
    if (map->mapped)
        munmap(map->mapped, map->size);
    *map = (ql_map){0};
}
