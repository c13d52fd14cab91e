/* pytorch.c - PyTorch checkpoints: what is right in every form, and files that lie.
   The numbers Z51 ... Z67, K68 ... K78 and T79 ... T86 are those of the kinds of bad input that loaders have fallen for. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "golden.h"
#include "counted.h"

#define PATH "test-pytorch.tmp"
static counted memory;

/* -- a writer of zip files that can lie ------------------------------------------------------------------------ */

typedef struct bytes { unsigned char *p; size_t n, room; } bytes;
static void put(bytes *b, const void *p, size_t n) {
    if (b->n + n > b->room) {
        unsigned char *grown = (unsigned char *)check_malloc(b->room = 2 * (b->n + n));
        if (b->n) memcpy(grown, b->p, b->n);
        free(b->p);
        b->p = grown;
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}
static void number(bytes *b, uint64_t x, size_t n) {
    unsigned char p[8];
    size_t i;
    for (i = 0; i < n; i++) p[i] = (unsigned char)(x >> (8 * i));
    put(b, p, n);
}

typedef struct entry { const char *name; const void *data; size_t size; } entry;
typedef enum lie {
    HONEST, DESCRIPTOR, LYING_DESCRIPTOR, ZIP64, UNALIGNED, COMMENT,                                           /* right, all but one */
    NO_END, TWO_ENDS, JUNK_BEFORE, COUNT_0, COUNT_MORE, COUNT_65535, DIRECTORY_FAR, DIRECTORY_LONG, DIRECTORY_WRAPS, LOCATOR_NOWHERE, LOCATOR_WRAPS, LARGE_OFFSET, LARGE_CUT,
    ALL_ONES, FLAG_1, FLAG_20, FLAG_40, LOCAL_NAME, LOCAL_CRC, LOCAL_SIZE, PICKLE_CRC, NO_CRC, STORAGE_CRC, DEFLATED, DEFLATED_LOCALLY, OVERLAP, TWICE, PARTS, SIZES, BEYOND, LOCAL_FAR, EXTRA_CUT, ENGULF
} lie;

static uint32_t local_crc(const entry *e, lie what, size_t i) {
    uint32_t crc = twi_crc((const unsigned char *)e->data, e->size);
    return what == NO_CRC ? 0 : (what == PICKLE_CRC && i == 0) || (what == STORAGE_CRC && i == 1) ? crc ^ 1 : crc;
}
/* `lied` is the entry with the lie; -1 lies in all of them. */
static bytes zip_of(const entry *list, size_t count, lie what, size_t lied) {
    bytes b = { NULL, 0, 0 };
    size_t offset[16], i, directory, large, n;
    if (what == JUNK_BEFORE) put(&b, "PK\3\4junk", 8);
    for (i = 0; i < count; i++) {
        const entry *e = &list[i];
        bool here = i == lied, described = what == DESCRIPTOR || what == LYING_DESCRIPTOR;
        size_t length = strlen(e->name), pad = what == UNALIGNED ? 1 : (64 - (b.n + 30 + length) % 64) % 64;
        uint32_t crc = local_crc(e, what, i), size = described ? 0 : (uint32_t)e->size + (here && what == ENGULF ? 100 : 0);
        offset[i] = b.n;
        put(&b, "PK\3\4\24\0", 6);
        number(&b, described ? 8 : 0, 2);
        number(&b, here && what == DEFLATED_LOCALLY ? 8 : 0, 2);
        number(&b, 0, 4);
        number(&b, described ? 0 : here && what == LOCAL_CRC ? crc ^ 1 : crc, 4);
        number(&b, here && what == LOCAL_SIZE ? size + 1 : size, 4);
        number(&b, size, 4);
        number(&b, length, 2);
        number(&b, pad, 2);
        put(&b, e->name, length);
        if (here && what == LOCAL_NAME) b.p[b.n - 1] ^= 1;
        for (n = 0; n < pad; n++) put(&b, "Z", 1);
        put(&b, e->data, e->size);
        if (described) { put(&b, "PK\7\x8", 4); number(&b, here && what == LYING_DESCRIPTOR ? crc + 1 : crc, 4); number(&b, e->size, 4); number(&b, e->size, 4); }
    }
    directory = b.n;
    for (i = 0; i < count; i++) {
        const entry *e = &list[i];
        bool here = i == lied, large_size = what == ZIP64 || (here && (what == LARGE_OFFSET || what == LARGE_CUT));
        uint64_t at = here && what == OVERLAP ? offset[0] : here && what == BEYOND ? directory : here && what == LOCAL_FAR ? 0xFFFFFFF0u : offset[i];
        uint32_t size = (uint32_t)e->size + (here && what == ENGULF ? 100 : 0);
        put(&b, "PK\1\2\24\0\24\0", 8);
        number(&b, (what == DESCRIPTOR || what == LYING_DESCRIPTOR ? 8u : 0u) | (here && what == FLAG_1 ? 1u : 0u) | (here && what == FLAG_20 ? 0x20u : 0u) | (here && what == FLAG_40 ? 0x40u : 0u), 2);
        number(&b, here && what == DEFLATED ? 8 : 0, 2);
        number(&b, 0, 4);
        number(&b, local_crc(e, what, i), 4);
        number(&b, large_size || (here && what == ALL_ONES) ? 0xFFFFFFFFu : here && what == SIZES ? size - 1 : here && what == DEFLATED ? 3 : size, 4);
        number(&b, large_size ? 0xFFFFFFFFu : here && what == DEFLATED ? 4000000000u : size, 4);
        number(&b, strlen(e->name), 2);
        number(&b, large_size ? (what == LARGE_CUT ? 12 : 28) : here && what == EXTRA_CUT ? 6 : 0, 2);
        number(&b, 0, 2);
        number(&b, here && what == PARTS ? 1 : 0, 2);
        number(&b, 0, 6);
        number(&b, large_size ? 0xFFFFFFFFu : at, 4);
        put(&b, e->name, strlen(e->name));
        if (large_size) {
            number(&b, 1, 2);
            number(&b, what == LARGE_CUT ? 8 : 24, 2);
            number(&b, size, 8);
            if (what != LARGE_CUT) { number(&b, size, 8); number(&b, what == LARGE_OFFSET ? ~UINT64_C(0) - 40 : at, 8); }
        } else if (here && what == EXTRA_CUT) put(&b, "\1\0\60\0ab", 6);
    }
    large = b.n;
    if (what == ZIP64 || what == LOCATOR_NOWHERE || what == LOCATOR_WRAPS) {
        put(&b, "PK\6\6", 4);
        number(&b, 44, 8);
        put(&b, "\24\0\24\0", 4);
        number(&b, 0, 8);
        number(&b, count, 8);
        number(&b, count, 8);
        number(&b, large - directory, 8);
        number(&b, directory, 8);
        put(&b, "PK\6\7", 4);
        number(&b, 0, 4);
        number(&b, what == LOCATOR_NOWHERE ? large - 1 : what == LOCATOR_WRAPS ? ~UINT64_C(0) - 10 : large, 8);
        number(&b, 1, 4);
    }
    for (n = 0; n < (what == TWO_ENDS ? 2u : 1u) && what != NO_END; n++) {
        uint64_t first = what == DIRECTORY_FAR ? 0x7FFFFFFF : what == DIRECTORY_WRAPS ? 0xFFFFFFF0u : directory, length = large - directory;
        size_t all = what == COUNT_0 ? 0 : what == COUNT_MORE ? count + 1 : what == COUNT_65535 ? 65535 : count;
        put(&b, "PK\5\6", 4);
        number(&b, 0, 4);
        number(&b, all, 2);
        number(&b, all, 2);
        number(&b, what == ZIP64 ? 0xFFFFFFFFu : what == DIRECTORY_LONG ? length + 1 : what == DIRECTORY_WRAPS ? 0xFFFFFFFFu : length, 4);
        number(&b, what == ZIP64 ? 0xFFFFFFFFu : first, 4);
        number(&b, what == COMMENT ? 65535 : 0, 2);
    }
    if (what == COMMENT) for (n = 0; n < 65535; n++) put(&b, n % 100 == 0 ? "PK\5\6" + n / 100 % 4 : "x", 1);
    return b;
}

/* -- opening what must be right or wrong ---------------------------------------------------------------------------- */

static void put_file(const void *p, size_t n) {
    FILE *f = fopen(PATH, "wb");
    if (!f || fwrite(p, 1, n, f) != n) { printf(PATH " cannot be written\n"); exit(2); }
    fclose(f);
}
static tw_weights *open_bytes(tw_context *tw, const void *p, size_t n, bool file) {
    if (!file) return tw_weights_from_memory(tw, p, n);
    put_file(p, n);
    return tw_open_weights(tw, PATH);
}
static void refuse(tw_context *tw, const char *what, const void *p, size_t n, tw_code code, const char *part) {
    unsigned char *exact = (unsigned char *)check_malloc(n);          /* a sanitizer sees every byte too many */
    long live = memory.live;
    int file;
    memcpy(exact, p, n);
    memory.peak = memory.bytes;
    for (file = 0; file < 2; file++) {
        tw_weights *w = open_bytes(tw, exact, n, file);
        CHECK(w == NULL && tw_error_code(tw) == code && strstr(tw_error(tw), part) && strstr(tw_error(tw), file ? "(" PATH : "(memory"), "%s: expected code %d and \"%s\", got %d: %s",
              what, (int)code, part, (int)tw_error_code(tw), tw_error(tw));
        tw_close_weights(w);
        tw_clear_error(tw);
        CHECK(memory.live == live, "%s: %ld blocks are left", what, memory.live - live);
    }
    CHECK(memory.peak - memory.bytes < ((size_t)24 << 20) + 3 * n, "%s: it took %lu bytes to refuse %lu", what, (unsigned long)(memory.peak - memory.bytes), (unsigned long)n);
    free(exact);
}
/* Whether it opens or not: nothing breaks, and what opens can be read. */
static bool survive(tw_context *tw, const void *p, size_t n) {
    unsigned char *exact = (unsigned char *)check_malloc(n);
    tw_weights *w;
    size_t i, k;
    volatile unsigned char sum = 0;
    memcpy(exact, p, n);
    w = tw_weights_from_memory(tw, exact, n);
    for (i = 0; i < tw_weights_count(w); i++)
        for (k = 0; k < tw_weights_at(w, i)->bytes; k++) sum = (unsigned char)(sum + ((const unsigned char *)tw_weights_at(w, i)->data)[k]);
    CHECK((w != NULL) == !tw_failed(tw), "an error with a result, or none without");
    tw_close_weights(w);
    tw_clear_error(tw);
    free(exact);
    return w != NULL;
}

/* -- pickles -------------------------------------------------------------------------------------------------------------- */

#define BEGIN    "\x80\2"
#define V2       "ctorch._utils\n_rebuild_tensor_v2\n"
#define ID(key, count) "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" key "X\3\0\0\0cpu" count "tQ"
#define TAIL     "\x89" "ccollections\nOrderedDict\n)RtR"
#define NAME(c)  "X\1\0\0\0" c
#define TENSOR(offset, sizes, strides) V2 "(" ID("0", "K\6") offset sizes strides TAIL                                  /* of a storage "0" with 6 floats */
#define GOOD     TENSOR("K\0", "K\2K\3\x86", "K\3K\1\x86")
#define ALONE(tensor) BEGIN "}" NAME("a") tensor "s."
#define BIG(bytes) "\x8a\x8" bytes

static const float six[6] = { 0, 1, 2, 3, 4, 5 };

static bytes checkpoint(const char *pickle, size_t size, lie what, size_t lied) {
    entry list[3];
    list[0].name = "root/data.pkl"; list[0].data = pickle; list[0].size = size;
    list[1].name = "root/data/0"; list[1].data = six; list[1].size = sizeof six;
    list[2].name = what == TWICE ? "root/data/0" : "root/byteorder"; list[2].data = "little"; list[2].size = 6;
    return zip_of(list, 3, what, lied);
}
static void refuse_pickle(tw_context *tw, const char *what, const char *pickle, size_t size, tw_code code, const char *part) {
    bytes b = checkpoint(pickle, size, HONEST, 0);
    refuse(tw, what, b.p, b.n, code, part);
    free(b.p);
}

#define P(text) text, sizeof text - 1
static const struct { const char *what, *pickle; size_t size; tw_code code; const char *part; } bad[] = {
    { "K68 os.system", P(BEGIN "cos\nsystem\nX\4\0\0\0true\x85R."), TW_E_UNSUPPORTED, "os.system" },
    { "K68 posix.system", P(BEGIN "cposix\nsystem\nX\4\0\0\0true\x85R."), TW_E_UNSUPPORTED, "posix.system" },
    { "K68 builtins.eval", P(BEGIN "cbuiltins\neval\nX\1\0\0\0001\x85R."), TW_E_UNSUPPORTED, "builtins.eval" },
    { "K68 a name of pieces from the memo", P("\x80\4\x8c\2osq\0\x8c\6systemq\1" "h\0h\1\x93."), TW_E_UNSUPPORTED, "os.system" },
    { "K68 INST", P(BEGIN "(X\1\0\0\0aios\nsystem\n."), TW_E_UNSUPPORTED, "instruction 0x69" },
    { "K68 OBJ", P(BEGIN "(cos\nsystem\no."), TW_E_UNSUPPORTED, "os.system" },
    { "K68 OBJ of a name that is known", P(BEGIN "(ctorch\nSize\no."), TW_E_UNSUPPORTED, "instruction 0x6F" },
    { "K68 EXT1", P(BEGIN "\x82\1."), TW_E_UNSUPPORTED, "instruction 0x82" },
    { "K68 EXT4", P(BEGIN "\x84\1\0\0\0."), TW_E_UNSUPPORTED, "instruction 0x84" },
    { "K68 NEWOBJ_EX", P(BEGIN "ctorch\nSize\n)}\x92."), TW_E_UNSUPPORTED, "instruction 0x92" },
    { "K68 BUILD of a list", P(BEGIN "]}b."), TW_E_FORMAT, "no dictionary" },
    { "K68 BUILD of a tensor", P(ALONE(GOOD "}b")), TW_E_FORMAT, "\"a\" the pickle sets" },
    { "K69 a submodule", P(BEGIN "ctorch.os\nsystem\n."), TW_E_UNSUPPORTED, "torch.os.system" },
    { "K69 a dot in the name", P(BEGIN "ctorch\n_utils._rebuild_tensor_v2\n."), TW_E_UNSUPPORTED, "torch._utils._rebuild_tensor_v2" },
    { "K69 a blank behind", P(BEGIN "ctorch._utils\n_rebuild_tensor_v2 \n."), TW_E_UNSUPPORTED, "_rebuild_tensor_v2 " },
    { "K69 a line break in it", P("\x80\4\x8c\14torch._utils\x8c\23_rebuild_tensor_v2\n\x93."), TW_E_UNSUPPORTED, "_rebuild_tensor_v2?" },
    { "K70 protocol 0", P("(dp0\nS'a'\np1\nI1\ns."), TW_E_UNSUPPORTED, "instruction" },
    { "K70 protocol 255", P("\x80\xFF}."), TW_E_UNSUPPORTED, "protocol" },
    { "K70 a long frame", P("\x80\4\x95\xFF\0\0\0\0\0\0\0}."), TW_E_FORMAT, "frame" },
    { "K70 a frame of 2^64-1", P("\x80\4\x95\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF}."), TW_E_FORMAT, "frame" },
    { "K71 no STOP", P(BEGIN "}"), TW_E_FORMAT, "ends inside" }, { "K71 bytes behind", P(BEGIN "}.x"), TW_E_FORMAT, "follow the end" },
    { "K71 STOP alone", P(BEGIN "."), TW_E_FORMAT, "stack" }, { "K71 STOP over a mark", P(BEGIN "}(."), TW_E_FORMAT, "stack" }, { "K71 two values", P(BEGIN "}}."), TW_E_FORMAT, "more than one" },
    { "K72 a mark that is not there", P(BEGIN "}t."), TW_E_FORMAT, "mark" }, { "K72 TUPLE3 of one", P(BEGIN "}\x87."), TW_E_FORMAT, "stack" },
    { "K72 TUPLE2 over a mark", P(BEGIN "}(}\x86."), TW_E_FORMAT, "stack" }, { "K72 an odd key", P(BEGIN "}(K\1u."), TW_E_FORMAT, "key without" },
    { "K72 SETITEM of a tuple", P(BEGIN ")K\1K\1s."), TW_E_FORMAT, "no dictionary" }, { "K72 APPEND to a dictionary", P(BEGIN "}K\1a."), TW_E_FORMAT, "no list" },
    { "K72 APPENDS to a mark", P(BEGIN "((K\1e."), TW_E_FORMAT, "no list" }, { "K72 REDUCE of nothing", P(BEGIN "R."), TW_E_FORMAT, "stack" },
    { "K72 REDUCE with a list", P(BEGIN "ctorch\nSize\n]R."), TW_E_FORMAT, "no function" }, { "K72 REDUCE of a dtype", P(BEGIN "ctorch\nfloat32\n)R."), TW_E_FORMAT, "no function" },
    { "K73 an id that is not there", P(BEGIN "h\0."), TW_E_FORMAT, "did not keep" }, { "K73 id 4000000000", P(BEGIN "}r\0\x28\x6b\xee."), TW_E_RANGE, "larger than the file" },
    { "K73 PUT of nothing", P(BEGIN "q\0."), TW_E_FORMAT, "where there is none" }, { "K73 a list in itself", P(BEGIN "]q\0h\0a."), TW_E_FORMAT, "no dictionary of tensors" },
    { "K73 a dictionary in itself", P(BEGIN "}q\0X\5\0\0\0modelh\0s."), TW_E_FORMAT, "no tensor" },
    { "K74 DUP", P(BEGIN "]2."), TW_E_UNSUPPORTED, "instruction 0x32" }, { "K74 POP", P(BEGIN "]0."), TW_E_UNSUPPORTED, "instruction 0x30" },
    { "K74 lists of lists", P(BEGIN "]q\0(h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0e]q\1(h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0e]q\2(h\1h\1h\1h\1h\1h\1h\1h\1h\1h\1e\x87."), TW_E_FORMAT, "no dictionary of tensors" },
    { "K75 a text of 2^63", P("\x80\4\x8d\0\0\0\0\0\0\0\x80."), TW_E_FORMAT, "longer than the file" }, { "K75 bytes of 2^63", P("\x80\4\x8e\0\0\0\0\0\0\0\x80."), TW_E_FORMAT, "longer than the file" },
    { "K75 LONG1 too long", P(BEGIN "\x8a\xFF\1."), TW_E_FORMAT, "longer than the file" }, { "K75 LONG4 of a negative length", P(BEGIN "\x8b\xFF\xFF\xFF\xFF."), TW_E_FORMAT, "longer than the file" },
    { "K75 a key that is not UTF-8", P(BEGIN "}X\1\0\0\0\xFF" GOOD "s."), TW_E_FORMAT, "not UTF-8" }, { "K75 a key with NUL", P(BEGIN "}X\3\0\0\0a\0b" GOOD "s."), TW_E_FORMAT, "NUL" },
    { "K75 an empty key", P(BEGIN "}X\0\0\0\0" GOOD "s."), TW_E_FORMAT, "name is empty" },
    { "K77 an id that is no tuple", P(BEGIN "}Q."), TW_E_FORMAT, "persistent id" }, { "K77 of three items", P(BEGIN "X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000\x87Q."), TW_E_FORMAT, "persistent id" },
    { "K77 no storage", P(BEGIN "(X\7\0\0\0storabectorch\nFloatStorage\nX\1\0\0\0000NK\6tQ."), TW_E_FORMAT, "persistent id" },
    { "K77 a class that is none", P(BEGIN "(X\7\0\0\0storagectorch\nSize\nX\1\0\0\0000NK\6tQ."), TW_E_FORMAT, "persistent id" },
    { "K77 a negative count", P(BEGIN "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000NJ\xFF\xFF\xFF\xFFtQ."), TW_E_FORMAT, "persistent id" },
    { "K77 key ../1", P(ALONE(V2 "((X\7\0\0\0storagectorch\nFloatStorage\nX\4\0\0\0../1X\3\0\0\0cpuK\6tQK\0K\6\x85K\1\x85" TAIL)), TW_E_MISSING, "\"../1\"" },
    { "K77 a key of another type", P(ALONE(V2 "((X\7\0\0\0storagectorch\nFloatStorage\nK\0X\3\0\0\0cpuK\6tQK\0K\6\x85K\1\x85" TAIL)), TW_E_FORMAT, "persistent id" },
    { "T79 numel wraps", P(ALONE(V2 "(" ID("0", BIG("\1\0\0\0\0\0\0\x40")) "K\0K\6\x85K\1\x85" TAIL)), TW_E_FORMAT, "\"a\" uses a storage of 4611686018427387905 F32" },
    { "T79 numel too small", P(ALONE(V2 "(" ID("0", "K\5") "K\0K\5\x85K\1\x85" TAIL)), TW_E_FORMAT, "there are 24 bytes" },
    { "T79 numel too large", P(ALONE(V2 "(" ID("0", "K\7") "K\0K\6\x85K\1\x85" TAIL)), TW_E_FORMAT, "there are 24 bytes" },
    { "T79 a size of 2^62", P(ALONE(TENSOR("K\0", BIG("\0\0\0\0\0\0\0\x40") "\x85", "K\1\x85"))), TW_E_FORMAT, "counted" },
    { "T79 sizes wrap", P(ALONE(TENSOR("K\0", BIG("\0\0\0\0\1\0\0\0") BIG("\0\0\0\0\1\0\0\0") "\x86", "K\0K\0\x86"))), TW_E_FORMAT, "counted" },
    { "T79 zero hides it", P(ALONE(TENSOR("K\0", BIG("\0\0\0\0\1\0\0\0") BIG("\0\0\0\0\1\0\0\0") "K\0\x87", "K\0K\0K\0\x87"))), TW_E_FORMAT, "counted" },
    { "T80 a negative offset", P(ALONE(TENSOR("J\xFF\xFF\xFF\xFF", "K\1\x85", "K\1\x85"))), TW_E_FORMAT, "begins outside" },
    { "T80 offset too large", P(ALONE(TENSOR("K\7", "K\0\x85", "K\1\x85"))), TW_E_FORMAT, "begins outside" },
    { "T80 one too far", P(ALONE(TENSOR("K\1", "K\2K\3\x86", "K\3K\1\x86"))), TW_E_FORMAT, "reaches beyond" },
    { "T80 at the end", P(ALONE(TENSOR("K\6", "K\1\x85", "K\1\x85"))), TW_E_FORMAT, "reaches beyond" },
    { "T80 strides that wrap", P(ALONE(TENSOR("K\0", "K\3K\3\x86", BIG("\0\0\0\0\0\0\0\x40") BIG("\0\0\0\0\0\0\0\x40") "\x86"))), TW_E_FORMAT, "reaches beyond" },
    { "T81 a negative size", P(ALONE(TENSOR("K\0", "J\xFF\xFF\xFF\xFF\x85", "K\1\x85"))), TW_E_FORMAT, "negative" },
    { "T81 a negative stride", P(ALONE(TENSOR("K\5", "K\6\x85", "J\xFF\xFF\xFF\xFF\x85"))), TW_E_FORMAT, "negative" },
    { "T81 a huge stride", P(ALONE(TENSOR("K\0", "K\2\x85", BIG("\0\0\0\0\0\0\0\x40") "\x85"))), TW_E_FORMAT, "reaches beyond" },
    { "T81 fewer strides", P(ALONE(TENSOR("K\0", "K\2K\3\x86", "K\1\x85"))), TW_E_FORMAT, "\"a\" has not as many strides" },
    { "T81 9 dimensions", P(ALONE(TENSOR("K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"))), TW_E_UNSUPPORTED, "more than 8" },
    { "T81 sizes in a list", P(ALONE(TENSOR("K\0", "]K\6a", "]K\1a"))), TW_E_FORMAT, "something else" },
    { "T81 a size that is a text", P(ALONE(TENSOR("K\0", NAME("6") "\x85", "K\1\x85"))), TW_E_FORMAT, "something else" },
    { "T81 no storage", P(ALONE(V2 "(NK\0K\6\x85K\1\x85" TAIL)), TW_E_FORMAT, "something else" },
    { "T82 expanded beyond all memory", P(ALONE(TENSOR("K\0", BIG("\0\0\0\0\1\0\0\0") "\x85", "K\0\x85"))), TW_E_RANGE, "larger than the file" },
    { "T83 two types of one storage", P(BEGIN "}(" NAME("a") GOOD NAME("b") V2 "((X\7\0\0\0storagectorch\nHalfStorage\nX\1\0\0\0000X\3\0\0\0cpuK\14tQK\0K\14\x85K\1\x85" TAIL "u."), TW_E_FORMAT, "\"b\" uses a storage that another tensor" },
    { "T84 sparse", P(BEGIN "ctorch._utils\n_rebuild_sparse_tensor\n)R."), TW_E_UNSUPPORTED, "torch._utils._rebuild_sparse_tensor" },
    { "T84 quantized", P(BEGIN "ctorch._utils\n_rebuild_qtensor\n)R."), TW_E_UNSUPPORTED, "_rebuild_qtensor" },
    { "T84 quantized storage", P(BEGIN "ctorch\nQInt8Storage\n."), TW_E_UNSUPPORTED, "torch.QInt8Storage" },
    { "T84 nested", P(BEGIN "ctorch._utils\n_rebuild_nested_tensor\n)R."), TW_E_UNSUPPORTED, "_rebuild_nested_tensor" },
    { "T84 meta", P(BEGIN "ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R."), TW_E_UNSUPPORTED, "_rebuild_meta_tensor_no_storage" },
    { "T84 complex", P(BEGIN "ctorch\nComplexFloatStorage\n."), TW_E_UNSUPPORTED, "torch.ComplexFloatStorage" },
    { "T85 a name twice", P(BEGIN "}(" NAME("a") GOOD NAME("a") GOOD "u."), TW_E_FORMAT, "\"a\" stands twice" },
    { "no dictionary", P(BEGIN "]."), TW_E_FORMAT, "no dictionary" }, { "no tensors", P(BEGIN "}" NAME("x") "}s."), TW_E_FORMAT, "which has: x" },
    { "a parameter of nothing", P(BEGIN "ctorch._utils\n_rebuild_parameter\n)R."), TW_E_FORMAT, "no tensor" },
    { "pairs that are none", P(BEGIN "ccollections\nOrderedDict\n](K\1K\2e\x85R."), TW_E_FORMAT, "pairs" },
    { "version 3 without a type", P(ALONE("ctorch._utils\n_rebuild_tensor_v3\n(" ID("0", "K\6") "K\0K\6\x85K\1\x85" TAIL)), TW_E_FORMAT, "dtype" }
};

static const struct { const char *what; lie how; size_t lied; tw_code code; const char *part; } bad_zip[] = {
    { "Z51 no end", NO_END, 0, TW_E_FORMAT, "no zip directory" }, { "Z51 two ends", TWO_ENDS, 0, TW_E_FORMAT, "not where" }, { "Z52 junk before", JUNK_BEFORE, 0, TW_E_FORMAT, "before the first" },
    { "Z53 count 0", COUNT_0, 0, TW_E_FORMAT, "as many entries" }, { "Z53 one more", COUNT_MORE, 0, TW_E_FORMAT, "as many entries" }, { "Z53 65535", COUNT_65535, 0, TW_E_FORMAT, "as many entries" },
    { "Z54 offset past the file", DIRECTORY_FAR, 0, TW_E_FORMAT, "not where" }, { "Z54 too long", DIRECTORY_LONG, 0, TW_E_FORMAT, "not where" }, { "Z54 wraps", DIRECTORY_WRAPS, 0, TW_E_FORMAT, "not where" },
    { "Z55 locator to nowhere", LOCATOR_NOWHERE, 0, TW_E_FORMAT, "zip64 record" }, { "Z55 locator that wraps", LOCATOR_WRAPS, 0, TW_E_FORMAT, "zip64 record" },
    { "Z55 offset of 2^64", LARGE_OFFSET, 1, TW_E_FORMAT, "beyond the directory" }, { "Z55 sizes cut off", LARGE_CUT, 1, TW_E_FORMAT, "extra field" },
    { "Z56 all ones without zip64", ALL_ONES, 1, TW_E_FORMAT, "zip64 sizes" }, { "Z57 a descriptor that lies", LYING_DESCRIPTOR, 1, TW_E_FORMAT, "behind a zip entry" },
    { "Z58 flag 1", FLAG_1, 1, TW_E_FORMAT, "encrypted" }, { "Z58 flag 20", FLAG_20, 1, TW_E_FORMAT, "encrypted" }, { "Z58 flag 40", FLAG_40, 0, TW_E_FORMAT, "encrypted" },
    { "Z59 another name", LOCAL_NAME, 1, TW_E_FORMAT, "not the one" }, { "Z60 the pickle's checksum", PICKLE_CRC, 0, TW_E_FORMAT, "damaged" }, { "Z60 two checksums", LOCAL_CRC, 1, TW_E_FORMAT, "checksum" },
    { "Z61 deflated, a bomb", DEFLATED, 1, TW_E_UNSUPPORTED, "root/data/0 is compressed" }, { "Z61 deflated by its header", DEFLATED_LOCALLY, 1, TW_E_FORMAT, "not the one" },
    { "Z62 one header for two", OVERLAP, 1, TW_E_FORMAT, "not the one" }, { "Z62 one inside another", ENGULF, 1, TW_E_FORMAT, "share bytes" }, { "Z63 twice", TWICE, 0, TW_E_FORMAT, "same storage twice" }, { "Z66 parts", PARTS, 1, TW_E_FORMAT, "another part" },
    { "Z67 two sizes", SIZES, 1, TW_E_FORMAT, "lies about its size" }, { "Z67 another in the header", LOCAL_SIZE, 1, TW_E_FORMAT, "another size" },
    { "beyond", BEYOND, 1, TW_E_FORMAT, "beyond" }, { "far beyond", LOCAL_FAR, 1, TW_E_FORMAT, "beyond" }, { "an extra field cut off", EXTRA_CUT, 1, TW_E_FORMAT, "extra field" }
};

static void right(tw_context *tw, const char *what, const bytes *b) {
    int file;
    for (file = 0; file < 2; file++) {
        tw_weights *w = open_bytes(tw, b->p, b->n, file);
        const tw_weight *a = tw_weights_find(w, "a");
        CHECK(a && a->dtype == TW_F32 && a->rank == 2 && a->shape[0] == 2 && a->shape[1] == 3 && memcmp(a->data, six, sizeof six) == 0, "%s: %s", what, tw_error(tw));
        tw_close_weights(w);
        tw_clear_error(tw);
    }
}

static void zips(tw_context *tw) {
    static const lie good[] = { HONEST, DESCRIPTOR, ZIP64, UNALIGNED, COMMENT, NO_CRC, STORAGE_CRC };
    static const char pickle[] = ALONE(GOOD);
    static const struct { const char *what, *names[3]; tw_code code; const char *part; } named[] = {
        { "Z64 ../../x", { "../../data.pkl", "../../data/0", "../../x" }, TW_E_FORMAT, "leaves its folder" }, { "Z64 absolute", { "/data.pkl", "/data/0", "/x" }, TW_E_FORMAT, "leaves its folder" },
        { "Z64 a way up", { "root/data.pkl", "root/data/0", "root/../x" }, TW_E_FORMAT, "leaves its folder" }, { "Z64 not UTF-8", { "root/data.pkl", "root/data/0", "root/\xFF" }, TW_E_FORMAT, "leaves its folder" },
        { "Z64 a backslash", { "root/data.pkl", "root/data/0", "root\\x" }, TW_E_FORMAT, "leaves its folder" }, { "Z65 no pickle", { "root/data.pk", "root/data/0", "root/x" }, TW_E_FORMAT, "without data.pkl" },
        { "Z65 two roots", { "root/data.pkl", "root/data/0", "toor/x" }, TW_E_FORMAT, "one folder" }, { "Z65 no root", { "data.pkl", "data/0", "x" }, TW_E_FORMAT, "one folder" },
        { "Z65 no storage", { "root/data.pkl", "root/data/1", "root/x" }, TW_E_MISSING, "\"a\" has its numbers in a storage \"0\"" }, { "Z65 two pickles", { "root/data.pkl", "root/data/0", "root/data.pkl" }, TW_E_FORMAT, "twice" },
        { "an empty part", { "root/data.pkl", "root/data/0", "root//x" }, TW_E_FORMAT, "leaves its folder" }, { "Z65 big-endian", { "root/data.pkl", "root/data/0", "root/byteorder" }, TW_E_UNSUPPORTED, "order of bytes" } };
    size_t i, k;
    bytes b;
    for (i = 0; i < sizeof good / sizeof *good; i++) {
        b = checkpoint(P(pickle), good[i], 1);
        right(tw, "a good zip file", &b);
        free(b.p);
    }
    for (i = 0; i < sizeof bad_zip / sizeof *bad_zip; i++) {
        b = checkpoint(P(pickle), bad_zip[i].how, bad_zip[i].lied);
        refuse(tw, bad_zip[i].what, b.p, b.n, bad_zip[i].code, bad_zip[i].part);
        free(b.p);
    }
    for (i = 0; i < sizeof named / sizeof *named; i++) {
        entry list[3];
        for (k = 0; k < 3; k++) list[k].name = named[i].names[k];
        list[0].data = pickle; list[0].size = sizeof pickle - 1;
        list[1].data = six; list[1].size = sizeof six;
        list[2].data = "big"; list[2].size = 3;
        b = zip_of(list, 3, HONEST, 0);
        refuse(tw, named[i].what, b.p, b.n, named[i].code, named[i].part);
        free(b.p);
    }
    b = checkpoint(P(pickle), ZIP64, 0);                                /* cut off anywhere; any bit another */
    for (i = 0; i < b.n; i++) CHECK(!survive(tw, b.p, i), "%lu of %lu bytes are taken for a whole file", (unsigned long)i, (unsigned long)b.n);
    for (i = 0; i < 8 * b.n; i++) { b.p[i / 8] ^= (unsigned char)(1u << i % 8); survive(tw, b.p, b.n); b.p[i / 8] ^= (unsigned char)(1u << i % 8); }
    free(b.p);
}

static void pickles(tw_context *tw) {
    size_t i, n = 10000000;
    char *many;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) refuse_pickle(tw, bad[i].what, bad[i].pickle, bad[i].size, bad[i].code, bad[i].part);
    many = (char *)check_malloc(n);                                     /* K72, K76: millions of marks, tuples in tuples, lists */
    memcpy(many, BEGIN, 2);
    memset(many + 2, '(', n - 2);
    refuse_pickle(tw, "K72 10^7 marks", many, n, TW_E_RANGE, "more memory");
    memset(many + 2, ']', n - 2);
    refuse_pickle(tw, "10^7 lists", many, n, TW_E_RANGE, "more memory");
    many[2] = ')';
    memset(many + 3, '\x85', 1000000);
    memcpy(many + 1000003, ".", 1);
    refuse_pickle(tw, "K76 10^6 tuples in each other", many, 1000004, TW_E_RANGE, "more memory");
    many[2] = ')';
    memset(many + 3, '\x85', 100000);
    memcpy(many + 100003, ".", 1);
    refuse_pickle(tw, "K76 10^5 tuples in each other", many, 100004, TW_E_FORMAT, "no dictionary of tensors");
    free(many);
}

