/* Reading JSON and JSON lines: parsing over jansson, and getters whose errors say where.
 *
 * Strings are valid UTF-8; they may hold NUL, so texts take their length from json_string_length. In a file
 * with a number beyond 64 bits every integer arrives as a real; the getters here do not care. */
#ifndef QL_SRC_IO_JSON_H
#define QL_SRC_IO_JSON_H

#include <jansson.h>

#include "io/map.h"
#include "qlora/base.h"

/* Parses a whole file; a byte order mark is skipped. The caller owns *out (json_decref); NULL on error.
 * QL_ERR_FORMAT gives "file:line:column: what". Keys given twice are errors. */
ql_status ql_json_read(json_t **out, const char *path, ql_error *err);

/* Parses text[length]; `name` stands for the file in messages. */
ql_status ql_json_parse(json_t **out, const char *name, const void *text, size_t length, ql_error *err);

/* A file of one JSON value a line. Blank lines are skipped, CRLF and a missing last newline are fine. */
typedef struct ql_jsonl {
    const char *path; /* borrowed from the caller */
    size_t line;      /* of the value returned last, from 1 */
    ql_map map;
    size_t at;
} ql_jsonl;

ql_status ql_jsonl_open(ql_jsonl *lines, const char *path, ql_error *err);

/* The next value (json_decref it), or NULL at the end of the file. Errors give "file:line: what". */
ql_status ql_jsonl_next(ql_jsonl *lines, json_t **out, ql_error *err);

void ql_jsonl_close(ql_jsonl *lines); /* fine on a zeroed one */

/* A value and where it stands, for messages. Borrows the file name and the value. */
typedef struct ql_json_at {
    const json_t *value;
    const char *file;
    size_t line;    /* of a JSON lines file; 0: none */
    char path[168]; /* "rope_scaling.factor", "added_tokens[3]"; empty for the root */
} ql_json_at;

ql_json_at ql_json_root(const char *file, const json_t *value);
ql_json_at ql_jsonl_root(const ql_jsonl *lines, const json_t *value);

/* Whether a key must be there. An optional one that is missing or null leaves *out as it was. */
typedef enum ql_json_need { QL_OPTIONAL, QL_REQUIRED } ql_json_need;

/* The member `key` of an object: NULL when missing; json_is_null() tells a null apart. */
const json_t *ql_json_member(const ql_json_at *object, const char *key);

/* Typed members. A wrong type or a number outside of [min, max] is QL_ERR_FORMAT:
 * `config.json: hidden_size: expected an integer from 1 to 1048576, got "abc"`. */
ql_status ql_json_get_int(const ql_json_at *object, const char *key, ql_json_need need, int64_t min, int64_t max,
                          int64_t *out, ql_error *err);
ql_status ql_json_get_size(const ql_json_at *object, const char *key, ql_json_need need, size_t min, size_t max,
                           size_t *out, ql_error *err);
ql_status ql_json_get_double(const ql_json_at *object, const char *key, ql_json_need need, double min, double max,
                             double *out, ql_error *err);
ql_status ql_json_get_bool(const ql_json_at *object, const char *key, ql_json_need need, bool *out, ql_error *err);

/* *out lives as long as the value. With a NULL length a string that holds NUL is refused. */
ql_status ql_json_get_string(const ql_json_at *object, const char *key, ql_json_need need, const char **out,
                             size_t *length, ql_error *err);

/* When the optional member is missing or null out->value is NULL. */
ql_status ql_json_get_object(const ql_json_at *object, const char *key, ql_json_need need, ql_json_at *out,
                             ql_error *err);
ql_status ql_json_get_array(const ql_json_at *object, const char *key, ql_json_need need, ql_json_at *out,
                            ql_error *err);

/* Element `index` of an array, as it is and as an integer in [min, max]. */
ql_json_at ql_json_element(const ql_json_at *array, size_t index);
ql_status ql_json_get_size_at(const ql_json_at *array, size_t index, size_t min, size_t max, size_t *out,
                              ql_error *err);

/* QL_ERR_FORMAT "file: path: expected WHAT, got VALUE": for checks of one's own. */
ql_status ql_json_expected(const ql_json_at *at, const char *what, ql_error *err);

#endif
