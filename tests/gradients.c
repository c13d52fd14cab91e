/* Every operation against numeric differences, at odd sizes; and the tape's own rules: views, sums of several
   uses, frozen parameters, checkpointing.  The list of operations is the library's own: one that no case here
   reaches is a failure. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "check.h"
#include <string.h>
#define OK(condition) CHECK(condition, "%s", #condition)

static tw_context *tw;
static int seen[256];                                       /* which operations the cases put on the tape */

/* A parameter with numbers of its own, kept away from 0 where `offset` says so. */
static tw_tensor *param(tw_shape shape, float low, float high) {
    tw_tensor *t = tw_parameter(tw, "p", shape);
    tw_fill_uniform(t, low, high);
    return t;
}
/* One number out of any tensor, with different weights everywhere, so that no two errors cancel. */
static tw_tensor *weigh(tw_tensor *x) {
    int64_t n = tw_count(x), i;
    float w[4096];
    if (!x || n > 4096) return NULL;
    for (i = 0; i < n; i++) w[i] = 0.3f + 0.7f * (float)((i * 37 + 11) % 101) / 101.0f;
    return tw_sum(tw_mul(tw_reshape(x, tw_shape1(n)), tw_tensor_from(tw, tw_shape1(n), w)));
}
static void note_operations(void) {
    const char *name;
    int64_t i;
    int op;
    for (i = 0; (name = tw_tape_name(tw, i)) != NULL; i++)
        for (op = 0; op < tw_operation_count(); op++) if (strcmp(name, tw_operation_name(op)) == 0) seen[op] = 1;
}

typedef tw_tensor *(*formula)(tw_tensor *const *p);
static tw_tensor *run_formula(void *user, tw_tensor *const *p) {
    tw_tensor *y = weigh((*(formula *)user)(p));
    note_operations();
    return y;
}
static void check(const char *name, formula f, tw_tensor *const *p, int count, double bound) {
    char where[256], sentence[2048];
    double worst = tw_check_gradients(tw, run_formula, &f, p, count, 2e-2f, where, sizeof where);
    snprintf(sentence, sizeof sentence, "%s: worst %.2g, %s %s", name, worst, where, tw_error(tw));
    CHECK(worst <= bound, "%s", sentence);
    tw_clear_error(tw);
    tw_end_step(tw);
}