/* Views of one storage: in order, transposed, expanded, parts; and who shares what with whom. */
static void views(tw_context *tw) {
    static const char pickle[] = BEGIN "}(" NAME("a") GOOD NAME("b") TENSOR("K\0", "K\3K\2\x86", "K\1K\3\x86") NAME("c") TENSOR("K\4", "K\3\x85", "K\0\x85") NAME("d") TENSOR("K\1", "K\2K\2\x86", "K\3K\1\x86")
        NAME("e") TENSOR("K\5", ")", ")") NAME("f") TENSOR("K\6", "K\0\x85", "K\1\x85") NAME("g") TENSOR("K\0", "K\1K\1K\3\x87", "K\7K\11K\2\x87") "u.";
    static const struct { const char *name; size_t count; float x[6]; bool shared; } want[] = {
        { "a", 6, { 0, 1, 2, 3, 4, 5 }, true }, { "b", 6, { 0, 3, 1, 4, 2, 5 }, false }, { "c", 3, { 4, 4, 4, 0, 0, 0 }, false }, { "d", 4, { 1, 2, 4, 5, 0, 0 }, false },
        { "e", 1, { 5, 0, 0, 0, 0, 0 }, true }, { "f", 0, { 0, 0, 0, 0, 0, 0 }, false }, { "g", 3, { 0, 2, 4, 0, 0, 0 }, false } };
    bytes b = checkpoint(P(pickle), HONEST, 0);
    tw_weights *w = tw_weights_from_memory(tw, b.p, b.n);
    size_t i;
    CHECK(tw_weights_count(w) == 7, "views: %s", tw_error(tw));
    for (i = 0; w && i < 7; i++) {
        const tw_weight *x = tw_weights_find(w, want[i].name);
        CHECK(x && x->bytes == want[i].count * sizeof(float) && memcmp(x->data, want[i].x, x->bytes) == 0 && x->shared == want[i].shared, "T83: view %s is wrong", want[i].name);
    }
    tw_close_weights(w);
    for (i = 0; i < 8 * b.n; i++) { b.p[i / 8] ^= (unsigned char)(1u << i % 8); survive(tw, b.p, b.n); b.p[i / 8] ^= (unsigned char)(1u << i % 8); }
    free(b.p);
}

