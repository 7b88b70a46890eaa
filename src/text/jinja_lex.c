/* The text of a chat template into tokens. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja_ast.h"
#include "text/utf8.h"

typedef struct lexer {
    ql_jrun *run;
    const char *at, *end;
    bool line_start; /* what was read last ended a line */
    ql_jtoken *tokens;
    size_t count, capacity;
} lexer;

static ql_jtoken *add(lexer *x, ql_jtoken_kind kind)
{
    if (x->count == x->capacity) {
        x->capacity = x->capacity ? x->capacity * 2 : 256;
        ql_jtoken *more = ql_jalloc(x->run, x->capacity, sizeof *more);
        if (x->count)
            memcpy(more, x->tokens, x->count * sizeof *more);
        x->tokens = more;
    }
    ql_jtoken *token = &x->tokens[x->count++];
    *token = (ql_jtoken){.kind = kind, .line = x->run->line};
    return token;
}

static bool blank(char c)
{
    return c && strchr(" \t\n\r\f\v", c);
}

/* Goes on to `to`, counting lines. */
static void advance(lexer *x, const char *to)
{
    if (to > x->at)
        x->line_start = to[-1] == '\n';
    for (; x->at < to; x->at++)
        x->run->line += *x->at == '\n';
}

static bool begins(const lexer *x, const char *at, const char *mark)
{
    size_t length = strlen(mark);
    return (size_t)(x->end - at) >= length && memcmp(at, mark, length) == 0;
}

