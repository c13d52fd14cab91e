/* Models with quantized weights: logits close to the unquantized model's, the same bits for one token with a cache and for a
   long prompt, before and after a file, on all numbers of threads; what is refused; what a plan says. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "twinkle_blas.h"
#include "golden.h"
#include <math.h>
#include <string.h>

static const tw_dtype types[2] = { TW_Q8_0, TW_Q4_0 };
static const char *const configs[] = {
    "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":2,\"n_embd\":72,\"n_head\":4,\"n_positions\":64,\"vocab_size\":131,\"initializer_range\":0.1}",
    "{\"model_type\":\"bert\",\"architectures\":[\"BertForMaskedLM\"],\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4,\"intermediate_size\":100,"
        "\"max_position_embeddings\":64,\"vocab_size\":131,\"initializer_range\":0.1}",
    "{\"model_type\":\"t5\",\"architectures\":[\"T5ForConditionalGeneration\"],\"num_layers\":2,\"num_decoder_layers\":2,\"d_model\":64,\"d_kv\":16,\"num_heads\":4,\"d_ff\":96,"
        "\"vocab_size\":131,\"decoder_start_token_id\":0,\"pad_token_id\":0,\"initializer_factor\":1.0}"
};
enum { VOCAB = 131, TOKENS = 40 };

static void fill_batch(tw_context *tw, tw_batch *batch, bool labels) {
    int32_t ids[TOKENS];
    int i;
    for (i = 0; i < TOKENS; i++) ids[i] = (i * 37 + 5) % VOCAB;
    memset(batch, 0, sizeof *batch);
    tw_batch_set(batch, "input_ids", tw_ids(tw, tw_shape2(2, TOKENS / 2), ids));
    tw_batch_set(batch, "decoder_input_ids", tw_ids(tw, tw_shape2(2, TOKENS / 2), ids));
    if (labels) tw_batch_set(batch, "labels", tw_ids(tw, tw_shape2(2, TOKENS / 2), ids));
}

static void logits_of(tw_context *tw, tw_model *model, float *out) {
    tw_batch batch;
    tw_outputs outputs;
    tw_no_grad(tw, true);
    fill_batch(tw, &batch, false);
    memset(&outputs, 0, sizeof outputs);
    CHECK(tw_model_forward(model, &batch, NULL, &outputs), "forward: %s", tw_error(tw));
    CHECK(tw_read(tw_batch_get(&outputs, "logits"), out, TOKENS * VOCAB) == TOKENS * VOCAB, "logits have another size");
    tw_no_grad(tw, false);
    tw_end_step(tw);
}

static double distance(const float *x, const float *y) {
    double off = 0, all = 0;
    int i;
    for (i = 0; i < TOKENS * VOCAB; i++) { off += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]); all += (double)y[i] * (double)y[i]; }
    return sqrt(off / all);
}

static void check_model(const char *config, int t, const char *folder) {
    tw_context *tw = tw_create(NULL), *other = tw_create(NULL);
    tw_model *model = tw_from_config(tw, config), *again;
    static float want[TOKENS * VOCAB], got[TOKENS * VOCAB], reread[TOKENS * VOCAB];
    float *before, *after;
    const char *name;
    tw_tensor *first = NULL;
    tw_batch batch;
    int64_t i, count, bytes = 0, bytes_before = 0;
    double off;
    CHECK(model != NULL, "%s", tw_error(tw));
    if (!model) { tw_destroy(tw); tw_destroy(other); return; }
    name = tw_class_of(model);
    logits_of(tw, model, want);
    for (i = 0; i < tw_parameter_count(model); i++) bytes_before += tw_bytes_of(tw_parameter_at(model, i));
    for (i = 0; i < tw_parameter_count(model) && !first; i++) if (strstr(tw_name_of(tw_parameter_at(model, i)), "c_attn.weight") || strstr(tw_name_of(tw_parameter_at(model, i)), "query.weight") ||
                                                                  strstr(tw_name_of(tw_parameter_at(model, i)), "SelfAttention.q.weight")) first = tw_parameter_at(model, i);
    count = tw_count(first);
    before = (float *)check_malloc((size_t)count * 4);
    after = (float *)check_malloc((size_t)count * 4);
    tw_read(first, before, count);
    CHECK(tw_to(model, types[t]), "%s: %s", name, tw_error(tw));
    CHECK(tw_dtype_of(first) == types[t], "%s: %s is not quantized", name, tw_name_of(first));
    tw_read(first, after, count);                              /* in the tensor's own order, transposed or not */
    for (i = 0, off = 0; i < count; i++) off = fmax(off, fabs((double)after[i] - (double)before[i]));
    CHECK(off < (t ? 0.08 : 0.003), "%s %s: read back off by %g", name, tw_dtype_name(types[t]), off);
    for (i = 0; i < tw_parameter_count(model); i++) {
        const tw_tensor *p = tw_parameter_at(model, i);
        bytes += tw_bytes_of(p);
        if (strstr(tw_name_of(p), "bias") || strstr(tw_name_of(p), "osition") || strstr(tw_name_of(p), "wpe") || strstr(tw_name_of(p), "Norm") || strstr(tw_name_of(p), "ln_") || strstr(tw_name_of(p), "layer_norm"))
            CHECK(tw_dtype_of(p) == TW_F32, "%s: %s is %s", name, tw_name_of(p), tw_dtype_name(tw_dtype_of(p)));
    }
    CHECK(bytes < bytes_before / (t ? 3 : 2), "%s: %lld bytes of %lld", name, (long long)bytes, (long long)bytes_before);
    logits_of(tw, model, got);
    off = distance(got, want);
    CHECK(off < (t ? 0.25 : 0.04), "%s %s: logits are off by %g", name, tw_dtype_name(types[t]), off);

    /* any number of threads, and through a file */
    tw_set_threads(tw, 3);
    logits_of(tw, model, reread);
    CHECK(memcmp(got, reread, sizeof got) == 0, "%s: three threads give other bits", name);
    CHECK(tw_save_pretrained(model, folder), "%s: %s", name, tw_error(tw));
    again = tw_from_pretrained(other, folder);
    CHECK(again != NULL, "%s: %s", name, tw_error(other));
    if (again) {
        logits_of(other, again, reread);
        CHECK(memcmp(got, reread, sizeof got) == 0, "%s: the file gives other bits", name);
        CHECK(tw_to(again, TW_F32), "%s: %s", name, tw_error(other));
        logits_of(other, again, reread);
        /* the same weights, but activations of seven bits: each is off by up to 1/128 of its block's largest */
        CHECK(distance(reread, got) < 0.035, "%s: dequantized logits are off by %g", name, distance(reread, got));
        CHECK(tw_to(again, t ? TW_Q8_0 : TW_BF16) && tw_to(again, types[t]), "%s: %s", name, tw_error(other));
    }

    /* the loss without gradients, and none with */
    fill_batch(tw, &batch, true);
    tw_no_grad(tw, true);
    { tw_outputs outputs; memset(&outputs, 0, sizeof outputs); CHECK(tw_model_forward(model, &batch, NULL, &outputs) && tw_item(tw_batch_get(&outputs, "loss")) > 0, "%s: %s", name, tw_error(tw)); }
    tw_no_grad(tw, false);
    tw_end_step(tw);
    fill_batch(tw, &batch, true);
    { tw_outputs outputs; memset(&outputs, 0, sizeof outputs); tw_model_forward(model, &batch, NULL, &outputs); CHECK(!tw_backward(tw_batch_get(&outputs, "loss")), "%s: a gradient went through", name); }
    CHECK(strstr(tw_error(tw), "no gradient") != NULL, "%s: %s", name, tw_error(tw));
    free(before); free(after);
    tw_destroy(other);
    tw_destroy(tw);
}

