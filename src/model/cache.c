/* A safetensors file of the bytes of packed weights; its metadata say what must be the same for them to be used, and
 * describe each weight. */
#include "model/cache.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/workers.h"
#include "io/path.h"
#include "io/tensor_write.h"
#include "quant/weight.h"

enum { IDENTITY = 5, VALUE_BYTES = 192, ALIGNMENT = 4096, RECORD_BYTES = 160 };

typedef struct entry {
    char *name, record[RECORD_BYTES];
    const ql_weight *weight;
} entry;

struct ql_cache {
    ql_model_cache *public;
    ql_metadata identity[IDENTITY];
    char value[IDENTITY][VALUE_BYTES];
    ql_tensors *file; /* NULL: there is none that is right */
    entry *kept;
    size_t count, room;
};

/* ---- what must be the same ---- */

static uint64_t mix_text(uint64_t hash, const char *text)
{
    return ql_hash_mix(hash, ql_hash(text, strlen(text)));
}

/* Names, sizes and times of the files that the tensors come from, which lie one after another. */
static void describe_source(char *out, const ql_tensors *files)
{
    uint64_t hash = 0, bytes = 0;
    size_t count = 0;
    const char *last = "";
    for (size_t i = 0; i < ql_tensors_count(files); i++) {
        const char *file = ql_tensors_at(files, i)->file, *slash = strrchr(file, '/');
        struct stat info = {0};
        if (strcmp(file, last) == 0)
            continue;
        last = file;
        stat(file, &info);
        hash = mix_text(hash, slash ? slash + 1 : file);
        hash = ql_hash_mix(hash, (uint64_t)info.st_size);
        hash = ql_hash_mix(hash, (uint64_t)info.st_mtim.tv_sec);
        hash = ql_hash_mix(hash, (uint64_t)info.st_mtim.tv_nsec);
        bytes += (uint64_t)info.st_size;
        count++;
    }
    snprintf(out, VALUE_BYTES, "%zu files of %" PRIu64 " bytes, names, sizes and times %016" PRIx64, count, bytes, hash);
}

static void describe(ql_cache *cache, const ql_model *model)
{
    static const char *const keys[IDENTITY] = {"format", "version", "model", "base format", "source"};
    const ql_model_config *c = &model->config;
    char text[48];
    snprintf(cache->value[0], VALUE_BYTES, "qlora packed weights");
    snprintf(cache->value[1], VALUE_BYTES, "%d", QL_PACKED_LAYOUT);
    snprintf(cache->value[2], VALUE_BYTES, "%s, %zu layers of %zu, mlp %zu, heads %zu/%zu of %zu, vocabulary %zu",
             ql_arch_name(c->arch), c->layers, c->hidden_size, c->intermediate_size, c->heads, c->kv_heads, c->head_dim,
             c->vocab_size);
    snprintf(cache->value[3], VALUE_BYTES, "%s", ql_format_describe(model->format, text));
    describe_source(cache->value[4], model->files);
    for (int i = 0; i < IDENTITY; i++)
        cache->identity[i] = (ql_metadata){keys[i], cache->value[i]};
}

/* dir/NAME-FORMAT-HASH.packed.safetensors: one for each model and format. */
static ql_status name_file(ql_cache *cache, const char *path, ql_error *err)
{
    ql_model_cache *public = cache->public;
    char *real = realpath(path, NULL);
    const char *whole = real ? real : path, *slash = strrchr(whole, '/'), *name = slash ? slash + 1 : whole;
    char format[VALUE_BYTES];
    snprintf(format, sizeof format, "%s", cache->value[3]);
    for (char *c = format; *c; c++)
        *c = *c == ' ' || *c == '/' ? '-' : *c;
    uint64_t hash = mix_text(mix_text(0, whole), format);
    int length = snprintf(public->path, sizeof public->path, "%s/%.80s-%s-%08" PRIx32 ".packed.safetensors", public->dir,
                          name, format, (uint32_t)hash);
    free(real);
    if (length < 0 || (size_t)length >= sizeof public->path)
        return ql_fail(err, QL_ERR_ARG, "%s: this name of a folder is too long", public->dir);
    return QL_OK;
}

/* ---- weights as records ---- */

static void write_record(char out[RECORD_BYTES], const ql_packing *p)
{
    snprintf(out, RECORD_BYTES, "%zux%zu code %d scale %d group %u flat %d nested %u offset %08" PRIx32, p->n, p->k,
             (int)p->format.code, (int)p->format.scale, (unsigned)p->format.group, p->format.flat, (unsigned)p->nested_block,
             ql_float_bits(p->nested_offset));
}

