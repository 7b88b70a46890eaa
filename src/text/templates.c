/* Chat templates known by name, for models that carry none. */
#include "text/chat.h"

#include <string.h>

static const struct {
    const char *name, *text;
} templates[] = {
    {"chatml", "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
               "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"},
    {"llama2", "{% set turns = messages %}{% set system = '' %}{% if messages and messages[0].role == 'system' %}"
               "{% set turns = messages[1:] %}"
               "{% set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' %}{% endif %}"
               "{% if not turns %}{{ raise_exception('a system message alone') }}{% endif %}"
               "{% for turn in turns %}"
               "{% if turn.role != ['user', 'assistant'][loop.index0 % 2] %}"
               "{{ raise_exception('after an optional system message user and assistant take turns, the user first') }}"
               "{% elif turn.role == 'user' %}"
               "{{ bos_token ~ '[INST] ' ~ ((system if loop.first else '') ~ turn.content) | trim ~ ' [/INST]' }}"
               "{% else %}{{ ' ' ~ turn.content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"},
    {"llama3", "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
               "{{ message.content | trim }}<|eot_id|>{% endfor %}"
               "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"},
    {"zephyr", "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content ~ eos_token }}\n{% endfor %}"
               "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"},
};

const char *ql_chat_template_names(void)
{
    return "chatml, llama2, llama3, zephyr";
}

const char *ql_chat_template_named(const char *name)
{
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++)
        if (strcmp(name, templates[i].name) == 0)
            return templates[i].text;
    return NULL;
}
