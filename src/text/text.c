#include "text/grow.h"

#include <stdlib.h>
#include <string.h>

bool ql_ids_add(ql_ids *ids, const int32_t *more, size_t count)
{
    if (!count)
        return true;
    if (!ql_grow((void **)&ids->data, &ids->capacity, ids->count, count, sizeof *ids->data))
        return false;
    memcpy(ids->data + ids->count, more, count * sizeof *more);
    ids->count += count;
    return true;
}

bool ql_text_add(ql_text *text, const char *more, size_t length)
{
    if (length == SIZE_MAX || !ql_grow((void **)&text->data, &text->capacity, text->length, length + 1, 1))
        return false;
    if (length)
        memcpy(text->data + text->length, more, length);
    text->length += length;
    text->data[text->length] = 0;
    return true;
}

bool ql_text_add_string(ql_text *text, const char *string)
{
    return ql_text_add(text, string, strlen(string));
}

bool ql_marks_fill(ql_marks *marks, uint8_t mark, size_t count)
{
    if (count <= marks->count)
        return true;
    size_t more = count - marks->count;
    if (!ql_grow((void **)&marks->data, &marks->capacity, marks->count, more, 1))
        return false;
    memset(marks->data + marks->count, mark, more);
    marks->count = count;
    return true;
}

void ql_ids_free(ql_ids *ids)
{
    free(ids->data);
    *ids = (ql_ids){0};
}

void ql_text_free(ql_text *text)
{
    free(text->data);
    *text = (ql_text){0};
}

void ql_marks_free(ql_marks *marks)
{
    free(marks->data);
    *marks = (ql_marks){0};
}
