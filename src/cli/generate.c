/* qlora generate: text from a model, printed while it is made. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/stream.h"

typedef struct generate_values {
    cli_common common;
    const char *prompt, *prompt_file, *system;
    bool chat;
    size_t max_tokens, top_k, seed;
    double temperature, top_p;
    cli_list stop;
} generate_values;

#define FIELD(name) offsetof(generate_values, name)
#define FILES "Input and output"
#define TEXT "Text"

static const cli_option own_options[] = {
    {"adapter", CLI_TEXT, FIELD(common.adapter), "DIR", NULL, 0, 0, false, FILES,
     "PEFT adapter folder to put on the model"},
    {"prompt", CLI_TEXT, FIELD(prompt), "TEXT", NULL, 0, 0, false, FILES, "the text to go on from; this or --prompt-file"},
    {"prompt-file", CLI_TEXT, FIELD(prompt_file), "FILE", NULL, 0, 0, false, FILES,
     "the same from a file; - is standard input"},
    {"chat", CLI_FLAG, FIELD(chat), NULL, "no", 0, 0, false, FILES,
     "the prompt is a user's message, in the model's chat template"},
    {"system", CLI_TEXT, FIELD(system), "TEXT", NULL, 0, 0, false, FILES, "with --chat: the system message"},
    {"chat-template", CLI_TEXT, FIELD(common.chat_template), "NAME", NULL, 0, 0, false, FILES,
     "chatml, llama2, llama3, zephyr or a Jinja file, in place of the model's own template"},
    {"max-tokens", CLI_SIZE, FIELD(max_tokens), "N", "256", 1, 1 << 20, false, TEXT, "tokens to make at most"},
    {"temperature", CLI_REAL, FIELD(temperature), "X", "0.8", 0, 100, false, TEXT, "0: always the likeliest token"},
    {"top-p", CLI_REAL, FIELD(top_p), "P", "0.95", 0, 1, false, TEXT, "choose among the likeliest that sum to P"},
    {"top-k", CLI_SIZE, FIELD(top_k), "N", "0", 0, 1 << 20, false, TEXT, "choose among the N likeliest; 0: among all"},
    {"seed", CLI_SIZE, FIELD(seed), "N", "0", 0, 9007199254740991, false, TEXT, "of the choices"},
    {"stop", CLI_LIST, FIELD(stop), "TEXT", NULL, 0, 0, false, TEXT, "end before this text; may be given again"},
    {0},
};

typedef struct generation {
    cli_session session;
    const generate_values *v;
    ql_text prompt;
    ql_ids ids;
    ql_generator *generator;
    cli_stream stream;
    size_t made;
    double prompt_seconds, seconds; /* until the first logits, and after */
    const char *ended;              /* "end", "stop" or "length" */
} generation;

static int check_options(const cli_args *args)
{
    const generate_values *v = args->values;
    if (!v->prompt == !v->prompt_file)
        return cli_wrong(args->command, "one of --prompt TEXT and --prompt-file FILE is needed");
    if (v->system && !v->chat)
        return cli_wrong(args->command, "--system needs --chat");
    for (size_t i = 0; i < v->stop.count; i++)
        if (!*v->stop.items[i])
            return cli_wrong(args->command, "--stop '': an empty text would end everything");
    return CLI_OK;
}

static int read_prompt(generation *g)
{
    const char *path = g->v->prompt_file;
    if (!path) {
        g->prompt.data = strdup(g->v->prompt);
        g->prompt.length = strlen(g->v->prompt);
        return g->prompt.data ? CLI_OK : cli_failed_with("out of memory");
    }
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (!file)
        return cli_failed_with("--prompt-file %s: cannot read it (%m)", path);
    ssize_t length = getdelim(&g->prompt.data, &g->prompt.capacity, EOF, file);
    bool failed = ferror(file);
    if (file != stdin)
        fclose(file);
    g->prompt.length = length > 0 ? (size_t)length : 0;
    return failed ? cli_failed_with("--prompt-file %s: cannot read it", path) : CLI_OK;
}

static int encode_prompt(generation *g)
{
    ql_error err = {0};
    ql_tokenizer *tokenizer = g->session.tokenizer;
    const char *text = g->prompt.data ? g->prompt.data : "";
    ql_message messages[] = {{"system", g->v->system, g->v->system ? strlen(g->v->system) : 0},
                             {"user", text, g->prompt.length}};
    size_t skip = !g->v->system;
    ql_status status = g->v->chat
                           ? ql_chat_encode(tokenizer, g->v->common.chat_template, messages + skip, 2 - skip, true,
                                            &g->ids, NULL, &err)
                           : ql_tokenizer_encode(tokenizer, text, g->prompt.length, QL_ENCODE_SPECIALS, &g->ids, &err);
    if (status)
        return cli_failed(&err);
    if (!g->ids.count)
        return cli_failed_with("the prompt is empty, and the model has no token that begins a text");
    if (g->ids.count >= g->session.config.max_positions)
        return cli_failed_with("the prompt has %zu tokens; the model has %zu positions (max_position_embeddings)",
                               g->ids.count, g->session.config.max_positions);
    return CLI_OK;
}

