/* qlora inspect of a file that is not data. */
#include <stdlib.h>
#include <string.h>

#include "cli/inspect.h"

/* Tensors by their type in the file. */
typedef struct totals {
    struct {
        const char *name;
        size_t tensors, bytes;
        double elements;
    } type[64];
    size_t types, tensors, bytes;
    double elements;
} totals;

static totals add_up(const ql_tensors *tensors)
{
    totals t = {0};
    for (size_t i = 0; tensors && i < ql_tensors_count(tensors); i++) {
        const ql_tensor *tensor = ql_tensors_at(tensors, i);
        double elements = (double)ql_tensor_elements(tensor);
        size_t k = 0;
        while (k < t.types && strcmp(t.type[k].name, tensor->dtype_name) != 0)
            k++;
        k = k < 64 ? k : 63;
        t.types = k == t.types ? k + 1 : t.types;
        t.type[k].name = tensor->dtype_name;
        t.type[k].tensors++;
        t.type[k].bytes += tensor->bytes;
        t.type[k].elements += elements;
        t.tensors++;
        t.bytes += tensor->bytes;
        t.elements += elements;
    }
    return t;
}

/* Words of a file, which may hold anything. */
static void put_padded(const char *text, size_t width)
{
    size_t length = strlen(text);
    inspect_put(text, length);
    printf("%*s", length < width ? (int)(width - length) : 1, "");
}

static bool is_whole(double x)
{
    return x > -1e15 && x < 1e15 && x == (double)(int64_t)x;
}

static void put_facts(const char *title, const ql_facts *facts)
{
    if (facts->count && title)
        printf("%s\n", title);
    for (size_t i = 0; i < facts->count; i++) {
        const ql_fact *fact = &facts->at[i];
        cli_text number;
        fputs(title ? "  " : "", stdout);
        put_padded(fact->name, title ? 36 : 22);
        if (fact->text)
            inspect_put(fact->text, strlen(fact->text));
        else if (!title && is_whole(fact->number) && fact->number >= 0)
            fputs(cli_count((size_t)fact->number, number), stdout);
        else
            printf("%.10g", fact->number);
        putchar('\n');
    }
}

static void put_shape(const ql_tensor *t)
{
    char text[160] = "";
    size_t used = 0;
    for (size_t i = 0; i < t->ndim && used < sizeof text - 24; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%zu", i ? " x " : "", t->shape[i]);
    printf("%-20s", t->ndim ? text : "scalar");
}

static void put_tensors(const ql_tensors *tensors, size_t most)
{
    size_t count = ql_tensors_count(tensors);
    printf("Tensors\n");
    for (size_t i = 0; i < count && i < most; i++) {
        const ql_tensor *t = ql_tensors_at(tensors, i);
        cli_text bytes;
        printf("  ");
        put_padded(t->dtype_name, 7);
        put_shape(t);
        printf(" %10s  ", cli_bytes(t->bytes, bytes));
        inspect_put(t->name, strlen(t->name));
        putchar('\n');
    }
    if (most < count)
        printf("  ... and %zu more\n", count - most);
}

static void put_all(const inspect_values *v, const ql_inspection *in)
{
    const ql_tensors *tensors = ql_inspection_tensors(in);
    totals t = add_up(tensors);
    cli_text elements, bytes;
    printf("%-20s  %s\n", ql_inspection_kind(in), v->file);
    put_facts(NULL, ql_inspection_facts(in));
    put_facts("Metadata", ql_inspection_metadata(in));
    if (!tensors)
        return;
    put_tensors(tensors, v->tensors);
    for (size_t i = 0; i < t.types; i++) {
        put_padded(t.type[i].name, 22);
        printf("%zu tensors, %s numbers, %s\n", t.type[i].tensors, cli_count((size_t)t.type[i].elements, elements),
               cli_bytes(t.type[i].bytes, bytes));
    }
    printf("%-20s  %zu tensors, %s numbers, %s\n", "in all", t.tensors, cli_count((size_t)t.elements, elements),
           cli_bytes(t.bytes, bytes));
}

static void tell(const inspect_values *v, const ql_inspection *in)
{
    if (!v->common.quiet)
        put_all(v, in);
    inspect_tell_findings(ql_inspection_findings(in), inspect_color(v));
    if (!v->common.quiet && !ql_inspection_findings(in)->count)
        printf("Nothing is wrong with it.\n");
}

static void json_facts(ql_json *json, const char *key, const ql_facts *facts)
{
    ql_json_object(json, key);
    for (size_t i = 0; i < facts->count; i++) {
        const ql_fact *fact = &facts->at[i];
        if (fact->text)
            ql_json_string(json, fact->name, fact->text);
        else if (is_whole(fact->number))
            ql_json_integer(json, fact->name, (int64_t)fact->number);
        else
            ql_json_number(json, fact->name, fact->number);
    }
    ql_json_end(json);
}

static void json_tensors(ql_json *json, const ql_tensors *tensors, size_t most)
{
    ql_json_array(json, "tensors");
    for (size_t i = 0; tensors && i < ql_tensors_count(tensors) && i < most; i++) {
        const ql_tensor *t = ql_tensors_at(tensors, i);
        ql_json_object(json, NULL);
        ql_json_string(json, "name", t->name);
        ql_json_string(json, "type", t->dtype_name);
        ql_json_array(json, "shape");
        for (size_t k = 0; k < t->ndim; k++)
            ql_json_integer(json, NULL, (int64_t)t->shape[k]);
        ql_json_end(json);
        ql_json_integer(json, "bytes", (int64_t)t->bytes);
        ql_json_string(json, "file", t->file);
        ql_json_end(json);
    }
    ql_json_end(json);
}

static int tell_json(const inspect_values *v, const ql_inspection *in)
{
    const ql_tensors *tensors = ql_inspection_tensors(in);
    totals t = add_up(tensors);
    ql_json json = {.pretty = false};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "inspect");
    ql_json_string(&json, "kind", ql_inspection_kind(in));
    ql_json_string(&json, "path", v->file);
    json_facts(&json, "facts", ql_inspection_facts(in));
    json_facts(&json, "metadata", ql_inspection_metadata(in));
    json_tensors(&json, tensors, v->tensors);
    ql_json_object(&json, "total");
    ql_json_integer(&json, "tensors", (int64_t)t.tensors);
    ql_json_number(&json, "numbers", t.elements);
    ql_json_integer(&json, "bytes", (int64_t)t.bytes);
    ql_json_end(&json);
    inspect_json_findings(&json, ql_inspection_findings(in));
    return cli_json_print(&json);
}

int inspect_file(const cli_args *args)
{
    ql_error err = {0};
    ql_inspection *in;
    const inspect_values *v = args->values;
    ql_inspect_options options = {.values = v->values, .threads = v->common.threads};
    int status = CLI_OK;
    if (ql_inspect(&in, v->file, &options, &err))
        return cli_failed(&err);
    if (v->common.json)
        status = tell_json(v, in);
    else
        tell(v, in);
    if (ql_findings_faults(ql_inspection_findings(in)))
        status = CLI_FAILED;
    ql_inspection_close(in);
    return status;
}
