/* What qlora finetune says before and after the run. */
#include <math.h>
#include <string.h>

#include "cli/finetune.h"

static void introduce_model(const finetune *f)
{
    char format[48];
    cli_text parameters, codes, scales, trainable;
    const cli_session *s = &f->session;
    const ql_model_config *shape = ql_model_shape(s->model);
    size_t all = ql_model_config_parameters(shape), own = ql_model_adapter_parameters(s->model);
    ql_model_bytes bytes = ql_model_memory(s->model);
    cli_say(s, "Model     %s: %s, %zu layers of %zu, %s parameters\n", s->common->model, ql_arch_name(shape->arch),
            shape->layers, shape->hidden_size, cli_count(all, parameters));
    cli_say(s, "Base      %s%s: %s, scales %s; read in %.1f s\n", ql_format_describe(s->format, format),
            s->stored ? " as stored in the file (--format NAME would quantize it anew)" : "",
            cli_bytes(bytes.codes, codes), cli_bytes(bytes.scales, scales), s->load_seconds);
    if (s->common->adapter)
        cli_say(s, "Adapter   from %s: ", s->common->adapter);
    else
        cli_say(s, "Adapter   rank %zu, alpha %g%s%s on %s: ", f->lora.rank, f->lora.alpha,
                f->lora.use_rslora ? " (rslora)" : "", f->lora.use_dora ? " (dora)" : "", f->v->target_modules);
    cli_say(s, "%s trainable parameters (%.2f %%)\n", cli_count(own, trainable),
            100 * (double)own / (double)(all + own));
    double plain, now;
    ql_model_start_error(s->model, &plain, &now);
    if (now > 0)
        cli_say(s, "Start     %s: with the adapters the weights are %.4g from the original ones, without %.4g\n", f->v->init,
                now, plain);
}

static void introduce_data(const finetune *f, const char *heading, const ql_dataset *data)
{
    cli_text samples, tokens, learned, cut, skipped;
    ql_data_stats stats = ql_dataset_stats(data);
    cli_say(&f->session, "%s%s samples, %s tokens, %s learned, longest %zu; %s cut, %s left out\n", heading,
            cli_count(stats.samples, samples), cli_count(stats.tokens, tokens), cli_count(stats.learned, learned),
            stats.longest, cli_count(stats.truncated, cut), cli_count(stats.skipped, skipped));
}

static size_t total(ql_trainer_bytes t)
{
    return t.adapters + t.gradients + t.optimizer + t.activations + t.workspace;
}

static void introduce_memory(const finetune *f)
{
    cli_text weights, mapped, adapters, gradients, optimizer, activations, workspace, sum;
    ql_model_bytes m = ql_train_model_bytes(f->session.model, ql_train_shape_of(f->data));
    ql_trainer_bytes t = ql_trainer_memory(f->trainer);
    size_t held = m.codes + m.scales + m.dense;
    cli_say(&f->session,
            "Memory    weights %s (and %s mapped), adapters %s, gradients %s, optimizer %s, activations %s, "
            "workspace %s: %s\n",
            cli_bytes(held, weights), cli_bytes(m.mapped, mapped), cli_bytes(t.adapters, adapters),
            cli_bytes(t.gradients, gradients), cli_bytes(t.optimizer, optimizer), cli_bytes(t.activations, activations),
            cli_bytes(t.workspace, workspace), cli_bytes(held + total(t), sum));
}

void finetune_introduce(const finetune *f)
{
    char again[64] = "";
    const ql_train_options *t = &f->train;
    size_t recomputed = finetune_recomputed(f);
    if (recomputed)
        snprintf(again, sizeof again, ", %zu of %zu blocks recomputed", recomputed, f->session.config.layers);
    introduce_model(f);
    introduce_data(f, "Data      ", f->data);
    if (f->valid)
        introduce_data(f, "Held out  ", f->valid);
    cli_say(&f->session, "Run       %zu steps of %zu x %zu samples, %s schedule from %g%s\n",
            ql_trainer_steps(f->trainer), t->grad_accum, t->batch_size, ql_schedule_name(t->schedule), t->lr,
            again);
    if (f->resumed_at)
        cli_say(&f->session, "Resumed   after step %zu, from %s\n", f->resumed_at, f->checkpoint);
    cli_say(&f->session, "Threads   %zu (%s)\n", ql_workers_count(f->session.workers), ql_cpu_describe());
    introduce_memory(f);
}

