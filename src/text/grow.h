/* Growing the arrays of text.h. Sizes double; an overflow reads as out of memory. */
#ifndef QL_SRC_TEXT_GROW_H
#define QL_SRC_TEXT_GROW_H

#include "qlora/text.h"

/* Makes room for `more` elements of `size` bytes after `count`; false when memory is not to be had. */
bool ql_grow(void **data, size_t *capacity, size_t count, size_t more, size_t size);

bool ql_ids_add(ql_ids *ids, const int32_t *more, size_t count);
bool ql_text_add(ql_text *text, const char *more, size_t length);
bool ql_text_add_string(ql_text *text, const char *string);
bool ql_marks_fill(ql_marks *marks, uint8_t mark, size_t count); /* grows to `count` marks, the new ones `mark` */

#endif