/* The format before 1.6. */
#define MAGIC    BEGIN "\x8a\12\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19."
#define VERSION  BEGIN "M\xE9\3."
#define FACTS    BEGIN "}X\15\0\0\0little_endian\x88s."
#define OLD_ID   "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\6\0\0\0cuda:0K\6NtQ"                      /* K77: a device that is not here */
#define OLD      BEGIN "}" NAME("a") V2 "(" OLD_ID "K\0K\2K\3\x86K\3K\1\x86" TAIL "s."
#define KEYS     BEGIN "](X\1\0\0\0000e."
static void streams(tw_context *tw) {
    static const struct { const char *what, *text; size_t size; tw_code code; const char *part; } wrong[] = {
        { "K78 another magic number", P(BEGIN "K\1." VERSION FACTS OLD KEYS), TW_E_FORMAT, "magic number" }, { "another version", P(MAGIC BEGIN "K\1." FACTS OLD KEYS), TW_E_UNSUPPORTED, "version" },
        { "big-endian", P(MAGIC VERSION BEGIN "}X\15\0\0\0little_endian\x89s." OLD KEYS), TW_E_UNSUPPORTED, "order of bytes" }, { "no facts", P(MAGIC VERSION BEGIN "}." OLD KEYS), TW_E_UNSUPPORTED, "order of bytes" },
        { "K68 in it", P(MAGIC VERSION FACTS BEGIN "cos\nsystem\n)R."), TW_E_UNSUPPORTED, "os.system" }, { "no keys", P(MAGIC VERSION FACTS OLD BEGIN "}."), TW_E_FORMAT, "list of its storages" },
        { "a key twice", P(MAGIC VERSION FACTS OLD BEGIN "](X\1\0\0\0000X\1\0\0\0000e."), TW_E_FORMAT, "twice" }, { "a storage of nobody", P(MAGIC VERSION FACTS OLD BEGIN "](X\1\0\0\0001e." "\1\0\0\0\0\0\0\0abcd"), TW_E_FORMAT, "no tensor uses" },
        { "no numbers", P(MAGIC VERSION FACTS OLD KEYS), TW_E_FORMAT, "ends before" }, { "a count of 2^62", P(MAGIC VERSION FACTS OLD KEYS "\0\0\0\0\0\0\0\x40"), TW_E_FORMAT, "longer than the file" },
        { "fewer numbers", P(MAGIC VERSION FACTS OLD KEYS "\2\0\0\0\0\0\0\0abcdefgh"), TW_E_FORMAT, "there are 8 bytes" } };
    static const char head[] = MAGIC VERSION FACTS OLD KEYS "\6\0\0\0\0\0\0\0";
    static const char part[] = MAGIC VERSION FACTS BEGIN "}" NAME("a") V2 "((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\6X\1\0\0\0001K\2K\4\x87tQK\1K\2\x85K\1\x85" TAIL "s." KEYS "\6\0\0\0\0\0\0\0";
    static const char pairs[] = MAGIC VERSION FACTS BEGIN "ccollections\nOrderedDict\n](](" NAME("a") GOOD "ee\x85R." KEYS "\6\0\0\0\0\0\0\0";
    bytes b = { NULL, 0, 0 };
    char tar[600];
    tw_weights *w;
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) refuse(tw, wrong[i].what, wrong[i].text, wrong[i].size, wrong[i].code, wrong[i].part);
    put(&b, head, sizeof head - 1);
    put(&b, six, sizeof six);
    right(tw, "K78 the old format", &b);
    for (i = 0; i < b.n; i++) CHECK(!survive(tw, b.p, i), "%lu of %lu bytes are taken for a whole file", (unsigned long)i, (unsigned long)b.n);
    for (i = 0; i < 8 * b.n; i++) { b.p[i / 8] ^= (unsigned char)(1u << i % 8); survive(tw, b.p, b.n); b.p[i / 8] ^= (unsigned char)(1u << i % 8); }
    put(&b, "x", 1);
    refuse(tw, "a byte behind", b.p, b.n, TW_E_FORMAT, "follow the last storage");
    b.n = 0;
    put(&b, pairs, sizeof pairs - 1);
    put(&b, six, sizeof six);
    right(tw, "Python 2's OrderedDict", &b);
    b.n = 0;
    put(&b, part, sizeof part - 1);
    put(&b, six, sizeof six);
    w = tw_weights_from_memory(tw, b.p, b.n);
    CHECK(w && memcmp(tw_weights_find(w, "a")->data, six + 3, 8) == 0, "a part of a storage: %s", tw_error(tw));
    tw_close_weights(w);
    tw_clear_error(tw);
    free(b.p);
    memset(tar, 0, sizeof tar);                                         /* K78: the format before 0.1.10, a tar file */
    memcpy(tar, "sys_info", 8);
    memcpy(tar + 257, "ustar", 5);
    refuse(tw, "K78 tar", tar, sizeof tar, TW_E_FORMAT, "tar file");
}

