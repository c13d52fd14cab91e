/* counted.h - an allocator for tests: it counts what lives, and fails at the call that one wishes. */
#ifndef COUNTED_H
#define COUNTED_H
#include <stdlib.h>
#include "../twinkle.h"

typedef struct counted { long live, calls, fail_at; size_t bytes, peak; } counted;     /* fail_at: 1 is the first call, 0 is none */

static void *counted_alloc(void *user, size_t bytes) {
    counted *c = (counted *)user;
    void *p = ++c->calls == c->fail_at || bytes / 4 > (size_t)1 << 30 ? NULL : malloc(bytes ? bytes : 1);    /* 4 GiB is all there is: a sanitizer ends the test at absurd sizes */
    if (p) { c->live++; c->bytes += bytes; if (c->bytes > c->peak) c->peak = c->bytes; }
    return p;
}
static void counted_free(void *user, void *p, size_t bytes) {
    counted *c = (counted *)user;
    if (p) { c->live--; c->bytes -= bytes; }
    free(p);
}
static inline tw_desc counted_desc(counted *c) {
    tw_desc d = {0};
    d.alloc.alloc = counted_alloc;
    d.alloc.free = counted_free;
    d.alloc.user = c;
    d.threads = 1;
    return d;
}
static inline tw_context *counted_context(counted *c) { tw_desc d = counted_desc(c); return tw_create(&d); }
#endif
