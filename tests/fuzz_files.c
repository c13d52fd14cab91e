/* fuzz_files.c - hostile JSON, safetensors files and indexes. */
#include "fuzz.h"

static char *written_json(const tw_json *j, int indent, size_t *n) {
    char *text;
    *n = tw_json_write(j, indent, NULL, 0);
    text = (char *)malloc(*n + 1);
    demand(text && tw_json_write(j, indent, text, *n + 1) == *n && strlen(text) == *n, "the length of a text differs");
    return text;
}

/* What can be read is written, read again and written the same. */
static void use_json(tw_context *tw, const char *text, size_t size) {
    tw_json *a = tw_json_parse(tw, text, size), *b, *c;
    char *first, *second;
    size_t n, m;
    int64_t i;
    fuzz_judge(tw, a != NULL);
    if (!a) return;
    first = written_json(a, 0, &n);
    b = tw_json_parse(tw, first, n);
    demand(b != NULL, "what was written cannot be read");
    second = written_json(b, 0, &m);
    demand(n == m && memcmp(first, second, n) == 0, "it is written another way the second time");
    c = tw_json_object(tw);
    if (tw_json_set_copy(c, "copy", a)) {
        free(second);
        second = written_json(tw_json_get(c, "copy"), 0, &m);
        demand(n == m && memcmp(first, second, n) == 0, "a copy differs");
    }
    for (i = 0; i < tw_json_count(a); i++) {
        const char *key = tw_json_key(a, i);
        if (key && strlen(key) == tw_json_key_length(a, i)) demand(tw_json_get(a, key) == tw_json_at(a, i), "a member is not found");
    }
    free(first);
    first = written_json(b, 1, &m);
    while (tw_json_type(b) == TW_JSON_OBJECT && tw_json_count(b) > 0 && strlen(tw_json_key(b, 0)) == tw_json_key_length(b, 0)) demand(tw_json_remove(b, tw_json_key(b, 0)), "a member cannot be removed");
    free(first);
    free(second);
    tw_json_free(a);
    tw_json_free(b);
    tw_json_free(c);
}

static void use_number(const char *text, size_t size) {
    double x, y;
    char out[32];
    if (!twi_parse_number(text, size, &x)) return;
    demand(twi_parse_number(out, twi_format_number(x, out), &y) && memcmp(&x, &y, sizeof x) == 0, "a number reads back as another");
}

FUZZER(fuzz_files) {
    static const unsigned char shard[] = "\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} x";
    counted c;
    tw_context *tw;
    twi_blob list[2];
    twi_blobs blobs;
    tw = fuzz_context(&c, FUZZ_BYTES);
    demand(tw != NULL, "no memory");
    use_json(tw, (const char *)data, size);
    tw_clear_error(tw);
    use_number((const char *)data, size);
    fuzz_use_weights(tw, tw_weights_from_memory(tw, data, size));
    list[0].name = "model.safetensors.index.json"; list[0].data = data; list[0].size = size;
    list[1].name = "1.safetensors"; list[1].data = shard; list[1].size = sizeof shard - 1;
    blobs.list = list;
    blobs.count = 2;
    tw->blobs = &blobs;
    fuzz_use_weights(tw, tw_open_weights(tw, ""));
    tw->blobs = NULL;
    demand(c.live == 1, "memory is left");
    fuzz_end(tw, &c);
}
