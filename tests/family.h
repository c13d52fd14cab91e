/* family.h - the golden cases of one family of models (goldens/FAMILY/CASE, made by tools/goldens.py): outputs and gradients
   against PyTorch.  A test program lists its cases and calls check_family(). */
#ifndef FAMILY_H
#define FAMILY_H
#include "golden.h"

static double worst_output, worst_gradient;

/* An order-dependent hash (FNV-1a) of the bits of n floats, mixed into *hash. */
static void hash_floats(uint64_t *hash, const float *x, int64_t n) {
    int64_t i;
    for (i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        *hash = (*hash ^ u) * 1099511628211u;
    }
}

static bool is_zero(const tw_weight *w) {
    size_t i;
    for (i = 0; i < w->bytes / sizeof(float); i++) if (((const float *)w->data)[i] != 0) return false;
    return true;
}

/* One case: opens its model, runs it on in.safetensors, compares with out.safetensors (if `compare`).  Returns a hash of
   all outputs and gradients. */
static uint64_t run_case(const char *family, const char *name, const char *kernels, int threads, bool checkpointing, bool compare) {
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
    model = tw_from_pretrained(tw, golden_path(path, family, name, ""));
    tw_gradient_checkpointing(model, checkpointing);
    in = tw_open_weights(tw, golden_path(path, family, name, "in.safetensors"));
    want = tw_open_weights(tw, golden_path(path, family, name, "out.safetensors"));
    CHECK(model && in && want, "%s/%s: %s", family, name, tw_error(tw));
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
    pass.hidden_states = tw_weights_find(want, "hidden_states.0") || tw_weights_find(want, "decoder_hidden_states.0");
    tw_no_grad(tw, !gradients);
    CHECK(tw_model_forward(model, &batch, &pass, &out), "%s/%s: %s", family, name, tw_error(tw));
    loss = tw_batch_get(&out, "loss");
    mc_loss = tw_batch_get(&out, "mc_loss");
    if (gradients) CHECK(tw_backward(mc_loss && loss ? tw_add(loss, mc_loss) : loss), "%s/%s: %s", family, name, tw_error(tw));
    for (i = 0; i < tw_weights_count(want) && !tw_failed(tw); i++) {
        const tw_weight *w = tw_weights_at(want, i);
        bool is_grad = strncmp(w->name, "grad.", 5) == 0, zero;
        tw_tensor *got = is_grad ? tw_grad(tw_parameter_named(model, w->name + 5)) : tw_batch_get(&out, w->name);
        double error;
        if (strcmp(w->name, "compare") == 0) continue;
        if (tw_data(got)) hash_floats(&hash, tw_data(got), tw_count(got));
        if (!compare) continue;
        /* zero in exact arithmetic: what comes out is rounding, or nothing because the loss does not depend on it */
        zero = is_grad && is_zero(w);
        if (zero && !got && tw_parameter_named(model, w->name + 5)) continue;
        error = golden_error(tw_data(got), tw_count(got), w, is_grad ? NULL : rows, row_count, is_grad ? (zero ? 1e-2 : 1e-3) * largest_gradient : 0);
        CHECK(error <= (is_grad ? 1e-4 : 1e-5), "%s/%s: %s is off by %.3g of its largest value", family, name, w->name, error);
        if (is_grad && error > worst_gradient) worst_gradient = error;
        if (!is_grad && error > worst_output) worst_output = error;
    }
    CHECK(!tw_failed(tw), "%s/%s: %s", family, name, tw_error(tw));
    tw_close_weights(in);
    tw_close_weights(want);
    tw_destroy(tw);
    return hash;
}

/* Every case of a family: the numbers of PyTorch; and the same bits when blocks are recomputed, for any number of
   threads, and on every kernel set. */
static void check_family(const char *family, const char *const *cases, size_t count) {
    static const char *const sets[] = { "plain", "neon", "avx2", "avx512" };
    size_t c, s;
    for (c = 0; c < count; c++) {
        uint64_t hash = run_case(family, cases[c], NULL, 1, false, true);
        CHECK(run_case(family, cases[c], NULL, 1, true, false) == hash, "%s/%s: recomputing blocks changes the bits", family, cases[c]);
        CHECK(run_case(family, cases[c], NULL, 2, false, false) == hash && run_case(family, cases[c], NULL, 3, false, false) == hash,
              "%s/%s: threads change the bits", family, cases[c]);
        for (s = 0; s < sizeof sets / sizeof *sets; s++) {
            tw_desc desc;
            tw_context *tw;
            bool there;
            memset(&desc, 0, sizeof desc);
            desc.kernels = sets[s];
            tw = tw_create(&desc);
            there = !tw_failed(tw);
            tw_destroy(tw);
            if (there) CHECK(run_case(family, cases[c], sets[s], 1, false, false) == hash, "%s/%s: kernels %s give other bits", family, cases[c], sets[s]);
        }
    }
    printf("%s: worst output %.2g, worst gradient %.2g\n", family, worst_output, worst_gradient);
}
#endif
