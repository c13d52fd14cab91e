/* golden.h - what tests share that compare with values made by PyTorch and transformers (tools/goldens.py). */
#ifndef GOLDEN_H
#define GOLDEN_H
#include "check.h"
#include <math.h>
#include <string.h>

#define OK(condition) CHECK(condition, "%s", #condition)
#define GOLDENS "goldens/"

/* "goldens/gpt2/default/in.safetensors" */
static inline const char *golden_path(char room[512], const char *family, const char *name, const char *file) {
    snprintf(room, 512, GOLDENS "%s/%s%s%s", family, name, file[0] ? "/" : "", file);
    return room;
}

/* A tensor of a file as a tensor of the step: whole numbers as I32, all others as F32. */
static inline tw_tensor *golden_tensor(tw_context *tw, const tw_weight *w) {
    tw_shape shape;
    tw_tensor *t;
    int64_t i;
    memset(&shape, 0, sizeof shape);
    shape.rank = w->rank;
    memcpy(shape.dim, w->shape, sizeof shape.dim);
    if (w->dtype == TW_F32) {
        t = tw_tensor_from(tw, shape, NULL);
        if (t) memcpy(tw_data(t), w->data, w->bytes);
        return t;
    }
    t = tw_ids(tw, shape, NULL);
    for (i = 0; t && i < tw_count(t); i++) {
        int64_t v = 0;
        memcpy(&v, (const char *)w->data + (size_t)i * tw_dtype_size(w->dtype), tw_dtype_size(w->dtype));
        tw_data_i32(t)[i] = (int32_t)v;
    }
    return t;
}

/* All tensors of a file as a batch. */
static inline void golden_batch(tw_context *tw, const tw_weights *file, tw_batch *batch) {
    size_t i;
    memset(batch, 0, sizeof *batch);
    for (i = 0; i < tw_weights_count(file); i++) tw_batch_set(batch, tw_weights_at(file, i)->name, golden_tensor(tw, tw_weights_at(file, i)));
}

/* The largest difference, relative to the largest expected number (or to `least`, if that is larger); infinite where the
   sizes differ.  rows: only those where it is not 0 count (NULL: all). */
static inline double golden_error(const float *got, int64_t count, const tw_weight *want, const float *rows, int64_t row_count, double least) {
    const float *w = (const float *)want->data;
    double largest = least, off = 0;
    int64_t i, n = (int64_t)(want->bytes / sizeof(float)), columns = row_count ? n / row_count : 1;
    if (n != count || !got) return HUGE_VAL;
    for (i = 0; i < n; i++) {
        double d;
        if (rows && row_count * columns == n && rows[i / columns] == 0) continue;
        if (fabs((double)w[i]) > largest) largest = fabs((double)w[i]);
        d = fabs((double)got[i] - (double)w[i]);
        if (!(d <= off)) off = d;
    }
    return largest > 0 ? off / largest : off;
}
#endif
