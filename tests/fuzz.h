/* fuzz.h - what the fuzzers share; fuzz_all.c is all of them, each is a program, too.  With libFuzzer:
       clang -g -O1 -fsanitize=fuzzer,address,undefined -DTWINKLE_NO_SIMD -I.. -I. fuzz_X.c -o fuzz_X -lm && ./fuzz_X corpus/fuzz_X
   Without it, the same inputs once, or what a fuzzer found once more:
       cc -g -DREPLAY -I.. -I. fuzz_X.c -o fuzz_X -lm && ./fuzz_X corpus/fuzz_X/... */
#ifndef FUZZ_H
#define FUZZ_H
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "counted.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* FUZZER(name) { ... } is what a file does with `data` and its `size`, in a program of its own or among others. */
#ifdef FUZZ_ALL
int LLVMFuzzerInitialize(int *argc, char ***argv);
#define FUZZER(name) static void name(const uint8_t *data, size_t size)
#else
#define FUZZER(name) \
    static void name(const uint8_t *data, size_t size); \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { name(data, size); return 0; } \
    static void name(const uint8_t *data, size_t size)
#endif

static void demand(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

/* An allocator that has little: what a file asks for beyond it is refused, as on a small machine. */
#define FUZZ_BYTES ((size_t)48 << 20)
static size_t fuzz_most;
static void *fuzz_alloc(void *user, size_t bytes) {
    counted *c = (counted *)user;
    return bytes > fuzz_most || c->bytes > fuzz_most - bytes ? NULL : counted_alloc(user, bytes);
}
static tw_context *fuzz_context(counted *c, size_t most) {
    tw_desc d;
    fuzz_most = most;
    memset(c, 0, sizeof *c);
    d = counted_desc(c);
    d.alloc.alloc = fuzz_alloc;
    return tw_create(&d);
}
/* Everything is gone, and whatever failed has said so. */
static void fuzz_end(tw_context *tw, counted *c) {
    tw_destroy(tw);
    demand(c->live == 0 && c->bytes == 0, "memory is left at the end");
}
static void fuzz_judge(tw_context *tw, bool done) {
    size_t i;
    const char *sentence = tw_error(tw);
    demand(done ? !tw_failed(tw) : tw_failed(tw) && strlen(sentence) > 10, "a result with an error, or an error without a sentence");
    for (i = 0; sentence[i]; i++) demand((unsigned char)sentence[i] >= 32, "a control character in an error");
}
/* Whatever opens is used: every name, and every byte that belongs to a tensor. */
static inline void fuzz_use_weights(tw_context *tw, tw_weights *w) {
    size_t i, k;
    volatile unsigned char sum = 0;
    fuzz_judge(tw, w != NULL);
    for (i = 0; i < tw_weights_count(w); i++) {
        const tw_weight *x = tw_weights_at(w, i);
        size_t count = tw_dtype_size(x->dtype) ? x->bytes / tw_dtype_size(x->dtype) : 0;
        float value[4];
        demand(tw_weights_find(w, x->name) == x, "a tensor is not found");
        for (k = 0; k < x->bytes; k++) sum = (unsigned char)(sum + ((const unsigned char *)x->data)[k]);
        demand(twi_convert_values(x->data, x->dtype, count < 4 ? (int64_t)count : 4, value), "a dtype cannot be converted");
    }
    (void)tw_weights_metadata(w, "format");
    tw_close_weights(w);
    tw_clear_error(tw);
}

#ifdef REPLAY
int main(int argc, char **argv) {
    int i;
#ifdef FUZZ_ALL
    LLVMFuzzerInitialize(&argc, &argv);
#endif
    for (i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        uint8_t *data, *exact;
        size_t size;
        if (!f) { fprintf(stderr, "%s cannot be opened\n", argv[i]); return 1; }
        data = (uint8_t *)malloc((size_t)1 << 24);
        demand(data != NULL, "no memory");
        size = fread(data, 1, (size_t)1 << 24, f);
        fclose(f);
        exact = (uint8_t *)malloc(size ? size : 1);
        demand(exact != NULL, "no memory");
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        free(data);
    }
    printf("%d passed, 0 failed\n", argc - 1);
    return 0;
}
#endif
#endif
