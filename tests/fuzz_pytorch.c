/* fuzz_pytorch.c - hostile PyTorch checkpoints: the input as a whole file, and as the pickle of a zip file with one storage. */
#include "fuzz.h"

static void use(tw_context *tw, tw_weights *w) {
    volatile unsigned char sum = 0;
    size_t i, k;
    fuzz_judge(tw, w != NULL);
    for (i = 0; i < tw_weights_count(w); i++) {
        const tw_weight *x = tw_weights_at(w, i);
        float value[4];
        demand(tw_weights_find(w, x->name) == x, "a tensor is not found");
        for (k = 0; k < x->bytes; k++) sum = (unsigned char)(sum + ((const unsigned char *)x->data)[k]);
        demand(twi_convert_values(x->data, x->dtype, x->bytes / tw_dtype_size(x->dtype) < 4 ? 1 : 4, value) || x->bytes == 0, "a dtype cannot be converted");
    }
    tw_close_weights(w);
    tw_clear_error(tw);
}

static unsigned char *little(unsigned char *to, uint64_t x, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) *to++ = (unsigned char)(x >> (8 * i));
    return to;
}
static unsigned char *text(unsigned char *to, const void *p, size_t n) { memcpy(to, p, n); return to + n; }

/* "r/data.pkl" and "r/data/0", 24 bytes. */
static size_t wrap(const uint8_t *pickle, size_t size, unsigned char *file) {
    static const char *const names[] = { "r/data.pkl", "r/data/0" };
    unsigned char *to = file, *directory;
    size_t begin[2], bytes[2], i;
    bytes[0] = size;
    bytes[1] = 24;
    for (i = 0; i < 2; i++) {
        begin[i] = (size_t)(to - file);
        to = text(to, "PK\3\4\24\0\0\0\0\0\0\0\0\0\0\0\0\0", 18);
        to = little(little(little(to, bytes[i], 4), bytes[i], 4), strlen(names[i]), 4);
        to = text(to, names[i], strlen(names[i]));
        to = text(to, i ? (const void *)"abcdefghijklmnopqrstuvwx" : (const void *)pickle, bytes[i]);
    }
    directory = to;
    for (i = 0; i < 2; i++) {
        to = text(to, "PK\1\2\24\0\24\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
        to = little(little(little(to, bytes[i], 4), bytes[i], 4), strlen(names[i]), 4);
        to = little(little(to, 0, 10 - 8), 0, 8);
        to = little(to, begin[i], 4);
        to = text(to, names[i], strlen(names[i]));
    }
    to = text(to, "PK\5\6\0\0\0\0\2\0\2\0", 12);
    to = little(little(little(to, (uint64_t)(to - directory) - 12, 4), (uint64_t)(directory - file), 4), 0, 2);
    return (size_t)(to - file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    counted c;
    tw_context *tw = fuzz_context(&c);
    unsigned char *file = (unsigned char *)malloc(size + 400);
    demand(tw && file, "no memory");
    use(tw, tw_weights_from_memory(tw, data, size));
    use(tw, tw_weights_from_memory(tw, file, wrap(data, size, file)));
    demand(c.live == 1, "memory is left");
    fuzz_end(tw, &c);
    free(file);
    return 0;
}
