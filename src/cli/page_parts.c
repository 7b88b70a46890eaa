#include "cli/page_parts.h"

#include <math.h>
#include <string.h>

#include "cli/chart.h"
#include "cli/common.h"

double cli_page_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    double x = json_is_number(value) ? json_number_value(value) : NAN;
    return fabs(x) < 1e100 ? x : NAN; /* so that sums of them stay finite */
}

size_t cli_page_whole(double x)
{
    return x > 0 ? (size_t)fmin(x, 1e18) : 0;
}

const json_t *cli_page_object(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_object(value) ? value : NULL;
}

void cli_page_text(FILE *out, const json_t *value)
{
    if (json_is_string(value))
        cli_html_text(out, json_string_value(value), json_string_length(value));
    else if (json_is_number(value))
        fprintf(out, "%.15g", json_number_value(value));
    else if (json_is_boolean(value))
        fputs(json_is_true(value) ? "yes" : "no", out);
}

enum { MOST_SAMPLES = 64 }; /* as many as --samples takes */

/* The sample of that number as the model wrote it last, at a step in [first, last]. */
static const json_t *find_sample(const cli_history *h, double number, double first, double last)
{
    const json_t *found = NULL;
    for (size_t i = 0; i < json_array_size(h->samples); i++) {
        const json_t *sample = json_array_get(h->samples, i);
        double step = cli_page_number(sample, "step");
        if (cli_page_number(sample, "sample") == number && step >= first && step <= last)
            found = sample;
    }
    return found;
}

static void put_text(FILE *out, const char *heading, const char *style, const json_t *text)
{
    if (!json_is_string(text))
        return;
    fprintf(out, "<div class=\"%s\"><h4>%s</h4><pre dir=\"auto\">", style, heading);
    cli_page_text(out, text);
    fputs("</pre></div>\n", out);
}

void cli_page_put_samples(FILE *out, const cli_history *h)
{
    const json_t *sample;
    bool begun = false;
    for (double number = 1; number <= MOST_SAMPLES && (sample = find_sample(h, number, 0, INFINITY)) != NULL;
         number++) {
        const json_t *before = find_sample(h, number, 0, 0), *after = find_sample(h, number, 1, INFINITY);
        if (!begun)
            fputs("<section><h2>Samples</h2>\n<p class=\"note\">From held-out data where there is any; the likeliest "
                  "token each time.</p>\n",
                  out);
        begun = true;
        fputs("<article class=\"sample\">\n", out);
        put_text(out, "Prompt", "prompt", json_object_get(sample, "prompt"));
        fputs("<div class=\"texts\">\n", out);
        put_text(out, "Before", "before", json_object_get(before, "text"));
        put_text(out, "After", "after", json_object_get(after, "text"));
        put_text(out, "In the data", "wanted", json_object_get(sample, "wanted"));
        fputs("</div></article>\n", out);
    }
    if (begun)
        fputs("</section>\n", out);
}

/* Classes of memory as the plan has them, in parts whose growth can be seen. */
static const struct memory_part {
    const char *name, *style;
    const char *measured; /* of the end's "memory" */
    struct {
        const char *key, *words;
    } classes[6];
} parts[] = {
    {"Process", "process", "process", {{"process", "program, tokenizer, data"}}},
    {"Base model",
     "base",
     "loaded",
     {{"codes", "codes"}, {"scales", "scales"}, {"dense", "norms and biases"}, {"mapped", "mapped: embedding, head"}}},
    {"Training",
     "training",
     "trained",
     {{"adapters", "adapters"},
      {"gradients", "gradients"},
      {"optimizer", "optimizer"},
      {"activations", "activations"},
      {"workspace", "workspace"}}},
    {"Evaluation", "evaluation", NULL, {{"evaluation", "held-out data, while it is measured"}}},
};
enum { PARTS = sizeof parts / sizeof *parts };

static double planned_part(const json_t *plan, const struct memory_part *part)
{
    double sum = 0;
    for (size_t i = 0; i < 6 && part->classes[i].key; i++) {
        double bytes = cli_page_number(plan, part->classes[i].key);
        sum += bytes > 0 ? bytes : 0;
    }
    return sum;
}

static void put_bar(FILE *out, const char *name, const double sizes[PARTS], double rest, double sum, double most)
{
    cli_text text;
    fprintf(out, "<div class=\"bar\"><b>%s</b><span>", name);
    for (size_t i = 0; i < PARTS; i++) {
        if (sizes[i] > 0)
            fprintf(out, "<i class=\"%s\" style=\"width:%.3f%%\" title=\"%s: %s\"></i>", parts[i].style,
                    100 * sizes[i] / most, parts[i].name, cli_bytes(cli_page_whole(sizes[i]), text));
    }
    if (rest > 0)
        fprintf(out, "<i class=\"rest\" style=\"width:%.3f%%\" title=\"to the peak: %s\"></i>", 100 * rest / most,
                cli_bytes(cli_page_whole(rest), text));
    fprintf(out, "</span><em>%s</em></div>\n", cli_bytes(cli_page_whole(sum), text));
}

static void put_memory_rows(FILE *out, const json_t *plan, const double measured[PARTS], double peak)
{
    cli_text text;
    for (size_t p = 0; p < PARTS; p++) {
        double whole = planned_part(plan, &parts[p]);
        if (whole <= 0 && measured[p] <= 0)
            continue;
        const char *unseen = peak > 0 ? "<small>in the peak</small>" : "";
        fprintf(out, "<tr class=\"part\"><th><i class=\"%s\"></i>%s</th><td>%s</td>", parts[p].style, parts[p].name,
                cli_count(cli_page_whole(whole), text));
        fprintf(out, "<td>%s</td></tr>\n", measured[p] > 0 ? cli_count(cli_page_whole(measured[p]), text) : unseen);
        for (size_t i = 0; i < 6 && parts[p].classes[i].key && parts[p].classes[1].key; i++) {
            double bytes = cli_page_number(plan, parts[p].classes[i].key);
            if (bytes > 0)
                fprintf(out, "<tr><th>%s</th><td>%s</td><td></td></tr>\n", parts[p].classes[i].words,
                        cli_count(cli_page_whole(bytes), text));
        }
    }
}