/* One model by three ways - its folder, bytes in memory, the host's own files - gives the same bits. */
static bytes whole(const char *path) {
    bytes b = { NULL, 0, 0 };
    FILE *f = fopen(path, "rb");
    char piece[4096];
    size_t n;
    CHECK(f != NULL, "%s cannot be opened", path);
    while (f && (n = fread(piece, 1, sizeof piece, f)) > 0) put(&b, piece, n);
    if (f) fclose(f);
    return b;
}
typedef struct pack { const tw_memory_file *files; int count, open; } pack;
static void *pack_open(void *user, const char *path, int64_t *size) {
    pack *p = (pack *)user;
    int i;
    for (i = 0; i < p->count; i++)
        if (strncmp(path, "pack/", 5) == 0 && strcmp(path + 5, p->files[i].name) == 0) { p->open++; *size = (int64_t)p->files[i].size; return &((tw_memory_file *)(uintptr_t)p->files)[i]; }
    return NULL;
}
static int64_t pack_read(void *user, void *file, int64_t offset, void *buffer, int64_t n) {
    (void)user;
    if (n > 1000) n = 1000;
    memcpy(buffer, (const char *)((tw_memory_file *)file)->data + offset, (size_t)n);
    return n;
}
static void pack_close(void *user, void *file) { (void)file; ((pack *)user)->open--; }

