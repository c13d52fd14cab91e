/* Everything in twinkle_blas.h but the matrix products: against references in double precision, over odd sizes, tails,
   strides and
   misaligned pointers; the same bits from every kernel set, for 1 to 3 threads and for a host that runs tasks
   backwards; every
   backward pass against numeric differences or its formula in double precision; errors in ulp. */
#define TWINKLE_BLAS_IMPLEMENTATION
#include "twinkle_blas.h"
#include "check.h"
#include <math.h>
#include <string.h>

/* ---- running a case everywhere */

static void run_backwards(void *user, int count, void (*task)(void *arg, int index), void *arg) {
    (void)user;
    while (count-- > 0) task(arg, count);
}

typedef void (*case_fn)(const twb_cpu *cpu, const void *what, float *out);

/* Runs the case on plain C with one thread into `out`, then on every other set and number of threads: all must give the
   same bits. */
static void everywhere(const char *name, case_fn run, const void *what, size_t count, float *out) {
    int isa, threads;
    twb_cpu cpu = twb_cpu_default();
    float *again = (float *)check_malloc((count + 1) * sizeof *again);
    cpu.isa = TWB_ISA_PLAIN;
    cpu.threads = 1;
    run(&cpu, what, out);
    for (isa = 0; isa < TWB_ISA_COUNT; isa++) {
        if (!twb_isa_available((twb_isa)isa)) continue;
        for (threads = 1; threads <= 4; threads++) {
            size_t i, first = count;
            if (isa == TWB_ISA_PLAIN && (threads == 1 || threads == 3)) continue;      /* plain C is slow */
            if (check_every > 1 && (isa == TWB_ISA_PLAIN || threads == 2 || threads == 3)) continue;
            cpu.isa = (twb_isa)isa;
            cpu.threads = threads < 4 ? threads : 3;
            cpu.parallel_for = threads < 4 ? NULL : run_backwards;
            memset(again, 0, count * sizeof *again);
            run(&cpu, what, again);
            for (i = count; i-- > 0;)
                if (twb_float_bits(again[i]) != twb_float_bits(out[i]) && !(isnan(again[i]) && isnan(out[i])))
                    first = i;
            CHECK(first == count, "%s: %s with %d threads differs from plain C at %lu: %.9g, not %.9g", name,
                  twb_isa_name(cpu.isa),
                  threads, (unsigned long)first, (double)again[first], (double)out[first]);
        }
    }
    free(again);
}

/* `count` numbers in [-1, 1) times `range`, at an address that is no multiple of anything larger than 4 */
static float *numbers(ptrdiff_t count, float range) {
    float *p = (float *)check_malloc(((size_t)count + 3) * sizeof *p) + 1;
    ptrdiff_t i;
    for (i = 0; i < count; i++) p[i] = check_uniform() * range;
    return p;
}
static void release(float *p) { free(p - 1); }

/* as many numbers as a case wants, or the Nth part: an odd number, so that there is a tail */
static ptrdiff_t fewer(ptrdiff_t count) { return count / check_every | 1; }

static double largest(ptrdiff_t count, const float *x) {
    double top = 0;
    ptrdiff_t i;
    for (i = 0; i < count; i++) if (fabs((double)x[i]) > top) top = fabs((double)x[i]);
    return top;
}

/* got against wanted: within `tolerance` of the largest wanted */
static void near(const char *name, ptrdiff_t count, const float *got, const double *wanted, double tolerance) {
    double top = 1e-30, worst = 0;
    ptrdiff_t i, at = 0;
    for (i = 0; i < count; i++) if (fabs(wanted[i]) > top) top = fabs(wanted[i]);
    for (i = 0; i < count; i++) if (!(fabs((double)got[i] - wanted[i]) <= worst))
        { worst = fabs((double)got[i] - wanted[i]); at = i; }
    CHECK(worst <= tolerance * top + 1e-10, "%s: element %ld is %.9g, not %.9g (largest %.3g)", name, (long)at,
          (double)got[at], wanted[at], top);
}

/* Numeric gradient: d loss/d x at up to 40 places, by central differences, against `grad`. */
typedef double (*loss_fn)(void *what);
static void differences(const char *name, loss_fn loss, void *what, ptrdiff_t count, float *x, const float *grad,
                        double tolerance) {
    const float h = 1.0f / 128;
    const double top = largest(count, grad);
    ptrdiff_t step = count * check_every / 40 + 1, i;
    for (i = 0; i < count; i += step) {
        const float kept = x[i], up = kept + h, down = kept - h;
        double slope;
        x[i] = up;
        slope = loss(what);
        x[i] = down;
        slope = (slope - loss(what)) / ((double)up - (double)down);
        x[i] = kept;
        CHECK(fabs(slope - (double)grad[i]) <= tolerance * top + 1e-6, "%s: gradient %ld is %.6g, differences say %.6g",
              name, (long)i, (double)grad[i], slope);
    }
}
static double weighted(ptrdiff_t count, const float *y, const float *weight) {
    double sum = 0;
    ptrdiff_t i;
    for (i = 0; i < count; i++) sum += (double)y[i] * (double)weight[i];
    return sum;
}
static twb_cpu one_thread(void) { twb_cpu cpu = twb_cpu_default(); cpu.threads = 1; return cpu; }

/* ---- [twb:06] elementary functions */

