#define _GNU_SOURCE
#include "train/findings.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/grow.h"

bool ql_found(ql_findings *findings, bool fault, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool found = ql_found_with(findings, fault, format, args);
    va_end(args);
    return found;
}

bool ql_found_with(ql_findings *findings, bool fault, const char *format, va_list args)
{
    char *text;
    if (vasprintf(&text, format, args) < 0)
        return false;
    if (!ql_grow((void **)&findings->at, &findings->capacity, findings->count, 1, sizeof *findings->at)) {
        free(text);
        return false;
    }
    findings->at[findings->count++] = (ql_finding){fault, text};
    return true;
}

size_t ql_findings_faults(const ql_findings *findings)
{
    size_t faults = 0;
    for (size_t i = 0; i < findings->count; i++)
        faults += findings->at[i].fault;
    return faults;
}

void ql_findings_free(ql_findings *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        free(findings->at[i].text);
    free(findings->at);
    *findings = (ql_findings){0};
}
