/* Whole files mapped for reading. */
#ifndef QL_SRC_IO_MAP_H
#define QL_SRC_IO_MAP_H

#include "qlora/base.h"

/* Zeroed is closed. An empty file has size 0 and data that points at no bytes, never NULL. */
typedef struct ql_map {
    const unsigned char *data;
    size_t size;
    void *mapped; /* NULL for an empty file */
} ql_map;

/* QL_ERR_IO names the file and the reason: missing, not permitted, a folder, a device. */
ql_status ql_map_open(ql_map *map, const char *path, ql_error *err);

void ql_map_close(ql_map *map);

#endif
