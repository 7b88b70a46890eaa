#define _GNU_SOURCE
#include "cli/common.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FIELD(name) offsetof(cli_common, name)

const cli_option cli_model_options[] = {
    {"model", CLI_TEXT, FIELD(model), "MODEL", NULL, 0, 0, true, "Input and output",
     "Hugging Face folder: config.json, safetensors (one file or shards), tokenizer.json; or a GGUF file"},
    {0},
};

const cli_option cli_format_options[] = {
    {"format", CLI_CHOICE, FIELD(format), "nf4|fp4|int4|int8|bnb-nf4|bnb-fp4|bf16|f16|f32|none", "nf4", 0, 0,
     false, "Base weights",
     "what the weights are quantized or converted to; none: as stored, for plain LoRA; a GGUF file or a bitsandbytes "
     "folder that is quantized already is used as stored unless this is given"},
    {"group-size", CLI_SIZE, FIELD(group_size), "N", "64", 32, 4096, false, "Base weights",
     "weights that share a scale: 32, 64, 128 or 256"},
    {"double-quant", CLI_FLAG, FIELD(double_quant), NULL, "yes", 0, 0, false, "Base weights",
     "keep the scales in fp16 instead of 8 bits"},
    {"head-format", CLI_TEXT, FIELD(head_format), "NAME", "none", 0, 0, false, "Base weights",
     "the LM head's format: nf4, fp4, int4, int8, f16, bf16, or none (as stored)"},
    {"cache", CLI_TEXT, FIELD(cache), "DIR", NULL, 0, 0, false, "Base weights",
     "keep the quantized weights in a file in this folder, and start from it the next time; it may be removed at any time"},
    {0},
};

const cli_option cli_compute_options[] = {
    {"compute", CLI_CHOICE, FIELD(compute), "auto|f32|bf16", "auto", 0, 0, false, "Base weights",
     "bf16: round the inputs of products with quantized weights, and of attention, to bf16 where this processor is "
     "faster that way; auto: bf16 on processors with AMX, which are several times faster with it, otherwise f32"},
    {0},
};

const cli_option cli_inference_options[] = {
    {"compute", CLI_CHOICE, FIELD(compute), "f32|bf16|int8", "f32", 0, 0, false, "Base weights",
     "bf16, int8: round the inputs of products with quantized weights to bf16, or to 8 bits with a factor for every 64 "
     "(in prompts, with AMX: 512), where this processor is faster that way"},
    {0},
};

const cli_option cli_data_options[] = {
    {"seq-len", CLI_SIZE, FIELD(seq_len), "N", "512", 1, 1 << 20, false, "Data",
     "tokens of a sample at most; text is packed to this length, longer JSON lines are cut and counted"},
    {"chat-template", CLI_TEXT, FIELD(chat_template), "NAME", NULL, 0, 0, false, "Data",
     "chatml, llama2, llama3, zephyr or a Jinja file, in place of the model's own template"},
    {"train-on-inputs", CLI_FLAG, FIELD(train_on_inputs), NULL, "no", 0, 0, false, "Data",
     "count prompts and user turns in the loss too, not only completions and answers"},
    {0},
};

const cli_option cli_run_options[] = {
    {"threads", CLI_SIZE, FIELD(threads), "N", "0", 0, 1024, false, "Running and reporting",
     "0: one for each CPU; the result does not depend on it"},
    {"json", CLI_FLAG, FIELD(json), NULL, "no", 0, 0, false, "Running and reporting",
     "one JSON object with the result on stdout; words for people go to stderr"},
    {"quiet", CLI_FLAG, FIELD(quiet), NULL, "no", 0, 0, false, "Running and reporting",
     "say nothing but warnings and errors"},
    {0},
};

int cli_failed(const ql_error *err)
{
    return cli_failed_with("%s", err->message);
}

int cli_failed_with(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "qlora: error: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    return CLI_FAILED;
}

bool cli_ends_in(const char *path, const char *ending)
{
    size_t length = strlen(path), size = strlen(ending);
    return length >= size && strcasecmp(path + length - size, ending) == 0;
}

