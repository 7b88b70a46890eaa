/* The small files of a merged model. */
#ifndef QL_SRC_TRAIN_MERGE_FILES_H
#define QL_SRC_TRAIN_MERGE_FILES_H

#include "qlora/base.h"

/* QL_ERR_ARG when both are names of one folder or file; fine when `output` is not there. */
ql_status ql_merge_check_folders(const char *model, const char *output, ql_error *err);

/* Copies the files of the tokenizer and of generation, those that are there. */
ql_status ql_merge_copy_files(const char *model, const char *output, ql_error *err);

/* config.json, with this element type unless it is NULL, and of no quantization. */
ql_status ql_merge_write_config(const char *model, const char *output, const ql_dtype *dtype, ql_error *err);

#endif
