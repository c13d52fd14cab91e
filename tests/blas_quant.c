/* Quantized weights of twinkle_blas.h: every kernel set and 1 to 3 threads must give the bits of the plain loops, which must
   agree with double precision; blocks full of the largest values, zeros, tiny numbers and numbers that cannot be quantized. */
#define TWINKLE_BLAS_IMPLEMENTATION
#include "twinkle_blas.h"
#include "check.h"
#include <math.h>
#include <string.h>

static const twb_type types[2] = { TWB_Q8_0, TWB_Q4_0 };
static const char *const type_names[2] = { "q8_0", "q4_0" };

static float *random_floats(size_t count) {
    float *p = (float *)check_malloc((count + 16) * sizeof *p);
    size_t i;
    for (i = 0; i < count; i++) p[i] = check_uniform();
    return p;
}

/* what a kind of test data puts into a matrix */
static float number_of(int kind, size_t i) {
    switch (kind) {
    case 1: return i & 1 ? -1.0f : 1.0f;                                /* all at the ends of the scale */
    case 2: return 1.0f;
    case 3: return 0.0f;
    case 4: return check_uniform() * 1e-39f;                            /* denormal */
    case 5: return i % 32 == 5 ? 30.0f : check_uniform() * 0.01f;       /* one outlier a block */
    default: return check_uniform();
    }
}

/* Quantizing: the error is at most half a step, packing keeps the bytes, every way to make panels makes the same. */
static void check_formats(int t, int n, int k, int kind) {
    const twb_type type = types[t];
    twb_cpu cpu = twb_cpu_default();
    size_t row_bytes = twb_quant_row_bytes(type, k), packed_size = twb_quant_packed_size(type, n, k), i;
    float *w = random_floats((size_t)(n * k)), *turned = random_floats((size_t)(n * k)), *back = random_floats((size_t)(n * k));
    unsigned char *blocks = (unsigned char *)check_malloc(row_bytes * (size_t)n), *again = (unsigned char *)check_malloc(row_bytes * (size_t)n);
    unsigned char *packed = (unsigned char *)check_malloc(packed_size), *direct = (unsigned char *)check_malloc(packed_size);
    int32_t *ids = (int32_t *)check_malloc((size_t)n * sizeof *ids);
    double worst = 0;
    int r, c, isa;
    for (i = 0; i < (size_t)(n * k); i++) w[i] = number_of(kind, i);
    for (r = 0; r < n; r++) for (c = 0; c < k; c++) turned[c * n + r] = w[r * k + c];
    CHECK(twb_quantize(&cpu, type, n, k, w, k, blocks), "%s %dx%d kind %d: refused", type_names[t], n, k, kind);
    twb_dequantize(type, n, k, blocks, back, k);
    for (r = 0; r < n; r++)
        for (c = 0; c < k; c++) {
            double top = 0, off = fabs((double)back[r * k + c] - (double)w[r * k + c]);
            int from = c / 32 * 32, l;
            for (l = from; l < from + 32 && l < k; l++) top = fmax(top, fabs((double)w[r * k + l]));
            if (off / (top + 1e-3) > worst) worst = off / (top + 1e-3);      /* an f16 scale is coarse for tiny numbers: 2^-25 times 127 is 4e-6 */
        }
    /* half a step of q8_0 is 1/254 of the largest, and f16's rounding of the scale adds 1/2048; q4_0's scale may give up
       the ends for the middle, up to a quarter of the largest number */
    CHECK(worst <= (type == TWB_Q8_0 ? 0.0045 : 0.27), "%s %dx%d kind %d: off by %g of the block's largest", type_names[t], n, k, kind, worst);
    if (kind >= 1 && kind <= 3 && type == TWB_Q8_0) CHECK(worst <= 5e-4, "%s kind %d: off by %g", type_names[t], kind, worst);

    twb_quant_pack(&cpu, type, n, k, blocks, packed);
    CHECK(twb_quant_finite(type, n, k, packed), "%s: finite", type_names[t]);
    for (r = 0; r < n; r++) twb_quant_unpack_row(type, n, k, packed, r, again + (size_t)r * row_bytes);
    CHECK(memcmp(blocks, again, row_bytes * (size_t)n) == 0, "%s %dx%d: packing and back changes bytes", type_names[t], n, k);
    for (isa = 0; isa < TWB_ISA_COUNT; isa++) {
        if (!twb_isa_available((twb_isa)isa)) continue;
        for (cpu.threads = 1; cpu.threads <= 3; cpu.threads = check_next_threads(cpu.threads)) {
            cpu.isa = (twb_isa)isa;
            CHECK(twb_quantize_packed(&cpu, type, n, k, TWB_F32, true, w, k, direct), "%s: refused", type_names[t]);
            CHECK(memcmp(direct, packed, packed_size) == 0, "%s %dx%d %s: panels from [n,k] differ", type_names[t], n, k, twb_isa_name(cpu.isa));
            CHECK(twb_quantize_packed(&cpu, type, n, k, TWB_F32, false, turned, n, direct), "%s: refused", type_names[t]);
            CHECK(memcmp(direct, packed, packed_size) == 0, "%s %dx%d %s: panels from [k,n] differ", type_names[t], n, k, twb_isa_name(cpu.isa));
        }
    }
    cpu = twb_cpu_default();
    twb_quant_embedding(&cpu, type, n, k, NULL, packed, turned, k);
    CHECK(memcmp(turned, back, (size_t)(n * k) * sizeof *back) == 0, "%s %dx%d: rows differ", type_names[t], n, k);
    for (r = 0; r < n; r++) ids[r] = (int32_t)(check_random() % (uint32_t)n);
    twb_quant_embedding(&cpu, type, n, k, ids, packed, turned, k);
    for (r = 0; r < n; r++) CHECK(memcmp(turned + r * k, back + ids[r] * k, (size_t)k * sizeof *back) == 0, "%s: row %d", type_names[t], (int)ids[r]);
    {                                                                   /* 16-bit sources: as their widened numbers */
        uint16_t *half = (uint16_t *)check_malloc((size_t)(n * k) * 2);
        twb_type source = kind & 1 ? TWB_F16 : TWB_BF16;
        for (i = 0; i < (size_t)(n * k); i++) {
            half[i] = source == TWB_F16 ? twb_f32_to_f16(w[i]) : twb_f32_to_bf16(w[i]);
            back[i] = source == TWB_F16 ? twb_f16_to_f32(half[i]) : twb_bf16_to_f32(half[i]);
        }
        CHECK(twb_quantize_packed(&cpu, type, n, k, source, true, half, k, direct) && twb_quantize_packed(&cpu, type, n, k, TWB_F32, true, back, k, packed), "refused");
        CHECK(memcmp(direct, packed, packed_size) == 0, "%s %dx%d: panels from 16 bits differ", type_names[t], n, k);
        free(half);
    }
    free(w); free(turned); free(back); free(blocks); free(again); free(packed); free(direct); free(ids);
}

