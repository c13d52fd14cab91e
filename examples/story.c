/* story.c - from nothing to a GPT-2 that tells stories, in two minutes, on this machine.

   The lesson: everything that makes a language model is here, once, in the order in which it happens:

     1. text        a small grammar makes up stories (or give it a text file of your own)
     2. tokenizer   byte-level BPE, learned from the text
     3. model       a GPT-2 with random weights, from a config.json in a string
     4. training    forward, loss, gradients, AdamW - a few hundred times
     5. saving      a folder that opens here and in Hugging Face transformers
     6. writing     the folder is opened again, and the model tells stories that no one has told

       cc -O3 -fopenmp -I.. story.c -o story -lm && ./story [TEXT_FILE] [STEPS]

   No story is read twice, so what it writes is not remembered: it has learned how a story goes. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 2000, BATCH = 2, BLOCK = 224, VOCABULARY = 1024, STORIES = 5000 };
#define END "<|endoftext|>"

/* ---- 1. text: a grammar of stories -------------------------------------------------------------

   A story is a hero, a friend, a thing, an obstacle and a choice of sentences.  {words in braces} are
   filled in: {hero} a name, {he} {him} {his} its pronouns (with a capital: {He}), the same for the
   {friend} with {fhe} {fhim} {fhis}; {thing}, {place}, ... are drawn once a story. */

typedef struct { const char *kind, *names[2]; } animal;         /* her name and his */
static const animal animals[] = {
    { "bear", { "Bella", "Bruno" } }, { "cat", { "Clara", "Caspar" } }, { "dragon", { "Dora", "David" } }, { "fox", { "Fiona", "Felix" } },
    { "giant", { "Greta", "Gustav" } }, { "hedgehog", { "Hanna", "Hugo" } }, { "lion", { "Lena", "Leo" } }, { "mouse", { "Mina", "Milo" } },
    { "owl", { "Olga", "Oscar" } }, { "penguin", { "Paula", "Paul" } }, { "rabbit", { "Rosa", "Rudi" } }, { "snail", { "Sonja", "Simon" } },
    { "turtle", { "Tilda", "Tom" } }, { "wolf", { "Wanda", "Willi" } }
};
static const char *const traits[] = { "little", "brave", "shy", "clever", "lazy", "cheerful", "curious", "grumpy", "gentle", "hungry", "proud", "dreamy" };
static const char *const homes[] = { "in a hollow tree", "at the edge of the forest", "in a house by the sea", "under an old bridge", "high up in the mountains",
    "in a small village", "behind the windmill", "in a garden full of roses", "on a boat", "in a tower without stairs" };
static const char *const things[] = { "silver bell", "red kite", "golden feather", "warm hat", "blue lantern", "little drum", "map of the stars", "pot of honey",
    "magic stone", "wooden flute", "yellow umbrella", "seed of a singing flower", "cup of moonlight", "book with no end" };
static const char *const places[] = { "on the island in the lake", "behind the old mill", "on top of the highest hill", "in the deepest part of the forest",
    "in the cave of echoes", "at the end of the rainbow", "under the stone bridge", "in the garden of the queen" };
static const char *const wishes[] = { "{He} had dreamed of it for seven nights.", "{His} grandmother had told {him} about it.", "{He} had read about it in an old letter.",
    "A bird had sung about it in the morning.", "Without it, {he} could not sleep." };

/* What stands in the way, how it sounds, and what a friend can do about it. */
typedef struct { const char *problem, *complaint, *help; } obstacle;
static const obstacle obstacles[] = {
    { "But the river was wide, and there was no bridge.", "I cannot swim across the river", "{fhe} built a raft out of branches, and they floated to the other side" },
    { "But night came, and it was very dark.", "I am afraid of the dark", "{fhe} caught ten fireflies in a glass, and they lit up the way" },
    { "But a big stone lay on the path.", "The stone is too heavy for me", "they pushed together, once, twice, three times, until the stone rolled away" },
    { "But the gate was locked.", "I have no key for the gate", "{fhe} found the key under a flower pot, and the gate opened" },
    { "But the wind blew so hard that {he} could not walk.", "The wind is too strong", "{fhe} held {his} hand, and the wind could not blow both of them away" },
    { "But the fog was thick, and {he} lost {his} way.", "I do not know where I am", "{fhe} rang a cow bell at every corner until they found the way" },
    { "But the hill was steep and slippery.", "I always slide back down", "{fhe} let down a long rope and pulled {him} up" },
    { "But a troll sat there and let nobody pass.", "The troll will not let me pass", "{fhe} told the troll a joke, and he laughed so much that he forgot about them" },
    { "But it began to snow, and soon {he} was cold.", "My feet are cold", "{fhe} gave {him} a scarf and hot soup, and the snow felt like feathers" }
};

