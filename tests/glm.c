/* Both families that are called GLM: FlagAI's, which fills blanks, against FlagAI's own code, and `glm` and `glm4` against
   transformers: every head and option, outputs and gradients; and the same bits on every kernel set and for any number of
   threads (tools/goldens_glm.py). */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "family.h"
#include "counted.h"

static const char *const flagai[] = {
    "separators", "one_separator", "causal", "attention_scale", "one_position", "hidden", "long", "four_dimensional_mask", "memory", "return_memory",
    "newest_memory", "short_memory", "relative", "relative_memory", "prompt_lstm", "prompt_mlp", "prompt_none", "tuned_prefix", "seq2seq", "seq2seq_fractions", "seq2seq_no_targets",
    "classify_cls", "classify_start", "classify_pad", "classify_yes_or_no", "classify_choices", "cloze", "cloze_length_penalty", "cloze_yes_or_no",
    "cloze_one_token", "cloze_one_token_softmax", "cloze_fast"
};
static const char *const transformers[] = {
    "glm_default", "glm_sequence", "glm_token", "glm_base", "glm4_default", "glm4_sequence", "glm4_token", "glm4_base", "no_bias", "whole_heads_turn",
    "few_channels_turn", "rope_theta", "tied_head", "rms_norm_eps", "left_padding", "right_padding", "position_ids", "no_prefix", "old_config"
};

#define GLM "{\"model_type\":\"glm\",\"architectures\":[\"%s\"],\"num_layers\":%d,\"vocab_size\":61,\"hidden_size\":24,\"num_attention_heads\":3," \
            "\"max_sequence_length\":32,\"class_num\":3}"
#define HF "{\"model_type\":\"%s\",\"num_hidden_layers\":%d,\"vocab_size\":61,\"hidden_size\":24,\"num_attention_heads\":6,\"num_key_value_heads\":2," \
           "\"head_dim\":8,\"intermediate_size\":20,\"max_position_embeddings\":64}"
enum { ROWS = 2, TOKENS = 16 };

/* What is planned is what is taken, and no layer more costs memory where no gradient is wanted. */
static void check_plan(const char *config, const char *name, bool measured) {
    size_t peak[2];
    int layers;
    for (layers = 2; layers <= 6; layers += 4) {
        char text[512];
        tw_context *tw = tw_create(NULL);
        tw_plan_desc how;
        tw_plan plan, training;
        tw_json *json;
        memset(&how, 0, sizeof how);
        how.batch = ROWS;
        how.sequence = TOKENS;
        snprintf(text, sizeof text, config, name, layers);
        json = tw_json_parse(tw, text, strlen(text));
        plan = tw_plan_config(tw, json, &how);
        CHECK(plan.total_bytes > 0, "plan of %s: %s", name, tw_error(tw));
        peak[layers > 2] = plan.activations_bytes;
        how.training = true;
        training = tw_plan_config(tw, json, &how);
        CHECK(training.total_bytes > plan.total_bytes, "plan of training %s: %s", name, tw_error(tw));
        how.training = false;
        how.new_tokens = 10;
        if (measured) {
            tw_model *m = tw_from_config(tw, text);
            tw_batch in;
            size_t took;
            memset(&in, 0, sizeof in);
            tw_set_optimizer(m, "adamw", NULL);
            tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, TOKENS), NULL));
            tw_batch_set(&in, "labels", in.tensor[0]);
            tw_forward_backward(m, &in, NULL);
            tw_clip_grad_and_step(m, 1, 2, NULL);
            took = tw_memory_use(tw).step_bytes;
            CHECK(training.activations_bytes >= took && training.activations_bytes < took + 65536, "%s: planned %ld bytes a step, took %ld: %s", name,
                  (long)training.activations_bytes, (long)took, tw_error(tw));
            CHECK(training.parameters == tw_num_parameters(m, false), "%s", name);
            /* keys and values of 2 grouped heads of 8, or of 3 heads of 8, for 26 tokens a row */
            plan = tw_plan_config(tw, json, &how);
            CHECK(plan.cache_bytes >= (size_t)(2 * layers * ROWS * 26 * 8 * (config[15] == '%' ? 2 : 3)) * sizeof(float), "%s: cache of %ld bytes", name, (long)plan.cache_bytes);
        }
        tw_json_free(json);
        tw_destroy(tw);
    }
    CHECK(peak[0] == peak[1], "%s: %ld bytes with 2 layers, %ld with 6", name, (long)peak[0], (long)peak[1]);
}