#define UNARY(f) static tw_tensor *do_##f(tw_tensor *const *p) { return f(p[0]); }
UNARY(tw_neg) UNARY(tw_exp) UNARY(tw_log) UNARY(tw_sqrt) UNARY(tw_rsqrt) UNARY(tw_square) UNARY(tw_abs) UNARY(tw_reciprocal) UNARY(tw_tanh)
UNARY(tw_sigmoid) UNARY(tw_relu) UNARY(tw_gelu) UNARY(tw_gelu_tanh) UNARY(tw_quick_gelu) UNARY(tw_silu) UNARY(tw_erf) UNARY(tw_sin) UNARY(tw_cos)
UNARY(tw_softplus) UNARY(tw_softmax) UNARY(tw_log_softmax) UNARY(tw_sum) UNARY(tw_mean)
static tw_tensor *do_affine(tw_tensor *const *p) { return tw_add_scalar(tw_scale(p[0], -1.7f), 0.3f); }
static tw_tensor *do_add(tw_tensor *const *p) { return tw_add(p[0], p[1]); }
static tw_tensor *do_sub(tw_tensor *const *p) { return tw_sub(p[0], p[1]); }
static tw_tensor *do_mul(tw_tensor *const *p) { return tw_mul(p[0], p[1]); }
static tw_tensor *do_div(tw_tensor *const *p) { return tw_div(p[0], p[1]); }
static tw_tensor *do_max(tw_tensor *const *p) { return tw_maximum(p[0], p[1]); }
static tw_tensor *do_min(tw_tensor *const *p) { return tw_minimum(p[0], p[1]); }
static tw_tensor *do_twice(tw_tensor *const *p) { return tw_mul(tw_add(p[0], p[0]), tw_sub(p[0], tw_square(p[0]))); }
static tw_tensor *do_where(tw_tensor *const *p) {
    static const int32_t mask[] = { 1, 0, 0, 1, 1 };
    return tw_where(tw_ids(tw, tw_shape1(5), mask), p[0], p[1]);
}
static tw_tensor *do_sum_axis(tw_tensor *const *p) { return tw_add(tw_sum_axis(p[0], 1, true), tw_mean_axis(p[0], -1, true)); }
static tw_tensor *do_sum_first(tw_tensor *const *p) { return tw_mul(tw_mean_axis(p[0], 0, false), tw_sum_axis(p[0], 0, false)); }
static tw_tensor *do_max_axis(tw_tensor *const *p) { return tw_mul(tw_max_axis(p[0], 1, true), tw_max_axis(p[0], -1, true)); }
static tw_tensor *do_logsumexp(tw_tensor *const *p) { return tw_add(tw_logsumexp(p[0], 1, true), tw_logsumexp(p[0], 2, true)); }
static tw_tensor *do_matmul(tw_tensor *const *p) { return tw_matmul(p[0], p[1]); }
static tw_tensor *do_matmul_nt(tw_tensor *const *p) { return tw_matmul(p[0], tw_transpose(p[1], -1, -2)); }
static tw_tensor *do_matmul_tn(tw_tensor *const *p) { return tw_matmul(tw_transpose(p[0], -1, -2), p[1]); }
static tw_tensor *do_linear(tw_tensor *const *p) { return tw_linear_op(p[0], p[1], p[2], false, TW_ACT_GELU, p[3]); }
static tw_tensor *do_linear_plain(tw_tensor *const *p) { return tw_linear_op(p[0], p[1], NULL, false, TW_ACT_NONE, NULL); }
static tw_tensor *do_conv1d(tw_tensor *const *p) { return tw_linear_op(p[0], p[1], p[2], true, TW_ACT_GELU_TANH, NULL); }
static tw_tensor *do_linear_view(tw_tensor *const *p) { return tw_linear_op(tw_slice(p[0], 2, 1, 3), p[1], p[2], true, TW_ACT_TANH, tw_slice(p[3], 2, 2, 4)); }
static tw_tensor *do_layer_norm(tw_tensor *const *p) { return tw_layer_norm_op(p[0], p[1], p[2], 1e-5f); }
static tw_tensor *do_rms_norm(tw_tensor *const *p) { return tw_rms_norm_op(p[0], p[1], 1e-6f); }
static tw_tensor *do_embedding(tw_tensor *const *p) {
    static const int32_t ids[] = { 2, 0, 6, 2, 2, 5 };
    return tw_embedding_op(p[0], tw_ids(tw, tw_shape2(2, 3), ids));
}
static tw_tensor *do_select(tw_tensor *const *p) {
    static const int32_t index[] = { 4, 0, 2, 2, 1, 3 };
    return tw_select(p[0], tw_ids(tw, tw_shape2(2, 3), index));
}
static tw_tensor *do_dropout(tw_tensor *const *p) {
    bool was = tw_training(tw, true);
    tw_tensor *y = tw_mul(tw_dropout(p[0], 0.4f), p[0]);
    tw_training(tw, was);
    return y;
}
static tw_tensor *do_copy(tw_tensor *const *p) { return tw_mul(tw_contiguous(tw_transpose(p[0], 0, 2)), tw_transpose(p[0], 0, 2)); }
static tw_tensor *do_views(tw_tensor *const *p) {
    tw_tensor *s = tw_slice(tw_transpose(p[0], 1, 2), 1, 1, 2);
    return tw_add(tw_reshape(s, tw_shape2(-1, 3)), tw_scale(tw_reshape(p[0], tw_shape2(5, -1)), 0.0f) ? tw_square(tw_reshape(s, tw_shape2(-1, 3))) : NULL);
}
static tw_tensor *do_expand(tw_tensor *const *p) { return tw_expand(p[0], tw_shape3(4, 3, 5)); }
static tw_tensor *do_concat(tw_tensor *const *p) { return tw_concat(p, 3, 1); }
static tw_tensor *do_rope(tw_tensor *const *p) {
    static const int32_t at[] = { 0, 3, 1, 7, 2, 5 };
    return tw_rope(p[0], tw_ids(tw, tw_shape2(2, 3), at), 6, true, 10000);
}
static tw_tensor *do_rope_halves(tw_tensor *const *p) {
    static const int32_t at[] = { 0, 3, 1, 7, 2, 5 };
    return tw_rope(p[0], tw_ids(tw, tw_shape2(2, 3), at), 8, false, 100);
}
static tw_tensor *do_attention(tw_tensor *const *p) {
    tw_attention_desc how;
    memset(&how, 0, sizeof how);
    how.causal = true;
    how.query_start = 2;
    return tw_attention(p[0], p[1], p[2], &how);
}
static tw_tensor *do_attention_bias(tw_tensor *const *p) {
    static const int32_t keep[] = { 1, 1, 1, 0, 1,   1, 0, 1, 1, 1 };
    tw_attention_desc how;
    memset(&how, 0, sizeof how);
    how.key_mask = tw_ids(tw, tw_shape2(2, 5), keep);
    how.bias = p[3];
    how.scale = 0.7f;
    return tw_attention(p[0], p[1], p[2], &how);
}
/* the bias as a row of distances, [H or 1, Tq + Tk - 1] */
static tw_tensor *do_attention_distance(tw_tensor *const *p) {
    tw_attention_desc how;
    memset(&how, 0, sizeof how);
    how.distance_bias = p[3];
    how.scale = 1;
    return tw_attention(p[0], p[1], p[2], &how);
}
static tw_tensor *do_attention_distance_causal(tw_tensor *const *p) {
    static const int32_t keep[] = { 1, 1, 0, 1, 1,   1, 0, 1, 1, 1 };
    tw_attention_desc how;
    memset(&how, 0, sizeof how);
    how.causal = true;
    how.query_start = 2;
    how.key_mask = tw_ids(tw, tw_shape2(2, 5), keep);
    how.distance_bias = p[3];
    return tw_attention(p[0], p[1], p[2], &how);
}
/* Written out as a bias [1, H, Tq, Tk] it gives the same bits, for one query as for many. */
static void test_distances(int64_t queries, int64_t keys, int64_t heads) {
    tw_tensor *q = param(tw_shape4(2, queries, 4, 5), -1, 1), *k = param(tw_shape4(2, keys, 2, 5), -1, 1), *v = param(tw_shape4(2, keys, 2, 5), -1, 1);
    tw_tensor *row = param(tw_shape2(heads, queries + keys - 1), -1, 1), *whole = tw_full(tw, tw_shape4(1, heads, queries, keys), 0), *a, *b;
    tw_attention_desc how;
    int64_t h, i, j;
    for (h = 0; h < heads; h++) for (i = 0; i < queries; i++) for (j = 0; j < keys; j++)
        tw_data(whole)[(h * queries + i) * keys + j] = tw_data(row)[h * (queries + keys - 1) + j - i + queries - 1];
    memset(&how, 0, sizeof how);
    how.distance_bias = row;
    a = tw_attention(q, k, v, &how);
    how.distance_bias = NULL;
    how.bias = whole;
    b = tw_attention(q, k, v, &how);
    CHECK(a && b && memcmp(tw_data(a), tw_data(b), (size_t)tw_count(a) * sizeof(float)) == 0, "distances of %d queries and %d keys: other bits than a bias (%s)", (int)queries,
          (int)keys, tw_error(tw));
    how.distance_bias = row;
    CHECK(!tw_attention(q, k, v, &how) && tw_failed(tw), "two biases at once");
    tw_clear_error(tw);
    tw_end_step(tw);
}
static tw_tensor *do_attention_mask(tw_tensor *const *p) {
    static const int32_t mask[] = { 1, 1, 0, 0, 1,  0, 1, 1, 1, 0,  1, 0, 0, 0, 0 };
    tw_attention_desc how;
    tw_tensor *y;
    bool was = tw_training(tw, true);
    memset(&how, 0, sizeof how);
    how.mask = tw_ids(tw, tw_shape3(1, 3, 5), mask);
    how.dropout = 0.3f;
    y = tw_attention(p[0], p[1], p[2], &how);
    tw_training(tw, was);
    return y;
}
static tw_tensor *do_attention_prefix(tw_tensor *const *p) {
    static const int32_t prefix[2] = { 4, 0 };
    tw_attention_desc how;
    memset(&how, 0, sizeof how);
    how.causal = true;
    how.query_start = 1;
    how.prefix = tw_ids(tw, tw_shape1(2), prefix);
    return tw_attention(p[0], p[1], p[2], &how);
}
/* q, k and v as three parts of one tensor, as GPT-2 has them */
static tw_tensor *do_attention_fused(tw_tensor *const *p) {
    tw_attention_desc how;
    tw_tensor *part[3];
    int i;
    memset(&how, 0, sizeof how);
    how.causal = true;
    for (i = 0; i < 3; i++) part[i] = tw_reshape(tw_slice(tw_mul(p[0], p[0]), 2, 6 * i, 6), tw_shape4(2, 5, 2, 3));
    for (i = 0; i < 3; i++) part[i] = tw_reshape(tw_slice(p[0], 2, 6 * i, 6), tw_shape4(2, 5, 2, 3));
    return tw_attention(part[0], part[1], part[2], &how);
}
static const int32_t some_labels[] = { 3, -100, 0, 6, 2, -100, 1, 5 };
static tw_tensor *do_cross_entropy(tw_tensor *const *p) { return tw_cross_entropy(p[0], tw_ids(tw, tw_shape2(2, 4), some_labels), 0.1f); }
static tw_tensor *do_head_loss(tw_tensor *const *p) { return tw_linear_cross_entropy(p[0], p[1], tw_ids(tw, tw_shape2(2, 4), some_labels), 0.1f); }
static tw_tensor *do_bce(tw_tensor *const *p) { return tw_bce_with_logits(p[0], p[1]); }
static tw_tensor *do_multilabel(tw_tensor *const *p) {
    static const int32_t right[] = { 1, 0, 0, 1, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0,  1, 1, 1, 1, 1, 1, 1 };
    return tw_multilabel_cross_entropy(p[0], tw_ids(tw, tw_shape2(3, 7), right));
}
static tw_tensor *do_crf(tw_tensor *const *p) {                 /* a whole row, one with a hole and an end, an empty one, a single token */
    static const int32_t tags[] = { 2, 0, 0, 1, 2,  1, -100, 2, 2, 0,  7, 7, 7, 7, 7,  0, 1, -100, 2, -100 };
    static const int32_t mask[] = { 1, 1, 1, 1, 1,  1, 1, 1, 0, 0,  0, 0, 0, 0, 0,  0, 0, 1, 1, 1 };
    return tw_crf_loss(p[0], p[1], tw_ids(tw, tw_shape2(4, 5), tags), tw_ids(tw, tw_shape2(4, 5), mask));
}
static tw_tensor *do_crf_plain(tw_tensor *const *p) {
    static const int32_t tags[] = { 2, 0, 0, 1, 2, 1 };
    return tw_crf_loss(tw_mul(p[0], p[0]), p[1], tw_ids(tw, tw_shape2(2, 3), tags), NULL);
}
static tw_tensor *do_mse(tw_tensor *const *p) { return tw_mse_loss(p[0], p[1]); }
static tw_tensor *do_conv(tw_tensor *const *p) { return tw_conv2d_op(p[0], p[1], p[2], 2, 1, 1, 1); }
static tw_tensor *do_conv_groups(tw_tensor *const *p) { return tw_conv2d_op(p[0], p[1], NULL, 1, 2, 2, 2); }
static tw_tensor *do_max_pool(tw_tensor *const *p) { return tw_max_pool2d(p[0], 3, 2, 1); }
static tw_tensor *do_avg_pool(tw_tensor *const *p) { return tw_avg_pool2d(p[0], 2, 2, 0); }
static tw_tensor *running_mean, *running_var;
static tw_tensor *do_batch_norm(tw_tensor *const *p) {
    bool was = tw_training(tw, true);
    tw_tensor *y = tw_batch_norm_op(p[0], p[1], p[2], running_mean, running_var, 1e-5f, 0.0f);
    tw_training(tw, was);
    return y;
}
static tw_tensor *do_batch_norm_eval(tw_tensor *const *p) { return tw_batch_norm_op(p[0], p[1], p[2], running_mean, running_var, 1e-5f, 0.1f); }

