/* Contexts in threads: several of them train and write at the same time and get the bits that one alone gets; and a host's own
   job system in the place of OpenMP gives the same bits, too.  `make more` runs this under ThreadSanitizer.  With an argument, for
   emulated processors: no contexts at the same time, and each kernel set with two threads only. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "twinkle_blas.h"
#include "check.h"
#include <pthread.h>
#include <string.h>

enum { CONTEXTS = 4, STEPS = 3, WORDS = 12, LOGITS = 61 };

#define CONFIG "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":48,\"n_head\":3,\"n_positions\":64,\"vocab_size\":61}"

typedef struct work {
    const char *kernels;
    int         threads;
    void      (*parallel_for)(void *user, int count, void (*task)(void *arg, int index), void *arg);
    float       losses[STEPS], norms[STEPS];
    int32_t     ids[WORDS];
    int64_t     count;
    char        error[1024];
} work;

/* Makes a model, trains it with dropout for some steps and lets it write. */
static void *do_work(void *user) {
    work *w = (work *)user;
    static const int32_t prompt[3] = { 5, 17, 2 };
    tw_desc desc;
    tw_context *tw;
    tw_model *model;
    tw_generate_desc how;
    int step, i;
    memset(&desc, 0, sizeof desc);
    desc.threads = w->threads;
    desc.kernels = w->kernels;
    desc.parallel_for = w->parallel_for;
    tw = tw_create(&desc);
    model = tw_from_config(tw, CONFIG);
    tw_set_optimizer(model, "adamw", "{\"lr\":1e-2}");
    for (step = 0; step < STEPS; step++) {
        int32_t ids[5 * 33];
        tw_batch batch;
        memset(&batch, 0, sizeof batch);
        for (i = 0; i < 5 * 33; i++) ids[i] = (i * (7 + step) + i / 9) % LOGITS;
        tw_batch_set(&batch, "input_ids", tw_ids(tw, tw_shape2(5, 33), ids));
        tw_batch_set(&batch, "labels", tw_ids(tw, tw_shape2(5, 33), ids));
        w->losses[step] = tw_forward_backward(model, &batch, NULL);
        w->norms[step] = tw_clip_grad_and_step(model, 1, 2, NULL);
        tw_end_step(tw);
    }
    memset(&how, 0, sizeof how);
    how.max_new_tokens = WORDS;
    how.do_sample = true;
    how.eos_count = -1;
    w->count = tw_generate_ids(model, prompt, 3, &how, w->ids, WORDS, NULL);
    snprintf(w->error, sizeof w->error, "%s", tw_error(tw));
    tw_destroy(tw);
    return NULL;
}

/* A job system as a host may have one: three threads take tasks from a counter. */
typedef struct jobs { pthread_mutex_t lock; int next, count; void (*task)(void *arg, int index); void *arg; } jobs;

static void *help(void *user) {
    jobs *j = (jobs *)user;
    for (;;) {
        int index;
        pthread_mutex_lock(&j->lock);
        index = j->next < j->count ? j->next++ : -1;
        pthread_mutex_unlock(&j->lock);
        if (index < 0) return NULL;
        j->task(j->arg, index);
    }
}

static void run_jobs(void *user, int count, void (*task)(void *arg, int index), void *arg) {
    pthread_t helper[2];
    jobs j;
    int i;
    (void)user;
    memset(&j, 0, sizeof j);
    pthread_mutex_init(&j.lock, NULL);
    j.count = count; j.task = task; j.arg = arg;
    for (i = 0; i < 2; i++) if (pthread_create(&helper[i], NULL, help, &j) != 0) { printf("no thread\n"); exit(2); }
    help(&j);
    for (i = 0; i < 2; i++) pthread_join(helper[i], NULL);
    pthread_mutex_destroy(&j.lock);
}

static void same(const work *a, const work *b, const char *what) {
    CHECK(a->error[0] == 0 && b->error[0] == 0, "%s: %s %s", what, a->error, b->error);
    CHECK(memcmp(a->losses, b->losses, sizeof a->losses) == 0, "%s: losses %.9g and %.9g", what, (double)a->losses[STEPS - 1], (double)b->losses[STEPS - 1]);
    CHECK(memcmp(a->norms, b->norms, sizeof a->norms) == 0, "%s: gradient norms differ", what);
    CHECK(a->count == WORDS && b->count == WORDS && memcmp(a->ids, b->ids, sizeof a->ids) == 0, "%s: other tokens", what);
}

int main(int argc, char **argv) {
    static const char *const kernels[] = { "plain", "neon", "avx2", "avx512" };
    static const twb_isa sets[] = { TWB_ISA_PLAIN, TWB_ISA_NEON, TWB_ISA_AVX2, TWB_ISA_AVX512 };
    static work alone, many[CONTEXTS];
    pthread_t thread[CONTEXTS];
    char what[64];
    int i, k, contexts;
    check_begin(argc, argv);
    contexts = check_every > 1 ? 0 : CONTEXTS;
    alone.threads = 1;
    do_work(&alone);
    CHECK(alone.losses[0] > 3.5f && alone.losses[0] < 4.7f, "the first loss is %g instead of about ln 61", (double)alone.losses[0]);
    for (i = 0; i < contexts; i++) {
        many[i].threads = 1;
        if (pthread_create(&thread[i], NULL, do_work, &many[i]) != 0) { printf("no thread\n"); return 2; }
    }
    for (i = 0; i < contexts; i++) pthread_join(thread[i], NULL);
    for (i = 0; i < contexts; i++) { snprintf(what, sizeof what, "context %d of %d", i + 1, CONTEXTS); same(&alone, &many[i], what); }
    for (k = 0; k < 4; k++) {
        for (i = 1; i <= 3 && twb_isa_available(sets[k]); i++) {
            work w;
            if (check_every > 1 && i != 2) continue;
            memset(&w, 0, sizeof w);
            w.kernels = kernels[k];
            w.threads = i;
            do_work(&w);
            snprintf(what, sizeof what, "%s, %d threads", kernels[k], i);
            same(&alone, &w, what);
            w.parallel_for = run_jobs;
            do_work(&w);
            snprintf(what, sizeof what, "%s, %d threads of a host's job system", kernels[k], i);
            same(&alone, &w, what);
        }
    }
    /* the same line from every compiler and machine: `make more` compares */
    printf("bits");
    for (i = 0; i < STEPS; i++) printf(" %08x %08x", twb_float_bits(alone.losses[i]), twb_float_bits(alone.norms[i]));
    for (i = 0; i < WORDS; i++) printf(" %d", (int)alone.ids[i]);
    printf("\n");
    return check_done();
}
