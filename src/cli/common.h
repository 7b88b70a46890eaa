/* What the commands over a model share: options, opening things, and words for people. */
#ifndef QL_SRC_CLI_COMMON_H
#define QL_SRC_CLI_COMMON_H

#include <stdint.h>

#include "cli/args.h"
#include "qlora/data.h"
#include "qlora/io.h"
#include "qlora/model.h"
#include "qlora/train.h"

/* The first member of every command's values. */
typedef struct cli_common {
    const char *model, *adapter;
    const char *format;
    size_t group_size;
    bool double_quant;
    const char *cache, *compute, *head_format;
    size_t seq_len;
    const char *chat_template;
    bool train_on_inputs;
    size_t threads;
    bool json, quiet;
} cli_common;

extern const cli_option cli_model_options[];  /* --model */
extern const cli_option cli_format_options[]; /* --format, --head-format, ... */
extern const cli_option cli_compute_options[];   /* --compute; */
extern const cli_option cli_inference_options[]; /* with what is for inference only */
extern const cli_option cli_data_options[];   /* --seq-len, --chat-template, --train-on-inputs */
extern const cli_option cli_run_options[];    /* --threads, --json, --quiet */

/* Whether --compute lets products round to bf16 on this processor. */
bool cli_bf16(const cli_common *common);

/* A model and what belongs to it. Zeroed is empty; cli_session_close() takes any state. */
typedef struct cli_session {
    const cli_args *args;
    const cli_common *common;
    FILE *out; /* words for people: stdout, stderr with --json, NULL with --quiet */
    ql_format format; /* asked for; of a model that is loaded, its own */
    ql_format head_format;
    bool stored;      /* nobody asked, and the file is quantized already */
    ql_model_config config;
    ql_workers *workers;
    ql_tokenizer *tokenizer;
    ql_model *model;
    ql_model_cache cache;
    double load_seconds;
} cli_session;

/* Everything that can be told before the weights are read: format, config.json, tokenizer, the adapter's being
 * there, --seq-len against the model's positions. Returns the exit status, complaints made. */
int cli_session_open(cli_session *session, const cli_args *args);

/* The same without the tokenizer. */
int cli_session_start(cli_session *session, const cli_args *args);

/* Reads and quantizes the weights. The adapter is the caller's to load. */
int cli_session_load(cli_session *session);
void cli_session_close(cli_session *session);

/* --seq-len, or the model's positions where the default is more than these. */
size_t cli_sequence(const cli_session *session);

/* Opens a data set as the options say, and passes its warnings on. */
int cli_open_data(ql_dataset **out, const cli_session *session, const char *path);

/* Says on stderr what went wrong, and returns CLI_FAILED. */
int cli_failed(const ql_error *err);
int cli_failed_with(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Members loss, perplexity, samples, tokens, learned and seconds of the open object. */
void cli_json_eval(ql_json *json, const ql_eval_report *report);

/* Ends the outermost object and prints it to stdout; frees the text. Returns the exit status. */
int cli_json_print(ql_json *json);

bool cli_ends_in(const char *path, const char *ending); /* in letters of either case */

/* Prints unless --quiet. */
void cli_say(const cli_session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "12.3 MB", "1234567" as "1,234,567", and seconds as "1:02:03". Return text. */
typedef char cli_text[32];
const char *cli_bytes(size_t bytes, cli_text text);
const char *cli_count(size_t count, cli_text text);
const char *cli_time(double seconds, cli_text text);

double cli_now(void);         /* seconds of a clock that only goes forward */
size_t cli_peak_memory(void); /* bytes that were resident at most */
size_t cli_resident_memory(void); /* bytes that are resident now */

#endif