/* One product everywhere. */
/* whether this processor has the set's instruction for four products of bytes */
static bool has_four_products(twb_isa isa) {
    const twb_cpu cpu = twb_cpu_default();
    return isa == TWB_ISA_AVX512 ? cpu.vnni : isa == TWB_ISA_AVX2 ? cpu.avxvnni : isa == TWB_ISA_NEON && cpu.sdot;
}

static void check_product(int t, int m, int n, int k, int kind_a, int kind_w, float alpha, float beta, int epilogue) {
    const twb_type type = types[t];
    twb_cpu cpu = twb_cpu_default();
    const ptrdiff_t lda = k + 3, ldc = n + 2;
    float *a = random_floats((size_t)(m * lda)), *w = random_floats((size_t)(n * k)), *start = random_floats((size_t)(m * ldc));
    float *want = random_floats((size_t)(m * ldc)), *got = random_floats((size_t)(m * ldc)), *bias = random_floats((size_t)n), *residual = random_floats((size_t)(m * n));
    float *exact = random_floats((size_t)(n * k)), *pre_want = random_floats((size_t)(m * ldc)), *pre_got = random_floats((size_t)(m * ldc));
    unsigned char *packed = (unsigned char *)check_malloc(twb_quant_packed_size(type, n, k) + 2) + 2;       /* an even address is all that is asked for */
    char name[160];
    twb_gemm_args g;
    twb_epilogue e;
    size_t i;
    int r, c, l, isa;
    double worst = 0;
    snprintf(name, sizeof name, "%s m %d n %d k %d kinds %d %d alpha %g beta %g epilogue %d", type_names[t], m, n, k, kind_a, kind_w, (double)alpha, (double)beta, epilogue);
    for (i = 0; i < (size_t)(m * lda); i++) a[i] = number_of(kind_a, i);
    for (i = 0; i < (size_t)(n * k); i++) w[i] = number_of(kind_w, i);
    CHECK(twb_quantize_packed(&cpu, type, n, k, TWB_F32, true, w, k, packed), "%s: refused", name);
    if (kind_w == 6) {                                                  /* -128, which no quantizer makes and a file may hold */
        const size_t row_bytes = twb_quant_row_bytes(type, k), block_bytes = twb_quant_row_bytes(type, 1);
        unsigned char *blocks = (unsigned char *)check_malloc(row_bytes * (size_t)n);
        CHECK(twb_quantize(&cpu, type, n, k, w, k, blocks), "%s: refused", name);
        for (i = 0; i < row_bytes * (size_t)n; i++) if (i % block_bytes > 1 && (i & 64 || i % 3 == 0)) blocks[i] = 0x80;
        twb_quant_pack(&cpu, type, n, k, blocks, packed);
        free(blocks);
    }
    twb_quant_embedding(&cpu, type, n, k, NULL, packed, exact, k);
    memset(&g, 0, sizeof g);
    memset(&e, 0, sizeof e);
    g.m = m; g.n = n; g.k = k; g.alpha = alpha; g.beta = beta;
    g.a = a; g.lda = lda; g.b = packed; g.b_type = type; g.b_packed = true; g.trans_b = true; g.ldc = ldc;
    if (epilogue) { g.epilogue = &e; e.bias = bias; e.activation = TWB_ACT_GELU_TANH; e.residual = residual; e.ld_residual = n; }
    memcpy(want, start, (size_t)(m * ldc) * sizeof *want);
    memcpy(pre_want, start, (size_t)(m * ldc) * sizeof *want);
    g.c = want;
    if (epilogue) e.pre_activation = pre_want;
    twb_ref_quant_gemm(&g);
    for (r = 0; r < m; r++)
        for (c = 0; c < n; c++) {
            double y = (double)beta * (double)start[r * ldc + c], size = 1e-6, value = (double)(epilogue ? pre_want : want)[r * ldc + c];
            for (l = 0; l < k; l++) {
                double x = (double)a[r * lda + l], top = 0;
                int from = l / 32 * 32, s;
                for (s = from; s < from + 32 && s < k; s++) top = fmax(top, fabs((double)a[r * lda + s]));
                y += (double)alpha * x * (double)exact[c * k + l];
                size += fabs((double)alpha) * top * fabs((double)exact[c * k + l]);        /* A is off by half a step, 1/128 of the block's largest */
            }
            if (epilogue) y += (double)bias[c];
            if (fabs(y - value) / (size + fabs(y)) > worst) worst = fabs(y - value) / (size + fabs(y));
        }
    CHECK(worst <= 1.0 / 128 + 1e-5, "%s: the definition is off by %g", name, worst);
    for (isa = 0; isa < TWB_ISA_COUNT; isa++) {
        if (!twb_isa_available((twb_isa)isa)) continue;
        for (cpu.threads = 1; cpu.threads <= 3; cpu.threads = check_next_threads(cpu.threads)) {
            unsigned char *scratch;
            int vnni;
            cpu.isa = (twb_isa)isa;
            for (vnni = 0; vnni <= (has_four_products(cpu.isa) ? 1 : 0); vnni++) {
                cpu.vnni = cpu.avxvnni = cpu.sdot = vnni;
                scratch = (unsigned char *)check_malloc(twb_quant_gemm_scratch(&cpu, &g) + 1);
                memcpy(got, start, (size_t)(m * ldc) * sizeof *got);
                memcpy(pre_got, start, (size_t)(m * ldc) * sizeof *got);
                g.c = got;
                if (epilogue) e.pre_activation = pre_got;
                twb_quant_gemm(&cpu, &g, scratch + 1);
                CHECK(memcmp(want, got, (size_t)(m * ldc) * sizeof *got) == 0 && memcmp(pre_want, pre_got, (size_t)(m * ldc) * sizeof *got) == 0,
                      "%s: %s with %d threads differs from the definition", name, twb_isa_name(cpu.isa), cpu.threads);
                free(scratch);
            }
        }
    }
    free(a); free(w); free(start); free(want); free(got); free(bias); free(residual); free(exact); free(pre_want); free(pre_got); free(packed - 2);
}

