/* Reading GGUF: its values and blocks, and files that lie. */
#define _GNU_SOURCE
#include "support.h"

#include <string.h>

#include "base/rng.h"
#include "io/gguf.h"

/* A file image that grows. */
typedef struct image {
    unsigned char bytes[4096];
    size_t size;
} image;

static void add(image *file, const void *bytes, size_t size)
{
    ck_assert_uint_le(file->size + size, sizeof file->bytes);
    memcpy(file->bytes + file->size, bytes, size);
    file->size += size;
}

static void add_u32(image *file, uint32_t value)
{
    add(file, &value, 4);
}

static void add_u64(image *file, uint64_t value)
{
    add(file, &value, 8);
}

static void add_string(image *file, const char *text)
{
    add_u64(file, strlen(text));
    add(file, text, strlen(text));
}

static void add_key(image *file, const char *key, ql_gguf_type type)
{
    add_string(file, key);
    add_u32(file, type);
}

static void add_info(image *file, const char *name, uint64_t columns, uint64_t rows, uint32_t type, uint64_t offset)
{
    add_string(file, name);
    add_u32(file, 2);
    add_u64(file, columns);
    add_u64(file, rows);
    add_u32(file, type);
    add_u64(file, offset);
}

static image begin(uint64_t tensors, uint64_t values)
{
    image file = {.size = 0};
    add(&file, "GGUF", 4);
    add_u32(&file, 3);
    add_u64(&file, tensors);
    add_u64(&file, values);
    return file;
}

/* Pads to 32 and adds data. */
static void add_data(image *file, size_t bytes)
{
    static const unsigned char zeros[4096];
    add(file, zeros, -file->size % 32);
    add(file, zeros, bytes);
}

static ql_status try_open(const char *folder, const image *file, ql_error *err)
{
    ql_tensors *tensors;
    ql_status status = ql_tensors_open(&tensors, test_file(folder, "t.gguf", file->bytes, file->size), err);
    if (status != QL_OK)
        ck_assert_msg(!err || strstr(err->message, "t.gguf"), "no file name in: %s", err->message);
    ql_tensors_close(tensors);
    return status;
}

/* One metadata value of each kind, a block tensor and a dense one. */
static image small(void)
{
    image file = begin(2, 9);
    add_key(&file, "general.alignment", QL_GGUF_U32), add_u32(&file, 32);
    add_key(&file, "text", QL_GGUF_STRING), add_string(&file, "hello");
    add_key(&file, "negative", QL_GGUF_I16), add(&file, "\xfe\xff", 2);
    add_key(&file, "huge", QL_GGUF_U64), add_u64(&file, UINT64_MAX);
    add_key(&file, "eps", QL_GGUF_F32), add(&file, &(float){0.125f}, 4);
    add_key(&file, "yes", QL_GGUF_BOOL), add(&file, "\1", 1);
    add_key(&file, "list", QL_GGUF_ARRAY), add_u32(&file, QL_GGUF_STRING), add_u64(&file, 2);
    add_string(&file, "a"), add_string(&file, "");
    add_key(&file, "scores", QL_GGUF_ARRAY), add_u32(&file, QL_GGUF_F64), add_u64(&file, 1);
    add(&file, &(double){-2.5}, 8);
    add_key(&file, "ids", QL_GGUF_ARRAY), add_u32(&file, QL_GGUF_I32), add_u64(&file, 2);
    add_u32(&file, 7), add_u32(&file, (uint32_t)-1);
    add_info(&file, "w", 64, 2, 2, 0); /* 4 blocks of 18 bytes */
    add_info(&file, "b", 3, 1, 0, 96);
    add_data(&file, 96);
    add(&file, (float[]){1, 2, 3}, 12);
    return file;
}

