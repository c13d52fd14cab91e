/* Training against PyTorch: twenty steps of every optimizer with its losses, rates and norms; schedulers; resuming;
   the same bits for any number of threads; no allocation after the first step; plans that come true. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle_blas.h"
#include "twinkle.h"
#include "golden.h"

/* -- the allocator counts, so that leaks show ---------------------------------------------------------- */
static long live_blocks;
static long fail_at;                                        /* the n-th allocation from now fails; 0: none does */
static void *counting_alloc(void *user, size_t bytes) {
    void *p;
    (void)user;
    if (fail_at && --fail_at == 0) return NULL;
    p = malloc(bytes);
    if (p) live_blocks++;
    return p;
}
static void counting_free(void *user, void *pointer, size_t bytes) { (void)user; (void)bytes; if (pointer) { live_blocks--; free(pointer); } }
static tw_context *counted_context(int threads) {
    tw_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.alloc.alloc = counting_alloc;
    desc.alloc.free = counting_free;
    desc.threads = threads;
    return tw_create(&desc);
}

static void set_up(tw_model *model, const tw_json *config) {
    char text[512];
    const char *optim = tw_json_string(tw_json_get(config, "optim"), "adamw");
    const char *args = tw_json_string(tw_json_get(config, "optim_args"), "");
    snprintf(text, sizeof text, "{\"lr\":%.9g,\"weight_decay\":%.9g,\"betas\":[%.9g,%.9g],\"eps\":%.9g,\"momentum\":%s}",
             tw_json_number(tw_json_get(config, "learning_rate"), 5e-5), tw_json_number(tw_json_get(config, "weight_decay"), 0),
             tw_json_number(tw_json_get(config, "adam_beta1"), 0.9), tw_json_number(tw_json_get(config, "adam_beta2"), 0.999),
             tw_json_number(tw_json_get(config, "adam_epsilon"), strcmp(optim, "adafactor") == 0 ? 1e-30 : 1e-8), strncmp(args, "momentum=", 9) == 0 ? args + 9 : "0");
    tw_set_optimizer(model, optim, text);
    snprintf(text, sizeof text, "{\"warmup_steps\":%d,\"max_steps\":%d}", (int)tw_json_int(tw_json_get(config, "warmup_steps"), 0), (int)tw_json_int(tw_json_get(config, "max_steps"), 20));
    tw_set_lr_scheduler(model, tw_json_string(tw_json_get(config, "lr_scheduler_type"), "linear"), text);
    snprintf(text, sizeof text, "{\"label_smoothing\":%.9g}", tw_json_number(tw_json_get(config, "label_smoothing_factor"), 0));
    tw_set_loss(model, "model", text);
    tw_set_dropout(model, 0);
}