/* a block that is recomputed: two inputs, a parameter used inside, dropout */
static tw_tensor *block_weight;
static tw_tensor *a_block(void *user, tw_tensor *const *in) {
    (void)user;
    return tw_add(in[0], tw_dropout(tw_tanh(tw_add(tw_linear_op(in[0], block_weight, NULL, false, TW_ACT_NONE, NULL), in[1])), 0.3f));
}
static tw_tensor *do_checkpoint(tw_tensor *const *p) {
    tw_tensor *in[2], *y;
    bool was = tw_training(tw, true);
    in[0] = tw_scale(p[0], 1.5f);
    in[1] = p[1];
    y = tw_checkpoint(tw, a_block, &in, sizeof in, in, 2);
    in[0] = y;
    y = tw_checkpoint(tw, a_block, &in, sizeof in, in, 2);
    tw_training(tw, was);
    return y;
}

static void check_elementwise(void) {
    static const struct { const char *name; formula f; float low, high; } cases[] = {
        { "neg", do_tw_neg, -1, 1 }, { "exp", do_tw_exp, -1, 1 }, { "log", do_tw_log, 0.5f, 2 }, { "sqrt", do_tw_sqrt, 0.5f, 2 }, { "rsqrt", do_tw_rsqrt, 0.5f, 2 },
        { "square", do_tw_square, -1, 1 }, { "abs", do_tw_abs, 0.2f, 1 }, { "reciprocal", do_tw_reciprocal, 0.7f, 2 }, { "tanh", do_tw_tanh, -2, 2 },
        { "sigmoid", do_tw_sigmoid, -3, 3 }, { "relu", do_tw_relu, 0.2f, 1 }, { "gelu", do_tw_gelu, -2, 2 }, { "gelu_tanh", do_tw_gelu_tanh, -2, 2 },
        { "quick_gelu", do_tw_quick_gelu, -2, 2 }, { "silu", do_tw_silu, -3, 3 }, { "erf", do_tw_erf, -1.5f, 1.5f }, { "sin", do_tw_sin, -3, 3 },
        { "cos", do_tw_cos, -3, 3 }, { "softplus", do_tw_softplus, -3, 3 }, { "softmax", do_tw_softmax, -2, 2 }, { "log_softmax", do_tw_log_softmax, -2, 2 },
        { "sum", do_tw_sum, -1, 1 }, { "mean", do_tw_mean, -1, 1 }, { "affine", do_affine, -1, 1 }, { "used twice", do_twice, -1, 1 },
        { "copy", do_copy, -1, 1 }, { "views", do_views, -1, 1 }, { "sum_axis", do_sum_axis, -1, 1 }, { "sum_first", do_sum_first, 0.3f, 1 },
        { "logsumexp", do_logsumexp, -2, 2 }, { "dropout", do_dropout, 0.3f, 1 }
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        tw_tensor *x = param(tw_shape3(3, 5, 7), cases[i].low, cases[i].high);
        check(cases[i].name, cases[i].f, &x, 1, 2e-3);
    }
}

