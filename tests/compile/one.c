/* one.c, two.c - the header in a program of two files.  This one has the implementation and includes it twice; two.c only uses it,
   or with TWINKLE_STATIC has one of its own.  Built as C and C++, with each of the header's options. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include "twinkle_blas.h"
#include "twinkle.h"
#include <stdio.h>

#ifdef __cplusplus
extern "C"
#endif
float two_learns(tw_allocator alloc);

static void *count_alloc(void *user, size_t bytes) { ++*(long *)user; return malloc(bytes); }
static void count_free(void *user, void *pointer, size_t bytes) { (void)bytes; --*(long *)user; free(pointer); }

int main(void) {
    long live = 0;
    tw_allocator alloc = { count_alloc, count_free, &live };
    float weight = two_learns(alloc);
    bool learned = weight > 2.99f && weight < 3.01f, clean = live == 0, same_version = tw_version() == TW_VERSION;
    if (!learned) printf("the weight is %g instead of 3\n", (double)weight);
    if (!clean) printf("%ld blocks were not given back\n", live);
    printf("%d passed, %d failed\n", learned + clean + same_version, 3 - (learned + clean + same_version));
    return !(learned && clean && same_version);
}
