/* The log of a run, and the page that is made of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/page.h"
#include "fuzz.h"

static size_t count(const char *text, const char *word)
{
    size_t found = 0;
    while ((text = strstr(text, word)) != NULL) {
        text += strlen(word);
        found++;
    }
    return found;
}

/* Nothing of the log may become markup: each chart has a script, the page has one, and that is all. */
static void check_page(const char *path)
{
    char *text = NULL;
    size_t capacity = 0;
    FILE *file = fopen(path, "re");
    FUZZ_CHECK(file != NULL);
    ssize_t length = getdelim(&text, &capacity, 0, file);
    FUZZ_CHECK(length > 0 && (size_t)length == strlen(text) && feof(file));
    FUZZ_CHECK(count(text, "<script") == count(text, "<figure") + 1 && count(text, "</html>") == 1);
    FUZZ_CHECK(!strstr(text, "\"width:nan") && !strstr(text, "\"width:inf")); /* quotes of the log are written as &quot; */
    free(text);
    fclose(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ql_error err = {0};
    char page[512];
    const char *log = fuzz_file("x.jsonl", (fuzz_part){data, size});
    snprintf(page, sizeof page, "%s/page.html", fuzz_folder());
    FILE *file = fopen(log, "re");
    FUZZ_CHECK(file != NULL);
    if (fuzz_went_well(cli_page_write(page, file, "x.jsonl", &err), &err)) {
        check_page(page);
        remove(page);
    }
    fclose(file);
    return 0;
}
