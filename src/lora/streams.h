/* Which Philox streams this room draws from: the two highest bits of the stream keep its uses apart. */
#ifndef QL_SRC_LORA_STREAMS_H
#define QL_SRC_LORA_STREAMS_H

#include <stdint.h>

#define QL_STREAM_INIT (UINT64_C(1) << 63)                             /* | layer */
#define QL_STREAM_DROPOUT (UINT64_C(1) << 63 | UINT64_C(1) << 62) /* | step << 24 | layer */

#endif
