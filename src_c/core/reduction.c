#include "reduction.h"

#include "extension.h"

#include "../math/scalars.h"

double csm_tree_sum(const double *x, size_t n) {
    if (n <= 8) {
        double s = 0;
        for (size_t i = 0; i < n; i++) s += x[i];
        return s;
    }
    size_t half = 8;
    while (2 * half < n) half *= 2;
    return csm_tree_sum(x, half) + csm_tree_sum(x + half, n - half);
}

double csm_finish_loss(double loss, int single) {
    if (loss != loss) return CSM_NAN;
    return single ? (double)(float)loss : loss;
}