/* Dropout: none is the evaluation's numbers; with some, blocks that are recomputed draw the same. */
static void check_dropout(const char *config, const char *name) {
    float loss[4];
    int run;
    for (run = 0; run < 4; run++) {                         /* evaluation, no dropout, dropout, dropout and recomputing */
        char text[512];
        int32_t ids[ROWS * TOKENS], i;
        tw_context *tw = tw_create(NULL);
        tw_model *m;
        tw_batch in;
        tw_outputs out;
        tw_pass pass;
        snprintf(text, sizeof text, config, name, 3);
        m = tw_from_config(tw, text);
        for (i = 0; i < ROWS * TOKENS; i++) ids[i] = i * 7 % 61;
        OK(tw_set_dropout(m, run < 2 ? 0.0f : 0.3f));
        tw_gradient_checkpointing(m, run == 3);
        tw_training(tw, run > 0);
        memset(&pass, 0, sizeof pass);
        memset(&in, 0, sizeof in);
        tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, TOKENS), ids));
        tw_batch_set(&in, "labels", tw_ids(tw, tw_shape2(ROWS, TOKENS), ids));
        CHECK(tw_model_forward(m, &in, &pass, &out) && tw_backward(tw_batch_get(&out, "loss")), "%s: %s", name, tw_error(tw));
        loss[run] = tw_item(tw_batch_get(&out, "loss"));
        tw_destroy(tw);
    }
    CHECK(memcmp(&loss[0], &loss[1], sizeof *loss) == 0 && memcmp(&loss[2], &loss[3], sizeof *loss) == 0, "%s: losses %g, %g, %g, %g", name, (double)loss[0],
          (double)loss[1], (double)loss[2], (double)loss[3]);
    CHECK(loss[1] < loss[2] || loss[1] > loss[2], "%s: dropout does nothing", name);
}

/* Refused with one sentence that names what is wrong. */
static void check_refusals(void) {
    static const struct { const char *config, *says; } bad[] = {
        { "{\"model_type\":\"glm\",\"num_layers\":0}", "num_layers" }, { "{\"model_type\":\"glm\",\"num_layers\":2,\"hidden_size\":10,\"num_attention_heads\":3}", "hidden_size" },
        { "{\"model_type\":\"glm\",\"num_layers\":2,\"relative_encoding\":7}", "relative_encoding" },
        { "{\"model_type\":\"glm\",\"num_layers\":2,\"spell_length\":2,\"spell_func\":\"cnn\"}", "spell_func" },
        { "{\"model_type\":\"glm\",\"num_layers\":2,\"pool_token\":\"mean\"}", "pool_token" }, { "{\"model_type\":\"glm\",\"num_layers\":2,\"max_memory_length\":-1}", "max_memory_length" },
        { "{\"model_type\":\"glm\",\"architectures\":[\"GLMForChess\"]}", "GLMForChess" }, { "{\"model_type\":\"glm\",\"num_key_value_heads\":3}", "num_key_value_heads" },
        { "{\"model_type\":\"glm4\",\"rope_parameters\":{\"rope_type\":\"yarn\"}}", "rope_type" }, { "{\"model_type\":\"glm\",\"hidden_act\":\"none\"}", "hidden_act" },
        { "{\"model_type\":\"glm\",\"rope_parameters\":{\"rope_theta\":\"x\"}}", "rope_theta" }, { "{\"model_type\":\"glm\",\"partial_rotary_factor\":2}", "partial_rotary_factor" }
    };
    static const struct { const char *name, *says; int rank; int64_t shape[4]; int32_t first; } inputs[] = {
        { "attention_mask", "separator", 1, { 2, 0, 0, 0 }, -1 }, { "attention_mask", "attention_mask", 2, { 2, 3, 0, 0 }, 0 }, { "attention_mask", "attention_mask", 4, { 2, 2, 5, 5 }, 1 },
        { "position_ids", "position_ids", 2, { 2, 5, 0, 0 }, 0 }, { "position_ids", "position_embeddings", 3, { 2, 2, 5, 0 }, 99 }, { "prompt_pos", "prompt_pos", 2, { 2, 3, 0, 0 }, 0 },
        { "mems.0", "mems", 3, { 2, 4, 24, 0 }, 0 }, { "target_ids", "target_ids", 2, { 2, 4, 0, 0 }, 0 }, { "loss_mask", "loss_mask", 2, { 2, 4, 0, 0 }, 0 }
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        tw_context *tw = tw_create(NULL);
        CHECK(!tw_from_config(tw, bad[i].config) && strstr(tw_error(tw), bad[i].says), "%s: \"%s\"", bad[i].config, tw_error(tw));
        tw_destroy(tw);
    }
    for (i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        tw_context *tw = tw_create(NULL);
        char text[512];
        tw_model *m;
        tw_batch in;
        tw_outputs out;
        tw_shape shape;
        tw_tensor *t;
        memset(&shape, 0, sizeof shape);
        shape.rank = inputs[i].rank;
        memcpy(shape.dim, inputs[i].shape, sizeof inputs[i].shape);
        snprintf(text, sizeof text, GLM, "GLMForSeq2Seq", 2);
        m = tw_from_config(tw, text);
        memset(&in, 0, sizeof in);
        tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(2, 5), NULL));
        if (strcmp(inputs[i].name, "loss_mask") == 0) tw_batch_set(&in, "target_ids", tw_ids(tw, tw_shape2(2, 5), NULL));
        t = strncmp(inputs[i].name, "mems", 4) == 0 ? tw_tensor_from(tw, shape, NULL) : tw_ids(tw, shape, NULL);
        if (tw_data_i32(t)) tw_data_i32(t)[0] = inputs[i].first;
        tw_batch_set(&in, inputs[i].name, t);
        CHECK(m && !tw_model_forward(m, &in, NULL, &out) && strstr(tw_error(tw), inputs[i].says), "%s: \"%s\"", inputs[i].name, tw_error(tw));
        tw_destroy(tw);
    }
}