size_t finetune_planned(const finetune *f)
{
    ql_model_bytes model = ql_train_model_bytes(f->session.model, ql_train_shape_of(f->data));
    ql_trainer_bytes trainer = ql_trainer_memory(f->trainer);
    ql_train_shape valid = f->valid ? ql_train_shape_of(f->valid) : (ql_train_shape){0};
    return finetune_total(&model, &trainer) + finetune_others(f, f->session.model, valid);
}

/* The SHA-256 of the adapter that --config asks for, by the record of a run that ended. */
static const char *wanted(const finetune *f)
{
    return f->interrupted ? NULL : cli_record_wanted(&f->record);
}

static bool is_wanted(const finetune *f)
{
    return strcmp(f->adapter_sha256, wanted(f)) == 0;
}

static void conclude_for_people(const finetune *f)
{
    cli_text time, peak, plan;
    const cli_progress *p = &f->progress;
    cli_say(&f->session, "Trained %zu steps in %s, %.0f tokens/s; loss %.4f at first, %.4f at last (mean)\n", p->done,
            cli_time(p->seconds, time), cli_progress_tokens_per_second(p), p->first_loss, cli_progress_loss(p));
    if (ql_trainer_skipped(f->trainer))
        cli_say(&f->session, "%zu steps were left out: their numbers were not finite\n",
                ql_trainer_skipped(f->trainer));
    if (f->after.samples)
        cli_say(&f->session, "Held-out loss %.4f -> %.4f (%+.4f), perplexity %.2f -> %.2f\n", f->before.loss,
                f->after.loss, f->after.loss - f->before.loss, f->before.perplexity, f->after.perplexity);
    cli_say(&f->session, "Peak resident memory %s, planned %s\nThe adapter is in %s\n",
            cli_bytes(cli_peak_memory(), peak), cli_bytes(finetune_planned(f), plan), f->v->output);
    if (wanted(f))
        cli_say(&f->session, "It %s the one that %s records\n",
                is_wanted(f) ? "is, bit for bit," : "differs from", f->v->config);
}

void finetune_put_memory(ql_json *json, const finetune *f)
{
    ql_model_bytes m = ql_train_model_bytes(f->session.model, ql_train_shape_of(f->data));
    ql_trainer_bytes t = ql_trainer_memory(f->trainer);
    ql_json_integer(json, "codes", (int64_t)m.codes);
    ql_json_integer(json, "scales", (int64_t)m.scales);
    ql_json_integer(json, "dense", (int64_t)m.dense);
    ql_json_integer(json, "mapped", (int64_t)m.mapped);
    ql_json_integer(json, "adapters", (int64_t)t.adapters);
    ql_json_integer(json, "gradients", (int64_t)t.gradients);
    ql_json_integer(json, "optimizer", (int64_t)t.optimizer);
    ql_json_integer(json, "activations", (int64_t)t.activations);
    ql_json_integer(json, "workspace", (int64_t)t.workspace);
}

static void put_eval(ql_json *json, const char *key, const ql_eval_report *report)
{
    if (!report->samples)
        return;
    ql_json_object(json, key);
    cli_json_eval(json, report);
    ql_json_end(json);
}

