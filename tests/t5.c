/* T5 and mT5 against transformers: every head and option of their configs, outputs and gradients, in every form a
   checkpoint can have; the same bits on every kernel set and for any number of threads; the table of distances; a cache that
   changes nothing; and configs and inputs that cannot be used. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "family.h"
#include "counted.h"

static const char *const t5_cases[] = {
    "all_copies_in_file", "base_model", "buckets_4_3", "buckets_50_64", "buckets_9_20", "decoder_input_ids", "decoder_input_ids_and_labels", "default",
    "encoder_model", "ff_gated_gelu", "ff_gated_relu", "ff_gated_silu", "ff_gelu", "ff_gelu_new", "ff_silu", "layer_norm_epsilon", "left_padding_and_holes", "long",
    "more_decoder_layers", "more_encoder_layers", "one_head", "one_token", "only_head_in_file", "own_head_scaled", "own_head_unscaled", "prefixed_names",
    "question_answering", "right_padding", "sequence_multi_label", "sequence_regression", "sequence_single_label", "sharded", "start_and_pad", "tied_says_false",
    "tied_says_nothing", "tied_unscaled", "token_classification", "weights_bf16", "weights_f16"
};
static const char *const mt5_cases[] = {
    "base_model", "default", "encoder_model", "own_head", "question_answering", "relu", "sequence_single_label", "token_classification"
};

/* Every distance's bucket, for tables of many sizes. */
static void test_buckets(void) {
    tw_context *tw = tw_create(NULL);
    tw_json *tables = tw_json_load(tw, GOLDENS "t5/buckets.json");
    int64_t i, d, wrong = 0;
    CHECK(tw_json_count(tables) > 10, "%s", tw_error(tw));
    for (i = 0; i < tw_json_count(tables); i++) {
        const tw_json *t = tw_json_at(tables, i), *want = tw_json_get(t, "bucket");
        bool both = tw_json_bool(tw_json_get(t, "both_ways"), false);
        int64_t buckets = tw_json_int(tw_json_get(t, "buckets"), 0), furthest = tw_json_int(tw_json_get(t, "max_distance"), 0), first = tw_json_int(tw_json_get(t, "first"), 0);
        for (d = 0; d < tw_json_count(want); d++) {
            int64_t got = tw_t5_bucket(first + d, both, buckets, furthest), expected = tw_json_int(tw_json_at(want, d), -1);
            if (got != expected && wrong++ < 10) CHECK(false, "distance %d of %d/%d (%s): bucket %d instead of %d", (int)(first + d), (int)buckets, (int)furthest,
                                                       both ? "both ways" : "back", (int)got, (int)expected);
        }
    }
    CHECK(wrong == 0, "%d distances in other buckets", (int)wrong);
    tw_json_free(tables);
    tw_destroy(tw);
}

#define TINY "\"vocab_size\":31,\"d_model\":10,\"d_kv\":6,\"d_ff\":9,\"num_layers\":2,\"num_heads\":3,\"decoder_start_token_id\":0"
enum { ROWS = 2, SOURCE = 9, TARGET = 7, VOCAB = 31 };

static void numbers(int32_t *ids, int count, int step) {
    int i;
    for (i = 0; i < count; i++) ids[i] = (i * step + 5) % VOCAB;
}

/* A decoder with a cache, a few tokens at a time and with its rows exchanged, gives the bits of one pass over all; the
   encoder is read once, and may be one text for all rows.  A cache of 16 bits gives those of a pass that goes through one, which
   are near the others. */
