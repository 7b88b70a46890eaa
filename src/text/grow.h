/* Growing the arrays of text.h; false when memory is not to be had. */
#ifndef QL_SRC_TEXT_GROW_H
#define QL_SRC_TEXT_GROW_H

#include "base/grow.h"
#include "qlora/text.h"

bool ql_ids_add(ql_ids *ids, const int32_t *more, size_t count);
bool ql_text_add(ql_text *text, const char *more, size_t length);
bool ql_text_add_string(ql_text *text, const char *string);
bool ql_marks_fill(ql_marks *marks, uint8_t mark, size_t count); /* grows to `count` marks, the new ones `mark` */

#endif
