#define _GNU_SOURCE
#include "support.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *test_data(const char *name)
{
    static char paths[8][1024];
    static unsigned next;
    char *path = paths[next++ % 8];
    const char *data = getenv("QLORA_TEST_DATA"), *root = getenv("QLORA_SOURCE_ROOT");
    if (data)
        snprintf(path, sizeof paths[0], "%s/%s", data, name);
    else
        snprintf(path, sizeof paths[0], "%s/../shared/data/%s", root ? root : ".", name);
    if (access(path, R_OK) == 0)
        return path;
    printf("skipped: %s is not there\n", path);
    return NULL;
}

char *test_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    char *path;
    if (asprintf(&path, "%s/qlora-test-XXXXXX", tmp ? tmp : "/tmp") < 0 || !mkdtemp(path))
        ck_abort_msg("no temporary folder");
    return path;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info, (void)type, (void)where;
    return remove(path);
}

void test_folder_remove(char *folder)
{
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(folder);
}

const char *test_file(const char *folder, const char *name, const void *data, size_t bytes)
{
    static char paths[8][1024];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    remove(path); /* some file systems flush a file that is cut and written again */
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0, "cannot write %s", path);
    return path;
}

int test_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