/* A model of a config, its inputs of two texts, and the largest difference between two lists of numbers. */
static tw_model *glm_of(tw_context *tw, const char *name) {
    char text[512];
    snprintf(text, sizeof text, GLM, name, 2);
    return tw_from_config(tw, text);
}
static double furthest(const float *a, const float *b, int64_t n) {
    double most = 0;
    int64_t i;
    for (i = 0; a && b && i < n; i++) if (!(fabs((double)a[i] - (double)b[i]) <= most)) most = fabs((double)a[i] - (double)b[i]);
    return a && b ? most : HUGE_VAL;
}

/* A classifier sees its whole text: the same by separators, by a mask of padding, and, without padding, by nothing. */
static void check_classifier_masks(void) {
    static const int32_t lengths[ROWS] = { 9, TOKENS }, whole[ROWS] = { TOKENS, TOKENS };
    int32_t ids[ROWS * TOKENS], keep[ROWS * TOKENS], i;
    tw_context *tw = tw_create(NULL);
    tw_model *m = glm_of(tw, "GLMForSequenceClassification");
    float logits[4][ROWS * 3];
    int run;
    for (i = 0; i < ROWS * TOKENS; i++) { ids[i] = 1 + i * 11 % 60; keep[i] = i % TOKENS < lengths[i / TOKENS]; }
    for (run = 0; run < 4; run++) {
        tw_batch in;
        tw_outputs out;
        memset(&in, 0, sizeof in);
        tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, TOKENS), ids));
        if (run < 2) tw_batch_set(&in, "attention_mask", run ? tw_ids(tw, tw_shape2(ROWS, TOKENS), keep) : tw_ids(tw, tw_shape1(ROWS), lengths));
        if (run == 2) tw_batch_set(&in, "attention_mask", tw_ids(tw, tw_shape1(ROWS), whole));
        CHECK(tw_model_forward(m, &in, NULL, &out), "%s", tw_error(tw));
        tw_read(tw_batch_get(&out, "logits"), logits[run], ROWS * 3);
    }
    OK(furthest(logits[0], logits[1], ROWS * 3) < 1e-6 && furthest(logits[2], logits[3], ROWS * 3) < 1e-6 && furthest(logits[0], logits[2], 3) > 1e-6);
    tw_destroy(tw);
}

