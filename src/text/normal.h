/* What changes a text before it is split into words: the normalizer of tokenizer.json, and those
 * pre-tokenizers that put or replace characters. */
#ifndef QL_SRC_TEXT_NORMAL_H
#define QL_SRC_TEXT_NORMAL_H

#include "io/json.h"
#include "qlora/text.h"

/* Where a stretch of text between two added tokens stands. */
typedef enum ql_place {
    QL_PLACE_START,     /* at the start of all text */
    QL_PLACE_AFTER,     /* after an added token */
    QL_PLACE_CONTINUED, /* in the middle of text: no prefix */
} ql_place;

typedef struct ql_edit {
    enum {
        QL_EDIT_UNICODE,      /* NFC and its like */
        QL_EDIT_PREPEND,      /* `to` in front of a text that is not empty */
        QL_EDIT_PREPEND_ONCE, /* the same, unless it begins so */
        QL_EDIT_REPLACE,      /* each `from` by `to` */
    } kind;
    int form;        /* utf8proc's options of a UNICODE edit */
    bool start_only; /* prepend at the start of all text only */
    char from[16], to[16];
} ql_edit;

typedef struct ql_edits {
    ql_edit list[8];
    size_t count;
} ql_edits;

/* The member "normalizer" of a tokenizer.json: NFC, NFD, NFKC, NFKD, Prepend, Replace of a string, or a sequence
 * of them; null is none. */
ql_status ql_edits_load(ql_edits *edits, const ql_json_at *root, ql_error *err);
bool ql_edits_add(ql_edits *edits, const ql_edit *edit); /* false: there are too many, or texts grow too long */

/* Calls load for the component at root[key], or, when that is a Sequence, for each of its steps in component[list].
 * A missing or null component is none. */
typedef ql_status ql_step_load(void *ctx, const ql_json_at *step, const char *type, ql_error *err);
ql_status ql_steps_load(const ql_json_at *root, const char *key, const char *list, ql_step_load *load, void *ctx,
                        ql_error *err);

/* Applies them to text[length], valid UTF-8. The result is either the text itself or lies in one of the two
 * buffers; *out and *out_length say which. */
ql_status ql_edits_apply(const ql_edits *edits, ql_place place, const char *text, size_t length, ql_text buffers[2],
                         const char **out, size_t *out_length, ql_error *err);

/* A string member that must be there and fit into `size` bytes with its NUL. */
ql_status ql_short_string(char *to, size_t size, const ql_json_at *object, const char *key, ql_error *err);

#endif
