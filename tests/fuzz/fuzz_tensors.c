/* Opens any bytes as a safetensors or GGUF file. What opens must be as the headers promise. */
#define _GNU_SOURCE
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/gguf.h"
#include "qlora/io.h"

static void use_tensors(const ql_tensors *tensors)
{
    volatile size_t sum = 0;
    float first;
    for (size_t i = 0; i < ql_tensors_count(tensors); i++) {
        const ql_tensor *tensor = ql_tensors_at(tensors, i);
        assert(ql_tensors_find(tensors, tensor->name) == tensor);
        assert(tensor->foreign || ql_tensor_elements(tensor) * ql_dtype_size(tensor->dtype) == tensor->bytes);
        for (size_t j = 0; j < tensor->bytes; j++)
            sum += ((const unsigned char *)tensor->data)[j];
        if (ql_tensor_elements(tensor) > 0)
            ql_tensor_read_f32(tensor, ql_tensor_elements(tensor) - 1, 1, &first, NULL);
        ql_tensors_release(tensors, tensor);
    }
}

static void use_metadata(const ql_gguf *gguf)
{
    volatile double sum = 0;
    for (size_t i = 0; i < ql_gguf_count(gguf); i++) {
        const ql_gguf_value *array;
        const char *key = ql_gguf_at(gguf, i)->key, *text;
        size_t length, at = 0;
        int64_t integer;
        bool flag;
        double number;
        if (ql_gguf_get_string(gguf, key, &text, &length, NULL) == QL_OK && length > 0)
            sum += text[0] + text[length - 1];
        if (ql_gguf_get_numbers(gguf, key, &array, NULL) == QL_OK)
            for (size_t j = 0; j < array->count; j++)
                sum += ql_gguf_number_at(array, j);
        if (ql_gguf_get_strings(gguf, key, &array, NULL) == QL_OK)
            for (size_t j = 0; j < array->count; j++)
                if ((text = ql_gguf_next_string(array, &at, &length)) && length > 0)
                    sum += text[length - 1];
        ql_gguf_get_int(gguf, key, -9, 9, &integer, NULL);
        ql_gguf_get_bool(gguf, key, &flag, NULL);
        ql_gguf_get_double(gguf, key, -9, 9, &number, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    ql_error err = {0};
    ql_tensors *tensors;
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ql_tensors_open(&tensors, path, &err) != QL_OK) {
        assert(err.status != QL_OK && strstr(err.message, path));
    } else {
        use_tensors(tensors);
        if (ql_tensors_gguf(tensors))
            use_metadata(ql_tensors_gguf(tensors));
    }
    ql_tensors_close(tensors);
    close(fd);
    return 0;
}
