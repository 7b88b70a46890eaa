/* An LM head in another format than the file's. */
#include "base/error.h"
#include "model/model.h"
#include "quant/weight.h"

ql_status ql_model_quantize_head(ql_model *model, ql_format format, ql_workers *workers, ql_error *err)
{
    ql_weight *old = model->head, *head;
    const ql_wview *view = ql_weight_view(old);
    if (format.code == QL_CODE_F32)
        return QL_OK;
    if (!ql_code_is_dense(view->format.code)) {
        char text[48];
        return ql_fail(err, QL_ERR_UNSUPPORTED, "the LM head is stored as %s: only one in F32, F16 or BF16 is quantized",
                       ql_format_describe(view->format, text));
    }
    ql_dtype type = ql_code_dtype(view->format.code);
    ql_status status = model->planned ? ql_weight_plan(&head, format, "LM head", view->n, view->k, err)
                                      : ql_weight_quantize(&head, format, "LM head", view->codes, type, view->k,
                                                           view->n, view->k, workers, err);
    if (status)
        return status;
    bool borrowed = ql_weight_bytes(old) == 0;
    size_t bytes = view->n * view->row_bytes;
    if (borrowed && model->files) /* read once; what the embedding is asked for is read again */
        ql_tensors_release(model->files, &(ql_tensor){.data = view->codes, .bytes = bytes});
    model->head = head;
    if (old == model->embed)
        return QL_OK;
    model->mapped_bytes -= borrowed ? bytes : 0;
    ql_weight_destroy(old);
    return QL_OK;
}
