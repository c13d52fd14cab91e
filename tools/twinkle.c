/* twinkle.c - the `twinkle` command: looks into models, runs them, trains them, measures them.

       cc -O2 -fopenmp tools/twinkle.c -o twinkle -lm
       ./twinkle --help

   One program over the public functions of twinkle.h; whatever it does, a program of yours can do.  (Only
   `bench gemm` and `bench attention` call twinkle_blas.h.)  How it is laid out:

       options     what a command takes is a table of options; reading and --help both walk it
       info, tokenize, forward, generate, predict, train, eval, convert, bench, pull: a section each, with a function run_NAME
       commands    the table of commands, and main

   Exit status: 0 done; 1 the work failed; 2 the command line was wrong.  Errors are one line on stderr,
   `twinkle: WHAT: WHY (WHERE)`; results go to stdout.  A file is whole or not there. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L       /* opendir, rmdir */
#  ifndef _DEFAULT_SOURCE
#    define _DEFAULT_SOURCE 1            /* madvise, so that a file's pages are given back once its weights were copied */
#  endif
#endif
#define TWINKLE_IMPLEMENTATION
#include "../twinkle.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#  include <direct.h>
#  include <io.h>
#  include <process.h>
#  include <sys/stat.h>
#else
#  include <dirent.h>
#  include <fcntl.h>
#  include <spawn.h>
#  include <sys/stat.h>
#  include <sys/wait.h>
#  include <unistd.h>
extern char **environ;
#endif

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

#if defined(__GNUC__) || defined(__clang__)
#  define PRINTF(at, first) __attribute__((format(printf, at, first)))
#else
#  define PRINTF(at, first)
#endif

/* ---- errors and printing ------------------------------------------------------------------------ */

/* How many bytes of s are one UTF-8 character without being a control character; 0: none. */
static int printable(const unsigned char *s) {
    int more = s[0] < 0x80 ? 0 : s[0] >= 0xC2 && s[0] < 0xE0 ? 1 : s[0] >= 0xE0 && s[0] < 0xF0 ? 2 : s[0] >= 0xF0 && s[0] < 0xF5 ? 3 : -1, i;
    if (more < 0 || (more == 0 && (s[0] < 0x20 || s[0] == 0x7F)) || (s[0] == 0xC2 && s[1] < 0xA0)) return 0;
    for (i = 1; i <= more; i++) if ((s[i] & 0xC0) != 0x80) return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) || (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F)) return 0;
    return more + 1;
}

/* An error line: whatever the sentence quotes, it stays one line of UTF-8. */
static void print_error(const char *sentence) {
    const unsigned char *s = (const unsigned char *)sentence;
    fputs("twinkle: ", stderr);
    while (*s) {
        int n = printable(s);
        if (n) fwrite(s, 1, (size_t)n, stderr); else fputc('?', stderr);
        s += n ? n : 1;
    }
    fputc('\n', stderr);
}

static void print_error_list(const char *format, va_list list) {
    char line[1024];
    vsnprintf(line, sizeof line, format, list);
    print_error(line);
}

/* The command line is wrong: 2. */
static int wrong(const char *format, ...) PRINTF(1, 2);
static int wrong(const char *format, ...) {
    va_list list;
    va_start(list, format);
    print_error_list(format, list);
    va_end(list);
    return 2;
}

/* The work failed: 1. */
static int failure(const char *format, ...) PRINTF(1, 2);
static int failure(const char *format, ...) {
    va_list list;
    va_start(list, format);
    print_error_list(format, list);
    va_end(list);
    return 1;
}

