/* qlora completion: words for the tab key, made of the tables that --help is made of. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

typedef struct completion_values {
    const char *shell;
} completion_values;

static const cli_option own_options[] = {
    {"shell", CLI_CHOICE, offsetof(completion_values, shell), "bash|zsh|fish", NULL, 0, 0, true, "Output",
     "the shell to write it for: bash, zsh or fish"},
    {0},
};

/* What a value is completed with. */
typedef enum values {
    VALUES_NONE, /* a flag */
    VALUES_FREE,
    VALUES_WORDS, /* the metavar's */
    VALUES_COMMANDS,
    VALUES_FILES,
    VALUES_FOLDERS,
} values;

static values values_of(const cli_option *option)
{
    static const struct {
        const char *metavar;
        values values;
    } kinds[] = {{"FILE", VALUES_FILES},  {"LOG", VALUES_FILES},   {"PATH", VALUES_FILES},
                 {"MODEL", VALUES_FILES}, {"DIR", VALUES_FOLDERS}, {"COMMAND", VALUES_COMMANDS}};
    if (option->kind == CLI_FLAG || option->kind == CLI_CHOICE)
        return option->kind == CLI_FLAG ? VALUES_NONE : VALUES_WORDS;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(option->metavar, kinds[i].metavar) == 0)
            return kinds[i].values;
    return VALUES_FREE;
}

static const char *no(const cli_option *option)
{
    return cli_on_by_default(option) ? "no-" : "";
}

/* The operand of the command, or NULL. */
static const cli_option *operand(const cli_command *command)
{
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++)
        if (cli_is_operand(command, option))
            return option;
    return NULL;
}

static void put_words(const cli_option *option)
{
    const char *words = option->metavar, *word;
    size_t length;
    for (bool first = true; (word = cli_next_choice(&words, &length)) != NULL; first = false)
        printf("%s%.*s", first ? "" : " ", (int)length, word);
}

static void put_commands(void)
{
    for (size_t i = 0; cli_commands[i]; i++)
        printf("%s%s", i ? " " : "", cli_commands[i]->name);
}

/* Help up to its first semicolon, with a backslash before each of `special` and in a shell's single quotes. */
static void put_help(const char *text, const char *special)
{
    for (size_t length = strcspn(text, ";"); length--; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            printf("%s%c", strchr(special, *text) ? "\\" : "", *text);
    }
}

static void put_bash_values(const cli_option *option)
{
    switch (values_of(option)) {
    case VALUES_FILES:
        fputs("_qlora_paths -f \"$cur\"", stdout);
        break;
    case VALUES_FOLDERS:
        fputs("_qlora_paths -d \"$cur\"", stdout);
        break;
    case VALUES_WORDS:
    case VALUES_COMMANDS:
        fputs("_qlora_words \"", stdout);
        values_of(option) == VALUES_WORDS ? put_words(option) : put_commands();
        fputs("\" \"$cur\"", stdout);
        break;
    default:
        fputs(":", stdout);
    }
}

static void put_bash_command(const cli_command *command)
{
    const cli_option *option, *word = operand(command);
    printf("    %s)\n        case $prev in\n", command->name);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        if (values_of(option) == VALUES_NONE || option == word)
            continue;
        printf("        --%s) ", option->name);
        put_bash_values(option);
        puts("; return ;;");
    }
    fputs("        esac\n        options=\"", stdout);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++)
        if (option != word)
            printf("--%s%s ", no(option), option->name);
    fputs("--help\"\n", stdout);
    if (word) {
        fputs("        [[ $cur == -* ]] || { ", stdout);
        put_bash_values(word);
        puts("; return; }");
    }
    puts("        ;;");
}

static void put_bash(void)
{
    fputs("# bash completion for qlora, written by 'qlora completion bash'\n\n"
          "_qlora_words() { mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$2\"); }\n\n"
          "_qlora_paths() {\n"
          "    compopt -o filenames 2>/dev/null\n"
          "    mapfile -t COMPREPLY < <(compgen \"$1\" -- \"$2\")\n}\n\n"
          "_qlora() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} options=\n"
          "    COMPREPLY=()\n"
          "    [[ $cur != = ]] || cur= # --name=value comes as three words\n"
          "    [[ $prev != = ]] || prev=${COMP_WORDS[COMP_CWORD-2]}\n"
          "    if ((COMP_CWORD == 1)); then\n        _qlora_words \"",
          stdout);
    put_commands();
    fputs(" help --help --version\" \"$cur\"\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n", stdout);
    fputs("    help) options=\"", stdout);
    put_commands();
    puts("\" ;;");
    for (size_t i = 0; cli_commands[i]; i++)
        put_bash_command(cli_commands[i]);
    puts("    esac\n    _qlora_words \"$options\" \"$cur\"\n}\n\ncomplete -F _qlora qlora");
}

