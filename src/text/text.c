/* The two growing arrays that callers own. */
#include "qlora/text.h"

#include <stdlib.h>

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
