/* Merges of a SentencePiece model of type BPE: two neighbours become one wherever their text is a token, that of
 * the highest score first, and of equal ones the leftmost. */
#ifndef QL_SRC_TEXT_SCORES_H
#define QL_SRC_TEXT_SCORES_H

#include <math.h>

#include "text/vocab.h"

#define QL_NO_SCORE ((double)-INFINITY) /* of tokens that no merge gives or takes */

/* Replaces what *merges holds. scores[vocab->count]; QL_ERR_FORMAT names a NaN, QL_ERR_UNSUPPORTED a token of more
 * than 1024 bytes. */
ql_status ql_merges_by_score(ql_merges *merges, const ql_vocab *vocab, const double *scores, ql_error *err);

#endif
