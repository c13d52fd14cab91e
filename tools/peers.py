#!/usr/bin/env python3
"""peers.py: measure Twinkle and the libraries it competes with, side by side, on this machine.

    python3 peers.py                          every subject, peers only
    python3 peers.py --twinkle ./twinkle      with Twinkle in the same run
    python3 peers.py --only gemm,bert         some subjects (--list names them)
    python3 peers.py --quick                  smaller: a minute in all, fewer cases and peers (once the models are made)
    python3 peers.py --json > rows.jsonl      one JSON object a line, for machines

How it measures
  * Every peer lives in its own process and waits there until it is asked for a sample.  The parent asks
    the peers of one case in turn, round after round, in a rotated order, so that whatever else happens on
    the machine meets all of them alike.  The parent imports nothing heavy and keeps still meanwhile.
  * A sample during which other processes used a tenth of a core or more is taken again, up to twice
    (two threads on two cores suffer badly from a third one). --json says how much was left: others_cores.
  * A sample is the mean time of as many calls as fill about a tenth of a second, after a warm-up.
    The table shows the median of the samples (and --json the minimum and every sample too).
  * All peers do the same work with the same number of threads.  The last column is
        twinkle/best = median seconds of the fastest peer / median seconds of Twinkle,
    so above 1.00 Twinkle is faster than every peer measured.  Low-precision kernels are compared with
    peers of the same precision only.
  * % of peak: against the multiply-add rate and the read bandwidth that a small C program, compiled here
    and now, reaches on this very machine.  That program picks AVX2 or AVX-512 at run time.
  * Peak memory is VmHWM of the peer's own process, so it includes the interpreter and the library.

What it needs: Python 3.9+, a C compiler.  Each peer that is not installed is left out with a line that
says what is missing; nothing is downloaded.  Models have random weights and are made once, in --cache.
OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset inside the peers, because they pin OpenBLAS to a kernel.
"""
import argparse
import atexit
import ctypes
import ctypes.util
import json
import math
import os
import platform
import pty
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

# ----------------------------------------------------------------------------- the work

PROJECTIONS = [(768, 768), (2304, 768), (3072, 768), (768, 3072), (50257, 768)]   # (N, K)
ROWS = [1, 4, 64, 256, 1024]                                                     # M
SQUARES = [256, 512, 1024, 2048, 4096]
ATTENTION = [(1, 12, 1024, 64), (8, 12, 128, 64), (4, 12, 64, 64), (1, 12, 4096, 64)]  # (B, H, T, D)
BERT = [(1, 128), (8, 128), (32, 128)]                                           # (B, T)
TRAIN = [(4, 64), (4, 256), (1, 1024)]                                           # (B, T)
PROMPT, NEW = 512, 128
T5_SOURCE, T5_NEW = 128, 64                                      # tokens for the encoder, tokens from the decoder
VOCAB = 50257
SEED = 1234
QUICK_SECONDS = 32                                               # shared out over the subjects; what is under way is finished
SUBJECTS = ["peak", "bandwidth", "gemm", "lowp", "attention", "gpt2", "bert", "t5", "train", "tokenize", "startup"]

# ----------------------------------------------------------------------------- the machine's limits, in C

MICRO_C = r"""
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }

/* --- arithmetic peaks: twelve independent chains in named registers. Each call returns its operations. --- */
#define ROUNDS 20000L
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define LOOP(SETUP, STEP) EACH(SETUP) for (long r = 0; r < ROUNDS; r++) { EACH(STEP) }
#define OPS(lanes) ((double)ROUNDS * 12 * 2 * (lanes))

__attribute__((target("avx2,fma"))) static double fma_avx2(void) {
    __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
#define S(i) __m256 a##i = _mm256_set1_ps((float)i);
#define F(i) a##i = _mm256_fmadd_ps(a##i, x, y); __asm__ volatile("" : "+x"(a##i));
    LOOP(S, F) return OPS(8);
#undef S
#undef F
}
__attribute__((target("avx512f"))) static double fma_avx512(void) {
    __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
#define S(i) __m512 a##i = _mm512_set1_ps((float)i);
#define F(i) a##i = _mm512_fmadd_ps(a##i, x, y); __asm__ volatile("" : "+v"(a##i));
    LOOP(S, F) return OPS(16);
#undef S
#undef F
}
/* u8 x s8 without VNNI: multiply-add to 16 bits, widen to 32 by a multiply with ones, add: 32 products. */
__attribute__((target("avx2"))) static double int8_avx2(void) {
    __m256i s = _mm256_set1_epi8(-2), one = _mm256_set1_epi16(1), u = _mm256_set1_epi8(3);
#define S(i) __m256i a##i = _mm256_set1_epi32(i);
#define F(i) { __asm__ volatile("" : "+x"(u)); __m256i p = _mm256_maddubs_epi16(u, s); \
               a##i = _mm256_add_epi32(a##i, _mm256_madd_epi16(p, one)); __asm__ volatile("" : "+x"(a##i)); }
    LOOP(S, F) return OPS(32);
#undef S
#undef F
}
__attribute__((target("avx512f,avx512vnni"))) static double int8_vnni512(void) {
    __m512i u = _mm512_set1_epi32(0x03030303), s = _mm512_set1_epi32(-0x01010102);
#define S(i) __m512i a##i = _mm512_set1_epi32(i);
#define F(i) a##i = _mm512_dpbusd_epi32(a##i, u, s); __asm__ volatile("" : "+v"(a##i));
    LOOP(S, F) return OPS(64);
#undef S
#undef F
}
__attribute__((target("avx512f,avx512bf16"))) static double bf16_avx512(void) {
    __m512i one = _mm512_set1_epi32(0x3f803f80); __m512bh b; memcpy(&b, &one, sizeof b);
#define S(i) __m512 a##i = _mm512_set1_ps((float)i);
#define F(i) a##i = _mm512_dpbf16_ps(a##i, b, b); __asm__ volatile("" : "+v"(a##i));
    LOOP(S, F) return OPS(32);
#undef S
#undef F
}

/* --- reading memory: each thread sums its own contiguous part, again and again --- */
__attribute__((target("avx2"))) static uint64_t read_all(const char *p, size_t bytes) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
#define AT(j) _mm256_load_si256((const __m256i *)(p + i + 32 * (j)))
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        s0 = _mm256_xor_si256(s0, AT(0)); s1 = _mm256_xor_si256(s1, AT(1)); s2 = _mm256_xor_si256(s2, AT(2)); s3 = _mm256_xor_si256(s3, AT(3));
        s0 = _mm256_xor_si256(s0, AT(4)); s1 = _mm256_xor_si256(s1, AT(5)); s2 = _mm256_xor_si256(s2, AT(6)); s3 = _mm256_xor_si256(s3, AT(7));
    }
    s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
    uint64_t out[4]; _mm256_storeu_si256((__m256i *)out, s0);
    return out[0] ^ out[1] ^ out[2] ^ out[3];
}

typedef struct { double (*op)(void); const char *mem; size_t bytes; double seconds, rate; pthread_barrier_t *go; } Job;
static volatile uint64_t sink;
static void *work(void *arg) {
    Job *j = arg; double done = 0, t0, t;
    if (j->op) j->op(); else sink ^= read_all(j->mem, j->bytes);
    pthread_barrier_wait(j->go);
    t0 = now();
    do { if (j->op) done += j->op(); else { sink ^= read_all(j->mem, j->bytes); done += (double)j->bytes; } t = now() - t0; }
    while (t < j->seconds);
    j->rate = done / t; return 0;
}
static double all(double (*op)(void), char *mem, size_t bytes, int threads, double seconds) {
    pthread_t id[256]; Job job[256]; pthread_barrier_t go; double rate = 0; size_t part = bytes / threads / 4096 * 4096;
    pthread_barrier_init(&go, 0, threads);
    for (int i = 0; i < threads; i++) {
        job[i] = (Job){op, mem ? mem + i * part : 0, part, seconds, 0, &go};
        pthread_create(&id[i], 0, work, &job[i]);
    }
    for (int i = 0; i < threads; i++) { pthread_join(id[i], 0); rate += job[i].rate; }
    return rate / 1e9;
}
int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int threads = atoi(argv[2]); double seconds = atof(argv[3]);
    if (!strcmp(argv[1], "peak")) {
        int f = __builtin_cpu_supports("avx512f");
        printf("{\"f32\":%.2f,\"f32_isa\":\"%s\"", all(f ? fma_avx512 : fma_avx2, 0, 0, threads, seconds), f ? "avx512" : "avx2");
        if (__builtin_cpu_supports("avx512bf16")) printf(",\"bf16\":%.2f,\"bf16_isa\":\"avx512_bf16\"", all(bf16_avx512, 0, 0, threads, seconds));
        int v = __builtin_cpu_supports("avx512vnni");
        printf(",\"int8\":%.2f,\"int8_isa\":\"%s\"}\n", all(v ? int8_vnni512 : int8_avx2, 0, 0, threads, seconds), v ? "avx512_vnni" : "avx2 maddubs");
        return 0;
    }
    size_t bytes = (size_t)(atof(argv[4]) * 1048576) / 4096 * 4096; int huge = atoi(argv[5]);
    char *mem = mmap(0, bytes + (2u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED) return 1;
    mem = (char *)(((uintptr_t)mem + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1));
    madvise(mem, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(mem, 1, bytes);
    printf("{\"gbs\":%.2f}\n", all(0, mem, bytes, threads, seconds));
    return 0;
}
"""


def micro(cache, *args):
    """Run the C micro-benchmark (compiled once) and return its JSON."""
    exe = cache / "micro"
    src = cache / "micro.c"
    if not exe.exists() or not src.exists() or src.read_text() != MICRO_C:
        src.write_text(MICRO_C)
        cc = next((c for c in ("gcc", "cc", "clang") if shutil.which(c)), None)
        if not cc:
            raise RuntimeError("no C compiler (gcc, cc or clang) to build the micro-benchmark")
        subprocess.run([cc, "-O2", "-pthread", str(src), "-o", str(exe)], check=True)
    return json.loads(subprocess.run([str(exe), *map(str, args)], check=True, capture_output=True, text=True).stdout)


def cpu_info():
    info = {"cpu": platform.processor(), "cores": os.cpu_count(), "family": "", "model": ""}
    flags = set()
    try:
        for line in open("/proc/cpuinfo"):
            key, _, value = line.partition(":")
            key, value = key.strip(), value.strip()
            if key == "model name":
                info["cpu"] = value
            elif key == "cpu family":
                info["family"] = value
            elif key == "model":
                info["model"] = value
            elif key == "flags":
                flags = set(value.split())
        for line in open("/proc/meminfo"):
            if line.startswith("MemTotal"):
                info["memory_gib"] = round(int(line.split()[1]) / 2**20, 1)
    except OSError:
        pass
    wanted = ["avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile"]
    info["simd"] = [f for f in wanted if f in flags]
    return info


# ----------------------------------------------------------------------------- the peers (each in its own process)
#
# A peer class has setup(case, threads) -> note (a string or None), and sample() -> {metric: seconds}.
# Whatever setup raises becomes the reason why the peer is missing from that case.

class Missing(Exception):
    """A library, file or feature that this peer needs is not here."""


def need(module, hint=None):
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as e:
        raise Missing(f"{hint or module} is not installed ({e})")


def shared_library(*names):
    for n in names:
        path = ctypes.util.find_library(n)
        if path:
            try:
                return ctypes.CDLL(path)
            except OSError:
                pass
    raise Missing(f"no shared library {' or '.join('lib' + n for n in names)}")


def torch_with(threads):
    torch = need("torch")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    return torch


class Timed:
    """Base: self.call is what is timed, self.target how long one sample should last."""
    target = 0.1

    def calibrate(self):
        t = self.once()                                          # the warm-up
        if t < 2:
            t = min(self.once() for _ in range(2))
        self.n = max(1, min(100000, int(self.target / max(t, 1e-7))))

    def once(self):
        t0 = time.perf_counter()
        self.call()
        return time.perf_counter() - t0

    def sample(self):
        t0 = time.perf_counter()
        for _ in range(self.n):
            self.call()
        return {"seconds": (time.perf_counter() - t0) / self.n}


# --- gemm: C[M,N] = A[M,K] B, with B stored [N,K] (trans_b, as in a linear layer) or [K,N]

