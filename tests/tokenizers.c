/* Tokenizers against `tokenizers` and `sentencepiece`: ids, offsets, decoding, pairs, truncation and padding of every kind of file;
   what is learned and what is saved; and files and texts that are wrong. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "check.h"
#include "counted.h"
#include <string.h>

#define FOLDER "goldens/tokenizers/"
#define SAVED "tokenizer.tmp"
static const char *const folders[] = { "gpt2_files", "gpt2_json", "roberta_files", "split_regex_json", "bert_files", "bert_json", "t5_model",
                                       "sp_bpe_model", "unigram_json", "byte_fallback_json" };
enum { FOLDERS = sizeof folders / sizeof *folders };

static const char *path_of(char out[256], const char *name, const char *file) { snprintf(out, 256, FOLDER "%s%s%s", name, *file ? "/" : "", file); return out; }

static bool same_numbers(const tw_json *want, const int32_t *got, int64_t n) {
    int64_t i;
    if (tw_json_count(want) != n) return false;
    for (i = 0; i < n; i++) if (tw_json_int(tw_json_at(want, i), -999) != got[i]) return false;
    return true;
}

static bool same_offsets(const tw_json *want, const tw_encoding *e) {
    int64_t i;
    if (tw_json_count(want) != 2 * e->count) return false;
    for (i = 0; i < 2 * e->count; i++) if (tw_json_int(tw_json_at(want, i), -999) != e->offsets[i / 2][i % 2]) return false;
    return true;
}

/* Decodes whole and in a stream; both must be the text. */
static bool same_text(tw_tokenizer *t, const tw_json *want, const int32_t *ids, int64_t n, bool skip) {
    size_t length, at = 0, want_length = tw_json_string_length(want);
    const char *text = tw_detokenize_length(t, ids, n, skip, &length), *own = tw_json_string(want, "");
    tw_decoder *d;
    int64_t i;
    bool ok = length == want_length && memcmp(text, own, length) == 0;
    if (!ok || strlen(own) != want_length) return ok;                       /* a stream's parts end at a NUL */
    d = tw_new_decoder(t, skip);
    for (i = 0; ok && i <= n; i++) {
        const char *part = i < n ? tw_decoder_feed(d, ids[i]) : tw_decoder_end(d);
        size_t m = strlen(part);
        ok = m <= want_length - at && memcmp(own + at, part, m) == 0 && twi_utf8_whole(part, m) == m;
        at += m;
    }
    tw_free_decoder(d);
    return ok && at == want_length;
}

static void run_texts(tw_tokenizer *t, const char *name, const tw_json *cases) {
    tw_tokenize_desc plain;
    tw_encoding e;
    int64_t i;
    memset(&plain, 0, sizeof plain);
    plain.no_special = true;
    for (i = 0; i < tw_json_count(cases); i++) {
        const tw_json *c = tw_json_at(cases, i), *text = tw_json_get(c, "text"), *want;
        const char *s = tw_json_string(text, "");
        size_t n = tw_json_string_length(text);
        int32_t ids[512];
        if ((want = tw_json_get(c, "ids")) != NULL) {
            CHECK(tw_tokenize(t, s, n, NULL, &e) >= 0 && same_numbers(want, e.ids, e.count), "%s: ids of text %d \"%.40s\"", name, (int)i, s);
            CHECK(same_offsets(tw_json_get(c, "offsets"), &e), "%s: offsets of text %d \"%.40s\"", name, (int)i, s);
            if (e.count > 512) continue;
            if (e.count) memcpy(ids, e.ids, (size_t)e.count * sizeof *ids);
            want = tw_json_get(c, "decoded");
            CHECK(same_text(t, want, ids, e.count, false), "%s: decoding text %d \"%.40s\"", name, (int)i, s);
            if (tw_json_get(c, "skipped")) want = tw_json_get(c, "skipped");
            CHECK(same_text(t, want, ids, e.count, true), "%s: decoding text %d without special tokens \"%.40s\"", name, (int)i, s);
        }
        want = tw_json_get(c, "plain") ? tw_json_get(c, "plain") : tw_json_get(c, "ids");
        CHECK(tw_tokenize(t, s, n, &plain, &e) >= 0 && same_numbers(want, e.ids, e.count), "%s: plain ids of text %d \"%.40s\"", name, (int)i, s);
        if ((want = tw_json_get(c, "plain_offsets")) != NULL) CHECK(same_offsets(want, &e), "%s: plain offsets of text %d \"%.40s\"", name, (int)i, s);
        if (e.count <= 512 && (want = tw_json_get(c, "plain_decoded")) != NULL) {
            if (e.count) memcpy(ids, e.ids, (size_t)e.count * sizeof *ids);
            CHECK(same_text(t, want, ids, e.count, false), "%s: decoding plain text %d \"%.40s\"", name, (int)i, s);
        }
    }
}

