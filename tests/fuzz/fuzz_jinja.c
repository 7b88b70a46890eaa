/* A chat template over a chat: a line of JSON behind it, with "messages" and, if need be, "tools", "documents" and
 * "chat_template_kwargs". */
#include <string.h>

#include "fuzz.h"
#include "text/chat.h"

static ql_tokenizer *tokenizer(void)
{
    static ql_tokenizer *made;
    static const char json[] =
        "{\"added_tokens\": [{\"id\": 0, \"content\": \"<s>\", \"special\": true}], \"model\": {\"type\": \"BPE\", "
        "\"merges\": [], \"vocab\": {\"<s>\": 0, \"a\": 1}}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
        "\"add_prefix_space\": false}, \"decoder\": {\"type\": \"ByteLevel\"}}";
    static const char config[] = "{\"bos_token\": \"<s>\", \"eos_token\": \"<s>\"}";
    ql_error err = {0};
    if (!made) {
        fuzz_file("tokenizer.json", (fuzz_part){(const uint8_t *)json, strlen(json)});
        fuzz_file("tokenizer_config.json", (fuzz_part){(const uint8_t *)config, strlen(config)});
        FUZZ_CHECK(fuzz_went_well(ql_tokenizer_open(&made, fuzz_folder(), &err), &err));
    }
    return made;
}

static json_t *chat_of(fuzz_part text)
{
    static const char standard[] = "{\"messages\": [{\"role\": \"system\", \"content\": \" S\\n\"}, {\"role\": \"user\", "
                                   "\"content\": \"a<s>\\u00e9\"}, {\"role\": \"assistant\", \"content\": \"b, c\"}]}";
    json_t *chat = json_loadb((const char *)text.data, text.size, 0, NULL);
    return chat ? chat : json_loads(standard, 0, NULL);
}

static void render(const char *template, const ql_chat_source *source, bool add_prompt)
{
    ql_chat chat = {0};
    size_t at = 0;
    ql_error err = {0};
    if (fuzz_went_well(ql_chat_render_source(tokenizer(), template, source, add_prompt, &chat, &err), &err)) {
        for (size_t i = 0; i < chat.count; i++) {
            FUZZ_CHECK(chat.pieces[i].begin == at && chat.pieces[i].end > at);
            at = chat.pieces[i].end;
        }
        FUZZ_CHECK(at == chat.text.length);
        FUZZ_CHECK(!at || !chat.text.data[at]);
    }
    ql_chat_free(&chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"a.jinja", "b.jinja"};
    static size_t turn; /* a template of the same name is not read again */
    fuzz_part parts[2];
    fuzz_divide(parts, 2, data, size);
    json_t *chat = chat_of(parts[1]);
    const char *template = fuzz_file(names[turn++ % 2], parts[0]);
    ql_chat_source source = {json_object_get(chat, "messages"), json_object_get(chat, "tools"),
                             json_object_get(chat, "documents"), json_object_get(chat, "chat_template_kwargs")};
    render(template, &source, false);
    render(template, &source, true);
    json_decref(chat);
    return 0;
}