static int prepare(generation *g, const cli_args *args)
{
    ql_error err = {0};
    g->v = args->values;
    int status = check_options(args);
    if (status == CLI_OK)
        status = cli_session_open(&g->session, args);
    if (status == CLI_OK)
        status = read_prompt(g);
    if (status == CLI_OK)
        status = encode_prompt(g);
    if (status == CLI_OK)
        status = cli_session_load(&g->session);
    if (status != CLI_OK)
        return status;
    if (g->v->common.adapter && ql_adapter_load(g->session.model, g->v->common.adapter, false, &err))
        return cli_failed(&err);
    size_t room = g->session.config.max_positions - g->ids.count;
    size_t cache = g->ids.count + (g->v->max_tokens < room ? g->v->max_tokens : room);
    if (ql_generator_create(&g->generator, g->session.model, cache, g->session.workers, &err))
        return cli_failed(&err);
    return cli_stream_open(&g->stream, g->v->common.json ? NULL : stdout, g->session.tokenizer, g->v->chat,
                           &g->v->stop);
}

static int make_text(generation *g)
{
    ql_error err = {0};
    const generate_values *v = g->v;
    const float *logits;
    ql_sampling sampling = {.temperature = v->temperature, .top_p = v->top_p, .top_k = v->top_k, .seed = v->seed};
    size_t vocab = g->session.config.vocab_size, most = g->session.config.max_positions - g->ids.count;
    double start = cli_now();
    if (ql_generator_feed(g->generator, g->ids.data, g->ids.count, &logits, &err))
        return cli_failed(&err);
    double ready = cli_now();
    g->prompt_seconds = ready - start;
    g->ended = "length";
    for (most = v->max_tokens < most ? v->max_tokens : most; g->made < most; g->made++) {
        int32_t token;
        if (ql_sample_token(&token, logits, vocab, &sampling, ql_generator_position(g->generator), &err))
            return cli_failed(&err);
        if (ql_tokenizer_is_end(g->session.tokenizer, token)) {
            g->ended = "end";
            break;
        }
        int status = cli_stream_push(&g->stream, token);
        if (status != CLI_OK)
            return status;
        if (g->stream.stopped) {
            g->ended = "stop";
            g->made++;
            break;
        }
        if (g->made + 1 < most && ql_generator_feed(g->generator, &token, 1, &logits, &err))
            return cli_failed(&err);
    }
    g->seconds = cli_now() - ready;
    return cli_stream_finish(&g->stream);
}

static int tell(const generation *g)
{
    ql_json json = {.pretty = false};
    double speed = g->seconds > 0 ? (double)g->made / g->seconds : 0;
    if (!g->v->common.quiet)
        fprintf(stderr, "Prompt %zu tokens in %.2f s; %zu tokens in %.2f s, %.1f tokens/s (%s)\n", g->ids.count,
                g->prompt_seconds, g->made, g->seconds, speed, g->ended);
    if (!g->v->common.json)
        return CLI_OK;
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "generate");
    ql_json_string(&json, "model", g->v->common.model);
    ql_json_string(&json, "adapter", g->v->common.adapter);
    ql_json_text(&json, "text", g->stream.text.data ? g->stream.text.data : "", g->stream.text.length);
    ql_json_string(&json, "ended", g->ended);
    ql_json_integer(&json, "prompt_tokens", (int64_t)g->ids.count);
    ql_json_integer(&json, "tokens", (int64_t)g->made);
    ql_json_number(&json, "prompt_seconds", g->prompt_seconds);
    ql_json_number(&json, "seconds", g->seconds);
    ql_json_number(&json, "tokens_per_second", speed);
    return cli_json_print(&json);
}

static int run(const cli_args *args)
{
    generation g = {0};
    int status = prepare(&g, args);
    if (status == CLI_OK)
        status = make_text(&g);
    if (status == CLI_OK)
        status = tell(&g);
    cli_stream_close(&g.stream);
    ql_generator_destroy(g.generator);
    ql_ids_free(&g.ids);
    free(g.prompt.data);
    cli_session_close(&g.session);
    return status;
}

static const char *const examples[] = {
    "qlora generate --model Qwen2.5-0.5B --prompt 'Once upon a time'",
    "Goes on from the text.",
    "qlora generate --model Qwen2.5-0.5B-Instruct --adapter my-adapter --chat --prompt 'What is a quark?'",
    "Asks a chat model with an adapter on it.",
    "qlora generate --model Qwen2.5-0.5B --prompt-file - --temperature 0 --stop '###' < prompt.txt",
    "Greedy, from standard input, up to a marker.",
    NULL,
};

static const cli_option *const options[] = {cli_model_options, own_options, cli_format_options, cli_inference_options,
                                            cli_run_options, NULL};

const cli_command cli_generate = {
    .name = "generate",
    .summary = "text from a model, with or without an adapter",
    .about = "Prints what the model says after the prompt, while it says it, up to the end of the text or of the turn.",
    .examples = examples,
    .options = options,
    .values = sizeof(generate_values),
    .run = run,
};