static const char *const openings[] = { "Once upon a time there was a {trait} {kind} called {hero}. {He} lived {home}.",
    "{hero} was a {trait} {kind}. {He} lived {home}.", "Far away, {home}, lived a {trait} {kind}. {His} name was {hero}.",
    "There once was a {kind} called {hero} who lived {home}. Everybody said that {he} was very {trait}." };
static const char *const wants[] = { "More than anything, {hero} wanted to find the {thing}.", "One day {hero} heard of a {thing} that was hidden {place}.",
    "Every evening {hero} thought about the {thing}." };
static const char *const departures[] = { "So one morning {he} packed some bread and set out to look for it {place}.", "So {hero} put on {his} boots and went to look for it {place}.",
    "\"I will go and find it,\" said {hero}. They said that it was {place}." };
static const char *const sorrows[] = { "{hero} sat down and cried.", "{hero} did not know what to do.", "{hero} sighed and thought of going home." };
static const char *const meetings[] = { "Just then a {ftrait} {fkind} came by. {Fhis} name was {friend}.", "A {ftrait} {fkind} called {friend} heard {him}.",
    "\"Hello,\" said a voice. It was {friend}, a {ftrait} {fkind}." };
static const char *const questions[] = { "\"What is the matter?\" asked {friend}.", "\"Why are you so sad?\" asked {friend}.", "\"Can I help you?\" asked {friend}." };
static const char *const answers[] = { "\"{complaint},\" said {hero}.", "\"{complaint},\" {hero} answered." };
static const char *const offers[] = { "\"Do not worry,\" said {friend}, and {help}.", "\"Let us try it together,\" said {friend}. Then {help}.", "{friend} thought for a while. Then {help}." };
static const char *const findings[] = { "And there it was: the {thing}, more beautiful than in any dream.", "At last they found the {thing} {place}.",
    "There, {place}, lay the {thing} and shone." };
static const char *const thanks[] = { "\"Thank you,\" said {hero}. \"Half of it is yours.\"", "\"Without you I would never have found it,\" said {hero}.",
    "{hero} was so happy that {he} danced with {friend}.", "\"What a day!\" laughed {friend}." };
static const char *const endings[] = { "From that day on {hero} and {friend} were the best of friends.", "They took the {thing} home and drank tea until the stars came out.",
    "And whenever {hero} looked at the {thing}, {he} thought of {friend}.", "And if they have not lost the {thing}, they are still happy today.",
    "That night {hero} slept well, and {friend} snored beside {him}." };

/* Randomness of the grammar's own (xorshift64), so that the stories are the same everywhere. */
static uint64_t dice = 88172645463325252u;
static size_t roll(size_t sides) {
    dice ^= dice << 13; dice ^= dice >> 7; dice ^= dice << 17;
    return (size_t)((dice >> 33) % sides);
}
#define COUNT(list) (sizeof(list) / sizeof(list)[0])
#define PICK(list) ((list)[roll(COUNT(list))])

typedef struct {
    const animal *hero, *friend_;
    size_t he, fhe;                     /* 1: he, 0: she */
    const char *trait, *ftrait, *home, *thing, *place;
    const obstacle *trouble;
} story;

static story new_story(void) {
    story s;
    s.hero = &PICK(animals);
    do s.friend_ = &PICK(animals); while (s.friend_ == s.hero);
    s.he = roll(2);
    s.fhe = roll(2);
    s.trait = PICK(traits);
    do s.ftrait = PICK(traits); while (s.ftrait == s.trait);
    s.home = PICK(homes);
    s.thing = PICK(things);
    s.place = PICK(places);
    s.trouble = &PICK(obstacles);
    return s;
}

typedef struct { char *data; size_t length, room; } text;

static void text_add(text *t, const char *bytes, size_t count) {
    if (t->length + count + 1 > t->room) {
        t->room = 2 * (t->length + count + 1);
        t->data = (char *)realloc(t->data, t->room);
        if (!t->data) { fprintf(stderr, "out of memory\n"); exit(1); }
    }
    memcpy(t->data + t->length, bytes, count);
    t->length += count;
    t->data[t->length] = 0;
}