class Gemm(Timed):
    tolerance = 1e-3

    def setup(self, case, threads):
        np = self.np = need("numpy")
        self.m, self.n_, self.k, self.trans = case["m"], case["n"], case["k"], case["trans_b"]
        self.target = case.get("target", 0.1)
        self.threads = threads
        rng = np.random.default_rng(SEED)
        self.a = rng.standard_normal((self.m, self.k), dtype=np.float32)
        self.b = rng.standard_normal((self.n_, self.k) if self.trans else (self.k, self.n_), dtype=np.float32)
        self.c = np.zeros((self.m, self.n_), dtype=np.float32)
        note = self.prepare()
        self.calibrate()
        self.check()
        return note

    def check(self):
        np = self.np
        cols = np.linspace(0, self.n_ - 1, min(7, self.n_)).astype(int)
        b = self.b[cols].T if self.trans else self.b[:, cols]
        want = self.a[-1].astype(np.float64) @ b.astype(np.float64)
        got = np.asarray(self.result(), dtype=np.float64).reshape(self.m, self.n_)[-1][cols]
        error = np.abs(got - want).max() / math.sqrt(self.k)
        if not error < self.tolerance:
            raise Missing(f"wrong result (error {error:.3g})")

    def result(self):
        return self.c

    def pointers(self):
        f = ctypes.POINTER(ctypes.c_float)
        return [x.ctypes.data_as(f) for x in (self.a, self.b, self.c)]


class GemmNumpy(Gemm):
    def prepare(self):
        b = self.b.T if self.trans else self.b
        self.call = lambda: self.np.matmul(self.a, b, out=self.c)
        try:
            import threadpoolctl
            pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
            return "; ".join(f"{p['internal_api']} {p['version']} {p.get('architecture', '?')} kernel" for p in pools)
        except ImportError:
            return "kernel unknown: threadpoolctl is not installed"


class GemmCblas(Gemm):
    names = ()

    def prepare(self):
        lib = shared_library(*self.names)
        if not hasattr(lib, "cblas_sgemm"):
            raise Missing("the library has no cblas_sgemm")
        a, b, c = self.pointers()
        i, f = ctypes.c_int, ctypes.c_float
        ldb = self.k if self.trans else self.n_
        args = (i(101), i(111), i(112 if self.trans else 111), i(self.m), i(self.n_), i(self.k), f(1), a, i(self.k),
                b, i(ldb), f(0), c, i(self.n_))
        self.call = lambda: lib.cblas_sgemm(*args)
        return self.describe(lib)

    def describe(self, lib):
        return None


class GemmOpenblas(GemmCblas):
    names = ("openblas",)

    def describe(self, lib):
        lib.openblas_get_config.restype = lib.openblas_get_corename.restype = ctypes.c_char_p
        version = lib.openblas_get_config().decode().split()[1]
        return f"OpenBLAS {version} {lib.openblas_get_corename().decode()} kernel"


class GemmBlis(GemmCblas):
    names = ("blis",)

    def describe(self, lib):
        try:
            lib.bli_thread_set_num_threads(ctypes.c_long(self.threads))
            lib.bli_arch_string.restype = lib.bli_info_get_version_str.restype = ctypes.c_char_p
            return f"BLIS {lib.bli_info_get_version_str().decode()} {lib.bli_arch_string(lib.bli_arch_query_id()).decode()} kernel"
        except AttributeError:
            return "BLIS"


class GemmOnednn(Gemm):
    def prepare(self):
        lib = shared_library("dnnl", "mkldnn")
        a, b, c = self.pointers()
        i, f, ch = ctypes.c_int64, ctypes.c_float, ctypes.c_char
        ldb = self.k if self.trans else self.n_
        args = (ch(b"N"), ch(b"T" if self.trans else b"N"), i(self.m), i(self.n_), i(self.k), f(1), a, i(self.k), b, i(ldb),
                f(0), c, i(self.n_))
        self.call = lambda: lib.dnnl_sgemm(*args)
        try:
            lib.dnnl_version.restype = ctypes.POINTER(ctypes.c_int)
            v = lib.dnnl_version()
            return f"oneDNN {v[0]}.{v[1]}.{v[2]}, isa {lib.dnnl_get_effective_cpu_isa():#x}"
        except AttributeError:
            return "oneDNN"


class GemmTorch(Gemm):
    def prepare(self):
        torch = torch_with(self.threads)
        a, b, c = (torch.from_numpy(x) for x in (self.a, self.b, self.c))
        b = b.t() if self.trans else b
        self.call = lambda: torch.mm(a, b, out=c)
        return f"torch {torch.__version__} ({'MKL' if torch.backends.mkl.is_available() else 'no MKL'})"


class GemmMklPacked(Gemm):
    """MKL with the weight packed beforehand, as torch.compile's frozen graphs do it."""

    def prepare(self):
        torch = torch_with(self.threads)
        if not torch.backends.mkl.is_available():
            raise Missing("this torch has no MKL")
        a, b = torch.from_numpy(self.a), torch.from_numpy(self.b if self.trans else self.b.T.copy())
        packed = torch.ops.mkl._mkl_reorder_linear_weight(b, self.m)
        def call():
            self.out = torch.ops.mkl._mkl_linear(a, packed, b, None, self.m)
        self.call = call
        return f"torch {torch.__version__}, MKL packed weight"

    def result(self):
        return self.out.numpy()


class GemmOnednnPacked(GemmMklPacked):
    """torch's own (newer) oneDNN with the weight in the layout it likes best for this M."""

    def prepare(self):
        torch = torch_with(self.threads)
        if not torch.backends.mkldnn.is_available():
            raise Missing("this torch has no oneDNN")
        a, b = torch.from_numpy(self.a), torch.from_numpy(self.b if self.trans else self.b.T.copy())
        packed = torch.ops.mkldnn._reorder_linear_weight(b, self.m)
        def call():
            self.out = torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")
        self.call = call
        return f"torch {torch.__version__}, its oneDNN, packed weight"


def onnx_session(model, threads, optimized=True):
    ort = need("onnxruntime")
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.inter_op_num_threads = threads, 1
    o.log_severity_level = 3
    if not optimized:
        o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, o, providers=["CPUExecutionProvider"])


class GemmOrt(Gemm):
    """onnxruntime's MLAS: a constant right-hand side, which it packs when the session is made."""
    quantized = False

    def prepare(self):
        onnx = need("onnx")
        from onnx import helper, numpy_helper, TensorProto as T
        b = self.np.ascontiguousarray(self.b.T) if self.trans else self.b
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["a", "b"], ["c"])], "g",
            [helper.make_tensor_value_info("a", T.FLOAT, ["m", self.k])],
            [helper.make_tensor_value_info("c", T.FLOAT, ["m", self.n_])], [numpy_helper.from_array(b, "b")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if self.quantized:
            from onnxruntime.quantization import quantize_dynamic, QuantType
            with tempfile.TemporaryDirectory() as d:
                onnx.save(model, f"{d}/f.onnx")
                quantize_dynamic(f"{d}/f.onnx", f"{d}/q.onnx", weight_type=QuantType.QInt8)
                session = onnx_session(f"{d}/q.onnx", self.threads)
        else:
            session = onnx_session(model.SerializeToString(), self.threads)
        ort = need("onnxruntime")
        binding = session.io_binding()
        binding.bind_cpu_input("a", self.a)
        binding.bind_output("c", "cpu")
        self.session, self.binding = session, binding
        self.call = lambda: session.run_with_iobinding(binding)
        return f"onnxruntime {ort.__version__} MLAS, packed weight"

    def result(self):
        return self.binding.copy_outputs_to_cpu()[0]


class GgmlInit(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


GGML_TYPE = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}


class GemmGgml(Gemm):
    """ggml's own matrix multiplication (with llamafile's kernels where it has them), as llama.cpp ships it."""
    dtype = "f32"

    def prepare(self):
        pkg = need("llama_cpp", "llama-cpp-python")
        folder = Path(pkg.__file__).parent / "lib"
        try:
            base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
            cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        except OSError as e:
            raise Missing(f"llama-cpp-python has no separate ggml libraries ({e})")
        p, i64 = ctypes.c_void_p, ctypes.c_int64
        for lib, name, result, args in (
                (base, "ggml_init", p, [GgmlInit]), (base, "ggml_new_tensor_2d", p, [p, ctypes.c_int, i64, i64]),
                (base, "ggml_get_data", p, [p]), (base, "ggml_free", None, [p]), (base, "ggml_mul_mat", p, [p, p, p]), (base, "ggml_new_graph", p, [p]),
                (base, "ggml_build_forward_expand", None, [p, p]),
                (base, "ggml_quantize_chunk", ctypes.c_size_t, [ctypes.c_int, p, p, i64, i64, i64, p]),
                (base, "ggml_backend_graph_compute", ctypes.c_int, [p, p]),
                (cpu, "ggml_backend_cpu_init", p, []), (cpu, "ggml_backend_cpu_set_n_threads", None, [p, ctypes.c_int])):
            f = getattr(lib, name)
            f.restype, f.argtypes = result, args
        kind = GGML_TYPE[self.dtype]
        size = 4 * (self.m * self.k + self.n_ * self.k + self.m * self.n_) + (64 << 20)
        ctx = base.ggml_init(GgmlInit(size, None, False))
        weakref.finalize(self, base.ggml_free, ctx)
        w = base.ggml_new_tensor_2d(ctx, kind, self.k, self.n_)
        x = base.ggml_new_tensor_2d(ctx, 0, self.k, self.m)
        b = self.b if self.trans else self.np.ascontiguousarray(self.b.T)
        if kind == 0:
            ctypes.memmove(base.ggml_get_data(w), b.ctypes.data, b.nbytes)
        else:
            base.ggml_quantize_chunk(kind, b.ctypes.data, base.ggml_get_data(w), 0, self.n_, self.k, None)
        ctypes.memmove(base.ggml_get_data(x), self.a.ctypes.data, self.a.nbytes)
        y = base.ggml_mul_mat(ctx, w, x)
        graph = base.ggml_new_graph(ctx)
        base.ggml_build_forward_expand(graph, y)
        backend = cpu.ggml_backend_cpu_init()
        cpu.ggml_backend_cpu_set_n_threads(backend, self.threads)
        self.call = lambda: base.ggml_backend_graph_compute(backend, graph)
        data = base.ggml_get_data(y)
        self.view = self.np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), (self.m, self.n_))
        return f"llama-cpp-python {pkg.__version__} ggml {self.dtype}"

    def result(self):
        return self.view


class GemmGgmlF16(GemmGgml):
    dtype, tolerance = "f16", 0.1


class GemmGgmlBf16(GemmGgml):
    dtype, tolerance = "bf16", 0.1


class GemmGgmlQ8(GemmGgml):
    dtype, tolerance = "q8_0", 0.2


class GemmGgmlQ4(GemmGgml):
    dtype, tolerance = "q4_0", 1.0


class GemmTorchBf16(Gemm):
    tolerance = 0.2

    def prepare(self):
        torch = torch_with(self.threads)
        a, b = (torch.from_numpy(x).bfloat16() for x in (self.a, self.b))
        b = b.t() if self.trans else b
        out = torch.empty(self.m, self.n_, dtype=torch.bfloat16)
        self.out = out
        self.call = lambda: torch.mm(a, b, out=out)
        return f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), bf16 in and out"

    def result(self):
        return self.out.float().numpy()


class GemmTorchInt8(Gemm):
    """fbgemm: activations quantised on the fly (that time counts), weights int8 and packed."""
    tolerance = 0.3

    def prepare(self):
        torch = torch_with(self.threads)
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            raise Missing("this torch has no fbgemm")
        torch.backends.quantized.engine = "fbgemm"
        a, b = torch.from_numpy(self.a), torch.from_numpy(self.b if self.trans else self.b.T.copy())
        scale = float(b.abs().max()) / 127
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(b, scale, 0, torch.qint8), None)
        def call():
            self.out = torch.ops.quantized.linear_dynamic(a, packed, True)
        self.call = call
        return f"torch {torch.__version__} fbgemm, dynamic int8"

    def result(self):
        return self.out.numpy()


class GemmOrtInt8(GemmOrt):
    quantized, tolerance = True, 0.3


