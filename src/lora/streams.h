/* Which Philox streams training draws from: the two highest bits of the stream keep its uses apart, and apart from the
 * streams of random weights and the order of the data. */
#ifndef QL_SRC_LORA_STREAMS_H
#define QL_SRC_LORA_STREAMS_H

#include <stdint.h>

#define QL_STREAM_INIT (UINT64_C(1) << 63)                          /* | layer */
#define QL_STREAM_DROPOUT (UINT64_C(1) << 63 | UINT64_C(1) << 62) /* | step << 24 | layer */
#define QL_STREAM_NOISE (UINT64_C(1) << 62)                       /* | step */

#endif
