/* Prediction: tags that become names, the best path through tags against all paths, pairs of ends, what every head answers,
   models by a task's name, and errors.  (tests/predict.py compares the answers with those of transformers' pipelines.) */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "golden.h"
#include "counted.h"

#define FOLDER "prediction.tmp"
static const char *const words[] = {                             /* as many as the golden models of BERT have */
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "anna", "bob", "reads", "the", "book", "of", "paris", "in", "a", "house", ".", ",", "is", "who", "?", "old",
    "##s", "##house", "王", "小", "明", "在", "京", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y", "z"
};

static bool write_vocabulary(tw_context *tw) {
    FILE *f;
    size_t i;
    if (!tw_make_folders(tw, FOLDER) || (f = fopen(FOLDER "/vocab.txt", "wb")) == NULL) return false;
    for (i = 0; i < sizeof words / sizeof *words; i++) fprintf(f, "%s\n", words[i]);
    return fclose(f) == 0;
}

static tw_model *open_golden(tw_context *tw, const char *family, const char *name) {
    char path[512];
    tw_model *m = tw_from_pretrained(tw, golden_path(path, family, name, ""));
    tw_set_tokenizer(m, tw_load_tokenizer(tw, FOLDER));
    CHECK(m != NULL, "%s: %s", name, tw_error(tw));
    return m;
}

/* -- tags ---------------------------------------------------------------------------------------------------------- */

/* Every letter of the text is a word; tags in the order of the letters. */
static void test_tags(tw_context *tw) {
    static const char *const labels[] = { "O", "B-P", "I-P", "E-P", "S-P", "B-Q", "I-Q", "L_Q", "U-Q", "plain" };
    static const struct { const char *tags, *names; } cases[] = {       /* digits of labels; "begin-end kind", in order */
        { "0000", "" },
        { "0120", "1-3 P" },
        { "1111", "0-1 P 1-2 P 2-3 P 3-4 P" },
        { "2220", "0-3 P" },                                    /* an I without a B begins a name */
        { "1226", "0-3 P 3-4 Q" },
        { "1230", "0-3 P" },
        { "1233", "0-3 P 3-4 P" },                              /* behind an E begins another */
        { "4444", "0-1 P 1-2 P 2-3 P 3-4 P" },
        { "1424", "0-1 P 1-2 P 2-3 P 3-4 P" },                  /* an S stands alone: what follows it begins anew */
        { "5677", "0-3 Q 3-4 Q" },
        { "8080", "0-1 Q 2-3 Q" },
        { "9990", "0-3 plain" },
        { "9092", "0-1 plain 2-3 plain 3-4 P" },
        { "1020", "0-1 P 2-3 P" }
    };
    tw_model *m = open_golden(tw, "bert", "token_classification");
    size_t c;
    CHECK(tw_set_labels(m, labels, 10) && strcmp(tw_label(m, 7), "L_Q") == 0 && tw_label(m, 10) == NULL && tw_label(m, -1) == NULL, "labels");
    for (c = 0; c < sizeof cases / sizeof *cases; c++) {
        int32_t tag[6] = { 4, 0, 0, 0, 0, 4 }, special[6] = { 1, 0, 0, 0, 0, 1 }, word[6] = { -1, 0, 1, 2, 3, -1 };
        int64_t offset[6][2] = { { 0, 0 }, { 0, 1 }, { 1, 2 }, { 2, 3 }, { 3, 4 }, { 0, 0 } }, count, i;
        float score[6] = { 1, 0.5f, 0.5f, 0.5f, 0.5f, 1 };
        tw_span found[7];
        tw_encoding e;
        char got[128] = "";
        memset(&e, 0, sizeof e);
        e.count = 6;
        e.special_mask = special;
        e.words = word;
        e.offsets = (const int64_t (*)[2])offset;
        for (i = 0; i < 4; i++) tag[i + 1] = cases[c].tags[i] - '0';
        count = twi_join_tags(m, &e, tag, score, true, found);
        for (i = 0; i < count; i++) {
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d-%d %s", i ? " " : "", (int)found[i].begin_char, (int)found[i].end_char, found[i].label);
            CHECK(found[i].score > 0.499f && found[i].score < 0.501f, "the score %g", (double)found[i].score);
        }
        CHECK(strcmp(got, cases[c].names) == 0, "tags %s: \"%s\" instead of \"%s\"", cases[c].tags, got, cases[c].names);
        word[2] = word[3] = 0;                                  /* one word of three tokens: the tags of the two later ones do not count */
        count = twi_join_tags(m, &e, tag, score, true, found);
        for (i = 0; i < count; i++) CHECK((found[i].begin_char == 0 && found[i].end_char >= 3) || found[i].begin_char == 3, "a name that ends inside of a word");
    }
    tw_model_free(m);
}