/* Records an error in the context, so that it is found where all others are. */
static void fail(tw_context *tw, tw_code code, const char *format, ...) PRINTF(3, 4);
static void fail(tw_context *tw, tw_code code, const char *format, ...) {
    char line[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    tw_fail(tw, code, line);
}

static int status_of(tw_context *tw) {
    if (!tw_failed(tw)) return 0;
    print_error(tw_error(tw));
    return 1;
}

static void *allocate(tw_context *tw, size_t count, size_t size) {
    void *p = count && size > SIZE_MAX / count ? NULL : malloc(count && size ? count * size : 1);
    if (!p) fail(tw, TW_E_MEMORY, "memory: there is no room for %lu times %lu bytes", (unsigned long)count, (unsigned long)size);
    return p;
}

/* printf into new memory, to be freed */
static char *text_of(tw_context *tw, const char *format, ...) PRINTF(2, 3);
static char *text_of(tw_context *tw, const char *format, ...) {
    va_list list, again;
    char *text = NULL;
    int n;
    va_start(list, format);
    va_copy(again, list);
    n = vsnprintf(NULL, 0, format, list);
    if (n >= 0) text = (char *)allocate(tw, (size_t)n + 1, 1);
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(list);
    return text;
}

/* A JSON value as text on one line, to be freed. */
static char *json_text(tw_context *tw, const tw_json *value) {
    size_t room = tw_json_write(value, 0, NULL, 0) + 1;
    char *text = (char *)allocate(tw, room, 1);
    if (text) tw_json_write(value, 0, text, room);
    return text;
}

/* Prints an object on a line of its own, and frees it. */
static void print_json(tw_context *tw, tw_json *object) {
    char *text = tw_failed(tw) ? NULL : json_text(tw, object);
    if (text) puts(text);
    free(text);
    tw_json_free(object);
}

/* ---- options -------------------------------------------------------------------------------------- */

typedef enum option_kind { FLAG, TEXT, WHOLE, REAL, DTYPE, IDS } option_kind;

typedef struct option {
    const char *name, *value;         /* "--top-k", "N" */
    option_kind kind;
    double      low, high;            /* of WHOLE and REAL */
    const char *help;
} option;

enum { MAX_OPTIONS = 24, MAX_OPERANDS = 2, MAX_THREADS = 1024 };
#define LARGEST 9007199254740992.0    /* 2^53: whole numbers up to here are exact as doubles */

static const option common_options[] = {
    { "--threads", "N", WHOLE, 1, MAX_THREADS, "threads to use (default: all cores)" },
    { "--seed", "N", WHOLE, 0, LARGEST, "fixes every random choice (default: 42)" },
    { "--json", NULL, FLAG, 0, 0, "print JSON, one object a line" },
    { "--help", NULL, FLAG, 0, 0, "print this" }
};

typedef struct command command;

/* A command line that was read. */
typedef struct arguments {
    const command *command;
    const char    *operand[MAX_OPERANDS];
    int            operands;
    const option  *option[MAX_OPTIONS + 4];
    const char    *value[MAX_OPTIONS + 4];      /* "" for a flag */
    int            options;
    tw_context    *tw;
} arguments;

struct command {
    const char   *name, *operands;
    int           least, most;                  /* how many operands */
    const char   *summary;
    const option *options;
    int           option_count;
    int         (*run)(arguments *a);
    const char   *notes;                        /* the end of its help: examples */
};

static const char *option_text(const arguments *a, const char *name, const char *otherwise) {
    int i;
    for (i = a->options - 1; i >= 0; i--) if (!strcmp(a->option[i]->name, name)) return a->value[i];
    return otherwise;
}
static bool option_given(const arguments *a, const char *name) { return option_text(a, name, NULL) != NULL; }
static int64_t option_whole(const arguments *a, const char *name, int64_t otherwise) {
    const char *text = option_text(a, name, NULL);
    return text ? (int64_t)strtoll(text, NULL, 10) : otherwise;
}
static double option_real(const arguments *a, const char *name, double otherwise) {
    const char *text = option_text(a, name, NULL);
    return text ? strtod(text, NULL) : otherwise;
}

/* The dtypes of --dtype.  int8 is another name of q8_0: int8 weights, and activations quantized to int8 on the fly. */
static const struct dtype_name { const char *name; tw_dtype dtype; } dtype_names[] = {
    { "f32", TW_F32 }, { "f16", TW_F16 }, { "bf16", TW_BF16 }, { "q8_0", TW_Q8_0 }, { "q4_0", TW_Q4_0 }, { "int8", TW_Q8_0 }
};

static const struct dtype_name *dtype_named(const char *name) {
    size_t i;
    for (i = 0; i < COUNT(dtype_names); i++) if (!strcmp(dtype_names[i].name, name)) return &dtype_names[i];
    return NULL;
}

/* The dtype asked for. */
static tw_dtype option_dtype(const arguments *a, tw_dtype otherwise) {
    const char *name = option_text(a, "--dtype", NULL);
    const struct dtype_name *found = name ? dtype_named(name) : NULL;
    return found ? found->dtype : otherwise;
}

/* Reads "1,2,3" into ids (room for as many as there are commas + 1); how many, or -1. */
static int64_t read_ids(const char *text, int32_t *ids) {
    int64_t n = 0;
    for (;;) {
        char *end;
        long long id;
        while (*text == ' ') text++;
        if (!isdigit((unsigned char)*text)) return -1;
        errno = 0;
        id = strtoll(text, &end, 10);
        if (errno || id > INT32_MAX) return -1;
        if (ids) ids[n] = (int32_t)id;
        n++;
        while (*end == ' ') end++;
        if (!*end) return n;
        if (*end != ',') return -1;
        text = end + 1;
    }
}

/* "1 to 4096", or "from 1 on", where there is no upper bound that a user should be told. */
static const char *range_of(char *room, size_t size, double low, double high) {
    if (high >= LARGEST) snprintf(room, size, "from %g on", low);
    else snprintf(room, size, "%g to %g", low, high);
    return room;
}

static int check_value(const option *o, const char *value) {
    const char *name = o->name;
    char range[64];
    char *end = NULL;
    double number = 0;
    errno = 0;
    switch (o->kind) {
    case FLAG: case TEXT: return 0;
    case DTYPE: return dtype_named(value) ? 0 : wrong("%s: \"%.40s\" is no dtype (f32, f16, bf16, q8_0, int8, q4_0)", name, value);
    case IDS: return read_ids(value, NULL) >= 0 ? 0 : wrong("%s: \"%.40s\" is no list of token ids such as 1,2,3 (command line)", name, value);
    case WHOLE: number = (double)strtoll(value, &end, 10); break;
    case REAL: number = strtod(value, &end); break;
    }
    if (end == value || *end || errno || isspace((unsigned char)*value) || (o->kind == REAL && strpbrk(value, "xXnN")))
        return wrong("%s: \"%.40s\" is not a %snumber (command line)", name, value, o->kind == WHOLE ? "whole " : "");
    if (!(number >= o->low && number <= o->high))
        return wrong("%s: %.40s is out of range, %s (command line)", name, value, range_of(range, sizeof range, o->low, o->high));
    return 0;
}

static const option *find_option(const command *c, const char *name, size_t length) {
    int i;
    for (i = 0; i < c->option_count + (int)COUNT(common_options); i++) {
        const option *o = i < c->option_count ? &c->options[i] : &common_options[i - c->option_count];
        if (strlen(o->name) == length && !strncmp(o->name, name, length)) return o;
    }
    return NULL;
}

/* Reads what stands behind the command's name.  `--name value` or `--name=value`; the value is taken whatever it looks like. */
static int read_arguments(arguments *a, const command *c, char **argv) {
    bool only_operands = false;
    a->command = c;
    for (; *argv; argv++) {
        const char *arg = *argv, *equals = strchr(arg, '=');
        const option *o;
        if (!only_operands && !strcmp(arg, "--")) { only_operands = true; continue; }
        if (only_operands || arg[0] != '-' || !arg[1]) {
            if (a->operands == c->most) return wrong("%s: \"%.60s\" is one operand too many (see twinkle %s --help)", c->name, arg, c->name);
            a->operand[a->operands++] = arg;
            continue;
        }
        o = find_option(c, arg, equals ? (size_t)(equals - arg) : strlen(arg));
        if (!o) return wrong("%s: there is no option %.60s (see twinkle %s --help)", c->name, arg, c->name);
        if (a->options == (int)COUNT(a->option)) return wrong("%s: too many options (command line)", c->name);
        if (o->kind == FLAG && equals) return wrong("%s: takes no value (see twinkle %s --help)", o->name, c->name);
        if (o->kind != FLAG && !equals && !argv[1]) return wrong("%s: wants a value, %s (see twinkle %s --help)", o->name, o->value, c->name);
        a->option[a->options] = o;
        a->value[a->options] = o->kind == FLAG ? "" : equals ? equals + 1 : *++argv;
        if (check_value(o, a->value[a->options])) return 2;
        a->options++;
    }
    if (!option_given(a, "--help") && a->operands < c->least) return wrong("%s: wants %s (see twinkle %s --help)", c->name, c->operands, c->name);
    return 0;
}

static void print_options(const option *options, int count) {
    int i;
    for (i = 0; i < count; i++) {
        char left[48];
        snprintf(left, sizeof left, "%s%s%s", options[i].name, options[i].value ? " " : "", options[i].value ? options[i].value : "");
        printf("  %-28s %s\n", left, options[i].help);
    }
}

static void print_help(const command *c) {
    printf("twinkle %s%s%s: %s\n\n", c->name, *c->operands ? " " : "", c->operands, c->summary);
    print_options(c->options, c->option_count);
    print_options(common_options, (int)COUNT(common_options));
    if (c->notes) printf("\n%s", c->notes);
}

/* ---- models ----------------------------------------------------------------------------------------- */

static tw_model *open_model_as(const arguments *a, const char *folder, tw_dtype dtype, bool to_f32, bool no_tokenizer) {
    tw_load_desc how;
    tw_model *model;
    memset(&how, 0, sizeof how);
    how.dtype = dtype;
    how.task = option_text(a, "--task", NULL);
    how.to_f32 = to_f32;
    how.no_tokenizer = no_tokenizer;
    model = tw_from_pretrained_with(a->tw, folder, &how);
    if (!model && !tw_failed(a->tw)) fail(a->tw, TW_E_FILE, "open: the model cannot be opened (%s)", folder);
    return model;
}
static tw_model *open_model(const arguments *a, const char *folder, bool to_f32, bool no_tokenizer) { return open_model_as(a, folder, TW_F32, to_f32, no_tokenizer); }

/* The first of some config.json keys that is there: models call the same thing by different names. */
static int64_t config_number(const tw_model *model, const char *const *keys) {
    for (; *keys; keys++) {
        int64_t value = tw_json_int(tw_json_get(tw_config_of(model), *keys), -1);
        if (value >= 0) return value;
    }
    return -1;
}

/* ---- info ------------------------------------------------------------------------------------------- */

static const option info_options[] = { { "--tensors", NULL, FLAG, 0, 0, "list every tensor with its dtype and shape" } };

typedef struct weight_totals { int64_t bytes, of_dtype[TW_DTYPE_COUNT]; } weight_totals;

static weight_totals total_weights(const tw_model *model) {
    weight_totals total;
    int64_t i;
    memset(&total, 0, sizeof total);
    for (i = 0; i < tw_parameter_count(model); i++) {
        const tw_tensor *t = tw_parameter_at(model, i);
        total.bytes += tw_bytes_of(t);
        total.of_dtype[tw_dtype_of(t)] += tw_count(t);
    }
    return total;
}

static void info_json(arguments *a, const tw_model *model, const char *type, int64_t layers, int64_t vocabulary) {
    weight_totals total = total_weights(model);
    tw_json *o = tw_json_object(a->tw), *dtypes;
    int64_t i;
    int d;
    tw_json_set_string(o, "model_type", type);
    tw_json_set_string(o, "architecture", tw_class_of(model));
    tw_json_set_int(o, "parameters", tw_num_parameters(model, false));
    dtypes = tw_json_set_object(o, "dtypes");
    for (d = 0; d < TW_DTYPE_COUNT; d++) if (total.of_dtype[d]) tw_json_set_int(dtypes, tw_dtype_name((tw_dtype)d), total.of_dtype[d]);
    if (layers >= 0) tw_json_set_int(o, "layers", layers);
    if (tw_max_positions(model)) tw_json_set_int(o, "context_length", tw_max_positions(model));
    if (vocabulary >= 0) tw_json_set_int(o, "vocab_size", vocabulary);
    tw_json_set_int(o, "bytes", total.bytes);
    if (option_given(a, "--tensors")) {
        tw_json *list = tw_json_set_array(o, "tensors");
        for (i = 0; i < tw_parameter_count(model); i++) {
            const tw_tensor *t = tw_parameter_at(model, i);
            tw_json *item = tw_json_push_object(list), *shape;
            int axis;
            tw_json_set_string(item, "name", tw_name_of(t));
            tw_json_set_string(item, "dtype", tw_dtype_name(tw_dtype_of(t)));
            shape = tw_json_set_array(item, "shape");
            for (axis = 0; axis < tw_rank(t); axis++) tw_json_push_int(shape, tw_dim(t, axis));
        }
    }
    print_json(a->tw, o);
}

static void info_plain(arguments *a, const tw_model *model, const char *type, int64_t layers, int64_t vocabulary) {
    weight_totals total = total_weights(model);
    int64_t i;
    int d, axis;
    printf("type         %s (%s)\n", type, tw_class_of(model));
    printf("parameters   %lld\n", (long long)tw_num_parameters(model, false));
    printf("dtypes      ");
    for (d = 0; d < TW_DTYPE_COUNT; d++) if (total.of_dtype[d]) printf(" %s (%lld)", tw_dtype_name((tw_dtype)d), (long long)total.of_dtype[d]);
    if (layers >= 0) printf("\nlayers       %lld", (long long)layers);
    if (tw_max_positions(model)) printf("\ncontext      %lld tokens", (long long)tw_max_positions(model));
    if (vocabulary >= 0) printf("\nvocabulary   %lld tokens", (long long)vocabulary);
    printf("\nbytes        %lld\n", (long long)total.bytes);
    if (!option_given(a, "--tensors")) return;
    for (i = 0; i < tw_parameter_count(model); i++) {
        const tw_tensor *t = tw_parameter_at(model, i);
        printf("%-48s %-5s [", tw_name_of(t), tw_dtype_name(tw_dtype_of(t)));
        for (axis = 0; axis < tw_rank(t); axis++) printf("%s%lld", axis ? "," : "", (long long)tw_dim(t, axis));
        puts("]");
    }
}

static int run_info(arguments *a) {
    static const char *const layer_keys[] = { "n_layer", "num_hidden_layers", "num_layers", NULL }, *const vocabulary_keys[] = { "vocab_size", NULL };
    tw_model *model = open_model(a, a->operand[0], false, true);
    const char *type = tw_json_string(tw_json_get(tw_config_of(model), "model_type"), "?");
    if (model)
        (option_given(a, "--json") ? info_json : info_plain)(a, model, type, config_number(model, layer_keys), config_number(model, vocabulary_keys));
    return status_of(a->tw);
}

/* ---- tokenize --------------------------------------------------------------------------------------- */

static const option tokenize_options[] = {
    { "--text", "S", TEXT, 0, 0, "the text, whatever it looks like" },
    { "--file", "F", TEXT, 0, 0, "a file as one text, to its last byte" },
    { "--pair", "S", TEXT, 0, 0, "a second text, encoded behind the first as a pair" },
    { "--no-special", NULL, FLAG, 0, 0, "without the special tokens that are put around a text" },
    { "--decode", "1,2,3", IDS, 0, 0, "the other way: the text of these ids" }
};

/* All bytes of a file, with a NUL behind them, to be freed. */
static char *read_file(tw_context *tw, const char *path, size_t *length) {
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    size_t room = 0, n = 1;
    *length = 0;
    while (f && n > 0 && !ferror(f)) {
        if (*length + 1 >= room) {
            char *more = room > SIZE_MAX / 2 - 65536 ? NULL : (char *)realloc(bytes, 2 * room + 65536);
            if (!more) { fail(tw, TW_E_MEMORY, "memory: there is no room for the file (%s)", path); break; }
            bytes = more;
            room = 2 * room + 65536;
        }
        n = fread(bytes + *length, 1, room - *length - 1, f);
        *length += n;
    }
    if (!f || ferror(f)) fail(tw, TW_E_FILE, "text: it cannot be read, %s (%s)", strerror(errno), path);
    if (f) fclose(f);
    if (bytes) bytes[*length] = 0;
    if (!tw_failed(tw)) return bytes;
    free(bytes);
    return NULL;
}

/* Token ids between commas and read back: what --ids and --decode take. */
static void print_ids(const int32_t *ids, int64_t count) {
    int64_t i;
    for (i = 0; i < count; i++) printf("%s%ld", i ? "," : "", (long)ids[i]);
    putchar('\n');
}

/* Ids out of an option's text, to be freed. */
static int32_t *option_ids(const arguments *a, const char *name, int64_t *count) {
    const char *list = option_text(a, name, "");
    int32_t *ids = (int32_t *)allocate(a->tw, strlen(list) / 2 + 1, sizeof *ids);
    *count = ids ? read_ids(list, ids) : 0;
    return ids;
}

static void print_encoding(arguments *a, tw_tokenizer *tokenizer, const tw_encoding *e) {
    tw_json *o, *ids, *tokens, *offsets;
    int64_t i;
    if (!option_given(a, "--json")) { print_ids(e->ids, e->count); return; }
    o = tw_json_object(a->tw);
    ids = tw_json_set_array(o, "ids");
    tokens = tw_json_set_array(o, "tokens");
    offsets = tw_json_set_array(o, "offsets");
    for (i = 0; i < e->count; i++) {
        tw_json *offset = tw_json_push_array(offsets);
        tw_json_push_int(ids, e->ids[i]);
        tw_json_push_string(tokens, tw_token(tokenizer, e->ids[i]));
        tw_json_push_int(offset, e->offsets[i][0]);
        tw_json_push_int(offset, e->offsets[i][1]);
    }
    print_json(a->tw, o);
}

static void print_decoded(arguments *a, tw_tokenizer *tokenizer) {
    int64_t count, i;
    int32_t *ids = option_ids(a, "--decode", &count);
    size_t length = 0;
    const char *text = NULL;
    for (i = 0; i < count; i++)
        if (!tw_token(tokenizer, ids[i])) fail(a->tw, TW_E_RANGE, "decode: there is no token %ld, the vocabulary has %lld (%s)", (long)ids[i], (long long)tw_vocab_size(tokenizer), a->operand[0]);
    if (!tw_failed(a->tw)) text = tw_detokenize_length(tokenizer, ids, count, false, &length);
    if (text) {
        fwrite(text, 1, length, stdout);
        putchar('\n');
    }
    free(ids);
}

static int run_tokenize(arguments *a) {
    const char *text = option_text(a, "--text", NULL), *path = option_text(a, "--file", NULL), *pair = option_text(a, "--pair", NULL);
    bool decode = option_given(a, "--decode");
    tw_tokenizer *tokenizer;
    tw_tokenize_desc how;
    tw_encoding e;
    size_t length = text ? strlen(text) : 0;
    char *bytes = NULL;
    if ((text != NULL) + (path != NULL) + decode != 1) return wrong("tokenize: wants one of --text S, --file F and --decode 1,2,3 (see twinkle tokenize --help)");
    memset(&how, 0, sizeof how);
    how.no_special = option_given(a, "--no-special");
    how.pair = pair;
    how.pair_length = pair ? strlen(pair) : 0;
    tokenizer = tw_load_tokenizer(a->tw, a->operand[0]);
    if (tokenizer && decode) print_decoded(a, tokenizer);
    if (tokenizer && path) text = bytes = read_file(a->tw, path, &length);
    if (tokenizer && text && tw_tokenize(tokenizer, text, length, &how, &e) >= 0) print_encoding(a, tokenizer, &e);
    free(bytes);
    return status_of(a->tw);
}

/* ---- forward ---------------------------------------------------------------------------------------- */

static const option forward_options[] = {
    { "--in", "F", TEXT, 0, 0, "safetensors file with the inputs: input_ids, attention_mask, labels, ..." },
    { "--out", "F", TEXT, 0, 0, "safetensors file for the outputs: logits, loss, ..." },
    { "--hidden-states", NULL, FLAG, 0, 0, "also hidden_states.0 (embeddings) to hidden_states.N (after the last norm)" },
    { "--grads", NULL, FLAG, 0, 0, "also grad.NAME for every parameter; needs labels" },
    { "--task", "NAME", TEXT, 0, 0, "the head to use instead of the one in config.json" }
};

/* Copies `count` integers of any width out of a file, where they may stand at any address. */
static bool read_integers(tw_context *tw, const tw_weight *w, int64_t count, int32_t *out) {
    const unsigned char *bytes = (const unsigned char *)w->data;
    size_t width = tw_dtype_size(w->dtype);
    bool is_signed = w->dtype == TW_I64 || w->dtype == TW_I32 || w->dtype == TW_I16 || w->dtype == TW_I8;
    int64_t i;
    for (i = 0; i < count; i++, bytes += width) {
        uint64_t bits = 0, sign = (uint64_t)1 << (8 * width - 1);
        int64_t value;
        size_t b;
        for (b = 0; b < width; b++) bits |= (uint64_t)bytes[b] << (8 * b);
        value = is_signed && (bits & sign) ? -(int64_t)((sign << 1) - bits) : (int64_t)bits;
        if (value < INT32_MIN || value > INT32_MAX) {
            fail(tw, TW_E_RANGE, "%s: %lld is out of range (%s)", w->name, (long long)value, w->file);
            return false;
        }
        out[i] = (int32_t)value;
    }
    return true;
}

/* A tensor of the step with the numbers of one in a file: integers as I32, F32 as F32. */
static tw_tensor *read_input(tw_context *tw, const tw_weight *w) {
    tw_shape shape;
    tw_tensor *t = NULL;
    void *copy = allocate(tw, w->bytes + 1, w->dtype == TW_F32 ? 1 : 4);
    int axis;
    memset(&shape, 0, sizeof shape);
    shape.rank = w->rank;
    for (axis = 0; axis < w->rank; axis++) shape.dim[axis] = w->shape[axis];
    if (!copy) return NULL;
    if (w->dtype == TW_F32) {
        memcpy(copy, w->data, w->bytes);
        t = tw_tensor_from(tw, shape, (const float *)copy);
    } else if (w->dtype == TW_F16 || w->dtype == TW_BF16 || w->dtype == TW_F64 || w->dtype >= TW_F8_E4M3) {
        fail(tw, TW_E_UNSUPPORTED, "%s: an input is I64, I32 or F32, not %s (%s)", w->name, tw_dtype_name(w->dtype), w->file);
    } else if (read_integers(tw, w, (int64_t)(w->bytes / tw_dtype_size(w->dtype)), (int32_t *)copy)) {
        t = tw_ids(tw, shape, (const int32_t *)copy);
    }
    free(copy);
    return t;
}

/* The list of what goes into the output file. */
typedef struct results { tw_weight *list; size_t count; } results;

static void add_result(tw_context *tw, results *r, const char *prefix, const char *name, tw_tensor *t) {
    tw_weight *w = &r->list[r->count];
    int axis;
    t = tw_contiguous(t);
    if (tw_dtype_of(t) != TW_F32 || !tw_data(t)) return;
    memset(w, 0, sizeof *w);
    w->name = text_of(tw, "%s%s", prefix, name);
    if (!w->name) return;
    w->dtype = TW_F32;
    w->rank = tw_rank(t) ? tw_rank(t) : 1;
    w->shape[0] = 1;                                    /* a single number has shape [1] */
    for (axis = 0; axis < tw_rank(t); axis++) w->shape[axis] = tw_dim(t, axis);
    w->data = tw_data(t);
    w->bytes = (size_t)tw_count(t) * sizeof(float);
    r->count++;
}

static void add_gradients(tw_context *tw, results *r, const tw_model *model) {
    int64_t i;
    for (i = 0; i < tw_parameter_count(model) && !tw_failed(tw); i++) {
        tw_tensor *parameter = tw_parameter_at(model, i), *gradient = tw_grad(parameter);
        if (!gradient) gradient = tw_full(tw, tw_shape_of(parameter), 0);       /* it had no part in the loss */
        add_result(tw, r, "grad.", tw_name_of(parameter), gradient);
    }
}

static void forward_files(arguments *a, tw_model *model, const tw_weights *in) {
    tw_context *tw = a->tw;
    bool gradients = option_given(a, "--grads");
    tw_batch batch;
    tw_outputs out;
    tw_pass pass;
    results found;
    size_t i;
    memset(&batch, 0, sizeof batch);
    memset(&out, 0, sizeof out);
    memset(&pass, 0, sizeof pass);
    pass.hidden_states = option_given(a, "--hidden-states");
    for (i = 0; i < tw_weights_count(in); i++) {
        tw_tensor *t = read_input(tw, tw_weights_at(in, i));
        if (!t) return;
        if (!tw_batch_set(&batch, tw_weights_at(in, i)->name, t)) { fail(tw, TW_E_RANGE, "forward: more than %d inputs (%s)", TW_MAX_NAMED, option_text(a, "--in", "")); return; }
    }
    tw_training(tw, false);
    tw_no_grad(tw, !gradients);
    if (!tw_model_forward(model, &batch, &pass, &out)) return;
    if (gradients && !tw_batch_get(&out, "loss")) { fail(tw, TW_E_MISSING, "forward: --grads needs labels, and there are none (%s)", option_text(a, "--in", "")); return; }
    if (gradients && !tw_backward(tw_batch_get(&out, "mc_loss") ? tw_add(tw_batch_get(&out, "loss"), tw_batch_get(&out, "mc_loss")) : tw_batch_get(&out, "loss"))) return;
    found.count = 0;
    found.list = (tw_weight *)allocate(tw, (size_t)out.count + (size_t)tw_parameter_count(model), sizeof *found.list);
    if (!found.list) return;
    for (i = 0; i < (size_t)out.count; i++) add_result(tw, &found, "", out.name[i], out.tensor[i]);
    if (gradients) add_gradients(tw, &found, model);
    if (!tw_failed(tw)) tw_save_weights(tw, option_text(a, "--out", ""), found.list, found.count, NULL);
    for (i = 0; i < found.count; i++) free((void *)(uintptr_t)found.list[i].name);
    free(found.list);
}

static int run_forward(arguments *a) {
    tw_weights *in;
    tw_model *model;
    if (!option_given(a, "--in") || !option_given(a, "--out")) return wrong("forward: wants --in F and --out F (see twinkle forward --help)");
    in = tw_open_weights(a->tw, option_text(a, "--in", ""));
    model = in ? open_model(a, a->operand[0], option_given(a, "--grads"), true) : NULL;
    if (model) forward_files(a, model, in);
    tw_close_weights(in);
    return status_of(a->tw);
}

/* ---- generate ----------------------------------------------------------------------------------------- */

static const option generate_options[] = {
    { "--prompt", "S", TEXT, 0, 0, "the text to go on from" },
    { "--ids", "1,2,3", IDS, 0, 0, "token ids to go on from, instead of a text" },
    { "--max-new-tokens", "N", WHOLE, 1, LARGEST, "how many tokens at most (default: 20)" },
    { "--min-new-tokens", "N", WHOLE, 0, LARGEST, "no end before that many (default: 0)" },
    { "--greedy", NULL, FLAG, 0, 0, "always the most likely token (the default)" },
    { "--sample", NULL, FLAG, 0, 0, "draw each token by its probability, after:" },
    { "--temperature", "X", REAL, 1e-6, 1e6, "  divide the logits by X (default: 1)" },
    { "--top-k", "N", WHOLE, 0, LARGEST, "  keep the N most likely; 0: all (default: 50)" },
    { "--top-p", "X", REAL, 1e-6, 1, "  keep the most likely that make up X (default: 1)" },
    { "--min-p", "X", REAL, 0, 1, "  keep what is X times as likely as the first (default: 0)" },
    { "--num-beams", "N", WHOLE, 1, 4096, "follow the N best texts side by side (default: 1)" },
    { "--length-penalty", "X", REAL, -1000, 1000, "beams: divide the score by (new tokens)^X (default: 1)" },
    { "--early-stopping", NULL, FLAG, 0, 0, "beams: stop as soon as N are finished" },
    { "--repetition-penalty", "X", REAL, 1e-6, 1e6, "divide what was there already by X (default: 1)" },
    { "--no-repeat-ngram-size", "N", WHOLE, 0, LARGEST, "no N tokens in a row twice (default: 0, off)" },
    { "--eos-token-id", "1,2", IDS, 0, 0, "the end token, instead of the model's" },
    { "--cache-bits", "N", WHOLE, 16, 32, "keep keys and values in 16 or 32 bits (default: 16 beside weights of 16 bits or fewer)" },
    { "--dtype", "NAME", DTYPE, 0, 0, "weights in memory: f32, f16, bf16, q8_0, q4_0 (default: as in the file)" },
    { "--task", "NAME", TEXT, 0, 0, "the head to use instead of the one in config.json" }
};

static bool print_piece(const char *text, void *user) {
    (void)user;
    fputs(text, stdout);
    return fflush(stdout) == 0;
}

static tw_generate_desc read_generate_options(const arguments *a) {
    tw_generate_desc how;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = option_whole(a, "--max-new-tokens", 20);
    how.min_new_tokens = option_whole(a, "--min-new-tokens", 0);
    how.do_sample = option_given(a, "--sample");
    how.temperature = (float)option_real(a, "--temperature", 1);
    how.top_k = option_whole(a, "--top-k", 50);
    if (how.top_k == 0) how.top_k = -1;
    how.top_p = (float)option_real(a, "--top-p", 1);
    how.min_p = (float)option_real(a, "--min-p", 0);
    how.repetition_penalty = (float)option_real(a, "--repetition-penalty", 1);
    how.no_repeat_ngram_size = option_whole(a, "--no-repeat-ngram-size", 0);
    how.num_beams = (int)option_whole(a, "--num-beams", 1);
    how.has_length_penalty = option_given(a, "--length-penalty");
    how.length_penalty = (float)option_real(a, "--length-penalty", 1);
    how.early_stopping = option_given(a, "--early-stopping");
    how.cache_bits = (int)option_whole(a, "--cache-bits", 0);
    return how;
}

/* Did writing end because the model's positions were used up, neither at an end token nor at --max-new-tokens? */
static bool ran_out_of_positions(const tw_model *model, const tw_generate_desc *how, int64_t prompt, const int32_t *ids, int64_t written) {
    const tw_json *end = tw_json_get(tw_config_of(model), "eos_token_id");
    int64_t positions = tw_max_positions(model), i;
    int32_t last = written ? ids[written - 1] : -1;
    if (!positions || written >= how->max_new_tokens || prompt + written <= positions) return false;
    for (i = 0; i < how->eos_count; i++) if (how->eos_token_ids[i] == last) return false;
    return how->eos_count || tw_json_int(end, -1) != last;
}

/* The text of ids as a member.  It may hold NUL characters, which C strings do not: so it is written down as JSON and read back. */
static void set_text(tw_context *tw, tw_json *object, const char *name, tw_tokenizer *tokenizer, const int32_t *ids, int64_t count) {
    size_t length = 0, i, n = 0;
    const char *text = tw_detokenize_length(tokenizer, ids, count, true, &length);
    char *quoted = text ? (char *)allocate(tw, length + 2, 6) : NULL;
    tw_json *value;
    if (!quoted) return;
    quoted[n++] = '"';
    for (i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == '"' || c == '\\') n += (size_t)sprintf(quoted + n, "\\u%04x", c);
        else quoted[n++] = (char)c;
    }
    quoted[n++] = '"';
    value = tw_json_parse(tw, quoted, n);
    tw_json_set_copy(object, name, value);
    tw_json_free(value);
    free(quoted);
}

/* Writes on from a prompt of ids, and prints: text as it comes, ids where there is no tokenizer, or JSON. */
static void generate_from(arguments *a, tw_model *model, const int32_t *prompt, int64_t count, tw_generate_desc *how) {
    tw_tokenizer *tokenizer = tw_tokenizer_of(model);
    bool json = option_given(a, "--json");
    int64_t room = how->max_new_tokens, positions = tw_max_positions(model), written, i;
    int32_t *ids;
    float score = 0;
    if (positions && room > positions) room = positions;
    ids = (int32_t *)allocate(a->tw, (size_t)room, sizeof *ids);
    if (!ids) return;
    if (tokenizer && !json) how->on_text = print_piece;
    written = tw_generate_ids(model, prompt, count, how, ids, room, &score);
    if (written >= 0 && !json && tokenizer) putchar('\n');
    if (written >= 0 && ran_out_of_positions(model, how, count, ids, written)) {
        fail(a->tw, TW_E_RANGE, "generate: %lld tokens and %lld new ones are more than the model's %lld positions (%s)", (long long)count,
             (long long)how->max_new_tokens, (long long)positions, a->operand[0]);
    } else if (written >= 0 && json) {
        tw_json *o = tw_json_object(a->tw), *list = tw_json_set_array(o, "ids");
        for (i = 0; i < written; i++) tw_json_push_int(list, ids[i]);
        if (tokenizer) set_text(a->tw, o, "text", tokenizer, ids, written);
        else tw_json_set_null(o, "text");
        if (how->num_beams > 1) tw_json_set_float(o, "scores", score); else tw_json_set_null(o, "scores");
        print_json(a->tw, o);
    } else if (written >= 0 && !tokenizer) {
        print_ids(ids, written);
    }
    free(ids);
}

/* The ids of --ids or of --prompt, to be freed. */
static int32_t *read_prompt(arguments *a, tw_model *model, int64_t *count) {
    const char *text = option_text(a, "--prompt", "");
    int32_t *ids;
    if (option_given(a, "--ids")) return option_ids(a, "--ids", count);
    if (!tw_tokenizer_of(model)) { fail(a->tw, TW_E_MISSING, "generate: the model has no tokenizer for --prompt, try --ids (%s)", a->operand[0]); return NULL; }
    *count = tw_prompt_ids(model, text, strlen(text), NULL, 0);
    if (*count < 0) return NULL;
    ids = (int32_t *)allocate(a->tw, (size_t)*count, sizeof *ids);
    if (ids) tw_prompt_ids(model, text, strlen(text), ids, *count);
    return ids;
}