/* NaN, infinity and too large numbers are refused, and NaN in A makes its own row NaN, no other. */
static void check_refusals(void) {
    twb_cpu cpu = twb_cpu_default();
    float w[64 * 3], a[2 * 64], c[2 * 3];
    unsigned char blocks[64 * 3 * 2], packed[16 * 2 * 34], scratch[4096];
    const float bad[4] = { NAN, INFINITY, -INFINITY, 1e38f };
    int t, i, kind;
    for (t = 0; t < 2; t++) {
        twb_gemm_args g;
        for (kind = 0; kind < 4; kind++) {
            for (i = 0; i < 64 * 3; i++) w[i] = check_uniform();
            w[77] = bad[kind];
            CHECK(!twb_quantize(&cpu, types[t], 3, 64, w, 64, blocks), "%s takes %g", type_names[t], (double)bad[kind]);
            CHECK(!twb_quantize_packed(&cpu, types[t], 3, 64, TWB_F32, true, w, 64, packed), "%s takes %g", type_names[t], (double)bad[kind]);
            CHECK(!twb_quant_finite(types[t], 3, 64, packed), "%s: %g is finite", type_names[t], (double)bad[kind]);
        }
        memset(&g, 0, sizeof g);                            /* without a k there need be no operands */
        g.m = 2; g.n = 3; g.alpha = 1; g.b_type = types[t]; g.b_packed = true; g.c = c; g.ldc = 3;
        for (i = 0; i < 6; i++) c[i] = 7;
        CHECK(twb_quant_gemm_scratch(&cpu, &g) <= sizeof scratch, "the scratch is larger");
        twb_quant_gemm(&cpu, &g, scratch);
        for (i = 0; i < 6; i++) CHECK(c[i] == 0, "%s: a product without a k is %g", type_names[t], (double)c[i]);
        w[77] = 300000.0f;
        CHECK(twb_quantize_packed(&cpu, types[t], 3, 64, TWB_F32, true, w, 64, packed), "%s refuses 300000", type_names[t]);
        memset(&g, 0, sizeof g);
        g.m = 2; g.n = 3; g.k = 64; g.alpha = 1; g.a = a; g.lda = 64; g.b = packed; g.b_type = types[t]; g.b_packed = true; g.c = c; g.ldc = 3;
        for (kind = 0; kind < 3; kind++) {
            for (i = 0; i < 128; i++) a[i] = check_uniform();
            a[40] = bad[kind];
            twb_quant_gemm(&cpu, &g, scratch);
            CHECK(isnan(c[0]) && isnan(c[1]) && isnan(c[2]) && isfinite(c[3]) && isfinite(c[4]) && isfinite(c[5]), "%s: %g in A", type_names[t], (double)bad[kind]);
        }
    }
}

