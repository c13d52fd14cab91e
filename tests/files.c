/* files.c - checkpoints: hostile safetensors files, indexes and paths, round trips, disks that are full.
   The numbers S1 ... S36 and P37 ... P41 are those of the kinds of bad input that loaders have fallen for. */
#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE
#endif
#define TWINKLE_IMPLEMENTATION
#include "../twinkle.h"
#include "check.h"
#include "counted.h"
#ifndef _WIN32
#  include <dirent.h>
#  include <signal.h>
#  include <sys/resource.h>
#endif

#define FOLDER "test-files.tmp/"
static counted memory;                        /* of the context that most of the tests share */

static void put_file(const char *path, const void *bytes, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, size, f) != size) { printf("%s cannot be written\n", path); exit(2); }
    fclose(f);
}
static void put_text(const char *path, const char *text) { put_file(path, text, strlen(text)); }

/* A safetensors file of a header and n bytes 1, 2, 3, ... of data, in memory of exactly its size. */
static unsigned char *make(const char *header, size_t length, size_t data, size_t *size) {
    unsigned char *file;
    size_t i;
    *size = 8 + length + data;
    file = (unsigned char *)check_malloc(*size);
    for (i = 0; i < 8; i++) file[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(file + 8, header, length);
    for (i = 0; i < data; i++) file[8 + length + i] = (unsigned char)(i + 1);
    return file;
}

/* The bytes must be refused with that code and a sentence with that part, from memory and as a file; nothing stays. */
static void refuse(tw_context *tw, const char *what, const void *bytes, size_t size, tw_code code, const char *part) {
    long live = memory.live;
    int i;
    put_file(FOLDER "bad.safetensors", bytes, size);
    for (i = 0; i < 2; i++) {
        tw_weights *w = i ? tw_open_weights(tw, FOLDER "bad.safetensors") : tw_weights_from_memory(tw, bytes, size);
        const char *where = i ? "(" FOLDER "bad.safetensors" : "(memory";
        CHECK(w == NULL && tw_error_code(tw) == code && strstr(tw_error(tw), part) && strstr(tw_error(tw), where),
              "%s: expected code %d and \"%s\", got %d: %s", what, (int)code, part, (int)tw_error_code(tw), tw_error(tw));
        tw_close_weights(w);
        tw_clear_error(tw);
        CHECK(memory.live == live, "%s: %ld blocks are left", what, memory.live - live);
    }
}
static void refuse_header(tw_context *tw, const char *what, const char *header, size_t data, tw_code code, const char *part) {
    size_t size;
    unsigned char *file = make(header, strlen(header), data, &size);
    refuse(tw, what, file, size, code, part);
    free(file);
}
static void refuse_length(tw_context *tw, const char *what, uint64_t length, const char *rest, const char *part) {
    unsigned char bytes[64] = {0};
    size_t i;
    for (i = 0; i < 8; i++) bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + 8, rest, strlen(rest));
    refuse(tw, what, bytes, 8 + strlen(rest), TW_E_FORMAT, part);
}

