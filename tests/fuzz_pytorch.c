/* fuzz_pytorch.c - hostile PyTorch checkpoints: the input as a whole file, and as the pickle of a zip file with one storage. */
#include "fuzz.h"

static unsigned char *put_little(unsigned char *to, uint64_t x, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) *to++ = (unsigned char)(x >> (8 * i));
    return to;
}
static unsigned char *put_bytes(unsigned char *to, const void *p, size_t n) { memcpy(to, p, n); return to + n; }

/* "r/data.pkl" and "r/data/0", 24 bytes. */
static size_t zip_of(const uint8_t *pickle, size_t size, unsigned char *file) {
    static const char *const names[] = { "r/data.pkl", "r/data/0" };
    unsigned char *to = file, *directory;
    size_t begin[2], bytes[2], i;
    bytes[0] = size;
    bytes[1] = 24;
    for (i = 0; i < 2; i++) {
        begin[i] = (size_t)(to - file);
        to = put_bytes(to, "PK\3\4\24\0\0\0\0\0\0\0\0\0\0\0\0\0", 18);
        to = put_little(put_little(put_little(to, bytes[i], 4), bytes[i], 4), strlen(names[i]), 4);
        to = put_bytes(to, names[i], strlen(names[i]));
        to = put_bytes(to, i ? (const void *)"abcdefghijklmnopqrstuvwx" : (const void *)pickle, bytes[i]);
    }
    directory = to;
    for (i = 0; i < 2; i++) {
        to = put_bytes(to, "PK\1\2\24\0\24\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
        to = put_little(put_little(put_little(to, bytes[i], 4), bytes[i], 4), strlen(names[i]), 4);
        to = put_little(put_little(to, 0, 10 - 8), 0, 8);
        to = put_little(to, begin[i], 4);
        to = put_bytes(to, names[i], strlen(names[i]));
    }
    to = put_bytes(to, "PK\5\6\0\0\0\0\2\0\2\0", 12);
    to = put_little(put_little(put_little(to, (uint64_t)(to - directory) - 12, 4), (uint64_t)(directory - file), 4), 0, 2);
    return (size_t)(to - file);
}

FUZZER(fuzz_pytorch) {
    counted c;
    tw_context *tw = fuzz_context(&c, FUZZ_BYTES);
    unsigned char *file = (unsigned char *)malloc(size + 400);
    demand(tw && file, "no memory");
    fuzz_use_weights(tw, tw_weights_from_memory(tw, data, size));
    fuzz_use_weights(tw, tw_weights_from_memory(tw, file, zip_of(data, size, file)));
    demand(c.live == 1, "memory is left");
    fuzz_end(tw, &c);
    free(file);
}
