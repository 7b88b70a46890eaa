#include "cli/chart.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 1000, HEIGHT = 300, TICKS = 12 };

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

typedef struct axis {
    double low, high;
    double ticks[TICKS];
    size_t count;
} axis;

/* U+202A to U+202E and U+2066 to U+2069 turn the order of what follows, markup or not. */
static bool is_direction(const char *text, size_t length)
{
    if (length < 3)
        return false;
    unsigned char b = (unsigned char)text[1], c = (unsigned char)text[2];
    return (b == 0x80 && c >= 0xaa && c <= 0xae) || (b == 0x81 && c >= 0xa6 && c <= 0xa9);
}

void cli_html_text(FILE *out, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        switch (c) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        case '\'':
            fputs("&#39;", out);
            break;
        case 0xe2:
            if (is_direction(text + i, length - i)) {
                fputs(REPLACEMENT, out);
                i += 2;
            } else {
                fputc(c, out);
            }
            break;
        default:
            if ((c < 32 && c != '\n' && c != '\t') || c == 127)
                fputs(REPLACEMENT, out);
            else
                fputc(c, out);
        }
    }
}

/* 1, 2 or 5 times a power of ten: the least of them that is not below x. */
static double round_up(double x)
{
    double power = pow(10, floor(log10(x))), digit = x / power;
    return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

/* About `wanted` ticks at round numbers between low and high. */
static void place_ticks(axis *a, size_t wanted, double least)
{
    double step = fmax(round_up((a->high - a->low) / (double)wanted), least);
    double first = ceil(a->low / step - 1e-9);
    for (a->count = 0; a->count < TICKS && (first + (double)a->count) * step <= a->high + 1e-9 * step; a->count++)
        a->ticks[a->count] = (first + (double)a->count) * step;
}

static bool extent(const cli_chart *chart, axis *x, axis *y)
{
    *x = *y = (axis){.low = INFINITY, .high = -INFINITY};
    for (size_t s = 0; s < chart->count; s++) {
        const cli_series *series = &chart->series[s];
        for (size_t i = 0; i < series->count; i++) {
            if (!isfinite(series->x[i]) || !isfinite(series->y[i]))
                continue;
            x->low = fmin(x->low, series->x[i]);
            x->high = fmax(x->high, series->x[i]);
            y->low = fmin(y->low, series->y[i]);
            y->high = fmax(y->high, series->y[i]);
        }
    }
    return x->low <= x->high;
}

static void make_axes(const cli_chart *chart, axis *x, axis *y)
{
    if (chart->from_zero || (y->low >= 0 && y->low < y->high / 3))
        y->low = fmin(0, y->low);
    if (y->high - y->low < 1e-12 * fabs(y->high) || y->high == y->low) {
        double room = y->high != 0 ? fabs(y->high) / 2 : 1;
        y->low -= y->low == 0 ? 0 : room;
        y->high += room;
    }
    double room = 0.05 * (y->high - y->low);
    y->high += room;
    y->low -= y->low == 0 ? 0 : room;
    if (x->low == x->high)
        x->low -= 0.5, x->high += 0.5;
    place_ticks(y, 5, 0);
    place_ticks(x, 6, 1);
}

static double at(const axis *a, double value)
{
    return (value - a->low) / (a->high - a->low);
}

static void put_grid(FILE *out, const axis *x, const axis *y)
{
    fputs("<path class=\"grid\" d=\"", out);
    for (size_t i = 0; i < y->count; i++)
        fprintf(out, "M0 %.1fH%d", HEIGHT * (1 - at(y, y->ticks[i])), WIDTH);
    for (size_t i = 0; i < x->count; i++)
        fprintf(out, "M%.1f 0V%d", WIDTH * at(x, x->ticks[i]), HEIGHT);
    fputs("\"/>", out);
}

static void put_points(FILE *out, const cli_series *s, const axis *x, const axis *y, bool dots)
{
    bool pen_down = false;
    fprintf(out, "<path class=\"%s%s\" d=\"", s->style, dots ? " dots" : "");
    for (size_t i = 0; i < s->count; i++) {
        bool there = isfinite(s->x[i]) && isfinite(s->y[i]);
        if (there)
            fprintf(out, "%c%.2f %.2f%s", pen_down && !dots ? 'L' : 'M', WIDTH * at(x, s->x[i]),
                    HEIGHT * (1 - at(y, s->y[i])), dots ? "h0" : "");
        pen_down = there;
    }
    fputs("\"/>", out);
}

/* "5e-5" instead of "5e-05" */
static void put_number(FILE *out, double x, int digits)
{
    char text[40];
    snprintf(text, sizeof text, "%.*g", digits, x);
    char *exponent = strchr(text, 'e'), *at = exponent ? exponent + 2 : NULL;
    if (at && text[exponent - text + 1] == '+')
        at--;
    if (at)
        memmove(at, at + strspn(at, "+0"), strlen(at + strspn(at, "+0")) + 1);
    fputs(text, out);
}

static void put_label(FILE *out, const char *where, double place, double value, int digits)
{
    fprintf(out, "<span class=\"%s:%.2f%%\">", where, 100 * place);
    put_number(out, value, digits);
    fputs("</span>", out);
}

static void put_labels(FILE *out, const axis *x, const axis *y)
{
    for (size_t i = 0; i < y->count; i++)
        put_label(out, "y\" style=\"top", 1 - at(y, y->ticks[i]), y->ticks[i], 6);
    for (size_t i = 0; i < x->count; i++)
        put_label(out, "x\" style=\"left", at(x, x->ticks[i]), x->ticks[i], 10);
}

static void put_numbers(FILE *out, const double *values, size_t count, unsigned digits)
{
    for (size_t i = 0; i < count; i++) {
        if (isfinite(values[i]))
            fprintf(out, "%s%.*g", i ? "," : "", (int)digits, values[i]);
        else
            fputs(i ? ",null" : "null", out);
    }
}

/* What the page's script shows under the pointer. */
static void put_values(FILE *out, const cli_chart *chart, const axis *x)
{
    fprintf(out, "<script type=\"application/json\">{\"low\":%.10g,\"high\":%.10g,\"x\":\"%s\",\"series\":[", x->low,
            x->high, chart->x_name);
    for (size_t s = 0; s < chart->count; s++) {
        const cli_series *series = &chart->series[s];
        fprintf(out, "%s{\"name\":\"%s\",\"x\":[", s ? "," : "", series->name);
        put_numbers(out, series->x, series->count, 15);
        fputs("],\"y\":[", out);
        put_numbers(out, series->y, series->count, chart->decimals);
        fputs("]}", out);
    }
    fputs("]}</script>", out);
}

void cli_chart_put(FILE *out, const cli_chart *chart)
{
    axis x, y;
    if (!extent(chart, &x, &y))
        return;
    make_axes(chart, &x, &y);
    fprintf(out, "<figure class=\"chart%s\"><figcaption>%s", chart->wide ? " wide" : "", chart->title);
    for (size_t s = 0; s < chart->count && chart->count > 1; s++)
        fprintf(out, " <span class=\"key %s\">%s</span>", chart->series[s].style, chart->series[s].name);
    fprintf(out,
            "</figcaption><div class=\"plot\" tabindex=\"0\" role=\"img\" aria-label=\"%s by %s\">"
            "<svg viewBox=\"0 0 %d %d\" preserveAspectRatio=\"none\" aria-hidden=\"true\">",
            chart->title, chart->x_name, WIDTH, HEIGHT);
    put_grid(out, &x, &y);
    for (size_t s = 0; s < chart->count; s++) {
        put_points(out, &chart->series[s], &x, &y, false);
        if (chart->series[s].dots)
            put_points(out, &chart->series[s], &x, &y, true);
    }
    fputs("</svg>", out);
    put_labels(out, &x, &y);
    fputs("<div class=\"line\" hidden></div><div class=\"tip\" hidden></div></div>", out);
    if (chart->note)
        fprintf(out, "<p class=\"note\">%s</p>", chart->note);
    put_values(out, chart, &x);
    fputs("</figure>\n", out);
}