/* Headers that must be refused: name, header, bytes of data, code, part of the sentence. */
static const struct { const char *what, *header; size_t data; tw_code code; const char *part; } bad[] = {
    { "S7 array", "[]", 0, TW_E_FORMAT, "does not begin with {" }, { "S7 blank first", " {}", 0, TW_E_FORMAT, "does not begin with {" },
    { "S8 unfinished", "{ ", 0, TW_E_FORMAT, "too early" }, { "S8 no JSON", "{xy}", 0, TW_E_FORMAT, "name" },
    { "S9 0xFF", "{\"\xFF\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "UTF-8" },
    { "S9 overlong", "{\"\xC0\xAF\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "UTF-8" },
    { "S9 surrogate", "{\"\\ud800\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "surrogate" },
    { "S10 NUL in a name", "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "NUL" },
    { "S11 more behind", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} x", 1, TW_E_FORMAT, "follows" },
    { "S11 two objects", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}{}", 1, TW_E_FORMAT, "follows" },
    { "S12 2^64-2", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,18446744073709551614],\"data_offsets\":[0,4]}}", 4, TW_E_FORMAT, "shape" },
    { "S12 wraps", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,9223372036854775807,2],\"data_offsets\":[0,4]}}", 4, TW_E_FORMAT, "counted" },
    { "S13 wraps with the dtype", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,9223372036854775807],\"data_offsets\":[0,8]}}", 8, TW_E_FORMAT, "counted" },
    { "S13 2^62 F32", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, TW_E_FORMAT, "counted" },
    { "S14 zero behind", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0, TW_E_FORMAT, "counted" },
    { "S14 zero before", "{\"a\":{\"dtype\":\"U8\",\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, TW_E_FORMAT, "counted" },
    { "S15 negative", "{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S15 minus zero", "{\"a\":{\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,0]}}", 0, TW_E_FORMAT, "shape" },
    { "S15 1.5", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S15 1e3", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1e0],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S15 string", "{\"a\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S15 true", "{\"a\":{\"dtype\":\"U8\",\"shape\":[true],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S15 no list", "{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S15 list in it", "{\"a\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "shape" },
    { "S16 9 dimensions", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, TW_E_UNSUPPORTED, "\"a\" has more than 8" },
    { "S17 ends first", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1, TW_E_FORMAT, "before it begins" },
    { "S18 beyond", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 1, TW_E_FORMAT, "beyond" },
    { "S19 negative", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 1, TW_E_FORMAT, "data_offsets" },
    { "S19 fraction", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}}", 1, TW_E_FORMAT, "data_offsets" },
    { "S19 2^64", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,18446744073709551616]}}", 1, TW_E_FORMAT, "data_offsets" },
    { "S19 2^64+1", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[18446744073709551615,18446744073709551616]}}", 1, TW_E_FORMAT, "data_offsets" },
    { "S19 one", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, TW_E_FORMAT, "data_offsets" },
    { "S19 three", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, TW_E_FORMAT, "data_offsets" },
    { "S20 too many bytes", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, TW_E_FORMAT, "do not fit" },
    { "S20 too few bytes", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, TW_E_FORMAT, "do not fit" },
    { "S21 overlap", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6, TW_E_FORMAT, "\"b\" shares" },
    { "S21 the same", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, TW_E_FORMAT, "\"b\" shares" },
    { "S21 inside", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, TW_E_FORMAT, "\"a\" shares" },
    { "S22 hole", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}", 3, TW_E_FORMAT, "\"b\" has a hole" },
    { "S22 hole first", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, TW_E_FORMAT, "hole" },
    { "S22 nothing in a hole", "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}", 1, TW_E_FORMAT, "hole" },
    { "S23 tail of 4", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 8, TW_E_FORMAT, "belong to no tensor" },
    { "S23 tail alone", "{}", 1, TW_E_FORMAT, "belong to no tensor" },
    { "S26 name twice", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, TW_E_FORMAT, "\"a\" stands twice" },
    { "S26 the same by an escape", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, TW_E_FORMAT, "stands twice" },
    { "S27 two shapes", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "same key twice" },
    { "S28 unknown dtype", "{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_UNSUPPORTED, "\"a\" is of type \"F33\"" },
    { "S28 lower case", "{\"a\":{\"dtype\":\"u8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_UNSUPPORTED, "type" },
    { "S28 4 bits", "{\"a\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1, TW_E_UNSUPPORTED, "\"F4\"" },
    { "S28 no string", "{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "dtype" },
    { "S29 no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "no dtype" },
    { "S29 no shape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "no shape" },
    { "S29 no offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, TW_E_FORMAT, "no data_offsets" },
    { "S29 nothing", "{\"a\":{}}", 0, TW_E_FORMAT, "no dtype" }, { "S29 null", "{\"a\":null}", 0, TW_E_FORMAT, "no object" }, { "S29 a list", "{\"a\":[]}", 0, TW_E_FORMAT, "no object" },
    { "S30 an unknown key that is too deep", "{\"a\":{\"x\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 0, TW_E_RANGE, "deep" },
    { "S31 number", "{\"__metadata__\":{\"a\":1}}", 0, TW_E_FORMAT, "no string" }, { "S31 list", "{\"__metadata__\":[]}", 0, TW_E_FORMAT, "no object" },
    { "S31 object", "{\"__metadata__\":{\"a\":{}}}", 0, TW_E_FORMAT, "no string" }, { "S31 key twice", "{\"__metadata__\":{\"a\":\"1\",\"b\":\"\",\"a\":\"2\"}}", 0, TW_E_FORMAT, "twice" },
    { "S32 empty name", "{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, TW_E_FORMAT, "name is empty" },
    { "S32 __metadata__ twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, TW_E_FORMAT, "twice" },
    { "trailing comma", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},}", 1, TW_E_FORMAT, "comma" }
};

static void headers(tw_context *tw) {
    static const char text[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[8,11]}}";
    unsigned char *file;
    size_t i, size;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) refuse_header(tw, bad[i].what, bad[i].header, bad[i].data, bad[i].code, bad[i].part);
    refuse(tw, "S1 empty", "", 0, TW_E_FORMAT, "empty");
    for (i = 1; i < 8; i++) refuse(tw, "S2 short", "\2\0\0\0\0\0\0", i, TW_E_FORMAT, "too short");
    refuse_length(tw, "S3 length 0", 0, "{}", "header is empty");
    refuse_length(tw, "S4 length", 3, "{}", "longer than the file");
    refuse_length(tw, "S5 2^63", UINT64_C(1) << 63, "{}", "longer than the file");
    refuse_length(tw, "S5 2^64-1", ~UINT64_C(0), "{}", "longer than the file");
    refuse_length(tw, "S5 8 + length wraps", ~UINT64_C(0) - 7, "{}", "longer than the file");
    refuse_length(tw, "S36 zip", UINT64_C(0x04034B50), "{}", "zip");
    refuse_length(tw, "S36 pickle", UINT64_C(0x2E7D0280), "{}", "pickle");
    refuse_length(tw, "an unfetched file of git", UINT64_C(0x206e6f6973726576), "https://git-lfs", "git");
    file = make(text, sizeof text - 1, 11, &size);
    for (i = 0; i < size; i++) {                               /* S34 */
        unsigned char *part = (unsigned char *)check_malloc(i);
        tw_weights *w;
        memcpy(part, file, i);
        w = tw_weights_from_memory(tw, part, i);
        CHECK(w == NULL && tw_error_code(tw) == TW_E_FORMAT, "S34: %lu of %lu bytes are taken for a whole file", (unsigned long)i, (unsigned long)size);
        tw_close_weights(w);
        tw_clear_error(tw);
        free(part);
    }
    free(file);
}

/* What is unusual and right. */
static void accepted(tw_context *tw) {
    static const char text[] = "{ \"__metadata__\":{\"format\":\"pt\",\"a\\u00e9\":\"\\\"\"},\t\"x.\xC3\xA9\\\"\":{\"data_offsets\":[3,11],\"shape\":[2,1],\"dtype\":\"F32\",\"more\":[1,{\"a\":null}]},"
                               "\"odd\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},\"scalar\":{\"dtype\":\"I16\",\"shape\":[],\"data_offsets\":[11,13]},"
                               "\"none\":{\"dtype\":\"F64\",\"shape\":[4,0,2],\"data_offsets\":[3,3]},\"none2\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[13,13]}} \n  ";
    int memory_or_file;
    size_t size;
    unsigned char *file = make(text, sizeof text - 1, 13, &size);
    put_file(FOLDER "good.safetensors", file, size);
    for (memory_or_file = 0; memory_or_file < 2; memory_or_file++) {
        tw_weights *w = memory_or_file ? tw_open_weights(tw, FOLDER "good.safetensors") : tw_weights_from_memory(tw, file, size);
        const tw_weight *x = tw_weights_find(w, "x.\xC3\xA9\""), *none = tw_weights_find(w, "none"), *scalar = tw_weights_find(w, "scalar");
        float value[2], wanted[2];
        CHECK(w && tw_weights_count(w) == 5, "accepted: %s", tw_error(tw));
        if (!w || !x || !none || !scalar) { CHECK(false, "a tensor is missing: %s", tw_error(tw)); tw_close_weights(w); continue; }
        memcpy(wanted, file + size - 13 + 3, sizeof wanted);
        CHECK(twi_convert_values(x->data, x->dtype, 2, value) && memcmp(value, wanted, sizeof value) == 0, "S33: data at an odd byte");
        CHECK(x->rank == 2 && x->shape[0] == 2 && x->shape[1] == 1 && x->bytes == 8 && x->offset == size - 10, "S33: its fields");
        CHECK(x->aligned == (((uintptr_t)x->data & 3) == 0), "S33: aligned");
        CHECK(x->writable == (memory_or_file == 1), "writable");
        if (x->writable) { unsigned char *p = (unsigned char *)(uintptr_t)x->data; p[0] ^= 1; }        /* private: the file stays as it is */
        CHECK(none->bytes == 0 && none->rank == 3 && scalar->rank == 0 && scalar->bytes == 2, "no elements, no dimensions");
        CHECK(strcmp(tw_weights_metadata(w, "format"), "pt") == 0 && strcmp(tw_weights_metadata(w, "a\xC3\xA9"), "\"") == 0 && !tw_weights_metadata(w, "x"), "metadata");
        CHECK(strcmp(tw_weights_at(w, 1)->name, "odd") == 0 && !tw_weights_at(w, 5) && !tw_weights_find(w, "od") && !tw_weights_find(NULL, "x") && !tw_weights_find(w, "__metadata__"), "look-ups");
        tw_close_weights(w);
    }
    {
        twi_bytes bytes;
        CHECK(twi_read_file(&tw->region, FOLDER "good.safetensors", &bytes) && bytes.size == size && memcmp(bytes.data, file, size) == 0, "the file was changed by writing to its memory");
        twi_release_file(&tw->region, &bytes);
    }
    free(file);
    file = make("{}", 2, 0, &size);
    { tw_weights *w = tw_weights_from_memory(tw, file, size); CHECK(w && tw_weights_count(w) == 0, "no tensors: %s", tw_error(tw)); tw_close_weights(w); }
    free(file);
}

/* Many names, long names, sparse files: right or refused, and soon. */
static void large(tw_context *tw) {
    size_t n = 100000, i, at = 0, size, found = 0;
    char *text = (char *)check_malloc(n * 80 + 1000), name[32];
    unsigned char *file;
    tw_weights *w;
    FILE *f;
    for (i = 0; i < n; i++) at += (size_t)sprintf(text + at, "%c\"%lu\":{\"dtype\":\"U8\",\"shape\":[100],\"data_offsets\":[0,100]}", i ? ',' : '{', (unsigned long)i);
    text[at++] = '}';
    file = make(text, at, 100, &size);
    refuse(tw, "S24 one range for all", file, size, TW_E_FORMAT, "shares");
    free(file);
    for (i = 0, at = 0; i < n; i++) {                          /* S25, and the last one first */
        unsigned long k = (unsigned long)(n - 1 - i);
        at += (size_t)sprintf(text + at, "%c\"%lu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%lu,%lu]}", i ? ',' : '{', k, k, k + 1);
    }
    text[at++] = '}';
    file = make(text, at, n, &size);
    w = tw_weights_from_memory(tw, file, size);
    CHECK(w != NULL, "S25: %s", tw_error(tw));
    for (i = 0; w && i < n; i++) {
        const tw_weight *weight;
        sprintf(name, "%lu", (unsigned long)i);
        weight = tw_weights_find(w, name);
        found += weight && *(const unsigned char *)weight->data == (unsigned char)(i + 1);
    }
    CHECK(found == n, "S25: %lu of %lu tensors are found", (unsigned long)found, (unsigned long)n);
    tw_close_weights(w);
    free(file);
    free(text);

    text = (char *)check_malloc(50000200);                     /* S31, S32: 50 MB of metadata, a name of 1 MB */
    at = (size_t)sprintf(text, "{\"__metadata__\":{\"a\":\"");
    memset(text + at, 'x', 50000000);
    at += 50000000;
    at += (size_t)sprintf(text + at, "\"}}");
    file = make(text, at, 0, &size);
    w = tw_weights_from_memory(tw, file, size);
    CHECK(w && strlen(tw_weights_metadata(w, "a")) == 50000000, "S31: %s", tw_error(tw));
    tw_close_weights(w);
    free(file);
    text[0] = '{';
    text[1] = '"';
    memset(text + 2, 'n', 1000000);
    at = 1000002;
    at += (size_t)sprintf(text + at, "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}");
    file = make(text, at, 1, &size);
    w = tw_weights_from_memory(tw, file, size);
    CHECK(w && strlen(tw_weights_at(w, 0)->name) == 1000000, "S32: %s", tw_error(tw));
    tw_close_weights(w);
    free(file);
    file = make(text, at, 2, &size);                           /* and in an error */
    w = tw_weights_from_memory(tw, file, size);
    CHECK(!w && strlen(tw_error(tw)) < 1024, "S32");
    tw_clear_error(tw);
    free(file);
    at = (size_t)sprintf(text, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1");
    for (i = 0; i < 999; i++) { text[at++] = ','; text[at++] = '1'; }
    at += (size_t)sprintf(text + at, "],\"data_offsets\":[0,1]}}");
    file = make(text, at, 1, &size);
    refuse(tw, "S16 1000 dimensions", file, size, TW_E_UNSUPPORTED, "more than 8");
    free(file);
    free(text);

    f = fopen(FOLDER "sparse.safetensors", "wb");              /* S6: 200 MB that are not on the disk */
    if (f && fwrite("\1\341\365\5\0\0\0\0{", 1, 9, f) == 9 && fseek(f, 200000000, SEEK_SET) == 0 && fputc('x', f) == 'x') {
        fclose(f);
        CHECK(!tw_open_weights(tw, FOLDER "sparse.safetensors") && tw_error_code(tw) == TW_E_FORMAT && strstr(tw_error(tw), "100 MB"), "S6: %s", tw_error(tw));
        tw_clear_error(tw);
    }
    remove(FOLDER "sparse.safetensors");
}

static const char one[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
static const char two[] = "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";

static void put_shard(const char *path, const char *header) {
    size_t size;
    unsigned char *file = make(header, strlen(header), 1, &size);
    put_file(path, file, size);
    free(file);
}

static void refuse_path(tw_context *tw, const char *path, tw_code code, const char *part) {
    long live = memory.live;
    tw_weights *w = tw_open_weights(tw, path);
    CHECK(w == NULL && tw_error_code(tw) == code && strstr(tw_error(tw), part), "%s: expected code %d and \"%s\", got %d: %s", path, (int)code, part, (int)tw_error_code(tw), tw_error(tw));
    tw_close_weights(w);
    tw_clear_error(tw);
    CHECK(memory.live == live, "%s: %ld blocks are left", path, memory.live - live);
}
static void refuse_index(tw_context *tw, const char *text, tw_code code, const char *part) {
    put_text(FOLDER "m/model.safetensors.index.json", text);
    refuse_path(tw, FOLDER "m/model.safetensors.index.json", code, part);
    refuse_path(tw, FOLDER "m", code, part);
}

static void indexes(tw_context *tw) {
    static const char *const outside[] = { "../x.safetensors", "a/../../x", "/etc/passwd", "C:\\\\x", "\\\\\\\\host\\\\x", "NUL", "nul.safetensors", "com1", "LPT9.x", "..", ".", "", "a/b", "a\\\\b", "x\\u0000", "x\\n" };
    char text[400];
    size_t i;
    tw_weights *w;
    twi_make_folders(tw, FOLDER "m");
    put_shard(FOLDER "m/1.safetensors", one);
    put_shard(FOLDER "m/2.safetensors", two);
    for (i = 0; i < sizeof outside / sizeof outside[0]; i++) {  /* P37 */
        sprintf(text, "{\"metadata\":{},\"weight_map\":{\"a\":\"%s\"}}", outside[i]);
        refuse_index(tw, text, TW_E_FORMAT, "not the name of a file");
    }
    refuse_index(tw, "{\"weight_map\":{\"a\":\"x%00\"}}", TW_E_MISSING, "no such file");
    refuse_index(tw, "{\"weight_map\":{\"a\":\"console.safetensors\"}}", TW_E_MISSING, "no such file");
    refuse_index(tw, "{\"weight_map\":{\"a\":\"none.safetensors\"}}", TW_E_MISSING, "none.safetensors: no such file (" FOLDER "m/none.safetensors)");
    refuse_index(tw, "{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}}", TW_E_MISSING, "\"c\" is not in 2.safetensors");       /* P39 */
    refuse_index(tw, "{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", TW_E_MISSING, "\"a\" is not in 2.safetensors");
    put_shard(FOLDER "m/3.safetensors", one);
    refuse_index(tw, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"3.safetensors\"}}", TW_E_FORMAT, "stands twice");
    refuse_index(tw, "{\"weight_map\":{\"a\":\"model.safetensors.index.json\"}}", TW_E_FORMAT, "safetensors");                                  /* P40 */
    refuse_index(tw, "{\"weight_map\":{\"a\":1}}", TW_E_FORMAT, "weight_map");
    refuse_index(tw, "{\"weight_map\":[\"1.safetensors\"]}", TW_E_FORMAT, "weight_map");
    refuse_index(tw, "{\"weight_map\":{}}", TW_E_FORMAT, "weight_map");
    refuse_index(tw, "{}", TW_E_FORMAT, "weight_map");
    refuse_index(tw, "[]", TW_E_FORMAT, "weight_map");
    refuse_index(tw, "{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", TW_E_FORMAT, "twice");
    refuse_index(tw, "{\"weight_map\":", TW_E_FORMAT, "too early");
    put_text(FOLDER "m/model.safetensors.index.json", "{\"metadata\":{\"total_size\":2},\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}");
    w = tw_open_weights(tw, FOLDER "m");
    CHECK(w && tw_weights_count(w) == 2 && tw_weights_find(w, "a") && strcmp(tw_weights_find(w, "b")->file, FOLDER "m/2.safetensors") == 0, "two shards: %s", tw_error(tw));
    tw_close_weights(w);
    put_shard(FOLDER "m/model.safetensors", two);               /* preferred to the index */
    w = tw_open_weights(tw, FOLDER "m/");
    CHECK(w && tw_weights_count(w) == 1 && !tw_weights_find(w, "a"), "one file: %s", tw_error(tw));
    tw_close_weights(w);
    remove(FOLDER "m/model.safetensors");
    remove(FOLDER "m/model.safetensors.index.json");
    refuse_path(tw, FOLDER "m", TW_E_MISSING, "neither model.safetensors nor");
    refuse_path(tw, FOLDER "none", TW_E_MISSING, "neither");
    refuse_path(tw, FOLDER "none.safetensors", TW_E_MISSING, "no such file");
    refuse_path(tw, NULL, TW_E_ARGUMENT, "NULL");
    {                                                           /* P41: a million files that are not there, and more than may be open at once */
        size_t n = 200000, at;
        char *map = (char *)check_malloc(n * 40), path[64], header[100];
        at = (size_t)sprintf(map, "{\"weight_map\":{");
        for (i = 0; i < n; i++) at += (size_t)sprintf(map + at, "%s\"%lu\":\"s%lu\"", i ? "," : "", (unsigned long)i, (unsigned long)i);
        sprintf(map + at, "}}");
        refuse_index(tw, map, TW_E_MISSING, "s0: no such file");
        n = 1500;
        at = (size_t)sprintf(map, "{\"weight_map\":{");
        for (i = 0; i < n; i++) {
            at += (size_t)sprintf(map + at, "%s\"%lu\":\"s%lu\"", i ? "," : "", (unsigned long)i, (unsigned long)i);
            sprintf(path, FOLDER "m/s%lu", (unsigned long)i);
            sprintf(header, "{\"%lu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", (unsigned long)i);
            put_shard(path, header);
        }
        sprintf(map + at, "}}");
        put_text(FOLDER "m/model.safetensors.index.json", map);
        w = tw_open_weights(tw, FOLDER "m");
        CHECK(w && tw_weights_count(w) == n, "P41: %s", tw_error(tw));
        tw_close_weights(w);
        for (i = 0; i < n; i++) { sprintf(path, FOLDER "m/s%lu", (unsigned long)i); remove(path); }
        remove(FOLDER "m/model.safetensors.index.json");
        free(map);
    }
    remove(FOLDER "m/3.safetensors");
}

#ifndef _WIN32
/* P38: links are followed, as caches of models are made of them; what is no regular file is refused. */
static void links(tw_context *tw) {
    static const char *const names[] = { "link.safetensors", "hard.safetensors", "far/1.safetensors", "pipe.safetensors", "folder.safetensors", "dangling.safetensors", "circle.safetensors" };
    char path[100];
    size_t i;
    CHECK(symlink("m/1.safetensors", FOLDER "link.safetensors") == 0 && link(FOLDER "m/1.safetensors", FOLDER "hard.safetensors") == 0 && symlink("m", FOLDER "far") == 0 &&
          mkfifo(FOLDER "pipe.safetensors", 0600) == 0 && mkdir(FOLDER "folder.safetensors", 0700) == 0 && symlink("nowhere", FOLDER "dangling.safetensors") == 0 &&
          symlink("circle.safetensors", FOLDER "circle.safetensors") == 0, "links cannot be made here");
    for (i = 0; i < 3; i++) {
        tw_weights *w;
        sprintf(path, FOLDER "%s", names[i]);
        w = tw_open_weights(tw, path);
        CHECK(w && tw_weights_find(w, "a"), "%s: %s", path, tw_error(tw));
        tw_close_weights(w);
        tw_clear_error(tw);
    }
    refuse_path(tw, FOLDER "pipe.safetensors", TW_E_FILE, "device or a pipe");
    refuse_path(tw, FOLDER "folder.safetensors", TW_E_FILE, "folder, not a file");
    refuse_path(tw, FOLDER "dangling.safetensors", TW_E_MISSING, "no such file");
    refuse_path(tw, FOLDER "circle.safetensors", TW_E_FILE, "circle");
    refuse_path(tw, FOLDER "m/1.safetensors/x.safetensors", TW_E_MISSING, "no such file");
    CHECK(!tw_json_load(tw, "/dev/zero") && tw_error_code(tw) == TW_E_FILE && strstr(tw_error(tw), "device"), "/dev/zero: %s", tw_error(tw));
    tw_clear_error(tw);
    for (i = 0; i < sizeof names / sizeof names[0]; i++) { sprintf(path, FOLDER "%s", names[i]); if (i != 2) remove(path); }
    remove(FOLDER "far");
}

static int files_in(const char *path) {
    DIR *d = opendir(path);
    int n = 0;
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}
#endif

static bool write_other(void *user, size_t index, tw_writer writer) {
    static const char bytes[100] = {0};
    int mode = *(int *)user;
    (void)index;
    return mode == 0 ? writer.write(writer.user, bytes, 4) && writer.write(writer.user, bytes, 4) : mode == 1 ? writer.write(writer.user, bytes, 7)
         : mode == 2 ? writer.write(writer.user, bytes, 9) : false;
}

static void saving(tw_context *tw) {
    /* what the reference implementation writes for these tensors */
    static const char reference[] = "{\"__metadata__\":{\"format\":\"pt\"},\"z\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]},"
                                    "\"b\\\"\xC3\xA9\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[16,20]},\"h\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[20,24]},"
                                    "\"c\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[24,27]},\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[27,27]}}";
    static const unsigned char bytes[32] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28 };
    tw_weight list[6];
    tw_json *metadata = tw_json_object(tw);
    tw_weights *w;
    twi_bytes file;
    size_t i, length;
    int mode;
    memset(list, 0, sizeof list);
    list[0].name = "c"; list[0].dtype = TW_U8; list[0].rank = 1; list[0].shape[0] = 3; list[0].data = bytes;
    list[1].name = "b\"\xC3\xA9"; list[1].dtype = TW_F32; list[1].data = bytes + 1;
    list[2].name = "z"; list[2].dtype = TW_I64; list[2].rank = 1; list[2].shape[0] = 1; list[2].data = bytes + 2;
    list[3].name = "h"; list[3].dtype = TW_BF16; list[3].rank = 2; list[3].shape[0] = 1; list[3].shape[1] = 2; list[3].data = bytes + 3;
    list[4].name = "a"; list[4].dtype = TW_F32; list[4].rank = 1; list[4].shape[0] = 2; list[4].data = bytes + 4;
    list[5].name = "e"; list[5].dtype = TW_U8; list[5].rank = 1;
    CHECK(tw_save_weights(tw, FOLDER "s.safetensors", list, 6, NULL), "saving: %s", tw_error(tw));
    CHECK(twi_read_file(&tw->region, FOLDER "s.safetensors", &file), "%s", tw_error(tw));
    length = file.size ? file.data[0] + 256u * file.data[1] : 0;
    CHECK(length % 8 == 0 && length >= sizeof reference - 1 && file.size == 8 + length + 27, "%lu bytes of header, %lu of all", (unsigned long)length, (unsigned long)file.size);
    CHECK(memcmp(file.data + 8, reference, sizeof reference - 1) == 0 && file.data[8 + length - 1] == (length == sizeof reference - 1 ? '}' : ' '), "header: %.*s", (int)length, (const char *)file.data + 8);
    CHECK(memcmp(file.data + 8 + length, bytes + 2, 8) == 0 && memcmp(file.data + 8 + length + 24, bytes, 3) == 0, "data");
    twi_release_file(&tw->region, &file);
    w = tw_open_weights(tw, FOLDER "s.safetensors");
    for (i = 0; i < 6; i++) {
        const tw_weight *x = tw_weights_find(w, list[i].name);
        CHECK(x && x->dtype == list[i].dtype && x->rank == list[i].rank && memcmp(x->shape, list[i].shape, sizeof x->shape) == 0 && x->aligned, "%s comes back another", list[i].name);
        CHECK(x && (x->bytes == 0 || memcmp(x->data, list[i].data, x->bytes) == 0), "%s: other numbers", list[i].name);
    }
    CHECK(w && strcmp(tw_weights_metadata(w, "format"), "pt") == 0, "metadata");
    tw_json_set_string(metadata, "step", "3\n");
    CHECK(tw_save_weights(tw, FOLDER "s.safetensors", list, 2, metadata), "over the old file, while that is open: %s", tw_error(tw));
    CHECK(memcmp(tw_weights_find(w, "a")->data, list[4].data, 8) == 0, "the old one is still there for those who opened it");
    tw_close_weights(w);
    w = tw_open_weights(tw, FOLDER "s.safetensors");
    CHECK(w && tw_weights_count(w) == 2 && strcmp(tw_weights_metadata(w, "step"), "3\n") == 0, "%s", tw_error(tw));
    tw_close_weights(w);
    CHECK(tw_save_weights(tw, FOLDER "0.safetensors", NULL, 0, NULL), "no tensors: %s", tw_error(tw));
    w = tw_open_weights(tw, FOLDER "0.safetensors");
    CHECK(w && tw_weights_count(w) == 0, "no tensors: %s", tw_error(tw));
    tw_close_weights(w);
    remove(FOLDER "0.safetensors");

    tw_json_set_int(metadata, "n", 3);
    CHECK(!tw_save_weights(tw, FOLDER "x.safetensors", list, 1, metadata) && tw_error_code(tw) == TW_E_ARGUMENT, "metadata of a number: %s", tw_error(tw));
    tw_clear_error(tw);
    tw_json_free(metadata);
    for (mode = 0; mode < 4; mode++) {
        bool ok = tw_save_weights_from(tw, FOLDER "x.safetensors", list + 4, 1, NULL, write_other, &mode);
        CHECK(ok == (mode == 0) && tw_error_code(tw) == (mode == 0 ? TW_OK : mode == 3 ? TW_E_STOPPED : TW_E_ARGUMENT), "source %d: %s", mode, tw_error(tw));
        CHECK(twi_file_exists(tw, FOLDER "x.safetensors") == ok, "source %d", mode);
        tw_clear_error(tw);
        remove(FOLDER "x.safetensors");
    }
    for (i = 0; i < 6; i++) {
        tw_weight spoiled[3];
        memcpy(spoiled, list, sizeof spoiled);
        if (i == 0) spoiled[1].name = "c";
        if (i == 1) spoiled[1].name = "";
        if (i == 2) spoiled[1].name = "\xFF";
        if (i == 3) spoiled[1].name = "__metadata__";
        if (i == 4) { spoiled[1].rank = 2; spoiled[1].shape[0] = spoiled[1].shape[1] = INT64_MAX; }
        if (i == 5) spoiled[1].shape[spoiled[1].rank++] = -1;
        CHECK(!tw_save_weights(tw, FOLDER "x.safetensors", spoiled, 3, NULL) && tw_error_code(tw) == TW_E_ARGUMENT && !twi_file_exists(tw, FOLDER "x.safetensors"), "spoiled %lu: %s", (unsigned long)i, tw_error(tw));
        tw_clear_error(tw);
    }
    CHECK(!tw_save_weights(tw, FOLDER "none/x.safetensors", list, 3, NULL) && tw_error_code(tw) == TW_E_FILE && strstr(tw_error(tw), "does not exist"), "no folder: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(!tw_save_weights(tw, FOLDER "m", list, 3, NULL) && tw_error_code(tw) == TW_E_FILE && strstr(tw_error(tw), "folder"), "a folder there: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(twi_make_folders(tw, FOLDER "p/q//r/") && twi_make_folders(tw, FOLDER "p/q"), "folders: %s", tw_error(tw));
    CHECK(!twi_make_folders(tw, FOLDER "s.safetensors/x") && tw_error_code(tw) == TW_E_FILE, "a file where a folder should be: %s", tw_error(tw));
    tw_clear_error(tw);
    remove(FOLDER "p/q/r"); remove(FOLDER "p/q"); remove(FOLDER "p");
#ifndef _WIN32
    {                                                            /* a disk that takes no more: a limit of 100 kB for a file of 200 kB */
        struct rlimit old, limit;
        static char zeros[200000];
        int before = files_in(FOLDER);
        tw_weight big = list[0];
        big.shape[0] = sizeof zeros;
        big.data = zeros;
        put_text(FOLDER "x.safetensors", "old");
        signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &old);
        limit = old;
        limit.rlim_cur = 100000;
        if (setrlimit(RLIMIT_FSIZE, &limit) == 0) {
            bool ok = tw_save_weights(tw, FOLDER "x.safetensors", &big, 1, NULL);
            setrlimit(RLIMIT_FSIZE, &old);
            CHECK(!ok && tw_error_code(tw) == TW_E_FILE && strstr(tw_error(tw), FOLDER "x.safetensors"), "full disk: %s", tw_error(tw));
            tw_clear_error(tw);
            CHECK(twi_read_file(&tw->region, FOLDER "x.safetensors", &file) && file.size == 3, "full disk: the old file is gone");
            twi_release_file(&tw->region, &file);
            CHECK(files_in(FOLDER) == before + 1, "full disk: something half-written is left");
        }
        remove(FOLDER "x.safetensors");
        if (geteuid() != 0) {                                    /* to root every folder is writable */
            mkdir(FOLDER "ro", 0500);
            CHECK(!tw_save_weights(tw, FOLDER "ro/x.safetensors", list, 3, NULL) && tw_error_code(tw) == TW_E_FILE && strstr(tw_error(tw), "no permission"), "read-only: %s", tw_error(tw));
            tw_clear_error(tw);
            remove(FOLDER "ro");
        }
    }
#endif
}

/* Every dtype becomes f32, at an odd address too. */
static void conversions(void) {
    unsigned char room[80];
    float out[8];
    int shift;
    for (shift = 0; shift < 2; shift++) {
        unsigned char *p = room + shift;
#define CONVERTS(dtype, type, ...) \
        { static const type in[] = { __VA_ARGS__ }; size_t n = sizeof in / sizeof in[0], k; memcpy(p, in, sizeof in); \
          CHECK(twi_convert_values(p, dtype, (int64_t)n, out), "%s", tw_dtype_name(dtype)); \
          for (k = 0; k < n; k++) CHECK(out[k] == (float)in[k], "%s: %g", tw_dtype_name(dtype), (double)out[k]); }
#define CODES(dtype, type, codes, ...) \
        { static const type in[] = codes; static const float wanted[] = { __VA_ARGS__ }; size_t n = sizeof in / sizeof in[0], k; memcpy(p, in, sizeof in); \
          CHECK(twi_convert_values(p, dtype, (int64_t)n, out), "%s", tw_dtype_name(dtype)); \
          for (k = 0; k < n; k++) CHECK(out[k] == wanted[k], "%s: %g, not %g", tw_dtype_name(dtype), (double)out[k], (double)wanted[k]); }
#define SET(...) { __VA_ARGS__ }
        CONVERTS(TW_F32, float, 1.5f, -0.25f, 1e30f)
        CONVERTS(TW_F64, double, 1.0 / 3, -1e-40, 2.5)
        CONVERTS(TW_I64, int64_t, -5, INT64_MAX, 3)
        CONVERTS(TW_I32, int32_t, -5, INT32_MAX, INT32_MIN)
        CONVERTS(TW_I16, int16_t, -5, 32767)
        CONVERTS(TW_I8, int8_t, -128, 127)
        CONVERTS(TW_U8, uint8_t, 0, 255)
        CONVERTS(TW_U16, uint16_t, 0, 65535)
        CONVERTS(TW_U32, uint32_t, 0, UINT32_MAX)
        CONVERTS(TW_U64, uint64_t, 0, UINT64_MAX)
        CODES(TW_BOOL, uint8_t, SET(0, 1, 2), 0, 1, 1)
        CODES(TW_F16, uint16_t, SET(0x3C00, 0xC000, 0x0001, 0x7BFF), 1, -2, 5.9604644775390625e-8f, 65504)
        CODES(TW_BF16, uint16_t, SET(0x3F80, 0xC000, 0x0001), 1, -2, 9.18354961579912115e-41f)
        CODES(TW_F8_E4M3, uint8_t, SET(0x38, 0xC0, 0x01, 0x7E, 0x00, 0x08, 0x87), 1, -2, 0.001953125f, 448, 0, 0.015625f, -0.013671875f)
        CODES(TW_F8_E5M2, uint8_t, SET(0x3C, 0xC0, 0x01, 0x7B), 1, -2, 1.52587890625e-5f, 57344)
        room[0] = room[1] = 0x7F;
        CHECK(twi_convert_values(p, TW_F8_E4M3, 1, out) && out[0] != out[0], "F8_E4M3: NaN");
    }
    {
        static uint16_t many[3000];
        static float wide[3000];
        size_t i, wrong = 0;
        for (i = 0; i < 3000; i++) many[i] = (uint16_t)(i * 20);
        memmove((unsigned char *)many + 1, many, sizeof many - 1);
        CHECK(twi_convert_values((unsigned char *)many + 1, TW_F16, 2999, wide), "F16");
        for (i = 0; i < 2999; i++) if ((i * 20 & 0x7C00) != 0x7C00) wrong += wide[i] != twb_f16_to_f32((uint16_t)(i * 20));
        CHECK(wrong == 0, "F16 at an odd address: %lu of 2999 are wrong", (unsigned long)wrong);
    }
    CHECK(!twi_convert_values(room, TW_DTYPE_COUNT, 1, out), "no dtype");
}

/* The host's own files, and files in memory. */
typedef struct pack { const char *name; const unsigned char *bytes; int64_t size, readable; int open; } pack;
static void *pack_open(void *user, const char *path, int64_t *size) {
    pack *p = (pack *)user;
    if (strcmp(path, p->name) != 0) return NULL;
    p->open++;
    *size = p->size;
    return p;
}
static int64_t pack_read(void *user, void *file, int64_t offset, void *buffer, int64_t bytes) {
    pack *p = (pack *)file;
    (void)user;
    if (offset + bytes > p->readable) bytes = p->readable - offset;
    if (bytes > 10) bytes = 10;
    if (bytes > 0) memcpy(buffer, p->bytes + offset, (size_t)bytes);
    return bytes;
}
static void pack_close(void *user, void *file) { (void)user; ((pack *)file)->open--; }

static void hosts(void) {
    counted c;
    pack p;
    tw_desc d;
    tw_context *tw;
    tw_weights *w;
    twi_blob blob;
    twi_blobs blobs;
    size_t size;
    unsigned char *file = make(one, sizeof one - 1, 1, &size);
    memset(&c, 0, sizeof c);
    d = counted_desc(&c);
    d.read.open = pack_open; d.read.read = pack_read; d.read.close = pack_close; d.read.user = &p;
    p.name = "pack/model.safetensors"; p.bytes = file; p.size = p.readable = (int64_t)size; p.open = 0;
    tw = tw_create(&d);
    w = tw_open_weights(tw, "pack");
    CHECK(w && tw_weights_find(w, "a") && *(const unsigned char *)tw_weights_find(w, "a")->data == 1 && tw_weights_find(w, "a")->writable, "host's files: %s", tw_error(tw));
    tw_close_weights(w);
    CHECK(!tw_open_weights(tw, "pack2") && tw_error_code(tw) == TW_E_MISSING, "host's files: %s", tw_error(tw));
    tw_clear_error(tw);
    p.readable = 30;
    CHECK(!tw_open_weights(tw, "pack") && tw_error_code(tw) == TW_E_FILE && strstr(tw_error(tw), "byte 30"), "host's broken file: %s", tw_error(tw));
    tw_clear_error(tw);
    p.size = -3;
    CHECK(!tw_open_weights(tw, "pack") && tw_error_code(tw) == TW_E_FILE, "host's file of a negative size: %s", tw_error(tw));
    tw_clear_error(tw);
    p.size = INT64_MAX;
    CHECK(!tw_open_weights(tw, "pack") && (tw_error_code(tw) == TW_E_FILE || tw_error_code(tw) == TW_E_MEMORY), "host's endless file: %s", tw_error(tw));
    tw_clear_error(tw);
    CHECK(p.open == 0, "the host's file stays open");
    blob.name = "model.safetensors"; blob.data = file; blob.size = size;
    blobs.list = &blob; blobs.count = 1;
    tw->blobs = &blobs;
    w = tw_open_weights(tw, "");
    CHECK(w && tw_weights_find(w, "a") && !tw_weights_find(w, "a")->writable, "files in memory: %s", tw_error(tw));
    tw_close_weights(w);
    w = tw_open_weights(tw, "any/folder");
    CHECK(w != NULL, "files in memory: %s", tw_error(tw));
    tw_close_weights(w);
    CHECK(!tw_open_weights(tw, "xmodel.safetensors") && tw_error_code(tw) == TW_E_MISSING, "files in memory: %s", tw_error(tw));
    tw->blobs = NULL;
    tw_destroy(tw);
    CHECK(c.live == 0, "%ld blocks are left", c.live);
    free(file);
}

/* Opens and saves once; false when something failed. */
static bool work(tw_context *tw) {
    tw_weights *w = tw_open_weights(tw, FOLDER "m");
    tw_weight list[2];
    bool ok = w && tw_weights_count(w) == 2 && tw_weights_find(w, "b");
    if (ok) {
        list[0] = *tw_weights_at(w, 0);
        list[1] = *tw_weights_at(w, 1);
        ok = tw_save_weights(tw, FOLDER "again.safetensors", list, 2, NULL);
    }
    tw_close_weights(w);
    w = ok ? tw_open_weights(tw, FOLDER "again.safetensors") : NULL;      /* left open: tw_destroy closes it */
    return w && twi_make_folders(tw, FOLDER "m/n");
}

static void without_memory(void) {
    counted c;
    long n;
    bool done = false;
    put_text(FOLDER "m/model.safetensors.index.json", "{\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}");
    for (n = 1; !done && n < 2000; n++) {
        tw_context *tw;
        memset(&c, 0, sizeof c);
        c.fail_at = n;
        tw = counted_context(&c);
        if (tw) {
            done = work(tw);
            CHECK(done != tw_failed(tw) && (done || tw_error_code(tw) == TW_E_MEMORY), "call %ld: %s", n, tw_error(tw));
            tw_destroy(tw);
        }
        CHECK(c.live == 0 && c.bytes == 0, "call %ld: %ld blocks are lost", n, c.live);
#ifndef _WIN32
        CHECK(files_in(FOLDER) <= 4 + 3, "call %ld: something half-written is left", n);
#endif
    }
    CHECK(done, "it never came through");
    remove(FOLDER "m/n");
    remove(FOLDER "m/model.safetensors.index.json");
    remove(FOLDER "again.safetensors");
}

int main(void) {
    tw_context *tw = counted_context(&memory);
    if (!twi_make_folders(tw, "test-files.tmp")) { printf("%s\n", tw_error(tw)); return 2; }
    headers(tw);
    accepted(tw);
    large(tw);
    indexes(tw);
#ifndef _WIN32
    links(tw);
#endif
    saving(tw);
    conversions();
    hosts();
    remove(FOLDER "bad.safetensors");
    CHECK(!tw_failed(tw), "an error is left: %s", tw_error(tw));
    CHECK(memory.live == 1, "%ld blocks live beside the context", memory.live - 1);
    tw_destroy(tw);
    CHECK(memory.live == 0 && memory.bytes == 0, "%ld blocks are left at the end", memory.live);
    without_memory();
    remove(FOLDER "good.safetensors");
    remove(FOLDER "s.safetensors");
    remove(FOLDER "m/1.safetensors");
    remove(FOLDER "m/2.safetensors");
    remove(FOLDER "m");
    CHECK(remove("test-files.tmp") == 0, "something is left in test-files.tmp");
    return check_done();
}
