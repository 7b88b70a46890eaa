/* What the fuzz programs share: bytes become files, and what was read from them is used.
 *
 * Each fuzz_READER.c has LLVMFuzzerTestOneInput. It is linked with libFuzzer where -Dfuzz=true asks for that, and
 * with replay.c otherwise, which runs the files of corpus/READER as a test. */
#ifndef QL_TESTS_FUZZ_H
#define QL_TESTS_FUZZ_H

#include "qlora/io.h"
#include "qlora/model.h"
#include "qlora/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Some of an input's bytes. */
typedef struct fuzz_part {
    const uint8_t *data;
    size_t size;
} fuzz_part;

/* An input that stands for several files has them one after another, divided by lines "%%%%"; those that are
 * missing are empty. */
void fuzz_divide(fuzz_part *parts, size_t count, const uint8_t *data, size_t size);

/* The folder of this process, in memory where there is such a file system; removed when it ends. */
const char *fuzz_folder(void);

/* Writes FOLDER/NAME, and returns its path in a static buffer (8 in turn). */
const char *fuzz_file(const char *name, fuzz_part content);

/* Each part that is not empty as the file of its name; no file of the other names. */
void fuzz_files(const char *const *names, const fuzz_part *parts, size_t count);

/* A safetensors file whose length in front agrees with its header, so that inputs need not get that right. */
const char *fuzz_safetensors(const char *name, fuzz_part header, fuzz_part data);

/* A file that this program can write itself, with some bytes changed: two of place and one of value for each. */
typedef struct fuzz_own {
    uint8_t data[16384], changed[16384];
    size_t size; /* 0: not read yet */
} fuzz_own;
void fuzz_own_read(fuzz_own *own, const char *path);
void fuzz_own_change(fuzz_own *own, const char *path, const uint8_t *changes, size_t size);

/* Where the message says "... the checksum X, not Y" puts X in place of Y, so that what the sum protects is read too.
 * false: it says no such thing. */
bool fuzz_own_heal(fuzz_own *own, const char *path, const char *message);

/* The caller's own thread. */
ql_workers *fuzz_workers(void);

/* Whether a call went well. If not, it must have said why: in one line, with the same status. */
bool fuzz_went_well(ql_status status, const ql_error *err);

/* Reads every byte, value and line of metadata. */
void fuzz_use_tensors(const ql_tensors *tensors);

/* Feeds a few tokens to the model, plain and with adapters. */
void fuzz_use_model(ql_model *model);

/* Text to ids and back in every mode, and chats. */
void fuzz_use_tokenizer(ql_tokenizer *tokenizer, fuzz_part text);

/* Stops the program unless the condition holds, whatever NDEBUG says. */
#define FUZZ_CHECK(condition) ((condition) ? (void)0 : fuzz_stop(__FILE__, __LINE__, #condition))
_Noreturn void fuzz_stop(const char *file, int line, const char *condition);

#endif
