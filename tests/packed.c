/* Weights packed for prediction: the same bits as before, whatever the model and its type, on every way back: read, saved,
   looked up, converted, trained.  A model that opens as another type is what tw_to would have made of it. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "golden.h"
#include <string.h>

static const char *const configs[] = {
    "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":2,\"n_embd\":72,\"n_head\":4,\"n_positions\":64,\"vocab_size\":131,\"initializer_range\":0.1}",
    "{\"model_type\":\"bert\",\"architectures\":[\"BertForMaskedLM\"],\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4,\"intermediate_size\":100,"
        "\"max_position_embeddings\":64,\"vocab_size\":131,\"initializer_range\":0.1}",
    "{\"model_type\":\"t5\",\"architectures\":[\"T5ForConditionalGeneration\"],\"num_layers\":2,\"num_decoder_layers\":2,\"d_model\":64,\"d_kv\":16,\"num_heads\":4,\"d_ff\":300,"
        "\"vocab_size\":131,\"decoder_start_token_id\":0,\"pad_token_id\":0,\"initializer_factor\":1.0}"
};
enum { VOCAB = 131, TOKENS = 40, PASSES = 30 };

static tw_tensor *run(tw_context *tw, tw_model *model, const char *output, bool labels) {
    int32_t ids[TOKENS];
    tw_batch batch;
    static tw_outputs out;
    int i;
    for (i = 0; i < TOKENS; i++) ids[i] = (i * 37 + 5) % VOCAB;
    memset(&batch, 0, sizeof batch);
    memset(&out, 0, sizeof out);
    tw_batch_set(&batch, "input_ids", tw_ids(tw, tw_shape2(2, TOKENS / 2), ids));
    tw_batch_set(&batch, "decoder_input_ids", tw_ids(tw, tw_shape2(2, TOKENS / 2), ids));
    if (labels) tw_batch_set(&batch, "labels", tw_ids(tw, tw_shape2(2, TOKENS / 2), ids));
    CHECK(tw_model_forward(model, &batch, NULL, &out), "forward: %s", tw_error(tw));
    return tw_batch_get(&out, output);
}
static void logits_of(tw_context *tw, tw_model *model, float *out) {
    bool was = tw_no_grad(tw, true);
    CHECK(tw_read(run(tw, model, "logits", false), out, TOKENS * VOCAB) == TOKENS * VOCAB, "logits have another size");
    tw_no_grad(tw, was);
    tw_end_step(tw);
}
static int packed_count(const tw_model *m) {
    int64_t i;
    int count = 0;
    for (i = 0; i < tw_parameter_count(m); i++) count += tw_parameter_at(m, i)->panels != NULL;
    return count;
}

/* All numbers of two models, as floats. */
static void check_same_numbers(const tw_model *a, const tw_model *b, const char *what) {
    int64_t i, count;
    for (i = 0; i < tw_parameter_count(a); i++) {
        const tw_tensor *p = tw_parameter_at(a, i), *q = tw_parameter_at(b, i);
        float *x, *y;
        count = tw_count(p);
        x = (float *)check_malloc((size_t)count * 4 + 4);
        y = (float *)check_malloc((size_t)count * 4 + 4);
        CHECK(tw_read(p, x, count) == count && tw_read(q, y, count) == count && memcmp(x, y, (size_t)count * 4) == 0, "%s: %s differs", what, tw_name_of(p));
        free(x); free(y);
    }
}