static void test_cache(bool shared, tw_dtype dtype) {
    tw_context *tw = tw_create(NULL);
    tw_model *m = tw_from_config(tw, "{\"model_type\":\"t5\",\"feed_forward_proj\":\"gated-gelu\"," TINY "}");
    int32_t source[ROWS * SOURCE], target[ROWS * TARGET], turned[ROWS * TARGET], masks[ROWS * SOURCE];
    static const int pieces[] = { 1, 3, 1, 2 };
    static const int32_t swap[ROWS] = { 1, 0 };
    float want[ROWS * TARGET * VOCAB], exact[ROWS * TARGET * VOCAB], worst = 0, top = 0;
    tw_batch in;
    tw_outputs out;
    tw_pass pass;
    tw_cache *cache;
    int i, b, at, piece, exchanged = 0;
    numbers(source, ROWS * SOURCE, 7);
    numbers(target, ROWS * TARGET, 11);
    if (shared) memcpy(source + SOURCE, source, SOURCE * sizeof *source);
    for (i = 0; i < ROWS * SOURCE; i++) masks[i] = i % SOURCE < SOURCE - 3 || (!shared && i < SOURCE);
    tw_no_grad(tw, true);
    memset(&in, 0, sizeof in);
    tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, SOURCE), source));
    tw_batch_set(&in, "attention_mask", tw_ids(tw, tw_shape2(ROWS, SOURCE), masks));
    tw_batch_set(&in, "decoder_input_ids", tw_ids(tw, tw_shape2(ROWS, TARGET), target));
    CHECK(tw_model_forward(m, &in, NULL, &out), "%s", tw_error(tw));
    tw_read(tw_batch_get(&out, "logits"), want, ROWS * TARGET * VOCAB);
    memset(&pass, 0, sizeof pass);
    if (dtype != TW_F32) {
        memcpy(exact, want, sizeof exact);
        pass.cache = cache = tw_cache_create(tw, dtype, 2, ROWS, 3, 6, TARGET);
        OK(tw_cache_add_encoder(cache, ROWS, SOURCE));
        CHECK(tw_model_forward(m, &in, &pass, &out), "%s", tw_error(tw));
        tw_read(tw_batch_get(&out, "logits"), want, ROWS * TARGET * VOCAB);
        for (i = 0; i < ROWS * TARGET * VOCAB; i++) { worst = fmaxf(worst, fabsf(want[i] - exact[i])); top = fmaxf(top, fabsf(exact[i])); }
        CHECK(worst > 0 && worst < (dtype == TW_F16 ? 4.0f / 2048 : 4.0f / 256) * top, "a cache of type %d moves the logits by %g of %g", (int)dtype, (double)worst, (double)top);
        tw_cache_free(cache);
    }
    cache = tw_cache_create(tw, dtype, 2, ROWS, 3, 6, TARGET);
    OK(tw_cache_add_encoder(cache, shared ? 1 : ROWS, SOURCE));
    pass.cache = cache;
    if (shared) {                                          /* one row reads the text first, then there are two */
        tw_cache_free(cache);
        pass.cache = cache = tw_cache_create(tw, dtype, 2, 1, 3, 6, TARGET);
        OK(tw_cache_add_encoder(cache, 1, SOURCE));
    }
    for (at = 0, piece = 0; at < TARGET; at += pieces[piece++]) {
        int n = pieces[piece], rows = shared ? 1 : ROWS;
        for (b = 0; b < rows; b++) for (i = 0; i < n; i++) turned[b * n + i] = target[(exchanged ? 1 - b : b) * TARGET + at + i];
        tw_end_step(tw);
        memset(&in, 0, sizeof in);
        if (at == 0) tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(rows, SOURCE), source));
        if (exchanged) for (i = 0; i < SOURCE; i++) { int32_t t = masks[i]; masks[i] = masks[SOURCE + i]; masks[SOURCE + i] = t; }
        tw_batch_set(&in, "attention_mask", tw_ids(tw, tw_shape2(rows, SOURCE), masks));
        if (exchanged) for (i = 0; i < SOURCE; i++) { int32_t t = masks[i]; masks[i] = masks[SOURCE + i]; masks[SOURCE + i] = t; }
        tw_batch_set(&in, "decoder_input_ids", tw_ids(tw, tw_shape2(rows, n), turned));
        CHECK(tw_model_forward(m, &in, &pass, &out), "%s", tw_error(tw));
        for (b = 0; b < rows; b++)
            CHECK(memcmp(tw_data(tw_batch_get(&out, "logits")) + b * n * VOCAB, want + ((exchanged ? 1 - b : b) * TARGET + at) * VOCAB, (size_t)(n * VOCAB) * sizeof(float)) == 0,
                  "tokens %d to %d, row %d: other bits with a cache", at, at + n, b);
        if (!shared) { OK(tw_cache_reorder(cache, swap)); exchanged = !exchanged; }
    }
    OK(tw_cache_length(cache) == TARGET && !tw_failed(tw));
    tw_end_step(tw);
    memset(&in, 0, sizeof in);                             /* no room left, and it says so */
    tw_batch_set(&in, "decoder_input_ids", tw_ids(tw, tw_shape2(shared ? 1 : ROWS, 1), target));
    OK(!tw_model_forward(m, &in, &pass, &out) && tw_error_code(tw) == TW_E_RANGE);
    tw_destroy(tw);
}