static double worst_loss;
static void train_case(const char *name) {
    char path[512];
    tw_context *tw = counted_context(2);
    tw_json *golden;
    const tw_json *config;
    tw_model *model;
    tw_dataset *data;
    tw_dataset_desc how;
    tw_batch batch;
    tw_call call;
    double max_norm, loss = 0;
    int step, micro;
    snprintf(path, sizeof path, GOLDENS "train/%s.json", name);
    golden = tw_json_load(tw, path);
    config = tw_json_get(golden, "config");
    snprintf(path, sizeof path, GOLDENS "train/%s", tw_json_string(tw_json_get(config, "model"), ""));
    model = tw_from_pretrained(tw, path);
    set_up(model, config);
    memset(&how, 0, sizeof how);
    memset(&call, 0, sizeof call);
    call.gradient_accumulation_steps = (int)tw_json_int(tw_json_get(config, "gradient_accumulation_steps"), 1);
    how.batch_size = tw_json_int(tw_json_get(config, "per_device_train_batch_size"), 8);
    how.max_steps = 20 * call.gradient_accumulation_steps;
    snprintf(path, sizeof path, GOLDENS "train/%s", tw_json_string(tw_json_get(config, "train_file"), ""));
    data = tw_dataset_from_file(model, path, &how);
    max_norm = tw_json_number(tw_json_get(config, "max_grad_norm"), 1);
    for (step = 0; step < 20 && !tw_failed(tw); step++) {
        double want = tw_json_number(tw_json_at(tw_json_get(golden, "losses"), step), -1), rate = tw_json_number(tw_json_at(tw_json_get(golden, "rates"), step), -1);
        double norm, want_norm = tw_json_number(tw_json_at(tw_json_get(golden, "grad_norms"), step), -1);
        CHECK(fabs(tw_learning_rate(model) - rate) <= 1e-9 + 1e-6 * rate, "%s: step %d has rate %.9g, not %.9g", name, step, tw_learning_rate(model), rate);
        for (loss = 0, micro = 0; micro < call.gradient_accumulation_steps && tw_next_batch(data, &batch); micro++)
            loss += (double)tw_forward_backward(model, &batch, &call) / call.gradient_accumulation_steps;
        norm = (double)tw_clip_grad_and_step(model, (float)max_norm, 2, &call);
        CHECK(fabs(loss - want) <= 1e-4, "%s: step %d has loss %.7f, not %.7f", name, step, loss, want);
        CHECK(fabs(norm - want_norm) <= 1e-3 * want_norm, "%s: step %d has gradient norm %.7f, not %.7f", name, step, norm, want_norm);
        if (fabs(loss - want) > worst_loss) worst_loss = fabs(loss - want);
    }
    CHECK(!tw_failed(tw) && step == 20, "%s: %s", name, tw_error(tw));
    {
        const tw_json *norms = tw_json_get(golden, "parameter_norms");
        int64_t i, k;
        for (i = 0; i < tw_json_count(norms); i++) {
            tw_tensor *p = tw_parameter_named(model, tw_json_key(norms, i));
            double sum = 0, want = tw_json_number(tw_json_at(norms, i), -1);
            /* a constant on all keys moves no probability: in exact arithmetic that third of the gradient is 0, and what
               stands there is rounding, which Adam brings to full size */
            if (strstr(tw_json_key(norms, i), "c_attn.bias")) continue;
            for (k = 0; k < tw_count(p); k++) sum += (double)tw_data(p)[k] * (double)tw_data(p)[k];
            CHECK(fabs(sqrt(sum) - want) <= 2e-4 * want, "%s: %s has norm %.7f at the end, not %.7f", name, tw_json_key(norms, i), sqrt(sum), want);
        }
    }
    tw_destroy(tw);
    CHECK(live_blocks == 0, "%s: %ld blocks are leaked", name, live_blocks);
    live_blocks = 0;
}

/* A linear layer in bf16.  The three products' definition: operands rounded to bf16, sums here in double; ours are within what f32 sums can
   lose.  torch.autocast's results are these rounded to bf16 once more, 2^-8 of themselves at most. */
static double bf16_number(float x) {
    const twb_cpu cpu = twb_cpu_default();
    uint16_t half;
    twb_convert(&cpu, 1, &x, TWB_F32, &half, TWB_BF16);
    twb_convert(&cpu, 1, &half, TWB_BF16, &x, TWB_F32);
    return (double)x;
}
static void bf16_product(const char *name, int m, int n, int k, const float *a, int a_row, int a_step, const float *b, int b_row, int b_step, const float *torch,
                         const float *got, int got_row, int got_step, double *worst, double *worst_torch) {
    int i, j, l;
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++) {
            double sum = 0, magnitude = 0, off, off_torch;
            for (l = 0; l < k; l++) {
                double term = bf16_number(a[i * a_row + l * a_step]) * bf16_number(b[l * b_row + j * b_step]);
                sum += term;
                magnitude += fabs(term);
            }
            off = fabs((double)got[i * got_row + j * got_step] - sum);
            off_torch = fabs((double)torch[i * n + j] - sum);
            CHECK(off <= (k + 2) * ldexp(1, -24) * magnitude, "bf16 linear: %s[%d,%d] is %g, not %g", name, i, j, (double)got[i * got_row + j * got_step], sum);
            CHECK(off_torch <= ldexp(fabs(sum), -8) + (k + 2) * ldexp(1, -24) * magnitude, "bf16 linear: torch's %s[%d,%d] is %g, not %g rounded", name, i, j, (double)torch[i * n + j], sum);
            *worst = fmax(*worst, off / magnitude);
            *worst_torch = fmax(*worst_torch, off_torch / magnitude);
        }
}
static void bf16_linear_case(void) {
    enum { ROWS = 10, IN = 33, OUT = 21 };
    tw_context *tw = counted_context(2);
    tw_weights *file = tw_open_weights(tw, GOLDENS "bf16_linear.safetensors");
    static const char *const names[] = { "x", "weight", "dy", "y", "dx", "dweight" };
    const float *golden[6] = { NULL };
    double worst = 0, worst_torch = 0;
    int i, in_out, o;
    for (i = 0; i < 6; i++) { const tw_weight *w = tw_weights_find(file, names[i]); golden[i] = w ? (const float *)w->data : NULL; CHECK(w != NULL, "%s", tw_error(tw)); }
    for (in_out = 0; in_out < 2 && !tw_failed(tw); in_out++) {
        tw_tensor *x = tw_parameter(tw, "x", tw_shape3(2, 5, IN)), *w = tw_parameter(tw, "w", in_out ? tw_shape2(IN, OUT) : tw_shape2(OUT, IN)), *y;
        const int row = in_out ? 1 : IN, step = in_out ? OUT : 1;                      /* of the weight, as out x in */
        float *weight = tw_data(w);
        memcpy(tw_data(x), golden[0], ROWS * IN * sizeof(float));
        for (o = 0; o < OUT; o++) for (i = 0; i < IN; i++) weight[o * row + i * step] = golden[1][o * IN + i];
        tw_bf16(tw, true);
        y = tw_linear_op(x, w, NULL, in_out, TW_ACT_NONE, NULL);
        tw_bf16(tw, false);                                 /* what the forward pass was done in counts */
        tw_backward(tw_sum(tw_mul(y, tw_tensor_from(tw, tw_shape3(2, 5, OUT), golden[2]))));
        CHECK(!tw_failed(tw), "%s", tw_error(tw));
        if (tw_failed(tw)) break;
        bf16_product("y", ROWS, OUT, IN, golden[0], IN, 1, golden[1], 1, IN, golden[3], tw_data(y), OUT, 1, &worst, &worst_torch);
        bf16_product("dx", ROWS, IN, OUT, golden[2], OUT, 1, golden[1], IN, 1, golden[4], tw_data(tw_grad(x)), IN, 1, &worst, &worst_torch);
        bf16_product("dweight", OUT, IN, ROWS, golden[2], 1, OUT, golden[0], IN, 1, golden[5], tw_data(tw_grad(w)), row, step, &worst, &worst_torch);
        tw_end_step(tw);
    }
    printf("bf16: a linear layer's products and gradients are off by %.2g of their terms at most, torch.autocast's by %.2g\n", worst, worst_torch);
    tw_destroy(tw);
    CHECK(live_blocks == 0, "bf16 linear: %ld blocks are leaked", live_blocks);
    live_blocks = 0;
}