static int conclude_as_json(const finetune *f)
{
    char format[48];
    ql_json json = {.pretty = false};
    const cli_progress *p = &f->progress;
    const ql_model_config *shape = ql_model_shape(f->session.model);
    ql_data_stats stats = ql_dataset_stats(f->data);
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "finetune");
    ql_json_string(&json, "model", f->v->common.model);
    ql_json_string(&json, "architecture", ql_arch_name(shape->arch));
    ql_json_string(&json, "format", ql_format_describe(f->session.format, format));
    ql_json_integer(&json, "parameters", (int64_t)ql_model_config_parameters(shape));
    ql_json_integer(&json, "trainable_parameters", (int64_t)ql_model_adapter_parameters(f->session.model));
    ql_json_integer(&json, "samples", (int64_t)stats.samples);
    ql_json_integer(&json, "truncated", (int64_t)stats.truncated);
    ql_json_integer(&json, "skipped", (int64_t)stats.skipped);
    ql_json_integer(&json, "steps", (int64_t)ql_trainer_done(f->trainer));
    ql_json_integer(&json, "resumed_at", (int64_t)f->resumed_at);
    ql_json_integer(&json, "skipped_steps", (int64_t)ql_trainer_skipped(f->trainer));
    ql_json_integer(&json, "steps_planned", (int64_t)p->steps);
    ql_json_bool(&json, "interrupted", f->interrupted);
    ql_json_number(&json, "first_loss", p->first_loss);
    ql_json_number(&json, "last_loss", f->last_loss);
    ql_json_number(&json, "mean_loss", cli_progress_loss(p));
    put_eval(&json, "held_out_before", &f->before);
    put_eval(&json, "held_out_after", &f->after);
    ql_json_integer(&json, "tokens", (int64_t)p->tokens);
    ql_json_integer(&json, "learned", (int64_t)p->learned);
    ql_json_number(&json, "seconds", p->seconds);
    ql_json_number(&json, "tokens_per_second", cli_progress_tokens_per_second(p));
    ql_json_number(&json, "load_seconds", f->session.load_seconds);
    ql_json_object(&json, "memory");
    finetune_put_memory(&json, f);
    ql_json_integer(&json, "planned", (int64_t)finetune_planned(f));
    ql_json_integer(&json, "peak_resident", (int64_t)cli_peak_memory());
    ql_json_end(&json);
    ql_json_string(&json, "adapter", f->v->output);
    ql_json_string(&json, "adapter_sha256", *f->adapter_sha256 ? f->adapter_sha256 : NULL);
    if (wanted(f))
        ql_json_bool(&json, "as_recorded", is_wanted(f));
    return cli_json_print(&json);
}

int finetune_conclude(const finetune *f)
{
    conclude_for_people(f);
    return f->v->common.json ? conclude_as_json(f) : CLI_OK;
}

/* In single quotes where a shell would read more into it. */
static void print_quoted(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=+@%";
    if (*word && word[strspn(word, plain)] == 0) {
        fputs(word, stderr);
        return;
    }
    fputc('\'', stderr);
    for (; *word; word++)
        fputs(*word == '\'' ? "'\\''" : (char[]){*word, 0}, stderr);
    fputc('\'', stderr);
}

/* What --max-memory chose stands in its place: another day it might choose otherwise. */
static bool was_fitted(const finetune *f, const char *name)
{
    static const char *const fitted[] = {"max-memory", "batch-size", "grad-accum", "recompute"};
    for (size_t i = 0; i < sizeof fitted / sizeof *fitted && f->v->max_memory; i++)
        if (strcmp(name, fitted[i]) == 0)
            return true;
    return false;
}

void finetune_say_how_to_go_on(const finetune *f)
{
    const cli_args *args = f->session.args;
    const cli_option *option;
    fprintf(stderr, "Stopped after step %zu of %zu; the adapter is in %s. To go on:\n  qlora finetune",
            ql_trainer_done(f->trainer), ql_trainer_steps(f->trainer), f->v->output);
    for (size_t i = 0; (option = cli_option_at(args->command, i)) != NULL; i++) {
        if (!args->given[i] || args->from_file[i] || strcmp(option->name, "resume") == 0 || was_fitted(f, option->name))
            continue;
        bool flag = option->kind == CLI_FLAG;
        fprintf(stderr, " --%s%s%s", flag && strcmp(args->given[i], "no") == 0 ? "no-" : "", option->name,
                flag                                    ? ""
                : strncmp(args->given[i], "--", 2) == 0 ? "="
                                                        : " ");
        if (!flag)
            print_quoted(args->given[i]);
    }
    if (f->v->max_memory)
        fprintf(stderr, " --batch-size %zu --grad-accum %zu --recompute %zu", f->train.batch_size, f->train.grad_accum,
                finetune_recomputed(f));
    fputs(" --resume\n", stderr);
}