static int run_generate(arguments *a) {
    tw_context *tw = a->tw;
    tw_generate_desc how = read_generate_options(a);
    tw_dtype dtype;
    tw_model *model;
    int32_t *prompt = NULL, *ends = NULL;
    int64_t count = 0, end_count = 0;
    if (option_given(a, "--prompt") == option_given(a, "--ids")) return wrong("generate: wants either --prompt S or --ids 1,2,3 (see twinkle generate --help)");
    if (option_given(a, "--sample") && option_given(a, "--greedy")) return wrong("generate: --greedy and --sample exclude each other (command line)");
    dtype = option_dtype(a, TW_F32);
    model = open_model_as(a, a->operand[0], dtype, option_given(a, "--dtype") && dtype == TW_F32, false);
    if (option_given(a, "--eos-token-id")) {
        ends = option_ids(a, "--eos-token-id", &end_count);
        how.eos_token_ids = ends;
        how.eos_count = (int)end_count;
    }
    if (model) prompt = read_prompt(a, model, &count);
    if (!tw_failed(tw)) generate_from(a, model, prompt, count, &how);
    free(prompt);
    free(ends);
    return status_of(tw);
}

/* ---- predict ------------------------------------------------------------------------------------------- */

static const option predict_options[] = {
    { "--text", "S", TEXT, 0, 0, "the text, whatever it looks like" },
    { "--text2", "S", TEXT, 0, 0, "the other text of a pair; what a question is asked about" },
    { "--file", "F", TEXT, 0, 0, "texts instead, one a line; .jsonl: text and text2" },
    { "--top-k", "N", WHOLE, 1, 1e6, "how many candidates for a masked word (default: 5)" },
    { "--max-new-tokens", "N", WHOLE, 1, LARGEST, "how many tokens at most where a text is written (default: 100)" },
    { "--num-beams", "N", WHOLE, 1, 4096, "and with how many beams (default: 1)" },
    { "--task", "NAME", TEXT, 0, 0, "the head to use instead of the one in config.json" }
};

static void predict_classes(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o) {
    tw_classes found = tw_predict_classes(model, text, pair);
    tw_json *list = tw_json_set_array(o, "labels");
    int64_t i;
    (void)a;
    for (i = 0; i < found.count; i++) {
        tw_json *item = o ? tw_json_push_object(list) : NULL;
        tw_json_set_string(item, "label", found.list[i].label);
        tw_json_set_float(item, "score", found.list[i].score);
        if (!o) printf("%.4f  %s\n", (double)found.list[i].score, found.list[i].label);
    }
}

static void set_span(tw_json *o, const tw_span *s) {
    tw_json_set_float(o, "score", s->score);
    tw_json_set_int(o, "start", s->begin_char);
    tw_json_set_int(o, "end", s->end_char);
    tw_json_set_int(o, "start_byte", s->begin);
    tw_json_set_int(o, "end_byte", s->end);
}

static void predict_entities(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o) {
    tw_entities found = tw_predict_entities(model, text);
    tw_json *list = tw_json_set_array(o, "entities");
    int64_t i;
    (void)a;
    (void)pair;
    for (i = 0; i < found.count; i++) {
        const tw_span *s = &found.list[i];
        tw_json *item = o ? tw_json_push_object(list) : NULL;
        tw_json_set_string(item, "entity_group", s->label);
        tw_json_set_string(item, "word", s->text);
        if (o) set_span(item, s);
        else printf("%.4f  %lld-%lld  %s  %s\n", (double)s->score, (long long)s->begin_char, (long long)s->end_char, s->label, s->text);
    }
}

/* One mask: a list of candidates; several: a list of such lists, as in transformers. */
static void predict_masked(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o) {
    tw_candidates found = tw_predict_masked(model, text, option_whole(a, "--top-k", 5));
    tw_json *all = tw_json_set_array(o, "candidates"), *list = all;
    int64_t i;
    (void)pair;
    for (i = 0; i < found.masks * found.count; i++) {
        const tw_candidate *c = &found.list[i];
        tw_json *item;
        if (o && found.masks > 1 && i % found.count == 0) list = tw_json_push_array(all);
        item = o ? tw_json_push_object(list) : NULL;
        tw_json_set_float(item, "score", c->score);
        tw_json_set_int(item, "token", c->id);
        tw_json_set_string(item, "token_str", c->text);
        if (!o) printf("%s%.4f  %s\n", i && i % found.count == 0 ? "\n" : "", (double)c->score, c->text);
    }
}

static void predict_embedding(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o) {
    tw_vector found = tw_predict_embedding(model, text);
    tw_json *list = tw_json_set_array(o, "embedding");
    int64_t i;
    (void)a;
    (void)pair;
    for (i = 0; i < found.count; i++) {
        if (o) tw_json_push_number(list, (double)found.numbers[i]);
        else printf("%s%.6g", i ? " " : "", (double)found.numbers[i]);
    }
    if (!o && found.count) putchar('\n');
}

static void predict_answer(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o) {
    tw_span found = tw_predict_answer(model, text, pair);
    (void)a;
    if (!found.text) return;
    tw_json_set_string(o, "answer", found.text);
    if (o) set_span(o, &found);
    else printf("%.4f  %lld-%lld  %s\n", (double)found.score, (long long)found.begin_char, (long long)found.end_char, found.text);
}

static void predict_text(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o) {
    const char *written;
    tw_generate_desc how;
    (void)pair;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = option_whole(a, "--max-new-tokens", 100);
    how.num_beams = (int)option_whole(a, "--num-beams", 1);
    written = tw_predict_text(model, text, &how);
    tw_json_set_string(o, "text", written);
    if (!o && written) puts(written);
}

typedef void (*prediction)(arguments *a, tw_model *model, const char *text, const char *pair, tw_json *o);

/* One text, one line of JSON.  False after an error. */
static bool predict_one(arguments *a, tw_model *model, prediction predict, const char *text, const char *pair) {
    tw_json *o = option_given(a, "--json") ? tw_json_object(a->tw) : NULL;
    predict(a, model, text, pair, o);
    if (o) print_json(a->tw, o);
    tw_end_step(a->tw);
    return !tw_failed(a->tw);
}

/* Every line of a file: a text, or an object with text and text2. */
static void predict_file(arguments *a, tw_model *model, prediction predict, const char *path) {
    size_t length = 0, n = strlen(path);
    char *bytes = read_file(a->tw, path, &length), *line = bytes;
    bool objects = n > 6 && !strcmp(path + n - 6, ".jsonl"), going = bytes != NULL;
    long number = 0;
    while (going && line < bytes + length) {
        size_t size = strcspn(line, "\n");
        char *next = line + size + 1;
        number++;
        if (line + size < bytes + length && line[size] == 0) { fail(a->tw, TW_E_FORMAT, "predict: line %ld has a NUL character (%s)", number, path); break; }
        if (size && line[size - 1] == '\r') line[size - 1] = 0;
        line[size] = 0;
        if (*line && !objects) {
            if (!option_given(a, "--json")) printf("%s%s\n", number > 1 ? "\n" : "", line);
            going = predict_one(a, model, predict, line, option_text(a, "--text2", NULL));
        } else if (*line) {
            tw_json *o = tw_json_parse(a->tw, line, SIZE_MAX);
            const char *text = tw_json_string(tw_json_get(o, "text"), NULL);
            if (o && !text) fail(a->tw, TW_E_FORMAT, "predict: line %ld has no \"text\" (%s)", number, path);
            if (text && !option_given(a, "--json")) printf("%s%s\n", number > 1 ? "\n" : "", text);
            going = text && predict_one(a, model, predict, text, tw_json_string(tw_json_get(o, "text2"), option_text(a, "--text2", NULL)));
            tw_json_free(o);
        }
        line = next;
    }
    free(bytes);
}

static int run_predict(arguments *a) {
    static const prediction by_purpose[] = { NULL, predict_classes, predict_entities, predict_masked, predict_embedding, predict_answer, predict_text };
    const char *text = option_text(a, "--text", NULL), *path = option_text(a, "--file", NULL);
    tw_purpose purpose;
    tw_model *model;
    if ((text != NULL) == (path != NULL)) return wrong("predict: wants either --text S or --file F (see twinkle predict --help)");
    model = open_model(a, a->operand[0], false, false);
    if (!model) return status_of(a->tw);
    purpose = tw_purpose_of(model);
    if (!by_purpose[purpose]) fail(a->tw, TW_E_UNSUPPORTED, "predict: a %s answers no single text (%s)", tw_class_of(model), a->operand[0]);
    else if (purpose == TW_FOR_ANSWER && text && !option_given(a, "--text2"))
        fail(a->tw, TW_E_ARGUMENT, "predict: a question needs --text2, the text with the answer (%s)", a->operand[0]);
    else if (text) predict_one(a, model, by_purpose[purpose], text, option_text(a, "--text2", NULL));
    else predict_file(a, model, by_purpose[purpose], path);
    return status_of(a->tw);
}

/* ---- files and folders of a training run ---------------------------------------------------------------- */

static char *path_in(tw_context *tw, const char *folder, const char *name) { return text_of(tw, "%s/%s", folder, name); }

static bool file_exists(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}

/* Calls visit for every name in a folder, until it returns false.  A folder that is not there has none. */
static void list_folder(const char *folder, bool (*visit)(void *user, const char *name), void *user) {
#ifdef _WIN32
    char pattern[1024];
    struct _finddata_t entry;
    intptr_t search;
    snprintf(pattern, sizeof pattern, "%s/*", folder);
    search = _findfirst(pattern, &entry);
    if (search == -1) return;
    do { if (entry.name[0] != '.' && !visit(user, entry.name)) break; } while (_findnext(search, &entry) == 0);
    _findclose(search);
#else
    DIR *dir = opendir(folder);
    struct dirent *entry;
    if (!dir) return;
    while ((entry = readdir(dir)) != NULL) if (entry->d_name[0] != '.' && !visit(user, entry->d_name)) break;
    closedir(dir);
#endif
}

typedef struct folder_visit { tw_context *tw; const char *folder; } folder_visit;

static bool remove_entry(void *user, const char *name) {
    folder_visit *v = (folder_visit *)user;
    char *path = path_in(v->tw, v->folder, name);
    if (path) remove(path);
    free(path);
    return true;
}

static void remove_if_empty(const char *folder) {
#ifdef _WIN32
    _rmdir(folder);
#else
    rmdir(folder);
#endif
}

/* Removes a checkpoint: a folder of plain files. */
static void remove_folder(tw_context *tw, const char *folder) {
    folder_visit v;
    v.tw = tw;
    v.folder = folder;
    list_folder(folder, remove_entry, &v);
    remove_if_empty(folder);
}

/* ---- train: the configuration --------------------------------------------------------------------------- */

typedef enum key_kind { K_TEXT, K_WHOLE, K_NUMBER, K_BOOL, K_OBJECT, K_ANY, K_LATER } key_kind;

/* The keys of a training configuration; those of Hugging Face's TrainingArguments mean the same here. */
static const struct train_key { const char *name; key_kind kind; double low, high; const char *help; } train_keys[] = {
    { "model", K_ANY, 0, 0, "a MODEL folder, or an object that is a config.json: a new model" },
    { "tokenizer", K_TEXT, 0, 0, "a folder with tokenizer files (default: the model's own)" },
    { "task", K_TEXT, 0, 0, "the head to train (default: the one in config.json)" },
    { "train_file", K_TEXT, 0, 0, ".txt, .jsonl or .safetensors" },
    { "eval_file", K_TEXT, 0, 0, "the same, for evaluation" },
    { "output_dir", K_TEXT, 0, 0, "where log, checkpoints and the finished model go (default: trainer_output)" },
    { "max_steps", K_WHOLE, -1, LARGEST, "updates in all (default: by num_train_epochs)" },
    { "num_train_epochs", K_NUMBER, 1e-6, 1e9, "times through the data (default: 3)" },
    { "per_device_train_batch_size", K_WHOLE, 1, 1e6, "rows a micro-batch (default: 8)" },
    { "per_device_eval_batch_size", K_WHOLE, 1, 1e6, "the same for evaluation (default: 8)" },
    { "gradient_accumulation_steps", K_WHOLE, 1, 1e6, "micro-batches an update (default: 1)" },
    { "block_size", K_WHOLE, 2, 1e9, "tokens a row of a text (default: the model's positions, at most 1024)" },
    { "mlm_probability", K_NUMBER, 0, 1, "how many of a text's tokens a model of masked words is asked for (default: 0.15)" },
    { "learning_rate", K_NUMBER, 0, 1e6, "(default: 5e-5)" },
    { "weight_decay", K_NUMBER, 0, 1e6, "not on biases and norms (default: 0)" },
    { "adam_beta1", K_NUMBER, 0, 1, "(default: 0.9)" },
    { "adam_beta2", K_NUMBER, 0, 1, "(default: 0.999)" },
    { "adam_epsilon", K_NUMBER, 0, 1, "(default: 1e-8)" },
    { "optim", K_TEXT, 0, 0, "adamw, adam, sgd, adafactor, lion (default: adamw)" },
    { "optim_args", K_TEXT, 0, 0, "more of the optimizer's own, as \"momentum=0.9,nesterov=true\"" },
    { "lr_scheduler_type", K_TEXT, 0, 0, "linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt (default: linear)" },
    { "lr_scheduler_kwargs", K_OBJECT, 0, 0, "more of the scheduler's own: {\"num_cycles\":2}" },
    { "warmup_steps", K_NUMBER, 0, LARGEST, "updates with a rising rate; below 1 a share of max_steps (default: 0)" },
    { "max_grad_norm", K_NUMBER, 0, 1e30, "gradients are scaled down to that norm; 0: never (default: 1)" },
    { "label_smoothing_factor", K_NUMBER, 0, 0.999, "(default: 0)" },
    { "logging_steps", K_WHOLE, 1, LARGEST, "a row of train_log.csv every so many updates (default: 10)" },
    { "eval_steps", K_WHOLE, 1, LARGEST, "evaluate every so many (default: logging_steps, where there is an eval_file)" },
    { "save_steps", K_WHOLE, 1, LARGEST, "a checkpoint every so many (default: 500); the last is always saved" },
    { "save_total_limit", K_WHOLE, 1, 1e9, "older checkpoints are removed, but not the best (default: all stay)" },
    { "load_best_model_at_end", K_BOOL, 0, 0, "the finished model is the best one, not the last (default: false)" },
    { "metric_for_best_model", K_TEXT, 0, 0, "loss, perplexity, accuracy (default: loss)" },
    { "greater_is_better", K_BOOL, 0, 0, "(default: true for accuracy)" },
    { "resume_from_checkpoint", K_ANY, 0, 0, "a checkpoint folder, or true: the newest whole one in output_dir" },
    { "seed", K_WHOLE, 0, LARGEST, "(default: 42, or --seed)" },
    { "shuffle", K_BOOL, 0, 0, "rows in a new order every epoch (default: true)" },
    { "gradient_checkpointing", K_BOOL, 0, 0, "less memory for a third more time (default: false)" },
    { "dropout", K_NUMBER, 0, 0.999, "all of the model's dropout probabilities (default: its config's)" },
    { "bf16", K_BOOL, 0, 0, "linear layers and heads multiply bf16 numbers; sums, gradients and the weights themselves stay f32 (default: false)" },
    { "lora", K_LATER, 0, 0, "not in this version" },
    { "enable_server", K_LATER, 0, 0, "not in this version" }
};

typedef struct train_run {
    arguments     *a;
    tw_context    *tw;
    const char    *config_path, *output_dir, *metric;
    const tw_json *config;
    tw_model      *model;
    tw_dataset    *train, *eval;
    tw_json       *state, *history;             /* trainer_state.json, and its log_history */
    FILE          *log;
    int64_t        max_steps, batch, accumulation, logging_steps, eval_steps, save_steps, save_total_limit;
    int64_t        run;                         /* counts the runs that began in output_dir: tells its checkpoints from older ones */
    int64_t        start, step;
    double         max_grad_norm, epochs;
    bool           load_best, greater;
} train_run;

static const tw_json *key(const train_run *r, const char *name) {
    const tw_json *value = tw_json_get(r->config, name);
    return tw_json_type(value) == TW_JSON_NULL ? NULL : value;
}
static int64_t whole(const train_run *r, const char *name, int64_t otherwise) { return tw_json_int(key(r, name), otherwise); }
static double number(const train_run *r, const char *name, double otherwise) { return tw_json_number(key(r, name), otherwise); }
static bool yes(const train_run *r, const char *name, bool otherwise) { return tw_json_bool(key(r, name), otherwise); }
static const char *text(const train_run *r, const char *name, const char *otherwise) { return tw_json_string(key(r, name), otherwise); }

static bool config_error(const train_run *r, const char *name, const char *why) {
    fail(r->tw, TW_E_CONFIG, "%s: %s (%s)", name, why, r->config_path);
    return false;
}

/* A value that asks for nothing: false, null, or nothing in it. */
static bool is_off(const tw_json *value) {
    tw_json_kind kind = tw_json_type(value);
    return kind == TW_JSON_NULL || (kind == TW_JSON_BOOL && !tw_json_bool(value, true)) || (kind == TW_JSON_OBJECT && tw_json_count(value) == 0);
}

static bool check_key(const train_run *r, const char *name, const tw_json *value) {
    const struct train_key *k = train_keys;
    tw_json_kind kind = tw_json_type(value);
    double x = tw_json_number(value, (double)NAN);
    char why[120], range[64];
    while (k < train_keys + COUNT(train_keys) && strcmp(k->name, name) != 0) k++;
    if (k == train_keys + COUNT(train_keys)) return config_error(r, name, "there is no such key, see twinkle train --help");
    if (kind == TW_JSON_NULL) return true;
    switch (k->kind) {
    case K_TEXT: return kind == TW_JSON_STRING || config_error(r, name, "must be a text");
    case K_BOOL: return kind == TW_JSON_BOOL || config_error(r, name, "must be true or false");
    case K_OBJECT: return kind == TW_JSON_OBJECT || config_error(r, name, "must be an object");
    case K_LATER: return is_off(value) || config_error(r, name, "this version does not have it");
    case K_ANY: return true;
    case K_WHOLE:
        if (kind != TW_JSON_NUMBER || tw_json_int(value, INT64_MIN) == INT64_MIN) return config_error(r, name, "must be a whole number");
        break;
    case K_NUMBER:
        if (kind != TW_JSON_NUMBER) return config_error(r, name, "must be a number");
        break;
    }
    if (x >= k->low && x <= k->high) return true;
    snprintf(why, sizeof why, "%g is out of range, %s", x, range_of(range, sizeof range, k->low, k->high));
    return config_error(r, name, why);
}

