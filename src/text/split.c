#define _GNU_SOURCE
#include "text/split.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/grow.h"
#include "text/utf8.h"

/* The pattern that ByteLevel has built in, by GPT-2. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

/* From the dialect of tokenizer.json (Oniguruma) to PCRE2's. Of what tokenizers use, white space differs: PCRE2's \s
 * takes U+180E for a space; words: its \w leaves out marks; and \h there is a hexadecimal digit. */
static const struct {
    char escape;
    const char *instead, *in_class; /* in_class NULL: as outside */
} differing[] = {
    {'s', "\\p{White_Space}", NULL}, {'S', "\\P{White_Space}", NULL}, {'h', "\\p{AHex}", NULL},
    {'H', "\\P{AHex}", NULL},        {'w', "[" WORD "]", WORD},       {'W', "[^" WORD "]", "\\W"},
};

static bool translate_escape(const char *at, bool in_class, ql_text *out)
{
    for (size_t i = 0; i < sizeof differing / sizeof *differing; i++)
        if (at[1] == differing[i].escape)
            return ql_text_add_string(out,
                                      in_class && differing[i].in_class ? differing[i].in_class : differing[i].instead);
    return ql_text_add(out, at, 2);
}

static bool translate(const char *pattern, ql_text *out)
{
    bool in_class = false, fits = true;
    for (const char *at = pattern; *at && fits; at++) {
        if (at[0] == '\\' && at[1]) {
            fits = translate_escape(at++, in_class, out);
            continue;
        }
        in_class = in_class ? *at != ']' : *at == '[';
        fits = ql_text_add(out, at, 1);
    }
    return fits;
}

static ql_status compile(ql_split *split, const char *pattern, const char *file, ql_error *err)
{
    ql_text translated = {0};
    int code = 0;
    size_t at = 0;
    bool memory = translate(pattern, &translated);
    if (memory)
        split->code = pcre2_compile((PCRE2_SPTR)translated.data, translated.length,
                                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    ql_text_free(&translated);
    if (memory && !split->code) {
        char why[120];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: pre_tokenizer: the pattern %.200s: %s", file, pattern, why);
    }
    split->match = memory ? pcre2_match_data_create(1, NULL) : NULL;
    if (!split->match)
        return ql_fail(err, QL_ERR_MEMORY, "%s: pre_tokenizer: out of memory", file);
    pcre2_jit_compile(split->code, PCRE2_JIT_COMPLETE); /* without a JIT the interpreter serves */
    return QL_OK;
}

typedef struct loading {
    ql_splits *splits;
    ql_edits *edits;
} loading;

static ql_status add_split(loading *into, ql_split split, const char *pattern, const ql_json_at *step, ql_error *err)
{
    ql_splits *splits = into->splits;
    if (splits->count == sizeof splits->list / sizeof *splits->list)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: pre_tokenizer: more than %zu steps", step->file, splits->count);
    splits->list[splits->count++] = split;
    return pattern ? compile(&splits->list[splits->count - 1], pattern, step->file, err) : QL_OK;
}

/* Changes of the text come before all splitting: then one text serves all words. */
static ql_status add_edit(loading *into, ql_edit edit, const ql_json_at *step, ql_error *err)
{
    if (into->splits->count)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: %s: a step that changes the text after one that splits it is not supported", step->file,
                       step->path);
    if (!ql_edits_add(into->edits, &edit))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: pre_tokenizer: too many steps, or steps that make texts too long", step->file);
    return QL_OK;
}

static ql_status load_byte_level(loading *into, const ql_json_at *step, ql_error *err)
{
    bool prefix = true, regex = true;
    ql_status status = ql_json_get_bool(step, "add_prefix_space", QL_OPTIONAL, &prefix, err);
    if (!status)
        status = ql_json_get_bool(step, "use_regex", QL_OPTIONAL, &regex, err);
    if (!status && prefix)
        status = add_edit(into, (ql_edit){.kind = QL_EDIT_PREPEND_ONCE, .to = " "}, step, err);
    if (!status && regex)
        status = add_split(into, (ql_split){.kind = QL_SPLIT_REGEX}, gpt2_pattern, step, err);
    into->splits->bytes = true;
    return status;
}