START_TEST(reads_metadata_and_tensors)
{
    char *folder = test_folder();
    image file = small();
    ql_error err = {0};
    ql_tensors *tensors;
    ck_assert_ok(ql_tensors_open(&tensors, test_file(folder, "t.gguf", file.bytes, file.size), &err), &err);
    const ql_gguf *gguf = ql_tensors_gguf(tensors);
    int64_t integer;
    double real;
    bool flag;
    const char *text;
    size_t length, at = 0;
    const ql_gguf_value *list;
    ck_assert_uint_eq(ql_gguf_count(gguf), 9);
    ck_assert_str_eq(ql_gguf_at(gguf, 0)->key, "eps");
    ck_assert_ptr_null(ql_gguf_at(gguf, 9));
    ck_assert_ok(ql_gguf_get_int(gguf, "negative", -2, 0, &integer, &err), &err);
    ck_assert_int_eq(integer, -2);
    ck_assert_ok(ql_gguf_get_double(gguf, "eps", 0, 1, &real, &err), &err);
    ck_assert(real == 0.125);
    ck_assert_ok(ql_gguf_get_double(gguf, "huge", 0, 1e30, &real, &err), &err);
    ck_assert(real == 18446744073709551616.0);
    ck_assert_ok(ql_gguf_get_bool(gguf, "yes", &flag, &err), &err);
    ck_assert(flag);
    ck_assert_ok(ql_gguf_get_string(gguf, "text", &text, &length, &err), &err);
    ck_assert(length == 5 && memcmp(text, "hello", 5) == 0);
    ck_assert_ok(ql_gguf_get_strings(gguf, "list", &list, &err), &err);
    ck_assert(list->count == 2 && *ql_gguf_next_string(list, &at, &length) == 'a' && length == 1);
    ql_gguf_next_string(list, &at, &length);
    ck_assert_uint_eq(length, 0);
    ck_assert_ok(ql_gguf_get_numbers(gguf, "scores", &list, &err), &err);
    ck_assert(ql_gguf_number_at(list, 0) == -2.5);
    ck_assert_ok(ql_gguf_get_numbers(gguf, "ids", &list, &err), &err);
    ck_assert(ql_gguf_number_at(list, 0) == 7 && ql_gguf_number_at(list, 1) == -1);

    ck_assert_fails(ql_gguf_get_int(gguf, "huge", 0, INT64_MAX, &integer, &err), QL_ERR_FORMAT, &err, "huge: expected");
    ck_assert_fails(ql_gguf_get_int(gguf, "negative", 0, 9, &integer, &err), QL_ERR_FORMAT, &err, "got -2");
    ck_assert_fails(ql_gguf_get_int(gguf, "gone", 0, 9, &integer, &err), QL_ERR_FORMAT, &err,
                    "t.gguf: metadata gone is missing");
    ck_assert_fails(ql_gguf_get_int(gguf, "eps", 0, 9, &integer, &err), QL_ERR_FORMAT, &err, "an integer, got f32");
    ck_assert_fails(ql_gguf_get_double(gguf, "text", 0, 9, &real, &err), QL_ERR_FORMAT, &err, "got a string");
    ck_assert_fails(ql_gguf_get_double(gguf, "eps", 1, 9, &real, &err), QL_ERR_FORMAT, &err, "from 1 to 9");
    ck_assert_fails(ql_gguf_get_bool(gguf, "eps", &flag, &err), QL_ERR_FORMAT, &err, "a bool");
    ck_assert_fails(ql_gguf_get_string(gguf, "list", &text, &length, &err), QL_ERR_FORMAT, &err, "a string");
    ck_assert_fails(ql_gguf_get_strings(gguf, "ids", &list, &err), QL_ERR_FORMAT, &err, "an array of strings");
    ck_assert_fails(ql_gguf_get_numbers(gguf, "list", &list, &err), QL_ERR_FORMAT, &err, "an array of numbers");
    ck_assert_ptr_null(list);

    const ql_tensor *tensor;
    float values[3];
    ck_assert_ok(ql_tensors_need(&tensor, tensors, "b", 2, (size_t[]){1, 3}, &err), &err);
    ck_assert_ok(ql_tensor_read_f32(tensor, 0, 3, values, &err), &err);
    ck_assert(values[0] == 1 && values[2] == 3);
    ck_assert_fails(ql_tensors_need(&tensor, tensors, "w", 0, NULL, &err), QL_ERR_UNSUPPORTED, &err, "type Q4_0");
    tensor = ql_tensors_find(tensors, "w");
    ck_assert(tensor->bytes == 72 && tensor->shape[0] == 2 && tensor->shape[1] == 64);
    ck_assert_ptr_null(ql_tensors_metadata(tensors, "text"));
    ql_tensors_close(tensors);
    test_folder_remove(folder);
}
END_TEST

#define REFUSES(file, status, words) ck_assert_fails(try_open(folder, &(file), &err), status, &err, words)

