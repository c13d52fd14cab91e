/* Generation against transformers: greedy and beam ids exactly, beam scores, and the probabilities that penalties and
   warpers leave; and what a game needs of it: steps within a budget, savegames, whole characters, no memory a token. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "golden.h"
#include "counted.h"

#define SHAPE "\"n_embd\":32,\"n_head\":4,\"n_positions\":96,\"vocab_size\":300"
#define SMALL "{\"model_type\":\"gpt2\",\"n_layer\":2," SHAPE "," \
              "\"initializer_range\":0.3,\"eos_token_id\":7,\"bos_token_id\":5}"
#define SMALL_T5(layers) "{\"model_type\":\"t5\",\"num_layers\":" layers ",\"d_model\":24,\"d_kv\":6,\"d_ff\":20,\"num_heads\":3," \
                         "\"vocab_size\":300,\"decoder_start_token_id\":0}"
enum { ROOM = 128, PROMPT = 40 };

static void small_prompt(int32_t *ids, int count) {
    int i;
    for (i = 0; i < count; i++) ids[i] = (i * 37 + 11) % 300;
}
static tw_generate_desc sampling(int64_t tokens) {
    tw_generate_desc how;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = tokens;
    how.do_sample = true;
    how.temperature = 1.3f;
    how.top_p = 0.95f;
    how.top_k = -1;
    how.seed = 99;
    how.eos_count = -1;
    return how;
}
static tw_generate_desc beams(int64_t tokens, int count) {
    tw_generate_desc how;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = tokens;
    how.num_beams = count;
    return how;
}
static bool same_ids(const int32_t *a, int64_t a_count, const int32_t *b, int64_t b_count) {
    return a_count == b_count && a_count >= 0 && memcmp(a, b, (size_t)a_count * sizeof *a) == 0;
}

/* -- golden values ------------------------------------------------------------------------------------------------- */

/* The keyword arguments of transformers' generate(). */
static tw_generate_desc desc_of(const tw_json *args, int32_t eos[8]) {
    tw_generate_desc how;
    const tw_json *v;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = tw_json_int(tw_json_get(args, "max_new_tokens"), 0);
    how.min_new_tokens = tw_json_int(tw_json_get(args, "min_new_tokens"), 0);
    how.do_sample = tw_json_bool(tw_json_get(args, "do_sample"), false);
    how.temperature = (float)tw_json_number(tw_json_get(args, "temperature"), 0);
    how.top_k = tw_json_int(tw_json_get(args, "top_k"), -1);
    how.top_p = (float)tw_json_number(tw_json_get(args, "top_p"), 0);
    how.min_p = (float)tw_json_number(tw_json_get(args, "min_p"), 0);
    how.typical_p = (float)tw_json_number(tw_json_get(args, "typical_p"), 0);
    how.repetition_penalty = (float)tw_json_number(tw_json_get(args, "repetition_penalty"), 0);
    how.no_repeat_ngram_size = tw_json_int(tw_json_get(args, "no_repeat_ngram_size"), 0);
    how.num_beams = (int)tw_json_int(tw_json_get(args, "num_beams"), 0);
    how.has_length_penalty = tw_json_get(args, "length_penalty") != NULL;
    how.length_penalty = (float)tw_json_number(tw_json_get(args, "length_penalty"), 1);
    v = tw_json_get(args, "early_stopping");
    how.early_stopping = tw_json_type(v) == TW_JSON_STRING ? 2 : tw_json_bool(v, false);
    if ((v = tw_json_get(args, "eos_token_id")) != NULL) {
        bool list = tw_json_type(v) == TW_JSON_ARRAY;
        int i;
        how.eos_count = list ? (int)tw_json_count(v) : 1;
        for (i = 0; i < how.eos_count && i < 8; i++) eos[i] = (int32_t)tw_json_int(list ? tw_json_at(v, i) : v, -1);
        how.eos_token_ids = eos;
    }
    return how;
}
static int64_t ids_of(const tw_json *list, int32_t ids[ROOM]) {
    int64_t i, n = tw_json_count(list);
    for (i = 0; i < n && i < ROOM; i++) ids[i] = (int32_t)tw_json_int(tw_json_at(list, i), -1);
    return n;
}

/* Now every reading of the clock is a millisecond later: a budget of a few means a few pieces. */
static int64_t slow_clock(void *user) { return *(int64_t *)user += 1000; }

typedef struct bytes { unsigned char data[400000]; size_t count, room; } bytes;
static bool write_bytes(void *user, const void *from, size_t count) {
    bytes *b = (bytes *)user;
    if (b->count + count > b->room) return false;
    memcpy(b->data + b->count, from, count);
    b->count += count;
    return true;
}
static bytes saved;
static tw_writer writer(size_t room) {
    tw_writer w;
    saved.count = 0;
    saved.room = room;
    w.write = write_bytes;
    w.user = &saved;
    return w;
}

