/* tensors.c - tensors and gradients, as on a blackboard.

   The lesson: write down a formula, ask for its gradient, walk downhill.  Here the formula is a plane,
   y = x w, that should pass through four points; nobody tells it that they were made with w = (2, -3).

   Parameters live until tw_destroy() and have a gradient.  Everything else lives until tw_end_step(),
   so the loop takes no memory however long it runs.

       cc -O2 -I.. tensors.c -o tensors -lm && ./tensors */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>

int main(void) {
    static const float points[4][2] = { { 1, 0 }, { 0, 1 }, { 1, 1 }, { 2, -1 } };
    static const float heights[4] = { 2, -3, -1, 7 };
    const float rate = 0.1f;
    tw_context *tw = tw_create(NULL);
    tw_tensor *w = tw_parameter(tw, "w", tw_shape2(2, 1));
    int step;

    for (step = 0; step <= 100 && !tw_failed(tw); step++) {
        tw_tensor *x = tw_tensor_from(tw, tw_shape2(4, 2), &points[0][0]);
        tw_tensor *y = tw_tensor_from(tw, tw_shape2(4, 1), heights);
        tw_tensor *loss = tw_mse_loss(tw_matmul(x, w), y);      /* a failed operand makes a failed result: */
        float gradient[2] = { 0, 0 }, *weight = tw_data(w);     /* one check, below, is enough */
        int i;

        tw_backward(loss);
        if (tw_read(tw_grad(w), gradient, 2) != 2) break;
        if (step % 20 == 0)
            printf("step %3d   loss %10.6f   w = (%6.3f, %6.3f)   gradient (%7.3f, %7.3f)\n", step, (double)tw_item(loss),
                   (double)weight[0], (double)weight[1], (double)gradient[0], (double)gradient[1]);
        for (i = 0; i < 2; i++) weight[i] -= rate * gradient[i];
        tw_zero_grad_of(w);
        tw_end_step(tw);
    }
    if (tw_failed(tw)) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    return 0;
}
