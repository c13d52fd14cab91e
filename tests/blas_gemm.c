/* The matrix products of twinkle_blas.h: every kernel set, 1 to 3 threads and the definition in plain loops must give
   the same bits, over odd sizes, strides and misaligned pointers; and the definition must agree with double precision.
   Products of bf16 numbers by the processor's own instruction (AVX512_BF16) are the exception: those are held to the error
   that f32 sums can have, and to the same bits for any number of threads and rows. */
#define TWINKLE_BLAS_IMPLEMENTATION
#include "twinkle_blas.h"
#include "check.h"
#include <math.h>
#include <string.h>

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static float weight_at(twb_type type, const void *b, size_t at) {
    return type == TWB_F16 ? twb_f16_to_f32(((const uint16_t *)b)[at])
         : type == TWB_BF16 ? twb_bf16_to_f32(((const uint16_t *)b)[at]) : ((const float *)b)[at];
}

static void *random_weights(twb_type type, size_t count) {
    void *p = check_malloc((count + 1) * (type == TWB_F32 ? 4 : 2));
    size_t i;
    for (i = 0; i < count; i++) {
        float x = check_uniform();
        if (type == TWB_F32) ((float *)p)[i] = x;
        else ((uint16_t *)p)[i] = type == TWB_F16 ? twb_f32_to_f16(x) : twb_f32_to_bf16(x);
    }
    return p;
}

static float *random_floats(size_t count) { return (float *)random_weights(TWB_F32, count); }

static double activation_of(twb_activation activation, double x) {
    switch (activation) {
    case TWB_ACT_RELU: return x > 0 ? x : 0;
    case TWB_ACT_GELU: return 0.5 * x * (1 + erf(x * 0.70710678118654752));
    case TWB_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case TWB_ACT_SILU: return x / (1 + exp(-x));
    case TWB_ACT_TANH: return tanh(x);
    case TWB_ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case TWB_ACT_SIGMOID: return 1 / (1 + exp(-x));
    case TWB_ACT_NONE: case TWB_ACT_COUNT: break;
    }
    return x;
}

typedef struct product {
    bool trans_a, trans_b, packed;
    int m, n, k, pad;                           /* pad: added to every leading dimension */
    float alpha, beta;
    twb_type type;
    int batch, share;                           /* share: stride_b 0 */
    int epilogue;                               /* bits: 1 bias, 2 pre_activation, 4 residual */
    twb_activation activation;
    int misalign;                               /* floats by which the pointers are off */
    bool rounded;                               /* bf16_products */
    bool lanes;                                 /* few_by_lanes */
} product;

/* a number as the product sees it */
static double seen(bool rounded, float x) { return (double)(rounded ? twb_bf16_to_f32(twb_f32_to_bf16(x)) : x); }

/* What the instruction gave where the definition in f32 is known: how often the bits differ, and the largest error over its bound. */
static struct { long numbers, differ; double worst; } instruction;

