/* The Jinja evaluator against what Jinja2 made of the same templates (tests/make_jinja.py), and its limits. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "support.h"
#include "text/jinja.h"

typedef struct job {
    const ql_jinja *jinja;
    const json_t *variables;
    char *text;
    uint16_t origins[64];
} job;

static void body(ql_jrun *run, void *ctx)
{
    job *j = ctx;
    ql_jvalue variables = ql_jvalue_of_json(run, j->variables, 5);
    ql_jinja_output out = ql_jinja_render(j->jinja, run, variables.dict);
    j->text = strndup(out.text.data, out.text.length);
    for (size_t i = 0; i < out.text.length && i < 64; i++)
        j->origins[i] = out.text.origin[i];
}

/* What the template renders; NULL: it fails, with *err. free() it. */
static char *render(const char *template, const json_t *variables, uint16_t *origins, ql_error *err)
{
    job j = {.variables = variables};
    ql_jinja *jinja = NULL;
    ql_jrun run;
    if (ql_jinja_open(&jinja, "t", template, strlen(template), err) != QL_OK)
        return NULL;
    j.jinja = jinja;
    ql_jrun_start(&run, "t", 0, err);
    ql_status status = ql_jinja_try(&run, body, &j);
    ck_assert_int_eq(status, j.text ? QL_OK : err->status);
    ql_jrun_end(&run);
    ql_jinja_close(jinja);
    if (origins)
        memcpy(origins, j.origins, sizeof j.origins);
    return j.text;
}

static void check_case(const ql_json_at *at, const json_t *variables)
{
    const char *template = json_string_value(ql_json_member(at, "template"));
    const char *refused = json_string_value(ql_json_member(at, "refused"));
    const json_t *wanted = ql_json_member(at, "text");
    ql_error err = {0};
    char *text = render(template, variables, NULL, &err);
    if (wanted) {
        ck_assert_msg(text != NULL, "line %zu: %s: %s", at->line, template, err.message);
        ck_assert_msg(strcmp(text, json_string_value(wanted)) == 0, "line %zu: %s\ngives  %s\nwanted %s", at->line,
                      template, text, json_string_value(wanted));
    } else {
        ck_assert_msg(text == NULL, "line %zu: %s: should fail, gives %s", at->line, template, text);
        ck_assert_msg(strncmp(err.message, "t:", 2) == 0, "%s: %s", template, err.message);
        ck_assert_msg(!refused || (strstr(err.message, refused) && err.status == QL_ERR_UNSUPPORTED) ||
                          strstr(refused, "argument"),
                      "%s: %s", template, err.message);
    }
    free(text);
}

START_TEST(renders_what_jinja2_renders)
{
    const char *root = getenv("QLORA_SOURCE_ROOT");
    char path[1200];
    ql_jsonl lines = {0};
    json_t *value = NULL, *variables = NULL;
    ql_error err = {0};
    size_t rendered = 0;
    snprintf(path, sizeof path, "%s/tests/data/jinja.jsonl", root ? root : ".");
    ck_assert_ok(ql_jsonl_open(&lines, path, &err), &err);
    ck_assert_ok(ql_jsonl_next(&lines, &value, &err), &err);
    variables = json_incref(json_object_get(value, "vars"));
    json_decref(value);
    while (ql_jsonl_next(&lines, &value, &err) == QL_OK && value) {
        ql_json_at at = ql_jsonl_root(&lines, value);
        rendered += ql_json_member(&at, "text") != NULL;
        check_case(&at, variables);
        json_decref(value);
    }
    ck_assert_uint_gt(rendered, 300);
    json_decref(variables);
    ql_jsonl_close(&lines);
}
END_TEST

/* Every byte of a text says who wrote it, whatever was done to it. */
START_TEST(texts_remember_who_wrote_them)
{
    static const struct {
        const char *template, *text, *mine; /* x: from the chat */
    } cases[] = {
        {"a{{ w }}b", "aWord b", ".xxxxx."},
        {"{{ w | trim | upper }}!", "WORD!", "xxxx."},
        {"{{ '<' ~ w[1:3] + '>' }}", "<or>", ".xx."},
        {"{{ w.replace('or', '--') }}", "W--d ", "x..xx"},
        {"{{ [w.strip(), 'a'] | join('+') }}", "Word+a", "xxxx.."},
        {"{{ [w] | tojson }}", "[\"Word \"]", "..xxxxx.."},
        {"{% set t %}({{ w.split('r')[0] }}){% endset %}{{ t }}", "(Wo)", ".xx."},
        {"{% macro m(a) %}{{ a }}.{% endmacro %}{{ m(w) }}", "Word .", "xxxxx."},
        {"{{ w | reverse }}", " droW", "xxxxx"},
        {"{{ q | tojson }}", "\"\\n\"", ".xx."},
    };
    ql_error err = {0};
    json_t *variables = json_pack("{s:s, s:s}", "w", "Word ", "q", "\n");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint16_t origins[64];
        char *text = render(cases[i].template, variables, origins, &err), mine[64] = "";
        ck_assert_msg(text != NULL, "%s", err.message);
        ck_assert_str_eq(text, cases[i].text);
        for (size_t k = 0; k < strlen(text); k++)
            mine[k] = origins[k] == 5 ? 'x' : '.';
        ck_assert_str_eq(mine, cases[i].mine);
        free(text);
    }
    json_decref(variables);
}
END_TEST

START_TEST(errors_name_template_and_line)
{
    ql_error err = {0};
    json_t *variables = json_pack("{s:i}", "n", 1);
    ck_assert_ptr_null(render("a\n{{ n }}\n\n{{ n.append(1)\n }}{{ n | bogus }}", variables, NULL, &err));
    ck_assert_str_eq(err.message, "t:4: \"append\" is undefined");
    ck_assert_ptr_null(render("a\n{{ n }}\n\n  {{- n | bogus }}", variables, NULL, &err));
    ck_assert_str_eq(err.message, "t:4: the filter \"bogus\" is not supported");
    ck_assert_ptr_null(render("a\n{% if n %}\n", variables, NULL, &err));
    ck_assert_str_eq(err.message, "t:2: expected endif, not the end of the template");
    json_decref(variables);
}
END_TEST

START_TEST(dates_need_no_clock)
{
    ql_error err = {0};
    json_t *variables = json_object();
    unsetenv("SOURCE_DATE_EPOCH");
    char *text = render("{{ strftime_now('%d %b %Y') }}", variables, NULL, &err);
    ck_assert_str_eq(text, "26 Jul 2024");
    free(text);
    setenv("SOURCE_DATE_EPOCH", "86400", 1);
    text = render("{{ strftime_now('%Y-%m-%d') }}", variables, NULL, &err);
    ck_assert_str_eq(text, "1970-01-02");
    free(text);
    unsetenv("SOURCE_DATE_EPOCH");
    json_decref(variables);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("jinja");
    TCase *tests = tcase_create("jinja");
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, renders_what_jinja2_renders);
    tcase_add_test(tests, texts_remember_who_wrote_them);
    tcase_add_test(tests, errors_name_template_and_line);
    tcase_add_test(tests, dates_need_no_clock);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
