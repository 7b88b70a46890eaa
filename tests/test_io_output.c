/* Files out: the bytes of a safetensors file, and that a file is there whole or as it was before. */
#define _GNU_SOURCE
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/map.h"
#include "io/output.h"
#include "io/path.h"
#include "qlora/io.h"

static void assert_content(const char *path, const void *bytes, size_t size)
{
    ql_map map;
    ql_error err = {0};
    ck_assert_ok(ql_map_open(&map, path, &err), &err);
    ck_assert_uint_eq(map.size, size);
    ck_assert_mem_eq(map.data, bytes, size);
    ql_map_close(&map);
}

static size_t files_in(const char *folder)
{
    size_t count = 0;
    DIR *dir = opendir(folder);
    ck_assert_ptr_nonnull(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static const struct {
    float b[6], s;
    int64_t a[3];
    uint8_t z[5];
    uint32_t c[5];
    int32_t i[2];
    uint16_t h[2];
    uint8_t k[2];
    int8_t m[1];
} values = {
    .s = 3,
    .a = {0, 1, 2},
    .z = {1, 1, 1, 1, 1},
    .c = {0, 1, 2, 3, 4},
    .i = {0, 1},
    .h = {0, 0x3c00},
    .k = {1, 0},
    .m = {-1},
};

static const ql_tensor tensors[] = {
    {.name = "b", .dtype = QL_F32, .ndim = 2, .shape = {2, 3}, .data = values.b},
    {.name = "a", .dtype = QL_I64, .ndim = 1, .shape = {3}, .data = values.a},
    {.name = "z/\xc3\xbc\"\x01", .dtype = QL_U8, .ndim = 1, .shape = {5}, .data = values.z},
    {.name = "q", .dtype = QL_F64, .ndim = 2, .shape = {0, 4}},
    {.name = "s", .dtype = QL_F32, .data = &values.s},
    {.name = "c", .dtype = QL_U32, .ndim = 1, .shape = {5}, .data = values.c},
    {.name = "i", .dtype = QL_I32, .ndim = 1, .shape = {2}, .data = values.i},
    {.name = "h", .dtype = QL_F16, .ndim = 1, .shape = {2}, .data = values.h},
    {.name = "k", .dtype = QL_BOOL, .ndim = 1, .shape = {2}, .data = values.k},
    {.name = "m", .dtype = QL_I8, .ndim = 1, .shape = {1}, .data = values.m},
};
#define COUNT (sizeof tensors / sizeof *tensors)
static const ql_metadata format = {"format", "pt"};

/* What safetensors 0.8.0 for Python writes for the same tensors (the data follow the header). */
static const char expected_header[] =
    "\x58\x02\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
    "\"a\":{\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[0,24]},"
    "\"q\":{\"dtype\":\"F64\",\"shape\":[0,4],\"data_offsets\":[24,24]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,48]},"
    "\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[48,52]},"
    "\"c\":{\"dtype\":\"U32\",\"shape\":[5],\"data_offsets\":[52,72]},"
    "\"i\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[72,80]},"
    "\"h\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[80,84]},"
    "\"m\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[84,85]},"
    "\"z/\xc3\xbc\\\"\\u0001\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[85,90]},"
    "\"k\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[90,92]}}      ";
static const char expected_data[] =
    "\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
    "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0@@\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0"
    "\0\0\0\0\1\0\0\0\0\0\0<\xff\1\1\1\1\1\1";

START_TEST(safetensors_bytes_are_the_reference_s)
{
    char *folder = test_folder(), bytes[sizeof expected_header - 1 + sizeof expected_data];
    char *path = ql_path_join(folder, "t.safetensors");
    ql_error err = {0};
    memcpy(bytes, expected_header, sizeof expected_header - 1);
    memcpy(bytes + sizeof expected_header - 1, expected_data, sizeof expected_data); /* the last byte is a zero */
    ck_assert_ok(ql_safetensors_write(path, tensors, COUNT, &format, 1, &err), &err);
    assert_content(path, bytes, sizeof bytes);
    ck_assert_uint_eq(files_in(folder), 1);

    ql_tensors *back;
    ck_assert_ok(ql_tensors_open(&back, path, &err), &err);
    ck_assert_uint_eq(ql_tensors_count(back), COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        const ql_tensor *tensor;
        ck_assert_ok(ql_tensors_need(&tensor, back, tensors[i].name, tensors[i].ndim, tensors[i].shape, &err), &err);
        ck_assert_int_eq(tensor->dtype, tensors[i].dtype);
        ck_assert(tensor->bytes == 0 || memcmp(tensor->data, tensors[i].data, tensor->bytes) == 0);
    }
    ck_assert_str_eq(ql_tensors_metadata(back, "format"), "pt");
    ql_tensors_close(back);

    ck_assert_ok(ql_safetensors_write(path, NULL, 0, NULL, 0, &err), &err);
    assert_content(path, "\x08\0\0\0\0\0\0\0{}      ", 16);
    free(path);
    test_folder_remove(folder);
}
END_TEST

/* A file that the reference implementation wrote comes out the same when its tensors are written again. */
START_TEST(rewrites_reference_files)
{
    static const char *const names[] = {"models/stories260K-hf/model.safetensors",
                                        "models/stories260K-hf-f16/model.safetensors",
                                        "finetune-reference/qlora-nf4-all/adapter_final/adapter_model.safetensors",
                                        "peft/gpt2-lora-r8/adapter_model.safetensors"};
    char *folder = test_folder(), *path = ql_path_join(folder, "again.safetensors");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *source = test_data(names[i]);
        if (!source)
            continue;
        ql_error err = {0};
        ql_tensors *read;
        ql_map map;
        ck_assert_ok(ql_tensors_open(&read, source, &err), &err);
        size_t count = ql_tensors_count(read);
        ql_tensor *list = calloc(count, sizeof *list);
        for (size_t j = 0; j < count; j++)
            list[j] = *ql_tensors_at(read, (j * 11 + 3) % count); /* 11 divides none of the counts */
        ck_assert_ok(ql_safetensors_write(path, list, count, &format, 1, &err), &err);
        ck_assert_ok(ql_map_open(&map, source, &err), &err);
        assert_content(path, map.data, map.size);
        ql_map_close(&map);
        free(list);
        ql_tensors_close(read);
    }
    free(path);
    test_folder_remove(folder);
}
END_TEST

START_TEST(refuses_what_it_cannot_write)
{
    static const struct {
        ql_tensor tensor;
        ql_status status;
        const char *words;
    } cases[] = {
        {{.name = NULL}, QL_ERR_ARG, "name"},
        {{.name = "__metadata__"}, QL_ERR_ARG, "__metadata__"},
        {{.name = "a\xff", .data = "1234"}, QL_ERR_ARG, "name"},
        {{.name = "x", .foreign = true, .data = "1234"}, QL_ERR_UNSUPPORTED, "tensor x"},
        {{.name = "x", .dtype = (ql_dtype)99, .data = "1234"}, QL_ERR_UNSUPPORTED, "tensor x"},
        {{.name = "x", .ndim = 9, .data = "1234"}, QL_ERR_SHAPE, "tensor x"},
        {{.name = "x", .ndim = 2, .shape = {SIZE_MAX, 2}, .data = "1234"}, QL_ERR_SHAPE, "tensor x"},
        {{.name = "x", .ndim = 1, .shape = {SIZE_MAX / 2}, .data = "1234"}, QL_ERR_SHAPE, "tensor x"},
        {{.name = "x", .ndim = 1, .shape = {3}}, QL_ERR_ARG, "no data"},
        {{.name = "s", .dtype = QL_F16, .data = "1234"}, QL_ERR_ARG, "tensor s is given twice"},
    };
    char *folder = test_folder(), *path = ql_path_join(folder, "t.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ql_error err = {0};
        ql_tensor list[2] = {tensors[4], cases[i].tensor};
        ck_assert_fails(ql_safetensors_write(path, list, 2, NULL, 0, &err), cases[i].status, &err, cases[i].words);
    }
    ql_error err = {0};
    ql_metadata twice[2] = {format, format};
    ck_assert_fails(ql_safetensors_write(path, tensors, 1, twice, 2, &err), QL_ERR_ARG, &err, "metadata 1");
    ck_assert_fails(ql_safetensors_write(folder, tensors, 1, NULL, 0, &err), QL_ERR_IO, &err, "Is a directory");
    ck_assert_fails(ql_safetensors_write("/dev/null", tensors, 1, NULL, 0, &err), QL_ERR_IO, &err, "/dev/null");
    ck_assert_fails(ql_safetensors_write("/nowhere/t", tensors, 1, NULL, 0, &err), QL_ERR_IO, &err, "No such file");
    ck_assert_uint_eq(files_in(folder), 0);
    free(path);
    test_folder_remove(folder);
}
END_TEST

START_TEST(commit_replaces_and_abort_leaves)
{
    char *folder = test_folder();
    const char *path = test_file(folder, "out", "before", 6);
    ql_output output;
    ql_error err = {0};
    struct stat info;
    umask(027);
    ck_assert_ok(ql_output_open(&output, path, &err), &err);
    ql_output_write(&output, "after", 5);
    ck_assert_uint_eq(files_in(folder), 2);
    ql_output_abort(&output);
    ql_output_abort(&output);
    assert_content(path, "before", 6);
    ck_assert_uint_eq(files_in(folder), 1);

    ck_assert_ok(ql_output_open(&output, path, &err), &err);
    ql_output_write(&output, "after", 5);
    ql_output_printf(&output, " %d", 7);
    assert_content(path, "before", 6);
    ck_assert_ok(ql_output_commit(&output, &err), &err);
    assert_content(path, "after 7", 7);
    ck_assert_uint_eq(files_in(folder), 1);
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777, 0640);
    test_folder_remove(folder);
}
END_TEST