/* Put into bytes, ended, and taken up again by the same model. */
static tw_generation *saved_and_restored(tw_model *model, tw_generation *g) {
    OK(tw_generation_save(g, writer(sizeof saved.data)));
    tw_generation_end(g);
    return tw_generation_restore(model, saved.data, saved.count, NULL);
}

/* One family's cases: at once, in steps, and put away in the middle and taken up again. */
static void test_ids(const char *family) {
    int64_t clock = 0, i, b;
    tw_desc desc;
    tw_context *tw;
    tw_model *model = NULL;
    tw_json *cases;
    char path[512], opened[512] = "";
    memset(&desc, 0, sizeof desc);
    desc.now = slow_clock;
    desc.now_user = &clock;
    tw = tw_create(&desc);
    snprintf(path, sizeof path, GOLDENS "%s/generate.json", family);
    cases = tw_json_load(tw, path);
    CHECK(tw_json_count(cases) > 8, "%s", tw_error(tw));
    for (i = 0; i < tw_json_count(cases); i++) {
        const tw_json *c = tw_json_at(cases, i);
        const char *name = tw_json_string(tw_json_get(c, "model"), "");
        int32_t prompt[ROOM], want[ROOM], got[ROOM], eos[8];
        const int32_t *ids;
        int64_t count = ids_of(tw_json_get(c, "ids"), prompt), wanted = ids_of(tw_json_get(c, "expect"), want), n;
        tw_generate_desc how = desc_of(tw_json_get(c, "args"), eos);
        float score = -77;
        double best;
        tw_generation *g;
        if (strcmp(name, opened) != 0) {
            tw_model_free(model);
            model = tw_from_pretrained(tw, golden_path(path, ".", name, ""));
            snprintf(opened, sizeof opened, "%s", name);
        }
        n = tw_generate_ids(model, prompt, count, &how, got, ROOM, &score);
        CHECK(same_ids(got, n, want, wanted), "%s case %d: other ids (%ld of %ld): %s", family, (int)i, (long)n, (long)wanted,
              tw_error(tw));
        best = tw_json_number(tw_json_get(c, "score"), 0);
        CHECK(fabs((double)score - best) <= 1e-4 + 1e-6 * fabs(best), "%s case %d: score %g", family, (int)i, (double)score);
        for (b = 0; b < 2; b++) {                          /* in slices: one token at a time, and by the clock */
            g = tw_generation_begin_ids(model, prompt, count, &how);
            while (tw_generation_step(g, b ? 3000 : 0) == TW_MORE) continue;
            n = tw_generation_ids(g, &ids);
            CHECK(same_ids(ids, n, want, wanted), "%s case %d in steps: %s", family, (int)i, tw_error(tw));
            tw_generation_end(g);
        }
        g = tw_generation_begin_ids(model, prompt, count, &how);
        for (b = 0; b < i % 5 && tw_generation_step(g, 0) == TW_MORE; b++) continue;
        g = saved_and_restored(model, g);
        n = tw_generation_step(g, -1) == TW_DONE ? tw_generation_ids(g, &ids) : -1;
        CHECK(same_ids(ids, n, want, wanted), "%s case %d saved after %d steps: %s", family, (int)i, (int)b, tw_error(tw));
        tw_generation_end(g);
    }
    tw_json_free(cases);
    tw_destroy(tw);
}

static void test_warpers(void) {
    tw_context *tw = tw_create(NULL);
    tw_json *cases = tw_json_load(tw, GOLDENS "warpers.json");
    tw_weights *file = tw_open_weights(tw, GOLDENS "warpers.safetensors");
    double worst = 0;
    int64_t i;
    CHECK(file && tw_json_count(cases) > 20, "%s", tw_error(tw));
    for (i = 0; file && i < tw_json_count(cases); i++) {
        const tw_json *c = tw_json_at(cases, i);
        const char *name = tw_json_string(tw_json_get(c, "name"), "");
        char full[100];
        const tw_weight *logits, *want;
        float row[512], got[512];
        int32_t ids[ROOM], eos[8];
        int64_t count = ids_of(tw_json_get(c, "ids"), ids), vocab;
        tw_generate_desc how = desc_of(tw_json_get(c, "args"), eos);
        double off;
        snprintf(full, sizeof full, "%s.logits", name);
        logits = tw_weights_find(file, full);
        snprintf(full, sizeof full, "%s.probabilities", name);
        want = tw_weights_find(file, full);
        if (!logits || !want || logits->bytes > sizeof row) { CHECK(false, "%s is missing", name); continue; }
        vocab = (int64_t)(logits->bytes / sizeof(float));
        memcpy(row, logits->data, logits->bytes);
        CHECK(tw_warp_logits(tw, row, vocab, ids, count, &how, got), "%s: %s", name, tw_error(tw));
        off = golden_error(got, vocab, want, NULL, 0, 1);   /* relative to 1 */
        CHECK(off <= 1e-6, "%s: off by %g", name, off);
        if (off > worst) worst = off;
    }
    printf("warpers: off by %.1e at most\n", worst);
    tw_json_free(cases);
    tw_close_weights(file);
    tw_destroy(tw);
}

