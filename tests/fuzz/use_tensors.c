#include "fuzz.h"
#include "io/gguf.h"

static volatile double sum; /* what is read has to arrive somewhere */

static void use_tensor(const ql_tensors *tensors, const ql_tensor *tensor)
{
    float first;
    FUZZ_CHECK(ql_tensors_find(tensors, tensor->name) == tensor);
    FUZZ_CHECK(tensor->foreign || ql_tensor_elements(tensor) * ql_dtype_size(tensor->dtype) == tensor->bytes);
    for (size_t j = 0; j < tensor->bytes; j++)
        sum += ((const unsigned char *)tensor->data)[j];
    if (ql_tensor_elements(tensor) > 0)
        ql_tensor_read_f32(tensor, ql_tensor_elements(tensor) - 1, 1, &first, NULL);
    ql_tensors_fetch(tensors, tensor);
    ql_tensors_release(tensors, tensor);
}

static void use_value(const ql_gguf *gguf, const ql_gguf_value *value)
{
    const ql_gguf_value *array;
    const char *text;
    size_t length, at = 0;
    int64_t integer;
    bool flag;
    double number;
    FUZZ_CHECK(ql_gguf_find(gguf, value->key) == value);
    if (ql_gguf_get_string(gguf, value->key, &text, &length, NULL) == QL_OK && length > 0)
        sum += text[0] + text[length - 1];
    if (ql_gguf_get_numbers(gguf, value->key, &array, NULL) == QL_OK)
        for (size_t j = 0; j < array->count; j++)
            sum += ql_gguf_number_at(array, j);
    if (ql_gguf_get_strings(gguf, value->key, &array, NULL) == QL_OK)
        for (size_t j = 0; j < array->count; j++)
            if ((text = ql_gguf_next_string(array, &at, &length)) && length > 0)
                sum += text[length - 1];
    ql_gguf_get_int(gguf, value->key, -9, 9, &integer, NULL);
    ql_gguf_get_bool(gguf, value->key, &flag, NULL);
    ql_gguf_get_double(gguf, value->key, -9, 9, &number, NULL);
}

void fuzz_use_tensors(const ql_tensors *tensors)
{
    const ql_gguf *gguf = ql_tensors_gguf(tensors);
    for (size_t i = 0; i < ql_tensors_count(tensors); i++)
        use_tensor(tensors, ql_tensors_at(tensors, i));
    for (size_t i = 0; gguf && i < ql_gguf_count(gguf); i++)
        use_value(gguf, ql_gguf_at(gguf, i));
    ql_tensors_metadata(tensors, "format");
}
