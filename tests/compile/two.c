/* See one.c. */
#ifdef TWINKLE_STATIC
#  define TWINKLE_IMPLEMENTATION
#endif
#include "twinkle.h"
#include <string.h>

#ifdef __cplusplus
extern "C"
#endif
float two_learns(tw_allocator alloc);

/* Finds the w of y = 3 x by gradient descent. */
float two_learns(tw_allocator alloc) {
    static const float x[4] = { 1, 2, -1, 0.5f }, y[4] = { 3, 6, -3, 1.5f };
    tw_desc desc;
    tw_context *tw;
    tw_tensor *w;
    float result;
    int i;
    memset(&desc, 0, sizeof desc);
    desc.alloc = alloc;
    tw = tw_create(&desc);
    w = tw_parameter(tw, "w", tw_shape2(1, 1));
    for (i = 0; i < 100 && !tw_failed(tw); i++) {
        float gradient = 0;
        tw_tensor *in = tw_tensor_from(tw, tw_shape2(4, 1), x), *want = tw_tensor_from(tw, tw_shape2(4, 1), y);
        tw_backward(tw_mse_loss(tw_matmul(in, w), want));
        tw_read(tw_grad(w), &gradient, 1);
        tw_data(w)[0] -= 0.2f * gradient;
        tw_zero_grad_of(w);
        tw_end_step(tw);
    }
    result = tw_failed(tw) ? 0 : tw_data(w)[0];
    tw_destroy(tw);
    return result;
}