START_TEST(discarded_outputs_leave_nothing)
{
    char *folder = test_folder(), *paths[20];
    ql_output outputs[20];
    ql_error err = {0};
    for (size_t i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "out%zu", i);
        paths[i] = strdup(test_file(folder, name, "before", 6));
        ck_assert_ok(ql_output_open(&outputs[i], paths[i], &err), &err);
        ql_output_write(&outputs[i], "after", 5);
    }
    ck_assert_ok(ql_output_commit(&outputs[3], &err), &err);
    ck_assert_uint_eq(files_in(folder), 39);
    ql_outputs_discard();
    ck_assert_uint_eq(files_in(folder), 24); /* 16 were noted, one of these is done */
    ql_outputs_discard();
    ck_assert_fails(ql_output_commit(&outputs[0], &err), QL_ERR_IO, &err, "what was there is untouched");
    for (size_t i = 1; i < 20; i++)
        ql_output_abort(&outputs[i]);
    ck_assert_uint_eq(files_in(folder), 20);
    for (size_t i = 0; i < 20; i++) {
        assert_content(paths[i], i == 3 ? "after" : "before", i == 3 ? 5 : 6);
        free(paths[i]);
    }
    test_folder_remove(folder);
}
END_TEST

/* Writes more than fits and expects the message, the old file and nothing else. */
static void assert_full(const char *folder, const char *path, const char *words)
{
    static float big[1 << 18];
    ql_tensor tensor = {.name = "big", .dtype = QL_F32, .ndim = 1, .shape = {1 << 18}, .data = big};
    ql_error err = {0};
    ql_output output;
    ql_json json = {0};
    ck_assert_fails(ql_safetensors_write(path, &tensor, 1, NULL, 0, &err), QL_ERR_IO, &err, words);
    ck_assert_ptr_nonnull(strstr(err.message, path));
    assert_content(path, "before", 6);

    ck_assert_ok(ql_output_open(&output, path, &err), &err);
    for (int i = 0; i < 100000; i++)
        ql_output_printf(&output, "line %d\n", i);
    ck_assert_fails(ql_output_commit(&output, &err), QL_ERR_IO, &err, words);

    ql_json_array(&json, NULL);
    for (int i = 0; i < 100000; i++)
        ql_json_integer(&json, NULL, i);
    ql_json_end(&json);
    ck_assert_fails(ql_json_write(&json, path, &err), QL_ERR_IO, &err, words);
    ql_json_free(&json);
    assert_content(path, "before", 6);
    ck_assert_uint_eq(files_in(folder), 1);
}