static bool read_settings(train_run *r) {
    const char *metric = text(r, "metric_for_best_model", "loss");
    int64_t i;
    if (tw_json_type(r->config) != TW_JSON_OBJECT) return config_error(r, "train", "the configuration must be an object");
    for (i = 0; i < tw_json_count(r->config); i++)
        if (!check_key(r, tw_json_key(r->config, i), tw_json_at(r->config, i))) return false;
    if (!key(r, "model")) return config_error(r, "model", "is missing");
    if (!key(r, "train_file")) return config_error(r, "train_file", "is missing");
    r->metric = !strncmp(metric, "eval_", 5) ? metric + 5 : metric;
    if (strcmp(r->metric, "loss") != 0 && strcmp(r->metric, "perplexity") != 0 && strcmp(r->metric, "accuracy") != 0)
        return config_error(r, "metric_for_best_model", "must be loss, perplexity or accuracy");
    r->output_dir = text(r, "output_dir", "trainer_output");
    r->batch = whole(r, "per_device_train_batch_size", 8);
    r->accumulation = whole(r, "gradient_accumulation_steps", 1);
    r->logging_steps = whole(r, "logging_steps", 10);
    r->eval_steps = key(r, "eval_file") ? whole(r, "eval_steps", r->logging_steps) : 0;
    r->save_steps = whole(r, "save_steps", 500);
    r->save_total_limit = whole(r, "save_total_limit", 0);
    r->max_grad_norm = number(r, "max_grad_norm", 1);
    r->load_best = yes(r, "load_best_model_at_end", false);
    r->greater = yes(r, "greater_is_better", !strcmp(r->metric, "accuracy"));
    if (r->load_best && !r->eval_steps) return config_error(r, "load_best_model_at_end", "needs an eval_file");
    return true;
}

/* ---- train: model, optimizer, data ---------------------------------------------------------------------- */

static bool has_classes(const tw_model *model) { return strstr(tw_class_of(model), "Classification") != NULL; }

/* A new model: the config.json that stands in the configuration, with the tokenizer's size where it names none. */
static tw_model *new_model(train_run *r, const tw_json *config, const tw_tokenizer *tokenizer) {
    tw_json *copy = tw_json_object(r->tw);
    tw_model *model = NULL;
    char *as_text;
    int64_t i;
    for (i = 0; i < tw_json_count(config); i++) tw_json_set_copy(copy, tw_json_key(config, i), tw_json_at(config, i));
    if (tokenizer && !tw_json_get(copy, "vocab_size")) tw_json_set_int(copy, "vocab_size", tw_vocab_size(tokenizer));
    as_text = json_text(r->tw, copy);
    if (as_text) model = tw_from_config_with(r->tw, as_text, text(r, "task", NULL));
    free(as_text);
    tw_json_free(copy);
    return model;
}

static bool make_model(train_run *r) {
    const tw_json *which = key(r, "model");
    const char *tokenizer_folder = text(r, "tokenizer", NULL);
    tw_tokenizer *tokenizer = tokenizer_folder ? tw_load_tokenizer(r->tw, tokenizer_folder) : NULL;
    tw_load_desc how;
    memset(&how, 0, sizeof how);
    how.task = text(r, "task", NULL);
    how.new_head = how.task != NULL;                    /* fine-tuning: what the checkpoint lacks of that head begins anew */
    how.to_f32 = true;
    if (tw_failed(r->tw)) return false;
    if (tw_json_type(which) == TW_JSON_OBJECT) r->model = new_model(r, which, tokenizer);
    else if (tw_json_type(which) == TW_JSON_STRING) r->model = tw_from_pretrained_with(r->tw, tw_json_string(which, ""), &how);
    else return config_error(r, "model", "must be a folder or an object");
    if (!r->model) return false;
    if (tokenizer) tw_set_tokenizer(r->model, tokenizer);
    if (key(r, "dropout")) tw_set_dropout(r->model, (float)number(r, "dropout", 0));
    tw_gradient_checkpointing(r->model, yes(r, "gradient_checkpointing", false));
    tw_bf16(r->tw, yes(r, "bf16", false));
    tw_add_metric(r->model, "loss", TW_EVALUATION);
    if (r->eval_steps && (!strcmp(r->metric, "accuracy") || has_classes(r->model))) tw_add_metric(r->model, "accuracy", TW_EVALUATION);
    return !tw_failed(r->tw);
}

/* "momentum=0.9,nesterov=true" into members of an object. */
static void add_optimizer_arguments(train_run *r, tw_json *options, const char *list) {
    static const char *const own[] = { "momentum", "dampening", "nesterov", "decay_rate", "clip_threshold", "eps" };
    while (*list) {
        size_t n = strcspn(list, "="), m, k;
        char name[64], value[64], *end;
        double x;
        while (*list == ' ') { list++; n--; }
        m = list[n] ? strcspn(list + n + 1, ",") : 0;
        if (n == 0 || n >= sizeof name || m == 0 || m >= sizeof value) { config_error(r, "optim_args", "must be like momentum=0.9,nesterov=true"); return; }
        snprintf(name, sizeof name, "%.*s", (int)n, list);
        snprintf(value, sizeof value, "%.*s", (int)m, list + n + 1);
        for (k = 0; k < COUNT(own) && strcmp(name, own[k]) != 0; k++) continue;
        if (k == COUNT(own)) { config_error(r, "optim_args", "can have momentum, dampening, nesterov, decay_rate, clip_threshold and eps, nothing else"); return; }
        x = strtod(value, &end);
        if (!*end) tw_json_set_number(options, name, x);
        else if (!strcmp(value, "true") || !strcmp(value, "True")) tw_json_set_bool(options, name, true);
        else if (!strcmp(value, "false") || !strcmp(value, "False")) tw_json_set_bool(options, name, false);
        else { config_error(r, "optim_args", "must be like momentum=0.9,nesterov=true"); return; }
        list += n + 1 + m;
        if (*list == ',') list++;
    }
}

static bool make_optimizer(train_run *r) {
    const char *name = text(r, "optim", "adamw");
    tw_json *options = tw_json_object(r->tw), *betas;
    char *as_text;
    if (!strncmp(name, "adamw_torch", 11)) name = "adamw";           /* what the HF Trainer calls it */
    tw_json_set_number(options, "lr", number(r, "learning_rate", 5e-5));
    tw_json_set_number(options, "weight_decay", number(r, "weight_decay", 0));
    if (!strcmp(name, "adamw") || !strcmp(name, "adam") || !strcmp(name, "lion")) {
        betas = tw_json_set_array(options, "betas");
        tw_json_push_number(betas, number(r, "adam_beta1", 0.9));
        tw_json_push_number(betas, number(r, "adam_beta2", 0.999));
        if (strcmp(name, "lion") != 0) tw_json_set_number(options, "eps", number(r, "adam_epsilon", 1e-8));
    }
    add_optimizer_arguments(r, options, text(r, "optim_args", ""));
    as_text = json_text(r->tw, options);
    if (as_text) tw_set_optimizer(r->model, name, as_text);
    free(as_text);
    tw_json_free(options);
    return !tw_failed(r->tw);
}

static bool make_scheduler(train_run *r) {
    static const char *const own[] = { "num_cycles", "power", "lr_end", "timescale" };
    const tw_json *more = key(r, "lr_scheduler_kwargs");
    double warmup = number(r, "warmup_steps", 0);
    tw_json *options = tw_json_object(r->tw);
    char *as_text;
    int64_t i;
    size_t k;
    tw_json_set_int(options, "warmup_steps", (int64_t)ceil(warmup < 1 ? warmup * (double)r->max_steps : warmup));
    tw_json_set_int(options, "max_steps", r->max_steps);
    for (i = 0; i < tw_json_count(more); i++) {
        const char *name = tw_json_key(more, i);
        for (k = 0; k < COUNT(own) && strcmp(name, own[k]) != 0; k++) continue;
        if (k == COUNT(own)) config_error(r, "lr_scheduler_kwargs", "can have num_cycles, power, lr_end and timescale, nothing else");
        tw_json_set_copy(options, name, tw_json_at(more, i));
    }
    as_text = json_text(r->tw, options);
    if (as_text) tw_set_lr_scheduler(r->model, text(r, "lr_scheduler_type", "linear"), as_text);
    free(as_text);
    tw_json_free(options);
    return !tw_failed(r->tw);
}

static bool make_loss(train_run *r) {
    char options[64];
    snprintf(options, sizeof options, "{\"label_smoothing\":%.9g}", number(r, "label_smoothing_factor", 0));
    return tw_set_loss(r->model, "model", options);
}

static bool open_data(train_run *r, uint64_t seed) {
    tw_dataset_desc how;
    int64_t rows, batches, per_epoch;
    memset(&how, 0, sizeof how);
    how.block_size = whole(r, "block_size", 0);
    how.mlm_probability = (float)number(r, "mlm_probability", 0);
    how.seed = seed;
    how.quiet = true;
    if (r->eval_steps) {
        how.batch_size = whole(r, "per_device_eval_batch_size", 8);
        r->eval = tw_dataset_from_file(r->model, text(r, "eval_file", ""), &how);        /* max_steps 0: one epoch, in order */
        if (!r->eval) return false;
    }
    how.batch_size = r->batch;
    how.shuffle = yes(r, "shuffle", true);
    how.max_steps = INT64_MAX;                          /* goes round and round; this program counts the steps */
    r->train = tw_dataset_from_file(r->model, text(r, "train_file", ""), &how);
    if (!r->train) return false;
    rows = tw_dataset_rows(r->train);
    r->max_steps = whole(r, "max_steps", -1);
    batches = (rows + r->batch - 1) / r->batch;          /* an epoch's, and its updates, counted as the HF Trainer does */
    per_epoch = (batches + r->accumulation - 1) / r->accumulation;
    if (r->max_steps <= 0) r->max_steps = (int64_t)ceil(number(r, "num_train_epochs", 3) * (double)per_epoch);
    r->epochs = (double)r->max_steps / (double)per_epoch;
    return true;
}

/* Everything but the checkpoint; also anew, when a checkpoint could not be used. */
static bool set_up(train_run *r) {
    uint64_t seed = (uint64_t)(option_given(r->a, "--seed") ? option_whole(r->a, "--seed", 42) : whole(r, "seed", 42));
    tw_seed(r->tw, seed);
    return make_model(r) && make_optimizer(r) && make_loss(r) && open_data(r, seed ? seed : 42) && make_scheduler(r);
}

static void tear_down(train_run *r) {
    tw_dataset_free(r->train);
    tw_dataset_free(r->eval);
    tw_model_free(r->model);
    r->train = r->eval = NULL;
    r->model = NULL;
}

/* ---- train: checkpoints ----------------------------------------------------------------------------------- */

static char *checkpoint_name(train_run *r, int64_t step) { return text_of(r->tw, "%s/iter-%lld-ckpt", r->output_dir, (long long)step); }

/* The step of a name like iter-500-ckpt; -1: it is none. */
static int64_t step_of_name(const char *name) {
    char *end;
    long long step;
    if (strncmp(name, "iter-", 5) != 0 || !isdigit((unsigned char)name[5])) return -1;
    step = strtoll(name + 5, &end, 10);
    return strcmp(end, "-ckpt") == 0 ? (int64_t)step : -1;
}

/* trainer_state.json of a checkpoint folder; NULL: there is none, or it cannot be read (and that is no error). */
static tw_json *load_state(tw_context *tw, const char *folder) {
    char *path = path_in(tw, folder, "trainer_state.json");
    tw_json *state = NULL;
    if (path && file_exists(path)) {
        state = tw_json_load(tw, path);
        if (!state) tw_clear_error(tw);
    }
    free(path);
    return state;
}

/* The checkpoints in output_dir: their steps, and the runs they are of. */
typedef struct checkpoint { int64_t step, run; } checkpoint;
typedef struct checkpoint_list { train_run *r; checkpoint *list; size_t count, room; } checkpoint_list;

static bool visit_checkpoint(void *user, const char *name) {
    checkpoint_list *all = (checkpoint_list *)user;
    int64_t step = step_of_name(name);
    char *folder = step < 0 ? NULL : path_in(all->r->tw, all->r->output_dir, name);
    tw_json *state = folder ? load_state(all->r->tw, folder) : NULL;
    if (folder && all->count == all->room) {
        checkpoint *more = (checkpoint *)realloc(all->list, (2 * all->room + 8) * sizeof *more);
        if (!more) fail(all->r->tw, TW_E_MEMORY, "memory: there is no room for the list of checkpoints");
        else { all->list = more; all->room = 2 * all->room + 8; }
    }
    if (folder && all->count < all->room) {
        all->list[all->count].step = step;
        all->list[all->count++].run = tw_json_int(tw_json_get(state, "run"), 0);
    }
    tw_json_free(state);
    free(folder);
    return !tw_failed(all->r->tw);
}

static checkpoint_list list_checkpoints(train_run *r) {
    checkpoint_list all = { r, NULL, 0, 0 };
    list_folder(r->output_dir, visit_checkpoint, &all);
    return all;
}

/* Removes the oldest checkpoints beyond the limit, those of earlier runs first; the newest and the best stay. */
static void rotate_checkpoints(train_run *r) {
    int64_t best = tw_json_int(tw_json_get(r->state, "best_global_step"), -1);
    checkpoint_list all = list_checkpoints(r);
    while (r->save_total_limit > 0 && all.count > (size_t)r->save_total_limit) {
        size_t i, victim = all.count;
        char *folder;
        for (i = 0; i < all.count; i++) {
            const checkpoint *c = &all.list[i], *v = victim < all.count ? &all.list[victim] : NULL;
            bool ours = c->run == r->run;
            if (ours && (c->step == r->step || c->step == best)) continue;
            if (!v || (!ours && v->run == r->run) || (ours == (v->run == r->run) && c->step < v->step)) victim = i;
        }
        if (victim == all.count) break;
        folder = checkpoint_name(r, all.list[victim].step);
        if (folder) remove_folder(r->tw, folder);
        free(folder);
        all.list[victim] = all.list[--all.count];
    }
    free(all.list);
}

static bool save_json_in(train_run *r, const char *folder, const char *name, const tw_json *value) {
    char *path = path_in(r->tw, folder, name);
    bool ok = path && tw_json_save(r->tw, value, path, 2);
    free(path);
    return ok;
}

/* A checkpoint is made in a folder beside its own and renamed when all of it is there: what has the name is whole. */
static bool save_checkpoint(train_run *r) {
    char *folder = checkpoint_name(r, r->step), *part = folder ? text_of(r->tw, "%s.part", folder) : NULL;
    bool ok = part != NULL;
    if (ok) {
        remove_folder(r->tw, part);
        ok = tw_save_checkpoint(r->model, part, true) && save_json_in(r, part, "trainer_config.json", r->config) && save_json_in(r, part, "trainer_state.json", r->state);
        if (ok) {
            remove_folder(r->tw, folder);
            if (rename(part, folder) != 0) { fail(r->tw, TW_E_FILE, "checkpoint: it cannot be renamed, %s (%s)", strerror(errno), folder); ok = false; }
        }
        if (!ok) remove_folder(r->tw, part);
    }
    free(part);
    free(folder);
    if (ok) rotate_checkpoints(r);
    return ok;
}

/* ---- train: trainer_state.json and train_log.csv ---------------------------------------------------------- */

static void new_state(train_run *r) {
    tw_json *s = tw_json_object(r->tw), *control;
    static const char *const flags[] = { "should_epoch_stop", "should_evaluate", "should_log", "should_save", "should_training_stop" };
    size_t i;
    r->state = s;
    tw_json_set_null(s, "best_global_step");
    tw_json_set_null(s, "best_metric");
    tw_json_set_null(s, "best_model_checkpoint");
    tw_json_set_number(s, "epoch", 0);
    tw_json_set_int(s, "eval_steps", r->eval_steps ? r->eval_steps : r->logging_steps);
    tw_json_set_int(s, "global_step", 0);
    tw_json_set_bool(s, "is_hyper_param_search", false);
    tw_json_set_bool(s, "is_local_process_zero", true);
    tw_json_set_bool(s, "is_world_process_zero", true);
    r->history = tw_json_set_array(s, "log_history");
    tw_json_set_int(s, "logging_steps", r->logging_steps);
    tw_json_set_int(s, "max_steps", r->max_steps);
    tw_json_set_int(s, "num_input_tokens_seen", 0);
    tw_json_set_int(s, "num_train_epochs", (int64_t)ceil(r->epochs));
    tw_json_set_int(s, "run", r->run);
    tw_json_set_int(s, "save_steps", r->save_steps);
    control = tw_json_set_object(tw_json_set_object(tw_json_set_object(s, "stateful_callbacks"), "TrainerControl"), "args");
    for (i = 0; i < COUNT(flags); i++) tw_json_set_bool(control, flags[i], false);
    tw_json_set_number(s, "total_flos", 0);
    tw_json_set_int(s, "train_batch_size", r->batch);
    tw_json_set_null(s, "trial_name");
    tw_json_set_null(s, "trial_params");
}

#define LOG_HEADER "step,epoch,train_loss,eval_loss,lr,grad_norm,tokens_per_second,eval_accuracy\n"

/* Opens train_log.csv with the rows up to a step that a resumed run goes on from, and none twice. */
static bool open_log(train_run *r) {
    char *path = path_in(r->tw, r->output_dir, "train_log.csv"), *part = path_in(r->tw, r->output_dir, "train_log.csv.part"), line[1024];
    FILE *old = path && r->start > 0 ? fopen(path, "rb") : NULL;
    bool ok;
    r->log = part ? fopen(part, "wb") : NULL;
    ok = r->log && fputs(LOG_HEADER, r->log) >= 0;
    while (ok && old && fgets(line, sizeof line, old))
        if (isdigit((unsigned char)line[0]) && strchr(line, '\n') && strtoll(line, NULL, 10) <= (long long)r->start) ok = fputs(line, r->log) >= 0;
    if (old) fclose(old);
    if (r->log && fclose(r->log) != 0) ok = false;
    r->log = NULL;
#ifdef _WIN32
    if (ok) remove(path);
#endif
    ok = ok && rename(part, path) == 0 && (r->log = fopen(path, "ab")) != NULL;
    if (!ok) fail(r->tw, TW_E_FILE, "train_log.csv: it cannot be written, %s (%s)", strerror(errno), r->output_dir);
    if (!ok && part) remove(part);
    free(path);
    free(part);
    return ok;
}

/* What was measured at a step; NAN: not. */
typedef struct step_facts { double epoch, loss, rate, norm, tokens_per_second, eval_loss, eval_accuracy; int64_t tokens; } step_facts;

static void put_number(FILE *f, double x, int digits) {
    if (!isnan(x)) fprintf(f, "%.*g", digits, x);
}

static bool log_row(train_run *r, const step_facts *f) {
    double values[7];
    int i;
    values[0] = f->epoch; values[1] = f->loss; values[2] = f->eval_loss; values[3] = f->rate; values[4] = f->norm; values[5] = f->tokens_per_second;
    values[6] = f->eval_accuracy;
    fprintf(r->log, "%lld", (long long)r->step);
    for (i = 0; i < 7; i++) { fputc(',', r->log); put_number(r->log, values[i], i == 3 ? 17 : i == 5 ? 6 : 9); }
    fputc('\n', r->log);
    if (fflush(r->log) == 0 && !ferror(r->log)) return true;
    fail(r->tw, TW_E_FILE, "train_log.csv: it cannot be written, %s (%s)", strerror(errno), r->output_dir);
    return false;
}

static void set_unless_nan(tw_json *object, const char *name, double value) {
    if (!isnan(value)) tw_json_set_number(object, name, value);
}