/* A String pattern as a regular expression. */
static bool quote(const char *string, ql_text *out)
{
    for (; *string; string++)
        if ((strchr("\\^$.[]|()?*+{}-#", *string) && !ql_text_add(out, "\\", 1)) || !ql_text_add(out, string, 1))
            return false;
    return true;
}

static ql_status load_split(loading *into, const ql_json_at *step, ql_error *err)
{
    ql_split split = {.kind = QL_SPLIT_REGEX};
    ql_json_at pattern;
    const char *behavior = NULL, *regex = NULL, *string = NULL;
    ql_text quoted = {0};
    ql_status status = ql_json_get_object(step, "pattern", QL_REQUIRED, &pattern, err);
    if (!status)
        status = ql_json_get_string(&pattern, "Regex", QL_OPTIONAL, &regex, NULL, err);
    if (!status && !regex)
        status = ql_json_get_string(&pattern, "String", QL_REQUIRED, &string, NULL, err);
    if (!status)
        status = ql_json_get_string(step, "behavior", QL_REQUIRED, &behavior, NULL, err);
    if (!status)
        status = ql_json_get_bool(step, "invert", QL_OPTIONAL, &split.invert, err);
    if (status)
        return status;
    split.removed = strcmp(behavior, "Removed") == 0;
    split.merged = strcmp(behavior, "MergedWithPrevious") == 0;
    if ((!split.removed && !split.merged && strcmp(behavior, "Isolated") != 0) || (split.merged && split.invert))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s: behavior %.40s%s is not supported; known: Isolated, Removed, "
                       "MergedWithPrevious (not inverted)", step->file, step->path, behavior,
                       split.invert ? ", inverted," : "");
    if (string && !quote(string, &quoted))
        status = ql_fail(err, QL_ERR_MEMORY, "%s: pre_tokenizer: out of memory", step->file);
    if (!status)
        status = add_split(into, split, regex ? regex : quoted.data ? quoted.data : "", step, err);
    ql_text_free(&quoted);
    return status;
}

static ql_status load_digits(loading *into, const ql_json_at *step, ql_error *err)
{
    bool each = false;
    ql_status status = ql_json_get_bool(step, "individual_digits", QL_OPTIONAL, &each, err);
    return status ? status
                  : add_split(into, (ql_split){.kind = QL_SPLIT_REGEX}, each ? "\\p{N}" : "\\p{N}+", step, err);
}

static ql_status load_metaspace(loading *into, const ql_json_at *step, ql_error *err)
{
    ql_edit replace = {.kind = QL_EDIT_REPLACE, .from = " "}, prepend = {.kind = QL_EDIT_PREPEND_ONCE};
    ql_split split = {.kind = QL_SPLIT_BEFORE};
    const char *scheme = NULL;
    bool prefix = true, splits = true;
    ql_status status = ql_short_string(replace.to, sizeof replace.to, step, "replacement", err);
    if (!status && !replace.to[0])
        status = ql_fail(err, QL_ERR_FORMAT, "%s: %s: the replacement of Metaspace is empty", step->file, step->path);
    if (!status)
        status = ql_json_get_string(step, "prepend_scheme", QL_OPTIONAL, &scheme, NULL, err);
    if (!status)
        status = ql_json_get_bool(step, "add_prefix_space", QL_OPTIONAL, &prefix, err);
    if (!status)
        status = ql_json_get_bool(step, "split", QL_OPTIONAL, &splits, err);
    if (status)
        return status;
    strcpy(prepend.to, replace.to);
    strcpy(split.mark, replace.to);
    prepend.start_only = scheme && strcmp(scheme, "first") == 0;
    if (scheme)
        prefix = strcmp(scheme, "never") != 0;
    status = add_edit(into, replace, step, err);
    if (!status && prefix)
        status = add_edit(into, prepend, step, err);
    return !status && splits ? add_split(into, split, NULL, step, err) : status;
}

static ql_status load_step(void *ctx, const ql_json_at *step, const char *type, ql_error *err)
{
    static const struct {
        const char *type;
        ql_status (*load)(loading *into, const ql_json_at *step, ql_error *err);
    } known[] = {
        {"ByteLevel", load_byte_level}, {"Split", load_split}, {"Digits", load_digits}, {"Metaspace", load_metaspace}};
    loading *into = ctx;
    if (into->splits->bytes)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s: %s after ByteLevel is not supported", step->file, step->path,
                       type);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(type, known[i].type) == 0)
            return known[i].load(into, step, err);
    return ql_fail(err, QL_ERR_UNSUPPORTED,
                   "%s: pre_tokenizer %s is not supported; known: ByteLevel, Split, Digits, Metaspace, Sequence",
                   step->file, type);
}

