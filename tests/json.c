/* json.c - JSON: what must be read, what must be refused and how, exact numbers, changing and writing. */
#define TWINKLE_IMPLEMENTATION
#include "../twinkle.h"
#include "check.h"
#include "counted.h"
#include <locale.h>

static const char *const folder = "test-json.tmp";

/* Texts that must be read, and what they look like written again (NULL: the same). */
static const struct { const char *text, *written; } good[] = {
    { "null", NULL }, { "true", NULL }, { "false", NULL }, { "0", NULL }, { "-1", NULL }, { "\"\"", NULL }, { "[]", NULL }, { "{}", NULL },
    { " \t\r\n[ 1 , 2 ] \n", "[1,2]" }, { "[[],[[]],{\"a\":{}}]", NULL },
    { "-0", "0" }, { "-0.0", NULL }, { "1.0", NULL }, { "1e2", "100.0" }, { "1E+2", "100.0" }, { "1e-05", NULL }, { "0.00001", "1e-05" }, { "0.0001", NULL },
    { "1e15", "1000000000000000.0" }, { "1e16", "1e+16" }, { "1e-999", "0.0" }, { "-1e-400", "-0.0" }, { "4.9e-324", "5e-324" },
    { "1.7976931348623157e308", "1.7976931348623157e+308" }, { "0.1", NULL }, { "2.5", NULL }, { "123456789012345680000", NULL },
    { "9223372036854775807", NULL }, { "-9223372036854775808", NULL }, { "9223372036854775808", "9223372036854776000" },
    { "1000000000000000019884624838656", "1000000000000000000000000000000" },            /* transformers' model_max_length */
    { "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\b\\f\\n\\r\\t\"" }, { "\"\\u0000\\u001f\\u007f\"", "\"\\u0000\\u001f\x7f\"" },
    { "\"\\u00e9\\u20AC\\ud83d\\ude00\"", "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"" }, { "\"\xC4\xA0the\"", NULL },
    { "{\"a\":1,\"b\":2,\"a\":3}", "{\"a\":3,\"b\":2}" }, { "{\"\":1}", NULL }, { "{\"a\\u0000b\":1,\"a\":2}", NULL }
};