/* The same into trainer_state.json's history: an entry for training, one for an evaluation. */
static void note_history(train_run *r, const step_facts *f) {
    tw_json *entry = tw_json_push_object(r->history);
    tw_json_set_number(entry, "epoch", f->epoch);
    tw_json_set_number(entry, "grad_norm", f->norm);
    tw_json_set_number(entry, "learning_rate", f->rate);
    tw_json_set_number(entry, "loss", f->loss);
    tw_json_set_int(entry, "step", r->step);
    if (isnan(f->eval_loss)) return;
    entry = tw_json_push_object(r->history);
    tw_json_set_number(entry, "epoch", f->epoch);
    set_unless_nan(entry, "eval_accuracy", f->eval_accuracy);
    tw_json_set_number(entry, "eval_loss", f->eval_loss);
    tw_json_set_int(entry, "step", r->step);
}

static void print_row(const train_run *r, const step_facts *f) {
    if (option_given(r->a, "--json")) {
        tw_json *o = tw_json_object(r->tw);
        tw_json_set_int(o, "step", r->step);
        tw_json_set_number(o, "epoch", f->epoch);
        tw_json_set_number(o, "train_loss", f->loss);
        set_unless_nan(o, "eval_loss", f->eval_loss);
        set_unless_nan(o, "eval_accuracy", f->eval_accuracy);
        tw_json_set_number(o, "lr", f->rate);
        tw_json_set_number(o, "grad_norm", f->norm);
        tw_json_set_number(o, "tokens_per_second", f->tokens_per_second);
        print_json(r->tw, o);
    } else {
        printf("step %lld/%lld  loss %.4f", (long long)r->step, (long long)r->max_steps, f->loss);
        if (!isnan(f->eval_loss)) printf("  eval loss %.4f", f->eval_loss);
        printf("  lr %.3g  norm %.3g  %.0f tokens/s\n", f->rate, f->norm, f->tokens_per_second);
    }
    fflush(stdout);
}

/* ---- train: the loop ---------------------------------------------------------------------------------------- */

/* Loss, and accuracy where it is counted, over a whole dataset. */
static void evaluate(tw_model *model, tw_dataset *data, double *loss, double *accuracy) {
    tw_batch batch;
    tw_dataset_seek(data, 0);
    while (tw_next_batch(data, &batch)) if (!tw_forward_only(model, &batch, NULL, NULL)) break;
    *loss = tw_calculate_metric(model, "loss", TW_EVALUATION);
    *accuracy = tw_calculate_metric(model, "accuracy", TW_EVALUATION);
}

/* One update: a window of micro-batches.  False after an error. */
static bool one_step(train_run *r, step_facts *f) {
    tw_call call;
    int64_t i, began = tw_now(r->tw);
    tw_batch batch;
    memset(&call, 0, sizeof call);
    call.gradient_accumulation_steps = (int)r->accumulation;
    f->loss = f->norm = 0;
    f->tokens = 0;
    f->eval_loss = f->eval_accuracy = (double)NAN;
    f->rate = tw_learning_rate(r->model);
    for (i = 0; i < r->accumulation; i++) {
        if (!tw_next_batch(r->train, &batch)) return false;
        f->tokens += tw_count(tw_batch_get(&batch, "input_ids"));
        f->loss += (double)tw_forward_backward(r->model, &batch, &call) / (double)r->accumulation;
        f->norm = (double)tw_clip_grad_and_step(r->model, (float)r->max_grad_norm, 2, &call);
        if (tw_failed(r->tw)) return false;
    }
    r->step++;
    f->epoch = (double)(r->step * r->accumulation * r->batch) / (double)tw_dataset_rows(r->train);
    f->tokens_per_second = 1e6 * (double)f->tokens / (double)(tw_now(r->tw) - began + 1);
    if (isfinite(f->loss) && isfinite(f->norm)) return true;
    fail(r->tw, TW_E_RANGE, "training: the %s of step %lld is not finite; a smaller learning_rate may help (%s)",
         isfinite(f->loss) ? "gradient" : "loss", (long long)r->step, r->config_path);
    return false;
}

/* Notes an evaluation's result; true if it is the best so far. */
static bool is_best(train_run *r, const step_facts *f) {
    double value = !strcmp(r->metric, "accuracy") ? f->eval_accuracy : !strcmp(r->metric, "perplexity") ? exp(f->eval_loss) : f->eval_loss;
    double best = tw_json_number(tw_json_get(r->state, "best_metric"), (double)NAN);
    char *folder;
    if (isnan(value) || !(isnan(best) || (r->greater ? value > best : value < best))) return false;
    folder = checkpoint_name(r, r->step);
    tw_json_set_number(r->state, "best_metric", value);
    tw_json_set_int(r->state, "best_global_step", r->step);
    if (folder) tw_json_set_string(r->state, "best_model_checkpoint", folder);
    free(folder);
    return true;
}

static bool train_loop(train_run *r) {
    while (r->step < r->max_steps) {
        step_facts f;
        bool best = false, last;
        if (!one_step(r, &f)) return false;
        last = r->step == r->max_steps;
        tw_json_set_int(r->state, "global_step", r->step);
        tw_json_set_number(r->state, "epoch", f.epoch);
        if (r->eval_steps && (r->step % r->eval_steps == 0 || last)) {
            evaluate(r->model, r->eval, &f.eval_loss, &f.eval_accuracy);
            if (tw_failed(r->tw)) return false;
            best = is_best(r, &f);
        }
        if (r->step % r->logging_steps == 0 || last || !isnan(f.eval_loss)) {
            note_history(r, &f);
            if (!log_row(r, &f)) return false;
            print_row(r, &f);
        }
        if ((r->step % r->save_steps == 0 || last || (best && r->load_best)) && !save_checkpoint(r)) return false;
    }
    return true;
}

/* The finished model, in output_dir itself: the best one where that is asked for, else the last. */
static bool save_finished(train_run *r) {
    const char *best = tw_json_string(tw_json_get(r->state, "best_model_checkpoint"), NULL);
    if (r->load_best && best && tw_json_int(tw_json_get(r->state, "best_global_step"), -1) != r->step) {
        tw_load_desc how;
        memset(&how, 0, sizeof how);
        how.task = text(r, "task", NULL);
        tear_down(r);
        r->model = tw_from_pretrained_with(r->tw, best, &how);
    }
    return tw_save_pretrained(r->model, r->output_dir) && save_json_in(r, r->output_dir, "trainer_state.json", r->state);
}

/* ---- train: going on from a checkpoint ---------------------------------------------------------------------- */

static bool go_on_from(train_run *r, const char *folder) {
    static const char *const kept[] = { "best_global_step", "best_metric", "best_model_checkpoint" };
    tw_json *state = load_state(r->tw, folder);
    const tw_json *history = tw_json_get(state, "log_history");
    int64_t step = tw_json_int(tw_json_get(state, "global_step"), -1), i;
    bool ok = state && tw_resume_from_checkpoint(r->model, folder);
    if (!tw_failed(r->tw) && (!ok || tw_global_step(r->model) != step)) {
        fail(r->tw, TW_E_MISSING, "checkpoint: it is not whole, %s is missing or of another step (%s)", state ? "the optimizer's state" : "trainer_state.json", folder);
        ok = false;
    }
    if (ok) {
        r->start = r->step = step;
        for (i = 0; i < tw_json_count(history); i++) tw_json_push_copy(r->history, tw_json_at(history, i));
        for (i = 0; i < (int64_t)COUNT(kept); i++) if (tw_json_get(state, kept[i])) tw_json_set_copy(r->state, kept[i], tw_json_get(state, kept[i]));
        ok = tw_dataset_seek(r->train, step * r->accumulation);
    }
    tw_json_free(state);
    return ok && !tw_failed(r->tw);
}

/* Says which checkpoint is not whole, and forgets the error. */
static void report_passed_over(const train_run *r) {
    char line[1024];
    snprintf(line, sizeof line, "%s", tw_error(r->tw));
    tw_clear_error(r->tw);
    if (option_given(r->a, "--json")) {
        tw_json *o = tw_json_object(r->tw);
        tw_json_set_string(o, "passed_over", line);
        print_json(r->tw, o);
    } else {
        printf("passed over: %s\n", line);
    }
}

/* The newest whole checkpoint of this run in output_dir.  One that is damaged is said and passed over; without any the run
   begins at the beginning. */
static bool go_on_from_newest(train_run *r) {
    checkpoint_list all = list_checkpoints(r);
    int64_t below = INT64_MAX;
    bool done = false;
    while (!done && !tw_failed(r->tw)) {
        int64_t newest = -1;
        char *folder;
        size_t i;
        for (i = 0; i < all.count; i++)
            if (all.list[i].step > newest && all.list[i].step < below && (r->run == 0 || all.list[i].run == r->run)) newest = all.list[i].step;
        if (newest < 0) break;
        folder = checkpoint_name(r, newest);
        done = folder && go_on_from(r, folder);
        free(folder);
        below = newest;
        if (!done && folder) {                                  /* the model may be half of it by now: begin anew */
            report_passed_over(r);
            tear_down(r);
            set_up(r);
        }
    }
    free(all.list);
    return !tw_failed(r->tw);
}

/* Which run this is: a fresh one has the next number, so that checkpoints of earlier runs in the same folder are not
   mistaken for its own; a resumed one has the number that output_dir remembers. */
static void number_run(train_run *r, bool resumes) {
    tw_json *last = load_state(r->tw, r->output_dir);
    r->run = tw_json_int(tw_json_get(last, "run"), 0) + (resumes ? 0 : 1);
    tw_json_free(last);
}

static bool begin_run(train_run *r) {
    const tw_json *from = key(r, "resume_from_checkpoint");
    bool newest = tw_json_bool(from, false);
    const char *folder = tw_json_string(from, NULL);
    if (from && tw_json_type(from) != TW_JSON_BOOL && !folder) return config_error(r, "resume_from_checkpoint", "must be a folder, true or false");
    if (!tw_make_folders(r->tw, r->output_dir)) return false;
    number_run(r, newest || folder);
    new_state(r);
    if (folder && !go_on_from(r, folder)) return false;
    if (newest && !go_on_from_newest(r)) return false;
    if (r->run == 0) { r->run = 1; tw_json_set_int(r->state, "run", 1); }
    return open_log(r) && save_json_in(r, r->output_dir, "trainer_config.json", r->config) && save_json_in(r, r->output_dir, "trainer_state.json", r->state);
}

static int run_train(arguments *a) {
    train_run r;
    tw_json *config = tw_json_load(a->tw, a->operand[0]);
    memset(&r, 0, sizeof r);
    r.a = a;
    r.tw = a->tw;
    r.config = config;
    r.config_path = a->operand[0];
    if (config && read_settings(&r) && set_up(&r) && begin_run(&r) && train_loop(&r)) save_finished(&r);
    if (r.log && fclose(r.log) != 0) fail(r.tw, TW_E_FILE, "train_log.csv: it cannot be written, %s (%s)", strerror(errno), r.output_dir);
    tw_json_free(r.state);
    tear_down(&r);
    tw_json_free(config);
    return status_of(a->tw);
}

static void print_train_keys(void) {
    size_t i;
    puts("\nKeys of CONFIG.json:");
    for (i = 0; i < COUNT(train_keys); i++) printf("  %-28s %s\n", train_keys[i].name, train_keys[i].help);
}

/* ---- eval ------------------------------------------------------------------------------------------------------ */

static const option eval_options[] = {
    { "--data", "F", TEXT, 0, 0, ".txt, .jsonl or .safetensors" },
    { "--batch-size", "N", WHOLE, 1, 1e6, "rows at a time (default: 8)" },
    { "--block-size", "N", WHOLE, 2, 1e9, "tokens a row of a text (default: the model's positions, at most 1024)" },
    { "--task", "NAME", TEXT, 0, 0, "the head to use instead of the one in config.json" }
};

/* What a model is worth on a file of data. */
typedef struct worth { double loss, accuracy; int64_t rows, bytes; bool language; } worth;

static worth evaluate_folder(arguments *a, const char *folder) {
    tw_dataset_desc how;
    tw_dataset *data = NULL;
    tw_model *model = open_model(a, folder, false, false);
    const char *class_name = tw_class_of(model);
    worth w = { (double)NAN, (double)NAN, 0, 0, false };
    memset(&how, 0, sizeof how);
    how.batch_size = option_whole(a, "--batch-size", 8);
    how.block_size = option_whole(a, "--block-size", 0);
    how.quiet = true;
    if (model) data = tw_dataset_from_file(model, option_text(a, "--data", ""), &how);
    if (data) {
        tw_add_metric(model, "loss", TW_EVALUATION);
        if (has_classes(model)) tw_add_metric(model, "accuracy", TW_EVALUATION);
        evaluate(model, data, &w.loss, &w.accuracy);
        w.rows = tw_dataset_rows(data);
        w.bytes = total_weights(model).bytes;
        w.language = strstr(class_name, "LMHead") || strstr(class_name, "CausalLM") || strstr(class_name, "ConditionalGeneration") ||
                     strcmp(class_name, "GLMModel") == 0 || strcmp(class_name, "GLMForSeq2Seq") == 0;
    }
    tw_dataset_free(data);
    tw_model_free(model);
    return w;
}

static int run_eval(arguments *a) {
    tw_context *tw = a->tw;
    worth w;
    if (!option_given(a, "--data")) return wrong("eval: wants --data F (see twinkle eval --help)");
    w = evaluate_folder(a, a->operand[0]);
    if (!tw_failed(tw) && isnan(w.loss)) fail(tw, TW_E_MISSING, "eval: there is no loss: nothing in the data has a label (%s)", option_text(a, "--data", ""));
    if (!tw_failed(tw)) {
        tw_json *o = tw_json_object(tw);
        set_unless_nan(o, "loss", w.loss);
        if (w.language) set_unless_nan(o, "perplexity", exp(w.loss));
        set_unless_nan(o, "accuracy", w.accuracy);
        tw_json_set_int(o, "rows", w.rows);
        if (option_given(a, "--json")) { print_json(tw, o); }
        else {
            printf("loss         %.6f\n", w.loss);
            if (w.language) printf("perplexity   %.4f\n", exp(w.loss));
            if (!isnan(w.accuracy)) printf("accuracy     %.2f %%\n", 100 * w.accuracy);
            printf("rows         %lld\n", (long long)w.rows);
            tw_json_free(o);
        }
    }
    return status_of(tw);
}

/* ---- convert ------------------------------------------------------------------------------------------------- */

static const option convert_options[] = {
    { "--dtype", "NAME", DTYPE, 0, 0, "f32, f16 or bf16 (rounded to nearest even), q8_0 or q4_0 (blocks of 32 with one scale)" },
    { "--data", "F", TEXT, 0, 0, "measures both models on it and prints the change: .txt, .jsonl or .safetensors" },
    { "--batch-size", "N", WHOLE, 1, 1e6, "rows at a time (default: 8)" },
    { "--block-size", "N", WHOLE, 2, 1e9, "tokens a row of a text (default: the model's positions, at most 1024)" },
    { "--task", "NAME", TEXT, 0, 0, "the head to measure instead of the one in config.json" }
};

static void report_change(arguments *a, tw_dtype dtype, const char *what, double scale, double before, double after, tw_json *o) {
    char name[64];
    double change = 100 * (after / before - 1);
    if (isnan(before) || isnan(after)) return;
    if (!option_given(a, "--json")) { printf("%-12s %.4f -> %.4f  (%+.3f %% with %s)\n", what, scale * before, scale * after, change, tw_dtype_name(dtype)); return; }
    snprintf(name, sizeof name, "%s_before", what);
    tw_json_set_number(o, name, before);
    snprintf(name, sizeof name, "%s_after", what);
    tw_json_set_number(o, name, after);
    snprintf(name, sizeof name, "%s_change_percent", what);
    tw_json_set_number(o, name, change);
}

static int run_convert(arguments *a) {
    tw_context *tw = a->tw;
    tw_dtype dtype = option_dtype(a, TW_F32);
    const char *from = a->operand[0], *to = a->operand[1];
    bool plain = !option_given(a, "--json");
    if (!option_given(a, "--dtype")) return wrong("convert: wants --dtype f32, f16, bf16, q8_0 or q4_0 (see twinkle convert --help)");
    if (!strcmp(from, to)) return failure("convert: SRC and DST are one folder, and its weights would be lost (%s)", from);
    if (!tw_convert_pretrained(tw, from, to, dtype)) return status_of(tw);
    if (option_given(a, "--data")) {
        worth before = evaluate_folder(a, from), after;
        tw_json *o = tw_json_object(tw);
        if (tw_failed(tw)) return status_of(tw);
        after = evaluate_folder(a, to);
        tw_json_set_string(o, "dtype", option_text(a, "--dtype", ""));
        report_change(a, dtype, "bytes", 1, (double)before.bytes, (double)after.bytes, o);
        report_change(a, dtype, "loss", 1, before.loss, after.loss, o);
        if (before.language) report_change(a, dtype, "perplexity", 1, exp(before.loss), exp(after.loss), o);
        report_change(a, dtype, "accuracy", 100, before.accuracy, after.accuracy, o);
        if (plain) tw_json_free(o); else print_json(tw, o);
    } else if (plain && (dtype == TW_Q8_0 || dtype == TW_Q4_0))
        printf("what %s costs was not measured: --data FILE (a text, or data for the head) prints the change\n", tw_dtype_name(dtype));
    return status_of(tw);
}

/* ---- bench ----------------------------------------------------------------------------------------------------- */

static const option bench_options[] = {
    { "--m", "N", WHOLE, 1, 1e7, "gemm: rows of A and C (default: 256)" },
    { "--n", "N", WHOLE, 1, 1e7, "gemm: columns of B and C (default: 768)" },
    { "--k", "N", WHOLE, 1, 1e7, "gemm: columns of A, rows of B (default: 768)" },
    { "--trans-b", NULL, FLAG, 0, 0, "gemm: B is a linear layer's weight, stored [N,K], and packed before the clock starts, as models that predict do once" },
    { "--unpacked", NULL, FLAG, 0, 0, "gemm: with --trans-b, B is used as it lies" },
    { "--by-lanes", NULL, FLAG, 0, 0, "gemm: with --unpacked, one or two rows are added up in another order" },
    { "--packed", NULL, FLAG, 0, 0, "gemm: without --trans-b, B is packed before the clock starts" },
    { "--batch", "N", WHOLE, 1, 1e5, "sequences at a time (default: 1)" },
    { "--heads", "N", WHOLE, 1, 1e5, "attention: heads (default: 12)" },
    { "--seq", "N", WHOLE, 1, 1e7, "tokens a sequence (default: 128)" },
    { "--head-dim", "N", WHOLE, 1, 1e5, "attention: numbers a head (default: 64)" },
    { "--causal", NULL, FLAG, 0, 0, "attention: no query sees later keys" },
    { "--backward", NULL, FLAG, 0, 0, "attention: forward and backward" },
    { "--prompt-tokens", "N", WHOLE, 1, 1e7, "generate: length of the prompt (default: 64)" },
    { "--new-tokens", "N", WHOLE, 2, 1e7, "generate: tokens to write (default: 32)" },
    { "--cache-bits", "N", WHOLE, 16, 32, "generate: keep keys and values in 16 or 32 bits" },
    { "--file", "F", TEXT, 0, 0, "tokenize: the text whose lines are tokenized, one after another" },
    { "--gradient-checkpointing", NULL, FLAG, 0, 0, "train: recompute blocks instead of keeping them" },
    { "--dtype", "NAME", DTYPE, 0, 0, "weights: f32, f16, bf16, q8_0, q4_0 (default: f32, or the file's)" }
};