/* Warpers by their definition, a sort and all, on larger rows and rows of ties: the same tokens are left. */
static int by_falling(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}
static void test_selection(void) {
    enum { V = 3000 };
    static float row[V], logits[V], got[V], sorted[V];
    tw_context *tw = tw_create(NULL);
    tw_generate_desc how;
    int round, i;
    for (round = 0; round < 40; round++) {
        int k = 1 + (int)(check_random() % 200), left = 0, wanted = 0;
        double total = 0, sum = 0, p = 0.05 + 0.9 * (double)(check_random() % 1000) / 1000.0;
        for (i = 0; i < V; i++) row[i] = round % 3 ? 6 * check_uniform() : (float)(check_random() % 7);
        memcpy(sorted, row, sizeof row);
        qsort(sorted, V, sizeof *sorted, by_falling);
        memset(&how, 0, sizeof how);
        how.top_k = k;
        memcpy(logits, row, sizeof row);
        OK(tw_warp_logits(tw, logits, V, NULL, 0, &how, got));
        for (i = 0; i < V; i++) { left += got[i] > 0; wanted += row[i] >= sorted[k - 1]; }
        CHECK(left == wanted, "top_k %d leaves %d, %d wanted", k, left, wanted);
        how.top_k = -1;
        how.top_p = (float)p;
        memcpy(logits, row, sizeof row);
        OK(tw_warp_logits(tw, logits, V, NULL, 0, &how, got));
        for (i = 0; i < V; i++) total += exp((double)sorted[i]);
        for (i = 0; i < V && sum / total < p; i++) sum += exp((double)sorted[i]);
        wanted = i;
        for (i = left = 0; i < V; i++) left += got[i] > 0;
        CHECK(left == wanted || left == wanted + 1, "top_p %g leaves %d, %d wanted", p, left, wanted);
    }
    for (i = 0; i < V; i++) row[i] = i == 1234 ? 3.0f : -1e30f;
    memset(&how, 0, sizeof how);
    how.top_p = 0.5f; how.min_p = 0.5f; how.typical_p = 0.5f;
    OK(tw_warp_logits(tw, row, V, NULL, 0, &how, got) && got[1234] == 1);
    row[7] = twb_bits_float(0x7FC00000u);
    OK(!tw_warp_logits(tw, row, V, NULL, 0, &how, got) && tw_error_code(tw) == TW_E_RANGE);
    tw_clear_error(tw);
    tw_destroy(tw);
}

/* -- the same text, however it is brought about -------------------------------------------------------------------- */

static int64_t run_whole(const char *kernels, int threads, const tw_generate_desc *how, int32_t out[ROOM]) {
    int32_t prompt[PROMPT];
    tw_desc desc;
    tw_context *tw;
    int64_t n;
    memset(&desc, 0, sizeof desc);
    desc.kernels = kernels;
    desc.threads = threads;
    tw = tw_create(&desc);
    small_prompt(prompt, PROMPT);
    n = tw_generate_ids(tw_from_config(tw, SMALL), prompt, PROMPT, how, out, ROOM, NULL);
    CHECK(n >= 0, "%s", tw_error(tw));
    tw_destroy(tw);
    return n;
}

/* Sampled text depends neither on the kernel set nor on the threads. */
static void test_same_everywhere(void) {
    tw_generate_desc all[5];
    int32_t want[ROOM], got[ROOM];
    int64_t wanted, n;
    int kind, set, threads;
    all[0] = sampling(30);
    all[1] = beams(30, 3);
    all[2] = sampling(20);
    all[2].num_beams = 3;
    all[3] = all[0];
    all[4] = all[1];
    all[3].cache_bits = all[4].cache_bits = 16;
    for (kind = 0; kind < 5; kind++) {
        wanted = run_whole("plain", 1, &all[kind], want);
        for (set = 0; set < TWB_ISA_COUNT; set++) {
            const char *name = twb_isa_name((twb_isa)set);
            if (!twb_isa_available((twb_isa)set)) continue;
            for (threads = 1; threads <= 3; threads++) {
                n = run_whole(name, threads, &all[kind], got);
                CHECK(same_ids(got, n, want, wanted), "kind %d, %s, %d threads: other ids", kind, name, threads);
            }
        }
    }
}

