/* Opens any bytes as a safetensors file. What opens must be as io.h promises. */
#define _GNU_SOURCE
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qlora/io.h"

static void use(const ql_tensors *tensors)
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    ql_error err = {0};
    ql_tensors *tensors;
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ql_tensors_open(&tensors, path, &err) == QL_OK)
        use(tensors);
    else
        assert(err.status != QL_OK && strstr(err.message, path));
    ql_tensors_close(tensors);
    close(fd);
    return 0;
}
