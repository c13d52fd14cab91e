/* GPT-2 against transformers: every head and option of its config, outputs and gradients, in every form a checkpoint
   can have; and the same bits on every kernel set and for any number of threads. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "family.h"

static const char *const cases[] = {
    "default", "base_model", "base_from_head", "activation_gelu", "activation_gelu_fast", "activation_gelu_new", "activation_gelu_pytorch_tanh", "activation_quick_gelu",
    "bin_bf16", "bin_f64", "bin_flagai", "bin_legacy", "bin_sharded", "bin_views", "bin_wrapped", "bin_zip",
    "activation_relu", "activation_silu", "activation_swish", "activation_tanh", "cross_attention", "double_heads", "inverse_layer_scale",
    "layer_norm_epsilon", "left_padding", "long", "mask_with_holes", "old_names", "one_head", "one_token", "position_ids", "question_answering", "reorder_and_upcast",
    "right_padding", "sequence_multi_label", "sequence_no_pad_token", "sequence_regression", "sequence_single_label", "sharded", "tied_twice_and_unknown",
    "token_classification", "token_type_ids", "unscaled_attention", "untied_head", "weights_bf16", "weights_f16"
};

int main(void) {
    check_family("gpt2", cases, sizeof cases / sizeof *cases);
    return check_done();
}