/* Training in bf16 against torch.autocast: its losses, step by step, are as close to f32 training's as torch's are. */
static void bf16_case(void) {
    tw_context *tw = counted_context(2);
    tw_json *golden = tw_json_load(tw, GOLDENS "train/bf16.json");
    const tw_json *config = tw_json_get(golden, "config");
    tw_model *model = tw_from_pretrained(tw, GOLDENS "train/model");
    tw_dataset_desc how;
    tw_dataset *data;
    tw_batch batch;
    double off = 0, off_torch = 0, worst = 0;
    int step, steps = (int)tw_json_int(tw_json_get(config, "max_steps"), 40);
    set_up(model, config);
    memset(&how, 0, sizeof how);
    how.batch_size = tw_json_int(tw_json_get(config, "per_device_train_batch_size"), 2);
    how.max_steps = steps;
    data = tw_dataset_from_file(model, GOLDENS "train/even.safetensors", &how);
    tw_bf16(tw, true);
    for (step = 0; step < steps && tw_next_batch(data, &batch); step++) {
        double torch = tw_json_number(tw_json_at(tw_json_get(golden, "losses"), step), -1), f32 = tw_json_number(tw_json_at(tw_json_get(golden, "f32_losses"), step), -1);
        double loss = (double)tw_forward_backward(model, &batch, NULL);
        tw_clip_grad_and_step(model, 1, 2, NULL);
        worst = fmax(worst, fabs(loss - torch));
        off += fabs(loss - f32) / steps;
        off_torch += fabs(torch - f32) / steps;
    }
    CHECK(!tw_failed(tw) && step == steps, "bf16: %s", tw_error(tw));
    CHECK(off > 0 && off <= 1.2 * off_torch, "bf16: off f32's losses by %g on average, torch by %g", off, off_torch);
    CHECK(worst <= 0.01, "bf16: a loss is off torch's by %g", worst);
    printf("bf16: off f32's losses by %.2g on average, torch.autocast by %.2g; off torch's by %.2g at most\n", off, off_torch, worst);
    tw_destroy(tw);
    CHECK(live_blocks == 0, "bf16: %ld blocks are leaked", live_blocks);
    live_blocks = 0;
}

