/* GPT-2 against transformers: every head and option of its config, outputs and gradients, in every form a checkpoint
   can have; and the same bits on every kernel set and for any number of threads. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "golden.h"

static const char *const cases[] = {
    "default", "base_model", "base_from_head", "activation_gelu", "activation_gelu_fast", "activation_gelu_new", "activation_gelu_pytorch_tanh", "activation_quick_gelu",
    "activation_relu", "activation_silu", "activation_swish", "activation_tanh", "cross_attention", "double_heads", "inverse_layer_scale",
    "layer_norm_epsilon", "left_padding", "long", "mask_with_holes", "old_names", "one_head", "one_token", "position_ids", "question_answering", "reorder_and_upcast",
    "right_padding", "sequence_multi_label", "sequence_no_pad_token", "sequence_regression", "sequence_single_label", "sharded", "tied_twice_and_unknown",
    "token_classification", "token_type_ids", "unscaled_attention", "untied_head", "weights_bf16", "weights_f16"
};
static double worst_output, worst_gradient;

/* The outputs of one case as numbers; sets *bits to a hash of them all. */
static void hash_floats(uint64_t *hash, const float *x, int64_t n) {
    int64_t i;
    for (i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        *hash = (*hash ^ u) * 1099511628211u;
    }
}

static uint64_t run_case(const char *name, const char *kernels, int threads, bool checkpointing, bool compare) {
    char path[512];
    tw_desc desc;
    tw_context *tw;
    tw_model *model;
    tw_weights *in, *want;
    tw_batch batch;
    tw_outputs out;
    tw_pass pass;
    tw_tensor *loss, *mc_loss;
    uint64_t hash = 1469598103934665603u;
    double largest_gradient = 0;
    bool gradients = false;
    const float *rows = NULL;
    int64_t row_count = 0;
    size_t i;
    memset(&desc, 0, sizeof desc);
    desc.kernels = kernels;
    desc.threads = threads;
    tw = tw_create(&desc);
    model = tw_from_pretrained(tw, golden_path(path, "gpt2", name, ""));
    tw_gradient_checkpointing(model, checkpointing);
    in = tw_open_weights(tw, golden_path(path, "gpt2", name, "in.safetensors"));
    want = tw_open_weights(tw, golden_path(path, "gpt2", name, "out.safetensors"));
    CHECK(model && in && want, "%s: %s", name, tw_error(tw));
    if (!model || !in || !want) { tw_destroy(tw); return 0; }
    for (i = 0; i < tw_weights_count(want); i++) {
        const tw_weight *w = tw_weights_at(want, i);
        int64_t k;
        if (strncmp(w->name, "grad.", 5) != 0) continue;
        gradients = true;
        for (k = 0; k < (int64_t)(w->bytes / 4); k++) if (fabs((double)((const float *)w->data)[k]) > largest_gradient) largest_gradient = fabs((double)((const float *)w->data)[k]);
    }
    if (tw_weights_find(want, "compare")) { rows = (const float *)tw_weights_find(want, "compare")->data; row_count = (int64_t)(tw_weights_find(want, "compare")->bytes / 4); }
    if (gradients) tw_to(model, TW_F32);
    golden_batch(tw, in, &batch);
    memset(&pass, 0, sizeof pass);
    pass.hidden_states = tw_weights_find(want, "hidden_states.0") != NULL;
    tw_no_grad(tw, !gradients);
    CHECK(tw_model_forward(model, &batch, &pass, &out), "%s: %s", name, tw_error(tw));
    loss = tw_batch_get(&out, "loss");
    mc_loss = tw_batch_get(&out, "mc_loss");
    if (gradients) CHECK(tw_backward(mc_loss && loss ? tw_add(loss, mc_loss) : loss), "%s: %s", name, tw_error(tw));
    for (i = 0; i < tw_weights_count(want) && !tw_failed(tw); i++) {
        const tw_weight *w = tw_weights_at(want, i);
        bool is_grad = strncmp(w->name, "grad.", 5) == 0;
        tw_tensor *got = is_grad ? tw_grad(tw_parameter_named(model, w->name + 5)) : tw_batch_get(&out, w->name);
        double error;
        if (strcmp(w->name, "compare") == 0) continue;
        if (tw_data(got)) hash_floats(&hash, tw_data(got), tw_count(got));
        if (!compare) continue;
        error = golden_error(tw_data(got), tw_count(got), w, is_grad ? NULL : rows, row_count, is_grad ? 1e-3 * largest_gradient : 0);
        CHECK(error <= (is_grad ? 1e-4 : 1e-5), "%s: %s is off by %.3g of its largest value", name, w->name, error);
        if (is_grad && error > worst_gradient) worst_gradient = error;
        if (!is_grad && error > worst_output) worst_output = error;
    }
    CHECK(!tw_failed(tw), "%s: %s", name, tw_error(tw));
    tw_close_weights(in);
    tw_close_weights(want);
    tw_destroy(tw);
    return hash;
}

int main(void) {
    static const char *const sets[] = { "plain", "neon", "avx2", "avx512" };
    size_t c, s;
    for (c = 0; c < sizeof cases / sizeof *cases; c++) {
        uint64_t hash = run_case(cases[c], NULL, 1, false, true);
        CHECK(run_case(cases[c], NULL, 1, true, false) == hash, "%s: recomputing blocks changes the bits", cases[c]);
        CHECK(run_case(cases[c], NULL, 2, false, false) == hash && run_case(cases[c], NULL, 3, false, false) == hash, "%s: threads change the bits", cases[c]);
        for (s = 0; s < sizeof sets / sizeof *sets; s++) {
            tw_desc desc;
            tw_context *tw;
            bool there;
            memset(&desc, 0, sizeof desc);
            desc.kernels = sets[s];
            tw = tw_create(&desc);
            there = !tw_failed(tw);
            tw_destroy(tw);
            if (there) CHECK(run_case(cases[c], sets[s], 1, false, false) == hash, "%s: kernels %s give other bits", cases[c], sets[s]);
        }
    }
    printf("worst output %.2g, worst gradient %.2g\n", worst_output, worst_gradient);
    return check_done();
}