/* q4_0's scale is searched: never worse than the first candidate, top / -8. */
static void check_search(void) {
    twb_cpu cpu = twb_cpu_default();
    double plain = 0, searched = 0;
    int trial, i;
    for (trial = 0; trial < 2000 / check_every; trial++) {
        float x[32], y[32], top = 0, d;
        unsigned char block[18];
        double e0 = 0, e1 = 0;
        for (i = 0; i < 32; i++) { x[i] = check_uniform() + check_uniform() + check_uniform(); if (fabsf(x[i]) > fabsf(top)) top = x[i]; }
        d = twb_f16_to_f32(twb_f32_to_f16(top / -8.0f));
        twb_quantize(&cpu, TWB_Q4_0, 1, 32, x, 32, block);
        twb_dequantize(TWB_Q4_0, 1, 32, block, y, 32);
        for (i = 0; i < 32; i++) {
            double q = fmin(fmax(rint((double)x[i] / (double)d), -8), 7);
            e0 += ((double)x[i] - q * (double)d) * ((double)x[i] - q * (double)d);
            e1 += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        }
        CHECK(e1 <= e0 * 1.0001 + 1e-12, "q4_0: squared error %g, %g without a search", e1, e0);
        plain += e0; searched += e1;
    }
    CHECK(searched < 0.9 * plain, "q4_0: the search lowers the squared error from %g to %g only", plain, searched);
}

int main(int argc, char **argv) {
    static const int sizes[][3] = { { 1, 1, 1 }, { 1, 16, 32 }, { 1, 17, 33 }, { 2, 5, 64 }, { 3, 40, 95 }, { 4, 16, 128 }, { 5, 33, 31 }, { 7, 64, 96 },
                                    { 9, 50, 200 }, { 24, 18, 808 }, { 33, 70, 64 }, { 130, 35, 160 }, { 1, 700, 768 }, { 6, 48, 3072 }, { 0, 5, 32 }, { 2, 3, 0 } };
    static const struct { int a, w; float alpha, beta; int epilogue; } products[] = {      /* kinds of A and of the weights */
        { 0, 0, 1, 0, 0 }, { 5, 0, 1, 0, 1 }, { 1, 2, 1, 0, 0 }, { 2, 2, 0.5f, 1, 0 }, { 2, 1, -1.25f, 0.5f, 1 }, { 4, 0, 1, 0, 0 }, { 3, 5, 1, 0, 1 },
        { 2, 6, 1, 0, 0 }, { 1, 6, 1, 0, 0 }
    };
    size_t s;
    int t, kind;
    check_begin(argc, argv);
    for (t = 0; t < 2; t++) {
        for (s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            int m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
            for (kind = 0; kind < 6; kind++) if (k && (kind == 0 || n * k < 10000) && !check_skip()) check_formats(t, n, k, kind);
            for (kind = 0; kind < (int)(sizeof products / sizeof *products); kind++)
                if (!check_skip()) check_product(t, m, n, k, products[kind].a, products[kind].w, products[kind].alpha, products[kind].beta, products[kind].epilogue);
        }
    }
    check_refusals();
    check_search();
    return check_done();
}
