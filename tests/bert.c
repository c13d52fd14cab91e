/* BERT, RoBERTa and XLM-RoBERTa against transformers, and FlagAI's task models on BERT against FlagAI: every head and option of their configs, outputs and gradients, in every
   form a checkpoint can have; and the same bits on every kernel set and for any number of threads. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "family.h"

static const char *const bert[] = {
    "activation_gelu", "activation_gelu_fast", "activation_gelu_new", "activation_gelu_pytorch_tanh", "activation_quick_gelu", "activation_relu",
    "activation_silu", "activation_swish", "activation_tanh", "base_from_head", "base_model", "base_without_pooler", "cross_attention", "decoder",
    "default", "layer_norm_eps", "left_padding", "long", "mask_with_holes", "multiple_choice", "next_sentence", "no_pad_token", "old_names",
    "one_token", "one_token_type", "padding_in_sight", "position_ids", "pretraining", "question_answering", "right_padding", "sequence_multi_label",
    "sequence_regression", "sequence_regression_of_two", "sequence_single_label", "sharded", "tied_twice_and_unknown", "token_classification",
    "token_type_ids", "untied_head", "weights_bf16", "weights_f16"
};
static const char *const roberta[] = {
    "activation_relu", "base_from_head", "base_model", "base_without_pooler", "cross_attention", "decoder", "default", "layer_norm_eps",
    "left_padding", "long", "mask_with_holes", "multiple_choice", "old_names", "one_token", "one_token_type", "padding_in_sight", "position_ids",
    "question_answering", "right_padding", "sequence_multi_label", "sequence_regression", "sequence_regression_of_two", "sequence_single_label",
    "sharded", "tied_twice_and_unknown", "token_classification", "token_type_ids", "untied_head", "weights_bf16", "weights_f16", "xlm_masked",
    "xlm_sequence"
};
static const char *const flagai[] = {
    "classifier", "crf", "embedding", "epsilon", "hugging_face_names", "masklm", "pointer", "pointer_wide", "seq2seq", "seq2seq_hole", "tags"
};

/* The likeliest tags against all there are, with a row that has a hole and one that is empty. */
static void check_viterbi(tw_context *tw) {
    enum { B = 3, T = 5, C = 3 };
    static const int32_t mask[B * T] = { 1, 1, 1, 1, 1,  1, 0, 1, 1, 0,  0, 0, 0, 0, 0 };
    tw_tensor *e = tw_randn(tw, tw_shape3(B, T, C), 0, 2), *a = tw_randn(tw, tw_shape2(C, C), 0, 1), *m = tw_ids(tw, tw_shape2(B, T), mask);
    const int32_t *got = tw_data_i32(tw_crf_decode(e, a, m));
    int b, code, t;
    OK(got != NULL);
    for (b = 0; b < B && got; b++) {
        double best = -HUGE_VAL;
        int32_t tags[T], wanted[T];
        for (code = 0; code < 243; code++) {                    /* C^T */
            double score = 0;
            int32_t last = -1;
            int rest = code;
            for (t = 0; t < T; t++, rest /= C) {
                tags[t] = mask[b * T + t] ? rest % C : -100;
                if (tags[t] < 0) continue;
                score += (double)tw_data(e)[(b * T + t) * C + tags[t]] + (last < 0 ? 0 : (double)tw_data(a)[last * C + tags[t]]);
                last = tags[t];
            }
            if (score > best) { best = score; memcpy(wanted, tags, sizeof tags); }
        }
        CHECK(memcmp(wanted, got + b * T, sizeof wanted) == 0, "viterbi: row %d", b);
    }
    tw_end_step(tw);
}

/* What is written token by token from a cache is what the whole text says, computed anew for each token. */
static void check_writing(tw_context *tw, tw_model *model, bool unilm) {
    enum { PROMPT = 4, NEW = 6 };
    static const int32_t prompt[PROMPT] = { 7, 21, 5, 30 }, positions[PROMPT + NEW] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    int32_t text[PROMPT + NEW], types[PROMPT + NEW], written[NEW];
    tw_generate_desc how;
    int64_t i, v, n;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = NEW;
    how.eos_count = -1;
    n = tw_generate_ids(model, prompt, PROMPT, &how, written, NEW, NULL);
    CHECK(n == NEW, "generation: %d tokens, %s", (int)n, tw_error(tw));
    memcpy(text, prompt, sizeof prompt);
    for (i = 0; i < PROMPT + NEW; i++) types[i] = i >= PROMPT;
    tw_no_grad(tw, true);
    for (i = PROMPT; n == NEW && i < PROMPT + NEW; i++) {
        tw_batch in;
        tw_outputs out;
        const float *row;
        int64_t vocab, best = 0;
        memset(&in, 0, sizeof in);
        tw_batch_set(&in, "input_ids", tw_ids(tw, tw_shape2(1, i), text));
        tw_batch_set(&in, "position_ids", tw_ids(tw, tw_shape2(1, i), positions));     /* RoBERTa too */
        if (unilm) tw_batch_set(&in, "token_type_ids", tw_ids(tw, tw_shape2(1, i), types));
        if (!tw_model_forward(model, &in, NULL, &out)) break;
        vocab = tw_dim(tw_batch_get(&out, "logits"), -1);
        row = tw_data(tw_batch_get(&out, "logits")) + (i - 1) * vocab;
        for (v = 1; v < vocab; v++) if (row[v] > row[best]) best = v;
        text[i] = (int32_t)best;
        tw_end_step(tw);
    }
    tw_no_grad(tw, false);
    for (i = 1; unilm && i < NEW; i++) if (written[i - 1] == 0) written[i] = text[PROMPT + i] = 0;       /* FlagAI's padding, which nothing sees */
    CHECK(!tw_failed(tw) && memcmp(text + PROMPT, written, sizeof written) == 0, "%s: the cache changes the text: %d %d %d, not %d %d %d (%s)", tw_class_of(model), written[0],
          written[1], written[2], text[PROMPT], text[PROMPT + 1], text[PROMPT + 2], tw_error(tw));
    tw_clear_error(tw);
}

