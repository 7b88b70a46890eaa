/* Writing GGUF: the bytes by the format's description, what our reader makes of them, and files that stay. */
#include "support.h"

#include "base/error.h"
#include "io/gguf_write.h"
#include "io/map.h"

static const float numbers[5] = {1, -2, 0.5f, 3, 1e-3f};

static ql_status emit_data(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err)
{
    (void)ctx, (void)err;
    ql_output_write(output, tensor->data, tensor->bytes);
    return QL_OK;
}

START_TEST(writes_these_bytes)
{
    char *folder = test_folder(), path[512];
    snprintf(path, sizeof path, "%s/a.gguf", folder);
    ql_error err = {0};
    ql_gguf_meta meta = {0};
    ql_gguf_put_string(&meta, "s", "hey");
    ql_gguf_put_f32(&meta, "f", 1.5f);
    const ql_tensor tensors[2] = {
        {.name = "a", .dtype = QL_F32, .ndim = 2, .shape = {1, 3}, .data = numbers, .bytes = 12},
        {.name = "b", .dtype = QL_F32, .ndim = 1, .shape = {2}, .data = numbers + 3, .bytes = 8},
    };
    ck_assert_ok(ql_gguf_write(path, &meta, tensors, 2, emit_data, NULL, &err), &err);
    unsigned char want[224] = "GGUF\3\0\0\0" "\2\0\0\0\0\0\0\0" "\2\0\0\0\0\0\0\0"
                              "\1\0\0\0\0\0\0\0s" "\10\0\0\0" "\3\0\0\0\0\0\0\0hey"
                              "\1\0\0\0\0\0\0\0f" "\6\0\0\0" "\0\0\300\77"
                              "\1\0\0\0\0\0\0\0a" "\2\0\0\0" "\3\0\0\0\0\0\0\0" "\1\0\0\0\0\0\0\0" "\0\0\0\0"
                              "\0\0\0\0\0\0\0\0"
                              "\1\0\0\0\0\0\0\0b" "\1\0\0\0" "\2\0\0\0\0\0\0\0" "\0\0\0\0" "\40\0\0\0\0\0\0";
    const size_t head = 24 + 24 + 17 + 41 + 33, start = (head + 31) / 32 * 32;
    memcpy(want + start, numbers, 12);
    memcpy(want + start + 32, numbers + 3, 8);
    ql_map map;
    ck_assert_ok(ql_map_open(&map, path, &err), &err);
    ck_assert_uint_eq(map.size, start + 64);
    ck_assert_mem_eq(map.data, want, start + 64);
    ql_map_close(&map);
    ql_gguf_meta_free(&meta);
    test_folder_remove(folder);
}
END_TEST

/* Types whose sizes are no multiples of the alignment, one of blocks among them. */
START_TEST(is_read_back)
{
    char *folder = test_folder(), path[512];
    snprintf(path, sizeof path, "%s/a.gguf", folder);
    ql_error err = {0};
    unsigned char blocks[2 * 34];
    for (size_t i = 0; i < sizeof blocks; i++)
        blocks[i] = (unsigned char)(7 * i);
    const ql_tensor tensors[] = {
        {.name = "half", .dtype = QL_F16, .ndim = 2, .shape = {1, 5}, .data = numbers, .bytes = 10},
        {.name = "blocks", .foreign = true, .dtype_name = "Q8_0", .ndim = 2, .shape = {2, 32}, .data = blocks,
         .bytes = sizeof blocks},
        {.name = "bf", .dtype = QL_BF16, .ndim = 3, .shape = {2, 1, 3}, .data = numbers, .bytes = 12},
        {.name = "f", .dtype = QL_F32, .ndim = 1, .shape = {5}, .data = numbers, .bytes = 20},
    };
    ql_gguf_meta meta = {0};
    ql_gguf_put_string(&meta, "general.type", "adapter");
    ck_assert_ok(ql_gguf_write(path, &meta, tensors, 4, emit_data, NULL, &err), &err);
    ql_tensors *back;
    ck_assert_ok(ql_tensors_open(&back, path, &err), &err);
    ck_assert_uint_eq(ql_tensors_count(back), 4);
    for (size_t i = 0; i < 4; i++) {
        const ql_tensor *t = ql_tensors_find(back, tensors[i].name);
        ck_assert_ptr_nonnull(t);
        ck_assert_uint_eq(t->ndim, tensors[i].ndim);
        ck_assert_mem_eq(t->shape, tensors[i].shape, t->ndim * sizeof *t->shape);
        ck_assert_str_eq(t->dtype_name, tensors[i].foreign ? "Q8_0" : ql_dtype_name(tensors[i].dtype));
        ck_assert_uint_eq(t->bytes, tensors[i].bytes);
        ck_assert_mem_eq(t->data, tensors[i].data, t->bytes);
        ck_assert_uint_eq((uintptr_t)t->data % 32, 0);
    }
    ql_tensors_close(back);
    ql_gguf_meta_free(&meta);
    test_folder_remove(folder);
}
END_TEST

static ql_status emit_error(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err)
{
    (void)ctx;
    ql_output_write(output, tensor->data, 4);
    return ql_fail(err, QL_ERR_VALUE, "no more");
}

START_TEST(errors_leave_what_was_there)
{
    char *folder = test_folder();
    ql_error err = {0};
    ql_gguf_meta meta = {0};
    const char *path = test_file(folder, "a.gguf", "old", 3);
    ql_tensor tensor = {.name = "a", .dtype = QL_F32, .ndim = 1, .shape = {5}, .data = numbers, .bytes = 20};
    ck_assert_fails(ql_gguf_write(path, &meta, &tensor, 1, emit_error, NULL, &err), QL_ERR_VALUE, &err, "no more");
    ck_assert_fails(ql_safetensors_stream(path, &tensor, 1, NULL, 0, emit_error, NULL, &err), QL_ERR_VALUE, &err,
                    "no more");
    tensor.foreign = true;
    tensor.dtype_name = "Q8_0";
    ck_assert_fails(ql_gguf_write(path, &meta, &tensor, 1, emit_data, NULL, &err), QL_ERR_SHAPE, &err, "tensor a");
    tensor.dtype_name = "Q9_9";
    ck_assert_fails(ql_gguf_write(path, &meta, &tensor, 1, emit_data, NULL, &err), QL_ERR_UNSUPPORTED, &err, "tensor a");
    ql_map map;
    ck_assert_ok(ql_map_open(&map, path, &err), &err);
    ck_assert_uint_eq(map.size, 3);
    ck_assert_mem_eq(map.data, "old", 3);
    ql_map_close(&map);
    ck_assert_fails(ql_gguf_write("/nowhere/a.gguf", &meta, &tensor, 0, emit_data, NULL, &err), QL_ERR_IO, &err,
                    "/nowhere/a.gguf");
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf_write");
    TCase *tc = tcase_create("gguf_write");
    tcase_add_test(tc, writes_these_bytes);
    tcase_add_test(tc, is_read_back);
    tcase_add_test(tc, errors_leave_what_was_there);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
