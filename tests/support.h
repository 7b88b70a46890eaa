/* What the test programs share. */
#ifndef QL_TESTS_SUPPORT_H
#define QL_TESTS_SUPPORT_H

#include <check.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "qlora/base.h"

/* "ROOT/../shared/data/NAME" or "$QLORA_TEST_DATA/NAME", in a static buffer that the next call overwrites (8 in
 * turn). NULL, with a printed line "skipped: ...", when there is no such file or folder. */
const char *test_data(const char *name);

/* A fresh folder below $TMPDIR, removed with what it holds by test_folder_remove. free() the name. */
char *test_folder(void);
void test_folder_remove(char *folder); /* frees the name too */

/* Writes FOLDER/NAME with data[bytes]; returns its path in a static buffer (8 in turn). */
const char *test_file(const char *folder, const char *name, const void *data, size_t bytes);

/* Runs the test cases of one suite; returns the exit status of main. */
int test_run(Suite *suite);

/* The status must be OK; prints the message otherwise. */
#define ck_assert_ok(call, err)                                                                                        \
    do {                                                                                                               \
        ql_status ck_status = (call);                                                                                  \
        ck_assert_msg(ck_status == QL_OK, "%s: %s", #call, (err)->message);                                            \
    } while (0)

/* The status must be `wanted` and the message must contain `words`. */
#define ck_assert_fails(call, wanted, err, words)                                                                      \
    do {                                                                                                               \
        ql_status ck_status = (call);                                                                                  \
        ck_assert_msg(ck_status == (wanted), "%s: status %s, wanted %s (%s)", #call, ql_status_name(ck_status),        \
                      ql_status_name(wanted), (err)->message);                                                         \
        ck_assert_msg(strstr((err)->message, words) != NULL, "%s: \"%s\" lacks \"%s\"", #call, (err)->message, words); \
    } while (0)

#endif
