#include "lists.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    shape shapes[8];
} models[] = {
    {"issue", {{2048, 2048}, {5632, 2048}, {2048, 5632}, {4096, 4096}, {11008, 4096}}},
    {"llama-3.2-1b", {{2048, 2048}, {512, 2048}, {8192, 2048}, {2048, 8192}}},
    {"qwen2.5-0.5b", {{896, 896}, {128, 896}, {4864, 896}, {896, 4864}}},
    {"tinyllama-1.1b", {{2048, 2048}, {256, 2048}, {5632, 2048}, {2048, 5632}}},
};

void refuse(const char *what, const char *value)
{
    fprintf(stderr, "qlora-bench: %s: %s (--help shows the options)\n", what, value);
    exit(2);
}

static void add_shape(options *o, const char *text)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (strcmp(models[i].name, text) == 0) {
            for (size_t j = 0; j < 8 && models[i].shapes[j].n && o->shape_count < MOST; j++)
                o->shapes[o->shape_count++] = models[i].shapes[j];
            return;
        }
    shape s;
    char rest;
    if (sscanf(text, "%zux%zu%c", &s.n, &s.k, &rest) != 2 || !s.n || !s.k || o->shape_count == MOST)
        refuse("not a shape", text);
    o->shapes[o->shape_count++] = s;
}

void list_shapes(options *o, char *text)
{
    for (char *part = strtok(text, ","); part; part = strtok(NULL, ","))
        add_shape(o, part);
}

size_t one_number(size_t most, const char *text)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || !value || value > most)
        refuse("not a number that can be used", text);
    return value;
}

void list_numbers(size_t *list, size_t *count, size_t most, char *text)
{
    for (char *part = strtok(text, ","); part; part = strtok(NULL, ",")) {
        if (*count == MOST)
            refuse("too many numbers", part);
        list[(*count)++] = one_number(most, part);
    }
}