/* Texts that must be refused: the code, and a part of the sentence. */
static const struct { const char *text; tw_code code; const char *part; } bad[] = {
    { "", TW_E_FORMAT, "empty" }, { "   ", TW_E_FORMAT, "too early" }, { "[", TW_E_FORMAT, "too early" }, { "{", TW_E_FORMAT, "too early" },
    { "[1", TW_E_FORMAT, "too early" }, { "[1,", TW_E_FORMAT, "too early" }, { "{\"a\"", TW_E_FORMAT, "too early" }, { "{\"a\":", TW_E_FORMAT, "too early" },
    { "]", TW_E_FORMAT, "begins" }, { "[1}", TW_E_FORMAT, "ends with" }, { "{\"a\":1]", TW_E_FORMAT, "ends with" }, { "[1 2]", TW_E_FORMAT, "comma" },
    { "[1]x", TW_E_FORMAT, "follows" }, { "1 2", TW_E_FORMAT, "follows" }, { "[,1]", TW_E_FORMAT, "begins" }, { "[1,,2]", TW_E_FORMAT, "begins" },
    { "{\"a\" 1}", TW_E_FORMAT, "colon" }, { "{a:1}", TW_E_FORMAT, "name" }, { "{1:1}", TW_E_FORMAT, "name" }, { "{,}", TW_E_FORMAT, "name" },
    { "NaN", TW_E_FORMAT, "NaN" }, { "[Infinity]", TW_E_FORMAT, "NaN" }, { "-Infinity", TW_E_FORMAT, "NaN" }, { "nan", TW_E_FORMAT, "begins" },
    { "-", TW_E_FORMAT, "number" }, { "01", TW_E_FORMAT, "number" }, { "-01", TW_E_FORMAT, "number" }, { "1.", TW_E_FORMAT, "number" }, { ".5", TW_E_FORMAT, "begins" },
    { "+1", TW_E_FORMAT, "begins" }, { "1e", TW_E_FORMAT, "number" }, { "1e+", TW_E_FORMAT, "number" }, { "0x10", TW_E_FORMAT, "follows" }, { "1,5", TW_E_FORMAT, "follows" },
    { "1e999", TW_E_RANGE, "too large" }, { "[-1e309]", TW_E_RANGE, "too large" }, { "1.7976931348623159e308", TW_E_RANGE, "too large" },
    { "1e99999999999999999999", TW_E_RANGE, "too large" },
    { "\"abc", TW_E_FORMAT, "inside a string" }, { "\"abc\\", TW_E_FORMAT, "inside a string" }, { "\"\\x41\"", TW_E_FORMAT, "escape" }, { "\"\\u12", TW_E_FORMAT, "escape" },
    { "\"\\u12g4\"", TW_E_FORMAT, "escape" }, { "\"\\ud800\"", TW_E_FORMAT, "surrogate" }, { "\"\\udc00\"", TW_E_FORMAT, "surrogate" },
    { "\"\\ud800\\u0041\"", TW_E_FORMAT, "surrogate" }, { "\"\\ud800\\ud800\"", TW_E_FORMAT, "surrogate" }, { "\"\\ud83d", TW_E_FORMAT, "surrogate" },
    { "\"a\nb\"", TW_E_FORMAT, "control" }, { "\"\xFF\"", TW_E_FORMAT, "UTF-8" }, { "\"\xC0\xAF\"", TW_E_FORMAT, "UTF-8" }, { "\"\xED\xA0\x80\"", TW_E_FORMAT, "UTF-8" },
    { "\"\xE2\x82", TW_E_FORMAT, "UTF-8" }, { "\"\xF5\x80\x80\x80\"", TW_E_FORMAT, "UTF-8" },
    { "\xEF\xBB\xBF{}", TW_E_FORMAT, "byte order mark" }, { "// hi\n{}", TW_E_FORMAT, "comments" }, { "[1, /* two */ 2]", TW_E_FORMAT, "comments" },
    { "# hi\n{}", TW_E_FORMAT, "comments" }, { "[1,]", TW_E_FORMAT, "comma" }, { "{\"a\":1,}", TW_E_FORMAT, "comma" }, { "{'a':1}", TW_E_FORMAT, "double quotes" },
    { "['a']", TW_E_FORMAT, "double quotes" }, { "tru", TW_E_FORMAT, "begins" }, { "True", TW_E_FORMAT, "begins" }, { "nul", TW_E_FORMAT, "begins" }, { "truex", TW_E_FORMAT, "follows" }
};

static void refuse(tw_context *tw, const char *text, size_t length, tw_code code, const char *part) {
    tw_json *j = tw_json_parse(tw, text, length);
    CHECK(j == NULL && tw_error_code(tw) == code && strstr(tw_error(tw), part) && strncmp(tw_error(tw), "JSON: ", 6) == 0 && strstr(tw_error(tw), "(line "),
          "%.60s: expected code %d and \"%s\", got %d: %s", text, (int)code, part, (int)tw_error_code(tw), tw_error(tw));
    tw_json_free(j);
    tw_clear_error(tw);
}

static void texts(tw_context *tw) {
    static char out[4096];
    size_t i, n;
    for (i = 0; i < sizeof good / sizeof good[0]; i++) {
        const char *wanted = good[i].written ? good[i].written : good[i].text;
        tw_json *j = tw_json_parse(tw, good[i].text, SIZE_MAX);
        n = tw_json_write(j, 0, out, sizeof out);
        CHECK(j && n == strlen(wanted) && strcmp(out, wanted) == 0, "%s: wrote %s, expected %s; %s", good[i].text, out, wanted, tw_error(tw));
        tw_json_free(j);
        tw_clear_error(tw);
    }
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) refuse(tw, bad[i].text, strlen(bad[i].text), bad[i].code, bad[i].part);
    refuse(tw, "[1,\0]", 5, TW_E_FORMAT, "begins");
    refuse(tw, "\"a\0b\"", 5, TW_E_FORMAT, "control");
    refuse(tw, "{}\0", 3, TW_E_FORMAT, "follows");
    CHECK(tw_json_parse(tw, "{\n  \"a\": 1,\n  \"\xC3\xA9\": tru\n}", SIZE_MAX) == NULL && strstr(tw_error(tw), "(line 3, column 8)"), "place: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(tw_json_parse(tw, NULL, 3) == NULL && tw_error_code(tw) == TW_E_ARGUMENT, "NULL text");
    tw_clear_error(tw);
}