/* Of all 5^4 paths none is better than the one that was found. */
static void test_best_path(tw_context *tw) {
    enum { TAGS = 5, TOKENS = 4, PATHS = 625 };
    int round, p;
    for (round = 0; round < 50; round++) {
        float score[TOKENS * TAGS], transition[TAGS * TAGS];
        int32_t path[TOKENS];
        double best = -1e30, got = 0;
        int i;
        for (i = 0; i < TOKENS * TAGS; i++) score[i] = 3 * check_uniform();
        for (i = 0; i < TAGS * TAGS; i++) transition[i] = 3 * check_uniform();
        if (!twi_best_path(&tw->region, score, transition, TOKENS, TAGS, path)) { CHECK(false, "%s", tw_error(tw)); return; }
        for (p = -1; p < PATHS; p++) {                          /* -1: the one that was found */
            int32_t tag[TOKENS];
            double sum;
            int rest = p, t;
            for (t = 0; t < TOKENS; t++, rest /= TAGS) tag[t] = p < 0 ? path[t] : rest % TAGS;
            sum = (double)score[tag[0]] - (tag[0] ? 1e5 : 0);
            for (t = 1; t < TOKENS; t++) sum += (double)transition[tag[t - 1] * TAGS + tag[t]] + (double)score[t * TAGS + tag[t]];
            if (p < 0) got = sum; else if (sum > best) best = sum;
        }
        CHECK(fabs(got - best) < 1e-9 && path[0] == 0, "round %d: a path of %g, the best has %g", round, got, best);
    }
}

static void test_pointers(tw_context *tw) {
    tw_model *m = open_golden(tw, "flagai_bert", "pointer");
    int32_t special[4] = { 1, 0, 0, 1 };
    int64_t offset[4][2] = { { 0, 0 }, { 0, 1 }, { 1, 2 }, { 0, 0 } };
    float logits[2 * 16];
    tw_span found[8];
    tw_encoding e;
    int i;
    memset(&e, 0, sizeof e);
    e.count = 4;
    e.special_mask = special;
    e.offsets = (const int64_t (*)[2])offset;
    for (i = 0; i < 32; i++) logits[i] = 1;                     /* everything above 0: of each kind 1-1, 1-2 and 2-2 remain */
    CHECK(twi_read_pointers(m, &e, logits, 2, found, 8) == 6, "pairs of ends");
    for (i = 0; i < 32; i++) logits[i] = -1;
    logits[16 + 1 * 4 + 2] = 2;
    CHECK(twi_read_pointers(m, &e, logits, 2, found, 8) == 1 && found[0].begin_char == 0 && found[0].end_char == 2 && strcmp(found[0].label, "LABEL_1") == 0, "one pair of ends");
    tw_model_free(m);
}

/* -- what every head answers ---------------------------------------------------------------------------------------- */

static void check_spans(const tw_entities *found, const char *text) {
    int64_t i;
    for (i = 0; i < found->count; i++) {
        const tw_span *s = &found->list[i];
        CHECK(s->begin >= 0 && s->end > s->begin && s->end <= (int64_t)strlen(text) && strncmp(s->text, text + s->begin, (size_t)(s->end - s->begin)) == 0 &&
              (int64_t)strlen(s->text) == s->end - s->begin, "a span is not a piece of the text: %s", s->text);
        CHECK(s->score > 0 && s->score <= 1 && s->label[0], "score %g", (double)s->score);
    }
}