static void run_pairs(tw_context *tw, tw_tokenizer *t, const char *name, const tw_json *cases) {
    int64_t i;
    for (i = 0; i < tw_json_count(cases); i++) {
        const tw_json *c = tw_json_at(cases, i), *pair = tw_json_get(c, "pair");
        const char *cut = tw_json_string(tw_json_get(c, "truncation"), "");
        tw_tokenize_desc how;
        tw_encoding e;
        int64_t n;
        memset(&how, 0, sizeof how);
        how.pair = tw_json_string(pair, "");
        how.pair_length = tw_json_string_length(pair);
        how.no_special = tw_json_bool(tw_json_get(c, "no_special"), false);
        how.max_length = tw_json_int(tw_json_get(c, "max_length"), 0);
        how.truncate_left = tw_json_bool(tw_json_get(c, "truncate_left"), false);
        how.truncation = strcmp(cut, "only_first") == 0 ? TW_ONLY_FIRST : strcmp(cut, "only_second") == 0 ? TW_ONLY_SECOND : TW_LONGEST_FIRST;
        how.pad_to = tw_json_int(tw_json_get(c, "pad_to"), 0);
        how.pad_to_multiple_of = tw_json_int(tw_json_get(c, "pad_to_multiple_of"), 0);
        how.pad_left = tw_json_bool(tw_json_get(c, "pad_left"), false);
        n = tw_tokenize(t, tw_json_string(tw_json_get(c, "text"), ""), tw_json_string_length(tw_json_get(c, "text")), &how, &e);
        if (tw_json_bool(tw_json_get(c, "error"), false)) {
            CHECK(n < 0 && tw_failed(tw), "%s: pair %d cannot be cut so", name, (int)i);
            tw_clear_error(tw);
            continue;
        }
        CHECK(n >= 0 && same_numbers(tw_json_get(c, "ids"), e.ids, e.count) && same_numbers(tw_json_get(c, "type_ids"), e.type_ids, e.count), "%s: pair %d", name, (int)i);
        CHECK(same_numbers(tw_json_get(c, "attention_mask"), e.attention_mask, e.count) && same_numbers(tw_json_get(c, "special_mask"), e.special_mask, e.count)
              && same_offsets(tw_json_get(c, "offsets"), &e), "%s: masks and offsets of pair %d", name, (int)i);
    }
}

static void run_folder(const char *name) {
    char path[256];
    tw_context *tw = tw_create(NULL);
    tw_tokenizer *t = tw_load_tokenizer(tw, path_of(path, name, "")), *again;
    tw_json *cases = tw_json_load(tw, path_of(path, name, "cases.json"));
    int64_t id;
    CHECK(t && cases, "%s: %s", name, tw_error(tw));
    if (t && cases) {
        CHECK(tw_vocab_size(t) == tw_json_int(tw_json_get(cases, "vocab_size"), 0), "%s: vocabulary of %d", name, (int)tw_vocab_size(t));
        run_texts(t, name, tw_json_get(cases, "texts"));
        run_pairs(tw, t, name, tw_json_get(cases, "pairs"));
        for (id = 0; id < tw_vocab_size(t); id++) CHECK(tw_token(t, (int32_t)id) && tw_token_id(t, tw_token(t, (int32_t)id)) == id, "%s: token %d", name, (int)id);
        CHECK(!tw_token(t, -1) && !tw_token(t, (int32_t)tw_vocab_size(t)) && tw_token_id(t, "no such token") == -1, "%s: what is no token", name);
        CHECK(tw_save_tokenizer(t, SAVED), "%s: saving: %s", name, tw_error(tw));
        again = tw_load_tokenizer(tw, SAVED);
        CHECK(again != NULL, "%s: what was saved does not open: %s", name, tw_error(tw));
        if (again) {
            run_texts(again, name, tw_json_get(cases, "texts"));
            run_pairs(tw, again, name, tw_json_get(cases, "pairs"));
        }
        for (id = 0; again && id < 7; id++) {
            static const char *const names[] = { "bos", "eos", "pad", "unk", "cls", "sep", "mask" };
            CHECK(tw_special_id(again, names[id]) == tw_special_id(t, names[id]), "%s: %s of the saved one", name, names[id]);
        }
        tw_free_tokenizer(again);
        {   /* the next folder must not find these files */
            static const char *const files[] = { "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model" };
            size_t k;
            for (k = 0; k < sizeof files / sizeof *files; k++) { snprintf(path, sizeof path, SAVED "/%s", files[k]); remove(path); }
        }
    }
    tw_json_free(cases);
    tw_destroy(tw);
}