/* What the encoder gave, handed in again, is as good as the text. */
static void test_encoder_outputs(void) {
    tw_context *tw = tw_create(NULL);
    tw_model *m = tw_from_config(tw, "{\"model_type\":\"mt5\"," TINY "}");
    int32_t source[ROWS * SOURCE], target[ROWS * TARGET];
    float want[ROWS * TARGET * VOCAB];
    tw_batch in, again;
    tw_outputs out;
    tw_pass pass;
    numbers(source, ROWS * SOURCE, 7);
    numbers(target, ROWS * TARGET, 11);
    tw_no_grad(tw, true);
    memset(&in, 0, sizeof in);
    memset(&again, 0, sizeof again);
    memset(&pass, 0, sizeof pass);
    pass.hidden_states = true;
    tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, SOURCE), source));
    tw_batch_set(&in, "decoder_input_ids", tw_ids(tw, tw_shape2(ROWS, TARGET), target));
    CHECK(tw_model_forward(m, &in, &pass, &out), "%s", tw_error(tw));
    tw_read(tw_batch_get(&out, "logits"), want, ROWS * TARGET * VOCAB);
    tw_batch_set(&again, "encoder_outputs", tw_batch_get(&out, "encoder_last_hidden_state"));
    tw_batch_set(&again, "decoder_input_ids", tw_batch_get(&in, "decoder_input_ids"));
    CHECK(tw_model_forward(m, &again, NULL, &out), "%s", tw_error(tw));
    OK(memcmp(tw_data(tw_batch_get(&out, "logits")), want, sizeof want) == 0);
    tw_destroy(tw);
}