static void test_heads(tw_context *tw) {
    static const char text[] = "Anna reads  王小明, the old book";
    tw_model *m = open_golden(tw, "bert", "sequence_single_label");
    tw_classes classes = tw_predict_classes(m, text, NULL), pair;
    tw_entities names;
    tw_candidates masked;
    tw_vector vector;
    tw_span answer;
    float sum = 0, first;
    int64_t i;
    OK(tw_purpose_of(m) == TW_FOR_CLASSES);
    for (i = 0; i < classes.count; i++) {
        sum += classes.list[i].score;
        CHECK(i == 0 || classes.list[i].score <= classes.list[i - 1].score, "the best comes first");
    }
    CHECK(classes.count > 1 && fabsf(sum - 1) < 1e-5f, "%d classes, sum %g: %s", (int)classes.count, (double)sum, tw_error(tw));
    first = classes.count ? classes.list[0].score : 0;
    pair = tw_predict_classes(m, text, "a house");
    CHECK(pair.count > 1 && pair.list[0].score != first, "the second text has no part in it");
    tw_model_free(m);

    m = open_golden(tw, "bert", "token_classification");
    OK(tw_purpose_of(m) == TW_FOR_ENTITIES);
    names = tw_predict_entities(m, text);
    CHECK(names.count > 0, "no names (%s)", tw_error(tw));
    check_spans(&names, text);
    tw_model_free(m);
    for (i = 0; i < 3; i++) {
        m = open_golden(tw, "flagai_bert", i == 0 ? "tags" : i == 1 ? "crf" : "pointer");
        OK(tw_purpose_of(m) == TW_FOR_ENTITIES);
        names = tw_predict_entities(m, text);
        check_spans(&names, text);
        tw_model_free(m);
    }

    m = open_golden(tw, "bert", "default");
    OK(tw_purpose_of(m) == TW_FOR_MASKED);
    masked = tw_predict_masked(m, "the [MASK] of [MASK]", 7);
    CHECK(masked.masks == 2 && masked.count == 7 && masked.list[0].score >= masked.list[1].score && masked.list[7].text && masked.list[13].id >= 0, "%s", tw_error(tw));
    masked = tw_predict_masked(m, "[MASK]", 0);
    CHECK(masked.masks == 1 && masked.count == 5, "%s", tw_error(tw));
    tw_model_free(m);

    m = open_golden(tw, "bert", "base_model");
    OK(tw_purpose_of(m) == TW_FOR_EMBEDDING);
    vector = tw_predict_embedding(m, text);
    for (sum = 0, i = 0; i < vector.count; i++) sum += vector.numbers[i] * vector.numbers[i];
    CHECK(vector.count > 0 && fabsf(sum - 1) < 1e-5f, "an embedding of length %g: %s", (double)sum, tw_error(tw));
    tw_model_free(m);

    m = open_golden(tw, "bert", "question_answering");
    OK(tw_purpose_of(m) == TW_FOR_ANSWER);
    answer = tw_predict_answer(m, "who reads?", text);
    CHECK(answer.text && answer.end > answer.begin && strncmp(answer.text, text + answer.begin, strlen(answer.text)) == 0, "%s", tw_error(tw));
    tw_model_free(m);

    m = open_golden(tw, "flagai_bert", "seq2seq");
    OK(tw_purpose_of(m) == TW_FOR_TEXT);
    CHECK(tw_predict_text(m, "anna reads", NULL) != NULL, "%s", tw_error(tw));
    tw_model_free(m);
    tw_clear_error(tw);
}

/* A prediction in the middle of a training step leaves the step, the mode and its tensors as they were. */
static void test_within_a_step(tw_context *tw) {
    tw_model *m = open_golden(tw, "bert", "sequence_single_label");
    float data[4] = { 1, 2, 3, 4 };
    tw_tensor *w = tw_parameter(tw, "w", tw_shape1(4)), *loss;
    tw_training(tw, true);
    loss = tw_sum(tw_mul(w, tw_tensor_from(tw, tw_shape1(4), data)));
    OK(tw_predict_classes(m, "anna", NULL).count > 0);
    OK(tw_backward(loss) && tw_data(tw_grad(w))[2] == 3.0f);
    OK(tw_training(tw, false));
    tw_end_step(tw);
    tw_model_free(m);
}