/* Runs one product everywhere. */
static void check_product(const product *p) {
    int batch = p->batch > 1 ? p->batch : 1, isa, threads, i, j, l, item;
    ptrdiff_t lda = (p->trans_a ? p->m : p->k) + p->pad, ldb = (p->trans_b ? p->k : p->n) + p->pad, ldc = p->n + p->pad, ldr = ldc + 3;
    size_t a_size = (size_t)((p->trans_a ? p->k : p->m) * lda), b_size = (size_t)((p->trans_b ? p->n : p->k) * ldb), c_size = (size_t)(p->m * ldc);
    size_t r_size = larger((size_t)(p->m * ldr), 1) + c_size * (size_t)batch, off = (size_t)p->misalign, total = c_size * (size_t)batch;
    float *a = random_floats(a_size * (size_t)batch + off), *bias = random_floats((size_t)p->n + off), *residual = random_floats(r_size + off);
    void *b = random_weights(p->type, b_size * (size_t)batch + off), *packed = NULL;
    float *start = random_floats(total + off), *want = random_floats(total + off), *want_pre = random_floats(total + off);
    float *got = random_floats(total + off), *pre = random_floats(total + off);
    twb_gemm_args g;
    twb_epilogue e;
    twb_cpu cpu = twb_cpu_default();
    char name[200];
    memset(&g, 0, sizeof g);
    memset(&e, 0, sizeof e);
    snprintf(name, sizeof name, "%s%s m %d n %d k %d pad %d alpha %g beta %g type %d packed %d batch %d epilogue %d act %d off %d%s%s",
             p->trans_a ? "T" : "N", p->trans_b ? "T" : "N", p->m, p->n, p->k, p->pad, (double)p->alpha, (double)p->beta, (int)p->type,
             p->packed, p->batch, p->epilogue, (int)p->activation, p->misalign, p->rounded ? " rounded" : "", p->lanes ? " by lanes" : "");
    g.bf16_products = p->rounded;
    g.few_by_lanes = p->lanes;
    g.trans_a = p->trans_a; g.trans_b = p->trans_b;
    g.m = p->m; g.n = p->n; g.k = p->k; g.alpha = p->alpha; g.beta = p->beta;
    g.a = a + off; g.lda = lda;
    g.b = p->type == TWB_F32 ? (void *)((float *)b + off) : (void *)((uint16_t *)b + off);
    g.ldb = ldb; g.b_type = p->type; g.ldc = ldc;
    g.batch = p->batch; g.stride_a = (ptrdiff_t)a_size; g.stride_b = p->share ? 0 : (ptrdiff_t)b_size; g.stride_c = (ptrdiff_t)c_size;
    if (p->epilogue || p->activation) {
        g.epilogue = &e;
        e.activation = p->activation;
        if (p->epilogue & 1) e.bias = bias + off;
        if (p->epilogue & 4) { e.residual = residual + off; e.ld_residual = ldr; }
    }
    memcpy(want, start, (total + off) * sizeof(float));
    memcpy(want_pre, start, (total + off) * sizeof(float));
    if (p->epilogue & 2) e.pre_activation = want_pre + off;
    g.c = want + off;
    twb_ref_gemm(&g);

    /* the definition against double precision */
    for (item = 0; item < batch; item++)
        for (i = 0; i < p->m; i++)
            for (j = 0; j < p->n; j++) {
                size_t at = (size_t)item * c_size + (size_t)(i * ldc + j) + off;
                double sum = 0, magnitude = 1e-30, y, c = (double)start[at];
                for (l = 0; l < p->k; l++) {
                    double x = seen(p->rounded, a[off + (size_t)item * a_size + (size_t)(p->trans_a ? l * lda + i : i * lda + l)]);
                    double w = seen(p->rounded, weight_at(p->type, b, off + (size_t)((p->share ? 0 : item) * (ptrdiff_t)b_size + (p->trans_b ? j * ldb + l : l * ldb + j))));
                    sum += x * w;
                    magnitude += fabs(x * w);
                }
                y = (double)p->alpha * sum + (double)p->beta * c;
                magnitude = fabs((double)p->alpha) * magnitude + fabs((double)p->beta * c) + 3;
                if (p->epilogue & 1) y += (double)bias[off + (size_t)j];
                if (p->epilogue & 2)
                    CHECK(fabs(y - (double)want_pre[at]) <= 1e-6 * magnitude, "%s: pre_activation [%d,%d,%d] is %g, not %g", name, item, i, j, (double)want_pre[at], y);
                y = activation_of(p->activation, y);
                if (p->epilogue & 4) y += (double)residual[off + (size_t)item * c_size + (size_t)(i * ldr + j)];
                CHECK(fabs(y - (double)want[at]) <= 2e-6 * magnitude, "%s: [%d,%d,%d] is %g, not %g", name, item, i, j, (double)want[at], y);
            }

    if (p->packed) {
        size_t size = twb_packed_size(&cpu, p->type, p->n, p->k), element = p->type == TWB_F32 ? 4 : 2;
        packed = check_malloc(size * (size_t)batch);
        for (item = 0; item < batch; item++)
            twb_pack_weights(&cpu, p->type, p->trans_b, p->n, p->k, (const char *)g.b + (size_t)(item * g.stride_b) * element, ldb, (char *)packed + (size_t)item * size);
        g.b = packed; g.b_packed = true; g.stride_b = (ptrdiff_t)(size / element);
        if (p->share) g.stride_b = 0;
        memcpy(got, start, (total + off) * sizeof(float));
        memcpy(pre, start, (total + off) * sizeof(float));
        if (p->epilogue & 2) e.pre_activation = pre + off;
        g.c = got + off;
        twb_ref_gemm(&g);
        CHECK(!memcmp(got, want, (total + off) * sizeof(float)), "%s: the definition differs for packed weights", name);
    }
    if (p->k == 0) { g.a = NULL; g.b = NULL; }                 /* without a number in them they may be NULL */
    for (isa = 0; isa < TWB_ISA_COUNT; isa++) {
        if (!twb_isa_available((twb_isa)isa)) continue;
        cpu.isa = (twb_isa)isa;
        for (threads = 1; threads <= 3; threads = check_next_threads(threads)) {
            void *scratch;
            cpu.threads = threads;
            scratch = check_malloc(twb_gemm_scratch(&cpu, &g));
            memcpy(got, start, (total + off) * sizeof(float));
            memcpy(pre, start, (total + off) * sizeof(float));
            g.c = got + off;
            if (p->epilogue & 2) e.pre_activation = pre + off;
            twb_gemm(&cpu, &g, scratch);
            if (p->rounded && cpu.isa == TWB_ISA_AVX512 && cpu.bf16) {
                /* sums of other roundings: each is off the exact one by k 2^-24 of its terms at most, usually by the root of that */
                double most = 1e-6 * (4 + p->k * fabs((double)p->alpha));
                size_t x;
                for (x = 0; x < total + off; x++) {
                    CHECK(fabs((double)got[x] - (double)want[x]) <= most, "%s: [%d] by bf16 instructions is %g, not %g", name, (int)x, (double)got[x], (double)want[x]);
                    CHECK(!(p->epilogue & 2) || fabs((double)pre[x] - (double)want_pre[x]) <= most, "%s: pre_activation [%d] by bf16 instructions is %g, not %g",
                          name, (int)x, (double)pre[x], (double)want_pre[x]);
                }
#ifdef AVX512_EMULATED_H            /* the emulation is the manual's word: upper halves first, which is our order; here are no denormals */
                CHECK(!memcmp(got, want, (total + off) * sizeof(float)), "%s: with %d threads the bf16 instruction is not used in order", name, threads);
#endif
            } else {
                CHECK(!memcmp(got, want, (total + off) * sizeof(float)), "%s: %s with %d threads gives other bits", name, twb_isa_name(cpu.isa), threads);
                CHECK(!memcmp(pre, want_pre, (total + off) * sizeof(float)), "%s: %s with %d threads: other pre_activation", name, twb_isa_name(cpu.isa), threads);
            }
            free(scratch);
        }
        if (p->rounded && cpu.isa == TWB_ISA_AVX512 && cpu.bf16) { cpu.bf16 = false; isa--; }      /* once more, by f32 kernels */
    }
    free(a); free(b); free(bias); free(residual); free(packed); free(start); free(want); free(want_pre); free(got); free(pre);
}

