/* Reading safetensors: every way in which a file may lie. */
#define _GNU_SOURCE
#include "support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/rng.h"
#include "qlora/io.h"

/* Prefix, header and `data` zero bytes as one file image; free() it. */
static unsigned char *image(const char *header, size_t data, size_t *size)
{
    size_t length = strlen(header);
    *size = 8 + length + data;
    unsigned char *bytes = calloc(1, *size);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    return bytes;
}

static const char *put(const char *folder, const char *name, const char *header, size_t data)
{
    size_t size;
    unsigned char *bytes = image(header, data, &size);
    const char *path = test_file(folder, name, bytes, size);
    free(bytes);
    return path;
}

static ql_status try_open(const char *path, ql_error *err)
{
    ql_tensors *tensors;
    ql_status status = ql_tensors_open(&tensors, path, err);
    ck_assert((status == QL_OK) == (tensors != NULL));
    ql_tensors_close(tensors);
    return status;
}

#define T(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

START_TEST(refuses_lying_headers)
{
    static const struct {
        const char *header;
        size_t data;
        ql_status status;
        const char *words;
    } cases[] = {
        {"", 0, QL_ERR_FORMAT, "not a JSON object"},
        {"[]", 0, QL_ERR_FORMAT, "not a JSON object"},
        {" {}", 0, QL_ERR_FORMAT, "not a JSON object"},
        {"{", 0, QL_ERR_FORMAT, "t.safetensors:1:1"},
        {"{} x", 0, QL_ERR_FORMAT, "end of file expected"},
        {"{\"\xff\":1}", 0, QL_ERR_FORMAT, "UTF-8"},
        {"{}", 3, QL_ERR_FORMAT, "the last 3 bytes belong to no tensor"},
        {"{\"a\":1}", 0, QL_ERR_FORMAT, "a: expected an object, got 1"},
        {"{\"a\":{}}", 0, QL_ERR_FORMAT, "a.dtype is missing"},
        {"{\"a\":" T("F32", "[2]", "[0,8]") ",\"a\":" T("F32", "[0]", "[8,8]") "}", 8, QL_ERR_FORMAT, "duplicate"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, QL_ERR_FORMAT, "a.dtype: expected a string"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, QL_ERR_FORMAT, "a.shape is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, QL_ERR_FORMAT, "a.data_offsets is missing"},
        {"{\"a\":" T("F32", "[-1]", "[0,4]") "}", 4, QL_ERR_FORMAT, "a.shape[0]: expected an integer"},
        {"{\"a\":" T("F32", "[1.5]", "[0,4]") "}", 4, QL_ERR_FORMAT, "got 1.5"},
        {"{\"a\":" T("F32", "[\"1\"]", "[0,4]") "}", 4, QL_ERR_FORMAT, "got \"1\""},
        {"{\"a\":" T("F32", "{}", "[0,4]") "}", 4, QL_ERR_FORMAT, "a.shape: expected an array"},
        {"{\"a\":" T("F32", "[2]", "[0,4]") "}", 4, QL_ERR_FORMAT, "need 8 bytes, its data_offsets span 4"},
        {"{\"a\":" T("F32", "[1]", "[0,8]") "}", 8, QL_ERR_FORMAT, "need 4 bytes, its data_offsets span 8"},
        {"{\"a\":" T("F32", "[]", "[0,0]") "}", 0, QL_ERR_FORMAT, "need 4 bytes"},
        {"{\"a\":" T("F4", "[3]", "[0,1]") "}", 1, QL_ERR_FORMAT, "need 2 bytes"},
        {"{\"a\":" T("F4", "[3]", "[0,2]") "}", 2, QL_ERR_FORMAT, "tensor a"},
        {"{\"a\":" T("F32", "[1]", "[0,4,4]") "}", 4, QL_ERR_FORMAT, "two numbers"},
        {"{\"a\":" T("F32", "[1]", "[4,0]") "}", 4, QL_ERR_FORMAT, "outside"},
        {"{\"a\":" T("F32", "[1]", "[1,5]") "}", 4, QL_ERR_FORMAT, "outside of the 4 bytes of data"},
        {"{\"a\":" T("F32", "[1]", "[-4,0]") "}", 4, QL_ERR_FORMAT, "data_offsets[0]"},
        {"{\"a\":" T("F32", "[1]", "[18446744073709551612,18446744073709551616]") "}", 4, QL_ERR_FORMAT,
         "data_offsets[0]"},
        {"{\"a\":" T("F32", "[1]", "[9223372036854775803,9223372036854775807]") "}", 4, QL_ERR_FORMAT, "outside"},
        {"{\"a\":" T("F32", "[4294967296,4294967296]", "[0,0]") "}", 0, QL_ERR_FORMAT, "overflows"},
        {"{\"a\":" T("F64", "[4611686018427387904]", "[0,0]") "}", 0, QL_ERR_FORMAT, "overflows"},
        {"{\"a\":" T("U8", "[4611686018427387904,2,2]", "[0,4]") "}", 4, QL_ERR_FORMAT, "overflows"},
        {"{\"a\":" T("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, QL_ERR_UNSUPPORTED, "9 dimensions"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[2,6]") "}", 6, QL_ERR_FORMAT,
         "tensors a and b overlap at byte 2"},
        {"{\"b\":" T("F32", "[1]", "[5,9]") ",\"a\":" T("F32", "[1]", "[0,4]") "}", 9, QL_ERR_FORMAT,
         "1 bytes before tensor b belong to no tensor"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[0,4]") "}", 4, QL_ERR_FORMAT, "overlap"},
        {"{\"a\":null}", 0, QL_ERR_FORMAT, "a: expected an object, got null"},
        {"{\"__metadata__\":[]}", 0, QL_ERR_FORMAT, "__metadata__: expected an object"},
        {"{\"__metadata__\":{\"k\":1}}", 0, QL_ERR_FORMAT, "__metadata__.k: expected a string"},
    };
    char *folder = test_folder();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ql_error err = {0};
        const char *path = put(folder, "t.safetensors", cases[i].header, cases[i].data);
        ck_assert_fails(try_open(path, &err), cases[i].status, &err, cases[i].words);
        ck_assert_msg(strstr(err.message, "t.safetensors"), "no file name in: %s", err.message);
    }
    test_folder_remove(folder);
}
END_TEST

