/* plan.c - ask before allocating.

   The lesson: how much memory a model will take is known before a byte of it is allocated.  The plan
   runs the same forward and backward pass as the real thing, only without its arithmetic, so it cannot
   disagree with it.

       cc -O2 -I.. plan.c -o plan -lm && ./plan [config.json]

   Without an argument it plans the four sizes of GPT-2 (124, 355, 774 and 1558 million parameters). */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>

static const char *const sizes[][2] = {
    { "gpt2",        "{\"model_type\":\"gpt2\",\"n_layer\":12,\"n_embd\":768,\"n_head\":12}" },
    { "gpt2-medium", "{\"model_type\":\"gpt2\",\"n_layer\":24,\"n_embd\":1024,\"n_head\":16}" },
    { "gpt2-large",  "{\"model_type\":\"gpt2\",\"n_layer\":36,\"n_embd\":1280,\"n_head\":20}" },
    { "gpt2-xl",     "{\"model_type\":\"gpt2\",\"n_layer\":48,\"n_embd\":1600,\"n_head\":25}" }
};

static const struct { const char *name; tw_plan_desc how; } uses[] = {
    { "write 128 tokens",     { 1, 512, false, false, 128, TW_F32 } },      /* batch, sequence, training, checkpointing, new tokens, weights */
    { "write, 8-bit weights", { 1, 512, false, false, 128, TW_Q8_0 } },
    { "write, 4-bit weights", { 1, 512, false, false, 128, TW_Q4_0 } },
    { "train 4 x 256",        { 4, 256, true,  false, 0,   TW_F32 } },
    { "train, checkpointing", { 4, 256, true,  true,  0,   TW_F32 } }
};

static double mb(size_t bytes) { return (double)bytes / 1e6; }

static void print_plans(tw_context *tw, const char *name, const tw_json *config) {
    size_t i;
    for (i = 0; i < sizeof uses / sizeof uses[0]; i++) {
        tw_plan_desc how = uses[i].how;
        int64_t positions = tw_json_int(tw_json_get(config, "n_positions"), 1024);
        tw_plan plan;
        if (how.sequence > positions) how.sequence = positions;            /* a smaller model: as much as it takes */
        plan = tw_plan_config(tw, config, &how);
        if (i == 0) printf("%s: %.1f million parameters\n", name, (double)plan.parameters / 1e6);
        printf("  %-22s %8.1f %9.1f %9.1f %11.1f %8.1f %7.1f %9.1f\n", uses[i].name, mb(plan.weights_bytes), mb(plan.gradients_bytes),
               mb(plan.optimizer_bytes), mb(plan.activations_bytes), mb(plan.scratch_bytes), mb(plan.cache_bytes), mb(plan.total_bytes));
    }
}

int main(int argc, char **argv) {
    tw_context *tw = tw_create(NULL);
    size_t i, count = argc > 1 ? 1 : sizeof sizes / sizeof sizes[0];
    int failed;

    printf("megabytes                 weights gradients optimizer activations  scratch   cache     total\n");
    for (i = 0; i < count; i++) {
        tw_json *config = argc > 1 ? tw_json_load(tw, argv[1]) : tw_json_parse(tw, sizes[i][1], SIZE_MAX);
        if (config) print_plans(tw, argc > 1 ? argv[1] : sizes[i][0], config);
        tw_json_free(config);
    }
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    return failed;
}
