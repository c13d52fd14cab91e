/* fuzz_files.c - hostile JSON, safetensors files and indexes.
   With libFuzzer:  clang -g -O1 -fsanitize=fuzzer,address,undefined fuzz_files.c -o fuzz_files -lm && ./fuzz_files -max_len=4096
   Without it:      cc -g -O1 -DREPLAY fuzz_files.c -o fuzz_files -lm && ./fuzz_files FILE...    what a fuzzer found, again
                                                                         ./fuzz_files 100000     that many mutations of the seeds below */
#define TWINKLE_IMPLEMENTATION
#include "../twinkle.h"
#include "counted.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "fuzz_files: %s\n", what);
    abort();
}

static char *written(const tw_json *j, int indent, size_t *n) {
    char *text;
    *n = tw_json_write(j, indent, NULL, 0);
    text = (char *)malloc(*n + 1);
    demand(text && tw_json_write(j, indent, text, *n + 1) == *n && strlen(text) == *n, "the length of a text differs");
    return text;
}

/* What can be read is written, read again and written the same. */
static void fuzz_json(tw_context *tw, const char *text, size_t size) {
    tw_json *a = tw_json_parse(tw, text, size), *b, *c;
    char *first, *second;
    size_t n, m;
    int64_t i;
    demand(a ? !tw_failed(tw) : tw_failed(tw) && strlen(tw_error(tw)) > 10, "a result without an error, or an error without a sentence");
    if (!a) return;
    first = written(a, 0, &n);
    b = tw_json_parse(tw, first, n);
    demand(b != NULL, "what was written cannot be read");
    second = written(b, 0, &m);
    demand(n == m && memcmp(first, second, n) == 0, "it is written another way the second time");
    c = tw_json_object(tw);
    if (tw_json_set_copy(c, "copy", a)) {
        free(second);
        second = written(tw_json_get(c, "copy"), 0, &m);
        demand(n == m && memcmp(first, second, n) == 0, "a copy differs");
    }
    for (i = 0; i < tw_json_count(a); i++) {
        const char *key = tw_json_key(a, i);
        if (key && strlen(key) == tw_json_key_length(a, i)) demand(tw_json_get(a, key) == tw_json_at(a, i), "a member is not found");
    }
    free(first);
    first = written(b, 1, &m);
    while (tw_json_type(b) == TW_JSON_OBJECT && tw_json_count(b) > 0 && strlen(tw_json_key(b, 0)) == tw_json_key_length(b, 0)) demand(tw_json_remove(b, tw_json_key(b, 0)), "a member cannot be removed");
    free(first);
    free(second);
    tw_json_free(a);
    tw_json_free(b);
    tw_json_free(c);
}

static void fuzz_number(const char *text, size_t size) {
    double x, y;
    char out[32];
    if (!twi_parse_number(text, size, &x)) return;
    demand(twi_parse_number(out, twi_format_number(x, out), &y) && memcmp(&x, &y, sizeof x) == 0, "a number reads back as another");
}

/* Whatever opens is used: every name, and every byte that belongs to a tensor. */
static void use(tw_context *tw, tw_weights *w) {
    size_t i, k;
    volatile unsigned char sum = 0;
    demand(w ? !tw_failed(tw) : tw_failed(tw) && strlen(tw_error(tw)) > 10, "a result without an error, or an error without a sentence");
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
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const unsigned char shard[] = "\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} x";
    counted c;
    tw_context *tw;
    twi_blob list[2];
    twi_blobs blobs;
    memset(&c, 0, sizeof c);
    tw = counted_context(&c);
    if (!tw) return 0;
    fuzz_json(tw, (const char *)data, size);
    tw_clear_error(tw);
    fuzz_number((const char *)data, size);
    use(tw, tw_weights_from_memory(tw, data, size));
    tw_clear_error(tw);
    list[0].name = "model.safetensors.index.json"; list[0].data = data; list[0].size = size;
    list[1].name = "1.safetensors"; list[1].data = shard; list[1].size = sizeof shard - 1;
    blobs.list = list;
    blobs.count = 2;
    tw->blobs = &blobs;
    use(tw, tw_open_weights(tw, ""));
    tw->blobs = NULL;
    demand(c.live == 1, "memory is left");
    tw_destroy(tw);
    demand(c.live == 0 && c.bytes == 0, "memory is left at the end");
    return 0;
}

#ifdef REPLAY
#include "check.h"
/* Files that are right: mutations of them come far. */
static const struct { const char *bytes; size_t size; } seeds[] = {
#define SEED(text) { text, sizeof text - 1 }
    SEED("{\"a\":[1,-2.5e-3,true,false,null,\"\\u00e9\\ud83d\\ude00\"],\"b\":{\"c\":{}},\"d\":\"\xC3\xA9\"}"),
    SEED("{\"weight_map\":{\"a\":\"1.safetensors\"},\"metadata\":{\"total_size\":1}}"),
    SEED("\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} x"),
    SEED("\xA0\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[8,10],\"more\":[{}]}}                xxxxxxxxxx"),
    SEED("1.7976931348623157e308"), SEED("[0.1,1e16,123456789012345678901234567890,-0.0,4.9e-324]")
};
static const char *const words[] = { "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "\\ud800", "0", "-", "1e", "999", ".", "null", "true", "\"dtype\":", "\"shape\":", "\"data_offsets\":",
                                     "\"a\"", "18446744073709551615", "9223372036854775807", "4294967296", "F32", "I64", "../", "1.safetensors", "__metadata__", "weight_map", "\xFF", " " };

static size_t mutate(uint8_t *data, size_t size, size_t room) {
    int turns = 1 + (int)(check_random() % 6);
    while (turns-- > 0) {
        size_t at = size ? check_random() % size : 0, n;
        switch (check_random() % 6) {
        case 0: if (size) data[at] = (uint8_t)check_random(); break;
        case 1: if (size) data[at] ^= (uint8_t)(1u << (check_random() & 7)); break;
        case 2: size = at; break;
        case 3: n = size - at < 9 ? size - at : check_random() % 9; memmove(data + at, data + at + n, size - at - n); size -= n; break;
        case 4: {
            const char *word = words[check_random() % (sizeof words / sizeof words[0])];
            n = strlen(word);
            if (size + n > room) break;
            memmove(data + at + n, data + at, size - at);
            memcpy(data + at, word, n);
            size += n;
            break;
        }
        default:
            n = size - at < 20 ? size - at : 20;
            if (size + n > room) break;
            memmove(data + at + n, data + at, size - at);
            size += n;
            break;
        }
    }
    return size;
}

int main(int argc, char **argv) {
    long runs = argc == 2 && strspn(argv[1], "0123456789") == strlen(argv[1]) ? strtol(argv[1], NULL, 10) : argc < 2 ? 20000 : 0, i;
    for (i = 0; i < runs; i++) {
        static uint8_t room[1024];
        size_t seed = check_random() % (sizeof seeds / sizeof seeds[0]), size = seeds[seed].size;
        uint8_t *exact;
        memcpy(room, seeds[seed].bytes, size);
        size = mutate(room, size, sizeof room);
        exact = (uint8_t *)check_malloc(size);
        memcpy(exact, room, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        check_passed++;
    }
    for (i = 1; runs == 0 && i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        uint8_t *data;
        size_t size;
        CHECK(f != NULL, "%s cannot be opened", argv[i]);
        if (!f) continue;
        data = (uint8_t *)check_malloc((size_t)1 << 24);
        size = fread(data, 1, (size_t)1 << 24, f);
        fclose(f);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
        check_passed++;
    }
    return check_done();
}
#endif