START_TEST(refuses_other_files)
{
    static const struct {
        const char *bytes;
        size_t size;
        ql_status status;
        const char *words;
    } cases[] = {
        {"", 0, QL_ERR_FORMAT, "0 bytes are too few"},
        {"\2\0\0\0\0\0\0", 7, QL_ERR_FORMAT, "7 bytes are too few"},
        {"\3\0\0\0\0\0\0\0{}", 10, QL_ERR_FORMAT, "a header of 3 bytes does not fit"},
        {"\0\0\0\0\0\0\0\x80{}", 10, QL_ERR_FORMAT, "does not fit"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, QL_ERR_FORMAT, "does not fit"},
        {"GGUF\1\0\0\0....", 12, QL_ERR_UNSUPPORTED, "GGUF version 1"},
        {"PK\3\4........", 12, QL_ERR_UNSUPPORTED, "PyTorch"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:", 55, QL_ERR_UNSUPPORTED, "git lfs pull"},
    };
    char *folder = test_folder(), path[1024];
    ql_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_fails(try_open(test_file(folder, "t.safetensors", cases[i].bytes, cases[i].size), &err),
                        cases[i].status, &err, cases[i].words);
    ck_assert_fails(try_open(folder, &err), QL_ERR_IO, &err, "neither model.safetensors nor");
    snprintf(path, sizeof path, "%s/absent.safetensors", folder);
    ck_assert_fails(try_open(path, &err), QL_ERR_IO, &err, "absent.safetensors: No such file");
    ck_assert_fails(try_open("/dev/null", &err), QL_ERR_IO, &err, "/dev/null: not a regular file");
    test_folder_remove(folder);
}
END_TEST

START_TEST(lists_what_it_does_not_know)
{
    char *folder = test_folder();
    ql_error err = {0};
    ql_tensors *tensors;
    const ql_tensor *tensor;
    const char *path = put(
        folder, "t.safetensors",
        "{\"__metadata__\":{\"format\":\"pt\"},\"none\":" T("F32", "[0,3]", "[0,0]") ",\"f8\":" T(
            "F8_E4M3", "[2]", "[0,2]") ",\"new\":" T("X9", "[5]", "[2,5]") ",\"one\":" T("F64", "[]", "[5,13]") "}   ",
        13);
    ck_assert_ok(ql_tensors_open(&tensors, path, &err), &err);
    ck_assert_str_eq(ql_tensors_path(tensors), path);
    ck_assert_uint_eq(ql_tensors_count(tensors), 4);
    ck_assert_str_eq(ql_tensors_metadata(tensors, "format"), "pt");
    ck_assert_ptr_null(ql_tensors_metadata(tensors, "other"));
    ck_assert_str_eq(ql_tensors_at(tensors, 0)->name, "none");
    ck_assert_str_eq(ql_tensors_at(tensors, 3)->name, "one");
    ck_assert_ptr_null(ql_tensors_at(tensors, 4));
    ck_assert_ptr_null(ql_tensors_find(tensors, "__metadata__"));
    ck_assert(ql_tensors_find(tensors, "f8")->foreign && !ql_tensors_find(tensors, "one")->foreign);
    ck_assert_uint_eq(ql_tensor_elements(ql_tensors_find(tensors, "one")), 1);
    ck_assert_uint_eq(ql_tensor_elements(ql_tensors_find(tensors, "none")), 0);
    ck_assert_ptr_null(ql_tensors_find(tensors, "none")->data);

    ck_assert_fails(ql_tensors_need(&tensor, tensors, "f8", 0, NULL, &err), QL_ERR_UNSUPPORTED, &err,
                    "tensor f8 has the type F8_E4M3, which is not supported");
    ck_assert_fails(ql_tensors_need(&tensor, tensors, "new", 0, NULL, &err), QL_ERR_UNSUPPORTED, &err, "type X9");
    ck_assert_fails(ql_tensors_need(&tensor, tensors, "lm_head", 0, NULL, &err), QL_ERR_FORMAT, &err,
                    "t.safetensors: there is no tensor lm_head");
    ck_assert_fails(ql_tensors_need(&tensor, tensors, "none", 2, (size_t[]){1, 3}, &err), QL_ERR_SHAPE, &err,
                    "tensor none has the shape [0, 3], the model needs [1, 3]");
    ck_assert_fails(ql_tensors_need(&tensor, tensors, "one", 1, (size_t[]){1}, &err), QL_ERR_SHAPE, &err, "shape []");
    ck_assert_ptr_null(tensor);
    ck_assert_ok(ql_tensors_need(&tensor, tensors, "none", 2, (size_t[]){0, 3}, &err), &err);
    float x;
    ck_assert_fails(ql_tensor_read_f32(ql_tensors_find(tensors, "f8"), 0, 1, &x, &err), QL_ERR_UNSUPPORTED, &err, "f8");
    ck_assert_fails(ql_tensor_read_f32(tensor, 0, 1, &x, &err), QL_ERR_ARG, &err, "none");
    ck_assert_fails(ql_tensor_read_f32(ql_tensors_find(tensors, "one"), SIZE_MAX, 2, &x, &err), QL_ERR_ARG, &err,
                    "one");
    ql_tensors_close(tensors);
    test_folder_remove(folder);
}
END_TEST

START_TEST(names_cannot_break_the_message)
{
    char *folder = test_folder(), header[4096];
    ql_error err = {0};
    const char *path = put(folder, "t.safetensors", "{\"\\u001b[31m\\nred\":" T("F32", "[1]", "[0,8]") "}", 8);
    ck_assert_fails(try_open(path, &err), QL_ERR_FORMAT, &err, "tensor ?[31m?red: 1 elements");
    char *at = stpcpy(header, "{\"");
    for (int i = 0; i < 1000; i++)
        at = stpcpy(at, "\xc3\xa9"); /* cut where a message has room */
    strcpy(at, "\":" T("F32", "[1]", "[0,8]") "}");
    ck_assert_fails(try_open(put(folder, "t.safetensors", header, 8), &err), QL_ERR_FORMAT, &err,
                    "data_offsets span 8");
    ck_assert_uint_lt(strlen(err.message), 400);
    test_folder_remove(folder);
}
END_TEST

static void put_index(const char *folder, const char *text)
{
    test_file(folder, "model.safetensors.index.json", text, strlen(text));
}

START_TEST(reads_shards)
{
    char *folder = test_folder();
    ql_error err = {0};
    ql_tensors *tensors;
    put(folder, "model-1.safetensors", "{\"a\":" T("U8", "[2]", "[0,2]") ",\"c\":" T("U8", "[3]", "[2,5]") "}", 5);
    put(folder, "model-2.safetensors", "{\"__metadata__\":{\"k\":\"v\"},\"b\":" T("U8", "[4]", "[0,4]") "}", 4);
    put_index(folder, "{\"metadata\":{},\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\","
                      "\"c\":\"model-1.safetensors\"}}");
    ck_assert_ok(ql_tensors_open(&tensors, folder, &err), &err);
    ck_assert_uint_eq(ql_tensors_count(tensors), 3);
    ck_assert_str_eq(ql_tensors_at(tensors, 1)->name, "c");
    ck_assert_uint_eq(ql_tensors_find(tensors, "b")->bytes, 4);
    ck_assert_ptr_nonnull(strstr(ql_tensors_find(tensors, "b")->file, "model-2.safetensors"));
    ck_assert_str_eq(ql_tensors_metadata(tensors, "k"), "v");
    ql_tensors_close(tensors);

    char here[1024], path[1100];
    ck_assert_ptr_nonnull(getcwd(here, sizeof here));
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    ck_assert_ok(try_open(path, &err), &err);
    ck_assert_int_eq(chdir(folder), 0);
    ck_assert_ok(try_open("model.safetensors.index.json", &err), &err);
    ck_assert_int_eq(chdir(here), 0);
    test_folder_remove(folder);
}
END_TEST

START_TEST(refuses_lying_indexes)
{
    static const struct {
        const char *index;
        ql_status status;
        const char *words;
    } cases[] = {
        {"{}", QL_ERR_FORMAT, "index.json: weight_map is missing"},
        {"[]", QL_ERR_FORMAT, "index.json: expected an object"},
        {"", QL_ERR_FORMAT, "empty"},
        {"{\"weight_map\":{\"a\":7}}", QL_ERR_FORMAT, "weight_map.a: expected a string"},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", QL_ERR_IO, "gone.safetensors: No such file"},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", QL_ERR_FORMAT, "../one.safetensors\" is not the name"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", QL_ERR_FORMAT, "is not the name of a file beside the index"},
        {"{\"weight_map\":{\"a\":\"..\"}}", QL_ERR_FORMAT, "is not the name"},
        {"{\"weight_map\":{\"a\":\"\"}}", QL_ERR_FORMAT, "is not the name"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\\u0000x\"}}", QL_ERR_FORMAT, "without NUL"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"z\":\"one.safetensors\"}}", QL_ERR_FORMAT,
         "tensor z is not in one.safetensors"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\",\"c\":\"three.safetensors\"}}",
         QL_ERR_FORMAT, "tensor b is not in one.safetensors"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", QL_ERR_FORMAT,
         "tensor a is given twice, also in"},
        {"{\"weight_map\":{\"a\":\"model.safetensors.index.json\"}}", QL_ERR_FORMAT, "model.safetensors.index.json"},
    };
    char *folder = test_folder();
    put(folder, "one.safetensors", "{\"a\":" T("U8", "[2]", "[0,2]") "}", 2);
    put(folder, "two.safetensors", "{\"a\":" T("U8", "[2]", "[0,2]") ",\"b\":" T("U8", "[2]", "[2,4]") "}", 4);
    put(folder, "three.safetensors", "{\"b\":" T("U8", "[2]", "[0,2]") ",\"c\":" T("U8", "[2]", "[2,4]") "}", 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ql_error err = {0};
        put_index(folder, cases[i].index);
        ck_assert_fails(try_open(folder, &err), cases[i].status, &err, cases[i].words);
    }
    test_folder_remove(folder);
}
END_TEST

#define SMALL                                                                                                          \
    "{\"__metadata__\":{\"format\":\"pt\"},\"a.weight\":" T("F32", "[2,3]", "[0,24]") ",\"b\":" T(                     \
        "BF16", "[4]", "[24,32]") ",\"c\":" T("F8_E4M3", "[2]", "[32,34]") "}   "

/* Touches every byte that the reader hands out: the sanitizers see one that lies outside of the map. */
static size_t touch(const ql_tensors *tensors)
{
    size_t sum = 0;
    for (size_t i = 0; i < ql_tensors_count(tensors); i++) {
        const ql_tensor *tensor = ql_tensors_at(tensors, i);
        ck_assert_ptr_eq(ql_tensors_find(tensors, tensor->name), tensor);
        ck_assert(tensor->foreign || ql_tensor_elements(tensor) * ql_dtype_size(tensor->dtype) == tensor->bytes);
        for (size_t j = 0; j < tensor->bytes; j++)
            sum += ((const unsigned char *)tensor->data)[j];
    }
    return sum;
}

START_TEST(every_truncation_is_an_error)
{
    char *folder = test_folder();
    size_t size;
    unsigned char *bytes = image(SMALL, 34, &size);
    for (size_t length = 0; length < size; length++) {
        ql_error err = {0};
        ck_assert_fails(try_open(test_file(folder, "t.safetensors", bytes, length), &err), QL_ERR_FORMAT, &err,
                        "t.safetensors");
    }
    ck_assert_ok(try_open(test_file(folder, "t.safetensors", bytes, size), NULL), &(ql_error){0});
    free(bytes);
    test_folder_remove(folder);
}
END_TEST

/* Bits and bytes of the header changed at random: refused, or opened with all that is promised true. */
START_TEST(damaged_headers_never_crash)
{
    char *folder = test_folder();
    size_t size, opened = 0;
    unsigned char *bytes = image(SMALL, 34, &size);
    for (uint64_t round = 0; round < 6000; round++) {
        unsigned char changed[512];
        uint32_t draw[4];
        ck_assert_uint_le(size, sizeof changed);
        memcpy(changed, bytes, size);
        ql_philox(11, 0, round, draw);
        changed[draw[0] % (size - 34)] ^= (unsigned char)(1u << draw[1] % 8);
        if (draw[1] & 0x100)
            changed[8 + draw[2] % (size - 42)] = (unsigned char)"0123456789[]{}\",:-e"[draw[3] % 19];
        ql_error err = {0};
        ql_tensors *tensors;
        const char *path = test_file(folder, "t.safetensors", changed, size);
        if (ql_tensors_open(&tensors, path, &err) == QL_OK) {
            ck_assert_uint_eq(touch(tensors), touch(tensors));
            opened++;
        } else {
            ck_assert_ptr_nonnull(strstr(err.message, "t.safetensors"));
        }
        ql_tensors_close(tensors);
    }
    ck_assert_uint_gt(opened, 100); /* names and metadata may change */
    ck_assert_uint_lt(opened, 3000);
    free(bytes);
    test_folder_remove(folder);
}
END_TEST

/* Resident pages of the range, as the kernel counts them for this process. */
static size_t resident(const void *data, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), count = 0;
    FILE *file = fopen("/proc/self/pagemap", "rb");
    uint64_t first = (uintptr_t)data / page + 1, last = ((uintptr_t)data + bytes) / page;
    for (uint64_t i = first; file && i < last; i++) {
        uint64_t entry = 0;
        if (fseek(file, (long)(i * sizeof entry), SEEK_SET) || fread(&entry, sizeof entry, 1, file) != 1)
            break;
        count += entry >> 63;
    }
    if (file)
        fclose(file);
    return count;
}