static bool read_record(ql_packing *p, const char *text)
{
    int code, scale, flat;
    unsigned group, nested;
    uint32_t offset;
    char again[RECORD_BYTES];
    if (!text || sscanf(text, "%zux%zu code %d scale %d group %u flat %d nested %u offset %" SCNx32, &p->n, &p->k, &code,
                        &scale, &group, &flat, &nested, &offset) != 8)
        return false;
    if (code < QL_CODE_F32 || code > QL_CODE_Q6_K || scale < 0 || scale > QL_SCALE_BNB_NESTED)
        return false;
    p->format = (ql_format){.code = (ql_code)code, .scale = (ql_scale)scale, .group = group, .flat = flat != 0};
    p->nested_block = nested;
    p->nested_offset = ql_float_from_bits(offset);
    write_record(again, p); /* nothing beside these numbers, and none that do not fit */
    return strcmp(text, again) == 0;
}

bool ql_cache_take(const ql_cache *cache, ql_weight **out, const char *name, size_t n, size_t k)
{
    const ql_tensor *tensor = cache && cache->file ? ql_tensors_find(cache->file, name) : NULL;
    ql_packing packing;
    return tensor && read_record(&packing, ql_tensors_metadata(cache->file, name)) && packing.n == n && packing.k == k &&
           ql_weight_from_packed(out, &packing, name, tensor->data, tensor->bytes, NULL) == QL_OK;
}

ql_status ql_cache_keep(ql_cache *cache, const char *name, const ql_weight *weight, ql_error *err)
{
    if (!cache || !weight->memory)
        return QL_OK;
    if (cache->count == cache->room) {
        size_t room = cache->room ? 2 * cache->room : 64;
        entry *more = realloc(cache->kept, room * sizeof *more);
        if (!more)
            return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
        cache->kept = more;
        cache->room = room;
    }
    entry *k = &cache->kept[cache->count];
    k->name = strdup(name);
    if (!k->name)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
    ql_packing packing = ql_weight_packing(weight);
    write_record(k->record, &packing);
    k->weight = weight;
    cache->count++;
    return QL_OK;
}

/* ---- the checksum ---- */

typedef struct sum_job {
    const ql_tensors *file; /* NULL: kept */
    const entry *kept;
    uint64_t *hash;
} sum_job;

/* Four runs of words side by side: a chain of multiplications waits for each of them. */
static uint64_t hash_bytes(const char *data, size_t bytes)
{
    uint64_t lane[4] = {1, 2, 3, 4};
    size_t quarter = bytes / 4 / 8 * 8;
    for (size_t i = 0; i < quarter; i += 8)
        for (size_t j = 0; j < 4; j++) {
            uint64_t word;
            memcpy(&word, data + j * quarter + i, 8);
            lane[j] = ql_hash_mix(lane[j], word);
        }
    uint64_t hash = ql_hash(data + 4 * quarter, bytes - 4 * quarter);
    for (size_t j = 0; j < 4; j++)
        hash = ql_hash_mix(hash, lane[j]);
    return hash;
}

static void hash_one(void *ctx, size_t index, size_t worker)
{
    const sum_job *job = ctx;
    (void)worker;
    if (job->file) {
        const ql_tensor *t = ql_tensors_at(job->file, index);
        const char *record = ql_tensors_metadata(job->file, t->name);
        job->hash[index] = mix_text(mix_text(hash_bytes(t->data, t->bytes), t->name), record ? record : "");
    } else {
        const entry *k = &job->kept[index];
        job->hash[index] = mix_text(mix_text(hash_bytes(k->weight->memory, k->weight->bytes), k->name), k->record);
    }
}

/* Of the tensors of a file, or of weights that were kept; in whatever order. False when out of memory. */
static bool checksum(char out[VALUE_BYTES], const ql_tensors *file, const entry *kept, size_t count, ql_workers *workers)
{
    sum_job job = {file, kept, calloc(count + 1, sizeof *job.hash)};
    if (!job.hash)
        return false;
    ql_parallel(workers, count, hash_one, &job);
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += ql_hash_mix(job.hash[i], count);
    free(job.hash);
    snprintf(out, VALUE_BYTES, "%zu weights, %016" PRIx64, count, sum);
    return true;
}

/* ---- reading and writing ---- */

static ql_status check_identity(const ql_cache *cache, const ql_tensors *file, ql_error *err)
{
    for (int i = 0; i < IDENTITY; i++) {
        const char *there = ql_tensors_metadata(file, cache->identity[i].key);
        if (there && strcmp(there, cache->value[i]) == 0)
            continue;
        return ql_fail(err, QL_ERR_FORMAT, "its %s is %s, not %s", cache->identity[i].key, there ? there : "missing",
                       cache->value[i]);
    }
    return QL_OK;
}