/* A checkpoint of masked words opened for another task: refused, or with a new head where that is asked for. */
static void check_new_head(tw_context *tw) {
    tw_load_desc how;
    tw_model *model;
    char path[512];
    memset(&how, 0, sizeof how);
    how.task = "classification";
    OK(tw_from_pretrained_with(tw, golden_path(path, "bert", "default", ""), &how) == NULL && tw_error_code(tw) == TW_E_MISSING);
    tw_clear_error(tw);
    how.new_head = true;
    model = tw_from_pretrained_with(tw, golden_path(path, "bert", "default", ""), &how);
    OK(model && strcmp(tw_class_of(model), "BertForSequenceClassification") == 0);
    OK(tw_data(tw_parameter_named(model, "classifier.bias"))[0] == 0 && tw_data(tw_parameter_named(model, "classifier.weight"))[0] != 0);
    tw_model_free(model);
    how.task = "embedding";                                     /* a base model does without the pooler that the file lacks */
    model = tw_from_pretrained_with(tw, golden_path(path, "bert", "default", ""), &how);
    OK(model && !tw_parameter_named(model, "pooler.dense.weight"));
    tw_model_free(model);
}

/* What is planned is what is taken, and no layer more costs memory where no gradient is wanted. */
static void check_plan(tw_context *tw) {
    static const char *const config = "{\"model_type\":\"bert\",\"architectures\":[\"%s\"],\"vocab_size\":101,\"hidden_size\":24,\"num_attention_heads\":3,"
                                      "\"intermediate_size\":40,\"num_hidden_layers\":%d,\"num_labels\":3,\"inner_dim\":4,\"max_position_embeddings\":32}";
    static const char *const classes[] = { "BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction", "BertForSequenceClassification",
                                           "BertForTokenClassification", "BertForQuestionAnswering", "BertForMultipleChoice", "BertLMHeadModel", "BertForSeq2seq",
                                           "BertForClsClassifier", "BertForSequenceLabeling", "BertForSequenceLabelingCRF", "BertForSequenceLabelingGP" };
    size_t i, peak[2];
    int layers;
    for (i = 0; i < sizeof classes / sizeof *classes; i++)
        for (layers = 2; layers <= 6; layers += 4) {
            char text[512];
            tw_plan_desc how;
            tw_plan plan;
            tw_json *json;
            memset(&how, 0, sizeof how);
            how.batch = 2;
            how.sequence = 16;
            snprintf(text, sizeof text, config, classes[i], layers);
            json = tw_json_parse(tw, text, strlen(text));
            plan = tw_plan_config(tw, json, &how);
            CHECK(plan.total_bytes > 0, "plan of %s: %s", classes[i], tw_error(tw));
            peak[layers > 2] = plan.activations_bytes;
            how.training = true;
            if (strcmp(classes[i], "BertModel") != 0) CHECK(tw_plan_config(tw, json, &how).total_bytes > plan.total_bytes, "plan of training %s: %s", classes[i], tw_error(tw));
            tw_json_free(json);
            tw_clear_error(tw);
            if (layers > 2) CHECK(peak[0] == peak[1], "%s: %zu bytes with 2 layers, %zu with 6", classes[i], peak[0], peak[1]);
        }
}

int main(void) {
    check_family("bert", bert, sizeof bert / sizeof *bert);
    check_family("roberta", roberta, sizeof roberta / sizeof *roberta);
    check_family("flagai_bert", flagai, sizeof flagai / sizeof *flagai);
    {
        char path[512];
        tw_context *tw = tw_create(NULL);
        check_viterbi(tw);
        check_writing(tw, tw_from_pretrained(tw, golden_path(path, "bert", "decoder", "")), false);
        check_writing(tw, tw_from_pretrained(tw, golden_path(path, "roberta", "decoder", "")), false);
        check_writing(tw, tw_from_pretrained(tw, golden_path(path, "flagai_bert", "seq2seq", "")), true);
        check_new_head(tw);
        check_plan(tw);
        CHECK(!tw_failed(tw), "%s", tw_error(tw));
        tw_destroy(tw);
    }
    return check_done();
}