/* Saved after every step, restored in a context of its own with the same weights, it goes on to the same ids. */
static void test_savegames(void) {
    tw_generate_desc all[6];
    int kind, stop;
    all[0] = sampling(20);
    all[1] = beams(20, 3);
    all[2] = sampling(20);
    all[2].num_beams = 4;
    all[2].has_length_penalty = true;
    all[2].length_penalty = 0.7f;
    all[3] = sampling(20);
    all[3].typical_p = 0.9f;
    all[3].repetition_penalty = 1.2f;
    all[3].min_new_tokens = 5;
    all[3].eos_count = 0;
    all[3].no_repeat_ngram_size = 2;
    all[4] = all[0];
    all[5] = all[1];
    all[4].cache_bits = all[5].cache_bits = 16;
    for (kind = 0; kind < 6; kind++) {
        int32_t prompt[PROMPT], want[ROOM];
        int64_t wanted = run_whole(NULL, 1, &all[kind], want), clock = 0;
        small_prompt(prompt, PROMPT);
        for (stop = 0; stop < 30; stop++) {
            tw_desc desc;
            tw_context *tw;
            tw_generation *g;
            const int32_t *ids;
            int64_t n;
            int step;
            tw_status status = TW_MORE;
            memset(&desc, 0, sizeof desc);
            desc.threads = 1;
            desc.now = slow_clock;
            desc.now_user = &clock;
            tw = tw_create(&desc);
            g = tw_generation_begin_ids(tw_from_config(tw, SMALL), prompt, PROMPT, &all[kind]);
            for (step = 0; step < stop && status == TW_MORE; step++) status = tw_generation_step(g, 1000);
            OK(tw_generation_save(g, writer(sizeof saved.data)));
            tw_destroy(tw);
            tw = tw_create(&desc);
            g = tw_generation_restore(tw_from_config(tw, SMALL), saved.data, saved.count, NULL);
            CHECK(g, "kind %d, stop %d: %s", kind, stop, tw_error(tw));
            while (tw_generation_step(g, 0) == TW_MORE) continue;
            n = tw_generation_ids(g, &ids);
            CHECK(same_ids(ids, n, want, wanted), "kind %d, stopped after %d steps: %s", kind, stop, tw_error(tw));
            tw_destroy(tw);
            if (status != TW_MORE) break;
        }
    }
}

/* How many numbers of two bytes a saved cache has: keys and values as exact as the weights, or as one wishes. */
static void test_cache_bits(void) {
    static const struct { tw_dtype weights; int bits, bytes; } cases[] = {
        { TW_F32, 0, 4 }, { TW_F32, 32, 4 }, { TW_F32, 16, 2 }, { TW_F16, 0, 2 }, { TW_BF16, 0, 2 }, { TW_F16, 32, 4 }, { TW_Q8_0, 0, 2 }, { TW_Q4_0, 32, 4 }
    };
    size_t i, shortest = 0, longest = 0;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        tw_context *tw = tw_create(NULL);
        tw_model *model = tw_from_config(tw, SMALL);
        tw_generate_desc how = sampling(10);
        int32_t prompt[PROMPT];
        tw_generation *g;
        how.cache_bits = cases[i].bits;
        small_prompt(prompt, PROMPT);
        OK(tw_to(model, cases[i].weights));
        g = tw_generation_begin_ids(model, prompt, PROMPT, &how);
        OK(tw_generation_step(g, 0) == TW_MORE && tw_generation_save(g, writer(sizeof saved.data)));
        if (cases[i].bytes == 4) longest = saved.count; else shortest = saved.count;
        CHECK(saved.count == (cases[i].bytes == 4 ? longest : shortest), "case %lu: %lu bytes", (unsigned long)i, (unsigned long)saved.count);
        if (longest && shortest) CHECK(longest - shortest == 2 * 2 * PROMPT * 32 * 2, "case %lu: %lu and %lu bytes", (unsigned long)i, (unsigned long)longest, (unsigned long)shortest);
        tw_destroy(tw);
    }
}