static ql_status check_weights(const ql_tensors *file, ql_workers *workers, ql_error *err)
{
    char sum[VALUE_BYTES];
    const char *wanted = ql_tensors_metadata(file, "checksum");
    if (!checksum(sum, file, NULL, ql_tensors_count(file), workers))
        return ql_fail(err, QL_ERR_MEMORY, "out of memory");
    if (!wanted || strcmp(sum, wanted) != 0)
        return ql_fail(err, QL_ERR_FORMAT, "it is damaged: its bytes have the checksum %s, not %s", sum,
                       wanted ? wanted : "(none)");
    for (size_t i = 0; i < ql_tensors_count(file); i++) {
        const ql_tensor *t = ql_tensors_at(file, i);
        ql_packing packing;
        ql_weight *weight;
        if ((uintptr_t)t->data % QL_ALIGN || !read_record(&packing, ql_tensors_metadata(file, t->name)) ||
            ql_weight_from_packed(&weight, &packing, t->name, t->data, t->bytes, NULL))
            return ql_fail(err, QL_ERR_FORMAT, "it is damaged: weight %s is not what it is said to be", t->name);
        ql_weight_destroy(weight);
    }
    return QL_OK;
}

/* Leaves cache->file NULL, and says why, when the file is not there or not right. */
static void try_file(ql_cache *cache, ql_workers *workers)
{
    ql_model_cache *public = cache->public;
    ql_error why = {0};
    if (!ql_path_is_file(public->path)) {
        snprintf(public->reason, sizeof public->reason, "%.700s: not there yet", public->path);
        return;
    }
    ql_status status = ql_tensors_open(&cache->file, public->path, &why);
    bool opened = !status;
    status = status ? status : check_identity(cache, cache->file, &why);
    status = status ? status : check_weights(cache->file, workers, &why);
    if (!status)
        return;
    snprintf(public->reason, sizeof public->reason, "%.300s%s%.600s", opened ? public->path : "", opened ? ": " : "",
             why.message);
    ql_tensors_close(cache->file);
    cache->file = NULL;
}

ql_status ql_cache_open(ql_cache **out, ql_model_cache *public, const ql_model *model, const char *path,
                        ql_workers *workers, ql_error *err)
{
    *out = NULL;
    ql_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return ql_fail(err, QL_ERR_MEMORY, "cache: out of memory");
    cache->public = public;
    describe(cache, model);
    ql_status status = name_file(cache, path, err);
    if (!status)
        status = ql_path_make_folder(public->dir, err);
    if (status) {
        ql_cache_free(cache);
        return status;
    }
    try_file(cache, workers);
    *out = cache;
    return QL_OK;
}

static ql_status write_file(const ql_cache *cache, ql_workers *workers, ql_error *err)
{
    size_t pairs = IDENTITY + 1 + cache->count;
    ql_tensor *tensors = calloc(cache->count + 1, sizeof *tensors);
    ql_metadata *metadata = calloc(pairs, sizeof *metadata);
    char sum[VALUE_BYTES];
    ql_status status = QL_ERR_MEMORY;
    if (tensors && metadata && checksum(sum, NULL, cache->kept, cache->count, workers)) {
        memcpy(metadata, cache->identity, sizeof cache->identity);
        metadata[IDENTITY] = (ql_metadata){"checksum", sum};
        for (size_t i = 0; i < cache->count; i++) {
            const entry *k = &cache->kept[i];
            metadata[IDENTITY + 1 + i] = (ql_metadata){k->name, k->record};
            tensors[i] = (ql_tensor){.name = k->name, .dtype = QL_U8, .ndim = 1, .shape = {k->weight->bytes},
                                     .data = k->weight->memory};
        }
        status = ql_safetensors_write_aligned(cache->public->path, tensors, cache->count, metadata, pairs, ALIGNMENT, err);
    } else {
        ql_fail(err, status, "%s: out of memory", cache->public->path);
    }
    free(tensors);
    free(metadata);
    return status;
}

void ql_cache_finish(ql_cache *cache, ql_model *model, ql_workers *workers)
{
    if (!cache)
        return;
    ql_model_cache *public = cache->public;
    ql_error why = {0};
    if (cache->file) {
        model->packed = cache->file;
        cache->file = NULL;
        public->used = true;
    } else if (!cache->count) {
        snprintf(public->reason, sizeof public->reason, "the weights are used as they are stored: there is nothing to keep");
    } else if (write_file(cache, workers, &why)) {
        snprintf(public->reason, sizeof public->reason, "not written: %.900s", why.message);
    } else {
        public->written = true;
    }
}

void ql_cache_free(ql_cache *cache)
{
    if (!cache)
        return;
    for (size_t i = 0; i < cache->count; i++)
        free(cache->kept[i].name);
    free(cache->kept);
    ql_tensors_close(cache->file);
    free(cache);
}
