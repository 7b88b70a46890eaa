#include "quant/encode.h"

extern const ql_encoder ql_encoder_base;
#ifdef __x86_64__
extern const ql_encoder ql_encoder_avx2, ql_encoder_avx512;
#endif

const ql_encoder *const ql_encoders[] = {
    &ql_encoder_base,
#ifdef __x86_64__
    &ql_encoder_avx2,
    &ql_encoder_avx512,
#endif
};
const size_t ql_encoder_count = sizeof ql_encoders / sizeof *ql_encoders;

const ql_encoder *ql_encoder_select(uint32_t features)
{
    size_t i = ql_encoder_count - 1;
    while (i > 0 && (ql_encoders[i]->cpu & ~features))
        i--;
    return ql_encoders[i];
}