/* What is not a savegame of this model is refused with one sentence, and leaves nothing behind. */
static void test_bad_savegames(const char *config, const char *other) {
    counted count = { 0, 0, 0, 0, 0 };
    tw_context *tw = counted_context(&count);
    tw_model *model = tw_from_config(tw, config), *stranger = tw_from_config(tw, other);
    tw_generate_desc how = beams(6, 2);
    int32_t prompt[PROMPT];
    tw_generation *g;
    size_t n;
    long live;
    small_prompt(prompt, 5);
    g = tw_generation_begin_ids(model, prompt, 5, &how);
    tw_generation_step(g, 0);
    tw_generation_step(g, 0);
    OK(tw_generation_save(g, writer(sizeof saved.data)));
    n = saved.count;
    OK(!tw_generation_save(g, writer(n - 1)) && tw_error_code(tw) == TW_E_FILE);
    tw_clear_error(tw);
    OK(tw_generation_save(g, writer(sizeof saved.data)) && saved.count == n);
    tw_generation_end(g);
    live = count.live;
    for (n = 0; n < saved.count; n += n < 400 ? 1 : 97) {
        void *exact = check_malloc(n);                      /* cut off here; ASan sees a read behind the end */
        memcpy(exact, saved.data, n);
        g = tw_generation_restore(model, exact, n, NULL);
        CHECK(!g && tw_error_code(tw) == TW_E_FORMAT, "cut off at %lu", (unsigned long)n);
        tw_clear_error(tw);
        free(exact);
        saved.data[n] ^= 0x41;
        g = tw_generation_restore(model, saved.data, saved.count, NULL);
        CHECK(!g && tw_failed(tw), "damaged at %lu", (unsigned long)n);
        tw_clear_error(tw);
        saved.data[n] ^= 0x41;
    }
    for (n = 12; n + 16 < 400; n++) {                        /* damaged on purpose: the hash is right */
        uint64_t hash;
        int i;
        unsigned char was = saved.data[n];
        saved.data[n] = (unsigned char)(n % 2 ? 0xFF : was + 1);
        hash = twi_hash_bytes(0, saved.data, saved.count - 8);
        for (i = 0; i < 8; i++) saved.data[saved.count - 8 + (size_t)i] = (unsigned char)(hash >> 8 * i & 0xFF);
        g = tw_generation_restore(model, saved.data, saved.count, NULL);
        for (i = 0; i < 20 && tw_generation_step(g, 0) == TW_MORE; i++) continue;      /* T5 has no last position: a limit of millions is one */
        tw_generation_end(g);
        tw_clear_error(tw);
        saved.data[n] = was;
    }
    {
        uint64_t hash = twi_hash_bytes(0, saved.data, saved.count - 8);
        for (n = 0; n < 8; n++) saved.data[saved.count - 8 + n] = (unsigned char)(hash >> 8 * n & 0xFF);
    }
    OK(!tw_generation_restore(stranger, saved.data, saved.count, NULL) && strstr(tw_error(tw), "another model"));
    tw_clear_error(tw);
    OK(!tw_generation_restore(model, "hello", 5, NULL) && !tw_generation_restore(NULL, saved.data, saved.count, NULL));
    tw_clear_error(tw);
    g = tw_generation_restore(model, saved.data, saved.count, NULL);
    CHECK(g, "%s", tw_error(tw));
    tw_generation_end(g);
    CHECK(count.live <= live + 1, "%ld blocks more", count.live - live);      /* the arena's first chunk may be one */
    tw_destroy(tw);
    OK(count.live == 0);
}

/* A savegame that says 0 beams means 1, which cannot have no rows in the cache. */
static void test_saved_default(void) {
    enum { BEAMS_AT = 12 + 6 * 8 + 4 * 8 + 2 + 6 * 4, ROWS_AT = BEAMS_AT + 4 * 4 + 4 * 8 };
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, SMALL);
    tw_generate_desc how;
    int32_t prompt[PROMPT];
    tw_generation *g;
    uint64_t hash;
    size_t i;
    memset(&how, 0, sizeof how);
    how.cache_bits = 32;
    small_prompt(prompt, 5);
    g = tw_generation_begin_ids(model, prompt, 5, &how);
    tw_generation_step(g, 0);
    OK(tw_generation_save(g, writer(sizeof saved.data)) && saved.data[BEAMS_AT] == 1 && saved.data[ROWS_AT] == 1);
    saved.count -= (size_t)(2 * g->shape.layers * g->shape.heads * g->shape.head_dim * g->cache->length) * sizeof(float);
    saved.data[BEAMS_AT] = saved.data[ROWS_AT] = 0;
    hash = twi_hash_bytes(0, saved.data, saved.count - 8);
    for (i = 0; i < 8; i++) saved.data[saved.count - 8 + i] = (unsigned char)(hash >> 8 * i & 0xFF);
    OK(!tw_generation_restore(model, saved.data, saved.count, NULL) && strstr(tw_error(tw), "contradicts"));
    tw_destroy(tw);
}

/* -- inside a program ---------------------------------------------------------------------------------------------- */

/* The user's own tensors and modes are as they were. */
static void test_neighbours(void) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, SMALL);
    static const float two[2] = { 3, 4 };
    tw_tensor *w = tw_parameter(tw, "w", tw_shape1(2)), *mine = tw_mul(w, tw_tensor_from(tw, tw_shape1(2), two)), *loss;
    tw_generate_desc how = sampling(10);
    int32_t out[ROOM], prompt[PROMPT];
    small_prompt(prompt, PROMPT);
    OK(tw_generate_ids(model, prompt, PROMPT, &how, out, ROOM, NULL) == 10);
    loss = tw_sum(mine);
    OK(tw_backward(loss) && tw_read(tw_grad(w), (float *)out, ROOM) == 2 && memcmp(out, two, sizeof two) == 0);
    {   /* two at a time, taking turns, in a model that is freed before they end */
        tw_generation *a = tw_generation_begin_ids(model, prompt, 9, &how);
        tw_generation *b = tw_generation_begin_ids(model, prompt, 9, &how);
        const int32_t *x, *y;
        while (tw_generation_step(a, 0) == TW_MORE) tw_generation_step(b, 0);
        tw_generation_step(b, -1);
        OK(tw_generation_ids(a, &x) == 10 && tw_generation_ids(b, &y) == 10 && memcmp(x, y, 10 * sizeof *x) == 0);
        tw_generation_end(a);
    }
    tw_model_free(model);
    OK(!tw_failed(tw));
    tw_destroy(tw);
}

