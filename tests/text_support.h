/* What the tests of the text room share: small files, tokenizers, lists of ids. */
#ifndef QL_TESTS_TEXT_SUPPORT_H
#define QL_TESTS_TEXT_SUPPORT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qlora/text.h"
#include "support.h"

/* Writes folder/name. */
static inline void write_file(const char *folder, const char *name, const void *data, size_t length)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, length, file), length);
    fclose(file);
}

static inline void write_string(const char *folder, const char *name, const char *text)
{
    write_file(folder, name, text, strlen(text));
}

/* The whole file with a NUL behind; free() it. */
static inline char *read_file(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    fseek(file, 0, SEEK_END);
    *length = (size_t)ftell(file);
    rewind(file);
    char *text = calloc(1, *length + 1);
    ck_assert_uint_eq(fread(text, 1, *length, file), *length);
    fclose(file);
    return text;
}

/* A tokenizer of the reference data, or NULL when that is absent. */
static inline ql_tokenizer *open_reference(const char *folder)
{
    const char *path = test_data(folder);
    ql_tokenizer *t = NULL;
    ql_error err = {0};
    if (path)
        ck_assert_ok(ql_tokenizer_open(&t, path, &err), &err);
    return t;
}

/* The ids as "1 22 3". In a static buffer. */
static inline const char *spell_ids(const int32_t *ids, size_t count)
{
    static char text[1 << 16];
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < count && used < sizeof text - 16; i++)
        used += (size_t)sprintf(text + used, i ? " %d" : "%d", ids[i]);
    return text;
}

static inline void assert_encodes(ql_tokenizer *t, const char *text, unsigned flags, const char *wanted)
{
    ql_ids ids = {0};
    ql_error err = {0};
    ck_assert_ok(ql_tokenizer_encode(t, text, strlen(text), flags, &ids, &err), &err);
    ck_assert_str_eq(spell_ids(ids.data, ids.count), wanted);
    ql_ids_free(&ids);
}

/* The vocabulary of a small byte-level tokenizer: most of ASCII, 66 the space (U+0120), 67 the newline (U+010A), and
 * "th" 68, "he" 69, "the" 70, " t" 71, "the " 72. */
#define BYTE_VOCAB                                                                                                     \
    "\"!\":0,\"\\\"\":1,\"#\":2,\"$\":3,\"%\":4,\"&\":5,\"'\":6,\"(\":7,\")\":8,\"*\":9,\"+\":10,\",\":11,\"-\":12,"   \
    "\".\":13,\"/\":14,\"0\":15,\"1\":16,\"2\":17,\"3\":18,\"4\":19,\"5\":20,\"6\":21,\"7\":22,\"8\":23,\"9\":24,"     \
    "\":\":25,\";\":26,\"<\":27,\"=\":28,\">\":29,\"?\":30,\"@\":31,\"A\":32,\"B\":33,\"[\":34,\"\\\\\":35,\"]\":36,"  \
    "\"^\":37,\"_\":38,\"|\":39,\"a\":40,\"b\":41,\"c\":42,\"d\":43,\"e\":44,\"f\":45,\"g\":46,\"h\":47,\"i\":48,"     \
    "\"j\":49,\"k\":50,\"l\":51,\"m\":52,\"n\":53,\"o\":54,\"p\":55,\"q\":56,\"r\":57,\"s\":58,\"t\":59,\"u\":60,"     \
    "\"v\":61,\"w\":62,\"x\":63,\"y\":64,\"z\":65,\"\\u0120\":66,\"\\u010a\":67,\"th\":68,\"he\":69,\"the\":70,"       \
    "\"\\u0120t\":71,\"the\\u0120\":72"

static inline void assert_decodes(const ql_tokenizer *t, const int32_t *ids, size_t count, unsigned flags, const char *wanted)
{
    ql_text text = {0};
    ql_error err = {0};
    ck_assert_ok(ql_tokenizer_decode(t, ids, count, flags, &text, &err), &err);
    ck_assert_str_eq(text.data ? text.data : "", wanted);
    ql_text_free(&text);
}

#endif