/* -- models by a task's name -------------------------------------------------------------------------------------------- */

static void test_auto_load(tw_context *tw) {
    static const struct { const char *family, *name, *task, *class_name; } cases[] = {
        { "bert", "default", "masklm", "BertForMaskedLM" },
        { "bert", "default", "embedding", "BertModel" },
        { "bert", "default", "lm", "BertModel" },
        { "bert", "default", "classification", "BertForSequenceClassification" },
        { "bert", "default", "semantic-matching", "BertForSequenceClassification" },
        { "bert", "default", "ner", "BertForTokenClassification" },
        { "bert", "default", "ner-crf", "BertForSequenceLabelingCRF" },
        { "bert", "default", "title-generation", "BertForSeq2seq" },
        { "bert", "default", "question-answering", "BertForQuestionAnswering" },
        { "bert", "default", "poetry", NULL },
        { "bert", "default", "nonsense", NULL },
        { "bert", "nowhere", "ner", NULL },
        { "flagai_bert", "tags", "ner", "BertForSequenceLabeling" },
        { "flagai_bert", "crf", "ner", "BertForSequenceLabelingCRF" },
        { "flagai_bert", "crf", "sequence-labeling-crf", "BertForSequenceLabelingCRF" },
        { "flagai_bert", "pointer", "ner-gp", "BertForSequenceLabelingGP" },
        { "flagai_bert", "classifier", "semantic-matching", "BertForClsClassifier" },
        { "flagai_bert", "seq2seq", "title-generation", "BertForSeq2seq" },
        { "roberta", "default", "masklm", "RobertaForMaskedLM" },
        { "gpt2", "default", "lm", "GPT2LMHeadModel" },
        { "gpt2", "default", "title-generation", NULL },
        { "t5", "default", "title-generation", "T5ForConditionalGeneration" },
        { "t5", "default", "embedding", "T5EncoderModel" },
        { "glm", "seq2seq", "title-generation", "GLMForSeq2Seq" },
        { "glm", "seq2seq", "poetry-generation", "GLMForSeq2Seq" },
        { "glm", "causal", "lm", "GLMModel" },
        { "glm", "classify_cls", "classification", "GLMForSequenceClassification" },
        { "glm", "causal", "ner", NULL }
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[512];
        tw_model *m = tw_auto_load(tw, cases[i].task, cases[i].name, golden_path(folder, cases[i].family, "", ""));
        if (cases[i].class_name) CHECK(m && strcmp(tw_class_of(m), cases[i].class_name) == 0, "%s/%s %s: %s %s", cases[i].family, cases[i].name, cases[i].task, m ? tw_class_of(m) : "", tw_error(tw));
        else CHECK(!m && tw_failed(tw), "%s/%s %s: it opens", cases[i].family, cases[i].name, cases[i].task);
        tw_model_free(m);
        tw_clear_error(tw);
    }
}

/* -- errors ----------------------------------------------------------------------------------------------------------------- */

static void expect_error(tw_context *tw, tw_code code, const char *what) {
    CHECK(tw_error_code(tw) == code, "%s: %s", what, tw_failed(tw) ? tw_error(tw) : "no error");
    tw_clear_error(tw);
}