static void check_file(const char *config, tw_dtype dtype, const char *folder, const char *second) {
    tw_context *tw = tw_create(NULL), *fresh = tw_create(NULL);
    tw_model *model = tw_from_config(tw, config), *plain;
    static float want[TOKENS * VOCAB], got[TOKENS * VOCAB];
    const char *name;
    tw_load_desc how;
    tw_tensor *loss;
    int i, packed;
    int64_t p;
    if (!model) { CHECK(false, "%s", tw_error(tw)); return; }
    CHECK(tw_save_pretrained_as(model, folder, dtype), "%s", tw_error(tw));
    tw_model_free(model);
    model = tw_from_pretrained(tw, folder);
    plain = tw_from_pretrained(fresh, folder);
    CHECK(model && plain, "%s%s", tw_error(tw), tw_error(fresh));
    if (!model || !plain) return;
    name = tw_class_of(model);
    logits_of(tw, model, want);
    CHECK(packed_count(model) == 0, "%s %s: packed after one pass", name, tw_dtype_name(dtype));
    for (i = 1; i < PASSES; i++) {
        tw_set_threads(tw, 1 + i % 3);
        logits_of(tw, model, got);
        CHECK(memcmp(want, got, sizeof want) == 0, "%s %s: pass %d gives other bits", name, tw_dtype_name(dtype), i);
    }
    packed = packed_count(model);
#if TWI_MMAP
    CHECK(packed > 5, "%s %s: %d matrices were packed", name, tw_dtype_name(dtype), packed);
#endif
    check_same_numbers(model, plain, name);
    CHECK(tw_save_pretrained(model, second), "%s: %s", name, tw_error(tw));

    /* training takes the panels away, and gets the gradients of a model that never had any */
    CHECK(tw_to(model, TW_F32) && tw_to(plain, TW_F32), "%s%s", tw_error(tw), tw_error(fresh));
    loss = run(tw, model, "loss", true);
    CHECK(tw_backward(loss), "%s: %s", name, tw_error(tw));
    CHECK(tw_backward(run(fresh, plain, "loss", true)), "%s: %s", name, tw_error(fresh));
    CHECK(packed_count(model) == 0, "%s: panels are left while training", name);
    for (p = 0; p < tw_parameter_count(model); p++) {
        tw_tensor *g = tw_grad(tw_parameter_at(model, p)), *h = tw_grad(tw_parameter_at(plain, p));
        CHECK(!g == !h, "%s: one of the gradients of %s is missing", name, tw_name_of(tw_parameter_at(model, p)));
        if (g && h) CHECK(memcmp(tw_data(g), tw_data(h), (size_t)tw_count(g) * 4) == 0, "%s: another gradient of %s", name, tw_name_of(tw_parameter_at(model, p)));
    }
    tw_end_step(tw);
    tw_end_step(fresh);

    /* numbers that somebody changes count at once, and are never read from the file again */
    tw_model_free(model);
    model = tw_from_pretrained(tw, second);
    CHECK(model != NULL, "%s", tw_error(tw));
    if (!model) return;
    tw_pack_weights(model);
    logits_of(tw, model, got);
    CHECK(memcmp(want, got, sizeof want) == 0 && packed_count(model) == packed, "%s: saved from panels it is another model", name);
    for (p = 0; p < tw_parameter_count(model); p++) tw_fill(tw_parameter_at(model, p), 0.01f);
    for (i = 0; i < PASSES; i++) {
        logits_of(tw, model, got);
        CHECK(memcmp(want, got, sizeof want) != 0, "%s: changed numbers do not count in pass %d", name, i);
        if (i == 0) memcpy(want, got, sizeof want);
        want[0] += 1;                                      /* so that the next pass is compared with something else */
    }
    tw_model_free(model);

    /* opened as another type */
    for (i = TW_F16; i < TW_DTYPE_COUNT; i++) {
        if (i > TW_BF16 && i < TW_Q8_0) continue;
        memset(&how, 0, sizeof how);
        how.dtype = (tw_dtype)i;
        tw_model_free(plain);
        plain = tw_from_pretrained(fresh, folder);
        model = tw_from_pretrained_with(tw, folder, &how);
        CHECK(model && plain && tw_to(plain, how.dtype), "%s%s", tw_error(tw), tw_error(fresh));
        if (!model || !plain) return;
        logits_of(tw, model, got);
        logits_of(fresh, plain, want);
        CHECK(memcmp(want, got, sizeof want) == 0, "%s: opened as %s it differs from tw_to", name, tw_dtype_name(how.dtype));
        check_same_numbers(model, plain, name);
        tw_model_free(model);
    }
    tw_destroy(fresh);
    tw_destroy(tw);
}

/* Writing: the same tokens with and without panels; an error in a number is found while the type changes, too. */
static void check_writing(const char *folder) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_pretrained(tw, folder);
    int32_t prompt[3] = { 5, 42, 79 }, one[40], all[40];
    tw_generate_desc how;
    int64_t i, n;
    memset(&how, 0, sizeof how);
    how.eos_count = -1;
    if (!model) { CHECK(false, "%s", tw_error(tw)); return; }
    how.max_new_tokens = 10;
    n = tw_generate_ids(model, prompt, 3, &how, one, 40, NULL);
    CHECK(n == 10 && packed_count(model) == 0, "%lld tokens, %d packed: %s", (long long)n, packed_count(model), tw_error(tw));
    how.max_new_tokens = 40;
    n = tw_generate_ids(model, prompt, 3, &how, all, 40, NULL);
#if TWI_MMAP
    CHECK(packed_count(model) > 5, "%d packed", packed_count(model));