START_TEST(a_limit_of_size_loses_nothing)
{
    char *folder = test_folder();
    const char *path = test_file(folder, "model.safetensors", "before", 6);
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &(struct rlimit){200000, before.rlim_max}), 0);
    assert_full(folder, path, "File too large");
    setrlimit(RLIMIT_FSIZE, &before);
    test_folder_remove(folder);
}
END_TEST

START_TEST(a_full_disk_loses_nothing)
{
    char *folder = test_folder();
    if (unshare(CLONE_NEWNS) || mount("none", "/", "none", MS_REC | MS_PRIVATE, "") ||
        mount("tmpfs", folder, "tmpfs", 0, "size=256k")) {
        printf("skipped: a full disk (no right to mount one)\n");
    } else {
        const char *path = test_file(folder, "model.safetensors", "before", 6);
        assert_full(folder, path, "No space left");
        ck_assert_int_eq(umount(folder), 0);
    }
    test_folder_remove(folder);
}
END_TEST

START_TEST(json_lines_report_a_full_device)
{
    FILE *full = fopen("/dev/full", "w");
    if (!full) {
        printf("skipped: /dev/full is not there\n");
        return;
    }
    ql_json json = {0};
    ql_error err = {0};
    ql_json_null(&json, NULL);
    ck_assert_fails(ql_json_line(&json, full, "log.jsonl", &err), QL_ERR_IO, &err, "log.jsonl: cannot write: No space");
    ck_assert_uint_eq(json.length, 0);
    ql_json_free(&json);
    fclose(full);
}
END_TEST