/* After the first token the allocator is not called any more. */
static void test_no_allocation(void) {
    tw_generate_desc all[3];
    int kind;
    all[0] = sampling(50);
    all[1] = beams(50, 4);
    all[2] = sampling(50);
    all[2].num_beams = 2;
    for (kind = 0; kind < 3; kind++) {
        counted count = { 0, 0, 0, 0, 0 };
        tw_context *tw = counted_context(&count);
        tw_model *model = tw_from_config(tw, SMALL);
        int32_t prompt[PROMPT];
        tw_generation *g;
        long first, calls;
        small_prompt(prompt, PROMPT);
        tw_set_tokenizer(model, tw_load_tokenizer(tw, GOLDENS "gpt2/tokenizer_files"));
        OK(tw_tokenizer_of(model) != NULL);
        g = tw_generation_begin_ids(model, prompt, PROMPT, &all[kind]);
        tw_generation_step(g, 0);
        tw_generation_step(g, 0);
        first = count.calls;
        do calls = count.calls; while (tw_generation_step(g, 0) == TW_MORE);
        if (kind == 0) calls = count.calls;                 /* with beams, the end may want room for the text */
        CHECK(calls == first, "kind %d: %ld calls of the allocator", kind, calls - first);
        tw_generation_end(g);
        tw_destroy(tw);
        OK(count.live == 0);
    }
}

/* Every call of the allocator fails in its turn: a sentence, and nothing is left. */
static void test_out_of_memory(void) {
    tw_generate_desc all[2];
    int kind;
    all[0] = sampling(4);
    all[1] = beams(4, 3);
    for (kind = 0; kind < 2; kind++) {
        long at = 1, calls = 1;
        for (; at <= calls; at++) {
            counted count = { 0, 0, 0, 0, 0 };
            tw_context *tw;
            tw_model *model;
            tw_generation *g;
            int32_t prompt[PROMPT];
            count.fail_at = 0;
            tw = counted_context(&count);
            small_prompt(prompt, PROMPT);
            model = tw_from_config(tw, SMALL);
            tw_set_tokenizer(model, tw_load_tokenizer(tw, GOLDENS "gpt2/tokenizer_files"));
            count.fail_at = count.calls + at;
            g = tw_generation_begin_ids(model, prompt, PROMPT, &all[kind]);
            tw_generation_step(g, -1);
            if (g && !tw_failed(tw)) tw_generation_save(g, writer(sizeof saved.data));
            if (g && !tw_failed(tw)) tw_generation_end(tw_generation_restore(model, saved.data, saved.count, NULL));
            if (count.calls >= count.fail_at) {
                CHECK(tw_error_code(tw) == TW_E_MEMORY, "call %ld: %s", at, tw_error(tw));
                if (g) { count.fail_at = 0; CHECK(tw_generation_step(g, -1) != TW_MORE, "it is not over"); }
                calls = at + 1;
            }
            if (at % 2) tw_generation_end(g);               /* or the context ends it */
            tw_destroy(tw);
            CHECK(count.live == 0, "call %ld: %ld blocks are left", at, count.live);
        }
        CHECK(at > 5, "only %ld calls of the allocator", at);
    }
}