#endif
    CHECK(n == 40, "%lld tokens: %s", (long long)n, tw_error(tw));
    for (i = 0; i < 10; i++) CHECK(one[i] == all[i], "token %lld is %d, not %d", (long long)i, (int)all[i], (int)one[i]);
    tw_destroy(tw);
}
static void check_bad_numbers(const char *folder) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, configs[0]);
    tw_tensor *table = model ? tw_parameter_at(model, 0) : NULL;
    tw_load_desc how;
    int i;
    if (!table) { CHECK(false, "%s", tw_error(tw)); return; }
    tw_data(table)[tw_count(table) - 1] = twb_bits_float(0x7FC00000u);
    CHECK(tw_save_pretrained(model, folder), "%s", tw_error(tw));
    for (i = TW_F32; i < TW_DTYPE_COUNT; i++) {
        if (i > TW_BF16 && i < TW_Q8_0) continue;
        memset(&how, 0, sizeof how);
        how.dtype = (tw_dtype)i;
        CHECK(tw_from_pretrained_with(tw, folder, &how) == NULL && strstr(tw_error(tw), tw_name_of(table)) != NULL, "%s: NaN was not found: %s", tw_dtype_name(how.dtype), tw_error(tw));
        tw_clear_error(tw);
    }
    how.dtype = TW_I32;
    CHECK(tw_from_pretrained_with(tw, folder, &how) == NULL && tw_error_code(tw) == TW_E_UNSUPPORTED, "I32: %s", tw_error(tw));
    tw_destroy(tw);
}

/* Weights of middling size share large pieces of memory: they overlap nowhere, and with the last of them all goes back. */
static void check_slabs(void) {
    enum { BLOCKS = 60 };
    tw_context *tw = tw_create(NULL);
    const size_t before = tw->memory.bytes;
    unsigned char *block[BLOCKS];
    size_t size[BLOCKS];
    int i, round;
    memset(block, 0, sizeof block);
    for (round = 0; round < 4; round++) {
        for (i = 0; i < BLOCKS; i++) {
            if (block[i]) continue;
            size[i] = 1 + check_random() % (i % 10 ? 900000u : 6000000u);
            block[i] = (unsigned char *)twi_alloc_weights(&tw->region, size[i], i % 2 == 0);
            CHECK(block[i] && (uintptr_t)block[i] % TWI_ALIGN == 0, "%lu bytes", (unsigned long)size[i]);
            memset(block[i], i, size[i]);
        }
        CHECK(tw->region.slab != NULL, "no slab was used");
        for (i = 0; i < BLOCKS; i++) {
            size_t at;
            for (at = 0; at < size[i] && block[i][at] == i; at++) continue;
            CHECK(at == size[i], "byte %lu of block %d was overwritten", (unsigned long)at, i);
            if (round < 3 && check_random() % 3 == 0) continue;
            twi_free(&tw->region, block[i]);
            block[i] = NULL;
        }
    }
    CHECK(tw->memory.bytes == before, "%lu bytes are not given back", (unsigned long)(tw->memory.bytes - before));
    CHECK(twi_alloc_weights(&tw->region, 300000, false) != NULL, "%s", tw_error(tw));         /* and one with the region itself */
    tw_destroy(tw);
}

/* A checkpoint goes into a model that was opened from a mapped file, before or after its matrices were packed: the new numbers
   count, in the products, in what is read and in what is saved. */
static void check_load_over(bool packed_before) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, configs[0]), *other;
    static float want[TOKENS * VOCAB], got[TOKENS * VOCAB];
    CHECK(model && tw_save_pretrained(model, "out.tmp/packed"), "%s", tw_error(tw));
    tw_seed(tw, 7);
    other = tw_from_config(tw, configs[0]);
    CHECK(other && tw_save_pretrained(other, "out.tmp/packed_again"), "%s", tw_error(tw));
    logits_of(tw, other, want);
    model = tw_from_pretrained(tw, "out.tmp/packed");
    if (packed_before) { tw_pack_weights(model); logits_of(tw, model, got); }
    CHECK(tw_load(model, "packed_again", "out.tmp"), "%s", tw_error(tw));
    logits_of(tw, model, got);
    CHECK(memcmp(want, got, sizeof want) == 0, "the old numbers are still multiplied by");
    tw_pack_weights(model);
    logits_of(tw, model, got);
    CHECK(memcmp(want, got, sizeof want) == 0, "packed anew: other logits");
    check_same_numbers(model, other, "loaded over a file");
    tw_destroy(tw);
}

/* What shows a matrix's numbers keeps them where they are until the step ends; and panels serve the matrix as it was made, not its
   transpose. */
