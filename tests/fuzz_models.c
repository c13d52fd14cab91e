/* fuzz_models.c - load, then use: a config becomes a model, which runs forward and takes one training step.  An input is a
   config.json, or a config.json, a NUL and the weights' file that comes with it. */
#include "fuzz.h"

/* One forward pass and one step on these inputs; any of it may be refused. */
static void run_model(tw_context *tw, tw_model *m, const tw_batch *batch) {
    tw_outputs out;
    bool done;
    int i;
    int64_t k;
    volatile float sum = 0;
    tw_no_grad(tw, true);
    done = tw_forward_only(m, batch, &out, NULL);
    fuzz_judge(tw, done);
    for (i = 0; done && i < out.count; i++)
        for (k = 0; tw_data(out.tensor[i]) && k < tw_count(out.tensor[i]); k++) sum = sum + tw_data(out.tensor[i])[k];
    tw_clear_error(tw);
    tw_end_step(tw);
}
static void step_model(tw_context *tw, tw_model *m, const tw_batch *batch) {
    tw_no_grad(tw, false);
    tw_forward_backward(m, batch, NULL);
    tw_clip_grad_and_step(m, 1.0f, 2, NULL);
    if (tw_failed(tw)) fuzz_judge(tw, false);
    tw_clear_error(tw);
    tw_end_step(tw);
}

/* Rows of ids below `most`, and what else a model may want. */
static void set_inputs(tw_context *tw, tw_batch *batch, int kind, int32_t most) {
    int32_t ids[16], ones[16];
    int i;
    memset(batch, 0, sizeof *batch);
    for (i = 0; i < 16; i++) { ids[i] = most > 0 ? (int32_t)(i * 7 % most) : i - 3; ones[i] = i % 5 != 4; }
    tw_batch_set(batch, "input_ids", tw_ids(tw, tw_shape2(2, 3), ids));
    if (kind & 1) tw_batch_set(batch, "attention_mask", tw_ids(tw, tw_shape2(2, 3), ones));
    if (kind & 2) tw_batch_set(batch, "decoder_input_ids", tw_ids(tw, tw_shape2(2, 2), ids));
    tw_batch_set(batch, "labels", kind & 4 ? tw_ids(tw, tw_shape1(2), ones) : tw_ids(tw, kind & 2 ? tw_shape2(2, 2) : tw_shape2(2, 3), ids));
}

FUZZER(fuzz_models) {
    const uint8_t *end = size ? (const uint8_t *)memchr(data, 0, size) : NULL;
    size_t length = end ? (size_t)(end - data) : size;
    char *config = (char *)malloc(length + 1);
    counted c;
    tw_context *tw = fuzz_context(&c, (size_t)6 << 20);      /* larger models are right, and slow */
    tw_model *m;
    int kind;
    demand(tw && config, "no memory");
    if (length) memcpy(config, data, length);
    config[length] = 0;
    if (end) {
        tw_memory_file files[2];
        files[0].name = "config.json";
        files[0].data = config;
        files[0].size = length;
        files[1].data = end + 1;
        files[1].size = size - length - 1;
        files[1].name = twi_is_torch(end + 1, files[1].size) ? "pytorch_model.bin" : "model.safetensors";
        m = tw_from_memory(tw, files, 2);
    } else m = tw_from_config(tw, config);
    fuzz_judge(tw, m != NULL);
    tw_clear_error(tw);
    for (kind = 0; m && kind < 7; kind++) {
        tw_batch batch;
        set_inputs(tw, &batch, kind, kind == 6 ? 0 : 3);
        run_model(tw, m, &batch);
        if (kind == 1 || kind == 3 || kind == 4) {
            set_inputs(tw, &batch, kind, 3);
            tw_set_optimizer(m, "adamw", NULL);
            step_model(tw, m, &batch);
        }
        tw_end_step(tw);
    }
    fuzz_end(tw, &c);
    free(config);
}