/* Memories that are not detached carry the gradient back: the answer's loss has the gradients of one whole pass. */
static void check_memory_gradients(void) {
    enum { CONTEXT = 10, ANSWER = TOKENS - CONTEXT };
    int32_t ids[ROWS * TOKENS], labels[ROWS * TOKENS], part[2][ROWS * TOKENS], positions[2][ROWS * 2 * TOKENS], separator[2] = { CONTEXT, 0 }, i, b, flag[2] = { 1, 0 };
    float whole[64 * 24], apart[64 * 24];
    int detach;
    for (i = 0; i < ROWS * TOKENS; i++) {
        ids[i] = 1 + i * 11 % 60;
        labels[i] = i % TOKENS < CONTEXT ? -100 : ids[i];
    }
    for (b = 0; b < ROWS; b++) for (i = 0; i < TOKENS; i++) {
        int k = i >= CONTEXT, n = k ? ANSWER : CONTEXT, at = i - (k ? CONTEXT : 0);
        part[k][b * n + at] = ids[b * TOKENS + i];
        positions[k][(2 * b) * n + at] = k ? 4 : i;
        positions[k][(2 * b + 1) * n + at] = k ? at + 1 : 0;
    }
    for (detach = -1; detach < 2; detach++) {              /* -1: in one pass */
        tw_context *tw = tw_create(NULL);
        tw_model *m = glm_of(tw, "GLMModel");
        tw_batch in;
        tw_outputs out, kept;
        int32_t both[ROWS * 2 * TOKENS];
        const char *name = "transformer.layers.0.mlp.dense_4h_to_h.bias";
        memset(&in, 0, sizeof in);
        if (detach < 0) {
            for (b = 0; b < ROWS * 2; b++) for (i = 0; i < TOKENS; i++)
                both[b * TOKENS + i] = i < CONTEXT ? positions[0][b * CONTEXT + i] : positions[1][b * ANSWER + i - CONTEXT];
            tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, TOKENS), ids));
            tw_batch_set(&in, "position_ids", tw_ids(tw, tw_shape3(ROWS, 2, TOKENS), both));
            tw_batch_set(&in, "attention_mask", tw_ids(tw, tw_shape1(1), separator));
            tw_batch_set(&in, "labels", tw_ids(tw, tw_shape2(ROWS, TOKENS), labels));
        } else {
            tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, CONTEXT), part[0]));
            tw_batch_set(&in, "position_ids", tw_ids(tw, tw_shape3(ROWS, 2, CONTEXT), positions[0]));
            tw_batch_set(&in, "attention_mask", tw_ids(tw, tw_shape1(1), separator));
            tw_batch_set(&in, "return_memory", tw_ids(tw, tw_shape1(1), flag));
            tw_batch_set(&in, "detach_memory", tw_ids(tw, tw_shape1(1), detach ? flag : flag + 1));
            CHECK(tw_model_forward(m, &in, NULL, &kept), "%s", tw_error(tw));
            memset(&in, 0, sizeof in);
            for (i = 0; i < kept.count; i++) if (strncmp(kept.name[i], "mems.", 5) == 0) tw_batch_set(&in, kept.name[i], kept.tensor[i]);
            tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(ROWS, ANSWER), part[1]));
            tw_batch_set(&in, "position_ids", tw_ids(tw, tw_shape3(ROWS, 2, ANSWER), positions[1]));
            tw_batch_set(&in, "labels", tw_ids(tw, tw_shape2(ROWS, ANSWER), part[1]));
        }
        CHECK(tw_model_forward(m, &in, NULL, &out) && tw_backward(tw_batch_get(&out, "loss")), "%s", tw_error(tw));
        i = (int32_t)tw_read(tw_grad(tw_parameter_named(m, name)), detach < 0 ? whole : apart, 64 * 24);
        if (detach == 0) CHECK(i == 24 && furthest(whole, apart, 24) < 1e-6, "through memories: off by %g", furthest(whole, apart, 24));
        if (detach == 1) CHECK(i == 24 && furthest(whole, apart, 24) > 1e-5, "detached memories have a gradient");
        tw_destroy(tw);
    }
}