static void ways(const char *name, const char *weights) {
    char path[512];
    tw_memory_file files[2];
    bytes config = whole(golden_path(path, "gpt2", name, "config.json")), numbers = whole(golden_path(path, "gpt2", name, weights));
    float logits[3][2 * 5 * 61];
    pack host;
    int way;
    files[0].name = "config.json"; files[0].data = config.p; files[0].size = config.n;
    files[1].name = weights; files[1].data = numbers.p; files[1].size = numbers.n;
    host.files = files; host.count = 2; host.open = 0;
    memset(logits, 0, sizeof logits);
    for (way = 0; way < 3; way++) {
        tw_desc desc;
        tw_context *tw;
        tw_model *m;
        tw_weights *in;
        tw_batch batch;
        tw_outputs out;
        tw_pass pass;
        memset(&desc, 0, sizeof desc);
        memset(&pass, 0, sizeof pass);
        desc.threads = 1;
        if (way == 2) { desc.read.open = pack_open; desc.read.read = pack_read; desc.read.close = pack_close; desc.read.user = &host; }
        tw = tw_create(&desc);
        m = way == 0 ? tw_from_pretrained(tw, golden_path(path, "gpt2", name, "")) : way == 1 ? tw_from_memory(tw, files, 2) : tw_from_pretrained(tw, "pack");
        memset(&tw->desc.read, 0, sizeof tw->desc.read);
        in = tw_open_weights(tw, golden_path(path, "gpt2", name, "in.safetensors"));
        golden_batch(tw, in, &batch);
        tw_no_grad(tw, true);
        CHECK(m && tw_model_forward(m, &batch, &pass, &out) && tw_count(tw_batch_get(&out, "logits")) == 610, "%s, way %d: %s", name, way, tw_error(tw));
        if (!tw_failed(tw)) tw_read(tw_batch_get(&out, "logits"), logits[way], 610);
        CHECK(memcmp(logits[way], logits[0], sizeof logits[0]) == 0, "%s: way %d gives other logits", name, way);
        tw_destroy(tw);
    }
    CHECK(host.open == 0, "the host's file stays open");
    free(config.p);
    free(numbers.p);
}

