#include "qlora/base.h"

static const struct {
    const char *name;
    size_t size;
} types[] = {
    [QL_F32] = {"F32", 4}, [QL_F16] = {"F16", 2}, [QL_BF16] = {"BF16", 2}, [QL_I8] = {"I8", 1},     [QL_U8] = {"U8", 1},
    [QL_I32] = {"I32", 4}, [QL_I64] = {"I64", 8}, [QL_F64] = {"F64", 8},   [QL_BOOL] = {"BOOL", 1}, [QL_U32] = {"U32", 4},
};

size_t ql_dtype_size(ql_dtype type)
{
    return types[type].size;
}

const char *ql_dtype_name(ql_dtype type)
{
    return types[type].name;
}
