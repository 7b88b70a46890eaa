#include "cli/yaml_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qlora/io.h"

static int append(void *self, unsigned char *data, size_t bytes)
{
    cli_yaml_writer *out = self;
    char *text = realloc(out->text, out->length + bytes + 1);
    if (!text)
        return 0;
    out->text = text;
    memcpy(text + out->length, data, bytes);
    out->length += bytes;
    return 1;
}

/* Takes over the event, whose initialization told `made`. */
static void emit(cli_yaml_writer *out, int made, yaml_event_t *event)
{
    if (made && out->failed)
        yaml_event_delete(event);
    else if (!made || !yaml_emitter_emit(&out->emitter, event))
        out->failed = true;
}

static void scalar(cli_yaml_writer *out, const char *text, yaml_scalar_style_t style)
{
    yaml_event_t event;
    int made =
        yaml_scalar_event_initialize(&event, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), 1, 1, style);
    emit(out, made, &event);
}

static void open_map(cli_yaml_writer *out)
{
    yaml_event_t event;
    emit(out, yaml_mapping_start_event_initialize(&event, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE), &event);
}

void cli_yaml_begin(cli_yaml_writer *out, const char *remarks)
{
    yaml_event_t event;
    *out = (cli_yaml_writer){0};
    out->failed = !yaml_emitter_initialize(&out->emitter);
    if (out->failed)
        return;
    out->failed = !append(out, (unsigned char *)remarks, strlen(remarks));
    yaml_emitter_set_output(&out->emitter, append, out);
    yaml_emitter_set_unicode(&out->emitter, 1);
    yaml_emitter_set_width(&out->emitter, -1);
    emit(out, yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING), &event);
    emit(out, yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1), &event);
    open_map(out);
}

void cli_yaml_map(cli_yaml_writer *out, const char *key)
{
    scalar(out, key, YAML_ANY_SCALAR_STYLE);
    open_map(out);
}

void cli_yaml_end(cli_yaml_writer *out)
{
    yaml_event_t event;
    emit(out, yaml_mapping_end_event_initialize(&event), &event);
}

void cli_yaml_put(cli_yaml_writer *out, const char *key, const char *value, bool quoted)
{
    scalar(out, key, YAML_ANY_SCALAR_STYLE);
    scalar(out, value, quoted ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_PLAIN_SCALAR_STYLE);
}

ql_status cli_yaml_write(cli_yaml_writer *out, const char *path, ql_error *err)
{
    yaml_event_t event;
    cli_yaml_end(out);
    emit(out, yaml_document_end_event_initialize(&event, 1), &event);
    emit(out, yaml_stream_end_event_initialize(&event), &event);
    ql_status status = QL_ERR_MEMORY;
    if (out->failed && err)
        snprintf(err->message, sizeof err->message, "%s: cannot write it: %s", path,
                 out->emitter.problem ? out->emitter.problem : "a name is not UTF-8, or memory is out");
    else
        status = ql_file_write(path, out->text, out->length, err);
    yaml_emitter_delete(&out->emitter);
    free(out->text);
    *out = (cli_yaml_writer){0};
    return status;
}