class GemmOnednnInt8(Gemm):
    """oneDNN's u8 x s8 -> s32 on data quantised beforehand: the bare kernel."""

    def prepare(self):
        np = self.np
        lib = shared_library("dnnl", "mkldnn")
        self.a = np.random.default_rng(1).integers(0, 127, self.a.shape, dtype=np.uint8)
        self.b = np.random.default_rng(2).integers(-63, 63, self.b.shape, dtype=np.int8)
        self.c = np.zeros(self.c.shape, np.int32)
        i, f, ch, p = ctypes.c_int64, ctypes.c_float, ctypes.c_char, ctypes.c_void_p
        zero = np.zeros(1, np.int32)
        self.keep = zero
        args = (ch(b"N"), ch(b"T" if self.trans else b"N"), ch(b"F"), i(self.m), i(self.n_), i(self.k), f(1), p(self.a.ctypes.data),
                i(self.k), ctypes.c_uint8(0), p(self.b.ctypes.data), i(self.k if self.trans else self.n_), ctypes.c_int8(0), f(0),
                p(self.c.ctypes.data), i(self.n_), p(zero.ctypes.data))
        self.call = lambda: lib.dnnl_gemm_u8s8s32(*args)
        return "oneDNN u8s8s32, already quantised"


# --- attention

class Attention(Timed):
    def setup(self, case, threads):
        torch = torch_with(threads)
        self.target = case.get("target", 0.1)
        shape = (case["b"], case["h"], case["t"], case["d"])
        backward = case["backward"]
        q, k, v = (torch.randn(shape, requires_grad=backward) for _ in range(3))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        if backward:
            g = torch.randn(shape)
            def call():
                q.grad = k.grad = v.grad = None
                sdpa(q, k, v, is_causal=True).backward(g)
        else:
            def call():
                with torch.inference_mode():
                    sdpa(q, k, v, is_causal=True)
        self.call = call
        self.calibrate()
        return f"torch {torch.__version__} SDPA"


class AttentionPlain(Timed):
    """Scores written out, soft-maxed and multiplied: what attention costs without a fused kernel."""

    def setup(self, case, threads):
        torch = torch_with(threads)
        self.target = case.get("target", 0.1)
        shape = (case["b"], case["h"], case["t"], case["d"])
        backward = case["backward"]
        q, k, v = (torch.randn(shape, requires_grad=backward) for _ in range(3))
        mask = torch.full((case["t"], case["t"]), float("-inf")).triu(1)
        scale = case["d"] ** -0.5
        plain = lambda: torch.softmax(q @ k.transpose(-1, -2) * scale + mask, -1) @ v
        if backward:
            g = torch.randn(shape)
            def call():
                q.grad = k.grad = v.grad = None
                plain().backward(g)
        else:
            def call():
                with torch.inference_mode():
                    plain()
        self.call = call
        self.calibrate()
        return f"torch {torch.__version__}, unfused"


# --- T5: one sample reads T5_SOURCE tokens in the encoder and then writes T5_NEW, greedy