static void scheduler_cases(void) {
    tw_context *tw = tw_create(NULL);
    tw_json *golden = tw_json_load(tw, GOLDENS "schedulers.json");
    int64_t i, k;
    CHECK(tw_json_count(golden) > 5, "schedulers.json: %s", tw_error(tw));
    for (i = 0; i < tw_json_count(golden); i++) {
        const tw_json *c = tw_json_at(golden, i), *rates = tw_json_get(c, "rates");
        tw_scheduler s;
        const tw_json *extra = tw_json_get(c, "kwargs");
        tw_json *options = tw_json_object(tw);
        char text[256];
        const char *name = tw_json_string(tw_json_get(c, "lr_scheduler_type"), "");
        double lr = tw_json_number(tw_json_get(c, "learning_rate"), 1);
        for (k = 0; k < tw_json_count(extra); k++) tw_json_set_copy(options, tw_json_key(extra, k), tw_json_at(extra, k));
        tw_json_set_copy(options, "warmup_steps", tw_json_get(c, "warmup_steps"));
        tw_json_set_copy(options, "max_steps", tw_json_get(c, "max_steps"));
        tw_json_write(options, 0, text, sizeof text);
        CHECK(tw_scheduler_init(tw, &s, name, text, lr), "%s", tw_error(tw));
        for (k = 0; k < tw_json_count(rates); k++) {
            double want = tw_json_number(tw_json_at(rates, k), -1), got = lr * tw_scheduler_factor(&s, k);
            CHECK(fabs(got - want) <= 1e-9 * lr, "%s: step %d has rate %.12g, not %.12g", name, (int)k, got, want);
        }
    }
    tw_destroy(tw);
}

/* Warm-up to the last step: the rate is the full one there, and no 0/0. */
static void scheduler_ends(void) {
    tw_context *tw = counted_context(1);
    tw_scheduler s;
    long before = live_blocks;
    CHECK(tw_scheduler_init(tw, &s, "polynomial", "{\"warmup_steps\":5,\"max_steps\":5}", 1e-3), "%s", tw_error(tw));
    CHECK(fabs(tw_scheduler_factor(&s, 5) - 1) < 1e-12, "the factor is %g", tw_scheduler_factor(&s, 5));
    CHECK(!tw_scheduler_init(tw, &s, NULL, "{}", 1e-3) && tw_error_code(tw) == TW_E_ARGUMENT && live_blocks == before, "a scheduler without a name: %s", tw_error(tw));
    tw_destroy(tw);
}

/* -- a small model of our own: the same bits however it is run ------------------------------------------------- */
static const char *const small = "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":36,\"n_head\":3,\"n_positions\":24,\"vocab_size\":97}";
static tw_dataset *some_data(tw_context *tw, int64_t steps) {
    static int32_t ids[4000];
    tw_dataset_desc how;
    int i;
    for (i = 0; i < 4000; i++) ids[i] = (int32_t)((i * 31 + (i / 7) * 13) % 97);
    memset(&how, 0, sizeof how);
    how.batch_size = 3;
    how.block_size = 23;
    how.max_steps = steps;
    how.shuffle = true;
    how.seed = 5;
    return tw_dataset_from_ids(tw, ids, 4000, &how);
}
static tw_model *small_model(tw_context *tw) {
    tw_model *m = tw_from_config(tw, small);
    tw_set_optimizer(m, "adamw", "{\"lr\":1e-3,\"weight_decay\":0.1}");
    tw_set_lr_scheduler(m, "cosine", "{\"warmup_steps\":2,\"max_steps\":10}");
    return m;
}
static uint64_t parameter_bits(tw_model *m) {
    uint64_t hash = 1469598103934665603u;
    int64_t i, k;
    for (i = 0; i < tw_parameter_count(m); i++) {
        tw_tensor *p = tw_parameter_at(m, i);
        for (k = 0; k < tw_count(p); k++) { uint32_t u; memcpy(&u, tw_data(p) + k, 4); hash = (hash ^ u) * 1099511628211u; }
    }
    return hash;
}
static void train_steps(tw_model *m, tw_dataset *data, int steps) {
    tw_batch batch;
    int i;
    for (i = 0; i < steps && tw_next_batch(data, &batch); i++) {
        tw_forward_backward(m, &batch, NULL);
        tw_clip_grad_and_step(m, 1, 2, NULL);
    }
}
static uint64_t whole_run(int threads, bool checkpointing) {
    tw_context *tw = counted_context(threads);
    tw_model *m = small_model(tw);
    uint64_t bits;
    tw_gradient_checkpointing(m, checkpointing);
    train_steps(m, some_data(tw, 10), 10);
    bits = parameter_bits(m);
    CHECK(!tw_failed(tw) && tw_global_step(m) == 10, "%s", tw_error(tw));
    tw_destroy(tw);
    return bits;
}