/* Every prefix of a text is unfinished. */
static void truncation(tw_context *tw) {
    static const char text[] = "{\"model_type\": \"gpt2\", \"n\": [1, -2.5e-3, true, false, null, \"\\u00e9\\ud83d\\ude00 \\\"x\\\" \xC3\xA9\"], \"o\": {\"p\": {}, \"q\": []}}";
    size_t i;
    for (i = 0; i < sizeof text - 1; i++) {
        char *exact = (char *)check_malloc(i);                 /* no byte behind it: a sanitizer sees every step too far */
        tw_json *j;
        memcpy(exact, text, i);
        j = tw_json_parse(tw, exact, i);
        CHECK(j == NULL && tw_error_code(tw) == TW_E_FORMAT, "%lu bytes of the text are read as a whole", (unsigned long)i);
        tw_json_free(j);
        tw_clear_error(tw);
        free(exact);
    }
}

/* n times the text. */
static char *repeated(const char *text, size_t n, size_t *length) {
    size_t m = strlen(text), i;
    char *all = (char *)check_malloc(n * m + 1);
    for (i = 0; i < n; i++) memcpy(all + i * m, text, m);
    all[n * m] = 0;
    *length = n * m;
    return all;
}

static void large(tw_context *tw) {
    size_t n, i, at = 0;
    char *text = repeated("[", 1000000, &n), name[32];
    tw_json *j;
    refuse(tw, text, n, TW_E_RANGE, "deep");
    free(text);
    text = repeated("{\"a\":", 1000000, &n);
    refuse(tw, text, n, TW_E_RANGE, "deep");
    free(text);
    text = repeated("[", 2 * TW_MAX_JSON_DEPTH, &n);
    memset(text + TW_MAX_JSON_DEPTH, ']', TW_MAX_JSON_DEPTH);
    j = tw_json_parse(tw, text, n);
    CHECK(j != NULL, "64 levels: %s", tw_error(tw));
    tw_json_free(j);
    free(text);
    text = repeated("9", 400, &n);
    refuse(tw, text, n, TW_E_RANGE, "too large");
    text[300] = 0;
    j = tw_json_parse(tw, text, 300);
    CHECK(j && tw_json_number(j, 0) == 1e300 && tw_json_int(j, 7) == 7, "300 digits: %s", tw_error(tw));
    tw_json_free(j);
    free(text);
    text = repeated("a", 10000000, &n);
    text[0] = text[n - 1] = '"';
    j = tw_json_parse(tw, text, n);
    CHECK(tw_json_string_length(j) == n - 2 && strlen(tw_json_string(j, "")) == n - 2, "a string of 10 MB: %s", tw_error(tw));
    tw_json_free(j);
    free(text);

    text = (char *)check_malloc(500000 * 24);                   /* a vocabulary: half a million members, every tenth name twice */
    text[at++] = '{';
    for (i = 0; i < 500000; i++) at += (size_t)sprintf(text + at, "%s\"w%lu\":%lu", i ? "," : "", (unsigned long)(i % 10 ? i : i / 2), (unsigned long)i);
    text[at++] = '}';
    j = tw_json_parse(tw, text, at);
    CHECK(j != NULL, "half a million members: %s", tw_error(tw));
    for (i = 0, n = 0; i < 500000; i++) {
        sprintf(name, "w%lu", (unsigned long)i);
        if (tw_json_int(tw_json_get(j, name), -1) != (int64_t)i) n++;
    }
    CHECK(n > 0 && n < 100000 && tw_json_int(tw_json_get(j, "w20"), 0) == 40 && tw_json_int(tw_json_get(j, "w21"), 0) == 21, "look-ups in a large object: %lu differ", (unsigned long)n);
    CHECK(tw_json_get(j, "w") == NULL && tw_json_get(j, "") == NULL, "names that are not there");
    tw_json_free(j);
    free(text);
}