/* What {slot} stands for; a template again for {help} and {complaint}. */
static const char *slot_value(const story *s, const char *slot, size_t n) {
    static const char *const pronouns[2][3] = { { "she", "her", "her" }, { "he", "him", "his" } };
    const struct { const char *name, *value; } values[] = {
        { "hero", s->hero->names[s->he] }, { "he", pronouns[s->he][0] }, { "him", pronouns[s->he][1] }, { "his", pronouns[s->he][2] },
        { "friend", s->friend_->names[s->fhe] }, { "fhe", pronouns[s->fhe][0] }, { "fhis", pronouns[s->fhe][2] }, { "trait", s->trait },
        { "kind", s->hero->kind }, { "ftrait", s->ftrait }, { "fkind", s->friend_->kind }, { "home", s->home }, { "thing", s->thing }, { "place", s->place }, { "complaint", s->trouble->complaint }, { "help", s->trouble->help }
    };
    size_t i;
    for (i = 0; i < COUNT(values); i++)
        if (strlen(values[i].name) == n && (slot[0] | 32) == values[i].name[0] && !strncmp(slot + 1, values[i].name + 1, n - 1)) return values[i].value;
    return "?";
}

static bool is_vowel(char c) { return c && strchr("aeiou", c) != NULL; }

static void fill(text *out, const story *s, const char *from) {
    while (*from) {
        size_t plain = strcspn(from, "{"), start, n;
        text_add(out, from, plain);
        from += plain;
        if (!*from) break;
        n = strcspn(from, "}") - 1;
        start = out->length;
        fill(out, s, slot_value(s, from + 1, n));
        if (from[1] >= 'A' && from[1] <= 'Z') out->data[start] = (char)(out->data[start] - 'a' + 'A');
        if (start >= 3 && is_vowel(out->data[start]) && (!strncmp(out->data + start - 3, " a ", 3) || !strncmp(out->data + start - 3, " A ", 3))) {
            text_add(out, "n", 1);                              /* a owl: an owl */
            memmove(out->data + start, out->data + start - 1, out->length - start);
            out->data[start - 1] = 'n';
        }
        from += n + 2;
    }
}

static void tell(text *out) {
    const story s = new_story();
    const char *const plot[] = {
        PICK(openings), PICK(wants), PICK(wishes), PICK(departures), s.trouble->problem, PICK(sorrows), PICK(meetings), PICK(questions), PICK(answers),
        PICK(offers), PICK(findings), PICK(thanks), PICK(endings)
    };
    size_t i;
    for (i = 0; i < COUNT(plot); i++) {
        if (i == 2 && roll(2)) continue;                        /* not every wish has a reason, and not every friend is thanked */
        if (i == 11 && roll(3) == 0) continue;
        fill(out, &s, plot[i]);
        text_add(out, i == 3 || i == 8 || i == COUNT(plot) - 1 ? "\n" : " ", 1);
    }
    text_add(out, END, strlen(END));
}

static text all_stories(void) {
    text t = { NULL, 0, 0 };
    int i;
    for (i = 0; i < STORIES; i++) tell(&t);
    return t;
}

static text read_file(const char *path) {
    text t = { NULL, 0, 0 };
    char piece[65536];
    size_t n;
    FILE *f = fopen(path, "rb");
    if (!f) { fprintf(stderr, "%s: cannot be read\n", path); exit(1); }
    while ((n = fread(piece, 1, sizeof piece, f)) > 0) text_add(&t, piece, n);
    fclose(f);
    if (t.length < 4 * BLOCK) { fprintf(stderr, "%s: too short to learn from\n", path); exit(1); }
    return t;
}

/* ---- 2 to 5: tokenizer, model, training, saving ------------------------------------------------ */

/* The stories as rows of BLOCK token ids: each begins a row, and end tokens fill it up. */
static int32_t *rows_of_stories(tw_tokenizer *tokenizer, const text *t, int64_t *rows) {
    int32_t *ids = (int32_t *)malloc((size_t)STORIES * BLOCK * sizeof *ids), end = tw_token_id(tokenizer, END);
    const char *from = t->data, *to;
    for (*rows = 0; ids && (to = strstr(from, END)) != NULL; ++*rows, from = to + strlen(END)) {
        int32_t *row = ids + *rows * BLOCK;
        tw_encoding e;
        int64_t n = tw_tokenize(tokenizer, from, (size_t)(to - from), NULL, &e), i;
        for (i = 0; i < BLOCK; i++) row[i] = i < n ? e.ids[i] : end;
    }
    return ids;
}