/* One token at a time with a cache gives the bits of the whole prompt: greedy text is the same with and without a cache. */
static void check_generation(int t) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, configs[0]);
    static float whole[TOKENS * VOCAB];
    int32_t prompt[TOKENS / 2], out[64];
    tw_generate_desc how;
    int64_t n, i, best = 0;
    for (i = 0; i < TOKENS / 2; i++) prompt[i] = (int32_t)((i * 37 + 5) % VOCAB);
    tw_to(model, types[t]);
    logits_of(tw, model, whole);
    for (i = 1; i < VOCAB; i++) if (whole[(TOKENS / 2 - 1) * VOCAB + i] > whole[(TOKENS / 2 - 1) * VOCAB + best]) best = i;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = 12;
    n = tw_generate_ids(model, prompt, TOKENS / 2, &how, out, 64, NULL);
    CHECK(n == 12 && out[0] == (int32_t)best, "%s: %lld tokens, the first is %d, not %d: %s", tw_dtype_name(types[t]), (long long)n, (int)out[0], (int)best, tw_error(tw));
    tw_destroy(tw);
}

static void check_plan(void) {
    tw_context *tw = tw_create(NULL);
    tw_json *config = tw_json_parse(tw, configs[0], strlen(configs[0]));
    tw_plan_desc d;
    size_t f32, q8, q4;
    memset(&d, 0, sizeof d);
    d.batch = 1; d.sequence = 16;
    f32 = tw_plan_config(tw, config, &d).weights_bytes;
    d.dtype = TW_Q8_0;
    q8 = tw_plan_config(tw, config, &d).weights_bytes;
    d.dtype = TW_Q4_0;
    q4 = tw_plan_config(tw, config, &d).weights_bytes;
    d.new_tokens = (int64_t)1 << 58;
    CHECK(tw_plan_config(tw, config, &d).total_bytes == 0 && tw_error_code(tw) == TW_E_RANGE, "a plan of 2^58 tokens: %s", tw_error(tw));
    tw_clear_error(tw);
    d.new_tokens = INT64_MAX;
    CHECK(tw_plan_config(tw, config, &d).total_bytes == 0 && tw_error_code(tw) == TW_E_RANGE, "a plan of 2^63 tokens: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(q4 < q8 && q8 < f32 / 2 && q4 > f32 / 10, "a plan has %lu, %lu and %lu bytes: %s", (unsigned long)f32, (unsigned long)q8, (unsigned long)q4, tw_error(tw));
    tw_json_free(config);
    tw_destroy(tw);
}

/* Widths at which the rows of blocks have as many bytes as a transposed matrix has rows or columns; and a format of which we know nothing. */
static void check_reopening(const char *folder) {
    int width, t;
    for (width = 32; width <= 72; width += 4)
        for (t = 0; t < 2; t++) {
            tw_context *tw = tw_create(NULL);
            char config[256];
            tw_model *m;
            snprintf(config, sizeof config, "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":1,\"n_embd\":%d,\"n_head\":4,\"n_positions\":64,\"vocab_size\":131}", width);
            m = tw_from_config(tw, config);
            CHECK(tw_to(m, types[t]) && tw_save_pretrained(m, folder) && tw_from_pretrained(tw, folder), "width %d as %s: %s", width, tw_dtype_name(types[t]), tw_error(tw));
            tw_destroy(tw);
        }
    {
        tw_context *tw = tw_create(NULL);
        static char header[1 << 16];
        char path[256];
        FILE *file;
        size_t n, i;
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        file = fopen(path, "r+b");
        n = file ? fread(header, 1, sizeof header, file) : 0;
        for (i = 0; i + 6 < n && memcmp(header + i, "\"q4_0\"", 6) != 0; i++) continue;
        CHECK(i + 6 < n, "%s names no format", path);
        if (file) {
            fseek(file, (long)i + 1, SEEK_SET);
            fwrite("q5_1", 1, 4, file);
            fclose(file);
        }
        CHECK(!tw_from_pretrained(tw, folder) && tw_error_code(tw) == TW_E_UNSUPPORTED && strstr(tw_error(tw), "q5_1"), "q5_1: %s", tw_error(tw));
        tw_destroy(tw);
    }
}

/* llama.cpp's own Python package: q8_0's blocks byte for byte, and what it reads from blocks of both. */
static void check_blocks(void) {
    tw_context *tw = tw_create(NULL);
    tw_weights *file = tw_open_weights(tw, GOLDENS "quantized.safetensors");
    const tw_weight *rows = tw_weights_find(file, "rows");
    twb_cpu cpu = twb_cpu_default();
    int t;
    CHECK(rows != NULL, "%s", tw_error(tw));
    for (t = 0; rows && t < 2; t++) {
        const twb_type type = t ? TWB_Q4_0 : TWB_Q8_0;
        const tw_weight *blocks = tw_weights_find(file, t ? "q4_0.blocks" : "q8_0.blocks"), *values = tw_weights_find(file, t ? "q4_0.values" : "q8_0.values");
        const ptrdiff_t n = (ptrdiff_t)rows->shape[0], k = (ptrdiff_t)rows->shape[1];
        float *x = (float *)check_malloc(rows->bytes), *y = (float *)check_malloc(rows->bytes);
        unsigned char *made = (unsigned char *)check_malloc(blocks->bytes);
        double theirs = 0, ours = 0;
        ptrdiff_t i;
        CHECK(blocks->bytes == (size_t)n * twb_quant_row_bytes(type, k) && values->bytes == rows->bytes, "the golden has other sizes");
        memcpy(x, rows->data, rows->bytes);
        twb_dequantize(type, n, k, blocks->data, y, k);
        CHECK(memcmp(y, values->data, values->bytes) == 0, "%s: blocks are read as other numbers than gguf's", tw_dtype_name(types[t]));
        for (i = 0; i < n * k; i++) theirs += ((double)y[i] - (double)x[i]) * ((double)y[i] - (double)x[i]);
        CHECK(twb_quantize(&cpu, type, n, k, x, k, made), "refused");
        if (!t) CHECK(memcmp(made, blocks->data, blocks->bytes) == 0, "q8_0: other bytes than gguf's");
        twb_dequantize(type, n, k, made, y, k);
        for (i = 0; i < n * k; i++) ours += ((double)y[i] - (double)x[i]) * ((double)y[i] - (double)x[i]);
        CHECK(ours <= theirs * (t ? 0.95 : 1), "%s: squared error %g, gguf's %g", tw_dtype_name(types[t]), ours, theirs);
        free(x); free(y); free(made);
    }
    tw_close_weights(file);
    tw_destroy(tw);
}

int main(void) {
    size_t c;
    int t;
    for (t = 0; t < 2; t++) {
        for (c = 0; c < sizeof configs / sizeof *configs; c++) check_model(configs[c], t, "build/quantized");
        check_generation(t);
    }
    check_plan();
    check_reopening("build/quantized");
    check_blocks();
    return check_done();
}