static void check_products(void) {
    static const int sizes[][3] = {      /* m, n, k */
        {1, 1, 1}, {1, 16, 16}, {1, 17, 3}, {1, 70, 300}, {2, 33, 257}, {3, 48, 31}, {4, 64, 64}, {5, 100, 17}, {7, 15, 64}, {13, 32, 256},
        {14, 31, 255}, {15, 65, 129}, {16, 16, 1}, {17, 130, 513}, {29, 257, 40}, {64, 64, 64}, {43, 96, 600}, {1, 530, 77}, {6, 1, 19}, {3, 2, 0},
        {2, 512, 260}, {8, 200, 90}, {3, 0, 5}, {0, 5, 3}, {9, 0, 0}
    };
    static const twb_type types[] = { TWB_F32, TWB_F16, TWB_BF16 };
    size_t s;
    int layout, t;
    product p;
    for (s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (layout = 0; layout < 4; layout++)
            for (t = 0; t < 3; t++) {
                if (check_skip()) continue;
                memset(&p, 0, sizeof p);
                p.m = sizes[s][0]; p.n = sizes[s][1]; p.k = sizes[s][2];
                p.trans_a = layout & 1; p.trans_b = layout >> 1;
                p.alpha = 1; p.type = types[t];
                check_product(&p);                                              /* the plain case */
                p.lanes = true;
                p.epilogue = (int)(s + (size_t)t + 3) & 7;
                if (p.m <= 5) check_product(&p);                                /* in another order, where few rows may be */
                p.pad = 2; p.misalign = 1; p.alpha = 1.5f; p.beta = -1;
                if (p.m <= 5) check_product(&p);
                p.lanes = false;
                p.epilogue = 0;
                p.pad = 5; p.misalign = 1 + (int)(s % 3); p.alpha = -0.75f; p.beta = 0.5f;
                check_product(&p);
                p.packed = true; p.pad = 0; p.misalign = 0; p.alpha = 1; p.beta = 1;
                p.epilogue = (int)(s + (size_t)t) & 7;
                check_product(&p);
                p.rounded = true;                                               /* and of bf16 numbers, packed or not */
                if ((s + (size_t)layout) % 2) { p.packed = false; p.pad = 3; p.misalign = 1; p.alpha = 0.5f; p.beta = (float)(s % 4 / 2); }
                check_product(&p);
            }
    /* every epilogue, on one block of k and on several */
    for (t = 0; t < 8 * TWB_ACT_COUNT; t++) {
        if (check_skip()) continue;
        memset(&p, 0, sizeof p);
        p.m = t % 3 ? 9 : 2; p.n = 37; p.k = t % 2 ? 40 : 270; p.alpha = 1; p.trans_b = t % 5 != 0; p.pad = t % 4;
        p.epilogue = t & 7; p.activation = (twb_activation)(t >> 3);
        check_product(&p);
        p.rounded = true;
        check_product(&p);
    }
    /* batches */
    for (t = 0; t < 16; t++) {
        memset(&p, 0, sizeof p);
        p.m = t & 1 ? 20 : 1; p.n = 33; p.k = 24; p.alpha = 0.125f; p.trans_a = (t & 2) != 0; p.trans_b = (t & 4) != 0;
        p.batch = 7; p.share = (t & 8) != 0; p.pad = 1; p.packed = t == 5 || t == 12; p.epilogue = t & 7;
        p.lanes = t % 3 != 0;
        check_product(&p);
        p.rounded = true;
        check_product(&p);
    }
}

/* Products of bf16 numbers, one by one against sums in double precision of the same rounded numbers; some 2^-down and smaller, for denormal
   products and sums, with `special` also halves to round, infinities and NaN.  An f32 sum of k exact products is off by (k + blocks) 2^-24
   of the sum of their magnitudes at most; where the instruction is used, an operand or a sum below 2^-126 may be taken for 0 in each step. */
static void check_bf16_numbers(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int layout, int down, int low, bool special) {
    size_t a_size = (size_t)(m * k), b_size = (size_t)(n * k), c_size = (size_t)(m * n), x;
    float *a = random_floats(a_size), *b = random_floats(b_size), *c = random_floats(c_size), *first = random_floats(c_size), *want = random_floats(c_size);
    static const uint32_t specials[] = { 0x3F808000u, 0x3F818000u, 0x3F807FFFu, 0xBF80FFFFu, 0x7F7FFFFFu, 0x7F800000u, 0xFF800000u, 0x7FFFFFFFu, 0x7F800001u, 0x80000000u, 0x00008000u };
    twb_cpu cpu = twb_cpu_default();
    twb_gemm_args g;
    int isa, threads, by;
    ptrdiff_t i, j, l;
    for (x = 0; x < a_size; x++) a[x] = ldexpf(a[x], -down - (int)(check_random() % (uint32_t)low));
    for (x = 0; x < b_size; x++) b[x] = ldexpf(b[x], down > 100 ? 0 : -down - (int)(check_random() % (uint32_t)low));
    for (x = 0; special && x < 3 * (size_t)k; x++) {
        a[check_random() % a_size] = twb_bits_float(specials[check_random() % (sizeof specials / sizeof *specials)]);
        b[check_random() % b_size] = twb_bits_float(specials[check_random() % 4]);
    }
    memset(&g, 0, sizeof g);
    g.trans_a = layout & 1; g.trans_b = layout >> 1;
    g.m = m; g.n = n; g.k = k; g.alpha = 1; g.a = a; g.lda = g.trans_a ? m : k; g.b = b; g.ldb = g.trans_b ? k : n; g.ldc = n;
    g.bf16_products = true;
    g.c = want;
    twb_ref_gemm(&g);
    for (isa = 0; isa < TWB_ISA_COUNT; isa++)
        for (by = 0; by < 2; by++) {
            if (!twb_isa_available((twb_isa)isa) || (by && (isa != TWB_ISA_AVX512 || !twb_cpu_default().bf16))) continue;
            cpu.isa = (twb_isa)isa;
            cpu.bf16 = by;
            for (threads = 1; threads <= 3; threads = check_next_threads(threads)) {
                void *scratch;
                cpu.threads = threads;
                scratch = check_malloc(twb_gemm_scratch(&cpu, &g));
                g.c = threads == 1 ? first : c;
                twb_gemm(&cpu, &g, scratch);
                free(scratch);
                for (x = 0; threads > 1 && x < c_size; x++)
                    CHECK(!memcmp(&c[x], &first[x], sizeof *c) || (c[x] != c[x] && first[x] != first[x]), "bf16 %d x %d x %d: %s with %d threads: other bits",
                          (int)m, (int)n, (int)k, twb_isa_name(cpu.isa), threads);
            }
            for (i = 0; i < m; i++)
                for (j = 0; j < n; j++) {
                    float got = first[i * n + j], defined = want[i * n + j];
                    double sum = 0, magnitude = 0, largest = 0, bound;
                    for (l = 0; l < k; l++) {
                        double p = seen(true, a[g.trans_a ? l * g.lda + i : i * g.lda + l]), q = seen(true, b[g.trans_b ? j * g.ldb + l : l * g.ldb + j]);
                        sum += p * q;
                        magnitude += fabs(p * q);
                        largest = fmax(largest, fmax(fabs(p), fabs(q)));
                    }
                    if (sum != sum || isinf(sum) || magnitude > 3e38) {
                        CHECK(sum == sum ? (double)got == sum || magnitude < 1e300 : got != got, "bf16 [%d,%d]: %s: %g, not %g", (int)i, (int)j, twb_isa_name(cpu.isa), (double)got, sum);
                        continue;
                    }
                    bound = (double)(k + k / 256 + 2) * ldexp(1, -24) * magnitude + (double)k * (by ? ldexp(1 + 2 * largest, -126) : ldexp(1, -149)) + ldexp(1, -149);
                    CHECK(fabs((double)got - sum) <= bound, "bf16 [%d,%d] of %d x %d x %d layout %d down %d: %s%s: %g, not %g: off by %g times the bound", (int)i, (int)j, (int)m,
                          (int)n, (int)k, layout, down, twb_isa_name(cpu.isa), by ? " by instructions" : "", (double)got, sum, fabs((double)got - sum) / bound);
                    if (!by) CHECK(!memcmp(&got, &defined, sizeof got), "bf16 [%d,%d]: %s: other bits", (int)i, (int)j, twb_isa_name(cpu.isa));
                    else {
                        double off = fabs((double)got - sum) / bound;
                        instruction.numbers++;
                        instruction.differ += memcmp(&got, &defined, sizeof got) != 0;
                        instruction.worst = fmax(instruction.worst, off);
                    }
                }
        }
    free(a); free(b); free(c); free(first); free(want);
}

/* Larger ones, against the set's own single thread and by rows: a row's bits do not depend on m.  The smaller ones, for an
   emulated processor, still have several chunks of rows, blocks of columns and of k. */
static void check_rows_and_threads(bool rounded) {
    static const int all[][3] = { {300, 1100, 700}, {40, 3000, 900}, {700, 260, 300}, {1, 9000, 520}, {4, 2050, 800} };
    static const int smaller[][3] = { {270, 200, 70}, {6, 2100, 260}, {700, 40, 260}, {1, 9000, 40}, {4, 2050, 260} };
    const int (*const sizes)[3] = check_every > 1 ? smaller : all;
    twb_cpu cpu = twb_cpu_default();
    size_t s;
    for (s = 0; s < sizeof all / sizeof *all; s++) {
        ptrdiff_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2], row;
        float *a = random_floats((size_t)(m * k)), *b = random_floats((size_t)(n * k)), *c = random_floats((size_t)(m * n)), *d = random_floats((size_t)(m * n));
        int layout, isa, threads;
        for (layout = 0; layout < 4; layout++) {
            twb_gemm_args g;
            if (rounded && s == 0 && layout % 2) continue;
            memset(&g, 0, sizeof g);
            g.trans_a = layout & 1; g.trans_b = layout >> 1;
            g.m = m; g.n = n; g.k = k; g.alpha = 1; g.a = a; g.lda = g.trans_a ? m : k; g.b = b; g.ldb = g.trans_b ? k : n; g.ldc = n;
            g.bf16_products = rounded;
            for (isa = TWB_ISA_COUNT - 1; isa > 0 || isa == (int)cpu.isa; isa--) {      /* plain C where there is nothing else */
                if (!twb_isa_available((twb_isa)isa)) continue;
                for (threads = 1; threads <= 3; threads = check_next_threads(threads)) {
                    float *to = cpu.isa == (twb_isa)isa && threads == 1 ? c : d;
                    void *scratch;
                    twb_cpu use = cpu;
                    use.isa = (twb_isa)isa; use.threads = threads;
                    if (rounded && cpu.bf16 && use.isa != cpu.isa) continue;      /* the instruction keeps to itself */
                    scratch = check_malloc(twb_gemm_scratch(&use, &g));
                    g.c = to;
                    twb_gemm(&use, &g, scratch);
                    if (to == d) CHECK(!memcmp(c, d, (size_t)(m * n) * sizeof(float)), "%d x %d x %d layout %d, %s, %d threads: other bits",
                                       (int)m, (int)n, (int)k, layout, twb_isa_name(use.isa), threads);
                    free(scratch);
                }
            }
            for (row = 0; row < m && !g.trans_a; row += 1 + m / 5) {
                twb_gemm_args one = g;
                void *scratch;
                one.m = 1; one.a = a + row * k; one.c = d;
                scratch = check_malloc(twb_gemm_scratch(&cpu, &one));
                twb_gemm(&cpu, &one, scratch);
                CHECK(!memcmp(d, c + row * n, (size_t)n * sizeof(float)), "%d x %d x %d layout %d%s: row %d alone has other bits", (int)m, (int)n, (int)k, layout,
                      rounded ? " of bf16 numbers" : "", (int)row);
                free(scratch);
            }
        }
        free(a); free(b); free(c); free(d);
    }
}