/* Line breaks as \n, and none at the end. */
static void normalize(lexer *x, const char *source, size_t length)
{
    char *out = ql_jalloc(x->run, length + 1, 1);
    size_t kept = 0;
    for (size_t i = 0; i < length; i++) {
        bool pair = source[i] == '\r' && i + 1 < length && source[i + 1] == '\n';
        if (!pair)
            out[kept++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (kept && out[kept - 1] == '\n')
        kept--;
    out[kept] = 0;
    x->at = out;
    x->end = out + kept;
}

/* Data up to `tag`, or up to the end, without the white space that the tag's sign takes away. */
static void add_data(lexer *x, const char *tag, char sign, bool print)
{
    const char *begin = x->at, *end = tag, *line = tag;
    while (line > begin && line[-1] != '\n')
        line--;
    if (sign == '-') {
        while (end > begin && blank(end[-1]))
            end--;
    } else if (sign != '+' && !print && tag < x->end && (line > begin || x->line_start)) {
        while (end > line && blank(end[-1]))
            end--;
        end = end > line ? tag : line;
    }
    if (end > begin)
        add(x, QL_JT_DATA)->text = (ql_jtext){begin, NULL, (size_t)(end - begin)};
    advance(x, tag);
}

/* Goes on behind a closing mark, and the white space that it takes away. */
static void close_tag(lexer *x, const char *mark, char sign, bool print)
{
    const char *to = mark + 2;
    if (sign == '-')
        while (to < x->end && blank(*to))
            to++;
    else if (sign != '+' && !print && to < x->end && *to == '\n')
        to++;
    advance(x, to);
}

static void skip_comment(lexer *x)
{
    const char *at = x->at;
    while (at < x->end && !begins(x, at, "#}"))
        at++;
    if (at == x->end)
        ql_jfail(x->run, QL_ERR_FORMAT, "a comment without its end \"#}\"");
    close_tag(x, at, at > x->at ? at[-1] : 0, false);
}

static int digit(char c, int base)
{
    int value = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : 99;
    return value < base ? value : -1;
}

/* The character that \x, \u, \U or an octal escape stands for. */
static const char *numeric_escape(lexer *x, const char *at, ql_jbuild *out)
{
    int base = *at == 'x' || *at == 'u' || *at == 'U' ? 16 : 8;
    int most = *at == 'x' ? 2 : *at == 'u' ? 4 : *at == 'U' ? 8 : 3, count = 0;
    uint32_t code = 0;
    char bytes[4];
    at += base == 16;
    for (; count < most && digit(*at, base) >= 0; count++)
        code = code * (uint32_t)base + (uint32_t)digit(*at++, base);
    if ((base == 16 && count < most) || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        ql_jfail(x->run, QL_ERR_FORMAT, "an escape in a string that is no character");
    ql_jadd_from(out, bytes, ql_utf8_put(code, bytes), 0);
    return at;
}

static void lex_string(lexer *x)
{
    static const char letters[] = "\\'\"abfnrtv", means[] = "\\'\"\a\b\f\n\r\t\v";
    ql_jbuild out = {.run = x->run};
    ql_jtoken *token = add(x, QL_JT_STRING);
    const char quote = *x->at, *at = x->at + 1;
    while (at < x->end && *at != quote) {
        const char *plain = at;
        while (at < x->end && *at != quote && *at != '\\')
            at++;
        ql_jadd_from(&out, plain, (size_t)(at - plain), 0);
        if (at == x->end || *at == quote || ++at == x->end)
            continue;
        const char *letter = strchr(letters, *at);
        if (*at == 'N')
            ql_jfail(x->run, QL_ERR_UNSUPPORTED, "an escape \\N in a string is not supported");
        if (*at == 'x' || *at == 'u' || *at == 'U' || digit(*at, 8) >= 0)
            at = numeric_escape(x, at, &out);
        else if (*at == '\n')
            at++;
        else if (letter && *letter) {
            ql_jadd_from(&out, means + (letter - letters), 1, 0);
            at++;
        } else
            ql_jadd_string(&out, "\\");
    }
    if (at == x->end)
        ql_jfail(x->run, QL_ERR_FORMAT, "a string without its end");
    token->text = ql_jbuilt(&out).text;
    advance(x, at + 1);
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static const char *skip_digits(const char *at, int base)
{
    while (digit(*at, base) >= 0 || (*at == '_' && digit(at[1], base) >= 0))
        at++;
    return at;
}

static void lex_number(lexer *x)
{
    char digits[64];
    size_t count = 0;
    const char *end = x->at + 1;
    int base = *x->at != '0'                ? 10
               : *end == 'x' || *end == 'X' ? 16
               : *end == 'o' || *end == 'O' ? 8
               : *end == 'b' || *end == 'B' ? 2
                                            : 10;
    end = skip_digits(base == 10 ? x->at : x->at + 2, base);
    bool behind_dot = x->count && x->tokens[x->count - 1].op == '.', real = false;
    if (base == 10 && !behind_dot && *end == '.' && digit(end[1], 10) >= 0)
        real = true, end = skip_digits(end + 1, 10);
    const char *exponent = end + 1 + (end[0] && (end[1] == '+' || end[1] == '-'));
    if (base == 10 && !behind_dot && (*end == 'e' || *end == 'E') && digit(*exponent, 10) >= 0)
        real = true, end = skip_digits(exponent, 10);
    for (const char *at = base == 10 ? x->at : x->at + 2; at < end && count < sizeof digits - 1; at++)
        if (*at != '_')
            digits[count++] = *at;
    digits[count] = 0;
    ql_jtoken *token = add(x, QL_JT_NUMBER);
    errno = 0;
    token->value = real ? ql_jreal(strtod(digits, NULL)) : ql_jint(strtoll(digits, NULL, base));
    bool zeros = base == 10 && !real && digits[0] == '0' && digits[strspn(digits, "0")];
    if (zeros)
        ql_jfail(x->run, QL_ERR_FORMAT, "the number %s begins with a zero", digits);
    if (!count || count == sizeof digits - 1 || errno == ERANGE)
        ql_jfail(x->run, QL_ERR_UNSUPPORTED, "a number that is too large or none");
    advance(x, end);
}

static void lex_operator(lexer *x, char *open, size_t *depth)
{
    static const char *const pairs[] = {"==", "!=", "<=", ">=", "//", "**"};
    char c = *x->at;
    int op = (unsigned char)c;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (begins(x, x->at, pairs[i]))
            op = QL_J_TWO(pairs[i][0], pairs[i][1]);
    if (op < 256 && !strchr("+-/*%~[](){}<>=.:|,;", c))
        ql_jfail(x->run, QL_ERR_FORMAT, "the character \"%.*s\" does not belong into a tag",
                 (int)ql_utf8_next(x->at, (size_t)(x->end - x->at)).length, x->at);
    if (strchr("([{", c)) {
        if (*depth == QL_J_DEPTH)
            ql_jfail(x->run, QL_ERR_UNSUPPORTED, "nested deeper than %d", QL_J_DEPTH);
        open[(*depth)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c) && (!*depth || open[--*depth] != c))
        ql_jfail(x->run, QL_ERR_FORMAT, "\"%c\" closes nothing", c);
    add(x, QL_JT_OPERATOR)->op = op;
    advance(x, x->at + (op < 256 ? 1 : 2));
}

/* What stands between the marks of a tag, up to and with the closing one. */
static void lex_tag(lexer *x, bool print)
{
    const char *mark = print ? "}}" : "%}";
    char open[QL_J_DEPTH];
    size_t depth = 0;
    while (x->at < x->end) {
        bool sign = *x->at == '-' || (*x->at == '+' && !print);
        const char *to = x->at;
        if (blank(*x->at)) {
            advance(x, x->at + 1);
        } else if (!depth && (begins(x, x->at, mark) || (sign && begins(x, x->at + 1, mark)))) {
            char with = sign ? *x->at : 0;
            add(x, print ? QL_JT_PRINT_END : QL_JT_TAG_END);
            close_tag(x, x->at + sign, with, print);
            return;
        } else if (is_letter(*x->at)) {
            while (to < x->end && (is_letter(*to) || digit(*to, 10) >= 0))
                to++;
            add(x, QL_JT_NAME)->text = (ql_jtext){x->at, NULL, (size_t)(to - x->at)};
            advance(x, to);
        } else if (digit(*x->at, 10) >= 0) {
            lex_number(x);
        } else if (*x->at == '\'' || *x->at == '"') {
            lex_string(x);
        } else {
            lex_operator(x, open, &depth);
        }
    }
    ql_jfail(x->run, QL_ERR_FORMAT, "a tag without its end \"%s\"", mark);
}

ql_jtoken *ql_jlex(ql_jrun *run, const char *source, size_t length)
{
    lexer x = {.run = run, .line_start = true};
    run->line = 1;
    if (ql_utf8_valid(source, length) < length)
        ql_jfail(run, QL_ERR_FORMAT, "the template is not UTF-8");
    if (length && memchr(source, 0, length))
        ql_jfail(run, QL_ERR_FORMAT, "the template holds a byte 0");
    normalize(&x, source, length);
    while (x.at < x.end) {
        const char *tag = x.at;
        while (tag < x.end && !begins(&x, tag, "{{") && !begins(&x, tag, "{%") && !begins(&x, tag, "{#"))
            tag++;
        char kind = tag < x.end ? tag[1] : 0, sign = tag < x.end ? tag[2] : 0;
        add_data(&x, tag, sign, kind == '{');
        if (!kind)
            break;
        advance(&x, tag + 2 + (sign == '-' || sign == '+'));
        if (kind == '#') {
            skip_comment(&x);
            continue;
        }
        add(&x, kind == '{' ? QL_JT_PRINT_BEGIN : QL_JT_TAG_BEGIN);
        lex_tag(&x, kind == '{');
    }
    add(&x, QL_JT_END);
    return x.tokens;
}
