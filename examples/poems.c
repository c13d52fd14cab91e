/* poems.c - a small GLM reads Tang poems, and writes one for an author and a title.

   The lesson: filling a blank.  A GLM's context has a mask in it, here behind author and title, and is read in both
   directions; what belongs into the blank is written behind the context, one token after the other.  Each token has two
   positions, that of the blank and that within the answer:

       tokens      [CLS] author title [gMASK] | <|startofpiece|> first second ... last
       positions     0      1     2      3    |         3          3     3        3
       in the blank  0      0     0      0    |         1          2     3        n
       labels        -      -     -      -    |       first      second third ... <|endofpiece|>

       python3 ../tools/real_data.py poems --to build/data/poems
       cc -O3 -fopenmp -I.. poems.c -o poems -lm && ./poems [DATA] [STEPS]

   300 poems are few: it learns lines and rhythm, and little of what they are about.  tools/real_data_torch.py trains the
   same model in PyTorch, to compare. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 400, BATCH = 16, TOKENS = 112, MOST_POEMS = 2000, NO_LABEL = -100 };

/* Poems as the model reads them: rows of TOKENS. */
typedef struct { int32_t ids[TOKENS], position[2][TOKENS], labels[TOKENS], context; } poem;
typedef struct { poem *list; int count; } poems;

static int put(poem *p, int at, int32_t id, int place, int in_blank, int32_t label) {
    if (at >= TOKENS) return at;
    p->ids[at] = id;
    p->position[0][at] = place;
    p->position[1][at] = in_blank;
    p->labels[at] = label;
    return at + 1;
}

/* One line of a .jsonl file: author and title in "source", the poem in "target". */
static void read_poem(tw_tokenizer *tokenizer, const tw_json *line, poem *p) {
    int32_t pad = tw_special_id(tokenizer, "pad"), start = tw_token_id(tokenizer, "<|startofpiece|>"), end = tw_token_id(tokenizer, "<|endofpiece|>");
    const char *source = tw_json_string(tw_json_get(line, "source"), ""), *target = tw_json_string(tw_json_get(line, "target"), "");
    tw_tokenize_desc plain = { .no_special = true };
    tw_encoding e;
    int at = 0, blank, i;
    at = put(p, at, tw_special_id(tokenizer, "cls"), 0, 0, NO_LABEL);
    if (tw_tokenize(tokenizer, source, strlen(source), &plain, &e) < 0) return;
    for (i = 0; i < e.count; i++) at = put(p, at, e.ids[i], at, 0, NO_LABEL);
    blank = at;
    p->context = at = put(p, at, tw_token_id(tokenizer, "[gMASK]"), at, 0, NO_LABEL);
    if (tw_tokenize(tokenizer, target, strlen(target), &plain, &e) < 0) return;
    for (i = 0; i <= e.count; i++) at = put(p, at, i ? e.ids[i - 1] : start, blank, i + 1, i < e.count ? e.ids[i] : end);
    while (at < TOKENS) at = put(p, at, pad, 0, 0, NO_LABEL);
}

static poems read_poems(tw_model *glm, const char *data, const char *name) {
    tw_context *tw = tw_context_of(glm);
    poems all = { (poem *)calloc(MOST_POEMS, sizeof(poem)), 0 };
    char path[512], line[4096];
    FILE *f;
    snprintf(path, sizeof path, "%s/%s", data, name);
    f = fopen(path, "rb");
    if (!f) tw_fail(tw, TW_E_FILE, "poems: the data cannot be read (see tools/real_data.py)");
    while (f && all.list && all.count < MOST_POEMS && !tw_failed(tw) && fgets(line, sizeof line, f)) {
        tw_json *json = tw_json_parse(tw, line, SIZE_MAX);
        read_poem(tw_tokenizer_of(glm), json, &all.list[all.count++]);
        tw_json_free(json);
    }
    if (f) fclose(f);
    return all;
}

/* Rows `first`, first + 1, ... of a list of poems (in the order of `order`, if there is one) as a batch. */
static void fill_batch(tw_context *tw, const poems *all, const int *order, int first, int count, tw_batch *batch) {
    tw_tensor *ids = tw_ids(tw, tw_shape2(count, TOKENS), NULL), *positions = tw_ids(tw, tw_shape3(count, 2, TOKENS), NULL);
    tw_tensor *labels = tw_ids(tw, tw_shape2(count, TOKENS), NULL), *separators = tw_ids(tw, tw_shape1(count), NULL);
    int i;
    memset(batch, 0, sizeof *batch);
    for (i = 0; i < count && separators && ids && positions && labels; i++) {
        const poem *p = &all->list[order ? order[first + i] : first + i];
        memcpy(tw_data_i32(ids) + i * TOKENS, p->ids, sizeof p->ids);
        memcpy(tw_data_i32(positions) + i * 2 * TOKENS, p->position, sizeof p->position);
        memcpy(tw_data_i32(labels) + i * TOKENS, p->labels, sizeof p->labels);
        tw_data_i32(separators)[i] = p->context;                /* who stands before it is seen by all */
    }
    tw_batch_set(batch, "input_ids", ids);
    tw_batch_set(batch, "position_ids", positions);
    tw_batch_set(batch, "attention_mask", separators);
    tw_batch_set(batch, "labels", labels);
}