/* -- learning -------------------------------------------------------------------------------------------------------------- */

static bool stop_at_300(void *user, int64_t tokens, int64_t wanted) { (void)wanted; *(int64_t *)user = tokens; return tokens < 300; }

static void run_learning(void) {
    tw_context *tw = tw_create(NULL);
    tw_json *want = tw_json_load(tw, FOLDER "gpt2_json/learned.json");
    const tw_json *vocab = tw_json_get(want, "vocab"), *merges = tw_json_get(want, "merges");
    FILE *f = fopen(FOLDER "gpt2_json/learn.txt", "rb");
    char *text = (char *)check_malloc(1 << 16);
    size_t n = f ? fread(text, 1, 1 << 16, f) : 0;
    tw_tokenizer *t = tw_train_tokenizer(tw, text, n, tw_json_count(vocab), NULL);
    tw_tokenizer_train_desc how;
    static const char *const specials[2] = { "<a>", "<b>" };
    int64_t i, reached = 0;
    size_t k;
    if (f) fclose(f);
    CHECK(t && n > 0, "learning: %s", tw_error(tw));
    CHECK(tw_vocab_size(t) == tw_json_count(vocab), "learned %d tokens", (int)tw_vocab_size(t));
    for (i = 0; i < tw_json_count(vocab); i++) CHECK(tw_token_id(t, tw_json_string(tw_json_at(vocab, i), "")) == i, "learned token %d is %s", (int)i, tw_token(t, (int32_t)i));
    for (i = 0; t && i < tw_json_count(merges); i++) {
        const tw_json *merge = tw_json_at(merges, i);
        const twi_merge *own = twi_find_merge(t, tw_token_id(t, tw_json_string(tw_json_at(merge, 0), "")), tw_token_id(t, tw_json_string(tw_json_at(merge, 1), "")));
        CHECK(own && own->rank == (uint32_t)i, "learned merge %d", (int)i);
    }
    tw_free_tokenizer(t);
    memset(&how, 0, sizeof how);
    how.special_tokens = specials;
    how.special_count = 2;
    how.progress = stop_at_300;
    how.user = &reached;
    CHECK(!tw_train_tokenizer(tw, text, n, 400, &how) && tw_error_code(tw) == TW_E_STOPPED && reached == 300, "learning can be stopped");
    tw_clear_error(tw);
    how.progress = NULL;
    t = tw_train_tokenizer(tw, "aaaa", 4, 400, &how);
    CHECK(t && tw_token_id(t, "<b>") == 1 && tw_is_special(t, 1) && !tw_is_special(t, 2) && tw_vocab_size(t) < 262, "a text with hardly a pair");
    tw_free_tokenizer(t);
    for (k = 0; k < 3; k++) {
        CHECK(!tw_train_tokenizer(tw, "x", 1, k == 0 ? 257 : k == 1 ? -1 : (int64_t)1 << 40, &how) && tw_error_code(tw) == TW_E_RANGE, "sizes that cannot be");
        tw_clear_error(tw);
    }
    free(text);
    tw_json_free(want);
    tw_destroy(tw);
}

/* -- wrong files: from memory, through the host's reader -------------------------------------------------------------------- */

typedef struct one_file { const char *name, *text; size_t length; } one_file;

static void *open_file(void *user, const char *path, int64_t *size) {
    one_file *files = (one_file *)user;
    for (; files->name; files++) if (twi_ends_with(path, files->name)) { *size = (int64_t)files->length; return files; }
    return NULL;
}
static int64_t read_file(void *user, void *file, int64_t offset, void *buffer, int64_t bytes) {
    (void)user;
    memcpy(buffer, ((one_file *)file)->text + offset, (size_t)bytes);
    return bytes;
}
static void close_file(void *user, void *file) { (void)user; (void)file; }

