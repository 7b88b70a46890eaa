/* The tensors of a model, over one or more safetensors files. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "io/json.h"
#include "io/path.h"
#include "io/safetensors.h"

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

struct ql_tensors {
    char *path; /* as it was given to open */
    ql_shard *shards;
    size_t shard_count, count;
    const ql_tensor **in_order, **by_name;
};

static ql_status add_shard(ql_tensors *tensors, char *path, ql_error *err)
{
    ql_shard *grown = path ? realloc(tensors->shards, (tensors->shard_count + 1) * sizeof *grown) : NULL;
    if (!grown) {
        free(path);
        return ql_fail(err, QL_ERR_MEMORY, "out of memory while opening a model");
    }
    tensors->shards = grown;
    ql_shard *shard = &grown[tensors->shard_count++];
    return ql_shard_open(shard, path, err);
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Opens the file that the index names, unless it is open already. */
static ql_status add_indexed(ql_tensors *tensors, const char *folder, const ql_json_at *map, const char *key,
                             ql_error *err)
{
    const char *name;
    ql_status status = ql_json_get_string(map, key, QL_REQUIRED, &name, NULL, err);
    if (status != QL_OK)
        return status;
    if (strchr(name, '/') || name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return ql_fail(err, QL_ERR_FORMAT, "%s: tensor %.200s: \"%.200s\" is not the name of a file beside the index",
                       map->file, key, name);
    for (size_t i = tensors->shard_count; i-- > 0;)
        if (strcmp(file_name(tensors->shards[i].path), name) == 0)
            return QL_OK;
    status = add_shard(tensors, ql_path_join(folder, name), err);
    return status == QL_OK ? QL_OK : ql_fail_in(err, status, "%s", map->file);
}

int ql_tensor_by_name(const void *left, const void *right)
{
    const ql_tensor *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static ql_status list(ql_tensors *tensors, ql_error *err)
{
    for (size_t i = 0; i < tensors->shard_count; i++)
        tensors->count += tensors->shards[i].count;
    size_t count = tensors->count, filled = 0;
    tensors->in_order = calloc(count + 1, sizeof *tensors->in_order);
    tensors->by_name = calloc(count + 1, sizeof *tensors->by_name);
    if (!tensors->in_order || !tensors->by_name)
        return ql_fail(err, QL_ERR_MEMORY, "out of memory for a list of %zu tensors", count);
    for (size_t i = 0; i < tensors->shard_count; i++)
        for (size_t j = 0; j < tensors->shards[i].count; j++)
            tensors->in_order[filled++] = &tensors->shards[i].tensors[j];
    memcpy(tensors->by_name, tensors->in_order, count * sizeof *tensors->by_name);
    qsort(tensors->by_name, count, sizeof *tensors->by_name, ql_tensor_by_name);
    for (size_t i = 1; i < count; i++) {
        const ql_tensor *a = tensors->by_name[i - 1], *b = tensors->by_name[i];
        if (strcmp(a->name, b->name) == 0)
            return ql_fail(err, QL_ERR_FORMAT, "%s: tensor %.200s is given twice, also in %s", a->file, a->name,
                           b->file);
    }
    return QL_OK;
}

static ql_status check_index(const ql_tensors *tensors, const ql_json_at *map, ql_error *err)
{
    const char *name;
    json_t *file;
    json_object_foreach((json_t *)map->value, name, file)
    {
        const ql_tensor *tensor = ql_tensors_find(tensors, name);
        if (!tensor || strcmp(file_name(tensor->file), json_string_value(file)) != 0)
            return ql_fail(err, QL_ERR_FORMAT, "%s: tensor %.200s is not in %s, where the index says it is", map->file,
                           name, json_string_value(file));
    }
    return QL_OK;
}

static ql_status read_index(ql_tensors *tensors, const char *path, const json_t *index, ql_error *err)
{
    ql_json_at root = ql_json_root(path, index), map;
    ql_status status = ql_json_get_object(&root, "weight_map", QL_REQUIRED, &map, err);
    if (status != QL_OK)
        return status;
    char *folder = strdup(path);
    if (!folder)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    folder[file_name(path) - path] = '\0'; /* empty for the working directory, or ends in a slash */
    const char *key;
    json_t *name;
    json_object_foreach((json_t *)map.value, key, name)
    {
        status = add_indexed(tensors, folder, &map, key, err);
        if (status != QL_OK)
            break;
    }
    free(folder);
    if (status == QL_OK)
        status = list(tensors, err);
    return status == QL_OK ? check_index(tensors, &map, err) : status;
}

static ql_status open_index(ql_tensors *tensors, const char *path, ql_error *err)
{
    json_t *index;
    ql_status status = ql_json_read(&index, path, err);
    if (status == QL_OK)
        status = read_index(tensors, path, index, err);
    json_decref(index);
    return status;
}

static ql_status open_file(ql_tensors *tensors, const char *path, ql_error *err)
{
    ql_status status = add_shard(tensors, strdup(path), err);
    return status == QL_OK ? list(tensors, err) : status;
}

static ql_status open_folder(ql_tensors *tensors, const char *path, ql_error *err)
{
    char *single = ql_path_join(path, SINGLE), *index = ql_path_join(path, INDEX);
    ql_status status;
    if (!single || !index)
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    else if (access(single, F_OK) == 0)
        status = open_file(tensors, single, err);
    else if (access(index, F_OK) == 0)
        status = open_index(tensors, index, err);
    else
        status = ql_fail(err, QL_ERR_IO, "%s: the folder has neither " SINGLE " nor " INDEX, path);
    free(single);
    free(index);
    return status;
}

ql_status ql_tensors_open(ql_tensors **out, const char *path, ql_error *err)
{
    *out = NULL;
    ql_tensors *tensors = calloc(1, sizeof *tensors);
    if (!tensors)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    size_t length = strlen(path);
    ql_status status;
    tensors->path = strdup(path);
    if (!tensors->path)
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    else if (ql_path_is_folder(path))
        status = open_folder(tensors, path, err);
    else if (length >= 5 && strcmp(path + length - 5, ".json") == 0)
        status = open_index(tensors, path, err);
    else
        status = open_file(tensors, path, err);
    if (status == QL_OK)
        *out = tensors;
    else
        ql_tensors_close(tensors);
    return status;
}

void ql_tensors_close(ql_tensors *tensors)
{
    if (!tensors)
        return;
    for (size_t i = 0; i < tensors->shard_count; i++)
        ql_shard_close(&tensors->shards[i]);
    free(tensors->shards);
    free(tensors->in_order);
    free(tensors->by_name);
    free(tensors->path);
    free(tensors);
}

const char *ql_tensors_path(const ql_tensors *tensors)
{
    return tensors->path;
}

size_t ql_tensors_count(const ql_tensors *tensors)
{
    return tensors->count;
}

const ql_tensor *ql_tensors_at(const ql_tensors *tensors, size_t index)
{
    return index < tensors->count ? tensors->in_order[index] : NULL;
}

const ql_tensor *ql_tensors_find(const ql_tensors *tensors, const char *name)
{
    const ql_tensor key = {.name = name}, *wanted = &key;
    const ql_tensor **found = bsearch(&wanted, tensors->by_name, tensors->count, sizeof *tensors->by_name, ql_tensor_by_name);
    return found ? *found : NULL;
}

const char *ql_tensors_metadata_at(const ql_tensors *tensors, size_t index, const char **key)
{
    const json_t *metadata = NULL;
    json_t *value;
    for (size_t i = 0; i < tensors->shard_count && !metadata; i++)
        metadata = json_object_get(tensors->shards[i].header, "__metadata__");
    json_object_foreach((json_t *)metadata, *key, value) if (index-- == 0) return json_string_value(value);
    return NULL;
}

const char *ql_tensors_metadata(const ql_tensors *tensors, const char *key)
{
    for (size_t i = 0; i < tensors->shard_count; i++) {
        const json_t *metadata = json_object_get(tensors->shards[i].header, "__metadata__");
        const char *value = json_string_value(json_object_get(metadata, key));
        if (value)
            return value;
    }
    return NULL;
}

const ql_gguf *ql_tensors_gguf(const ql_tensors *tensors)
{
    return tensors->shard_count == 1 ? tensors->shards[0].gguf : NULL;
}

/* Only pages of our own read-only maps: to drop pages of other memory would lose what it holds. */
static void advise(const ql_tensors *tensors, const ql_tensor *tensor, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), data = (uintptr_t)tensor->data;
    for (size_t i = 0; i < tensors->shard_count; i++) {
        const ql_map *map = &tensors->shards[i].map;
        uintptr_t start = (uintptr_t)map->data;
        if (tensor->bytes == 0 || data < start || data - start >= map->size || !map->mapped)
            continue;
        uintptr_t first = data / page * page;
        madvise((void *)first, data + tensor->bytes - first, advice);
        return;
    }
}

void ql_tensors_fetch(const ql_tensors *tensors, const ql_tensor *tensor)
{
    advise(tensors, tensor, MADV_WILLNEED);
}

void ql_tensors_release(const ql_tensors *tensors, const ql_tensor *tensor)
{
    advise(tensors, tensor, MADV_DONTNEED);
}