class T5Torch(Timed):
    compiled = False

    def setup(self, case, threads):
        torch = torch_with(threads)
        transformers = need("transformers")
        transformers.logging.set_verbosity_error()
        net = transformers.T5ForConditionalGeneration.from_pretrained(Path(case["cache"]) / "t5-base").eval()
        ids = torch.tensor([[(i * 7919 + 13) % 32000 for i in range(case["prompt"])]])
        start = torch.zeros((1, 1), dtype=torch.long)
        decoder = torch.compile(net.decoder, dynamic=True) if self.compiled else net.decoder

        def call():
            with torch.inference_mode():
                states = net.encoder(input_ids=ids).last_hidden_state
                cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
                token = start
                for _ in range(case["new"]):
                    out = decoder(input_ids=token, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
                    token = net.lm_head(out.last_hidden_state[:, -1:] * net.model_dim ** -0.5).argmax(-1)
        self.call = call
        self.target = case["target"]
        self.calibrate()
        return f"torch {torch.__version__}, transformers {transformers.__version__}, {'torch.compile' if self.compiled else 'eager'}, cached keys and values"


# --- tokenizing: lines of a text, one after another, on one thread

class Tokenize(Timed):
    def setup(self, case, threads):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenizers = need("tokenizers")
        t = tokenizers.Tokenizer.from_file(str(Path(case["folder"]) / "tokenizer.json"))
        lines = [l.rstrip("\n") for l in open(case["file"], encoding="utf-8")]
        self.call = lambda: t.encode_batch(lines)
        self.target = case["target"]
        self.calibrate()
        return f"tokenizers {tokenizers.__version__}, encode_batch, one thread"


# --- GPT-2 inference: one sample is a prefill of PROMPT tokens and then NEW decode steps, greedy

class Generate:
    def setup(self, case, threads):
        self.threads, self.cache = threads, Path(case["cache"])
        self.prompt, self.new = case["prompt"], case["new"]
        self.model_name = case.get("model", "gpt2")
        t0 = time.perf_counter()
        note = self.load()
        self.load_seconds = time.perf_counter() - t0
        self.sample()
        return note

    def ids(self):
        return [(i * 7919 + 13) % 50000 for i in range(self.prompt)]

    def sample(self):
        t0 = time.perf_counter()
        token = self.prefill(self.ids())
        t1 = time.perf_counter()
        for i in range(self.new):
            token = self.step(token, self.prompt + i)
        t2 = time.perf_counter()
        return {"prefill": t1 - t0, "decode": t2 - t1}


class GenerateTorch(Generate):
    dtype, compiled, static = "float32", False, False

    def load(self):
        torch = torch_with(self.threads)
        transformers = need("transformers")
        transformers.logging.set_verbosity_error()
        self.torch, self.transformers = torch, transformers
        self.net = transformers.GPT2LMHeadModel.from_pretrained(self.cache / self.model_name, dtype=getattr(torch, self.dtype)).eval()
        self.run = torch.compile(self.net, dynamic=False) if self.compiled else self.net
        return f"torch {torch.__version__}, transformers {transformers.__version__}, {self.dtype}" + (
            ", torch.compile with a static cache" if self.compiled else ", eager with a dynamic cache")

    def prefill(self, ids):
        if self.static:
            self.kv = self.transformers.StaticCache(config=self.net.config, max_cache_len=self.prompt + self.new)
        else:
            self.kv = self.transformers.DynamicCache()
        return self.forward(self.torch.tensor([ids]))

    def step(self, token, position):
        return self.forward(token.view(1, 1))

    def forward(self, ids):
        with self.torch.inference_mode():
            out = self.run(input_ids=ids, past_key_values=self.kv, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].argmax()


class GenerateTorchBf16(GenerateTorch):
    dtype = "bfloat16"


class GenerateTorchCompile(GenerateTorch):
    compiled = static = True

    def forward(self, ids):
        with self.torch.no_grad():
            out = self.run(input_ids=ids, past_key_values=self.kv, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].argmax()


class GenerateLlama(Generate):
    dtype = "f32"

    def load(self):
        import numpy as np
        self.np = np
        L = self.L = need("llama_cpp", "llama-cpp-python")
        path = self.cache / f"{self.model_name}-{self.dtype}.gguf"
        if not path.exists():
            raise Missing(f"no {path.name} in the cache (the gguf package is needed to write it)")
        self.quiet = L.llama_log_callback(lambda level, text, data: None)
        L.llama_log_set(self.quiet, None)
        L.llama_backend_init()
        mp = L.llama_model_default_params()
        mp.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(str(path).encode(), mp)
        if not self.model:
            raise Missing(f"llama.cpp could not load {path.name}")
        cp = L.llama_context_default_params()
        cp.n_ctx, cp.n_batch, cp.n_ubatch = max(256, self.prompt + self.new), max(512, self.prompt), 512
        cp.n_threads = cp.n_threads_batch = self.threads
        cp.no_perf = False
        new = getattr(L, "llama_init_from_model", None) or L.llama_new_context_with_model
        self.ctx = new(self.model, cp)
        if not self.ctx:
            raise Missing("llama.cpp could not make a context")
        return f"llama-cpp-python {L.__version__}, {path.name}, {path.stat().st_size / 2**20:.0f} MiB"

    def decode(self, ids):
        L = self.L
        arr = (L.llama_token * len(ids))(*ids)
        if L.llama_decode(self.ctx, L.llama_batch_get_one(arr, len(ids))) != 0:
            raise Missing("llama_decode failed")
        logits = L.llama_get_logits_ith(self.ctx, -1)
        return int(self.np.ctypeslib.as_array(logits, (VOCAB,)).argmax())

    def prefill(self, ids):
        L = self.L
        L.llama_memory_clear(L.llama_get_memory(self.ctx), True)
        L.llama_perf_context_reset(self.ctx)
        return self.decode(ids)

    def step(self, token, position):
        return self.decode([token])

    def extra(self):
        """What llama.cpp itself says of the latest sample."""
        d = self.L.llama_perf_context(self.ctx)
        return {"own_prefill_tokens_per_second": d.n_p_eval / d.t_p_eval_ms * 1e3 if d.t_p_eval_ms else None,
                "own_decode_tokens_per_second": d.n_eval / d.t_eval_ms * 1e3 if d.t_eval_ms else None}


class GenerateLlamaF16(GenerateLlama):
    dtype = "f16"


class GenerateLlamaBf16(GenerateLlama):
    dtype = "bf16"


class GenerateLlamaQ8(GenerateLlama):
    dtype = "q8_0"


class GenerateLlamaQ4(GenerateLlama):
    dtype = "q4_0"


class GenerateOrt(Generate):
    """onnxruntime with its fused transformer operators; the graph is written by hand (see make_gpt2_onnx)."""
    file = "gpt2-f32.onnx"

    def load(self):
        import numpy as np
        self.np = np
        ort = need("onnxruntime")
        path = self.cache / self.file
        if not path.exists():
            raise Missing(f"no {path.name} in the cache (the onnx package is needed to write it)")
        self.session = onnx_session(str(path), self.threads)
        self.pasts = [i.name for i in self.session.get_inputs() if i.name.startswith("past")]
        shape = [i.shape for i in self.session.get_inputs() if i.name.startswith("past")][0]
        self.empty = ort.OrtValue.ortvalue_from_numpy(np.zeros((2, 1, shape[2], 0, shape[4]), np.float32))
        return f"onnxruntime {ort.__version__}, fused graph, {path.name}"

    def prefill(self, ids):
        self.kv = [self.empty] * len(self.pasts)
        return self.forward(self.np.array([ids], self.np.int64), self.np.arange(len(ids))[None])

    def step(self, token, position):
        return self.forward(self.np.array([[token]], self.np.int64), self.np.array([[position]], self.np.int64))

    def forward(self, ids, positions):
        b = self.session.io_binding()
        b.bind_cpu_input("input_ids", ids)
        b.bind_cpu_input("position_ids", positions.astype(self.np.int64))
        for name, value in zip(self.pasts, self.kv):
            b.bind_ortvalue_input(name, value)
        for o in self.session.get_outputs():
            b.bind_output(o.name, "cpu")
        self.session.run_with_iobinding(b)
        logits, *self.kv = b.get_outputs()
        return int(logits.numpy()[0, -1].argmax())


class GenerateOrtInt8(GenerateOrt):
    file = "gpt2-int8.onnx"


# --- BERT forward

class Forward(Timed):
    def setup(self, case, threads):
        self.threads, self.cache = threads, Path(case["cache"])
        self.b, self.t = case["b"], case["t"]
        self.target = case.get("target", 0.1)
        t0 = time.perf_counter()
        note = self.load()
        self.load_seconds = time.perf_counter() - t0
        self.calibrate()
        return note


class ForwardTorch(Forward):
    compiled = autocast = False

    def load(self):
        torch = torch_with(self.threads)
        transformers = need("transformers")
        transformers.logging.set_verbosity_error()
        net = transformers.BertModel.from_pretrained(self.cache / "bert-base", attn_implementation="sdpa").eval()
        run = net
        if self.compiled:
            import torch._inductor.config as inductor
            inductor.freezing = True
            run = torch.compile(net, dynamic=False)
        ids = torch.randint(0, net.config.vocab_size, (self.b, self.t))
        def call():
            with torch.no_grad():
                self.out = run(input_ids=ids)
        self.call = call
        return f"torch {torch.__version__}, transformers {transformers.__version__}, " + (
            "torch.compile (inductor, frozen weights)" if self.compiled else "eager sdpa")


class ForwardTorchCompile(ForwardTorch):
    compiled = True


class ForwardOrt(Forward):
    file = "bert-f32.onnx"

    def load(self):
        import numpy as np
        ort = need("onnxruntime")
        path = self.cache / self.file
        if not path.exists():
            raise Missing(f"no {path.name} in the cache (the onnx package is needed to write it)")
        session = onnx_session(str(path), self.threads)
        ids = np.random.default_rng(SEED).integers(0, 30522, (self.b, self.t)).astype(np.int64)
        feed = {"input_ids": ids}
        self.call = lambda: session.run(None, feed)
        return f"onnxruntime {ort.__version__}, fused graph, {path.name}"


class ForwardOrtInt8(ForwardOrt):
    file = "bert-int8.onnx"


# --- GPT-2 training: forward, backward, clip to 1, AdamW

class Train(Timed):
    compiled = autocast = False
    target = 0

    def setup(self, case, threads):
        torch = torch_with(threads)
        transformers = need("transformers")
        transformers.logging.set_verbosity_error()
        t0 = time.perf_counter()
        net = transformers.GPT2LMHeadModel.from_pretrained(Path(case["cache"]) / "gpt2").train()
        self.load_seconds = time.perf_counter() - t0
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        run = torch.compile(net, dynamic=False) if self.compiled else net
        ids = torch.randint(0, VOCAB, (case["b"], case["t"]))
        def call():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = run(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.loss = float(loss.detach())
        self.call = call
        self.calibrate()
        return f"torch {torch.__version__}, transformers {transformers.__version__}, fused AdamW" + (
            ", torch.compile" if self.compiled else "") + (", bf16 autocast" if self.autocast else "")


class TrainCompile(Train):
    compiled = True


class TrainBf16(Train):
    autocast = True


# --- start-up: the whole process, from exec to the first new token of a small model

class Startup:
    """Runs a fresh interpreter a sample; the script prints nothing that matters."""
    script = ""

    def setup(self, case, threads):
        self.command = [sys.executable, "-c", self.script.format(cache=case["cache"], model=case["model"], threads=threads)]
        self.sample()
        return None

    def sample(self):
        t0 = time.perf_counter()
        r = subprocess.run(self.command, capture_output=True, text=True)
        t = time.perf_counter() - t0
        if r.returncode:
            raise Missing(r.stderr.strip().splitlines()[-1] if r.stderr.strip() else f"exit status {r.returncode}")
        last = r.stdout.strip().splitlines()[-1] if r.stdout.strip() else ""
        self.peak = int(last) * 1024 if last.isdigit() else None
        return {"seconds": t}

    def extra(self):
        return {"peak_rss_bytes": self.peak} if self.peak else {}


RSS = "\nprint([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"


class StartupTorch(Startup):
    script = """
import torch, transformers
torch.set_num_threads({threads})
m = transformers.GPT2LMHeadModel.from_pretrained("{cache}/{model}").eval()
with torch.inference_mode():
    int(m(input_ids=torch.tensor([[1, 2, 3, 4]])).logits[0, -1].argmax())
""" + RSS


class StartupImportTorch(Startup):
    script = "import torch" + RSS


class StartupOrt(Startup):
    script = """
import onnxruntime as ort, numpy as np
o = ort.SessionOptions(); o.intra_op_num_threads = {threads}
s = ort.InferenceSession("{cache}/{model}-f32.onnx", o, providers=["CPUExecutionProvider"])
feed = {{"input_ids": np.array([[1, 2, 3, 4]]), "position_ids": np.array([[0, 1, 2, 3]])}}
for i in s.get_inputs():
    if i.name.startswith("past"):
        feed[i.name] = np.zeros((2, 1, i.shape[2], 0, i.shape[4]), np.float32)
int(s.run(["logits"], feed)[0][0, -1].argmax())
""" + RSS


class StartupLlama(Startup):
    script = """
import llama_cpp as L, ctypes
quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
m = L.llama_model_load_from_file(b"{cache}/{model}-f32.gguf", L.llama_model_default_params())
p = L.llama_context_default_params(); p.n_ctx = 256; p.n_threads = p.n_threads_batch = {threads}
c = L.llama_init_from_model(m, p)
a = (L.llama_token * 4)(1, 2, 3, 4)
assert L.llama_decode(c, L.llama_batch_get_one(a, 4)) == 0
l = L.llama_get_logits_ith(c, -1)
max(range(50257), key=lambda i: l[i])
""" + RSS


PEERS = {
    "numpy-openblas": GemmNumpy, "openblas": GemmOpenblas, "blis": GemmBlis, "onednn": GemmOnednn, "torch-mkl": GemmTorch,
    "mkl-packed": GemmMklPacked, "onednn-packed": GemmOnednnPacked, "ort-packed": GemmOrt, "ggml": GemmGgml,
    "torch-bf16": GemmTorchBf16, "ggml-bf16": GemmGgmlBf16, "ggml-f16": GemmGgmlF16,
    "fbgemm-int8": GemmTorchInt8, "ort-int8": GemmOrtInt8, "onednn-int8": GemmOnednnInt8, "ggml-q8_0": GemmGgmlQ8,
    "ggml-q4_0": GemmGgmlQ4,
    "torch-sdpa": Attention, "torch-unfused": AttentionPlain,
    "llama.cpp-f32": GenerateLlama, "llama.cpp-f16": GenerateLlamaF16, "llama.cpp-bf16": GenerateLlamaBf16,
    "llama.cpp-q8_0": GenerateLlamaQ8, "llama.cpp-q4_0": GenerateLlamaQ4,
    "torch-eager-gpt2": GenerateTorch, "torch-bf16-gpt2": GenerateTorchBf16, "torch-compile-gpt2": GenerateTorchCompile,
    "ort-gpt2": GenerateOrt, "ort-int8-gpt2": GenerateOrtInt8,
    "torch-eager-bert": ForwardTorch, "torch-compile-bert": ForwardTorchCompile, "ort-bert": ForwardOrt, "ort-int8-bert": ForwardOrtInt8,
    "torch-eager-t5": T5Torch, "tokenizers": Tokenize,
    "torch-train": Train, "torch-compile-train": TrainCompile, "torch-bf16-train": TrainBf16,
    "torch-start": StartupTorch, "import-torch": StartupImportTorch, "ort-start": StartupOrt, "llama.cpp-start": StartupLlama,
}


def vm_hwm():
    try:
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def worker(name, threads):
    """The peer's process: JSON lines in, JSON lines out (on a private descriptor, for libraries print)."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = None
    for line in sys.stdin:
        msg = json.loads(line)
        try:
            if msg["do"] == "setup":
                peer = None
                peer = PEERS[name]()
                note = peer.setup(msg["case"], threads)
                reply = {"note": note, "load_seconds": getattr(peer, "load_seconds", None)}
            else:
                reply = {"times": peer.sample(), "extra": peer.extra() if hasattr(peer, "extra") else {}, "peak_rss_bytes": vm_hwm()}
        except Missing as e:
            reply = {"error": str(e)}
        except Exception as e:                                   # a peer that breaks is a row in the report, not an end of it
            reply = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
        out.write(json.dumps(reply) + "\n")


# ----------------------------------------------------------------------------- the models (made in a child process)

def make_models(cache, wanted):
    """Write the models that are not in the cache yet. Prints a line for each one that cannot be made."""
    torch = need("torch")
    transformers = need("transformers")
    transformers.logging.set_verbosity_error()
    gpt2 = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    tiny = transformers.GPT2Config(n_layer=4, n_embd=256, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    bert = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    t5 = transformers.T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, dropout_rate=0.0, decoder_start_token_id=0)
    for name, cls, config in (("gpt2", transformers.GPT2LMHeadModel, gpt2), ("tiny", transformers.GPT2LMHeadModel, tiny),
                              ("bert-base", transformers.BertModel, bert), ("t5-base", transformers.T5ForConditionalGeneration, t5)):
        if name in wanted and not (cache / name / "config.json").exists():
            torch.manual_seed(SEED)
            net = cls(config)
            with torch.no_grad():                                # biases that are not zero, so that forgetting one shows
                for n, p in net.named_parameters():
                    if n.endswith("bias"):
                        p.normal_(0, 0.02)
            net.save_pretrained(cache / name)
    for name in ("gpt2", "tiny"):
        if name in wanted:
            attempt(f"{name} GGUF files", make_ggufs, cache, name)
            attempt(f"{name} ONNX files", make_gpt2_onnx, cache, name)
            if name == "gpt2":
                make_llmc(cache)
    if "tokenizer" in wanted:
        attempt("tokenizers", make_tokenizers, cache)
    if "bert-base" in wanted:
        attempt("BERT ONNX files", make_bert_onnx, cache)


def make_tokenizers(cache):
    """A text that this machine has (the package index' descriptions, or the licences), and three tokenizers trained on it."""
    tokenizers = need("tokenizers")
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    text = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True).stdout if shutil.which("apt-cache") else ""
    if len(text) < 1 << 20:
        text += "".join(f.read_text(errors="replace") for f in sorted(Path("/usr/share/common-licenses").glob("*")) if f.is_file()) * 8
    if len(text) < 1 << 16:
        raise Missing("no text to tokenize")
    sample = cache / "tokenize.txt"
    sample.write_text(text[: 4 << 20], encoding="utf-8")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    wordpiece = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer, wordpiece.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    unigram = tokenizers.Tokenizer(models.Unigram())
    unigram.normalizer, unigram.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    for name, t, trainer in (("bpe", bpe, trainers.BpeTrainer(vocab_size=20000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)),
                             ("wordpiece", wordpiece, trainers.WordPieceTrainer(vocab_size=20000, special_tokens=["[UNK]"], show_progress=False)),
                             ("unigram", unigram, trainers.UnigramTrainer(vocab_size=12000, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False))):
        t.train([str(sample)], trainer)
        (cache / f"tokenizer-{name}").mkdir(exist_ok=True)
        t.save(str(cache / f"tokenizer-{name}" / "tokenizer.json"))


def attempt(what, make, *args):
    try:
        make(*args)
    except Missing as e:
        print(f"peers.py: no {what}: {e}", file=sys.stderr)
    except Exception as e:
        print(f"peers.py: no {what}: {type(e).__name__}: {' '.join(str(e).split())[:300]}", file=sys.stderr)


def weights(cache, name):
    from safetensors.torch import load_file
    return {k: v.float().numpy() for k, v in load_file(cache / name / "model.safetensors").items()}


def make_ggufs(cache, name):
    """GPT-2 as GGUF, f32; llama.cpp's own quantiser makes the rest. The vocabulary is a dummy."""
    first = cache / f"{name}-f32.gguf"
    if not first.exists():
        gguf = need("gguf")
        import numpy as np
        config = json.loads((cache / name / "config.json").read_text())
        part = first.with_suffix(".part")
        w = gguf.GGUFWriter(str(part), "gpt2")
        w.add_block_count(config["n_layer"])
        w.add_context_length(config["n_positions"])
        w.add_embedding_length(config["n_embd"])
        w.add_feed_forward_length(4 * config["n_embd"])
        w.add_head_count(config["n_head"])
        w.add_layer_norm_eps(config["layer_norm_epsilon"])
        w.add_file_type(0)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
        w.add_token_types([1] * config["vocab_size"])
        w.add_token_merges(["t 0"])
        w.add_bos_token_id(config["vocab_size"] - 1)
        w.add_eos_token_id(config["vocab_size"] - 1)
        t = {k.removeprefix("transformer."): v for k, v in weights(cache, name).items()}
        w.add_tensor("token_embd.weight", t["wte.weight"])
        w.add_tensor("position_embd.weight", t["wpe.weight"])
        for i in range(config["n_layer"]):
            for here, there, turn in (("ln_1", "attn_norm", 0), ("attn.c_attn", "attn_qkv", 1), ("attn.c_proj", "attn_output", 1),
                                      ("ln_2", "ffn_norm", 0), ("mlp.c_fc", "ffn_up", 1), ("mlp.c_proj", "ffn_down", 1)):
                m = t[f"h.{i}.{here}.weight"]
                w.add_tensor(f"blk.{i}.{there}.weight", np.ascontiguousarray(m.T) if turn else m)
                w.add_tensor(f"blk.{i}.{there}.bias", t[f"h.{i}.{here}.bias"])
        w.add_tensor("output_norm.weight", t["ln_f.weight"])
        w.add_tensor("output_norm.bias", t["ln_f.bias"])
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        part.rename(first)
    if name != "gpt2":
        return
    L = need("llama_cpp", "llama-cpp-python")
    for dtype, code in (("f16", 1), ("q4_0", 2), ("q8_0", 7), ("bf16", 32)):
        path = cache / f"{name}-{dtype}.gguf"
        if not path.exists():
            p = L.llama_model_quantize_default_params()
            p.ftype, p.nthread = code, os.cpu_count()
            part = path.with_suffix(".part")
            if L.llama_model_quantize(str(first).encode(), str(part).encode(), ctypes.byref(p)) != 0:
                raise Missing(f"llama.cpp's quantiser failed for {dtype}")
            part.rename(path)


class OnnxGraph:
    """A little help to write ONNX graphs by hand."""

    def __init__(self):
        from onnx import helper, numpy_helper, TensorProto
        self.h, self.nh, self.T = helper, numpy_helper, TensorProto
        self.nodes, self.constants, self.count = [], [], 0

    def const(self, array, name=None):
        import numpy as np
        self.count += 1
        name = name or f"c{self.count}"
        array = np.asarray(array)
        self.constants.append(self.nh.from_array(array if array.ndim == 0 else np.ascontiguousarray(array), name))
        return name

    def op(self, kind, inputs, outputs=1, domain="", **attributes):
        if isinstance(outputs, int):
            outputs = [f"v{self.count}_{i}" for i in range(outputs)]
            self.count += 1
        self.nodes.append(self.h.make_node(kind, inputs, outputs, name=f"n{len(self.nodes)}", domain=domain, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def ms(self, kind, inputs, outputs=1, **attributes):
        return self.op(kind, inputs, outputs, domain="com.microsoft", **attributes)

    def save(self, path, inputs, outputs):
        import onnx
        make = self.h.make_tensor_value_info
        graph = self.h.make_graph(self.nodes, "g", [make(*i) for i in inputs], [make(*o) for o in outputs], self.constants)
        model = self.h.make_model(graph, opset_imports=[self.h.make_opsetid("", 17), self.h.make_opsetid("com.microsoft", 1)], ir_version=8)
        part = path.with_suffix(".part")
        onnx.save(model, str(part))
        part.rename(path)


def quantize_onnx(source, target):
    if not target.exists():
        need("onnxruntime")
        from onnxruntime.quantization import quantize_dynamic, QuantType
        part = target.with_suffix(".part")
        import onnx
        quantize_dynamic(str(source), str(part), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Attention"],
                         extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
        part.rename(target)


def make_gpt2_onnx(cache, name):
    need("onnx")
    path = cache / f"{name}-f32.onnx"
    if not path.exists():
        config = json.loads((cache / name / "config.json").read_text())
        heads, width, eps = config["n_head"], config["n_embd"], config["layer_norm_epsilon"]
        t = {k.removeprefix("transformer."): v for k, v in weights(cache, name).items()}
        import numpy as np
        g = OnnxGraph()
        c = lambda key: g.const(t[key], key)
        x = g.op("Add", [g.op("Gather", [c("wte.weight"), "input_ids"]), g.op("Gather", [c("wpe.weight"), "position_ids"])])
        normed = g.op("LayerNormalization", [x, c("h.0.ln_1.weight"), c("h.0.ln_1.bias")], epsilon=eps)
        presents = []
        for i in range(config["n_layer"]):
            k = lambda key: c(f"h.{i}.{key}")
            a, present = g.ms("Attention", [normed, k("attn.c_attn.weight"), k("attn.c_attn.bias"), "", f"past_{i}"],
                              [f"attn_{i}", f"present_{i}"], num_heads=heads, unidirectional=1)
            presents.append(present)
            a = g.op("MatMul", [a, k("attn.c_proj.weight")])
            normed, _, _, x = g.ms("SkipLayerNormalization", [x, a, k("ln_2.weight"), k("ln_2.bias"), k("attn.c_proj.bias")],
                                   [f"n2_{i}", "", "", f"x2_{i}"], epsilon=eps)
            f = g.ms("FastGelu", [g.op("MatMul", [normed, k("mlp.c_fc.weight")]), k("mlp.c_fc.bias")])
            f = g.op("MatMul", [f, k("mlp.c_proj.weight")])
            after = "ln_f" if i + 1 == config["n_layer"] else f"h.{i + 1}.ln_1"
            normed, _, _, x = g.ms("SkipLayerNormalization", [x, f, c(f"{after}.weight"), c(f"{after}.bias"), k("mlp.c_proj.bias")],
                                   [f"n1_{i}", "", "", f"x1_{i}"], epsilon=eps)
        last = g.op("Slice", [normed, g.const(np.array([-1])), g.const(np.array([2**31 - 1])), g.const(np.array([1]))])
        g.op("MatMul", [last, g.const(t["wte.weight"].T, "head")], ["logits"])
        F, I = g.T.FLOAT, g.T.INT64
        kv = ["batch", heads]
        g.save(path, [("input_ids", I, ["batch", "seq"]), ("position_ids", I, ["batch", "seq"])]
               + [(f"past_{i}", F, [2, *kv, "past", width // heads]) for i in range(config["n_layer"])],
               [("logits", F, ["batch", 1, VOCAB])] + [(p, F, [2, *kv, "total", width // heads]) for p in presents])
    if name == "gpt2":
        quantize_onnx(path, cache / f"{name}-int8.onnx")


def make_bert_onnx(cache):
    need("onnx")
    path = cache / "bert-f32.onnx"
    if not path.exists():
        import numpy as np
        config = json.loads((cache / "bert-base" / "config.json").read_text())
        heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
        t = weights(cache, "bert-base")
        g = OnnxGraph()
        c = lambda key: g.const(t[key], key)
        e = "embeddings."
        ones = np.array([1], np.int64)
        seq = g.op("Slice", [g.op("Shape", ["input_ids"]), g.const(ones), g.const(ones + 1)])
        positions = g.op("Slice", [c(e + "position_embeddings.weight"), g.const(ones * 0), seq, g.const(ones * 0)])
        kind0 = g.const(t[e + "token_type_embeddings.weight"][0], "type0")
        x = g.op("Add", [g.op("Add", [g.op("Gather", [c(e + "word_embeddings.weight"), "input_ids"]), kind0]), positions])
        x = g.op("LayerNormalization", [x, c(e + "LayerNorm.weight"), c(e + "LayerNorm.bias")], epsilon=eps)
        for i in range(config["num_hidden_layers"]):
            p = f"encoder.layer.{i}."
            s = p + "attention.self."
            qkv = g.const(np.concatenate([t[f"{s}{n}.weight"].T for n in ("query", "key", "value")], 1), f"{p}qkv")
            bias = g.const(np.concatenate([t[f"{s}{n}.bias"] for n in ("query", "key", "value")]), f"{p}qkv_bias")
            turned = lambda key: g.const(t[key].T, key)
            a = g.op("MatMul", [g.ms("Attention", [x, qkv, bias], num_heads=heads), turned(p + "attention.output.dense.weight")])
            o = p + "attention.output."
            x = g.ms("SkipLayerNormalization", [x, a, c(o + "LayerNorm.weight"), c(o + "LayerNorm.bias"), c(o + "dense.bias")], epsilon=eps)
            f = g.ms("BiasGelu", [g.op("MatMul", [x, turned(p + "intermediate.dense.weight")]), c(p + "intermediate.dense.bias")])
            f = g.op("MatMul", [f, turned(p + "output.dense.weight")])
            o = p + "output."
            x = g.ms("SkipLayerNormalization", [x, f, c(o + "LayerNorm.weight"), c(o + "LayerNorm.bias"), c(o + "dense.bias")],
                     ["last_hidden_state"] if i + 1 == config["num_hidden_layers"] else 1, epsilon=eps)
        first = g.op("Gather", [x, g.const(np.array(0))], axis=1)
        g.op("Tanh", [g.op("Gemm", [first, c("pooler.dense.weight"), c("pooler.dense.bias")], transB=1)], ["pooler_output"])
        F, I = g.T.FLOAT, g.T.INT64
        g.save(path, [("input_ids", I, ["batch", "seq"])],
               [("last_hidden_state", F, ["batch", "seq", 768]), ("pooler_output", F, ["batch", 768])])
    quantize_onnx(path, cache / "bert-int8.onnx")


def make_llmc(cache):
    """The files that llm.c's train_gpt2 opens: the same weights in its layout, and random tokens."""
    import numpy as np
    folder = cache / "llmc"
    target = folder / "gpt2_124M.bin"
    if target.exists():
        return
    data = folder / "dev" / "data" / "tinyshakespeare"
    data.mkdir(parents=True, exist_ok=True)
    t = {k.removeprefix("transformer."): v for k, v in weights(cache, "gpt2").items()}
    padded = 50304
    header = np.zeros(256, np.int32)
    header[:8] = [20240326, 3, 1024, VOCAB, 12, 12, 768, padded]
    layers = lambda key, turn: np.concatenate([(t[f"h.{i}.{key}"].T if turn else t[f"h.{i}.{key}"]).ravel() for i in range(12)])
    part = target.with_suffix(".part")
    with open(part, "wb") as f:
        f.write(header.tobytes())
        f.write(np.pad(t["wte.weight"], ((0, padded - VOCAB), (0, 0))).tobytes())
        f.write(t["wpe.weight"].tobytes())
        for key, turn in (("ln_1.weight", 0), ("ln_1.bias", 0), ("attn.c_attn.weight", 1), ("attn.c_attn.bias", 0), ("attn.c_proj.weight", 1),
                          ("attn.c_proj.bias", 0), ("ln_2.weight", 0), ("ln_2.bias", 0), ("mlp.c_fc.weight", 1), ("mlp.c_fc.bias", 0),
                          ("mlp.c_proj.weight", 1), ("mlp.c_proj.bias", 0)):
            f.write(layers(key, turn).tobytes())
        f.write(t["ln_f.weight"].tobytes())
        f.write(t["ln_f.bias"].tobytes())
    rng = np.random.default_rng(SEED)
    for split in ("train", "val"):
        tokens = rng.integers(0, VOCAB, 65536 + 1).astype(np.uint16)
        head = np.zeros(256, np.int32)
        head[:3] = [20240520, 1, len(tokens)]
        (data / f"tiny_shakespeare_{split}.bin").write_bytes(head.tobytes() + tokens.tobytes())
    part.rename(target)


# ----------------------------------------------------------------------------- is the machine quiet?

HZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy_ticks():
    """Clock ticks that all processes (and the hypervisor's other guests) have used so far."""
    try:
        v = list(map(int, open("/proc/stat").readline().split()[1:9]))
        return sum(v) - v[3] - v[4]                              # all but idle and waiting for the disk
    except (OSError, ValueError, IndexError):
        return 0


def own_ticks(pid):
    """Clock ticks that a process and its finished children have used so far."""
    try:
        return sum(map(int, open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[11:15]))
    except (OSError, ValueError, IndexError):
        return 0


def wait_for_quiet(longest):
    """Wait until nobody uses the processors for a moment, at most so many seconds."""
    end = time.time() + longest
    while time.time() < end:
        before = busy_ticks()
        time.sleep(0.1)
        if busy_ticks() - before <= 1:
            return


def undisturbed(run, pid, tries):
    """run() again while other processes got in its way; returns the least disturbed result and how many
    cores the others used meanwhile."""
    best = None
    for i in range(tries):
        t0, busy, own = time.perf_counter(), busy_ticks(), own_ticks(pid)
        result = run()
        spent = time.perf_counter() - t0
        others = max(0, busy_ticks() - busy - (own_ticks(pid) - own))
        share = 0 if others <= 2 else others / HZ / spent
        if best is None or share < best[1]:
            best = (result, share)
        if share < 0.1 or "error" in result or spent > 3:
            break
        wait_for_quiet(0.5)
    return best


# ----------------------------------------------------------------------------- the parent's side of a peer

CHILDREN = []


def end_children():
    """No peer outlives this program, whatever ends it (a stopped llm.c would wait for ever)."""
    for child in CHILDREN:
        if child.poll() is None:
            child.kill()
            child.wait()


class Peer:
    """One peer in its own process."""

    def __init__(self, name, threads, cache):
        env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
        for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
            env[key] = str(threads)
        env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MALLOC_ARENA_MAX="2",
                   TORCHINDUCTOR_CACHE_DIR=str(cache / "inductor"))
        self.name, self.threads = name, threads
        self.log = open(cache / "peers.log", "a")
        self.proc = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--worker", name, str(threads)], env=env, text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
        CHILDREN.append(self.proc)

    def ask(self, msg):
        try:
            self.proc.stdin.write(json.dumps(msg) + "\n")
            self.proc.stdin.flush()
            line = self.proc.stdout.readline()
        except (BrokenPipeError, OSError):
            line = ""
        if not line:
            return {"error": f"its process ended with status {self.proc.wait()} (see peers.log in the cache)"}
        return json.loads(line)

    @property
    def pid(self):
        return self.proc.pid

    def setup(self, case):
        return self.ask({"do": "setup", "case": case})

    def sample(self):
        return self.ask({"do": "sample"})

    def close(self):
        self.proc.stdin.close()
        try:
            self.proc.wait(10)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        self.proc.stdout.close()
        self.log.close()


class Twinkle:
    """`twinkle bench`: a process a sample, by the command's contract."""

    pid = "self"                                                 # its processes are children of this one, and finished

    def __init__(self, exe, threads, label="twinkle", dtype=None, more=()):
        self.exe, self.threads, self.name, self.dtype, self.more = exe, threads, label, dtype, list(more)

    def setup(self, case):
        self.case = case
        args = case.get("twinkle")
        if args is None:
            return {"error": "twinkle bench has no such case"}
        if self.more and not case.get("trans_b"):
            return {"error": "nothing else to measure here"}
        self.args = list(map(str, args)) + (["--dtype", self.dtype] if self.dtype else []) + self.more
        reply = self.sample()
        if "error" in reply:
            return reply
        isa = reply["extra"].get("isa")
        return {"note": f"isa {isa}" if isa else None, "load_seconds": reply["extra"].get("load_seconds")}

    def sample(self):
        command = [self.exe, *self.args, "--threads", str(self.threads)]
        t0 = time.perf_counter()
        r = subprocess.run(command + ([] if self.case["kind"] == "startup" else ["--json"]), capture_output=True, text=True)
        wall = time.perf_counter() - t0
        if r.returncode:
            return {"error": (r.stderr.strip().splitlines() or [f"exit status {r.returncode}"])[-1]}
        if self.case["kind"] == "startup":
            return {"times": {"seconds": wall}, "extra": {}, "peak_rss_bytes": 0}
        try:
            out = json.loads([l for l in r.stdout.splitlines() if l.startswith("{")][-1])
            if self.case["kind"] == "t5":                            # the encoder and the first token, then the others
                times = {"seconds": out["first_token_seconds"] + (self.case["new"] - 1) / out["tokens_per_second"]}
            elif self.case["kind"] == "generate":
                times = {"prefill": self.case["prompt"] / out["prompt_tokens_per_second"], "decode": self.case["new"] / out["tokens_per_second"]}
            else:
                times = {"seconds": out["seconds"]}
        except (IndexError, KeyError, ValueError, ZeroDivisionError) as e:
            return {"error": f"its JSON is not what the contract says ({type(e).__name__}: {e})"}
        return {"times": times, "extra": out, "peak_rss_bytes": out.get("peak_rss_bytes", 0)}

    def close(self):
        pass


class Llmc:
    """llm.c's train_gpt2, built elsewhere for one (B, T); a sample is one step as it prints it."""
    name = "llm.c"

    def __init__(self, exe, threads, cache):
        self.exe, self.threads, self.cache, self.proc = os.path.abspath(exe), threads, cache, None

    def setup(self, case):
        t0 = time.perf_counter()
        folder = self.cache / "llmc"
        if not (folder / "gpt2_124M.bin").exists():
            return {"error": "its weight file is not in the cache"}
        ours, its = pty.openpty()                                # a terminal, or else its lines come late, in blocks
        self.proc = subprocess.Popen([self.exe], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": str(self.threads)}, stdout=its)
        CHILDREN.append(self.proc)
        os.close(its)
        self.out = os.fdopen(ours, "r", errors="replace")
        for line in self.lines():
            if line.startswith("train dataset num_batches"):
                batches = int(line.split()[-1])
                if abs(65537 // (case["b"] * case["t"]) - batches) > 1:
                    self.close()
                    return {"error": f"this binary was not built for B={case['b']}, T={case['t']}"}
            if line.startswith("step 0:"):
                break
        self.stop()
        return {"note": "llm.c train_gpt2, OpenMP (no gradient clipping)", "load_seconds": time.perf_counter() - t0}

    @property
    def pid(self):
        return self.proc.pid

    def lines(self):
        try:
            while line := self.out.readline():
                yield line.strip()
        except OSError:                                          # how a terminal says that the other end is closed
            pass

    # llm.c runs on by itself, so it is stopped between samples
    def stop(self):
        os.kill(self.proc.pid, signal.SIGSTOP)

    def sample(self):
        os.kill(self.proc.pid, signal.SIGCONT)
        steps = (line for line in self.lines() if line.startswith("step"))
        next(steps, None)                                        # the step that was under way when it was stopped
        line = next(steps, None)
        if line is None:
            return {"error": "it ended before the last sample (it does 41 steps)"}
        peak = 0
        for l in open(f"/proc/{self.proc.pid}/status"):
            if l.startswith("VmHWM"):
                peak = int(l.split()[1]) * 1024
        self.stop()
        return {"times": {"seconds": float(line.split("took")[1].split()[0]) / 1e3}, "extra": {}, "peak_rss_bytes": peak}

    def close(self):
        if self.proc:
            self.proc.kill()
            self.proc.wait()
            self.out.close()
            self.proc = None


# ----------------------------------------------------------------------------- measuring a case

class Bench:
    def __init__(self, args):
        self.args, self.rows, self.missing, self.notes = args, [], {}, {}
        self.cache = args.cache
        self.rounds = args.rounds or (3 if args.quick else 5)
        self.tries = 1 if args.quick else 3
        self.deadline = math.inf
        self.peaks = {}

    def say(self, text=""):
        if not self.args.json:
            print(text, flush=True)

    def emit(self, row):
        self.rows.append(row)
        self.record(row)

    def record(self, row):
        if self.args.json:
            print(json.dumps(row), flush=True)
        if self.args.save:
            with open(self.args.save, "a") as f:
                f.write(json.dumps(row) + "\n")

    def measure(self, subject, label, case, threads, peers, work, unit):
        """Alternate the peers over the rounds and record a row for each metric of each peer.
        work: {metric: amount of work in one call, in `unit` times one second}."""
        if self.args.cases and not any(c in label for c in self.args.cases.split(",")):
            return
        ready, samples, peaks, extras = [], {}, {}, {}
        for p in peers:
            reply = p.setup(case) if time.time() < self.deadline else {"error": "its share of the minute of --quick was over"}
            if "error" in reply:
                self.missing.setdefault((subject, p.name, reply["error"]), label)
                continue
            if reply.get("note"):
                self.notes[(subject, p.name)] = reply["note"]
            ready.append(p)
            extras[p.name] = {"load_seconds": reply.get("load_seconds")} if reply.get("load_seconds") else {}
        spent, disturbed = {}, {}
        for r in range(self.rounds):
            if r and time.time() > self.deadline:
                break
            self.look_at_peak(threads)
            order = ready[r % len(ready):] + ready[:r % len(ready)] if ready else []
            for p in order:
                if r >= 3 and spent[p.name] > 5:                 # three samples of something long are enough
                    continue
                wait_for_quiet(0 if self.args.quick else self.args.patience)
                t0 = time.perf_counter()
                reply, others = undisturbed(p.sample, p.pid, self.tries)
                disturbed.setdefault(p.name, []).append(round(others, 2))
                spent[p.name] = spent.get(p.name, 0) + time.perf_counter() - t0
                if "error" in reply:
                    self.missing.setdefault((subject, p.name, reply["error"]), label)
                    ready.remove(p)
                    continue
                for metric, seconds in reply["times"].items():
                    samples.setdefault(metric, {}).setdefault(p.name, []).append(seconds)
                peaks[p.name] = reply.get("peak_rss_bytes", 0)
                extras[p.name].update(reply.get("extra") or {})
                time.sleep(0.02)                                 # let the peer's threads stop spinning
        for metric, by_peer in samples.items():
            medians = {}
            for name, s in by_peer.items():
                med = statistics.median(s)
                medians[name] = med
                self.emit({"subject": subject, "case": label, "metric": metric, "threads": threads, "peer": name, "seconds": med,
                           "min_seconds": min(s), "rate": work[metric] / med, "best_rate": work[metric] / min(s), "unit": unit,
                           "samples": s, "others_cores": disturbed[name], "peak_rss_bytes": extras[name].get("peak_rss_bytes") or peaks.get(name, 0),
                           **({"extra": extras[name]} if extras[name] else {})})

    def table(self, subject, peers, unit, peak=None, peak_name="peak", metric="seconds", title=""):
        """One line a case and thread count, one column a peer: median rate; * marks the fastest peer."""
        rows = [r for r in self.rows if r["subject"] == subject and r["metric"] == metric]
        if not rows or self.args.json:
            return
        names = [n for n in peers if any(r["peer"] == n for r in rows)]
        ours = [n for n in names if n.startswith("twinkle")]
        theirs = [n for n in names if n not in ours]
        cases = []
        for r in rows:
            if (r["case"], r["threads"]) not in cases:
                cases.append((r["case"], r["threads"]))
        wide = max(len(c) for c, _ in cases)
        heads = theirs + ours
        self.say(f"\n{title or subject}: {unit} ({'best' if self.args.best else 'median'} of at most {self.rounds} samples; * the fastest peer)")
        value = "best_rate" if self.args.best else "rate"
        show = lambda v: f"{v:.0f}" if v >= 1000 else f"{v:.1f}" if v >= 10 else f"{v:.2f}"
        self.say(f"{'case':{wide}} thr " + " ".join(f"{h:>{max(8, len(h) + 1)}}" for h in heads) + (f" {'best % of ' + peak_name:>17}" if peak else "")
                 + ("  twinkle/best" if ours else ""))
        for case, threads in cases:
            rate = {r["peer"]: r[value] for r in rows if (r["case"], r["threads"]) == (case, threads)}
            peer_rates = [rate[n] for n in theirs if n in rate]
            best = max(peer_rates) if peer_rates else None
            line = f"{case:{wide}} {threads:3} "
            for h in heads:
                text = "-" if h not in rate else show(rate[h]) + ("*" if rate[h] == best and h in theirs else "")
                line += f"{text:>{max(8, len(h) + 1)}} "
            if peak:
                p = peak(case, threads)
                line += f"{100 * best / p:16.0f}% " if best and p else f"{'-':>17} "
            if ours:
                mine = max((rate[n] for n in ours if n in rate), default=None)
                line += f" {mine / best:11.2f}x" if mine and best else f" {'-':>12}"
            self.say(line.rstrip())
        rss = {}
        for r in rows:
            if r["peak_rss_bytes"]:
                rss[r["peer"]] = max(rss.get(r["peer"], 0), r["peak_rss_bytes"])
        self.say("peak memory, MiB: " + ", ".join(f"{n} {rss[n] / 2**20:.0f}" for n in heads if n in rss))

    def peak(self, threads, kind="f32"):
        """The multiply-add peak with so many threads, in GFLOP/s: the best that this machine ever showed."""
        if threads not in self.peaks:
            for _ in range(3 if self.args.quick else 5):
                self.look_at_peak(threads, 0.1 if self.args.quick else 0.3)
        return self.peaks[threads].get(kind)

    def look_at_peak(self, threads, seconds=0.03):
        """The clock floats with what the machine's other guests do, so this is asked again next to every sample."""
        seen, _ = undisturbed(lambda: micro(self.cache, "peak", threads, seconds), "self", 1)
        best = self.peaks.get(threads) or self.known_limits(f"peak {threads}")
        self.peaks[threads] = {k: max(v, best.get(k, v)) for k, v in seen.items()}
        if self.peaks[threads] != best:
            self.known_limits(f"peak {threads}", self.peaks[threads])

    def read_rate(self, threads):
        """How fast so many threads read memory, in GB/s: the best that this machine ever showed."""
        key = f"read {threads}"
        if key not in self.peaks:
            best = self.known_limits(key)
            for huge in (0, 1, 0, 1):
                look = lambda: micro(self.cache, "stream", threads, 0.2 if self.args.quick else 0.5, 256 if self.args.quick else 1024, huge)
                best = {"gbs": max(undisturbed(look, "self", self.tries)[0]["gbs"], best.get("gbs", 0))}
            self.peaks[key] = self.known_limits(key, best)
            self.record({"subject": "bandwidth", "case": "memory", "metric": "read", "threads": threads, "peer": "machine", "rate": best["gbs"], "unit": "GB/s"})
        return self.peaks[key]["gbs"]

    def known_limits(self, key, value=None):
        """What is remembered of a limit, in the cache, for this kind of processor; or remember it."""
        info = cpu_info()
        path = self.cache / "limits.json"
        limits = json.loads(path.read_text()) if path.exists() else {}
        mine = limits.setdefault(f"{info['cpu']} {info['family']}/{info['model']} {' '.join(info['simd'])}", {})
        if value is not None:
            mine[key] = value
            path.write_text(json.dumps(limits, indent=1) + "\n")
        return mine.get(key, {})

    def start(self, names, threads, dtypes=(None,)):
        """The processes of one case: the peers that --peers lets through, and Twinkle."""
        wanted = self.args.peers.split(",") if self.args.peers else [""]
        started = []
        if self.args.twinkle:
            started = [Twinkle(self.args.twinkle, threads, "twinkle" + (f"-{d}" if d else ""), d) for d in dtypes]
        return started + [Peer(n, threads, self.cache) for n in names if any(w in n for w in wanted)]

    def models(self, *names):
        lack = [n for n in names if not (self.cache / f"{n}.made").exists()]
        if not lack:
            return True
        self.say(f"making models in {self.cache.name}/: {', '.join(lack)} …")
        r = subprocess.run([sys.executable, os.path.abspath(__file__), "--make", *lack, "--cache", str(self.cache)],
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        ours = [l for l in r.stderr.splitlines() if l.startswith("peers.py:")]
        for l in ours:
            self.say(l)
        if r.returncode:
            self.say("peers.py: the models could not be made: " + ((r.stderr.strip().splitlines() or ["?"])[-1]))
            return False
        if not ours:
            for n in lack:
                (self.cache / f"{n}.made").touch()
        return True

    # ------------------------------------------------------------------------- subjects

    def do_peak(self):
        self.say("\nmultiply-add peak, measured (GFLOP/s or GOP/s; a multiply-add counts as two)")
        for t in self.args.threads:
            self.peak(t)
            p = self.peaks[t]
            text = ", ".join(f"{k} {p[k]:.0f} ({p[k + '_isa']})" for k in ("f32", "bf16", "int8") if k in p)
            self.say(f"  {t} thread(s): {text}")

    def do_bandwidth(self):
        self.say("\nreading memory, measured (GB/s, 1e9 bytes)")
        sizes = [(0.25, "256 KiB in all (L2)"), (8, "8 MiB (L3)"), (1024, "memory")]
        if self.args.quick:
            sizes = [(256, "memory")]
        for t in self.args.threads:
            for mib, what in sizes:
                for huge in ((0, 1) if what == "memory" else (1,)):
                    look = lambda: micro(self.cache, "stream", t, 0.1 if self.args.quick else 0.4, mib, huge)
                    v = max(undisturbed(look, "self", self.tries)[0]["gbs"] for _ in range(3))
                    pages = "2 MiB pages" if huge else "4 KiB pages"
                    self.say(f"  {t} thread(s), {what}, {pages}: {v:.1f}")
                    self.emit({"subject": "bandwidth", "case": f"{what}, {pages}", "metric": "read", "threads": t, "peer": "machine", "rate": v, "unit": "GB/s"})

    def gemm_cases(self):
        if self.args.quick:
            shapes = [(1, 3072, 768, 1), (64, 768, 768, 1), (256, 3072, 768, 1), (1024, 1024, 1024, 0)]
        else:
            shapes = [(m, n, k, 1) for n, k in PROJECTIONS for m in ROWS] + [(s, s, s, 0) for s in SQUARES]
        return shapes

    def run_gemm(self, subject, shapes, threads, names, dtypes, target):
        workers = self.start(names, threads, dtypes)
        if subject == "gemm" and self.args.twinkle:
            workers.append(Twinkle(self.args.twinkle, threads, "twinkle-unpacked", None, ["--unpacked", "--by-lanes"]))
        for m, n, k, trans in shapes:
            case = {"kind": "gemm", "m": m, "n": n, "k": k, "trans_b": trans, "target": target,
                    "twinkle": ["bench", "gemm", "--m", m, "--n", n, "--k", k] + (["--trans-b"] if trans else [])}
            gflop = 2e-9 * m * n * k
            label = f"{m}x{n}x{k}" + ("t" if trans else "")
            self.measure(subject, label, case, threads, workers, {"seconds": gflop}, "GFLOP/s")
        for w in workers:
            w.close()

    def do_gemm(self):
        names = ["numpy-openblas", "openblas", "blis", "onednn", "torch-mkl", "mkl-packed", "onednn-packed", "ort-packed", "ggml"]
        if self.args.quick:
            names = ["ort-packed", "numpy-openblas"]              # importing torch takes too much of the minute
        for t in self.args.threads:
            self.peak(t)
            self.run_gemm("gemm", self.gemm_cases(), t, names, (None,), 0.02 if self.args.quick else 0.1)
        self.table("gemm", names + ["twinkle"], "GFLOP/s", lambda c, t: self.peak(t), "FMA peak",
                   title="gemm f32 (MxNxK; t: the right side is stored [N,K]; packed: packed before timing, and so are Twinkle's [N,K])")
        self.table("gemm", [n for n in names if "packed" not in n] + ["twinkle-unpacked"], "GFLOP/s", lambda c, t: self.peak(t), "FMA peak",
                   title="gemm f32, nobody packs before timing")

    def do_lowp(self):
        groups = {"bf16": ["torch-bf16", "ggml-bf16", "ggml-f16"], "int8": ["fbgemm-int8", "ort-int8", "onednn-int8", "ggml-q8_0"], "q4": ["ggml-q4_0"]}
        shapes = [(m, n, k, 1) for n, k in [(768, 768), (3072, 768), (768, 3072), (50257, 768)] for m in (1, 4, 64, 256)]
        if self.args.quick:
            shapes = [(1, 3072, 768, 1), (64, 3072, 768, 1)]
            groups = {"bf16": ["ggml-bf16"], "int8": ["ggml-q8_0"]}
        for t in self.args.threads:
            self.peak(t)
            for g, names in groups.items():
                self.run_gemm(f"lowp {g}", shapes, t, names, ({"bf16": "bf16", "int8": "q8_0", "q4": "q4_0"}[g],), 0.02 if self.args.quick else 0.06)
        for g, names in groups.items():
            self.table(f"lowp {g}", names + ["twinkle-bf16", "twinkle-q8_0", "twinkle-q4_0"], "GFLOP/s",
                       lambda c, t: self.peak(t, "f32") if g == "bf16" and not self.peak(t, "bf16") else self.peak(t, "bf16" if g == "bf16" else "int8"),
                       "f32 peak" if g == "bf16" and not self.peak(self.args.threads[0], "bf16") else "its peak", title=f"gemm {g}")

    def do_attention(self):
        shapes = ATTENTION[1:3] if self.args.quick else ATTENTION
        names = ["torch-sdpa"] + ([] if self.args.quick else ["torch-unfused"])
        for t in self.args.threads:
            self.peak(t)
            for backward in (False, True):
                for b, h, s, d in shapes:
                    workers = self.start(names, t)
                    flop = 1e-9 * b * h * s * s * d * (7 if backward else 2)      # causal: half of 4 (and 14) T²D a head
                    case = {"kind": "attention", "b": b, "h": h, "t": s, "d": d, "backward": backward, "target": 0.02 if self.args.quick else 0.1,
                            "twinkle": ["bench", "attention", "--batch", b, "--heads", h, "--seq", s, "--head-dim", d, "--causal"] + (["--backward"] if backward else [])}
                    self.measure("attention", f"{b}x{h}x{s}x{d} {'fwd+bwd' if backward else 'fwd'}", case, t, workers, {"seconds": flop}, "GFLOP/s")
                    for w in workers:
                        w.close()
        self.table("attention", names + ["twinkle"], "GFLOP/s", lambda c, t: self.peak(t), "FMA peak",
                   title="attention, causal (BxHxTxD; half of the square counted: 2 T²D a head forward, 7 forward and backward)")

    def do_gpt2(self):
        if not self.models("gpt2"):
            return
        prompt, new = (64, 16) if self.args.quick else (PROMPT, NEW)
        groups = {
            "gpt2 f32": (["llama.cpp-f32", "torch-eager-gpt2", "torch-compile-gpt2", "ort-gpt2"], (None,)),
            "gpt2 16-bit": (["llama.cpp-f16", "llama.cpp-bf16", "torch-bf16-gpt2"], ("bf16",)),
            "gpt2 int8": (["llama.cpp-q8_0", "ort-int8-gpt2"], ("q8_0",)),
            "gpt2 int4": (["llama.cpp-q4_0"], ("q4_0",)),
        }
        if self.args.quick:
            groups = {"gpt2 f32": (["llama.cpp-f32", "ort-gpt2"], (None,))}
        for t in self.args.threads:
            for g, (names, dtypes) in groups.items():
                names = self.affordable(names, t)
                workers = self.start(names, t, dtypes)
                case = {"kind": "generate", "cache": str(self.cache), "prompt": prompt, "new": new,
                        "twinkle": ["bench", "generate", str(self.cache / "gpt2"), "--prompt-tokens", prompt, "--new-tokens", new]}
                self.measure(g, f"{prompt}+{new}", case, t, workers, {"prefill": prompt, "decode": new}, "token/s")
                for w in workers:
                    w.close()
        byte = {"gpt2 f32": 4, "gpt2 16-bit": 2, "gpt2 int8": 1 + 2 / 32, "gpt2 int4": 0.5 + 2 / 32}
        count = 124.4e6 - 1024 * 768                             # every weight is read once a token, but for the positions
        for g, (names, dtypes) in groups.items():
            shown = names + ["twinkle" + (f"-{d}" if d else "") for d in dtypes]
            flop = 2 * 12 * 12 * 768 * 768 + 12 * 4 * 768 * prompt / 2 + 2 * VOCAB * 768 / prompt       # a token; the head once
            self.table(g, shown, "token/s", lambda c, t: self.peak(t) * 1e9 / flop, "f32 peak", metric="prefill", title=f"{g} prefill")
            self.table(g, shown, "token/s", lambda c, t: self.read_rate(t) * 1e9 / (count * byte[g]), "bandwidth", metric="decode", title=f"{g} decode")

    def affordable(self, things, threads):
        """Leaves out, unless --full asks for it, what takes minutes: with fewer than the largest number of threads,
        torch.compile (it builds C++ anew for each number) and the long cases; and torch's bf16 on a processor
        that has no bf16 instructions, where one GPT-2 sample takes minutes."""
        def keep(x):
            if isinstance(x, tuple):
                return threads == max(self.args.threads) or x in ((1, 128), (8, 128), (4, 64))
            if "compile" in x:
                return threads == max(self.args.threads) and not self.args.quick
            return not x.startswith("torch-bf16-") or bool({"avx512_bf16", "amx_tile"} & set(cpu_info()["simd"]))
        if self.args.full:
            return things
        left = [x for x in things if keep(x)]
        for x in things:
            if x not in left and isinstance(x, str) and "bf16" in x:
                self.missing.setdefault(("bf16", x, "no bf16 instructions here, it would take minutes a sample (--full runs it)"), "all")
        return left

    def do_bert(self):
        if not self.models("bert-base"):
            return
        groups = {"bert f32": (["torch-eager-bert", "torch-compile-bert", "ort-bert"], (None,)), "bert int8": (["ort-int8-bert"], ("q8_0",))}
        if self.args.quick:
            groups = {"bert f32": (["ort-bert"], (None,))}
        for t in self.args.threads:
            for g, (names, dtypes) in groups.items():
                for b, s in self.affordable(BERT[:1] if self.args.quick else BERT, t):
                    workers = self.start(self.affordable(names, t), t, dtypes)
                    case = {"kind": "forward", "cache": str(self.cache), "b": b, "t": s, "target": 0.1,
                            "twinkle": ["bench", "forward", str(self.cache / "bert-base"), "--batch", b, "--seq", s]}
                    self.measure(g, f"{b}x{s}", case, t, workers, {"seconds": b}, "sequence/s")
                    for w in workers:
                        w.close()
        def limit(case, t):
            b, s = map(int, case.split("x"))
            flop = b * s * (12 * (24 * 768 * 768 + 4 * s * 768)) + b * 2 * 768 * 768
            return self.peak(t) * 1e9 / flop * b
        for g, (names, dtypes) in groups.items():
            self.table(g, names + ["twinkle" + (f"-{d}" if d else "") for d in dtypes], "sequence/s", limit, "f32 peak", title=f"{g} forward, BERT-base (batch x tokens)")

    def do_t5(self):
        if not self.models("t5-base"):
            return
        prompt, new = (32, 8) if self.args.quick else (T5_SOURCE, T5_NEW)
        for t in self.args.threads:
            workers = self.start(["torch-eager-t5"], t)
            case = {"kind": "t5", "cache": str(self.cache), "prompt": prompt, "new": new, "target": 0.1,
                    "twinkle": ["bench", "generate", str(self.cache / "t5-base"), "--prompt-tokens", prompt, "--new-tokens", new]}
            self.measure("t5", f"{prompt}->{new}", case, t, workers, {"seconds": new}, "token/s")
            for w in workers:
                w.close()
        self.table("t5", ["torch-eager-t5", "twinkle"], "token/s", title="t5-base: encode and write (source -> new tokens; new tokens a second of the whole)")

    def do_tokenize(self):
        if not self.models("tokenizer"):
            return
        text = self.cache / "tokenize.txt"
        for name in ("bpe", "wordpiece", "unigram"):
            folder = self.cache / f"tokenizer-{name}"
            workers = self.start(["tokenizers"], 1)
            case = {"kind": "tokenize", "folder": str(folder), "file": str(text), "target": 0.1,
                    "twinkle": ["bench", "tokenize", str(folder), "--file", str(text)]}
            self.measure("tokenize", name, case, 1, workers, {"seconds": text.stat().st_size / 1e6}, "MB/s")
            for w in workers:
                w.close()
        self.table("tokenize", ["tokenizers", "twinkle"], "MB/s", title="tokenizing lines of English, one thread (megabytes a second)")

    def do_train(self):
        if not self.models("gpt2"):
            return
        names = ["torch-train", "torch-compile-train", "torch-bf16-train"]
        if self.args.quick:
            names = ["torch-train"]
        for t in self.args.threads:
            for b, s in [(1, 64)] if self.args.quick else self.affordable(TRAIN, t):
                workers = self.start(self.affordable(names, t), t)
                for shape, exe in self.args.llmc:
                    if shape in (None, (b, s)) and (t == max(self.args.threads) or self.args.full):
                        workers.append(Llmc(exe, t, self.cache))
                case = {"kind": "train", "cache": str(self.cache), "b": b, "t": s,
                        "twinkle": ["bench", "train", str(self.cache / "gpt2"), "--batch", b, "--seq", s]}
                self.measure("train", f"{b}x{s}", case, t, workers, {"seconds": b * s}, "token/s")
                for w in workers:
                    w.close()
        def limit(case, t):
            b, s = map(int, case.split("x"))
            per_token = 3 * (2 * (12 * 12 * 768 * 768 + VOCAB * 768) + 12 * 2 * s * 768)
            return self.peak(t) * 1e9 / per_token
        self.table("train", names + ["llm.c", "twinkle"], "token/s", limit, "f32 peak", title="train GPT-2 124M: forward, backward, clip, AdamW (batch x tokens)")

    def do_startup(self):
        if not self.models("tiny"):
            return
        names = ["torch-start", "ort-start", "llama.cpp-start", "import-torch"]
        if self.args.quick:
            names = ["llama.cpp-start"]
        t = max(self.args.threads)
        workers = self.start(names, t)
        for model, label in (("tiny", "tiny GPT-2, 4+1 tokens"),) + (() if self.args.quick or not self.models("gpt2") else (("gpt2", "GPT-2 124M, 4+1 tokens"),)):
            case = {"kind": "startup", "cache": str(self.cache), "model": model,
                    "twinkle": ["generate", str(self.cache / model), "--ids", "1,2,3,4", "--max-new-tokens", "1", "--greedy"]}
            self.measure("startup", label, case, t, workers, {"seconds": 1.0}, "1/s")
        for w in workers:
            w.close()
        rows = [r for r in self.rows if r["subject"] == "startup"]
        self.say("\nstart-up: seconds from the start of the process to the first token (import-torch: to the import's end); files warm in the disk cache")
        for r in rows:
            mine = [x for x in rows if x["peer"] == "twinkle" and x["case"] == r["case"]]
            ratio = f"  twinkle is {r['seconds'] / mine[0]['seconds']:.1f}x as fast" if mine and r["peer"] != "twinkle" else ""
            rss = f", peak memory {r['peak_rss_bytes'] / 2**20:.0f} MiB" if r["peak_rss_bytes"] else ""
            self.say(f"  {r['case']:24} {r['peer']:16} {r['seconds']:.3f} s{rss}{ratio}")
        self.sizes()

    def sizes(self):
        """Bytes on disk of what each peer loads, and how long Twinkle takes to compile."""
        found = []
        for label, module, pattern in (("torch", "torch", "lib/*.so*"), ("onnxruntime", "onnxruntime", "capi/*.so*"), ("llama.cpp", "llama_cpp", "lib/*.so")):
            spec = __import__("importlib.util", fromlist=["_"]).find_spec(module)
            if spec and spec.submodule_search_locations:
                files = {f.resolve() for f in Path(spec.submodule_search_locations[0]).glob(pattern)}
                found.append((label, sum(f.stat().st_size for f in files)))
        if self.args.twinkle:
            found.append(("twinkle", os.path.getsize(self.args.twinkle)))
        self.say("size of the binaries, MiB: " + ", ".join(f"{n} {b / 2**20:.1f}" for n, b in found))
        for n, b in found:
            self.emit({"subject": "size", "case": "binary", "metric": "bytes", "threads": 0, "peer": n, "rate": b, "unit": "byte"})
        if self.args.twinkle_source:
            with tempfile.TemporaryDirectory() as d:
                for flags in (["-O2"], ["-O3"]):
                    t0 = time.perf_counter()
                    r = subprocess.run(["cc", *flags, "-fopenmp", self.args.twinkle_source, "-o", f"{d}/t", "-lm"], capture_output=True, text=True)
                    t = time.perf_counter() - t0
                    self.say(f"compile {' '.join(flags)}: {t:.1f} s" if r.returncode == 0 else "compile failed: " + r.stderr.strip().splitlines()[0])
                    self.emit({"subject": "compile", "case": " ".join(flags), "metric": "seconds", "threads": 1, "peer": "twinkle", "rate": t, "seconds": t, "unit": "s"})

    def closing(self):
        for t, best in self.peaks.items():
            for k in ("f32", "bf16", "int8"):
                if k in best:
                    self.record({"subject": "peak", "case": k, "metric": "multiply-add", "threads": t, "peer": "machine", "rate": best[k],
                                 "unit": "GFLOP/s", "isa": best[k + "_isa"]})
        if self.notes:
            self.say("\nwhat the peers are:")
            seen = set()
            for (subject, name), note in self.notes.items():
                if (name, note) not in seen:
                    seen.add((name, note))
                    self.say(f"  {name}: {note}")
        if self.missing:
            self.say("\nleft out:")
            for (subject, name, why), where in self.missing.items():
                self.say(f"  {subject}: {name} ({where}): {why}")
        for (subject, name), note in self.notes.items():
            self.record({"subject": subject, "peer": name, "note": note})
        for (subject, name, why), where in self.missing.items():
            self.record({"subject": subject, "peer": name, "case": where, "missing": why})
        noisy = [x for r in self.rows for x in r.get("others_cores", []) if x >= 0.1]
        if noisy:
            self.say(f"\n{len(noisy)} of {sum(len(r.get('others_cores', [])) for r in self.rows)} samples stayed disturbed by other processes "
                     f"(up to {max(noisy):.1f} cores); --best shows each peer's best sample")
        if not self.args.twinkle:
            self.say("\nno twinkle binary was given (--twinkle PATH): peers only")
        ratios = {}
        for r in self.rows:
            if "seconds" in r and r["subject"] not in ("startup", "compile"):
                ratios.setdefault((r["subject"], r["case"], r["metric"], r["threads"]), {})[r["peer"]] = r["min_seconds" if self.args.best else "seconds"]
        by_subject = {}
        for (subject, case, metric, threads), s in ratios.items():
            ours = [v for n, v in s.items() if n.startswith("twinkle")]
            theirs = [v for n, v in s.items() if not n.startswith("twinkle")]
            if ours and theirs:
                ratio = min(theirs) / min(ours)
                by_subject.setdefault(subject, []).append(ratio)
                self.record({"subject": subject, "case": case, "metric": metric, "threads": threads, "twinkle_over_best_peer": ratio})
        if by_subject:
            self.say("\ntwinkle / best peer over the cases (above 1: faster than every peer):")
            for subject, v in by_subject.items():
                geo = math.exp(sum(map(math.log, v)) / len(v))
                self.say(f"  {subject:14} geometric mean {geo:.2f}, worst {min(v):.2f}, best {max(v):.2f}, ahead in {sum(x > 1 for x in v)} of {len(v)}")


# ----------------------------------------------------------------------------- main

def parse():
    p = argparse.ArgumentParser(description="Measure Twinkle and its peers side by side.", epilog="See the head of this file for how it measures.")
    p.add_argument("--twinkle", metavar="PATH", help="the twinkle command (default: peers only)")
    p.add_argument("--twinkle-source", metavar="FILE", help="tools/twinkle.c, to time its compilation in `startup`")
    p.add_argument("--only", metavar="NAME[,NAME]", help="subjects to run (see --list)")
    p.add_argument("--peers", metavar="NAME[,NAME]", help="only peers whose name contains one of these words")
    p.add_argument("--cases", metavar="TEXT[,TEXT]", help="only cases whose label contains one of these texts, as 256x3072")
    p.add_argument("--threads", default=None, metavar="1,2", help="numbers of threads (default 1 and 2, or 1 on a single core)")
    p.add_argument("--quick", action="store_true", help="fewer cases, peers and samples: about a minute in all")
    p.add_argument("--json", action="store_true", help="one JSON object a line instead of tables")
    p.add_argument("--rounds", type=int, help="samples of each peer (default 5; 3 with --quick)")
    p.add_argument("--cache", default=None, metavar="DIR", help="where models and builds are kept (default: the user's cache folder)")
    p.add_argument("--llmc", action="append", default=[], metavar="[BxT=]BINARY", help="llm.c's train_gpt2, built for one shape; may be given again")
    p.add_argument("--full", action="store_true", help="the long cases and torch.compile with every number of threads too")
    p.add_argument("--best", action="store_true", help="tables show each peer's best sample instead of the median (for a busy machine)")
    p.add_argument("--patience", type=float, default=1, metavar="S", help="seconds to wait before each sample for other processes to pause (default 1)")
    p.add_argument("--save", metavar="FILE", help="write the JSON lines to FILE as well")
    p.add_argument("--list", action="store_true", help="name the subjects")
    p.add_argument("--make", nargs="+", help=argparse.SUPPRESS)
    args = p.parse_args()
    cache = args.cache or os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "twinkle-peers")
    args.cache = Path(cache).resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    args.threads = [int(x) for x in args.threads.split(",")] if args.threads else [1, 2] if (os.cpu_count() or 1) > 1 else [1]
    if args.quick and len(args.threads) > 1 and "--threads" not in " ".join(sys.argv):
        args.threads = [max(args.threads)]
    args.llmc = [((tuple(map(int, x.split("=", 1)[0].split("x"))), x.split("=", 1)[1]) if "=" in x else (None, x)) for x in args.llmc]
    for _, exe in args.llmc:
        if not os.access(exe, os.X_OK):
            p.error(f"--llmc {exe}: no such program")
    if args.twinkle:
        found = shutil.which(args.twinkle)
        if not found:
            p.error(f"--twinkle {args.twinkle}: no such program")
        args.twinkle = os.path.abspath(found)
    only = args.only.split(",") if args.only else SUBJECTS
    for name in only:
        if name not in SUBJECTS:
            p.error(f"--only {name}: not one of {', '.join(SUBJECTS)}")
    args.only = only
    return args


def main():
    if len(sys.argv) >= 4 and sys.argv[1] == "--worker":
        return worker(sys.argv[2], int(sys.argv[3]))
    args = parse()
    if args.list:
        print("\n".join(SUBJECTS))
        return 0
    if args.make:
        try:
            make_models(args.cache, args.make)
        except Missing as e:
            print(f"peers.py: {e}", file=sys.stderr)
            return 1
        return 0
    atexit.register(end_children)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(args)
    info = cpu_info()
    bench.say(f"{time.strftime('%Y-%m-%d')}  {info['cpu']} (family {info['family']} model {info['model']}), {info['cores']} cores, "
              f"{info.get('memory_gib', '?')} GiB, {' '.join(info['simd'])}")
    bench.record({"date": time.strftime("%Y-%m-%d"), **info})
    start = time.time()
    for subject in SUBJECTS:
        if subject in args.only:
            if args.quick and time.time() - start > 48:
                bench.missing[(subject, "all", "the minute of --quick was over")] = "all"
                continue
            bench.deadline = time.time() + QUICK_SECONDS / len(args.only) if args.quick else math.inf
            try:
                getattr(bench, "do_" + subject)()
            except (RuntimeError, subprocess.CalledProcessError) as e:
                bench.say(f"{subject}: left out: {e}")
    bench.closing()
    bench.say(f"\n{time.time() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