static void test_refusals(void) {
    tw_context *tw = tw_create(NULL);
    static const char base[] = "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2Model\"],\"n_layer\":1," SHAPE "}";
    tw_model *model = tw_from_config(tw, SMALL), *headless = tw_from_config(tw, base);
    int32_t out[ROOM], prompt[ROOM];
    const float nan = twb_bits_float(0x7FC00000u);
    tw_generate_desc how;
    int i;
    small_prompt(prompt, ROOM);
    for (i = 0; i < 26; i++) {
        tw_model *of = model;
        int64_t count = 3, room = ROOM;
        tw_code code = TW_E_RANGE;
        memset(&how, 0, sizeof how);
        switch (i) {
        case 0: how.max_new_tokens = -1; break;
        case 1: how.num_beams = -1; break;
        case 2: how.num_beams = 4097; break;
        case 3: how.temperature = nan; break;
        case 4: how.temperature = -1; break;
        case 5: how.top_p = 1.5f; break;
        case 6: how.top_p = nan; break;
        case 7: how.min_p = -0.5f; break;
        case 8: how.top_k = -2; break;
        case 9: how.typical_p = 2; break;
        case 10: how.repetition_penalty = -1; break;
        case 11: how.no_repeat_ngram_size = -1; break;
        case 12: how.early_stopping = 3; break;
        case 13: how.length_penalty = nan; how.has_length_penalty = true; break;
        case 14: how.min_new_tokens = -3; break;
        case 15: prompt[1] = 300; break;
        case 16: prompt[1] = -1; break;
        case 17: count = 97; break;
        case 18: count = -1; code = TW_E_ARGUMENT; break;
        case 19: room = 19; code = TW_E_ARGUMENT; break;
        case 20: of = headless; code = TW_E_UNSUPPORTED; break;
        case 21: how.adapter_name = "knight"; code = TW_E_MISSING; break;
        case 22: how.eos_count = 3; code = TW_E_ARGUMENT; break;
        case 23: how.cache_bits = 8; break;
        case 24: how.repetition_penalty = how.temperature = 1e30f; how.max_new_tokens = 1; code = TW_OK; break;       /* the limit itself */
        default: how.max_new_tokens = 1; code = TW_OK; break;
        }
        count = tw_generate_ids(of, prompt, count, &how, out, room, NULL);
        CHECK((count < 0) == (code != TW_OK) && tw_error_code(tw) == code, "case %d: %s", i, tw_error(tw));
        tw_clear_error(tw);
        small_prompt(prompt, ROOM);
    }
    OK(!tw_generate_text(model, "hello", NULL) && tw_error_code(tw) == TW_E_MISSING);      /* no tokenizer */
    tw_clear_error(tw);
    OK(tw_generation_step(NULL, 0) == TW_FAILED && tw_generation_ids(NULL, NULL) == 0 && !tw_generation_text(NULL)[0]);
    tw_generation_end(NULL);
    /* broken weights: NaN logits are an error, not an endless loop */
    tw_fill(tw_parameter_named(model, "transformer.ln_f.bias"), nan);
    for (i = 0; i < 3; i++) {
        memset(&how, 0, sizeof how);
        how.do_sample = i == 1;
        how.num_beams = i == 2 ? 2 : 1;
        OK(tw_generate_ids(model, prompt, 3, &how, out, ROOM, NULL) < 0 && tw_error_code(tw) == TW_E_RANGE);
        tw_clear_error(tw);
    }
    tw_destroy(tw);
}

/* The limits: a prompt of all positions gives one token more, an empty one begins with bos, an end token ends. */
static void test_limits(void) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, SMALL);
    int32_t out[ROOM], other[ROOM], prompt[ROOM], bos = 5, ends[2];
    tw_generate_desc how;
    int64_t n;
    memset(&how, 0, sizeof how);
    small_prompt(prompt, ROOM);
    how.max_new_tokens = 100;
    how.eos_count = -1;
    OK(tw_generate_ids(model, prompt, 96, &how, out, ROOM, NULL) == 1);
    OK(tw_generate_ids(model, prompt, 90, &how, out, ROOM, NULL) == 7);
    how.num_beams = 3;
    OK(tw_generate_ids(model, prompt, 96, &how, out, ROOM, NULL) == 1);
    OK(tw_generate_ids(model, prompt, 90, &how, out, ROOM, NULL) == 7);
    how = sampling(12);
    n = tw_generate_ids(model, NULL, 0, &how, out, ROOM, NULL);
    OK(same_ids(out, n, other, tw_generate_ids(model, &bos, 1, &how, other, ROOM, NULL)) && n == 12);
    ends[0] = 299999;                                       /* no such token: never met */
    ends[1] = out[4];
    for (n = 0; n < 4; n++) if (out[n] == out[4]) break;
    how.eos_token_ids = ends;
    how.eos_count = 2;
    OK(tw_generate_ids(model, &bos, 1, &how, other, ROOM, NULL) == n + 1 && other[n] == ends[1]);
    how.min_new_tokens = 12;
    OK(tw_generate_ids(model, &bos, 1, &how, other, ROOM, NULL) == 12);
    for (n = 0; n < 12; n++) CHECK(other[n] != ends[1], "an end token at %ld", (long)n);
    OK(!tw_failed(tw));
    tw_destroy(tw);
}

/* -- text ---------------------------------------------------------------------------------------------------------- */

typedef struct listener { char text[20000]; int parts, stop_at; bool whole; } listener;
static bool hear(const char *text, void *user) {
    listener *l = (listener *)user;
    if (twi_utf8_whole(text, strlen(text)) != strlen(text) || !text[0]) l->whole = false;
    strncat(l->text, text, sizeof l->text - strlen(l->text) - 1);
    return ++l->parts != l->stop_at;
}