/* The standard deviations of new weights, from initializer_factor and the sizes. */
static void test_new_weights(void) {
    static const struct { const char *name; double deviation; } wanted[] = {
        { "shared.weight", 2 }, { "lm_head.weight", 2 }, { "encoder.block.0.layer.0.SelfAttention.q.weight", 2 / 28.284271 },
        { "decoder.block.1.layer.1.EncDecAttention.k.weight", 0.2 }, { "decoder.block.0.layer.0.SelfAttention.v.weight", 0.2 },
        { "encoder.block.1.layer.0.SelfAttention.o.weight", 2 / 6.928203 }, { "encoder.block.0.layer.1.DenseReluDense.wi.weight", 0.2 },
        { "decoder.block.0.layer.2.DenseReluDense.wo.weight", 2 / 8.660254 }, { "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 0.2 }
    };
    tw_context *tw = tw_create(NULL);
    tw_model *m = tw_from_config(tw, "{\"model_type\":\"t5\",\"vocab_size\":90,\"d_model\":100,\"d_kv\":8,\"d_ff\":75,\"num_layers\":2,\"num_heads\":6,"
                                     "\"initializer_factor\":2,\"tie_word_embeddings\":false}");
    size_t i;
    CHECK(m, "%s", tw_error(tw));
    for (i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        tw_tensor *t = tw_parameter_named(m, wanted[i].name);
        double sum = 0, is;
        int64_t k;
        CHECK(t, "%s is missing", wanted[i].name);
        for (k = 0; k < tw_count(t); k++) sum += (double)tw_data(t)[k] * (double)tw_data(t)[k];
        is = sqrt(sum / (double)(tw_count(t) ? tw_count(t) : 1));
        CHECK(fabs(is / wanted[i].deviation - 1) < 4 / sqrt((double)tw_count(t)), "%s: deviation %g instead of %g", wanted[i].name, is, wanted[i].deviation);
    }
    OK(tw_data(tw_parameter_named(m, "decoder.final_layer_norm.weight"))[7] == 2);
    tw_destroy(tw);
}

/* Learns to copy, saves, opens again, and answers the same; what the plan said is what it took. */
static void test_train_and_reload(const char *config, const char *folder) {
    tw_context *tw = tw_create(NULL);
    tw_model *m = tw_from_config(tw, config), *again;
    tw_generate_desc how;
    tw_batch in;
    int32_t source[4 * 5], labels[4 * 6], first[8], second[8];
    float loss = 0, begin = 0;
    int step, b, i;
    int64_t n;
    tw_set_optimizer(m, "adafactor", "{\"lr\":0.03}");
    tw_set_dropout(m, 0);
    for (step = 0; step < 200; step++) {
        for (b = 0; b < 4; b++) {
            for (i = 0; i < 5; i++) labels[b * 6 + i] = source[b * 5 + i] = 2 + (b * 7 + i * 3 + step % 9) % (VOCAB - 2);
            labels[b * 6 + 5] = 1;
        }
        tw_end_step(tw);
        memset(&in, 0, sizeof in);
        tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(4, 5), source));
        tw_batch_set(&in, "labels", tw_ids(tw, tw_shape2(4, 6), labels));
        loss = tw_forward_backward(m, &in, NULL);
        tw_clip_grad_and_step(m, 1, 2, NULL);
        if (step == 0) begin = loss;
    }
    CHECK(loss < 0.2f * begin, "%s: the loss went from %g to %g", folder, (double)begin, (double)loss);
    memset(&how, 0, sizeof how);
    how.max_new_tokens = 8;
    n = tw_generate_ids(m, source, 5, &how, first, 8, NULL);
    CHECK(tw_save_pretrained(m, folder), "%s", tw_error(tw));
    again = tw_from_pretrained(tw, folder);
    CHECK(again && tw_parameter_count(again) == tw_parameter_count(m), "%s: %s", folder, tw_error(tw));
    OK(n > 0 && tw_generate_ids(again, source, 5, &how, second, 8, NULL) == n && memcmp(first, second, (size_t)n * sizeof *first) == 0);
    tw_destroy(tw);
}

static void test_plan(void) {
    static const char config[] = "{\"model_type\":\"t5\",\"tie_word_embeddings\":false,\"feed_forward_proj\":\"gated-gelu\"," TINY "}";
    tw_context *tw = tw_create(NULL);
    tw_json *parsed = tw_json_parse(tw, config, SIZE_MAX);
    tw_plan_desc how;
    tw_plan plan;
    tw_model *m = tw_from_config(tw, config);
    tw_batch in;
    memset(&how, 0, sizeof how);
    how.batch = ROWS;
    how.sequence = SOURCE;
    how.training = true;
    plan = tw_plan_config(tw, parsed, &how);
    CHECK(plan.parameters == tw_num_parameters(m, false), "%s", tw_error(tw));
    tw_set_optimizer(m, "adamw", NULL);
    memset(&in, 0, sizeof in);
    tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, SOURCE), NULL));
    tw_batch_set(&in, "labels", tw_ids(tw, tw_shape2(ROWS, SOURCE), NULL));
    tw_forward_backward(m, &in, NULL);
    tw_clip_grad_and_step(m, 1, 2, NULL);
    CHECK(plan.activations_bytes >= tw_memory_use(tw).step_bytes && plan.activations_bytes < tw_memory_use(tw).step_bytes + 65536, "planned %ld bytes a step, took %ld",
          (long)plan.activations_bytes, (long)tw_memory_use(tw).step_bytes);
    how.training = false;
    how.new_tokens = 20;
    plan = tw_plan_config(tw, parsed, &how);
    CHECK(plan.cache_bytes >= (size_t)(2 * 2 * ROWS * 3 * 6 * (SOURCE + 20)) * sizeof(float) && !tw_failed(tw), "%s", tw_error(tw));
    tw_json_free(parsed);
    tw_destroy(tw);
}

