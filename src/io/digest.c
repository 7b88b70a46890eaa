/* SHA-256 (FIPS 180-4) of files. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "qlora/io.h"

enum { BLOCK = 64, CHUNK = 1 << 16 };

typedef struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char rest[BLOCK]; /* bytes % BLOCK of them */
} sha256;

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t turn(uint32_t x, unsigned bits)
{
    return x >> bits | x << (32 - bits);
}

/* One round; the names of the words change places instead of the words. */
static inline void mix(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f, uint32_t g, uint32_t *h,
                       uint32_t x)
{
    uint32_t sum = *h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + x;
    *d += sum;
    *h = sum + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
}

static void mix_block(uint32_t state[8], const unsigned char *block)
{
    uint32_t w[64], s[8];
    for (size_t i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (size_t i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (size_t i = 0; i < 64; i += 8) {
        const uint32_t *k = constants + i, *x = w + i;
        mix(s[0], s[1], s[2], &s[3], s[4], s[5], s[6], &s[7], k[0] + x[0]);
        mix(s[7], s[0], s[1], &s[2], s[3], s[4], s[5], &s[6], k[1] + x[1]);
        mix(s[6], s[7], s[0], &s[1], s[2], s[3], s[4], &s[5], k[2] + x[2]);
        mix(s[5], s[6], s[7], &s[0], s[1], s[2], s[3], &s[4], k[3] + x[3]);
        mix(s[4], s[5], s[6], &s[7], s[0], s[1], s[2], &s[3], k[4] + x[4]);
        mix(s[3], s[4], s[5], &s[6], s[7], s[0], s[1], &s[2], k[5] + x[5]);
        mix(s[2], s[3], s[4], &s[5], s[6], s[7], s[0], &s[1], k[6] + x[6]);
        mix(s[1], s[2], s[3], &s[4], s[5], s[6], s[7], &s[0], k[7] + x[7]);
    }
    for (size_t i = 0; i < 8; i++)
        state[i] += s[i];
}

static void add(sha256 *hash, const unsigned char *data, size_t bytes)
{
    size_t held = hash->bytes % BLOCK;
    hash->bytes += bytes;
    if (held + bytes < BLOCK) {
        memcpy(hash->rest + held, data, bytes);
        return;
    }
    if (held) {
        memcpy(hash->rest + held, data, BLOCK - held);
        mix_block(hash->state, hash->rest);
        data += BLOCK - held;
        bytes -= BLOCK - held;
    }
    for (; bytes >= BLOCK; data += BLOCK, bytes -= BLOCK)
        mix_block(hash->state, data);
    memcpy(hash->rest, data, bytes);
}

/* Pads with a one bit, zeros and the length in bits, and writes the digits. */
static void finish(sha256 *hash, char hex[65])
{
    uint64_t bits = 8 * hash->bytes;
    size_t held = hash->bytes % BLOCK;
    unsigned char tail[2 * BLOCK] = {0x80};
    size_t padding = (held < 56 ? 56 : 120) - held;
    for (size_t i = 0; i < 8; i++)
        tail[padding + i] = (unsigned char)(bits >> (56 - 8 * i));
    add(hash, tail, padding + 8);
    for (size_t i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08x", (unsigned)hash->state[i]);
}

/* Adds `bytes` bytes from where the file stands; false when it ends before or cannot be read. */
static bool add_part(sha256 *hash, FILE *file, uint64_t bytes)
{
    unsigned char chunk[CHUNK];
    while (bytes) {
        size_t most = bytes < CHUNK ? (size_t)bytes : CHUNK, got = fread(chunk, 1, most, file);
        add(hash, chunk, got);
        if (got < most)
            return false;
        bytes -= got;
    }
    return true;
}

static bool add_file(sha256 *hash, FILE *file, ql_file_digest *out, uint64_t limit)
{
    struct stat info;
    errno = 0;
    if (fstat(fileno(file), &info) != 0)
        return false;
    if (!S_ISREG(info.st_mode)) {
        errno = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
        return false;
    }
    out->bytes = (uint64_t)info.st_size;
    out->whole = !limit || out->bytes <= limit;
    if (out->whole)
        return add_part(hash, file, out->bytes);
    return add_part(hash, file, limit / 2) && fseeko(file, -(off_t)(limit / 2), SEEK_END) == 0 &&
           add_part(hash, file, limit / 2);
}

ql_status ql_file_sha256(ql_file_digest *out, const char *path, uint64_t limit, ql_error *err)
{
    sha256 hash = {
        .state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
    FILE *file = fopen(path, "rbe");
    *out = (ql_file_digest){0};
    bool read = file && add_file(&hash, file, out, limit);
    ql_status status = read ? QL_OK
                            : ql_fail(err, QL_ERR_IO, "%s: cannot read: %s", path,
                                      errno ? strerror(errno) : "it became shorter meanwhile");
    if (file)
        fclose(file);
    if (read)
        finish(&hash, out->sha256);
    return status;
}
