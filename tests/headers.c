/* The headers as texts: what must not be in them, and the sample program that must.
   headers                  the checks
   headers --sample         prints the sample out of twinkle.h's opening comment, to be compiled */
#include "check.h"
#include <stdbool.h>
#include <ctype.h>
#include <string.h>

static char *read_text(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = (char *)check_malloc(4u << 20);
    size_t n = f ? fread(text, 1, (4u << 20) - 1, f) : 0;
    text[n] = 0;
    if (f) fclose(f);
    return text;
}

/* Blanks out comments, texts and characters, line for line. */
static void strip(char *s) {
    while (*s) {
        char quote = *s;
        if (s[0] == '/' && s[1] == '*') {
            for (; *s && !(s[0] == '*' && s[1] == '/'); s++) if (*s != '\n') *s = ' ';
            if (*s) { s[0] = s[1] = ' '; s += 2; }
        } else if (quote == '"' || quote == '\'') {
            for (s++; *s && *s != quote && *s != '\n'; s++) { if (*s == '\\' && s[1]) { *s++ = ' '; } if (*s != '\n') *s = ' '; }
            if (*s == quote) s++;
        } else s++;
    }
}

static bool is_name(char c) { return isalnum((unsigned char)c) || c == '_'; }

static int line_of(const char *text, const char *at) {
    int line = 1;
    for (; text < at; text++) line += *text == '\n';
    return line;
}

/* Nothing may end the host's process, or print into its output. */
static void check_calls(const char *path, const char *text) {
    static const char *const forbidden[] = { "abort", "exit", "_exit", "_Exit", "quick_exit", "atexit", "assert", "raise", "signal", "longjmp", "setjmp", "printf", "puts", "putchar",
        "setlocale", "gets", "strtod", "atof", "strtok", "rand", "srand", "system", "getenv", "__builtin_trap", "__builtin_unreachable" };
    size_t i;
    for (i = 0; i < sizeof forbidden / sizeof forbidden[0]; i++) {
        const char *at = text;
        size_t n = strlen(forbidden[i]);
        int found = 0;
        while ((at = strstr(at, forbidden[i])) != NULL) {
            const char *behind = at + n;
            bool whole = (at == text || !is_name(at[-1])) && !is_name(*behind);
            while (*behind == ' ') behind++;
            if (whole && *behind == '(') { if (!found++) printf("%s:%d: %s\n", path, line_of(text, at), forbidden[i]); }
            at += n;
        }
        CHECK(!found, "%s calls %s", path, forbidden[i]);
    }
}

/* No variable that lives longer than a call and can change: `static` without const must be a function. */
static void check_statics(const char *path, const char *text) {
    const char *line = text;
    while (line) {
        const char *s = line, *end = strchr(line, '\n');
        size_t n = end ? (size_t)(end - line) : strlen(line), i;
        while (*s == ' ') s++;
        if (!strncmp(s, "static ", 7)) {
            size_t left = n - (size_t)(s - line);
            bool constant = false, function = false, value = false;
            for (i = 0; i < left; i++) {
                if (!strncmp(s + i, "const ", 6)) constant = true;
                if (s[i] == '(') { function = true; break; }
                if (s[i] == '=' || s[i] == ';' || s[i] == '[') { value = true; break; }
            }
            CHECK(constant || function || !value, "%s:%d: a static variable that is not const: %.*s", path, line_of(text, s), (int)left, s);
        }
        line = end ? end + 1 : NULL;
    }
}

/* Lines that editors and terminals show as they are: no tabs, no blanks at the end, no control characters. */
static void check_lines(const char *path, const char *text) {
    int line = 1, bad = 0;
    const char *s;
    for (s = text; *s; s++) {
        if (*s == '\n') { line++; if (s > text && s[-1] == ' ' && !bad++) printf("%s:%d: a blank at the end\n", path, line - 1); }
        else if ((unsigned char)*s < 32 && !bad++) printf("%s:%d: a control character\n", path, line);
    }
    CHECK(bad == 0, "%s: %d lines with tabs, control characters or blanks at the end", path, bad);
}

/* The sample: what stands between its marks, without the indentation of its first line. */
static bool print_sample(const char *text) {
    const char *line = strstr(text, "[tw:sample]\n"), *end = line ? strstr(line, "[tw:end of sample]") : NULL;
    size_t indent;
    if (!end) return false;
    line = strchr(line, '\n') + 1;
    indent = strspn(line, " ");
    while (line < end && memchr(line, '[', indent) == NULL) {
        size_t n = strcspn(line, "\n"), blanks = strspn(line, " "), skip = blanks < indent ? blanks : indent;
        printf("%.*s\n", (int)(n - skip), line + skip);
        line += n + 1;
    }
    return true;
}

int main(int argc, char **argv) {
    static const char *const paths[] = { "../twinkle.h", "../twinkle_blas.h" };
    size_t i;
    if (argc > 1 && !strcmp(argv[1], "--sample")) return print_sample(read_text(paths[0])) ? 0 : 1;
    for (i = 0; i < 2; i++) {
        char *text = read_text(paths[i]);
        CHECK(strlen(text) > 1000, "%s cannot be read", paths[i]);
        check_lines(paths[i], text);
        strip(text);
        check_calls(paths[i], text);
        check_statics(paths[i], text);
        free(text);
    }
    return check_done();
}