/* How many digits count: without zeros at either end. */
static size_t significant(const char *text) {
    size_t n = 0, zeros = 0;
    for (; *text && *text != 'e'; text++) {
        if (*text < '0' || *text > '9' || (*text == '0' && n == 0)) continue;
        if (*text == '0') zeros++;
        else { n += zeros + 1; zeros = 0; }
    }
    return n;
}

/* Exact numbers, against the C library's own (which is exact where the tests run); under another locale
   only against themselves, as the library then writes commas. */
static void numbers(bool library) {
    char text[900], out[32];
    int i, k;
    for (i = 0; i < 60000; i++) {
        uint64_t bits = (uint64_t)check_random() << 32 | check_random();
        double x, y = 0;
        float f, g;
        uint32_t half = check_random();
        if (i % 4 == 0) bits &= ~(uint64_t)0 << (check_random() % 53);
        if (i % 16 == 1) bits &= (UINT64_C(1) << 53) - 1;
        memcpy(&x, &bits, sizeof x);
        memcpy(&f, &half, sizeof f);
        if (twi_is_finite(x)) {
            size_t n = twi_format_number(x, out);
            CHECK(twi_parse_number(out, n, &y) && memcmp(&x, &y, sizeof x) == 0 && n < sizeof out && n == strlen(out), "%.17g was written %s", x, out);
            sprintf(text, "%.*e", (int)(check_random() % 40), x);
            CHECK(!library || !twi_parse_number(text, strlen(text), &y) || y == strtod(text, NULL), "%s was read as %.17g", text, y);
            n = significant(out);
            if (library && x != 0 && n > 1 && n < 18 && fabs(x) < 1e300) {   /* one digit less is another number */
                sprintf(text, "%.*e", (int)n - 2, x);
                CHECK(strtod(text, NULL) != x, "%s is not the shortest: %s", out, text);
            }
        }
        if (twi_is_finite((double)f)) {
            size_t n = twi_format_float(f, out);
            bool ok = twi_parse_number(out, n, &y);
            g = (float)y;
            CHECK(ok && memcmp(&f, &g, sizeof f) == 0 && n <= 19, "%.9g was written %s", (double)f, out);
        }
        k = 1 + (int)(check_random() % 800);                     /* long digits with a point and an exponent */
        if (library && i < 3000) {
            int j, point = (int)(check_random() % (unsigned)k);
            for (j = 0; j < k; j++) text[j] = j == point ? '.' : (char)('0' + check_random() % 10);
            sprintf(text + k, "e%d", (int)(check_random() % 700) - 350);
            if (k > 1) {
                double wanted = strtod(text, NULL);
                bool ok = twi_parse_number(text, strlen(text), &y);
                CHECK(ok ? y == wanted : wanted > 1.7976931348623157e308, "%s was read as %.17g, not %.17g", text, y, wanted);
            }
        }
    }
    twi_format_float(0.1f, out);
    CHECK(strcmp(out, "0.1") == 0, "0.1f is written %s", out);
    {
        static const char *const none[] = { "", "-", ".", "e5", "1e", "1e+", "1.2.3", "1 ", "0x1", "inf", "nan", "--1" };
        double y;
        for (i = 0; i < (int)(sizeof none / sizeof none[0]); i++) CHECK(!twi_parse_number(none[i], strlen(none[i]), &y) && y == 0, "\"%s\" is no number", none[i]);
    }
}

