#define _GNU_SOURCE
#include "fuzz.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIVIDER "\n%%%%\n"

void fuzz_stop(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: %s does not hold\n", file, line, condition);
    abort();
}

void fuzz_divide(fuzz_part *parts, size_t count, const uint8_t *data, size_t size)
{
    static const uint8_t nothing[1];
    for (size_t i = 0; i < count; i++) {
        size_t length = 0, after = size;
        while (length < size && (size - length < strlen(DIVIDER) || memcmp(data + length, DIVIDER, strlen(DIVIDER))))
            length++;
        if (length < size)
            after = length + strlen(DIVIDER);
        parts[i] = (fuzz_part){size ? data : nothing, i + 1 < count ? length : size};
        data += after;
        size -= after;
    }
}

static char folder[64];

static void remove_folder(void)
{
    char command[sizeof folder + 16];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command))
        fprintf(stderr, "%s is still there\n", folder);
}

const char *fuzz_folder(void)
{
    if (!folder[0]) {
        strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/qlora-fuzz-XXXXXX" : "/tmp/qlora-fuzz-XXXXXX");
        FUZZ_CHECK(mkdtemp(folder));
        atexit(remove_folder);
    }
    return folder;
}

static const char *path_of(const char *name)
{
    static char paths[8][PATH_MAX];
    static size_t next;
    char *path = paths[next++ % 8];
    snprintf(path, PATH_MAX, "%s/%s", fuzz_folder(), name);
    return path;
}

static void put(int fd, const void *data, size_t size)
{
    FUZZ_CHECK(write(fd, data, size) == (ssize_t)size);
}

static int create(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0);
    return fd;
}

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    int fd = create(path);
    put(fd, data, size);
    close(fd);
}

const char *fuzz_file(const char *name, fuzz_part content)
{
    const char *path = path_of(name);
    write_file(path, content.data, content.size);
    return path;
}

void fuzz_files(const char *const *names, const fuzz_part *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (parts[i].size)
            fuzz_file(names[i], parts[i]);
        else
            unlink(path_of(names[i]));
    }
}

const char *fuzz_safetensors(const char *name, fuzz_part header, fuzz_part data)
{
    const char *path = path_of(name);
    uint64_t length = header.size;
    int fd = create(path);
    put(fd, &length, sizeof length);
    put(fd, header.data, header.size);
    put(fd, data.data, data.size);
    close(fd);
    return path;
}

void fuzz_own_read(fuzz_own *own, const char *path)
{
    FILE *file = fopen(path, "rb");
    FUZZ_CHECK(file && (own->size = fread(own->data, 1, sizeof own->data, file)) > 0 && own->size < sizeof own->data);
    fclose(file);
}

void fuzz_own_change(fuzz_own *own, const char *path, const uint8_t *changes, size_t size)
{
    memcpy(own->changed, own->data, own->size);
    for (size_t i = 0; i + 2 < size; i += 3)
        own->changed[(size_t)(changes[i] << 8 | changes[i + 1]) % own->size] = changes[i + 2];
    write_file(path, own->changed, own->size);
}

bool fuzz_own_heal(fuzz_own *own, const char *path, const char *message)
{
    static const char before[] = " the checksum ", between[] = ", not ";
    const char *right = strstr(message, before), *wrong = right ? strstr(right, between) : NULL;
    if (!wrong)
        return false;
    right += strlen(before);
    size_t length = (size_t)(wrong - right);
    wrong += strlen(between);
    uint8_t *found = memmem(own->changed, own->size, wrong, strlen(wrong));
    if (!found || strlen(wrong) != length)
        return false;
    memcpy(found, right, length);
    write_file(path, own->changed, own->size);
    return true;
}

static void run(void *self, size_t count, ql_task *task, void *ctx)
{
    (void)self;
    for (size_t i = 0; i < count; i++)
        task(ctx, i, 0);
}

ql_workers *fuzz_workers(void)
{
    static ql_workers *workers;
    if (!workers)
        FUZZ_CHECK(ql_workers_adopt(&workers, 1, run, NULL, NULL) == QL_OK);
    return workers;
}

bool fuzz_went_well(ql_status status, const ql_error *err)
{
    if (status == QL_OK)
        return true;
    FUZZ_CHECK(status == err->status && err->message[0] && !strchr(err->message, '\n'));
    return false;
}