/* Opens a folder of these files; tokenizes with it if it opens.  The error's code. */
static tw_code open_files(one_file *files, char error[1024]) {
    static const char text[] = "ab a\xff\xfe \xE4\xB8\xAD <0x41> [MASK]\xCC\x81 hello  \n world";
    counted c = { 0, 0, 0, 0, 0 };
    tw_desc desc = counted_desc(&c);
    tw_context *tw;
    tw_tokenizer *t;
    tw_encoding e;
    tw_code code;
    desc.read.open = open_file;
    desc.read.read = read_file;
    desc.read.close = close_file;
    desc.read.user = files;
    tw = tw_create(&desc);
    t = tw_load_tokenizer(tw, "folder");
    if (t && tw_tokenize(t, text, sizeof text - 1, NULL, &e) >= 0) tw_detokenize(t, e.ids, e.count, false);
    code = tw_error_code(tw);
    snprintf(error, 1024, "%s", tw_error(tw));
    tw_destroy(tw);
    CHECK(c.live == 0, "wrong files leave %ld blocks behind", c.live);
    return code;
}

static void refuse(const char *what, const char *name, const char *text, tw_code want) {
    one_file files[2];
    char error[1024];
    tw_code code;
    memset(files, 0, sizeof files);
    files[0].name = name;
    files[0].text = text;
    files[0].length = strlen(text);
    code = open_files(files, error);
    CHECK(want == TW_OK ? code == TW_OK : want == TW_CODE_FORCE_INT ? code != TW_OK : code == want, "%s: code %d, \"%s\"", what, (int)code, error);
}

#define BPE(vocab, merges) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[" merges "]}}"
#define WITH(part) "{" part ",\"model\":{\"type\":\"BPE\",\"unk_token\":\"a\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}"
#define UNIGRAM(pieces, rest) "{\"model\":{\"type\":\"Unigram\"" rest ",\"vocab\":[" pieces "]}}"