void cli_page_put_memory(FILE *out, const cli_history *h)
{
    const json_t *plan = cli_page_object(h->start, "memory"), *seen = cli_page_object(h->end, "memory");
    double planned[PARTS], measured[PARTS], total = 0, sum = 0, before = 0;
    cli_text text;
    if (!plan)
        return;
    double peak = cli_page_number(seen, "peak");
    for (size_t p = 0; p < PARTS; p++) {
        planned[p] = planned_part(plan, &parts[p]);
        total += planned[p];
        double resident = parts[p].measured ? cli_page_number(seen, parts[p].measured) : NAN;
        measured[p] = resident > before ? resident - before : 0;
        before = resident > before ? resident : before;
        sum += measured[p];
    }
    double rest = peak > sum ? peak - sum : 0, most = fmax(1, fmax(total, sum + rest));
    fputs("<section><h2>Memory</h2>\n<div class=\"bars\">\n", out);
    put_bar(out, "Planned", planned, 0, total, most);
    if (peak > 0)
        put_bar(out, "Measured", measured, rest, peak, most);
    fputs("</div>\n<table "
          "class=\"memory\"><thead><tr><th>Bytes</th><th>planned</th><th>measured</th></tr></thead><tbody>\n",
          out);
    put_memory_rows(out, plan, measured, peak);
    fprintf(out, "<tr class=\"part\"><th>In all</th><td>%s</td>", cli_count(cli_page_whole(total), text));
    fprintf(out, "<td>%s</td></tr></tbody></table>\n", peak > 0 ? cli_count(cli_page_whole(peak), text) : "");
    fputs(
        "<p class=\"note\">Measured: by how much resident memory grew while the weights were read, and from then to "
        "the "
        "last step, with what evaluations left to the allocator; in all, its peak. Mapped pages are resident as far as "
        "they are in use.</p></section>\n",
        out);
}

static void put_rows(FILE *out, const json_t *object, const char *style)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        fprintf(out, "<tr%s%s%s><th>", style ? " class=\"" : "", style ? style : "", style ? "\"" : "");
        cli_html_text(out, key, strlen(key));
        fputs("</th><td>", out);
        cli_page_text(out, value);
        fputs("</td></tr>\n", out);
    }
}

static void put_members(FILE *out, const json_t *object, const char *const (*rows)[2], size_t count)
{
    cli_text text;
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_object_get(object, rows[i][0]);
        if (!json_is_string(value) && !json_is_number(value))
            continue;
        fprintf(out, "<tr><th>%s</th><td>", rows[i][1]);
        if (json_is_integer(value) && json_integer_value(value) >= 0)
            fputs(cli_count((size_t)json_integer_value(value), text), out);
        else
            cli_page_text(out, value);
        fputs("</td></tr>\n", out);
    }
}

static void put_data(FILE *out, const json_t *data, const char *name)
{
    cli_text samples, tokens, learned;
    if (!data)
        return;
    fprintf(out, "<tr><th>%s</th><td>%s samples, %s tokens, %s learned</td></tr>\n", name,
            cli_count(cli_page_whole(cli_page_number(data, "samples")), samples),
            cli_count(cli_page_whole(cli_page_number(data, "tokens")), tokens),
            cli_count(cli_page_whole(cli_page_number(data, "learned")), learned));
}

static void put_files(FILE *out, const json_t *files)
{
    const char *role, *name;
    json_t *of_role, *hash;
    json_object_foreach((json_t *)files, role, of_role) json_object_foreach(of_role, name, hash)
    {
        fputs("<tr><th>", out);
        cli_html_text(out, name, strlen(name));
        fputs("</th><td><code>", out);
        cli_page_text(out, hash);
        fputs("</code></td></tr>\n", out);
    }
}

void cli_page_put_settings(FILE *out, const cli_history *h)
{
    static const char *const rows[][2] = {{"parameters", "parameters"},
                                          {"trainable_parameters", "of these trained"},
                                          {"program", "program"},
                                          {"libraries", "libraries"},
                                          {"instructions", "instructions"},
                                          {"threads", "threads"},
                                          {"folder", "folder"},
                                          {"time", "started"}};
    const json_t *defaults = cli_page_object(h->start, "defaults"), *files = cli_page_object(h->start, "files");
    fputs("<section><h2>Settings</h2>\n<table><tbody>\n", out);
    put_rows(out, cli_page_object(h->start, "options"), "given");
    fputs("</tbody></table>\n", out);
    if (defaults) {
        fputs("<details><summary>Defaults of the other options</summary><table><tbody>\n", out);
        put_rows(out, defaults, NULL);
        fputs("</tbody></table></details>\n", out);
    }
    if (json_object_get(h->start, "program"))
        fputs("<h2>The run</h2>\n", out);
    fputs("<table><tbody>\n", out);
    put_data(out, cli_page_object(h->start, "data"), "data");
    put_data(out, cli_page_object(h->start, "held_out"), "held out");
    put_members(out, h->start, rows, sizeof rows / sizeof *rows);
    fputs("</tbody></table>\n", out);
    if (files) {
        fputs("<details><summary>SHA-256 of the files</summary><table><tbody>\n", out);
        put_files(out, files);
        fputs("</tbody></table></details>\n", out);
    }
    fputs("</section>\n", out);
}
