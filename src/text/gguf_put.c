/* The tokenizer of a Hugging Face folder as metadata of a GGUF file. */
#include "text/gguf_put.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/gguf.h"
#include "text/grow.h"
#include "text/scores.h"
#include "text/utf8.h"

#define KEY(name) "tokenizer.ggml." name

typedef struct job {
    ql_tokenizer *t;
    const char *folder;
    ql_gguf_meta *meta;
    ql_merge *merges; /* [merge_count] by rank */
    size_t merge_count;
    double *scores; /* [vocabulary], of SentencePiece's BPE */
    ql_error *err;
} job;

static ql_status no_memory(const job *j)
{
    return ql_fail(j->err, QL_ERR_MEMORY, "%s: tokenizer: out of memory", j->folder);
}

/* ---- merges ---- */

static int by_rank(const void *a, const void *b)
{
    uint32_t x = ((const ql_merge *)a)->rank, y = ((const ql_merge *)b)->rank;
    return (x > y) - (x < y);
}

static size_t merges_in(const ql_merges *table)
{
    size_t count = 0;
    for (size_t i = 0; table->slots && i <= table->mask; i++)
        count += table->slots[i].left >= 0;
    return count;
}

static ql_status sort_merges(job *j)
{
    const ql_merges *table = &j->t->bpe.merges;
    j->merges = malloc((merges_in(table) + 1) * sizeof *j->merges);
    if (!j->merges)
        return no_memory(j);
    for (size_t i = 0; table->slots && i <= table->mask; i++)
        if (table->slots[i].left >= 0)
            j->merges[j->merge_count++] = table->slots[i];
    qsort(j->merges, j->merge_count, sizeof *j->merges, by_rank);
    return QL_OK;
}

static ql_status put_merges(job *j)
{
    ql_text line = {0};
    ql_status status = QL_OK;
    ql_gguf_put_array(j->meta, KEY("merges"), QL_GGUF_STRING, j->merge_count);
    for (size_t i = 0; i < j->merge_count && !status; i++) {
        line.length = 0;
        if (ql_text_add_string(&line, ql_vocab_text(&j->t->vocab, j->merges[i].left, NULL)) &&
            ql_text_add(&line, " ", 1) &&
            ql_text_add_string(&line, ql_vocab_text(&j->t->vocab, j->merges[i].right, NULL)))
            ql_gguf_add_string(j->meta, line.data, line.length);
        else
            status = no_memory(j);
    }
    ql_text_free(&line);
    return status;
}

/* ---- tokens ---- */

static bool is_byte(const ql_tokenizer *t, int32_t id)
{
    for (int byte = 0; t->bpe.fallback && byte < 256; byte++)
        if (t->bpe.byte_ids[byte] == id)
            return true;
    return false;
}

static int32_t type_of(const ql_tokenizer *t, int32_t id)
{
    if (!ql_vocab_text(&t->vocab, id, NULL))
        return QL_TOKEN_UNUSED;
    if (id == t->bpe.unk && !t->splits.bytes)
        return QL_TOKEN_UNKNOWN;
    if (t->added.kinds[id])
        return t->added.kinds[id] == 2 ? QL_TOKEN_CONTROL : QL_TOKEN_USER_DEFINED;
    return !t->splits.bytes && is_byte(t, id) ? QL_TOKEN_BYTE : QL_TOKEN_NORMAL;
}

static ql_status put_tokens(job *j, size_t rows)
{
    const ql_vocab *vocab = &j->t->vocab;
    if (vocab->count > rows)
        return ql_fail(j->err, QL_ERR_FORMAT, "%s: the tokenizer has %zu tokens, the model's embedding %zu rows",
                       j->folder, vocab->count, rows);
    ql_gguf_put_array(j->meta, KEY("tokens"), QL_GGUF_STRING, rows);
    for (size_t id = 0; id < rows; id++) {
        size_t length = 0;
        char filler[32];
        const char *text = id < vocab->count ? ql_vocab_text(vocab, (int32_t)id, &length) : NULL;
        if (!text) {
            length = (size_t)snprintf(filler, sizeof filler, "[PAD%zu]", id);
            text = filler;
        }
        ql_gguf_add_string(j->meta, text, length);
    }
    ql_gguf_put_array(j->meta, KEY("token_type"), QL_GGUF_I32, rows);
    for (size_t id = 0; id < rows; id++)
        ql_gguf_add_i32(j->meta, id < vocab->count ? type_of(j->t, (int32_t)id) : QL_TOKEN_UNUSED);
    return QL_OK;
}