ql_status ql_splits_load(ql_splits *splits, ql_edits *edits, const ql_json_at *root, ql_error *err)
{
    loading into = {splits, edits};
    return ql_steps_load(root, "pre_tokenizer", "pretokenizers", load_step, &into, err);
}

void ql_splits_free(ql_splits *splits)
{
    for (size_t i = 0; i < splits->count; i++) {
        pcre2_code_free(splits->list[i].code);
        pcre2_match_data_free(splits->list[i].match);
    }
    *splits = (ql_splits){0};
}

bool ql_splits_add_runs(ql_splits *splits, const char *mark)
{
    if (splits->count == sizeof splits->list / sizeof *splits->list)
        return false;
    ql_split *split = &splits->list[splits->count++];
    *split = (ql_split){.kind = QL_SPLIT_BEFORE, .runs = true};
    strcpy(split->mark, mark);
    return true;
}

typedef struct walk {
    const ql_splits *splits;
    ql_word *word;
    void *ctx;
} walk;

static ql_status go(const walk *w, size_t step, const char *text, size_t length, ql_error *err);

/* The next match at or after `from`; from == length: none. */
static int next_match(const ql_split *split, const char *text, size_t length, size_t from)
{
    int found = pcre2_match(split->code, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, split->match, NULL);
    return found == 0 ? 1 : found;
}

static ql_status by_regex(const walk *w, size_t step, const char *text, size_t length, ql_error *err)
{
    const ql_split *split = &w->splits->list[step];
    size_t at = 0, from = 0;
    while (at < length) {
        size_t begin = length, end = length;
        int found = next_match(split, text, length, from);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            return ql_fail(err, QL_ERR_UNSUPPORTED,
                           "splitting into words: the regular expression gave up (PCRE2 error %d)", found);
        if (found > 0) {
            const size_t *where = pcre2_get_ovector_pointer(split->match);
            begin = where[0], end = where[1];
            if (begin == end && begin < length) { /* an empty match splits nothing */
                from = end + ql_utf8_next(text + end, length - end).length;
                continue;
            }
        }
        ql_status status = QL_OK;
        if (split->merged)
            status = go(w, step + 1, text + at, end - at, err);
        else if (begin > at && !(split->removed && split->invert))
            status = go(w, step + 1, text + at, begin - at, err);
        if (!status && end > begin && !split->merged && !(split->removed && !split->invert))
            status = go(w, step + 1, text + begin, end - begin, err);
        if (status)
            return status;
        at = from = end;
    }
    return QL_OK;
}

static bool begins_with(const char *text, const char *end, const char *mark, size_t size)
{
    return (size_t)(end - text) >= size && memcmp(text, mark, size) == 0;
}

static ql_status before_mark(const walk *w, size_t step, const char *text, size_t length, ql_error *err)
{
    const ql_split *split = &w->splits->list[step];
    const char *end = text + length;
    size_t size = strlen(split->mark);
    while (text < end) {
        const char *next = text;
        for (bool more = true; more && begins_with(next, end, split->mark, size); more = split->runs)
            next += size;
        next = memmem(next, (size_t)(end - next), split->mark, size);
        if (!next)
            next = end;
        ql_status status = go(w, step + 1, text, (size_t)(next - text), err);
        if (status)
            return status;
        text = next;
    }
    return QL_OK;
}

static ql_status go(const walk *w, size_t step, const char *text, size_t length, ql_error *err)
{
    if (step == w->splits->count)
        return w->word(w->ctx, text, length, err);
    return w->splits->list[step].kind == QL_SPLIT_REGEX ? by_regex(w, step, text, length, err)
                                                        : before_mark(w, step, text, length, err);
}

ql_status ql_splits_apply(const ql_splits *splits, const char *text, size_t length, ql_word *word, void *ctx,
                          ql_error *err)
{
    walk w = {splits, word, ctx};
    return length ? go(&w, 0, text, length, err) : QL_OK;
}