static void run_wrong_files(void) {
    char error[1024], *deep;
    one_file pair[3];
    size_t i;
    refuse("nothing at all", "other", "", TW_E_MISSING);
    refuse("empty", "tokenizer.json", "", TW_E_FORMAT);
    refuse("no model", "tokenizer.json", "{}", TW_E_FORMAT);
    refuse("a good one", "tokenizer.json", BPE("\"a\":0,\"b\":1,\"ab\":2", "[\"a\",\"b\"]"), TW_OK);
    refuse("old merges", "tokenizer.json", BPE("\"a\":0,\"b\":1,\"ab\":2", "\"a b\""), TW_OK);
    refuse("negative id", "tokenizer.json", BPE("\"a\":-1", ""), TW_E_FORMAT);
    refuse("huge id", "tokenizer.json", BPE("\"a\":2147483647", ""), TW_E_FORMAT);
    refuse("larger id", "tokenizer.json", BPE("\"a\":9007199254740993000", ""), TW_E_FORMAT);
    refuse("broken id", "tokenizer.json", BPE("\"a\":1.5", ""), TW_E_FORMAT);
    refuse("id that is a text", "tokenizer.json", BPE("\"a\":\"1\"", ""), TW_E_FORMAT);
    refuse("two tokens, one id", "tokenizer.json", BPE("\"a\":0,\"b\":0", ""), TW_E_FORMAT);
    refuse("empty token", "tokenizer.json", BPE("\"\":0,\"a\":1", ""), TW_OK);
    refuse("merge of unknown", "tokenizer.json", BPE("\"a\":0,\"b\":1", "[\"a\",\"c\"]"), TW_E_FORMAT);
    refuse("merge into unknown", "tokenizer.json", BPE("\"a\":0,\"b\":1", "[\"a\",\"b\"]"), TW_E_FORMAT);
    refuse("merge of three", "tokenizer.json", BPE("\"a\":0", "\"a a a\""), TW_E_FORMAT);
    refuse("merge of numbers", "tokenizer.json", BPE("\"a\":0", "[1,2]"), TW_E_FORMAT);
    refuse("merges twice", "tokenizer.json", BPE("\"a\":0,\"aa\":1", "\"a a\",\"a a\",[\"a\",\"a\"]"), TW_OK);
    refuse("no merges", "tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", TW_E_FORMAT);
    refuse("unknown model", "tokenizer.json", "{\"model\":{\"type\":\"Other\",\"vocab\":{}}}", TW_E_UNSUPPORTED);
    refuse("unknown normalizer", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Other\"}"), TW_E_UNSUPPORTED);
    refuse("step without type", "tokenizer.json", WITH("\"decoder\":{}"), TW_E_FORMAT);
    refuse("other version", "tokenizer.json", WITH("\"version\":\"2.0\""), TW_E_UNSUPPORTED);
    refuse("template of nothing", "tokenizer.json", WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\",\"type_id\":0}}],"
           "\"pair\":[],\"special_tokens\":{}}"), TW_E_FORMAT);
    refuse("template past the vocabulary", "tokenizer.json", WITH("\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"x\",3],\"cls\":[\"y\",1]}"), TW_E_FORMAT);
    refuse("template of a negative id", "tokenizer.json", WITH("\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"x\",-3],\"cls\":[\"y\",1]}"), TW_E_FORMAT);
    refuse("template for two of one", "tokenizer.json", WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\",\"type_id\":0}}],"
           "\"pair\":[],\"special_tokens\":{}}"), TW_E_FORMAT);
    refuse("added token without text", "tokenizer.json", WITH("\"added_tokens\":[{\"id\":5}]"), TW_E_FORMAT);
    refuse("open class", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[a\"},\"content\":\"\"}"), TW_E_UNSUPPORTED);
    refuse("open group", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(a\"},\"content\":\"\"}"), TW_E_UNSUPPORTED);
    refuse("closed group", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a)\"},\"content\":\"\"}"), TW_E_UNSUPPORTED);
    refuse("look-behind", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(?<=a)b\"},\"content\":\"\"}"), TW_E_UNSUPPORTED);
    refuse("huge count", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"((a{9}){999}){999}\"},\"content\":\"\"}"), TW_E_UNSUPPORTED);
    refuse("endless loop", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(a*)*x\"},\"content\":\"\"}"), TW_E_RANGE);
    refuse("charsmap of three bytes", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}"), TW_E_FORMAT);
    refuse("charsmap too long", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////wAA\"}"), TW_E_FORMAT);
    refuse("charsmap that points away", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"CAAAAP////////////8A\"}"), TW_E_FORMAT);
    refuse("charsmap that loops", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAAAAAAA\"}"), TW_OK);
    refuse("charsmap not base64", "tokenizer.json", WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"!!!!\"}"), TW_E_FORMAT);
    refuse("no pieces", "tokenizer.json", UNIGRAM("", ""), TW_E_FORMAT);
    refuse("unknown piece past the end", "tokenizer.json", UNIGRAM("[\"a\",0]", ",\"unk_id\":1"), TW_E_FORMAT);
    refuse("no unknown piece", "tokenizer.json", UNIGRAM("[\"a\",0]", ""), TW_E_FORMAT);
    refuse("piece without score", "tokenizer.json", UNIGRAM("[\"a\"]", ",\"unk_id\":0"), TW_E_FORMAT);
    refuse("byte tokens that are none", "tokenizer.json", UNIGRAM("[\"<0x-1>\",0],[\"<0xZZ>\",0],[\"<0x41>\",-1],[\"a\",0]", ",\"unk_id\":0,\"byte_fallback\":true"), TW_OK);
    refuse("fixed length 0", "tokenizer.json", WITH("\"pre_tokenizer\":{\"type\":\"FixedLength\",\"length\":0}"), TW_E_FORMAT);
    refuse("a list for a vocabulary", "tokenizer.json", "{\"model\":{\"type\":\"WordPiece\",\"vocab\":[1]}}", TW_E_FORMAT);
    refuse("no unknown word", "tokenizer.json", "{\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"?\",\"vocab\":{\"a\":0}}}", TW_E_FORMAT);
    refuse("empty vocab.txt", "vocab.txt", "", TW_E_FORMAT);
    refuse("vocab.txt that is not text", "vocab.txt", "a\n\xff\n", TW_E_FORMAT);
    refuse("vocab.txt with a token twice", "vocab.txt", "[UNK]\na\na\n[CLS]\n[SEP]\n", TW_OK);
    refuse("no model file", "spiece.model", "what is this", TW_E_FORMAT);
    refuse("a model of one byte", "spiece.model", "\x0A", TW_E_FORMAT);
    refuse("a piece that is longer than the file", "spiece.model", "\x0A\xff\xff\xff\xff\x0f", TW_E_FORMAT);
    refuse("a model without unknown piece", "spiece.model", "\x0A\x08\x0A\x01" "a" "\x15\x01\x01\x80\xbf" "x", TW_E_FORMAT);

    memset(pair, 0, sizeof pair);
    pair[0].name = "vocab.json";
    pair[1].name = "merges.txt";
    pair[0].text = "{\"a\":0,\"b\":1,\"ab\":2}";
    pair[0].length = strlen(pair[0].text);
    pair[1].text = "#version: 0.2\na b\n\n";
    pair[1].length = strlen(pair[1].text);
    CHECK(open_files(pair, error) == TW_OK, "two files: %s", error);
    pair[1].text = "#version: 0.2\na b c\n";
    pair[1].length = strlen(pair[1].text);
    CHECK(open_files(pair, error) == TW_E_FORMAT, "a merge of three: %s", error);
    pair[1].text = "a\n";
    pair[1].length = 2;
    CHECK(open_files(pair, error) == TW_E_FORMAT, "a merge of one: %s", error);

    deep = (char *)check_malloc(1 << 20);                                   /* nested steps */
    deep[0] = 0;
    strcat(deep, "{\"normalizer\":");
    for (i = 0; i < 20; i++) strcat(deep, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (i = 0; i < 20; i++) strcat(deep, "]}");
    strcat(deep, "}");
    refuse("steps in steps", "tokenizer.json", deep, TW_E_FORMAT);
    free(deep);
}