START_TEST(released_pages_come_back)
{
    char *folder = test_folder();
    ql_error err = {0};
    ql_tensors *tensors;
    put(folder, "model.safetensors",
        "{\"a\":" T("U8", "[1048576]", "[0,1048576]") ",\"b\":" T("U8", "[1048576]", "[1048576,2097152]") "}", 2097152);
    ck_assert_ok(ql_tensors_open(&tensors, folder, &err), &err);
    const ql_tensor *tensor = ql_tensors_find(tensors, "a");
    ql_tensors_fetch(tensors, tensor);
    ck_assert_uint_eq(touch(tensors), 0);
    if (access("/proc/self/pagemap", R_OK) == 0)
        ck_assert_uint_gt(resident(tensor->data, tensor->bytes), 200);
    ql_tensors_release(tensors, tensor);
    ck_assert_uint_eq(resident(tensor->data, tensor->bytes), 0);
    ck_assert_uint_eq(touch(tensors), 0);

    /* Memory that is not of this model keeps what it holds. */
    unsigned char *own = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(own, 7, 1 << 16);
    ql_tensors_release(tensors, &(ql_tensor){.name = "own", .data = own, .bytes = 1 << 16});
    ck_assert_int_eq(own[5000], 7);
    munmap(own, 1 << 16);
    ql_tensors_close(tensors);
    ql_tensors_close(NULL);
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_tensors");
    TCase *tests = tcase_create("tensors");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, refuses_lying_headers);
    tcase_add_test(tests, refuses_other_files);
    tcase_add_test(tests, lists_what_it_does_not_know);
    tcase_add_test(tests, names_cannot_break_the_message);
    tcase_add_test(tests, reads_shards);
    tcase_add_test(tests, refuses_lying_indexes);
    tcase_add_test(tests, every_truncation_is_an_error);
    tcase_add_test(tests, damaged_headers_never_crash);
    tcase_add_test(tests, released_pages_come_back);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
