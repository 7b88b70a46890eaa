/* The libraries at work. */
#include <cblas.h>
#include <jansson.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <utf8proc.h>

#include "qlora/train.h"

const char *ql_libraries_describe(char *text, size_t size)
{
    char pcre2[64] = "";
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    snprintf(text, size, "%s; jansson %s; PCRE2 %s; utf8proc %s", openblas_get_config(), jansson_version_str(), pcre2,
             utf8proc_version());
    return text;
}