static void train(tw_context *tw, const text *t, bool stories, int steps) {
    char config[320], schedule[96];
    tw_tokenizer *tokenizer = tw_train_tokenizer(tw, t->data, t->length, VOCABULARY, NULL);
    tw_dataset_desc how = { .batch_size = BATCH, .block_size = BLOCK, .max_steps = steps, .shuffle = true };
    int32_t *ids = NULL;
    int64_t rows = 0;
    tw_model *gpt;
    tw_dataset *data;
    tw_batch batch;

    snprintf(config, sizeof config, "{\"model_type\":\"gpt2\",\"n_layer\":3,\"n_embd\":256,\"n_head\":8,\"n_positions\":%d,\"vocab_size\":%d,"
             "\"bos_token_id\":%d,\"eos_token_id\":%d,\"initializer_range\":0.08,\"resid_pdrop\":0,\"embd_pdrop\":0,\"attn_pdrop\":0}", BLOCK, (int)tw_vocab_size(tokenizer),
             (int)tw_token_id(tokenizer, END), (int)tw_token_id(tokenizer, END));
    snprintf(schedule, sizeof schedule, "{\"warmup_steps\":%d,\"max_steps\":%d}", steps / 20, steps);
    gpt = tw_from_config(tw, config);
    tw_set_tokenizer(gpt, tokenizer);
    if (stories) ids = rows_of_stories(tokenizer, t, &rows);
    data = stories ? tw_dataset_from_ids(tw, ids, rows * BLOCK, &how) : tw_dataset_from_text(gpt, t->data, t->length, &how);
    free(ids);
    tw_set_optimizer(gpt, "adamw", "{\"lr\":1.5e-3,\"weight_decay\":0.01,\"betas\":[0.9,0.98]}");
    tw_set_lr_scheduler(gpt, "cosine", schedule);
    printf("A GPT-2 with %.1f million parameters reads %d times %d tokens.\n", (double)tw_num_parameters(gpt, true) / 1e6, steps, BATCH * BLOCK);
    fflush(stdout);
    while (tw_next_batch(data, &batch)) {
        float loss = tw_forward_backward(gpt, &batch, NULL);        /* forward, calculate_loss, backward */
        tw_clip_grad_and_step(gpt, 1.0f, 2, NULL);                  /* clip_grad_norm, step, zero_grad, lr_step */
        tw_progress(data, "loss", (double)loss);                    /* bar, rate, time left */
    }
    tw_save(gpt, "story", "out");                                   /* out/story: opens again here and in transformers */
    tw_dataset_free(data);
}

/* ---- 6. writing ----------------------------------------------------------------------------------- */

/* Prints text as it comes, broken into lines between words. */
static bool print_wrapped(const char *piece, void *user) {
    int *column = (int *)user;
    for (; *piece; piece++) {
        if (*piece == '\n' || (*piece == ' ' && *column > 78)) { putchar('\n'); *column = 0; continue; }
        putchar(*piece);
        if (((unsigned char)*piece & 0xC0) != 0x80) ++*column;      /* not the inside of a UTF-8 character */
    }
    fflush(stdout);
    return true;
}

static void write_stories(tw_context *tw, const char *const *beginnings, size_t count) {
    tw_model *gpt = tw_from_pretrained(tw, "out/story");
    size_t i;
    for (i = 0; i < count && !tw_failed(tw); i++) {
        int column = 0;
        tw_generate_desc how = { .max_new_tokens = 200, .do_sample = true, .temperature = 0.7f, .top_k = 20, .seed = 1 + i,
                                 .on_text = print_wrapped, .user = &column };
        printf("\n--- %d ---\n", (int)i + 1);
        print_wrapped(beginnings[i], &column);
        tw_generate_text(gpt, beginnings[i], &how);
        putchar('\n');
    }
}

int main(int argc, char **argv) {
    static const char *const of_stories[] = { "Once upon a time there was a", "Wanda was a shy wolf.", "There once was a snail called Simon" };
    static const char *const of_a_file[] = { "\n", "\n", "\n" };
    const char *path = argc > 1 && argv[1][0] ? argv[1] : NULL;
    int steps = argc > 2 ? atoi(argv[2]) : STEPS, failed;
    text t = path ? read_file(path) : all_stories();
    tw_context *tw = tw_create(NULL);

    printf("%s: %.1f MB of text.\n", path ? path : "Made-up stories", (double)t.length / 1e6);
    train(tw, &t, path == NULL, steps > 0 ? steps : 1);
    write_stories(tw, path ? of_a_file : of_stories, COUNT(of_stories));
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    free(t.data);
    return failed;
}
