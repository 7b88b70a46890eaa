#include "io/output.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "qlora/io.h"

/* Temporary files that are there now, for ql_outputs_discard(). Those without room here it does not remove. */
static _Atomic(char *) pending[16];
enum { PENDING = sizeof pending / sizeof *pending };

static void note(char *temp)
{
    for (size_t i = 0; i < PENDING; i++) {
        char *none = NULL;
        if (atomic_compare_exchange_strong(&pending[i], &none, temp))
            return;
    }
}

static void forget(char *temp)
{
    for (size_t i = 0; i < PENDING; i++) {
        char *noted = temp;
        if (atomic_compare_exchange_strong(&pending[i], &noted, NULL))
            return;
    }
}

void ql_outputs_discard(void)
{
    for (size_t i = 0; i < PENDING; i++) {
        const char *temp = atomic_exchange(&pending[i], NULL);
        if (temp)
            unlink(temp);
    }
}

static void release(ql_output *output)
{
    if (output->temp)
        forget(output->temp);
    free(output->path);
    free(output->temp);
    *output = (ql_output){0};
}

/* Not mkstemp: outputs get the permissions that the umask gives to any other new file. */
static FILE *create_beside(char *temp, size_t size, const char *path)
{
    int fd = -1;
    errno = EEXIST;
    for (unsigned attempt = 0; fd < 0 && errno == EEXIST && attempt < 1000; attempt++) {
        snprintf(temp, size, "%s.tmp-%ld-%u", path, (long)getpid(), attempt);
        note(temp); /* before it is there, so that no moment is without */
        fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0)
            forget(temp);
    }
    if (fd < 0)
        return NULL;
    FILE *file = fdopen(fd, "wb");
    if (!file) {
        unlink(temp);
        close(fd);
    }
    return file;
}

ql_status ql_output_open(ql_output *output, const char *path, ql_error *err)
{
    size_t size = strlen(path) + 48;
    *output = (ql_output){.path = strdup(path), .temp = malloc(size)};
    if (!output->path || !output->temp) {
        release(output);
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    }
    struct stat info;
    int error = 0;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        error = S_ISDIR(info.st_mode) ? EISDIR : EINVAL; /* renaming over a device would remove it */
    else if (!(output->file = create_beside(output->temp, size, path)))
        error = errno;
    if (!error)
        return QL_OK;
    release(output);
    return ql_fail(err, QL_ERR_IO, "%s: cannot write: %s", path, strerror(error));
}

static void keep_error(ql_output *output, bool failed)
{
    if (failed && !output->error)
        output->error = errno ? errno : EIO;
}

void ql_output_write(ql_output *output, const void *data, size_t bytes)
{
    errno = 0;
    output->written += bytes;
    if (!output->error && bytes > 0)
        keep_error(output, fwrite(data, 1, bytes, output->file) != bytes);
}

void ql_output_printf(ql_output *output, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    errno = 0;
    if (!output->error)
        keep_error(output, vfprintf(output->file, format, args) < 0);
    va_end(args);
}

/* Makes the new name durable. The file is in place by now: a failure here loses nothing. */
static void sync_folder(char *path)
{
    int fd = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

ql_status ql_output_commit(ql_output *output, ql_error *err)
{
    errno = 0;
    keep_error(output, fflush(output->file) != 0);
    keep_error(output, !output->error && fsync(fileno(output->file)) != 0);
    keep_error(output, fclose(output->file) != 0);
    keep_error(output, !output->error && rename(output->temp, output->path) != 0);
    ql_status status = QL_OK;
    if (output->error) {
        unlink(output->temp);
        status = ql_fail(err, QL_ERR_IO, "%s: cannot write: %s (what was there is untouched)", output->path,
                         strerror(output->error));
    } else {
        sync_folder(output->path);
    }
    release(output);
    return status;
}

void ql_output_abort(ql_output *output)
{
    if (output->file) {
        fclose(output->file);
        unlink(output->temp);
    }
    release(output);
}

ql_status ql_file_write(const char *path, const void *data, size_t bytes, ql_error *err)
{
    ql_output output;
    ql_status status = ql_output_open(&output, path, err);
    if (status)
        return status;
    ql_output_write(&output, data, bytes);
    return ql_output_commit(&output, err);
}