enum { MOST_RUNS = 200 };

/* One run of what is measured; false after an error. */
typedef bool (*bench_work)(void *user);

typedef struct timing { double seconds; int runs; } timing;

static double seconds_now(tw_context *tw) { return (double)tw_now(tw) / 1e6; }

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median_of(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_size);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* The median of several runs after a warm-up.  What is short is repeated within a run until it takes two milliseconds. */
static timing measure(tw_context *tw, bench_work work, void *user) {
    double samples[MOST_RUNS], began, whole_time;
    timing t = { 0, 0 };
    int repeats = 1, i;
    if (!work(user)) return t;
    for (;;) {
        began = seconds_now(tw);
        for (i = 0; i < repeats; i++) if (!work(user)) return t;
        if (seconds_now(tw) - began > 0.002 || repeats >= 1 << 20) break;
        repeats *= 2;
    }
    whole_time = seconds_now(tw);
    do {
        began = seconds_now(tw);
        for (i = 0; i < repeats; i++) if (!work(user)) return t;
        samples[t.runs++] = (seconds_now(tw) - began) / repeats;
    } while (t.runs < MOST_RUNS && (t.runs < 3 || seconds_now(tw) - whole_time < 0.5));
    t.seconds = median_of(samples, t.runs);
    return t;
}

/* Kernels are measured as models run them: with the threads standing ready from call to call.  `cpu` is what `work` passes on. */
typedef struct team_measure { tw_context *tw; twb_cpu *cpu; bench_work work; void *user; timing t; } team_measure;

static void measure_in_team(void *user, const twb_cpu *cpu) {
    team_measure *m = (team_measure *)user;
    twb_cpu alone = *m->cpu;
    *m->cpu = *cpu;
    m->t = measure(m->tw, m->work, m->user);
    *m->cpu = alone;
}
static timing measure_kernel(tw_context *tw, twb_cpu *cpu, bench_work work, void *user) {
    team_measure m;
    m.tw = tw; m.cpu = cpu; m.work = work; m.user = user;
    m.t.seconds = 0; m.t.runs = 0;
    twb_with_team(cpu, measure_in_team, &m);
    return m.t;
}

/* The most memory this process ever held. */
static int64_t peak_bytes(void) {
    char line[256];
    long kilobytes = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) if (sscanf(line, "VmHWM: %ld kB", &kilobytes) == 1) break;
    if (f) fclose(f);
    return (int64_t)kilobytes * 1024;
}

/* The keys that every bench has; more are added behind them. */
static tw_json *bench_result(arguments *a, tw_dtype dtype, timing t) {
    tw_json *o = tw_json_object(a->tw);
    size_t i;
    const char *name = "f32";
    for (i = 0; i < COUNT(dtype_names); i++) if (dtype_names[i].dtype == dtype) { name = dtype_names[i].name; break; }
    tw_json_set_string(o, "name", a->operand[0]);
    tw_json_set_int(o, "threads", tw_threads(a->tw));
    tw_json_set_string(o, "dtype", name);
    tw_json_set_number(o, "seconds", t.seconds);
    tw_json_set_int(o, "runs", t.runs);
    tw_json_set_int(o, "peak_rss_bytes", peak_bytes());
    tw_json_set_string(o, "isa", tw_kernels(a->tw));
    return o;
}

/* Prints a result as JSON, or as a line a key; and frees it. */
static void print_result(arguments *a, tw_json *o) {
    int64_t i;
    if (tw_failed(a->tw) || option_given(a, "--json")) { print_json(a->tw, o); return; }
    for (i = 0; i < tw_json_count(o); i++) {
        const tw_json *value = tw_json_at(o, i);
        if (tw_json_type(value) == TW_JSON_STRING) printf("%-26s %s\n", tw_json_key(o, i), tw_json_string(value, ""));
        else printf("%-26s %.6g\n", tw_json_key(o, i), tw_json_number(value, 0));
    }
    tw_json_free(o);
}

static twb_cpu bench_cpu(const arguments *a) {
    twb_cpu cpu = twb_cpu_default();
    cpu.threads = tw_threads(a->tw);
    return cpu;
}

static float *random_numbers(tw_context *tw, const twb_cpu *cpu, int64_t count, uint64_t seed) {
    float *x = (float *)allocate(tw, (size_t)count, sizeof *x);
    if (x) twb_random_uniform(cpu, (ptrdiff_t)count, x, -1, 1, seed);
    return x;
}

typedef struct gemm_bench { twb_cpu cpu; twb_gemm_args args; void *scratch; } gemm_bench;

static bool gemm_once(void *user) {
    gemm_bench *b = (gemm_bench *)user;
    if (b->args.b_type >= TWB_Q8_0) twb_quant_gemm(&b->cpu, &b->args, b->scratch);
    else twb_gemm(&b->cpu, &b->args, b->scratch);
    return true;
}

static void bench_gemm(arguments *a, tw_dtype dtype) {
    tw_context *tw = a->tw;
    gemm_bench b;
    twb_type type = dtype == TW_F16 ? TWB_F16 : dtype == TW_BF16 ? TWB_BF16 : dtype == TW_Q8_0 ? TWB_Q8_0 : dtype == TW_Q4_0 ? TWB_Q4_0 : TWB_F32;
    const bool quantized = type >= TWB_Q8_0;        /* these are always packed */
    int64_t m = option_whole(a, "--m", 256), n = option_whole(a, "--n", 768), k = option_whole(a, "--k", 768);
    bool trans = option_given(a, "--trans-b");
    float *left, *right, *result;
    void *narrow, *packed = NULL;
    timing t = { 0, 0 };
    memset(&b, 0, sizeof b);
    b.cpu = bench_cpu(a);
    left = random_numbers(tw, &b.cpu, m * k, 1);
    right = random_numbers(tw, &b.cpu, k * n, 2);
    result = random_numbers(tw, &b.cpu, m * n, 3);
    narrow = allocate(tw, (size_t)(k * n), 4);
    b.args.trans_b = trans;
    b.args.m = (ptrdiff_t)m; b.args.n = (ptrdiff_t)n; b.args.k = (ptrdiff_t)k;
    b.args.alpha = 1;
    b.args.a = left; b.args.lda = (ptrdiff_t)k;
    b.args.b = narrow; b.args.ldb = (ptrdiff_t)(trans ? k : n); b.args.b_type = type;
    b.args.c = result; b.args.ldc = (ptrdiff_t)n;
    b.args.few_by_lanes = option_given(a, "--by-lanes");
    if (quantized) {
        packed = allocate(tw, twb_quant_packed_size(type, b.args.n, b.args.k), 1);
        if (packed && !tw_failed(tw)) twb_quantize_packed(&b.cpu, type, b.args.n, b.args.k, TWB_F32, trans, right, b.args.ldb, packed);
        b.args.b = packed;
        b.args.b_packed = true;
    } else if (!tw_failed(tw)) twb_convert(&b.cpu, (ptrdiff_t)(k * n), right, TWB_F32, narrow, type);
    if (!quantized && (trans ? !option_given(a, "--unpacked") : option_given(a, "--packed")) && (packed = allocate(tw, twb_packed_size(&b.cpu, type, b.args.n, b.args.k), 1)) != NULL && !tw_failed(tw)) {
        twb_pack_weights(&b.cpu, type, trans, b.args.n, b.args.k, narrow, b.args.ldb, packed);
        b.args.b = packed;
        b.args.b_packed = true;
    }
    b.scratch = allocate(tw, quantized ? twb_quant_gemm_scratch(&b.cpu, &b.args) : twb_gemm_scratch(&b.cpu, &b.args), 1);
    if (!tw_failed(tw)) {
        tw_json *o;
        t = measure_kernel(tw, &b.cpu, gemm_once, &b);
        o = bench_result(a, dtype, t);
        tw_json_set_int(o, "m", m);
        tw_json_set_int(o, "n", n);
        tw_json_set_int(o, "k", k);
        tw_json_set_bool(o, "packed", b.args.b_packed);
        tw_json_set_number(o, "gflops", 2e-9 * (double)m * (double)n * (double)k / t.seconds);
        print_result(a, o);
    }
    free(b.scratch); free(packed); free(narrow); free(result); free(right); free(left);
}

typedef struct attention_bench { twb_cpu cpu; twb_attention_args args; twb_attention_grads grads; void *scratch; bool backward; } attention_bench;

static bool attention_once(void *user) {
    attention_bench *b = (attention_bench *)user;
    twb_attention(&b->cpu, &b->args, b->scratch);
    if (b->backward) twb_attention_backward(&b->cpu, &b->args, &b->grads, b->scratch);
    return true;
}

static void bench_attention(arguments *a, tw_dtype dtype) {
    tw_context *tw = a->tw;
    attention_bench b;
    int64_t batch = option_whole(a, "--batch", 1), heads = option_whole(a, "--heads", 12), seq = option_whole(a, "--seq", 128), dim = option_whole(a, "--head-dim", 64);
    int64_t size = batch * heads * seq * dim;
    float *buffer[8];                                   /* q, k, v, out, their gradients: [batch, heads, seq, dim] */
    ptrdiff_t row = (ptrdiff_t)dim, head = (ptrdiff_t)(seq * dim), sequence = (ptrdiff_t)(heads * seq * dim);
    size_t room, i;
    memset(&b, 0, sizeof b);
    b.cpu = bench_cpu(a);
    b.backward = option_given(a, "--backward");
    for (i = 0; i < 8; i++) buffer[i] = random_numbers(tw, &b.cpu, i < 4 || b.backward ? size : 1, i + 1);
    b.args.batch = (ptrdiff_t)batch; b.args.heads = b.args.kv_heads = (ptrdiff_t)heads; b.args.tq = b.args.tk = (ptrdiff_t)seq; b.args.head_dim = row;
    b.args.q = buffer[0]; b.args.k = buffer[1]; b.args.v = buffer[2]; b.args.out = buffer[3];
    b.args.q_row = b.args.k_row = b.args.v_row = b.args.out_row = row;
    b.args.q_head = b.args.k_head = b.args.v_head = b.args.out_head = head;
    b.args.q_batch = b.args.k_batch = b.args.v_batch = b.args.out_batch = sequence;
    b.args.scale = (float)(1 / sqrt((double)dim));
    b.args.causal = option_given(a, "--causal");
    b.args.lse = (float *)allocate(tw, (size_t)(batch * heads * seq), sizeof(float));
    b.grads.d_out = buffer[4]; b.grads.dq = buffer[5]; b.grads.dk = buffer[6]; b.grads.dv = buffer[7];
    b.grads.d_out_row = b.grads.dq_row = b.grads.dk_row = b.grads.dv_row = row;
    b.grads.d_out_head = b.grads.dq_head = b.grads.dk_head = b.grads.dv_head = head;
    b.grads.d_out_batch = b.grads.dq_batch = b.grads.dk_batch = b.grads.dv_batch = sequence;
    room = twb_attention_scratch(&b.cpu, &b.args);
    if (b.backward && twb_attention_backward_scratch(&b.cpu, &b.args, &b.grads) > room) room = twb_attention_backward_scratch(&b.cpu, &b.args, &b.grads);
    b.scratch = allocate(tw, room, 1);
    if (!tw_failed(tw)) {
        timing t = measure_kernel(tw, &b.cpu, attention_once, &b);
        tw_json *o = bench_result(a, dtype, t);
        /* two products of 2 T^2 D a head forward, five more backward; causal needs half of the square */
        tw_json_set_number(o, "gflops", 1e-9 * (b.backward ? 14 : 4) * (b.args.causal ? 0.5 : 1) * (double)size * (double)seq / t.seconds);
        print_result(a, o);
    }
    free(b.scratch);
    free(b.args.lse);
    for (i = 0; i < 8; i++) free(buffer[i]);
}

/* Sizes by name, with random weights: nothing to download.  Dropout is off, so that a step is the same work as anybody else's. */
static const struct preset { const char *name, *config, *train_task; } presets[] = {
    { "gpt2", "{\"model_type\":\"gpt2\",\"n_layer\":12,\"n_embd\":768,\"n_head\":12,\"n_positions\":1024,\"vocab_size\":50257,"
              "\"resid_pdrop\":0,\"embd_pdrop\":0,\"attn_pdrop\":0}", NULL },
    { "bert-base", "{\"model_type\":\"bert\",\"num_hidden_layers\":12,\"hidden_size\":768,\"num_attention_heads\":12,\"intermediate_size\":3072,"
                   "\"vocab_size\":30522,\"hidden_dropout_prob\":0,\"attention_probs_dropout_prob\":0}", "masked-lm" },
    { "t5-base", "{\"model_type\":\"t5\",\"d_model\":768,\"d_kv\":64,\"d_ff\":3072,\"num_layers\":12,\"num_heads\":12,\"vocab_size\":32128,"
                 "\"decoder_start_token_id\":0,\"dropout_rate\":0}", NULL },
    { "glm-large", "{\"model_type\":\"glm\",\"architectures\":[\"GLMModel\"],\"num_layers\":24,\"hidden_size\":1024,\"num_attention_heads\":16,"
                   "\"vocab_size\":50048,\"max_sequence_length\":1024,\"max_memory_length\":0,\"block_position_encoding\":true,\"output_predict\":true,"
                   "\"embedding_dropout_prob\":0,\"attention_dropout_prob\":0,\"output_dropout_prob\":0}", NULL }
};

static tw_model *bench_model(arguments *a, tw_dtype dtype, bool to_f32) {
    size_t i;
    if (a->operands < 2) { fail(a->tw, TW_E_ARGUMENT, "bench %s: wants a MODEL: a folder, or gpt2, bert-base, t5-base, glm-large for that size with random weights (command line)", a->operand[0]); return NULL; }
    for (i = 0; i < COUNT(presets); i++) {
        tw_model *model;
        if (strcmp(presets[i].name, a->operand[1]) != 0) continue;
        model = tw_from_config_with(a->tw, presets[i].config, !strcmp(a->operand[0], "train") ? presets[i].train_task : NULL);
        if (model && dtype != TW_F32) tw_to(model, dtype);
        return model;
    }
    return open_model_as(a, a->operand[1], dtype, to_f32, true);
}

typedef struct model_bench {
    arguments *a;
    tw_model  *model;
    int32_t   *ids;
    int64_t    batch, seq, new_tokens;
    double     first[MOST_RUNS], rest[MOST_RUNS];       /* of generate: seconds to the first token, and for the others */
    int        runs;
} model_bench;

/* Ids from all over the vocabulary. */
static int32_t *random_ids(arguments *a, const tw_model *model, int64_t count) {
    int64_t vocabulary = tw_json_int(tw_json_get(tw_config_of(model), "vocab_size"), 50257), i;
    int32_t *ids = (int32_t *)allocate(a->tw, (size_t)count, sizeof *ids);
    for (i = 0; ids && i < count; i++) ids[i] = (int32_t)(twb_random_bits(7, (uint64_t)i) % (uint64_t)(vocabulary > 0 ? vocabulary : 1));
    return ids;
}

static bool bench_batch(model_bench *b, tw_batch *batch, bool labels) {
    tw_tensor *ids = tw_ids(b->a->tw, tw_shape2(b->batch, b->seq), b->ids);
    memset(batch, 0, sizeof *batch);
    return ids && tw_batch_set(batch, "input_ids", ids) &&
           tw_batch_set(batch, labels ? "labels" : "decoder_input_ids", ids);   /* the latter is read by an encoder-decoder only */
}

static bool forward_once(void *user) {
    model_bench *b = (model_bench *)user;
    tw_batch batch;
    tw_outputs out;
    bool ok;
    memset(&out, 0, sizeof out);
    ok = bench_batch(b, &batch, false) && tw_model_forward(b->model, &batch, NULL, &out);
    tw_end_step(b->a->tw);
    return ok;
}

static bool train_once(void *user) {
    model_bench *b = (model_bench *)user;
    tw_batch batch;
    bool ok = bench_batch(b, &batch, true);
    if (ok) tw_forward_backward(b->model, &batch, NULL);
    if (ok) tw_clip_grad_and_step(b->model, 1, 2, NULL);
    tw_end_step(b->a->tw);
    return ok && !tw_failed(b->a->tw);
}

static bool generate_once(void *user) {
    model_bench *b = (model_bench *)user;
    tw_context *tw = b->a->tw;
    double began = seconds_now(tw), first;
    const int32_t *ids;
    tw_generation *g;
    tw_generate_desc how;
    memset(&how, 0, sizeof how);
    how.max_new_tokens = b->new_tokens;
    how.cache_bits = (int)option_whole(b->a, "--cache-bits", 0);
    how.eos_count = -1;
    g = tw_generation_begin_ids(b->model, b->ids, b->seq, &how);
    while (g && tw_generation_ids(g, &ids) < 1 && tw_generation_step(g, 0) == TW_MORE) continue;
    first = seconds_now(tw);
    if (g) tw_generation_step(g, -1);
    if (g && b->runs < MOST_RUNS) {
        b->first[b->runs] = first - began;
        b->rest[b->runs++] = seconds_now(tw) - first;
    }
    tw_generation_end(g);
    return !tw_failed(tw);
}

static void report_tokens(arguments *a, const model_bench *b, tw_dtype dtype, timing t, bool sequences) {
    tw_json *o = bench_result(a, dtype, t);
    tw_json_set_number(o, "tokens_per_second", (double)(b->batch * b->seq) / t.seconds);
    if (sequences) tw_json_set_number(o, "sequences_per_second", (double)b->batch / t.seconds);
    print_result(a, o);
}

static void report_generation(arguments *a, model_bench *b, tw_dtype dtype, timing t, double load_seconds) {
    tw_json *o;
    double first, rest;
    b->first[0] = b->first[b->runs - 1];                /* the first run was the warm-up */
    b->rest[0] = b->rest[--b->runs];
    first = median_of(b->first, b->runs);
    rest = median_of(b->rest, b->runs);
    o = bench_result(a, dtype, t);
    tw_json_set_number(o, "prompt_tokens_per_second", (double)b->seq / first);
    tw_json_set_number(o, "tokens_per_second", (double)(b->new_tokens - 1) / rest);
    tw_json_set_number(o, "first_token_seconds", first);
    tw_json_set_number(o, "load_seconds", load_seconds);
    print_result(a, o);
}