static void put_zsh_values(const cli_option *option)
{
    printf(":%s:", option->kind == CLI_CHOICE ? option->name : option->metavar);
    switch (values_of(option)) {
    case VALUES_FILES:
        fputs("_files", stdout);
        break;
    case VALUES_FOLDERS:
        fputs("_files -/", stdout);
        break;
    case VALUES_WORDS:
    case VALUES_COMMANDS:
        fputs("(", stdout);
        values_of(option) == VALUES_WORDS ? put_words(option) : put_commands();
        fputs(")", stdout);
        break;
    default:
        break;
    }
}

static void put_zsh_command(const cli_command *command)
{
    const cli_option *option, *word = operand(command);
    printf("    %s)\n        _arguments \\\n", command->name);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        if (option == word)
            continue;
        bool flag = option->kind == CLI_FLAG;
        printf("            '%s--%s%s%s[", option->kind == CLI_LIST ? "*" : "", no(option), option->name,
               flag ? "" : "=");
        put_help(option->help, "[]:\\");
        fputs("]", stdout);
        if (!flag)
            put_zsh_values(option);
        puts("' \\");
    }
    if (word) {
        fputs("            '1", stdout);
        put_zsh_values(word);
        puts("' \\");
    }
    puts("            '--help[show the help]'\n        ;;");
}

static void put_zsh(void)
{
    fputs("#compdef qlora\n# zsh completion for qlora, written by 'qlora completion zsh'\n\n"
          "_qlora() {\n    local -a commands\n    commands=(\n",
          stdout);
    for (size_t i = 0; cli_commands[i]; i++) {
        printf("        '%s:", cli_commands[i]->name);
        put_help(cli_commands[i]->summary, ":\\");
        puts("'");
    }
    puts("        'help:show the help of a command'\n    )\n"
         "    if ((CURRENT == 2)); then\n        _describe command commands\n        return\n    fi\n"
         "    local command=$words[2]\n    shift words\n    ((CURRENT--))\n    case $command in");
    fputs("    help) _values command ", stdout);
    put_commands();
    puts(" ;;");
    for (size_t i = 0; cli_commands[i]; i++)
        put_zsh_command(cli_commands[i]);
    puts(
        "    esac\n}\n\nif [[ $funcstack[1] == _qlora ]]; then\n    _qlora \"$@\"\nelse\n    compdef _qlora qlora\nfi");
}

static void put_fish_values(const cli_option *option)
{
    switch (values_of(option)) {
    case VALUES_FILES:
        fputs(" -F", stdout);
        break;
    case VALUES_FOLDERS:
        fputs(" -f -a '(__fish_complete_directories)'", stdout);
        break;
    case VALUES_WORDS:
    case VALUES_COMMANDS:
        fputs(" -f -a '", stdout);
        values_of(option) == VALUES_WORDS ? put_words(option) : put_commands();
        fputs("'", stdout);
        break;
    default:
        fputs(" -f", stdout);
    }
}

static void put_fish_line(const cli_command *command)
{
    printf("complete -c qlora -n '__fish_seen_subcommand_from %s'", command->name);
}

static void put_fish_command(const cli_command *command)
{
    const cli_option *option, *word = operand(command);
    printf("complete -c qlora -n __fish_use_subcommand -a %s -d '", command->name);
    put_help(command->summary, "\\");
    puts("'");
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        if (option == word)
            continue;
        put_fish_line(command);
        printf(" -l %s%s%s -d '", no(option), option->name, option->kind == CLI_FLAG ? "" : " -r");
        put_help(option->help, "\\");
        fputs("'", stdout);
        if (option->kind != CLI_FLAG)
            put_fish_values(option);
        putchar('\n');
    }
    if (word) {
        put_fish_line(command);
        put_fish_values(word);
        putchar('\n');
    }
}

static void put_fish(void)
{
    puts("# fish completion for qlora, written by 'qlora completion fish'\ncomplete -c qlora -f");
    fputs("complete -c qlora -n __fish_use_subcommand -a help -d 'show the help of a command'\n"
          "complete -c qlora -n '__fish_seen_subcommand_from help' -a '",
          stdout);
    put_commands();
    puts("'\ncomplete -c qlora -l help -d 'show the help'");
    for (size_t i = 0; cli_commands[i]; i++)
        put_fish_command(cli_commands[i]);
}

static int run(const cli_args *args)
{
    const completion_values *v = args->values;
    if (strcmp(v->shell, "bash") == 0)
        put_bash();
    else if (strcmp(v->shell, "zsh") == 0)
        put_zsh();
    else
        put_fish();
    return CLI_OK;
}

static const char *const examples[] = {
    "source <(qlora completion bash)",
    "For this shell; in ~/.bashrc for all to come. 'meson install' puts it where all shells look for it.",
    "qlora completion zsh > \"${fpath[1]}/_qlora\"",
    "For zsh, from its next start on.",
    "qlora completion fish > ~/.config/fish/completions/qlora.fish",
    "For fish.",
    NULL,
};

static const cli_option *const options[] = {own_options, NULL};

const cli_command cli_completion = {
    .name = "completion",
    .summary = "commands and options for the tab key of a shell",
    .about =
        "Prints a script that makes bash, zsh or fish complete the commands of qlora, their options, and the values "
        "of these.",
    .examples = examples,
    .options = options,
    .operand = "shell",
    .values = sizeof(completion_values),
    .run = run,
};
