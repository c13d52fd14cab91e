/* twinkle_blas.h - the arithmetic of Twinkle, usable alone: a small BLAS for transformers on a CPU.

   Matrix products with fused epilogues, attention that never holds a T x T matrix, softmax, norms,
   activations, cross-entropy, convolution, optimizer updates and number conversions, in f32 with
   f16, bf16, 8-bit and 4-bit weights.  Kernels for plain C, AVX2+FMA, AVX-512 and NEON live in this one file and
   the right set is picked at run time: `cc -O2` is the fast build.

   DO THIS in one C or C++ file, and include the header without the #define everywhere else:

       #define TWINKLE_BLAS_IMPLEMENTATION
       #include "twinkle_blas.h"

   THEN, for example, C = A B with A [m,k], B [k,n], C [m,n], all row-major as in NumPy:

       twb_cpu cpu = twb_cpu_default();
       twb_gemm_args g = {0};
       g.m = m; g.n = n; g.k = k; g.alpha = 1;
       g.a = a; g.lda = k; g.b = b; g.ldb = n; g.c = c; g.ldc = n;
       void *scratch = malloc(twb_gemm_scratch(&cpu, &g));
       twb_gemm(&cpu, &g, scratch);

   WHAT TO KNOW
   - It allocates nothing.  A function that needs room takes `scratch`, and its twin `..._scratch`
     says how many bytes; any alignment will do.
   - It checks nothing: pointers and sizes are the caller's promise (twinkle.h checks them).
   - Sizes and strides are ptrdiff_t and count elements; a "leading dimension" (lda, ldx) is the
     distance from one row to the next.
   - SAME BITS EVERYWHERE.  In f32 every kernel adds in one fixed order with fused multiply-add, on
     every instruction set and for every number of threads; exp, tanh and erf are our own.  (One thing is
     excepted: products of bf16 numbers by the processor's own instruction, see `bf16_products`.)
   - Threads come from OpenMP where the file is compiled with it, from the host's own job system
     where `parallel_for` is set, else there is one.  Nothing here keeps state between calls.

   Legend for shapes: B batch, T time, C channels, H heads, D head dimension, V vocabulary.

   CHAPTERS (search for the mark)
       [twb:01] the processor and its threads
       [twb:02] one text, four kernel sets
       [twb:03] elementary functions
       [twb:04] matrix product
       [twb:05] quantized weights
       [twb:06] a language model's head and its cross-entropy in one
       [twb:07] rows
       [twb:08] attention
       [twb:09] convolution, pooling, batch norm
       [twb:10] optimizers
       [twb:11] conversions and random numbers

   Licence: public domain or MIT-0, at your choice; see the end of twinkle.h. */
#ifndef TWINKLE_BLAS_H
#define TWINKLE_BLAS_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

/* TWINKLE_STATIC makes every symbol private to the file that includes the header, so that two
   versions can live in one program. */
#ifndef TWBDEF
#  ifdef TWINKLE_STATIC
#    if defined(__GNUC__) || defined(__clang__)
#      define TWBDEF __attribute__((unused)) static
#    else
#      define TWBDEF static
#    endif
#  else
#    define TWBDEF extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- [twb:01] the processor and its threads ---------------------------------------------- */

/* The kernel sets, from the slowest to the fastest.  All give the same bits. */
typedef enum twb_isa { TWB_ISA_PLAIN = 0, TWB_ISA_NEON = 1, TWB_ISA_AVX2 = 2, TWB_ISA_AVX512 = 3, TWB_ISA_COUNT = 4 } twb_isa;

typedef struct twb_team twb_team;

/* How the kernels run: a plain value, copied freely, read by every function and changed by none. */
typedef struct twb_cpu {
    twb_isa isa;                /* the kernel set to use: one that twb_isa_available() grants */
    int     threads;            /* at most this many threads, >= 1 */
    /* The host's own job system, or NULL: run task(arg, 0) ... task(arg, count-1), in any order and
       on any threads, and come back when all are done. */
    void  (*parallel_for)(void *user, int count, void (*task)(void *arg, int index), void *arg);
    void   *parallel_user;
    twb_team *team;             /* threads that stand ready (twb_with_team), or NULL */
    bool    vnni;               /* AVX-512: the processor has AVX512_VNNI too; false is always right */
    bool    bf16;               /* AVX-512: it has AVX512_BF16 too, used where `bf16_products` asks; false is always right */
    bool    avxvnni;            /* AVX2: it has AVX_VNNI too; false is always right */
    bool    sdot;               /* NEON: it has the dot product extension too; false is always right */
    int     l2_kib;             /* a core's second-level cache, for the size of blocks; 0: not known */
} twb_cpu;

TWBDEF twb_cpu     twb_cpu_default(void);             /* the best kernel set, every core (OpenMP) or one thread */
TWBDEF bool        twb_isa_available(twb_isa isa);    /* compiled in, and this processor and system run it */
TWBDEF const char *twb_isa_name(twb_isa isa);         /* "plain", "neon", "avx2", "avx512" */

/* Runs task(arg, i) for every i below count: by the host's parallel_for, by OpenMP, or in a loop. */
TWBDEF void twb_parallel(const twb_cpu *cpu, int count, void (*task)(void *arg, int index), void *arg);

/* Runs body(arg, cpu), with threads standing ready for every call that gets the cpu it is given: many small calls in a
   row then start and end without waking anybody, and no call waits for a thread that has not come.  body runs on the
   calling thread.  Without OpenMP, or with parallel_for, it just runs. */
TWBDEF void twb_with_team(const twb_cpu *cpu, void (*body)(void *arg, const twb_cpu *cpu), void *arg);

/* Element types of weights.  All arithmetic is done in f32, but for the blocks of whole numbers: see [twb:05]. */
typedef enum twb_type { TWB_F32 = 0, TWB_F16 = 1, TWB_BF16 = 2, TWB_Q8_0 = 3, TWB_Q4_0 = 4 } twb_type;

/* Activation functions, as an epilogue of a product or over an array. */
typedef enum twb_activation {
    TWB_ACT_NONE = 0,
    TWB_ACT_RELU,
    TWB_ACT_GELU,          /* x Phi(x), by erf: BERT's "gelu" */
    TWB_ACT_GELU_TANH,     /* by tanh: GPT-2's "gelu_new" */
    TWB_ACT_SILU,          /* x sigmoid(x) */
    TWB_ACT_TANH,
    TWB_ACT_QUICK_GELU,    /* x sigmoid(1.702 x) */
    TWB_ACT_SIGMOID,
    TWB_ACT_COUNT
} twb_activation;


/* ---- [twb:03] elementary functions ----------------------------------------------------------
   Largest errors, in units in the last place: exp 0.9, log 0.9, tanh 1.5, erf 1.1, sigmoid 2.4, softplus 2.0,
   sin and cos 0.51 (any argument), square root, division and the rest correctly rounded. */
typedef enum twb_unary_op {
    TWB_COPY = 0, TWB_NEG, TWB_ABS, TWB_SQUARE, TWB_RECIPROCAL,
    TWB_SQRT, TWB_RSQRT,                /* 1 / sqrt(x) */
    TWB_EXP, TWB_LOG, TWB_SIN, TWB_COS, TWB_TANH, TWB_ERF,
    TWB_SIGMOID, TWB_SOFTPLUS,          /* log(1 + exp(x)) */
    TWB_RELU, TWB_GELU, TWB_GELU_TANH, TWB_SILU, TWB_QUICK_GELU,
    TWB_UNARY_COUNT
} twb_unary_op;

typedef enum twb_binary_op { TWB_ADD = 0, TWB_SUB, TWB_MUL, TWB_DIV, TWB_MAX, TWB_MIN, TWB_BINARY_COUNT } twb_binary_op;

/* y[i] = op(x[i]); y may be x. */
TWBDEF void twb_unary(const twb_cpu *cpu, twb_unary_op op, ptrdiff_t n, const float *x, float *y);
/* dx[i] = dy[i] op'(x[i]), added to dx where `accumulate`.  RECIPROCAL, SQRT, RSQRT, EXP, TANH and SIGMOID read
   only the forward result y, the others only x: the pointer that is not read may be NULL.  dx may be dy. */
TWBDEF void twb_unary_backward(const twb_cpu *cpu, twb_unary_op op, ptrdiff_t n, const float *x, const float *y,
                               const float *dy, float *dx, bool accumulate);
TWBDEF twb_unary_op twb_activation_op(twb_activation act);
/* dx (+)= dy act'(pre), where `pre` is the activation's argument.  dx may be dy. */
TWBDEF void twb_activation_backward(const twb_cpu *cpu, twb_activation act, ptrdiff_t n, const float *pre,
                                    const float *dy, float *dx, bool accumulate);

/* y[i] = op(a[i a_step], b[i b_step]); a step of 0 repeats one number, 1 is a plain array (other steps are slow).
   MAX and MIN give b where either is NaN.  y may be an operand whose step is 1. */
TWBDEF void twb_binary(const twb_cpu *cpu, twb_binary_op op, ptrdiff_t n, const float *a, ptrdiff_t a_step,
                       const float *b, ptrdiff_t b_step, float *y);
/* y = alpha x + beta y; beta 0: y is not read */
TWBDEF void twb_axpby(const twb_cpu *cpu, ptrdiff_t n, float alpha, const float *x, float beta, float *y);
TWBDEF void twb_fill(const twb_cpu *cpu, ptrdiff_t n, float value, float *y);

/* Sums over whole arrays: f32 in four times sixteen lanes (element i in lane i mod 64, what is left after whole 64s in the first
   sixteen) over chunks of 16384, the chunks added in double, in order. */
TWBDEF double twb_sum(const twb_cpu *cpu, ptrdiff_t n, const float *x);
TWBDEF double twb_dot(const twb_cpu *cpu, ptrdiff_t n, const float *x, const float *y);
TWBDEF double twb_sum_squares(const twb_cpu *cpu, ptrdiff_t n, const float *x);
/* 0 for n = 0; NaN if an element is NaN */
TWBDEF float  twb_max_abs(const twb_cpu *cpu, ptrdiff_t n, const float *x);
/* y[j] (+)= sum over rows of x[row][j]: a bias's gradient. */
TWBDEF void   twb_column_sums(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                              float *y, bool accumulate);

/* ---- [twb:04] matrix product ----------------------------------------------------------------
   C = alpha op(A) op(B) + beta C, all row-major, f32 sums.  op(A) is [m,k], op(B) [k,n], C [m,n].

   What an element of the result is, bit for bit, on every kernel set and for any number of threads:

       c = beta C[i][j]                                  (absent where beta is 0: C is not read)
       for each block of 256 consecutive k, in order:
           p = 0; for k in the block, in order: p = fma(op(A)[i][k], op(B)[k][j], p)
           c = fma(alpha, p, c)                          (alpha * p where there is no c yet)
       with an epilogue:
           c = c + bias[j];  pre_activation[i][j] = c;  c = activation(c);  c = c + residual[i][j]

   So an element depends on its row of A and its column of B and on nothing else: not on m or n, not
   on transposition, packing, batch or leading dimensions.  One token decoded with a cache gets
   exactly the bits it gets inside a long prompt.

   B may hold f16 or bf16 (b_type): its elements are widened exactly, then as above.

   PRODUCTS OF bf16 NUMBERS (bf16_products): every element of A and of B is rounded to bf16 first, to nearest, ties
   to even, and then as above.  A product of two such numbers has 16 bits and is exact in f32, and sums are f32's, so all
   that is lost are the operands' last 16 bits: each is off by at most 2^-8 of itself.  Where cpu->bf16 says that
   the processor has an instruction for it (AVX512_BF16: two multiply-adds a lane where f32 has one), that is used, and
   the promise above becomes a weaker one: the same numbers are multiplied and added in f32, but numbers below
   2^-126 (operands, or a sum on its way) count as zero, and the order within a pair of k's is the processor's.  An
   element still depends on its row and its column alone, and threads change nothing.

   A FEW ROWS TIMES WEIGHTS AS THEY LIE (few_by_lanes).  The order above asks for sixteen columns side by side, which a B
   [n,k] that is not packed has far apart: for one row that costs up to three quarters of the speed.  Weights that are used
   more than once are better packed.  For those that are not, this lets one or two rows go another way: number k of a sum
   goes into lane k mod 16, over all of k, which is not cut into blocks, and the sixteen lanes are added up in halves (0 + 8,
   1 + 9, ...; 0 + 4, ...).  Kernel sets and threads still give the same bits, but the same row among more, or with B packed,
   gives others.  It asks nothing where A is transposed, nor with bf16_products. */

typedef struct twb_epilogue {      /* applied as the product is stored: y = act(alpha A B + beta C + bias) + residual */
    const float *bias;             /* [n], added to each row; NULL: none */
    twb_activation activation;
    float *pre_activation;         /* [m,n], leading dimension ldc: receives the value before the activation (for its gradient); NULL: not kept */
    const float *residual;         /* [m,n] added last, must not overlap C; NULL: none */
    ptrdiff_t ld_residual;
} twb_epilogue;

typedef struct twb_gemm_args {
    bool trans_a, trans_b;         /* trans_a: A is stored [k,m]; trans_b: B is stored [n,k], as a linear layer's weight */
    ptrdiff_t m, n, k;             /* each may be 0 */
    float alpha, beta;
    const float *a; ptrdiff_t lda;
    const void *b; ptrdiff_t ldb; twb_type b_type;   /* F32, F16, BF16 weights, f32 sums; with k = 0, a and b may be NULL */
    bool b_packed;                 /* b points to what twb_pack_weights() wrote (then trans_b and ldb are ignored) */
    bool bf16_products;            /* A and B are rounded to bf16 before they are multiplied; f32 sums */
    bool few_by_lanes;             /* one or two rows times a B [n,k] that is not packed, A not transposed, no bf16_products: added up in another order */
    float *c; ptrdiff_t ldc;       /* must not overlap A or B */
    const twb_epilogue *epilogue;  /* or NULL; the same for every product of a batch, its pre_activation and residual advance with stride_c */
    ptrdiff_t batch, stride_a, stride_b, stride_c;   /* batch > 1: that many products, strides in elements (0 shares an operand); batch 0 counts as 1 */
} twb_gemm_args;

TWBDEF size_t twb_gemm_scratch(const twb_cpu *cpu, const twb_gemm_args *args);          /* bytes; grows with cpu->threads */
TWBDEF void   twb_gemm(const twb_cpu *cpu, const twb_gemm_args *args, void *scratch);

/* Weights that stay the same from call to call are best packed once, in b's own type: for each block of 256 k's, B's columns in
   panels of 16, panel after panel, each [kc][16] with kc the block's k's, the last panel padded with zeros.  The packed form is
   the same for every kernel set and serves every m.  f32 is multiplied where it lies, 16 bits up to 8 rows too; with more
   rows, and for bf16_products, panels are widened or rounded on the way. */
TWBDEF size_t twb_packed_size(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k);     /* bytes */
TWBDEF void   twb_pack_weights(const twb_cpu *cpu, twb_type type, bool trans_b, ptrdiff_t n, ptrdiff_t k,
                               const void *b, ptrdiff_t ldb, void *packed);
/* Columns [first, first + count) of them only, of which b has just these, as numbers of b_type (f32 is rounded to nearest even);
   first is a multiple of 16, and so is count, but for the last columns. */
TWBDEF void   twb_pack_columns(const twb_cpu *cpu, twb_type type, bool trans_b, ptrdiff_t n, ptrdiff_t k, ptrdiff_t first, ptrdiff_t count,
                               twb_type b_type, const void *b, ptrdiff_t ldb, void *packed);
/* Back again: b is [n,k] with trans_b, else [k,n]. */
TWBDEF void   twb_unpack_weights(const twb_cpu *cpu, twb_type type, bool trans_b, ptrdiff_t n, ptrdiff_t k, const void *packed, void *b, ptrdiff_t ldb);
/* y[i] = column ids[i] as floats: a table of tokens [n,k] that is also the head's matrix. */
TWBDEF void   twb_packed_embedding(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, ptrdiff_t rows, const int32_t *ids, const void *packed,
                                   float *y, ptrdiff_t ldy);

/* The plain loops that define twb_gemm(): the same bits, slowly, for every argument. */
TWBDEF void   twb_ref_gemm(const twb_gemm_args *args);

/* ---- [twb:05] quantized weights --------------------------------------------------------------
   A weight [n,k] (a row for each output) as small whole numbers: 32 neighbours along k, a block, share a
   scale d, an f16.  Decoding reads every weight once a token, so a quarter or a seventh of the bytes is
   up to four or seven times the speed.

       TWB_Q8_0   34 bytes: d, then 32 int8           w = d q,        q in [-127, 127]; a file's -128 is read as it is
       TWB_Q4_0   18 bytes: d, then 16 bytes          w = d (q - 8),  q in [0, 15]; byte i holds q[i] in its
                                                      lower and q[i + 16] in its upper half

   These are the blocks of llama.cpp's files, byte for byte, little-endian; a row whose k is no multiple of 32
   ends in a block filled up with zeros.

   In products the rows of A are quantized too, on the fly, and what is multiplied are whole numbers:

       for each block of 32 k:  d_a = max|a| / 64,  q_a = round(a (64 / max|a|)), each step rounded to f32, ties to even
           s = sum over the block of q_a q                    (exact)
           p = fma(s, d d_a, p)
       c = alpha p + beta C[i][j], and the epilogue, as in [twb:04]

   The numbers of A go from -64 to 64 and not to 127 (seven bits instead of eight), so that processors without VNNI multiply
   bytes without a detour (the chapter's implementation says how).  With a scale for each 32 numbers that costs little: stored as
   q8_0, a trained GPT-2 of 4 layers has a perplexity 0.05 % above f32's; with numbers to 127 it was 0.03 %.

   One fixed order again: the same bits on every kernel set, for every m, n and number of threads.  A block of A whose
   numbers are all below 1e-30 counts as zeros; one with NaN or infinity makes its row NaN. */
TWBDEF size_t twb_quant_row_bytes(twb_type type, ptrdiff_t k);                          /* bytes of a row of blocks */
/* Rows of floats [rows,k] to rows of blocks and back.  False: a number is NaN, infinite or too large for an f16 scale
   (300000 is not too large).  q8_0: d = max|w| / 127, halves rounded away from zero.  q4_0: the scale with the least
   squared error of the candidates in twb_quantize_q4. */
TWBDEF bool   twb_quantize(const twb_cpu *cpu, twb_type type, ptrdiff_t rows, ptrdiff_t k, const float *x, ptrdiff_t ldx, void *blocks);
TWBDEF void   twb_dequantize(twb_type type, ptrdiff_t rows, ptrdiff_t k, const void *blocks, float *y, ptrdiff_t ldy);

/* The products read panels of 16 rows; these are made once, of blocks or straight of floats, and take the blocks' place.
   b is F32, F16 or BF16, [n,k] with trans_b, else [k,n]; packed has an even address.  False as above; a scale in `packed` is then NaN. */
TWBDEF size_t twb_quant_packed_size(twb_type type, ptrdiff_t n, ptrdiff_t k);           /* bytes */
TWBDEF void   twb_quant_pack(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, const void *blocks, void *packed);
TWBDEF bool   twb_quantize_packed(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, twb_type b_type, bool trans_b,
                                  const void *b, ptrdiff_t ldb, void *packed);
TWBDEF bool   twb_quant_finite(twb_type type, ptrdiff_t n, ptrdiff_t k, const void *packed);        /* no scale is NaN or infinite */
TWBDEF void   twb_quant_unpack_row(twb_type type, ptrdiff_t n, ptrdiff_t k, const void *packed, ptrdiff_t row, void *blocks);
/* All of it as floats: y is [n,k] with trans_b, else [k,n]. */
TWBDEF void   twb_dequantize_packed(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, const void *packed, bool trans_b, float *y, ptrdiff_t ldy);
/* y[i] = row ids[i] as floats; ids NULL: rows 0, 1, ... */
TWBDEF void   twb_quant_embedding(const twb_cpu *cpu, twb_type type, ptrdiff_t rows, ptrdiff_t dim, const int32_t *ids, const void *packed,
                                  float *y, ptrdiff_t ldy);

/* As twb_gemm(), with b packed panels, b_type TWB_Q8_0 or TWB_Q4_0, A not transposed, and no batch. */
TWBDEF size_t twb_quant_gemm_scratch(const twb_cpu *cpu, const twb_gemm_args *args);
TWBDEF void   twb_quant_gemm(const twb_cpu *cpu, const twb_gemm_args *args, void *scratch);
/* The plain loops that define it. */
TWBDEF void   twb_ref_quant_gemm(const twb_gemm_args *args);

/* ---- [twb:06] a language model's head and its cross-entropy in one ---------------------------
   logits = hidden weight^T, [rows, vocab], are never held whole: at 1024 rows of GPT-2 they and their
   gradient would be 412 MB.  Without gradients, the vocabulary is walked in chunks with a running
   maximum and sum.  With gradients, blocks of rows are taken whose logits fit TWB_LOGITS_BUDGET, and for
   each: logits, loss, gradient in their place, and its two products; three products in all, nothing is
   computed twice, and rows that are ignored cost nothing.

       p = softmax(logits[i]);  e = label_smoothing
       losses[i] = (1-e) (-log p[label]) + e mean_v(-log p[v])
       d_logits[i][v] = scale (p[v] - (1-e) [v == label] - e/vocab)

   The smoothed loss is that of transformers and PyTorch.  Labels are ignore_index or in [0, vocab). */
typedef struct twb_linear_cross_entropy_args {
    ptrdiff_t rows, hidden_size, vocab;
    const float *hidden; ptrdiff_t ld_hidden;        /* [rows, hidden_size] */
    const void *weight; twb_type weight_type; ptrdiff_t ld_weight;  /* [vocab, hidden_size]; Q8_0, Q4_0: packed, and without gradients */
    const int32_t *labels; int32_t ignore_index; float label_smoothing;
    float *losses;                                   /* [rows]: each row's loss, 0 where ignored */
    float *d_hidden; ptrdiff_t ld_d_hidden;          /* [rows, hidden_size] overwritten; NULL: no gradients wanted */
    float *d_weight; ptrdiff_t ld_d_weight;          /* [vocab, hidden_size] += ; NULL: not wanted (frozen head) */
    float scale;                                     /* gradient of the result to each counted row's loss (1 / number of counted rows, usually) */
    bool bf16_products;                              /* in all three products, as in twb_gemm_args; not with Q8_0, Q4_0 */
} twb_linear_cross_entropy_args;

TWBDEF size_t twb_linear_cross_entropy_scratch(const twb_cpu *cpu, const twb_linear_cross_entropy_args *args);
TWBDEF void   twb_linear_cross_entropy(const twb_cpu *cpu, const twb_linear_cross_entropy_args *args, void *scratch);
/* The formulas above in double precision, logits row by row: what the fast one is measured against.
   `row` has room for vocab doubles. */
TWBDEF void   twb_ref_linear_cross_entropy(const twb_linear_cross_entropy_args *args, double *row);

/* ---- [twb:07] rows: softmax, norms, embedding, cross-entropy ---------------------------------
   x, y and their gradients are [rows, cols] with leading dimensions; y may be x, dx may be dy. */

/* y = exp(x - max) / sum;  dx (+)= y (dy - sum(y dy)). */
TWBDEF void twb_softmax(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx, float *y,
                        ptrdiff_t ldy);
TWBDEF void twb_softmax_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *y, ptrdiff_t ldy,
                                 const float *dy, ptrdiff_t lddy, float *dx, ptrdiff_t lddx, bool accumulate);
/* y = x - max - log(sum(exp(x - max)));  dx (+)= dy - exp(y) sum(dy). */
TWBDEF void twb_log_softmax(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                            float *y, ptrdiff_t ldy);
TWBDEF void twb_log_softmax_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *y, ptrdiff_t ldy,
                                     const float *dy, ptrdiff_t lddy, float *dx, ptrdiff_t lddx, bool accumulate);

/* Layer norm (Ba, Kiros, Hinton 2016): y = (x - mean) rstd weight + bias, rstd = 1/sqrt(variance + eps), the
   variance biased and taken in a second pass.  weight, bias [cols] may be NULL (1 and 0).  mean and rstd, [rows],
   are what the backward pass needs; NULL: not kept. */
TWBDEF void twb_layer_norm(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                           const float *weight, const float *bias, float eps, float *y, ptrdiff_t ldy, float *mean,
                           float *rstd);
/* The sum of a residual stream and its norm in one pass: sum = x + residual, y = layer_norm(sum).  Rows lie densely;
   sum may be x or residual. */
TWBDEF void twb_add_layer_norm(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x,
                               const float *residual, float *sum, const float *weight, const float *bias, float eps,
                               float *y, float *mean, float *rstd);
/* With h = (x - mean) rstd and g = dy weight:  dx (+)= rstd (g - avg(g) - h avg(g h)), NULL: not wanted;
   dweight += sum over rows of dy h;  dbias += sum over rows of dy; NULL: not wanted. */
TWBDEF void twb_layer_norm_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                                    const float *dy, ptrdiff_t lddy, const float *weight, const float *mean,
                                    const float *rstd, float *dx, ptrdiff_t lddx, bool accumulate_dx, float *dweight,
                                    float *dbias);
/* RMS norm (Zhang, Sennrich 2019): y = x rstd weight, rstd = 1/sqrt(avg(x^2) + eps).  Its gradient is layer norm's with
   mean 0 and no avg(g). */
TWBDEF void twb_rms_norm(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                         const float *weight, float eps, float *y, ptrdiff_t ldy, float *rstd);
TWBDEF void twb_rms_norm_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                                  const float *dy, ptrdiff_t lddy, const float *weight, const float *rstd, float *dx,
                                  ptrdiff_t lddx, bool accumulate_dx, float *dweight);

/* y[row] (+)= table[ids[row]], table [*, dim] of `type` with leading dimension ld; every id is a row of the table. */
TWBDEF void twb_embedding(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t dim, const int32_t *ids, const void *table,
                          twb_type type, ptrdiff_t ld, float *y, ptrdiff_t ldy, bool accumulate);
/* dtable[ids[row]] += dy[row], rows in order. */
TWBDEF void twb_embedding_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t dim, const int32_t *ids,
                                   const float *dy, ptrdiff_t lddy, float *dtable, ptrdiff_t ld);

/* Cross-entropy of logits [rows, classes] with one label a row; e = label_smoothing, p = softmax(logits[row]):
     losses[row] = (1-e) (-log p[label]) + e avg(-log p);   dlogits = scale (p - (1-e) [class == label] - e/classes).
   Rows whose label is ignore_index get loss 0 and gradient 0.  dlogits NULL: not wanted; it may be logits. */
TWBDEF void twb_cross_entropy(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t classes, const float *logits, ptrdiff_t ld,
                              const int32_t *labels, int32_t ignore_index, float label_smoothing, float *losses,
                              float *dlogits, ptrdiff_t ld_d, float scale);

/* ---- [twb:08] attention ----------------------------------------------------------------------
   out[i] = sum_j p_ij v_j,   p_ij = softmax over the visible j of (scale q_i . k_j + bias_ij)

   by tiles, with a running maximum and sum for each row (FlashAttention; Dao, Fu, Ermon, Rudra, Re 2022):
   memory beyond the operands does not grow with tq times tk.  Key j is visible to query i unless a mask or
   `causal` hides it; a query that sees nothing gets zeros, lse -infinity, and passes on no gradient.
   With grouped heads, query head h reads key head h / (heads / kv_heads).  A query's result has the same bits
   whether it comes alone (with a cache) or among others.
   Strides count elements; the last dimension, head_dim, is contiguous.  `out` overlaps nothing. */
typedef struct twb_attention_args {
    ptrdiff_t batch, heads, kv_heads, tq, tk, head_dim;             /* heads is a multiple of kv_heads */
    /* [batch, heads, tq, head_dim], [batch, kv_heads, tk, head_dim] twice */
    const float *q; const void *k, *v;
    twb_type kv_type;                                               /* of k and v: f32, f16 or bf16 */
    float *out;                                                     /* [batch, heads, tq, head_dim] */
    ptrdiff_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row;
    float scale;                                                    /* usually 1 / sqrt(head_dim) */
    /* query i stands at position query_start + i: with causal it sees keys 0 ... query_start + i */
    bool causal; ptrdiff_t query_start;
    /* [batch] (prefix_batch 1, or 0: one for all) or NULL: with causal, every query sees the first prefix keys too.  A prefix
       language model (Raffel et al. 2020; GLM, Du et al. 2022) reads its context in both directions, and writes causally */
    const int32_t *prefix; ptrdiff_t prefix_batch;
    const unsigned char *key_mask; ptrdiff_t key_mask_batch;        /* [batch, tk], 0 hides a key; or NULL */
    /* [batch, tq, tk], 0 hides; strides may be 0; or NULL */
    const unsigned char *mask; ptrdiff_t mask_batch, mask_row;
    /* [batch, heads, tq, tk] added to the scaled scores; strides may be 0; or NULL */
    const float *bias; ptrdiff_t bias_batch, bias_head, bias_row;
    /* probability of dropping each p_ij, in [0, 1); the backward pass draws the same */
    float dropout; uint64_t dropout_seed;
    /* [batch, heads, tq]: log of each row's sum of exp, for the backward pass; or NULL */
    float *lse;
} twb_attention_args;

/* Gradients.  The args are those of the forward pass, with its `out` and `lse`.  The strides are the gradients'
   own, so that the three may be parts of one [B,T,3C] buffer; d_bias has the bias's strides and is always added to. */
typedef struct twb_attention_grads {
    const float *d_out; ptrdiff_t d_out_batch, d_out_head, d_out_row;
    float *dq, *dk, *dv;
    ptrdiff_t dq_batch, dq_head, dq_row, dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row;
    float *d_bias;                                                  /* or NULL */
    bool accumulate;                                                /* add to dq, dk, dv; else write them */
} twb_attention_grads;

TWBDEF size_t twb_attention_scratch(const twb_cpu *cpu, const twb_attention_args *args);                   /* bytes */
TWBDEF void   twb_attention(const twb_cpu *cpu, const twb_attention_args *args, void *scratch);
TWBDEF size_t twb_attention_backward_scratch(const twb_cpu *cpu, const twb_attention_args *args,
                                             const twb_attention_grads *grads);
TWBDEF void   twb_attention_backward(const twb_cpu *cpu, const twb_attention_args *args,
                                     const twb_attention_grads *grads, void *scratch);

/* Rotary positions (Su et al. 2021), in place on x [batch, tokens, heads, head_dim] (strides in elements): the first
   rotary_dim dimensions (an even number) are pairs, and pair i turns by the angle position theta^(-2i/rotary_dim).
   Pairs are (i, i + rotary_dim/2), or (2i, 2i+1) when interleaved.  positions [batch, tokens].  inverse turns back,
   which is the gradient. */
TWBDEF void twb_rope(const twb_cpu *cpu, ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t head_dim,
                     ptrdiff_t rotary_dim, bool interleaved, const int32_t *positions, float theta, float *x,
                     ptrdiff_t x_batch, ptrdiff_t x_token, ptrdiff_t x_head, bool inverse);

/* ---- [twb:09] convolution, pooling, batch norm -----------------------------------------------
   Images are [batch, channels, height, width], dense, as in PyTorch. */
typedef struct twb_conv2d_args {
    ptrdiff_t batch, in_channels, height, width, out_channels;
    /* strides and dilations >= 1 */
    ptrdiff_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    ptrdiff_t groups;                       /* >= 1; divides both channel counts */
} twb_conv2d_args;

/* (height + 2 pad - dilation (kernel - 1) - 1) / stride + 1.  The kernel must fit into the padded image, or there is no image: C rounds
   the quotient towards zero, so a height that is too small by less than a stride would count one row. */
TWBDEF ptrdiff_t twb_conv2d_out_height(const twb_conv2d_args *args);
TWBDEF ptrdiff_t twb_conv2d_out_width(const twb_conv2d_args *args);
/* y[b][o][r][c] = bias[o] + sum over i, u, v of weight[o][i][u][v] x[b][i][r stride + u dilation - pad][...]
   The patches under the kernel are laid out as the columns of a matrix ("im2col"), a block of output rows at a time,
   and multiplied by the weight, [out_channels, in_channels/groups, kernel_h, kernel_w].  bias [out_channels] or NULL. */
TWBDEF size_t twb_conv2d_scratch(const twb_cpu *cpu, const twb_conv2d_args *args);         /* for both directions */
TWBDEF void   twb_conv2d(const twb_cpu *cpu, const twb_conv2d_args *args, const float *x, const float *weight,
                         const float *bias, float *y, void *scratch);
/* dx (+)= ..., dweight += ..., dbias += ...; each may be NULL. */
TWBDEF void   twb_conv2d_backward(const twb_cpu *cpu, const twb_conv2d_args *args, const float *x, const float *weight,
                                  const float *dy, float *dx, bool accumulate_dx, float *dweight, float *dbias,
                                  void *scratch);

typedef struct twb_pool2d_args {
    /* pad <= kernel / 2 */
    ptrdiff_t batch, channels, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
} twb_pool2d_args;

TWBDEF ptrdiff_t twb_pool2d_out_height(const twb_pool2d_args *args);
TWBDEF ptrdiff_t twb_pool2d_out_width(const twb_pool2d_args *args);
/* The largest of each window, padding never; argmax (or NULL) receives its place row width + column in its channel's
   image.  The first of equals wins; NaN is larger than everything. */
TWBDEF void twb_max_pool2d(const twb_cpu *cpu, const twb_pool2d_args *args, const float *x, float *y, int32_t *argmax);
TWBDEF void twb_max_pool2d_backward(const twb_cpu *cpu, const twb_pool2d_args *args, const int32_t *argmax,
                                    const float *dy, float *dx, bool accumulate);
/* The average of each window, padding counted as zeros (PyTorch's default).  kernel = image: global average pooling. */
TWBDEF void twb_avg_pool2d(const twb_cpu *cpu, const twb_pool2d_args *args, const float *x, float *y);
TWBDEF void twb_avg_pool2d_backward(const twb_cpu *cpu, const twb_pool2d_args *args, const float *dy, float *dx,
                                    bool accumulate);

/* Batch norm (Ioffe, Szegedy 2015) over x [batch, channels, size], size = height times width: each channel is
   normalised over batch and size.  weight, bias [channels] may be NULL.
   Training: mean and rstd, [channels], are the batch's and are kept for the backward pass; running_mean and running_var
   (or NULL) move by `momentum` towards them, the variance unbiased, as PyTorch does.
   Evaluation: mean and variance are the running ones; mean and rstd may be NULL. */
typedef struct twb_batch_norm_args {
    ptrdiff_t batch, channels, size;
    bool training;
    float eps, momentum;
    const float *weight, *bias;
    float *running_mean, *running_var, *mean, *rstd;
} twb_batch_norm_args;

TWBDEF void twb_batch_norm(const twb_cpu *cpu, const twb_batch_norm_args *args, const float *x, float *y);
/* dx (+)= ... (NULL: not wanted), dweight += ..., dbias += ... (NULL: not wanted).  Uses mean and rstd as the forward
   pass left them. */
TWBDEF void twb_batch_norm_backward(const twb_cpu *cpu, const twb_batch_norm_args *args, const float *x,
                                    const float *dy, float *dx, bool accumulate_dx, float *dweight, float *dbias);

/* ---- [twb:10] optimizers ---------------------------------------------------------------------
   One pass over memory: parameters, gradients and state are read once and written once; scaling the gradient (clipping)
   and zeroing it ride along.  p parameters, g gradients, [n] each. */
typedef struct twb_adamw_args {
    float lr, beta1, beta2, eps, weight_decay;
    float bias_correction1, bias_correction2;   /* 1 - beta1^t, 1 - beta2^t at step t = 1, 2, ... */
    float grad_scale;                           /* the gradient is multiplied by this first; 1: as it is */
    /* Adam's decay: weight_decay p is added to the gradient.  Else AdamW's: p shrinks by lr weight_decay */
    bool l2;
    bool zero_grad;                             /* leave zeros in g */
} twb_adamw_args;
/* Adam (Kingma, Ba 2015), AdamW (Loshchilov, Hutter 2019), as in PyTorch:
     m = m + (1-beta1)(g - m);  v = beta2 v + (1-beta2) g^2
     p -= lr/bias_correction1 m / (sqrt(v)/sqrt(bias_correction2) + eps) */
TWBDEF void twb_adamw(const twb_cpu *cpu, ptrdiff_t n, float *p, float *g, float *m, float *v,
                      const twb_adamw_args *args);

typedef struct twb_sgd_args {
    float lr, momentum, dampening, weight_decay, grad_scale;       /* dampening 0 in the first step, as in PyTorch */
    bool nesterov, zero_grad;
} twb_sgd_args;
/* g += weight_decay p;  m = momentum m + (1-dampening) g;  p -= lr (nesterov ? g + momentum m : m).
   m NULL: no momentum, p -= lr g. */
TWBDEF void twb_sgd(const twb_cpu *cpu, ptrdiff_t n, float *p, float *g, float *m, const twb_sgd_args *args);

typedef struct twb_lion_args { float lr, beta1, beta2, weight_decay, grad_scale; bool zero_grad; } twb_lion_args;
/* Lion (Chen et al. 2023): p = p (1 - lr weight_decay) - lr sign(m + (1-beta1)(g - m));  m = m + (1-beta2)(g - m). */
TWBDEF void twb_lion(const twb_cpu *cpu, ptrdiff_t n, float *p, float *g, float *m, const twb_lion_args *args);

/* ---- [twb:11] conversions and random numbers -------------------------------------------------- */

/* dst[i] = src[i] in another type, rounded to nearest, ties to even.  The arrays do not overlap, unless they are the
   same and the types have one size. */
TWBDEF void twb_convert(const twb_cpu *cpu, ptrdiff_t n, const void *src, twb_type src_type, void *dst,
                        twb_type dst_type);

/* Random numbers from a counter: number `counter` of the stream `seed` is a function of the two and nothing else, so
   that threads, kernel sets and recomputation change nothing, and a backward pass draws again what the forward pass drew. */
TWBDEF uint32_t twb_random_bits(uint64_t seed, uint64_t counter);
/* y[i] = kept(i) ? x[i] / (1-p) : 0, where element i draws number offset + i, and p in [0, 1) is the chance of being
   dropped.  The same call on the gradients is the backward pass.  y may be x. */
TWBDEF void twb_dropout(const twb_cpu *cpu, ptrdiff_t n, const float *x, float *y, float p, uint64_t seed,
                        uint64_t offset);
/* low + (high - low) u, u in [0, 1) in steps of 2^-24 */
TWBDEF void twb_random_uniform(const twb_cpu *cpu, ptrdiff_t n, float *y, float low, float high, uint64_t seed);
/* by Box and Muller */
TWBDEF void twb_random_normal(const twb_cpu *cpu, ptrdiff_t n, float *y, float mean, float std, uint64_t seed);

/* Single numbers: the bits of a float and back; 16-bit floats, rounded to nearest, ties to even; exp and log with the same bits as
   the vector kernels'. */
TWBDEF uint32_t twb_float_bits(float x);
TWBDEF float    twb_bits_float(uint32_t bits);
TWBDEF float    twb_f16_to_f32(uint16_t half);
TWBDEF uint16_t twb_f32_to_f16(float x);
TWBDEF float    twb_bf16_to_f32(uint16_t half);
TWBDEF uint16_t twb_f32_to_bf16(float x);
TWBDEF float    twb_exp1(float x);
TWBDEF float    twb_log1(float x);
#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* TWINKLE_BLAS_H */

/* Stop here if you only want to call it: what follows is how it works. */

#if defined(TWINKLE_IMPLEMENTATION) || defined(TWINKLE_BLAS_IMPLEMENTATION)
#ifndef TWB_PASS                    /* the file includes itself once a kernel set: see [twb:02] */
#ifndef TWINKLE_BLAS_IMPLEMENTED
#define TWINKLE_BLAS_IMPLEMENTED

/* ==== [twb:02] one text, four kernel sets ===================================================

   Every kernel below is written once, over `twb_v`: a vector of SIXTEEN floats, whatever the
   machine has.  AVX-512 holds it in one register, AVX2 in two, NEON in four, and plain C in an
   array.  Sixteen lanes everywhere is what makes the bits the same everywhere: lane j of a sum
   holds the same elements on every machine, and the lanes are added up in one fixed tree.

   The file includes itself once for each set with TWB_PASS defined; names get the set's name as a
   suffix through TWB_NAME, and TWB_FN puts the right target attribute on each function, so that no
   compiler flag is needed and one binary carries them all.

   SO A CHAPTER COMES IN UP TO THREE PARTS, each with its mark:

       its idea, and how work is cut up        before the passes, compiled once
       its calls, which the user makes         after the passes, compiled once
       its kernels                             from `TWB_PASS is defined` to the end of the file, compiled once for each set

   (The idea of a chapter without a plan stands with its kernels or calls.)  To follow one product through them:
   twb_gemm -> twb_gemm_plan -> twb_gemm_worker -> twb_gemm_tiles -> twb_gemm_chunk -> twb_kernel.
   ============================================================================================ */
#define TWB_PASS_PLAIN  0
#define TWB_PASS_NEON   1
#define TWB_PASS_AVX2   2
#define TWB_PASS_AVX512 3

/* The compiler must neither fuse a multiply and an add of ours, nor reorder our sums, whatever its
   flags (gcc's -Ofast, /fp:fast): fused is written fma, and the order is part of the result.  Clang alone does not keep to it
   with -Ofast and -ffast-math, nor with their part -ffp-contract=fast, which fuses whatever the pragma says: other bits.  The
   user's own code after this header keeps its flags: the end of the implementation pops them. */
#if defined(__clang__)
#  pragma clang diagnostic push
#  pragma clang diagnostic ignored "-Wunknown-warning-option"
#  pragma clang diagnostic ignored "-Wpass-failed"          /* without optimization nothing is unrolled: no news */
#  pragma float_control(precise, on, push)
#  pragma clang fp contract(off)
#elif defined(__GNUC__) && !defined(__TINYC__)
#  pragma GCC push_options
#  pragma GCC optimize ("fp-contract=off", "no-associative-math", "no-reciprocal-math", "no-finite-math-only", "signed-zeros", "no-unsafe-math-optimizations")
#elif defined(_MSC_VER)
#  pragma float_control(precise, on, push)
#  pragma fp_contract (off)
#endif

#include <math.h>
#include <string.h>
#ifdef _OPENMP
#  include <omp.h>
#  if defined(_WIN32)                /* <windows.h> defines a hundred short names: its one function is declared here */
#    ifdef __cplusplus
extern "C"
#    endif
__declspec(dllimport) int __stdcall SwitchToThread(void);
#  else
#    include <sched.h>
#    include <sys/time.h>
#    include <sys/select.h>
#  endif
#endif

/* What this compiler can build.  TWINKLE_NO_SIMD leaves only plain C; small compilers get it by themselves. */
#if !defined(TWINKLE_NO_SIMD) && (defined(__GNUC__) || defined(__clang__) || defined(_MSC_VER)) && !defined(__TINYC__)
#  if defined(__x86_64__) || defined(_M_X64)
#    define TWB_X86 1
#    include <immintrin.h>
#    if defined(_MSC_VER) && !defined(__clang__)
#      include <intrin.h>
#    else
#      include <cpuid.h>
#    endif
#  elif defined(__aarch64__) || defined(_M_ARM64)
#    define TWB_ARM 1
#    include <arm_neon.h>
#  endif
#endif
#ifndef TWB_X86
#  define TWB_X86 0
#endif
/* AVX512_BF16 is known to gcc from 10 and to clang from 9 on; no Mac has it. */
#if TWB_X86 && !defined(__APPLE__) && ((defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 10))
#  define TWB_X86_BF16 1
#else
#  define TWB_X86_BF16 0
#endif
#ifndef TWB_ARM
#  define TWB_ARM 0
#endif
/* AVX_VNNI: gcc from 11, clang from 12 on.  ARM's dot products: where everything is compiled for them, or Linux can be asked for them.
   Both are written in assembler, as is AVX512_VNNI, because they stand in functions that are compiled for processors
   without them too.  (Where the assembler is older than the compiler, binutils before 2.36: define TWINKLE_OLD_ASSEMBLER.) */
#if TWB_X86 && !defined(TWINKLE_OLD_ASSEMBLER) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11))
#  define TWB_X86_AVXVNNI 1
#else
#  define TWB_X86_AVXVNNI 0
#endif
#if TWB_ARM && defined(__ARM_FEATURE_DOTPROD)
#  define TWB_ARM_SDOT 1
#elif TWB_ARM && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))
#  define TWB_ARM_SDOT 1
#  include <sys/auxv.h>
#else
#  define TWB_ARM_SDOT 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#  define TWB_UNUSED __attribute__((unused))
/* Without optimization nothing is gained by copying a function into its callers but a long wait for the compiler. */
#  ifdef __OPTIMIZE__
#    define TWB_INLINE static inline __attribute__((always_inline, unused))
#  else
#    define TWB_INLINE static inline TWB_UNUSED
#  endif
#  define TWB_APART __attribute__((noinline))
#  define TWB_PREFETCH(p) __builtin_prefetch(p)
#  define TWB_PREFETCH_L2(p) __builtin_prefetch((p), 0, 2)
#  define TWB_TARGET(t) __attribute__((target(t)))
#elif defined(_MSC_VER)
#  define TWB_INLINE static __forceinline
#  define TWB_UNUSED
#  define TWB_APART __declspec(noinline)
#  define TWB_PREFETCH(p) ((void)(p))
#  define TWB_PREFETCH_L2(p) ((void)(p))
#  define TWB_TARGET(t)
#else
#  define TWB_INLINE static inline
#  define TWB_UNUSED
#  define TWB_APART
#  define TWB_PREFETCH(p) ((void)(p))
#  define TWB_PREFETCH_L2(p) ((void)(p))
#  define TWB_TARGET(t)
#endif
/* ---- 16-bit floats -------------------------------------------------------------------------
   f16 is IEEE binary16 (5 bits of exponent, 10 of fraction); bf16 is the upper half of an f32.
   Both are rounded to nearest, ties to even; NaN stays NaN. */
TWBDEF uint32_t twb_float_bits(float x) { uint32_t u; memcpy(&u, &x, sizeof u); return u; }
TWBDEF float twb_bits_float(uint32_t u) { float x; memcpy(&x, &u, sizeof x); return x; }

TWBDEF float twb_bf16_to_f32(uint16_t h) { return twb_bits_float((uint32_t)h << 16); }

TWBDEF uint16_t twb_f32_to_bf16(float x) {
    uint32_t u = twb_float_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((u >> 16) | 0x40u);       /* NaN: keep it quiet */
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

TWBDEF float twb_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 1023u;
    if (exponent == 31) return twb_bits_float(sign | 0x7F800000u | (fraction << 13) | (fraction ? 0x400000u : 0u));   /* inf, NaN */
    if (exponent != 0) return twb_bits_float(sign | ((exponent + 112) << 23) | (fraction << 13));
    return twb_bits_float(sign | twb_float_bits((float)fraction * (1.0f / 16777216.0f)));                             /* subnormal: fraction 2^-24 */
}

TWBDEF uint16_t twb_f32_to_f16(float x) {
    uint32_t u = twb_float_bits(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);                  /* 65520 and more round to infinity */
    if (magnitude < 0x38800000u) {                                                    /* below 2^-14: a multiple of 2^-24 */
        uint32_t shift = 126u - (magnitude >> 23), mantissa = (magnitude & 0x7FFFFFu) | 0x800000u, half, rest;
        if (shift > 24) return (uint16_t)sign;
        rest = mantissa & ((1u << shift) - 1u);
        half = mantissa >> shift;
        if (rest > (1u << (shift - 1)) || (rest == (1u << (shift - 1)) && (half & 1u))) half++;
        return (uint16_t)(sign | half);
    }
    magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

static TWB_UNUSED ptrdiff_t twb_min_size(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* ==== [twb:03] elementary functions =========================================================

   exp, log, tanh and erf, and the activations made of them.  They are our own because a C library
   gives other bits on every system, and works on one number at a time.  Each reduces its argument
   to a short interval, where a polynomial of low degree is as good as the format: the coefficients
   are minimax fits (the largest relative error made smallest), rounded to f32 one after another
   from the lowest power up, the rest fitted again each time.

   Largest errors found, in units in the last place, over every seventh float (tests/blas_math.c samples them):

       exp 0.89   log 0.85   tanh 1.49   erf 1.08   sigmoid 2.33   softplus 1.99

   NaN gives NaN; infinities, zeros, denormal arguments and results, and overflow are as in C.

     exp(x)   n = round(x / ln 2), r = x - n ln 2 (ln 2 in two parts), exp(x) = 2^n (1 + r + r^2 q(r)).
     log(x)   x = 2^e m with m in [1/sqrt 2, sqrt 2), f = m - 1: e ln 2 + f - f^2/2 + f^3 p(f).
     tanh(x)  |x| < 0.55: x + x^3 p(x^2); beyond: 1 - 2 e/(1 + e) with e = exp(-2|x|).
     erf(x)   |x| < 0.9:  x + x p(x^2);   beyond: 1 - exp(-|x| p(|x|)).
   ============================================================================================ */
#define TWB_LOG2E    1.44269504f
#define TWB_LN2_HI   0.693145752f          /* 15 bits: n times it is exact for every n that occurs */
#define TWB_LN2_LO   1.42860677e-6f
#define TWB_ROUNDER  12582912.0f           /* 1.5 2^23: adding it leaves the nearest integer in the low bits */
#define TWB_EXP_Q0   0.49999994f
#define TWB_EXP_Q1   0.166665196f
#define TWB_EXP_Q2   0.0416682698f
#define TWB_EXP_Q3   0.00836886559f
#define TWB_EXP_Q4   0.00138207676f
#define TWB_EXP_MAX  89.0f                 /* exp is infinite from 88.72 on */
#define TWB_EXP_MIN  (-104.0f)             /* and 0 below -103.97 */
#define TWB_LOG_P0   0.333333313f
#define TWB_LOG_P1   (-0.250008196f)
#define TWB_LOG_P2   0.200012416f
#define TWB_LOG_P3   (-0.166234091f)
#define TWB_LOG_P4   0.1420158f
#define TWB_LOG_P5   (-0.131596103f)
#define TWB_LOG_P6   0.127622172f
#define TWB_LOG_P7   (-0.0763643906f)
#define TWB_SQRT_HALF_BITS 0x3F3504F3u     /* sqrt(1/2) as an f32 */
#define TWB_SMALLEST_NORMAL 1.17549435e-38f

/* exp and log of one number, with the bits of one lane of twb_vexp and twb_vlog. */
TWBDEF float twb_exp1(float x) {
    float t, n, r, p;
    uint32_t i, half;
    x = TWB_EXP_MAX < x ? TWB_EXP_MAX : x;
    x = TWB_EXP_MIN > x ? TWB_EXP_MIN : x;
    t = fmaf(x, TWB_LOG2E, TWB_ROUNDER);
    n = t - TWB_ROUNDER;
    r = fmaf(-n, TWB_LN2_HI, x);
    r = fmaf(-n, TWB_LN2_LO, r);
    p = fmaf(TWB_EXP_Q4, r, TWB_EXP_Q3);
    p = fmaf(p, r, TWB_EXP_Q2);
    p = fmaf(p, r, TWB_EXP_Q1);
    p = fmaf(p, r, TWB_EXP_Q0);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* n; 2^n may be no normal number, so it is applied in halves */
    i = twb_float_bits(t) - twb_float_bits(TWB_ROUNDER);
    half = (i + 256u) >> 1;                                    /* floor(n/2) + 128 */
    return (p * twb_bits_float((half - 1u) << 23)) * twb_bits_float((i - half + 255u) << 23);
}

TWBDEF float twb_log1(float x) {
    const float infinity = twb_bits_float(0x7F800000u);
    float scaled = x < TWB_SMALLEST_NORMAL ? x * 8388608.0f : x, e = x < TWB_SMALLEST_NORMAL ? -150.0f : -127.0f, f, s,
            p, y;
    uint32_t i = twb_float_bits(scaled) + (0x3F800000u - TWB_SQRT_HALF_BITS);
    if (!(0.0f < x)) return x < 0.0f ? twb_bits_float(0x7FC00000u) : x - infinity;
    if (!(x < infinity)) return x;
    e = (float)(int32_t)(i >> 23) + e;
    f = twb_bits_float((i & 0x7FFFFFu) + TWB_SQRT_HALF_BITS) - 1.0f;
    s = f * f;
    p = fmaf(TWB_LOG_P7, f, TWB_LOG_P6);
    p = fmaf(p, f, TWB_LOG_P5);
    p = fmaf(p, f, TWB_LOG_P4);
    p = fmaf(p, f, TWB_LOG_P3);
    p = fmaf(p, f, TWB_LOG_P2);
    p = fmaf(p, f, TWB_LOG_P1);
    p = fmaf(p, f, TWB_LOG_P0);
    y = fmaf(e, TWB_LN2_LO, (s * f) * p);
    y = fmaf(-0.5f, s, y);
    return fmaf(e, TWB_LN2_HI, f + y);
}

/* ==== [twb:04] matrix product =================================================================

   Three ideas make a product fast; everything else is bookkeeping.

   1. THE MICRO-KERNEL keeps a tile of C in registers and walks down k.  A step of k loads one row of the
      tile's B (P vectors), broadcasts one number of A for each row of the tile, and does a
      multiply-add for each pair.  With R rows and P vectors that is R P multiply-adds for R + P loads, and
      a processor that starts two of each in a cycle is busy multiplying as soon as R P > R + P.

          set       vector      tile    sums  B  A    registers   multiply-adds : loads in a step
          AVX-512   16 floats   14x32   28  + 2 + 2 = 32 of 32    28 : 16
          AVX2       8 floats    6x16   12  + 2 + 2 = 16 of 16    12 :  8
          NEON       4 floats    6x16   24  + 4 + 1 = 29 of 32    24 : 10
          plain C    -           4x16

      Taller than wide would do as well for the count; wide is better, because a row of the tile is
      whole cache lines of C.  The latency of a multiply-add (4 cycles, two at a time) asks for 8
      independent sums at least: all full tiles have more.  A kernel exists for each R from 1 to the full
      height, and m rows are cut into tiles of as equal heights as can be: 64 = 13+13+13+13+12.  Low tiles
      are wider, to come as near to 8 sums as four panels and the registers allow: a single row takes 4 panels, which is
      8 sums on AVX2 and 4 on AVX-512; three rows of AVX2 stay with one panel and 6 sums, as two would take 12 + 4 + 1 registers.

   2. PACKING puts what the micro-kernel reads next to each other in the order in which it reads.  A block of B
      (256 k's) goes into panels of 16 columns, one after another, each [kc][16]: the kernel then reads one unbroken
      stream, whatever B's leading dimension and whether it is stored [k,n] or [n,k].  A row of A is read
      along k and is such a stream already; A is read where it lies, unless it is transposed, its
      leading dimension makes all rows of a tile fall on the same lines of the L1, or there are more
      than 256 rows and B does not come packed.

   3. BLOCKING keeps what is used again in a cache that is near.  k is cut into blocks of TWB_KC, A's rows into
      chunks, B's columns into groups of panels.  From large to small:

          rows      task > chunk > strip (the rows of a tile)
          columns   task > group (panels packed together) > panel (16 columns)
          k         block (TWB_KC, that is 256)

                              n
                  +------+------+------+--
                  |      | group|      |            TWB_KC x 64, or 192 where C has more rows than a chunk
                  |      |      |      |            or B came packed: 64 or 192 KiB, in the L2.
          B       |      |=|=|=|      | KC          Every strip of the chunk walks over all of its panels,
                  |      |panels|      |            then the next group is packed over it.
                  +------+------+------+--
            KC               |
          +----+--         +-v-----------
        - |====| strip     | [14x32] tile of C: in registers while k runs over the block,
  chunk   |====|           |   [14x32]  then added to C, which waits in the L2 or L3
        - |====|           |      [14x32] ...
       m  |    |           |
          +----+--         +-------------

          for each block of k, chunk (in half of an L2, see below), group: pack the group
              for each strip of 6 or 14 rows (in the L1), panel: micro-kernel

      Packing right before use means that B comes from far away once, goes through the L1, and is never
      written further out than the L2: what is read next, the next group of B, is prefetched meanwhile.  With more
      rows than a chunk, the panels are packed by the first chunk and kept, up to TWB_BLOCK_COLUMNS
      columns, for the others; those, up to 2 MiB, do go out to the L3.  A chunk is half of the L2: with 512 KiB or more
      256 rows, with 256 KiB 128; where C has more rows than that, three quarters as many.  Chunks are for the sake of address
      translation as much as of the cache: a row of a large matrix is a page of its own, in A and in C, and
      a processor remembers a thousand or two.

      The strip of A is 14 x 256 floats = 14 KiB of an L1 of 32 or 48 KiB; beside it two panels pass
      through at 128 bytes in 14 cycles, which an L2 delivers many times over.  Adding a tile to C costs
      some 50 cycles against 256 x 14 = 3584 of multiplying, 1.5 %: that is why TWB_KC is not smaller.
      It is not larger, because it is part of what the result is (see the head of this chapter in the
      declarations), and 256 suits the 32 KiB of older L1 caches as well. */
/* Products of bf16 numbers go the same way: packing, which copies anyhow, rounds.  Their tiles and panels are explained
   where the kernels are (search "products of bf16 numbers"). */
enum {
    TWB_KC = 256,                   /* k's in a block: part of the arithmetic, the same for every kernel set */
    TWB_PANEL = 16,                 /* columns in a panel of B: one twb_v */
    TWB_A_ROW = TWB_KC + 16         /* floats from row to row in a copied strip of A: 17 lines, so that rows fall on different sets of the L1 */
};

/* Tasks handed out one at a time to whoever is free.  Each worker has its own piece of scratch, which is
   why it is workers that twb_parallel() starts and not tasks. */
typedef struct twb_queue { ptrdiff_t next, count; int workers; } twb_queue;

/* The worker's next task, or count and more when none is left; `previous` is its last one, -1 at first. */
static TWB_UNUSED ptrdiff_t twb_queue_take(twb_queue *queue, int worker, ptrdiff_t previous) {
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__TINYC__)
    (void)worker; (void)previous;
    return __atomic_fetch_add(&queue->next, (ptrdiff_t)1, __ATOMIC_RELAXED);
#elif defined(_MSC_VER) && defined(_WIN64)
    (void)worker; (void)previous;
    return (ptrdiff_t)_InterlockedIncrement64((volatile __int64 *)&queue->next) - 1;
#else
    return previous < 0 ? worker : previous + queue->workers;     /* no atomic counter known: fixed shares */
#endif
}

/* What twb_queue_take would hand out now, to fetch it ahead; somebody else may take it first. */
static TWB_UNUSED ptrdiff_t twb_queue_peek(twb_queue *queue, ptrdiff_t task) {
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__TINYC__)
    (void)task;
    return __atomic_load_n(&queue->next, __ATOMIC_RELAXED);
#else
    return task + queue->workers;
#endif
}

static TWB_UNUSED ptrdiff_t twb_ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }
static TWB_UNUSED size_t twb_type_bytes(twb_type type) { return type == TWB_F32 ? 4u : 2u; }
/* one number of the given type */
static TWB_UNUSED float twb_number(twb_type type, const void *p, ptrdiff_t at) {
    if (type == TWB_F16) return twb_f16_to_f32(((const uint16_t *)p)[at]);
    if (type == TWB_BF16) return twb_bf16_to_f32(((const uint16_t *)p)[at]);
    return ((const float *)p)[at];
}
static TWB_UNUSED float *twb_align64(void *p) { return (float *)(((uintptr_t)p + 63u) & ~(uintptr_t)63u); }

/* Where packed weights hold column j (a multiple of 16) of the block of kc k's that begins at k0: block after
   block of k, in each panel after panel, in each [kc][16].  So what a task multiplies is one unbroken piece. */
static TWB_UNUSED ptrdiff_t twb_packed_at(ptrdiff_t n, ptrdiff_t j, ptrdiff_t k0, ptrdiff_t kc) {
    return twb_ceil_div(n, TWB_PANEL) * TWB_PANEL * k0 + j * kc;
}

/* The ways to go about it: tiles in registers, or, for a few rows, B read once where it lies. */
typedef enum twb_way {
    TWB_WAY_TILES,                  /* many rows, and whatever is not named below: tiles over panels */
    TWB_WAY_PACKED,                 /* few rows times packed weights of 16 bits, which are widened in registers */
    TWB_WAY_COLUMNS,                /* few rows times a B [n,k], transposed in registers sixteen columns at a time */
    TWB_WAY_LANES,                  /* few_by_lanes: the same B, read along k without being transposed */
    TWB_WAY_ROWS,                   /* few rows times a B [k,n], whose rows are streamed */
    TWB_WAY_BF16                    /* bf16_products, however many rows: tiles over rounded panels */
} twb_way;

enum {
    TWB_SKINNY_ROWS = 8,            /* most rows of a skinny product of packed 16-bit weights */
    TWB_COLUMNS_ROWS = 4,           /* most rows where B [n,k] of f32 is transposed in registers: more are worth a panel */
    TWB_COLUMNS_ROWS_16 = 2,        /* the same for a B of 16 bits, which is transposed anew for each row */
    TWB_STREAM_ROWS = 4,            /* most rows where rows of B [k,n] are streamed */
    TWB_LANES_ROWS = 2,             /* most rows with few_by_lanes: from three on, transposing is as fast */
    TWB_STREAM_AHEAD = 64 * TWB_PANEL,      /* numbers of a panel that a kernel fetches ahead of itself: 4 KiB */
    TWB_SKINNY_SUMS = 4096,         /* floats of sums where rows of B are streamed: 16 KiB, half of a 32 KiB L1 */
    TWB_CHUNK_ROWS = 256,           /* most rows of a chunk of A: 256 KiB in a block of k, 272 copied; fewer where the L2 has less than 512 KiB */
    TWB_BLOCK_COLUMNS = 2048,       /* most columns of a task, and of a block of B (where rows of B are streamed: TWB_SKINNY_SUMS / m) */
    TWB_GROUP_COLUMNS = 192,        /* most columns of a group of panels: 192 KiB in a block of k */
    TWB_STRIP_FLOATS = 16 * TWB_A_ROW,
    TWB_WORKER_FLOATS = TWB_CHUNK_ROWS * TWB_A_ROW + TWB_KC * TWB_BLOCK_COLUMNS       /* most scratch of a worker */
};

/* How a product is cut into tasks: a task is rows x columns of C over all of k. */
typedef struct twb_gemm_job {
    const twb_gemm_args *args;
    twb_way way;
    ptrdiff_t batch, task_rows, task_columns, row_tasks, column_tasks;
    ptrdiff_t chunk_rows, group;    /* most rows of a chunk of A; columns packed at a time */
    bool copy_a;                    /* each strip of A is copied: it is transposed, its rows fall on one another in the caches, or they are many and B is not packed */
    bool pairs;                     /* bf16 numbers, multiplied by the processor's own instruction */
    twb_queue queue;
    float *scratch;                 /* each worker: a chunk of A if it is copied, then panels of B */
    size_t worker_floats;
} twb_gemm_job;

/* Does few_by_lanes apply?  Then k is not cut into blocks. */
static TWB_UNUSED bool twb_by_lanes(const twb_gemm_args *g) {
    return g->few_by_lanes && g->m <= TWB_LANES_ROWS && g->trans_b && !g->trans_a && !g->b_packed && !g->bf16_products;
}

static TWB_UNUSED void twb_gemm_plan(const twb_cpu *cpu, const twb_gemm_args *g, twb_gemm_job *job) {
    const double flops = 2.0 * (double)g->m * (double)g->n * (double)g->k * (double)(g->batch > 1 ? g->batch : 1);
    const double bytes = (double)g->n * (double)g->k * (double)twb_type_bytes(g->b_type);
    const ptrdiff_t l2 = (ptrdiff_t)(cpu->l2_kib > 0 ? cpu->l2_kib : 512) << 10;
    ptrdiff_t rows = g->m > 0 ? g->m : 1, columns, wanted;
    int workers = cpu->threads > 1 ? cpu->threads : 1;
    memset(job, 0, sizeof *job);
    job->args = g;
    job->batch = g->batch > 1 ? g->batch : 1;
    if (flops < 4e6 && bytes < 1e6) workers = 1;        /* some 20 microseconds: starting threads would cost a good part of it */

    job->pairs = g->bf16_products && TWB_X86_BF16 && cpu->isa == TWB_ISA_AVX512 && cpu->bf16;
    if (g->bf16_products) job->way = TWB_WAY_BF16;
    else if (twb_by_lanes(g)) job->way = TWB_WAY_LANES;
    else if (!g->trans_a) {
        if (g->b_packed) { if (g->m <= TWB_SKINNY_ROWS && g->b_type != TWB_F32) job->way = TWB_WAY_PACKED; }
        else if (g->trans_b) { if (g->m <= (g->b_type == TWB_F32 ? TWB_COLUMNS_ROWS : TWB_COLUMNS_ROWS_16)) job->way = TWB_WAY_COLUMNS; }
        else if (g->m <= TWB_STREAM_ROWS) job->way = TWB_WAY_ROWS;
    }
    columns = job->way == TWB_WAY_ROWS ? TWB_SKINNY_SUMS / rows / 16 * 16 : (ptrdiff_t)TWB_BLOCK_COLUMNS;
    if (job->way == TWB_WAY_BF16) columns = 256;
    job->chunk_rows = twb_min_size(TWB_CHUNK_ROWS, l2 / 2 / (TWB_KC * (ptrdiff_t)sizeof(float)));     /* half of the L2 */
    if (job->chunk_rows < 64) job->chunk_rows = 64;
    /* several chunks (all of C's rows, for tasks are cut below): the kept panels want some of the L2 too */
    if (rows > job->chunk_rows) job->chunk_rows -= job->chunk_rows / 4;
    job->group = rows > job->chunk_rows || g->b_packed ? (ptrdiff_t)TWB_GROUP_COLUMNS : 64;
    /* 2048 bytes and its multiples put a tile's rows on the same few lines of an L1 (4096 bytes a way).  More than 256 rows are
       copied too, so that a chunk lies side by side, in few pages; beside a packed B, reading A in place measured faster. */
    job->copy_a = g->trans_a || g->lda % 512 == 0 || (g->m > 256 && !g->b_packed);

    /* Blocks of equal widths; then, for several workers, the longer side is halved until there are four tasks for each, so that a
       core which somebody else is using holds up no more than one of them; eight where B comes
       packed, as a smaller task then does next to nothing twice. */
    columns = twb_ceil_div(g->n, twb_ceil_div(g->n > 0 ? g->n : 1, columns));
    columns = twb_ceil_div(columns > 0 ? columns : 1, 32) * 32;
    wanted = workers > 1 ? (g->b_packed && g->m >= 64 ? 8 : 4) * (ptrdiff_t)workers : 1;
    while (job->batch * twb_ceil_div(g->m, rows) * twb_ceil_div(g->n, columns) < wanted) {
        if (job->way == TWB_WAY_ROWS && columns < 2048) wanted = workers;       /* short pieces of B's long rows are slow to read */
        if (job->batch * twb_ceil_div(g->m, rows) * twb_ceil_div(g->n, columns) >= wanted) break;
        if (rows > columns && rows >= 64) rows = twb_ceil_div(rows, 2);
        else if (columns >= 64) columns = twb_ceil_div(columns, 64) * 32;
        else break;
    }
    job->task_rows = rows;
    job->task_columns = columns > 0 ? columns : 32;
    job->row_tasks = twb_ceil_div(g->m, rows);
    job->column_tasks = twb_ceil_div(g->n, job->task_columns);
    job->queue.count = job->batch * job->row_tasks * job->column_tasks;
    if ((ptrdiff_t)workers > job->queue.count) workers = job->queue.count > 1 ? (int)job->queue.count : 1;
    job->queue.workers = workers;
    job->worker_floats = (size_t)(twb_min_size(TWB_KC, g->k) * (rows > job->chunk_rows ? job->task_columns : job->group));
    if (job->copy_a) job->worker_floats += (size_t)(twb_min_size(rows, job->chunk_rows) * TWB_A_ROW);
    if (job->way == TWB_WAY_BF16) job->worker_floats = TWB_STRIP_FLOATS + (size_t)twb_min_size(TWB_KC, g->k + g->k % 2) * (size_t)job->task_columns;
    if (job->way == TWB_WAY_ROWS) job->worker_floats = TWB_SKINNY_SUMS + 32;
}

/* Packing weights, columns [first, end): a task is 64 panels, over all of k. */
typedef struct twb_pack_job { twb_type type, b_type; bool trans; ptrdiff_t n, k, first, end, ldb; const void *b; void *packed; twb_queue queue; } twb_pack_job;

/* ==== [twb:05] quantized weights ==============================================================

   THE PANEL.  Sixteen rows of blocks are laid so that a kernel reads one unbroken stream, block after block of k:

       q8_0, 544 bytes                              q4_0, 288 bytes
       +-----------------------------------+        +-----------------------------------+
       | 16 scales, f16                    |        | 16 scales, f16                    |
       +-----------------------------------+        +-----------------------------------+
       | k 0..3 of row 0 | k 0..3 of row 1 ...|     | k 0..3 (low half) and 16..19 (high) of row 0 | row 1 ...
       | k 4..7 of row 0 | ...                |     | k 4..7 and 20..23 of row 0 | ...
         ... 8 times 64 bytes                         ... 4 times 64 bytes

   A lane of 32 bits holds four k's of one row; the kernel broadcasts the same four k's of A and multiplies byte by
   byte, sixteen columns of C at once.  It is the file's block with its groups of four bytes moved, so a block costs the
   same bytes in both, and packing is copying.

   MULTIPLYING BYTES.  vpmaddubsw of x86 multiplies unsigned by signed bytes and adds two neighbouring products in 16 bits; a sum
   that does not fit is cut off.  A q8_0 weight is made unsigned by adding 128 (its top bit is flipped).  That adds 128 times the
   block's sum of A to the result, so a lane's sum starts at minus that:

       sum w a  =  sum (w + 128) a  -  128 sum a           over the 32 k of a block

   Two products must fit: 2 x 255 x 127 = 64770 does not, 2 x 255 x 64 = 32640 does, whence A's numbers go from -64 to 64.  Then
   vpmaddwd by ones widens to 32 bits, and an addition follows.  With AVX2 and two multiplications a cycle, a tile of 4 x 16 by a block
   takes at least 64 cycles (4 rows x 8 fours of k x 2 registers x 2 multiplications / 2); measured, some 80.

   4-bit weights lie there as 0 ... 15, 8 too large.  A sum of 16 bits collects a block's sixteen products, at most 16 x 15 x 64 =
   15360; it is widened once a block, and 8 times A's sum taken off then: half the multiplications of q8_0.

   VNNI (vpdpbusd) adds four products in 32 bits at once.  AVX-512 and AVX2 each have a VNNI of their own: a processor may have
   either, both or none.  ARM multiplies signed by signed bytes (vmull, and vpadal to add), and where it has dot products (sdot)
   four of them in an instruction.  All sums are whole numbers and exact, so all of these ways give the same bits.

   ONE ROW.  Decoding multiplies one row and waits for the memory.  A single stream of addresses does not keep it busy: the
   processor looks ahead within a page of 4 KiB and begins anew at the next.  So with one row four panels are read side by side,
   with two rows two; what was read alone at 11.5 GB/s then comes at 14.5.  A task's width is a multiple of the
   panels read side by side. */
#define TWB_QUANT_TOP 64.0f         /* the largest magnitude of a quantized number of A */
enum {
    TWB_QUANT_BLOCK = 32,           /* k's that share a scale */
    TWB_QUANT_ROWS = 4,             /* rows of A in a tile, or rows times panels: 4 x 16 sums in 8 of AVX2's 16 registers, beside them
                                       weights, A, products, ones; the f32 sums so far wait in memory and are touched once a block */
    TWB_QUANT_AHEAD = 2048,         /* bytes from what a tile reads to what it has fetched, of all its panels together */
    TWB_QUANT_TASK = 96 << 10,      /* fewest bytes of weights in a task of few rows, and */
    TWB_QUANT_TASKS = 16,           /* tasks for a worker from which on they are cut no further */
    TWB_QUANT_A_BYTES = 128 << 10   /* of A's rows that a task goes over for each panel: a quarter of an L2; and sixteen rows more, so that long rows fill tiles too */
};

/* panels side by side in a tile with one row, with two, with more */
static TWB_UNUSED ptrdiff_t twb_quant_beside(ptrdiff_t rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
static TWB_UNUSED ptrdiff_t twb_quant_block_bytes(twb_type type) { return type == TWB_Q8_0 ? 34 : 18; }
static TWB_UNUSED ptrdiff_t twb_quant_blocks(ptrdiff_t k) { return (k + TWB_QUANT_BLOCK - 1) / TWB_QUANT_BLOCK; }
/* where block `block` of panel `panel` begins */
static TWB_UNUSED ptrdiff_t twb_quant_at(twb_type type, ptrdiff_t k, ptrdiff_t panel, ptrdiff_t block) {
    return (panel * twb_quant_blocks(k) + block) * TWB_PANEL * twb_quant_block_bytes(type);
}

/* One block from f32, q8_0: d = max|x| / 127, q = x / d rounded half away from zero.  What cannot be quantized
   gets the scale NaN. */
static TWB_UNUSED void twb_quantize_q8(const float *x, unsigned char *block) {
    float top = 0, d, inverse, bad = 0;
    uint16_t half;
    int i;
    for (i = 0; i < TWB_QUANT_BLOCK; i++) {
        float magnitude = fabsf(x[i]);
        top = magnitude > top ? magnitude : top;
        bad += x[i] - x[i];                               /* NaN where x is NaN or infinite */
    }
    d = top / 127.0f;
    half = twb_f32_to_f16(d);
    if (!(bad >= 0) || (half & 0x7C00u) == 0x7C00u) { half = 0x7E00u; d = 0; }
    inverse = d > 0 ? 1.0f / d : 0.0f;
    if (!(inverse <= 3.40282347e38f)) inverse = 0;        /* a scale below any f16 */
    block[0] = (unsigned char)(half & 0xFFu);
    block[1] = (unsigned char)(half >> 8);
    for (i = 0; i < TWB_QUANT_BLOCK; i++) {
        float scaled = inverse > 0 ? fabsf(x[i]) * inverse : 0.0f, whole = (float)(int)scaled;
        int q = (int)whole + (scaled - whole >= 0.5f ? 1 : 0);
        block[2 + i] = (unsigned char)(x[i] < 0 ? -q : q);
    }
}

static TWB_UNUSED float twb_quant_scale(const unsigned char *block) {
    return twb_f16_to_f32((uint16_t)(block[0] | (unsigned)block[1] << 8));
}
/* number i of a block, without its scale */
static TWB_UNUSED int twb_quant_value(twb_type type, const unsigned char *block, int i) {
    if (type == TWB_Q8_0) return block[2 + i] < 128 ? block[2 + i] : block[2 + i] - 256;
    return (i < 16 ? block[2 + i] & 15 : block[2 + i - 16] >> 4) - 8;
}

/* Blocks of column j (at number j % 16 of its panel) out of packed panels and into them: groups of four bytes move. */
static TWB_UNUSED void twb_quant_take(twb_type type, const unsigned char *panel, ptrdiff_t column, unsigned char *block) {
    ptrdiff_t g, groups = type == TWB_Q8_0 ? 8 : 4;
    uint16_t half;
    memcpy(&half, panel + 2 * column, sizeof half);
    block[0] = (unsigned char)(half & 0xFFu);
    block[1] = (unsigned char)(half >> 8);
    for (g = 0; g < groups; g++) memcpy(block + 2 + 4 * g, panel + 32 + 64 * g + 4 * column, 4);
}
static TWB_UNUSED void twb_quant_give(twb_type type, const unsigned char *block, ptrdiff_t column, unsigned char *panel) {
    ptrdiff_t g, groups = type == TWB_Q8_0 ? 8 : 4;
    uint16_t half = (uint16_t)(block[0] | (unsigned)block[1] << 8);
    memcpy(panel + 2 * column, &half, sizeof half);
    for (g = 0; g < groups; g++) memcpy(panel + 32 + 64 * g + 4 * column, block + 2 + 4 * g, 4);
}

/* Making panels: a task is one of them.  From blocks, or from floats of b_type. */
typedef struct twb_quant_pack_job {
    twb_type type, b_type;
    bool trans_b;
    ptrdiff_t n, k, ldb;
    const void *b;
    const unsigned char *blocks;
    unsigned char *packed;
    twb_queue queue;
} twb_quant_pack_job;

/* A product: the rows of A quantized, then tasks of rows x columns. */
typedef struct twb_quant_job {
    const twb_gemm_args *args;
    bool vnni;                      /* four products of bytes in an instruction: VNNI, or ARM's sdot */
    ptrdiff_t blocks, task_rows, task_columns, row_tasks, column_tasks;
    signed char *q;                 /* [m][32 blocks] */
    float *d;                       /* [m][blocks] */
    int32_t *start;                 /* [m][blocks]: what a lane's sum starts at: minus the block's sum of q times what is added to the weights */
    twb_queue queue;
} twb_quant_job;

/* looking rows up: a task is one row */
typedef struct twb_quant_rows_job {
    twb_type type;
    ptrdiff_t dim, ld_row, ld_number;       /* of y */
    const int32_t *ids;
    const unsigned char *packed;
    float *y;
    twb_queue queue;
} twb_quant_rows_job;

/* ==== [twb:06] head and cross-entropy =========================================================

   log p[v] = x[v] - max - log(sum of exp(x - max)): subtracting the maximum first keeps exp in range, and
   a running pair (max, sum) over chunks is rescaled by exp(old max - new max) where the maximum grows
   (Milakov, Gimelshein: Online normalizer calculation for softmax, 2018). */
enum {
    TWB_LOGITS_BUDGET = 32 << 20,   /* bytes of logits held at a time when gradients are wanted: GPT-2's for 166 rows.  Half would cost 2 % of a step */
    TWB_LOSS_ROWS = 256,            /* without gradients: rows and columns of logits held, 4 MiB: they stay in the L3 */
    TWB_LOSS_COLUMNS = 4096
};

/* What has been seen of a row of logits: its maximum, the sum of exp(x - maximum), the sum of x (for
   label smoothing), and the logit of its label. */
typedef struct twb_row_loss { float max, sum, total, label; } twb_row_loss;

/* a block of rows of logits [rows, columns], the vocabulary's from `first` on */
typedef struct twb_loss_job {
    const twb_linear_cross_entropy_args *args;
    const ptrdiff_t *index;         /* the rows' numbers */
    float *logits; ptrdiff_t ld, rows, first, columns;
    bool gradients;
    twb_row_loss *state;
    twb_queue queue;
} twb_loss_job;

static TWB_UNUSED float twb_loss_of(const twb_linear_cross_entropy_args *args, const twb_row_loss *row) {
    float lse = row->max + twb_log1(row->sum), nll = lse - row->label;
    if (!(args->label_smoothing > 0)) return nll;
    return (1 - args->label_smoothing) * nll + args->label_smoothing * (lse - row->total / (float)args->vocab);
}

/* ---- [twb:03] elementary functions: what arrays, rows and random numbers share ------------------ */

/* sin(x + quadrant pi/2) in double precision, rounded once.  The argument is reduced by multiples of pi/2: up to
   2^26 by subtracting k pi/2 in three parts (k times the first two is exact); beyond, where a float is an
   integer m 2^e, by multiplying m with those bits of 2/pi that matter modulo 4 (Payne, Hanek 1983). */
static TWB_UNUSED float twb_sin_quadrant(float x, int quadrant) {
    static const uint32_t two_over_pi[7] = { 0xA2F9836Eu, 0x4E441529u, 0xFC2757D1u, 0xF534DDC0u, 0xDB629599u,
            0x3C439041u, 0xFE5163ABu };
    double r, s, y;
    uint32_t u = twb_float_bits(x), magnitude = u & 0x7FFFFFFFu;
    if (magnitude >= 0x7F800000u) return x - x;                         /* infinity and NaN: NaN */
    if (magnitude < 0x4C800000u) {
        double k = rint((double)x * 0.63661977236758134);
        r = (((double)x - k * 1.570796325802803) - k * 9.920935739593517e-10) - k * 5.721188726109832e-18;
        quadrant += (int)((int64_t)k & 3);
    } else {
        /* bits of 2/pi whose part of the product is a multiple of 4 */
        int e = (int)(magnitude >> 23) - 150, skip = e - 2, turns, i;
        uint64_t m = (magnitude & 0x7FFFFFu) | 0x800000u, word[3], carry, top;
        for (i = 0; i < 3; i++) {
            int at = skip / 32 + i, shift = skip % 32;
            word[i] = shift ? ((two_over_pi[at] << shift) | (two_over_pi[at + 1] >> (32 - shift))) : two_over_pi[at];
        }
        carry = (word[2] * m) >> 32;                                    /* the upper 64 of 96 bits of the product */
        top = (((word[0] * m) << 32) + word[1] * m) + carry;
        turns = (int)((top >> 62) + ((top >> 61) & 1u));
        top <<= 2;                                                      /* the fraction, from -1/2 to 1/2 */
        r = (top >> 63 ? -(double)(0u - top) : (double)top) * (1.5707963267948966 / 18446744073709551616.0);
        quadrant += u >> 31 ? -turns : turns;
        if (u >> 31) r = -r;
    }
    s = r * r;
    if (quadrant & 1)
        y = 1 + s * (-1.0/2 + s * (1.0/24
                                   + s * (-1.0/720 + s * (1.0/40320 + s * (-1.0/3628800 + s * (1.0/479001600))))));
    else
        y = r + r * s * (-1.0/6 + s * (1.0/120

                + s * (-1.0/5040 + s * (1.0/362880 + s * (-1.0/39916800 + s * (1.0/6227020800.0))))));
    return (float)(quadrant & 2 ? -y : y);
}

/* base^y for base > 0, in double precision (to some 1e-15): for rotary frequencies. */
static TWB_UNUSED double twb_power(double base, double y) {
    int e, i, n;
    double m = frexp(base, &e), t, s = 0, r, p = 1;
    if (m < 0.70710678118654752) { m *= 2; e--; }
    t = (m - 1) / (m + 1);
    for (i = 25; i >= 1; i -= 2) s = s * (t * t) + 1.0 / i;             /* log m = 2 (t + t^3/3 + t^5/5 + ...) */
    s = y * (2 * t * s + e * 0.69314718055994531);
    n = s < -1000 ? -1000 : s > 1000 ? 1000 : (int)rint(s * 1.4426950408889634);
    r = s - n * 0.69314718055994531;
    for (i = 16; i >= 1; i--) p = 1 + p * r / i;
    return ldexp(p, n);
}

/* ---- random numbers: two keys for each (seed, upper half of the counter), and a mix of the lower half with them.
   The mix is two rounds of multiply and xor-shift, the keys entering before and between: every bit of the
   counter moves every bit of the result with a probability near one half. */
typedef struct twb_stream { uint32_t first, second; } twb_stream;

static TWB_UNUSED twb_stream twb_stream_of(uint64_t seed, uint64_t high) {
    twb_stream s;
    uint64_t z = seed ^ (high * 0xD1342543DE82EF95u);
    z = (z ^ (z >> 32)) * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
    z = (z ^ (z >> 29)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 32)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    s.first = (uint32_t)z;
    s.second = (uint32_t)(z >> 32);
    return s;
}

#define TWB_MIX_1 0x7FEB352Du
#define TWB_MIX_2 0x846CA68Bu
static TWB_UNUSED uint32_t twb_mix(twb_stream s, uint32_t low) {
    uint32_t x = low + s.first;
    x = (x ^ (x >> 16)) * TWB_MIX_1;
    x = (x ^ (x >> 15)) + s.second;
    x = (x ^ (x >> 16)) * TWB_MIX_2;
    return x ^ (x >> 16);
}

/* ---- spans: one function of a pass does items [begin, end) of a job that a struct describes.  The results do
   not depend on how a job is cut into spans. */
typedef void (*twb_span)(const void *job, ptrdiff_t begin, ptrdiff_t end);

#define TWB_SPANS(X) \
    X(unary) X(unary_backward) X(activation_backward) X(binary) X(axpby) X(sum) X(dot) X(max_abs) \
    X(softmax) X(softmax_backward) X(norm) X(norm_backward) X(norm_parameters) X(embedding) X(embedding_backward) \
    X(cross_entropy) X(rope) X(batch_norm) X(batch_norm_backward) X(adamw) X(sgd) X(lion) X(convert) X(dropout) \
    X(uniform) X(normal)
typedef enum twb_span_id {
#define TWB_ROW(name) TWB_SPAN_##name,
    TWB_SPANS(TWB_ROW)
#undef TWB_ROW
    TWB_SPAN_COUNT
} twb_span_id;

/* elementwise jobs over arrays */
typedef struct twb_array_job {
    int op;
    const float *x, *y, *dy;
    float *out;
    ptrdiff_t x_step, y_step;
    float alpha, beta;
    bool accumulate;
    uint64_t seed, offset;
} twb_array_job;

/* whole-array reductions: one result a chunk */
enum { TWB_SUM_CHUNK = 16384, TWB_SUM_CHUNKS = 256 };
typedef struct twb_sum_job { const float *x, *y; ptrdiff_t n; float *results; } twb_sum_job;

/* jobs over rows */
/* rows whose sums are taken together in the gradient of a norm's weight: part of the arithmetic */
enum { TWB_NORM_ROWS = 32 };
typedef struct twb_rows_job {
    ptrdiff_t rows, cols, ldx, ldy, lddy, ld_out;
    const float *x, *y, *dy, *weight, *bias, *residual;
    float *out, *sum, *mean, *rstd, *dweight, *dbias;
    const float *given_mean, *given_rstd;
    float eps;
    bool log_form, root_mean_square, accumulate;
    const int32_t *ids;
    const void *table; twb_type type; ptrdiff_t ld_table;
    float *losses; int32_t ignore_index; float smoothing, scale;
} twb_rows_job;

typedef struct twb_rope_job {
    ptrdiff_t tokens, heads, rotary_dim, x_batch, x_token, x_head;
    bool interleaved, inverse;
    const int32_t *positions;
    float theta, *x;
} twb_rope_job;

typedef struct twb_batch_norm_job {
    twb_batch_norm_args args;
    const float *x, *dy;
    float *out, *dweight, *dbias;
    bool accumulate;
} twb_batch_norm_job;

typedef struct twb_optimizer_job { float *p, *g, *m, *v; twb_adamw_args adamw; twb_sgd_args sgd; twb_lion_args lion;
    } twb_optimizer_job;

typedef struct twb_convert_job { const void *src; void *dst; twb_type src_type, dst_type; } twb_convert_job;

/* ---- what the kernels compute, in a few lines of double precision each: the tests measure the kernels against these */
static TWB_UNUSED double twb_ref_unary(twb_unary_op op, double x) {
    switch (op) {
    case TWB_NEG: return -x;
    case TWB_ABS: return fabs(x);
    case TWB_SQUARE: return x * x;
    case TWB_RECIPROCAL: return 1 / x;
    case TWB_SQRT: return sqrt(x);
    case TWB_RSQRT: return 1 / sqrt(x);
    case TWB_EXP: return exp(x);
    case TWB_LOG: return log(x);
    case TWB_SIN: return sin(x);
    case TWB_COS: return cos(x);
    case TWB_TANH: return tanh(x);
    case TWB_ERF: return erf(x);
    case TWB_SIGMOID: return 1 / (1 + exp(-x));
    case TWB_SOFTPLUS: return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    case TWB_RELU: return x <= 0 ? 0 : x;
    case TWB_GELU: return 0.5 * x * erfc(-x * 0.70710678118654752);
    case TWB_GELU_TANH: return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case TWB_SILU: return x / (1 + exp(-x));
    case TWB_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case TWB_COPY: case TWB_UNARY_COUNT: break;
    }
    return x;
}

static TWB_UNUSED void twb_ref_softmax(ptrdiff_t cols, const float *x, double *y) {
    double top = -HUGE_VAL, sum = 0;
    ptrdiff_t j;
    for (j = 0; j < cols; j++) if ((double)x[j] > top) top = (double)x[j];
    for (j = 0; j < cols; j++) sum += y[j] = exp((double)x[j] - top);
    for (j = 0; j < cols; j++) y[j] /= sum;
}

static TWB_UNUSED void twb_ref_layer_norm(ptrdiff_t cols, const float *x, const float *weight, const float *bias,
                                          double eps, double *y) {
    double mean = 0, variance = 0;
    ptrdiff_t j;
    for (j = 0; j < cols; j++) mean += (double)x[j] / (double)cols;
    for (j = 0; j < cols; j++) variance += ((double)x[j] - mean) * ((double)x[j] - mean) / (double)cols;
    for (j = 0; j < cols; j++)
        y[j] = ((double)x[j] - mean) / sqrt(variance + eps) * (weight ? (double)weight[j] : 1) + (bias ? (double)bias[j]
                : 0);
}

/* p: room for `classes` doubles, left as the softmax */
static TWB_UNUSED double twb_ref_cross_entropy(ptrdiff_t classes, const float *logits, int32_t label, double smoothing,
                                               double *p) {
    double loss = 0;
    ptrdiff_t j;
    twb_ref_softmax(classes, logits, p);
    for (j = 0; j < classes; j++) loss -= log(p[j]) * (smoothing / (double)classes + (j == label ? 1 - smoothing : 0));
    return loss;
}
/* ==== [twb:08] attention ======================================================================

   For one head, with T = tq = tk:   S = scale Q K^T,  P = softmax of S by rows,  O = P V.

   Written out, S and P are T x T: at T = 4096 they are 64 MiB each, and all the time goes into carrying
   them to memory and back.  By tiles they never leave the L1 (FlashAttention; Dao et al. 2022):

                  K, V in tiles of TWB_ATT_KEYS
                 +-------+-------+-------+--
                 | tile 0| tile 1|  ...            for a block of queries (a task):
          Q      +-------+-------+--                 for each tile of keys:
       +-----+   |#######|##     |                     pack K^T into panels [D][16], V into rows
       | 12  |-->|#######|####   |                     for each 12 queries:
       +-----+   |#######|######.|                       S strip [12][keys] = Q K^T        micro-kernel
       | 12  |   |#######|#######|##                     row maxima m', exp, row sums      16 lanes
       +-----+   +-------+-------+--                     O = exp(m - m') O + P V           micro-kernel

   A softmax needs the row's maximum before it has seen the row.  So each row carries the maximum m and the
   sum l so far: when a tile raises m to m', what was added up under m is worth exp(m - m') times as much.
   In the last tile O is divided by l, and m + log l is kept for the backward pass.

   Causal: a strip ends at the last key that one of its 12 queries sees; only there keys are hidden one by one.

   The micro-kernels are the product's (chapter 04): 12 x 32 on AVX-512, twice 6 x 16 on AVX2 and NEON, three times 4 x 16 in
   plain C.  Twelve rows, not AVX-512's fourteen, because the strips of every kernel set must end at the same key for the
   bits to be the same, and 12 is twice 6.  exp(m - m') and 1/l are the factors beta and alpha of a row, so no pass of its own applies them.

   BACKWARD.  With dO given, D_i = sum_d dO_id O_id, and P computed again from the kept log-sum-exp:
       dV = P^T dO,   dP = dO V^T,   dS = P (dP - D),   dQ = scale dS K,   dK = scale dS^T Q.
   A task is one key head, or several in a row where they share a bias and so its gradient.  It walks over its tiles of
   keys, and for each over the blocks of queries that see it; dK and dV of the tile collect in the cache, dQ gets one
   addition a tile, in the order of the tiles.  So nothing depends on who computes what when.
   ============================================================================================ */
enum {
    TWB_ATT_GROUP = 12,             /* queries that share a strip */
    TWB_ATT_KEYS = 256,             /* keys in a tile, forward: part of the arithmetic */
    TWB_ATT_QUERIES = 192,          /* queries in a forward task */
    /* floats from row to row of a strip: an odd number of lines, so that rows fall on different sets of the L1 */
    TWB_ATT_STRIP = TWB_ATT_KEYS + 16,
    TWB_ATT_BACK_KEYS = 128,        /* the same for the backward pass, which holds more: five tiles of keys, two of queries, and two strips besides */
    TWB_ATT_BACK_QUERIES = 48,
    TWB_ATT_BACK_STRIP = TWB_ATT_BACK_KEYS + 16
};

typedef struct twb_attention_job {
    twb_attention_args a;
    twb_attention_grads g;
    ptrdiff_t row_blocks, depth;    /* depth: head_dim rounded up to whole vectors */
    /* backward: how many batches and key heads one task walks over.  More than 1 where they share a d_bias, whose
       sums must not be written by two threads at once, nor in an order that changes. */
    ptrdiff_t task_batches, task_heads;
    bool fetch;                     /* more than an L2 holds: fetch the next head's rows ahead */
    twb_queue queue;
    float *scratch;
    size_t worker_floats;
} twb_attention_job;

/* How many of the keys query i of batch b sees, with `causal` and `prefix` alone.  It never falls from one query to the
   next: tiles and strips below rest on that. */
static TWB_UNUSED ptrdiff_t twb_attention_visible(const twb_attention_args *a, ptrdiff_t b, ptrdiff_t i) {
    ptrdiff_t n = a->causal && a->query_start < a->tk - i ? a->query_start + i + 1 : a->tk;      /* counted only where it can be */
    if (a->prefix && n < (ptrdiff_t)a->prefix[b * a->prefix_batch]) n = (ptrdiff_t)a->prefix[b * a->prefix_batch];
    return n < 0 ? 0 : twb_min_size(n, a->tk);
}

/* The loops that define it but for dropout, in double precision: one row of out, p has room for tk doubles.  Returns the row's
   log-sum-exp. */
static TWB_UNUSED double twb_ref_attention(const twb_attention_args *a, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i,
                                           double *p, double *out) {
    const ptrdiff_t kv = h / (a->heads / a->kv_heads), n = twb_attention_visible(a, b, i);
    const float *q = a->q + b * a->q_batch + h * a->q_head + i * a->q_row;
    double top = -HUGE_VAL, sum = 0;
    ptrdiff_t j, d;
    for (d = 0; d < a->head_dim; d++) out[d] = 0;
    for (j = 0; j < a->tk; j++) {
        const ptrdiff_t k = b * a->k_batch + kv * a->k_head + j * a->k_row;
        double s = 0;
        for (d = 0; d < a->head_dim; d++) s += (double)q[d] * (double)twb_number(a->kv_type, a->k, k + d);
        p[j] = s * (double)a->scale + (a->bias ? (double)a->bias[b * a->bias_batch + h * a->bias_head + i * a->bias_row
                                                                 + j] : 0);
        if (j >= n || (a->key_mask && !a->key_mask[b * a->key_mask_batch + j])
            || (a->mask && !a->mask[b * a->mask_batch + i * a->mask_row + j])) p[j] = -HUGE_VAL;
        if (p[j] > top) top = p[j];
    }
    for (j = 0; j < a->tk; j++) sum += p[j] = p[j] > -HUGE_VAL ? exp(p[j] - top) : 0;
    for (j = 0; j < a->tk; j++) {
        const ptrdiff_t v = b * a->v_batch + kv * a->v_head + j * a->v_row;
        if (p[j] > 0) p[j] /= sum;
        for (d = 0; d < a->head_dim; d++) out[d] += p[j] * (double)twb_number(a->kv_type, a->v, v + d);
    }
    return top + log(sum);
}
/* ---- [twb:02] one text, four kernel sets: the passes ------------------------------------------ */
#ifndef TWINKLE_BLAS_SELF
#  define TWINKLE_BLAS_SELF "twinkle_blas.h"      /* define it if you renamed the file */
#endif
#define TWB_PASS TWB_PASS_PLAIN
#include TWINKLE_BLAS_SELF
#undef TWB_PASS
#if TWB_ARM
#  define TWB_PASS TWB_PASS_NEON
#  include TWINKLE_BLAS_SELF
#  undef TWB_PASS
#endif
#if TWB_X86
#  define TWB_PASS TWB_PASS_AVX2
#  include TWINKLE_BLAS_SELF
#  undef TWB_PASS
#  define TWB_PASS TWB_PASS_AVX512
#  include TWINKLE_BLAS_SELF
#  undef TWB_PASS
#endif

/* The function of the kernel set in use: TWB_PICK(isa, twb_scale) is twb_scale_avx2, say.  It works for
   functions and for tables, and a set that is not compiled in falls back to plain C. */
#if TWB_X86
#  define TWB_PICK(isa, name) ((isa) == TWB_ISA_AVX512 ? name##_avx512 : (isa) == TWB_ISA_AVX2 ? name##_avx2 : name##_plain)
#elif TWB_ARM
#  define TWB_PICK(isa, name) ((isa) == TWB_ISA_NEON ? name##_neon : name##_plain)
#else
#  define TWB_PICK(isa, name) (name##_plain)
#endif

/* ==== [twb:01] the processor and its threads: choosing kernels, handing out work ============== */

#if TWB_X86
static void twb_cpuid(unsigned leaf, unsigned sub, unsigned r[4]) {
#  if defined(_MSC_VER) && !defined(__clang__)
    int t[4]; __cpuidex(t, (int)leaf, (int)sub);
    r[0] = (unsigned)t[0]; r[1] = (unsigned)t[1]; r[2] = (unsigned)t[2]; r[3] = (unsigned)t[3];
#  else
    r[0] = r[1] = r[2] = r[3] = 0;
    __get_cpuid_count(leaf, sub, r, r + 1, r + 2, r + 3);
#  endif
}

/* Which registers the operating system saves at a task switch (XCR0): without that, a kernel set
   must not be used even where the processor has it. */
static unsigned twb_saved_registers(void) {
#  if defined(_MSC_VER) && !defined(__clang__)
    return (unsigned)_xgetbv(0);
#  else
    unsigned low, high;
    __asm__ volatile ("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
#  endif
}
#endif

TWBDEF bool twb_isa_available(twb_isa isa) {
    if (isa == TWB_ISA_PLAIN) return true;
#if TWB_ARM
    if (isa == TWB_ISA_NEON) return true;               /* every 64-bit ARM has it */
#endif
#if TWB_X86
    if (isa == TWB_ISA_AVX2 || isa == TWB_ISA_AVX512) {
        unsigned r[4], saved;
        twb_cpuid(1, 0, r);
        if (!(r[2] >> 27 & 1u) || !(r[2] >> 12 & 1u) || !(r[2] >> 29 & 1u)) return false;          /* OSXSAVE, FMA, F16C */
        saved = twb_saved_registers();
        twb_cpuid(7, 0, r);
        if ((saved & 6u) != 6u || !(r[1] >> 5 & 1u)) return false;                                 /* AVX2 */
        if (isa == TWB_ISA_AVX2) return true;
        return (saved & 0xE6u) == 0xE6u && (r[1] >> 16 & 1u) && (r[1] >> 17 & 1u) && (r[1] >> 30 & 1u) && (r[1] >> 31 & 1u);   /* F, DQ, BW, VL */
    }
#endif
    return false;
}

TWBDEF const char *twb_isa_name(twb_isa isa) {
    static const char *const names[TWB_ISA_COUNT] = { "plain", "neon", "avx2", "avx512" };
    return (unsigned)isa < TWB_ISA_COUNT ? names[isa] : "unknown";
}

TWBDEF twb_cpu twb_cpu_default(void) {
    twb_cpu cpu;
    int isa;
    memset(&cpu, 0, sizeof cpu);
    for (isa = TWB_ISA_COUNT - 1; isa > 0 && !twb_isa_available((twb_isa)isa); isa--) continue;
    cpu.isa = (twb_isa)isa;
#if TWB_X86
    {
        unsigned r[4];
        twb_cpuid(7, 0, r);
        cpu.vnni = cpu.isa == TWB_ISA_AVX512 && (r[2] >> 11 & 1u);
        if (r[0] >= 1) {                                     /* there is a second page of features */
            twb_cpuid(7, 1, r);
            cpu.bf16 = cpu.isa == TWB_ISA_AVX512 && (r[0] >> 5 & 1u);
            cpu.avxvnni = cpu.isa >= TWB_ISA_AVX2 && (r[0] >> 4 & 1u);
        }
        twb_cpuid(0x80000006u, 0, r);
        cpu.l2_kib = (int)(r[2] >> 16);
    }
#elif TWB_ARM && defined(__ARM_FEATURE_DOTPROD)
    cpu.sdot = true;
#elif TWB_ARM && defined(AT_HWCAP)
    cpu.sdot = (getauxval(AT_HWCAP) >> 20 & 1u) != 0;        /* HWCAP_ASIMDDP */
#endif
#ifdef _OPENMP
    cpu.threads = omp_get_max_threads();
#else
    cpu.threads = 1;
#endif
    return cpu;
}

/* ---- a team ----------------------------------------------------------------------------------
   OpenMP's own loops end with every thread waiting for every other.  On a machine that somebody else
   uses too, a thread that is not running then holds up all of them, at each of the hundreds of
   products of a forward pass.  So the threads are brought once for a whole pass, and tiles are handed
   out here:

       caller                                    the others
       writes the job, opens it                  spin a while, then yield, then sleep a little, until a job is open
       takes tiles until there is none           step inside, take tiles until there is none, step out
       closes it, waits until nobody is inside

   Who is not there takes no tile, and nobody waits for him. */
struct twb_team {
    void (*task)(void *arg, int index);
    void *arg;
    int count;                          /* tiles of the job */
    int next;                           /* the first one that nobody has taken */
    int open;                           /* 1: the job may be worked on */
    int inside;                         /* how many others are working on it */
    int over;                           /* 1: go home */
};

/* OpenMP has these with seq_cst, one order for all threads, from 4.0 on: an older one does without a team. */
#if defined(_OPENMP) && _OPENMP >= 201307
#  define TWB_TEAM 1
#else
#  define TWB_TEAM 0
#endif

#if TWB_TEAM
static int  twb_atomic_get(int *x) {
    int v;
    #pragma omp atomic read seq_cst
    v = *x;
    return v;
}
static void twb_atomic_set(int *x, int v) {
    #pragma omp atomic write seq_cst
    *x = v;
    (void)v;
}
static int  twb_atomic_add(int *x, int n) {         /* returns what it was before */
    int v;
    #pragma omp atomic capture seq_cst
    { v = *x; *x += n; }
    return v;
}

static void twb_take_tiles(twb_team *team) {
    int i;
    while ((i = twb_atomic_add(&team->next, 1)) < team->count) team->task(team->arg, i);
}

/* Waits a moment, a longer one the more often it was called: a pause for the processor, then the
   rest of the time slice, then (if sleeping is allowed) some microseconds of sleep, in which the
   system can bring whom we wait for to this core. */
static void twb_wait_a_moment(int turns, bool may_sleep) {
    (void)may_sleep;
#if TWB_X86
    if (turns < 2000) { _mm_pause(); return; }
#else
    if (turns < 2000) return;
#endif
#if defined(_WIN32)
    SwitchToThread();
#else
    if (may_sleep && turns > 2200) { struct timeval t; t.tv_sec = 0; t.tv_usec = 20; select(0, NULL, NULL, NULL, &t); return; }
    sched_yield();
#endif
}

enum { TWB_TURNS_TO_SLEEP = 20000 };
static void twb_serve(twb_team *team) {
    int turns = 0;
    while (!twb_atomic_get(&team->over)) {
        /* seen from outside, where the caller may be writing its next job: only a hint, but read whole */
        if (!twb_atomic_get(&team->open) || twb_atomic_get(&team->next) >= twb_atomic_get(&team->count)) {
            twb_wait_a_moment(turns, turns > TWB_TURNS_TO_SLEEP);       /* the caller may be doing something else for long */
            if (turns <= TWB_TURNS_TO_SLEEP) turns++;
            continue;
        }
        twb_atomic_add(&team->inside, 1);           /* first step inside, then look again whether it is open */
        if (twb_atomic_get(&team->open)) { twb_take_tiles(team); turns = 0; }
        twb_atomic_add(&team->inside, -1);
    }
}

static void twb_team_parallel(twb_team *team, int count, void (*task)(void *arg, int index), void *arg) {
    int turns = 0;
    team->task = task;
    team->arg = arg;
    twb_atomic_set(&team->count, count);
    twb_atomic_set(&team->next, 0);
    twb_atomic_set(&team->open, 1);
    twb_take_tiles(team);
    twb_atomic_set(&team->open, 0);
    while (twb_atomic_get(&team->inside)) twb_wait_a_moment(turns++, true);
}
#endif

TWBDEF void twb_with_team(const twb_cpu *cpu, void (*body)(void *arg, const twb_cpu *cpu), void *arg) {
#if TWB_TEAM
    if (cpu->threads > 1 && !cpu->parallel_for && !cpu->team) {
        twb_team team;
        twb_cpu with = *cpu;
        memset(&team, 0, sizeof team);
        with.team = &team;
        #pragma omp parallel num_threads(with.threads)
        {
            if (omp_get_thread_num() == 0) {
                body(arg, &with);
                twb_atomic_set(&team.over, 1);
            } else twb_serve(&team);
        }
        return;
    }
#endif
    body(arg, cpu);
}

/* Tiles are handed out one at a time, so that a core which somebody else is using costs its own
   share and not the whole product. */
TWBDEF void twb_parallel(const twb_cpu *cpu, int count, void (*task)(void *arg, int index), void *arg) {
    int i;
    if (count <= 0) return;
    if (cpu->threads > 1 && count > 1) {
        if (cpu->parallel_for) { cpu->parallel_for(cpu->parallel_user, count, task, arg); return; }
#if TWB_TEAM
        if (cpu->team) { twb_team_parallel(cpu->team, count, task, arg); return; }
#endif
#ifdef _OPENMP
        {
            int threads = cpu->threads < count ? cpu->threads : count;
            #pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
            for (i = 0; i < count; i++) task(arg, i);
            return;
        }
#endif
    }
    for (i = 0; i < count; i++) task(arg, i);
}


/* ---- [twb:04] matrix product: the calls ------------------------------------------------------ */

TWBDEF size_t twb_gemm_scratch(const twb_cpu *cpu, const twb_gemm_args *args) {
    twb_gemm_job job;
    if (args->m <= 0 || args->n <= 0 || args->k <= 0) return 64;
    twb_gemm_plan(cpu, args, &job);
    return job.worker_floats * (size_t)job.queue.workers * sizeof(float) + 64;
}

static const float twb_no_numbers[1] = {0};     /* where operands without a number point to: never read */

TWBDEF void twb_gemm(const twb_cpu *cpu, const twb_gemm_args *args, void *scratch) {
    twb_gemm_job job;
    if (args->m <= 0 || args->n <= 0) return;
    if (args->k <= 0) { twb_ref_gemm(args); return; }       /* no product, so there need not be an A or a B: no pointer is counted from them */
    twb_gemm_plan(cpu, args, &job);
    job.scratch = twb_align64(scratch);
    twb_parallel(cpu, job.queue.workers, TWB_PICK(cpu->isa, twb_gemm_worker), &job);
}

TWBDEF size_t twb_packed_size(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k) {
    (void)cpu;
    return (size_t)twb_ceil_div(n, TWB_PANEL) * TWB_PANEL * (size_t)k * twb_type_bytes(type);
}

TWBDEF void twb_pack_columns(const twb_cpu *cpu, twb_type type, bool trans_b, ptrdiff_t n, ptrdiff_t k, ptrdiff_t first, ptrdiff_t count,
                             twb_type b_type, const void *b, ptrdiff_t ldb, void *packed) {
    twb_pack_job job;
    memset(&job, 0, sizeof job);
    job.type = type; job.b_type = b_type; job.trans = trans_b; job.n = n; job.k = k; job.ldb = ldb; job.b = b; job.packed = packed;
    job.first = first; job.end = twb_min_size(first + count, n);
    job.queue.count = twb_ceil_div(job.end - first, 64 * TWB_PANEL);
    job.queue.workers = cpu->threads > 1 && count * k > 65536 ? (int)twb_min_size(cpu->threads, job.queue.count) : 1;
    twb_parallel(cpu, job.queue.workers, TWB_PICK(cpu->isa, twb_pack_worker), &job);
}
TWBDEF void twb_pack_weights(const twb_cpu *cpu, twb_type type, bool trans_b, ptrdiff_t n, ptrdiff_t k, const void *b, ptrdiff_t ldb, void *packed) {
    twb_pack_columns(cpu, type, trans_b, n, k, 0, n, type, b, ldb, packed);
}

/* Where packed weights have number k of column j, counted in elements. */
static ptrdiff_t twb_packed_number(ptrdiff_t n, ptrdiff_t size, ptrdiff_t j, ptrdiff_t k) {
    const ptrdiff_t k0 = k / TWB_KC * TWB_KC;
    return twb_packed_at(n, j / TWB_PANEL * TWB_PANEL, k0, twb_min_size(TWB_KC, size - k0)) + (k - k0) * TWB_PANEL + j % TWB_PANEL;
}
TWBDEF void twb_unpack_weights(const twb_cpu *cpu, twb_type type, bool trans_b, ptrdiff_t n, ptrdiff_t k, const void *packed, void *b, ptrdiff_t ldb) {
    const size_t size = twb_type_bytes(type);
    ptrdiff_t j, l, p;
    (void)cpu;
    for (j = 0; j < n; j += TWB_PANEL)                     /* one panel's numbers after the other, each to its row */
        for (l = 0; l < k; l++) {
            const char *from = (const char *)packed + (size_t)twb_packed_number(n, k, j, l) * size;
            for (p = j; p < n && p < j + TWB_PANEL; p++)
                memcpy((char *)b + (size_t)(trans_b ? p * ldb + l : l * ldb + p) * size, from + (size_t)(p - j) * size, size);
        }
}
TWBDEF void twb_packed_embedding(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, ptrdiff_t rows, const int32_t *ids, const void *packed,
                                 float *y, ptrdiff_t ldy) {
    ptrdiff_t i, l;
    (void)cpu;
    for (i = 0; i < rows; i++)
        for (l = 0; l < k; l++) y[i * ldy + l] = twb_number(type, packed, twb_packed_number(n, k, ids[i], l));
}

/* a number as the products see it */
static float twb_ref_number(const twb_gemm_args *g, float x) { return g->bf16_products ? twb_bf16_to_f32(twb_f32_to_bf16(x)) : x; }
static float twb_ref_weight(const twb_gemm_args *g, ptrdiff_t item, ptrdiff_t k, ptrdiff_t j) {
    ptrdiff_t at = g->trans_b ? j * g->ldb + k : k * g->ldb + j;
    if (g->b_packed) at = twb_packed_number(g->n, g->k, j, k);
    return twb_ref_number(g, twb_number(g->b_type, g->b, at + item * g->stride_b));
}

/* A sum by lanes: number k goes into sum k mod 16, and those are added in halves. */
static float twb_ref_lanes(const twb_gemm_args *g, ptrdiff_t item, ptrdiff_t i, ptrdiff_t j) {
    float sum[16] = {0};
    ptrdiff_t k;
    int half, l;
    for (k = 0; k < g->k; k++) sum[k % 16] = fmaf(g->a[item * g->stride_a + i * g->lda + k], twb_ref_weight(g, item, k, j), sum[k % 16]);
    for (; k % 16; k++) sum[k % 16] += 0.0f;                 /* lanes without a number: -0 becomes 0 */
    for (half = 8; half > 0; half /= 2) for (l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

TWBDEF void twb_ref_gemm(const twb_gemm_args *g) {
    ptrdiff_t item, i, j, k, k0;
    if (g->m <= 0 || g->n <= 0) return;
    for (item = 0; item < (g->batch > 1 ? g->batch : 1); item++)
        for (i = 0; i < g->m; i++)
            for (j = 0; j < g->n; j++) {
                const float *a = g->k > 0 ? g->a + item * g->stride_a : NULL;      /* without a k there need not be an A */
                float *at = g->c + item * g->stride_c + i * g->ldc + j, c = 0;
                bool prior = g->beta < 0 || g->beta > 0;
                if (prior) c = g->beta * *at;
                k0 = 0;
                do {
                    float p = 0;
                    for (k = k0; k < k0 + TWB_KC && k < g->k; k++)
                        p = fmaf(twb_ref_number(g, g->trans_a ? a[k * g->lda + i] : a[i * g->lda + k]), twb_ref_weight(g, item, k, j), p);
                    if (twb_by_lanes(g)) { p = twb_ref_lanes(g, item, i, j); k0 = g->k; }
                    c = prior ? fmaf(g->alpha, p, c) : g->alpha * p;
                    prior = true;
                    k0 += TWB_KC;
                } while (k0 < g->k);
                *at = c;
            }
    if (g->epilogue)
        for (item = 0; item < (g->batch > 1 ? g->batch : 1); item++)
            twb_gemm_epilogue_plain(g->epilogue, g->c + item * g->stride_c, g->ldc, item * g->stride_c, 0, 0, g->m, g->n);
}

/* ---- [twb:05] quantized weights: the calls ---------------------------------------------------- */

TWBDEF size_t twb_quant_row_bytes(twb_type type, ptrdiff_t k) { return (size_t)(twb_quant_blocks(k) * twb_quant_block_bytes(type)); }

TWBDEF bool twb_quantize(const twb_cpu *cpu, twb_type type, ptrdiff_t rows, ptrdiff_t k, const float *x, ptrdiff_t ldx, void *blocks) {
    const ptrdiff_t count = twb_quant_blocks(k), bytes = twb_quant_block_bytes(type);
    bool good = true;
    ptrdiff_t r, b, c, l;
    (void)cpu;                                            /* read where there is more than one kernel set */
    for (r = 0; r < rows; r++)
        for (b = 0; b < count; b += 16) {                 /* sixteen blocks of a row at a time, one in each lane */
            float lanes[TWB_QUANT_BLOCK * 16] = {0};
            unsigned char made[16 * 34];
            const ptrdiff_t some = twb_min_size(count - b, 16);
            for (c = 0; c < some; c++)
                for (l = 0; l < TWB_QUANT_BLOCK && (b + c) * TWB_QUANT_BLOCK + l < k; l++) lanes[16 * l + c] = x[r * ldx + (b + c) * TWB_QUANT_BLOCK + l];
            TWB_PICK(cpu->isa, twb_quantize_blocks)(type, lanes, made);
            for (c = 0; c < some; c++) memcpy((unsigned char *)blocks + (r * count + b + c) * bytes, made + c * bytes, (size_t)bytes);
            for (c = 0; c < some; c++) if ((made[c * bytes + 1] & 0x7Cu) == 0x7Cu) good = false;
        }
    return good;
}

TWBDEF void twb_dequantize(twb_type type, ptrdiff_t rows, ptrdiff_t k, const void *blocks, float *y, ptrdiff_t ldy) {
    const unsigned char *from = (const unsigned char *)blocks;
    ptrdiff_t r, b, i;
    for (r = 0; r < rows; r++)
        for (b = 0; b < k; b += TWB_QUANT_BLOCK, from += twb_quant_block_bytes(type)) {
            const float d = twb_quant_scale(from);
            for (i = b; i < b + TWB_QUANT_BLOCK && i < k; i++) y[r * ldy + i] = d * (float)twb_quant_value(type, from, (int)(i - b));
        }
}

TWBDEF size_t twb_quant_packed_size(twb_type type, ptrdiff_t n, ptrdiff_t k) {
    return (size_t)twb_ceil_div(n, TWB_PANEL) * TWB_PANEL * twb_quant_row_bytes(type, k);
}

static void twb_quant_make_panels(const twb_cpu *cpu, twb_quant_pack_job *job) {
    job->queue.count = twb_ceil_div(job->n, TWB_PANEL);
    job->queue.workers = cpu->threads > 1 && job->n * job->k > 65536 ? (int)twb_min_size(cpu->threads, job->queue.count) : 1;
    twb_parallel(cpu, job->queue.workers, TWB_PICK(cpu->isa, twb_quant_pack_worker), job);
}
TWBDEF void twb_quant_pack(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, const void *blocks, void *packed) {
    twb_quant_pack_job job;
    memset(&job, 0, sizeof job);
    job.type = type; job.n = n; job.k = k;
    job.blocks = (const unsigned char *)blocks; job.packed = (unsigned char *)packed;
    twb_quant_make_panels(cpu, &job);
}
TWBDEF bool twb_quantize_packed(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, twb_type b_type, bool trans_b,
                                const void *b, ptrdiff_t ldb, void *packed) {
    twb_quant_pack_job job;
    memset(&job, 0, sizeof job);
    job.type = type; job.n = n; job.k = k;
    job.b_type = b_type; job.trans_b = trans_b; job.b = b; job.ldb = ldb; job.packed = (unsigned char *)packed;
    twb_quant_make_panels(cpu, &job);
    return twb_quant_finite(type, n, k, packed);
}
TWBDEF bool twb_quant_finite(twb_type type, ptrdiff_t n, ptrdiff_t k, const void *packed) {
    ptrdiff_t panel, b, c;
    for (panel = 0; panel < twb_ceil_div(n, TWB_PANEL); panel++)
        for (b = 0; b < twb_quant_blocks(k); b++)
            for (c = 0; c < TWB_PANEL; c++) {
                uint16_t half;
                memcpy(&half, (const char *)packed + twb_quant_at(type, k, panel, b) + 2 * c, sizeof half);
                if ((half & 0x7C00u) == 0x7C00u) return false;
            }
    return true;
}
TWBDEF void twb_quant_unpack_row(twb_type type, ptrdiff_t n, ptrdiff_t k, const void *packed, ptrdiff_t row, void *blocks) {
    ptrdiff_t b;
    (void)n;
    for (b = 0; b < twb_quant_blocks(k); b++)
        twb_quant_take(type, (const unsigned char *)packed + twb_quant_at(type, k, row / TWB_PANEL, b), row % TWB_PANEL,
                       (unsigned char *)blocks + b * twb_quant_block_bytes(type));
}

static void twb_quant_lookup(void *arg, int worker) {
    twb_quant_rows_job *job = (twb_quant_rows_job *)arg;
    ptrdiff_t task = -1, b, i;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count) {
        const ptrdiff_t row = job->ids ? job->ids[task] : task;
        for (b = 0; b < twb_quant_blocks(job->dim); b++) {
            const ptrdiff_t count = twb_min_size(job->dim - b * TWB_QUANT_BLOCK, TWB_QUANT_BLOCK);
            float *y = job->y + task * job->ld_row + b * TWB_QUANT_BLOCK * job->ld_number, numbers[TWB_QUANT_BLOCK];
            unsigned char block[34];
            twb_quant_take(job->type, job->packed + twb_quant_at(job->type, job->dim, row / TWB_PANEL, b), row % TWB_PANEL, block);
            twb_dequantize(job->type, 1, count, block, numbers, 0);
            for (i = 0; i < count; i++) y[i * job->ld_number] = numbers[i];
        }
    }
}
static void twb_quant_read_rows(const twb_cpu *cpu, twb_quant_rows_job *job, ptrdiff_t rows) {
    job->queue.count = rows;
    job->queue.workers = cpu->threads > 1 && rows * job->dim > 65536 ? (int)twb_min_size(cpu->threads, rows) : 1;
    twb_parallel(cpu, job->queue.workers, twb_quant_lookup, job);
}
TWBDEF void twb_quant_embedding(const twb_cpu *cpu, twb_type type, ptrdiff_t rows, ptrdiff_t dim, const int32_t *ids, const void *packed,
                                float *y, ptrdiff_t ldy) {
    twb_quant_rows_job job;
    memset(&job, 0, sizeof job);
    job.type = type; job.dim = dim; job.ids = ids; job.packed = (const unsigned char *)packed; job.y = y;
    job.ld_row = ldy; job.ld_number = 1;
    twb_quant_read_rows(cpu, &job, rows);
}
TWBDEF void twb_dequantize_packed(const twb_cpu *cpu, twb_type type, ptrdiff_t n, ptrdiff_t k, const void *packed, bool trans_b, float *y, ptrdiff_t ldy) {
    twb_quant_rows_job job;
    memset(&job, 0, sizeof job);
    job.type = type; job.dim = k; job.packed = (const unsigned char *)packed; job.y = y;
    job.ld_row = trans_b ? ldy : 1; job.ld_number = trans_b ? 1 : ldy;
    twb_quant_read_rows(cpu, &job, n);
}

/* whether the set in use has an instruction for four products of bytes */
static bool twb_quant_vnni(const twb_cpu *cpu) {
    switch (cpu->isa) {
    case TWB_ISA_AVX512: return cpu->vnni;
    case TWB_ISA_AVX2:   return cpu->avxvnni && TWB_X86_AVXVNNI;
    case TWB_ISA_NEON:   return cpu->sdot && TWB_ARM_SDOT;
    case TWB_ISA_PLAIN: case TWB_ISA_COUNT: break;
    }
    return false;
}

/* Tasks: few enough rows that A's bytes stay in the L2 while the panels pass; then, for several workers, columns and
   rows are halved until there are four tasks for each, and columns further where a task of few rows reads much. */
static size_t twb_quant_plan(const twb_cpu *cpu, const twb_gemm_args *g, twb_quant_job *job) {
    const double work = (double)g->m * (double)g->n * (double)g->k;
    ptrdiff_t rows = g->m > 0 ? g->m : 1, columns = twb_ceil_div(g->n, TWB_PANEL) * TWB_PANEL, most;
    const int workers = cpu->threads > 1 && work > 1e6 ? cpu->threads : 1;
    const ptrdiff_t beside = twb_quant_beside(g->m) * TWB_PANEL;
    memset(job, 0, sizeof *job);
    job->args = g;
    job->vnni = twb_quant_vnni(cpu);
    job->blocks = twb_quant_blocks(g->k);
    most = twb_ceil_div(TWB_QUANT_A_BYTES, job->blocks * TWB_QUANT_BLOCK + 1) + 16;
    most = twb_min_size(rows, most);
    rows = twb_ceil_div(rows, twb_ceil_div(rows, most));
    if (workers > 1) {
        while (twb_ceil_div(g->m, rows) * twb_ceil_div(g->n, columns) < 4 * (ptrdiff_t)workers) {
            if (columns > 2 * beside) columns = twb_ceil_div(columns, 2 * beside) * beside;
            else if (rows > 4 * TWB_QUANT_ROWS) rows = twb_ceil_div(rows, 2);
            else break;
        }
        while (g->m <= TWB_QUANT_ROWS && columns > beside && twb_ceil_div(g->n, columns) < TWB_QUANT_TASKS * (ptrdiff_t)workers
               && (size_t)columns * twb_quant_row_bytes(g->b_type, g->k) >= 2 * (size_t)TWB_QUANT_TASK) columns = twb_ceil_div(columns, 2 * beside) * beside;
    }
    job->task_rows = rows;
    job->task_columns = columns > 0 ? columns : (ptrdiff_t)TWB_PANEL;
    job->row_tasks = twb_ceil_div(g->m, rows);
    job->column_tasks = twb_ceil_div(g->n, job->task_columns);
    job->queue.count = job->row_tasks * job->column_tasks;
    job->queue.workers = (int)twb_min_size(workers, job->queue.count > 1 ? job->queue.count : 1);
    return (size_t)g->m * (size_t)job->blocks * (TWB_QUANT_BLOCK + sizeof *job->d + sizeof *job->start) + 64;
}
TWBDEF size_t twb_quant_gemm_scratch(const twb_cpu *cpu, const twb_gemm_args *args) {
    twb_quant_job job;
    if (args->m <= 0 || args->n <= 0) return 64;
    return twb_quant_plan(cpu, args, &job);
}
static void twb_quant_place(twb_quant_job *job, void *scratch) {
    const size_t blocks = (size_t)job->args->m * (size_t)job->blocks;
    job->d = twb_align64(scratch);
    job->start = (int32_t *)(void *)(job->d + blocks);
    job->q = (signed char *)(job->start + blocks);
}
TWBDEF void twb_quant_gemm(const twb_cpu *cpu, const twb_gemm_args *args, void *scratch) {
    twb_quant_job job, rows;
    if (args->m <= 0 || args->n <= 0) return;
    twb_quant_plan(cpu, args, &job);
    twb_quant_place(&job, scratch);
    rows = job;
    rows.queue.next = 0;
    rows.queue.count = twb_ceil_div(args->m, 16);
    rows.queue.workers = (int)twb_min_size(job.queue.workers, rows.queue.count);
    if (args->k > 0) twb_parallel(cpu, rows.queue.workers, TWB_PICK(cpu->isa, twb_quant_rows_worker), &rows);
    twb_parallel(cpu, job.queue.workers, TWB_PICK(cpu->isa, twb_quant_worker), &job);
}

TWBDEF void twb_ref_quant_gemm(const twb_gemm_args *g) {
    ptrdiff_t i, j, b, k;
    for (i = 0; i < g->m; i++)
        for (j = 0; j < g->n; j++) {
            float *c = g->c + i * g->ldc + j, p = 0;
            for (b = 0; b < twb_quant_blocks(g->k); b++) {
                unsigned char block[34];
                float top = 0, bad = 0;
                int32_t s = 0;
                twb_quant_take(g->b_type, (const unsigned char *)g->b + twb_quant_at(g->b_type, g->k, j / TWB_PANEL, b), j % TWB_PANEL, block);
                for (k = b * TWB_QUANT_BLOCK; k < (b + 1) * TWB_QUANT_BLOCK && k < g->k; k++) {
                    float a = g->a[i * g->lda + k];
                    top = fabsf(a) > top ? fabsf(a) : top;
                    bad += a - a;
                }
                for (k = b * TWB_QUANT_BLOCK; bad >= 0 && top >= 1e-30f && k < (b + 1) * TWB_QUANT_BLOCK && k < g->k; k++)
                    s += (int32_t)rintf(g->a[i * g->lda + k] * (TWB_QUANT_TOP / top)) * twb_quant_value(g->b_type, block, (int)(k - b * TWB_QUANT_BLOCK));
                p = fmaf((float)s, twb_quant_scale(block) * (bad >= 0 ? top >= 1e-30f ? top / TWB_QUANT_TOP : 0.0f : bad), p);
            }
            *c = g->beta < 0 || g->beta > 0 ? fmaf(g->alpha, p, g->beta * *c) : g->alpha * p;
        }
    if (g->epilogue) twb_gemm_epilogue_plain(g->epilogue, g->c, g->ldc, 0, 0, 0, g->m, g->n);
}

/* ---- [twb:06] head and cross-entropy: the call ----------------------------------------------- */

/* The three products' arguments, and how scratch is cut up; from the shape alone. */
typedef struct twb_loss_plan {
    ptrdiff_t rows, columns, ld;            /* of the logits held at a time */
    bool gradients;
    twb_gemm_args logits, d_hidden, d_weight;
    size_t at_index, at_state, at_hidden, at_logits, at_gemm, bytes;
} twb_loss_plan;

static size_t twb_loss_piece(size_t *bytes, size_t size) {
    size_t at = *bytes;
    *bytes = (at + size + 63) & ~(size_t)63;
    return at;
}

static void twb_loss_make_plan(const twb_cpu *cpu, const twb_linear_cross_entropy_args *args, twb_loss_plan *plan) {
    size_t gemm;
    memset(plan, 0, sizeof *plan);
    plan->gradients = args->d_hidden || args->d_weight;
    plan->rows = TWB_LOSS_ROWS;
    if (plan->gradients) plan->rows = TWB_LOGITS_BUDGET / (ptrdiff_t)sizeof(float) / (args->vocab > 0 ? args->vocab : 1);
    if (plan->rows < 16) plan->rows = 16;
    if (args->rows > 0) plan->rows = twb_ceil_div(args->rows, twb_ceil_div(args->rows, plan->rows));       /* blocks of equal size */
    plan->columns = plan->gradients ? args->vocab : twb_min_size(args->vocab, TWB_LOSS_COLUMNS);
    plan->ld = (plan->columns + 15) / 16 * 16 + 16;

    plan->logits.trans_b = true;
    plan->logits.m = plan->rows; plan->logits.n = plan->columns; plan->logits.k = args->hidden_size;
    plan->logits.b = args->weight; plan->logits.ldb = args->ld_weight; plan->logits.b_type = args->weight_type;
    plan->logits.ldc = plan->ld;
    plan->d_hidden.m = plan->rows; plan->d_hidden.n = args->hidden_size; plan->d_hidden.k = args->vocab;
    plan->d_hidden.lda = plan->ld;
    plan->d_hidden.b = args->weight; plan->d_hidden.ldb = args->ld_weight; plan->d_hidden.b_type = args->weight_type;
    plan->d_weight.trans_a = true;
    plan->d_weight.m = args->vocab; plan->d_weight.n = args->hidden_size; plan->d_weight.k = plan->rows;
    plan->d_weight.lda = plan->ld;
    plan->d_weight.c = args->d_weight; plan->d_weight.ldc = args->ld_d_weight; plan->d_weight.beta = 1;
    plan->logits.alpha = plan->d_hidden.alpha = plan->d_weight.alpha = 1;
    plan->logits.bf16_products = plan->d_hidden.bf16_products = plan->d_weight.bf16_products = args->bf16_products;
    /* fewer rows than planned may be cut otherwise: room for the widest blocks */
    gemm = (size_t)(cpu->threads > 1 ? cpu->threads : 1) * TWB_WORKER_FLOATS * sizeof(float) + 64;
    if (args->weight_type >= TWB_Q8_0) gemm = twb_quant_gemm_scratch(cpu, &plan->logits);
    plan->at_index = twb_loss_piece(&plan->bytes, (size_t)plan->rows * sizeof(ptrdiff_t));
    plan->at_state = twb_loss_piece(&plan->bytes, (size_t)plan->rows * sizeof(twb_row_loss));
    plan->at_hidden = twb_loss_piece(&plan->bytes, (size_t)plan->rows * (size_t)args->hidden_size * sizeof(float));
    plan->at_logits = twb_loss_piece(&plan->bytes, (size_t)plan->rows * (size_t)plan->ld * sizeof(float));
    plan->at_gemm = twb_loss_piece(&plan->bytes, gemm);
}

TWBDEF size_t twb_linear_cross_entropy_scratch(const twb_cpu *cpu, const twb_linear_cross_entropy_args *args) {
    twb_loss_plan plan;
    twb_loss_make_plan(cpu, args, &plan);
    return plan.bytes + 64;
}

TWBDEF void twb_linear_cross_entropy(const twb_cpu *cpu, const twb_linear_cross_entropy_args *args, void *scratch) {
    twb_loss_plan plan;
    twb_loss_job job;
    twb_linear_cross_entropy_args empty;
    unsigned char *base = (unsigned char *)twb_align64(scratch);
    ptrdiff_t *index, next = 0, first, r;
    float *gathered, *gemm_scratch;
    if (args->rows <= 0 || args->vocab <= 0) return;
    if (args->hidden_size <= 0) {                 /* as in twb_gemm: what has no number may be NULL */
        empty = *args;
        empty.hidden = twb_no_numbers; empty.weight = twb_no_numbers;
        empty.ld_hidden = empty.ld_weight = 0;
        args = &empty;
    }
    twb_loss_make_plan(cpu, args, &plan);
    index = (ptrdiff_t *)(void *)(base + plan.at_index);
    gathered = (float *)(void *)(base + plan.at_hidden);
    gemm_scratch = (float *)(void *)(base + plan.at_gemm);
    memset(&job, 0, sizeof job);
    job.args = args;
    job.index = index;
    job.state = (twb_row_loss *)(void *)(base + plan.at_state);
    job.logits = (float *)(void *)(base + plan.at_logits);
    job.ld = plan.ld;
    job.gradients = plan.gradients;
    for (;;) {
        size_t row_bytes = (size_t)args->hidden_size * sizeof(float);
        const float *hidden;
        ptrdiff_t ld_hidden, rows = 0;
        bool adjacent;
        /* the next rows that count */
        for (; next < args->rows && rows < plan.rows; next++) {
            if (args->labels[next] != args->ignore_index) index[rows++] = next;
            else {
                args->losses[next] = 0;
                if (args->d_hidden) memset(args->d_hidden + next * args->ld_d_hidden, 0, row_bytes);
            }
        }
        if (rows == 0) break;
        adjacent = index[rows - 1] - index[0] == rows - 1;
        if (!adjacent) for (r = 0; r < rows; r++) memcpy(gathered + r * args->hidden_size, args->hidden + index[r] * args->ld_hidden, row_bytes);
        hidden = adjacent ? args->hidden + index[0] * args->ld_hidden : gathered;
        ld_hidden = adjacent ? args->ld_hidden : args->hidden_size;

        for (r = 0; r < rows; r++) { job.state[r].max = -3.40282347e38f; job.state[r].sum = job.state[r].total = job.state[r].label = 0; }
        job.rows = rows;
        for (first = 0; first < args->vocab; first += plan.columns) {
            twb_gemm_args logits = plan.logits;
            logits.m = rows; logits.n = job.columns = twb_min_size(plan.columns, args->vocab - first);
            logits.a = hidden; logits.lda = ld_hidden;
            logits.c = job.logits;
            if (args->weight_type >= TWB_Q8_0) {          /* a chunk begins with a panel */
                logits.b = (const char *)args->weight + twb_quant_at(args->weight_type, args->hidden_size, first / TWB_PANEL, 0);
                twb_quant_gemm(cpu, &logits, gemm_scratch);
            } else {
                logits.b = (const char *)args->weight + first * args->ld_weight * (ptrdiff_t)twb_type_bytes(args->weight_type);
                twb_gemm(cpu, &logits, gemm_scratch);
            }
            job.first = first;
            job.queue.next = 0; job.queue.count = rows;
            job.queue.workers = cpu->threads > 1 && rows * job.columns > 16384 ? cpu->threads : 1;
            twb_parallel(cpu, job.queue.workers, TWB_PICK(cpu->isa, twb_loss_worker), &job);
        }
        for (r = 0; r < rows; r++) args->losses[index[r]] = twb_loss_of(args, &job.state[r]);

        if (args->d_weight) {
            plan.d_weight.k = rows;
            plan.d_weight.a = job.logits;
            plan.d_weight.b = hidden; plan.d_weight.ldb = ld_hidden;
            twb_gemm(cpu, &plan.d_weight, gemm_scratch);
        }
        if (args->d_hidden) {
            plan.d_hidden.m = rows;
            plan.d_hidden.a = job.logits;
            plan.d_hidden.c = adjacent ? args->d_hidden + index[0] * args->ld_d_hidden : gathered;
            plan.d_hidden.ldc = adjacent ? args->ld_d_hidden : args->hidden_size;
            twb_gemm(cpu, &plan.d_hidden, gemm_scratch);
            if (!adjacent) for (r = 0; r < rows; r++) memcpy(args->d_hidden + index[r] * args->ld_d_hidden, gathered + r * args->hidden_size, row_bytes);
        }
    }
}

TWBDEF void twb_ref_linear_cross_entropy(const twb_linear_cross_entropy_args *args, double *x) {
    ptrdiff_t r, v, c;
    twb_gemm_args w;
    memset(&w, 0, sizeof w);
    w.trans_b = true; w.b = args->weight; w.ldb = args->ld_weight; w.b_type = args->weight_type; w.bf16_products = args->bf16_products;
    for (r = 0; r < args->rows; r++) {
        const float *h = args->hidden + r * args->ld_hidden;
        double max = -1e300, sum = 0, total = 0, e = (double)args->label_smoothing, scale = (double)args->scale;
        int32_t label = args->labels[r];
        args->losses[r] = 0;
        if (args->d_hidden) for (c = 0; c < args->hidden_size; c++) args->d_hidden[r * args->ld_d_hidden + c] = 0;
        if (label == args->ignore_index) continue;
        for (v = 0; v < args->vocab; v++) {
            x[v] = 0;
            for (c = 0; c < args->hidden_size; c++) x[v] += (double)twb_ref_number(&w, h[c]) * (double)twb_ref_weight(&w, 0, c, v);
            max = x[v] > max ? x[v] : max;
            total += x[v];
        }
        for (v = 0; v < args->vocab; v++) sum += exp(x[v] - max);
        args->losses[r] = (float)((1 - e) * (max + log(sum) - x[label]) + e * (max + log(sum) - total / (double)args->vocab));
        for (v = 0; v < args->vocab; v++) {
            double d = scale * (exp(x[v] - max) / sum - (v == label ? 1 - e : 0) - e / (double)args->vocab);
            if (args->bf16_products) d = (double)twb_ref_number(&w, (float)d);
            for (c = 0; c < args->hidden_size; c++) {
                if (args->d_hidden) args->d_hidden[r * args->ld_d_hidden + c] += (float)(d * (double)twb_ref_weight(&w, 0, c, v));
                if (args->d_weight) args->d_weight[v * args->ld_d_weight + c] += (float)(d * (double)twb_ref_number(&w, h[c]));
            }
        }
    }
}
/* ---- [twb:07] rows: the calls, also of the chapters after it ------------------------------------------------------------------ */

/* Work shorter than this is done by the caller's thread alone: waking another takes some microseconds. */
#define TWB_THREAD_NANOSECONDS 50000.0

typedef struct twb_split { twb_span run; const void *job; ptrdiff_t count, step; } twb_split;

static void twb_split_task(void *arg, int index) {
    const twb_split *s = (const twb_split *)arg;
    ptrdiff_t begin = index * s->step;
    s->run(s->job, begin, twb_min_size(begin + s->step, s->count));
}

/* Runs a span over [0, count): in pieces of a multiple of `grain`, four for each thread, where `count` times
   `nanoseconds` (of one thread, roughly) makes it worth the while. */
static void twb_spread(const twb_cpu *cpu, twb_span run, const void *job, ptrdiff_t count, ptrdiff_t grain,
                       double nanoseconds) {
    twb_split split;
    if (count <= 0) return;
    split.run = run; split.job = job; split.count = count;
    split.step = count;
    if (cpu->threads > 1 && (double)count * nanoseconds >= TWB_THREAD_NANOSECONDS)
        split.step = twb_ceil_div(twb_ceil_div(count, 4 * (ptrdiff_t)cpu->threads), grain) * grain;
    if (split.step >= count) run(job, 0, count);
    else twb_parallel(cpu, (int)twb_ceil_div(count, split.step), twb_split_task, &split);
}
static void twb_run(const twb_cpu *cpu, twb_span_id id, const void *job, ptrdiff_t count, ptrdiff_t grain,
                    double nanoseconds) {
    twb_spread(cpu, TWB_PICK(cpu->isa, twb_spans)[id], job, count, grain, nanoseconds);
}

TWBDEF void twb_unary(const twb_cpu *cpu, twb_unary_op op, ptrdiff_t n, const float *x, float *y) {
    twb_array_job job;
    memset(&job, 0, sizeof job);
    job.op = (int)op; job.x = x; job.out = y;
    twb_run(cpu, TWB_SPAN_unary, &job, n, 16, op == TWB_SIN || op == TWB_COS ? 10.0 : op >= TWB_EXP ? 0.7 : 0.3);
}

TWBDEF void twb_unary_backward(const twb_cpu *cpu, twb_unary_op op, ptrdiff_t n, const float *x, const float *y,
                               const float *dy, float *dx, bool accumulate) {
    twb_array_job job;
    memset(&job, 0, sizeof job);
    job.op = (int)op; job.x = x; job.y = y; job.dy = dy; job.out = dx; job.accumulate = accumulate;
    twb_run(cpu, TWB_SPAN_unary_backward, &job, n, 16, op == TWB_SIN || op == TWB_COS ? 10.0 : 1.0);
}

TWBDEF twb_unary_op twb_activation_op(twb_activation act) {
    switch (act) {
    case TWB_ACT_RELU:       return TWB_RELU;
    case TWB_ACT_GELU:       return TWB_GELU;
    case TWB_ACT_GELU_TANH:  return TWB_GELU_TANH;
    case TWB_ACT_SILU:       return TWB_SILU;
    case TWB_ACT_TANH:       return TWB_TANH;
    case TWB_ACT_QUICK_GELU: return TWB_QUICK_GELU;
    case TWB_ACT_SIGMOID:    return TWB_SIGMOID;
    case TWB_ACT_NONE: case TWB_ACT_COUNT: break;
    }
    return TWB_COPY;
}

TWBDEF void twb_activation_backward(const twb_cpu *cpu, twb_activation act, ptrdiff_t n, const float *pre,
                                    const float *dy, float *dx, bool accumulate) {
    twb_array_job job;
    memset(&job, 0, sizeof job);
    job.op = (int)act; job.x = pre; job.dy = dy; job.out = dx; job.accumulate = accumulate;
    twb_run(cpu, TWB_SPAN_activation_backward, &job, n, 16, 1.0);
}

TWBDEF void twb_binary(const twb_cpu *cpu, twb_binary_op op, ptrdiff_t n, const float *a, ptrdiff_t a_step,
                       const float *b, ptrdiff_t b_step, float *y) {
    twb_array_job job;
    memset(&job, 0, sizeof job);
    job.op = (int)op; job.x = a; job.x_step = a_step; job.y = b; job.y_step = b_step; job.out = y;
    twb_run(cpu, TWB_SPAN_binary, &job, n, 16, 0.4);
}

TWBDEF void twb_axpby(const twb_cpu *cpu, ptrdiff_t n, float alpha, const float *x, float beta, float *y) {
    twb_array_job job;
    memset(&job, 0, sizeof job);
    job.x = x; job.out = y; job.alpha = alpha; job.beta = beta;
    twb_run(cpu, TWB_SPAN_axpby, &job, n, 16, 0.4);
}

TWBDEF void twb_fill(const twb_cpu *cpu, ptrdiff_t n, float value, float *y) {
    twb_axpby(cpu, n, value, NULL, 0.0f, y);
}

/* chunks' results, TWB_SUM_CHUNKS at a time, added in order */
static double twb_reduce(const twb_cpu *cpu, twb_span_id id, ptrdiff_t n, const float *x, const float *y) {
    float results[TWB_SUM_CHUNKS];
    const ptrdiff_t most = (ptrdiff_t)TWB_SUM_CHUNK * TWB_SUM_CHUNKS;
    double total = 0;
    ptrdiff_t at, i;
    for (at = 0; at < n; at += most) {
        twb_sum_job job;
        ptrdiff_t chunks;
        job.x = x + at; job.y = y ? y + at : NULL; job.n = twb_min_size(most, n - at); job.results = results;
        chunks = twb_ceil_div(job.n, TWB_SUM_CHUNK);
        twb_run(cpu, id, &job, chunks, 1, 0.2 * (double)TWB_SUM_CHUNK);
        for (i = 0; i < chunks; i++) {
            double r = (double)results[i];
            if (id != TWB_SPAN_max_abs) total += r;
            else if (!(r <= total) && total >= 0) total = r;               /* NaN gets in and stays */
        }
    }
    return total;
}
TWBDEF double twb_sum(const twb_cpu *cpu, ptrdiff_t n, const float *x) {
        return twb_reduce(cpu, TWB_SPAN_sum, n, x, NULL); }
TWBDEF double twb_dot(const twb_cpu *cpu, ptrdiff_t n, const float *x, const float *y) {
        return twb_reduce(cpu, TWB_SPAN_dot, n, x, y); }
TWBDEF double twb_sum_squares(const twb_cpu *cpu, ptrdiff_t n, const float *x) {
        return twb_reduce(cpu, TWB_SPAN_dot, n, x, x); }
TWBDEF float  twb_max_abs(const twb_cpu *cpu, ptrdiff_t n, const float *x) {
        return (float)twb_reduce(cpu, TWB_SPAN_max_abs, n, x, NULL); }

/* ---- rows */
static twb_rows_job twb_rows(ptrdiff_t rows, ptrdiff_t cols) {
    twb_rows_job job;
    memset(&job, 0, sizeof job);
    job.rows = rows; job.cols = cols;
    return job;
}

TWBDEF void twb_column_sums(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                            float *y, bool accumulate) {
    twb_rows_job job = twb_rows(rows, cols);
    job.dy = x; job.lddy = ldx; job.dbias = y;
    if (!accumulate) twb_fill(cpu, cols, 0.0f, y);
    twb_run(cpu, TWB_SPAN_norm_parameters, &job, twb_ceil_div(cols, 64), 1, 10.0 * (double)rows);
}

static void twb_any_softmax(const twb_cpu *cpu, bool log_form, ptrdiff_t rows, ptrdiff_t cols, const float *x,
                            ptrdiff_t ldx, float *y, ptrdiff_t ldy) {
    twb_rows_job job = twb_rows(rows, cols);
    job.x = x; job.ldx = ldx; job.out = y; job.ld_out = ldy; job.log_form = log_form;
    if (cols > 0) twb_run(cpu, TWB_SPAN_softmax, &job, rows, 1, (double)cols);
}
TWBDEF void twb_softmax(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx, float *y,
                        ptrdiff_t ldy) {
    twb_any_softmax(cpu, false, rows, cols, x, ldx, y, ldy);
}
TWBDEF void twb_log_softmax(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                            float *y, ptrdiff_t ldy) {
    twb_any_softmax(cpu, true, rows, cols, x, ldx, y, ldy);
}

static void twb_any_softmax_backward(const twb_cpu *cpu, bool log_form, ptrdiff_t rows, ptrdiff_t cols, const float *y,
                                     ptrdiff_t ldy, const float *dy, ptrdiff_t lddy, float *dx, ptrdiff_t lddx,
                                     bool accumulate) {
    twb_rows_job job = twb_rows(rows, cols);
    job.y = y; job.ldy = ldy; job.dy = dy; job.lddy = lddy; job.out = dx; job.ld_out = lddx;
    job.log_form = log_form; job.accumulate = accumulate;
    twb_run(cpu, TWB_SPAN_softmax_backward, &job, rows, 1, 0.5 * (double)cols);
}
TWBDEF void twb_softmax_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *y, ptrdiff_t ldy,
                                 const float *dy, ptrdiff_t lddy, float *dx, ptrdiff_t lddx, bool accumulate) {
    twb_any_softmax_backward(cpu, false, rows, cols, y, ldy, dy, lddy, dx, lddx, accumulate);
}
TWBDEF void twb_log_softmax_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *y, ptrdiff_t ldy,
                                     const float *dy, ptrdiff_t lddy, float *dx, ptrdiff_t lddx, bool accumulate) {
    twb_any_softmax_backward(cpu, true, rows, cols, y, ldy, dy, lddy, dx, lddx, accumulate);
}

TWBDEF void twb_layer_norm(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                           const float *weight, const float *bias, float eps, float *y, ptrdiff_t ldy, float *mean,
                           float *rstd) {
    twb_rows_job job = twb_rows(rows, cols);
    job.x = x; job.ldx = ldx; job.weight = weight; job.bias = bias; job.eps = eps; job.out = y; job.ld_out = ldy;
    job.mean = mean; job.rstd = rstd;
    twb_run(cpu, TWB_SPAN_norm, &job, cols > 0 ? rows : 0, 1, 0.4 * (double)cols);
}
TWBDEF void twb_add_layer_norm(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x,
                               const float *residual, float *sum, const float *weight, const float *bias, float eps,
                               float *y, float *mean, float *rstd) {
    twb_rows_job job = twb_rows(rows, cols);
    job.x = x; job.ldx = cols; job.weight = weight; job.bias = bias; job.eps = eps; job.out = y; job.ld_out = cols;
    job.mean = mean; job.rstd = rstd;
    job.residual = residual; job.sum = sum;
    twb_run(cpu, TWB_SPAN_norm, &job, cols > 0 ? rows : 0, 1, 0.5 * (double)cols);
}
TWBDEF void twb_rms_norm(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                         const float *weight, float eps, float *y, ptrdiff_t ldy, float *rstd) {
    twb_rows_job job = twb_rows(rows, cols);
    job.x = x; job.ldx = ldx; job.weight = weight; job.eps = eps; job.out = y; job.ld_out = ldy; job.rstd = rstd;
    job.root_mean_square = true;
    twb_run(cpu, TWB_SPAN_norm, &job, cols > 0 ? rows : 0, 1, 0.4 * (double)cols);
}

TWBDEF void twb_layer_norm_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                                    const float *dy, ptrdiff_t lddy, const float *weight, const float *mean,
                                    const float *rstd, float *dx, ptrdiff_t lddx, bool accumulate_dx, float *dweight,
                                    float *dbias) {
    twb_rows_job job = twb_rows(rows, cols);
    ptrdiff_t block = TWB_NORM_ROWS * (cpu->threads > 1 ? 8 * (ptrdiff_t)cpu->threads : 1), r;
    job.ldx = ldx; job.lddy = lddy; job.weight = weight; job.ld_out = lddx; job.accumulate = accumulate_dx;
    job.dweight = dweight; job.dbias = dbias;
    job.root_mean_square = mean == NULL;
    for (r = 0; r < rows && cols > 0; r += block) {     /* rows are still in the cache when they are read for the second time */
        job.rows = twb_min_size(block, rows - r);
        job.x = x + r * ldx; job.dy = dy + r * lddy; job.given_mean = mean ? mean + r : NULL; job.given_rstd = rstd + r;
        if (dweight || dbias)                   /* first: dx may be dy */
            twb_run(cpu, TWB_SPAN_norm_parameters, &job, twb_ceil_div(cols, 64), 1, 20.0 * (double)job.rows);
        job.out = dx ? dx + r * lddx : NULL;
        if (dx) twb_run(cpu, TWB_SPAN_norm_backward, &job, job.rows, 1, 0.5 * (double)cols);
    }
}
TWBDEF void twb_rms_norm_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t cols, const float *x, ptrdiff_t ldx,
                                  const float *dy, ptrdiff_t lddy, const float *weight, const float *rstd, float *dx,
                                  ptrdiff_t lddx, bool accumulate_dx, float *dweight) {
    twb_layer_norm_backward(cpu, rows, cols, x, ldx, dy, lddy, weight, NULL, rstd, dx, lddx, accumulate_dx, dweight,
                            NULL);
}

TWBDEF void twb_embedding(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t dim, const int32_t *ids, const void *table,
                          twb_type type, ptrdiff_t ld, float *y, ptrdiff_t ldy, bool accumulate) {
    twb_rows_job job = twb_rows(rows, dim);
    job.ids = ids; job.table = table; job.type = type; job.ld_table = ld; job.out = y; job.ld_out = ldy;
    job.accumulate = accumulate;
    twb_run(cpu, TWB_SPAN_embedding, &job, rows, 1, 0.3 * (double)dim);
}
TWBDEF void twb_embedding_backward(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t dim, const int32_t *ids,
                                   const float *dy, ptrdiff_t lddy, float *dtable, ptrdiff_t ld) {
    twb_rows_job job = twb_rows(rows, dim);
    job.ids = ids; job.dy = dy; job.lddy = lddy; job.out = dtable; job.ld_out = ld;
    twb_run(cpu, TWB_SPAN_embedding_backward, &job, twb_ceil_div(dim, 16), 1, 5.0 * (double)rows);
}

TWBDEF void twb_cross_entropy(const twb_cpu *cpu, ptrdiff_t rows, ptrdiff_t classes, const float *logits, ptrdiff_t ld,
                              const int32_t *labels, int32_t ignore_index, float label_smoothing, float *losses,
                              float *dlogits, ptrdiff_t ld_d, float scale) {
    twb_rows_job job = twb_rows(rows, classes);
    job.x = logits; job.ldx = ld; job.ids = labels; job.ignore_index = ignore_index; job.smoothing = label_smoothing;
    job.losses = losses; job.out = dlogits; job.ld_out = ld_d; job.scale = scale;
    twb_run(cpu, TWB_SPAN_cross_entropy, &job, rows, 1, (double)classes);
}

TWBDEF void twb_rope(const twb_cpu *cpu, ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t head_dim,
                     ptrdiff_t rotary_dim, bool interleaved, const int32_t *positions, float theta, float *x,
                     ptrdiff_t x_batch, ptrdiff_t x_token, ptrdiff_t x_head, bool inverse) {
    twb_rope_job job;
    (void)head_dim;
    job.tokens = tokens; job.heads = heads; job.rotary_dim = rotary_dim; job.interleaved = interleaved;
    job.inverse = inverse;
    job.positions = positions; job.theta = theta; job.x = x; job.x_batch = x_batch; job.x_token = x_token;
    job.x_head = x_head;
    twb_run(cpu, TWB_SPAN_rope, &job, batch * tokens, 1, (double)rotary_dim * (10.0 + 0.5 * (double)heads));
}

TWBDEF void twb_batch_norm(const twb_cpu *cpu, const twb_batch_norm_args *args, const float *x, float *y) {
    twb_batch_norm_job job;
    memset(&job, 0, sizeof job);
    job.args = *args; job.x = x; job.out = y;
    twb_run(cpu, TWB_SPAN_batch_norm, &job, args->channels, 1, (double)args->batch * (double)args->size);
}
TWBDEF void twb_batch_norm_backward(const twb_cpu *cpu, const twb_batch_norm_args *args, const float *x,
                                    const float *dy, float *dx, bool accumulate_dx, float *dweight, float *dbias) {
    twb_batch_norm_job job;
    memset(&job, 0, sizeof job);
    job.args = *args; job.x = x; job.dy = dy; job.out = dx; job.accumulate = accumulate_dx; job.dweight = dweight;
    job.dbias = dbias;
    twb_run(cpu, TWB_SPAN_batch_norm_backward, &job, args->channels, 1, (double)args->batch * (double)args->size);
}

/* ---- optimizers, conversions, random numbers */
TWBDEF void twb_adamw(const twb_cpu *cpu, ptrdiff_t n, float *p, float *g, float *m, float *v,
                      const twb_adamw_args *args) {
    twb_optimizer_job job;
    memset(&job, 0, sizeof job);
    job.p = p; job.g = g; job.m = m; job.v = v; job.adamw = *args;
    twb_run(cpu, TWB_SPAN_adamw, &job, n, 16, 1.5);
}
TWBDEF void twb_sgd(const twb_cpu *cpu, ptrdiff_t n, float *p, float *g, float *m, const twb_sgd_args *args) {
    twb_optimizer_job job;
    memset(&job, 0, sizeof job);
    job.p = p; job.g = g; job.m = m; job.sgd = *args;
    twb_run(cpu, TWB_SPAN_sgd, &job, n, 16, 1.0);
}
TWBDEF void twb_lion(const twb_cpu *cpu, ptrdiff_t n, float *p, float *g, float *m, const twb_lion_args *args) {
    twb_optimizer_job job;
    memset(&job, 0, sizeof job);
    job.p = p; job.g = g; job.m = m; job.lion = *args;
    twb_run(cpu, TWB_SPAN_lion, &job, n, 16, 1.0);
}

TWBDEF void twb_convert(const twb_cpu *cpu, ptrdiff_t n, const void *src, twb_type src_type, void *dst,
                        twb_type dst_type) {
    twb_convert_job job;
    job.src = src; job.dst = dst; job.src_type = src_type; job.dst_type = dst_type;
    twb_run(cpu, TWB_SPAN_convert, &job, n, 16, 0.4);
}

TWBDEF uint32_t twb_random_bits(uint64_t seed, uint64_t counter) {
    return twb_mix(twb_stream_of(seed, counter >> 32), (uint32_t)(counter & 0xFFFFFFFFu));
}
static void twb_random_array(const twb_cpu *cpu, twb_span_id id, ptrdiff_t n, const float *x, float *y, float alpha,
                             float beta, uint64_t seed, uint64_t offset) {
    twb_array_job job;
    memset(&job, 0, sizeof job);
    job.x = x; job.out = y; job.alpha = alpha; job.beta = beta; job.seed = seed; job.offset = offset;
    twb_run(cpu, id, &job, n, 32, 1.0);
}
TWBDEF void twb_dropout(const twb_cpu *cpu, ptrdiff_t n, const float *x, float *y, float p, uint64_t seed,
                        uint64_t offset) {
    twb_random_array(cpu, TWB_SPAN_dropout, n, x, y, p, 0.0f, seed, offset);
}
TWBDEF void twb_random_uniform(const twb_cpu *cpu, ptrdiff_t n, float *y, float low, float high, uint64_t seed) {
    twb_random_array(cpu, TWB_SPAN_uniform, n, NULL, y, low, high, seed, 0);
}
TWBDEF void twb_random_normal(const twb_cpu *cpu, ptrdiff_t n, float *y, float mean, float std, uint64_t seed) {
    twb_random_array(cpu, TWB_SPAN_normal, n, NULL, y, mean, std, seed, 0);
}
/* ---- [twb:08] attention: the calls ---------------------------------------------------------------------- */
/* grads: NULL for the forward pass */
static void twb_attention_plan(const twb_cpu *cpu, const twb_attention_args *args, const twb_attention_grads *grads,
                               twb_attention_job *job) {
    twb_attention_args *a = &job->a;
    const bool backward = grads != NULL;
    double work;
    size_t width;
    ptrdiff_t workers = cpu->threads > 1 ? cpu->threads : 1, group;
    memset(job, 0, sizeof *job);
    *a = *args;
    group = a->heads / (a->kv_heads > 0 ? a->kv_heads : 1);
    if (!backward && a->tq == 1 && group > 1 && !a->prefix) {
        /* One query of grouped heads: the heads of a group are the rows of one strip, and their keys are read once. */
        a->tk = twb_attention_visible(a, 0, 0);
        a->causal = false;
        a->tq = group; a->heads = a->kv_heads;
        a->q_row = a->q_head; a->q_head *= group;
        a->out_row = a->out_head; a->out_head *= group;
        a->bias_row = a->bias_head; a->bias_head *= group;
        a->mask_row = 0;
    }
    job->depth = (a->head_dim + 15) / 16 * 16;
    width = (size_t)job->depth;
    work = (backward ? 10.0 : 4.0) * (double)a->batch * (double)a->heads
         * (double)a->tq * (double)a->tk * (double)a->head_dim;
    if (backward) {
        job->g = *grads;
        job->task_batches = grads->d_bias && a->bias_batch == 0 && a->batch > 0 ? a->batch : 1;
        job->task_heads = grads->d_bias && a->bias_head == 0 && a->kv_heads > 0 ? a->kv_heads : 1;
        job->queue.count = a->batch / job->task_batches * (a->kv_heads / job->task_heads);
        job->worker_floats = (size_t)TWB_ATT_BACK_KEYS * width * 5 + (size_t)TWB_ATT_BACK_QUERIES * width * 2
                           + (size_t)TWB_ATT_BACK_QUERIES * TWB_ATT_BACK_STRIP * 2 + (size_t)a->tq;
    } else {
        job->row_blocks = twb_ceil_div(a->tq, TWB_ATT_QUERIES);
        job->queue.count = a->batch * a->heads * job->row_blocks;
        job->worker_floats = (size_t)TWB_ATT_KEYS * width * 2 + (size_t)TWB_ATT_GROUP * TWB_ATT_STRIP
                + (size_t)TWB_ATT_QUERIES / TWB_ATT_GROUP * 32;
    }
    job->worker_floats = (job->worker_floats + 31) / 16 * 16;
    job->fetch = (double)a->batch * (double)a->head_dim * (double)(a->heads * a->tq + 2 * a->kv_heads * a->tk) > 1e6;
    /* Some 50 microseconds, or with a team that stands ready 5.  One query reads much for little work. */
    if (work * (a->tq == 1 ? 4.0 : 1.0) < (cpu->team ? 4e5 : 4e6)) workers = 1;
    job->queue.workers = (int)twb_min_size(workers, job->queue.count > 0 ? job->queue.count : 1);
}
/* Enough for as many workers as there can be: the call may come with a team, and then uses more of them. */
static size_t twb_attention_room(const twb_cpu *cpu, const twb_attention_job *job) {
    return (size_t)(cpu->threads > 1 ? twb_min_size(cpu->threads, job->queue.count > 0 ? job->queue.count : 1) : 1) * job->worker_floats * sizeof(float) + 64;
}

static void twb_attention_run(const twb_cpu *cpu, twb_attention_job *job, void *scratch) {
    job->scratch = twb_align64(scratch);
    if (job->queue.count > 0) twb_parallel(cpu, job->queue.workers, TWB_PICK(cpu->isa, twb_attention_worker), job);
}

TWBDEF size_t twb_attention_scratch(const twb_cpu *cpu, const twb_attention_args *args) {
    twb_attention_job job;
    twb_attention_plan(cpu, args, NULL, &job);
    return twb_attention_room(cpu, &job);
}
TWBDEF void twb_attention(const twb_cpu *cpu, const twb_attention_args *args, void *scratch) {
    twb_attention_job job;
    twb_attention_plan(cpu, args, NULL, &job);
    twb_attention_run(cpu, &job, scratch);
}

TWBDEF size_t twb_attention_backward_scratch(const twb_cpu *cpu, const twb_attention_args *args,
                                             const twb_attention_grads *grads) {
    twb_attention_job job;
    twb_attention_plan(cpu, args, grads, &job);
    return twb_attention_room(cpu, &job);
}
TWBDEF void twb_attention_backward(const twb_cpu *cpu, const twb_attention_args *args,
                                   const twb_attention_grads *grads, void *scratch) {
    twb_attention_job job;
    twb_attention_plan(cpu, args, grads, &job);
    twb_attention_run(cpu, &job, scratch);
}
/* ==== [twb:09] convolution, pooling, batch norm ===============================================

   A convolution is a matrix product in disguise.  Write the patch under the kernel at each place of the output as a
   column:

       columns [in_channels kernel_h kernel_w, places]     y [out_channels, places] = weight [out_channels, in kh kw]
       columns

   The column matrix repeats each pixel kernel_h kernel_w times, so it is made for as many rows of the output as
   fit TWB_CONV_FLOATS and used while it is warm.  A 1x1 kernel needs none: x itself is the matrix.  Backward:
   dweight = dy columns^T, and dx collects the columns of weight^T dy where they came from.
   Groups are products of their own.
   ============================================================================================ */
enum { TWB_CONV_FLOATS = 1 << 18 };         /* 1 MiB */

typedef struct twb_conv_job {
    twb_conv2d_args a;
    ptrdiff_t out_h, out_w, in, out, patch; /* in, out: channels of a group; patch: in kernel_h kernel_w */
    ptrdiff_t block, row0, rows;            /* output rows in a full block; the block at hand */
    const float *x;                         /* one image's channels of one group */
    float *dx, *columns;
    bool direct;                            /* 1x1, stride 1, no padding */
} twb_conv_job;

TWBDEF ptrdiff_t twb_conv2d_out_height(const twb_conv2d_args *a) {
    return a->stride_h < 1 ? 0 : (a->height + 2 * a->pad_h - a->dilation_h * (a->kernel_h - 1) - 1) / a->stride_h + 1;
}
TWBDEF ptrdiff_t twb_conv2d_out_width(const twb_conv2d_args *a) {
    return a->stride_w < 1 ? 0 : (a->width + 2 * a->pad_w - a->dilation_w * (a->kernel_w - 1) - 1) / a->stride_w + 1;
}

static void twb_conv_plan(const twb_conv2d_args *a, twb_conv_job *job) {
    memset(job, 0, sizeof *job);
    job->a = *a;
    job->out_h = twb_conv2d_out_height(a);
    job->out_w = twb_conv2d_out_width(a);
    job->in = a->in_channels / a->groups;
    job->out = a->out_channels / a->groups;
    job->patch = job->in * a->kernel_h * a->kernel_w;
    job->direct = a->kernel_h == 1 && a->kernel_w == 1 && a->stride_h == 1 && a->stride_w == 1 && a->pad_h == 0
            && a->pad_w == 0;
    job->block = job->out_h;
    if (!job->direct && job->patch * job->out_w > 0) job->block = twb_min_size(TWB_CONV_FLOATS / (job->patch * job->out_w), job->out_h);
    if (job->block < 1) job->block = 1;
}

/* The products over `rows` rows of the output; operands are filled in by the caller. */
typedef enum twb_conv_product { TWB_CONV_FORWARD, TWB_CONV_DWEIGHT, TWB_CONV_DX } twb_conv_product;
static twb_gemm_args twb_conv_gemm(const twb_conv_job *job, twb_conv_product product, ptrdiff_t rows) {
    const ptrdiff_t places = job->out_h * job->out_w, n = rows * job->out_w;
    twb_gemm_args g;
    memset(&g, 0, sizeof g);
    g.alpha = 1.0f;
    g.beta = product == TWB_CONV_DX && !job->direct ? 0.0f : 1.0f;
    if (product == TWB_CONV_FORWARD) { g.m = job->out; g.k = job->patch; g.n = n; g.lda = job->patch; g.ldb = n;
        g.ldc = places; }
    if (product == TWB_CONV_DWEIGHT) { g.m = job->out; g.k = n; g.n = job->patch; g.lda = places; g.ldb = n;
        g.trans_b = true; g.ldc = job->patch; }
    if (product == TWB_CONV_DX) { g.m = job->patch; g.k = job->out; g.n = n; g.lda = job->patch; g.trans_a = true;
        g.ldb = places; g.ldc = n; }
    return g;
}

TWBDEF size_t twb_conv2d_scratch(const twb_cpu *cpu, const twb_conv2d_args *args) {
    twb_conv_job job;
    size_t most = 0, size;
    int product, part;
    twb_conv_plan(args, &job);
    for (product = 0; product < 3; product++)
        for (part = 0; part < 2; part++) {                  /* a whole block of output rows, and the last one */
            const ptrdiff_t rows = part ? job.out_h % job.block : job.block;
            twb_gemm_args g = twb_conv_gemm(&job, (twb_conv_product)product, rows);
            if (rows <= 0) continue;
            size = twb_gemm_scratch(cpu, &g);
            if (size > most) most = size;
        }
    return most + (job.direct ? 0 : (size_t)(job.patch * job.block * job.out_w) * sizeof(float)) + 128;
}

/* The part of output row r, for kernel place (u, v), that lies inside the image: columns [*first, *end); returns that
   place's input row, or -1 where it is in the padding.  Input column = output column stride + *offset. */
static ptrdiff_t twb_conv_reach(const twb_conv2d_args *a, ptrdiff_t out_w, ptrdiff_t r, ptrdiff_t u, ptrdiff_t v,
                                ptrdiff_t *offset, ptrdiff_t *first, ptrdiff_t *end) {
    const ptrdiff_t y = r * a->stride_h - a->pad_h + u * a->dilation_h;
    *offset = v * a->dilation_w - a->pad_w;
    *first = *offset < 0 ? twb_min_size((-*offset + a->stride_w - 1) / a->stride_w, out_w) : 0;
    *end = *offset >= a->width ? 0 : twb_min_size((a->width - 1 - *offset) / a->stride_w + 1, out_w);
    if (*end < *first) *end = *first;
    return y >= 0 && y < a->height ? y : -1;
}

/* rows [begin, end) of the column matrix */
static void twb_conv_to_columns(const void *arg, ptrdiff_t begin, ptrdiff_t end) {
    const twb_conv_job *job = (const twb_conv_job *)arg;
    const twb_conv2d_args *a = &job->a;
    ptrdiff_t row, r, c, offset, first, stop;
    for (row = begin; row < end; row++) {
        const ptrdiff_t v = row % a->kernel_w, u = row / a->kernel_w % a->kernel_h,
                channel = row / (a->kernel_w * a->kernel_h);
        for (r = 0; r < job->rows; r++) {
            float *to = job->columns + (row * job->rows + r) * job->out_w;
            const ptrdiff_t y = twb_conv_reach(a, job->out_w, job->row0 + r, u, v, &offset, &first, &stop);
            const float *from = job->x + (channel * a->height + (y < 0 ? 0 : y)) * a->width;
            if (y < 0) first = stop = job->out_w;
            for (c = 0; c < first; c++) to[c] = 0.0f;
            if (a->stride_w == 1) { if (stop > first)
                memcpy(to + first, from + first + offset, (size_t)(stop - first) * sizeof *to); }
            else for (c = first; c < stop; c++) to[c] = from[c * a->stride_w + offset];
            for (c = stop; c < job->out_w; c++) to[c] = 0.0f;
        }
    }
}

/* channels [begin, end): what the columns hold is added to the pixels they came from */
static void twb_conv_from_columns(const void *arg, ptrdiff_t begin, ptrdiff_t end) {
    const twb_conv_job *job = (const twb_conv_job *)arg;
    const twb_conv2d_args *a = &job->a;
    ptrdiff_t channel, u, v, r, c, offset, first, stop;
    for (channel = begin; channel < end; channel++)
        for (u = 0; u < a->kernel_h; u++)
            for (v = 0; v < a->kernel_w; v++)
                for (r = 0; r < job->rows; r++) {
                    const float *from = job->columns + (((channel * a->kernel_h + u) * a->kernel_w + v) * job->rows
                                                        + r) * job->out_w;
                    const ptrdiff_t y = twb_conv_reach(a, job->out_w, job->row0 + r, u, v, &offset, &first, &stop);
                    float *to = job->dx + (channel * a->height + (y < 0 ? 0 : y)) * a->width;
                    if (y >= 0) for (c = first; c < stop; c++) to[c * a->stride_w + offset] += from[c];
                }
}

TWBDEF void twb_conv2d(const twb_cpu *cpu, const twb_conv2d_args *args, const float *x, const float *weight,
                       const float *bias, float *y, void *scratch) {
    const ptrdiff_t image = args->in_channels * args->height * args->width;
    twb_conv_job job;
    ptrdiff_t places, b, group, o;
    void *gemm_scratch = scratch;
    twb_conv_plan(args, &job);
    places = job.out_h * job.out_w;
    if (!job.direct) { job.columns = twb_align64(scratch);
        gemm_scratch = job.columns + job.patch * job.block * job.out_w; }
    for (b = 0; b < args->batch; b++)
        for (group = 0; group < args->groups; group++) {
            float *to = y + (b * args->out_channels + group * job.out) * places;
            job.x = x + b * image + group * job.in * args->height * args->width;
            for (o = 0; o < job.out; o++) twb_fill(cpu, places, bias ? bias[group * job.out + o] : 0.0f, to
                                                   + o * places);
            for (job.row0 = 0; job.row0 < job.out_h; job.row0 += job.block) {
                twb_gemm_args g;
                job.rows = twb_min_size(job.block, job.out_h - job.row0);
                if (!job.direct) twb_spread(cpu, twb_conv_to_columns, &job, job.patch, 1,
                                            0.5 * (double)(job.rows * job.out_w));
                g = twb_conv_gemm(&job, TWB_CONV_FORWARD, job.rows);
                g.a = weight + group * job.out * job.patch;
                g.b = job.direct ? job.x : job.columns;
                g.c = to + job.row0 * job.out_w;
                twb_gemm(cpu, &g, gemm_scratch);
            }
        }
}

TWBDEF void twb_conv2d_backward(const twb_cpu *cpu, const twb_conv2d_args *args, const float *x, const float *weight,
                                const float *dy, float *dx, bool accumulate_dx, float *dweight, float *dbias,
                                void *scratch) {
    const ptrdiff_t image = args->in_channels * args->height * args->width;
    twb_conv_job job;
    ptrdiff_t places, b, group, o;
    void *gemm_scratch = scratch;
    twb_conv_plan(args, &job);
    places = job.out_h * job.out_w;
    if (!job.direct) { job.columns = twb_align64(scratch);
        gemm_scratch = job.columns + job.patch * job.block * job.out_w; }
    if (dx && !accumulate_dx) twb_fill(cpu, args->batch * image, 0.0f, dx);
    for (b = 0; b < args->batch; b++)
        for (group = 0; group < args->groups; group++) {
            const float *from = dy + (b * args->out_channels + group * job.out) * places;
            const ptrdiff_t at = b * image + group * job.in * args->height * args->width;
            twb_gemm_args g;
            job.x = x ? x + at : NULL;
            job.dx = dx ? dx + at : NULL;
            for (job.row0 = 0; job.row0 < job.out_h; job.row0 += job.block) {
                job.rows = twb_min_size(job.block, job.out_h - job.row0);
                if (dweight) {
                    if (!job.direct) twb_spread(cpu, twb_conv_to_columns, &job, job.patch, 1,
                                                0.5 * (double)(job.rows * job.out_w));
                    g = twb_conv_gemm(&job, TWB_CONV_DWEIGHT, job.rows);
                    g.a = from + job.row0 * job.out_w;
                    g.b = job.direct ? job.x : job.columns;
                    g.c = dweight + group * job.out * job.patch;
                    twb_gemm(cpu, &g, gemm_scratch);
                }
                if (dx) {
                    g = twb_conv_gemm(&job, TWB_CONV_DX, job.rows);
                    g.a = weight + group * job.out * job.patch;
                    g.b = from + job.row0 * job.out_w;
                    g.c = job.direct ? job.dx : job.columns;
                    twb_gemm(cpu, &g, gemm_scratch);
                    if (!job.direct) twb_spread(cpu, twb_conv_from_columns, &job, job.in, 1,
                                                (double)(args->kernel_h * args->kernel_w * job.rows * job.out_w));
                }
            }
        }
    if (dbias)
        for (o = 0; o < args->out_channels; o++) {
            double sum = 0;
            for (b = 0; b < args->batch; b++) sum += twb_sum(cpu, places, dy + (b * args->out_channels + o) * places);
            dbias[o] += (float)sum;
        }
}

/* ---- pooling: a span is a range of channel images */
typedef struct twb_pool_job {
    twb_pool2d_args a;
    ptrdiff_t out_h, out_w;
    const float *x, *dy;
    float *y, *dx;
    const int32_t *places;
    int32_t *argmax;
    bool accumulate;
} twb_pool_job;

TWBDEF ptrdiff_t twb_pool2d_out_height(const twb_pool2d_args *a) {
        return a->stride_h < 1 ? 0 : (a->height + 2 * a->pad_h - a->kernel_h) / a->stride_h + 1; }
TWBDEF ptrdiff_t twb_pool2d_out_width(const twb_pool2d_args *a) {
        return a->stride_w < 1 ? 0 : (a->width + 2 * a->pad_w - a->kernel_w) / a->stride_w + 1; }

/* window [*from, *to) of output place r, inside the image */
static void twb_pool_window(ptrdiff_t r, ptrdiff_t stride, ptrdiff_t pad, ptrdiff_t kernel, ptrdiff_t size,
                            ptrdiff_t *from, ptrdiff_t *to) {
    ptrdiff_t start = r * stride - pad;
    *from = start < 0 ? 0 : start;
    *to = twb_min_size(start + kernel, size);
}

static void twb_max_pool_images(const void *arg, ptrdiff_t begin, ptrdiff_t end) {
    const twb_pool_job *job = (const twb_pool_job *)arg;
    const twb_pool2d_args *a = &job->a;
    ptrdiff_t r, c, i, j, i0, i1, j0, j1;
    for (; begin < end; begin++) {
        const float *x = job->x + begin * a->height * a->width;
        for (r = 0; r < job->out_h; r++)
            for (c = 0; c < job->out_w; c++) {
                const ptrdiff_t to = (begin * job->out_h + r) * job->out_w + c;
                ptrdiff_t best;
                twb_pool_window(r, a->stride_h, a->pad_h, a->kernel_h, a->height, &i0, &i1);
                twb_pool_window(c, a->stride_w, a->pad_w, a->kernel_w, a->width, &j0, &j1);
                best = i0 * a->width + j0;
                for (i = i0; i < i1; i++)
                    for (j = j0; j < j1; j++) {
                        const float value = x[i * a->width + j];
                        if (value > x[best] || (twb_float_bits(value) & 0x7FFFFFFFu) > 0x7F800000u) best = i * a->width
                                + j;
                    }
                job->y[to] = x[best];
                if (job->argmax) job->argmax[to] = (int32_t)best;
            }
    }
}

static void twb_max_pool_backward_images(const void *arg, ptrdiff_t begin, ptrdiff_t end) {
    const twb_pool_job *job = (const twb_pool_job *)arg;
    const ptrdiff_t size = job->a.height * job->a.width, places = job->out_h * job->out_w;
    ptrdiff_t i;
    for (; begin < end; begin++) {
        float *dx = job->dx + begin * size;
        if (!job->accumulate) for (i = 0; i < size; i++) dx[i] = 0.0f;
        for (i = begin * places; i < (begin + 1) * places; i++) dx[job->places[i]] += job->dy[i];
    }
}

static void twb_avg_pool_images(const void *arg, ptrdiff_t begin, ptrdiff_t end) {
    const twb_pool_job *job = (const twb_pool_job *)arg;
    const twb_pool2d_args *a = &job->a;
    const float share = 1.0f / (float)(a->kernel_h * a->kernel_w);
    ptrdiff_t r, c, i, j, i0, i1, j0, j1, p;
    for (; begin < end; begin++) {
        const ptrdiff_t at = begin * a->height * a->width;
        if (job->dx && !job->accumulate) for (p = 0; p < a->height * a->width; p++) job->dx[at + p] = 0.0f;
        for (r = 0; r < job->out_h; r++)
            for (c = 0; c < job->out_w; c++) {
                const ptrdiff_t place = (begin * job->out_h + r) * job->out_w + c;
                float sum = 0.0f;
                twb_pool_window(r, a->stride_h, a->pad_h, a->kernel_h, a->height, &i0, &i1);
                twb_pool_window(c, a->stride_w, a->pad_w, a->kernel_w, a->width, &j0, &j1);
                for (i = i0; i < i1; i++)
                    for (j = j0; j < j1; j++) {
                        if (job->dx) job->dx[at + i * a->width + j] += job->dy[place] * share;
                        else sum += job->x[at + i * a->width + j];
                    }
                if (!job->dx) job->y[place] = sum * share;
            }
    }
}

static twb_pool_job twb_pool_plan(const twb_pool2d_args *args) {
    twb_pool_job job;
    memset(&job, 0, sizeof job);
    job.a = *args;
    job.out_h = twb_pool2d_out_height(args);
    job.out_w = twb_pool2d_out_width(args);
    return job;
}
static void twb_pool_run(const twb_cpu *cpu, twb_span images, const twb_pool_job *job) {
    twb_spread(cpu, images, job, job->a.batch * job->a.channels, 1,
               (double)(job->out_h * job->out_w) * (double)(job->a.kernel_h * job->a.kernel_w));
}

TWBDEF void twb_max_pool2d(const twb_cpu *cpu, const twb_pool2d_args *args, const float *x, float *y, int32_t *argmax) {
    twb_pool_job job = twb_pool_plan(args);
    job.x = x; job.y = y; job.argmax = argmax;
    twb_pool_run(cpu, twb_max_pool_images, &job);
}
TWBDEF void twb_max_pool2d_backward(const twb_cpu *cpu, const twb_pool2d_args *args, const int32_t *argmax,
                                    const float *dy, float *dx, bool accumulate) {
    twb_pool_job job = twb_pool_plan(args);
    job.places = argmax; job.dy = dy; job.dx = dx; job.accumulate = accumulate;
    twb_pool_run(cpu, twb_max_pool_backward_images, &job);
}
TWBDEF void twb_avg_pool2d(const twb_cpu *cpu, const twb_pool2d_args *args, const float *x, float *y) {
    twb_pool_job job = twb_pool_plan(args);
    job.x = x; job.y = y;
    twb_pool_run(cpu, twb_avg_pool_images, &job);
}
TWBDEF void twb_avg_pool2d_backward(const twb_cpu *cpu, const twb_pool2d_args *args, const float *dy, float *dx,
                                    bool accumulate) {
    twb_pool_job job = twb_pool_plan(args);
    job.dy = dy; job.dx = dx; job.accumulate = accumulate;
    twb_pool_run(cpu, twb_avg_pool_images, &job);
}
#if defined(__clang__)
#  pragma clang fp contract(on)
#  pragma float_control(pop)
#  pragma clang diagnostic pop
#elif defined(__GNUC__) && !defined(__TINYC__)
#  pragma GCC pop_options
#elif defined(_MSC_VER)
#  pragma float_control(pop)
#endif
#endif /* TWINKLE_BLAS_IMPLEMENTED */

#else /* TWB_PASS is defined: the text of the kernels, compiled once for each set */

/* ---- [twb:02] one text, four kernel sets: the thin vector layer -------------------------------
   twb_v is sixteen floats, twb_vi sixteen 32-bit integers.
   load/store read and write 16 floats at any address; loadn/storen the first n of them (lanes from n
   on are 0 and stay unwritten); hsum and hmax go down one tree: 16 -> 8 -> 4 -> 2 -> 1, lane j with
   lane j + half.  max(a,b) is a > b ? a : b, so that NaN goes the same way everywhere. */
/* TWB_FN: a function of its own, one for each set.  TWB_VFN: copied into its callers, so that what they pass as `const int R` or
   `const twb_type type` is a number there, the loops over it unroll, and arrays of vectors are registers. */
#if TWB_PASS == TWB_PASS_PLAIN
#  define TWB_NAME(x) x##_plain
#  define TWB_FN TWB_UNUSED static
/* Beside faster sets plain C only defines what they must give, and is not worth copies of its functions. */
#  if TWB_X86 || TWB_ARM
#    define TWB_VFN TWB_APART TWB_UNUSED static
#  else
#    define TWB_VFN TWB_UNUSED static
#  endif
typedef struct { float f[16]; } TWB_NAME(twb_v);
typedef struct { uint32_t u[16]; } TWB_NAME(twb_vi);
#elif TWB_PASS == TWB_PASS_NEON
#  define TWB_NAME(x) x##_neon
#  define TWB_FN TWB_UNUSED static
#  define TWB_VFN TWB_INLINE
typedef struct { float32x4_t q[4]; } TWB_NAME(twb_v);
typedef struct { uint32x4_t q[4]; } TWB_NAME(twb_vi);
#elif TWB_PASS == TWB_PASS_AVX2
#  define TWB_NAME(x) x##_avx2
#  define TWB_FN TWB_UNUSED TWB_TARGET("avx2,fma,f16c") static
#  define TWB_VFN TWB_TARGET("avx2,fma,f16c") TWB_INLINE
typedef struct { __m256 a, b; } TWB_NAME(twb_v);
typedef struct { __m256i a, b; } TWB_NAME(twb_vi);
#else
#  define TWB_NAME(x) x##_avx512
#  define TWB_FN TWB_UNUSED TWB_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl") static
#  define TWB_VFN TWB_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl") TWB_INLINE
typedef __m512  TWB_NAME(twb_v);
typedef __m512i TWB_NAME(twb_vi);
#endif
/* Unroll the next loop completely: its count is a constant below 32.  An array of
   vectors lives in registers only if every loop over it is unrolled completely. */
#if TWB_PASS == TWB_PASS_PLAIN
#  define TWB_UNROLL
#elif defined(__clang__)
#  define TWB_UNROLL  _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#  define TWB_UNROLL  _Pragma("GCC unroll 32")
#else
#  define TWB_UNROLL
#endif
#define twb_v  TWB_NAME(twb_v)
#define twb_vi TWB_NAME(twb_vi)
#define twb_load   TWB_NAME(twb_load)
#define twb_loadn  TWB_NAME(twb_loadn)
#define twb_store  TWB_NAME(twb_store)
#define twb_storen TWB_NAME(twb_storen)
#define twb_set1   TWB_NAME(twb_set1)
#define twb_add    TWB_NAME(twb_add)
#define twb_sub    TWB_NAME(twb_sub)
#define twb_mul    TWB_NAME(twb_mul)
#define twb_div    TWB_NAME(twb_div)
#define twb_fma    TWB_NAME(twb_fma)
#define twb_fnma   TWB_NAME(twb_fnma)
#define twb_max    TWB_NAME(twb_max)
#define twb_min    TWB_NAME(twb_min)
#define twb_sqrt   TWB_NAME(twb_sqrt)
#define twb_round  TWB_NAME(twb_round)
#define twb_abs    TWB_NAME(twb_abs)
#define twb_sel_lt TWB_NAME(twb_sel_lt)
#define twb_hsum   TWB_NAME(twb_hsum)
#define twb_hmax   TWB_NAME(twb_hmax)
#define twb_bits   TWB_NAME(twb_bits)
#define twb_unbits TWB_NAME(twb_unbits)
#define twb_toint  TWB_NAME(twb_toint)
#define twb_tofloat TWB_NAME(twb_tofloat)
#define twb_iset1  TWB_NAME(twb_iset1)
#define twb_iadd   TWB_NAME(twb_iadd)
#define twb_imul   TWB_NAME(twb_imul)
#define twb_ixor   TWB_NAME(twb_ixor)
#define twb_iand   TWB_NAME(twb_iand)
#define twb_ior    TWB_NAME(twb_ior)
#define twb_ishl   TWB_NAME(twb_ishl)
#define twb_ishr   TWB_NAME(twb_ishr)
#define twb_iramp  TWB_NAME(twb_iramp)
#define twb_load_f16  TWB_NAME(twb_load_f16)
#define twb_load_bf16 TWB_NAME(twb_load_bf16)

#if TWB_PASS == TWB_PASS_PLAIN
/* Plain C: the definition of every operation. */
#define TWB_EACH(expr) do { int j; twb_v r; for (j = 0; j < 16; j++) r.f[j] = (expr); return r; } while (0)
#define TWB_EACHI(expr) do { int j; twb_vi r; for (j = 0; j < 16; j++) r.u[j] = (expr); return r; } while (0)
TWB_VFN twb_v twb_load(const float *p) { twb_v r; memcpy(r.f, p, sizeof r.f); return r; }
TWB_VFN twb_v twb_loadn(const float *p, int n) { int j; twb_v r; for (j = 0; j < 16; j++) r.f[j] = j < n ? p[j] : 0.0f; return r; }
TWB_VFN void  twb_store(float *p, twb_v x) { memcpy(p, x.f, sizeof x.f); }
TWB_VFN void  twb_storen(float *p, twb_v x, int n) { int j; for (j = 0; j < 16 && j < n; j++) p[j] = x.f[j]; }
TWB_VFN twb_v twb_set1(float x) { TWB_EACH(x); }
TWB_VFN twb_v twb_add(twb_v a, twb_v b) { TWB_EACH(a.f[j] + b.f[j]); }
TWB_VFN twb_v twb_sub(twb_v a, twb_v b) { TWB_EACH(a.f[j] - b.f[j]); }
TWB_VFN twb_v twb_mul(twb_v a, twb_v b) { TWB_EACH(a.f[j] * b.f[j]); }
TWB_VFN twb_v twb_div(twb_v a, twb_v b) { TWB_EACH(a.f[j] / b.f[j]); }
TWB_VFN twb_v twb_fma(twb_v a, twb_v b, twb_v c) { TWB_EACH(fmaf(a.f[j], b.f[j], c.f[j])); }      /*  ab + c */
TWB_VFN twb_v twb_fnma(twb_v a, twb_v b, twb_v c) { TWB_EACH(fmaf(-a.f[j], b.f[j], c.f[j])); }    /* -ab + c */
TWB_VFN twb_v twb_max(twb_v a, twb_v b) { TWB_EACH(a.f[j] > b.f[j] ? a.f[j] : b.f[j]); }
TWB_VFN twb_v twb_min(twb_v a, twb_v b) { TWB_EACH(a.f[j] < b.f[j] ? a.f[j] : b.f[j]); }
TWB_VFN twb_v twb_sqrt(twb_v a) { TWB_EACH(sqrtf(a.f[j])); }
TWB_VFN twb_v twb_round(twb_v a) { TWB_EACH(rintf(a.f[j])); }                                     /* to nearest even */
TWB_VFN twb_v twb_abs(twb_v a) { TWB_EACH(fabsf(a.f[j])); }
TWB_VFN twb_v twb_sel_lt(twb_v a, twb_v b, twb_v x, twb_v y) { TWB_EACH(a.f[j] < b.f[j] ? x.f[j] : y.f[j]); }
TWB_VFN float twb_hsum(twb_v a) {
    int half, j;
    for (half = 8; half >= 1; half /= 2) for (j = 0; j < half; j++) a.f[j] = a.f[j] + a.f[j + half];
    return a.f[0];
}
TWB_VFN float twb_hmax(twb_v a) {
    int half, j;
    for (half = 8; half >= 1; half /= 2) for (j = 0; j < half; j++) a.f[j] = a.f[j] > a.f[j + half] ? a.f[j] : a.f[j + half];
    return a.f[0];
}
TWB_VFN twb_vi twb_bits(twb_v a) { twb_vi r; memcpy(r.u, a.f, sizeof r.u); return r; }
TWB_VFN twb_v  twb_unbits(twb_vi a) { twb_v r; memcpy(r.f, a.u, sizeof r.f); return r; }
/* round to nearest integer; what does not fit becomes 0x80000000, as on x86 */
TWB_VFN twb_vi twb_toint(twb_v a) {
    TWB_EACHI(a.f[j] >= -2147483648.0f && a.f[j] < 2147483648.0f ? (uint32_t)(int32_t)rintf(a.f[j]) : 0x80000000u);
}
TWB_VFN twb_v  twb_tofloat(twb_vi a) { TWB_EACH((float)(int32_t)a.u[j]); }
TWB_VFN twb_vi twb_iset1(uint32_t x) { TWB_EACHI(x); }
TWB_VFN twb_vi twb_iadd(twb_vi a, twb_vi b) { TWB_EACHI(a.u[j] + b.u[j]); }
TWB_VFN twb_vi twb_imul(twb_vi a, twb_vi b) { TWB_EACHI(a.u[j] * b.u[j]); }
TWB_VFN twb_vi twb_ixor(twb_vi a, twb_vi b) { TWB_EACHI(a.u[j] ^ b.u[j]); }
TWB_VFN twb_vi twb_iand(twb_vi a, twb_vi b) { TWB_EACHI(a.u[j] & b.u[j]); }
TWB_VFN twb_vi twb_ior(twb_vi a, twb_vi b) { TWB_EACHI(a.u[j] | b.u[j]); }
TWB_VFN twb_vi twb_ishl(twb_vi a, int n) { TWB_EACHI(a.u[j] << n); }
TWB_VFN twb_vi twb_ishr(twb_vi a, int n) { TWB_EACHI(a.u[j] >> n); }                               /* zeros come in */
TWB_VFN twb_vi twb_iramp(void) { TWB_EACHI((uint32_t)j); }                                        /* 0, 1, ... 15 */
TWB_VFN twb_v  twb_load_f16(const uint16_t *p) { TWB_EACH(twb_f16_to_f32(p[j])); }
TWB_VFN twb_v  twb_load_bf16(const uint16_t *p) { TWB_EACH(twb_bf16_to_f32(p[j])); }
#undef TWB_EACH
#undef TWB_EACHI

#elif TWB_PASS == TWB_PASS_NEON
#define TWB_EACH(expr) do { int j; twb_v r; for (j = 0; j < 4; j++) r.q[j] = (expr); return r; } while (0)
#define TWB_EACHI(expr) do { int j; twb_vi r; for (j = 0; j < 4; j++) r.q[j] = (expr); return r; } while (0)
TWB_VFN twb_v twb_load(const float *p) { TWB_EACH(vld1q_f32(p + 4*j)); }
TWB_VFN twb_v twb_loadn(const float *p, int n) {
    float t[16] = {0};
    if (n > 16) n = 16;
    if (n > 0) memcpy(t, p, (size_t)n * sizeof *t);
    return twb_load(t);
}
TWB_VFN void  twb_store(float *p, twb_v x) { int j; for (j = 0; j < 4; j++) vst1q_f32(p + 4*j, x.q[j]); }
TWB_VFN void  twb_storen(float *p, twb_v x, int n) {
    float t[16];
    if (n > 16) n = 16;
    twb_store(t, x);
    if (n > 0) memcpy(p, t, (size_t)n * sizeof *t);
}
TWB_VFN twb_v twb_set1(float x) { TWB_EACH(vdupq_n_f32(x)); }
TWB_VFN twb_v twb_add(twb_v a, twb_v b) { TWB_EACH(vaddq_f32(a.q[j], b.q[j])); }
TWB_VFN twb_v twb_sub(twb_v a, twb_v b) { TWB_EACH(vsubq_f32(a.q[j], b.q[j])); }
TWB_VFN twb_v twb_mul(twb_v a, twb_v b) { TWB_EACH(vmulq_f32(a.q[j], b.q[j])); }
TWB_VFN twb_v twb_div(twb_v a, twb_v b) { TWB_EACH(vdivq_f32(a.q[j], b.q[j])); }
TWB_VFN twb_v twb_fma(twb_v a, twb_v b, twb_v c) { TWB_EACH(vfmaq_f32(c.q[j], a.q[j], b.q[j])); }
TWB_VFN twb_v twb_fnma(twb_v a, twb_v b, twb_v c) { TWB_EACH(vfmsq_f32(c.q[j], a.q[j], b.q[j])); }
TWB_VFN twb_v twb_max(twb_v a, twb_v b) { TWB_EACH(vbslq_f32(vcgtq_f32(a.q[j], b.q[j]), a.q[j], b.q[j])); }
TWB_VFN twb_v twb_min(twb_v a, twb_v b) { TWB_EACH(vbslq_f32(vcltq_f32(a.q[j], b.q[j]), a.q[j], b.q[j])); }
TWB_VFN twb_v twb_sqrt(twb_v a) { TWB_EACH(vsqrtq_f32(a.q[j])); }
TWB_VFN twb_v twb_round(twb_v a) { TWB_EACH(vrndnq_f32(a.q[j])); }
TWB_VFN twb_v twb_abs(twb_v a) { TWB_EACH(vabsq_f32(a.q[j])); }
TWB_VFN twb_v twb_sel_lt(twb_v a, twb_v b, twb_v x, twb_v y) { TWB_EACH(vbslq_f32(vcltq_f32(a.q[j], b.q[j]), x.q[j], y.q[j])); }
TWB_VFN float twb_hsum(twb_v a) {
    float32x4_t lo = vaddq_f32(a.q[0], a.q[2]), hi = vaddq_f32(a.q[1], a.q[3]), s = vaddq_f32(lo, hi);
    float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
TWB_VFN float twb_hmax(twb_v a) {
    float t[16]; int half, j;
    twb_store(t, a);
    for (half = 8; half >= 1; half /= 2) for (j = 0; j < half; j++) t[j] = t[j] > t[j + half] ? t[j] : t[j + half];
    return t[0];
}
TWB_VFN twb_vi twb_bits(twb_v a) { TWB_EACHI(vreinterpretq_u32_f32(a.q[j])); }
TWB_VFN twb_v  twb_unbits(twb_vi a) { TWB_EACH(vreinterpretq_f32_u32(a.q[j])); }
TWB_VFN twb_vi twb_toint(twb_v a) {                      /* x86's answer for what does not fit */
    const float32x4_t lo = vdupq_n_f32(-2147483648.0f), hi = vdupq_n_f32(2147483648.0f);
    TWB_EACHI(vbslq_u32(vandq_u32(vcgeq_f32(a.q[j], lo), vcltq_f32(a.q[j], hi)),
                        vreinterpretq_u32_s32(vcvtnq_s32_f32(a.q[j])), vdupq_n_u32(0x80000000u)));
}
TWB_VFN twb_v  twb_tofloat(twb_vi a) { TWB_EACH(vcvtq_f32_s32(vreinterpretq_s32_u32(a.q[j]))); }
TWB_VFN twb_vi twb_iset1(uint32_t x) { TWB_EACHI(vdupq_n_u32(x)); }
TWB_VFN twb_vi twb_iadd(twb_vi a, twb_vi b) { TWB_EACHI(vaddq_u32(a.q[j], b.q[j])); }
TWB_VFN twb_vi twb_imul(twb_vi a, twb_vi b) { TWB_EACHI(vmulq_u32(a.q[j], b.q[j])); }
TWB_VFN twb_vi twb_ixor(twb_vi a, twb_vi b) { TWB_EACHI(veorq_u32(a.q[j], b.q[j])); }
TWB_VFN twb_vi twb_iand(twb_vi a, twb_vi b) { TWB_EACHI(vandq_u32(a.q[j], b.q[j])); }
TWB_VFN twb_vi twb_ior(twb_vi a, twb_vi b) { TWB_EACHI(vorrq_u32(a.q[j], b.q[j])); }
TWB_VFN twb_vi twb_ishl(twb_vi a, int n) { TWB_EACHI(vshlq_u32(a.q[j], vdupq_n_s32(n))); }
TWB_VFN twb_vi twb_ishr(twb_vi a, int n) { TWB_EACHI(vshlq_u32(a.q[j], vdupq_n_s32(-n))); }
TWB_VFN twb_vi twb_iramp(void) {
    static const uint32_t ramp[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    TWB_EACHI(vld1q_u32(ramp + 4*j));
}
TWB_VFN twb_v  twb_load_f16(const uint16_t *p) { TWB_EACH(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4*j)))); }
TWB_VFN twb_v  twb_load_bf16(const uint16_t *p) { TWB_EACH(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4*j), 16))); }
#undef TWB_EACH
#undef TWB_EACHI

#elif TWB_PASS == TWB_PASS_AVX2
#define TWB_PAIR(ea, eb) do { twb_v r; r.a = (ea); r.b = (eb); return r; } while (0)
#define TWB_PAIRI(ea, eb) do { twb_vi r; r.a = (ea); r.b = (eb); return r; } while (0)
/* a mask of the first n of 8 lanes */
TWB_VFN __m256i TWB_NAME(twb_mask)(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
TWB_VFN twb_v twb_load(const float *p) { TWB_PAIR(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
TWB_VFN twb_v twb_loadn(const float *p, int n) {
    TWB_PAIR(_mm256_maskload_ps(p, TWB_NAME(twb_mask)(n)), n > 8 ? _mm256_maskload_ps(p + 8, TWB_NAME(twb_mask)(n - 8)) : _mm256_setzero_ps());
}
TWB_VFN void  twb_store(float *p, twb_v x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
TWB_VFN void  twb_storen(float *p, twb_v x, int n) {
    _mm256_maskstore_ps(p, TWB_NAME(twb_mask)(n), x.a);
    if (n > 8) _mm256_maskstore_ps(p + 8, TWB_NAME(twb_mask)(n - 8), x.b);
}
TWB_VFN twb_v twb_set1(float x) { TWB_PAIR(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
TWB_VFN twb_v twb_add(twb_v a, twb_v b) { TWB_PAIR(_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)); }
TWB_VFN twb_v twb_sub(twb_v a, twb_v b) { TWB_PAIR(_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)); }
TWB_VFN twb_v twb_mul(twb_v a, twb_v b) { TWB_PAIR(_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)); }
TWB_VFN twb_v twb_div(twb_v a, twb_v b) { TWB_PAIR(_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)); }
TWB_VFN twb_v twb_fma(twb_v a, twb_v b, twb_v c) { TWB_PAIR(_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)); }
TWB_VFN twb_v twb_fnma(twb_v a, twb_v b, twb_v c) { TWB_PAIR(_mm256_fnmadd_ps(a.a, b.a, c.a), _mm256_fnmadd_ps(a.b, b.b, c.b)); }
TWB_VFN twb_v twb_max(twb_v a, twb_v b) { TWB_PAIR(_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)); }
TWB_VFN twb_v twb_min(twb_v a, twb_v b) { TWB_PAIR(_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)); }
TWB_VFN twb_v twb_sqrt(twb_v a) { TWB_PAIR(_mm256_sqrt_ps(a.a), _mm256_sqrt_ps(a.b)); }
TWB_VFN twb_v twb_round(twb_v a) { TWB_PAIR(_mm256_round_ps(a.a, 8), _mm256_round_ps(a.b, 8)); }
TWB_VFN twb_v twb_abs(twb_v a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    TWB_PAIR(_mm256_andnot_ps(sign, a.a), _mm256_andnot_ps(sign, a.b));
}
TWB_VFN twb_v twb_sel_lt(twb_v a, twb_v b, twb_v x, twb_v y) {
    TWB_PAIR(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ)));
}
TWB_VFN float twb_hsum(twb_v a) {
    __m256 e = _mm256_add_ps(a.a, a.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
TWB_VFN float twb_hmax(twb_v a) {
    __m256 e = _mm256_max_ps(a.a, a.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
TWB_VFN twb_vi twb_bits(twb_v a) { TWB_PAIRI(_mm256_castps_si256(a.a), _mm256_castps_si256(a.b)); }
TWB_VFN twb_v  twb_unbits(twb_vi a) { TWB_PAIR(_mm256_castsi256_ps(a.a), _mm256_castsi256_ps(a.b)); }
TWB_VFN twb_vi twb_toint(twb_v a) { TWB_PAIRI(_mm256_cvtps_epi32(a.a), _mm256_cvtps_epi32(a.b)); }
TWB_VFN twb_v  twb_tofloat(twb_vi a) { TWB_PAIR(_mm256_cvtepi32_ps(a.a), _mm256_cvtepi32_ps(a.b)); }
TWB_VFN twb_vi twb_iset1(uint32_t x) { TWB_PAIRI(_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)); }
TWB_VFN twb_vi twb_iadd(twb_vi a, twb_vi b) { TWB_PAIRI(_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)); }
TWB_VFN twb_vi twb_imul(twb_vi a, twb_vi b) { TWB_PAIRI(_mm256_mullo_epi32(a.a, b.a), _mm256_mullo_epi32(a.b, b.b)); }
TWB_VFN twb_vi twb_ixor(twb_vi a, twb_vi b) { TWB_PAIRI(_mm256_xor_si256(a.a, b.a), _mm256_xor_si256(a.b, b.b)); }
TWB_VFN twb_vi twb_iand(twb_vi a, twb_vi b) { TWB_PAIRI(_mm256_and_si256(a.a, b.a), _mm256_and_si256(a.b, b.b)); }
TWB_VFN twb_vi twb_ior(twb_vi a, twb_vi b) { TWB_PAIRI(_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)); }
TWB_VFN twb_vi twb_ishl(twb_vi a, int n) { __m128i c = _mm_cvtsi32_si128(n); TWB_PAIRI(_mm256_sll_epi32(a.a, c), _mm256_sll_epi32(a.b, c)); }
TWB_VFN twb_vi twb_ishr(twb_vi a, int n) { __m128i c = _mm_cvtsi32_si128(n); TWB_PAIRI(_mm256_srl_epi32(a.a, c), _mm256_srl_epi32(a.b, c)); }
TWB_VFN twb_vi twb_iramp(void) { TWB_PAIRI(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)); }
/* the eight 16-bit words at p, whatever its alignment */
TWB_VFN __m128i TWB_NAME(twb_words)(const uint16_t *p) { __m128i x; memcpy(&x, p, sizeof x); return x; }
TWB_VFN twb_v  twb_load_f16(const uint16_t *p) {
    TWB_PAIR(_mm256_cvtph_ps(TWB_NAME(twb_words)(p)), _mm256_cvtph_ps(TWB_NAME(twb_words)(p + 8)));
}
TWB_VFN twb_v  twb_load_bf16(const uint16_t *p) {
    TWB_PAIR(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(TWB_NAME(twb_words)(p)), 16)),
             _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(TWB_NAME(twb_words)(p + 8)), 16)));
}
#undef TWB_PAIR
#undef TWB_PAIRI

#else /* AVX-512 */
/* The zeroing forms under a full mask are the plain instructions; gcc's own plain forms begin from an
   uninitialized register and are warned of when they are inlined into C++. */
#define TWB_ALL ((__mmask16)0xFFFF)
TWB_VFN __mmask16 TWB_NAME(twb_mask)(int n) { return (__mmask16)(n >= 16 ? 0xFFFFu : n <= 0 ? 0u : (1u << n) - 1u); }
TWB_VFN twb_v twb_load(const float *p) { return _mm512_loadu_ps(p); }
TWB_VFN twb_v twb_loadn(const float *p, int n) { return _mm512_maskz_loadu_ps(TWB_NAME(twb_mask)(n), p); }
TWB_VFN void  twb_store(float *p, twb_v x) { _mm512_storeu_ps(p, x); }
TWB_VFN void  twb_storen(float *p, twb_v x, int n) { _mm512_mask_storeu_ps(p, TWB_NAME(twb_mask)(n), x); }
TWB_VFN twb_v twb_set1(float x) { return _mm512_set1_ps(x); }
TWB_VFN twb_v twb_add(twb_v a, twb_v b) { return _mm512_add_ps(a, b); }
TWB_VFN twb_v twb_sub(twb_v a, twb_v b) { return _mm512_sub_ps(a, b); }
TWB_VFN twb_v twb_mul(twb_v a, twb_v b) { return _mm512_mul_ps(a, b); }
TWB_VFN twb_v twb_div(twb_v a, twb_v b) { return _mm512_div_ps(a, b); }
TWB_VFN twb_v twb_fma(twb_v a, twb_v b, twb_v c) { return _mm512_fmadd_ps(a, b, c); }
TWB_VFN twb_v twb_fnma(twb_v a, twb_v b, twb_v c) { return _mm512_fnmadd_ps(a, b, c); }
TWB_VFN twb_v twb_max(twb_v a, twb_v b) { return _mm512_maskz_max_ps(TWB_ALL, a, b); }
TWB_VFN twb_v twb_min(twb_v a, twb_v b) { return _mm512_maskz_min_ps(TWB_ALL, a, b); }
TWB_VFN twb_v twb_sqrt(twb_v a) { return _mm512_maskz_sqrt_ps(TWB_ALL, a); }
#ifdef __OPTIMIZE__
TWB_VFN twb_v twb_round(twb_v a) { return _mm512_maskz_roundscale_ps(TWB_ALL, a, 8); }
#else                                   /* without optimizing that is a macro, and warns of its mask: go by halves */
TWB_VFN twb_v twb_round(twb_v a) {
    float t[16];
    _mm512_storeu_ps(t, a);
    _mm256_storeu_ps(t, _mm256_round_ps(_mm256_loadu_ps(t), 8));
    _mm256_storeu_ps(t + 8, _mm256_round_ps(_mm256_loadu_ps(t + 8), 8));
    return _mm512_loadu_ps(t);
}
#endif
TWB_VFN twb_v twb_abs(twb_v a) { return _mm512_abs_ps(a); }
TWB_VFN twb_v twb_sel_lt(twb_v a, twb_v b, twb_v x, twb_v y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
TWB_VFN float twb_hsum(twb_v a) {
    __m256 e = _mm256_add_ps(_mm512_maskz_extractf32x8_ps((__mmask8)0xFF, a, 0), _mm512_maskz_extractf32x8_ps((__mmask8)0xFF, a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
TWB_VFN float twb_hmax(twb_v a) {
    __m256 e = _mm256_max_ps(_mm512_maskz_extractf32x8_ps((__mmask8)0xFF, a, 0), _mm512_maskz_extractf32x8_ps((__mmask8)0xFF, a, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
TWB_VFN twb_vi twb_bits(twb_v a) { return _mm512_castps_si512(a); }
TWB_VFN twb_v  twb_unbits(twb_vi a) { return _mm512_castsi512_ps(a); }
TWB_VFN twb_vi twb_toint(twb_v a) { return _mm512_maskz_cvtps_epi32(TWB_ALL, a); }
TWB_VFN twb_v  twb_tofloat(twb_vi a) { return _mm512_maskz_cvtepi32_ps(TWB_ALL, a); }
TWB_VFN twb_vi twb_iset1(uint32_t x) { return _mm512_set1_epi32((int)x); }
TWB_VFN twb_vi twb_iadd(twb_vi a, twb_vi b) { return _mm512_add_epi32(a, b); }
TWB_VFN twb_vi twb_imul(twb_vi a, twb_vi b) { return _mm512_mullo_epi32(a, b); }
TWB_VFN twb_vi twb_ixor(twb_vi a, twb_vi b) { return _mm512_xor_si512(a, b); }
TWB_VFN twb_vi twb_iand(twb_vi a, twb_vi b) { return _mm512_and_si512(a, b); }
TWB_VFN twb_vi twb_ior(twb_vi a, twb_vi b) { return _mm512_or_si512(a, b); }
TWB_VFN twb_vi twb_ishl(twb_vi a, int n) { return _mm512_maskz_sll_epi32(TWB_ALL, a, _mm_cvtsi32_si128(n)); }
TWB_VFN twb_vi twb_ishr(twb_vi a, int n) { return _mm512_maskz_srl_epi32(TWB_ALL, a, _mm_cvtsi32_si128(n)); }
TWB_VFN twb_vi twb_iramp(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
TWB_VFN __m256i TWB_NAME(twb_words)(const uint16_t *p) { __m256i x; memcpy(&x, p, sizeof x); return x; }
TWB_VFN twb_v  twb_load_f16(const uint16_t *p) { return _mm512_maskz_cvtph_ps(TWB_ALL, TWB_NAME(twb_words)(p)); }
TWB_VFN twb_v  twb_load_bf16(const uint16_t *p) { return _mm512_castsi512_ps(_mm512_maskz_sll_epi32(TWB_ALL, _mm512_maskz_cvtepu16_epi32(TWB_ALL, TWB_NAME(twb_words)(p)), _mm_cvtsi32_si128(16))); }
#undef TWB_ALL
#endif
/* -- back to 16 bits, rounded to nearest even */
#define twb_put_f16    TWB_NAME(twb_put_f16)
#define twb_put_words  TWB_NAME(twb_put_words)
#define twb_put_bf16   TWB_NAME(twb_put_bf16)

/* the lower halves of sixteen integers */
TWB_VFN void twb_put_words(uint16_t *p, twb_vi x) {
#if TWB_PASS == TWB_PASS_AVX512
    __m256i w = _mm512_maskz_cvtepi32_epi16(0xFFFFu, x);
    memcpy(p, &w, sizeof w);
#elif TWB_PASS == TWB_PASS_AVX2
    const __m256i low = _mm256_set1_epi32(0xFFFF);
    __m256i w = _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low)),
                                         0xD8);
    memcpy(p, &w, sizeof w);
#elif TWB_PASS == TWB_PASS_NEON
    int j;
    for (j = 0; j < 4; j++) vst1_u16(p + 4*j, vmovn_u32(x.q[j]));
#else
    int j;
    for (j = 0; j < 16; j++) p[j] = (uint16_t)(x.u[j] & 0xFFFFu);
#endif
}
TWB_VFN void twb_put_f16(uint16_t *p, twb_v x) {
#if TWB_PASS == TWB_PASS_AVX512
    __m256i w = _mm512_maskz_cvtps_ph(0xFFFFu, x, 0);
    memcpy(p, &w, sizeof w);
#elif TWB_PASS == TWB_PASS_AVX2
    __m128i a = _mm256_cvtps_ph(x.a, 0), b = _mm256_cvtps_ph(x.b, 0);
    memcpy(p, &a, sizeof a);
    memcpy(p + 8, &b, sizeof b);
#elif TWB_PASS == TWB_PASS_NEON
    int j;
    for (j = 0; j < 4; j++) vst1_u16(p + 4*j, vreinterpret_u16_f16(vcvt_f16_f32(x.q[j])));
#else
    int j;
    for (j = 0; j < 16; j++) p[j] = twb_f32_to_f16(x.f[j]);
#endif
}
/* x as the nearest bf16 number, ties to even.  Adding half of the last place that stays, less one bit, plus that place's own last
   bit, carries into it exactly where it should.  For NaN, which is not above -1, it could carry into the sign. */
TWB_VFN twb_v TWB_NAME(twb_round_bf16)(twb_v x) {
    const twb_vi u = twb_bits(x), upper = twb_iset1(0xFFFF0000u);
    const twb_vi rounded = twb_iadd(twb_iadd(u, twb_iset1(0x7FFFu)), twb_iand(twb_ishr(u, 16), twb_iset1(1u)));
    const twb_vi quiet = twb_ior(u, twb_iset1(0x400000u));
    return twb_sel_lt(twb_set1(-1.0f), twb_abs(x), twb_unbits(twb_iand(rounded, upper)), twb_unbits(twb_iand(quiet, upper)));
}
TWB_VFN void twb_put_bf16(uint16_t *p, twb_v x) {
    twb_put_words(p, twb_ishr(twb_bits(TWB_NAME(twb_round_bf16)(x)), 16));
}

/* ---- [twb:03] elementary functions over sixteen lanes -------------------------------------- */
#define twb_get        TWB_NAME(twb_get)
#define twb_put        TWB_NAME(twb_put)
/* The vector at p, of which n numbers exist (the rest are 0), and its way back. */
TWB_VFN twb_v twb_get(const float *p, ptrdiff_t n) { return n >= 16 ? twb_load(p) : twb_loadn(p, (int)n); }
TWB_VFN void  twb_put(float *p, twb_v x, ptrdiff_t n) { if (n >= 16) twb_store(p, x); else twb_storen(p, x, (int)n); }
#define twb_vpoly      TWB_NAME(twb_vpoly)
#define twb_vexp       TWB_NAME(twb_vexp)
#define twb_vexp_neg   TWB_NAME(twb_vexp_neg)
#define twb_vexp_core  TWB_NAME(twb_vexp_core)
#define twb_vlog       TWB_NAME(twb_vlog)
#define twb_vsign_of   TWB_NAME(twb_vsign_of)
#define twb_vtanh      TWB_NAME(twb_vtanh)
#define twb_verf       TWB_NAME(twb_verf)
#define twb_vsigmoid   TWB_NAME(twb_vsigmoid)
#define twb_vsoftplus  TWB_NAME(twb_vsoftplus)
#define twb_vrelu      TWB_NAME(twb_vrelu)
#define twb_vsilu      TWB_NAME(twb_vsilu)
#define twb_vgelu      TWB_NAME(twb_vgelu)
#define twb_vgelu_tanh TWB_NAME(twb_vgelu_tanh)
#define twb_vquick_gelu TWB_NAME(twb_vquick_gelu)
#define twb_vact       TWB_NAME(twb_vact)
#define twb_vact_grad  TWB_NAME(twb_vact_grad)

/* p x + c */
TWB_VFN twb_v twb_vpoly(twb_v p, twb_v x, float c) { return twb_fma(p, x, twb_set1(c)); }

/* exp(r) for r = x - n ln 2, where n is the integer in the low bits of *t. */
TWB_VFN twb_v twb_vexp_core(twb_v x, twb_v rounder, twb_v *t) {
    twb_v n, r, p;
    *t = twb_fma(x, twb_set1(TWB_LOG2E), rounder);
    n = twb_sub(*t, rounder);
    r = twb_fnma(n, twb_set1(TWB_LN2_HI), x);
    r = twb_fnma(n, twb_set1(TWB_LN2_LO), r);
    p = twb_vpoly(twb_set1(TWB_EXP_Q4), r, TWB_EXP_Q3);
    p = twb_vpoly(p, r, TWB_EXP_Q2);
    p = twb_vpoly(p, r, TWB_EXP_Q1);
    p = twb_vpoly(p, r, TWB_EXP_Q0);
    p = twb_vpoly(p, r, 1.0f);
    return twb_vpoly(p, r, 1.0f);
}

/* exp for every float, with denormal results. */
TWB_VFN twb_v twb_vexp(twb_v x) {
    twb_v t, p;
    twb_vi i, half;
    x = twb_max(twb_set1(TWB_EXP_MIN), twb_min(twb_set1(TWB_EXP_MAX), x));         /* in this order NaN comes through */
    p = twb_vexp_core(x, twb_set1(TWB_ROUNDER), &t);
    /* n: the bits of TWB_ROUNDER taken off */
    i = twb_iadd(twb_bits(t), twb_iset1(0u - 0x4B400000u));
    half = twb_ishr(twb_iadd(i, twb_iset1(256u)), 1);
    p = twb_mul(p, twb_unbits(twb_ishl(twb_iadd(half, twb_iset1(0u - 1u)), 23)));
    i = twb_iadd(twb_iadd(i, twb_iset1(256u)), twb_ixor(half, twb_iset1(0xFFFFFFFFu)));    /* n - half + 255 */
    return twb_mul(p, twb_unbits(twb_ishl(i, 23)));
}

/* exp for x <= 0, as softmax needs it: 0 below -87 (where exp is under 1.7e-38), else twb_vexp's bits. */
TWB_VFN twb_v twb_vexp_neg(twb_v x) {
    twb_v t, p = twb_vexp_core(x, twb_set1(TWB_ROUNDER + 127.0f), &t);             /* low bits: n + 127, an exponent */
    p = twb_mul(p, twb_unbits(twb_ishl(twb_bits(t), 23)));
    return twb_sel_lt(x, twb_set1(-87.0f), twb_set1(0.0f), p);
}

TWB_VFN twb_v twb_vlog(twb_v x) {
    const twb_v infinity = twb_unbits(twb_iset1(0x7F800000u)), zero = twb_set1(0.0f),
            tiny = twb_set1(TWB_SMALLEST_NORMAL);
    twb_v scaled = twb_sel_lt(x, tiny, twb_mul(x, twb_set1(8388608.0f)), x);
    twb_v e = twb_sel_lt(x, tiny, twb_set1(-150.0f), twb_set1(-127.0f)), f, s, p, y, special;
    twb_vi i = twb_iadd(twb_bits(scaled), twb_iset1(0x3F800000u - TWB_SQRT_HALF_BITS));
    e = twb_add(twb_tofloat(twb_ishr(i, 23)), e);
    f = twb_sub(twb_unbits(twb_iadd(twb_iand(i, twb_iset1(0x7FFFFFu)), twb_iset1(TWB_SQRT_HALF_BITS))), twb_set1(1.0f));
    s = twb_mul(f, f);
    p = twb_vpoly(twb_set1(TWB_LOG_P7), f, TWB_LOG_P6);
    p = twb_vpoly(p, f, TWB_LOG_P5);
    p = twb_vpoly(p, f, TWB_LOG_P4);
    p = twb_vpoly(p, f, TWB_LOG_P3);
    p = twb_vpoly(p, f, TWB_LOG_P2);
    p = twb_vpoly(p, f, TWB_LOG_P1);
    p = twb_vpoly(p, f, TWB_LOG_P0);
    y = twb_fma(e, twb_set1(TWB_LN2_LO), twb_mul(twb_mul(s, f), p));
    y = twb_fnma(twb_set1(0.5f), s, y);
    y = twb_fma(e, twb_set1(TWB_LN2_HI), twb_add(f, y));
    special = twb_sel_lt(x, zero, twb_unbits(twb_iset1(0x7FC00000u)), twb_sub(x, infinity));      /* 0: -infinity */
    return twb_sel_lt(zero, x, twb_sel_lt(x, infinity, y, x), special);
}

/* y >= 0 with the sign of x */
TWB_VFN twb_v twb_vsign_of(twb_v y, twb_v x) {
    return twb_unbits(twb_ior(twb_bits(y), twb_iand(twb_bits(x), twb_iset1(0x80000000u))));
}

TWB_VFN twb_v twb_vtanh(twb_v x) {
    twb_v a = twb_abs(x), u = twb_mul(a, a), e = twb_vexp_neg(twb_mul(a, twb_set1(-2.0f))), p, far_off;
    p = twb_vpoly(twb_set1(-0.0062428494f), u, 0.021050714f);
    p = twb_vpoly(p, u, -0.0538475476f);
    p = twb_vpoly(p, u, 0.133325443f);
    p = twb_vpoly(p, u, -0.333333164f);
    p = twb_fma(twb_mul(u, p), a, a);
    far_off = twb_sub(twb_set1(1.0f), twb_div(twb_add(e, e), twb_add(e, twb_set1(1.0f))));
    return twb_vsign_of(twb_sel_lt(a, twb_set1(0.55f), p, far_off), x);
}

TWB_VFN twb_v twb_verf(twb_v x) {
    twb_v a = twb_abs(x), u = twb_mul(a, a), p, q;
    p = twb_vpoly(twb_set1(7.94310035e-5f), u, -0.000803975272f);
    p = twb_vpoly(p, u, 0.00519175315f);
    p = twb_vpoly(p, u, -0.02685556f);
    p = twb_vpoly(p, u, 0.112836242f);
    p = twb_vpoly(p, u, -0.376126289f);
    p = twb_vpoly(p, u, 0.128379166f);
    p = twb_fma(a, p, a);
    u = twb_min(twb_set1(4.0f), a);                        /* 1 - erf(4) is below half an ulp */
    q = twb_vpoly(twb_set1(-0.000214602915f), u, 0.00322004058f);
    q = twb_vpoly(q, u, -0.0229062345f);
    q = twb_vpoly(q, u, 0.105287157f);
    q = twb_vpoly(q, u, 0.635699153f);
    q = twb_vpoly(q, u, 1.1285200119f);
    q = twb_sub(twb_set1(1.0f), twb_vexp_neg(twb_fnma(q, u, twb_set1(0.0f))));
    return twb_vsign_of(twb_sel_lt(a, twb_set1(0.9f), p, q), x);
}

/* 1 / (1 + exp(-x)), by exp(-|x|) so that neither end loses digits */
TWB_VFN twb_v twb_vsigmoid(twb_v x) {
    const twb_v zero = twb_set1(0.0f), one = twb_set1(1.0f);
    twb_v e = twb_vexp_neg(twb_sub(zero, twb_abs(x)));
    return twb_div(twb_sel_lt(x, zero, e, one), twb_add(one, e));
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|); the rounding of w = 1 + e is made good by (e - (w - 1))/w */
TWB_VFN twb_v twb_vsoftplus(twb_v x) {
    const twb_v zero = twb_set1(0.0f), one = twb_set1(1.0f);
    twb_v e = twb_vexp_neg(twb_sub(zero, twb_abs(x))), w = twb_add(one, e);
    twb_v lost = twb_div(twb_sub(e, twb_sub(w, one)), w);
    return twb_add(twb_max(zero, x), twb_add(twb_vlog(w), lost));
}

TWB_VFN twb_v twb_vrelu(twb_v x) { return twb_max(twb_set1(0.0f), x); }           /* NaN stays NaN */
TWB_VFN twb_v twb_vsilu(twb_v x) { return twb_mul(x, twb_vsigmoid(x)); }
TWB_VFN twb_v twb_vquick_gelu(twb_v x) { return twb_mul(x, twb_vsigmoid(twb_mul(x, twb_set1(1.702f)))); }

/* x Phi(x) = x/2 (1 + erf(x / sqrt 2)) */
TWB_VFN twb_v twb_vgelu(twb_v x) {
    twb_v half = twb_mul(x, twb_set1(0.5f));
    return twb_fma(half, twb_verf(twb_mul(x, twb_set1(0.707106781f))), half);
}

/* x/2 (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), and (1 + tanh u)/2 is sigmoid(2u) */
#define TWB_GELU_A 1.59576912f       /* 2 sqrt(2/pi) */
#define TWB_GELU_B 0.0713548163f     /* times 0.044715 */
TWB_VFN twb_v twb_vgelu_tanh(twb_v x) {
    twb_v inner = twb_vpoly(twb_mul(x, x), twb_set1(TWB_GELU_B), TWB_GELU_A);
    return twb_mul(x, twb_vsigmoid(twb_mul(x, inner)));
}

/* The activation named by `act`; a caller that passes a constant pays for no switch. */
TWB_VFN twb_v twb_vact(twb_activation act, twb_v x) {
    switch (act) {
    case TWB_ACT_RELU:       return twb_vrelu(x);
    case TWB_ACT_GELU:       return twb_vgelu(x);
    case TWB_ACT_GELU_TANH:  return twb_vgelu_tanh(x);
    case TWB_ACT_SILU:       return twb_vsilu(x);
    case TWB_ACT_TANH:       return twb_vtanh(x);
    case TWB_ACT_QUICK_GELU: return twb_vquick_gelu(x);
    case TWB_ACT_SIGMOID:    return twb_vsigmoid(x);
    case TWB_ACT_NONE: case TWB_ACT_COUNT: break;
    }
    return x;
}

/* The derivative of twb_vact at x, the activation's argument.  With s = sigmoid(z):  (x s)' = s + x s (1 - s) z'. */
TWB_VFN twb_v twb_vact_grad(twb_activation act, twb_v x) {
    const twb_v zero = twb_set1(0.0f), one = twb_set1(1.0f);
    twb_v s, slope, z;
    switch (act) {
    case TWB_ACT_RELU: return twb_sel_lt(zero, x, one, zero);
    case TWB_ACT_GELU:                                       /* Phi(x) + x phi(x), phi(x) = exp(-x^2/2) / sqrt(2 pi) */
        s = twb_fma(twb_verf(twb_mul(x, twb_set1(0.707106781f))), twb_set1(0.5f), twb_set1(0.5f));
        z = twb_vexp_neg(twb_mul(twb_mul(x, x), twb_set1(-0.5f)));
        return twb_fma(twb_mul(x, twb_set1(0.398942280f)), z, s);
    case TWB_ACT_TANH: s = twb_vtanh(x); return twb_fnma(s, s, one);
    case TWB_ACT_SIGMOID: s = twb_vsigmoid(x); return twb_fnma(s, s, s);
    case TWB_ACT_SILU: z = x; slope = one; break;
    case TWB_ACT_QUICK_GELU: slope = twb_set1(1.702f); z = twb_mul(x, slope); break;
    case TWB_ACT_GELU_TANH:
        z = twb_mul(x, x);
        slope = twb_vpoly(z, twb_set1(3.0f * TWB_GELU_B), TWB_GELU_A);
        z = twb_mul(x, twb_vpoly(z, twb_set1(TWB_GELU_B), TWB_GELU_A));
        break;
    case TWB_ACT_NONE: case TWB_ACT_COUNT: default: return one;
    }
    s = twb_vsigmoid(z);
    return twb_fma(twb_mul(x, slope), twb_fnma(s, s, s), s);
}

/* ---- [twb:04] matrix product: the kernels ---------------------------------------------------- */
#if TWB_PASS == TWB_PASS_AVX512
enum { TWB_NAME(twb_rows) = 14, TWB_NAME(twb_tile_vectors) = 28 };
#elif TWB_PASS == TWB_PASS_PLAIN
enum { TWB_NAME(twb_rows) = 4, TWB_NAME(twb_tile_vectors) = 4 };
#else
enum { TWB_NAME(twb_rows) = 6, TWB_NAME(twb_tile_vectors) = 6 };
#endif
#define TWB_ROWS         TWB_NAME(twb_rows)             /* the tallest tile */
#define TWB_TILE_VECTORS TWB_NAME(twb_tile_vectors)     /* sums of the largest */

/* sixteen weights of the given type, widened; or the first n of them */
TWB_VFN twb_v TWB_NAME(twb_widen)(const twb_type type, const void *b, ptrdiff_t at) {
    if (type == TWB_F16) return twb_load_f16((const uint16_t *)b + at);
    if (type == TWB_BF16) return twb_load_bf16((const uint16_t *)b + at);
    return twb_load((const float *)b + at);
}
TWB_VFN twb_v TWB_NAME(twb_get_type)(const void *p, twb_type type, ptrdiff_t at, ptrdiff_t n) {
    uint16_t words[16] = {0};
    const uint16_t *h = (const uint16_t *)p + at;
    if (type == TWB_F32) return twb_get((const float *)p + at, n);
    if (n < 16) { memcpy(words, h, (size_t)n * sizeof *words); h = words; }
    return type == TWB_F16 ? twb_load_f16(h) : twb_load_bf16(h);
}

/* Where a tile goes: c = alpha[r] p + beta[r] c in row r, or alpha[r] p where `beta` is NULL: then C is not read.  (A product has one
   alpha and one beta; attention has one for each row.) */
typedef struct TWB_NAME(twb_tile) {
    float *c; ptrdiff_t ldc;
    ptrdiff_t rows, columns;
    const float *alpha, *beta;
    ptrdiff_t stream;                   /* B is fetched into the L1 so many numbers ahead; 0: it is there */
} TWB_NAME(twb_tile);

/* The sums of a block of k, [rows][width], into columns of C of which the last 16 may not all exist. */
TWB_FN void TWB_NAME(twb_store_sums)(const float *sums, ptrdiff_t width, const TWB_NAME(twb_tile) *t) {
    ptrdiff_t r, j;
    for (r = 0; r < t->rows; r++) {
        float *c = t->c + r * t->ldc;
        const twb_v alpha = twb_set1(t->alpha[r]), beta = twb_set1(t->beta ? t->beta[r] : 0.0f);
        for (j = 0; j < t->columns; j += 16) {
            twb_v p = twb_load(sums + r * width + j);
            p = t->beta ? twb_fma(alpha, p, twb_mul(beta, twb_get(c + j, t->columns - j))) : twb_mul(alpha, p);
            twb_put(c + j, p, t->columns - j);
        }
    }
}

/* The micro-kernel: R rows by P panels, both known to the compiler.  Number k of row r of A is at a + r a_row + k a_step;
   vector p of row k of B at b + k b_row + p b_panel, which fits packed panels and a matrix read in place. */
TWB_VFN void TWB_NAME(twb_kernel)(const int R, const int P, ptrdiff_t kc, const float *a, ptrdiff_t a_row, ptrdiff_t a_step,
                                  const float *b, ptrdiff_t b_row, ptrdiff_t b_panel, const TWB_NAME(twb_tile) *t) {
    twb_v sum[TWB_TILE_VECTORS], row[4];
    float *c = t->c;
    const float *alpha = t->alpha, *beta = t->beta;
    const ptrdiff_t ldc = t->ldc, stream = t->stream;
    ptrdiff_t k;
    int r, p;
    TWB_UNROLL
    for (r = 0; r < R * P; r++) sum[r] = twb_set1(0.0f);
    TWB_UNROLL
    for (r = 0; r < R; r++) {                                  /* C will be wanted in a thousand cycles, be it only to be written */
        TWB_UNROLL
        for (p = 0; p < P; p++) TWB_PREFETCH(c + r * ldc + p * 16);
    }
    for (k = 0; k < kc; k++) {
        TWB_UNROLL
        for (p = 0; p < P; p++) {
            row[p] = twb_load(b + p * b_panel);
            if (R > 1) TWB_PREFETCH(b + p * b_panel + stream);         /* a single row is so quick that this would hold it up */
        }
        TWB_UNROLL
        for (r = 0; r < R; r++) {
            twb_v x = twb_set1(a[r * a_row]);
            TWB_UNROLL
            for (p = 0; p < P; p++) sum[r * P + p] = twb_fma(x, row[p], sum[r * P + p]);
        }
        a += a_step;
        b += b_row;
    }
    if (t->columns < P * 16) {
        float sums[TWB_TILE_VECTORS * 16];
        TWB_UNROLL
        for (r = 0; r < R * P; r++) twb_store(sums + r * 16, sum[r]);
        TWB_NAME(twb_store_sums)(sums, P * 16, t);
    } else if (beta) {
        TWB_UNROLL
        for (r = 0; r < R; r++, c += ldc) {
            twb_v gain = twb_set1(alpha[r]), keep = twb_set1(beta[r]);
            TWB_UNROLL
            for (p = 0; p < P; p++) twb_store(c + p * 16, twb_fma(gain, sum[r * P + p], twb_mul(keep, twb_load(c + p * 16))));
        }
    } else {
        TWB_UNROLL
        for (r = 0; r < R; r++, c += ldc) {
            twb_v gain = twb_set1(alpha[r]);
            TWB_UNROLL
            for (p = 0; p < P; p++) twb_store(c + p * 16, twb_mul(gain, sum[r * P + p]));
        }
    }
}

/* A kernel for each height, one panel wide, and for some heights (the lowest first) a wider one. */
#if TWB_PASS == TWB_PASS_AVX512
#  define TWB_KERNELS(X) X(1,1) X(2,1) X(3,1) X(4,1) X(5,1) X(6,1) X(7,1) X(8,1) X(9,1) X(10,1) X(11,1) X(12,1) X(13,1) X(14,1)
#  define TWB_WIDE_KERNELS(X) X(1,4) X(2,4) X(3,4) X(4,4) X(5,2) X(6,2) X(7,2) X(8,2) X(9,2) X(10,2) X(11,2) X(12,2) X(13,2) X(14,2)
#elif TWB_PASS == TWB_PASS_PLAIN
#  define TWB_KERNELS(X) X(1,1) X(2,1) X(3,1) X(4,1)
#  define TWB_WIDE_KERNELS(X) X(1,2)
#else
#  define TWB_KERNELS(X) X(1,1) X(2,1) X(3,1) X(4,1) X(5,1) X(6,1)
#  define TWB_WIDE_KERNELS(X) X(1,4) X(2,2)
#endif
#define TWB_ROW(R, P) \
    TWB_FN void TWB_NAME(twb_kernel_##R##x##P)(ptrdiff_t kc, const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, \
                                               ptrdiff_t b_row, ptrdiff_t b_panel, const TWB_NAME(twb_tile) *t) { \
        TWB_NAME(twb_kernel)(R, P, kc, a, a_row, a_step, b, b_row, b_panel, t); \
    }
TWB_KERNELS(TWB_ROW)
TWB_WIDE_KERNELS(TWB_ROW)
#undef TWB_ROW
typedef struct TWB_NAME(twb_kernel_of) {
    ptrdiff_t width;                /* in panels */
    void (*run)(ptrdiff_t kc, const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, ptrdiff_t b_row, ptrdiff_t b_panel,
                const TWB_NAME(twb_tile) *t);
} TWB_NAME(twb_kernel_of);
/* the kernel for this height and for at most so many panels */
TWB_FN const TWB_NAME(twb_kernel_of) *TWB_NAME(twb_kernel_for)(ptrdiff_t rows, ptrdiff_t panels) {
#define TWB_ROW(R, P) { P, TWB_NAME(twb_kernel_##R##x##P) },
    static const TWB_NAME(twb_kernel_of) narrow[] = { TWB_KERNELS(TWB_ROW) }, wide[] = { TWB_WIDE_KERNELS(TWB_ROW) };
#undef TWB_ROW
    const bool wider = rows <= (ptrdiff_t)(sizeof wide / sizeof *wide) && panels >= wide[rows - 1].width;
    return wider ? &wide[rows - 1] : &narrow[rows - 1];
}
#undef TWB_KERNELS
#undef TWB_WIDE_KERNELS

/* C = alpha[r] A B + beta[r] C of a size that fits a cache, tile by tile. */
TWB_FN void TWB_NAME(twb_small_product)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_step,
                                        const float *b, ptrdiff_t b_row, ptrdiff_t b_panel, float *c, ptrdiff_t ldc,
                                        const float *alpha, const float *beta) {
    const ptrdiff_t strips = twb_ceil_div(rows, TWB_ROWS);
    TWB_NAME(twb_tile) t;
    ptrdiff_t i, j, width, strip;
    t.ldc = ldc;
    t.stream = 0;
    for (j = 0; j < columns; j += 16 * width) {
        width = TWB_NAME(twb_kernel_for)(twb_ceil_div(rows, strips), twb_ceil_div(columns - j, 16))->width;
        t.columns = twb_min_size(columns - j, 16 * width);
        for (i = 0, strip = 0; i < rows; i += t.rows, strip++) {
            t.rows = twb_ceil_div(rows - i, strips - strip);
            t.c = c + i * ldc + j;
            t.alpha = alpha + i;
            t.beta = beta ? beta + i : NULL;
            TWB_NAME(twb_kernel_for)(t.rows, width)->run(depth, a + i * a_row, a_row, a_step, b + j / 16 * b_panel, b_row, b_panel, &t);
        }
    }
}

/* ---- packing */

/* B stored [n,k] has a column's numbers side by side, where the kernels want those of a row: it is read in
   squares of TWB_W x TWB_W numbers that are transposed in registers.  A twb_s is TWB_W floats: as many as the
   set has in one register. */
#define twb_s            TWB_NAME(twb_s)
#define twb_s_load       TWB_NAME(twb_s_load)
#define twb_s_get        TWB_NAME(twb_s_get)
#define twb_s_put        TWB_NAME(twb_s_put)
#define twb_s_fma1       TWB_NAME(twb_s_fma1)
#define twb_s_transpose  TWB_NAME(twb_s_transpose)
#define twb_s_four       TWB_NAME(twb_s_four)
#if TWB_PASS == TWB_PASS_AVX512
#define TWB_W 16
typedef __m512 twb_s;
TWB_VFN twb_s twb_s_load(const twb_type type, const void *b, ptrdiff_t at) { return TWB_NAME(twb_widen)(type, b, at); }
TWB_VFN twb_s twb_s_get(const float *p) { return _mm512_loadu_ps(p); }
TWB_VFN void  twb_s_put(float *p, twb_s x) { _mm512_storeu_ps(p, x); }
TWB_VFN twb_s twb_s_fma1(const float *x, twb_s y, twb_s c) { return _mm512_fmadd_ps(_mm512_set1_ps(*x), y, c); }
/* four numbers of each of the rows at `at`, at + ld, at + 2 ld and at + 3 ld */
TWB_VFN twb_s TWB_NAME(twb_quarters)(const twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld) {
    if (type == TWB_F32) {
        const float *p = (const float *)b + at;
        twb_s x = _mm512_castps128_ps512(_mm_loadu_ps(p));
        x = _mm512_insertf32x4(x, _mm_loadu_ps(p + ld), 1);
        x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * ld), 2);
        return _mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * ld), 3);
    } else {
        uint16_t words[16];
        int i;
        for (i = 0; i < 4; i++) memcpy(words + 4 * i, (const uint16_t *)b + at + i * ld, 4 * sizeof *words);
        return TWB_NAME(twb_widen)(type, words, 0);
    }
}
/* s[d] is number d of sixteen rows: pairs of rows, and pairs of pairs. */
TWB_VFN void twb_s_four(const twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, twb_s *s) {
    const twb_s p = TWB_NAME(twb_quarters)(type, b, at, 4 * ld), q = TWB_NAME(twb_quarters)(type, b, at + ld, 4 * ld);
    const twb_s r = TWB_NAME(twb_quarters)(type, b, at + 2 * ld, 4 * ld), t = TWB_NAME(twb_quarters)(type, b, at + 3 * ld, 4 * ld);
    const twb_s low = _mm512_maskz_unpacklo_ps((__mmask16)0xFFFF, p, q), high = _mm512_maskz_unpackhi_ps((__mmask16)0xFFFF, p, q);
    const twb_s low2 = _mm512_maskz_unpacklo_ps((__mmask16)0xFFFF, r, t), high2 = _mm512_maskz_unpackhi_ps((__mmask16)0xFFFF, r, t);
    s[0] = _mm512_maskz_shuffle_ps((__mmask16)0xFFFF, low, low2, 0x44);
    s[1] = _mm512_maskz_shuffle_ps((__mmask16)0xFFFF, low, low2, 0xEE);
    s[2] = _mm512_maskz_shuffle_ps((__mmask16)0xFFFF, high, high2, 0x44);
    s[3] = _mm512_maskz_shuffle_ps((__mmask16)0xFFFF, high, high2, 0xEE);
}
/* Four rounds of sixteen shuffles: pairs of rows, pairs of pairs, then the 128-bit quarters in two rounds. */
TWB_VFN void twb_s_transpose(const float *p, ptrdiff_t ld, twb_s *r) {
    twb_s t[16];
    int i;
    TWB_UNROLL
    for (i = 0; i < 16; i += 2) {
        const __m512 upper = _mm512_loadu_ps(p + i * ld), lower = _mm512_loadu_ps(p + (i + 1) * ld);
        t[i]     = _mm512_maskz_unpacklo_ps((__mmask16)0xFFFF, upper, lower);
        t[i + 1] = _mm512_maskz_unpackhi_ps((__mmask16)0xFFFF, upper, lower);
    }
    TWB_UNROLL
    for (i = 0; i < 16; i += 4) {                    /* r[i + c]: rows i..i+3 of columns c, c + 4, c + 8, c + 12 */
        __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]), c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i]     = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd((__mmask8)0xFF, a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd((__mmask8)0xFF, a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd((__mmask8)0xFF, b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd((__mmask8)0xFF, b, d));
    }
    TWB_UNROLL
    for (i = 0; i < 4; i++) {                        /* quarters (0,2) and (1,3) of rows 0-7, then of rows 8-15 */
        t[i]      = _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, r[i], r[i + 4], 0x88);
        t[i + 4]  = _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, r[i], r[i + 4], 0xDD);
        t[i + 8]  = _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, r[i + 8], r[i + 12], 0xDD);
    }
    TWB_UNROLL
    for (i = 0; i < 8; i++) {
        r[i]     = _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, t[i], t[i + 8], 0xDD);
    }
}
#elif TWB_PASS == TWB_PASS_AVX2
#define TWB_W 8
typedef __m256 twb_s;
TWB_VFN twb_s twb_s_load(const twb_type type, const void *b, ptrdiff_t at) {
    if (type == TWB_F16) return _mm256_cvtph_ps(TWB_NAME(twb_words)((const uint16_t *)b + at));
    if (type == TWB_BF16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(TWB_NAME(twb_words)((const uint16_t *)b + at)), 16));
    return _mm256_loadu_ps((const float *)b + at);
}
TWB_VFN twb_s twb_s_get(const float *p) { return _mm256_loadu_ps(p); }
TWB_VFN void  twb_s_put(float *p, twb_s x) { _mm256_storeu_ps(p, x); }
TWB_VFN twb_s twb_s_fma1(const float *x, twb_s y, twb_s c) { return _mm256_fmadd_ps(_mm256_set1_ps(*x), y, c); }
/* four numbers of the row at `at` and of the one at at + ld */
TWB_VFN twb_s TWB_NAME(twb_halves)(const twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld) {
    if (type == TWB_F32)
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((const float *)b + at)), _mm_loadu_ps((const float *)b + at + ld), 1);
    else {
        uint64_t low, high;
        __m128i words;
        memcpy(&low, (const uint16_t *)b + at, sizeof low);
        memcpy(&high, (const uint16_t *)b + at + ld, sizeof high);
        words = _mm_set_epi64x((long long)high, (long long)low);
        if (type == TWB_F16) return _mm256_cvtph_ps(words);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
}
/* s[d] is number d of eight rows.  Row i and row i + 4 are loaded as the halves of a register, which spares the round of
   shuffles across halves: what is left are pairs of rows, and pairs of pairs. */
TWB_VFN void twb_s_four(const twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, twb_s *s) {
    const twb_s p = TWB_NAME(twb_halves)(type, b, at, 4 * ld), q = TWB_NAME(twb_halves)(type, b, at + ld, 4 * ld);
    const twb_s r = TWB_NAME(twb_halves)(type, b, at + 2 * ld, 4 * ld), t = TWB_NAME(twb_halves)(type, b, at + 3 * ld, 4 * ld);
    const twb_s low = _mm256_unpacklo_ps(p, q), high = _mm256_unpackhi_ps(p, q);
    const twb_s low2 = _mm256_unpacklo_ps(r, t), high2 = _mm256_unpackhi_ps(r, t);
    s[0] = _mm256_shuffle_ps(low, low2, 0x44);
    s[1] = _mm256_shuffle_ps(low, low2, 0xEE);
    s[2] = _mm256_shuffle_ps(high, high2, 0x44);
    s[3] = _mm256_shuffle_ps(high, high2, 0xEE);
}
TWB_VFN void twb_s_transpose(const float *p, ptrdiff_t ld, twb_s *s) {
    twb_s_four(TWB_F32, p, 0, ld, s);
    twb_s_four(TWB_F32, p, 4, ld, s + 4);
}
#elif TWB_PASS == TWB_PASS_NEON
#define TWB_W 4
typedef float32x4_t twb_s;
TWB_VFN twb_s twb_s_load(const twb_type type, const void *b, ptrdiff_t at) {
    if (type == TWB_F16) return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)b + at)));
    if (type == TWB_BF16) return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)b + at), 16));
    return vld1q_f32((const float *)b + at);
}
TWB_VFN twb_s twb_s_get(const float *p) { return vld1q_f32(p); }
TWB_VFN void  twb_s_put(float *p, twb_s x) { vst1q_f32(p, x); }
TWB_VFN twb_s twb_s_fma1(const float *x, twb_s y, twb_s c) { return vfmaq_n_f32(c, y, *x); }
TWB_VFN void twb_s_four(const twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, twb_s *s) {
    float32x4x2_t p = vtrnq_f32(twb_s_load(type, b, at), twb_s_load(type, b, at + ld));
    float32x4x2_t q = vtrnq_f32(twb_s_load(type, b, at + 2 * ld), twb_s_load(type, b, at + 3 * ld));
    s[0] = vcombine_f32(vget_low_f32(p.val[0]), vget_low_f32(q.val[0]));
    s[1] = vcombine_f32(vget_low_f32(p.val[1]), vget_low_f32(q.val[1]));
    s[2] = vcombine_f32(vget_high_f32(p.val[0]), vget_high_f32(q.val[0]));
    s[3] = vcombine_f32(vget_high_f32(p.val[1]), vget_high_f32(q.val[1]));
}
TWB_VFN void twb_s_transpose(const float *p, ptrdiff_t ld, twb_s *s) { twb_s_four(TWB_F32, p, 0, ld, s); }
#else
#define TWB_W 1
typedef float twb_s;
TWB_VFN twb_s twb_s_load(const twb_type type, const void *b, ptrdiff_t at) {
    if (type == TWB_F16) return twb_f16_to_f32(((const uint16_t *)b)[at]);
    if (type == TWB_BF16) return twb_bf16_to_f32(((const uint16_t *)b)[at]);
    return ((const float *)b)[at];
}
TWB_VFN twb_s twb_s_get(const float *p) { return *p; }
TWB_VFN void  twb_s_put(float *p, twb_s x) { *p = x; }
TWB_VFN twb_s twb_s_fma1(const float *x, twb_s y, twb_s c) { return fmaf(*x, y, c); }
TWB_VFN void twb_s_four(const twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, twb_s *s) {
    int d;
    (void)ld;
    for (d = 0; d < 4; d++) s[d] = twb_s_load(type, b, at + d);
}
TWB_VFN void twb_s_transpose(const float *p, ptrdiff_t ld, twb_s *s) { (void)ld; *s = *p; }
#endif

/* a square whose rows or columns are not all there: zeros for the rest */
TWB_FN void TWB_NAME(twb_square_edge)(twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t depth, float *square) {
    ptrdiff_t r, d;
    memset(square, 0, TWB_W * TWB_W * sizeof *square);
    for (r = 0; r < rows && r < TWB_W; r++)
        for (d = 0; d < depth && d < TWB_W; d++) square[r * TWB_W + d] = twb_number(type, b, at + r * ld + d);
}

/* The square at b + at, rows ld apart, transposed: s[d] has number d of each of the TWB_W rows. */
TWB_VFN void TWB_NAME(twb_square)(twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t depth, twb_s *s) {
    float square[TWB_W * TWB_W];
    int i;
    if (rows >= TWB_W && depth >= TWB_W && type == TWB_F32) { twb_s_transpose((const float *)b + at, ld, s); return; }
    if (rows < TWB_W || depth < TWB_W) TWB_NAME(twb_square_edge)(type, b, at, ld, rows, depth, square);
    else for (i = 0; i < TWB_W; i++) twb_s_put(square + i * TWB_W, twb_s_load(type, b, at + i * ld));
    twb_s_transpose(square, TWB_W, s);
}

/* Columns [j, j + columns) of B, k from k0 on, into panels [kc][16]; columns that do not exist become 0.
   `b` is [k,n], or [n,k] with `trans`. */
TWB_FN void TWB_NAME(twb_pack_panels)(twb_type type, bool trans, const void *b, ptrdiff_t ldb, ptrdiff_t k0, ptrdiff_t kc,
                                      ptrdiff_t j, ptrdiff_t columns, float *panel, ptrdiff_t panel_step) {
    ptrdiff_t j0, k, l;
    if (trans) {
        for (j0 = 0; j0 < columns; j0 += 16, panel += panel_step)
            for (l = 0; l < 16; l += TWB_W) {
                const ptrdiff_t whole = type == TWB_F32 && columns - j0 - l >= TWB_W ? kc / 16 * 16 : 0;
                const float *from = whole > 0 ? (const float *)b + (j + j0 + l) * ldb + k0 : NULL;
                twb_s s[TWB_W];
                int d, depth;
                for (k = 0; k < whole; k += 16) {                    /* sixteen k's are a line of memory */
                    ptrdiff_t q;
                    TWB_UNROLL
                    for (d = 0; d < TWB_W; d++) TWB_PREFETCH(from + d * ldb + k + 64);
                    for (q = k; q < k + 16; q += TWB_W) {
                        twb_s_transpose(from + q, ldb, s);
                        TWB_UNROLL
                        for (d = 0; d < TWB_W; d++) twb_s_put(panel + (q + d) * 16 + l, s[d]);
                    }
                }
                for (; k < kc; k += TWB_W) {
                    depth = (int)twb_min_size(kc - k, TWB_W);
                    TWB_NAME(twb_square)(type, b, (j + j0 + l) * ldb + k0 + k, ldb, columns - j0 - l, depth, s);
                    TWB_UNROLL
                    for (d = 0; d < TWB_W; d++) if (d < depth) twb_s_put(panel + (k + d) * 16 + l, s[d]);
                }
            }
        return;
    }
    for (k = 0; k < kc; k += 8) {            /* rows lie far apart: eight of them are walked side by side, and the next but one eight asked for */
        ptrdiff_t end = twb_min_size(k + 8, kc);
        for (j0 = 0; j0 < columns; j0 += 16) {
            float *to = panel + j0 / 16 * panel_step;
            if (type == TWB_F32 && columns - j0 >= 16) {
                const float *from = (const float *)b + (k0 + k) * ldb + j + j0;
                for (l = k; l < end; l++, from += ldb) {
                    TWB_PREFETCH(from + 16 * ldb);
                    twb_store(to + l * 16, twb_load(from));
                }
            } else
                for (l = k; l < end; l++) twb_store(to + l * 16, TWB_NAME(twb_get_type)(b, type, (k0 + l) * ldb + j + j0, columns - j0));
        }
    }
}

/* ---- the epilogue, over a tile that has just been stored and is still in the L1 */
TWB_FN void TWB_NAME(twb_gemm_epilogue)(const twb_epilogue *e, float *c, ptrdiff_t ldc, ptrdiff_t c_offset,
                                        ptrdiff_t i, ptrdiff_t j, ptrdiff_t rows, ptrdiff_t columns) {
    ptrdiff_t r, l;
    for (r = i; r < i + rows; r++)
        for (l = j; l < j + columns; l += 16) {
            const ptrdiff_t at = r * ldc + l, n = j + columns - l;
            twb_v y = twb_get(c + at, n);
            if (e->bias) y = twb_add(y, twb_get(e->bias + l, n));
            if (e->pre_activation) twb_put(e->pre_activation + c_offset + at, y, n);
            y = twb_vact(e->activation, y);
            if (e->residual) y = twb_add(y, twb_get(e->residual + c_offset + r * e->ld_residual + l, n));
            twb_put(c + at, y, n);
        }
}

/* ---- many rows: a task is rows [i0,i1) x columns [j0,j1) of product `item` of the batch, over all of k */

/* the same alpha and beta for every row of a tile; after the first block of k, what is there is kept */
TWB_VFN void TWB_NAME(twb_tile_factors)(const twb_gemm_args *g, bool first, float *alpha, float *beta, TWB_NAME(twb_tile) *t) {
    twb_store(alpha, twb_set1(g->alpha));
    twb_store(beta, twb_set1(first ? g->beta : 1.0f));
    t->alpha = alpha;
    t->beta = !first || g->beta < 0 || g->beta > 0 ? beta : NULL;
}

/* What will be read next from far away, fetched into the L2 a few lines at a time while there is work to do. */
typedef struct TWB_NAME(twb_ahead) { const char *at; ptrdiff_t rows, row_bytes, step, done; } TWB_NAME(twb_ahead);

TWB_VFN void TWB_NAME(twb_fetch_ahead)(TWB_NAME(twb_ahead) *p, ptrdiff_t lines) {
    for (; lines > 0 && p->rows > 0; lines--) {
        TWB_PREFETCH_L2(p->at + p->done);
        p->done += 64;
        if (p->done >= p->row_bytes) { p->done = 0; p->at += p->step; p->rows--; }
    }
}
TWB_VFN ptrdiff_t TWB_NAME(twb_lines_ahead)(const TWB_NAME(twb_ahead) *p) { return p->rows * ((p->row_bytes + 63) / 64); }

/* B's block [k0, k0+kc) x [j0, j1) as the next to be read */
TWB_FN void TWB_NAME(twb_block_ahead)(const twb_gemm_args *g, const char *b, ptrdiff_t k0, ptrdiff_t j0, ptrdiff_t j1, TWB_NAME(twb_ahead) *next) {
    ptrdiff_t element = (ptrdiff_t)twb_type_bytes(g->b_type), kc;
    next->rows = next->done = next->row_bytes = next->step = 0; next->at = b;
    kc = twb_min_size(TWB_KC, g->k - k0);
    j1 = twb_min_size(j1, g->n);
    if (j0 >= j1) return;
    if (g->b_packed) {
        next->at = b + twb_packed_at(g->n, j0, k0, kc) * element;
        next->rows = 1; next->row_bytes = twb_ceil_div(j1 - j0, 16) * 16 * kc * element; next->step = 0;
    } else {
        next->at = b + (g->trans_b ? j0 * g->ldb + k0 : k0 * g->ldb + j0) * element;
        next->rows = g->trans_b ? j1 - j0 : kc;
        next->row_bytes = (g->trans_b ? kc : j1 - j0) * element;
        next->step = g->ldb * element;
    }
}

/* Rows of A over a block of k, side by side at each k where A is transposed, else one after another. */
TWB_FN void TWB_NAME(twb_copy_strip)(const twb_gemm_args *g, const float *a, ptrdiff_t i, ptrdiff_t rows, ptrdiff_t k0, ptrdiff_t kc, float *to) {
    ptrdiff_t k, r;
    if (!g->trans_a) {
        for (r = 0; r < rows; r++) memcpy(to + r * TWB_A_ROW, a + (i + r) * g->lda + k0, (size_t)kc * sizeof *to);
        return;
    }
    for (k = 0; k < kc; k++)           /* sixteen are written where `rows` are wanted: the next k overwrites the rest */
        twb_store(to + k * rows, twb_get(a + (k0 + k) * g->lda + i, g->m - i));
}

/* The panels of B's columns [j0, j1): where they are, or packed or widened into `to`. */
TWB_FN const float *TWB_NAME(twb_panels_of)(const twb_gemm_args *g, const char *b, ptrdiff_t k0, ptrdiff_t kc, ptrdiff_t j0, ptrdiff_t j1, float *to) {
    if (g->b_packed) {
        ptrdiff_t at = twb_packed_at(g->n, j0, k0, kc), count = twb_ceil_div(j1 - j0, 16) * 16 * kc, l;
        if (g->b_type == TWB_F32) return (const float *)(const void *)b + at;
        for (l = 0; l < count; l += 16) twb_store(to + l, TWB_NAME(twb_get_type)(b, g->b_type, at + l, 16));
    } else TWB_NAME(twb_pack_panels)(g->b_type, g->trans_b, b, g->ldb, k0, kc, j0, j1 - j0, to, kc * 16);
    return to;
}

/* Rows [i0, i1) of the task, a chunk, times columns [j0, j1) over the block of k that begins at k0.  `packed`: an earlier chunk
   has left B's panels in `kept`.  `keep`: each group gets a place of its own there, for the chunks that follow. */
TWB_FN void TWB_NAME(twb_gemm_chunk)(const twb_gemm_job *job, ptrdiff_t item, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, ptrdiff_t k0,
                                     bool packed, float *copies, float *kept, bool keep) {
    const twb_gemm_args *g = job->args;
    const float *a = g->a + item * g->stride_a;
    const char *b = (const char *)g->b + item * g->stride_b * (ptrdiff_t)twb_type_bytes(g->b_type);
    float *c = g->c + item * g->stride_c, alpha[16], beta[16];
    const ptrdiff_t strips = twb_ceil_div(i1 - i0, TWB_ROWS), kc = twb_min_size(TWB_KC, g->k - k0);
    ptrdiff_t i, j, group_end;
    TWB_NAME(twb_tile) t;
    TWB_NAME(twb_ahead) next_b, next_a;
    memset(&next_a, 0, sizeof next_a);
    t.ldc = g->ldc;
    t.stream = TWB_STREAM_AHEAD;
    TWB_NAME(twb_tile_factors)(g, k0 == 0, alpha, beta, &t);
    for (j = j0; j < j1; j = group_end) {
        float *slot = kept + (keep ? (j - j0) * kc : 0);
        const float *panels;
        ptrdiff_t strip_index = 0, calls, b_lines, a_lines = 0;
        group_end = twb_min_size(j + job->group, j1);
        calls = twb_ceil_div(group_end - j, 16);
        panels = packed ? slot : TWB_NAME(twb_panels_of)(g, b, k0, kc, j, group_end, slot);
        if (packed && group_end < j1) {
            next_b.at = (const char *)(slot + job->group * kc);
            next_b.rows = 1; next_b.row_bytes = twb_min_size(job->group, j1 - group_end) * kc * 4; next_b.step = next_b.done = 0;
        } else if (group_end < j1) TWB_NAME(twb_block_ahead)(g, b, k0, group_end, twb_min_size(group_end + job->group, j1), &next_b);
        else if (k0 + kc < g->k) TWB_NAME(twb_block_ahead)(g, b, k0 + kc, j0, twb_min_size(j0 + job->group, j1), &next_b);
        else TWB_NAME(twb_block_ahead)(g, b, 0, j1, j1 + job->group, &next_b);         /* the next task, most likely */
        b_lines = strips > 1 || !g->b_packed ? twb_ceil_div(TWB_NAME(twb_lines_ahead)(&next_b), strips * calls) : 0;
        /* more lines for a call than it can take along, as rows are few: the packing of a B [n,k] reads its lines one after another, and
           f32's also fetches for itself */
        if (!packed && !g->b_packed && g->trans_b && b_lines > 48) b_lines = 0;
        for (i = i0; i < i1; i += t.rows, strip_index++) {
            const float *strip = a + i * g->lda + k0;
            ptrdiff_t a_row = g->lda, a_step = 1, l;
            const TWB_NAME(twb_kernel_of) *kernel = NULL;
            t.rows = twb_ceil_div(i1 - i, strips - strip_index);
            if (job->copy_a) {
                float *copy = copies + (i - i0) * TWB_A_ROW;
                if (j == j0) TWB_NAME(twb_copy_strip)(g, a, i, t.rows, k0, kc, copy);
                strip = copy;
                a_row = g->trans_a ? 1 : (ptrdiff_t)TWB_A_ROW;
                a_step = g->trans_a ? t.rows : 1;
            }
            if (j == j0) {                                                             /* A is on its way into the L2 */
                const ptrdiff_t next = i + t.rows;
                next_a.at = (const char *)(g->trans_a ? a + k0 * g->lda + next : a + next * g->lda + k0);
                next_a.rows = next >= i1 ? 0 : g->trans_a ? kc : t.rows;
                next_a.row_bytes = (g->trans_a ? t.rows : kc) * 4; next_a.step = g->lda * 4; next_a.done = 0;
                a_lines = twb_ceil_div(TWB_NAME(twb_lines_ahead)(&next_a), calls);
            }
            for (l = j; l < group_end; l += 16 * kernel->width) {
                kernel = TWB_NAME(twb_kernel_for)(t.rows, twb_ceil_div(group_end - l, 16));
                t.c = c + i * g->ldc + l;
                t.columns = twb_min_size(16 * kernel->width, group_end - l);
                if (j == j0) TWB_NAME(twb_fetch_ahead)(&next_a, a_lines);
                TWB_NAME(twb_fetch_ahead)(&next_b, b_lines);
                kernel->run(kc, strip, a_row, a_step, panels + (l - j) * kc, 16, kc * 16, &t);
                if (g->epilogue && k0 + kc >= g->k)
                    TWB_NAME(twb_gemm_epilogue)(g->epilogue, c, g->ldc, item * g->stride_c, i, l, t.rows, t.columns);
            }
        }
    }
}

TWB_FN void TWB_NAME(twb_gemm_tiles)(const twb_gemm_job *job, ptrdiff_t item, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, float *scratch) {
    const ptrdiff_t chunks = twb_ceil_div(i1 - i0, job->chunk_rows);
    float *kept = scratch + (job->copy_a ? twb_min_size(job->task_rows, job->chunk_rows) * TWB_A_ROW : 0);
    ptrdiff_t k0 = 0, i, end, chunk;
    do {
        for (i = i0, chunk = 0; i < i1; i = end, chunk++) {
            end = twb_min_size(i + twb_min_size(twb_ceil_div(i1 - i, (chunks - chunk) * TWB_ROWS) * TWB_ROWS, job->chunk_rows), i1);
            TWB_NAME(twb_gemm_chunk)(job, item, i, end, j0, j1, k0, chunk > 0 && !(job->args->b_packed && job->args->b_type == TWB_F32),
                                     scratch, kept, chunks > 1);
        }
        k0 += TWB_KC;
    } while (k0 < job->args->k);
}

/* ---- few rows: B is read once, where it lies, and the numbers of A wait in the L1 ----------------

   With a row or a handful the time is B's way from memory; packing would read and write it once more.
   The order of the sums is the same as ever, so each layout of B needs its own way to walk:

   packed   panels are the order already; f32 takes the tiles above, 16-bit weights are widened on their way.
   [k,n]    rows of B are streamed, and the sums of a stretch of columns wait in the L1: each visit takes
            in four rows.
   [n,k]    a column's numbers lie one after another, and the sum over them must go in order, so lanes
            cannot share it: sixteen columns are transposed on their way through. */

/* the sums [rows][width] of a block of k into C, and the epilogue after the last */
TWB_FN void TWB_NAME(twb_skinny_store)(const twb_gemm_args *g, ptrdiff_t item, const float *sums, ptrdiff_t width, ptrdiff_t i, ptrdiff_t rows,
                                       ptrdiff_t j, ptrdiff_t columns, bool first, bool last) {
    TWB_NAME(twb_tile) t;
    float alpha[16], beta[16];
    t.c = g->c + item * g->stride_c + i * g->ldc + j;
    t.ldc = g->ldc; t.rows = rows; t.columns = columns;
    TWB_NAME(twb_tile_factors)(g, first, alpha, beta, &t);
    TWB_NAME(twb_store_sums)(sums, width, &t);
    if (last && g->epilogue) TWB_NAME(twb_gemm_epilogue)(g->epilogue, g->c + item * g->stride_c, g->ldc, item * g->stride_c, i, j, rows, columns);
}

/* R rows by P packed panels */
TWB_VFN void TWB_NAME(twb_skinny_panels)(const int R, const int P, const twb_type type, ptrdiff_t kc, const float *a, ptrdiff_t lda,
                                         const void *b, ptrdiff_t at, ptrdiff_t panel, float *sums, ptrdiff_t width) {
    twb_v sum[16];
    ptrdiff_t k;
    int r, p;
    TWB_UNROLL
    for (r = 0; r < R * P; r++) sum[r] = twb_set1(0.0f);
    for (k = 0; k < kc; k++) {
        TWB_UNROLL
        for (p = 0; p < P; p++) {
            twb_v w = TWB_NAME(twb_widen)(type, b, at + p * panel + k * 16);
            TWB_UNROLL
            for (r = 0; r < R; r++) sum[r * P + p] = twb_fma(twb_set1(a[r * lda + k]), w, sum[r * P + p]);
        }
    }
    TWB_UNROLL
    for (r = 0; r < R; r++) {
        TWB_UNROLL
        for (p = 0; p < P; p++) twb_store(sums + r * width + p * 16, sum[r * P + p]);
    }
}
#if TWB_PASS == TWB_PASS_AVX512
enum { TWB_NAME(twb_wide_2) = 4, TWB_NAME(twb_wide_4) = 4 };        /* panels beside 2 rows, beside 3 and 4 */
#else
enum { TWB_NAME(twb_wide_2) = 2, TWB_NAME(twb_wide_4) = 1 };
#endif
/* The same for a number of rows from 1 to 4, and as many of the `panels` as suit it.  Returns how many those were. */
TWB_VFN ptrdiff_t TWB_NAME(twb_skinny_some_panels)(const twb_type type, ptrdiff_t rows, ptrdiff_t panels, ptrdiff_t kc, const float *a,
                                                   ptrdiff_t lda, const void *b, ptrdiff_t at, float *sums, ptrdiff_t width) {
    const ptrdiff_t panel = kc * 16, wide = rows == 1 ? 4 : rows == 2 ? TWB_NAME(twb_wide_2) : TWB_NAME(twb_wide_4);
    ptrdiff_t r;
    if (panels < wide) {
        for (r = 0; r < rows; r++) TWB_NAME(twb_skinny_panels)(1, 1, type, kc, a + r * lda, lda, b, at, panel, sums + r * width, width);
        return 1;
    }
    if (rows == 1)      TWB_NAME(twb_skinny_panels)(1, 4, type, kc, a, lda, b, at, panel, sums, width);
    else if (rows == 2) TWB_NAME(twb_skinny_panels)(2, TWB_NAME(twb_wide_2), type, kc, a, lda, b, at, panel, sums, width);
    else if (rows == 3) TWB_NAME(twb_skinny_panels)(3, TWB_NAME(twb_wide_4), type, kc, a, lda, b, at, panel, sums, width);
    else                TWB_NAME(twb_skinny_panels)(4, TWB_NAME(twb_wide_4), type, kc, a, lda, b, at, panel, sums, width);
    return wide;
}
TWB_FN void TWB_NAME(twb_skinny_packed)(const twb_gemm_args *g, ptrdiff_t item, ptrdiff_t j0, ptrdiff_t j1) {
    const float *a = g->a + item * g->stride_a;
    const char *b = (const char *)g->b + item * g->stride_b * (ptrdiff_t)twb_type_bytes(g->b_type);
    float sums[4 * 64];
    ptrdiff_t k0 = 0, i, j;
    do {
        const ptrdiff_t kc = twb_min_size(TWB_KC, g->k - k0);
        for (j = j0; j < j1; j += 64) {
            ptrdiff_t at = twb_packed_at(g->n, j, k0, kc), panels = twb_ceil_div(twb_min_size(j1 - j, 64), 16), p;
            for (i = 0; i < g->m; i += 4) {
                ptrdiff_t rows = twb_min_size(g->m - i, 4);
                const float *x = a + i * g->lda + k0;
                for (p = 0; p < panels; ) {
                    const ptrdiff_t from = at + p * kc * 16;
                    if (g->b_type == TWB_F16)
                        p += TWB_NAME(twb_skinny_some_panels)(TWB_F16, rows, panels - p, kc, x, g->lda, b, from, sums + p * 16, 64);
                    else p += TWB_NAME(twb_skinny_some_panels)(TWB_BF16, rows, panels - p, kc, x, g->lda, b, from, sums + p * 16, 64);
                }
                TWB_NAME(twb_skinny_store)(g, item, sums, 64, i, rows, j, twb_min_size(64, j1 - j), k0 == 0, k0 + kc >= g->k);
            }
        }
        k0 += kc;
    } while (k0 < g->k);
}

/* the last k's, from k on, one by one */
TWB_FN void TWB_NAME(twb_skinny_rest)(int rows, twb_type type, ptrdiff_t k, ptrdiff_t kc, const float *a, ptrdiff_t lda,
                                      const void *b, ptrdiff_t at, ptrdiff_t ld, float *sums) {
    int r, l;
    for (; k < kc; k++)
        for (r = 0; r < rows; r++)
            for (l = 0; l < 16; l++) sums[r * 16 + l] = fmaf(a[r * lda + k], twb_number(type, b, at + l * ld + k), sums[r * 16 + l]);
}
/* B [n,k]: R rows by sixteen columns, whose numbers are transposed four k's at a time on their way through the registers.
   More columns at a time would be more streams of memory than a processor follows.  `sums` is [R][16]. */
TWB_VFN void TWB_NAME(twb_skinny_sixteen)(const int R, const twb_type type, ptrdiff_t kc, const float *a, ptrdiff_t lda,
                                          const void *b, ptrdiff_t at, ptrdiff_t ld, float *sums) {
    twb_s sum[4 * 16 / TWB_W];
    ptrdiff_t k, end, q;
    int r, l, d;
    for (r = 0; r < R * 16; r++) sums[r] = 0.0f;
    TWB_UNROLL
    for (r = 0; r < R * 16 / TWB_W; r++) sum[r] = twb_s_get(sums + r * TWB_W);
    for (k = 0; k + 4 <= kc; k = end) {
        end = k + 16 <= kc ? k + 16 : k + 4;                   /* sixteen k's are a whole line of memory */
        TWB_UNROLL
        for (l = 0; l < 16 / TWB_W; l++)
            for (q = k; q < end; q += 4) {
                twb_s w[4];
                twb_s_four(type, b, at + l * TWB_W * ld + q, ld, w);
                TWB_UNROLL
                for (d = 0; d < 4; d++) {
                    TWB_UNROLL
                    for (r = 0; r < R; r++) sum[r * (16 / TWB_W) + l] = twb_s_fma1(a + r * lda + q + d, w[d], sum[r * (16 / TWB_W) + l]);
                }
            }
    }
    TWB_UNROLL
    for (r = 0; r < R * 16 / TWB_W; r++) twb_s_put(sums + r * TWB_W, sum[r]);
    if (k < kc) TWB_NAME(twb_skinny_rest)(R, type, k, kc, a, lda, b, at, ld, sums);
}
TWB_FN void TWB_NAME(twb_skinny_columns)(const twb_gemm_args *g, ptrdiff_t item, ptrdiff_t j0, ptrdiff_t j1, float *panel) {
    const float *a = g->a + item * g->stride_a;
    const twb_type type = g->b_type;
    const char *b = (const char *)g->b + item * g->stride_b * (ptrdiff_t)twb_type_bytes(type);
    float sums[TWB_COLUMNS_ROWS * 16], ones[16];
    ptrdiff_t i, j, k0, rows;
    twb_store(ones, twb_set1(1.0f));
    for (j = j0; j < j1; j += 16) {
        const ptrdiff_t columns = twb_min_size(16, j1 - j);
        k0 = 0;
        do {
            const ptrdiff_t kc = twb_min_size(TWB_KC, g->k - k0), at = j * g->ldb + k0;
            const float *x = a + k0;
            if (columns < 16) {
                TWB_NAME(twb_pack_panels)(type, true, b, g->ldb, k0, kc, j, columns, panel, kc * 16);
                TWB_NAME(twb_small_product)(g->m, 16, kc, x, g->lda, 1, panel, 16, kc * 16, sums, 16, ones, NULL);
            } else {
                for (i = 0; i < g->m; i += rows, x += rows * g->lda) {
                    rows = type != TWB_F32 || g->m - i < 2 ? 1 : g->m - i < 4 ? 2 : 4;
                    if (rows == 4)            TWB_NAME(twb_skinny_sixteen)(4, TWB_F32, kc, x, g->lda, b, at, g->ldb, sums + i * 16);
                    else if (rows == 2)       TWB_NAME(twb_skinny_sixteen)(2, TWB_F32, kc, x, g->lda, b, at, g->ldb, sums + i * 16);
                    else if (type == TWB_F32) TWB_NAME(twb_skinny_sixteen)(1, TWB_F32, kc, x, g->lda, b, at, g->ldb, sums + i * 16);
                    else if (type == TWB_F16) TWB_NAME(twb_skinny_sixteen)(1, TWB_F16, kc, x, g->lda, b, at, g->ldb, sums + i * 16);
                    else                      TWB_NAME(twb_skinny_sixteen)(1, TWB_BF16, kc, x, g->lda, b, at, g->ldb, sums + i * 16);
                }
            }
            TWB_NAME(twb_skinny_store)(g, item, sums, 16, 0, g->m, j, columns, k0 == 0, k0 + kc >= g->k);
            k0 += kc;
        } while (k0 < g->k);
    }
}

/* B [n,k] with few_by_lanes: R rows by J columns, both read along k, where they lie: sixteen k's at a time, each into a lane of its
   own.  Nothing is transposed, and only R + J streams of memory are open.  `sums` is [R][16]. */
TWB_VFN void TWB_NAME(twb_skinny_dots)(const int R, const int J, const twb_type type, ptrdiff_t k, const float *a, ptrdiff_t lda,
                                       const void *b, ptrdiff_t at, ptrdiff_t ld, float *sums) {
    twb_v sum[4], x[2], w;
    ptrdiff_t l;
    int r, j;
    TWB_UNROLL
    for (r = 0; r < R * J; r++) sum[r] = twb_set1(0.0f);
    for (l = 0; l + 16 <= k; l += 16) {
        TWB_UNROLL
        for (r = 0; r < R; r++) x[r] = twb_load(a + r * lda + l);
        TWB_UNROLL
        for (j = 0; j < J; j++) {
            w = TWB_NAME(twb_widen)(type, b, at + j * ld + l);
            TWB_UNROLL
            for (r = 0; r < R; r++) sum[r * J + j] = twb_fma(x[r], w, sum[r * J + j]);
        }
    }
    if (l < k) {
        TWB_UNROLL
        for (r = 0; r < R; r++) x[r] = twb_get(a + r * lda + l, k - l);
        TWB_UNROLL
        for (j = 0; j < J; j++) {
            w = TWB_NAME(twb_get_type)(b, type, at + j * ld + l, k - l);
            TWB_UNROLL
            for (r = 0; r < R; r++) sum[r * J + j] = twb_fma(x[r], w, sum[r * J + j]);
        }
    }
    TWB_UNROLL
    for (r = 0; r < R; r++) {
        TWB_UNROLL
        for (j = 0; j < J; j++) sums[r * 16 + j] = twb_hsum(sum[r * J + j]);
    }
}
/* columns [j, j + columns) of up to 16, of one type: four sums at a time */
TWB_VFN void TWB_NAME(twb_skinny_dots_of)(const twb_type type, const twb_gemm_args *g, const float *a, const void *b, ptrdiff_t j, ptrdiff_t columns, float *sums) {
    ptrdiff_t l = 0;
    if (g->m == 2) {
        for (; l + 2 <= columns; l += 2) TWB_NAME(twb_skinny_dots)(2, 2, type, g->k, a, g->lda, b, (j + l) * g->ldb, g->ldb, sums + l);
        if (l < columns) TWB_NAME(twb_skinny_dots)(2, 1, type, g->k, a, g->lda, b, (j + l) * g->ldb, g->ldb, sums + l);
    } else if (g->m == 1) {
        for (; l + 4 <= columns; l += 4) TWB_NAME(twb_skinny_dots)(1, 4, type, g->k, a, g->lda, b, (j + l) * g->ldb, g->ldb, sums + l);
        for (; l < columns; l++) TWB_NAME(twb_skinny_dots)(1, 1, type, g->k, a, g->lda, b, (j + l) * g->ldb, g->ldb, sums + l);
    }
}
TWB_FN void TWB_NAME(twb_skinny_lanes)(const twb_gemm_args *g, ptrdiff_t item, ptrdiff_t j0, ptrdiff_t j1) {
    const float *a = g->a + item * g->stride_a;
    const char *b = (const char *)g->b + item * g->stride_b * (ptrdiff_t)twb_type_bytes(g->b_type);
    float sums[TWB_LANES_ROWS * 16];
    ptrdiff_t j;
    memset(sums, 0, sizeof sums);
    for (j = j0; j < j1; j += 16) {
        const ptrdiff_t columns = twb_min_size(16, j1 - j);
        if (g->b_type == TWB_F32)      TWB_NAME(twb_skinny_dots_of)(TWB_F32, g, a, b, j, columns, sums);
        else if (g->b_type == TWB_F16) TWB_NAME(twb_skinny_dots_of)(TWB_F16, g, a, b, j, columns, sums);
        else                           TWB_NAME(twb_skinny_dots_of)(TWB_BF16, g, a, b, j, columns, sums);
        TWB_NAME(twb_skinny_store)(g, item, sums, 16, 0, g->m, j, columns, true, true);
    }
}

/* B [k,n]: four rows of B into the sums of a stretch of columns.  R rows of A, known to the compiler, so that
   their 4 R numbers stay in registers along the stretch; `sums` [R][width]. */
TWB_VFN void TWB_NAME(twb_skinny_stream)(const int R, twb_type type, const void *b, ptrdiff_t at, ptrdiff_t ld, ptrdiff_t whole,
                                         const float *x, ptrdiff_t lda, float *sums, ptrdiff_t width) {
#if TWB_PASS == TWB_PASS_AVX512
    const ptrdiff_t element = (ptrdiff_t)twb_type_bytes(type);
#endif
    twb_v y[4 * 4];
    ptrdiff_t l;
    int r, d;
    TWB_UNROLL
    for (r = 0; r < R; r++) {
        TWB_UNROLL
        for (d = 0; d < 4; d++) y[r * 4 + d] = twb_set1(x[r * lda + d]);
    }
    for (l = 0; l < whole; l += 16) {
        twb_v w[4];
        if (type == TWB_F32) {
            TWB_UNROLL
            for (d = 0; d < 4; d++) w[d] = TWB_NAME(twb_widen)(TWB_F32, b, at + d * ld + l);
        } else {
            TWB_UNROLL
            for (d = 0; d < 4; d++) w[d] = type == TWB_F16 ? TWB_NAME(twb_widen)(TWB_F16, b, at + d * ld + l) : TWB_NAME(twb_widen)(TWB_BF16, b, at + d * ld + l);
        }
#if TWB_PASS == TWB_PASS_AVX512
        TWB_UNROLL
        for (d = 4; d < 8; d++) TWB_PREFETCH_L2((const char *)b + (at + d * ld + l) * element);      /* the next four rows */
#endif
        TWB_UNROLL
        for (r = 0; r < R; r++) {
            twb_v s = twb_load(sums + r * width + l);
            TWB_UNROLL
            for (d = 0; d < 4; d++) s = twb_fma(y[r * 4 + d], w[d], s);
            twb_store(sums + r * width + l, s);
        }
    }
}

TWB_FN void TWB_NAME(twb_skinny_rows)(const twb_gemm_args *g, ptrdiff_t item, ptrdiff_t j0, ptrdiff_t j1, float *sums) {
    const float *a = g->a + item * g->stride_a;
    const ptrdiff_t width = (j1 - j0 + 15) / 16 * 16, whole = (j1 - j0) / 16 * 16;
    const twb_type type = g->b_type;
    const char *b = (const char *)g->b + item * g->stride_b * (ptrdiff_t)twb_type_bytes(type);
    ptrdiff_t i, k, k0 = 0, l;
    do {
        const ptrdiff_t kc = twb_min_size(TWB_KC, g->k - k0);
        memset(sums, 0, (size_t)(g->m * width) * sizeof *sums);
        for (k = 0; k < kc; k += 4) {
            const ptrdiff_t at = (k0 + k) * g->ldb + j0, deep = twb_min_size(kc - k, 4);
            for (i = 0; i < g->m && deep == 4; i += 4) {
                const float *x = a + i * g->lda + k0 + k;
                float *to = sums + i * width;
                switch (g->m - i) {
                case 1:  TWB_NAME(twb_skinny_stream)(1, type, b, at, g->ldb, whole, x, g->lda, to, width); break;
                case 2:  TWB_NAME(twb_skinny_stream)(2, type, b, at, g->ldb, whole, x, g->lda, to, width); break;
                case 3:  TWB_NAME(twb_skinny_stream)(3, type, b, at, g->ldb, whole, x, g->lda, to, width); break;
                default: TWB_NAME(twb_skinny_stream)(4, type, b, at, g->ldb, whole, x, g->lda, to, width); break;
                }
            }
            for (l = deep == 4 ? whole : 0; l < width; l += 16) {         /* the last columns, and the last rows of B */
                ptrdiff_t d;
                for (d = 0; d < deep; d++) {
                    twb_v w = TWB_NAME(twb_get_type)(b, type, at + d * g->ldb + l, j1 - j0 - l);
                    for (i = 0; i < g->m; i++) {
                        float *to = sums + i * width + l;
                        twb_store(to, twb_fma(twb_set1(a[i * g->lda + k0 + k + d]), w, twb_load(to)));
                    }
                }
            }
        }
        TWB_NAME(twb_skinny_store)(g, item, sums, width, 0, g->m, j0, j1 - j0, k0 == 0, k0 + kc >= g->k);
        k0 += kc;
    } while (k0 < g->k);
}

/* ---- products of bf16 numbers ---------------------------------------------------------------------

   bf16 is an f32 without the lower half of its bits: the same range, 8 bits of precision where f32 has 24.  For the
   operands of a product that is enough: their errors have all signs, and in a sum of hundreds of products most of them
   cancel.  For a sum it is not, a new product must be 1/256 of the sum to move it at all, so sums stay f32.

   AVX512_BF16 has vdpbf16ps: in each of sixteen lanes, two products of bf16 numbers are added to an f32.  Twice the
   multiply-adds of f32's instruction, with the same registers and the same 14x32 tiles.  A lane wants two k's of a column side
   by side, so a panel is

       [kc/2][16][2]     k 1 | k 0 of column 0 | k 1 | k 0 of column 1 | ... of column 15 | k 3 | k 2 of column 0 | ...

   and a strip of A has the same pairs, 32 bits each, which are broadcast to all lanes.  An odd kc ends in a pair with a
   zero.  The earlier k is in the UPPER half: the instruction is specified as two fused multiply-adds, upper halves first, so
   this is the order in which the f32 kernels add.  What is left of the difference to them is that the instruction
   takes denormal numbers for zeros and turns denormal results into zeros.  (So the manual has it; we promise only
   what the declarations say.)

   Without that instruction, A and B are rounded as they are packed, and multiplied by the f32 kernels. */

TWB_FN void TWB_NAME(twb_round_floats)(float *x, ptrdiff_t n) {
    ptrdiff_t l;
    for (l = 0; l < n; l += 16) twb_put(x + l, TWB_NAME(twb_round_bf16)(twb_get(x + l, n - l)), n - l);
}

/* What one step of a kernel takes of row k of a matrix and of the next: their pairs, or row k alone, rounded.  Pairs travel as
   floats that nobody calculates with. */
TWB_VFN twb_v TWB_NAME(twb_bf16_step)(bool pairs, const void *p, twb_type type, ptrdiff_t at, ptrdiff_t next, bool last, ptrdiff_t n) {
    const twb_v x = TWB_NAME(twb_round_bf16)(TWB_NAME(twb_get_type)(p, type, at, n));
    if (!pairs || last) return x;
    return twb_unbits(twb_ior(twb_bits(x), twb_ishr(twb_bits(TWB_NAME(twb_round_bf16)(TWB_NAME(twb_get_type)(p, type, at + next, n))), 16)));
}

/* Columns [j0, j1) of B, rounded, in panels of `depth` steps.  `square` has room for one panel in f32.  Rows that lie far apart are
   walked eight at a time over all panels, or each line of memory would come from another page. */
TWB_FN void TWB_NAME(twb_bf16_panels)(const twb_gemm_job *job, const char *b, ptrdiff_t k0, ptrdiff_t kc, ptrdiff_t depth, ptrdiff_t j0, ptrdiff_t j1,
                                      float *square, float *panels) {
    const twb_gemm_args *g = job->args;
    const ptrdiff_t step = job->pairs ? 2 : 1, some = g->b_packed || g->trans_b ? kc : 8;
    ptrdiff_t j, k, l;
    for (k = 0; k < kc; k += some)
        for (j = j0; j < j1; j += 16) {
            const void *from = b;
            twb_type type = g->b_type;
            ptrdiff_t at = k0 * g->ldb + j, next = g->ldb, n = j1 - j;
            float *to = panels + (j - j0) * depth + k / step * 16;
            if (g->b_packed) { at = twb_packed_at(g->n, j, k0, kc); next = n = 16; }
            else if (g->trans_b) {
                TWB_NAME(twb_pack_panels)(type, true, b, g->ldb, k0, kc, j, twb_min_size(n, 16), square, 0);
                from = square; type = TWB_F32;
                at = 0; next = n = 16;
            }
            for (l = k; l < kc && l < k + some; l += step, to += 16)
                twb_store(to, TWB_NAME(twb_bf16_step)(job->pairs, from, type, at + l * next, next, l + 1 == kc, n));
        }
    if (job->pairs)                       /* the kernels take panels by fours and twos: zeros beyond the last */
        for (j = twb_ceil_div(j1 - j0, 16) * 16; j % 64 != 0; j += 16)
            for (k = 0; k < depth; k++) twb_store(panels + j * depth + k * 16, twb_set1(0.0f));
}

#if TWB_PASS == TWB_PASS_AVX512 && TWB_X86_BF16
#define TWB_BF16_TARGET TWB_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
enum { TWB_NAME(twb_pairs_row) = TWB_KC / 2 + 16 };        /* from row to row in a strip: 9 lines */

/* a row of n numbers as pairs, a multiple of 16 of them */
TWB_FN void TWB_NAME(twb_pair_row)(const float *a, ptrdiff_t n, float *to) {
    const twb_vi even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), odd = twb_ior(even, twb_iset1(1u));
    ptrdiff_t k;
    for (k = 0; k < n; k += 32, to += 16) {
        const twb_v x = twb_get(a + k, n - k), y = n - k > 16 ? twb_get(a + k + 16, n - k - 16) : twb_set1(0.0f);
        const twb_v first = TWB_NAME(twb_round_bf16)(_mm512_permutex2var_ps(x, even, y)), second = TWB_NAME(twb_round_bf16)(_mm512_permutex2var_ps(x, odd, y));
        twb_store(to, twb_unbits(twb_ior(twb_bits(first), twb_ishr(twb_bits(second), 16))));
    }
}

/* The micro-kernel: as twb_kernel, over `depth` pairs. */
TWB_BF16_TARGET TWB_INLINE void TWB_NAME(twb_bf16_kernel)(const int R, const int P, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_step,
                                                          const float *b, ptrdiff_t b_row, ptrdiff_t b_panel, const TWB_NAME(twb_tile) *t) {
    twb_v sum[TWB_TILE_VECTORS];
    float sums[TWB_TILE_VECTORS * 16];
    ptrdiff_t k;
    int r, p;
    TWB_UNROLL
    for (r = 0; r < R * P; r++) sum[r] = twb_set1(0.0f);
    for (k = 0; k < depth; k++) {
        twb_vi row[4];
        TWB_UNROLL
        for (p = 0; p < P; p++) row[p] = twb_bits(twb_load(b + p * b_panel));
        TWB_UNROLL
        for (r = 0; r < R; r++) {
            const twb_vi x = twb_bits(twb_set1(a[r * a_row]));
            TWB_UNROLL
            for (p = 0; p < P; p++) sum[r * P + p] = _mm512_dpbf16_ps(sum[r * P + p], (__m512bh)x, (__m512bh)row[p]);
        }
        a += a_step;
        b += b_row;
    }
    TWB_UNROLL
    for (r = 0; r < R * P; r++) twb_store(sums + r * 16, sum[r]);
    TWB_NAME(twb_store_sums)(sums, P * 16, t);
}
/* one for each height: low tiles are wider, for the sake of the number of sums */
#define TWB_KERNELS(X) X(1,4) X(2,4) X(3,4) X(4,4) X(5,4) X(6,4) X(7,2) X(8,2) X(9,2) X(10,2) X(11,2) X(12,2) X(13,2) X(14,2)
#define TWB_ROW(R, P) \
    TWB_UNUSED TWB_BF16_TARGET static void TWB_NAME(twb_bf16_kernel_##R##x##P)(ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_step, \
                                       const float *b, ptrdiff_t b_row, ptrdiff_t b_panel, const TWB_NAME(twb_tile) *t) { \
        TWB_NAME(twb_bf16_kernel)(R, P, depth, a, a_row, a_step, b, b_row, b_panel, t); \
    }
TWB_KERNELS(TWB_ROW)
#undef TWB_ROW
#define TWB_ROW(R, P) { P, TWB_NAME(twb_bf16_kernel_##R##x##P) },
static const TWB_NAME(twb_kernel_of) TWB_NAME(twb_bf16_kernels)[] = { TWB_KERNELS(TWB_ROW) };
#undef TWB_ROW
#undef TWB_KERNELS
#undef TWB_BF16_TARGET
#endif

/* Rows [i, i + rows) of A, rounded: step k of row r at to[r a_row + k a_step]. */
TWB_FN void TWB_NAME(twb_bf16_strip)(const twb_gemm_job *job, const float *a, ptrdiff_t i, ptrdiff_t rows, ptrdiff_t k0, ptrdiff_t kc, float *to,
                                     ptrdiff_t *a_row, ptrdiff_t *a_step) {
    const twb_gemm_args *g = job->args;
    ptrdiff_t k, r;
    *a_row = g->trans_a ? 1 : TWB_A_ROW;
    *a_step = g->trans_a ? 16 : 1;
    if (g->trans_a) {                     /* the rows lie side by side, as B's columns do */
        for (k = 0; k < kc; k += job->pairs ? 2 : 1, to += 16)
            twb_store(to, TWB_NAME(twb_bf16_step)(job->pairs, a, TWB_F32, (k0 + k) * g->lda + i, g->lda, k + 1 == kc, twb_min_size(g->m - i, 16)));
        return;
    }
#if TWB_PASS == TWB_PASS_AVX512 && TWB_X86_BF16
    if (job->pairs) {
        *a_row = TWB_NAME(twb_pairs_row);
        for (r = 0; r < rows; r++) TWB_NAME(twb_pair_row)(a + (i + r) * g->lda + k0, kc, to + r * TWB_NAME(twb_pairs_row));
        return;
    }
#endif
    TWB_NAME(twb_copy_strip)(g, a, i, rows, k0, kc, to);
    for (r = 0; r < rows; r++) TWB_NAME(twb_round_floats)(to + r * TWB_A_ROW, kc);
}

TWB_FN const TWB_NAME(twb_kernel_of) *TWB_NAME(twb_bf16_kernel_for)(const twb_gemm_job *job, ptrdiff_t rows, ptrdiff_t panels) {
#if TWB_PASS == TWB_PASS_AVX512 && TWB_X86_BF16
    if (job->pairs) return &TWB_NAME(twb_bf16_kernels)[rows - 1];
#endif
    (void)job;
    return TWB_NAME(twb_kernel_for)(rows, panels);
}

TWB_FN void TWB_NAME(twb_bf16_tiles)(const twb_gemm_job *job, ptrdiff_t item, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, float *scratch) {
    const twb_gemm_args *g = job->args;
    const float *a = g->a + item * g->stride_a;
    const char *b = (const char *)g->b + item * g->stride_b * (ptrdiff_t)twb_type_bytes(g->b_type);
    float *c = g->c + item * g->stride_c, *panels = scratch + TWB_STRIP_FLOATS, alpha[16], beta[16];
    const ptrdiff_t strips = twb_ceil_div(i1 - i0, TWB_ROWS);
    ptrdiff_t k0 = 0, i, j;
    TWB_NAME(twb_tile) t;
    t.stream = 0;
    t.ldc = g->ldc;
    do {
        const ptrdiff_t kc = twb_min_size(TWB_KC, g->k - k0), depth = job->pairs ? (kc + 1) / 2 : kc;
        ptrdiff_t left = strips, a_row, a_step;
        TWB_NAME(twb_bf16_panels)(job, b, k0, kc, depth, j0, j1, scratch, panels);
        TWB_NAME(twb_tile_factors)(g, k0 == 0, alpha, beta, &t);
        for (i = i0; i < i1; i += t.rows, left--) {
            const TWB_NAME(twb_kernel_of) *kernel = NULL;
            t.rows = twb_ceil_div(i1 - i, left);
            TWB_NAME(twb_bf16_strip)(job, a, i, t.rows, k0, kc, scratch, &a_row, &a_step);
            for (j = j0; j < j1; j += 16 * kernel->width) {
                kernel = TWB_NAME(twb_bf16_kernel_for)(job, t.rows, twb_ceil_div(j1 - j, 16));
                t.c = c + i * g->ldc + j;
                t.columns = twb_min_size(16 * kernel->width, j1 - j);
                kernel->run(depth, scratch, a_row, a_step, panels + (j - j0) * depth, 16, depth * 16, &t);
                if (g->epilogue && k0 + kc >= g->k)
                    TWB_NAME(twb_gemm_epilogue)(g->epilogue, c, g->ldc, item * g->stride_c, i, j, t.rows, t.columns);
            }
        }
        k0 += kc;
    } while (k0 < g->k);
}

TWB_FN void TWB_NAME(twb_gemm_task)(const twb_gemm_job *job, ptrdiff_t item, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, float *scratch) {
    switch (job->way) {
    case TWB_WAY_TILES: TWB_NAME(twb_gemm_tiles)(job, item, i0, i1, j0, j1, scratch); break;
    case TWB_WAY_PACKED: TWB_NAME(twb_skinny_packed)(job->args, item, j0, j1); break;
    case TWB_WAY_COLUMNS: TWB_NAME(twb_skinny_columns)(job->args, item, j0, j1, scratch); break;
    case TWB_WAY_LANES: TWB_NAME(twb_skinny_lanes)(job->args, item, j0, j1); break;
    case TWB_WAY_ROWS: TWB_NAME(twb_skinny_rows)(job->args, item, j0, j1, scratch); break;
    case TWB_WAY_BF16: TWB_NAME(twb_bf16_tiles)(job, item, i0, i1, j0, j1, scratch); break;
    }
}

TWB_FN void TWB_NAME(twb_gemm_worker)(void *arg, int worker) {
    twb_gemm_job *job = (twb_gemm_job *)arg;
    const twb_gemm_args *g = job->args;
    float *scratch = job->scratch + (size_t)worker * job->worker_floats;
    ptrdiff_t task = -1;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count) {
        ptrdiff_t column = task % job->column_tasks, row = task / job->column_tasks % job->row_tasks;
        ptrdiff_t item = task / job->column_tasks / job->row_tasks, i = row * job->task_rows, j = column * job->task_columns;
        TWB_NAME(twb_gemm_task)(job, item, i, twb_min_size(i + job->task_rows, g->m), j, twb_min_size(j + job->task_columns, g->n), scratch);
    }
}

TWB_FN void TWB_NAME(twb_pack_worker)(void *arg, int worker) {
    twb_pack_job *job = (twb_pack_job *)arg;
    ptrdiff_t task = -1, j, k0, k;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count) {
        const ptrdiff_t j0 = job->first + task * 64 * 16, j1 = twb_min_size(j0 + 64 * 16, job->end);
        for (k0 = 0; k0 < job->k; k0 += TWB_KC) {
            const ptrdiff_t kc = twb_min_size(TWB_KC, job->k - k0), at = twb_packed_at(job->n, j0, k0, kc);
            if (job->type == TWB_F32) {
                TWB_NAME(twb_pack_panels)(job->b_type, job->trans, job->b, job->ldb, k0, kc, j0 - job->first, j1 - j0, (float *)job->packed + at, kc * 16);
                continue;
            }
            for (j = j0; j < j1; j += 16) {            /* 16 bits: a panel as floats, then narrow */
                float panel[TWB_KC * 16];
                uint16_t *to = (uint16_t *)job->packed + at + (j - j0) * kc;
                TWB_NAME(twb_pack_panels)(job->b_type, job->trans, job->b, job->ldb, k0, kc, j - job->first, twb_min_size(j1 - j, 16), panel, kc * 16);
                for (k = 0; k < kc * 16; k += 16) {
                    if (job->type == TWB_F16) twb_put_f16(to + k, twb_load(panel + k));
                    else twb_put_bf16(to + k, twb_load(panel + k));
                }
            }
        }
    }
}
#undef twb_s
#undef twb_s_load
#undef twb_s_get
#undef twb_s_put
#undef twb_s_fma1
#undef twb_s_transpose
#undef twb_s_four
#undef TWB_W
#undef TWB_ROWS
#undef TWB_TILE_VECTORS

/* ---- [twb:05] quantized weights: the kernels -------------------------------------------------- */

/* Keeps the compiler from moving what is before behind it and so from holding more products than there are registers:
   without it gcc makes all of a step's products first and spills the sums. */
#if (TWB_PASS == TWB_PASS_AVX2) && (defined(__GNUC__) || defined(__clang__))
#  define TWB_IN_ORDER(v) __asm__ volatile ("" : "+x"((v).a), "+x"((v).b))
#elif (TWB_PASS == TWB_PASS_AVX512) && (defined(__GNUC__) || defined(__clang__))
#  define TWB_IN_ORDER(v) __asm__ volatile ("" : "+v"(v))
#else
#  define TWB_IN_ORDER(v) ((void)0)
#endif

#define twb_bytes      TWB_NAME(twb_bytes)
#define twb_put_bytes  TWB_NAME(twb_put_bytes)
#define twb_qdot       TWB_NAME(twb_qdot)
#define twb_qhalf      TWB_NAME(twb_qhalf)

/* What each kernel set brings:
   twb_bytes   64 bytes of a panel: four k's of each of sixteen columns
   twb_qhalf   4-bit weights: the lower or the upper halves of all bytes
   twb_qdot    acc += four products in each column; x points to the four k's of A
   twb_qwide   where TWB_Q4_SHORT says that 4-bit products are added in 16 bits: two such sums as one of 32 bits
   twb_put_bytes  sixteen numbers of 32 bits as bytes: A
   TWB_Q8_LIFT what the set's twb_qdot adds to an 8-bit weight, 128 to have it unsigned, or 0; 4-bit weights lie 8 too large in every set */
#if TWB_PASS == TWB_PASS_AVX2 || TWB_PASS == TWB_PASS_AVX512
#  define twb_qwide TWB_NAME(twb_qwide)
#  define TWB_Q8_LIFT 128
#  define TWB_Q4_SHORT(vnni) (!(vnni))
#else
#  define TWB_Q8_LIFT 0
#  define TWB_Q4_SHORT(vnni) false
#  define twb_qwide(acc) (acc)
#endif
#if TWB_PASS == TWB_PASS_PLAIN
TWB_VFN twb_vi twb_bytes(const unsigned char *p) { twb_vi r; memcpy(r.u, p, sizeof r.u); return r; }
TWB_VFN twb_vi twb_qhalf(twb_vi w, int upper) {
    int j;
    for (j = 0; j < 16; j++) w.u[j] = (w.u[j] >> (upper ? 4 : 0)) & 0x0F0F0F0Fu;
    return w;
}
TWB_VFN twb_vi twb_qdot(const twb_type type, const bool vnni, twb_vi acc, twb_vi w, const signed char *x) {
    signed char b[64];
    int j;
    (void)type; (void)vnni;
    memcpy(b, w.u, sizeof b);
    for (j = 0; j < 16; j++) acc.u[j] += (uint32_t)(b[4 * j] * x[0] + b[4 * j + 1] * x[1] + b[4 * j + 2] * x[2] + b[4 * j + 3] * x[3]);
    return acc;
}
TWB_VFN void twb_put_bytes(signed char *p, twb_vi x) { int j; for (j = 0; j < 16; j++) p[j] = (signed char)(int32_t)x.u[j]; }

#elif TWB_PASS == TWB_PASS_NEON
TWB_VFN twb_vi twb_bytes(const unsigned char *p) { twb_vi r; int j; for (j = 0; j < 4; j++) r.q[j] = vreinterpretq_u32_u8(vld1q_u8(p + 16 * j)); return r; }
TWB_VFN twb_vi twb_qhalf(twb_vi w, int upper) {
    int j;
    for (j = 0; j < 4; j++) {
        uint8x16_t b = vreinterpretq_u8_u32(w.q[j]);
        w.q[j] = vreinterpretq_u32_u8(upper ? vshrq_n_u8(b, 4) : vandq_u8(b, vdupq_n_u8(15)));
    }
    return w;
}
/* acc += four signed bytes times four signed bytes in each lane; run only where cpu->sdot says so */
#if defined(__ARM_FEATURE_DOTPROD)
#  define TWB_SDOT(acc, w, a) ((acc) = vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(acc), vreinterpretq_s8_u32(w), vreinterpretq_s8_u32(a))))
#elif TWB_ARM_SDOT
/* sdot %0.4s, %1.16b, %2.16b by its number, as an assembler told to make code for every 64-bit ARM refuses its name */
#  define TWB_SDOT(acc, w, a) \
    __asm__ volatile (".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t.equ .Ltwb_v\\n, \\n\n\t.endr\n\t" \
                      ".inst 0x4E809400 | (.Ltwb_%2 << 16) | (.Ltwb_%1 << 5) | .Ltwb_%0" : "+w"(acc) : "w"(w), "w"(a))
#else
#  define TWB_SDOT(acc, w, a) ((void)0)
#endif
TWB_VFN twb_vi twb_qdot(const twb_type type, const bool vnni, twb_vi acc, twb_vi w, const signed char *x) {
    uint32_t four;
    int8x8_t a;
    int j;
    (void)type;
    memcpy(&four, x, sizeof four);
    if (vnni) {
        const uint32x4_t fours = vdupq_n_u32(four);
        for (j = 0; j < 4; j++) TWB_SDOT(acc.q[j], w.q[j], fours);
        return acc;
    }
    a = vreinterpret_s8_u32(vdup_n_u32(four));
    for (j = 0; j < 4; j++) {                             /* two products fit 16 bits: 2 x 128 x 64 < 32768 */
        int8x16_t b = vreinterpretq_s8_u32(w.q[j]);
        int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(b), a), vmull_s8(vget_high_s8(b), a));
        acc.q[j] = vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(acc.q[j]), pairs));
    }
    return acc;
}
TWB_VFN void twb_put_bytes(signed char *p, twb_vi x) {
    int16x8_t a = vcombine_s16(vmovn_s32(vreinterpretq_s32_u32(x.q[0])), vmovn_s32(vreinterpretq_s32_u32(x.q[1])));
    int16x8_t b = vcombine_s16(vmovn_s32(vreinterpretq_s32_u32(x.q[2])), vmovn_s32(vreinterpretq_s32_u32(x.q[3])));
    vst1q_s8((int8_t *)p, vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
}

#elif TWB_PASS == TWB_PASS_AVX2
TWB_VFN twb_vi twb_bytes(const unsigned char *p) { twb_vi r; memcpy(&r.a, p, sizeof r.a); memcpy(&r.b, p + 32, sizeof r.b); return r; }
TWB_VFN twb_vi twb_qhalf(twb_vi w, int upper) {
    const __m256i low = _mm256_set1_epi8(15);
    if (upper) { w.a = _mm256_srli_epi16(w.a, 4); w.b = _mm256_srli_epi16(w.b, 4); }
    w.a = _mm256_and_si256(w.a, low);
    w.b = _mm256_and_si256(w.b, low);
    return w;
}
/* AVX_VNNI's vpdpbusd: see AVX-512's below.  Of its two encodings this is the older processors', without AVX-512. */
#if TWB_X86_AVXVNNI
#  define TWB_DPBUSD_VEX(acc, u, s) __asm__ volatile ("%{vex%} vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+x"(acc) : "x"(u), "x"(s))
#else
#  define TWB_DPBUSD_VEX(acc, u, s) ((void)0)
#endif
TWB_VFN twb_vi twb_qdot(const twb_type type, const bool vnni, twb_vi acc, twb_vi w, const signed char *x) {
    int32_t four;
    __m256i a;
    memcpy(&four, x, sizeof four);
    a = _mm256_set1_epi32(four);
    if (type == TWB_Q8_0) w = twb_ixor(w, twb_iset1(0x80808080u));         /* once for all rows of a tile, as they share w */
    if (vnni) {
        TWB_DPBUSD_VEX(acc.a, w.a, a);
        TWB_DPBUSD_VEX(acc.b, w.b, a);
    } else if (type == TWB_Q8_0) {
        const __m256i ones = _mm256_set1_epi16(1);
        acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.a, a), ones));
        acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, a), ones));
    } else {
        acc.a = _mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, a));
        acc.b = _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, a));
    }
    return acc;
}
TWB_VFN twb_vi twb_qwide(twb_vi acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    acc.a = _mm256_madd_epi16(acc.a, ones);
    acc.b = _mm256_madd_epi16(acc.b, ones);
    return acc;
}
TWB_VFN void twb_put_bytes(signed char *p, twb_vi x) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    memcpy(p, &bytes, sizeof bytes);
}

#else /* AVX-512 */
TWB_VFN twb_vi twb_bytes(const unsigned char *p) { twb_vi r; memcpy(&r, p, sizeof r); return r; }
TWB_VFN twb_vi twb_qhalf(twb_vi w, int upper) {
    return _mm512_and_si512(upper ? _mm512_srli_epi16(w, 4) : w, _mm512_set1_epi8(15));
}
/* acc += u (unsigned bytes) times s (signed bytes), four in each lane: an instruction of AVX512_VNNI, written out because
   this set's functions are compiled for processors without it too; it is run only where cpu->vnni says so. */
#if defined(_MSC_VER) && !defined(__clang__)
#  define TWB_DPBUSD(acc, u, s) ((acc) = _mm512_dpbusd_epi32((acc), (u), (s)))
#else
#  define TWB_DPBUSD(acc, u, s) __asm__ volatile ("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(acc) : "v"(u), "v"(s))
#endif
TWB_VFN twb_vi twb_qdot(const twb_type type, const bool vnni, twb_vi acc, twb_vi w, const signed char *x) {
    int32_t four;
    __m512i a;
    memcpy(&four, x, sizeof four);
    a = _mm512_set1_epi32(four);
    if (type == TWB_Q8_0) w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
    if (vnni) TWB_DPBUSD(acc, w, a);
    else if (type == TWB_Q8_0) acc = _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1)));
    else acc = _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, a));
    return acc;
}
TWB_VFN twb_vi twb_qwide(twb_vi acc) { return _mm512_madd_epi16(acc, _mm512_set1_epi16(1)); }
TWB_VFN void twb_put_bytes(signed char *p, twb_vi x) {
    __m128i bytes = _mm512_maskz_cvtepi32_epi8((__mmask16)0xFFFF, x);
    memcpy(p, &bytes, sizeof bytes);
}
#endif

/* The tile: R rows of A by P neighbouring panels, over all of k; sums [R][16 P]. */
TWB_VFN void TWB_NAME(twb_quant_tile)(const int R, const int P, const twb_type type, const bool vnni, const twb_quant_job *job, ptrdiff_t i,
                                      const unsigned char *panel, float *sums) {
    const ptrdiff_t blocks = job->blocks, row = blocks * TWB_QUANT_BLOCK, bytes = TWB_PANEL * twb_quant_block_bytes(type), next = blocks * bytes;
    const ptrdiff_t distance = TWB_QUANT_AHEAD / P;
    const signed char *x = job->q + i * row;
    const float *d = job->d + i * blocks;
    const int32_t *start = job->start + i * blocks;
    const bool in_16_bits = type == TWB_Q4_0 && TWB_Q4_SHORT(vnni);
    twb_v sum[TWB_QUANT_ROWS];
    ptrdiff_t b;
    int g, r, p;
    TWB_UNROLL
    for (r = 0; r < R * P; r++) sum[r] = twb_set1(0.0f);
    for (b = 0; b < blocks; b++) {
        /* what is fetched from memory: this panel some bytes on, and near its end the one after its neighbours */
        const char *ahead = (const char *)panel + distance + (b * bytes + distance < next ? 0 : (P - 1) * next);
        twb_vi acc[TWB_QUANT_ROWS];
        TWB_UNROLL
        for (r = 0; r < R * P; r++) acc[r] = in_16_bits ? twb_iset1(0) : twb_iset1((uint32_t)start[r / P * blocks + b]);
        TWB_UNROLL
        for (g = 0; g < 8; g++) {                             /* 4-bit weights: k's 4h + 16 (g odd) lie in the upper halves */
            const int h = type == TWB_Q8_0 ? g : g / 2, from = type == TWB_Q8_0 ? 4 * g : 4 * h + g % 2 * 16;
            TWB_UNROLL
            for (p = 0; p < P; p++) {
                twb_vi w = twb_bytes(panel + p * next + 32 + 64 * h);
                if (type == TWB_Q8_0 || g % 2 == 0) TWB_PREFETCH(ahead + p * next + 64 * h);
                if (type == TWB_Q4_0) w = twb_qhalf(w, g % 2);
                TWB_UNROLL
                for (r = 0; r < R; r++) {
                    acc[r * P + p] = twb_qdot(type, vnni, acc[r * P + p], w, x + r * row + from);
                    TWB_IN_ORDER(acc[r * P + p]);
                }
            }
        }
        TWB_UNROLL
        for (p = 0; p < P; p++) {
            const twb_v scale = twb_load_f16((const uint16_t *)(const void *)(panel + p * next));
            TWB_UNROLL
            for (r = 0; r < R; r++) {
                if (in_16_bits) acc[r * P + p] = twb_iadd(twb_qwide(acc[r * P + p]), twb_iset1((uint32_t)start[r * blocks + b]));
                sum[r * P + p] = twb_fma(twb_tofloat(acc[r * P + p]), twb_mul(scale, twb_set1(d[r * blocks + b])), sum[r * P + p]);
            }
        }
        x += TWB_QUANT_BLOCK;
        panel += bytes;
    }
    TWB_UNROLL
    for (r = 0; r < R * P; r++) twb_store(sums + r * 16, sum[r]);
}

typedef void (*TWB_NAME(twb_quant_tile_fn))(const twb_quant_job *job, ptrdiff_t i, const unsigned char *panel, float *sums);
#define TWB_TILE(R, P, V, vnni) \
    TWB_FN void TWB_NAME(twb_quant_tile_q8_##R##P##V)(const twb_quant_job *job, ptrdiff_t i, const unsigned char *panel, float *sums) { \
        TWB_NAME(twb_quant_tile)(R, P, TWB_Q8_0, vnni, job, i, panel, sums); } \
    TWB_FN void TWB_NAME(twb_quant_tile_q4_##R##P##V)(const twb_quant_job *job, ptrdiff_t i, const unsigned char *panel, float *sums) { \
        TWB_NAME(twb_quant_tile)(R, P, TWB_Q4_0, vnni, job, i, panel, sums); }
/* by the number of rows; then one row by four panels, and two by two */
#define TWB_TILES_OF(type, V) { TWB_NAME(twb_quant_tile_##type##_11##V), TWB_NAME(twb_quant_tile_##type##_21##V), TWB_NAME(twb_quant_tile_##type##_31##V), \
                                TWB_NAME(twb_quant_tile_##type##_41##V), TWB_NAME(twb_quant_tile_##type##_14##V), TWB_NAME(twb_quant_tile_##type##_22##V) }
#define TWB_TILES(V) { TWB_TILES_OF(q8, V), TWB_TILES_OF(q4, V) }
TWB_TILE(1, 1, b, false) TWB_TILE(2, 1, b, false) TWB_TILE(3, 1, b, false) TWB_TILE(4, 1, b, false) TWB_TILE(1, 4, b, false) TWB_TILE(2, 2, b, false)
#if TWB_PASS == TWB_PASS_AVX512 || (TWB_PASS == TWB_PASS_AVX2 && TWB_X86_AVXVNNI) || (TWB_PASS == TWB_PASS_NEON && TWB_ARM_SDOT)
TWB_TILE(1, 1, v, true) TWB_TILE(2, 1, v, true) TWB_TILE(3, 1, v, true) TWB_TILE(4, 1, v, true) TWB_TILE(1, 4, v, true) TWB_TILE(2, 2, v, true)
static const TWB_NAME(twb_quant_tile_fn) TWB_NAME(twb_quant_tiles)[2][2][TWB_QUANT_ROWS + 2] = { TWB_TILES(b), TWB_TILES(v) };
#else
static const TWB_NAME(twb_quant_tile_fn) TWB_NAME(twb_quant_tiles)[2][2][TWB_QUANT_ROWS + 2] = { TWB_TILES(b), TWB_TILES(b) };
#endif
#undef TWB_TILES_OF
#undef TWB_TILE
#undef TWB_TILES

TWB_FN void TWB_NAME(twb_quant_worker)(void *arg, int worker) {
    twb_quant_job *job = (twb_quant_job *)arg;
    const twb_gemm_args *g = job->args;
    const TWB_NAME(twb_quant_tile_fn) *tiles = TWB_NAME(twb_quant_tiles)[job->vnni ? 1 : 0][g->b_type == TWB_Q8_0 ? 0 : 1];
    float sums[TWB_QUANT_ROWS * 16];
    ptrdiff_t task = -1, i, j;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count) {
        const ptrdiff_t i0 = task / job->column_tasks * job->task_rows, i1 = twb_min_size(i0 + job->task_rows, g->m);
        const ptrdiff_t j0 = task % job->column_tasks * job->task_columns, j1 = twb_min_size(j0 + job->task_columns, g->n);
        const ptrdiff_t beside = twb_quant_beside(i1 - i0);
        ptrdiff_t panels;
        for (j = j0; j < j1; j += 16 * panels) {
            const unsigned char *panel = g->k > 0 ? (const unsigned char *)g->b + twb_quant_at(g->b_type, g->k, j / 16, 0) : NULL;
            ptrdiff_t left = twb_ceil_div(i1 - i0, TWB_QUANT_ROWS);
            panels = j1 - j > 16 * (beside - 1) ? beside : 1;
            for (i = i0; i < i1; left--) {
                const ptrdiff_t rows = twb_ceil_div(i1 - i, left);
                tiles[panels > 1 ? TWB_QUANT_ROWS + rows - 1 : rows - 1](job, i, panel, sums);
                TWB_NAME(twb_skinny_store)(g, 0, sums, 16 * panels, i, rows, j, twb_min_size(16 * panels, j1 - j), true, true);
                i += rows;
            }
        }
    }
}

/* Rows of A to whole numbers from -64 to 64: a task is sixteen rows. */
TWB_FN void TWB_NAME(twb_quant_rows_worker)(void *arg, int worker) {
    twb_quant_job *job = (twb_quant_job *)arg;
    const twb_gemm_args *g = job->args;
    const ptrdiff_t row = job->blocks * TWB_QUANT_BLOCK;
    ptrdiff_t task = -1, i, b;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count)
        for (i = task * 16; i < twb_min_size(task * 16 + 16, g->m); i++)
            for (b = 0; b < job->blocks; b++) {
                const float *a = g->a + i * g->lda + b * TWB_QUANT_BLOCK;
                const ptrdiff_t n = g->k - b * TWB_QUANT_BLOCK;
                signed char *q = job->q + i * row + b * TWB_QUANT_BLOCK;
                twb_v low = n >= 16 ? twb_load(a) : twb_loadn(a, (int)n), high;
                float top, bad, d = 0;
                int32_t sum = 0;
                twb_vi x = twb_iset1(0), y = x;
                high = n >= 32 ? twb_load(a + 16) : n > 16 ? twb_loadn(a + 16, (int)(n - 16)) : twb_set1(0.0f);
                top = twb_hmax(twb_max(twb_abs(low), twb_abs(high)));
                bad = twb_hsum(twb_add(twb_sub(low, low), twb_sub(high, high)));           /* 0, or NaN: a number is not finite */
                if (bad >= 0 && top >= 1e-30f) {
                    const twb_v inverse = twb_set1(TWB_QUANT_TOP / top);
                    x = twb_toint(twb_mul(low, inverse));
                    y = twb_toint(twb_mul(high, inverse));
                    d = top / TWB_QUANT_TOP;
                } else d = bad;
                sum = (int32_t)twb_hsum(twb_tofloat(twb_iadd(x, y)));
                twb_put_bytes(q, x);
                twb_put_bytes(q + 16, y);
                job->d[i * job->blocks + b] = d;
                job->start[i * job->blocks + b] = -(g->b_type == TWB_Q8_0 ? TWB_Q8_LIFT : 8) * sum;
            }
}

/* Sixteen blocks from f32, q4_0, one in each lane; x [32][16].  The number farthest from zero, `top`, is put on one of a few
   places of the scale, -8 to 7, and the rest is rounded.  For given whole numbers q the best scale is d = sum(x q) / sum(q q), with
   squared error sum(x x) - sum(x q)^2 / sum(q q): the place with the largest second term wins.  As d is rounded to an f16
   at the end, it must still beat d = top / -8, which loses nothing of `top`. */
TWB_VFN twb_v TWB_NAME(twb_q4_round)(twb_v x, twb_v inverse) {
    return twb_min(twb_max(twb_round(twb_mul(x, inverse)), twb_set1(-8.0f)), twb_set1(7.0f));
}
TWB_VFN twb_v TWB_NAME(twb_q4_inverse)(twb_v d) {         /* 1 / d, and 0 where d is 0 */
    return twb_sel_lt(twb_set1(0.0f), twb_abs(d), twb_div(twb_set1(1.0f), d), twb_set1(0.0f));
}
TWB_FN void TWB_NAME(twb_quantize_q4)(const float *x, unsigned char *blocks) {
    static const float places[16] = { -8, -8.8f, -8.4f, -7.7f, -7.4f, -7.1f, -6.8f, -6.4f, -6, 8, 7.7f, 7.4f, 7.1f, 6.8f, 6.4f, 6 };
    const twb_v zero = twb_set1(0.0f);
    twb_v top = zero, bad = zero, best = zero, gain = zero, error[2], inverse;
    float scale[2][16], miss[2][16], wrong[16], q[TWB_QUANT_BLOCK][16];
    int i, lane, place, choice;
    for (i = 0; i < TWB_QUANT_BLOCK; i++) {
        const twb_v v = twb_load(x + 16 * i);
        top = twb_sel_lt(twb_abs(top), twb_abs(v), v, top);
        bad = twb_add(bad, twb_sub(v, v));                /* NaN where a number is not finite */
    }
    for (place = 0; place < 16; place++) {
        twb_v product = zero, square = zero, d, better;
        inverse = TWB_NAME(twb_q4_inverse)(twb_mul(top, twb_set1(1.0f / places[place])));
        for (i = 0; i < TWB_QUANT_BLOCK; i++) {
            const twb_v v = twb_load(x + 16 * i), w = TWB_NAME(twb_q4_round)(v, inverse);
            product = twb_fma(v, w, product);
            square = twb_fma(w, w, square);
        }
        d = twb_mul(product, TWB_NAME(twb_q4_inverse)(square));
        better = twb_mul(d, product);
        best = twb_sel_lt(gain, better, d, best);
        gain = twb_sel_lt(gain, better, better, gain);
    }
    twb_store(wrong, bad);
    twb_store(scale[0], twb_mul(top, twb_set1(-0.125f)));
    twb_store(scale[1], best);
    for (choice = 0; choice < 2; choice++) {
        for (lane = 0; lane < 16; lane++) scale[choice][lane] = twb_f16_to_f32(twb_f32_to_f16(scale[choice][lane]));
        inverse = TWB_NAME(twb_q4_inverse)(twb_load(scale[choice]));
        error[choice] = zero;
        for (i = 0; i < TWB_QUANT_BLOCK; i++) {
            const twb_v v = twb_load(x + 16 * i), off = twb_fnma(TWB_NAME(twb_q4_round)(v, inverse), twb_load(scale[choice]), v);
            error[choice] = twb_fma(off, off, error[choice]);
        }
        twb_store(miss[choice], error[choice]);
    }
    for (lane = 0; lane < 16; lane++) {
        if (miss[1][lane] < miss[0][lane]) scale[0][lane] = scale[1][lane];
        if (!(wrong[lane] >= 0) || (twb_f32_to_f16(scale[0][lane]) & 0x7C00u) == 0x7C00u) scale[0][lane] = twb_bits_float(0x7FC00000u);
    }
    inverse = TWB_NAME(twb_q4_inverse)(twb_load(scale[0]));
    for (i = 0; i < TWB_QUANT_BLOCK; i++) twb_store(q[i], TWB_NAME(twb_q4_round)(twb_load(x + 16 * i), inverse));
    for (lane = 0; lane < 16; lane++) {
        unsigned char *block = blocks + 18 * lane;
        const uint16_t half = twb_f32_to_f16(scale[0][lane]);
        block[0] = (unsigned char)(half & 0xFFu);
        block[1] = (unsigned char)(half >> 8);
        for (i = 0; i < 16; i++)                          /* NaN was made -8 above; the scale is NaN then */
            block[2 + i] = (unsigned char)((int)(q[i][lane] + 8) | (int)(q[i + 16][lane] + 8) << 4);
    }
}
/* Sixteen blocks, x [32][16], as above. */
TWB_FN void TWB_NAME(twb_quantize_blocks)(twb_type type, const float *x, unsigned char *blocks) {
    float numbers[TWB_QUANT_BLOCK];
    int lane, i;
    if (type == TWB_Q4_0) { TWB_NAME(twb_quantize_q4)(x, blocks); return; }
    for (lane = 0; lane < 16; lane++) {
        for (i = 0; i < TWB_QUANT_BLOCK; i++) numbers[i] = x[16 * i + lane];
        twb_quantize_q8(numbers, blocks + 34 * lane);
    }
}

TWB_FN void TWB_NAME(twb_quant_pack_worker)(void *arg, int worker) {
    twb_quant_pack_job *job = (twb_quant_pack_job *)arg;
    const ptrdiff_t blocks = twb_quant_blocks(job->k), bytes = twb_quant_block_bytes(job->type);
    ptrdiff_t task = -1, b, c, l;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count)
        for (b = 0; b < blocks; b++) {
            unsigned char *panel = job->packed + twb_quant_at(job->type, job->k, task, b), made[16 * 34];
            const ptrdiff_t depth = twb_min_size(job->k - b * TWB_QUANT_BLOCK, TWB_QUANT_BLOCK), columns = twb_min_size(job->n - task * TWB_PANEL, TWB_PANEL);
            if (job->blocks) {                            /* rows beyond the last are all zero, their scale too */
                memset(made, 0, sizeof made);
                for (c = 0; c < columns; c++) memcpy(made + c * bytes, job->blocks + ((task * TWB_PANEL + c) * blocks + b) * bytes, (size_t)bytes);
            } else {
                float x[TWB_QUANT_BLOCK * (int)TWB_PANEL] = {0}, row[TWB_QUANT_BLOCK];
                for (c = 0; c < columns && job->trans_b; c++) {
                    const ptrdiff_t at = (task * TWB_PANEL + c) * job->ldb + b * TWB_QUANT_BLOCK;
                    for (l = 0; l < depth; l += 16) twb_store(row + l, TWB_NAME(twb_get_type)(job->b, job->b_type, at + l, twb_min_size(depth - l, 16)));
                    for (l = 0; l < depth; l++) x[16 * l + c] = row[l];
                }
                for (l = 0; l < depth && !job->trans_b; l++)
                    twb_store(x + 16 * l, TWB_NAME(twb_get_type)(job->b, job->b_type, (b * TWB_QUANT_BLOCK + l) * job->ldb + task * TWB_PANEL, columns));
                TWB_NAME(twb_quantize_blocks)(job->type, x, made);
                memset(made + columns * bytes, 0, (size_t)((TWB_PANEL - columns) * bytes));
            }
            for (c = 0; c < TWB_PANEL; c++) twb_quant_give(job->type, made + c * bytes, c, panel);
        }
}
#undef twb_bytes
#undef twb_put_bytes
#undef twb_qdot
#undef twb_qwide
#undef twb_qhalf
#undef TWB_Q8_LIFT
#undef TWB_Q4_SHORT
#undef TWB_IN_ORDER

/* ---- [twb:06] head and cross-entropy: a row of logits */

/* Takes the columns of a chunk into the row's state. */
TWB_FN void TWB_NAME(twb_loss_row)(const twb_linear_cross_entropy_args *args, float *x, ptrdiff_t n, ptrdiff_t first, int32_t label,
                                   bool keep_exp, twb_row_loss *state) {
    const twb_v lowest = twb_set1(-3.40282347e38f);
    twb_v best = lowest, sum = twb_set1(0.0f), total = twb_set1(0.0f);
    float max;
    ptrdiff_t j, whole = n & ~(ptrdiff_t)15;
    int rest = (int)(n - whole);
    for (j = 0; j < whole; j += 16) best = twb_max(twb_load(x + j), best);
    max = twb_hmax(best);
    for (j = whole; j < n; j++) max = x[j] > max ? x[j] : max;
    max = max > state->max ? max : state->max;
    if (label >= first && label < first + n) state->label = x[label - first];
    best = twb_set1(max);
    if (args->label_smoothing > 0) {
        for (j = 0; j < whole; j += 16) total = twb_add(total, twb_load(x + j));
        if (rest) total = twb_add(total, twb_loadn(x + whole, rest));
    }
    for (j = 0; j < whole; j += 16) {
        twb_v e = twb_vexp(twb_sub(twb_load(x + j), best));
        sum = twb_add(sum, e);
        if (keep_exp) twb_store(x + j, e);
    }
    if (rest) {
        float tail[16] = {0};
        int l;
        twb_store(tail, twb_vexp(twb_sub(twb_loadn(x + whole, rest), best)));
        if (keep_exp) memcpy(x + whole, tail, (size_t)rest * sizeof *x);
        for (l = rest; l < 16; l++) tail[l] = 0;
        sum = twb_add(sum, twb_load(tail));
    }
    state->sum = fmaf(state->sum, twb_exp1(state->max - max), twb_hsum(sum));
    state->total += twb_hsum(total);
    state->max = max;
}

TWB_FN void TWB_NAME(twb_loss_worker)(void *arg, int worker) {
    twb_loss_job *job = (twb_loss_job *)arg;
    const twb_linear_cross_entropy_args *args = job->args;
    ptrdiff_t r = -1, j;
    while ((r = twb_queue_take(&job->queue, worker, r)) < job->queue.count) {
        float *x = job->logits + r * job->ld;
        int32_t label = args->labels[job->index[r]];
        TWB_NAME(twb_loss_row)(args, x, job->columns, job->first, label, job->gradients, &job->state[r]);
        if (job->gradients) {           /* all of the vocabulary is here: x holds exp(logit - max); make it the gradient */
            twb_v factor = twb_set1(args->scale / job->state[r].sum), uniform = twb_set1(-args->scale * args->label_smoothing / (float)args->vocab);
            for (j = 0; j < job->columns; j += 16) {
                int n = job->columns - j < 16 ? (int)(job->columns - j) : 16;
                twb_storen(x + j, twb_fma(twb_loadn(x + j, n), factor, uniform), n);
            }
            x[label] -= args->scale * (1 - args->label_smoothing);
        }
    }
}
/* ---- a few more operations on sixteen lanes ---------------------------------------------------- */
#define twb_first      TWB_NAME(twb_first)
#define twb_infinity   TWB_NAME(twb_infinity)
#define twb_vmix       TWB_NAME(twb_vmix)
#define twb_vunit      TWB_NAME(twb_vunit)
#define twb_vkeep      TWB_NAME(twb_vkeep)

/* lanes below n from a, the others from b */
TWB_VFN twb_v twb_first(ptrdiff_t n, twb_v a, twb_v b) {
    return n >= 16 ? a : twb_sel_lt(twb_tofloat(twb_iramp()), twb_set1((float)n), a, b);
}
TWB_VFN twb_v twb_infinity(void) { return twb_unbits(twb_iset1(0x7F800000u)); }

/* twb_mix of the counters low, low + 1, ... */
TWB_VFN twb_vi twb_vmix(twb_stream s, uint32_t low) {
    twb_vi x = twb_iadd(twb_iramp(), twb_iset1(low + s.first));
    x = twb_imul(twb_ixor(x, twb_ishr(x, 16)), twb_iset1(TWB_MIX_1));
    x = twb_iadd(twb_ixor(x, twb_ishr(x, 15)), twb_iset1(s.second));
    x = twb_imul(twb_ixor(x, twb_ishr(x, 16)), twb_iset1(TWB_MIX_2));
    return twb_ixor(x, twb_ishr(x, 16));
}
/* random bits as numbers in [0, 1) */
TWB_VFN twb_v twb_vunit(twb_vi bits) { return twb_mul(twb_tofloat(twb_ishr(bits, 8)), twb_set1(1.0f / 16777216.0f)); }
/* x times `gain` where the random number is not below p, else 0 */
TWB_VFN twb_v twb_vkeep(twb_vi bits, twb_v p, twb_v x, twb_v gain) {
    return twb_sel_lt(twb_vunit(bits), p, twb_set1(0.0f), twb_mul(x, gain));
}

/* ---- [twb:03] arrays ---------------------------------------------------------------------------- */
TWB_FN void TWB_NAME(twb_span_unary)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const twb_v one = twb_set1(1.0f);
    ptrdiff_t i;
    if (w->op == TWB_SIN || w->op == TWB_COS) {
        for (i = begin; i < end; i++) w->out[i] = twb_sin_quadrant(w->x[i], w->op == TWB_COS);
        return;
    }
    for (i = begin; i < end; i += 16) {
        twb_v x = twb_get(w->x + i, end - i);
        switch ((twb_unary_op)w->op) {
        case TWB_NEG:        x = twb_unbits(twb_ixor(twb_bits(x), twb_iset1(0x80000000u))); break;
        case TWB_ABS:        x = twb_abs(x); break;
        case TWB_SQUARE:     x = twb_mul(x, x); break;
        case TWB_RECIPROCAL: x = twb_div(one, x); break;
        case TWB_SQRT:       x = twb_sqrt(x); break;
        case TWB_RSQRT:      x = twb_div(one, twb_sqrt(x)); break;
        case TWB_EXP:        x = twb_vexp(x); break;
        case TWB_LOG:        x = twb_vlog(x); break;
        case TWB_TANH:       x = twb_vtanh(x); break;
        case TWB_ERF:        x = twb_verf(x); break;
        case TWB_SIGMOID:    x = twb_vsigmoid(x); break;
        case TWB_SOFTPLUS:   x = twb_vsoftplus(x); break;
        case TWB_RELU:       x = twb_vrelu(x); break;
        case TWB_GELU:       x = twb_vgelu(x); break;
        case TWB_GELU_TANH:  x = twb_vgelu_tanh(x); break;
        case TWB_SILU:       x = twb_vsilu(x); break;
        case TWB_QUICK_GELU: x = twb_vquick_gelu(x); break;
        case TWB_COPY: case TWB_SIN: case TWB_COS: case TWB_UNARY_COUNT: break;
        }
        twb_put(w->out + i, x, end - i);
    }
}

TWB_FN void TWB_NAME(twb_span_unary_backward)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const twb_v zero = twb_set1(0.0f), one = twb_set1(1.0f);
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        twb_v x = w->x ? twb_get(w->x + i, n) : zero, y = w->y ? twb_get(w->y + i, n) : zero, slope = one, d;
        float turned[16] = {0};
        int j;
        switch ((twb_unary_op)w->op) {
        case TWB_NEG:        slope = twb_set1(-1.0f); break;
        case TWB_ABS:        slope = twb_sel_lt(x, zero, twb_set1(-1.0f), twb_sel_lt(zero, x, one, zero)); break;
        case TWB_SQUARE:     slope = twb_add(x, x); break;
        case TWB_RECIPROCAL: slope = twb_fnma(y, y, zero); break;
        case TWB_SQRT:       slope = twb_div(twb_set1(0.5f), y); break;
        case TWB_RSQRT:      slope = twb_mul(twb_mul(twb_set1(-0.5f), y), twb_mul(y, y)); break;
        case TWB_EXP:        slope = y; break;
        case TWB_LOG:        slope = twb_div(one, x); break;
        case TWB_TANH:       slope = twb_fnma(y, y, one); break;
        case TWB_SIGMOID:    slope = twb_fnma(y, y, y); break;
        case TWB_SOFTPLUS:   slope = twb_vsigmoid(x); break;
        case TWB_ERF:        slope = twb_mul(twb_set1(1.12837917f), twb_vexp_neg(twb_fnma(x, x, zero))); break;
        case TWB_RELU:       slope = twb_vact_grad(TWB_ACT_RELU, x); break;
        case TWB_GELU:       slope = twb_vact_grad(TWB_ACT_GELU, x); break;
        case TWB_GELU_TANH:  slope = twb_vact_grad(TWB_ACT_GELU_TANH, x); break;
        case TWB_SILU:       slope = twb_vact_grad(TWB_ACT_SILU, x); break;
        case TWB_QUICK_GELU: slope = twb_vact_grad(TWB_ACT_QUICK_GELU, x); break;
        case TWB_SIN: case TWB_COS:                               /* cos x, cos(x + pi/2) */
            for (j = 0; j < 16 && j < n; j++) turned[j] = twb_sin_quadrant(w->x[i + j], w->op == TWB_COS ? 2 : 1);
            slope = twb_load(turned);
            break;
        case TWB_COPY: case TWB_UNARY_COUNT: break;
        }
        d = twb_get(w->dy + i, n);
        twb_put(w->out + i, w->accumulate ? twb_fma(d, slope, twb_get(w->out + i, n)) : twb_mul(d, slope), n);
    }
}

TWB_FN void TWB_NAME(twb_span_activation_backward)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        twb_v d = twb_get(w->dy + i, n), slope = twb_vact_grad((twb_activation)w->op, twb_get(w->x + i, n));
        twb_put(w->out + i, w->accumulate ? twb_fma(d, slope, twb_get(w->out + i, n)) : twb_mul(d, slope), n);
    }
}

TWB_FN void TWB_NAME(twb_span_binary)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const bool plain_x = w->x_step == 1, plain_y = w->y_step == 1;
    ptrdiff_t i, j;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        float gathered[16] = {0};
        twb_v a, b;
        if (plain_x) a = twb_get(w->x + i, n);
        else if (w->x_step == 0) a = twb_set1(*w->x);
        else { for (j = 0; j < 16 && j < n; j++) gathered[j] = w->x[(i + j) * w->x_step]; a = twb_load(gathered); }
        if (plain_y) b = twb_get(w->y + i, n);
        else if (w->y_step == 0) b = twb_set1(*w->y);
        else { for (j = 0; j < 16 && j < n; j++) gathered[j] = w->y[(i + j) * w->y_step]; b = twb_load(gathered); }
        switch ((twb_binary_op)w->op) {
        case TWB_ADD: a = twb_add(a, b); break;
        case TWB_SUB: a = twb_sub(a, b); break;
        case TWB_MUL: a = twb_mul(a, b); break;
        case TWB_DIV: a = twb_div(a, b); break;
        case TWB_MAX: a = twb_max(a, b); break;
        case TWB_MIN: a = twb_min(a, b); break;
        case TWB_BINARY_COUNT: break;
        }
        twb_put(w->out + i, a, n);
    }
}

/* out = alpha x + beta out; x NULL: out = alpha */
TWB_FN void TWB_NAME(twb_span_axpby)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const twb_v alpha = twb_set1(w->alpha), beta = twb_set1(w->beta);
    const bool add = w->beta < 0.0f || w->beta > 0.0f;
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        twb_v y = alpha;
        if (w->x) y = twb_get(w->x + i, n);
        if (w->x && add) y = twb_fma(alpha, y, twb_mul(beta, twb_get(w->out + i, n)));
        else if (w->x) y = twb_mul(alpha, y);
        twb_put(w->out + i, y, n);
    }
}

/* chunks [begin, end): four sums of sixteen lanes each */
TWB_VFN void TWB_NAME(twb_sum_chunks)(const twb_sum_job *w, ptrdiff_t begin, ptrdiff_t end, const bool dot) {
    for (; begin < end; begin++) {
        const float *x = w->x + begin * TWB_SUM_CHUNK, *y = dot ? w->y + begin * TWB_SUM_CHUNK : NULL;
        ptrdiff_t n = twb_min_size(TWB_SUM_CHUNK, w->n - begin * TWB_SUM_CHUNK), i;
        twb_v sum[4];
        int j;
        TWB_UNROLL
        for (j = 0; j < 4; j++) sum[j] = twb_set1(0.0f);
        for (i = 0; i + 64 <= n; i += 64) {
            TWB_UNROLL
            for (j = 0; j < 4; j++) {
                twb_v a = twb_load(x + i + 16*j);
                sum[j] = dot ? twb_fma(a, twb_load(y + i + 16*j), sum[j]) : twb_add(a, sum[j]);
            }
        }
        for (; i < n; i += 16) {
            twb_v a = twb_get(x + i, n - i);
            sum[0] = dot ? twb_fma(a, twb_get(y + i, n - i), sum[0]) : twb_add(a, sum[0]);
        }
        w->results[begin] = twb_hsum(twb_add(twb_add(sum[0], sum[1]), twb_add(sum[2], sum[3])));
    }
}
TWB_FN void TWB_NAME(twb_span_sum)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    TWB_NAME(twb_sum_chunks)((const twb_sum_job *)job, begin, end, false);
}
TWB_FN void TWB_NAME(twb_span_dot)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    TWB_NAME(twb_sum_chunks)((const twb_sum_job *)job, begin, end, true);
}

/* 0 a is NaN where a is NaN or infinite: only then is a chunk searched for NaN. */
TWB_FN void TWB_NAME(twb_span_max_abs)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_sum_job *w = (const twb_sum_job *)job;
    const twb_v zero = twb_set1(0.0f);
    for (; begin < end; begin++) {
        const float *x = w->x + begin * TWB_SUM_CHUNK;
        ptrdiff_t n = twb_min_size(TWB_SUM_CHUNK, w->n - begin * TWB_SUM_CHUNK), i;
        twb_v top = zero, odd = zero;
        for (i = 0; i < n; i += 16) {
            twb_v a = twb_abs(twb_get(x + i, n - i));
            top = twb_max(a, top);
            odd = twb_fma(a, zero, odd);
        }
        w->results[begin] = twb_hmax(top);
        if (!(twb_hsum(odd) <= 0.0f))
            for (i = 0; i < n; i++) if (!(x[i] <= 0.0f) && !(x[i] > 0.0f)) w->results[begin] = x[i];
    }
}

/* ==== [twb:07] rows: softmax, norms, embedding, cross-entropy =================================

   A row is read two or three times (maximum, sum, result) and stays in the cache meanwhile.  Each lane adds up
   every sixteenth element, and the lanes are added in one fixed tree, so a row's result depends on the row alone
   and rows can be handed to any thread.  Gradients of weights are sums down a column: there threads share out
   columns, and each column is added from the first row to the last, in blocks of TWB_NORM_ROWS.

   Softmax takes the row's maximum off first: exp then never overflows, and the largest term is 1.  A norm takes the
   variance in a second pass over x - mean: the one-pass form avg(x^2) - mean^2 loses every digit that the two have
   in common.
   ============================================================================================ */

/* strips of 64 columns: dbias += sum over rows of dy, dweight += sum of dy (x - mean) rstd.  Rows are added in
   blocks of TWB_NORM_ROWS, so that a long column does not lose its small terms. */
TWB_VFN void TWB_NAME(twb_column_strip)(const twb_rows_job *w, ptrdiff_t j, const int vectors, ptrdiff_t n) {
    ptrdiff_t block, r;
    int v;
    for (block = 0; block < w->rows; block += TWB_NORM_ROWS) {
        ptrdiff_t stop = twb_min_size(block + TWB_NORM_ROWS, w->rows);
        twb_v plain[4], scaled[4];
        TWB_UNROLL
        for (v = 0; v < vectors; v++) plain[v] = scaled[v] = twb_set1(0.0f);
        for (r = block; r < stop; r++) {
            const float *dy = w->dy + r * w->lddy + j, *x = w->dweight ? w->x + r * w->ldx + j : dy;
            twb_v mean = twb_set1(0.0f), rstd = mean;
            if (w->dweight) rstd = twb_set1(w->given_rstd[r]);
            if (w->dweight && w->given_mean) mean = twb_set1(w->given_mean[r]);
            TWB_UNROLL
            for (v = 0; v < vectors; v++) {
                twb_v d = twb_get(dy + 16*v, n - 16*v);
                plain[v] = twb_add(plain[v], d);
                if (w->dweight)
                    scaled[v] = twb_fma(d, twb_mul(twb_sub(twb_get(x + 16*v, n - 16*v), mean), rstd), scaled[v]);
            }
        }
        TWB_UNROLL
        for (v = 0; v < vectors; v++) {
            float *dbias = w->dbias ? w->dbias + j + 16*v : NULL, *dweight = w->dweight ? w->dweight + j + 16*v : NULL;
            if (dbias) twb_put(dbias, twb_add(twb_get(dbias, n - 16*v), plain[v]), n - 16*v);
            if (dweight) twb_put(dweight, twb_add(twb_get(dweight, n - 16*v), scaled[v]), n - 16*v);
        }
    }
}
TWB_FN void TWB_NAME(twb_span_norm_parameters)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    for (; begin < end; begin++) {
        ptrdiff_t j = begin * 64;
        if (j + 64 <= w->cols) TWB_NAME(twb_column_strip)(w, j, 4, 64);
        else for (; j < w->cols; j += 16) TWB_NAME(twb_column_strip)(w, j, 1, w->cols - j);
    }
}

TWB_VFN float TWB_NAME(twb_row_max)(const float *x, ptrdiff_t n) {
    const twb_v none = twb_sub(twb_set1(0.0f), twb_infinity());
    twb_v top[4];
    ptrdiff_t i;
    int j;
    TWB_UNROLL
    for (j = 0; j < 4; j++) top[j] = none;
    for (i = 0; i + 64 <= n; i += 64) {
        TWB_UNROLL
        for (j = 0; j < 4; j++) top[j] = twb_max(twb_load(x + i + 16*j), top[j]);
    }
    for (; i < n; i += 16) top[0] = twb_max(twb_first(n - i, twb_get(x + i, n - i), none), top[0]);
    return twb_hmax(twb_max(twb_max(top[0], top[1]), twb_max(top[2], top[3])));
}

/* the sum of exp(x - top), the terms left in `terms` unless it is NULL; added up in blocks of 1024 */
TWB_VFN float TWB_NAME(twb_row_exp)(const float *x, ptrdiff_t n, float top, float *terms) {
    const twb_v shift = twb_set1(top), zero = twb_set1(0.0f);
    twb_v sum = zero, part;
    ptrdiff_t i = 0;
    while (i < n) {
        ptrdiff_t stop = twb_min_size(i + 1024, n);
        for (part = zero; i < stop; i += 16) {
            twb_v e = twb_vexp_neg(twb_sub(twb_get(x + i, n - i), shift));
            if (terms) twb_put(terms + i, e, n - i);
            part = twb_add(part, twb_first(n - i, e, zero));
        }
        sum = twb_add(sum, part);
    }
    return twb_hsum(sum);
}

TWB_FN void TWB_NAME(twb_span_softmax)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    for (; begin < end; begin++) {
        const float *x = w->x + begin * w->ldx;
        float *y = w->out + begin * w->ld_out, top = TWB_NAME(twb_row_max)(x, w->cols);
        ptrdiff_t j;
        if (w->log_form) {
            twb_v shift = twb_set1(top), log_sum = twb_set1(twb_log1(TWB_NAME(twb_row_exp)(x, w->cols, top, NULL)));
            for (j = 0; j < w->cols; j += 16)
                twb_put(y + j, twb_sub(twb_sub(twb_get(x + j, w->cols - j), shift), log_sum), w->cols - j);
        } else {
            twb_v gain = twb_set1(1.0f / TWB_NAME(twb_row_exp)(x, w->cols, top, y));
            for (j = 0; j < w->cols; j += 16) twb_put(y + j, twb_mul(twb_get(y + j, w->cols - j), gain), w->cols - j);
        }
    }
}

TWB_FN void TWB_NAME(twb_span_softmax_backward)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    for (; begin < end; begin++) {
        const float *y = w->y + begin * w->ldy, *dy = w->dy + begin * w->lddy;
        float *dx = w->out + begin * w->ld_out;
        twb_v sum = twb_set1(0.0f);
        ptrdiff_t j, n = w->cols;
        for (j = 0; j < n; j += 16) {
            twb_v d = twb_get(dy + j, n - j);
            sum = w->log_form ? twb_add(sum, d) : twb_fma(d, twb_get(y + j, n - j), sum);
        }
        sum = twb_set1(twb_hsum(sum));
        for (j = 0; j < n; j += 16) {
            twb_v d = twb_get(dy + j, n - j), p = twb_get(y + j, n - j);
            d = w->log_form ? twb_fnma(twb_vexp_neg(p), sum, d) : twb_mul(p, twb_sub(d, sum));
            twb_put(dx + j, w->accumulate ? twb_add(twb_get(dx + j, n - j), d) : d, n - j);
        }
    }
}

TWB_FN void TWB_NAME(twb_span_norm)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    const twb_v zero = twb_set1(0.0f);
    const float count = (float)w->cols;
    for (; begin < end; begin++) {
        const float *x = w->x + begin * w->ldx;
        float *y = w->out + begin * w->ld_out, average = 0.0f, rstd;
        ptrdiff_t j, n = w->cols;
        twb_v sum = zero, mean, gain;
        if (w->residual) {
            float *stream = w->sum + begin * n;
            for (j = 0; j < n; j += 16) {
                twb_v s = twb_add(twb_get(x + j, n - j), twb_get(w->residual + begin * n + j, n - j));
                twb_put(stream + j, s, n - j);
                sum = twb_add(sum, s);
            }
            x = stream;
        } else if (!w->root_mean_square) {
            for (j = 0; j < n; j += 16) sum = twb_add(sum, twb_get(x + j, n - j));
        }
        if (!w->root_mean_square) average = twb_hsum(sum) / count;
        mean = twb_set1(average);
        sum = zero;
        for (j = 0; j < n; j += 16) {
            twb_v d = twb_first(n - j, twb_sub(twb_get(x + j, n - j), mean), zero);
            sum = twb_fma(d, d, sum);
        }
        rstd = 1.0f / sqrtf(twb_hsum(sum) / count + w->eps);
        gain = twb_set1(rstd);
        for (j = 0; j < n; j += 16) {
            twb_v h = twb_mul(twb_sub(twb_get(x + j, n - j), mean), gain);
            if (w->weight) {
                twb_v g = twb_get(w->weight + j, n - j);
                h = w->bias ? twb_fma(h, g, twb_get(w->bias + j, n - j)) : twb_mul(h, g);
            } else if (w->bias) {
                h = twb_add(h, twb_get(w->bias + j, n - j));
            }
            twb_put(y + j, h, n - j);
        }
        if (w->mean) w->mean[begin] = average;
        if (w->rstd) w->rstd[begin] = rstd;
    }
}

TWB_FN void TWB_NAME(twb_span_norm_backward)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    const twb_v zero = twb_set1(0.0f), one = twb_set1(1.0f);
    const float count = (float)w->cols;
    for (; begin < end; begin++) {
        const float *x = w->x + begin * w->ldx, *dy = w->dy + begin * w->lddy;
        float *dx = w->out + begin * w->ld_out;
        ptrdiff_t j, n = w->cols;
        twb_v mean = twb_set1(w->given_mean ? w->given_mean[begin] : 0.0f), rstd = twb_set1(w->given_rstd[begin]),
                sum_g = zero, sum_gh = zero;
        for (j = 0; j < n; j += 16) {
            twb_v g = twb_mul(twb_get(dy + j, n - j), w->weight ? twb_get(w->weight + j, n - j) : one);
            sum_g = twb_add(sum_g, g);
            sum_gh = twb_fma(g, twb_mul(twb_sub(twb_get(x + j, n - j), mean), rstd), sum_gh);
        }
        sum_g = w->root_mean_square ? zero : twb_set1(twb_hsum(sum_g) / count);
        sum_gh = twb_set1(twb_hsum(sum_gh) / count);
        for (j = 0; j < n; j += 16) {
            twb_v h = twb_mul(twb_sub(twb_get(x + j, n - j), mean), rstd);
            twb_v g = twb_mul(twb_get(dy + j, n - j), w->weight ? twb_get(w->weight + j, n - j) : one);
            g = twb_mul(rstd, twb_fnma(h, sum_gh, twb_sub(g, sum_g)));
            twb_put(dx + j, w->accumulate ? twb_add(twb_get(dx + j, n - j), g) : g, n - j);
        }
    }
}

TWB_FN void TWB_NAME(twb_span_embedding)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    for (; begin < end; begin++) {
        float *y = w->out + begin * w->ld_out;
        ptrdiff_t j, n = w->cols, row = (ptrdiff_t)w->ids[begin] * w->ld_table;
        for (j = 0; j < n; j += 16) {
            twb_v x = TWB_NAME(twb_get_type)(w->table, w->type, row + j, n - j);
            twb_put(y + j, w->accumulate ? twb_add(twb_get(y + j, n - j), x) : x, n - j);
        }
    }
}

/* columns [16 begin, 16 end) of every row, so that two threads never add to one number */
TWB_FN void TWB_NAME(twb_span_embedding_backward)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    ptrdiff_t r, j, stop = twb_min_size(end * 16, w->cols);
    for (r = 0; r < w->rows; r++) {
        const float *dy = w->dy + r * w->lddy;
        float *d = w->out + (ptrdiff_t)w->ids[r] * w->ld_out;
        for (j = begin * 16; j < stop; j += 16)
            twb_put(d + j, twb_add(twb_get(d + j, stop - j), twb_get(dy + j, stop - j)), stop - j);
    }
}

TWB_FN void TWB_NAME(twb_span_cross_entropy)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rows_job *w = (const twb_rows_job *)job;
    const float even = w->smoothing / (float)w->cols, sure = 1.0f - w->smoothing;
    for (; begin < end; begin++) {
        const float *x = w->x + begin * w->ldx;
        float *d = w->out ? w->out + begin * w->ld_out : NULL, top, sum, loss;
        const int32_t label = w->ids[begin];
        ptrdiff_t j, n = w->cols;
        if (label == w->ignore_index) {
            w->losses[begin] = 0.0f;
            if (d) for (j = 0; j < n; j++) d[j] = 0.0f;
            continue;
        }
        top = TWB_NAME(twb_row_max)(x, n);
        loss = sure * (top - x[label]);
        if (w->smoothing > 0.0f) {                                /* e avg(top - x) */
            twb_v all = twb_set1(0.0f), shift = twb_set1(top);
            for (j = 0; j < n; j += 16) all = twb_add(all, twb_first(n - j, twb_sub(shift, twb_get(x + j, n - j)),
                                                                     twb_set1(0.0f)));
            loss += even * twb_hsum(all);
        }
        sum = TWB_NAME(twb_row_exp)(x, n, top, d);
        w->losses[begin] = loss + twb_log1(sum);
        if (d) {
            twb_v gain = twb_set1(w->scale / sum), less = twb_set1(-w->scale * even);
            for (j = 0; j < n; j += 16) twb_put(d + j, twb_fma(twb_get(d + j, n - j), gain, less), n - j);
            d[label] -= w->scale * sure;
        }
    }
}

/* tokens [begin, end), with the cosines and sines of up to 64 pairs at a time */
TWB_FN void TWB_NAME(twb_span_rope)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_rope_job *w = (const twb_rope_job *)job;
    ptrdiff_t half = w->rotary_dim / 2, first, t, h, i;
    for (first = 0; first < half; first += 64) {
        float frequency[64], c[64], s[64];
        ptrdiff_t n = twb_min_size(64, half - first);
        for (i = 0; i < n; i++)
            frequency[i] = 1.0f / (float)twb_power((double)w->theta,
                                                   (double)((float)(2 * (first + i)) / (float)w->rotary_dim));
        for (t = begin; t < end; t++) {
            float *token = w->x + t / w->tokens * w->x_batch + t % w->tokens * w->x_token;
            for (i = 0; i < n; i++) {
                float angle = (float)w->positions[t] * frequency[i];
                c[i] = twb_sin_quadrant(angle, 1);
                s[i] = twb_sin_quadrant(w->inverse ? -angle : angle, 0);
            }
            for (h = 0; h < w->heads; h++) {
                float *x = token + h * w->x_head;
                if (w->interleaved) {
                    for (i = 0, x += 2 * first; i < n; i++, x += 2) {
                        float a = x[0], b = x[1];
                        x[0] = a * c[i] - b * s[i];
                        x[1] = b * c[i] + a * s[i];
                    }
                } else {
                    for (i = 0, x += first; i < n; i += 16) {
                        twb_v a = twb_get(x + i, n - i), b = twb_get(x + half + i, n - i), vc = twb_load(c + i),
                                vs = twb_load(s + i);
                        twb_put(x + i, twb_sub(twb_mul(a, vc), twb_mul(b, vs)), n - i);
                        twb_put(x + half + i, twb_add(twb_mul(b, vc), twb_mul(a, vs)), n - i);
                    }
                }
            }
        }
    }
}

/* ---- [twb:09] batch norm: channels [begin, end).  Lanes add up inside an image, images are added in double. */
TWB_FN void TWB_NAME(twb_span_batch_norm)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_batch_norm_job *w = (const twb_batch_norm_job *)job;
    const twb_batch_norm_args *a = &w->args;
    const twb_v zero = twb_set1(0.0f);
    const double count = (double)a->batch * (double)a->size;
    ptrdiff_t b, i, c, n = a->size;
    for (c = begin; c < end; c++) {
        float mean, rstd;
        twb_v shift, gain, offset;
        if (a->training) {
            double total = 0, squares = 0;
            for (b = 0; b < a->batch; b++) {
                const float *x = w->x + (b * a->channels + c) * n;
                twb_v sum = zero;
                for (i = 0; i < n; i += 16) sum = twb_add(sum, twb_get(x + i, n - i));
                total += (double)twb_hsum(sum);
            }
            mean = (float)(total / count);
            shift = twb_set1(mean);
            for (b = 0; b < a->batch; b++) {
                const float *x = w->x + (b * a->channels + c) * n;
                twb_v sum = zero;
                for (i = 0; i < n; i += 16) {
                    twb_v d = twb_first(n - i, twb_sub(twb_get(x + i, n - i), shift), zero);
                    sum = twb_fma(d, d, sum);
                }
                squares += (double)twb_hsum(sum);
            }
            rstd = (float)(1 / sqrt(squares / count + (double)a->eps));
            if (a->running_mean) a->running_mean[c] += a->momentum * (mean - a->running_mean[c]);
            if (a->running_var) a->running_var[c] += a->momentum * ((float)(squares / (count > 1 ? count - 1 : 1))
                - a->running_var[c]);
        } else {
            mean = a->running_mean[c];
            rstd = 1.0f / sqrtf(a->running_var[c] + a->eps);
        }
        if (a->mean) a->mean[c] = mean;
        if (a->rstd) a->rstd[c] = rstd;
        shift = twb_set1(mean);
        gain = twb_set1(a->weight ? rstd * a->weight[c] : rstd);
        offset = twb_set1(a->bias ? a->bias[c] : 0.0f);
        for (b = 0; b < a->batch; b++) {
            const ptrdiff_t at = (b * a->channels + c) * n;
            for (i = 0; i < n; i += 16) twb_put(w->out + at + i, twb_fma(twb_sub(twb_get(w->x + at + i, n - i), shift),
                    gain, offset), n - i);
        }
    }
}

TWB_FN void TWB_NAME(twb_span_batch_norm_backward)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_batch_norm_job *w = (const twb_batch_norm_job *)job;
    const twb_batch_norm_args *a = &w->args;
    const twb_v zero = twb_set1(0.0f);
    const double count = (double)a->batch * (double)a->size;
    ptrdiff_t b, i, c, n = a->size;
    for (c = begin; c < end; c++) {
        double total = 0, total_h = 0;
        twb_v mean = twb_set1(a->mean[c]), rstd = twb_set1(a->rstd[c]), gain, avg, avg_h;
        for (b = 0; b < a->batch; b++) {
            const ptrdiff_t at = (b * a->channels + c) * n;
            twb_v sum = zero, sum_h = zero;
            for (i = 0; i < n; i += 16) {
                twb_v d = twb_get(w->dy + at + i, n - i);
                sum = twb_add(sum, d);
                sum_h = twb_fma(d, twb_mul(twb_sub(twb_get(w->x + at + i, n - i), mean), rstd), sum_h);
            }
            total += (double)twb_hsum(sum);
            total_h += (double)twb_hsum(sum_h);
        }
        if (w->dbias) w->dbias[c] += (float)total;
        if (w->dweight) w->dweight[c] += (float)total_h;
        if (!w->out) continue;
        gain = twb_set1(a->weight ? a->rstd[c] * a->weight[c] : a->rstd[c]);
        avg = a->training ? twb_set1((float)(total / count)) : zero;
        avg_h = a->training ? twb_set1((float)(total_h / count)) : zero;
        for (b = 0; b < a->batch; b++) {
            const ptrdiff_t at = (b * a->channels + c) * n;
            for (i = 0; i < n; i += 16) {
                twb_v h = twb_mul(twb_sub(twb_get(w->x + at + i, n - i), mean), rstd);
                twb_v d = twb_mul(gain, twb_fnma(h, avg_h, twb_sub(twb_get(w->dy + at + i, n - i), avg)));
                twb_put(w->out + at + i, w->accumulate ? twb_add(twb_get(w->out + at + i, n - i), d) : d, n - i);
            }
        }
    }
}

/* ==== [twb:10] optimizers =======================================================================

   An optimizer does some ten operations on a number and moves 28 bytes for it, so memory sets its speed: what
   counts is to touch everything once.  Clipping (grad_scale) and zero_grad are folded in for that reason.
   ============================================================================================ */
TWB_FN void TWB_NAME(twb_span_adamw)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_optimizer_job *w = (const twb_optimizer_job *)job;
    const twb_adamw_args *a = &w->adamw;
    const twb_v scale = twb_set1(a->grad_scale), rest1 = twb_set1(1.0f - a->beta1), beta2 = twb_set1(a->beta2),
            rest2 = twb_set1(1.0f - a->beta2);
    const twb_v eps = twb_set1(a->eps), root2 = twb_set1(1.0f / sqrtf(a->bias_correction2)),
            step = twb_set1(a->lr / a->bias_correction1);
    const twb_v shrink = twb_set1(a->l2 ? 1.0f : 1.0f - a->lr * a->weight_decay),
            decay = twb_set1(a->l2 ? a->weight_decay : 0.0f), zero = twb_set1(0.0f);
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        /* four streams are more than a processor fetches ahead by itself */
        ptrdiff_t n = end - i, ahead = n > 528 ? i + 512 : i;
        twb_v p = twb_get(w->p + i, n), g = twb_mul(twb_get(w->g + i, n), scale), m = twb_get(w->m + i, n),
                v = twb_get(w->v + i, n);
        TWB_PREFETCH(w->p + ahead);
        TWB_PREFETCH(w->g + ahead);
        TWB_PREFETCH(w->m + ahead);
        TWB_PREFETCH(w->v + ahead);
        g = twb_fma(decay, p, g);
        m = twb_fma(rest1, twb_sub(g, m), m);
        v = twb_fma(twb_mul(rest2, g), g, twb_mul(v, beta2));
        p = twb_fnma(step, twb_div(m, twb_fma(twb_sqrt(v), root2, eps)), twb_mul(p, shrink));
        twb_put(w->p + i, p, n);
        twb_put(w->m + i, m, n);
        twb_put(w->v + i, v, n);
        if (a->zero_grad) twb_put(w->g + i, zero, n);
    }
}

TWB_FN void TWB_NAME(twb_span_sgd)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_optimizer_job *w = (const twb_optimizer_job *)job;
    const twb_sgd_args *a = &w->sgd;
    const twb_v scale = twb_set1(a->grad_scale), decay = twb_set1(a->weight_decay), lr = twb_set1(a->lr),
            momentum = twb_set1(a->momentum);
    const twb_v rest = twb_set1(1.0f - a->dampening), zero = twb_set1(0.0f);
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        twb_v p = twb_get(w->p + i, n), g = twb_fma(decay, p, twb_mul(twb_get(w->g + i, n), scale));
        if (w->m) {
            twb_v m = twb_fma(momentum, twb_get(w->m + i, n), twb_mul(rest, g));
            twb_put(w->m + i, m, n);
            g = a->nesterov ? twb_fma(momentum, m, g) : m;
        }
        twb_put(w->p + i, twb_fnma(lr, g, p), n);
        if (a->zero_grad) twb_put(w->g + i, zero, n);
    }
}

TWB_FN void TWB_NAME(twb_span_lion)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_optimizer_job *w = (const twb_optimizer_job *)job;
    const twb_lion_args *a = &w->lion;
    const twb_v scale = twb_set1(a->grad_scale), rest1 = twb_set1(1.0f - a->beta1), rest2 = twb_set1(1.0f - a->beta2),
            lr = twb_set1(a->lr);
    const twb_v shrink = twb_set1(1.0f - a->lr * a->weight_decay), zero = twb_set1(0.0f);
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        twb_v g = twb_mul(twb_get(w->g + i, n), scale), m = twb_get(w->m + i, n), u = twb_fma(rest1, twb_sub(g, m), m);
        u = twb_sel_lt(u, zero, twb_set1(-1.0f), twb_sel_lt(zero, u, twb_set1(1.0f), zero));
        twb_put(w->p + i, twb_fnma(lr, u, twb_mul(twb_get(w->p + i, n), shrink)), n);
        twb_put(w->m + i, twb_fma(rest2, twb_sub(g, m), m), n);
        if (a->zero_grad) twb_put(w->g + i, zero, n);
    }
}

/* ==== [twb:11] conversions and random numbers ===================================================

   A generator with a state gives other numbers to other threads, and must be replayed to be repeated.  Here number
   i of a stream is a hash of i and the seed (Salmon et al. 2011 call that counter-based): anybody can draw any of
   them at any time, and a dropout mask need not be kept for the backward pass.
   ============================================================================================ */
TWB_FN void TWB_NAME(twb_span_convert)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_convert_job *w = (const twb_convert_job *)job;
    ptrdiff_t i, j;
    for (i = begin; i < end; i += 16) {
        ptrdiff_t n = end - i;
        twb_v x = TWB_NAME(twb_get_type)(w->src, w->src_type, i, n);
        if (w->dst_type == TWB_F32) {
            twb_put((float *)w->dst + i, x, n);
        } else {
            uint16_t edge[16], *h = (uint16_t *)w->dst + i, *to = n >= 16 ? h : edge;
            if (w->dst_type == TWB_F16) twb_put_f16(to, x); else twb_put_bf16(to, x);
            if (n < 16) for (j = 0; j < n; j++) h[j] = edge[j];
        }
    }
}

TWB_FN void TWB_NAME(twb_span_dropout)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const twb_v p = twb_set1(w->alpha), gain = twb_set1(1.0f / (1.0f - w->alpha));
    uint64_t high = (w->offset + (uint64_t)begin) >> 32;
    twb_stream stream = twb_stream_of(w->seed, high);
    ptrdiff_t i;
    for (i = begin; i < end; i += 16) {
        uint64_t counter = w->offset + (uint64_t)i;
        twb_vi bits;
        if (counter >> 32 != high) { high = counter >> 32; stream = twb_stream_of(w->seed, high); }
        bits = twb_vmix(stream, (uint32_t)counter);
        if ((counter + 15) >> 32 != high) {                       /* the upper half changes inside this vector */
            uint32_t each[16];
            float as_floats[16];
            int j;
            for (j = 0; j < 16; j++) each[j] = twb_mix(twb_stream_of(w->seed, (counter + (uint64_t)j) >> 32),
                                                       (uint32_t)(counter + (uint64_t)j));
            memcpy(as_floats, each, sizeof each);
            bits = twb_bits(twb_load(as_floats));
        }
        twb_put(w->out + i, twb_vkeep(bits, p, twb_get(w->x + i, end - i), gain), end - i);
    }
}

/* begin is a multiple of 16, so that the upper half of the counter is the same in a whole vector */
TWB_FN void TWB_NAME(twb_span_uniform)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const twb_v low = twb_set1(w->alpha), width = twb_set1(w->beta - w->alpha);
    ptrdiff_t i;
    for (i = begin; i < end; i += 16)
        twb_put(w->out + i, twb_fma(width, twb_vunit(twb_vmix(twb_stream_of(w->seed, (uint64_t)i >> 32), (uint32_t)i)),
                                    low), end - i);
}

/* Box and Muller (1958): with u, t uniform, sqrt(-2 log u) times cos and sin of 2 pi t are two independent normal
   numbers.  Elements come in blocks of 32, numbers 0-15 of a block draw u and 16-31 t. */
TWB_FN void TWB_NAME(twb_span_normal)(const void *job, ptrdiff_t begin, ptrdiff_t end) {
    const twb_array_job *w = (const twb_array_job *)job;
    const twb_v mean = twb_set1(w->alpha), std = twb_set1(w->beta);
    ptrdiff_t i;
    for (i = begin; i < end; i += 32) {
        twb_stream stream = twb_stream_of(w->seed, (uint64_t)i >> 32);
        twb_v u = twb_add(twb_vunit(twb_vmix(stream, (uint32_t)i)), twb_set1(1.0f / 16777216.0f));       /* in (0, 1] */
        twb_v t = twb_mul(twb_vunit(twb_vmix(stream, (uint32_t)i + 16u)), twb_set1(4.0f)), quarter = twb_round(t), s,
                sine, cosine, parity;
        twb_vi q = twb_toint(quarter);
        /* |t| <= pi/4 */
        t = twb_mul(twb_sub(t, quarter), twb_set1(1.57079633f));
        s = twb_mul(t, t);
        sine = twb_vpoly(twb_set1(2.75573192e-6f), s, -1.98412698e-4f);
        sine = twb_vpoly(sine, s, 8.33333333e-3f);
        sine = twb_vpoly(sine, s, -0.166666667f);
        sine = twb_fma(twb_mul(t, s), sine, t);
        cosine = twb_vpoly(twb_set1(2.48015873e-5f), s, -1.38888889e-3f);
        cosine = twb_vpoly(cosine, s, 4.16666667e-2f);
        cosine = twb_vpoly(cosine, s, -0.5f);
        cosine = twb_vpoly(cosine, s, 1.0f);
        /* odd quarters swap the two */
        parity = twb_tofloat(twb_iand(q, twb_iset1(1u)));
        u = twb_mul(std, twb_sqrt(twb_mul(twb_set1(-2.0f), twb_vlog(u))));
        s = twb_sel_lt(parity, twb_set1(0.5f), sine, cosine);
        cosine = twb_sel_lt(parity, twb_set1(0.5f), cosine, sine);
        /* quarters 2, 3: sine negative */
        s = twb_unbits(twb_ixor(twb_bits(s), twb_ishl(twb_iand(q, twb_iset1(2u)), 30)));
        cosine = twb_unbits(twb_ixor(twb_bits(cosine), twb_ishl(twb_iand(twb_iadd(q, twb_iset1(1u)), twb_iset1(2u)),
                                                                30)));
        twb_put(w->out + i, twb_fma(u, cosine, mean), end - i);
        if (end - i > 16) twb_put(w->out + i + 16, twb_fma(u, s, mean), end - i - 16);
    }
}

static const twb_span TWB_NAME(twb_spans)[TWB_SPAN_COUNT] = {
#define TWB_ROW(name) TWB_NAME(twb_span_##name),
    TWB_SPANS(TWB_ROW)
#undef TWB_ROW
};
/* ---- [twb:08] attention ----------------------------------------------------------------------------- */
#define twb_att_pack_keys TWB_NAME(twb_att_pack_keys)
#define twb_att_pack_rows TWB_NAME(twb_att_pack_rows)
#define twb_att_hide    TWB_NAME(twb_att_hide)
#define twb_get_bytes   TWB_NAME(twb_get_bytes)

/* sixteen bytes as floats, of which n exist */
TWB_VFN twb_v twb_get_bytes(const unsigned char *p, ptrdiff_t n) {
    float x[16] = {0};
    int j;
    for (j = 0; j < 16 && j < n; j++) x[j] = (float)p[j];
    return twb_load(x);
}

/* Rows of keys or values: the first number of row j is number at + j row of what lies at `base`. */
typedef struct TWB_NAME(twb_att_rows) { twb_type type; const void *base; ptrdiff_t at, row; } TWB_NAME(twb_att_rows);
#define twb_rows_of     TWB_NAME(twb_att_rows)
TWB_VFN twb_rows_of TWB_NAME(twb_att_from)(twb_rows_of x, ptrdiff_t j) { x.at += j * x.row; return x; }
TWB_VFN twb_rows_of TWB_NAME(twb_att_keys)(const twb_attention_args *a, ptrdiff_t b, ptrdiff_t kv) {
    twb_rows_of x = { a->kv_type, a->k, b * a->k_batch + kv * a->k_head, a->k_row };
    return x;
}
TWB_VFN twb_rows_of TWB_NAME(twb_att_values)(const twb_attention_args *a, ptrdiff_t b, ptrdiff_t kv) {
    twb_rows_of x = { a->kv_type, a->v, b * a->v_batch + kv * a->v_head, a->v_row };
    return x;
}
TWB_VFN twb_rows_of TWB_NAME(twb_att_floats)(const float *base, ptrdiff_t row) {
    twb_rows_of x = { TWB_F32, base, 0, row };
    return x;
}
TWB_VFN const char *TWB_NAME(twb_att_place)(twb_rows_of x) { return (const char *)x.base + x.at * (ptrdiff_t)twb_type_bytes(x.type); }

/* rows of `depth` numbers into panels of 16 rows, each [depth][16]; rows that do not exist are 0 */
TWB_FN void twb_att_pack_keys(twb_rows_of src, ptrdiff_t rows, ptrdiff_t depth, float *panels) {
    TWB_NAME(twb_pack_panels)(src.type, true, TWB_NAME(twb_att_place)(src), src.row, 0, depth, 0, rows, panels, 16 * depth);
}
/* rows of `depth` numbers next to each other, each filled up with zeros to whole vectors */
TWB_FN void twb_att_pack_rows(twb_rows_of src, ptrdiff_t rows, ptrdiff_t depth, float *dst, ptrdiff_t dst_row) {
    ptrdiff_t r, d;
    for (r = 0; r < rows; r++) for (d = 0; d < depth; d += 16)
        twb_store(dst + r * dst_row + d, TWB_NAME(twb_get_type)(src.base, src.type, src.at + r * src.row + d, depth - d));
}

/* The scores of a single query: no panels are made for it, the keys are transposed on their way through the registers, to the
   same bits.  s has room for whole vectors.  Where the rows lie a whole width apart the processor does not look ahead: the next
   sixteen keys are fetched here, and the values of these. */
TWB_FN void TWB_NAME(twb_att_one_query)(const twb_attention_args *a, const float *q, twb_rows_of k, twb_rows_of v, ptrdiff_t keys, float *panel, float *s) {
    const ptrdiff_t bytes = (ptrdiff_t)twb_type_bytes(k.type), D = a->head_dim;
    const bool apart = k.row != D || v.row != D;
    const twb_v scale = twb_set1(a->scale);
    float ones[16];
    ptrdiff_t j, r, d;
    for (j = 0; j + 16 <= keys; j += 16) {
        for (r = j; apart && r < j + 16; r++)
            for (d = 0; d < D * bytes; d += 64) {
                if (r + 16 < keys) TWB_PREFETCH(TWB_NAME(twb_att_place)(k) + (r + 16) * k.row * bytes + d);
                TWB_PREFETCH(TWB_NAME(twb_att_place)(v) + r * v.row * bytes + d);
            }
        if (k.type == TWB_F32)      TWB_NAME(twb_skinny_sixteen)(1, TWB_F32, D, q, 0, k.base, k.at + j * k.row, k.row, s + j);
        else if (k.type == TWB_F16) TWB_NAME(twb_skinny_sixteen)(1, TWB_F16, D, q, 0, k.base, k.at + j * k.row, k.row, s + j);
        else                        TWB_NAME(twb_skinny_sixteen)(1, TWB_BF16, D, q, 0, k.base, k.at + j * k.row, k.row, s + j);
        twb_store(s + j, twb_mul(scale, twb_load(s + j)));
    }
    if (j == keys) return;
    twb_store(ones, scale);
    twb_att_pack_keys(TWB_NAME(twb_att_from)(k, j), keys - j, D, panel);
    TWB_NAME(twb_small_product)(1, 16, D, q, 0, 1, panel, 16, 16 * D, s + j, 16, ones, NULL);
}
/* What a single query takes of values of 16 bits, which are widened on their way: p V as the product's kernel adds it up,
   64 columns at a time.  head_dim is a multiple of 16. */
TWB_VFN void TWB_NAME(twb_att_mix)(const twb_type type, const float *p, twb_rows_of v, ptrdiff_t keys, int panels, float *sums) {
    twb_v sum[4];
    ptrdiff_t j, at = v.at;
    int c;
    TWB_UNROLL
    for (c = 0; c < 4; c++) sum[c] = twb_set1(0.0f);
    if (panels == 4)
        for (j = 0; j < keys; j++, at += v.row) {
            const twb_v x = twb_set1(p[j]);
            TWB_UNROLL
            for (c = 0; c < 4; c++) sum[c] = twb_fma(x, TWB_NAME(twb_widen)(type, v.base, at + 16 * c), sum[c]);
        }
    else
        for (c = 0; c < panels; c++)
            for (j = 0; j < keys; j++) sum[c] = twb_fma(twb_set1(p[j]), TWB_NAME(twb_widen)(type, v.base, at + j * v.row + 16 * c), sum[c]);
    TWB_UNROLL
    for (c = 0; c < 4; c++) twb_store(sums + 16 * c, sum[c]);
}
TWB_FN void TWB_NAME(twb_att_one_result)(const twb_attention_args *a, const float *p, twb_rows_of v, ptrdiff_t keys, float *out, const float *alpha, const float *beta) {
    float sums[64];
    TWB_NAME(twb_tile) t;
    ptrdiff_t d;
    t.ldc = 0; t.rows = 1; t.alpha = alpha; t.beta = beta; t.stream = 0;
    for (d = 0; d < a->head_dim; d += 64, v.at += 64) {
        t.columns = twb_min_size(64, a->head_dim - d);
        t.c = out + d;
        if (v.type == TWB_F16) TWB_NAME(twb_att_mix)(TWB_F16, p, v, keys, (int)(t.columns / 16), sums);
        else                   TWB_NAME(twb_att_mix)(TWB_BF16, p, v, keys, (int)(t.columns / 16), sums);
        TWB_NAME(twb_store_sums)(sums, 64, &t);
    }
}

/* what the bias adds to the scores s[0 .. n) of query i and keys j0 on, and -infinity where a mask hides a key */
TWB_FN void twb_att_hide(const twb_attention_args *a, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i, ptrdiff_t j0, ptrdiff_t n,
                         float *s) {
    const float *bias = a->bias ? a->bias + b * a->bias_batch + h * a->bias_head + i * a->bias_row + j0 : NULL;
    const unsigned char *keys = a->key_mask ? a->key_mask + b * a->key_mask_batch + j0 : NULL;
    const unsigned char *mask = a->mask ? a->mask + b * a->mask_batch + i * a->mask_row + j0 : NULL;
    const twb_v zero = twb_set1(0.0f), none = twb_sub(zero, twb_infinity());
    ptrdiff_t j;
    for (j = 0; j < n; j += 16) {
        twb_v x = twb_load(s + j);
        if (bias) x = twb_add(x, twb_get(bias + j, n - j));
        if (keys) x = twb_sel_lt(zero, twb_get_bytes(keys + j, n - j), x, none);
        if (mask) x = twb_sel_lt(zero, twb_get_bytes(mask + j, n - j), x, none);
        twb_store(s + j, x);
    }
}

/* The keys, values and queries that are wanted next, fetched by and by while others are multiplied: rows that lie far
   apart, as in a [B,T,3C] buffer, are not foreseen by the processor. */
typedef struct TWB_NAME(twb_att_ahead) { const char *at[3]; ptrdiff_t row[3], bytes[3], rows; } TWB_NAME(twb_att_ahead);
TWB_VFN void TWB_NAME(twb_att_fetch)(TWB_NAME(twb_att_ahead) *next, ptrdiff_t rows) {
    ptrdiff_t d;
    int which;
    for (; rows > 0 && next->rows > 0; rows--, next->rows--)
        for (which = 0; which < 3; which++)
            if (next->at[which]) {
                for (d = 0; d < next->bytes[which]; d += 64) TWB_PREFETCH(next->at[which] + d);
                if (next->rows > 1) next->at[which] += next->row[which];
            }
}

/* After the tile of keys [j0, j0 + keys): the head's next tile, or the first tile of head `coming` (-1: of none). */
TWB_FN TWB_NAME(twb_att_ahead) TWB_NAME(twb_att_after)(const twb_attention_args *a, twb_rows_of k, twb_rows_of v,
                                                       ptrdiff_t after, ptrdiff_t keys_end, ptrdiff_t coming) {
    const ptrdiff_t bytes = (ptrdiff_t)twb_type_bytes(a->kv_type);
    TWB_NAME(twb_att_ahead) next;
    memset(&next, 0, sizeof next);
    next.bytes[0] = next.bytes[1] = a->head_dim * bytes;
    next.bytes[2] = a->head_dim * (ptrdiff_t)sizeof(float);
    next.row[0] = a->k_row * bytes;
    next.row[1] = a->v_row * bytes;
    next.row[2] = a->q_row * (ptrdiff_t)sizeof(float);
    if (after < keys_end) {
        if (a->k_row == a->head_dim && a->v_row == a->head_dim) return next;
        next.rows = twb_min_size(TWB_ATT_KEYS, keys_end - after);
        next.at[0] = TWB_NAME(twb_att_place)(TWB_NAME(twb_att_from)(k, after));
        next.at[1] = TWB_NAME(twb_att_place)(TWB_NAME(twb_att_from)(v, after));
    } else if (coming >= 0 && a->tk > 0) {
        const ptrdiff_t b = coming / a->heads, h = coming % a->heads, kv = h / (a->heads / a->kv_heads);
        next.rows = twb_min_size(TWB_ATT_KEYS, a->tk);
        next.at[0] = TWB_NAME(twb_att_place)(TWB_NAME(twb_att_keys)(a, b, kv));
        next.at[1] = TWB_NAME(twb_att_place)(TWB_NAME(twb_att_values)(a, b, kv));
        if (a->tq >= next.rows) next.at[2] = (const char *)(a->q + b * a->q_batch + h * a->q_head);
    }
    return next;
}

/* The random stream of a query's probabilities; key j draws its number j. */
TWB_VFN twb_stream TWB_NAME(twb_att_stream)(const twb_attention_args *a, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i) {
    const twb_stream none = { 0, 0 };
    return a->dropout > 0.0f ? twb_stream_of(a->dropout_seed, (uint64_t)((b * a->heads + h) * a->tq + i)) : none;
}

/* queries [i0, i1) of head h; then comes head `coming`, or nothing (-1) */
TWB_FN void TWB_NAME(twb_att_forward)(const twb_attention_job *job, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i0,
                                      ptrdiff_t i1, ptrdiff_t coming, float *scratch) {
    const twb_attention_args *a = &job->a;
    const ptrdiff_t kv = h / (a->heads / a->kv_heads), D = a->head_dim, keys_end = twb_attention_visible(a, b, i1 - 1);
    const twb_rows_of k = TWB_NAME(twb_att_keys)(a, b, kv), v = TWB_NAME(twb_att_values)(a, b, kv);
    const float *q = a->q + b * a->q_batch + h * a->q_head;
    float *out = a->out + b * a->out_batch + h * a->out_head;
    float *lse = a->lse ? a->lse + (b * a->heads + h) * a->tq : NULL;
    float *panels = scratch, *values = panels + TWB_ATT_KEYS * D, *strip = values + TWB_ATT_KEYS * job->depth;
    float *tops = strip + TWB_ATT_GROUP * TWB_ATT_STRIP, *sums = tops + TWB_ATT_QUERIES / TWB_ATT_GROUP * 16;
    const bool hidden = a->bias || a->key_mask || a->mask, alone = i1 - i0 == 1, halves = v.type != TWB_F32;
    const bool pack_values = D % 16 != 0 || (halves && !alone) || (a->v_row != D && i1 - i0 >= 2 * TWB_ATT_GROUP);
    const twb_v zero = twb_set1(0.0f), none = twb_sub(zero, twb_infinity());
    const twb_v drop = twb_set1(a->dropout), kept = twb_set1(1.0f / (1.0f - a->dropout));
    float scale[16], each[16], gain[16];
    ptrdiff_t j0, i, j, d;
    int r;
    twb_store(scale, twb_set1(a->scale));
    for (i = i0; i < i1 && !twb_attention_visible(a, b, i); i++) {     /* queries that see nothing come first */
        for (d = 0; d < D; d++) out[i * a->out_row + d] = 0.0f;
        if (lse) twb_storen(lse + i, none, 1);
    }
    for (j0 = 0; j0 < keys_end; j0 += TWB_ATT_KEYS) {
        const ptrdiff_t keys = twb_min_size(TWB_ATT_KEYS, keys_end - j0), groups = twb_ceil_div(i1 - i0, TWB_ATT_GROUP);
        TWB_NAME(twb_att_ahead) next = TWB_NAME(twb_att_after)(a, k, v, j0 + keys, keys_end, coming);
        const ptrdiff_t share = twb_ceil_div(next.rows, groups);
        const twb_rows_of tile_k = TWB_NAME(twb_att_from)(k, j0);
        twb_rows_of tile_v = TWB_NAME(twb_att_from)(v, j0);
        if (!alone) twb_att_pack_keys(tile_k, keys, D, panels);
        if (pack_values) {
            twb_att_pack_rows(tile_v, keys, D, values, job->depth);
            tile_v = TWB_NAME(twb_att_floats)(values, job->depth);
        }
        for (i = i0; i < i1; i += TWB_ATT_GROUP) {
            const int rows = (int)twb_min_size(TWB_ATT_GROUP, i1 - i);
            const ptrdiff_t seen = twb_attention_visible(a, b, i + rows - 1), strip_keys = twb_min_size(keys, seen - j0);
            float *top = tops + (i - i0) / TWB_ATT_GROUP * 16, *sum = sums + (i - i0) / TWB_ATT_GROUP * 16;
            const bool first = j0 == 0, last = seen - j0 <= TWB_ATT_KEYS;
            twb_v old_top, new_top, shifts, total, factor, inverse;
            TWB_NAME(twb_att_fetch)(&next, share);
            if (strip_keys <= 0) continue;
            if (alone) TWB_NAME(twb_att_one_query)(a, q + i * a->q_row, tile_k, tile_v, strip_keys, panels, strip);
            else TWB_NAME(twb_small_product)(rows, (strip_keys + 15) / 16 * 16, D, q + i * a->q_row, a->q_row, 1, panels, 16, 16 * D,
                                             strip, TWB_ATT_STRIP, scale, NULL);
            twb_store(each, none);                                 /* the rows' maxima */
            for (r = 0; r < rows; r++) {
                const ptrdiff_t n = twb_min_size(strip_keys, twb_attention_visible(a, b, i + r) - j0);
                if (n <= 0) continue;
                if (hidden) twb_att_hide(a, b, h, i + r, j0, n, strip + r * TWB_ATT_STRIP);
                each[r] = TWB_NAME(twb_row_max)(strip + r * TWB_ATT_STRIP, n);
            }
            old_top = first ? none : twb_load(top);
            new_top = twb_max(twb_load(each), old_top);
            twb_store(top, new_top);
            shifts = twb_sel_lt(none, new_top, new_top, zero);     /* nothing seen yet: any number will do */
            twb_store(gain, shifts);
            twb_store(each, zero);                                 /* the rows' sums */
            for (r = 0; r < rows; r++) {
                const ptrdiff_t n = twb_min_size(strip_keys, twb_attention_visible(a, b, i + r) - j0);
                const twb_stream stream = TWB_NAME(twb_att_stream)(a, b, h, i + r);
                const twb_v shift = twb_set1(gain[r]);
                float *s = strip + r * TWB_ATT_STRIP;
                total = zero;
                for (j = 0; j < n; j += 16) {
                    twb_v e = twb_first(n - j, twb_vexp_neg(twb_sub(twb_load(s + j), shift)), zero);
                    total = twb_add(total, e);
                    if (a->dropout > 0.0f) e = twb_vkeep(twb_vmix(stream, (uint32_t)(j0 + j)), drop, e, kept);
                    twb_store(s + j, e);
                }
                for (; j < strip_keys; j += 16) twb_store(s + j, zero);
                each[r] = twb_hsum(total);
            }
            factor = twb_vexp_neg(twb_sub(old_top, shifts));       /* what the earlier tiles are still worth */
            total = twb_fma(first ? zero : twb_load(sum), factor, twb_load(each));
            twb_store(sum, total);
            inverse = last ? twb_sel_lt(zero, total, twb_div(twb_set1(1.0f), total), zero) : twb_set1(1.0f);
            twb_store(gain, inverse);
            twb_store(each, twb_mul(factor, inverse));
            if (tile_v.type != TWB_F32) TWB_NAME(twb_att_one_result)(a, strip, tile_v, strip_keys, out + i * a->out_row, gain, first ? NULL : each);
            else TWB_NAME(twb_small_product)(rows, D, strip_keys, strip, TWB_ATT_STRIP, 1, (const float *)tile_v.base + tile_v.at, tile_v.row, 16,
                                             out + i * a->out_row, a->out_row, gain, first ? NULL : each);
            if (last && lse) twb_storen(lse + i, twb_add(shifts, twb_vlog(total)), rows);
        }
    }
}

/* One row of a strip, n keys of `whole`: p holds the scores and becomes the probabilities (as dropout left them), ds
   holds dO v_j and becomes scale times the gradients of the scores. */
TWB_FN void TWB_NAME(twb_att_slopes)(const twb_attention_args *a, twb_stream stream, ptrdiff_t j0, ptrdiff_t n,
                                     ptrdiff_t whole, float lse, float delta, float *p, float *ds, float *d_bias) {
    const twb_v zero = twb_set1(0.0f), scale = twb_set1(a->scale), from = twb_set1(delta);
    const twb_v drop = twb_set1(a->dropout), kept = twb_set1(1.0f / (1.0f - a->dropout));
    twb_v shift = twb_set1(lse);
    ptrdiff_t j;
    /* a query that saw nothing */
    shift = twb_sel_lt(twb_sub(zero, twb_infinity()), shift, shift, twb_infinity());
    for (j = 0; j < n; j += 16) {
        twb_v e = twb_first(n - j, twb_vexp_neg(twb_sub(twb_load(p + j), shift)), zero), dp = twb_load(ds + j),
                used = e;
        if (a->dropout > 0.0f) {
            twb_vi bits = twb_vmix(stream, (uint32_t)(j0 + j));
            used = twb_vkeep(bits, drop, e, kept);
            dp = twb_vkeep(bits, drop, dp, kept);
        }
        twb_store(p + j, used);
        e = twb_mul(e, twb_sub(dp, from));
        if (d_bias) twb_put(d_bias + j, twb_add(twb_get(d_bias + j, n - j), e), n - j);
        twb_store(ds + j, twb_mul(e, scale));
    }
    for (; j < whole; j += 16) {
        twb_store(p + j, zero);
        twb_store(ds + j, zero);
    }
}

/* What a backward task keeps in its scratch, for one tile of keys and one block of queries. */
typedef struct TWB_NAME(twb_att_tiles) {
    /* K^T and V^T in panels, K in rows; dK and dV so far */
    float *key_panels, *value_panels, *key_rows, *sum_dk, *sum_dv;
    float *query_rows, *d_out_rows, *p, *ds, *delta;                /* Q and dO in rows; strips; D of every query */
} TWB_NAME(twb_att_tiles);

/* queries [q0, q0 + queries) of head h against the tile of keys [j0, j0 + keys): dq, sum_dk, sum_dv */
TWB_FN void TWB_NAME(twb_att_backward_block)(const twb_attention_job *job, const TWB_NAME(twb_att_tiles) *t,
                                             ptrdiff_t b, ptrdiff_t h, ptrdiff_t q0, ptrdiff_t queries, ptrdiff_t j0,
                                             ptrdiff_t keys) {
    const twb_attention_args *a = &job->a;
    const twb_attention_grads *g = &job->g;
    const ptrdiff_t D = a->head_dim, W = job->depth, whole = (keys + 15) / 16 * 16;
    const bool hidden = a->bias || a->key_mask || a->mask, add = g->accumulate || j0 > 0;
    const float *lse = a->lse + (b * a->heads + h) * a->tq;
    float *dq = g->dq + b * g->dq_batch + h * g->dq_head, ones[16], scales[16];
    ptrdiff_t reach[TWB_ATT_BACK_QUERIES / TWB_ATT_GROUP], i, j;
    int r;
    twb_store(ones, twb_set1(1.0f));
    twb_store(scales, twb_set1(a->scale));
    twb_att_pack_rows(TWB_NAME(twb_att_floats)(a->q + b * a->q_batch + h * a->q_head + q0 * a->q_row, a->q_row), queries, D, t->query_rows, W);
    twb_att_pack_rows(TWB_NAME(twb_att_floats)(g->d_out + b * g->d_out_batch + h * g->d_out_head + q0 * g->d_out_row, g->d_out_row), queries, D,
                      t->d_out_rows, W);
    for (i = 0; i < queries; i += TWB_ATT_GROUP) {
        const int rows = (int)twb_min_size(TWB_ATT_GROUP, queries - i);
        const ptrdiff_t strip_keys = twb_min_size(keys, twb_attention_visible(a, b, q0 + i + rows - 1) - j0);
        const ptrdiff_t strip_whole = (strip_keys + 15) / 16 * 16;
        float *p = t->p + i * TWB_ATT_BACK_STRIP, *ds = t->ds + i * TWB_ATT_BACK_STRIP;
        reach[i / TWB_ATT_GROUP] = strip_keys;
        if (strip_keys <= 0) continue;
        TWB_NAME(twb_small_product)(rows, strip_whole, D, t->query_rows + i * W, W, 1, t->key_panels, 16, 16 * D,
                                    p, TWB_ATT_BACK_STRIP, scales, NULL);
        TWB_NAME(twb_small_product)(rows, strip_whole, D, t->d_out_rows + i * W, W, 1, t->value_panels, 16, 16 * D,
                                    ds, TWB_ATT_BACK_STRIP, ones, NULL);
        for (r = 0; r < rows; r++) {
            const ptrdiff_t at = q0 + i + r, n = twb_min_size(strip_keys, twb_attention_visible(a, b, at) - j0);
            const ptrdiff_t bias_at = b * a->bias_batch + h * a->bias_head + at * a->bias_row + j0;
            if (hidden && n > 0) twb_att_hide(a, b, h, at, j0, n, p + r * TWB_ATT_BACK_STRIP);
            TWB_NAME(twb_att_slopes)(a, TWB_NAME(twb_att_stream)(a, b, h, at), j0, n, whole, lse[at], t->delta[at],
                                     p + r * TWB_ATT_BACK_STRIP, ds + r * TWB_ATT_BACK_STRIP,
                                     g->d_bias ? g->d_bias + bias_at : NULL);
        }
        TWB_NAME(twb_small_product)(rows, D, strip_keys, ds, TWB_ATT_BACK_STRIP, 1, t->key_rows, W, 16,
                                    dq + (q0 + i) * g->dq_row, g->dq_row, ones, add ? ones : NULL);
    }
    /* 12 keys at a time, over the queries from the first that sees them */
    for (i = j = 0; j < keys; j += TWB_ATT_GROUP) {
        const ptrdiff_t rows = twb_min_size(TWB_ATT_GROUP, keys - j);
        while (i < queries && reach[i / TWB_ATT_GROUP] <= j) i += TWB_ATT_GROUP;
        if (i >= queries) break;
        TWB_NAME(twb_small_product)(rows, W, queries - i, t->p + i * TWB_ATT_BACK_STRIP + j, 1, TWB_ATT_BACK_STRIP,
                                    t->d_out_rows + i * W, W, 16, t->sum_dv + j * W, W, ones, ones);
        TWB_NAME(twb_small_product)(rows, W, queries - i, t->ds + i * TWB_ATT_BACK_STRIP + j, 1, TWB_ATT_BACK_STRIP,
                                    t->query_rows + i * W, W, 16, t->sum_dk + j * W, W, ones, ones);
    }
}

/* rows of W into rows of D, written or added */
TWB_FN void TWB_NAME(twb_att_flush)(const float *src, ptrdiff_t W, ptrdiff_t rows, ptrdiff_t D, bool add, float *dst,
                                    ptrdiff_t dst_row) {
    ptrdiff_t r, d;
    for (r = 0; r < rows; r++, src += W, dst += dst_row)
        for (d = 0; d < D; d += 16) {
            twb_v x = twb_load(src + d);
            twb_put(dst + d, add ? twb_add(twb_get(dst + d, D - d), x) : x, D - d);
        }
}

/* The gradients of one key head and of the query heads that read it: see the chapter's head. */
TWB_FN void TWB_NAME(twb_att_backward)(const twb_attention_job *job, ptrdiff_t b, ptrdiff_t kv, float *scratch) {
    const twb_attention_args *a = &job->a;
    const twb_attention_grads *g = &job->g;
    const ptrdiff_t D = a->head_dim, W = job->depth, group = a->heads / a->kv_heads;
    const twb_rows_of k = TWB_NAME(twb_att_keys)(a, b, kv), v = TWB_NAME(twb_att_values)(a, b, kv);
    const twb_v zero = twb_set1(0.0f);
    TWB_NAME(twb_att_tiles) t;
    ptrdiff_t h, i, d, j0, q0;
    t.key_panels = scratch;
    t.value_panels = t.key_panels + TWB_ATT_BACK_KEYS * D;
    t.key_rows = t.value_panels + TWB_ATT_BACK_KEYS * D;
    t.sum_dk = t.key_rows + TWB_ATT_BACK_KEYS * W;
    t.sum_dv = t.sum_dk + TWB_ATT_BACK_KEYS * W;
    t.query_rows = t.sum_dv + TWB_ATT_BACK_KEYS * W;
    t.d_out_rows = t.query_rows + TWB_ATT_BACK_QUERIES * W;
    t.p = t.d_out_rows + TWB_ATT_BACK_QUERIES * W;
    t.ds = t.p + TWB_ATT_BACK_QUERIES * TWB_ATT_BACK_STRIP;
    t.delta = t.ds + TWB_ATT_BACK_QUERIES * TWB_ATT_BACK_STRIP;
    for (h = kv * group; h < (kv + 1) * group; h++) {
        for (i = 0; i < a->tq; i++) {
            const float *out = a->out + b * a->out_batch + h * a->out_head + i * a->out_row;
            const float *d_out = g->d_out + b * g->d_out_batch + h * g->d_out_head + i * g->d_out_row;
            float *dq = g->dq + b * g->dq_batch + h * g->dq_head + i * g->dq_row;
            const ptrdiff_t group_end = twb_min_size((i / TWB_ATT_GROUP + 1) * TWB_ATT_GROUP, a->tq);
            twb_v sum = zero;
            for (d = 0; d < D; d += 16)
                sum = twb_fma(twb_get(out + d, D - d), twb_get(d_out + d, D - d), sum);
            t.delta[i] = twb_hsum(sum);
            /* its strip sees nothing: nobody will write here */
            if (!g->accumulate && !twb_attention_visible(a, b, group_end - 1))
                for (d = 0; d < D; d++) dq[d] = 0.0f;
        }
        for (j0 = 0; j0 < a->tk; j0 += TWB_ATT_BACK_KEYS) {
            const ptrdiff_t keys = twb_min_size(TWB_ATT_BACK_KEYS, a->tk - j0);
            const bool add = g->accumulate || h > kv * group;
            twb_att_pack_keys(TWB_NAME(twb_att_from)(k, j0), keys, D, t.key_panels);
            twb_att_pack_keys(TWB_NAME(twb_att_from)(v, j0), keys, D, t.value_panels);
            twb_att_pack_rows(TWB_NAME(twb_att_from)(k, j0), keys, D, t.key_rows, W);
            for (d = 0; d < keys * W; d += 16) {
                twb_store(t.sum_dk + d, zero);
                twb_store(t.sum_dv + d, zero);
            }
            for (q0 = 0; q0 < a->tq; q0 += TWB_ATT_BACK_QUERIES) {
                const ptrdiff_t queries = twb_min_size(TWB_ATT_BACK_QUERIES, a->tq - q0);
                if (twb_attention_visible(a, b, q0 + queries - 1) > j0)
                    TWB_NAME(twb_att_backward_block)(job, &t, b, h, q0, queries, j0, keys);
            }
            TWB_NAME(twb_att_flush)(t.sum_dk, W, keys, D, add, g->dk + b * g->dk_batch + kv * g->dk_head + j0 * g->dk_row, g->dk_row);
            TWB_NAME(twb_att_flush)(t.sum_dv, W, keys, D, add, g->dv + b * g->dv_batch + kv * g->dv_head + j0 * g->dv_row, g->dv_row);
        }
    }
}

TWB_FN void TWB_NAME(twb_attention_worker)(void *arg, int worker) {
    twb_attention_job *job = (twb_attention_job *)arg;
    float *scratch = job->scratch + (size_t)worker * job->worker_floats;
    ptrdiff_t task = -1;
    while ((task = twb_queue_take(&job->queue, worker, task)) < job->queue.count) {
        if (job->g.d_out) {
            const ptrdiff_t across = job->a.kv_heads / job->task_heads;
            const ptrdiff_t b0 = task / across * job->task_batches, kv0 = task % across * job->task_heads;
            ptrdiff_t b, kv;
            for (b = b0; b < b0 + job->task_batches; b++) for (kv = kv0; kv < kv0 + job->task_heads; kv++)
                TWB_NAME(twb_att_backward)(job, b, kv, scratch);
        } else {
            const ptrdiff_t next = twb_queue_peek(&job->queue, task);
            const ptrdiff_t head = task / job->row_blocks, next_head = next / job->row_blocks;
            const ptrdiff_t i0 = (job->row_blocks - 1 - task % job->row_blocks) * TWB_ATT_QUERIES;     /* long blocks, a causal head's last, come first */
            const ptrdiff_t coming = job->fetch && next < job->queue.count && next_head != head ? next_head : -1;
            TWB_NAME(twb_att_forward)(job, head / job->a.heads, head % job->a.heads, i0,
                                      twb_min_size(i0 + TWB_ATT_QUERIES, job->a.tq), coming, scratch);
        }
    }
}
#undef TWB_GELU_A
#undef TWB_GELU_B
#undef twb_att_hide
#undef twb_att_pack_keys
#undef twb_att_pack_rows
#undef twb_rows_of
#undef twb_first
#undef twb_get
#undef twb_get_bytes
#undef twb_infinity
#undef twb_put
#undef twb_put_bf16
#undef twb_put_f16
#undef twb_put_words
#undef twb_vact
#undef twb_vact_grad
#undef twb_verf
#undef twb_vexp
#undef twb_vexp_core
#undef twb_vexp_neg
#undef twb_vgelu
#undef twb_vgelu_tanh
#undef twb_vkeep
#undef twb_vlog
#undef twb_vmix
#undef twb_vpoly
#undef twb_vquick_gelu
#undef twb_vrelu
#undef twb_vsigmoid
#undef twb_vsign_of
#undef twb_vsilu
#undef twb_vsoftplus
#undef twb_vtanh
#undef twb_vunit

/* ---- end of a pass: the names above belong to its set only */
#undef TWB_FN
#undef TWB_NAME
#undef TWB_UNROLL
#undef TWB_VFN
#undef twb_abs
#undef twb_add
#undef twb_bits
#undef twb_div
#undef twb_fma
#undef twb_fnma
#undef twb_hmax
#undef twb_hsum
#undef twb_iadd
#undef twb_iand
#undef twb_imul
#undef twb_ior
#undef twb_iramp
#undef twb_iset1
#undef twb_ishl
#undef twb_ishr
#undef twb_ixor
#undef twb_load
#undef twb_load_bf16
#undef twb_load_f16
#undef twb_loadn
#undef twb_max
#undef twb_min
#undef twb_mul
#undef twb_round
#undef twb_sel_lt
#undef twb_set1
#undef twb_sqrt
#undef twb_store
#undef twb_storen
#undef twb_sub
#undef twb_tofloat
#undef twb_toint
#undef twb_unbits
#undef twb_v
#undef twb_vi

#endif /* TWB_PASS */
#endif /* implementation */