void cli_say(const cli_session *session, const char *format, ...)
{
    if (!session->out)
        return;
    va_list args;
    va_start(args, format);
    vfprintf(session->out, format, args);
    va_end(args);
    fflush(session->out);
}

static int check_adapter(const char *dir)
{
    char path[4096];
    if (!dir)
        return CLI_OK;
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    if (access(path, R_OK) != 0)
        return cli_failed_with("%s: cannot read it (%m); --adapter takes a PEFT adapter folder", path);
    return CLI_OK;
}

static int check_seq_len(const cli_session *s)
{
    if (!s->common->seq_len || s->common->seq_len <= s->config.max_positions || !cli_given(s->args, "seq-len"))
        return CLI_OK;
    return cli_wrong(s->args->command, "--seq-len %zu: %s has %zu positions (max_position_embeddings)",
                     s->common->seq_len, s->common->model, s->config.max_positions);
}

/* Weights that a GGUF file or a bitsandbytes folder holds quantized are used so, unless a format was asked for. */
static ql_status choose_format(cli_session *session, ql_error *err)
{
    static const char *const asked[] = {"format", "group-size", "double-quant"};
    ql_format standard;
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
        if (cli_given(session->args, asked[i]))
            return QL_OK;
    ql_status status = ql_model_default_format(&standard, session->common->model, err);
    session->stored = !status && standard.code == QL_CODE_F32;
    if (session->stored)
        session->format = standard;
    return status;
}

/* The commonest mistake: the name that a model has elsewhere instead of a folder here. */
static int check_model(const char *model)
{
    char path[4096];
    struct stat info;
    snprintf(path, sizeof path, "%s/config.json", model);
    bool there = stat(model, &info) == 0;
    if (there && (!S_ISDIR(info.st_mode) || access(path, F_OK) == 0))
        return CLI_OK;
    return cli_failed_with("--model %s: %s; a Hugging Face folder (config.json, safetensors, tokenizer.json) or a GGUF "
                           "file is needed here, as 'hf download NAME --local-dir DIR' puts one",
                           model, there ? "this folder has no config.json" : strerror(errno));
}

int cli_session_start(cli_session *session, const cli_args *args)
{
    ql_error err = {0};
    const cli_common *common = args->values;
    session->args = args;
    session->common = common;
    session->out = common->quiet ? NULL : common->json ? stderr : stdout;
    if (ql_format_parse(&session->format, common->format, (uint32_t)common->group_size, common->double_quant, &err))
        return cli_wrong(args->command, "--format %s: %s", common->format, err.message);
    if (ql_format_parse(&session->head_format, common->head_format, (uint32_t)common->group_size,
                        common->double_quant, &err))
        return cli_wrong(args->command, "--head-format %s: %s", common->head_format, err.message);
    if (check_model(common->model) != CLI_OK)
        return CLI_FAILED;
    if (ql_model_config_read(&session->config, common->model, &err) || choose_format(session, &err))
        return cli_failed(&err);
    int status = check_seq_len(session);
    if (status == CLI_OK)
        status = check_adapter(common->adapter);
    if (status == CLI_OK && ql_workers_create(&session->workers, common->threads, &err))
        status = cli_failed(&err);
    return status;
}

int cli_session_open(cli_session *session, const cli_args *args)
{
    ql_error err = {0};
    int status = cli_session_start(session, args);
    if (status == CLI_OK && ql_tokenizer_open(&session->tokenizer, session->common->model, &err))
        status = cli_failed(&err);
    return status;
}

bool cli_bf16(const cli_common *common)
{
    bool tiles = strstr(ql_cpu_describe(), "amx-bf16") != NULL;
    return strcmp(common->compute, "bf16") == 0 || (tiles && strcmp(common->compute, "auto") == 0);
}

