/* csoftmax from C: rows of floats, whose number and length are arguments, computed with 1 and 2 threads and in the
 * caller's scratch.  Prints the bits of the results, which test_embedding.py compares with csoftmax.softmax.
 *
 *     cc embed.c $(python -m csoftmax --cflags) $(python -m csoftmax --libs)
 */
#include <csoftmax.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int stop(csm_status status) {
    fprintf(stderr, "csoftmax: %s\n", csm_status_text(status));
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const size_t rows = strtoul(argv[1], NULL, 10), n = strtoul(argv[2], NULL, 10);
    csm_shape shape = {.n = n, .ndim = 1, .shape = {rows}};
    float *x = calloc(rows * n, sizeof *x), *y = calloc(rows * n, sizeof *y), *lse = calloc(rows, sizeof *lse);
    void *scratch = aligned_alloc(64, csm_scratch_size(&shape, 2));
    if (!x || !y || !lse || !scratch) return 3;
    for (size_t i = 0; i < rows * n; i++) x[i] = (float)(i * 7919 % 2003) / 64;

    csm_view from = csm_contiguous(&shape, n, x, sizeof *x), to = csm_contiguous(&shape, n, y, sizeof *y);
    csm_status status = csm_softmax_f32(&shape, &from, &to, NULL);
    if (status != CSM_OK) return stop(status);

    csm_options options = CSM_OPTIONS_INIT;
    options.threads = 2;
    options.scratch = scratch;
    options.scratch_size = csm_scratch_size(&shape, 2);
    float *again = calloc(rows * n, sizeof *again);
    if (!again) return 3;
    csm_view second = csm_contiguous(&shape, n, again, sizeof *again);
    status = csm_softmax_f32(&shape, &from, &second, &options);
    if (status != CSM_OK) return stop(status);
    if (memcmp(y, again, rows * n * sizeof *y) != 0) return 4; /* threads and scratch change no bit */

    /* rows, distributed as by the threads of a host program */
    memset(again, 0, rows * n * sizeof *again);
    for (size_t part = 0; part < 3; part++) {
        status =
            csm_softmax_rows_f32(x, (ptrdiff_t)n, again, (ptrdiff_t)n, n, rows * part / 3, rows * (part + 1) / 3, 1);
        if (status != CSM_OK) return stop(status);
    }
    if (memcmp(y, again, rows * n * sizeof *y) != 0) return 5;
    if (csm_softmax_rows_f32(x, 0, again, 0, n, 1, 0, 1) != CSM_BAD_SHAPE) return 5;

    csm_view to_lse = csm_contiguous(&shape, 1, lse, sizeof *lse);
    status = csm_logsumexp_f32(&shape, &from, &to_lse, &options);
    if (status != CSM_OK) return stop(status);

    /* the gradient of cross-entropy with label 0 everywhere sums to 0 over every row */
    int64_t *labels = calloc(rows, sizeof *labels);
    double loss = 0;
    if (!labels) return 3;
    csm_view classes = csm_contiguous(&shape, 1, labels, sizeof *labels);
    csm_loss_options of_loss = csm_default_loss_options();
    of_loss.labels = &classes;
    status = csm_cross_entropy_f32(&shape, &from, &second, &loss, &of_loss);
    if (status != CSM_OK) return stop(status);
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t j = 0; j < n; j++) sum += (double)again[r * n + j];
        if (!(sum < 1e-5 && sum > -1e-5) || !(loss >= 0)) return 6;
    }
    labels[rows - 1] = (int64_t)n;
    if (csm_cross_entropy_f32(&shape, &from, NULL, &loss, &of_loss) != CSM_BAD_LABEL || of_loss.position != rows - 1)
        return 7;
    free(labels);

    /* the three largest of each row, best first; then entmax and draws in place of softmax */
    float best[3];
    int64_t where[3], drawn[2];
    double uniform[2] = {0, 0.999};
    csm_shape first = {.n = n, .ndim = 0};
    csm_view row = csm_contiguous(&first, n, x, sizeof *x), values = csm_contiguous(&first, 3, best, sizeof *best);
    csm_view places = csm_contiguous(&first, 3, where, sizeof *where),
             at = csm_contiguous(&first, 2, drawn, sizeof *drawn);
    csm_view numbers = csm_contiguous(&first, 2, uniform, sizeof *uniform);
    csm_view probabilities = csm_contiguous(&first, n, again, sizeof *again);
    if (n >= 3) {
        status = csm_topk_f32(&first, &row, 3, &values, &places, NULL);
        if (status != CSM_OK) return stop(status);
        if (best[0] < best[1] || best[1] < best[2] || x[where[2]] != best[2]) return 8;
        if (csm_topk_f32(&first, &row, n + 1, &values, &places, NULL) != CSM_BAD_OPTION) return 8;
    }
    status = csm_entmax_f32(&first, &row, &probabilities, NULL);
    if (status != CSM_OK) return stop(status);
    double mass = 0;
    for (size_t j = 0; j < n; j++) mass += (double)again[j];
    if (!(mass > 0.99999 && mass < 1.00001)) return 9;
    status = csm_sample_f32(&first, &row, 2, &numbers, &at, NULL);
    if (status != CSM_OK) return stop(status);
    if (drawn[0] < 0 || drawn[1] < drawn[0] || drawn[1] >= (int64_t)n) return 10;

    options.temperature = -1;
    if (csm_softmax_f32(&shape, &from, &second, &options) != CSM_BAD_TEMPERATURE) return 5;

    printf("%s %d.%d\n", csm_isa(), CSM_ABI_MAJOR, CSM_ABI_MINOR);
    for (size_t i = 0; i < rows * n; i++) {
        unsigned bits;
        memcpy(&bits, &y[i], 4);
        printf("%08x\n", bits);
    }
    for (size_t r = 0; r < rows; r++) {
        unsigned bits;
        memcpy(&bits, &lse[r], 4);
        printf("%08x\n", bits);
    }
    free(x), free(y), free(lse), free(again), free(scratch);
    return 0;
}