/* A prompt is framed for blanks, or for a text that goes on. */
static void check_prompts(void) {
    static const struct { const char *text; int count; int32_t ids[10]; } prompts[] = {
        { "a b [MASK] c", 6, { 2, 5, 6, 4, 7, 0 } }, { "a b [gMASK]", 4, { 2, 5, 6, 38 } }, { "a [sMASK] b", 5, { 2, 5, 39, 6, 0 } }, { "a b", 4, { 36, 5, 6, 3 } }, { "", 2, { 36, 3 } }
    };
    char path[512];
    tw_context *tw = tw_create(NULL);
    tw_model *m = tw_from_pretrained(tw, golden_path(path, "glm", "fill", ""));
    int32_t ids[10];
    size_t i;
    for (i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        int64_t n = tw_prompt_ids(m, prompts[i].text, strlen(prompts[i].text), ids, 10);
        CHECK(n == prompts[i].count && memcmp(ids, prompts[i].ids, (size_t)n * sizeof *ids) == 0, "\"%s\": %ld ids: %s", prompts[i].text, (long)n, tw_error(tw));
    }
    OK(tw_prompt_ids(m, "a b [MASK] c", 12, ids, 2) == 6 && !tw_failed(tw));
    tw_destroy(tw);
}

/* Whichever allocation fails, the error is said, nothing crashes, and nothing is left behind. */
static void check_out_of_memory(void) {
    static const char *const cases[] = { "glm/relative_memory", "glm/newest_memory", "glm/prompt_lstm", "glm/seq2seq_fractions", "glm/cloze_fast", "glm/classify_pad",
                                         "glm/cloze_one_token", "glm_hf/glm4_default", "glm/fill" };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool done = false;
        long at;
        for (at = 1; !done; at += 1 + at / 200) {
            char path[512];
            counted memory;
            tw_desc desc;
            tw_context *tw;
            tw_model *m;
            memset(&memory, 0, sizeof memory);
            memory.fail_at = at;
            desc = counted_desc(&memory);
            tw = tw_create(&desc);
            m = tw_from_pretrained(tw, golden_path(path, ".", cases[i], ""));
            if (m && strcmp(cases[i], "glm/fill") == 0) done = tw_generate_text(m, "a [MASK] b [MASK]", NULL) != NULL;
            else if (m) {
                tw_weights *in = tw_open_weights(tw, golden_path(path, ".", cases[i], "in.safetensors"));
                tw_batch batch;
                tw_outputs out;
                memset(&batch, 0, sizeof batch);
                if (in) golden_batch(tw, in, &batch);
                done = in && tw_model_forward(m, &batch, NULL, &out) && (!tw_batch_get(&out, "loss") || tw_backward(tw_batch_get(&out, "loss")));
            }
            if (memory.calls < at && tw) CHECK(done, "%s without a failure: %s", cases[i], tw_error(tw));
            if (tw && memory.calls >= at) CHECK(done || tw_error_code(tw) == TW_E_MEMORY, "%s, allocation %ld fails: %s", cases[i], at, tw_error(tw));
            done = memory.calls < at;
            tw_destroy(tw);
            CHECK(memory.live == 0, "%s, allocation %ld fails: %ld are left behind", cases[i], at, memory.live);
        }
    }
}

int main(void) {
    static const char *const classes[] = { "GLMModel", "GLMForSeq2Seq", "GLMForSequenceClassification", "GLMForMultiTokenCloze", "GLMForSingleTokenCloze", "GLMForMultiTokenClozeFast" };
    size_t i;
    for (i = 0; i < sizeof classes / sizeof *classes; i++) check_plan(GLM, classes[i], i < 2);
    check_plan(HF, "glm", true);
    check_plan(HF, "glm4", true);
    check_dropout(GLM, "GLMForSeq2Seq");
    check_dropout(HF, "glm");
    check_refusals();
    check_prompts();
    check_classifier_masks();
    check_memory_gradients();
    check_out_of_memory();
    check_family("glm", flagai, sizeof flagai / sizeof *flagai);
    check_family("glm_hf", transformers, sizeof transformers / sizeof *transformers);
    return check_done();
}