static tw_tensor *as_it_is(void *block, tw_tensor *const *inputs) { (void)block; return inputs[0]; }

int main(void) {
    static const struct { const char *name; formula f; } pairs[] = {
        { "add", do_add }, { "sub", do_sub }, { "mul", do_mul }, { "div", do_div }, { "maximum", do_max }, { "minimum", do_min }, { "where", do_where }
    };
    size_t i;
    int op;
    tw = tw_create(NULL);
    check_elementwise();
    for (i = 0; i < sizeof pairs / sizeof *pairs; i++) {      /* same shape, a tail, a column, both repeated */
        static const int64_t shapes[4][2][3] = { { { 2, 3, 5 }, { 2, 3, 5 } }, { { 2, 3, 5 }, { 1, 1, 5 } }, { { 2, 3, 5 }, { 2, 1, 1 } }, { { 2, 1, 5 }, { 1, 3, 1 } } };
        size_t s, e;
        for (s = 0; s < 4; s++) {
            tw_tensor *p[2];
            for (e = 0; e < 2; e++) p[e] = param(tw_shape3(shapes[s][e][0], shapes[s][e][1], shapes[s][e][2]), e ? 1.2f : 0.4f, e ? 2.0f : 1.0f);
            if (pairs[i].f == do_max || pairs[i].f == do_min) tw_fill_uniform(p[1], -1, 0.2f);
            check(pairs[i].name, pairs[i].f, p, 2, 2e-3);
        }
    }
    { tw_tensor *x = tw_parameter(tw, "distinct", tw_shape3(3, 5, 4)); int k; for (k = 0; k < 60; k++) tw_data(x)[k] = (float)((k * 37) % 61) / 10; check("max_axis", do_max_axis, &x, 1, 2e-3); }
    { tw_tensor *p[2]; p[0] = param(tw_shape3(2, 3, 5), -1, 1); p[1] = param(tw_shape3(2, 5, 7), -1, 1); check("matmul", do_matmul, p, 2, 2e-3);
      p[1] = param(tw_shape2(5, 7), -1, 1); check("matmul, one right side", do_matmul, p, 2, 2e-3);
      p[1] = param(tw_shape3(2, 7, 5), -1, 1); check("matmul, right transposed", do_matmul_nt, p, 2, 2e-3);
      p[0] = param(tw_shape4(2, 1, 5, 3), -1, 1); p[1] = param(tw_shape4(1, 3, 5, 4), -1, 1); check("matmul, left transposed, repeated", do_matmul_tn, p, 2, 2e-3); }
    { tw_tensor *p[4]; p[0] = param(tw_shape3(2, 3, 5), -1, 1); p[1] = param(tw_shape2(7, 5), -1, 1); p[2] = param(tw_shape1(7), -1, 1); p[3] = param(tw_shape3(2, 3, 7), -1, 1);
      check("linear", do_linear, p, 4, 2e-3); check("linear without bias", do_linear_plain, p, 2, 2e-3);
      p[1] = param(tw_shape2(5, 7), -1, 1); check("conv1d", do_conv1d, p, 3, 2e-3);
      p[1] = param(tw_shape2(3, 4), -1, 1); p[2] = param(tw_shape1(4), -1, 1); check("linear on views", do_linear_view, p, 4, 2e-3); }
    { tw_tensor *p[3]; p[0] = param(tw_shape3(2, 3, 11), -1, 1); p[1] = param(tw_shape1(11), 0.5f, 1.5f); p[2] = param(tw_shape1(11), -1, 1);
      check("layer_norm", do_layer_norm, p, 3, 3e-3); check("rms_norm", do_rms_norm, p, 2, 3e-3); }
    { tw_tensor *x = param(tw_shape2(7, 5), -1, 1); check("embedding", do_embedding, &x, 1, 2e-3); }
    { tw_tensor *x = param(tw_shape3(2, 3, 5), -1, 1); check("select", do_select, &x, 1, 2e-3); }
    { tw_tensor *x = param(tw_shape2(3, 1), -1, 1); check("expand", do_expand, &x, 1, 2e-3); }
    { tw_tensor *p[3]; p[0] = param(tw_shape3(2, 3, 5), -1, 1); p[1] = param(tw_shape3(2, 1, 5), -1, 1); p[2] = param(tw_shape3(2, 4, 5), -1, 1); check("concat", do_concat, p, 3, 2e-3); }
    { tw_tensor *x = param(tw_shape4(2, 3, 2, 9), -1, 1); check("rope", do_rope, &x, 1, 2e-3); check("rope by halves", do_rope_halves, &x, 1, 2e-3); }
    { tw_tensor *p[4]; p[0] = param(tw_shape4(2, 3, 4, 5), -1, 1); p[1] = param(tw_shape4(2, 5, 2, 5), -1, 1); p[2] = param(tw_shape4(2, 5, 2, 5), -1, 1); p[3] = param(tw_shape4(1, 4, 3, 5), -1, 1);
      check("attention, causal, grouped heads", do_attention, p, 3, 2e-3); check("attention, bias and key mask", do_attention_bias, p, 4, 2e-3);
      check("attention, mask and dropout", do_attention_mask, p, 3, 2e-3); check("attention, prefix", do_attention_prefix, p, 3, 2e-3);
      p[3] = param(tw_shape2(4, 7), -1, 1); check("attention, bias by distance", do_attention_distance, p, 4, 2e-3); check("attention, causal, bias by distance", do_attention_distance_causal, p, 4, 2e-3);
      p[3] = param(tw_shape2(1, 7), -1, 1); check("attention, one bias by distance for all heads", do_attention_distance, p, 4, 2e-3); }
    test_distances(5, 5, 4);
    test_distances(1, 37, 4);
    test_distances(60, 300, 1);
    { tw_tensor *x = param(tw_shape3(2, 5, 18), -1, 1); check("attention, fused", do_attention_fused, &x, 1, 2e-3); }
    { tw_tensor *p[2]; p[0] = param(tw_shape3(2, 4, 7), -2, 2); p[1] = param(tw_shape3(2, 4, 7), 0, 1); check("cross_entropy", do_cross_entropy, p, 1, 2e-3); check("bce", do_bce, p, 2, 2e-3); check("mse", do_mse, p, 2, 2e-3); }
    { tw_tensor *p[2]; p[0] = param(tw_shape3(2, 4, 5), -1, 1); p[1] = param(tw_shape2(7, 5), -1, 1); check("linear_cross_entropy", do_head_loss, p, 2, 2e-3); }
    { tw_tensor *p[3]; p[0] = param(tw_shape4(2, 4, 5, 7), -1, 1); p[1] = param(tw_shape4(3, 4, 3, 3), -1, 1); p[2] = param(tw_shape1(3), -1, 1); check("conv2d", do_conv, p, 3, 2e-3);
      p[1] = param(tw_shape4(6, 2, 3, 3), -1, 1); check("conv2d, groups and dilation", do_conv_groups, p, 2, 2e-3); check("avg_pool2d", do_avg_pool, p, 1, 2e-3); }
    { tw_tensor *x = tw_parameter(tw, "distinct", tw_shape4(1, 2, 5, 7)); int k; for (k = 0; k < 70; k++) tw_data(x)[k] = (float)((k * 37) % 71) / 10; check("max_pool2d", do_max_pool, &x, 1, 2e-3); }
    { tw_tensor *p[3]; p[0] = param(tw_shape4(3, 2, 3, 5), -1, 1); p[1] = param(tw_shape1(2), 0.5f, 1.5f); p[2] = param(tw_shape1(2), -1, 1);
      running_mean = param(tw_shape1(2), -1, 1); running_var = param(tw_shape1(2), 0.5f, 1.5f);
      check("batch_norm", do_batch_norm, p, 3, 3e-3); check("batch_norm, evaluation", do_batch_norm_eval, p, 3, 2e-3); }
    { tw_tensor *p[3]; p[0] = param(tw_shape3(2, 3, 5), -1, 1); p[1] = param(tw_shape3(2, 3, 5), -1, 1); p[2] = block_weight = param(tw_shape2(5, 5), -1, 1); check("checkpoint", do_checkpoint, p, 3, 2e-3); }

    { /* a frozen parameter gets no gradient, and what does not lead to the loss is left alone */
        tw_tensor *a = param(tw_shape1(3), 1, 2), *b = param(tw_shape1(3), 1, 2), *c = param(tw_shape1(3), 1, 2);
        tw_require_grad(b, false);
        tw_mul(c, c);
        OK(tw_backward(tw_sum(tw_mul(a, b))));
        OK(tw_grad(a) != NULL && tw_grad(b) == NULL && tw_grad(c) == NULL);
        tw_end_step(tw);
        OK(tw_backward(tw_sum(tw_mul(a, b))) && tw_data(tw_grad(a))[1] == 2 * tw_data(b)[1]);        /* gradients add up until they are zeroed */
        tw_zero_grad_of(a);
        tw_end_step(tw);
        OK(!tw_backward(tw_tensor_from(tw, tw_shape0(), NULL)) && tw_error_code(tw) == TW_E_ARGUMENT);
        tw_clear_error(tw);
        OK(tw_matmul(a, b) == NULL && strstr(tw_error(tw), "matmul") && tw_add(NULL, a) == NULL && tw_error_code(tw) == TW_E_SHAPE);
        tw_clear_error(tw);
    }
    { tw_tensor *p[2]; p[0] = param(tw_shape2(3, 7), -2, 2); check("multilabel", do_multilabel, p, 1, 2e-3);
      p[0] = param(tw_shape3(4, 5, 3), -2, 2); p[1] = param(tw_shape2(3, 3), -1, 1); check("crf", do_crf, p, 2, 2e-3);
      p[0] = param(tw_shape3(2, 3, 3), 0.5f, 1.5f); check("crf of a formula", do_crf_plain, p, 2, 2e-3); }
    { /* numbers of every type are read by their strides */
        static const int32_t ids[6] = { 0, 1, 2, 3, 4, 5 };
        static const tw_dtype types[2] = { TW_F16, TW_BF16 };
        tw_model *m = tw_model_create(tw, "m");
        tw_tensor *t = tw_ids(tw, tw_shape2(2, 3), ids);
        tw_linear layer;
        float x[6], y[6];
        int k;
        OK(tw_read(tw_transpose(t, 0, 1), x, 6) == 6 && x[1] == 3 && x[2] == 1 && tw_read(tw_slice(t, 1, 1, 1), x, 6) == 2 && x[0] == 1 && x[1] == 4);
        OK(tw_linear_init(m, &layer, "w", 3, 2, false));
        for (k = 0; k < 2; k++) {
            OK(tw_to(m, types[k]) && tw_read(layer.weight, x, 6) == 6 && tw_read(tw_transpose(layer.weight, 0, 1), y, 6) == 6 && y[1] == x[3] && y[2] == x[1] && x[1] != x[3]);
            OK(tw_read(tw_slice(layer.weight, 1, 2, 1), y, 6) == 2 && y[0] == x[2] && y[1] == x[5]);
            tw_end_step(tw);                                /* under a view, tw_to refuses */
        }
        tw_model_free(m);
    }
    { /* nothing to take statistics of: the running ones stay */
        tw_tensor *mean = param(tw_shape1(2), 1, 2), *var = param(tw_shape1(2), 1, 2);
        bool was = tw_training(tw, true);
        OK(!tw_batch_norm_op(tw_full(tw, tw_shape4(0, 2, 3, 3), 1), NULL, NULL, mean, var, 1e-5f, 0.1f) && tw_error_code(tw) == TW_E_SHAPE && tw_data(mean)[0] >= 1 && tw_data(var)[1] >= 1);
        tw_training(tw, was);
        tw_clear_error(tw);
    }
    { /* what a checkpointed block cannot do without */
        tw_tensor *x = param(tw_shape2(2, 2), -1, 1);
        OK(!tw_checkpoint(tw, as_it_is, NULL, 5, &x, 1) && tw_error_code(tw) == TW_E_ARGUMENT);
        tw_clear_error(tw);
        OK(!tw_checkpoint(tw, as_it_is, NULL, 0, NULL, 0) && !tw_checkpoint(tw, NULL, NULL, 0, &x, 1) && tw_error_code(tw) == TW_E_ARGUMENT);
        tw_clear_error(tw);
        OK(tw_checkpoint(tw, as_it_is, NULL, 0, &x, 1) && !tw_parameter(NULL, "p", tw_shape1(2)) && !tw_failed(tw));
    }
    for (op = 0; op < tw_operation_count(); op++) CHECK(seen[op], "no case reaches %s", tw_operation_name(op));
    tw_destroy(tw);
    return check_done();
}
