/* sections.c - a small BERT learns to which section of Debian a package belongs, by its description.

   The lesson: a classifier from nothing.  Data and config.json come from a script, the tokenizer is a vocabulary of words,
   the training loop is four lines, and the score is taken on packages that were never seen:

       python3 ../tools/real_data.py sections --to build/data/sections
       cc -O3 -fopenmp -I.. sections.c -o sections -lm && ./sections [DATA] [STEPS]

   tools/real_data_torch.py trains the same model in PyTorch, to compare. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 1500, BATCH = 16, TOKENS = 64 };

static tw_dataset *open_data(tw_model *bert, const char *data, const char *name, int steps) {
    tw_dataset_desc how = { .batch_size = BATCH, .block_size = TOKENS, .max_steps = steps, .shuffle = steps > 0 };
    char path[512];
    snprintf(path, sizeof path, "%s/%s", data, name);
    return tw_dataset_from_file(bert, path, &how);              /* {"text": ..., "label": ...} a line */
}

static void train(tw_model *bert, const char *data, int steps) {
    tw_dataset *examples = open_data(bert, data, "train.jsonl", steps);
    char schedule[96];
    tw_batch batch;
    snprintf(schedule, sizeof schedule, "{\"warmup_steps\":%d,\"max_steps\":%d}", steps < 1000 ? steps / 10 : 100, steps);
    tw_set_optimizer(bert, "adamw", "{\"lr\":1e-3,\"weight_decay\":0.01}");
    tw_set_lr_scheduler(bert, "linear", schedule);
    while (tw_next_batch(examples, &batch)) {
        float loss = tw_forward_backward(bert, &batch, NULL);
        tw_clip_grad_and_step(bert, 1.0f, 2, NULL);
        tw_progress(examples, "loss", (double)loss);
    }
    tw_dataset_free(examples);
    tw_save(bert, "sections", "out");                           /* out/sections: opens here and in transformers */
}

/* How often the model is right about what was held out, and how often one would be who always says the largest section. */
static void score(tw_model *bert, const char *data) {
    tw_dataset *examples = open_data(bert, data, "test.jsonl", 0);
    int64_t of_section[256] = { 0 }, most = 0, all = 0, i;
    tw_batch batch;
    tw_add_metric(bert, "accuracy", TW_EVALUATION);
    while (tw_next_batch(examples, &batch)) {
        tw_tensor *labels = tw_batch_get(&batch, "labels");
        tw_forward_only(bert, &batch, NULL, NULL);
        for (i = 0; i < tw_count(labels); i++, all++) of_section[tw_data_i32(labels)[i] & 255]++;
    }
    for (i = 0; i < 256; i++) if (of_section[i] > most) most = of_section[i];
    if (all) printf("held out: accuracy %.1f %%, the largest section alone %.1f %%\n",
                    100 * tw_calculate_metric(bert, "accuracy", TW_EVALUATION), 100 * (double)most / (double)all);
    tw_dataset_free(examples);
}

static void show(tw_context *tw) {
    static const char *const texts[] = {
        "puzzle game with falling blocks. Move and turn the blocks so that they fill a row.",
        "Python library to read weather data. It reads the files of weather stations and returns tables.",
        "scalable font for old manuscripts. A typeface with the letters that medieval scribes used.",
        "plays music from the command line. It knows many formats and can mix several songs."
    };
    tw_model *bert = tw_from_pretrained(tw, "out/sections");
    size_t i;
    for (i = 0; i < sizeof texts / sizeof *texts && bert; i++) {
        tw_classes found = tw_predict_classes(bert, texts[i], NULL);
        printf("\n%s\n", texts[i]);
        if (found.count > 1)
            printf("   -> %s (%.0f %%), %s (%.0f %%)\n", found.list[0].label, 100 * (double)found.list[0].score,
                   found.list[1].label, 100 * (double)found.list[1].score);
    }
}

int main(int argc, char **argv) {
    const char *data = argc > 1 ? argv[1] : "build/data/sections";
    int steps = argc > 2 ? atoi(argv[2]) : STEPS, failed;
    tw_context *tw = tw_create(NULL);
    tw_load_desc fresh = { .new_weights = true };
    tw_model *bert = tw_from_pretrained_with(tw, data, &fresh);       /* as config.json describes it, with random weights */
    if (bert) printf("A BERT with %.1f million parameters reads %d times %d descriptions.\n", (double)tw_num_parameters(bert, true) / 1e6, steps, BATCH);
    fflush(stdout);
    train(bert, data, steps > 0 ? steps : 1);
    score(bert, data);
    show(tw);
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    return failed;
}
