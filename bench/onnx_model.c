/* ONNX files are protocol buffers: fields of a number and a kind, integers in groups of 7 bits, messages within
 * messages by their length. Field numbers are those of onnx.proto. */
#include "onnx_model.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct message {
    uint8_t *data;
    size_t bytes, room;
    bool failed; /* out of memory, here or in a part */
} message;

static void put(message *m, const void *data, size_t bytes)
{
    if (m->bytes + bytes > m->room && !m->failed) {
        size_t room = 2 * m->room + bytes + 64;
        uint8_t *larger = realloc(m->data, room);
        m->failed = !larger;
        m->data = larger ? larger : m->data;
        m->room = larger ? room : m->room;
    }
    if (m->failed)
        return;
    memcpy(m->data + m->bytes, data, bytes);
    m->bytes += bytes;
}

static void put_integer(message *m, uint64_t value)
{
    uint8_t seven;
    for (; value > 127; value >>= 7) {
        seven = (uint8_t)(value | 128);
        put(m, &seven, 1);
    }
    seven = (uint8_t)value;
    put(m, &seven, 1);
}

static void add_number(message *m, unsigned field, uint64_t value)
{
    put_integer(m, field << 3);
    put_integer(m, value);
}

static void add_bytes(message *m, unsigned field, const void *data, size_t bytes)
{
    put_integer(m, field << 3 | 2);
    put_integer(m, bytes);
    put(m, data, bytes);
}

static void add_text(message *m, unsigned field, const char *text)
{
    add_bytes(m, field, text, strlen(text));
}

/* And frees it. */
static void add_message(message *m, unsigned field, message part)
{
    m->failed |= part.failed;
    add_bytes(m, field, part.data, part.failed ? 0 : part.bytes);
    free(part.data);
}

enum { FLOAT = 1, BYTE = 2 };

static message attribute(const char *name, uint64_t value)
{
    enum { INTEGER = 2 };
    message m = {0};
    add_text(&m, 1, name);
    add_number(&m, 3, value);
    add_number(&m, 20, INTEGER);
    return m;
}

static message node(const onnx_product *p)
{
    message m = {0};
    add_text(&m, 1, "x");
    add_text(&m, 1, "codes");
    add_text(&m, 1, "scales");
    add_text(&m, 2, "y");
    add_text(&m, 4, "MatMulNBits");
    add_message(&m, 5, attribute("K", p->k));
    add_message(&m, 5, attribute("N", p->n));
    add_message(&m, 5, attribute("bits", 4));
    add_message(&m, 5, attribute("block_size", p->group));
    add_message(&m, 5, attribute("accuracy_level", (uint64_t)p->accuracy));
    add_text(&m, 7, "com.microsoft");
    return m;
}

static message tensor(const char *name, unsigned type, const size_t *sizes, size_t count, const void *data, size_t bytes)
{
    message m = {0};
    for (size_t i = 0; i < count; i++)
        add_number(&m, 1, sizes[i]);
    add_number(&m, 2, type);
    add_text(&m, 8, name);
    add_bytes(&m, 9, data, bytes);
    return m;
}

/* An input or output: a matrix of fp32. */
static message matrix(const char *name, size_t rows, size_t cols)
{
    message m = {0}, type = {0}, tensor_type = {0}, shape = {0}, row = {0}, col = {0};
    add_number(&row, 1, rows);
    add_number(&col, 1, cols);
    add_message(&shape, 1, row);
    add_message(&shape, 1, col);
    add_number(&tensor_type, 1, FLOAT);
    add_message(&tensor_type, 2, shape);
    add_message(&type, 1, tensor_type);
    add_text(&m, 1, name);
    add_message(&m, 2, type);
    return m;
}

static message graph(const onnx_product *p)
{
    message m = {0};
    size_t groups = p->k / p->group, codes[] = {p->n, groups, p->group / 2}, scales[] = {p->n * groups};
    add_message(&m, 1, node(p));
    add_text(&m, 2, "product");
    add_message(&m, 5, tensor("codes", BYTE, codes, 3, p->codes, p->n * p->k / 2));
    add_message(&m, 5, tensor("scales", FLOAT, scales, 1, p->scales, p->n * groups * sizeof *p->scales));
    add_message(&m, 11, matrix("x", p->m, p->k));
    add_message(&m, 12, matrix("y", p->m, p->n));
    return m;
}

static message operators(const char *domain, uint64_t version)
{
    message m = {0};
    add_text(&m, 1, domain);
    add_number(&m, 2, version);
    return m;
}

uint8_t *onnx_model(const onnx_product *p, size_t *bytes)
{
    message m = {0};
    add_number(&m, 1, 8); /* the version of the format */
    add_message(&m, 7, graph(p));
    add_message(&m, 8, operators("", 17));
    add_message(&m, 8, operators("com.microsoft", 1));
    *bytes = m.bytes;
    if (!m.failed)
        return m.data;
    free(m.data);
    return NULL;
}