static double worst(const float *x, const float *y, size_t n, double *scale) {
    double most = 0;
    size_t i;
    *scale = 1e-30;
    for (i = 0; i < n; i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        most = d > most ? d : most;
        *scale = fabs((double)y[i]) > *scale ? fabs((double)y[i]) : *scale;
    }
    return most;
}

static void check_cross_entropy(ptrdiff_t rows, ptrdiff_t width, ptrdiff_t vocab, twb_type type, float smoothing, int ignore_every, bool gradients, bool frozen, bool rounded) {
    size_t h_size = (size_t)(rows * (width + 2)), w_size = (size_t)(vocab * (width + 1)), i;
    float *hidden = random_floats(h_size), *losses[3], *d_hidden[3], *d_weight[3], *start = random_floats(w_size);
    void *weight = random_weights(type, w_size);
    int32_t *labels = (int32_t *)check_malloc((size_t)rows * sizeof *labels);
    double *row = (double *)check_malloc((size_t)vocab * sizeof *row), scale, error;
    twb_linear_cross_entropy_args args;
    twb_cpu cpu = twb_cpu_default();
    int which, isa, threads;
    char name[160];
    snprintf(name, sizeof name, "cross-entropy rows %d width %d vocab %d type %d smoothing %g ignore %d gradients %d frozen %d",
             (int)rows, (int)width, (int)vocab, (int)type, (double)smoothing, ignore_every, gradients, frozen);
    for (i = 0; i < h_size; i++) hidden[i] *= 3;
    for (i = 0; i < (size_t)rows; i++) labels[i] = ignore_every && (int)i % ignore_every == 0 ? -100 : (int32_t)(check_random() % (uint32_t)vocab);
    for (which = 0; which < 3; which++) {
        losses[which] = random_floats((size_t)rows);
        d_hidden[which] = random_floats(h_size);
        d_weight[which] = random_floats(w_size);
        memcpy(d_hidden[which], hidden, h_size * sizeof(float));
        memcpy(d_weight[which], start, w_size * sizeof(float));
    }
    memset(&args, 0, sizeof args);
    args.rows = rows; args.hidden_size = width; args.vocab = vocab;
    args.hidden = hidden; args.ld_hidden = width + 2;
    args.weight = weight; args.weight_type = type; args.ld_weight = width + 1;
    args.labels = labels; args.ignore_index = -100; args.label_smoothing = smoothing;
    args.ld_d_hidden = width + 2; args.ld_d_weight = width + 1; args.scale = 0.37f;
    args.bf16_products = rounded;
    args.losses = losses[0];
    if (gradients) { args.d_hidden = d_hidden[0]; if (!frozen) args.d_weight = d_weight[0]; }
    twb_ref_linear_cross_entropy(&args, row);
    for (isa = TWB_ISA_COUNT - 1; isa >= 0; isa--) {
        if (!twb_isa_available((twb_isa)isa) || (rounded && cpu.bf16 && cpu.isa != (twb_isa)isa)) continue;
        for (threads = 1; threads <= 3; threads = check_next_threads(threads)) {
            void *scratch;
            which = cpu.isa == (twb_isa)isa && threads == 1 ? 1 : 2;
            memcpy(d_hidden[which], hidden, h_size * sizeof(float));
            memcpy(d_weight[which], start, w_size * sizeof(float));
            args.losses = losses[which];
            if (gradients) { args.d_hidden = d_hidden[which]; if (!frozen) args.d_weight = d_weight[which]; }
            {
                twb_cpu use = cpu;
                use.isa = (twb_isa)isa; use.threads = threads;
                scratch = check_malloc(twb_linear_cross_entropy_scratch(&use, &args));
                twb_linear_cross_entropy(&use, &args, scratch);
            }
            free(scratch);
            if (which == 1) {
                error = worst(losses[1], losses[0], (size_t)rows, &scale);
                CHECK(error <= 3e-6 * (scale + 1), "%s: losses off by %g of %g", name, error, scale);
                /* rounded: where the gradient of a logit falls between two bf16 numbers it may go to either, 2^-8 apart */
                error = worst(d_hidden[1], d_hidden[0], h_size, &scale);
                CHECK(error <= (rounded ? 2e-3 : 5e-6) * scale, "%s: d_hidden off by %g of %g", name, error, scale);
                error = worst(d_weight[1], d_weight[0], w_size, &scale);
                CHECK(error <= (rounded ? 2e-3 : 5e-6) * scale, "%s: d_weight off by %g of %g", name, error, scale);
            } else {
                CHECK(!memcmp(losses[1], losses[2], (size_t)rows * sizeof(float)), "%s: %s, %d threads: other losses", name, twb_isa_name((twb_isa)isa), threads);
                CHECK(!memcmp(d_hidden[1], d_hidden[2], h_size * sizeof(float)), "%s: %s, %d threads: other d_hidden", name, twb_isa_name((twb_isa)isa), threads);
                CHECK(!memcmp(d_weight[1], d_weight[2], w_size * sizeof(float)), "%s: %s, %d threads: other d_weight", name, twb_isa_name((twb_isa)isa), threads);
            }
        }
    }
    /* d_hidden is the derivative of scale x the sum of the losses: against differences */
    if (gradients && rows * width < 400 && !rounded) {
        twb_linear_cross_entropy_args forward = args;
        double up = 0, down = 0, slope, h = 1e-2;
        ptrdiff_t at = (rows - 1) * (width + 2) + width / 2, r;
        float keep = hidden[at];
        void *scratch;
        forward.d_hidden = NULL; forward.d_weight = NULL; forward.losses = losses[2];
        scratch = check_malloc(twb_linear_cross_entropy_scratch(&cpu, &forward));
        hidden[at] = keep + (float)h; twb_linear_cross_entropy(&cpu, &forward, scratch); for (r = 0; r < rows; r++) up += (double)losses[2][r];
        hidden[at] = keep - (float)h; twb_linear_cross_entropy(&cpu, &forward, scratch); for (r = 0; r < rows; r++) down += (double)losses[2][r];
        hidden[at] = keep;
        slope = (double)args.scale * (up - down) / (2 * h);
        CHECK(fabs(slope - (double)d_hidden[1][at]) <= 2e-3 * (fabs(slope) + 0.1), "%s: d_hidden is %g, by differences %g", name, (double)d_hidden[1][at], slope);
        free(scratch);
    }
    for (which = 0; which < 3; which++) { free(losses[which]); free(d_hidden[which]); free(d_weight[which]); }
    free(hidden); free(weight); free(labels); free(row); free(start);
}

