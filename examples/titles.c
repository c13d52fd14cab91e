/* titles.c - a small T5 learns to sum up the description of a Debian package in one line.

   The lesson: from text to text.  An encoder reads the description, a decoder writes the title, and both learn from pairs,
   from nothing.  Titles of packages that were never seen are compared with those that their maintainers wrote:

       python3 ../tools/real_data.py titles --to build/data/titles
       cc -O3 -fopenmp -I.. titles.c -o titles -lm && ./titles [DATA] [STEPS]

   tools/real_data_torch.py trains the same model in PyTorch, to compare. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 2000, BATCH = 16, TOKENS = 64, SHOWN = 6 };

static tw_dataset *open_data(tw_model *t5, const char *data, const char *name, int steps) {
    tw_dataset_desc how = { .batch_size = BATCH, .block_size = TOKENS, .max_steps = steps, .shuffle = steps > 0 };
    char path[512];
    snprintf(path, sizeof path, "%s/%s", data, name);
    return tw_dataset_from_file(t5, path, &how);                /* {"source": ..., "target": ...} a line */
}

static void train(tw_model *t5, const char *data, int steps) {
    tw_dataset *pairs = open_data(t5, data, "train.jsonl", steps);
    char schedule[96];
    tw_batch batch;
    snprintf(schedule, sizeof schedule, "{\"warmup_steps\":%d,\"max_steps\":%d}", steps < 2000 ? steps / 10 : 200, steps);
    tw_set_optimizer(t5, "adamw", "{\"lr\":2e-3,\"weight_decay\":0.01}");
    tw_set_lr_scheduler(t5, "linear", schedule);
    while (tw_next_batch(pairs, &batch)) {
        float loss = tw_forward_backward(t5, &batch, NULL);
        tw_clip_grad_and_step(t5, 1.0f, 2, NULL);
        tw_progress(pairs, "loss", (double)loss);
    }
    tw_dataset_free(pairs);
    tw_save(t5, "titles", "out");                               /* out/titles: opens here and in transformers */
}

/* ---- how good a title is ---- */

/* The next word of a text in small letters; false: there is none. */
static bool next_word(const char **text, char word[64]) {
    size_t n = 0;
    while (**text == ' ') ++*text;
    while (**text && **text != ' ') {
        if (n < 63) word[n++] = (char)tolower((unsigned char)**text);
        ++*text;
    }
    word[n] = 0;
    return n > 0;
}
static int count_word(const char *text, const char *wanted) {
    char word[64];
    int n = 0;
    while (next_word(&text, word)) n += strcmp(word, wanted) == 0;
    return n;
}
/* ROUGE-1: the words that two texts have in common, as a share of the mean of their lengths. */
static double overlap(const char *a, const char *b) {
    const char *at = a, *other = b;
    char word[64];
    int common = 0, words = 0;
    for (; next_word(&at, word); words++) {
        size_t seen = (size_t)(at - a);
        char *before = (char *)malloc(seen + 1);                /* the text up to here: how often was this word counted? */
        if (!before) break;
        memcpy(before, a, seen);
        before[seen] = 0;
        common += count_word(before, word) <= count_word(b, word);
        free(before);
    }
    while (next_word(&other, word)) words++;
    return words ? 2.0 * common / words : 0;
}

/* The same words as the tokenizer spells them, so that "EBU-R128" and "ebu - r128" are the same. */
static const char *respelled(tw_tokenizer *tokenizer, const char *text) {
    tw_encoding e;
    return tw_tokenize(tokenizer, text, strlen(text), NULL, &e) < 0 ? "" : tw_detokenize(tokenizer, e.ids, e.count, true);
}

static void score(tw_model *t5, const char *data) {
    tw_dataset *pairs = open_data(t5, data, "test.jsonl", 0);
    char path[512], line[8192];
    double sum = 0;
    int count = 0;
    tw_batch batch;
    FILE *f;
    tw_add_metric(t5, "loss", TW_EVALUATION);
    while (tw_next_batch(pairs, &batch)) tw_forward_only(t5, &batch, NULL, NULL);
    tw_dataset_free(pairs);
    snprintf(path, sizeof path, "%s/test.jsonl", data);
    f = fopen(path, "rb");
    while (f && fgets(line, sizeof line, f) && !tw_failed(tw_context_of(t5))) {
        tw_json *pair = tw_json_parse(tw_context_of(t5), line, SIZE_MAX);
        const char *source = tw_json_string(tw_json_get(pair, "source"), ""), *target = tw_json_string(tw_json_get(pair, "target"), "");
        tw_generate_desc how = { .max_new_tokens = 24 };
        char written[1024];
        const char *text = tw_predict_text(t5, source, &how);
        snprintf(written, sizeof written, "%s", text ? text : "");
        sum += overlap(written, respelled(tw_tokenizer_of(t5), target));
        if (count++ < SHOWN) printf("\n%.140s...\n   written: %s\n   wanted:  %s\n", source, written, target);
        tw_json_free(pair);
    }
    if (f) fclose(f);
    if (count) printf("\nheld out: loss %.3f a token, words in common (ROUGE-1) %.1f %%\n", tw_calculate_metric(t5, "loss", TW_EVALUATION), 100 * sum / count);
}

int main(int argc, char **argv) {
    const char *data = argc > 1 ? argv[1] : "build/data/titles";
    int steps = argc > 2 ? atoi(argv[2]) : STEPS, failed;
    tw_context *tw = tw_create(NULL);
    tw_load_desc fresh = { .new_weights = true };
    tw_model *t5 = tw_from_pretrained_with(tw, data, &fresh);       /* as config.json describes it, with random weights */
    if (t5) printf("A T5 with %.1f million parameters reads %d times %d descriptions.\n", (double)tw_num_parameters(t5, true) / 1e6, steps, BATCH);
    fflush(stdout);
    train(t5, data, steps > 0 ? steps : 1);
    score(t5, data);
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    return failed;
}