/* Refused with one sentence that names what is wrong. */
static void test_bad_configs(void) {
    static const struct { const char *settings, *says; } bad[] = {
        { "\"num_layers\":0", "num_layers" }, { "\"num_decoder_layers\":0", "num_decoder_layers" }, { "\"num_heads\":0", "num_heads" }, { "\"d_kv\":-1", "d_kv" },
        { "\"d_model\":\"x\"", "d_model" }, { "\"feed_forward_proj\":\"gated\"", "feed_forward_proj" }, { "\"feed_forward_proj\":\"relu-gated\"", "feed_forward_proj" },
        { "\"feed_forward_proj\":\"gated-gelu-x\"", "feed_forward_proj" }, { "\"feed_forward_proj\":7", "feed_forward_proj" }, { "\"feed_forward_proj\":\"\"", "feed_forward_proj" },
        { "\"relative_attention_num_buckets\":3", "relative_attention_num_buckets" }, { "\"relative_attention_max_distance\":16", "relative_attention_max_distance" },
        { "\"layer_norm_epsilon\":-1e-6", "layer_norm_epsilon" }, { "\"dropout_rate\":1", "dropout_rate" }, { "\"decoder_start_token_id\":32128", "decoder_start_token_id" },
        { "\"pad_token_id\":-1", "pad_token_id" }, { "\"tie_word_embeddings\":3", "tie_word_embeddings" }, { "\"vocab_size\":0", "vocab_size" }
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        tw_context *tw = tw_create(NULL);
        char config[256];
        snprintf(config, sizeof config, "{\"model_type\":\"t5\",%s}", bad[i].settings);
        CHECK(!tw_from_config(tw, config) && tw_error_code(tw) == TW_E_CONFIG && strstr(tw_error(tw), bad[i].says), "%s: \"%s\"", bad[i].settings, tw_error(tw));
        tw_destroy(tw);
    }
}

static void refused(const char *config, const char *source, const char *other, int other_rows, const char *says) {
    tw_context *tw = tw_create(NULL);
    tw_model *m = tw_from_config(tw, config);
    int32_t ids[ROWS * SOURCE];
    tw_batch in;
    tw_outputs out;
    numbers(ids, ROWS * SOURCE, 3);
    memset(&in, 0, sizeof in);
    if (source) tw_batch_set(&in, source, tw_ids(tw, tw_shape2(ROWS, SOURCE), ids));
    if (other) tw_batch_set(&in, other, tw_ids(tw, tw_shape2(other_rows, 4), ids));
    CHECK(m && !tw_model_forward(m, &in, NULL, &out) && strstr(tw_error(tw), says), "%s, %s: \"%s\"", source ? source : "nothing", other ? other : "nothing", tw_error(tw));
    tw_destroy(tw);
}

