/* talk.c - drop it in, load a model, talk.

   The lesson: a model is a folder as Hugging Face lays it out, one call opens it, one call writes, and
   the text arrives piece by piece, in whole UTF-8 characters, while the model is still thinking.

       cc -O2 -I.. talk.c -o talk -lm && ./talk FOLDER "Once upon a time"

   -fopenmp makes it use all cores.  `make -C examples` trains a small model of its own: out/story. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>

static bool print(const char *text, void *user) {
    (void)user;
    fputs(text, stdout);
    fflush(stdout);
    return true;                                                /* false would stop it */
}

int main(int argc, char **argv) {
    const char *folder = argc > 1 ? argv[1] : "out/story", *prompt = argc > 2 ? argv[2] : "Once upon a time";
    tw_context *tw = tw_create(NULL);                           /* NULL: malloc, all cores, silent */
    tw_model *gpt = tw_from_pretrained(tw, folder);
    tw_generate_desc how = { .max_new_tokens = 64, .do_sample = true, .temperature = 0.8f, .top_k = 40, .on_text = print };
    int failed;

    fputs(prompt, stdout);
    tw_generate_text(gpt, prompt, &how);
    putchar('\n');
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));          /* the first thing that went wrong, with where */
    tw_destroy(tw);                                             /* and everything that came from it */
    return failed;
}
