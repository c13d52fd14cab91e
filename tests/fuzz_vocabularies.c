/* fuzz_vocabularies.c - hostile tokenizers, and texts for them.  The first byte of an input says what the rest is: t tokenizer.json,
   s spiece.model, w vocab.txt, b vocab.json with merges.txt behind a NUL. */
#include "fuzz.h"

static void use_tokenizer(tw_tokenizer *t, const uint8_t *data, size_t size) {
    static const char text[] = "The cat's hats <unk>\xE4\xBD\xA0\xF0\x9F\x99\x82 \xFF\xC3 a\xCC\x81 12\n\n  </s>";
    tw_encoding out;
    tw_tokenize_desc how;
    const char *s;
    size_t length;
    int turn;
    for (turn = 0; turn < 3; turn++) {
        memset(&how, 0, sizeof how);
        if (turn == 1) { how.pair = text; how.pair_length = sizeof text - 1; how.max_length = 20; how.pad_to = 30; }
        if (tw_tokenize(t, turn == 2 ? (const char *)data : text, turn == 2 ? (size < 300 ? size : 300) : sizeof text - 1, &how, &out) < 0) continue;
        demand(out.count >= 0, "a count below zero");
        s = tw_detokenize_length(t, out.ids, out.count, turn == 1, &length);
        demand(s != NULL || out.count >= 0, "no text");
    }
    (void)tw_token(t, 0);
    (void)tw_token(t, -1);
    (void)tw_token(t, (int32_t)tw_vocab_size(t));
    (void)tw_token_id(t, "the");
}

FUZZER(fuzz_vocabularies) {
    twi_blob list[2];
    twi_blobs blobs;
    counted c;
    tw_context *tw;
    tw_tokenizer *t;
    const uint8_t *second;
    if (size < 1) return;
    second = (const uint8_t *)memchr(data, 0, size);
    memset(list, 0, sizeof list);
    blobs.list = list;
    blobs.count = 1;
    list[0].data = data + 1;
    list[0].size = size - 1;
    switch (data[0]) {
    case 't': list[0].name = "tokenizer.json"; break;
    case 's': list[0].name = "spiece.model"; break;
    case 'w': list[0].name = "vocab.txt"; break;
    case 'b':
        if (!second) return;
        list[0].name = "vocab.json";
        list[0].size = (size_t)(second - data) - 1;
        list[1].name = "merges.txt";
        list[1].data = second + 1;
        list[1].size = size - (size_t)(second - data) - 1;
        blobs.count = 2;
        break;
    default: return;
    }
    tw = fuzz_context(&c, FUZZ_BYTES);
    demand(tw != NULL, "no memory");
    tw->blobs = &blobs;
    t = tw_load_tokenizer(tw, "");
    fuzz_judge(tw, t != NULL);
    tw->blobs = NULL;
    tw_clear_error(tw);
    if (t) use_tokenizer(t, data + 1, size - 1);
    tw_free_tokenizer(t);
    fuzz_end(tw, &c);
}