static void test_text(void) {
    static listener l, rest;
    tw_context *tw = tw_create(NULL);
    tw_tokenizer *tokenizer = tw_load_tokenizer(tw, GOLDENS "gpt2/tokenizer_files");
    tw_model *model = tw_from_config(tw, SMALL);
    tw_generate_desc how = sampling(50);
    const char *text;
    tw_generation *g;
    int kind, step;
    CHECK(tokenizer, "%s", tw_error(tw));
    tw_set_tokenizer(model, tokenizer);
    how.on_text = hear;
    how.user = &l;
    for (kind = 0; kind < 2; kind++) {                      /* every byte is a token, so the characters are often cut */
        how.num_beams = kind ? 3 : 1;
        memset(&l, 0, sizeof l);
        l.whole = true;
        text = tw_generate_text(model, "Once upon a time", &how);
        CHECK(text && strcmp(text, l.text) == 0 && l.whole, "kind %d, %d parts: %s", kind, l.parts, tw_error(tw));
        OK(kind ? l.parts == 1 : l.parts > 5);
        if (!text) continue;
        for (step = 0; step < 50; step += 7) {              /* saved in between: nothing is told twice or left out */
            int i;
            memset(&l, 0, sizeof l);
            memset(&rest, 0, sizeof rest);
            g = tw_generation_begin(model, "Once upon a time", &how);
            for (i = 0; i < step; i++) tw_generation_step(g, 0);
            OK(tw_generation_save(g, writer(sizeof saved.data)));
            OK(strcmp(tw_generation_text(g), l.text) == 0);
            tw_generation_end(g);
            how.user = &rest;
            g = tw_generation_restore(model, saved.data, saved.count, &how);
            OK(g && strcmp(tw_generation_text(g), l.text) == 0);
            OK(tw_generation_step(g, -1) == TW_DONE && strcmp(tw_generation_text(g), text) == 0);
            tw_generation_end(g);
            how.user = &l;
            strncat(l.text, rest.text, sizeof l.text - strlen(l.text) - 1);
            OK(strcmp(l.text, text) == 0);
        }
    }
    how.num_beams = 1;
    memset(&l, 0, sizeof l);
    l.stop_at = 3;
    text = tw_generate_text(model, "Once upon a time", &how);
    OK(text && strcmp(text, l.text) == 0 && l.parts == 3 && !tw_failed(tw));
    g = tw_generation_begin(model, "Once upon a time", &how);
    l.parts = 0;
    OK(tw_generation_step(g, -1) == TW_DONE && tw_generation_step(g, -1) == TW_DONE);
    tw_generation_end(g);
    OK(tw_generate_text(model, "", NULL) != NULL && !tw_failed(tw));
    OK(!tw_generate_text(model, NULL, NULL) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_destroy(tw);
}

/* What is NULL where something must be is said, not only answered with nothing. */
static void test_nothing_given(void) {
    tw_context *tw = tw_create(NULL);
    tw_model *model = tw_from_config(tw, SMALL);
    tw_memory_file nameless = { NULL, "{}", 2 };
    static const char *const names[2] = { "a", NULL };
    tw_linear layer;
    OK(model && !tw_model_forward(model, NULL, NULL, NULL) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_from_config(tw, NULL) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_from_memory(tw, NULL, 2) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_from_memory(tw, &nameless, 1) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_slice(tw_full(tw, tw_shape2(2, 3), 1), 1, 2, INT64_MAX) && tw_error_code(tw) == TW_E_RANGE);
    tw_clear_error(tw);
    OK(!tw_cache_reorder(tw_cache_create(tw, TW_F32, 1, 2, 1, 1, 4), NULL) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    tw_enter(model, NULL, 0);
    OK(tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_linear_init(model, &layer, NULL, 4, 4, true) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_add_parameter(model, NULL, tw_shape1(3)) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_set_labels(model, NULL, 2) && tw_error_code(tw) == TW_E_ARGUMENT);
    tw_clear_error(tw);
    OK(!tw_set_labels(model, names, 2) && tw_error_code(tw) == TW_E_ARGUMENT && !tw_label(model, 0));
    tw_destroy(tw);
}

int main(void) {
    test_ids("gpt2");
    test_ids("t5");
    test_ids("glm");
    test_ids("glm_hf");
    test_warpers();
    test_selection();
    test_same_everywhere();
    test_savegames();
    test_cache_bits();
    test_bad_savegames(SMALL, "{\"model_type\":\"gpt2\",\"n_layer\":1," SHAPE "}");
    test_bad_savegames(SMALL_T5("2"), SMALL_T5("3"));
    test_neighbours();
    test_no_allocation();
    test_out_of_memory();
    test_refusals();
    test_limits();
    test_text();
    test_nothing_given();
    test_saved_default();
    return check_done();
}