START_TEST(refuses_lying_metadata)
{
    char *folder = test_folder();
    ql_error err = {0};
    image file = begin(0, 0);
    file.bytes[4] = 1;
    REFUSES(file, QL_ERR_UNSUPPORTED, "GGUF version 1");
    memcpy(file.bytes + 4, "\0\0\0\3", 4);
    REFUSES(file, QL_ERR_UNSUPPORTED, "little-endian");
    file = begin(0, UINT64_MAX);
    REFUSES(file, QL_ERR_FORMAT, "18446744073709551615 metadata values do not fit");
    file = begin(UINT64_MAX, 0);
    REFUSES(file, QL_ERR_FORMAT, "18446744073709551615 tensors do not fit");
    file = begin(0, 1);
    add_u64(&file, UINT64_MAX), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "a metadata key at byte 24 has 18446744073709551615 bytes");
    file = begin(0, 1);
    add_key(&file, "", QL_GGUF_U8), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "is empty or not valid UTF-8");
    file = begin(0, 1);
    add_key(&file, "k\xff", QL_GGUF_U8), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "not valid UTF-8");
    file = begin(0, 1);
    add_u64(&file, 3), add(&file, "a\0b", 3), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "not valid UTF-8");
    file = begin(0, 1);
    add_key(&file, "k", (ql_gguf_type)13), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "metadata k has the unknown type 13");
    file = begin(0, 1);
    add_key(&file, "k", QL_GGUF_BOOL), add(&file, "\2", 1), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "metadata k: 2 is neither true nor false");
    file = begin(0, 1);
    add_key(&file, "k", QL_GGUF_STRING), add_u64(&file, UINT64_MAX - 7), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "the file ends at byte");
    file = begin(0, 1);
    add_key(&file, "k", QL_GGUF_ARRAY), add_u32(&file, QL_GGUF_F64), add_u64(&file, UINT64_MAX / 8 + 2);
    add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "inside of k");
    file = begin(0, 1);
    add_key(&file, "k", QL_GGUF_ARRAY), add_u32(&file, QL_GGUF_ARRAY), add_u64(&file, 1), add_data(&file, 64);
    REFUSES(file, QL_ERR_UNSUPPORTED, "array of arrays");
    file = begin(0, 2);
    for (int i = 0; i < 2; i++)
        add_key(&file, "k", QL_GGUF_U32), add_u32(&file, 1);
    REFUSES(file, QL_ERR_FORMAT, "metadata k is given twice");
    for (uint32_t alignment = 0; alignment < 64; alignment += 48) {
        file = begin(0, 1);
        add_key(&file, "general.alignment", QL_GGUF_U32), add_u32(&file, alignment);
        REFUSES(file, QL_ERR_FORMAT, "general.alignment");
    }
    file = begin(0, 1);
    add_key(&file, "split.count", QL_GGUF_U16), add(&file, "\4\0", 2);
    REFUSES(file, QL_ERR_UNSUPPORTED, "one of 4 parts");
    test_folder_remove(folder);
}
END_TEST

START_TEST(refuses_lying_tensors)
{
    static const struct {
        uint64_t columns, rows;
        uint32_t type;
        uint64_t offset;
        size_t data;
        ql_status status;
        const char *words;
    } cases[] = {
        {33, 1, 2, 0, 64, QL_ERR_FORMAT, "rows of 33 are not whole Q4_0 blocks of 32"},
        {32, 1, 4, 0, 64, QL_ERR_UNSUPPORTED, "unknown type number 4"},
        {32, 1, 99999, 0, 64, QL_ERR_UNSUPPORTED, "unknown type number 99999"},
        {32, 1, 2, 1, 64, QL_ERR_FORMAT, "offset 1 is not a multiple of 32"},
        {32, 1, 2, 64, 64, QL_ERR_FORMAT, "lie outside of the 64 bytes"},
        {32, 1, 2, UINT64_MAX - 31, 64, QL_ERR_FORMAT, "lie outside"},
        {32, 1, 0, 0, 100, QL_ERR_FORMAT, "tensor t: 128 bytes at offset 0 lie outside of the 100 bytes"},
        {UINT64_MAX, 1, 0, 0, 64, QL_ERR_FORMAT, "a dimension of 18446744073709551615"},
        {1ull << 40, 1ull << 40, 0, 0, 64, QL_ERR_FORMAT, "overflows"},
        {1ull << 62, 1, 0, 0, 64, QL_ERR_FORMAT, "overflows"},
    };
    char *folder = test_folder();
    ql_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        image file = begin(1, 0);
        add_info(&file, "t", cases[i].columns, cases[i].rows, cases[i].type, cases[i].offset);
        add_data(&file, cases[i].data);
        REFUSES(file, cases[i].status, cases[i].words);
    }
    image file = begin(1, 0);
    add_string(&file, "t"), add_u32(&file, 5), add_data(&file, 200);
    REFUSES(file, QL_ERR_FORMAT, "5 dimensions");
    file = begin(2, 0);
    add_info(&file, "a", 16, 1, 0, 0), add_info(&file, "b", 16, 1, 0, 32), add_data(&file, 128);
    REFUSES(file, QL_ERR_FORMAT, "tensors a and b overlap");
    file = begin(2, 0);
    add_info(&file, "a", 8, 1, 0, 0), add_info(&file, "a", 8, 1, 0, 32), add_data(&file, 64);
    REFUSES(file, QL_ERR_FORMAT, "tensor a is given twice");
    test_folder_remove(folder);
}
END_TEST

START_TEST(every_truncation_is_an_error)
{
    char *folder = test_folder();
    image file = small();
    size_t whole = file.size;
    for (file.size = 4; file.size < whole; file.size++) {
        ql_error err = {0};
        ck_assert_int_eq(try_open(folder, &file, &err), QL_ERR_FORMAT);
    }
    ck_assert_int_eq(try_open(folder, &file, &(ql_error){0}), QL_OK);
    test_folder_remove(folder);
}
END_TEST