static void reading(tw_context *tw) {
    static const char text[] = "{\"i\":42,\"r\":0.5,\"w\":3.0,\"b\":true,\"s\":\"x\\u0000y\",\"n\":null,\"a\":[1,[2],{}]}";
    tw_json *j = tw_json_parse(tw, text, SIZE_MAX);
    const tw_json *a = tw_json_get(j, "a");
    CHECK(tw_json_type(j) == TW_JSON_OBJECT && tw_json_count(j) == 7 && tw_json_type(NULL) == TW_JSON_NONE, "kinds");
    CHECK(tw_json_int(tw_json_get(j, "i"), 0) == 42 && tw_json_number(tw_json_get(j, "i"), 0) == 42.0, "integer");
    CHECK(tw_json_int(tw_json_get(j, "r"), -1) == -1 && tw_json_number(tw_json_get(j, "r"), 0) == 0.5 && tw_json_int(tw_json_get(j, "w"), 0) == 3, "fractions");
    CHECK(tw_json_bool(tw_json_get(j, "b"), false) && tw_json_bool(tw_json_get(j, "i"), true) && !tw_json_bool(NULL, false), "bool");
    CHECK(tw_json_string_length(tw_json_get(j, "s")) == 3 && strcmp(tw_json_string(tw_json_get(j, "i"), "no"), "no") == 0, "strings");
    CHECK(tw_json_type(tw_json_get(j, "n")) == TW_JSON_NULL && tw_json_get(j, "none") == NULL && tw_json_get(a, "x") == NULL && tw_json_get(NULL, "x") == NULL, "absent");
    CHECK(tw_json_count(a) == 3 && tw_json_int(tw_json_at(tw_json_at(a, 1), 0), 0) == 2 && !tw_json_at(a, 3) && !tw_json_at(a, -1) && !tw_json_at(NULL, 0), "items");
    CHECK(strcmp(tw_json_key(j, 6), "a") == 0 && !tw_json_key(j, 7) && !tw_json_key(a, 0), "keys");
    tw_json_free(j);
}

/* Builds, changes and writes a document; false as soon as something fails. */
static bool build(tw_context *tw, char *out, size_t room) {
    tw_json *j = tw_json_object(tw), *a, *o, *copy;
    char name[16];
    int i;
    bool ok = tw_json_set_string(j, "name", "tw\"\xC3\xA9") && tw_json_set_int(j, "big", INT64_MIN) && tw_json_set_number(j, "lr", 1e-4) &&
              tw_json_set_float(j, "eps", 0.1f) && tw_json_set_bool(j, "on", true) && tw_json_set_null(j, "none");
    a = tw_json_set_array(j, "list");
    o = tw_json_set_object(j, "object");
    for (i = 0; i < 40; i++) {                                   /* beyond the size where an object gets its index */
        sprintf(name, "k%d", i);
        ok = ok && tw_json_set_int(o, name, i) && tw_json_push_int(a, i);
    }
    ok = ok && tw_json_push_string(a, "s") && tw_json_push_number(a, 2) && tw_json_push_bool(a, false) && tw_json_push_object(a) && tw_json_push_array(a);
    for (i = 0; i < 40; i++) {
        sprintf(name, "k%d", i);
        if (i % 8) ok = ok && tw_json_remove(o, name) && !tw_json_get(o, name);
        else ok = ok && tw_json_int(tw_json_get(o, name), -1) == i;
    }
    ok = ok && tw_json_set_int(o, "k0", 7) && tw_json_count(o) == 5 && tw_json_set_copy(o, "self", o) && tw_json_push_copy(a, o);
    copy = tw_json_object(tw);
    ok = ok && tw_json_set_copy(copy, "all", j) && tw_json_remove(j, "list") && !tw_json_remove(j, "list");
    ok = ok && tw_json_save(tw, copy, "test-json.tmp/a.json", 2);
    tw_json_free(j);
    j = ok ? tw_json_load(tw, "test-json.tmp/a.json") : NULL;
    ok = j && tw_json_write(j, 0, NULL, 0) == tw_json_write(copy, 0, out, room);
    tw_json_free(j);
    tw_json_free(copy);
    return ok && !tw_failed(tw);
}