int cli_session_load(cli_session *session)
{
    ql_error err = {0};
    double start = cli_now();
    ql_model_cache *cache = &session->cache;
    cache->dir = session->common->cache;
    if (ql_model_open_cached(&session->model, session->common->model, session->format, cache, session->workers, &err))
        return cli_failed(&err);
    if (cache->dir && session->out) /* never among generated text */
        fprintf(stderr, "Cache     %s%s\n", cache->used ? "weights from " : cache->reason,
                cache->used      ? cache->path
                : cache->written ? "; the weights were read anew and written there"
                                 : "");
    if (ql_model_quantize_head(session->model, session->head_format, session->workers, &err))
        return cli_failed(&err);
    if (strcmp(session->common->compute, "int8") == 0)
        ql_model_allow_int8(session->model, true);
    else
        ql_model_allow_bf16(session->model, cli_bf16(session->common));
    session->format = ql_model_format(session->model);
    session->load_seconds = cli_now() - start;
    return CLI_OK;
}

void cli_session_close(cli_session *session)
{
    ql_model_destroy(session->model);
    ql_tokenizer_close(session->tokenizer);
    ql_workers_destroy(session->workers);
    *session = (cli_session){0};
}

size_t cli_sequence(const cli_session *session)
{
    size_t asked = session->common->seq_len, most = session->config.max_positions;
    return asked < most ? asked : most;
}

/* A table would be learned as if it were prose. */
static bool is_table(const char *path)
{
    static const char *const endings[] = {".csv", ".tsv", ".parquet", ".arrow", ".xlsx"};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0)
            return true;
    return false;
}

int cli_open_data(ql_dataset **out, const cli_session *session, const char *path)
{
    if (is_table(path))
        return cli_failed_with("%s: tables are not read; write each row as a line of JSON, {\"prompt\": ..., "
                               "\"completion\": ...}, into a .jsonl file",
                               path);
    ql_error err = {0};
    ql_data_options options = ql_data_options_defaults();
    options.sequence = cli_sequence(session);
    options.chat_template = session->common->chat_template;
    options.mask_prompt = !session->common->train_on_inputs;
    if (ql_dataset_open(out, path, session->tokenizer, &options, &err))
        return cli_failed(&err);
    for (size_t i = 0; i < ql_dataset_warnings(*out); i++)
        fprintf(stderr, "qlora: warning: %s: %s\n", path, ql_dataset_warning(*out, i));
    return CLI_OK;
}

void cli_json_eval(ql_json *json, const ql_eval_report *report)
{
    ql_json_number(json, "loss", report->loss);
    ql_json_number(json, "perplexity", report->perplexity);
    ql_json_integer(json, "samples", (int64_t)report->samples);
    ql_json_integer(json, "tokens", (int64_t)report->tokens);
    ql_json_integer(json, "learned", (int64_t)report->learned);
    ql_json_number(json, "seconds", report->seconds);
}

int cli_json_print(ql_json *json)
{
    ql_error err = {0};
    ql_json_end(json);
    ql_status status = ql_json_line(json, stdout, "standard output", &err);
    ql_json_free(json);
    return status ? cli_failed(&err) : CLI_OK;
}

const char *cli_bytes(size_t bytes, cli_text text)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    double amount = (double)bytes;
    size_t unit = 0;
    while (amount >= 999.95 && unit < 4)
        amount /= 1000, unit++;
    snprintf(text, sizeof(cli_text), unit ? "%.1f %s" : "%.0f %s", amount, units[unit]);
    return text;
}

const char *cli_count(size_t count, cli_text text)
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%zu", count), used = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = 0;
    return text;
}

const char *cli_time(double seconds, cli_text text)
{
    unsigned long long s = seconds > 0 && seconds < 1e12 ? (unsigned long long)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(text, sizeof(cli_text), "%llu:%02llu:%02llu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, sizeof(cli_text), "%llu:%02llu", s / 60, s % 60);
    return text;
}

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

size_t cli_peak_memory(void)
{
    struct rusage use;
    return getrusage(RUSAGE_SELF, &use) == 0 ? (size_t)use.ru_maxrss * 1024 : 0;
}

size_t cli_resident_memory(void)
{
    unsigned long all, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file && fscanf(file, "%lu %lu", &all, &resident) != 2)
        resident = 0;
    if (file)
        fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}