/* Rows without a number: every class is as likely as every other, whatever the pointers are. */
static void check_nothing_hidden(void) {
    enum { ROWS = 3, VOCAB = 70 };
    static const int32_t labels[ROWS] = { 69, -100, 4 };
    static const twb_type types[] = { TWB_F32, TWB_BF16, TWB_Q8_0 };
    float losses[ROWS];
    twb_cpu cpu = twb_cpu_default();
    twb_linear_cross_entropy_args args;
    size_t t;
    int r;
    memset(&args, 0, sizeof args);
    args.rows = ROWS; args.vocab = VOCAB; args.labels = labels; args.ignore_index = -100; args.losses = losses;
    args.ld_hidden = args.ld_weight = 9;
    for (t = 0; t < sizeof types / sizeof *types; t++) {
        void *scratch;
        args.weight_type = types[t];
        scratch = check_malloc(twb_linear_cross_entropy_scratch(&cpu, &args));
        twb_linear_cross_entropy(&cpu, &args, scratch);
        free(scratch);
        for (r = 0; r < ROWS; r++) {
            double want = labels[r] < 0 ? 0 : log((double)VOCAB);
            CHECK(fabs((double)losses[r] - want) <= 1e-6, "cross-entropy without a hidden number: loss %d is %g, not %g", r, (double)losses[r], want);
        }
    }
}

