/* own_model.c - your own model: layers make blocks, blocks make models.

   The lesson: a block is a struct of layers and a function that calls them; a model is a list of blocks
   and a function that turns named inputs into named outputs.  GPT-2 inside twinkle.h is written with
   exactly these calls.  Once a model has a forward function it can be trained, saved and loaded by the
   same verbs as any other.

   This one learns to tell two spirals apart, each point by its x and y, and then paints what it thinks
   of the whole plane.

       cc -O2 -I.. own_model.c -o own_model -lm && ./own_model */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <math.h>
#include <stdio.h>

enum { POINTS = 400, WIDTH = 24, BLOCKS = 3, STEPS = 150 };

/* ---- the model ---- */

typedef struct { tw_linear up, down; tw_layer_norm norm; } mlp_block;

typedef struct { tw_linear in, head; mlp_block block[BLOCKS]; } spiral_net;

static bool mlp_init(tw_model *model, mlp_block *b, int index) {
    bool ok;
    tw_enter(model, "block", index);                            /* names: "block.0.up.weight", ... */
    ok = tw_layer_norm_init(model, &b->norm, "norm", WIDTH, 1e-5f)
      && tw_linear_init(model, &b->up, "up", WIDTH, 4 * WIDTH, true)
      && tw_linear_init(model, &b->down, "down", 4 * WIDTH, WIDTH, true);
    tw_leave(model);
    return ok;
}

static tw_tensor *mlp_forward(const mlp_block *b, tw_tensor *x) {     /* [N, WIDTH] -> [N, WIDTH] */
    return tw_add(x, tw_linear_forward(&b->down, tw_gelu(tw_linear_forward(&b->up, tw_layer_norm_forward(&b->norm, x)))));
}

/* "points" F32 [N, 2] -> "logits" [N, 2]; with "labels" I32 [N] also "loss" */
static bool net_forward(tw_model *model, void *user, const tw_batch *inputs, const tw_pass *pass, tw_outputs *out) {
    const spiral_net *net = (const spiral_net *)user;
    tw_tensor *x = tw_linear_forward(&net->in, tw_batch_get(inputs, "points")), *labels = tw_batch_get(inputs, "labels"), *logits;
    int i;
    (void)model; (void)pass;
    for (i = 0; i < BLOCKS; i++) x = mlp_forward(&net->block[i], x);
    logits = tw_linear_forward(&net->head, x);
    if (labels && !tw_batch_set(out, "loss", tw_cross_entropy(logits, labels, 0))) return false;
    return tw_batch_set(out, "logits", logits);
}

static tw_model *net_create(tw_context *tw, spiral_net *net) {
    tw_model *model = tw_model_create(tw, "SpiralNet");
    int i;
    tw_set_initializer_range(model, 0.3f);
    tw_linear_init(model, &net->in, "in", 2, WIDTH, true);
    for (i = 0; i < BLOCKS; i++) mlp_init(model, &net->block[i], i);
    tw_linear_init(model, &net->head, "head", WIDTH, 2, true);
    tw_set_forward(model, net_forward, net);
    return model;
}

/* ---- the data: point i of the one arm, and its mirror image on the other ---- */

static void spirals(float points[POINTS][2], int32_t labels[POINTS]) {
    int i;
    for (i = 0; i < POINTS; i++) {
        float turn = 0.5f + 10.0f * (float)(i / 2) / (POINTS / 2), radius = turn / 10.5f, side = i % 2 ? -1.0f : 1.0f;
        points[i][0] = side * radius * cosf(turn);
        points[i][1] = side * radius * sinf(turn);
        labels[i] = i % 2;
    }
}

/* The plane from -1.1 to 1.1, 60 columns by 24 rows: '#' where the model says 1, '.' where it says 0. */
static void paint(tw_context *tw, tw_model *model) {
    enum { COLUMNS = 60, ROWS = 24 };
    static float grid[ROWS * COLUMNS][2];
    tw_batch batch = { 0 };
    tw_outputs out = { 0 };
    const int32_t *side;
    int i;
    for (i = 0; i < ROWS * COLUMNS; i++) {
        grid[i][0] = -1.1f + 2.2f * (float)(i % COLUMNS) / (COLUMNS - 1);
        grid[i][1] = 1.1f - 2.2f * (float)(i / COLUMNS) / (ROWS - 1);
    }
    tw_batch_set(&batch, "points", tw_tensor_from(tw, tw_shape2(ROWS * COLUMNS, 2), &grid[0][0]));
    if (!tw_forward_only(model, &batch, &out, NULL)) return;
    side = tw_data_i32(tw_argmax(tw_batch_get(&out, "logits"), -1));
    for (i = 0; side && i < ROWS * COLUMNS; i++) printf("%c%s", side[i] ? '#' : '.', i % COLUMNS == COLUMNS - 1 ? "\n" : "");
    tw_end_step(tw);
}

int main(void) {
    static float points[POINTS][2];
    static int32_t labels[POINTS];
    spiral_net net;
    tw_context *tw = tw_create(NULL);
    tw_model *model = net_create(tw, &net);
    int step, failed;

    spirals(points, labels);
    printf("%d parameters\n", (int)tw_num_parameters(model, true));
    tw_set_optimizer(model, "adamw", "{\"lr\":1e-2,\"weight_decay\":0.01}");
    tw_set_lr_scheduler(model, "cosine", "{\"warmup_steps\":20,\"max_steps\":150}");
    tw_add_metric(model, "accuracy", TW_TRAINING);
    for (step = 1; step <= STEPS && !tw_failed(tw); step++) {
        tw_batch batch = { 0 };
        float loss;
        tw_batch_set(&batch, "points", tw_tensor_from(tw, tw_shape2(POINTS, 2), &points[0][0]));
        tw_batch_set(&batch, "labels", tw_ids(tw, tw_shape1(POINTS), labels));
        loss = tw_forward_backward(model, &batch, NULL);        /* forward, loss, gradients */
        tw_clip_grad_and_step(model, 1.0f, 2, NULL);            /* clip, update, zero the gradients, next learning rate */
        if (step % 25 == 0)
            printf("step %3d   loss %.4f   accuracy %.1f%%\n", step, (double)loss, 100 * tw_calculate_metric(model, "accuracy", TW_TRAINING));
        tw_end_step(tw);
    }
    paint(tw, model);
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    return failed;
}
