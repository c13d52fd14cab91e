/* Both families that are called GLM: FlagAI's, which fills blanks, against FlagAI's own code, and `glm` and `glm4` against
   transformers: every head and option, outputs and gradients; and the same bits on every kernel set and for any number of
   threads (tools/goldens_glm.py). */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "family.h"

static const char *const flagai[] = {
    "separators", "one_separator", "causal", "attention_scale", "one_position", "hidden", "long", "four_dimensional_mask", "memory", "return_memory",
    "newest_memory", "short_memory", "prompt_lstm", "prompt_mlp", "prompt_none", "tuned_prefix", "seq2seq", "seq2seq_fractions", "seq2seq_no_targets",
    "classify_cls", "classify_start", "classify_pad", "classify_yes_or_no", "classify_choices", "cloze", "cloze_length_penalty", "cloze_yes_or_no",
    "cloze_one_token", "cloze_one_token_softmax", "cloze_fast"
};
static const char *const transformers[] = {
    "glm_default", "glm_sequence", "glm_token", "glm_base", "glm4_default", "glm4_sequence", "glm4_token", "glm4_base", "no_bias", "whole_heads_turn",
    "few_channels_turn", "rope_theta", "tied_head", "rms_norm_eps", "left_padding", "right_padding", "position_ids", "no_prefix"
};

int main(void) {
    check_family("glm", flagai, sizeof flagai / sizeof *flagai);
    check_family("glm_hf", transformers, sizeof transformers / sizeof *transformers);
    return check_done();
}