static void shuffle(int *order, int count) {
    static uint32_t state = 1;
    int i;
    for (i = count - 1; i > 0; i--) {
        int j, swap = order[i];
        state = state * 1664525u + 1013904223u;
        j = (int)((uint64_t)state * (uint64_t)(i + 1) >> 32);
        order[i] = order[j];
        order[j] = swap;
    }
}

static void train(tw_model *glm, const poems *all, int steps) {
    tw_context *tw = tw_context_of(glm);
    int order[MOST_POEMS], batch_size = all->count < BATCH ? all->count : BATCH, at = all->count, step, i;
    char schedule[96];
    tw_batch batch;
    for (i = 0; i < all->count; i++) order[i] = i;
    snprintf(schedule, sizeof schedule, "{\"warmup_steps\":%d,\"max_steps\":%d}", steps / 10, steps);
    tw_set_optimizer(glm, "adamw", "{\"lr\":2e-3,\"weight_decay\":0.01}");
    tw_set_lr_scheduler(glm, "linear", schedule);
    for (step = 1; step <= steps && batch_size && !tw_failed(tw); step++) {
        float loss;
        if (at + batch_size > all->count) { shuffle(order, all->count); at = 0; }
        fill_batch(tw, all, order, at, batch_size, &batch);
        at += batch_size;
        loss = tw_forward_backward(glm, &batch, NULL);
        tw_clip_grad_and_step(glm, 1.0f, 2, NULL);
        if (step % 50 == 0 || step == steps) { printf("step %d: loss %.3f\n", step, (double)loss); fflush(stdout); }
        tw_end_step(tw);
    }
    tw_save(glm, "poems", "out");
}

static void score(tw_model *glm, const poems *held_out) {
    tw_context *tw = tw_context_of(glm);
    tw_batch batch;
    int i;
    tw_add_metric(glm, "loss", TW_EVALUATION);
    for (i = 0; i < held_out->count; i++) {
        fill_batch(tw, held_out, NULL, i, 1, &batch);
        tw_forward_only(glm, &batch, NULL, NULL);
        tw_end_step(tw);
    }
    printf("held out: loss %.3f a character\n", tw_calculate_metric(glm, "loss", TW_EVALUATION));
}

/* Characters as they come, without the blanks that a vocabulary of words would need between them. */
static bool print_lines(const char *text, void *user) {
    (void)user;
    printf("%s%s", text + strspn(text, " "), strstr(text, "。") ? "\n" : "");
    return true;
}

static void write_poems(tw_context *tw) {
    static const char *const titles[] = { "李白《静夜思》", "杜甫《秋夜》", "王维《山中》" };
    tw_model *glm = tw_from_pretrained(tw, "out/poems");
    size_t i;
    for (i = 0; i < sizeof titles / sizeof *titles && !tw_failed(tw); i++) {
        tw_generate_desc how = { .max_new_tokens = 80, .do_sample = true, .temperature = 0.8f, .top_k = 10, .seed = 1 + i, .on_text = print_lines };
        char prompt[256];
        printf("\n%s\n", titles[i]);
        snprintf(prompt, sizeof prompt, "%s[gMASK]", titles[i]);
        tw_predict_text(glm, prompt, &how);
        putchar('\n');
    }
}

int main(int argc, char **argv) {
    const char *data = argc > 1 ? argv[1] : "build/data/poems";
    int steps = argc > 2 ? atoi(argv[2]) : STEPS, failed;
    tw_context *tw = tw_create(NULL);
    tw_load_desc fresh = { .new_weights = true };
    tw_model *glm = tw_from_pretrained_with(tw, data, &fresh);  /* as config.json describes it, with random weights */
    poems learn = read_poems(glm, data, "train.jsonl"), held_out = read_poems(glm, data, "test.jsonl");

    printf("A GLM with %.1f million parameters reads %d poems.\n", (double)tw_num_parameters(glm, true) / 1e6, learn.count);
    fflush(stdout);
    train(glm, &learn, steps > 0 ? steps : 1);
    score(glm, &held_out);
    write_poems(tw);
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    free(learn.list);
    free(held_out.list);
    return failed;
}