/* Every call of the allocator fails once. */
static void without_memory(const bytes *b) {
    counted c;
    long n;
    bool done = false;
    for (n = 1; !done && n < 2000; n++) {
        tw_context *tw;
        memset(&c, 0, sizeof c);
        c.fail_at = n;
        tw = counted_context(&c);
        if (!tw) continue;
        done = tw_weights_from_memory(tw, b->p, b->n) != NULL;           /* left open: tw_destroy closes it */
        CHECK(done != tw_failed(tw) && (done || tw_error_code(tw) == TW_E_MEMORY), "call %ld: %s", n, tw_error(tw));
        tw_destroy(tw);
        CHECK(c.live == 0 && c.bytes == 0, "call %ld: %ld blocks are lost", n, c.live);
    }
    CHECK(done, "it never came through");
}

int main(void) {
    static const char pickle[] = BEGIN "}(" NAME("a") GOOD NAME("b") TENSOR("K\0", "K\3K\2\x86", "K\1K\3\x86") "u.";
    tw_context *tw = counted_context(&memory);
    bytes b = checkpoint(P(pickle), DESCRIPTOR, 9);
    zips(tw);
    pickles(tw);
    views(tw);
    streams(tw);
    {
        bytes none = checkpoint(P(BEGIN "}."), HONEST, 0);
        tw_weights *w = tw_weights_from_memory(tw, none.p, none.n);
        CHECK(w && tw_weights_count(w) == 0, "no tensors: %s", tw_error(tw));
        tw_close_weights(w);
        free(none.p);
    }
    remove(PATH);
    CHECK(!tw_failed(tw), "an error is left: %s", tw_error(tw));
    CHECK(memory.live == 1, "%ld blocks live beside the context", memory.live - 1);
    tw_destroy(tw);
    CHECK(memory.live == 0 && memory.bytes == 0, "%ld blocks are left at the end", memory.live);
    without_memory(&b);
    free(b.p);
    ways("bin_zip", "pytorch_model.bin");
    ways("bin_legacy", "pytorch_model.bin");
    ways("bin_views", "pytorch_model.bin");
    ways("bin_flagai", "pytorch_model.bin");
    return check_done();
}