/* the distance of y from x in units of the last place of an f32 at x */
static double ulps(float y, double x) {
    const float rounded = (float)x;
    int e;
    if (isnan(x) || isnan((double)y)) return isnan(x) && isnan((double)y) ? 0 : HUGE_VAL;
    if (isinf((double)rounded) || isinf((double)y)) return rounded == y ? 0 : fabs(x) > 3.402e38 && fabs((double)y)
        > 3.402e38 ? 1 : HUGE_VAL;
    frexp(x, &e);
    return fabs((double)y - x) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

static const struct { twb_unary_op op; const char *name; double ulps; float range; } functions[] = {
    { TWB_COPY, "copy", 0, 9 },       { TWB_NEG, "neg", 0, 9 },             { TWB_ABS, "abs", 0, 9 },            {
            TWB_SQUARE, "square", 0.5, 9 },
    { TWB_RECIPROCAL, "reciprocal", 0.5, 9 }, { TWB_SQRT, "sqrt", 0.5, 9 }, { TWB_RSQRT, "rsqrt", 1.5, 9 },      {
            TWB_EXP, "exp", 0.9, 110 },
    { TWB_LOG, "log", 0.9, 9 },       { TWB_SIN, "sin", 0.51, 100 },        { TWB_COS, "cos", 0.51, 100 },       {
            TWB_TANH, "tanh", 1.5, 10 },
    { TWB_ERF, "erf", 1.1, 5 },       { TWB_SIGMOID, "sigmoid", 2.4, 86 },  { TWB_SOFTPLUS, "softplus", 2.0, 86 },
            { TWB_RELU, "relu", 0, 9 },
    { TWB_GELU, "gelu", -1, 6 },      { TWB_GELU_TANH, "gelu_tanh", -1, 6 }, { TWB_SILU, "silu", 3.0, 86 },       {
            TWB_QUICK_GELU, "quick_gelu", -1, 20 }
};

typedef struct unary_case { twb_unary_op op; ptrdiff_t n; const float *x; } unary_case;
static void run_unary(const twb_cpu *cpu, const void *what, float *out) {
    const unary_case *c = (const unary_case *)what;
    twb_unary(cpu, c->op, c->n, c->x, out);
}

static void check_unary(void) {
    static const float special[] = { 0, 1, 0.5f, 1e-45f, 1e-40f, 1.1754944e-38f, 3.4028235e38f, 87.3f, 88.72283f,
            88.73f, 103.97f, 104.1f, 150, 1e10f, 1e30f, 4, 9.1f, 0.9f, 0.55f };
    const ptrdiff_t count = fewer(200003), magnitudes = count / 5;
    size_t f, i;
    for (f = 0; f < sizeof functions / sizeof *functions; f++) {
        const twb_unary_op op = functions[f].op;
        float *x = numbers(count, functions[f].range), *y = numbers(count, 0);
        double worst = 0;
        ptrdiff_t at = 0, n;
        unary_case c;
        CHECK((size_t)op == f, "the table of functions has %s in the wrong place", functions[f].name);
        for (i = 0; i < sizeof special / sizeof *special; i++) { x[2*i] = special[i]; x[2*i + 1] = -special[i]; }
        x[100] = HUGE_VALF; x[101] = -HUGE_VALF; x[102] = nanf("");
        /* every magnitude; logarithm and root want no negative numbers */
        for (i = 200; i < (size_t)magnitudes; i++) {
            x[i] = twb_bits_float((uint32_t)i * (uint32_t)(0xFFFFFFFF / magnitudes));
            if (op == TWB_SIGMOID || op == TWB_SILU || op == TWB_SOFTPLUS || op >= TWB_GELU)
                x[i] = fmodf(x[i], functions[f].range);
        }
        c.op = op; c.n = count; c.x = x;
        everywhere(functions[f].name, run_unary, &c, (size_t)count, y);
        for (n = 0; n < count; n++) {
            const double wanted = twb_ref_unary(op, (double)x[n]);
            double off;
            if (fabs((double)x[n]) > (double)functions[f].range
                && (op == TWB_SIGMOID || op == TWB_SILU || op == TWB_SOFTPLUS || op >= TWB_GELU)) continue;
            off = functions[f].ulps < 0 ? fabs((double)y[n]
                                               - wanted) / (1e-7 * fmax(1.0, fabs((double)x[n]))) : ulps(y[n], wanted);
            if (!(off <= worst)) { worst = off; at = n; }
        }
        CHECK(worst <= (functions[f].ulps < 0 ? 3 : functions[f].ulps), "%s(%.9g) is off by %.3f ulp",
              functions[f].name, (double)x[at], worst);
        for (n = 1; n < 40; n++) {                                  /* tails: nothing beyond n is written */
            const twb_cpu cpu = one_thread();
            float kept[41];
            for (i = 0; i < 41; i++) kept[i] = 77;
            twb_unary(&cpu, op, n, x, kept);
            CHECK(memcmp(kept, y, (size_t)n * sizeof *kept) == 0 || op == TWB_LOG || op == TWB_SQRT || op == TWB_RSQRT,
                  "%s of %ld numbers", functions[f].name, (long)n);
            CHECK(kept[n] >= 77 && kept[n] <= 77, "%s of %ld numbers writes beyond", functions[f].name, (long)n);
        }
        release(x); release(y);
    }
    {   /* the scalar forms are lanes of the vector forms */
        const twb_cpu cpu = one_thread();
        float *x = numbers(1000, 120), y[1000], z[1000];
        int same = 0;
        twb_unary(&cpu, TWB_EXP, 1000, x, y);
        twb_unary(&cpu, TWB_LOG, 1000, x, z);
        for (i = 0; i < 1000; i++) same += twb_float_bits(twb_exp1(x[i])) == twb_float_bits(y[i])
            && (x[i] < 0 || twb_float_bits(twb_log1(x[i])) == twb_float_bits(z[i]));
        CHECK(same == 1000, "twb_exp1 or twb_log1 differs from the vectors in %d of 1000 numbers", 1000 - same);
        release(x);
    }
}

typedef struct slope_case { int op; bool activation, accumulate; ptrdiff_t n; const float *x, *y, *dy; } slope_case;
static void run_slope(const twb_cpu *cpu, const void *what, float *out) {
    const slope_case *c = (const slope_case *)what;
    memcpy(out, c->dy, (size_t)c->n * sizeof *out);
    if (c->activation) twb_activation_backward(cpu, (twb_activation)c->op, c->n, c->x, c->dy, out, c->accumulate);
    else twb_unary_backward(cpu, (twb_unary_op)c->op, c->n, c->x, c->y, c->dy, out, c->accumulate);
}

static void check_slopes(void) {
    const ptrdiff_t n = fewer(70001);
    int pass, op;
    for (pass = 0; pass < 2; pass++)
        for (op = 0; op < (pass ? (int)TWB_ACT_COUNT : (int)TWB_UNARY_COUNT); op++) {
            const twb_unary_op function = pass ? twb_activation_op((twb_activation)op) : (twb_unary_op)op;
            const twb_cpu cpu = one_thread();
            float *x = numbers(n, 4), *y = numbers(n, 0), *dy = numbers(n, 1), *dx = numbers(n, 0);
            double *wanted = (double *)check_malloc((size_t)n * sizeof *wanted);
            ptrdiff_t i;
            slope_case c;
            for (i = 0; i < n; i++) {
                if (function == TWB_LOG || function == TWB_SQRT || function == TWB_RSQRT || function == TWB_RECIPROCAL)
                    x[i] = fabsf(x[i]) + 0.25f;
                if (fabsf(x[i]) < 1e-3f) x[i] = 1;
            }
            twb_unary(&cpu, function, n, x, y);
            for (i = 0; i < n; i++) {
                const double h = 1e-5, v = (double)x[i];
                wanted[i] = (double)dy[i] * (twb_ref_unary(function, v + h) - twb_ref_unary(function, v - h)) / (2 * h);
            }
            c.op = op; c.activation = pass == 1; c.accumulate = false; c.n = n; c.x = x; c.y = y; c.dy = dy;
            everywhere("slope", run_slope, &c, (size_t)n, dx);
            near(pass ? "activation backward" : functions[op].name, n, dx, wanted, 2e-6);
            c.accumulate = true;
            for (i = 0; i < n; i++) wanted[i] += (double)dy[i];
            everywhere("slope added", run_slope, &c, (size_t)n, dx);
            near("accumulated slope", n, dx, wanted, 2e-6);
            free(wanted);
            release(x); release(y); release(dy); release(dx);
        }
}

typedef struct binary_case { twb_binary_op op; ptrdiff_t n, a_step, b_step; const float *a, *b; float alpha, beta;
    int what; } binary_case;
static void run_binary(const twb_cpu *cpu, const void *what, float *out) {
    const binary_case *c = (const binary_case *)what;
    if (c->what == 0) twb_binary(cpu, c->op, c->n, c->a, c->a_step, c->b, c->b_step, out);
    if (c->what == 1) { memcpy(out, c->b, (size_t)c->n * sizeof *out);
        twb_axpby(cpu, c->n, c->alpha, c->a, c->beta, out); }
    if (c->what == 2) twb_fill(cpu, c->n, c->alpha, out);
    if (c->what == 3) { out[0] = (float)twb_sum(cpu, c->n, c->a); out[1] = (float)twb_dot(cpu, c->n, c->a, c->b);
        out[2] = (float)twb_sum_squares(cpu, c->n, c->a); out[3] = twb_max_abs(cpu, c->n, c->a); }
}

static void check_arrays(void) {
    static const ptrdiff_t sizes[] = { 1, 15, 16, 17, 63, 64, 100, 5000, 300007 };
    size_t s;
    for (s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const ptrdiff_t n = sizes[s] > 100000 ? fewer(sizes[s]) : sizes[s];
        float *a = numbers(3 * n, 2), *b = numbers(3 * n, 2), *y = numbers(n + 4, 0);
        double *wanted = (double *)check_malloc((size_t)(n + 4) * sizeof *wanted);
        ptrdiff_t i;
        binary_case c;
        int op, steps;
        memset(&c, 0, sizeof c);
        c.n = n; c.a = a; c.b = b;
        for (op = 0; op < TWB_BINARY_COUNT; op++)
            for (steps = 0; steps < 5; steps++) {
                c.op = (twb_binary_op)op; c.a_step = steps == 1 ? 0 : steps == 3 ? 3 : 1;
                c.b_step = steps == 2 ? 0 : steps == 4 ? 2 : 1;
                everywhere("binary", run_binary, &c, (size_t)n, y);
                for (i = 0; i < n; i++) {
                    const double u = (double)a[i * c.a_step], v = (double)b[i * c.b_step];
                    wanted[i] = op == TWB_ADD ? u + v : op == TWB_SUB ? u - v : op == TWB_MUL ? u * v : op == TWB_DIV
                            ? u / v : op == TWB_MAX ? fmax(u, v) : fmin(u, v);
                }
                near("binary", n, y, wanted, 1e-7);
            }
        c.what = 1; c.alpha = 1.5f; c.beta = -0.25f;
        everywhere("axpby", run_binary, &c, (size_t)n, y);
        for (i = 0; i < n; i++) wanted[i] = 1.5 * (double)a[i] - 0.25 * (double)b[i];
        near("axpby", n, y, wanted, 2e-7);
        c.beta = 0; b[0] = nanf("");
        everywhere("axpby without y", run_binary, &c, (size_t)n, y);
        for (i = 0; i < n; i++) wanted[i] = 1.5 * (double)a[i];
        near("axpby without y", n, y, wanted, 2e-7);
        b[0] = 1;
        c.what = 2;
        everywhere("fill", run_binary, &c, (size_t)n, y);
        c.what = 3;
        everywhere("reductions", run_binary, &c, 4, y);
        memset(wanted, 0, 4 * sizeof *wanted);
        for (i = 0; i < n; i++) {
            wanted[0] += (double)a[i]; wanted[1] += (double)a[i] * (double)b[i];
            wanted[2] += (double)a[i] * (double)a[i];
            wanted[3] = fmax(wanted[3], fabs((double)a[i]));
        }
        CHECK(fabs((double)y[0] - wanted[0]) <= 1e-7 * (double)n + 1e-7, "sum of %ld: %.9g, not %.9g", (long)n,
              (double)y[0], wanted[0]);
        CHECK(fabs((double)y[1] - wanted[1]) <= 1e-7 * (double)n + 1e-7, "dot of %ld: %.9g, not %.9g", (long)n,
              (double)y[1], wanted[1]);
        CHECK(fabs((double)y[2] - wanted[2]) <= 1e-6 * wanted[2], "sum of squares of %ld: %.9g, not %.9g", (long)n,
              (double)y[2], wanted[2]);
        CHECK(fabs((double)y[3] - wanted[3]) <= 0, "max of %ld: %.9g, not %.9g", (long)n, (double)y[3], wanted[3]);
        {
            const twb_cpu cpu = one_thread();
            a[n / 2] = -HUGE_VALF;
            CHECK(isinf((double)twb_max_abs(&cpu, n, a)), "max of %ld with an infinity", (long)n);
            a[n - 1] = nanf("");
            CHECK(isnan((double)twb_max_abs(&cpu, n, a)), "max of %ld with a NaN", (long)n);
            CHECK(twb_sum(&cpu, 0, a) <= 0 && twb_max_abs(&cpu, 0, a) <= 0, "sums of nothing");
        }
        free(wanted);
        release(a); release(b); release(y);
    }
}

/* ---- [twb:07] rows */

typedef struct rows_case {
    int what; ptrdiff_t rows, cols, ld;
    float *x, *y, *dy, *weight, *bias, *mean, *rstd, *table; int32_t *ids; const uint16_t *half;
    float smoothing; bool accumulate, log_form;
} rows_case;

static void run_rows(const twb_cpu *cpu, const void *what, float *out) {
    const rows_case *c = (const rows_case *)what;
    const ptrdiff_t rows = c->rows, cols = c->cols, ld = c->ld;
    const size_t bytes = (size_t)(rows * ld) * sizeof(float);
    float *tail = out + rows * ld;
    if (c->what != 7) memcpy(out, c->dy, bytes);
    switch (c->what) {
    case 0: (c->log_form ? twb_log_softmax : twb_softmax)(cpu, rows, cols, c->x, ld, out, ld); break;
    case 1: (c->log_form ? twb_log_softmax_backward : twb_softmax_backward)(cpu, rows, cols, c->y, ld, c->dy, ld, out,
            ld, c->accumulate); break;
    case 2: twb_layer_norm(cpu, rows, cols, c->x, ld, c->weight, c->bias, 1e-5f, out, ld, tail, tail + rows); break;
    case 3:
        memset(tail, 0, (size_t)(2 * cols) * sizeof *tail);
        twb_layer_norm_backward(cpu, rows, cols, c->x, ld, c->dy, ld, c->weight, c->mean, c->rstd, out, ld,
                                c->accumulate, tail, tail + cols);
        break;
    case 4: twb_rms_norm(cpu, rows, cols, c->x, ld, c->weight, 1e-6f, out, ld, tail); break;
    case 5:
        memset(tail, 0, (size_t)cols * sizeof *tail);
        twb_rms_norm_backward(cpu, rows, cols, c->x, ld, c->dy, ld, c->weight, c->rstd, out, ld, c->accumulate, tail);
        break;
    case 6: twb_embedding(cpu, rows, cols, c->ids, c->half ? (const void *)c->half : (const void *)c->table, c->half
                          ? TWB_BF16 : TWB_F32, cols, out, ld, c->accumulate); break;
    case 7:
        memset(out, 0, (size_t)(50 * cols) * sizeof *out);
        twb_embedding_backward(cpu, rows, cols, c->ids, c->dy, ld, out, cols);
        break;
    case 8: twb_cross_entropy(cpu, rows, cols, c->x, ld, c->ids, -100, c->smoothing, tail, out, ld, 0.5f); break;
    case 9:
        memcpy(tail, c->weight, (size_t)cols * sizeof *tail);
        twb_column_sums(cpu, rows, cols, c->dy, ld, tail, c->accumulate);
        break;
    default: break;
    }
}

/* what differences() probes: sum of dy times the forward result */
static double rows_loss(void *what) {
    const rows_case *c = (const rows_case *)what;
    const twb_cpu cpu = one_thread();
    const size_t count = (size_t)(c->rows * c->ld + 2 * (c->rows + c->cols));
    float *out = (float *)check_malloc(count * sizeof *out);
    double sum = 0;
    ptrdiff_t r;
    run_rows(&cpu, c, out);
    if (c->what == 8) for (r = 0; r < c->rows; r++) sum += 0.5 * (double)out[c->rows * c->ld + r];
    else for (r = 0; r < c->rows; r++) sum += weighted(c->cols, out + r * c->ld, c->dy + r * c->ld);
    free(out);
    return sum;
}

static void check_rows(ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t pad) {
    const ptrdiff_t ld = cols + pad, all = rows * ld;
    const bool small = rows * cols < 3000;
    const size_t count = (size_t)(all + 2 * (rows + cols) + 50 * cols);
    float *x = numbers(all, 3), *y = numbers(all, 1), *dy = numbers(all, 1), *weight = numbers(cols, 1),
            *bias = numbers(cols, 1);
    float *mean = numbers(rows, 0), *rstd = numbers(rows, 0), *table = numbers(50 * cols, 1),
            *out = numbers((ptrdiff_t)count, 0), *again = numbers((ptrdiff_t)count, 0);
    uint16_t *half = (uint16_t *)check_malloc((size_t)(50 * cols) * sizeof *half);
    int32_t *ids = (int32_t *)check_malloc((size_t)rows * sizeof *ids);
    double *wanted = (double *)check_malloc((size_t)cols * sizeof *wanted);
    const twb_cpu cpu = one_thread();
    rows_case c;
    ptrdiff_t r, j;
    memset(&c, 0, sizeof c);
    c.rows = rows; c.cols = cols; c.ld = ld; c.x = x; c.y = y; c.dy = dy; c.weight = weight; c.bias = bias;
    c.mean = mean; c.rstd = rstd; c.table = table; c.ids = ids;
    for (r = 0; r < rows; r++) ids[r] = (int32_t)(check_random() % (cols < 50 ? (uint32_t)cols : 50u));

    c.what = 0;
    everywhere("softmax", run_rows, &c, (size_t)all, out);
    for (r = 0; r < rows; r++) { twb_ref_softmax(cols, x + r * ld, wanted);
        near("softmax", cols, out + r * ld, wanted, 1e-6); }
    c.log_form = true;
    everywhere("log_softmax", run_rows, &c, (size_t)all, out);
    for (r = 0; r < rows; r++) {
        twb_ref_softmax(cols, x + r * ld, wanted);
        for (j = 0; j < cols; j++) wanted[j] = log(wanted[j]);
        near("log_softmax", cols, out + r * ld, wanted, 1e-6);
    }
    for (j = 0; j < 4; j++) {
        c.log_form = (j & 1) != 0; c.accumulate = (j & 2) != 0;
        c.what = 0;
        memcpy(y, x, (size_t)all * sizeof *y);
        (c.log_form ? twb_log_softmax : twb_softmax)(&cpu, rows, cols, y, ld, y, ld);       /* in place */
        c.what = 1;
        everywhere("softmax backward", run_rows, &c, (size_t)all, out);
        c.what = 0;
        if (c.accumulate) for (r = 0; r < all; r++) out[r] -= dy[r];
        if (small && pad == 0) differences("softmax backward", rows_loss, &c, all, x, out, 3e-3);
    }

    c.what = 2; c.accumulate = false;
    everywhere("layer_norm", run_rows, &c, (size_t)(all + 2 * rows), out);
    for (r = 0; r < rows; r++) { twb_ref_layer_norm(cols, x + r * ld, weight, bias, 1e-5, wanted);
        near("layer_norm", cols, out + r * ld, wanted, 3e-6); }
    memcpy(mean, out + all, (size_t)rows * sizeof *mean);
    memcpy(rstd, out + all + rows, (size_t)rows * sizeof *rstd);
    if (pad == 0) {
        twb_add_layer_norm(&cpu, rows, cols, x, dy, again, weight, bias, 1e-5f, y, NULL, NULL);
        twb_layer_norm(&cpu, rows, cols, again, ld, weight, bias, 1e-5f, out, ld, NULL, NULL);
        CHECK(memcmp(out, y, (size_t)all * sizeof *y) == 0, "add_layer_norm differs from addition and layer_norm");
        for (r = 0; r < all; r++) if (fabsf(again[r] - (x[r] + dy[r])) > 0) { CHECK(false, "add_layer_norm: wrong sum");
            break; }
    }
    c.what = 3;
    everywhere("layer_norm backward", run_rows, &c, (size_t)(all + 2 * cols), out);
    memcpy(again, out, count * sizeof *out);
    c.accumulate = true;
    everywhere("layer_norm backward, added", run_rows, &c, (size_t)(all + 2 * cols), out);
    for (r = 0; r < rows; r++)
        for (j = 0; j < cols; j++)
            if (fabsf(out[r * ld + j] - (again[r * ld + j] + dy[r * ld + j])) > 1e-6f * (1 + fabsf(out[r * ld + j])))
                { CHECK(false, "layer_norm backward does not add"); r = rows; break; }
    c.accumulate = false;
    c.what = 2;
    if (small && pad == 0) {
        differences("layer_norm dx", rows_loss, &c, all, x, again, 5e-3);
        differences("layer_norm dweight", rows_loss, &c, cols, weight, again + all, 3e-3);
        differences("layer_norm dbias", rows_loss, &c, cols, bias, again + all + cols, 3e-3);
    }

    c.what = 4;
    everywhere("rms_norm", run_rows, &c, (size_t)(all + rows), out);
    memcpy(rstd, out + all, (size_t)rows * sizeof *rstd);
    for (r = 0; r < rows; r++) {
        double sum = 0;
        for (j = 0; j < cols; j++) sum += (double)x[r * ld + j] * (double)x[r * ld + j];
        for (j = 0; j < cols; j++) wanted[j] = (double)x[r * ld + j] / sqrt(sum / (double)cols + 1e-6)
            * (double)weight[j];
        near("rms_norm", cols, out + r * ld, wanted, 2e-6);
    }
    c.what = 5;
    everywhere("rms_norm backward", run_rows, &c, (size_t)(all + cols), out);
    memcpy(again, out, count * sizeof *out);
    c.what = 4;
    if (small && pad == 0) {
        differences("rms_norm dx", rows_loss, &c, all, x, again, 5e-3);
        differences("rms_norm dweight", rows_loss, &c, cols, weight, again + all, 3e-3);
    }

    c.what = 6;
    everywhere("embedding", run_rows, &c, (size_t)all, out);
    for (r = 0; r < rows; r++) CHECK(memcmp(out + r * ld, table + ids[r] * cols, (size_t)cols * sizeof *out)
        == 0, "embedding of row %ld", (long)r);
    twb_convert(&cpu, 50 * cols, table, TWB_F32, half, TWB_BF16);
    c.half = half; c.accumulate = true;
    everywhere("embedding, bf16, added", run_rows, &c, (size_t)all, out);
    for (r = 0; r < rows; r++) {
        for (j = 0; j < cols; j++) wanted[j] = (double)dy[r * ld + j]
                + (double)twb_bf16_to_f32(half[ids[r] * cols + j]);
        near("embedding, bf16, added", cols, out + r * ld, wanted, 1e-7);
    }
    c.half = NULL; c.accumulate = false;
    c.what = 7;
    everywhere("embedding backward", run_rows, &c, (size_t)(50 * cols), out);
    for (r = 0; r < 50; r++) {
        ptrdiff_t i;
        memset(wanted, 0, (size_t)cols * sizeof *wanted);
        for (i = 0; i < rows; i++) if (ids[i] == r) for (j = 0; j < cols; j++) wanted[j] += (double)dy[i * ld + j];
        near("embedding backward", cols, out + r * cols, wanted, 1e-5);
    }

    c.what = 8;
    ids[rows / 2] = -100;
    for (j = 0; j < 2; j++) {
        c.smoothing = j ? 0.1f : 0;
        everywhere("cross_entropy", run_rows, &c, (size_t)(all + rows), out);
        for (r = 0; r < rows; r++) {
            ptrdiff_t i;
            const double loss = ids[r] == -100 ? 0 : twb_ref_cross_entropy(cols, x + r * ld, ids[r],
                    (double)c.smoothing, wanted);
            CHECK(fabs((double)out[all + r] - loss) <= 3e-6 * (1 + fabs(loss)), "cross_entropy: loss %.9g, not %.9g",
                  (double)out[all + r], loss);
            for (i = 0; i < cols; i++)
                wanted[i] = ids[r] == -100 ? 0 : 0.5 * (wanted[i] - (double)c.smoothing / (double)cols
                                                        - (i == ids[r] ? 1 - (double)c.smoothing : 0));
            near("cross_entropy gradient", cols, out + r * ld, wanted, 2e-6);
        }
        if (small && pad == 0) differences("cross_entropy", rows_loss, &c, all, x, out, 3e-3);
    }
    memcpy(y, x, (size_t)all * sizeof *y);
    twb_cross_entropy(&cpu, rows, cols, y, ld, ids, -100, c.smoothing, again, y, ld, 0.5f);
    for (r = 0; r < rows; r++) CHECK(memcmp(y + r * ld, out + r * ld, (size_t)cols * sizeof *y)
        == 0, "cross_entropy with its gradient in the logits' place");

    c.what = 9; c.accumulate = true;
    everywhere("column_sums", run_rows, &c, (size_t)(all + cols), out);
    for (j = 0; j < cols; j++) { wanted[j] = (double)weight[j];
        for (r = 0; r < rows; r++) wanted[j] += (double)dy[r * ld + j]; }
    near("column_sums", cols, out + all, wanted, 1e-5);

    free(half); free(ids); free(wanted);
    release(x); release(y); release(dy); release(weight); release(bias); release(mean); release(rstd); release(table);
    release(out); release(again);
}

/* ---- [twb:08] attention */

typedef struct attention_case { ptrdiff_t batch, heads, kv_heads, tq, tk, dim; bool causal; ptrdiff_t start; int masks;
    float dropout; bool fused, accumulate; } attention_case;
/* a bias for each head of each batch; one for each head; one for all */
enum { KEY_MASK = 1, FULL_MASK = 2, BIAS = 4, SHARED_BIAS = 8, ONE_BIAS = 16, PREFIX = 32, ONE_PREFIX = 64 };

typedef struct attention_run {
    attention_case c;
    twb_attention_args a;
    twb_attention_grads g;
    float *q, *k, *v, *bias, *d_out;
    unsigned char *key_mask, *mask;
    size_t out_count, lse_count, q_count, k_count, bias_count;
} attention_run;

/* out, lse, dq, dk, dv, d_bias one after another */
static void run_attention(const twb_cpu *cpu, const void *what, float *out) {
    attention_run t = *(const attention_run *)what;
    void *scratch;
    float *fused, *to;
    size_t i, fused_count = t.q_count + 2 * t.k_count;
    t.a.out = out; t.a.lse = out + t.out_count;
    scratch = check_malloc(twb_attention_scratch(cpu, &t.a));
    twb_attention(cpu, &t.a, scratch);
    free(scratch);
    to = t.a.lse + t.lse_count;
    fused = (float *)check_malloc((fused_count + 1) * sizeof *fused);
    for (i = 0; i < fused_count; i++) fused[i] = t.c.accumulate ? 0.25f : 77.0f;
    t.g.dq = fused;
    t.g.dk = fused + (t.c.fused ? t.c.heads * t.c.dim : (ptrdiff_t)t.q_count);
    t.g.dv = t.g.dk + (t.c.fused ? t.c.kv_heads * t.c.dim : (ptrdiff_t)t.k_count);
    if (t.a.bias) { t.g.d_bias = to + fused_count; for (i = 0; i < t.bias_count; i++) t.g.d_bias[i] = 0; }
    scratch = check_malloc(twb_attention_backward_scratch(cpu, &t.a, &t.g));
    twb_attention_backward(cpu, &t.a, &t.g, scratch);
    free(scratch);
    memcpy(to, fused, fused_count * sizeof *fused);
    free(fused);
}

static void check_attention(const attention_case *c) {
    attention_run t;
    const ptrdiff_t B = c->batch, H = c->heads, K = c->kv_heads, M = c->tq, N = c->tk, D = c->dim,
            width = (H + 2 * K) * D;
    /* a prefix that ends within a tile, none, and one past the last key */
    const int32_t prefix[3] = { (int32_t)(2 * N / 3), 0, (int32_t)(N + 5) };
    /* where k and v begin behind q: in [B,T,(H+2K) D], as a fused projection leaves it (here M = N), or one after another */
    const ptrdiff_t k_at = c->fused ? H * D : B * H * M * D, v_at = k_at + (c->fused ? K * D : B * K * N * D);
    ptrdiff_t b, h, i, j, d;
    float *out, *qkv, *again;
    uint16_t *halves;
    double *p, *row, *all_out, *dq, *dk, *dv, *d_bias;
    size_t count, numbers_in;
    int type;
    memset(&t, 0, sizeof t);
    t.c = *c;
    t.q_count = (size_t)(B * H * M * D); t.k_count = (size_t)(B * K * N * D); t.out_count = t.q_count;
    t.lse_count = (size_t)(B * H * M);
    t.bias_count = c->masks & BIAS ? (size_t)(B * H * M * N) : c->masks & SHARED_BIAS ? (size_t)(H * M * N)
                 : c->masks & ONE_BIAS ? (size_t)(M * N) : 0;
    qkv = numbers((ptrdiff_t)(t.q_count + 2 * t.k_count), 2);
    t.d_out = numbers((ptrdiff_t)t.out_count, 1);
    t.bias = numbers((ptrdiff_t)t.bias_count, 1);
    t.key_mask = (unsigned char *)check_malloc((size_t)(B * N));
    t.mask = (unsigned char *)check_malloc((size_t)(B * M * N));
    for (i = 0; i < B * N; i++) t.key_mask[i] = check_random() % 4 != 0;
    for (i = 0; i < B * M * N; i++) t.mask[i] = check_random() % 3 != 0;
    /* a query that sees nothing */
    if (c->masks & FULL_MASK) for (j = 0; j < N; j++) t.mask[(M / 2) * N + j] = 0;
    t.a.batch = B; t.a.heads = H; t.a.kv_heads = K; t.a.tq = M; t.a.tk = N; t.a.head_dim = D;
    t.a.scale = 0.3f; t.a.causal = c->causal; t.a.query_start = c->start;
    t.a.q = qkv; t.a.k = qkv + k_at; t.a.v = qkv + v_at;
    if (c->fused) {
        t.a.q_batch = t.a.k_batch = t.a.v_batch = M * width; t.a.q_row = t.a.k_row = t.a.v_row = width;
        t.a.q_head = t.a.k_head = t.a.v_head = D;
        t.a.out_batch = M * H * D; t.a.out_row = H * D; t.a.out_head = D;
    } else {
        t.a.q_batch = H * M * D; t.a.q_head = M * D; t.a.q_row = D;
        t.a.k_batch = t.a.v_batch = K * N * D; t.a.k_head = t.a.v_head = N * D; t.a.k_row = t.a.v_row = D;
        t.a.out_batch = H * M * D; t.a.out_head = M * D; t.a.out_row = D;
    }
    if (c->masks & KEY_MASK) { t.a.key_mask = t.key_mask; t.a.key_mask_batch = N; }
    if (c->masks & FULL_MASK) { t.a.mask = t.mask; t.a.mask_batch = M * N; t.a.mask_row = N; }
    if (c->masks & (PREFIX | ONE_PREFIX)) { t.a.prefix = prefix; t.a.prefix_batch = c->masks & PREFIX ? 1 : 0; }
    if (t.bias_count) { t.a.bias = t.bias; t.a.bias_batch = c->masks & BIAS ? H * M * N : 0;
        t.a.bias_head = c->masks & ONE_BIAS ? 0 : M * N; t.a.bias_row = N; }
    t.a.dropout = c->dropout; t.a.dropout_seed = 99;
    t.g.d_out = t.d_out; t.g.d_out_batch = t.a.out_batch; t.g.d_out_head = t.a.out_head; t.g.d_out_row = t.a.out_row;
    t.g.dq_batch = t.a.q_batch; t.g.dq_head = t.a.q_head; t.g.dq_row = t.a.q_row;
    t.g.dk_batch = t.g.dv_batch = t.a.k_batch; t.g.dk_head = t.g.dv_head = t.a.k_head;
    t.g.dk_row = t.g.dv_row = t.a.k_row;
    t.g.accumulate = c->accumulate;
    count = t.out_count + t.lse_count + t.q_count + 2 * t.k_count + t.bias_count;
    out = numbers((ptrdiff_t)count, 0);
    everywhere("attention", run_attention, &t, count, out);

    p = (double *)check_malloc((size_t)N * sizeof *p);
    row = (double *)check_malloc((size_t)(2 * D) * sizeof *row);
    all_out = (double *)check_malloc((t.out_count + t.lse_count) * sizeof *all_out);
    dq = (double *)check_malloc((t.q_count + 2 * t.k_count + t.bias_count) * sizeof *dq);
    dk = dq + k_at; dv = dq + v_at; d_bias = dq + t.q_count + 2 * t.k_count;
    for (i = 0; i < (ptrdiff_t)(t.q_count + 2 * t.k_count + t.bias_count); i++) dq[i] = c->accumulate
            && i < (ptrdiff_t)(t.q_count + 2 * t.k_count) ? 0.25 : 0;
    for (b = 0; b < B; b++) for (h = 0; h < H; h++) for (i = 0; i < M; i++) {
        const ptrdiff_t kv = h / (H / K);
        const float *dout = t.d_out + b * t.a.out_batch + h * t.a.out_head + i * t.a.out_row, *q = t.a.q
                + b * t.a.q_batch + h * t.a.q_head + i * t.a.q_row;
        double *to = all_out + b * t.a.out_batch + h * t.a.out_head + i * t.a.out_row, *gq = dq + b * t.a.q_batch
                + h * t.a.q_head + i * t.a.q_row, from = 0;
        double lse = twb_ref_attention(&t.a, b, h, i, p, row);
        const uint64_t stream = (uint64_t)((b * H + h) * M + i) << 32;
        for (d = 0; d < D; d++) to[d] = 0;
        for (j = 0; j < N; j++) {                               /* with dropout: the kept p, times 1/(1 - dropout) */
            const float *v = qkv + v_at + b * t.a.v_batch + kv * t.a.v_head + j * t.a.v_row;
            const double kept = !(c->dropout > 0) ? 1
                    : (double)(float)(twb_random_bits(99, stream + (uint64_t)j) >> 8) / 16777216.0 < (double)c->dropout
                    ? 0 : 1 / (1 - (double)c->dropout);
            for (d = 0; d < D; d++) to[d] += kept * p[j] * (double)v[d];
        }
        for (d = 0; d < D; d++) from += to[d] * (double)dout[d];
        if (!(lse > -HUGE_VAL)) { CHECK(out[t.out_count + (size_t)((b * H + h) * M + i)] < -3e38f,
                                        "log-sum-exp of a query that sees nothing"); lse = -1;
        all_out[t.out_count + (size_t)((b * H + h) * M + i)] = -1;
        out[t.out_count + (size_t)((b * H + h) * M + i)] = -1; }
        all_out[t.out_count + (size_t)((b * H + h) * M + i)] = lse;
        for (j = 0; j < N; j++) {
            const float *v = qkv + v_at + b * t.a.v_batch + kv * t.a.v_head + j * t.a.v_row, *k = qkv + k_at
                    + b * t.a.k_batch + kv * t.a.k_head + j * t.a.k_row;
            double *gk = dk + b * t.a.k_batch + kv * t.a.k_head + j * t.a.k_row, *gv = dv + b * t.a.v_batch
                    + kv * t.a.v_head + j * t.a.v_row, dp = 0, ds;
            const double kept = !(c->dropout > 0) ? 1
                    : (double)(float)(twb_random_bits(99, stream + (uint64_t)j) >> 8) / 16777216.0 < (double)c->dropout
                    ? 0 : 1 / (1 - (double)c->dropout);
            for (d = 0; d < D; d++) { dp += (double)dout[d] * (double)v[d]; gv[d] += kept * p[j] * (double)dout[d]; }
            ds = p[j] * (kept * dp - from);
            if (t.bias_count) d_bias[b * t.a.bias_batch + h * t.a.bias_head + i * t.a.bias_row + j] += ds;
            for (d = 0; d < D; d++) { gq[d] += ds * (double)0.3f * (double)k[d];
                gk[d] += ds * (double)0.3f * (double)q[d]; }
        }
    }
    near("attention", (ptrdiff_t)t.out_count, out, all_out, 3e-6);
    near("attention lse", (ptrdiff_t)t.lse_count, out + t.out_count, all_out + t.out_count, 3e-6);
    near("attention dq, dk, dv", (ptrdiff_t)(t.q_count + 2 * t.k_count), out + t.out_count + t.lse_count, dq, 1e-5);
    if (t.bias_count) near("attention d_bias", (ptrdiff_t)t.bias_count, out + t.out_count + t.lse_count + t.q_count
                           + 2 * t.k_count, d_bias, 1e-5);
    if (c->causal && M > 1 && !(c->masks & ~(PREFIX | ONE_PREFIX)) && !(c->dropout > 0)) {    /* the last query alone has the same bits */
        const twb_cpu cpu = one_thread();
        twb_attention_args one = t.a;
        float *alone = numbers(B * H * D, 0);
        void *scratch;
        one.tq = 1; one.query_start = c->start + M - 1;
        one.q += (M - 1) * one.q_row;
        one.out = alone; one.out_batch = H * D; one.out_head = D; one.lse = NULL;
        scratch = check_malloc(twb_attention_scratch(&cpu, &one));
        twb_attention(&cpu, &one, scratch);
        for (b = 0; b < B; b++) for (h = 0; h < H; h++)
            CHECK(memcmp(alone + (b * H + h) * D, out + b * t.a.out_batch + h * t.a.out_head + (M - 1) * t.a.out_row,
                         (size_t)D * sizeof *alone) == 0, "a query alone has other bits than among others");
        free(scratch);
        release(alone);
    }
    /* keys and values of 16 bits give the bits that the same numbers give in 32 */
    numbers_in = t.q_count + 2 * t.k_count;
    halves = (uint16_t *)check_malloc(numbers_in * sizeof *halves);
    again = (float *)check_malloc(count * sizeof *again);
    for (type = TWB_F16; type <= TWB_BF16; type++) {
        const twb_cpu cpu = one_thread();
        if (M > 1 && (M + type) % 2) continue;               /* the longer ones with one type each */
        twb_convert(&cpu, (ptrdiff_t)numbers_in, qkv, TWB_F32, halves, (twb_type)type);
        twb_convert(&cpu, (ptrdiff_t)numbers_in, halves, (twb_type)type, qkv, TWB_F32);
        t.a.k = qkv + k_at; t.a.v = qkv + v_at; t.a.kv_type = TWB_F32;
        run_attention(&cpu, &t, out);
        t.a.k = halves + k_at; t.a.v = halves + v_at; t.a.kv_type = (twb_type)type;
        everywhere("attention of 16-bit keys and values", run_attention, &t, count, again);
        CHECK(memcmp(out, again, count * sizeof *out) == 0, "%d x %d x %d: keys and values of type %d give other bits than in f32", (int)M, (int)N, (int)D, type);
    }
    free(p); free(row); free(all_out); free(dq); free(t.key_mask); free(t.mask); free(halves); free(again);
    release(out); release(qkv); release(t.d_out); release(t.bias);
}

static void check_attentions(void) {
    static const attention_case cases[] = {
        { 1, 1, 1, 1, 1, 1, false, 0, 0, 0, false, false },      { 2, 3, 3, 5, 7, 8, false, 0, 0, 0, false, false },
        { 2, 2, 2, 64, 64, 64, true, 0, 0, 0, true, false },     { 1, 2, 2, 65, 65, 64, true, 0, 0, 0, false, true },
        { 1, 4, 2, 33, 33, 20, true, 0, 0, 0, true, true },      { 2, 4, 1, 12, 50, 16, true, 38, 0, 0, false, false },
        { 1, 1, 1, 300, 300, 24, true, 0, 0, 0, false, false },  { 1, 2, 1, 270, 530, 40, false, 0, 0, 0, false,
                false },
        { 2, 2, 2, 30, 290, 17, false, 0, KEY_MASK, 0, false, false }, { 2, 2, 2, 40, 40, 32, true, 0, KEY_MASK | BIAS,
                0, false, false },
        { 2, 2, 1, 29, 31, 33, false, 0, FULL_MASK, 0, false, true },
                { 2, 2, 2, 21, 300, 16, false, 0, FULL_MASK | SHARED_BIAS | KEY_MASK, 0, false, false },
        { 1, 2, 2, 50, 50, 80, true, 0, 0, 0.2f, true, false },  { 2, 2, 1, 20, 280, 16, true, 260, SHARED_BIAS, 0.5f,
                false, false },
        { 1, 2, 2, 40, 20, 16, true, -10, 0, 0, false, false },  { 1, 8, 2, 1, 700, 64, true, 699, 0, 0, false, false },
        { 1, 4, 2, 1, 30, 64, true, 20, KEY_MASK | BIAS, 0.3f, false, false }, { 1, 1, 1, 200, 200, 128, true, 0, 0, 0,
                false, false },
        { 1, 6, 6, 150, 150, 16, true, 0, 0, 0, true, false },
        /* heads and batches that share a bias share its gradient too, whoever computes it */
        { 6, 3, 3, 60, 150, 16, false, 0, SHARED_BIAS, 0, false, false },
        { 2, 6, 2, 90, 100, 16, false, 0, ONE_BIAS, 0, false, false },
        /* causal behind a prefix that is read in both directions */
        { 3, 2, 2, 50, 50, 16, true, 0, PREFIX, 0, true, false }, { 3, 4, 2, 300, 300, 24, true, 0, PREFIX, 0, false, true },
        { 2, 3, 1, 40, 340, 20, true, 300, ONE_PREFIX, 0, false, false }, { 3, 2, 2, 1, 40, 16, true, 20, PREFIX, 0, false, false },
        { 3, 4, 2, 1, 40, 16, true, 20, PREFIX | KEY_MASK, 0, false, false }, { 3, 2, 1, 61, 61, 33, true, -9, PREFIX | BIAS, 0.2f, false, false }
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        const attention_case *c = &cases[i];
        /* the largest have no tile that smaller ones have not */
        if (check_every > 1 && c->batch * c->heads * c->tq * c->tk * c->dim > 5000000) continue;
        check_attention(c);
    }
}

/* No keys: zeros come out, and no gradient is passed on; what has no number may be NULL. */
static void run_no_keys(const twb_cpu *cpu, const void *what, float *out) {
    const float *q = (const float *)what;
    twb_attention_args a;
    twb_attention_grads g;
    void *scratch;
    memset(&a, 0, sizeof a);
    memset(&g, 0, sizeof g);
    a.batch = 2; a.heads = a.kv_heads = 3; a.tq = 14; a.head_dim = 16;
    a.q = q; a.q_batch = 3 * 14 * 16; a.q_head = 14 * 16; a.q_row = 16;
    a.out = out; a.out_batch = a.q_batch; a.out_head = a.q_head; a.out_row = a.q_row;
    a.k_batch = a.k_head = a.k_row = a.v_batch = a.v_head = a.v_row = 16;
    a.scale = 1;
    a.lse = out + 2 * 3 * 14 * 16;
    scratch = check_malloc(twb_attention_scratch(cpu, &a));
    twb_attention(cpu, &a, scratch);
    free(scratch);
    g.d_out = q; g.d_out_batch = a.q_batch; g.d_out_head = a.q_head; g.d_out_row = a.q_row;
    g.dq = a.lse + 2 * 3 * 14; g.dq_batch = a.q_batch; g.dq_head = a.q_head; g.dq_row = a.q_row;
    g.dk_batch = g.dk_head = g.dk_row = g.dv_batch = g.dv_head = g.dv_row = 16;
    scratch = check_malloc(twb_attention_backward_scratch(cpu, &a, &g));
    twb_attention_backward(cpu, &a, &g, scratch);
    free(scratch);
}
static void check_no_keys(void) {
    const ptrdiff_t numbers_in = 2 * 3 * 14 * 16, count = 2 * numbers_in + 2 * 3 * 14;
    float *q = numbers(numbers_in, 1), *out = numbers(count, 0);
    ptrdiff_t i;
    everywhere("attention without keys", run_no_keys, q, (size_t)count, out);
    for (i = 0; i < count; i++)
        CHECK(i >= numbers_in && i < numbers_in + 2 * 3 * 14 ? out[i] < -3e38f : out[i] == 0.0f, "attention without keys: number %d is %g", (int)i, (double)out[i]);
    release(q); release(out);
}

typedef struct rope_case { ptrdiff_t batch, tokens, heads, dim, rotary; bool interleaved, inverse;
    const int32_t *positions; const float *x; } rope_case;
static void run_rope(const twb_cpu *cpu, const void *what, float *out) {
    const rope_case *c = (const rope_case *)what;
    memcpy(out, c->x, (size_t)(c->batch * c->tokens * c->heads * c->dim) * sizeof *out);
    twb_rope(cpu, c->batch, c->tokens, c->heads, c->dim, c->rotary, c->interleaved, c->positions, 10000.0f, out,
             c->tokens * c->heads * c->dim, c->heads * c->dim, c->dim, c->inverse);
}

static void check_rope(void) {
    int kind;
    for (kind = 0; kind < 6; kind++) {
        const ptrdiff_t batch = 2, tokens = 21, heads = 3, dim = kind < 2 ? 64 : kind < 4 ? 38 : 300, rotary = kind < 4
                ? 32 : 300, count = batch * tokens * heads * dim;
        float *x = numbers(count, 1), *y = numbers(count, 0), *back = numbers(count, 0);
        int32_t positions[42];
        double *wanted = (double *)check_malloc((size_t)count * sizeof *wanted);
        ptrdiff_t i, t;
        rope_case c;
        for (i = 0; i < batch * tokens; i++) positions[i] = (int32_t)(i * 37 % 2000);
        c.batch = batch; c.tokens = tokens; c.heads = heads; c.dim = dim; c.rotary = rotary;
        c.interleaved = kind % 2 == 1; c.inverse = false; c.positions = positions; c.x = x;
        everywhere("rope", run_rope, &c, (size_t)count, y);
        for (i = 0; i < count; i++) wanted[i] = (double)x[i];
        for (t = 0; t < batch * tokens * heads; t++)
            for (i = 0; i < rotary / 2; i++) {
                const ptrdiff_t one = t * dim + (c.interleaved ? 2*i : i), two = t * dim
                        + (c.interleaved ? 2*i + 1 : i + rotary / 2);
                const double angle = (double)positions[t / heads] * pow(10000, -2.0 * (double)i / (double)rotary);
                wanted[one] = (double)x[one] * cos(angle) - (double)x[two] * sin(angle);
                wanted[two] = (double)x[two] * cos(angle) + (double)x[one] * sin(angle);
            }
        /* angles up to 2000, rounded to f32 as everybody does */
        near("rope", count, y, wanted, 2e-4);
        c.inverse = true; c.x = y;
        everywhere("rope back", run_rope, &c, (size_t)count, back);
        for (i = 0; i < count; i++) wanted[i] = (double)x[i];
        near("rope back", count, back, wanted, 1e-6);
        free(wanted);
        release(x); release(y); release(back);
    }
}

/* ---- [twb:09] convolution, pooling, batch norm */

typedef struct image_case {
    twb_conv2d_args conv; twb_pool2d_args pool; twb_batch_norm_args norm;
    int what; bool accumulate;
    ptrdiff_t x_count, y_count, w_count, channels;
    float *x, *weight, *bias, *dy, *running;
} image_case;

/* 0 conv forward, 1 conv backward (dx, dweight, dbias), 2 max pool forward, 3 backward, 4 average pool forward, 5
   backward,
   6 batch norm forward (y, mean, rstd, running), 7 backward */
static void run_image(const twb_cpu *cpu, const void *what, float *out) {
    const image_case *c = (const image_case *)what;
    twb_batch_norm_args n = c->norm;
    ptrdiff_t i;
    if (c->what <= 1) {
        void *scratch = check_malloc(twb_conv2d_scratch(cpu, &c->conv));
        for (i = 0; i < c->x_count + c->w_count + c->channels && c->what == 1; i++) out[i] = 0.5f;
        if (c->what == 0) twb_conv2d(cpu, &c->conv, c->x, c->weight, c->bias, out, scratch);
        else twb_conv2d_backward(cpu, &c->conv, c->x, c->weight, c->dy, out, c->accumulate, out + c->x_count, out
                                 + c->x_count + c->w_count, scratch);
        free(scratch);
    } else if (c->what <= 3) {
        int32_t *argmax = (int32_t *)check_malloc((size_t)c->y_count * sizeof *argmax);
        float *y = (float *)check_malloc((size_t)c->y_count * sizeof *y);
        twb_max_pool2d(cpu, &c->pool, c->x, y, argmax);
        if (c->what == 2) memcpy(out, y, (size_t)c->y_count * sizeof *y);
        else twb_max_pool2d_backward(cpu, &c->pool, argmax, c->dy, out, false);
        free(argmax); free(y);
    } else if (c->what == 4) {
        twb_avg_pool2d(cpu, &c->pool, c->x, out);
    } else if (c->what == 5) {
        twb_avg_pool2d_backward(cpu, &c->pool, c->dy, out, false);
    } else {
        float *moved = out + c->x_count + 2 * c->channels;
        memcpy(moved, c->running, (size_t)(2 * c->channels) * sizeof *moved);
        n.weight = c->weight; n.bias = c->bias; n.mean = out + c->x_count; n.rstd = n.mean + c->channels;
        n.running_mean = moved; n.running_var = moved + c->channels;
        twb_batch_norm(cpu, &n, c->x, out);
        if (c->what == 7) {
            for (i = 0; i < 2 * c->channels; i++) moved[i] = 0;
            twb_batch_norm_backward(cpu, &n, c->x, c->dy, out, false, moved, moved + c->channels);
        }
    }
}

static double image_loss(void *what) {
    image_case *c = (image_case *)what;
    const twb_cpu cpu = one_thread();
    float *out = (float *)check_malloc((size_t)(c->x_count + c->y_count + 4 * c->channels) * sizeof *out);
    double loss;
    run_image(&cpu, c, out);
    loss = weighted(c->y_count, out, c->dy);
    free(out);
    return loss;
}

static void check_conv(ptrdiff_t batch, ptrdiff_t in, ptrdiff_t h, ptrdiff_t w, ptrdiff_t out_channels, ptrdiff_t kh,
                       ptrdiff_t kw, ptrdiff_t stride, ptrdiff_t pad, ptrdiff_t dilation, ptrdiff_t groups) {
    image_case c;
    ptrdiff_t oh, ow, b, o, r, s, i, u, v;
    float *y, *grads;
    double *wanted;
    memset(&c, 0, sizeof c);
    c.conv.batch = batch; c.conv.in_channels = in; c.conv.height = h; c.conv.width = w;
    c.conv.out_channels = out_channels;
    c.conv.kernel_h = kh; c.conv.kernel_w = kw; c.conv.stride_h = stride; c.conv.stride_w = stride; c.conv.pad_h = pad;
    c.conv.pad_w = pad;
    c.conv.dilation_h = dilation; c.conv.dilation_w = dilation; c.conv.groups = groups;
    oh = twb_conv2d_out_height(&c.conv); ow = twb_conv2d_out_width(&c.conv);
    c.x_count = batch * in * h * w; c.y_count = batch * out_channels * oh * ow;
    c.w_count = out_channels * (in / groups) * kh * kw; c.channels = out_channels;
    c.x = numbers(c.x_count, 1); c.weight = numbers(c.w_count, 1); c.bias = numbers(out_channels, 1);
    c.dy = numbers(c.y_count, 1);
    y = numbers(c.y_count, 0); grads = numbers(c.x_count + c.w_count + out_channels, 0);
    wanted = (double *)check_malloc((size_t)c.y_count * sizeof *wanted);
    everywhere("conv2d", run_image, &c, (size_t)c.y_count, y);
    for (b = 0; b < batch; b++) for (o = 0; o < out_channels; o++) for (r = 0; r < oh; r++) for (s = 0; s < ow; s++) {
        double sum = (double)c.bias[o];
        for (i = 0; i < in / groups; i++) for (u = 0; u < kh; u++) for (v = 0; v < kw; v++) {
            const ptrdiff_t yy = r * stride - pad + u * dilation, xx = s * stride - pad + v * dilation,
                    channel = o / (out_channels / groups) * (in / groups) + i;
            if (yy < 0 || yy >= h || xx < 0 || xx >= w) continue;
            sum += (double)c.weight[((o * (in / groups) + i) * kh + u) * kw + v] * (double)c.x[((b * in + channel) * h
                    + yy) * w + xx];
        }
        wanted[((b * out_channels + o) * oh + r) * ow + s] = sum;
    }
    near("conv2d", c.y_count, y, wanted, 2e-6);
    c.what = 1;
    everywhere("conv2d backward", run_image, &c, (size_t)(c.x_count + c.w_count + out_channels), grads);
    for (i = 0; i < c.w_count + out_channels; i++) grads[c.x_count + i] -= 0.5f;           /* they were added to */
    c.what = 0;
    differences("conv2d dx", image_loss, &c, c.x_count, c.x, grads, 3e-3);
    differences("conv2d dweight", image_loss, &c, c.w_count, c.weight, grads + c.x_count, 3e-3);
    differences("conv2d dbias", image_loss, &c, out_channels, c.bias, grads + c.x_count + c.w_count, 3e-3);
    free(wanted);
    release(c.x); release(c.weight); release(c.bias); release(c.dy); release(y); release(grads);
}

/* An image without rows: nothing comes out, and no gradient. */
static void check_conv_of_nothing(void) {
    static float weight[6] = { 1, 2, 3, 4, 5, 6 }, dweight[6] = { 1, 1, 1, 1, 1, 1 }, dbias[3] = { 2, 2, 2 }, none[1];
    twb_cpu cpu = twb_cpu_default();
    twb_conv2d_args a;
    void *scratch;
    int i;
    memset(&a, 0, sizeof a);
    a.batch = 2; a.in_channels = 2; a.width = 9; a.out_channels = 3; a.groups = 1;
    a.kernel_h = a.kernel_w = a.stride_h = a.stride_w = a.dilation_h = a.dilation_w = 1;
    CHECK(twb_conv2d_out_height(&a) == 0 && twb_conv2d_out_width(&a) == 9, "an image without rows has %d", (int)twb_conv2d_out_height(&a));
    scratch = check_malloc(twb_conv2d_scratch(&cpu, &a));
    twb_conv2d(&cpu, &a, none, weight, NULL, none, scratch);
    twb_conv2d_backward(&cpu, &a, none, weight, none, none, false, dweight, dbias, scratch);
    for (i = 0; i < 6; i++) CHECK(dweight[i] == 1 && dbias[i / 2] == 2, "an image without rows has a gradient");
    free(scratch);
}

static void check_images(void) {
    int k;
    check_conv_of_nothing();
    check_conv(2, 3, 11, 13, 8, 3, 3, 1, 1, 1, 1);
    check_conv(1, 4, 9, 7, 6, 1, 1, 1, 0, 1, 1);
    check_conv(2, 4, 12, 9, 6, 3, 2, 2, 1, 2, 2);
    check_conv(1, 5, 14, 14, 5, 3, 3, 1, 1, 1, 5);
    check_conv(1, 3, 40, 40, 16, 7, 7, 2, 3, 1, 1);
    check_conv(1, 2, 5, 5, 3, 5, 5, 1, 4, 1, 1);
    check_conv(1, 64, 30, 30, 16, 3, 3, 1, 1, 1, 1);         /* more than one block of rows */
    for (k = 0; k < 4; k++) {
        image_case c;
        ptrdiff_t b, r, s, i, j, oh, ow;
        float *y, *dx;
        double *wanted;
        memset(&c, 0, sizeof c);
        c.pool.batch = 2; c.pool.channels = 3; c.pool.height = 13; c.pool.width = 10;
        c.pool.kernel_h = k == 3 ? 13 : 3; c.pool.kernel_w = k == 3 ? 10 : k == 1 ? 2 : 3;
        c.pool.stride_h = k == 3 ? 1 : 2; c.pool.stride_w = k == 2 ? 1 : 2; c.pool.pad_h = k == 3 ? 0 : 1;
        c.pool.pad_w = k == 0 ? 1 : 0;
        oh = twb_pool2d_out_height(&c.pool); ow = twb_pool2d_out_width(&c.pool);
        c.x_count = 6 * 130; c.y_count = 6 * oh * ow;
        c.x = numbers(c.x_count, 1); c.dy = numbers(c.y_count, 1); y = numbers(c.y_count, 0);
        dx = numbers(c.x_count, 0);
        wanted = (double *)check_malloc((size_t)c.y_count * sizeof *wanted);
        /* far enough apart for the differences */
        for (i = 0; i < c.x_count; i++) c.x[i] = (float)((i * 7919) % c.x_count) * 0.0625f;
        for (c.what = 2; c.what <= 4; c.what += 2) {
            for (b = 0; b < 6; b++) for (r = 0; r < oh; r++) for (s = 0; s < ow; s++) {
                double top = -HUGE_VAL, sum = 0;
                for (i = r * c.pool.stride_h - c.pool.pad_h; i < r * c.pool.stride_h - c.pool.pad_h + c.pool.kernel_h;
                     i++)
                    for (j = s * c.pool.stride_w - c.pool.pad_w; j < s * c.pool.stride_w - c.pool.pad_w
                         + c.pool.kernel_w; j++)
                        if (i >= 0 && i < 13 && j >= 0 && j < 10) { const double x = (double)c.x[b * 130 + i * 10 + j];
                            sum += x; if (x > top) top = x; }
                wanted[(b * oh + r) * ow + s] = c.what == 2 ? top : sum / (double)(c.pool.kernel_h * c.pool.kernel_w);
            }
            everywhere("pool", run_image, &c, (size_t)c.y_count, y);
            near("pool", c.y_count, y, wanted, 1e-6);
            c.what++;
            everywhere("pool backward", run_image, &c, (size_t)c.x_count, dx);
            c.what--;
            differences("pool backward", image_loss, &c, c.x_count, c.x, dx, 1e-2);
        }
        free(wanted);
        release(c.x); release(c.dy); release(y); release(dx);
    }
    for (k = 0; k < 2; k++) {
        image_case c;
        ptrdiff_t ch, b, i;
        float *out;
        memset(&c, 0, sizeof c);
        c.norm.batch = 3; c.norm.channels = 5; c.norm.size = 35; c.norm.training = k == 0; c.norm.eps = 1e-5f;
        c.norm.momentum = 0.1f;
        c.x_count = c.y_count = 3 * 5 * 35; c.channels = 5;
        c.x = numbers(c.x_count, 2); c.dy = numbers(c.x_count, 1); c.weight = numbers(5, 1); c.bias = numbers(5, 1);
        c.running = numbers(10, 0.5f);
        for (i = 5; i < 10; i++) c.running[i] += 1;
        out = numbers(c.x_count + 20, 0);
        c.what = 6;
        everywhere("batch_norm", run_image, &c, (size_t)(c.x_count + 20), out);
        for (ch = 0; ch < 5; ch++) {
            double mean = 0, var = 0, off = 0;
            for (b = 0; b < 3; b++) for (i = 0; i < 35; i++) mean += (double)c.x[(b * 5 + ch) * 35 + i] / 105;
            for (b = 0; b < 3; b++) for (i = 0; i < 35; i++) var += pow((double)c.x[(b * 5 + ch) * 35 + i] - mean, 2)
                / 105;
            if (k == 0) {
                CHECK(fabs((double)out[c.x_count + 10 + ch] - (0.9 * (double)c.running[ch] + 0.1 * mean)) < 1e-6,
                      "running mean");
                CHECK(fabs((double)out[c.x_count + 15 + ch]
                           - (0.9 * (double)c.running[5 + ch] + 0.1 * var * 105 / 104)) < 1e-6, "running variance");
            } else {
                mean = (double)c.running[ch];
                var = (double)c.running[5 + ch];
            }
            for (b = 0; b < 3; b++) for (i = 0; i < 35; i++) {
                const ptrdiff_t at = (b * 5 + ch) * 35 + i;
                off = fmax(off, fabs((double)out[at]
                                     - (((double)c.x[at] - mean) / sqrt(var + 1e-5) * (double)c.weight[ch]
                                        + (double)c.bias[ch])));
            }
            CHECK(off < 3e-6, "batch_norm is off by %.3g", off);
        }
        c.what = 7;
        everywhere("batch_norm backward", run_image, &c, (size_t)(c.x_count + 20), out);
        c.what = 6;
        differences("batch_norm dx", image_loss, &c, c.x_count, c.x, out, 5e-3);
        differences("batch_norm dweight", image_loss, &c, 5, c.weight, out + c.x_count + 10, 3e-3);
        differences("batch_norm dbias", image_loss, &c, 5, c.bias, out + c.x_count + 15, 3e-3);
        release(c.x); release(c.dy); release(c.weight); release(c.bias); release(c.running); release(out);
    }
}

/* ---- [twb:10] optimizers */

typedef struct step_case { int kind; ptrdiff_t n; const float *start; } step_case;     /* start: p, g, m, v */
static void run_step(const twb_cpu *cpu, const void *what, float *out) {
    const step_case *c = (const step_case *)what;
    const ptrdiff_t n = c->n;
    float *p = out, *g = out + n, *m = out + 2 * n, *v = out + 3 * n;
    memcpy(out, c->start, (size_t)(4 * n) * sizeof *out);
    if (c->kind <= 1) {
        twb_adamw_args a;
        a.lr = 0.01f; a.beta1 = 0.9f; a.beta2 = 0.99f; a.eps = 1e-8f; a.weight_decay = 0.1f; a.grad_scale = 0.5f;
        a.bias_correction1 = 1 - 0.9f * 0.9f; a.bias_correction2 = 1 - 0.99f * 0.99f; a.l2 = c->kind == 1;
        a.zero_grad = c->kind == 0;
        twb_adamw(cpu, n, p, g, m, v, &a);
    } else if (c->kind <= 4) {
        twb_sgd_args a;
        a.lr = 0.1f; a.momentum = 0.9f; a.dampening = c->kind == 3 ? 0.2f : 0; a.weight_decay = 0.01f;
        a.grad_scale = 0.5f; a.nesterov = c->kind == 2; a.zero_grad = c->kind == 3;
        twb_sgd(cpu, n, p, g, c->kind == 4 ? NULL : m, &a);
    } else {
        twb_lion_args a;
        a.lr = 0.01f; a.beta1 = 0.9f; a.beta2 = 0.98f; a.weight_decay = 0.1f; a.grad_scale = 0.5f; a.zero_grad = false;
        twb_lion(cpu, n, p, g, m, &a);
    }
}

static void check_steps(void) {
    const ptrdiff_t n = fewer(60007);
    float *start = numbers(4 * n, 1), *out = numbers(4 * n, 0);
    double *wanted = (double *)check_malloc((size_t)(4 * n) * sizeof *wanted);
    step_case c;
    ptrdiff_t i;
    for (i = 3 * n; i < 4 * n; i++) start[i] = fabsf(start[i]) + 1e-3f;
    c.n = n; c.start = start;
    for (c.kind = 0; c.kind <= 5; c.kind++) {
        everywhere("optimizer", run_step, &c, (size_t)(4 * n), out);
        for (i = 0; i < n; i++) {
            double p = (double)start[i], g = 0.5 * (double)start[n + i], m = (double)start[2*n + i],
                    v = (double)start[3*n + i];
            if (c.kind <= 1) {
                if (c.kind == 1) g += 0.1 * p; else p *= 1 - 0.01 * 0.1;
                m = 0.9 * m + 0.1 * g;
                v = 0.99 * v + 0.01 * g * g;
                p -= 0.01 / (1 - 0.81) * m / (sqrt(v) / sqrt(1 - 0.9801) + 1e-8);
            } else if (c.kind <= 4) {
                g += 0.01 * p;
                if (c.kind != 4) { m = 0.9 * m + (c.kind == 3 ? 0.8 : 1.0) * g; g = c.kind == 2 ? g + 0.9 * m : m; }
                p -= 0.1 * g;
            } else {
                const double u = 0.9 * m + 0.1 * g;
                p = p * (1 - 0.01 * 0.1) - 0.01 * (u > 0 ? 1 : u < 0 ? -1 : 0);
                m = 0.98 * m + 0.02 * g;
            }
            wanted[i] = p; wanted[n + i] = c.kind == 0 || c.kind == 3 ? 0 : (double)start[n + i]; wanted[2*n + i] = m;
            wanted[3*n + i] = v;
        }
        near("optimizer p", n, out, wanted, 2e-6);
        near("optimizer g", n, out + n, wanted + n, 0);
        near("optimizer m", n, out + 2*n, wanted + 2*n, 1e-6);
        near("optimizer v", n, out + 3*n, wanted + 3*n, 1e-6);
    }
    free(wanted);
    release(start); release(out);
}

/* ---- [twb:11] conversions and random numbers */

static void check_conversions(void) {
    static const twb_type types[3] = { TWB_F32, TWB_F16, TWB_BF16 };
    const ptrdiff_t n = 120011;
    float *x = (float *)check_malloc((size_t)n * sizeof *x), *y = (float *)check_malloc((size_t)n * sizeof *y),
            *z = (float *)check_malloc((size_t)n * sizeof *z);
    ptrdiff_t i;
    int from, to, isa;
    for (i = 0; i < n; i++) x[i] = twb_bits_float(i < 65536 ? (uint32_t)i << 16 | (uint32_t)(i & 1)
        << 15 : check_random());
    for (from = 0; from < 3; from++) for (to = 0; to < 3; to++) {
        const size_t size = types[to] == TWB_F32 ? 4 : 2;
        int differ = 0;
        for (isa = 0; isa < TWB_ISA_COUNT; isa++) {
            twb_cpu cpu = one_thread();
            if (!twb_isa_available((twb_isa)isa)) continue;
            cpu.isa = (twb_isa)isa;
            cpu.threads = 2;
            /* from 16 bits: x's bytes are as good as any */
            twb_convert(&cpu, n, x, types[from], isa ? z : y, types[to]);
            if (!isa) continue;
            for (i = 0; i < n; i++) {
                if (size == 2) differ += ((uint16_t *)z)[i] != ((uint16_t *)y)[i];
                else differ += twb_float_bits(z[i]) != twb_float_bits(y[i]);
            }
        }
        CHECK(differ == 0, "conversion %d to %d differs between kernel sets in %d places", from, to, differ);
        for (i = 0; i < n; i++) {
            const uint16_t h = ((const uint16_t *)x)[i];
            const float value = from == 0 ? x[i] : from == 1 ? twb_f16_to_f32(h) : twb_bf16_to_f32(h);
            const bool same = to == 0 ? twb_float_bits(y[i]) == twb_float_bits(value)
                            : to == 1 ? ((uint16_t *)y)[i] == twb_f32_to_f16(value) : ((uint16_t *)y)[i] == twb_f32_to_bf16(value);
            if (!same) { CHECK(false, "conversion %d to %d of %.9g", from, to, (double)value); break; }
        }
    }
    for (i = 0; i < 65536; i++) {                                   /* there and back */
        const uint16_t h = (uint16_t)i;
        if ((h & 0x7C00u) != 0x7C00u && twb_f32_to_f16(twb_f16_to_f32(h)) != h)
            { CHECK(false, "f16 %04x there and back", (unsigned)h); break; }
        if ((h & 0x7F80u) != 0x7F80u && twb_f32_to_bf16(twb_bf16_to_f32(h)) != h)
            { CHECK(false, "bf16 %04x there and back", (unsigned)h); break; }
    }
    free(x); free(y); free(z);
}

typedef struct random_case { int kind; ptrdiff_t n; uint64_t seed, offset; const float *x; } random_case;
static void run_random(const twb_cpu *cpu, const void *what, float *out) {
    const random_case *c = (const random_case *)what;
    if (c->kind == 0) twb_random_uniform(cpu, c->n, out, -1, 3, c->seed);
    if (c->kind == 1) twb_random_normal(cpu, c->n, out, 2, 0.5f, c->seed);
    if (c->kind == 2) twb_dropout(cpu, c->n, c->x, out, 0.3f, c->seed, c->offset);
}

static void check_random_numbers(void) {
    const ptrdiff_t n = 300001;
    float *x = numbers(n, 1), *y = numbers(n, 0), *z = numbers(n, 0);
    double sum = 0, squares = 0, cubes = 0, fourths = 0, neighbours = 0;
    const twb_cpu cpu = one_thread();
    random_case c;
    ptrdiff_t i, counts[256];
    uint64_t ones[32];
    c.n = n; c.seed = 12345; c.offset = 4294967295u - 1000; c.x = x;
    c.kind = 0;
    everywhere("uniform", run_random, &c, (size_t)n, y);
    for (i = 0; i < n; i++) { sum += (double)y[i]; squares += pow((double)y[i] - 1, 2);
        if (y[i] < -1 || y[i] > 3) { CHECK(false, "uniform out of range"); break; } }
    CHECK(fabs(sum / (double)n - 1) < 0.01 && fabs(squares / (double)n - 16.0 / 12) < 0.01,
          "uniform: mean %.4f, variance %.4f", sum / (double)n, squares / (double)n);
    c.kind = 1;
    everywhere("normal", run_random, &c, (size_t)n, y);
    sum = squares = 0;
    for (i = 0; i < n; i++) {
        const double v = ((double)y[i] - 2) / 0.5;
        sum += v; squares += v * v; cubes += v * v * v; fourths += v * v * v * v;
        if (i > 15) neighbours += v * ((double)y[i - 16] - 2) / 0.5;
    }
    CHECK(fabs(sum / (double)n) < 0.01 && fabs(squares / (double)n - 1) < 0.015 && fabs(cubes / (double)n) < 0.03
          && fabs(fourths / (double)n - 3) < 0.08 && fabs(neighbours / (double)n) < 0.01,
          "normal: moments %.4f %.4f %.4f %.4f, pairs %.4f", sum / (double)n, squares / (double)n, cubes / (double)n,
                  fourths / (double)n, neighbours / (double)n);
    for (i = 1; i < 50; i++) {
        twb_random_normal(&cpu, i, z, 2, 0.5f, 12345);
        CHECK(memcmp(z, y, (size_t)i * sizeof *z) == 0, "the first %ld normal numbers", (long)i);
    }
    c.kind = 2;
    everywhere("dropout", run_random, &c, (size_t)n, y);
    sum = 0;
    for (i = 0; i < n; i++) {
        const bool keep = (float)(twb_random_bits(c.seed, c.offset + (uint64_t)i) >> 8) * (1.0f / 16777216.0f) >= 0.3f;
        sum += keep;
        if (fabsf(y[i] - (keep ? x[i] * (1 / 0.7f) : 0)) > 1e-6f) { CHECK(false, "dropout of element %ld", (long)i);
            break; }
    }
    CHECK(fabs(sum / (double)n - 0.7) < 0.005, "dropout keeps %.4f of 0.7", sum / (double)n);
    memset(counts, 0, sizeof counts);
    memset(ones, 0, sizeof ones);
    /* streams that differ in one bit of seed or counter have nothing in common */
    for (i = 0; i < 1 << 18; i++) {
        const uint32_t r = twb_random_bits((uint64_t)i & 15, (uint64_t)i >> 4),
                flipped = r ^ twb_random_bits((uint64_t)i & 15, ((uint64_t)i >> 4) ^ 1);
        int bit;
        counts[r >> 24]++;
        for (bit = 0; bit < 32; bit++) ones[bit] += flipped >> bit & 1u;
    }
    sum = 0;
    for (i = 0; i < 256; i++) sum += pow((double)counts[i] - 1024, 2) / 1024;
    CHECK(sum > 170 && sum < 350, "chi squared of 255 degrees: %.1f", sum);
    for (i = 0; i < 32; i++) CHECK(fabs((double)ones[i] / (1 << 18) - 0.5)
        < 0.01, "bit %ld changes with the counter in %.4f of all cases", (long)i, (double)ones[i] / (1 << 18));
    release(x); release(y); release(z);
}

/* Sizes and settings at the end of what can be said: no division by zero, no pointer counted from NULL, no sum that wraps. */
static void check_limits(void) {
    const twb_cpu cpu = one_thread();
    twb_conv2d_args conv;
    twb_pool2d_args pool;
    twb_attention_args a;
    float x[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, all[2], causal[2];
    void *scratch;
    memset(&conv, 0, sizeof conv);
    memset(&pool, 0, sizeof pool);
    memset(&a, 0, sizeof a);
    CHECK(twb_conv2d_out_height(&conv) == 0 && twb_conv2d_out_width(&conv) == 0, "a convolution with a stride of 0");
    CHECK(twb_pool2d_out_height(&pool) == 0 && twb_pool2d_out_width(&pool) == 0, "a pooling with a stride of 0");
    twb_layer_norm(&cpu, 2, 0, NULL, 0, NULL, NULL, 1e-5f, NULL, 0, NULL, NULL);
    twb_rms_norm(&cpu, 2, 0, NULL, 0, NULL, 1e-5f, NULL, 0, NULL);
    a.batch = a.heads = a.kv_heads = a.head_dim = 1; a.tq = 2; a.tk = 4; a.scale = 1;
    a.q = x; a.k = x + 2; a.v = x + 4; a.out = all;
    a.q_row = a.k_row = a.v_row = a.out_row = 1; a.q_head = a.q_batch = a.out_head = a.out_batch = 2; a.k_head = a.k_batch = a.v_head = a.v_batch = 4;
    scratch = check_malloc(twb_attention_scratch(&cpu, &a));
    twb_attention(&cpu, &a, scratch);
    free(scratch);
    a.causal = true; a.query_start = PTRDIFF_MAX; a.out = causal;
    scratch = check_malloc(twb_attention_scratch(&cpu, &a));
    twb_attention(&cpu, &a, scratch);
    free(scratch);
    CHECK(memcmp(all, causal, sizeof all) == 0, "queries behind the last position see %g and %g, not %g and %g", (double)causal[0], (double)causal[1], (double)all[0], (double)all[1]);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    check_limits();
    check_unary();
    check_slopes();
    check_arrays();
    check_rows(1, 1, 0);
    check_rows(3, 17, 0);
    check_rows(5, 64, 3);
    check_rows(130, 19, 0);
    check_rows(37, 768, 5);
    check_rows(3, 5003, 0);
    check_attentions();
    check_no_keys();
    check_rope();
    check_images();
    check_steps();
    check_conversions();
    check_random_numbers();
    return check_done();
}
