#define _GNU_SOURCE
#include "baseline.h"

#include <dlfcn.h>
#include <math.h>
#include <string.h>

static const baseline *const all[] = {&baseline_sgemm, &baseline_haswell, &baseline_sbgemm, &baseline_onednn,
                                      &baseline_onednn_s4, &baseline_onnxruntime, &baseline_onnxruntime_bytes};

void baselines_find(const libraries *where, const baseline *found[MOST])
{
    size_t count = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const char *what = all[i]->find(where);
        printf("baseline %s, %s: %s\n", all[i]->name, all[i]->weights, what ? what : "not found");
        if (what)
            found[count++] = all[i];
    }
    found[count] = NULL;
}

void *library_open(const char *given, const char *const *names)
{
    if (given)
        return dlopen(given, RTLD_NOW | RTLD_LOCAL);
    void *library = NULL;
    for (; *names && !library; names++)
        library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
    return library;
}

bool library_functions(void *library, const library_function *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, list[i].name);
        if (!function)
            return false;
        memcpy(list[i].place, &function, sizeof function);
    }
    return true;
}

static void int4_row(float *w, size_t k, size_t group, uint8_t *codes, float *scales)
{
    for (size_t start = 0; start < k; start += group) {
        float largest = 0;
        for (size_t i = start; i < start + group; i++)
            largest = fmaxf(largest, fabsf(w[i]));
        float scale = largest > 0 ? largest / 7 : 1, inverse = 1 / scale;
        for (size_t i = start; i < start + group; i++) {
            float q = rintf(w[i] * inverse);
            w[i] = q * scale;
            codes[i / 2] |= (uint8_t)((int)(q + 8) << i % 2 * 4);
        }
        scales[start / group] = scale;
    }
}

void int4_groups(float *w, size_t n, size_t k, size_t group, uint8_t *codes, float *scales)
{
    memset(codes, 0, n * k / 2);
#pragma omp parallel for
    for (size_t row = 0; row < n; row++)
        int4_row(w + row * k, k, group, codes + row * k / 2, scales + row * (k / group));
}