static void bench_with_model(arguments *a, tw_dtype dtype, const char *what) {
    tw_context *tw = a->tw;
    double began = seconds_now(tw), load_seconds;
    bool training = !strcmp(what, "train"), generating = !strcmp(what, "generate");
    model_bench b;
    int64_t i;
    timing t = { 0, 0 };
    memset(&b, 0, sizeof b);
    b.a = a;
    b.model = bench_model(a, training || !option_given(a, "--dtype") ? TW_F32 : dtype, !training && option_given(a, "--dtype") && dtype == TW_F32);
    for (i = 0; b.model && !option_given(a, "--dtype") && i < tw_parameter_count(b.model); i++)     /* as it is in the file */
        if (tw_rank(tw_parameter_at(b.model, i)) >= 2) { dtype = tw_dtype_of(tw_parameter_at(b.model, i)); break; }
    load_seconds = seconds_now(tw) - began;
    if (!training) tw_pack_weights(b.model);                   /* as a program does that goes on predicting */
    b.batch = generating ? 1 : option_whole(a, "--batch", 1);
    b.seq = generating ? option_whole(a, "--prompt-tokens", 64) : option_whole(a, "--seq", 128);
    b.new_tokens = option_whole(a, "--new-tokens", 32);
    b.ids = b.model ? random_ids(a, b.model, b.batch * b.seq) : NULL;
    if (b.model && training) {
        tw_gradient_checkpointing(b.model, option_given(a, "--gradient-checkpointing"));
        tw_set_optimizer(b.model, "adamw", "{\"lr\":1e-4}");
        tw_bf16(tw, dtype == TW_BF16);
    }
    tw_training(tw, training);
    tw_no_grad(tw, !training);
    if (!tw_failed(tw)) t = measure(tw, training ? train_once : generating ? generate_once : forward_once, &b);
    if (!tw_failed(tw) && generating) report_generation(a, &b, dtype, t, load_seconds);
    else if (!tw_failed(tw)) report_tokens(a, &b, dtype, t, !training);
    free(b.ids);
}

/* Lines of a file, one after another: a tokenizer's throughput on what it usually gets. */
typedef struct tokenize_bench { tw_tokenizer *tokenizer; const char *text; size_t length; int64_t tokens; } tokenize_bench;

static bool tokenize_once(void *user) {
    tokenize_bench *b = (tokenize_bench *)user;
    const char *line = b->text, *end = b->text + b->length;
    b->tokens = 0;
    while (line < end) {
        const char *stop = (const char *)memchr(line, '\n', (size_t)(end - line));
        int64_t count;
        tw_encoding e;
        if (!stop) stop = end;
        count = tw_tokenize(b->tokenizer, line, (size_t)(stop - line), NULL, &e);
        if (count < 0) return false;
        b->tokens += count;
        line = stop + 1;
    }
    return true;
}

static void bench_tokenize(arguments *a) {
    tw_context *tw = a->tw;
    tokenize_bench b;
    const char *path = option_text(a, "--file", NULL);
    char *text;
    timing t = { 0, 0 };
    tw_json *o;
    if (a->operands < 2 || !path) { fail(tw, TW_E_ARGUMENT, "bench tokenize: wants a MODEL folder and --file F (command line)"); return; }
    memset(&b, 0, sizeof b);
    b.tokenizer = tw_load_tokenizer(tw, a->operand[1]);
    b.text = text = read_file(tw, path, &b.length);
    if (b.tokenizer && text) t = measure(tw, tokenize_once, &b);
    if (!tw_failed(tw)) {
        o = bench_result(a, TW_F32, t);
        tw_json_set_number(o, "bytes_per_second", (double)b.length / t.seconds);
        tw_json_set_number(o, "tokens_per_second", (double)b.tokens / t.seconds);
        print_result(a, o);
    }
    free(text);
}

static int run_bench(arguments *a) {
    const char *what = a->operand[0];
    tw_dtype dtype = option_dtype(a, TW_F32);
    if (!strcmp(what, "gemm")) bench_gemm(a, dtype);
    else if (!strcmp(what, "attention")) bench_attention(a, dtype);
    else if (!strcmp(what, "tokenize")) bench_tokenize(a);
    else if (!strcmp(what, "forward") || !strcmp(what, "generate") || !strcmp(what, "train")) bench_with_model(a, dtype, what);
    else return wrong("bench: there is no bench named \"%.40s\" (gemm, attention, forward, generate, train, tokenize)", what);
    return status_of(a->tw);
}

/* ---- pull: SHA-256 ------------------------------------------------------------------------------------------------- */

/* FIPS 180-4.  A hub names large files by this hash of their bytes. */
typedef struct sha256 { uint32_t state[8]; unsigned char block[64]; uint64_t length; } sha256;

static uint32_t rotated(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

static void sha256_begin(sha256 *h) {
    static const uint32_t start[8] = {                          /* fractional parts of the first primes' square roots */
        0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19
    };
    memcpy(h->state, start, sizeof start);
    h->length = 0;
}

static void sha256_block(sha256 *h, const unsigned char *b) {
    static const uint32_t k[64] = {                             /* and of their cube roots */
        0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
        0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
        0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
        0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
        0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
        0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
        0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
        0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2
    };
    uint32_t w[64], s[8];
    int i;
    for (i = 0; i < 16; i++) w[i] = (uint32_t)b[4 * i] << 24 | (uint32_t)b[4 * i + 1] << 16 | (uint32_t)b[4 * i + 2] << 8 | (uint32_t)b[4 * i + 3];
    for (; i < 64; i++) {
        uint32_t x = w[i - 15], y = w[i - 2];
        w[i] = w[i - 16] + (rotated(x, 7) ^ rotated(x, 18) ^ (x >> 3)) + w[i - 7] + (rotated(y, 17) ^ rotated(y, 19) ^ (y >> 10));
    }
    memcpy(s, h->state, sizeof s);
    for (i = 0; i < 64; i++) {
        uint32_t e = s[4], a = s[0];
        uint32_t one = s[7] + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
        uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += one;
        s[0] = one + two;
    }
    for (i = 0; i < 8; i++) h->state[i] += s[i];
}

static void sha256_add(sha256 *h, const unsigned char *bytes, size_t n) {
    for (; n > 0; bytes++, n--) {
        size_t at = (size_t)(h->length++ % 64);
        if (at == 0 && n >= 64) {                               /* whole blocks where they stand */
            sha256_block(h, bytes);
            h->length += 63;
            bytes += 63;
            n -= 63;
            continue;
        }
        h->block[at] = *bytes;
        if (at == 63) sha256_block(h, h->block);
    }
}

/* Ends with a 1 bit, zeros, and the length in bits; writes the hash as 64 digits. */
static void sha256_end(sha256 *h, char out[65]) {
    uint64_t bits = 8 * h->length;
    unsigned char tail[72];
    size_t pad = (size_t)(h->length % 64 < 56 ? 56 - h->length % 64 : 120 - h->length % 64);
    int i;
    memset(tail, 0, sizeof tail);
    tail[0] = 0x80;
    for (i = 0; i < 8; i++) tail[pad + (size_t)i] = (unsigned char)(bits >> (56 - 8 * i));
    sha256_add(h, tail, pad + 8);
    for (i = 0; i < 8; i++) snprintf(out + 8 * i, 9, "%08lx", (unsigned long)h->state[i]);
}

/* ---- pull: the system's curl ------------------------------------------------------------------------------------------ */

static const option pull_options[] = {
    { "--to", "DIR", TEXT, 0, 0, "the folder to bring it to" },
    { "--endpoint", "URL", TEXT, 0, 0, "the hub to bring it from (default: HF_ENDPOINT, else https://huggingface.co)" },
    { "--revision", "NAME", TEXT, 0, 0, "a branch, tag or commit (default: main)" }
};

/* A file of the model on the hub.  What the hub does not tell is -1 or "". */
typedef struct hub_file { const char *name; int64_t size; char sha256[65]; } hub_file;

typedef struct pull {
    arguments  *a;
    tw_context *tw;
    const char *name, *revision, *folder;
    char       *endpoint, *headers, *errors;    /* the hub, and where curl writes the answers' headers and what went wrong */
    tw_json    *listing;                        /* the hub's list of files: siblings, or the tree */
    tw_json    *report;                         /* for --json: the files */
    int64_t     fetched;                        /* bytes that came over the line */
} pull;

enum { MOST_PULL_FILES = 4096, CURL_WRITE_ERROR = 23, CURL_HTTP_ERROR = 22, CURL_NO_RANGES = 33 };

static int64_t size_of_file(const char *path) {
#ifdef _WIN32
    struct _stat64 s;
    return _stat64(path, &s) == 0 && (s.st_mode & _S_IFREG) ? (int64_t)s.st_size : -1;
#else
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode) ? (int64_t)s.st_size : -1;
#endif
}

/* Runs curl without a shell, so that no name can be taken for a command.  A token goes through a pipe: whoever lists
   the machine's processes does not see it.  Returns curl's exit status, or -1 with an error. */
static int run_curl(pull *p, const char *const *args) {
    const char *token = getenv("HF_TOKEN");
    int status = -1;
#ifdef _WIN32
    const char *quoted[32];
    char *made[32];
    int count = 0;
    intptr_t code;
    if (token && *token) { fail(p->tw, TW_E_UNSUPPORTED, "pull: HF_TOKEN is not used on this system (%s)", p->name); return -1; }
    for (; args[count] && count < 31; count++) quoted[count] = made[count] = text_of(p->tw, strpbrk(args[count], " \t") ? "\"%s\"" : "%s", args[count]);
    quoted[count] = NULL;
    fflush(NULL);
    code = tw_failed(p->tw) ? -1 : _spawnvp(_P_WAIT, "curl", quoted);
    if (code < 0 && !tw_failed(p->tw)) fail(p->tw, TW_E_MISSING, "pull: the program curl cannot be started, %s (it does the downloading)", strerror(errno));
    while (count > 0) free(made[--count]);
    if (code >= 0) status = (int)code;
#else
    static char stdout_path[] = "/dev/null";
    char *const *list = (char *const *)(uintptr_t)args;
    posix_spawn_file_actions_t actions;
    pid_t child = 0;
    int ends[2], error = 0, ended = 0;
    if (pipe(ends) != 0) { fail(p->tw, TW_E_FILE, "pull: no pipe to curl, %s (%s)", strerror(errno), p->name); return -1; }
    if (token && *token) {                                      /* fits into any pipe: it is checked in run_pull */
        char line[600];
        int n = snprintf(line, sizeof line, "header = \"Authorization: Bearer %.512s\"\n", token);
        if (write(ends[1], line, (size_t)n) != n) error = EIO;
    }
    close(ends[1]);
    if (!error) error = posix_spawn_file_actions_init(&actions);
    if (!error) {
        posix_spawn_file_actions_adddup2(&actions, ends[0], 0);
        posix_spawn_file_actions_addopen(&actions, 1, stdout_path, O_WRONLY, 0);
        error = posix_spawnp(&child, "curl", &actions, NULL, list, environ);
        posix_spawn_file_actions_destroy(&actions);
    }
    close(ends[0]);
    if (error) { fail(p->tw, TW_E_MISSING, "pull: the program curl cannot be started, %s (it does the downloading)", strerror(error)); return -1; }
    while (waitpid(child, &ended, 0) < 0 && errno == EINTR) continue;
    status = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128;
    if (status == 127) { fail(p->tw, TW_E_MISSING, "pull: the program curl is not there (it does the downloading)"); status = -1; }
#endif
    return status;
}

/* The last answer's status, and of all answers (a redirect's too) what the hub says of the file. */
static int read_headers(pull *p, hub_file *file) {
    size_t length = 0;
    char *text = file_exists(p->headers) ? read_file(p->tw, p->headers, &length) : NULL, *line = text, *next;
    int status = 0;
    for (; line && *line; line = next) {
        char *value = strchr(line, ':');
        size_t n = strcspn(line, "\r\n"), i;
        next = line + n + strspn(line + n, "\r\n");
        line[n] = 0;
        if (!strncmp(line, "HTTP/", 5)) { status = strchr(line, ' ') ? atoi(strchr(line, ' ')) : 0; continue; }
        if (!value || !file) continue;
        for (i = 0; line + i < value; i++) line[i] = (char)tolower((unsigned char)line[i]);
        *value++ = 0;
        value += strspn(value, " \t\"");
        if (!strcmp(line, "x-linked-size") && file->size < 0) file->size = (int64_t)strtoll(value, NULL, 10);
        if (!strcmp(line, "x-linked-etag") && !file->sha256[0] && strspn(value, "0123456789abcdef") == 64) { memcpy(file->sha256, value, 64); file->sha256[64] = 0; }
    }
    free(text);
    return status;
}

/* What curl said, without its own name in front. */
static void curl_failed(pull *p, int code, int status, const char *url) {
    size_t length = 0;
    char *text = file_exists(p->errors) ? read_file(p->tw, p->errors, &length) : NULL, *said = text ? text : NULL;
    if (said && !strncmp(said, "curl: ", 6)) said += 6;
    if (said && *said == '(') said = strchr(said, ')') ? strchr(said, ')') + 1 : said;
    if (said) { said += strspn(said, " "); said[strcspn(said, "\r\n")] = 0; }
    if (code == CURL_HTTP_ERROR && status == 401)
        fail(p->tw, TW_E_MISSING, "%s: the hub lets nobody in (401): there is no such model, or it wants a token in HF_TOKEN (%s)", p->name, url);
    else if (code == CURL_HTTP_ERROR && status == 403)
        fail(p->tw, TW_E_MISSING, "%s: the hub refuses it (403): its terms may have to be accepted there first, or HF_TOKEN does not reach it (%s)", p->name, url);
    else if (code == CURL_HTTP_ERROR && status == 404)
        fail(p->tw, TW_E_MISSING, "%s: the hub has no such model, revision or file (404) (%s)", p->name, url);
    else if (code == CURL_HTTP_ERROR && status) fail(p->tw, TW_E_FILE, "%s: the hub answers with status %d (%s)", p->name, status, url);
    else fail(p->tw, TW_E_FILE, "%s: curl: %s (%s, curl's exit status %d)", p->name, said && *said ? said : "it failed", url, code);
    free(text);
}

/* One try.  `part` is gone on with where something of it is there.  curl's exit status, -1 with an error. */
static int try_fetch(pull *p, const char *url, const char *part, hub_file *file, int *status) {
    const char *args[32];
    int n = 0, code;
    bool secure = !strncmp(p->endpoint, "https:", 6), watched = false;
#ifndef _WIN32
    watched = file && isatty(2);
#endif
    args[n++] = "curl";
    args[n++] = watched ? "--progress-bar" : "--silent";
    args[n++] = "--show-error";
    if (!watched) { args[n++] = "--stderr"; args[n++] = p->errors; }
    args[n++] = "--fail"; args[n++] = "--location"; args[n++] = "--globoff";
    args[n++] = "--max-redirs"; args[n++] = "10";
    args[n++] = "--proto"; args[n++] = "=http,https";
    args[n++] = "--proto-redir"; args[n++] = secure ? "=https" : "=http,https";
    args[n++] = "--connect-timeout"; args[n++] = "30";
    args[n++] = "--speed-limit"; args[n++] = "1";                /* less than a byte a second, for a minute: broken */
    args[n++] = "--speed-time"; args[n++] = "60";
    args[n++] = "--dump-header"; args[n++] = p->headers;
    args[n++] = "--output"; args[n++] = part;
    if (size_of_file(part) > 0) { args[n++] = "--continue-at"; args[n++] = "-"; }
#ifndef _WIN32
    if (getenv("HF_TOKEN")) { args[n++] = "--config"; args[n++] = "-"; }
#endif
    args[n++] = "--url"; args[n++] = url;
    args[n] = NULL;
    remove(p->headers);
    remove(p->errors);
    code = run_curl(p, args);
    *status = code < 0 ? 0 : read_headers(p, file);
    return code;
}

/* Fetches to the end: as long as a try brings something, and twice more.  False with an error; without one where what
   is optional is not there. */
static bool fetch(pull *p, const char *url, const char *part, hub_file *file, bool optional) {
    int idle = 0, status, code;
    while (idle < 3 && !tw_failed(p->tw)) {
        int64_t before = size_of_file(part), after;
        code = try_fetch(p, url, part, file, &status);
        if (code < 0) return false;
        after = size_of_file(part);
        if (before < 0) before = 0;
        if (after > before && file) p->fetched += after - before;
        if (code == 0) return true;
        if (optional && code == CURL_HTTP_ERROR && (status == 400 || status == 404 || status == 405)) return false;
        if (before > 0 && (code == CURL_NO_RANGES || (code == CURL_HTTP_ERROR && status == 416))) {   /* what is there is no use */
            remove(part);
            idle++;
            continue;
        }
        idle = after > before ? 0 : idle + 1;
        /* broken off, nothing sent, an error on the way, a hub that is busy: worth another try */
        if (code != 18 && code != 52 && code != 55 && code != 56 && code != 92 && !(code == CURL_HTTP_ERROR && (status >= 500 || status == 429))) idle = 3;
        if (idle == 3) curl_failed(p, code, status, url);
    }
    if (!tw_failed(p->tw)) fail(p->tw, TW_E_FILE, "%s: the hub does not send the rest of it (%s)", p->name, url);
    return false;
}

/* ---- pull: which files ---------------------------------------------------------------------------------------------------- */

/* Does a name stay inside the folder?  plain: and in no folder below it. */
static bool stays_inside(const char *name, bool plain) {
    const char *s = name;
    if (!*s || *s == '/') return false;
    for (;;) {
        size_t n = strcspn(s, "/");
        if (n == 0 || (n == 1 && *s == '.') || (n == 2 && s[0] == '.' && s[1] == '.')) return false;
        if (!s[n]) break;
        if (plain) return false;
        s += n + 1;
    }
    for (s = name; *s; s++) if (*s == '\\' || *s == ':' || (unsigned char)*s < 0x20 || *s == 0x7F) return false;
    return true;
}

/* A model's name: owner/name or name, of letters, digits, '-', '_' and '.'. */
static bool is_model_name(const char *name) {
    const char *slash = strchr(name, '/');
    if (!stays_inside(name, false) || (slash && strchr(slash + 1, '/')) || *name == '-' || strlen(name) > 200) return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") == strlen(name);
}

/* Anything as a part of a URL: %41 for A where it is no letter, digit, '-', '_' or '.'; to be freed. */
static char *url_part(tw_context *tw, const char *text) {
    char *out = (char *)allocate(tw, strlen(text) + 1, 3), *o = out;
    for (; out && *text; text++) {
        if (isalnum((unsigned char)*text) || strchr("-_.", *text)) *o++ = *text;
        else o += sprintf(o, "%%%02X", (unsigned char)*text);
    }
    if (out) *o = 0;
    return out;
}

static const char *listed_name(const tw_json *entry) { return tw_json_string(tw_json_get(entry, "rfilename"), tw_json_string(tw_json_get(entry, "path"), "")); }