/* Stopped after four steps, saved, opened by a new program: the same bits as never stopped, dropout and shuffling included. */
static void resume_case(uint64_t bits) {
    tw_context *tw = tw_create(NULL);
    tw_model *m = small_model(tw);
    tw_dataset *data = some_data(tw, 10);
    train_steps(m, data, 4);
    CHECK(tw_save(m, "half", "out.tmp"), "%s", tw_error(tw));
    tw_destroy(tw);
    tw = tw_create(NULL);
    m = tw_from_pretrained(tw, "out.tmp/half");
    tw_set_optimizer(m, "adamw", "{\"lr\":1e-3,\"weight_decay\":0.1}");
    tw_set_lr_scheduler(m, "cosine", "{\"warmup_steps\":2,\"max_steps\":10}");
    CHECK(tw_resume_from_checkpoint(m, "out.tmp/half") && tw_global_step(m) == 4, "%s", tw_error(tw));
    data = some_data(tw, 10);
    tw_dataset_seek(data, 4);
    train_steps(m, data, 6);
    CHECK(parameter_bits(m) == bits, "a resumed run ends with other bits than one never stopped (%s)", tw_error(tw));
    tw_destroy(tw);
}

/* After the first step nothing calls the allocator, and the plan knew what would be taken. */
static void memory_case(bool checkpointing) {
    tw_context *tw = counted_context(2);
    tw_model *m = small_model(tw);
    tw_dataset *data = some_data(tw, 10);
    tw_memory before, after;
    tw_plan_desc how;
    tw_plan plan;
    tw_json *config = tw_json_parse(tw, small, strlen(small));
    tw_gradient_checkpointing(m, checkpointing);
    train_steps(m, data, 1);
    before = tw_memory_use(tw);
    train_steps(m, data, 8);
    after = tw_memory_use(tw);
    CHECK(after.allocations == before.allocations, "%ld allocations after the first step", (long)(after.allocations - before.allocations));
    memset(&how, 0, sizeof how);
    how.batch = 3; how.sequence = 23; how.training = true; how.gradient_checkpointing = checkpointing;
    plan = tw_plan_config(tw, config, &how);
    CHECK(plan.parameters == tw_num_parameters(m, false), "the plan counts %ld parameters", (long)plan.parameters);
    CHECK(plan.activations_bytes >= after.step_bytes / 50 * 49 && plan.activations_bytes <= after.step_bytes / 50 * 51, "the plan says %ld bytes a step, it took %ld", (long)plan.activations_bytes, (long)after.step_bytes);
    CHECK(plan.weights_bytes >= (size_t)plan.parameters * 4 && plan.gradients_bytes == plan.weights_bytes && plan.optimizer_bytes >= 2 * (size_t)plan.parameters * 4, "the plan's parts do not add up");
    tw_destroy(tw);
}

/* Parameters without numbers are trained, saved and resumed with by every optimizer. */
static void empty_case(void) {
    static const char *const names[] = { "adamw", "adam", "sgd", "lion", "adafactor" };
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        tw_context *tw = counted_context(1);
        tw_model *m = tw_model_create(tw, "m");
        tw_tensor *p = tw_add_parameter(m, "a", tw_shape2(3, 4)), *q = tw_add_parameter(m, "b", tw_shape2(0, 4)), *r = tw_add_parameter(m, "c", tw_shape2(4, 0));
        tw_set_optimizer(m, names[i], NULL);
        CHECK(tw_backward(tw_add(tw_sum(p), tw_add(tw_sum(q), tw_sum(r)))) && tw_step(m, NULL), "%s: %s", names[i], tw_error(tw));
        CHECK(tw_save_checkpoint(m, "out.tmp/empty", true) && tw_resume_from_checkpoint(m, "out.tmp/empty"), "%s: %s", names[i], tw_error(tw));
        tw_destroy(tw);
    }
}

