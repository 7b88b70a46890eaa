/* Runs a fuzz program over files and folders of files, in the order of their names. A reader that asks for more memory
 * than any of the small files here can be worth ends the program. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

enum { MOST = 64 << 20 };

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static void check(size_t size)
{
    if (size > MOST)
        fprintf(stderr, "an allocation of %zu bytes\n", size), abort();
}

void *__wrap_malloc(size_t size)
{
    check(size);
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    size_t all;
    check(__builtin_mul_overflow(count, size, &all) ? SIZE_MAX : all);
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    check(size);
    return __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    check(size);
    return __real_aligned_alloc(alignment, size);
}

/* From a copy of exactly the file's size, so that sanitizers see what is read beyond it. */
static void run_file(const char *path)
{
    struct stat info;
    FILE *file = fopen(path, "rb");
    FUZZ_CHECK(file && fstat(fileno(file), &info) == 0);
    size_t size = (size_t)info.st_size;
    uint8_t *data = malloc(size);
    FUZZ_CHECK((data || !size) && fread(data, 1, size, file) == size);
    fclose(file);
    fprintf(stderr, "%s\n", path); /* for whoever has to find out which one it was */
    LLVMFuzzerTestOneInput(data, size);
    free(data);
}

static int run_folder(const char *path)
{
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort), run = 0;
    FUZZ_CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        char *file;
        FUZZ_CHECK(asprintf(&file, "%s/%s", path, names[i]->d_name) > 0);
        if (names[i]->d_name[0] != '.') {
            run_file(file);
            run++;
        }
        free(file);
        free(names[i]);
    }
    free(names);
    return run;
}

int main(int argc, char **argv)
{
    int run = 0;
    for (int i = 1; i < argc; i++) {
        struct stat info;
        FUZZ_CHECK(stat(argv[i], &info) == 0);
        if (S_ISDIR(info.st_mode))
            run += run_folder(argv[i]);
        else
            run_file(argv[i]), run++;
    }
    printf("%d inputs\n", run);
    return run == 0;
}