static void test_errors(tw_context *tw) {
    tw_model *m = open_golden(tw, "bert", "sequence_single_label");
    char path[512];
    OK(tw_predict_classes(NULL, "a", NULL).count == 0 && tw_predict_entities(NULL, "a").count == 0 && tw_predict_masked(NULL, "a", 1).count == 0);
    OK(tw_predict_embedding(NULL, "a").count == 0 && tw_predict_answer(NULL, "a", "b").text == NULL && tw_predict_text(NULL, "a", NULL) == NULL);
    OK(tw_purpose_of(NULL) == TW_FOR_NOTHING_HERE && tw_label(NULL, 0) == NULL && !tw_set_labels(NULL, NULL, 0));
    OK(!tw_failed(tw));
    OK(tw_predict_classes(m, NULL, NULL).count == 0);
    expect_error(tw, TW_E_ARGUMENT, "no text");
    OK(tw_predict_entities(m, "anna").count == 0);
    expect_error(tw, TW_E_UNSUPPORTED, "names by a classifier");
    OK(tw_predict_masked(m, "anna", 1).count == 0);
    expect_error(tw, TW_E_UNSUPPORTED, "masked words by a classifier");
    OK(tw_predict_answer(m, "anna", "bob").text == NULL);
    expect_error(tw, TW_E_UNSUPPORTED, "an answer by a classifier");
    OK(tw_predict_answer(m, "anna", NULL).text == NULL);
    expect_error(tw, TW_E_ARGUMENT, "no context");
    OK(tw_predict_text(m, "anna", NULL) == NULL);
    expect_error(tw, TW_E_UNSUPPORTED, "a text by a classifier");
    OK(tw_predict_classes(m, "anna anna anna anna anna anna anna anna anna anna anna anna anna anna anna anna", NULL).count == 0);
    expect_error(tw, TW_E_RANGE, "a text longer than the positions");
    OK(tw_predict_classes(m, "", NULL).count > 0);
    tw_model_free(m);
    m = open_golden(tw, "bert", "default");
    OK(tw_predict_masked(m, "anna", 1).count == 0);
    expect_error(tw, TW_E_ARGUMENT, "no mask");
    OK(tw_predict_classes(m, "anna", NULL).count == 0);
    expect_error(tw, TW_E_UNSUPPORTED, "classes by a language model");
    tw_model_free(m);
    m = open_golden(tw, "bert", "multiple_choice");
    OK(tw_purpose_of(m) == TW_FOR_NOTHING_HERE && tw_predict_classes(m, "anna", NULL).count == 0);
    expect_error(tw, TW_E_UNSUPPORTED, "multiple choice of one text");
    tw_model_free(m);
    m = open_golden(tw, "bert", "question_answering");
    OK(tw_predict_answer(m, "anna", "").text == NULL);
    expect_error(tw, TW_E_ARGUMENT, "an empty context");
    OK(tw_predict_answer(m, "", "anna reads").text != NULL);
    tw_model_free(m);
    m = tw_from_pretrained(tw, golden_path(path, "bert", "default", ""));
    OK(tw_predict_masked(m, "[MASK]", 1).count == 0);
    expect_error(tw, TW_E_MISSING, "no tokenizer");
    tw_model_free(m);
    OK(tw_auto_load(tw, NULL, "a", "b") == NULL);
    expect_error(tw, TW_E_ARGUMENT, "no task");
}

/* Memory runs out at every place once: an error, and nothing is left. */
static void test_memory(void) {
    long at;
    bool through = false;
    for (at = 1; at < 3000 && !through; at += at < 100 ? 1 : 7) {
        counted c = { 0, 0, 0, 0, 0 };
        char path[512];
        tw_context *tw;
        tw_model *m;
        c.fail_at = at;
        tw = counted_context(&c);
        if (!tw) continue;
        m = tw_from_pretrained(tw, golden_path(path, "bert", "token_classification", ""));
        tw_set_tokenizer(m, tw_load_tokenizer(tw, FOLDER));
        tw_predict_entities(m, "anna reads the book");
        through = c.calls < at;
        CHECK(tw_failed(tw) != through, "allocation %ld: %s", at, tw_error(tw));
        tw_destroy(tw);
        if (c.live) { CHECK(false, "allocation %ld: %ld blocks are left", at, c.live); return; }
    }
    OK(through);
}

int main(void) {
    tw_context *tw = tw_create(NULL);
    CHECK(write_vocabulary(tw), "%s", tw_error(tw));
    test_tags(tw);
    test_best_path(tw);
    test_pointers(tw);
    test_heads(tw);
    test_within_a_step(tw);
    test_auto_load(tw);
    test_errors(tw);
    tw_destroy(tw);
    test_memory();
    return check_done();
}