static void check_uses(tw_dtype dtype) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, configs[0]);
    tw_tensor *weight = tw_parameter_named(model, "transformer.h.0.attn.c_proj.weight"), *view, *x;          /* 72 x 72 */
    static float first[72], again[72], want[5 * 72], got[5 * 72], in[5 * 72];
    int i;
    if (!weight || !tw_to(model, dtype)) { CHECK(false, "%s", tw_error(tw)); return; }
    for (i = 0; i < 5 * 72; i++) in[i] = check_uniform();
    tw_no_grad(tw, true);
    x = tw_tensor_from(tw, tw_shape2(5, 72), in);
    CHECK(tw_read(tw_linear_op(x, weight, NULL, false, TW_ACT_NONE, NULL), want, 5 * 72) == 5 * 72, "%s", tw_error(tw));
    view = tw_slice(weight, 0, 3, 1);
    CHECK(tw_read(view, first, 72) == 72, "%s", tw_error(tw));
    tw_pack_weights(model);
    run(tw, model, "logits", false);
    CHECK(tw_read(view, again, 72) == 72 && memcmp(first, again, sizeof first) == 0, "a view shows something else after packing");
    CHECK(!tw_to(model, TW_Q8_0) && tw_error_code(tw) == TW_E_UNSUPPORTED, "converted under a view: %s", tw_error(tw));
    tw_clear_error(tw);
    tw_end_step(tw);
    tw_pack_weights(model);
    run(tw, model, "logits", false);
    CHECK(weight->panels != NULL, "%s is not packed", tw_dtype_name(dtype));
    x = tw_tensor_from(tw, tw_shape2(5, 72), in);
    CHECK(tw_read(tw_linear_op(x, weight, NULL, false, TW_ACT_NONE, NULL), got, 5 * 72) == 5 * 72, "%s", tw_error(tw));
    CHECK(memcmp(want, got, sizeof want) == 0, "%s: the transpose of a packed matrix gives other numbers", tw_dtype_name(dtype));
    tw_end_step(tw);
    CHECK(tw_to(model, TW_Q8_0), "%s", tw_error(tw));
    tw_destroy(tw);
}

/* What is finite as f32 and infinite as F16 is refused wherever it would become F16, by name; as BF16 it is a number. */
static void check_too_large(const char *folder, float value, tw_dtype dtype, bool fits) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, configs[0]);
    tw_tensor *weight = tw_parameter_named(model, "transformer.h.1.mlp.c_fc.weight");
    tw_load_desc how;
    int way;
    if (!weight) { CHECK(false, "%s", tw_error(tw)); return; }
    tw_data(weight)[5] = value;
    CHECK(tw_save_pretrained(model, folder), "%s", tw_error(tw));
    memset(&how, 0, sizeof how);
    how.dtype = dtype;
    for (way = 0; way < 4; way++) {
        bool ok = way == 0 ? tw_from_pretrained_with(tw, folder, &how) != NULL : way == 1 ? tw_convert_pretrained(tw, folder, "out.tmp/packed_again", dtype) :
                  way == 2 ? tw_save_pretrained_as(model, "out.tmp/packed_again", dtype) : tw_to(model, dtype);
        if (way == 3 && !fits) CHECK(tw_dtype_of(tw_parameter_at(model, 0)) == TW_F32, "tw_to changed a part");
        CHECK(ok == fits && (ok || strstr(tw_error(tw), "h.1.mlp.c_fc.weight") != NULL), "way %d of %g to %s: %s", way, (double)value, tw_dtype_name(dtype), tw_error(tw));
        tw_clear_error(tw);
    }
    tw_destroy(tw);
}

int main(void) {
    static const tw_dtype types[3] = { TW_F32, TW_F16, TW_BF16 };
    size_t c;
    int t;
    for (c = 0; c < sizeof configs / sizeof *configs; c++)
        for (t = 0; t < 3; t++) check_file(configs[c], types[t], "out.tmp/packed", "out.tmp/packed_again");
    check_writing("out.tmp/packed_again");
    check_file(configs[0], TW_F32, "out.tmp/packed", "out.tmp/packed_again");
    check_writing("out.tmp/packed_again");
    check_bad_numbers("out.tmp/packed");
    check_load_over(false);
    check_load_over(true);
    check_uses(TW_F16);
    check_uses(TW_BF16);
    check_too_large("out.tmp/packed", 65519.0f, TW_F16, true);
    check_too_large("out.tmp/packed", 65520.0f, TW_F16, false);
    check_too_large("out.tmp/packed", -1e6f, TW_F16, false);
    check_too_large("out.tmp/packed", 1e6f, TW_BF16, true);
    check_too_large("out.tmp/packed", 3.4e38f, TW_BF16, false);
    check_slabs();
    return check_done();
}