/* What cannot be done is said in a sentence. */
static void refusals_case(void) {
    tw_context *tw = counted_context(1);
    tw_model *m = small_model(tw);
    tw_dataset *data = some_data(tw, 0);
    tw_batch batch;
    CHECK(!tw_dataset_from_ids(tw, NULL, 10, NULL) && tw_error_code(tw) == TW_E_ARGUMENT, "no ids: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_dataset_seek(data, -1) && tw_error_code(tw) == TW_E_RANGE, "batch -1: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_dataset_seek(data, INT64_MAX) && tw_error_code(tw) == TW_E_RANGE && tw_dataset_position(data) == 0, "batch 2^63: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(tw_dataset_seek(data, INT64_MAX / 3 - 1) && !tw_next_batch(data, &batch) && !tw_failed(tw), "behind the end: %s", tw_error(tw));
    tw_progress(data, "loss", 1);
    CHECK(!tw_resume_from_checkpoint(m, NULL) && tw_error_code(tw) == TW_E_ARGUMENT, "no folder: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_resume_from_checkpoint(m, "") && strstr(tw_error(tw), "path is empty"), "an empty path: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_make_folders(tw, "") && tw_error_code(tw) == TW_E_ARGUMENT, "an empty folder: %s", tw_error(tw));
    tw_clear_error(tw);
    fail_at = 1;                                            /* a report without memory, and the next one with it */
    tw_get_train_configs(m);
    fail_at = 0;
    CHECK(tw_error_code(tw) == TW_E_MEMORY, "a report without memory: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(strstr(tw_get_train_configs(m), "Learning rate"), "the next report is \"%s\"", tw_get_train_configs(m));
    tw_destroy(tw);
}

/* Every allocation fails in turn: a clean error each time, and nothing is leaked. */
static void failing_case(void) {
    long n, first_good = 0;
    for (n = 1; n < 4000 && !first_good; n++) {
        tw_context *tw;
        bool worked = false;
        fail_at = 0;
        live_blocks = 0;
        fail_at = n;
        tw = counted_context(1);
        if (tw) {
            tw_model *m = tw_from_pretrained(tw, GOLDENS "gpt2/default");
            tw_set_optimizer(m, "adamw", NULL);
            if (m) {
                tw_dataset *data = some_data(tw, 2);
                tw_batch batch;
                if (tw_next_batch(data, &batch)) {
                    tw_tensor *ids = tw_batch_get(&batch, "input_ids");
                    int64_t i;
                    for (i = 0; i < tw_count(ids); i++) tw_data_i32(ids)[i] %= 50;
                    tw_batch_set(&batch, "input_ids", tw_slice(ids, 1, 0, 9) ? tw_ids(tw, tw_shape2(3, 9), NULL) : NULL);
                    tw_batch_set(&batch, "labels", tw_ids(tw, tw_shape2(3, 9), NULL));
                    tw_forward_backward(m, &batch, NULL);
                    tw_clip_grad_and_step(m, 1, 2, NULL);
                    worked = tw_save(m, "failing", "out.tmp");
                }
            }
            worked = worked && !tw_failed(tw);
            CHECK(worked || tw_error_code(tw) == TW_E_MEMORY, "allocation %ld fails: %s", n, tw_error(tw));
            tw_destroy(tw);
        }
        if (worked && fail_at > 0) first_good = n;
        CHECK(live_blocks == 0, "allocation %ld fails: %ld blocks are leaked", n, live_blocks);
    }
    fail_at = 0;
    CHECK(first_good > 50, "the sweep ended at %ld", first_good);
    printf("%ld allocations over load, step and save, each made to fail\n", first_good);
}

/* What the backward pass computes again (norms, activations) is what the forward pass had: the gradients of a step of the
   trainable model, which forgets them, beside those of a plain pass, which keeps everything. */
static const char *const forgetful[] = {
    "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":3,\"n_embd\":36,\"n_head\":3,\"n_positions\":64,\"vocab_size\":131}",
    "{\"model_type\":\"bert\",\"architectures\":[\"BertForMaskedLM\"],\"num_hidden_layers\":3,\"hidden_size\":36,\"num_attention_heads\":3,\"intermediate_size\":70,"
        "\"max_position_embeddings\":64,\"vocab_size\":131}",
    "{\"model_type\":\"t5\",\"architectures\":[\"T5ForConditionalGeneration\"],\"num_layers\":2,\"num_decoder_layers\":3,\"d_model\":32,\"d_kv\":8,\"num_heads\":4,\"d_ff\":70,"
        "\"vocab_size\":131,\"decoder_start_token_id\":0,\"pad_token_id\":0,\"feed_forward_proj\":\"gated-gelu\",\"tie_word_embeddings\":false}",
    "{\"model_type\":\"t5\",\"architectures\":[\"T5ForConditionalGeneration\"],\"num_layers\":2,\"num_decoder_layers\":2,\"d_model\":32,\"d_kv\":8,\"num_heads\":4,\"d_ff\":70,"
        "\"vocab_size\":131,\"decoder_start_token_id\":0,\"pad_token_id\":0}",
    "{\"model_type\":\"glm\",\"architectures\":[\"GlmForCausalLM\"],\"num_hidden_layers\":3,\"hidden_size\":32,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":8,"
        "\"intermediate_size\":70,\"max_position_embeddings\":64,\"vocab_size\":131}"
};
static double worst_forgotten;
static void forgetting_case(const char *config) {
    tw_context *one = tw_create(NULL), *two = tw_create(NULL);
    tw_model *forgets = tw_from_config_with(one, config, NULL), *keeps = tw_from_config_with(two, config, NULL);
    tw_batch batch[2];
    tw_outputs out;
    int32_t ids[34];
    int64_t p, i;
    int side;
    CHECK(forgets && keeps, "%s%s", tw_error(one), tw_error(two));
    if (!forgets || !keeps) return;
    for (i = 0; i < 34; i++) ids[i] = (int32_t)((i * 29 + 7) % 131);
    for (side = 0; side < 2; side++) {
        tw_context *tw = side ? two : one;
        memset(&batch[side], 0, sizeof batch[side]);
        tw_batch_set(&batch[side], "input_ids", tw_ids(tw, tw_shape2(2, 17), ids));
        tw_batch_set(&batch[side], "labels", tw_ids(tw, tw_shape2(2, 17), ids));
    }
    tw_set_optimizer(forgets, "adamw", NULL);
    tw_set_dropout(forgets, 0);
    tw_set_dropout(keeps, 0);
    tw_forward_backward(forgets, &batch[0], NULL);
    memset(&out, 0, sizeof out);
    CHECK(tw_model_forward(keeps, &batch[1], NULL, &out) && tw_backward(tw_batch_get(&out, "loss")), "%s: %s", tw_class_of(keeps), tw_error(two));
    CHECK(!tw_failed(one), "%s: %s", tw_class_of(forgets), tw_error(one));
    for (p = 0; p < tw_parameter_count(forgets); p++) {
        tw_tensor *g = tw_grad(tw_parameter_at(forgets, p)), *h = tw_grad(tw_parameter_at(keeps, p));
        double off = 0, most = 1e-12;
        CHECK(!g == !h, "%s: one of the gradients of %s is missing", tw_class_of(keeps), tw_name_of(tw_parameter_at(keeps, p)));
        for (i = 0; g && h && i < tw_count(g); i++) {
            double x = (double)tw_data(g)[i], y = (double)tw_data(h)[i];
            if (!(fabs(x - y) <= off)) off = fabs(x - y);
            if (fabs(y) > most) most = fabs(y);
        }
        CHECK(off / most < 1e-5, "%s: the gradient of %s is off by %g", tw_class_of(keeps), tw_name_of(tw_parameter_at(keeps, p)), off / most);
        if (off / most > worst_forgotten) worst_forgotten = off / most;
    }
    tw_destroy(one);
    tw_destroy(two);
}

/* An optimizer that is refused, or for which there is no memory, leaves the old one as it was. */
static void refused_optimizer_case(void) {
    uint64_t bits[2];
    int refused;
    long at;
    for (refused = 0; refused < 2; refused++) {
        tw_context *tw = counted_context(1);
        tw_model *m = small_model(tw);
        tw_dataset *data = some_data(tw, 10);
        CHECK(tw_set_optimizer(m, "lion", NULL), "%s", tw_error(tw));
        train_steps(m, data, 1);
        if (refused) {
            CHECK(!tw_set_optimizer(m, "adamw", "{\"lr\":-1}") && tw_error_code(tw) == TW_E_RANGE, "%s", tw_error(tw));
            tw_clear_error(tw);
            for (at = 1; at < 100; at++) {
                fail_at = at;
                if (tw_set_optimizer(m, "lion", "{\"lr\":\"much\"}")) break;
                fail_at = 0;
                CHECK(tw_failed(tw), "no error");
                if (tw_error_code(tw) == TW_E_RANGE) at = 100;
                tw_clear_error(tw);
            }
        }
        train_steps(m, data, 2);
        CHECK(!tw_failed(tw) && tw_global_step(m) == 3, "%s, step %ld", tw_error(tw), (long)tw_global_step(m));
        bits[refused] = parameter_bits(m);
        tw_destroy(tw);
    }
    CHECK(bits[0] == bits[1], "a refused optimizer changed the run");
}

/* Parameters that come after the optimizer are trained too, and weights that are no longer f32 are refused before any changes. */
static tw_linear first_layer, late_layer;
static bool late;
static bool two_layers(tw_model *m, void *user, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_tensor *x = tw_linear_forward(&first_layer, tw_batch_get(in, "x"));
    (void)m; (void)user; (void)pass;
    if (late) x = tw_linear_forward(&late_layer, x);
    return tw_batch_set(out, "loss", tw_mean(tw_square(x)));
}
static void late_parameter_case(void) {
    tw_context *tw = counted_context(1);
    tw_model *m = tw_model_create(tw, "mine");
    char name[24];
    tw_batch batch;
    float before[16], after[16];
    int i;
    late = false;
    tw_linear_init(m, &first_layer, "a", 4, 4, true);
    tw_set_forward(m, two_layers, NULL);
    CHECK(tw_set_optimizer(m, "adamw", NULL), "%s", tw_error(tw));
    for (i = 0; i < 40; i++) { snprintf(name, sizeof name, "b%d", i); tw_linear_init(m, &late_layer, name, 4, 4, true); }
    late = true;
    tw_read(late_layer.weight, before, 16);
    memset(&batch, 0, sizeof batch);
    tw_batch_set(&batch, "x", tw_full(tw, tw_shape2(3, 4), 1));
    tw_forward_backward(m, &batch, NULL);
    tw_clip_grad_and_step(m, 1, 2, NULL);
    tw_read(late_layer.weight, after, 16);
    CHECK(!tw_failed(tw) && memcmp(before, after, sizeof before) != 0, "the late layer was not trained: %s", tw_error(tw));
    CHECK(tw_save_checkpoint(m, "out.tmp/late", true), "%s", tw_error(tw));
    tw_destroy(tw);
}
static void gradient_of_another_type_case(tw_dtype dtype) {
    tw_context *tw = counted_context(1);
    tw_model *m = small_model(tw);
    tw_dataset *data = some_data(tw, 10);
    tw_batch batch;
    tw_next_batch(data, &batch);
    tw_forward_backward(m, &batch, NULL);
    CHECK(tw_to(m, dtype), "%s", tw_error(tw));
    tw_clip_grad_and_step(m, 1, 2, NULL);
    CHECK(tw_error_code(tw) == TW_E_UNSUPPORTED && strstr(tw_error(tw), tw_dtype_name(dtype)) != NULL, "%s: %s", tw_dtype_name(dtype), tw_error(tw));
    tw_clear_error(tw);
    tw_end_step(tw);
    tw_zero_grad(m, NULL);
    CHECK(tw_to(m, TW_F32), "%s", tw_error(tw));
    train_steps(m, data, 1);
    CHECK(!tw_failed(tw) && tw_global_step(m) == 1, "%s", tw_error(tw));
    tw_destroy(tw);
}

/* A checkpoint with a NaN, in the weights or in the optimizer's state, is refused by name and changes nothing. */
static void nan_checkpoint_case(const char *file, const char *what) {
    tw_context *tw = counted_context(1);
    tw_model *m = small_model(tw);
    uint64_t bits;
    char path[64];
    FILE *f;
    train_steps(m, some_data(tw, 10), 2);
    CHECK(tw_save_checkpoint(m, "out.tmp/nan", true), "%s", tw_error(tw));
    m = small_model(tw);
    bits = parameter_bits(m);
    snprintf(path, sizeof path, "out.tmp/nan/%s", file);
    f = fopen(path, "r+b");
    CHECK(f && fseek(f, -4, SEEK_END) == 0 && fwrite("\0\0\xC0\x7F", 1, 4, f) == 4, "%s cannot be spoilt", path);     /* the last number of the last tensor */
    if (f) fclose(f);
    CHECK(!tw_resume_from_checkpoint(m, "out.tmp/nan") && tw_error_code(tw) == TW_E_FORMAT && strstr(tw_error(tw), what) != NULL, "%s", tw_error(tw));
    CHECK((what[0] == 's' || parameter_bits(m) == bits) && tw_global_step(m) == 0, "something was taken over");
    tw_destroy(tw);
}

int main(void) {
    static const char *const names[] = { "adamw_linear", "adamw_no_clip", "adamw_strong_decay", "adam", "sgd", "sgd_momentum", "lion", "adafactor", "accumulation", "accumulation_uneven", "label_smoothing" };
    uint64_t bits;
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) train_case(names[i]);
    bf16_linear_case();
    bf16_case();
    scheduler_cases();
    scheduler_ends();
    bits = whole_run(1, false);
    CHECK(whole_run(2, false) == bits && whole_run(3, false) == bits, "threads change the bits of a run");
    CHECK(whole_run(2, true) == bits, "recomputing blocks changes the bits of a run");
    resume_case(bits);
    memory_case(false);
    memory_case(true);
    empty_case();
    refusals_case();
    failing_case();
    refused_optimizer_case();
    late_parameter_case();
    gradient_of_another_type_case(TW_F16);
    gradient_of_another_type_case(TW_Q8_0);
    nan_checkpoint_case("model.safetensors", "NaN");
    nan_checkpoint_case("optimizer.safetensors", "state.");
    for (i = 0; i < sizeof forgetful / sizeof *forgetful; i++) forgetting_case(forgetful[i]);
    printf("worst loss %.2g, gradient after forgetting %.2g\n", worst_loss, worst_forgotten);
    return check_done();
}
