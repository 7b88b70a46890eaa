/* SHA-256 of files: vectors of FIPS 180-4, and lengths about the edges of blocks and reads (values of Python's
 * hashlib). */
#include "support.h"

#include <stdlib.h>

#include "qlora/io.h"

static char *folder;

static void make_folder(void)
{
    folder = test_folder();
}

static void remove_folder(void)
{
    test_folder_remove(folder);
}

static const char *pattern(size_t bytes)
{
    unsigned char *data = malloc(bytes + 1);
    ck_assert_ptr_nonnull(data);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)(i * 7 + i / 256);
    const char *path = test_file(folder, "pattern", data, bytes);
    free(data);
    return path;
}

static const struct {
    size_t bytes;
    const char *sha256;
} lengths[] = {
    {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
    {55, "576a1bf8d4478657e6dc4af9398544765c2a92cde28478b019235cfed315fc09"},
    {56, "9b20501dfd1d99161c257950f3444f3e49230c351c5c8e0943ef369f85f5205d"},
    {63, "30b345906b493f06f69444b6521113511c242f30e29840462950035043682f1e"},
    {64, "d8bc63b4fc1156e5e7d95a418b9bf54cd3174bedbc2db40f74895349b229b3c0"},
    {65, "1ee23b0fbcaecc1aff4a9e8f1645f35ab2c8e13609cd73b68df8b5e3f63ce073"},
    {119, "7a6589821178918ca8d9edaba5abfc1e9b2669564f4469b66885379c1530b2c8"},
    {120, "655250427d56b1b0eeb8497d21428704273458a01772d6881b65c0abac0f8a98"},
    {128, "54c9eb041badfd7064645067b107661fed6113197ce2dd066ba69618abd3732f"},
    {65535, "2a25c93431609f3aa02a017b64c8876dfc4cc3f7c0e21614c20a8d0667b1ce4c"},
    {65536, "5fce37f3129150ce7ec3939b54016d9c1fd01364e27b0a788dc634064aec76b1"},
    {65537, "662bcb0c13ee4da585a79aceace59f1755da8a51f2da8a1d5726ee3622bb0457"},
};

START_TEST(lengths_of_files)
{
    ql_error err = {0};
    ql_file_digest digest;
    ck_assert_ok(ql_file_sha256(&digest, pattern(lengths[_i].bytes), 0, &err), &err);
    ck_assert_str_eq(digest.sha256, lengths[_i].sha256);
    ck_assert_uint_eq(digest.bytes, lengths[_i].bytes);
    ck_assert(digest.whole);
}
END_TEST

START_TEST(standard_vectors)
{
    ql_error err = {0};
    ql_file_digest digest;
    char *million = malloc(1000000);
    ck_assert_ptr_nonnull(million);
    memset(million, 'a', 1000000);
    ck_assert_ok(ql_file_sha256(&digest, test_file(folder, "abc", "abc", 3), 0, &err), &err);
    ck_assert_str_eq(digest.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    ck_assert_ok(ql_file_sha256(&digest, test_file(folder, "million", million, 1000000), 0, &err), &err);
    ck_assert_str_eq(digest.sha256, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}
END_TEST

START_TEST(both_ends_of_a_long_file)
{
    ql_error err = {0};
    ql_file_digest digest;
    const char *path = pattern(5000);
    ck_assert_ok(ql_file_sha256(&digest, path, 1000, &err), &err);
    ck_assert(!digest.whole);
    ck_assert_uint_eq(digest.bytes, 5000);
    ck_assert_str_eq(digest.sha256, "2db3c2fcac727b6d290d069fc61325ce8fa9ab07fb4a9be5175ecd5fc16f112a");
    ck_assert_ok(ql_file_sha256(&digest, path, 5000, &err), &err);
    ck_assert(digest.whole);
    ck_assert_str_eq(digest.sha256, "1b5c855ff1052578ee7d262a7a7b784281ff77178d83435e3fc858874e8a5b10");
}
END_TEST

START_TEST(files_that_cannot_be_read)
{
    ql_error err = {0};
    ql_file_digest digest;
    ck_assert_fails(ql_file_sha256(&digest, "/nowhere/at/all", 0, &err), QL_ERR_IO, &err,
                    "/nowhere/at/all: cannot read");
    ck_assert_fails(ql_file_sha256(&digest, folder, 0, &err), QL_ERR_IO, &err, "directory");
    ck_assert_fails(ql_file_sha256(&digest, "/dev/zero", 0, &err), QL_ERR_IO, &err, "/dev/zero");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("digest");
    TCase *files = tcase_create("files");
    tcase_add_checked_fixture(files, make_folder, remove_folder);
    tcase_add_loop_test(files, lengths_of_files, 0, sizeof lengths / sizeof *lengths);
    tcase_add_test(files, standard_vectors);
    tcase_add_test(files, both_ends_of_a_long_file);
    tcase_add_test(files, files_that_cannot_be_read);
    suite_add_tcase(suite, files);
    return test_run(suite);
}