static void building(tw_context *tw) {
    static char out[4096], again[4096], small[8];
    static const char wanted[] = "{\"all\":{\"name\":\"tw\\\"\xC3\xA9\",\"big\":-9223372036854775808,\"lr\":0.0001,\"eps\":0.1,\"on\":true,\"none\":null,\"list\":[0,1,";
    tw_json *j, *k;
    double zero = 0.0;
    int i;
    CHECK(build(tw, out, sizeof out), "building: %s", tw_error(tw));
    CHECK(strncmp(out, wanted, sizeof wanted - 1) == 0, "built: %s", out);
    CHECK(strstr(out, "\"s\",2.0,false,{},[],{\"k0\":7,\"k8\":8,\"k16\":16,\"k24\":24,\"k32\":32,\"self\":{\"k0\":7,") != NULL, "built: %s", out);
    j = tw_json_parse(tw, out, SIZE_MAX);
    CHECK(tw_json_write(j, 0, again, sizeof again) == strlen(out) && strcmp(out, again) == 0, "written again: %s", again);
    CHECK(tw_json_write(j, 0, small, sizeof small) == strlen(out) && strcmp(small, "{\"all\":") == 0, "a small room: %s", small);
    tw_json_free(j);
    j = tw_json_parse(tw, "{\"a\":[1,{}],\"b\":{\"c\":null},\"d\":[]}", SIZE_MAX);
    tw_json_write(j, 2, again, sizeof again);
    CHECK(strcmp(again, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": {\n    \"c\": null\n  },\n  \"d\": []\n}") == 0, "indented: %s", again);
    tw_json_free(j);

    j = tw_json_array(tw);
    CHECK(!tw_json_set_int(j, "a", 1) && tw_error_code(tw) == TW_E_ARGUMENT, "a member of an array: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_json_push_number(j, zero / zero) && tw_error_code(tw) == TW_E_RANGE, "NaN: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_json_push_string(j, "\xFF") && tw_error_code(tw) == TW_E_FORMAT, "not UTF-8: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(tw_json_count(j) == 0, "what fails changes nothing");
    CHECK(!tw_json_push_int(NULL, 1) && !tw_json_set_object(NULL, "a") && !tw_json_push_string(j, NULL) && !tw_failed(tw), "NULL is quiet");
    for (i = 0, k = j; i < 100 && k; i++) k = tw_json_push_array(k);
    CHECK(i == TW_MAX_JSON_DEPTH && tw_error_code(tw) == TW_E_RANGE, "%d levels built: %s", i, tw_error(tw));
    tw_clear_error(tw);
    tw_json_free(j);
    CHECK(tw_json_load(tw, "test-json.tmp/none.json") == NULL && tw_error_code(tw) == TW_E_MISSING &&
          strcmp(tw_error(tw), "none.json: no such file (test-json.tmp/none.json)") == 0, "missing file: %s", tw_error(tw));
    tw_clear_error(tw);
    twi_save_file(tw, "test-json.tmp/bad.json", "{\n1}", 4);
    CHECK(tw_json_load(tw, "test-json.tmp/bad.json") == NULL && strstr(tw_error(tw), "bad.json: ") && strstr(tw_error(tw), "(test-json.tmp/bad.json, line 2, column 1)"), "bad file: %s", tw_error(tw));
    tw_clear_error(tw);
}

/* Every call of the allocator fails once: an error, nothing lost, nothing crashes. */
static void without_memory(void) {
    counted c;
    char out[4096];
    long n;
    bool done = false;
    for (n = 1; !done && n < 2000; n++) {
        tw_context *tw;
        memset(&c, 0, sizeof c);
        c.fail_at = n;
        tw = counted_context(&c);
        if (tw) {
            done = build(tw, out, sizeof out);
            CHECK(done || tw_error_code(tw) == TW_E_MEMORY, "call %ld: %s", n, tw_error(tw));
            tw_destroy(tw);
        }
        CHECK(c.live == 0 && c.bytes == 0, "call %ld: %ld blocks are lost", n, c.live);
    }
    CHECK(done, "building never came through");
}

int main(void) {
    static const char *const locales[] = { "de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8" };
    counted c;
    tw_context *tw;
    size_t i;
    memset(&c, 0, sizeof c);
    tw = counted_context(&c);
    twi_make_folders(tw, folder);
    for (i = 0; i < 2; i++) {
        texts(tw);
        truncation(tw);
        reading(tw);
        building(tw);
        numbers(i == 0);
        if (i == 0) {                                            /* once more where a comma is the decimal point */
            size_t k = 0;
            while (k < sizeof locales / sizeof locales[0] && !setlocale(LC_ALL, locales[k])) k++;
            if (k == sizeof locales / sizeof locales[0]) break;
        }
    }
    setlocale(LC_ALL, "C");
    large(tw);
    CHECK(!tw_failed(tw), "an error is left: %s", tw_error(tw));
    CHECK(c.live == 1, "%ld blocks live beside the context", c.live - 1);
    tw_destroy(tw);
    CHECK(c.live == 0 && c.bytes == 0, "%ld blocks are left at the end", c.live);
    without_memory();
    remove("test-json.tmp/a.json");
    remove("test-json.tmp/bad.json");
    remove(folder);
    return check_done();
}