/* Finds a file in the hub's list, with its size and hash where they are told. */
static bool find_listed(const pull *p, const char *name, hub_file *file) {
    int64_t i;
    memset(file, 0, sizeof *file);
    file->size = -1;
    for (i = 0; i < tw_json_count(p->listing); i++) {
        const tw_json *entry = tw_json_at(p->listing, i), *large = tw_json_get(entry, "lfs");
        const char *hash = tw_json_string(tw_json_get(large, "sha256"), tw_json_string(tw_json_get(large, "oid"), ""));
        if (strcmp(listed_name(entry), name) != 0 || !strcmp(tw_json_string(tw_json_get(entry, "type"), ""), "directory")) continue;
        file->name = name;
        file->size = tw_json_int(tw_json_get(large, "size"), tw_json_int(tw_json_get(entry, "size"), -1));
        if (!strncmp(hash, "sha256:", 7)) hash += 7;
        if (strlen(hash) == 64) memcpy(file->sha256, hash, 65);
        return true;
    }
    return false;
}

/* Fetches a JSON document of the hub's API.  NULL with an error; optional: without one where the hub has no such page. */
static tw_json *fetch_json(pull *p, const char *url, bool optional) {
    char *path = url ? path_in(p->tw, p->folder, ".pull-listing.part") : NULL;
    tw_json *json = NULL;
    if (!path) return NULL;
    remove(path);
    if (fetch(p, url, path, NULL, optional)) json = tw_json_load(p->tw, path);
    remove(path);
    free(path);
    return json;
}

/* The list of the model's files.  /api/models/NAME has them, with sizes and hashes for ?blobs=true; of a hub that does not
   know that, /tree/REVISION is asked for them. */
static bool fetch_listing(pull *p) {
    char *revision = url_part(p->tw, p->revision), *page = NULL, *with = NULL, *tree_page = NULL;
    tw_json *model = NULL, *tree = NULL;
    const tw_json *siblings;
    int64_t i;
    bool sized = true;
    if (revision) {
        bool main_one = !option_given(p->a, "--revision");
        page = text_of(p->tw, "%s/api/models/%s%s%s", p->endpoint, p->name, main_one ? "" : "/revision/", main_one ? "" : revision);
        with = page ? text_of(p->tw, "%s?blobs=true", page) : NULL;
        tree_page = text_of(p->tw, "%s/api/models/%s/tree/%s", p->endpoint, p->name, revision);
    }
    model = fetch_json(p, with, true);
    if (!model && !tw_failed(p->tw)) model = fetch_json(p, page, true);
    siblings = tw_json_get(model, "siblings");
    if (model && tw_json_type(siblings) != TW_JSON_ARRAY) fail(p->tw, TW_E_FORMAT, "%s: the hub's answer has no list of files (%s)", p->name, page);
    if (!tw_failed(p->tw)) p->listing = tw_json_array(p->tw);
    for (i = 0; i < tw_json_count(siblings) && !tw_failed(p->tw); i++) {
        if (tw_json_int(tw_json_get(tw_json_at(siblings, i), "size"), -1) < 0) sized = false;
        tw_json_push_copy(p->listing, tw_json_at(siblings, i));
    }
    if (!tw_failed(p->tw) && (!model || !sized)) tree = fetch_json(p, tree_page, model != NULL);
    if (tw_json_type(tree) == TW_JSON_ARRAY && tw_json_count(tree) > 0) { tw_json_free(p->listing); p->listing = tree; tree = NULL; }
    for (i = 0; !tw_failed(p->tw) && i < tw_json_count(p->listing); i++)
        if (!stays_inside(listed_name(tw_json_at(p->listing, i)), false))
            fail(p->tw, TW_E_FORMAT, "%s: the hub lists \"%.200s\", a name that leaves the folder", p->name, listed_name(tw_json_at(p->listing, i)));
    free(revision);
    free(page);
    free(with);
    free(tree_page);
    tw_json_free(model);
    tw_json_free(tree);
    return !tw_failed(p->tw);
}

/* ---- pull: bringing them ---------------------------------------------------------------------------------------------------- */

static bool hash_of_file(pull *p, const char *path, char out[65]) {
    unsigned char *buffer = (unsigned char *)allocate(p->tw, 1 << 16, 1);
    FILE *f = fopen(path, "rb");
    sha256 h;
    size_t n;
    bool whole;
    sha256_begin(&h);
    while (f && buffer && (n = fread(buffer, 1, 1 << 16, f)) > 0) sha256_add(&h, buffer, n);
    whole = f && buffer && !ferror(f);
    if (f) fclose(f);
    free(buffer);
    sha256_end(&h, out);
    return whole;
}

/* Why a file is not the one on the hub; "" when it is, as far as the hub tells. */
static const char *what_is_wrong(pull *p, const char *path, const hub_file *file) {
    char hash[65];
    if (file->size >= 0 && size_of_file(path) != file->size) return "its size is not what the hub says";
    if (file->sha256[0] && (!hash_of_file(p, path, hash) || strcmp(hash, file->sha256) != 0)) return "its SHA-256 is not what the hub says";
    return "";
}

static void report_file(pull *p, const hub_file *file, const char *path, bool fetched) {
    tw_json *entry;
    if (!option_given(p->a, "--json")) {
        printf("%-32s %12lld bytes%s\n", file->name, (long long)size_of_file(path), fetched ? "" : ", was there");
        fflush(stdout);
        return;
    }
    entry = tw_json_push_object(p->report);
    tw_json_set_string(entry, "name", file->name);
    tw_json_set_int(entry, "bytes", size_of_file(path));
    tw_json_set_bool(entry, "fetched", fetched);
}

static bool replace_file(const char *from, const char *to) {
#ifdef _WIN32
    remove(to);
#endif
    return rename(from, to) == 0;
}

/* Brings one file, unless it is there: into NAME.part, which a later run goes on with, and renamed when it is right. */
static bool bring(pull *p, hub_file file) {
    char *path = path_in(p->tw, p->folder, file.name), *part = path ? text_of(p->tw, "%s.part", path) : NULL;
    char *quoted = url_part(p->tw, file.name), *revision = url_part(p->tw, p->revision), *url = NULL;
    bool there, resumed;
    if (part && quoted && revision) url = text_of(p->tw, "%s/%s/resolve/%s/%s", p->endpoint, p->name, revision, quoted);
    there = url && size_of_file(path) >= 0 && !*what_is_wrong(p, path, &file);
    if (url && !there) {
        const char *wrong_with;
        if (file.size >= 0 && size_of_file(part) > file.size) remove(part);
        resumed = size_of_file(part) > 0;
        for (;;) {
            bool whole = file.size >= 0 && size_of_file(part) == file.size;
            if (!whole && !fetch(p, url, part, &file, false)) break;
            if (size_of_file(part) < 0) { FILE *empty = fopen(part, "wb"); if (empty) fclose(empty); }      /* curl makes no file of no bytes */
            wrong_with = what_is_wrong(p, part, &file);
            if (*wrong_with) {
                remove(part);
                if (resumed) { resumed = false; continue; }     /* it began as another version of the file: from the start */
                fail(p->tw, TW_E_FORMAT, "%s: %s, so it was thrown away (%s)", file.name, wrong_with, url);
            } else if (!replace_file(part, path)) {
                fail(p->tw, TW_E_FILE, "%s: it cannot be renamed to it, %s (%s)", part, strerror(errno), path);
            }
            break;
        }
    }
    if (!tw_failed(p->tw)) report_file(p, &file, path, !there);
    free(path);
    free(part);
    free(quoted);
    free(revision);
    free(url);
    return !tw_failed(p->tw);
}

static bool bring_if_listed(pull *p, const char *name) {
    hub_file file;
    return !find_listed(p, name, &file) || bring(p, file);
}

/* The shards that an index names, each once. */
static bool bring_shards(pull *p, const char *index_name) {
    char *path = path_in(p->tw, p->folder, index_name);
    tw_json *index = path ? tw_json_load(p->tw, path) : NULL, *seen = index ? tw_json_object(p->tw) : NULL;
    const tw_json *map = tw_json_get(index, "weight_map");
    hub_file file;
    int64_t i;
    if (index && (tw_json_type(map) != TW_JSON_OBJECT || tw_json_count(map) == 0))
        fail(p->tw, TW_E_FORMAT, "%s: it has no weight_map with names of files (%s)", index_name, path);
    for (i = 0; !tw_failed(p->tw) && i < tw_json_count(map); i++) {
        const char *name = tw_json_string(tw_json_at(map, i), "");
        if (tw_json_get(seen, name)) continue;
        if (!stays_inside(name, true)) fail(p->tw, TW_E_FORMAT, "%s: \"%.200s\" is not the name of a file in the same folder (%s)", index_name, name, path);
        else if (!find_listed(p, name, &file)) fail(p->tw, TW_E_MISSING, "%s: the hub does not list the shard %.200s (%s)", index_name, name, path);
        else if (tw_json_set_null(seen, name)) bring(p, file);
    }
    free(path);
    tw_json_free(index);
    tw_json_free(seen);
    return !tw_failed(p->tw);
}

/* The first form of the weights that the hub has, in the order in which a model is opened. */
static bool bring_weights(pull *p) {
    static const struct { const char *name; bool index; } forms[] = {
        { "model.safetensors", false }, { "model.safetensors.index.json", true }, { "pytorch_model.bin", false }, { "pytorch_model.bin.index.json", true }
    };
    hub_file file;
    size_t i;
    for (i = 0; i < COUNT(forms); i++)
        if (find_listed(p, forms[i].name, &file)) return bring(p, file) && (!forms[i].index || bring_shards(p, forms[i].name));
    fail(p->tw, TW_E_MISSING, "%s: the hub has no weights of it that can be opened here (model.safetensors, pytorch_model.bin)", p->name);
    return false;
}

static void bring_model(pull *p) {
    static const char *const others[] = {
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
        "merges.txt", "spiece.model", "cog-pretrain.model", "sentencepiece.model", "sentencepiece.bpe.model", "tokenizer.model"
    };
    hub_file config;
    size_t i;
    if (!fetch_listing(p)) return;
    if (!find_listed(p, "config.json", &config)) {
        fail(p->tw, TW_E_MISSING, "%s: the hub has no config.json of it, so it is no model of this kind (%s)", p->name, p->endpoint);
        return;
    }
    if (!bring(p, config)) return;
    for (i = 0; i < COUNT(others); i++) if (!bring_if_listed(p, others[i])) return;
    bring_weights(p);
}

static int run_pull(arguments *a) {
    const char *endpoint = option_text(a, "--endpoint", getenv("HF_ENDPOINT") ? getenv("HF_ENDPOINT") : ""), *token = getenv("HF_TOKEN");
    tw_json *result = NULL;
    size_t length;
    bool made;
    pull p;
    memset(&p, 0, sizeof p);
    p.a = a;
    p.tw = a->tw;
    p.name = a->operand[0];
    p.folder = option_text(a, "--to", "");
    p.revision = option_text(a, "--revision", "main");
    if (!*endpoint) endpoint = "https://huggingface.co";
    if (!*p.folder) return wrong("pull: wants --to DIR (see twinkle pull --help)");
    if (!is_model_name(p.name)) return wrong("pull: \"%.80s\" is no model's name, such as gpt2 or google/mt5-small (command line)", p.name);
    if (!stays_inside(p.revision, false) || *p.revision == '-') return wrong("--revision: \"%.80s\" is no revision's name (command line)", p.revision);
    for (length = 0; (unsigned char)endpoint[length] > 0x20 && endpoint[length] != '"' && endpoint[length] != 0x7F; length++) continue;
    if (endpoint[length] || (strncmp(endpoint, "http://", 7) != 0 && strncmp(endpoint, "https://", 8) != 0))
        return wrong("--endpoint: \"%.80s\" is no URL that begins with https:// or http:// (command line)", endpoint);
    if (token && (strlen(token) > 512 || strspn(token, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~+/=") != strlen(token)))
        return failure("HF_TOKEN: it has characters that no token has (environment)");
    while (length > 8 && endpoint[length - 1] == '/') length--;
    p.endpoint = text_of(p.tw, "%.*s", (int)length, endpoint);
    p.headers = path_in(p.tw, p.folder, ".pull-headers");
    p.errors = path_in(p.tw, p.folder, ".pull-errors");
    if (option_given(a, "--json")) {
        result = tw_json_object(p.tw);
        tw_json_set_string(result, "name", p.name);
        tw_json_set_string(result, "revision", p.revision);
        tw_json_set_string(result, "folder", p.folder);
        p.report = tw_json_set_array(result, "files");
    }
    made = !file_exists(p.folder);
    if (!tw_failed(p.tw) && tw_make_folders(p.tw, p.folder)) bring_model(&p);
    if (p.headers) remove(p.headers);
    if (p.errors) remove(p.errors);
    if (tw_failed(p.tw) && made) remove_if_empty(p.folder);
    else if (!tw_failed(p.tw) && !result) printf("%lld bytes fetched (%s)\n", (long long)p.fetched, p.folder);
    if (result) tw_json_set_int(result, "fetched_bytes", p.fetched);
    if (result && !tw_failed(p.tw)) print_json(p.tw, result); else tw_json_free(result);
    tw_json_free(p.listing);
    free(p.endpoint);
    free(p.headers);
    free(p.errors);
    return status_of(p.tw);
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

static const option start_options[] = {
    { "--runs", "DIR", TEXT, 0, 0, "the folder with the runs" },
    { "--port", "N", WHOLE, 1, 65535, "the port to listen on" }
};
static int run_later(arguments *a) { return failure("%s: this version does not have it (twinkle %d.%d)", a->command->name, TW_VERSION_MAJOR, TW_VERSION_MINOR); }

#define OPTIONS(list) list, (int)COUNT(list)

static const command commands[] = {
    { "info", "MODEL", 1, 1, "type, parameters, dtypes, layers, context length, bytes", OPTIONS(info_options), run_info,
      "Example:\n  twinkle info gpt2/ --tensors\n" },
    { "tokenize", "MODEL", 1, 1, "text to token ids, and back", OPTIONS(tokenize_options), run_tokenize,
      "Examples:\n  twinkle tokenize gpt2/ --text 'Hello there' --json\n  twinkle tokenize gpt2/ --decode 15496,612\n" },
    { "forward", "MODEL", 1, 1, "one forward pass, from file to file", OPTIONS(forward_options), run_forward,
      "Example:\n  twinkle forward gpt2/ --in batch.safetensors --out out.safetensors --grads\n" },
    { "generate", "MODEL", 1, 1, "writes on from a prompt", OPTIONS(generate_options), run_generate,
      "Examples:\n  twinkle generate gpt2/ --prompt 'Once upon a time' --max-new-tokens 64 --sample --temperature 0.8\n"
      "  twinkle generate gpt2/ --ids 464,3290 --num-beams 4 --json\n" },
    { "predict", "MODEL", 1, 1, "what the head is for: labels, entities, masked words, an answer, an embedding, a text", OPTIONS(predict_options), run_predict,
      "A --file has a text a line; a line of a .jsonl file is {\"text\": ..., \"text2\": ...}.  text2 is the other text of a pair, or what a\n"
      "question in text is asked about.\n"
      "Examples:\n  twinkle predict bert-sst2 --text 'A fine day.'\n  twinkle predict bert-base-uncased --text 'Paris is the [MASK] of France.' --json\n" },
    { "train", "CONFIG.json", 1, 1, "trains from one JSON file", NULL, 0, run_train,
      "Example of a CONFIG.json:\n"
      "  {\"model\": \"gpt2\", \"train_file\": \"mine.txt\", \"eval_file\": \"test.txt\", \"output_dir\": \"runs/mine\", \"max_steps\": 1000,\n"
      "   \"per_device_train_batch_size\": 4, \"block_size\": 256, \"learning_rate\": 3e-4, \"lr_scheduler_type\": \"cosine\", \"warmup_steps\": 50}\n"
      "OUTPUT_DIR gets train_log.csv, a folder iter-N-ckpt a checkpoint, and the finished model itself.\n" },
    { "eval", "MODEL", 1, 1, "loss, perplexity and the head's metrics over a file", OPTIONS(eval_options), run_eval,
      "Example:\n  twinkle eval runs/mine --data test.txt --block-size 256\n" },
    { "convert", "SRC DST", 2, 2, "writes a model with weights of another dtype", OPTIONS(convert_options), run_convert,
      "Examples:\n  twinkle convert gpt2 gpt2-bf16 --dtype bf16\n  twinkle convert gpt2 gpt2-q8 --dtype q8_0 --data some.txt\n" },
    { "bench", "NAME [MODEL]", 1, 2, "measures: gemm, attention, forward MODEL, generate MODEL, train MODEL, tokenize MODEL", OPTIONS(bench_options), run_bench,
      "MODEL is a folder, or gpt2, bert-base, t5-base, glm-large: that size with random weights.  Seconds are the median of several runs after a warm-up.\n"
      "Examples:\n  twinkle bench gemm --m 256 --n 3072 --k 768 --trans-b\n  twinkle bench train gpt2 --batch 4 --seq 64 --threads 2\n" },
    { "pull", "NAME", 1, 1, "brings a model from a hub, through the system's curl", OPTIONS(pull_options), run_pull,
      "Brings config.json, the weights and the tokenizer's files.  What is there and right is not fetched again, and what broke off is\n"
      "gone on with.  HF_TOKEN in the environment is sent along, for models that are not open to all.\n"
      "Example:\n  twinkle pull openai-community/gpt2 --to gpt2\n" },
    { "start", "", 0, 0, "the board: a local page of the runs (not in this version)", OPTIONS(start_options), run_later, NULL }
};

static void print_usage(void) {
    size_t i;
    printf("twinkle: transformers in one C header, as a command\n\nusage: twinkle COMMAND ... [--threads N] [--seed N] [--json]\n\n");
    for (i = 0; i < COUNT(commands); i++) printf("  %-9s %-14s %s\n", commands[i].name, commands[i].operands, commands[i].summary);
    printf("\ntwinkle COMMAND --help says what a command takes.  MODEL is a folder as Hugging Face lays it out.\n");
}

static int run_command(const command *c, char **argv) {
    static arguments a;
    tw_desc desc;
    int status = read_arguments(&a, c, argv);
    if (status) return status;
    if (option_given(&a, "--help")) {
        print_help(c);
        if (c->run == run_train) print_train_keys();
        return 0;
    }
    memset(&desc, 0, sizeof desc);
    desc.threads = (int)option_whole(&a, "--threads", 0);
    desc.seed = (uint64_t)option_whole(&a, "--seed", 42);
    a.tw = tw_create(&desc);
    if (!a.tw) return failure("memory: there is none for a context");
    if (desc.seed == 0) tw_seed(a.tw, 0);
    status = c->run(&a);
    tw_destroy(a.tw);
    return status;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    size_t i;
    int status = -1;
    if (argc < 2) return wrong("a command is missing (see twinkle --help)");
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) { print_usage(); status = 0; }
    else if (!strcmp(name, "--version")) { printf("twinkle %d.%d.%d\n", TW_VERSION_MAJOR, TW_VERSION_MINOR, TW_VERSION_PATCH); status = 0; }
    for (i = 0; status < 0 && i < COUNT(commands); i++) if (!strcmp(name, commands[i].name)) status = run_command(&commands[i], argv + 2);
    if (status < 0) return wrong("%.40s: there is no such command (see twinkle --help)", name);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0) return failure("standard output: it cannot be written, %s", strerror(errno));
    return status;
}