/* Each cut of a file, and each byte of it changed. */
static void run_broken_model(const char *name, const char *file, size_t step) {
    char path[256], error[1024], *data = (char *)check_malloc(1 << 18), *copy = (char *)check_malloc(1 << 18);
    FILE *f = fopen(path_of(path, name, file), "rb");
    size_t n = f ? fread(data, 1, 1 << 18, f) : 0, i, opened = 0;
    one_file files[2];
    if (f) fclose(f);
    memset(files, 0, sizeof files);
    files[0].name = file;
    files[0].text = copy;
    for (i = 0; i < n; i += step) {
        memcpy(copy, data, n);
        files[0].length = i;
        opened += open_files(files, error) == TW_OK;
        copy[i] = (char)(copy[i] ^ (1 << (i % 8)));
        files[0].length = n;
        opened += open_files(files, error) == TW_OK;
    }
    CHECK(n > 0 && opened < 2 * n, "%s: broken in %d ways", name, (int)(2 * n / step));
    free(data);
    free(copy);
}

/* -- memory that ends, and texts that are large ------------------------------------------------------------------------------- */

static void run_out_of_memory(const char *name) {
    counted c = { 0, 0, 0, 0, 0 };
    char path[256], whole[512];
    long fail;
    bool done = false;
    for (fail = 2; !done && fail < 5000; fail++) {
        tw_context *tw;
        tw_tokenizer *t;
        tw_encoding e;
        tw_tokenize_desc how;
        memset(&how, 0, sizeof how);
        how.pair = "second <mask> text";
        how.pair_length = 18;
        memset(&c, 0, sizeof c);
        c.fail_at = fail;
        tw = counted_context(&c);
        t = tw_load_tokenizer(tw, path_of(path, name, ""));
        CHECK((t != NULL) == !tw_failed(tw), "%s: without memory, call %ld", name, fail);
        if (t && tw_tokenize(t, "Hello \xE4\xB8\xAD\xC3\xA9  it's [MASK] na\xC3\xAFve aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 83, &how, &e) >= 0) {
            tw_decoder *d = tw_new_decoder(t, false);
            int64_t i;
            tw_detokenize(t, e.ids, e.count, true);
            for (i = 0; i < e.count; i++) tw_decoder_feed(d, e.ids[i]);
            tw_decoder_end(d);
            if (tw_save_tokenizer(t, SAVED)) done = !tw_failed(tw);
            CHECK(done || tw_error_code(tw) == TW_E_MEMORY, "%s: call %ld fails with \"%s\"", name, fail, tw_error(tw));
            c.fail_at = 0;                                  /* there is memory again: the same text from both */
            tw_clear_error(tw);
            if (!d) d = tw_new_decoder(t, false);
            for (i = 0, whole[0] = 0; i < e.count; i++) strncat(whole, tw_decoder_feed(d, e.ids[i]), sizeof whole - 1 - strlen(whole));
            strncat(whole, tw_decoder_end(d), sizeof whole - 1 - strlen(whole));
            CHECK(whole[0] && strcmp(whole, tw_detokenize(t, e.ids, e.count, false)) == 0 && !tw_failed(tw), "%s: after call %ld failed the text is \"%s\" or \"%s\"", name, fail, whole,
                  tw_detokenize(t, e.ids, e.count, false));
        } else CHECK(tw_error_code(tw) == TW_E_MEMORY, "%s: call %ld fails with \"%s\"", name, fail, tw_error(tw));
        tw_destroy(tw);
        CHECK(c.live == 0, "%s: %ld blocks are left when call %ld fails", name, c.live, fail);
    }
    CHECK(done, "%s: never done", name);
}

static void run_learning_out_of_memory(void) {
    counted c = { 0, 0, 0, 0, 0 };
    long fail;
    bool done = false;
    for (fail = 2; !done && fail < 5000; fail++) {
        tw_context *tw;
        memset(&c, 0, sizeof c);
        c.fail_at = fail;
        tw = counted_context(&c);
        done = tw_train_tokenizer(tw, "abc abc abd the cat the dog the cat", 35, 270, NULL) != NULL;
        CHECK(done == !tw_failed(tw), "learning without memory, call %ld", fail);
        tw_destroy(tw);
        CHECK(c.live == 0, "learning leaves %ld blocks when call %ld fails", c.live, fail);
    }
    CHECK(done, "learning is never done");
}

/* What takes a time that is not linear in the text takes very long here already: a quarter of a megabyte has 7e10 pairs of bytes. */
static void run_large(const char *name) {
    static const char *const units[] = { "a", " ", "\n", "\xE5\xAD\x97", "\xCC\x81", "\xFF", "ab ", "<|endoftext", "!?", "\xF0\x9F\x91\xA8\xE2\x80\x8D" };
    enum { BYTES = 1 << 18 };
    char path[256], *text = (char *)check_malloc(BYTES);
    tw_context *tw = tw_create(NULL);
    tw_tokenizer *t = tw_load_tokenizer(tw, path_of(path, name, ""));
    tw_encoding e;
    size_t k, i, n;
    for (k = 0; k < sizeof units / sizeof *units; k++) {
        n = strlen(units[k]);
        for (i = 0; i < BYTES; i++) text[i] = units[k][i % n];
        CHECK(tw_tokenize(t, text, BYTES / n * n, NULL, &e) >= 0, "%s: 256 KiB of \"%s\": %s", name, units[k], tw_error(tw));
        CHECK(e.count == 0 || e.offsets[0][0] >= 0, "%s: offsets", name);
    }
    CHECK(tw_tokenize(t, text, (size_t)INT32_MAX, NULL, &e) == -1 && tw_error_code(tw) == TW_E_RANGE, "%s: 2 GiB", name);
    tw_clear_error(tw);
    CHECK(tw_tokenize(t, "x", 1, NULL, NULL) == -1 && tw_error_code(tw) == TW_E_ARGUMENT, "%s: no place for the result", name);
    tw_clear_error(tw);
    CHECK(tw_tokenize(t, NULL, 0, NULL, &e) >= 0 && tw_tokenize(t, NULL, 3, NULL, &e) == -1, "%s: a text that is NULL", name);
    tw_clear_error(tw);
    CHECK(tw_tokenize(NULL, "x", 1, NULL, &e) == -1 && e.count == 0 && tw_detokenize(NULL, NULL, 0, false)[0] == 0, "no tokenizer");
    free(text);
    tw_destroy(tw);
}

int main(void) {
    size_t i;
    for (i = 0; i < FOLDERS; i++) run_folder(folders[i]);
    run_learning();
    run_wrong_files();
    run_broken_model("t5_model", "spiece.model", 197);
    run_broken_model("unigram_json", "tokenizer.json", 289);
    run_broken_model("bert_files", "vocab.txt", 161);
    run_out_of_memory("gpt2_files");
    run_out_of_memory("bert_json");
    run_out_of_memory("sp_bpe_model");
    run_out_of_memory("unigram_json");
    run_learning_out_of_memory();
    for (i = 0; i < FOLDERS; i++) run_large(folders[i]);
    return check_done();
}