/* Packed in pieces, from other types, unpacked and looked up: always the numbers that plain loops would move. */
static void check_packing(twb_type type, twb_type from, bool trans, int n, int k, int piece) {
    const size_t size = type == TWB_F32 ? 4u : 2u;
    const ptrdiff_t ldb = (trans ? k : n) + 3;
    const size_t count = (size_t)((trans ? n : k) * ldb);
    twb_cpu cpu = twb_cpu_default();
    size_t bytes = twb_packed_size(&cpu, type, n, k), want_bytes = count * size;
    void *b = random_weights(from, count), *want = check_malloc(want_bytes + 1), *whole = check_malloc(bytes + 1), *pieces = check_malloc(bytes + 1), *back = check_malloc(want_bytes + 1);
    float *row = (float *)check_malloc((size_t)k * sizeof *row);
    int isa, j, i;
    int32_t id;
    twb_convert(&cpu, (ptrdiff_t)count, b, from, want, type);
    for (isa = 0; isa < TWB_ISA_COUNT; isa++) {
        cpu.isa = (twb_isa)isa;
        if (!twb_isa_available(cpu.isa)) continue;
        memset(whole, 0x55, bytes);
        memset(pieces, 0xAA, bytes);
        memcpy(back, want, want_bytes);                     /* what lies between the rows stays */
        twb_pack_weights(&cpu, type, trans, n, k, want, ldb, whole);
        for (j = 0; j < n; j += piece)
            twb_pack_columns(&cpu, type, trans, n, k, j, n - j < piece ? n - j : piece, from, (char *)b + (size_t)(trans ? j * ldb : j) * (from == TWB_F32 ? 4u : 2u), ldb, pieces);
        CHECK(memcmp(whole, pieces, bytes) == 0, "%s: packing %dx%d of type %d from %d in pieces of %d", twb_isa_name(cpu.isa), n, k, (int)type, (int)from, piece);
        for (i = 0; i < n; i++) for (j = 0; j < k; j++) memset((char *)back + (size_t)(trans ? i * ldb + j : j * ldb + i) * size, 0, size);
        twb_unpack_weights(&cpu, type, trans, n, k, whole, back, ldb);
        CHECK(memcmp(back, want, want_bytes) == 0, "%s: unpacking %dx%d of type %d", twb_isa_name(cpu.isa), n, k, (int)type);
        for (id = 0; id < n; id += 5) {
            twb_packed_embedding(&cpu, type, n, k, 1, &id, whole, row, k);
            for (j = 0; j < k; j++) {
                float x = weight_at(type, want, (size_t)(trans ? id * ldb + j : j * ldb + id));
                if (memcmp(&x, &row[j], sizeof x) != 0) break;
            }
            CHECK(j == k, "row %d of a packed table %dx%d of type %d is wrong at %d", (int)id, n, k, (int)type, j);
        }
    }
    free(b); free(want); free(whole); free(pieces); free(back); free(row);
}
static void check_packings(void) {
    static const struct { twb_type type, from; } pairs[] = { { TWB_F32, TWB_F32 }, { TWB_F16, TWB_F16 }, { TWB_BF16, TWB_BF16 }, { TWB_F16, TWB_F32 }, { TWB_BF16, TWB_F32 }, { TWB_F32, TWB_BF16 } };
    size_t i;
    int trans;
    for (i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (trans = 0; trans < 2; trans++) {
            check_packing(pairs[i].type, pairs[i].from, trans != 0, 1, 1, 16);
            check_packing(pairs[i].type, pairs[i].from, trans != 0, 37, 300, 16);
            check_packing(pairs[i].type, pairs[i].from, trans != 0, 64, 256, 48);
            check_packing(pairs[i].type, pairs[i].from, trans != 0, 2100, 70, 1040);
        }
}

/* Without a k there need be no operands, and without a row or a column no size is too large. */
static void check_nothing(void) {
    twb_cpu cpu = twb_cpu_default();
    twb_gemm_args g;
    float c[6], scratch[1024];
    int i, kind;
    for (kind = 0; kind < 8; kind++) {
        memset(&g, 0, sizeof g);
        g.m = 2; g.n = 3; g.alpha = 1; g.beta = kind & 1 ? 0.5f : 0; g.c = c; g.ldc = 3;
        g.bf16_products = (kind & 2) != 0; g.few_by_lanes = (kind & 4) != 0;
        for (i = 0; i < 6; i++) c[i] = (float)i;
        CHECK(twb_gemm_scratch(&cpu, &g) <= sizeof scratch, "the scratch is larger");
        twb_gemm(&cpu, &g, scratch);
        for (i = 0; i < 6; i++) CHECK(c[i] == g.beta * (float)i, "kind %d: a product without a k is %g", kind, (double)c[i]);
        twb_ref_gemm(&g);
    }
    g.m = 0; g.n = PTRDIFF_MAX;
    CHECK(twb_gemm_scratch(&cpu, &g) <= sizeof scratch, "no row");
    g.m = PTRDIFF_MAX; g.n = 0;
    CHECK(twb_gemm_scratch(&cpu, &g) <= sizeof scratch, "no column");
}

int main(int argc, char **argv) {
    int layout;
    check_begin(argc, argv);
    check_nothing();
    check_products();
    check_packings();
    check_rows_and_threads(false);
    check_rows_and_threads(true);
    for (layout = 0; layout < 4; layout++) {
        check_bf16_numbers(9, 21, 700, layout, 0, 1, false);
        check_bf16_numbers(15, 70, 33, layout, 0, 60, false);
        check_bf16_numbers(6, 37, 300, layout, 60, 8, false);           /* sums on both sides of 2^-126 */
        check_bf16_numbers(5, 33, 40, layout, 120, 12, false);          /* and operands */
        check_bf16_numbers(20, 40, 129, layout, 0, 1, true);
    }
    if (instruction.numbers)
        printf("bf16 products by the instruction: %.3f of the largest possible error at most; %ld of %ld numbers are not the f32 kernels' bit for bit\n",
               instruction.worst, instruction.differ, instruction.numbers);
    check_cross_entropy(5, 12, 40, TWB_F32, 0, 0, true, false, false);
    check_cross_entropy(5, 12, 40, TWB_F32, 0.1f, 3, true, false, false);
    check_cross_entropy(33, 65, 5003, TWB_F32, 0, 2, false, false, false);
    check_cross_entropy(33, 65, 5003, TWB_F32, 0.2f, 0, false, false, false);
    check_cross_entropy(21, 40, 333, TWB_BF16, 0.1f, 4, true, true, false);
    check_cross_entropy(21, 40, 333, TWB_F16, 0, 0, true, false, false);
    check_cross_entropy(3, 9, 17, TWB_F32, 0, 1, true, false, false);              /* every row ignored */
    check_cross_entropy(1, 64, 1, TWB_F32, 0, 0, true, false, false);              /* a vocabulary of one */
    check_cross_entropy(21, 40, 333, TWB_F32, 0.1f, 4, true, false, true);
    check_cross_entropy(37, 64, 5003, TWB_F32, 0, 0, true, false, true);
    check_cross_entropy(9, 33, 70, TWB_F16, 0, 0, false, false, true);
    check_nothing_hidden();
    return check_done();
}
