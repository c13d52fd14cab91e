/* BERT, RoBERTa and XLM-RoBERTa against transformers: every head and option of their configs, outputs and gradients, in every
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

int main(void) {
    check_family("bert", bert, sizeof bert / sizeof *bert);
    check_family("roberta", roberta, sizeof roberta / sizeof *roberta);
    return check_done();
}
