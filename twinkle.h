/* twinkle.h - version 0.1.0 - transformers in one C header: open, run and train them on a CPU.
                                                      public domain or MIT-0, at your choice; see the end

   DO THIS in one C or C++ file, beside twinkle_blas.h:

       #define TWINKLE_IMPLEMENTATION
       #include "twinkle.h"

   and include it without the #define wherever you use it.  Nothing to build and nothing to link but libm:
   `cc -O2 program.c -lm` picks the fastest kernels the processor has when it starts; -fopenmp adds threads.

   A WHOLE PROGRAM.  It learns to count in a circle, and shows it:
   [tw:sample]
       #define TWINKLE_IMPLEMENTATION
       #include "twinkle.h"

       int main(void) {
           int32_t ids[640], answer[8];
           tw_context *tw = tw_create(NULL);              // NULL: malloc, all cores, silent
           tw_model *gpt = tw_from_config(tw, "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":32,"
                                              "\"n_head\":2,\"n_positions\":16,\"vocab_size\":7}");
           tw_dataset *data;
           tw_dataset_desc how;
           tw_generate_desc writing;
           tw_batch batch;
           int i;
           for (i = 0; i < 640; i++) ids[i] = i % 7;      // 0 1 2 3 4 5 6 0 1 2 ...
           memset(&how, 0, sizeof how);
           memset(&writing, 0, sizeof writing);
           how.block_size = 16;
           how.max_steps = 60;
           how.quiet = true;
           writing.max_new_tokens = 8;
           writing.eos_count = -1;                        // nothing ends it but the 8 tokens
           data = tw_dataset_from_ids(tw, ids, 640, &how);
           tw_set_optimizer(gpt, "adamw", "{\"lr\":5e-3}");
           while (tw_next_batch(data, &batch)) {
               tw_forward_backward(gpt, &batch, NULL);    // forward, loss, backward
               tw_clip_grad_and_step(gpt, 1.0f, 2, NULL); // clip, update, zero the gradients
           }
           tw_generate_ids(gpt, ids, 3, &writing, answer, 8, NULL);
           for (i = 0; i < 8; i++) printf("%d ", (int)answer[i]);
           printf("%s\n", tw_error(tw));                  // "" if nothing went wrong, else what, why and where
           tw_destroy(tw);                                // and everything that came from it
           return 0;
       }
   [tw:end of sample]

   WHAT IT OPENS.  GPT-2 with all its heads from a Hugging Face folder: config.json, safetensors (whole or in shards, f32, f16,
   bf16), and its tokenizer.  What it trains and saves, transformers opens.

   WHAT IT DOES NOT DO.  No GPU.  No downloads: it never opens a socket.  It never ends your process and prints nothing
   unless you ask (tw_log_stderr, tw_progress).  It keeps no global state: two contexts in two threads share nothing.
   It runs no code that a file contains.

   ERRORS.  Functions return NULL, false or NaN; the context keeps the first error as a sentence; operations on a failed value
   fail quietly.  So check once: if (tw_failed(tw)) puts(tw_error(tw));

   MEMORY.  tw_desc.alloc takes your allocator.  After the first training step, and between the tokens of a generation,
   it is not called at all.  tw_plan_model() says beforehand how much a model will take.  Weights in f32 are used where the
   file is mapped, and are copied by the system only when training changes them.

   THREADS.  A context, its models and its tensors belong to one thread at a time.  Inside, work is spread over tw_desc.threads
   by OpenMP or by your own job system (tw_desc.parallel_for).

   DETERMINISM.  In f32, results have the same bits for every number of threads and on every kernel set (plain C, AVX2, AVX-512,
   NEON), with gcc (-Ofast included), clang and tcc; clang's -ffast-math changes bits.  All random numbers follow from tw_desc.seed.

   SWITCHES, to define before including: TWINKLE_STATIC (all symbols private to this file), TWINKLE_NO_STDIO (nothing opens a
   file by itself: tw_desc.read and tw_from_memory remain), TWINKLE_NO_MMAP (files are read, not mapped), TWINKLE_NO_SIMD (plain C
   kernels only), TWINKLE_NO_CLOCK (no system clock but clock()).

   CHAPTERS (search for the mark: each stands once in the declarations and once in the implementation)
       [tw:01] foundations
       [tw:02] JSON
       [tw:03] tensors
       [tw:04] operations and their gradients
       [tw:05] layers
       [tw:06] blocks
       [tw:07] models
       [tw:08] files
       [tw:09] tokenizers
       [tw:10] opening and saving models
       [tw:11] optimizers and schedulers
       [tw:12] losses and metrics
       [tw:13] training
       [tw:14] generation
       [tw:15] data
   The arithmetic below all of this is twinkle_blas.h, with chapters of its own. */
#ifndef TWINKLE_H
#define TWINKLE_H

#define TW_VERSION_MAJOR 0
#define TW_VERSION_MINOR 1
#define TW_VERSION_PATCH 0
#define TW_VERSION (TW_VERSION_MAJOR * 10000 + TW_VERSION_MINOR * 100 + TW_VERSION_PATCH)

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

/* A private copy of the library inside one file, or one copy for the whole program. */
#ifndef TWDEF
#  ifdef TWINKLE_STATIC
#    if defined(__GNUC__) || defined(__clang__)
#      define TWDEF __attribute__((unused)) static
#    else
#      define TWDEF static
#    endif
#  else
#    define TWDEF extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== [tw:01] foundations: context, errors, memory, files ====================================

   A context is where everything lives: it holds the allocator, the threads, the random numbers and
   the first thing that went wrong.  One context a thread; two contexts share nothing.

   ERRORS STICK.  Nothing here ends the process.  A function that fails returns NULL, false or NaN,
   and the context keeps the first error as a code and a sentence; every later call on a failed
   value fails quietly.  So a program checks once, at the end of a chain: if (tw_failed(tw)) ...

   THREE LIFETIMES.  What a model owns lives until the model is freed.  The tensors of a step live
   in an arena that tw_end_step() rewinds in one move.  A text or list that a function returns
   lives as long as its comment says.  tw_destroy() ends them all.
   ============================================================================================ */

#define TW_ERRORS(X)                                                                   \
    X(TW_OK,            0, "no error")                                                 \
    X(TW_E_MEMORY,      1, "out of memory")                                            \
    X(TW_E_ARGUMENT,    2, "an argument is not usable")                                \
    X(TW_E_SHAPE,       3, "shapes do not fit together")                               \
    X(TW_E_FILE,        4, "a file cannot be read or written")                         \
    X(TW_E_FORMAT,      5, "a file or text is malformed")                              \
    X(TW_E_CONFIG,      6, "a configuration cannot be used")                           \
    X(TW_E_MISSING,     7, "something that is needed is not there")                    \
    X(TW_E_RANGE,       8, "a value is out of range")                                  \
    X(TW_E_UNSUPPORTED, 9, "this is not supported")                                    \
    X(TW_E_STOPPED,    10, "stopped by the caller")

typedef enum tw_code {
#define TWI_X(name, number, text) name = number,
    TW_ERRORS(TWI_X)
#undef TWI_X
    TW_CODE_FORCE_INT = 0x7fffffff
} tw_code;

typedef struct tw_context tw_context;
typedef struct tw_tensor tw_tensor;
typedef struct tw_model tw_model;
typedef struct tw_json tw_json;
typedef struct tw_tokenizer tw_tokenizer;

/* The host's memory.  alloc returns NULL when there is none left; free gets the size that was asked for. */
typedef struct tw_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void  (*free)(void *user, void *pointer, size_t bytes);
    void   *user;
} tw_allocator;

/* The host's files (a game's pack file, say).  open returns a handle of the host's own and the file's
   size, or NULL where there is no such file; read returns how many bytes it brought. */
typedef struct tw_reader {
    void   *(*open)(void *user, const char *path, int64_t *size);
    int64_t (*read)(void *user, void *file, int64_t offset, void *buffer, int64_t bytes);
    void    (*close)(void *user, void *file);
    void     *user;
} tw_reader;

/* Where bytes go: write returns false when it cannot take them (a full disk). */
typedef struct tw_writer {
    bool (*write)(void *user, const void *bytes, size_t count);
    void  *user;
} tw_writer;

/* What a context is made of.  All zero means: malloc, plain files, all cores, seed 42, silent. */
typedef struct tw_desc {
    tw_allocator alloc;                 /* default: malloc and free */
    tw_reader    read;                  /* default: plain files, mapped into memory where the system can */
    int          threads;               /* default: every core the program was built to use; at least 1 */
    void       (*parallel_for)(void *user, int count, void (*task)(void *arg, int index), void *arg);
    void        *parallel_user;         /* the host's job system; default: OpenMP where compiled with it */
    void       (*log)(void *user, const char *line);
    void        *log_user;              /* default: silent.  tw_log_stderr prints to stderr */
    int64_t    (*now)(void *user);      /* microseconds of a clock that does not jump; default: the system's */
    void        *now_user;
    uint64_t     seed;                  /* default: 42.  Same seed, same numbers, on every machine */
    const char  *kernels;               /* "plain", "neon", "avx2", "avx512"; default: the best this processor has */
} tw_desc;

/* Makes a context; desc may be NULL.  NULL when there is not even memory for that. */
TWDEF tw_context *tw_create(const tw_desc *desc);

/* Frees the context and everything that came from it: models, tokenizers, tensors.  NULL is fine. */
TWDEF void        tw_destroy(tw_context *tw);

/* The first error since tw_create or tw_clear_error: did anything fail, its code, its sentence ("" for none). */
TWDEF bool        tw_failed(const tw_context *tw);
TWDEF tw_code     tw_error_code(const tw_context *tw);
TWDEF const char *tw_error(const tw_context *tw);
TWDEF void        tw_clear_error(tw_context *tw);
TWDEF const char *tw_code_text(tw_code code);

/* Records an error from the outside (a host's own operation), unless one is recorded already. */
TWDEF void        tw_fail(tw_context *tw, tw_code code, const char *sentence);

/* All random choices (weights of a new model, dropout, sampling, shuffling) follow from the seed. */
TWDEF void        tw_seed(tw_context *tw, uint64_t seed);
TWDEF int         tw_threads(const tw_context *tw);
TWDEF void        tw_set_threads(tw_context *tw, int threads);
TWDEF const char *tw_kernels(const tw_context *tw);      /* the kernel set in use: "avx2", ... */

/* What the context holds at the moment, and the most it ever held, in bytes; and how often the
   allocator was called so far (it stays the same from one training step to the next). */
typedef struct tw_memory { size_t bytes, peak_bytes, step_bytes; uint64_t allocations; } tw_memory;
TWDEF tw_memory   tw_memory_use(const tw_context *tw);

TWDEF int64_t     tw_now(tw_context *tw);                  /* microseconds of the context's clock */

/* Ends a step: every tensor that is not a parameter is gone, its memory is kept for the next step. */
TWDEF void        tw_end_step(tw_context *tw);

TWDEF int         tw_version(void);                      /* TW_VERSION of the implementation: 10000 major + 100 minor + patch */

#ifndef TWINKLE_NO_STDIO
TWDEF void        tw_log_stderr(void *user, const char *line);
TWDEF tw_writer   tw_file_writer(void *file);            /* file: a FILE * open for writing, which stays the caller's */
#endif

/* ==== [tw:02] JSON ============================================================================

   Reading and writing JSON as RFC 8259 has it: config.json, tokenizer.json, the header of a
   safetensors file, a training run's configuration and its log.  A document is a tree of values;
   its root owns all of it, and the values below live and end with the root.

       tw_json *config = tw_json_load(tw, "gpt2/config.json");
       int64_t layers = tw_json_int(tw_json_get(config, "n_layer"), 12);
       tw_json_free(config);

   Reading a value that is not there, or of another kind, gives the default that is passed along;
   NULL is a value of kind TW_JSON_NONE, so that look-ups can be chained without a check between.

   What is decided where the RFC leaves it open: of equal keys the last one counts, at the place of
   the first (as in Python); no byte order mark, no comments, no NaN or Infinity; text that is not
   UTF-8 and unpaired surrogates are refused; integers are kept exactly within 64 bits, all other
   numbers are the nearest double, and one too large for a double is refused (1e-999 is 0).
   A text may have up to 4 GiB and 64 levels.  Nothing depends on the locale.
   ============================================================================================ */

enum { TW_MAX_JSON_DEPTH = 64 };

typedef enum tw_json_kind {
    TW_JSON_NONE = 0,                  /* no value at all: a NULL pointer */
    TW_JSON_NULL, TW_JSON_BOOL, TW_JSON_NUMBER, TW_JSON_STRING, TW_JSON_ARRAY, TW_JSON_OBJECT
} tw_json_kind;

/* Reads a text of `length` bytes (SIZE_MAX: up to its NUL).  The result is a root, to be freed with tw_json_free (or,
   at last, by tw_destroy).  NULL with the error "JSON: WHY (line L, column C)": TW_E_FORMAT, or TW_E_RANGE
   for what is too large or too deep.  The text may go away afterwards. */
TWDEF tw_json       *tw_json_parse(tw_context *tw, const char *text, size_t length);

/* The same from a file; errors name it: "config.json: WHY (gpt2/config.json, line L, column C)". */
TWDEF tw_json       *tw_json_load(tw_context *tw, const char *path);

/* Frees a whole document.  Only a root frees anything; NULL is fine. */
TWDEF void           tw_json_free(tw_json *root);

/* What a value is, and what is in it.  An object's members keep their order.
   `count` is the number of items or members, 0 for anything else. */
TWDEF tw_json_kind   tw_json_type(const tw_json *value);
TWDEF const tw_json *tw_json_get(const tw_json *object, const char *key);         /* NULL: no such member */
TWDEF const tw_json *tw_json_at(const tw_json *array_or_object, int64_t i);       /* NULL: i is out of range */
TWDEF int64_t        tw_json_count(const tw_json *array_or_object);
TWDEF const char    *tw_json_key(const tw_json *object, int64_t i);               /* the i-th member's name, or NULL */
TWDEF double         tw_json_number(const tw_json *value, double otherwise);
TWDEF int64_t        tw_json_int(const tw_json *value, int64_t otherwise);        /* also 3.0; not 3.5 nor 1e30 */
TWDEF bool           tw_json_bool(const tw_json *value, bool otherwise);
TWDEF const char    *tw_json_string(const tw_json *value, const char *otherwise); /* UTF-8 with a NUL behind it */
TWDEF size_t         tw_json_string_length(const tw_json *value);                 /* in bytes, NULs inside counted */
TWDEF size_t         tw_json_key_length(const tw_json *object, int64_t i);

/* New documents: an empty object, an empty array. */
TWDEF tw_json *tw_json_object(tw_context *tw);
TWDEF tw_json *tw_json_array(tw_context *tw);

/* Sets a member, new at the end or in the place of the old one, or adds an item to an array.  Texts are
   copied.  False with an error when there is no memory, a text is not UTF-8, a number is NaN or infinite, or the
   target is of another kind; false and quiet when it is NULL.  What returns a child returns NULL for these. */
TWDEF bool     tw_json_set_number(tw_json *object, const char *key, double value);
TWDEF bool     tw_json_set_float(tw_json *object, const char *key, float value);  /* 0.1f is written 0.1 */
TWDEF bool     tw_json_set_int(tw_json *object, const char *key, int64_t value);
TWDEF bool     tw_json_set_bool(tw_json *object, const char *key, bool value);
TWDEF bool     tw_json_set_string(tw_json *object, const char *key, const char *value);
TWDEF bool     tw_json_set_null(tw_json *object, const char *key);
TWDEF tw_json *tw_json_set_object(tw_json *object, const char *key);              /* the new, empty object */
TWDEF tw_json *tw_json_set_array(tw_json *object, const char *key);
TWDEF bool     tw_json_set_copy(tw_json *object, const char *key, const tw_json *value);   /* with all below it */
TWDEF bool     tw_json_push_number(tw_json *array, double value);
TWDEF bool     tw_json_push_int(tw_json *array, int64_t value);
TWDEF bool     tw_json_push_bool(tw_json *array, bool value);
TWDEF bool     tw_json_push_string(tw_json *array, const char *value);
TWDEF tw_json *tw_json_push_object(tw_json *array);
TWDEF tw_json *tw_json_push_array(tw_json *array);
TWDEF bool     tw_json_push_copy(tw_json *array, const tw_json *value);
TWDEF bool     tw_json_remove(tw_json *object, const char *key);                  /* false: there was none */

/* Writes a value as text, with `indent` blanks a level, or on one line for 0.  Returns the length
   of the whole text, as snprintf does; at most room-1 bytes and a NUL are written to `out`.
   Numbers are the shortest that read back the same, integers stay integers, UTF-8 stays UTF-8. */
TWDEF size_t   tw_json_write(const tw_json *value, int indent, char *out, size_t room);

/* The same into a file, with a newline at the end; the file is whole or not there. */
TWDEF bool     tw_json_save(tw_context *tw, const tw_json *value, const char *path, int indent);

/* ==== [tw:03] tensors ========================================================================

   A tensor is a block of numbers with a shape, row-major as in NumPy: in a [2,3] the last index
   moves fastest.  A view (reshape, transpose, slice) shares the numbers of the tensor it was made
   from and only reads them by other strides.

   Tensors made by an operation belong to the step and are gone after tw_end_step(); parameters live
   with the context or the model that made them.  NULL is the failed tensor: an operation on it gives
   NULL again and records nothing new, so a formula is checked once, at its end.
   ============================================================================================ */

typedef enum tw_dtype {
    TW_F32 = 0, TW_F16 = 1, TW_BF16 = 2,      /* as twb_type: weights may stay in 16 bits, arithmetic is in f32 */
    TW_F64, TW_I64, TW_I32, TW_I16, TW_I8, TW_U8, TW_BOOL, TW_U16, TW_U32, TW_U64, TW_F8_E4M3, TW_F8_E5M2,
    TW_DTYPE_COUNT
} tw_dtype;
TWDEF size_t      tw_dtype_size(tw_dtype dtype);           /* bytes of one element */
TWDEF const char *tw_dtype_name(tw_dtype dtype);           /* as safetensors writes it: "F32", "BF16", ... */

enum { TW_MAX_DIMS = 8 };
typedef struct tw_shape { int rank; int64_t dim[TW_MAX_DIMS]; } tw_shape;
TWDEF tw_shape    tw_shape0(void);                         /* a single number */
TWDEF tw_shape    tw_shape1(int64_t a);
TWDEF tw_shape    tw_shape2(int64_t a, int64_t b);
TWDEF tw_shape    tw_shape3(int64_t a, int64_t b, int64_t c);
TWDEF tw_shape    tw_shape4(int64_t a, int64_t b, int64_t c, int64_t d);

/* New tensors of the step.  data is copied; NULL data means zeros. */
TWDEF tw_tensor  *tw_tensor_from(tw_context *tw, tw_shape shape, const float *data);
TWDEF tw_tensor  *tw_ids(tw_context *tw, tw_shape shape, const int32_t *ids);            /* I32: token ids, labels, positions, masks */
TWDEF tw_tensor  *tw_full(tw_context *tw, tw_shape shape, float value);
TWDEF tw_tensor  *tw_randn(tw_context *tw, tw_shape shape, float mean, float deviation); /* normal, from the context's seed */

/* A parameter: lives until tw_destroy, has a gradient, starts as zeros (tw_fill_normal and friends change that). */
TWDEF tw_tensor  *tw_parameter(tw_context *tw, const char *name, tw_shape shape);
TWDEF void        tw_fill_normal(tw_tensor *t, float mean, float deviation);
TWDEF void        tw_fill_uniform(tw_tensor *t, float low, float high);
TWDEF void        tw_fill(tw_tensor *t, float value);

/* What a tensor is.  All of them take NULL: rank 0, count 0, no data. */
TWDEF tw_shape    tw_shape_of(const tw_tensor *t);
TWDEF int         tw_rank(const tw_tensor *t);
TWDEF int64_t     tw_dim(const tw_tensor *t, int axis);    /* axis -1 is the last */
TWDEF int64_t     tw_count(const tw_tensor *t);            /* number of elements */
TWDEF tw_dtype    tw_dtype_of(const tw_tensor *t);
TWDEF const char *tw_name_of(const tw_tensor *t);          /* a parameter's name, "" for others */
TWDEF bool        tw_is_contiguous(const tw_tensor *t);

/* The numbers of a contiguous F32 tensor, to read or write; NULL for any other. */
TWDEF float      *tw_data(tw_tensor *t);
TWDEF int32_t    *tw_data_i32(tw_tensor *t);
/* Copies the numbers out, whatever the strides or the dtype; room counts floats.  Returns how many there are. */
TWDEF int64_t     tw_read(const tw_tensor *t, float *out, int64_t room);
/* The number in a tensor of one element; NaN for a failed tensor. */
TWDEF float       tw_item(const tw_tensor *t);

/* Views.  In a shape, one -1 is worked out from the rest.  A tensor whose strides do not allow the view is copied first. */
TWDEF tw_tensor  *tw_reshape(tw_tensor *t, tw_shape shape);
TWDEF tw_tensor  *tw_transpose(tw_tensor *t, int axis_a, int axis_b);
TWDEF tw_tensor  *tw_permute(tw_tensor *t, const int *axes);                              /* axis i of the result is axes[i] of t */
TWDEF tw_tensor  *tw_slice(tw_tensor *t, int axis, int64_t start, int64_t length);

/* ==== [tw:04] operations and their gradients =======================================================

   Define by run: an operation computes at once and, if one of its operands wants a gradient, notes
   itself on the step's tape.  tw_backward(loss) walks the tape from the newest note to the oldest,
   and each operation hands its result's gradient on to its operands by the chain rule.

   Shapes broadcast as in NumPy.  Operations are as large as the work allows: a linear layer with its
   bias, activation and residual is one, and so is attention without the T x T matrix, or the head
   with the cross-entropy.
   Legend: B batch, T time (tokens), C channels, H heads, D head dimension, V vocabulary; [..., C]
   stands for any leading axes.
   ============================================================================================ */

/* one number in, one number out */
TWDEF tw_tensor *tw_neg(tw_tensor *x);
TWDEF tw_tensor *tw_exp(tw_tensor *x);
TWDEF tw_tensor *tw_log(tw_tensor *x);
TWDEF tw_tensor *tw_sqrt(tw_tensor *x);
TWDEF tw_tensor *tw_rsqrt(tw_tensor *x);
TWDEF tw_tensor *tw_square(tw_tensor *x);
TWDEF tw_tensor *tw_abs(tw_tensor *x);
TWDEF tw_tensor *tw_reciprocal(tw_tensor *x);
TWDEF tw_tensor *tw_tanh(tw_tensor *x);
TWDEF tw_tensor *tw_sigmoid(tw_tensor *x);
TWDEF tw_tensor *tw_relu(tw_tensor *x);
TWDEF tw_tensor *tw_gelu(tw_tensor *x);                     /* x Phi(x), by erf: BERT */
TWDEF tw_tensor *tw_gelu_tanh(tw_tensor *x);                /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): GPT-2 */
TWDEF tw_tensor *tw_quick_gelu(tw_tensor *x);               /* x sigmoid(1.702 x) */
TWDEF tw_tensor *tw_silu(tw_tensor *x);                     /* x sigmoid(x) */
TWDEF tw_tensor *tw_erf(tw_tensor *x);
TWDEF tw_tensor *tw_sin(tw_tensor *x);
TWDEF tw_tensor *tw_cos(tw_tensor *x);
TWDEF tw_tensor *tw_softplus(tw_tensor *x);                 /* log(1 + e^x) */
TWDEF tw_tensor *tw_scale(tw_tensor *x, float factor);      /* factor x */
TWDEF tw_tensor *tw_add_scalar(tw_tensor *x, float term);   /* x + term */

/* two tensors, broadcast against each other */
TWDEF tw_tensor *tw_add(tw_tensor *a, tw_tensor *b);
TWDEF tw_tensor *tw_sub(tw_tensor *a, tw_tensor *b);
TWDEF tw_tensor *tw_mul(tw_tensor *a, tw_tensor *b);
TWDEF tw_tensor *tw_div(tw_tensor *a, tw_tensor *b);
TWDEF tw_tensor *tw_maximum(tw_tensor *a, tw_tensor *b);    /* the gradient of a tie goes to b */
TWDEF tw_tensor *tw_minimum(tw_tensor *a, tw_tensor *b);
TWDEF tw_tensor *tw_where(const tw_tensor *mask, tw_tensor *a, tw_tensor *b);   /* mask I32, broadcast: nonzero takes a, zero takes b */

/* sums */
TWDEF tw_tensor *tw_sum(tw_tensor *x);                      /* of all numbers: shape [] */
TWDEF tw_tensor *tw_mean(tw_tensor *x);
TWDEF tw_tensor *tw_sum_axis(tw_tensor *x, int axis, bool keep_axis);
TWDEF tw_tensor *tw_mean_axis(tw_tensor *x, int axis, bool keep_axis);
TWDEF tw_tensor *tw_max_axis(tw_tensor *x, int axis, bool keep_axis);           /* the gradient goes to the first largest */
TWDEF tw_tensor *tw_argmax(tw_tensor *x, int axis);                             /* I32, the first largest; no gradient */
TWDEF tw_tensor *tw_logsumexp(tw_tensor *x, int axis, bool keep_axis);          /* log sum exp x, without overflow */

/* products */
TWDEF tw_tensor *tw_matmul(tw_tensor *a, tw_tensor *b);     /* [..., m, k] x [..., k, n] -> [..., m, n]; leading axes broadcast */

/* What a linear layer can do beside its product, in the same pass over memory. */
typedef enum tw_activation {
    TW_ACT_NONE = 0, TW_ACT_RELU, TW_ACT_GELU, TW_ACT_GELU_TANH, TW_ACT_SILU, TW_ACT_TANH, TW_ACT_QUICK_GELU, TW_ACT_SIGMOID, TW_ACT_COUNT
} tw_activation;
TWDEF bool       tw_activation_named(const char *name, tw_activation *out);     /* by Hugging Face's names: "gelu_new", "relu", ... */
TWDEF tw_tensor *tw_activate(tw_tensor *x, tw_activation activation);

/* act(x W^T + bias) + residual.  x [..., in]; weight [out, in], or [in, out] where weight_is_in_out (Conv1D of
   GPT-2); bias [out] or NULL; residual [..., out] or NULL.  The weight may be F16 or BF16 where no gradient is wanted. */
TWDEF tw_tensor *tw_linear_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, bool weight_is_in_out, tw_activation activation, tw_tensor *residual);

/* over the last axis */
TWDEF tw_tensor *tw_softmax(tw_tensor *x);
TWDEF tw_tensor *tw_log_softmax(tw_tensor *x);
TWDEF tw_tensor *tw_layer_norm_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, float eps);    /* Ba, Kiros, Hinton 2016; bias may be NULL */
TWDEF tw_tensor *tw_rms_norm_op(tw_tensor *x, tw_tensor *weight, float eps);                       /* Zhang, Sennrich 2019; T5's norm */

/* table[ids]: table [V, C], ids I32 [...] -> [..., C] */
TWDEF tw_tensor *tw_embedding_op(tw_tensor *table, const tw_tensor *ids);
/* Zero with probability p, else x / (1 - p); nothing at all outside of training. */
TWDEF tw_tensor *tw_dropout(tw_tensor *x, float p);

/* Attention (Vaswani et al. 2017): softmax(scale q k^T + bias, masked) v, a tile at a time (Dao et al. 2022).
   q [B, Tq, H, D]; k, v [B, Tk, Hkv, D] with H a multiple of Hkv -> [B, Tq, H, D].  Views are read in place. */
typedef struct tw_attention_desc {
    float      scale;            /* usually 1 / sqrt(D); 0 means just that */
    bool       causal;           /* query i sees keys 0 ... query_start + i */
    int64_t    query_start;      /* where query 0 stands among the keys: Tk - Tq with a cache */
    tw_tensor *prefix;           /* I32 [B or 1]: with causal, every query sees keys 0 ... prefix - 1 too; or NULL */
    tw_tensor *key_mask;         /* I32 [B, Tk], 0 hides a key; or NULL */
    tw_tensor *mask;             /* I32 [B or 1, Tq, Tk], 0 hides; or NULL */
    tw_tensor *bias;             /* F32 [B or 1, H or 1, Tq, Tk], added to the scores, has a gradient; or NULL */
    /* The same where it depends on the distance alone: F32 [H or 1, Tq + Tk - 1], query i and key j get [h, j - i + Tq - 1].
       Instead of bias; no Tq x Tk numbers are made of it. */
    tw_tensor *distance_bias;
    float      dropout;          /* on the probabilities, in training */
} tw_attention_desc;
TWDEF tw_tensor *tw_attention(tw_tensor *q, tw_tensor *k, tw_tensor *v, const tw_attention_desc *how);

/* Rotary positions (Su et al. 2021) on the first rotary_dim channels of x [B, T, H, D]; positions I32 [B, T]. */
TWDEF tw_tensor *tw_rope(tw_tensor *x, const tw_tensor *positions, int64_t rotary_dim, bool interleaved, float theta);

/* the same numbers in other places */
TWDEF tw_tensor *tw_contiguous(tw_tensor *x);               /* x itself, or a row-major copy of a view */
TWDEF tw_tensor *tw_expand(tw_tensor *x, tw_shape shape);   /* repeats axes of length 1 */
TWDEF tw_tensor *tw_concat(tw_tensor *const *list, int count, int axis);
TWDEF tw_tensor *tw_select(tw_tensor *x, const tw_tensor *index);   /* x [..., C], index I32 [...]: x[..., index]; shape [...] */

/* images [batch, channels, height, width], as in PyTorch.  weight [out, in/groups, kernel, kernel]; bias [out] or NULL.  Pooling
   takes square windows; batch norm uses the batch's statistics in training and moves the running ones towards them. */
TWDEF tw_tensor *tw_conv2d_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, int64_t stride, int64_t padding, int64_t dilation, int64_t groups);
TWDEF tw_tensor *tw_max_pool2d(tw_tensor *x, int64_t kernel, int64_t stride, int64_t padding);
TWDEF tw_tensor *tw_avg_pool2d(tw_tensor *x, int64_t kernel, int64_t stride, int64_t padding);
TWDEF tw_tensor *tw_batch_norm_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, tw_tensor *running_mean, tw_tensor *running_var, float eps, float momentum);

/* losses: shape [] */
TWDEF tw_tensor *tw_mse_loss(tw_tensor *x, tw_tensor *target);                                     /* mean of squared differences */
/* Mean of -log softmax(logits)[label] over the labels that are not -100; logits [..., V], labels I32 [...].  Smoothing
   as in transformers.  No label at all: NaN, and no gradient. */
TWDEF tw_tensor *tw_cross_entropy(tw_tensor *logits, const tw_tensor *labels, float label_smoothing);
/* The same of logits = hidden weight^T, which are never held whole: hidden [..., C], weight [V, C]. */
TWDEF tw_tensor *tw_linear_cross_entropy(tw_tensor *hidden, tw_tensor *weight, const tw_tensor *labels, float label_smoothing);
TWDEF tw_tensor *tw_bce_with_logits(tw_tensor *logits, tw_tensor *target);                         /* mean of binary cross-entropies */

/* Gradient checkpointing (Chen et al. 2016): runs fn now without keeping anything inside it, and again in the
   backward pass.  fn must make one tensor from the inputs, and use no other tensor of the step that wants a gradient. */
typedef tw_tensor *(*tw_block_fn)(void *block, tw_tensor *const *inputs);
TWDEF tw_tensor *tw_checkpoint(tw_context *tw, tw_block_fn fn, void *block, size_t block_bytes, tw_tensor *const *inputs, int count);

/* gradients */
TWDEF bool       tw_backward(tw_tensor *loss);               /* loss has one element.  Parameters' gradients are added to */
TWDEF tw_tensor *tw_grad(tw_tensor *t);                      /* its gradient as a tensor of the step; NULL: it has none */
TWDEF void       tw_require_grad(tw_tensor *t, bool wanted); /* a parameter: freeze it; a tensor of the step: keep its gradient */
TWDEF void       tw_zero_grad_of(tw_tensor *parameter);
TWDEF bool       tw_no_grad(tw_context *tw, bool on);        /* operations note nothing while it is on; returns what it was */
TWDEF bool       tw_training(tw_context *tw, bool on);       /* dropout happens only while it is on; returns what it was */

/* The numeric check of a gradient: compares, for every element of every input, the gradient of fn's one-element
   result with a four-point difference quotient of step eps.  Returns the worst error relative to the largest
   gradient of that input (the sentence in `where`, if room is given, says which element), or NaN if fn failed. */
typedef tw_tensor *(*tw_scalar_fn)(void *user, tw_tensor *const *inputs);
TWDEF double     tw_check_gradients(tw_context *tw, tw_scalar_fn fn, void *user, tw_tensor *const *parameters, int count, float eps, char *where, size_t room);

/* The operations by name, so that a test can see that none is left unchecked. */
TWDEF int         tw_operation_count(void);
TWDEF const char *tw_operation_name(int index);
/* The operations noted in this step, 0 is the newest; NULL: there are no more. */
TWDEF const char *tw_tape_name(const tw_context *tw, int64_t index);

/* ==== [tw:05] layers =========================================================================

   A layer is a struct with its parameters and a forward function.  Its parameters belong to a model,
   under the names that Hugging Face's checkpoints give them: tw_enter() and tw_leave() put "h.3.attn"
   in front of "c_attn.weight".  A layer's init function returns false when there was an error.
   ============================================================================================ */

/* A model of your own: put layers into it, train it with the verbs of chapter "training", save it. */
TWDEF tw_model  *tw_model_create(tw_context *tw, const char *name);
TWDEF void       tw_model_free(tw_model *model);                      /* and all that belongs to it; NULL is fine */
TWDEF tw_context *tw_context_of(const tw_model *model);

/* Names of what is added from now on begin with name (and .index, if that is not negative). */
TWDEF void       tw_enter(tw_model *model, const char *name, int64_t index);
TWDEF void       tw_leave(tw_model *model);

/* A parameter of the model, and one that is saved but not trained (a running mean).  New numbers are normal with
   the model's initializer_range (0.02 unless changed); what a file brings replaces them. */
TWDEF tw_tensor *tw_add_parameter(tw_model *model, const char *name, tw_shape shape);
TWDEF tw_tensor *tw_add_buffer(tw_model *model, const char *name, tw_shape shape, float value);
TWDEF void       tw_set_initializer_range(tw_model *model, float deviation);

/* All parameters in the order they were added; the index runs below tw_parameter_count(). */
TWDEF int64_t    tw_parameter_count(const tw_model *model);
TWDEF tw_tensor *tw_parameter_at(const tw_model *model, int64_t index);
TWDEF tw_tensor *tw_parameter_named(const tw_model *model, const char *name);     /* NULL: none, and no error */
/* How many numbers the parameters hold; trainable_only leaves out the frozen ones.  (Hugging Face's num_parameters) */
TWDEF int64_t    tw_num_parameters(const tw_model *model, bool trainable_only);

/* y = x W^T + b; weight [out, in], or [in, out] for tw_conv1d_init, which is how GPT-2 stores it. */
typedef struct tw_linear { tw_tensor *weight, *bias; bool weight_is_in_out; tw_model *model; } tw_linear;
TWDEF bool       tw_linear_init(tw_model *model, tw_linear *layer, const char *name, int64_t in, int64_t out, bool bias);
TWDEF bool       tw_conv1d_init(tw_model *model, tw_linear *layer, const char *name, int64_t in, int64_t out);
TWDEF tw_tensor *tw_linear_forward(const tw_linear *layer, tw_tensor *x);                                  /* [..., in] -> [..., out] */
TWDEF tw_tensor *tw_linear_activate(const tw_linear *layer, tw_tensor *x, tw_activation activation);       /* act(x W^T + b), in one */
TWDEF tw_tensor *tw_linear_residual(const tw_linear *layer, tw_tensor *x, tw_tensor *residual, float dropout);   /* residual + dropout(x W^T + b) */

typedef struct tw_embedding { tw_tensor *weight; bool has_padding; int32_t padding; } tw_embedding;         /* [rows, dim] */
TWDEF bool       tw_embedding_init(tw_model *model, tw_embedding *layer, const char *name, int64_t rows, int64_t dim);
TWDEF tw_tensor *tw_embedding_forward(const tw_embedding *layer, const tw_tensor *ids);                    /* I32 [...] -> [..., dim] */
TWDEF void       tw_embedding_padding(tw_embedding *layer, int64_t row);                                   /* that row never learns, and starts as zeros */

typedef struct tw_layer_norm { tw_tensor *weight, *bias; float eps; } tw_layer_norm;
TWDEF bool       tw_layer_norm_init(tw_model *model, tw_layer_norm *layer, const char *name, int64_t dim, float eps);
TWDEF tw_tensor *tw_layer_norm_forward(const tw_layer_norm *layer, tw_tensor *x);

typedef struct tw_rms_norm { tw_tensor *weight; float eps; } tw_rms_norm;
TWDEF bool       tw_rms_norm_init(tw_model *model, tw_rms_norm *layer, const char *name, int64_t dim, float eps);
TWDEF tw_tensor *tw_rms_norm_forward(const tw_rms_norm *layer, tw_tensor *x);

typedef struct tw_conv2d { tw_tensor *weight, *bias; int64_t stride, padding, dilation, groups; } tw_conv2d;
TWDEF bool       tw_conv2d_init(tw_model *model, tw_conv2d *layer, const char *name, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding, bool bias);
TWDEF tw_tensor *tw_conv2d_forward(const tw_conv2d *layer, tw_tensor *x);

typedef struct tw_batch_norm { tw_tensor *weight, *bias, *running_mean, *running_var; float eps, momentum; } tw_batch_norm;
TWDEF bool       tw_batch_norm_init(tw_model *model, tw_batch_norm *layer, const char *name, int64_t channels);
TWDEF tw_tensor *tw_batch_norm_forward(const tw_batch_norm *layer, tw_tensor *x);

/* ==== [tw:06] blocks =========================================================================

   Layers make blocks: attention and a small two-layer network ("MLP"), each added to a residual
   stream x of shape [B, T, C], are what every transformer repeats.
   ============================================================================================ */

/* The keys and values of earlier tokens, so that a new token is computed alone: for every layer [B, H, room, D]. */
typedef struct tw_cache tw_cache;
TWDEF tw_cache  *tw_cache_create(tw_context *tw, int64_t layers, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t room);
TWDEF void       tw_cache_free(tw_cache *cache);
TWDEF int64_t    tw_cache_length(const tw_cache *cache);              /* tokens in it */
TWDEF void       tw_cache_truncate(tw_cache *cache, int64_t length);  /* forgets the tokens from `length` on */
TWDEF bool       tw_cache_reorder(tw_cache *cache, const int32_t *parents);   /* row b becomes what row parents[b] was: for beams */
/* A decoder reads its encoder too: room for the keys and values of `tokens` encoder tokens a layer, which the first pass
   computes and all later ones use.  rows: the batch, or 1 where all rows read one text. */
TWDEF bool       tw_cache_add_encoder(tw_cache *cache, int64_t rows, int64_t tokens);

/* How a model runs: what is kept of it, and what it may read. */
typedef struct tw_pass {
    tw_cache *cache;               /* NULL: no earlier tokens, and none are kept */
    bool      hidden_states;       /* give back every layer's output */
    bool      last_token_only;     /* logits of the last position only */
    bool      no_logits;           /* the loss alone is asked for: the head computes it in blocks */
    float     label_smoothing;
} tw_pass;

/* GPT-2's block (Radford et al. 2019): x + attention(norm x), then x + mlp(norm x). */
typedef struct tw_gpt2_block {
    tw_layer_norm ln_1, ln_cross_attn, ln_2;
    tw_linear     c_attn, c_proj;                       /* self-attention: q, k and v in one product */
    tw_linear     cross_q, cross_kv, cross_proj;        /* cross-attention, where the config asks for it */
    tw_linear     mlp_fc, mlp_proj;
    tw_activation activation;
    int64_t       heads, layer;
    float         scale, attn_dropout, resid_dropout;
    bool          has_cross;
} tw_gpt2_block;

typedef struct tw_gpt2_input {                          /* what a block reads beside x */
    const tw_gpt2_block *block;
    const tw_pass       *pass;
    tw_tensor           *key_mask;                      /* I32 [B, Tk], or NULL */
    tw_tensor           *encoder_mask;                  /* I32 [B, Te], or NULL */
} tw_gpt2_input;

/* inputs[0] is x [B, T, C], inputs[1] the encoder's hidden states [B, Te, C] or missing; `how` is a tw_gpt2_input. */
TWDEF tw_tensor *tw_gpt2_block_forward(void *how, tw_tensor *const *inputs);

/* BERT's block (Devlin et al. 2018): the norm comes after the sum, x = norm(x + attention x), then x = norm(x + mlp x). */
typedef struct tw_bert_attention { tw_linear query, key, value, dense; tw_layer_norm norm; } tw_bert_attention;
typedef struct tw_bert_block {
    tw_bert_attention attention, cross;                 /* cross-attention, where the config asks for it */
    tw_linear     intermediate, output;
    tw_layer_norm norm;
    tw_activation activation;
    int64_t       heads, layer;
    float         attention_dropout, hidden_dropout;
    bool          causal, has_cross;                    /* causal: a decoder */
} tw_bert_block;

typedef struct tw_bert_input {                          /* what a block reads beside x */
    const tw_bert_block *block;
    const tw_pass       *pass;
    tw_tensor           *key_mask;                      /* I32 [B, Tk], or NULL */
    tw_tensor           *mask;                          /* I32 [B, Tq, Tk], or NULL: who sees whom */
    tw_tensor           *encoder_mask;                  /* I32 [B, Te], or NULL */
} tw_bert_input;

/* inputs[0] is x [B, T, C], inputs[1] the encoder's hidden states [B, Te, C] or missing; `how` is a tw_bert_input. */
TWDEF tw_tensor *tw_bert_block_forward(void *how, tw_tensor *const *inputs);

/* GLM's block (Du et al. 2022): GPT-2's with weights [out, in], whose attention may also read memories: what came into
   the same block for earlier tokens (Dai et al. 2019). */
typedef struct tw_glm_block {
    tw_layer_norm input_layernorm, post_attention_layernorm;
    tw_linear     query_key_value, dense;               /* q, k and v as thirds of one product */
    tw_linear     dense_h_to_4h, dense_4h_to_h;
    int64_t       heads, layer;
    float         attention_dropout, output_dropout;
} tw_glm_block;

typedef struct tw_glm_input {
    const tw_glm_block *block;
    const tw_pass      *pass;
    bool                has_memory;                     /* inputs[1] is there */
    tw_tensor          *prefix;                         /* I32 [B or 1]: so many keys (memories among them) every query sees; or NULL */
    tw_tensor          *key_mask;                       /* I32 [B, M + T], or NULL */
    tw_tensor          *mask;                           /* I32 [B or 1, T, M + T] in place of the causal order, or NULL */
} tw_glm_input;

/* inputs[0] is x [B, T, C], inputs[1] memories [B, M, C]; `how` is a tw_glm_input. */
TWDEF tw_tensor *tw_glm_block_forward(void *how, tw_tensor *const *inputs);

/* The block of GLM-4 and its kin: RMS norms, rotary positions, grouped heads, and an MLP with a gate (Shazeer 2020):
   x + attention(norm x), then x + down(act(gate) up) of norm x; where has_post_norms, each part is normed again before
   it is added. */
typedef struct tw_rotary_block {
    tw_rms_norm   input_layernorm, post_attention_layernorm, post_self_attn_layernorm, post_mlp_layernorm;
    tw_linear     q_proj, k_proj, v_proj, o_proj;
    tw_linear     gate_up_proj, down_proj;              /* one product for both: the gate first */
    tw_activation activation;
    int64_t       heads, kv_heads, head_dim, rotary_dim, layer;
    float         theta, attention_dropout;
    bool          has_post_norms;
} tw_rotary_block;

typedef struct tw_rotary_input {
    const tw_rotary_block *block;
    const tw_pass         *pass;
    tw_tensor             *positions;                   /* I32 [B, T] */
    tw_tensor             *key_mask;                    /* I32 [B, Tk], or NULL */
} tw_rotary_input;

/* inputs[0] is x [B, T, C]; `how` is a tw_rotary_input. */
TWDEF tw_tensor *tw_rotary_block_forward(void *how, tw_tensor *const *inputs);

/* T5's attention (Raffel et al. 2020): no biases, no scaling of the scores (the initial weights of q have it in them),
   and heads whose channels need not add up to the width of the stream. */
typedef struct tw_t5_attention {
    tw_rms_norm norm;
    tw_linear   q, k, v, o;
    int64_t     heads, head_dim;
} tw_t5_attention;

/* T5's block: x + self(norm x), in a decoder x + cross(norm x, encoder), then x + wo(act(wi norm x)), or gated
   (Shazeer 2020): x + wo(act(wi_0 norm x) * (wi_1 norm x)). */
typedef struct tw_t5_block {
    tw_t5_attention self, cross;
    tw_rms_norm     norm;
    tw_linear       wi, wi_1, wo;                       /* wi_1: where it is gated */
    tw_activation   activation;
    int64_t         layer;
    float           dropout;
    bool            decoder, gated;
} tw_t5_block;

typedef struct tw_t5_input {
    const tw_t5_block *block;
    const tw_pass     *pass;
    tw_tensor         *key_mask;                        /* I32 [B, Tk], or NULL */
    tw_tensor         *encoder_mask;                    /* I32 [B, Te], or NULL */
} tw_t5_input;

/* inputs[0] is x [B, T, C], inputs[1] the bias by distance [H, T + Tk - 1], inputs[2] the encoder's hidden states [B, Te, C]: only
   in a decoder, and only as long as the cache does not have its keys and values; `how` is a tw_t5_input. */
TWDEF tw_tensor *tw_t5_block_forward(void *how, tw_tensor *const *inputs);

/* Which row of T5's table of biases a key `distance` places after the query takes (before it: negative).  The first half of
   the buckets are for one distance each, the others grow with its logarithm up to max_distance; an encoder (both_ways)
   takes half of them all for keys behind the query, a decoder sees none and gives those that are before it all. */
TWDEF int64_t tw_t5_bucket(int64_t distance, bool both_ways, int64_t buckets, int64_t max_distance);

/* ==== [tw:07] models =========================================================================

   Blocks make models: an embedding, the blocks, a last norm, and a head for the task.  A forward call
   takes named inputs, ignores those that the model does not know, and returns named outputs - "loss",
   "logits", "hidden_states.3" - with the names that Hugging Face gives the arguments and results.
   ============================================================================================ */

enum { TW_MAX_NAMED = 160 };
/* Named tensors: the inputs of a forward call ("input_ids", "labels", ...), or its outputs. */
typedef struct tw_batch { int count; const char *name[TW_MAX_NAMED]; tw_tensor *tensor[TW_MAX_NAMED]; } tw_batch;
typedef tw_batch tw_outputs;
TWDEF tw_tensor *tw_batch_get(const tw_batch *batch, const char *name);                        /* NULL: not in it, and no error */
TWDEF bool       tw_batch_set(tw_batch *batch, const char *name, tw_tensor *tensor);           /* the name must outlive the step; false: the batch is full */

/* A new model with random weights from the text of a config.json. */
TWDEF tw_model  *tw_from_config(tw_context *tw, const char *config_json);
TWDEF tw_model  *tw_from_config_with(tw_context *tw, const char *config_json, const char *task);   /* task picks the head; NULL: architectures does */
/* The model's configuration, to read. */
TWDEF const tw_json *tw_config_of(const tw_model *model);
TWDEF const char    *tw_class_of(const tw_model *model);                                       /* "GPT2LMHeadModel" */
TWDEF int64_t        tw_max_positions(const tw_model *model);                                  /* the longest sequence; 0: no limit */

/* One forward pass in the context's mode (tw_training, tw_no_grad).  out may be NULL where only the loss's sake matters. */
TWDEF bool       tw_model_forward(tw_model *model, const tw_batch *inputs, const tw_pass *pass, tw_outputs *out);

/* The forward function of a model of your own (made with tw_model_create). */
typedef bool (*tw_forward_fn)(tw_model *model, void *user, const tw_batch *inputs, const tw_pass *pass, tw_outputs *out);
TWDEF void       tw_set_forward(tw_model *model, tw_forward_fn forward, void *user);

/* All dropout probabilities of the model. */
TWDEF bool       tw_set_dropout(tw_model *model, float p);
/* Recompute each block in the backward pass instead of keeping its inside: less memory, a third more time. */
TWDEF void       tw_gradient_checkpointing(tw_model *model, bool on);


/* ==== [tw:08] files: checkpoints ==============================================================

   Weights on disk are named tensors.  Hugging Face's format for them is safetensors: 8 bytes with
   the length of a header, the header, which is JSON,

       {"__metadata__":{"format":"pt"},
        "wte.weight":{"dtype":"F32","shape":[50257,768],"data_offsets":[0,154389504]}, ...}

   and then the numbers, little-endian and row-major, without holes.  Large models come in shards,
   with an index that tells which tensor is in which file.

   A file may come from anywhere, so every promise it makes is checked before it is used: lengths,
   offsets and shapes against each other and against the file, names for being there once, shards
   for lying in the folder.  Opening costs time and memory by the header, not by the weights, which
   are mapped into memory and read when they are used.  (Numbers are taken as they are: this chapter
   supports little-endian machines.)
   ============================================================================================ */

enum {
    TW_MAX_HEADER_BYTES = 100000000,   /* of a safetensors file, as in the reference implementation */
    TW_MAX_WEIGHTS = 1000000           /* tensors in one checkpoint */
};

/* One tensor of a file, or one to be written. */
typedef struct tw_weight {
    const char *name;
    tw_dtype    dtype;
    int         rank;
    int64_t     shape[TW_MAX_DIMS];
    const void *data;                  /* in the file's memory, at any address: see aligned */
    size_t      bytes;
    bool        writable;              /* data may be changed in memory; the file does not change with it */
    bool        aligned;               /* data can be read as an array of its dtype; else copy it out with memcpy */
    const char *file;                  /* where it is: for error messages */
    size_t      offset;                /* and at which byte of that file */
} tw_weight;

typedef struct tw_weights tw_weights;

/* Opens a .safetensors file, a .safetensors.index.json with the shards it names, or a folder with one of the two.
   NULL with TW_E_MISSING (no such file or shard), TW_E_FILE, TW_E_FORMAT (malformed: the sentence has tensor,
   file and byte), TW_E_UNSUPPORTED (a dtype not listed above, more than 8 dimensions) or TW_E_RANGE (a limit). */
TWDEF tw_weights      *tw_open_weights(tw_context *tw, const char *path);

/* The same from bytes in memory, which must stay there until tw_close_weights. */
TWDEF tw_weights      *tw_weights_from_memory(tw_context *tw, const void *bytes, size_t size);

/* Closes a checkpoint: its tensors and their data are gone.  NULL is fine. */
TWDEF void             tw_close_weights(tw_weights *weights);

/* The tensors in the order of the headers, and by name; the values of __metadata__.  NULL: none, and no error. */
TWDEF size_t           tw_weights_count(const tw_weights *weights);
TWDEF const tw_weight *tw_weights_at(const tw_weights *weights, size_t i);
TWDEF const tw_weight *tw_weights_find(const tw_weights *weights, const char *name);
TWDEF const char      *tw_weights_metadata(const tw_weights *weights, const char *key);

/* Writes a safetensors file: of each weight the name, dtype, shape and data are used.  The order in the file is the
   reference implementation's (widest dtype first, then by name), whatever the order of the list.
   metadata is an object of strings; NULL writes {"format":"pt"}, which transformers asks for.
   The file is whole or not there; false with the error otherwise. */
TWDEF bool tw_save_weights(tw_context *tw, const char *path, const tw_weight *weights, size_t count,
                           const tw_json *metadata);

/* The same for numbers that are not there yet (converted to 16 bits piece by piece, say): `source` is asked for one
   tensor after the other, in the order of the file, and hands exactly weights[index]'s bytes to the writer, in
   as many pieces as it likes.  It returns false to give up; then no file is written. */
typedef bool (*tw_weight_source)(void *user, size_t index, tw_writer writer);
TWDEF bool tw_save_weights_from(tw_context *tw, const char *path, const tw_weight *weights, size_t count,
                                const tw_json *metadata, tw_weight_source source, void *user);

/* ==== [tw:09] tokenizers ======================================================================

   A model reads numbers.  A tokenizer cuts a text into pieces of a fixed vocabulary and gives each
   its number, and puts a text together again from numbers.  All of them work in five steps:

       text -> [normalize] -> [split into words] -> [cut words into pieces] -> [add special tokens] -> ids
                lower case,    at blanks, at         BPE, WordPiece,            [CLS] ... [SEP],
                NFKC, ...      punctuation, ...      Unigram                    ... </s>

   BYTE PAIR ENCODING (Sennrich, Haddow and Birch 2016).  Begin with single characters; while two
   neighbours are a pair of the list of merges, join the pair that is highest in the list, the
   leftmost first.  The list is learned from a text: join the most frequent pair, count again, until
   the vocabulary is full.  GPT-2 starts from bytes instead of characters, so no text is unknown,
   and writes each byte as a printable character ("\n" is U+010A, a blank is U+0120), so that its files
   are plain text.

   WORDPIECE (Schuster and Nakajima 2012; BERT).  From the left, the longest piece that fits; a piece inside a
   word is spelled with ## in front.  A word that cannot be cut whole is one [UNK].

   UNIGRAM (Kudo 2018; SentencePiece, T5).  Every piece has a log-probability.  Of all ways to cut, take
   the most probable one: best(end) = max over pieces (best(end - piece) + score(piece)), which is
   Viterbi's algorithm, and then walk back from the end.

   Ids are those of Hugging Face's `tokenizers` (tokenizer.json, vocab.txt, vocab.json with
   merges.txt) and of `sentencepiece` (.model files), for every text.  Time is linear in the text's
   length (n log n for a single word), and nothing recurses.  A byte that is not UTF-8 counts as the
   character U+FFFD.  One tokenizer serves one thread at a time.
   ============================================================================================ */

/* Opens the tokenizer of a model's folder: tokenizer.json if there is one; else spiece.model or another
   SentencePiece file; vocab.json with merges.txt (RoBERTa's or GPT-2's, by config.json's model_type); vocab.txt
   (BERT's).  tokenizer_config.json, special_tokens_map.json and added_tokens.json are heeded.  NULL with an error:
   TW_E_MISSING without any of these, TW_E_FORMAT where one is malformed, TW_E_UNSUPPORTED for a part that we lack. */
TWDEF tw_tokenizer *tw_load_tokenizer(tw_context *tw, const char *folder);

/* Frees it with all that it returned.  NULL is fine. */
TWDEF void tw_free_tokenizer(tw_tokenizer *tokenizer);

/* How to tokenize.  NULL, or all zero: one text with its special tokens, whole, not padded. */
typedef enum tw_truncation { TW_LONGEST_FIRST, TW_ONLY_FIRST, TW_ONLY_SECOND } tw_truncation;
typedef struct tw_tokenize_desc {
    bool          no_special;          /* leave out the tokens that are put around the text ([CLS], </s>, ...) */
    const char   *pair;                /* a second text: question and passage, premise and hypothesis.  NULL: none */
    size_t        pair_length;         /* its bytes */
    int64_t       max_length;          /* cut to that many tokens, the special ones included; 0: any length */
    tw_truncation truncation;          /* which text of a pair is cut.  An error where that cannot suffice */
    bool          truncate_left;       /* cut off the beginning, not the end */
    int64_t       pad_to;              /* fill up to that many tokens with the padding token; 0: do not */
    /* and on to a multiple of this; 0: do not.  What is longer than pad_to is left as it is */
    int64_t       pad_to_multiple_of;
    bool          pad_left;
} tw_tokenize_desc;

/* What came out: `count` tokens in parallel lists, which belong to the tokenizer and last until its next
   tw_tokenize. */
typedef struct tw_encoding {
    int64_t        count;
    const int32_t *ids;
    const int32_t *type_ids;           /* which text of a pair: BERT's token_type_ids */
    const int32_t *attention_mask;     /* 0 for padding */
    const int32_t *special_mask;       /* 1 for what is not of the text: special tokens put around it, padding */
    const int32_t *words;              /* the number of the word it is from, from 0 in each text; -1: none */
    /* begin and end in the text, in code points, end exclusive; [0,0] where special_mask is 1 */
    const int64_t (*offsets)[2];
} tw_encoding;

/* Tokenizes `length` bytes.  Special tokens written in the text are recognised and keep their place.
   Returns out->count, or -1 with an error (and *out is zero): TW_E_RANGE for a text of 2 GiB or more or a
   max_length without room, TW_E_FORMAT where a text has a character for which the vocabulary lacks even an
   unknown token.
   A NULL tokenizer fails quietly: it is what a load that failed gives. */
TWDEF int64_t tw_tokenize(tw_tokenizer *tokenizer, const char *text, size_t length, const tw_tokenize_desc *how,
                          tw_encoding *out);

/* The text of these ids, with or without special tokens.  Ids that the vocabulary lacks are left out, as in
   `tokenizers`.  The text lasts until the next call; it may hold NUL characters: *length, unless NULL, gets its
   bytes. */
TWDEF const char *tw_detokenize(tw_tokenizer *tokenizer, const int32_t *ids, int64_t count, bool skip_special);
TWDEF const char *tw_detokenize_length(tw_tokenizer *tokenizer, const int32_t *ids, int64_t count, bool skip_special,
                                       size_t *length);

/* The same one token at a time, for a model that is still writing.  Feeding gives the new part of the text, whole
   characters only; an incomplete one waits for the next token.  All parts together, with the last one from
   tw_decoder_end, are the text that tw_detokenize gives of all ids.  Parts last until the decoder's next call. */
typedef struct tw_decoder tw_decoder;
TWDEF tw_decoder *tw_new_decoder(tw_tokenizer *tokenizer, bool skip_special);
TWDEF const char *tw_decoder_feed(tw_decoder *decoder, int32_t id);
TWDEF const char *tw_decoder_end(tw_decoder *decoder);          /* what was held back; the decoder is as new after it */
TWDEF void        tw_free_decoder(tw_decoder *decoder);         /* NULL is fine; the tokenizer frees it at the latest */

/* The vocabulary: a token's spelling (NULL: no such id), a spelling's id (-1: no such token), how many ids there are
   (the largest + 1, added tokens included), and the special tokens' ids by name, -1 where there is none:
   "bos", "eos", "pad", "unk", "cls", "sep", "mask". */
TWDEF const char *tw_token(const tw_tokenizer *tokenizer, int32_t id);
TWDEF int32_t     tw_token_id(const tw_tokenizer *tokenizer, const char *token);
TWDEF int64_t     tw_vocab_size(const tw_tokenizer *tokenizer);
TWDEF int32_t     tw_special_id(const tw_tokenizer *tokenizer, const char *name);
TWDEF bool        tw_is_special(const tw_tokenizer *tokenizer, int32_t id);

/* Learns a byte-level BPE of `vocab_size` tokens (at least 256 and the special ones) from a text of the user's own;
   fewer when the text has no more pairs.  The same text gives the same tokenizer everywhere, and the one that
   `tokenizers` makes of it.  NULL with an error; TW_E_STOPPED when the callback returned false. */
typedef struct tw_tokenizer_train_desc {
    const char *const *special_tokens;                          /* get the first ids; NULL: only "<|endoftext|>" */
    int64_t            special_count;
    int64_t            min_frequency;                           /* a pair must occur that often; 0: twice */
    bool             (*progress)(void *user, int64_t tokens, int64_t vocab_size);
    void              *user;
} tw_tokenizer_train_desc;
TWDEF tw_tokenizer *tw_train_tokenizer(tw_context *tw, const char *text, size_t length, int64_t vocab_size,
                                       const tw_tokenizer_train_desc *how);

/* Writes tokenizer.json and tokenizer_config.json, which `transformers` opens with equal ids, and vocab.json and
   merges.txt for BPE, vocab.txt for WordPiece,
       spiece.model for SentencePiece.  The folder is made if it is not there.  What cannot be said in
   tokenizer.json (SentencePiece's own normalizer) is saved as the file it came from. */
TWDEF bool tw_save_tokenizer(tw_tokenizer *tokenizer, const char *folder);

/* ==== [tw:10] opening and saving models ======================================================

   A model is a folder as Hugging Face lays it out.  What transformers saves opens here, whole or in
   shards; what is saved here opens there.  Names are matched with or without the base model's prefix
   ("transformer."), LayerNorm's gamma and beta are weight and bias, tensors that the model does not
   know are left alone, and one that is missing is an error.
   ============================================================================================ */

/* Opens a model: a folder as Hugging Face lays it out (config.json, weights, tokenizer files).  Weights stay in the
   file's own memory where they can (mapped, f32); 16-bit matrices stay 16-bit until something wants to train them.
   NULL: tw_error() says what, why and where, and nothing is left behind. */
TWDEF tw_model  *tw_from_pretrained(tw_context *tw, const char *folder);

typedef struct tw_load_desc {
    const char *task;              /* picks the head instead of config.json's architectures: "lm", "classification", ... */
    bool        to_f32;            /* all weights in f32, whatever the file has */
    bool        no_tokenizer;      /* leave the tokenizer files alone */
    bool        new_head;          /* parts of the head that the weights lack begin as new ones: to fine-tune a base model */
    bool        checkpoint_activations;   /* as tw_gradient_checkpointing */
} tw_load_desc;
TWDEF tw_model  *tw_from_pretrained_with(tw_context *tw, const char *folder, const tw_load_desc *how);   /* how may be NULL */

/* Opens a model from files that are in memory already: names as in a folder ("config.json", "model.safetensors",
   "tokenizer.json", ...).  The bytes must stay where they are as long as the model lives. */
typedef struct tw_memory_file { const char *name; const void *data; size_t size; } tw_memory_file;
TWDEF tw_model  *tw_from_memory(tw_context *tw, const tw_memory_file *files, int count);

/* Writes a folder that opens again here and in transformers: config.json, model.safetensors and the tokenizer's files.
   Each file is written beside its target and renamed over it.  The parameters' dtypes are kept. */
TWDEF bool       tw_save_pretrained(tw_model *model, const char *folder);
TWDEF bool       tw_save_pretrained_as(tw_model *model, const char *folder, tw_dtype dtype);   /* floating weights as TW_F32, TW_F16 or TW_BF16 */

/* Makes a folder, with all above it. */
TWDEF bool       tw_make_folders(tw_context *tw, const char *path);

/* Turns every weight into f32 (training needs that), or every matrix into a 16-bit type (inference only). */
TWDEF bool       tw_to(tw_model *model, tw_dtype dtype);

/* From folder to folder: every floating tensor gets the dtype (rounded to nearest even), all names stay, also of tensors
   that no model here knows; config.json and the tokenizer's files come along. */
TWDEF bool       tw_convert_pretrained(tw_context *tw, const char *from_folder, const char *to_folder, tw_dtype dtype);

TWDEF tw_tokenizer *tw_tokenizer_of(const tw_model *model);                    /* NULL: it has none */
TWDEF void          tw_set_tokenizer(tw_model *model, tw_tokenizer *tokenizer);   /* the model uses it, and saves it; it stays yours */

/* ==== [tw:11] optimizers and schedulers ======================================================

   An optimizer changes the parameters by their gradients, a scheduler the learning rate by the step.
   Both are rows of a table, chosen by name and set up from JSON, with Hugging Face's and PyTorch's
   names for the numbers.

       "adamw"      lr 1e-3, betas [0.9, 0.999], eps 1e-8, weight_decay 0.01 (decoupled)
       "adam"       the same, weight_decay 0, added to the gradient (L2)
       "sgd"        lr 1e-3, momentum 0, dampening 0, nesterov false, weight_decay 0 (L2)
       "lion"       lr 1e-4, betas [0.9, 0.99], weight_decay 0
       "adafactor"  lr 1e-3, decay_rate -0.8, clip_threshold 1, eps [1e-30, 1e-3], weight_decay 0;
                    transformers' with scale_parameter and relative_step off

   Weight decay spares biases and the weights of norms, as the Hugging Face Trainer does.
   Schedulers give the factor on lr for step s = 0, 1, 2, ... (the first update uses s = 0):
       "linear", "cosine" (num_cycles 0.5), "cosine_with_restarts" (num_cycles 1), "polynomial" (power 1, lr_end 1e-7),
       "constant", "constant_with_warmup", "inverse_sqrt" (timescale = warmup, or 10000);
       all but "constant" take warmup_steps, and those that end take max_steps.
   ============================================================================================ */
typedef struct tw_scheduler { int kind; int64_t warmup_steps, max_steps; double lr, num_cycles, power, lr_end, timescale; } tw_scheduler;
/* Reads a scheduler's numbers from JSON text (NULL: defaults); false: an unknown name or a number that cannot be used. */
TWDEF bool   tw_scheduler_init(tw_context *tw, tw_scheduler *scheduler, const char *name, const char *options_json, double lr);
TWDEF double tw_scheduler_factor(const tw_scheduler *scheduler, int64_t step);

/* ==== [tw:12] losses and metrics =============================================================

   A loss turns outputs and labels into the one number that is made smaller; a metric sums up what a
   person wants to know, over many batches.  Both are rows of a table, chosen by name.

       losses   "model" (the one that the model's own head gives), "cross_entropy", "mse", "bce"
       metrics  "loss" (mean over labelled tokens), "perplexity" (e to that), "accuracy" (share of labels that the
                largest logit hits)
   ============================================================================================ */

/* Counts of one batch for "accuracy": how many labels are not -100, and how many of them the largest logit hits.
   logits [..., V], labels I32 [...]; shift: the logits at t are asked for the label at t + 1. */
TWDEF bool tw_count_hits(const tw_tensor *logits, const tw_tensor *labels, bool shift, int64_t *hits, int64_t *counted);

/* ==== [tw:13] training: a model that carries its own training parts ==========================

   The verbs are those of Twinkle's TwinkleModel.  A model has a loss, an optimizer, a scheduler and
   metrics; one step is

       tw_forward_backward(model, &batch, NULL);         forward, calculate_loss, backward
       tw_clip_grad_and_step(model, 1.0f, 2, NULL);      clip_grad_norm, step, zero_grad, lr_step

   With gradient_accumulation_steps n, the second line does its work after every n-th backward only.
   The loss of such a window is the mean of its micro-batches, each of which is the mean over its labelled
   tokens; with tw_set_loss(model, "model", "{\"average_tokens\":true}") it is the mean over all tokens of the
   window (what the Hugging Face Trainer does for causal language models).  The two differ only where
   micro-batches have different numbers of labels.
   ============================================================================================ */

/* What the Python keyword arguments carry; all zero, or NULL instead of it, means none of them. */
typedef struct tw_call {
    const char *adapter_name;                  /* which adapter; NULL: the model itself */
    int         gradient_accumulation_steps;   /* 0: as it was */
    bool        return_logits;                 /* forward gives back logits even where only the loss is needed */
    float       temperature;                   /* logits are divided by it; 0: not */
} tw_call;

typedef enum tw_phase { TW_TRAINING = 1, TW_EVALUATION = 2, TW_BOTH = 3 } tw_phase;

/* set_optimizer: "adamw", ... and its options as JSON text (NULL: the defaults).  Makes 16-bit weights f32. */
TWDEF bool        tw_set_optimizer(tw_model *model, const char *name, const char *options_json);
TWDEF bool        tw_set_lr_scheduler(tw_model *model, const char *name, const char *options_json);
/* set_loss: "model", the loss that the model's own head gives (the default), or one of chapter "losses and metrics" on the
   outputs' logits.  Options: label_smoothing (0), average_tokens (false). */
TWDEF bool        tw_set_loss(tw_model *model, const char *name, const char *options_json);
/* add_metric: "loss", "accuracy" (of tokens, or of classes). */
TWDEF bool        tw_add_metric(tw_model *model, const char *name, tw_phase phase);

TWDEF bool        tw_forward(tw_model *model, const tw_batch *inputs, tw_outputs *out, const tw_call *call);        /* in training mode */
TWDEF bool        tw_forward_only(tw_model *model, const tw_batch *inputs, tw_outputs *out, const tw_call *call);   /* no dropout, no gradients */
TWDEF float       tw_calculate_loss(tw_model *model, const tw_call *call);          /* of the last forward; NaN after an error */
TWDEF bool        tw_backward_of(tw_model *model, const tw_call *call);             /* backward: of the last loss */
/* forward, calculate_loss and backward; returns the loss (mean over the labelled tokens), NaN after an error. */
TWDEF float       tw_forward_backward(tw_model *model, const tw_batch *inputs, const tw_call *call);
/* The norm of all gradients before clipping; gradients are scaled down to max_norm (if that is > 0). norm_type: 2, or 0 for the largest. */
TWDEF float       tw_clip_grad_norm(tw_model *model, float max_norm, float norm_type, const tw_call *call);
TWDEF bool        tw_step(tw_model *model, const tw_call *call);
TWDEF bool        tw_zero_grad(tw_model *model, const tw_call *call);
TWDEF bool        tw_lr_step(tw_model *model, const tw_call *call);
TWDEF float       tw_clip_grad_and_step(tw_model *model, float max_norm, float norm_type, const tw_call *call);    /* all four; returns the norm */

/* The value of a metric since it was last asked for: NaN if there is no such metric or nothing was counted. */
TWDEF double      tw_calculate_metric(tw_model *model, const char *name, tw_phase phase);
TWDEF double      tw_learning_rate(const tw_model *model);           /* what the next update will use */
TWDEF int64_t     tw_global_step(const tw_model *model);             /* updates so far */
TWDEF const char *tw_get_train_configs(tw_model *model);             /* a text to print; stays until the next call */

/* save: output_dir/name as tw_save_pretrained writes it, with the optimizer's state, the step and the random
   state where with_optimizer; load brings weights, and the rest if it is there.  Resuming gives the same bits. */
TWDEF bool        tw_save(tw_model *model, const char *name, const char *output_dir);
TWDEF bool        tw_save_checkpoint(tw_model *model, const char *folder, bool with_optimizer);
TWDEF bool        tw_load(tw_model *model, const char *name, const char *output_dir);
TWDEF bool        tw_resume_from_checkpoint(tw_model *model, const char *folder);

/* What a model will take, before anything of it is allocated.  Every count is in bytes. */
typedef struct tw_plan_desc { int64_t batch, sequence; bool training, gradient_checkpointing; int64_t new_tokens; } tw_plan_desc;
typedef struct tw_plan {
    size_t  weights_bytes, gradients_bytes, optimizer_bytes;
    size_t  activations_bytes;          /* the step's tensors at their most */
    size_t  scratch_bytes;              /* what the kernels need while they run */
    size_t  cache_bytes;                /* keys and values, for generation */
    size_t  total_bytes;
    int64_t parameters;
} tw_plan;
/* Plans the model of a config.json: the same forward (and backward) pass runs without its arithmetic.  All zero: it failed. */
TWDEF tw_plan    tw_plan_model(tw_context *tw, const char *config_path, const tw_plan_desc *how);
TWDEF tw_plan    tw_plan_config(tw_context *tw, const tw_json *config, const tw_plan_desc *how);

/* ==== [tw:14] generation =====================================================================

   Writing one token after the other: the model's logits become probabilities, one token is chosen,
   and it is the next input; keys and values of earlier tokens stay in a cache.  The names and their
   meaning, and the order in which they apply, are those of transformers' generate().

       GREEDY    the most likely token (the first of equals)
       SAMPLING  a token drawn by its probability, after what is unlikely has been taken away:
                 temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024),
                 typical (Meister et al. 2023)
       BEAMS     the num_beams most likely texts so far go on side by side (Graves 2012); of the
                 finished ones the best is taken, by log-probability / length ^ length_penalty
   ============================================================================================ */
typedef struct tw_generate_desc {
    int64_t     max_new_tokens;        /* 0: 20.  Writing also ends where the model's positions are used up */
    int64_t     min_new_tokens;        /* no end token before that many */
    bool        do_sample;             /* false: the most likely token, or beams */
    float       temperature;           /* 0: 1 */
    int64_t     top_k;                 /* 0: 50 when sampling (transformers' default); -1: all tokens */
    float       top_p;                 /* 0: 1 */
    float       min_p;                 /* 0: off */
    float       typical_p;             /* 0: off */
    float       repetition_penalty;    /* 0: 1.  Counts the prompt's tokens too, as the n-grams do */
    int64_t     no_repeat_ngram_size;  /* 0: off */
    int         num_beams;             /* 0: 1; at most 4096 */
    float       length_penalty;        /* applies when has_length_penalty; else 1 */
    bool        has_length_penalty;
    int         early_stopping;        /* 0 no, 1 yes, 2 "never" */
    const int32_t *eos_token_ids;      /* NULL: generation_config.json's or config.json's eos_token_id */
    int         eos_count;             /* -1: no end token at all */
    uint64_t    seed;                  /* 0: the context's random numbers */
    bool      (*on_text)(const char *text, void *user);   /* whole UTF-8 characters, as they come; false: stop */
    void       *user;
    const char *adapter_name;
} tw_generate_desc;

/* Writes on from the prompt; returns the new text (without special tokens), which stays until the next call of this
   function for this model; NULL after an error.  how may be NULL: 20 tokens, greedy.  An empty prompt is the model's
   bos token.  Errors: TW_E_RANGE for a setting, a token or a prompt that is out of range, TW_E_MISSING without a
   tokenizer, TW_E_UNSUPPORTED for a model without a language model's head.  Being stopped by on_text is none. */
TWDEF const char *tw_generate_text(tw_model *model, const char *prompt, const tw_generate_desc *how);
/* The same with ids: returns how many were written to out (room for max_new_tokens, end token included), -1 after an
   error.  score, if not NULL, receives the beam's score (0 without beams). */
TWDEF int64_t     tw_generate_ids(tw_model *model, const int32_t *prompt, int64_t count, const tw_generate_desc *how,
                                  int32_t *out, int64_t room, float *score);

/* One step at a time, inside a frame loop.  Several generations may run side by side, and training steps in between are
   fine.  One lives in its model and uses the model's tokenizer: end it before them.  (What is left over goes with
   tw_destroy.)  All memory is taken at the beginning and with the first token; after that a step takes none (but
   with beams the last one, for the text).  A long prompt is read in pieces that fit the budget; the tokens do not
   depend on where the steps end. */
typedef struct tw_generation tw_generation;
typedef enum tw_status { TW_MORE = 0, TW_DONE = 1, TW_FAILED = 2 } tw_status;
TWDEF tw_generation *tw_generation_begin(tw_model *model, const char *prompt, const tw_generate_desc *how);
TWDEF tw_generation *tw_generation_begin_ids(tw_model *model, const int32_t *prompt, int64_t count,
                                             const tw_generate_desc *how);
/* Works about that long; 0: one token; -1: to the end.  TW_FAILED: the context says why. */
TWDEF tw_status      tw_generation_step(tw_generation *g, int64_t microseconds);
/* The text so far, whole UTF-8 characters only, which stays until the next step; with beams it is there at the end. */
TWDEF const char    *tw_generation_text(const tw_generation *g);
/* How many ids are new so far, and which (the best beam's); they stay until the next step. */
TWDEF int64_t        tw_generation_ids(const tw_generation *g, const int32_t **ids);
TWDEF void           tw_generation_end(tw_generation *g);                          /* frees it; NULL is fine */
/* The savegame: settings, tokens, used rows of the cache and the random state, little-endian.  Restored with the same
   model it goes on to the same text; of `how` only on_text and user count then (NULL: none).  What was told to on_text
   is not told again.  Data of another model or version, cut off or damaged, is TW_E_FORMAT. */
TWDEF bool           tw_generation_save(const tw_generation *g, tw_writer writer);
TWDEF tw_generation *tw_generation_restore(tw_model *model, const void *data, size_t size, const tw_generate_desc *how);

/* What a row of logits [vocab] becomes before a token is drawn: repetition penalty and n-grams by the `count` tokens so
   far, then temperature, top-k, top-p, min-p, typical, as probabilities [vocab] (for tests and for samplers of your
   own).  The penalties change the logits in place.  min_new_tokens and end tokens are left out: they need to know where
   the prompt ended. */
TWDEF bool tw_warp_logits(tw_context *tw, float *logits, int64_t vocab, const int32_t *tokens, int64_t count,
                          const tw_generate_desc *how, float *probabilities);

/* ==== [tw:15] data ===========================================================================

   A source of batches.  A text is tokenized once and cut into blocks; a .jsonl file has an example a
   line; a .safetensors file has input_ids and labels as they are.  Batches come in order, or shuffled
   anew in every epoch from the seed, and wrap around at the end.
   ============================================================================================ */
typedef struct tw_dataset tw_dataset;
typedef struct tw_dataset_desc {
    int64_t batch_size;            /* 0: 8 */
    int64_t block_size;            /* tokens a row of a text; 0: the model's positions, at most 1024 */
    int64_t max_steps;             /* how many batches tw_next_batch gives; 0: one epoch */
    bool    shuffle;
    uint64_t seed;                 /* 0: the context's */
    bool    quiet;                 /* no progress bar */
} tw_dataset_desc;
TWDEF tw_dataset *tw_dataset_from_text(tw_model *model, const char *text, size_t length, const tw_dataset_desc *how);   /* with the model's tokenizer */
TWDEF tw_dataset *tw_dataset_from_ids(tw_context *tw, const int32_t *ids, int64_t count, const tw_dataset_desc *how);
TWDEF tw_dataset *tw_dataset_from_file(tw_model *model, const char *path, const tw_dataset_desc *how);                 /* .txt, .jsonl, .safetensors */
TWDEF void     tw_dataset_free(tw_dataset *data);
TWDEF bool     tw_next_batch(tw_dataset *data, tw_batch *batch);          /* ends the step before; false: no more, or an error */
TWDEF int64_t  tw_dataset_rows(const tw_dataset *data);                      /* rows in an epoch */
TWDEF int64_t  tw_dataset_position(const tw_dataset *data);                  /* batches given so far */
TWDEF bool     tw_dataset_seek(tw_dataset *data, int64_t batches);           /* goes on as if that many had been given: for resuming */
/* A progress bar with rate and time left, on a terminal only (a line now and then otherwise); the last call's numbers count. */
TWDEF void     tw_progress(tw_dataset *data, const char *name, double value);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* TWINKLE_H */

/* Stop here if you only want to use it: what follows is how it works. */

#ifdef TWINKLE_IMPLEMENTATION
#ifndef TWINKLE_IMPLEMENTED
#define TWINKLE_IMPLEMENTED

#include "twinkle_blas.h"
#include <stdlib.h>
#include <string.h>
#include <stdarg.h>
#include <stdio.h>                      /* vsnprintf; files only without TWINKLE_NO_STDIO */
#include <math.h>
#include <time.h>
#if !defined(_WIN32)
#  include <sys/time.h>
#  include <unistd.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#  define TWI_PRINTF(at, first) __attribute__((format(printf, at, first)))
#  define TWI_UNUSED __attribute__((unused))
#else
#  define TWI_PRINTF(at, first)
#  define TWI_UNUSED
#endif

/* ==== [tw:01] foundations: implementation ==================================================== */

/* -- regions: memory with an owner -------------------------------------------------------------
   Whatever is allocated belongs to a region: a model's, a tokenizer's, the context's own.  Freeing
   the region frees all of it, so a load that fails halfway leaves nothing behind, however far it
   came.  Each block has a 64-byte header in front, which also keeps data on a cache line. */

typedef struct twi_block {
    struct twi_block *previous, *next;
    size_t            bytes;           /* asked of the allocator: header, data and room to align */
    void             *start;           /* what the allocator returned */
} twi_block;

typedef struct twi_region {
    tw_context *tw;
    twi_block  *blocks;                /* newest first */
    struct twi_mapping *mappings;      /* files mapped for this region: chapter files */
} twi_region;

enum { TWI_ALIGN = 64 };               /* a cache line, and the widest vector */

/* -- the step's arena ---------------------------------------------------------------------------
   A chain of chunks and a mark that moves up.  Rewinding moves the mark down and frees nothing, so
   the second step finds all its memory in place.  In the backward pass a gradient is dead as soon
   as it was used: its room is kept under its size, since the next layer wants exactly the same.

   While a model is only being planned (tw_plan_model) the same calls count bytes and hand out no
   memory: every operation runs but for its arithmetic, so the plan cannot disagree with the run. */

typedef struct twi_chunk {
    struct twi_chunk *next;
    char             *data;
    size_t            bytes, used;
} twi_chunk;

enum { TWI_ROOM_SIZES = 48 };                             /* different sizes that are kept at one time */
typedef struct twi_rooms { size_t bytes, count; void *first; } twi_rooms;   /* a list through the rooms themselves */

typedef struct twi_arena {
    twi_chunk *first, *current;
    size_t     used, peak;                                /* bytes below the mark, over all chunks */
    twi_rooms  rooms[TWI_ROOM_SIZES];
} twi_arena;

typedef enum twi_seed { TWI_SEED_UNKNOWN, TWI_SEED_ONE, TWI_SEED_ITEMS } twi_seed;   /* 1, or the number of labels that count */

struct tw_context {
    tw_desc      desc;
    twb_cpu      cpu;
    twi_region   region;               /* what belongs to no model */
    twi_arena    arena;
    tw_code      code;
    char         error[1024];
    tw_memory    memory;
    uint64_t     seed, draws;          /* the next random stream is number `draws` of `seed` */
    struct twi_node *tape;             /* chapter gradients: the newest operation of this step */
    struct tw_model *models;           /* chapter models: all that live in this context */
    struct tw_dataset  *data;             /* chapter data: the same */
    struct tw_cache *caches;           /* chapter blocks: the same */
    tw_tokenizer *tokenizers;          /* chapter tokenizers: the same */
    const struct twi_blobs *blobs;     /* files in memory that stand for a folder: tw_from_memory; else NULL */
    bool         no_grad;              /* operations note nothing on the tape */
    bool         training;             /* dropout is on */
    bool         planning;             /* sizes are counted, nothing is computed */
    bool         recycling;            /* what operations make now is dead once the backward pass has used it */
    twi_seed     loss_seed;            /* what gradient the loss is going to get, if that is known (chapter gradients) */
    int64_t      counted;              /* how many labels counted in the newest cross-entropy */
    void        *scratch;              /* what a kernel needs while it runs */
    size_t       scratch_bytes;
    size_t       planned_weights, planned_gradients, planned_optimizer;   /* while planning: bytes that would be allocated */
    char         nothing[2 * TWI_ALIGN];   /* what a planned tensor points to */
};

static bool twi_multiply(size_t a, size_t b, size_t *product) {
    if (b != 0 && a > (size_t)-1 / b) return false;
    *product = a * b;
    return true;
}

static bool twi_sum(size_t a, size_t b, size_t *sum) {
    if (a > (size_t)-1 - b) return false;
    *sum = a + b;
    return true;
}

/* How many of the n bytes are whole UTF-8 characters: an incomplete character at the end is left out. */
static size_t twi_utf8_whole(const char *text, size_t n) {
    size_t back, need;
    for (back = 1; back <= 4 && back <= n; back++) {
        unsigned char c = (unsigned char)text[n - back];
        if ((c & 0xC0) == 0x80) continue;                                   /* a continuation byte: look further back */
        need = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
        return need > back ? n - back : n;
    }
    return n;
}

/* The only way an error is recorded: "WHAT: WHY (WHERE)", one line of whole UTF-8 without control characters. */
TWI_PRINTF(3, 4) static void twi_fail(tw_context *tw, tw_code code, const char *format, ...) {
    va_list arguments;
    size_t i, n;
    if (tw->code != TW_OK) return;
    tw->code = code;
    va_start(arguments, format);
    vsnprintf(tw->error, sizeof tw->error, format, arguments);
    va_end(arguments);
    n = twi_utf8_whole(tw->error, strlen(tw->error));
    tw->error[n] = 0;
    for (i = 0; i < n; i++) if ((unsigned char)tw->error[i] < 32 || tw->error[i] == 127) tw->error[i] = ' ';
    if (tw->desc.log) tw->desc.log(tw->desc.log_user, tw->error);
}

static void *twi_default_alloc(void *user, size_t bytes) { (void)user; return malloc(bytes); }
static void twi_default_free(void *user, void *pointer, size_t bytes) { (void)user; (void)bytes; free(pointer); }

/* Bytes from the host's allocator, counted; NULL with an error when there are none. */
static void *twi_host_alloc(tw_context *tw, size_t bytes) {
    void *p;
    tw->memory.allocations++;
    p = tw->desc.alloc.alloc(tw->desc.alloc.user, bytes);
    if (!p) { twi_fail(tw, TW_E_MEMORY, "memory: %lu bytes more are not to be had", (unsigned long)bytes); return NULL; }
    tw->memory.bytes += bytes;
    if (tw->memory.bytes > tw->memory.peak_bytes) tw->memory.peak_bytes = tw->memory.bytes;
    return p;
}

static void twi_host_free(tw_context *tw, void *pointer, size_t bytes) {
    tw->memory.bytes -= bytes;
    tw->desc.alloc.free(tw->desc.alloc.user, pointer, bytes);
}

static char *twi_align(char *p) {
    size_t off = (size_t)((uintptr_t)p & (TWI_ALIGN - 1));
    return off ? p + (TWI_ALIGN - off) : p;
}

/* count * size bytes, 64-byte aligned, owned by the region, not cleared.  NULL only with an error. */
static void *twi_alloc_raw(twi_region *region, size_t count, size_t size) {
    tw_context *tw = region->tw;
    size_t bytes, whole;
    char *start, *data;
    twi_block *block;
    if (!twi_multiply(count, size, &bytes) || !twi_sum(bytes, sizeof(twi_block) + TWI_ALIGN, &whole)) {
        twi_fail(tw, TW_E_MEMORY, "memory: %lu items of %lu bytes are more than can be counted", (unsigned long)count, (unsigned long)size);
        return NULL;
    }
    start = (char *)twi_host_alloc(tw, whole);
    if (!start) return NULL;
    data = twi_align(start + sizeof(twi_block));
    block = (twi_block *)(void *)(data - sizeof(twi_block));
    block->previous = NULL;
    block->next = region->blocks;
    block->bytes = whole;
    block->start = start;
    if (region->blocks) region->blocks->previous = block;
    region->blocks = block;
    return data;
}

static void *twi_alloc(twi_region *region, size_t count, size_t size) {
    void *data = twi_alloc_raw(region, count, size);
    if (data) memset(data, 0, count * size);
    return data;
}

/* Gives one block back early.  NULL is fine. */
static void twi_free(twi_region *region, void *data) {
    twi_block *block;
    if (!data) return;
    block = (twi_block *)(void *)((char *)data - sizeof(twi_block));
    if (block->previous) block->previous->next = block->next; else region->blocks = block->next;
    if (block->next) block->next->previous = block->previous;
    twi_host_free(region->tw, block->start, block->bytes);
}

/* The same items in a block with room for `count`: grows by half at least, and frees the old block.
   NULL with an error leaves the old block as it was. */
static void *twi_grow(twi_region *region, void *old, size_t used, size_t *capacity, size_t count, size_t size) {
    size_t wanted;
    void *data;
    if (count <= *capacity) return old;
    wanted = *capacity + *capacity / 2 + 16;
    if (wanted < count) wanted = count;
    data = twi_alloc(region, wanted, size);
    if (!data) return NULL;
    if (used) memcpy(data, old, used * size);
    twi_free(region, old);
    *capacity = wanted;
    return data;
}

/* A copy of the text, with a NUL behind it. */
static char *twi_copy_text(twi_region *region, const char *text, size_t length) {
    char *copy = (char *)twi_alloc(region, length + 1, 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

static void twi_unmap_all(twi_region *region);

static void twi_region_clear(twi_region *region) {
    while (region->blocks) {
        twi_block *block = region->blocks;
        region->blocks = block->next;
        twi_host_free(region->tw, block->start, block->bytes);
    }
    twi_unmap_all(region);
}

/* -- the arena: taking room, giving it back ----------------------------------------------------- */

/* One more chunk at the end of the chain: a quarter of what there is, at least 1 MiB, so that the
   chain stays short; later steps need what the first one needed and find it. */
static twi_chunk *twi_new_chunk(tw_context *tw, size_t bytes) {
    size_t room = (size_t)1 << 20, have = 0, whole;
    twi_chunk *chunk, *last = NULL, *c;
    for (c = tw->arena.first; c; c = c->next) { have += c->bytes; last = c; }
    if (room < have / 4) room = have / 4;
    if (room < bytes) room = bytes;
    if (!twi_sum(room, TWI_ALIGN, &whole)) { twi_fail(tw, TW_E_MEMORY, "memory: a step of that size cannot be counted"); return NULL; }
    chunk = (twi_chunk *)twi_alloc_raw(&tw->region, 1, whole);
    if (!chunk) return NULL;
    chunk->next = NULL;
    chunk->data = (char *)chunk + TWI_ALIGN;               /* the chunk's own fields fit in the first cache line */
    chunk->bytes = room;
    chunk->used = 0;
    if (last) last->next = chunk; else tw->arena.first = chunk;
    return chunk;
}

static twi_rooms *twi_rooms_of(twi_arena *arena, size_t bytes) {
    int i;
    for (i = 0; i < TWI_ROOM_SIZES; i++) if (arena->rooms[i].bytes == bytes) return &arena->rooms[i];
    return NULL;
}

static size_t twi_round_up(size_t bytes) { return bytes ? (bytes + TWI_ALIGN - 1) / TWI_ALIGN * TWI_ALIGN : (size_t)TWI_ALIGN; }

/* Room above the mark; bytes is a multiple of TWI_ALIGN. */
static void *twi_arena_take(tw_context *tw, size_t bytes) {
    twi_arena *arena = &tw->arena;
    twi_chunk *chunk;
    for (chunk = arena->current ? arena->current : arena->first; chunk; chunk = chunk->next)
        if (chunk->bytes - chunk->used >= bytes) break;
    if (!chunk) chunk = twi_new_chunk(tw, bytes);
    if (!chunk) return NULL;
    arena->current = chunk;
    chunk->used += bytes;
    return chunk->data + chunk->used - bytes;
}

static void twi_arena_count(twi_arena *arena, size_t bytes) {
    arena->used += bytes;
    if (arena->used > arena->peak) arena->peak = arena->used;
}

/* A small record of the step (a tensor's header, a note on the tape), cleared; it is real even in a plan. */
static void *twi_step_record(tw_context *tw, size_t size) {
    size_t bytes = twi_round_up(size);
    void *record = twi_arena_take(tw, bytes);
    if (!record) return NULL;
    twi_arena_count(&tw->arena, bytes);
    memset(record, 0, size);
    return record;
}

/* count * size bytes for numbers of the step, 64-byte aligned, not cleared.  NULL only with an error. */
static void *twi_step_alloc(tw_context *tw, size_t count, size_t size) {
    twi_rooms *rooms;
    size_t bytes;
    void *data;
    if (!twi_multiply(count, size, &bytes) || bytes > (size_t)-1 - 2*TWI_ALIGN) {
        twi_fail(tw, TW_E_MEMORY, "memory: %lu items of %lu bytes are more than can be counted", (unsigned long)count, (unsigned long)size);
        return NULL;
    }
    bytes = twi_round_up(bytes);
    rooms = twi_rooms_of(&tw->arena, bytes);
    if (rooms && rooms->count) {
        rooms->count--;
        if (tw->planning) return twi_align(tw->nothing);
        data = rooms->first;
        memcpy(&rooms->first, data, sizeof rooms->first);
        return data;
    }
    data = tw->planning ? twi_align(tw->nothing) : twi_arena_take(tw, bytes);
    if (data) twi_arena_count(&tw->arena, bytes);
    return data;
}

/* Room that one kernel needs while it runs.  There is one such room for all of them; it only grows. */
static void *twi_scratch(tw_context *tw, size_t bytes) {
    if (bytes > tw->scratch_bytes) {
        if (!tw->planning) {
            twi_free(&tw->region, tw->scratch);
            tw->scratch_bytes = 0;
            tw->scratch = twi_alloc_raw(&tw->region, bytes, 1);
            if (!tw->scratch) return NULL;
        }
        tw->scratch_bytes = bytes;
    }
    return tw->planning || !bytes ? twi_align(tw->nothing) : tw->scratch;
}

/* Nobody will read this room again: the next request of its size gets it. */
static void twi_step_free(tw_context *tw, void *data, size_t count, size_t size) {
    size_t bytes = twi_round_up(count * size);
    twi_rooms *rooms;
    if (!data) return;
    rooms = twi_rooms_of(&tw->arena, bytes);
    if (!rooms) rooms = twi_rooms_of(&tw->arena, 0);       /* a free row of the table; none left: the rewind will have it */
    if (!rooms) return;
    rooms->bytes = bytes;
    rooms->count++;
    if (tw->planning) return;
    memcpy(data, &rooms->first, sizeof rooms->first);
    rooms->first = data;
}

/* A mark to come back to.  Rooms given back before it stay out of sight above it, and the other way round. */
typedef struct twi_mark { twi_chunk *chunk; size_t chunk_used, used; twi_rooms rooms[TWI_ROOM_SIZES]; } twi_mark;

static void twi_take_mark(tw_context *tw, twi_mark *mark) {
    mark->chunk = tw->arena.current;
    mark->chunk_used = mark->chunk ? mark->chunk->used : 0;
    mark->used = tw->arena.used;
    memcpy(mark->rooms, tw->arena.rooms, sizeof mark->rooms);
    memset(tw->arena.rooms, 0, sizeof tw->arena.rooms);
}

static void twi_rewind(tw_context *tw, const twi_mark *mark) {
    twi_chunk *chunk = mark->chunk ? mark->chunk->next : tw->arena.first;
    if (mark->chunk) mark->chunk->used = mark->chunk_used;
    for (; chunk; chunk = chunk->next) chunk->used = 0;
    tw->arena.current = mark->chunk;
    tw->arena.used = mark->used;
    memcpy(tw->arena.rooms, mark->rooms, sizeof mark->rooms);
}

/* -- random numbers: a stream for every choice ---------------------------------------------------
   A stream is a 64-bit number; its i-th value depends on the stream and i alone (twb_random_bits),
   so dropout can be repeated in the backward pass and results do not depend on threads. */
static uint64_t twi_mix(uint64_t x) {                     /* SplitMix64's finalizer (Steele, Lea, Flood 2014) */
    x ^= x >> 30; x *= UINT64_C(0xBF58476D1CE4E5B9);
    x ^= x >> 27; x *= UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}
static uint64_t twi_next_stream(tw_context *tw) { return twi_mix(tw->seed + UINT64_C(0x9E3779B97F4A7C15) * ++tw->draws); }

/* -- growing text -------------------------------------------------------------------------------
   Appending to a text whose region has no memory left does nothing; twi_text_ok tells at the end. */
typedef struct twi_text { twi_region *region; char *data; size_t length, capacity; bool failed; } twi_text;

static twi_text twi_text_new(twi_region *region) { twi_text t; memset(&t, 0, sizeof t); t.region = region; return t; }

static void twi_text_bytes(twi_text *t, const char *bytes, size_t n) {
    char *grown;
    size_t need;
    if (t->failed || !twi_sum(t->length, n, &need) || !twi_sum(need, 1, &need)) { t->failed = true; return; }
    grown = (char *)twi_grow(t->region, t->data, t->length, &t->capacity, need, 1);
    if (!grown) { t->failed = true; return; }
    t->data = grown;
    if (n) memcpy(t->data + t->length, bytes, n);
    t->length += n;
    t->data[t->length] = 0;
}
static void twi_text_add(twi_text *t, const char *s) { twi_text_bytes(t, s, strlen(s)); }
static void twi_text_char(twi_text *t, char c) { twi_text_bytes(t, &c, 1); }
static void twi_text_clear(twi_text *t) { t->length = 0; if (t->data) t->data[0] = 0; }
static void twi_text_free(twi_text *t) { twi_free(t->region, t->data); memset(t, 0, sizeof *t); }
static const char *twi_text_string(const twi_text *t) { return t->data ? t->data : ""; }

/* -- UTF-8 ---------------------------------------------------------------------------------------
   Reads one code point of the n bytes at s and says how many bytes it took.  A malformed byte counts
   as one character of its own with the value U+FFFD (and *valid false). */
static int twi_utf8_read(const char *s, size_t n, uint32_t *code, bool *valid) {
    const unsigned char *u = (const unsigned char *)s;
    uint32_t c = n ? u[0] : 0;
    int length = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0, i;
    *valid = true;
    *code = c;
    if (n == 0) return 0;
    if (length == 1) return 1;
    if (length == 0 || (size_t)length > n) goto malformed;
    c &= 0xFFu >> (length + 1);
    for (i = 1; i < length; i++) {
        if ((u[i] & 0xC0) != 0x80) goto malformed;
        c = c << 6 | (u[i] & 0x3Fu);
    }
    if ((length == 3 && (c < 0x800 || (c >= 0xD800 && c < 0xE000))) || (length == 4 && (c < 0x10000 || c > 0x10FFFF))) goto malformed;
    *code = c;
    return length;
malformed:
    *code = 0xFFFD;
    *valid = false;
    return 1;
}

/* Writes a code point as UTF-8; returns the number of bytes, 1 to 4. */
static int twi_utf8_write(uint32_t c, char out[4]) {
    if (c < 0x80) { out[0] = (char)c; return 1; }
    if (c < 0x800) { out[0] = (char)(0xC0 | c >> 6); out[1] = (char)(0x80 | (c & 0x3F)); return 2; }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12); out[1] = (char)(0x80 | (c >> 6 & 0x3F)); out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18); out[1] = (char)(0x80 | (c >> 12 & 0x3F)); out[2] = (char)(0x80 | (c >> 6 & 0x3F)); out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

/* -- the context ---------------------------------------------------------------------------------- */

TWDEF const char *tw_code_text(tw_code code) {
    switch (code) {
#define TWI_X(name, number, text) case name: return text;
    TW_ERRORS(TWI_X)
#undef TWI_X
    case TW_CODE_FORCE_INT: break;
    }
    return "unknown error";
}

TWDEF tw_context *tw_create(const tw_desc *desc) {
    tw_desc d;
    tw_context *tw;
    int isa;
    memset(&d, 0, sizeof d);
    if (desc) d = *desc;
    if (!d.alloc.alloc || !d.alloc.free) { d.alloc.alloc = twi_default_alloc; d.alloc.free = twi_default_free; }
    tw = (tw_context *)d.alloc.alloc(d.alloc.user, sizeof *tw);
    if (!tw) return NULL;
    memset(tw, 0, sizeof *tw);
    tw->memory.allocations = 1;
    tw->memory.bytes = tw->memory.peak_bytes = sizeof *tw;
    tw->desc = d;
    tw->region.tw = tw;
    tw->seed = d.seed ? d.seed : 42;
    tw->cpu = twb_cpu_default();
    if (d.threads) tw->cpu.threads = d.threads > 0 ? d.threads : 1;
    tw->cpu.parallel_for = d.parallel_for;
    tw->cpu.parallel_user = d.parallel_user;
    if (d.kernels) {
        for (isa = 0; isa < TWB_ISA_COUNT && strcmp(twb_isa_name((twb_isa)isa), d.kernels) != 0; isa++) continue;
        if (isa < TWB_ISA_COUNT && twb_isa_available((twb_isa)isa)) tw->cpu.isa = (twb_isa)isa;
        else twi_fail(tw, TW_E_UNSUPPORTED, "kernels: this program on this processor has no set \"%s\"", d.kernels);
    }
    return tw;
}

TWDEF bool        tw_failed(const tw_context *tw) { return !tw || tw->code != TW_OK; }
TWDEF tw_code     tw_error_code(const tw_context *tw) { return tw ? tw->code : TW_E_MEMORY; }
TWDEF const char *tw_error(const tw_context *tw) { return tw ? tw->error : "memory: there was none for a context"; }
TWDEF void        tw_clear_error(tw_context *tw) { if (tw) { tw->code = TW_OK; tw->error[0] = 0; } }
TWDEF void        tw_fail(tw_context *tw, tw_code code, const char *sentence) { if (tw) twi_fail(tw, code, "%s", sentence ? sentence : tw_code_text(code)); }
TWDEF void        tw_seed(tw_context *tw, uint64_t seed) { if (tw) { tw->seed = seed; tw->draws = 0; } }
TWDEF int         tw_threads(const tw_context *tw) { return tw ? tw->cpu.threads : 0; }
TWDEF void        tw_set_threads(tw_context *tw, int threads) { if (tw) tw->cpu.threads = threads > 0 ? threads : 1; }
TWDEF const char *tw_kernels(const tw_context *tw) { return tw ? twb_isa_name(tw->cpu.isa) : ""; }
TWDEF int         tw_version(void) { return TW_VERSION; }

TWDEF tw_memory tw_memory_use(const tw_context *tw) {
    tw_memory m;
    memset(&m, 0, sizeof m);
    if (tw) { m = tw->memory; m.step_bytes = tw->arena.peak; }
    return m;
}

/* -- threads for a whole pass: see twb_with_team ---------------------------------------------------
   body(arg) runs on this thread with the others standing ready; inside another such call it just runs. */
typedef struct twi_team_call { tw_context *tw; void (*body)(void *arg); void *arg; } twi_team_call;

static void twi_run_with_team(void *arg, const twb_cpu *cpu) {
    twi_team_call *call = (twi_team_call *)arg;
    twb_cpu alone = call->tw->cpu;
    call->tw->cpu = *cpu;
    call->body(call->arg);
    call->tw->cpu = alone;
}
static void twi_with_team(tw_context *tw, void (*body)(void *arg), void *arg) {
    twi_team_call call;
    call.tw = tw;
    call.body = body;
    call.arg = arg;
    if (tw->planning) body(arg);
    else twb_with_team(&tw->cpu, twi_run_with_team, &call);
}

static int64_t twi_now(tw_context *tw) {                   /* microseconds */
    if (tw->desc.now) return tw->desc.now(tw->desc.now_user);
#if defined(_WIN32) || defined(TWINKLE_NO_CLOCK)
    return (int64_t)((double)clock() * (1e6 / CLOCKS_PER_SEC));
#else
    { struct timeval t; gettimeofday(&t, NULL); return (int64_t)t.tv_sec * 1000000 + (int64_t)t.tv_usec; }
#endif
}

TWDEF int64_t tw_now(tw_context *tw) { return tw ? twi_now(tw) : 0; }

#ifndef TWINKLE_NO_STDIO
/* Is stderr a terminal, which a progress bar may rewrite? */
static bool twi_is_terminal(void) {
#if defined(_WIN32)
    return false;
#else
    return isatty(2) != 0;
#endif
}
TWDEF void tw_log_stderr(void *user, const char *line) { (void)user; fprintf(stderr, "twinkle: %s\n", line); }
static bool twi_write_file(void *user, const void *bytes, size_t count) { return fwrite(bytes, 1, count, (FILE *)user) == count; }
TWDEF tw_writer tw_file_writer(void *file) { tw_writer w; w.write = twi_write_file; w.user = file; return w; }
#endif


/* -- finding: a hash index ----------------------------------------------------------------------
   Positions 0, 1, 2, ... of a list, found by the hash of a name (open addressing, at most half
   full).  The index holds no names: whoever asks compares them.  The hash takes a seed, so that a
   file cannot be written in which all names collide. */
/* a slot: hash << 32 | position + 1; 0 is free */
typedef struct twi_index { uint64_t *slots; uint32_t mask; } twi_index;

#define TWI_NOWHERE INT64_C(-1)

static uint32_t twi_hash(const void *bytes, size_t n, uint64_t seed) {
    const unsigned char *p = (const unsigned char *)bytes;
    uint64_t h = seed ^ (uint64_t)n, word;
    for (; n >= 8; n -= 8, p += 8) { memcpy(&word, p, 8); h = twi_mix(h ^ word); }
    word = 0;
    if (n) memcpy(&word, p, n);
    return (uint32_t)(twi_mix(h ^ word) >> 32);
}

/* how many slots `count` positions want: a power of two */
static size_t twi_index_slots(size_t count) {
    size_t slots = 4;
    while (slots / 2 < count) slots *= 2;
    return slots;
}

/* The slots must be zero at the start. */
static twi_index twi_index_of(uint64_t *slots, size_t count) {
    twi_index index;
    index.slots = slots;
    index.mask = (uint32_t)(count - 1);
    return index;
}

static void twi_index_add(twi_index *index, uint32_t hash, uint32_t position) {
    uint32_t at = hash & index->mask;
    while (index->slots[at]) at = (at + 1) & index->mask;
    index->slots[at] = (uint64_t)hash << 32 | (position + 1u);
}

/* The next position with this hash, or TWI_NOWHERE; *cursor starts as the hash itself. */
static int64_t twi_index_next(const twi_index *index, uint32_t hash, uint32_t *cursor) {
    for (;;) {
        uint64_t slot = index->slots[*cursor & index->mask];
        if (slot == 0) return TWI_NOWHERE;
        ++*cursor;
        if ((uint32_t)(slot >> 32) == hash) return (int64_t)(slot & 0xFFFFFFFFu) - 1;
    }
}

/* Heapsort of a list of positions: n log n comparisons on any input, no memory.  `before` must be a
   total order (break ties by position), and then the result is the same everywhere. */
static void twi_sort(uint32_t *list, size_t n, bool (*before)(const void *user, uint32_t a, uint32_t b),
                     const void *user) {
    size_t build = n / 2, end = n;
    while (end > 1) {
        size_t at, child;
        uint32_t item;
        if (build > 0) { at = --build; item = list[at]; }
        else { item = list[--end]; list[end] = list[0]; at = 0; }
        for (; (child = 2 * at + 1) < end; at = child) {
            if (child + 1 < end && before(user, list[child], list[child + 1])) child++;
            if (!before(user, item, list[child])) break;
            list[at] = list[child];
        }
        list[at] = item;
    }
}

/* -- files: reading -----------------------------------------------------------------------------
   A file is one run of bytes that lives as long as its region.  Where the system can, it is mapped
   privately and writable: nothing is read before it is used, all processes share one copy, and a
   parameter may point right into the file and still be trained, since a page that is written to
   becomes the process's own.  The file itself never changes.  (A mapped file that somebody makes
   shorter meanwhile takes the process down with SIGBUS; saving by rename, as we do, is safe.
   TWINKLE_NO_MMAP reads into memory instead.)

   Only regular files are read: a pipe would hang, a device never ends. */

#ifndef TWINKLE_NO_STDIO
#  include <errno.h>
#  include <fcntl.h>
#  include <sys/types.h>
#  include <sys/stat.h>
#  ifdef _WIN32
#    include <io.h>
#    include <direct.h>
#    include <wchar.h>
#  else
#    include <unistd.h>
#    ifndef TWINKLE_NO_MMAP
#      include <sys/mman.h>
#      define TWI_MMAP 1
#    endif
#  endif
#endif
#ifndef TWI_MMAP
#  define TWI_MMAP 0
#endif

typedef struct twi_bytes {
    const unsigned char *data;
    size_t size;
    bool   writable;                   /* the bytes may be changed (in memory, not in the file) */
    bool   allocated, mapped;          /* whose they are: a block of the region, a mapping; neither: lent */
} twi_bytes;

/* Files that are in memory already, in the place of a folder (tw_from_memory): while a context has
   such a list, every path is looked up there, by its end, and nothing else is opened. */
typedef struct twi_blob { const char *name; const void *data; size_t size; } twi_blob;
typedef struct twi_blobs { const twi_blob *list; size_t count; } twi_blobs;

struct twi_mapping { struct twi_mapping *next; void *start; size_t bytes; };

static void twi_unmap(tw_context *tw, struct twi_mapping *mapping) {
#if TWI_MMAP
    munmap(mapping->start, mapping->bytes);
#endif
    twi_host_free(tw, mapping, sizeof *mapping);
}

static void twi_unmap_all(twi_region *region) {
    while (region->mappings) {
        struct twi_mapping *mapping = region->mappings;
        region->mappings = mapping->next;
        twi_unmap(region->tw, mapping);
    }
}

static bool twi_is_separator(char c) {
#ifdef _WIN32
    return c == '/' || c == '\\' || c == ':';
#else
    return c == '/';
#endif
}

/* The last part of a path: "b.txt" of "a/b.txt". */
static const char *twi_base_name(const char *path) {
    const char *base = path, *p;
    for (p = path; *p; p++) if (twi_is_separator(*p) && p[1]) base = p + 1;
    return base;
}

/* text = folder/name. */
static void twi_join_path(twi_text *text, const char *folder, const char *name) {
    size_t n = strlen(folder);
    twi_text_clear(text);
    twi_text_bytes(text, folder, n);
    if (n && !twi_is_separator(folder[n - 1])) twi_text_char(text, '/');
    twi_text_add(text, name);
}

/* The folder of a path, to put before another name: "a/" of "a/b.txt", "" of "b.txt". */
static void twi_folder_of(twi_text *text, const char *path) {
    twi_text_clear(text);
    twi_text_bytes(text, path, (size_t)(twi_base_name(path) - path));
}

/* ends_with("a/b.txt", "b.txt") */
static bool twi_ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return m <= n && memcmp(text + n - m, end, m) == 0;
}

static const twi_blob *twi_find_blob(const twi_blobs *blobs, const char *path) {
    size_t i, n = strlen(path);
    for (i = 0; i < blobs->count; i++) {
        size_t m = blobs->list[i].name ? strlen(blobs->list[i].name) : 0;
        if (m && twi_ends_with(path, blobs->list[i].name) && (m == n || twi_is_separator(path[n - m - 1])))
            return &blobs->list[i];
    }
    return NULL;
}

static bool twi_fail_file(tw_context *tw, tw_code code, const char *path, const char *why) {
    twi_fail(tw, code, "%s: %s (%s)", twi_base_name(path), why, path);
    return false;
}

#ifndef TWINKLE_NO_STDIO
/* The system's own error number, in words. */
static bool twi_fail_system(tw_context *tw, const char *path, bool writing) {
    int number = errno;
    switch (number) {
    case ENOENT:
    case ENOTDIR:      if (!writing) return twi_fail_file(tw, TW_E_MISSING, path, "no such file");
                       return twi_fail_file(tw, TW_E_FILE, path, "the folder it should go into does not exist");
    case EACCES:
    case EPERM:        return twi_fail_file(tw, TW_E_FILE, path,
                                            writing ? "no permission to write there" : "no permission to read it");
    case EISDIR:       return twi_fail_file(tw, TW_E_FILE, path, "it is a folder, not a file");
    case EROFS:        return twi_fail_file(tw, TW_E_FILE, path, "the disk is read-only");
    case ENOSPC:       return twi_fail_file(tw, TW_E_FILE, path, "the disk is full");
    case EFBIG:        return twi_fail_file(tw, TW_E_FILE, path,
                                            "the file becomes larger than the disk or a limit allows");
    case EMFILE:
    case ENFILE:       return twi_fail_file(tw, TW_E_FILE, path, "too many files are open");
    case ENAMETOOLONG: return twi_fail_file(tw, TW_E_FILE, path, "the name is too long");
    case ENOMEM:       return twi_fail_file(tw, TW_E_MEMORY, path, "the system has no memory for it");
#ifdef EDQUOT
    case EDQUOT:       return twi_fail_file(tw, TW_E_FILE, path, "the disk quota is used up");
#endif
#ifdef ELOOP
    case ELOOP:        return twi_fail_file(tw, TW_E_FILE, path, "its links lead in a circle");
#endif
#ifdef EOVERFLOW
    case EOVERFLOW:    return twi_fail_file(tw, TW_E_FILE, path, "it is too large for this system");
#endif
    default:           break;
    }
    twi_fail(tw, TW_E_FILE, "%s: the system cannot %s it, error %d (%s)", twi_base_name(path),
             writing ? "write" : "read", number, path);
    return false;
}

/* The few calls of POSIX that are needed, and what Windows has in their place.  Paths are UTF-8. */
#ifdef _WIN32
typedef wchar_t twi_path_char;
typedef struct _stat64 twi_file_facts;
#  define twi_os_open(path, flags) _wopen(path, (flags) | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE)
#  define twi_os_read(file, data, n)  ((int64_t)_read(file, data, (unsigned)(n)))
#  define twi_os_write(file, data, n) ((int64_t)_write(file, data, (unsigned)(n)))
#  define twi_os_close _close
#  define twi_os_sync _commit
#  define twi_os_facts _fstat64
#  define twi_os_path_facts _wstat64
#  define twi_os_remove _wremove
#  define twi_os_make_folder _wmkdir
#  define TWI_READ_FLAGS _O_RDONLY
#  define TWI_WRITE_FLAGS (_O_WRONLY | _O_CREAT | _O_EXCL)
#  define TWI_IS_FILE(facts) (((facts).st_mode & _S_IFMT) == _S_IFREG)
#  define TWI_IS_FOLDER(facts) (((facts).st_mode & _S_IFMT) == _S_IFDIR)
#  ifdef __cplusplus
extern "C"
#  endif
__declspec(dllimport) int __stdcall MoveFileExW(const wchar_t *from, const wchar_t *to, unsigned long flags);
static int twi_os_rename(const wchar_t *from, const wchar_t *to) {
    if (MoveFileExW(from, to, 1 | 8)) return 0;           /* MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH */
    errno = EACCES;
    return -1;
}
static twi_path_char *twi_system_path(tw_context *tw, const char *path) {          /* UTF-8 to UTF-16 */
    size_t n = strlen(path), i = 0, to = 0;
    twi_path_char *wide = (twi_path_char *)twi_alloc(&tw->region, n + 1, sizeof *wide);
    while (wide && i < n) {
        uint32_t code;
        bool valid;
        i += (size_t)twi_utf8_read(path + i, n - i, &code, &valid);
        if (code >= 0x10000) {
            code -= 0x10000;
            wide[to++] = (wchar_t)(0xD800 + (code >> 10));
            code = 0xDC00 + (code & 0x3FF);
        }
        wide[to++] = (wchar_t)code;
    }
    return wide;
}
static void twi_system_path_free(tw_context *tw, twi_path_char *wide) { twi_free(&tw->region, wide); }
#else
typedef const char twi_path_char;
typedef struct stat twi_file_facts;
#  ifndef O_CLOEXEC
#    define O_CLOEXEC 0
#  endif
#  define twi_os_open(path, flags) open(path, flags, 0666)
#  define twi_os_read(file, data, n)  ((int64_t)read(file, data, n))
#  define twi_os_write(file, data, n) ((int64_t)write(file, data, n))
#  define twi_os_close close
#  if (defined(_POSIX_C_SOURCE) && _POSIX_C_SOURCE >= 200112L) || defined(__APPLE__)
#    define twi_os_sync fsync
#  else
#    define twi_os_sync(file) 0                           /* -std=c99 hides fsync */
#  endif
#  define twi_os_facts fstat
#  define twi_os_path_facts stat
#  define twi_os_remove remove
#  define twi_os_rename rename
#  define twi_os_make_folder(path) mkdir(path, 0777)
#  define TWI_READ_FLAGS (O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)     /* NONBLOCK: opening a pipe must not wait */
#  define TWI_WRITE_FLAGS (O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC)
#  define TWI_IS_FILE(facts) S_ISREG((facts).st_mode)
#  define TWI_IS_FOLDER(facts) S_ISDIR((facts).st_mode)
static twi_path_char *twi_system_path(tw_context *tw, const char *path) { (void)tw; return path; }
static void twi_system_path_free(tw_context *tw, twi_path_char *path) { (void)tw; (void)path; }
#endif

#define TWI_IO_MOST ((size_t)1 << 30)         /* bytes of one read or write call: some systems take no 2 GiB */

/* Reads exactly `size` bytes; false with errno, which is 0 where the file ended early. */
static bool twi_read_whole(int file, unsigned char *data, size_t size) {
    while (size > 0) {
        int64_t got;
        errno = 0;
        got = twi_os_read(file, data, size < TWI_IO_MOST ? size : TWI_IO_MOST);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        data += got;
        size -= (size_t)got;
    }
    return true;
}

#if TWI_MMAP
/* Maps the whole file; false where this file cannot be mapped. */
static bool twi_map_file(twi_region *region, int file, struct twi_mapping *mapping, twi_bytes *out) {
    out->writable = true;
    mapping->start = mmap(NULL, out->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (mapping->start == MAP_FAILED) {                    /* larger than the memory the system would promise */
        out->writable = false;
        mapping->start = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, file, 0);
    }
    if (mapping->start == MAP_FAILED) return false;
    mapping->bytes = out->size;
    mapping->next = region->mappings;
    region->mappings = mapping;
    out->data = (const unsigned char *)mapping->start;
    out->mapped = true;
    return true;
}
#endif

static bool twi_read_opened(twi_region *region, const char *path, int file, twi_bytes *out) {
    tw_context *tw = region->tw;
    twi_file_facts facts;
    unsigned char *data;
    if (twi_os_facts(file, &facts) != 0) return twi_fail_system(tw, path, false);
    if (TWI_IS_FOLDER(facts)) return twi_fail_file(tw, TW_E_FILE, path, "it is a folder, not a file");
    if (!TWI_IS_FILE(facts)) return twi_fail_file(tw, TW_E_FILE, path, "it is a device or a pipe, not a file");
    if (facts.st_size < 0 || (uint64_t)facts.st_size > (size_t)-1 / 2)
        return twi_fail_file(tw, TW_E_FILE, path, "it is too large for this system");
    out->size = (size_t)facts.st_size;
    out->data = (const unsigned char *)"";
    if (out->size == 0) return true;
#if TWI_MMAP
    {
        struct twi_mapping *mapping = (struct twi_mapping *)twi_host_alloc(tw, sizeof *mapping);
        if (!mapping) return false;
        if (twi_map_file(region, file, mapping, out)) return true;
        twi_host_free(tw, mapping, sizeof *mapping);
    }
#endif
    data = (unsigned char *)twi_alloc_raw(region, out->size, 1);
    if (!data) return false;
    if (!twi_read_whole(file, data, out->size)) {
        twi_free(region, data);
        if (errno == 0) return twi_fail_file(tw, TW_E_FILE, path, "it became shorter while it was read");
        return twi_fail_system(tw, path, false);
    }
    out->data = data;
    out->writable = out->allocated = true;
    return true;
}

static bool twi_read_system(twi_region *region, const char *path, twi_bytes *out) {
    tw_context *tw = region->tw;
    twi_path_char *system_path = twi_system_path(tw, path);
    int file;
    bool ok;
    if (!system_path) return false;
    do file = twi_os_open(system_path, TWI_READ_FLAGS); while (file < 0 && errno == EINTR);
    ok = file >= 0 ? twi_read_opened(region, path, file, out) : twi_fail_system(tw, path, false);
    if (file >= 0) twi_os_close(file);
    twi_system_path_free(tw, system_path);
    return ok;
}

/* What is at that path, following links; false where there is nothing. */
static bool twi_path_facts(tw_context *tw, const char *path, twi_file_facts *facts) {
    twi_path_char *system_path = twi_system_path(tw, path);
    bool ok = system_path && twi_os_path_facts(system_path, facts) == 0;
    if (system_path) twi_system_path_free(tw, system_path);
    return ok;
}
#endif /* TWINKLE_NO_STDIO */

static bool twi_read_host(twi_region *region, const char *path, twi_bytes *out) {
    tw_context *tw = region->tw;
    const tw_reader *reader = &tw->desc.read;
    int64_t size = -1, at = 0, got;
    unsigned char *data = NULL;
    void *file = reader->open(reader->user, path, &size);
    if (!file) return twi_fail_file(tw, TW_E_MISSING, path, "no such file");
    if (size < 0 || (uint64_t)size > (size_t)-1 / 2)
        twi_fail_file(tw, TW_E_FILE, path, "the host gives it no usable size");
    else data = (unsigned char *)twi_alloc_raw(region, (size_t)size, 1);
    while (data && at < size) {
        got = reader->read(reader->user, file, at, data + at, size - at);
        if (got > 0 && got <= size - at) { at += got; continue; }
        twi_free(region, data);
        data = NULL;
        twi_fail(tw, TW_E_FILE, "%s: the host cannot read it at byte %.0f of %.0f (%s)", twi_base_name(path),
                 (double)at, (double)size, path);
    }
    if (reader->close) reader->close(reader->user, file);
    if (!data) return false;
    out->data = data;
    out->size = (size_t)size;
    out->writable = out->allocated = true;
    return true;
}

/* The whole file, as long as the region lives: from the blobs of tw_from_memory, the host's reader,
   or the system. */
static bool twi_read_file(twi_region *region, const char *path, twi_bytes *out) {
    tw_context *tw = region->tw;
    memset(out, 0, sizeof *out);
    if (!path) { twi_fail(tw, TW_E_ARGUMENT, "file: no path was given (NULL)"); return false; }
    if (tw->blobs) {
        const twi_blob *blob = twi_find_blob(tw->blobs, path);
        if (!blob) return twi_fail_file(tw, TW_E_MISSING, path, "no such file among those in memory");
        out->data = blob->size ? (const unsigned char *)blob->data : (const unsigned char *)"";
        out->size = blob->size;
        return true;
    }
    if (tw->desc.read.open && tw->desc.read.read) return twi_read_host(region, path, out);
#ifdef TWINKLE_NO_STDIO
    return twi_fail_file(tw, TW_E_UNSUPPORTED, path, "this program was built without files; set tw_desc.read");
#else
    return twi_read_system(region, path, out);
#endif
}

/* Gives a file back before its region ends. */
static void twi_release_file(twi_region *region, twi_bytes *bytes) {
    struct twi_mapping **link;
    if (bytes->allocated) twi_free(region, (void *)(uintptr_t)bytes->data);
    else if (bytes->mapped)
        for (link = &region->mappings; *link; link = &(*link)->next)
            if ((*link)->start == (const void *)bytes->data) {
                struct twi_mapping *mapping = *link;
                *link = mapping->next;
                twi_unmap(region->tw, mapping);
                break;
            }
    memset(bytes, 0, sizeof *bytes);
}

/* Would twi_read_file find a file there?  Records no error. */
static bool twi_file_exists(tw_context *tw, const char *path) {
    if (tw->blobs) return twi_find_blob(tw->blobs, path) != NULL;
    if (tw->desc.read.open && tw->desc.read.read) {
        int64_t size = 0;
        void *file = tw->desc.read.open(tw->desc.read.user, path, &size);
        if (file && tw->desc.read.close) tw->desc.read.close(tw->desc.read.user, file);
        return file != NULL;
    }
#ifdef TWINKLE_NO_STDIO
    return false;
#else
    { twi_file_facts facts; return twi_path_facts(tw, path, &facts) && TWI_IS_FILE(facts); }
#endif
}

/* -- files: writing -------------------------------------------------------------------------------
   A file is written under another name beside its target and renamed over it when all of it is on
   the disk: a reader, a full disk or a killed process meet the old file or the new one, never half
   of either.  Every error takes the half-written file away. */
typedef struct twi_save {
    tw_context *tw;
    char       *path, *temporary;
    char       *buffer;
    size_t      used;
    int         file;                  /* -1: none is open */
} twi_save;

enum { TWI_SAVE_BUFFER = 1 << 16 };

#ifndef TWINKLE_NO_STDIO
/* Ends the save without its file. */
static void twi_save_abort(twi_save *save) {
    tw_context *tw = save->tw;
    if (save->file >= 0) twi_os_close(save->file);
    if (save->file >= 0 && save->temporary) {
        twi_path_char *system_path = twi_system_path(tw, save->temporary);
        if (system_path) { twi_os_remove(system_path); twi_system_path_free(tw, system_path); }
    }
    save->file = -1;
    twi_free(&tw->region, save->path);
    twi_free(&tw->region, save->temporary);
    twi_free(&tw->region, save->buffer);
    save->path = save->temporary = save->buffer = NULL;
}

static bool twi_save_failed(twi_save *save) {
    twi_fail_system(save->tw, save->path, true);
    twi_save_abort(save);
    return false;
}

/* Opens the save of a file; false with an error, and then there is nothing to end. */
static bool twi_save_begin(twi_save *save, tw_context *tw, const char *path) {
    twi_file_facts facts;
    size_t n;
    unsigned attempt;
    memset(save, 0, sizeof *save);
    save->tw = tw;
    save->file = -1;
    if (!path || !*path) { twi_fail(tw, TW_E_ARGUMENT, "file: no path to write to was given"); return false; }
    n = strlen(path);
    save->path = twi_copy_text(&tw->region, path, n);
    save->temporary = (char *)twi_alloc(&tw->region, n + 16, 1);
    save->buffer = (char *)twi_alloc_raw(&tw->region, TWI_SAVE_BUFFER, 1);
    if (!save->path || !save->temporary || !save->buffer) { twi_save_abort(save); return false; }
    if (twi_path_facts(tw, path, &facts) && !TWI_IS_FILE(facts)) { errno = EISDIR; return twi_save_failed(save); }
    for (attempt = 0; attempt < 64; attempt++) {           /* a name of our own: two may save at the same moment */
        uint64_t salt = twi_mix((uint64_t)twi_now(tw) + ((uint64_t)(uintptr_t)save << 8) + attempt);
        twi_path_char *system_path;
        memcpy(save->temporary, path, n);
        snprintf(save->temporary + n, 16, ".tmp%08lx", (unsigned long)(salt & 0xFFFFFFFFu));
        system_path = twi_system_path(tw, save->temporary);
        if (!system_path) { twi_save_abort(save); return false; }
        save->file = twi_os_open(system_path, TWI_WRITE_FLAGS);
        twi_system_path_free(tw, system_path);
        if (save->file >= 0) return true;
        if (errno != EEXIST && errno != EINTR) break;
    }
    return twi_save_failed(save);
}

static bool twi_save_now(twi_save *save, const char *data, size_t n) {
    while (n > 0) {
        int64_t put = twi_os_write(save->file, data, n < TWI_IO_MOST ? n : TWI_IO_MOST);
        if (put < 0 && errno == EINTR) continue;
        if (put == 0) errno = ENOSPC;
        if (put <= 0) return twi_save_failed(save);
        data += put;
        n -= (size_t)put;
    }
    return true;
}

/* Adds bytes; after the first failure the save is over and every further call fails quietly. */
static bool twi_save_bytes(twi_save *save, const void *bytes, size_t n) {
    if (save->file < 0) return false;
    if (n > TWI_SAVE_BUFFER - save->used) {
        size_t used = save->used;
        save->used = 0;
        if (!twi_save_now(save, save->buffer, used)) return false;
        if (n >= TWI_SAVE_BUFFER) return twi_save_now(save, (const char *)bytes, n);
    }
    if (n) memcpy(save->buffer + save->used, bytes, n);
    save->used += n;
    return true;
}

/* Puts the finished file in its place. */
static bool twi_save_commit(twi_save *save) {
    tw_context *tw = save->tw;
    twi_path_char *from, *to;
    int file = save->file, failed;
    if (file < 0 || !twi_save_now(save, save->buffer, save->used)) return false;
    if (twi_os_sync(file) != 0 && errno != EINVAL) return twi_save_failed(save);
    from = twi_system_path(tw, save->temporary);
    to = twi_system_path(tw, save->path);
    if (!from || !to) {
        if (from) twi_system_path_free(tw, from);
        twi_save_abort(save);
        return false;
    }
    save->file = -1;
    failed = twi_os_close(file) != 0 || twi_os_rename(from, to) != 0;
    if (failed) { twi_fail_system(tw, save->path, true); twi_os_remove(from); }
    twi_system_path_free(tw, from);
    twi_system_path_free(tw, to);
    twi_save_abort(save);                                  /* frees what is left: no file is open any more */
    return !failed;
}

/* Makes the folder and those above it; one that is there already is fine. */
static bool twi_make_folders(tw_context *tw, const char *path) {
    size_t n = strlen(path), i;
    twi_file_facts facts;
    char *part = twi_copy_text(&tw->region, path, n);
    bool ok = part != NULL;
    for (i = 1; ok && i <= n; i++) {
        /* a drive is no folder */
        if ((i < n && !twi_is_separator(part[i])) || part[i] == ':' || part[i - 1] == ':') continue;
        part[i] = 0;
        if (!twi_path_facts(tw, part, &facts)) {
            twi_path_char *system_path = twi_system_path(tw, part);
            int made = system_path ? twi_os_make_folder(system_path) : -1, number = errno;
            if (system_path) twi_system_path_free(tw, system_path);
            if (made != 0 && number != EEXIST) {
                errno = number;
                ok = system_path ? twi_fail_system(tw, part, true) : false;
            }
        } else if (!TWI_IS_FOLDER(facts))
            ok = twi_fail_file(tw, TW_E_FILE, part, "it is a file where a folder should be");
        if (i < n) part[i] = path[i];
    }
    twi_free(&tw->region, part);
    return ok;
}
#else
static void twi_save_abort(twi_save *save) { (void)save; }
static bool twi_save_bytes(twi_save *save, const void *bytes, size_t n) {
    (void)save; (void)bytes; (void)n;
    return false;
}
static bool twi_save_commit(twi_save *save) { (void)save; return false; }
static bool twi_save_begin(twi_save *save, tw_context *tw, const char *path) {
    memset(save, 0, sizeof *save);
    return twi_fail_file(tw, TW_E_UNSUPPORTED, path ? path : "", "this program was built without files");
}
static bool twi_make_folders(tw_context *tw, const char *path) {
    return twi_fail_file(tw, TW_E_UNSUPPORTED, path, "this program was built without files");
}
#endif

/* A whole file at once. */
static bool twi_save_file(tw_context *tw, const char *path, const void *bytes, size_t n) {
    twi_save save;
    return twi_save_begin(&save, tw, path) && twi_save_bytes(&save, bytes, n) && twi_save_commit(&save);
}

/* ==== [tw:02] JSON: implementation ============================================================ */

/* -- numbers as text ------------------------------------------------------------------------------
   Between a decimal text and a binary number there are two exact questions, and both are answered
   with whole numbers of any size, so that neither the locale, nor the compiler's flags, nor the
   machine have a say:
     reading:  the double nearest to D 10^e (ties to even);
     writing:  the shortest digits that read back as the same number, and among these the nearest
               (Steele and White, "How to Print Floating-Point Numbers Accurately", 1990).
   A whole number is limb[0] + limb[1] 2^32 + ...; 96 limbs hold the longest that can come up,
   the 770 digits that decide on a double, 2558 bits, and 5^1096, 2545 bits, each shifted by 64. */
enum { TWI_BIG_LIMBS = 96, TWI_BIG_DIGITS = 770 };
typedef struct twi_big { int n; uint32_t limb[TWI_BIG_LIMBS]; } twi_big;

static void twi_big_set(twi_big *a, uint64_t value) {
    a->limb[0] = (uint32_t)value;
    a->limb[1] = (uint32_t)(value >> 32);
    a->n = a->limb[1] ? 2 : a->limb[0] ? 1 : 0;
}

static int twi_big_bits(const twi_big *a) {
    int bits = a->n * 32;
    uint32_t top;
    if (a->n == 0) return 0;
    for (top = a->limb[a->n - 1]; !(top & 0x80000000u); top <<= 1) bits--;
    return bits;
}

static void twi_big_multiply(twi_big *a, uint32_t factor, uint32_t add) {       /* a = a factor + add */
    uint64_t carry = add;
    int i;
    for (i = 0; i < a->n; i++) {
        carry += (uint64_t)a->limb[i] * factor;
        a->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry) a->limb[a->n++] = (uint32_t)carry;
}

static void twi_big_power5(twi_big *a, int exponent) {                          /* a = a 5^exponent */
    for (; exponent >= 13; exponent -= 13) twi_big_multiply(a, 1220703125u, 0);
    for (; exponent > 0; exponent--) twi_big_multiply(a, 5, 0);
}

static void twi_big_shift(twi_big *a, int bits) {                               /* a = a 2^bits */
    int limbs = bits / 32, i;
    if (a->n == 0) return;
    twi_big_multiply(a, 1u << (bits % 32), 0);
    if (limbs == 0) return;
    for (i = a->n - 1; i >= 0; i--) a->limb[i + limbs] = a->limb[i];
    for (i = 0; i < limbs; i++) a->limb[i] = 0;
    a->n += limbs;
}

static void twi_big_add(twi_big *sum, const twi_big *a, const twi_big *b) {
    int n = a->n > b->n ? a->n : b->n, i;
    uint64_t carry = 0;
    for (i = 0; i < n; i++) {
        carry += (uint64_t)(i < a->n ? a->limb[i] : 0) + (i < b->n ? b->limb[i] : 0);
        sum->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry) sum->limb[n++] = (uint32_t)carry;
    sum->n = n;
}

static int twi_big_compare(const twi_big *a, const twi_big *b) {                /* -1, 0, 1 */
    int i;
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (i = a->n - 1; i >= 0; i--) if (a->limb[i] != b->limb[i]) return a->limb[i] < b->limb[i] ? -1 : 1;
    return 0;
}

/* One digit of a long division in base 2^32 (Knuth, volume 2, 4.3.1): returns a / b, leaves a = a mod b.  Needs
   a < b 2^32 and the top bit of b's top limb set: then the guess from the top limbs is at most 2 too large. */
static uint32_t twi_big_divide(twi_big *a, const twi_big *b) {
    int n = b->n, i;
    uint64_t guess, carry;
    if (a->n < n) return 0;
    if (a->n == n) a->limb[n] = 0;
    guess = ((uint64_t)a->limb[n] << 32 | a->limb[n - 1]) / b->limb[n - 1];
    if (guess > 0xFFFFFFFFu) guess = 0xFFFFFFFFu;
    for (i = 0, carry = 0; i < n; i++) {                                        /* a -= guess b, modulo 2^(32 (n+1)) */
        uint64_t part = guess * b->limb[i] + carry;
        carry = (part >> 32) + (a->limb[i] < (uint32_t)part);
        a->limb[i] -= (uint32_t)part;
    }
    carry = (uint64_t)a->limb[n] - carry;
    /* below zero: the guess was too large */
    while (carry >> 63) {
        uint64_t sum = 0;
        for (i = 0; i < n; i++) { sum += (uint64_t)a->limb[i] + b->limb[i]; a->limb[i] = (uint32_t)sum; sum >>= 32; }
        carry += sum;
        guess--;
    }
    a->n = n;
    while (a->n > 0 && a->limb[a->n - 1] == 0) a->n--;
    return (uint32_t)guess;
}

/* The double nearest to (q + a little, where more) 2^exponent, q with its top bit set; false when it is infinite. */
static bool twi_round_double(uint64_t q, bool more, int exponent, double *out) {
    int top = exponent + 63, drop = top < -1022 ? 11 + (-1022 - top) : 11;      /* below 2^-1022 there are fewer bits */
    uint64_t kept, rest, half, bits;
    if (top > 1023) return false;
    if (drop > 64) drop = 64, q = 0;
    kept = drop < 64 ? q >> drop : 0;
    rest = drop < 64 ? q & ((UINT64_C(1) << drop) - 1) : q;
    half = UINT64_C(1) << (drop - 1);
    if (rest > half || (rest == half && (more || (kept & 1)))) kept++;
    /* kept's own top bit counts as one more */
    bits = kept + (top < -1022 ? 0 : (uint64_t)(top + 1022) << 52);
    if (bits >= UINT64_C(0x7FF) << 52) return false;
    memcpy(out, &bits, sizeof bits);
    return true;
}

/* digits 10^exponent as a double; more: digits were left off behind. */
static bool twi_decimal_to_double(twi_big *digits, int exponent, bool more, double *out) {
    uint64_t q = 0;
    int i;
    if (exponent >= 0) {                                                        /* D 5^e 2^e: its top 64 bits */
        int up;
        twi_big_power5(digits, exponent);
        up = (64 - twi_big_bits(digits) % 64) % 64;
        twi_big_shift(digits, up);
        q = (uint64_t)digits->limb[digits->n - 1] << 32 | digits->limb[digits->n - 2];
        for (i = 0; i < digits->n - 2; i++) more = more || digits->limb[i] != 0;
        return twi_round_double(q, more, exponent - up + 32 * (digits->n - 2), out);
    } else {                                                  /* D / 5^-e 2^e: a quotient of 63 or 64 bits */
        twi_big power;
        int norm, up;
        twi_big_set(&power, 1);
        twi_big_power5(&power, -exponent);
        norm = (32 - twi_big_bits(&power) % 32) % 32;
        up = twi_big_bits(&power) + 31 - twi_big_bits(digits);        /* D 2^up / 5^-e lies in 2^30 ... 2^32 */
        if (up < 0) { norm += (32 - -up % 32) % 32; twi_big_shift(&power, norm - up); twi_big_shift(digits, norm); }
        else { twi_big_shift(&power, norm); twi_big_shift(digits, up + norm); }
        for (i = 0; i < 2; i++) {
            q = q << 32 | twi_big_divide(digits, &power);
            twi_big_shift(digits, 32);
        }
        exponent -= up + 32;
        if (!(q >> 63)) { q <<= 1; exponent--; }
        return twi_round_double(q, more || digits->n != 0, exponent, out);
    }
}

/* Reads [+-] digits [. digits] [e [+-] digits], all of the n bytes, to the nearest double.  False when it is
   no number (*out is 0 then) or too large for a double (*out is +-1 then). */
static bool twi_parse_number(const char *text, size_t n, double *out) {
    twi_big digits;
    uint64_t head = 0;                                                          /* the first 19 digits */
    int64_t exponent = 0, given = 0;
    int count = 0;                                                              /* significant digits kept */
    size_t i = 0, seen = 0;
    bool negative = false, point = false, more = false, ok;
    *out = 0;
    if (n && (text[0] == '-' || text[0] == '+')) negative = text[i++] == '-';
    digits.n = 0;
    for (; i < n; i++) {
        uint32_t d = (uint32_t)(unsigned char)text[i] - '0';
        if (text[i] == '.' && !point) { point = true; continue; }
        if (d > 9) break;
        seen++;
        if (point) exponent--;
        if (count == 0 && d == 0) continue;
        if (count == TWI_BIG_DIGITS) { more = more || d != 0; exponent++; continue; }
        if (count < 19) head = head * 10 + d;
        else {
            if (count == 19) twi_big_set(&digits, head);
            twi_big_multiply(&digits, 10, d);
        }
        count++;
    }
    if (seen == 0) return false;
    if (count <= 19) twi_big_set(&digits, head);
    if (i < n && (text[i] == 'e' || text[i] == 'E')) {
        bool down = false;
        size_t first;
        i++;
        if (i < n && (text[i] == '-' || text[i] == '+')) down = text[i++] == '-';
        for (first = i; i < n && text[i] >= '0' && text[i] <= '9'; i++)
            if (given < INT64_C(1000000000000000)) given = given * 10 + (text[i] - '0');
        if (i == first) return false;
        exponent += down ? -given : given;
    }
    if (i != n) return false;
    /* zero, or nearer to it than to any other */
    if (count == 0 || exponent + count < -326) ok = true;
    else ok = exponent + count <= 310 && twi_decimal_to_double(&digits, (int)exponent, more, out);
    if (!ok) *out = 1;
    if (negative) *out = -*out;
    return ok;
}

/* The shortest digits of mantissa 2^exponent (mantissa > 0), for a type with that many bits of precision
   and that smallest exponent.  The value is 0.DIGITS 10^point; returns how many digits. */
static int twi_shortest_digits(uint64_t mantissa, int exponent, int precision, int smallest, char digits[20],
                               int *point) {
    /* value / scale; to the neighbours: low, high / 2 */
    twi_big value, scale, low, high, sum;
    bool even = (mantissa & 1) == 0, closer = mantissa == UINT64_C(1) << (precision - 1) && exponent > smallest;
    int up = exponent > 0 ? exponent : 0, down = exponent < 0 ? -exponent : 0, extra = closer ? 2 : 1;
    int count = 0, norm, estimate;
    int64_t log2;
    twi_big_set(&value, mantissa);
    log2 = (int64_t)twi_big_bits(&value) + exponent - 1;                        /* of the top bit */
    twi_big_shift(&value, up + extra);
    twi_big_set(&scale, 1);
    twi_big_shift(&scale, down + extra);
    twi_big_set(&low, 1);
    twi_big_shift(&low, up);
    twi_big_set(&high, 1);
    /* below a power of two the gap is half as wide */
    twi_big_shift(&high, up + (closer ? 1 : 0));
    log2 *= 30103;                                                              /* log10(2) = 0.30103 */
    /* floor: the first digit's power of ten, or one less */
    estimate = (int)(log2 >= 0 ? log2 / 100000 : -((-log2 + 99999) / 100000));
    *point = estimate + 1;
    if (*point >= 0) { twi_big_power5(&scale, *point); twi_big_shift(&scale, *point); }
    else {
        twi_big_power5(&value, -*point); twi_big_shift(&value, -*point);
        twi_big_power5(&low, -*point); twi_big_shift(&low, -*point);
        twi_big_power5(&high, -*point); twi_big_shift(&high, -*point);
    }
    twi_big_add(&sum, &value, &high);
    if (twi_big_compare(&sum, &scale) >= (even ? 0 : 1)) { twi_big_multiply(&scale, 10, 0); ++*point; }
    norm = (32 - twi_big_bits(&scale) % 32) % 32;
    twi_big_shift(&scale, norm);
    twi_big_shift(&value, norm);
    twi_big_shift(&low, norm);
    twi_big_shift(&high, norm);
    for (;;) {
        uint32_t digit;
        bool down_enough, up_enough;
        twi_big_multiply(&value, 10, 0);
        twi_big_multiply(&low, 10, 0);
        twi_big_multiply(&high, 10, 0);
        digit = twi_big_divide(&value, &scale);
        twi_big_add(&sum, &value, &high);
        /* these digits read back as the number */
        down_enough = twi_big_compare(&value, &low) < (even ? 1 : 0);
        up_enough = twi_big_compare(&sum, &scale) >= (even ? 0 : 1);            /* so do these with the last one more */
        if (down_enough && up_enough) {
            int half;
            twi_big_add(&sum, &value, &value);
            half = twi_big_compare(&sum, &scale);
            if (half > 0 || (half == 0 && (digit & 1))) digit++;
        } else if (up_enough) digit++;
        digits[count++] = (char)('0' + digit);
        if (down_enough || up_enough || count == 18) return count;
    }
}

/* Digits laid out as Python's repr does: 0.1, 1.0, 1e-05, 1e+16. */
static size_t twi_layout_number(const char *digits, int count, int point, bool negative, char out[32]) {
    char *p = out;
    int i;
    if (negative) *p++ = '-';
    if (point > -4 && point <= 16) {
        if (point <= 0) { *p++ = '0'; *p++ = '.'; for (i = point; i < 0; i++) *p++ = '0'; }
        for (i = 0; i < count; i++) {
            if (i == point && i > 0) *p++ = '.';
            *p++ = digits[i];
        }
        for (; i < point; i++) *p++ = '0';
        if (point >= count) { *p++ = '.'; *p++ = '0'; }
    } else {
        int power = point - 1, size = power < 0 ? -power : power;
        *p++ = digits[0];
        if (count > 1) *p++ = '.';
        for (i = 1; i < count; i++) *p++ = digits[i];
        *p++ = 'e';
        *p++ = power < 0 ? '-' : '+';
        if (size >= 100) *p++ = (char)('0' + size / 100);
        *p++ = (char)('0' + size / 10 % 10);
        *p++ = (char)('0' + size % 10);
    }
    *p = 0;
    return (size_t)(p - out);
}

static size_t twi_format_text(char out[32], const char *text) {
    size_t n = strlen(text);
    memcpy(out, text, n + 1);
    return n;
}

/* x = mantissa 2^exponent; false: not finite */
static bool twi_double_parts(double x, uint64_t *mantissa, int *exponent) {
    uint64_t bits;
    int field;
    memcpy(&bits, &x, sizeof bits);
    field = (int)(bits >> 52 & 0x7FF);
    *mantissa = (bits & ((UINT64_C(1) << 52) - 1)) | (field ? UINT64_C(1) << 52 : 0);
    *exponent = (field ? field : 1) - 1075;
    return field != 0x7FF;
}

static bool twi_is_negative(double x) { uint64_t bits; memcpy(&bits, &x, sizeof bits); return bits >> 63 != 0; }
static bool twi_is_finite(double x) { uint64_t m; int e; return twi_double_parts(x, &m, &e); }

/* The shortest text that reads back as the same double; returns its length.  NaN and infinities are
   "nan", "inf", "-inf". */
static size_t twi_format_number(double x, char out[32]) {
    char digits[20];
    uint64_t mantissa;
    int exponent, point, count;
    bool negative = twi_is_negative(x);
    if (!twi_double_parts(x, &mantissa, &exponent))
        return twi_format_text(out, mantissa != UINT64_C(1) << 52 ? "nan" : negative ? "-inf" : "inf");
    if (mantissa == 0) return twi_format_text(out, negative ? "-0.0" : "0.0");
    count = twi_shortest_digits(mantissa, exponent, 53, -1074, digits, &point);
    return twi_layout_number(digits, count, point, negative, out);
}

/* The same for an f32: 0.1f is "0.1", not "0.10000000149011612". */
static size_t twi_format_float(float x, char out[32]) {
    char digits[20];
    uint32_t bits;
    int field, point, count;
    memcpy(&bits, &x, sizeof bits);
    field = (int)(bits >> 23 & 0xFF);
    if (field == 0xFF || (bits & 0x7FFFFFFFu) == 0) return twi_format_number((double)x, out);
    count = twi_shortest_digits((bits & 0x7FFFFFu) | (field ? 0x800000u : 0u), (field ? field : 1) - 150, 24, -149,
                                digits, &point);
    return twi_layout_number(digits, count, point, bits >> 31 != 0, out);
}

static size_t twi_format_int(int64_t x, char out[32]) {
    char digits[20];
    uint64_t rest = x < 0 ? 0 - (uint64_t)x : (uint64_t)x;
    size_t n = 0, at = 0;
    do digits[n++] = (char)('0' + rest % 10); while ((rest /= 10) != 0);
    if (x < 0) out[at++] = '-';
    while (n > 0) out[at++] = digits[--n];
    out[at] = 0;
    return at;
}

/* -- reading: one token after the other ------------------------------------------------------------
   The reader walks over the text once and hands out tokens; whoever wants a tree builds it from
   them (below), and whoever wants no tree does without (the header of a safetensors file).  It
   works on a copy of the text and decodes strings in place, as an escape is never shorter than
   what it stands for: no string is allocated on its own.  Nesting is a bit a level, so no input
   can use up the stack. */
typedef struct twi_json_reader {
    tw_context *tw;
    const char *what, *where;          /* for errors: "WHAT: why (WHERE, line 1, column 1)" */
    const char *original;              /* the same text before strings were decoded */
    char       *text;                  /* a NUL stands behind it */
    size_t      length, at;
    size_t      counted_from;          /* SIZE_MAX: errors give line and column; else the byte, counted from this one */
    uint64_t    objects;               /* bit i: level i is an object */
    int         depth;
    /* 'v' a value, 'k' a key, 'f' the first item or the end, 'a' a comma or the end */
    char        expects;
    size_t      start;                 /* where the token begins */
    char       *string;                /* of a key or string: decoded, with a NUL behind it */
    size_t      string_length;
    bool        whole;                 /* a number without fraction and exponent */
} twi_json_reader;

static int twi_json_fail(twi_json_reader *r, tw_code code, size_t at, const char *why) {
    unsigned long line = 1, column = 1;
    size_t i;
    const char *gap = *r->where ? ", " : "";
    if (r->counted_from != (size_t)-1) {
        twi_fail(r->tw, code, "%s: %s (%s%sbyte %.0f)", r->what, why, r->where, gap,
                 (double)at + (double)r->counted_from);
        return 0;
    }
    for (i = 0; i < at && i < r->length; i++) {
        if (r->original[i] == '\n') { line++; column = 1; }
        else if (((unsigned char)r->original[i] & 0xC0) != 0x80) column++;
    }
    twi_fail(r->tw, code, "%s: %s (%s%sline %lu, column %lu)", r->what, why, r->where, gap, line, column);
    return 0;
}

/* What is wrong with a character that no token begins with. */
static int twi_json_fail_token(twi_json_reader *r, const char *otherwise) {
    const char *t = r->text + r->at;
    const char *why = otherwise;
    if (r->at >= r->length) why = r->length == 0 ? "the text is empty" : "the text ends too early";
    else if (r->at == 0 && r->length >= 3 && memcmp(t, "\xEF\xBB\xBF", 3) == 0)
        why = "a byte order mark stands before the text; save it as UTF-8 without one";
    else if (*t == '/' || *t == '#') why = "JSON has no comments";
    else if (*t == '\'') why = "strings stand in double quotes";
    else if (strncmp(t, "NaN", 3) == 0 || strncmp(t, "Infinity", 8) == 0 || strncmp(t, "-Infinity", 9) == 0)
        why = "NaN and Infinity are not JSON";
    return twi_json_fail(r, TW_E_FORMAT, r->at, why);
}

/* Four hexadecimal digits, or a value above 0xFFFF. */
static uint32_t twi_json_hex(const char *p) {
    uint32_t value = 0;
    int i;
    for (i = 0; i < 4; i++) {
        char c = p[i];
        if (c >= '0' && c <= '9') value = value << 4 | (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value << 4 | (uint32_t)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') value = value << 4 | (uint32_t)(c - 'A' + 10);
        else return 0x10000;
    }
    return value;
}

/* One escape at p, written to *to; returns how many bytes it took, 0 with an error. */
static size_t twi_json_escape(twi_json_reader *r, const char *p, char **to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *name = p[1] ? strchr(names, p[1]) : NULL;
    size_t at = (size_t)(p - r->text), used = 6;
    uint32_t code, second;
    if (name) { *(*to)++ = values[name - names]; return 2; }
    if (at + 1 >= r->length) { twi_json_fail(r, TW_E_FORMAT, r->length, "the text ends inside a string"); return 0; }
    code = p[1] == 'u' ? twi_json_hex(p + 2) : 0x10000;
    if (code > 0xFFFF) { twi_json_fail(r, TW_E_FORMAT, at, "there is no such escape in a string"); return 0; }
    if (code >= 0xD800 && code < 0xE000) {                                      /* half of a surrogate pair (UTF-16) */
        second = code < 0xDC00 && p[6] == '\\' && p[7] == 'u' ? twi_json_hex(p + 8) : 0;
        if (second < 0xDC00 || second >= 0xE000) {
            twi_json_fail(r, TW_E_FORMAT, at, "half of a surrogate pair stands alone in a string");
            return 0;
        }
        code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
        used = 12;
    }
    *to += twi_utf8_write(code, *to);
    return used;
}

/* Which bytes stand for themselves in a string and are ASCII: all but controls, quote and backslash. */
static bool twi_json_plain(unsigned char c) { return c >= 0x20 && c < 0x80 && c != '"' && c != '\\'; }

static bool twi_json_read_string(twi_json_reader *r) {
    char *p = r->text + r->at + 1, *to = p;
    const char *end = r->text + r->length;
    r->string = p;
    while (twi_json_plain((unsigned char)*p)) p++;
    to = p;
    while (*p != '"') {
        unsigned char c = (unsigned char)*p;
        size_t used = 1;
        if (twi_json_plain(c)) *to++ = (char)c;
        else if (c == '\\') { used = twi_json_escape(r, p, &to); if (used == 0) return false; }
        else if (c >= 0x80) {
            uint32_t code;
            bool valid;
            used = (size_t)twi_utf8_read(p, (size_t)(end - p), &code, &valid);
            if (!valid) {
                twi_json_fail(r, TW_E_FORMAT, (size_t)(p - r->text), "a string is not valid UTF-8");
                return false;
            }
            memmove(to, p, used);
            to += used;
        } else {
            twi_json_fail(r, TW_E_FORMAT, (size_t)(p - r->text),
                          p >= end ? "the text ends inside a string" : "a control character stands in a string");
            return false;
        }
        p += used;
    }
    r->string_length = (size_t)(to - r->string);
    *to = 0;
    r->at = (size_t)(p - r->text) + 1;
    return true;
}

static bool twi_is_digit(char c) { return c >= '0' && c <= '9'; }

/* -? (0 | [1-9] digits) (. digits)? ([eE] [+-]? digits)? */
static bool twi_json_read_number(twi_json_reader *r) {
    const char *p = r->text + r->at;
    r->whole = true;
    if (*p == '-') p++;
    if (!twi_is_digit(*p)) return false;
    if (*p == '0' && twi_is_digit(p[1])) return false;
    while (twi_is_digit(*p)) p++;
    if (*p == '.') {
        r->whole = false;
        if (!twi_is_digit(*++p)) return false;
        while (twi_is_digit(*p)) p++;
    }
    if (*p == 'e' || *p == 'E') {
        r->whole = false;
        p++;
        if (*p == '+' || *p == '-') p++;
        if (!twi_is_digit(*p)) return false;
        while (twi_is_digit(*p)) p++;
    }
    r->at = (size_t)(p - r->text);
    return true;
}

static void twi_json_skip_blanks(twi_json_reader *r) {
    while (r->text[r->at] == ' ' || r->text[r->at] == '\n' || r->text[r->at] == '\r' || r->text[r->at] == '\t') r->at++;
}

static bool twi_json_in_object(const twi_json_reader *r) { return r->depth > 0 && (r->objects >> (r->depth - 1) & 1); }

/* The next token: '{' '}' '[' ']', 'k' a key, 's' a string, 'n' a number, 't' true, 'f' false, '0' null,
   'e' the end of the text, 0 an error. */
static int twi_json_next(twi_json_reader *r) {
    char c;
    bool object = twi_json_in_object(r);
    twi_json_skip_blanks(r);
    r->start = r->at;
    c = r->text[r->at];
    if (r->expects == 'a') {
        if (r->depth == 0) {
            if (r->at == r->length) return 'e';
            return twi_json_fail(r, TW_E_FORMAT, r->at, "something follows the end of the text");
        }
        if (c == ',') {
            r->at++;
            twi_json_skip_blanks(r);
            r->start = r->at;
            c = r->text[r->at];
            if (c == '}' || c == ']')
                return twi_json_fail(r, TW_E_FORMAT, r->at, "a comma stands before the end of a list");
            r->expects = object ? 'k' : 'v';
        } else if (c != '}' && c != ']') return twi_json_fail_token(r, "a comma or the end of the list is missing");
    }
    if (r->expects == 'a' || r->expects == 'f') {
        if (c == '}' || c == ']') {
            if ((c == '}') != object)
                return twi_json_fail(r, TW_E_FORMAT, r->at, object ? "an object ends with ]" : "an array ends with }");
            r->depth--;
            r->expects = 'a';
            r->at++;
            return c;
        }
        r->expects = object ? 'k' : 'v';
    }
    if (r->expects == 'k') {
        if (c != '"') return twi_json_fail_token(r, "a name in double quotes is missing");
        if (!twi_json_read_string(r)) return 0;
        twi_json_skip_blanks(r);
        if (r->text[r->at] != ':') return twi_json_fail_token(r, "a colon is missing");
        r->at++;
        r->expects = 'v';
        return 'k';
    }
    r->expects = 'a';
    switch (c) {
    case '{':
    case '[':
        if (r->depth == TW_MAX_JSON_DEPTH)
            return twi_json_fail(r, TW_E_RANGE, r->at, "lists are nested more than 64 deep");
        r->objects = (r->objects & ~(UINT64_C(1) << r->depth)) | (uint64_t)(c == '{') << r->depth;
        r->depth++;
        r->expects = 'f';
        r->at++;
        return c;
    case '"': return twi_json_read_string(r) ? 's' : 0;
    case 't': if (strncmp(r->text + r->at, "true", 4) == 0) { r->at += 4; return 't'; } break;
    case 'f': if (strncmp(r->text + r->at, "false", 5) == 0) { r->at += 5; return 'f'; } break;
    case 'n': if (strncmp(r->text + r->at, "null", 4) == 0) { r->at += 4; return '0'; } break;
    default:
        if (c != '-' && !twi_is_digit(c)) break;
        if (twi_json_read_number(r)) return 'n';
        return twi_json_fail_token(r, "that is no number as JSON writes them");
    }
    return twi_json_fail_token(r, "no value begins like this");
}

/* Skips the value whose first token was just read. */
static bool twi_json_skip(twi_json_reader *r, int token) {
    int depth = r->depth;
    if (token != '{' && token != '[') return token != 0;
    while (r->depth >= depth) if (twi_json_next(r) == 0) return false;
    return true;
}

/* The number just read as a whole one; false when it has a fraction, an exponent, or more than 64 bits. */
static bool twi_json_token_int(const twi_json_reader *r, int64_t *out) {
    const char *p = r->text + r->start, *end = r->text + r->at;
    bool negative = *p == '-';
    uint64_t value = 0, most = (uint64_t)INT64_MAX + (negative ? 1u : 0u);
    if (!r->whole) return false;
    if (negative) p++;
    for (; p < end; p++) {
        uint64_t digit = (uint64_t)(*p - '0');
        if (value > (most - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = negative ? (int64_t)(0 - value) : (int64_t)value;
    return true;
}

static twi_json_reader twi_json_reader_of(tw_context *tw, const char *what, const char *where, const char *original,
                                          char *text, size_t length) {
    twi_json_reader r;
    memset(&r, 0, sizeof r);
    r.tw = tw;
    r.what = what;
    r.where = where;
    r.original = original;
    r.text = text;
    r.length = length;
    r.counted_from = (size_t)-1;
    r.expects = 'v';
    return r;
}

/* -- the tree ---------------------------------------------------------------------------------------
   A value takes 16 bytes, a member of an object 32, and everything comes from a few chunks that the
   document owns.  A list of items is an array of pointers to them, so that a value stays where it
   is when its list grows.  Objects of more than 16 members have a hash index. */
/* LONG: whole, beyond 64 bits, as a double */
enum { TWI_NUMBER_REAL, TWI_NUMBER_FLOAT, TWI_NUMBER_INT, TWI_NUMBER_LONG };
enum { TWI_JSON_INDEXED = 16 };

struct tw_json {
    unsigned char kind;                /* tw_json_kind */
    unsigned char form;                /* of a number */
    unsigned char depth;               /* how many lists are around it */
    unsigned char root;
    uint32_t      length;              /* of a string in bytes, of a list in items */
    union {
        bool        truth;
        int64_t     integer;
        double      number;
        const char *string;
        struct twi_json_list *list;
    } is;
};

typedef struct twi_json_member { tw_json value; const char *key; uint32_t key_length; } twi_json_member;

typedef struct twi_json_list {
    struct twi_json_document *document;
    tw_json **items;                   /* of an object: every one is the value of a twi_json_member */
    uint32_t  capacity;
    twi_index index;
} twi_json_list;

typedef struct twi_json_chunk { struct twi_json_chunk *next; size_t bytes; } twi_json_chunk;

typedef struct twi_json_document {
    tw_json         root;              /* first: a root is its document */
    tw_context     *tw;
    twi_json_chunk *chunks;
    char           *free;              /* room in the newest chunk */
    size_t          left, chunk_bytes;
    char           *text;              /* what the strings of a parsed document point into */
    uint64_t        salt;
} twi_json_document;

/* count * size bytes that live as long as the document, not cleared. */
static void *twi_json_take(twi_json_document *d, size_t count, size_t size) {
    size_t bytes, whole;
    char *data;
    if (!twi_multiply(count, size, &bytes) || !twi_sum(bytes, 7 + sizeof(twi_json_chunk), &whole)) {
        twi_fail(d->tw, TW_E_MEMORY, "JSON: a list of %lu items cannot be counted", (unsigned long)count);
        return NULL;
    }
    bytes = (bytes + 7) / 8 * 8;
    if (bytes > d->left) {
        twi_json_chunk *chunk;
        if (d->chunk_bytes < ((size_t)1 << 18)) d->chunk_bytes *= 2;
        if (whole < d->chunk_bytes) whole = d->chunk_bytes;
        chunk = (twi_json_chunk *)twi_alloc_raw(&d->tw->region, whole, 1);
        if (!chunk) return NULL;
        chunk->next = d->chunks;
        d->chunks = chunk;
        data = (char *)chunk + sizeof *chunk;
        whole -= sizeof *chunk;
        /* nearly all of it is used: keep the older room */
        if (whole - bytes <= d->left) return data;
        d->free = data;
        d->left = whole;
    }
    data = d->free;
    d->free += bytes;
    d->left -= bytes;
    return data;
}

static twi_json_document *twi_json_document_new(tw_context *tw) {
    twi_json_document *d = (twi_json_document *)twi_alloc(&tw->region, 1, sizeof *d);
    if (!d) return NULL;
    d->tw = tw;
    d->chunk_bytes = 512;
    d->salt = twi_mix((uint64_t)(uintptr_t)d);
    d->root.root = 1;
    return d;
}

TWDEF void tw_json_free(tw_json *root) {
    twi_json_document *d = (twi_json_document *)(void *)root;
    if (!root || !root->root) return;
    while (d->chunks) {
        twi_json_chunk *chunk = d->chunks;
        d->chunks = chunk->next;
        twi_free(&d->tw->region, chunk);
    }
    twi_free(&d->tw->region, d->text);
    twi_free(&d->tw->region, d);
}

static bool twi_json_is_list(const tw_json *value) {
    return value && (value->kind == TW_JSON_ARRAY || value->kind == TW_JSON_OBJECT);
}
static const twi_json_member *twi_json_member_at(const tw_json *object, uint32_t i) {
    return (const twi_json_member *)(const void *)object->is.list->items[i];
}

/* Where the member of that name stands, or TWI_NOWHERE. */
static int64_t twi_json_find(const tw_json *object, const char *key, size_t length) {
    const twi_json_list *list = object->is.list;
    uint32_t i, hash;
    if (list->index.slots) {
        int64_t at;
        uint32_t cursor;
        cursor = hash = twi_hash(key, length, list->document->salt);
        while ((at = twi_index_next(&list->index, hash, &cursor)) != TWI_NOWHERE) {
            const twi_json_member *member = twi_json_member_at(object, (uint32_t)at);
            if (member->key_length == length && memcmp(member->key, key, length) == 0) return at;
        }
        return TWI_NOWHERE;
    }
    for (i = 0; i < object->length; i++) {
        const twi_json_member *member = twi_json_member_at(object, i);
        if (member->key_length == length && memcmp(member->key, key, length) == 0) return i;
    }
    return TWI_NOWHERE;
}

static void twi_json_index_member(tw_json *object, uint32_t i) {
    const twi_json_member *member = twi_json_member_at(object, i);
    twi_json_list *list = object->is.list;
    twi_index_add(&list->index, twi_hash(member->key, member->key_length, list->document->salt), i);
}

/* Room for that many items, and for an object a new index of those it has. */
static bool twi_json_reserve(tw_json *value, size_t capacity) {
    twi_json_list *list = value->is.list;
    tw_json **items = list->items;
    uint32_t i;
    if (capacity > list->capacity) {
        if (capacity > 0xFFFFFFF0u) {
            twi_fail(list->document->tw, TW_E_RANGE, "JSON: a list has too many items");
            return false;
        }
        items = (tw_json **)twi_json_take(list->document, capacity, sizeof *items);
        if (!items) return false;
        if (value->length) memcpy(items, list->items, value->length * sizeof *items);
    }
    if (value->kind == TW_JSON_OBJECT && capacity > TWI_JSON_INDEXED) {
        size_t slots = twi_index_slots(capacity);
        uint64_t *empty = list->index.slots;
        if (!empty || slots - 1 != list->index.mask)
            empty = (uint64_t *)twi_json_take(list->document, slots, sizeof *empty);
        if (!empty) return false;
        memset(empty, 0, slots * sizeof *empty);
        list->index = twi_index_of(empty, slots);
    }
    list->items = items;
    if (capacity > list->capacity) list->capacity = (uint32_t)capacity;
    if (list->index.slots) for (i = 0; i < value->length; i++) twi_json_index_member(value, i);
    return true;
}

static bool twi_json_append(tw_json *value, tw_json *item) {
    twi_json_list *list = value->is.list;
    if (value->length == list->capacity && !twi_json_reserve(value, (size_t)list->capacity * 2 + 4)) return false;
    list->items[value->length++] = item;
    if (list->index.slots) twi_json_index_member(value, value->length - 1);
    return true;
}

static bool twi_json_make_list(twi_json_document *d, tw_json *value, tw_json_kind kind) {
    twi_json_list *list = (twi_json_list *)twi_json_take(d, 1, sizeof *list);
    if (!list) return false;
    memset(list, 0, sizeof *list);
    list->document = d;
    value->kind = (unsigned char)kind;
    value->length = 0;
    value->is.list = list;
    return true;
}

/* A value for that list, of kind null; the key stays where it is. */
static tw_json *twi_json_new_item(tw_json *parent, const char *key, size_t key_length) {
    bool member = parent->kind == TW_JSON_OBJECT;
    size_t size = member ? sizeof(twi_json_member) : sizeof(tw_json);
    tw_json *item = (tw_json *)twi_json_take(parent->is.list->document, 1, size);
    if (!item) return NULL;
    memset(item, 0, sizeof *item);
    item->kind = TW_JSON_NULL;
    item->depth = (unsigned char)(parent->depth + 1);
    if (member) {
        ((twi_json_member *)(void *)item)->key = key;
        ((twi_json_member *)(void *)item)->key_length = (uint32_t)key_length;
    }
    return item;
}

/* Fills a scalar from the token just read. */
static bool twi_json_scalar(twi_json_reader *r, int token, tw_json *value) {
    switch (token) {
    case 't':
    case 'f': value->kind = TW_JSON_BOOL; value->is.truth = token == 't'; return true;
    case '0': value->kind = TW_JSON_NULL; return true;
    case 's':
        value->kind = TW_JSON_STRING;
        value->is.string = r->string;
        value->length = (uint32_t)r->string_length;
        return true;
    default:  break;
    }
    value->kind = TW_JSON_NUMBER;
    value->form = TWI_NUMBER_INT;
    if (twi_json_token_int(r, &value->is.integer)) return true;
    value->form = r->whole ? TWI_NUMBER_LONG : TWI_NUMBER_REAL;
    if (twi_parse_number(r->text + r->start, r->at - r->start, &value->is.number)) return true;
    twi_json_fail(r, TW_E_RANGE, r->start, "that number is too large for a double");
    return false;
}

/* The items of a finished list, from the stack into an array of their own; of equal keys the last
   counts, or is an error where the document must not have any. */
static bool twi_json_close(twi_json_reader *r, tw_json *value, tw_json **items, size_t count, bool unique) {
    size_t i;
    if (count && !twi_json_reserve(value, count)) return false;
    for (i = 0; i < count; i++) {
        const twi_json_member *member = (const twi_json_member *)(const void *)items[i];
        int64_t at = TWI_NOWHERE;
        if (value->kind == TW_JSON_OBJECT) at = twi_json_find(value, member->key, member->key_length);
        if (at == TWI_NOWHERE) { if (!twi_json_append(value, items[i])) return false; }
        else if (!unique) value->is.list->items[at] = items[i];
        else {
            char why[160];
            snprintf(why, sizeof why, "the name \"%.100s\" stands twice in one object", member->key);
            return twi_json_fail(r, TW_E_FORMAT, (size_t)(member->key - r->text) - 1, why) != 0;
        }
    }
    return true;
}

static bool twi_json_build(twi_json_reader *r, twi_json_document *d, bool unique) {
    struct { tw_json *value; size_t first; } open[TW_MAX_JSON_DEPTH];           /* the lists around the reader */
    twi_region *region = &r->tw->region;
    tw_json **stack = NULL;                                                     /* the items of all of them so far */
    size_t used = 0, capacity = 0, key_length = 0;
    const char *key = NULL;
    int depth = 0, token;
    bool ok = true;
    while (ok && (token = twi_json_next(r)) != 'e') {
        tw_json *value = &d->root;
        if (token == 'k') { key = r->string; key_length = r->string_length; continue; }
        if (token == '}' || token == ']') {
            depth--;
            ok = twi_json_close(r, open[depth].value, stack ? stack + open[depth].first : NULL,
                                used - open[depth].first, unique);
            used = open[depth].first;
            continue;
        }
        ok = token != 0;
        if (ok && depth > 0) {
            tw_json **grown = (tw_json **)twi_grow(region, stack, used, &capacity, used + 1, sizeof *stack);
            value = grown ? twi_json_new_item(open[depth - 1].value, key, key_length) : NULL;
            if (grown) stack = grown;
            if (value) stack[used++] = value;
            ok = value != NULL;
        }
        if (ok && (token == '{' || token == '[')) {
            ok = twi_json_make_list(d, value, token == '{' ? TW_JSON_OBJECT : TW_JSON_ARRAY);
            open[depth].value = value;
            open[depth].first = used;
            depth++;
        } else if (ok) ok = twi_json_scalar(r, token, value);
    }
    twi_free(region, stack);
    return ok;
}

/* Reads a text; errors say what and where (a path, or ""). */
static tw_json *twi_json_parse(tw_context *tw, const char *what, const char *where, const char *text, size_t length,
                               bool unique) {
    twi_json_document *d;
    twi_json_reader r;
    if (length > 0xFFFFFFF0u || length > (size_t)-1 / 2) {
        twi_fail(tw, TW_E_RANGE, "%s: a text of more than 4 GiB (%s)", what, where);
        return NULL;
    }
    d = twi_json_document_new(tw);
    if (!d) return NULL;
    d->text = twi_copy_text(&tw->region, text, length);
    if (d->text) {
        r = twi_json_reader_of(tw, what, where, text, d->text, length);
        if (twi_json_build(&r, d, unique)) return &d->root;
    }
    tw_json_free(&d->root);
    return NULL;
}

/* Reads a file. */
static tw_json *twi_json_load(tw_context *tw, const char *path, bool unique) {
    twi_bytes bytes;
    tw_json *root;
    if (!twi_read_file(&tw->region, path, &bytes)) return NULL;
    root = twi_json_parse(tw, twi_base_name(path), path, (const char *)bytes.data, bytes.size, unique);
    twi_release_file(&tw->region, &bytes);
    return root;
}

TWDEF tw_json *tw_json_parse(tw_context *tw, const char *text, size_t length) {
    if (!tw) return NULL;
    if (!text) { twi_fail(tw, TW_E_ARGUMENT, "JSON: no text was given (NULL)"); return NULL; }
    return twi_json_parse(tw, "JSON", "", text, length == (size_t)-1 ? strlen(text) : length, false);
}

TWDEF tw_json *tw_json_load(tw_context *tw, const char *path) { return tw ? twi_json_load(tw, path, false) : NULL; }

/* -- looking ------------------------------------------------------------------------------------ */

TWDEF tw_json_kind tw_json_type(const tw_json *value) { return value ? (tw_json_kind)value->kind : TW_JSON_NONE; }
TWDEF int64_t tw_json_count(const tw_json *value) { return twi_json_is_list(value) ? (int64_t)value->length : 0; }

TWDEF const tw_json *tw_json_at(const tw_json *value, int64_t i) {
    return i >= 0 && i < tw_json_count(value) ? value->is.list->items[i] : NULL;
}

TWDEF const tw_json *tw_json_get(const tw_json *object, const char *key) {
    if (tw_json_type(object) != TW_JSON_OBJECT || !key) return NULL;
    return tw_json_at(object, twi_json_find(object, key, strlen(key)));
}

TWDEF const char *tw_json_key(const tw_json *object, int64_t i) {
    if (tw_json_type(object) != TW_JSON_OBJECT || !tw_json_at(object, i)) return NULL;
    return twi_json_member_at(object, (uint32_t)i)->key;
}

TWDEF size_t tw_json_key_length(const tw_json *object, int64_t i) {
    return tw_json_key(object, i) ? twi_json_member_at(object, (uint32_t)i)->key_length : 0;
}

TWDEF double tw_json_number(const tw_json *value, double otherwise) {
    if (tw_json_type(value) != TW_JSON_NUMBER) return otherwise;
    return value->form == TWI_NUMBER_INT ? (double)value->is.integer : value->is.number;
}

TWDEF int64_t tw_json_int(const tw_json *value, int64_t otherwise) {
    if (tw_json_type(value) != TW_JSON_NUMBER) return otherwise;
    if (value->form == TWI_NUMBER_INT) return value->is.integer;
    if (value->is.number >= -9223372036854775808.0 && value->is.number < 9223372036854775808.0 &&
        (double)(int64_t)value->is.number == value->is.number)
        return (int64_t)value->is.number;
    return otherwise;
}

TWDEF bool tw_json_bool(const tw_json *value, bool otherwise) {
    return tw_json_type(value) == TW_JSON_BOOL ? value->is.truth : otherwise;
}
TWDEF const char *tw_json_string(const tw_json *value, const char *otherwise) {
    return tw_json_type(value) == TW_JSON_STRING ? value->is.string : otherwise;
}
TWDEF size_t tw_json_string_length(const tw_json *value) {
    return tw_json_type(value) == TW_JSON_STRING ? value->length : 0;
}

/* -- building and changing ------------------------------------------------------------------------ */

static tw_json *twi_json_new_root(tw_context *tw, tw_json_kind kind) {
    twi_json_document *d = tw ? twi_json_document_new(tw) : NULL;
    if (!d) return NULL;
    if (twi_json_make_list(d, &d->root, kind)) return &d->root;
    tw_json_free(&d->root);
    return NULL;
}

TWDEF tw_json *tw_json_object(tw_context *tw) { return twi_json_new_root(tw, TW_JSON_OBJECT); }
TWDEF tw_json *tw_json_array(tw_context *tw) { return twi_json_new_root(tw, TW_JSON_ARRAY); }

/* The text in the document's own memory; NULL with an error when it is not UTF-8. */
static const char *twi_json_keep(twi_json_document *d, const char *text, size_t length) {
    char *copy;
    size_t i = 0;
    while (i < length) {
        uint32_t code;
        bool valid;
        i += (size_t)twi_utf8_read(text + i, length - i, &code, &valid);
        if (!valid) {
            twi_fail(d->tw, TW_E_FORMAT, "JSON: a text to be written is not valid UTF-8 (at byte %lu of %lu)",
                     (unsigned long)i - 1, (unsigned long)length);
            return NULL;
        }
    }
    if (length > 0xFFFFFFF0u) { twi_fail(d->tw, TW_E_RANGE, "JSON: a string of more than 4 GiB"); return NULL; }
    copy = (char *)twi_json_take(d, length + 1, 1);
    if (!copy) return NULL;
    if (length) memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

/* Makes `to`, whose depth is set, a copy of `from` with all that is below it.  Recursion is at most
   TW_MAX_JSON_DEPTH deep, as no document is deeper. */
static bool twi_json_copy(twi_json_document *d, tw_json *to, const tw_json *from) {
    int64_t i, count = tw_json_count(from);
    to->kind = from->kind;
    to->form = from->form;
    to->is = from->is;
    if (from->kind == TW_JSON_STRING) {
        to->length = from->length;
        to->is.string = twi_json_keep(d, from->is.string, from->length);
        return to->is.string != NULL;
    }
    if (from->kind == TW_JSON_NUMBER && from->form != TWI_NUMBER_INT && !twi_is_finite(from->is.number)) {
        twi_fail(d->tw, TW_E_RANGE, "JSON: NaN and infinity cannot be written");
        return false;
    }
    if (!twi_json_is_list(from)) return true;
    if (to->depth >= TW_MAX_JSON_DEPTH) {
        twi_fail(d->tw, TW_E_RANGE, "JSON: lists would be nested more than %d deep", (int)TW_MAX_JSON_DEPTH);
        return false;
    }
    if (!twi_json_make_list(d, to, (tw_json_kind)from->kind) || (count && !twi_json_reserve(to, (size_t)count)))
        return false;
    for (i = 0; i < count; i++) {
        const char *key = tw_json_key(from, i);
        size_t key_length = tw_json_key_length(from, i);
        tw_json *item;
        if (key && !(key = twi_json_keep(d, key, key_length))) return false;
        item = twi_json_new_item(to, key, key_length);
        if (!item || !twi_json_copy(d, item, tw_json_at(from, i)) || !twi_json_append(to, item)) return false;
    }
    return true;
}

/* Puts a copy of the value into the object under that key, or with key NULL at the end of the array.
   The copy is made first: what fails changes nothing. */
static tw_json *twi_json_put(tw_json *target, const char *key, const tw_json *value) {
    tw_json_kind wanted = key ? TW_JSON_OBJECT : TW_JSON_ARRAY;
    twi_json_document *d;
    tw_json copy, *item;
    int64_t at = TWI_NOWHERE;
    if (!target || !value) return NULL;
    if (target->kind != wanted) {
        d = target->root ? (twi_json_document *)(void *)target :
            twi_json_is_list(target) ? target->is.list->document : NULL;
        if (d && key) twi_fail(d->tw, TW_E_ARGUMENT, "JSON: \"%s\" is to be set in a value that is no object", key);
        else if (d) twi_fail(d->tw, TW_E_ARGUMENT, "JSON: an item is to be added to a value that is no array");
        return NULL;
    }
    d = target->is.list->document;
    memset(&copy, 0, sizeof copy);
    copy.depth = (unsigned char)(target->depth + 1);
    if (!twi_json_copy(d, &copy, value)) return NULL;
    if (key) at = twi_json_find(target, key, strlen(key));
    if (at != TWI_NOWHERE) item = target->is.list->items[at];
    else {
        const char *name = key ? twi_json_keep(d, key, strlen(key)) : NULL;
        item = key && !name ? NULL : twi_json_new_item(target, name, key ? strlen(key) : 0);
        if (!item || !twi_json_append(target, item)) return NULL;
    }
    *item = copy;
    return item;
}

static tw_json twi_json_value(tw_json_kind kind) {
    tw_json value;
    memset(&value, 0, sizeof value);
    value.kind = (unsigned char)kind;
    return value;
}

static bool twi_json_put_number(tw_json *target, const char *key, double number, int form) {
    tw_json value = twi_json_value(TW_JSON_NUMBER);
    value.form = (unsigned char)form;
    value.is.number = number;
    return twi_json_put(target, key, &value) != NULL;
}

static bool twi_json_put_int(tw_json *target, const char *key, int64_t integer) {
    tw_json value = twi_json_value(TW_JSON_NUMBER);
    value.form = TWI_NUMBER_INT;
    value.is.integer = integer;
    return twi_json_put(target, key, &value) != NULL;
}

static bool twi_json_put_bool(tw_json *target, const char *key, bool truth) {
    tw_json value = twi_json_value(TW_JSON_BOOL);
    value.is.truth = truth;
    return twi_json_put(target, key, &value) != NULL;
}

/* A string may hold NULs, so it comes with its length. */
static bool twi_json_put_string(tw_json *target, const char *key, const char *text, size_t length) {
    tw_json value = twi_json_value(TW_JSON_STRING);
    if (!text) return false;
    value.is.string = text;
    value.length = (uint32_t)length;
    if ((size_t)value.length != length) {
        if (twi_json_is_list(target))
            twi_fail(target->is.list->document->tw, TW_E_RANGE, "JSON: a string of more than 4 GiB");
        return false;
    }
    return twi_json_put(target, key, &value) != NULL;
}

static tw_json *twi_json_put_list(tw_json *target, const char *key, tw_json_kind kind) {
    tw_json value = twi_json_value(kind);
    return twi_json_put(target, key, &value);
}

/* In an object a missing key is an error of its own: NULL means an array to twi_json_put. */
static bool twi_json_keyed(tw_json *object, const char *key) {
    if (!key && twi_json_is_list(object))
        twi_fail(object->is.list->document->tw, TW_E_ARGUMENT, "JSON: no key was given (NULL)");
    return key != NULL;
}

TWDEF bool tw_json_set_number(tw_json *object, const char *key, double value) {
    return twi_json_keyed(object, key) && twi_json_put_number(object, key, value, TWI_NUMBER_REAL);
}
TWDEF bool tw_json_set_float(tw_json *object, const char *key, float value) {
    return twi_json_keyed(object, key) && twi_json_put_number(object, key, (double)value, TWI_NUMBER_FLOAT);
}
TWDEF bool tw_json_set_int(tw_json *object, const char *key, int64_t value) {
    return twi_json_keyed(object, key) && twi_json_put_int(object, key, value);
}
TWDEF bool tw_json_set_bool(tw_json *object, const char *key, bool value) {
    return twi_json_keyed(object, key) && twi_json_put_bool(object, key, value);
}
TWDEF bool tw_json_set_string(tw_json *object, const char *key, const char *value) {
    return twi_json_keyed(object, key) && twi_json_put_string(object, key, value, value ? strlen(value) : 0);
}
TWDEF bool tw_json_set_null(tw_json *object, const char *key) {
    return twi_json_keyed(object, key) && twi_json_put_list(object, key, TW_JSON_NULL) != NULL;
}
TWDEF tw_json *tw_json_set_object(tw_json *object, const char *key) {
    return twi_json_keyed(object, key) ? twi_json_put_list(object, key, TW_JSON_OBJECT) : NULL;
}
TWDEF tw_json *tw_json_set_array(tw_json *object, const char *key) {
    return twi_json_keyed(object, key) ? twi_json_put_list(object, key, TW_JSON_ARRAY) : NULL;
}
TWDEF bool tw_json_set_copy(tw_json *object, const char *key, const tw_json *value) {
    return twi_json_keyed(object, key) && twi_json_put(object, key, value) != NULL;
}
TWDEF bool tw_json_push_number(tw_json *array, double value) {
    return twi_json_put_number(array, NULL, value, TWI_NUMBER_REAL);
}
TWDEF bool tw_json_push_int(tw_json *array, int64_t value) { return twi_json_put_int(array, NULL, value); }
TWDEF bool tw_json_push_bool(tw_json *array, bool value) { return twi_json_put_bool(array, NULL, value); }
TWDEF bool tw_json_push_string(tw_json *array, const char *value) {
    return twi_json_put_string(array, NULL, value, value ? strlen(value) : 0);
}
TWDEF tw_json *tw_json_push_object(tw_json *array) { return twi_json_put_list(array, NULL, TW_JSON_OBJECT); }
TWDEF tw_json *tw_json_push_array(tw_json *array) { return twi_json_put_list(array, NULL, TW_JSON_ARRAY); }
TWDEF bool tw_json_push_copy(tw_json *array, const tw_json *value) { return twi_json_put(array, NULL, value) != NULL; }

TWDEF bool tw_json_remove(tw_json *object, const char *key) {
    int64_t at;
    twi_json_list *list;
    if (tw_json_type(object) != TW_JSON_OBJECT || !key) return false;
    at = twi_json_find(object, key, strlen(key));
    if (at == TWI_NOWHERE) return false;
    list = object->is.list;
    memmove(list->items + at, list->items + at + 1, (size_t)(object->length - (uint32_t)at - 1) * sizeof *list->items);
    object->length--;
    return twi_json_reserve(object, list->capacity);
}

/* -- writing -------------------------------------------------------------------------------------- */

/* a growing text, or what fits in out */
typedef struct twi_json_sink { twi_text *text; char *out; size_t room, length; } twi_json_sink;

static void twi_json_emit(twi_json_sink *sink, const char *bytes, size_t n) {
    if (sink->text) twi_text_bytes(sink->text, bytes, n);
    else if (sink->length + 1 < sink->room) {
        size_t fits = sink->room - 1 - sink->length;
        memcpy(sink->out + sink->length, bytes, n < fits ? n : fits);
    }
    sink->length += n;
}

static void twi_json_emit_string(twi_json_sink *sink, const char *text, size_t n) {
    static const char hex[] = "0123456789abcdef";
    size_t i, from = 0;
    twi_json_emit(sink, "\"", 1);
    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        char escape[6] = { '\\', 'u', '0', '0', 0, 0 };
        size_t length = 2;
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        switch (c) {
        case '"':
        case '\\': escape[1] = (char)c; break;
        case '\b': escape[1] = 'b'; break;
        case '\f': escape[1] = 'f'; break;
        case '\n': escape[1] = 'n'; break;
        case '\r': escape[1] = 'r'; break;
        case '\t': escape[1] = 't'; break;
        default:   escape[4] = hex[c >> 4]; escape[5] = hex[c & 15]; length = 6; break;
        }
        twi_json_emit(sink, text + from, i - from);
        twi_json_emit(sink, escape, length);
        from = i + 1;
    }
    twi_json_emit(sink, text + from, n - from);
    twi_json_emit(sink, "\"", 1);
}

static void twi_json_emit_number(twi_json_sink *sink, const tw_json *value) {
    char text[32], digits[20];
    uint64_t mantissa;
    int exponent, point, count;
    if (value->form == TWI_NUMBER_INT) twi_json_emit(sink, text, twi_format_int(value->is.integer, text));
    else if (value->form == TWI_NUMBER_FLOAT)
        twi_json_emit(sink, text, twi_format_float((float)value->is.number, text));
    else if (value->form == TWI_NUMBER_REAL) twi_json_emit(sink, text, twi_format_number(value->is.number, text));
    else {                                                    /* a whole number stays one: no point, no exponent */
        twi_double_parts(value->is.number, &mantissa, &exponent);
        count = twi_shortest_digits(mantissa, exponent, 53, -1074, digits, &point);
        if (twi_is_negative(value->is.number)) twi_json_emit(sink, "-", 1);
        twi_json_emit(sink, digits, (size_t)count);
        for (; count < point; count++) twi_json_emit(sink, "0", 1);
    }
}

static void twi_json_emit_line(twi_json_sink *sink, int blanks) {
    twi_json_emit(sink, "\n", 1);
    for (; blanks > 0; blanks--) twi_json_emit(sink, " ", 1);
}

static void twi_json_emit_value(twi_json_sink *sink, const tw_json *value, int indent, int depth) {
    bool object = tw_json_type(value) == TW_JSON_OBJECT;
    int64_t i, count = tw_json_count(value);
    switch (tw_json_type(value)) {
    case TW_JSON_NONE:
    case TW_JSON_NULL:   twi_json_emit(sink, "null", 4); return;
    case TW_JSON_BOOL:   twi_json_emit(sink, value->is.truth ? "true" : "false", value->is.truth ? 4 : 5); return;
    case TW_JSON_NUMBER: twi_json_emit_number(sink, value); return;
    case TW_JSON_STRING: twi_json_emit_string(sink, value->is.string, value->length); return;
    case TW_JSON_ARRAY:
    case TW_JSON_OBJECT: break;
    }
    twi_json_emit(sink, object ? "{" : "[", 1);
    for (i = 0; i < count; i++) {
        if (i > 0) twi_json_emit(sink, ",", 1);
        if (indent > 0) twi_json_emit_line(sink, indent * (depth + 1));
        if (object) {
            twi_json_emit_string(sink, tw_json_key(value, i), tw_json_key_length(value, i));
            twi_json_emit(sink, ": ", indent > 0 ? 2 : 1);
        }
        twi_json_emit_value(sink, tw_json_at(value, i), indent, depth + 1);
    }
    if (count && indent > 0) twi_json_emit_line(sink, indent * depth);
    twi_json_emit(sink, object ? "}" : "]", 1);
}

/* Appends the value to a text; false when there was no memory. */
static bool twi_json_text(const tw_json *value, int indent, twi_text *out) {
    twi_json_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.text = out;
    twi_json_emit_value(&sink, value, indent < 64 ? indent : 64, 0);
    return !out->failed;
}

TWDEF size_t tw_json_write(const tw_json *value, int indent, char *out, size_t room) {
    twi_json_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.out = out;
    sink.room = room;
    twi_json_emit_value(&sink, value, indent < 64 ? indent : 64, 0);
    if (room) out[sink.length < room ? sink.length : room - 1] = 0;
    return sink.length;
}

TWDEF bool tw_json_save(tw_context *tw, const tw_json *value, const char *path, int indent) {
    twi_text text;
    bool ok;
    if (!tw || !value) return false;
    text = twi_text_new(&tw->region);
    twi_json_text(value, indent, &text);
    twi_text_char(&text, '\n');
    ok = !text.failed && twi_save_file(tw, path, twi_text_string(&text), text.length);
    twi_text_free(&text);
    return ok;
}
/* ==== [tw:03] tensors: implementation ======================================================== */

struct tw_tensor {
    tw_context *tw;
    twi_region *region;                /* a parameter: who owns its numbers and its gradient */
    const char *name;                  /* a parameter's, or the operation's that made it */
    void       *data;
    float      *grad;                  /* of a tensor that is no view: its gradient, laid out like data; NULL: none yet */
    tw_tensor  *base;                  /* a view: the tensor whose numbers it shows; else NULL */
    int64_t     offset;                /* a view: where it starts in the base, in elements */
    int64_t     shape[TW_MAX_DIMS];
    int64_t     stride[TW_MAX_DIMS];   /* in elements */
    int         rank;
    tw_dtype    dtype;
    bool        requires_grad;
    bool        is_parameter;
    bool        is_buffer;             /* a parameter that is saved but never trained */
    bool        keep_grad;             /* the gradient is for the user: it survives the backward pass */
    bool        borrowed;              /* a parameter whose numbers lie in a file or in memory of the caller */
    bool        no_decay;              /* a bias or the weight of a norm: weight decay leaves it alone */
    bool        grad_stale;            /* the gradient's room is there, what stands in it counts as zero */
    bool        recycle;               /* nobody looks at the numbers after the backward pass has used them */
};

static const struct { const char *name; unsigned char bytes; } twi_dtypes[TW_DTYPE_COUNT] = {
    { "F32", 4 }, { "F16", 2 }, { "BF16", 2 }, { "F64", 8 }, { "I64", 8 }, { "I32", 4 }, { "I16", 2 }, { "I8", 1 },
    { "U8", 1 }, { "BOOL", 1 }, { "U16", 2 }, { "U32", 4 }, { "U64", 8 }, { "F8_E4M3", 1 }, { "F8_E5M2", 1 }
};
TWDEF size_t      tw_dtype_size(tw_dtype dtype) { return (unsigned)dtype < TW_DTYPE_COUNT ? twi_dtypes[dtype].bytes : 0; }
TWDEF const char *tw_dtype_name(tw_dtype dtype) { return (unsigned)dtype < TW_DTYPE_COUNT ? twi_dtypes[dtype].name : "?"; }

static tw_shape twi_shape(int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    tw_shape s;
    memset(&s, 0, sizeof s);
    s.rank = rank; s.dim[0] = a; s.dim[1] = b; s.dim[2] = c; s.dim[3] = d;
    return s;
}
TWDEF tw_shape tw_shape0(void) { return twi_shape(0, 0, 0, 0, 0); }
TWDEF tw_shape tw_shape1(int64_t a) { return twi_shape(1, a, 0, 0, 0); }
TWDEF tw_shape tw_shape2(int64_t a, int64_t b) { return twi_shape(2, a, b, 0, 0); }
TWDEF tw_shape tw_shape3(int64_t a, int64_t b, int64_t c) { return twi_shape(3, a, b, c, 0); }
TWDEF tw_shape tw_shape4(int64_t a, int64_t b, int64_t c, int64_t d) { return twi_shape(4, a, b, c, d); }

/* "[2,7,768]", for error sentences */
typedef struct twi_shape_text { char s[TW_MAX_DIMS * 21 + 3]; } twi_shape_text;
static twi_shape_text twi_print_shape(int rank, const int64_t *shape) {
    twi_shape_text t;
    size_t n = 0;
    int i;
    t.s[n++] = '[';
    for (i = 0; i < rank; i++) n += (size_t)snprintf(t.s + n, sizeof t.s - n, i ? ",%lld" : "%lld", (long long)shape[i]);
    t.s[n++] = ']';
    t.s[n] = 0;
    return t;
}
#define TWI_SHAPE(t) (twi_print_shape((t)->rank, (t)->shape).s)

/* The number of elements, if the shape is one and its bytes can be counted; -1 otherwise. */
static int64_t twi_shape_count(int rank, const int64_t *shape) {
    int64_t count = 1;
    int i;
    if (rank < 0 || rank > TW_MAX_DIMS) return -1;
    for (i = 0; i < rank; i++) {
        if (shape[i] < 0) return -1;
        if (shape[i] != 0 && count > INT64_MAX / 16 / shape[i]) return -1;
        count *= shape[i];
    }
    return (uint64_t)count * 8 > (uint64_t)((size_t)-1) / 2 ? -1 : count;
}

static void twi_row_major(tw_tensor *t) {
    int64_t step = 1;
    int i;
    for (i = t->rank - 1; i >= 0; i--) { t->stride[i] = step; step *= t->shape[i]; }
}

/* A tensor of the step without numbers yet. */
static tw_tensor *twi_bare_tensor(tw_context *tw, tw_dtype dtype, int rank, const int64_t *shape) {
    tw_tensor *t;
    if (twi_shape_count(rank, shape) < 0) {
        twi_fail(tw, TW_E_SHAPE, "tensor: %s is not a shape", rank >= 0 && rank <= TW_MAX_DIMS ? twi_print_shape(rank, shape).s : "more than 8 dimensions");
        return NULL;
    }
    t = (tw_tensor *)twi_step_record(tw, sizeof *t);
    if (!t) return NULL;
    t->tw = tw;
    t->name = "";
    t->dtype = dtype;
    t->rank = rank;
    if (rank) memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    twi_row_major(t);
    return t;
}

/* A tensor of the step with room for its numbers, not cleared. */
static tw_tensor *twi_new(tw_context *tw, tw_dtype dtype, int rank, const int64_t *shape) {
    tw_tensor *t = twi_bare_tensor(tw, dtype, rank, shape);
    if (!t) return NULL;
    t->data = twi_step_alloc(tw, (size_t)tw_count(t), tw_dtype_size(dtype));
    return t->data ? t : NULL;
}

static tw_tensor *twi_new_like(const tw_tensor *t) { return twi_new(t->tw, TW_F32, t->rank, t->shape); }

/* Is there anything to compute?  Not while planning, and not after an error. */
static bool twi_computes(const tw_context *tw) { return !tw->planning && tw->code == TW_OK; }

TWDEF tw_shape tw_shape_of(const tw_tensor *t) {
    tw_shape s = tw_shape0();
    if (t) { s.rank = t->rank; memcpy(s.dim, t->shape, sizeof s.dim); }
    return s;
}
TWDEF int         tw_rank(const tw_tensor *t) { return t ? t->rank : 0; }
TWDEF int64_t     tw_dim(const tw_tensor *t, int axis) {
    if (!t) return 0;
    if (axis < 0) axis += t->rank;
    return axis >= 0 && axis < t->rank ? t->shape[axis] : 0;
}
TWDEF int64_t     tw_count(const tw_tensor *t) {
    int64_t count = 1;
    int i;
    if (!t) return 0;
    for (i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}
TWDEF tw_dtype    tw_dtype_of(const tw_tensor *t) { return t ? t->dtype : TW_F32; }
TWDEF const char *tw_name_of(const tw_tensor *t) { return t && t->is_parameter ? t->name : ""; }
TWDEF bool tw_is_contiguous(const tw_tensor *t) {
    int64_t step = 1;
    int i;
    if (!t) return false;
    for (i = t->rank - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != step) return false;
        step *= t->shape[i];
    }
    return true;
}
TWDEF float   *tw_data(tw_tensor *t) { return t && t->data && t->dtype == TW_F32 && tw_is_contiguous(t) && !t->tw->planning ? (float *)t->data : NULL; }
TWDEF int32_t *tw_data_i32(tw_tensor *t) { return t && t->dtype == TW_I32 && tw_is_contiguous(t) && !t->tw->planning ? (int32_t *)t->data : NULL; }

/* Walks over all positions of `rank` axes but the last, in row-major order, for up to three operands
   that are read by strides: for (twi_walk_start(..); w.more; twi_walk_next(&w)) rows at w.at[0..2]. */
typedef struct twi_walk { int rank; int64_t shape[TW_MAX_DIMS], index[TW_MAX_DIMS], stride[3][TW_MAX_DIMS], at[3]; bool more; } twi_walk;

static void twi_walk_start(twi_walk *w, int rank, const int64_t *shape, const int64_t *s0, const int64_t *s1, const int64_t *s2) {
    int i;
    memset(w, 0, sizeof *w);
    w->rank = rank;
    w->more = true;
    for (i = 0; i < rank; i++) {
        w->shape[i] = shape[i];
        w->stride[0][i] = s0[i];
        w->stride[1][i] = s1 ? s1[i] : 0;
        w->stride[2][i] = s2 ? s2[i] : 0;
        if (shape[i] == 0) w->more = false;
    }
}

static void twi_walk_next(twi_walk *w) {
    int axis, k;
    for (axis = w->rank - 1; axis >= 0; axis--) {
        for (k = 0; k < 3; k++) w->at[k] += w->stride[k][axis];
        if (++w->index[axis] < w->shape[axis]) return;
        for (k = 0; k < 3; k++) w->at[k] -= w->stride[k][axis] * w->shape[axis];
        w->index[axis] = 0;
    }
    w->more = false;
}

/* Copies f32 numbers from one set of strides to another. */
static void twi_copy_strided(const tw_context *tw, int rank, const int64_t *shape, float *to, const int64_t *to_stride, const float *from, const int64_t *from_stride) {
    twi_walk w;
    int64_t n = rank ? shape[rank - 1] : 1, i, ts = rank ? to_stride[rank - 1] : 1, fs = rank ? from_stride[rank - 1] : 1;
    (void)tw;
    twi_walk_start(&w, rank ? rank - 1 : 0, shape, to_stride, from_stride, NULL);
    if (n == 0) return;
    for (; w.more; twi_walk_next(&w)) {
        float *t = to + w.at[0];
        const float *f = from + w.at[1];
        if (ts == 1 && fs == 1) memcpy(t, f, (size_t)n * sizeof *t);
        else for (i = 0; i < n; i++) t[i * ts] = f[i * fs];
    }
}

TWDEF int64_t tw_read(const tw_tensor *t, float *out, int64_t room) {
    int64_t count = tw_count(t), row[TW_MAX_DIMS], step = 1, i;
    int axis;
    if (!t || t->tw->planning || !out || room < count) return count;
    for (axis = t->rank - 1; axis >= 0; axis--) { row[axis] = step; step *= t->shape[axis]; }
    if (t->dtype == TW_F32) twi_copy_strided(t->tw, t->rank, t->shape, out, row, (const float *)t->data, t->stride);
    else if (t->dtype == TW_F16 || t->dtype == TW_BF16) twb_convert(&t->tw->cpu, (ptrdiff_t)count, t->data, (twb_type)t->dtype, out, TWB_F32);
    else if (t->dtype == TW_I32) for (i = 0; i < count; i++) out[i] = (float)((const int32_t *)t->data)[i];
    return count;
}

TWDEF float tw_item(const tw_tensor *t) {
    float x = 0;
    if (!t || tw_count(t) != 1 || t->tw->planning) return twb_bits_float(0x7FC00000u);
    tw_read(t, &x, 1);
    return x;
}

TWDEF tw_tensor *tw_tensor_from(tw_context *tw, tw_shape shape, const float *data) {
    tw_tensor *t = twi_new(tw, TW_F32, shape.rank, shape.dim);
    if (!t || !twi_computes(tw)) return t;
    if (data) memcpy(t->data, data, (size_t)tw_count(t) * sizeof(float));
    else twb_fill(&tw->cpu, (ptrdiff_t)tw_count(t), 0, (float *)t->data);
    return t;
}

TWDEF tw_tensor *tw_ids(tw_context *tw, tw_shape shape, const int32_t *ids) {
    tw_tensor *t = twi_new(tw, TW_I32, shape.rank, shape.dim);
    if (!t || !twi_computes(tw)) return t;
    if (ids) memcpy(t->data, ids, (size_t)tw_count(t) * sizeof *ids);
    else memset(t->data, 0, (size_t)tw_count(t) * sizeof *ids);
    return t;
}

TWDEF void tw_fill(tw_tensor *t, float value) {
    if (tw_data(t)) twb_fill(&t->tw->cpu, (ptrdiff_t)tw_count(t), value, (float *)t->data);
}
TWDEF void tw_fill_normal(tw_tensor *t, float mean, float deviation) {
    if (tw_data(t)) twb_random_normal(&t->tw->cpu, (ptrdiff_t)tw_count(t), (float *)t->data, mean, deviation, twi_next_stream(t->tw));
}
TWDEF void tw_fill_uniform(tw_tensor *t, float low, float high) {
    if (tw_data(t)) twb_random_uniform(&t->tw->cpu, (ptrdiff_t)tw_count(t), (float *)t->data, low, high, twi_next_stream(t->tw));
}
TWDEF tw_tensor *tw_full(tw_context *tw, tw_shape shape, float value) {
    tw_tensor *t = twi_new(tw, TW_F32, shape.rank, shape.dim);
    tw_fill(t, value);
    return t;
}
TWDEF tw_tensor *tw_randn(tw_context *tw, tw_shape shape, float mean, float deviation) {
    tw_tensor *t = twi_new(tw, TW_F32, shape.rank, shape.dim);
    tw_fill_normal(t, mean, deviation);
    return t;
}

/* A parameter in a region: its numbers come later (a file, or initial values). */
static tw_tensor *twi_new_parameter(twi_region *region, const char *name, tw_shape shape) {
    tw_tensor *t;
    if (twi_shape_count(shape.rank, shape.dim) < 0) {
        twi_fail(region->tw, TW_E_SHAPE, "%s: %s is not a shape", name, twi_print_shape(shape.rank >= 0 && shape.rank <= TW_MAX_DIMS ? shape.rank : 0, shape.dim).s);
        return NULL;
    }
    t = (tw_tensor *)twi_alloc(region, 1, sizeof *t);
    if (!t) return NULL;
    t->tw = region->tw;
    t->region = region;
    t->rank = shape.rank;
    memcpy(t->shape, shape.dim, sizeof t->shape);
    twi_row_major(t);
    t->requires_grad = true;
    t->is_parameter = true;
    t->name = twi_copy_text(region, name, strlen(name));
    return t->name ? t : NULL;
}

/* Room for a parameter's numbers. */
static bool twi_allocate_parameter(twi_region *region, tw_tensor *t) {
    size_t count = (size_t)tw_count(t);
    if (region->tw->planning) { t->data = twi_align(region->tw->nothing); return true; }
    t->data = twi_alloc_raw(region, count ? count : 1, tw_dtype_size(t->dtype));
    return t->data != NULL;
}

TWDEF tw_tensor *tw_parameter(tw_context *tw, const char *name, tw_shape shape) {
    tw_tensor *t = twi_new_parameter(&tw->region, name ? name : "", shape);
    if (!t || !twi_allocate_parameter(&tw->region, t)) return NULL;
    tw_fill(t, 0);
    return t;
}

/* -- views ---------------------------------------------------------------------------------------- */

/* The tensor that owns the numbers. */
static tw_tensor *twi_base(tw_tensor *t) { return t->base ? t->base : t; }

/* A view of t: the same numbers from `offset` on, by the given strides.  Its gradient is the same view
   of the base's gradient, so views need no backward of their own. */
static tw_tensor *twi_make_view(tw_tensor *t, int rank, const int64_t *shape, const int64_t *stride, int64_t offset) {
    tw_tensor *v = twi_bare_tensor(t->tw, t->dtype, rank, shape);
    if (!v) return NULL;
    if (rank) memcpy(v->stride, stride, (size_t)rank * sizeof *stride);
    v->base = twi_base(t);
    v->offset = t->offset + offset;
    v->data = t->tw->planning ? t->data : (char *)t->data + offset * (int64_t)tw_dtype_size(t->dtype);
    v->requires_grad = t->requires_grad;
    v->name = t->name;
    return v;
}

static bool twi_axis(const tw_tensor *t, int *axis, const char *what) {
    int a = *axis < 0 ? *axis + t->rank : *axis;
    if (a < 0 || a >= t->rank) {
        twi_fail(t->tw, TW_E_SHAPE, "%s: a tensor of shape %s has no axis %d", what, TWI_SHAPE(t), *axis);
        return false;
    }
    *axis = a;
    return true;
}

TWDEF tw_tensor *tw_permute(tw_tensor *t, const int *axes) {
    int64_t shape[TW_MAX_DIMS], stride[TW_MAX_DIMS];
    int i;
    unsigned seen = 0;
    if (!t || !axes) return NULL;
    for (i = 0; i < t->rank; i++) {
        int a = axes[i];
        if (!twi_axis(t, &a, "permute")) return NULL;
        if (seen >> a & 1u) { twi_fail(t->tw, TW_E_SHAPE, "permute: axis %d stands twice for shape %s", a, TWI_SHAPE(t)); return NULL; }
        seen |= 1u << a;
        shape[i] = t->shape[a];
        stride[i] = t->stride[a];
    }
    return twi_make_view(t, t->rank, shape, stride, 0);
}

TWDEF tw_tensor *tw_transpose(tw_tensor *t, int axis_a, int axis_b) {
    int axes[TW_MAX_DIMS], i;
    if (!t || !twi_axis(t, &axis_a, "transpose") || !twi_axis(t, &axis_b, "transpose")) return NULL;
    for (i = 0; i < t->rank; i++) axes[i] = i;
    axes[axis_a] = axis_b;
    axes[axis_b] = axis_a;
    return tw_permute(t, axes);
}

TWDEF tw_tensor *tw_slice(tw_tensor *t, int axis, int64_t start, int64_t length) {
    int64_t shape[TW_MAX_DIMS];
    if (!t || !twi_axis(t, &axis, "slice")) return NULL;
    if (start < 0 || length < 0 || start > t->shape[axis] || length > t->shape[axis] - start) {
        twi_fail(t->tw, TW_E_RANGE, "slice: rows %lld to %lld of axis %d are not in a tensor of shape %s",
                 (long long)start, (long long)start + (long long)length, axis, TWI_SHAPE(t));
        return NULL;
    }
    memcpy(shape, t->shape, sizeof shape);
    shape[axis] = length;
    return twi_make_view(t, t->rank, shape, t->stride, start * t->stride[axis]);
}

/* Can the same numbers be read under the new shape by strides alone?  Walks both shapes from the
   front and matches groups of axes with equal products; inside a group the old axes must lie densely. */
static bool twi_view_strides(const tw_tensor *t, int rank, const int64_t *shape, int64_t *stride) {
    int from = 0, to = 0, i;
    if (tw_count(t) == 0 || tw_is_contiguous(t)) {
        int64_t step = 1;
        for (i = rank - 1; i >= 0; i--) { stride[i] = step; step *= shape[i]; }
        return true;
    }
    while (from < t->rank || to < rank) {
        int from_end = from, to_end = to;
        int64_t a = 1, b = 1, step;
        if (from_end < t->rank) a *= t->shape[from_end++];
        if (to_end < rank) b *= shape[to_end++];
        while (a != b) {
            if (a < b) { if (from_end >= t->rank) return false; a *= t->shape[from_end++]; }
            else { if (to_end >= rank) return false; b *= shape[to_end++]; }
        }
        for (i = from_end - 1; i > from; i--)                              /* dense inside the group? */
            if (t->shape[i - 1] != 1 && t->shape[i] != 1 && t->stride[i - 1] != t->shape[i] * t->stride[i]) return false;
        step = from_end > from ? t->stride[from_end - 1] : 1;
        for (i = from_end - 1; i >= from; i--) if (t->shape[i] != 1) { step = t->stride[i]; break; }
        for (i = to_end - 1; i >= to; i--) { stride[i] = step; step *= shape[i]; }
        from = from_end;
        to = to_end;
    }
    return true;
}

static tw_tensor *twi_contiguous(tw_tensor *t);

TWDEF tw_tensor *tw_reshape(tw_tensor *t, tw_shape shape) {
    int64_t stride[TW_MAX_DIMS], known = 1, count = tw_count(t);
    int i, open = -1;
    if (!t) return NULL;
    for (i = 0; i < shape.rank && i < TW_MAX_DIMS; i++) {
        if (shape.dim[i] == -1 && open < 0) open = i;
        else if (shape.dim[i] > 0 && known <= INT64_MAX / 16 / shape.dim[i]) known *= shape.dim[i];
        else if (shape.dim[i] == 0) known = 0;
        else known = -1;
        if (known < 0) break;
    }
    if (open >= 0 && known > 0 && count % known == 0) { shape.dim[open] = count / known; known = count; }
    if (shape.rank < 0 || shape.rank > TW_MAX_DIMS || known != count) {
        twi_fail(t->tw, TW_E_SHAPE, "reshape: %lld numbers of shape %s do not make a %s", (long long)count, TWI_SHAPE(t),
                 twi_print_shape(shape.rank >= 0 && shape.rank <= TW_MAX_DIMS ? shape.rank : 0, shape.dim).s);
        return NULL;
    }
    if (!twi_view_strides(t, shape.rank, shape.dim, stride)) {
        t = twi_contiguous(t);
        if (!t || !twi_view_strides(t, shape.rank, shape.dim, stride)) return NULL;
    }
    return twi_make_view(t, shape.rank, shape.dim, stride, 0);
}

/* ==== [tw:04] operations and their gradients: implementation ================================= */

/* -- the tape --------------------------------------------------------------------------------------
   One row an operation: its name and its backward function.  What an operation is made of stands
   below in one place: forward, then backward. */
#define TWI_OPERATIONS(X)                                                       \
    X(UNARY, unary) X(AFFINE, affine) X(BINARY, binary) X(WHERE, where)         \
    X(SUM_AXIS, sum_axis) X(MAX_AXIS, max_axis) X(LOGSUMEXP, logsumexp)         \
    X(MATMUL, matmul) X(LINEAR, linear) X(SOFTMAX, softmax)                     \
    X(LOG_SOFTMAX, log_softmax) X(LAYER_NORM, layer_norm) X(RMS_NORM, rms_norm) \
    X(EMBEDDING, embedding) X(DROPOUT, dropout) X(ATTENTION, attention)         \
    X(ROPE, rope) X(COPY, copy) X(EXPAND, expand) X(CONCAT, concat)             \
    X(SELECT, select) X(CROSS_ENTROPY, cross_entropy)                           \
    X(LINEAR_CROSS_ENTROPY, linear_cross_entropy) X(BCE, bce)                   \
    X(CHECKPOINT, checkpoint) X(CONV2D, conv2d) X(MAX_POOL2D, max_pool2d)       \
    X(AVG_POOL2D, avg_pool2d) X(BATCH_NORM, batch_norm)

typedef enum twi_operation {
#define TWI_X(id, name) TWI_OP_##id,
    TWI_OPERATIONS(TWI_X)
#undef TWI_X
    TWI_OP_COUNT
} twi_operation;

typedef struct twi_node {
    struct twi_node *previous;         /* the operation before this one */
    tw_tensor       *output;
    tw_tensor      **input;            /* NULL where an operand was left out */
    void            *saved;            /* what the operation kept for its backward pass */
    int              inputs;
    twi_operation           op;
} twi_node;

/* dy: the gradient of the node's output, row-major, all there.  Adds to the gradients of its inputs. */
typedef void (*twi_backward_fn)(twi_node *node, float *dy);
#define TWI_X(id, name) static void twi_##name##_backward(twi_node *node, float *dy);
TWI_OPERATIONS(TWI_X)
#undef TWI_X

static const struct { const char *name; twi_backward_fn backward; } twi_operations[TWI_OP_COUNT] = {
#define TWI_X(id, name) { #name, twi_##name##_backward },
    TWI_OPERATIONS(TWI_X)
#undef TWI_X
};
TWDEF int         tw_operation_count(void) { return TWI_OP_COUNT; }
TWDEF const char *tw_operation_name(int index) { return index >= 0 && index < TWI_OP_COUNT ? twi_operations[index].name : ""; }

/* What stands on the tape, newest first: for looking at, and for tests. */
TWDEF const char *tw_tape_name(const tw_context *tw, int64_t index) {
    const twi_node *node = tw ? tw->tape : NULL;
    while (node && index-- > 0) node = node->previous;
    return node ? twi_operations[node->op].name : NULL;
}

/* Will somebody want a gradient through one of these? */
static bool twi_wants_grad(const tw_context *tw, tw_tensor *const *input, int inputs) {
    int i;
    if (tw->no_grad) return false;
    for (i = 0; i < inputs; i++) if (input[i] && input[i]->requires_grad) return true;
    return false;
}

/* Puts the operation on the tape; returns the output, NULL if that failed. */
static tw_tensor *twi_note_always(twi_operation op, tw_tensor *output, tw_tensor *const *input, int inputs, const void *saved, size_t saved_bytes) {
    tw_context *tw = output->tw;
    twi_node *node;
    output->name = twi_operations[op].name;
    node = (twi_node *)twi_step_record(tw, sizeof *node);
    if (!node) return NULL;
    node->input = (tw_tensor **)twi_step_record(tw, (size_t)inputs * sizeof *node->input);
    node->saved = saved_bytes ? twi_step_record(tw, saved_bytes) : NULL;
    if (!node->input || (saved_bytes && !node->saved)) return NULL;
    memcpy(node->input, input, (size_t)inputs * sizeof *input);
    if (saved_bytes) memcpy(node->saved, saved, saved_bytes);
    node->inputs = inputs;
    node->op = op;
    node->output = output;
    node->previous = tw->tape;
    tw->tape = node;
    output->requires_grad = true;
    output->recycle = tw->recycling;
    return output;
}

/* The same if a gradient may come back through it. */
static tw_tensor *twi_note(twi_operation op, tw_tensor *output, tw_tensor *const *input, int inputs, const void *saved, size_t saved_bytes) {
    if (!output) return NULL;
    output->name = twi_operations[op].name;
    return twi_wants_grad(output->tw, input, inputs) ? twi_note_always(op, output, input, inputs, saved, saved_bytes) : output;
}

/* -- where a gradient goes ---------------------------------------------------------------------------
   A slot is a row-major place for the gradient of one operand.  The first one to write a whole gradient
   overwrites (accumulate is false), the next ones add.  A view's gradient is the same view of its base's
   gradient: a dense one is written in place, any other through a temporary that closing the slot adds on. */
typedef struct twi_slot { tw_tensor *of; float *data; bool accumulate, temporary; } twi_slot;

/* Makes sure that the gradient of t (no view) has room; *fresh says that its numbers count as zero. */
static bool twi_grad_room(tw_tensor *t, bool *fresh) {
    tw_context *tw = t->tw;
    if (!t->grad) {
        size_t count = (size_t)tw_count(t);
        if (t->is_parameter && !tw->planning) t->grad = (float *)twi_alloc_raw(t->region, count ? count : 1, sizeof(float));
        else if (t->is_parameter) { t->grad = (float *)(void *)twi_align(tw->nothing); tw->planned_gradients += twi_round_up(count * sizeof(float)); }
        else t->grad = (float *)twi_step_alloc(tw, count, sizeof(float));
        t->grad_stale = true;
    }
    *fresh = t->grad_stale;
    return t->grad != NULL;
}

/* The whole gradient of t's base as numbers that can be added to, zeros at first. */
static float *twi_grad_sum(tw_tensor *t) {
    tw_tensor *base = twi_base(t);
    bool fresh;
    if (!base->requires_grad || !twi_grad_room(base, &fresh)) return NULL;
    if (fresh && twi_computes(t->tw)) twb_fill(&t->tw->cpu, (ptrdiff_t)tw_count(base), 0, base->grad);
    base->grad_stale = false;
    return base->grad;
}

static twi_slot twi_open_slot(tw_tensor *t) {
    twi_slot slot;
    memset(&slot, 0, sizeof slot);
    if (!t || !t->requires_grad || !twi_base(t)->requires_grad) return slot;
    slot.of = t;
    if (tw_is_contiguous(t) && tw_count(t) == tw_count(twi_base(t))) {
        bool fresh;
        if (!twi_grad_room(twi_base(t), &fresh)) return slot;
        slot.data = twi_base(t)->grad;
        slot.accumulate = !fresh;
        twi_base(t)->grad_stale = false;
    } else if (tw_is_contiguous(t)) {
        float *sum = twi_grad_sum(t);
        slot.data = sum && !t->tw->planning ? sum + t->offset : sum;
        slot.accumulate = true;
    } else {
        slot.data = (float *)twi_step_alloc(t->tw, (size_t)tw_count(t), sizeof(float));
        slot.temporary = true;
    }
    return slot;
}

/* to (read by strides) += from (row-major) */
static void twi_add_strided(int rank, const int64_t *shape, float *to, const int64_t *to_stride, const float *from) {
    twi_walk w;
    int64_t n = rank ? shape[rank - 1] : 1, i, step = rank ? to_stride[rank - 1] : 1;
    if (n == 0) return;
    for (twi_walk_start(&w, rank ? rank - 1 : 0, shape, to_stride, NULL, NULL); w.more; twi_walk_next(&w), from += n)
        for (i = 0; i < n; i++) to[w.at[0] + i * step] += from[i];
}

static void twi_close_slot(twi_slot *slot) {
    tw_tensor *t = slot->of;
    if (!slot->temporary || !slot->data) return;
    {
        float *sum = twi_grad_sum(t);
        if (sum && twi_computes(t->tw)) twi_add_strided(t->rank, t->shape, sum + t->offset, t->stride, slot->data);
    }
    twi_step_free(t->tw, slot->data, (size_t)tw_count(t), sizeof(float));
    slot->data = NULL;
}

/* slot += dy, or slot = dy when it is the first */
static void twi_slot_add(const twi_slot *slot, const float *dy) {
    if (!slot->data || !twi_computes(slot->of->tw)) return;
    twb_axpby(&slot->of->tw->cpu, (ptrdiff_t)tw_count(slot->of), 1, dy, slot->accumulate ? 1.0f : 0.0f, slot->data);
}

/* The gradient of operand t is dy itself, of the same shape.  Where t has none yet and dy is of no further
   use, the room itself changes hands. */
static void twi_pass_on(twi_node *node, tw_tensor *t, float *dy) {
    twi_slot slot;
    tw_tensor *base;
    if (!t || !t->requires_grad) return;
    base = twi_base(t);
    if (node->output->grad == dy && !node->output->keep_grad && !base->grad && base->requires_grad && !base->is_parameter &&
        tw_is_contiguous(t) && tw_count(t) == tw_count(base) && tw_count(t) == tw_count(node->output)) {
        base->grad = dy;
        base->grad_stale = false;
        node->output->grad = NULL;
        return;
    }
    slot = twi_open_slot(t);
    twi_slot_add(&slot, dy);
    twi_close_slot(&slot);
}

/* One step of the walk: the output's gradient goes on to the inputs, and its room is free again. */
static void twi_run_backward(twi_node *node) {
    tw_tensor *output = node->output;
    tw_context *tw = output->tw;
    if (!output->grad || output->grad_stale) return;       /* the loss does not depend on it */
    twi_operations[node->op].backward(node, output->grad);
    if (output->keep_grad) return;
    twi_step_free(tw, output->grad, (size_t)tw_count(output), sizeof(float));
    output->grad = NULL;
    if (!output->recycle) return;
    twi_step_free(tw, output->data, (size_t)tw_count(output), sizeof(float));
    output->data = NULL;
}

static void twi_walk_tape(void *arg) {
    tw_context *tw = (tw_context *)arg;
    twi_node *node;
    for (node = tw->tape; node && tw->code == TW_OK; node = node->previous) twi_run_backward(node);
}

/* The walk; the loss itself gets the gradient `seed`. */
static bool twi_backward_from(tw_tensor *loss, float seed) {
    tw_context *tw;
    bool fresh, was;
    if (!loss) return false;
    tw = loss->tw;
    if (tw_count(loss) != 1 || loss->dtype != TW_F32) { twi_fail(tw, TW_E_SHAPE, "backward: the loss has shape %s, not one number", TWI_SHAPE(loss)); return false; }
    if (!loss->requires_grad) { twi_fail(tw, TW_E_ARGUMENT, "backward: nothing that led to the loss wants a gradient"); return false; }
    if (!twi_grad_room(twi_base(loss), &fresh)) return false;
    twi_base(loss)->grad_stale = false;
    if (twi_computes(tw)) twi_base(loss)->grad[0] = seed;
    was = tw_no_grad(tw, true);
    twi_with_team(tw, twi_walk_tape, tw);
    tw->tape = NULL;
    tw_no_grad(tw, was);
    return tw->code == TW_OK;
}

TWDEF bool tw_backward(tw_tensor *loss) { return twi_backward_from(loss, 1.0f); }

TWDEF tw_tensor *tw_grad(tw_tensor *t) {
    tw_tensor *g, *base;
    if (!t) return NULL;
    base = twi_base(t);
    if (!base->grad) return NULL;
    if (base->grad_stale) twi_grad_sum(base);
    g = twi_bare_tensor(t->tw, TW_F32, t->rank, t->shape);
    if (!g) return NULL;
    memcpy(g->stride, t->stride, sizeof g->stride);
    g->data = t->tw->planning ? (void *)base->grad : (void *)(base->grad + t->offset);
    return g;
}

TWDEF void tw_require_grad(tw_tensor *t, bool wanted) {
    if (!t) return;
    if (t->is_parameter) t->requires_grad = wanted;
    else if (wanted) { t->requires_grad = true; twi_base(t)->requires_grad = true; twi_base(t)->keep_grad = true; }
}
TWDEF void tw_zero_grad_of(tw_tensor *parameter) { if (parameter) parameter->grad_stale = true; }

TWDEF bool tw_no_grad(tw_context *tw, bool on) { bool was = tw->no_grad; tw->no_grad = on; return was; }
TWDEF bool tw_training(tw_context *tw, bool on) { bool was = tw->training; tw->training = on; return was; }

TWDEF void tw_end_step(tw_context *tw) {
    twi_mark floor;
    if (!tw) return;
    memset(&floor, 0, sizeof floor);
    twi_rewind(tw, &floor);
    tw->tape = NULL;
}

/* -- a stream of blocks without gradients --------------------------------------------------------------
   A model hands x from block to block.  Where no gradient is wanted, a block's inside is dead once its
   result is there: the result is copied over the block's input and the arena rewinds, so the memory
   does not grow with the number of layers. */
typedef struct twi_stream { tw_context *tw; twi_mark mark; bool rewinds; } twi_stream;

static tw_tensor *twi_stream_begin(twi_stream *s, tw_tensor *x, bool keep_all) {
    tw_tensor *own;
    if (!x) return NULL;
    s->tw = x->tw;
    s->rewinds = s->tw->no_grad && !keep_all;
    if (!s->rewinds) return x;
    own = twi_new_like(x);
    if (!own) return NULL;
    if (twi_computes(s->tw)) tw_read(x, (float *)own->data, tw_count(own));
    twi_take_mark(s->tw, &s->mark);
    return own;
}

static tw_tensor *twi_stream_next(twi_stream *s, tw_tensor *x, tw_tensor *result) {
    if (!s->rewinds || !result) return result;
    if (twi_computes(s->tw)) tw_read(result, (float *)x->data, tw_count(x));
    twi_rewind(s->tw, &s->mark);
    return x;
}

/* -- checking operands ------------------------------------------------------------------------------ */

/* Operands of arithmetic are F32, and from one context. */
static bool twi_is_f32(const tw_tensor *t, const char *what) {
    if (!t) return false;
    if (t->dtype == TW_F32) return true;
    twi_fail(t->tw, TW_E_ARGUMENT, "%s: an operand is %s, not F32", what, tw_dtype_name(t->dtype));
    return false;
}
static bool twi_is_i32(const tw_tensor *t, tw_context *tw, const char *what) {
    if (!t) return false;
    if (t->dtype == TW_I32 && tw_is_contiguous(t)) return true;
    twi_fail(tw, TW_E_ARGUMENT, "%s: ids, labels and masks are row-major I32 tensors, not %s", what, tw_dtype_name(t->dtype));
    return false;
}
static bool twi_same_shape(const tw_tensor *a, const tw_tensor *b) {
    return a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}
/* Are all ids in [0, limit)?  `ignored` (if below 0) is let through. */
static bool twi_ids_in_range(const tw_tensor *ids, int64_t limit, int32_t ignored, const char *what) {
    int64_t i, n = tw_count(ids);
    const int32_t *id = (const int32_t *)ids->data;
    if (!twi_computes(ids->tw)) return ids->tw->code == TW_OK;
    for (i = 0; i < n; i++) {
        if (id[i] >= 0 && id[i] < limit) continue;
        if (ignored < 0 && id[i] == ignored) continue;
        twi_fail(ids->tw, TW_E_RANGE, "%s: %ld at place %lld is not in 0 ... %lld", what, (long)id[i], (long long)i, (long long)limit - 1);
        return false;
    }
    return true;
}
/* rows of the last axis: [..., C] is rows x C */
static int64_t twi_columns(const tw_tensor *t) { return t->rank ? t->shape[t->rank - 1] : 1; }
static int64_t twi_rows(const tw_tensor *t) {
    int64_t rows = 1;
    int i;
    for (i = 0; i + 1 < t->rank; i++) rows *= t->shape[i];
    return rows;
}
static float *twi_f32(const tw_tensor *t) { return (float *)t->data; }

/* -- copies: a view made row-major ------------------------------------------------------------------- */

static tw_tensor *twi_contiguous(tw_tensor *t) {
    tw_tensor *y;
    if (!t || tw_is_contiguous(t)) return t;
    if (!twi_is_f32(t, "contiguous")) return NULL;
    y = twi_new_like(t);
    if (!y) return NULL;
    if (twi_computes(t->tw)) tw_read(t, twi_f32(y), tw_count(y));
    return twi_note(TWI_OP_COPY, y, &t, 1, NULL, 0);
}
static void twi_copy_backward(twi_node *node, float *dy) { twi_pass_on(node, node->input[0], dy); }
TWDEF tw_tensor *tw_contiguous(tw_tensor *x) { return twi_contiguous(x); }

/* -- one number in, one number out -------------------------------------------------------------------- */

static tw_tensor *twi_unary(tw_tensor *x, twb_unary_op function) {
    tw_tensor *y;
    x = twi_contiguous(x);
    if (!twi_is_f32(x, "elementwise")) return NULL;
    y = twi_new_like(x);
    if (!y) return NULL;
    if (twi_computes(x->tw)) twb_unary(&x->tw->cpu, function, (ptrdiff_t)tw_count(x), twi_f32(x), twi_f32(y));
    return twi_note(TWI_OP_UNARY, y, &x, 1, &function, sizeof function);
}
static void twi_unary_backward(twi_node *node, float *dy) {
    tw_tensor *x = node->input[0];
    twi_slot slot = twi_open_slot(x);
    if (slot.data && twi_computes(x->tw))
        twb_unary_backward(&x->tw->cpu, *(twb_unary_op *)node->saved, (ptrdiff_t)tw_count(x), twi_f32(x), twi_f32(node->output), dy, slot.data, slot.accumulate);
    twi_close_slot(&slot);
}
TWDEF tw_tensor *tw_neg(tw_tensor *x) { return twi_unary(x, TWB_NEG); }
TWDEF tw_tensor *tw_exp(tw_tensor *x) { return twi_unary(x, TWB_EXP); }
TWDEF tw_tensor *tw_log(tw_tensor *x) { return twi_unary(x, TWB_LOG); }
TWDEF tw_tensor *tw_sqrt(tw_tensor *x) { return twi_unary(x, TWB_SQRT); }
TWDEF tw_tensor *tw_rsqrt(tw_tensor *x) { return twi_unary(x, TWB_RSQRT); }
TWDEF tw_tensor *tw_square(tw_tensor *x) { return twi_unary(x, TWB_SQUARE); }
TWDEF tw_tensor *tw_abs(tw_tensor *x) { return twi_unary(x, TWB_ABS); }
TWDEF tw_tensor *tw_reciprocal(tw_tensor *x) { return twi_unary(x, TWB_RECIPROCAL); }
TWDEF tw_tensor *tw_tanh(tw_tensor *x) { return twi_unary(x, TWB_TANH); }
TWDEF tw_tensor *tw_sigmoid(tw_tensor *x) { return twi_unary(x, TWB_SIGMOID); }
TWDEF tw_tensor *tw_relu(tw_tensor *x) { return twi_unary(x, TWB_RELU); }
TWDEF tw_tensor *tw_gelu(tw_tensor *x) { return twi_unary(x, TWB_GELU); }
TWDEF tw_tensor *tw_gelu_tanh(tw_tensor *x) { return twi_unary(x, TWB_GELU_TANH); }
TWDEF tw_tensor *tw_quick_gelu(tw_tensor *x) { return twi_unary(x, TWB_QUICK_GELU); }
TWDEF tw_tensor *tw_silu(tw_tensor *x) { return twi_unary(x, TWB_SILU); }
TWDEF tw_tensor *tw_erf(tw_tensor *x) { return twi_unary(x, TWB_ERF); }
TWDEF tw_tensor *tw_sin(tw_tensor *x) { return twi_unary(x, TWB_SIN); }
TWDEF tw_tensor *tw_cos(tw_tensor *x) { return twi_unary(x, TWB_COS); }
TWDEF tw_tensor *tw_softplus(tw_tensor *x) { return twi_unary(x, TWB_SOFTPLUS); }

TWDEF tw_tensor *tw_activate(tw_tensor *x, tw_activation activation) {
    if (activation == TW_ACT_NONE) return x;
    return twi_unary(x, twb_activation_op((twb_activation)activation));
}
TWDEF bool tw_activation_named(const char *name, tw_activation *out) {
    static const struct { const char *name; tw_activation activation; } names[] = {
        { "gelu", TW_ACT_GELU }, { "gelu_python", TW_ACT_GELU }, { "gelu_new", TW_ACT_GELU_TANH }, { "gelu_pytorch_tanh", TW_ACT_GELU_TANH },
        { "gelu_fast", TW_ACT_GELU_TANH }, { "quick_gelu", TW_ACT_QUICK_GELU }, { "relu", TW_ACT_RELU }, { "silu", TW_ACT_SILU },
        { "swish", TW_ACT_SILU }, { "tanh", TW_ACT_TANH }, { "sigmoid", TW_ACT_SIGMOID }, { "linear", TW_ACT_NONE }
    };
    size_t i;
    for (i = 0; name && i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i].name) == 0) { *out = names[i].activation; return true; }
    return false;
}

/* factor x + term */
typedef struct twi_affine_saved { float factor; } twi_affine_saved;
static tw_tensor *twi_affine(tw_tensor *x, float factor, float term) {
    twi_affine_saved saved;
    tw_tensor *y;
    saved.factor = factor;
    x = twi_contiguous(x);
    if (!twi_is_f32(x, "scale")) return NULL;
    y = twi_new_like(x);
    if (!y) return NULL;
    if (twi_computes(x->tw)) {
        twb_fill(&x->tw->cpu, (ptrdiff_t)tw_count(x), term, twi_f32(y));
        twb_axpby(&x->tw->cpu, (ptrdiff_t)tw_count(x), factor, twi_f32(x), term != 0 ? 1.0f : 0.0f, twi_f32(y));
    }
    return twi_note(TWI_OP_AFFINE, y, &x, 1, &saved, sizeof saved);
}
static void twi_affine_backward(twi_node *node, float *dy) {
    tw_tensor *x = node->input[0];
    twi_slot slot = twi_open_slot(x);
    if (slot.data && twi_computes(x->tw))
        twb_axpby(&x->tw->cpu, (ptrdiff_t)tw_count(x), ((twi_affine_saved *)node->saved)->factor, dy, slot.accumulate ? 1.0f : 0.0f, slot.data);
    twi_close_slot(&slot);
}
TWDEF tw_tensor *tw_scale(tw_tensor *x, float factor) { return twi_affine(x, factor, 0); }
TWDEF tw_tensor *tw_add_scalar(tw_tensor *x, float term) { return twi_affine(x, 1, term); }

/* -- two tensors, broadcast ------------------------------------------------------------------------------
   NumPy's rule: shapes are aligned at their last axes; an axis of length 1 (or none) is repeated, which here
   means that its stride is 0. */
typedef struct twi_broadcast { int rank; int64_t shape[TW_MAX_DIMS], stride_a[TW_MAX_DIMS], stride_b[TW_MAX_DIMS]; } twi_broadcast;

static bool twi_broadcast_shapes(const tw_tensor *a, const tw_tensor *b, twi_broadcast *out, const char *what) {
    int i;
    memset(out, 0, sizeof *out);
    out->rank = a->rank > b->rank ? a->rank : b->rank;
    for (i = 0; i < out->rank; i++) {
        int ia = i - (out->rank - a->rank), ib = i - (out->rank - b->rank);
        int64_t da = ia >= 0 ? a->shape[ia] : 1, db = ib >= 0 ? b->shape[ib] : 1;
        if (da != db && da != 1 && db != 1) {
            twi_fail(a->tw, TW_E_SHAPE, "%s: shapes %s and %s do not fit together", what, TWI_SHAPE(a), TWI_SHAPE(b));
            return false;
        }
        out->shape[i] = da == 1 ? db : da;
        out->stride_a[i] = ia >= 0 && da != 1 ? a->stride[ia] : 0;
        out->stride_b[i] = ib >= 0 && db != 1 ? b->stride[ib] : 0;
    }
    return true;
}

/* Merges axes that all operands cross in one stride, so that the inner loop is as long as it can be. */
static void twi_merge_axes(twi_broadcast *w) {
    int64_t shape[TW_MAX_DIMS], sa[TW_MAX_DIMS], sb[TW_MAX_DIMS];
    int i, n = 0;
    for (i = w->rank - 1; i >= 0; i--) {
        if (w->shape[i] == 1) continue;
        if (n && w->stride_a[i] == sa[n-1] * shape[n-1] && w->stride_b[i] == sb[n-1] * shape[n-1]) { shape[n-1] *= w->shape[i]; continue; }
        shape[n] = w->shape[i]; sa[n] = w->stride_a[i]; sb[n] = w->stride_b[i];
        n++;
    }
    if (n == 0) { shape[0] = 1; sa[0] = sb[0] = 1; n = 1; }
    for (i = 0; i < n; i++) { w->shape[i] = shape[n-1-i]; w->stride_a[i] = sa[n-1-i]; w->stride_b[i] = sb[n-1-i]; }
    w->rank = n;
}

/* y (row-major) = a op b */
static void twi_binary_loop(const tw_context *tw, twb_binary_op op, const twi_broadcast *shapes, const float *a, const float *b, float *y) {
    twi_broadcast w = *shapes;
    twi_walk walk;
    int64_t n;
    int i, last;
    for (i = 0; i < w.rank; i++) if (w.shape[i] == 0) return;
    twi_merge_axes(&w);
    last = w.rank - 1;
    n = w.shape[last];
    for (twi_walk_start(&walk, last, w.shape, w.stride_a, w.stride_b, NULL); walk.more; twi_walk_next(&walk), y += n)
        twb_binary(&tw->cpu, op, (ptrdiff_t)n, a + walk.at[0], (ptrdiff_t)w.stride_a[last], b + walk.at[1], (ptrdiff_t)w.stride_b[last], y);
}

static tw_tensor *twi_binary(tw_tensor *a, tw_tensor *b, twb_binary_op op, const char *what) {
    twi_broadcast w;
    tw_tensor *y, *inputs[2];
    if (!twi_is_f32(a, what) || !twi_is_f32(b, what) || !twi_broadcast_shapes(a, b, &w, what)) return NULL;
    y = twi_new(a->tw, TW_F32, w.rank, w.shape);
    if (!y) return NULL;
    if (twi_computes(a->tw)) twi_binary_loop(a->tw, op, &w, twi_f32(a), twi_f32(b), twi_f32(y));
    inputs[0] = a;
    inputs[1] = b;
    return twi_note(TWI_OP_BINARY, y, inputs, 2, &op, sizeof op);
}

/* slot (+)= g summed over the axes along which `of` was repeated.  g is row-major with the broadcast shape. */
static void twi_reduce_into(const twi_slot *slot, int rank, const int64_t *shape, const float *g) {
    tw_tensor *t = slot->of;
    int64_t stride[TW_MAX_DIMS], step = 1, repeats = 1, last;
    int i, lead = rank - t->rank;
    bool suffix = true;                                     /* t is the tail of the shape: columns to add up, as for a bias */
    if (!slot->data || !twi_computes(t->tw)) return;
    for (i = t->rank - 1; i >= 0; i--) {
        if (t->shape[i] != shape[i + lead]) suffix = false;
        stride[i + lead] = t->shape[i] == 1 ? 0 : step;
        step *= t->shape[i];
    }
    for (i = 0; i < lead; i++) { stride[i] = 0; repeats *= shape[i]; }
    last = tw_count(t);
    if (suffix && last > 0) { twb_column_sums(&t->tw->cpu, (ptrdiff_t)repeats, (ptrdiff_t)last, g, (ptrdiff_t)last, slot->data, slot->accumulate); return; }
    if (!slot->accumulate) twb_fill(&t->tw->cpu, (ptrdiff_t)last, 0, slot->data);
    twi_add_strided(rank, shape, slot->data, stride, g);
}

/* g = dy where the operand on this side was the one taken, else 0 */
static void twi_extremum_gradient(const twi_broadcast *w, bool largest, int side, const float *a, const float *b, const float *dy, float *g) {
    twi_walk walk;
    for (twi_walk_start(&walk, w->rank, w->shape, w->stride_a, w->stride_b, NULL); walk.more; twi_walk_next(&walk), g++, dy++) {
        float x = a[walk.at[0]], y = b[walk.at[1]];
        bool took_a = largest ? x > y : x < y;
        *g = took_a == (side == 0) ? *dy : 0.0f;
    }
}

static void twi_binary_backward(twi_node *node, float *dy) {
    tw_context *tw = node->output->tw;
    tw_tensor *a = node->input[0], *b = node->input[1], *y = node->output;
    twb_binary_op op = *(twb_binary_op *)node->saved;
    size_t count = (size_t)tw_count(y);
    int side;
    for (side = 0; side < 2; side++) {
        tw_tensor *t = side ? b : a;
        float *g = dy;
        twi_broadcast w, wy;
        twi_slot slot;
        if (!t->requires_grad) continue;
        if (op == TWB_ADD && twi_same_shape(t, y) && (side == 1 || !b->requires_grad || !twi_same_shape(b, y))) { twi_pass_on(node, t, dy); continue; }
        if (!(op == TWB_ADD || (op == TWB_SUB && side == 0))) {
            g = (float *)twi_step_alloc(tw, count, sizeof(float));
            if (!g) return;
            if (twi_computes(tw)) {
                twi_broadcast_shapes(a, b, &w, "");
                wy = w;                                     /* dy, row-major, against one operand */
                { int64_t step = 1; int i; for (i = w.rank - 1; i >= 0; i--) { wy.stride_a[i] = step; step *= w.shape[i]; } }
                if (op == TWB_SUB) twb_axpby(&tw->cpu, (ptrdiff_t)count, -1, dy, 0, g);
                else if (op == TWB_MUL) {
                    memcpy(wy.stride_b, side ? w.stride_a : w.stride_b, sizeof wy.stride_b);
                    twi_binary_loop(tw, TWB_MUL, &wy, dy, twi_f32(side ? a : b), g);
                } else if (op == TWB_DIV) {                 /* d(a/b) = da / b - (a/b) db / b */
                    memcpy(wy.stride_b, w.stride_b, sizeof wy.stride_b);
                    twi_binary_loop(tw, TWB_DIV, &wy, dy, twi_f32(b), g);
                    if (side) {
                        twb_binary(&tw->cpu, TWB_MUL, (ptrdiff_t)count, g, 1, twi_f32(y), 1, g);
                        twb_axpby(&tw->cpu, (ptrdiff_t)count, -1, g, 0, g);
                    }
                } else twi_extremum_gradient(&w, op == TWB_MAX, side, twi_f32(a), twi_f32(b), dy, g);
            }
        }
        slot = twi_open_slot(t);
        twi_reduce_into(&slot, y->rank, y->shape, g);
        twi_close_slot(&slot);
        if (g != dy) twi_step_free(tw, g, count, sizeof(float));
    }
}
TWDEF tw_tensor *tw_add(tw_tensor *a, tw_tensor *b) { return twi_binary(a, b, TWB_ADD, "add"); }
TWDEF tw_tensor *tw_sub(tw_tensor *a, tw_tensor *b) { return twi_binary(a, b, TWB_SUB, "sub"); }
TWDEF tw_tensor *tw_mul(tw_tensor *a, tw_tensor *b) { return twi_binary(a, b, TWB_MUL, "mul"); }
TWDEF tw_tensor *tw_div(tw_tensor *a, tw_tensor *b) { return twi_binary(a, b, TWB_DIV, "div"); }
TWDEF tw_tensor *tw_maximum(tw_tensor *a, tw_tensor *b) { return twi_binary(a, b, TWB_MAX, "maximum"); }
TWDEF tw_tensor *tw_minimum(tw_tensor *a, tw_tensor *b) { return twi_binary(a, b, TWB_MIN, "minimum"); }

static tw_shape twi_shape_from(int rank, const int64_t *dim) {
    tw_shape s = tw_shape0();
    s.rank = rank;
    memcpy(s.dim, dim, (size_t)rank * sizeof *dim);
    return s;
}

typedef struct twi_where_saved { unsigned char *keep; } twi_where_saved;      /* the mask at full size, one byte an element */

TWDEF tw_tensor *tw_where(const tw_tensor *mask, tw_tensor *a, tw_tensor *b) {
    twi_where_saved saved;
    tw_tensor *y, *inputs[2];
    twi_broadcast w;
    twi_walk walk;
    int64_t i = 0;
    if (!twi_is_f32(a, "where") || !twi_is_f32(b, "where") || !twi_is_i32(mask, a->tw, "where") || !twi_broadcast_shapes(a, b, &w, "where")) return NULL;
    inputs[0] = a = twi_contiguous(tw_expand(a, twi_shape_from(w.rank, w.shape)));
    inputs[1] = b = twi_contiguous(tw_expand(b, twi_shape_from(w.rank, w.shape)));
    if (!a || !b || !twi_broadcast_shapes(a, mask, &w, "where")) return NULL;
    if (w.rank != a->rank || memcmp(w.shape, a->shape, (size_t)a->rank * sizeof *w.shape) != 0) {
        twi_fail(a->tw, TW_E_SHAPE, "where: a mask of shape %s is larger than %s", TWI_SHAPE(mask), TWI_SHAPE(a));
        return NULL;
    }
    y = twi_new_like(a);
    saved.keep = (unsigned char *)twi_step_alloc(a->tw, (size_t)tw_count(a), 1);
    if (!y || !saved.keep) return NULL;
    if (twi_computes(a->tw))
        for (twi_walk_start(&walk, w.rank, w.shape, w.stride_b, NULL, NULL); walk.more; twi_walk_next(&walk), i++) {
            saved.keep[i] = ((const int32_t *)mask->data)[walk.at[0]] != 0;
            twi_f32(y)[i] = saved.keep[i] ? twi_f32(a)[i] : twi_f32(b)[i];
        }
    return twi_note(TWI_OP_WHERE, y, inputs, 2, &saved, sizeof saved);
}
static void twi_where_backward(twi_node *node, float *dy) {
    const unsigned char *keep = ((twi_where_saved *)node->saved)->keep;
    int64_t i, n = tw_count(node->output);
    int side;
    for (side = 0; side < 2; side++) {
        twi_slot slot = twi_open_slot(node->input[side]);
        if (slot.data && twi_computes(node->output->tw))
            for (i = 0; i < n; i++) slot.data[i] = (keep[i] == (side == 0) ? dy[i] : 0.0f) + (slot.accumulate ? slot.data[i] : 0.0f);
        twi_close_slot(&slot);
    }
}

/* -- sums -------------------------------------------------------------------------------------------------
   An axis in the middle splits a row-major tensor into outer x length x inner. */
typedef struct twi_axis_split { int64_t outer, length, inner; float factor; int32_t *index; float *kept; } twi_axis_split;

static twi_axis_split twi_split_at(const tw_tensor *x, int axis) {
    twi_axis_split s;
    int i;
    memset(&s, 0, sizeof s);
    s.outer = s.inner = 1;
    for (i = 0; i < axis; i++) s.outer *= x->shape[i];
    s.length = x->shape[axis];
    for (i = axis + 1; i < x->rank; i++) s.inner *= x->shape[i];
    return s;
}
static tw_tensor *twi_without_axis(const tw_tensor *x, tw_dtype dtype, int axis, bool keep) {
    int64_t shape[TW_MAX_DIMS];
    int i, rank = 0;
    for (i = 0; i < x->rank; i++) if (i != axis) shape[rank++] = x->shape[i]; else if (keep) shape[rank++] = 1;
    return twi_new(x->tw, dtype, rank, shape);
}
static bool twi_axis_operand(tw_tensor **x, int *axis, const char *what) {
    *x = twi_contiguous(*x);
    return twi_is_f32(*x, what) && twi_axis(*x, axis, what);
}

static tw_tensor *twi_sum_axis(tw_tensor *x, int axis, bool keep, bool mean) {
    twi_axis_split s;
    tw_tensor *y;
    int64_t o;
    if (!twi_axis_operand(&x, &axis, "sum")) return NULL;
    s = twi_split_at(x, axis);
    s.factor = mean && s.length ? 1.0f / (float)s.length : 1.0f;
    y = twi_without_axis(x, TW_F32, axis, keep);
    if (!y) return NULL;
    if (twi_computes(x->tw)) {
        for (o = 0; o < s.outer; o++) {
            const float *from = twi_f32(x) + o * s.length * s.inner;
            float *to = twi_f32(y) + o * s.inner;
            if (s.inner == 1) *to = (float)twb_sum(&x->tw->cpu, (ptrdiff_t)s.length, from);
            else twb_column_sums(&x->tw->cpu, (ptrdiff_t)s.length, (ptrdiff_t)s.inner, from, (ptrdiff_t)s.inner, to, false);
        }
        if (mean) twb_axpby(&x->tw->cpu, (ptrdiff_t)tw_count(y), s.factor, twi_f32(y), 0, twi_f32(y));
    }
    return twi_note(TWI_OP_SUM_AXIS, y, &x, 1, &s, sizeof s);
}
static void twi_sum_axis_backward(twi_node *node, float *dy) {
    const twi_axis_split *s = (const twi_axis_split *)node->saved;
    const twb_cpu *cpu = &node->output->tw->cpu;
    twi_slot slot = twi_open_slot(node->input[0]);
    int64_t o, l;
    if (slot.data && twi_computes(node->output->tw))
        for (o = 0; o < s->outer; o++) {
            float *to = slot.data + o * s->length * s->inner;
            if (s->inner == 1) {
                float g = dy[o] * s->factor;
                for (l = 0; l < s->length; l++) to[l] = slot.accumulate ? to[l] + g : g;
            } else for (l = 0; l < s->length; l++)
                twb_axpby(cpu, (ptrdiff_t)s->inner, s->factor, dy + o * s->inner, slot.accumulate ? 1.0f : 0.0f, to + l * s->inner);
        }
    twi_close_slot(&slot);
}
TWDEF tw_tensor *tw_sum_axis(tw_tensor *x, int axis, bool keep_axis) { return twi_sum_axis(x, axis, keep_axis, false); }
TWDEF tw_tensor *tw_mean_axis(tw_tensor *x, int axis, bool keep_axis) { return twi_sum_axis(x, axis, keep_axis, true); }
static tw_tensor *twi_flat(tw_tensor *x) { return tw_reshape(x, tw_shape1(tw_count(x))); }
TWDEF tw_tensor *tw_sum(tw_tensor *x) { return twi_sum_axis(twi_flat(x), 0, false, false); }
TWDEF tw_tensor *tw_mean(tw_tensor *x) { return twi_sum_axis(twi_flat(x), 0, false, true); }

/* The index of the first largest along the axis, for every (outer, inner). */
static void twi_largest_along(const twi_axis_split *s, const float *x, int32_t *index) {
    int64_t o, l, i;
    for (o = 0; o < s->outer; o++) for (i = 0; i < s->inner; i++) {
        const float *column = x + o * s->length * s->inner + i;
        int64_t best = 0;
        for (l = 1; l < s->length; l++) if (column[l * s->inner] > column[best * s->inner]) best = l;
        index[o * s->inner + i] = (int32_t)best;
    }
}
static bool twi_axis_not_empty(const tw_tensor *x, int axis, const char *what) {
    if (x->shape[axis] > 0 && x->shape[axis] <= INT32_MAX) return true;
    twi_fail(x->tw, TW_E_SHAPE, "%s: axis %d of shape %s is empty", what, axis, TWI_SHAPE(x));
    return false;
}
TWDEF tw_tensor *tw_argmax(tw_tensor *x, int axis) {
    twi_axis_split s;
    tw_tensor *y;
    if (!twi_axis_operand(&x, &axis, "argmax") || !twi_axis_not_empty(x, axis, "argmax")) return NULL;
    s = twi_split_at(x, axis);
    y = twi_without_axis(x, TW_I32, axis, false);
    if (y && twi_computes(x->tw)) twi_largest_along(&s, twi_f32(x), (int32_t *)y->data);
    return y;
}
TWDEF tw_tensor *tw_max_axis(tw_tensor *x, int axis, bool keep_axis) {
    twi_axis_split s;
    tw_tensor *y;
    int64_t o, i;
    if (!twi_axis_operand(&x, &axis, "max") || !twi_axis_not_empty(x, axis, "max")) return NULL;
    s = twi_split_at(x, axis);
    y = twi_without_axis(x, TW_F32, axis, keep_axis);
    s.index = (int32_t *)twi_step_alloc(x->tw, (size_t)(s.outer * s.inner), sizeof *s.index);
    if (!y || !s.index) return NULL;
    if (twi_computes(x->tw)) {
        twi_largest_along(&s, twi_f32(x), s.index);
        for (o = 0; o < s.outer; o++) for (i = 0; i < s.inner; i++)
            twi_f32(y)[o * s.inner + i] = twi_f32(x)[(o * s.length + s.index[o * s.inner + i]) * s.inner + i];
    }
    return twi_note(TWI_OP_MAX_AXIS, y, &x, 1, &s, sizeof s);
}
static void twi_max_axis_backward(twi_node *node, float *dy) {
    const twi_axis_split *s = (const twi_axis_split *)node->saved;
    tw_tensor *x = node->input[0];
    twi_slot slot = twi_open_slot(x);
    int64_t o, i;
    if (slot.data && twi_computes(x->tw)) {
        if (!slot.accumulate) twb_fill(&x->tw->cpu, (ptrdiff_t)tw_count(x), 0, slot.data);
        for (o = 0; o < s->outer; o++) for (i = 0; i < s->inner; i++)
            slot.data[(o * s->length + s->index[o * s->inner + i]) * s->inner + i] += dy[o * s->inner + i];
    }
    twi_close_slot(&slot);
}

/* log sum exp = m + log sum exp(x - m), m the largest: no exponent overflows.  Its gradient is the softmax. */
TWDEF tw_tensor *tw_logsumexp(tw_tensor *x, int axis, bool keep_axis) {
    twi_axis_split s;
    tw_tensor *y;
    int64_t o, i, l;
    if (!twi_axis_operand(&x, &axis, "logsumexp") || !twi_axis_not_empty(x, axis, "logsumexp")) return NULL;
    s = twi_split_at(x, axis);
    y = twi_without_axis(x, TW_F32, axis, keep_axis);
    if (!y) return NULL;
    if (twi_computes(x->tw))
        for (o = 0; o < s.outer; o++) for (i = 0; i < s.inner; i++) {
            const float *column = twi_f32(x) + o * s.length * s.inner + i;
            float largest = column[0], sum = 0;
            for (l = 1; l < s.length; l++) if (column[l * s.inner] > largest) largest = column[l * s.inner];
            for (l = 0; l < s.length; l++) sum += twb_exp1(column[l * s.inner] - largest);
            twi_f32(y)[o * s.inner + i] = largest + twb_log1(sum);
        }
    return twi_note(TWI_OP_LOGSUMEXP, y, &x, 1, &s, sizeof s);
}
static void twi_logsumexp_backward(twi_node *node, float *dy) {
    const twi_axis_split *s = (const twi_axis_split *)node->saved;
    tw_tensor *x = node->input[0];
    twi_slot slot = twi_open_slot(x);
    int64_t o, i, l;
    if (slot.data && twi_computes(x->tw))
        for (o = 0; o < s->outer; o++) for (l = 0; l < s->length; l++) for (i = 0; i < s->inner; i++) {
            int64_t at = (o * s->length + l) * s->inner + i;
            float g = dy[o * s->inner + i] * twb_exp1(twi_f32(x)[at] - twi_f32(node->output)[o * s->inner + i]);
            slot.data[at] = slot.accumulate ? slot.data[at] + g : g;
        }
    twi_close_slot(&slot);
}

/* -- matrix products ---------------------------------------------------------------------------------------- */

/* Runs one product (or a batch of them) with scratch from the context. */
static void twi_gemm(tw_context *tw, const twb_gemm_args *args) {
    void *scratch = twi_scratch(tw, twb_gemm_scratch(&tw->cpu, args));
    if (scratch && twi_computes(tw)) twb_gemm(&tw->cpu, args, scratch);
}

/* The last two axes of t as a matrix that GEMM reads in place: row-major, or transposed.  False: copy it first. */
static bool twi_matrix_layout(const tw_tensor *t, bool *transposed, ptrdiff_t *ld) {
    int64_t rows = t->shape[t->rank - 2], columns = t->shape[t->rank - 1], row = t->stride[t->rank - 2], column = t->stride[t->rank - 1];
    if ((column == 1 || columns == 1) && (row >= columns || rows == 1)) { *transposed = false; *ld = (ptrdiff_t)(rows == 1 ? columns : row); return true; }
    if ((row == 1 || rows == 1) && (column >= rows || columns == 1)) { *transposed = true; *ld = (ptrdiff_t)(columns == 1 ? rows : column); return true; }
    return false;
}

/* C[...] (+)= op(A[...]) op(B[...]) over the broadcast leading axes; strides count from the leading axes only. */
typedef struct twi_matmul_plan { int lead; int64_t shape[TW_MAX_DIMS], sa[TW_MAX_DIMS], sb[TW_MAX_DIMS], sc[TW_MAX_DIMS]; twb_gemm_args gemm; } twi_matmul_plan;

static void twi_matmul_run(tw_context *tw, twi_matmul_plan *plan, const float *a, const float *b, float *c) {
    twi_walk w;
    int outer = plan->lead > 0 ? plan->lead - 1 : 0;
    plan->gemm.batch = 1;
    if (plan->lead > 0) {                                   /* the last leading axis is the batch of one call */
        plan->gemm.batch = (ptrdiff_t)plan->shape[outer];
        plan->gemm.stride_a = (ptrdiff_t)plan->sa[outer];
        plan->gemm.stride_b = (ptrdiff_t)plan->sb[outer];
        plan->gemm.stride_c = (ptrdiff_t)plan->sc[outer];
        if (plan->gemm.batch == 0) return;
        if (plan->gemm.batch > 1 && plan->gemm.stride_c == 0) {   /* several products into one place: one after the other */
            ptrdiff_t i, count = plan->gemm.batch;
            plan->gemm.batch = 1;
            for (twi_walk_start(&w, outer, plan->shape, plan->sa, plan->sb, plan->sc); w.more; twi_walk_next(&w))
                for (i = 0; i < count; i++) {
                    plan->gemm.a = a + w.at[0] + i * plan->gemm.stride_a; plan->gemm.b = b + w.at[1] + i * plan->gemm.stride_b; plan->gemm.c = c + w.at[2];
                    twi_gemm(tw, &plan->gemm);
                }
            return;
        }
    }
    for (twi_walk_start(&w, outer, plan->shape, plan->sa, plan->sb, plan->sc); w.more; twi_walk_next(&w)) {
        plan->gemm.a = a + w.at[0];
        plan->gemm.b = b + w.at[1];
        plan->gemm.c = c + w.at[2];
        twi_gemm(tw, &plan->gemm);
    }
}

/* leading strides of a row-major tensor of this rank and shape, 0 where it is repeated against `lead` axes */
static void twi_lead_strides(const tw_tensor *t, bool row_major, int lead, int64_t *stride) {
    int64_t step = t->shape[t->rank - 1] * t->shape[t->rank - 2];
    int i;
    for (i = lead - 1; i >= 0; i--) {
        int axis = i - (lead - (t->rank - 2));
        stride[i] = 0;
        if (axis < 0) continue;
        if (t->shape[axis] != 1) stride[i] = row_major ? step : t->stride[axis];
        step *= t->shape[axis];
    }
}

static bool twi_matmul_shapes(const tw_tensor *a, const tw_tensor *b, int *lead, int64_t *shape) {
    int i;
    *lead = (a->rank > b->rank ? a->rank : b->rank) - 2;
    for (i = 0; i < *lead; i++) {
        int ia = i - (*lead - (a->rank - 2)), ib = i - (*lead - (b->rank - 2));
        int64_t da = ia >= 0 ? a->shape[ia] : 1, db = ib >= 0 ? b->shape[ib] : 1;
        if (da != db && da != 1 && db != 1) return false;
        shape[i] = da == 1 ? db : da;
    }
    shape[*lead] = a->shape[a->rank - 2];
    shape[*lead + 1] = b->shape[b->rank - 1];
    return a->shape[a->rank - 1] == b->shape[b->rank - 2];
}

TWDEF tw_tensor *tw_matmul(tw_tensor *a, tw_tensor *b) {
    twi_matmul_plan plan;
    tw_tensor *y, *inputs[2];
    int64_t shape[TW_MAX_DIMS + 2];
    if (!twi_is_f32(a, "matmul") || !twi_is_f32(b, "matmul")) return NULL;
    memset(&plan, 0, sizeof plan);
    if (a->rank < 2 || b->rank < 2 || !twi_matmul_shapes(a, b, &plan.lead, shape)) {
        twi_fail(a->tw, TW_E_SHAPE, "matmul: %s x %s do not fit together", TWI_SHAPE(a), TWI_SHAPE(b));
        return NULL;
    }
    if (!twi_matrix_layout(a, &plan.gemm.trans_a, &plan.gemm.lda)) { a = twi_contiguous(a); if (!a || !twi_matrix_layout(a, &plan.gemm.trans_a, &plan.gemm.lda)) return NULL; }
    if (!twi_matrix_layout(b, &plan.gemm.trans_b, &plan.gemm.ldb)) { b = twi_contiguous(b); if (!b || !twi_matrix_layout(b, &plan.gemm.trans_b, &plan.gemm.ldb)) return NULL; }
    y = twi_new(a->tw, TW_F32, plan.lead + 2, shape);
    if (!y) return NULL;
    memcpy(plan.shape, shape, sizeof plan.shape);
    twi_lead_strides(a, false, plan.lead, plan.sa);
    twi_lead_strides(b, false, plan.lead, plan.sb);
    twi_lead_strides(y, true, plan.lead, plan.sc);
    plan.gemm.m = (ptrdiff_t)shape[plan.lead];
    plan.gemm.n = (ptrdiff_t)shape[plan.lead + 1];
    plan.gemm.k = (ptrdiff_t)a->shape[a->rank - 1];
    plan.gemm.alpha = 1;
    plan.gemm.ldc = plan.gemm.n;
    twi_matmul_run(a->tw, &plan, twi_f32(a), twi_f32(b), twi_f32(y));
    inputs[0] = a;
    inputs[1] = b;
    return twi_note(TWI_OP_MATMUL, y, inputs, 2, NULL, 0);
}

/* dA = dY B^T, dB = A^T dY */
static void twi_matmul_backward(twi_node *node, float *dy) {
    tw_tensor *a = node->input[0], *b = node->input[1], *y = node->output;
    int side;
    for (side = 0; side < 2; side++) {
        tw_tensor *t = side ? b : a, *other = side ? a : b;
        twi_matmul_plan plan;
        twi_slot slot = twi_open_slot(t);
        bool transposed;
        ptrdiff_t ld;
        int64_t shape[TW_MAX_DIMS + 2];
        if (!slot.data) continue;
        memset(&plan, 0, sizeof plan);
        twi_matmul_shapes(a, b, &plan.lead, shape);
        memcpy(plan.shape, shape, sizeof plan.shape);
        twi_matrix_layout(other, &transposed, &ld);
        plan.gemm.alpha = 1;
        plan.gemm.beta = 1;                                 /* a repeated operand gets the sum of its products */
        plan.gemm.m = (ptrdiff_t)t->shape[t->rank - 2];
        plan.gemm.n = (ptrdiff_t)t->shape[t->rank - 1];
        plan.gemm.ldc = plan.gemm.n;
        if (!slot.accumulate && twi_computes(y->tw)) twb_fill(&y->tw->cpu, (ptrdiff_t)tw_count(t), 0, slot.data);
        twi_lead_strides(t, true, plan.lead, plan.sc);
        if (side == 0) {
            plan.gemm.k = (ptrdiff_t)twi_columns(y);
            plan.gemm.lda = plan.gemm.k;
            plan.gemm.trans_b = !transposed;
            plan.gemm.ldb = ld;
            twi_lead_strides(y, true, plan.lead, plan.sa);
            twi_lead_strides(b, false, plan.lead, plan.sb);
            twi_matmul_run(y->tw, &plan, dy, twi_f32(b), slot.data);
        } else {
            plan.gemm.k = (ptrdiff_t)y->shape[y->rank - 2];
            plan.gemm.trans_a = !transposed;
            plan.gemm.lda = ld;
            plan.gemm.ldb = (ptrdiff_t)twi_columns(y);
            twi_lead_strides(a, false, plan.lead, plan.sa);
            twi_lead_strides(y, true, plan.lead, plan.sb);
            twi_matmul_run(y->tw, &plan, twi_f32(a), dy, slot.data);
        }
        twi_close_slot(&slot);
    }
}

/* A linear layer: y = act(x W^T + bias) + residual, one pass over memory.  Before the activation the value
   is kept only where a gradient will ask for it; the backward pass turns it into its own gradient in place. */
typedef struct twi_linear_saved { bool in_out; tw_activation activation; float *before; } twi_linear_saved;

/* x as rows x columns with one distance between rows; NULL after an error */
static tw_tensor *twi_as_rows(tw_tensor *x, ptrdiff_t *ld) {
    int64_t step;
    int i;
    if (!x || x->rank == 0) return NULL;
    *ld = (ptrdiff_t)twi_columns(x);
    if (tw_is_contiguous(x)) return x;
    if (x->rank >= 2 && (x->stride[x->rank - 1] == 1 || twi_columns(x) == 1) && x->stride[x->rank - 2] >= twi_columns(x)) {
        step = x->stride[x->rank - 2];
        for (i = x->rank - 2; i > 0; i--) if (x->stride[i - 1] != x->stride[i] * x->shape[i] && x->shape[i - 1] != 1) break;
        if (i <= 0) { *ld = (ptrdiff_t)step; return x; }
    }
    return twi_contiguous(x);
}

TWDEF tw_tensor *tw_linear_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, bool weight_is_in_out, tw_activation activation, tw_tensor *residual) {
    twi_linear_saved saved;
    twb_gemm_args g;
    twb_epilogue e;
    tw_tensor *y, *inputs[4];
    int64_t shape[TW_MAX_DIMS], in, out;
    memset(&g, 0, sizeof g);
    memset(&e, 0, sizeof e);
    memset(&saved, 0, sizeof saved);
    if (!x || !weight || !twi_is_f32(x, "linear")) return NULL;
    x = twi_as_rows(x, &g.lda);
    if (!x) { twi_fail(weight->tw, TW_E_SHAPE, "linear %s: the input is a single number", weight->name); return NULL; }
    in = weight->rank == 2 ? weight->shape[weight_is_in_out ? 0 : 1] : -1;
    out = weight->rank == 2 ? weight->shape[weight_is_in_out ? 1 : 0] : -1;
    if (in != twi_columns(x) || !tw_is_contiguous(weight) || weight->dtype > TW_BF16) {
        twi_fail(x->tw, TW_E_SHAPE, "linear %s: input %s does not fit weight %s%s", weight->name, TWI_SHAPE(x), TWI_SHAPE(weight), weight_is_in_out ? " (in x out)" : " (out x in)");
        return NULL;
    }
    memcpy(shape, x->shape, sizeof shape);
    shape[x->rank - 1] = out;
    if ((bias && (tw_count(bias) != out || bias->dtype != TW_F32)) ||
        (residual && (residual->rank != x->rank || memcmp(residual->shape, shape, (size_t)x->rank * sizeof *shape) != 0 || !twi_is_f32(residual, "linear")))) {
        twi_fail(x->tw, TW_E_SHAPE, "linear %s: the %s does not fit the output %s", weight->name,
                 bias && tw_count(bias) != out ? "bias" : "residual", twi_print_shape(x->rank, shape).s);
        return NULL;
    }
    if (residual) residual = twi_contiguous(residual);
    inputs[0] = x; inputs[1] = weight; inputs[2] = bias; inputs[3] = residual;
    y = twi_new(x->tw, TW_F32, x->rank, shape);
    if (!y) return NULL;
    saved.in_out = weight_is_in_out;
    saved.activation = activation;
    if (activation != TW_ACT_NONE && twi_wants_grad(x->tw, inputs, 4)) {
        saved.before = (float *)twi_step_alloc(x->tw, (size_t)tw_count(y), sizeof(float));
        if (!saved.before) return NULL;
    }
    g.m = (ptrdiff_t)twi_rows(x); g.n = (ptrdiff_t)out; g.k = (ptrdiff_t)in;
    g.alpha = 1;
    g.a = twi_f32(x);
    g.b = weight->data; g.b_type = (twb_type)weight->dtype; g.trans_b = !weight_is_in_out; g.ldb = (ptrdiff_t)(weight_is_in_out ? out : in);
    g.c = twi_f32(y); g.ldc = g.n;
    e.bias = bias ? twi_f32(bias) : NULL;
    e.activation = (twb_activation)activation;
    e.pre_activation = saved.before;
    e.residual = residual ? twi_f32(residual) : NULL;
    e.ld_residual = g.n;
    g.epilogue = &e;
    twi_gemm(x->tw, &g);
    return twi_note(TWI_OP_LINEAR, y, inputs, 4, &saved, sizeof saved);
}

static void twi_linear_backward(twi_node *node, float *dy) {
    twi_linear_saved *saved = (twi_linear_saved *)node->saved;
    tw_tensor *x = node->input[0], *weight = node->input[1], *bias = node->input[2], *residual = node->input[3], *y = node->output;
    tw_context *tw = y->tw;
    int64_t rows = twi_rows(y), out = twi_columns(y), in = twi_columns(x);
    float *g = dy;                                          /* the gradient before the activation */
    twi_slot slot;
    if (saved->activation != TW_ACT_NONE) {
        g = saved->before;
        if (twi_computes(tw)) twb_activation_backward(&tw->cpu, (twb_activation)saved->activation, (ptrdiff_t)tw_count(y), saved->before, dy, g, false);
    }
    slot = twi_open_slot(x);
    if (slot.data) {                                        /* dX = G W */
        twb_gemm_args p;
        memset(&p, 0, sizeof p);
        p.m = (ptrdiff_t)rows; p.n = (ptrdiff_t)in; p.k = (ptrdiff_t)out;
        p.alpha = 1; p.beta = slot.accumulate ? 1.0f : 0.0f;
        p.a = g; p.lda = p.k;
        p.b = weight->data; p.b_type = (twb_type)weight->dtype; p.trans_b = saved->in_out; p.ldb = (ptrdiff_t)(saved->in_out ? out : in);
        p.c = slot.data; p.ldc = p.n;
        twi_gemm(tw, &p);
        twi_close_slot(&slot);
    }
    slot = twi_open_slot(weight);
    if (slot.data) {                                        /* dW = G^T X, or X^T G where the weight is [in, out] */
        twb_gemm_args p;
        ptrdiff_t ld_x = 0;
        twi_as_rows(x, &ld_x);
        memset(&p, 0, sizeof p);
        p.trans_a = true;
        p.m = (ptrdiff_t)(saved->in_out ? in : out); p.n = (ptrdiff_t)(saved->in_out ? out : in); p.k = (ptrdiff_t)rows;
        p.alpha = 1; p.beta = slot.accumulate ? 1.0f : 0.0f;
        p.a = saved->in_out ? twi_f32(x) : g; p.lda = saved->in_out ? ld_x : (ptrdiff_t)out;
        p.b = saved->in_out ? g : twi_f32(x); p.ldb = saved->in_out ? (ptrdiff_t)out : ld_x;
        p.c = slot.data; p.ldc = p.n;
        twi_gemm(tw, &p);
        twi_close_slot(&slot);
    }
    slot = twi_open_slot(bias);
    if (slot.data && twi_computes(tw)) twb_column_sums(&tw->cpu, (ptrdiff_t)rows, (ptrdiff_t)out, g, (ptrdiff_t)out, slot.data, slot.accumulate);
    twi_close_slot(&slot);
    if (saved->before && y->recycle) twi_step_free(tw, saved->before, (size_t)tw_count(y), sizeof(float));
    twi_pass_on(node, residual, dy);
}

/* -- along the last axis ------------------------------------------------------------------------------------ */

static tw_tensor *twi_row_operand(tw_tensor *x, const char *what) {
    x = twi_contiguous(x);
    if (!twi_is_f32(x, what)) return NULL;
    if (x->rank > 0 && twi_columns(x) > 0) return x;
    twi_fail(x->tw, TW_E_SHAPE, "%s: shape %s has no last axis to work along", what, TWI_SHAPE(x));
    return NULL;
}

TWDEF tw_tensor *tw_softmax(tw_tensor *x) {
    tw_tensor *y;
    ptrdiff_t c;
    x = twi_row_operand(x, "softmax");
    y = x ? twi_new_like(x) : NULL;
    if (!y) return NULL;
    c = (ptrdiff_t)twi_columns(x);
    if (twi_computes(x->tw)) twb_softmax(&x->tw->cpu, (ptrdiff_t)twi_rows(x), c, twi_f32(x), c, twi_f32(y), c);
    return twi_note(TWI_OP_SOFTMAX, y, &x, 1, NULL, 0);
}
static void twi_softmax_backward(twi_node *node, float *dy) {
    tw_tensor *y = node->output;
    twi_slot slot = twi_open_slot(node->input[0]);
    ptrdiff_t c = (ptrdiff_t)twi_columns(y);
    if (slot.data && twi_computes(y->tw)) twb_softmax_backward(&y->tw->cpu, (ptrdiff_t)twi_rows(y), c, twi_f32(y), c, dy, c, slot.data, c, slot.accumulate);
    twi_close_slot(&slot);
}

TWDEF tw_tensor *tw_log_softmax(tw_tensor *x) {
    tw_tensor *y;
    ptrdiff_t c;
    x = twi_row_operand(x, "log_softmax");
    y = x ? twi_new_like(x) : NULL;
    if (!y) return NULL;
    c = (ptrdiff_t)twi_columns(x);
    if (twi_computes(x->tw)) twb_log_softmax(&x->tw->cpu, (ptrdiff_t)twi_rows(x), c, twi_f32(x), c, twi_f32(y), c);
    return twi_note(TWI_OP_LOG_SOFTMAX, y, &x, 1, NULL, 0);
}
static void twi_log_softmax_backward(twi_node *node, float *dy) {
    tw_tensor *y = node->output;
    twi_slot slot = twi_open_slot(node->input[0]);
    ptrdiff_t c = (ptrdiff_t)twi_columns(y);
    if (slot.data && twi_computes(y->tw)) twb_log_softmax_backward(&y->tw->cpu, (ptrdiff_t)twi_rows(y), c, twi_f32(y), c, dy, c, slot.data, c, slot.accumulate);
    twi_close_slot(&slot);
}

typedef struct twi_norm_saved { float *mean, *rstd; } twi_norm_saved;        /* [rows]; RMS norm has no mean */

static bool twi_norm_operands(tw_tensor **x, tw_tensor *weight, tw_tensor *bias, const char *what) {
    *x = twi_row_operand(*x, what);
    if (!*x) return false;
    if ((weight && (tw_count(weight) != twi_columns(*x) || weight->dtype != TW_F32 || !tw_is_contiguous(weight))) ||
        (bias && (tw_count(bias) != twi_columns(*x) || bias->dtype != TW_F32 || !tw_is_contiguous(bias)))) {
        twi_fail((*x)->tw, TW_E_SHAPE, "%s %s: weight or bias do not fit the last axis of %s", what, weight ? weight->name : "", TWI_SHAPE(*x));
        return false;
    }
    return true;
}

TWDEF tw_tensor *tw_layer_norm_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, float eps) {
    twi_norm_saved saved;
    tw_tensor *y, *inputs[3];
    size_t rows;
    ptrdiff_t c;
    if (!twi_norm_operands(&x, weight, bias, "layer norm")) return NULL;
    inputs[0] = x; inputs[1] = weight; inputs[2] = bias;
    rows = (size_t)twi_rows(x);
    c = (ptrdiff_t)twi_columns(x);
    memset(&saved, 0, sizeof saved);
    y = twi_new_like(x);
    if (!y) return NULL;
    if (twi_wants_grad(x->tw, inputs, 3)) {
        saved.mean = (float *)twi_step_alloc(x->tw, rows, sizeof(float));
        saved.rstd = (float *)twi_step_alloc(x->tw, rows, sizeof(float));
        if (!saved.mean || !saved.rstd) return NULL;
    }
    if (twi_computes(x->tw))
        twb_layer_norm(&x->tw->cpu, (ptrdiff_t)rows, c, twi_f32(x), c, weight ? twi_f32(weight) : NULL, bias ? twi_f32(bias) : NULL, eps,
                       twi_f32(y), c, saved.mean, saved.rstd);
    return twi_note(TWI_OP_LAYER_NORM, y, inputs, 3, &saved, sizeof saved);
}
static void twi_layer_norm_backward(twi_node *node, float *dy) {
    const twi_norm_saved *saved = (const twi_norm_saved *)node->saved;
    tw_tensor *x = node->input[0], *weight = node->input[1], *bias = node->input[2];
    ptrdiff_t c = (ptrdiff_t)twi_columns(x);
    float *dweight = weight && weight->requires_grad ? twi_grad_sum(weight) : NULL, *dbias = bias && bias->requires_grad ? twi_grad_sum(bias) : NULL;
    twi_slot slot = twi_open_slot(x);
    if (twi_computes(x->tw))
        twb_layer_norm_backward(&x->tw->cpu, (ptrdiff_t)twi_rows(x), c, twi_f32(x), c, dy, c, weight ? twi_f32(weight) : NULL, saved->mean, saved->rstd,
                                slot.data, c, slot.accumulate, dweight, dbias);
    twi_close_slot(&slot);
}

TWDEF tw_tensor *tw_rms_norm_op(tw_tensor *x, tw_tensor *weight, float eps) {
    twi_norm_saved saved;
    tw_tensor *y, *inputs[2];
    size_t rows;
    ptrdiff_t c;
    if (!twi_norm_operands(&x, weight, NULL, "rms norm")) return NULL;
    inputs[0] = x; inputs[1] = weight;
    rows = (size_t)twi_rows(x);
    c = (ptrdiff_t)twi_columns(x);
    memset(&saved, 0, sizeof saved);
    y = twi_new_like(x);
    saved.rstd = (float *)twi_step_alloc(x->tw, rows, sizeof(float));
    if (!y || !saved.rstd) return NULL;
    if (twi_computes(x->tw))
        twb_rms_norm(&x->tw->cpu, (ptrdiff_t)rows, c, twi_f32(x), c, weight ? twi_f32(weight) : NULL, eps, twi_f32(y), c, saved.rstd);
    return twi_note(TWI_OP_RMS_NORM, y, inputs, 2, &saved, sizeof saved);
}
static void twi_rms_norm_backward(twi_node *node, float *dy) {
    const twi_norm_saved *saved = (const twi_norm_saved *)node->saved;
    tw_tensor *x = node->input[0], *weight = node->input[1];
    ptrdiff_t c = (ptrdiff_t)twi_columns(x);
    float *dweight = weight && weight->requires_grad ? twi_grad_sum(weight) : NULL;
    twi_slot slot = twi_open_slot(x);
    if (twi_computes(x->tw))
        twb_rms_norm_backward(&x->tw->cpu, (ptrdiff_t)twi_rows(x), c, twi_f32(x), c, dy, c, weight ? twi_f32(weight) : NULL, saved->rstd,
                              slot.data, c, slot.accumulate, dweight);
    twi_close_slot(&slot);
}

/* -- looking rows up -------------------------------------------------------------------------------------------- */

/* padding: the row that gets no gradient, as PyTorch's padding_idx; -1: none. */
typedef struct twi_embedding_saved { const tw_tensor *ids; int32_t padding; } twi_embedding_saved;

static tw_tensor *twi_embedding_padded(tw_tensor *table, const tw_tensor *ids, int32_t padding) {
    twi_embedding_saved saved;
    tw_tensor *y;
    int64_t shape[TW_MAX_DIMS + 1];
    if (!table || !twi_is_i32(ids, table->tw, "embedding")) return NULL;
    if (table->rank != 2 || !tw_is_contiguous(table) || table->dtype > TW_BF16 || ids->rank >= TW_MAX_DIMS) {
        twi_fail(table->tw, TW_E_SHAPE, "embedding %s: the table is %s, not rows x columns", table->name, TWI_SHAPE(table));
        return NULL;
    }
    if (!twi_ids_in_range(ids, table->shape[0], 0, table->name[0] ? table->name : "embedding")) return NULL;
    memcpy(shape, ids->shape, (size_t)ids->rank * sizeof *shape);
    shape[ids->rank] = table->shape[1];
    saved.ids = ids;
    saved.padding = padding;
    y = twi_new(table->tw, TW_F32, ids->rank + 1, shape);
    if (!y) return NULL;
    if (twi_computes(table->tw))
        twb_embedding(&table->tw->cpu, (ptrdiff_t)tw_count(ids), (ptrdiff_t)table->shape[1], (const int32_t *)ids->data, table->data, (twb_type)table->dtype,
                      (ptrdiff_t)table->shape[1], twi_f32(y), (ptrdiff_t)table->shape[1], false);
    return twi_note(TWI_OP_EMBEDDING, y, &table, 1, &saved, sizeof saved);
}
TWDEF tw_tensor *tw_embedding_op(tw_tensor *table, const tw_tensor *ids) { return twi_embedding_padded(table, ids, -1); }
static void twi_embedding_backward(twi_node *node, float *dy) {
    tw_tensor *table = node->input[0];
    const twi_embedding_saved *saved = (const twi_embedding_saved *)node->saved;
    const int32_t *id = (const int32_t *)saved->ids->data;
    float *sum = twi_grad_sum(table);
    ptrdiff_t c = (ptrdiff_t)table->shape[1], n = (ptrdiff_t)tw_count(saved->ids), first, end;
    if (!sum || !twi_computes(table->tw)) return;
    for (first = 0; first < n; first = end) {                   /* runs of ids that are no padding */
        while (first < n && id[first] == saved->padding) first++;
        for (end = first; end < n && id[end] != saved->padding; end++) continue;
        if (end > first) twb_embedding_backward(&table->tw->cpu, end - first, c, id + first, dy + first * c, c, sum + table->offset, c);
    }
}

/* x[..., index[...]]: one number of each row */
TWDEF tw_tensor *tw_select(tw_tensor *x, const tw_tensor *index) {
    tw_tensor *y;
    const tw_tensor *saved = index;
    int64_t i, rows, columns;
    x = twi_row_operand(x, "select");
    if (!x || !twi_is_i32(index, x->tw, "select")) return NULL;
    rows = twi_rows(x);
    columns = twi_columns(x);
    if (tw_count(index) != rows) { twi_fail(x->tw, TW_E_SHAPE, "select: %s has not one index a row of %s", TWI_SHAPE(index), TWI_SHAPE(x)); return NULL; }
    if (!twi_ids_in_range(index, columns, 0, "select")) return NULL;
    y = twi_new(x->tw, TW_F32, x->rank - 1, x->shape);
    if (!y) return NULL;
    if (twi_computes(x->tw)) for (i = 0; i < rows; i++) twi_f32(y)[i] = twi_f32(x)[i * columns + ((const int32_t *)index->data)[i]];
    return twi_note(TWI_OP_SELECT, y, &x, 1, &saved, sizeof saved);
}
static void twi_select_backward(twi_node *node, float *dy) {
    tw_tensor *x = node->input[0];
    const int32_t *index = (const int32_t *)(*(const tw_tensor **)node->saved)->data;
    float *sum;
    twi_slot slot = twi_open_slot(x);
    int64_t i, rows = twi_rows(x), columns = twi_columns(x);
    sum = slot.data;
    if (sum && twi_computes(x->tw)) {
        if (!slot.accumulate) twb_fill(&x->tw->cpu, (ptrdiff_t)tw_count(x), 0, sum);
        for (i = 0; i < rows; i++) sum[i * columns + index[i]] += dy[i];
    }
    twi_close_slot(&slot);
}

/* -- dropout (Srivastava et al. 2014): the mask is never stored, the backward pass draws it again -------------------- */

typedef struct twi_dropout_saved { float p; uint64_t stream; } twi_dropout_saved;

TWDEF tw_tensor *tw_dropout(tw_tensor *x, float p) {
    twi_dropout_saved saved;
    tw_tensor *y;
    if (!x || !x->tw->training || !(p > 0)) return x;
    if (p >= 1) { twi_fail(x->tw, TW_E_RANGE, "dropout: a probability of %g leaves nothing", (double)p); return NULL; }
    x = twi_contiguous(x);
    if (!twi_is_f32(x, "dropout")) return NULL;
    saved.p = p;
    saved.stream = twi_next_stream(x->tw);
    y = twi_new_like(x);
    if (!y) return NULL;
    if (twi_computes(x->tw)) twb_dropout(&x->tw->cpu, (ptrdiff_t)tw_count(x), twi_f32(x), twi_f32(y), p, saved.stream, 0);
    return twi_note(TWI_OP_DROPOUT, y, &x, 1, &saved, sizeof saved);
}
static void twi_dropout_backward(twi_node *node, float *dy) {
    const twi_dropout_saved *saved = (const twi_dropout_saved *)node->saved;
    tw_tensor *x = node->input[0];
    twi_slot slot = twi_open_slot(x);
    if (slot.data && twi_computes(x->tw)) {
        twb_dropout(&x->tw->cpu, (ptrdiff_t)tw_count(x), dy, slot.accumulate ? dy : slot.data, saved->p, saved->stream, 0);
        if (slot.accumulate) twi_slot_add(&slot, dy);
    }
    twi_close_slot(&slot);
}

/* -- attention ---------------------------------------------------------------------------------------------------------- */

/* One byte a key instead of an I32: what the kernel reads. */
static unsigned char *twi_mask_bytes(tw_context *tw, const tw_tensor *mask) {
    int64_t i, n = tw_count(mask);
    unsigned char *bytes = (unsigned char *)twi_step_alloc(tw, (size_t)n, 1);
    if (bytes && twi_computes(tw)) for (i = 0; i < n; i++) bytes[i] = ((const int32_t *)mask->data)[i] != 0;
    return bytes;
}

/* q, k and v are read where they are, as long as a head's channels lie together. */
static tw_tensor *twi_head_operand(tw_tensor *t) {
    if (!twi_is_f32(t, "attention")) return NULL;
    if (t->rank == 4 && (t->stride[3] == 1 || t->shape[3] == 1)) return t;
    return twi_contiguous(t);
}

TWDEF tw_tensor *tw_attention(tw_tensor *q, tw_tensor *k, tw_tensor *v, const tw_attention_desc *how) {
    twb_attention_args a;
    tw_tensor *y, *inputs[4];
    tw_context *tw;
    void *scratch;
    q = twi_head_operand(q);
    k = twi_head_operand(k);
    v = twi_head_operand(v);
    if (!q || !k || !v) return NULL;
    tw = q->tw;
    if (q->rank != 4 || k->rank != 4 || v->rank != 4 || k->shape[0] != q->shape[0] || !twi_same_shape(k, v) || k->shape[3] != q->shape[3] ||
        k->shape[2] < 1 || q->shape[2] % k->shape[2] != 0 || q->shape[3] < 1) {
        twi_fail(tw, TW_E_SHAPE, "attention: q %s, k %s and v %s do not fit together", TWI_SHAPE(q), TWI_SHAPE(k), TWI_SHAPE(v));
        return NULL;
    }
    memset(&a, 0, sizeof a);
    a.batch = (ptrdiff_t)q->shape[0]; a.tq = (ptrdiff_t)q->shape[1]; a.heads = (ptrdiff_t)q->shape[2]; a.head_dim = (ptrdiff_t)q->shape[3];
    a.tk = (ptrdiff_t)k->shape[1]; a.kv_heads = (ptrdiff_t)k->shape[2];
    a.q = twi_f32(q); a.k = twi_f32(k); a.v = twi_f32(v);
    a.q_batch = (ptrdiff_t)q->stride[0]; a.q_row = (ptrdiff_t)q->stride[1]; a.q_head = (ptrdiff_t)q->stride[2];
    a.k_batch = (ptrdiff_t)k->stride[0]; a.k_row = (ptrdiff_t)k->stride[1]; a.k_head = (ptrdiff_t)k->stride[2];
    a.v_batch = (ptrdiff_t)v->stride[0]; a.v_row = (ptrdiff_t)v->stride[1]; a.v_head = (ptrdiff_t)v->stride[2];
    a.scale = how && how->scale != 0 ? how->scale : 1.0f / sqrtf((float)q->shape[3]);
    y = twi_new_like(q);
    if (!y) return NULL;
    a.out = twi_f32(y);
    a.out_batch = (ptrdiff_t)y->stride[0]; a.out_row = (ptrdiff_t)y->stride[1]; a.out_head = (ptrdiff_t)y->stride[2];
    inputs[0] = q; inputs[1] = k; inputs[2] = v; inputs[3] = how ? how->bias : NULL;
    if (how) {
        const tw_tensor *mask = how->mask, *key_mask = how->key_mask, *bias = how->bias, *prefix = how->prefix;
        a.causal = how->causal;
        a.query_start = (ptrdiff_t)how->query_start;
        if (prefix) {
            if (!twi_is_i32(prefix, tw, "attention")) return NULL;
            if (prefix->rank != 1 || (prefix->shape[0] != 1 && prefix->shape[0] != q->shape[0])) {
                twi_fail(tw, TW_E_SHAPE, "attention: prefixes of shape %s are not one for each of %lld rows", TWI_SHAPE(prefix), (long long)q->shape[0]);
                return NULL;
            }
            a.prefix = (const int32_t *)prefix->data;
            a.prefix_batch = prefix->shape[0] == 1 ? 0 : 1;
        }
        if (key_mask) {
            if (!twi_is_i32(key_mask, tw, "attention")) return NULL;
            if (key_mask->rank != 2 || key_mask->shape[0] != q->shape[0] || key_mask->shape[1] != k->shape[1]) {
                twi_fail(tw, TW_E_SHAPE, "attention: a mask of shape %s is not one of %lld x %lld keys", TWI_SHAPE(key_mask), (long long)q->shape[0], (long long)k->shape[1]);
                return NULL;
            }
            a.key_mask = twi_mask_bytes(tw, key_mask);
            if (!a.key_mask) return NULL;
            a.key_mask_batch = a.tk;
        }
        if (mask) {
            if (!twi_is_i32(mask, tw, "attention")) return NULL;
            if (mask->rank != 3 || (mask->shape[0] != 1 && mask->shape[0] != q->shape[0]) || mask->shape[1] != q->shape[1] || mask->shape[2] != k->shape[1]) {
                twi_fail(tw, TW_E_SHAPE, "attention: a mask of shape %s does not fit %lld queries and %lld keys", TWI_SHAPE(mask), (long long)q->shape[1], (long long)k->shape[1]);
                return NULL;
            }
            a.mask = twi_mask_bytes(tw, mask);
            if (!a.mask) return NULL;
            a.mask_batch = mask->shape[0] == 1 ? 0 : a.tq * a.tk;
            a.mask_row = a.tk;
        }
        if (bias) {
            inputs[3] = twi_contiguous(how->bias);
            bias = inputs[3];
            if (!bias || bias->rank != 4 || (bias->shape[0] != 1 && bias->shape[0] != q->shape[0]) || (bias->shape[1] != 1 && bias->shape[1] != q->shape[2]) ||
                bias->shape[2] != q->shape[1] || bias->shape[3] != k->shape[1]) {
                twi_fail(tw, TW_E_SHAPE, "attention: a bias of shape %s does not fit", bias ? TWI_SHAPE(bias) : "?");
                return NULL;
            }
            a.bias = twi_f32(bias);
            a.bias_batch = bias->shape[0] == 1 ? 0 : (ptrdiff_t)bias->stride[0];
            a.bias_head = bias->shape[1] == 1 ? 0 : (ptrdiff_t)bias->stride[1];
            a.bias_row = a.tk;
        }
        if (how->distance_bias) {                           /* each row of it is the row before, one place to the left */
            inputs[3] = twi_contiguous(how->distance_bias);
            bias = inputs[3];
            if (how->bias || !bias || bias->rank != 2 || (bias->shape[0] != 1 && bias->shape[0] != q->shape[2]) || bias->shape[1] != q->shape[1] + k->shape[1] - 1 ||
                !twi_is_f32(bias, "attention")) {
                twi_fail(tw, TW_E_SHAPE, "attention: a bias by distance of shape %s does not fit %lld queries and %lld keys", bias ? TWI_SHAPE(bias) : "?",
                         (long long)q->shape[1], (long long)k->shape[1]);
                return NULL;
            }
            a.bias = tw->planning ? twi_f32(bias) : twi_f32(bias) + (a.tq - 1);
            a.bias_batch = 0;
            a.bias_head = bias->shape[0] == 1 ? 0 : (ptrdiff_t)bias->shape[1];
            a.bias_row = -1;
        }
        if (tw->training && how->dropout > 0) {
            if (how->dropout >= 1) { twi_fail(tw, TW_E_RANGE, "attention: a dropout of %g leaves nothing", (double)how->dropout); return NULL; }
            a.dropout = how->dropout;
            a.dropout_seed = twi_next_stream(tw);
        }
    }
    if (twi_wants_grad(tw, inputs, 4)) {
        a.lse = (float *)twi_step_alloc(tw, (size_t)(q->shape[0] * q->shape[1] * q->shape[2]), sizeof(float));
        if (!a.lse) return NULL;
    }
    scratch = twi_scratch(tw, twb_attention_scratch(&tw->cpu, &a));
    if (!scratch) return NULL;
    if (twi_computes(tw)) twb_attention(&tw->cpu, &a, scratch);
    return twi_note(TWI_OP_ATTENTION, y, inputs, 4, &a, sizeof a);
}

/* The gradient of a view with its channels together is written straight into the gradient of what it shows, so the
   gradients of q, k and v meet in that of the one product that made them. */
static void twi_attention_backward(twi_node *node, float *dy) {
    twb_attention_args *a = (twb_attention_args *)node->saved;
    tw_tensor *y = node->output, *bias = node->input[3];
    tw_context *tw = y->tw;
    twb_attention_grads g;
    float *place[3], *unused[3];
    void *scratch;
    int i;
    memset(&g, 0, sizeof g);
    memset(unused, 0, sizeof unused);
    for (i = 0; i < 3; i++) {
        tw_tensor *t = node->input[i];
        if (t->requires_grad) {
            place[i] = twi_grad_sum(t);
            if (place[i] && !tw->planning) place[i] += t->offset;
        } else {                                           /* nobody wants it: somewhere to write it all the same */
            size_t span = 1;
            int d;
            for (d = 0; d < 4; d++) span += (size_t)((t->shape[d] - 1) * t->stride[d]);
            place[i] = unused[i] = (float *)twi_step_alloc(tw, span, sizeof(float));
            if (unused[i] && twi_computes(tw)) twb_fill(&tw->cpu, (ptrdiff_t)span, 0, unused[i]);
        }
        if (!place[i]) return;
    }
    g.d_out = dy;
    g.d_out_batch = a->out_batch; g.d_out_head = a->out_head; g.d_out_row = a->out_row;
    g.dq = place[0]; g.dk = place[1]; g.dv = place[2];
    g.dq_batch = a->q_batch; g.dq_head = a->q_head; g.dq_row = a->q_row;
    g.dk_batch = a->k_batch; g.dk_head = a->k_head; g.dk_row = a->k_row;
    g.dv_batch = a->v_batch; g.dv_head = a->v_head; g.dv_row = a->v_row;
    g.accumulate = true;
    if (bias && bias->requires_grad) {
        g.d_bias = twi_grad_sum(bias);
        if (g.d_bias && !tw->planning) g.d_bias += bias->offset + (a->bias_row < 0 ? a->tq - 1 : 0);
    }
    scratch = twi_scratch(tw, twb_attention_backward_scratch(&tw->cpu, a, &g));
    if (!scratch) return;
    if (twi_computes(tw)) twb_attention_backward(&tw->cpu, a, &g, scratch);
    for (i = 0; i < 3; i++) if (unused[i]) {
        size_t span = 1;
        int d;
        for (d = 0; d < 4; d++) span += (size_t)((node->input[i]->shape[d] - 1) * node->input[i]->stride[d]);
        twi_step_free(tw, unused[i], span, sizeof(float));
    }
}

typedef struct twi_rope_saved { const tw_tensor *positions; int64_t rotary_dim; bool interleaved; float theta; } twi_rope_saved;

static void twi_turn(const tw_tensor *x, const twi_rope_saved *r, float *data, bool back) {
    twb_rope(&x->tw->cpu, (ptrdiff_t)x->shape[0], (ptrdiff_t)x->shape[1], (ptrdiff_t)x->shape[2], (ptrdiff_t)x->shape[3], (ptrdiff_t)r->rotary_dim,
             r->interleaved, (const int32_t *)r->positions->data, r->theta, data,
             (ptrdiff_t)(x->shape[1] * x->shape[2] * x->shape[3]), (ptrdiff_t)(x->shape[2] * x->shape[3]), (ptrdiff_t)x->shape[3], back);
}
TWDEF tw_tensor *tw_rope(tw_tensor *x, const tw_tensor *positions, int64_t rotary_dim, bool interleaved, float theta) {
    twi_rope_saved saved;
    tw_tensor *y;
    if (!twi_is_f32(x, "rope") || !twi_is_i32(positions, x->tw, "rope")) return NULL;
    if (x->rank != 4 || rotary_dim < 0 || rotary_dim % 2 != 0 || rotary_dim > x->shape[3] || tw_count(positions) != x->shape[0] * x->shape[1] || !(theta > 0)) {
        twi_fail(x->tw, TW_E_SHAPE, "rope: x %s, positions %s and %lld channels to turn do not fit", TWI_SHAPE(x), TWI_SHAPE(positions), (long long)rotary_dim);
        return NULL;
    }
    saved.positions = positions; saved.rotary_dim = rotary_dim; saved.interleaved = interleaved; saved.theta = theta;
    y = twi_new_like(x);
    if (!y) return NULL;
    if (twi_computes(x->tw)) { tw_read(x, twi_f32(y), tw_count(y)); twi_turn(y, &saved, twi_f32(y), false); }
    return twi_note(TWI_OP_ROPE, y, &x, 1, &saved, sizeof saved);
}
static void twi_rope_backward(twi_node *node, float *dy) {
    if (twi_computes(node->output->tw)) twi_turn(node->output, (const twi_rope_saved *)node->saved, dy, true);
    twi_pass_on(node, node->input[0], dy);
}

/* -- the same numbers in other places ---------------------------------------------------------------------------------- */

TWDEF tw_tensor *tw_expand(tw_tensor *x, tw_shape shape) {
    tw_tensor *y;
    twi_broadcast w;
    tw_tensor like;
    if (!twi_is_f32(x, "expand")) return NULL;
    if (shape.rank == x->rank && memcmp(shape.dim, x->shape, (size_t)x->rank * sizeof *x->shape) == 0) return x;
    memset(&like, 0, sizeof like);
    like.tw = x->tw;
    like.rank = shape.rank;
    memcpy(like.shape, shape.dim, sizeof like.shape);
    if (twi_shape_count(shape.rank, shape.dim) < 0 || !twi_broadcast_shapes(x, &like, &w, "expand")) return NULL;
    if (w.rank != shape.rank || memcmp(w.shape, shape.dim, (size_t)w.rank * sizeof *w.shape) != 0) {
        twi_fail(x->tw, TW_E_SHAPE, "expand: %s cannot be repeated to %s", TWI_SHAPE(x), TWI_SHAPE(&like));
        return NULL;
    }
    y = twi_new(x->tw, TW_F32, w.rank, w.shape);
    if (!y) return NULL;
    if (twi_computes(x->tw)) {
        int64_t row[TW_MAX_DIMS];
        memcpy(row, y->stride, sizeof row);
        twi_copy_strided(x->tw, w.rank, w.shape, twi_f32(y), row, twi_f32(x), w.stride_a);
    }
    return twi_note(TWI_OP_EXPAND, y, &x, 1, NULL, 0);
}
static void twi_expand_backward(twi_node *node, float *dy) {
    twi_slot slot = twi_open_slot(node->input[0]);
    twi_reduce_into(&slot, node->output->rank, node->output->shape, dy);
    twi_close_slot(&slot);
}

/* Copies `part` into, or out of, its place along an axis of a row-major whole. */
static void twi_part_rows(float *whole, int64_t whole_row, int64_t start, float *part, int64_t part_row, int64_t outer, bool out) {
    int64_t o;
    for (o = 0; o < outer; o++) {
        float *w = whole + o * whole_row + start, *p = part + o * part_row;
        memcpy(out ? p : w, out ? w : p, (size_t)part_row * sizeof *w);
    }
}
TWDEF tw_tensor *tw_concat(tw_tensor *const *list, int count, int axis) {
    tw_tensor *y, **inputs;
    int64_t shape[TW_MAX_DIMS], start = 0;
    tw_context *tw;
    int i, d, saved;
    if (!list || count < 1 || !list[0] || !twi_axis(list[0], &axis, "concat")) return NULL;
    tw = list[0]->tw;
    inputs = (tw_tensor **)twi_step_record(tw, (size_t)count * sizeof *inputs);
    if (!inputs) return NULL;
    memcpy(shape, list[0]->shape, sizeof shape);
    shape[axis] = 0;
    for (i = 0; i < count; i++) {
        inputs[i] = twi_contiguous(list[i]);
        if (!twi_is_f32(inputs[i], "concat")) return NULL;
        for (d = 0; d < list[0]->rank; d++)
            if (inputs[i]->rank != list[0]->rank || (d != axis && inputs[i]->shape[d] != shape[d])) {
                twi_fail(tw, TW_E_SHAPE, "concat: %s does not continue %s along axis %d", TWI_SHAPE(inputs[i]), TWI_SHAPE(list[0]), axis);
                return NULL;
            }
        shape[axis] += inputs[i]->shape[axis];
    }
    y = twi_new(tw, TW_F32, list[0]->rank, shape);
    if (!y) return NULL;
    if (twi_computes(tw)) {
        twi_axis_split s = twi_split_at(y, axis);
        for (i = 0; i < count; i++) {
            int64_t row = inputs[i]->shape[axis] * s.inner;
            twi_part_rows(twi_f32(y), s.length * s.inner, start, twi_f32(inputs[i]), row, s.outer, false);
            start += row;
        }
    }
    saved = axis;
    return twi_note(TWI_OP_CONCAT, y, inputs, count, &saved, sizeof saved);
}
static void twi_concat_backward(twi_node *node, float *dy) {
    tw_tensor *y = node->output;
    int axis = *(const int *)node->saved, i;
    twi_axis_split s = twi_split_at(y, axis);
    int64_t start = 0;
    for (i = 0; i < node->inputs; i++) {
        tw_tensor *x = node->input[i];
        int64_t row = x->shape[axis] * s.inner;
        if (x->requires_grad) {
            float *part = (float *)twi_step_alloc(y->tw, (size_t)tw_count(x), sizeof(float));
            twi_slot slot = twi_open_slot(x);
            if (!part) return;
            if (twi_computes(y->tw)) twi_part_rows(dy, s.length * s.inner, start, part, row, s.outer, true);
            twi_slot_add(&slot, part);
            twi_close_slot(&slot);
            twi_step_free(y->tw, part, (size_t)tw_count(x), sizeof(float));
        }
        start += row;
    }
}

/* -- losses ---------------------------------------------------------------------------------------------------------------- */

TWDEF tw_tensor *tw_mse_loss(tw_tensor *x, tw_tensor *target) { return tw_mean(tw_square(tw_sub(x, target))); }

enum { TWI_IGNORED = -100 };                                /* the label that does not count, as everywhere in Hugging Face */

/* losses: one a row; counted: how many labels count */
typedef struct twi_ce_saved {
    const tw_tensor *labels;
    float    smoothing, seed;
    int64_t  counted;
    float   *d_hidden;                                      /* the fused head: computed in the forward pass, if the seed was known */
} twi_ce_saved;

static bool twi_labels_fit(const tw_tensor *labels, tw_context *tw, int64_t rows, int64_t classes, float smoothing, twi_ce_saved *saved) {
    int64_t i;
    memset(saved, 0, sizeof *saved);
    if (!twi_is_i32(labels, tw, "cross-entropy")) return false;
    if (tw_count(labels) != rows) {
        twi_fail(tw, TW_E_SHAPE, "cross-entropy: %lld labels for %lld rows", (long long)tw_count(labels), (long long)rows);
        return false;
    }
    if (!(smoothing >= 0 && smoothing < 1)) { twi_fail(tw, TW_E_RANGE, "cross-entropy: label smoothing %g is not in [0, 1)", (double)smoothing); return false; }
    if (!twi_ids_in_range(labels, classes, TWI_IGNORED, "label")) return false;
    saved->labels = labels;
    saved->smoothing = smoothing;
    if (twi_computes(tw)) for (i = 0; i < rows; i++) saved->counted += ((const int32_t *)labels->data)[i] != TWI_IGNORED;
    else saved->counted = rows;
    tw->counted = saved->counted;
    return true;
}

/* the mean over the counted rows; NaN where there is none, as 0/0 is in PyTorch */
static void twi_mean_loss(tw_context *tw, const float *losses, int64_t rows, int64_t counted, float *mean) {
    if (!twi_computes(tw)) return;
    *mean = counted ? (float)(twb_sum(&tw->cpu, (ptrdiff_t)rows, losses) / (double)counted) : twb_bits_float(0x7FC00000u);
}

TWDEF tw_tensor *tw_cross_entropy(tw_tensor *logits, const tw_tensor *labels, float label_smoothing) {
    twi_ce_saved saved;
    tw_tensor *y;
    float *losses;
    int64_t rows;
    ptrdiff_t classes;
    logits = twi_row_operand(logits, "cross-entropy");
    if (!logits) return NULL;
    rows = twi_rows(logits);
    classes = (ptrdiff_t)twi_columns(logits);
    if (!twi_labels_fit(labels, logits->tw, rows, (int64_t)classes, label_smoothing, &saved)) return NULL;
    y = twi_new(logits->tw, TW_F32, 0, NULL);
    losses = (float *)twi_step_alloc(logits->tw, (size_t)rows, sizeof(float));
    if (!y || !losses) return NULL;
    if (twi_computes(logits->tw))
        twb_cross_entropy(&logits->tw->cpu, (ptrdiff_t)rows, classes, twi_f32(logits), classes, (const int32_t *)labels->data, TWI_IGNORED, label_smoothing, losses, NULL, 0, 0);
    twi_mean_loss(logits->tw, losses, rows, saved.counted, twi_f32(y));
    return twi_note(TWI_OP_CROSS_ENTROPY, y, &logits, 1, &saved, sizeof saved);
}
static void twi_cross_entropy_backward(twi_node *node, float *dy) {
    const twi_ce_saved *saved = (const twi_ce_saved *)node->saved;
    tw_tensor *logits = node->input[0];
    tw_context *tw = logits->tw;
    ptrdiff_t rows = (ptrdiff_t)twi_rows(logits), classes = (ptrdiff_t)twi_columns(logits);
    float *losses, *g;
    twi_slot slot = twi_open_slot(logits);
    if (!slot.data) return;
    losses = (float *)twi_step_alloc(tw, (size_t)rows, sizeof(float));
    g = slot.accumulate ? (float *)twi_step_alloc(tw, (size_t)tw_count(logits), sizeof(float)) : slot.data;
    if (!losses || !g) return;
    if (twi_computes(tw)) {
        twb_cross_entropy(&tw->cpu, rows, classes, twi_f32(logits), classes, (const int32_t *)saved->labels->data, TWI_IGNORED, saved->smoothing,
                          losses, g, classes, saved->counted ? *dy / (float)saved->counted : 0.0f);
        if (slot.accumulate) twi_slot_add(&slot, g);
    }
    if (slot.accumulate) twi_step_free(tw, g, (size_t)tw_count(logits), sizeof(float));
    twi_step_free(tw, losses, (size_t)rows, sizeof(float));
    twi_close_slot(&slot);
}

/* The head and its loss in one.  When it is known what gradient the loss will get (the trainable model knows: loss_seed),
   each block of logits is turned into its gradient and used up while it is warm, in the forward pass: three products in
   all.  Otherwise the forward pass keeps nothing and the backward pass computes the logits again. */
static bool twi_head_loss(tw_context *tw, tw_tensor *hidden, tw_tensor *weight, const twi_ce_saved *saved, float *losses, float *d_hidden, float *d_weight, float seed) {
    twb_linear_cross_entropy_args a;
    void *scratch;
    memset(&a, 0, sizeof a);
    a.rows = (ptrdiff_t)twi_rows(hidden); a.hidden_size = (ptrdiff_t)twi_columns(hidden); a.vocab = (ptrdiff_t)weight->shape[0];
    a.hidden = twi_f32(hidden); a.ld_hidden = a.hidden_size;
    a.weight = weight->data; a.weight_type = (twb_type)weight->dtype; a.ld_weight = a.hidden_size;
    a.labels = (const int32_t *)saved->labels->data; a.ignore_index = TWI_IGNORED; a.label_smoothing = saved->smoothing;
    a.losses = losses;
    a.d_hidden = d_hidden; a.ld_d_hidden = a.hidden_size;
    a.d_weight = d_weight; a.ld_d_weight = a.hidden_size;
    a.scale = saved->counted ? seed / (float)saved->counted : 0.0f;
    scratch = twi_scratch(tw, twb_linear_cross_entropy_scratch(&tw->cpu, &a));
    if (scratch && twi_computes(tw)) twb_linear_cross_entropy(&tw->cpu, &a, scratch);
    return scratch != NULL;
}
TWDEF tw_tensor *tw_linear_cross_entropy(tw_tensor *hidden, tw_tensor *weight, const tw_tensor *labels, float label_smoothing) {
    twi_ce_saved saved;
    tw_tensor *y, *inputs[2];
    tw_context *tw;
    float *losses, *d_weight = NULL;
    int64_t rows;
    hidden = twi_row_operand(hidden, "cross-entropy");
    if (!hidden || !weight) return NULL;
    tw = hidden->tw;
    if (weight->rank != 2 || weight->shape[1] != twi_columns(hidden) || !tw_is_contiguous(weight) || weight->dtype > TW_BF16) {
        twi_fail(tw, TW_E_SHAPE, "head %s: weight %s does not fit hidden states %s", weight->name, TWI_SHAPE(weight), TWI_SHAPE(hidden));
        return NULL;
    }
    rows = twi_rows(hidden);
    if (!twi_labels_fit(labels, tw, rows, weight->shape[0], label_smoothing, &saved)) return NULL;
    y = twi_new(tw, TW_F32, 0, NULL);
    losses = (float *)twi_step_alloc(tw, (size_t)rows, sizeof(float));
    if (!y || !losses) return NULL;
    inputs[0] = hidden;
    inputs[1] = weight;
    if (tw->loss_seed != TWI_SEED_UNKNOWN && twi_wants_grad(tw, inputs, 2)) {
        saved.seed = tw->loss_seed == TWI_SEED_ITEMS ? (float)saved.counted : 1.0f;
        saved.d_hidden = (float *)twi_step_alloc(tw, (size_t)tw_count(hidden), sizeof(float));
        if (weight->requires_grad) d_weight = twi_grad_sum(weight);
        if (!saved.d_hidden || (weight->requires_grad && !d_weight)) return NULL;
    }
    if (!twi_head_loss(tw, hidden, weight, &saved, losses, saved.d_hidden, d_weight, saved.seed)) return NULL;
    twi_mean_loss(tw, losses, rows, saved.counted, twi_f32(y));
    return twi_note(TWI_OP_LINEAR_CROSS_ENTROPY, y, inputs, 2, &saved, sizeof saved);
}
static void twi_linear_cross_entropy_backward(twi_node *node, float *dy) {
    const twi_ce_saved *saved = (const twi_ce_saved *)node->saved;
    tw_tensor *hidden = node->input[0], *weight = node->input[1];
    tw_context *tw = hidden->tw;
    size_t count = (size_t)tw_count(hidden), rows = (size_t)twi_rows(hidden);
    float *d_hidden = saved->d_hidden;
    twi_slot slot;
    if (!d_hidden) {
        float *losses = (float *)twi_step_alloc(tw, rows, sizeof(float)), *d_weight = NULL;
        d_hidden = (float *)twi_step_alloc(tw, count, sizeof(float));
        if (weight->requires_grad) d_weight = twi_grad_sum(weight);
        if (!losses || !d_hidden || (weight->requires_grad && !d_weight)) return;
        if (!twi_head_loss(tw, hidden, weight, saved, losses, d_hidden, d_weight, tw->planning ? 1.0f : *dy)) return;
        twi_step_free(tw, losses, rows, sizeof(float));
    } else if (twi_computes(tw) && *dy != saved->seed) {
        twi_fail(tw, TW_E_ARGUMENT, "backward: the loss got gradient %g where %g was announced", (double)*dy, (double)saved->seed);
        return;
    }
    slot = twi_open_slot(hidden);
    twi_slot_add(&slot, d_hidden);
    twi_close_slot(&slot);
    twi_step_free(tw, d_hidden, count, sizeof(float));
}

/* mean of max(x, 0) - x t + log(1 + exp(-|x|)): binary cross-entropy of sigmoid(x) against t, without overflow */
TWDEF tw_tensor *tw_bce_with_logits(tw_tensor *logits, tw_tensor *target) {
    tw_tensor *y, *inputs[2];
    float *losses;
    int64_t i, n;
    logits = twi_contiguous(logits);
    target = twi_contiguous(target);
    if (!twi_is_f32(logits, "binary cross-entropy") || !twi_is_f32(target, "binary cross-entropy")) return NULL;
    n = tw_count(logits);
    if (tw_count(target) != n || n == 0) { twi_fail(logits->tw, TW_E_SHAPE, "binary cross-entropy: %s against targets %s", TWI_SHAPE(logits), TWI_SHAPE(target)); return NULL; }
    y = twi_new(logits->tw, TW_F32, 0, NULL);
    losses = (float *)twi_step_alloc(logits->tw, (size_t)n, sizeof(float));
    if (!y || !losses) return NULL;
    if (twi_computes(logits->tw))
        for (i = 0; i < n; i++) {
            float x = twi_f32(logits)[i], t = twi_f32(target)[i];
            losses[i] = (x > 0 ? x : 0) - x * t + twb_log1(1 + twb_exp1(x > 0 ? -x : x));
        }
    twi_mean_loss(logits->tw, losses, n, n, twi_f32(y));
    inputs[0] = logits;
    inputs[1] = target;
    return twi_note(TWI_OP_BCE, y, inputs, 2, NULL, 0);
}
static void twi_bce_backward(twi_node *node, float *dy) {
    tw_tensor *logits = node->input[0], *target = node->input[1];
    int64_t i, n = tw_count(logits);
    float scale = node->output->tw->planning ? 0.0f : *dy / (float)n;
    twi_slot slot = twi_open_slot(logits);
    if (slot.data && twi_computes(logits->tw))
        for (i = 0; i < n; i++) {
            float g = scale * (1 / (1 + twb_exp1(-twi_f32(logits)[i])) - twi_f32(target)[i]);
            slot.data[i] = slot.accumulate ? slot.data[i] + g : g;
        }
    twi_close_slot(&slot);
    slot = twi_open_slot(target);
    if (slot.data && twi_computes(logits->tw))
        for (i = 0; i < n; i++) slot.data[i] = (slot.accumulate ? slot.data[i] : 0.0f) - scale * twi_f32(logits)[i];
    twi_close_slot(&slot);
}

/* -- gradient checkpointing ------------------------------------------------------------------------------------------------- */

typedef struct twi_checkpoint_saved { tw_block_fn fn; void *block; uint64_t draws; bool training; } twi_checkpoint_saved;   /* the mode of the first run, for the second */

TWDEF tw_tensor *tw_checkpoint(tw_context *tw, tw_block_fn fn, void *block, size_t block_bytes, tw_tensor *const *inputs, int count) {
    twi_checkpoint_saved saved;
    tw_tensor *inner, *y = NULL, **held;
    twi_mark mark;
    bool was;
    int i;
    if (tw->no_grad) return fn(block, inputs);
    for (i = 0; i < count; i++) if (!inputs[i]) return NULL;
    saved.fn = fn;
    saved.draws = tw->draws;
    saved.training = tw->training;
    saved.block = twi_step_record(tw, block_bytes);
    held = (tw_tensor **)twi_step_record(tw, (size_t)count * sizeof *held);
    if (!saved.block || !held) return NULL;
    memcpy(saved.block, block, block_bytes);
    /* the result's room comes first, so that all that follows can be rewound; its shape is that of the first input in
       every block there is, and is checked */
    y = twi_new_like(inputs[0]);
    if (!y) return NULL;
    twi_take_mark(tw, &mark);
    was = tw_no_grad(tw, true);
    for (i = 0; i < count; i++) held[i] = inputs[i];
    inner = fn(block, inputs);
    tw_no_grad(tw, was);
    if (inner && !twi_same_shape(inner, y)) { twi_fail(tw, TW_E_SHAPE, "checkpoint: the block makes %s of %s", TWI_SHAPE(inner), TWI_SHAPE(y)); inner = NULL; }
    if (inner && twi_computes(tw)) tw_read(inner, twi_f32(y), tw_count(y));
    twi_rewind(tw, &mark);
    if (!inner) return NULL;
    return twi_note_always(TWI_OP_CHECKPOINT, y, held, count, &saved, sizeof saved);   /* even if no input does, its parameters may want gradients */
}

static void twi_checkpoint_backward(twi_node *node, float *dy) {
    const twi_checkpoint_saved *saved = (const twi_checkpoint_saved *)node->saved;
    tw_tensor *y = node->output, **inputs = (tw_tensor **)twi_step_record(y->tw, (size_t)node->inputs * sizeof *inputs), *again;
    tw_context *tw = y->tw;
    twi_node *tape = tw->tape;
    uint64_t draws = tw->draws;
    twi_seed seed = tw->loss_seed;
    twi_mark mark;
    bool training = tw->training;
    int i;
    if (!inputs) return;
    for (i = 0; i < node->inputs; i++) {                    /* gradients of the inputs outlive the second run: their room comes first */
        bool fresh;
        tw_tensor *base = twi_base(node->input[i]);
        if (base->requires_grad && base->dtype == TW_F32 && !twi_grad_room(base, &fresh)) return;
        inputs[i] = node->input[i];
    }
    twi_take_mark(tw, &mark);
    tw->tape = NULL;
    tw->draws = saved->draws;                               /* the same dropout as the first time */
    tw_no_grad(tw, false);
    tw_training(tw, saved->training);
    again = saved->fn(saved->block, inputs);
    tw_training(tw, training);
    tw_no_grad(tw, true);
    tw->draws = draws;
    if (again && tw->tape) {
        twi_node *inner;
        bool fresh;
        again = twi_base(again);
        if (twi_grad_room(again, &fresh)) {
            again->grad_stale = false;
            if (twi_computes(tw)) memcpy(again->grad, dy, (size_t)tw_count(y) * sizeof(float));
            tw->loss_seed = TWI_SEED_UNKNOWN;
            for (inner = tw->tape; inner && tw->code == TW_OK; inner = inner->previous) twi_run_backward(inner);
            tw->loss_seed = seed;
        }
    }
    tw->tape = tape;
    twi_rewind(tw, &mark);
}

/* -- images: what a ResNet needs --------------------------------------------------------------------------------------------- */

static bool twi_is_image(tw_tensor **x, const char *what) {
    *x = twi_contiguous(*x);
    if (!twi_is_f32(*x, what)) return false;
    if ((*x)->rank == 4) return true;
    twi_fail((*x)->tw, TW_E_SHAPE, "%s: %s is not [batch, channels, height, width]", what, TWI_SHAPE(*x));
    return false;
}

TWDEF tw_tensor *tw_conv2d_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, int64_t stride, int64_t padding, int64_t dilation, int64_t groups) {
    twb_conv2d_args a;
    tw_tensor *y, *inputs[3];
    int64_t shape[4];
    void *scratch;
    if (!twi_is_image(&x, "conv2d") || !weight) return NULL;
    memset(&a, 0, sizeof a);
    a.batch = (ptrdiff_t)x->shape[0]; a.in_channels = (ptrdiff_t)x->shape[1]; a.height = (ptrdiff_t)x->shape[2]; a.width = (ptrdiff_t)x->shape[3];
    if (weight->rank != 4 || weight->dtype != TW_F32 || !tw_is_contiguous(weight) || stride < 1 || stride > 1024 || padding < 0 || padding > 1024 || dilation < 1 || dilation > 1024 ||
        groups < 1 || x->shape[1] % groups != 0 || weight->shape[0] % groups != 0 || weight->shape[1] != x->shape[1] / groups ||
        weight->shape[2] < 1 || weight->shape[3] < 1 || weight->shape[2] > 1024 || weight->shape[3] > 1024 ||
        dilation * (weight->shape[2] - 1) + 1 > x->shape[2] + 2*padding || dilation * (weight->shape[3] - 1) + 1 > x->shape[3] + 2*padding ||
        (bias && tw_count(bias) != weight->shape[0])) {
        twi_fail(x->tw, TW_E_SHAPE, "conv2d %s: image %s and kernel %s do not fit", weight->name, TWI_SHAPE(x), TWI_SHAPE(weight));
        return NULL;
    }
    a.out_channels = (ptrdiff_t)weight->shape[0]; a.kernel_h = (ptrdiff_t)weight->shape[2]; a.kernel_w = (ptrdiff_t)weight->shape[3];
    a.stride_h = a.stride_w = (ptrdiff_t)stride; a.pad_h = a.pad_w = (ptrdiff_t)padding; a.dilation_h = a.dilation_w = (ptrdiff_t)dilation;
    a.groups = (ptrdiff_t)groups;
    shape[0] = x->shape[0]; shape[1] = weight->shape[0]; shape[2] = twb_conv2d_out_height(&a); shape[3] = twb_conv2d_out_width(&a);
    y = twi_new(x->tw, TW_F32, 4, shape);
    scratch = y ? twi_scratch(x->tw, twb_conv2d_scratch(&x->tw->cpu, &a)) : NULL;
    if (!scratch) return NULL;
    if (twi_computes(x->tw)) twb_conv2d(&x->tw->cpu, &a, twi_f32(x), twi_f32(weight), bias ? twi_f32(bias) : NULL, twi_f32(y), scratch);
    inputs[0] = x; inputs[1] = weight; inputs[2] = bias;
    return twi_note(TWI_OP_CONV2D, y, inputs, 3, &a, sizeof a);
}
static void twi_conv2d_backward(twi_node *node, float *dy) {
    const twb_conv2d_args *a = (const twb_conv2d_args *)node->saved;
    tw_tensor *x = node->input[0], *weight = node->input[1], *bias = node->input[2];
    float *dweight = weight->requires_grad ? twi_grad_sum(weight) : NULL, *dbias = bias && bias->requires_grad ? twi_grad_sum(bias) : NULL;
    void *scratch = twi_scratch(x->tw, twb_conv2d_scratch(&x->tw->cpu, a));
    twi_slot slot = twi_open_slot(x);
    if (scratch && twi_computes(x->tw)) twb_conv2d_backward(&x->tw->cpu, a, twi_f32(x), twi_f32(weight), dy, slot.data, slot.accumulate, dweight, dbias, scratch);
    twi_close_slot(&slot);
}

typedef struct twi_pool_saved { twb_pool2d_args args; int32_t *argmax; } twi_pool_saved;

static tw_tensor *twi_pool(tw_tensor *x, int64_t kernel, int64_t stride, int64_t padding, bool largest) {
    twi_pool_saved saved;
    tw_tensor *y;
    int64_t shape[4];
    if (!twi_is_image(&x, "pool2d")) return NULL;
    if (kernel < 1 || stride < 1 || kernel > (1 << 20) || stride > (1 << 20) || padding < 0 || padding > kernel / 2 || kernel > x->shape[2] + 2*padding || kernel > x->shape[3] + 2*padding) {
        twi_fail(x->tw, TW_E_SHAPE, "pool2d: a window of %lld does not fit image %s", (long long)kernel, TWI_SHAPE(x));
        return NULL;
    }
    memset(&saved, 0, sizeof saved);
    saved.args.batch = (ptrdiff_t)x->shape[0]; saved.args.channels = (ptrdiff_t)x->shape[1]; saved.args.height = (ptrdiff_t)x->shape[2]; saved.args.width = (ptrdiff_t)x->shape[3];
    saved.args.kernel_h = saved.args.kernel_w = (ptrdiff_t)kernel; saved.args.stride_h = saved.args.stride_w = (ptrdiff_t)stride;
    saved.args.pad_h = saved.args.pad_w = (ptrdiff_t)padding;
    shape[0] = x->shape[0]; shape[1] = x->shape[1]; shape[2] = twb_pool2d_out_height(&saved.args); shape[3] = twb_pool2d_out_width(&saved.args);
    y = twi_new(x->tw, TW_F32, 4, shape);
    if (!y) return NULL;
    if (largest) {
        saved.argmax = (int32_t *)twi_step_alloc(x->tw, (size_t)tw_count(y), sizeof *saved.argmax);
        if (!saved.argmax) return NULL;
        if (twi_computes(x->tw)) twb_max_pool2d(&x->tw->cpu, &saved.args, twi_f32(x), twi_f32(y), saved.argmax);
    } else if (twi_computes(x->tw)) twb_avg_pool2d(&x->tw->cpu, &saved.args, twi_f32(x), twi_f32(y));
    return twi_note(largest ? TWI_OP_MAX_POOL2D : TWI_OP_AVG_POOL2D, y, &x, 1, &saved, sizeof saved);
}
TWDEF tw_tensor *tw_max_pool2d(tw_tensor *x, int64_t kernel, int64_t stride, int64_t padding) { return twi_pool(x, kernel, stride, padding, true); }
TWDEF tw_tensor *tw_avg_pool2d(tw_tensor *x, int64_t kernel, int64_t stride, int64_t padding) { return twi_pool(x, kernel, stride, padding, false); }
static void twi_max_pool2d_backward(twi_node *node, float *dy) {
    const twi_pool_saved *saved = (const twi_pool_saved *)node->saved;
    twi_slot slot = twi_open_slot(node->input[0]);
    if (slot.data && twi_computes(node->output->tw)) twb_max_pool2d_backward(&node->output->tw->cpu, &saved->args, saved->argmax, dy, slot.data, slot.accumulate);
    twi_close_slot(&slot);
}
static void twi_avg_pool2d_backward(twi_node *node, float *dy) {
    const twi_pool_saved *saved = (const twi_pool_saved *)node->saved;
    twi_slot slot = twi_open_slot(node->input[0]);
    if (slot.data && twi_computes(node->output->tw)) twb_avg_pool2d_backward(&node->output->tw->cpu, &saved->args, dy, slot.data, slot.accumulate);
    twi_close_slot(&slot);
}

TWDEF tw_tensor *tw_batch_norm_op(tw_tensor *x, tw_tensor *weight, tw_tensor *bias, tw_tensor *running_mean, tw_tensor *running_var, float eps, float momentum) {
    twb_batch_norm_args a;
    tw_tensor *y, *inputs[3], *per_channel[4];
    int i;
    if (!twi_is_image(&x, "batch norm")) return NULL;
    per_channel[0] = weight; per_channel[1] = bias; per_channel[2] = running_mean; per_channel[3] = running_var;
    for (i = 0; i < 4; i++)
        if ((per_channel[i] && (tw_count(per_channel[i]) != x->shape[1] || per_channel[i]->dtype != TW_F32)) || (i >= 2 && !per_channel[i])) {
            twi_fail(x->tw, TW_E_SHAPE, "batch norm %s: weight, bias and statistics do not fit image %s", weight ? weight->name : "", TWI_SHAPE(x));
            return NULL;
        }
    memset(&a, 0, sizeof a);
    a.batch = (ptrdiff_t)x->shape[0]; a.channels = (ptrdiff_t)x->shape[1]; a.size = (ptrdiff_t)(x->shape[2] * x->shape[3]);
    a.training = x->tw->training;
    a.eps = eps; a.momentum = momentum;
    a.weight = weight ? twi_f32(weight) : NULL; a.bias = bias ? twi_f32(bias) : NULL;
    a.running_mean = twi_f32(running_mean); a.running_var = twi_f32(running_var);
    a.mean = (float *)twi_step_alloc(x->tw, (size_t)x->shape[1], sizeof(float));
    a.rstd = (float *)twi_step_alloc(x->tw, (size_t)x->shape[1], sizeof(float));
    y = twi_new_like(x);
    if (!y || !a.mean || !a.rstd) return NULL;
    if (twi_computes(x->tw)) twb_batch_norm(&x->tw->cpu, &a, twi_f32(x), twi_f32(y));
    inputs[0] = x; inputs[1] = weight; inputs[2] = bias;
    return twi_note(TWI_OP_BATCH_NORM, y, inputs, 3, &a, sizeof a);
}
static void twi_batch_norm_backward(twi_node *node, float *dy) {
    const twb_batch_norm_args *a = (const twb_batch_norm_args *)node->saved;
    tw_tensor *x = node->input[0], *weight = node->input[1], *bias = node->input[2];
    float *dweight = weight && weight->requires_grad ? twi_grad_sum(weight) : NULL, *dbias = bias && bias->requires_grad ? twi_grad_sum(bias) : NULL;
    twi_slot slot = twi_open_slot(x);
    if (twi_computes(x->tw)) twb_batch_norm_backward(&x->tw->cpu, a, twi_f32(x), dy, slot.data, slot.accumulate, dweight, dbias);
    twi_close_slot(&slot);
}

/* -- the numeric check ----------------------------------------------------------------------------------------------------------
   f'(x) is close to (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h, with an error of the order h^4: a step large enough
   for f32 still gives three or four digits. */
static double twi_value_of(tw_context *tw, tw_scalar_fn fn, void *user, tw_tensor *const *inputs, uint64_t draws) {
    twi_mark mark;
    tw_tensor *y;
    double value;
    bool was = tw_no_grad(tw, true);
    tw->draws = draws;
    twi_take_mark(tw, &mark);
    y = fn(user, inputs);
    value = (double)tw_item(y);
    twi_rewind(tw, &mark);
    tw_no_grad(tw, was);
    return value;
}
TWDEF double tw_check_gradients(tw_context *tw, tw_scalar_fn fn, void *user, tw_tensor *const *parameters, int count, float eps, char *where, size_t room) {
    uint64_t draws = tw->draws;
    double worst = 0;
    tw_tensor *loss;
    int p;
    if (where && room) where[0] = 0;
    for (p = 0; p < count; p++) tw_zero_grad_of(parameters[p]);
    tw->tape = NULL;
    loss = fn(user, parameters);
    if (!tw_backward(loss)) return (double)twb_bits_float(0x7FC00000u);
    for (p = 0; p < count && tw->code == TW_OK; p++) {
        tw_tensor *t = parameters[p], *g = tw_grad(t);
        double largest = 0, error = 0;
        int64_t i, n = tw_count(t), at = 0;
        float *x = tw_data(t), *dx = tw_data(g);
        if (!x || !dx) { twi_fail(tw, TW_E_ARGUMENT, "gradient check: input %d has no gradient", p); break; }
        for (i = 0; i < n; i++) {
            float keep = x[i];
            double f[4], step[4], numeric, off;
            int k;
            for (k = 0; k < 4; k++) {
                static const float places[4] = { 1, -1, 2, -2 };
                x[i] = keep + places[k] * eps;
                step[k] = (double)x[i] - (double)keep;
                f[k] = twi_value_of(tw, fn, user, parameters, draws);
            }
            x[i] = keep;
            numeric = 4.0 / 3.0 * (f[0] - f[1]) / (step[0] - step[1]) - 1.0 / 3.0 * (f[2] - f[3]) / (step[2] - step[3]);
            if (fabs(numeric) > largest) largest = fabs(numeric);
            off = fabs(numeric - (double)dx[i]);
            if (!(off <= error)) { error = off; at = i; }
        }
        error = largest > 0 ? error / largest : error;
        if (!(error <= worst)) {
            worst = error;
            if (where && room) snprintf(where, room, "input %d, element %lld of %s: off by %.3g of the largest gradient %.3g", p, (long long)at, TWI_SHAPE(t), error, largest);
        }
    }
    return tw->code == TW_OK ? worst : (double)twb_bits_float(0x7FC00000u);
}
/* ==== [tw:05] layers: implementation ========================================================= */

/* user: where the model keeps the tied parameter, so that a file with numbers of its own under the other name can untie it. */
typedef struct twi_alias { const char *name; tw_tensor *parameter, **user; } twi_alias;

/* To its layers a model is a list of named parameters; the later chapters hang their own parts on it. */
struct tw_model {
    twi_region   region;
    tw_model    *previous, *next;              /* all models of the context */
    tw_tensor  **parameter;                    /* in the order of the checkpoint */
    size_t       parameters, parameter_room;
    twi_alias   *alias;                        /* other names of tied parameters: lm_head.weight */
    size_t       aliases, alias_room;
    struct tw_linear *optional;                /* a layer that a file may lack: then the model goes without it */
    size_t       head_begins;                  /* the first parameter that a base model does not have; 0: not known */
    char         prefix[192];                  /* names begin with this */
    float        initializer_range;
    bool         from_file;                    /* the numbers come from a file: give no room and no values yet */
    const char  *name;
    const struct twi_model_type *type;         /* chapter models */
    void        *net;                          /* its layers */
    tw_json     *config;
    struct tw_weights *weights;                /* the open checkpoint, where parameters lie in its memory */
    tw_json     *generation_config;            /* generation_config.json, where the folder has one */
    char        *written;                      /* chapter generation: what tw_generate_text returned last */
    tw_tokenizer *tokenizer;                   /* chapter tokenizers */
    bool         owns_tokenizer;
    struct twi_training *training;             /* chapter training */
    bool         checkpointing;                /* recompute blocks in the backward pass */
};

TWDEF tw_model *tw_model_create(tw_context *tw, const char *name) {
    tw_model *model;
    if (!tw) return NULL;
    model = (tw_model *)twi_alloc(&tw->region, 1, sizeof *model);
    if (!model) return NULL;
    model->region.tw = tw;
    model->initializer_range = 0.02f;
    model->next = tw->models;
    if (tw->models) tw->models->previous = model;
    tw->models = model;
    model->name = twi_copy_text(&model->region, name ? name : "", name ? strlen(name) : 0);
    if (!model->name) { tw_model_free(model); return NULL; }
    return model;
}

TWDEF tw_context *tw_context_of(const tw_model *model) { return model ? model->region.tw : NULL; }

TWDEF void tw_enter(tw_model *model, const char *name, int64_t index) {
    size_t n;
    if (!model) return;
    n = strlen(model->prefix);
    if (n + strlen(name) + 24 > sizeof model->prefix) { twi_fail(model->region.tw, TW_E_RANGE, "%s: names are nested too deeply", name); return; }
    if (index >= 0) snprintf(model->prefix + n, sizeof model->prefix - n, "%s.%lld.", name, (long long)index);
    else snprintf(model->prefix + n, sizeof model->prefix - n, "%s.", name);
}

/* Takes the last entered part off: "h.3.attn." -> "h.3.", "h.3." -> "". */
TWDEF void tw_leave(tw_model *model) {
    size_t n;
    bool digits = false;
    if (!model) return;
    n = strlen(model->prefix);
    if (n) n--;
    while (n && model->prefix[n - 1] >= '0' && model->prefix[n - 1] <= '9') { n--; digits = true; }
    if (digits && n && model->prefix[n - 1] == '.') n--;
    while (n && model->prefix[n - 1] != '.') n--;
    model->prefix[n] = 0;
}

TWDEF void tw_set_initializer_range(tw_model *model, float deviation) { if (model) model->initializer_range = deviation; }

TWDEF tw_tensor *tw_add_parameter(tw_model *model, const char *name, tw_shape shape) {
    char full[320];
    tw_tensor *t, **grown;
    if (!model || tw_failed(model->region.tw)) return NULL;
    snprintf(full, sizeof full, "%s%s", model->prefix, name);
    if (strlen(full) + 1 >= sizeof full) { twi_fail(model->region.tw, TW_E_RANGE, "parameter %.60s...: the name is too long", full); return NULL; }
    grown = (tw_tensor **)twi_grow(&model->region, model->parameter, model->parameters, &model->parameter_room, model->parameters + 1, sizeof *grown);
    if (!grown) return NULL;
    model->parameter = grown;
    t = twi_new_parameter(&model->region, full, shape);
    if (!t) return NULL;
    if (model->region.tw->planning) model->region.tw->planned_weights += twi_round_up((size_t)tw_count(t) * sizeof(float));
    if (!model->from_file) {
        if (!twi_allocate_parameter(&model->region, t)) return NULL;
        tw_fill_normal(t, 0, model->initializer_range);
    }
    model->parameter[model->parameters++] = t;
    return t;
}
TWDEF tw_tensor *tw_add_buffer(tw_model *model, const char *name, tw_shape shape, float value) {
    tw_tensor *t = tw_add_parameter(model, name, shape);
    if (t) { t->requires_grad = false; t->is_buffer = true; tw_fill(t, value); }
    return t;
}

/* A second name for a parameter: a checkpoint may carry it, we do not write it. */
static bool twi_add_alias(tw_model *model, const char *name, tw_tensor *parameter) {
    twi_alias *grown = (twi_alias *)twi_grow(&model->region, model->alias, model->aliases, &model->alias_room, model->aliases + 1, sizeof *grown);
    if (!grown) return false;
    model->alias = grown;
    model->alias[model->aliases].name = name;
    model->alias[model->aliases].user = NULL;
    model->alias[model->aliases++].parameter = parameter;
    return true;
}
/* The same for the parameter in *user, which gets numbers of its own where a file has others under that name. */
static bool twi_add_tied(tw_model *model, const char *name, tw_tensor **user) {
    if (!twi_add_alias(model, name, *user)) return false;
    model->alias[model->aliases - 1].user = user;
    return true;
}

TWDEF int64_t    tw_parameter_count(const tw_model *model) { return model ? (int64_t)model->parameters : 0; }
TWDEF tw_tensor *tw_parameter_at(const tw_model *model, int64_t index) {
    return model && index >= 0 && index < (int64_t)model->parameters ? model->parameter[index] : NULL;
}
TWDEF tw_tensor *tw_parameter_named(const tw_model *model, const char *name) {
    size_t i;
    for (i = 0; model && name && i < model->parameters; i++) if (strcmp(model->parameter[i]->name, name) == 0) return model->parameter[i];
    for (i = 0; model && name && i < model->aliases; i++) if (strcmp(model->alias[i].name, name) == 0) return model->alias[i].parameter;
    return NULL;
}
TWDEF int64_t tw_num_parameters(const tw_model *model, bool trainable_only) {
    int64_t count = 0;
    size_t i;
    for (i = 0; model && i < model->parameters; i++)
        if (!model->parameter[i]->is_buffer && (!trainable_only || model->parameter[i]->requires_grad)) count += tw_count(model->parameter[i]);
    return count;
}

static tw_tensor *twi_named_parameter(tw_model *model, const char *layer, const char *name, tw_shape shape) {
    char full[160];
    snprintf(full, sizeof full, "%s%s%s", layer, layer[0] ? "." : "", name);
    return tw_add_parameter(model, full, shape);
}
/* A bias, or the weight of a norm: starts with one value, and weight decay leaves it alone. */
static tw_tensor *twi_filled_parameter(tw_model *model, const char *layer, const char *name, tw_shape shape, float value) {
    tw_tensor *t = twi_named_parameter(model, layer, name, shape);
    tw_fill(t, value);
    if (t) t->no_decay = true;
    return t;
}

TWDEF bool tw_linear_init(tw_model *model, tw_linear *layer, const char *name, int64_t in, int64_t out, bool bias) {
    memset(layer, 0, sizeof *layer);
    layer->model = model;
    layer->weight = twi_named_parameter(model, name, "weight", tw_shape2(out, in));
    if (bias) layer->bias = twi_filled_parameter(model, name, "bias", tw_shape1(out), 0);
    return layer->weight && (!bias || layer->bias);
}
TWDEF bool tw_conv1d_init(tw_model *model, tw_linear *layer, const char *name, int64_t in, int64_t out) {
    memset(layer, 0, sizeof *layer);
    layer->model = model;
    layer->weight_is_in_out = true;
    layer->weight = twi_named_parameter(model, name, "weight", tw_shape2(in, out));
    layer->bias = twi_filled_parameter(model, name, "bias", tw_shape1(out), 0);
    return layer->weight && layer->bias;
}
TWDEF tw_tensor *tw_linear_forward(const tw_linear *layer, tw_tensor *x) { return tw_linear_activate(layer, x, TW_ACT_NONE); }
TWDEF tw_tensor *tw_linear_activate(const tw_linear *layer, tw_tensor *x, tw_activation activation) {
    return tw_linear_op(x, layer->weight, layer->bias, layer->weight_is_in_out, activation, NULL);
}
TWDEF tw_tensor *tw_linear_residual(const tw_linear *layer, tw_tensor *x, tw_tensor *residual, float dropout) {
    if (!x || !residual) return NULL;
    if (x->tw->training && dropout > 0) return tw_add(residual, tw_dropout(tw_linear_forward(layer, x), dropout));
    return tw_linear_op(x, layer->weight, layer->bias, layer->weight_is_in_out, TW_ACT_NONE, residual);
}

TWDEF bool tw_embedding_init(tw_model *model, tw_embedding *layer, const char *name, int64_t rows, int64_t dim) {
    memset(layer, 0, sizeof *layer);
    layer->weight = twi_named_parameter(model, name, "weight", tw_shape2(rows, dim));
    return layer->weight != NULL;
}
TWDEF void tw_embedding_padding(tw_embedding *layer, int64_t row) {
    tw_tensor *t = layer->weight;
    if (!t || row < 0 || row >= t->shape[0]) return;
    layer->has_padding = true;
    layer->padding = (int32_t)row;
    if (t->data && t->dtype == TW_F32 && twi_computes(t->tw)) twb_fill(&t->tw->cpu, (ptrdiff_t)t->shape[1], 0, (float *)t->data + row * t->shape[1]);
}
TWDEF tw_tensor *tw_embedding_forward(const tw_embedding *layer, const tw_tensor *ids) {
    return twi_embedding_padded(layer->weight, ids, layer->has_padding ? layer->padding : -1);
}

TWDEF bool tw_layer_norm_init(tw_model *model, tw_layer_norm *layer, const char *name, int64_t dim, float eps) {
    layer->eps = eps;
    layer->weight = twi_filled_parameter(model, name, "weight", tw_shape1(dim), 1);
    layer->bias = twi_filled_parameter(model, name, "bias", tw_shape1(dim), 0);
    return layer->weight && layer->bias;
}
TWDEF tw_tensor *tw_layer_norm_forward(const tw_layer_norm *layer, tw_tensor *x) { return tw_layer_norm_op(x, layer->weight, layer->bias, layer->eps); }

TWDEF bool tw_rms_norm_init(tw_model *model, tw_rms_norm *layer, const char *name, int64_t dim, float eps) {
    layer->eps = eps;
    layer->weight = twi_filled_parameter(model, name, "weight", tw_shape1(dim), 1);
    return layer->weight != NULL;
}
TWDEF tw_tensor *tw_rms_norm_forward(const tw_rms_norm *layer, tw_tensor *x) { return tw_rms_norm_op(x, layer->weight, layer->eps); }

TWDEF bool tw_conv2d_init(tw_model *model, tw_conv2d *layer, const char *name, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding, bool bias) {
    memset(layer, 0, sizeof *layer);
    layer->stride = stride;
    layer->padding = padding;
    layer->dilation = layer->groups = 1;
    layer->weight = twi_named_parameter(model, name, "weight", tw_shape4(out, in, kernel, kernel));
    if (bias) layer->bias = twi_filled_parameter(model, name, "bias", tw_shape1(out), 0);
    return layer->weight && (!bias || layer->bias);
}
TWDEF tw_tensor *tw_conv2d_forward(const tw_conv2d *layer, tw_tensor *x) {
    return tw_conv2d_op(x, layer->weight, layer->bias, layer->stride, layer->padding, layer->dilation, layer->groups);
}

TWDEF bool tw_batch_norm_init(tw_model *model, tw_batch_norm *layer, const char *name, int64_t channels) {
    char full[160];
    layer->eps = 1e-5f;
    layer->momentum = 0.1f;
    layer->weight = twi_filled_parameter(model, name, "weight", tw_shape1(channels), 1);
    layer->bias = twi_filled_parameter(model, name, "bias", tw_shape1(channels), 0);
    snprintf(full, sizeof full, "%s.running_mean", name);
    layer->running_mean = tw_add_buffer(model, full, tw_shape1(channels), 0);
    snprintf(full, sizeof full, "%s.running_var", name);
    layer->running_var = tw_add_buffer(model, full, tw_shape1(channels), 1);
    return layer->weight && layer->bias && layer->running_mean && layer->running_var;
}
TWDEF tw_tensor *tw_batch_norm_forward(const tw_batch_norm *layer, tw_tensor *x) {
    return tw_batch_norm_op(x, layer->weight, layer->bias, layer->running_mean, layer->running_var, layer->eps, layer->momentum);
}

/* ==== [tw:06] blocks: implementation ========================================================= */

struct tw_cache {
    twi_region region;
    tw_cache  *previous, *next;                /* all of the context */
    int64_t    layers, batch, heads, head_dim, room, length;
    float    **keys, **values;                 /* [layers], each [batch, heads, room, head_dim] */
    float     *spare;                          /* one layer's worth, for reordering */
    int64_t    encoder_rows, encoder_tokens;   /* what a decoder reads of its encoder: 1 row for all, or one for each */
    bool       encoder_read;                   /* its keys and values are there */
    float    **encoder_keys, **encoder_values; /* [layers], each [encoder_rows, heads, encoder_tokens, head_dim] */
    float     *encoder_spare;
};

/* What a cache for tw_cache_create's numbers will take, in bytes. */
static size_t twi_cache_bytes(int64_t layers, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t room) {
    return (size_t)(2 * layers) * twi_round_up((size_t)(batch * kv_heads * head_dim * room) * sizeof(float));
}
static size_t twi_cache_layer_count(const tw_cache *c) { return (size_t)(c->batch * c->heads * c->room * c->head_dim); }
static size_t twi_cache_encoder_count(const tw_cache *c) { return (size_t)(c->encoder_rows * c->heads * c->encoder_tokens * c->head_dim); }

/* Room for `count` numbers a layer, in both lists. */
static bool twi_cache_allocate(tw_cache *c, float ***keys, float ***values, size_t count) {
    int64_t i;
    *keys = (float **)twi_alloc(&c->region, (size_t)c->layers, sizeof **keys);
    *values = (float **)twi_alloc(&c->region, (size_t)c->layers, sizeof **values);
    for (i = 0; *keys && *values && i < c->layers; i++) {
        (*keys)[i] = (float *)twi_alloc_raw(&c->region, count, sizeof(float));
        (*values)[i] = (float *)twi_alloc_raw(&c->region, count, sizeof(float));
        if (!(*keys)[i] || !(*values)[i]) return false;
    }
    return *keys && *values;
}

TWDEF tw_cache *tw_cache_create(tw_context *tw, int64_t layers, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t room) {
    int64_t shape[4];
    tw_cache *c;
    shape[0] = batch; shape[1] = kv_heads; shape[2] = room; shape[3] = head_dim;
    if (!tw || tw_failed(tw)) return NULL;
    if (layers < 1 || layers > 1 << 20 || batch < 1 || twi_shape_count(4, shape) < 0) { twi_fail(tw, TW_E_RANGE, "cache: a size is out of range"); return NULL; }
    c = (tw_cache *)twi_alloc(&tw->region, 1, sizeof *c);
    if (!c) return NULL;
    c->region.tw = tw;
    c->next = tw->caches;
    if (tw->caches) tw->caches->previous = c;
    tw->caches = c;
    c->layers = layers; c->batch = batch; c->heads = kv_heads; c->head_dim = head_dim; c->room = room;
    if (twi_cache_allocate(c, &c->keys, &c->values, twi_cache_layer_count(c))) return c;
    tw_cache_free(c);
    return NULL;
}
TWDEF bool tw_cache_add_encoder(tw_cache *cache, int64_t rows, int64_t tokens) {
    int64_t shape[4];
    if (!cache || tw_failed(cache->region.tw)) return false;
    shape[0] = rows; shape[1] = cache->heads; shape[2] = tokens; shape[3] = cache->head_dim;
    if (cache->encoder_keys || (rows != 1 && rows != cache->batch) || tokens < 1 || twi_shape_count(4, shape) < 0) {
        twi_fail(cache->region.tw, TW_E_RANGE, "cache: no room for %lld x %lld encoder tokens can be added", (long long)rows, (long long)tokens);
        return false;
    }
    cache->encoder_rows = rows;
    cache->encoder_tokens = tokens;
    return twi_cache_allocate(cache, &cache->encoder_keys, &cache->encoder_values, twi_cache_encoder_count(cache));
}
TWDEF void tw_cache_free(tw_cache *cache) {
    tw_context *tw;
    if (!cache) return;
    tw = cache->region.tw;
    if (cache->previous) cache->previous->next = cache->next; else tw->caches = cache->next;
    if (cache->next) cache->next->previous = cache->previous;
    twi_region_clear(&cache->region);
    twi_free(&tw->region, cache);
}
TWDEF int64_t tw_cache_length(const tw_cache *cache) { return cache ? cache->length : 0; }
TWDEF void tw_cache_truncate(tw_cache *cache, int64_t length) { if (cache && length >= 0 && length < cache->length) cache->length = length; }

/* Every layer's rows move to their new places: of each head's `stride` numbers the first `used`. */
static void twi_cache_move(const tw_cache *c, float **side, float **spare, const int32_t *parents, int64_t stride, int64_t used) {
    int64_t i, b, h;
    for (i = 0; i < c->layers; i++) {
        float *from = side[i];
        for (b = 0; b < c->batch; b++) for (h = 0; h < c->heads; h++)
            memcpy(*spare + (b * c->heads + h) * stride, from + ((int64_t)parents[b] * c->heads + h) * stride, (size_t)used * sizeof(float));
        side[i] = *spare;
        *spare = from;
    }
}
TWDEF bool tw_cache_reorder(tw_cache *cache, const int32_t *parents) {
    int64_t b;
    bool same = true, encoder_too;
    if (!cache) return false;
    for (b = 0; b < cache->batch; b++) {
        if (parents[b] < 0 || parents[b] >= cache->batch) { twi_fail(cache->region.tw, TW_E_RANGE, "cache: there is no row %ld", (long)parents[b]); return false; }
        if (parents[b] != b) same = false;
    }
    if (same) return true;
    encoder_too = cache->encoder_read && cache->encoder_rows > 1;      /* one text for all stays where it is */
    if (!cache->spare) cache->spare = (float *)twi_alloc_raw(&cache->region, twi_cache_layer_count(cache), sizeof(float));
    if (encoder_too && !cache->encoder_spare) cache->encoder_spare = (float *)twi_alloc_raw(&cache->region, twi_cache_encoder_count(cache), sizeof(float));
    if (!cache->spare || (encoder_too && !cache->encoder_spare)) return false;
    twi_cache_move(cache, cache->keys, &cache->spare, parents, cache->room * cache->head_dim, cache->length * cache->head_dim);
    twi_cache_move(cache, cache->values, &cache->spare, parents, cache->room * cache->head_dim, cache->length * cache->head_dim);
    if (!encoder_too) return true;
    twi_cache_move(cache, cache->encoder_keys, &cache->encoder_spare, parents, cache->encoder_tokens * cache->head_dim, cache->encoder_tokens * cache->head_dim);
    twi_cache_move(cache, cache->encoder_values, &cache->encoder_spare, parents, cache->encoder_tokens * cache->head_dim, cache->encoder_tokens * cache->head_dim);
    return true;
}

/* A view [batch, tokens, H, D] of what lies as [rows, H, room, D]; a single row is every one's. */
static tw_tensor *twi_cache_view(const tw_cache *cache, float *store, int64_t rows, int64_t room, int64_t tokens) {
    int64_t shape[4];
    tw_tensor *all;
    shape[0] = cache->batch; shape[1] = tokens; shape[2] = cache->heads; shape[3] = cache->head_dim;
    all = twi_bare_tensor(cache->region.tw, TW_F32, 4, shape);
    if (!all) return NULL;
    all->stride[0] = rows == 1 ? 0 : cache->heads * room * cache->head_dim;
    all->stride[1] = cache->head_dim; all->stride[2] = room * cache->head_dim; all->stride[3] = 1;
    all->data = store;
    return all;
}
/* Puts keys or values [B, T, H, D] into such a store, behind the first `at` of each row. */
static void twi_cache_store(const tw_cache *cache, float *store, int64_t room, int64_t at, tw_tensor *fresh) {
    int64_t stride[4];
    stride[0] = cache->heads * room * cache->head_dim; stride[1] = cache->head_dim; stride[2] = room * cache->head_dim; stride[3] = 1;
    if (twi_computes(fresh->tw)) twi_copy_strided(fresh->tw, 4, fresh->shape, store + at * cache->head_dim, stride, twi_f32(fresh), fresh->stride);
}

/* Puts the new keys [B, T, H, D] behind the earlier ones and gives all of them back as a view [B, length + T, H, D].
   The length itself moves once a forward pass, when every layer has done this. */
static tw_tensor *twi_cache_extend(tw_cache *cache, float *store, tw_tensor *fresh) {
    int64_t total = cache->length + fresh->shape[1];
    if (fresh->shape[0] != cache->batch || fresh->shape[2] != cache->heads || fresh->shape[3] != cache->head_dim || total > cache->room) {
        twi_fail(fresh->tw, TW_E_RANGE, "cache: %lld tokens more do not fit behind %lld of %lld (batch %lld)", (long long)fresh->shape[1], (long long)cache->length,
                 (long long)cache->room, (long long)cache->batch);
        return NULL;
    }
    twi_cache_store(cache, store, cache->room, cache->length, fresh);
    return twi_cache_view(cache, store, 0, cache->room, total);
}
static bool twi_cache_append(tw_cache *cache, int64_t layer, tw_tensor **k, tw_tensor **v) {
    if (!*k || !*v) return false;
    if (layer >= cache->layers) { twi_fail((*k)->tw, TW_E_RANGE, "cache: it has no layer %lld", (long long)layer); return false; }
    *k = twi_cache_extend(cache, cache->keys[layer], *k);
    *v = twi_cache_extend(cache, cache->values[layer], *v);
    return *k && *v;
}
/* The encoder's keys and values [B, S, H, D] as a decoder's layer reads them: kept when they come for the first time
   (*k, *v), else those that are there.  encoder_read is set once a forward pass, when every layer has done this. */
static bool twi_cache_encoder(tw_cache *cache, int64_t layer, tw_tensor **k, tw_tensor **v) {
    if (layer >= cache->layers) { twi_fail(cache->region.tw, TW_E_RANGE, "cache: it has no layer %lld", (long long)layer); return false; }
    if (!cache->encoder_read) {
        if (!*k || !*v) return false;
        if ((*k)->shape[0] != cache->encoder_rows || (*k)->shape[1] != cache->encoder_tokens || (*k)->shape[2] != cache->heads || (*k)->shape[3] != cache->head_dim) {
            twi_fail(cache->region.tw, TW_E_RANGE, "cache: %lld x %lld encoder tokens do not fit its room for %lld x %lld (tw_cache_add_encoder)", (long long)(*k)->shape[0],
                     (long long)(*k)->shape[1], (long long)cache->encoder_rows, (long long)cache->encoder_tokens);
            return false;
        }
        twi_cache_store(cache, cache->encoder_keys[layer], cache->encoder_tokens, 0, *k);
        twi_cache_store(cache, cache->encoder_values[layer], cache->encoder_tokens, 0, *v);
    }
    *k = twi_cache_view(cache, cache->encoder_keys[layer], cache->encoder_rows, cache->encoder_tokens, cache->encoder_tokens);
    *v = twi_cache_view(cache, cache->encoder_values[layer], cache->encoder_rows, cache->encoder_tokens, cache->encoder_tokens);
    return *k && *v;
}

/* Channels [start, start + heads D) of x [B, T, ...] as heads [B, T, heads, D]: a view. */
static tw_tensor *twi_heads(tw_tensor *x, int64_t start, int64_t heads, int64_t head_dim) {
    tw_tensor *part = tw_slice(x, -1, start, heads * head_dim);
    return part ? tw_reshape(part, tw_shape4(x->shape[0], x->shape[1], heads, head_dim)) : NULL;
}
/* [B, T, H, D] -> [B, T, H D] */
static tw_tensor *twi_merge_heads(tw_tensor *x) { return x ? tw_reshape(x, tw_shape3(x->shape[0], x->shape[1], x->shape[2] * x->shape[3])) : NULL; }

/* Causal self-attention of the last `tokens` of qkv [B, M + T, 3 H D], where q, k and v are thirds; M earlier ones, and
   those in the cache, are read too.  -> [B, T, H D] */
static tw_tensor *twi_fused_attention(tw_tensor *qkv, int64_t tokens, int64_t heads, int64_t layer, tw_cache *cache, tw_attention_desc *how) {
    int64_t width = tw_dim(qkv, -1) / 3, head_dim = width / heads;
    tw_tensor *q, *k, *v;
    if (!qkv) return NULL;
    how->query_start = qkv->shape[1] - tokens;
    q = twi_heads(how->query_start > 0 ? tw_slice(qkv, 1, how->query_start, tokens) : qkv, 0, heads, head_dim);
    k = twi_heads(qkv, width, heads, head_dim);
    v = twi_heads(qkv, 2 * width, heads, head_dim);
    if (cache) {
        how->query_start += cache->length;
        if (!twi_cache_append(cache, layer, &k, &v)) return NULL;
    }
    return twi_merge_heads(tw_attention(q, k, v, how));
}

static tw_tensor *twi_gpt2_attention(const tw_gpt2_input *in, tw_tensor *x) {
    const tw_gpt2_block *b = in->block;
    tw_attention_desc how;
    tw_tensor *qkv = tw_linear_forward(&b->c_attn, tw_layer_norm_forward(&b->ln_1, x));
    memset(&how, 0, sizeof how);
    how.causal = true;
    how.scale = b->scale;
    how.dropout = b->attn_dropout;
    how.key_mask = in->key_mask;
    return tw_linear_residual(&b->c_proj, twi_fused_attention(qkv, tw_dim(x, 1), b->heads, b->layer, in->pass ? in->pass->cache : NULL, &how), x,
                              b->resid_dropout);
}

static tw_tensor *twi_gpt2_cross_attention(const tw_gpt2_input *in, tw_tensor *x, tw_tensor *encoder) {
    const tw_gpt2_block *b = in->block;
    tw_attention_desc how;
    int64_t width = tw_dim(x, -1), head_dim = width / b->heads;
    tw_tensor *q = tw_linear_forward(&b->cross_q, tw_layer_norm_forward(&b->ln_cross_attn, x)), *kv = tw_linear_forward(&b->cross_kv, encoder), *y;
    if (!q || !kv) return NULL;
    memset(&how, 0, sizeof how);
    how.scale = b->scale;
    how.dropout = b->attn_dropout;
    how.key_mask = in->encoder_mask;
    y = tw_attention(twi_heads(q, 0, b->heads, head_dim), twi_heads(kv, 0, b->heads, head_dim), twi_heads(kv, width, b->heads, head_dim), &how);
    return tw_linear_residual(&b->cross_proj, twi_merge_heads(y), x, b->resid_dropout);
}

static tw_tensor *twi_gpt2_mlp(const tw_gpt2_block *b, tw_tensor *x) {
    tw_tensor *h = tw_linear_activate(&b->mlp_fc, tw_layer_norm_forward(&b->ln_2, x), b->activation);
    return tw_linear_residual(&b->mlp_proj, h, x, b->resid_dropout);
}

TWDEF tw_tensor *tw_gpt2_block_forward(void *how, tw_tensor *const *inputs) {
    const tw_gpt2_input *in = (const tw_gpt2_input *)how;
    tw_tensor *x = twi_gpt2_attention(in, inputs[0]);
    if (x && in->block->has_cross && inputs[1]) x = twi_gpt2_cross_attention(in, x, inputs[1]);
    return x ? twi_gpt2_mlp(in->block, x) : NULL;
}

/* norm(x + dense(attention)), the keys and values from `source`: x itself, or what an encoder made. */
static tw_tensor *twi_bert_attention(const tw_bert_attention *a, const tw_bert_input *in, tw_tensor *x, tw_tensor *source, tw_attention_desc *how) {
    const tw_bert_block *b = in->block;
    int64_t width = tw_dim(x, -1), head_dim = width / b->heads;
    tw_cache *cache = x == source && in->pass ? in->pass->cache : NULL;
    tw_tensor *q = tw_linear_forward(&a->query, x), *k = tw_linear_forward(&a->key, source), *v = tw_linear_forward(&a->value, source);
    if (!q || !k || !v) return NULL;
    q = twi_heads(q, 0, b->heads, head_dim);
    k = twi_heads(k, 0, b->heads, head_dim);
    v = twi_heads(v, 0, b->heads, head_dim);
    how->scale = 1.0f / sqrtf((float)head_dim);
    how->dropout = b->attention_dropout;
    if (cache) {
        how->query_start = cache->length;
        if (!twi_cache_append(cache, b->layer, &k, &v)) return NULL;
    }
    return tw_layer_norm_forward(&a->norm, tw_linear_residual(&a->dense, twi_merge_heads(tw_attention(q, k, v, how)), x, b->hidden_dropout));
}

TWDEF tw_tensor *tw_bert_block_forward(void *how, tw_tensor *const *inputs) {
    const tw_bert_input *in = (const tw_bert_input *)how;
    const tw_bert_block *b = in->block;
    tw_attention_desc own, cross;
    tw_tensor *x = inputs[0], *h;
    memset(&own, 0, sizeof own);
    memset(&cross, 0, sizeof cross);
    own.causal = b->causal;
    own.key_mask = in->key_mask;
    own.mask = in->mask;
    cross.key_mask = in->encoder_mask;
    x = twi_bert_attention(&b->attention, in, x, x, &own);
    if (x && b->has_cross && inputs[1]) x = twi_bert_attention(&b->cross, in, x, inputs[1], &cross);
    if (!x) return NULL;
    h = tw_linear_activate(&b->intermediate, x, b->activation);
    return tw_layer_norm_forward(&b->norm, tw_linear_residual(&b->output, h, x, b->hidden_dropout));
}

/* -- GLM ----------------------------------------------------------------------------------------------------------------- */

static tw_tensor *twi_glm_attention(const tw_glm_input *in, tw_tensor *x, tw_tensor *memory) {
    const tw_glm_block *b = in->block;
    tw_attention_desc how;
    tw_tensor *both[2], *qkv;
    both[0] = memory;
    both[1] = x;
    qkv = tw_linear_forward(&b->query_key_value, tw_layer_norm_forward(&b->input_layernorm, memory ? tw_concat(both, 2, 1) : x));
    memset(&how, 0, sizeof how);                            /* attention_scale > 1 divides and multiplies again: for 16-bit numbers, not for ours */
    how.causal = !in->mask;
    how.prefix = in->prefix;
    how.key_mask = in->key_mask;
    how.mask = in->mask;
    how.dropout = b->attention_dropout;
    return tw_linear_residual(&b->dense, twi_fused_attention(qkv, tw_dim(x, 1), b->heads, b->layer, in->pass ? in->pass->cache : NULL, &how), x,
                              b->output_dropout);
}

TWDEF tw_tensor *tw_glm_block_forward(void *how, tw_tensor *const *inputs) {
    const tw_glm_input *in = (const tw_glm_input *)how;
    const tw_glm_block *b = in->block;
    tw_tensor *x = twi_glm_attention(in, inputs[0], in->has_memory ? inputs[1] : NULL), *h;
    if (!x) return NULL;
    h = tw_linear_activate(&b->dense_h_to_4h, tw_layer_norm_forward(&b->post_attention_layernorm, x), TW_ACT_GELU_TANH);
    return tw_linear_residual(&b->dense_4h_to_h, h, x, b->output_dropout);
}

/* -- GLM-4 --------------------------------------------------------------------------------------------------------------- */

/* x + part(h), where part's result is normed first if the block says so */
static tw_tensor *twi_rotary_add(const tw_rotary_block *b, const tw_linear *part, const tw_rms_norm *norm, tw_tensor *h, tw_tensor *x) {
    if (!b->has_post_norms) return tw_linear_residual(part, h, x, 0);
    return tw_add(x, tw_rms_norm_forward(norm, tw_linear_forward(part, h)));
}
static tw_tensor *twi_rotary_heads(const tw_rotary_input *in, const tw_linear *layer, tw_tensor *x, int64_t heads, bool turn) {
    tw_tensor *y = tw_linear_forward(layer, x);
    if (y) y = twi_heads(y, 0, heads, in->block->head_dim);
    return y && turn ? tw_rope(y, in->positions, in->block->rotary_dim, true, in->block->theta) : y;
}

TWDEF tw_tensor *tw_rotary_block_forward(void *how, tw_tensor *const *inputs) {
    const tw_rotary_input *in = (const tw_rotary_input *)how;
    const tw_rotary_block *b = in->block;
    tw_cache *cache = in->pass ? in->pass->cache : NULL;
    tw_attention_desc attend;
    tw_tensor *x = inputs[0], *h = tw_rms_norm_forward(&b->input_layernorm, x), *q, *k, *v, *gate, *up;
    int64_t inner;
    q = twi_rotary_heads(in, &b->q_proj, h, b->heads, true);
    k = twi_rotary_heads(in, &b->k_proj, h, b->kv_heads, true);
    v = twi_rotary_heads(in, &b->v_proj, h, b->kv_heads, false);
    memset(&attend, 0, sizeof attend);
    attend.causal = true;
    attend.dropout = b->attention_dropout;
    attend.key_mask = in->key_mask;
    if (cache) {
        attend.query_start = cache->length;
        if (!twi_cache_append(cache, b->layer, &k, &v)) return NULL;
    }
    x = twi_rotary_add(b, &b->o_proj, &b->post_self_attn_layernorm, twi_merge_heads(tw_attention(q, k, v, &attend)), x);
    h = tw_linear_forward(&b->gate_up_proj, tw_rms_norm_forward(&b->post_attention_layernorm, x));
    if (!h) return NULL;
    inner = tw_dim(h, -1) / 2;
    gate = tw_activate(tw_slice(h, -1, 0, inner), b->activation);
    up = tw_slice(h, -1, inner, inner);
    return twi_rotary_add(b, &b->down_proj, &b->post_mlp_layernorm, tw_mul(gate, up), x);
}

/* x + dropout(o(attention(norm x))).  from: what keys and values are made of, NULL for what x itself is normed to. */
static tw_tensor *twi_t5_attention(const tw_t5_input *in, const tw_t5_attention *a, tw_tensor *x, tw_tensor *from, tw_tensor *bias) {
    const tw_t5_block *b = in->block;
    tw_cache *cache = b->decoder && in->pass ? in->pass->cache : NULL;
    bool cross = a == &b->cross, make = !cross || !cache || !cache->encoder_read;
    tw_tensor *normed = tw_rms_norm_forward(&a->norm, x), *q, *k = NULL, *v = NULL;
    tw_attention_desc how;
    if (!from) from = normed;
    q = tw_linear_forward(&a->q, normed);
    if (make) { k = tw_linear_forward(&a->k, from); v = tw_linear_forward(&a->v, from); }
    if (!q || (make && (!k || !v))) return NULL;
    q = twi_heads(q, 0, a->heads, a->head_dim);
    if (make) { k = twi_heads(k, 0, a->heads, a->head_dim); v = twi_heads(v, 0, a->heads, a->head_dim); }
    memset(&how, 0, sizeof how);
    how.scale = 1;
    how.dropout = b->dropout;
    how.key_mask = cross ? in->encoder_mask : in->key_mask;
    how.distance_bias = bias;
    if (!cross) how.causal = b->decoder;
    if (cache && cross && !twi_cache_encoder(cache, b->layer, &k, &v)) return NULL;
    if (cache && !cross) {
        how.query_start = cache->length;
        if (!twi_cache_append(cache, b->layer, &k, &v)) return NULL;
    }
    return tw_linear_residual(&a->o, twi_merge_heads(tw_attention(q, k, v, &how)), x, b->dropout);
}

TWDEF tw_tensor *tw_t5_block_forward(void *how, tw_tensor *const *inputs) {
    const tw_t5_input *in = (const tw_t5_input *)how;
    const tw_t5_block *b = in->block;
    tw_tensor *x = twi_t5_attention(in, &b->self, inputs[0], NULL, inputs[1]), *normed, *h;
    if (x && b->decoder) x = twi_t5_attention(in, &b->cross, x, inputs[2], NULL);
    if (!x) return NULL;
    normed = tw_rms_norm_forward(&b->norm, x);
    h = tw_linear_activate(&b->wi, normed, b->activation);
    if (b->gated) h = tw_mul(h, tw_linear_forward(&b->wi_1, normed));
    return tw_linear_residual(&b->wo, tw_dropout(h, b->dropout), x, b->dropout);
}

TWDEF int64_t tw_t5_bucket(int64_t distance, bool both_ways, int64_t buckets, int64_t max_distance) {
    int64_t first = 0, exact, bucket;
    if (both_ways) {
        buckets /= 2;
        if (distance > 0) first = buckets;
        if (distance < 0) distance = -distance;
    } else distance = distance < 0 ? -distance : 0;
    exact = buckets / 2;
    if (distance < exact) return first + distance;
    if (exact < 1 || max_distance <= exact) return first + buckets - 1;
    /* in float and cut off, not rounded, as the models were trained: at a power of two the last bit decides */
    bucket = exact + (int64_t)((float)log((double)((float)distance / (float)exact)) / (float)log((double)max_distance / (double)exact) * (float)(buckets - exact));
    return first + (bucket < buckets - 1 ? bucket : buckets - 1);
}

/* ==== [tw:07] models: implementation ========================================================= */

TWDEF tw_tensor *tw_batch_get(const tw_batch *batch, const char *name) {
    int i;
    for (i = 0; batch && i < batch->count; i++) if (strcmp(batch->name[i], name) == 0) return batch->tensor[i];
    return NULL;
}
TWDEF bool tw_batch_set(tw_batch *batch, const char *name, tw_tensor *tensor) {
    int i;
    if (!batch || !tensor) return false;
    for (i = 0; i < batch->count; i++) if (strcmp(batch->name[i], name) == 0) { batch->tensor[i] = tensor; return true; }
    if (batch->count >= TW_MAX_NAMED) { twi_fail(tensor->tw, TW_E_RANGE, "%s: a batch holds %d tensors at most", name, (int)TW_MAX_NAMED); return false; }
    batch->name[batch->count] = name;
    batch->tensor[batch->count++] = tensor;
    return true;
}
/* An output: the user may look at it, so its numbers stay when the backward pass has used them. */
static bool twi_output(tw_outputs *out, const char *name, tw_tensor *t) {
    if (!t) return false;
    t->recycle = false;
    if (t->base) t->base->recycle = false;
    return !out || tw_batch_set(out, name, t);
}
/* "hidden_states.3" */
static bool twi_numbered_output(tw_outputs *out, const char *name, int64_t number, tw_tensor *t) {
    char *full;
    if (!out) return true;
    if (!t) return false;
    full = (char *)twi_step_record(t->tw, strlen(name) + 24);
    if (!full) return false;
    snprintf(full, strlen(name) + 24, "%s.%lld", name, (long long)number);
    return twi_output(out, full, t);
}

/* -- kinds of models and their heads ----------------------------------------------------------------- */

typedef enum twi_head {
    TWI_HEAD_NONE, TWI_HEAD_LM, TWI_HEAD_SEQUENCE, TWI_HEAD_TOKEN, TWI_HEAD_QA, TWI_HEAD_DOUBLE, TWI_HEAD_ENCODER,
    TWI_HEAD_MASKED, TWI_HEAD_PRETRAINING, TWI_HEAD_NEXT, TWI_HEAD_CHOICE,                         /* BERT */
    TWI_HEAD_UNILM, TWI_HEAD_POOLED, TWI_HEAD_TAGS, TWI_HEAD_CRF, TWI_HEAD_POINTER,                /* FlagAI's BERT */
    TWI_HEAD_BLANKS, TWI_HEAD_CLOZE, TWI_HEAD_ONE_CLOZE, TWI_HEAD_FAST_CLOZE                       /* FlagAI's GLM */
} twi_head;

/* What chapter generation asks of a model that writes text: the shape of its cache, its limits, and how it begins. */
typedef struct twi_decoder {
    int64_t layers, heads, head_dim, vocab;
    int64_t positions;                                          /* the longest text; INT32_MAX - 1: any length */
    int64_t eos;                                                /* the end token where the files name none; -1: none */
    int64_t start;                                              /* -1: the text begins with the prompt.  Else the prompt is the encoder's,
                                                                   and this is the first token of the decoder's text */
    bool    whole_prompt;                                       /* the prompt must be read in one pass: its tokens see each other */
} twi_decoder;

/* One pass of a generation: the running texts 0 ... rows - 1 read their tokens first ... first + count - 1. */
typedef struct twi_reading {
    tw_cache      *cache;                                       /* has the tokens before `first` */
    const int32_t *given;                                       /* the prompt as it was given */
    int64_t        given_count;
    const int32_t *tokens;                                      /* running text b begins at tokens + b * stride */
    int64_t        stride;
    int64_t        prompt;                                      /* tokens that every running text had at the start */
    int64_t        rows, first, count;
} twi_reading;

typedef struct twi_model_type {
    const char *name;                                           /* config.json's model_type */
    const char *prefix;                                         /* of the base model's tensors in a head model's file: "transformer." */
    size_t      net_bytes;
    bool      (*build)(tw_model *model);                        /* reads the config, makes the layers */
    bool      (*forward)(tw_model *model, const tw_batch *in, const tw_pass *pass, tw_outputs *out);
    void      (*set_dropout)(tw_model *model, float p);         /* all of its dropouts */
    bool      (*decoder)(const tw_model *model, twi_decoder *out);                      /* false, or NULL: its head writes no text */
    bool      (*prepare)(tw_model *model, const twi_reading *reading, tw_batch *in);    /* the inputs of one pass of a generation; NULL: input_ids alone */
    const char *positions;                                      /* the config's key for the longest text; NULL: no limit */
} twi_model_type;

typedef struct twi_model_class { const char *name; const twi_model_type *type; twi_head head; const char *task; } twi_model_class;

/* The tokens that a pass reads, [rows, count]. */
static tw_tensor *twi_reading_ids(const tw_model *m, const twi_reading *r) {
    tw_tensor *ids = tw_ids(m->region.tw, tw_shape2(r->rows, r->count), NULL);
    int64_t b;
    for (b = 0; ids && b < r->rows; b++) memcpy((int32_t *)ids->data + b * r->count, r->tokens + b * r->stride + r->first, (size_t)r->count * sizeof(int32_t));
    return ids;
}

/* -- reading a config: every number is checked before anything is built from it ------------------------ */

static const tw_json *twi_config_value(const tw_model *m, const char *key) {
    const tw_json *v = tw_json_get(m->config, key);
    return tw_json_type(v) == TW_JSON_NULL ? NULL : v;
}
static int64_t twi_config_int(tw_model *m, const char *key, int64_t otherwise, int64_t low, int64_t high) {
    const tw_json *v = twi_config_value(m, key);
    int64_t x = v ? tw_json_int(v, INT64_MIN) : otherwise;
    if (x >= low && x <= high) return x;
    if (x == INT64_MIN) twi_fail(m->region.tw, TW_E_CONFIG, "config: %s is not a whole number", key);
    else twi_fail(m->region.tw, TW_E_CONFIG, "config: %s is %lld, not in %lld ... %lld", key, (long long)x, (long long)low, (long long)high);
    return low;
}
static float twi_config_float(tw_model *m, const char *key, double otherwise, double low, double high) {
    const tw_json *v = twi_config_value(m, key);
    double x = otherwise;
    if (v && tw_json_type(v) != TW_JSON_NUMBER) twi_fail(m->region.tw, TW_E_CONFIG, "config: %s is not a number", key);
    else if (v) x = tw_json_number(v, otherwise);
    if (!(x >= low && x <= high)) { twi_fail(m->region.tw, TW_E_CONFIG, "config: %s is %g, not in %g ... %g", key, x, low, high); x = low; }
    return (float)x;
}
static bool twi_config_bool(tw_model *m, const char *key, bool otherwise) {
    const tw_json *v = twi_config_value(m, key);
    if (v && tw_json_type(v) != TW_JSON_BOOL) twi_fail(m->region.tw, TW_E_CONFIG, "config: %s is neither true nor false", key);
    return tw_json_bool(v, otherwise);
}
static tw_activation twi_config_activation(tw_model *m, const char *key, const char *otherwise) {
    const tw_json *v = twi_config_value(m, key);
    const char *name = tw_json_string(v, v ? "" : otherwise);
    tw_activation a = TW_ACT_NONE;
    if (!tw_activation_named(name, &a)) twi_fail(m->region.tw, TW_E_CONFIG, "config: %s \"%.40s\" is no activation function known here", key, name);
    return a;
}
/* How many labels a classifier has: the entries of id2label, else num_labels, else 2. */
static int64_t twi_config_labels(tw_model *m) {
    const tw_json *names = twi_config_value(m, "id2label");
    return names ? (tw_json_count(names) > 0 ? tw_json_count(names) : 2) : twi_config_int(m, "num_labels", 2, 1, 1 << 24);
}

/* -- what heads share ------------------------------------------------------------------------------------- */

/* Labels moved one place to the left: the token at t is asked for the one at t + 1, the last for nothing. */
static tw_tensor *twi_shift_labels(const tw_tensor *labels) {
    tw_tensor *shifted;
    int64_t row, t, rows = twi_rows(labels), length = twi_columns(labels);
    if (!twi_is_i32(labels, labels->tw, "labels") || labels->rank == 0) return NULL;
    shifted = twi_new(labels->tw, TW_I32, labels->rank, labels->shape);
    if (!shifted) return NULL;
    if (twi_computes(labels->tw))
        for (row = 0; row < rows; row++) for (t = 0; t < length; t++)
            ((int32_t *)shifted->data)[row * length + t] = t + 1 < length ? ((const int32_t *)labels->data)[row * length + t + 1] : TWI_IGNORED;
    return shifted;
}

/* The language model's head on h [B, T, C] with weight [V, C]: logits, and the loss where there are labels. */
static bool twi_language_head(tw_tensor *h, tw_tensor *weight, const tw_batch *in, const tw_pass *pass, bool shift, tw_outputs *out) {
    tw_tensor *labels = tw_batch_get(in, "labels"), *logits;
    if (!h) return false;
    if (labels && shift) labels = twi_shift_labels(labels);
    if (labels && pass->no_logits) return twi_output(out, "loss", tw_linear_cross_entropy(h, weight, labels, pass->label_smoothing));
    if (pass->last_token_only) h = tw_slice(h, 1, h->shape[1] - 1, 1);
    logits = tw_linear_op(h, weight, NULL, false, TW_ACT_NONE, NULL);
    if (!twi_output(out, "logits", logits)) return false;
    return !labels || pass->last_token_only || twi_output(out, "loss", tw_cross_entropy(logits, labels, pass->label_smoothing));
}

/* Whole numbers as floats, floats as they are. */
static tw_tensor *twi_as_floats(tw_tensor *t) {
    tw_tensor *f;
    if (!t || t->dtype == TW_F32) return t;
    f = twi_new(t->tw, TW_F32, t->rank, t->shape);
    if (f && twi_computes(f->tw)) tw_read(t, twi_f32(f), tw_count(f));
    return f;
}

/* A classifier's loss as transformers chooses it: problem_type if the config names one, else regression for a single
   label, one of many for whole numbers, any of many for floating ones. */
static bool twi_classifier_loss(tw_model *m, tw_tensor *logits, const tw_batch *in, tw_outputs *out) {
    tw_tensor *labels = tw_batch_get(in, "labels"), *loss;
    const char *problem = tw_json_string(twi_config_value(m, "problem_type"), "");
    bool regression, multi;
    if (!labels) return true;
    regression = strcmp(problem, "regression") == 0 || (!problem[0] && twi_columns(logits) == 1);
    multi = strcmp(problem, "multi_label_classification") == 0 || (!problem[0] && labels->dtype == TW_F32);
    if (regression || multi) {
        labels = twi_as_floats(labels);
        if (!labels || tw_count(labels) != tw_count(logits)) {
            twi_fail(m->region.tw, TW_E_SHAPE, "labels: %lld of them do not fit logits %s", (long long)tw_count(labels), TWI_SHAPE(logits));
            return false;
        }
        labels = tw_reshape(labels, tw_shape_of(logits));
        loss = regression ? tw_mse_loss(logits, labels) : tw_bce_with_logits(logits, labels);
    } else loss = tw_cross_entropy(logits, labels, 0);
    return twi_output(out, "loss", loss);
}

/* Question answering: logits [B, T, 2] are the scores of each token to be the answer's start and end.  A position past
   the end counts as not there; the loss is the mean of both cross-entropies. */
static tw_tensor *twi_position_loss(tw_tensor *logits, const tw_tensor *positions) {
    tw_tensor *labels;
    int64_t i, n = tw_count(positions);
    if (!logits || !twi_is_i32(positions, logits->tw, "positions")) return NULL;
    labels = twi_new(logits->tw, TW_I32, 1, &n);
    if (!labels) return NULL;
    if (twi_computes(logits->tw))
        for (i = 0; i < n; i++) {
            int32_t p = ((const int32_t *)positions->data)[i];
            ((int32_t *)labels->data)[i] = p < 0 ? 0 : p >= twi_columns(logits) ? TWI_IGNORED : p;
        }
    return tw_cross_entropy(logits, labels, 0);
}
static bool twi_question_head(tw_tensor *logits, const tw_batch *in, tw_outputs *out) {
    tw_tensor *start, *end, *start_at = tw_batch_get(in, "start_positions"), *end_at = tw_batch_get(in, "end_positions");
    tw_shape shape;
    if (!logits) return false;
    shape = tw_shape2(logits->shape[0], logits->shape[1]);
    start = tw_contiguous(tw_reshape(tw_slice(logits, 2, 0, 1), shape));
    end = tw_contiguous(tw_reshape(tw_slice(logits, 2, 1, 1), shape));
    if (!twi_output(out, "start_logits", start) || !twi_output(out, "end_logits", end)) return false;
    if (!start_at || !end_at) return true;
    return twi_output(out, "loss", tw_scale(tw_add(twi_position_loss(start, start_at), twi_position_loss(end, end_at)), 0.5f));
}

/* One row of h [B, T, C] for each b: [B, C] at positions [B]. */
static tw_tensor *twi_pick_tokens(tw_tensor *h, const int32_t *at) {
    tw_tensor *rows;
    int64_t b, batch = h->shape[0];
    rows = twi_new(h->tw, TW_I32, 1, &batch);
    if (!rows) return NULL;
    if (twi_computes(h->tw)) for (b = 0; b < batch; b++) ((int32_t *)rows->data)[b] = (int32_t)(b * h->shape[1] + at[b]);
    return tw_embedding_op(tw_reshape(h, tw_shape2(batch * h->shape[1], h->shape[2])), rows);
}

/* input_ids [B, T], checked against the vocabulary's size; choices [B, n, T] become rows.  NULL after an error. */
static tw_tensor *twi_input_ids(tw_model *m, const tw_batch *in, const char *name) {
    tw_tensor *ids = tw_batch_get(in, name);
    if (!ids) { twi_fail(m->region.tw, TW_E_MISSING, "forward: there are no %s", name); return NULL; }
    if (!twi_is_i32(ids, m->region.tw, name)) return NULL;
    if (ids->rank == 1) ids = tw_reshape(ids, tw_shape2(1, ids->shape[0]));
    if (ids && ids->rank == 3) ids = tw_reshape(ids, tw_shape2(ids->shape[0] * ids->shape[1], ids->shape[2]));
    if (ids && (ids->rank != 2 || tw_count(ids) == 0)) { twi_fail(m->region.tw, TW_E_SHAPE, "forward: %s of shape %s are no batch of tokens", name, TWI_SHAPE(ids)); return NULL; }
    return ids;
}
/* An optional I32 input with as many numbers as `like` has, in its shape. */
static bool twi_input_like(tw_model *m, const tw_batch *in, const char *name, const tw_tensor *like, tw_tensor **out) {
    tw_tensor *t = tw_batch_get(in, name);
    *out = NULL;
    if (!t) return true;
    if (!twi_is_i32(t, m->region.tw, name)) return false;
    if (tw_count(t) != tw_count(like) && !(t->rank <= 2 && t->rank > 0 && twi_columns(t) == twi_columns(like) && tw_count(t) == twi_columns(like))) {
        twi_fail(m->region.tw, TW_E_SHAPE, "forward: %s of shape %s does not fit input_ids of shape %s", name, TWI_SHAPE(t), TWI_SHAPE(like));
        return false;
    }
    if (tw_count(t) != tw_count(like)) {                        /* one row for all: repeat it */
        tw_tensor *all = twi_new(t->tw, TW_I32, like->rank, like->shape);
        int64_t i, n = tw_count(like), columns = tw_count(t);
        if (!all) return false;
        if (twi_computes(t->tw)) for (i = 0; i < n; i++) ((int32_t *)all->data)[i] = ((const int32_t *)t->data)[i % columns];
        *out = all;
        return true;
    }
    *out = tw_reshape(t, tw_shape_of(like));
    return *out != NULL;
}

/* -- GPT-2 (Radford et al. 2019) ----------------------------------------------------------------------------
   Easy to get wrong: the weights of c_attn, c_proj and c_fc are [in, out]; the activation is GELU by tanh; positions do not
   follow the attention mask; the head is the token embedding unless tie_word_embeddings is false. */
typedef struct tw_gpt2 {
    tw_embedding   wte, wpe;
    tw_gpt2_block *block;
    tw_layer_norm  ln_f;
    tw_linear      head;                       /* lm_head, score, classifier, or qa_outputs */
    tw_linear      summary;                    /* of the double head */
    tw_activation  summary_activation;
    float          embd_dropout, head_dropout;
    int64_t        layers, positions, vocab;
    twi_head       kind;
} tw_gpt2;

static twi_head twi_head_of(const tw_model *m);

static bool twi_gpt2_block_init(tw_model *m, tw_gpt2_block *b, int64_t layer, int64_t width, int64_t inner) {
    float eps = twi_config_float(m, "layer_norm_epsilon", 1e-5, 0, 1);
    int64_t layers = twi_config_int(m, "n_layer", 12, 1, 4096);
    float small = m->initializer_range / sqrtf(2.0f * (float)layers);   /* what is added to the stream starts smaller, the more blocks there are */
    b->heads = twi_config_int(m, "n_head", 12, 1, width);
    b->layer = layer;
    b->activation = twi_config_activation(m, "activation_function", "gelu_new");
    b->attn_dropout = twi_config_float(m, "attn_pdrop", 0.1, 0, 0.999);
    b->resid_dropout = twi_config_float(m, "resid_pdrop", 0.1, 0, 0.999);
    b->scale = twi_config_bool(m, "scale_attn_weights", true) ? 1.0f / sqrtf((float)(width / b->heads)) : 1.0f;
    if (twi_config_bool(m, "scale_attn_by_inverse_layer_idx", false)) b->scale /= (float)(layer + 1);
    b->has_cross = twi_config_bool(m, "add_cross_attention", false);
    if (tw_failed(m->region.tw)) return false;
    tw_enter(m, "h", layer);
    if (!tw_layer_norm_init(m, &b->ln_1, "ln_1", width, eps)) return false;
    tw_enter(m, "attn", -1);
    if (!tw_conv1d_init(m, &b->c_attn, "c_attn", width, 3 * width) || !tw_conv1d_init(m, &b->c_proj, "c_proj", width, width)) return false;
    tw_leave(m);
    tw_fill_normal(b->c_proj.weight, 0, small);
    if (!tw_layer_norm_init(m, &b->ln_2, "ln_2", width, eps)) return false;
    if (b->has_cross) {
        tw_enter(m, "crossattention", -1);
        if (!tw_conv1d_init(m, &b->cross_kv, "c_attn", width, 2 * width) || !tw_conv1d_init(m, &b->cross_q, "q_attn", width, width) ||
            !tw_conv1d_init(m, &b->cross_proj, "c_proj", width, width)) return false;
        tw_leave(m);
        tw_fill_normal(b->cross_proj.weight, 0, small);
        if (!tw_layer_norm_init(m, &b->ln_cross_attn, "ln_cross_attn", width, eps)) return false;
    }
    tw_enter(m, "mlp", -1);
    if (!tw_conv1d_init(m, &b->mlp_fc, "c_fc", width, inner) || !tw_conv1d_init(m, &b->mlp_proj, "c_proj", inner, width)) return false;
    tw_leave(m);
    tw_fill_normal(b->mlp_proj.weight, 0, small);
    tw_leave(m);
    return true;
}

static bool twi_gpt2_build(tw_model *m) {
    tw_gpt2 *g = (tw_gpt2 *)m->net;
    int64_t width = twi_config_int(m, "n_embd", 768, 1, 1 << 20), heads = twi_config_int(m, "n_head", 12, 1, width), inner, i;
    float eps = twi_config_float(m, "layer_norm_epsilon", 1e-5, 0, 1);
    g->vocab = twi_config_int(m, "vocab_size", 50257, 1, INT32_MAX - 1);
    g->positions = twi_config_int(m, "n_positions", 1024, 1, INT32_MAX - 1);
    g->layers = twi_config_int(m, "n_layer", 12, 1, 4096);
    inner = twi_config_int(m, "n_inner", 4 * width, 1, 1 << 24);
    g->embd_dropout = twi_config_float(m, "embd_pdrop", 0.1, 0, 0.999);
    g->kind = twi_head_of(m);
    m->initializer_range = twi_config_float(m, "initializer_range", 0.02, 0, 1e6);
    if (tw_failed(m->region.tw)) return false;
    if (width % heads != 0) { twi_fail(m->region.tw, TW_E_CONFIG, "config: n_embd %lld is not a multiple of n_head %lld", (long long)width, (long long)heads); return false; }
    g->block = (tw_gpt2_block *)twi_alloc(&m->region, (size_t)g->layers, sizeof *g->block);
    if (!g->block) return false;
    if (g->kind != TWI_HEAD_NONE) tw_enter(m, "transformer", -1);
    if (!tw_embedding_init(m, &g->wte, "wte", g->vocab, width) || !tw_embedding_init(m, &g->wpe, "wpe", g->positions, width)) return false;
    for (i = 0; i < g->layers; i++) if (!twi_gpt2_block_init(m, &g->block[i], i, width, inner)) return false;
    if (!tw_layer_norm_init(m, &g->ln_f, "ln_f", width, eps)) return false;
    if (g->kind != TWI_HEAD_NONE) tw_leave(m);
    m->head_begins = m->parameters;
    switch (g->kind) {
    case TWI_HEAD_NONE: break;
    case TWI_HEAD_LM:
    case TWI_HEAD_DOUBLE:
        g->head.model = m;
        if (twi_config_bool(m, "tie_word_embeddings", true)) {
            g->head.weight = g->wte.weight;
            if (!twi_add_alias(m, "lm_head.weight", g->wte.weight)) return false;
        } else if (!tw_linear_init(m, &g->head, "lm_head", width, g->vocab, false)) return false;
        if (g->kind == TWI_HEAD_DOUBLE) {
            const char *activation = tw_json_string(twi_config_value(m, "summary_activation"), NULL);
            bool project = twi_config_bool(m, "summary_use_proj", true), to_labels = twi_config_bool(m, "summary_proj_to_labels", true);
            int64_t labels = twi_config_int(m, "num_labels", 1, 1, 1 << 24);
            if (activation && !tw_activation_named(activation, &g->summary_activation)) { twi_fail(m->region.tw, TW_E_CONFIG, "config: summary_activation \"%.40s\" is not known here", activation); return false; }
            g->head_dropout = twi_config_float(m, "summary_first_dropout", 0.1, 0, 0.999);
            if (project && !tw_linear_init(m, &g->summary, "multiple_choice_head.summary", width, to_labels ? labels : width, true)) return false;
        }
        break;
    case TWI_HEAD_SEQUENCE: return tw_linear_init(m, &g->head, "score", width, twi_config_labels(m), false);
    case TWI_HEAD_TOKEN:
        g->head_dropout = twi_config_float(m, twi_config_value(m, "classifier_dropout") ? "classifier_dropout" : "hidden_dropout", 0.1, 0, 0.999);
        return tw_linear_init(m, &g->head, "classifier", width, twi_config_labels(m), true);
    case TWI_HEAD_QA: return tw_linear_init(m, &g->head, "qa_outputs", width, 2, true);
    default: break;
    }
    return !tw_failed(m->region.tw);
}

/* Positions of T tokens behind `past` earlier ones: 0, 1, 2, ... for every row. */
static tw_tensor *twi_positions(const tw_tensor *ids, int64_t past) {
    tw_tensor *positions = twi_new(ids->tw, TW_I32, 2, ids->shape);
    int64_t i, n = tw_count(ids), t = ids->shape[1];
    if (positions && twi_computes(ids->tw)) for (i = 0; i < n; i++) ((int32_t *)positions->data)[i] = (int32_t)(past + i % t);
    return positions;
}
/* A mask of keys, or NULL where it hides nothing. */
static bool twi_key_mask(tw_model *m, tw_tensor *mask, int64_t batch, int64_t keys, tw_tensor **out) {
    int64_t i, n = tw_count(mask);
    *out = NULL;
    if (!mask) return true;
    if (!twi_is_i32(mask, m->region.tw, "attention_mask")) return false;
    if (n != batch * keys) {
        twi_fail(m->region.tw, TW_E_SHAPE, "forward: an attention_mask of shape %s does not fit %lld x %lld tokens", TWI_SHAPE(mask), (long long)batch, (long long)keys);
        return false;
    }
    if (twi_computes(m->region.tw)) {
        for (i = 0; i < n && ((const int32_t *)mask->data)[i] != 0; i++) continue;
        if (i == n) return true;
    }
    *out = tw_reshape(mask, tw_shape2(batch, keys));
    return *out != NULL;
}

/* The right-most token of each row that is not padding. */
static bool twi_last_tokens(tw_model *m, const tw_tensor *ids, int32_t *at) {
    const tw_json *pad = twi_config_value(m, "pad_token_id");
    int64_t b, t, batch = ids->shape[0], length = ids->shape[1], pad_id = tw_json_int(pad, -1);
    if (!pad && batch > 1) {
        twi_fail(m->region.tw, TW_E_CONFIG, "forward: cannot handle batch sizes > 1 if no padding token is defined (pad_token_id)");
        return false;
    }
    for (b = 0; b < batch; b++) {
        at[b] = pad ? 0 : (int32_t)(length - 1);
        for (t = 0; twi_computes(m->region.tw) && pad && t < length; t++)
            if (((const int32_t *)ids->data)[b * length + t] != pad_id) at[b] = (int32_t)t;
    }
    return true;
}

/* The heads that decoders have in common, on their last hidden states h [B, T, C]. */
static bool twi_decoder_heads(tw_model *m, twi_head kind, const tw_linear *head, float dropout, tw_tensor *h, const tw_tensor *ids,
                              const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_tensor *logits, *labels;
    int32_t *at;
    switch (kind) {
    case TWI_HEAD_NONE: return twi_output(out, "last_hidden_state", h);
    case TWI_HEAD_LM: return twi_language_head(h, head->weight, in, pass, true, out);
    case TWI_HEAD_QA: return twi_question_head(tw_linear_forward(head, h), in, out);
    case TWI_HEAD_TOKEN:
        labels = tw_batch_get(in, "labels");
        logits = tw_linear_forward(head, tw_dropout(h, dropout));
        return twi_output(out, "logits", logits) && (!labels || twi_output(out, "loss", tw_cross_entropy(logits, labels, 0)));
    case TWI_HEAD_SEQUENCE:
        at = (int32_t *)twi_step_record(m->region.tw, (size_t)ids->shape[0] * sizeof *at);
        if (!at || !twi_last_tokens(m, ids, at)) return false;
        logits = tw_linear_forward(head, twi_pick_tokens(h, at));
        return twi_output(out, "logits", logits) && twi_classifier_loss(m, logits, in, out);
    default: return false;
    }
}

/* Language model and multiple choice at once. */
static bool twi_gpt2_double_head(tw_model *m, tw_tensor *h, const tw_tensor *ids, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_gpt2 *g = (tw_gpt2 *)m->net;
    tw_tensor *logits;
    int32_t *at;
    tw_tensor *given = tw_batch_get(in, "input_ids"), *where = tw_batch_get(in, "mc_token_ids"), *labels = tw_batch_get(in, "mc_labels");
    int64_t b, rows = ids->shape[0], choices = given->rank == 3 ? given->shape[1] : 1;
    if (!twi_language_head(h, g->head.weight, in, pass, true, out)) return false;
    logits = tw_batch_get(out, "logits");
    if (logits && given->rank == 3 && !twi_output(out, "logits", tw_reshape(logits, tw_shape4(rows / choices, choices, logits->shape[1], logits->shape[2])))) return false;
    at = (int32_t *)twi_step_record(m->region.tw, (size_t)rows * sizeof *at);
    if (!at) return false;
    if (where && (!twi_is_i32(where, m->region.tw, "mc_token_ids") || tw_count(where) != rows || !twi_ids_in_range(where, ids->shape[1], 0, "mc_token_ids"))) {
        twi_fail(m->region.tw, TW_E_SHAPE, "forward: mc_token_ids do not name one token a choice");
        return false;
    }
    for (b = 0; b < rows; b++) at[b] = where && twi_computes(m->region.tw) ? ((const int32_t *)where->data)[b] : (int32_t)(ids->shape[1] - 1);
    logits = tw_dropout(twi_pick_tokens(h, at), g->head_dropout);
    if (g->summary.weight) logits = tw_linear_activate(&g->summary, logits, g->summary_activation);
    if (!logits) return false;
    logits = tw_reshape(logits, twi_columns(logits) == 1 ? tw_shape2(rows / choices, choices) : tw_shape3(rows / choices, choices, twi_columns(logits)));
    if (!twi_output(out, "mc_logits", logits)) return false;
    return !labels || twi_output(out, "mc_loss", tw_cross_entropy(logits, labels, 0));
}

static bool twi_gpt2_forward(tw_model *m, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_gpt2 *g = (tw_gpt2 *)m->net;
    tw_context *tw = m->region.tw;
    tw_tensor *ids = twi_input_ids(m, in, "input_ids"), *positions, *types, *x, *inputs[2];
    int64_t past = pass->cache ? pass->cache->length : 0, i;
    twi_stream stream;
    tw_gpt2_input how;
    if (!ids) return false;
    if (past + ids->shape[1] > g->positions && !tw_batch_get(in, "position_ids")) {
        twi_fail(tw, TW_E_RANGE, "forward: %lld tokens are more than the model's %lld positions", (long long)(past + ids->shape[1]), (long long)g->positions);
        return false;
    }
    memset(&how, 0, sizeof how);
    how.pass = pass;
    if (!twi_input_like(m, in, "position_ids", ids, &positions) || !twi_input_like(m, in, "token_type_ids", ids, &types)) return false;
    if (!twi_key_mask(m, tw_batch_get(in, "attention_mask"), ids->shape[0], past + ids->shape[1], &how.key_mask)) return false;
    inputs[1] = tw_batch_get(in, "encoder_hidden_states");
    if (inputs[1] && inputs[1]->rank != 3) { twi_fail(tw, TW_E_SHAPE, "forward: encoder_hidden_states of shape %s are not [B, T, C]", TWI_SHAPE(inputs[1])); return false; }
    if (inputs[1] && !twi_key_mask(m, tw_batch_get(in, "encoder_attention_mask"), inputs[1]->shape[0], inputs[1]->shape[1], &how.encoder_mask)) return false;
    if (!positions) positions = twi_positions(ids, past);

    x = tw_add(tw_embedding_forward(&g->wte, ids), tw_embedding_forward(&g->wpe, positions));
    if (types) x = tw_add(x, tw_embedding_forward(&g->wte, types));
    x = twi_stream_begin(&stream, tw_dropout(x, g->embd_dropout), pass->hidden_states);
    if (!x) return false;
    for (i = 0; i < g->layers; i++) {
        if (pass->hidden_states && !twi_numbered_output(out, "hidden_states", i, x)) return false;
        how.block = &g->block[i];
        inputs[0] = x;
        x = twi_stream_next(&stream, x, m->checkpointing ? tw_checkpoint(tw, tw_gpt2_block_forward, &how, sizeof how, inputs, inputs[1] ? 2 : 1)
                                                         : tw_gpt2_block_forward(&how, inputs));
        if (!x) return false;
    }
    if (pass->last_token_only && g->kind == TWI_HEAD_LM) x = tw_slice(x, 1, x->shape[1] - 1, 1);
    x = tw_layer_norm_forward(&g->ln_f, x);
    if (pass->hidden_states && !twi_numbered_output(out, "hidden_states", g->layers, x)) return false;
    if (!x) return false;
    if (g->kind == TWI_HEAD_DOUBLE ? !twi_gpt2_double_head(m, x, ids, in, pass, out)
                                   : !twi_decoder_heads(m, g->kind, &g->head, g->head_dropout, x, ids, in, pass, out)) return false;
    if (pass->cache) pass->cache->length += ids->shape[1];
    return true;
}

static void twi_gpt2_set_dropout(tw_model *m, float p) {
    tw_gpt2 *g = (tw_gpt2 *)m->net;
    int64_t i;
    g->embd_dropout = g->head_dropout = p;
    for (i = 0; i < g->layers; i++) g->block[i].attn_dropout = g->block[i].resid_dropout = p;
}

static bool twi_gpt2_decoder(const tw_model *m, twi_decoder *d) {
    const tw_gpt2 *g = (const tw_gpt2 *)m->net;
    d->layers = g->layers;
    d->heads = g->block[0].heads;
    d->head_dim = tw_dim(g->wte.weight, 1) / d->heads;
    d->vocab = g->vocab;
    d->positions = g->positions;
    d->eos = 50256;
    return g->kind == TWI_HEAD_LM || g->kind == TWI_HEAD_DOUBLE;
}

static const twi_model_type twi_gpt2_type = { "gpt2", "transformer.", sizeof(tw_gpt2), twi_gpt2_build, twi_gpt2_forward, twi_gpt2_set_dropout, twi_gpt2_decoder, NULL,
                                              "n_positions" };

/* -- T5 and mT5 (Raffel et al. 2020; Xue et al. 2021) ---------------------------------------------------------------------
   An encoder reads one text, a decoder writes another.  Where a token stands is told by a bias on the scores that depends on
   the distance alone: one small table for each stack, in its first block, for all of them; the cross-attention has none.

   Easy to get wrong: T5 of 2019 scales the decoder's output by d_model^-1/2 before the head, T5 1.1 and mT5 do not (they
   have a head of their own), and only config.json tells: scale_decoder_outputs, or where there is none whether
   tie_word_embeddings is anything but false.  FlagAI's T5 never does: give it "scale_decoder_outputs": false.
   Whether head and embedding are one matrix is the file's say, not the config's.
   "gated-gelu" is GELU by tanh, "gelu" the one by erf.  Labels are not shifted in the loss: the decoder's input is. */
typedef struct tw_t5_stack {
    tw_embedding relative;                     /* relative_attention_bias [buckets, heads] */
    tw_t5_block *block;
    tw_rms_norm  final_norm;
    int64_t      layers;
    bool         decoder;
} tw_t5_stack;

typedef struct tw_t5 {
    tw_embedding shared;                       /* [vocab, d_model]; both stacks' and usually the head's */
    tw_t5_stack  encoder, decoder;             /* decoder.layers is 0 where there is none */
    tw_tensor   *lm_head;                      /* shared.weight, or the head's own */
    tw_linear    dense, head;                  /* classification_head.dense and .out_proj; classifier, qa_outputs */
    int64_t      vocab, buckets, max_distance;
    int64_t      start, pad;                   /* -1: the config has none */
    float        dropout, head_dropout, scale; /* scale: of what goes into the head */
    twi_head     kind;
} tw_t5;

static bool twi_is_mt5(const tw_model *m) { return strcmp(m->type->name, "mt5") == 0; }

static bool twi_t5_linear(tw_model *m, tw_linear *layer, const char *name, int64_t in, int64_t out, double deviation) {
    if (!tw_linear_init(m, layer, name, in, out, false)) return false;
    if (!m->from_file) tw_fill_normal(layer->weight, 0, (float)deviation);
    return true;
}
static bool twi_t5_norm(tw_model *m, tw_rms_norm *layer, const char *name, int64_t width, double factor) {
    if (!tw_rms_norm_init(m, layer, name, width, twi_config_float(m, "layer_norm_epsilon", 1e-6, 0, 1))) return false;
    if (!m->from_file) tw_fill(layer->weight, (float)factor);
    return true;
}

/* layer.N.NAME and layer.N.layer_norm.  The bias table, where this is the attention that has it, stands behind o. */
static bool twi_t5_attention_init(tw_model *m, tw_t5_attention *a, int64_t sublayer, const char *name, int64_t width, double factor, tw_embedding *relative) {
    int64_t inner;
    a->heads = twi_config_int(m, "num_heads", twi_is_mt5(m) ? 6 : 8, 1, 1 << 16);
    a->head_dim = twi_config_int(m, "d_kv", 64, 1, 1 << 16);
    if (tw_failed(m->region.tw)) return false;
    inner = a->heads * a->head_dim;
    tw_enter(m, "layer", sublayer);
    tw_enter(m, name, -1);
    if (!twi_t5_linear(m, &a->q, "q", width, inner, factor / sqrt((double)width * (double)a->head_dim)) ||
        !twi_t5_linear(m, &a->k, "k", width, inner, factor / sqrt((double)width)) ||
        !twi_t5_linear(m, &a->v, "v", width, inner, factor / sqrt((double)width)) ||
        !twi_t5_linear(m, &a->o, "o", inner, width, factor / sqrt((double)inner))) return false;
    if (relative) {
        if (!tw_embedding_init(m, relative, "relative_attention_bias", ((tw_t5 *)m->net)->buckets, a->heads)) return false;
        if (!m->from_file) tw_fill_normal(relative->weight, 0, (float)(factor / sqrt((double)width)));
    }
    tw_leave(m);
    if (!twi_t5_norm(m, &a->norm, "layer_norm", width, factor)) return false;
    tw_leave(m);
    return true;
}

static bool twi_t5_stack_init(tw_model *m, tw_t5_stack *s, const char *name, int64_t layers, bool decoder, int64_t width, double factor) {
    int64_t inner = twi_config_int(m, "d_ff", twi_is_mt5(m) ? 1024 : 2048, 1, 1 << 24), i;
    const char *kind = tw_json_string(twi_config_value(m, "feed_forward_proj"), twi_is_mt5(m) ? "gated-gelu" : "relu"), *dash = strchr(kind, '-');
    tw_activation activation = TW_ACT_NONE;
    bool gated = dash && strncmp(kind, "gated-", 6) == 0;
    if (twi_config_value(m, "feed_forward_proj") && tw_json_type(twi_config_value(m, "feed_forward_proj")) != TW_JSON_STRING) kind = "";
    if ((dash && (!gated || strchr(dash + 1, '-'))) || !tw_activation_named(strcmp(kind, "gated-gelu") == 0 ? "gelu_new" : gated ? dash + 1 : kind, &activation)) {
        twi_fail(m->region.tw, TW_E_CONFIG, "config: feed_forward_proj \"%.40s\" is neither an activation known here nor gated- and one", kind);
        return false;
    }
    if (tw_failed(m->region.tw)) return false;
    s->layers = layers;
    s->decoder = decoder;
    s->block = (tw_t5_block *)twi_alloc(&m->region, (size_t)layers, sizeof *s->block);
    if (!s->block) return false;
    tw_enter(m, name, -1);
    for (i = 0; i < layers; i++) {
        tw_t5_block *b = &s->block[i];
        b->layer = i;
        b->decoder = decoder;
        b->gated = gated;
        b->activation = activation;
        b->dropout = ((tw_t5 *)m->net)->dropout;
        tw_enter(m, "block", i);
        if (!twi_t5_attention_init(m, &b->self, 0, "SelfAttention", width, factor, i == 0 ? &s->relative : NULL)) return false;
        if (decoder && !twi_t5_attention_init(m, &b->cross, 1, "EncDecAttention", width, factor, NULL)) return false;
        tw_enter(m, "layer", decoder ? 2 : 1);
        tw_enter(m, "DenseReluDense", -1);
        if (!twi_t5_linear(m, &b->wi, gated ? "wi_0" : "wi", width, inner, factor / sqrt((double)width)) ||
            (gated && !twi_t5_linear(m, &b->wi_1, "wi_1", width, inner, factor / sqrt((double)width))) ||
            !twi_t5_linear(m, &b->wo, "wo", inner, width, factor / sqrt((double)inner))) return false;
        tw_leave(m);
        if (!twi_t5_norm(m, &b->norm, "layer_norm", width, factor)) return false;
        tw_leave(m);
        tw_leave(m);
    }
    if (!twi_t5_norm(m, &s->final_norm, "final_layer_norm", width, factor)) return false;
    tw_leave(m);
    return true;
}

/* A token that the config may name; -1: it does not. */
static int64_t twi_config_token(tw_model *m, const char *key, int64_t otherwise, int64_t vocab) {
    const tw_json *v = tw_json_get(m->config, key);
    if (tw_json_type(v) == TW_JSON_NULL || (!v && otherwise < 0)) return -1;
    return twi_config_int(m, key, otherwise, 0, vocab - 1);
}

static bool twi_t5_build(tw_model *m) {
    tw_t5 *t = (tw_t5 *)m->net;
    int64_t width = twi_config_int(m, "d_model", 512, 1, 1 << 20), layers = twi_config_int(m, "num_layers", twi_is_mt5(m) ? 8 : 6, 1, 4096);
    int64_t decoder_layers = twi_config_int(m, "num_decoder_layers", layers, 1, 4096);
    double factor = (double)twi_config_float(m, "initializer_factor", 1, 0, 1e6);
    bool tied = twi_config_bool(m, "tie_word_embeddings", true), decodes;
    t->kind = twi_head_of(m);
    decodes = t->kind != TWI_HEAD_ENCODER && t->kind != TWI_HEAD_TOKEN;
    t->vocab = twi_config_int(m, "vocab_size", twi_is_mt5(m) ? 250112 : 32128, 1, INT32_MAX - 1);
    t->buckets = twi_config_int(m, "relative_attention_num_buckets", 32, 4, 1 << 20);
    t->max_distance = twi_config_int(m, "relative_attention_max_distance", 128, 1, INT32_MAX);
    t->dropout = twi_config_float(m, "dropout_rate", 0.1, 0, 0.999);
    t->head_dropout = twi_config_float(m, "classifier_dropout", 0, 0, 0.999);
    t->start = twi_config_token(m, "decoder_start_token_id", twi_is_mt5(m) ? 0 : -1, t->vocab);
    t->pad = twi_config_token(m, "pad_token_id", 0, t->vocab);
    t->scale = !twi_is_mt5(m) && twi_config_bool(m, "scale_decoder_outputs", tied) ? 1.0f / sqrtf((float)width) : 1.0f;
    if (tw_failed(m->region.tw)) return false;
    if (t->max_distance <= t->buckets / (decodes ? 2 : 4)) {
        twi_fail(m->region.tw, TW_E_CONFIG, "config: relative_attention_max_distance %lld must be larger than the %lld distances that have a bucket of their own",
                 (long long)t->max_distance, (long long)(t->buckets / (decodes ? 2 : 4)));
        return false;
    }
    if (t->kind == TWI_HEAD_SEQUENCE || t->kind == TWI_HEAD_TOKEN) tw_enter(m, "transformer", -1);
    if (!tw_embedding_init(m, &t->shared, "shared", t->vocab, width) || !twi_add_alias(m, "encoder.embed_tokens.weight", t->shared.weight) ||
        !twi_add_alias(m, "decoder.embed_tokens.weight", t->shared.weight)) return false;
    if (!m->from_file) tw_fill_normal(t->shared.weight, 0, (float)factor);
    if (!twi_t5_stack_init(m, &t->encoder, "encoder", layers, false, width, factor)) return false;
    if (decodes && !twi_t5_stack_init(m, &t->decoder, "decoder", decoder_layers, true, width, factor)) return false;
    if (t->kind == TWI_HEAD_SEQUENCE || t->kind == TWI_HEAD_TOKEN) tw_leave(m);
    m->head_begins = m->parameters;
    switch (t->kind) {
    case TWI_HEAD_LM:                          /* a new T5 1.1 has a head of its own; one that is opened has what its file has */
        if (tied || twi_is_mt5(m) || (m->from_file && !m->region.tw->planning)) {
            t->lm_head = t->shared.weight;
            return twi_add_tied(m, "lm_head.weight", &t->lm_head);
        }
        t->lm_head = tw_add_parameter(m, "lm_head.weight", tw_shape2(t->vocab, width));
        if (!m->from_file) tw_fill_normal(t->lm_head, 0, (float)factor);
        return t->lm_head != NULL;
    case TWI_HEAD_SEQUENCE:
        tw_enter(m, "classification_head", -1);
        m->initializer_range = (float)(factor / sqrt((double)width));
        if (!tw_linear_init(m, &t->dense, "dense", width, width, true) || !tw_linear_init(m, &t->head, "out_proj", width, twi_config_labels(m), true)) return false;
        tw_leave(m);
        break;
    case TWI_HEAD_TOKEN:
        m->initializer_range = (float)factor;
        return tw_linear_init(m, &t->head, "classifier", width, twi_config_labels(m), true);
    case TWI_HEAD_QA:
        m->initializer_range = (float)(factor / sqrt((double)width));
        return tw_linear_init(m, &t->head, "qa_outputs", width, 2, true);
    default: break;
    }
    return !tw_failed(m->region.tw);
}

/* The bias of every distance that T queries behind `past` keys can have: [heads, T + Tk - 1], from 1 - T - past on. */
static tw_tensor *twi_t5_bias(const tw_t5 *t, const tw_t5_stack *s, int64_t queries, int64_t past) {
    tw_context *tw = s->relative.weight->tw;
    int64_t count = 2 * queries + past - 1, i;
    tw_tensor *bucket = tw_ids(tw, tw_shape1(count), NULL);
    if (!bucket) return NULL;
    if (twi_computes(tw))
        for (i = 0; i < count; i++) ((int32_t *)bucket->data)[i] = (int32_t)tw_t5_bucket(i + 1 - queries - past, !s->decoder, t->buckets, t->max_distance);
    return tw_contiguous(tw_transpose(tw_embedding_forward(&s->relative, bucket), 0, 1));
}

/* One stack: x [B, T, C] -> [B, T, C].  names: of the hidden states that are given out. */
static tw_tensor *twi_t5_stack_forward(tw_model *m, const tw_t5_stack *s, tw_tensor *ids, tw_tensor *encoder, tw_t5_input *how, const char *names, tw_outputs *out) {
    const tw_t5 *t = (const tw_t5 *)m->net;
    const tw_pass *pass = how->pass;
    tw_tensor *inputs[3], *x;
    int64_t past = s->decoder && pass->cache ? pass->cache->length : 0, i;
    twi_stream stream;
    inputs[1] = twi_t5_bias(t, s, ids->shape[1], past);
    inputs[2] = encoder;
    if (!inputs[1]) return NULL;
    x = twi_stream_begin(&stream, tw_dropout(tw_embedding_forward(&t->shared, ids), t->dropout), pass->hidden_states);
    for (i = 0; x && i < s->layers; i++) {
        if (pass->hidden_states && !twi_numbered_output(out, names, i, x)) return NULL;
        how->block = &s->block[i];
        inputs[0] = x;
        x = twi_stream_next(&stream, x, m->checkpointing ? tw_checkpoint(m->region.tw, tw_t5_block_forward, how, sizeof *how, inputs, s->decoder ? 3 : 2)
                                                         : tw_t5_block_forward(how, inputs));
    }
    if (x && s->decoder && pass->last_token_only && t->kind == TWI_HEAD_LM) x = tw_slice(x, 1, x->shape[1] - 1, 1);
    x = x ? tw_dropout(tw_rms_norm_forward(&s->final_norm, x), t->dropout) : NULL;
    if (x && pass->hidden_states && !twi_numbered_output(out, names, s->layers, x)) return NULL;
    return x;
}

/* What a decoder reads while it learns to write `labels`: the start token, then the labels one place to the right; where they
   are ignored, padding. */
static tw_tensor *twi_t5_shift_right(tw_model *m, const tw_tensor *labels) {
    const tw_t5 *t = (const tw_t5 *)m->net;
    tw_tensor *ids;
    int64_t i, n = tw_count(labels), length = twi_columns(labels);
    if (!twi_is_i32(labels, m->region.tw, "labels")) return NULL;
    if (t->start < 0 || t->pad < 0) {
        twi_fail(m->region.tw, TW_E_CONFIG, "config: there is no %s to begin the decoder's input with", t->start < 0 ? "decoder_start_token_id" : "pad_token_id");
        return NULL;
    }
    ids = twi_new(m->region.tw, TW_I32, labels->rank, labels->shape);
    if (ids && twi_computes(m->region.tw)) for (i = 0; i < n; i++) {
        int32_t before = i % length ? ((const int32_t *)labels->data)[i - 1] : (int32_t)t->start;
        ((int32_t *)ids->data)[i] = before == TWI_IGNORED ? (int32_t)t->pad : before;
    }
    return ids;
}

/* The last end token of each row: what stands for the row in a classifier.  Every row must have as many as the first. */
static bool twi_t5_last_ends(tw_model *m, const tw_tensor *ids, int32_t *at) {
    int64_t end = tw_json_int(twi_config_value(m, "eos_token_id"), 1), b, i, batch = ids->shape[0], length = ids->shape[1], count, first = 0;
    for (b = 0; b < batch; b++) {
        at[b] = (int32_t)(length - 1);
        if (!twi_computes(m->region.tw)) continue;
        for (i = count = 0; i < length; i++) if (((const int32_t *)ids->data)[b * length + i] == end) { at[b] = (int32_t)i; count++; }
        if (b == 0) first = count;
        if (count != 0 && count == first) continue;
        twi_fail(m->region.tw, TW_E_ARGUMENT, "forward: row %lld of input_ids has %lld end tokens (%lld), the first row %lld: every row needs as many, and one at least",
                 (long long)b, (long long)count, (long long)end, (long long)first);
        return false;
    }
    return true;
}

static bool twi_t5_heads(tw_model *m, tw_tensor *h, const tw_tensor *ids, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    const tw_t5 *t = (const tw_t5 *)m->net;
    tw_tensor *logits;
    int32_t *at;
    switch (t->kind) {
    case TWI_HEAD_LM: return twi_language_head(t->scale < 1 ? tw_scale(h, t->scale) : h, t->lm_head, in, pass, false, out);
    case TWI_HEAD_SEQUENCE:
        if (!ids || ids->shape[0] != h->shape[0] || ids->shape[1] != h->shape[1]) {
            twi_fail(m->region.tw, TW_E_SHAPE, "forward: the decoder of a classifier reads as many tokens as the encoder, not %lld", (long long)h->shape[1]);
            return false;
        }
        at = (int32_t *)twi_step_record(m->region.tw, (size_t)ids->shape[0] * sizeof *at);
        if (!at || !twi_t5_last_ends(m, ids, at)) return false;
        logits = tw_dropout(tw_linear_activate(&t->dense, tw_dropout(twi_pick_tokens(h, at), t->head_dropout), TW_ACT_TANH), t->head_dropout);
        logits = tw_linear_forward(&t->head, logits);
        return twi_output(out, "logits", logits) && twi_classifier_loss(m, logits, in, out);
    default: return twi_decoder_heads(m, t->kind == TWI_HEAD_ENCODER ? TWI_HEAD_NONE : t->kind, &t->head, t->head_dropout, h, ids, in, pass, out);
    }
}

/* The decoder's tokens: as they are given, or made of the labels, or (classifiers) of what the encoder reads. */
static tw_tensor *twi_t5_decoder_ids(tw_model *m, const tw_batch *in, tw_tensor *ids) {
    const tw_t5 *t = (const tw_t5 *)m->net;
    tw_tensor *from = t->kind == TWI_HEAD_LM ? tw_batch_get(in, "labels") : t->kind == TWI_HEAD_NONE ? NULL : ids, *shifted;
    tw_batch one;
    if (tw_batch_get(in, "decoder_input_ids") || !from) return twi_input_ids(m, in, "decoder_input_ids");
    shifted = twi_t5_shift_right(m, from);
    memset(&one, 0, sizeof one);
    return shifted && tw_batch_set(&one, "decoder_input_ids", shifted) ? twi_input_ids(m, &one, "decoder_input_ids") : NULL;
}

static bool twi_t5_forward(tw_model *m, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    const tw_t5 *t = (const tw_t5 *)m->net;
    tw_context *tw = m->region.tw;
    tw_cache *cache = pass->cache;
    bool decodes = t->decoder.layers > 0, read = cache && cache->encoder_read;
    tw_tensor *ids = NULL, *encoder = read ? NULL : tw_batch_get(in, "encoder_outputs"), *decoder_ids, *mask = tw_batch_get(in, "attention_mask"), *h;
    int64_t rows, tokens, past = cache ? cache->length : 0;
    tw_t5_input how;
    memset(&how, 0, sizeof how);
    how.pass = pass;
    if (tw_batch_get(in, "input_ids") || (!read && !encoder)) { ids = twi_input_ids(m, in, "input_ids"); if (!ids) return false; }
    if (encoder && (encoder->rank != 3 || encoder->shape[2] != tw_dim(t->shared.weight, 1) || encoder->dtype != TW_F32)) {
        twi_fail(tw, TW_E_SHAPE, "forward: encoder_outputs of shape %s are no hidden states of this model", TWI_SHAPE(encoder));
        return false;
    }
    if (cache && decodes && !cache->encoder_keys) { twi_fail(tw, TW_E_ARGUMENT, "forward: the cache has no room for what the decoder reads of the encoder (tw_cache_add_encoder)"); return false; }
    rows = read ? cache->batch : encoder ? encoder->shape[0] : ids->shape[0];
    tokens = read ? cache->encoder_tokens : encoder ? encoder->shape[1] : ids->shape[1];
    if (!twi_key_mask(m, mask, rows, tokens, &how.key_mask)) return false;
    how.encoder_mask = how.key_mask;
    if (!read && !encoder) {
        encoder = twi_t5_stack_forward(m, &t->encoder, ids, NULL, &how, decodes ? "encoder_hidden_states" : "hidden_states", out);
        if (!encoder) return false;
    }
    if (!decodes) return twi_t5_heads(m, encoder, ids, in, pass, out);
    if (!read && (pass->hidden_states || t->kind == TWI_HEAD_NONE) && !twi_output(out, "encoder_last_hidden_state", encoder)) return false;
    decoder_ids = twi_t5_decoder_ids(m, in, ids);
    if (!decoder_ids) return false;
    if (decoder_ids->shape[0] != rows) {
        twi_fail(tw, TW_E_SHAPE, "forward: %lld rows for the decoder, %lld for the encoder", (long long)decoder_ids->shape[0], (long long)rows);
        return false;
    }
    if (!twi_key_mask(m, tw_batch_get(in, "decoder_attention_mask"), rows, past + decoder_ids->shape[1], &how.key_mask)) return false;
    h = twi_t5_stack_forward(m, &t->decoder, decoder_ids, encoder, &how, "decoder_hidden_states", out);
    if (!h || !twi_t5_heads(m, h, ids, in, pass, out)) return false;
    if (cache) { cache->length += decoder_ids->shape[1]; cache->encoder_read = true; }
    return true;
}

static void twi_t5_set_dropout(tw_model *m, float p) {
    tw_t5 *t = (tw_t5 *)m->net;
    int64_t i;
    t->dropout = t->head_dropout = p;
    for (i = 0; i < t->encoder.layers; i++) t->encoder.block[i].dropout = p;
    for (i = 0; i < t->decoder.layers; i++) t->decoder.block[i].dropout = p;
}

/* The start token is generation_config.json's, config.json's, or the bos token. */
static bool twi_t5_decoder(const tw_model *m, twi_decoder *d) {
    const tw_t5 *t = (const tw_t5 *)m->net;
    if (t->kind != TWI_HEAD_LM) return false;
    d->layers = t->decoder.layers;
    d->heads = t->decoder.block[0].self.heads;
    d->head_dim = t->decoder.block[0].self.head_dim;
    d->vocab = t->vocab;
    d->positions = INT32_MAX - 1;
    d->eos = 1;
    d->start = tw_json_int(tw_json_get(m->generation_config, "decoder_start_token_id"), t->start);
    if (d->start < 0) d->start = tw_json_int(tw_json_get(m->generation_config, "bos_token_id"), tw_json_int(tw_json_get(m->config, "bos_token_id"), -1));
    if (d->start >= 0 && d->start < d->vocab) return true;
    twi_fail(m->region.tw, TW_E_CONFIG, "config: there is no decoder_start_token_id (nor a bos_token_id) in the vocabulary to begin with");
    return true;
}

static bool twi_t5_prepare(tw_model *m, const twi_reading *r, tw_batch *in) {
    if (!r->cache->encoder_read && !tw_batch_set(in, "input_ids", tw_ids(m->region.tw, tw_shape2(1, r->given_count), r->given))) return false;
    return tw_batch_set(in, "decoder_input_ids", twi_reading_ids(m, r));
}

static const twi_model_type twi_t5_type = { "t5", "transformer.", sizeof(tw_t5), twi_t5_build, twi_t5_forward, twi_t5_set_dropout, twi_t5_decoder, twi_t5_prepare, NULL };
static const twi_model_type twi_mt5_type = { "mt5", "transformer.", sizeof(tw_t5), twi_t5_build, twi_t5_forward, twi_t5_set_dropout, twi_t5_decoder, twi_t5_prepare, NULL };

/* -- BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2019) ---------------------
   One encoder, three sets of names.  Easy to get wrong: the norms come after the sums, and the embeddings have one too; GELU is
   the one by erf; the pooler is tanh(dense(first token)), and only heads on a whole text have it; masked words are asked for
   where they stand, without a shift; padding's own embedding never learns.
   RoBERTa: positions count the tokens that are no padding, from pad_token_id + 1 on, and padding itself is at position
   pad_token_id; the head for masked words has GELU whatever hidden_act says; a classifier has a dense layer of its own.

   FlagAI's models on the same encoder: segment_ids is another name of token_type_ids, tokens with id 0 are never seen,
   and their checkpoints hold q, k and v as one matrix, and the encoder under "model.".  */
typedef struct tw_bert {
    tw_embedding   words, positions, types;
    tw_layer_norm  norm;                       /* of the embeddings */
    tw_bert_block *block;
    tw_linear      pooler;
    tw_linear      transform, decoder;         /* masked words: norm(act(transform h)) decoder^T + bias */
    tw_layer_norm  transform_norm;
    tw_activation  transform_activation;
    tw_linear      relationship;               /* next sentence */
    tw_linear      dense;                      /* RoBERTa's classifier: tanh(dense(first token)) */
    tw_linear      head;                       /* classifier, qa_outputs, out_layer, final_dense, gp.dense */
    tw_tensor     *transitions;                /* [labels, labels] of a CRF: from row to column */
    float          hidden_dropout, head_dropout;
    int64_t        layers, width, vocab, max_positions, labels, inner;
    int64_t        pad;                        /* pad_token_id; -1: none */
    bool           causal, roberta, flagai;
    twi_head       kind;
} tw_bert;

static bool twi_bert_build(tw_model *m);
static bool twi_bert_forward(tw_model *m, const tw_batch *in, const tw_pass *pass, tw_outputs *out);
static void twi_bert_set_dropout(tw_model *m, float p);
static bool twi_bert_decoder(const tw_model *m, twi_decoder *d);
static bool twi_bert_prepare(tw_model *m, const twi_reading *r, tw_batch *in);
#define TWI_BERT_TYPE(name, prefix) \
    { name, prefix, sizeof(tw_bert), twi_bert_build, twi_bert_forward, twi_bert_set_dropout, twi_bert_decoder, twi_bert_prepare, \
      "max_position_embeddings" }
static const twi_model_type twi_bert_type = TWI_BERT_TYPE("bert", "bert."), twi_flagai_bert_type = TWI_BERT_TYPE("bert", "bert."),
                            twi_roberta_type = TWI_BERT_TYPE("roberta", "roberta."), twi_xlm_roberta_type = TWI_BERT_TYPE("xlm-roberta", "roberta.");

static bool twi_bert_attention_init(tw_model *m, tw_bert_attention *a, const char *name, int64_t width, float eps) {
    bool ok;
    tw_enter(m, name, -1);
    ok = tw_linear_init(m, &a->query, "self.query", width, width, true) && tw_linear_init(m, &a->key, "self.key", width, width, true) &&
         tw_linear_init(m, &a->value, "self.value", width, width, true) && tw_linear_init(m, &a->dense, "output.dense", width, width, true) &&
         tw_layer_norm_init(m, &a->norm, "output.LayerNorm", width, eps);
    tw_leave(m);
    return ok;
}
static bool twi_bert_block_init(tw_model *m, tw_bert_block *b, int64_t layer, int64_t width, int64_t inner, float eps) {
    bool ok;
    b->heads = twi_config_int(m, "num_attention_heads", 12, 1, width);
    b->layer = layer;
    b->activation = twi_config_activation(m, "hidden_act", "gelu");
    b->attention_dropout = twi_config_float(m, "attention_probs_dropout_prob", 0.1, 0, 0.999);
    b->hidden_dropout = twi_config_float(m, "hidden_dropout_prob", 0.1, 0, 0.999);
    b->causal = twi_config_bool(m, "is_decoder", false);
    b->has_cross = twi_config_bool(m, "add_cross_attention", false);
    if (b->has_cross && !b->causal) twi_fail(m->region.tw, TW_E_CONFIG, "config: add_cross_attention is for a decoder, and is_decoder is not true");
    if (tw_failed(m->region.tw)) return false;
    tw_enter(m, "layer", layer);
    ok = twi_bert_attention_init(m, &b->attention, "attention", width, eps) && (!b->has_cross || twi_bert_attention_init(m, &b->cross, "crossattention", width, eps)) &&
         tw_linear_init(m, &b->intermediate, "intermediate.dense", width, inner, true) && tw_linear_init(m, &b->output, "output.dense", inner, width, true) &&
         tw_layer_norm_init(m, &b->norm, "output.LayerNorm", width, eps);
    tw_leave(m);
    return ok;
}

/* The head for masked words.  Its matrix is the word embedding and its bias a parameter beside it, both also known as the decoder's.
   With tie_word_embeddings false, and in FlagAI's models, the decoder has its own of both, and the other bias stays in the
   file without being used. */
static bool twi_bert_masked_init(tw_model *m, tw_bert *g, float eps) {
    const char *own_bias = g->roberta ? "lm_head.bias" : "cls.predictions.bias", *weight = g->roberta ? "lm_head.decoder.weight" : "cls.predictions.decoder.weight",
               *bias = g->roberta ? "lm_head.decoder.bias" : "cls.predictions.decoder.bias";
    bool tied = !g->flagai && twi_config_bool(m, "tie_word_embeddings", true), ok;
    tw_tensor *unused = NULL;
    g->transform_activation = g->roberta ? TW_ACT_GELU : twi_config_activation(m, "hidden_act", "gelu");
    tw_enter(m, g->roberta ? "lm_head" : "cls.predictions", -1);
    if (!g->flagai) unused = twi_filled_parameter(m, "", "bias", tw_shape1(g->vocab), 0);
    ok = (g->flagai || unused) && tw_linear_init(m, &g->transform, g->roberta ? "dense" : "transform.dense", g->width, g->width, true) &&
         tw_layer_norm_init(m, &g->transform_norm, g->roberta ? "layer_norm" : "transform.LayerNorm", g->width, eps);
    if (ok && !tied) ok = tw_linear_init(m, &g->decoder, "decoder", g->width, g->vocab, true);
    while (m->prefix[0]) tw_leave(m);
    if (!ok) return false;
    if (tied) {
        g->decoder.model = m;
        g->decoder.weight = g->words.weight;
        g->decoder.bias = unused;
        return twi_add_tied(m, weight, &g->decoder.weight) && twi_add_tied(m, bias, &g->decoder.bias);
    }
    if (unused && !twi_add_alias(m, bias, unused)) return false;        /* a file may have the bias under one of its names only, */
    if (g->flagai && !twi_add_alias(m, "bert.embeddings.word_embeddings.weight", g->decoder.weight)) return false;     /* and the matrix once */
    return twi_add_alias(m, own_bias, g->decoder.bias);
}

static bool twi_bert_head_init(tw_model *m, tw_bert *g, float eps) {
    int64_t labels = twi_config_value(m, "class_num") && g->flagai ? twi_config_int(m, "class_num", 2, 1, 1 << 24) : twi_config_labels(m);
    bool own_dropout = twi_config_value(m, "classifier_dropout") != NULL && !(g->roberta && g->kind == TWI_HEAD_CHOICE);
    g->labels = labels;
    g->head_dropout = g->flagai ? 0 : own_dropout ? twi_config_float(m, "classifier_dropout", 0.1, 0, 0.999) : g->hidden_dropout;
    switch (g->kind) {
    case TWI_HEAD_LM: case TWI_HEAD_MASKED: case TWI_HEAD_UNILM: return twi_bert_masked_init(m, g, eps);
    case TWI_HEAD_PRETRAINING: return twi_bert_masked_init(m, g, eps) && tw_linear_init(m, &g->relationship, "cls.seq_relationship", g->width, 2, true);
    case TWI_HEAD_NEXT: return tw_linear_init(m, &g->relationship, "cls.seq_relationship", g->width, 2, true);
    case TWI_HEAD_CHOICE: return tw_linear_init(m, &g->head, "classifier", g->width, 1, true);
    case TWI_HEAD_SEQUENCE:
        if (!g->roberta) return tw_linear_init(m, &g->head, "classifier", g->width, labels, true);
        return tw_linear_init(m, &g->dense, "classifier.dense", g->width, g->width, true) && tw_linear_init(m, &g->head, "classifier.out_proj", g->width, labels, true);
    case TWI_HEAD_TOKEN: return tw_linear_init(m, &g->head, "classifier", g->width, labels, true);
    case TWI_HEAD_QA: return tw_linear_init(m, &g->head, "qa_outputs", g->width, 2, true);
    default: return !tw_failed(m->region.tw);
    }
}

/* Which heads read the pooler's output. */
static bool twi_bert_pools(const tw_bert *g) {
    switch (g->kind) {
    case TWI_HEAD_NONE: case TWI_HEAD_PRETRAINING: case TWI_HEAD_NEXT: case TWI_HEAD_CHOICE: case TWI_HEAD_POOLED: return true;
    case TWI_HEAD_SEQUENCE: return !g->roberta;
    default: return false;
    }
}

static bool twi_bert_build(tw_model *m) {
    tw_bert *g = (tw_bert *)m->net;
    int64_t width, heads, types, inner, i;
    const tw_json *pad = tw_json_get(m->config, "pad_token_id");
    float eps;
    bool ok;
    g->roberta = m->type == &twi_roberta_type || m->type == &twi_xlm_roberta_type;
    g->flagai = m->type == &twi_flagai_bert_type;
    g->kind = twi_head_of(m);
    g->width = width = twi_config_int(m, "hidden_size", 768, 1, 1 << 20);
    heads = twi_config_int(m, "num_attention_heads", 12, 1, width);
    g->vocab = twi_config_int(m, "vocab_size", m->type == &twi_roberta_type ? 50265 : 30522, 1, INT32_MAX - 1);
    g->max_positions = twi_config_int(m, "max_position_embeddings", 512, 1, INT32_MAX - 1);
    g->layers = twi_config_int(m, "num_hidden_layers", 12, 1, 4096);
    types = twi_config_int(m, "type_vocab_size", 2, 1, INT32_MAX - 1);
    inner = twi_config_int(m, "intermediate_size", g->flagai ? 4 * width : 3072, 1, 1 << 24);
    eps = twi_config_float(m, g->flagai && twi_config_value(m, "layernorm_epsilon") ? "layernorm_epsilon" : "layer_norm_eps", g->flagai ? 1e-6 : 1e-12, 0, 1);
    g->hidden_dropout = twi_config_float(m, "hidden_dropout_prob", 0.1, 0, 0.999);
    g->causal = twi_config_bool(m, "is_decoder", false);
    g->pad = pad && tw_json_type(pad) == TW_JSON_NULL ? -1 : twi_config_int(m, "pad_token_id", g->roberta, 0, g->vocab - 1);
    m->initializer_range = twi_config_float(m, "initializer_range", 0.02, 0, 1e6);
    if (g->roberta && g->pad < 0) twi_fail(m->region.tw, TW_E_CONFIG, "config: pad_token_id is null, and RoBERTa's positions are counted from it");
    if (g->roberta && g->pad + 1 >= g->max_positions)
        twi_fail(m->region.tw, TW_E_CONFIG, "config: max_position_embeddings %lld leaves no position above pad_token_id %lld", (long long)g->max_positions, (long long)g->pad);
    if (width % heads != 0)
        twi_fail(m->region.tw, TW_E_CONFIG, "config: hidden_size %lld is not a multiple of num_attention_heads %lld", (long long)width, (long long)heads);
    if (tw_failed(m->region.tw)) return false;
    g->block = (tw_bert_block *)twi_alloc(&m->region, (size_t)g->layers, sizeof *g->block);
    if (!g->block) return false;
    if (g->kind != TWI_HEAD_NONE) tw_enter(m, g->roberta ? "roberta" : "bert", -1);
    tw_enter(m, "embeddings", -1);
    ok = tw_embedding_init(m, &g->words, "word_embeddings", g->vocab, width) && tw_embedding_init(m, &g->positions, "position_embeddings", g->max_positions, width) &&
         tw_embedding_init(m, &g->types, "token_type_embeddings", types, width) && tw_layer_norm_init(m, &g->norm, "LayerNorm", width, eps);
    if (!ok) return false;
    if (!g->flagai) tw_embedding_padding(&g->words, g->pad);
    if (g->roberta) tw_embedding_padding(&g->positions, g->pad);
    tw_leave(m);
    tw_enter(m, "encoder", -1);
    for (i = 0; i < g->layers; i++) if (!twi_bert_block_init(m, &g->block[i], i, width, inner, eps)) return false;
    tw_leave(m);
    m->head_begins = m->parameters;
    if (twi_bert_pools(g) && !tw_linear_init(m, &g->pooler, "pooler.dense", width, width, true)) return false;
    if (g->kind == TWI_HEAD_NONE) m->optional = &g->pooler;
    if (g->kind != TWI_HEAD_NONE) tw_leave(m);
    return twi_bert_head_init(m, g, eps);
}

/* RoBERTa's positions: tokens that are no padding are counted from pad + 1 on. */
static tw_tensor *twi_roberta_positions(const tw_tensor *ids, int64_t pad, int64_t past) {
    tw_tensor *positions = twi_new(ids->tw, TW_I32, 2, ids->shape);
    int64_t b, t, length = ids->shape[1];
    if (!positions || !twi_computes(ids->tw)) return positions;
    for (b = 0; b < ids->shape[0]; b++) {
        int64_t count = past;
        for (t = 0; t < length; t++) {
            bool real = ((const int32_t *)ids->data)[b * length + t] != pad;
            count += real;
            ((int32_t *)positions->data)[b * length + t] = (int32_t)(real ? pad + count : pad);
        }
    }
    return positions;
}

/* act(dense h), its norm, and the logits of all words: [..., C] -> [..., V] */
static tw_tensor *twi_bert_word_logits(const tw_bert *g, tw_tensor *h) {
    return tw_linear_forward(&g->decoder, tw_layer_norm_forward(&g->transform_norm, tw_linear_activate(&g->transform, h, g->transform_activation)));
}

/* The rows of h [..., C] that have a label, and these labels.  Where nobody asks for the other logits, they need not be computed:
   of masked words that is six rows out of seven.  No labels at all: all rows, and the loss is NaN as it should be. */
static tw_tensor *twi_labelled_rows(tw_tensor *h, tw_tensor **labels) {
    tw_context *tw = h->tw;
    int64_t rows = twi_rows(h), count = 0, i, k = 0;
    const int32_t *label;
    tw_tensor *at, *kept;
    if (!twi_is_i32(*labels, tw, "labels")) return NULL;
    if (tw_count(*labels) != rows) { twi_fail(tw, TW_E_SHAPE, "labels: %lld of them do not fit %lld tokens", (long long)tw_count(*labels), (long long)rows); return NULL; }
    if (!twi_computes(tw)) return h;
    label = (const int32_t *)(*labels)->data;
    for (i = 0; i < rows; i++) count += label[i] != TWI_IGNORED;
    if (count == 0 || count == rows) return h;
    at = twi_new(tw, TW_I32, 1, &count);
    kept = twi_new(tw, TW_I32, 1, &count);
    if (!at || !kept) return NULL;
    for (i = 0; i < rows; i++) {
        if (label[i] == TWI_IGNORED) continue;
        ((int32_t *)at->data)[k] = (int32_t)i;
        ((int32_t *)kept->data)[k++] = label[i];
    }
    *labels = kept;
    return tw_embedding_op(tw_reshape(h, tw_shape2(rows, twi_columns(h))), at);
}

static bool twi_bert_words(const tw_bert *g, tw_tensor *h, tw_tensor *labels, const tw_pass *pass, tw_outputs *out) {
    tw_tensor *logits;
    if (labels && pass->no_logits) {
        h = twi_labelled_rows(h, &labels);
        return h && twi_output(out, "loss", tw_cross_entropy(twi_bert_word_logits(g, h), labels, pass->label_smoothing));
    }
    if (pass->last_token_only) h = tw_slice(h, 1, h->shape[1] - 1, 1);
    logits = twi_bert_word_logits(g, h);
    if (!twi_output(out, "logits", logits)) return false;
    return !labels || pass->last_token_only || twi_output(out, "loss", tw_cross_entropy(logits, labels, pass->label_smoothing));
}

static bool twi_bert_heads(tw_model *m, tw_tensor *h, const tw_tensor *ids, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_bert *g = (tw_bert *)m->net;
    tw_tensor *labels = tw_batch_get(in, "labels"), *first = NULL, *logits, *next, *given;
    int64_t choices;
    if (twi_bert_pools(g) || g->kind == TWI_HEAD_SEQUENCE) {
        first = tw_reshape(tw_slice(h, 1, 0, 1), tw_shape2(h->shape[0], h->shape[2]));
        if (g->pooler.weight) first = tw_linear_activate(&g->pooler, first, TW_ACT_TANH);
        if (!first) return false;
    }
    switch (g->kind) {
    case TWI_HEAD_NONE: return twi_output(out, "last_hidden_state", h) && (!g->pooler.weight || twi_output(out, "pooler_output", first));
    case TWI_HEAD_MASKED: return twi_bert_words(g, h, labels, pass, out);
    case TWI_HEAD_LM: return (!labels || (labels = twi_shift_labels(labels)) != NULL) && twi_bert_words(g, h, labels, pass, out);
    case TWI_HEAD_PRETRAINING:
        next = tw_batch_get(in, "next_sentence_label");
        logits = twi_bert_word_logits(g, h);
        first = tw_linear_forward(&g->relationship, first);
        if (!twi_output(out, "prediction_logits", logits) || !twi_output(out, "seq_relationship_logits", first)) return false;
        return !labels || !next || twi_output(out, "loss", tw_add(tw_cross_entropy(first, next, 0), tw_cross_entropy(logits, labels, pass->label_smoothing)));
    case TWI_HEAD_NEXT:
        logits = tw_linear_forward(&g->relationship, first);
        return twi_output(out, "logits", logits) && (!labels || twi_output(out, "loss", tw_cross_entropy(logits, labels, pass->label_smoothing)));
    case TWI_HEAD_SEQUENCE:
        first = tw_dropout(first, g->head_dropout);
        if (g->dense.weight) first = tw_dropout(tw_linear_activate(&g->dense, first, TW_ACT_TANH), g->head_dropout);
        logits = tw_linear_forward(&g->head, first);
        return twi_output(out, "logits", logits) && twi_classifier_loss(m, logits, in, out);
    case TWI_HEAD_CHOICE:
        given = tw_batch_get(in, "input_ids");
        choices = given->rank == 3 ? given->shape[1] : given->shape[0];
        logits = tw_linear_forward(&g->head, tw_dropout(first, g->head_dropout));
        logits = logits ? tw_reshape(logits, tw_shape2(-1, choices)) : NULL;
        return twi_output(out, "logits", logits) && (!labels || twi_output(out, "loss", tw_cross_entropy(logits, labels, pass->label_smoothing)));
    case TWI_HEAD_TOKEN:
        logits = tw_linear_forward(&g->head, tw_dropout(h, g->head_dropout));
        return twi_output(out, "logits", logits) && (!labels || twi_output(out, "loss", tw_cross_entropy(logits, labels, pass->label_smoothing)));
    case TWI_HEAD_QA: return twi_question_head(tw_linear_forward(&g->head, h), in, out);
    default: break;
    }
    (void)ids;
    return false;
}

static bool twi_bert_forward(tw_model *m, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_bert *g = (tw_bert *)m->net;
    tw_context *tw = m->region.tw;
    tw_tensor *ids = twi_input_ids(m, in, "input_ids"), *positions, *types, *x, *inputs[2];
    int64_t past = pass->cache ? pass->cache->length : 0, room = g->max_positions - (g->roberta ? g->pad + 1 : 0), i;
    twi_stream stream;
    tw_bert_input how;
    if (!ids) return false;
    if (past + ids->shape[1] > room && !g->roberta && !tw_batch_get(in, "position_ids")) {
        twi_fail(tw, TW_E_RANGE, "forward: %lld tokens are more than the model's %lld positions", (long long)(past + ids->shape[1]), (long long)room);
        return false;
    }
    memset(&how, 0, sizeof how);
    how.pass = pass;
    if (!twi_input_like(m, in, "position_ids", ids, &positions) || !twi_input_like(m, in, "token_type_ids", ids, &types)) return false;
    if (!twi_key_mask(m, tw_batch_get(in, "attention_mask"), ids->shape[0], past + ids->shape[1], &how.key_mask)) return false;
    inputs[1] = tw_batch_get(in, "encoder_hidden_states");
    if (inputs[1] && (inputs[1]->rank != 3 || inputs[1]->shape[0] != ids->shape[0] || inputs[1]->shape[2] != g->width)) {
        twi_fail(tw, TW_E_SHAPE, "forward: encoder_hidden_states of shape %s are not [%lld, T, %lld]", TWI_SHAPE(inputs[1]), (long long)ids->shape[0], (long long)g->width);
        return false;
    }
    if (inputs[1] && !twi_key_mask(m, tw_batch_get(in, "encoder_attention_mask"), inputs[1]->shape[0], inputs[1]->shape[1], &how.encoder_mask)) return false;
    if (!positions) positions = g->roberta ? twi_roberta_positions(ids, g->pad, past) : twi_positions(ids, past);
    if (!types) types = tw_ids(tw, tw_shape_of(ids), NULL);      /* zeros */
    if (!positions || !types) return false;

    x = tw_add(tw_add(tw_embedding_forward(&g->words, ids), tw_embedding_forward(&g->types, types)), tw_embedding_forward(&g->positions, positions));
    x = twi_stream_begin(&stream, tw_dropout(tw_layer_norm_forward(&g->norm, x), g->hidden_dropout), pass->hidden_states);
    if (!x || (pass->hidden_states && !twi_numbered_output(out, "hidden_states", 0, x))) return false;
    for (i = 0; i < g->layers; i++) {
        how.block = &g->block[i];
        inputs[0] = x;
        x = twi_stream_next(&stream, x, m->checkpointing ? tw_checkpoint(tw, tw_bert_block_forward, &how, sizeof how, inputs, inputs[1] ? 2 : 1)
                                                         : tw_bert_block_forward(&how, inputs));
        if (!x || (pass->hidden_states && !twi_numbered_output(out, "hidden_states", i + 1, x))) return false;
    }
    if (!twi_bert_heads(m, x, ids, in, pass, out)) return false;
    if (pass->cache) pass->cache->length += ids->shape[1];
    return true;
}

static void twi_bert_set_dropout(tw_model *m, float p) {
    tw_bert *g = (tw_bert *)m->net;
    int64_t i;
    g->hidden_dropout = g->head_dropout = p;
    for (i = 0; i < g->layers; i++) g->block[i].attention_dropout = g->block[i].hidden_dropout = p;
}

static bool twi_bert_decoder(const tw_model *m, twi_decoder *d) {
    const tw_bert *g = (const tw_bert *)m->net;
    d->layers = g->layers;
    d->heads = g->block[0].heads;
    d->head_dim = g->width / d->heads;
    d->vocab = g->vocab;
    d->positions = g->max_positions - (g->roberta ? g->pad + 1 : 0);
    d->eos = g->roberta ? 2 : -1;
    return g->kind == TWI_HEAD_LM && g->causal;
}

/* A generation reads its tokens and nothing else. */
static bool twi_bert_prepare(tw_model *m, const twi_reading *r, tw_batch *in) { return tw_batch_set(in, "input_ids", twi_reading_ids(m, r)); }

/* -- GLM (Du et al. 2022), as FlagAI has it ------------------------------------------------------------------------------
   A context with blanks is read in both directions, and what belongs into a blank is written causally behind it.  Every token
   has two positions: that in the context - for a token of an answer, that of its blank - and that within the answer: 0 in
   the context, 1, 2, 3 ... behind <|startofpiece|>.
   Easy to get wrong: `attention_mask` is usually one number a row, the separator: all tokens see those before it; target 0 is
   ignored, and yet loss_mask counts it in the mean's divisor; labels are not shifted; a memory goes through the block's
   first norm, like x; hidden rows of the vocabulary past the tokenizer's are in the softmax. */

/* A long short-term memory (Hochreiter, Schmidhuber 1997), one layer in one direction, with PyTorch's names and order of gates:
   [i f g o] = W_i x + b_i + W_h h + b_h;  c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c). */
typedef struct twi_lstm { tw_linear input, state; int64_t hidden; } twi_lstm;

static bool twi_lstm_half(tw_model *m, tw_linear *layer, const char *name, const char *half, int number, bool reverse, int64_t in, int64_t hidden) {
    char weight[64], bias[64];
    snprintf(weight, sizeof weight, "weight_%s_l%d%s", half, number, reverse ? "_reverse" : "");
    snprintf(bias, sizeof bias, "bias_%s_l%d%s", half, number, reverse ? "_reverse" : "");
    memset(layer, 0, sizeof *layer);
    layer->model = m;
    layer->weight = twi_named_parameter(m, name, weight, tw_shape2(4 * hidden, in));
    layer->bias = twi_filled_parameter(m, name, bias, tw_shape1(4 * hidden), 0);
    tw_fill_uniform(layer->weight, -1.0f / sqrtf((float)hidden), 1.0f / sqrtf((float)hidden));
    return layer->weight && layer->bias;
}
static bool twi_lstm_init(tw_model *m, twi_lstm *lstm, const char *name, int number, bool reverse, int64_t in, int64_t hidden) {
    lstm->hidden = hidden;
    return twi_lstm_half(m, &lstm->input, name, "ih", number, reverse, in, hidden) && twi_lstm_half(m, &lstm->state, name, "hh", number, reverse, hidden, hidden);
}
/* [B, T, in] -> [B, T, hidden]; reverse: from the last to the first */
static tw_tensor *twi_lstm_forward(const twi_lstm *lstm, tw_tensor *x, bool reverse) {
    tw_tensor *gates = tw_linear_forward(&lstm->input, x), *h, *c, **all;
    int64_t t, at, n = lstm->hidden, length;
    if (!gates) return NULL;
    length = gates->shape[1];
    all = (tw_tensor **)twi_step_record(gates->tw, (size_t)length * sizeof *all);
    h = c = tw_full(gates->tw, tw_shape3(gates->shape[0], 1, n), 0);
    if (!all) return NULL;
    for (t = 0; t < length; t++) {
        tw_tensor *g;
        at = reverse ? length - 1 - t : t;
        g = tw_add(tw_slice(gates, 1, at, 1), tw_linear_forward(&lstm->state, h));
        c = tw_add(tw_mul(tw_sigmoid(tw_slice(g, 2, n, n)), c), tw_mul(tw_sigmoid(tw_slice(g, 2, 0, n)), tw_tanh(tw_slice(g, 2, 2 * n, n))));
        all[at] = h = tw_mul(tw_sigmoid(tw_slice(g, 2, 3 * n, n)), tw_tanh(c));
        if (!h) return NULL;
    }
    return tw_concat(all, (int)length, 1);
}

typedef struct tw_glm {
    tw_embedding  word_embeddings, position_embeddings, block_position_embeddings;
    tw_glm_block *block;
    tw_layer_norm final_layernorm;
    tw_linear     pool_layer, multichoice_head;      /* of the classifier */
    tw_embedding  spell_embeddings;                  /* a learned prompt (Liu et al. 2021): [spell_length, C] ... */
    twi_lstm      spell_lstm[2][2];                  /* ... through two layers in two directions ... */
    tw_linear     spell_mlp[2];                      /* ... and two more */
    float         embedding_dropout, head_dropout, length_penalty;
    int64_t       layers, heads, vocab, max_positions, max_memory, spell_length;
    bool          two_positions, output_predict, spells_lstm, spells_mlp, take_softmax;
    char          pool;                              /* of which token the classifier judges: c(ls), s(tart) or p(ad) */
    twi_head      kind;
} tw_glm;

static bool twi_glm_block_init(tw_model *m, tw_glm_block *b, int64_t layer, int64_t width, float small) {
    const float eps = 1e-5f;
    tw_enter(m, "layers", layer);
    if (!tw_layer_norm_init(m, &b->input_layernorm, "input_layernorm", width, eps) ||
        !tw_linear_init(m, &b->query_key_value, "attention.query_key_value", width, 3 * width, true) ||
        !tw_linear_init(m, &b->dense, "attention.dense", width, width, true) ||
        !tw_layer_norm_init(m, &b->post_attention_layernorm, "post_attention_layernorm", width, eps) ||
        !tw_linear_init(m, &b->dense_h_to_4h, "mlp.dense_h_to_4h", width, 4 * width, true) ||
        !tw_linear_init(m, &b->dense_4h_to_h, "mlp.dense_4h_to_h", 4 * width, width, true)) return false;
    tw_fill_normal(b->dense.weight, 0, small);
    tw_fill_normal(b->dense_4h_to_h.weight, 0, small);
    tw_leave(m);
    return true;
}

static bool twi_glm_spell_init(tw_model *m, tw_glm *g, int64_t width) {
    const char *func = tw_json_string(twi_config_value(m, "spell_func"), "lstm");
    int i;
    g->spell_length = twi_config_int(m, "spell_length", 0, 1, 1 << 16);
    g->spells_lstm = strcmp(func, "lstm") == 0;
    g->spells_mlp = g->spells_lstm || strcmp(func, "mlp") == 0;
    if (!g->spells_mlp && strcmp(func, "none") != 0) { twi_fail(m->region.tw, TW_E_CONFIG, "config: spell_func \"%.40s\" is none of lstm, mlp, none", func); return false; }
    tw_enter(m, "prompt_spell", -1);
    if (!tw_embedding_init(m, &g->spell_embeddings, "spell_embeddings", g->spell_length, width)) return false;
    for (i = 0; i < 4 && g->spells_lstm; i++)
        if (!twi_lstm_init(m, &g->spell_lstm[i / 2][i % 2], "lstm_head", i / 2, i % 2 != 0, i < 2 ? width : 2 * width, width)) return false;
    if (g->spells_mlp && (!tw_linear_init(m, &g->spell_mlp[0], "mlp_head.0", g->spells_lstm ? 2 * width : width, width, true) ||
                          !tw_linear_init(m, &g->spell_mlp[1], "mlp_head.2", width, width, true))) return false;
    tw_leave(m);
    return true;
}

/* Files of THUDM's begin every name of the base model with "glm." */
static bool twi_glm_aliases(tw_model *m, const char *prefix) {
    size_t i, n = strlen(prefix);
    for (i = 0; i < m->parameters; i++) {
        const char *name = m->parameter[i]->name;
        size_t size = strlen(name) + 8;
        char *other = (char *)twi_alloc(&m->region, size, 1);
        if (!other) return false;
        snprintf(other, size, "glm.%s", strncmp(name, prefix, n) == 0 ? name + n : name);
        if (!twi_add_alias(m, other, m->parameter[i])) return false;
    }
    return true;
}

/* tune_prefix_layers: only so many first blocks, and the learned prompt, are trained. */
static void twi_glm_freeze(tw_model *m, const tw_glm *g) {
    int64_t tuned = twi_config_int(m, "tune_prefix_layers", 0, 0, g->layers), i;
    size_t k;
    for (k = 0; k < m->parameters; k++) {
        const char *at = strstr(m->parameter[k]->name, "layers."), *digit;
        if (strstr(m->parameter[k]->name, "prompt_spell.")) continue;
        for (i = 0, digit = at ? at + 7 : ""; *digit >= '0' && *digit <= '9'; digit++) i = 10 * i + *digit - '0';
        m->parameter[k]->requires_grad = at && i < tuned;
    }
}

static bool twi_glm_build(tw_model *m) {
    tw_glm *g = (tw_glm *)m->net;
    tw_context *tw = m->region.tw;
    int64_t width = twi_config_int(m, "hidden_size", 1024, 1, 1 << 20), rows, i;
    float small, attention_dropout = twi_config_float(m, "attention_dropout_prob", 0.1, 0, 0.999), output_dropout = twi_config_float(m, "output_dropout_prob", 0.1, 0, 0.999);
    const char *pool = tw_json_string(twi_config_value(m, "pool_token"), "cls");
    bool nested;
    g->kind = twi_head_of(m);
    g->heads = twi_config_int(m, "num_attention_heads", 16, 1, width);
    g->layers = twi_config_int(m, "num_layers", 24, 1, 4096);
    g->vocab = twi_config_int(m, "vocab_size", 50048, 1, INT32_MAX - 1);
    g->max_positions = twi_config_int(m, "max_sequence_length", 1024, 1, INT32_MAX - 2);
    g->max_memory = twi_config_int(m, "max_memory_length", 0, 0, INT32_MAX - 1);
    g->two_positions = twi_config_bool(m, "block_position_encoding", true);
    g->output_predict = twi_config_bool(m, "output_predict", true) || g->kind == TWI_HEAD_BLANKS || g->kind == TWI_HEAD_CLOZE || g->kind == TWI_HEAD_ONE_CLOZE;
    g->embedding_dropout = twi_config_float(m, "embedding_dropout_prob", 0.1, 0, 0.999);
    g->head_dropout = twi_config_float(m, "hidden_dropout", 0.1, 0, 0.999);
    g->take_softmax = twi_config_bool(m, "take_softmax", g->kind != TWI_HEAD_ONE_CLOZE);
    g->length_penalty = twi_config_float(m, "length_penalty", 0, -100, 100);
    g->pool = pool[0];
    (void)twi_config_float(m, "attention_scale", 1, 1e-6, 1e6);
    m->initializer_range = 0.02f;
    if (tw_failed(tw)) return false;
    if (twi_config_bool(m, "relative_encoding", false)) { twi_fail(tw, TW_E_UNSUPPORTED, "config: GLM with relative_encoding cannot be opened here"); return false; }
    if (width % g->heads != 0) { twi_fail(tw, TW_E_CONFIG, "config: hidden_size %lld is not a multiple of num_attention_heads %lld", (long long)width, (long long)g->heads); return false; }
    if (strcmp(pool, "cls") != 0 && strcmp(pool, "start") != 0 && strcmp(pool, "pad") != 0) { twi_fail(tw, TW_E_CONFIG, "config: pool_token \"%.40s\" is none of cls, start, pad", pool); return false; }
    g->block = (tw_glm_block *)twi_alloc(&m->region, (size_t)g->layers, sizeof *g->block);
    if (!g->block) return false;
    nested = g->kind == TWI_HEAD_SEQUENCE || g->kind == TWI_HEAD_FAST_CLOZE;      /* the other classes write the base model's names */
    if (nested) tw_enter(m, "model", -1);
    if (!tw_embedding_init(m, &g->word_embeddings, "word_embeddings", g->vocab, width)) return false;
    tw_enter(m, "transformer", -1);
    rows = g->max_positions + (g->two_positions ? 1 : 0);
    if (!tw_embedding_init(m, &g->position_embeddings, "position_embeddings", rows, width)) return false;
    if (g->two_positions && !tw_embedding_init(m, &g->block_position_embeddings, "block_position_embeddings", rows, width)) return false;
    small = m->initializer_range / sqrtf(2.0f * (float)g->layers);
    for (i = 0; i < g->layers; i++) {
        if (!twi_glm_block_init(m, &g->block[i], i, width, small)) return false;
        g->block[i].heads = g->heads;
        g->block[i].layer = i;
        g->block[i].attention_dropout = attention_dropout;
        g->block[i].output_dropout = output_dropout;
    }
    if (!tw_layer_norm_init(m, &g->final_layernorm, "final_layernorm", width, 1e-5f)) return false;
    tw_leave(m);
    if (twi_config_value(m, "spell_length") && !twi_glm_spell_init(m, g, width)) return false;
    if (twi_config_value(m, "tune_prefix_layers")) twi_glm_freeze(m, g);
    if (nested) tw_leave(m);
    if (!twi_glm_aliases(m, "model.")) return false;
    if (g->kind == TWI_HEAD_SEQUENCE) {
        int64_t classes = twi_config_value(m, "class_num") ? twi_config_int(m, "class_num", 2, 1, 1 << 24) : twi_config_labels(m);
        return tw_linear_init(m, &g->pool_layer, "pool_layer", width, width, true) && tw_linear_init(m, &g->multichoice_head, "multichoice_head", width, classes, true);
    }
    return !tw_failed(tw);
}

/* An input as whole numbers: masks may come as F32. */
static tw_tensor *twi_as_ids(tw_tensor *t, tw_context *tw, const char *what) {
    tw_tensor *ids;
    int64_t i;
    if (!t || t->dtype != TW_F32) return twi_is_i32(t, tw, what) ? t : NULL;
    t = tw_contiguous(t);
    ids = t ? twi_new(tw, TW_I32, t->rank, t->shape) : NULL;
    if (ids && twi_computes(tw))
        for (i = 0; i < tw_count(t); i++) {
            float x = twi_f32(t)[i];
            ((int32_t *)ids->data)[i] = x > -2e9f && x < 2e9f ? (int32_t)x : -1;
        }
    return ids;
}
/* The optional `name` with rows x columns numbers, as that table: whole numbers, or floats. */
static bool twi_glm_table(tw_model *m, const tw_batch *in, const char *name, int64_t rows, int64_t columns, bool floats, tw_tensor **out) {
    tw_tensor *t = tw_batch_get(in, name);
    *out = NULL;
    if (!t) return true;
    if (tw_count(t) != rows * columns) {
        twi_fail(m->region.tw, TW_E_SHAPE, "forward: %s of shape %s does not fit %lld x %lld tokens", name, TWI_SHAPE(t), (long long)rows, (long long)columns);
        return false;
    }
    t = floats ? twi_as_floats(t) : twi_as_ids(t, m->region.tw, name);
    *out = t ? tw_reshape(t, tw_shape2(rows, columns)) : NULL;
    return *out != NULL;
}
/* A number of the inputs that says yes or no. */
static bool twi_input_flag(const tw_batch *in, const char *name, bool otherwise) {
    const tw_tensor *t = tw_batch_get(in, name);
    float first = otherwise ? 1.0f : 0.0f;
    if (t && tw_count(t) == 1 && twi_computes(t->tw)) tw_read(t, &first, 1);
    return first > 0 || first < 0;
}

/* What tokens see: attention_mask is the separator, one for all or one a row; or [B, 1, T, M + T] with 0 for what is hidden;
   or (not FlagAI's) [B, M + T] with 0 for padding. */
static bool twi_glm_mask(tw_model *m, tw_tensor *mask, int64_t rows, int64_t tokens, int64_t past, tw_glm_input *how) {
    tw_context *tw = m->region.tw;
    int64_t i, b, keys = past + tokens, count = tw_count(mask), wide;
    bool any = false;
    if (!mask) return true;
    mask = twi_as_ids(mask, tw, "attention_mask");
    if (!mask) return false;
    if (count == 1 || count == rows) {
        how->prefix = twi_new(tw, TW_I32, 1, &count);
        if (!how->prefix) return false;
        for (i = 0; i < count && twi_computes(tw); i++) {
            int32_t separator = ((const int32_t *)mask->data)[i];
            if (separator < 0) { twi_fail(tw, TW_E_RANGE, "forward: attention_mask: a separator cannot be %ld", (long)separator); return false; }
            if (separator > tokens) separator = (int32_t)tokens;
            ((int32_t *)how->prefix->data)[i] = separator > 0 ? (int32_t)past + separator : 0;
            any = any || separator > 0;
        }
        if (!any) how->prefix = NULL;
        return true;
    }
    if (mask->rank != 4 && count == rows * keys) {
        how->key_mask = tw_reshape(mask, tw_shape2(rows, keys));
        return how->key_mask != NULL;
    }
    wide = mask->rank == 4 ? mask->shape[3] : 0;
    if (mask->rank != 4 || (mask->shape[0] != 1 && mask->shape[0] != rows) || mask->shape[1] != 1 || mask->shape[2] != tokens || wide < keys) {
        twi_fail(tw, TW_E_SHAPE, "forward: an attention_mask of shape %s is neither a separator a row nor [%lld, 1, %lld, %lld]", TWI_SHAPE(mask), (long long)rows,
                 (long long)tokens, (long long)keys);
        return false;
    }
    how->mask = tw_ids(tw, tw_shape3(mask->shape[0], tokens, keys), NULL);         /* its last columns, if it has more */
    if (!how->mask) return false;
    for (b = 0; twi_computes(tw) && b < mask->shape[0] * tokens; b++)
        memcpy((int32_t *)how->mask->data + b * keys, (const int32_t *)mask->data + b * wide + wide - keys, (size_t)keys * sizeof(int32_t));
    return true;
}

/* Both positions of every token.  Where none are given: a text without blanks. */
static bool twi_glm_positions(tw_model *m, tw_tensor *given, const tw_tensor *ids, int64_t past, tw_tensor **position, tw_tensor **block) {
    const tw_glm *g = (const tw_glm *)m->net;
    int64_t rows = ids->shape[0], tokens = ids->shape[1], count = tw_count(given), kinds = g->two_positions ? 2 : 1, b, i, k;
    tw_tensor *part[2];
    *block = NULL;
    *position = twi_positions(ids, past);
    if (g->two_positions) *block = tw_ids(m->region.tw, tw_shape2(rows, tokens), NULL);
    if (!*position || (g->two_positions && !*block)) return false;
    if (!given) {
        if (past + tokens <= g->max_positions) return true;
        twi_fail(m->region.tw, TW_E_RANGE, "forward: %lld tokens are more than the model's %lld positions", (long long)(past + tokens), (long long)g->max_positions);
        return false;
    }
    if (!twi_is_i32(given, m->region.tw, "position_ids")) return false;
    if (count != kinds * rows * tokens && count != kinds * tokens) {
        twi_fail(m->region.tw, TW_E_SHAPE, "forward: position_ids of shape %s are not [%lld%s, %lld]", TWI_SHAPE(given), (long long)rows, g->two_positions ? ", 2" : "", (long long)tokens);
        return false;
    }
    part[0] = *position; part[1] = *block;
    for (b = 0; b < rows && twi_computes(m->region.tw); b++) for (k = 0; k < kinds; k++) for (i = 0; i < tokens; i++)
        ((int32_t *)part[k]->data)[b * tokens + i] = ((const int32_t *)given->data)[((count == kinds * tokens ? 0 : b) * kinds + k) * tokens + i];
    return true;
}

/* The learned prompt, [1, spell_length, C]. */
static tw_tensor *twi_glm_prompt(const tw_glm *g) {
    tw_tensor *x = tw_reshape(g->spell_embeddings.weight, tw_shape3(1, g->spell_length, tw_dim(g->spell_embeddings.weight, 1))), *both[2];
    int i;
    for (i = 0; i < 2 && g->spells_lstm; i++) {
        both[0] = twi_lstm_forward(&g->spell_lstm[i][0], x, false);
        both[1] = twi_lstm_forward(&g->spell_lstm[i][1], x, true);
        x = tw_concat(both, 2, 2);
    }
    return g->spells_mlp ? tw_linear_forward(&g->spell_mlp[1], tw_linear_activate(&g->spell_mlp[0], x, TW_ACT_RELU)) : x;
}

/* x [B, T, C] with the learned prompt in place of the tokens at prompt_pos [B or nothing, spell_length]: both lie in one table,
   and every token says which row it is. */
static tw_tensor *twi_glm_spell(tw_model *m, tw_tensor *x, const tw_tensor *at) {
    const tw_glm *g = (const tw_glm *)m->net;
    int64_t rows = x->shape[0], tokens = x->shape[1], width = x->shape[2], length = g->spell_length, count = tw_count(at), b, i;
    tw_tensor *table[2], *row;
    if (length == 0 || !twi_is_i32(at, x->tw, "prompt_pos") || (count != rows * length && count != length)) {
        twi_fail(x->tw, TW_E_SHAPE, "forward: prompt_pos of shape %s do not place a prompt of %lld tokens (spell_length)", TWI_SHAPE(at), (long long)length);
        return NULL;
    }
    if (!twi_ids_in_range(at, tokens, 0, "prompt_pos")) return NULL;
    table[0] = tw_reshape(x, tw_shape2(rows * tokens, width));
    table[1] = twi_glm_prompt(g);
    if (table[1]) table[1] = tw_reshape(table[1], tw_shape2(length, width));
    row = tw_ids(x->tw, tw_shape2(rows, tokens), NULL);
    if (!row) return NULL;
    for (b = 0; b < rows && twi_computes(x->tw); b++) {
        for (i = 0; i < tokens; i++) ((int32_t *)row->data)[b * tokens + i] = (int32_t)(b * tokens + i);
        for (i = 0; i < length; i++) ((int32_t *)row->data)[b * tokens + ((const int32_t *)at->data)[(count == length ? 0 : b) * length + i]] = (int32_t)(rows * tokens + i);
    }
    return tw_embedding_op(tw_concat(table, 2, 0), row);
}

/* What one run of the blocks reads and leaves. */
typedef struct twi_glm_run {
    tw_tensor *ids, *position_ids, *attention_mask, *prompt_pos;
    tw_tensor **memory, **kept;                      /* [layers + 1]; NULL: none are read, none are kept */
    tw_tensor *key_mask;                             /* [B, M + T] for the causal order, where there is no attention_mask */
    tw_outputs *out;                                 /* of hidden states; or NULL */
} twi_glm_run;

/* -> [B, T, C], or [B, 1, C] where the last token alone is wanted, after the last norm. */
static tw_tensor *twi_glm_stack(tw_model *m, const twi_glm_run *r, const tw_pass *pass) {
    tw_glm *g = (tw_glm *)m->net;
    tw_tensor *x, *positions, *blocks, *inputs[2];
    int64_t memory = r->memory ? tw_dim(r->memory[0], 1) : 0, past = memory + (pass->cache ? pass->cache->length : 0), i;
    bool hidden = pass->hidden_states && r->out;
    twi_stream stream;
    tw_glm_input how;
    memset(&how, 0, sizeof how);
    how.pass = pass;
    how.has_memory = r->memory != NULL;
    how.key_mask = r->key_mask;
    if (pass->cache && r->memory) { twi_fail(m->region.tw, TW_E_ARGUMENT, "forward: a cache and mems are two ways to the same end"); return NULL; }
    if (!twi_glm_mask(m, r->attention_mask, r->ids->shape[0], r->ids->shape[1], past, &how) ||
        !twi_glm_positions(m, r->position_ids, r->ids, past, &positions, &blocks)) return NULL;
    x = tw_embedding_forward(&g->word_embeddings, r->ids);
    if (x && r->prompt_pos) x = twi_glm_spell(m, x, r->prompt_pos);
    x = tw_add(x, tw_embedding_forward(&g->position_embeddings, positions));
    if (blocks) x = tw_add(x, tw_embedding_forward(&g->block_position_embeddings, blocks));
    x = twi_stream_begin(&stream, tw_dropout(x, g->embedding_dropout), hidden || r->kept);
    for (i = 0; x && i < g->layers; i++) {
        if (hidden && !twi_numbered_output(r->out, "hidden_states", i, x)) return NULL;
        if (r->kept) { x->recycle = false; r->kept[i] = x; }
        how.block = &g->block[i];
        inputs[0] = x;
        inputs[1] = r->memory ? r->memory[i] : NULL;
        x = twi_stream_next(&stream, x, m->checkpointing ? tw_checkpoint(m->region.tw, tw_glm_block_forward, &how, sizeof how, inputs, r->memory ? 2 : 1)
                                                         : tw_glm_block_forward(&how, inputs));
    }
    if (!x) return NULL;
    if (r->kept) { x->recycle = false; r->kept[g->layers] = x; }
    if (pass->last_token_only) x = tw_slice(x, 1, x->shape[1] - 1, 1);
    x = tw_layer_norm_forward(&g->final_layernorm, x);
    if (hidden && !twi_numbered_output(r->out, "hidden_states", g->layers, x)) return NULL;
    if (pass->cache) pass->cache->length += r->ids->shape[1];
    return x;
}

/* The given memories, mems.0 [B, M, C] and on; *out stays NULL where there are none.  The last, mems.layers, is not read. */
static bool twi_glm_memories(tw_model *m, const tw_batch *in, int64_t rows, tw_tensor ***out) {
    const tw_glm *g = (const tw_glm *)m->net;
    int64_t i, width = tw_dim(g->word_embeddings.weight, 1);
    tw_tensor **list;
    *out = NULL;
    if (!tw_batch_get(in, "mems.0")) return true;
    list = (tw_tensor **)twi_step_record(m->region.tw, (size_t)(g->layers + 1) * sizeof *list);
    if (!list) return false;
    for (i = 0; i <= g->layers; i++) {
        char name[40];
        snprintf(name, sizeof name, "mems.%lld", (long long)i);
        list[i] = tw_batch_get(in, name);
        if (!list[i] && i == g->layers) continue;
        if (!list[i] || !twi_is_f32(list[i], name) || list[i]->rank != 3 || list[i]->shape[0] != rows || list[i]->shape[2] != width || list[i]->shape[1] != list[0]->shape[1]) {
            twi_fail(m->region.tw, TW_E_SHAPE, "forward: %s is not a memory of [%lld, %lld, %lld]", name, (long long)rows, (long long)tw_dim(list[0], 1), (long long)width);
            return false;
        }
    }
    if (tw_dim(list[0], 1) > 0) *out = list;
    return true;
}
/* New memories: what was kept behind the old ones; the newest max_memory_length, or all of them. */
static bool twi_glm_remember(tw_model *m, const twi_glm_run *r, bool all, bool detach, tw_outputs *out) {
    const tw_glm *g = (const tw_glm *)m->net;
    int64_t i;
    for (i = 0; i <= g->layers; i++) {
        tw_tensor *parts[2], *t;
        int64_t past = 0, total;
        bool was = tw_no_grad(m->region.tw, m->region.tw->no_grad || detach), ok;
        parts[0] = parts[1] = r->kept[i];
        if (r->memory && r->memory[i]) { parts[0] = r->memory[i]; past = tw_dim(parts[0], 1); }
        t = past > 0 ? tw_concat(parts, 2, 1) : tw_concat(parts, 1, 1);
        total = tw_dim(t, 1);
        if (t && !all && total > g->max_memory) t = tw_contiguous(tw_slice(t, 1, total - g->max_memory, g->max_memory));
        tw_no_grad(m->region.tw, was);
        ok = twi_numbered_output(out, "mems", i, t);
        if (!ok) return false;
    }
    return true;
}

/* Sum of (losses times loss_mask) over the sum of loss_mask; target 0 has no loss.  With a mask of zeros and ones that is
   the cross-entropy's own mean, but for what it is divided by. */
static tw_tensor *twi_glm_blank_loss(tw_model *m, tw_tensor *h, tw_tensor *logits, const tw_tensor *targets, tw_tensor *mask, const tw_pass *pass) {
    const tw_glm *g = (const tw_glm *)m->net;
    tw_context *tw = m->region.tw;
    tw_tensor *labels = twi_new(tw, TW_I32, targets->rank, targets->shape), *weights, *loss;
    int64_t i, n = tw_count(targets), counted = 0;
    double sum = 0;
    bool plain = true;
    if (!labels) return NULL;
    for (i = 0; i < n && twi_computes(tw); i++) {
        float w = mask ? twi_f32(mask)[i] : 1.0f;
        int32_t target = ((const int32_t *)targets->data)[i];
        bool counts = w > 0 && target != 0;
        if (w != 0 && w != 1) plain = false;
        sum += (double)w;
        counted += counts;
        ((int32_t *)labels->data)[i] = counts ? target : TWI_IGNORED;
    }
    if (plain && (counted > 0 || !(sum > 0))) {
        loss = logits ? tw_cross_entropy(logits, labels, pass->label_smoothing) : tw_linear_cross_entropy(h, g->word_embeddings.weight, labels, pass->label_smoothing);
        return tw_scale(loss, counted > 0 ? (float)((double)counted / sum) : 1.0f);
    }
    if (!logits) logits = tw_linear_op(h, g->word_embeddings.weight, NULL, false, TW_ACT_NONE, NULL);
    weights = twi_new(tw, TW_F32, targets->rank, targets->shape);
    if (!weights || !twi_ids_in_range(targets, g->vocab, 0, "target_ids")) return NULL;
    for (i = 0; i < n && twi_computes(tw); i++)
        twi_f32(weights)[i] = ((const int32_t *)targets->data)[i] == 0 ? 0.0f : mask ? twi_f32(mask)[i] : 1.0f;
    loss = tw_select(tw_log_softmax(logits), targets);
    return tw_scale(tw_sum(tw_mul(loss, tw_reshape(weights, tw_shape_of(loss)))), (float)(-1.0 / sum));
}

/* The scores of choices, and their loss: one score a row is asked yes or no, several, which. */
static bool twi_glm_choice_loss(tw_model *m, tw_tensor *logits, const tw_batch *in, tw_outputs *out) {
    tw_tensor *labels = tw_batch_get(in, "labels"), *floats;
    if (!logits) return false;
    if (labels && twi_columns(logits) == 1) logits = tw_reshape(logits, tw_shape1(tw_count(logits)));
    if (!twi_output(out, "logits", logits)) return false;
    if (!labels) return true;
    if (logits->rank > 1) {
        labels = twi_as_ids(labels, m->region.tw, "labels");
        return labels && twi_output(out, "loss", tw_cross_entropy(logits, tw_reshape(labels, tw_shape1(tw_count(labels))), 0));
    }
    floats = twi_as_floats(labels);
    if (!floats || tw_count(floats) != tw_count(logits)) {
        twi_fail(m->region.tw, TW_E_SHAPE, "labels: %lld of them do not fit logits %s", (long long)tw_count(labels), TWI_SHAPE(logits));
        return false;
    }
    return twi_output(out, "loss", tw_bce_with_logits(logits, tw_reshape(floats, tw_shape_of(logits))));
}

/* Cloze: the answers' tokens under the logits of the places they are written to, log p summed where logit_mask says. */
static bool twi_glm_cloze(tw_model *m, tw_tensor *h, int64_t choices, const tw_batch *in, tw_outputs *out) {
    const tw_glm *g = (const tw_glm *)m->net;
    tw_tensor *targets, *mask, *scores;
    int64_t rows = tw_dim(h, 0), tokens = tw_dim(h, 1), b, t;
    if (!twi_glm_table(m, in, "target_ids", rows, tokens, false, &targets) || !twi_glm_table(m, in, "logit_mask", rows, tokens, true, &mask)) return false;
    if (!targets || !mask) { twi_fail(m->region.tw, TW_E_MISSING, "forward: there is no %s", targets ? "logit_mask" : "target_ids"); return false; }
    scores = tw_linear_op(h, g->word_embeddings.weight, NULL, false, TW_ACT_NONE, NULL);
    if (g->take_softmax) scores = tw_log_softmax(scores);
    scores = tw_sum_axis(tw_mul(tw_select(scores, targets), mask), 1, false);
    if (g->length_penalty > 0) {
        tw_tensor *factor = twi_new(m->region.tw, TW_F32, 1, &rows);
        if (!factor) return false;
        for (b = 0; b < rows && twi_computes(m->region.tw); b++) {
            double length = 0;
            for (t = 0; t < tokens; t++) length += (double)twi_f32(mask)[b * tokens + t];
            twi_f32(factor)[b] = (float)pow(length, -(double)g->length_penalty);
        }
        scores = tw_mul(scores, factor);
    }
    return twi_glm_choice_loss(m, tw_reshape(scores, tw_shape2(rows / choices, choices)), in, out);
}

/* The place that a row's separator names, `less` before it; -1 is the last, as in Python. */
static bool twi_glm_places(tw_model *m, tw_tensor *mask, int64_t rows, int64_t tokens, int32_t less, int32_t *at) {
    int64_t b, count = tw_count(mask);
    mask = mask ? twi_as_ids(mask, m->region.tw, "attention_mask") : NULL;
    if (!mask || (count != 1 && count != rows)) {
        if (!tw_failed(m->region.tw)) twi_fail(m->region.tw, TW_E_SHAPE, "forward: attention_mask does not name one token a row");
        return false;
    }
    for (b = 0; b < rows; b++) {
        int64_t place = twi_computes(m->region.tw) ? ((const int32_t *)mask->data)[count == 1 ? 0 : b] - (int64_t)less : 0;
        if (place < 0) place += tokens;
        if (place < 0 || place >= tokens) { twi_fail(m->region.tw, TW_E_RANGE, "forward: attention_mask names place %lld of %lld", (long long)place, (long long)tokens); return false; }
        at[b] = (int32_t)place;
    }
    return true;
}

/* One word for the blank that attention_mask points at: the scores of target_ids [B, choices] among all words. */
static bool twi_glm_one_cloze(tw_model *m, tw_tensor *h, tw_tensor *mask, const tw_batch *in, tw_outputs *out) {
    const tw_glm *g = (const tw_glm *)m->net;
    int64_t rows = h->shape[0], choices, b, i;
    int32_t *at = (int32_t *)twi_step_record(m->region.tw, (size_t)rows * sizeof *at);
    tw_tensor *targets = tw_batch_get(in, "target_ids"), *logits, *scores, *where;
    if (!at || !twi_glm_places(m, mask, rows, h->shape[1], 0, at)) return false;
    if (!twi_is_i32(targets, m->region.tw, "target_ids") || tw_count(targets) % rows != 0 || !twi_ids_in_range(targets, g->vocab, 0, "target_ids")) {
        if (!tw_failed(m->region.tw)) twi_fail(m->region.tw, TW_E_SHAPE, "forward: target_ids of shape %s are not [%lld, choices]", TWI_SHAPE(targets), (long long)rows);
        return false;
    }
    choices = tw_count(targets) / rows;
    logits = tw_linear_op(twi_pick_tokens(h, at), g->word_embeddings.weight, NULL, false, TW_ACT_NONE, NULL);
    if (!twi_output(out, "target_logits", logits)) return false;
    scores = g->take_softmax ? tw_log_softmax(logits) : logits;
    if (rows * g->vocab > INT32_MAX) { twi_fail(m->region.tw, TW_E_RANGE, "forward: %lld rows are too many", (long long)rows); return false; }
    where = tw_ids(m->region.tw, tw_shape2(rows, choices), NULL);
    if (!where) return false;
    for (b = 0; b < rows && twi_computes(m->region.tw); b++) for (i = 0; i < choices; i++)
        ((int32_t *)where->data)[b * choices + i] = (int32_t)(b * g->vocab + ((const int32_t *)targets->data)[b * choices + i]);
    scores = tw_embedding_op(tw_reshape(scores, tw_shape2(rows * g->vocab, 1)), where);
    scores = scores ? tw_reshape(scores, tw_shape2(rows, choices)) : NULL;
    if (!twi_output(out, "logits", scores)) return false;
    return !tw_batch_get(in, "labels") || twi_output(out, "loss", tw_cross_entropy(scores, tw_batch_get(in, "labels"), 0));
}

static bool twi_glm_classify(tw_model *m, tw_tensor *h, tw_tensor *mask, int64_t choices, const tw_batch *in, tw_outputs *out) {
    const tw_glm *g = (const tw_glm *)m->net;
    int64_t rows = h->shape[0], b, classes = tw_dim(g->multichoice_head.weight, 0);
    int32_t *at = (int32_t *)twi_step_record(m->region.tw, (size_t)rows * sizeof *at);
    tw_tensor *logits;
    if (!at) return false;
    for (b = 0; b < rows; b++) at[b] = 0;
    if (g->pool != 'c' && !twi_glm_places(m, mask, rows, h->shape[1], g->pool == 'p', at)) return false;
    logits = tw_linear_activate(&g->pool_layer, twi_pick_tokens(h, at), TW_ACT_TANH);
    logits = tw_linear_forward(&g->multichoice_head, tw_dropout(logits, g->head_dropout));
    if (choices > 1 && classes != 1) { twi_fail(m->region.tw, TW_E_SHAPE, "forward: choices want a model with one class, not %lld", (long long)classes); return false; }
    return twi_glm_choice_loss(m, choices > 1 ? tw_reshape(logits, tw_shape2(rows / choices, choices)) : logits, in, out);
}

/* Many answers to one text: the text is read once, and each of its answers (dec_input_ids [B, choices, T]) reads the memories.
   dec_attention_mask [B, choices] says how many of them. */
static bool twi_glm_fast_cloze(tw_model *m, const twi_glm_run *first, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    const tw_glm *g = (const tw_glm *)m->net;
    tw_context *tw = m->region.tw;
    tw_tensor *answers = twi_input_ids(m, in, "dec_input_ids"), *seen = tw_batch_get(in, "dec_attention_mask"), *row, *h;
    int64_t batch = first->ids->shape[0], past = first->ids->shape[1], rows, choices, tokens, keys, b, i;
    tw_pass *plain = (tw_pass *)twi_step_record(tw, sizeof *plain);
    twi_glm_run r, reading = *first;
    if (!answers || !plain) return false;
    rows = answers->shape[0];
    tokens = answers->shape[1];
    keys = past + tokens;
    choices = rows / batch;
    seen = seen ? twi_as_ids(seen, tw, "dec_attention_mask") : NULL;
    if (rows % batch != 0 || pass->cache || (seen && tw_count(seen) != rows)) {
        if (!tw_failed(tw)) twi_fail(tw, TW_E_SHAPE, "forward: dec_input_ids of shape %s are not the choices of %lld texts", TWI_SHAPE(answers), (long long)batch);
        return false;
    }
    memset(&r, 0, sizeof r);
    r.ids = answers;
    r.position_ids = tw_batch_get(in, "dec_position_ids");
    r.out = out;
    r.kept = first->kept ? (tw_tensor **)twi_step_record(tw, (size_t)(g->layers + 1) * sizeof *r.kept) : NULL;
    row = tw_ids(tw, tw_shape1(rows), NULL);
    r.key_mask = tw_ids(tw, tw_shape2(rows, keys), NULL);
    if (!row || !r.key_mask || tw_failed(tw)) return false;
    for (b = 0; b < rows && twi_computes(tw); b++) {
        ((int32_t *)row->data)[b] = (int32_t)(b / choices);
        for (i = 0; i < keys; i++)
            ((int32_t *)r.key_mask->data)[b * keys + i] = i >= past || !seen || i < ((const int32_t *)seen->data)[b];
    }
    *plain = *pass;
    plain->hidden_states = plain->last_token_only = false;
    r.memory = (tw_tensor **)twi_step_record(tw, (size_t)(g->layers + 1) * sizeof *r.memory);
    if (!r.memory) return false;
    reading.out = NULL;
    reading.kept = r.memory;
    if (!twi_glm_stack(m, &reading, plain)) return false;
    for (i = 0; i <= g->layers; i++) {                       /* a text's memory for each of its answers */
        int64_t width = tw_dim(r.memory[i], 2);
        tw_tensor *all = tw_embedding_op(tw_reshape(r.memory[i], tw_shape2(batch, past * width)), row);
        r.memory[i] = all ? tw_reshape(all, tw_shape3(rows, past, width)) : NULL;
        if (!r.memory[i]) return false;
    }
    h = twi_glm_stack(m, &r, pass);
    if (!h || !twi_glm_cloze(m, h, choices, in, out)) return false;
    return !r.kept || twi_glm_remember(m, &r, twi_input_flag(in, "return_memory", false), true, out);
}

static bool twi_glm_forward(tw_model *m, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_glm *g = (tw_glm *)m->net;
    tw_context *tw = m->region.tw;
    tw_tensor *given = tw_batch_get(in, "input_ids"), *targets, *mask, *h, *logits = NULL;
    bool all = twi_input_flag(in, "return_memory", false), ok;
    int64_t choices = given && given->rank == 3 ? given->shape[1] : 1, rows;
    tw_pass wanted = *pass, *kept_pass;
    twi_glm_run r;
    memset(&r, 0, sizeof r);
    r.ids = twi_input_ids(m, in, "input_ids");
    if (!r.ids) return false;
    rows = r.ids->shape[0];
    r.position_ids = tw_batch_get(in, "position_ids");
    r.attention_mask = tw_batch_get(in, "attention_mask");
    r.prompt_pos = tw_batch_get(in, "prompt_pos");
    r.out = out;
    if (!twi_glm_memories(m, in, rows, &r.memory)) return false;
    if (out && (g->max_memory > 0 || all) && !pass->cache && !pass->no_logits) {
        r.kept = (tw_tensor **)twi_step_record(tw, (size_t)(g->layers + 1) * sizeof *r.kept);
        if (!r.kept) return false;
    }
    if (g->kind == TWI_HEAD_FAST_CLOZE) return twi_glm_fast_cloze(m, &r, in, pass, out);
    targets = tw_batch_get(in, "target_ids");
    wanted.last_token_only = pass->last_token_only && g->output_predict && !targets && g->kind != TWI_HEAD_SEQUENCE;
    kept_pass = (tw_pass *)twi_step_record(tw, sizeof *kept_pass);       /* a block that is recomputed reads it again */
    if (!kept_pass) return false;
    *kept_pass = wanted;
    h = twi_glm_stack(m, &r, kept_pass);
    if (!h) return false;
    if (g->kind == TWI_HEAD_SEQUENCE) ok = twi_glm_classify(m, h, r.attention_mask, choices, in, out);
    else if (g->kind == TWI_HEAD_CLOZE && targets) ok = twi_glm_cloze(m, h, choices, in, out);
    else if (g->kind == TWI_HEAD_ONE_CLOZE && targets) ok = twi_glm_one_cloze(m, h, r.attention_mask, in, out);
    else if (g->kind == TWI_HEAD_BLANKS && targets) {
        if (!twi_glm_table(m, in, "target_ids", rows, r.ids->shape[1], false, &targets) || !twi_glm_table(m, in, "loss_mask", rows, r.ids->shape[1], true, &mask)) return false;
        if (!pass->no_logits) {
            logits = tw_linear_op(tw_reshape(h, tw_shape2(rows * r.ids->shape[1], h->shape[2])), g->word_embeddings.weight, NULL, false, TW_ACT_NONE, NULL);
            if (!twi_output(out, "logits", logits)) return false;
        }
        ok = twi_output(out, "loss", twi_glm_blank_loss(m, h, logits, targets, mask, pass));
    } else if (g->output_predict) ok = twi_language_head(h, g->word_embeddings.weight, in, kept_pass, false, out);
    else ok = twi_output(out, "logits", h) && twi_output(out, "last_hidden_state", h);
    if (!ok) return false;
    return !r.kept || twi_glm_remember(m, &r, all, twi_input_flag(in, "detach_memory", true), out);
}

static void twi_glm_set_dropout(tw_model *m, float p) {
    tw_glm *g = (tw_glm *)m->net;
    int64_t i;
    g->embedding_dropout = g->head_dropout = p;
    for (i = 0; i < g->layers; i++) g->block[i].attention_dropout = g->block[i].output_dropout = p;
}

static bool twi_glm_decoder(const tw_model *m, twi_decoder *d) {
    const tw_glm *g = (const tw_glm *)m->net;
    d->layers = g->layers;
    d->heads = g->heads;
    d->head_dim = tw_dim(g->word_embeddings.weight, 1) / g->heads;
    d->vocab = g->vocab;
    d->positions = g->max_positions;
    return g->output_predict && (g->kind == TWI_HEAD_LM || g->kind == TWI_HEAD_BLANKS);
}

static const twi_model_type twi_glm_type = { "glm", "model.", sizeof(tw_glm), twi_glm_build, twi_glm_forward, twi_glm_set_dropout, twi_glm_decoder, NULL,
                                             "max_sequence_length" };

/* -- GLM-4 (GLM team 2024): transformers' `glm` and `glm4` ------------------------------------------------------------------
   Easy to get wrong: the rotary pairs are neighbours (2i, 2i+1), and only the first part of each head is turned
   (partial_rotary_factor); q, k and v have a bias, o has none; the gate is the first half of gate_up_proj; the head has
   weights of its own. */
typedef struct tw_rotary {
    tw_embedding     embed_tokens;
    tw_rotary_block *block;
    tw_rms_norm      norm;
    tw_linear        head;                       /* lm_head, or score */
    float            head_dropout;
    int64_t          layers, vocab, positions;
    twi_head         kind;
} tw_rotary;

static bool twi_rotary_block_init(tw_model *m, tw_rotary_block *b, int64_t layer, int64_t width, int64_t inner, float eps) {
    bool bias = twi_config_bool(m, "attention_bias", true);
    b->layer = layer;
    tw_enter(m, "layers", layer);
    tw_enter(m, "self_attn", -1);
    if (!tw_linear_init(m, &b->q_proj, "q_proj", width, b->heads * b->head_dim, bias) || !tw_linear_init(m, &b->k_proj, "k_proj", width, b->kv_heads * b->head_dim, bias) ||
        !tw_linear_init(m, &b->v_proj, "v_proj", width, b->kv_heads * b->head_dim, bias) || !tw_linear_init(m, &b->o_proj, "o_proj", b->heads * b->head_dim, width, false)) return false;
    tw_leave(m);
    tw_enter(m, "mlp", -1);
    if (!tw_linear_init(m, &b->gate_up_proj, "gate_up_proj", width, 2 * inner, false) || !tw_linear_init(m, &b->down_proj, "down_proj", inner, width, false)) return false;
    tw_leave(m);
    if (!tw_rms_norm_init(m, &b->input_layernorm, "input_layernorm", width, eps) || !tw_rms_norm_init(m, &b->post_attention_layernorm, "post_attention_layernorm", width, eps)) return false;
    if (b->has_post_norms && (!tw_rms_norm_init(m, &b->post_self_attn_layernorm, "post_self_attn_layernorm", width, eps) ||
                              !tw_rms_norm_init(m, &b->post_mlp_layernorm, "post_mlp_layernorm", width, eps))) return false;
    tw_leave(m);
    return true;
}

/* transformers 5 has the rotary settings in rope_parameters, 4 had them beside the others. */
static float twi_config_rope(tw_model *m, const char *key, double otherwise, double low, double high) {
    const tw_json *v = tw_json_get(twi_config_value(m, "rope_parameters"), key);
    double x;
    if (tw_json_type(v) == TW_JSON_NONE || tw_json_type(v) == TW_JSON_NULL) return twi_config_float(m, key, otherwise, low, high);
    x = tw_json_number(v, low - 1);
    if (!(x >= low && x <= high)) { twi_fail(m->region.tw, TW_E_CONFIG, "config: rope_parameters: %s is not a number in %g ... %g", key, low, high); x = low; }
    return (float)x;
}

static bool twi_rotary_build(tw_model *m) {
    tw_rotary *g = (tw_rotary *)m->net;
    tw_context *tw = m->region.tw;
    int64_t width = twi_config_int(m, "hidden_size", 4096, 1, 1 << 20), inner = twi_config_int(m, "intermediate_size", 13696, 1, 1 << 24), turned, i;
    float eps = twi_config_float(m, "rms_norm_eps", 0.00000015625, 0, 1), part = twi_config_rope(m, "partial_rotary_factor", 0.5, 0, 1);
    const tw_json *scaling = twi_config_value(m, twi_config_value(m, "rope_parameters") ? "rope_parameters" : "rope_scaling");
    const char *kind = tw_json_string(tw_json_get(scaling, "rope_type"), tw_json_string(tw_json_get(scaling, "type"), "default"));
    tw_rotary_block like;
    memset(&like, 0, sizeof like);
    like.heads = twi_config_int(m, "num_attention_heads", 32, 1, 1 << 16);
    like.kv_heads = twi_config_int(m, "num_key_value_heads", 2, 1, like.heads);
    like.head_dim = twi_config_int(m, "head_dim", 128, 1, 1 << 16);
    turned = (int64_t)((double)like.head_dim * (double)part);
    like.rotary_dim = (turned + 1) / 2 * 2;
    like.theta = twi_config_rope(m, "rope_theta", 10000, 1e-3, 1e30);
    if (turned % 2) like.theta = (float)pow((double)like.theta, (double)like.rotary_dim / (double)turned);   /* an odd number: theta^(-2i/turned), for one pair more */
    like.activation = twi_config_activation(m, "hidden_act", "silu");
    like.attention_dropout = twi_config_float(m, "attention_dropout", 0, 0, 0.999);
    like.has_post_norms = strcmp(m->type->name, "glm4") == 0;
    g->vocab = twi_config_int(m, "vocab_size", 151552, 1, INT32_MAX - 1);
    g->positions = twi_config_int(m, "max_position_embeddings", 131072, 1, INT32_MAX - 2);
    g->layers = twi_config_int(m, "num_hidden_layers", 40, 1, 4096);
    g->kind = twi_head_of(m);
    m->initializer_range = twi_config_float(m, "initializer_range", 0.02, 0, 1e6);
    if (tw_failed(tw)) return false;
    if (strcmp(kind, "default") != 0) { twi_fail(tw, TW_E_UNSUPPORTED, "config: rotary positions of rope_type \"%.40s\" are not known here", kind); return false; }
    if (like.heads % like.kv_heads != 0) {
        twi_fail(tw, TW_E_CONFIG, "config: num_attention_heads %lld is not a multiple of num_key_value_heads %lld", (long long)like.heads, (long long)like.kv_heads);
        return false;
    }
    g->block = (tw_rotary_block *)twi_alloc(&m->region, (size_t)g->layers, sizeof *g->block);
    if (!g->block) return false;
    if (g->kind != TWI_HEAD_NONE) tw_enter(m, "model", -1);
    if (!tw_embedding_init(m, &g->embed_tokens, "embed_tokens", g->vocab, width)) return false;
    for (i = 0; i < g->layers; i++) {
        g->block[i] = like;
        if (!twi_rotary_block_init(m, &g->block[i], i, width, inner, eps)) return false;
    }
    if (!tw_rms_norm_init(m, &g->norm, "norm", width, eps)) return false;
    if (g->kind == TWI_HEAD_NONE) return !tw_failed(tw);
    tw_leave(m);
    if (g->kind == TWI_HEAD_LM) {
        if (!twi_config_bool(m, "tie_word_embeddings", false)) return tw_linear_init(m, &g->head, "lm_head", width, g->vocab, false);
        g->head.model = m;
        g->head.weight = g->embed_tokens.weight;
        return twi_add_alias(m, "lm_head.weight", g->embed_tokens.weight);
    }
    g->head_dropout = twi_config_float(m, twi_config_value(m, "classifier_dropout") ? "classifier_dropout" : "hidden_dropout", 0.1, 0, 0.999);
    return tw_linear_init(m, &g->head, "score", width, twi_config_labels(m), g->kind == TWI_HEAD_TOKEN);
}

static bool twi_rotary_forward(tw_model *m, const tw_batch *in, const tw_pass *pass, tw_outputs *out) {
    tw_rotary *g = (tw_rotary *)m->net;
    tw_context *tw = m->region.tw;
    tw_tensor *ids = twi_input_ids(m, in, "input_ids"), *x;
    int64_t past = pass->cache ? pass->cache->length : 0, i;
    twi_stream stream;
    tw_rotary_input how;
    if (!ids) return false;
    memset(&how, 0, sizeof how);
    how.pass = pass;
    if (!twi_input_like(m, in, "position_ids", ids, &how.positions) ||
        !twi_key_mask(m, tw_batch_get(in, "attention_mask"), ids->shape[0], past + ids->shape[1], &how.key_mask)) return false;
    if (!how.positions) how.positions = twi_positions(ids, past);
    x = twi_stream_begin(&stream, tw_embedding_forward(&g->embed_tokens, ids), pass->hidden_states);
    for (i = 0; x && how.positions && i < g->layers; i++) {
        if (pass->hidden_states && !twi_numbered_output(out, "hidden_states", i, x)) return false;
        how.block = &g->block[i];
        x = twi_stream_next(&stream, x, m->checkpointing ? tw_checkpoint(tw, tw_rotary_block_forward, &how, sizeof how, &x, 1) : tw_rotary_block_forward(&how, &x));
    }
    if (!x || !how.positions) return false;
    if (pass->last_token_only && g->kind == TWI_HEAD_LM) x = tw_slice(x, 1, x->shape[1] - 1, 1);
    x = tw_rms_norm_forward(&g->norm, x);
    if (pass->hidden_states && !twi_numbered_output(out, "hidden_states", g->layers, x)) return false;
    if (!x || !twi_decoder_heads(m, g->kind, &g->head, g->head_dropout, x, ids, in, pass, out)) return false;
    if (pass->cache) pass->cache->length += ids->shape[1];
    return true;
}

static void twi_rotary_set_dropout(tw_model *m, float p) {
    tw_rotary *g = (tw_rotary *)m->net;
    int64_t i;
    g->head_dropout = p;
    for (i = 0; i < g->layers; i++) g->block[i].attention_dropout = p;
}

static bool twi_rotary_decoder(const tw_model *m, twi_decoder *d) {
    const tw_rotary *g = (const tw_rotary *)m->net;
    d->layers = g->layers;
    d->heads = g->block[0].kv_heads;
    d->head_dim = g->block[0].head_dim;
    d->vocab = g->vocab;
    d->positions = g->positions;
    d->eos = 151329;
    return g->kind == TWI_HEAD_LM;
}

static const twi_model_type twi_glm_hf_type = { "glm", "model.", sizeof(tw_rotary), twi_rotary_build, twi_rotary_forward, twi_rotary_set_dropout, twi_rotary_decoder, NULL,
                                                "max_position_embeddings" };
static const twi_model_type twi_glm4_type = { "glm4", "model.", sizeof(tw_rotary), twi_rotary_build, twi_rotary_forward, twi_rotary_set_dropout, twi_rotary_decoder, NULL,
                                              "max_position_embeddings" };

/* -- all models that can be opened: the class that config.json's `architectures` names, or the task asks for ---- */

static const twi_model_class twi_model_classes[] = {           /* without class and task the first of its type */
    { "GPT2LMHeadModel",            &twi_gpt2_type, TWI_HEAD_LM,       "lm" },
    { "GPT2Model",                  &twi_gpt2_type, TWI_HEAD_NONE,     "embedding" },
    { "GPT2ForSequenceClassification", &twi_gpt2_type, TWI_HEAD_SEQUENCE, "classification" },
    { "GPT2ForTokenClassification", &twi_gpt2_type, TWI_HEAD_TOKEN,    "token-classification" },
    { "GPT2ForQuestionAnswering",   &twi_gpt2_type, TWI_HEAD_QA,       "question-answering" },
    { "GPT2DoubleHeadsModel",       &twi_gpt2_type, TWI_HEAD_DOUBLE,   "multiple-choice" },
    { "GLMModel",                   &twi_glm_type, TWI_HEAD_LM,         "lm" },
    { "GLMForSeq2Seq",              &twi_glm_type, TWI_HEAD_BLANKS,     "seq2seq" },
    { "GLMForSeq2Seq",              &twi_glm_type, TWI_HEAD_BLANKS,     "title-generation" },
    { "GLMForSeq2Seq",              &twi_glm_type, TWI_HEAD_BLANKS,     "poetry" },
    { "GLMForSequenceClassification", &twi_glm_type, TWI_HEAD_SEQUENCE, "classification" },
    { "GLMForMultiTokenCloze",      &twi_glm_type, TWI_HEAD_CLOZE,      "multi-token-cloze" },
    { "GLMForMultiTokenClozeFast",  &twi_glm_type, TWI_HEAD_FAST_CLOZE, "multi-token-cloze-fast" },
    { "GLMForSingleTokenCloze",     &twi_glm_type, TWI_HEAD_ONE_CLOZE,  "single-token-cloze" },
    { "GlmForCausalLM",             &twi_glm_hf_type, TWI_HEAD_LM,      "lm" },
    { "GlmModel",                   &twi_glm_hf_type, TWI_HEAD_NONE,    "embedding" },
    { "GlmForSequenceClassification", &twi_glm_hf_type, TWI_HEAD_SEQUENCE, "classification" },
    { "GlmForTokenClassification",  &twi_glm_hf_type, TWI_HEAD_TOKEN,   "token-classification" },
    { "Glm4ForCausalLM",            &twi_glm4_type, TWI_HEAD_LM,        "lm" },
    { "Glm4Model",                  &twi_glm4_type, TWI_HEAD_NONE,      "embedding" },
    { "Glm4ForSequenceClassification", &twi_glm4_type, TWI_HEAD_SEQUENCE, "classification" },
    { "Glm4ForTokenClassification", &twi_glm4_type, TWI_HEAD_TOKEN,     "token-classification" },
#define TWI_BERT_CLASSES(prefix, type, causal)                                         \
    { prefix "Model",                     type, TWI_HEAD_NONE,     "embedding" },            \
    { prefix "ForMaskedLM",               type, TWI_HEAD_MASKED,   "masked-lm" },            \
    { prefix causal,                      type, TWI_HEAD_LM,       "lm" },                   \
    { prefix "ForSequenceClassification", type, TWI_HEAD_SEQUENCE, "classification" },       \
    { prefix "ForTokenClassification",    type, TWI_HEAD_TOKEN,    "token-classification" }, \
    { prefix "ForQuestionAnswering",      type, TWI_HEAD_QA,       "question-answering" },   \
    { prefix "ForMultipleChoice",         type, TWI_HEAD_CHOICE,   "multiple-choice" }
    TWI_BERT_CLASSES("Bert", &twi_bert_type, "LMHeadModel"),
    { "BertForPreTraining",         &twi_bert_type, TWI_HEAD_PRETRAINING, "pretraining" },
    { "BertForNextSentencePrediction", &twi_bert_type, TWI_HEAD_NEXT,  "next-sentence-prediction" },
    TWI_BERT_CLASSES("Roberta", &twi_roberta_type, "ForCausalLM"),
    TWI_BERT_CLASSES("XLMRoberta", &twi_xlm_roberta_type, "ForCausalLM"),
    { "T5ForConditionalGeneration",   &twi_t5_type,  TWI_HEAD_LM,       "lm" },
    { "T5Model",                      &twi_t5_type,  TWI_HEAD_NONE,     "embedding" },
    { "T5EncoderModel",               &twi_t5_type,  TWI_HEAD_ENCODER,  "encoder" },
    { "T5ForSequenceClassification",  &twi_t5_type,  TWI_HEAD_SEQUENCE, "classification" },
    { "T5ForTokenClassification",     &twi_t5_type,  TWI_HEAD_TOKEN,    "token-classification" },
    { "T5ForQuestionAnswering",       &twi_t5_type,  TWI_HEAD_QA,       "question-answering" },
    { "MT5ForConditionalGeneration",  &twi_mt5_type, TWI_HEAD_LM,       "lm" },
    { "MT5Model",                     &twi_mt5_type, TWI_HEAD_NONE,     "embedding" },
    { "MT5EncoderModel",              &twi_mt5_type, TWI_HEAD_ENCODER,  "encoder" },
    { "MT5ForSequenceClassification", &twi_mt5_type, TWI_HEAD_SEQUENCE, "classification" },
    { "MT5ForTokenClassification",    &twi_mt5_type, TWI_HEAD_TOKEN,    "token-classification" },
    { "MT5ForQuestionAnswering",      &twi_mt5_type, TWI_HEAD_QA,       "question-answering" }
#undef TWI_BERT_CLASSES
};
enum { TWI_MODEL_CLASSES = (int)(sizeof twi_model_classes / sizeof *twi_model_classes) };

/* Is this the type that the config means?  Two families call themselves "glm": FlagAI's has num_layers, transformers'
   num_hidden_layers; and FlagAI's files may have no model_type at all. */
static bool twi_is_of_type(const twi_model_type *t, const tw_json *config, const char *type, const char *name) {
    bool flagai = tw_json_type(tw_json_get(config, "num_layers")) != TW_JSON_NONE || (name && strncmp(name, "GLM", 3) == 0);
    if (!type[0] && tw_json_type(tw_json_get(config, "block_position_encoding")) != TW_JSON_NONE) type = "glm";
    if (t == &twi_glm_type || t == &twi_glm_hf_type) return strcmp(type, "glm") == 0 && (t == &twi_glm_type) == flagai;
    return strcmp(t->name, type) == 0;
}

/* By `task` if there is one, else by architectures[0], else the model type's first. */
static const twi_model_class *twi_find_class(tw_context *tw, const tw_json *config, const char *task) {
    const char *type = tw_json_string(tw_json_get(config, "model_type"), "");
    const tw_json *classes = tw_json_get(config, "architectures");
    const char *name = tw_json_string(tw_json_at(classes, 0), NULL);
    const twi_model_class *first = NULL;
    int i;
    if (tw_json_count(classes) > 0 ? !name || tw_json_type(classes) != TW_JSON_ARRAY : classes && tw_json_type(classes) != TW_JSON_NULL && tw_json_type(classes) != TW_JSON_ARRAY) {
        twi_fail(tw, TW_E_CONFIG, "config: architectures is no list of names");
        return NULL;
    }
    for (i = 0; i < TWI_MODEL_CLASSES; i++) {
        const twi_model_class *c = &twi_model_classes[i];
        bool of_type = twi_is_of_type(c->type, config, type, name) || (!type[0] && name && strcmp(c->name, name) == 0);
        if (task && of_type && strcmp(c->task, task) == 0) return c;
        if (!task && name && of_type && strcmp(c->name, name) == 0) return c;
        if (of_type && !first) first = c;
    }
    if (first && !task && !name) return first;
    if (task && first) twi_fail(tw, TW_E_UNSUPPORTED, "config: a %s model has no task \"%.60s\" here", first->type->name, task);
    else if (name && first) twi_fail(tw, TW_E_UNSUPPORTED, "config: the class \"%.60s\" cannot be opened here", name);
    else twi_fail(tw, TW_E_UNSUPPORTED, "config: the model_type \"%.60s\" cannot be opened here", type[0] ? type : name ? name : "");
    return NULL;
}
static twi_head twi_head_of(const tw_model *m) {
    int i;
    for (i = 0; i < TWI_MODEL_CLASSES; i++) if (strcmp(twi_model_classes[i].name, m->name) == 0) return twi_model_classes[i].head;
    return TWI_HEAD_NONE;
}

/* The layers of the model that `config` describes; takes the config over, in every case.  from_file: no numbers yet. */
static tw_model *twi_build_model(tw_context *tw, tw_json *config, const char *task, bool from_file) {
    const twi_model_class *c = config ? twi_find_class(tw, config, task) : NULL;
    tw_model *m = c ? tw_model_create(tw, c->name) : NULL;
    if (!m) { tw_json_free(config); return NULL; }
    m->config = config;
    m->type = c->type;
    m->from_file = from_file;
    m->net = twi_alloc(&m->region, 1, c->type->net_bytes);
    if (m->net && c->type->build(m) && !tw_failed(tw)) return m;
    if (!tw_failed(tw)) twi_fail(tw, TW_E_CONFIG, "config: the model could not be built from it");
    tw_model_free(m);
    return NULL;
}

TWDEF tw_model *tw_from_config_with(tw_context *tw, const char *config_json, const char *task) {
    if (!tw || !config_json || tw_failed(tw)) return NULL;
    return twi_build_model(tw, tw_json_parse(tw, config_json, strlen(config_json)), task, false);
}
TWDEF tw_model *tw_from_config(tw_context *tw, const char *config_json) { return tw_from_config_with(tw, config_json, NULL); }
TWDEF const tw_json *tw_config_of(const tw_model *model) { return model ? model->config : NULL; }
TWDEF const char *tw_class_of(const tw_model *model) { return model ? model->name : ""; }
TWDEF int64_t tw_max_positions(const tw_model *model) {
    if (!model || !model->type) return 0;
    if (model->type->build == twi_bert_build) {        /* RoBERTa's first position is pad_token_id + 1 */
        const tw_bert *g = (const tw_bert *)model->net;
        return g->max_positions - (g->roberta ? g->pad + 1 : 0);
    }
    return !model->type->positions ? 0 : tw_json_int(twi_config_value(model, model->type->positions), 1024);
}
TWDEF bool tw_set_dropout(tw_model *model, float p) {
    if (!model || !model->type || tw_failed(model->region.tw)) return false;
    if (!(p >= 0 && p < 1)) { twi_fail(model->region.tw, TW_E_RANGE, "dropout: %g is not in [0, 1)", (double)p); return false; }
    model->type->set_dropout(model, p);
    return true;
}
TWDEF void tw_gradient_checkpointing(tw_model *model, bool on) { if (model) model->checkpointing = on; }

typedef struct twi_own_forward { tw_forward_fn forward; void *user; } twi_own_forward;

TWDEF void tw_set_forward(tw_model *model, tw_forward_fn forward, void *user) {
    twi_own_forward *own;
    if (!model || model->type) return;
    own = (twi_own_forward *)(model->net ? model->net : twi_alloc(&model->region, 1, sizeof *own));
    if (!own) return;
    own->forward = forward;
    own->user = user;
    model->net = own;
}

typedef struct twi_forward_call { tw_model *model; const tw_batch *inputs; const tw_pass *pass; tw_outputs *out; bool ok; } twi_forward_call;

static void twi_forward_body(void *arg) {
    twi_forward_call *c = (twi_forward_call *)arg;
    tw_model *m = c->model;
    if (m->type) c->ok = m->type->forward(m, c->inputs, c->pass, c->out);
    else c->ok = ((twi_own_forward *)m->net)->forward(m, ((twi_own_forward *)m->net)->user, c->inputs, c->pass, c->out);
}

TWDEF bool tw_model_forward(tw_model *model, const tw_batch *inputs, const tw_pass *pass, tw_outputs *out) {
    twi_forward_call call;
    tw_pass *kept;
    if (out) memset(out, 0, sizeof *out);
    if (!model || tw_failed(model->region.tw) || !inputs) return false;
    if (!model->net) { twi_fail(model->region.tw, TW_E_MISSING, "forward: the model %s has no forward function (tw_set_forward)", model->name); return false; }
    kept = (tw_pass *)twi_step_record(model->region.tw, sizeof *kept);      /* a block that is recomputed reads it again */
    if (!kept) return false;
    if (pass) *kept = *pass;
    call.model = model; call.inputs = inputs; call.pass = kept; call.out = out; call.ok = false;
    twi_with_team(model->region.tw, twi_forward_body, &call);
    return call.ok && !tw_failed(model->region.tw);
}

static void twi_free_model_files(tw_model *model);       /* chapter opening and saving */

TWDEF void tw_model_free(tw_model *model) {
    tw_context *tw;
    if (!model) return;
    tw = model->region.tw;
    if (model->previous) model->previous->next = model->next; else tw->models = model->next;
    if (model->next) model->next->previous = model->previous;
    tw_json_free(model->config);
    twi_free_model_files(model);
    twi_region_clear(&model->region);
    twi_free(&tw->region, model);
}


/* ==== [tw:08] files: implementation ============================================================ */

/* -- numbers of any type as f32 --------------------------------------------------------------------- */

/* 4 bits of exponent (bias 7), 3 of fraction; no infinity, NaN is S.1111.111 */
static float twi_f8_e4m3(unsigned v) {
    unsigned exponent = v >> 3 & 15, fraction = v & 7;
    uint32_t sign = (uint32_t)(v & 0x80) << 24;
    float small;
    if (exponent == 15 && fraction == 7) return twb_bits_float(sign | 0x7FC00000u);
    if (exponent != 0) return twb_bits_float(sign | (exponent + 120) << 23 | (uint32_t)fraction << 20);
    small = (float)fraction * (1.0f / 512.0f);                /* subnormal: fraction 2^-9 */
    return sign ? -small : small;
}

/* Numbers of any dtype, at any address, as f32 (nearest, where f32 is narrower).  False for a type
   that is none. */
static bool twi_convert_values(const void *src, tw_dtype from, int64_t count, float *dst) {
    const unsigned char *p = (const unsigned char *)src;
    size_t i, n = count > 0 ? (size_t)count : 0;
#define TWI_CONVERT(type) \
    { type v; for (i = 0; i < n; i++) { memcpy(&v, p + i * sizeof v, sizeof v); dst[i] = (float)v; } return true; }
    switch (from) {
    case TW_F32: if (n) memcpy(dst, src, n * sizeof(float)); return true;
    case TW_F16:
    case TW_BF16: {
        twb_cpu cpu = twb_cpu_default();
        uint16_t piece[512];                                  /* of a source at an odd address */
        bool aligned = ((uintptr_t)p & 1) == 0;
        size_t step = aligned ? n : sizeof piece / sizeof piece[0];
        cpu.threads = 1;                                      /* memory is what it waits for */
        for (i = 0; i < n; i += step) {
            size_t part = n - i < step ? n - i : step;
            if (!aligned) memcpy(piece, p + 2 * i, 2 * part);
            twb_convert(&cpu, (ptrdiff_t)part, aligned ? (const void *)p : (const void *)piece,
                        from == TW_F16 ? TWB_F16 : TWB_BF16, dst + i, TWB_F32);
        }
        return true;
    }
    case TW_F64: TWI_CONVERT(double)
    case TW_I64: TWI_CONVERT(int64_t)
    case TW_I32: TWI_CONVERT(int32_t)
    case TW_I16: TWI_CONVERT(int16_t)
    case TW_I8:  TWI_CONVERT(int8_t)
    case TW_U64: TWI_CONVERT(uint64_t)
    case TW_U32: TWI_CONVERT(uint32_t)
    case TW_U16: TWI_CONVERT(uint16_t)
    case TW_U8:  TWI_CONVERT(uint8_t)
    case TW_BOOL:    for (i = 0; i < n; i++) dst[i] = p[i] ? 1.0f : 0.0f; return true;
    case TW_F8_E4M3: for (i = 0; i < n; i++) dst[i] = twi_f8_e4m3(p[i]); return true;
    /* the upper half of an f16 */
    case TW_F8_E5M2: for (i = 0; i < n; i++) dst[i] = twb_f16_to_f32((uint16_t)(p[i] << 8)); return true;
    case TW_DTYPE_COUNT: break;
    }
#undef TWI_CONVERT
    return false;
}

/* -- a checkpoint ------------------------------------------------------------------------------------
   All of its memory is in the context's region, block by block, so that it can be closed early and
   goes with the context at last. */
typedef struct twi_weights_file {      /* one file: its bytes, and its header's text, which holds all names */
    twi_bytes bytes;
    char     *header, *path;
} twi_weights_file;

typedef struct twi_metadata { const char *key, *value; } twi_metadata;

struct tw_weights {
    tw_context       *tw;
    tw_weight        *list;
    twi_weights_file *files;
    twi_metadata     *metadata;
    size_t            count, capacity, file_count, file_capacity, metadata_count, metadata_capacity;
    twi_index         index;           /* of the names */
    uint64_t          salt;
};

TWDEF void tw_close_weights(tw_weights *w) {
    twi_region *region;
    size_t i;
    if (!w) return;
    region = &w->tw->region;
    for (i = 0; i < w->file_count; i++) {
        twi_release_file(region, &w->files[i].bytes);
        twi_free(region, w->files[i].header);
        twi_free(region, w->files[i].path);
    }
    twi_free(region, w->files);
    twi_free(region, w->list);
    twi_free(region, w->metadata);
    twi_free(region, w->index.slots);
    twi_free(region, w);
}

TWDEF size_t tw_weights_count(const tw_weights *w) { return w ? w->count : 0; }
TWDEF const tw_weight *tw_weights_at(const tw_weights *w, size_t i) { return w && i < w->count ? &w->list[i] : NULL; }

TWDEF const tw_weight *tw_weights_find(const tw_weights *w, const char *name) {
    uint32_t hash, cursor;
    int64_t at;
    if (!w || !name || !w->index.slots) return NULL;
    cursor = hash = twi_hash(name, strlen(name), w->salt);
    while ((at = twi_index_next(&w->index, hash, &cursor)) != TWI_NOWHERE)
        if (strcmp(w->list[at].name, name) == 0) return &w->list[at];
    return NULL;
}

TWDEF const char *tw_weights_metadata(const tw_weights *w, const char *key) {
    size_t i;
    for (i = 0; w && key && i < w->metadata_count; i++)
        if (strcmp(w->metadata[i].key, key) == 0) return w->metadata[i].value;
    return NULL;
}

/* -- the header of a safetensors file ------------------------------------------------------------------ */

typedef struct twi_header {
    tw_weights     *w;
    twi_json_reader r;
    size_t          data_start, data_bytes;
    const char     *tensor;            /* the one that is being read, for errors; NULL: none */
} twi_header;

/* "model.safetensors: tensor "x": why (models/x/model.safetensors, byte 123)" */
static bool twi_header_fail(twi_header *h, tw_code code, const char *why) {
    char sentence[400];
    if (h->tensor) snprintf(sentence, sizeof sentence, "tensor \"%.200s\" %s", h->tensor, why);
    else snprintf(sentence, sizeof sentence, "%s", why);
    return twi_json_fail(&h->r, code, h->r.start, sentence) != 0;
}

/* A list of whole numbers from 0 to 2^63-1, at most `room`; *count says how many there are in all. */
static bool twi_header_numbers(twi_header *h, int64_t *numbers, size_t room, size_t *count, const char *why) {
    int token = twi_json_next(&h->r);
    *count = 0;
    if (token == 0) return false;
    if (token != '[') return twi_header_fail(h, TW_E_FORMAT, why);
    while ((token = twi_json_next(&h->r)) != ']') {
        int64_t number;
        if (token == 0) return false;
        if (token != 'n' || !twi_json_token_int(&h->r, &number) || number < 0 || h->r.text[h->r.start] == '-')
            return twi_header_fail(h, TW_E_FORMAT, why);
        if (*count < room) numbers[*count] = number;
        ++*count;
    }
    return true;
}

static bool twi_header_dtype(twi_header *h, tw_dtype *dtype) {
    int token = twi_json_next(&h->r), i;
    char why[120];
    if (token == 0) return false;
    if (token != 's') return twi_header_fail(h, TW_E_FORMAT, "has a dtype that is no string");
    for (i = 0; i < TW_DTYPE_COUNT; i++)
        if (strcmp(h->r.string, tw_dtype_name((tw_dtype)i)) == 0) { *dtype = (tw_dtype)i; return true; }
    snprintf(why, sizeof why, "is of type \"%.60s\", which is not supported", h->r.string);
    return twi_header_fail(h, TW_E_UNSUPPORTED, why);
}

/* elements * bytes each, every step checked. */
static bool twi_weight_bytes(const tw_weight *weight, size_t *bytes) {
    int i;
    *bytes = tw_dtype_size(weight->dtype);
    for (i = 0; i < weight->rank; i++) {
        if (weight->shape[i] < 0 || (uint64_t)weight->shape[i] > (size_t)-1 ||
            !twi_multiply(*bytes, (size_t)weight->shape[i], bytes))
            return false;
        if (*bytes == 0) {                                    /* a zero must not hide an overflow of the others */
            size_t rest = tw_dtype_size(weight->dtype);
            for (i = 0; i < weight->rank; i++)
                if (weight->shape[i] < 0 || (uint64_t)weight->shape[i] > (size_t)-1 ||
                    (weight->shape[i] && !twi_multiply(rest, (size_t)weight->shape[i], &rest)))
                    return false;
            return true;
        }
    }
    return true;
}

/* {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}; a key that is not known is skipped, as the reference does. */
static bool twi_header_tensor(twi_header *h, tw_weight *weight) {
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    static const char not_a_shape[] = "has a shape that is no list of whole numbers from 0";
    static const char not_offsets[] = "has data_offsets that are not two whole numbers from 0";
    const twi_weights_file *file = &h->w->files[h->w->file_count - 1];
    int64_t offsets[2] = { 0, 0 };
    size_t rank = 0, offset_count = 0;
    int token = twi_json_next(&h->r), seen = 0, field;
    if (token == 0) return false;
    if (token != '{') return twi_header_fail(h, TW_E_FORMAT, "is described by something that is no object");
    while ((token = twi_json_next(&h->r)) == 'k') {
        const char *key = h->r.string;
        field = strcmp(key, "dtype") == 0 ? DTYPE :
                strcmp(key, "shape") == 0 ? SHAPE : strcmp(key, "data_offsets") == 0 ? OFFSETS : 0;
        if (seen & field) return twi_header_fail(h, TW_E_FORMAT, "has the same key twice");
        seen |= field;
        if (field == DTYPE) { if (!twi_header_dtype(h, &weight->dtype)) return false; }
        else if (field == SHAPE) {
            if (!twi_header_numbers(h, weight->shape, TW_MAX_DIMS, &rank, not_a_shape)) return false;
        } else if (field == OFFSETS) {
            if (!twi_header_numbers(h, offsets, 2, &offset_count, not_offsets)) return false;
        }
        else if (!twi_json_skip(&h->r, twi_json_next(&h->r))) return false;
    }
    if (token == 0) return false;
    if (seen != (DTYPE | SHAPE | OFFSETS))
        return twi_header_fail(h, TW_E_FORMAT, !(seen & DTYPE) ? "has no dtype" :
                               !(seen & SHAPE) ? "has no shape" : "has no data_offsets");
    if (offset_count != 2) return twi_header_fail(h, TW_E_FORMAT, not_offsets);
    if (rank > TW_MAX_DIMS) return twi_header_fail(h, TW_E_UNSUPPORTED, "has more than 8 dimensions");
    weight->rank = (int)rank;
    if (!twi_weight_bytes(weight, &weight->bytes))
        return twi_header_fail(h, TW_E_FORMAT, "has a shape whose size cannot be counted");
    if (offsets[1] < offsets[0]) return twi_header_fail(h, TW_E_FORMAT, "ends before it begins");
    if ((uint64_t)offsets[1] > h->data_bytes) return twi_header_fail(h, TW_E_FORMAT, "lies beyond the end of the file");
    if ((size_t)(offsets[1] - offsets[0]) != weight->bytes)
        return twi_header_fail(h, TW_E_FORMAT, "has data_offsets that do not fit its shape and dtype");
    weight->offset = h->data_start + (size_t)offsets[0];
    weight->data = file->bytes.data + weight->offset;
    weight->writable = file->bytes.writable;
    weight->aligned = ((uintptr_t)weight->data & (tw_dtype_size(weight->dtype) - 1)) == 0;
    weight->file = file->path;
    return true;
}

static bool twi_header_metadata(twi_header *h) {
    tw_weights *w = h->w;
    int token = twi_json_next(&h->r);
    if (token == 0) return false;
    if (token != '{') return twi_header_fail(h, TW_E_FORMAT, "__metadata__ is no object");
    while ((token = twi_json_next(&h->r)) == 'k') {
        twi_metadata *grown = (twi_metadata *)twi_grow(&w->tw->region, w->metadata, w->metadata_count,
                                                       &w->metadata_capacity, w->metadata_count + 1, sizeof *grown);
        if (!grown) return false;
        w->metadata = grown;
        if (w->metadata_count >= TW_MAX_WEIGHTS)
            return twi_header_fail(h, TW_E_RANGE, "__metadata__ has more than a million entries");
        grown[w->metadata_count].key = h->r.string;
        token = twi_json_next(&h->r);
        if (token == 0) return false;
        if (token != 's') return twi_header_fail(h, TW_E_FORMAT, "__metadata__ has a value that is no string");
        grown[w->metadata_count++].value = h->r.string;
    }
    return token == '}';
}

/* what is sorted below */
typedef struct twi_list { const tw_weight *weights; const twi_metadata *metadata; } twi_list;

static bool twi_lies_before(const void *user, uint32_t a, uint32_t b) {
    const tw_weight *list = ((const twi_list *)user)->weights;
    if (list[a].offset != list[b].offset) return list[a].offset < list[b].offset;
    if (list[a].bytes != list[b].bytes) return list[a].bytes < list[b].bytes;
    return a < b;
}

static bool twi_key_before(const void *user, uint32_t a, uint32_t b) {
    const twi_metadata *list = ((const twi_list *)user)->metadata;
    int order = strcmp(list[a].key, list[b].key);
    return order ? order < 0 : a < b;
}

/* The data of the tensors from `first` on, in the order of their offsets, must fill the file without
   a hole, an overlap or a rest; and no key of the metadata may stand twice. */
static bool twi_header_check(twi_header *h, size_t first, size_t first_metadata) {
    tw_weights *w = h->w;
    twi_region *region = &w->tw->region;
    size_t count = w->count - first, keys = w->metadata_count - first_metadata, i, end = h->data_start;
    uint32_t *order = (uint32_t *)twi_alloc_raw(region, count > keys ? count : keys, sizeof *order);
    twi_list list;
    bool sorted = true, ok = order != NULL;
    list.weights = w->list ? w->list + first : NULL;          /* NULL + 0 is not allowed in C */
    list.metadata = w->metadata ? w->metadata + first_metadata : NULL;
    for (i = 0; ok && i < count; i++) {
        order[i] = (uint32_t)i;
        sorted = sorted && (i == 0 || twi_lies_before(&list, (uint32_t)i - 1, (uint32_t)i));
    }
    if (ok && !sorted) twi_sort(order, count, twi_lies_before, &list);
    for (i = 0; ok && i < count; i++) {
        const tw_weight *weight = &list.weights[order[i]];
        h->tensor = weight->name;
        if (weight->offset != end)
            ok = twi_header_fail(h, TW_E_FORMAT, weight->offset < end ?
                                 "shares bytes of the file with another tensor" :
                                 "has a hole before it that belongs to no tensor");
        end = weight->offset + weight->bytes;
    }
    h->tensor = NULL;
    if (ok && end != h->data_start + h->data_bytes)
        ok = twi_header_fail(h, TW_E_FORMAT, "bytes that belong to no tensor follow the last one");
    for (i = 0; ok && i < keys; i++) order[i] = (uint32_t)i;
    if (ok) twi_sort(order, keys, twi_key_before, &list);
    for (i = 1; ok && i < keys; i++)
        if (strcmp(list.metadata[order[i]].key, list.metadata[order[i - 1]].key) == 0)
            ok = twi_header_fail(h, TW_E_FORMAT, "__metadata__ has the same key twice");
    twi_free(region, order);
    return ok;
}

/* All of the header: tensors and metadata, added to the checkpoint. */
static bool twi_header_read(twi_header *h) {
    tw_weights *w = h->w;
    size_t first = w->count, first_metadata = w->metadata_count;
    bool metadata = false;
    int token = twi_json_next(&h->r);
    if (token == 0) return false;
    if (token != '{') return twi_header_fail(h, TW_E_FORMAT, "the header is no object");
    while ((token = twi_json_next(&h->r)) == 'k') {
        const char *name = h->r.string;
        tw_weight *grown;
        h->tensor = NULL;
        if (strcmp(name, "__metadata__") == 0) {
            if (metadata) return twi_header_fail(h, TW_E_FORMAT, "__metadata__ stands twice in the header");
            metadata = true;
            if (!twi_header_metadata(h)) return false;
            continue;
        }
        if (*name == 0 || strlen(name) != h->r.string_length)
            return twi_header_fail(h, TW_E_FORMAT, "a tensor's name is empty or has a NUL in it");
        if (w->count >= TW_MAX_WEIGHTS) return twi_header_fail(h, TW_E_RANGE, "there are more than a million tensors");
        grown = (tw_weight *)twi_grow(&w->tw->region, w->list, w->count, &w->capacity, w->count + 1, sizeof *grown);
        if (!grown) return false;
        w->list = grown;
        memset(&grown[w->count], 0, sizeof *grown);
        grown[w->count].name = h->tensor = name;
        if (!twi_header_tensor(h, &grown[w->count])) return false;
        w->count++;
    }
    h->tensor = NULL;
    return token == '}' && twi_json_next(&h->r) == 'e' && twi_header_check(h, first, first_metadata);
}

/* What people take for a safetensors file by mistake. */
static const char *twi_other_format(const unsigned char *p, size_t size) {
    if (size >= 4 && memcmp(p, "PK\3\4", 4) == 0) return "this is a zip file (a PyTorch checkpoint?), not safetensors";
    if (size >= 2 && p[0] == 0x80 && p[1] >= 2 && p[1] <= 5)
        return "this is a pickle file (an old PyTorch checkpoint?), not safetensors";
    if (size >= 4 && memcmp(p, "GGUF", 4) == 0) return "this is a GGUF file, not safetensors";
    if (size >= 8 && memcmp(p, "version ", 8) == 0)
        return "this is the stand-in that git leaves for a large file; fetch the file itself (git lfs pull)";
    return NULL;
}

/* Adds the tensors of a safetensors file.  Path and bytes become the checkpoint's. */
static bool twi_add_safetensors(tw_weights *w, const char *path, const twi_bytes *bytes) {
    tw_context *tw = w->tw;
    twi_region *region = &tw->region;
    twi_weights_file *file = (twi_weights_file *)twi_grow(region, w->files, w->file_count, &w->file_capacity,
                                                          w->file_count + 1, sizeof *file);
    twi_bytes given = *bytes;
    const unsigned char *p = bytes->data;
    uint64_t length = 0;
    twi_header h;
    int i;
    if (!file) { twi_release_file(region, &given); return false; }
    w->files = file;
    file += w->file_count++;
    memset(file, 0, sizeof *file);
    file->bytes = given;
    file->path = twi_copy_text(region, path, strlen(path));
    if (!file->path) return false;
    if (given.size < 8)
        return twi_fail_file(tw, TW_E_FORMAT, path,
                             given.size ? "it is too short to be a safetensors file" : "it is empty");
    for (i = 7; i >= 0; i--) length = length << 8 | p[i];
    if (length > given.size - 8 || length > TW_MAX_HEADER_BYTES || length < 2 || p[8] != '{') {
        const char *other = twi_other_format(p, given.size);
        return twi_fail_file(tw, TW_E_FORMAT, path, other ? other :
            length > given.size - 8 ? "its header is longer than the file: it is cut off, or no safetensors file" :
            length > TW_MAX_HEADER_BYTES ? "its header has more than 100 MB" :
            length < 2 ? "its header is empty" : "its header does not begin with {");
    }
    file->header = (char *)twi_alloc_raw(region, (size_t)length + 1, 1);
    if (!file->header) return false;
    memcpy(file->header, p + 8, (size_t)length);
    file->header[length] = 0;
    memset(&h, 0, sizeof h);
    h.w = w;
    h.r = twi_json_reader_of(tw, twi_base_name(file->path), file->path, (const char *)p + 8, file->header,
                             (size_t)length);
    h.r.counted_from = 8;
    h.data_start = 8 + (size_t)length;
    h.data_bytes = given.size - h.data_start;
    return twi_header_read(&h);
}

/* -- files, indexes, folders ------------------------------------------------------------------------------ */

/* The formats of weights that a folder may have, the preferred one first. */
static const struct {
    const char *file, *index;
    bool (*add)(tw_weights *w, const char *path, const twi_bytes *bytes);
} twi_weight_formats[] = {
    { "model.safetensors", "model.safetensors.index.json", twi_add_safetensors }
};
enum { TWI_WEIGHT_FORMATS = (int)(sizeof twi_weight_formats / sizeof twi_weight_formats[0]) };

static bool twi_add_file(tw_weights *w, const char *path, int format) {
    twi_bytes bytes;
    return twi_read_file(&w->tw->region, path, &bytes) && twi_weight_formats[format].add(w, path, &bytes);
}

/* A file name that stays in its folder, on every system: no separators, no "..", none of the names
   that are devices on Windows. */
static bool twi_is_plain_name(const char *name, size_t length) {
    static const char *const devices[] = { "CON", "PRN", "AUX", "NUL", "COM", "LPT" };
    char stem[5];
    size_t i, n;
    if (length == 0 || length > 255 || strlen(name) != length) return false;
    for (i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 32 || c == 127 || c == '/' || c == '\\' || c == ':' || (c == '.' && name[i + 1] == '.')) return false;
    }
    if (strcmp(name, ".") == 0) return false;
    for (n = 0; n < 5 && name[n] && name[n] != '.'; n++)
        stem[n] = name[n] >= 'a' && name[n] <= 'z' ? (char)(name[n] - 'a' + 'A') : name[n];
    for (i = 0; i < sizeof devices / sizeof devices[0]; i++)
        if ((n == 3 && i < 4 && memcmp(stem, devices[i], 3) == 0) ||
            (n == 4 && i >= 4 && memcmp(stem, devices[i], 3) == 0 && stem[3] >= '1' && stem[3] <= '9'))
            return false;
    return true;
}

/* The index of the names; a name that stands twice, in one file or in two, is an error. */
static bool twi_index_names(tw_weights *w) {
    size_t slots = twi_index_slots(w->count), i;
    uint64_t *empty = (uint64_t *)twi_alloc(&w->tw->region, slots, sizeof *empty);
    if (!empty) return false;
    w->index = twi_index_of(empty, slots);
    w->salt = twi_mix((uint64_t)(uintptr_t)w);
    for (i = 0; i < w->count; i++) {
        const char *name = w->list[i].name;
        const tw_weight *twin = tw_weights_find(w, name);
        if (twin) {
            twi_fail(w->tw, TW_E_FORMAT, "%s: tensor \"%.200s\" stands twice (%s, %s)", twi_base_name(w->list[i].file),
                     name, twin->file, w->list[i].file);
            return false;
        }
        twi_index_add(&w->index, twi_hash(name, strlen(name), w->salt), (uint32_t)i);
    }
    return true;
}

/* {"weight_map":{"wte.weight":"model-00001-of-00002.safetensors", ...}}: opens each shard once, then looks
   whether every tensor is where the index says. */
static bool twi_add_shards(tw_weights *w, const char *path, const tw_json *map, int format) {
    tw_context *tw = w->tw;
    twi_text shard = twi_text_new(&tw->region), folder = twi_text_new(&tw->region);
    tw_json *opened = tw_json_object(tw);
    int64_t i, count = tw_json_count(map);
    const char *why = "the index has no weight_map with names of files";
    bool ok = opened != NULL && tw_json_type(map) == TW_JSON_OBJECT && count > 0;
    if (opened && !ok) twi_fail_file(tw, TW_E_FORMAT, path, why);
    twi_folder_of(&folder, path);
    for (i = 0; ok && i < count; i++) {
        const tw_json *value = tw_json_at(map, i);
        const char *name = tw_json_string(value, "");
        if (tw_json_type(value) != TW_JSON_STRING) { ok = twi_fail_file(tw, TW_E_FORMAT, path, why); break; }
        if (!twi_is_plain_name(name, tw_json_string_length(value))) {
            twi_fail(tw, TW_E_FORMAT, "%s: \"%.200s\" is not the name of a file in the same folder (%s)",
                     twi_base_name(path), name, path);
            ok = false;
            break;
        }
        if (tw_json_get(opened, name)) continue;
        twi_join_path(&shard, twi_text_string(&folder), name);
        ok = !shard.failed && !folder.failed && tw_json_set_null(opened, name) &&
            twi_add_file(w, twi_text_string(&shard), format);
    }
    ok = ok && twi_index_names(w);
    for (i = 0; ok && i < count; i++) {
        const char *name = tw_json_key(map, i), *file = tw_json_string(tw_json_at(map, i), "");
        const tw_weight *weight = tw_weights_find(w, name);
        if (weight && strcmp(twi_base_name(weight->file), file) == 0) continue;
        twi_fail(tw, TW_E_MISSING, "%s: tensor \"%.200s\" is not in %.200s, where the index says (%s)",
                 twi_base_name(path), name, file, path);
        ok = false;
    }
    tw_json_free(opened);
    twi_text_free(&shard);
    twi_text_free(&folder);
    return ok;
}

static bool twi_add_index(tw_weights *w, const char *path, int format) {
    tw_json *index = twi_json_load(w->tw, path, true);
    bool ok = index && twi_add_shards(w, path, tw_json_get(index, "weight_map"), format);
    tw_json_free(index);
    return ok;
}

static bool twi_add_folder(tw_weights *w, const char *folder) {
    tw_context *tw = w->tw;
    twi_text path = twi_text_new(&tw->region);
    bool ok = false, found = false;
    int i, indexed;
    for (i = 0; !found && i < TWI_WEIGHT_FORMATS * 2; i++) {
        indexed = i % 2;
        twi_join_path(&path, folder, indexed ? twi_weight_formats[i / 2].index : twi_weight_formats[i / 2].file);
        if (path.failed) break;
        found = twi_file_exists(tw, twi_text_string(&path));
        if (found && indexed) ok = twi_add_index(w, twi_text_string(&path), i / 2);
        else if (found) ok = twi_add_file(w, twi_text_string(&path), i / 2) && twi_index_names(w);
    }
    if (!found && !path.failed)
        twi_fail(tw, TW_E_MISSING, "weights: neither %s nor %s is there (%s)", twi_weight_formats[0].file,
                 twi_weight_formats[0].index, *folder ? folder : "files in memory");
    twi_text_free(&path);
    return ok;
}

static tw_weights *twi_weights_new(tw_context *tw) {
    tw_weights *w = (tw_weights *)twi_alloc(&tw->region, 1, sizeof *w);
    if (w) w->tw = tw;
    return w;
}

TWDEF tw_weights *tw_open_weights(tw_context *tw, const char *path) {
    tw_weights *w;
    bool ok;
    if (!tw) return NULL;
    if (!path) { twi_fail(tw, TW_E_ARGUMENT, "weights: no path was given (NULL)"); return NULL; }
    w = twi_weights_new(tw);
    if (!w) return NULL;
    if (twi_ends_with(path, ".json")) ok = twi_add_index(w, path, 0);
    else if (twi_ends_with(path, ".safetensors") || twi_file_exists(tw, path))
        ok = twi_add_file(w, path, 0) && twi_index_names(w);
    else ok = twi_add_folder(w, path);
    if (ok) return w;
    tw_close_weights(w);
    return NULL;
}

TWDEF tw_weights *tw_weights_from_memory(tw_context *tw, const void *bytes, size_t size) {
    tw_weights *w;
    twi_bytes lent;
    if (!tw) return NULL;
    if (!bytes) { twi_fail(tw, TW_E_ARGUMENT, "weights: no bytes were given (NULL)"); return NULL; }
    w = twi_weights_new(tw);
    if (!w) return NULL;
    memset(&lent, 0, sizeof lent);
    lent.data = (const unsigned char *)bytes;
    lent.size = size;
    if (twi_add_safetensors(w, "memory", &lent) && twi_index_names(w)) return w;
    tw_close_weights(w);
    return NULL;
}

/* -- writing ------------------------------------------------------------------------------------------------ */

/* The order of the dtypes in a file: the widest first, so that all data is aligned if the header is. */
static int twi_dtype_rank(tw_dtype dtype) {
    static const tw_dtype order[TW_DTYPE_COUNT] = { TW_U64, TW_I64, TW_F64, TW_F32, TW_U32, TW_I32, TW_BF16, TW_F16,
                                                   TW_U16, TW_I16, TW_F8_E4M3, TW_F8_E5M2, TW_I8, TW_U8, TW_BOOL };
    int i;
    for (i = 0; i < TW_DTYPE_COUNT; i++) if (order[i] == dtype) return i;
    return TW_DTYPE_COUNT;
}

static bool twi_writes_before(const void *user, uint32_t a, uint32_t b) {
    const tw_weight *list = ((const twi_list *)user)->weights;
    int rank_a = twi_dtype_rank(list[a].dtype), rank_b = twi_dtype_rank(list[b].dtype), order;
    if (rank_a != rank_b) return rank_a < rank_b;
    order = strcmp(list[a].name, list[b].name);
    return order ? order < 0 : a < b;
}

/* How many bytes each tensor really hands over. */
typedef struct twi_counted { twi_save *save; size_t left; } twi_counted;
static bool twi_counted_write(void *user, const void *bytes, size_t count) {
    twi_counted *c = (twi_counted *)user;
    if (count > c->left) { c->left = (size_t)-1; return false; }
    c->left -= count;
    return twi_save_bytes(c->save, bytes, count);
}

/* The header's text: metadata, then the tensors in their order, padded with blanks to a multiple of 8. */
static bool twi_write_header(tw_context *tw, const tw_weight *weights, const uint32_t *order, size_t count,
                             const tw_json *metadata, twi_text *out) {
    twi_json_sink sink;
    size_t i, at = 0, end, bytes;
    char number[32];
    int64_t k;
    memset(&sink, 0, sizeof sink);
    sink.text = out;
    twi_text_add(out, "{\"__metadata__\":");
    for (k = 0; k < tw_json_count(metadata); k++) if (tw_json_type(tw_json_at(metadata, k)) != TW_JSON_STRING) break;
    if (metadata && (tw_json_type(metadata) != TW_JSON_OBJECT || k < tw_json_count(metadata))) {
        twi_fail(tw, TW_E_ARGUMENT, "safetensors: the metadata must be an object of strings");
        return false;
    }
    if (metadata) twi_json_text(metadata, 0, out);
    else twi_text_add(out, "{\"format\":\"pt\"}");
    for (i = 0; i < count; i++) {
        const tw_weight *weight = &weights[order[i]];
        int axis;
        twi_weight_bytes(weight, &bytes);
        if (!twi_sum(at, bytes, &end)) {
            twi_fail(tw, TW_E_RANGE, "safetensors: all tensors together are larger than can be counted");
            return false;
        }
        twi_text_char(out, ',');
        twi_json_emit_string(&sink, weight->name, strlen(weight->name));
        twi_text_add(out, ":{\"dtype\":\"");
        twi_text_add(out, tw_dtype_name(weight->dtype));
        twi_text_add(out, "\",\"shape\":[");
        for (axis = 0; axis < weight->rank; axis++) {
            if (axis) twi_text_char(out, ',');
            twi_text_bytes(out, number, twi_format_int(weight->shape[axis], number));
        }
        twi_text_add(out, "],\"data_offsets\":[");
        twi_text_bytes(out, number, twi_format_int((int64_t)at, number));
        twi_text_char(out, ',');
        twi_text_bytes(out, number, twi_format_int((int64_t)end, number));
        twi_text_add(out, "]}");
        at = end;
    }
    twi_text_char(out, '}');
    while (out->length % 8 && !out->failed) twi_text_char(out, ' ');
    if (!out->failed && out->length > TW_MAX_HEADER_BYTES) {
        twi_fail(tw, TW_E_RANGE, "safetensors: the header would have more than 100 MB");
        return false;
    }
    return !out->failed;
}

/* Names, shapes and dtypes that a reader would refuse are not written. */
static bool twi_check_weights(tw_context *tw, const tw_weight *weights, uint32_t *order, size_t count) {
    size_t i, bytes;
    twi_list list;
    list.weights = weights;
    list.metadata = NULL;
    for (i = 0; i < count; i++) {
        const tw_weight *weight = &weights[i];
        const char *name = weight->name ? weight->name : "", *why = NULL;
        size_t length = strlen(name), at = 0;
        bool valid = true;
        uint32_t code;
        while (valid && at < length) at += (size_t)twi_utf8_read(name + at, length - at, &code, &valid);
        if (length == 0 || !valid || strcmp(name, "__metadata__") == 0) why = "is no name for a tensor";
        else if ((unsigned)weight->dtype >= TW_DTYPE_COUNT) why = "has a dtype that is none";
        else if (weight->rank < 0 || weight->rank > TW_MAX_DIMS || !twi_weight_bytes(weight, &bytes))
            why = "has a shape that is none";
        if (why) {
            twi_fail(tw, TW_E_ARGUMENT, "safetensors: \"%.200s\" %s (item %lu)", name, why, (unsigned long)i);
            return false;
        }
        order[i] = (uint32_t)i;
    }
    twi_sort(order, count, twi_writes_before, &list);
    return true;
}

/* Two tensors of one name, whatever their dtypes. */
static bool twi_check_twins(tw_context *tw, const tw_weight *weights, size_t count) {
    tw_weights set;                                           /* only its list and its index are used */
    size_t slots = twi_index_slots(count), i;
    uint64_t *empty = (uint64_t *)twi_alloc(&tw->region, slots, sizeof *empty);
    bool ok = empty != NULL;
    memset(&set, 0, sizeof set);
    set.index = twi_index_of(empty, slots);
    for (i = 0; ok && i < count; i++) {
        uint32_t hash = twi_hash(weights[i].name, strlen(weights[i].name), 0), cursor = hash;
        int64_t at;
        while ((at = twi_index_next(&set.index, hash, &cursor)) != TWI_NOWHERE && ok)
            if (strcmp(weights[at].name, weights[i].name) == 0) {
                twi_fail(tw, TW_E_ARGUMENT, "safetensors: \"%.200s\" is to be written twice (items %lu and %lu)",
                         weights[i].name, (unsigned long)at, (unsigned long)i);
                ok = false;
            }
        twi_index_add(&set.index, hash, (uint32_t)i);
    }
    twi_free(&tw->region, empty);
    return ok;
}

static bool twi_write_weights(twi_save *save, const tw_weight *weights, const uint32_t *order, size_t count,
                              const char *header, size_t header_bytes, tw_weight_source source, void *user) {
    unsigned char length[8];
    twi_counted counted;
    tw_writer writer;
    size_t i;
    for (i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header_bytes >> (8 * i) & 255);
    if (!twi_save_bytes(save, length, 8) || !twi_save_bytes(save, header, header_bytes)) return false;
    counted.save = save;
    writer.user = &counted;
    writer.write = twi_counted_write;
    for (i = 0; i < count; i++) {
        const tw_weight *weight = &weights[order[i]];
        bool ok;
        twi_weight_bytes(weight, &counted.left);
        ok = source(user, order[i], writer);
        if (ok && counted.left == 0) continue;
        if (!tw_failed(save->tw)) {
            if (ok || counted.left == (size_t)-1)
                twi_fail(save->tw, TW_E_ARGUMENT,
                         "%s: the bytes given for tensor \"%.200s\" are not as many as its shape asks for (%s)",
                         twi_base_name(save->path), weight->name, save->path);
            else twi_fail(save->tw, TW_E_STOPPED, "%s: writing stopped at tensor \"%.200s\" (%s)",
                          twi_base_name(save->path), weight->name, save->path);
        }
        return false;
    }
    return true;
}

TWDEF bool tw_save_weights_from(tw_context *tw, const char *path, const tw_weight *weights, size_t count,
                                const tw_json *metadata, tw_weight_source source, void *user) {
    uint32_t *order;
    twi_text header;
    twi_save save;
    bool ok;
    if (!tw) return false;
    if ((!weights && count) || !source || !path) {
        twi_fail(tw, TW_E_ARGUMENT, "safetensors: no tensors, no source or no path was given (NULL)");
        return false;
    }
    if (count > TW_MAX_WEIGHTS) {
        twi_fail(tw, TW_E_RANGE, "safetensors: more than a million tensors (%s)", path);
        return false;
    }
    order = (uint32_t *)twi_alloc_raw(&tw->region, count, sizeof *order);
    header = twi_text_new(&tw->region);
    ok = order && twi_check_weights(tw, weights, order, count) && twi_check_twins(tw, weights, count) &&
         twi_write_header(tw, weights, order, count, metadata, &header) && twi_save_begin(&save, tw, path);
    if (ok) {
        ok = twi_write_weights(&save, weights, order, count, header.data, header.length, source, user);
        if (ok) ok = twi_save_commit(&save);
        else twi_save_abort(&save);
    }
    twi_text_free(&header);
    twi_free(&tw->region, order);
    return ok;
}

static bool twi_write_data(void *user, size_t index, tw_writer writer) {
    const tw_weight *weight = (const tw_weight *)user + index;
    size_t bytes;
    twi_weight_bytes(weight, &bytes);
    return bytes == 0 || (weight->data && writer.write(writer.user, weight->data, bytes));
}

TWDEF bool tw_save_weights(tw_context *tw, const char *path, const tw_weight *weights, size_t count,
                           const tw_json *metadata) {
    union { const tw_weight *from; void *to; } user;          /* only read: twi_write_data */
    user.from = weights;
    return tw_save_weights_from(tw, path, weights, count, metadata, twi_write_data, user.to);
}

/* ==== [tw:09] tokenizers: implementation ======================================================
   In order: what is known of characters, vocabularies and tries, normalizers, splitting, the three
   models, SentencePiece, the whole way from a text to tokens and back, opening, saving, learning.
   The tables of Unicode are at the end. */

/* -- characters -----------------------------------------------------------------------------------
   What tokenizers ask about a character, as sixteen bits.  The tables answer as Hugging Face's
   `tokenizers` does, which mixes several versions of Unicode: tools/unicode_tables.py asked it.

   The bits are kept in pages of 128 characters.  Most pages are all the same (unassigned, or one
   long run of ideographs), and those share one. */
enum {
    TWI_IS_LETTER      = 1,            /* \p{L} */
    TWI_IS_NUMBER      = 1 << 1,       /* \p{N} */
    TWI_IS_SPACE       = 1 << 2,       /* White_Space */
    TWI_IS_WORD        = 1 << 3,       /* \w: letters, marks, decimal digits, connecting punctuation */
    TWI_IS_PUNCTUATION = 1 << 4,       /* \p{P}, and ASCII's symbols */
    TWI_IS_CONTROL     = 1 << 5,       /* what BERT drops */
    TWI_IS_NONSPACING  = 1 << 6,       /* \p{Mn}: the accents that BERT drops */
    TWI_IS_MARK        = 1 << 7,       /* \p{M} */
    TWI_IS_NUMERIC     = 1 << 8,       /* \p{N} in a newer version */
    TWI_IS_CHINESE     = 1 << 9,       /* BERT's ideographs */
    TWI_HAS_LOWER      = 1 << 10,      /* becomes another one, or two, in lower case */
    TWI_HAS_CANONICAL  = 1 << 11,      /* decomposes: e with acute is e and an acute accent */
    TWI_HAS_COMPATIBLE = 1 << 12,      /* decomposes when forms do not matter: the ligature fi is f and i */
    TWI_IS_COMPOSED    = 1 << 13,      /* NFC puts it together again */
    TWI_IS_REORDERED   = 1 << 14,      /* an accent with a combining class: has its place among others */
    TWI_IS_DIGIT       = 1 << 15       /* \p{Nd} */
};

/* The tables' names, in the order of the list at the end of this chapter. */
enum {
    TWI_TABLE_LETTER, TWI_TABLE_NUMBER, TWI_TABLE_DIGIT, TWI_TABLE_WORD, TWI_TABLE_NUMERIC, TWI_TABLE_PUNCTUATION,
        TWI_TABLE_CONTROL,
    TWI_TABLE_NONSPACING, TWI_TABLE_MARK, TWI_TABLE_LOWER, TWI_TABLE_CANONICAL, TWI_TABLE_COMPATIBLE,
        TWI_TABLE_COMPOSED,
    TWI_TABLE_CLASSES, TWI_TABLE_GRAPHEME_EXTEND, TWI_TABLE_GRAPHEME_PREPEND, TWI_TABLE_GRAPHEME_CONTROL,
    TWI_TABLE_PICTOGRAPH, TWI_TABLE_CONJUNCT_CONSONANT, TWI_TABLE_CONJUNCT_EXTEND, TWI_TABLE_CONJUNCT_LINKER
};
static const char *const *twi_unicode_table(int which);

enum { TWI_CODES = 0x110000, TWI_PAGE = 128 };

typedef struct twi_pages { uint16_t *page; uint16_t *cells; } twi_pages;     /* cells[page[c / 128] * 128 + c % 128] */

static uint32_t twi_cell(const twi_pages *pages, uint32_t c) {
    return pages->cells[(size_t)pages->page[c / TWI_PAGE] * TWI_PAGE + c % TWI_PAGE];
}

/* Runs of characters whose images have one length: image j of character c is images[j], plus c - first where
   step is 1. */
typedef struct twi_image_run { uint32_t first, count, step, length, image; } twi_image_run;
typedef struct twi_images { twi_image_run *runs; uint32_t *images; size_t count; } twi_images;

typedef struct twi_pair_code { uint32_t first, second, composed; } twi_pair_code;

typedef struct twi_unicode {
    twi_pages      kinds;              /* the sixteen bits */
    twi_pages      classes;            /* combining classes */
    twi_pages      clusters;           /* grapheme breaks; made when a normalizer needs them */
    twi_images     lower, canonical, compatible;
    twi_pair_code *pairs;              /* sorted by first and second */
    size_t         pair_count;
} twi_unicode;

static uint32_t twi_kind(const twi_unicode *unicode, uint32_t c) { return twi_cell(&unicode->kinds, c); }

/* A table's numbers, one after the other. */
typedef struct twi_numbers { const char *const *line; const char *at; } twi_numbers;

static twi_numbers twi_numbers_of(int which) {
    twi_numbers n;
    n.line = twi_unicode_table(which);
    n.at = *n.line;
    return n;
}

static bool twi_next_number(twi_numbers *n, uint32_t *value) {
    uint32_t shift = 0, digit;
    *value = 0;
    do {
        while (n->at && *n->at == 0) n->at = *++n->line;
        if (!n->at) return false;
        digit = (uint32_t)(unsigned char)*n->at++;
        digit -= digit > '\\' ? 37u : digit > '?' ? 36u : 35u;              /* the two that are left out */
        *value |= (digit & 31) << shift;
        shift += 5;
    } while (digit & 32);
    return true;
}

/* flat[c] |= bit for the set's members (or, with an own value, flat[c] = it). */
static void twi_add_runs(uint16_t *flat, twi_numbers *n, uint32_t runs, uint32_t bit) {
    uint32_t position = 0, gap, run, i;
    while (runs-- && twi_next_number(n, &gap) && twi_next_number(n, &run))
        for (position += gap, i = 0; i < run; i++, position++) flat[position] = (uint16_t)(flat[position] | bit);
}

static void twi_add_set(uint16_t *flat, int which, uint32_t bit) {
    twi_numbers n = twi_numbers_of(which);
    twi_add_runs(flat, &n, TWI_CODES, bit);
}

static void twi_add_range(uint16_t *flat, uint32_t first, uint32_t last, uint32_t bit) {
    for (; first <= last; first++) flat[first] = (uint16_t)(flat[first] | bit);
}

/* Packs a flat list of all characters into pages. */
static bool twi_make_pages(twi_region *region, twi_pages *out, const uint16_t *flat) {
    enum { PAGES = TWI_CODES / TWI_PAGE };
    uint32_t page, i, used = 0, round;
    for (round = 0; round < 2; round++) {                                   /* count the pages, then write them */
        used = 0;
        for (page = 0; page < PAGES; page++) {
            const uint16_t *cells = flat + (size_t)page * TWI_PAGE;
            if (page && memcmp(cells, cells - TWI_PAGE, TWI_PAGE * sizeof *cells) == 0) {
                if (round) out->page[page] = out->page[page - 1];
                continue;
            }
            if (round) {
                out->page[page] = (uint16_t)used;
                for (i = 0; i < TWI_PAGE; i++) out->cells[(size_t)used * TWI_PAGE + i] = cells[i];
            }
            used++;
        }
        if (round == 0) {
            out->page = (uint16_t *)twi_alloc(region, PAGES, sizeof *out->page);
            out->cells = (uint16_t *)twi_alloc(region, (size_t)used * TWI_PAGE, sizeof *out->cells);
            if (!out->page || !out->cells) return false;
        }
    }
    return true;
}

/* Reads a table of images twice: to count, and to keep; marks the characters that have one. */
static bool twi_read_images(twi_region *region, twi_images *out, int which, uint16_t *flat, uint32_t bit) {
    int round;
    for (round = 0; round < 2; round++) {
        twi_numbers n = twi_numbers_of(which);
        uint32_t gap, count, form, difference, position = 0, last = 0, j;
        size_t runs = 0, images = 0;
        while (twi_next_number(&n, &gap) && twi_next_number(&n, &count) && twi_next_number(&n, &form)) {
            position += gap;
            if (round) {
                twi_image_run *run = &out->runs[runs];
                run->first = position;
                run->count = count;
                run->step = form & 1;
                run->length = form >> 1;
                run->image = (uint32_t)images;
                twi_add_range(flat, position, position + count - 1, bit);
            }
            for (j = 0; j < form >> 1 && twi_next_number(&n, &difference); j++) {
                last = difference & 1 ? last - (difference >> 1) - 1 : last + (difference >> 1);
                if (round) out->images[images + j] = last;
            }
            images += form >> 1;
            position += count;
            runs++;
        }
        if (round == 0) {
            out->count = runs;
            out->runs = (twi_image_run *)twi_alloc(region, runs, sizeof *out->runs);
            out->images = (uint32_t *)twi_alloc(region, images, sizeof *out->images);
            if (!out->runs || !out->images) return false;
        }
    }
    return true;
}

/* The images of c, which must have some, into out; returns how many (18 at most: one Arabic phrase). */
enum { TWI_MAX_IMAGES = 18 };
static uint32_t twi_image_of(const twi_images *table, uint32_t c, uint32_t out[TWI_MAX_IMAGES]) {
    size_t low = 0, high = table->count;
    const twi_image_run *run;
    uint32_t j;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (table->runs[middle].first <= c) low = middle; else high = middle;
    }
    run = &table->runs[low];
    for (j = 0; j < run->length && j < TWI_MAX_IMAGES; j++)
        out[j] = table->images[run->image + j] + (run->step ? c - run->first : 0);
    return j;
}

/* Korean syllables are computed: U+AC00 + (lead * 21 + vowel) * 28 + tail. */
enum { TWI_HANGUL = 0xAC00, TWI_HANGUL_COUNT = 11172, TWI_LEAD = 0x1100, TWI_VOWEL = 0x1161, TWI_TAIL = 0x11A7 };

static uint32_t twi_decompose_hangul(uint32_t c, uint32_t out[TWI_MAX_IMAGES]) {
    uint32_t s = c - TWI_HANGUL, tail = s % 28;
    out[0] = TWI_LEAD + s / 588;
    out[1] = TWI_VOWEL + s % 588 / 28;
    out[2] = TWI_TAIL + tail;
    return tail ? 3 : 2;
}

static bool twi_pair_before(const void *user, uint32_t a, uint32_t b) {
    const twi_pair_code *pairs = (const twi_pair_code *)user, *p = &pairs[a], *q = &pairs[b];
    return p->first != q->first ? p->first < q->first : p->second != q->second ? p->second < q->second : a < b;
}

/* What two characters make together, or 0. */
static uint32_t twi_compose(const twi_unicode *unicode, uint32_t a, uint32_t b) {
    size_t low = 0, high = unicode->pair_count;
    if (a >= TWI_LEAD && a < TWI_LEAD + 19 && b >= TWI_VOWEL && b < TWI_VOWEL + 21)
        return TWI_HANGUL + ((a - TWI_LEAD) * 21 + (b - TWI_VOWEL)) * 28;
    if (a >= TWI_HANGUL && a < TWI_HANGUL + TWI_HANGUL_COUNT && (a - TWI_HANGUL) % 28 == 0 && b > TWI_TAIL
        && b < TWI_TAIL + 28)
        return a + (b - TWI_TAIL);
    while (low < high) {
        size_t middle = (low + high) / 2;
        const twi_pair_code *p = &unicode->pairs[middle];
        if (p->first == a && p->second == b) return p->composed;
        if (p->first < a || (p->first == a && p->second < b)) low = middle + 1; else high = middle;
    }
    return 0;
}

/* The pairs that NFC composes.  A composed character's decomposition is d1 ... dn; its pair is what d1 ... d(n-1) make,
   and dn.  Shorter decompositions come first, so the prefix is known by then. */
static bool twi_make_pairs(twi_region *region, twi_unicode *u) {
    uint32_t d[TWI_MAX_IMAGES], c, length, n, first, j, *order;
    twi_pair_code *sorted;
    size_t i, members = 0;
    for (c = 0; c < TWI_CODES; c++) if (twi_kind(u, c) & TWI_IS_COMPOSED) members++;
    u->pairs = (twi_pair_code *)twi_alloc(region, members, sizeof *u->pairs);
    sorted = (twi_pair_code *)twi_alloc(region, members, sizeof *sorted);
    order = (uint32_t *)twi_alloc(region, members, sizeof *order);
    if (!u->pairs || !sorted || !order) return false;
    for (length = 2; length <= 4; length++) {
        for (c = 0; c < TWI_CODES; c++) {
            if (!(twi_kind(u, c) & TWI_IS_COMPOSED) || u->pair_count >= members) continue;
            n = twi_image_of(&u->canonical, c, d);
            if (n != length) continue;
            for (first = d[0], j = 1; j + 1 < n; j++) first = twi_compose(u, first, d[j]);
            sorted[u->pair_count].first = first;
            sorted[u->pair_count].second = d[n - 1];
            sorted[u->pair_count].composed = c;
            u->pair_count++;
        }
        for (i = 0; i < u->pair_count; i++) order[i] = (uint32_t)i;
        twi_sort(order, u->pair_count, twi_pair_before, sorted);
        for (i = 0; i < u->pair_count; i++) u->pairs[i] = sorted[order[i]];
    }
    twi_free(region, order);
    twi_free(region, sorted);
    return true;
}

static bool twi_make_unicode(twi_region *region, twi_unicode *u) {
    static const uint32_t spaces[][2] =
        { { 9, 13 }, { 32, 32 }, { 0x85, 0x85 }, { 0xA0, 0xA0 }, { 0x1680, 0x1680 }, { 0x2000, 0x200A },
                                          { 0x2028, 0x2029 }, { 0x202F, 0x202F }, { 0x205F, 0x205F },
                                              { 0x3000, 0x3000 } };
    static const uint32_t chinese[][2] =
        { { 0x4E00, 0x9FFF }, { 0x3400, 0x4DBF }, { 0x20000, 0x2A6DF }, { 0x2A700, 0x2B73F },
                                           { 0x2B740, 0x2B81F }, { 0x2B920, 0x2CEAF }, { 0xF900, 0xFAFF },
                                               { 0x2F800, 0x2FA1F } };
    static const struct { int table; uint32_t bit; } sets[] = {
        { TWI_TABLE_LETTER, TWI_IS_LETTER }, { TWI_TABLE_NUMBER, TWI_IS_NUMBER }, { TWI_TABLE_WORD, TWI_IS_WORD },
            { TWI_TABLE_DIGIT, TWI_IS_DIGIT },
        { TWI_TABLE_PUNCTUATION, TWI_IS_PUNCTUATION }, { TWI_TABLE_CONTROL, TWI_IS_CONTROL },
            { TWI_TABLE_NONSPACING, TWI_IS_NONSPACING },
        { TWI_TABLE_MARK, TWI_IS_MARK }, { TWI_TABLE_NUMERIC, TWI_IS_NUMERIC },
            { TWI_TABLE_COMPOSED, TWI_IS_COMPOSED } };
    uint16_t *kinds = (uint16_t *)twi_alloc(region, TWI_CODES, sizeof *kinds);
    uint16_t *classes = (uint16_t *)twi_alloc(region, TWI_CODES, sizeof *classes);
    twi_numbers n = twi_numbers_of(TWI_TABLE_CLASSES);
    uint32_t class_number, runs, c;
    size_t i;
    bool ok = kinds && classes;
    if (!ok) return false;
    for (i = 0; i < sizeof sets / sizeof *sets; i++) twi_add_set(kinds, sets[i].table, sets[i].bit);
    for (i = 0; i < sizeof spaces / sizeof *spaces; i++) twi_add_range(kinds, spaces[i][0], spaces[i][1], TWI_IS_SPACE);
    for (i = 0; i < sizeof chinese / sizeof *chinese; i++)
        twi_add_range(kinds, chinese[i][0], chinese[i][1], TWI_IS_CHINESE);
    while (twi_next_number(&n, &class_number) && twi_next_number(&n, &runs))
        twi_add_runs(classes, &n, runs, class_number);
    for (c = 0; c < TWI_CODES; c++) if (classes[c]) kinds[c] |= TWI_IS_REORDERED;
    ok = twi_read_images(region, &u->lower, TWI_TABLE_LOWER, kinds, TWI_HAS_LOWER)
      && twi_read_images(region, &u->canonical, TWI_TABLE_CANONICAL, kinds, TWI_HAS_CANONICAL)
      && twi_read_images(region, &u->compatible, TWI_TABLE_COMPATIBLE, kinds, TWI_HAS_COMPATIBLE)
      && twi_make_pages(region, &u->kinds, kinds) && twi_make_pages(region, &u->classes, classes)
      && twi_make_pairs(region, u);
    twi_free(region, kinds);
    twi_free(region, classes);
    return ok;
}

/* -- graphemes ------------------------------------------------------------------------------------
   What a reader takes for one character: a letter with its accents, a flag of two regional
   indicators, a family of emoji.  The rules are GB3 to GB13 of Unicode's annex 29. */
enum {
    TWI_G_EXTEND = 1, TWI_G_PREPEND = 2, TWI_G_CONTROL = 4, TWI_G_PICTOGRAPH = 8, TWI_G_CONSONANT = 16,
        TWI_G_CONJUNCT = 32,
    TWI_G_LINKER = 64, TWI_G_L = 128, TWI_G_V = 256, TWI_G_T = 512, TWI_G_LV = 1024, TWI_G_LVT = 2048,
        TWI_G_REGIONAL = 4096,
    TWI_G_JOINER = 8192
};

static bool twi_make_clusters(twi_region *region, twi_unicode *u) {
    static const struct { int table; uint32_t bit; } sets[] = {
        { TWI_TABLE_GRAPHEME_EXTEND, TWI_G_EXTEND }, { TWI_TABLE_GRAPHEME_PREPEND, TWI_G_PREPEND },
            { TWI_TABLE_GRAPHEME_CONTROL, TWI_G_CONTROL },
        { TWI_TABLE_PICTOGRAPH, TWI_G_PICTOGRAPH }, { TWI_TABLE_CONJUNCT_CONSONANT, TWI_G_CONSONANT },
        { TWI_TABLE_CONJUNCT_EXTEND, TWI_G_CONJUNCT }, { TWI_TABLE_CONJUNCT_LINKER, TWI_G_LINKER } };
    static const uint32_t ranges[][3] =
        { { 0x1100, 0x115F, TWI_G_L }, { 0xA960, 0xA97C, TWI_G_L }, { 0x1160, 0x11A7, TWI_G_V },
        { 0xD7B0, 0xD7C6, TWI_G_V }, { 0x11A8, 0x11FF, TWI_G_T }, { 0xD7CB, 0xD7FB, TWI_G_T },
            { 0x1F1E6, 0x1F1FF, TWI_G_REGIONAL },
        { 0x200D, 0x200D, TWI_G_JOINER } };
    uint16_t *flat;
    uint32_t c;
    size_t i;
    bool ok;
    if (u->clusters.page) return true;
    flat = (uint16_t *)twi_alloc(region, TWI_CODES, sizeof *flat);
    if (!flat) return false;
    for (i = 0; i < sizeof sets / sizeof *sets; i++) twi_add_set(flat, sets[i].table, sets[i].bit);
    for (i = 0; i < sizeof ranges / sizeof *ranges; i++) twi_add_range(flat, ranges[i][0], ranges[i][1], ranges[i][2]);
    for (c = TWI_HANGUL; c < TWI_HANGUL + TWI_HANGUL_COUNT; c++) flat[c] |= (c - TWI_HANGUL)
        % 28 ? TWI_G_LVT : TWI_G_LV;
    ok = twi_make_pages(region, &u->clusters, flat);
    twi_free(region, flat);
    return ok;
}

/* The bytes of the first grapheme of a valid UTF-8 text of n > 0 bytes. */
static size_t twi_grapheme(const twi_unicode *u, const char *s, size_t n) {
    uint32_t c, before, now, regionals, first;
    /* an emoji (and joiner), a consonant (and linker) is open */
    bool valid, pictograph, conjunct = false, linked = false;
    size_t at = (size_t)twi_utf8_read(s, n, &c, &valid);
    before = twi_cell(&u->clusters, c);
    first = c;
    regionals = before & TWI_G_REGIONAL ? 1 : 0;
    pictograph = (before & TWI_G_PICTOGRAPH) != 0;
    conjunct = (before & TWI_G_CONSONANT) != 0;
    while (at < n) {
        size_t step = (size_t)twi_utf8_read(s + at, n - at, &c, &valid);
        bool joined;
        now = twi_cell(&u->clusters, c);
        if (before & TWI_G_CONTROL) joined = first == '\r' && c == '\n' && at == 1;
        else if (now & TWI_G_CONTROL) joined = false;
        else joined = (now & TWI_G_EXTEND) || (before & TWI_G_PREPEND)
                   || ((before & TWI_G_L) && (now & (TWI_G_L | TWI_G_V | TWI_G_LV | TWI_G_LVT)))
                   || ((before & (TWI_G_LV | TWI_G_V)) && (now & (TWI_G_V | TWI_G_T)))
                   || ((before & (TWI_G_LVT | TWI_G_T)) && (now & TWI_G_T))
                   || (pictograph && (before & TWI_G_JOINER) && (now & TWI_G_PICTOGRAPH))
                   || (conjunct && linked && (now & TWI_G_CONSONANT))
                   || (regionals % 2 == 1 && (before & TWI_G_REGIONAL) && (now & TWI_G_REGIONAL));
        if (!joined) break;
        if (now & TWI_G_REGIONAL) regionals++;
        if (!(now & TWI_G_EXTEND)) pictograph = (now & TWI_G_PICTOGRAPH) != 0;
        if (now & TWI_G_CONSONANT) { conjunct = true; linked = false; }
        else if (conjunct && (now & TWI_G_LINKER)) linked = true;
        else if (!(now & TWI_G_CONJUNCT)) conjunct = linked = false;
        before = now;
        at += step;
    }
    return at;
}

/* -- vocabularies ---------------------------------------------------------------------------------
   Spellings by id, and ids by spelling.  Ids may have holes; the list is as long as the largest id,
   so a file whose ids are far apart is refused before it sizes anything. */
typedef struct twi_spelling { size_t start; int32_t length; } twi_spelling;     /* length -1: no such id */

typedef struct twi_vocabulary {
    twi_region   *region;
    char         *bytes;               /* every spelling has a NUL behind it */
    size_t        used, bytes_capacity;
    twi_spelling *list;
    size_t        count, capacity;     /* the largest id + 1 */
    size_t        known;               /* spellings in the index */
    twi_index     index;
} twi_vocabulary;

static const char *twi_spelling_of(const twi_vocabulary *v, int64_t id, size_t *length) {
    if (length) *length = 0;
    if (id < 0 || (size_t)id >= v->count || v->list[id].length < 0) return NULL;
    if (length) *length = (size_t)v->list[id].length;
    return v->bytes + v->list[id].start;
}

/* The slot of a spelling in the index, or NULL. */
static uint64_t *twi_vocabulary_slot(const twi_vocabulary *v, const char *s, size_t n, uint32_t hash) {
    uint32_t cursor = hash;
    int64_t id;
    if (!v->index.slots) return NULL;
    while ((id = twi_index_next(&v->index, hash, &cursor)) != TWI_NOWHERE) {
        const twi_spelling *spelling = &v->list[id];
        if ((size_t)spelling->length == n && memcmp(v->bytes + spelling->start, s, n) == 0)
            return &v->index.slots[(cursor - 1) & v->index.mask];
    }
    return NULL;
}

static int32_t twi_vocabulary_find(const twi_vocabulary *v, const char *s, size_t n) {
    const uint64_t *slot = twi_vocabulary_slot(v, s, n, twi_hash(s, n, 0));
    return slot ? (int32_t)((*slot & 0xFFFFFFFFu) - 1) : -1;
}

static bool twi_vocabulary_reindex(twi_vocabulary *v, size_t count) {
    size_t slots = twi_index_slots(count), i;
    twi_index old = v->index;
    uint64_t *memory = (uint64_t *)twi_alloc(v->region, slots, sizeof *memory);
    if (!memory) return false;
    v->index = twi_index_of(memory, slots);
    if (old.slots) {
        for (i = 0; i <= old.mask; i++) if (old.slots[i])
            twi_index_add(&v->index, (uint32_t)(old.slots[i] >> 32), (uint32_t)(old.slots[i] & 0xFFFFFFFFu) - 1);
        twi_free(v->region, old.slots);
    }
    return true;
}

/* Gives a spelling an id.  One that is known already gets the new id (as in Python, where the last of equal keys
   counts). */
static bool twi_vocabulary_put(twi_vocabulary *v, const char *s, size_t n, int64_t id) {
    uint32_t hash = twi_hash(s, n, 0);
    uint64_t *slot;
    char *bytes;
    twi_spelling *list;
    size_t i;
    if (n > INT32_MAX || id < 0 || id >= INT32_MAX) {
        twi_fail(v->region->tw, TW_E_RANGE, "tokenizer: a token's id or length is out of range");
        return false;
    }
    bytes = (char *)twi_grow(v->region, v->bytes, v->used, &v->bytes_capacity, v->used + n + 1, 1);
    if (!bytes) return false;
    v->bytes = bytes;
    if ((size_t)id >= v->count) {
        list = (twi_spelling *)twi_grow(v->region, v->list, v->count, &v->capacity, (size_t)id + 1, sizeof *list);
        if (!list) return false;
        v->list = list;
        for (i = v->count; i <= (size_t)id; i++) v->list[i].length = -1;
        v->count = (size_t)id + 1;
    }
    if (!v->index.slots || (v->known + 1) * 2 > (size_t)v->index.mask + 1)
        if (!twi_vocabulary_reindex(v, (v->known + 1) * 2)) return false;
    memcpy(v->bytes + v->used, s, n);
    v->bytes[v->used + n] = 0;
    v->list[id].start = v->used;
    v->list[id].length = (int32_t)n;
    v->used += n + 1;
    slot = twi_vocabulary_slot(v, s, n, hash);
    if (slot) *slot = (uint64_t)hash << 32 | ((uint32_t)id + 1u);
    else { twi_index_add(&v->index, hash, (uint32_t)id); v->known++; }
    return true;
}

/* -- tries ----------------------------------------------------------------------------------------
   A tree of bytes in which every way from the root spells the beginning of a token.  The nodes stand
   level by level, the children of one node side by side and in order: node i's are child[i] up to child[i+1]. */
/* value: a token that ends here, or -1 */
typedef struct twi_trie_node { uint32_t child; int32_t value; uint8_t label; } twi_trie_node;
/* root: node 0's children by byte; 0: none */
typedef struct twi_trie { twi_trie_node *nodes; uint32_t count; uint32_t root[256]; } twi_trie;

static uint32_t twi_trie_step(const twi_trie *trie, uint32_t node, unsigned char byte) {
    uint32_t low, high;
    if (node == 0) return trie->root[byte];
    low = trie->nodes[node].child;
    high = trie->nodes[node + 1].child;
    while (high - low > 8) {
        uint32_t middle = (low + high) / 2;
        if (trie->nodes[middle].label <= byte) low = middle; else high = middle;
    }
    for (; low < high; low++) if (trie->nodes[low].label == byte) return low;
    return 0;
}

/* Moves the items of one node, list[low] to list[high], into the order of their byte at `depth`. */
static void twi_sort_by_byte(const twi_vocabulary *v, uint32_t *list, uint32_t *spare, size_t low, size_t high,
                             size_t depth) {
#define TWI_BYTE(item) ((unsigned char)v->bytes[v->list[item].start + depth])
    size_t i, j, counts[257];
    if (high - low <= 24) {
        for (i = low + 1; i < high; i++) {
            uint32_t item = list[i];
            for (j = i; j > low && TWI_BYTE(list[j - 1]) > TWI_BYTE(item); j--) list[j] = list[j - 1];
            list[j] = item;
        }
        return;
    }
    memset(counts, 0, sizeof counts);
    for (i = low; i < high; i++) counts[TWI_BYTE(list[i]) + 1]++;
    for (i = 1; i <= 256; i++) counts[i] += counts[i - 1];
    for (i = low; i < high; i++) spare[counts[TWI_BYTE(list[i])]++] = list[i];
    memcpy(list + low, spare, (high - low) * sizeof *list);
}

typedef struct twi_trie_span { uint32_t low, high; } twi_trie_span;         /* the tokens below a node */

/* Builds the trie of n tokens (each spelling once, none empty), whose list is put in order meanwhile. */
static bool twi_make_trie(twi_region *region, twi_trie *trie, const twi_vocabulary *v, uint32_t *list, size_t n) {
    size_t capacity = 0, span_capacity = 0, count = 1, at, level_end = 1, depth = 0;
    uint32_t *spare = (uint32_t *)twi_alloc(region, n, sizeof *spare);
    twi_trie_span *spans = (twi_trie_span *)twi_grow(region, NULL, 0, &span_capacity, n + 2, sizeof *spans);
    twi_trie_node *nodes = (twi_trie_node *)twi_grow(region, NULL, 0, &capacity, n + 2, sizeof *nodes);
    bool ok = spare && spans && nodes;
    if (ok) { spans[0].low = 0; spans[0].high = (uint32_t)n; }
    for (at = 0; ok && at < count; at++) {
        uint32_t low = spans[at].low, high = spans[at].high, i, j;
        if (at == level_end) { depth++; level_end = count; }
        nodes[at].child = (uint32_t)count;
        nodes[at].value = -1;
        for (i = low; i < high; i++)                                         /* the one that ends here comes first */
            if ((size_t)v->list[list[i]].length == depth) {
                nodes[at].value = (int32_t)list[i];
                list[i] = list[low];
                low++;
                break;
            }
        twi_sort_by_byte(v, list, spare, low, high, depth);
        for (i = low; ok && i < high; i = j) {
            void *grown;
            unsigned char byte = TWI_BYTE(list[i]);
            for (j = i + 1; j < high && TWI_BYTE(list[j]) == byte; j++) continue;
            grown = twi_grow(region, nodes, count, &capacity, count + 2, sizeof *nodes);
            if (grown) nodes = (twi_trie_node *)grown;
            ok = grown != NULL;
            grown = ok ? twi_grow(region, spans, count, &span_capacity, count + 1, sizeof *spans) : NULL;
            if (grown) spans = (twi_trie_span *)grown;
            ok = ok && grown && count < UINT32_MAX - 2;
            if (!ok) break;
            nodes[count].label = byte;
            spans[count].low = i;
            spans[count].high = j;
            if (at == 0) trie->root[byte] = (uint32_t)count;
            count++;
        }
    }
    if (ok) nodes[count].child = (uint32_t)count;
    trie->nodes = nodes;
    trie->count = (uint32_t)count;
    twi_free(region, spare);
    twi_free(region, spans);
    return ok;
#undef TWI_BYTE
}

/* -- character maps -------------------------------------------------------------------------------
   SentencePiece compiles its normalization rules into a trie of its own (Yata's double array, after
   Darts-clone) and a list of replacements: u32 bytes of the trie, the trie, the texts with a NUL
   behind each.  A unit of the trie: bits 0-7 the byte it belongs to, bit 8 "a rule ends here", bits
   10-30 what to XOR the position with to come to the children, bit 9 makes that 256 times as much;
   a value (bit 31 set) is where the replacement begins.  Whatever the file says, nothing is read outside of it. */
typedef struct twi_charsmap {
    const unsigned char *units; size_t count; const char *texts; size_t text_bytes; } twi_charsmap;

static uint32_t twi_little_endian(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static bool twi_open_charsmap(tw_context *tw, twi_charsmap *map, const unsigned char *data, size_t n) {
    size_t bytes;
    memset(map, 0, sizeof *map);
    if (n == 0) return true;
    bytes = n >= 4 ? twi_little_endian(data) : 0;
    if (n < 5 || bytes > n - 4 || bytes < 4) {
        twi_fail(tw, TW_E_FORMAT, "tokenizer: precompiled_charsmap is cut short (%lu bytes)", (unsigned long)n);
        return false;
    }
    map->units = data + 4;
    map->count = bytes / 4;
    map->texts = (const char *)data + 4 + bytes;
    map->text_bytes = n - 4 - bytes;
    return true;
}

/* The first (or, with `longest`, the longest) rule that n bytes at s begin with: how many bytes it
   takes, 0 for none, and its replacement. */
static size_t twi_charsmap_find(const twi_charsmap *map, const char *s, size_t n, bool longest, const char **text,
                                size_t *length) {
    size_t at = 0, i, found = 0, start, end;
    uint32_t unit;
    if (map->count == 0) return 0;
    unit = twi_little_endian(map->units);
    at ^= (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
    for (i = 0; i < n && s[i]; i++) {
        at ^= (unsigned char)s[i];
        if (at >= map->count) break;
        unit = twi_little_endian(map->units + at * 4);
        if ((unit & 0x800000FFu) != (unsigned char)s[i]) break;
        at ^= (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
        if (at >= map->count) break;
        if (!(unit & (1u << 8))) continue;
        start = twi_little_endian(map->units + at * 4) & 0x7FFFFFFFu;
        if (start > map->text_bytes) continue;
        for (end = start; end < map->text_bytes && map->texts[end]; end++) continue;
        *text = map->texts + start;
        *length = end - start;
        found = i + 1;
        if (!longest) break;
    }
    return found;
}

/* -- texts that remember where they come from -----------------------------------------------------
   Normalizing changes a text, and yet each token must say which characters of the original it is.
   So every byte of a changed text carries the bytes of the original that it stands for. */
typedef struct twi_origin { uint32_t begin, end; } twi_origin;

typedef struct twi_source {              /* a text: valid UTF-8 */
    const char       *text;
    size_t            length;
    const twi_origin *origins;         /* NULL: the text is the original from byte `base` on */
    size_t            base;
} twi_source;

typedef struct twi_buffer {
    char *text; twi_origin *origins; size_t length, text_capacity, origin_capacity; } twi_buffer;

static size_t twi_char_size(char lead) {                                    /* of valid UTF-8 */
    unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1u : c < 0xE0 ? 2u : c < 0xF0 ? 3u : 4u;
}

/* The character at s, of valid UTF-8. */
static uint32_t twi_char_at(const char *s, size_t *size) {
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) { *size = 1; return u[0]; }
    if (u[0] < 0xE0) { *size = 2; return (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu); }
    if (u[0] < 0xF0) { *size = 3; return (u[0] & 0xFu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu); }
    *size = 4;
    return (u[0] & 7u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
}

/* not the first byte of a character */
static bool twi_is_inside(const char *s) { return ((unsigned char)*s & 0xC0) == 0x80; }

static twi_origin twi_origin_at(const twi_source *view, size_t i) {
    twi_origin o;
    size_t begin = i, end = i + 1;
    if (view->origins) return view->origins[i];
    while (begin > 0 && twi_is_inside(view->text + begin)) begin--;
    while (end < view->length && twi_is_inside(view->text + end)) end++;
    o.begin = (uint32_t)(view->base + begin);
    o.end = (uint32_t)(view->base + end);
    return o;
}

/* What bytes begin ... end - 1 of the view stand for. */
static twi_origin twi_origin_of(const twi_source *view, size_t begin, size_t end) {
    twi_origin o;
    if (begin >= end) { o.begin = o.end = begin < view->length ? twi_origin_at(view, begin).begin : 0; return o; }
    o.begin = twi_origin_at(view, begin).begin;
    o.end = twi_origin_at(view, end - 1).end;
    return o;
}

static bool twi_buffer_reserve(twi_region *region, twi_buffer *b, size_t more) {
    void *text, *origins;
    if (b->length + more <= b->text_capacity && b->length + more <= b->origin_capacity) return true;
    if (b->length + more > INT32_MAX) {
        twi_fail(region->tw, TW_E_RANGE, "tokenizer: the normalized text is 2 GiB or more");
        return false;
    }
    text = twi_grow(region, b->text, b->length, &b->text_capacity, b->length + more, 1);
    if (text) b->text = (char *)text;
    origins = text ? twi_grow(region, b->origins, b->length, &b->origin_capacity, b->length + more, sizeof *b->origins)
        : NULL;
    if (origins) b->origins = (twi_origin *)origins;
    return origins != NULL;
}

static bool twi_buffer_put(twi_region *region, twi_buffer *b, uint32_t code, twi_origin origin) {
    size_t n;
    if (!twi_buffer_reserve(region, b, 4)) return false;
    n = (size_t)twi_utf8_write(code, b->text + b->length);
    while (n--) b->origins[b->length++] = origin;
    return true;
}

static bool twi_buffer_bytes(twi_region *region, twi_buffer *b, const char *s, size_t n, twi_origin origin) {
    size_t i;
    if (n == 0) return true;
    if (!twi_buffer_reserve(region, b, n)) return false;
    memcpy(b->text + b->length, s, n);
    for (i = 0; i < n; i++) b->origins[b->length++] = origin;
    return true;
}

/* Bytes begin ... end - 1 of the view, unchanged. */
static bool twi_buffer_copy(twi_region *region, twi_buffer *b, const twi_source *view, size_t begin, size_t end) {
    size_t i, next;
    if (begin >= end) return true;
    if (!twi_buffer_reserve(region, b, end - begin)) return false;
    memcpy(b->text + b->length, view->text + begin, end - begin);
    if (view->origins) memcpy(b->origins + b->length, view->origins + begin, (end - begin) * sizeof *b->origins);
    else for (i = begin; i < end; i = next) {
        twi_origin o;
        next = i + twi_char_size(view->text[i]);
        o.begin = (uint32_t)(view->base + i);
        o.end = (uint32_t)(view->base + next);
        for (; i < next; i++) b->origins[b->length + i - begin] = o;
    }
    b->length += end - begin;
    return true;
}

static twi_source twi_source_of(const twi_buffer *b) {
    twi_source view;
    view.text = b->text ? b->text : "";
    view.length = b->length;
    view.origins = b->origins;
    view.base = 0;
    return view;
}

static bool twi_is_ascii(const char *s, size_t n) {
    uint64_t word;
    for (; n >= 8; n -= 8, s += 8) { memcpy(&word, s, 8); if (word & UINT64_C(0x8080808080808080)) return false; }
    for (; n; n--, s++) if ((unsigned char)*s >= 0x80) return false;
    return true;
}

/* -- Unicode's four normal forms ------------------------------------------------------------------
   NFD takes characters apart and puts accents in the order of their classes; NFC puts together
   again what has a character of its own; the K forms also drop differences of form.

   Origins follow `tokenizers`: each character comes with a `change`: 0 stands in the place of one
   character of the old text, 1 is new and shares the origin of the byte before it, -n also takes
   the place of n further characters. */
typedef struct twi_accent { uint32_t code; int32_t change; uint32_t order; } twi_accent;

typedef struct twi_form {
    twi_region        *region;
    const twi_unicode *unicode;
    twi_source           in;
    twi_buffer        *out;
    size_t             at;             /* how far into the old text the origins are */
    bool               compose;
    bool               has_base;       /* composing: a character that may still take accents in */
    uint32_t           base;
    int32_t            base_change;
    uint32_t           last_order;     /* class of the last accent behind it; 0: none stands between */
    twi_accent        *accents, *behind, *spare;
    size_t             count, capacity, behind_count, behind_capacity, spare_capacity;
    bool               ok;
} twi_form;

static void twi_form_put(twi_form *f, uint32_t code, int32_t change) {
    twi_origin o;
    size_t at = f->at < f->in.length ? f->at : f->in.length - 1;
    if (change > 0) {
        if (f->at > 0) o = twi_origin_at(&f->in, f->at - 1);
        else o.begin = o.end = (uint32_t)f->in.base;
    } else {
        o = twi_origin_at(&f->in, at);
        for (change = 1 - change; change > 0 && f->at < f->in.length; change--)
            f->at += twi_char_size(f->in.text[f->at]);
    }
    f->ok = f->ok && twi_buffer_put(f->region, f->out, code, o);
}

static void twi_form_behind(twi_form *f) {                                  /* the base's own accents are final */
    size_t i;
    for (i = 0; i < f->behind_count; i++) twi_form_put(f, f->behind[i].code, f->behind[i].change);
    f->behind_count = 0;
    f->last_order = 0;
}

/* One character in canonical order: written, or (NFC) joined with the base if nothing of its class
   or a higher one stands between. */
static void twi_form_next(twi_form *f, uint32_t code, int32_t change, uint32_t order) {
    uint32_t joined;
    void *grown;
    if (!f->compose || (!f->has_base && order)) { twi_form_put(f, code, change); return; }
    if (f->has_base && (f->behind_count == 0 || f->last_order < order)) {
        joined = twi_compose(f->unicode, f->base, code);
        if (joined) { f->base = joined; f->base_change += change - 1; return; }
    }
    if (order == 0) {
        if (f->has_base) { twi_form_put(f, f->base, f->base_change); twi_form_behind(f); }
        f->has_base = true;
        f->base = code;
        f->base_change = change;
        return;
    }
    grown = twi_grow(f->region, f->behind, f->behind_count, &f->behind_capacity, f->behind_count + 1,
                     sizeof *f->behind);
    if (!grown) { f->ok = false; return; }
    f->behind = (twi_accent *)grown;
    f->behind[f->behind_count].code = code;
    f->behind[f->behind_count++].change = change;
    f->last_order = order;
}

/* The accents collected since the last base, in the order of their classes; equal ones as they came. */
static void twi_form_flush(twi_form *f) {
    twi_accent *a = f->accents;
    size_t i, j, counts[257];
    if (f->count > 24) {
        void *grown = twi_grow(f->region, f->spare, 0, &f->spare_capacity, f->count, sizeof *f->spare);
        if (!grown) { f->ok = false; return; }
        f->spare = (twi_accent *)grown;
        memset(counts, 0, sizeof counts);
        for (i = 0; i < f->count; i++) counts[a[i].order + 1]++;
        for (i = 1; i <= 256; i++) counts[i] += counts[i - 1];
        for (i = 0; i < f->count; i++) f->spare[counts[a[i].order]++] = a[i];
        memcpy(a, f->spare, f->count * sizeof *a);
    } else for (i = 1; i < f->count; i++) {
        twi_accent accent = a[i];
        for (j = i; j > 0 && a[j - 1].order > accent.order; j--) a[j] = a[j - 1];
        a[j] = accent;
    }
    for (i = 0; i < f->count; i++) twi_form_next(f, a[i].code, a[i].change, a[i].order);
    f->count = 0;
}

static void twi_form_take(twi_form *f, uint32_t code, int32_t change) {
    uint32_t order = twi_kind(f->unicode, code) & TWI_IS_REORDERED ? twi_cell(&f->unicode->classes, code) : 0;
    void *grown;
    if (order == 0) {
        if (f->count) twi_form_flush(f);
        twi_form_next(f, code, change, 0);
        return;
    }
    grown = twi_grow(f->region, f->accents, f->count, &f->capacity, f->count + 1, sizeof *f->accents);
    if (!grown) { f->ok = false; return; }
    f->accents = (twi_accent *)grown;
    f->accents[f->count].code = code;
    f->accents[f->count].change = change;
    f->accents[f->count++].order = order;
}

static bool twi_normal_form(twi_region *region, const twi_unicode *unicode, const twi_source *in, twi_buffer *out,
                            bool compatible, bool compose) {
    twi_form f;
    uint32_t images[TWI_MAX_IMAGES], code, kind, n, j;
    size_t i, size;
    memset(&f, 0, sizeof f);
    f.region = region;
    f.unicode = unicode;
    f.in = *in;
    f.out = out;
    f.compose = compose;
    f.ok = true;
    for (i = 0; f.ok && i < in->length; i += size) {
        code = twi_char_at(in->text + i, &size);
        kind = twi_kind(unicode, code);
        if (code >= TWI_HANGUL && code < TWI_HANGUL + TWI_HANGUL_COUNT) n = twi_decompose_hangul(code, images);
        else if (compatible && (kind & TWI_HAS_COMPATIBLE)) n = twi_image_of(&unicode->compatible, code, images);
        else if (kind & TWI_HAS_CANONICAL) n = twi_image_of(&unicode->canonical, code, images);
        else { n = 1; images[0] = code; }
        for (j = 0; f.ok && j < n; j++) twi_form_take(&f, images[j], j > 0);
    }
    if (f.ok && f.count) twi_form_flush(&f);
    if (f.has_base) { twi_form_put(&f, f.base, f.base_change); twi_form_behind(&f); }
    twi_free(region, f.accents);
    twi_free(region, f.behind);
    twi_free(region, f.spare);
    return f.ok;
}

/* -- patterns -------------------------------------------------------------------------------------
   tokenizer.json may hold regular expressions.  This is a small matcher for what such files use:
   literals, classes, \s \d \w \p{L} \p{N} \p{M}, groups, alternatives, counts, (?i: ), (?= ) and (?! ).  A pattern
   becomes a list of instructions that run with a stack of their own, the first alternative first, so
   results are those of Perl and Oniguruma.  A match that needs more steps than it has room for is an
   error, not a hang. */
enum { TWI_P_SET, TWI_P_RUN, TWI_P_FORK, TWI_P_JUMP, TWI_P_AHEAD, TWI_P_NOT_AHEAD, TWI_P_START, TWI_P_END,
    TWI_P_MATCH };
enum { TWI_PATTERN_SIZE = 4096 };      /* instructions, and class items, that one pattern may have */

/* RUN: a to b characters; FORK: a, else b; AHEAD: up to a */
typedef struct twi_instruction { uint8_t kind; bool lazy, possessive; uint32_t set, a, b; } twi_instruction;
typedef struct twi_class_item { uint32_t low, high; uint32_t kinds, not_kinds; bool by_kind; } twi_class_item;
typedef struct twi_class { uint32_t first, count; bool negative, fold, alone; } twi_class;

typedef struct twi_pattern {
    twi_instruction *ops; size_t op_count, op_capacity;
    twi_class *classes; size_t class_count, class_capacity;
    twi_class_item *items; size_t item_count, item_capacity;
} twi_pattern;

/* a run may give characters back, down to floor */
typedef struct twi_pattern_frame { uint32_t op; bool run; size_t at, floor; } twi_pattern_frame;
typedef struct twi_pattern_stack { twi_pattern_frame *list; size_t count, capacity; } twi_pattern_stack;

static uint32_t twi_fold(const twi_unicode *u, uint32_t c) {
    uint32_t images[TWI_MAX_IMAGES];
    if (c == 0x17F) return 's';
    if (twi_kind(u, c) & TWI_HAS_LOWER && twi_image_of(&u->lower, c, images) == 1) return images[0];
    return c;
}

/* Oniguruma's \w lacks the two joiners; and standing alone, not in [ ], it has the superscripts 2, 3, 1 and the
   fractions of Latin-1 (a table of its own for the first 256 characters). */
static uint32_t twi_pattern_kind(const twi_unicode *u, uint32_t c, bool alone) {
    uint32_t kind = twi_kind(u, c);
    if (alone && (c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE))) return kind | TWI_IS_WORD;
    return c == 0x200C || c == 0x200D ? kind & ~(uint32_t)TWI_IS_WORD : kind;
}

static bool twi_in_class(const twi_unicode *u, const twi_pattern *p, uint32_t set, uint32_t c) {
    const twi_class *k = &p->classes[set];
    uint32_t i, kind = twi_pattern_kind(u, c, k->alone), folded = k->fold ? twi_fold(u, c) : c;
    bool found = false;
    for (i = k->first; i < k->first + k->count && !found; i++) {
        const twi_class_item *item = &p->items[i];
        if (item->by_kind) found = item->kinds ? (kind & item->kinds) != 0 : (kind & item->not_kinds) == 0;
        else found = (c >= item->low && c <= item->high) || (folded >= item->low && folded <= item->high)
                  || (k->fold && item->low == item->high && twi_fold(u, item->low) == folded);
    }
    return found != k->negative;
}

/* Does the pattern match at `from`?  The end of the match, or SIZE_MAX. */
static size_t twi_match_at(twi_region *region, const twi_unicode *u, const twi_pattern *p, uint32_t start,
                           const char *s, size_t n, size_t from,
                           twi_pattern_stack *stack, int64_t *steps) {
    size_t at = from, size = 0, bottom = stack->count;
    uint32_t pc = start, count;
    for (;;) {
        const twi_instruction *op = &p->ops[pc];
        twi_pattern_frame frame;
        bool failed = false, push = false;
        frame.op = pc;
        frame.run = op->kind == TWI_P_RUN;
        frame.at = frame.floor = 0;
        if (--*steps < 0) {
            twi_fail(region->tw, TW_E_RANGE, "tokenizer: a pattern of tokenizer.json takes too long on this text");
            stack->count = bottom;
            return SIZE_MAX;
        }
        switch (op->kind) {
        case TWI_P_SET:
            if (at < n && twi_in_class(u, p, op->set, twi_char_at(s + at, &size))) { at += size; pc++; }
            else failed = true;
            break;
        case TWI_P_RUN:
            for (count = 0; count < op->a && at < n && twi_in_class(u, p, op->set, twi_char_at(s + at, &size)); count++)
                at += size;
            if (count < op->a) { failed = true; break; }
            frame.floor = at;
            if (!op->lazy) for (; count < op->b && at < n && twi_in_class(u, p, op->set, twi_char_at(s + at, &size));
                count++, --*steps) at += size;
            frame.at = at;
            push = !op->possessive && (op->lazy ? op->b > op->a : at > frame.floor);
            if (op->lazy) frame.floor = op->b - op->a;                      /* lazily: how many more it may take */
            pc++;
            break;
        case TWI_P_FORK: frame.op = op->b; frame.at = at; push = true; pc = op->a; break;
        case TWI_P_JUMP: pc = op->a; break;
        case TWI_P_AHEAD:
        case TWI_P_NOT_AHEAD: {
            /* parsing allows three levels */
            bool there = twi_match_at(region, u, p, pc + 1, s, n, at, stack, steps) != SIZE_MAX;
            if (there == (op->kind == TWI_P_AHEAD)) pc = op->a; else failed = true;
            break;
        }
        case TWI_P_START: if (at == 0) pc++; else failed = true; break;
        case TWI_P_END: if (at == n) pc++; else failed = true; break;
        default: stack->count = bottom; return at;
        }
        if (push) {
            void *grown = twi_grow(region, stack->list, stack->count, &stack->capacity, stack->count + 1,
                                   sizeof *stack->list);
            if (!grown) { stack->count = bottom; return SIZE_MAX; }
            stack->list = (twi_pattern_frame *)grown;
            stack->list[stack->count++] = frame;
        }
        while (failed) {                                                    /* back to the last choice */
            twi_pattern_frame *top;
            if (stack->count == bottom) return SIZE_MAX;
            top = &stack->list[stack->count - 1];
            op = &p->ops[top->op];
            failed = false;
            if (!top->run) { at = top->at; pc = top->op; stack->count--; }
            else if (!op->lazy) {
                at = top->at;
                do at--; while (twi_is_inside(s + at));
                pc = top->op + 1;
                if (at > top->floor) top->at = at; else stack->count--;
            } else if (top->floor > 0 && top->at < n && twi_in_class(u, p, op->set, twi_char_at(s + top->at, &size))) {
                top->at += size;
                top->floor--;
                at = top->at;
                pc = top->op + 1;
            } else { stack->count--; failed = true; }
        }
    }
}

/* -- patterns: reading them -------------------------------------------------------------------- */
enum { TWI_PATTERN_DEPTH = 12 };

typedef struct twi_parser {
    twi_region *region; twi_pattern *p; const char *s; size_t n, at; bool fold; int depth; const char *why;
    } twi_parser;

static twi_instruction *twi_pattern_op(twi_parser *q, uint8_t kind) {
    void *grown = q->why || q->p->op_count >= TWI_PATTERN_SIZE ? NULL
        : twi_grow(q->region, q->p->ops, q->p->op_count, &q->p->op_capacity, q->p->op_count + 1,
                   sizeof(twi_instruction));
    if (!grown) { if (!q->why) q->why = "is too large"; return NULL; }
    q->p->ops = (twi_instruction *)grown;
    memset(&q->p->ops[q->p->op_count], 0, sizeof(twi_instruction));
    q->p->ops[q->p->op_count].kind = kind;
    return &q->p->ops[q->p->op_count++];
}

static void twi_class_put(twi_parser *q, uint32_t low, uint32_t high, uint32_t kinds, uint32_t not_kinds) {
    twi_class_item *item;
    void *grown = q->why || q->p->item_count >= TWI_PATTERN_SIZE ? NULL
        : twi_grow(q->region, q->p->items, q->p->item_count, &q->p->item_capacity, q->p->item_count + 1, sizeof *item);
    if (!grown) { if (!q->why) q->why = "is too large"; return; }
    q->p->items = (twi_class_item *)grown;
    item = &q->p->items[q->p->item_count++];
    item->low = low;
    item->high = high;
    item->kinds = kinds;
    item->not_kinds = not_kinds;
    item->by_kind = kinds || not_kinds;
    q->p->classes[q->p->class_count - 1].count++;
}

static void twi_class_begin(twi_parser *q) {
    void *grown = q->why ? NULL
        : twi_grow(q->region, q->p->classes, q->p->class_count, &q->p->class_capacity, q->p->class_count + 1,
                   sizeof(twi_class));
    if (!grown) { if (!q->why) q->why = "is too large"; return; }
    q->p->classes = (twi_class *)grown;
    q->p->classes[q->p->class_count].first = (uint32_t)q->p->item_count;
    q->p->classes[q->p->class_count].count = 0;
    q->p->classes[q->p->class_count].negative = false;
    q->p->classes[q->p->class_count].alone = false;
    q->p->classes[q->p->class_count++].fold = q->fold;
}

static uint32_t twi_parser_char(twi_parser *q) {
    size_t size;
    uint32_t c = twi_char_at(q->s + q->at, &size);
    q->at += size;
    return c;
}

/* What follows a backslash: a class (true) or one character (false, in *c). */
static bool twi_parse_escape(twi_parser *q, uint32_t *kinds, uint32_t *not_kinds, uint32_t *c) {
    static const struct { const char *name; uint32_t kind; } properties[] = {
        { "L", TWI_IS_LETTER }, { "Letter", TWI_IS_LETTER }, { "N", TWI_IS_NUMBER }, { "Number", TWI_IS_NUMBER },
        { "Nd", TWI_IS_DIGIT }, { "Z", 0 } };
    uint32_t kind = 0, value = 0, digit;
    bool negative = false;
    size_t i, start;
    *kinds = *not_kinds = 0;
    if (q->at >= q->n) { q->why = "ends in a backslash"; return false; }
    *c = twi_parser_char(q);
    switch (*c) {
    case 's': *kinds = TWI_IS_SPACE; return true;
    case 'S': *not_kinds = TWI_IS_SPACE; return true;
    case 'd': *kinds = TWI_IS_DIGIT; return true;
    case 'D': *not_kinds = TWI_IS_DIGIT; return true;
    case 'w': *kinds = TWI_IS_WORD; return true;
    case 'W': *not_kinds = TWI_IS_WORD; return true;
    case 'n': *c = '\n'; return false;
    case 'r': *c = '\r'; return false;
    case 't': *c = '\t'; return false;
    case 'f': *c = '\f'; return false;
    case 'v': *c = '\v'; return false;
    case 'p':
    case 'P':
        negative = *c == 'P';
        if (q->at < q->n && q->s[q->at] == '{') {
            start = ++q->at;
            if (q->at < q->n && q->s[q->at] == '^') { negative = !negative; start = ++q->at; }
            while (q->at < q->n && q->s[q->at] != '}') q->at++;
            for (i = 0; i < sizeof properties / sizeof *properties; i++)
                if (strlen(properties[i].name) == q->at - start
                    && memcmp(properties[i].name, q->s + start, q->at - start) == 0) kind = properties[i].kind;
            q->at++;
        }
        if (!kind) q->why = "has a property that is not supported";
        if (negative) *not_kinds = kind; else *kinds = kind;
        return true;
    case 'x':
    case 'u':
        start = *c == 'x' ? 2 : 4;
        for (i = 0; i < start && q->at < q->n; i++, q->at++) {
            char h = q->s[q->at];
            digit = h >= '0' && h <= '9' ? (uint32_t)(h - '0') : h >= 'a' && h <= 'f' ? (uint32_t)(h - 'a') + 10
                : h >= 'A' && h <= 'F' ? (uint32_t)(h - 'A') + 10 : 16;
            if (digit > 15) { q->why = "has an escape that is not supported"; return false; }
            value = value * 16 + digit;
        }
        *c = value;
        return false;
    default:
        if ((*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z'))
            q->why = "has an escape that is not supported";
        return false;
    }
}

static void twi_parse_class(twi_parser *q) {                                /* behind '[' */
    uint32_t kinds, not_kinds, low, high;
    bool first = true;
    twi_class_begin(q);
    if (q->why) return;
    if (q->at < q->n && q->s[q->at] == '^') { q->p->classes[q->p->class_count - 1].negative = true; q->at++; }
    for (; !q->why; first = false) {
        if (q->at >= q->n) { q->why = "has an open class"; return; }
        low = twi_parser_char(q);
        if (low == ']' && !first) return;
        if (low == '[' || (low == '&' && q->at < q->n && q->s[q->at] == '&')) {
            q->why = "has a class within a class, which is not supported";
            return;
        }
        if (low == '\\' && twi_parse_escape(q, &kinds, &not_kinds, &low)) {
            twi_class_put(q, 0, 0, kinds, not_kinds);
            continue;
        }
        high = low;
        if (q->at + 1 < q->n && q->s[q->at] == '-' && q->s[q->at + 1] != ']') {
            q->at++;
            high = twi_parser_char(q);
            if (high == '\\' && twi_parse_escape(q, &kinds, &not_kinds, &high)) {
                q->why = "has a range that ends in a class";
                return;
            }
            if (high < low) { q->why = "has a range that runs backwards"; return; }
        }
        twi_class_put(q, low, high, 0, 0);
    }
}

/* Where the group or alternative that goes on at `at` ends: the position of its ')' (or '|', if asked for), or
   the end. */
static size_t twi_pattern_end(const twi_parser *q, size_t at, bool stop_at_bar) {
    int depth = 0;
    bool in_class = false;
    for (; at < q->n; at++) {
        char c = q->s[at];
        if (c == '\\') { at++; continue; }
        if (in_class) { if (c == ']' && q->s[at - 1] != '[') in_class = false; continue; }
        if (c == '[') { in_class = true; if (at + 1 < q->n && q->s[at + 1] == '^') at++; }
        else if (c == '(') depth++;
        else if (c == ')') { if (depth == 0) return at; depth--; }
        else if (c == '|' && depth == 0 && stop_at_bar) return at;
    }
    return q->n;
}

/* How often what stands before `at` is wanted; moves on behind it.  False: once. */
static bool twi_parse_count(twi_parser *q, size_t *at, uint32_t *low, uint32_t *high, bool *lazy, bool *possessive) {
    char c = *at < q->n ? q->s[*at] : 0;
    *low = c == '+' ? 1 : 0;
    *high = c == '?' ? 1 : UINT32_MAX;
    *lazy = *possessive = false;
    if (c == '{') {
        size_t i = *at + 1;
        uint32_t values[2] = { 0, 0 }, which = 0, digits = 0;
        for (; i < q->n && q->s[i] != '}'; i++) {
            if (q->s[i] == ',' && which == 0) which = 1;
            else if (q->s[i] >= '0' && q->s[i] <= '9' && values[which] < 10000) {
                values[which] = values[which] * 10 + (uint32_t)(q->s[i] - '0');
                digits |= 1u << which;
            }
            else return false;                                              /* a brace that means itself */
        }
        if (i >= q->n || !(digits & 1)) return false;
        *low = values[0];
        *high = which == 0 ? values[0] : digits & 2 ? values[1] : UINT32_MAX;
        if (*high < *low) { q->why = "counts backwards"; return false; }
        *at = i;
    } else if (c != '*' && c != '+' && c != '?') return false;
    ++*at;
    if (*at < q->n && q->s[*at] == '?') { *lazy = true; ++*at; }
    else if (*at < q->n && q->s[*at] == '+' && c != '{') { *possessive = true; ++*at; }
    return true;
}

static void twi_parse_alternatives(twi_parser *q);

/* A group: its inside stands from `at` to its ')'; compiled once. */
static void twi_parse_inside(twi_parser *q, size_t at, size_t end, bool fold) {
    twi_parser inside = *q;
    inside.n = end;
    inside.at = at;
    inside.fold = fold;
    inside.depth = q->depth + 1;
    if (inside.depth > TWI_PATTERN_DEPTH) { q->why = "is nested too deeply"; return; }
    twi_parse_alternatives(&inside);
    q->why = inside.why;
}

static void twi_parse_group(twi_parser *q) {                                /* behind '(' */
    size_t end = twi_pattern_end(q, q->at, false), after = end + 1, at = q->at;
    uint32_t low = 1, high = 1, i, loop;
    uint8_t kind = TWI_P_MATCH;
    bool fold = q->fold, lazy, possessive, counted;
    twi_instruction *op;
    if (end >= q->n) { q->why = "has an open group"; return; }
    if (q->s[at] == '?') {
        if (q->s[at + 1] == ':') at += 2;
        else if (q->s[at + 1] == 'i' && q->s[at + 2] == ':') { fold = true; at += 3; }
        else if (q->s[at + 1] == '=' || q->s[at + 1] == '!') {
            kind = q->s[at + 1] == '=' ? TWI_P_AHEAD : TWI_P_NOT_AHEAD;
            at += 2;
        }
        else { q->why = "has a group that is not supported"; return; }
    }
    counted = twi_parse_count(q, &after, &low, &high, &lazy, &possessive);
    if (!counted) low = high = 1;
    else if (possessive) q->why = "has a possessive group, which is not supported";
    if (kind != TWI_P_MATCH) {
        size_t ahead = q->p->op_count;
        if (counted) { q->why = "counts a look-ahead"; return; }
        if (!twi_pattern_op(q, kind)) return;
        twi_parse_inside(q, at, end, fold);
        if (!twi_pattern_op(q, TWI_P_MATCH)) return;
        q->p->ops[ahead].a = (uint32_t)q->p->op_count;
    } else {
        for (i = 0; i < low && !q->why; i++) twi_parse_inside(q, at, end, fold);
        if (high == UINT32_MAX) {
            loop = (uint32_t)q->p->op_count;
            if (!twi_pattern_op(q, TWI_P_FORK)) return;
            twi_parse_inside(q, at, end, fold);
            op = twi_pattern_op(q, TWI_P_JUMP);
            if (!op) return;
            op->a = loop;
            q->p->ops[loop].a = lazy ? (uint32_t)q->p->op_count : loop + 1;
            q->p->ops[loop].b = lazy ? loop + 1 : (uint32_t)q->p->op_count;
        } else for (i = low; i < high && !q->why; i++) {
            loop = (uint32_t)q->p->op_count;
            if (!twi_pattern_op(q, TWI_P_FORK)) return;
            twi_parse_inside(q, at, end, fold);
            q->p->ops[loop].a = lazy ? (uint32_t)q->p->op_count : loop + 1;
            q->p->ops[loop].b = lazy ? loop + 1 : (uint32_t)q->p->op_count;
        }
    }
    q->at = after;
}

static void twi_parse_sequence(twi_parser *q, size_t end) {
    while (!q->why && q->at < end) {
        uint32_t c = twi_parser_char(q), kinds = 0, not_kinds = 0, low, high;
        bool lazy, possessive;
        twi_instruction *op;
        if (c == '(') { twi_parse_group(q); continue; }
        if (c == '^' || c == '$') { twi_pattern_op(q, c == '^' ? TWI_P_START : TWI_P_END); continue; }
        if (c == ')') { q->why = "closes a group that is not open"; return; }
        if (c == '*' || c == '+' || c == '?') { q->why = "counts nothing"; return; }
        if (c == '[') twi_parse_class(q);
        else {
            bool by_kind = c == '\\' && twi_parse_escape(q, &kinds, &not_kinds, &c);
            twi_class_begin(q);
            if (q->why) return;
            q->p->classes[q->p->class_count - 1].alone = true;
            if (by_kind) twi_class_put(q, 0, 0, kinds, not_kinds);
            else if (c == '.' && q->s[q->at - 1] == '.' && (q->at < 2 || q->s[q->at - 2] != '\\')) {
                q->p->classes[q->p->class_count - 1].negative = true;       /* anything but a new line */
                twi_class_put(q, '\n', '\n', 0, 0);
            } else twi_class_put(q, c, c, 0, 0);
        }
        if (q->why) return;
        op = twi_pattern_op(q, TWI_P_SET);
        if (!op) return;
        op->set = (uint32_t)q->p->class_count - 1;
        if (twi_parse_count(q, &q->at, &low, &high, &lazy, &possessive)) {
            op->kind = TWI_P_RUN;
            op->a = low;
            op->b = high;
            op->lazy = lazy;
            op->possessive = possessive;
        }
    }
}

static void twi_parse_alternatives(twi_parser *q) {
    /* the jumps to the end are a chain until it is known */
    uint32_t last = UINT32_MAX, next;
    for (;;) {
        size_t end = twi_pattern_end(q, q->at, true), fork = q->p->op_count;
        twi_instruction *op;
        bool more = end < q->n && q->s[end] == '|';
        if (more && !twi_pattern_op(q, TWI_P_FORK)) return;
        twi_parse_sequence(q, end);
        if (q->why || !more) break;
        op = twi_pattern_op(q, TWI_P_JUMP);
        if (!op) return;
        op->a = last;
        last = (uint32_t)q->p->op_count - 1;
        q->p->ops[fork].a = (uint32_t)fork + 1;
        q->p->ops[fork].b = (uint32_t)q->p->op_count;
        q->at = end + 1;
    }
    for (; last != UINT32_MAX; last = next) { next = q->p->ops[last].a; q->p->ops[last].a = (uint32_t)q->p->op_count; }
}

static twi_pattern *twi_compile_pattern(twi_region *region, const char *s, size_t n) {
    twi_parser q;
    twi_pattern *p = (twi_pattern *)twi_alloc(region, 1, sizeof *p);
    if (!p) return NULL;
    memset(&q, 0, sizeof q);
    q.region = region;
    q.p = p;
    q.s = s;
    q.n = n;
    twi_parse_alternatives(&q);
    if (!q.why && q.at < n) q.why = "closes a group that is not open";
    twi_pattern_op(&q, TWI_P_MATCH);
    if (!q.why) return p;
    twi_fail(region->tw, TW_E_UNSUPPORTED, "tokenizer.json: the pattern \"%.*s\" %s", (int)(n < 200 ? n : 200), s,
             q.why);
    return NULL;
}

/* -- splitting a text into words --------------------------------------------------------------- */

/* GPT-2's pattern, by hand, since it is where byte-level tokenizers spend their time, and since a pattern matcher that
   backtracks can be made to overflow its stack:
       's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
   that is: a contraction, or a run of letters, of digits or of other signs, with a blank that stands before it;
   or a run of
   white space, which leaves its last one to the word behind it.  Gives the end of the word that begins at `at`. */
static size_t twi_gpt2_word(const twi_unicode *u, const char *s, size_t n, size_t at) {
    const uint32_t classes = TWI_IS_LETTER | TWI_IS_NUMBER | TWI_IS_SPACE;
    size_t size, start = at, last;
    uint32_t kind;
    if (s[at] == '\'' && at + 1 < n) {
        char a = s[at + 1], b = at + 2 < n ? s[at + 2] : ' ';
        if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
        if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return at + 3;
    }
    if (s[at] == ' ' && at + 1 < n && !(twi_kind(u, twi_char_at(s + at + 1, &size)) & TWI_IS_SPACE)) at++;
    kind = twi_kind(u, twi_char_at(s + at, &size)) & classes;
    at += size;
    if (kind != TWI_IS_SPACE) {
        while (at < n && (twi_kind(u, twi_char_at(s + at, &size)) & classes) == kind) at += size;
        return at;
    }
    for (last = start; at < n && (twi_kind(u, twi_char_at(s + at, &size)) & TWI_IS_SPACE); at += size) last = at;
    return at == n || last == start ? at : last;
}

/* The steps of a tokenizer: normalizers, splitters and decoders are rows of lists. */
typedef enum twi_step_kind {
    TWI_N_BERT, TWI_N_FORM, TWI_N_LOWERCASE, TWI_N_STRIP_ACCENTS, TWI_N_STRIP, TWI_N_REPLACE, TWI_N_PREPEND,
        TWI_N_CHARSMAP, TWI_N_NMT, TWI_N_BYTES,
    TWI_S_BYTE_LEVEL, TWI_S_KIND, TWI_S_WORDS, TWI_S_METASPACE, TWI_S_PATTERN, TWI_S_CHARACTER, TWI_S_LENGTH,
    TWI_D_BYTE_LEVEL, TWI_D_WORDPIECE, TWI_D_METASPACE, TWI_D_BYTE_FALLBACK, TWI_D_FUSE, TWI_D_STRIP, TWI_D_REPLACE,
        TWI_D_BPE, TWI_D_SENTENCEPIECE
} twi_step_kind;

typedef enum twi_behavior { TWI_REMOVED, TWI_ISOLATED, TWI_WITH_PREVIOUS, TWI_WITH_NEXT, TWI_CONTIGUOUS } twi_behavior;
typedef enum twi_prepend { TWI_ALWAYS, TWI_FIRST, TWI_NEVER } twi_prepend;

typedef struct twi_step {
    twi_step_kind kind;
    bool          clean, chinese, strip_accents, lowercase;      /* BERT */
    bool          compatible, compose;                           /* FORM: NFD, NFC, NFKD, NFKC */
    bool          left, right;                                   /* STRIP */
    bool          prefix_space, use_regex;                       /* BYTE_LEVEL */
    bool          split, invert, cleanup;                        /* METASPACE; PATTERN; WORDPIECE */
    twi_behavior  behavior;                                      /* what becomes of what was matched */
    twi_prepend   prepend;                                       /* METASPACE */
    /* KIND: the character's bits; CHARACTER, METASPACE, STRIP: which one */
    uint32_t      kinds, code;
    int64_t       start, stop;                                   /* STRIP of a decoder, LENGTH */
    /* REPLACE: what (if no pattern) by what; PREPEND; WORDPIECE's ## */
    const char   *text, *content;
    size_t        text_length, content_length;
    twi_pattern  *pattern;
    twi_charsmap  map;
} twi_step;

/* A part of the text: still text, or (id >= 0) an added token already. */
typedef struct twi_part { uint32_t begin, end; int32_t id; } twi_part;
typedef struct twi_parts { twi_part *list; size_t count, capacity; } twi_parts;

static bool twi_parts_put(twi_region *region, twi_parts *parts, size_t begin, size_t end, int32_t id) {
    void *grown = twi_grow(region, parts->list, parts->count, &parts->capacity, parts->count + 1, sizeof *parts->list);
    if (!grown) return false;
    parts->list = (twi_part *)grown;
    parts->list[parts->count].begin = (uint32_t)begin;
    parts->list[parts->count].end = (uint32_t)end;
    parts->list[parts->count++].id = id;
    return true;
}

typedef struct twi_finder {            /* what looks for matches needs */
    twi_region *region;
    const twi_unicode *unicode;
    const twi_step *step;
    twi_pattern_stack *stack;
    int64_t steps;
} twi_finder;

/* The first match in bytes `at` to n of s: *begin and *end.  False where there is none, or with an error. */
static bool twi_find(twi_finder *f, const char *s, size_t n, size_t at, size_t *begin, size_t *end) {
    const twi_step *step = f->step;
    size_t size = 1;
    for (; at < n; at += size) {
        uint32_t c = twi_char_at(s + at, &size);
        *begin = at;
        *end = at + size;
        switch (step->kind) {
        case TWI_S_KIND: if (twi_kind(f->unicode, c) & step->kinds) return true; break;
        case TWI_S_METASPACE:
        case TWI_S_CHARACTER: if (c == step->code) return true; break;
        case TWI_S_WORDS: {                                                 /* \w+|[^\w\s]+ */
            uint32_t kind = twi_kind(f->unicode, c) & (TWI_IS_WORD | TWI_IS_SPACE);
            if (kind == TWI_IS_SPACE) break;
            while (*end < n) {
                uint32_t next = twi_kind(f->unicode, twi_char_at(s + *end, &size)) & (TWI_IS_WORD | TWI_IS_SPACE);
                if (next != kind) break;
                *end += size;
            }
            return true;
        }
        case TWI_S_BYTE_LEVEL: *end = twi_gpt2_word(f->unicode, s, n, at); return true;
        default:
            if (step->pattern) {
                *end = twi_match_at(f->region, f->unicode, step->pattern, 0, s, n, at, f->stack, &f->steps);
                if (*end != SIZE_MAX && *end > at) return true;
                if (tw_failed(f->region->tw)) return false;
            } else if (step->text_length && step->text_length <= n - at
                       && memcmp(s + at, step->text, step->text_length) == 0) {
                *end = at + step->text_length;
                return true;
            }
        }
    }
    return false;
}

/* Cuts one part by a step's matches and what its behavior says of them: "the-final--countdown" at '-' is
   the|final||countdown removed, the|-|final|-|-|countdown isolated, the-|final-|-|countdown with the previous,
   the|-final|-|-countdown with the next one, the|-|final|--|countdown contiguous. */
typedef struct twi_cut { twi_finder *finder; twi_parts *out; size_t first, base; bool matched; } twi_cut;

static bool twi_cut_piece(twi_cut *cut, size_t begin, size_t end, bool match) {
    const twi_step *step = cut->finder->step;
    twi_parts *out = cut->out;
    bool join, before = cut->matched;
    if (begin >= end) return true;
    if (step->invert) match = !match;
    join = out->count > cut->first && ((step->behavior == TWI_CONTIGUOUS && match == before)
        || (step->behavior == TWI_WITH_PREVIOUS && match && !before)
            || (step->behavior == TWI_WITH_NEXT && !match && before));
    cut->matched = match;
    if (join) { out->list[out->count - 1].end = (uint32_t)(cut->base + end); return true; }
    return (step->behavior == TWI_REMOVED && match)
        || twi_parts_put(cut->finder->region, out, cut->base + begin, cut->base + end, -1);
}

static bool twi_split_part(twi_finder *f, const char *s, const twi_part *part, twi_parts *out) {
    const char *text = s + part->begin;
    size_t n = part->end - part->begin, at, begin, end;
    twi_cut cut;
    cut.finder = f;
    cut.out = out;
    cut.first = out->count;
    cut.base = part->begin;
    cut.matched = false;
    f->steps = 1000 + 500 * (int64_t)n;
    for (at = 0; at < n; at = end) {
        if (!twi_find(f, text, n, at, &begin, &end)) {
            if (tw_failed(f->region->tw)) return false;
            begin = end = n;
        }
        if (!twi_cut_piece(&cut, at, begin, false) || !twi_cut_piece(&cut, begin, end, true)) return false;
    }
    return true;
}

/* -- the tokenizer ----------------------------------------------------------------------------- */
typedef enum twi_model_kind {
    TWI_M_BPE, TWI_M_WORDPIECE, TWI_M_UNIGRAM, TWI_M_WORDLEVEL, TWI_M_SP_UNIGRAM, TWI_M_SP_BPE } twi_model_kind;

/* pair: left id << 32 | right id, + 1; 0 is free */
typedef struct twi_merge { uint64_t pair; uint32_t rank; int32_t joined; } twi_merge;

typedef struct twi_piece { int32_t id; uint32_t begin, end; } twi_piece;
typedef struct twi_symbol { int32_t id, previous, next; uint32_t begin, length; } twi_symbol;
/* joining symbol `at` with the next one */
typedef struct twi_candidate { uint32_t rank, at; int32_t joined; } twi_candidate;
/* the best way to cut up to here ends in this token */
typedef struct twi_best { double score; uint32_t begin; int32_t id; } twi_best;

/* A word that was cut before.  Most words of a text are among a few thousand. */
enum { TWI_CACHE_WORD = 24, TWI_CACHE_TOKENS = 8, TWI_CACHE_SETS = 1 << 14, TWI_CACHE_WAYS = 2 };
typedef struct twi_cached {
    uint32_t hash;
    uint8_t  length, count;            /* of the word in bytes; of its tokens.  0: empty */
    uint8_t  begins[TWI_CACHE_TOKENS], ends[TWI_CACHE_TOKENS];
    char     word[TWI_CACHE_WORD];
    int32_t  ids[TWI_CACHE_TOKENS];
} twi_cached;

typedef struct twi_added {             /* a token beside the model's own */
    int32_t     id;
    bool        single_word, lstrip, rstrip, normalized, special;
    const char *text;                  /* what is looked for: normalized, if it is to be */
    size_t      length;
} twi_added;

/* kind 0: the token id; 1: first text; 2: second */
typedef struct twi_template_item { int kind; int32_t id, type; } twi_template_item;
typedef struct twi_template { twi_template_item *items; size_t count, capacity; } twi_template;

typedef struct twi_token {             /* one token on its way out */
    int32_t  id, word;
    uint32_t begin, end;               /* bytes of the original, then code points */
    bool     added;
    uint32_t blanks;                   /* of an added token, for trim_offsets: twi_count_blanks */
} twi_token;
typedef struct twi_tokens { twi_token *list; size_t count, capacity; } twi_tokens;

enum { TWI_SPECIALS = 7, TWI_MAX_TRIMS = 4 };

struct tw_tokenizer {
    tw_context     *tw;
    tw_tokenizer   *next;              /* of the context's */
    twi_region      region;
    twi_unicode     unicode;
    twi_vocabulary  vocabulary;
    size_t          model_size;        /* entries of the model's own vocabulary */
    int64_t         next_id;           /* of the next added token that the vocabulary does not have */

    twi_model_kind  model;
    int32_t         unknown;           /* -1: none */
    bool            unknown_missing;   /* it has a name, but the vocabulary lacks it */
    /* bytes_last: words arrive as bytes, not yet written as characters */
    bool            fuse_unknown, byte_fallback, ignore_merges, bytes_last;
    const char     *prefix, *suffix;   /* BPE's continuing_subword_prefix and end_of_word_suffix; WordPiece's ## */
    size_t          prefix_length, suffix_length;
    int64_t         max_word;          /* WordPiece: longer words are unknown */
    int32_t         byte_ids[256];     /* byte-level BPE's first symbols, or <0xXX> */
    twi_merge      *merges;
    size_t          merge_mask, merge_count;
    twi_trie        trie;
    uint32_t        trie_prefix;       /* WordPiece: the node behind ## */
    float          *scores32;          /* SentencePiece's scores and piece types, by id */
    uint8_t        *types;
    int32_t        *sp_split;          /* how long the left part of an unused piece was */
    size_t          longest;           /* bytes of the longest piece */
    int64_t         sp_begin_id, sp_end_id, sp_pad_id;
    double         *scores, lowest, highest;

    twi_step       *normalizers, *splitters, *decoders;
    size_t          normalizer_count, splitter_count, decoder_count;
    bool            has_decoder;
    bool            plain_gpt2;        /* no normalizer, and GPT-2's splitting alone: the fast way */
    twi_added      *added;
    size_t          added_count, added_capacity;
    /* [2][257]: where the added tokens of a first byte begin in added_order, raw and normalized */
    uint32_t       *added_by_byte;
    uint32_t       *added_order;
    uint32_t       *added_of;          /* by id: its place in `added` + 1, or 0 */
    uint32_t       *blanks;            /* by id: twi_count_blanks of the spelling; only with trims */
    int32_t         special_ids[TWI_SPECIALS];

    twi_template    single, pair;
    bool            has_template;
    bool            trim_prefix_space[TWI_MAX_TRIMS];
    int             trim_count;

    twi_charsmap    sp_map;            /* SentencePiece's own normalizer */
    bool            sp_dummy_prefix, sp_extra_whitespace, sp_escape, sp_suffix, sp_has_unused, sp_words;
    const char     *sp_unknown_surface;
    size_t          sp_unknown_length;
    twi_trie        user_trie;         /* user-defined pieces */

    /* the tokenizer.json or .model that it came from, or nothing; its tokenizer_config.json */
    twi_bytes       source, config_source;
    bool            source_is_json;
    int             family;            /* what to write into a new tokenizer.json */

    /* room to work in */
    twi_cached     *cache;
    twi_buffer      clean, buffer[2];
    twi_parts       parts[2], raw_parts, sub_parts;
    twi_tokens      tokens[2];
    twi_piece      *pieces;     size_t piece_count, piece_capacity;
    twi_symbol     *symbols;    size_t symbol_capacity;
    twi_candidate  *heap;       size_t heap_capacity, heap_count;
    twi_best       *best;       size_t best_capacity;
    twi_text        scratch;
    twi_pattern_stack stack;
    void           *encoding;   size_t encoding_capacity;
    tw_decoder     *own_decoder;
    int64_t         word;              /* the number of the word that is being cut */
};

/* One piece of the word that is being cut: bytes begin ... end - 1 of it. */
static bool twi_piece_put(tw_tokenizer *t, int32_t id, size_t begin, size_t end) {
    twi_piece *piece;
    if (t->piece_count == t->piece_capacity) {
        void *grown = twi_grow(&t->region, t->pieces, t->piece_count, &t->piece_capacity, t->piece_count + 1,
                               sizeof *t->pieces);
        if (!grown) return false;
        t->pieces = (twi_piece *)grown;
    }
    piece = &t->pieces[t->piece_count++];
    piece->id = id;
    piece->begin = (uint32_t)begin;
    piece->end = (uint32_t)end;
    return true;
}

static bool twi_token_put(tw_tokenizer *t, twi_tokens *out, int32_t id, twi_origin origin) {
    twi_token *token;
    if (out->count == out->capacity) {
        void *grown = twi_grow(&t->region, out->list, out->count, &out->capacity, out->count + 1, sizeof *out->list);
        if (!grown) return false;
        out->list = (twi_token *)grown;
    }
    token = &out->list[out->count++];
    token->id = id;
    token->word = (int32_t)t->word;
    token->begin = origin.begin;
    token->end = origin.end;
    token->added = false;
    token->blanks = 0;
    return true;
}

static bool twi_no_unknown(tw_tokenizer *t) {
    twi_fail(t->tw, TW_E_FORMAT, "tokenizer: a character is not in the vocabulary, and there is no unknown token");
    return false;
}

/* -- byte pair encoding ------------------------------------------------------------------------ */

/* Byte b as GPT-2 writes it: printable Latin-1 is itself, the others are U+0100, U+0101, ... in order. */
static uint32_t twi_byte_char(unsigned b) {
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174) return b;
    return b <= 32 ? 256 + b : b <= 160 ? 256 + b - 94 : 256 + 67;
}

/* And back: the byte, or -1. */
static int twi_char_byte(uint32_t c) {
    if (c < 256) return twi_byte_char(c) == c ? (int)c : -1;
    c -= 256;
    return c <= 32 ? (int)c : c <= 66 ? (int)c + 94 : c == 67 ? 173 : -1;
}

static const twi_merge *twi_find_merge(const tw_tokenizer *t, int32_t left, int32_t right) {
    uint64_t pair = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
    size_t at;
    if (!t->merges) return NULL;
    for (at = (size_t)twi_mix(pair) & t->merge_mask; t->merges[at].pair; at = (at + 1) & t->merge_mask)
        if (t->merges[at].pair == pair) return &t->merges[at];
    return NULL;
}

/* A heap with the first candidate on top: the lowest rank, then the leftmost. */
static bool twi_candidate_before(const twi_candidate *a, const twi_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static bool twi_heap_reserve(tw_tokenizer *t) {
    void *grown = twi_grow(&t->region, t->heap, t->heap_count, &t->heap_capacity, t->heap_count + 1, sizeof *t->heap);
    if (grown) t->heap = (twi_candidate *)grown;
    return grown != NULL;
}

static bool twi_heap_push(tw_tokenizer *t, twi_candidate c) {
    size_t i = t->heap_count;
    if (!twi_heap_reserve(t)) return false;
    t->heap_count++;
    for (; i > 0 && twi_candidate_before(&c, &t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
    return true;
}

static twi_candidate twi_heap_pop(tw_tokenizer *t) {
    twi_candidate top = t->heap[0], last = t->heap[--t->heap_count];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < t->heap_count; i = child) {
        if (child + 1 < t->heap_count && twi_candidate_before(&t->heap[child + 1], &t->heap[child])) child++;
        if (!twi_candidate_before(&t->heap[child], &last)) break;
        t->heap[i] = t->heap[child];
    }
    t->heap[i] = last;
    return top;
}

static bool twi_push_pair(tw_tokenizer *t, size_t at) {
    const twi_symbol *left = &t->symbols[at];
    const twi_merge *merge;
    twi_candidate c;
    if (left->next < 0) return true;
    merge = twi_find_merge(t, left->id, t->symbols[left->next].id);
    if (!merge) return true;
    c.rank = merge->rank;
    c.at = (uint32_t)at;
    c.joined = merge->joined;
    return twi_heap_push(t, c);
}

/* Joins the n symbols until no merge applies; leaves what remains as a list from symbol 0 on (by `next`).
   A short word looks for its best pair anew each time.  A long one keeps its candidates in a heap,
       and one that is stale
   when it comes up, because a neighbour was joined meanwhile, is dropped: n log n whatever the word. */
static bool twi_merge_symbols(tw_tokenizer *t, size_t n) {
    enum { SHORT = 32 };
    twi_symbol *symbols = t->symbols;
    size_t i;
    for (i = 0; i < n; i++) { symbols[i].previous = (int32_t)i - 1; symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1; }
    if (n <= SHORT) {
        uint32_t ranks[SHORT];
        int32_t joined[SHORT], at, next;
        const twi_merge *merge;
        for (i = 0; i + 1 < n; i++) {
            merge = twi_find_merge(t, symbols[i].id, symbols[i + 1].id);
            ranks[i] = merge ? merge->rank : UINT32_MAX;
            joined[i] = merge ? merge->joined : 0;
        }
        for (;;) {
            int32_t best = -1;
            uint32_t rank = UINT32_MAX;
            for (at = 0; n && symbols[at].next >= 0; at = symbols[at].next) if (ranks[at] < rank) {
                rank = ranks[at];
                best = at;
            }
            if (best < 0) return true;
            next = symbols[best].next;
            symbols[best].id = joined[best];
            symbols[best].length += symbols[next].length;
            symbols[best].next = symbols[next].next;
            if (symbols[best].next >= 0) {
                symbols[symbols[best].next].previous = best;
                merge = twi_find_merge(t, symbols[best].id, symbols[symbols[best].next].id);
                ranks[best] = merge ? merge->rank : UINT32_MAX;
                joined[best] = merge ? merge->joined : 0;
            }
            at = symbols[best].previous;
            if (at >= 0) {
                merge = twi_find_merge(t, symbols[at].id, symbols[best].id);
                ranks[at] = merge ? merge->rank : UINT32_MAX;
                joined[at] = merge ? merge->joined : 0;
            }
        }
    }
    t->heap_count = 0;
    for (i = 0; i + 1 < n; i++) if (!twi_push_pair(t, i)) return false;
    while (t->heap_count) {
        twi_candidate top = twi_heap_pop(t);
        twi_symbol *left = &symbols[top.at], *right;
        const twi_merge *merge;
        if (left->length == 0 || left->next < 0) continue;
        right = &symbols[left->next];
        merge = twi_find_merge(t, left->id, right->id);
        if (!merge || merge->joined != top.joined) continue;
        left->id = top.joined;
        left->length += right->length;
        left->next = right->next;
        right->length = 0;
        if (left->next >= 0) symbols[left->next].previous = (int32_t)top.at;
        if (left->previous >= 0 && !twi_push_pair(t, (size_t)left->previous)) return false;
        if (!twi_push_pair(t, top.at)) return false;
    }
    return true;
}

static bool twi_symbol_put(tw_tokenizer *t, size_t *n, int32_t id, size_t length) {
    if (*n == t->symbol_capacity) {
        void *grown = twi_grow(&t->region, t->symbols, *n, &t->symbol_capacity, *n + 1, sizeof *t->symbols);
        if (!grown) return false;
        t->symbols = (twi_symbol *)grown;
    }
    t->symbols[*n].id = id;
    t->symbols[(*n)++].length = (uint32_t)length;
    return true;
}

/* The symbols that a word's characters begin as.  A character without a token becomes its bytes, the unknown
   token, or (as in `tokenizers`) nothing at all. */
static bool twi_bpe_symbols(tw_tokenizer *t, const char *s, size_t length, size_t *n) {
    size_t i, j, size, unknown = 0;
    *n = 0;
    for (i = 0; i < length; i += size) {
        int32_t id;
        bool decorated;
        if (t->bytes_last && !t->prefix_length && !t->suffix_length) {
            size = 1;
            id = t->byte_ids[(unsigned char)s[i]];
        }
        else {
            char byte_text[4];
            const char *text = s + i;
            size_t text_length;
            if (t->bytes_last) {
                size = 1;
                text = byte_text;
                text_length = (size_t)twi_utf8_write(twi_byte_char((unsigned char)s[i]), byte_text);
            }
            else text_length = size = twi_char_size(s[i]);
            decorated = (t->prefix_length && i > 0) || (t->suffix_length && i + size == length);
            if (decorated) {
                twi_text_clear(&t->scratch);
                if (i > 0) twi_text_bytes(&t->scratch, t->prefix, t->prefix_length);
                twi_text_bytes(&t->scratch, text, text_length);
                if (i + size == length) twi_text_bytes(&t->scratch, t->suffix, t->suffix_length);
                if (t->scratch.failed) return false;
                text = t->scratch.data;
                text_length = t->scratch.length;
            }
            id = twi_vocabulary_find(&t->vocabulary, text, text_length);
            if (id < 0 && t->byte_fallback) {
                for (j = 0; j < text_length && t->byte_ids[(unsigned char)text[j]] >= 0; j++) continue;
                if (j == text_length) {
                    /* pending unknowns stay pending: tokenizers writes them behind these bytes */
                    for (j = 0; j < text_length; j++) if (!twi_symbol_put(t, n, t->byte_ids[(unsigned char)text[j]], 1))
                        return false;
                    continue;
                }
            }
        }
        if (id >= 0) {
            if (unknown && !twi_symbol_put(t, n, t->unknown, unknown)) return false;
            unknown = 0;
            if (!twi_symbol_put(t, n, id, size)) return false;
        } else if (t->unknown >= 0) {
            if (unknown && !t->fuse_unknown) {
                if (!twi_symbol_put(t, n, t->unknown, unknown)) return false;
                unknown = 0;
            }
            unknown += size;
        } else if (t->unknown_missing) return twi_no_unknown(t);
    }
    return !unknown || twi_symbol_put(t, n, t->unknown, unknown);
}

static bool twi_bpe_word(tw_tokenizer *t, const char *s, size_t n) {
    size_t count, at = 0, j;
    int32_t i, id;
    if (t->ignore_merges) {
        if (t->bytes_last) {
            twi_text_clear(&t->scratch);
            for (j = 0; j < n; j++) {
                char c[4];
                twi_text_bytes(&t->scratch, c, (size_t)twi_utf8_write(twi_byte_char((unsigned char)s[j]), c));
            }
            if (t->scratch.failed) return false;
            id = twi_vocabulary_find(&t->vocabulary, t->scratch.data, t->scratch.length);
        } else id = twi_vocabulary_find(&t->vocabulary, s, n);
        if (id >= 0) return twi_piece_put(t, id, 0, n);
    }
    if (!twi_bpe_symbols(t, s, n, &count)) return false;
    if (count == 0) return true;
    if (!twi_merge_symbols(t, count)) return false;
    for (i = 0; i >= 0; i = t->symbols[i].next) {
        if (!twi_piece_put(t, t->symbols[i].id, at, at + t->symbols[i].length)) return false;
        at += t->symbols[i].length;
    }
    return true;
}

/* -- WordPiece --------------------------------------------------------------------------------- */

static bool twi_wordpiece_word(tw_tokenizer *t, const char *s, size_t n) {
    size_t at = 0, i;
    int64_t characters = 0;
    for (i = 0; i < n; i++) characters += !twi_is_inside(s + i);
    while (at < n && characters <= t->max_word) {
        uint32_t node = at ? t->trie_prefix : 0;
        size_t longest = 0;
        int32_t id = -1;
        if (at && t->prefix_length && node == 0) break;                     /* no token begins with ## */
        for (i = at; i < n; i++) {
            node = twi_trie_step(&t->trie, node, (unsigned char)s[i]);
            if (node == 0) break;
            if (t->trie.nodes[node].value >= 0 && (i + 1 == n || !twi_is_inside(s + i + 1))) {
                id = t->trie.nodes[node].value;
                longest = i + 1;
            }
        }
        if (id < 0) break;
        if (!twi_piece_put(t, id, at, longest)) return false;
        at = longest;
    }
    if (at == n) return true;
    t->piece_count = 0;
    if (t->unknown < 0) return twi_no_unknown(t);
    return twi_piece_put(t, t->unknown, 0, n);
}

static bool twi_wordlevel_word(tw_tokenizer *t, const char *s, size_t n) {
    int32_t id = twi_vocabulary_find(&t->vocabulary, s, n);
    if (id < 0 || (size_t)id >= t->model_size) id = t->unknown;
    if (id < 0) return twi_no_unknown(t);
    return twi_piece_put(t, id, 0, n);
}

/* -- unigram: Viterbi's algorithm -------------------------------------------------------------- */

/* The piece's score.  SentencePiece adds in single precision, and lets user-defined pieces always win. */
static double twi_piece_score(const tw_tokenizer *t, int32_t id, size_t bytes) {
    if (t->model == TWI_M_UNIGRAM) return t->scores[id];
    if (t->types[id] == 4) return (double)((float)bytes * (float)t->highest) - 0.1;
    return (double)t->scores32[id];
}

/* best[i]: the most probable way to cut the first i bytes. */
static bool twi_viterbi(tw_tokenizer *t, const char *s, size_t n) {
    const bool single = t->model == TWI_M_SP_UNIGRAM;
    double unknown = single ? (double)((float)t->lowest - 10.0f) : t->lowest - 10.0;
    size_t at, i, size;
    void *grown = twi_grow(&t->region, t->best, 0, &t->best_capacity, n + 1, sizeof *t->best);
    twi_best *best;
    if (!grown) return false;
    t->best = best = (twi_best *)grown;
    for (i = 0; i <= n; i++) { best[i].id = -1; best[i].score = 0; best[i].begin = UINT32_MAX; }
    for (at = 0; at < n; at += size) {
        const double here = best[at].score;
        uint32_t node = 0;
        bool whole_character = false;
        size = twi_char_size(s[at]);
        for (i = at; i < n; ) {
            int32_t id;
            double score;
            node = twi_trie_step(&t->trie, node, (unsigned char)s[i++]);
            if (node == 0) break;
            id = t->trie.nodes[node].value;
            if (id < 0) continue;
            score = twi_piece_score(t, id, i - at);
            score = single ? (double)((float)score + (float)here) : score + here;
            if (best[i].begin == UINT32_MAX || score > best[i].score) {
                best[i].score = score;
                best[i].begin = (uint32_t)at;
                best[i].id = id;
            }
            if (i - at == size) whole_character = true;
        }
        if (!whole_character) {
            twi_best *to = &best[at + size];
            double score = single ? (double)((float)unknown + (float)here) : unknown + here;
            if (to->begin == UINT32_MAX || score > to->score) {
                if (t->unknown < 0) return twi_no_unknown(t);
                to->score = score;
                to->begin = (uint32_t)at;
                to->id = t->unknown;
            }
        }
    }
    return true;
}

/* Turns the way back from the end into a way forward: best[begin].begin is where the piece that begins there ends. */
static void twi_viterbi_forward(twi_best *best, size_t n) {
    size_t end = n, next = SIZE_MAX;
    int32_t id = -1;
    while (end > 0) {
        size_t begin = best[end].begin;
        int32_t own = best[end].id;
        best[end].begin = (uint32_t)next;
        best[end].id = id;
        next = end;
        id = own;
        end = begin;
    }
    best[0].begin = (uint32_t)next;
    best[0].id = id;
}

static bool twi_unigram_word(tw_tokenizer *t, const char *s, size_t n) {
    size_t at, to, i;
    if (!twi_viterbi(t, s, n)) return false;
    twi_viterbi_forward(t->best, n);
    for (at = 0; at < n; at = to) {
        int32_t id = t->best[at].id;
        to = t->best[at].begin;
        /* neighbours that are unknown are one token */
        if (id == t->unknown) {
            while (to < n && t->best[to].id == t->unknown) to = t->best[to].begin;
            /* unknown pieces may spell a known one together */
            id = twi_vocabulary_find(&t->vocabulary, s + at, to - at);
            if (id >= 0 && (size_t)id >= t->model_size) id = -1;
            if (id < 0 && t->byte_fallback) {
                for (i = at; i < to && t->byte_ids[(unsigned char)s[i]] >= 0; i++) continue;
                if (i == to) {
                    for (i = at; i < to; i++) if (!twi_piece_put(t, t->byte_ids[(unsigned char)s[i]], at, to))
                        return false;
                    continue;
                }
            }
            if (id < 0) id = t->unknown;
        }
        if (!twi_piece_put(t, id, at, to)) return false;
    }
    return true;
}


/* -- SentencePiece's own files --------------------------------------------------------------------
   A .model file is a protocol buffer: fields of a number and a kind, of which we read the pieces
   with their scores and types, and how to normalize.  SentencePiece cuts a whole text at once, blanks included,
   which it writes as U+2581; scores add up in single precision, as there.

   Its normalizer takes, at each place, a user-defined piece if one begins there, else the longest rule, else one
   character.  Then blanks: none at the beginning and the end, none doubled, one put in front. */
#define TWI_BLANK_MARK "\xE2\x96\x81"  /* U+2581 */
enum { TWI_PIECE_NORMAL = 1, TWI_PIECE_UNKNOWN, TWI_PIECE_CONTROL, TWI_PIECE_USER, TWI_PIECE_UNUSED, TWI_PIECE_BYTE };

/* The longest user-defined piece that the n bytes at s begin with, in bytes. */
static size_t twi_sp_user_piece(const tw_tokenizer *t, const char *s, size_t n) {
    size_t i, longest = 0;
    uint32_t node = 0;
    if (!t->user_trie.nodes) return 0;
    for (i = 0; i < n; i++) {
        node = twi_trie_step(&t->user_trie, node, (unsigned char)s[i]);
        if (node == 0) break;
        if (t->user_trie.nodes[node].value >= 0) longest = i + 1;
    }
    return longest;
}

/* What stands at byte `at` once normalized; returns how many bytes of the text that was. */
static size_t twi_sp_normal_prefix(const tw_tokenizer *t, const twi_source *view, size_t at, const char **text,
                                   size_t *length) {
    size_t n = twi_sp_user_piece(t, view->text + at, view->length - at);
    if (n == 0) {
        n = twi_charsmap_find(&t->sp_map, view->text + at, view->length - at, true, text, length);
        if (n) return n;
        n = twi_char_size(view->text[at]);
    }
    *text = view->text + at;
    *length = n;
    return n;
}

static bool twi_sp_normalize(tw_tokenizer *t, const twi_source *view, twi_buffer *out) {
    const char *blank = t->sp_escape ? TWI_BLANK_MARK : " ", *text;
    size_t blank_length = strlen(blank), at = 0, length, n, i;
    bool after_blank = t->sp_extra_whitespace, ok = true;
    twi_origin o;
    out->length = 0;
    if (t->sp_extra_whitespace)
        while (at < view->length) {
            n = twi_sp_normal_prefix(t, view, at, &text, &length);
            if (length != 1 || text[0] != ' ') break;
            at += n;
        }
    if (at == view->length) return true;
    o.begin = o.end = twi_origin_at(view, at).begin;
    if (!t->sp_suffix && t->sp_dummy_prefix) ok = twi_buffer_bytes(&t->region, out, blank, blank_length, o);
    while (ok && at < view->length) {
        n = twi_sp_normal_prefix(t, view, at, &text, &length);
        o = twi_origin_of(view, at, at + n);
        while (after_blank && length && text[0] == ' ') { text++; length--; }
        for (i = 0; ok && i < length; i++)
            ok = text[i] == ' ' ? twi_buffer_bytes(&t->region, out, blank, blank_length, o)
                : twi_buffer_bytes(&t->region, out, text + i, 1, o);
        if (length) after_blank = text[length - 1] == ' ';
        if (!t->sp_extra_whitespace) after_blank = false;
        at += n;
    }
    o.begin = o.end = (uint32_t)(view->base + view->length);
    if (t->sp_extra_whitespace)
        while (out->length >= blank_length && memcmp(out->text + out->length - blank_length, blank, blank_length) == 0)
            {
            out->length -= blank_length;
            o.begin = o.end = out->origins[out->length].begin;
        }
    if (ok && t->sp_suffix && t->sp_dummy_prefix) ok = twi_buffer_bytes(&t->region, out, blank, blank_length, o);
    for (i = out->length; i > 0; i--) {                                     /* a piece ends where the next one begins */
        uint32_t begin = out->origins[i - 1].begin;
        out->origins[i - 1].end = o.begin;
        o.begin = begin;
    }
    return ok;
}

/* The tokens of the pieces found: unknown ones become their bytes, or are one token with their unknown neighbours. */
static bool twi_sp_pieces(tw_tokenizer *t, const char *s, int32_t id, size_t begin, size_t end) {
    size_t i;
    twi_piece *last = t->piece_count ? &t->pieces[t->piece_count - 1] : NULL;
    if (id == t->unknown && t->byte_fallback) {
        for (i = begin; i < end; i++)
            if (!twi_piece_put(t, t->byte_ids[(unsigned char)s[i]], begin, i + 1 == end ? end : begin)) return false;
        return true;
    }
    if (id == t->unknown && last && last->id == id) { last->end = (uint32_t)end; return true; }
    return twi_piece_put(t, id, begin, end);
}

static bool twi_sp_unigram(tw_tokenizer *t, const char *s, size_t n) {
    size_t at, to;
    if (!twi_viterbi(t, s, n)) return false;
    twi_viterbi_forward(t->best, n);
    for (at = 0; at < n; at = to) {
        to = t->best[at].begin;
        if (!twi_sp_pieces(t, s, t->best[at].id, at, to)) return false;
    }
    return true;
}

/* SentencePiece's BPE has no list of merges: two neighbours may be joined when together they spell a
   piece, the one of the highest score first, then the leftmost.  A user-defined piece is never joined.

   The heap wants the lowest rank: a float's bits, turned so that they count as the float does, and then
   all inverted.  A candidate is stale when its symbols are not as long together as they were. */
static uint32_t twi_score_rank(float score) {
    uint32_t bits;
    score += 0.0f;                                                          /* -0 becomes 0 */
    memcpy(&bits, &score, 4);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static bool twi_sp_joinable(uint8_t type) {
    return type == TWI_PIECE_NORMAL || type == TWI_PIECE_USER || type == TWI_PIECE_UNUSED;
}

static bool twi_sp_push_pair(tw_tokenizer *t, const char *s, int32_t at) {
    const twi_symbol *left, *right;
    twi_candidate c;
    int32_t id;
    size_t length;
    if (at < 0 || t->symbols[at].next < 0) return true;
    left = &t->symbols[at];
    right = &t->symbols[left->next];
    length = (size_t)left->length + right->length;
    if (left->id || right->id || length > t->longest) return true;          /* id: is it a user-defined piece? */
    id = twi_vocabulary_find(&t->vocabulary, s + left->begin, length);
    if (id < 0 || (size_t)id >= t->model_size || !twi_sp_joinable(t->types[id])) return true;
    if (t->types[id] == TWI_PIECE_UNUSED) t->sp_split[id] = (int32_t)left->length;
    c.rank = twi_score_rank(t->scores32[id]);
    c.at = (uint32_t)at;
    c.joined = (int32_t)length;
    return twi_heap_push(t, c);
}

static bool twi_sp_bpe(tw_tokenizer *t, const char *s, size_t n) {
    size_t at = 0, count = 0, i;
    int32_t index, id;
    while (at < n) {
        size_t user = twi_sp_user_piece(t, s + at, n - at), size = user ? user : twi_char_size(s[at]);
        if (!twi_symbol_put(t, &count, user != 0, size)) return false;
        t->symbols[count - 1].begin = (uint32_t)at;
        at += size;
    }
    for (i = 0; i < count; i++) {
        t->symbols[i].previous = (int32_t)i - 1;
        t->symbols[i].next = i + 1 < count ? (int32_t)i + 1 : -1;
    }
    t->heap_count = 0;
    for (i = 0; i < count; i++) if (!twi_sp_push_pair(t, s, (int32_t)i)) return false;
    while (t->heap_count) {
        twi_candidate top = twi_heap_pop(t);
        twi_symbol *left = &t->symbols[top.at], *right;
        if (left->length == 0 || left->next < 0) continue;
        right = &t->symbols[left->next];
        if (left->length + right->length != (uint32_t)top.joined) continue;
        left->length += right->length;
        left->next = right->next;
        right->length = 0;
        if (left->next >= 0) t->symbols[left->next].previous = (int32_t)top.at;
        if (!twi_sp_push_pair(t, s, left->previous) || !twi_sp_push_pair(t, s, (int32_t)top.at)) return false;
    }
    for (index = 0; index >= 0 && count; index = t->symbols[index].next) {
        /* the heap is a stack now: a piece that is unused is split again */
        twi_candidate part;
        part.at = t->symbols[index].begin;
        part.joined = (int32_t)t->symbols[index].length;
        part.rank = 0;
        t->heap_count = 0;
        for (;;) {
            id = twi_vocabulary_find(&t->vocabulary, s + part.at, (size_t)part.joined);
            if (id < 0 || (size_t)id >= t->model_size) id = t->unknown;
            if (t->types[id] == TWI_PIECE_UNUSED && t->sp_split[id] > 0 && t->sp_split[id] < part.joined) {
                twi_candidate behind = part;
                behind.at += (uint32_t)t->sp_split[id];
                behind.joined -= t->sp_split[id];
                part.joined = t->sp_split[id];
                if (!twi_heap_reserve(t)) return false;
                t->heap[t->heap_count++] = behind;
                continue;
            }
            if (!twi_sp_pieces(t, s, id, part.at, part.at + (size_t)part.joined)) return false;
            if (t->heap_count == 0) break;
            part = t->heap[--t->heap_count];
        }
    }
    return true;
}

/* -- SentencePiece's files: reading them ------------------------------------------------------- */
typedef struct twi_message { const unsigned char *data; size_t size, at; bool bad; } twi_message;

static uint64_t twi_varint(twi_message *m) {
    uint64_t value = 0;
    int shift;
    for (shift = 0; shift < 64 && m->at < m->size; shift += 7) {
        unsigned char byte = m->data[m->at++];
        value |= (uint64_t)(byte & 127u) << shift;
        if (byte < 128) return value;
    }
    m->bad = true;
    return 0;
}

/* The next field of a message: its number (0: the end), and its value or, of texts and messages, where it lies. */
static uint32_t twi_field(twi_message *m, uint64_t *value, twi_message *inside) {
    uint64_t key, length;
    memset(inside, 0, sizeof *inside);
    *value = 0;
    if (m->bad || m->at >= m->size) return 0;
    key = twi_varint(m);
    switch (key & 7) {
    case 0: *value = twi_varint(m); break;
    case 1: length = 8; goto fixed;
    case 5: length = 4; goto fixed;
    case 2: length = twi_varint(m);
    fixed:
        if (m->bad || length > m->size - m->at) { m->bad = true; return 0; }
        inside->data = m->data + m->at;
        inside->size = (size_t)length;
        m->at += (size_t)length;
        break;
    default: m->bad = true;
    }
    if (key >> 3 == 0 || key >> 3 > UINT32_MAX) m->bad = true;
    return m->bad ? 0 : (uint32_t)(key >> 3);
}

static bool twi_is_utf8(const char *s, size_t n) {
    size_t i;
    uint32_t c;
    bool valid;
    for (i = 0; i < n; ) {
        if (n - i >= 8 && twi_is_ascii(s + i, 8)) { i += 8; continue; }
        i += (size_t)twi_utf8_read(s + i, n - i, &c, &valid);
        if (!valid) return false;
    }
    return true;
}

static bool twi_sp_read_piece(tw_tokenizer *t, twi_message *m, size_t id) {
    twi_message inside, text;
    uint64_t value;
    uint32_t field, bits;
    float score = 0;
    uint8_t type = TWI_PIECE_NORMAL;
    memset(&text, 0, sizeof text);
    while ((field = twi_field(m, &value, &inside)) != 0) {
        if (field == 1) text = inside;
        else if (field == 2 && inside.size == 4) { bits = twi_little_endian(inside.data); memcpy(&score, &bits, 4); }
        else if (field == 3) type = value >= 1 && value <= 6 ? (uint8_t)value : 0;
    }
    if (m->bad || text.size == 0 || type == 0 || !(score - score == 0)
        || !twi_is_utf8((const char *)text.data, text.size)) {
        twi_fail(t->tw, TW_E_FORMAT, "tokenizer: piece %lu of the SentencePiece model is malformed", (unsigned long)id);
        return false;
    }
    if (twi_vocabulary_find(&t->vocabulary, (const char *)text.data, text.size) >= 0) {
        twi_fail(t->tw, TW_E_FORMAT, "tokenizer: piece %lu of the SentencePiece model is there twice",
                 (unsigned long)id);
        return false;
    }
    t->scores32[id] = score;
    t->types[id] = type;
    if (text.size > t->longest) t->longest = text.size;
    return twi_vocabulary_put(&t->vocabulary, (const char *)text.data, text.size, (int64_t)id);
}

static int64_t twi_signed_field(uint64_t value) { return value > INT32_MAX ? -1 : (int64_t)value; }

/* The pieces and rules of a .model file; the family adds its own special tokens later. */
static bool twi_sp_read_model(tw_tokenizer *t, const unsigned char *data, size_t size) {
    twi_message model, inside, deeper;
    uint64_t value, kind = 1;
    uint32_t field, inner, *list;
    size_t pieces = 0, id = 0, n, i;
    int unknowns = 0, byte_pieces = 0;
    char spelled[8];
    memset(&model, 0, sizeof model);
    model.data = data;
    model.size = size;
    while ((field = twi_field(&model, &value, &inside)) != 0) if (field == 1) pieces++;
    if (model.bad || pieces == 0) {
        twi_fail(t->tw, TW_E_FORMAT, "tokenizer: this is not a SentencePiece model (%lu bytes)", (unsigned long)size);
        return false;
    }
    t->scores32 = (float *)twi_alloc(&t->region, pieces, sizeof *t->scores32);
    t->types = (uint8_t *)twi_alloc(&t->region, pieces, 1);
    t->sp_split = (int32_t *)twi_alloc(&t->region, pieces, sizeof *t->sp_split);
    list = (uint32_t *)twi_alloc(&t->region, pieces, sizeof *list);
    if (!t->scores32 || !t->types || !t->sp_split || !list) return false;
    t->sp_dummy_prefix = t->sp_extra_whitespace = t->sp_escape = true;
    t->sp_unknown_surface = " \xE2\x81\x87 ";
    t->sp_unknown_length = 5;
    model.at = 0;
    while ((field = twi_field(&model, &value, &inside)) != 0) {
        if (field == 1) { if (!twi_sp_read_piece(t, &inside, id++)) return false; continue; }
        while ((field == 2 || field == 3) && (inner = twi_field(&inside, &value, &deeper)) != 0) {
            if (field == 2) switch (inner) {                                /* how it was trained */
            case 3: kind = value; break;
            case 24: t->sp_suffix = value != 0; break;
            case 35: t->byte_fallback = value != 0; break;
            case 41: t->sp_begin_id = twi_signed_field(value); break;
            case 42: t->sp_end_id = twi_signed_field(value); break;
            case 43: t->sp_pad_id = twi_signed_field(value); break;
            case 44: t->sp_unknown_surface = (const char *)deeper.data; t->sp_unknown_length = deeper.size; break;
            default: break;
            } else switch (inner) {                                         /* how it normalizes */
            case 2:
                if (!twi_open_charsmap(t->tw, &t->sp_map, deeper.data, deeper.size)) return false;
                if (!twi_is_utf8(t->sp_map.texts, t->sp_map.text_bytes)) { inside.bad = true; }
                break;
            case 3: t->sp_dummy_prefix = value != 0; break;
            case 4: t->sp_extra_whitespace = value != 0; break;
            case 5: t->sp_escape = value != 0; break;
            default: break;
            }
        }
        if (inside.bad) {
            twi_fail(t->tw, TW_E_FORMAT, "tokenizer: the SentencePiece model's rules are malformed");
            return false;
        }
    }
    if (kind != 1 && kind != 2) {
        twi_fail(t->tw, TW_E_UNSUPPORTED,
                 "tokenizer: SentencePiece models of words or characters are not supported, only unigram and BPE");
        return false;
    }
    t->model = kind == 1 ? TWI_M_SP_UNIGRAM : TWI_M_SP_BPE;
    t->model_size = pieces;
    t->unknown = -1;
    /* FLT_MAX and FLT_MIN, where SentencePiece starts */
    t->lowest = 3.4028234663852886e38;
    t->highest = 1.1754943508222875e-38;
    for (i = 0; i < 256; i++) t->byte_ids[i] = -1;
    for (n = 0, i = 0; i < pieces; i++) {
        const char *piece = twi_spelling_of(&t->vocabulary, (int64_t)i, NULL);
        if (t->types[i] == TWI_PIECE_UNKNOWN) { t->unknown = (int32_t)i; unknowns++; }
        if (t->types[i] == TWI_PIECE_UNUSED) t->sp_has_unused = true;
        if (t->types[i] == TWI_PIECE_NORMAL) {
            if (t->scores32[i] < (float)t->lowest) t->lowest = (double)t->scores32[i];
            if (t->scores32[i] > (float)t->highest) t->highest = (double)t->scores32[i];
        }
        if (t->types[i] == TWI_PIECE_NORMAL || t->types[i] == TWI_PIECE_USER) list[n++] = (uint32_t)i;
        if (t->types[i] == TWI_PIECE_BYTE) {
            unsigned byte;
            for (byte = 0; byte < 256; byte++) {
                snprintf(spelled, sizeof spelled, "<0x%02X>", byte);
                if (strcmp(spelled, piece) == 0) break;
            }
            if (byte == 256 || !t->byte_fallback) {
                twi_fail(t->tw, TW_E_FORMAT, "tokenizer: byte piece %lu of the SentencePiece model is not one",
                         (unsigned long)i);
                return false;
            }
            t->byte_ids[byte] = (int32_t)i;
            byte_pieces++;
        }
    }
    if (unknowns != 1 || n == 0 || (t->byte_fallback && byte_pieces != 256)) {
        twi_fail(t->tw, TW_E_FORMAT,
                 "tokenizer: a SentencePiece model needs one unknown piece, normal ones, and all 256 bytes or none");
        return false;
    }
    if (!twi_make_trie(&t->region, &t->trie, &t->vocabulary, list, n)) return false;
    for (n = 0, i = 0; i < pieces; i++) if (t->types[i] == TWI_PIECE_USER) list[n++] = (uint32_t)i;
    if (n && !twi_make_trie(&t->region, &t->user_trie, &t->vocabulary, list, n)) return false;
    twi_free(&t->region, list);
    /* BPE may take the text word by word, through the cache, if no piece goes on behind a blank */
    t->sp_words = t->model == TWI_M_SP_BPE && twi_vocabulary_find(&t->vocabulary, TWI_BLANK_MARK, 3) >= 0
        && t->sp_escape && !t->sp_suffix && !t->sp_has_unused;
    for (i = 0; t->sp_words && i < pieces; i++) {
        size_t length, j;
        const char *piece = twi_spelling_of(&t->vocabulary, (int64_t)i, &length);
        for (j = 1; j + 3 <= length; j++)
            if (memcmp(piece + j, TWI_BLANK_MARK, 3) == 0 && (j < 3 || memcmp(piece + j - 3, TWI_BLANK_MARK, 3) != 0))
                t->sp_words = false;
    }
    return true;
}
/* -- any word ---------------------------------------------------------------------------------- */

static bool twi_cut_word(tw_tokenizer *t, const char *s, size_t n) {
    switch (t->model) {
    case TWI_M_BPE: return twi_bpe_word(t, s, n);
    case TWI_M_WORDPIECE: return twi_wordpiece_word(t, s, n);
    case TWI_M_UNIGRAM: return twi_unigram_word(t, s, n);
    case TWI_M_SP_BPE: return twi_sp_bpe(t, s, n);
    case TWI_M_SP_UNIGRAM: return twi_sp_unigram(t, s, n);
    case TWI_M_WORDLEVEL: break;
    }
    return twi_wordlevel_word(t, s, n);
}

/* Cuts bytes begin ... end - 1 of the view, which are one word, into tokens.  What a word is cut into depends on
   its bytes alone, so short words go through a cache: two places for each hash, the newer one in front. */
static bool twi_cut_part(tw_tokenizer *t, twi_tokens *out, const twi_source *view, size_t begin, size_t end) {
    const char *s = view->text + begin;
    size_t n = end - begin, i, j;
    bool cached = n <= TWI_CACHE_WORD;
    uint32_t hash = 0;
    twi_cached *set = NULL;
    if (n == 0) return true;
    if (cached) {
        if (!t->cache) t->cache = (twi_cached *)twi_alloc(&t->region, (size_t)TWI_CACHE_SETS * TWI_CACHE_WAYS,
            sizeof *t->cache);
        if (!t->cache) return false;
        hash = twi_hash(s, n, 0);
        set = t->cache + (size_t)(hash & (TWI_CACHE_SETS - 1)) * TWI_CACHE_WAYS;
        for (i = 0; i < TWI_CACHE_WAYS; i++) {
            const twi_cached *entry = &set[i];
            if (entry->hash != hash || entry->length != n || memcmp(entry->word, s, n) != 0) continue;
            for (j = 0; j < entry->count; j++)
                if (!twi_token_put(t, out, entry->ids[j],
                                   twi_origin_of(view, begin + entry->begins[j], begin + entry->ends[j]))) return false;
            return true;
        }
    }
    t->piece_count = 0;
    if (!twi_cut_word(t, s, n)) return false;
    for (i = 0; i < t->piece_count; i++) {
        const twi_piece *piece = &t->pieces[i];
        if (!twi_token_put(t, out, piece->id, twi_origin_of(view, begin + piece->begin, begin + piece->end)))
            return false;
    }
    if (!cached || t->piece_count > TWI_CACHE_TOKENS) return true;
    set[1] = set[0];
    set[0].hash = hash;
    set[0].length = (uint8_t)n;
    set[0].count = (uint8_t)t->piece_count;
    memcpy(set[0].word, s, n);
    for (i = 0; i < t->piece_count; i++) {
        set[0].ids[i] = t->pieces[i].id;
        set[0].begins[i] = (uint8_t)t->pieces[i].begin;
        set[0].ends[i] = (uint8_t)t->pieces[i].end;
    }
    return true;
}

/* -- normalizing ----------------------------------------------------------------------------------
   Each step reads one text and writes another.  `change` and origins are those of `tokenizers`. */

/* Replaces by rules, grapheme by grapheme, as `tokenizers` does it for SentencePiece's character maps: a grapheme of
   less than six bytes as a whole if a rule fits its beginning, else character by character. */
typedef struct twi_rewriter { twi_form form; uint32_t code; int32_t change; bool waiting; } twi_rewriter;

static void twi_rewrite_put(twi_rewriter *r, uint32_t code, int32_t change) {
    if (r->waiting) twi_form_put(&r->form, r->code, r->change);
    r->code = code;
    r->change = change;
    r->waiting = true;
}

static size_t twi_count_chars(const char *s, size_t n) {
    size_t i, count = 0;
    for (i = 0; i < n; i++) count += !twi_is_inside(s + i);
    return count;
}

/* old characters become the text: the last ones of more are new, the last one of fewer takes the place of the rest. */
static void twi_rewrite(twi_rewriter *r, size_t old_count, const char *text, size_t length) {
    int64_t new_count = (int64_t)twi_count_chars(text, length), i;
    size_t at = 0, size;
    for (i = 0; i < new_count; i++, at += size)
        twi_rewrite_put(r, twi_char_at(text + at, &size), i >= (int64_t)old_count ? 1 : 0);
    if (new_count < (int64_t)old_count && r->waiting) r->change -= (int32_t)((int64_t)old_count - new_count);
}

static bool twi_normalize_charsmap(tw_tokenizer *t, const twi_step *step, const twi_source *in, twi_buffer *out) {
    twi_rewriter r;
    size_t at, end, size, length;
    const char *text;
    memset(&r, 0, sizeof r);
    r.form.region = &t->region;
    r.form.in = *in;
    r.form.out = out;
    r.form.ok = true;
    for (at = 0; r.form.ok && at < in->length; at = end) {
        end = at + twi_grapheme(&t->unicode, in->text + at, in->length - at);
        if (end - at < 6 && twi_charsmap_find(&step->map, in->text + at, end - at, false, &text, &length)) {
            twi_rewrite(&r, twi_count_chars(in->text + at, end - at), text, length);
            continue;
        }
        for (; at < end; at += size) {
            uint32_t c = twi_char_at(in->text + at, &size);
            if (twi_charsmap_find(&step->map, in->text + at, size, false, &text, &length))
                twi_rewrite(&r, 1, text, length);
            else twi_rewrite_put(&r, c, 0);
        }
    }
    if (r.waiting) twi_form_put(&r.form, r.code, r.change);
    return r.form.ok;
}

static bool twi_lower_put(tw_tokenizer *t, twi_buffer *out, uint32_t c, twi_origin o) {
    uint32_t images[TWI_MAX_IMAGES], n, j;
    if (c < 128) return twi_buffer_put(&t->region, out, c >= 'A' && c <= 'Z' ? c + 32 : c, o);
    if (!(twi_kind(&t->unicode, c) & TWI_HAS_LOWER)) return twi_buffer_put(&t->region, out, c, o);
    n = twi_image_of(&t->unicode.lower, c, images);
    for (j = 0; j < n; j++) if (!twi_buffer_put(&t->region, out, images[j], o)) return false;
    return true;
}

/* The steps that look at one character after the other. */
static bool twi_normalize_characters(tw_tokenizer *t, const twi_step *step, const twi_source *in, twi_buffer *out) {
    size_t at, size, first = 0, last = in->length;
    bool ok = true;
    if (step->kind == TWI_N_STRIP) {
        while (step->left && first < last
               && (twi_kind(&t->unicode, twi_char_at(in->text + first, &size)) & TWI_IS_SPACE)) first += size;
        for (; step->right && last > first; last = at) {
            for (at = last - 1; twi_is_inside(in->text + at); at--) continue;
            if (!(twi_kind(&t->unicode, twi_char_at(in->text + at, &size)) & TWI_IS_SPACE)) break;
        }
        return twi_buffer_copy(&t->region, out, in, first, last);
    }
    for (at = 0; ok && at < in->length; at += size) {
        uint32_t c = twi_char_at(in->text + at, &size), kind = twi_kind(&t->unicode, c);
        twi_origin o = twi_origin_at(in, at);
        size_t i;
        switch (step->kind) {
        case TWI_N_LOWERCASE: ok = twi_lower_put(t, out, c, o); break;
        case TWI_N_STRIP_ACCENTS: ok = (kind & TWI_IS_MARK) || twi_buffer_put(&t->region, out, c, o); break;
        case TWI_N_BYTES:
            for (i = 0; ok && i < size; i++)
                ok = twi_buffer_put(&t->region, out, twi_byte_char((unsigned char)in->text[at + i]), o);
            break;
        case TWI_N_NMT:
            if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) break;
            if (c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F)
                || c == 0x2028 || c == 0x2029
                || c == 0x2581 || c == 0xFEFF || c == 0xFFFD) c = ' ';
            ok = twi_buffer_put(&t->region, out, c, o);
            break;
        /* BERT's cleaning, and blanks around ideographs */
        default:
            if (step->clean) {
                if (kind & TWI_IS_CONTROL) break;
                if (kind & TWI_IS_SPACE) c = ' ';
            }
            if (step->chinese && (kind & TWI_IS_CHINESE)) {
                ok = twi_buffer_put(&t->region, out, ' ', o) && twi_buffer_put(&t->region, out, c, o)
                    && twi_buffer_put(&t->region, out, ' ', o);
                break;
            }
            ok = twi_buffer_put(&t->region, out, c, o);
        }
    }
    return ok;
}

/* BERT: clean, blanks around ideographs, decompose and drop accents, lower case.  *view becomes the result. */
static bool twi_normalize_bert(tw_tokenizer *t, const twi_step *step, twi_source *view, int *free_buffer) {
    twi_step part;
    twi_buffer *out = &t->buffer[*free_buffer];
    size_t at, size;
    bool ascii = twi_is_ascii(view->text, view->length), ok = true;
    memset(&part, 0, sizeof part);
    out->length = 0;
    /* all in one, which is most of most texts */
    if (ascii) {
        for (at = 0; ok && at < view->length; at++) {
            uint32_t c = (unsigned char)view->text[at], kind = twi_kind(&t->unicode, c);
            if (step->clean && (kind & TWI_IS_CONTROL)) continue;
            if (step->clean && (kind & TWI_IS_SPACE)) c = ' ';
            if (step->lowercase && c >= 'A' && c <= 'Z') c += 32;
            ok = twi_buffer_put(&t->region, out, c, twi_origin_at(view, at));
        }
        *view = twi_source_of(out);
        *free_buffer ^= 1;
        return ok;
    }
    if (step->clean || step->chinese) {
        ok = twi_normalize_characters(t, step, view, out);
        *view = twi_source_of(out);
        *free_buffer ^= 1;
    }
    if (ok && step->strip_accents) {
        out = &t->buffer[*free_buffer];
        out->length = 0;
        ok = twi_normal_form(&t->region, &t->unicode, view, out, false, false);
        *view = twi_source_of(out);
        *free_buffer ^= 1;
    }
    if (ok && (step->strip_accents || step->lowercase)) {
        out = &t->buffer[*free_buffer];
        out->length = 0;
        for (at = 0; ok && at < view->length; at += size) {
            uint32_t c = twi_char_at(view->text + at, &size);
            if (step->strip_accents && c >= 128 && (twi_kind(&t->unicode, c) & TWI_IS_NONSPACING)) continue;
            ok = step->lowercase ? twi_lower_put(t, out, c, twi_origin_at(view, at))
                : twi_buffer_put(&t->region, out, c, twi_origin_at(view, at));
        }
        *view = twi_source_of(out);
        *free_buffer ^= 1;
    }
    return ok;
}

static twi_finder twi_finder_of(tw_tokenizer *t, const twi_step *step) {
    twi_finder f;
    f.region = &t->region;
    f.unicode = &t->unicode;
    f.step = step;
    f.stack = &t->stack;
    f.steps = 0;
    return f;
}

/* Every match becomes the content, which stands for the last byte it took the place of. */
static bool twi_replace(tw_tokenizer *t, const twi_step *step, const twi_source *in, twi_buffer *out) {
    twi_finder f = twi_finder_of(t, step);
    size_t at = 0, begin, end;
    f.steps = 1000 + 500 * (int64_t)in->length;
    while (at < in->length && twi_find(&f, in->text, in->length, at, &begin, &end)) {
        if (!twi_buffer_copy(&t->region, out, in, at, begin)) return false;
        if (!twi_buffer_bytes(&t->region, out, step->content, step->content_length, twi_origin_at(in, end - 1)))
            return false;
        at = end;
    }
    return !tw_failed(t->tw) && twi_buffer_copy(&t->region, out, in, at, in->length);
}

/* Runs all normalizers.  *free_buffer is the one of the two buffers that the view does not lie in. */
static bool twi_normalize(tw_tokenizer *t, twi_source *view, int *free_buffer) {
    size_t i;
    for (i = 0; i < t->normalizer_count; i++) {
        const twi_step *step = &t->normalizers[i];
        twi_buffer *out = &t->buffer[*free_buffer];
        bool ok;
        out->length = 0;
        switch (step->kind) {
        case TWI_N_BERT: if (!twi_normalize_bert(t, step, view, free_buffer)) return false; continue;
        case TWI_N_FORM:
            if (twi_is_ascii(view->text, view->length)) continue;
            ok = twi_normal_form(&t->region, &t->unicode, view, out, step->compatible, step->compose);
            break;
        case TWI_N_REPLACE: ok = twi_replace(t, step, view, out); break;
        case TWI_N_PREPEND:
            if (view->length == 0) continue;
            ok = twi_buffer_bytes(&t->region, out, step->text, step->text_length, twi_origin_at(view, 0))
              && twi_buffer_copy(&t->region, out, view, 0, view->length);
            break;
        case TWI_N_CHARSMAP: ok = twi_normalize_charsmap(t, step, view, out); break;
        default: ok = twi_normalize_characters(t, step, view, out);
        }
        if (!ok) return false;
        *view = twi_source_of(out);
        *free_buffer ^= 1;
    }
    return true;
}

/* -- added tokens ---------------------------------------------------------------------------------
   Tokens that are looked for before all else: "<|endoftext|>", "[MASK]".  Those that are not normalized are cut out of
   the raw text, then the others out of the normalized rest.  At each place the longest one counts.
   Tokens are sorted by their first byte, the longer ones first: added_by_byte says where those of a byte begin. */
static bool twi_added_before(const void *user, uint32_t a, uint32_t b) {
    const twi_added *list = (const twi_added *)user, *x = &list[a], *y = &list[b];
    unsigned char p, q;
    if (x->normalized != y->normalized) return y->normalized;
    p = (unsigned char)x->text[0];
    q = (unsigned char)y->text[0];
    if (p != q) return p < q;
    return x->length != y->length ? x->length > y->length : a < b;
}

static bool twi_index_added(tw_tokenizer *t) {
    size_t i;
    uint32_t set, byte;
    t->added_order = (uint32_t *)twi_alloc(&t->region, t->added_count, sizeof *t->added_order);
    t->added_by_byte = (uint32_t *)twi_alloc(&t->region, 2 * 257, sizeof *t->added_by_byte);
    if (!t->added_order || !t->added_by_byte) return false;
    for (i = 0; i < t->added_count; i++) t->added_order[i] = (uint32_t)i;
    twi_sort(t->added_order, t->added_count, twi_added_before, t->added);
    for (set = 0, i = 0; set < 2; set++)
        for (byte = 0; byte <= 256; byte++) {
            t->added_by_byte[set * 257 + byte] = (uint32_t)i;
            while (byte < 256 && i < t->added_count && t->added[t->added_order[i]].normalized == (set == 1)
                   && (unsigned char)t->added[t->added_order[i]].text[0] == byte) i++;
        }
    return true;
}

static bool twi_char_before_is(const tw_tokenizer *t, const char *s, size_t at, uint32_t kinds) {
    size_t size, i = at;
    if (at == 0) return false;
    do i--; while (i > 0 && twi_is_inside(s + i));
    return (twi_kind(&t->unicode, twi_char_at(s + i, &size)) & kinds) != 0;
}

static bool twi_char_is(const tw_tokenizer *t, const char *s, size_t n, size_t at, uint32_t kinds) {
    size_t size;
    return at < n && (twi_kind(&t->unicode, twi_char_at(s + at, &size)) & kinds) != 0;
}

/* Cuts the added tokens of one set out of a text: parts of text (id -1) and tokens. */
static bool twi_find_added(tw_tokenizer *t, const char *s, size_t n, uint32_t set, twi_parts *out) {
    const uint32_t *by_byte = t->added_by_byte + set * 257;
    size_t at, done = 0, begin, end;
    uint32_t i;
    out->count = 0;
    if (t->added_count == 0 || by_byte[0] == by_byte[256]) return n == 0 || twi_parts_put(&t->region, out, 0, n, -1);
    for (at = 0; at < n; ) {
        const twi_added *found = NULL;
        unsigned char byte = (unsigned char)s[at];
        for (i = by_byte[byte]; i < by_byte[byte + 1]; i++) {
            const twi_added *a = &t->added[t->added_order[i]];
            if (a->length <= n - at && memcmp(s + at, a->text, a->length) == 0) { found = a; break; }
        }
        if (!found) { at++; continue; }
        begin = at;
        end = at + found->length;
        at = end;
        if (found->single_word && (twi_char_before_is(t, s, begin, TWI_IS_WORD)
                                   || twi_char_is(t, s, n, end, TWI_IS_WORD))) continue;
        if (found->lstrip) while (begin > done && twi_char_before_is(t, s, begin, TWI_IS_SPACE))
            do begin--; while (twi_is_inside(s + begin));
        if (found->rstrip) while (twi_char_is(t, s, n, end, TWI_IS_SPACE)) end += twi_char_size(s[end]);
        if (done < begin && !twi_parts_put(&t->region, out, done, begin, -1)) return false;
        if (!twi_parts_put(&t->region, out, begin, end, found->id)) return false;
        done = end;
    }
    return done >= n || twi_parts_put(&t->region, out, done, n, -1);
}

/* -- splitting --------------------------------------------------------------------------------- */

/* Byte-level splitting and Metaspace may put a blank in front of a part, and Metaspace writes blanks as a mark:
   the text is copied. */
static bool twi_rewrite_parts(tw_tokenizer *t, const twi_step *step, twi_source *view, int *free_buffer,
                              twi_parts *parts) {
    twi_buffer *out = &t->buffer[*free_buffer];
    char mark[4];
    size_t i, at, mark_length = 1, size;
    mark[0] = ' ';
    if (step->kind == TWI_S_METASPACE) mark_length = (size_t)twi_utf8_write(step->code, mark);
    out->length = 0;
    for (i = 0; i < parts->count; i++) {
        twi_part *part = &parts->list[i];
        size_t begin = out->length;
        bool ok = true;
        if (part->id >= 0) ok = twi_buffer_copy(&t->region, out, view, part->begin, part->end);
        else {
            bool marked, wanted = step->kind == TWI_S_METASPACE
                ? step->prepend == TWI_ALWAYS
                    || (step->prepend == TWI_FIRST && twi_origin_at(view, part->begin).begin == 0) : step->prefix_space;
            uint32_t c = twi_char_at(view->text + part->begin, &size);
            marked = c == ' ' || (step->kind == TWI_S_METASPACE && c == step->code);
            if (wanted && !marked) ok =
                twi_buffer_bytes(&t->region, out, mark, mark_length, twi_origin_at(view, part->begin));
            if (step->kind != TWI_S_METASPACE)
                ok = ok && twi_buffer_copy(&t->region, out, view, part->begin, part->end);
            else for (at = part->begin; ok && at < part->end; at += size) {
                size = twi_char_size(view->text[at]);
                ok = view->text[at] == ' '
                    ? twi_buffer_bytes(&t->region, out, mark, mark_length, twi_origin_at(view, at))
                                           : twi_buffer_bytes(&t->region, out, view->text + at, size,
                                               twi_origin_at(view, at));
            }
        }
        if (!ok) return false;
        part->begin = (uint32_t)begin;
        part->end = (uint32_t)out->length;
    }
    *view = twi_source_of(out);
    *free_buffer ^= 1;
    return true;
}

/* Byte-level: every byte becomes a character.  Only needed where another step follows or the model is not BPE. */
static bool twi_write_bytes(tw_tokenizer *t, twi_source *view, int *free_buffer, twi_parts *parts) {
    twi_buffer *out = &t->buffer[*free_buffer];
    size_t i, at;
    out->length = 0;
    for (i = 0; i < parts->count; i++) {
        twi_part *part = &parts->list[i];
        size_t begin = out->length;
        for (at = part->begin; at < part->end; at++) {
            uint32_t c = (unsigned char)view->text[at];
            if (!twi_buffer_put(&t->region, out, part->id < 0 ? twi_byte_char(c) : c, twi_origin_at(view, at)))
                return false;
        }
        part->begin = (uint32_t)begin;
        part->end = (uint32_t)out->length;
    }
    *view = twi_source_of(out);
    *free_buffer ^= 1;
    return true;
}

/* Runs all splitters over the parts in parts[0]; the result is there again. */
static bool twi_split(tw_tokenizer *t, twi_source *view, int *free_buffer) {
    size_t i, j;
    for (i = 0; i < t->splitter_count; i++) {
        const twi_step *step = &t->splitters[i];
        twi_parts *in = &t->parts[0], *out = &t->parts[1], swap;
        twi_finder f = twi_finder_of(t, step);
        bool splits = step->kind == TWI_S_METASPACE ? step->split : step->kind == TWI_S_BYTE_LEVEL ? step->use_regex
            : true;
        if (in->count == 0) return true;
        if (step->kind == TWI_S_METASPACE || (step->kind == TWI_S_BYTE_LEVEL && step->prefix_space))
            if (!twi_rewrite_parts(t, step, view, free_buffer, in)) return false;
        if (splits) {
            out->count = 0;
            for (j = 0; j < in->count; j++) {
                const twi_part *part = &in->list[j];
                if (part->id >= 0) {
                    if (!twi_parts_put(&t->region, out, part->begin, part->end, part->id)) return false;
                    continue;
                }
                if (step->kind == TWI_S_LENGTH) {
                    size_t at = part->begin, to;
                    int64_t k;
                    for (; at < part->end; at = to) {
                        for (to = at, k = 0; to < part->end && k < step->start; k++)
                            to += twi_char_size(view->text[to]);
                        if (!twi_parts_put(&t->region, out, at, to, -1)) return false;
                    }
                } else if (!twi_split_part(&f, view->text, part, out)) return false;
            }
            swap = *in;
            *in = *out;
            *out = swap;
        }
        if (step->kind == TWI_S_BYTE_LEVEL && !(i + 1 == t->splitter_count && t->bytes_last))
            if (!twi_write_bytes(t, view, free_buffer, &t->parts[0])) return false;
    }
    return true;
}

/* -- one text ---------------------------------------------------------------------------------- */

/* White space at both ends of a spelling, byte-level blanks included, for trim_offsets: before << 16 | behind. */
static uint32_t twi_count_blanks(const tw_tokenizer *t, const char *s, size_t n) {
    size_t at, size;
    uint32_t c, before = 0, run = 0;
    bool leading = true;
    for (at = 0; at < n; at += size) {
        c = twi_char_at(s + at, &size);
        if (c == 0x120 || (twi_kind(&t->unicode, c) & TWI_IS_SPACE)) {
            run += run < 65535;
            before += leading && before < 65535;
        }
        else { run = 0; leading = false; }
    }
    return before << 16 | run;
}

static bool twi_put_added(tw_tokenizer *t, twi_tokens *out, const twi_source *view, const twi_part *part) {
    twi_token *token;
    if (!twi_token_put(t, out, part->id, twi_origin_of(view, part->begin, part->end))) return false;
    token = &out->list[out->count - 1];
    token->added = true;
    if (t->trim_count) token->blanks = twi_count_blanks(t, view->text + part->begin, part->end - part->begin);
    t->word++;
    return true;
}

/* Tokens of a part that has no added tokens of the raw kind in it. */
static bool twi_encode_segment(tw_tokenizer *t, twi_source view, twi_tokens *out) {
    int free_buffer = 0;
    size_t i, j;
    if (t->plain_gpt2) {                                                    /* words straight from the text */
        size_t at, end;
        for (at = 0; at < view.length; at = end, t->word++) {
            end = twi_gpt2_word(&t->unicode, view.text, view.length, at);
            if (!twi_cut_part(t, out, &view, at, end)) return false;
        }
        return true;
    }
    if (t->model == TWI_M_SP_UNIGRAM || t->model == TWI_M_SP_BPE) {
        if (!twi_sp_normalize(t, &view, &t->buffer[0])) return false;
        view = twi_source_of(&t->buffer[0]);
        for (i = 0; i < view.length; i = j, t->word++) {
            j = view.length;
            if (t->sp_words) for (j = i + 1; j < view.length; j++)
                if (view.length - j >= 3 && memcmp(view.text + j, TWI_BLANK_MARK, 3) == 0
                    && (j < 3 || memcmp(view.text + j - 3, TWI_BLANK_MARK, 3) != 0)) break;
            if (!twi_cut_part(t, out, &view, i, j)) return false;
        }
        return true;
    }
    if (!twi_normalize(t, &view, &free_buffer)) return false;
    if (!twi_find_added(t, view.text, view.length, 1, &t->parts[0])) return false;
    if (!twi_split(t, &view, &free_buffer)) return false;
    for (i = 0; i < t->parts[0].count; i++) {
        const twi_part *part = &t->parts[0].list[i];
        if (part->id >= 0) { if (!twi_put_added(t, out, &view, part)) return false; continue; }
        if (!twi_cut_part(t, out, &view, part->begin, part->end)) return false;
        t->word++;
    }
    return true;
}

/* The text, or a copy in which U+FFFD stands for each byte that is not UTF-8. */
static bool twi_clean_utf8(tw_tokenizer *t, const char **s, size_t *n) {
    size_t i, size;
    uint32_t c;
    bool valid;
    twi_origin o;
    if (twi_is_utf8(*s, *n)) return true;
    o.begin = o.end = 0;
    t->clean.length = 0;
    for (i = 0; i < *n; i += size) {
        size = (size_t)twi_utf8_read(*s + i, *n - i, &c, &valid);
        if (!twi_buffer_put(&t->region, &t->clean, c, o)) return false;
    }
    *s = t->clean.text;
    *n = t->clean.length;
    return true;
}

/* Byte positions become code points.  They mostly go up, so each is counted from the one before. */
typedef struct twi_counter { const char *s; size_t n, byte, chars; } twi_counter;

static uint32_t twi_code_points(twi_counter *k, size_t byte) {
    if (byte > k->n) byte = k->n;
    for (; k->byte < byte; k->byte++) k->chars += !twi_is_inside(k->s + k->byte);
    for (; k->byte > byte; k->byte--) k->chars -= !twi_is_inside(k->s + k->byte - 1);
    return (uint32_t)k->chars;
}

static bool twi_encode_text(tw_tokenizer *t, const char *s, size_t n, twi_tokens *out) {
    size_t i;
    twi_counter counter;
    twi_source view;
    out->count = 0;
    t->word = 0;
    if (n >= INT32_MAX) { twi_fail(t->tw, TW_E_RANGE, "tokenizer: a text of 2 GiB or more"); return false; }
    if (!twi_clean_utf8(t, &s, &n) || !twi_find_added(t, s, n, 0, &t->raw_parts)) return false;
    view.origins = NULL;
    for (i = 0; i < t->raw_parts.count; i++) {
        twi_part part = t->raw_parts.list[i];
        if (part.id >= 0) {
            view.text = s;
            view.length = n;
            view.base = 0;
            if (!twi_put_added(t, out, &view, &part)) return false;
            continue;
        }
        view.text = s + part.begin;
        view.length = part.end - part.begin;
        view.base = part.begin;
        if (!twi_encode_segment(t, view, out)) return false;
    }
    counter.s = s;
    counter.n = n;
    counter.byte = counter.chars = 0;
    if (!twi_is_ascii(s, n)) for (i = 0; i < out->count; i++) {
        out->list[i].begin = twi_code_points(&counter, out->list[i].begin);
        out->list[i].end = twi_code_points(&counter, out->list[i].end);
    }
    return true;
}

/* -- truncation, templates, padding ------------------------------------------------------------ */

static bool twi_truncate(tw_tokenizer *t, const tw_tokenize_desc *how, bool has_pair, size_t extra, size_t keep[2]) {
    size_t room, total, more, target;
    keep[0] = t->tokens[0].count;
    keep[1] = has_pair ? t->tokens[1].count : 0;
    if (how->max_length == 0) return true;
    if (how->max_length < 0 || (size_t)how->max_length < extra) {
        twi_fail(t->tw, TW_E_RANGE, "tokenize: max_length %lld has no room for the %lu special tokens",
                 (long long)how->max_length, (unsigned long)extra);
        return false;
    }
    room = (size_t)how->max_length - extra;
    total = keep[0] + keep[1];
    if (total <= room) return true;
    if (room == 0) { keep[0] = keep[1] = 0; return true; }
    more = total - room;
    if (how->truncation != TW_LONGEST_FIRST) {
        target = how->truncation == TW_ONLY_SECOND ? 1 : 0;
        if ((target == 1 && !has_pair) || keep[target] <= more) {
            twi_fail(t->tw, TW_E_RANGE, "tokenize: the %s text alone cannot be cut to max_length %lld", target
                     ? "second" : "first", (long long)how->max_length);
            return false;
        }
        keep[target] -= more;
    } else if (!has_pair) keep[0] = room;
    else {
        size_t shorter = keep[0] <= keep[1] ? 0 : 1, least = keep[shorter], most;
        most = least > room ? least : room - least > least ? room - least : least;
        if (least + most > room) { least = room / 2; most = least + room % 2; }
        keep[shorter] = least;
        if (keep[1 - shorter] > most) keep[1 - shorter] = most;
    }
    return true;
}

/* trim_offsets: a token that begins or ends with white space does not point to it. */
static void twi_trim(const tw_tokenizer *t, twi_token *tokens, size_t n, bool prefix_space) {
    size_t i;
    for (i = 0; i < n; i++) {
        uint32_t blanks = tokens[i].added ? tokens[i].blanks
            : t->blanks[tokens[i].id], before = blanks >> 16, behind = blanks & 65535;
        if (before && !(prefix_space && before == 1 && (i == 0 || tokens[i].begin == 0))) {
            tokens[i].begin += before;
            if (tokens[i].begin > tokens[i].end) tokens[i].begin = tokens[i].end;
        }
        if (behind && tokens[i].end >= behind) {
            tokens[i].end -= behind;
            if (tokens[i].end < tokens[i].begin) tokens[i].end = tokens[i].begin;
        }
    }
}

typedef struct twi_lists {
    int32_t *ids, *type_ids, *attention_mask, *special_mask, *words; int64_t (*offsets)[2]; size_t count; } twi_lists;

static void twi_list_put(twi_lists *lists, int32_t id, int32_t type, const twi_token *token, bool padding) {
    size_t i = lists->count++;
    lists->ids[i] = id;
    lists->type_ids[i] = type;
    lists->attention_mask[i] = !padding;
    lists->special_mask[i] = !token;
    lists->words[i] = token ? token->word : -1;
    lists->offsets[i][0] = token ? (int64_t)token->begin : 0;
    lists->offsets[i][1] = token ? (int64_t)token->end : 0;
}

static bool twi_lists_reserve(tw_tokenizer *t, twi_lists *lists, size_t count) {
    size_t bytes;
    void *memory;
    if (!twi_multiply(count + 1, 2 * sizeof(int64_t) + 5 * sizeof(int32_t), &bytes)) bytes = SIZE_MAX;
    memory = twi_grow(&t->region, t->encoding, 0, &t->encoding_capacity, bytes, 1);
    if (!memory) return false;
    t->encoding = memory;
    lists->offsets = (int64_t (*)[2])memory;
    lists->ids = (int32_t *)(void *)(lists->offsets + count + 1);
    lists->type_ids = lists->ids + count + 1;
    lists->attention_mask = lists->type_ids + count + 1;
    lists->special_mask = lists->attention_mask + count + 1;
    lists->words = lists->special_mask + count + 1;
    lists->count = 0;
    return true;
}

TWDEF int64_t tw_tokenize(tw_tokenizer *t, const char *text, size_t length, const tw_tokenize_desc *how,
                          tw_encoding *out) {
    tw_tokenize_desc plain;
    const twi_template *form;
    twi_template_item bare[2];
    twi_template without;
    size_t keep[2], extra = 0, total, padded, i, j, pads;
    int32_t pad = -1;
    twi_lists lists;
    memset(out, 0, sizeof *out);
    if (!t || tw_failed(t->tw)) return -1;
    memset(&plain, 0, sizeof plain);
    if (!how) how = &plain;
    if (!text && length) { twi_fail(t->tw, TW_E_ARGUMENT, "tokenize: the text is NULL"); return -1; }
    if (how->pad_to < 0 || how->pad_to_multiple_of < 0 || how->pad_to > INT32_MAX
        || how->pad_to_multiple_of > INT32_MAX) {
        twi_fail(t->tw, TW_E_RANGE, "tokenize: padding to a length out of range");
        return -1;
    }
    if (!twi_encode_text(t, text ? text : "", length, &t->tokens[0])) return -1;
    if (how->pair && !twi_encode_text(t, how->pair, how->pair_length, &t->tokens[1])) return -1;
    /* without a template: the first text, the second one as type 1 */
    memset(bare, 0, sizeof bare);
    bare[0].kind = 1;
    bare[1].kind = 2;
    bare[1].type = 1;
    without.items = bare;
    without.count = how->pair ? 2 : 1;
    without.capacity = 0;
    form = !t->has_template ? &without : how->pair ? &t->pair : &t->single;
    for (i = 0; i < form->count && !how->no_special; i++) extra += form->items[i].kind == 0;
    if (!twi_truncate(t, how, how->pair != NULL, extra, keep)) return -1;
    for (total = 0, i = 0; i < form->count; i++)
        total += form->items[i].kind ? keep[form->items[i].kind - 1] : how->no_special ? 0u : 1u;
    padded = how->pad_to ? (size_t)how->pad_to : total;
    if (how->pad_to_multiple_of && padded % (size_t)how->pad_to_multiple_of)
        padded += (size_t)how->pad_to_multiple_of - padded % (size_t)how->pad_to_multiple_of;
    if (padded < total) padded = total;
    pads = padded - total;
    if (pads && (pad = tw_special_id(t, "pad")) < 0) {
        twi_fail(t->tw, TW_E_MISSING, "tokenize: the tokenizer has no padding token");
        return -1;
    }
    if (!twi_lists_reserve(t, &lists, padded)) return -1;
    for (i = 0; how->pad_left && i < pads; i++) twi_list_put(&lists, pad, 0, NULL, true);
    for (j = 0; j < 2; j++) {
        twi_token *kept = t->tokens[j].list + (how->truncate_left
                                               ? t->tokens[j].count - (j == 0 || how->pair ? keep[j]
                                                   : t->tokens[j].count) : 0);
        int trim;
        if (j == 1 && !how->pair) break;
        for (trim = 0; trim < t->trim_count && keep[j]; trim++) twi_trim(t, kept, keep[j], t->trim_prefix_space[trim]);
    }
    for (i = 0; i < form->count; i++) {
        const twi_template_item *item = &form->items[i];
        const twi_tokens *tokens = &t->tokens[item->kind == 2];
        size_t first;
        if (item->kind == 0) {
            if (!how->no_special) twi_list_put(&lists, item->id, item->type, NULL, false);
            continue;
        }
        first = how->truncate_left ? tokens->count - keep[item->kind - 1] : 0;
        for (j = 0; j < keep[item->kind - 1]; j++)
            twi_list_put(&lists, tokens->list[first + j].id, item->type, &tokens->list[first + j], false);
    }
    for (i = 0; !how->pad_left && i < pads; i++) twi_list_put(&lists, pad, 0, NULL, true);
    out->count = (int64_t)lists.count;
    out->ids = lists.ids;
    out->type_ids = lists.type_ids;
    out->attention_mask = lists.attention_mask;
    out->special_mask = lists.special_mask;
    out->words = lists.words;
    out->offsets = (const int64_t (*)[2])lists.offsets;
    return out->count;
}

/* -- the vocabulary, asked from outside -------------------------------------------------------- */

static const twi_added *twi_added_of(const tw_tokenizer *t, int32_t id) {
    return id >= 0 && (size_t)id < t->vocabulary.count && t->added_of[id] ? &t->added[t->added_of[id] - 1] : NULL;
}

TWDEF const char *tw_token(const tw_tokenizer *t, int32_t id) {
    return t ? twi_spelling_of(&t->vocabulary, id, NULL) : NULL;
}
TWDEF int32_t tw_token_id(const tw_tokenizer *t, const char *token) {
    return t && token ? twi_vocabulary_find(&t->vocabulary, token, strlen(token)) : -1;
}
TWDEF int64_t tw_vocab_size(const tw_tokenizer *t) { return t ? (int64_t)t->vocabulary.count : 0; }

static const char *const twi_special_names[TWI_SPECIALS] = { "bos", "eos", "pad", "unk", "cls", "sep", "mask" };

TWDEF int32_t tw_special_id(const tw_tokenizer *t, const char *name) {
    int i;
    for (i = 0; t && name && i < TWI_SPECIALS; i++) if (strcmp(name, twi_special_names[i]) == 0)
        return t->special_ids[i];
    return -1;
}

TWDEF bool tw_is_special(const tw_tokenizer *t, int32_t id) {
    const twi_added *added = t ? twi_added_of(t, id) : NULL;
    return added && added->special;
}

/* -- from ids back to text ------------------------------------------------------------------------
   A decoder is a chain of stages, each of which gets tokens one by one, keeps what it cannot decide yet, and
   hands texts on to the next.  Decoding a list is feeding it and asking for the rest.

   A stage that fuses makes all tokens one; the stages behind it get that one in chunks. */
/* open: the fused token has begun */
typedef struct twi_stage { twi_text held; int64_t count; bool open; } twi_stage;

struct tw_decoder {
    tw_tokenizer *tokenizer;
    tw_decoder   *next;
    bool          skip_special;
    twi_stage    *stages;              /* one for each step, and one for what is done without any */
    twi_text      out, work;
    /* SentencePiece: the first blank is dropped */
    bool          blank_seen, any_text;
};

/* Bytes to valid text: every longest beginning of a character that does not become one is U+FFFD (as Rust and the
   web have it).  Returns how many bytes were decided; without `last`, an unfinished character at the end is not. */
static size_t twi_utf8_lossy(twi_text *out, const char *s, size_t n, bool last) {
    const unsigned char *u = (const unsigned char *)s;
    size_t at = 0, k, need;
    while (at < n) {
        unsigned char c = u[at], low = 0x80, high = 0xBF;
        need = c < 0x80 ? 0u : c < 0xC2 ? 9u : c < 0xE0 ? 1u : c < 0xF0 ? 2u : c < 0xF5 ? 3u : 9u;
        if (c == 0xE0) low = 0xA0;
        if (c == 0xED) high = 0x9F;
        if (c == 0xF0) low = 0x90;
        if (c == 0xF4) high = 0x8F;
        for (k = 1; need < 9 && k <= need; k++) {
            if (at + k >= n) { if (!last) return at; break; }
            if (u[at + k] < low || u[at + k] > high) break;
            low = 0x80;
            high = 0xBF;
        }
        if (need < 9 && k > need) twi_text_bytes(out, s + at, need + 1);
        else { twi_text_bytes(out, "\xEF\xBF\xBD", 3); need = k - 1; }
        at += need + 1;
    }
    return at;
}

/* Appends s with every `from` replaced. */
static void twi_append_replaced(twi_text *out, const char *s, size_t n, const char *from, const char *to) {
    size_t m = strlen(from), i, done = 0;
    for (i = 0; i + m <= n; ) {
        if (memcmp(s + i, from, m) != 0) { i++; continue; }
        twi_text_bytes(out, s + done, i - done);
        twi_text_add(out, to);
        i += m;
        done = i;
    }
    twi_text_bytes(out, s + done, n - done);
}

/* English spacing, as BERT's decoder tidies it up, token by token. */
static void twi_clean_up(twi_text *text, twi_text *work) {
    static const char *const rules[][2] =
        { { " .", "." }, { " ?", "?" }, { " !", "!" }, { " ,", "," }, { " ' ", "'" }, { " n't", "n't" },
        { " 'm", "'m" }, { " do not", " don't" }, { " 's", "'s" }, { " 've", "'ve" }, { " 're", "'re" } };
    size_t i;
    twi_text swap;
    for (i = 0; i < sizeof rules / sizeof *rules; i++) {
        twi_text_clear(work);
        twi_append_replaced(work, twi_text_string(text), text->length, rules[i][0], rules[i][1]);
        swap = *text;
        *text = *work;
        *work = swap;
    }
}

static void twi_stage_put(tw_decoder *d, size_t index, const char *s, size_t n, bool begins, bool ends);

/* Held bytes become text: as one if they are valid, else one U+FFFD for each (as `tokenizers` does). */
static void twi_flush_bytes(tw_decoder *d, size_t index) {
    twi_stage *stage = &d->stages[index];
    size_t i, n = stage->held.length;
    if (n == 0) return;
    if (twi_is_utf8(stage->held.data, n)) twi_stage_put(d, index + 1, stage->held.data, n, true, true);
    else for (i = 0; i < n; i++) twi_stage_put(d, index + 1, "\xEF\xBF\xBD", 3, true, true);
    twi_text_clear(&stage->held);
}

static int twi_hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10
        : -1;
}

/* The byte that "<0x41>" names, or -1. */
static int twi_byte_token(const char *s, size_t n) {
    int high, low;
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    high = s[3] == '+' ? 0 : twi_hex(s[3]);
    low = twi_hex(s[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static void twi_stage_bytes(tw_decoder *d, size_t index, const char *s, size_t n) {          /* byte-level */
    twi_stage *stage = &d->stages[index];
    size_t at, size, done;
    bool mapped = true;
    for (at = 0; at < n && mapped; at += size) mapped = twi_char_byte(twi_char_at(s + at, &size)) >= 0;
    if (!mapped) twi_text_bytes(&stage->held, s, n);
    else for (at = 0; at < n; at += size) twi_text_char(&stage->held, (char)twi_char_byte(twi_char_at(s + at, &size)));
    twi_text_clear(&d->work);
    done = twi_utf8_lossy(&d->work, twi_text_string(&stage->held), stage->held.length, false);
    if (stage->held.data) memmove(stage->held.data, stage->held.data + done, stage->held.length - done);
    stage->held.length -= done;
    if (d->work.length) {
        /* the next stage may use the work text itself */
        twi_text chunk = d->work;
        memset(&d->work, 0, sizeof d->work);
        d->work.region = chunk.region;
        twi_stage_put(d, index + 1, chunk.data, chunk.length, !stage->open, false);
        twi_text_free(&d->work);
        d->work = chunk;
        stage->open = true;
    }
}

static void twi_stage_put(tw_decoder *d, size_t index, const char *s, size_t n, bool begins, bool ends) {
    tw_tokenizer *t = d->tokenizer;
    twi_stage *stage = &d->stages[index];
    const twi_step *step = t->decoders + (index < t->decoder_count ? index : 0);
    twi_text made = twi_text_new(&t->region), spare = twi_text_new(&t->region);
    size_t at, size, begin, end;
    int64_t cut;
    twi_finder f;
    if (index >= t->decoder_count) {
        /* no decoder at all: blanks between tokens */
        if (!t->has_decoder && begins && stage->count++) twi_text_char(&d->out, ' ');
        twi_text_bytes(&d->out, s, n);
        return;
    }
    switch (step->kind) {
    case TWI_D_BYTE_LEVEL: twi_stage_bytes(d, index, s, n); break;
    case TWI_D_FUSE:
        if (step->split) twi_text_bytes(&stage->held, s, n);                /* split: what follows wants all of it */
        else twi_stage_put(d, index + 1, s, n, !stage->open, false);
        stage->open = true;
        break;
    case TWI_D_WORDPIECE:
        if (stage->count++) {
            if (n >= step->text_length && memcmp(s, step->text, step->text_length) == 0) {
                s += step->text_length;
                n -= step->text_length;
            }
            else twi_text_char(&made, ' ');
        }
        twi_text_bytes(&made, s, n);
        if (step->cleanup) twi_clean_up(&made, &spare);
        twi_stage_put(d, index + 1, twi_text_string(&made), made.length, true, true);
        break;
    case TWI_D_METASPACE:
        for (at = 0; at < n; at += size) {
            if (twi_char_at(s + at, &size) != step->code) twi_text_bytes(&made, s + at, size);
            else if (stage->count || step->prepend == TWI_NEVER) twi_text_char(&made, ' ');
        }
        stage->count++;
        twi_stage_put(d, index + 1, twi_text_string(&made), made.length, true, true);
        break;
    case TWI_D_BYTE_FALLBACK:
        if (twi_byte_token(s, n) >= 0) { twi_text_char(&stage->held, (char)twi_byte_token(s, n)); break; }
        twi_flush_bytes(d, index);
        twi_stage_put(d, index + 1, s, n, true, true);
        break;
    /* count: characters that may still be cut */
    case TWI_D_STRIP:
        if (begins) stage->count = step->start;
        for (at = 0; at < n && stage->count > 0; at += size, stage->count--)
            if (twi_char_at(s + at, &size) != step->code) { stage->count = 0; break; }
        if (begins && ends) for (cut = step->stop; cut > 0 && n > at; cut--) {
            for (end = n - 1; end > at && twi_is_inside(s + end); end--) continue;
            if (twi_char_at(s + end, &size) != step->code) break;
            n = end;
        }
        twi_stage_put(d, index + 1, s + at, n - at, begins, ends);
        break;
    case TWI_D_REPLACE:
        f = twi_finder_of(t, step);
        f.steps = 1000 + 500 * (int64_t)n;
        for (at = 0; at < n && twi_find(&f, s, n, at, &begin, &end); at = end) {
            twi_text_bytes(&made, s + at, begin - at);
            twi_text_bytes(&made, step->content, step->content_length);
        }
        twi_text_bytes(&made, s + at, n - at);
        twi_stage_put(d, index + 1, twi_text_string(&made), made.length, begins, ends);
        break;
    /* BPE's suffix is a blank, but at the end */
    default:
        if (stage->count++) {
            twi_append_replaced(&made, twi_text_string(&stage->held), stage->held.length, step->text, " ");
            twi_stage_put(d, index + 1, twi_text_string(&made), made.length, true, true);
        }
        twi_text_clear(&stage->held);
        twi_text_bytes(&stage->held, s, n);
    }
    if (made.failed) d->out.failed = true;
    twi_text_free(&made);
    twi_text_free(&spare);
}

/* The ids are all: every stage gives what it held, the first one first. */
static void twi_stages_end(tw_decoder *d) {
    tw_tokenizer *t = d->tokenizer;
    size_t i;
    for (i = 0; i < t->decoder_count; i++) {
        twi_stage *stage = &d->stages[i];
        twi_text made = twi_text_new(&t->region);
        switch (t->decoders[i].kind) {
        case TWI_D_BYTE_LEVEL:
            twi_utf8_lossy(&made, twi_text_string(&stage->held), stage->held.length, true);
            twi_stage_put(d, i + 1, twi_text_string(&made), made.length, !stage->open, true);
            break;
        case TWI_D_FUSE:
            if (t->decoders[i].split)
                twi_stage_put(d, i + 1, twi_text_string(&stage->held), stage->held.length, true, true);
            else if (stage->open) twi_stage_put(d, i + 1, "", 0, false, true);
            break;
        case TWI_D_BYTE_FALLBACK: twi_flush_bytes(d, i); break;
        case TWI_D_BPE:
            twi_append_replaced(&made, twi_text_string(&stage->held), stage->held.length, t->decoders[i].text, "");
            if (stage->count) twi_stage_put(d, i + 1, twi_text_string(&made), made.length, true, true);
            break;
        default: break;
        }
        if (made.failed) d->out.failed = true;
        twi_text_free(&made);
    }
}

/* SentencePiece's way back: U+2581 is a blank, but for the one in front; byte pieces are characters again. */
static void twi_sp_decode_bytes(tw_decoder *d, bool last) {
    twi_text *held = &d->stages[0].held;
    size_t at = 0, need;
    while (at < held->length) {
        uint32_t c;
        bool valid;
        unsigned char lead = (unsigned char)held->data[at];
        size_t n = (size_t)twi_utf8_read(held->data + at, held->length - at, &c, &valid);
        need = lead >= 0xF0 ? 4u : lead >= 0xE0 ? 3u : lead >= 0xC0 ? 2u : 1u;
        if (!valid && !last && held->length - at < need) break;
        if (valid) twi_text_bytes(&d->out, held->data + at, n); else twi_text_bytes(&d->out, "\xEF\xBF\xBD", 3);
        at += n;
        d->any_text = true;
    }
    if (at) memmove(held->data, held->data + at, held->length - at);
    held->length -= at;
}

static void twi_sp_decode(tw_decoder *d, int32_t id, const char *s, size_t n) {
    tw_tokenizer *t = d->tokenizer;
    size_t at, start = d->out.length;
    bool expects_blank;
    if ((size_t)id < t->model_size && t->types[id] == TWI_PIECE_BYTE) {
        twi_text_char(&d->stages[0].held, (char)twi_byte_token(s, n));
        twi_sp_decode_bytes(d, false);
        return;
    }
    twi_sp_decode_bytes(d, true);
    expects_blank = !d->blank_seen && !d->any_text;
    d->blank_seen = false;
    if (twi_added_of(t, id) && (size_t)id >= t->model_size) twi_text_bytes(&d->out, s, n);
    else if (t->types[id] == TWI_PIECE_CONTROL) twi_text_bytes(&d->out, s, n);
    else if (t->types[id] == TWI_PIECE_UNKNOWN) twi_text_bytes(&d->out, t->sp_unknown_surface, t->sp_unknown_length);
    else {
        if (expects_blank && (t->sp_dummy_prefix || t->sp_extra_whitespace) && n >= 3
            && memcmp(s, TWI_BLANK_MARK, 3) == 0) {
            s += 3;
            n -= 3;
            d->blank_seen = !t->sp_extra_whitespace;
        }
        for (at = 0; at < n; )
            if (n - at >= 3 && memcmp(s + at, TWI_BLANK_MARK, 3) == 0) { twi_text_char(&d->out, ' '); at += 3; }
            else twi_text_char(&d->out, s[at++]);
    }
    if (d->out.length > start) d->any_text = true;
}

static void twi_decoder_reset(tw_decoder *d) {
    size_t i;
    for (i = 0; i <= d->tokenizer->decoder_count; i++) {
        twi_text_clear(&d->stages[i].held);
        d->stages[i].count = 0;
        d->stages[i].open = false;
    }
    d->blank_seen = d->any_text = false;
}

static void twi_decoder_take(tw_decoder *d, int32_t id) {
    tw_tokenizer *t = d->tokenizer;
    size_t n;
    const twi_added *added = twi_added_of(t, id);
    const char *s = twi_spelling_of(&t->vocabulary, id, &n);
    if (!s || (added && added->special && d->skip_special)) return;
    if (added && added->normalized) { s = added->text; n = added->length; }
    if (t->model == TWI_M_SP_UNIGRAM || t->model == TWI_M_SP_BPE) twi_sp_decode(d, id, s, n);
    else twi_stage_put(d, 0, s, n, true, true);
}

static void twi_decoder_finish(tw_decoder *d) {
    if (d->tokenizer->model == TWI_M_SP_UNIGRAM || d->tokenizer->model == TWI_M_SP_BPE) twi_sp_decode_bytes(d, true);
    else twi_stages_end(d);
    twi_decoder_reset(d);
}

TWDEF tw_decoder *tw_new_decoder(tw_tokenizer *t, bool skip_special) {
    tw_decoder *d;
    size_t i;
    if (!t) return NULL;
    d = (tw_decoder *)twi_alloc(&t->region, 1, sizeof *d);
    if (!d) return NULL;
    d->stages = (twi_stage *)twi_alloc(&t->region, t->decoder_count + 1, sizeof *d->stages);
    if (!d->stages) { twi_free(&t->region, d); return NULL; }
    d->tokenizer = t;
    d->skip_special = skip_special;
    d->out = twi_text_new(&t->region);
    d->work = twi_text_new(&t->region);
    for (i = 0; i <= t->decoder_count; i++) d->stages[i].held = twi_text_new(&t->region);
    return d;
}

TWDEF const char *tw_decoder_feed(tw_decoder *d, int32_t id) {
    if (!d) return "";
    twi_text_clear(&d->out);
    twi_decoder_take(d, id);
    return twi_text_string(&d->out);
}

TWDEF const char *tw_decoder_end(tw_decoder *d) {
    if (!d) return "";
    twi_text_clear(&d->out);
    twi_decoder_finish(d);
    return twi_text_string(&d->out);
}

TWDEF void tw_free_decoder(tw_decoder *d) {
    twi_region *region;
    size_t i;
    if (!d) return;
    region = &d->tokenizer->region;
    for (i = 0; i <= d->tokenizer->decoder_count; i++) twi_text_free(&d->stages[i].held);
    twi_text_free(&d->out);
    twi_text_free(&d->work);
    twi_free(region, d->stages);
    twi_free(region, d);
}

TWDEF const char *tw_detokenize_length(tw_tokenizer *t, const int32_t *ids, int64_t count, bool skip_special,
                                       size_t *length) {
    int64_t i;
    tw_decoder *d;
    if (length) *length = 0;
    if (!t || (!ids && count > 0)) return "";
    if (!t->own_decoder) t->own_decoder = tw_new_decoder(t, false);
    d = t->own_decoder;
    if (!d) return "";
    twi_text_clear(&d->out);
    d->skip_special = skip_special;
    for (i = 0; i < count; i++) twi_decoder_take(d, ids[i]);
    twi_decoder_finish(d);
    if (length) *length = d->out.length;
    return twi_text_string(&d->out);
}

TWDEF const char *tw_detokenize(tw_tokenizer *t, const int32_t *ids, int64_t count, bool skip_special) {
    return tw_detokenize_length(t, ids, count, skip_special, NULL);
}

/* -- opening: the steps of a tokenizer.json ---------------------------------------------------- */

TWI_PRINTF(2, 3) static bool twi_bad_tokenizer(tw_tokenizer *t, const char *format, ...) {
    char why[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    twi_fail(t->tw, TW_E_FORMAT, "tokenizer: %s", why);
    return false;
}

/* A string of the file that outlives it. */
static const char *twi_keep_string(tw_tokenizer *t, const tw_json *value, size_t *length) {
    *length = tw_json_string_length(value);
    return twi_copy_text(&t->region, tw_json_string(value, ""), *length);
}

static uint32_t twi_one_char(const tw_json *value, uint32_t otherwise) {
    size_t size, n = tw_json_string_length(value);
    uint32_t c;
    if (n == 0) return otherwise;
    c = twi_char_at(tw_json_string(value, ""), &size);
    return size == n ? c : otherwise;
}

static bool twi_read_behavior(tw_tokenizer *t, const tw_json *value, twi_behavior *out, twi_behavior otherwise) {
    static const struct { const char *name; twi_behavior behavior; } names[] =
        { { "Removed", TWI_REMOVED }, { "Isolated", TWI_ISOLATED },
        { "MergedWithPrevious", TWI_WITH_PREVIOUS }, { "MergedWithNext", TWI_WITH_NEXT },
            { "Contiguous", TWI_CONTIGUOUS } };
    const char *name = tw_json_string(value, NULL);
    size_t i;
    *out = otherwise;
    if (!name) return true;
    for (i = 0; i < sizeof names / sizeof *names; i++) if (strcmp(name, names[i].name) == 0) {
        *out = names[i].behavior;
        return true;
    }
    return twi_bad_tokenizer(t, "\"%s\" is no way to split (tokenizer.json)", name);
}

/* {"String": "..."} or {"Regex": "..."}, or the string itself. */
static bool twi_read_pattern(tw_tokenizer *t, const tw_json *value, twi_step *step) {
    const tw_json *regex = tw_json_get(value, "Regex"), *text = tw_json_get(value, "String");
    if (tw_json_type(value) == TW_JSON_STRING) text = value;
    if (regex) {
        step->pattern = twi_compile_pattern(&t->region, tw_json_string(regex, ""), tw_json_string_length(regex));
        return step->pattern != NULL;
    }
    if (!text) return twi_bad_tokenizer(t, "a pattern is neither a String nor a Regex (tokenizer.json)");
    step->text = twi_keep_string(t, text, &step->text_length);
    return step->text != NULL;
}

/* Base64, as tokenizer.json has the character map. */
static unsigned char *twi_read_base64(tw_tokenizer *t, const char *s, size_t n, size_t *length) {
    unsigned char *out = (unsigned char *)twi_alloc(&t->region, n / 4 * 3 + 4, 1);
    uint32_t bits = 0, have = 0;
    size_t i;
    *length = 0;
    for (i = 0; out && i < n && s[i] != '='; i++) {
        char c = s[i];
        uint32_t digit = c >= 'A' && c <= 'Z' ? (uint32_t)(c - 'A') : c >= 'a' && c <= 'z' ? (uint32_t)(c - 'a') + 26
                       : c >= '0' && c <= '9' ? (uint32_t)(c - '0') + 52 : c == '+' ? 62 : c == '/' ? 63 : 64;
        if (digit == 64) { twi_bad_tokenizer(t, "precompiled_charsmap is not base64 (tokenizer.json)"); return NULL; }
        bits = bits << 6 | digit;
        have += 6;
        if (have >= 8) { have -= 8; out[(*length)++] = (unsigned char)(bits >> have & 255u); }
    }
    return out;
}

static bool twi_read_metaspace(tw_tokenizer *t, const tw_json *j, twi_step *step) {
    const char *scheme = tw_json_string(tw_json_get(j, "prepend_scheme"), NULL);
    step->code = twi_one_char(tw_json_get(j, "replacement"), 0x2581);
    step->split = tw_json_bool(tw_json_get(j, "split"), true);
    step->behavior = TWI_WITH_NEXT;
    step->prepend = TWI_ALWAYS;
    if (!scheme) { if (!tw_json_bool(tw_json_get(j, "add_prefix_space"), true)) step->prepend = TWI_NEVER; }
    else if (strcmp(scheme, "first") == 0) step->prepend = TWI_FIRST;
    else if (strcmp(scheme, "never") == 0) step->prepend = TWI_NEVER;
    else if (strcmp(scheme, "always") != 0)
        return twi_bad_tokenizer(t, "\"%s\" is no prepend_scheme (tokenizer.json)", scheme);
    return true;
}

/* Reads one step; the group is 'n' for normalizers, 's' for splitters ("pre-tokenizers"), 'd' for decoders. */
static bool twi_read_step(tw_tokenizer *t, const tw_json *j, const char *type, char group, twi_step *step) {
#define TWI_FLAG(key, otherwise) tw_json_bool(tw_json_get(j, key), otherwise)
    static const struct { char group; const char *name; twi_step_kind kind; } rows[] = {
        { 'n', "BertNormalizer", TWI_N_BERT }, { 'n', "NFD", TWI_N_FORM }, { 'n', "NFC", TWI_N_FORM },
            { 'n', "NFKD", TWI_N_FORM },
        { 'n', "NFKC", TWI_N_FORM }, { 'n', "Lowercase", TWI_N_LOWERCASE },
            { 'n', "StripAccents", TWI_N_STRIP_ACCENTS },
        { 'n', "Strip", TWI_N_STRIP }, { 'n', "Replace", TWI_N_REPLACE }, { 'n', "Prepend", TWI_N_PREPEND },
        { 'n', "Precompiled", TWI_N_CHARSMAP }, { 'n', "Nmt", TWI_N_NMT }, { 'n', "ByteLevel", TWI_N_BYTES },
        { 's', "ByteLevel", TWI_S_BYTE_LEVEL }, { 's', "Whitespace", TWI_S_WORDS },
            { 's', "WhitespaceSplit", TWI_S_KIND },
        { 's', "Metaspace", TWI_S_METASPACE }, { 's', "Split", TWI_S_PATTERN }, { 's', "Punctuation", TWI_S_KIND },
            { 's', "Digits", TWI_S_KIND },
        { 's', "CharDelimiterSplit", TWI_S_CHARACTER }, { 's', "Delimiter", TWI_S_CHARACTER },
            { 's', "FixedLength", TWI_S_LENGTH },
        { 'd', "ByteLevel", TWI_D_BYTE_LEVEL }, { 'd', "WordPiece", TWI_D_WORDPIECE },
            { 'd', "Metaspace", TWI_D_METASPACE },
        { 'd', "ByteFallback", TWI_D_BYTE_FALLBACK }, { 'd', "Fuse", TWI_D_FUSE }, { 'd', "Strip", TWI_D_STRIP },
        { 'd', "Replace", TWI_D_REPLACE }, { 'd', "BPEDecoder", TWI_D_BPE } };
    const tw_json *text;
    unsigned char *map;
    size_t i, length;
    for (i = 0; i < sizeof rows / sizeof *rows; i++) if (rows[i].group == group && strcmp(rows[i].name, type) == 0)
        break;
    if (i == sizeof rows / sizeof *rows) {
        twi_fail(t->tw, TW_E_UNSUPPORTED, "tokenizer.json: the step \"%s\" is not supported", type);
        return false;
    }
    step->kind = rows[i].kind;
    step->behavior = TWI_ISOLATED;
    switch (step->kind) {
    case TWI_N_BERT:
        step->clean = TWI_FLAG("clean_text", true);
        step->chinese = TWI_FLAG("handle_chinese_chars", true);
        step->lowercase = TWI_FLAG("lowercase", true);
        step->strip_accents = TWI_FLAG("strip_accents", step->lowercase);
        return true;
    case TWI_N_FORM: step->compose = type[strlen(type) - 1] == 'C'; step->compatible = type[2] == 'K'; return true;
    case TWI_N_STRIP: step->left = TWI_FLAG("strip_left", true); step->right = TWI_FLAG("strip_right", true);
    return true;
    case TWI_N_REPLACE:
    case TWI_D_REPLACE:
        step->content = twi_keep_string(t, tw_json_get(j, "content"), &step->content_length);
        return step->content && twi_read_pattern(t, tw_json_get(j, "pattern"), step);
    case TWI_N_PREPEND: step->text = twi_keep_string(t, tw_json_get(j, "prepend"), &step->text_length);
    return step->text != NULL;
    case TWI_N_CHARSMAP:
        text = tw_json_get(j, "precompiled_charsmap");
        map = twi_read_base64(t, tw_json_string(text, ""), tw_json_string_length(text), &length);
        if (!map || !twi_open_charsmap(t->tw, &step->map, map, length) || !twi_make_clusters(&t->region, &t->unicode))
            return false;
        return twi_is_utf8(step->map.texts, step->map.text_bytes)
            || twi_bad_tokenizer(t, "precompiled_charsmap's texts are not UTF-8 (tokenizer.json)");
    case TWI_S_BYTE_LEVEL:
        step->prefix_space = TWI_FLAG("add_prefix_space", true);
        step->use_regex = TWI_FLAG("use_regex", true);
        return true;
    case TWI_S_WORDS: step->invert = true; step->behavior = TWI_REMOVED; return true;
    case TWI_S_KIND:
        step->kinds = type[0] == 'W' ? TWI_IS_SPACE : type[0] == 'P' ? TWI_IS_PUNCTUATION : TWI_IS_NUMERIC;
        if (type[0] == 'W') step->behavior = TWI_REMOVED;
        if (type[0] == 'D') step->behavior = TWI_FLAG("individual_digits", false) ? TWI_ISOLATED : TWI_CONTIGUOUS;
        return type[0] != 'P' || twi_read_behavior(t, tw_json_get(j, "behavior"), &step->behavior, TWI_ISOLATED);
    case TWI_S_METASPACE:
    case TWI_D_METASPACE: return twi_read_metaspace(t, j, step);
    case TWI_S_PATTERN:
        step->invert = TWI_FLAG("invert", false);
        return twi_read_behavior(t, tw_json_get(j, "behavior"), &step->behavior, TWI_ISOLATED)
            && twi_read_pattern(t, tw_json_get(j, "pattern"), step);
    case TWI_S_CHARACTER:
        step->code = twi_one_char(tw_json_get(j, "delimiter"), UINT32_MAX);
        step->behavior = TWI_REMOVED;
        return true;
    case TWI_S_LENGTH:
        step->start = tw_json_int(tw_json_get(j, "length"), 5);
        return step->start > 0 || twi_bad_tokenizer(t, "FixedLength of %lld (tokenizer.json)", (long long)step->start);
    case TWI_D_WORDPIECE:
        step->cleanup = TWI_FLAG("cleanup", true);
        step->text = twi_keep_string(t, tw_json_get(j, "prefix"), &step->text_length);
        return step->text != NULL;
    case TWI_D_STRIP:
        step->code = twi_one_char(tw_json_get(j, "content"), ' ');
        step->start = tw_json_int(tw_json_get(j, "start"), 0);
        step->stop = tw_json_int(tw_json_get(j, "stop"), 0);
        return true;
    case TWI_D_BPE:
        text = tw_json_get(j, "suffix");
        step->text = twi_keep_string(t, text, &step->text_length);
        return step->text && (step->text_length > 0 || twi_bad_tokenizer(t, "an empty suffix (tokenizer.json)"));
    default: return true;
    }
#undef TWI_FLAG
}

/* Reads a group of steps; a Sequence stands for its parts.  BertPreTokenizer is two: at blanks, then at punctuation. */
enum { TWI_MAX_STEPS = 32, TWI_MAX_NESTING = 16 };

static bool twi_read_steps(tw_tokenizer *t, const tw_json *j, char group, twi_step **out, size_t *count) {
    const char *list_name = group == 'n' ? "normalizers" : group == 's' ? "pretokenizers" : "decoders";
    const tw_json *open[TWI_MAX_NESTING];
    int64_t next[TWI_MAX_NESTING];
    int depth = 0;
    if (!j || tw_json_type(j) == TW_JSON_NULL) return true;
    *out = (twi_step *)twi_alloc(&t->region, TWI_MAX_STEPS, sizeof **out);
    if (!*out) return false;
    for (;;) {
        const char *type = tw_json_string(tw_json_get(j, "type"), NULL);
        if (!type) return twi_bad_tokenizer(t, "a step has no type (tokenizer.json)");
        if (strcmp(type, "Sequence") == 0) {
            if (depth == TWI_MAX_NESTING) return twi_bad_tokenizer(t, "steps are nested too deeply (tokenizer.json)");
            open[depth] = tw_json_get(j, list_name);
            next[depth++] = 0;
        } else {
            bool bert = group == 's' && strcmp(type, "BertPreTokenizer") == 0;
            if (*count + (bert ? 2 : 1) > TWI_MAX_STEPS)
                return twi_bad_tokenizer(t, "there are too many steps (tokenizer.json)");
            if (bert && !twi_read_step(t, j, "WhitespaceSplit", group, &(*out)[(*count)++])) return false;
            if (!twi_read_step(t, j, bert ? "Punctuation" : type, group, &(*out)[*count])) return false;
            if (bert) (*out)[*count].behavior = TWI_ISOLATED;
            ++*count;
        }
        while (depth > 0 && next[depth - 1] >= tw_json_count(open[depth - 1])) depth--;
        if (depth == 0) return true;
        j = tw_json_at(open[depth - 1], next[depth - 1]++);
    }
}

/* -- opening: templates ------------------------------------------------------------------------ */

static bool twi_template_put(tw_tokenizer *t, twi_template *form, int kind, int64_t id, int64_t type) {
    void *grown;
    if (id < 0 || id >= INT32_MAX || type < 0 || type >= INT32_MAX)
        return twi_bad_tokenizer(t, "an id of the post-processor is out of range");
    grown = twi_grow(&t->region, form->items, form->count, &form->capacity, form->count + 1, sizeof *form->items);
    if (!grown) return false;
    form->items = (twi_template_item *)grown;
    form->items[form->count].kind = kind;
    form->items[form->count].id = (int32_t)id;
    form->items[form->count++].type = (int32_t)type;
    return true;
}

/* cls A sep, and for pairs cls A sep B sep (BERT) or cls A sep sep B sep, all of type 0 (RoBERTa). */
static bool twi_bert_template(tw_tokenizer *t, int64_t cls, int64_t sep, bool roberta) {
    t->has_template = true;
    return twi_template_put(t, &t->single, 0, cls, 0) && twi_template_put(t, &t->single, 1, 0, 0)
        && twi_template_put(t, &t->single, 0, sep, 0)
        && twi_template_put(t, &t->pair, 0, cls, 0) && twi_template_put(t, &t->pair, 1, 0, 0)
            && twi_template_put(t, &t->pair, 0, sep, 0)
        && (!roberta || twi_template_put(t, &t->pair, 0, sep, 0)) && twi_template_put(t, &t->pair, 2, 0, !roberta)
            && twi_template_put(t, &t->pair, 0, sep, !roberta);
}

static bool twi_read_template(tw_tokenizer *t, const tw_json *pieces, const tw_json *specials, bool pair,
                              twi_template *form) {
    int64_t i, k;
    for (i = 0; i < tw_json_count(pieces); i++) {
        const tw_json *piece = tw_json_at(pieces, i), *sequence = tw_json_get(piece, "Sequence"),
            *special = tw_json_get(piece, "SpecialToken");
        int64_t type = tw_json_int(tw_json_get(sequence ? sequence : special, "type_id"), 0);
        const char *id = tw_json_string(tw_json_get(sequence ? sequence : special, "id"), "");
        if (sequence) {
            if (id[0] == 'B' && !pair)
                return twi_bad_tokenizer(t, "the template of one text asks for a second one (tokenizer.json)");
            if (!twi_template_put(t, form, id[0] == 'B' ? 2 : 1, 0, type)) return false;
        } else {
            const tw_json *ids = tw_json_get(tw_json_get(specials, id), "ids");
            if (!special || tw_json_count(ids) == 0)
                return twi_bad_tokenizer(t,
                                         "the template names a token that it does not define: \"%s\" (tokenizer.json)",
                                             id);
            for (k = 0; k < tw_json_count(ids); k++)
                if (!twi_template_put(t, form, 0, tw_json_int(tw_json_at(ids, k), -1), type)) return false;
        }
    }
    return true;
}

static bool twi_read_post_processor(tw_tokenizer *t, const tw_json *j) {
    const tw_json *list = NULL;
    int64_t next = 0, i;
    bool nested = false;
    if (!j || tw_json_type(j) == TW_JSON_NULL) return true;
    for (;;) {
        const char *type = tw_json_string(tw_json_get(j, "type"), "");
        bool byte_level = strcmp(type, "ByteLevel") == 0, roberta = strcmp(type, "RobertaProcessing") == 0,
            bert = strcmp(type, "BertProcessing") == 0;
        if (strcmp(type, "Sequence") == 0 && !nested) { list = tw_json_get(j, "processors"); nested = true; }
        else if (byte_level || roberta || bert) {
            if (!bert && tw_json_bool(tw_json_get(j, "trim_offsets"), true)) {
                if (t->trim_count == TWI_MAX_TRIMS)
                    return twi_bad_tokenizer(t, "offsets are trimmed too often (tokenizer.json)");
                t->trim_prefix_space[t->trim_count++] = tw_json_bool(tw_json_get(j, "add_prefix_space"), true);
            }
            if (!byte_level) {
                if (t->has_template) return twi_bad_tokenizer(t, "two post-processors add tokens (tokenizer.json)");
                if (!twi_bert_template(t, tw_json_int(tw_json_at(tw_json_get(j, "cls"), 1), -1),
                                       tw_json_int(tw_json_at(tw_json_get(j, "sep"), 1), -1), roberta)) return false;
            }
        } else if (strcmp(type, "TemplateProcessing") == 0) {
            const tw_json *specials = tw_json_get(j, "special_tokens");
            if (t->has_template) return twi_bad_tokenizer(t, "two post-processors add tokens (tokenizer.json)");
            t->has_template = true;
            if (!twi_read_template(t, tw_json_get(j, "single"), specials, false, &t->single)) return false;
            if (!twi_read_template(t, tw_json_get(j, "pair"), specials, true, &t->pair)) return false;
        } else {
            twi_fail(t->tw, TW_E_UNSUPPORTED, "tokenizer.json: the post-processor \"%s\" is not supported", type);
            return false;
        }
        if (next >= tw_json_count(list)) break;
        j = tw_json_at(list, next++);
    }
    for (i = 0; i < (int64_t)(t->single.count + t->pair.count); i++) {
        const twi_template_item *item = i < (int64_t)t->single.count ? &t->single.items[i]
            : &t->pair.items[i - (int64_t)t->single.count];
        if (item->kind == 0 && item->id < 0) return twi_bad_tokenizer(t, "the post-processor has an id out of range");
    }
    return true;
}

/* -- opening: models --------------------------------------------------------------------------- */

/* {"token": id, ...}.  Ids may have holes, but not wide ones, and no two tokens may share one. */
static bool twi_read_vocabulary(tw_tokenizer *t, const tw_json *vocab, const char *file) {
    int64_t n = tw_json_count(vocab), i, limit = n * 16 + 65536;
    if (tw_json_type(vocab) != TW_JSON_OBJECT)
        return twi_bad_tokenizer(t, "the vocabulary is not an object of ids (%s)", file);
    if (!twi_vocabulary_reindex(&t->vocabulary, (size_t)n + 64)) return false;
    for (i = 0; i < n; i++) {
        const char *token = tw_json_key(vocab, i);
        const tw_json *value = tw_json_at(vocab, i);
        int64_t id = tw_json_int(value, -1);
        if (id < 0 || id >= limit)
            return twi_bad_tokenizer(t, "the id of token \"%s\" is not a number from 0 to %lld (%s)", token,
                                     (long long)limit - 1, file);
        if ((size_t)id < t->vocabulary.count && t->vocabulary.list[id].length >= 0)
            return twi_bad_tokenizer(t, "tokens \"%s\" and \"%s\" share the id %lld (%s)", tw_token(t, (int32_t)id),
                                     token, (long long)id, file);
        if (!twi_vocabulary_put(&t->vocabulary, token, tw_json_key_length(vocab, i), id)) return false;
    }
    t->model_size = (size_t)n;
    return true;
}

/* A merge: both parts and what they make (the second without BPE's prefix) must be in the vocabulary.  The last
   of equal pairs counts. */
static bool twi_put_merge(tw_tokenizer *t, const char *a, size_t na, const char *b, size_t nb, uint32_t rank,
                          const char *file) {
    int32_t left = twi_vocabulary_find(&t->vocabulary, a, na), right = twi_vocabulary_find(&t->vocabulary, b, nb),
        joined = -1;
    uint64_t pair;
    size_t at, skip = nb >= t->prefix_length ? t->prefix_length : nb;
    if (left >= 0 && right >= 0) {
        twi_text_clear(&t->scratch);
        twi_text_bytes(&t->scratch, a, na);
        twi_text_bytes(&t->scratch, b + skip, nb - skip);
        if (t->scratch.failed) return false;
        joined = twi_vocabulary_find(&t->vocabulary, twi_text_string(&t->scratch), t->scratch.length);
    }
    if (joined < 0) return twi_bad_tokenizer(t, "merge %lu, \"%.*s %.*s\", is of tokens that the vocabulary lacks (%s)",
                                             (unsigned long)rank,
                                             (int)(na < 60 ? na : 60), a, (int)(nb < 60 ? nb : 60), b, file);
    pair = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
    for (at = (size_t)twi_mix(pair) & t->merge_mask; t->merges[at].pair && t->merges[at].pair != pair;
        at = (at + 1) & t->merge_mask) continue;
    if (!t->merges[at].pair) t->merge_count++;
    t->merges[at].pair = pair;
    t->merges[at].rank = rank;
    t->merges[at].joined = joined;
    return true;
}

static bool twi_make_merges(tw_tokenizer *t, size_t count) {
    size_t slots = twi_index_slots(count + 1);
    t->merges = (twi_merge *)twi_alloc(&t->region, slots, sizeof *t->merges);
    t->merge_mask = slots - 1;
    return t->merges != NULL;
}

/* "a b", one a line; lines that begin with #version are none. */
static bool twi_read_merge_line(tw_tokenizer *t, const char *s, size_t n, uint32_t *rank, const char *file) {
    const char *blank;
    if (n == 0 || (n >= 8 && memcmp(s, "#version", 8) == 0)) return true;
    blank = (const char *)memchr(s, ' ', n);
    if (!blank || memchr(blank + 1, ' ', n - (size_t)(blank + 1 - s)))
        return twi_bad_tokenizer(t, "merge %lu is not two tokens with a blank between (%s)", (unsigned long)*rank,
                                 file);
    return twi_put_merge(t, s, (size_t)(blank - s), blank + 1, n - (size_t)(blank + 1 - s), (*rank)++, file);
}

static bool twi_read_merges(tw_tokenizer *t, const tw_json *merges) {
    int64_t n = tw_json_count(merges), i;
    uint32_t rank = 0;
    if (tw_json_type(merges) != TW_JSON_ARRAY) return twi_bad_tokenizer(t, "merges are missing (tokenizer.json)");
    if (!twi_make_merges(t, (size_t)n)) return false;
    for (i = 0; i < n; i++) {
        const tw_json *merge = tw_json_at(merges, i), *a = tw_json_at(merge, 0), *b = tw_json_at(merge, 1);
        if (tw_json_type(merge) == TW_JSON_STRING) {
            if (!twi_read_merge_line(t, tw_json_string(merge, ""), tw_json_string_length(merge), &rank,
                                     "tokenizer.json")) return false;
        } else if (tw_json_type(merge) != TW_JSON_ARRAY || tw_json_type(a) != TW_JSON_STRING
                   || tw_json_type(b) != TW_JSON_STRING || tw_json_count(merge) != 2)
            return twi_bad_tokenizer(t, "merge %lld is not two tokens (tokenizer.json)", (long long)i);
        else if (!twi_put_merge(t, tw_json_string(a, ""), tw_json_string_length(a), tw_json_string(b, ""),
                                tw_json_string_length(b), rank++, "tokenizer.json")) return false;
    }
    return true;
}

/* The ids of the 256 bytes: as byte-level characters, or as <0x00> ... <0xFF>. */
static void twi_find_byte_ids(tw_tokenizer *t) {
    unsigned b;
    char text[8];
    for (b = 0; b < 256; b++) {
        if (t->byte_fallback) {
            snprintf(text, sizeof text, "<0x%02X>", b);
            t->byte_ids[b] = twi_vocabulary_find(&t->vocabulary, text, 6);
        }
        else {
            char c[4];
            t->byte_ids[b] = twi_vocabulary_find(&t->vocabulary, c, (size_t)twi_utf8_write(twi_byte_char(b), c));
        }
    }
}

/* The trie of all spellings of the model's vocabulary but the empty one. */
static bool twi_make_model_trie(tw_tokenizer *t) {
    size_t i, n = 0, length;
    uint32_t *list = (uint32_t *)twi_alloc(&t->region, t->vocabulary.count, sizeof *list), node = 0;
    if (!list) return false;
    for (i = 0; i < t->vocabulary.count; i++) {
        const char *s = twi_spelling_of(&t->vocabulary, (int64_t)i, &length);
        if (s && length && twi_vocabulary_find(&t->vocabulary, s, length) == (int32_t)i) list[n++] = (uint32_t)i;
    }
    if (!twi_make_trie(&t->region, &t->trie, &t->vocabulary, list, n)) return false;
    twi_free(&t->region, list);
    for (i = 0; i < t->prefix_length; i++) {
        node = twi_trie_step(&t->trie, node, (unsigned char)t->prefix[i]);
        if (node == 0) break;
    }
    t->trie_prefix = node;
    return true;
}

static int32_t twi_find_unknown(tw_tokenizer *t, const tw_json *name) {
    if (tw_json_type(name) != TW_JSON_STRING) return -1;
    return twi_vocabulary_find(&t->vocabulary, tw_json_string(name, ""), tw_json_string_length(name));
}

/* A score as `tokenizers` reads it: all digits as one whole number, rounded to a double, divided by a power of ten
   and rounded again, which may be one bit off.  That bit decides between two ways to cut a
   text that are otherwise equally good. */
static double twi_rounded_twice(double score) {
    char text[32];
    size_t n = twi_format_number(score, text), i;
    uint64_t digits = 0;
    double power = 1;
    int decimals = 0;
    bool point = false;
    for (i = text[0] == '-'; i < n; i++) {
        if (text[i] == '.') { point = true; continue; }
        /* an exponent: left as it is */
        if (text[i] < '0' || text[i] > '9' || digits > UINT64_MAX / 10 - 1) return score;
        digits = digits * 10 + (uint64_t)(text[i] - '0');
        decimals += point;
    }
    if (decimals > 22) return score;                                        /* powers up to there are exact */
    while (decimals-- > 0) power *= 10;
    return (text[0] == '-' ? -1.0 : 1.0) * ((double)digits / power);
}

static bool twi_read_unigram(tw_tokenizer *t, const tw_json *j) {
    const tw_json *vocab = tw_json_get(j, "vocab"), *unknown = tw_json_get(j, "unk_id");
    int64_t n = tw_json_count(vocab), i;
    if (tw_json_type(vocab) != TW_JSON_ARRAY || n == 0)
        return twi_bad_tokenizer(t, "a Unigram model needs a list of pieces (tokenizer.json)");
    t->scores = (double *)twi_alloc(&t->region, (size_t)n, sizeof *t->scores);
    if (!t->scores || !twi_vocabulary_reindex(&t->vocabulary, (size_t)n + 64)) return false;
    t->lowest = HUGE_VAL;
    for (i = 0; i < n; i++) {
        const tw_json *piece = tw_json_at(vocab, i), *text = tw_json_at(piece, 0), *score = tw_json_at(piece, 1);
        if (tw_json_type(text) != TW_JSON_STRING || tw_json_type(score) != TW_JSON_NUMBER)
            return twi_bad_tokenizer(t, "piece %lld is not a text and a score (tokenizer.json)", (long long)i);
        t->scores[i] = twi_rounded_twice(tw_json_number(score, 0));
        if (t->scores[i] < t->lowest) t->lowest = t->scores[i];
        if (!twi_vocabulary_put(&t->vocabulary, tw_json_string(text, ""), tw_json_string_length(text), i)) return false;
    }
    t->model_size = (size_t)n;
    if (unknown && tw_json_type(unknown) != TW_JSON_NULL) {
        int64_t id = tw_json_int(unknown, -1);
        if (id < 0 || id >= n) return twi_bad_tokenizer(t, "unk_id %lld is not in the vocabulary (tokenizer.json)",
                                                        (long long)id);
        t->unknown = (int32_t)id;
    }
    return twi_make_model_trie(t);
}

static bool twi_read_model(tw_tokenizer *t, const tw_json *j) {
    const char *type = tw_json_string(tw_json_get(j, "type"), NULL);
    const tw_json *unknown = tw_json_get(j, "unk_token");
    if (tw_json_type(j) != TW_JSON_OBJECT) return twi_bad_tokenizer(t, "there is no model (tokenizer.json)");
    if (!type) type = tw_json_get(j, "merges") ? "BPE" : tw_json_get(j, "continuing_subword_prefix") ? "WordPiece"
                    /* old files say nothing */
                    : tw_json_type(tw_json_get(j, "vocab")) == TW_JSON_ARRAY ? "Unigram" : "WordLevel";
    t->byte_fallback = tw_json_bool(tw_json_get(j, "byte_fallback"), false);
    if (strcmp(type, "Unigram") == 0) {
        t->model = TWI_M_UNIGRAM;
        if (!twi_read_unigram(t, j)) return false;
        twi_find_byte_ids(t);
        return true;
    }
    if (!twi_read_vocabulary(t, tw_json_get(j, "vocab"), "tokenizer.json")) return false;
    t->unknown = twi_find_unknown(t, unknown);
    t->unknown_missing = t->unknown < 0 && tw_json_type(unknown) == TW_JSON_STRING;
    t->prefix = twi_keep_string(t, tw_json_get(j, "continuing_subword_prefix"), &t->prefix_length);
    t->suffix = twi_keep_string(t, tw_json_get(j, "end_of_word_suffix"), &t->suffix_length);
    if (!t->prefix || !t->suffix) return false;
    if (strcmp(type, "BPE") == 0) {
        t->model = TWI_M_BPE;
        t->fuse_unknown = tw_json_bool(tw_json_get(j, "fuse_unk"), false);
        t->ignore_merges = tw_json_bool(tw_json_get(j, "ignore_merges"), false);
        twi_find_byte_ids(t);
        return twi_read_merges(t, tw_json_get(j, "merges"));
    }
    if (strcmp(type, "WordPiece") == 0) {
        t->model = TWI_M_WORDPIECE;
        t->max_word = tw_json_int(tw_json_get(j, "max_input_chars_per_word"), 100);
        return twi_make_model_trie(t);
    }
    t->model = TWI_M_WORDLEVEL;
    if (strcmp(type, "WordLevel") == 0) return true;
    twi_fail(t->tw, TW_E_UNSUPPORTED, "tokenizer.json: the model \"%s\" is not supported", type);
    return false;
}

/* -- opening: added tokens --------------------------------------------------------------------- */
enum { TWI_MAX_ADDED_TOKEN = 1024 };

static twi_added *twi_find_added_token(tw_tokenizer *t, const char *s, size_t n) {
    size_t i, length;
    for (i = 0; i < t->added_count; i++) {
        const char *own = twi_spelling_of(&t->vocabulary, t->added[i].id, &length);
        if (own && length == n && memcmp(own, s, n) == 0) return &t->added[i];
    }
    return NULL;
}

/* Adds a token (or changes one): it keeps the id it has in the vocabulary, or gets the next free one. */
static bool twi_add_token(tw_tokenizer *t, const char *s, size_t n, const twi_added *like) {
    int32_t id = twi_vocabulary_find(&t->vocabulary, s, n);
    twi_added *added = id >= 0 ? twi_find_added_token(t, s, n) : NULL;
    twi_source view;
    int free_buffer = 0;
    if (n == 0) return true;
    if (n > TWI_MAX_ADDED_TOKEN)
        return twi_bad_tokenizer(t, "an added token is longer than %d bytes", (int)TWI_MAX_ADDED_TOKEN);
    if (!added) {
        void *grown = twi_grow(&t->region, t->added, t->added_count, &t->added_capacity, t->added_count + 1,
                               sizeof *t->added);
        if (!grown) return false;
        t->added = (twi_added *)grown;
        added = &t->added[t->added_count];
    }
    if (id < 0) {
        id = (int32_t)t->next_id++;
        if (twi_spelling_of(&t->vocabulary, id, NULL))
            return twi_bad_tokenizer(t, "added token \"%.*s\" gets the id %d, which is taken", (int)(n < 60 ? n : 60),
                                     s, (int)id);
        if (!twi_vocabulary_put(&t->vocabulary, s, n, id)) return false;
    }
    if (added == &t->added[t->added_count]) t->added_count++;
    *added = *like;
    added->id = id;
    view.text = s;
    view.length = n;
    view.origins = NULL;
    view.base = 0;
    if (like->normalized && !twi_normalize(t, &view, &free_buffer)) return false;
    added->text = twi_copy_text(&t->region, view.text, view.length);
    added->length = view.length;
    return added->text != NULL;
}

/* {"content": "...", "lstrip": ..., ...}, or the text alone, which is then a special token. */
static bool twi_add_token_of(tw_tokenizer *t, const tw_json *j, bool special) {
    twi_added like;
    const tw_json *content = tw_json_type(j) == TW_JSON_STRING ? j : tw_json_get(j, "content"), *id = tw_json_get(j, "id");
    memset(&like, 0, sizeof like);
    if (tw_json_type(content) != TW_JSON_STRING) return twi_bad_tokenizer(t, "an added token has no content");
    if (id && (tw_json_int(id, -1) < 0 || tw_json_int(id, -1) > INT32_MAX))       /* (which id it is, the order decides) */
        return twi_bad_tokenizer(t, "added token \"%.60s\" has an id out of range", tw_json_string(content, ""));
    like.special = tw_json_bool(tw_json_get(j, "special"), special);
    like.single_word = tw_json_bool(tw_json_get(j, "single_word"), false);
    like.lstrip = tw_json_bool(tw_json_get(j, "lstrip"), false);
    like.rstrip = tw_json_bool(tw_json_get(j, "rstrip"), false);
    like.normalized = tw_json_bool(tw_json_get(j, "normalized"), !like.special);
    return twi_add_token(t, tw_json_string(content, ""), tw_json_string_length(content), &like);
}

static bool twi_add_special(tw_tokenizer *t, const char *text, bool lstrip) {
    twi_added like;
    memset(&like, 0, sizeof like);
    like.special = true;
    like.lstrip = lstrip;
    return twi_add_token(t, text, strlen(text), &like);
}

/* -- opening: whole folders -------------------------------------------------------------------- */

typedef struct twi_folder {
    const char *path; twi_text name; tw_json *config, *tokenizer_config, *special_map, *added; } twi_folder;

static const char *twi_in_folder(twi_folder *f, const char *name) {
    twi_join_path(&f->name, f->path, name);
    return twi_text_string(&f->name);
}

static bool twi_folder_has(tw_context *tw, twi_folder *f, const char *name) {
    return twi_file_exists(tw, twi_in_folder(f, name));
}

/* A JSON file that may be missing. */
static bool twi_folder_json(tw_context *tw, twi_folder *f, const char *name, tw_json **out) {
    *out = NULL;
    if (!twi_folder_has(tw, f, name)) return true;
    *out = tw_json_load(tw, twi_in_folder(f, name));
    return *out != NULL;
}

static void twi_folder_close(twi_folder *f) {
    tw_json_free(f->config);
    tw_json_free(f->tokenizer_config);
    tw_json_free(f->special_map);
    tw_json_free(f->added);
    twi_text_free(&f->name);
}

/* What the folder's files say of a setting. */
static const tw_json *twi_setting(const twi_folder *f, const char *key) {
    const tw_json *value = tw_json_get(f->tokenizer_config, key);
    if (!value || tw_json_type(value) == TW_JSON_NULL) value = tw_json_get(f->special_map, key);
    return tw_json_type(value) == TW_JSON_NULL ? NULL : value;
}

static const char *const twi_special_keys[TWI_SPECIALS] =
    { "bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token" };
/* in which `transformers` adds new ones: bos, eos, unk, sep, pad, cls, mask */
static const int twi_special_order[TWI_SPECIALS] = { 0, 1, 3, 5, 2, 4, 6 };

typedef struct twi_family {            /* what a model's tokenizer has when its files say nothing */
    const char *name, *class_name;
    const char *specials[TWI_SPECIALS];
} twi_family;

enum { TWI_F_GPT2, TWI_F_ROBERTA, TWI_F_BERT, TWI_F_T5, TWI_F_GLM, TWI_F_OTHER };
static const twi_family twi_families[] = {
    { "gpt2", "GPT2Tokenizer", { "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>", NULL, NULL, NULL } },
    { "roberta", "RobertaTokenizer", { "<s>", "</s>", "<pad>", "<unk>", "<s>", "</s>", "<mask>" } },
    { "bert", "BertTokenizer", { NULL, NULL, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" } },
    { "t5", "T5Tokenizer", { NULL, "</s>", "<pad>", "<unk>", NULL, NULL, NULL } },
    { "glm", "PreTrainedTokenizerFast", { NULL, NULL, NULL, NULL, NULL, NULL, NULL } },
    { "", "PreTrainedTokenizerFast", { NULL, NULL, NULL, NULL, NULL, NULL, NULL } }
};

/* added_tokens.json and added_tokens_decoder, then the special tokens that the files or the family name. */
static bool twi_add_folder_tokens(tw_tokenizer *t, const twi_folder *f, const twi_family *family) {
    const tw_json *decoder = tw_json_get(f->tokenizer_config, "added_tokens_decoder"), *list;
    int64_t i, k, n = tw_json_count(decoder);
    int s;
    int64_t last = -1;
    for (k = 0; k < n; k++) {                                               /* by ascending id */
        int64_t best = -1, best_id = INT64_MAX;
        for (i = 0; i < n; i++) {
            int64_t id = 0;
            const char *key = tw_json_key(decoder, i);
            for (; *key >= '0' && *key <= '9' && id < INT32_MAX; key++) id = id * 10 + (*key - '0');
            if (id > last && id < best_id) { best = i; best_id = id; }
        }
        if (best < 0) break;
        last = best_id;
        if (!t->source_is_json || !twi_find_added_token(t,
                                                        tw_json_string(tw_json_get(tw_json_at(decoder, best),
                                                            "content"), ""),
                                                        tw_json_string_length(tw_json_get(tw_json_at(decoder, best),
                                                            "content"))))
            if (!twi_add_token_of(t, tw_json_at(decoder, best), false)) return false;
    }
    for (i = 0; i < tw_json_count(f->added); i++) {
        twi_added like;
        const char *key = tw_json_key(f->added, i);
        memset(&like, 0, sizeof like);
        like.normalized = true;
        if (!twi_find_added_token(t, key, tw_json_key_length(f->added, i))
            && !twi_add_token(t, key, tw_json_key_length(f->added, i), &like)) return false;
    }
    for (s = 0; s < TWI_SPECIALS; s++) {
        int which = twi_special_order[s];
        const tw_json *value = twi_setting(f, twi_special_keys[which]);
        const tw_json *content = tw_json_type(value) == TW_JSON_OBJECT ? tw_json_get(value, "content") : value;
        const char *text = tw_json_string(content, family->specials[which]);
        /* null means none */
        if (!text || !*text || (!value && tw_json_get(f->tokenizer_config, twi_special_keys[which]))) continue;
        if (!twi_find_added_token(t, text, strlen(text))) {
            bool ok = tw_json_type(value) == TW_JSON_OBJECT ? twi_add_token_of(t, value, true)
                : twi_add_special(t, text, false);
            if (!ok) return false;
        }
        twi_find_added_token(t, text, strlen(text))->special = true;
        t->special_ids[which] = twi_vocabulary_find(&t->vocabulary, text, strlen(text));
    }
    list = twi_setting(f, "additional_special_tokens");
    if (!list) list = twi_setting(f, "extra_special_tokens");
    for (i = 0; tw_json_type(list) == TW_JSON_ARRAY && i < tw_json_count(list); i++) {
        const tw_json *item = tw_json_at(list, i), *content = tw_json_type(item) == TW_JSON_OBJECT
            ? tw_json_get(item, "content") : item;
        if (tw_json_type(content) != TW_JSON_STRING
            || twi_find_added_token(t, tw_json_string(content, ""), tw_json_string_length(content))) continue;
        if (!twi_add_token_of(t, item, true)) return false;
    }
    return true;
}

/* With tokenizer.json alone the special tokens are known by their usual names. */
static void twi_guess_specials(tw_tokenizer *t) {
    size_t family;
    int s;
    for (s = 0; s < TWI_SPECIALS; s++)
        for (family = 0; t->special_ids[s] < 0 && family < 4; family++) {
            static const int order[4] = { TWI_F_BERT, TWI_F_ROBERTA, TWI_F_T5, TWI_F_GPT2 };
            const char *text = twi_families[order[family]].specials[s];
            twi_added *added = text ? twi_find_added_token(t, text, strlen(text)) : NULL;
            if (added && added->special) t->special_ids[s] = added->id;
        }
}

static bool twi_read_tokenizer_json(tw_tokenizer *t, const tw_json *j) {
    const char *version = tw_json_string(tw_json_get(j, "version"), "1.0");
    const tw_json *list = tw_json_get(j, "added_tokens"), *decoder = tw_json_get(j, "decoder");
    int64_t i;
    size_t k;
    if (strcmp(version, "1.0") != 0) {
        twi_fail(t->tw, TW_E_UNSUPPORTED, "tokenizer.json: version \"%s\" is not supported, only 1.0", version);
        return false;
    }
    if (!twi_read_steps(t, tw_json_get(j, "normalizer"), 'n', &t->normalizers, &t->normalizer_count)
        || !twi_read_steps(t, tw_json_get(j, "pre_tokenizer"), 's', &t->splitters, &t->splitter_count)
        || !twi_read_steps(t, decoder, 'd', &t->decoders, &t->decoder_count)
        || !twi_read_post_processor(t, tw_json_get(j, "post_processor"))
            || !twi_read_model(t, tw_json_get(j, "model"))) return false;
    t->has_decoder = decoder && tw_json_type(decoder) != TW_JSON_NULL;
    t->next_id = (int64_t)t->model_size;
    for (i = 0; i < tw_json_count(list); i++) if (!twi_add_token_of(t, tw_json_at(list, i), false)) return false;
    for (k = 0; k < t->single.count + t->pair.count; k++) {
        const twi_template_item *item = k < t->single.count ? &t->single.items[k] : &t->pair.items[k - t->single.count];
        if (item->kind == 0 && (size_t)item->id >= t->vocabulary.count)
            return twi_bad_tokenizer(t, "the post-processor adds %d, an id past the vocabulary (tokenizer.json)",
                                     (int)item->id);
    }
    return true;
}

/* A list of steps with one row. */
static twi_step *twi_one_step(tw_tokenizer *t, twi_step_kind kind, size_t *count) {
    twi_step *step = (twi_step *)twi_alloc(&t->region, 2, sizeof *step);
    if (!step) return NULL;
    step->kind = kind;
    step->behavior = TWI_ISOLATED;
    *count = 1;
    return step;
}

static bool twi_set_byte_level(tw_tokenizer *t, bool prefix_space) {
    t->model = TWI_M_BPE;
    t->splitters = twi_one_step(t, TWI_S_BYTE_LEVEL, &t->splitter_count);
    t->decoders = t->splitters ? twi_one_step(t, TWI_D_BYTE_LEVEL, &t->decoder_count) : NULL;
    if (!t->decoders) return false;
    t->splitters->prefix_space = prefix_space;
    t->splitters->use_regex = true;
    t->has_decoder = true;
    twi_find_byte_ids(t);
    return true;
}

/* vocab.json and merges.txt: GPT-2 or RoBERTa. */
static bool twi_read_bpe_files(tw_tokenizer *t, twi_folder *f, int family) {
    tw_json *vocab = tw_json_load(t->tw, twi_in_folder(f, "vocab.json"));
    twi_bytes file;
    size_t i, end, lines = 0;
    uint32_t rank = 0;
    bool prefix_space = tw_json_bool(tw_json_get(f->tokenizer_config, "add_prefix_space"), false), ok = vocab
        && twi_read_vocabulary(t, vocab, "vocab.json");
    tw_json_free(vocab);
    if (!ok || !twi_read_file(&t->region, twi_in_folder(f, "merges.txt"), &file)) return false;
    for (i = 0; i < file.size; i++) lines += file.data[i] == '\n';
    ok = twi_make_merges(t, lines + 1)
        && (twi_is_utf8((const char *)file.data, file.size) || twi_bad_tokenizer(t, "merges.txt is not UTF-8"));
    for (i = 0; ok && i < file.size; i = end + 1) {
        size_t n;
        for (end = i; end < file.size && file.data[end] != '\n'; end++) continue;
        n = end - i;
        if (n && file.data[i + n - 1] == '\r') n--;
        ok = twi_read_merge_line(t, (const char *)file.data + i, n, &rank, "merges.txt");
    }
    twi_release_file(&t->region, &file);
    if (!ok || !twi_set_byte_level(t, prefix_space)) return false;
    t->next_id = (int64_t)t->model_size;
    if (!twi_add_folder_tokens(t, f, &twi_families[family])) return false;
    if (family == TWI_F_ROBERTA) {
        if (tw_json_bool(tw_json_get(f->tokenizer_config, "trim_offsets"), true))
            t->trim_prefix_space[t->trim_count++] = prefix_space;
        return twi_bert_template(t, t->special_ids[4], t->special_ids[5], true);
    }
    if (family == TWI_F_GPT2 && tw_json_bool(tw_json_get(f->tokenizer_config, "add_bos_token"), false)
        && t->special_ids[0] >= 0) {
        t->has_template = true;
        return twi_template_put(t, &t->single, 0, t->special_ids[0], 0) && twi_template_put(t, &t->single, 1, 0, 0)
            && twi_template_put(t, &t->pair, 0, t->special_ids[0], 0) && twi_template_put(t, &t->pair, 1, 0, 0)
            && twi_template_put(t, &t->pair, 0, t->special_ids[0], 1) && twi_template_put(t, &t->pair, 2, 0, 1);
    }
    return true;
}

/* vocab.txt: BERT. */
static bool twi_read_wordpiece_file(tw_tokenizer *t, twi_folder *f) {
    twi_bytes file;
    size_t i, end;
    int64_t id = 0;
    bool ok;
    if (!twi_read_file(&t->region, twi_in_folder(f, "vocab.txt"), &file)) return false;
    ok = twi_is_utf8((const char *)file.data, file.size) || twi_bad_tokenizer(t, "vocab.txt is not UTF-8");
    for (i = 0; ok && i < file.size; i = end + 1) {
        size_t n;
        for (end = i; end < file.size && file.data[end] != '\n'; end++) continue;
        n = end - i;
        if (n && file.data[i + n - 1] == '\r') n--;
        ok = twi_vocabulary_put(&t->vocabulary, (const char *)file.data + i, n, id++);
    }
    twi_release_file(&t->region, &file);
    if (!ok) return false;
    if (id == 0) return twi_bad_tokenizer(t, "vocab.txt is empty");
    t->model = TWI_M_WORDPIECE;
    t->model_size = t->vocabulary.count;
    t->max_word = 100;
    t->prefix = "##";
    t->prefix_length = 2;
    t->normalizers = twi_one_step(t, TWI_N_BERT, &t->normalizer_count);
    t->splitters = twi_one_step(t, TWI_S_KIND, &t->splitter_count);
    t->decoders = twi_one_step(t, TWI_D_WORDPIECE, &t->decoder_count);
    if (!t->normalizers || !t->splitters || !t->decoders || !twi_make_model_trie(t)) return false;
    t->normalizers->clean = true;
    t->normalizers->chinese = tw_json_bool(tw_json_get(f->tokenizer_config, "tokenize_chinese_chars"), true);
    t->normalizers->lowercase = tw_json_bool(tw_json_get(f->tokenizer_config, "do_lower_case"), true);
    t->normalizers->strip_accents =
        tw_json_bool(tw_json_get(f->tokenizer_config, "strip_accents"), t->normalizers->lowercase);
    t->splitters[0].kinds = TWI_IS_SPACE;
    t->splitters[0].behavior = TWI_REMOVED;
    t->splitters[1] = t->splitters[0];
    t->splitters[1].kinds = TWI_IS_PUNCTUATION;
    t->splitters[1].behavior = TWI_ISOLATED;
    t->splitter_count = 2;
    t->decoders->text = "##";
    t->decoders->text_length = 2;
    t->decoders->cleanup = true;
    t->has_decoder = true;
    t->next_id = (int64_t)t->vocabulary.known;
    if ((size_t)t->next_id < t->vocabulary.count) t->next_id = (int64_t)t->vocabulary.count;
    if (!twi_add_folder_tokens(t, f, &twi_families[TWI_F_BERT])) return false;
    t->unknown = t->special_ids[3];
    return twi_bert_template(t, t->special_ids[4], t->special_ids[5], false);
}

/* FlagAI's GLM: "command tokens" behind the vocabulary, in the order that its weights were trained with. */
static bool twi_add_glm_tokens(tw_tokenizer *t) {
    /* 50000 pieces: 50000 ... 50009, without 50005 */
    static const struct { const char *text; int id; bool lstrip; int special; } sp[] = {
        { "<|endoftext|>", 0, false, 1 }, { "[SEP]", 1, false, 5 }, { "[CLS]", 2, false, 4 }, { "[MASK]", 3, true, 6 },
            { "[UNK]", 4, false, 3 },
        { "<|startofpiece|>", 6, false, -1 }, { "<|endofpiece|>", 7, false, -1 }, { "[sMASK]", 8, true, -1 },
            { "[gMASK]", 9, true, -1 } },
        wordpiece[] = { { "<|startofpiece|>", 0, false, -1 }, { "<|endofpiece|>", 1, false, -1 }, {
            "[gMASK]", 2, false, -1 }, { "[sMASK]", 3, false, -1 } },
        bpe[] = { { "<|startofpiece|>", 0, false, -1 }, { "<|endofpiece|>", 1, false, -1 }, { "[CLS]", 2, false, 4 }, {
            "[MASK]", 3, true, 6 },
        /* [UNK] has gMASK's id there */
        { "[SEP]", 4, false, 5 }, { "[gMASK]", 5, true, 3 }, { "[sMASK]", 6, true, -1 } };
    bool is_sp = t->model == TWI_M_SP_UNIGRAM || t->model == TWI_M_SP_BPE;
    size_t i, n = is_sp ? 9 : t->model == TWI_M_WORDPIECE ? 4 : 7, base = is_sp ? t->model_size
        : t->model == TWI_M_WORDPIECE ? t->vocabulary.count : t->model_size;
    for (i = 0; i < n; i++) {
        const char *text = is_sp ? sp[i].text : n == 4 ? wordpiece[i].text : bpe[i].text;
        int offset = is_sp ? sp[i].id : n == 4 ? wordpiece[i].id : bpe[i].id, special = is_sp ? sp[i].special : n == 4
            ? -1 : bpe[i].special;
        t->next_id = (int64_t)base + offset;
        if (!twi_add_special(t, text, is_sp ? sp[i].lstrip : n == 4 ? false : bpe[i].lstrip)) return false;
        if (special >= 0) t->special_ids[special] = twi_vocabulary_find(&t->vocabulary, text, strlen(text));
    }
    if (is_sp) t->special_ids[2] = t->special_ids[1];                       /* padding is the end token */
    if (n == 4) t->special_ids[1] = t->special_ids[2];
    if (n == 7) t->special_ids[1] = t->special_ids[2] = twi_vocabulary_find(&t->vocabulary, "<|endoftext|>", 13);
    return true;
}

/* A SentencePiece file: T5's, with sentinels <extra_id_99> ... <extra_id_0> behind the pieces, or GLM's. */
static bool twi_read_sp_files(tw_tokenizer *t, twi_folder *f, const char *name, int family) {
    int64_t extra = tw_json_int(tw_json_get(f->tokenizer_config, "extra_ids"), 100), i;
    size_t k, length;
    char text[32];
    if (!twi_read_file(&t->region, twi_in_folder(f, name), &t->source)) return false;
    if (!twi_sp_read_model(t, t->source.data, t->source.size)) return false;
    t->next_id = (int64_t)t->model_size;
    for (k = 0; k < t->model_size; k++) if (t->types[k] == TWI_PIECE_CONTROL) {
        const char *piece = twi_spelling_of(&t->vocabulary, (int64_t)k, &length);
        char *copy = twi_copy_text(&t->region, piece, length);              /* adding may move the spellings */
        if (!copy || !twi_add_special(t, copy, false)) return false;
    }
    if (family == TWI_F_GLM) return twi_add_glm_tokens(t);
    if (extra < 0 || extra > 100000) return twi_bad_tokenizer(t, "extra_ids is out of range (tokenizer_config.json)");
    for (i = extra - 1; i >= 0; i--) {
        snprintf(text, sizeof text, "<extra_id_%lld>", (long long)i);
        if (!twi_add_special(t, text, false)) return false;
    }
    if (!twi_add_folder_tokens(t, f, &twi_families[TWI_F_T5])) return false;
    t->has_template = true;
    return twi_template_put(t, &t->single, 1, 0, 0) && twi_template_put(t, &t->single, 0, t->special_ids[1], 0)
        && twi_template_put(t, &t->pair, 1, 0, 0)
        && twi_template_put(t, &t->pair, 0, t->special_ids[1], 0) && twi_template_put(t, &t->pair, 2, 0, 0)
            && twi_template_put(t, &t->pair, 0, t->special_ids[1], 0);
}

/* The last strokes: what follows from all that was read. */
static bool twi_finish_tokenizer(tw_tokenizer *t) {
    size_t i, length;
    const twi_step *last = t->splitter_count ? &t->splitters[t->splitter_count - 1] : NULL;
    if (!twi_index_added(t)) return false;
    t->added_of = (uint32_t *)twi_alloc(&t->region, t->vocabulary.count + 1, sizeof *t->added_of);
    if (!t->added_of) return false;
    for (i = 0; i < t->added_count; i++) t->added_of[t->added[i].id] = (uint32_t)i + 1;
    if (t->trim_count) {
        t->blanks = (uint32_t *)twi_alloc(&t->region, t->vocabulary.count + 1, sizeof *t->blanks);
        if (!t->blanks) return false;
        for (i = 0; i < t->vocabulary.count; i++) {
            const char *s = twi_spelling_of(&t->vocabulary, (int64_t)i, &length);
            if (s) t->blanks[i] = twi_count_blanks(t, s, length);
        }
    }
    /* does a decoder behind a fusing one want the whole? */
    for (i = 0; i + 1 < t->decoder_count; i++)
        if (t->decoders[i].kind == TWI_D_FUSE || t->decoders[i].kind == TWI_D_BYTE_LEVEL) {
            size_t k;
            for (k = i + 1; k < t->decoder_count; k++) if (t->decoders[k].kind != TWI_D_STRIP || t->decoders[k].stop) {
                if (t->decoders[i].kind == TWI_D_FUSE) t->decoders[i].split = true;
            }
        }
    t->bytes_last = t->model == TWI_M_BPE && !t->byte_fallback && last && last->kind == TWI_S_BYTE_LEVEL;
    t->plain_gpt2 = t->bytes_last && t->normalizer_count == 0 && t->splitter_count == 1 && last->use_regex
        && !last->prefix_space;
    for (i = 0; i < t->added_count; i++) if (t->added[i].normalized) t->plain_gpt2 = false;
    return true;
}

static tw_tokenizer *twi_new_tokenizer(tw_context *tw) {
    tw_tokenizer *t = (tw_tokenizer *)twi_alloc(&tw->region, 1, sizeof *t);
    int i;
    if (!t) return NULL;
    t->tw = tw;
    t->region.tw = tw;
    t->vocabulary.region = &t->region;
    t->unknown = -1;
    t->sp_begin_id = t->sp_end_id = t->sp_pad_id = -1;
    t->scratch = twi_text_new(&t->region);
    t->prefix = t->suffix = "";
    t->family = TWI_F_OTHER;
    for (i = 0; i < TWI_SPECIALS; i++) t->special_ids[i] = -1;
    t->next = tw->tokenizers;
    tw->tokenizers = t;
    if (twi_make_unicode(&t->region, &t->unicode)) return t;
    tw_free_tokenizer(t);
    return NULL;
}

TWDEF void tw_free_tokenizer(tw_tokenizer *t) {
    tw_tokenizer **link;
    tw_context *tw;
    if (!t) return;
    tw = t->tw;
    for (link = &tw->tokenizers; *link && *link != t; link = &(*link)->next) continue;
    if (*link) *link = t->next;
    twi_region_clear(&t->region);
    twi_free(&tw->region, t);
}

static void twi_clear_tokenizers(tw_context *tw) { while (tw->tokenizers) tw_free_tokenizer(tw->tokenizers); }

static const char *const twi_sp_names[] =
    { "spiece.model", "cog-pretrain.model", "sentencepiece.model", "tokenizer.model" };

/* Which family a folder's files belong to, by what they say: the model's type, its class, the tokenizer's class. */
static int twi_folder_family(const twi_folder *f) {
    const char *type = tw_json_string(tw_json_get(f->config, "model_type"), ""),
        *own = tw_json_string(tw_json_get(f->tokenizer_config, "tokenizer_class"), "");
    const char *architecture = tw_json_string(tw_json_at(tw_json_get(f->config, "architectures"), 0), "");
    int i;
    if (tw_json_get(f->config, "block_position_encoding") || strncmp(architecture, "GLM", 3) == 0) return TWI_F_GLM;
    for (i = 0; i <= TWI_F_T5; i++) if (strcmp(type, twi_families[i].name) == 0) return i;
    if (strcmp(type, "mt5") == 0 || strcmp(type, "umt5") == 0) return TWI_F_T5;
    for (i = 0; i <= TWI_F_T5; i++)
        if (strncmp(own, twi_families[i].class_name, strlen(twi_families[i].class_name)) == 0) return i;
    return TWI_F_OTHER;
}

static bool twi_load_folder(tw_tokenizer *t, twi_folder *f) {
    tw_context *tw = t->tw;
    size_t i;
    if (!twi_folder_json(tw, f, "config.json", &f->config)
        || !twi_folder_json(tw, f, "tokenizer_config.json", &f->tokenizer_config)
        || !twi_folder_json(tw, f, "special_tokens_map.json", &f->special_map)) return false;
    t->family = twi_folder_family(f);
    if (f->tokenizer_config && !twi_read_file(&t->region, twi_in_folder(f, "tokenizer_config.json"), &t->config_source))
        return false;
    if (twi_folder_has(tw, f, "tokenizer.json")) {
        const char *path = twi_in_folder(f, "tokenizer.json");
        tw_json *j = tw_json_load(tw, path);
        bool ok = j && twi_read_file(&t->region, path, &t->source);
        t->source_is_json = true;
        ok = ok && twi_read_tokenizer_json(t, j) && twi_add_folder_tokens(t, f, &twi_families[TWI_F_OTHER]);
        tw_json_free(j);
        if (ok) twi_guess_specials(t);
        return ok;
    }
    if (!twi_folder_json(tw, f, "added_tokens.json", &f->added)) return false;
    for (i = 0; i < sizeof twi_sp_names / sizeof *twi_sp_names; i++)
        if (twi_folder_has(tw, f, twi_sp_names[i])) {
            if (i == 1) t->family = TWI_F_GLM;
            return twi_read_sp_files(t, f, twi_sp_names[i], t->family);
        }
    if (twi_folder_has(tw, f, "vocab.json") && twi_folder_has(tw, f, "merges.txt")) {
        int family = t->family;
        if (t->family != TWI_F_ROBERTA && t->family != TWI_F_GLM) t->family = TWI_F_GPT2;
        return twi_read_bpe_files(t, f, t->family) && (family != TWI_F_GLM || twi_add_glm_tokens(t));
    }
    if (twi_folder_has(tw, f, "vocab.txt")) {
        int family = t->family;
        t->family = TWI_F_BERT;
        return twi_read_wordpiece_file(t, f) && (family != TWI_F_GLM || twi_add_glm_tokens(t));
    }
    twi_fail(tw, TW_E_MISSING,
             "tokenizer: no tokenizer.json, vocab.json with merges.txt, vocab.txt or spiece.model (%s)", f->path);
    return false;
}

/* Does the folder have any of the files that tw_load_tokenizer opens? */
static bool twi_has_tokenizer(tw_context *tw, const char *folder) {
    twi_folder f;
    size_t i;
    bool found;
    memset(&f, 0, sizeof f);
    f.path = folder;
    f.name = twi_text_new(&tw->region);
    found = twi_folder_has(tw, &f, "tokenizer.json") || twi_folder_has(tw, &f, "vocab.txt")
         || (twi_folder_has(tw, &f, "vocab.json") && twi_folder_has(tw, &f, "merges.txt"));
    for (i = 0; !found && i < sizeof twi_sp_names / sizeof *twi_sp_names; i++)
        found = twi_folder_has(tw, &f, twi_sp_names[i]);
    twi_folder_close(&f);
    return found;
}

TWDEF tw_tokenizer *tw_load_tokenizer(tw_context *tw, const char *folder) {
    tw_tokenizer *t;
    twi_folder f;
    bool ok;
    if (!tw || tw_failed(tw)) return NULL;
    if (!folder) { twi_fail(tw, TW_E_ARGUMENT, "tokenizer: no folder was given (NULL)"); return NULL; }
    t = twi_new_tokenizer(tw);
    if (!t) return NULL;
    memset(&f, 0, sizeof f);
    f.path = folder;
    f.name = twi_text_new(&tw->region);
    ok = twi_load_folder(t, &f) && twi_finish_tokenizer(t);
    twi_folder_close(&f);
    if (ok) return t;
    if (!tw_failed(tw)) twi_fail(tw, TW_E_MEMORY, "tokenizer: out of memory (%s)", folder);
    tw_free_tokenizer(t);
    return NULL;
}

/* -- saving ------------------------------------------------------------------------------------ */

/* A JSON string of valid UTF-8. */
static void twi_quote(twi_text *out, const char *s, size_t n) {
    char escape[8];
    size_t i;
    twi_text_char(out, '"');
    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\') { twi_text_char(out, '\\'); twi_text_char(out, s[i]); }
        else if (c >= 0x20) twi_text_char(out, s[i]);
        else { snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c); twi_text_add(out, escape); }
    }
    twi_text_char(out, '"');
}

/* JSON with ' for ", so that it can be read here; what is filled in are numbers and names of our own. */
TWI_PRINTF(2, 3) static void twi_json_print(twi_text *out, const char *format, ...) {
    char line[256], *c;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    for (c = line; *c; c++) if (*c == '\'') *c = '"';
    twi_text_add(out, line);
}

static void twi_quote_token(const tw_tokenizer *t, twi_text *out, int64_t id) {
    size_t n = 0;
    const char *s = twi_spelling_of(&t->vocabulary, id, &n);
    twi_quote(out, s ? s : "", n);
}

/* {"token": id, ...} in the order of the ids; only the model's own. */
static void twi_write_vocabulary(const tw_tokenizer *t, twi_text *out) {
    size_t i;
    bool first = true;
    twi_text_char(out, '{');
    for (i = 0; i < t->vocabulary.count; i++) {
        if (!twi_spelling_of(&t->vocabulary, (int64_t)i, NULL) || (t->added_of[i] && i >= t->model_size)) continue;
        if (!first) twi_text_char(out, ',');
        first = false;
        twi_quote_token(t, out, (int64_t)i);
        twi_json_print(out, ":%lu", (unsigned long)i);
    }
    twi_text_char(out, '}');
}

/* The merges in the order of their ranks, as positions in the table; NULL without memory. */
static bool twi_merge_before(const void *user, uint32_t a, uint32_t b) {
    const twi_merge *merges = (const twi_merge *)user;
    return merges[a].rank != merges[b].rank ? merges[a].rank < merges[b].rank : a < b;
}

static uint32_t *twi_merge_order(tw_tokenizer *t) {
    uint32_t *order = (uint32_t *)twi_alloc(&t->region, t->merge_count, sizeof *order);
    size_t i, n = 0;
    if (!order) return NULL;
    for (i = 0; i <= t->merge_mask && n < t->merge_count; i++) if (t->merges[i].pair) order[n++] = (uint32_t)i;
    twi_sort(order, n, twi_merge_before, t->merges);
    return order;
}

static int32_t twi_merge_left(const twi_merge *m) { return (int32_t)((m->pair - 1) >> 32); }
static int32_t twi_merge_right(const twi_merge *m) { return (int32_t)((m->pair - 1) & 0xFFFFFFFFu); }

static const char *twi_truth(bool b) { return b ? "true" : "false"; }

static void twi_write_template(const tw_tokenizer *t, twi_text *out, const twi_template *form) {
    size_t i;
    twi_text_char(out, '[');
    for (i = 0; i < form->count; i++) {
        const twi_template_item *item = &form->items[i];
        twi_text_add(out, i ? "," : "");
        if (item->kind) {
            twi_json_print(out, "{'Sequence':{'id':'%c','type_id':%d}}", item->kind == 1 ? 'A' : 'B', (int)item->type);
            continue;
        }
        twi_json_print(out, "{'SpecialToken':{'id':");
        twi_quote_token(t, out, item->id);
        twi_json_print(out, ",'type_id':%d}}", (int)item->type);
    }
    twi_text_char(out, ']');
}

static void twi_write_post_processor(const tw_tokenizer *t, twi_text *out) {
    const int32_t cls = t->special_ids[4], sep = t->special_ids[5];
    size_t i, k;
    bool first = true;
    if (!t->has_template) { twi_json_print(out, "null"); return; }
    if (t->trim_count) {                                                    /* RoBERTa alone trims */
        twi_json_print(out, "{'type':'RobertaProcessing','sep':[");
        twi_quote_token(t, out, sep);
        twi_json_print(out, ",%d],'cls':[", (int)sep);
        twi_quote_token(t, out, cls);
        twi_json_print(out, ",%d],'trim_offsets':true,'add_prefix_space':%s}", (int)cls,
                       twi_truth(t->trim_prefix_space[0]));
        return;
    }
    twi_json_print(out, "{'type':'TemplateProcessing','single':");
    twi_write_template(t, out, &t->single);
    twi_json_print(out, ",'pair':");
    twi_write_template(t, out, &t->pair);
    twi_json_print(out, ",'special_tokens':{");
    for (i = 0; i < t->pair.count; i++) {
        const int32_t id = t->pair.items[i].id;
        if (t->pair.items[i].kind) continue;
        for (k = 0; k < i && (t->pair.items[k].kind || t->pair.items[k].id != id); k++) continue;
        if (k < i) continue;                                                /* each token once */
        twi_text_add(out, first ? "" : ",");
        first = false;
        twi_quote_token(t, out, id);
        twi_json_print(out, ":{'id':");
        twi_quote_token(t, out, id);
        twi_json_print(out, ",'ids':[%d],'tokens':[", (int)id);
        twi_quote_token(t, out, id);
        twi_json_print(out, "]}");
    }
    twi_json_print(out, "}}");
}

static void twi_write_added(const tw_tokenizer *t, twi_text *out) {
    size_t i;
    bool first = true;
    for (i = 0; i < t->vocabulary.count; i++) {
        const twi_added *a = twi_added_of(t, (int32_t)i);
        if (!a) continue;
        twi_json_print(out, "%s{'id':%lu,'content':", first ? "" : ",", (unsigned long)i);
        first = false;
        twi_quote_token(t, out, (int64_t)i);
        twi_json_print(out, ",'single_word':%s,'lstrip':%s,'rstrip':%s,'normalized':%s,'special':%s}",
                       twi_truth(a->single_word), twi_truth(a->lstrip), twi_truth(a->rstrip), twi_truth(a->normalized),
                       twi_truth(a->special));
    }
}

static void twi_write_byte_level(twi_text *out, bool prefix_space) {
    twi_json_print(out, "{'type':'ByteLevel','add_prefix_space':%s,'trim_offsets':true,'use_regex':true}",
                   twi_truth(prefix_space));
}

/* tokenizer.json for what was read from vocab.json or vocab.txt, or was learned. */
static bool twi_write_tokenizer_json(tw_tokenizer *t, twi_text *out) {
    uint32_t *order = NULL;
    size_t i;
    twi_json_print(out, "{'version':'1.0','truncation':null,'padding':null,'added_tokens':[");
    twi_write_added(t, out);
    if (t->model == TWI_M_WORDPIECE) {
        const twi_step *bert = t->normalizers;
        twi_json_print(out, "],'normalizer':{'type':'BertNormalizer','clean_text':true,'handle_chinese_chars':%s,",
                       twi_truth(bert->chinese));
        twi_json_print(out, "'strip_accents':%s,'lowercase':%s},'pre_tokenizer':{'type':'BertPreTokenizer'},",
                       twi_truth(bert->strip_accents), twi_truth(bert->lowercase));
        twi_json_print(out, "'post_processor':");
        twi_write_post_processor(t, out);
        twi_json_print(out, ",'decoder':{'type':'WordPiece','prefix':'##','cleanup':true},'model':{");
        twi_json_print(out, "'type':'WordPiece','continuing_subword_prefix':'##','max_input_chars_per_word':%lld,",
                       (long long)t->max_word);
        twi_json_print(out, "'unk_token':");
        twi_quote_token(t, out, t->unknown);
        twi_json_print(out, ",'vocab':");
        twi_write_vocabulary(t, out);
    } else {
        twi_json_print(out, "],'normalizer':null,'pre_tokenizer':");
        twi_write_byte_level(out, t->splitters->prefix_space);
        twi_json_print(out, ",'post_processor':");
        twi_write_post_processor(t, out);
        twi_json_print(out, ",'decoder':");
        twi_write_byte_level(out, true);
        twi_json_print(out, ",'model':{'type':'BPE','dropout':null,'unk_token':null,'continuing_subword_prefix':'',");
        twi_json_print(out, "'end_of_word_suffix':'','fuse_unk':false,'byte_fallback':false,'ignore_merges':false,");
        twi_json_print(out, "'vocab':");
        twi_write_vocabulary(t, out);
        order = twi_merge_order(t);
        if (!order) return false;
        twi_json_print(out, ",'merges':[");
        for (i = 0; i < t->merge_count; i++) {
            twi_text_add(out, i ? ",[" : "[");
            twi_quote_token(t, out, twi_merge_left(&t->merges[order[i]]));
            twi_text_char(out, ',');
            twi_quote_token(t, out, twi_merge_right(&t->merges[order[i]]));
            twi_text_char(out, ']');
        }
        twi_text_char(out, ']');
        twi_free(&t->region, order);
    }
    twi_text_add(out, "}}\n");
    return !out->failed;
}

static bool twi_write_config(const tw_tokenizer *t, twi_text *out) {
    int i;                                                                  /* the other classes would build it anew */
    twi_json_print(out, "{\n  'tokenizer_class': '%s'",
                   twi_families[t->source_is_json ? TWI_F_OTHER : t->family].class_name);
    for (i = 0; i < TWI_SPECIALS; i++) if (t->special_ids[i] >= 0) {
        twi_json_print(out, ",\n  '%s': ", twi_special_keys[i]);
        twi_quote_token(t, out, t->special_ids[i]);
    }
    if (!t->source_is_json && t->model == TWI_M_WORDPIECE)
        twi_json_print(out, ",\n  'do_lower_case': %s,\n  'strip_accents': %s,\n  'tokenize_chinese_chars': %s",
                       twi_truth(t->normalizers->lowercase), twi_truth(t->normalizers->strip_accents),
                       twi_truth(t->normalizers->chinese));
    if (!t->source_is_json && t->model == TWI_M_BPE)
        twi_json_print(out, ",\n  'add_prefix_space': %s", twi_truth(t->splitters->prefix_space));
    twi_json_print(out, ",\n  'clean_up_tokenization_spaces': false\n}\n");
    return !out->failed;
}

static bool twi_save_text(tw_tokenizer *t, twi_text *path, const char *folder, const char *name, const void *bytes,
                          size_t n) {
    twi_join_path(path, folder, name);
    return !path->failed && twi_save_file(t->tw, twi_text_string(path), bytes, n);
}

/* vocab.json and merges.txt, vocab.txt: the older forms. */
static bool twi_save_old_files(tw_tokenizer *t, twi_text *path, twi_text *out, const char *folder) {
    size_t i;
    uint32_t *order;
    twi_text_clear(out);
    if (t->model == TWI_M_WORDPIECE) {
        for (i = 0; i < t->model_size; i++) {
            const char *s = twi_spelling_of(&t->vocabulary, (int64_t)i, NULL);
            if (!s) return true;                                            /* ids with holes have no such file */
            twi_text_add(out, s);
            twi_text_char(out, '\n');
        }
        return !out->failed && twi_save_text(t, path, folder, "vocab.txt", twi_text_string(out), out->length);
    }
    if (t->model != TWI_M_BPE || !t->bytes_last || t->prefix_length || t->suffix_length) return true;
    twi_write_vocabulary(t, out);
    if (out->failed || !twi_save_text(t, path, folder, "vocab.json", twi_text_string(out), out->length)) return false;
    twi_text_clear(out);
    twi_text_add(out, "#version: 0.2\n");
    order = twi_merge_order(t);
    if (!order) return false;
    for (i = 0; i < t->merge_count; i++) {
        twi_text_add(out, tw_token(t, twi_merge_left(&t->merges[order[i]])));
        twi_text_char(out, ' ');
        twi_text_add(out, tw_token(t, twi_merge_right(&t->merges[order[i]])));
        twi_text_char(out, '\n');
    }
    twi_free(&t->region, order);
    return !out->failed && twi_save_text(t, path, folder, "merges.txt", twi_text_string(out), out->length);
}

TWDEF bool tw_save_tokenizer(tw_tokenizer *t, const char *folder) {
    twi_text path, out;
    bool ok, sp;
    if (!t || tw_failed(t->tw)) return false;
    if (!folder) { twi_fail(t->tw, TW_E_ARGUMENT, "tokenizer: no folder was given (NULL)"); return false; }
    path = twi_text_new(&t->region);
    out = twi_text_new(&t->region);
    sp = t->model == TWI_M_SP_UNIGRAM || t->model == TWI_M_SP_BPE;
    ok = twi_make_folders(t->tw, folder);
    if (ok && sp) ok = twi_save_text(t, &path, folder, t->family == TWI_F_GLM ? "cog-pretrain.model"
                                     : "spiece.model", t->source.data, t->source.size);
    else if (ok && t->source_is_json)
        ok = twi_save_text(t, &path, folder, "tokenizer.json", t->source.data, t->source.size);
    else if (ok) ok = twi_write_tokenizer_json(t, &out)
        && twi_save_text(t, &path, folder, "tokenizer.json", twi_text_string(&out), out.length);
    if (ok && !sp) ok = twi_save_old_files(t, &path, &out, folder);
    if (ok && t->config_source.data)
        ok = twi_save_text(t, &path, folder, "tokenizer_config.json", t->config_source.data, t->config_source.size);
    else if (ok) {
        twi_text_clear(&out);
        ok = twi_write_config(t, &out)
            && twi_save_text(t, &path, folder, "tokenizer_config.json", twi_text_string(&out), out.length);
    }
    twi_text_free(&path);
    twi_text_free(&out);
    return ok;
}

/* -- learning a byte-level BPE --------------------------------------------------------------------
   Count each different word once;
   then, again and again, join the pair that occurs most often (of equal ones, the one of the
   smallest ids) in all words that have it.  What changes is only in those words, so each pair keeps a list of the words
   it occurs in, and a heap of pairs by count gives the next one.  A count in the heap may be out of date: it is
   looked at when the pair comes up, and put back if it is.

   Ids come out as from `tokenizers`,
       whose bookkeeping this follows to the letter: a pair's count is not cleared when it is joined,
   and a pair that comes up in new places gets a second entry in the heap with those places alone.  (Both only show when
   two different merges make the same token.) */
typedef struct twi_place { uint32_t word, next; } twi_place;                /* lists of words, through positions + 1 */
/* places: new ones of this round */
typedef struct twi_pair { uint64_t key; int64_t count; uint32_t places, last_word; } twi_pair;
typedef struct twi_entry { int64_t count; uint64_t key; uint32_t places; } twi_entry;

typedef struct twi_learner {
    tw_tokenizer *t;
    twi_region   *region;
    uint32_t     *symbols;             /* of all words, one after the other; words shrink in place */
    size_t       *starts;
    uint32_t     *lengths;
    int64_t      *counts;
    size_t        words;
    /* by key = left << 32 | right, + 1; 0 is free */
    twi_pair     *pairs;  size_t pair_mask, pair_count;
    twi_place    *places; size_t place_count, place_capacity; uint32_t free_place;
    twi_entry    *heap;   size_t heap_count, heap_capacity;
    uint64_t     *touched; size_t touched_count, touched_capacity;          /* pairs with new places */
} twi_learner;

static uint64_t twi_pair_key(uint32_t left, uint32_t right) { return ((uint64_t)left << 32 | right) + 1; }

static twi_pair *twi_learner_pair(twi_learner *l, uint64_t key) {
    size_t at, i, slots;
    twi_pair *old;
    for (at = (size_t)twi_mix(key) & l->pair_mask; l->pairs && l->pairs[at].key; at = (at + 1) & l->pair_mask)
        if (l->pairs[at].key == key) return &l->pairs[at];
    if (!l->pairs || (l->pair_count + 1) * 2 > l->pair_mask) {              /* grow, then look again */
        slots = l->pairs ? (l->pair_mask + 1) * 2 : 1024;
        old = l->pairs;
        l->pairs = (twi_pair *)twi_alloc(l->region, slots, sizeof *l->pairs);
        if (!l->pairs) { l->pairs = old; return NULL; }
        for (i = 0; old && i <= l->pair_mask; i++) if (old[i].key) {
            for (at = (size_t)twi_mix(old[i].key) & (slots - 1); l->pairs[at].key; at = (at + 1) & (slots - 1))
                continue;
            l->pairs[at] = old[i];
        }
        l->pair_mask = slots - 1;
        twi_free(l->region, old);
        for (at = (size_t)twi_mix(key) & l->pair_mask; l->pairs[at].key; at = (at + 1) & l->pair_mask) continue;
    }
    l->pair_count++;
    l->pairs[at].key = key;
    l->pairs[at].last_word = UINT32_MAX;
    return &l->pairs[at];
}

/* The pair's count changes by one occurrence in the word, more or less; a new occurrence is a place to look at. */
static bool twi_learner_change(twi_learner *l, uint32_t left, uint32_t right, uint32_t word, int sign) {
    twi_pair *pair = twi_learner_pair(l, twi_pair_key(left, right));
    uint32_t place;
    void *grown;
    if (!pair) return false;
    pair->count += sign * l->counts[word];
    if (sign < 0 || (pair->places && pair->last_word == word)) return true;
    if (l->free_place) { place = l->free_place; l->free_place = l->places[place - 1].next; }
    else {
        grown = twi_grow(l->region, l->places, l->place_count, &l->place_capacity, l->place_count + 1,
                         sizeof *l->places);
        if (!grown) return false;
        l->places = (twi_place *)grown;
        place = (uint32_t)++l->place_count;
    }
    if (!pair->places) {
        grown = twi_grow(l->region, l->touched, l->touched_count, &l->touched_capacity, l->touched_count + 1,
                         sizeof *l->touched);
        if (!grown) return false;
        l->touched = (uint64_t *)grown;
        l->touched[l->touched_count++] = pair->key;
    }
    l->places[place - 1].word = word;
    l->places[place - 1].next = pair->places;
    pair->places = place;
    pair->last_word = word;
    return true;
}

static bool twi_entry_before(const twi_entry *a, const twi_entry *b) {
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static bool twi_learner_push(twi_learner *l, twi_entry e) {
    size_t i = l->heap_count;
    void *grown = twi_grow(l->region, l->heap, i, &l->heap_capacity, i + 1, sizeof *l->heap);
    if (!grown) return false;
    l->heap = (twi_entry *)grown;
    l->heap_count++;
    for (; i > 0 && twi_entry_before(&e, &l->heap[(i - 1) / 2]); i = (i - 1) / 2) l->heap[i] = l->heap[(i - 1) / 2];
    l->heap[i] = e;
    return true;
}

static twi_entry twi_learner_pop(twi_learner *l) {
    twi_entry top = l->heap[0], last = l->heap[--l->heap_count];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < l->heap_count; i = child) {
        if (child + 1 < l->heap_count && twi_entry_before(&l->heap[child + 1], &l->heap[child])) child++;
        if (!twi_entry_before(&l->heap[child], &last)) break;
        l->heap[i] = l->heap[child];
    }
    l->heap[i] = last;
    return top;
}

/* The round's new places become entries of the heap. */
static bool twi_learner_queue(twi_learner *l) {
    size_t i;
    for (i = 0; i < l->touched_count; i++) {
        twi_pair *pair = twi_learner_pair(l, l->touched[i]);
        twi_entry e;
        if (!pair) return false;
        e.count = pair->count;
        e.key = pair->key;
        e.places = pair->places;
        pair->places = 0;
        pair->last_word = UINT32_MAX;
        if (e.count > 0 && !twi_learner_push(l, e)) return false;
    }
    l->touched_count = 0;
    return true;
}

/* Joins left and right to `joined` in one word, from the left. */
static bool twi_learner_join(twi_learner *l, uint32_t word, uint32_t left, uint32_t right, uint32_t joined) {
    uint32_t *s = l->symbols + l->starts[word], n = l->lengths[word], from, to = 0;
    for (from = 0; from < n; from++) {
        if (from + 1 < n && s[from] == left && s[from + 1] == right) {
            if (to > 0 && (!twi_learner_change(l, s[to - 1], left, word, -1)
                           || !twi_learner_change(l, s[to - 1], joined, word, 1))) return false;
            if (from + 2 < n && (!twi_learner_change(l, right, s[from + 2], word, -1)
                                 || !twi_learner_change(l, joined, s[from + 2], word, 1))) return false;
            s[to++] = joined;
            from++;
        } else s[to++] = s[from];
    }
    l->lengths[word] = to;
    return true;
}

/* The text's different words with their counts, special tokens left out, as symbols. */
static bool twi_learner_read(twi_learner *l, const char *text, size_t n) {
    tw_tokenizer *t = l->t;
    twi_index index;
    uint64_t *slots = NULL;
    size_t slot_count = 0, capacity[3] = { 0, 0, 0 }, i, at, end, total = 0, *lengths = NULL;
    memset(&index, 0, sizeof index);
    if (!twi_clean_utf8(t, &text, &n) || !twi_find_added(t, text, n, 0, &t->raw_parts)) return false;
    for (i = 0; i < t->raw_parts.count; i++) {
        const twi_part *part = &t->raw_parts.list[i];
        const char *s = text + part->begin;
        size_t length = part->end - part->begin;
        if (part->id >= 0) continue;
        for (at = 0; at < length; at = end) {
            uint32_t hash, cursor;
            int64_t word;
            void *grown[3];
            end = twi_gpt2_word(&t->unicode, s, length, at);
            hash = cursor = twi_hash(s + at, end - at, 0);
            if (slots) while ((word = twi_index_next(&index, hash, &cursor)) != TWI_NOWHERE)
                if (lengths[word] == end - at && memcmp(text + l->starts[word], s + at, end - at) == 0) break;
            if (!slots) word = TWI_NOWHERE;
            if (word != TWI_NOWHERE) { l->counts[word]++; continue; }
            grown[0] = twi_grow(l->region, l->starts, l->words, &capacity[0], l->words + 1, sizeof *l->starts);
            if (grown[0]) l->starts = (size_t *)grown[0];
            grown[1] = twi_grow(l->region, l->counts, l->words, &capacity[1], l->words + 1, sizeof *l->counts);
            if (grown[1]) l->counts = (int64_t *)grown[1];
            grown[2] = twi_grow(l->region, lengths, l->words, &capacity[2], l->words + 1, sizeof *lengths);
            if (grown[2]) lengths = (size_t *)grown[2];
            if (!grown[0] || !grown[1] || !grown[2]) return false;
            l->starts[l->words] = part->begin + at;
            l->counts[l->words] = 1;
            lengths[l->words++] = end - at;
            total += end - at;
            if (l->words * 2 > slot_count) {
                uint64_t *old = slots;
                size_t k;
                slot_count = slot_count ? slot_count * 4 : 4096;
                slots = (uint64_t *)twi_alloc(l->region, slot_count, sizeof *slots);
                if (!slots) return false;
                index = twi_index_of(slots, slot_count);
                for (k = 0; k + 1 < l->words; k++)
                    twi_index_add(&index, twi_hash(text + l->starts[k], lengths[k], 0), (uint32_t)k);
                twi_free(l->region, old);
            }
            twi_index_add(&index, hash, (uint32_t)l->words - 1);
        }
    }
    twi_free(l->region, slots);
    l->symbols = (uint32_t *)twi_alloc(l->region, total, sizeof *l->symbols);
    l->lengths = (uint32_t *)twi_alloc(l->region, l->words, sizeof *l->lengths);
    if (!l->symbols || !l->lengths) return false;
    for (i = 0, total = 0; i < l->words; i++) {
        const char *s = text + l->starts[i];
        l->starts[i] = total;
        l->lengths[i] = (uint32_t)lengths[i];
        for (at = 0; at < lengths[i]; at++) l->symbols[total++] = (uint32_t)t->byte_ids[(unsigned char)s[at]];
    }
    twi_free(l->region, lengths);
    return true;
}

static bool twi_learn(twi_learner *l, int64_t vocab_size, int64_t min_frequency, const tw_tokenizer_train_desc *how) {
    tw_tokenizer *t = l->t;
    uint32_t *joined = NULL;
    uint64_t *keys = NULL;
    size_t merges = 0, key_capacity = 0, joined_capacity = 0, i;
    uint32_t w, place;
    for (w = 0; w < l->words; w++)
        for (i = 0; i + 1 < l->lengths[w]; i++)
            if (!twi_learner_change(l, l->symbols[l->starts[w] + i], l->symbols[l->starts[w] + i + 1], w, 1))
                return false;
    if (!twi_learner_queue(l)) return false;
    while ((int64_t)t->vocabulary.known < vocab_size && l->heap_count) {
        twi_entry top = twi_learner_pop(l);
        twi_pair *pair = twi_learner_pair(l, top.key);
        uint32_t left = (uint32_t)((top.key - 1) >> 32), right = (uint32_t)((top.key - 1) & 0xFFFFFFFFu);
        size_t a, b;
        const char *s;
        int32_t id;
        void *grown;
        if (!pair) return false;
        if (top.count != pair->count) {
            top.count = pair->count;
            if (!twi_learner_push(l, top)) return false;
            continue;
        }
        if (top.count < 1 || top.count < min_frequency) break;
        twi_text_clear(&t->scratch);
        s = twi_spelling_of(&t->vocabulary, left, &a);
        twi_text_bytes(&t->scratch, s, a);
        s = twi_spelling_of(&t->vocabulary, right, &b);
        twi_text_bytes(&t->scratch, s, b);
        if (t->scratch.failed) return false;
        id = twi_vocabulary_find(&t->vocabulary, t->scratch.data, t->scratch.length);
        if (id < 0) {
            id = (int32_t)t->vocabulary.count;
            if (!twi_vocabulary_put(&t->vocabulary, t->scratch.data, t->scratch.length, id)) return false;
        }
        grown = twi_grow(l->region, keys, merges, &key_capacity, merges + 1, sizeof *keys);
        if (!grown) return false;
        keys = (uint64_t *)grown;
        grown = twi_grow(l->region, joined, merges, &joined_capacity, merges + 1, sizeof *joined);
        if (!grown) return false;
        joined = (uint32_t *)grown;
        keys[merges] = top.key;
        joined[merges++] = (uint32_t)id;
        for (place = top.places; place; ) {
            uint32_t next = l->places[place - 1].next;
            if (!twi_learner_join(l, l->places[place - 1].word, left, right, (uint32_t)id)) return false;
            l->places[place - 1].next = l->free_place;
            l->free_place = place;
            place = next;
        }
        if (!twi_learner_queue(l)) return false;
        if (how->progress && !how->progress(how->user, (int64_t)t->vocabulary.known, vocab_size)) {
            twi_fail(t->tw, TW_E_STOPPED, "tokenizer: stopped while learning");
            return false;
        }
    }
    if (!twi_make_merges(t, merges)) return false;
    for (i = 0; i < merges; i++) {                                          /* the last of equal pairs counts */
        size_t at;
        for (at = (size_t)twi_mix(keys[i]) & t->merge_mask; t->merges[at].pair && t->merges[at].pair != keys[i];
            at = (at + 1) & t->merge_mask) continue;
        if (!t->merges[at].pair) t->merge_count++;
        t->merges[at].pair = keys[i];
        t->merges[at].rank = (uint32_t)i;
        t->merges[at].joined = (int32_t)joined[i];
    }
    return true;
}

TWDEF tw_tokenizer *tw_train_tokenizer(tw_context *tw, const char *text, size_t length, int64_t vocab_size,
                                       const tw_tokenizer_train_desc *how) {
    static const char *const usual[1] = { "<|endoftext|>" };
    tw_tokenizer_train_desc plain;
    tw_tokenizer *t;
    twi_region room;
    twi_learner l;
    const char *const *specials;
    uint32_t c;
    int64_t i, count;
    bool ok;
    if (!tw || tw_failed(tw)) return NULL;
    memset(&plain, 0, sizeof plain);
    if (!how) how = &plain;
    specials = how->special_tokens ? how->special_tokens : usual;
    count = how->special_tokens ? how->special_count : 1;
    if ((!text && length) || count < 0) {
        twi_fail(tw, TW_E_ARGUMENT, "tokenizer: no text to learn from");
        return NULL;
    }
    if (length >= INT32_MAX || vocab_size > 1 << 24 || vocab_size < 256 + count) {
        twi_fail(tw, TW_E_RANGE, "tokenizer: %lld tokens (of %lld to %d) learned from %lu bytes (of less than 2 GiB)",
                 (long long)vocab_size, (long long)(256 + count), 1 << 24, (unsigned long)length);
        return NULL;
    }
    t = twi_new_tokenizer(tw);
    if (!t) return NULL;
    memset(&room, 0, sizeof room);                                          /* what learning needs ends with it */
    room.tw = tw;
    memset(&l, 0, sizeof l);
    l.t = t;
    l.region = &room;
    t->family = TWI_F_GPT2;
    ok = true;
    for (i = 0; ok && i < count; i++)
        if (specials[i] && *specials[i] && twi_vocabulary_find(&t->vocabulary, specials[i], strlen(specials[i])) < 0)
            ok = twi_vocabulary_put(&t->vocabulary, specials[i], strlen(specials[i]), (int64_t)t->vocabulary.count);
    /* all bytes, in the order of their characters */
    for (c = 33; ok && c < 256 + 68; c++) {
        char spelled[4];
        int n = twi_utf8_write(c, spelled);
        if (twi_char_byte(c) >= 0 && twi_vocabulary_find(&t->vocabulary, spelled, (size_t)n) < 0)
            ok = twi_vocabulary_put(&t->vocabulary, spelled, (size_t)n, (int64_t)t->vocabulary.count);
    }
    for (i = 0; ok && i < count; i++) if (specials[i] && *specials[i]) ok = twi_add_special(t, specials[i], false);
    ok = ok && twi_set_byte_level(t, false) && twi_index_added(t);
    if (ok && t->added_count) t->special_ids[0] = t->special_ids[1] = t->special_ids[3] = t->added[0].id;
    ok = ok && twi_learner_read(&l, text ? text : "", length)
        && twi_learn(&l, vocab_size, how->min_frequency > 0 ? how->min_frequency : 2, how);
    twi_region_clear(&room);
    t->model_size = t->vocabulary.count;
    if (ok) ok = twi_finish_tokenizer(t);
    if (ok) return t;
    tw_free_tokenizer(t);
    return NULL;
}

/* -- the tables of Unicode ------------------------------------------------------------------------
   Made by tools/unicode_tables.py, which says how to read them. */
static const char *const twi_unicode_letter[] = {      /* 1354 numbers */
    "E%=)=S$$-$'$(:$C$N1'/1(*$$$E'($%%'$$)$$&$$$7$W%$O'+J($J$%$)M$K%>''Q$O$G$%$G&$$2%*%-&%$3$$BA^%.$;E$,%'$(9'$,$&$:<",
    "*.(;$)4N$_$Z$&$5$*-23'+%%%9$*$$&'&$3$0%$&1%-$+)'%%9$*$%$%$%C'$$6&3,$&$9$*$%$(&$5$2%:$.+%%%9$*$%$(&$B%$&2$4$$)&&$",
    "'&%$$$%&%&&&/9$X$+$&$:$3&$=&%$%%B$'+$&$:$-$(&$C%$%2%4,$&$M$%$3$(&+&;)(5&;$,$$%*_$T$$%/*_$%$$$($;$$$-$%,$%($$8'D$",
    "$d$+$H$>(W&O$7$3)''&$&%*&'0/$4J$$$($%O$$Q-$'%*$$$'%M$$'%E$$'%*$$$'%2$^$$'%G%I$33Z%%)&P6%4$=(O%)+*5061510$&2X$G$$",
    "'$G%^%*(%F$$$(J%-CU$B%(.P$'=Z$:,Y$V%$b%S$4+Z$B0%-P$=H$M$&-H$%.(O$%&M$'$)$%&$(D)D%Z+%)%J$%)%+$$$$$$$C%Y$$*$$&&$*&",
    "'%)'0(&$*X&$0$30I&$'$%-$$&()$$$$$$'$.%'(('$X$%`W%I*)'&%/J$$$($%]$*$3:,*$*$*$*$*$*$*$*T%$Y1%N$((%'Z%)&$_%$'(O$$c%",
    "4D$T$3D3DR)D%QX8G%R$%Q+&3-%7S$3C%J%U$,%K&%G%%%$$$+83$&$'$:AX$1V$c$)&$$%.@-:<A*S$@$3($--($M$:&$+7:&$&V$$$&%%(%$$$",
    ";&%.*&/)%)%),*$*$O$$1)W&AHb-/:'U$HL+R.%N&J$*/(($$-$0$($$$%$%$P&E$O.5D%%Z$L$/X&($K'H$=)=.^%&)%)%)%&G$/$=$6$%$2%1F",
    "$`&I/A&U$S$D$07$+)J$-B%H$'+T$c'5H$'H$'L$+X$/.$2$*$%$.$2$*$%&X$/[,,9-+;)$N$$,I%)%$$P$$%&$%:-:,CE%6$%-9-=J%]$)%D%$",
    "2'$&$AN$A&AG$+$@>Z$-9-605R&M%[$W$0W$0H$J$@,:_*N$)%3&`$A-$+9N$5R$8>:/Y$^$%%$0Q$D$<=H$A$%$+G$&$/T$1'8$$$G$5$<6%d$*",
    "$$$'$2$-*S$J$+%%%9$*$%$(&$5$/(B-$$%$$J$$$<$$$P$Y$5'7&BT$7%$$](S$M$'H$T$7$`$O$0$K%>I$*^(P$X&D%C+%$%+$%$;2$$$c%+%K",
    "$3$$$@$-L$*$8$.R$6$5M%K)E$C,$I$4$U$BT&*$%$J$8$<)$%$D$1$K-62$$0$F$a&$S%_@J*H)PV%E&2TE$4)<`a&(K5^Y)BF[$^4*C4S%4B5T",
    "$3'C8(6T0Q$W)D%D'O%($F%0D%%$$@]d(+ZJ$M$-K[+'$*$%$G,2$A&%$1'+P/HL%O&(0&,*-J`(Y%$K%$%%$%%%'$/$$$*$E%$'%+$*$@$'$($$",
    "&*$X-%<$<$C$<$C$<$C$<$C$<$+X^$C))I+c$V'Q$-*3$E-B5P$H2@H*B%$S2*$'$%$2$I)`$H%*$XI$'$>$%$$%$$-$'$$$$)$'$$$$$$&$%$$%",
    "$$$$$$$$$$%$$%'$*$'$'$$$-$4(&$($4HN'D[M$D$_E')c)%FX(1UM*2R6FQ%c3FS$O_'(DG'",
    NULL };
static const char *const twi_unicode_number[] = {      /* 288 numbers */
    "T$-]&%($%&EQ$-J'-J)-a/-Z&-')P&-Z&-Z&-%)R&0W&-+*K&-L&**6Q&-D&-Z&-J%7P+-J%-S97U>&S*-)-9-P,-D'.I(-)-Z(-Z%-J'-)-ZD$$",
    "&))-J)W$%(Z9a$R%9Z6BMO$$M;$<,1&[-'N'-B+$2D$-K$2D`@-a(-D-)_'-J$-J)-9-Z%-Z/-Z]7-Q2Q$/^$4%Y->H$'A$+$J'(N)-RA+<*K$,O",
    "%(9)D(%%3%R$D%,X$%B&O%(L&+;+M$*N-)T$-)-Z+Cc'-N$'T&*J'BD'-a$-T'-*7`*-Z--Z&-Z.-J&-)7P%/H06b%-Z7-Z%AG*-J%-J0-J&8OE$",
    "S&EJ2-JM%-Z%-J'-$*R3-J+:^V:-JR$7/7P&<YF$V$DN%-J0-Z2-[*-P9,D'-[;`$$&$'P%Q$$2FB0G[%-",
    NULL };
static const char *const twi_unicode_digit[] = {      /* 142 numbers */
    "T$-JU$-J'-J)-a/-Z&-Z&-Z&-Z&-Z&-Z&-Z&-Z&-Z&-D&-Z&-J%-Z+-J%-J_$-J$-P,-D'-J(-)-Z(-Z%-J'-)-JRF$-J8-J$-J)-9-Z%-Z/-Z]7",
    "-JP$-JH%-)-a;-D'-a$-T'-Z+-Z--Z&-Z.-J&-)7P%-J0-J&-Z7-Z%-Z*-J%-J0-ZR3-JM%-Z%-J'-Z3-Z`:-XZ%V$DN%-J0-Z2-[*-Y=-ZX'-",
    NULL };
static const char *const twi_unicode_word[] = {      /* 1592 numbers */
    "T$-*='$$=S$$-$'$(:$C$N1'/1(*$$$4Y&$%%'$$)$$&$$$7$W%$O'$Q($J$%$)M$+Q$$$$%$%$$+>''A.(N%'J&$+%-$6%$3`$%I&1Z$'$%$%R$",
    "5@'.(;$)+O%$E'%-$6$+%%%9$*$$&'%,%%%'+$'%$(%/-$$$%&$)'%%9$*$%$%$%%$$('%%&&$*'$$*3.&$,$&$9$*$%$(%-$&$&%$2'%-,*$&$+",
    "%%%9$*$%$(%,%%%&*&'%$(%-$$3%$)&&$'&%$$$%&%&&&/'(&&$'%$)$1-30$&$:$3%,$&$'*%$&%$%'%-3'$+$&$:$-$(%,$&$'*%)%$'%-$&/0",
    "$&$W$$&$(('*(%--)$&$5&;$,$$%*&$')$$$+)-%%0_$(2$-K$%$$$($;$$$:%($$$*$-%'D$$:%)-.$$$$$'-$H$'7$5$H$,$^$N%)R%%J$$$($",
    "%O$$Q-$'%*$$$'%M$$'%E$$'%*$$$'%2$^$$'%G%%&D$33Z%%)&P6%4$=(O%&.*9,9.7/0$&$%/X%&$'%%-E$&$.)^%*O$(J%-C$/'/-L$%(.P$'",
    "=)-J$@'d$$A%.)-0$+CU$Q%&-4,/X&/]$+-&U$%.(O$%&3&$K$(Z3%)%J$%)%+$$$$$$$C%Y$$*$$&&$*&'%)'0(&$*2%U$%6$@$0$30W$E$4$'$",
    "%-$$&()$$$$$$'$.%'(('$4M$Q<X$Z]$I*),/J$$$($%]$*$2;,*$*$*$*$*$*$*$*$D$S$$Y1&<2$(%('Z%%%%&$_%$'(O$$c%4D$T$3D3DR)D%",
    "QX8G%R$%Q+&@7W$$-$W&I$,%K&%G%%%$$$+8Z$'$6X$/J%--);&$$U$%H$/A&E%1.)C$[$,1%-):&M%;&%3%(-)%)%),*$*$O$$1)`&$%%-)Hb-/",
    ":'U$HL+R.%N&J$*/((/$0$($$$%$%$P&E$O.5D%%Z$L$/'333&%;&D$($K'6-*='$$=.^%&)%)%)%&G$/$=$6$%$2%1F$`&I%Y$L'$F'A&U$2$CD",
    "$0B(O$(B%H$'+$(N$c'%-)H$'H$'L$+X$/.$2$*$%$.$2$*$%&X$/[,,9-+;)$N$$,I%)%$$P$$%&$%:-:,CE%6$%-9-=J%]$)%D%'$%(+$&$A%&",
    "'$D$A&AG$+$B<Z$-9-605R&M%[$W$0W$0L$+-)J$&($:_*N$$%&%3&[$E$-$+E$C9N$8>:,K%C3,a$*$0<*-)Y$$-''+H$%$,I%''$0$$G$5$I$)",
    "'c$*$$$'$2$-*`$(-)'$+%%%9$*$%$($-%%%&%$)$(*%*&(.-$$%$$J$$-$$%$$'$+0%AO%(-''BJ%$$+-J(Z$%,:)F$E%&$.-J$^$*-)7@>%2'-",
    ")*^(`$I&N%8+%$%+$%$B$%%,/-J%+%R$%+$%>d$+$+N%&$5M%K)E$2-),$Q$$,2-;B%9$1M%*$%$P$&$$%$,+-))$%$I$$%$)*-Z,:,4$M$&(0.Y",
    "%$S%_@J&S&4H)PV%E&2TE$39-`a&(K5^Y)_$JZ$^4*C$-)S%$-)B%(.[$,'/-,8(6T0Q$&-J)D%D'O%'^$*4D%%$%.%1]d(+ZJ$M$-K[+'$*$%$G",
    ",2$A&%$1'+P/HL%O&(0&,*-&%UF'-J3R$%:c3(&)++%*B'X'&`0Y%$K%$%%$%%%'$/$$$*$E%$'%+$*$@$'$($$&*$X-%<$<$C$<$C$<$C$<$C$<",
    "$+%V$D3[$'V$+$1$9($2TF$C))Y)*$4%*$%$((c$E$$T&Q$&1%-'$E-C4_$Z1N$Z)O$I2*$'$%$2$I).*M$P%'-JI$'$>$%$$%$$-$'$$$$)$'$$",
    "$$$$&$%$$%$$$$$$$$$$%$$%'$*$'$'$$$-$4(&$($4X6=)=)=JW%-JD$D[M$D$_E')c)%FX(1UM*2R6FQ%c3FS$O_'(DG'TN[8T*",
    NULL };
static const char *const twi_unicode_numeric[] = {      /* 292 numbers */
    "T$-]&%($%&EQ$-J'-J)-a/-Z&-')P&-Z&-Z&-%)R&0W&-+*K&-L&**6Q&-D&-Z&-J%7P+-J%-S97U>&S*-)-9-P,-D'.I(-)-Z(-Z%-J'-)-ZD$$",
    "&))-J)W$%(Z9a$R%9Z6BMO$$M;$<,1&[-'N'-B+$2D$-K$2D`@-a(-D-)_'-J$-J)-9-Z%-Z/-Z]7-Q2Q$/^$4%Y->H$'A$+$J'(N)-RA+<*K$,O",
    "%(9)D(%%3%R$D%,X$%B&O%(L&+;+M$*N-)T$-)-Z+Cc'-N$'T&*J'BD'-a$-T'-*7`*-Z--Z&-Z.-J&-)7P%/H06b%-Z7-Z%AG*-J%-Z$-J.-J&8",
    "OE$S&EJ2-JM%-Z%-J'-$*R3-J+:b-&^K:-JR$7/7P&<YF$V$DN%-J0-Z2-[*-P9,D'-[;`$$&$'P%Q$$2FB0G[%-",
    NULL };
static const char *const twi_unicode_punctuation[] = {      /* 312 numbers */
    "E$2-*=)='F$$($&$-%&$&$c8$+$V1)M$%W$$$$%$%$P$%7%$%0$%%N%'J&$O$1M*&Z$2C$I+%-$d.$G;$_%$-%L(2$$I$'K%$N%('%S&)O($H6,[",
    "'$P6%P$%R%&K%%b'&$&I$.^,%])%D'*$)P(*`''`$(c$%D%+.$a<;+7$0$/B%1%^6'A%bE$1S%%C-W/9d$'D$%`:'$%T&$S'S$$6c0&'-%/3$/$F",
    "&$_%$FDA%Q+&G&$-$W&)a.'Z%%L$&$$U$%S$$E&03%a&'c&%3%^*$VN7%T)-9G$$1$$'$$%Y'&$)$'-%&%=&$$>$$$$*_/&a7$T$$c/$K:$K)$C$",
    "T+,J$$T&*F%*^%'NI$*Q&%$'c&'T$%S%(&$0$$&]%)O&$a3$_*:M&&]*&UM&(^S4%I'$E%(+$_N7$KS*(",
    NULL };
static const char *const twi_unicode_control[] = {      /* 50 numbers */
    "#,%%$5d%E$0$VN$)9$D)$U$$cK'$ad$(=(U$($-TaS$DL)dS$$^*&$$dI'$FdN$'SJ(+JXO;$BD&Dad$cdd$%cdd$",
    NULL };
static const char *const twi_unicode_nonspacing[] = {      /* 558 numbers */
    "D;D%%$%O$W+(M+Q$$$$%$%$$L%.T$83$I&*%)%%$'G$$B>`%._$,F$'$,$&$(O$&K'D$[$$$$'+'$&*-%A$_$$''+$7%A%^$$'%'%%&&$B%&$.%^",
    "$$'($%'$7%A$_$$%$$'+$+$.%B$b$$/$V$$b$&(%%'*%.%A$_$$%$)$(%7%A$d$'+$7%J&$*&$$_%$%*/+F&$%)$%.)N%%>$$$$$[$%$$%$$)$$$",
    "&$%()$'$'$'$'$'$/$&,$J&'$)$%%%<%'&3'0$%%)$2$d8&VA&A&A%B%D%%$*+$%.,$Q$&`'$Z&&'%,$)&`)%%$_$$$*$$$$%+)-%$T$1F%'T$$$",
    "($$($L$,/%D$'%%$&]$$$%&$$&_$+%%]'&$0$*'$)$&%J)Z$)'T90'$&/cd%&Q'$D&D$N4'O&%XRA$'-D$%T%%T+$&$'$<%b'$>5X$+<.R$&T$$%",
    "'%$L$$G%)%%%%/$+$S$$W$$$&%%(%$$N$%+$R*$%$'$T^6$E:333QB$F*$Y'(JX$&$%('L$&'$I(%_L$$Z$2]$&U$'%%I%&H$($$%(c$$/%X$,.&",
    "F&&%$$%K($&+8%_$$&$I$*&(c,)$$'%$%R*')%$%>%Y%+%$$%N&$$$%)$$I&&%'$(Hc7(`$*]F$'NL6%LJ(&4+%*B'X'&`b$[$'V$+$1$9($2DU&",
    "*MEJ;T*",
    NULL };
static const char *const twi_unicode_mark[] = {      /* 500 numbers */
    "D;T&W+*K+Q$$$$%$%$$L%.T$83$I&*%)%%$'G$$B>`%._$,F$'$,$&$(O$&]&1$E$Z$&$5$*-%A&]$$$*%%%&,$-%A&]$$$('%%&&$B%&$.&]$$$",
    "+$&$&7%A&]$$$*%%%&+%-%B$`$(&&$',$L$'_$*$&$'*%.%A&]$$$*$&$'*%.%A&_$*$&$',$-%B%J%$')$$$+5%b$$%*/+F&$%)$%.)N%%>$$$$",
    "$'%U$7$%(.$H$,$H&7:''&$&%*&'0/$$-'d8&VA&A&A%B%D%D$,$Q$&[&%F$$Z&/'/`)(^$-$A%$T$2E%(S$4J$,/&B0]$1T$7]'&$8'$'&&%J)Z",
    "$((T9E$cd%&Q'$D&D$N4)M&%XRA'$-D$%T%%T+$&$'$:(]%%V$5=5X$+<0P$'S$1H$$G%1/$+%Q$&V$$$&%%(%$$M$((%P*+$%T^6$E:333QB$F*",
    "$Y'(JX$&$%('L$&'$I(%^L$&Y$2]$'Q$.I%&H$1c$$/&T$1,&d%/)$D(/8']$$$*%%%&,$-%%*&(D)5M&7O**%,>%V%4N&0I&2GL$+$+V%9$1^U6",
    "(`$*_D$R$3'NL6%JJ((&)++%*B'X'&`b$[$'V$+$1$9($2TN$*$4%*$%$(II%*Q&*YbI;T*",
    NULL };
static const char *const twi_unicode_lower[] = {      /* 2697 numbers */
    "E%=&F)I&:&c*$*&T$E$$%5$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$'O/aM$$$%KA$$%'$$%'%$%)$$%'$$%'$$%'$$%'$$%'$$%'$$%'%$%)$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$",
    "$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%S*#$%Z*$$%'$$%'&$%N0#$%d/$$%'$$%c/#$%[/$%&a/#$%W/%$%F(#$%]*#$%'#$%U/$$%a/#",
    "$%)$$%/#$%$#$%b/&$%P0#$%)$$%)#$%K0$$%'$$%'$$%Z0#$%S0$$%Z0%$%O0$$%Z0#$%S0$%&X0#$%O0$$%'$$%]0#$%U0&$%+*%%5$%%)$%%)",
    "$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'%$%)$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'%%%+$$%'$$%d(#$%X%#$%X&$$%'$$%'$$%'$$%'$$%'$",
    "$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%E+$$%N+$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'*$%HG8#$%UF8$$%",
    "G-#$%]P8%$%KF8$$%G/#$%V3#$%)#$%M'$$%'$$%'$$%'$$%'E,$%H5$$%'&$%++$%]*)$%Q'$&&%$$%c$$%&%$4&[$$,&H$G$$%L$+$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'($%Q&%$%D'$$%.#$%5%&&d*#3&N0#D$&d$T$$%F&$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%',$%7$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%D$#$%<$$%'$$%'$$%'$$%'$$%'$$%'%$%)$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$",
    "$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$",
    "$%'$$%'$$%'$$%'$$%'$$%'$$%'%J$&H&M_%J$&c^6$$%R%($%/V9T%&JHd$#)&S[O%WH%$%HM')O$&W`(%&&_%D-$%LT)$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%',$%O`1$$%Ha1$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$",
    "%'$$%'$$%'$$%'$$%'$$%'$$%'$$%',+&%+)&D$-+&D$++&D$+)&D$.$%F$$$%'$$%'$$%'++&5;+&D%++&D$++&D$+%&D$#%&d&#$%J'.'&E'#$",
    "%F(.%&=#%&W(/%&X)#%&O)#$%Z).%&^)#%&+#$%R*M,$%WF1&$%`Y$#$%X*)$%VJ3Q$3&H%6$%L$V<=&]X$T^$T$&DZ&T$$%F&$$%Od7#$%HU0#$",
    "%dS0%$%Zc7$$%'$$%'$$%YE8#$%D%#$%E%#$%'$$%FF8%$%)+%&QG8#$%HH8$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'",
    "$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'",
    "$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'+$%5$$%''$%-QNB$%aXa$$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%",
    "'$$%'$$%'$$%'$$%'$$%'$$%'$$%'6$%L$$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'K'$%T+$$%'$$%'$$%'$$%'$$%'",
    "$$%'&$%+$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'",
    "$$%'$$%'$$%'$$%'-$%9$$%'$$%IDI%#$%PDI%$$%'$$%'$$%'$$%''$%-$$%QVV%%$%]VV%$$%'&$%+$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%'",
    "$$%'$$%IXV%#$%6#$%-#$%9#$%&$$%L&#$%Q$#$%P$#$%POX%#$%`^$$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%b%#$%GUV%#$%]T0#$%XGI%$$%'",
    "$$%OZV%#$%VZV%$$%'$$%'$$%'$$%'$$%'$$%'$$%'$$%dGW%;$%ZIW%O^8=&ZXO$IJ$L$&RR%L'H$&D.a'.&c.$2&;$*&D$$%&3N[$W$&NT&b'9",
    "&D._^%D$&DY(DP8D$&D_N$D%<&Z(KVBF$&RJb$",
    NULL };
static const char *const twi_unicode_canonical[] = {      /* 9504 numbers */
    "D)$'F'cO$#$'bO$DP$#$'dO$FP$#$'EP$HP$#$'GP$RP$#$'QP$VP$$$'QP$LR$#$'GR$ZO$#$'YO$]O$#$'[O$_O$#$'^O$JP$#$'bO$RO$#$'Q",
    "O$TO$#$'SO$VO$#$'UO$cO$$$'WO$NO$#$'KO$FO$#$'EO$HO$#$'GO$JO$#$'IO$LO$#$'KO$VO$%$'IO$ZN$#$'YN$]N$#$'[N$_N$#$'^N$JO",
    "$#$'bN$TN$%$'dM$cM$#$'bM$DN$#$'dM$FN$#$'EN$HN$#$'GN$RN$#$'QN$VN$$$'QN$LP$#$'GP$ZM$#$'YM$]M$#$'[M$_M$#$'^M$JN$#$'",
    "bM$RM$#$'QM$TM$#$'SM$VM$#$'UM$cM$$$'WM$NM$#$'KM$FM$#$'EM$HM$#$'GM$JM$#$'IM$LM$#$'KM$VM$%$'IM$ZL$#$'YL$]L$#$'[L$_",
    "L$#$'^L$JM$#$'bL$TL$$$'SL$cL$#$'QP$JP$#$'IN$JN$#$'IP$NP$#$'MN$NN$#$'MP$RR$#$'QP$RP$#$'MR$aO$#$'`M$aM$#$'`O$cO$#$",
    "'bM$cM$#$'bO$LP$#$'KN$LN$#$'KP$VP$#$'UN$VN$#$'SP$TP$#$'SN$TN$%$'QP$cO$#$'bM$cM$#$'bO$FP$#$'EN$FN$#$'EP$HP$#$'GN$",
    "HN$#$'GP$JR$#$'IP$JP$#$'IR$RP$#$'QN$RN$#$'MP$ZO$#$'YM$ZM$#$'YO$cO$#$'bM$cM$#$'bO$DP$#$'dM$DN$#$'dO$DR$#$'dO$DP$#",
    "$'bQ$XO$#$'WM$XM$%$'UO$XO$#$'WM$XM$#$'WO$ZO$#$'YM$ZM$#$'YO$_O$#$'^M$_M$#$'^O$cQ$#$'bO$cO$#$'bQ$aO$&$'^O$TO$#$'SM",
    "$TM$#$'QO$]Q$#$'[O$]O$$$'YQ$NO$#$'MM$NM$#$'MO$ZQ$#$'YO$ZO$#$'YQ$DP$#$'dM$DN$'$'`O$JO$#$'IM$JM$#$'IO$VQ$#$'UO$VO$",
    "#$'UQ$aO$#$'`M$aM$&$'^O$NO$#$'MM$NM$#$'MO$RO$#$'QM$RM$#$'QO$]O$#$'[M$]M$%$'UO$cN$#$'bL$cL$#$'bN$NQ$#$'MO$NO$#$'M",
    "Q$XO$#$'WM$XM$#$'UO$aN$#$'`L$aL$#$'`N$cN$#$'bL$cL$#$'bN$LQ$#$'KO$LO$#$'KQ$VO$#$'UM$VM$#$'SO$JQ$#$'IO$JO$#$'IQ$TO",
    "$#$'SM$TM$%$'QO$aN$#$'`L$aL$#$'`N$cN$#$'bL$cL$#$'bN$FO$#$'EM$FM$#$'EO$NO$#$'MM$NM$#$'MO$PO$#$'OM$PM$#$'OO$JQ$#$'",
    "IO$JO$#$'EQ$ZN$#$'YL$ZL$#$'UN$VN$#$'UL$VL$#$'UN$cN$#$'`N$RN$#$'QL$RL$#$'QN$_N$#$'^L$_L$#$'^N$HO$#$'GM$HM$E$$'^O$",
    "]P$#$'[N$]N$0$'OP$PP$#$'ON$PN$@$'WQ$ZP$#$'YN$ZN$#$'IP$JP$#$'IN$JN$#$'^O$_O$#$'^M$_M$#$'QO$RO$#$'QM$RM$#$)QO$JO$*",
    "#$)bL$JM$*#$)bN$JO$0#$)[L$JM$0#$)[N$JO$+#$)QM$JM$+#$)QO$JO$2#$)YL$JM$2$$)bO$RP$*#$)IN$RN$*#$)IP$PP$(#$)IN$PN$(#$",
    "'`G$aG$#$'`E$aE$%$'^O$NP$#$'MN$NN$#$'EP$FP$#$'EN$FN$#$'^O$VQ$#$'UO$VO$#$)UQ$VQ$K%#$)MM$VO$K%#$'^7N8#$'W*X*#$'GN$",
    "HN$&$'MP$XO$#$'WM$XM$%$'IO$HO$#$'GM$HM$#$)bO$VP$4#$)dM$VN$4#$'YG$ZG$#$'YE$ZE$#$'UF$VF$#$'UD$VD$#$'dO$aP$#$'`N$aN",
    "$#$'`P$DQ$#$'dN$DO$#$'[P$XP$#$'WN$XN$#$'WP$]P$#$'[N$]N$#$'SP$PP$#$'ON$PN$#$'OP$TP$#$'SN$TN$#$'GP$DP$#$'dM$DN$#$'",
    "dO$HP$#$'GN$HN$#$'bO$_O$#$'^M$_M$#$'^O$cO$#$'bM$cM$#$'[O$XO$#$'WM$XM$#$'WO$]O$#$'[M$]M$#$'`O$JQ$#$'IO$JO$#$'GQ$H",
    "Q$#$'GO$HO$%$'`Q$LP$#$'KN$LN$)$'YP$PP$#$'ON$PN$#$'GP$HR$#$'GP$HP$#$)SQ$VO$*#$)MM$VM$*#$)MO$LO$%#$)MM$LM$%#$'MO$T",
    "O$#$'SM$TM$#$)SO$TO$(#$)MM$TM$(#$'YN$ZN$#$'YL$ZL$P+%&*$$%J$#$'80S$$%S',$%`K$)$'_)VI$#$'D,d+#$%WH$#$'aQ$K,#$'P,O,",
    "#$'T,S,$$'a,`,$$'L-K-#$'T-S-#$)T.E.0<$'T,E,#$'_,^,#$'V-d-#$'L.K.#$'P.O.#$'T.S.#$)L/^.0<$'T.E.#$'_.^.#$'R.`.#$'L/",
    "K/#$'T/S/'$'F0E0#$'F0W/O$$'_3M4#$'N4^3$$'Z3G4&$'N3`2'$'H4U4#$'R4S4#$'J5^4-$'H4G4C$'H6G69$'c5M6#$'N6^5$$'Z5G6&$'N",
    "8`7'$'H6U6#$'R6S6#$'J7^6:$'a9M9#$'P9O9M%$'R3d3#$'D6d50$'X3W3#$'X5W5#$'X3S3#$'T5S5%$'_3b3#$'c5b5%$'HAd@#$'FAEA#$'",
    "a3`3#$'a5`5#$'c3b3#$'c5b5%$'D4K4#$'L6K6#$'L4d3#$'D6d5#$'P4O4#$'P6O6%$'DBdA#$'FBEB#$'N5M5#$'N7M7#$'Z4b4#$'c6b6#$'",
    "c4Y4#$'Z6Y6#$'Z4S4#$'T6S6#$']4b4#$'c6b6%$'J5I5#$'J7I7L,$'cU$]%#$'[%_%#$':;#$'^%a%#$'87^'$'F+E+$$'_)^)3$'a*`*Y5$'",
    "LQ$L$*$':;%$'45G$$'Q%R%#$'O%P%#$'M%N%#$'d$D%#$'Y$Z$#$'W$X$#$'E$F$#$'<=O&$'Z+4#$'5D$2$'O&Z$#$'W$X$$$'<=W%$'P*7%$'",
    "*+F$$'O%P%#$'M%N%#$'d$D%%$'E$F$M*$'Z3B%$'A4#$'5D$2$'O&Z$#$'W$X$Z$$'P(N'Y$$'E$2#$'54#$'3F$`&$'c)D$[&$'V)P$)$'AB#$",
    "'AD$$$'C*#$)+*J$c&$'F*2#$'54#$'3F$Q'$'H+A$$'B6#$)76,#$'B/H.$'J9N*,$'Y)Z)'$'O)P)'$'E)F)'$'[(](/$'Q*N*,$'K'%$$'$)#",
    "$'a&G&$$'J&I&+$'AB4$'H$N%,$'Y$Z$'$'O$P$'$'E$F$'$':;/$'Q%N%P&$'D*5dZ%$'RQ(D&$$'`%a%$$'[%]%$$'W%X%$$'S%T%&$'K%L%L$",
    "$'-,$$'10%$'54#$'76$$'=<a8$'KS0LR$#$'KP$LP$#$'IR$NP$#$'MN$NN$#$'MP$FR$#$'EP$FP$#$'ER$cR$#$'bP$cP$#$)`R$LR$O%#$)`",
    "M$LP$O%#$'^O$JP$#$'IN$JN$#$'IP$cQ$#$'bO$cO$#$'bQ$_R$#$'^P$_P$#$'^R$JR$#$'IP$JP$#$'IR$VR$#$'UP$VP$#$)SR$cO$*#$)YM",
    "$cM$*#$)YO$cO$(#$)[M$cM$(#$'[O$TR$#$'SP$TP$#$'SR$ZR$#$'YP$ZP$#$)YR$HR$E%#$)EN$HP$E%#$'dO$FP$#$'EN$FN$#$'dO$_O$#$",
    "'^M$_M$#$'[O$cO$#$'bM$cM$#$'bO$ZQ$#$'YO$ZO$#$'YQ$DP$#$'dM$DN$#$'dO$cQ$#$'bO$cO$#$'bQ$PR$#$'OP$PP$#$'MR$RR$#$'QP$",
    "RP$#$)QR$cO$0#$)SM$cM$0#$'OO$PO$#$'OM$PM$#$'OO$TQ$#$'SO$TO$#$'SQ$PR$#$'OP$PP$#$'MR$RQ$#$'QO$RO$#$)QQ$RQ$b$#$)SM$",
    "RO$b$#$'SO$NR$#$'MP$NP$#$'MR$FR$#$'EP$FP$#$'dQ$LO$#$'KM$LM$#$'KO$XO$#$'WM$XM$#$'WO$PQ$#$'OO$PO$#$'MQ$VO$#$'UM$VM",
    "$#$'UO$NQ$#$'MO$NO$#$'MQ$JR$#$'IP$JP$#$'IR$cQ$#$'bO$cO$#$)`Q$LO$&#$)GM$LM$&#$)GO$LO$-#$)UM$LM$-#$)UO$NO$*#$)EM$N",
    "M$*#$)EO$NO$(#$)GM$NM$(#$'EO$FO$#$'EM$FM$#$'EO$RO$#$'QM$RM$#$'MO$NO$#$'MM$NM$#$'MO$FQ$#$'EO$FO$#$)EQ$FQ$b$#$)GM$",
    "FO$b$#$'GO$cQ$#$'bO$cO$#$'`Q$LO$#$'KM$LM$#$'KO$DQ$#$'dN$DO$#$)dP$aN$/#$)KM$aL$/#$)KO$VO$,#$)KM$VM$,#$)KO$DQ$[$#$",
    ")KM$DO$[$#$'IO$JO$#$'IM$JM$#$'IO$cP$#$'bN$cN$#$'bP$_Q$#$'^O$_O$#$'^Q$VQ$#$'UO$VO$#$'SQ$cP$#$'bN$cN$#$'bP$ZQ$#$'Y",
    "O$ZO$#$'YQ$TQ$#$'SO$TO$#$)SQ$aN$&#$)[L$aL$&#$)[N$cN$+#$)IM$cL$+#$'GO$_N$#$'^L$_L$#$'^N$_P$#$'^N$_N$#$'[P$VN$#$'U",
    "L$VL$#$'UN$XN$#$'WL$XL$#$'WN$FO$#$'EM$FM$#$'EO$DO$#$'dL$DM$#$'dN$]P$#$'[N$]N$#$'YP$cN$#$'bL$cL$#$'bN$DO$#$'dL$DM",
    "$#$'bN$aN$#$'`L$aL$#$'^N$TN$#$'SL$TL$#$'SN$VP$#$'UN$VN$#$'UP$RQ$#$'QO$RO$#$'UP$VP$#$'^O$LM$#$'EM$JM$#$'EM$FM$$$'",
    "Y;T;'$'OP$HR$#$'GP$HP$#$'GR$TP$#$'SN$TN$#$)SP$FP$$#$)dM$FN$$#$)dO$FP$&#$)bM$FN$&#$)bO$FP$1#$)SN$FN$1#$)SP$FP$%#$",
    ")GN$FN$%#$)GP$HR$E%#$)EN$HP$E%#$)EP$NP$,#$)dM$NN$,#$)dO$NP$.#$)bM$NN$.#$)bO$NP$)#$)SN$NN$)#$)SP$NP$(#$)GN$NN$(#$",
    ")GP$HR$^$#$)MN$HP$^$#$'EP$aQ$#$'`O$aO$#$'`Q$LP$#$'KN$LN$#$'KP$aO$#$'`M$aM$#$)`O$_O$$#$)[M$_M$$#$)[O$_O$&#$)YM$_M",
    "$&#$)YO$_O$1#$)KN$_M$1#$)KP$_O$%#$)`M$_M$%#$)`O$aQ$E%#$)^M$aO$E%#$'UO$DP$#$'dM$DN$#$'dO$XQ$#$'WO$XO$#$'KQ$LQ$#$'",
    "KO$LO$#$'KQ$XO$#$'WM$XM$#$)WO$JO$$#$)GM$JM$$#$)GO$JO$&#$)EM$JM$&#$)EO$JO$1#$)WM$JM$1#$)WO$JO$%#$)KM$JM$%#$)KO$LQ",
    "$E%#$)IM$LO$E%#$)IO$]P$W$#$)GM$]N$W$#$)GO$]P$Y$#$)EM$]N$Y$#$)EO$]P$G$#$)WM$]N$G$#$)WO$]P$S$#$)KM$]N$S$#$)KO$]P$3",
    "#$)KO$]N$3#$'`P$aP$#$'`N$aN$#$'`P$LO$#$'KM$LM$#$)KO$PP$W$#$)[L$PN$W$#$)[N$PP$Y$#$)YL$PN$Y$#$)YN$PP$G$#$)KM$PN$G$",
    "#$)KO$PP$S$#$)`L$PN$S$#$)`N$PP$3#$)`N$PN$3#$'WP$RN$#$'QL$RL$#$'QN$XP$#$'WN$XN$#$'WP$DO$#$'dL$DM$#$'dN$XN$#$'WL$X",
    "L$)$'a-`,#$'a,^,#$)_,`,I$#$)F.^,K$#$)F.`,G$#$)D.^,I$#$)D.`,c%#$)c)^,a%#$'c'`*#$'a*^*#$)_*`*I$#$)F,^*K$#$)F,`*G$#",
    "$)D,^*I$#$)D,`*c%#$)c'^*a%#$'J*G-#$'H-E-#$)F-G-I$#$)N.E-K$#$)N.G-G$#$)L.E-I$%$'L,G+#$'H+E+#$)F+G+I$#$)N,E+K$#$)N",
    ",G+G$#$)L,E+I$%$'P.K-#$'L-I-#$)J-K-I$#$)R.I-K$#$)R.K-G$#$)P.I-I$#$)P.K-c%#$)N*I-a%#$'N(K+#$'L+I+#$)J+K+I$#$)R,I+",
    "K$#$)R,K+G$#$)P,I+I$#$)P,K+c%#$)N(I+a%#$'R*O-#$'P-M-#$)N-O-I$#$)V.M-K$#$)V.O-G$#$)T.M-I$#$)T.O-c%#$)R*M-a%#$'R(O",
    "+#$'P+M+#$)N+O+I$#$)V,M+K$#$)V,O+G$#$)T,M+I$#$)T,O+c%#$)R(M+a%#$'_*[-#$']-Y-#$)Z-[-I$#$)c.Y-K$#$)c.[-G$#$)a.Y-I$",
    "%$'a,[+#$']+Y+#$)Z+[+I$#$)c,Y+K$#$)c,[+G$#$)a,Y+I$%$'L/G.#$'H.E.#$)F.G.I$#$)N/E.K$#$)N/G.G$#$)L/E.I$#$)L/G.c%#$)",
    "J+E.a%$$'J)E,$$)F,E,K$$$)N-E,I$$$)L-E,a%#$'R+O.#$'P.M.#$)N.O.I$#$)V/M.K$#$)V/O.G$#$)T/M.I$#$)T/O.c%#$)R+M.a%#$'R",
    ")O,#$'P,M,#$)N,O,I$#$)V-M,K$#$)V-O,G$#$)T-M,I$#$)T-O,c%#$)R)M,a%#$'c)E.#$'F.d-#$'L.M.#$'N.K.#$'P.Q.#$'R.O.#$'T.U",
    ".#$'V.S.#$'a.b.#$'c.`.#$'L/M/#$'N/K/#$'T/U/#$'V/S/%$)D.`,H&#$)])^,F&#$+])`,I$N'#$+])^,K$N'#$+])`,G$L'#$+])^,I$L'",
    "#$+])`,c%)#$+])^,a%)#$)]'`*H&#$)]'^*F&#$+]'`*I$N'#$+]'^*K$N'#$+]'`*G$L'#$+]'^*I$L'#$+]'`*c%)#$+]'^*a%)#$)H*K-H&#",
    "$)H*I-F&#$+H*K-I$N'#$+H*I-K$N'#$+H*K-G$L'#$+H*I-I$L'#$+H*K-c%)#$+H*I-a%)#$)H(K+H&#$)H(I+F&#$+H(K+I$N'#$+H(I+K$N'",
    "#$+H(K+G$L'#$+H(I+I$L'#$+H(K+c%)#$+H(I+a%)#$)L+O.H&#$)L+M.F&#$+L+O.I$N'#$+L+M.K$N'#$+L+O.G$L'#$+L+M.I$L'#$+L+O.c",
    "%)#$+L+M.a%)#$)L)O,H&#$)L)M,F&#$+L)O,I$N'#$+L)M,K$N'#$+L)O,G$L'#$+L)M,I$L'#$+L)O,c%)#$+L)M,a%)#$'])Y-#$'Z-^-#$)_",
    "-E.N'#$'])[)#$)])d-L'$$'])b)#$)c)b))#$']'Y+#$'Z+^+#$'_+E,#$'F,d+#$'D,['$$%L*%$'EU$XM$#$)N*Q.N'#$'H*G*#$)H*O.L'$$",
    "'H*M*#$)N*M*)#$'D(M,#$'N,K,#$'P,Q,#$'R,O,#$'P,G(#$'XK1bO1#$'cO1`O1#$'aO1^K1#$'R*I.#$'J.M.#$)N.E.2#$)V.E.0%$'T.Q*",
    "#$)R*E.X&#$'R(I,#$'J,M,#$'N,U,#$'V,S,$$'_S1`S1#$'aS1^S1#$'_S1[O1#$'J+b.#$'c.E/#$)F/^.2#$)N/^.0#$'D/`-#$'a-^-#$'F",
    ".I+#$)J+^.X&#$'J)b,#$'c,E-#$'F-M-#$'N-K-#$'D-^+#$'[J$TI$#$'SI$VI$#$%EN$%$)VZ$U/N'#$'L+K+#$)L+S/L'$$'L+Q+#$)R+Q+)",
    "#$'X(b,#$'c,`,#$'T-U-#$'V-S-#$'T-K)#$%EM$%%&aX2H,$%UI1&$%`Y$#$'6VP$R&$'PL2SI2#$'XI2WI25$']I2[I2B$'TM2SM2#$']M2[M",
    "2#$'XM2WM2X$$'ZP2YP2'$'DQ2dP2%$'JQ2IQ2:$'ZR2YR2$$'_R2^R2=$'LT2KT2%$'ZT2YT2%$'_T2^T2$$'DU2dT29$'YS$ZS$$$'VV2UV2-$",
    "'NU2MU2#$'[S$]S$#$'WS$XS$#$']V2[V2#$'_V2^V2%$'XW2WW2#$'ZW2YW2%$'aW2`W2#$'cW2bW2)$'HX2GX2#$'JX2IX2%$'XX2WX2#$'ZX2",
    "YX2%$'aX2`X2#$'cX2bX2F$$'XZ2WZ2#$'D[2dZ2#$'F[2E[2#$'J[2I[2T$$'LX2KX2#$'NX2MX2#$'VY2UY2#$'XY2WY2)$'X[2W[2#$'Z[2Y[",
    "2#$'][2[[2#$'_[2^[2`$%&DQ9Ub$$'YV%M_6SO$$'JU9a'$$'[']'$$'W'X'$$'S'T'$$'O'P'$$'K'L'$$'G'H'$$'d&D'$$'`&a&$$'[&]&$$",
    "'W&X&$$'S&T&%$'M&N&$$'I&J&$$'E&F&)$'W%X%#$'W%Z%$$'S%R%#$'Q%T%$$'M%L%#$'K%N%$$'G%F%#$'E%H%$$'b$a$#$'`$c$9$'K(J(,$",
    "'+*0$'H$G$$$'L$K$$$'P$O$$$'T$S$$$'X$W$$$']$[$$$'a$`$$$'D%d$$$'H%G%$$'L%K%$$'P%O%$$'T%S%%$'Z%Y%$$'_%^%$$'c%b%)$'P",
    "&O&#$'P&M&$$'T&U&#$'V&S&$$'Z&[&#$']&Y&$$'a&b&#$'c&`&$$'F'G'#$'H'E'9$';<%$'P(O(#$'R(Q(#$'T(S(#$'V(U(&$'L)K)EDV$$%",
    "c_Q$#$%KY5#$%Pb6#$%GD$#$%Qd1#$%bM3#$%J`%#%%R`I$#$%YHG$#$%DL@#$%WHB#$%Fa$#$%aN'#$%JK-#$%]U'#$%XO&#$%Z:#$%a6#$%R^&",
    "#$%^L6#$%VU$#$%a`$#$%NT$#$%cI+#$%_V)#$%RL'#$%bZI$#$%JS%#$%c].#$%RU&#$%HE-#$%Fd.#$%`PD$#$%ZM,#$%Hc-#$%R^$#$%YM6#$",
    "%cT2#$%RH&#$%MY7#$%_H'#$%JI&#$%H^%#$%Hb1#$%SXD$#$%FG$#$%R5#$%Pc+#$%cD&#$%_W&#$%RQ%#$%XU'#$%ND&#$%P(#$%J^&#$%JX'#",
    "$%_G%#$%ZL$#$%`Z5#$%J2#$%FF%#$%VF&#$%ZW*#$%Z[(#$%U_,#$%Qd;#$%NF&#$%]Y1#$%aE%#$%[E*#$%TJ&#$%Td,#$%NG(#$%bEC#$%X]$",
    "#$%F`)#$%Ra$#$%N6#$%DF*#$%T3#$%LE/#$%U[E$#$%V`9#$%bN:#$%C#$%DI7#$%H_$#$%JG&#$%LL,#$%MS(#$%EO7#$%JW&#$%]S3#$%MPB#",
    "$%a_)#$%ZF%#$%N[,#$%VB#$%UI4#$%Lc5#$%[W7#$%Xc*#$%[^+#$%cO2#$%KY&#$%X_.#$%bY7#$%ZM%#$%JN2#$%TX)#$%FJ&#$%dR2#$%Pd4",
    "#$%SV4#$%W]'#$%Rc2#$%MX2#$%Na+#$%QO6#$%ZO$#$%D)#$%TO.#$%PJ-#$%T]%#$%JJ'#$%_S&#$%WQC#$%_7#$%FW%#$%V[%#$%VQ&#$%VG(",
    "#$%]V'#$%JL1#$%_O%#$%_F%#$%R&#$%IGJ$#$%ZF-#$%FO%#$%Zc4#$%`R;#$%]U$#$%D*#$%XM$#$%VL(#$%PF$#$%DX$#$%FX%#$%XF%#$%ZK",
    "$#$%RO*#$%SG(#$%NW(#$%RV$#$%IWD$#$%]+#$%XE$#$%ZD1#$%Xd.#$%TB#$%Ec8#$%]5#$%P]$#$%JG'#$%DM+#$%UP'#$%EM5#$%NE'#$%aR",
    "%#$%JA#$%HJ$#$%P^,#$%R.#$%FW(#$%]-#$%ac+#$%HP%#$%H(#$%D0#$%^LH$#$%JF8#$%PD/#$%LT%#$%Qb=#$%YI,#$%LI$#$%LU(#$%F(#$",
    "%XY'#$%VJ%#$%]a&#$%LK%#$%XO*#$%D](#$%FU*#$%MT@#$%P_:#$%M_E$#$%HS-#$%T*#$%aX%#$%Z8#$%_Z%#$%D8#$%HU$#$%NN%#$%aX0#$",
    "%ESG$#$%FP+#$%XH=#$%^HG$#$%aR)#$%FQ+#$%DX3#$%b^:#$%V>#$%JQ&#$%D[(#$%cS4#$%^IF$#$%PB#$%PI'#$%a_'#$%Z6#$%X8#$%_G%#",
    "$%FV&#$%]A#$%R^'#$%PY'#$%H$#$%ZR'#$%PU%#$%I_E$#$%Z[0#$%^M0#$%J`1#$%TP$#$%HZ+#$%VN+#$%L`%#$%TH$#$%ST>#$%LG&#$%_E-",
    "#$%^U&#$%N(#$%H:#$%Gb'#$%QF$#$%cO0#$%SMB#$%PK=#$%[S;#$%I&#$%cM)#$%_F%#$%JD0#$%EY3#$%V^+#$%WJ&#$%RL7#$%bR&#$%FD*#",
    "$%GP)#$%SO8#$%I^)#$%DL%%$%XM$$$%XE*%$%OM-#$%]X3#$%D_$#$%HK$#$%H%#$%1#$%X%#$%Ra1#$%SM0#$%cS$$$%NI&$$%PR%%$%DX%#$%",
    "N/&$%Hd&#$%=#$%]%#$%]L%#$%OQ)#$%Vb%#$%UTG$#$%V6#$%P)#$%]:#$%Z$#$%_)#$%]H$#$%V)#$%H)#$%TA#$%T)#$%]`$#$%7#$%PF%#$%",
    "L0#$%P%#$%L)#$%_Y$#$%J,#$%c-#$%LC#$%HS%#$%J-#$%T3#$%]H$#$%_.#$%RC#$%cJ%#$%_-#$%9#$%$#$%3#$%/#$%1#%&D&#$%J.#$%F'#",
    "$%c6#$%LG$#$%N$#$%T&#$%F6#$%J,#$%TB#%%]+#$%aA#$%VO%#$%P+#$%Z9#$%T&#$%X<#$%N&#$%aN$#$%H+#$%ZN&#$%]4#$%]&#$%Oa>#$%",
    "VKU*#$%OQD*%$%Gd<#$%c]$#$%^'#$%SB#$%N@#$%Z&#$%R7#$%J&#$%JN$#$%S'#$%L'#$%V'#$%TK$#$%V(#$%F,#$%D$#$%a3#$%P/#$%X_$#",
    "$%1#$%D,#$%L'#$%Z5#$%P*#$%O'#$%P+#$%`%#$%H,#$%H'#$%D<#$%T(#$%P&#$%L3#$%a4#$%J-#$%+#$%Z&#$%JF%#$%F'#$%R;#$%X<#$%C",
    "#$%R(#$%]2#$%D8#$%VG&#$%G[%#$%X*#$%Z*#$%R7#$%N,#$%N&#$%H1#$%'#$%Z-#$%F$#$%V$#$%P(#$%6#$%];#$%NB#$%c3#$%Z.#$%D1#$",
    "%V,#$%X7#$%R/#$%_X$#$%_,#$%X]$#$%T@#$%N'#$%D$#$%V5#$%V&#$%^%#$%P&#$%(#$%E$#$%]'#$%F(#$%a:#$%DG$#$%X6#$%R5#$%_0#$",
    "%PD%#$%R)#$%J*#$%N+#$%L%#$%;#$%D&#$%RQ$#$%XL%#$%aNH)#$%.#$%F^(#$%SGa*#$%ZK%#$%F%#$%DEM+#$%RL(#$%JD4#$%d]S*#$%Z'G",
    "%$'M`P%M%$$'a&Y&-$'H&S%#$'T%Q%#$)R%^%-#$)T%^%/#$'@U$#$'V$S$#$'T$K$#$'N$M$#$'P$O$#$'R$Q$#$'T$S$#$'V$U$#$'X$W$$$']",
    "$[$#$'_$^$#$'a$`$#$'c$b$#$'D%d$$$'H%G%$$'L%K%#$'N%M%$$'R%Q%#$'T%S%$$'X%W%#$'Z%Y%#$']%[%#$'_%^%#$'a%`%#$'V$[$#$'T",
    "$G$#$']$[$#$'N%M%ON($'XQI'F%$$'b$c$1$'M$N$F'$'R*6#$'98`3$'DF$4#$'5D$R.$'H9%#$'$4$$'5+`*$'Z24#$'76FbR$$'T_b%@#$'<",
    "=#$)<=5#$)O$=7#$)Q$=9#$)S$=;#$)U$==Z%$'R'K(#$'N(M(#$)L(K(5#$)]'M(5#$)Z'K(7#$)Z'M(7dUM%$%GWE)#$%,#$%5#$%FR^)#$%Ga",
    "])#$%a'#$%=#$%R'#$%T*#$%c$#$%a'#$%S$#$%EG1#$%]^L*#$%^R_)#$%1#$%D$#$%J$#$%N_^)#$%IJL*#$%aN1#$%P%#$%a`^)#$%K`^)#$%",
    "=#$%SQ$#$%DR$#$%5#$%XFD,#$%Wcd+#$%@#$%KV1#$%]Y1#$%9#$%]%#$%-#$%GZ1#$%H`1#$%'#$%Z$#$%P$#%&9#$%H$#$%H&#$%3#$%5#$%V",
    "$#$%7#&%'#$%_N`)#$%[`P)#$%ON1#$%N$#$%L]`)#$%S[`)#$%/#$%N$#$%T,#$%O)#$%D$#$%D%#$%X&#$%L(#$%X$#$%J'#$%D$#%%F%#$%N$",
    "#$%H$#$%3#$%B#$%L8#$%d3#$%F4#$%O/#$%J%#$%^J%#$%RR&#$%d4#$%P%#$%V$#$%G+#$%R-#$%$#$%Z*#$%TGc)#$%Gdb)#$%-#$%B#$%L$#",
    "$%3#$%D'#$%PXc)#$%H'#$%`Sc)#$%c%#$%;#$%b'#$%a+#$%S[4#$%@#$%]D5#%%P&#$%XLd)#$%MDd)#$%N$#$%B#$%;#$%NVd)#$%UUd)#$%1",
    "#$%_X$#$%EW$#$%EN5#$%cQ5#$%@#$%H(#$%I&#$%RYD*#$%END*#$%JND*#$%SKD*#$%(#$%F$#%&N)#$%G`5#$%aa5#$%Z%#$%N$#$%]%#$%QD",
    "6#$%FVX*#$%QTX*#$%LG6#$%)#$%)#$%L$#$%TPF,#$%KMF,#%%JGF*#$%dVT)#%%bQ4#$%YI6#$%Fda*#$%HV:#$%SKE+#$%5#$%SL6#$%RO6#$",
    "%J&#$%7#$%H%#$%T+#$%QX6#$%`$#$%T[6#$%DHG*#$%^DG*#$%F+#$%+#$%'#$%&#$%a%#$%L$#$%L%#$%>#$%9#$%c%#$%L$#$%+#$%X$#$%9#",
    "$%H'#$%L(#$%J%#$%]*#$%]`G*#$%baG*#$%E'#$%])#$%Z$#$%F)#$%_DH*#$%baG*#$%^(#$%[$#$%Y[7#$%ZG8#$%N$#$%c$#$%O%#$%YD8#$",
    "%JR8#$%_$#$%aMI*#$%QFI*#$%N4#$%b-#$%dV8#$%T[8#$%U]8#$%K%#$%aN.#$%)#$%ZZ-#$%K)#$%FE0#$%KQB#$%aW4#$%+#$%/#$%_&#$%8",
    "#$%DKJ*#$%WKa*#$%FO9#$%M*#$%_/#$%J&#$%TcI*#$%bbI*#$%b)#$%N2#$%Q[9#$%N_9#$%F)#$%R'#$%a.#$%ZdI*#$%SaI*#$%IP:#$%VT:",
    "#$%P]J*#$%IYJ*#$%OT:#$%LV:#$%_%#%&Z$#$%JQK*#$%G]1#$%cc1#$%[NK*#$%aJL*#$%^dK*#$%@#$%O)#$%c-#$%T%#$%V&#$%O&#$%T%#$",
    "%B#$%=#$%V^K*#$%WcK*#$%Z2#$%c&#$%YW;#$%T^;#$%*#$%XDL*#$%SQL*#$%N:#$%DdK*#$%D&#$%SaK*#$%J*#$%Y$#$%(#$%ML<#$%LO<#$",
    "%J&#$%.#$%P&#$%TKN)#$%dbM)#$%aUL*#$%QPL*#$%cDM*#$%I]L*#$%=#$%Z$#$%T`M*#$%S]M*#$%N$#$%DNN*#$%c0#$%WMN*#$%F$#$%bQ=",
    "#$%VS=#%%^R=#$%c]=#$%N$#$%N$#$%L$#$%N'#$%b_=#$%VD>#$%HUO*#$%SSO*#$%LYO*#$%GVO*#$%cFZ)#$%b]Y)#$%F^P*#$%R$#$%]+#$%",
    "SHL+#$%;#$%]R>#$%cdP*#$%$#$%R%#$%X$#%&MEQ*#$%%#$%Z%#$%EU>#$%HY>#$%MX>#$%D(#$%R]M+#$%baQ*#$%a&#$%D'#$%Uc>#$%JXN+#",
    "$%dPR*#$%LXR*#$%Z%#$%OWR*#$%](#$%[O@#$%FU@#$%7#$%-#$%_VS*#%%Z5#$%U`S*#$%[R@#$%V_P+#$%McS*#$%)#$%G_@#$%VIQ+#$%`_S",
    "*#$%GGA#$%THA#$%,#$%_$#$%PLU*#$%IFU*#$%GJA#$%PPA#$%Z&#$%J'#$%EUA#$%LSS+#$%c$#$%`RS+#$%D]S+#$%bYU*#$%LaU*#$%U_U*#",
    "$%N)#$%9#$%NQV*#$%V'#$%IPV*#$%TXV*#$%SWV*#$%cR^)#$%W][*#$%_QB#$%F(#$%SSB#$%JWB#$%UL6#$%HSJ+#$%@#$%GF=#$%5#$%Y^])",
    "#$%)#$%X^)#$%IWI$#$%PFC#$%.#$%H$#$%Wc:#$%ad:#$%'#$%7#$%V%#$%PIX*#$%QIX*#$%T&#$%P'#$%X'#$%W+#$%X,#$%X%#$%D*#$%K3#",
    "$%R*#$%'#$%D$#$%XIX*#$%N6#$%O,#$%W_W+#$%PaC#$%'#$%J%#$%LO[*#$%OJ[*#$%TaX*#$%baX+#$%+#$%DIY+#$%F5#$%QZY+#$%NRD$#$",
    "%;#$%9#$%'#$%D'#$%E%#$%P+#$%[%#$%R,#$%E(#$%J'#$%Z$#$%b_D$#$%XDE$#$%D%#$%SDE$#$%RJE$#$%)#$%LD[*#$%d]Z*#$%1#$%UNE$",
    "#$%NPE$#$%bGN$#$%JdE,#$%T.#$%SN^+#$%5#$%VbE$#$%_'#$%_,#$%Z/#$%JI]*#$%^d[*#$%P$#$%X(#$%](#$%T`]*#$%YV`$#$%UGb(#$%",
    "A#$%L&#$%aRb(#$%WDb(#$%L)#$%XM`*#$%Z$#$%UY_*#$%_(#$%D%#$%_E`*#$%IE`*#$%_4#%&c,#$%Y(#$%_:#$%]$#$%Nc`*#$%bJ`*#$%Od",
    "I$#$%HFJ$#$%Da`*#$%E^E,#$%_QJ$#$%EU@#$%F[@#$%HFb*#$%N0#$%[_G,#$%3#$%XZJ$#$%XFc*#$%SYH,#$%LcH,#%%YLc*#$%a$#$%_]c*",
    "#$%KQc*#$%b_J$#$%PdJ$#$%a*#$%Z$#$%]&#$%dFK$#$%HZK,#$%`ED+#$%a5#$%_.#$%bFL$#$%c$#$%XKL$#$%RZE+#$%ObM,#$%_DN,#$%V3",
    "#$%J+#$%ObE+#$%MZL$#$%J_L$#$%-#$%1#$%7#$%1#$%N%#$%NPG+",
    NULL };
static const char *const twi_unicode_compatible[] = {      /* 10482 numbers */
    "D($%D%*$'#TR$$$%QN$'$'E'LR$%%&GQ$#$'G$FR$#$%Z.%$'[^$RT$#$%OS$#$%a&$$)`&JE3dD3#$)(JE3GE3#$)%FE3dD3W&$'N$%#$'c$%.$",
    "'`$Z)#$'Y'Z'+$'ND$`H$Y$$%-H%$)b%P$HO$#$)SP$P&HM$#$)SN$P$HM$#$'dO$&#$''a$#$''&#$'[$*#$'+]$#$'+*H$$'O%P$#$'O$P&#$'",
    "O$P$a($%G$#$%aC#$%[C#$%3#$%RD$#$%'#$%/#$%WD$#$%'C$'U(PR$#$'OR$RR$#$'QR$XR$#$'WR$TT$#$'ST$JR$#$'IR$ZR$%$%S-#$%QC#",
    "$%1#$%-#$%_E$Y'$'MK$NV$,$'MV$FR$#$)ER$TR$0N%$%F.#$%/#$%I$#$'#K-#$'L-^,#$%a.#$%.<$%.#%&1$$%U%#$%_$&$%G$Q/$'H@_$Q*",
    "$'N-_'#$'[%]%#$'J(I(#$'W%X%_b$$'Vb&Y$d&$'Z,Y$L$$'0G$#$'H$6R$$%X)N&$)R-E'B$$)J&G'BF/$%]8SE&$%YM+#$%N+#$%K+$%&'#$%",
    "X7#+&Q7$$%3#$%JA#$%GA#$%'#%&'#$%)#$%7#%&cB#$%HO0#$%dM1#%&'#$%NC#%&'#$%KC$$%+#$%'#$%a0#$%[0#$%NB#%&HP0#$%ON1#%&+#",
    "$%VN1#$%`N0#$%UC#$%cN1#&&I[/#%&L$#$%^Y$#$%5#%&)#%&_W$#$%B#%&-0$%R*F$$%YB#$%bB#$%HC#$%M9#$%]9#$%OC#$%VC#$%'#$%+#&",
    "&)#$%JU0#$%`Q0#$%d%#$%TU0#$%OR0#$%`%#$%$#'&'#$%/#%&7#$%Q0#%&a0#$%JM0#%&EM0#$%EE$#&&PE$#$%T5_)$'QY$_I$#$'YH$LM$E,",
    "$'QR$JS$$$'IS$JS$#$'IS$HV$#$)GV$TR$X&.$)GV$JS$I$#$)dQ$JS$G$#$)ER$JS$c%0$)GV$LS$K$#$)dQ$LS$I$#$)ER$LS$a%0$)GV$TR$",
    "2#$)dQ$TR$01$'ER$FR$#$'ER$LS$$.%KS$)$%Dd2($'dc2JU$/$%MT$#$'###$)###+$%>&$'HE3##$)###$$')##$)###'$'KE3#$$'$NR$+$'",
    "OP$##$'#`$#$'#a$0$+Jd2###*$%GE33$%D$#$%V&%)&M&#$%4#$%Rc3#$%Mb3#%&M$#$%P'#-&`&#$%,#$%Rc3#$%Mb3#%&M$$$%V&#$%+#$%7#",
    "$%5#$%FB#$%EC#'&)#$%-#%&).$'E%F%[%$)G$G&L&#$)&G&L'#$%d%#$'_)^)$$)D%K&D'#$):K&P'#$%Z4$$'d0W)#$%F%#&%b$#$%D%#$%c.#",
    "%%`0#$%)#$%D%$$%`$#$'#F%%&&b$#%%'%$'%.#$)1A1#$'30$$%=&$%#&%&S$$$%J%#%&d$$$%3#$%H%#'&FZ%#$%QZ%$$)I%,R$#$%TZ$#$%<#",
    "$%d$#$%=#$%FK2'$%^a3#%&D%#%&-)$)S&JE3^D3#$).JE3YD3#$+2JE3IE3$#$)%JE3EE3#$)$HE3EE3#$)&JE3bD3#$)(HE3bD3#$)&FE3bD3#",
    "$)$DE3bD3#$)*JE3`D3#$)$cD3`D3#$),JE3[D3#$),FE3[D3#$)(cD3[D3#$)$_D3[D3#$'0JE3#$%Yd2#$'###$)####$'#=#$%##$'#<#$)=<",
    "##$+=<###$'#B#$%##$'#A#$)BA##$%)#%&4#$%7#$%]$#$'###$)####$'#=#$%##$'#<#$)=<##$+=<###$'#B#$%##$'#A#$)BA##$%)#%&4#",
    "$%7,$)^&LE3EE3F($'Td3##$)###$$')##$)###S4,&^d3#$'#$#$'%##$'#%#$'$'#$'&)#$'(+#$'*-#$',/#$'.1#$'03#$'0&#$)252#$)$7",
    "4#$)$96#$)$;8#$)$=:#$)$@<#$)$B>#$)$D$A#$)$F$C#$+$5$0#$+$5#2#$+$5%4#$+$5'6#$+$5)8#$+$5+:#$+$5-<#$+$5/>#$+$51A#$+$",
    "53C#$+$7&0#$'3(#$'+*#$'-,#$'/.#$'10#$'32#$'54#$'76#$'98#$))$&#$))#(#$))%*#$))',#$))).#$))+0#$))-2#$))/4#$))16#$)",
    ")38#$)+&&#$).V&S&#$)$X&U&#$)$Z&W&#$)$]&Y&#$)$_&[&#$)$a&^&#$)$c&`&#$)$D'b&#$)$F'd&#$)$H'E'#$)$J'G'#$)$L'I'#$)$N'K",
    "'#$)$P'M'#$)$R'O'#$)$T'Q'#$)$V'S'#$)$X'U'#$)$Z'W'#$)$]'Y'#$)$_'['#$)$a'^'#$)$c'`'#$)$D(b'#$)$F(d'#$)$H(E(#=&T$#=",
    "&D%#$%E&EM$$+Zd3###K&$)Ed3#)#$'###$)###I3$%_%#$%K$U*$%ZT9S,$%]JCW%$%Hb</$%b^L$#$%T%#$%@#$%5#$%X$#$%]%#$%1#$%L$#$",
    "%X$#$%NL$#$%P%#$%/#$%R$#$%L$#$%N$#$%N&#$%N$#$%9#$%Z,#$%a(#$%]$#$%-#$%a$#$%5#$%Z$#$%=#$%V$#$%L&#$%H$#$%Z$#$%LS$#$",
    "%T'#$%]@#$%R$#$%3#$%9#$%H$#$%]'#$%_A#$%D&#$%T*#$%R$#$%J$#$%P$#$%P&#$%)#$%X9#$%7#$%;#$%=#$%L*#$%3#$%-#$%N*#$%7#$%",
    "=#$%3#$%_&#$%F$#$%H$#$%D(#$%NH$#$%a%#$%N$#$%LR$#$%-#$%J(#$%D$#$%=#$%N$#$%R%#$%-#$%Z3#$%T$#$%D%#$%Td$#$%H'#$%R$#$",
    "%X&#$%T$#$%5#$%1#$%L&#$%-#$%D%#$%RG%#$%c>#$%;#$%-#$%+#$%3#$%H$#$%'#$%F(#$%T0#$%-#$%J8#$%7#$%H&#$%1#$%5#$%3#$%Z(#",
    "$%1#$%L1#$%1#$%F&#$%F$#$%c%#$%_1#$%1#$%F$#$%R7#$%a*#$%/#$%P.#$%R(#$%a%#$%X:#$%N+#$%aG$#$%Z$#$%V&#$%J&#$%L'#$%9#$",
    "%/#$%F%#$%]'#$%7#$%X8#$%1#$%5#$%5#$%D$#$%B#$%+#$%c'#$%+#$%/#$%Nb$#$%a$#$%NA#$%;#$%R$#$%Z4#$%=#$%R'#$%a%#$%RG$#$%",
    "B#$%B#$%J%#$%N%#$%R/#$%;#$%J'#$%T2#$%c$#$%F0#$%N$#$%-#$%]0#$%T.#$%_*#$%/#$%-#$%P_$#$%5#$%],#$%X,#$%)#$%c%#$%V)#$",
    "%=#$%+#$%1#$%H)#$%H%#$%/#$%@#$%R-#$%J&#$%+#$%R.#$%)#$%J$#$%]2#$%D&#$%1#$%P'#$%7#$%)#$%7#$%a$#$%Z;#$%D<#$%7#$%P%#",
    "$%P$#$%3#$%7#$%+#$%T%#$%+#$%F$#$%-#$%=#$%Z$#$%B#$%3#$%Z&#$%B#$%+N$$%d[S%Y$$%Hd:$$%cV4#%&)D&$'KVM$VK;#$'UK;XK;%$'",
    "G$'d%$'V%N$U$%&Sa2#$%X-#$%S-#%&X-#&&U-#)&_-#$%O,#&&K$#$%Z$#-&S$#8&T(#$%$#%&['#%&J.#$%-#$%'#$%-#$%+#$%'#$%^.#$%F/",
    "#$%'#%&G/#$%)#%&'#$%-#$%'#(&'#$%1#$%+#$%7#$%1#$%-#%&N-#&&W,#%&_%#$%+#%&5#$%)#$%7#$%)&$%cIB#$%]+#$%I+#$%HQ'#$%EQ'",
    "#$%J%#$%G%#$%RV6#$%UQ6#$%d&#$%S$#$%TV(#$%UC#$%OK'D&$)GMK$TQ+QQ+#$)$XQ+UQ+#$)$ZQ+WQ+#$)$_Q+[Q+#$)$aQ+^Q+#$)$cQ+`Q",
    "+#$)$FR+dQ+#$)$JR+GR+#$)$LR+IR+#$)$PR+MR+#$)$RR+OR+#$)$TR+QR+#$)$VR+SR+#$)$XR+UR+#$+$TQ+F)SW+#$+$XQ+c(SW+#$+$ZQ+",
    "a(SW+#$+$_Q+](SW+#$+$aQ+Z(SW+#$+$cQ+X(SW+#$+$FR+T(SW+#$+$JR+P(SW+#$+$LR+N(SW+#$+$PR+J(SW+#$+$RR+H(SW+#$+$TR+F(SW",
    "+#$+$VR+D(SW+#$+$XR+c'SW+#$+$LR+H)MX+#$1$JR+a(^(V(P'G]+#$/$JR+a(Q(](MX+$$)$TbJ$QbJ$#$)$LJK$IJK$#$)$FcJ$dbJ$#$)$J",
    "OO$GOO$#$)$]JK$YJK$#$)$NXL$KXL$#$)$ZbJ$WbJ$#$)$JXL$GXL$#$)$NGK$KGK$#$)$VUM$SUM$#$)$DRW$bQW$#$)$JH]$GH]$#$)$]DZ$Y",
    "DZ$#$)$DTW$bSW$#$)$V_L%S_L%#$)$RSO$OSO$#$)$_`V$[`V$#$)$HDX$EDX$#$)$FRW$dQW$#$)$PUa$MUa$#$)$NcM$KcM$#$)$FI^$dH^$#",
    "$)$VKJ%SKJ%#$)$NWa$KWa$#$)$]LM$YLM$#$)$ZOK$WOK$#$)$LIN$IIN$#$)$aWQ$^WQ$#$)$ZO`$WO`$#$)$VQK$SQK$#$)$cMJ%`MJ%#$)$]",
    "VM$YVM$#$)$NXa$KXa$#$)$VRK$SRK$#$)$HaD%EaD%#$)$ZaD%WaD%#$%PVN$#$%_V'#$%ZT&#$%TD.+$)bWb$+A#$'I$$#$'%##$'#%#$'$'#$",
    "'&)#$'(+#$'*-#$',/#$'.1#$'.(#$')&#$''$#$'%##$'#%#$'$'#$%ZP+#%&'#&&)#$%+#%&'#(&)#$'>F)#$'b(c(#$'`(a(#$'[(](#$'Y(Z",
    "(#$'W(X(#$'S(T(#$'O(P(#$'M(N(#$'I(J(#$'G(H(#$'E(F(#$'d'D(#$'b'c'#$-I(J(P(Q.V)#$+^(H)I)V)#$'U)J)$$%HMB#$%]+#$%I+#",
    "$%HQ'#$%QH'#$%VQ$#$%WZ$#$%TZ$#$%`T$#$%LR%#$%Ra,#$%JZ'#$%QG%#$%[T%#$%VN8#$%GOA#$%PP*#$%NH$#$%E5#$%NG,#$%EW5#$%]J2",
    "#$%TF0#$%KX,#$%UN6#$%LV6#$%EN%#$%Ka0#$%PS>#$%bWC#$%PH$#$%T[/#$%_U8#$%KSH$#$%TL$#$%Xa/#$%UY1#$%J%#$%G%#$%Zb*#$%Id",
    "'#$%S.#$%]I'#$%E&#$%_[0#$%Gc6#$%PaB#$%I[@#$%Ta%#$'URP$)#$'(+#$'*-#$',/#$',*#$'+(#$')&#$''$#$'%##$'#%#$'$'#$'&)#$",
    "'(+#$'*-#$'*,#$'%RQW$#$'OQW$PQW$#$'MQW$NQW$#$'KQW$LQW$#$'IQW$JQW$#$'GQW$HQW$#$'EQW$FQW$#$'dPW$DQW$#$'bPW$cPW$#$)",
    "QQW$$TQW$#$)QQW$#RQW$#$)QQW$%PQW$#$'dOW$c$#$)&=8#$'&A#$)63C#$%aI;#$%'#$%'#$%'#%&'#$%)#$%'#$%'#$%'#$%'#$%'#$%'#$%",
    "'#$%'#$%'#$%'#$%)#$%'#$%'#)&'#$%3#$%)#$%)#$%)#(&)#$%/#$%'#)&'#'&1$$-^'_%M&H)K&#$+O%V'O$K&#$-%F(Y$`&3#$)#X(E$#$-Q",
    "'R%T%K'O$#$)9c'G&#$)Y$)X'#$/Y'F$6_'K&b%#$+BL(E(F(#$)G(V'W&#$)AH([$#$)M&0P'#$+b&a&O%-#$+^$H'(H$#$+E(G$L(/#$+S'G$X",
    "(M$#$+E&K$H$G$#$+L$K$H&F&#$+b'T&-H$#$/b'K$H([%O%J)#$'b'D'#$/d&D'`&O$D(4#$/I&D':Z$K&J%#$-`&D''[%-#$+U$O$D(4#$/E&O",
    "$D(4S$Z%#$/K']&d%G%9V'#$+`&a&Bb%#$)[$Z'I'#$).T&E%#$+Q$V'E%E'#$+Z$E$9]&#$-O&a&G&Z&[$#$-U%J&5K'O$#$)H%T&G&#$).T&Y%",
    "#$+4O%J)I'#$)=^%a$#$)F$b%H(#$'I%Z%#$'U%+#$)#8-#$)1Y%D%#$/9M&H)E'T&Y%#$+1M&H)S&#$-9O&J)C$#$/U$S&3R$BJ%#$+U$S&N$]&",
    "#$)U$S&V$#$)c$U&H(#$/O$K&T'O%-b%#$+]&G&V(K&#$/=[&X%:CL'#$)O$L$7#$-Y$U%D$_&E$#$)I$`&J%#$+Z$`&F&1#$)/J$Q%#$+L$`&V(",
    "W&#$-c$`&H)M'`$#$+c&b&J)^&#$-]$E'7c'Y%#$+J$G'H(I%#$'J$T$#$-S$E'V(Y%b%#$)H'F%E$#$)CF%4#$+M$W&9a&#$)AW&R'#$)<Y$;#$",
    ")B=[&#$-c%N$[&D&;#$+K$d%a&/#$'K$9#$/89Y$O&J)E$#$)6O&G$#$-T'O&G$c%Z%#$+G$Z$K&J%#$+0T$K&b%#$)Z'T$E$#$),K'F(#$+4Q%-",
    "J%#$'$$#$+'U$S&H)#$-E$F$Q%[&H(#$'%:#$/;1Y%Q$S$X(#$)*[%-#$'SM;VL]$#$'SL]$TL]$#$'QL]$RL]$#$'OL]$PL]$#$'ML]$NL]$#$'",
    "KL]$LL]$#$'IL]$JL]$#$'GL]$HL]$#$'EL]$FL]$#$'dK]$DL]$#$)SL]$$VL]$#$)SL]$#TL]$#$)SL]$%RL]$#$)SL]$'PL]$#$)SL]$)NL]$",
    "#$)SL]$+LL]$#$)SL]$-JL]$#$)SL]$/HL]$#$)SL]$1FL]$#$)SL]$3DL]$#$)QL]$&VL]$#$)QL]$$TL]$#$)QL]$#RL]$#$)QL]$%PL]$#$)Q",
    "L]$'NL]$#$)EI]$S$F$#$')(#$'d$L$#$)=$F$#$'(U$#$'X$<#$'%5#$)45Y&#$)H&5W&#$'P$;#$'aES$_^$#$'_E%E_+#$'ZM%]G,#$'MY%_N",
    "&#$+EM%YU'Md*LF8#$'`Pa$b%#$'_%^%#$'Z[$Y[$#$']%[%#$'X%W%#$'74#$'98#$'-,#$)F%&9#$+$2&9#$'+W%#$'T%S%#$'P[$O[$#$'P[$",
    "MY$#$'/.#$'+*#$'b$H&#$)AI%H&#$)^%,H&#$)I&%H&#$)O%:H&#$'HX$dX$#$'%$#$'23#$'$%#$'.1#$'%$#$'cX$bX$#$'###$'67#$'&'#$",
    ")##Y&#$)F&7Y&#$'Z&Y&#$)V&'Y&#$)Z&#W&#$)D&7W&#$'X&W&#$)T&'W&#$)X&T_3G_3#$+.T_3G_3E'#$'a$F$#$)7Y$F$#$)K$)F$#$)W$5F",
    "$#$)F$E$)#$-@E$)F`3G_3#$/$E$)F`3G_3E'#$'a&)#$',-#$'VX$UX$#$'./#$'(W$#$'T$S$#$'PZ$OZ$#$'R$Q$#$'N$M$#$'45#$'X$U$#$",
    "'R$Q$#$'NZ$MZ$#$'P$O$#$'L$K$#$'67#$'L$aW$#$'[Y$]Y$#$+SX$I&c&b&#$'L$c%#$'>##$'#%#$+E%Hb3W_3*#$)K%]%E'#$'P&G%#$'-H",
    "&#$'E$0#$'U$3#$'V$-#$'I%##$'#'#$'a$5#$'2%#$'$'#$)&)2#$'-;#$'88#$)9*)#$)%'(#$'[$2#$+T%G'c&b&#$)H%#(#$')'#$'F%$#$'",
    "b$J%#$'b$9#$):c`3S_3#$)[%Lb3S_3#$'[&L`V$#$'I`V$J`V$#$'G`V$H`V$#$'E`V$F`V$#$'d_V$D`V$#$'b_V$c_V$#$'`_V$a_V$#$'^_V",
    "$__V$#$'[_V$]_V$#$)K`V$$N`V$#$)K`V$#L`V$#$)K`V$%J`V$#$)K`V$'H`V$#$)K`V$)F`V$#$)K`V$+D`V$#$)K`V$-c_V$#$)K`V$/a_V$",
    "#$)K`V$1__V$#$)K`V$3]_V$#$)I`V$&N`V$#$)I`V$$L`V$#$)I`V$#J`V$#$)I`V$%H`V$#$)I`V$'F`V$#$)I`V$)D`V$#$)I`V$+c_V$#$)I",
    "`V$-a_V$#$)I`V$/__V$#$)I`V$1]_V$#$)G`V$(N`V$#$)G`V$&L`V$#$)`[V$.9aX@$%ab$#$%'V)$%JVU%K'$%UHW%#$%_%F>$%LbV%#$%DE%",
    "#$%[PX%#$%RRX%Db6$'[RY%##$'#)#$'(/#$).#)#$)(#/#%'1%/$'DT%'#$'&A#$'B4#$'J$2#$'&0+$%N*#$%G$#%&)#&&3#$%=#$%'#$%b`%I",
    "$$'N_%;#%%N,#'%7#'%)#'%'#'%.#'%-#'%.#'%Z%#'%'#'%G%#'%$#'%)#'%%#%%/#%%$#%%'#%%.#%%D$#%%0#'%T$#'%/#'%+#'%&#%%5#'%%",
    "#%'X$E+#'%_)#'%(#%%L$#%'#`*E$'%V(#%%X$#%%$#%%'#$'$I(#%%R(#%%.#%%+#'%1#%%Q+#%)%7^%#%)J%7F+#%)Y+7:#%)'7J*#%)^*7H*#",
    "%)[*7L*#&)`*7]*#&)O+78#'%J+#$)G+7S%#$)a$7Q%#$)_$7A#$)-78#$)%76#$'G%+#$'*-#$',/#$'._$#$'^$F%#$'E%H%#$'d$'#$'&)#$'",
    "(+#$'*Z$#$'Y$c$#$'b$D%#$'b$%#$'$X$#$'W$a$#$'`$c$#$'`$%#$'$V$#$'S$$#$'%T$#$'Q$&#$''$#$'%R$#$'G$0#$'1.#$'/,#$'-H$#",
    "$'C2#$'3D$#$'A6#$'74#$'52#$'3B#$'>6#$'7@#$'<=#$':<#$'=;#$'8>#$'@9#$'*M$#$'N$K$#$'L$I$#$'J$+#$'*3#$'25#$'2M$#$'N$",
    ")#$'(1#$'03#$'0[$#$']$Q$#$'R$O$#$'P$M$#$'N$%#$'$'#$'&/#$'.1#$'.S$#$'T$Q$#$'R$O$#$'P$%#$'$-#$',/#$',U$#$'V$S$#$'T",
    "$Q$#$'R$##$'#+#$'*-#$'*W$#$'X$U$#$'V$S$#$'T$$#$'%)#$'(+#$'(Y$#$'Z$&#$'''#$'&)#$'#`$#$'a$^$#$'_$[$#$']$,#$'-$#$'%",
    "##$'W$D'#$'b&c&#$'Q%R%#$)dH&]F&-#$)EG&_F&+#$)EG&aF&)#$)EG&cF&'#$)EG&DG&%#$)EG&FG&c$#$)O%7I%#$)V$7G%#$)T$7A#$)-7>",
    "#$)+78#$)%76#$'G%5#$'47#$'6_$#$'^$a$#$'`$F%#$'E%H%#$'d$1#$'03#$'2Z$#$'Y$]$#$'[$c$#$'b$D%#$'b$/#$'.1#$'0X$#$'W$Z$",
    "#$'Y$a$#$'`$c$#$'43#$'25#$'21#$'03#$'0[$#$']$%#$'$'#$'&/#$'.1#$'.%#$'$-#$',/#$',`$#$'a$##$'%M$#$'N$K$#$'L$$#$'%#",
    "#$'#)#$'(+#$'$R%#$'O%U$#$'V$S$#$'T$,#$'-*#$'+$#$'%##$)#7S%#$)a$7Q%#$)_$7O%#$)]$7A#$)-7<#$'b$+#$'*-#$',/#$'._$#$'",
    "^$c$#$'^$'#$'&)#$'(+#$'*Z$#$'Y$_$#$'[$X$#$'U$%#$'$V$#$'S$$#$'%T$#$'Q$&#$''R$#$'G$0#$'1.#$'/,#$'-H$#$'C2#$'30#$'1",
    "D$#$'A6#$'74#$'52#$'3B#$'>6#$'9=#$':<#$'=;#$'8>#$'@9#$'*M$#$'N$K$#$'L$I$#$'J$+#$'(M$#$'N$)#$'&Q$#$'R$O$#$'P$M$#$",
    "'N$%#$'$'#$'$S$#$'T$Q$#$'R$O$#$'P$%#$'$)#$'&U$#$'V$S$#$'T$Q$#$'R$##$'%W$#$'X$U$#$'V$S$#$'T$$#$'%%#$'#Y$#$'Z$&#$'",
    "'V%#$'O%`$#$'a$^$#$'_$[$#$']$,#$'-(#$))7A#$)-7<#$'b$_$#$'^$c$#$'^$Z$#$'Y$_$#$'[$X$#$'W$]$#$'K$H$#$'G$L$#$'I$F$#$",
    "'E$J$#$'*%#$'$'#$'$%#$'%$#$'%%#$'),#$'-(#$)0@)#$)E$B'#$)E$D$%#$'W$H$#$'G$J$#$'E$D$#$'CF$#$'CB#$'AD$#$'Q$P$#$'O$R",
    "$#$'O$N$#$'M$P$#$'^$]$#$'[$_$#$'`$_$#$'^$a$#$'[$Z$#$'Y$]$#$'M$L$#$'K$N$#$'K$J$#$'I$L$#$'O$2#$'30#$'1.#$'/F$#$'E$",
    "(#$''&#$'+*#$'-,#$'/H$#$'G$J$#$'E$D$#$'CF$#$'CB#$'AD$#$'Q$P$#$'O$R$#$'O$N$#$'M$P$#$'^$]$#$'[$_$#$'`$_$#$'^$a$#$'",
    "[$Z$#$'Y$]$#$'M$L$#$'K$N$#$'K$J$#$'I$L$#$'O$2#$'30#$'1.#$'/F$#$'E$(#$''&#$'+*#$'-,#$')2#$'30#$'1.#$'/F$#$'G$L$#$",
    "'I$J$#$'C@#$'G$0#$'1.#$'/,#$'/2#$'30#$'1.#$'5@#$'<=#%'`$L%5$)E%'V$#%)Y$)$#$)&)T$#$)Y$+R$#$)Y$Z$U$#$)&Z$S$#$)(Z$Q",
    "$#%)&V$S$#$)#T$-#$)^$T$+#$)O$.$#$)10%#$)/0_$#%)O$H$S$#$)/H$U$#%)1H$##%)C2##$)3D$##%)E$0T$#$)E$2a$#%)O$F$Q$#%)/F$",
    "##$)A4]$#%)I$2R$#%)>@S$#$)7@##$)>@-#$)E$<V$#%):;##$):;+#$)A9##$)89-#$)C9+#%)2I$R$#$)()S$#$)N$)##$)$Q$T$#$)$Q$_$#",
    "$).Q$]$#%),S$##%)T$O$R$#%)$%S$#$)T$S$$#$)V$S$T$#$)#S$_$#$),U$%#$)T$U$V$#$)#Q$&#$)V$Q$R$%$)#U$'#$)V$&U$#$)Z$&##$)",
    "%U$T$#$)%U$]$#%)(W$V$#$)%W$_$#$)($-#$)*$+#%)%,##$)^$/]$#$)d$'a$#$)d$'_$#$)b$+]$#$)d$+Z$#$)b$Z$-#$)d$Z$+#$)^$V$-#",
    "$)`$%]$#$)^$V$+#$)O$,Z$#$)K$2_$#$)O$0_$#$)K$4_$#$).S$a$#$).%-#$)#^$_$#$)#`$a$#$)#,-#$),#-#$)2)-#$)*U$_$#$)2)S$#$",
    ")R$Q$T$#$):;-#$)0'-#$)*W$%#$)T$Q$]$#$).S$V$#$)&'##$)$S$V$#$)%W$%#$)$%_$#$)^$$a$#$),U$a$#$)4+-#$)G%-_$#$)0'##$):<",
    "V$#$)CD$##$)G$,]$#$)*W$a$L$$)M$Ba+#$)d+'a+#$+Y-_$#)#$+d$]$Y$5#$+L$S$T$O$#$+/B8;#$+K$'N$*#$+89/(#$+%M$F$%#$)CB-#$",
    "H$K$B-UF&RD&_$#)QF&VE&9/(QF&TF&M$F$%#$3U$T$KF&]D&T$^$_$)#$+O$Z,M-_$6$%SE&#%&Nb:#%&Qa:#$%U$#$%a$#%&Rb:#$)Sc:##9$'",
    "###$%Pc2#$%$#%%K`2#%&Q&#$%J(#$%'#%&R^:#%&*#%&.#%&&#'&+%$%E`:#$%'#''^&NR$#&%ON$#$%I&#$%Nb:#$%Ib:$$%=#$%$#$%-#$%`$",
    "#$%Jd2#%&[c2#$%J(#$%'#%&R^:#$%Ed:#$%)#%&+#$%)#$%B#$%'#$%$$$%c$#%&S&#$%]$'$'d$ZF&#$'89#$'YF&]F&$$'[F&_F&$$'^F&aF&",
    "#$'>@#$'`F&cF&#$'AB#$'bF&DG&#$'CD$#$'dF&FG&#$'E$F$#$'EG&HG&#$'G$H$#$%E&#%'/]%#%'[%_%#%':;#%'^%a%#''87#%%^%#'%%#%",
    "%%#'%%#'%%#'%%#'%%#'%%#%%%#%%%#%%%#%%%#'%%#'%%#'%%#'%%#'%%#'%%#'%%#'%%#'%1#'%%#'%%#'%%#'%%#'%%#'%%#%%%#%%%#'%%#%",
    ").^$]%#%)A^$_%#%)C^$a%#%'E$^$'c%&OD&#%&LZ7#$%_K&#%&7#$%8#$%X2#$%4#$%E(#$%'#$%'#$%'#$%'#$%X&#$%'#$%'#$%K%#$%V&#$%",
    "W(#$%'#$%'#$%'#%&'#$%)#$%'#$%'#$%'#$%'#$%'#$%'#$%'#$%'#$%'#$%'#$%)#$%'#$%'#)&'#$%3#$%)#$%)#$%)#(&)#$%/#$%'#)&'#$",
    "%1#$%+#%&W(#$%UW2#%&d(#$%X-#$%S-#%&X-#&&U-#)&_-#$%O,#&&K$#$%Z$#-&S$&)&T(%)&/%)&/%&&/&%&EQ+#$%7#$'[+LR$#$%`I$#$%$",
    "#$%LD3$$%VI%#'&G[$#$%DE%#$%Z%UDY$=&W]5#=&D%#=&d$#*&D%$5&3#=&S%#=&D%#$%d$$%&'%$%+%%&)%'&+$+&-#'&@$$%-$*&'$.&3#=&b",
    "%#=&D%#%&d$$'&)%+&/$*&5$=&@#%&d$$'&)$(&-$$%/&*&+$=&@#=&d$#=&D%#=&d$#=&D%#=&d$#=&D%#=&d$#=&D%#=&d$#=&D%#=&d$#=&D%",
    "#$%D0#$%P3%4&X8#$%1#*&9#$%LJ2#<&OI2#$%FI2#$%^H2#$%)#$%'#$%;#$%,#$%$#4&b%#$%1#*&9#$%LJ2#<&OI2#$%FI2#$%^H2#$%)#$%'",
    "#$%;#$%,#$%$#4&b%#$%1#*&9#$%LJ2#<&OI2#$%FI2#$%^H2#$%)#$%'#$%;#$%,#$%$#4&b%#$%1#*&9#$%LJ2#<&OI2#$%FI2#$%^H2#$%)#$",
    "%'#$%;#$%,#$%$#4&b%#$%1#*&9#$%LJ2#<&OI2#$%FI2#$%^H2#$%)#$%'#$%;#$%,#$%$#%&]$%-&[_$#-&##-&##-&##-&#DT(%&Rd%#$%-#$",
    "%)$$%V$#$%O$#$%,#$%7#$%J$#'&0#$%C#$%/#$%3#$%:#$%=#$%E$#$%)#%&6#$%+#$%'#$%/#$%'#$%'#$%L&#$%]'#$%U$#$%G&$$%Q'#$%+$",
    "$%Z$%$%W$$$%_$#'&0#$%C#$%/#$%3#$%:#$%=$$%>#%&6#$%+$$%3$$%+)$%>'$%%$$%_$$$%.$$%'#$%I$#$%/$$%*#$%=$$%>%$%.$$%3$$%+",
    "$$%D+$$%Y'$$%Q'#$%+$$%Z$%$%W$#$%7#$%J$#$%0$%&'#$%G$#$%/#$%3#$%:#$%=$$%>#%&6#$%+$$%3#$%'#$%'#$%L&$$%J&$%&W*#$%-#$",
    "%)#%&T$#$%M$#$%,#$%7#$%J$$&&.#$%E$#$%/#$%3#$%:#$%=#$%E$#$%)#%&6#$%+#$%'#$%/#$%'#$%'($%G$#$%+#$%)$$%V$#$%O$#$%,#$",
    "%7#$%J$$&&.#$%E$#$%/#$%3#$%:#$%=#$%E$#$%)#%&6#$%+#$%'#$%/#$%'#$%'H5$'WD&&#$''*#$'-,#$'/.#$'10#$'32#$'54#$'76#$'9",
    "8#$';:#$'=<($)*V$S$#$)$X$U$#$)$Z$W$#$)$]$Y$#$)$_$[$#$)$a$^$#$)$c$`$#$)$D%b$#$)$F%d$#$)$H%E%#$)$J%G%#$)$L%I%#$)$N",
    "%K%#$)$P%M%#$)$R%O%#$)$T%Q%#$)$V%S%#$)$X%U%#$)$Z%W%#$)$]%Y%#$)$_%[%#$)$a%^%#$)$c%`%#$)$D&b%#$)$F&d%#$)$H&E&#$)Zc",
    ":Ea:Ha:#$%Gb:#$%B#$'A%#$'J$)$=&U$#$'1@#$'45#$'(A#$'B##$)(#/#$'%K$=$'76#$'74H$$'#/S&$'FG;d%#$'T)##$%'0$%P^;#$%KS&",
    "#$%Y]&#$'OT4^%#$%Jd1#$%aL(#$%VP;#$%WO;#$%ML(#$%][.#$%FT(#$%S](#$%[X,#$%cW)#$%bd)#$%JF-#$%I^,#$%NV8#$%IF'#$%X].#$",
    "%U`<#$%QO%#$%ZQ0#$%bK)#$%D/#$%MY-#$%5#$%FHE$#$%KJ<#$%U`*#$%Pa%#$%LU*#$%VJ8#$%^U8#$%aV.#$%V2#$%GK6#$%TK0#$%Q[&#$%",
    "$#$%ZF*#$%EP4#$%LX$#$%R^A'$)UWT$TU>QU>#$)$Nd1Kd1#$)$TK2QK2#$)$N[8K[8#$)$NND$KND$#$)$cG<`G<#$)$JPG$GPG$#$)$VP4SP4",
    "#$)$JX=GX=*$%H]:#$%S_(",
    NULL };
static const char *const twi_unicode_composed[] = {      /* 380 numbers */
    "D))$,$)%(%)$,$)%($4%7%,&'$)')&)%5%:E$%0%@3$)%.&%%H$%%)1U-%$&$$$&<*<('%O$%$$&$'&-$C$9%$$&$'&:%M%%0'%%%)%)%/%%L,(^",
    "'$$$3$Y5$*$%$Z'%`.$%%K%$Y$&`&$[&$)%$%c&&Q'$$&K5$dZ%$$$$$$$$$&$L$$$$%%$$a8_'$$'_%)9%)%J$%)%+$$$$$$$5$$$$$$$$$$$$&",
    "Y$$($$''$&$$$*&(%)$*$%'&$&$$$$b/%5$B&X$$'$%$:$$$=$%$%$$$9$$$-(%%%%)%%%%%F$'T$')'cN&$$$$$$$$$$$$$$$$$$$$$$$%$$$$$",
    ")%$%$%$%$%9$,$0$$$$$$$$$$$$$$$$$$$$$$$%$$$$$)%$%$%$%$%9$%'&$`a[$$$$1$F'%`3%R.%$$`*%",
    NULL };
static const char *const twi_unicode_classes[] = {      /* 776 numbers */
    "$.X<(`P)$0*MC%'&-%&%QN_$$ZI;(MQ7$LJ(&*9aM%$d&$d&$d&$d&$d.$_>$a[%$U($T%$`OG$$J]<$]($Z%$O&$V($V%$M+$a&$a*$Z*$VXX$$",
    "+$^H/%,O$QN%$d&$d&$d&$d&$d&$d&$d&$d&$a&$S&$M-$X(%^Z$$C$b'$Q7$G*$I&%J%%OP'$JXB$b($R'$P&$Y,$Z*$UV:$JT$$]$$^$$^&%O'",
    "$X&$X($F&$X*$d&$a*$d&$Z&$X&$WL$$-$TQ$$.$UQ$$/$VQ$$0$WQ$$1$XQ$$2$YQ$$3$ZQ$$4$[Q$$5%]Q$$1$6$^Q$%7$`Q$$8$aQ$$9$bQ$$",
    ":$dQ$$;$ER$$<$FR$$=$c]c$$>%OV$$H8$@%PV$$H8$A%QV$$H8$B%]T$$Y$$C%^T$$Y$$D$%_T$$Y$$E$$UV$$F$$VV$$G$$TW$$H$$U]$$X%$Y",
    "F&$`%$ZF&$K&$]U&%O&$LV&'Z&$]Y&%_&$LZ&'E'$U`&$F'&V`&$*'%$H'$X`&$N)&E<%'%KY)$Z)$RR*$])'`;$bD&$OUT&%*(_)$NE/$a)K%Z;",
    "'%(%'%.('-&&%''%%Z4$'$'$))%$=$S'%($%$G'$)$%$G%$%$%&$%$$&$$$$$$$M($J&&K'$%$%$&&)$%%[%$IR$%>$$$R'$J)$QI%$a)$J&$Y$)",
    "%$R($L.(%'0$X)$*$'$Q$$$$L:$&'`EF$&J/$V`7*SB$F*$P^$$P$$O($XXU$+*%H_(*c)'_P$$5$Oa'$W[($D*$RE/%F*$QOX&$H*&RQ$$_['$E",
    "a($J*S&D;8L$&%$&$&&&&'$&$*0W+(N+'$&%))%$%%$7$O%+`$%%($%[&*%'$$%%%%G%$$%$%&$%$$&$$$$$$$%D(*$$F$'$,$&$(J(1%%$%$&)&",
    "$%%(U%$$%QU$%%%YB&bG$$a-$a)$b%+W$()%R($$*a-&*%'$6$&%J)%$*$%'I$($%$U9%%'&%'$($$$)$cd%&R*D$SGB$'-D$%T%%R25c0$$%&%(",
    "%$$c_7**%JN$(XX$$L$$P($_T$&G6*&(`b8*RV<(D$'X'&`Q&*$4%*$%$(^L%)L*'Y;$'$b$$WJ.$M*'a=$%$%$^X)$N*&b=%$%OW)$T*$I=$",
    NULL };
static const char *const twi_unicode_grapheme_extend[] = {      /* 668 numbers */
    "D;T&W+*K+Q$$$$%$%$$L%.T$83$I&*%)%%$'G$$B>`%._$,,$;'$,$&$(O$&`$,N$;$E$Z$&$5$*-%A&]$$$*%%%&,$-%=$%&]$$$('%%&&$B%&$",
    ".&]$$$+$&$&7%9)$&]$$$*%%%&*&-%B$`$(&&$',$L$([$$$*$&$'*%.%A&]$$$*$&$'*%.%2$/'[$%$*$&$',$-%A&J%$')$$$+5%b$$$+/+F&$",
    "$-.*M%%>$$$$$'%U$7$%(.$H$,$J&.$):''&3'0$$&)$2$d8&VA'@&A%B%D%D$,$Q$&$$Y&%F$$Z&/'/`)(^$-$$$$%;%$T$R$%/7(S$4J$,/&B0",
    "]$1T$7]'&$8'$)$%&J)D%P3%F)E$cd%&Q'$D&D$N4)M&%XRA'$-D$%T%%T+$&$'$:('$W%%V$5=50$J$+<0P$'S$1H$$G%1/$+%R$$W$$$&%%(%$",
    "$M$((%P*+$%T^6$E:333R.%b5$F*$Y'(JX$&$%('L$&'$I(%b4'E%(b,%Q%)J%.U$'_&&Y$2M$$%%-'Q$.*$b$&H$13%P$$/&T$1+'$%a%/)$%$b",
    "'/8'[$%$*%%%&,$-%%*&(G%,$$%$$'$($$1%V%5:$U%7O**%,>%V%4N&0I&&%-D+2Y*)$%%'$$$%Q'*%*&$@-L$*$'+$,.R$3J)+K)+$+V%9$1_&",
    ")&$$%$*$$F%($%$(`-',%$$T$*&(:$IK($)2LJ.5DR%(`$*]D$$$[$*'U%$.%OI6%EW'R$%:c3(&)++%*B'X'&`b$[$'V$+$1$9($2TN$*$4%*$%",
    "$(H&$D(*[.$b$'a2'c*%W*$%$*%($_1*Q&*TY%(DEG;D&D'T*",
    NULL };
static const char *const twi_unicode_grapheme_prepend[] = {      /* 30 numbers */
    "DT$)[)$U$$D/%T%$OG$$R`D%$2$X*%Q3$QO$$$$F-)a8$`0$",
    NULL };
static const char *const twi_unicode_grapheme_control[] = {      /* 34 numbers */
    "#D$d%E$0$RO$$US'$ad$$%%;*U$3SX[$$T*/XE03DGF$'SJ(+IXO;D$D&D'T*TT&",
    NULL };
static const char *const twi_unicode_pictograph[] = {      /* 312 numbers */
    "M($'$Qa*$/$])$9$_%)2%S.%/$J($<.'&K)$K*%-$,$_$'$(,$%$%%%$'$%$$%%$&$&%+&($$$(/.%%$$%$$5$%%5)$$$%&%($%%'%.%(%%$(%$$",
    "$%7%()$'%$'$%$%)$$%$$$$$)$&$)$-%2$%$'$$$'&$$.%T$&,$1$1$X.%S1&6%W$$'$_J$$/$^5$$$NOS&$K$'H&/2%2$1%I$-T&%/%1$%-7[$>",
    "2-$7$%,$',:)a(%T&%%$&%W%%&$'(c*$d$.)$;*%%+/$%'%$'%0%%$+%,$(&/&+&%$$$'$)$&$)Z%T$J%(+%4&$$)%0a)8>']$+-)L$+B%/'%1,K",
    "$/S$$-$^(]%+1V'D+cC",
    NULL };
static const char *const twi_unicode_conjunct_consonant[] = {      /* 156 numbers */
    "YL%I$B+;+87$*$$&'F$%$$3%G(7$*$%$(d$$>7$*$%$(F$%$$4$G(7$3B&_(J$I9O$7$3)''&$&%*&'0/$U[$X$P6Y$Z(%)E$4+Z$B0%.&ORG$&&",
    "H$Q$(%,-(E&3$&)$&%D&.Y)>IU:$2'$&$AQZ$H$A$%$]4-$$%$$J$NN$*%$%+$%$;T)$-L$A$.L$J'$J:$V+0$F$",
    NULL };
static const char *const twi_unicode_conjunct_extend[] = {      /* 766 numbers */
    "D;T&W+*K+Q$$$$%$%$&J%.T$83$I&*%)%%$'G$$B>`%._$,,$;'$,$&$(O$&`$,N$;$D$[$$$$'++*-%A$_$$$$%'5$-%=$%%^$$'%'%%&&$B%&$",
    ".%^$$'($%<%9)$$_$$$%$'1(-%B$`$$$$/$,$L$$&$[$$$&(&$&+%.%A$_$$%%$$&&$'*%.%@%^$%$$%'5$-%A$L%$'$%&$$+$U%$%*/+F&$%,.*",
    "M%%>$$$$$[$1$($%(.$H$,$J&'$)%$%%<%'&3'0$%%)$2$d8&VA'@&A%B%D%%$*+$%,$$,$Q$&$$Y&%F$$Z&&'%,$)&`)%%$_$$$*&$%+)-%$T$E",
    "%2'T$-'%K$,/%D$'%&$%]$$$%&$$(]$+%%]'&$0$*'$)$&%J)D%Q3$F)E$cd%&Q'$D&D$N4)M&%XRA'$-D$%T%%T+$&$'$<%($['%=50$J$+<.$$",
    "P$&T$$%'%%K$$G%)%%%%/$+$S$$W$$$&%%(%$$N$%[*$%$'$T^6$E:333R.%b5$F*$Y'(JX$&$%('L$&N(%b4'E%(b,%B(D$3J%.U$'`&$Z$2M$$",
    "%%-&U$'%%*$b$&H$($)$$c$$/%X$,$$+'%$d%&%')$%$b'$&+8%^$%$$$$/$,$1*&(G%$%)$$%$$&'%%$1%Y%+%&$$:$U%$%)$$%$$%$%O*$%')%",
    "$%>%Y%+%$$%N&$$$%+I&$$$%'$(G+,$%Y*$-&($T''%%'$D$-L$)%'5)%&R$0$$K)$$&$$M)*$)$$V%9%*$%$%_&)&$$%$*$$L%%&$$$]%$F+%.%",
    "X$((%;$IK($)2LJ./&&DR%(`$*]D$$d$'U%$.%OI6%EW'R$%:D2%a$(&)++%*B'X'&.&+%%$D$%c`$[$'V$+$1$9($2TN$*$4%*$%$(H&$D(*[.$",
    "b$'a2'c*%W*$%$*%($_1*Q&*TY%(DEG;D&D'T*",
    NULL };
static const char *const twi_unicode_conjunct_linker[] = {      /* 44 numbers */
    "QN%$d&$d*$d&$d*$d*$O:$]a$$Q7$G*$J&$M-%MJG$$Y,$L_:$W[$$a7$QO$$`*$/$U%$LI$$",
    NULL };

static const char *const *twi_unicode_table(int which) {
    static const char *const *const tables[] = {
        twi_unicode_letter, twi_unicode_number, twi_unicode_digit, twi_unicode_word, twi_unicode_numeric,
        twi_unicode_punctuation, twi_unicode_control, twi_unicode_nonspacing, twi_unicode_mark, twi_unicode_lower,
        twi_unicode_canonical, twi_unicode_compatible, twi_unicode_composed, twi_unicode_classes,
        twi_unicode_grapheme_extend, twi_unicode_grapheme_prepend, twi_unicode_grapheme_control,
        twi_unicode_pictograph, twi_unicode_conjunct_consonant, twi_unicode_conjunct_extend,
        twi_unicode_conjunct_linker
    };
    return tables[which];
}
/* ==== [tw:10] opening and saving models: implementation ====================================== */

/* -- matching names -----------------------------------------------------------------------------------
   A parameter is looked for under its own name, under its other names, without or with the base
   model's prefix, and each of these with the old spelling of a norm's weight and bias. */

static const tw_weight *twi_find_spelling(const tw_weights *file, const char *name) {
    static const char *const endings[][2] = { { "weight", "gamma" }, { "bias", "beta" } };
    const tw_weight *w = tw_weights_find(file, name);
    char old[400];
    size_t n = strlen(name), i;
    for (i = 0; !w && i < 2; i++) {
        size_t e = strlen(endings[i][0]);
        if (n <= e || n + 8 > sizeof old || name[n - e - 1] != '.' || strcmp(name + n - e, endings[i][0]) != 0) continue;
        memcpy(old, name, n - e);
        strcpy(old + n - e, endings[i][1]);
        w = tw_weights_find(file, old);
    }
    return w;
}
static const tw_weight *twi_find_joined(const tw_weights *file, const char *prefix, const char *name) {
    char with[400];
    if (snprintf(with, sizeof with, "%s%s", prefix, name) >= (int)sizeof with) return NULL;
    return twi_find_spelling(file, with);
}
static const tw_weight *twi_find_prefixed(const tw_weights *file, const char *prefix, const char *name) {
    const tw_weight *w = twi_find_spelling(file, name);
    size_t n = strlen(prefix);
    if (w || n == 0) return w;
    if (strncmp(name, prefix, n) == 0) w = twi_find_spelling(file, name += n);
    else w = twi_find_joined(file, prefix, name);
    return w ? w : twi_find_joined(file, "model.", name);           /* FlagAI's task models have the base model there */
}
static const tw_weight *twi_find_weight(const tw_model *m, const tw_weights *file, const tw_tensor *parameter) {
    const char *prefix = m->type ? m->type->prefix : "";
    const tw_weight *w = twi_find_prefixed(file, prefix, parameter->name);
    size_t i;
    for (i = 0; !w && i < m->aliases; i++) if (m->alias[i].parameter == parameter) w = twi_find_prefixed(file, prefix, m->alias[i].name);
    return w;
}

/* -- taking numbers over --------------------------------------------------------------------------------- */

/* Is a number NaN or infinite?  Such a file is broken, and everything computed from it would be. */
static bool twi_all_finite(tw_context *tw, const tw_tensor *t) {
    size_t i, n = (size_t)tw_count(t);
    if (t->dtype == TW_F32) {
        float largest = twb_max_abs(&tw->cpu, (ptrdiff_t)n, (const float *)t->data);
        return largest <= 3.402823466e38f;                  /* false for NaN too */
    }
    for (i = 0; i < n; i++) {                               /* all exponent bits set */
        uint16_t bits = ((const uint16_t *)t->data)[i], exponent = t->dtype == TW_F16 ? 0x7C00u : 0x7F80u;
        if ((bits & exponent) == exponent) return false;
    }
    return true;
}

static bool twi_is_float(tw_dtype d) { return d == TW_F32 || d == TW_F16 || d == TW_BF16 || d == TW_F64; }

/* A parameter gets its numbers: f32 that lies aligned in writable memory is used where it is, 16-bit matrices stay 16-bit,
   everything else becomes f32 of the parameter's own. */
static bool twi_take_weight(tw_model *m, tw_tensor *t, const tw_weight *w, bool to_f32) {
    tw_context *tw = m->region.tw;
    size_t count = (size_t)tw_count(t);
    bool stays_16 = (w->dtype == TW_F16 || w->dtype == TW_BF16) && t->rank >= 2 && !to_f32;
    bool in_place = w->writable && (w->dtype == TW_F32 || stays_16) && ((uintptr_t)w->data & (tw_dtype_size(w->dtype) - 1)) == 0;
    size_t i;
    for (i = 0; in_place && i < m->parameters && m->parameter[i] != t; i++) in_place = m->parameter[i]->data != w->data;    /* not two in one place */
    if (w->rank != t->rank || memcmp(w->shape, t->shape, (size_t)t->rank * sizeof *t->shape) != 0) {
        twi_fail(tw, TW_E_SHAPE, "%s: the file has shape %s, the config asks for %s (%s)", t->name, twi_print_shape(w->rank, w->shape).s, TWI_SHAPE(t), w->file);
        return false;
    }
    if (!twi_is_float(w->dtype)) { twi_fail(tw, TW_E_FORMAT, "%s: weights of type %s cannot be used (%s)", t->name, tw_dtype_name(w->dtype), w->file); return false; }
    t->dtype = stays_16 ? w->dtype : TW_F32;
    if (in_place) {
        union { const void *from; void *to; } data;         /* writable, as the file's chapter promises */
        data.from = w->data;
        t->data = data.to;
        t->borrowed = true;
    } else {
        if (!twi_allocate_parameter(&m->region, t)) return false;
        if (stays_16) memcpy(t->data, w->data, w->bytes);
        else if (!twi_convert_values(w->data, w->dtype, (int64_t)count, (float *)t->data)) return false;
    }
    if (count && !twi_all_finite(tw, t)) { twi_fail(tw, TW_E_FORMAT, "%s: it holds NaN or infinite numbers (%s)", t->name, w->file); return false; }
    return true;
}

/* FlagAI's BERT has query, key and value as the three parts of one matrix: *part becomes a view of one of them. */
static const tw_weight *twi_find_part(const tw_model *m, const tw_weights *file, const tw_tensor *t, tw_weight *part) {
    static const char *const names[] = { "self.query.", "self.key.", "self.value." };
    const tw_weight *w;
    char full[400];
    size_t i;
    for (i = 0; i < 3; i++) {
        const char *at = strstr(t->name, names[i]);
        if (!at || snprintf(full, sizeof full, "%.*sself.query_key_value.%s", (int)(at - t->name), t->name, at + strlen(names[i])) >= (int)sizeof full) continue;
        w = twi_find_prefixed(file, m->type ? m->type->prefix : "", full);
        if (!w || w->rank < 1 || w->shape[0] % 3 != 0) return NULL;
        *part = *w;
        part->shape[0] /= 3;
        part->bytes /= 3;
        part->data = (const char *)w->data + i * part->bytes;
        return part;
    }
    return NULL;
}

/* Tied parameters that the file has twice, with different numbers: the second one becomes a parameter of its own, as in
   transformers since 5.0, whatever tie_word_embeddings says. */
static bool twi_untie(tw_model *m, const tw_weights *file) {
    size_t i;
    for (i = 0; i < m->aliases; i++) {
        twi_alias *a = &m->alias[i];
        const tw_weight *one = a->user ? twi_find_weight(m, file, a->parameter) : NULL, *two = a->user ? twi_find_prefixed(file, m->type->prefix, a->name) : NULL;
        tw_tensor *t;
        if (!one || !two || one == two || (one->dtype == two->dtype && one->bytes == two->bytes && memcmp(one->data, two->data, one->bytes) == 0)) continue;
        t = tw_add_parameter(m, a->name, tw_shape_of(a->parameter));
        if (!t) return false;
        t->no_decay = a->parameter->no_decay;
        *a->user = a->parameter = t;
    }
    return true;
}

/* Takes weight and bias of a layer out of the model: the file lacks them. */
static void twi_drop_layer(tw_model *m, tw_linear *layer) {
    size_t i, kept = 0;
    for (i = 0; i < m->parameters; i++) if (m->parameter[i] != layer->weight && m->parameter[i] != layer->bias) m->parameter[kept++] = m->parameter[i];
    m->parameters = kept;
    layer->weight = layer->bias = NULL;
}

/* A part of the head that the file does not have begins as in a new model. */
static bool twi_begin_anew(tw_model *m, tw_tensor *t) {
    size_t n = strlen(t->name);
    if (!twi_allocate_parameter(&m->region, t)) return false;
    if (t->no_decay) tw_fill(t, n >= 4 && strcmp(t->name + n - 4, "bias") == 0 ? 0.0f : 1.0f);
    else tw_fill_normal(t, 0, m->initializer_range);
    return true;
}

static bool twi_load_weights(tw_model *m, const tw_weights *file, const tw_load_desc *how) {
    size_t i;
    if (!twi_untie(m, file)) return false;
    if (m->optional && m->optional->weight && !twi_find_weight(m, file, m->optional->weight) && !twi_find_weight(m, file, m->optional->bias)) twi_drop_layer(m, m->optional);
    for (i = 0; i < m->parameters; i++) {
        tw_tensor *t = m->parameter[i];
        tw_weight part;
        const tw_weight *w = twi_find_weight(m, file, t);
        if (!w) w = twi_find_part(m, file, t, &part);
        if (!w && how->new_head && m->head_begins && i >= m->head_begins) { if (!twi_begin_anew(m, t)) return false; continue; }
        if (!w) { twi_fail(m->region.tw, TW_E_MISSING, "%s: the weights do not have it", t->name); return false; }
        if (!twi_take_weight(m, t, w, how->to_f32)) return false;
    }
    return true;
}

/* -- opening ------------------------------------------------------------------------------------------------- */

TWDEF tw_model *tw_from_pretrained_with(tw_context *tw, const char *folder, const tw_load_desc *how) {
    tw_load_desc plain;
    tw_model *m;
    tw_json *config;
    twi_text path;
    if (!tw || tw_failed(tw)) return NULL;
    if (!folder) { twi_fail(tw, TW_E_ARGUMENT, "model: no folder was named"); return NULL; }
    memset(&plain, 0, sizeof plain);
    if (!how) how = &plain;
    path = twi_text_new(&tw->region);
    twi_join_path(&path, folder, "config.json");
    config = path.failed ? NULL : tw_json_load(tw, twi_text_string(&path));
    if (config && tw_json_type(config) != TW_JSON_OBJECT) {
        twi_fail(tw, TW_E_FORMAT, "config.json: it is no object (%s)", twi_text_string(&path));
        tw_json_free(config);
        config = NULL;
    }
    twi_text_free(&path);
    m = config ? twi_build_model(tw, config, how->task, true) : NULL;
    if (!m) return NULL;
    m->checkpointing = how->checkpoint_activations;
    path = twi_text_new(&tw->region);
    twi_join_path(&path, folder, "generation_config.json");
    if (!path.failed && twi_file_exists(tw, twi_text_string(&path))) m->generation_config = tw_json_load(tw, twi_text_string(&path));
    twi_text_free(&path);
    m->weights = tw_failed(tw) ? NULL : tw_open_weights(tw, folder);
    if (m->weights && twi_load_weights(m, m->weights, how)) {
        m->from_file = false;
        if (how->no_tokenizer || !twi_has_tokenizer(tw, folder)) return m;
        m->tokenizer = tw_load_tokenizer(tw, folder);
        m->owns_tokenizer = true;
        if (m->tokenizer) return m;
    }
    tw_model_free(m);
    return NULL;
}
TWDEF tw_model *tw_from_pretrained(tw_context *tw, const char *folder) { return tw_from_pretrained_with(tw, folder, NULL); }

TWDEF tw_model *tw_from_memory(tw_context *tw, const tw_memory_file *files, int count) {
    twi_blobs blobs;
    const struct twi_blobs *before;
    tw_model *m = NULL;
    twi_blob *list;
    int i;
    if (!tw || tw_failed(tw) || !files || count < 1) return NULL;
    list = (twi_blob *)twi_alloc(&tw->region, (size_t)count, sizeof *list);
    if (!list) return NULL;
    for (i = 0; i < count; i++) { list[i].name = files[i].name; list[i].data = (const unsigned char *)files[i].data; list[i].size = files[i].size; }
    blobs.list = list;
    blobs.count = (size_t)count;
    before = tw->blobs;
    tw->blobs = &blobs;
    m = tw_from_pretrained(tw, "");
    tw->blobs = before;
    twi_free(&tw->region, list);
    return m;
}

TWDEF tw_tokenizer *tw_tokenizer_of(const tw_model *model) { return model ? model->tokenizer : NULL; }
TWDEF void tw_set_tokenizer(tw_model *model, tw_tokenizer *tokenizer) {
    if (!model) return;
    if (model->owns_tokenizer && model->tokenizer != tokenizer) tw_free_tokenizer(model->tokenizer);
    model->owns_tokenizer = false;
    model->tokenizer = tokenizer;
}

static void twi_free_model_files(tw_model *model) {
    tw_close_weights(model->weights);
    tw_json_free(model->generation_config);
    if (model->owns_tokenizer) tw_free_tokenizer(model->tokenizer);
}

/* -- changing the type of the weights ---------------------------------------------------------------------------- */

/* New numbers for a parameter of another type: from f32 to 16 bits or back. */
static bool twi_convert_parameter(tw_model *m, tw_tensor *t, tw_dtype dtype) {
    tw_tensor fresh = *t;
    fresh.dtype = dtype;
    if (!twi_allocate_parameter(&m->region, &fresh)) return false;
    twb_convert(&m->region.tw->cpu, (ptrdiff_t)tw_count(t), t->data, (twb_type)t->dtype, fresh.data, (twb_type)dtype);
    if (!t->borrowed) twi_free(&m->region, t->data);
    t->data = fresh.data;
    t->dtype = dtype;
    t->borrowed = false;
    return true;
}
TWDEF bool tw_to(tw_model *model, tw_dtype dtype) {
    size_t i;
    if (!model || tw_failed(model->region.tw)) return false;
    if (dtype > TW_BF16) { twi_fail(model->region.tw, TW_E_UNSUPPORTED, "model: its weights cannot be of type %s", tw_dtype_name(dtype)); return false; }
    for (i = 0; i < model->parameters; i++) {
        tw_tensor *t = model->parameter[i];
        if (t->dtype == dtype || (dtype != TW_F32 && t->rank < 2) || model->region.tw->planning) continue;
        if (!twi_convert_parameter(model, t, dtype)) return false;
    }
    return true;
}

/* -- saving --------------------------------------------------------------------------------------------------------- */

static tw_json *twi_copy_object(tw_context *tw, const tw_json *object) {
    tw_json *copy = tw_json_object(tw);
    int64_t i;
    for (i = 0; copy && i < tw_json_count(object); i++)
        if (!tw_json_set_copy(copy, tw_json_key(object, i), tw_json_at(object, i))) { tw_json_free(copy); return NULL; }
    return copy;
}
static const char *twi_torch_name(tw_dtype dtype) { return dtype == TW_F16 ? "float16" : dtype == TW_BF16 ? "bfloat16" : "float32"; }

/* config.json as it was read, with the class and the type of the weights that are in the file. */
static bool twi_save_config(tw_model *m, const char *folder, tw_dtype dtype) {
    tw_context *tw = m->region.tw;
    twi_text path = twi_text_new(&tw->region);
    tw_json *copy = twi_copy_object(tw, m->config), *classes;
    bool ok = copy != NULL;
    if (ok && m->type) {
        ok = tw_json_set_string(copy, "model_type", m->type->name);
        classes = ok ? tw_json_set_array(copy, "architectures") : NULL;
        ok = classes && tw_json_push_string(classes, m->name) &&
             tw_json_set_string(copy, "dtype", twi_torch_name(dtype));
        if (ok && tw_json_get(copy, "torch_dtype")) tw_json_remove(copy, "torch_dtype");
    }
    twi_join_path(&path, folder, "config.json");
    ok = ok && !path.failed && tw_json_save(tw, copy, twi_text_string(&path), 2);
    twi_text_free(&path);
    tw_json_free(copy);
    return ok;
}

static bool twi_save_generation_config(tw_model *m, const char *folder) {
    twi_text path;
    bool ok;
    if (!m->generation_config) return true;
    path = twi_text_new(&m->region.tw->region);
    twi_join_path(&path, folder, "generation_config.json");
    ok = !path.failed && tw_json_save(m->region.tw, m->generation_config, twi_text_string(&path), 2);
    twi_text_free(&path);
    return ok;
}

/* One tensor's bytes in the type of the file, for the writer of chapter files. */
enum { TWI_SAVE_PIECE = 65536 };                              /* numbers converted at a time */
typedef struct twi_save_source {
    tw_context       *tw;
    tw_model         *model;                                    /* its parameters ... */
    const tw_weights *file;                                     /* ... or the tensors of a file */
    tw_dtype          dtype;
    bool              keep;                                     /* every tensor in the type it has */
    float            *wide;
    uint16_t         *narrow;
} twi_save_source;

static bool twi_save_source_begin(twi_save_source *s, tw_context *tw, tw_dtype dtype, bool keep) {
    memset(s, 0, sizeof *s);
    s->tw = tw;
    s->dtype = dtype;
    s->keep = keep;
    s->wide = (float *)twi_alloc(&tw->region, TWI_SAVE_PIECE, sizeof(float));
    s->narrow = (uint16_t *)twi_alloc(&tw->region, TWI_SAVE_PIECE, sizeof(uint16_t));
    return s->wide && s->narrow;
}
static void twi_save_source_end(twi_save_source *s) {
    twi_free(&s->tw->region, s->wide);
    twi_free(&s->tw->region, s->narrow);
}

static bool twi_save_converted(twi_save_source *s, const void *data, tw_dtype from_dtype, size_t count, tw_writer writer) {
    size_t size = tw_dtype_size(from_dtype), done, n;
    if (s->keep || from_dtype == s->dtype || !twi_is_float(from_dtype)) return writer.write(writer.user, data, count * size);
    for (done = 0; done < count; done += n) {
        const char *from = (const char *)data + done * size;
        n = count - done < TWI_SAVE_PIECE ? count - done : (size_t)TWI_SAVE_PIECE;
        if (!twi_convert_values(from, from_dtype, (int64_t)n, s->wide)) return false;
        if (s->dtype == TW_F32) { if (!writer.write(writer.user, s->wide, n * sizeof(float))) return false; continue; }
        twb_convert(&s->tw->cpu, (ptrdiff_t)n, s->wide, TWB_F32, s->narrow, (twb_type)s->dtype);
        if (!writer.write(writer.user, s->narrow, n * sizeof(uint16_t))) return false;
    }
    return true;
}

static bool twi_save_parameter(void *user, size_t index, tw_writer writer) {
    twi_save_source *s = (twi_save_source *)user;
    const tw_tensor *t = s->model->parameter[index];
    return twi_save_converted(s, t->data, t->dtype, (size_t)tw_count(t), writer);
}
static bool twi_save_file_weight(void *user, size_t index, tw_writer writer) {
    twi_save_source *s = (twi_save_source *)user;
    const tw_weight *w = tw_weights_at(s->file, index);
    return twi_save_converted(s, w->data, w->dtype, w->bytes / tw_dtype_size(w->dtype), writer);
}

static bool twi_save_model_weights(tw_model *m, const char *folder, tw_dtype dtype, bool keep) {
    tw_context *tw = m->region.tw;
    twi_text path = twi_text_new(&tw->region);
    tw_weight *list = (tw_weight *)twi_alloc(&tw->region, m->parameters + 1, sizeof *list);
    tw_json *metadata = tw_json_object(tw);
    twi_save_source source;
    size_t i;
    bool ok = twi_save_source_begin(&source, tw, dtype, keep) && list && metadata && tw_json_set_string(metadata, "format", "pt");
    source.model = m;
    for (i = 0; ok && i < m->parameters; i++) {
        const tw_tensor *t = m->parameter[i];
        list[i].name = t->name;
        list[i].dtype = keep ? t->dtype : dtype;
        list[i].rank = t->rank;
        memcpy(list[i].shape, t->shape, sizeof list[i].shape);
    }
    twi_join_path(&path, folder, "model.safetensors");
    ok = ok && !path.failed && tw_save_weights_from(tw, twi_text_string(&path), list, m->parameters, metadata, twi_save_parameter, &source);
    twi_text_free(&path);
    tw_json_free(metadata);
    twi_save_source_end(&source);
    twi_free(&tw->region, list);
    return ok;
}

static bool twi_save_folder(tw_model *model, const char *folder, tw_dtype dtype, bool keep) {
    tw_context *tw;
    if (!model || tw_failed(model->region.tw)) return false;
    tw = model->region.tw;
    if (!folder || !folder[0]) { twi_fail(tw, TW_E_ARGUMENT, "save: no folder was named"); return false; }
    if (!keep && dtype > TW_BF16) { twi_fail(tw, TW_E_UNSUPPORTED, "save: weights cannot be written as %s", tw_dtype_name(dtype)); return false; }
    return twi_make_folders(tw, folder) && twi_save_model_weights(model, folder, dtype, keep) &&
           (!model->tokenizer || tw_save_tokenizer(model->tokenizer, folder)) &&
           twi_save_generation_config(model, folder) && twi_save_config(model, folder, dtype);
}
TWDEF bool tw_save_pretrained(tw_model *model, const char *folder) {
    tw_dtype dtype = TW_F32;                                   /* of the matrices: what config.json calls the model's */
    size_t i;
    for (i = 0; model && i < model->parameters; i++) if (model->parameter[i]->rank >= 2) { dtype = model->parameter[i]->dtype; break; }
    return twi_save_folder(model, folder, dtype, true);
}
TWDEF bool tw_save_pretrained_as(tw_model *model, const char *folder, tw_dtype dtype) { return twi_save_folder(model, folder, dtype, false); }

TWDEF bool tw_make_folders(tw_context *tw, const char *path) { return tw && path && !tw_failed(tw) && twi_make_folders(tw, path); }

/* -- from file to file -------------------------------------------------------------------------------------------------- */

static bool twi_copy_file(tw_context *tw, const char *from_folder, const char *to_folder, const char *name) {
    twi_text from = twi_text_new(&tw->region), to = twi_text_new(&tw->region);
    twi_region file;
    twi_bytes bytes;
    twi_save save;
    bool ok = true;
    memset(&file, 0, sizeof file);
    file.tw = tw;
    twi_join_path(&from, from_folder, name);
    twi_join_path(&to, to_folder, name);
    if (from.failed || to.failed) ok = false;
    else if (twi_file_exists(tw, twi_text_string(&from))) {
        ok = twi_read_file(&file, twi_text_string(&from), &bytes) && twi_save_begin(&save, tw, twi_text_string(&to));
        if (ok && !twi_save_bytes(&save, bytes.data, bytes.size)) { twi_save_abort(&save); ok = false; }
        ok = ok && twi_save_commit(&save);
    }
    twi_region_clear(&file);
    twi_text_free(&from);
    twi_text_free(&to);
    return ok;
}

static bool twi_convert_weights(tw_context *tw, const tw_weights *file, const char *path, tw_dtype dtype) {
    size_t count = tw_weights_count(file), i;
    tw_weight *list = (tw_weight *)twi_alloc(&tw->region, count + 1, sizeof *list);
    twi_save_source source;
    bool ok = twi_save_source_begin(&source, tw, dtype, false) && list;
    source.file = file;
    for (i = 0; ok && i < count; i++) {
        list[i] = *tw_weights_at(file, i);
        if (twi_is_float(list[i].dtype)) list[i].dtype = dtype;
    }
    ok = ok && tw_save_weights_from(tw, path, list, count, NULL, twi_save_file_weight, &source);
    twi_save_source_end(&source);
    twi_free(&tw->region, list);
    return ok;
}

static bool twi_convert_config(tw_context *tw, const char *from_folder, const char *to_folder, tw_dtype dtype) {
    twi_text path = twi_text_new(&tw->region);
    tw_json *config, *copy;
    bool ok;
    twi_join_path(&path, from_folder, "config.json");
    config = path.failed ? NULL : tw_json_load(tw, twi_text_string(&path));
    copy = config ? twi_copy_object(tw, config) : NULL;
    ok = copy && tw_json_set_string(copy, "dtype", twi_torch_name(dtype));
    if (ok && tw_json_get(copy, "torch_dtype")) tw_json_remove(copy, "torch_dtype");
    twi_text_clear(&path);
    twi_join_path(&path, to_folder, "config.json");
    ok = ok && !path.failed && tw_json_save(tw, copy, twi_text_string(&path), 2);
    tw_json_free(copy);
    tw_json_free(config);
    twi_text_free(&path);
    return ok;
}

TWDEF bool tw_convert_pretrained(tw_context *tw, const char *from_folder, const char *to_folder, tw_dtype dtype) {
    static const char *const others[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                                          "vocab.txt", "spiece.model", "generation_config.json" };
    twi_text path;
    tw_weights *file;
    size_t i;
    bool ok;
    if (!tw || tw_failed(tw)) return false;
    if (!from_folder || !to_folder) { twi_fail(tw, TW_E_ARGUMENT, "convert: no folder was named"); return false; }
    if (dtype > TW_BF16) { twi_fail(tw, TW_E_UNSUPPORTED, "convert: weights cannot be written as %s", tw_dtype_name(dtype)); return false; }
    file = tw_open_weights(tw, from_folder);
    if (!file) return false;
    path = twi_text_new(&tw->region);
    twi_join_path(&path, to_folder, "model.safetensors");
    ok = !path.failed && twi_make_folders(tw, to_folder) && twi_convert_weights(tw, file, twi_text_string(&path), dtype);
    for (i = 0; ok && i < sizeof others / sizeof *others; i++) ok = twi_copy_file(tw, from_folder, to_folder, others[i]);
    ok = ok && twi_convert_config(tw, from_folder, to_folder, dtype);
    twi_text_free(&path);
    tw_close_weights(file);
    return ok;
}

/* ==== [tw:11] optimizers and schedulers: implementation ====================================== */

typedef enum twi_optimizer_kind { TWI_ADAMW, TWI_ADAM, TWI_SGD, TWI_LION, TWI_ADAFACTOR, TWI_OPTIMIZERS } twi_optimizer_kind;

/* One row an optimizer: its name, its usual numbers, and how many floats of state it keeps for each parameter. */
static const struct { const char *name; double lr, beta1, beta2, eps, weight_decay; int states; } twi_optimizer_table[TWI_OPTIMIZERS] = {
    { "adamw",     1e-3, 0.9, 0.999, 1e-8,  0.01, 2 },
    { "adam",      1e-3, 0.9, 0.999, 1e-8,  0,    2 },
    { "sgd",       1e-3, 0,   0,     0,     0,    1 },
    { "lion",      1e-4, 0.9, 0.99,  0,     0,    1 },
    { "adafactor", 1e-3, 0,   0,     1e-30, 0,    1 }
};

typedef struct twi_optimizer {
    twi_optimizer_kind kind;
    double lr, beta1, beta2, eps, weight_decay, momentum, dampening, decay_rate, clip_threshold;
    bool   nesterov;
} twi_optimizer;

/* A number of an options object, checked; `name` is for the sentence. */
static bool twi_option(tw_context *tw, const tw_json *options, const char *of, const char *key, double low, double high, double *value) {
    const tw_json *v = tw_json_get(options, key);
    if (!v || tw_json_type(v) == TW_JSON_NULL) return true;
    if (tw_json_type(v) == TW_JSON_NUMBER) {
        *value = tw_json_number(v, *value);
        if (*value >= low && *value <= high) return true;
    }
    twi_fail(tw, TW_E_RANGE, "%s: %s is not a number in %g ... %g", of, key, low, high);
    return false;
}
/* Options as JSON text; NULL is an empty object.  NULL after an error. */
static tw_json *twi_options(tw_context *tw, const char *of, const char *text) {
    tw_json *options = text ? tw_json_parse(tw, text, strlen(text)) : tw_json_object(tw);
    if (!options || tw_json_type(options) == TW_JSON_OBJECT) return options;
    twi_fail(tw, TW_E_ARGUMENT, "%s: the options are no JSON object", of);
    tw_json_free(options);
    return NULL;
}

static bool twi_optimizer_init(tw_context *tw, twi_optimizer *o, const char *name, const tw_json *options) {
    const tw_json *betas = tw_json_get(options, "betas");
    int kind = 0;
    while (kind < TWI_OPTIMIZERS && strcmp(twi_optimizer_table[kind].name, name) != 0) kind++;
    if (kind == TWI_OPTIMIZERS) { twi_fail(tw, TW_E_ARGUMENT, "optimizer: \"%.60s\" is not known (adamw, adam, sgd, lion, adafactor)", name); return false; }
    memset(o, 0, sizeof *o);
    o->kind = (twi_optimizer_kind)kind;
    o->lr = twi_optimizer_table[kind].lr;
    o->beta1 = twi_optimizer_table[kind].beta1;
    o->beta2 = twi_optimizer_table[kind].beta2;
    o->eps = twi_optimizer_table[kind].eps;
    o->weight_decay = twi_optimizer_table[kind].weight_decay;
    o->decay_rate = -0.8;
    o->clip_threshold = 1;
    if (tw_json_count(betas) == 2) { o->beta1 = tw_json_number(tw_json_at(betas, 0), -1); o->beta2 = tw_json_number(tw_json_at(betas, 1), -1); }
    o->nesterov = tw_json_bool(tw_json_get(options, "nesterov"), false);
    if (!twi_option(tw, options, name, "lr", 0, 1e6, &o->lr) || !twi_option(tw, options, name, "beta1", 0, 1, &o->beta1) ||
        !twi_option(tw, options, name, "beta2", 0, 1, &o->beta2) || !twi_option(tw, options, name, "eps", 0, 1, &o->eps) ||
        !twi_option(tw, options, name, "weight_decay", 0, 1e6, &o->weight_decay) || !twi_option(tw, options, name, "momentum", 0, 1, &o->momentum) ||
        !twi_option(tw, options, name, "dampening", 0, 1, &o->dampening) || !twi_option(tw, options, name, "decay_rate", -10, 0, &o->decay_rate) ||
        !twi_option(tw, options, name, "clip_threshold", 1e-30, 1e30, &o->clip_threshold)) return false;
    if (!(o->beta1 >= 0 && o->beta1 < 1 && o->beta2 >= 0 && o->beta2 < 1)) { twi_fail(tw, TW_E_RANGE, "%s: betas are not in [0, 1)", name); return false; }
    return true;
}

/* How many floats of state a parameter needs.  Adafactor keeps a matrix's squares as the mean of each row and column. */
static size_t twi_optimizer_state(const twi_optimizer *o, const tw_tensor *t) {
    size_t count = (size_t)tw_count(t);
    if (o->kind == TWI_SGD && o->momentum == 0) return 0;
    if (o->kind == TWI_ADAFACTOR && t->rank >= 2) return count / (size_t)twi_columns(t) + count / (size_t)t->shape[t->rank - 2];
    return count * (size_t)twi_optimizer_table[o->kind].states;
}

/* Adafactor (Shazeer, Stern 2018) as transformers has it with a given learning rate: no first moment; the update is divided
   by its root mean square where that is above clip_threshold. */
static void twi_adafactor(tw_context *tw, const twi_optimizer *o, tw_tensor *t, float *state, double lr, double weight_decay, int64_t step, float grad_scale, float *update) {
    int64_t columns = t->rank >= 2 ? twi_columns(t) : 0, rows = t->rank >= 2 ? t->shape[t->rank - 2] : 0, count = tw_count(t), i, r, c, matrix, matrices;
    float beta = (float)(1.0 - pow((double)step, o->decay_rate)), eps = (float)o->eps;
    const float *g = t->grad;
    double mean_square, shrink;
    if (t->rank >= 2) {
        matrices = count / (rows * columns);
        for (matrix = 0; matrix < matrices; matrix++) {
            float *row = state + matrix * rows, *column = state + matrices * rows + matrix * columns;
            const float *gm = g + matrix * rows * columns;
            float *um = update + matrix * rows * columns;
            double row_mean = 0;
            for (c = 0; c < columns; c++) column[c] *= beta;
            for (r = 0; r < rows; r++) {
                double sum = 0;
                for (c = 0; c < columns; c++) {
                    float x = gm[r * columns + c] * grad_scale, square = x * x + eps;
                    sum += (double)square;
                    column[c] += (1 - beta) * square / (float)rows;
                }
                row[r] = beta * row[r] + (1 - beta) * (float)(sum / (double)columns);
                row_mean += (double)row[r];
            }
            row_mean /= (double)rows;
            for (r = 0; r < rows; r++) {
                float by_row = (float)(1.0 / sqrt((double)row[r] / row_mean));
                for (c = 0; c < columns; c++) um[r * columns + c] = by_row / sqrtf(column[c]) * gm[r * columns + c] * grad_scale;
            }
        }
    } else for (i = 0; i < count; i++) {
        float x = g[i] * grad_scale;
        state[i] = beta * state[i] + (1 - beta) * (x * x + eps);
        update[i] = x / sqrtf(state[i]);
    }
    mean_square = sqrt(twb_sum_squares(&tw->cpu, (ptrdiff_t)count, update) / (double)(count ? count : 1)) / o->clip_threshold;
    shrink = lr / (mean_square > 1 ? mean_square : 1);
    if (weight_decay != 0) twb_axpby(&tw->cpu, (ptrdiff_t)count, 0, update, (float)(1 - weight_decay * lr), (float *)t->data);
    twb_axpby(&tw->cpu, (ptrdiff_t)count, (float)-shrink, update, 1, (float *)t->data);
}

/* One update of one parameter at step = 1, 2, ...; its gradient is multiplied by grad_scale on the way. */
static bool twi_optimizer_update(tw_context *tw, const twi_optimizer *o, tw_tensor *t, float *state, double lr, int64_t step, float grad_scale) {
    ptrdiff_t n = (ptrdiff_t)tw_count(t);
    double weight_decay = t->no_decay ? 0 : o->weight_decay;
    float *p = (float *)t->data, *g = t->grad;
    switch (o->kind) {
    case TWI_ADAMW:
    case TWI_ADAM: {
        twb_adamw_args a;
        memset(&a, 0, sizeof a);
        a.lr = (float)lr; a.beta1 = (float)o->beta1; a.beta2 = (float)o->beta2; a.eps = (float)o->eps; a.weight_decay = (float)weight_decay;
        a.bias_correction1 = (float)(1 - pow(o->beta1, (double)step));
        a.bias_correction2 = (float)(1 - pow(o->beta2, (double)step));
        a.grad_scale = grad_scale;
        a.l2 = o->kind == TWI_ADAM;
        twb_adamw(&tw->cpu, n, p, g, state, state + n, &a);
        return true;
    }
    case TWI_SGD: {
        twb_sgd_args a;
        memset(&a, 0, sizeof a);
        a.lr = (float)lr; a.momentum = (float)o->momentum; a.dampening = step == 1 ? 0 : (float)o->dampening; a.weight_decay = (float)weight_decay;
        a.grad_scale = grad_scale;
        a.nesterov = o->nesterov;
        twb_sgd(&tw->cpu, n, p, g, state, &a);
        return true;
    }
    case TWI_LION: {
        twb_lion_args a;
        memset(&a, 0, sizeof a);
        a.lr = (float)lr; a.beta1 = (float)o->beta1; a.beta2 = (float)o->beta2; a.weight_decay = (float)weight_decay; a.grad_scale = grad_scale;
        twb_lion(&tw->cpu, n, p, g, state, &a);
        return true;
    }
    case TWI_ADAFACTOR: {
        float *update = (float *)twi_scratch(tw, (size_t)n * sizeof(float));
        if (!update) return false;
        twi_adafactor(tw, o, t, state, lr, weight_decay, step, grad_scale, update);
        return true;
    }
    case TWI_OPTIMIZERS: break;
    }
    return false;
}

/* -- schedulers --------------------------------------------------------------------------------------------- */

typedef enum twi_scheduler_kind { TWI_CONSTANT, TWI_CONSTANT_WITH_WARMUP, TWI_LINEAR, TWI_COSINE, TWI_COSINE_WITH_RESTARTS, TWI_POLYNOMIAL, TWI_INVERSE_SQRT, TWI_SCHEDULERS } twi_scheduler_kind;
static const struct { const char *name; bool ends; } twi_scheduler_table[TWI_SCHEDULERS] = {
    { "constant", false }, { "constant_with_warmup", false }, { "linear", true }, { "cosine", true },
    { "cosine_with_restarts", true }, { "polynomial", true }, { "inverse_sqrt", false }
};

TWDEF bool tw_scheduler_init(tw_context *tw, tw_scheduler *s, const char *name, const char *options_json, double lr) {
    tw_json *options = twi_options(tw, "scheduler", options_json);
    double warmup = 0, max_steps = 0;
    int kind = 0;
    bool ok;
    if (!options || !name) return false;
    while (kind < TWI_SCHEDULERS && strcmp(twi_scheduler_table[kind].name, name) != 0) kind++;
    memset(s, 0, sizeof *s);
    s->kind = kind;
    s->lr = lr;
    s->num_cycles = kind == TWI_COSINE ? 0.5 : 1;
    s->power = 1;
    s->lr_end = 1e-7;
    if (kind == TWI_SCHEDULERS) twi_fail(tw, TW_E_ARGUMENT, "scheduler: \"%.60s\" is not known", name);
    ok = kind < TWI_SCHEDULERS && twi_option(tw, options, name, "warmup_steps", 0, 9e15, &warmup) && twi_option(tw, options, name, "max_steps", 0, 9e15, &max_steps) &&
         twi_option(tw, options, name, "num_cycles", 0, 1e9, &s->num_cycles) && twi_option(tw, options, name, "power", 0, 1e3, &s->power) &&
         twi_option(tw, options, name, "lr_end", 0, 1e9, &s->lr_end);
    s->warmup_steps = (int64_t)warmup;
    s->max_steps = (int64_t)max_steps;
    s->timescale = warmup > 0 ? warmup : 10000;
    ok = ok && twi_option(tw, options, name, "timescale", 1e-9, 1e15, &s->timescale);
    tw_json_free(options);
    if (ok && twi_scheduler_table[kind].ends && s->max_steps < 1) {
        twi_fail(tw, TW_E_ARGUMENT, "scheduler: %s needs max_steps to know where it ends", name);
        return false;
    }
    if (ok && kind == TWI_POLYNOMIAL && s->lr_end >= lr) {
        twi_fail(tw, TW_E_RANGE, "scheduler: lr_end %g is not below the learning rate %g", s->lr_end, lr);
        return false;
    }
    return ok;
}

TWDEF double tw_scheduler_factor(const tw_scheduler *s, int64_t step) {
    const double pi = 3.14159265358979323846;
    double warmup = (double)s->warmup_steps, at = (double)step, rest = (double)(s->max_steps - s->warmup_steps), progress;
    if (s->kind != TWI_CONSTANT && step < s->warmup_steps) return at / (warmup > 1 ? warmup : 1);
    progress = (at - warmup) / (rest > 1 ? rest : 1);
    switch (s->kind) {
    case TWI_LINEAR: { double left = ((double)s->max_steps - at) / (rest > 1 ? rest : 1); return left > 0 ? left : 0; }
    case TWI_COSINE: { double f = 0.5 * (1 + cos(pi * s->num_cycles * 2 * progress)); return f > 0 ? f : 0; }
    case TWI_COSINE_WITH_RESTARTS: {
        double f;
        if (progress >= 1) return 0;
        f = 0.5 * (1 + cos(pi * fmod(s->num_cycles * progress, 1.0)));
        return f > 0 ? f : 0;
    }
    case TWI_POLYNOMIAL: {
        double left;
        if (step > s->max_steps) return s->lr_end / s->lr;
        left = 1 - (at - warmup) / rest;
        return ((s->lr - s->lr_end) * pow(left, s->power) + s->lr_end) / s->lr;
    }
    case TWI_INVERSE_SQRT: return 1 / sqrt((at + s->timescale - warmup) / s->timescale);
    default: return 1;
    }
}

/* ==== [tw:12] losses and metrics: implementation ============================================= */

TWDEF bool tw_count_hits(const tw_tensor *logits, const tw_tensor *labels, bool shift, int64_t *hits, int64_t *counted) {
    int64_t row, column, rows, columns, length;
    const int32_t *label;
    *hits = *counted = 0;
    if (!logits || !twi_is_i32(labels, logits->tw, "accuracy") || !tw_is_contiguous(logits) || logits->dtype != TW_F32) return false;
    rows = twi_rows(logits);
    columns = twi_columns(logits);
    length = labels->rank ? twi_columns(labels) : 1;
    if (tw_count(labels) != rows) { twi_fail(logits->tw, TW_E_SHAPE, "accuracy: labels %s do not fit logits %s", TWI_SHAPE(labels), TWI_SHAPE(logits)); return false; }
    label = (const int32_t *)labels->data;
    for (row = 0; twi_computes(logits->tw) && row < rows; row++) {
        const float *x = twi_f32(logits) + row * columns;
        int32_t wanted = label[row];
        int64_t best = 0;
        if (shift) wanted = row % length + 1 < length ? label[row + 1] : TWI_IGNORED;
        if (wanted == TWI_IGNORED) continue;
        for (column = 1; column < columns; column++) if (x[column] > x[best]) best = column;
        ++*counted;
        if (best == wanted) ++*hits;
    }
    return true;
}

/* The losses that can be put on top of "logits" and "labels". */
static tw_tensor *twi_cross_entropy_loss(tw_tensor *logits, tw_tensor *labels, float smoothing) { return tw_cross_entropy(logits, labels, smoothing); }
static tw_tensor *twi_mse_of(tw_tensor *logits, tw_tensor *labels, float smoothing) { (void)smoothing; return tw_mse_loss(logits, labels); }
static tw_tensor *twi_bce_of(tw_tensor *logits, tw_tensor *labels, float smoothing) { (void)smoothing; return tw_bce_with_logits(logits, labels); }
static const struct { const char *name; tw_tensor *(*loss)(tw_tensor *logits, tw_tensor *labels, float smoothing); } twi_losses[] = {
    { "model", NULL }, { "cross_entropy", twi_cross_entropy_loss }, { "mse", twi_mse_of }, { "bce", twi_bce_of }
};
enum { TWI_LOSSES = (int)(sizeof twi_losses / sizeof *twi_losses) };

typedef struct twi_metric { int kind; tw_phase phase; double sum[2], count[2]; } twi_metric;      /* sums of training and of evaluation */
static double twi_metric_mean(double sum, double count) { return sum / count; }
static double twi_metric_exp(double sum, double count) { return exp(sum / count); }
static const struct { const char *name; bool of_hits; double (*result)(double sum, double count); } twi_metrics[] = {
    { "loss", false, twi_metric_mean }, { "perplexity", false, twi_metric_exp }, { "accuracy", true, twi_metric_mean }
};
enum { TWI_METRICS = (int)(sizeof twi_metrics / sizeof *twi_metrics) };

/* ==== [tw:13] training: implementation ======================================================= */

typedef struct twi_training {
    bool          has_optimizer, has_scheduler;
    twi_optimizer optimizer;
    tw_scheduler  scheduler;
    char          scheduler_name[32];
    float       **state;                   /* one array a parameter, NULL until its first update */
    size_t        states;
    int           loss;                    /* row of twi_losses */
    float         label_smoothing;
    bool          average_tokens;          /* how the micro-batches of a window weigh: by their tokens, or alike */
    twi_metric    metric[TWI_METRICS];
    int           metrics;
    int           accumulation;            /* micro-batches a window */
    int           micro_batches;           /* in this window so far */
    double        weight;                  /* of the micro-batches in this window: their number, or their labelled tokens */
    float         clip;                    /* what the gradients are still to be multiplied by: 1/weight and the clipping */
    bool          clip_known;
    int64_t       step;                    /* updates done */
    int64_t       schedule_step;           /* lr_step calls done */
    tw_tensor    *last_loss;               /* of this step: what backward starts from */
    tw_batch      inputs;
    tw_outputs    outputs;
    twi_text      report;
} twi_training;

static twi_training *twi_training_of(tw_model *m) {
    if (!m || tw_failed(m->region.tw)) return NULL;
    if (!m->training) {
        m->training = (twi_training *)twi_alloc(&m->region, 1, sizeof *m->training);
        if (!m->training) return NULL;
        m->training->accumulation = 1;
        m->training->clip = 1;
        m->training->report = twi_text_new(&m->region);
    }
    return m->training;
}

/* What a call carries, kept; NULL after an error. */
static twi_training *twi_call(tw_model *m, const tw_call *call) {
    twi_training *t = twi_training_of(m);
    if (!t || !call) return t;
    if (call->adapter_name && call->adapter_name[0]) {
        twi_fail(m->region.tw, TW_E_MISSING, "adapter: the model has none named \"%.60s\"", call->adapter_name);
        return NULL;
    }
    if (call->gradient_accumulation_steps < 0) { twi_fail(m->region.tw, TW_E_RANGE, "gradient_accumulation_steps: %d is below 1", call->gradient_accumulation_steps); return NULL; }
    if (call->gradient_accumulation_steps) t->accumulation = call->gradient_accumulation_steps;
    return t;
}

TWDEF bool tw_set_optimizer(tw_model *model, const char *name, const char *options_json) {
    twi_training *t = twi_training_of(model);
    tw_json *options = t ? twi_options(model->region.tw, "optimizer", options_json) : NULL;
    bool ok;
    size_t i;
    if (!options) return false;
    ok = twi_optimizer_init(model->region.tw, &t->optimizer, name ? name : "", options);
    tw_json_free(options);
    if (!ok || !tw_to(model, TW_F32)) return false;
    for (i = 0; i < t->states; i++) twi_free(&model->region, t->state[i]);
    twi_free(&model->region, t->state);
    t->states = 0;
    t->state = (float **)twi_alloc(&model->region, model->parameters + 1, sizeof *t->state);
    if (!t->state) return false;
    t->states = model->parameters;
    t->has_optimizer = true;
    t->step = 0;
    return true;
}

TWDEF bool tw_set_lr_scheduler(tw_model *model, const char *name, const char *options_json) {
    twi_training *t = twi_training_of(model);
    if (!t) return false;
    if (!t->has_optimizer) { twi_fail(model->region.tw, TW_E_MISSING, "scheduler: set an optimizer first"); return false; }
    t->has_scheduler = tw_scheduler_init(model->region.tw, &t->scheduler, name ? name : "", options_json, t->optimizer.lr);
    snprintf(t->scheduler_name, sizeof t->scheduler_name, "%s", t->has_scheduler ? name : "");
    t->schedule_step = 0;
    return t->has_scheduler;
}

TWDEF bool tw_set_loss(tw_model *model, const char *name, const char *options_json) {
    twi_training *t = twi_training_of(model);
    tw_json *options;
    double smoothing = 0;
    int i;
    if (!t) return false;
    for (i = 0; i < TWI_LOSSES && strcmp(twi_losses[i].name, name ? name : "") != 0; i++) continue;
    if (i == TWI_LOSSES) { twi_fail(model->region.tw, TW_E_ARGUMENT, "loss: \"%.60s\" is not known (model, cross_entropy, mse, bce)", name ? name : ""); return false; }
    options = twi_options(model->region.tw, "loss", options_json);
    if (!options) return false;
    t->loss = i;
    t->average_tokens = tw_json_bool(tw_json_get(options, "average_tokens"), false);
    if (twi_option(model->region.tw, options, "loss", "label_smoothing", 0, 0.999, &smoothing)) t->label_smoothing = (float)smoothing;
    tw_json_free(options);
    return !tw_failed(model->region.tw);
}

TWDEF bool tw_add_metric(tw_model *model, const char *name, tw_phase phase) {
    twi_training *t = twi_training_of(model);
    int i, k;
    if (!t) return false;
    for (i = 0; i < TWI_METRICS && strcmp(twi_metrics[i].name, name ? name : "") != 0; i++) continue;
    if (i == TWI_METRICS) { twi_fail(model->region.tw, TW_E_ARGUMENT, "metric: \"%.60s\" is not known (loss, perplexity, accuracy)", name ? name : ""); return false; }
    for (k = 0; k < t->metrics && t->metric[k].kind != i; k++) continue;
    if (k == t->metrics) { memset(&t->metric[k], 0, sizeof t->metric[k]); t->metric[k].kind = i; t->metrics++; }
    t->metric[k].phase = (tw_phase)(t->metric[k].phase | phase);
    return true;
}

/* -- forward, loss, backward ---------------------------------------------------------------------------------- */

/* Does the language model's head compare the logits at t with the label at t + 1? */
static bool twi_shifts_labels(const tw_model *m) {
    bool decoder = m->type && (m->type == &twi_gpt2_type || m->type->build == twi_bert_build || m->type->build == twi_rotary_build);
    return decoder && (twi_head_of(m) == TWI_HEAD_LM || twi_head_of(m) == TWI_HEAD_DOUBLE);
}

static bool twi_metric_wants_logits(const twi_training *t, tw_phase phase) {
    int i;
    for (i = 0; i < t->metrics; i++) if ((t->metric[i].phase & phase) && twi_metrics[t->metric[i].kind].of_hits) return true;
    return false;
}

static bool twi_run_forward(tw_model *m, twi_training *t, const tw_batch *inputs, const tw_call *call, tw_phase phase, bool want_logits) {
    tw_pass pass;
    memset(&pass, 0, sizeof pass);
    pass.label_smoothing = t->label_smoothing;
    pass.no_logits = tw_batch_get(inputs, "labels") && !want_logits && !(call && call->return_logits) && !twi_metric_wants_logits(t, phase) && t->loss <= 1;
    t->last_loss = NULL;
    if (&t->inputs != inputs) t->inputs = *inputs;
    m->region.tw->counted = 0;
    if (!tw_model_forward(m, inputs, &pass, &t->outputs)) return false;
    if (call && call->temperature > 0) {
        tw_tensor *logits = tw_batch_get(&t->outputs, "logits");
        if (logits && !twi_output(&t->outputs, "logits", tw_scale(logits, 1 / call->temperature))) return false;
    }
    return true;
}

/* The loss of the outputs: the head's own, or the one that was set, on logits and labels. */
static tw_tensor *twi_loss_of(tw_model *m, twi_training *t) {
    tw_tensor *loss = t->last_loss, *logits = tw_batch_get(&t->outputs, "logits"), *labels = tw_batch_get(&t->inputs, "labels");
    if (loss) return loss;
    loss = tw_batch_get(&t->outputs, "loss");
    if (!loss || t->loss > 1) {
        if (!logits || !labels || !twi_losses[t->loss].loss) {
            twi_fail(m->region.tw, TW_E_MISSING, "loss: there are no %s to compute it from", labels ? "logits" : "labels");
            return NULL;
        }
        loss = twi_losses[t->loss].loss(logits, labels, t->label_smoothing);
    }
    if (loss) loss->recycle = false;
    t->last_loss = loss;
    return loss;
}

/* How many items the last loss was the mean of: labelled tokens, or rows. */
static double twi_items(const tw_model *m, const twi_training *t) {
    const tw_tensor *labels = tw_batch_get(&t->inputs, "labels");
    if (m->region.tw->counted > 0) return (double)m->region.tw->counted;
    return labels && labels->rank ? (double)labels->shape[0] : 1;
}

static void twi_update_metrics(tw_model *m, twi_training *t, tw_phase phase) {
    int i, k = phase == TW_TRAINING ? 0 : 1;
    double items = twi_items(m, t);
    for (i = 0; i < t->metrics && !m->region.tw->planning; i++) {
        twi_metric *metric = &t->metric[i];
        if (!(metric->phase & phase)) continue;
        if (twi_metrics[metric->kind].of_hits) {
            int64_t hits = 0, counted = 0;
            tw_tensor *logits = tw_batch_get(&t->outputs, "logits"), *labels = tw_batch_get(&t->inputs, "labels");
            if (!logits || !labels || labels->dtype != TW_I32) continue;
            tw_count_hits(logits, labels, twi_shifts_labels(m), &hits, &counted);
            metric->sum[k] += (double)hits;
            metric->count[k] += (double)counted;
        } else if (t->last_loss) {
            metric->sum[k] += (double)tw_item(t->last_loss) * items;
            metric->count[k] += items;
        }
    }
}

TWDEF bool tw_forward(tw_model *model, const tw_batch *inputs, tw_outputs *out, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    bool was, ok;
    if (!t || !inputs) return false;
    was = tw_training(model->region.tw, true);
    ok = twi_run_forward(model, t, inputs, call, TW_TRAINING, true);
    tw_training(model->region.tw, was);
    if (out && ok) *out = t->outputs;
    return ok;
}
TWDEF bool tw_forward_only(tw_model *model, const tw_batch *inputs, tw_outputs *out, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    bool was, was_grad, ok;
    if (!t || !inputs) return false;
    was = tw_training(model->region.tw, false);
    was_grad = tw_no_grad(model->region.tw, true);
    ok = twi_run_forward(model, t, inputs, call, TW_EVALUATION, out != NULL);
    if (ok && tw_batch_get(inputs, "labels")) ok = twi_loss_of(model, t) != NULL;
    if (ok) twi_update_metrics(model, t, TW_EVALUATION);
    tw_no_grad(model->region.tw, was_grad);
    tw_training(model->region.tw, was);
    if (out && ok) *out = t->outputs;
    return ok;
}
TWDEF float tw_calculate_loss(tw_model *model, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    return tw_item(t ? twi_loss_of(model, t) : NULL);
}

/* Every micro-batch adds its gradient with its weight, 1 or the number of its labelled tokens; the sum is divided by the
   sum of the weights when the window is full. */
static twi_seed twi_weight_kind(const twi_training *t) { return t->average_tokens && t->accumulation > 1 ? TWI_SEED_ITEMS : TWI_SEED_ONE; }

static bool twi_backward_pass(tw_model *m, twi_training *t) {
    tw_context *tw = m->region.tw;
    double weight = twi_weight_kind(t) == TWI_SEED_ITEMS ? twi_items(m, t) : 1;
    bool ok;
    if (!t->last_loss) { twi_fail(tw, TW_E_MISSING, "backward: calculate a loss first"); return false; }
    ok = twi_backward_from(t->last_loss, (float)weight);
    t->weight += weight;
    t->micro_batches++;
    t->clip_known = false;
    t->last_loss = NULL;
    return ok;
}
TWDEF bool tw_backward_of(tw_model *model, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    return t && twi_backward_pass(model, t);
}

typedef struct twi_train_call { tw_model *model; twi_training *training; const tw_batch *inputs; const tw_call *call; float max_norm, norm_type, result; } twi_train_call;

static void twi_forward_backward_body(void *arg) {
    twi_train_call *c = (twi_train_call *)arg;
    tw_context *tw = c->model->region.tw;
    twi_training *t = c->training;
    tw_tensor *loss;
    bool was = tw_training(tw, true);
    tw->recycling = true;
    tw->loss_seed = twi_weight_kind(t);
    loss = twi_run_forward(c->model, t, c->inputs, c->call, TW_TRAINING, false) ? twi_loss_of(c->model, t) : NULL;
    tw->recycling = false;
    if (loss) twi_update_metrics(c->model, t, TW_TRAINING);
    c->result = tw_item(loss);
    if (loss && !twi_backward_pass(c->model, t)) c->result = twb_bits_float(0x7FC00000u);
    tw->loss_seed = TWI_SEED_UNKNOWN;
    tw_training(tw, was);
}
TWDEF float tw_forward_backward(tw_model *model, const tw_batch *inputs, const tw_call *call) {
    twi_train_call c;
    memset(&c, 0, sizeof c);
    c.training = twi_call(model, call);
    if (!c.training || !inputs) return twb_bits_float(0x7FC00000u);
    c.model = model; c.inputs = inputs; c.call = call;
    twi_with_team(model->region.tw, twi_forward_backward_body, &c);
    return c.result;
}

/* -- clipping, step, zero, lr ------------------------------------------------------------------------------------- */

static bool twi_window_full(const twi_training *t) { return t->micro_batches > 0 && t->micro_batches >= t->accumulation; }
static bool twi_has_gradient(const tw_tensor *p) { return p->requires_grad && p->grad && !p->grad_stale; }

/* Before clipping every gradient is still to be divided by the window's weight. */
static float twi_window_scale(const twi_training *t) { return t->weight > 0 ? (float)(1.0 / t->weight) : 1.0f; }

TWDEF float tw_clip_grad_norm(tw_model *model, float max_norm, float norm_type, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    double total = 0, norm, coefficient = 1;
    size_t i;
    if (!t) return twb_bits_float(0x7FC00000u);
    if (!twi_window_full(t)) return 0;
    for (i = 0; i < model->parameters && !model->region.tw->planning; i++) {
        const tw_tensor *p = model->parameter[i];
        if (!twi_has_gradient(p)) continue;
        if (norm_type == 2) total += twb_sum_squares(&model->region.tw->cpu, (ptrdiff_t)tw_count(p), p->grad);
        else { double largest = (double)twb_max_abs(&model->region.tw->cpu, (ptrdiff_t)tw_count(p), p->grad); if (!(largest <= total)) total = largest; }
    }
    norm = (norm_type == 2 ? sqrt(total) : total) * (double)twi_window_scale(t);
    if (max_norm > 0 && (double)max_norm / (norm + 1e-6) < 1) coefficient = (double)max_norm / (norm + 1e-6);
    t->clip = (float)coefficient * twi_window_scale(t);       /* multiplied in by the optimizer's own pass over memory */
    t->clip_known = true;
    return (float)norm;
}

TWDEF double tw_learning_rate(const tw_model *model) {
    const twi_training *t = model ? model->training : NULL;
    if (!t || !t->has_optimizer) return 0;
    return t->optimizer.lr * (t->has_scheduler ? tw_scheduler_factor(&t->scheduler, t->schedule_step) : 1);
}
TWDEF int64_t tw_global_step(const tw_model *model) { return model && model->training ? model->training->step : 0; }

static float *twi_state_of(tw_model *m, twi_training *t, size_t i, bool *ok) {
    size_t count = twi_optimizer_state(&t->optimizer, m->parameter[i]);
    if (m->region.tw->planning) m->region.tw->planned_optimizer += count ? twi_round_up(count * sizeof(float)) : 0;
    else if (!t->state[i] && count) {
        t->state[i] = (float *)twi_alloc(&m->region, count, sizeof(float));
        if (!t->state[i]) *ok = false;
    }
    return t->state[i];
}

TWDEF bool tw_step(tw_model *model, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    float scale;
    double lr;
    size_t i;
    bool ok = true;
    if (!t) return false;
    if (!t->has_optimizer) { twi_fail(model->region.tw, TW_E_MISSING, "step: set an optimizer first"); return false; }
    if (!twi_window_full(t)) return true;
    scale = t->clip_known ? t->clip : twi_window_scale(t);
    lr = tw_learning_rate(model);
    for (i = 0; ok && i < model->parameters; i++) {
        tw_tensor *p = model->parameter[i];
        float *state;
        if (!twi_has_gradient(p)) continue;
        state = twi_state_of(model, t, i, &ok);
        if (!ok) break;
        if (twi_computes(model->region.tw)) ok = twi_optimizer_update(model->region.tw, &t->optimizer, p, state, lr, t->step + 1, scale);
    }
    t->step++;
    return ok && !tw_failed(model->region.tw);
}

TWDEF bool tw_zero_grad(tw_model *model, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    size_t i;
    if (!t) return false;
    if (t->micro_batches && !twi_window_full(t)) return true;
    for (i = 0; i < model->parameters; i++) tw_zero_grad_of(model->parameter[i]);
    t->micro_batches = 0;
    t->weight = 0;
    t->clip_known = false;
    return true;
}
TWDEF bool tw_lr_step(tw_model *model, const tw_call *call) {
    twi_training *t = twi_call(model, call);
    if (!t) return false;
    if (t->micro_batches && !twi_window_full(t)) return true;
    t->schedule_step++;
    return true;
}
static void twi_clip_and_step_body(void *arg) {
    twi_train_call *c = (twi_train_call *)arg;
    c->result = tw_clip_grad_norm(c->model, c->max_norm, c->norm_type, NULL);
    if (!tw_step(c->model, NULL)) { c->result = twb_bits_float(0x7FC00000u); return; }
    tw_lr_step(c->model, NULL);
    tw_zero_grad(c->model, NULL);
}
TWDEF float tw_clip_grad_and_step(tw_model *model, float max_norm, float norm_type, const tw_call *call) {
    twi_train_call c;
    memset(&c, 0, sizeof c);
    c.training = twi_call(model, call);
    if (!c.training || !twi_window_full(c.training)) return c.training ? 0 : twb_bits_float(0x7FC00000u);
    c.model = model; c.max_norm = max_norm; c.norm_type = norm_type;
    twi_with_team(model->region.tw, twi_clip_and_step_body, &c);
    return c.result;
}

TWDEF double tw_calculate_metric(tw_model *model, const char *name, tw_phase phase) {
    twi_training *t = model ? model->training : NULL;
    double sum = 0, count = 0;
    int i, k;
    for (i = 0; t && name && i < t->metrics; i++) {
        twi_metric *metric = &t->metric[i];
        if (strcmp(twi_metrics[metric->kind].name, name) != 0) continue;
        for (k = 0; k < 2; k++) {
            if (!(phase & (k == 0 ? TW_TRAINING : TW_EVALUATION))) continue;
            sum += metric->sum[k];
            count += metric->count[k];
            metric->sum[k] = metric->count[k] = 0;
        }
        if (count > 0) return twi_metrics[metric->kind].result(sum, count);
    }
    return (double)twb_bits_float(0x7FC00000u);
}

TWDEF const char *tw_get_train_configs(tw_model *model) {
    twi_training *t = twi_training_of(model);
    int64_t all, trainable;
    char line[512];
    if (!t) return "";
    all = tw_num_parameters(model, false);
    trainable = tw_num_parameters(model, true);
    twi_text_clear(&t->report);
    snprintf(line, sizeof line, "Trainable params: %lld || all params: %lld || trainable%%: %.4f\n", (long long)trainable, (long long)all,
             all ? 100.0 * (double)trainable / (double)all : 0.0);
    twi_text_add(&t->report, line);
    if (t->has_optimizer) {
        snprintf(line, sizeof line, "Optimizer: %s\nLearning rate: %g\nLr scheduler: %s\nGradient accumulation steps: %d\n", twi_optimizer_table[t->optimizer.kind].name,
                 t->optimizer.lr, t->has_scheduler ? t->scheduler_name : "none", t->accumulation);
        twi_text_add(&t->report, line);
    }
    return twi_text_string(&t->report);
}

/* -- checkpoints ----------------------------------------------------------------------------------------------------
   Beside the model's own files stands optimizer.safetensors: the state of each parameter under "state.NAME" as one
   row of floats, and in its metadata the steps and the random numbers, in decimal. */

static bool twi_set_metadata(tw_json *metadata, const char *key, uint64_t value) {
    char digits[32];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    return tw_json_set_string(metadata, key, digits);
}
static bool twi_get_metadata(tw_context *tw, const tw_weights *file, const char *key, uint64_t *value) {
    const char *text = tw_weights_metadata(file, key);
    uint64_t x = 0;
    for (*value = 0; text && *text >= '0' && *text <= '9'; text++) {
        if (x > (UINT64_MAX - (uint64_t)(*text - '0')) / 10) { text = NULL; break; }
        x = x * 10 + (uint64_t)(*text - '0');
    }
    if (!text || *text) { twi_fail(tw, TW_E_FORMAT, "optimizer state: %s is missing or no number", key); return false; }
    *value = x;
    return true;
}

static bool twi_save_state(void *user, size_t index, tw_writer writer) {
    const twi_save_source *s = (const twi_save_source *)user;
    size_t i, k = 0;
    for (i = 0; i < s->model->parameters; i++) {
        if (!s->model->training->state[i]) continue;
        if (k++ == index) return writer.write(writer.user, s->model->training->state[i], twi_optimizer_state(&s->model->training->optimizer, s->model->parameter[i]) * sizeof(float));
    }
    return false;
}

static bool twi_save_optimizer(tw_model *m, const char *folder) {
    tw_context *tw = m->region.tw;
    twi_training *t = m->training;
    twi_text path = twi_text_new(&tw->region), *names = NULL;
    tw_weight *list = (tw_weight *)twi_alloc(&tw->region, m->parameters + 1, sizeof *list);
    tw_json *metadata = tw_json_object(tw);
    twi_save_source source;
    size_t i, count = 0;
    bool ok = list && metadata;
    memset(&source, 0, sizeof source);
    source.model = m;
    names = ok ? (twi_text *)twi_alloc(&tw->region, m->parameters + 1, sizeof *names) : NULL;
    ok = names != NULL;
    for (i = 0; ok && i < m->parameters; i++) {
        if (!t->state[i]) continue;
        names[count] = twi_text_new(&tw->region);
        twi_text_add(&names[count], "state.");
        twi_text_add(&names[count], m->parameter[i]->name);
        if (names[count].failed) ok = false;
        list[count].name = twi_text_string(&names[count]);
        list[count].dtype = TW_F32;
        list[count].rank = 1;
        list[count].shape[0] = (int64_t)twi_optimizer_state(&t->optimizer, m->parameter[i]);
        count++;
    }
    ok = ok && tw_json_set_string(metadata, "optimizer", twi_optimizer_table[t->optimizer.kind].name) && twi_set_metadata(metadata, "step", (uint64_t)t->step) &&
         twi_set_metadata(metadata, "schedule_step", (uint64_t)t->schedule_step) && twi_set_metadata(metadata, "seed", tw->seed) && twi_set_metadata(metadata, "draws", tw->draws);
    twi_join_path(&path, folder, "optimizer.safetensors");
    ok = ok && !path.failed && tw_save_weights_from(tw, twi_text_string(&path), list, count, metadata, twi_save_state, &source);
    for (i = 0; names && i < count; i++) twi_text_free(&names[i]);
    twi_free(&tw->region, names);
    twi_text_free(&path);
    tw_json_free(metadata);
    twi_free(&tw->region, list);
    return ok;
}

static bool twi_load_optimizer_from(tw_model *m, const tw_weights *file) {
    tw_context *tw = m->region.tw;
    twi_training *t = m->training;
    uint64_t step, schedule_step, seed, draws;
    const char *kind = tw_weights_metadata(file, "optimizer");
    char name[400];
    size_t i;
    if (!kind || strcmp(kind, twi_optimizer_table[t->optimizer.kind].name) != 0) {
        twi_fail(tw, TW_E_FORMAT, "optimizer state: it is of \"%.40s\", the model has %s", kind ? kind : "nothing known", twi_optimizer_table[t->optimizer.kind].name);
        return false;
    }
    if (!twi_get_metadata(tw, file, "step", &step) || !twi_get_metadata(tw, file, "schedule_step", &schedule_step) ||
        !twi_get_metadata(tw, file, "seed", &seed) || !twi_get_metadata(tw, file, "draws", &draws)) return false;
    if (step > (uint64_t)1 << 53 || schedule_step > (uint64_t)1 << 53) { twi_fail(tw, TW_E_RANGE, "optimizer state: step %llu is out of range", (unsigned long long)step); return false; }
    for (i = 0; i < m->parameters; i++) {
        const tw_weight *w;
        size_t count = twi_optimizer_state(&t->optimizer, m->parameter[i]);
        snprintf(name, sizeof name, "state.%s", m->parameter[i]->name);
        w = tw_weights_find(file, name);
        if (!w) continue;                                       /* it never had a gradient */
        if (w->dtype != TW_F32 || w->bytes != count * sizeof(float)) { twi_fail(tw, TW_E_SHAPE, "optimizer state: %s has another size than the parameter", name); return false; }
        if (!t->state[i]) t->state[i] = (float *)twi_alloc(&m->region, count, sizeof(float));
        if (!t->state[i]) return false;
        memcpy(t->state[i], w->data, w->bytes);
    }
    t->step = (int64_t)step;
    t->schedule_step = (int64_t)schedule_step;
    tw->seed = seed;
    tw->draws = draws;
    return true;
}

TWDEF bool tw_save_checkpoint(tw_model *model, const char *folder, bool with_optimizer) {
    if (!tw_save_pretrained(model, folder)) return false;
    return !with_optimizer || !model->training || !model->training->has_optimizer || twi_save_optimizer(model, folder);
}

/* Weights of a checkpoint into the model that is there; and the optimizer's part where it is asked for. */
static bool twi_load_checkpoint(tw_model *m, const char *folder, bool optimizer_too) {
    tw_context *tw;
    tw_weights *file;
    twi_text path;
    size_t i;
    bool ok = true;
    if (!m || tw_failed(m->region.tw) || !folder) return false;
    tw = m->region.tw;
    file = tw_open_weights(tw, folder);
    if (!file) return false;
    for (i = 0; ok && i < m->parameters; i++) {
        tw_tensor *t = m->parameter[i];
        const tw_weight *w = twi_find_weight(m, file, t);
        if (!w) { twi_fail(tw, TW_E_MISSING, "%s: the weights do not have it (%s)", t->name, folder); ok = false; }
        else if (w->rank != t->rank || memcmp(w->shape, t->shape, (size_t)t->rank * sizeof *t->shape) != 0 || !twi_is_float(w->dtype)) {
            twi_fail(tw, TW_E_SHAPE, "%s: the file has shape %s, the model %s (%s)", t->name, twi_print_shape(w->rank, w->shape).s, TWI_SHAPE(t), w->file);
            ok = false;
        }
    }
    ok = ok && tw_to(m, TW_F32);
    for (i = 0; ok && i < m->parameters; i++) {
        const tw_weight *w = twi_find_weight(m, file, m->parameter[i]);
        ok = twi_convert_values(w->data, w->dtype, tw_count(m->parameter[i]), (float *)m->parameter[i]->data);
    }
    tw_close_weights(file);
    if (!ok || !optimizer_too || !m->training || !m->training->has_optimizer) return ok;
    path = twi_text_new(&tw->region);
    twi_join_path(&path, folder, "optimizer.safetensors");
    file = path.failed || !twi_file_exists(tw, twi_text_string(&path)) ? NULL : tw_open_weights(tw, twi_text_string(&path));
    ok = !tw_failed(tw) && (!file || twi_load_optimizer_from(m, file));
    tw_close_weights(file);
    twi_text_free(&path);
    return ok;
}
TWDEF bool tw_resume_from_checkpoint(tw_model *model, const char *folder) { return twi_load_checkpoint(model, folder, true); }

static bool twi_named_folder(tw_model *model, const char *name, const char *output_dir, bool (*act)(tw_model *, const char *, bool)) {
    twi_text path;
    bool ok;
    if (!model || tw_failed(model->region.tw)) return false;
    path = twi_text_new(&model->region.tw->region);
    twi_join_path(&path, output_dir && output_dir[0] ? output_dir : "output", name ? name : "");
    ok = !path.failed && act(model, twi_text_string(&path), true);
    twi_text_free(&path);
    return ok;
}
TWDEF bool tw_save(tw_model *model, const char *name, const char *output_dir) { return twi_named_folder(model, name, output_dir, tw_save_checkpoint); }
TWDEF bool tw_load(tw_model *model, const char *name, const char *output_dir) { return twi_named_folder(model, name, output_dir, twi_load_checkpoint); }

/* -- planning ----------------------------------------------------------------------------------------------------------
   A second context of the same making runs the model with its arithmetic switched off and reads the counters. */
TWDEF tw_plan tw_plan_config(tw_context *tw, const tw_json *config, const tw_plan_desc *how) {
    tw_plan plan;
    tw_plan_desc d;
    tw_context *dry;
    tw_json *copy;
    tw_model *m;
    tw_batch batch;
    tw_tensor *ids;
    twi_decoder shape;
    memset(&plan, 0, sizeof plan);
    memset(&d, 0, sizeof d);
    memset(&shape, 0, sizeof shape);
    shape.start = -1;
    if (!tw || tw_failed(tw)) return plan;
    if (how) d = *how;
    if (d.batch <= 0) d.batch = 1;
    if (d.sequence <= 0) d.sequence = 1;
    dry = tw_create(&tw->desc);
    if (!dry) { twi_fail(tw, TW_E_MEMORY, "plan: there is no memory for it"); return plan; }
    dry->desc.log = NULL;
    dry->cpu = tw->cpu;
    dry->planning = true;
    copy = twi_copy_object(dry, config);
    m = copy ? twi_build_model(dry, copy, NULL, true) : NULL;
    memset(&batch, 0, sizeof batch);
    ids = m ? tw_ids(dry, tw_shape2(d.batch, d.sequence), NULL) : NULL;
    if (ids && tw_batch_set(&batch, "input_ids", ids)) {
        plan.parameters = tw_num_parameters(m, false);
        tw_batch_set(&batch, "decoder_input_ids", ids);            /* read by an encoder-decoder only */
        if (d.training) {
            tw_batch_set(&batch, "labels", twi_head_of(m) == TWI_HEAD_SEQUENCE ? tw_ids(dry, tw_shape1(d.batch), NULL) : ids);
            tw_batch_set(&batch, "start_positions", tw_ids(dry, tw_shape1(d.batch), NULL));
            tw_batch_set(&batch, "end_positions", tw_ids(dry, tw_shape1(d.batch), NULL));
            tw_gradient_checkpointing(m, d.gradient_checkpointing);
            tw_set_optimizer(m, "adamw", NULL);
            tw_forward_backward(m, &batch, NULL);
            tw_clip_grad_and_step(m, 1, 2, NULL);
        } else {
            tw_no_grad(dry, true);
            tw_model_forward(m, &batch, NULL, NULL);
            if (d.new_tokens > 0 && m->type->decoder && m->type->decoder(m, &shape)) {
                int64_t rows = d.batch * shape.heads;
                plan.cache_bytes = shape.start >= 0 ? twi_cache_bytes(shape.layers, 1, rows, shape.head_dim, d.sequence) +
                                                      twi_cache_bytes(shape.layers, 1, rows, shape.head_dim, d.new_tokens)
                                                    : twi_cache_bytes(shape.layers, 1, rows, shape.head_dim, d.sequence + d.new_tokens);
            }
        }
    }
    plan.weights_bytes = dry->planned_weights;
    plan.gradients_bytes = dry->planned_gradients;
    plan.optimizer_bytes = dry->planned_optimizer;
    plan.activations_bytes = dry->arena.peak;
    plan.scratch_bytes = dry->scratch_bytes;
    plan.total_bytes = plan.weights_bytes + plan.gradients_bytes + plan.optimizer_bytes + plan.activations_bytes + plan.scratch_bytes + plan.cache_bytes;
    if (tw_failed(dry)) { twi_fail(tw, dry->code, "%s", dry->error); memset(&plan, 0, sizeof plan); }
    tw_destroy(dry);
    return plan;
}

TWDEF tw_plan tw_plan_model(tw_context *tw, const char *config_path, const tw_plan_desc *how) {
    tw_plan plan;
    tw_json *config;
    memset(&plan, 0, sizeof plan);
    if (!tw || tw_failed(tw) || !config_path) return plan;
    config = tw_json_load(tw, config_path);
    if (config) plan = tw_plan_config(tw, config, how);
    tw_json_free(config);
    return plan;
}


/* ==== [tw:14] generation: implementation ===================================================== */

/* -- settings: defaults put in, everything checked ------------------------------------------------------- */

enum { TWI_MAX_BEAMS = 4096, TWI_MAX_EOS = 1024 };

static bool twi_check_number(tw_context *tw, const char *name, double value, double low, double high) {
    if (value >= low && value <= high) return true;         /* false for NaN too */
    twi_fail(tw, TW_E_RANGE, "generate: %s is %g, not in %g ... %g", name, value, low, high);
    return false;
}

/* Zero means its default where zero is no use; afterwards every field of *out says what it means. */
static bool twi_settle(tw_context *tw, const tw_generate_desc *how, tw_generate_desc *out) {
    const double most = 9007199254740992.0;                 /* 2^53: any whole number that a double holds */
    memset(out, 0, sizeof *out);
    if (how) *out = *how;
    if (out->max_new_tokens == 0) out->max_new_tokens = 20;
    if (twb_float_bits(out->temperature) << 1 == 0) out->temperature = 1;
    if (out->top_k == 0) out->top_k = 50;
    if (twb_float_bits(out->top_p) << 1 == 0) out->top_p = 1;
    if (twb_float_bits(out->typical_p) << 1 == 0) out->typical_p = 1;
    if (twb_float_bits(out->repetition_penalty) << 1 == 0) out->repetition_penalty = 1;
    if (out->num_beams == 0) out->num_beams = 1;
    if (!out->has_length_penalty) { out->length_penalty = 1; out->has_length_penalty = true; }
    return twi_check_number(tw, "max_new_tokens", (double)out->max_new_tokens, 1, most) &&
           twi_check_number(tw, "min_new_tokens", (double)out->min_new_tokens, 0, most) &&
           twi_check_number(tw, "temperature", (double)out->temperature, 1e-30, 1e30) &&
           twi_check_number(tw, "top_k", (double)out->top_k, -1, most) &&
           twi_check_number(tw, "top_p", (double)out->top_p, 1e-30, 1) &&
           twi_check_number(tw, "min_p", (double)out->min_p, 0, 1) &&
           twi_check_number(tw, "typical_p", (double)out->typical_p, 1e-30, 1) &&
           twi_check_number(tw, "repetition_penalty", (double)out->repetition_penalty, 1e-30, 1e30) &&
           twi_check_number(tw, "no_repeat_ngram_size", (double)out->no_repeat_ngram_size, 0, most) &&
           twi_check_number(tw, "num_beams", (double)out->num_beams, 1, TWI_MAX_BEAMS) &&
           twi_check_number(tw, "length_penalty", (double)out->length_penalty, -1e3, 1e3) &&
           twi_check_number(tw, "early_stopping", (double)out->early_stopping, 0, 2) &&
           twi_check_number(tw, "eos_count", (double)out->eos_count, -1, TWI_MAX_EOS);
}

/* -- the best k, and a prefix by mass -----------------------------------------------------------------------
   No vocabulary is ever sorted.  The k largest are kept in a heap whose root is the worst of them, so that
   nearly every token costs one comparison; what goes by cumulative probability is found like the median in
   quickselect (Hoare 1961), in time linear in the number of tokens. */

typedef struct twi_ranked { float key, mass; int64_t index; } twi_ranked;

static bool twi_ranks_below(const twi_ranked *a, const twi_ranked *b) {
    return a->key < b->key || (a->key <= b->key && a->index > b->index);
}

/* Moves item `at` down until nothing below it ranks lower. */
static void twi_sift_down(twi_ranked *heap, int64_t count, int64_t at) {
    twi_ranked moving = heap[at];
    int64_t child;
    while ((child = 2 * at + 1) < count) {
        if (child + 1 < count && twi_ranks_below(&heap[child + 1], &heap[child])) child++;
        if (!twi_ranks_below(&heap[child], &moving)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* Offers one more item to the best `room`, of which there are *count.  Of equals the lower index is better. */
static void twi_offer(twi_ranked *heap, int64_t *count, int64_t room, float key, int64_t index) {
    twi_ranked item;
    int64_t at, parent;
    item.key = key; item.mass = 0; item.index = index;
    if (*count == room) {
        if (!twi_ranks_below(&heap[0], &item)) return;
        heap[0] = item;
        twi_sift_down(heap, room, 0);
        return;
    }
    for (at = (*count)++; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!twi_ranks_below(&item, &heap[parent])) break;
        heap[at] = heap[parent];
    }
    heap[at] = item;
}

/* The heap becomes a list, the best first. */
static void twi_sort_best(twi_ranked *heap, int64_t count) {
    while (count > 1) {
        twi_ranked worst = heap[0];
        heap[0] = heap[--count];
        heap[count] = worst;
        twi_sift_down(heap, count, 0);
    }
}

/* Rearranges the items so that the first ones, as many as are returned, are the longest prefix in rising order of
   (key, index) whose mass is below the limit (or equal to it, where `inclusive`), and the next item is the next in that
   order.  Masses are added in double and compared as floats.  Pivots are picked at random, so that no input is slow. */
static int64_t twi_mass_prefix(twi_ranked *item, int64_t count, float limit, bool inclusive) {
    int64_t low = 0, high = count, i, at;
    double before = 0;
    while (low < high) {
        double mass = before;
        twi_ranked pivot, swap;
        at = low + (int64_t)(twb_random_bits((uint64_t)low, (uint64_t)high) % (uint64_t)(high - low));
        pivot = item[at];
        item[at] = item[high - 1];
        for (i = at = low; i < high - 1; i++) {             /* every item moves: no branch to mispredict */
            int below = (item[i].key < pivot.key) | ((item[i].key <= pivot.key) & (item[i].index < pivot.index));
            swap = item[i]; item[i] = item[at]; item[at] = swap;
            mass += (double)swap.mass * below;
            at += below;
        }
        item[high - 1] = item[at];
        item[at] = pivot;
        mass += (double)pivot.mass;
        if (inclusive ? (float)mass <= limit : (float)mass < limit) { low = at + 1; before = mass; }
        else high = at;
    }
    return low;
}

/* -- what is done to a row of scores ------------------------------------------------------------------------
   A banned token has the score TWI_BANNED: far below anything a model computes, and finite, so that no
   arithmetic on it makes a NaN. */

#define TWI_BANNED (-3.0e38f)

/* Room for the work on one row, and the tokens that are left in it: ids in rising order with their scores. */
typedef struct twi_sampler {
    tw_context *tw;
    int64_t     vocab, count;
    int32_t    *id;
    float      *score, *probability;
    twi_ranked *ranked;
    uint8_t    *seen;                  /* all zero between calls */
} twi_sampler;

/* The first largest score; -1 where one is NaN or +infinity (told by its bits: -ffast-math knows neither). */
static int64_t twi_first_largest(const float *row, int64_t count) {
    float best = row[0];
    int64_t i, at = 0;
    uint32_t wrong = 0;
    for (i = 0; i < count; i++) {
        uint32_t bits = twb_float_bits(row[i]);
        wrong |= (uint32_t)((bits & 0x7FFFFFFFu) >= 0x7F800000u) & (uint32_t)(bits != 0xFF800000u);
        if (row[i] > best) { best = row[i]; at = i; }
    }
    return wrong ? -1 : at;
}

/* Repetition penalty (Keskar et al. 2019): a score below zero times the penalty, any other divided by it, once for
   each token. */
static void twi_penalize_repetition(twi_sampler *s, float *row, const int32_t *tokens, int64_t count, float penalty) {
    int64_t i;
    for (i = 0; i < count; i++) {
        int32_t t = tokens[i];
        if (t < 0 || t >= s->vocab || s->seen[t]) continue;
        s->seen[t] = 1;
        row[t] = row[t] < 0 ? row[t] * penalty : row[t] / penalty;
    }
    for (i = 0; i < count; i++) if (tokens[i] >= 0 && tokens[i] < s->vocab) s->seen[tokens[i]] = 0;
}

/* Bans what would complete an n-gram that is there already: wherever the last n-1 tokens stood before, the token
   after them. */
static void twi_ban_ngrams(const twi_sampler *s, float *row, const int32_t *tokens, int64_t count, int64_t n) {
    int64_t i;
    for (i = 0; count >= n && i <= count - n; i++) {
        int32_t next = tokens[i + n - 1];
        bool again = memcmp(tokens + i, tokens + count + 1 - n, (size_t)(n - 1) * sizeof *tokens) == 0;
        if (again && next >= 0 && next < s->vocab) row[next] = TWI_BANNED;
    }
}

/* What does not depend on chance: the penalties, and no end token (of those in `held`) yet. */
static void twi_penalize(twi_sampler *s, float *row, const int32_t *tokens, int64_t count, const tw_generate_desc *how,
                         const int32_t *held, int held_count) {
    float penalty = how->repetition_penalty;
    int i;
    if (penalty < 1 || penalty > 1) twi_penalize_repetition(s, row, tokens, count, penalty);
    if (how->no_repeat_ngram_size > 0) twi_ban_ngrams(s, row, tokens, count, how->no_repeat_ngram_size);
    for (i = 0; i < held_count; i++) if (held[i] >= 0 && held[i] < s->vocab) row[held[i]] = TWI_BANNED;
}

/* Token i of those that are left stays, behind the *kept that stay already. */
static void twi_keep_token(twi_sampler *s, int64_t *kept, int64_t i) {
    s->id[*kept] = s->id[i];
    s->score[*kept] = s->score[i];
    s->probability[*kept] = s->probability[i];
    ++*kept;
}

static void twi_softmax_left(twi_sampler *s) {
    ptrdiff_t n = (ptrdiff_t)s->count;
    twb_softmax(&s->tw->cpu, 1, n, s->score, n, s->probability, n);
}

/* The temperature, and the k best (ties with the last of them stay). */
static void twi_warp_top_k(twi_sampler *s, const float *row, float temperature, int64_t k) {
    float least = TWI_BANNED, scaled = TWI_BANNED;
    int64_t i, held = 0, kept = 0;
    if (k > 0 && k < s->vocab) {
        for (i = 0; i < s->vocab; i++)
            if (held < k || row[i] > s->ranked[0].key) twi_offer(s->ranked, &held, k, row[i], i);
        least = s->ranked[0].key;
        if (least > TWI_BANNED) {
            scaled = least / temperature;
            least -= fabsf(least) * 1e-6f;                  /* divided, a score this little below may come out equal */
        }
    }
    for (i = 0; i < s->vocab; i++) {
        float score;
        if (row[i] < least || row[i] <= TWI_BANNED) continue;
        score = row[i] / temperature;
        if (score < scaled) continue;
        s->id[kept] = (int32_t)i;
        s->score[kept++] = score;
    }
    s->count = kept;
}

/* Nucleus sampling: the most probable tokens that together reach p; what is taken away has at most 1 - p. */
static void twi_warp_top_p(twi_sampler *s, float p, int64_t least) {
    int64_t i, kept = 0, out;
    twi_ranked edge;
    twi_softmax_left(s);
    for (i = 0; i < s->count; i++) {
        s->ranked[i].key = s->score[i];
        s->ranked[i].mass = s->probability[i];
        s->ranked[i].index = i;
    }
    out = twi_mass_prefix(s->ranked, s->count, (float)(1.0 - (double)p), true);
    if (out > s->count - least) {                           /* by number then: take away all but the `least` best */
        for (i = 0; i < s->count; i++) s->ranked[i].mass = 1;
        out = twi_mass_prefix(s->ranked, s->count, (float)(s->count > least ? s->count - least : 0), true);
        if (out >= s->count) out = s->count - 1;            /* counts beyond 2^24 are not exact as floats */
    }
    edge = s->ranked[out];
    for (i = 0; i < s->count; i++)
        if (s->score[i] > edge.key || (s->score[i] >= edge.key && i >= edge.index)) twi_keep_token(s, &kept, i);
    s->count = kept;
}

/* Away with what is less probable than min_p times the most probable token. */
static void twi_warp_min_p(twi_sampler *s, float min_p, int64_t least) {
    int64_t i, kept = 0, held = 0;
    float bar;
    twi_softmax_left(s);
    if (least > s->count) least = s->count;
    for (i = 0; i < s->count; i++) twi_offer(s->ranked, &held, least, s->probability[i], i);
    twi_sort_best(s->ranked, least);
    bar = min_p * s->ranked[0].key;
    for (i = 0; i < s->count; i++) {
        const twi_ranked *last = &s->ranked[least - 1];
        float p = s->probability[i];
        if (p >= bar || p > last->key || (p >= last->key && i <= last->index)) twi_keep_token(s, &kept, i);
    }
    s->count = kept;
}

/* Locally typical sampling: the tokens whose -log p is nearest to the entropy of all, until they have that mass. */
static void twi_warp_typical(twi_sampler *s, float mass, int64_t least) {
    float *log_p = s->probability, furthest;
    int64_t i, kept = 0, in;
    double sum = 0;
    twb_log_softmax(&s->tw->cpu, 1, (ptrdiff_t)s->count, s->score, (ptrdiff_t)s->count, log_p, (ptrdiff_t)s->count);
    for (i = 0; i < s->count; i++) {
        s->ranked[i].mass = twb_exp1(log_p[i]);
        s->ranked[i].index = i;
        sum -= (double)s->ranked[i].mass * (double)log_p[i];
    }
    for (i = 0; i < s->count; i++) s->ranked[i].key = fabsf(-log_p[i] - (float)sum);
    in = twi_mass_prefix(s->ranked, s->count, mass, false);
    if (in + 1 < least) {                                   /* by number then */
        for (i = 0; i < s->count; i++) s->ranked[i].mass = 1;
        in = twi_mass_prefix(s->ranked, s->count, (float)least, false);
    }
    if (in >= s->count) return;
    furthest = s->ranked[in].key;
    for (i = 0; i < s->count; i++) if (fabsf(-log_p[i] - (float)sum) <= furthest) twi_keep_token(s, &kept, i);
    s->count = kept;
}

/* A row of scores becomes the tokens that may be drawn, with their probabilities; at least `least` of them.  None
   are left where every token is banned. */
static void twi_warp(twi_sampler *s, const float *row, const tw_generate_desc *how, int64_t least) {
    int64_t k = how->top_k > 0 && how->top_k < least ? least : how->top_k;
    twi_warp_top_k(s, row, how->temperature, k);
    if (s->count == 0) return;
    if (how->top_p < 1) twi_warp_top_p(s, how->top_p, least);
    if (how->min_p > 0) twi_warp_min_p(s, how->min_p, least);
    if (how->typical_p < 1) twi_warp_typical(s, how->typical_p, least);
    twi_softmax_left(s);
}

/* -- chance -------------------------------------------------------------------------------------------------
   Draw number i of a stream is a function of the two alone, so a savegame needs to keep no more than these,
   and neither threads nor kernel sets change what is drawn. */

typedef struct twi_dice { uint64_t stream, draws; } twi_dice;

/* [0, 1) in steps of 2^-53 */
static double twi_draw_uniform(twi_dice *dice) {
    uint64_t high = twb_random_bits(dice->stream, 2 * dice->draws);
    uint64_t low = twb_random_bits(dice->stream, 2 * dice->draws + 1);
    dice->draws++;
    return (double)((high << 21) ^ (low >> 11)) * (1.0 / 9007199254740992.0);
}

/* One of `count` items by its probability (they need not sum to 1); -1 where all are zero. */
static int64_t twi_draw(twi_dice *dice, const float *probability, int64_t count) {
    double total = 0, at;
    int64_t i, last = -1;
    for (i = 0; i < count; i++) total += (double)probability[i];
    at = twi_draw_uniform(dice) * total;
    for (i = 0, total = 0; i < count; i++) {
        if (!(probability[i] > 0)) continue;
        total += (double)probability[i];
        last = i;
        if (total > at) break;
    }
    return last;
}

/* -- a generation -------------------------------------------------------------------------------------------
   Everything but the cache, the text and the tokenizer's decoder lies in one block of the model's region, laid
   out before the first token, so a step asks for no memory and nothing has to be taken apart at the end. */

static bool twi_decoder_of(tw_model *model, twi_decoder *d) {
    memset(d, 0, sizeof *d);
    d->eos = d->start = -1;
    if (model->type && model->type->decoder && model->type->decoder(model, d)) return !tw_failed(model->region.tw);
    twi_fail(model->region.tw, TW_E_UNSUPPORTED, "generate: a %s writes no text: it has no language model's head",
             model->name);
    return false;
}

/* A beam's finished text: its tokens are row `slot` of finished_tokens (-1: nothing is finished here yet). */
typedef struct twi_hypothesis { float score; bool finished; int32_t slot; int64_t length; } twi_hypothesis;
/* A way on: one more token behind a running beam. */
typedef struct twi_choice { float score; bool ends; int32_t parent, token; } twi_choice;

struct tw_generation {
    tw_model         *model;
    tw_generate_desc  how;                     /* settled; its end tokens are a copy */
    twi_decoder shape;
    int64_t           given_count;             /* tokens of the prompt as it was given: a decoder's text begins without it */
    int32_t          *given;
    int64_t           prompt, length, limit;   /* tokens: what a text begins with, of a running text with it, and at most */
    int64_t           beams;
    tw_cache         *cache;                   /* its batch is 1 until the prompt is read, then `beams` */
    int32_t          *tokens, *other_tokens;   /* [beams, limit]: the running texts; room to reorder them */
    int32_t          *parents, *taken;         /* [beams]: where a running beam comes from; which slots are in use */
    twi_sampler       sampler;
    twi_dice          dice;
    int64_t           wanted;                  /* beams: candidates looked at in a step */
    float            *running;                 /* [beams]: summed log-probabilities, the best first */
    twi_ranked       *best;                    /* [wanted] */
    twi_choice       *candidate;               /* [wanted] */
    twi_hypothesis   *finished, *merged;       /* [beams], the best first; room to merge */
    int32_t          *finished_tokens;         /* [beams, limit - prompt] */
    int64_t          *pool_index;              /* [beams vocab], sampling with beams: beam * vocab + token */
    float            *pool_score, *pool_probability;
    bool              improvable;              /* a running beam may still beat the worst finished one */
    bool              done, stopped, failed;   /* stopped: by on_text */
    int64_t           piece;                   /* prompt tokens that are read at a time, within a budget */
    tw_decoder       *decoder;                 /* NULL: the model has no tokenizer */
    twi_text          text;
};

enum { TWI_PIECE_LEAST = 4, TWI_PIECE_FIRST = 16, TWI_PIECE_MOST = 64, TWI_TEXT_PER_TOKEN = 16 };

/* Lays arrays out in one block: first with at = NULL, to know its size. */
typedef struct twi_layout { char *at; size_t bytes; bool too_large; } twi_layout;

static void *twi_set_aside(twi_layout *layout, int64_t rows, int64_t columns, size_t size) {
    char *here = layout->at ? layout->at + layout->bytes : NULL;
    size_t count, bytes;
    bool fits = twi_multiply((size_t)rows, (size_t)columns, &count) && twi_multiply(count, size, &bytes) &&
                bytes <= (size_t)-1 / 2 && twi_sum(layout->bytes, twi_round_up(bytes), &layout->bytes);
    if (!fits) layout->too_large = true;
    return here;
}

static void twi_place_sampler(twi_layout *layout, twi_sampler *s, tw_context *tw, int64_t vocab) {
    s->tw = tw;
    s->vocab = vocab;
    s->id = (int32_t *)twi_set_aside(layout, 1, vocab, sizeof *s->id);
    s->score = (float *)twi_set_aside(layout, 1, vocab, sizeof *s->score);
    s->probability = (float *)twi_set_aside(layout, 1, vocab, sizeof *s->probability);
    s->ranked = (twi_ranked *)twi_set_aside(layout, 1, vocab, sizeof *s->ranked);
    s->seen = (uint8_t *)twi_set_aside(layout, 1, vocab, 1);
    if (s->seen) memset(s->seen, 0, (size_t)vocab);
}

/* The generation g (its sizes are set) and its arrays; g itself comes first. */
static void twi_place_generation(twi_layout *layout, tw_generation *g) {
    int32_t *eos;
    int64_t beams = g->beams > 1 ? g->beams : 0;            /* what only beams need */
    int64_t pool = beams && g->how.do_sample ? g->shape.vocab : 0;
    (void)twi_set_aside(layout, 1, 1, sizeof *g);
    eos = (int32_t *)twi_set_aside(layout, 1, g->how.eos_count, sizeof *eos);
    if (eos && g->how.eos_count) memcpy(eos, g->how.eos_token_ids, (size_t)g->how.eos_count * sizeof *eos);
    g->how.eos_token_ids = layout->at ? eos : g->how.eos_token_ids;
    g->given = (int32_t *)twi_set_aside(layout, 1, g->given_count, sizeof(int32_t));
    g->tokens = (int32_t *)twi_set_aside(layout, g->beams, g->limit, sizeof(int32_t));
    g->other_tokens = (int32_t *)twi_set_aside(layout, beams, g->limit, sizeof(int32_t));
    g->parents = (int32_t *)twi_set_aside(layout, 1, beams, sizeof(int32_t));
    g->taken = (int32_t *)twi_set_aside(layout, 1, beams, sizeof(int32_t));
    twi_place_sampler(layout, &g->sampler, g->model->region.tw, g->shape.vocab);
    g->running = (float *)twi_set_aside(layout, 1, beams, sizeof(float));
    g->best = (twi_ranked *)twi_set_aside(layout, 1, g->wanted, sizeof(twi_ranked));
    g->candidate = (twi_choice *)twi_set_aside(layout, 1, g->wanted, sizeof(twi_choice));
    g->finished = (twi_hypothesis *)twi_set_aside(layout, 1, beams, sizeof(twi_hypothesis));
    g->merged = (twi_hypothesis *)twi_set_aside(layout, 1, beams, sizeof(twi_hypothesis));
    g->finished_tokens = (int32_t *)twi_set_aside(layout, beams, g->limit - g->prompt, sizeof(int32_t));
    g->pool_index = (int64_t *)twi_set_aside(layout, beams, pool, sizeof(int64_t));
    g->pool_score = (float *)twi_set_aside(layout, beams, pool, sizeof(float));
    g->pool_probability = (float *)twi_set_aside(layout, beams, pool, sizeof(float));
}

TWDEF void tw_generation_end(tw_generation *g) {
    if (!g) return;
    tw_cache_free(g->cache);
    tw_free_decoder(g->decoder);
    twi_text_free(&g->text);
    twi_free(&g->model->region, g);
}

/* The end tokens that the model's files name: a number, a list, or none (null); its class's usual one where they say
   nothing.  Returns how many, at most `room`. */
static int twi_model_eos(const tw_model *model, int64_t usual, int32_t *ids, int room) {
    const tw_json *value = tw_json_get(model->generation_config, "eos_token_id");
    bool list;
    int64_t i, count;
    int n = 0;
    if (tw_json_type(value) == TW_JSON_NONE) value = tw_json_get(model->config, "eos_token_id");
    if (tw_json_type(value) == TW_JSON_NONE) { ids[0] = (int32_t)usual; return usual >= 0; }
    list = tw_json_type(value) == TW_JSON_ARRAY;
    count = list ? tw_json_count(value) : 1;
    for (i = 0; i < count && n < room; i++) {
        int64_t id = tw_json_int(list ? tw_json_at(value, i) : value, -1);
        if (id >= 0 && id <= INT32_MAX) ids[n++] = (int32_t)id;
    }
    return n;
}

/* A new generation with room for everything; its texts are not filled in yet.  `how` is settled; given: the tokens of
   the prompt as it was given, prompt: those that the texts begin with. */
static tw_generation *twi_new_generation(tw_model *model, const tw_generate_desc *how, const twi_decoder *shape,
                                         int64_t given, int64_t prompt) {
    tw_context *tw = model->region.tw;
    int32_t model_eos[16];
    tw_generation plan, *g;
    twi_layout layout;
    int64_t b;
    memset(&plan, 0, sizeof plan);
    plan.model = model;
    plan.how = *how;
    plan.shape = *shape;
    plan.given_count = given;
    plan.prompt = plan.length = prompt;
    plan.beams = how->num_beams;
    if (how->eos_count < 0) plan.how.eos_count = 0;
    else if (!how->eos_token_ids) {
        plan.how.eos_token_ids = model_eos;
        plan.how.eos_count = twi_model_eos(model, shape->eos, model_eos, 16);
    }
    plan.limit = shape->positions + 1;                      /* the last token is not read any more: no position */
    if (how->max_new_tokens < plan.limit - prompt) plan.limit = prompt + how->max_new_tokens;
    if (plan.beams > 1) {
        plan.wanted = (plan.how.eos_count > 1 ? 1 + plan.how.eos_count : 2) * plan.beams;
        if (plan.wanted > plan.beams * shape->vocab) plan.wanted = plan.beams * shape->vocab;
    }
    memset(&layout, 0, sizeof layout);
    twi_place_generation(&layout, &plan);
    if (layout.too_large) {
        twi_fail(tw, TW_E_MEMORY, "generate: %lld beams of %lld tokens are more than can be counted",
                 (long long)plan.beams, (long long)plan.limit);
        return NULL;
    }
    layout.at = (char *)twi_alloc_raw(&model->region, layout.bytes, 1);
    if (!layout.at) return NULL;
    layout.bytes = 0;
    twi_place_generation(&layout, &plan);
    g = (tw_generation *)(void *)layout.at;
    *g = plan;
    for (b = 0; b < g->beams && g->beams > 1; b++) {
        g->running[b] = b ? -1e9f : 0.0f;                   /* they begin alike: only the first one counts at first */
        memset(&g->finished[b], 0, sizeof g->finished[b]);
        g->finished[b].score = -1e9f;
        g->finished[b].slot = -1;
    }
    g->improvable = true;
    g->piece = TWI_PIECE_FIRST;
    g->text = twi_text_new(&model->region);
    g->cache = tw_cache_create(tw, shape->layers, g->beams, shape->heads, shape->head_dim, g->limit - 1);
    if (g->cache) g->cache->batch = 1;
    if (shape->start >= 0 && !tw_cache_add_encoder(g->cache, 1, given)) { tw_generation_end(g); return NULL; }
    if (g->cache && model->tokenizer) {
        size_t room = (size_t)(g->limit - prompt) * TWI_TEXT_PER_TOKEN;
        g->decoder = tw_new_decoder(model->tokenizer, true);
        g->text.data = g->decoder ? (char *)twi_grow(&model->region, NULL, 0, &g->text.capacity, room, 1) : NULL;
    }
    if (g->cache && (!model->tokenizer || g->text.data)) return g;
    tw_generation_end(g);
    return NULL;
}

/* -- choosing the next token ----------------------------------------------------------------------------- */

static bool twi_is_eos(const tw_generation *g, int32_t token) {
    int i;
    for (i = 0; i < g->how.eos_count; i++) if (g->how.eos_token_ids[i] == token) return true;
    return false;
}

static bool twi_usable(const tw_generation *g, const float *row, int64_t *largest) {
    *largest = twi_first_largest(row, g->shape.vocab);
    if (*largest >= 0) return true;
    twi_fail(g->model->region.tw, TW_E_RANGE, "generate: the model's logits are NaN or infinite after %lld tokens",
             (long long)g->length);
    return false;
}
static bool twi_none_left(const tw_generation *g) {
    twi_fail(g->model->region.tw, TW_E_RANGE, "generate: after %lld tokens every other one is ruled out "
             "(no_repeat_ngram_size, min_new_tokens)", (long long)g->length);
    return false;
}

static void twi_penalize_beam(tw_generation *g, float *row, int64_t beam) {
    int held = g->length - g->prompt < g->how.min_new_tokens ? g->how.eos_count : 0;
    twi_penalize(&g->sampler, row, g->tokens + beam * g->limit, g->length, &g->how, g->how.eos_token_ids, held);
}

/* Greedy, or sampling: one text, one row of logits [vocab]. */
static bool twi_choose_token(tw_generation *g, float *row) {
    int64_t token;
    twi_penalize_beam(g, row, 0);
    if (!twi_usable(g, row, &token)) return false;
    if (g->how.do_sample) {
        twi_warp(&g->sampler, row, &g->how, 1);
        token = twi_draw(&g->dice, g->sampler.probability, g->sampler.count);
        if (token < 0) return twi_none_left(g);
        token = g->sampler.id[token];
    }
    g->tokens[g->length++] = (int32_t)token;
    g->done = twi_is_eos(g, (int32_t)token) || g->length >= g->limit;
    return true;
}

/* -- beams, as transformers 5 has them ----------------------------------------------------------------------
   Of all beams' next tokens the best (1 + number of end tokens) * beams are candidates, so that enough of them go
   on even where the best all end.  One that ends within the best `beams` is finished; the others fill up the
   running beams.  -1e9 marks what must not be chosen; sums are floats, as there. */

/* The candidates in `best`, or drawn, without one twice, by their probability. */
static void twi_draw_candidates(tw_generation *g, int64_t pool) {
    ptrdiff_t all = (ptrdiff_t)pool;
    int64_t n, i;
    twb_softmax(&g->model->region.tw->cpu, 1, all, g->pool_score, all, g->pool_probability, all);
    for (n = 0; n < g->wanted && n < pool; n++) {
        i = twi_draw(&g->dice, g->pool_probability, pool);
        if (i < 0) for (i = 0; g->pool_index[i] < 0; i++) continue;     /* only what cannot be drawn is left */
        g->best[n].key = g->pool_score[i];
        g->best[n].index = g->pool_index[i];
        g->pool_probability[i] = 0;
        g->pool_index[i] = -1;
    }
    for (; n < g->wanted; n++) { g->best[n] = g->best[0]; g->best[n].key = TWI_BANNED; }
}

/* logits [rows, vocab]: rows is 1 after the prompt, which all beams share. */
static bool twi_find_candidates(tw_generation *g, float *logits, int64_t rows) {
    int64_t vocab = g->shape.vocab, b, v, held = 0, pool = 0;
    ptrdiff_t width = (ptrdiff_t)vocab;
    for (b = 0; b < g->beams; b++) {
        float *row = logits + (rows > 1 ? b * vocab : 0);
        if (b == 0 || rows > 1) {
            if (!twi_usable(g, row, &v)) return false;
            twb_log_softmax(&g->model->region.tw->cpu, 1, width, row, width, row, width);
            twi_penalize_beam(g, row, b);
            if (g->how.do_sample) twi_warp(&g->sampler, row, &g->how, g->how.eos_count > 1 ? 1 + g->how.eos_count : 2);
        }
        if (g->how.do_sample) for (v = 0; v < g->sampler.count; v++) {
            g->pool_index[pool] = b * vocab + g->sampler.id[v];
            g->pool_score[pool++] = g->sampler.score[v] + g->running[b];
        }
        else for (v = 0; v < vocab; v++) {
            float score = row[v] + g->running[b];
            if (held < g->wanted || score > g->best[0].key) twi_offer(g->best, &held, g->wanted, score, b * vocab + v);
        }
    }
    if (!g->how.do_sample) twi_sort_best(g->best, held);
    else if (pool > 0) twi_draw_candidates(g, pool);
    else return twi_none_left(g);
    for (v = 0; v < g->wanted; v++) {
        twi_choice *c = &g->candidate[v];
        c->score = g->best[v].key;
        c->parent = (int32_t)(g->best[v].index / vocab);
        c->token = (int32_t)(g->best[v].index % vocab);
        c->ends = twi_is_eos(g, c->token) || g->length + 1 >= g->limit;
    }
    return true;
}

static float twi_length_divisor(const tw_generation *g, int64_t length) {
    return (float)pow((double)length, (double)g->how.length_penalty);
}

static bool twi_all_finished(const tw_generation *g) {
    int64_t b;
    for (b = 0; b < g->beams; b++) if (!g->finished[b].finished) return false;
    return true;
}

/* Puts the candidates that end among the finished texts, where they are good enough. */
static void twi_merge_finished(tw_generation *g) {
    int64_t room = g->limit - g->prompt, count = g->length + 1 - g->prompt, held = 0, b, free_slot = 0;
    float divisor = twi_length_divisor(g, count), closed = 0;
    twi_hypothesis *swap;
    if (g->how.early_stopping == 1 && twi_all_finished(g)) closed -= 1e9f;
    if (!g->improvable) closed -= 1e9f;
    for (b = 0; b < g->beams; b++) twi_offer(g->best, &held, g->beams, g->finished[b].score, b);
    for (b = 0; b < g->wanted; b++) {
        float score = g->candidate[b].score / divisor + closed;
        if (!g->candidate[b].ends || b >= g->beams) score -= 1e9f;
        twi_offer(g->best, &held, g->beams, score, g->beams + b);
    }
    twi_sort_best(g->best, held);
    memset(g->taken, 0, (size_t)g->beams * sizeof *g->taken);
    for (b = 0; b < g->beams; b++) {
        if (g->best[b].index >= g->beams) continue;
        g->merged[b] = g->finished[g->best[b].index];
        if (g->merged[b].slot >= 0) g->taken[g->merged[b].slot] = 1;
    }
    for (b = 0; b < g->beams; b++) {
        int64_t from = g->best[b].index - g->beams;
        twi_hypothesis *h = &g->merged[b];
        int32_t *to;
        if (from < 0) continue;
        memset(h, 0, sizeof *h);
        h->score = g->best[b].key;
        h->finished = g->candidate[from].ends && from < g->beams;
        h->slot = -1;
        if (!h->finished) continue;
        while (g->taken[free_slot]) free_slot++;
        h->slot = (int32_t)free_slot++;
        h->length = count;
        to = g->finished_tokens + h->slot * room;
        memcpy(to, g->tokens + g->candidate[from].parent * g->limit + g->prompt, (size_t)(count - 1) * sizeof *to);
        to[count - 1] = g->candidate[from].token;
    }
    swap = g->finished; g->finished = g->merged; g->merged = swap;
}

/* The best candidates that do not end are the running beams of the next step. */
static bool twi_continue_beams(tw_generation *g, int64_t rows) {
    int64_t held = 0, b;
    int32_t *swap;
    for (b = 0; b < g->wanted; b++)
        twi_offer(g->best, &held, g->beams, g->candidate[b].score + (g->candidate[b].ends ? -1e9f : 0.0f), b);
    twi_sort_best(g->best, held);
    for (b = 0; b < g->beams; b++) {
        const twi_choice *c = &g->candidate[g->best[b].index];
        int32_t *to = g->other_tokens + b * g->limit;
        memcpy(to, g->tokens + c->parent * g->limit, (size_t)g->length * sizeof *to);
        to[g->length] = c->token;
        g->running[b] = g->best[b].key;
        g->parents[b] = rows > 1 ? c->parent : 0;           /* behind the prompt, the one row is every beam's */
    }
    swap = g->tokens; g->tokens = g->other_tokens; g->other_tokens = swap;
    g->length++;
    g->cache->batch = g->beams;
    return tw_cache_reorder(g->cache, g->parents);
}

/* Can a running beam still become better than the worst finished one? */
static bool twi_beams_improve(const tw_generation *g) {
    bool longest = g->how.early_stopping == 2 && g->how.length_penalty > 0;
    float best = g->running[0] / twi_length_divisor(g, (longest ? g->limit : g->length) - g->prompt);
    float worst = g->finished[0].score;
    int64_t b;
    for (b = 1; b < g->beams; b++) if (g->finished[b].score < worst) worst = g->finished[b].score;
    for (b = 0; b < g->beams; b++) if (best > (g->finished[b].finished ? worst : -1e9f)) return true;
    return false;
}

static bool twi_choose_beams(tw_generation *g, float *logits, int64_t rows) {
    bool all_end = true;
    int64_t i;
    if (!twi_find_candidates(g, logits, rows)) return false;
    for (i = 0; i < g->wanted; i++) if (!g->candidate[i].ends) all_end = false;
    twi_merge_finished(g);
    if (!twi_continue_beams(g, rows)) return false;
    g->improvable = g->improvable && twi_beams_improve(g);
    g->done = all_end || !g->improvable || (g->how.early_stopping == 1 && twi_all_finished(g));
    return true;
}

/* -- one step -------------------------------------------------------------------------------------------- */

/* What the model reads next: the next `count` tokens of every running text, and what its type adds to them. */
static bool twi_generation_inputs(tw_generation *g, int64_t rows, int64_t count, tw_batch *in) {
    tw_model *m = g->model;
    twi_reading r;
    r.cache = g->cache;
    r.given = g->given; r.given_count = g->given_count;
    r.tokens = g->tokens; r.stride = g->limit;
    r.prompt = g->prompt;
    r.rows = rows; r.first = g->cache->length; r.count = count;
    memset(in, 0, sizeof *in);
    if (m->type->prepare) return m->type->prepare(m, &r, in);
    return tw_batch_set(in, "input_ids", twi_reading_ids(m, &r));
}

/* Reads at most `most` of the tokens that are not in the cache yet, and when none is left chooses the next one. */
static bool twi_read_tokens(tw_generation *g, int64_t most) {
    int64_t pending = g->length - g->cache->length, count = pending < most ? pending : most, rows = g->cache->batch;
    tw_batch in;
    tw_outputs out;
    tw_pass pass;
    tw_tensor *logits;
    memset(&pass, 0, sizeof pass);
    pass.cache = g->cache;
    pass.last_token_only = true;
    if (!twi_generation_inputs(g, rows, count, &in) || !tw_model_forward(g->model, &in, &pass, &out)) return false;
    if (count < pending) return true;
    logits = tw_batch_get(&out, "logits");
    if (!tw_data(logits) || tw_count(logits) != rows * g->shape.vocab) {
        twi_fail(g->model->region.tw, TW_E_SHAPE, "generate: the model gave no logits");
        return false;
    }
    return g->beams > 1 ? twi_choose_beams(g, tw_data(logits), rows) : twi_choose_token(g, tw_data(logits));
}

/* The same in evaluation mode without gradients; the step's other tensors stay as they are. */
static bool twi_advance(tw_generation *g, int64_t most) {
    tw_context *tw = g->model->region.tw;
    bool training = tw->training, no_grad = tw->no_grad, ok;
    twi_mark mark;
    tw->training = false;
    tw->no_grad = true;
    twi_take_mark(tw, &mark);
    ok = twi_read_tokens(g, most);
    twi_rewind(tw, &mark);
    tw->training = training;
    tw->no_grad = no_grad;
    return ok;
}

/* -- the text -------------------------------------------------------------------------------------------- */

/* A new part of the text.  aloud: on_text hears of it. */
static bool twi_add_text(tw_generation *g, const char *part, bool aloud) {
    if (!part) return false;
    if (!part[0]) return true;
    twi_text_add(&g->text, part);
    if (g->text.failed) return false;
    if (aloud && g->how.on_text && !g->how.on_text(part, g->how.user)) g->done = g->stopped = true;
    return true;
}

/* What `count` more ids, and the end if this is the end, add to the text. */
static bool twi_decode(tw_generation *g, const int32_t *ids, int64_t count, bool aloud) {
    int64_t i;
    if (!g->decoder) return true;
    for (i = 0; i < count && !g->stopped; i++)
        if (!twi_add_text(g, tw_decoder_feed(g->decoder, ids[i]), aloud)) return false;
    return !g->done || g->stopped || twi_add_text(g, tw_decoder_end(g->decoder), aloud);
}

/* A single text grows with every token; with beams it is there when one of them has won, and is told in one piece. */
static bool twi_decode_new(tw_generation *g) {
    const int32_t *ids;
    int64_t count;
    if (g->beams == 1) return twi_decode(g, g->tokens + g->length - 1, 1, true);
    if (!g->done) return true;
    count = tw_generation_ids(g, &ids);
    if (!twi_decode(g, ids, count, false)) return false;
    if (g->decoder && g->text.length && g->how.on_text && !g->how.on_text(g->text.data, g->how.user)) g->stopped = true;
    return true;
}

/* -- the calls ------------------------------------------------------------------------------------------- */

TWDEF tw_generation *tw_generation_begin_ids(tw_model *model, const int32_t *prompt, int64_t count,
                                             const tw_generate_desc *how) {
    tw_context *tw;
    tw_generate_desc settled;
    twi_decoder shape;
    tw_generation *g;
    int32_t bos, first;
    int64_t i, b, begins;
    if (!model || tw_failed(model->region.tw)) return NULL;
    tw = model->region.tw;
    if (!twi_settle(tw, how, &settled) || !twi_decoder_of(model, &shape)) return NULL;
    if (count < 0 || (count && !prompt) || (settled.eos_count > 0 && !settled.eos_token_ids)) {
        twi_fail(tw, TW_E_ARGUMENT, "generate: a list of ids is missing");
        return NULL;
    }
    if (settled.adapter_name) {
        twi_fail(tw, TW_E_MISSING, "generate: the model has no adapter \"%.60s\"", settled.adapter_name);
        return NULL;
    }
    if (count == 0) {
        int64_t id = tw_json_int(tw_json_get(model->config, "bos_token_id"), 50256);
        if (id < 0 || id >= shape.vocab) {
            twi_fail(tw, TW_E_RANGE, "generate: the prompt is empty, and the model has no bos token to begin with");
            return NULL;
        }
        bos = (int32_t)id;
        prompt = &bos;
        count = 1;
    }
    if (count > shape.positions) {
        twi_fail(tw, TW_E_RANGE, "generate: a prompt of %lld tokens does not fit the model's %lld positions",
                 (long long)count, (long long)shape.positions);
        return NULL;
    }
    for (i = 0; i < count; i++)
        if (prompt[i] < 0 || prompt[i] >= shape.vocab) {
            twi_fail(tw, TW_E_RANGE, "generate: token %ld at place %lld of the prompt is not in the vocabulary of %lld",
                     (long)prompt[i], (long long)i, (long long)shape.vocab);
            return NULL;
        }
    first = (int32_t)shape.start;
    begins = shape.start >= 0 ? 1 : count;                  /* a decoder begins with its start token, any other model with the prompt */
    g = twi_new_generation(model, &settled, &shape, count, begins);
    if (!g) return NULL;
    memcpy(g->given, prompt, (size_t)count * sizeof *prompt);
    for (b = 0; b < g->beams; b++) memcpy(g->tokens + b * g->limit, shape.start >= 0 ? &first : prompt, (size_t)begins * sizeof *prompt);
    if (settled.do_sample) g->dice.stream = settled.seed ? twi_mix(settled.seed) : twi_next_stream(tw);
    return g;
}

TWDEF tw_generation *tw_generation_begin(tw_model *model, const char *prompt, const tw_generate_desc *how) {
    tw_encoding encoding;
    if (!model || tw_failed(model->region.tw)) return NULL;
    if (!prompt) { twi_fail(model->region.tw, TW_E_ARGUMENT, "generate: there is no prompt"); return NULL; }
    if (!model->tokenizer) {
        twi_fail(model->region.tw, TW_E_MISSING, "generate: the model has no tokenizer to read a text with");
        return NULL;
    }
    if (tw_tokenize(model->tokenizer, prompt, strlen(prompt), NULL, &encoding) < 0) return NULL;
    return tw_generation_begin_ids(model, encoding.ids, encoding.count, how);
}

TWDEF tw_status tw_generation_step(tw_generation *g, int64_t microseconds) {
    tw_context *tw;
    int64_t start, before, now;
    bool timed = microseconds > 0;
    if (!g || g->failed) return TW_FAILED;
    if (g->done) return TW_DONE;
    tw = g->model->region.tw;
    if (tw_failed(tw)) return TW_FAILED;
    start = before = timed ? twi_now(tw) : 0;
    for (;;) {
        int64_t length = g->length;
        bool sliced = timed && g->length - g->cache->length > g->piece && !(g->shape.whole_prompt && g->cache->length < g->prompt);
        if (!twi_advance(g, sliced ? g->piece : g->limit) || (g->length > length && !twi_decode_new(g))) {
            if (!tw_failed(tw)) twi_fail(tw, TW_E_MEMORY, "generate: the text could not be put together");
            g->failed = true;
            return TW_FAILED;
        }
        if (g->done) return TW_DONE;
        if (microseconds == 0) return TW_MORE;
        if (!timed) continue;
        now = twi_now(tw);
        if (sliced && (now - before) * 2 > microseconds && g->piece > TWI_PIECE_LEAST) g->piece /= 2;
        else if (sliced && (now - before) * 4 < microseconds && g->piece < TWI_PIECE_MOST) g->piece *= 2;
        if (2 * now - start - before > microseconds) return TW_MORE;    /* one more like the last would end late */
        before = now;
    }
}

TWDEF const char *tw_generation_text(const tw_generation *g) { return g ? twi_text_string(&g->text) : ""; }

TWDEF int64_t tw_generation_ids(const tw_generation *g, const int32_t **ids) {
    if (ids) *ids = NULL;
    if (!g) return 0;
    if (g->beams > 1 && g->done && g->finished[0].finished) {
        if (ids) *ids = g->finished_tokens + g->finished[0].slot * (g->limit - g->prompt);
        return g->finished[0].length;
    }
    if (ids) *ids = g->tokens + g->prompt;
    return g->length - g->prompt;
}

TWDEF int64_t tw_generate_ids(tw_model *model, const int32_t *prompt, int64_t count, const tw_generate_desc *how,
                              int32_t *out, int64_t room, float *score) {
    tw_generation *g = tw_generation_begin_ids(model, prompt, count, how);
    const int32_t *ids;
    int64_t n = -1;
    if (!g) return -1;
    if (!out || room < g->limit - g->prompt) {
        twi_fail(model->region.tw, TW_E_ARGUMENT, "generate: there is room for %lld ids, and %lld may come",
                 (long long)(out ? room : 0), (long long)(g->limit - g->prompt));
    } else if (tw_generation_step(g, -1) == TW_DONE) {
        n = tw_generation_ids(g, &ids);
        memcpy(out, ids, (size_t)n * sizeof *out);
        if (score) *score = g->beams == 1 ? 0 : g->finished[0].finished ? g->finished[0].score : g->running[0];
    }
    tw_generation_end(g);
    return n;
}

TWDEF const char *tw_generate_text(tw_model *model, const char *prompt, const tw_generate_desc *how) {
    tw_generation *g = tw_generation_begin(model, prompt, how);
    char *text = NULL;
    if (!g) return NULL;
    if (tw_generation_step(g, -1) == TW_DONE) text = twi_copy_text(&model->region, g->text.data, g->text.length);
    tw_generation_end(g);
    if (!text) return NULL;
    twi_free(&model->region, model->written);
    model->written = text;
    return text;
}

/* -- the savegame -------------------------------------------------------------------------------------------
   Numbers one after the other, little-endian, floats by their bits; at the end a hash over everything before it, so
   that no cut or flipped bit gets through.  The same list of fields is written and read. */

static const char twi_saved_magic[8] = { 't', 'w', 'i', 'n', 'k', 'l', 'e', 'G' };
enum { TWI_SAVED_VERSION = 2 };

static uint64_t twi_hash_bytes(uint64_t hash, const unsigned char *bytes, size_t count) {
    size_t i, j;
    for (i = 0; i < count; i += 8) {
        uint64_t word = 0;
        for (j = 0; j < 8 && i + j < count; j++) word |= (uint64_t)bytes[i + j] << 8 * j;
        hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 32;
    }
    return hash;
}

/* One end of the savegame: bytes go out through a buffer, or come in from memory. */
typedef struct twi_saved {
    bool           loading, ok;
    tw_writer      to;
    size_t         used, left;             /* bytes in the buffer; bytes not read yet */
    const unsigned char *from;
    uint64_t       hash;                   /* of what has gone out */
    unsigned char  buffer[4096];           /* a multiple of 8: the hash goes by words */
} twi_saved;

static void twi_saved_flush(twi_saved *s) {
    s->hash = twi_hash_bytes(s->hash, s->buffer, s->used);
    s->ok = s->ok && s->to.write(s->to.user, s->buffer, s->used);
    s->used = 0;
}
/* The next number of so many bytes: written as it is, or read and given back (0 where there is none). */
static uint64_t twi_saved_number(twi_saved *s, uint64_t value, size_t bytes) {
    size_t i;
    if (s->loading) {
        value = 0;
        if (!s->ok || s->left < bytes) { s->ok = false; return 0; }
        for (i = 0; i < bytes; i++) value |= (uint64_t)s->from[i] << 8 * i;
        s->from += bytes;
        s->left -= bytes;
        return value;
    }
    for (i = 0; i < bytes; i++) {
        if (s->used == sizeof s->buffer) twi_saved_flush(s);
        s->buffer[s->used++] = (unsigned char)(value >> 8 * i & 0xFF);
    }
    return value;
}
static void twi_saved_i64(twi_saved *s, int64_t *x) { *x = (int64_t)twi_saved_number(s, (uint64_t)*x, 8); }
static void twi_saved_u64(twi_saved *s, uint64_t *x) { *x = twi_saved_number(s, *x, 8); }
static void twi_saved_int(twi_saved *s, int *x) { *x = (int)(int32_t)(uint32_t)twi_saved_number(s, (uint32_t)*x, 4); }
static void twi_saved_bool(twi_saved *s, bool *x) { *x = twi_saved_number(s, *x ? 1u : 0u, 1) == 1; }
static void twi_saved_floats(twi_saved *s, float *x, int64_t count) {
    int64_t i;
    for (i = 0; i < count && s->ok; i++) x[i] = twb_bits_float((uint32_t)twi_saved_number(s, twb_float_bits(x[i]), 4));
}
/* Token ids; one that is not in the vocabulary is no good. */
static void twi_saved_ids(twi_saved *s, int32_t *x, int64_t count, int64_t vocab) {
    int64_t i;
    for (i = 0; i < count && s->ok; i++) {
        x[i] = (int32_t)(uint32_t)twi_saved_number(s, (uint32_t)x[i], 4);
        if (x[i] < 0 || x[i] >= vocab) s->ok = false;
    }
}

/* The fields that say how much room a generation takes: settings and sizes. */
typedef struct twi_saved_head {
    twi_decoder shape;
    tw_generate_desc  how;
    int64_t           given, prompt, length, cached, cached_rows;
} twi_saved_head;

static void twi_saved_fields(twi_saved *s, twi_saved_head *h) {
    twi_saved_i64(s, &h->shape.layers); twi_saved_i64(s, &h->shape.heads); twi_saved_i64(s, &h->shape.head_dim);
    twi_saved_i64(s, &h->shape.vocab); twi_saved_i64(s, &h->shape.positions); twi_saved_i64(s, &h->shape.start);
    twi_saved_i64(s, &h->how.max_new_tokens); twi_saved_i64(s, &h->how.min_new_tokens); twi_saved_i64(s, &h->how.top_k);
    twi_saved_i64(s, &h->how.no_repeat_ngram_size);
    twi_saved_bool(s, &h->how.do_sample); twi_saved_bool(s, &h->how.has_length_penalty);
    twi_saved_floats(s, &h->how.temperature, 1); twi_saved_floats(s, &h->how.top_p, 1);
    twi_saved_floats(s, &h->how.min_p, 1); twi_saved_floats(s, &h->how.typical_p, 1);
    twi_saved_floats(s, &h->how.repetition_penalty, 1); twi_saved_floats(s, &h->how.length_penalty, 1);
    twi_saved_int(s, &h->how.num_beams); twi_saved_int(s, &h->how.early_stopping); twi_saved_int(s, &h->how.eos_count);
    twi_saved_i64(s, &h->given); twi_saved_i64(s, &h->prompt); twi_saved_i64(s, &h->length);
    twi_saved_i64(s, &h->cached); twi_saved_i64(s, &h->cached_rows);
}

/* What is in a generation, its end tokens excepted, in room that is there. */
static void twi_saved_contents(twi_saved *s, tw_generation *g) {
    int64_t b, i, room = g->limit - g->prompt, head;
    tw_cache *c = g->cache;
    twi_saved_ids(s, g->given, g->given_count, g->shape.vocab);
    twi_saved_bool(s, &g->improvable); twi_saved_bool(s, &g->done); twi_saved_bool(s, &g->stopped);
    twi_saved_u64(s, &g->dice.stream); twi_saved_u64(s, &g->dice.draws);
    for (b = 0; b < g->beams; b++) twi_saved_ids(s, g->tokens + b * g->limit, g->length, g->shape.vocab);
    for (b = 0; g->beams > 1 && b < g->beams && s->ok; b++) {
        twi_hypothesis *h = &g->finished[b];
        twi_saved_floats(s, &g->running[b], 1);
        twi_saved_floats(s, &h->score, 1);
        twi_saved_bool(s, &h->finished);
        if (!h->finished) continue;
        twi_saved_i64(s, &h->length);
        if (s->loading) h->slot = (int32_t)b;
        if (h->length < 1 || h->length > room) s->ok = false;
        else twi_saved_ids(s, g->finished_tokens + h->slot * room, h->length, g->shape.vocab);
    }
    head = c->room * c->head_dim;
    for (i = 0; i < 2 * c->layers; i++) for (b = 0; b < c->batch * c->heads && s->ok; b++)
        twi_saved_floats(s, (i % 2 ? c->values : c->keys)[i / 2] + b * head, c->length * c->head_dim);
    for (i = 0; c->encoder_read && i < 2 * c->layers; i++)
        twi_saved_floats(s, (i % 2 ? c->encoder_values : c->encoder_keys)[i / 2], (int64_t)twi_cache_encoder_count(c));
}

/* Writing changes nothing in the generation: what is read back into it is what was there. */
TWDEF bool tw_generation_save(const tw_generation *g, tw_writer writer) {
    union { const tw_generation *from; tw_generation *to; } self;
    tw_context *tw;
    twi_saved s;
    twi_saved_head h;
    size_t i;
    int e;
    if (!g) return false;
    tw = g->model->region.tw;
    if (g->failed || !writer.write) {
        twi_fail(tw, TW_E_ARGUMENT, g->failed ? "save: the generation has failed" : "save: there is no writer");
        return false;
    }
    self.from = g;
    memset(&s, 0, sizeof s);
    memset(&h, 0, sizeof h);
    s.ok = true;
    s.to = writer;
    h.shape = g->shape;
    h.how = g->how;
    h.given = g->given_count; h.prompt = g->prompt; h.length = g->length;
    h.cached = g->cache->length; h.cached_rows = g->cache->batch;
    for (i = 0; i < sizeof twi_saved_magic; i++) twi_saved_number(&s, (unsigned char)twi_saved_magic[i], 1);
    twi_saved_number(&s, TWI_SAVED_VERSION, 4);
    twi_saved_fields(&s, &h);
    for (e = 0; e < g->how.eos_count; e++) twi_saved_number(&s, (uint32_t)g->how.eos_token_ids[e], 4);
    twi_saved_contents(&s, self.to);
    twi_saved_flush(&s);
    twi_saved_number(&s, s.hash, 8);
    twi_saved_flush(&s);
    if (!s.ok) twi_fail(tw, TW_E_FILE, "save: the generation could not be written");
    return s.ok;
}

/* Is this a whole savegame of ours?  The numbers after its hash has been compared are those that were written. */
static bool twi_saved_open(tw_context *tw, twi_saved *s, const void *data, size_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    uint64_t version;
    size_t i;
    memset(s, 0, sizeof *s);
    s->loading = s->ok = true;
    s->from = bytes;
    s->left = size;
    if (!data || size < sizeof twi_saved_magic + 12 || memcmp(bytes, twi_saved_magic, sizeof twi_saved_magic) != 0) {
        twi_fail(tw, TW_E_FORMAT, "restore: this is no saved generation (%lu bytes)", (unsigned long)size);
        return false;
    }
    s->from += sizeof twi_saved_magic;
    s->left -= sizeof twi_saved_magic + 8;
    version = twi_saved_number(s, 0, 4);
    if (version != TWI_SAVED_VERSION) {
        twi_fail(tw, TW_E_FORMAT, "restore: the generation was saved as version %lu, and this is version %d",
                 (unsigned long)version, (int)TWI_SAVED_VERSION);
        return false;
    }
    version = 0;
    for (i = 0; i < 8; i++) version |= (uint64_t)bytes[size - 8 + i] << 8 * i;
    if (version == twi_hash_bytes(0, bytes, size - 8)) return true;
    twi_fail(tw, TW_E_FORMAT, "restore: the saved generation is cut off or damaged (%lu bytes)", (unsigned long)size);
    return false;
}

static bool twi_same_decoder(const twi_decoder *a, const twi_decoder *b) {
    return a->layers == b->layers && a->heads == b->heads && a->head_dim == b->head_dim && a->vocab == b->vocab &&
           a->positions == b->positions && a->start == b->start;
}

/* Do the sizes fit each other and the bytes that are there?  Nothing has been taken room for yet. */
static bool twi_saved_fits(tw_context *tw, const twi_saved *s, const twi_saved_head *h, const twi_decoder *shape) {
    size_t floats = 0, rows = 0;
    bool whole, encodes = shape->start >= 0;
    if (!s->ok) { twi_fail(tw, TW_E_FORMAT, "restore: the saved generation is cut off"); return false; }
    if (!twi_same_decoder(&h->shape, shape)) {
        twi_fail(tw, TW_E_FORMAT, "restore: the generation was saved from another model "
                 "(%lld layers of %lld heads of %lld, %lld tokens, %lld positions)",
                 (long long)h->shape.layers, (long long)h->shape.heads, (long long)h->shape.head_dim,
                 (long long)h->shape.vocab, (long long)h->shape.positions);
        return false;
    }
    whole = h->prompt >= 1 && h->prompt <= shape->positions && h->length >= h->prompt &&
            h->given >= 1 && (uint64_t)h->given <= s->left / 4 && h->prompt == (encodes ? 1 : h->given) &&
            h->length <= shape->positions + 1 && h->length - h->prompt <= h->how.max_new_tokens &&
            h->how.eos_count >= 0 &&
            h->cached >= 0 && h->cached < h->length && (h->length == h->prompt || h->cached == h->length - 1) &&
            h->cached_rows == (h->length > h->prompt ? h->how.num_beams : 1) &&
            twi_multiply((size_t)h->cached, (size_t)h->cached_rows, &rows) &&
            twi_sum(rows, encodes && h->cached > 0 ? (size_t)h->given : 0, &rows) &&
            twi_multiply((size_t)(2 * shape->layers * shape->heads), (size_t)shape->head_dim, &floats) &&
            twi_multiply(floats, rows, &floats) && floats <= s->left / 4 &&
            (uint64_t)h->length * (uint64_t)h->how.num_beams <= s->left / 4;
    if (!whole) twi_fail(tw, TW_E_FORMAT, "restore: the saved generation contradicts itself");
    return whole;
}

TWDEF tw_generation *tw_generation_restore(tw_model *model, const void *data, size_t size,
                                           const tw_generate_desc *how) {
    tw_context *tw;
    tw_generate_desc settled;
    twi_decoder shape;
    twi_saved_head h;
    twi_saved s;
    tw_generation *g;
    const int32_t *ids;
    int32_t *eos;
    int64_t count;
    int e;
    if (!model || tw_failed(model->region.tw)) return NULL;
    tw = model->region.tw;
    memset(&h, 0, sizeof h);
    if (!twi_decoder_of(model, &shape) || !twi_saved_open(tw, &s, data, size)) return NULL;
    twi_saved_fields(&s, &h);
    if (s.ok && !twi_settle(tw, &h.how, &settled)) return NULL;
    if (!twi_saved_fits(tw, &s, &h, &shape)) return NULL;
    settled.on_text = how ? how->on_text : NULL;
    settled.user = how ? how->user : NULL;
    eos = (int32_t *)twi_alloc(&model->region, (size_t)settled.eos_count + 1, sizeof *eos);
    if (!eos) return NULL;
    for (e = 0; e < settled.eos_count; e++) eos[e] = (int32_t)(uint32_t)twi_saved_number(&s, 0, 4);
    settled.eos_token_ids = eos;
    g = twi_new_generation(model, &settled, &shape, h.given, h.prompt);
    twi_free(&model->region, eos);
    if (!g) return NULL;
    g->length = h.length;
    g->cache->length = h.cached;
    g->cache->batch = h.cached_rows;
    g->cache->encoder_read = shape.start >= 0 && h.cached > 0;     /* the first pass reads both */
    twi_saved_contents(&s, g);
    if (!s.ok || s.left != 0) twi_fail(tw, TW_E_FORMAT, "restore: the saved generation contradicts itself");
    else if (g->beams == 1 || g->done) {
        count = tw_generation_ids(g, &ids);
        if (twi_decode(g, ids, count, false)) return g;
    } else return g;
    tw_generation_end(g);
    return NULL;
}

TWDEF bool tw_warp_logits(tw_context *tw, float *logits, int64_t vocab, const int32_t *tokens, int64_t count,
                          const tw_generate_desc *how, float *probabilities) {
    tw_generate_desc settled;
    twi_sampler s;
    twi_layout layout;
    twi_mark mark;
    int64_t i;
    bool ok = false;
    if (!tw || tw_failed(tw) || !twi_settle(tw, how, &settled)) return false;
    if (!logits || !probabilities || vocab < 1 || vocab >= INT32_MAX || count < 0 || (count && !tokens)) {
        twi_fail(tw, TW_E_ARGUMENT, "warp: logits, tokens or room for the probabilities are missing");
        return false;
    }
    memset(&s, 0, sizeof s);
    memset(&layout, 0, sizeof layout);
    twi_place_sampler(&layout, &s, tw, vocab);
    twi_take_mark(tw, &mark);
    layout.at = (char *)twi_step_alloc(tw, layout.bytes, 1);
    if (layout.at && !tw->planning) {
        layout.bytes = 0;
        twi_place_sampler(&layout, &s, tw, vocab);
        if (twi_first_largest(logits, vocab) < 0) twi_fail(tw, TW_E_RANGE, "warp: the logits are NaN or infinite");
        else {
            twi_penalize(&s, logits, tokens, count, &settled, NULL, 0);
            twi_warp(&s, logits, &settled, 1);
            memset(probabilities, 0, (size_t)vocab * sizeof *probabilities);
            for (i = 0; i < s.count; i++) probabilities[s.id[i]] = s.probability[i];
            ok = s.count > 0;
            if (!ok) twi_fail(tw, TW_E_RANGE, "warp: every token is ruled out");
        }
    }
    twi_rewind(tw, &mark);
    return ok;
}
/* ==== [tw:15] data: implementation =========================================================== */

/* One named column of the table: a row of `length` numbers for each example. */
typedef struct twi_column { char name[32]; bool is_float; int64_t length; int rank; int64_t shape[TW_MAX_DIMS]; int32_t *ints; float *floats; } twi_column;
enum { TWI_COLUMNS = 16 };

struct tw_dataset {
    twi_region   region;
    tw_dataset     *previous, *next;              /* all of the context */
    tw_dataset_desc how;
    int64_t      rows, position, epoch;        /* position: batches given; epoch: which one `order` is for */
    uint32_t    *order;                        /* a permutation of the rows, when shuffling */
    twi_column   column[TWI_COLUMNS];
    int          columns;
    int64_t      begun, shown;                 /* progress: when it began, when it was last shown (microseconds) */
    int64_t      begun_at;                     /* the position when it began */
    int64_t      tokens_a_batch;
};

static tw_dataset *twi_new_data(tw_context *tw, const tw_dataset_desc *how) {
    tw_dataset *d;
    if (!tw || tw_failed(tw)) return NULL;
    d = (tw_dataset *)twi_alloc(&tw->region, 1, sizeof *d);
    if (!d) return NULL;
    d->region.tw = tw;
    if (how) d->how = *how;
    if (d->how.batch_size < 0 || d->how.block_size < 0 || d->how.max_steps < 0 || d->how.batch_size > INT32_MAX || d->how.block_size > INT32_MAX) {
        twi_fail(tw, TW_E_RANGE, "data: a size is out of range");
        tw_dataset_free(d);
        return NULL;
    }
    if (d->how.batch_size == 0) d->how.batch_size = 8;
    if (d->how.seed == 0) d->how.seed = tw->seed;
    d->epoch = -1;
    d->next = tw->data;
    if (tw->data) tw->data->previous = d;
    tw->data = d;
    return d;
}
TWDEF void tw_dataset_free(tw_dataset *data) {
    tw_context *tw;
    if (!data) return;
    tw = data->region.tw;
    if (data->previous) data->previous->next = data->next; else if (tw->data == data) tw->data = data->next;
    if (data->next) data->next->previous = data->previous;
    twi_region_clear(&data->region);
    twi_free(&tw->region, data);
}

/* A column of whole numbers or floats with room for `rows` rows; NULL after an error. */
static twi_column *twi_add_column(tw_dataset *d, const char *name, bool is_float, int rank, const int64_t *shape, int64_t rows) {
    twi_column *c;
    int i;
    if (d->columns == TWI_COLUMNS) { twi_fail(d->region.tw, TW_E_RANGE, "data: more than %d columns", (int)TWI_COLUMNS); return NULL; }
    c = &d->column[d->columns];
    snprintf(c->name, sizeof c->name, "%s", name);
    c->is_float = is_float;
    c->rank = rank;
    c->length = 1;
    for (i = 0; i < rank; i++) { c->shape[i] = shape[i]; c->length *= shape[i]; }
    if (c->length > 0 && rows > INT64_MAX / 8 / c->length) { twi_fail(d->region.tw, TW_E_RANGE, "data: column %s is too large", name); return NULL; }
    if (is_float) c->floats = (float *)twi_alloc_raw(&d->region, (size_t)(rows * c->length) + 1, sizeof(float));
    else c->ints = (int32_t *)twi_alloc_raw(&d->region, (size_t)(rows * c->length) + 1, sizeof(int32_t));
    if (!c->ints && !c->floats) return NULL;
    d->columns++;
    return c;
}

/* -- a stream of tokens, cut into blocks -------------------------------------------------------------- */

static bool twi_fill_blocks(tw_dataset *d, const int32_t *ids, int64_t count) {
    twi_column *c;
    int64_t block = d->how.block_size;
    if (count < block) block = count;                      /* a text shorter than one block is one short block */
    if (block < 2) { twi_fail(d->region.tw, TW_E_ARGUMENT, "data: %lld tokens are too few to learn from", (long long)count); return false; }
    d->rows = count / block;
    c = twi_add_column(d, "input_ids", false, 1, &block, d->rows);
    if (!c) return false;
    memcpy(c->ints, ids, (size_t)(d->rows * block) * sizeof *ids);
    return true;
}
TWDEF tw_dataset *tw_dataset_from_ids(tw_context *tw, const int32_t *ids, int64_t count, const tw_dataset_desc *how) {
    tw_dataset *d = twi_new_data(tw, how);
    if (!d) return NULL;
    if (d->how.block_size == 0) d->how.block_size = 1024;
    if (ids && count >= 0 && twi_fill_blocks(d, ids, count)) return d;
    tw_dataset_free(d);
    return NULL;
}

static bool twi_data_tokenizer(tw_model *m, tw_dataset *d) {
    int64_t positions = tw_max_positions(m);
    if (!m->tokenizer) { twi_fail(m->region.tw, TW_E_MISSING, "data: the model has no tokenizer to read text with"); return false; }
    if (d->how.block_size == 0) d->how.block_size = positions && positions < 1024 ? positions : 1024;
    if (positions && d->how.block_size > positions) {
        twi_fail(m->region.tw, TW_E_RANGE, "data: blocks of %lld tokens are longer than the model's %lld positions", (long long)d->how.block_size, (long long)positions);
        return false;
    }
    return true;
}
TWDEF tw_dataset *tw_dataset_from_text(tw_model *model, const char *text, size_t length, const tw_dataset_desc *how) {
    tw_tokenize_desc plain;
    tw_encoding e;
    tw_dataset *d;
    if (!model || !text) return NULL;
    d = twi_new_data(model->region.tw, how);
    if (!d) return NULL;
    memset(&plain, 0, sizeof plain);
    plain.no_special = true;
    if (twi_data_tokenizer(model, d) && tw_tokenize(model->tokenizer, text, length, &plain, &e) >= 0 && twi_fill_blocks(d, e.ids, e.count)) return d;
    tw_dataset_free(d);
    return NULL;
}

/* -- examples, one JSON object a line ------------------------------------------------------------------- */

typedef struct twi_ids { int32_t *data; size_t count, room; } twi_ids;
static bool twi_push_ids(twi_region *region, twi_ids *list, const int32_t *ids, size_t count) {
    int32_t *grown = (int32_t *)twi_grow(region, list->data, list->count, &list->room, list->count + count, sizeof *ids);
    if (!grown) return false;
    list->data = grown;
    if (count) memcpy(grown + list->count, ids, count * sizeof *ids);
    list->count += count;
    return true;
}

/* What the rows of a file of examples are gathered in. */
typedef struct twi_examples {
    tw_model *model;
    tw_dataset  *data;
    twi_ids   tokens, labels, begins;          /* all tokens; a label each for tagged words; where rows begin */
    twi_ids   classes;                         /* one label a row */
    int       kind;                            /* 'x' text, 'c' text and label, 'w' words and tags; 0: not known yet */
    int64_t   longest;
} twi_examples;

static bool twi_tokenize_into(twi_examples *x, const char *text, size_t length, bool special, size_t *count) {
    tw_tokenize_desc how;
    tw_encoding e;
    memset(&how, 0, sizeof how);
    how.no_special = !special;
    if (tw_tokenize(x->model->tokenizer, text, length, &how, &e) < 0) return false;
    *count = (size_t)e.count;
    return twi_push_ids(&x->data->region, &x->tokens, e.ids, *count);
}

static bool twi_bad_example(tw_context *tw, int64_t line, const char *why) {
    twi_fail(tw, TW_E_FORMAT, "example: %s (line %lld)", why, (long long)line);
    return false;
}

static bool twi_read_example(twi_examples *x, const tw_json *example, int64_t line) {
    tw_context *tw = x->data->region.tw;
    const tw_json *text = tw_json_get(example, "text"), *label = tw_json_get(example, "label"), *words = tw_json_get(example, "tokens"), *tags = tw_json_get(example, "ner_tags");
    int kind = words ? 'w' : label ? 'c' : 'x';
    int32_t begin = (int32_t)x->tokens.count, c;
    size_t count = 0;
    int64_t i;
    if (x->kind && x->kind != kind) return twi_bad_example(tw, line, "it has other fields than the lines before");
    x->kind = kind;
    if (x->tokens.count > INT32_MAX / 2) return twi_bad_example(tw, line, "the file has too many tokens");
    if (kind == 'w') {
        if (tw_json_type(words) != TW_JSON_ARRAY || tw_json_count(words) != tw_json_count(tags)) return twi_bad_example(tw, line, "tokens and ner_tags are not lists of one length");
        for (i = 0; i < tw_json_count(words); i++) {            /* the first piece of a word has its tag, the others none */
            const char *word = tw_json_string(tw_json_at(words, i), NULL);
            int64_t tag = tw_json_int(tw_json_at(tags, i), -1);
            int32_t ignored = TWI_IGNORED, wanted = (int32_t)tag;
            size_t k;
            twi_text spaced;
            if (!word || tag < 0 || tag > INT32_MAX) return twi_bad_example(tw, line, "a token is no text, or a tag no label");
            spaced = twi_text_new(&x->data->region);
            if (i) twi_text_char(&spaced, ' ');
            twi_text_add(&spaced, word);
            if (spaced.failed || !twi_tokenize_into(x, twi_text_string(&spaced), spaced.length, false, &count)) { twi_text_free(&spaced); return false; }
            twi_text_free(&spaced);
            for (k = 0; k < count; k++) if (!twi_push_ids(&x->data->region, &x->labels, k ? &ignored : &wanted, 1)) return false;
        }
    } else {
        if (tw_json_type(text) != TW_JSON_STRING) return twi_bad_example(tw, line, "it has no \"text\"");
        if (!twi_tokenize_into(x, tw_json_string(text, ""), tw_json_string_length(text), kind == 'c', &count)) return false;
        if (kind == 'c') {
            int64_t wanted = tw_json_int(label, INT64_MIN);
            if (wanted < 0 || wanted > INT32_MAX) return twi_bad_example(tw, line, "its label is no whole number from 0 on");
            c = (int32_t)wanted;
            if (!twi_push_ids(&x->data->region, &x->classes, &c, 1)) return false;
        } else {                                            /* texts follow one another, an end token between them */
            c = tw_special_id(x->model->tokenizer, "eos");
            if (c >= 0 && !twi_push_ids(&x->data->region, &x->tokens, &c, 1)) return false;
        }
    }
    if ((int64_t)x->tokens.count - begin > x->longest) x->longest = (int64_t)x->tokens.count - begin;
    return twi_push_ids(&x->data->region, &x->begins, &begin, 1);
}

/* Rows of different lengths as a table: padded on the right, with an attention mask; what is longer than a block is cut. */
static bool twi_fill_rows(twi_examples *x) {
    tw_dataset *d = x->data;
    int64_t rows = (int64_t)x->begins.count, length = x->longest < d->how.block_size ? x->longest : d->how.block_size, r, i;
    int32_t pad = (int32_t)tw_json_int(tw_json_get(x->model->config, "pad_token_id"), -1);
    twi_column *ids, *mask, *labels;
    if (pad < 0) pad = tw_special_id(x->model->tokenizer, "pad");
    if (pad < 0) pad = 0;
    if (rows < 1 || length < 1) { twi_fail(d->region.tw, TW_E_ARGUMENT, "data: there are no examples"); return false; }
    d->rows = rows;
    ids = twi_add_column(d, "input_ids", false, 1, &length, rows);
    mask = twi_add_column(d, "attention_mask", false, 1, &length, rows);
    labels = x->kind == 'c' ? twi_add_column(d, "labels", false, 0, NULL, rows) : twi_add_column(d, "labels", false, 1, &length, rows);
    if (!ids || !mask || !labels) return false;
    for (r = 0; r < rows; r++) {
        int64_t begin = x->begins.data[r], end = r + 1 < rows ? x->begins.data[r + 1] : (int64_t)x->tokens.count;
        for (i = 0; i < length; i++) {
            bool real = begin + i < end;
            ids->ints[r * length + i] = real ? x->tokens.data[begin + i] : pad;
            mask->ints[r * length + i] = real;
            if (x->kind == 'w') labels->ints[r * length + i] = real ? x->labels.data[begin + i] : TWI_IGNORED;
        }
        if (x->kind == 'c') labels->ints[r] = x->classes.data[r];
    }
    return true;
}

static bool twi_read_examples(tw_model *m, tw_dataset *d, const char *text, size_t size) {
    twi_examples x;
    size_t at = 0;
    int64_t line = 0;
    memset(&x, 0, sizeof x);
    x.model = m;
    x.data = d;
    while (at < size) {
        const char *end = (const char *)memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - (text + at)) : size - at, i;
        tw_json *example;
        bool ok;
        line++;
        for (i = 0; i < n && (text[at + i] == ' ' || text[at + i] == '\r' || text[at + i] == '\t'); i++) continue;
        if (i < n) {
            example = tw_json_parse(d->region.tw, text + at, n);
            ok = example && twi_read_example(&x, example, line);
            tw_json_free(example);
            if (!ok) return false;
        }
        at += n + 1;
    }
    return x.kind == 'x' ? twi_fill_blocks(d, x.tokens.data, (int64_t)x.tokens.count) : twi_fill_rows(&x);
}

/* -- a table of tensors: every one whose first axis counts the rows ----------------------------------------- */

/* The k-th of an array of whole numbers of any type, at any address. */
static int64_t twi_integer_at(const void *data, tw_dtype dtype, int64_t k) {
    const char *at = (const char *)data + (size_t)k * tw_dtype_size(dtype);
    switch (dtype) {
    case TW_I64: case TW_U64: { int64_t v; memcpy(&v, at, sizeof v); return v; }
    case TW_I32: { int32_t v; memcpy(&v, at, sizeof v); return v; }
    case TW_U32: { uint32_t v; memcpy(&v, at, sizeof v); return (int64_t)v; }
    case TW_I16: { int16_t v; memcpy(&v, at, sizeof v); return v; }
    case TW_U16: { uint16_t v; memcpy(&v, at, sizeof v); return (int64_t)v; }
    case TW_I8: { signed char v; memcpy(&v, at, sizeof v); return v; }
    case TW_U8: case TW_BOOL: { unsigned char v; memcpy(&v, at, sizeof v); return (int64_t)v; }
    default: return INT64_MAX;
    }
}

static bool twi_read_table(tw_dataset *d, tw_weights *file) {
    tw_context *tw = d->region.tw;
    const tw_weight *ids = tw_weights_find(file, "input_ids");
    int64_t k, n;
    size_t i;
    if (!ids || ids->rank < 1) { twi_fail(tw, TW_E_MISSING, "data: the file has no input_ids"); return false; }
    d->rows = ids->shape[0];
    if (d->rows < 1) { twi_fail(tw, TW_E_ARGUMENT, "data: there are no rows"); return false; }
    for (i = 0; i < tw_weights_count(file); i++) {
        const tw_weight *w = tw_weights_at(file, i);
        bool is_float = twi_is_float(w->dtype);
        twi_column *c;
        if (w->rank < 1 || w->shape[0] != d->rows) { twi_fail(tw, TW_E_SHAPE, "data: %s has %lld rows, input_ids %lld", w->name, (long long)(w->rank ? w->shape[0] : 0), (long long)d->rows); return false; }
        c = twi_add_column(d, w->name, is_float, w->rank - 1, w->shape + 1, d->rows);
        if (!c) return false;
        n = d->rows * c->length;
        if (is_float) { if (!twi_convert_values(w->data, w->dtype, n, c->floats)) return false; continue; }
        for (k = 0; k < n; k++) {
            int64_t v = twi_integer_at(w->data, w->dtype, k);
            if (v < INT32_MIN || v > INT32_MAX) { twi_fail(tw, TW_E_RANGE, "data: %s has %lld at place %lld", w->name, (long long)v, (long long)k); return false; }
            c->ints[k] = (int32_t)v;
        }
    }
    return true;
}

TWDEF tw_dataset *tw_dataset_from_file(tw_model *model, const char *path, const tw_dataset_desc *how) {
    tw_context *tw;
    tw_dataset *d;
    bool ok = false;
    if (!model || !path) return NULL;
    tw = model->region.tw;
    d = twi_new_data(tw, how);
    if (!d) return NULL;
    if (twi_ends_with(path, ".safetensors")) {
        tw_weights *file = tw_open_weights(tw, path);
        ok = file && twi_read_table(d, file);
        tw_close_weights(file);
    } else if (twi_data_tokenizer(model, d)) {
        twi_region file;
        twi_bytes bytes;
        memset(&file, 0, sizeof file);
        file.tw = tw;
        if (twi_read_file(&file, path, &bytes)) {
            if (twi_ends_with(path, ".jsonl")) ok = twi_read_examples(model, d, (const char *)bytes.data, bytes.size);
            else {
                tw_tokenize_desc plain;
                tw_encoding e;
                memset(&plain, 0, sizeof plain);
                plain.no_special = true;
                ok = tw_tokenize(model->tokenizer, (const char *)bytes.data, bytes.size, &plain, &e) >= 0 && twi_fill_blocks(d, e.ids, e.count);
            }
        }
        twi_region_clear(&file);
    }
    if (ok) return d;
    tw_dataset_free(d);
    return NULL;
}

/* -- batches ----------------------------------------------------------------------------------------------------- */

/* The row that stands at place `at` of the endless sequence of epochs. */
static int64_t twi_row_at(tw_dataset *d, int64_t at) {
    int64_t epoch = at / d->rows, place = at % d->rows, i;
    if (!d->how.shuffle) return place;
    if (d->epoch != epoch) {                                /* Fisher and Yates, anew for each epoch */
        uint64_t stream = twi_mix(d->how.seed + UINT64_C(0x9E3779B97F4A7C15) * (uint64_t)(epoch + 1));
        for (i = 0; i < d->rows; i++) d->order[i] = (uint32_t)i;
        for (i = d->rows - 1; i > 0; i--) {
            uint64_t j = ((uint64_t)twb_random_bits(stream, (uint64_t)i) * (uint64_t)(i + 1)) >> 32;
            uint32_t swap = d->order[i];
            d->order[i] = d->order[j];
            d->order[j] = swap;
        }
        d->epoch = epoch;
    }
    return d->order[place];
}

/* Training (max_steps > 0) goes round at the end, inside a batch too; one epoch ends with a shorter batch. */
TWDEF bool tw_next_batch(tw_dataset *data, tw_batch *batch) {
    tw_context *tw;
    int64_t first, count, r, shape[TW_MAX_DIMS + 1];
    int i;
    if (!data || !batch) return false;
    tw = data->region.tw;
    memset(batch, 0, sizeof *batch);
    if (tw_failed(tw)) return false;
    tw_end_step(tw);
    first = data->position * data->how.batch_size;
    count = data->how.batch_size;
    if (data->how.max_steps == 0) {
        if (first >= data->rows) return false;
        if (count > data->rows - first) count = data->rows - first;
    } else if (data->position >= data->how.max_steps) return false;
    if (data->how.shuffle && !data->order) {
        data->order = (uint32_t *)twi_alloc_raw(&data->region, (size_t)data->rows, sizeof *data->order);
        if (!data->order) return false;
    }
    for (i = 0; i < data->columns; i++) {
        twi_column *c = &data->column[i];
        tw_tensor *t;
        shape[0] = count;
        memcpy(shape + 1, c->shape, sizeof c->shape);
        t = twi_new(tw, c->is_float ? TW_F32 : TW_I32, c->rank + 1, shape);
        if (!t) return false;
        for (r = 0; r < count; r++) {
            int64_t row = twi_row_at(data, first + r);
            if (c->is_float) memcpy((float *)t->data + r * c->length, c->floats + row * c->length, (size_t)c->length * sizeof(float));
            else memcpy((int32_t *)t->data + r * c->length, c->ints + row * c->length, (size_t)c->length * sizeof(int32_t));
        }
        if (!tw_batch_set(batch, c->name, t)) return false;
    }
    if (data->columns == 1 && !tw_batch_set(batch, "labels", batch->tensor[0])) return false;      /* a text is its own label */
    data->tokens_a_batch = tw_count(tw_batch_get(batch, "input_ids"));
    data->position++;
    return true;
}
TWDEF int64_t tw_dataset_rows(const tw_dataset *data) { return data ? data->rows : 0; }
TWDEF int64_t tw_dataset_position(const tw_dataset *data) { return data ? data->position : 0; }
TWDEF bool tw_dataset_seek(tw_dataset *data, int64_t batches) {
    if (!data || batches < 0) return false;
    data->position = batches;
    return true;
}

#ifndef TWINKLE_NO_STDIO
/* step 120/2000 [=====>      ] loss 3.215  8.4k tokens/s  left 3:12 */
TWDEF void tw_progress(tw_dataset *data, const char *name, double value) {
    enum { WIDTH = 24 };
    int64_t now, total, done, left, i;
    double seconds, rate;
    char bar[WIDTH + 1];
    bool terminal, last;
    if (!data || data->how.quiet) return;
    now = twi_now(data->region.tw);
    total = data->how.max_steps ? data->how.max_steps : (data->rows + data->how.batch_size - 1) / data->how.batch_size;
    if (!data->begun) { data->begun = now; data->begun_at = data->position; return; }
    last = data->position >= total;
    terminal = twi_is_terminal();
    if (!last && now - data->shown < (terminal ? 100000 : 10000000)) return;
    data->shown = now;
    done = data->position - data->begun_at;
    seconds = (double)(now - data->begun) / 1e6;
    rate = seconds > 0 ? (double)done / seconds : 0;
    left = rate > 0 ? (int64_t)((double)(total - data->position) / rate) : 0;
    for (i = 0; i < WIDTH; i++) bar[i] = i < data->position * WIDTH / (total ? total : 1) ? '=' : ' ';
    bar[WIDTH] = 0;
    fprintf(stderr, "%sstep %lld/%lld [%s] %s %.4f  %.0f tokens/s  left %lld:%02lld%s", terminal ? "\r" : "", (long long)data->position, (long long)total, bar,
            name ? name : "", value, rate * (double)data->tokens_a_batch, (long long)(left / 60), (long long)(left % 60), terminal && !last ? "  " : "\n");
    fflush(stderr);
}
#else
TWDEF void tw_progress(tw_dataset *data, const char *name, double value) { (void)data; (void)name; (void)value; }
#endif

/* -- the end: what has a region of its own goes first ------------------------------------------------------- */
TWDEF void tw_destroy(tw_context *tw) {
    if (!tw) return;
    while (tw->models) tw_model_free(tw->models);
    while (tw->caches) tw_cache_free(tw->caches);
    while (tw->data) tw_dataset_free(tw->data);
    twi_clear_tokenizers(tw);
    twi_region_clear(&tw->region);
    twi_host_free(tw, tw, sizeof *tw);
}

#endif /* TWINKLE_IMPLEMENTED */
#endif /* TWINKLE_IMPLEMENTATION */

/* ------------------------------------------------------------------------------------------------
   LICENCE: twinkle.h and twinkle_blas.h are available under two licences; choose the one you prefer.

   A - PUBLIC DOMAIN.  The authors give these files to the public domain, in every country that knows
   one: anyone may copy, change, publish, use, compile, sell or distribute them, as source or as a
   binary, for any purpose, commercial or not, and by any means.  No conditions.  Where a country
   does not know a public domain, licence B applies.

   B - MIT No Attribution (MIT-0).  Permission is hereby granted, free of charge, to any person
   obtaining a copy of this software and associated documentation files (the "Software"), to deal in
   the Software without restriction, including without limitation the rights to use, copy, modify,
   merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons
   to whom the Software is furnished to do so.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
   NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
   DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
   OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
   ------------------------------------------------------------------------------------------------ */