START_TEST(paths_and_folders)
{
    static const char *const joined[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}, {"a//", "b", "a//b"}};
    for (size_t i = 0; i < sizeof joined / sizeof *joined; i++) {
        char *path = ql_path_join(joined[i][0], joined[i][1]);
        ck_assert_str_eq(path, joined[i][2]);
        free(path);
    }
    char *folder = test_folder(), *deep = ql_path_join(folder, "one/two//three/"), *below;
    const char *file = test_file(folder, "file", "x", 1);
    ql_error err = {0};
    ck_assert_ok(ql_path_make_folder(deep, &err), &err);
    ck_assert_ok(ql_path_make_folder(deep, &err), &err);
    ck_assert(ql_path_is_folder(deep) && !ql_path_is_file(deep) && ql_path_is_file(file) && !ql_path_is_folder(file));
    ck_assert_fails(ql_path_make_folder(file, &err), QL_ERR_IO, &err, "file: File exists");
    below = ql_path_join(file, "below");
    ck_assert_fails(ql_path_make_folder(below, &err), QL_ERR_IO, &err, "Not a directory");
    free(below);
    free(deep);
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_output");
    TCase *tests = tcase_create("output");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, safetensors_bytes_are_the_reference_s);
    tcase_add_test(tests, rewrites_reference_files);
    tcase_add_test(tests, refuses_what_it_cannot_write);
    tcase_add_test(tests, commit_replaces_and_abort_leaves);
    tcase_add_test(tests, discarded_outputs_leave_nothing);
    tcase_add_test(tests, a_limit_of_size_loses_nothing);
    tcase_add_test(tests, a_full_disk_loses_nothing);
    tcase_add_test(tests, json_lines_report_a_full_device);
    tcase_add_test(tests, paths_and_folders);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