/* ---- SentencePiece's BPE: merges by the scores of what they make ---- */

static ql_status not_by_scores(const job *j, int32_t id)
{
    return ql_fail(j->err, QL_ERR_UNSUPPORTED,
                   "%s/tokenizer.json: merges into token %d \"%.40s\" do not follow from scores, which is all that "
                   "GGUF has for a tokenizer of this kind",
                   j->folder, id, ql_vocab_text(&j->t->vocab, id, NULL));
}

/* A token that is merged earlier has a higher score; those that no merge makes have the lowest. */
static ql_status make_scores(job *j)
{
    const ql_vocab *vocab = &j->t->vocab;
    double next = 0;
    j->scores = malloc(vocab->count * sizeof *j->scores);
    if (!j->scores)
        return no_memory(j);
    for (size_t id = 0; id < vocab->count; id++)
        j->scores[id] = QL_NO_SCORE;
    for (size_t i = 0; i < j->merge_count; i++) {
        int32_t id = j->merges[i].merged;
        if (j->scores[id] != QL_NO_SCORE && j->scores[id] != next)
            return not_by_scores(j, id);
        if (j->scores[id] == QL_NO_SCORE)
            j->scores[id] = --next;
    }
    for (size_t id = 0; id < vocab->count; id++) {
        bool normal = type_of(j->t, (int32_t)id) == QL_TOKEN_NORMAL;
        if (!normal && j->scores[id] != QL_NO_SCORE)
            return not_by_scores(j, (int32_t)id);
        if (normal && j->scores[id] == QL_NO_SCORE)
            j->scores[id] = next - 1;
    }
    return QL_OK;
}

/* Scores merge any two neighbours that make a token: there must be no such pair that the merges leave alone. */
static ql_status check_scores(const job *j)
{
    ql_merges made = {0};
    ql_status status = ql_merges_by_score(&made, &j->t->vocab, j->scores, j->err);
    for (size_t i = 0; !status && made.slots && i <= made.mask; i++) {
        const ql_merge *m = &made.slots[i];
        if (m->left >= 0 && !ql_merges_find(&j->t->bpe.merges, m->left, m->right))
            status = not_by_scores(j, m->merged);
    }
    ql_merges_free(&made);
    return status;
}

/* Whether a text gets a space in front. */
static ql_status adds_space(const job *j, bool *out)
{
    const char *text = "a", *edited;
    size_t length = 1;
    ql_status status =
        ql_edits_apply(&j->t->normalizer, QL_PLACE_START, text, length, j->t->normal, &edited, &length, j->err);
    if (!status)
        status =
            ql_edits_apply(&j->t->prefixes, QL_PLACE_START, edited, length, j->t->prefixed, &edited, &length, j->err);
    *out = !status && length > 1;
    return status;
}

static ql_status put_sentencepiece(job *j, size_t rows)
{
    bool space = false;
    ql_status status = make_scores(j);
    if (!status)
        status = check_scores(j);
    if (!status)
        status = adds_space(j, &space);
    if (status)
        return status;
    ql_gguf_put_string(j->meta, KEY("model"), "llama");
    ql_gguf_put_string(j->meta, KEY("pre"), "default");
    status = put_tokens(j, rows);
    ql_gguf_put_array(j->meta, KEY("scores"), QL_GGUF_F32, rows);
    for (size_t id = 0; id < rows; id++) {
        double score = id < j->t->vocab.count ? j->scores[id] : QL_NO_SCORE;
        ql_gguf_add_f32(j->meta, score == QL_NO_SCORE ? 0 : (float)score);
    }
    ql_gguf_put_bool(j->meta, KEY("add_space_prefix"), space);
    return status;
}

/* ---- byte-level BPE: its kind is told by how it splits ---- */

/* What the kinds treat differently: digits, capitals after an apostrophe, line ends after marks, runs of blanks. */
static const char probe[] =
    "I'm HE'LL it's 3 1234567 x2y\n\n \t a   b !?\n...\r\n  (\xc3\xa9t\xc3\xa9) \xd0\x9f\xd1\x80"
    "\xd0\xb8 \xe4\xbd\xa0\xe5\xa5\xbd _under-line \xd9\xa1\xd9\xa2 end  ";