/* Reads everything that an open file hands out: the sanitizers see what lies outside of the map. */
static size_t touch(const ql_tensors *tensors)
{
    const ql_gguf *gguf = ql_tensors_gguf(tensors);
    size_t sum = 0, length, at = 0;
    for (size_t i = 0; i < ql_gguf_count(gguf); i++, at = 0) {
        const ql_gguf_value *value;
        const char *key = ql_gguf_at(gguf, i)->key, *text;
        if (ql_gguf_get_string(gguf, key, &text, &length, NULL) == QL_OK && length > 0)
            sum += (unsigned char)text[length - 1];
        if (ql_gguf_get_numbers(gguf, key, &value, NULL) == QL_OK && value->count > 0)
            sum += ql_gguf_number_at(value, value->count - 1) > 0;
        if (ql_gguf_get_strings(gguf, key, &value, NULL) == QL_OK)
            for (size_t j = 0; j < value->count; j++)
                sum += *ql_gguf_next_string(value, &at, &length) == 'a';
    }
    for (size_t i = 0; i < ql_tensors_count(tensors); i++) {
        const ql_tensor *tensor = ql_tensors_at(tensors, i);
        for (size_t j = 0; j < tensor->bytes; j++)
            sum += ((const unsigned char *)tensor->data)[j];
    }
    return sum;
}

START_TEST(damaged_files_never_crash)
{
    char *folder = test_folder();
    const image good = small();
    size_t opened = 0, seen = 0;
    for (uint64_t round = 0; round < 6000; round++) {
        image file = good;
        uint32_t draw[4];
        ql_philox(13, 0, round, draw);
        size_t place = 4 + draw[0] % (good.size - 112);
        if (draw[1] & 0x100)
            file.bytes[place] = (unsigned char)draw[2];
        else
            file.bytes[place] ^= (unsigned char)(1u << draw[1] % 8);
        ql_error err = {0};
        ql_tensors *tensors;
        const char *path = test_file(folder, "t.gguf", file.bytes, file.size);
        if (ql_tensors_open(&tensors, path, &err) == QL_OK) {
            seen += touch(tensors);
            opened++;
        }
        ql_tensors_close(tensors);
    }
    ck_assert_uint_gt(seen, 0);
    ck_assert_uint_gt(opened, 100); /* texts and numbers may change */
    ck_assert_uint_lt(opened, 5000);
    test_folder_remove(folder);
}
END_TEST

/* The bytes of each block type, against ggml's own quantized vectors. */
START_TEST(block_sizes_are_ggml_s)
{
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"q4_0", 2},  {"q4_1", 3},  {"q5_0", 6},  {"q5_1", 7},  {"q8_0", 8},   {"q2_K", 10},
                 {"q3_K", 11}, {"q4_K", 12}, {"q5_K", 13}, {"q6_K", 14}, {"iq4_nl", 20}};
    const char *path = test_data("quant-oracles/ggml_quant_vectors.safetensors");
    if (!path)
        return;
    char *folder = test_folder(), name[64];
    ql_error err = {0};
    ql_tensors *vectors, *tensors;
    ck_assert_ok(ql_tensors_open(&vectors, path, &err), &err);
    size_t count = ql_tensor_elements(ql_tensors_find(vectors, "input"));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        snprintf(name, sizeof name, "%s.blocks", types[i].name);
        const ql_tensor *blocks = ql_tensors_find(vectors, name);
        ck_assert_msg(blocks, "no %s", name);
        ck_assert_uint_eq(count % 512, 0);
        image file = begin(1, 0);
        add_info(&file, "t", 512, 1, types[i].type, 0);
        add_data(&file, 1024);
        ck_assert_ok(ql_tensors_open(&tensors, test_file(folder, "t.gguf", file.bytes, file.size), &err), &err);
        ck_assert_uint_eq(ql_tensors_at(tensors, 0)->bytes * (count / 512), blocks->bytes);
        ck_assert_str_eq(strcasestr(ql_tensors_at(tensors, 0)->dtype_name, types[i].name),
                         ql_tensors_at(tensors, 0)->dtype_name);
        ql_tensors_close(tensors);
    }
    ql_tensors_close(vectors);
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_gguf");
    TCase *tests = tcase_create("gguf");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, reads_metadata_and_tensors);
    tcase_add_test(tests, refuses_lying_metadata);
    tcase_add_test(tests, refuses_lying_tensors);
    tcase_add_test(tests, every_truncation_is_an_error);
    tcase_add_test(tests, damaged_files_never_crash);
    tcase_add_test(tests, block_sizes_are_ggml_s);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
