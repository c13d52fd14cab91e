/* check.h - the little that a test program needs: CHECK counts and names what fails, check_done() sums up; check_begin() and
   check_skip() shorten a test for an emulated processor. */
#ifndef CHECK_H
#define CHECK_H
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>

static int check_passed, check_failed;

/* CHECK(condition, format, ...): one line for each failure, at most 40 of them. */
#define CHECK(condition, ...) \
    do { \
        if (condition) check_passed++; \
        else if (check_failed++ < 40) { printf("%s:%d: ", __FILE__, __LINE__); printf(__VA_ARGS__); printf("\n"); } \
    } while (0)

/* To begin main with: N as the program's argument asks for only each Nth case of the long series, because an emulated processor is
   slow; everything where there is none.  An N without a common factor with what a series repeats in, such as 7, leaves every
   size, layout and type some of its cases. */
static int check_every = 1, check_turn;
static inline void check_begin(int argc, char **argv) { if (argc > 1 && atoi(argv[1]) > 0) check_every = atoi(argv[1]); }
static inline int check_skip(void) { return check_turn++ % check_every != 0; }
/* the number of threads to try after this one: each, or with an argument every other */
static inline int check_next_threads(int threads) { return threads + (check_every > 1 ? 2 : 1); }

/* To end main with: `return check_done();`. */
static int check_done(void) {
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed ? 1 : 0;
}

/* Numbers that look random and are the same everywhere: xorshift64*. */
static uint64_t check_seed = 88172645463325252u;
static inline uint32_t check_random(void) {
    check_seed ^= check_seed >> 12; check_seed ^= check_seed << 25; check_seed ^= check_seed >> 27;
    return (uint32_t)((check_seed * 2685821657736338717u) >> 32);
}
static inline float check_uniform(void) { return (float)(int32_t)check_random() * (1.0f / 2147483648.0f); }     /* [-1, 1) */

/* malloc that ends the test where there is no memory */
static inline void *check_malloc(size_t size) {
    void *p = malloc(size ? size : 1);
    if (!p) { printf("out of memory\n"); exit(2); }
    return p;
}
#endif