static ql_status add_word(void *ctx, const char *word, size_t length, ql_error *err)
{
    ql_text *words = ctx;
    bool fits = ql_text_add(words, word, length) && ql_text_add(words, "\x1f", 1);
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "tokenizer: out of memory");
}

static ql_status split_by_kind(const job *j, const ql_gguf_kind *kind, ql_text *words)
{
    ql_splits splits = {0};
    ql_edits edits = {0};
    json_t *steps = json_loads(kind->steps, 0, NULL);
    ql_json_at root = ql_json_root(kind->pre, steps);
    ql_status status = steps ? ql_splits_load(&splits, &edits, &root, j->err) : no_memory(j);
    words->length = 0;
    if (!status)
        status = ql_splits_apply(&splits, probe, sizeof probe - 1, add_word, words, j->err);
    ql_splits_free(&splits);
    json_decref(steps);
    return status;
}

static ql_status find_kind(const job *j, const char **pre)
{
    ql_text own = {0}, kinds = {0};
    ql_status status = ql_splits_apply(&j->t->splits, probe, sizeof probe - 1, add_word, &own, j->err);
    const ql_gguf_kind *kind;
    *pre = NULL;
    for (size_t i = 0; !status && !*pre && (kind = ql_gguf_kind_at(i)); i++) {
        if (!kind->pre || kind->ignore_merges != j->t->bpe.ignore_merges)
            continue;
        status = split_by_kind(j, kind, &kinds);
        if (!status && kinds.length == own.length && memcmp(kinds.data, own.data, own.length) == 0)
            *pre = kind->pre;
    }
    ql_text_free(&own);
    ql_text_free(&kinds);
    if (!status && (!*pre || j->t->prefixes.count))
        status = ql_fail(j->err, QL_ERR_UNSUPPORTED,
                         "%s/tokenizer.json: the pre-tokenizer is none that GGUF files are written with here (gpt-2, "
                         "qwen2, llama-bpe, smollm)",
                         j->folder);
    return status;
}

static ql_status put_byte_level(job *j, size_t rows)
{
    const char *pre;
    ql_status status = find_kind(j, &pre);
    if (status)
        return status;
    ql_gguf_put_string(j->meta, KEY("model"), "gpt2");
    ql_gguf_put_string(j->meta, KEY("pre"), pre);
    status = put_tokens(j, rows);
    return status ? status : put_merges(j);
}

/* ---- all ---- */

static void put_specials(const job *j)
{
    const ql_tokenizer *t = j->t;
    const struct {
        const char *key;
        int32_t id;
    } specials[] = {{KEY("bos_token_id"), t->bos},
                    {KEY("eos_token_id"), t->eos},
                    {KEY("unknown_token_id"), t->bpe.unk},
                    {KEY("padding_token_id"), t->pad}};
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
        if (specials[i].id >= 0)
            ql_gguf_put_u32(j->meta, specials[i].key, (uint32_t)specials[i].id);
    ql_gguf_put_bool(j->meta, KEY("add_bos_token"), ql_tokenizer_adds_bos(t));
    ql_gguf_put_bool(j->meta, KEY("add_eos_token"), t->after.count && t->after.data[0] == t->eos);
    if (t->chat_template)
        ql_gguf_put_string(j->meta, "tokenizer.chat_template", t->chat_template);
}

ql_status ql_tokenizer_put_gguf(ql_gguf_meta *meta, const char *folder, size_t rows, ql_error *err)
{
    job j = {.folder = folder, .meta = meta, .err = err};
    ql_status status = ql_tokenizer_open(&j.t, folder, err);
    if (!status)
        status = sort_merges(&j);
    if (!status && j.t->splits.bytes)
        status = put_byte_level(&j, rows);
    else if (!status && j.t->bpe.fallback)
        status = put_sentencepiece(&j, rows);
    else if (!status)
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s/tokenizer.json: neither byte-level nor with byte fallback: GGUF "
                         "has no such tokenizer", folder);
    if (!status)
        put_specials(&j);
    free(j.merges);
    free(j.scores);
    ql_tokenizer_close(j.t);
    return status;
}