static void test_bad_inputs(void) {
    static const char lm[] = "{\"model_type\":\"t5\"," TINY "}";
    static const char no_start[] = "{\"model_type\":\"t5\",\"vocab_size\":31,\"d_model\":10,\"d_kv\":6,\"d_ff\":9,\"num_layers\":1,\"num_heads\":3}";
    tw_context *tw;
    tw_generate_desc how;
    int32_t ids[4] = { 3, 4, 5, 1 }, out[20];
    refused(lm, NULL, NULL, 0, "input_ids");
    refused(lm, "input_ids", NULL, 0, "decoder_input_ids");
    refused(lm, NULL, "labels", ROWS, "input_ids");
    refused(lm, "input_ids", "labels", 1, "1 rows for the decoder, 2 for the encoder");
    refused(lm, "input_ids", "attention_mask", 1, "attention_mask");
    refused(lm, "input_ids", "encoder_outputs", 1, "encoder_outputs");
    refused(no_start, "input_ids", "labels", ROWS, "decoder_start_token_id");
    refused("{\"architectures\":[\"T5ForSequenceClassification\"],\"model_type\":\"t5\"," TINY "}", "input_ids", NULL, 0, "end tokens");
    tw = tw_create(NULL);
    memset(&how, 0, sizeof how);
    OK(tw_generate_ids(tw_from_config(tw, no_start), ids, 4, &how, out, 20, NULL) < 0 && strstr(tw_error(tw), "decoder_start_token_id"));
    tw_clear_error(tw);
    OK(tw_generate_ids(tw_from_config_with(tw, lm, "encoder"), ids, 4, &how, out, 20, NULL) < 0 && tw_error_code(tw) == TW_E_UNSUPPORTED);
    tw_clear_error(tw);
    ids[1] = VOCAB;
    OK(tw_generate_ids(tw_from_config(tw, lm), ids, 4, &how, out, 20, NULL) < 0 && tw_error_code(tw) == TW_E_RANGE);
    tw_destroy(tw);
}

/* There is no room for the encoder's keys: the cache has none of them, and the next pass says so. */
static void test_encoder_without_room(void) {
    long at;
    for (at = 1; at < 20; at++) {
        counted count = { 0, 0, 0, 0, 0 };
        tw_context *tw = counted_context(&count);
        tw_cache *cache = tw_cache_create(tw, TW_F32, 2, 2, 3, 6, 8);
        tw_model *m = tw_from_config(tw, "{\"model_type\":\"t5\"," TINY "}");
        int32_t ids[2 * 4] = { 5, 6, 7, 1, 8, 9, 10, 1 };
        tw_batch in;
        tw_outputs out;
        tw_pass pass;
        bool made;
        count.fail_at = count.calls + at;
        made = tw_cache_add_encoder(cache, 2, 4);
        count.fail_at = 0;
        CHECK(made || tw_error_code(tw) == TW_E_MEMORY, "allocation %ld: %s", at, tw_error(tw));
        tw_clear_error(tw);
        memset(&in, 0, sizeof in);
        memset(&pass, 0, sizeof pass);
        pass.cache = cache;
        tw_no_grad(tw, true);
        tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(2, 4), ids));
        tw_batch_set(&in, "decoder_input_ids", tw_ids(tw, tw_shape2(2, 4), ids));
        CHECK(tw_model_forward(m, &in, &pass, &out) == made, "allocation %ld: %s", at, tw_error(tw));
        tw_destroy(tw);
        CHECK(count.live == 0, "%ld blocks are left", count.live);
        if (made) { CHECK(at > 4, "only %ld allocations", at); return; }
    }
}

int main(void) {
    check_family("t5", t5_cases, sizeof t5_cases / sizeof *t5_cases);
    check_family("mt5", mt5_cases, sizeof mt5_cases / sizeof *mt5_cases);
    test_buckets();
    test_cache(false, TW_F32);
    test_cache(true, TW_F32);
    test_cache(false, TW_F16);
    test_cache(true, TW_F16);
    test_cache(false, TW_BF16);
    test_encoder_outputs();
    test_encoder_without_room();
    test_new_weights();
    test_train_and_reload("{\"model_type\":\"t5\"," TINY "}", "build/t5-tied.tmp");
    test_train_and_reload("{\"model_type\":\"t5\",\"tie_word_embeddings\":false,\"feed_forward_proj\":\"gated-silu\"," TINY "}", "build/t5-own-head.tmp");
    test_plan();
    test_bad_configs();
    test_bad_inputs();
    return check_done();
}
