/* A small model of an architecture with an adapter: shape, tokens and what is known of logits, losses and gradients in
 * tests/data/arch, and weights that are a function of their names (tools/make_arch_references.py has the same one). */
#ifndef QL_TESTS_ARCH_CASE_H
#define QL_TESTS_ARCH_CASE_H

#include "io/json.h"
#include "qlora/model.h"

typedef struct arch_case {
    json_t *json;
    char *folder, *adapter;
    ql_workers *workers;
    ql_model *model;
    size_t count; /* of ids */
    int32_t ids[64];
} arch_case;

/* The case NAME.json with its adapter loaded, to be trained. A GGUF file where the case has types of blocks, otherwise
 * a folder whose config.json is what the case has under that key. */
void arch_case_open(arch_case *c, const char *name, const char *config_key, ql_format format);
void arch_case_close(arch_case *c);

/* splitmix64 of the name's FNV-1a hash and a place. */
uint64_t arch_case_bits(const char *name, uint64_t index);

#endif
